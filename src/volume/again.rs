//! A volume that was mounted before comes back: with the content that it had and
//! with what was written to it.

use super::publish::published;
use super::record::{self, Owner, VolumeRecord, VolumeState};
use super::unpublish::{End, Target};
use super::{PublishRequest, Published, VolumeError, Volumes};
use crate::layer::store::StoreError;
use crate::layer::upper;
use crate::stage::{Phase, Progress};
use crate::union::probe::UnionRequest;
use crate::union::{self, Backend};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

impl Volumes {
    /// Mounts a volume that is recorded and not mounted, with the writable layer
    /// and the content that it had: after a reboot, or where its mount got lost.
    pub(super) fn mount_again(
        &self,
        request: &PublishRequest,
        dir: &Path,
        record: VolumeRecord,
        progress: &dyn Progress,
    ) -> Result<Published, VolumeError> {
        let volume_id = record.volume_id.clone();
        let kept = |source| VolumeError::not_returned(&volume_id)(source);
        if record.state == VolumeState::Beginning {
            return self.begin_again(request, dir, record, progress);
        }
        let shared = self
            .store
            .lock_shared()
            .map_err(VolumeError::Store)
            .map_err(kept)?;
        let has_filesystem = self.mount_filesystem_again(dir, &record).map_err(kept)?;
        if !has_filesystem && record.plan.writable.as_ref().is_some_and(|own| own.memory) {
            tracing::info!(
                volume.id = record.volume_id,
                "the volume starts empty: what was written to it was in memory"
            );
            drop(shared);
            return self.begin_again(request, dir, record, progress);
        }
        // Without either, the machine went down before they were on its disk.
        let writable = record.plan.writable.as_ref();
        let mut is_whole =
            has_filesystem && writable.is_none_or(|writable| writable.upper.is_dir());
        if is_whole && !self.has_branches(&record).map_err(kept)? {
            // Only the very same content fits what the pod wrote on top of it.
            let union = union_of(record.plan.backend);
            let staged = self
                .stage_for(request, Some(&record.images), union, progress, &shared)
                .map_err(kept)?;
            is_whole = staged.branches == record.branches;
        }
        if !is_whole {
            tracing::warn!(
                volume.id = record.volume_id,
                manifests = record.manifests().join(","),
                "the volume starts empty: what it was made of was lost before it was on disk"
            );
            drop(shared);
            return self.begin_again(request, dir, record, progress);
        }
        self.bring_back(dir, record, progress).map_err(kept)
    }

    /// Mounts a volume that lost its writable layer as if it were new, by what it was
    /// first: the limit and the union that the operator's rules gave it then, and the
    /// content that its names led to. Its record has these until it is mounted.
    fn begin_again(
        &self,
        request: &PublishRequest,
        dir: &Path,
        record: VolumeRecord,
        progress: &dyn Progress,
    ) -> Result<Published, VolumeError> {
        let volume_id = record.volume_id.clone();
        let lost = |source| VolumeError::not_begun(&volume_id)(source);
        self.take_down(dir, &record, Target::Own, End::Again)
            .map_err(lost)?;
        let had = union_of(record.plan.backend);
        let request = PublishRequest {
            size_limit: record.limit.map(|limit| limit.bytes),
            // The node may have another kernel now, and there is nothing to lose.
            union: self.choose(had).map_or(request.union, |_| had),
            ..request.clone()
        };
        self.mount_anew(&request, Some(&record.images), dir, record.target, progress)
            .map_err(lost)
    }

    /// Should it fail, the record stays and with it what the pod wrote.
    fn bring_back(
        &self,
        dir: &Path,
        mut record: VolumeRecord,
        progress: &dyn Progress,
    ) -> Result<Published, VolumeError> {
        // The node may have another kernel now.
        self.choose(union_of(record.plan.backend))?;
        if record.boot == self.store.boot() {
            self.is_unused(&record)?;
        }
        let exists = self.check_target(&record.target, true)?;
        record.target_created |= !exists;
        let backend = record.plan.backend;
        record.plan.xino = Some(self.xino_of(dir, record.shared.as_deref(), backend)?);
        record.plan.label = self.label(record.plan.label.as_deref());
        record.state = VolumeState::Returning;
        record.boot = self.store.boot().to_owned();
        record.mount_namespace = self.namespace;
        record.aufs_id = None;
        record::write(dir, &record).map_err(VolumeError::Store)?;
        progress.phase(Phase::Mounting);
        if let Some(writable) = &record.plan.writable {
            self.put_right(&record, &writable.upper)?;
        }
        self.mount(dir, &mut record, None)?;
        tracing::info!(
            volume.id = record.volume_id,
            "mounted again with the writable layer that it had"
        );
        Ok(published(record))
    }

    /// What AUFS leaves in a writable layer when the machine goes down, and what
    /// overlayfs remembers of branches that may have been lost with it and are
    /// there again.
    fn put_right(&self, record: &VolumeRecord, upper: &Path) -> Result<(), VolumeError> {
        let fd = fs::File::open(upper)
            .map_err(StoreError::io("open", upper))
            .map_err(VolumeError::Store)?;
        let removed = match record.plan.backend {
            Backend::Aufs => upper::put_right(fd.as_fd()),
            Backend::Overlay => upper::forget_origin(fd.as_fd(), self.options.rootless).map(|()| 0),
            // It has no writable layer.
            Backend::Bind => Ok(0),
        }
        .map_err(|source| VolumeError::Residue {
            volume_id: record.volume_id.clone(),
            source,
        })?;
        if removed > 0 {
            tracing::info!(
                volume.id = record.volume_id,
                removed,
                "removed what a crash left in the writable layer"
            );
        }
        Ok(())
    }

    fn has_branches(&self, record: &VolumeRecord) -> Result<bool, VolumeError> {
        for id in &record.branches {
            if self.store.branch(id).map_err(VolumeError::Store)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Refuses a volume whose union may live where it cannot be seen from here:
    /// two unions on one writable layer destroy each other's work, and AUFS would
    /// make them.
    fn is_unused(&self, record: &VolumeRecord) -> Result<(), VolumeError> {
        // Nobody writes to it, and as many may share it as there are.
        if record.shared.is_some() {
            return Ok(());
        }
        // The plugin's mounts are made to be seen everywhere, and the number of a
        // namespace is soon another one's: a pod would wait for a stranger.
        if record.owner == Owner::Command && self.is_elsewhere(record) {
            return Err(VolumeError::OtherNamespace {
                volume_id: record.volume_id.clone(),
            });
        }
        union::unmount_union(
            self.host.as_ref(),
            &[&record.plan.staging],
            record.aufs_id.as_deref(),
            Duration::ZERO,
        )
        .map(drop)
        .map_err(VolumeError::Unmount)
    }
}

/// What to ask for to get just this one.
fn union_of(backend: Backend) -> UnionRequest {
    match backend {
        Backend::Aufs => UnionRequest::Aufs,
        Backend::Overlay => UnionRequest::Overlay,
        // A bind mount is made of a tree in the format of either.
        Backend::Bind => UnionRequest::Auto,
    }
}
