//! From the document that a name leads to, to the one manifest and config that
//! fit a platform.

use super::digest::Digest;
use super::error::SourceError;
use super::manifest::{
    Descriptor, Document, ImageConfig, IndexEntry, MAX_DOCUMENT_BYTES, Manifest, ManifestError,
    parse_config, parse_document,
};
use super::platform::{Platform, PlatformChoice};
use super::{Image, LayerDescriptor};
use std::collections::HashSet;

/// How deep indexes may be nested, the outermost included.
pub const MAX_DEPTH: usize = 4;
/// The most documents that one resolution reads. An index that states
/// platforms, as all real ones do, needs three.
pub const MAX_DOCUMENTS: usize = 256;

/// Gives documents by digest: a layout, or a registry's repository.
pub trait Documents {
    /// The bytes; an error if there are none. They are verified by the caller,
    /// and `descriptor.size` is at most [`MAX_DOCUMENT_BYTES`]: more than that
    /// need not be read.
    fn load(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError>;
}

/// A manifest with its config, both verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest.
    pub manifest: Manifest,
    /// Its digest.
    pub manifest_digest: Digest,
    /// The config's bytes; none of an artifact.
    pub config_bytes: Vec<u8>,
    /// What they say.
    pub config: ImageConfig,
    /// What the image is for; what an index says goes before the config.
    pub platform: Platform,
    /// How well that fits: 0 is best, none is not at all.
    pub rank: Option<usize>,
}

impl Resolved {
    /// What it is for, in the words of an error.
    pub(super) fn offered(&self) -> String {
        if self.manifest.is_artifact && self.platform.is_unspecified() {
            return "an artifact of files".to_owned();
        }
        self.platform.to_string()
    }

    /// The image under the name `name`.
    pub fn into_image(self, name: String) -> Image {
        let layers = self.manifest.layers.iter().zip(&self.config.diff_ids);
        Image {
            name,
            manifest_digest: self.manifest_digest,
            config_digest: self.manifest.config.digest,
            layers: layers
                .map(|(layer, diff_id)| LayerDescriptor {
                    digest: Some(layer.digest),
                    diff_id: *diff_id,
                    size: Some(layer.size),
                    compression: layer.compression,
                    content: layer.content.clone(),
                })
                .collect(),
            config: self.config_bytes,
            platform: self.platform,
        }
    }
}

/// Finds the image that `root` leads to. Where `root` is the manifest of one
/// image, [`PlatformChoice::Host`] takes it whatever it is for.
pub fn resolve(
    documents: &dyn Documents,
    root: &Descriptor,
    stated: Option<&Platform>,
    choice: &PlatformChoice,
) -> Result<Resolved, SourceError> {
    let mut search = Search::new(documents, choice);
    search.seen.insert(root.digest);
    let best = match search.parse(root)? {
        Document::Manifest(manifest) => {
            let resolved = search.load_config(root.digest, manifest, stated)?;
            search.available.push(resolved.offered());
            let is_for_all = resolved.manifest.is_artifact && resolved.platform.is_unspecified();
            let fits = is_for_all || choice.takes_single(&resolved.platform);
            fits.then_some(resolved)
        }
        Document::Index(entries) => search.best_of(root.digest, &entries)?,
    };
    best.ok_or_else(|| SourceError::NoPlatform {
        wanted: choice.wanted(),
        available: search.available,
    })
}

/// Reads a document and verifies that it is the one described.
fn load_verified(
    documents: &dyn Documents,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, SourceError> {
    let digest = descriptor.digest;
    if descriptor.size > MAX_DOCUMENT_BYTES {
        return Err(SourceError::DocumentSize {
            digest,
            size: descriptor.size,
        });
    }
    let bytes = documents.load(descriptor)?;
    if bytes.len() as u64 != descriptor.size {
        return Err(SourceError::BlobSize {
            digest,
            expected: descriptor.size,
            found: bytes.len() as u64,
        });
    }
    let found = Digest::of(&bytes);
    if found != digest {
        return Err(SourceError::BlobDigest { digest, found });
    }
    Ok(bytes)
}

struct Search<'a> {
    documents: &'a dyn Documents,
    choice: &'a PlatformChoice,
    /// How many indexes the search is inside of.
    depth: usize,
    /// What was looked into, so that an index which names the same thing a
    /// thousand times is not a thousand times the work.
    seen: HashSet<Digest>,
    read: usize,
    /// Platforms that were offered and do not fit.
    available: Vec<String>,
}

impl<'a> Search<'a> {
    fn new(documents: &'a dyn Documents, choice: &'a PlatformChoice) -> Self {
        Search {
            documents,
            choice,
            depth: 0,
            seen: HashSet::new(),
            read: 0,
            available: Vec::new(),
        }
    }

    fn parse(&mut self, descriptor: &Descriptor) -> Result<Document, SourceError> {
        let bytes = self.load(descriptor)?;
        parse_document(&bytes, &descriptor.media_type).map_err(document(descriptor.digest))
    }

    fn load(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        if self.read == MAX_DOCUMENTS {
            return Err(SourceError::TooManyDocuments);
        }
        self.read += 1;
        load_verified(self.documents, descriptor)
    }

    /// The best image that the entries of `index` lead to. What states its
    /// platform goes first, for if that fits nothing else need be read.
    fn best_of(
        &mut self,
        index: Digest,
        entries: &[IndexEntry],
    ) -> Result<Option<Resolved>, SourceError> {
        if self.depth == MAX_DEPTH {
            return Err(SourceError::TooDeep { digest: index });
        }
        self.depth += 1;
        let mut stated = Vec::new();
        let mut silent = Vec::new();
        for entry in entries.iter().filter(|entry| entry.is_candidate()) {
            match &entry.platform {
                Some(platform) => match self.choice.rank(platform) {
                    Some(rank) => stated.push((rank, entry, platform)),
                    None => self.available.push(platform.to_string()),
                },
                None => silent.push(entry),
            }
        }
        // The sort is stable: of two that fit equally the first one counts.
        stated.sort_by_key(|(rank, ..)| *rank);
        let mut best: Option<Resolved> = None;
        for (_, entry, platform) in stated {
            best = self.follow(index, entry, Some(platform))?;
            if best.is_some() {
                break;
            }
        }
        let rank = |found: &Option<Resolved>| {
            let rank = found.as_ref().and_then(|found| found.rank);
            rank.unwrap_or(usize::MAX)
        };
        for entry in silent {
            if rank(&best) == 0 {
                break;
            }
            let found = self.follow(index, entry, None)?;
            if rank(&found) < rank(&best) {
                best = found;
            }
        }
        self.depth -= 1;
        Ok(best)
    }

    /// What an entry of `index` leads to, if that fits the platform.
    fn follow(
        &mut self,
        index: Digest,
        entry: &IndexEntry,
        stated: Option<&Platform>,
    ) -> Result<Option<Resolved>, SourceError> {
        let descriptor = entry.descriptor().map_err(document(index))?;
        let digest = descriptor.digest;
        // This also ends a loop, should digests ever allow one.
        if !self.seen.insert(digest) {
            return Ok(None);
        }
        match self.parse(&descriptor) {
            Ok(Document::Manifest(manifest)) => {
                let resolved = self.load_config(digest, manifest, stated)?;
                if resolved.rank.is_none() {
                    self.available.push(resolved.offered());
                    return Ok(None);
                }
                Ok(Some(resolved))
            }
            Ok(Document::Index(entries)) => self.best_of(digest, &entries),
            // Signatures and the like that lie beside the images.
            Err(SourceError::Document {
                source: ManifestError::Artifact { artifact },
                ..
            }) if stated.is_none() => {
                self.available.push(artifact);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn load_config(
        &mut self,
        manifest_digest: Digest,
        manifest: Manifest,
        stated: Option<&Platform>,
    ) -> Result<Resolved, SourceError> {
        if let Some(diff_ids) = manifest.own_diff_ids() {
            return Ok(self.artifact(manifest_digest, manifest, diff_ids, stated));
        }
        let config_bytes = self.load(&manifest.config)?;
        let config = parse_config(&config_bytes).map_err(document(manifest.config.digest))?;
        config
            .check_layers(manifest.layers.len())
            .map_err(document(manifest_digest))?;
        let platform = stated.unwrap_or(&config.platform).clone();
        Ok(Resolved {
            rank: self.choice.rank(&platform),
            manifest,
            manifest_digest,
            config_bytes,
            config,
            platform,
        })
    }
}

impl Search<'_> {
    /// Files are for every platform, unless an index says something else. Beside
    /// images in an index, they are what was added to those: signatures, lists of
    /// parts. Their config has no bearing on the files, and is not read.
    fn artifact(
        &self,
        manifest_digest: Digest,
        manifest: Manifest,
        diff_ids: Vec<Digest>,
        stated: Option<&Platform>,
    ) -> Resolved {
        let platform = stated.cloned().unwrap_or_else(|| Platform::new("", "", ""));
        Resolved {
            rank: stated.and_then(|stated| self.choice.rank(stated)),
            manifest,
            manifest_digest,
            config_bytes: Vec::new(),
            config: ImageConfig {
                platform: platform.clone(),
                diff_ids,
            },
            platform,
        }
    }
}

fn document(digest: Digest) -> impl Fn(ManifestError) -> SourceError {
    move |source| SourceError::Document { digest, source }
}

#[cfg(test)]
mod tests;
