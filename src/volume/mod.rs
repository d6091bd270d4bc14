//! Volumes: from a request to a mount, in an order in which a kill between any
//! two steps leaves nothing that the next call or start cannot put right.
//!
//! Publish: lock the volume → is it there already? → stage the image → write
//! the record, which pins the branches → make the writable layer → mount →
//! verify → say so in the record. Unpublish: lock → say so → unmount until
//! nothing is mounted → remove the writable layer → remove the record.
//!
//! ```text
//! attributes  what a pod's author may write (pure)
//! record      what is known of a volume, on disk
//! lock        one operation per volume, between processes too
//! publish     from a request to a mount
//! again       to the same mount again, after a reboot
//! unpublish   from a record to nothing
//! pulls       images from registries, for volumes and commands
//! pods        kubelet's directories
//! recover     records × mount table → what has to be put right (pure)
//! purge       the end of everything on this node
//! upkeep      doing that, at the start and from time to time
//! limit       filesystems of their own for writable layers with a limit
//! collect     what of the store goes when space is short, and what stays
//! stats       how full a volume is
//! ```

mod ability;
mod again;
pub mod attributes;
pub mod changes;
pub mod check;
mod collect;
mod error;
pub mod limit;
mod listing;
pub mod lock;
pub mod pods;
mod publish;
mod pulls;
pub mod purge;
pub mod record;
pub mod recover;
mod shared;
pub mod stats;
mod unpublish;
pub mod upkeep;

pub use attributes::Medium;
pub use collect::{Collect, CollectSettings, Prefetched};
pub use error::{ErrorKind, VolumeError};
pub use listing::{ImageInfo, LayerInfo, VolumeInfo};
pub use record::{Owner, Pod, RecordedImage};

use crate::host::Host;
use crate::image::platform::{Platform, PlatformChoice};
use crate::image::reference::Source;
use crate::layer::seal::Format;
use crate::layer::steps;
use crate::layer::store::{Store, StoreError, remove_directory};
use crate::layer::tree::Ownership;
use crate::pull::{PullError, PullPolicy};
use crate::secret::Secret;
use crate::stage::{Progress, StageOptions, StagedImage, Stager};
use crate::union::Backend;
use crate::union::probe::{Probe, UnionRequest};
pub use pulls::PullOptions;
use pulls::{Asker, Pulls};
use record::{RECORD_VERSION, VolumeRecord};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Lower directories of one overlay: `OVL_MAX_STACK` of fs/overlayfs/params.h.
const OVERLAY_LOWER: usize = 500;
/// The same where all must fit one page of options, as `/proc/self/fd/<n>`.
const OVERLAY_LOWER_JOINED: usize = 150;

/// What a node is set up with.
#[derive(Debug, Clone)]
pub struct VolumeOptions {
    /// The store's directory.
    pub root: PathBuf,
    /// A directory on a host tmpfs for the xino files of AUFS.
    pub run_dir: PathBuf,
    /// Whether this process is root of its own user namespace only: files of
    /// one owner, no devices, overlay with `user.*` attributes.
    pub rootless: bool,
    /// How layers are staged.
    pub stage: StageOptions,
    /// Most branches that a volume's images become, whatever the kernel takes.
    pub max_branches: Option<usize>,
    /// The node's `/proc`, which shows who holds a mount.
    pub host_proc: PathBuf,
    /// How images come from registries.
    pub pull: PullOptions,
    /// What goes from the store when; can be replaced later.
    pub collect: CollectSettings,
}

/// When a volume's image is pulled, and with what.
#[derive(Debug, Clone, Default)]
pub struct PullChoice {
    /// When; none for Kubernetes' rule.
    pub policy: Option<PullPolicy>,
    /// What the pod's `nodePublishSecretRef` has, by its keys.
    pub secrets: BTreeMap<String, Secret>,
}

/// An image that a volume is to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// Where it comes from.
    pub source: Source,
    /// A directory that a local source must stay inside; none for the operator's own commands.
    pub source_root: Option<PathBuf>,
}

impl ImageRequest {
    /// An image that the operator named, which may be anywhere.
    pub fn unconfined(source: Source) -> Self {
        ImageRequest {
            source,
            source_root: None,
        }
    }
}

/// A volume that somebody wants.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// Its id, any text.
    pub volume_id: String,
    /// The images, the uppermost first; at least one.
    pub images: Vec<ImageRequest>,
    /// When an image of a registry is pulled, and with what.
    pub pull: PullChoice,
    /// Which platform of a multi-platform image; none for the node's own.
    pub platform: Option<Platform>,
    /// Where it appears.
    pub target: PathBuf,
    /// Whether the target is made when it is missing (and then goes with the volume).
    pub create_target: bool,
    /// Without a writable layer.
    pub read_only: bool,
    /// The directory inside the merged images that is shown; none for all.
    pub sub_path: Option<PathBuf>,
    /// Most bytes of the writable layer; none for no limit of its own.
    pub size_limit: Option<u64>,
    /// Where the writable layer is.
    pub medium: Medium,
    /// Which union filesystem.
    pub union: UnionRequest,
    /// Group that may write to the volume's root directory.
    pub mount_group: Option<u32>,
    /// `SELinux` label of all files, where the kernel has `SELinux`.
    pub label: Option<String>,
    /// Everything it was asked for with, to tell the same request from another.
    pub attributes: BTreeMap<String, String>,
    /// Whose it is.
    pub owner: Owner,
    /// The pod that it is for.
    pub pod: Option<Pod>,
}

impl PublishRequest {
    /// A person's volume with a writable layer and nothing special, at a target
    /// that is made for it.
    pub fn new(volume_id: impl Into<String>, image: Source, target: impl Into<PathBuf>) -> Self {
        Self::of_images(volume_id, vec![ImageRequest::unconfined(image)], target)
    }

    /// The same of several images, the uppermost first.
    pub fn of_images(
        volume_id: impl Into<String>,
        images: Vec<ImageRequest>,
        target: impl Into<PathBuf>,
    ) -> Self {
        PublishRequest {
            volume_id: volume_id.into(),
            images,
            pull: PullChoice::default(),
            platform: None,
            target: target.into(),
            create_target: true,
            read_only: false,
            sub_path: None,
            size_limit: None,
            medium: Medium::default(),
            union: UnionRequest::Auto,
            mount_group: None,
            label: None,
            attributes: BTreeMap::new(),
            owner: Owner::Command,
            pod: None,
        }
    }
}

/// What there is of a volume that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing, or not in this way.
    Unknown,
    /// It was mounted in this way and is not now, after a reboot for example.
    Recorded,
    /// It is mounted in this way: there is nothing to parse, to check or to do.
    Published,
}

/// A volume that nobody wants any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpublishRequest {
    /// Its id.
    pub volume_id: String,
    /// Where it is.
    pub target: PathBuf,
    /// Whether what is at the target goes even if no record knows the volume:
    /// kubelet makes a target for one volume alone.
    pub clear_target: bool,
}

/// A volume that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its images, uppermost first.
    pub images: Vec<RecordedImage>,
    /// How it is mounted.
    pub backend: Backend,
    /// Number of read-only branches.
    pub branches: usize,
    /// Whether it was mounted before.
    pub existed: bool,
}

/// The volumes of one node.
#[derive(Debug)]
pub struct Volumes {
    store: Arc<Store>,
    pulls: Pulls,
    host: Arc<dyn Host>,
    options: VolumeOptions,
    probe: OnceLock<Probe>,
    /// Inode of this process's mount namespace.
    namespace: u64,
    counted: stats::Counted,
    doubts: upkeep::Doubts,
    collection: collect::Collection,
    /// Whether this kernel has `SELinux`.
    selinux: OnceLock<bool>,
}

impl Volumes {
    /// Opens the store and removes what killed processes left in it.
    pub fn open(mut options: VolumeOptions, host: Arc<dyn Host>) -> Result<Self, VolumeError> {
        let boot = host
            .read(Path::new("/proc/sys/kernel/random/boot_id"))
            .map_err(StoreError::io(
                "read",
                Path::new("/proc/sys/kernel/random/boot_id"),
            ))
            .map_err(VolumeError::Store)?;
        let boot = String::from_utf8_lossy(&boot).trim().to_owned();
        // The kernel tells paths without links, and they are compared with these.
        let root = match Store::is_path_fit(&options.root) {
            true => real_directory(&options.root)?,
            // Refused below, and not made before that.
            false => options.root.clone(),
        };
        options.run_dir = real_directory(&options.run_dir)?;
        let store = Store::open(&root, &boot, options.rootless).map_err(VolumeError::Store)?;
        store.clean().map_err(VolumeError::Store)?;
        lock::remove_idle(&store.volumes_dir()).map_err(VolumeError::Store)?;
        let namespace = Path::new("/proc/self/ns/mnt");
        let namespace = fs::metadata(namespace)
            .map_err(StoreError::io("read", namespace))
            .map_err(VolumeError::Store)?
            .ino();
        let store = Arc::new(store);
        Ok(Volumes {
            pulls: Pulls::new(Arc::clone(&store), options.pull.clone()),
            store,
            host,
            collection: collect::Collection::new(options.collect.clone()),
            options,
            probe: OnceLock::new(),
            namespace,
            counted: stats::Counted::default(),
            doubts: upkeep::Doubts::default(),
            selinux: OnceLock::new(),
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn format(&self, backend: Backend) -> Format {
        match backend {
            Backend::Aufs => Format::Aufs,
            Backend::Overlay | Backend::Bind if self.options.rootless => Format::OverlayUser,
            Backend::Overlay | Backend::Bind => Format::Overlay,
        }
    }

    fn stager(&self, backend: Backend) -> Result<Stager<'_>, VolumeError> {
        let features = self.probe()?.features();
        let limit = match backend {
            Backend::Aufs => features.aufs.branch_limit,
            Backend::Overlay | Backend::Bind if features.overlay.lowerdir_append => OVERLAY_LOWER,
            Backend::Overlay | Backend::Bind => OVERLAY_LOWER_JOINED,
        };
        Ok(Stager {
            store: &self.store,
            options: StageOptions {
                max_store: self.collection().marks.max_size,
                ..self.options.stage.clone()
            },
            ownership: self.ownership(),
            // One is the writable layer, or a directory that only brings the
            // root's metadata, whatever volume comes first.
            max_branches: limit
                .saturating_sub(1)
                .min(self.options.max_branches.unwrap_or(usize::MAX))
                .max(1),
        })
    }

    /// Stages an image for the union that a volume would get, as a person's
    /// command.
    pub fn stage(
        &self,
        source: &Source,
        platform: Option<&Platform>,
        choice: UnionRequest,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> Result<StagedImage, VolumeError> {
        let backend = self.choose(choice)?;
        let asker = Asker::Operator {
            policy,
            is_node: false,
        };
        let mut staged = self.with_room(
            || vec![source.clone()],
            || self.stage_from(source, None, platform, backend, asker, progress),
        )?;
        let begun = Instant::now();
        self.store
            .flush(&staged.form.branches)
            .map_err(VolumeError::Store)?;
        staged.flush = begun.elapsed();
        Ok(staged)
    }

    fn stage_from(
        &self,
        source: &Source,
        source_root: Option<&Path>,
        platform: Option<&Platform>,
        backend: Backend,
        asker: Asker<'_>,
        progress: &dyn Progress,
    ) -> Result<StagedImage, VolumeError> {
        let choice = match platform {
            Some(platform) => PlatformChoice::Only(platform.clone()),
            None => PlatformChoice::Host,
        };
        let stager = self.stager(backend)?;
        let format = self.format(backend);
        if let Source::Registry(name) = source {
            return self
                .pulls
                .stage(name, &choice, &stager, format, asker, progress);
        }
        let opened = match source_root {
            Some(root) => crate::image::open_in_root(root, source),
            None => crate::image::open(source),
        }
        .map_err(VolumeError::Source)?;
        let name = source.to_string();
        if asker.is_a_pod() {
            return self.pulls.stage_local(
                opened.as_ref(),
                &name,
                &choice,
                &stager,
                format,
                progress,
            );
        }
        stager
            .stage(opened.as_ref(), &name, &choice, format, progress)
            .map_err(VolumeError::Stage)
    }

    /// Reads the configuration of registries and credentials, which otherwise is
    /// read when the first image is wanted.
    pub fn prepare_pulls(&self) -> Result<(), PullError> {
        self.pulls.prepare()
    }

    fn ownership(&self) -> Ownership {
        if self.options.rootless {
            Ownership::Single
        } else {
            Ownership::Real
        }
    }

    fn remove_dir_tree(&self, path: &Path) -> Result<(), VolumeError> {
        remove_directory(path).map_err(VolumeError::Store)
    }

    /// A volume by its id or by where it appears.
    pub fn find(&self, volume: &str) -> Result<(PathBuf, VolumeRecord), VolumeError> {
        // Ids have no say in what a path may look like, so both are tried.
        let path = canonical(Path::new(volume)).ok();
        record::all(&self.store)
            .map_err(VolumeError::Store)?
            .into_iter()
            .find(|(_, record)| record.volume_id == volume || path.as_ref() == Some(&record.target))
            .ok_or_else(|| VolumeError::NoSuchVolume {
                volume: volume.to_owned(),
            })
    }

    fn read_record(&self, dir: &Path, target: &Path) -> Result<Option<VolumeRecord>, VolumeError> {
        let record = match record::read(dir) {
            Err(StoreError::Damaged { .. }) if record::is_newer(dir) => {
                let name = dir.file_name().unwrap_or_default();
                return Err(VolumeError::NewerRecord {
                    volume_id: name.to_string_lossy().into_owned(),
                });
            }
            // Cut short by a power loss, after which nothing is mounted.
            Err(StoreError::Damaged { .. }) if !self.is_mount(target)? => None,
            other => other.map_err(VolumeError::Store)?,
        };
        if let Some(record) = &record
            && record.version > RECORD_VERSION
        {
            return Err(VolumeError::NewerRecord {
                volume_id: record.volume_id.clone(),
            });
        }
        Ok(record)
    }

    fn is_mount(&self, path: &Path) -> Result<bool, VolumeError> {
        match self.host.place(path) {
            Ok(place) => Ok(place.mount_root),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(VolumeError::Target {
                target: path.to_owned(),
                source,
            }),
        }
    }
}

/// A directory by its path without links, made where it is missing.
fn real_directory(path: &Path) -> Result<PathBuf, VolumeError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| path.canonicalize())
        .map_err(StoreError::io("create", path))
        .map_err(VolumeError::Store)
}

/// An absolute path without links, except that its last part need not exist.
fn canonical(path: &Path) -> Result<PathBuf, VolumeError> {
    let fail = |source| VolumeError::Target {
        target: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(fail)?;
    match absolute.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                return Err(fail(error));
            };
            match parent.canonicalize() {
                Ok(parent) => Ok(parent.join(name)),
                // Nothing there can be mounted, so the plain path will do.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(absolute),
                Err(error) => Err(fail(error)),
            }
        }
        Err(error) => Err(fail(error)),
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), VolumeError> {
    steps::before("make a directory of a volume");
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(VolumeError::Store(StoreError::io("create", path)(error)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
