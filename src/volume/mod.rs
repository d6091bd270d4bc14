//! Volumes: from a request to a mount, in an order in which a kill between any
//! two steps leaves nothing that the next call or start cannot put right.
//!
//! Publish: lock the volume → is it there already? → stage the image → write
//! the record, which pins the branches → make the writable layer → mount →
//! verify → say so in the record. Unpublish: lock → say so → unmount until
//! nothing is mounted → remove the writable layer → remove the record.

mod ability;
pub mod attributes;
pub mod changes;
pub mod check;
mod error;
mod listing;
pub mod lock;
pub mod record;

pub use error::{ErrorKind, VolumeError};
pub use listing::{ImageInfo, LayerInfo, VolumeInfo};

use crate::host::Host;
use crate::image::platform::{Platform, PlatformChoice};
use crate::image::reference::Source;
use crate::layer::index::Attrs;
use crate::layer::seal::Format;
use crate::layer::store::{SealedForm, Store, StoreError, remove_directory};
use crate::layer::tree::Ownership;
use crate::layer::unpack::finish_directories;
use crate::stage::{Phase, Progress, StageOptions, StagedImage, Stager};
use crate::union::probe::{Probe, UnionRequest};
use crate::union::{self, Backend, MountPlan, Writable};
use lock::VolumeLock;
use record::{RECORD_VERSION, VolumeRecord, VolumeState};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long an unmount waits for whoever still uses the volume, within one call.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(30);

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
}

/// A volume that somebody wants.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// Its id, any text.
    pub volume_id: String,
    /// Where the image comes from.
    pub source: Source,
    /// A directory that a local source must stay inside; none for the operator's own commands.
    pub source_root: Option<PathBuf>,
    /// Which platform of a multi-platform image; none for the node's own.
    pub platform: Option<Platform>,
    /// Where it appears.
    pub target: PathBuf,
    /// Whether the target is made when it is missing (and then goes with the volume).
    pub create_target: bool,
    /// Without a writable layer.
    pub read_only: bool,
    /// Which union filesystem.
    pub union: UnionRequest,
    /// Group that may write to the volume's root directory.
    pub mount_group: Option<u32>,
    /// Everything it was asked for with, to tell the same request from another.
    pub attributes: BTreeMap<String, String>,
}

/// A volume that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Digest of the image's manifest.
    pub manifest: String,
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
    store: Store,
    host: Arc<dyn Host>,
    options: VolumeOptions,
    probe: OnceLock<Probe>,
    namespace: u64,
}

impl Volumes {
    /// Opens the store and removes what killed processes left in it.
    pub fn open(options: VolumeOptions, host: Arc<dyn Host>) -> Result<Self, VolumeError> {
        let boot = host
            .read(Path::new("/proc/sys/kernel/random/boot_id"))
            .map_err(StoreError::io(
                "read",
                Path::new("/proc/sys/kernel/random/boot_id"),
            ))
            .map_err(VolumeError::Store)?;
        let boot = String::from_utf8_lossy(&boot).trim().to_owned();
        let root = canonical(&options.root)?;
        let store = Store::open(&root, &boot, options.rootless).map_err(VolumeError::Store)?;
        store.clean().map_err(VolumeError::Store)?;
        lock::remove_idle(&store.volumes_dir()).map_err(VolumeError::Store)?;
        let namespace = Path::new("/proc/self/ns/mnt");
        let namespace = fs::metadata(namespace)
            .map_err(StoreError::io("read", namespace))
            .map_err(VolumeError::Store)?
            .ino();
        Ok(Volumes {
            store,
            host,
            options,
            probe: OnceLock::new(),
            namespace,
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
            options: self.options.stage.clone(),
            ownership: self.ownership(),
            // One is the writable layer, or a directory that only brings the
            // root's metadata, whatever volume comes first.
            max_branches: limit.saturating_sub(1).max(1),
        })
    }

    /// Stages an image for the union that a volume would get.
    pub fn stage(
        &self,
        source: &Source,
        platform: Option<&Platform>,
        choice: UnionRequest,
        progress: &dyn Progress,
    ) -> Result<StagedImage, VolumeError> {
        let backend = self.choose(choice)?;
        let mut staged = self.stage_from(source, None, platform, backend, progress)?;
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
        progress: &dyn Progress,
    ) -> Result<StagedImage, VolumeError> {
        let choice = match platform {
            Some(platform) => PlatformChoice::Only(platform.clone()),
            None => PlatformChoice::Host,
        };
        let opened = match source_root {
            Some(root) => crate::image::open_in_root(root, source),
            None => crate::image::open(source),
        }
        .map_err(VolumeError::Source)?;
        self.stager(backend)?
            .stage(
                opened.as_ref(),
                &source.to_string(),
                &choice,
                self.format(backend),
                progress,
            )
            .map_err(VolumeError::Stage)
    }

    /// Whether a volume is recorded and mounted in just this way, so that there
    /// is nothing to do. Does not wait for whoever works on the volume.
    pub fn is_published(
        &self,
        volume_id: &str,
        target: &Path,
        read_only: bool,
        mount_group: Option<u32>,
        attributes: &BTreeMap<String, String>,
    ) -> Result<bool, VolumeError> {
        let dir = record::directory(&self.store, volume_id);
        let Some(record) = self.read_record(&dir, target)? else {
            return Ok(false);
        };
        Ok(record.state == VolumeState::Mounted
            && record.boot == self.store.boot()
            && record.target == canonical(target)?
            && record.read_only == read_only
            && record.mount_group == mount_group
            && record.attributes == *attributes
            && self.is_mount(&record.target)?)
    }

    /// Mounts a volume, or finds that it is mounted.
    pub fn publish(
        &self,
        request: &PublishRequest,
        progress: &dyn Progress,
    ) -> Result<Published, VolumeError> {
        let dir = record::directory(&self.store, &request.volume_id);
        let lock = VolumeLock::take(&dir).map_err(VolumeError::Store)?;
        let result = canonical(&request.target).and_then(|target| {
            match self.existing(&dir, request, &target)? {
                Some(found) => Ok(found),
                None => self.publish_locked(request, &dir, target, progress),
            }
        });
        if result.is_err() && !dir.exists() {
            // Nothing is left of the volume, so neither is its lock file.
            lock.remove().map_err(VolumeError::Store)?;
        }
        result
    }

    /// The same volume again, before anything else is looked at; another one
    /// under the same id is refused, an interrupted one is cleared away.
    fn existing(
        &self,
        dir: &Path,
        request: &PublishRequest,
        target: &Path,
    ) -> Result<Option<Published>, VolumeError> {
        let Some(record) = self.read_record(dir, target)? else {
            // Whoever was killed before it wrote a record left no more than this.
            self.remove_dir_tree(dir)?;
            return Ok(None);
        };
        let mounted = record.state == VolumeState::Mounted
            && record.boot == self.store.boot()
            && self.is_mount(&record.target)?;
        if !mounted {
            // Nobody was told that this one was there.
            self.take_down(dir, &record)?;
            return Ok(None);
        }
        if record.target != target {
            return Err(VolumeError::OtherTarget {
                volume_id: request.volume_id.clone(),
                target: record.target,
            });
        }
        if record.read_only != request.read_only
            || record.mount_group != request.mount_group
            || record.attributes != request.attributes
        {
            return Err(VolumeError::OtherRequest {
                volume_id: request.volume_id.clone(),
            });
        }
        Ok(Some(Published {
            manifest: record.manifest,
            backend: record.plan.backend,
            branches: record.branches.len(),
            existed: true,
        }))
    }

    fn publish_locked(
        &self,
        request: &PublishRequest,
        dir: &Path,
        target: PathBuf,
        progress: &dyn Progress,
    ) -> Result<Published, VolumeError> {
        let exists = self.check_target(&target, request.create_target)?;
        let chosen = self.choose(request.union)?;
        // Branches must not be collected between being staged and being pinned.
        let _shared = self.store.lock_shared().map_err(VolumeError::Store)?;
        let staged = self.stage_from(
            &request.source,
            request.source_root.as_deref(),
            request.platform.as_ref(),
            chosen,
            progress,
        )?;
        let mut branches = staged.form.branches.clone();
        if branches.is_empty() || request.read_only && !staged.form.root_fits {
            let root = self
                .stager(chosen)?
                .root_branch(&Attrs::from(&staged.form.root))
                .map_err(VolumeError::Stage)?;
            branches.insert(0, root);
        }
        let backend = chosen.for_volume(branches.len(), request.read_only);
        let plan = MountPlan {
            backend,
            branches: branches
                .iter()
                .map(|id| self.store.branch_dir(id))
                .collect(),
            writable: (!request.read_only).then(|| Writable {
                upper: dir.join("upper"),
                work: dir.join("work"),
                memory: false,
            }),
            target: target.clone(),
            staging: dir.join("staging"),
            sub_path: None,
            read_only: request.read_only,
            label: None,
            xino: Some(self.xino_path(dir)?),
        };
        let mut record = VolumeRecord {
            version: RECORD_VERSION,
            volume_id: request.volume_id.clone(),
            state: VolumeState::Intended,
            image: request.source.to_string(),
            manifest: staged.image.manifest.clone(),
            branches,
            target,
            target_created: !exists,
            read_only: request.read_only,
            mount_group: request.mount_group,
            attributes: request.attributes.clone(),
            plan,
            boot: self.store.boot().to_owned(),
            mount_namespace: self.namespace,
            created: crate::layer::store::now(),
        };
        make_dir(dir, 0o700)?;
        if let Err(error) = record::write(dir, &record) {
            // With no record nobody would look for it.
            self.remove_dir_tree(dir)?;
            return Err(VolumeError::Store(error));
        }
        progress.phase(Phase::Mounting);
        let mounted = self
            .mount(dir, &record, &staged.form, request.mount_group)
            .and_then(|()| {
                record.state = VolumeState::Mounted;
                record::write(dir, &record).map_err(VolumeError::Store)
            });
        match mounted {
            Ok(()) => {}
            Err(error) => {
                // What was made for this volume goes; should that fail too, the
                // record stays and says what is left.
                return match self.take_down(dir, &record) {
                    Ok(()) => Err(error),
                    Err(undo) => Err(VolumeError::NotUndone {
                        undo: Box::new(undo),
                        source: Box::new(error),
                    }),
                };
            }
        }
        Ok(Published {
            manifest: record.manifest,
            backend,
            branches: record.branches.len(),
            existed: false,
        })
    }

    fn mount(
        &self,
        dir: &Path,
        record: &VolumeRecord,
        form: &SealedForm,
        mount_group: Option<u32>,
    ) -> Result<(), VolumeError> {
        if record.target_created {
            make_dir(&record.target, 0o750)?;
        }
        make_dir(&record.plan.staging, 0o700)?;
        let mut root = Attrs::from(&form.root);
        if let Some(group) = mount_group {
            // As kubelet does for a whole tree, but to this directory only.
            root.gid = group;
            root.mode |= 0o2070;
        }
        if let Some(writable) = &record.plan.writable {
            make_dir(&writable.work, 0o700)?;
            make_dir(&writable.upper, 0o700)?;
            self.finish_root(record, &writable.upper, &root)?;
        }
        union::mount(self.host.as_ref(), &record.plan, &self.probe()?.features())
            .map_err(VolumeError::Mount)?;
        if record.plan.backend == Backend::Aufs
            && let Some(writable) = &record.plan.writable
        {
            // At the mount AUFS makes files of its own in this directory, which
            // sets its time. Not through the mount, where times are cut to
            // seconds; AUFS asks the branch at each stat.
            self.finish_root(record, &writable.upper, &root)?;
        }
        fs::remove_dir(dir.join("staging"))
            .map_err(StoreError::io("remove", &dir.join("staging")))
            .map_err(VolumeError::Store)
    }

    /// Gives the directory what the volume's root is to have.
    fn finish_root(
        &self,
        record: &VolumeRecord,
        path: &Path,
        root: &Attrs,
    ) -> Result<(), VolumeError> {
        let fd = fs::File::open(path)
            .map_err(StoreError::io("open", path))
            .map_err(VolumeError::Store)?;
        let only = std::iter::once(Ok((Vec::new(), root.clone())));
        finish_directories(fd.as_fd(), only, self.ownership()).map_err(|source| VolumeError::Root {
            volume_id: record.volume_id.clone(),
            source,
        })
    }

    fn ownership(&self) -> Ownership {
        if self.options.rootless {
            Ownership::Single
        } else {
            Ownership::Real
        }
    }

    /// Unmounts a volume and removes what was its own. Unknown is fine.
    pub fn unpublish(&self, volume_id: &str, target: &Path) -> Result<(), VolumeError> {
        let dir = record::directory(&self.store, volume_id);
        let lock = VolumeLock::take(&dir).map_err(VolumeError::Store)?;
        if let Some(record) = self.read_record(&dir, target)? {
            let target = canonical(target)?;
            if record.target != target {
                return Err(VolumeError::OtherTarget {
                    volume_id: volume_id.to_owned(),
                    target: record.target,
                });
            }
            self.take_down(&dir, &record)?;
        } else {
            self.remove_dir_tree(&dir)?;
        }
        lock.remove().map_err(VolumeError::Store)
    }

    /// As [`Volumes::unpublish`], for whoever knows only where the volume is.
    pub fn unmount_target(&self, target: &Path) -> Result<(), VolumeError> {
        let path = canonical(target)?;
        let found = record::all(&self.store)
            .map_err(VolumeError::Store)?
            .into_iter()
            .find(|(_, record)| record.target == path);
        match found {
            Some((_, record)) => self.unpublish(&record.volume_id, &record.target),
            None => Err(VolumeError::NoSuchVolume {
                volume: target.display().to_string(),
            }),
        }
    }

    /// Idempotent: every step may have been done by a process that was killed.
    fn take_down(&self, dir: &Path, record: &VolumeRecord) -> Result<(), VolumeError> {
        if record.boot == self.store.boot() && record.mount_namespace != self.namespace {
            return Err(VolumeError::OtherNamespace {
                volume_id: record.volume_id.clone(),
            });
        }
        let mut record = record.clone();
        if record.state != VolumeState::Leaving {
            record.state = VolumeState::Leaving;
            match record::write(dir, &record) {
                // Taking volumes down is what gives the space back; and a volume
                // that is recorded and not mounted is taken down as well.
                Err(error) if error.is_out_of_space() => {
                    tracing::warn!(
                        volume.id = record.volume_id,
                        "no space to record the unmount"
                    );
                }
                result => result.map_err(VolumeError::Store)?,
            }
        }
        union::unmount(
            self.host.as_ref(),
            &[&record.target, &record.plan.staging],
            UNMOUNT_PATIENCE,
        )
        .map_err(VolumeError::Unmount)?;
        if record.target_created {
            // Never more than the empty directory: what is in it is not ours.
            match fs::remove_dir(&record.target) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(VolumeError::Store(
                        StoreError::io("remove", &record.target)(error),
                    ));
                }
                _ => {}
            }
        }
        if let Some(xino) = &record.plan.xino {
            self.host
                .remove_stale(xino)
                .map_err(StoreError::io("remove", xino))
                .map_err(VolumeError::Store)?;
        }
        // The writable layer first and the record last, so that a kill in
        // between leaves a record of what is still there.
        for name in ["upper", "work", "staging"] {
            self.remove_dir_tree(&dir.join(name))?;
        }
        self.remove_dir_tree(dir)
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

    /// Whether the target exists; what cannot be one is an error.
    fn check_target(&self, target: &Path, create: bool) -> Result<bool, VolumeError> {
        let metadata = match fs::symlink_metadata(target) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VolumeError::TargetMissing {
                    target: target.to_owned(),
                });
            }
            Err(source) => {
                return Err(VolumeError::Target {
                    target: target.to_owned(),
                    source,
                });
            }
        };
        if !metadata.is_dir() {
            return Err(VolumeError::TargetNoDirectory {
                target: target.to_owned(),
            });
        }
        if self.is_mount(target)? {
            return Err(VolumeError::TargetMounted {
                target: target.to_owned(),
            });
        }
        let mut entries = fs::read_dir(target).map_err(|source| VolumeError::Target {
            target: target.to_owned(),
            source,
        })?;
        if entries.next().is_some() {
            return Err(VolumeError::TargetNotEmpty {
                target: target.to_owned(),
            });
        }
        Ok(true)
    }

    fn xino_path(&self, dir: &Path) -> Result<PathBuf, VolumeError> {
        let base = self.options.run_dir.join("xino");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&base)
            .map_err(StoreError::io("create", &base))
            .map_err(VolumeError::Store)?;
        Ok(base.join(dir.file_name().unwrap_or_default()))
    }
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
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(VolumeError::Store(StoreError::io("create", path)(error)))
        }
        _ => Ok(()),
    }
}
