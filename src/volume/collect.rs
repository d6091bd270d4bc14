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
mod room;
mod shown;

pub use prefetch::Prefetched;

use super::{VolumeError, Volumes};
use crate::chain::Chain;
use crate::image::reference::Source;
use crate::layer::collect::{
    Aim, Decision, Disk, Facts, Marks, Subject, decide, still_goes, store_bytes,
};
use crate::layer::store::{BranchRecord, Collecting, StoreError};
use crate::telemetry::Collected;
use needs::Mounts;
use prefetch::Prefetch;
use room::TooLarge;
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
    /// How often something was freed.
    freed: AtomicU64,
    too_large: Mutex<TooLarge>,
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
        let Some(collecting) = self.store.collect(wait).map_err(VolumeError::Store)? else {
            return Ok(None);
        };
        // Or what is being removed is taken for what a dead process left.
        let _shared = self.store.lock_shared().map_err(VolumeError::Store)?;
        let downloads = self.tidy(None)?;
        self.collect_alone(aim, &collecting, &self.mounts()?, downloads)
            .map(Some)
    }

    /// Removes what belongs to nobody any more: leases of the dead, and downloads
    /// that nobody has gone on with for `age`, else for an hour. Gives the number of
    /// downloads.
    fn tidy(&self, age: Option<Duration>) -> Result<usize, VolumeError> {
        self.store.forget_the_dead().map_err(VolumeError::Store)?;
        let downloads = match age {
            Some(age) => self.pulls.expire_after(age),
            None => self.pulls.expire().map(|()| 0),
        };
        Ok(downloads.unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "cannot remove old downloads");
            0
        }))
    }

    /// With the store locked, and tidied of so many things.
    fn collect_alone(
        &self,
        aim: Aim,
        collecting: &Collecting,
        mounts: &Mounts,
        tidied: usize,
    ) -> Result<Collect, VolumeError> {
        let marks = self.collection().marks.clone();
        let mut facts = self.look(mounts)?;
        let mut decisions = decide(&facts, &marks, aim);
        let mut all = report(&facts, decisions.clone());
        for _ in 0..ROUNDS {
            let goes = decisions.iter().any(|decision| decision.verdict.goes());
            for decision in decisions.iter().filter(|it| it.verdict.goes()) {
                if let Some(freed) = self.remove(collecting, mounts, &facts, decision)? {
                    all.removed += 1;
                    all.freed += freed;
                }
            }
            // Whether it was enough is measured; and what was made for several images
            // is nobody's once one of them is gone. But who needs room has some now,
            // and below the low mark he would get all in the next round.
            if !goes || matches!(aim, Aim::Room { .. } | Aim::Short) {
                break;
            }
            facts = self.look(mounts)?;
            decisions = decide(&facts, &marks, aim);
        }
        all.residue = tidied + self.clear_up(collecting, mounts)?;
        let counted = &self.collection;
        counted.runs.fetch_add(1, Ordering::Relaxed);
        if all.removed + all.residue > 0 {
            counted.freed.fetch_add(1, Ordering::SeqCst);
        }
        if all.removed > 0 {
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
                Some(max) => self.store_size()? > max,
                None => false,
            };
        match is_over || anyway {
            true => self.collect(Aim::Marks, false),
            false => Ok(None),
        }
    }

    /// Bytes of all branches, as far as they can be estimated.
    fn store_size(&self) -> Result<u64, VolumeError> {
        let branches = self.store.branches().map_err(VolumeError::Store)?;
        let sizes = branches.iter().map(BranchRecord::disk_bytes);
        Ok(sizes.fold(0, u64::saturating_add))
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
