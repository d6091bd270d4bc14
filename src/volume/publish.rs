//! From a request to a mount; and, for a volume that was mounted before, to the
//! same mount again.

use super::limit::{Limit, writable_base};
use super::pulls::Asker;
use super::record::{self, RECORD_VERSION, RecordedImage, VolumeRecord, VolumeState};
use super::shared;
use super::unpublish::{End, Target};
use super::{
    Medium, PublishRequest, Published, Standing, VolumeError, Volumes, canonical, lock::VolumeLock,
    make_dir,
};
use crate::layer::index::Attrs;
use crate::layer::steps;
use crate::layer::store::{BranchId, Lease, SealedForm, SharedLock, StoreError};
use crate::layer::unpack::finish_directories;
use crate::stage::{Phase, Progress};
use crate::union::probe::UnionRequest;
use crate::union::{self, Backend, MountError, MountPlan, Writable};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a staging path may be busy on which a killed process has left a
/// second mount of a volume: nobody knows it.
const COMPLETE_PATIENCE: Duration = Duration::from_secs(5);

/// What there is of a volume before it is published.
enum Before {
    /// Nothing.
    Nothing,
    /// All of it: it is mounted, as it is wanted.
    Mounted(Box<VolumeRecord>),
    /// All but the mount, which a reboot or somebody took away.
    Unmounted(Box<VolumeRecord>),
}

/// Images as the branches of one volume.
pub(super) struct Staged {
    images: Vec<RecordedImage>,
    backend: Backend,
    pub(super) branches: Vec<BranchId>,
    form: SealedForm,
    /// Keep them until the volume's record does.
    leases: Vec<Arc<Lease>>,
}

impl Volumes {
    /// What there is of a volume in just this way. Does not wait for whoever works
    /// on the volume.
    pub fn standing(
        &self,
        volume_id: &str,
        target: &Path,
        read_only: bool,
        mount_group: Option<u32>,
        attributes: &std::collections::BTreeMap<String, String>,
    ) -> Result<Standing, VolumeError> {
        let dir = record::directory(&self.store, volume_id);
        let look = || {
            let Some(record) = self.read_record(&dir, target)? else {
                return Ok(Standing::Unknown);
            };
            let is_same = record.target == canonical(target)?
                && record.read_only == read_only
                && record.mount_group == mount_group
                && record.attributes == *attributes;
            let was_seen = match record.state {
                VolumeState::Mounted | VolumeState::Returning | VolumeState::Beginning => true,
                VolumeState::Intended | VolumeState::Leaving => false,
            };
            if !is_same || !was_seen {
                return Ok(Standing::Unknown);
            }
            let is_mounted = record.state == VolumeState::Mounted
                && record.boot == self.store.boot()
                && self.shows(&record)?;
            Ok(match is_mounted {
                true => Standing::Published,
                false => Standing::Recorded,
            })
        };
        look().map_err(VolumeError::unclear(volume_id))
    }

    /// Whether the topmost mount at the volume's target is the volume's own.
    pub(super) fn shows(&self, record: &VolumeRecord) -> Result<bool, VolumeError> {
        if !self.is_mount(&record.target)? {
            return Ok(false);
        }
        let entry = self
            .host
            .mount_at(&record.target)
            .map_err(|source| VolumeError::Target {
                target: record.target.clone(),
                source,
            })?;
        Ok(entry.is_some_and(|entry| record.plan.owns(record.aufs_id.as_deref(), &entry)))
    }

    /// Mounts a volume, or finds that it is mounted.
    pub fn publish(
        &self,
        request: &PublishRequest,
        progress: &dyn Progress,
    ) -> Result<Published, VolumeError> {
        let dir = record::directory(&self.store, &request.volume_id);
        let lock = VolumeLock::take(&dir).map_err(VolumeError::Store)?;
        let target = canonical(&request.target).map_err(|error| match dir.exists() {
            true => VolumeError::unclear(&request.volume_id)(error),
            false => error,
        });
        let result = target.and_then(|target| {
            let images = || {
                request
                    .images
                    .iter()
                    .map(|image| image.source.clone())
                    .collect()
            };
            self.with_room(images, || {
                self.publish_locked(request, &dir, target.clone(), progress)
            })
        });
        lock.end(&dir, result)
    }

    fn publish_locked(
        &self,
        request: &PublishRequest,
        dir: &Path,
        target: PathBuf,
        progress: &dyn Progress,
    ) -> Result<Published, VolumeError> {
        match self.before(dir, request, &target)? {
            Before::Mounted(record) => Ok(Published {
                existed: true,
                ..published(*record)
            }),
            Before::Unmounted(record) => self.mount_again(request, dir, *record, progress),
            Before::Nothing => self.mount_anew(request, None, dir, target, progress),
        }
    }

    /// Looks at what there is of the volume, before anything else is looked at.
    /// Another volume under the same id is refused, an interrupted one is cleared
    /// away.
    fn before(
        &self,
        dir: &Path,
        request: &PublishRequest,
        target: &Path,
    ) -> Result<Before, VolumeError> {
        let volume_id = &request.volume_id;
        let record = self
            .read_record(dir, target)
            .map_err(VolumeError::unclear(volume_id))?;
        let Some(mut record) = record else {
            // Whoever was killed before it wrote a record left no more than this.
            self.remove_volume_dir(dir)
                .map_err(VolumeError::not_cleared(volume_id))?;
            return Ok(Before::Nothing);
        };
        if matches!(record.state, VolumeState::Intended | VolumeState::Leaving) {
            // Nobody was told that this one was there, or it is to go.
            self.take_down(dir, &record, Target::Own, End::Gone)
                .map_err(VolumeError::not_cleared(volume_id))?;
            return Ok(Before::Nothing);
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
        let is_this_boot = record.boot == self.store.boot();
        if !is_this_boot
            || record.state == VolumeState::Beginning
            || !self
                .shows(&record)
                .map_err(VolumeError::unclear(volume_id))?
        {
            return Ok(Before::Unmounted(Box::new(record)));
        }
        if record.state == VolumeState::Returning {
            self.complete(dir, &mut record)
                .map_err(VolumeError::not_returned(volume_id))?;
        }
        Ok(Before::Mounted(Box::new(record)))
    }

    /// Ends what a process did not that mounted a volume again: only what comes
    /// after the mount at the target is left to be done.
    pub(super) fn complete(
        &self,
        dir: &Path,
        record: &mut VolumeRecord,
    ) -> Result<(), VolumeError> {
        let host = self.host.as_ref();
        record.aufs_id = union::union_at(host, &record.target);
        union::detach(host, &record.plan.staging, COMPLETE_PATIENCE)
            .map_err(VolumeError::Unmount)?;
        self.remove_dir_tree(&record.plan.staging)?;
        record.state = VolumeState::Mounted;
        record::write(dir, record).map_err(VolumeError::Store)
    }

    /// Mounts a volume of which there is nothing, with the images that it had
    /// before, if it had any.
    pub(super) fn mount_anew(
        &self,
        request: &PublishRequest,
        were: Option<&[RecordedImage]>,
        dir: &Path,
        target: PathBuf,
        progress: &dyn Progress,
    ) -> Result<Published, VolumeError> {
        let exists = self.check_target(&target, request.create_target)?;
        let limit = Limit::of(request)?;
        let base = writable_base(dir, limit.as_ref());
        // What is staged carries a lease, so that it is not collected before it is pinned.
        let held = self.store.lock_shared().map_err(VolumeError::Store)?;
        let label = self.label(request.label.as_deref());
        let staged = self.stage_for(request, were, request.union, progress, &held)?;
        let mut plan = MountPlan {
            backend: staged.backend,
            branches: staged
                .branches
                .iter()
                .map(|id| self.store.branch_dir(id))
                .collect(),
            writable: (!request.read_only).then(|| Writable {
                upper: base.join("upper"),
                work: base.join("work"),
                memory: request.medium == Medium::Memory,
            }),
            target: target.clone(),
            staging: dir.join("staging"),
            sub_path: request.sub_path.clone(),
            read_only: request.read_only,
            label,
            xino: None,
        };
        let shared = shared::id_of(&plan, request.owner, &self.probe()?.features());
        plan.xino = Some(self.xino_of(dir, shared.as_deref(), plan.backend)?);
        let mut record = VolumeRecord {
            version: RECORD_VERSION,
            volume_id: request.volume_id.clone(),
            state: match were {
                Some(_) => VolumeState::Beginning,
                None => VolumeState::Intended,
            },
            owner: request.owner,
            pod: request.pod.clone(),
            images: staged.images,
            branches: staged.branches,
            target,
            target_created: !exists,
            read_only: request.read_only,
            mount_group: request.mount_group,
            attributes: request.attributes.clone(),
            limit,
            plan,
            aufs_id: None,
            shared,
            boot: self.store.boot().to_owned(),
            mount_namespace: self.namespace,
            created: crate::layer::store::now(),
        };
        make_dir(dir, 0o700)?;
        if let Err(error) = record::write(dir, &record) {
            // With no record nobody would look for it; an older one stays as it was.
            if were.is_none() {
                self.remove_dir_tree(dir)?;
            }
            return Err(VolumeError::Store(error));
        }
        // The record keeps the branches now.
        drop(staged.leases);
        progress.phase(Phase::Mounting);
        let mounted = self
            .make_writable(dir, &record, &staged.form)
            .and_then(|root| self.mount(dir, &mut record, Some(&root)));
        match mounted {
            Ok(()) => {
                // The record has it now.
                self.pulls.end_promise(&request.volume_id);
                Ok(published(record))
            }
            Err(error) => {
                // What was made for this volume goes; should that fail too, the
                // record stays and says what is left.
                let target = match &error {
                    VolumeError::Mount(MountError::Occupied { .. }) => Target::Anothers,
                    _ => Target::Own,
                };
                let end = match were {
                    Some(_) => End::Again,
                    None => End::Gone,
                };
                match self.take_down(dir, &record, target, end) {
                    Ok(()) => Err(error),
                    Err(undo) => Err(VolumeError::NotUndone {
                        undo: Box::new(undo),
                        source: Box::new(error),
                    }),
                }
            }
        }
    }

    /// Stages the volume's images, which are what they `were` before if the volume
    /// is to be the same again.
    pub(super) fn stage_for(
        &self,
        request: &PublishRequest,
        were: Option<&[RecordedImage]>,
        union: UnionRequest,
        progress: &dyn Progress,
        _: &SharedLock,
    ) -> Result<Staged, VolumeError> {
        let chosen = self.choose(union)?;
        if request.images.is_empty() {
            return Err(VolumeError::NoImage);
        }
        let mut staged = Vec::with_capacity(request.images.len());
        for (number, image) in request.images.iter().enumerate() {
            let was = were.and_then(|were| were.get(number));
            let one = self.stage_from(
                &image.source,
                image.source_root.as_deref(),
                request.platform.as_ref(),
                chosen,
                Asker::of(request, was.map(|was| was.manifest.as_str())),
                progress,
            );
            staged.push(one.map_err(|error| match request.images.len() {
                1 => error,
                _ => error.of_image(&image.source),
            })?);
        }
        let stager = self.stager(chosen)?;
        let leases: Vec<Arc<Lease>> = staged
            .iter()
            .map(|image| Arc::clone(&image.lease))
            .collect();
        let form = stager
            .join(&staged, self.format(chosen))
            .map_err(VolumeError::Stage)?;
        let mut branches = form.branches.clone();
        // A bind cannot give files a label, and overlayfs does not mount a
        // single branch.
        let is_labelled = request.read_only && self.label(request.label.as_deref()).is_some();
        let needs_second = is_labelled && chosen == Backend::Overlay && branches.len() == 1;
        if branches.is_empty() || request.read_only && !form.root_fits || needs_second {
            let root = stager
                .root_branch(&Attrs::from(&form.root), &leases[0])
                .map_err(VolumeError::Stage)?;
            branches.insert(0, root);
        }
        let images = request.images.iter().zip(staged);
        Ok(Staged {
            images: images
                .map(|(image, staged)| RecordedImage {
                    image: image.source.to_string(),
                    manifest: staged.image.manifest,
                })
                .collect(),
            backend: chosen.for_volume(branches.len(), request.read_only && !is_labelled),
            branches,
            form,
            leases,
        })
    }

    /// Makes the directories of the writable layer; gives the metadata that the
    /// volume's root is to have.
    fn make_writable(
        &self,
        dir: &Path,
        record: &VolumeRecord,
        form: &SealedForm,
    ) -> Result<Attrs, VolumeError> {
        let mut root = Attrs::from(&form.root);
        if let Some(group) = record.mount_group
            // Else it is another directory that the pod sees.
            && record.plan.sub_path.is_none()
        {
            // As kubelet does for a whole tree, but to this directory only.
            root.gid = group;
            root.mode |= 0o2070;
        }
        if let Some(writable) = &record.plan.writable {
            if let Some(limit) = &record.limit {
                let label = record.plan.label.as_deref();
                self.make_filesystem(dir, limit, label)?;
            }
            make_dir(&writable.work, 0o700)?;
            make_dir(&writable.upper, 0o700)?;
            self.finish_root(record, &writable.upper, &root)?;
        }
        Ok(root)
    }

    /// Mounts what is recorded, and says so in the record. With `root`, a union
    /// that is new gets it as its root's metadata.
    pub(super) fn mount(
        &self,
        dir: &Path,
        record: &mut VolumeRecord,
        root: Option<&Attrs>,
    ) -> Result<(), VolumeError> {
        if record.target_created {
            steps::before("make the target");
            match fs::DirBuilder::new().mode(0o750).create(&record.target) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(VolumeError::Target {
                        target: record.target.clone(),
                        source,
                    });
                }
                _ => {}
            }
        }
        if let Some(shared) = record.shared.clone() {
            self.mount_shared(dir, record, &shared)?;
            record.state = VolumeState::Mounted;
            return record::write(dir, record).map_err(VolumeError::Store);
        }
        make_dir(&record.plan.staging, 0o700)?;
        let mounted = union::mount(self.host.as_ref(), &record.plan, &self.probe()?.features())
            .map_err(|error| of_mount(error, record))?;
        record.aufs_id = mounted.aufs_id;
        if let (Backend::Aufs, Some(writable), Some(root)) =
            (record.plan.backend, &record.plan.writable, root)
        {
            // At the mount AUFS makes files of its own in this directory, which
            // sets its time. Not through the mount, where times are cut to
            // seconds; AUFS asks the branch at each stat.
            self.finish_root(record, &writable.upper, root)?;
        }
        if let (Some(group), Some(_), Some(_)) = (record.mount_group, root, &record.plan.sub_path) {
            give_group(&record.target, group).map_err(|source| VolumeError::Group {
                target: record.target.clone(),
                source,
            })?;
        }
        steps::before("remove the staging directory");
        fs::remove_dir(dir.join("staging"))
            .map_err(StoreError::io("remove", &dir.join("staging")))
            .map_err(VolumeError::Store)?;
        record.state = VolumeState::Mounted;
        record::write(dir, record).map_err(VolumeError::Store)
    }

    /// Gives the directory what the volume's root is to have.
    fn finish_root(
        &self,
        record: &VolumeRecord,
        path: &Path,
        root: &Attrs,
    ) -> Result<(), VolumeError> {
        steps::before("give the root its metadata");
        let fd = fs::File::open(path)
            .map_err(StoreError::io("open", path))
            .map_err(VolumeError::Store)?;
        let only = std::iter::once(Ok((Vec::new(), root.clone())));
        finish_directories(fd.as_fd(), only, self.ownership()).map_err(|source| VolumeError::Root {
            volume_id: record.volume_id.clone(),
            source,
        })
    }

    /// Whether the target exists; what cannot be one is an error.
    pub(super) fn check_target(&self, target: &Path, create: bool) -> Result<bool, VolumeError> {
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

    pub(super) fn xino_dir(&self) -> PathBuf {
        self.options.run_dir.join("xino")
    }

    pub(super) fn xino_path(&self, dir: &Path) -> PathBuf {
        self.xino_dir().join(dir.file_name().unwrap_or_default())
    }
}

/// Makes a directory one that a group may write to, as kubelet does for a whole
/// tree with fsGroup. Through a union that copies up the directory's metadata and
/// nothing that is in it.
fn give_group(directory: &Path, group: u32) -> io::Result<()> {
    steps::before("give the directory its group");
    let directory = fs::File::open(directory)?;
    let mode = directory.metadata()?.permissions().mode();
    std::os::unix::fs::fchown(&directory, None, Some(group))?;
    // After the owner, for that may clear bits.
    directory.set_permissions(fs::Permissions::from_mode((mode | 0o2070) & 0o7777))
}

/// A failed mount in the words of whoever asked for it.
pub(super) fn of_mount(error: MountError, record: &VolumeRecord) -> VolumeError {
    match error {
        MountError::SubPath { sub_path, what } => {
            let images = record.images.iter().map(|image| image.image.as_str());
            VolumeError::SubPath {
                sub_path,
                what,
                image: images.collect::<Vec<_>>().join(", "),
            }
        }
        error => VolumeError::Mount(error),
    }
}

pub(super) fn published(record: VolumeRecord) -> Published {
    Published {
        images: record.images,
        backend: record.plan.backend,
        branches: record.branches.len(),
        existed: false,
    }
}
