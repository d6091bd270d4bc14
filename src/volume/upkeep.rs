//! Putting right what crashes, reboots and a forgetful kubelet leave: at the
//! start all at once, and then from time to time.

use super::lock::{self, VolumeLock};
use super::pods::{self, PodDirectory};
use super::record::{self, VolumeRecord, VolumeState};
use super::recover::{self, Found, Node, Reason, Repair};
use super::unpublish::{End, Target};
use super::{VolumeError, Volumes, canonical};
use crate::chain::Chain;
use crate::host::MountEntry;
use crate::layer::store::StoreError;
use crate::union;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long kubelet must know nothing of a volume before it is taken away.
/// In the course of making and removing a volume it does not for a moment.
pub const DOUBT: Duration = Duration::from_secs(120);
/// How long each unmount of upkeep waits for who still uses a volume: what is
/// busy is left for the next time.
const PATIENCE: Duration = Duration::from_millis(200);

/// Volumes that kubelet seems to have forgotten, and since when.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<HashMap<PathBuf, Instant>>);

impl Doubts {
    /// The map is whole after every statement, whoever panicked.
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was put right, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Kinds of what was done, one for each volume or mount.
    pub done: Vec<&'static str>,
    /// Volumes and mounts that should be gone and are still in use.
    pub stuck: usize,
}

impl Volumes {
    /// Puts right what an earlier process left. To be called before anybody asks
    /// for a volume; what cannot be put right is logged and tried again later.
    pub fn recover(&self, kubelet_root: &Path) -> Result<Upkeep, VolumeError> {
        let mut upkeep = Upkeep::default();
        // Targets are recorded, and mounts listed, by paths without links.
        let kubelet_root = &canonical(kubelet_root)?;
        self.forget_damaged(&mut upkeep)?;
        // Before the records, for another process may be at work: what is mounted
        // was recorded before, so that no mount is in the table whose record is
        // missing only because it was looked for too early.
        let table = self.table()?;
        let repairs = self.repairs(&table, kubelet_root)?;
        for repair in &repairs {
            tracing::info!(repair = repair.kind(), what = ?repair, "putting right what was left");
            self.apply(repair, kubelet_root, &mut upkeep);
        }
        if repairs
            .iter()
            .any(|repair| matches!(repair, Repair::Unmount { .. }))
        {
            // Directories in which something was mounted when the store was opened.
            lock::remove_idle(&self.store.volumes_dir()).map_err(VolumeError::Store)?;
        }
        let (ended, stuck) = self.tidy_shared()?;
        upkeep.done.extend(vec!["shared"; ended]);
        upkeep.stuck += stuck;
        Ok(upkeep)
    }

    /// What has to be put right, by the records and a mount table that was read
    /// before.
    fn repairs(
        &self,
        table: &[MountEntry],
        kubelet_root: &Path,
    ) -> Result<Vec<Repair>, VolumeError> {
        let found = self.found(kubelet_root)?;
        let mut unreadable = record::directories(&self.store).map_err(VolumeError::Store)?;
        unreadable
            .retain(|dir| record::exists(dir) && !found.iter().any(|found| found.dir == *dir));
        let node = Node {
            boot: self.store.boot(),
            kubelet_root,
            volumes_dir: &self.store.volumes_dir(),
            unreadable: &unreadable,
        };
        Ok(recover::repairs(&found, table, &node))
    }

    /// Takes away volumes that kubelet has forgotten and nobody uses, and mounts
    /// of ours that nothing knows; and finishes what could not be finished.
    pub fn reap(&self, kubelet_root: &Path, doubt: Duration) -> Result<Upkeep, VolumeError> {
        let mut upkeep = Upkeep::default();
        let kubelet_root = &canonical(kubelet_root)?;
        let found = self.found(kubelet_root)?;
        let forgotten = self.forgotten(&found, doubt);
        for found in &found {
            let is_leaving =
                found.record.state == VolumeState::Leaving && recover::is_ours(&found.record);
            if !is_leaving && !forgotten.contains(&found.dir) {
                continue;
            }
            let why = match is_leaving {
                true => Reason::Leaving,
                false => Reason::Forgotten,
            };
            let dir = found.dir.clone();
            self.apply(&Repair::TakeDown { dir, why }, kubelet_root, &mut upkeep);
        }
        Ok(upkeep)
    }

    /// Has the branches that volumes and images need on disk, so that a power
    /// loss does not cost them.
    pub fn flush(&self) -> Result<(), VolumeError> {
        let pending: Vec<_> = self
            .store
            .branches()
            .map_err(VolumeError::Store)?
            .into_iter()
            .filter(|branch| branch.boot.is_some())
            .map(|branch| branch.id)
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        self.store.flush(&pending).map_err(VolumeError::Store)
    }

    /// Volumes of the plugin of which kubelet has known nothing for as long as
    /// `doubt`.
    fn forgotten(&self, found: &[Found], doubt: Duration) -> Vec<PathBuf> {
        let mut doubts = self.doubts.lock();
        let doubtful =
            |found: &&Found| recover::is_ours(&found.record) && found.pod != PodDirectory::Present;
        let now = Instant::now();
        let before = std::mem::take(&mut *doubts);
        for found in found.iter().filter(doubtful) {
            let since = before.get(&found.dir).copied().unwrap_or(now);
            doubts.insert(found.dir.clone(), since);
        }
        doubts
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= doubt)
            .map(|(dir, _)| dir.clone())
            .collect()
    }

    fn apply(&self, repair: &Repair, kubelet_root: &Path, upkeep: &mut Upkeep) {
        let result = match repair {
            Repair::TakeDown { dir, why } => self.take_away(dir, *why, kubelet_root),
            Repair::Adopt { dir } => self.adopt(dir),
            // Nothing is to be done but to keep it.
            Repair::Await { .. } => Ok(Outcome::Done),
            Repair::Unmount { at } => self.unmount_orphan(at, repair, kubelet_root),
        };
        match result {
            Ok(Outcome::Done) => upkeep.done.push(repair.kind()),
            Ok(Outcome::Left) => {}
            Ok(Outcome::InUse) => upkeep.stuck += 1,
            Err(error) => {
                upkeep.stuck += 1;
                tracing::warn!(
                    repair = repair.kind(),
                    what = ?repair,
                    error = %Chain(&error),
                    "cannot put it right now"
                );
            }
        }
    }

    /// Takes a volume down, unless somebody works on it or still uses it.
    fn take_away(
        &self,
        dir: &Path,
        why: Reason,
        kubelet_root: &Path,
    ) -> Result<Outcome, VolumeError> {
        let Some(lock) = VolumeLock::try_take(dir).map_err(VolumeError::Store)? else {
            return Ok(Outcome::Left);
        };
        let Some(record) = record::read(dir).map_err(VolumeError::Store)? else {
            return self.is_gone(dir, lock);
        };
        // It may have become another one before it was locked: another process
        // may have mounted it to the end, or kubelet may want it again.
        let is_still = match why {
            Reason::Interrupted => record.state == VolumeState::Intended,
            Reason::Leaving => record.state == VolumeState::Leaving,
            Reason::Forgotten => pod_of(&record, kubelet_root) != PodDirectory::Present,
        };
        if !is_still || !recover::is_ours(&record) {
            return Ok(Outcome::Left);
        }
        if why == Reason::Forgotten && self.is_in_use(&record)? {
            return Ok(Outcome::InUse);
        }
        self.take_down_within(dir, &record, Target::Own, End::Gone, PATIENCE)?;
        tracing::info!(
            volume.id = record.volume_id,
            pod = record.pod.map(tracing::field::display),
            why = why.name(),
            "the volume was taken away"
        );
        lock.remove().map_err(VolumeError::Store)?;
        Ok(Outcome::Done)
    }

    /// The volume ended before it was locked: the lock has made its file anew,
    /// and nobody else would remove that.
    fn is_gone(&self, dir: &Path, lock: VolumeLock) -> Result<Outcome, VolumeError> {
        self.remove_volume_dir(dir)?;
        lock.remove().map_err(VolumeError::Store)?;
        Ok(Outcome::Left)
    }

    /// Whether a process of the node, in a container most likely, still has the
    /// volume. What cannot be found out counts as yes.
    fn is_in_use(&self, record: &VolumeRecord) -> Result<bool, VolumeError> {
        if record.boot != self.store.boot() || !self.is_mount(&record.target)? {
            return Ok(false);
        }
        match self.host.holders(&self.options.host_proc, &record.target) {
            Ok(holders) => {
                for holder in &holders {
                    tracing::warn!(
                        volume.id = record.volume_id,
                        %holder,
                        "kubelet has forgotten a volume that is in use"
                    );
                }
                Ok(!holders.is_empty())
            }
            Err(error) => {
                tracing::warn!(
                    volume.id = record.volume_id,
                    %error,
                    "whether a volume that kubelet has forgotten is in use cannot be found out"
                );
                Ok(true)
            }
        }
    }

    fn adopt(&self, dir: &Path) -> Result<Outcome, VolumeError> {
        let Some(lock) = VolumeLock::try_take(dir).map_err(VolumeError::Store)? else {
            return Ok(Outcome::Left);
        };
        let Some(mut record) = record::read(dir).map_err(VolumeError::Store)? else {
            return self.is_gone(dir, lock);
        };
        if record.state != VolumeState::Returning || !self.shows(&record)? {
            return Ok(Outcome::Left);
        }
        self.complete(dir, &mut record)?;
        Ok(Outcome::Done)
    }

    /// Only the mount itself: what is stacked there beneath it may be another's,
    /// and so may by now be what is on top.
    fn unmount_orphan(
        &self,
        at: &Path,
        repair: &Repair,
        kubelet_root: &Path,
    ) -> Result<Outcome, VolumeError> {
        let top = self
            .host
            .mount_at(at)
            .map_err(|source| VolumeError::Target {
                target: at.to_owned(),
                source,
            })?;
        if !self.repairs(top.as_slice(), kubelet_root)?.contains(repair) {
            return Ok(Outcome::Left);
        }
        union::unmount_top(self.host.as_ref(), at, PATIENCE).map_err(VolumeError::Unmount)?;
        Ok(Outcome::Done)
    }

    /// Removes volumes whose record a power loss cut short. Records are replaced
    /// by renames, so in the boot that wrote them they are whole: nothing of such
    /// a volume is mounted, unless somebody has damaged the store.
    fn forget_damaged(&self, upkeep: &mut Upkeep) -> Result<(), VolumeError> {
        let table = self.table()?;
        for dir in record::directories(&self.store).map_err(VolumeError::Store)? {
            let Err(error @ StoreError::Damaged { .. }) = record::read(&dir) else {
                continue;
            };
            if record::is_newer(&dir) {
                tracing::warn!(error = %Chain(&error), "a newer version's volume is left alone");
                continue;
            }
            let is_mounted = table.iter().any(|entry| recover::is_of(&dir, entry));
            if is_mounted {
                upkeep.stuck += 1;
                tracing::error!(error = %Chain(&error), "a mounted volume has no readable record");
                continue;
            }
            tracing::warn!(error = %Chain(&error), "removing a volume that a power loss cut short");
            let Some(lock) = VolumeLock::try_take(&dir).map_err(VolumeError::Store)? else {
                continue;
            };
            // Whoever was asked for the volume has made it anew.
            match record::read(&dir) {
                Err(StoreError::Damaged { .. }) => {}
                Ok(None) => {
                    self.is_gone(&dir, lock)?;
                    continue;
                }
                Ok(Some(_)) | Err(_) => continue,
            }
            self.remove_dir_tree(&dir)?;
            lock.remove().map_err(VolumeError::Store)?;
            upkeep.done.push("damaged");
        }
        Ok(())
    }

    fn found(&self, kubelet_root: &Path) -> Result<Vec<Found>, VolumeError> {
        let mut found = Vec::new();
        for (dir, record) in record::all(&self.store).map_err(VolumeError::Store)? {
            let pod = pod_of(&record, kubelet_root);
            found.push(Found { dir, record, pod });
        }
        Ok(found)
    }

    pub(super) fn table(&self) -> Result<Vec<MountEntry>, VolumeError> {
        self.host
            .mount_table()
            .map_err(StoreError::io("read", Path::new("the mount table")))
            .map_err(VolumeError::Store)
    }
}

/// What kubelet has of a volume.
fn pod_of(record: &VolumeRecord, kubelet_root: &Path) -> PodDirectory {
    pods::directory_of(kubelet_root, &record.target).unwrap_or_else(|error| {
        // What cannot be looked at is not taken for gone.
        tracing::warn!(volume.id = record.volume_id, %error, "cannot look for its pod");
        PodDirectory::Present
    })
}

/// What came of a repair.
enum Outcome {
    Done,
    /// Somebody else is at it, or was.
    Left,
    InUse,
}
