//! The JSON as it is written. Fields that nothing here needs are skipped; a
//! field given twice is an error of the derived code, which is wanted.

use super::{MAX_LAYERS, MAX_MANIFESTS};
use crate::image::platform::Platform;
use serde::Deserialize;
use serde::de::{self, IgnoredAny, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// An index or a manifest of any kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawDocument {
    pub(super) schema_version: Option<u64>,
    pub(super) media_type: Option<String>,
    pub(super) artifact_type: Option<String>,
    pub(super) manifests: Option<Bounded<RawDescriptor, MAX_MANIFESTS>>,
    pub(super) config: Option<RawDescriptor>,
    pub(super) layers: Option<Bounded<RawDescriptor, MAX_LAYERS>>,
    /// Only to recognise schema 1.
    pub(super) fs_layers: Option<IgnoredAny>,
}

/// A descriptor.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawDescriptor {
    pub(super) media_type: Option<String>,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<RawPlatform>,
    pub(super) annotations: Option<RawAnnotations>,
}

/// The platform of a descriptor or a config.
#[derive(Debug, Deserialize)]
pub(super) struct RawPlatform {
    pub(super) os: Option<String>,
    pub(super) architecture: Option<String>,
    pub(super) variant: Option<String>,
}

impl RawPlatform {
    pub(super) fn normalised(&self) -> Platform {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        Platform::new(
            &part(&self.os),
            &part(&self.architecture),
            &part(&self.variant),
        )
    }
}

/// The annotations that have a meaning here.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RawAnnotations {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    pub(super) ref_name: Option<String>,
    #[serde(rename = "io.containerd.image.name")]
    pub(super) image_name: Option<String>,
    #[serde(rename = "vnd.docker.reference.type")]
    pub(super) reference_type: Option<String>,
    #[serde(rename = "org.opencontainers.image.title")]
    pub(super) title: Option<String>,
    /// `true` where the layer of an artifact is a tar of a directory.
    #[serde(rename = "io.deis.oras.content.unpack")]
    pub(super) unpack: Option<String>,
    /// Digest of that tar.
    #[serde(rename = "io.deis.oras.content.digest")]
    pub(super) content_digest: Option<String>,
}

/// A list with at most `MAX` elements. A small document could otherwise become
/// a hundred times its size in memory.
#[derive(Debug, Clone)]
pub(in crate::image) struct Bounded<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Bounded<T, MAX> {
    pub(in crate::image) fn into_inner(self) -> Vec<T> {
        self.0
    }

    pub(in crate::image) fn as_slice(&self) -> &[T] {
        &self.0
    }
}

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Bounded(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedVisitor(PhantomData))
    }
}

struct BoundedVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedVisitor<T, MAX> {
    type Value = Bounded<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element()? {
            if elements.len() == MAX {
                return Err(de::Error::invalid_length(MAX + 1, &self));
            }
            elements.push(element);
        }
        Ok(Bounded(elements))
    }
}
