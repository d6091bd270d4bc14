//! The attributes of a volume, as a pod's author writes them.
//!
//! | key | value | default |
//! |---|---|---|
//! | `image` | one image source | one of these two |
//! | `images` | several, by comma or newline; the first is on top | must be given |
//! | `pullPolicy` | `Always`, `IfNotPresent` or `Never` | `Always` for a tag `latest`, else `IfNotPresent` |
//! | `pullAlways` | `true` or `false`: `Always` or `IfNotPresent` | |
//! | `subPath` | a directory inside the image | the whole image |
//! | `sizeLimit` | most bytes of the writable layer, a Kubernetes quantity | no limit |
//! | `medium` | `Memory`, or nothing for the node's disk | the node's disk |
//! | `platform` | `os/architecture[/variant]` | the node's |
//! | `union` | `auto`, `aufs` or `overlay` | `auto` |
//!
//! The schema is closed: a key that is not in it is an error, for a misspelt
//! key that is ignored shows only much later. The attributes come from whoever
//! may create pods, so nothing here names a secret, a mount option or a mirror.

mod quantity;

pub use quantity::{QuantityError, bytes as parse_size};

use crate::image::platform::{Platform, PlatformError};
use crate::image::reference::{ReferenceError, Source};
use crate::pull::PullPolicy;
use crate::union::probe::UnionRequest;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Every key, in the order of the table above.
pub const KEYS: [&str; 9] = [
    "image",
    "images",
    "pullPolicy",
    "pullAlways",
    "subPath",
    "sizeLimit",
    "medium",
    "platform",
    "union",
];

/// Most images of one volume: more than anybody stacks by hand, and few enough
/// that their layers stay below what unions take.
pub const MAX_IMAGES: usize = 32;
/// Longest `subPath` in bytes, the kernel's limit of a path.
const MAX_SUB_PATH_BYTES: usize = 4095;
/// Longest foreign text in an error, in characters.
const MAX_SHOWN_CHARACTERS: usize = 100;
/// A key is taken for a misspelt one if so many letters or fewer differ.
const MAX_MISSPELT: usize = 3;

/// The attributes of a volume, checked each for itself and against each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// The images, the uppermost first; at least one.
    pub images: Vec<Source>,
    /// When an image is pulled, if that was said.
    pub pull_policy: Option<PullPolicy>,
    /// The directory inside the merged images that is shown.
    pub sub_path: Option<PathBuf>,
    /// Most bytes of the writable layer.
    pub size_limit: Option<u64>,
    /// Where the writable layer is.
    pub medium: Medium,
    /// The images' platform, if not the node's.
    pub platform: Option<Platform>,
    /// The union filesystem.
    pub union: UnionRequest,
}

/// Where a writable layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Medium {
    /// On the node's disk.
    #[default]
    Disk,
    /// In memory.
    Memory,
}

/// Why attributes cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// A key that the schema does not have.
    #[error("unknown volume attribute {key:?}; {}", suggestion(nearest))]
    Unknown {
        /// The key, shortened.
        key: String,
        /// The known key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// There is no image.
    #[error("volume attribute image is missing")]
    NoImage,
    /// Two attributes say the same thing twice.
    #[error("volume attributes {first} and {second} exclude each other")]
    Conflict {
        /// One of them.
        first: &'static str,
        /// The other one.
        second: &'static str,
    },
    /// An attribute of the writable layer, and there is none.
    #[error(
        "volume attribute {key} is about the writable layer, and a volume with readOnly: true has none"
    )]
    ReadOnly {
        /// The attribute.
        key: &'static str,
    },
    /// A value is none of the possible ones.
    #[error("volume attribute {key} is {value:?}; it must be {expected}")]
    Value {
        /// The attribute.
        key: &'static str,
        /// Its value, shortened.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// An image source cannot be read.
    #[error("cannot read the volume attribute {key}")]
    Image {
        /// The attribute.
        key: &'static str,
        /// What is wrong with it.
        source: ReferenceError,
    },
    /// There are more images than a volume can have.
    #[error("volume attribute images has more than {MAX_IMAGES} images")]
    TooManyImages,
    /// The platform cannot be read.
    #[error("cannot read the volume attribute platform")]
    Platform(#[source] PlatformError),
    /// The size cannot be read.
    #[error("cannot read the volume attribute sizeLimit")]
    SizeLimit(#[source] QuantityError),
    /// Something that is in the schema and that this version cannot do yet.
    #[error("volume attribute {key} cannot be used with this version: {reason}")]
    NotYet {
        /// The attribute.
        key: &'static str,
        /// What is missing.
        reason: &'static str,
    },
}

fn suggestion(nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(key) => format!("did you mean {key}?"),
        None => format!("the known ones are {}", KEYS.join(", ")),
    }
}

/// An attribute that this version cannot obey, and when it is in use.
struct NotYet {
    key: &'static str,
    is_used: fn(&Attributes) -> bool,
    reason: &'static str,
}

/// What the schema has and this version cannot do. Refused rather than ignored:
/// a limit or a policy that silently does not hold is worse than none.
const NOT_YET: [NotYet; 2] = [
    NotYet {
        key: "sizeLimit",
        is_used: |attributes| attributes.size_limit.is_some(),
        reason: "writable layers have no limit of their own",
    },
    NotYet {
        key: "medium",
        is_used: |attributes| attributes.medium != Medium::Disk,
        reason: "writable layers are on the node's disk",
    },
];

impl Attributes {
    /// Checks the attributes of a volume. Keys that kubelet adds must be gone.
    pub fn parse(map: &BTreeMap<String, String>, read_only: bool) -> Result<Self, AttributeError> {
        for key in map.keys() {
            if !KEYS.contains(&key.as_str()) {
                return Err(AttributeError::Unknown {
                    key: shortened(key),
                    nearest: nearest(key, &KEYS),
                });
            }
        }
        let value = |key: &'static str| map.get(key).map(String::as_str);
        let attributes = Attributes {
            images: images(value("image"), value("images"))?,
            pull_policy: pull_policy(value("pullPolicy"), value("pullAlways"))?,
            sub_path: match value("subPath") {
                Some(path) => sub_path(path)?,
                None => None,
            },
            size_limit: value("sizeLimit")
                .map(quantity::bytes)
                .transpose()
                .map_err(AttributeError::SizeLimit)?,
            medium: medium(value("medium"))?,
            platform: value("platform")
                .map(str::parse)
                .transpose()
                .map_err(AttributeError::Platform)?,
            union: union(value("union"))?,
        };
        if read_only {
            if attributes.size_limit.is_some() {
                return Err(AttributeError::ReadOnly { key: "sizeLimit" });
            }
            if attributes.medium != Medium::Disk {
                return Err(AttributeError::ReadOnly { key: "medium" });
            }
        }
        Ok(attributes)
    }

    /// Refuses what is in the schema and what this version cannot do yet.
    pub fn supported(self) -> Result<Self, AttributeError> {
        match NOT_YET.iter().find(|entry| (entry.is_used)(&self)) {
            Some(entry) => Err(AttributeError::NotYet {
                key: entry.key,
                reason: entry.reason,
            }),
            None => Ok(self),
        }
    }
}

fn images(image: Option<&str>, images: Option<&str>) -> Result<Vec<Source>, AttributeError> {
    let read = |key, text: &str| {
        text.parse()
            .map_err(|source| AttributeError::Image { key, source })
    };
    match (image, images) {
        (Some(_), Some(_)) => Err(AttributeError::Conflict {
            first: "image",
            second: "images",
        }),
        (None, None) => Err(AttributeError::NoImage),
        (Some(image), None) => Ok(vec![read("image", image)?]),
        (None, Some(images)) => {
            // A list written as a YAML block ends in a newline, and one may be
            // tidied with blanks and trailing commas.
            let parts: Vec<&str> = images
                .split([',', '\n'])
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .collect();
            if parts.is_empty() {
                return Err(AttributeError::NoImage);
            }
            if parts.len() > MAX_IMAGES {
                return Err(AttributeError::TooManyImages);
            }
            parts.into_iter().map(|part| read("images", part)).collect()
        }
    }
}

fn pull_policy(
    policy: Option<&str>,
    always: Option<&str>,
) -> Result<Option<PullPolicy>, AttributeError> {
    match (policy, always) {
        (Some(_), Some(_)) => Err(AttributeError::Conflict {
            first: "pullPolicy",
            second: "pullAlways",
        }),
        (None, None) => Ok(None),
        (Some("Always"), None) | (None, Some("true")) => Ok(Some(PullPolicy::Always)),
        (Some("IfNotPresent"), None) | (None, Some("false")) => Ok(Some(PullPolicy::IfNotPresent)),
        (Some("Never"), None) => Ok(Some(PullPolicy::Never)),
        (Some(value), None) => Err(AttributeError::Value {
            key: "pullPolicy",
            value: shortened(value),
            expected: "Always, IfNotPresent or Never",
        }),
        (None, Some(value)) => Err(AttributeError::Value {
            key: "pullAlways",
            value: shortened(value),
            expected: "\"true\" or \"false\"",
        }),
    }
}

/// A directory inside an image; empty is the whole image.
pub(crate) fn sub_path(value: &str) -> Result<Option<PathBuf>, AttributeError> {
    if value.is_empty() {
        return Ok(None);
    }
    let is_plain = |component| match component {
        Component::Normal(_) => true,
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => {
            false
        }
    };
    let fits = value.len() <= MAX_SUB_PATH_BYTES
        && !value.contains('\0')
        && Path::new(value).components().all(is_plain);
    if !fits {
        return Err(AttributeError::Value {
            key: "subPath",
            value: shortened(value),
            expected: "a relative path without . and ..",
        });
    }
    // Collected from its components, it has no doubled or trailing slashes.
    Ok(Some(Path::new(value).components().collect()))
}

fn medium(value: Option<&str>) -> Result<Medium, AttributeError> {
    match value {
        None | Some("") => Ok(Medium::Disk),
        Some("Memory") => Ok(Medium::Memory),
        Some(value) => Err(AttributeError::Value {
            key: "medium",
            value: shortened(value),
            expected: "\"\" or Memory",
        }),
    }
}

fn union(value: Option<&str>) -> Result<UnionRequest, AttributeError> {
    let Some(value) = value else {
        return Ok(UnionRequest::Auto);
    };
    value.parse().map_err(|_| AttributeError::Value {
        key: "union",
        value: shortened(value),
        expected: "auto, aufs or overlay",
    })
}

/// The known key that `key` most resembles, if it resembles one.
pub(crate) fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    // No known key is near one that is much longer, and comparing takes time.
    if key.len() > 2 * MAX_SHOWN_CHARACTERS {
        return None;
    }
    let lower = key.to_lowercase();
    known
        .iter()
        .map(|known| (distance(&lower, &known.to_lowercase()), *known))
        .filter(|(distance, known)| *distance <= MAX_MISSPELT.min(known.len() / 2))
        .min()
        .map(|(_, known)| known)
}

/// How many characters must be added, removed or replaced to make one of the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, character) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(character != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

/// Foreign text for an error, not longer than an error should be. Errors show it
/// quoted, which escapes its control characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What must hold for any bytes: parsing ends without a panic, and the errors
/// stay short.
///
/// # Panics
/// If it does not hold; this is the body of a fuzz target.
#[cfg(any(test, feature = "testing"))]
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let map: BTreeMap<String, String> = text
        .split('\u{1}')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for read_only in [false, true] {
        match Attributes::parse(&map, read_only) {
            Ok(attributes) => {
                assert!((1..=MAX_IMAGES).contains(&attributes.images.len()));
                assert!(!read_only || attributes.size_limit.is_none());
                assert_ne!(attributes.size_limit, Some(0));
            }
            Err(error) => {
                let shown = crate::chain::Chain(&error).to_string();
                assert!(shown.chars().count() < 4096, "{shown}");
            }
        }
    }
}

/// Attributes of every kind, as `check` reads them, to start mutations from.
#[cfg(any(test, feature = "testing"))]
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "image=nginx",
        "image=oci:/srv/image:v1\u{1}sizeLimit=1.5Gi\u{1}medium=Memory\u{1}union=aufs",
        "images=docker.io/a:1,oci:/b\nc@\u{1}pullPolicy=IfNotPresent\u{1}subPath=usr/share",
        "image=a:latest\u{1}pullAlways=true\u{1}platform=linux/arm/v7",
        "image=a\u{1}sizeLimit=12e3\u{1}csi.storage.k8s.io/pod.name=p",
        "imgae=a\u{1}subPath=../..\u{1}union=overlay\u{1}sizeLimit=100m",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests;
