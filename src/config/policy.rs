//! The policy file: YAML → what of it holds, all faults at once. Pure but for
//! reading the file; `docs/policy.md` is its reference.
//!
//! The schema is closed, for a rule that is misspelt and ignored is worse than
//! none. A key that is there wins over the flag of the same meaning; one that is
//! not leaves it to the flag. A key with an empty list allows nothing.

mod follow;
mod value;

pub use follow::{Follower, Look};

use super::ConfigFault;
use crate::csi::policy::{Media, Policy, SizeRule};
use crate::image::reference::Source;
use crate::image::registry::{AllowList, Pattern};
use crate::union::probe::UnionRequest;
use crate::volume::CollectSettings;
use crate::volume::attributes::MAX_IMAGES;
use crate::yaml::{self, YamlError};
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use value::{Map, Reader};

/// Every key, as `docs/policy.md` has them.
pub const KEYS: [&str; 11] = [
    "allowedRegistries",
    "allowedUnions",
    "allowedMedia",
    "localImages",
    "readOnlyOnly",
    "maxImages",
    "sizeLimit",
    "memory",
    "prefetch",
    "gc",
    "selinuxContext",
];
/// Those of a limit.
const SIZE_KEYS: [&str; 2] = ["default", "maximum"];
/// Those of collection.
const GC_KEYS: [&str; 5] = ["high", "low", "maxSize", "minAge", "maxAge"];

/// What a policy file says. What it does not say is none, and is what the flags
/// say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyFile {
    /// Images of registries that pods may name.
    pub allowed_registries: Option<AllowList>,
    /// Union filesystems that volumes may use.
    pub allowed_unions: Option<UnionRequest>,
    /// Where writable layers may be.
    pub allowed_media: Option<Media>,
    /// Directories below which pods may use local images.
    pub local_images: Option<Vec<PathBuf>>,
    /// Whether volumes must be read-only.
    pub read_only_only: Option<bool>,
    /// Most images of one volume.
    pub max_images: Option<usize>,
    /// Limits of writable layers on the node's disk.
    pub size_limit: Option<SizeRule>,
    /// Limits of writable layers in memory.
    pub memory: Option<SizeRule>,
    /// Images that are staged before anybody asks, and kept.
    pub prefetch: Option<Vec<Source>>,
    /// When what the store holds is removed.
    pub gc: GcRules,
    /// The `SELinux` label that the files of all volumes get.
    pub selinux_context: Option<String>,
}

/// When what the store holds is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcRules {
    /// Collection begins where the store's filesystem is fuller, in percent.
    pub high: Option<u8>,
    /// And ends where it is this full.
    pub low: Option<u8>,
    /// Most bytes that the store may hold.
    pub max_size: Option<u64>,
    /// What is used so lately stays.
    pub min_age: Option<Duration>,
    /// What nobody has used for so long goes, however much space there is.
    pub max_age: Option<Duration>,
}

/// What is wrong with a policy file.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFault {
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// It is no YAML.
    #[error("{0}")]
    Yaml(YamlError),
    /// It has a key that it cannot have.
    #[error("unknown key {key:?}; {hint}")]
    Unknown {
        /// The key with those around it.
        key: String,
        /// What was probably meant.
        hint: String,
    },
    /// A value is none of the possible ones.
    #[error("{key} is {value}; it must be {expected}")]
    Value {
        /// The key with those around it.
        key: String,
        /// The value, shortened.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A value cannot be read.
    #[error("cannot read {key}: {reason}")]
    Unreadable {
        /// The key with those around it.
        key: String,
        /// Why not.
        reason: String,
    },
    /// Two values contradict each other.
    #[error("{lesser} is more than {greater}")]
    Order {
        /// What must not be more.
        lesser: &'static str,
        /// Than this.
        greater: &'static str,
    },
}

/// Most bytes of a file that are looked at, one more than is read as YAML.
const MAX_FILE_BYTES: u64 = yaml::MAX_BYTES as u64 + 1;

/// The bytes of a policy file.
fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl PolicyFile {
    /// Reads a policy file.
    pub fn read(path: &Path) -> Result<Self, Vec<PolicyFault>> {
        let bytes = bytes_of(path).map_err(|error| vec![PolicyFault::Read(error)])?;
        Self::parse(&bytes)
    }

    /// As [`PolicyFile::read`], its faults among those of the options.
    pub fn noted(path: &Path, faults: &mut Vec<ConfigFault>) -> Option<Self> {
        Self::read(path)
            .map_err(|found| {
                faults.extend(found.into_iter().map(|source| ConfigFault::Policy {
                    file: path.to_owned(),
                    source,
                }));
            })
            .ok()
    }

    /// Reads what a policy file holds. An empty one says nothing.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<PolicyFault>> {
        let mut faults = Vec::new();
        let value = match yaml::read::<Option<Value>>(bytes) {
            Ok(value) => value.unwrap_or(Value::Null),
            Err(error) => return Err(vec![PolicyFault::Yaml(error)]),
        };
        let mut reader = Reader::new(&mut faults);
        let policy = match reader.map("", Some(&value), &KEYS) {
            Some(map) => policy(&mut reader, &map),
            None => PolicyFile::default(),
        };
        match faults.is_empty() {
            true => Ok(policy),
            false => Err(faults),
        }
    }

    /// What holds together with the flags, which it wins over.
    pub fn over(&self, flags: &Policy) -> Policy {
        let mut policy = flags.clone();
        let rules = &mut policy.rules;
        set(&mut rules.registries, &self.allowed_registries);
        set(&mut rules.disk, &self.size_limit);
        set(&mut rules.memory, &self.memory);
        set(&mut rules.media, &self.allowed_media);
        set(&mut rules.read_only_only, &self.read_only_only);
        if self.max_images.is_some() {
            rules.max_images = self.max_images;
        }
        if self.selinux_context.is_some() {
            rules.selinux_context.clone_from(&self.selinux_context);
        }
        set(&mut policy.local_images, &self.local_images);
        set(&mut policy.union, &self.allowed_unions);
        policy
    }

    /// When what the store holds is removed, and what is there before anybody asks:
    /// by the flags, where the file says nothing.
    pub fn collection(&self, flags: &CollectSettings) -> CollectSettings {
        let mut settings = flags.clone();
        let marks = &mut settings.marks;
        set(&mut marks.high, &self.gc.high);
        set(&mut marks.low, &self.gc.low);
        set(&mut marks.min_age, &self.gc.min_age);
        if self.gc.max_size.is_some() {
            marks.max_size = self.gc.max_size;
        }
        if self.gc.max_age.is_some() {
            marks.max_age = self.gc.max_age;
        }
        // Where the file has one of two and a flag the other, the file's holds.
        match (self.gc.high, self.gc.low) {
            (None, Some(low)) => marks.high = marks.high.max(low),
            _ => marks.low = marks.low.min(marks.high),
        }
        match (self.gc.min_age, marks.max_age) {
            (Some(young), Some(old)) if self.gc.max_age.is_none() => {
                marks.max_age = Some(old.max(young));
            }
            (_, Some(old)) => marks.min_age = marks.min_age.min(old),
            (_, None) => {}
        }
        set(&mut settings.prefetch, &self.prefetch);
        settings
    }
}

fn set<T: Clone>(to: &mut T, from: &Option<T>) {
    if let Some(value) = from {
        to.clone_from(value);
    }
}

fn policy(reader: &mut Reader<'_>, map: &Map<'_>) -> PolicyFile {
    PolicyFile {
        allowed_registries: reader
            .list("allowedRegistries", map, |reader, key, text| {
                reader.parsed::<Pattern>(key, text)
            })
            .map(AllowList::new),
        allowed_unions: unions(reader, map),
        allowed_media: media(reader, map),
        local_images: reader.list("localImages", map, Reader::path),
        read_only_only: reader.boolean("readOnlyOnly", map),
        max_images: reader
            .number("maxImages", map, 1..=MAX_IMAGES as u64, "from 1 to 32")
            .and_then(|number| usize::try_from(number).ok()),
        size_limit: size(
            reader,
            map,
            "sizeLimit",
            "sizeLimit.default",
            "sizeLimit.maximum",
        ),
        memory: size(reader, map, "memory", "memory.default", "memory.maximum"),
        prefetch: reader.list("prefetch", map, |reader, key, text| {
            reader.parsed::<Source>(key, text)
        }),
        gc: gc(reader, map),
        selinux_context: reader.label("selinuxContext", map),
    }
}

fn unions(reader: &mut Reader<'_>, map: &Map<'_>) -> Option<UnionRequest> {
    const KEY: &str = "allowedUnions";
    const EXPECTED: &str = "a list of aufs, overlay or both";
    let list = reader.list(KEY, map, |reader, key, text| match text.parse() {
        Ok(union @ (UnionRequest::Aufs | UnionRequest::Overlay)) => Some(union),
        _ => reader.fault_value(key, text, "aufs or overlay"),
    })?;
    let has = |union| list.contains(&union);
    match (has(UnionRequest::Aufs), has(UnionRequest::Overlay)) {
        (true, true) => Some(UnionRequest::Auto),
        (true, false) => Some(UnionRequest::Aufs),
        (false, true) => Some(UnionRequest::Overlay),
        // Nothing could be published at all.
        (false, false) => reader.fault_value(KEY, "empty", EXPECTED),
    }
}

fn media(reader: &mut Reader<'_>, map: &Map<'_>) -> Option<Media> {
    let list = reader.list("allowedMedia", map, |reader, key, text| match text {
        "Disk" | "Memory" => Some(text.to_owned()),
        _ => reader.fault_value(key, text, "Disk or Memory"),
    })?;
    let has = |name: &str| list.iter().any(|medium| medium == name);
    Some(Media {
        disk: has("Disk"),
        memory: has("Memory"),
    })
}

fn size(
    reader: &mut Reader<'_>,
    map: &Map<'_>,
    key: &'static str,
    default: &'static str,
    maximum: &'static str,
) -> Option<SizeRule> {
    let map = reader.map(key, map.get(key).copied(), &SIZE_KEYS)?;
    let rule = SizeRule {
        default: reader.quantity(default, map.get("default")),
        maximum: reader.quantity(maximum, map.get("maximum")),
    };
    reader.order(default, rule.default, maximum, rule.maximum);
    Some(rule)
}

fn gc(reader: &mut Reader<'_>, map: &Map<'_>) -> GcRules {
    let Some(map) = reader.map("gc", map.get("gc").copied(), &GC_KEYS) else {
        return GcRules::default();
    };
    let rules = GcRules {
        high: reader.percent("gc.high", map.get("high")),
        low: reader.percent("gc.low", map.get("low")),
        max_size: reader.quantity("gc.maxSize", map.get("maxSize")),
        min_age: reader.duration("gc.minAge", map.get("minAge")),
        max_age: reader.duration("gc.maxAge", map.get("maxAge")),
    };
    reader.order("gc.low", rules.low, "gc.high", rules.high);
    reader.order("gc.minAge", rules.min_age, "gc.maxAge", rules.max_age);
    rules
}

#[cfg(test)]
mod tests;
