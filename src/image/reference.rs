//! What a user calls an image: `docker://` references and local sources.
//!
//! ```text
//! [docker://]NAME[:TAG][@DIGEST]         a registry; what has no other prefix is this
//! oci:DIR[:TAG | :@DIGEST]               an OCI image layout directory
//! oci-archive:FILE[:TAG | :@DIGEST]      a tar of one
//! docker-archive:FILE[:NAME[:TAG] | :@INDEX]   what `docker save` writes
//! ```
//!
//! As elsewhere, a path ends at the first `:`, so that a tag may hold more of
//! them. A colon that belongs to the path is written `\:`, a backslash `\\`.
//! An image in a registry that is itself named `oci` needs its prefix:
//! `docker://oci:1`.

use super::digest::{Digest, DigestError};
use super::printable;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

mod name;

pub use name::{ImageName, NameError};

/// The longest source text, in bytes: a path of the kernel's limit and a reference.
const MAX_SOURCE_BYTES: usize = 4096 + 1024;
/// The longest tag of a layout, in bytes; annotations have no limit of their own.
const MAX_LAYOUT_TAG_BYTES: usize = 512;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A registry.
    Registry(ImageName),
    /// A directory with an OCI image layout.
    OciDirectory {
        /// The directory.
        path: PathBuf,
        /// Which image in it.
        selector: LayoutSelector,
    },
    /// A tar of an OCI image layout.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// Which image in it.
        selector: LayoutSelector,
    },
    /// A tar as `docker save` writes it.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which image in it.
        selector: ArchiveSelector,
    },
}

/// Which image of an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LayoutSelector {
    /// The only one.
    Only,
    /// The one with this name (`org.opencontainers.image.ref.name`, or
    /// `io.containerd.image.name`).
    Name(String),
    /// The one whose manifest or index in `index.json` has this digest.
    Digest(Digest),
}

/// Which image of a Docker archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ArchiveSelector {
    /// The only one.
    Only,
    /// The one with this name and tag.
    Name(ImageName),
    /// The one at this place in `manifest.json`, counted from 0.
    Index(usize),
}

/// Why a text is not a [`Source`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It is longer than any path and reference can be.
    #[error("image source has {length} bytes, more than {MAX_SOURCE_BYTES}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It has control characters, so it would also spoil every log line.
    #[error("image source {text:?} has a control character")]
    ControlCharacter {
        /// The text, shortened and escaped.
        text: String,
    },
    /// A kind of source that other tools have and this program does not read.
    #[error(
        "{prefix}: is not a source of images here; use docker://, oci:, oci-archive: or docker-archive:"
    )]
    Transport {
        /// The prefix without its colon.
        prefix: String,
    },
    /// There is no path after the prefix.
    #[error("{text:?} has no path after {prefix}:")]
    EmptyPath {
        /// The prefix without its colon.
        prefix: &'static str,
        /// The text, shortened.
        text: String,
    },
    /// A backslash in a path is followed by something else than `:` or `\`.
    #[error(
        r"the path in {text:?} has a lone backslash; write \\ for a backslash and \: for a colon"
    )]
    Escape {
        /// The text, shortened.
        text: String,
    },
    /// The tag of a layout is no reference name of the OCI specification.
    #[error("{tag:?} is not a valid tag of an OCI layout")]
    LayoutTag {
        /// The tag, shortened.
        tag: String,
    },
    /// What follows `@` is no digest.
    #[error("cannot read the digest after @")]
    LayoutDigest(#[source] DigestError),
    /// What follows `:@` is no number.
    #[error("{index:?} is not an image's place in an archive; write :@0 for the first")]
    ArchiveIndex {
        /// The text after `@`, shortened.
        index: String,
    },
    /// An image of an archive was asked for by digest, which archives do not record.
    #[error("an image in a docker-archive cannot be chosen by digest; use NAME:TAG or :@INDEX")]
    ArchiveDigest,
    /// The name of the image is malformed.
    #[error("{text:?} is not an image reference")]
    Name {
        /// The text, shortened.
        text: String,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
}

/// What other tools call their sources; they are told from image names only
/// where the text is no valid image name.
const FOREIGN_TRANSPORTS: [&str; 10] = [
    "atomic",
    "containers-storage",
    "dir",
    "docker-daemon",
    "http",
    "https",
    "ostree",
    "oras",
    "sif",
    "tarball",
];

impl Source {
    /// The path of a local source; none for a registry.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Source::Registry(_) => None,
            Source::OciDirectory { path, .. }
            | Source::OciArchive { path, .. }
            | Source::DockerArchive { path, .. } => Some(path),
        }
    }
}

impl FromStr for Source {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_SOURCE_BYTES {
            return Err(ReferenceError::TooLong { length: text.len() });
        }
        if text.chars().any(char::is_control) {
            return Err(ReferenceError::ControlCharacter {
                text: printable(text),
            });
        }
        if let Some(name) = text.strip_prefix("docker://") {
            return image_name(name).map(Source::Registry);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, rest) = split_path("oci", text, rest)?;
            let selector = layout_selector(rest)?;
            return Ok(Source::OciDirectory { path, selector });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, rest) = split_path("oci-archive", text, rest)?;
            let selector = layout_selector(rest)?;
            return Ok(Source::OciArchive { path, selector });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, rest) = split_path("docker-archive", text, rest)?;
            let selector = archive_selector(rest)?;
            return Ok(Source::DockerArchive { path, selector });
        }
        image_name(text)
            .map(Source::Registry)
            .map_err(|error| match text.split_once(':') {
                Some((prefix, _)) if FOREIGN_TRANSPORTS.contains(&prefix) => {
                    ReferenceError::Transport {
                        prefix: prefix.to_owned(),
                    }
                }
                _ => error,
            })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Registry(name) => write!(f, "docker://{name}"),
            Source::OciDirectory { path, selector } => {
                write!(f, "oci:{}{selector}", escaped(path))
            }
            Source::OciArchive { path, selector } => {
                write!(f, "oci-archive:{}{selector}", escaped(path))
            }
            Source::DockerArchive { path, selector } => {
                write!(f, "docker-archive:{}{selector}", escaped(path))
            }
        }
    }
}

impl fmt::Display for LayoutSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutSelector::Only => Ok(()),
            LayoutSelector::Name(name) => write!(f, ":{name}"),
            LayoutSelector::Digest(digest) => write!(f, ":@{digest}"),
        }
    }
}

impl fmt::Display for ArchiveSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveSelector::Only => Ok(()),
            ArchiveSelector::Name(name) => write!(f, ":{name}"),
            ArchiveSelector::Index(index) => write!(f, ":@{index}"),
        }
    }
}

/// The path as it is written in a source.
fn escaped(path: &Path) -> String {
    path.to_string_lossy()
        .replace('\\', r"\\")
        .replace(':', r"\:")
}

/// Splits at the first colon that no backslash escapes.
fn split_path<'a>(
    prefix: &'static str,
    text: &str,
    rest: &'a str,
) -> Result<(PathBuf, Option<&'a str>), ReferenceError> {
    let mut path = String::new();
    let mut selector = None;
    let mut characters = rest.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            ':' => {
                selector = Some(&rest[at + 1..]);
                break;
            }
            '\\' => match characters.next() {
                Some((_, escaped @ (':' | '\\'))) => path.push(escaped),
                _ => {
                    return Err(ReferenceError::Escape {
                        text: printable(text),
                    });
                }
            },
            other => path.push(other),
        }
    }
    if path.is_empty() {
        return Err(ReferenceError::EmptyPath {
            prefix,
            text: printable(text),
        });
    }
    Ok((PathBuf::from(path), selector))
}

fn layout_selector(text: Option<&str>) -> Result<LayoutSelector, ReferenceError> {
    let Some(text) = text else {
        return Ok(LayoutSelector::Only);
    };
    if let Some(digest) = text.strip_prefix('@') {
        return digest
            .parse()
            .map(LayoutSelector::Digest)
            .map_err(ReferenceError::LayoutDigest);
    }
    if !is_layout_tag(text) {
        return Err(ReferenceError::LayoutTag {
            tag: printable(text),
        });
    }
    Ok(LayoutSelector::Name(text.to_owned()))
}

/// The grammar of `org.opencontainers.image.ref.name`: alphanumeric runs with
/// one of `-._:@+/` (or `--`) between two of them. Underscores in a row and at
/// the ends of a component also occur in tags of registries, so they pass.
fn is_layout_tag(text: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-._:@+/".contains(c);
    !text.is_empty()
        && text.len() <= MAX_LAYOUT_TAG_BYTES
        && text.chars().all(valid)
        && text
            .split('/')
            .all(|component| component.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
}

fn archive_selector(text: Option<&str>) -> Result<ArchiveSelector, ReferenceError> {
    let Some(text) = text else {
        return Ok(ArchiveSelector::Only);
    };
    if let Some(index) = text.strip_prefix('@') {
        // `parse` alone would also take a plus sign.
        let digits = index.bytes().all(|byte| byte.is_ascii_digit());
        return match index.parse() {
            Ok(index) if digits => Ok(ArchiveSelector::Index(index)),
            _ => Err(ReferenceError::ArchiveIndex {
                index: printable(index),
            }),
        };
    }
    let name = image_name(text)?;
    if name.digest().is_some() {
        return Err(ReferenceError::ArchiveDigest);
    }
    Ok(ArchiveSelector::Name(name))
}

fn image_name(text: &str) -> Result<ImageName, ReferenceError> {
    text.parse().map_err(|source| ReferenceError::Name {
        text: printable(text),
        source,
    })
}

/// What must hold for any bytes: parsing ends without a panic, and what it
/// accepts is written in a form that parses to the same.
///
/// # Panics
/// If it does not hold; this is the body of a fuzz target.
#[cfg(any(test, feature = "testing"))]
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(source) = text.parse::<Source>() {
        let shown = source.to_string();
        assert_eq!(shown.parse(), Ok(source), "{text:?} is shown as {shown:?}");
    }
}

/// Sources of every kind, to start mutations from.
#[cfg(any(test, feature = "testing"))]
pub fn seeds() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"");
    let mut seeds: Vec<Vec<u8>> = [
        "nginx",
        "docker://oci:1",
        "reg.example.com:5000/a/b-c__d.e:v1.2_3",
        "[::1]:80/name",
        "oci:dir",
        r"oci:/a\:b\\c:v1",
        "oci:../dir:a/b:c@d+e",
        "oci-archive:/file.tar:reg.io/app:2",
        "docker-archive:/file.tar:app:2",
        "docker-archive:/file.tar:@12",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    for prefix in [
        "alpine:3@",
        "oci:dir:@",
        "oci-archive:a.tar:@",
        "docker-archive:a:b@",
    ] {
        seeds.push(format!("{prefix}{digest}").into_bytes());
    }
    seeds
}

#[cfg(test)]
mod tests;
