//! From a record, or from nothing but a path, to no volume.

use super::record::{self, Owner, VolumeRecord, VolumeState};
use super::{UnpublishRequest, VolumeError, Volumes, canonical, lock::VolumeLock};
use crate::chain::Chain;
use crate::layer::steps;
use crate::layer::store::StoreError;
use crate::union::{self, Backend, UnmountError};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long an unmount waits for whoever still uses the volume, within one call.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(30);

/// Whose the mount at a volume's target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The volume's own, if there is one.
    Own,
    /// Somebody was there before the volume could be mounted.
    Anothers,
}

/// What becomes of a volume that is taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing is left of it.
    Gone,
    /// Its record stays, of what it is to be mounted of again.
    Again,
}

impl Volumes {
    /// Unmounts a volume and removes what was its own. Unknown is fine.
    pub fn unpublish(&self, request: &UnpublishRequest) -> Result<(), VolumeError> {
        let dir = record::directory(&self.store, &request.volume_id);
        let lock = VolumeLock::take(&dir).map_err(VolumeError::Store)?;
        let result = self.unpublish_locked(request, &dir);
        if result.is_ok() {
            self.pulls.end_promise(&request.volume_id);
        }
        lock.end(&dir, result)
    }

    fn unpublish_locked(&self, request: &UnpublishRequest, dir: &Path) -> Result<(), VolumeError> {
        let target = canonical(&request.target)?;
        if let Some(record) = self.read_record(dir, &target)? {
            if record.target != target {
                return Err(VolumeError::OtherTarget {
                    volume_id: request.volume_id.clone(),
                    target: record.target,
                });
            }
            self.take_down(dir, &record, Target::Own, End::Gone)
        } else {
            if request.clear_target {
                self.clear_target(&target)?;
            }
            self.remove_volume_dir(dir)
        }
    }

    /// As [`Volumes::unpublish`], for whoever knows only where the volume is, or
    /// only its id.
    pub fn unpublish_named(&self, volume: &str) -> Result<(), VolumeError> {
        let (_, record) = self.find(volume)?;
        self.unpublish(&UnpublishRequest {
            volume_id: record.volume_id,
            target: record.target,
            clear_target: false,
        })
    }

    /// Takes away what no record knows at a target that kubelet made for one
    /// volume: its record was lost with the disk that it was on, or it was never
    /// there and neither is a mount.
    fn clear_target(&self, target: &Path) -> Result<(), VolumeError> {
        if self.is_mount(target)? {
            let records = record::all(&self.store).map_err(VolumeError::Store)?;
            if let Some((_, other)) = records
                .into_iter()
                .find(|(_, other)| other.target == target)
            {
                return Err(VolumeError::OtherVolume {
                    target: target.to_owned(),
                    volume_id: other.volume_id,
                });
            }
            tracing::warn!(
                volume.path = %target.display(),
                "unmounting a volume of which nothing is recorded"
            );
            self.unmount(target, &[target], None)?;
        }
        remove_target(target)
    }

    /// Idempotent: every step may have been done by a process that was killed.
    pub(super) fn take_down(
        &self,
        dir: &Path,
        record: &VolumeRecord,
        target: Target,
        end: End,
    ) -> Result<(), VolumeError> {
        self.take_down_within(dir, record, target, end, UNMOUNT_PATIENCE)
    }

    /// As [`Volumes::take_down`], waiting at most that long for who still uses it.
    pub(super) fn take_down_within(
        &self,
        dir: &Path,
        record: &VolumeRecord,
        target: Target,
        end: End,
        patience: Duration,
    ) -> Result<(), VolumeError> {
        let mut record = record.clone();
        // What was mounted before a reboot is not mounted any more.
        if record.boot == self.store.boot() {
            let is_own = target == Target::Own && self.may_unmount(&record)?;
            self.leave(dir, &mut record, end, is_own)?;
            let mut paths = Vec::new();
            if is_own {
                paths.push(record.target.as_path());
            }
            paths.push(&record.plan.staging);
            match record.shared {
                // The union stays for others; of its end, see below.
                Some(_) => self.detach_within(&record.target, &paths, patience)?,
                None => {
                    let aufs_id = record.aufs_id.as_deref();
                    self.unmount_within(&record.target, &paths, aufs_id, patience)?;
                }
            }
        } else {
            self.leave(dir, &mut record, end, false)?;
        }
        // Whatever the boot: a process may have died that was about to mount it again.
        self.unmount_filesystem(dir, patience)?;
        if target == Target::Own && (record.target_created || record.owner == Owner::Plugin) {
            remove_target(&record.target)?;
        }
        self.leave_shared(dir, &record, patience)?;
        if let (Some(xino), None) = (&record.plan.xino, &record.shared) {
            self.host
                .remove_stale(xino)
                .map_err(StoreError::io("remove", xino))
                .map_err(VolumeError::Store)?;
        }
        // The writable layer first and the record last, so that a kill in
        // between leaves a record of what is still there.
        for name in ["upper", "work", "staging", "fs", "image"] {
            self.remove_dir_tree(&dir.join(name))?;
        }
        if let Some(writable) = &record.plan.writable {
            self.counted.forget(&writable.upper);
        }
        if end == End::Again {
            return Ok(());
        }
        // The end of its use; the image may be looked at as soon as the record is gone.
        for image in &record.images {
            if let Err(error) = self.store.touch(&image.manifest) {
                tracing::warn!(error = %Chain(&error), "the image looks less used than it is");
            }
        }
        self.remove_dir_tree(dir)
    }

    /// Whether the mounts at the target are the volume's to take down.
    fn may_unmount(&self, record: &VolumeRecord) -> Result<bool, VolumeError> {
        match record.owner {
            // kubelet made the target for this volume alone.
            Owner::Plugin => Ok(true),
            Owner::Command if self.shows(record)? => Ok(true),
            // Somebody else may have mounted something over it, or may see it
            // where this process does not.
            Owner::Command => {
                let is_covered = self
                    .host
                    .mount_table()
                    .map_err(|source| VolumeError::Target {
                        target: record.target.clone(),
                        source,
                    })?
                    .iter()
                    .any(|entry| {
                        entry.mount_point == record.target
                            && record.plan.owns(record.aufs_id.as_deref(), entry)
                    });
                if is_covered {
                    return Err(VolumeError::Covered {
                        target: record.target.clone(),
                    });
                }
                if self.is_elsewhere(record) {
                    return Err(VolumeError::OtherNamespace {
                        volume_id: record.volume_id.clone(),
                    });
                }
                Ok(false)
            }
        }
    }

    /// Whether the volume was mounted in another mount namespace, in which
    /// processes still run. What cannot be found out counts as yes.
    pub(super) fn is_elsewhere(&self, record: &VolumeRecord) -> bool {
        record.mount_namespace != self.namespace
            && self
                .host
                .is_namespace_alive(&self.options.host_proc, record.mount_namespace)
                .unwrap_or(true)
    }

    /// Says in the record that the volume goes, or begins again, and which union of AUFS it is,
    /// for that cannot be found out any more once it is unmounted here.
    fn leave(
        &self,
        dir: &Path,
        record: &mut VolumeRecord,
        end: End,
        is_mounted: bool,
    ) -> Result<(), VolumeError> {
        let known = record.aufs_id.clone();
        if record.plan.backend == Backend::Aufs && known.is_none() && is_mounted {
            let host = self.host.as_ref();
            record.aufs_id = union::union_at(host, &record.target)
                .or_else(|| union::union_at(host, &record.plan.staging));
        }
        let state = match end {
            End::Gone => VolumeState::Leaving,
            End::Again => VolumeState::Beginning,
        };
        if record.state == state && record.aufs_id == known {
            return Ok(());
        }
        record.state = state;
        match record::write(dir, record) {
            // Taking volumes down is what gives the space back; and a volume
            // that is recorded and not mounted is taken down as well.
            Err(error) if error.is_out_of_space() => {
                tracing::warn!(
                    volume.id = record.volume_id,
                    "no space to record the unmount"
                );
                Ok(())
            }
            result => result.map_err(VolumeError::Store),
        }
    }

    fn unmount(
        &self,
        target: &Path,
        paths: &[&Path],
        aufs_id: Option<&str>,
    ) -> Result<(), VolumeError> {
        self.unmount_within(target, paths, aufs_id, UNMOUNT_PATIENCE)
    }

    fn unmount_within(
        &self,
        target: &Path,
        paths: &[&Path],
        aufs_id: Option<&str>,
        patience: Duration,
    ) -> Result<(), VolumeError> {
        let result = union::unmount_union(self.host.as_ref(), paths, aufs_id, patience);
        if let Err(UnmountError::Busy { .. }) = &result {
            self.log_holders(target);
        }
        result.map(drop).map_err(VolumeError::Unmount)
    }

    /// Takes the mounts at these paths down, and not the union behind them.
    fn detach_within(
        &self,
        target: &Path,
        paths: &[&Path],
        patience: Duration,
    ) -> Result<(), VolumeError> {
        for path in paths {
            let result = union::detach(self.host.as_ref(), path, patience);
            if let Err(UnmountError::Busy { .. }) = &result {
                self.log_holders(target);
            }
            result.map_err(VolumeError::Unmount)?;
        }
        Ok(())
    }

    /// Names who keeps a volume from being unmounted: the operator's only lead.
    fn log_holders(&self, target: &Path) {
        match self.host.holders(&self.options.host_proc, target) {
            Ok(holders) if holders.is_empty() => tracing::warn!(
                volume.path = %target.display(),
                proc = %self.options.host_proc.display(),
                "the volume is busy, and no process that can be seen holds it"
            ),
            Ok(holders) => {
                for holder in holders {
                    tracing::warn!(volume.path = %target.display(), %holder, "the volume is busy");
                }
            }
            Err(error) => tracing::warn!(
                volume.path = %target.display(),
                %error,
                "the volume is busy, and who holds it cannot be found out"
            ),
        }
    }
}

/// Removes a directory that was made for a volume. Never more than the empty
/// directory: what is in it is not ours.
fn remove_target(target: &Path) -> Result<(), VolumeError> {
    steps::before("remove the target");
    match fs::remove_dir(target) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(VolumeError::Target {
            target: target.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
