//! Tars as `docker save` writes them: with `manifest.json` (Docker 1.10 and
//! later, and many other tools), and the older ones without.

use super::digest::Digest;
use super::error::SourceError;
use super::files::{Files, Opened};
use super::manifest::{Bounded, Compression, MAX_LAYERS, MAX_MANIFESTS, from_json, parse_config};
use super::platform::{Platform, PlatformChoice};
use super::reference::{ArchiveSelector, ImageName};
use super::{Image, ImageSource, LayerContent, LayerDescriptor, printable};
use std::io::Read;

#[cfg(any(test, feature = "testing"))]
pub mod check;
pub(super) mod legacy;

const MANIFEST_FILE: &str = "manifest.json";
/// The most names of one image in an archive.
const MAX_TAGS: usize = 4096;

/// An open archive and the image chosen in it.
#[derive(Debug)]
pub(super) struct Archive {
    name: String,
    files: Files,
    image: Chosen,
}

#[derive(Debug)]
enum Chosen {
    /// Of `manifest.json`.
    Current(Entry),
    /// Of `repositories`.
    Legacy(legacy::Chain),
}

/// One image in `manifest.json`; Docker writes these names in upper case.
#[derive(Debug, serde::Deserialize)]
struct Entry {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Bounded<String, MAX_TAGS>>,
    #[serde(rename = "Layers")]
    layers: Option<Bounded<String, MAX_LAYERS>>,
}

impl Archive {
    /// Reads which images there are, and chooses.
    pub(super) fn open(
        name: String,
        files: Files,
        selector: &ArchiveSelector,
    ) -> Result<Self, SourceError> {
        let image = match files.read(MANIFEST_FILE)? {
            Some(bytes) => Chosen::Current(choose(&files, &bytes, selector)?),
            None => Chosen::Legacy(legacy::Chain::choose(&files, selector)?),
        };
        Ok(Archive { name, files, image })
    }

    fn current(&self, entry: &Entry, choice: &PlatformChoice) -> Result<Image, SourceError> {
        let config = self.files.read(&entry.config)?;
        let config = config.ok_or_else(|| missing(&self.files, &entry.config))?;
        let config_digest = Digest::of(&config);
        if let Some(digest) = digest_in_name(&entry.config)
            && digest != config_digest
        {
            return Err(SourceError::BlobDigest {
                digest,
                found: config_digest,
            });
        }
        let parsed = parse_config(&config)
            .and_then(|parsed| {
                parsed.check_layers(entry.layers().len())?;
                Ok(parsed)
            })
            .map_err(|source| SourceError::Document {
                digest: config_digest,
                source,
            })?;
        check_platform(&parsed.platform, choice)?;
        let mut layers = Vec::with_capacity(parsed.diff_ids.len());
        for (layer, diff_id) in entry.layers().iter().zip(parsed.diff_ids) {
            let opened = open_member(&self.files, layer)?;
            layers.push(LayerDescriptor {
                // Only this place is named after what is in it.
                digest: layer
                    .strip_prefix("blobs/sha256/")
                    .and_then(Digest::from_hex),
                diff_id,
                size: Some(opened.size),
                compression: Compression::Sniff,
                content: LayerContent::Tar,
            });
        }
        Ok(Image {
            name: self.name.clone(),
            manifest_digest: config_digest,
            config,
            config_digest,
            layers,
            platform: parsed.platform,
        })
    }
}

impl ImageSource for Archive {
    fn image(&self, platform: &PlatformChoice) -> Result<Image, SourceError> {
        match &self.image {
            Chosen::Current(entry) => self.current(entry, platform),
            Chosen::Legacy(chain) => chain.image(&self.name, &self.files, platform),
        }
    }

    fn open_layer(&self, image: &Image, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let member = match &self.image {
            Chosen::Current(entry) => entry.layers().get(index).cloned(),
            Chosen::Legacy(chain) => chain.layer(index),
        };
        let member = member.ok_or(SourceError::LayerIndex {
            index,
            layers: image.layers.len(),
        })?;
        Ok(open_member(&self.files, &member)?.reader)
    }
}

impl Entry {
    fn layers(&self) -> &[String] {
        self.layers.as_ref().map_or(&[], Bounded::as_slice)
    }

    fn tags(&self) -> &[String] {
        self.tags.as_ref().map_or(&[], Bounded::as_slice)
    }

    fn is_called(&self, name: &ImageName) -> bool {
        self.tags()
            .iter()
            .any(|tag| tag.parse().as_ref() == Ok(name))
    }
}

fn choose(
    files: &Files,
    manifest: &[u8],
    selector: &ArchiveSelector,
) -> Result<Entry, SourceError> {
    let entries: Bounded<Entry, MAX_MANIFESTS> =
        from_json(manifest).map_err(|source| SourceError::List {
            path: files.path().to_owned(),
            name: MANIFEST_FILE.to_owned(),
            source,
        })?;
    let mut entries = entries.into_inner();
    let available: Vec<String> = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| match entry.tags().first() {
            Some(tag) => format!("{} (@{index})", printable(tag)),
            None => format!("@{index}"),
        })
        .collect();
    let several = entries.len() > 1;
    let place = match selector {
        ArchiveSelector::Only if several => {
            return Err(SourceError::SeveralImages {
                path: files.path().to_owned(),
                available,
            });
        }
        ArchiveSelector::Only => 0,
        ArchiveSelector::Index(index) => *index,
        // A name that was given twice means the image that got it last.
        ArchiveSelector::Name(name) => entries
            .iter()
            .rposition(|entry| entry.is_called(name))
            .unwrap_or(usize::MAX),
    };
    if place >= entries.len() {
        return Err(no_such_image(files, selector, available));
    }
    Ok(entries.swap_remove(place))
}

fn no_such_image(files: &Files, selector: &ArchiveSelector, available: Vec<String>) -> SourceError {
    let path = files.path().to_owned();
    if available.is_empty() {
        return SourceError::NoImages { path };
    }
    SourceError::NoSuchImage {
        path,
        wanted: selector.to_string().trim_start_matches(':').to_owned(),
        available,
    }
}

fn check_platform(platform: &Platform, choice: &PlatformChoice) -> Result<(), SourceError> {
    if choice.takes_single(platform) {
        return Ok(());
    }
    Err(SourceError::NoPlatform {
        wanted: choice.wanted(),
        available: vec![platform.to_string()],
    })
}

/// The digest that a config's name has in most archives: `<hex>.json`,
/// `sha256:<hex>`, `blobs/sha256/<hex>`. Some tools write just `config.json`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let name = name.strip_suffix(".json").unwrap_or(name);
    let hex = name
        .strip_prefix("blobs/sha256/")
        .or_else(|| name.strip_prefix("sha256:"))
        .unwrap_or(name);
    Digest::from_hex(hex)
}

fn open_member(files: &Files, name: &str) -> Result<Opened, SourceError> {
    files.open(name)?.ok_or_else(|| missing(files, name))
}

fn missing(files: &Files, name: &str) -> SourceError {
    SourceError::Missing {
        path: files.path().to_owned(),
        name: printable(name),
        remedy: "the archive is incomplete, save the image again",
    }
}

#[cfg(test)]
mod tests;
