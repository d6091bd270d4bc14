//! Images: where the bytes of layers come from, and how they are named.
//!
//! ```text
//! digest      sha256 digests
//! reference   what a user calls an image → Source (pure)
//! platform    os/architecture/variant, and which fits (pure)
//! manifest    index, manifest and config bytes → typed values (pure)
//! resolve     from an index to the one manifest and config of a platform
//! layout      OCI layouts, as directories and tars
//! docker      tars of `docker save`
//! credentials what may be shown to a registry, and where it comes from
//! ```
//!
//! **Invariant:** a manifest or config is used only after its digest was
//! verified. The bytes of layers are not verified here: whoever unpacks them
//! computes both of their digests on the way.

pub mod credentials;
pub mod digest;
mod docker;
mod error;
mod files;
mod layout;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod registry;
mod resolve;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod testdata;

/// What fuzz targets check of the parsers that nothing outside of here uses.
#[cfg(any(test, feature = "testing"))]
pub mod fuzz {
    pub use super::credentials::check as docker_config;
    pub use super::docker::check as docker_manifest;
    pub use super::docker::legacy::check as docker_legacy;
    pub use super::files::tar::check as image_archive;
    pub use super::layout::check as oci_layout;
}

pub use error::SourceError;
pub use files::tar::TarError;
pub use manifest::{Compression, LayerContent};
pub use resolve::{Documents, MAX_DEPTH, MAX_DOCUMENTS, Resolved, resolve};

use digest::Digest;
use files::{Files, Location};
use platform::{Platform, PlatformChoice};
use reference::Source;
use std::path::Path;

/// An image of one platform, its documents verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The source as it was asked for.
    pub name: String,
    /// Digest of the manifest. A Docker archive has none; its images are known
    /// by the digest of their config, which names all the content too, and that
    /// digest stands here. (An archive of before Docker 1.10 has no config
    /// either: one is derived from what it has, and that one's digest is used.)
    pub manifest_digest: Digest,
    /// The config's bytes, as they were verified; none of an artifact that
    /// consists of files.
    pub config: Vec<u8>,
    /// Their digest.
    pub config_digest: Digest,
    /// The layers, the lowest first. Some images have none.
    pub layers: Vec<LayerDescriptor>,
    /// What the image is for; parts are empty where it does not say.
    pub platform: Platform,
}

/// One layer of an [`Image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob as it is compressed; none where the source gives none.
    pub digest: Option<Digest>,
    /// Digest of the uncompressed tar; of a layer that is a file, what stands for
    /// it (see [`LayerContent`]).
    pub diff_id: Digest,
    /// Size of the blob in bytes.
    pub size: Option<u64>,
    /// How the blob is compressed.
    pub compression: Compression,
    /// What the blob is.
    pub content: LayerContent,
}

/// Where one image comes from.
pub trait ImageSource: Send + Sync + std::fmt::Debug {
    /// Reads and verifies the image's documents.
    fn image(&self, platform: &PlatformChoice) -> Result<Image, SourceError>;

    /// The bytes of a layer of `image`, which this source gave: the compressed
    /// blob, not verified. `index` counts from the lowest layer. Several layers
    /// may be read at once.
    fn open_layer(
        &self,
        image: &Image,
        index: usize,
    ) -> Result<Box<dyn std::io::Read + Send>, SourceError>;

    /// These layers of `image` are about to be opened, each once. What can be
    /// begun now should be, and what cannot come at all refused.
    fn prepare(&self, image: &Image, layers: &[usize]) -> Result<(), SourceError> {
        let _ = (image, layers);
        Ok(())
    }

    /// Whether a layer that the store has can stand for the one that an image of
    /// this source names; else it has to come from the source, as proof that it
    /// can.
    fn may_reuse(&self, diff_id: &Digest) -> Result<bool, SourceError> {
        let _ = diff_id;
        Ok(true)
    }
}

/// Opens a source that the operator named: its path is taken as it is, and
/// symbolic links lead wherever they lead.
pub fn open(source: &Source) -> Result<Box<dyn ImageSource>, SourceError> {
    open_at(source, |path| Ok(Location::anywhere(path)))
}

/// Opens a local source that somebody else named, inside the directory `root`:
/// neither `..` nor a symbolic link, of the path or inside the source, leads
/// out of it (an absolute link starts at `root`).
///
/// The source's path is relative to `root`, or absolute and begins with `root`.
/// Where the kernel has no `openat2` (before 5.6), links are refused instead.
pub fn open_in_root(root: &Path, source: &Source) -> Result<Box<dyn ImageSource>, SourceError> {
    open_at(source, |path| Location::in_root(root, path))
}

fn open_at(
    source: &Source,
    locate: impl Fn(&Path) -> Result<Location, SourceError>,
) -> Result<Box<dyn ImageSource>, SourceError> {
    let name = source.to_string();
    match source {
        Source::Registry(_) => Err(SourceError::NotLocal),
        Source::OciDirectory { path, selector } => {
            let files = Files::directory(locate(path)?)?;
            Ok(Box::new(layout::Layout::open(
                name,
                files,
                selector.clone(),
            )?))
        }
        Source::OciArchive { path, selector } => {
            let files = Files::archive(locate(path)?)?;
            Ok(Box::new(layout::Layout::open(
                name,
                files,
                selector.clone(),
            )?))
        }
        Source::DockerArchive { path, selector } => {
            let files = Files::archive(locate(path)?)?;
            Ok(Box::new(docker::Archive::open(name, files, selector)?))
        }
    }
}

/// Foreign text for an error or a log: control characters escaped, and not longer
/// than a line.
fn printable(text: &str) -> String {
    const MAX_CHARACTERS: usize = 200;
    let mut shown: String = text
        .chars()
        .take(MAX_CHARACTERS)
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect();
    if text.chars().nth(MAX_CHARACTERS).is_some() {
        shown.push('…');
    }
    shown
}

/// What the first bytes of a file say it is compressed with, if with anything.
fn compression_of(start: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
    ];
    let known = MAGIC.iter().find(|(magic, _)| start.starts_with(magic));
    known.map(|(_, format)| *format)
}
