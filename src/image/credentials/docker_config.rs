//! Docker configs: where credentials of registries are written down, in a pod's
//! secret or in a file.
//!
//! **Invariant:** an error names the entry and what is wrong with it, never what
//! it holds. The library that reads JSON quotes in its errors what it found, so
//! only the place is taken from them.

use super::Login;
use super::matching::Index;
use crate::image::printable;
use crate::secret::Secret;
use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use zeroize::Zeroizing;

#[cfg(any(test, feature = "testing"))]
pub mod check;
#[cfg(test)]
mod tests;

/// Largest docker config in bytes: what a secret of Kubernetes can have.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// The most registries in one.
const MAX_ENTRIES: usize = 4096;

/// Why a docker config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// It is longer than a secret can be.
    #[error("it has {bytes} bytes, more than {MAX_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// It is not JSON of this form.
    #[error("line {line}, column {column}: {problem}")]
    Malformed {
        /// Where, beginning with 1.
        line: usize,
        /// Where in the line.
        column: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// One entry cannot be used.
    #[error("the entry for {registry:?} {problem}")]
    Entry {
        /// Its key, shortened, without a user in it.
        registry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// How a docker config is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Registries below `auths`: `~/.docker/config.json`, and the key
    /// `.dockerconfigjson` of a secret.
    Current,
    /// Registries at the top: `~/.dockercfg`, and the key `.dockercfg`.
    Legacy,
    /// Whatever it looks like: of a file nobody says which.
    Any,
}

/// What a docker config has.
#[derive(Debug, Default)]
pub struct DockerConfig {
    pub(super) logins: Index<Login>,
    /// The program that has the credentials of one registry, by its key.
    pub(super) helpers: BTreeMap<String, String>,
    /// The program that has all of them.
    pub(super) store: Option<String>,
}

/// A map with a bounded number of entries; of a key that is there twice, the last
/// one counts, as it does for kubelet.
struct Map<T>(BTreeMap<String, T>);

/// `~/.docker/config.json`, as far as it matters.
#[derive(serde::Deserialize)]
struct Raw {
    auths: Option<Map<Option<RawEntry>>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<Map<String>>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

/// One registry.
#[derive(Default, serde::Deserialize)]
struct RawEntry {
    username: Option<String>,
    password: Option<Secret>,
    auth: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

impl DockerConfig {
    /// Reads a docker config.
    pub fn parse(bytes: &[u8], format: Format) -> Result<Self, DockerConfigError> {
        if bytes.len() > MAX_BYTES {
            return Err(DockerConfigError::TooLarge { bytes: bytes.len() });
        }
        let (entries, helpers, store) = match format {
            Format::Legacy => (from_json(bytes)?, None, None),
            Format::Current => current(bytes)?,
            Format::Any => match current(bytes)? {
                // Where that is no docker config of before, it is one of today's
                // that has nothing to say.
                (None, None, None) => (from_json(bytes).unwrap_or_default(), None, None),
                found => found,
            },
        };
        let mut logins = Index::default();
        for (location, entry) in entries.map_or_else(BTreeMap::new, |entries| entries.0) {
            for login in entry.unwrap_or_default().logins(&location)? {
                logins.add(&location, login);
            }
        }
        Ok(DockerConfig {
            logins,
            helpers: helpers.map_or_else(BTreeMap::new, |helpers| helpers.0),
            store: store.filter(|store| !store.is_empty()),
        })
    }
}

type Parts = (
    Option<Map<Option<RawEntry>>>,
    Option<Map<String>>,
    Option<String>,
);

fn current(bytes: &[u8]) -> Result<Parts, DockerConfigError> {
    let raw: Raw = from_json(bytes)?;
    Ok((raw.auths, raw.helpers, raw.store))
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DockerConfigError> {
    serde_json::from_slice(bytes).map_err(|error| DockerConfigError::Malformed {
        line: error.line(),
        column: error.column(),
        problem: match error.classify() {
            serde_json::error::Category::Eof => "the JSON ends too early",
            serde_json::error::Category::Data => "not what a docker config has there",
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => "not JSON",
        },
    })
}

impl RawEntry {
    /// All that the entry can be shown as, in the order in which it is tried: what
    /// was given for longest first. Docker leaves an entry with nothing in it where
    /// a helper has the credentials.
    fn logins(self, location: &str) -> Result<Vec<Login>, DockerConfigError> {
        let given = |secret: Option<Secret>| secret.filter(|secret| !secret.is_empty());
        let mut logins = Vec::new();
        logins.extend(given(self.registrytoken).map(Login::RegistryToken));
        logins.extend(given(self.identitytoken).map(Login::IdentityToken));
        let (username, password) = match given(self.auth) {
            Some(auth) => decode(&auth).map_err(|problem| DockerConfigError::Entry {
                registry: shown(location),
                problem,
            })?,
            None => (
                self.username.unwrap_or_default(),
                self.password.unwrap_or_else(|| Secret::new(String::new())),
            ),
        };
        // Beside a token, a name without a password is only there for show.
        let is_empty = password.is_empty() && (username.is_empty() || !logins.is_empty());
        if !is_empty {
            logins.push(Login::Basic { username, password });
        }
        Ok(logins)
    }
}

/// A key of a docker config, for an error.
fn shown(location: &str) -> String {
    printable(location.rsplit('@').next().unwrap_or_default())
}

/// The name and password in base64: of either alphabet, padded or not.
fn decode(auth: &Secret) -> Result<(String, Secret), &'static str> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    const NO_BASE64: &str = "has an auth that is not base64";
    let mut encoded = Zeroizing::new(Vec::with_capacity(auth.expose().len()));
    encoded.extend(
        auth.expose()
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace()),
    );
    let is_url_safe = encoded.iter().any(|byte| b"-_".contains(byte));
    let alphabet = if is_url_safe { &URL_SAFE } else { &STANDARD };
    // All the room that there has to be, for growing would leave copies behind.
    let mut decoded = Zeroizing::new(vec![0; base64::decoded_len_estimate(encoded.len())]);
    let length = GeneralPurpose::new(alphabet, LENIENT)
        .decode_slice(&*encoded, &mut decoded)
        .map_err(|_| NO_BASE64)?;
    let text =
        std::str::from_utf8(&decoded[..length]).map_err(|_| "has an auth that is not text")?;
    let (username, password) = text
        .split_once(':')
        .ok_or("has an auth that is not base64 of USER:PASSWORD")?;
    // Old versions of Docker filled the last group of four with NULs.
    let password = password.trim_matches('\0');
    Ok((username.to_owned(), Secret::new(password.to_owned())))
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Map<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}

struct MapVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for MapVisitor<T> {
    type Value = Map<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map of at most {MAX_ENTRIES} entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map<T>, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry()? {
            if entries.len() == MAX_ENTRIES {
                return Err(de::Error::invalid_length(MAX_ENTRIES + 1, &self));
            }
            entries.insert(key, value);
        }
        Ok(Map(entries))
    }
}
