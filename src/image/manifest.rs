//! OCI and Docker documents: bytes to typed values, without I/O.
//!
//! An image is an index (or Docker manifest list) of manifests, one per
//! platform; a manifest names a config and the layers. All of it is foreign
//! input. Every document is at most [`MAX_DOCUMENT_BYTES`] long and every list
//! in it is bounded while it is read.
//!
//! A document that says two things at once is refused: two readers could
//! otherwise see two images in the same verified bytes.

use super::digest::{Digest, DigestError};
use super::platform::Platform;
use super::printable;

mod artifact;
mod config;
mod raw;

pub use artifact::LayerContent;
pub use config::{ImageConfig, parse_config};
pub(super) use raw::Bounded;
use raw::{RawDescriptor, RawDocument};

/// The longest manifest, index or config, in bytes.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// The most layers of one image.
pub const MAX_LAYERS: usize = 4096;
/// The most manifests of one index.
pub const MAX_MANIFESTS: usize = 4096;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Of everything that [`parse_document`] reads.
pub(super) const MEDIA_TYPES: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
const DOCKER_SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// Why a document is not an image that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MAX_DOCUMENT_BYTES`].
    #[error("document has {size} bytes, more than {MAX_DOCUMENT_BYTES}")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// Not the JSON that such a document is, or a list in it is too long.
    #[error("document is malformed: {reason}")]
    Malformed {
        /// What the parser says, shortened: it quotes what it does not like.
        reason: String,
    },
    /// The old Docker format, which has no verifiable config.
    #[error(
        "image has a Docker schema 1 manifest, which is not supported; push it again with a current tool"
    )]
    Schema1,
    /// A schema version that nothing defines.
    #[error("schema version {version} is not supported; only 2 is")]
    SchemaVersion {
        /// The version.
        version: u64,
    },
    /// It has fields of an index and of a manifest.
    #[error("document is both an index and a manifest")]
    Ambiguous,
    /// It has neither the fields of an index nor those of a manifest.
    #[error("document is neither an index nor a manifest")]
    Neither,
    /// Its media type is one thing, its fields are another.
    #[error("document has the media type {media_type:?} but is {actual}")]
    MediaType {
        /// What it was called, shortened.
        media_type: String,
        /// What it is.
        actual: Kind,
    },
    /// The media type is nothing that could be an image.
    #[error("media type {media_type:?} is not an image manifest or index")]
    UnknownMediaType {
        /// What it was called, shortened.
        media_type: String,
    },
    /// A manifest, but of something else than an image or files.
    #[error(
        "{artifact:?} is not a container image but another artifact, and its layers are not all files with a title, so it cannot be mounted"
    )]
    Artifact {
        /// Type of the artifact or of its config, shortened.
        artifact: String,
    },
    /// A layer of an artifact cannot be the file that its title says.
    #[error("layer {} cannot be a file of the title {title:?}: {reason}", index + 1)]
    Title {
        /// Which layer, 0 the first; the text counts from 1.
        index: usize,
        /// Its title, shortened.
        title: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A layer whose bytes are elsewhere than in the image.
    #[error(
        "layer {} is non-distributable ({media_type:?}): its content is not part of the image", index + 1
    )]
    ForeignLayer {
        /// Which layer, 0 the lowest; the text counts from 1.
        index: usize,
        /// Its media type.
        media_type: String,
    },
    /// A layer of a kind that cannot be unpacked.
    #[error("layer {} has the unsupported media type {media_type:?}", index + 1)]
    LayerType {
        /// Which layer, 0 the lowest; the text counts from 1.
        index: usize,
        /// Its media type, shortened.
        media_type: String,
    },
    /// A descriptor's digest cannot be used.
    #[error("cannot use the digest of the {what}")]
    Digest {
        /// Of what: `config`, `layer 3`, `manifest`.
        what: String,
        /// Why not.
        #[source]
        source: DigestError,
    },
    /// A config's `rootfs` is of a type that is not defined.
    #[error("config has a root filesystem of type {kind:?}; only \"layers\" is supported")]
    RootFs {
        /// The type, shortened.
        kind: String,
    },
    /// Manifest and config disagree on how many layers there are.
    #[error("manifest has {layers} layers, but the config has {diff_ids} diff ids")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the config.
        diff_ids: usize,
    },
}

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A list of manifests.
    Index,
    /// One image.
    Manifest,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Index => "an index",
            Kind::Manifest => "a manifest",
        })
    }
}

/// A document, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// OCI image index or Docker manifest list.
    Index(Vec<IndexEntry>),
    /// OCI or Docker schema 2 manifest of an image.
    Manifest(Manifest),
}

/// Names bytes by digest and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What the bytes are; empty if not said.
    pub media_type: String,
    /// Their digest.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// What an index says about one of its manifests. Not all are images that we
/// can use, so the digest is not yet parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// What it is; empty if not said.
    pub media_type: String,
    /// Its digest as written.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// The platform; none if not said.
    pub platform: Option<Platform>,
    /// `org.opencontainers.image.ref.name`.
    pub ref_name: Option<String>,
    /// `io.containerd.image.name`.
    pub image_name: Option<String>,
    /// Whether it is an attestation or the like, never an image.
    pub attestation: bool,
}

impl IndexEntry {
    /// What to fetch for it.
    pub fn descriptor(&self) -> Result<Descriptor, ManifestError> {
        let digest = parse_digest(&self.digest, || "manifest".to_owned())?;
        Ok(Descriptor {
            media_type: self.media_type.clone(),
            digest,
            size: self.size,
        })
    }

    /// Whether it can lead to an image: an index, a manifest or something
    /// that does not say what it is, and no attestation.
    pub fn is_candidate(&self) -> bool {
        let image = self.media_type.is_empty() || matches!(kind_of(&self.media_type), Ok(Some(_)));
        image && !self.attestation
    }
}

/// The manifest of an image, or of an artifact that consists of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its config; an artifact's says nothing about its layers.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<ManifestLayer>,
    /// Whether it is no image.
    pub is_artifact: bool,
}

/// One layer of a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestLayer {
    /// Digest of the blob, as it is compressed.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// How the blob is compressed.
    pub compression: Compression,
    /// What the blob is.
    pub content: LayerContent,
    /// What stands for its diffID where no config has one: in artifacts.
    pub diff_id: Option<Digest>,
}

/// How a layer's bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar.
    None,
    /// Gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// The source does not say, or is known to be wrong at times: look at the
    /// first bytes.
    Sniff,
}

/// Reads an index or a manifest. `media_type` is what the descriptor or the
/// registry called it; empty if nothing did.
pub fn parse_document(bytes: &[u8], media_type: &str) -> Result<Document, ManifestError> {
    let raw: RawDocument = from_json(bytes)?;
    let outer = kind_of(media_type)?;
    let inner_type = raw.media_type.clone().unwrap_or_default();
    let inner = kind_of(&inner_type)?;
    match raw.schema_version {
        Some(2) | None => {}
        Some(1) => return Err(ManifestError::Schema1),
        Some(version) => return Err(ManifestError::SchemaVersion { version }),
    }
    if raw.fs_layers.is_some() {
        return Err(ManifestError::Schema1);
    }
    let actual = match (
        raw.manifests.is_some(),
        raw.config.is_some() || raw.layers.is_some(),
    ) {
        (true, true) => return Err(ManifestError::Ambiguous),
        (true, false) => Kind::Index,
        (false, true) => Kind::Manifest,
        // Go writes an empty list as null, which only the type can tell.
        (false, false) => match inner.or(outer) {
            Some(Kind::Index) => Kind::Index,
            Some(Kind::Manifest) | None => return Err(ManifestError::Neither),
        },
    };
    for (said, media_type) in [(outer, media_type), (inner, inner_type.as_str())] {
        if said.is_some_and(|said| said != actual) {
            return Err(ManifestError::MediaType {
                media_type: printable(media_type),
                actual,
            });
        }
    }
    match actual {
        Kind::Index => {
            let entries = raw.manifests.unwrap_or_default().into_inner();
            Ok(Document::Index(
                entries.into_iter().map(index_entry).collect(),
            ))
        }
        Kind::Manifest => {
            let docker = [media_type, &inner_type].contains(&DOCKER_MANIFEST);
            manifest(raw, docker).map(Document::Manifest)
        }
    }
}

/// What a media type says that a document is; none if it is empty.
fn kind_of(media_type: &str) -> Result<Option<Kind>, ManifestError> {
    match media_type {
        "" => Ok(None),
        OCI_INDEX | DOCKER_LIST => Ok(Some(Kind::Index)),
        OCI_MANIFEST | DOCKER_MANIFEST => Ok(Some(Kind::Manifest)),
        schema1 if DOCKER_SCHEMA1.contains(&schema1) => Err(ManifestError::Schema1),
        other => Err(ManifestError::UnknownMediaType {
            media_type: printable(other),
        }),
    }
}

fn index_entry(raw: RawDescriptor) -> IndexEntry {
    let platform = raw.platform.map(|platform| platform.normalised());
    let annotations = raw.annotations.unwrap_or_default();
    let unknown = platform.as_ref().is_some_and(Platform::is_unknown);
    IndexEntry {
        media_type: raw.media_type.unwrap_or_default(),
        digest: raw.digest,
        size: raw.size,
        platform: platform.filter(|platform| !platform.is_unspecified()),
        ref_name: annotations.ref_name,
        image_name: annotations.image_name,
        attestation: unknown || annotations.reference_type.is_some(),
    }
}

fn manifest(raw: RawDocument, docker: bool) -> Result<Manifest, ManifestError> {
    let artifact_type = raw.artifact_type.unwrap_or_default();
    let Some(config) = raw.config else {
        return Err(match artifact_type.as_str() {
            "" => ManifestError::Neither,
            artifact => ManifestError::Artifact {
                artifact: printable(artifact),
            },
        });
    };
    let config_type = config.media_type.clone().unwrap_or_default();
    let is_image = match config_type.as_str() {
        OCI_CONFIG | DOCKER_CONFIG => true,
        // Early Docker registries and clients wrote these for images.
        "" | "application/octet-stream" => docker,
        _ => false,
    };
    let layers = raw.layers.unwrap_or_default().into_inner();
    let layers = if is_image {
        let layers = layers.into_iter().enumerate();
        layers
            .map(|(index, layer)| manifest_layer(index, layer))
            .collect::<Result<_, _>>()?
    } else {
        let artifact = match artifact_type.as_str() {
            "" => &config_type,
            artifact => artifact,
        };
        artifact::layers(artifact, layers)?
    };
    Ok(Manifest {
        config: Descriptor {
            digest: parse_digest(&config.digest, || "config".to_owned())?,
            media_type: config_type,
            size: config.size,
        },
        layers,
        is_artifact: !is_image,
    })
}

fn manifest_layer(index: usize, raw: RawDescriptor) -> Result<ManifestLayer, ManifestError> {
    let media_type = raw.media_type.unwrap_or_default();
    let compression = match media_type.as_str() {
        "application/vnd.oci.image.layer.v1.tar" => Compression::None,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
        // Written at times for layers that are compressed nevertheless.
        "application/vnd.docker.image.rootfs.diff.tar" => Compression::Sniff,
        other if other.contains(".nondistributable.") || other.contains(".foreign.") => {
            return Err(ManifestError::ForeignLayer {
                index,
                media_type: printable(other),
            });
        }
        other => {
            return Err(ManifestError::LayerType {
                index,
                media_type: printable(other),
            });
        }
    };
    Ok(ManifestLayer {
        digest: parse_digest(&raw.digest, || format!("layer {}", index + 1))?,
        size: raw.size,
        compression,
        content: LayerContent::Tar,
        diff_id: None,
    })
}

fn parse_digest(text: &str, what: impl Fn() -> String) -> Result<Digest, ManifestError> {
    text.parse().map_err(|source| ManifestError::Digest {
        what: what(),
        source,
    })
}

/// Reads JSON of any of the documents here.
pub(super) fn from_json<'a, T: serde::Deserialize<'a>>(
    bytes: &'a [u8],
) -> Result<T, ManifestError> {
    let size = bytes.len() as u64;
    if size > MAX_DOCUMENT_BYTES {
        return Err(ManifestError::TooLarge { size });
    }
    serde_json::from_slice(bytes).map_err(|error| ManifestError::Malformed {
        reason: printable(&error.to_string()),
    })
}

/// What must hold for any bytes: reading them as a document or a config ends
/// without a panic, and what is accepted is inside the bounds.
///
/// # Panics
/// If it does not hold; this is the body of a fuzz target.
#[cfg(any(test, feature = "testing"))]
pub fn check(bytes: &[u8]) {
    for media_type in ["", OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
        match parse_document(bytes, media_type) {
            Ok(Document::Index(entries)) => {
                assert!(entries.len() <= MAX_MANIFESTS);
                assert!(![OCI_MANIFEST, DOCKER_MANIFEST].contains(&media_type));
                for entry in entries.iter().filter(|entry| entry.is_candidate()) {
                    if let Ok(descriptor) = entry.descriptor() {
                        assert_eq!(descriptor.digest.to_string(), entry.digest);
                    }
                }
            }
            Ok(Document::Manifest(manifest)) => {
                assert!(manifest.layers.len() <= MAX_LAYERS);
                assert!(![OCI_INDEX, DOCKER_LIST].contains(&media_type));
            }
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.len() < 1024 && !text.contains(char::is_control),
                    "{text:?}"
                );
            }
        }
    }
    if let Ok(config) = parse_config(bytes) {
        assert!(config.diff_ids.len() <= MAX_LAYERS);
    }
}

/// Documents and configs of every kind, to start mutations from.
#[cfg(any(test, feature = "testing"))]
pub fn seeds() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"");
    let descriptor =
        |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7}}"#);
    let manifest = |kind: &str, config: &str, layers: &[&str]| {
        let layers: Vec<String> = layers.iter().copied().map(descriptor).collect();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{},"layers":[{}]}}"#,
            descriptor(config),
            layers.join(",")
        )
    };
    [
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[
            {{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":7,
            "platform":{{"os":"linux","architecture":"arm","variant":"v7"}},
            "annotations":{{"org.opencontainers.image.ref.name":"v1"}}}},
            {{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":7,
            "platform":{{"os":"unknown","architecture":"unknown"}},
            "annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}]}}"#
        ),
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{DOCKER_LIST}","manifests":[{}]}}"#,
            descriptor(DOCKER_MANIFEST)
        ),
        manifest(
            OCI_MANIFEST,
            OCI_CONFIG,
            &[
                "application/vnd.oci.image.layer.v1.tar",
                "application/vnd.oci.image.layer.v1.tar+zstd",
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            ],
        ),
        manifest(
            DOCKER_MANIFEST,
            DOCKER_CONFIG,
            &[
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            ],
        ),
        manifest("", "application/octet-stream", &[]),
        r#"{"schemaVersion":1,"fsLayers":[{"blobSum":""}]}"#.to_owned(),
        r#"{"schemaVersion":2,"manifests":null,"layers":null}"#.to_owned(),
        r#"{"schemaVersion":2,"mediaType":"a\u001b[2J\n\u0000","layers":[]}"#.to_owned(),
        manifest(OCI_MANIFEST, r"\t\u007f", &[]),
        manifest(OCI_MANIFEST, OCI_CONFIG, &[r"\r\u0085.foreign."]),
        format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"Env":["A=b"]}},
            "rootfs":{{"type":"layers","diff_ids":["{digest}","{digest}"]}}}}"#
        ),
    ]
    .map(String::into_bytes)
    .to_vec()
}

#[cfg(test)]
mod tests;
