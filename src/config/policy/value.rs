//! Values of a YAML tree, each checked for itself. What is wrong is noted with
//! the key, and reading goes on.

use super::super::pull::parse_duration;
use super::PolicyFault;
use crate::chain::Chain;
use crate::union;
use crate::volume::attributes::{nearest, parse_size};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Longest value in a fault, in characters.
const MAX_SHOWN_CHARACTERS: usize = 60;

/// The values of known keys.
pub(super) type Map<'a> = BTreeMap<&'a str, &'a Value>;

/// Where faults go.
pub(super) struct Reader<'a> {
    faults: &'a mut Vec<PolicyFault>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(faults: &'a mut Vec<PolicyFault>) -> Self {
        Reader { faults }
    }

    /// A map with no other keys than these. Nothing stands for one without keys.
    pub(super) fn map<'v>(
        &mut self,
        key: &str,
        value: Option<&'v Value>,
        known: &[&'static str],
    ) -> Option<Map<'v>> {
        let object = match value? {
            Value::Null => return Some(Map::new()),
            Value::Object(object) => object,
            other => {
                let key = match key {
                    "" => "the policy",
                    key => key,
                };
                return self.fault(key, other, "a map of keys to values");
            }
        };
        let mut map = Map::new();
        for (name, value) in object {
            if known.contains(&name.as_str()) {
                // A key without a value says nothing.
                if !value.is_null() {
                    map.insert(name.as_str(), value);
                }
                continue;
            }
            let whole = |name: &str| match key {
                "" => name.to_owned(),
                key => format!("{key}.{name}"),
            };
            let hint = match nearest(name, known) {
                Some(near) => format!("did you mean {}?", whole(near)),
                None => format!("the known ones are {}", known.join(", ")),
            };
            self.faults.push(PolicyFault::Unknown {
                key: shortened(&whole(name)),
                hint,
            });
        }
        Some(map)
    }

    /// A list of texts, each read by `read`.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        map: &Map<'_>,
        mut read: impl FnMut(&mut Self, &str, &str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = *map.get(key)?;
        let Value::Array(values) = value else {
            return self.fault(key, value, "a list");
        };
        let mut list = Vec::with_capacity(values.len());
        for (number, value) in values.iter().enumerate() {
            let key = format!("{key}[{number}]");
            list.extend(match value {
                Value::String(text) => read(self, &key, text),
                other => self.fault(&key, other, "a text"),
            });
        }
        Some(list)
    }

    /// A text that becomes a type of its own.
    pub(super) fn parsed<T>(&mut self, key: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: std::error::Error,
    {
        text.parse()
            .map_err(|error: T::Err| {
                self.faults.push(PolicyFault::Unreadable {
                    key: key.to_owned(),
                    reason: Chain(&error).to_string(),
                });
            })
            .ok()
    }

    /// An absolute path in its shortest form.
    pub(super) fn path(&mut self, key: &str, text: &str) -> Option<PathBuf> {
        let path = Path::new(text);
        let climbs = path.components().any(|part| part == Component::ParentDir);
        if !path.is_absolute() || climbs {
            return self.fault_value(key, text, "an absolute path without ..");
        }
        Some(path.components().collect())
    }

    pub(super) fn boolean(&mut self, key: &str, map: &Map<'_>) -> Option<bool> {
        match *map.get(key)? {
            Value::Bool(yes) => Some(*yes),
            other => self.fault(key, other, "true or false"),
        }
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        map: &Map<'_>,
        range: RangeInclusive<u64>,
        expected: &'static str,
    ) -> Option<u64> {
        let value = *map.get(key)?;
        match value.as_u64() {
            Some(number) if range.contains(&number) => Some(number),
            _ => self.fault(key, value, expected),
        }
    }

    /// How full a filesystem is: `85` or `85%`.
    pub(super) fn percent(&mut self, key: &str, value: Option<&&Value>) -> Option<u8> {
        const EXPECTED: &str = "a percentage from 1 to 100";
        let value = *value?;
        let number = match value {
            Value::String(text) => text.strip_suffix('%').and_then(|text| text.parse().ok()),
            other => other.as_u64().and_then(|number| u8::try_from(number).ok()),
        };
        match number {
            Some(number @ 1..=100) => Some(number),
            _ => self.fault(key, value, EXPECTED),
        }
    }

    /// A Kubernetes quantity in bytes, with a suffix or as a plain number.
    pub(super) fn quantity(&mut self, key: &str, value: Option<&&Value>) -> Option<u64> {
        const EXPECTED: &str = "a quantity such as 500Mi or 2Gi";
        let value = *value?;
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => return self.fault(key, other, EXPECTED),
        };
        parse_size(&text)
            .map_err(|error| {
                self.faults.push(PolicyFault::Unreadable {
                    key: key.to_owned(),
                    reason: error.to_string(),
                });
            })
            .ok()
    }

    /// A time such as `90s` or `24h`.
    pub(super) fn duration(&mut self, key: &str, value: Option<&&Value>) -> Option<Duration> {
        const EXPECTED: &str = "a time such as 90s, 10m or 24h";
        let value = *value?;
        match value.as_str().and_then(parse_duration) {
            Some(duration) => Some(duration),
            None => self.fault(key, value, EXPECTED),
        }
    }

    /// An `SELinux` label.
    pub(super) fn label(&mut self, key: &str, map: &Map<'_>) -> Option<String> {
        const EXPECTED: &str = "an SELinux context such as system_u:object_r:container_file_t:s0";
        let value = *map.get(key)?;
        match value.as_str() {
            Some(label) if union::is_label(label) => Some(label.to_owned()),
            _ => self.fault(key, value, EXPECTED),
        }
    }

    /// The first must not be more than the second, where both are said.
    pub(super) fn order<T: PartialOrd>(
        &mut self,
        lesser: &'static str,
        low: Option<T>,
        greater: &'static str,
        high: Option<T>,
    ) {
        if low.zip(high).is_some_and(|(low, high)| low > high) {
            self.faults.push(PolicyFault::Order { lesser, greater });
        }
    }

    pub(super) fn fault_value<T>(
        &mut self,
        key: &str,
        value: &str,
        expected: &'static str,
    ) -> Option<T> {
        self.faults.push(PolicyFault::Value {
            key: key.to_owned(),
            value: shortened(value),
            expected,
        });
        None
    }

    fn fault<T>(&mut self, key: &str, value: &Value, expected: &'static str) -> Option<T> {
        self.fault_value(key, &value.to_string(), expected)
    }
}

/// Foreign text on one line, not longer than a fault should be.
fn shortened(text: &str) -> String {
    let text = text.escape_debug().to_string().replace("\\\"", "\"");
    match text.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
