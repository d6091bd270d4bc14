//! Collection: removes from the store what nobody needs, by the rules of
//! [`crate::layer::collect`].
//!
//! ```text
//! mounts    what the kernel shows, in all namespaces, first of all
//! facts     what is there × who needs it, without any lock
//! decide    what goes, in which order, and why (pure)
//! remove    for each that goes: lock commits and leases → look again → its records
//!           go → unlock → its content goes
//! ```
//!
//! **Invariant:** what a volume's record, a lease, a promise or a mount names is
//! not removed, whoever collects, publishes or stages at the same time. Who needs
//! something says so before he looks whether it is there, under the lock under
//! which it is looked at last before something goes.

mod needs;
mod prefetch;
mod shown;

pub use prefetch::Prefetched;

use super::{ErrorKind, VolumeError, Volumes};
use crate::chain::{Chain, find};
use crate::image::reference::Source;
use crate::image::registry::RegistryError;
use crate::layer::collect::{
    Aim, Decision, Disk, Facts, Marks, Subject, Verdict, decide, still_goes, store_bytes,
};
use crate::layer::store::{BranchRecord, Collecting, StoreError};
use crate::stage::StageError;
use crate::telemetry::Collected;
use needs::Mounts;
use prefetch::Prefetch;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Most times that is looked again whether enough was freed: sizes are estimates.
const ROUNDS: usize = 3;

/// When something goes, and what never does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CollectSettings {
    /// When something goes.
    pub marks: Marks,
    /// Images that are staged at the start, and stay while they are listed here.
    pub prefetch: Vec<Source>,
}

/// What is known of collection in this process.
#[derive(Debug, Default)]
pub(super) struct Collection {
    settings: RwLock<Arc<CollectSettings>>,
    prefetch: Mutex<Prefetch>,
    runs: AtomicU64,
    /// How often room was made for somebody.
    rooms: AtomicU64,
    images: AtomicU64,
    layers: AtomicU64,
    bytes: AtomicU64,
}

impl Collection {
    pub(super) fn new(settings: CollectSettings) -> Self {
        Collection {
            settings: RwLock::new(Arc::new(settings)),
            ..Collection::default()
        }
    }
}

/// What was decided, and what came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Collect {
    /// Everything in the store, in the order in which it goes.
    pub decisions: Vec<Decision>,
    /// Images and layers of none that went.
    pub removed: usize,
    /// Bytes of the branches that went, as far as they can be estimated.
    pub freed: u64,
    /// What was left of interrupted work and went, and of pulls for want of space.
    pub residue: usize,
    /// Bytes that all branches had before.
    pub store_bytes: u64,
    /// Percent of the filesystem that was used before.
    pub used_percent: u8,
}

impl Volumes {
    /// When something goes from here on.
    pub fn set_collection(&self, settings: CollectSettings) {
        let mut place = self
            .collection
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *place = Arc::new(settings);
    }

    /// When something goes.
    pub fn collection(&self) -> Arc<CollectSettings> {
        let place = self.collection.settings.read();
        Arc::clone(&place.unwrap_or_else(PoisonError::into_inner))
    }

    /// What collection would do.
    pub fn plan_collection(&self, aim: Aim) -> Result<Collect, VolumeError> {
        let mounts = self.mounts()?;
        let facts = self.look(&mounts)?;
        Ok(report(
            &facts,
            decide(&facts, &self.collection().marks, aim),
        ))
    }

    /// Collects, unless somebody else does; with `wait`, after him.
    pub fn collect(&self, aim: Aim, wait: bool) -> Result<Option<Collect>, VolumeError> {
        match self.store.collect(wait).map_err(VolumeError::Store)? {
            Some(collecting) => self.collect_alone(aim, &collecting),
            None => Ok(None),
        }
    }

    fn collect_alone(
        &self,
        aim: Aim,
        collecting: &Collecting,
    ) -> Result<Option<Collect>, VolumeError> {
        // Or what is being removed is taken for what a dead process left.
        let _shared = self.store.lock_shared().map_err(VolumeError::Store)?;
        self.store.forget_the_dead().map_err(VolumeError::Store)?;
        // Somebody who is out of space needs it more than a pull that ended does.
        let downloads = match aim {
            Aim::Room { .. } => self.pulls.expire_after(Duration::ZERO),
            Aim::Marks | Aim::All => self.pulls.expire().map(|()| 0),
        };
        let downloads = downloads.unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "cannot remove old downloads");
            0
        });
        let marks = self.collection().marks.clone();
        let mounts = self.mounts()?;
        let mut all: Option<Collect> = None;
        for _ in 0..ROUNDS {
            let facts = self.look(&mounts)?;
            let decisions = decide(&facts, &marks, aim);
            let goes = decisions.iter().any(|decision| decision.verdict.goes());
            let round = all.get_or_insert_with(|| report(&facts, decisions.clone()));
            for decision in decisions.iter().filter(|it| it.verdict.goes()) {
                if let Some(freed) = self.remove(collecting, &mounts, &facts, decision)? {
                    round.removed += 1;
                    round.freed += freed;
                }
            }
            // Whether it was enough is measured; and what was made for several images
            // is nobody's once one of them is gone. But who needs room has some now,
            // and below the low mark he would get all in the next round.
            if !goes || matches!(aim, Aim::Room { .. }) {
                break;
            }
        }
        let residue = self.clear_up(collecting, &mounts)?;
        if let Some(all) = &mut all {
            all.residue = residue + downloads;
        }
        let counted = &self.collection;
        counted.runs.fetch_add(1, Ordering::Relaxed);
        if let Some(all) = &all
            && all.removed > 0
        {
            tracing::info!(
                removed = all.removed,
                freed = all.freed,
                used_percent = all.used_percent,
                "collected"
            );
        }
        Ok(all)
    }

    /// Collects if the disk is over its high mark or the store over its limit,
    /// which costs no more than a look; or, with `anyway`, what is too old.
    pub fn collect_if_needed(&self, anyway: bool) -> Result<Option<Collect>, VolumeError> {
        let marks = &self.collection().marks;
        let is_over = self.store_disk()?.used_percent() > marks.high
            || match marks.max_size {
                Some(max) => {
                    let branches = self.store.branches().map_err(VolumeError::Store)?;
                    let sizes = branches.iter().map(BranchRecord::disk_bytes);
                    sizes.fold(0, u64::saturating_add) > max
                }
                None => false,
            };
        match is_over || anyway {
            true => self.collect(Aim::Marks, false),
            false => Ok(None),
        }
    }

    /// What collection in this process came to, for metrics.
    pub fn collected(&self) -> Result<Collected, VolumeError> {
        let counted = &self.collection;
        let disk = self.store_disk()?;
        let marks = &self.collection().marks;
        Ok(Collected {
            runs: counted.runs.load(Ordering::Relaxed),
            images: counted.images.load(Ordering::Relaxed),
            layers: counted.layers.load(Ordering::Relaxed),
            bytes: counted.bytes.load(Ordering::Relaxed),
            disk_bytes: disk.bytes,
            disk_free: disk.bytes_free,
            high: marks.high,
            low: marks.low,
            limit: marks.max_size.unwrap_or(0),
        })
    }

    fn look(&self, mounts: &Mounts) -> Result<Facts, VolumeError> {
        let leases = self.store.held().map_err(VolumeError::Store)?;
        self.facts(mounts, leases.as_deref(), None)
    }

    /// Removes what a decision says, if it still holds. Gives what that frees.
    fn remove(
        &self,
        collecting: &Collecting,
        mounts: &Mounts,
        before: &Facts,
        decision: &Decision,
    ) -> Result<Option<u64>, VolumeError> {
        let store = &self.store;
        let mut removal = store
            .begin_removal(collecting)
            .map_err(VolumeError::Store)?;
        let leases = removal.leases().map_err(VolumeError::Store)?;
        let facts = self.facts(mounts, leases.as_deref(), Some(&before.branches))?;
        let Some(branches) = still_goes(&facts, &self.collection().marks, decision) else {
            return Ok(None);
        };
        let mut take = || -> Result<(), StoreError> {
            if let Subject::Image(manifest) = &decision.subject
                && let Some(image) = store.image(manifest)?
            {
                removal.image(&image)?;
            }
            branches.iter().try_for_each(|id| removal.branch(id))
        };
        take().map_err(VolumeError::Store)?;
        removal.end().map_err(VolumeError::Store)?;
        let sizes = before.branches.iter();
        let freed = sizes
            .filter(|branch| branches.contains(&branch.id))
            .map(|branch| branch.bytes)
            .sum();
        let counted = &self.collection;
        if let Subject::Image(_) = &decision.subject {
            counted.images.fetch_add(1, Ordering::Relaxed);
        }
        let layers = branches.len() as u64;
        counted.layers.fetch_add(layers, Ordering::Relaxed);
        counted.bytes.fetch_add(freed, Ordering::Relaxed);
        tracing::info!(
            what = ?decision.subject,
            names = ?decision.names,
            why = ?decision.verdict,
            layers,
            freed,
            "removed from the store"
        );
        Ok(Some(freed))
    }

    /// Removes what interrupted collections left, and what belonged to what is
    /// gone.
    fn clear_up(&self, collecting: &Collecting, mounts: &Mounts) -> Result<usize, VolumeError> {
        let store = &self.store;
        let mut removal = store
            .begin_removal(collecting)
            .map_err(VolumeError::Store)?;
        let Some(leases) = removal.leases().map_err(VolumeError::Store)? else {
            return Ok(0);
        };
        if mounts.is_unclear() {
            return Ok(0);
        }
        let found = removal
            .residue(&leases, &|id| mounts.show(id))
            .map_err(VolumeError::Store)?;
        if found > 0 {
            tracing::info!(found, "removed what was left of layers");
        }
        // A layer may be in the store, or on its way there.
        let branches = store.branches().map_err(VolumeError::Store)?;
        let mut kept: BTreeSet<String> = branches
            .into_iter()
            .filter_map(|branch| branch.diff_id)
            .collect();
        kept.extend(leases.into_iter().flat_map(|held| held.layers));
        self.pulls
            .forget_layers_but(&kept)
            .map_err(VolumeError::Store)?;
        removal.end().map_err(VolumeError::Store)?;
        Ok(found)
    }

    /// Makes room for somebody who has found none. Says what to do where that is
    /// not possible.
    pub(super) fn make_room(&self, failed: VolumeError) -> Result<(), VolumeError> {
        let need = Need::of(&failed);
        let before = self.collection.rooms.load(Ordering::SeqCst);
        let made = || {
            let Some(collecting) = self.store.collect(true).map_err(VolumeError::Store)? else {
                return Ok(None);
            };
            // All who wait for one image are out of space at once.
            if self.collection.rooms.load(Ordering::SeqCst) != before {
                return Ok(Some(true));
            }
            // Or whoever asks for more than there is empties the store for everybody.
            if !self.could_have(&need)? {
                return Ok(None);
            }
            tracing::warn!(error = %Chain(&failed), "no space: collecting");
            let collect = self.collect_alone(need.aim(), &collecting)?;
            let freed = collect.is_some_and(|it| it.removed + it.residue > 0);
            if freed {
                self.collection.rooms.fetch_add(1, Ordering::SeqCst);
            }
            Ok(Some(freed))
        };
        match made() {
            Ok(Some(true)) => Ok(()),
            Ok(Some(false) | None) => Err(self.no_room(failed)),
            Err(error) => {
                let error: VolumeError = error;
                tracing::error!(error = %Chain(&error), "cannot make room");
                Err(self.no_room(failed))
            }
        }
    }

    /// Whether there could be enough, if all went that may.
    fn could_have(&self, need: &Need) -> Result<bool, VolumeError> {
        let planned = self.plan_collection(Aim::All)?;
        let goes = planned.decisions.iter().filter(|it| it.verdict.goes());
        let freed = goes.map(|it| it.freed).fold(0, u64::saturating_add);
        let disk = self.store_disk()?.bytes_free.saturating_add(freed);
        let kept = planned.store_bytes.saturating_sub(freed);
        let limit = self.collection().marks.max_size;
        let fits = limit.is_none_or(|limit| kept.saturating_add(need.store) <= limit);
        Ok(need.disk <= disk && (need.store == 0 || fits))
    }

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

    /// As `work`, and once more if it finds no space and some can be made.
    pub(super) fn with_room<T>(
        &self,
        work: impl Fn() -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        match work() {
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => {
                self.make_room(error)?;
                work().map_err(|error| match error.kind() {
                    ErrorKind::ResourceExhausted => self.no_room(error),
                    _ => error,
                })
            }
            result => result,
        }
    }
}

/// How much somebody needs who is out of space, as far as he knows.
#[derive(Debug, Default)]
struct Need {
    /// Of the store's limit.
    store: u64,
    /// Of the disk.
    disk: u64,
}

impl Need {
    fn of(failed: &VolumeError) -> Self {
        let mut need = Need::default();
        if let VolumeError::NoRoomForLimit { needs, .. } = failed {
            need.disk = *needs;
        }
        if let Some(RegistryError::NoSpace { needed, .. }) = find(failed) {
            need.disk = *needed;
        }
        if let Some(StageError::Limit { needs, .. }) = find(failed) {
            need.store = *needs;
        }
        need
    }

    fn aim(&self) -> Aim {
        Aim::Room {
            store: self.store,
            disk: self.disk,
        }
    }
}

impl Disk {
    /// Percent that is used, of bytes or of inodes, whichever is more.
    #[must_use]
    pub fn used_percent(&self) -> u8 {
        let percent = |whole: u64, free: u64| {
            let used = u128::from(whole.saturating_sub(free)) * 100;
            used.div_ceil(u128::from(whole.max(1)))
        };
        let most = percent(self.bytes, self.bytes_free).max(percent(self.inodes, self.inodes_free));
        u8::try_from(most.min(100)).unwrap_or(100)
    }
}

fn report(facts: &Facts, decisions: Vec<Decision>) -> Collect {
    Collect {
        decisions,
        removed: 0,
        freed: 0,
        residue: 0,
        store_bytes: store_bytes(&facts.branches),
        used_percent: facts.disk.used_percent(),
    }
}
