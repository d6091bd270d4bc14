//! A blob that is being fetched, in the hands of one job.

use super::fetch::{Fetch, Follower, Position, named, remove};
use super::places::BlobPlaces;
use super::stats::Retry;
use crate::image::digest::Digest;
use crate::image::registry::RegistryError;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One job's handle of a blob, which other jobs may fetch at the same time.
///
/// With the last handle and the last reader, or when the last was cancelled, an
/// unfinished download ends. What has come stays on disk for an hour.
pub struct Blob {
    fetch: Arc<Fetch>,
    places: Arc<dyn BlobPlaces>,
    /// The generation whose bytes this job was given.
    generation: Mutex<u64>,
    is_cancelled: AtomicBool,
}

/// How far a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the whole.
    pub size: u64,
    /// Bytes that are there.
    pub received: u64,
    /// Those of them that were there before, or that another process fetched.
    pub found: u64,
    /// Bytes that came over the network for it, thrown away or not.
    pub network: u64,
}

impl Blob {
    /// A handle that was counted already.
    pub(super) fn new(fetch: Arc<Fetch>, places: Arc<dyn BlobPlaces>) -> Arc<Blob> {
        let generation = Mutex::new(fetch.lock().generation);
        Arc::new(Blob {
            fetch,
            places,
            generation,
            is_cancelled: AtomicBool::new(false),
        })
    }

    /// Digest of the blob.
    pub fn digest(&self) -> Digest {
        self.fetch.digest
    }

    /// Size of the blob in bytes.
    pub fn size(&self) -> u64 {
        self.fetch.size
    }

    /// The bytes from the first on, as they arrive. Reading blocks; it gives the
    /// end only where exactly [`Blob::size`] bytes have come. Errors have a
    /// [`RegistryError`] inside.
    ///
    /// The bytes are **not** verified: see [`Blob::discard`].
    pub fn reader(self: &Arc<Self>) -> BlobReader {
        let generation = self.fetch.lock().generation;
        BlobReader {
            blob: self.clone(),
            at: Position {
                generation,
                offset: 0,
            },
        }
    }

    /// Waits until all is there.
    pub fn wait(&self) -> Result<(), RegistryError> {
        let mut state = self.fetch.lock();
        loop {
            if self.is_cancelled() {
                return Err(RegistryError::Cancelled);
            }
            match &state.end {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => return Err(super::error::again(error)),
                None => state = self.fetch.wait(state),
            }
        }
    }

    /// Bytes that are there.
    pub fn received(&self) -> u64 {
        self.fetch.lock().received
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let state = self.fetch.lock();
        Progress {
            size: self.fetch.size,
            received: state.received,
            found: state.found,
            network: state.network,
        }
    }

    /// The hosts that gave the bytes, for an error; a word for them where it is
    /// not known.
    pub fn hosts(&self) -> String {
        let state = self.fetch.lock();
        match state.hosts.is_empty() {
            true => named(&state.avoided),
            false => named(&state.hosts),
        }
    }

    /// Says that the bytes have another digest, or are otherwise of no use:
    /// throws them away and fetches the whole again, from hosts that did not give
    /// them if there are any. Readers that have begun fail.
    ///
    /// If another job said so already, its new download is this job's too. Also
    /// starts again what had failed.
    pub fn discard(&self) {
        let Some(home) = self.fetch.home.upgrade() else {
            return;
        };
        let mut seen = self
            .generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut state = self.fetch.lock();
        if state.generation == *seen && !self.is_cancelled() {
            state.generation += 1;
            let gave = std::mem::take(&mut state.hosts);
            state.avoid(gave);
            state.stop();
            if let Some(spool) = state.spool.take() {
                remove(&spool);
            }
            (state.received, state.found, state.end) = (0, 0, None);
            home.stats.retried(Retry::Broken);
            home.start(&self.fetch, &mut state, self.places.clone());
            self.fetch.wake();
        }
        *seen = state.generation;
    }

    /// Says the same and does not fetch again: for everybody the download has
    /// failed, and nobody finds the broken bytes later.
    pub fn refuse(&self) {
        let seen = *self
            .generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.fetch.refuse(seen);
    }

    /// Removes the bytes from disk, because what they are for is committed. Who
    /// reads them goes on. A download that is not complete stays as it is.
    pub fn remove(&self) {
        let state = self.fetch.lock();
        if let (Some(Ok(())), Some(spool)) = (&state.end, &state.spool) {
            remove(spool);
        }
        drop(state);
        if let Some(home) = self.fetch.home.upgrade() {
            home.forget(&self.fetch);
        }
    }

    /// This job does not want it any more: its readers and whoever waits get an
    /// error at once, other jobs do not notice.
    pub fn cancel(&self) {
        if !self.is_cancelled.swap(true, Ordering::SeqCst) {
            self.fetch.leave();
            // Under the lock, so that nobody is between looking and waiting.
            let state = self.fetch.lock();
            self.fetch.wake();
            drop(state);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if !self.is_cancelled() {
            self.fetch.leave();
        }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob")
            .field("digest", &self.fetch.digest)
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

/// The bytes of a [`Blob`] as they arrive.
#[derive(Debug)]
pub struct BlobReader {
    blob: Arc<Blob>,
    at: Position,
}

impl io::Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let blob = &self.blob;
        let who = Follower::Reader(&|| blob.is_cancelled());
        let read = blob.fetch.read(&mut self.at, buffer, who);
        read.map_err(io::Error::other)
    }
}
