//! Staging: from an image's source to branches in the store.
//!
//! All layers that the store lacks are fetched and unpacked in parallel, each
//! alone; then the stack is sealed, the edits are made, and each branch is
//! committed by rename, lowest first. A layer that is in the store in another
//! form is copied from there instead of being fetched again.

mod branch;
mod descriptors;
mod error;
mod joined;
mod made;
mod progress;
mod sink;

pub use descriptors::raise_descriptor_limit;
pub use error::{Layers, StageError};
pub use progress::{Phase, Progress, Pulled};
pub use sink::TakeError;

use crate::image::digest::Digest;
use crate::image::platform::PlatformChoice;
use crate::image::{Image, ImageSource, LayerContent, LayerDescriptor};
use crate::layer::decompress::Compression;
use crate::layer::index::{Attrs, Index};
use crate::layer::ingest::{self, LayerJob, StageTimes};
use crate::layer::limits::Limits;
use crate::layer::seal::images::Piece;
use crate::layer::seal::{self, Format, Sealed, Visible};
use crate::layer::store::{
    BranchId, BranchRecord, Held, ImageRecord, Ingest, LayerEntry, Lease, SealedForm, Store,
};
use crate::layer::tree::Ownership;
use branch::{branch_key, flat_key};
use made::{ListError, Made, Pieces};
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How layers are staged.
#[derive(Debug, Clone, Default)]
pub struct StageOptions {
    /// Bounds of each layer.
    pub limits: Limits,
    /// Layers at work at the same time; none for what suits the machine.
    pub workers: Option<usize>,
    /// Ends what is being staged, when it is set, at the next chunk of each layer.
    pub cancel: Arc<AtomicBool>,
    /// Bytes that all branches of the store may have together; none for any number.
    pub max_store: Option<u64>,
}

/// An image that is in the store, for one format.
#[derive(Debug, Clone)]
pub struct StagedImage {
    /// The image.
    pub image: ImageRecord,
    /// Its branches in that format.
    pub form: SealedForm,
    /// Layers that were fetched now, out of all.
    pub fetched: usize,
    /// Where the time of each of them went, the lowest layer first.
    pub times: Vec<StageTimes>,
    /// What waiting for the disk took, by the clock on the wall; nothing where
    /// that was not asked for, or all was there already.
    pub flush: Duration,
    /// Keeps the branches from being collected until something else does.
    pub lease: Arc<Lease>,
}

/// Stages images into a store.
#[derive(Debug)]
pub struct Stager<'a> {
    /// The store.
    pub store: &'a Store,
    /// How.
    pub options: StageOptions,
    /// Whose the files are to be.
    pub ownership: Ownership,
    /// Branches of one image at most; more are made one, from the lowest up.
    pub max_branches: usize,
}

/// A layer's place in the store or in the work directory.
enum Place {
    /// Unpacked just now.
    Fresh(Unpacked),
    /// In the store, as this branch.
    Stored(BranchRecord),
}

/// A layer that was unpacked into the work directory, not sealed yet.
struct Unpacked {
    tree: PathBuf,
    index: PathBuf,
    tar_bytes: u64,
    times: StageTimes,
}

impl Stager<'_> {
    /// Makes an image ready for unions of `format`, and notes that `name` leads to
    /// it.
    pub fn stage(
        &self,
        source: &dyn ImageSource,
        name: &str,
        platform: &PlatformChoice,
        format: Format,
        progress: &dyn Progress,
    ) -> Result<StagedImage, StageError> {
        let resolved = crate::layer::store::clock();
        let staged = self.stage_unnamed(source, platform, format, progress)?;
        self.store
            .note(
                name,
                &platform.to_string(),
                &staged.image.manifest,
                resolved,
            )
            .map_err(StageError::Store)?;
        Ok(staged)
    }

    /// Makes an image ready for unions of `format`.
    pub fn stage_unnamed(
        &self,
        source: &dyn ImageSource,
        platform: &PlatformChoice,
        format: Format,
        progress: &dyn Progress,
    ) -> Result<StagedImage, StageError> {
        let image = source.image(platform).map_err(StageError::Source)?;
        let manifest = image.manifest_digest.to_string();
        let _shared = self.store.lock_shared().map_err(StageError::Store)?;
        let lease = Lease::begin(self.store, &format!("staging {manifest}"));
        let lease = Arc::new(lease.map_err(StageError::Store)?);
        if let Some((record, form)) = self.usable(&manifest, format, &lease)?
            && may_reuse_all(source, &image)?
        {
            self.store.touch(&manifest).map_err(StageError::Store)?;
            return Ok(StagedImage {
                form,
                image: record,
                fetched: 0,
                times: Vec::new(),
                flush: Duration::ZERO,
                lease,
            });
        }
        let (form, times) = self.build(source, &image, format, &lease, progress)?;
        let record = self
            .store
            .put_form(new_record(&image), format.name(), form.clone())
            .map_err(StageError::Store)?;
        Ok(StagedImage {
            image: record,
            form,
            fetched: times.len(),
            times,
            flush: Duration::ZERO,
            lease,
        })
    }

    /// The image as the store has it, if that is all of it. From here on it stays.
    fn usable(
        &self,
        manifest: &str,
        format: Format,
        lease: &Lease,
    ) -> Result<Option<(ImageRecord, SealedForm)>, StageError> {
        let look = || self.store.image(manifest).map_err(StageError::Store);
        let form_of = |record: &ImageRecord| record.sealed.get(format.name()).cloned();
        let mut found = look()?;
        loop {
            let form = found.as_ref().and_then(form_of);
            let held = Held {
                images: vec![manifest.to_owned()],
                branches: form.iter().flat_map(|form| form.branches.clone()).collect(),
                ..Held::default()
            };
            lease.hold(self.store, &held).map_err(StageError::Store)?;
            // It may have been collected before it was held.
            let now = look()?;
            if now.as_ref().and_then(form_of) != form {
                found = now;
                continue;
            }
            return match (now, form) {
                (Some(record), Some(form)) if self.is_usable(&form)? => Ok(Some((record, form))),
                _ => Ok(None),
            };
        }
    }

    fn is_usable(&self, form: &SealedForm) -> Result<bool, StageError> {
        if form.branches.len() > self.max_branches {
            return Ok(false);
        }
        for id in &form.branches {
            if self.store.branch(id).map_err(StageError::Store)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fetches, seals and commits what is missing.
    fn build(
        &self,
        source: &dyn ImageSource,
        image: &Image,
        format: Format,
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<(SealedForm, Vec<StageTimes>), StageError> {
        let work = Ingest::begin(self.store).map_err(StageError::Store)?;
        let mut stored: HashMap<String, BranchRecord> = HashMap::new();
        let mut store_bytes = 0;
        for branch in self.store.branches().map_err(StageError::Store)? {
            store_bytes += branch.disk_bytes();
            if let Some(diff_id) = branch.diff_id.clone()
                && image
                    .layers
                    .iter()
                    .any(|layer| layer.diff_id.to_string() == diff_id)
            {
                // Any form has the index; one that was only added to can be copied.
                let entry = stored.entry(diff_id).or_insert_with(|| branch.clone());
                if branch.additive {
                    *entry = branch;
                }
            }
        }
        // From here on they stay, and so does what is known of layers to come; what
        // went before that is fetched.
        let held = Held {
            branches: stored.values().map(|branch| branch.id.clone()).collect(),
            layers: image
                .layers
                .iter()
                .map(|layer| layer.diff_id.to_string())
                .collect(),
            ..Held::default()
        };
        lease.hold(self.store, &held).map_err(StageError::Store)?;
        for (diff_id, branch) in std::mem::take(&mut stored) {
            if self
                .store
                .branch(&branch.id)
                .map_err(StageError::Store)?
                .is_some()
            {
                stored.insert(diff_id, branch);
            }
        }
        let mut missing = Vec::new();
        for (number, layer) in image.layers.iter().enumerate() {
            let diff_id = layer.diff_id.to_string();
            if stored.contains_key(&diff_id)
                && !source
                    .may_reuse(&layer.diff_id)
                    .map_err(StageError::Source)?
            {
                stored.remove(&diff_id);
            }
            let again = image.layers[..number]
                .iter()
                .any(|other| other.diff_id == layer.diff_id);
            if !stored.contains_key(&diff_id) && !again {
                missing.push(number);
            }
        }
        if let Some(limit) = self.options.max_store {
            // As much at least: what they are compressed.
            let sizes = missing
                .iter()
                .filter_map(|&number| image.layers[number].size);
            // Whoever wrote the manifest wrote the sizes.
            let needs = sizes.fold(0, u64::saturating_add);
            if !missing.is_empty() && u64::saturating_add(store_bytes, needs) > limit {
                return Err(StageError::Limit {
                    limit,
                    has: store_bytes,
                    needs,
                });
            }
        }
        let mut places: HashMap<String, Place> = stored
            .into_iter()
            .map(|(diff_id, branch)| (diff_id, Place::Stored(branch)))
            .collect();
        let mut times = Vec::with_capacity(missing.len());
        for (number, unpacked) in self.fetch(source, image, &missing, &work, progress)? {
            times.push(unpacked.times);
            places.insert(
                image.layers[number].diff_id.to_string(),
                Place::Fresh(unpacked),
            );
        }

        let mut indexes = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            indexes.push(self.index_of(&places, layer)?);
        }
        progress.phase(Phase::Sealing);
        let limits = &self.options.limits;
        let sealed =
            seal::seal(&indexes, format, limits, &|| work.scratch()).map_err(|source| {
                StageError::Seal {
                    layer: Layers::one(image, source.layer() - 1),
                    source,
                }
            })?;

        let mut ids: Vec<BranchId> = Vec::with_capacity(image.layers.len());
        let mut keys = Vec::with_capacity(image.layers.len());
        for number in 0..image.layers.len() {
            let diff_id = image.layers[number].diff_id.to_string();
            let key = branch_key(&diff_id, format, &sealed.edits[number], &ids);
            ids.push(BranchId::of(&key));
            keys.push(key);
        }
        let needed = sealed.base.min(ids.len());
        lease
            .hold_branches(self.store, &ids[needed..])
            .map_err(StageError::Store)?;
        // Those below are beneath an opaque root: no union has them.
        for number in needed..ids.len() {
            let id = &ids[number];
            if self.store.branch(id).map_err(StageError::Store)?.is_some() {
                continue;
            }
            self.make_branch(
                source,
                image,
                number,
                format,
                &keys[number],
                &ids[..=number],
                &sealed,
                &indexes,
                &mut places,
                &work,
                progress,
            )?;
        }

        let mut branches: Vec<BranchId> = Vec::new();
        for id in ids[needed..].iter().rev() {
            // The same branch again further down shows nothing that is not
            // hidden by the upper one, and the kernels refuse it.
            if !branches.contains(id) {
                branches.push(id.clone());
            }
        }
        if branches.len() > self.max_branches {
            self.flatten_bottom(image, &mut branches, &ids, &sealed, format, &work, lease)?;
        }
        let form = SealedForm {
            root_fits: self.root_fits(&branches, &sealed.root)?,
            branches,
            root: (&sealed.root).into(),
        };
        Ok((form, times))
    }

    fn index_of(
        &self,
        places: &HashMap<String, Place>,
        layer: &LayerDescriptor,
    ) -> Result<Index, StageError> {
        match places.get(&layer.diff_id.to_string()) {
            Some(Place::Fresh(unpacked)) => std::fs::File::open(&unpacked.index)
                .and_then(Index::open)
                .map_err(|source| StageError::Work {
                    path: unpacked.index.clone(),
                    source,
                }),
            Some(Place::Stored(branch)) => self.store.index(&branch.id).map_err(StageError::Store),
            None => Err(StageError::Lost {
                diff_id: layer.diff_id.to_string(),
            }),
        }
    }

    /// Fetches and unpacks some of an image's layers, in parallel.
    fn fetch(
        &self,
        source: &dyn ImageSource,
        image: &Image,
        numbers: &[usize],
        work: &Ingest,
        progress: &dyn Progress,
    ) -> Result<Vec<(usize, Unpacked)>, StageError> {
        source.prepare(image, numbers).map_err(StageError::Source)?;
        let jobs = numbers
            .iter()
            .map(|&number| {
                let layer = &image.layers[number];
                LayerJob {
                    index: number,
                    expected_digest: layer.digest.as_ref().map(|digest| *digest.bytes()),
                    expected_size: layer.size,
                    diff_id: *verified_as(layer).bytes(),
                    compression: compression(layer.compression),
                    open: Box::new(move || {
                        let reader: Box<dyn Read> =
                            source.open_layer(image, number).map_err(io::Error::other)?;
                        Ok(reader)
                    }),
                    consume: Box::new(move |stream| {
                        let limits = &self.options.limits;
                        sink::take(work, number, self.ownership, limits, layer, stream)
                    }),
                }
            })
            .collect();
        let counters = Arc::new(ingest::Progress::new(
            image.layers.iter().map(|layer| layer.size),
        ));
        progress.layers(&counters);
        progress.phase(Phase::Layers);
        let mut options = ingest::Options {
            limits: self.options.limits.clone(),
            ..ingest::Options::default()
        };
        if let Some(workers) = self.options.workers {
            options.workers = workers;
        }
        let outcomes = ingest::ingest_layers(jobs, &options, &counters, &self.options.cancel)
            .map_err(StageError::Ingest)?;
        Ok(outcomes
            .into_iter()
            .map(|outcome| {
                (
                    outcome.index,
                    Unpacked {
                        tree: outcome.value.tree,
                        index: outcome.value.index,
                        tar_bytes: outcome.facts.tar_bytes,
                        times: outcome.times,
                    },
                )
            })
            .collect())
    }

    /// Whether the uppermost branch's own root directory looks like the volume's.
    fn root_fits(&self, branches: &[BranchId], root: &Attrs) -> Result<bool, StageError> {
        use crate::layer::index::Node;
        let Some(top) = branches.first() else {
            return Ok(false);
        };
        let record = self
            .store
            .index(top)
            .map_err(StageError::Store)?
            .get(b"")
            .map_err(|source| StageError::Work {
                path: self.store.branch_dir(top),
                source,
            })?;
        let own = match record.and_then(|record| record.node) {
            Some(Node::Directory { attrs, .. }) => attrs,
            _ => Attrs::implied(),
        };
        Ok(own == *root)
    }

    /// Makes branches that are too many for the kernel one, from the lowest up.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of build, with its state"
    )]
    fn flatten_bottom(
        &self,
        image: &Image,
        branches: &mut Vec<BranchId>,
        ids: &[BranchId],
        sealed: &Sealed,
        format: Format,
        work: &Ingest,
        lease: &Lease,
    ) -> Result<(), StageError> {
        // The uppermost of those that go: everything below its place goes with it.
        let kept = self.max_branches.saturating_sub(1);
        let Some(highest) = branches
            .get(kept)
            .and_then(|id| ids.iter().rposition(|other| other == id))
        else {
            return Ok(());
        };
        branches.truncate(kept);
        let parts = &ids[sealed.base..=highest];
        let key = flat_key(parts);
        let id = BranchId::of(&key);
        lease
            .hold_branches(self.store, std::slice::from_ref(&id))
            .map_err(StageError::Store)?;
        if self.store.branch(&id).map_err(StageError::Store)?.is_none() {
            let range = sealed.base..highest + 1;
            let mut pieces =
                Pieces::new(range.len(), work).map_err(branch::work_error(work.path()))?;
            let mut root = None;
            seal::flatten::<ListError>(&sealed.effective[range.clone()], |visible| {
                let piece = match visible {
                    Visible::Directory { path, attrs } if path.is_empty() => {
                        root = attrs;
                        return Ok(());
                    }
                    Visible::Directory { path, attrs } => Piece::Directory { path, attrs },
                    Visible::Other { layer, record } => Piece::Other {
                        member: layer,
                        record,
                    },
                };
                Ok(pieces.push(piece, work)?)
            })
            .map_err(|error| match error {
                ListError::Seal(source) => StageError::Seal {
                    layer: Layers::one(image, range.start + source.layer() - 1),
                    source,
                },
                ListError::Io(source) => branch::work_error(work.path())(source),
            })?;
            let sources: Vec<_> = parts
                .iter()
                .zip(range.clone())
                .map(|(id, number)| (id.clone(), Layers::one(image, number)))
                .collect();
            let made = Made {
                key: &key,
                sources: &sources,
                root,
                format,
                what: Layers::range(&range),
            };
            self.make(&made, pieces, work)?;
        }
        branches.push(id);
        Ok(())
    }
}

/// Whether every layer of an image may be the one that the store has.
fn may_reuse_all(source: &dyn ImageSource, image: &Image) -> Result<bool, StageError> {
    for layer in &image.layers {
        if !source
            .may_reuse(&layer.diff_id)
            .map_err(StageError::Source)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn new_record(image: &Image) -> ImageRecord {
    ImageRecord {
        manifest: image.manifest_digest.to_string(),
        config: image.config_digest.to_string(),
        platform: image.platform.to_string(),
        layers: image
            .layers
            .iter()
            .map(|layer| LayerEntry {
                diff_id: layer.diff_id.to_string(),
                digest: layer.digest.as_ref().map(ToString::to_string),
                size: layer.size,
            })
            .collect(),
        created: crate::layer::store::now(),
        sealed: std::collections::BTreeMap::new(),
    }
}

/// The digest that the uncompressed bytes of a layer have: of a file, that of the
/// blob, which is the file.
fn verified_as(layer: &LayerDescriptor) -> Digest {
    match layer.content {
        LayerContent::Tar => layer.diff_id,
        LayerContent::File { .. } => layer.digest.unwrap_or(layer.diff_id),
    }
}

fn compression(said: crate::image::Compression) -> Compression {
    match said {
        crate::image::Compression::None => Compression::Plain,
        // The first bytes tell more than a media type.
        crate::image::Compression::Gzip
        | crate::image::Compression::Zstd
        | crate::image::Compression::Sniff => Compression::Sniff,
    }
}
