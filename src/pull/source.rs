//! Sources of an image for the stager: a repository, and what the store has
//! already.

use super::LOOK_EVERY;
use super::access::Book;
use super::jobs::Handle;
use crate::chain::{Chain, find};
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::image::platform::{Platform, PlatformChoice};
use crate::image::registry::{Blob, RegistryError, Session};
use crate::image::{
    Compression, Image, ImageSource, LayerContent, LayerDescriptor, SourceError, resolve,
};
use crate::layer::ingest::{IngestError, LayerError};
use crate::layer::store::{ImageRecord, StoreError};
use crate::stage::{StageError, TakeError};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An image in a repository, for one job.
#[derive(Debug)]
pub(super) struct Remote<'a> {
    pub(super) name: String,
    /// `registry/repository`.
    pub(super) repository: String,
    pub(super) session: Arc<Session>,
    /// What the name leads to: a manifest or an index.
    pub(super) root: Descriptor,
    pub(super) book: &'a Book,
    /// Whether any layer may be the store's own.
    pub(super) by_operator: bool,
    blobs: Mutex<Blobs>,
}

#[derive(Debug, Default)]
struct Blobs {
    /// By the layer's number.
    by_layer: BTreeMap<usize, Arc<Blob>>,
    /// diffIDs of those that were asked for.
    diff_ids: BTreeSet<String>,
    /// Layers that were fetched a second time.
    again: BTreeSet<usize>,
}

impl<'a> Remote<'a> {
    pub(super) fn new(
        name: String,
        repository: String,
        session: Arc<Session>,
        root: Descriptor,
        book: &'a Book,
        by_operator: bool,
    ) -> Self {
        Remote {
            name,
            repository,
            session,
            root,
            book,
            by_operator,
            blobs: Mutex::default(),
        }
    }

    fn blobs(&self) -> MutexGuard<'_, Blobs> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// diffIDs of all layers that came from here.
    pub(super) fn delivered(&self) -> Vec<String> {
        self.blobs().diff_ids.iter().cloned().collect()
    }

    /// Bytes that came over the network.
    pub(super) fn fetched_bytes(&self) -> u64 {
        let blobs = self.blobs();
        blobs
            .by_layer
            .values()
            .map(|blob| blob.progress().network)
            .sum()
    }

    /// Does `work`; should the job be ended meanwhile, whoever reads a blob reads
    /// no further, however long the network is silent.
    pub(super) fn cancelled_by<T>(&self, handle: &Handle, work: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    if handle.cancel().load(Ordering::Relaxed) {
                        for blob in self.blobs().by_layer.values() {
                            blob.cancel();
                        }
                    }
                    std::thread::park_timeout(LOOK_EVERY);
                }
            });
            let result = work();
            done.store(true, Ordering::Release);
            watch.thread().unpark();
            result
        })
    }

    /// The blobs are not needed any more: their layers are in the store, or there
    /// is no room for them.
    pub(super) fn remove_blobs(&self) {
        for blob in std::mem::take(&mut self.blobs().by_layer).values() {
            blob.remove();
        }
    }

    /// After a failure: whether it was the fault of a blob that came broken, which
    /// will now come from elsewhere. Each gets one such chance.
    pub(super) fn fetch_again(&self, error: &StageError) -> bool {
        let Some((index, blob)) = self.blamed(error) else {
            return false;
        };
        // What is just as it was pushed will be no better the next time.
        if is_sound(&blob) || !self.blobs().again.insert(index) {
            return false;
        }
        tracing::warn!(
            layer = index + 1,
            hosts = blob.hosts(),
            error = %Chain(error),
            "a layer came broken and is fetched once more"
        );
        blob.discard();
        true
    }

    /// After the last failure: a blob whose bytes are to blame is found by nobody
    /// else.
    pub(super) fn refuse(&self, error: &StageError) {
        if let Some((_, blob)) = self.blamed(error) {
            blob.refuse();
        }
    }

    /// The layer whose bytes may be to blame for a failure.
    fn blamed(&self, error: &StageError) -> Option<(usize, Arc<Blob>)> {
        let StageError::Ingest(IngestError::Layer { index, source, .. }) = error else {
            return None;
        };
        let of_content = match source {
            LayerError::BlobDigest { .. }
            | LayerError::BlobTooLong { .. }
            | LayerError::BlobTooShort { .. }
            | LayerError::DiffId { .. }
            | LayerError::Decompress { .. }
            | LayerError::Archive { .. }
            | LayerError::UnpackedBytes { .. }
            | LayerError::Ratio { .. }
            | LayerError::Consumer {
                source: TakeError::Unpack(_),
            } => true,
            // A download that went on with an earlier one's bytes says so itself.
            LayerError::Read { .. } => {
                matches!(find(source), Some(RegistryError::Digest { .. }))
            }
            _ => false,
        };
        if !of_content {
            return None;
        }
        let blob = self.blobs().by_layer.get(index).cloned();
        blob.map(|blob| (*index, blob))
    }

    /// Begins to fetch those layers that are not being fetched yet.
    fn fetch(&self, image: &Image, layers: &[usize]) -> Result<(), SourceError> {
        let mut missing = Vec::with_capacity(layers.len());
        let mut wanted = Vec::with_capacity(layers.len());
        for &index in layers {
            if self.blobs().by_layer.contains_key(&index) {
                continue;
            }
            let layer = layer(image, index)?;
            let (Some(digest), Some(size)) = (layer.digest, layer.size) else {
                return Err(SourceError::Notes {
                    reason: format!("layer {} has no digest or no size", index + 1),
                });
            };
            missing.push(index);
            wanted.push((digest, size));
        }
        let fetched = self.session.fetch(&wanted)?;
        self.blobs()
            .by_layer
            .extend(missing.into_iter().zip(fetched));
        Ok(())
    }
}

impl ImageSource for Remote<'_> {
    fn image(&self, platform: &PlatformChoice) -> Result<Image, SourceError> {
        let documents = self.session.documents();
        let resolved = resolve(&documents, &self.root, None, platform)?;
        Ok(resolved.into_image(self.name.clone()))
    }

    fn open_layer(&self, image: &Image, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        self.fetch(image, &[index])?;
        let blobs = self.blobs();
        let blob = blobs.by_layer.get(&index).ok_or(SourceError::NotStored)?;
        Ok(Box::new(blob.reader()))
    }

    fn prepare(&self, image: &Image, layers: &[usize]) -> Result<(), SourceError> {
        let diff_ids = layers
            .iter()
            .map(|&index| Ok(layer(image, index)?.diff_id.to_string()))
            .collect::<Result<Vec<_>, SourceError>>()?;
        self.book.expect(&diff_ids).map_err(notes)?;
        self.fetch(image, layers)?;
        self.blobs().diff_ids.extend(diff_ids);
        Ok(())
    }

    fn may_reuse(&self, diff_id: &Digest) -> Result<bool, SourceError> {
        if self.by_operator {
            return Ok(true);
        }
        self.book
            .may_reuse(&self.repository, &diff_id.to_string())
            .map_err(notes)
    }
}

/// An image of which the store should have every layer, in some form.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    image: Image,
    repository: &'a str,
    book: &'a Book,
    by_operator: bool,
}

impl<'a> Stored<'a> {
    /// None where the record is not one that this version wrote.
    pub(super) fn new(
        name: String,
        record: &ImageRecord,
        repository: &'a str,
        book: &'a Book,
        by_operator: bool,
    ) -> Option<Self> {
        let digest = |text: &str| text.parse::<Digest>().ok();
        let layers = record
            .layers
            .iter()
            .map(|layer| {
                Some(LayerDescriptor {
                    digest: layer.digest.as_deref().and_then(digest),
                    diff_id: digest(&layer.diff_id)?,
                    size: layer.size,
                    compression: Compression::Sniff,
                    // Nothing of it will be read.
                    content: LayerContent::Tar,
                })
            })
            .collect::<Option<_>>()?;
        Some(Stored {
            image: Image {
                name,
                manifest_digest: digest(&record.manifest)?,
                config: Vec::new(),
                config_digest: digest(&record.config)?,
                layers,
                platform: record.platform.parse::<Platform>().ok()?,
            },
            repository,
            book,
            by_operator,
        })
    }
}

impl ImageSource for Stored<'_> {
    fn image(&self, _: &PlatformChoice) -> Result<Image, SourceError> {
        Ok(self.image.clone())
    }

    fn open_layer(&self, _: &Image, _: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        Err(SourceError::NotStored)
    }

    fn prepare(&self, _: &Image, layers: &[usize]) -> Result<(), SourceError> {
        match layers {
            [] => Ok(()),
            _ => Err(SourceError::NotStored),
        }
    }

    fn may_reuse(&self, diff_id: &Digest) -> Result<bool, SourceError> {
        if self.by_operator {
            return Ok(true);
        }
        self.book
            .may_reuse(self.repository, &diff_id.to_string())
            .map_err(notes)
    }
}

/// A local image that a pod named. Its own bytes it may have; those that another
/// pod's secret brought from a registry are for whoever has them in the image too.
#[derive(Debug)]
pub(crate) struct Local<'a> {
    source: &'a dyn ImageSource,
    name: &'a str,
    book: &'a Book,
    read: Mutex<Vec<String>>,
}

impl<'a> Local<'a> {
    pub(crate) fn new(source: &'a dyn ImageSource, name: &'a str, book: &'a Book) -> Self {
        Local {
            source,
            name,
            book,
            read: Mutex::default(),
        }
    }

    /// The image is staged, so all that was read is what it should be.
    pub(crate) fn delivered(self) -> Result<(), StoreError> {
        let read = self
            .read
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        self.book.note_delivered_locally(self.name, &read)
    }
}

impl ImageSource for Local<'_> {
    fn image(&self, platform: &PlatformChoice) -> Result<Image, SourceError> {
        self.source.image(platform)
    }

    fn open_layer(&self, image: &Image, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        self.source.open_layer(image, index)
    }

    fn prepare(&self, image: &Image, layers: &[usize]) -> Result<(), SourceError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for &index in layers {
            read.push(layer(image, index)?.diff_id.to_string());
        }
        self.source.prepare(image, layers)
    }

    fn may_reuse(&self, diff_id: &Digest) -> Result<bool, SourceError> {
        self.book
            .may_reuse(self.name, &diff_id.to_string())
            .map_err(notes)
    }
}

/// Whether all of a blob has come and is what its digest says.
fn is_sound(blob: &Arc<Blob>) -> bool {
    blob.wait().is_ok()
        && Digest::of_reader(blob.reader()).is_ok_and(|digest| digest == blob.digest())
}

fn layer(image: &Image, index: usize) -> Result<&LayerDescriptor, SourceError> {
    image.layers.get(index).ok_or(SourceError::LayerIndex {
        index,
        layers: image.layers.len(),
    })
}

fn notes(error: StoreError) -> SourceError {
    SourceError::Notes {
        reason: Chain(&error).to_string(),
    }
}

impl From<RegistryError> for StageError {
    fn from(error: RegistryError) -> Self {
        StageError::Source(SourceError::Registry(error))
    }
}
