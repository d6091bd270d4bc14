//! Why an image cannot be had from its source.

use super::digest::Digest;
use super::files::tar::TarError;
use super::manifest::{MAX_DOCUMENT_BYTES, ManifestError};
use super::platform::Platform;
use super::registry::RegistryError;
use super::resolve::{MAX_DEPTH, MAX_DOCUMENTS};
use std::io;
use std::path::PathBuf;

/// A step of reading an image failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The image is in a registry, and was opened as a local one.
    #[error("an image of a registry has to be pulled")]
    NotLocal,
    /// A registry did not give what was asked of it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What has been noted about the image cannot be read or written.
    #[error("what is known of the image's layers cannot be used: {reason}")]
    Notes {
        /// Why not.
        reason: String,
    },
    /// A layer of an image that was thought to be in the store is not.
    #[error("the store does not have all of the image's layers")]
    NotStored,
    /// The path of a source is not in the directory that it must be in.
    #[error("{} is outside {}", path.display(), root.display())]
    OutsideRoot {
        /// The path.
        path: PathBuf,
        /// The directory.
        root: PathBuf,
    },
    /// A file or directory of the source cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the source is a directory, fifo, socket or device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// Which one.
        path: PathBuf,
    },
    /// The source should be a directory.
    #[error("{} is not a directory; a tar of an OCI layout is read with oci-archive:", path.display())]
    NotADirectory {
        /// Its path.
        path: PathBuf,
    },
    /// A file of the source cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that should be a document is longer than they may be.
    #[error("{} has {size} bytes, more than the {MAX_DOCUMENT_BYTES} of a document", path.display())]
    FileSize {
        /// Which one.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The archive is no usable tar.
    #[error("cannot read the archive {}", path.display())]
    Tar {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// The source has no file of this name.
    #[error("{} has no {name}; {remedy}", path.display())]
    Missing {
        /// Path of the source.
        path: PathBuf,
        /// The missing file.
        name: String,
        /// What the reader of the error can do.
        remedy: &'static str,
    },
    /// The layout is of a version that is not known.
    #[error("{} is an OCI layout of version {version:?}; only 1.x is supported", path.display())]
    LayoutVersion {
        /// Path of the source.
        path: PathBuf,
        /// The version, shortened.
        version: String,
    },
    /// The source's list of images, or its layout file, is malformed.
    #[error("cannot use {name} of {}", path.display())]
    List {
        /// Path of the source.
        path: PathBuf,
        /// The file.
        name: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A manifest, index or config is malformed or not supported.
    #[error("cannot use {digest}")]
    Document {
        /// Digest of the document.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A manifest, index or config is said to be longer than they may be.
    #[error("document {digest} has {size} bytes, more than {MAX_DOCUMENT_BYTES}")]
    DocumentSize {
        /// Digest of the document.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// A blob that the image needs is not there.
    #[error("blob {digest} is missing from {}; copy the image again, for this platform", path.display())]
    MissingBlob {
        /// Path of the source.
        path: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// A blob has another size than the image says.
    #[error(
        "blob {digest} has {found} bytes instead of {expected}; the copy is incomplete or damaged, copy the image again"
    )]
    BlobSize {
        /// The blob.
        digest: Digest,
        /// Its size in bytes, as the image says.
        expected: u64,
        /// Its size in bytes.
        found: u64,
    },
    /// A blob has other bytes than its name says.
    #[error(
        "blob {digest} has content with the digest {found}; the copy is damaged, copy the image again"
    )]
    BlobDigest {
        /// The blob.
        digest: Digest,
        /// Digest of what it holds.
        found: Digest,
    },
    /// Indexes in indexes in indexes.
    #[error("index {digest} is nested deeper than {MAX_DEPTH} levels")]
    TooDeep {
        /// The one that is too deep.
        digest: Digest,
    },
    /// Too many documents have to be read to find the platform.
    #[error("image has more than {MAX_DOCUMENTS} manifests that do not say their platform")]
    TooManyDocuments,
    /// The image does not exist for the platform.
    #[error("image has nothing for {wanted}; it has {}", listed(available))]
    NoPlatform {
        /// The platform asked for.
        wanted: Platform,
        /// What there is, shortened.
        available: Vec<String>,
    },
    /// The source's list of images is empty.
    #[error("{} has no images", path.display())]
    NoImages {
        /// Path of the source.
        path: PathBuf,
    },
    /// The source has no such image.
    #[error("{} has no image {wanted:?}; it has {}", path.display(), listed(available))]
    NoSuchImage {
        /// Path of the source.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is, shortened.
        available: Vec<String>,
    },
    /// The source has several images that fit.
    #[error("{} has several images that fit; choose one of {}", path.display(), listed(available))]
    SeveralImages {
        /// Path of the source.
        path: PathBuf,
        /// What there is, shortened.
        available: Vec<String>,
    },
    /// An old archive has ids that are not what Docker made.
    #[error("{} names an image {id:?}, which is not 64 hex digits", path.display())]
    ImageId {
        /// Path of the source.
        path: PathBuf,
        /// The id, shortened.
        id: String,
    },
    /// The parents of an old image lead back to it, or are too many.
    #[error("image {id:?} of {} has a chain of parents that does not end within {limit}", path.display())]
    ParentChain {
        /// Path of the source.
        path: PathBuf,
        /// The image where the chain starts, shortened.
        id: String,
        /// How many are followed.
        limit: usize,
    },
    /// A layer of an archive of before Docker 1.10 is compressed, which no
    /// Docker ever wrote.
    #[error("layer {layer:?} of {} is compressed, which this old archive format does not have; load and save it again with a current docker", path.display())]
    CompressedLayer {
        /// Path of the source.
        path: PathBuf,
        /// The layer's file.
        layer: String,
    },
    /// The image has no such layer.
    #[error("image has {layers} layers, and layer {} was asked for", index + 1)]
    LayerIndex {
        /// Which layer, from 0.
        index: usize,
        /// How many there are.
        layers: usize,
    },
}

/// At most a few of `names`, for an error.
fn listed(names: &[String]) -> String {
    const MAX_NAMES: usize = 20;
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = names[..names.len().min(MAX_NAMES)].join(", ");
    if names.len() > MAX_NAMES {
        text.push_str(&format!(" and {} more", names.len() - MAX_NAMES));
    }
    text
}
