//! Names of images in registries, as Docker reads and completes them.

use crate::image::digest::{Digest, DigestError};
use crate::image::printable;
use std::fmt;
use std::str::FromStr;

/// The registry of a name that gives none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The same registry under the name that old clients use.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// Where that registry keeps images whose name has one component.
const DEFAULT_NAMESPACE: &str = "library";
/// The tag of a name that gives neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest registry and repository together, in bytes (the registries' limit).
const MAX_NAME_BYTES: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG_BYTES: usize = 128;

/// A complete image name: `busybox` is `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an [`ImageName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing is left of it.
    #[error("the name is empty")]
    Empty,
    /// It begins like a URL.
    #[error("a URL is not an image name; leave {scheme}:// away")]
    Url {
        /// What stands before `://`, shortened.
        scheme: String,
    },
    /// Registry and repository are too long.
    #[error("the name has {length} bytes, more than {MAX_NAME_BYTES}")]
    TooLong {
        /// Their length in bytes.
        length: usize,
    },
    /// The registry is no host name with an optional port.
    #[error("{registry:?} is not a registry host with an optional port")]
    Registry {
        /// The part, shortened.
        registry: String,
    },
    /// The repository has upper-case letters.
    #[error("repository {repository:?} must be lower-case")]
    UpperCase {
        /// The repository, shortened.
        repository: String,
    },
    /// A component of the repository is empty or has characters that it may not have.
    #[error("{component:?} is not a valid part of a repository name")]
    Component {
        /// The component, shortened.
        component: String,
    },
    /// The repository reads like an image's id.
    #[error("64 hex digits are not a repository name; write NAME@sha256:<digits> for a digest")]
    BareDigest,
    /// The tag has characters that it may not have, or is too long.
    #[error("{tag:?} is not a valid tag")]
    Tag {
        /// The tag, shortened.
        tag: String,
    },
    /// What follows `@` is no digest.
    #[error("cannot read what follows @")]
    Digest(#[source] DigestError),
}

impl ImageName {
    /// Host and optional port, for example `docker.io` or `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository in its registry, for example `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. Where there is a digest too, the tag is only for people.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which decides if there is one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether the name can mean something else tomorrow in the way of
    /// `latest`: no digest, and the tag is `latest` or was not given.
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some(DEFAULT_TAG)
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(NameError::Url {
                scheme: printable(scheme),
            });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(NameError::Digest)?)),
            None => (text, None),
        };
        // A colon after the last slash starts the tag; one before it is a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let tag = match tag {
            Some(tag) if is_tag(tag) => Some(tag.to_owned()),
            Some(tag) => {
                return Err(NameError::Tag {
                    tag: printable(tag),
                });
            }
            None if digest.is_none() => Some(DEFAULT_TAG.to_owned()),
            None => None,
        };
        let (registry, repository) = split_registry(name)?;
        Ok(ImageName {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn split_registry(name: &str) -> Result<(String, String), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry_like(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    if !is_registry(registry) {
        return Err(NameError::Registry {
            registry: printable(registry),
        });
    }
    let registry = match registry {
        LEGACY_DEFAULT_REGISTRY => DEFAULT_REGISTRY,
        other => other,
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(NameError::UpperCase {
            repository: printable(path),
        });
    }
    if let Some(component) = path.split('/').find(|part| !is_component(part)) {
        return Err(NameError::Component {
            component: printable(component),
        });
    }
    if Digest::from_hex(name).is_some() {
        return Err(NameError::BareDigest);
    }
    let repository = match registry {
        DEFAULT_REGISTRY if !path.contains('/') => format!("{DEFAULT_NAMESPACE}/{path}"),
        _ => path.to_owned(),
    };
    let length = registry.len() + 1 + repository.len();
    if length > MAX_NAME_BYTES {
        return Err(NameError::TooLong { length });
    }
    Ok((registry.to_owned(), repository))
}

/// Docker's rule: the first component is a registry if no repository could be
/// called so.
fn is_registry_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.chars().any(char::is_uppercase)
}

/// A host name, IPv4 or bracketed IPv6 address, and an optional port.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            }
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    port.is_none_or(is_port)
        && host.split('.').all(|label| {
            let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
            !label.is_empty()
                && label.chars().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_port(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<u16>().is_ok()
}

/// Runs of lower-case letters and digits with `.`, `_`, `__` or any number of
/// `-` between two of them.
fn is_component(text: &str) -> bool {
    let run = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(run) || !text.ends_with(run) {
        return false;
    }
    text.split(run).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

/// A word character, then up to 127 word characters, dots and dashes.
fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= MAX_TAG_BYTES
        && text.starts_with(word)
        && text.chars().all(|c| word(c) || c == '.' || c == '-')
}
