//! From "blob D of size S, at these places" to bytes that are read while they
//! arrive.
//!
//! ```text
//! places   the seam to the protocol: hosts that can be asked for a blob
//! queue    whose turn it is
//! course   which place is asked next and when; what counts as progress (pure)
//! run      the loop that fetches one blob into its file
//! spool    the files
//! fetch    a download's state, which threads wait for
//! blob     one job's handle of it, and readers
//! ```
//!
//! **What is verified where.** A blob's digest is known only at its end, and
//! whoever unpacks a blob computes it anyway, on the way. Hashing here as well
//! would take half a second of CPU for each gigabyte and find nothing that is not
//! found there. So bytes that one download fetches from first to last, from
//! whatever hosts, are not hashed here: whoever finds them broken calls
//! [`Blob::discard`]. Only where a download goes on with what an earlier one left
//! are all of them hashed, beside the readers, and the download succeeds only if
//! the digest is right. A complete file that is found is left to whoever reads
//! it.

mod blob;
mod course;
mod error;
mod fetch;
mod places;
mod queue;
mod run;
mod spool;
mod stats;
#[cfg(test)]
mod tests;

pub use blob::{Blob, BlobReader, Progress};
pub use spool::Spools;
pub use stats::{DownloadStats, Retry};

pub(in crate::image::registry) use places::{BlobBody, BlobFault, BlobPlaces};

use super::RegistryError;
use crate::image::digest::Digest;
use fetch::{Fetch, State};
use queue::Queue;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// How blobs are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadSettings {
    /// Downloads at the same time.
    pub in_all: usize,
    /// Downloads at the same time from one registry host.
    pub per_host: usize,
    /// After so long without a byte a connection is given up and another one
    /// made.
    pub idle: Duration,
    /// After so long without a byte, whatever was tried, a download fails. What a
    /// host asks to wait (Retry-After) does not count, up to two minutes.
    pub deadline: Duration,
    /// It also fails if fewer bytes a second come on the average of that long: a
    /// host that sends a byte now and then would hold a turn for years.
    pub least_bytes_per_second: u64,
}

impl Default for DownloadSettings {
    fn default() -> Self {
        DownloadSettings {
            in_all: 6,
            per_host: 3,
            idle: Duration::from_secs(30),
            // As containerd's image_pull_progress_timeout.
            deadline: Duration::from_secs(300),
            least_bytes_per_second: 1 << 10,
        }
    }
}

impl DownloadSettings {
    fn pace(&self) -> course::Pace {
        course::Pace::new(self.deadline, self.least_bytes_per_second, Instant::now())
    }
}

/// A blob that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Who may have each other's bytes. Knowing a digest proves nothing, so bytes
    /// that came from a restricted repository are shared only with who has access
    /// to that one: for those this is the registry and repository. Empty for
    /// public ones, which all share.
    pub domain: &'a str,
    /// Digest of the blob.
    pub digest: Digest,
    /// Its size in bytes, as the manifest says.
    pub size: u64,
}

/// A [`Wanted`] as a file is called: the digest of its parts, the domain last,
/// for it is the one that has no fixed form. The size is in it because it is the
/// manifest's word only: who says it wrongly spoils nobody else's download.
type Key = Digest;

impl Wanted<'_> {
    fn key(&self) -> Key {
        let Wanted {
            domain,
            digest,
            size,
        } = self;
        Digest::of(format!("{digest} {size} {domain}").as_bytes())
    }
}

/// All downloads of the process: one for each blob, however many want it.
/// Dropping it ends them.
#[derive(Debug)]
pub struct Downloads(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: DownloadSettings,
    spools: Spools,
    handle: Handle,
    queue: Arc<Queue>,
    stats: Arc<DownloadStats>,
    fetches: Mutex<HashMap<Key, Weak<Fetch>>>,
}

impl Downloads {
    /// Downloads into `spools`, by tasks of the runtime of `handle`.
    pub fn new(settings: DownloadSettings, spools: Spools, handle: Handle) -> Downloads {
        let stats = Arc::<DownloadStats>::default();
        let queue = Queue::new(settings.in_all, settings.per_host, stats.clone());
        Downloads(Arc::new(Inner {
            settings,
            spools,
            handle,
            queue,
            stats,
            fetches: Mutex::default(),
        }))
    }

    /// The counters.
    pub fn stats(&self) -> Arc<DownloadStats> {
        self.0.stats.clone()
    }

    /// Where the bytes are kept.
    pub fn spools(&self) -> &Spools {
        &self.0.spools
    }

    /// Starts to fetch a blob, or joins whoever fetches it. Whether the caller may
    /// have it must be known by now: see [`Wanted::domain`].
    pub(in crate::image::registry) fn get(
        &self,
        places: Arc<dyn BlobPlaces>,
        wanted: &Wanted<'_>,
    ) -> Arc<Blob> {
        let fetch = self.0.fetch(wanted, &places);
        Blob::new(fetch, places)
    }

    /// The same for several, in their order. The largest of them begin.
    pub(in crate::image::registry) fn get_all(
        &self,
        places: &Arc<dyn BlobPlaces>,
        wanted: &[Wanted<'_>],
    ) -> Vec<Arc<Blob>> {
        let _hold = self.0.queue.hold();
        let blobs = wanted.iter().map(|wanted| self.get(places.clone(), wanted));
        blobs.collect()
    }

    /// Whether what is still missing of these, and `beside` more bytes, fit on the
    /// disk, when all other downloads end as well.
    pub fn check_space(&self, wanted: &[Wanted<'_>], beside: u64) -> Result<(), RegistryError> {
        let mut missing: HashMap<Key, u64> = HashMap::new();
        for wanted in wanted {
            let key = wanted.key();
            let found = self.0.spools.length(&key);
            missing.insert(key, wanted.size.saturating_sub(found));
        }
        for fetch in self.0.fetches().values().filter_map(Weak::upgrade) {
            let state = fetch.lock();
            if state.end.is_none() {
                missing.insert(fetch.key, fetch.size.saturating_sub(state.received));
            }
        }
        let needed = missing.into_values().fold(beside, u64::saturating_add);
        let space = self.0.spools.space().map_err(RegistryError::Disk)?;
        match needed <= space.available {
            true => Ok(()),
            false => Err(space.is_less_than(needed)),
        }
    }

    /// Ends all downloads. Everybody who waits gets an error at once.
    pub fn shut_down(&self) {
        let fetches = std::mem::take(&mut *self.0.fetches());
        for fetch in fetches.values().filter_map(Weak::upgrade) {
            fetch.give_up();
        }
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Inner {
    fn fetches(&self) -> MutexGuard<'_, HashMap<Key, Weak<Fetch>>> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(self: &Arc<Self>, wanted: &Wanted<'_>, places: &Arc<dyn BlobPlaces>) -> Arc<Fetch> {
        let key = wanted.key();
        let mut fetches = self.fetches();
        fetches.retain(|_, fetch| fetch.strong_count() > 0);
        let running = fetches.get(&key).and_then(Weak::upgrade);
        if let Some(fetch) = running.filter(|fetch| fetch.join()) {
            return fetch;
        }
        let fetch = Fetch::new(key, wanted.size, wanted.digest, self);
        fetches.insert(key, Arc::downgrade(&fetch));
        let mut state = fetch.lock();
        self.start(&fetch, &mut state, places.clone());
        drop(state);
        fetch
    }

    /// Begins with what is on disk: nothing more may be needed, and readers can
    /// have it while the rest waits for its turn.
    fn start(self: &Arc<Self>, fetch: &Arc<Fetch>, state: &mut State, places: Arc<dyn BlobPlaces>) {
        let opened = self.spools.spool(&fetch.key).and_then(|spool| {
            let length = spool.length()?;
            Ok((Arc::new(spool), length))
        });
        let (spool, length) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                state.end = Some(Err(RegistryError::Disk(error)));
                return;
            }
        };
        state.spool = Some(spool.clone());
        if length <= fetch.size {
            (state.received, state.found) = (length, length);
        }
        if length == fetch.size {
            spool.hold();
            self.stats.found(length);
            state.end = Some(Ok(()));
            return;
        }
        let task = self.handle.spawn(run::run(run::Start {
            home: self.clone(),
            fetch: fetch.clone(),
            places: places.clone(),
            turn: self.queue.enter(&places.host(0), fetch.size),
            generation: state.generation,
            spool,
            avoided: state.avoided.clone(),
        }));
        state.runs(task.abort_handle());
    }

    /// Who wants this blob from now on does not get that download.
    fn forget(&self, fetch: &Arc<Fetch>) {
        let mut fetches = self.fetches();
        let known = fetches.get(&fetch.key).and_then(Weak::upgrade);
        if known.is_some_and(|known| Arc::ptr_eq(&known, fetch)) {
            fetches.remove(&fetch.key);
        }
    }
}
