//! What goes to a provider and what comes back: JSON of
//! `credentialprovider.kubelet.k8s.io`.

use super::super::Login;
use super::{Answer, basic};
use crate::secret::Secret;
use std::collections::BTreeMap;
use std::time::Duration;

const GROUP: &str = "credentialprovider.kubelet.k8s.io";

/// A version of the protocol. They differ in their name only, as far as a name and
/// a password go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V1Beta1,
    V1Alpha1,
}

impl Version {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let versions = [Version::V1, Version::V1Beta1, Version::V1Alpha1];
        let version = text.strip_prefix(GROUP)?.strip_prefix('/')?;
        versions.into_iter().find(|one| one.name() == version)
    }

    fn name(self) -> &'static str {
        match self {
            Version::V1 => "v1",
            Version::V1Beta1 => "v1beta1",
            Version::V1Alpha1 => "v1alpha1",
        }
    }
}

/// The request for an image.
pub(super) fn request(version: Version, image: &str) -> String {
    serde_json::json!({
        "kind": "CredentialProviderRequest",
        "apiVersion": format!("{GROUP}/{}", version.name()),
        "image": image,
    })
    .to_string()
}

/// What an answer is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Image,
    Registry,
    Global,
}

/// A provider's answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) keep: Keep,
    /// How long it is good; none where the configuration says.
    pub(super) duration: Option<Duration>,
    pub(super) auth: Answer,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    kind: Option<String>,
    api_version: Option<String>,
    cache_key_type: Option<String>,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, RawAuth>>,
}

#[derive(serde::Deserialize)]
struct RawAuth {
    #[serde(default)]
    username: String,
    password: Option<Secret>,
}

impl Response {
    /// Reads an answer. What is wrong is said without a word of what it holds.
    pub(super) fn parse(bytes: &[u8], version: Version) -> Result<Self, &'static str> {
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|_| "it is not JSON of a CredentialProviderResponse")?;
        if raw.kind.as_deref() != Some("CredentialProviderResponse") {
            return Err("its kind is not CredentialProviderResponse");
        }
        if raw.api_version.as_deref().and_then(Version::parse) != Some(version) {
            return Err("its apiVersion is not that of the request");
        }
        let keep = match raw.cache_key_type.as_deref() {
            Some("Image") => Keep::Image,
            Some("Registry") => Keep::Registry,
            Some("Global") => Keep::Global,
            _ => return Err("its cacheKeyType is not Image, Registry or Global"),
        };
        let duration = match raw.cache_duration {
            // kubelet keeps what is good for less than no time, and never finds it.
            Some(text) if text.starts_with('-') => Some(Duration::ZERO),
            Some(text) => Some(parse_duration(&text).ok_or("its cacheDuration is no duration")?),
            None => None,
        };
        let auth = raw.auth.unwrap_or_default().into_iter();
        let login = |auth: RawAuth| -> Option<Login> {
            let nothing = || Secret::new(String::new());
            basic(auth.username, auth.password.unwrap_or_else(nothing))
        };
        Ok(Response {
            keep,
            duration,
            auth: auth
                .filter_map(|(images, auth)| Some((images, login(auth)?)))
                .collect(),
        })
    }
}

/// A duration as Go writes it, such as `1h30m0s` or `1.5h`; not below zero.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        // The longer ones first, where one begins like another.
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let (name, factor) = UNITS.iter().find(|(unit, _)| behind.starts_with(unit))?;
        seconds += number * factor;
        rest = &behind[name.len()..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}
