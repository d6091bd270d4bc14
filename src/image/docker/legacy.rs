//! Archives of before Docker 1.10: `repositories` says which image has which
//! tag; every image is a directory with `json`, which names its parent, and
//! `layer.tar`. Nothing in them has a digest, so the layers are read once to
//! know what they are called.

use super::{check_platform, missing, no_such_image, open_member};
use crate::image::digest::Digest;
use crate::image::error::SourceError;
use crate::image::files::Files;
use crate::image::manifest::{Compression, MAX_LAYERS, from_json};
use crate::image::platform::{Platform, PlatformChoice};
use crate::image::reference::{ArchiveSelector, ImageName};
use crate::image::{Image, LayerContent, LayerDescriptor, compression_of, printable};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read;

#[cfg(any(test, feature = "testing"))]
pub mod check;

const REPOSITORIES_FILE: &str = "repositories";

/// An image and its parents.
#[derive(Debug)]
pub(super) struct Chain {
    /// Their ids, the lowest first.
    ids: Vec<String>,
    platform: Platform,
}

/// Repository → tag → id.
type Repositories = BTreeMap<String, BTreeMap<String, String>>;

#[derive(serde::Deserialize)]
struct ImageFile {
    parent: Option<String>,
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Chain {
    /// Chooses an image and follows its parents.
    pub(super) fn choose(files: &Files, selector: &ArchiveSelector) -> Result<Self, SourceError> {
        let Some(bytes) = files.read(REPOSITORIES_FILE)? else {
            let is_layout = files.open("oci-layout")?.is_some();
            return Err(SourceError::Missing {
                path: files.path().to_owned(),
                name: format!("{} and no {REPOSITORIES_FILE}", super::MANIFEST_FILE),
                remedy: match is_layout {
                    true => "it is a tar of an OCI image layout: use oci-archive:",
                    false => "it is not what docker save writes",
                },
            });
        };
        let repositories: Repositories = from_json(&bytes).map_err(|source| SourceError::List {
            path: files.path().to_owned(),
            name: REPOSITORIES_FILE.to_owned(),
            source,
        })?;
        let id = choose_id(files, &repositories, selector)?;
        Chain::follow(files, id)
    }

    fn follow(files: &Files, top: String) -> Result<Self, SourceError> {
        let endless = |top: &str| SourceError::ParentChain {
            path: files.path().to_owned(),
            id: printable(top),
            limit: MAX_LAYERS,
        };
        let mut ids: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        let mut platform = Platform::default();
        let mut next = Some(top.clone());
        while let Some(id) = next {
            if Digest::from_hex(&id).is_none() {
                return Err(SourceError::ImageId {
                    path: files.path().to_owned(),
                    id: printable(&id),
                });
            }
            if ids.len() == MAX_LAYERS || !seen.insert(id.clone()) {
                return Err(endless(&top));
            }
            let name = format!("{id}/json");
            let bytes = files.read(&name)?.ok_or_else(|| missing(files, &name))?;
            let image: ImageFile = from_json(&bytes).map_err(|source| SourceError::List {
                path: files.path().to_owned(),
                name,
                source,
            })?;
            if ids.is_empty() {
                let part = |part: &Option<String>| part.clone().unwrap_or_default();
                platform = Platform::new(
                    &part(&image.os),
                    &part(&image.architecture),
                    &part(&image.variant),
                );
            }
            ids.push(id);
            next = image.parent.filter(|parent| !parent.is_empty());
        }
        ids.reverse();
        Ok(Chain { ids, platform })
    }

    /// Reads all layers once, for their digests.
    pub(super) fn image(
        &self,
        name: &str,
        files: &Files,
        choice: &PlatformChoice,
    ) -> Result<Image, SourceError> {
        check_platform(&self.platform, choice)?;
        let mut layers = Vec::with_capacity(self.ids.len());
        for id in &self.ids {
            layers.push(describe(files, &layer_name(id))?);
        }
        let config = self.derived_config(&layers);
        let config_digest = Digest::of(&config);
        Ok(Image {
            name: name.to_owned(),
            manifest_digest: config_digest,
            config,
            config_digest,
            layers,
            platform: self.platform.clone(),
        })
    }

    /// The member that holds a layer, counted from the lowest.
    pub(super) fn layer(&self, index: usize) -> Option<String> {
        self.ids.get(index).map(|id| layer_name(id))
    }

    /// A config with what an OCI config must have. The same image gives the
    /// same bytes, so that their digest can stand for it.
    fn derived_config(&self, layers: &[LayerDescriptor]) -> Vec<u8> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = serde_json::json!({
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "rootfs": {"diff_ids": diff_ids, "type": "layers"},
            "variant": self.platform.variant,
        });
        config.to_string().into_bytes()
    }
}

fn layer_name(id: &str) -> String {
    format!("{id}/layer.tar")
}

fn choose_id(
    files: &Files,
    repositories: &Repositories,
    selector: &ArchiveSelector,
) -> Result<String, SourceError> {
    let images = || {
        repositories.iter().flat_map(|(repository, tags)| {
            tags.iter()
                .map(move |(tag, id)| (format!("{repository}:{tag}"), id))
        })
    };
    let available = || images().map(|(name, _)| printable(&name)).collect();
    let found = match selector {
        ArchiveSelector::Only => {
            let ids: BTreeSet<&String> = images().map(|(_, id)| id).collect();
            if ids.len() > 1 {
                return Err(SourceError::SeveralImages {
                    path: files.path().to_owned(),
                    available: available(),
                });
            }
            ids.first().copied().cloned()
        }
        ArchiveSelector::Name(wanted) => images()
            .find(|(name, _)| name.parse::<ImageName>().as_ref() == Ok(wanted))
            .map(|(_, id)| id.clone()),
        // There is no order that a place could count in.
        ArchiveSelector::Index(_) => None,
    };
    found.ok_or_else(|| no_such_image(files, selector, available()))
}

fn describe(files: &Files, name: &str) -> Result<LayerDescriptor, SourceError> {
    let mut opened = open_member(files, name)?;
    let read_error = |source| files.read_error(name, source);
    let mut start = Vec::new();
    opened
        .reader
        .by_ref()
        .take(6)
        .read_to_end(&mut start)
        .map_err(read_error)?;
    if compression_of(&start).is_some() {
        return Err(SourceError::CompressedLayer {
            path: files.path().to_owned(),
            layer: printable(name),
        });
    }
    let diff_id = Digest::of_reader(start.as_slice().chain(opened.reader)).map_err(read_error)?;
    Ok(LayerDescriptor {
        digest: None,
        diff_id,
        size: Some(opened.size),
        compression: Compression::None,
        content: LayerContent::Tar,
    })
}
