//! OCI image layouts, as directories and as tars.

use super::digest::Digest;
use super::error::SourceError;
use super::files::{Files, Opened};
use super::manifest::{
    Descriptor, Document, IndexEntry, Kind, ManifestError, OCI_INDEX, from_json, parse_document,
};
use super::platform::PlatformChoice;
use super::reference::{ImageName, LayoutSelector};
use super::resolve::{Documents, MAX_DOCUMENTS, Resolved, resolve};
use super::{Image, ImageSource, printable};
use std::collections::HashSet;
use std::io::Read;

#[cfg(any(test, feature = "testing"))]
pub mod check;

const LAYOUT_FILE: &str = "oci-layout";
const INDEX_FILE: &str = "index.json";

/// An open layout and the choice of an image in it.
#[derive(Debug)]
pub(super) struct Layout {
    name: String,
    files: Files,
    selector: LayoutSelector,
    entries: Vec<IndexEntry>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

impl Layout {
    /// Reads which images there are.
    pub(super) fn open(
        name: String,
        files: Files,
        selector: LayoutSelector,
    ) -> Result<Self, SourceError> {
        let malformed = |file: &str, source| SourceError::List {
            path: files.path().to_owned(),
            name: file.to_owned(),
            source,
        };
        let layout: LayoutFile = from_json(&required(&files, LAYOUT_FILE)?)
            .map_err(|source| malformed(LAYOUT_FILE, source))?;
        if !layout.image_layout_version.starts_with("1.") {
            return Err(SourceError::LayoutVersion {
                path: files.path().to_owned(),
                version: printable(&layout.image_layout_version),
            });
        }
        let index = required(&files, INDEX_FILE)?;
        let entries = match parse_document(&index, OCI_INDEX) {
            Ok(Document::Index(entries)) => entries,
            // The media type that is passed in rules it out.
            Ok(Document::Manifest(_)) => {
                let source = ManifestError::MediaType {
                    media_type: OCI_INDEX.to_owned(),
                    actual: Kind::Manifest,
                };
                return Err(malformed(INDEX_FILE, source));
            }
            Err(source) => return Err(malformed(INDEX_FILE, source)),
        };
        Ok(Layout {
            name,
            files,
            selector,
            entries,
        })
    }

    /// The entries that the selector leaves.
    fn selected(&self) -> impl Iterator<Item = &IndexEntry> {
        let entries = self.entries.iter();
        entries.filter(|entry| entry.is_candidate() && selects(&self.selector, entry))
    }

    /// The same, each digest once.
    fn candidates(&self) -> Vec<&IndexEntry> {
        let mut seen = HashSet::new();
        self.selected()
            .filter(|entry| seen.insert(entry.digest.as_str()))
            .collect()
    }

    fn nothing_selected(&self) -> SourceError {
        let path = self.files.path().to_owned();
        let images = self.entries.iter().filter(|entry| entry.is_candidate());
        let available: Vec<String> = images.map(shown).collect();
        if available.is_empty() {
            return SourceError::NoImages { path };
        }
        SourceError::NoSuchImage {
            path,
            wanted: self.selector.to_string().trim_start_matches(':').to_owned(),
            available,
        }
    }

    fn resolve_entry(
        &self,
        entry: &IndexEntry,
        choice: &PlatformChoice,
    ) -> Result<Resolved, SourceError> {
        let descriptor = entry.descriptor().map_err(|source| SourceError::List {
            path: self.files.path().to_owned(),
            name: INDEX_FILE.to_owned(),
            source,
        })?;
        resolve(&self.files, &descriptor, entry.platform.as_ref(), choice)
    }

    /// Of several candidates the one that fits the platform, if no other name
    /// fits as well.
    fn choose(
        &self,
        candidates: &[&IndexEntry],
        choice: &PlatformChoice,
    ) -> Result<Resolved, SourceError> {
        let several = || SourceError::SeveralImages {
            path: self.files.path().to_owned(),
            // All the names, also those that mean the same image.
            available: self.selected().map(shown).collect(),
        };
        if candidates.len() > MAX_DOCUMENTS {
            return Err(several());
        }
        let mut fitting: Vec<(usize, &IndexEntry, Resolved)> = Vec::new();
        let mut others = Vec::new();
        for entry in candidates {
            if let Some(platform) = &entry.platform
                && choice.rank(platform).is_none()
            {
                others.push(platform.to_string());
                continue;
            }
            match self.resolve_entry(entry, choice) {
                Ok(resolved) => match resolved.rank {
                    Some(rank) => fitting.push((rank, entry, resolved)),
                    None => others.push(resolved.offered()),
                },
                Err(SourceError::NoPlatform { available, .. }) => others.extend(available),
                Err(SourceError::Document {
                    source: ManifestError::Artifact { artifact },
                    ..
                }) => others.push(artifact),
                Err(error) => return Err(error),
            }
        }
        fitting.sort_by_key(|(rank, ..)| *rank);
        let mut fitting = fitting.into_iter();
        let Some((rank, entry, best)) = fitting.next() else {
            return Err(SourceError::NoPlatform {
                wanted: choice.wanted(),
                available: others,
            });
        };
        for (other_rank, other, resolved) in fitting {
            let same_image = resolved.manifest_digest == best.manifest_digest;
            let worse_platform = other_rank > rank && names(other) == names(entry);
            if !same_image && !worse_platform {
                return Err(several());
            }
        }
        Ok(best)
    }
}

impl ImageSource for Layout {
    fn image(&self, platform: &PlatformChoice) -> Result<Image, SourceError> {
        let resolved = match self.candidates()[..] {
            [] => return Err(self.nothing_selected()),
            [entry] => self.resolve_entry(entry, platform)?,
            ref several => self.choose(several, platform)?,
        };
        Ok(resolved.into_image(self.name.clone()))
    }

    fn open_layer(&self, image: &Image, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let layer = image.layers.get(index).ok_or(SourceError::LayerIndex {
            index,
            layers: image.layers.len(),
        })?;
        // Layers of a layout have digests; one that has none is not of ours.
        let digest = layer.digest.unwrap_or(layer.diff_id);
        let opened = open_blob(&self.files, &digest)?;
        match layer.size {
            Some(expected) if expected != opened.size => Err(SourceError::BlobSize {
                digest,
                expected,
                found: opened.size,
            }),
            _ => Ok(opened.reader),
        }
    }
}

impl Documents for Files {
    fn load(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let name = blob_name(&descriptor.digest);
        self.read(&name)?.ok_or_else(|| SourceError::MissingBlob {
            path: self.path().to_owned(),
            digest: descriptor.digest,
        })
    }
}

/// Where a layout keeps a blob. Digests are parsed, so nothing foreign gets
/// into the path.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn open_blob(files: &Files, digest: &Digest) -> Result<Opened, SourceError> {
    files
        .open(&blob_name(digest))?
        .ok_or_else(|| SourceError::MissingBlob {
            path: files.path().to_owned(),
            digest: *digest,
        })
}

/// Reads a file that every layout has.
fn required(files: &Files, name: &str) -> Result<Vec<u8>, SourceError> {
    if let Some(bytes) = files.read(name)? {
        return Ok(bytes);
    }
    let remedy = match files {
        Files::Archive { .. } if files.open("manifest.json")?.is_some() => {
            "it is a Docker archive: use docker-archive:"
        }
        Files::Archive { .. } => "it is not a tar of an OCI image layout",
        Files::Directory(_) => "it is not an OCI image layout",
    };
    Err(SourceError::Missing {
        path: files.path().to_owned(),
        name: name.to_owned(),
        remedy,
    })
}

fn selects(selector: &LayoutSelector, entry: &IndexEntry) -> bool {
    match selector {
        LayoutSelector::Only => true,
        LayoutSelector::Digest(digest) => entry.digest == digest.to_string(),
        LayoutSelector::Name(name) => {
            let wanted = Some(name.as_str());
            entry.ref_name.as_deref() == wanted
                || entry.image_name.as_deref() == wanted
                || entry
                    .image_name
                    .as_deref()
                    .is_some_and(|full| same_image(full, name))
        }
    }
}

/// Whether two names mean the same once they are completed.
fn same_image(left: &str, right: &str) -> bool {
    match (left.parse::<ImageName>(), right.parse::<ImageName>()) {
        (Ok(left), Ok(right)) => left == right,
        _ => false,
    }
}

fn names(entry: &IndexEntry) -> (Option<&str>, Option<&str>) {
    (entry.ref_name.as_deref(), entry.image_name.as_deref())
}

/// What to write after the path in order to choose an entry.
fn shown(entry: &IndexEntry) -> String {
    match entry.image_name.as_ref().or(entry.ref_name.as_ref()) {
        Some(name) => printable(name),
        None => printable(&format!("@{}", entry.digest)),
    }
}

#[cfg(test)]
mod tests;
