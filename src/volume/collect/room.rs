//! Room for somebody who is out of space.
//!
//! As much goes as he is known to need. Where that is not known, as of an image that
//! did not fit while it was unpacked, it goes down to the low mark, and if the disk
//! is there already, all that may. It goes once for all who found no space at the
//! same time, and nothing goes for who needs more than there could be, not even
//! downloads that somebody may go on with.

use super::super::{ErrorKind, VolumeError, Volumes};
use super::needs::Mounts;
use crate::chain::{Chain, find};
use crate::image::reference::Source;
use crate::image::registry::RegistryError;
use crate::layer::collect::{Aim, Disk, Verdict, decide, store_bytes};
use crate::layer::store::BranchId;
use crate::stage::StageError;
use std::collections::{BTreeSet, HashMap};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What is enough for a few records and directories, in bytes; on a small disk, a
/// tenth.
const LITTLE: u64 = 64 << 20;
/// Most images of which it is known that they did not fit.
const REMEMBERED: usize = 256;
/// And for how long: a tag may lead to a smaller image by then.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);

/// How much somebody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// So many bytes of the disk.
    Disk(u64),
    /// So many bytes of the store's limit.
    Store(u64),
    /// More than so many bytes of the disk.
    More(u64),
}

impl Need {
    fn is_known(self) -> bool {
        !matches!(self, Need::More(_))
    }

    fn aim(self) -> Aim {
        match self {
            Need::Disk(disk) => Aim::Room { store: 0, disk },
            Need::Store(store) => Aim::Room { store, disk: 0 },
            Need::More(_) => Aim::Short,
        }
    }

    /// Whether it may be enough that so much is free on the disk, with so many bytes
    /// in the store.
    fn fits(self, disk: &Disk, size: u64, limit: Option<u64>) -> bool {
        let free = disk.bytes_free;
        let bytes = match self {
            Need::Disk(disk) => disk <= free,
            Need::Store(store) => limit.is_none_or(|limit| size.saturating_add(store) <= limit),
            // The sizes of what may go are estimates.
            Need::More(bytes) => bytes < free - free / 16,
        };
        bytes && disk.inodes_free >= disk.few_inodes()
    }

    /// What is needed by whoever failed for want of space; none where it is not the
    /// store's disk that is full.
    fn of(failed: &VolumeError, disk: &Disk, did_not_fit: Option<u64>) -> Option<Self> {
        match failed {
            VolumeError::NotReturned { source, .. }
            | VolumeError::NotBegun { source, .. }
            | VolumeError::Unclear { source, .. }
            | VolumeError::NotCleared { source, .. }
            | VolumeError::Image { source, .. } => Need::of(source, disk, did_not_fit),
            VolumeError::NoRoomForLimit { needs, .. } => Some(Need::Disk(*needs)),
            VolumeError::Pull { source, .. } => match source.registry() {
                Some(RegistryError::NoSpace {
                    needed, reserved, ..
                }) => Some(Need::Disk(needed.saturating_add(*reserved))),
                _ => Some(Need::of_staging(failed, did_not_fit)),
            },
            VolumeError::Stage(_) | VolumeError::Source(_) | VolumeError::Store(_) => {
                Some(Need::of_staging(failed, did_not_fit))
            }
            // Memory; or all has gone that may.
            VolumeError::Limit(_) | VolumeError::NoRoom { .. } => None,
            _ => Some(Need::Disk(LITTLE.min(disk.bytes / 10))),
        }
    }

    fn of_staging(failed: &VolumeError, did_not_fit: Option<u64>) -> Self {
        match find(failed) {
            Some(StageError::Limit { needs, .. }) => Need::Store(*needs),
            _ => Need::More(did_not_fit.unwrap_or(0)),
        }
    }
}

/// What making room came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Nothing.
    None,
    /// There is some, or more of it.
    Some,
    /// All that may go has gone.
    All,
}

/// What did not fit into so many bytes, after all had gone that may: whoever asks for
/// it again and again does not empty the store each time.
#[derive(Debug, Default)]
pub(super) struct TooLarge(HashMap<Vec<Source>, (u64, Instant)>);

impl TooLarge {
    fn note(&mut self, images: &[Source], free: u64) {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(images.to_vec(), (free, Instant::now()));
    }

    fn get(&self, images: &[Source]) -> Option<u64> {
        let (free, noted) = self.0.get(images)?;
        (noted.elapsed() < REMEMBERED_FOR).then_some(*free)
    }
}

impl Volumes {
    /// As `work`, which wants these images, and once more if it finds no space and
    /// there can be some.
    pub(in super::super) fn with_room<T>(
        &self,
        images: impl FnOnce() -> Vec<Source>,
        work: impl Fn() -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let before = self.collection.freed.load(Ordering::SeqCst);
        let failed = match work() {
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => error,
            result => return result,
        };
        let images = &images();
        let Some(need) = self.need_of(&failed, images) else {
            return Err(failed);
        };
        let made = match self.make_room(need, before, &failed) {
            Ok(Made::None) => return Err(self.no_room(failed)),
            Ok(made) => made,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot make room");
                return Err(self.no_room(failed));
            }
        };
        let free = self.store_disk().map_or(0, |disk| disk.bytes_free);
        let is_alone = !self.pulls.are_running();
        let failed = match work() {
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => error,
            result => {
                if result.is_ok() {
                    self.too_large().0.remove(images);
                }
                return result;
            }
        };
        match self.need_of(&failed, images) {
            None => Err(failed),
            // The store's disk is not what is full.
            Some(need) if need.is_known() && self.has(need).unwrap_or(false) => Err(failed),
            Some(need) => {
                // Of one that others took the space from, nothing is known.
                let is_alone = is_alone && !self.pulls.are_running();
                if !need.is_known() && made == Made::All && is_alone {
                    self.too_large().note(images, free);
                }
                Err(self.no_room(failed))
            }
        }
    }

    /// Makes room, unless there is some by now. Whether another attempt is worth it.
    fn make_room(
        &self,
        need: Need,
        before: u64,
        failed: &VolumeError,
    ) -> Result<Made, VolumeError> {
        let Some(collecting) = self.store.collect(true).map_err(VolumeError::Store)? else {
            return Ok(Made::None);
        };
        let _shared = self.store.lock_shared().map_err(VolumeError::Store)?;
        let is_there = match need.is_known() {
            true => self.has(need)?,
            // Others who wait for the same image were out of space at the same time.
            false => self.collection.freed.load(Ordering::SeqCst) != before,
        };
        if is_there {
            return Ok(Made::Some);
        }
        let mounts = self.mounts()?;
        // What is nobody's goes whatever becomes of this.
        self.store.forget_the_dead().map_err(VolumeError::Store)?;
        self.clear_up(&collecting, &mounts)?;
        if !self.could_have(need, &mounts)? {
            return Ok(Made::None);
        }
        tracing::warn!(error = %Chain(failed), ?need, "no space: collecting");
        // Somebody who is out of space needs it more than a pull that ended does.
        let tidied = self.tidy(Some(Duration::ZERO))?;
        if need.is_known() && self.has(need)? {
            self.collection.freed.fetch_add(1, Ordering::SeqCst);
            return Ok(Made::Some);
        }
        let collect = self.collect_alone(need.aim(), &collecting, &mounts, tidied)?;
        let mut decisions = collect.decisions.iter();
        let is_all = decisions.all(|it| it.verdict != Verdict::Room);
        Ok(match (collect.removed + collect.residue, is_all) {
            (0, _) => Made::None,
            (_, true) => Made::All,
            (_, false) => Made::Some,
        })
    }

    /// Whether there could be enough, if all went that may. Or whoever asks for more
    /// than there is empties the store for everybody.
    fn could_have(&self, need: Need, mounts: &Mounts) -> Result<bool, VolumeError> {
        let facts = self.look(mounts)?;
        let marks = self.collection().marks.clone();
        let all = decide(&facts, &marks, Aim::All);
        let goes: BTreeSet<&BranchId> = all.iter().flat_map(|it| &it.branches).collect();
        let goes = facts.branches.iter().filter(|it| goes.contains(&it.id));
        let (mut bytes, mut entries) = (0_u64, 0_u64);
        for branch in goes {
            bytes = bytes.saturating_add(branch.bytes);
            entries = entries.saturating_add(branch.entries);
        }
        let idle = self.pulls.idle_bytes().map_err(VolumeError::Store)?;
        let mut disk = facts.disk;
        disk.bytes_free = disk.bytes_free.saturating_add(bytes).saturating_add(idle);
        disk.inodes_free = disk.inodes_free.saturating_add(entries);
        let size = store_bytes(&facts.branches).saturating_sub(bytes);
        Ok(need.fits(&disk, size, marks.max_size))
    }

    fn has(&self, need: Need) -> Result<bool, VolumeError> {
        let size = self.store_size()?;
        let limit = self.collection().marks.max_size;
        Ok(need.fits(&self.store_disk()?, size, limit))
    }

    fn need_of(&self, failed: &VolumeError, images: &[Source]) -> Option<Need> {
        let disk = self.store_disk().unwrap_or_default();
        let did_not_fit = self.too_large().get(images);
        Need::of(failed, &disk, did_not_fit)
    }

    fn too_large(&self) -> std::sync::MutexGuard<'_, TooLarge> {
        let place = self.collection.too_large.lock();
        place.unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what to do, where no room can be made.
    fn no_room(&self, failed: VolumeError) -> VolumeError {
        // Where it cannot be looked at either, the numbers are not worth an error.
        let looked = self.plan_collection(Aim::All).ok();
        let count = |is: fn(&Verdict) -> bool| {
            let decisions = looked.iter().flat_map(|collect| &collect.decisions);
            decisions.filter(|it| is(&it.verdict)).count()
        };
        VolumeError::NoRoom {
            root: self.store.root().to_owned(),
            needed: count(|it| matches!(it, Verdict::Needed(_))),
            young: count(|it| matches!(it, Verdict::Young(_))),
            source: Box::new(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::SourceError;
    use crate::pull::PullError;
    use rustix::io::Errno;
    use std::io;
    use std::sync::Arc;

    fn disk() -> Disk {
        Disk {
            bytes: 1 << 40,
            bytes_free: 1 << 39,
            ..Disk::default()
        }
    }

    fn need(error: &VolumeError) -> Option<Need> {
        Need::of(error, &disk(), Some(5))
    }

    fn pull(source: PullError) -> VolumeError {
        VolumeError::Pull {
            image: "quay.io/a/b:1".to_owned(),
            source: Arc::new(source),
        }
    }

    /// However deep it is, and although some errors show their cause's text alone.
    #[test]
    fn what_a_registry_says_is_needed_is_found() {
        let no_space = || RegistryError::NoSpace {
            needed: 100,
            available: 10,
            reserved: 7,
        };
        let known = Some(Need::Disk(107));
        assert_eq!(need(&pull(PullError::Registry(no_space()))), known);
        let staged = StageError::Source(SourceError::Registry(no_space()));
        assert_eq!(need(&pull(PullError::Stage(staged))), known);
        let full = || io::Error::from(Errno::NOSPC);
        let disk = PullError::Registry(RegistryError::Disk(full()));
        assert_eq!(need(&pull(disk)), Some(Need::More(5)));
        let staged = StageError::Limit {
            needs: 9,
            has: 0,
            limit: 8,
        };
        let limited = Some(Need::Store(9));
        assert_eq!(need(&pull(PullError::Stage(staged))), limited);
    }

    #[test]
    fn who_needs_no_space_of_the_store_gets_none() {
        let memory = VolumeError::Limit(Errno::NOMEM.into());
        assert_eq!(need(&memory), None);
        let large = VolumeError::NoRoomForLimit {
            needs: 3,
            source: Errno::NOSPC.into(),
        };
        let again = VolumeError::not_returned("v")(large);
        assert_eq!(need(&again), Some(Need::Disk(3)));
        let group = VolumeError::Group {
            target: "/t".into(),
            source: Errno::NOSPC.into(),
        };
        // Its own small filesystem may be the one that is full.
        assert_eq!(need(&group), Some(Need::Disk(LITTLE)));
    }

    #[test]
    fn the_needs_are_compared_with_what_there_is() {
        let limit = Some(100);
        let disk = |bytes_free| Disk {
            bytes_free,
            ..disk()
        };
        for (need, free, size, fits) in [
            (Need::Disk(50), 50, 1000, true),
            (Need::Disk(51), 50, 0, false),
            (Need::Store(50), 0, 50, true),
            (Need::Store(50), 1000, 51, false),
            (Need::More(0), 1, 1000, true),
            (Need::More(100), 104, 0, false),
            (Need::More(100), 120, 0, true),
        ] {
            assert_eq!(need.fits(&disk(free), size, limit), fits, "{need:?}");
        }
        assert!(Need::Store(u64::MAX).fits(&disk(0), 1, None));
        let without_inodes = Disk {
            inodes: 1_000_000,
            inodes_free: 3,
            ..disk(1000)
        };
        assert!(!Need::Disk(1).fits(&without_inodes, 0, None));
    }
}
