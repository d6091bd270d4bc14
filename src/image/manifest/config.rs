//! The config of an image: its platform and the digests of its uncompressed layers.

use super::raw::{Bounded, RawPlatform};
use super::{MAX_LAYERS, ManifestError, from_json, parse_digest};
use crate::image::digest::Digest;
use crate::image::platform::Platform;
use crate::image::printable;
use serde::Deserialize;

/// What is needed of a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// What the image is built for; parts are empty where it does not say.
    pub platform: Platform,
    /// Digests of the uncompressed layers, the lowest first.
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Checks that a manifest has as many layers.
    pub fn check_layers(&self, layers: usize) -> Result<(), ManifestError> {
        if self.diff_ids.len() == layers {
            return Ok(());
        }
        Err(ManifestError::LayerCount {
            layers,
            diff_ids: self.diff_ids.len(),
        })
    }
}

/// The history is left out on purpose: it also counts build steps that have no
/// layer, and the diff ids say all that matters.
#[derive(Deserialize)]
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    rootfs: Option<RawRootFs>,
}

#[derive(Deserialize)]
struct RawRootFs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Bounded<String, MAX_LAYERS>>,
}

/// Reads the config of an OCI or Docker image.
pub fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
    let raw: RawConfig = from_json(bytes)?;
    let platform = RawPlatform {
        os: raw.os,
        architecture: raw.architecture,
        variant: raw.variant,
    };
    let mut diff_ids = Vec::new();
    if let Some(rootfs) = raw.rootfs {
        match rootfs.kind.as_deref() {
            Some("layers") | None => {}
            Some(other) => {
                return Err(ManifestError::RootFs {
                    kind: printable(other),
                });
            }
        }
        for (index, text) in rootfs
            .diff_ids
            .unwrap_or_default()
            .into_inner()
            .iter()
            .enumerate()
        {
            diff_ids.push(parse_digest(text, || {
                format!("uncompressed layer {}", index + 1)
            })?);
        }
    }
    Ok(ImageConfig {
        platform: platform.normalised(),
        diff_ids,
    })
}
