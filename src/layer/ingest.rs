//! The way of an image's layers into the store, as a stream with bounded
//! memory: download → digest of the blob → decompress → digest of the tar →
//! entries → files.
//!
//! A *lane* works on one layer at a time, in three threads:
//!
//! ```text
//! reading    blob → chunks → decoder → chunks       (Open, limits on sizes)
//! hashing    the same chunks, shared                (both digests; see `hashing`)
//! consuming  chunks → tar parser → sink             (the caller's code)
//! ```
//!
//! The chunks come from pools of fixed size and are read by two threads each
//! without a copy; a stage that is ahead waits for a free one. So a layer takes
//! less than 2 MiB beside its decoder, and one huge layer still uses more than
//! one processor. Several lanes share the layers, largest first, so that no
//! large one is left over when the others are done.
//!
//! **Invariant**: what a consumer returns is taken only if its layer was read
//! to its end and size, digest and diffID are as expected. The first failure
//! stops all lanes, and is the error that is returned.

mod buffer;
mod error;
mod hashing;
mod progress;
mod source;
mod stages;
mod stream;
#[cfg(test)]
mod tests;
mod timing;

pub use error::{IngestError, LayerError, Sha256Text};
pub use progress::{LayerProgress, LayerState, Progress, Summary};
pub use stream::LayerStream;
pub use timing::{Spent, StageTimes};

use super::decompress::{Compression, Format};
use super::limits::Limits;
use buffer::Pool;
use hashing::Hashing;
use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder, Scope, ScopedJoinHandle};
use timing::Stopwatch;

/// Bytes of a chunk of the blob, and how many of them a lane has: one that the
/// decoder reads, one that is hashed, and one in between.
const BLOB_CHUNK: (usize, usize) = (128 << 10, 3);

/// The same for the tar: one that is filled, one hashed, one consumed, and one
/// in between.
const TAR_CHUNK: (usize, usize) = (256 << 10, 4);

/// More lanes than this gain nothing on one disk or network, and each may take
/// several MiB.
const MAX_DEFAULT_WORKERS: usize = 8;

/// Opens a blob; called once, on the thread that reads it.
pub type Open<'a> = Box<dyn FnOnce() -> io::Result<Box<dyn Read + 'a>> + Send + 'a>;

/// Takes a layer; called once, on a thread of its own.
pub type Consume<'a, T, E> =
    Box<dyn FnOnce(LayerStream<'_>) -> Result<T, LayerError<E>> + Send + 'a>;

/// One layer to be staged.
///
/// The consumer calls [`LayerStream::drive`] with its sink, and then does what
/// is left to do with a layer that is verified, such as its commit. A layer
/// whose consumer succeeded stays, even if another one fails after it.
pub struct LayerJob<'a, T, E: Error + 'static> {
    /// Its place in the image, for errors and progress.
    pub index: usize,
    /// Digest of the blob, where a descriptor names one.
    pub expected_digest: Option<[u8; 32]>,
    /// Size of the blob in bytes, where a descriptor names it.
    pub expected_size: Option<u64>,
    /// Digest of the uncompressed tar, from the image's configuration.
    pub diff_id: [u8; 32],
    /// What is known about the compression.
    pub compression: Compression,
    /// Opens the blob. It may block as long as the reader may, and that is as
    /// long as cancelling can take: the source has the deadlines.
    pub open: Open<'a>,
    /// Takes the layer.
    pub consume: Consume<'a, T, E>,
}

impl<T, E: Error + 'static> fmt::Debug for LayerJob<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerJob")
            .field("index", &self.index)
            .field("digest", &self.name())
            .field("expected_size", &self.expected_size)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

impl<T, E: Error + 'static> LayerJob<'_, T, E> {
    fn name(&self) -> Sha256Text {
        Sha256Text(self.expected_digest.unwrap_or(self.diff_id))
    }

    /// A blob that has the diffID's digest is the tar itself, whatever the
    /// media type says. One that has not is none, so that it may be sniffed.
    fn compression(&self) -> Compression {
        match self.expected_digest {
            Some(digest) if digest == self.diff_id => Compression::Plain,
            Some(_) => Compression::Sniff,
            None => self.compression,
        }
    }
}

/// What is known about a layer once it is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerFacts {
    /// How the blob was compressed.
    pub format: Format,
    /// Size of the blob, bytes.
    pub blob_bytes: u64,
    /// Size of the uncompressed tar, bytes, with what follows its end.
    pub tar_bytes: u64,
    /// Digest of the blob.
    pub digest: [u8; 32],
    /// Digest of the uncompressed tar.
    pub diff_id: [u8; 32],
}

/// A layer that was staged.
#[derive(Debug)]
pub struct LayerOutcome<T> {
    /// [`LayerJob::index`].
    pub index: usize,
    /// What came.
    pub facts: LayerFacts,
    /// Where the time went.
    pub times: StageTimes,
    /// What the consumer returned.
    pub value: T,
}

/// How to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Layers at work at a time, at least 1. Each has three threads.
    pub workers: usize,
    /// Bounds of each layer.
    pub limits: Limits,
}

impl Default for Options {
    /// As many workers as processors, from 2 (one waits for the network while
    /// the other works) to 8.
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Options {
            workers: processors.clamp(2, MAX_DEFAULT_WORKERS),
            limits: Limits::default(),
        }
    }
}

/// Stages layers, and returns the outcomes in the order of `jobs`. `progress`
/// is counted by the jobs' indexes. Setting `cancel` ends the work at the next
/// chunk of each layer.
///
/// # Errors
/// The first thing that failed, in any layer; what fails after `cancel` was set
/// is [`IngestError::Cancelled`].
pub fn ingest_layers<T: Send, E: Error + Send + 'static>(
    jobs: Vec<LayerJob<'_, T, E>>,
    options: &Options,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<Vec<LayerOutcome<T>>, IngestError<E>> {
    let count = jobs.len();
    let mut queue: Vec<_> = jobs.into_iter().enumerate().collect();
    // Popped from its end, so the largest first and equal ones in their order.
    queue.reverse();
    queue.sort_by_key(|(_, job)| job.expected_size.unwrap_or(0));
    let shared = Shared {
        queue: Mutex::new(queue),
        failure: Mutex::new(None),
        stop: AtomicBool::new(false),
        cancel,
        limits: &options.limits,
        progress,
        hashing: Hashing::new(),
    };
    let mut outcomes: Vec<(usize, LayerOutcome<T>)> = Vec::with_capacity(count);
    thread::scope(|scope| {
        let mut lanes: Vec<ScopedJoinHandle<'_, _>> = Vec::new();
        for _ in 0..options.workers.clamp(1, count.max(1)) {
            match Builder::new().spawn_scoped(scope, || shared.run_lane()) {
                Ok(lane) => lanes.push(lane),
                // The lanes that there are do the work.
                Err(source) if lanes.is_empty() => shared.record(IngestError::Thread { source }),
                Err(_) => break,
            }
        }
        for lane in lanes {
            // Panics do not get out of the stages; if one did, its layer is missing.
            outcomes.extend(lane.join().unwrap_or_default());
        }
    });
    let failure = shared
        .failure
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match failure {
        Some(error) => Err(error),
        None if outcomes.len() < count => Err(IngestError::Cancelled),
        None => {
            outcomes.sort_by_key(|(place, _)| *place);
            Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
        }
    }
}

/// What the lanes have in common.
struct Shared<'a, 'j, T, E: Error + 'static> {
    queue: Mutex<Vec<(usize, LayerJob<'j, T, E>)>>,
    failure: Mutex<Option<IngestError<E>>>,
    stop: AtomicBool,
    cancel: &'a AtomicBool,
    limits: &'a Limits,
    progress: &'a Progress,
    hashing: Hashing,
}

impl<T: Send, E: Error + Send + 'static> Shared<'_, '_, T, E> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.cancel.load(Ordering::Relaxed)
    }

    /// Keeps the first failure and stops the lanes.
    fn record(&self, error: IngestError<E>) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // What fails after the caller cancelled fails because of it.
        if failure.is_none() && !self.cancel.load(Ordering::Relaxed) {
            *failure = Some(error);
        }
        self.stop.store(true, Ordering::Relaxed);
    }

    fn run_lane(&self) -> Vec<(usize, LayerOutcome<T>)> {
        let blob_pool = Pool::new(BLOB_CHUNK.1, BLOB_CHUNK.0);
        let tar_pool = Pool::new(TAR_CHUNK.1, TAR_CHUNK.0);
        let mut outcomes = Vec::new();
        while !self.stopped() {
            let next = self
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let Some((place, job)) = next else { break };
            let index = job.index;
            self.progress.set(index, LayerState::Reading);
            let outcome = self.run_layer(job, &blob_pool, &tar_pool);
            self.progress.set(
                index,
                match outcome {
                    Some(_) => LayerState::Done,
                    None => LayerState::Failed,
                },
            );
            outcomes.extend(outcome.map(|outcome| (place, outcome)));
        }
        outcomes
    }

    /// Runs the stages of one layer. Without an outcome, the reason is recorded.
    fn run_layer(
        &self,
        job: LayerJob<'_, T, E>,
        blob_pool: &Pool,
        tar_pool: &Pool,
    ) -> Option<LayerOutcome<T>> {
        let (index, name, compression) = (job.index, job.name(), job.compression());
        let stopped = || self.stopped();
        let count = |bytes| self.progress.add(index, bytes);
        let (intake, hasher) = self.hashing.open();
        let (writer, blocks) = channel();
        let (verdict_sender, verdict) = channel();

        thread::scope(|scope| {
            let hashing = self.spawn(scope, "hashing", index, name, move || {
                let hashed = stages::hash(hasher, job.expected_digest, job.diff_id)?;
                // The consumer is gone only if it failed.
                let _ = verdict_sender.send(hashed.0);
                Ok(hashed)
            })?;
            let consuming = self.spawn(scope, "consuming", index, name, move || {
                let stopped = || self.stopped();
                let (facts, writing, waiting) = Default::default();
                let watch = Stopwatch::start();
                let value = (job.consume)(LayerStream {
                    index,
                    blocks,
                    verdict,
                    limits: self.limits,
                    stopped: &stopped,
                    progress: self.progress,
                    facts: &facts,
                    writing: &writing,
                    waiting: &waiting,
                })?;
                let finishing = watch.stop() - writing.get() - waiting.get();
                let facts: Cell<Option<LayerFacts>> = facts;
                let facts = facts.get().ok_or(LayerError::NotRead)?;
                Ok((value, facts, writing.get(), finishing))
            })?;
            let reading = stages::Reading {
                expected_size: job.expected_size,
                compression,
                limits: self.limits,
                blob_pool,
                tar_pool,
                count: &count,
                stopped: &stopped,
                hasher: intake,
                writer,
            };
            let read = self.guard("reading", index, name, || reading.run(job.open));
            let hashed = hashing.join().ok().flatten();
            let consumed = consuming.join().ok().flatten();

            let (read, inflate) = read?;
            let (_, blob_hash, tar_hash) = hashed?;
            let (value, facts, write, finish) = consumed?;
            Some(LayerOutcome {
                index,
                facts,
                times: StageTimes {
                    read,
                    inflate,
                    blob_hash,
                    tar_hash,
                    write,
                    finish,
                },
                value,
            })
        })
    }

    /// Starts a stage on a thread of its own.
    fn spawn<'scope, V: Send + 'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        stage: &'static str,
        index: usize,
        name: Sha256Text,
        run: impl FnOnce() -> Result<V, LayerError<E>> + Send + 'scope,
    ) -> Option<ScopedJoinHandle<'scope, Option<V>>> {
        Builder::new()
            .name(format!("{stage}-{index}"))
            .spawn_scoped(scope, move || self.guard(stage, index, name, run))
            .map_err(|source| {
                self.record(IngestError::Layer {
                    index,
                    digest: name,
                    source: LayerError::Thread { stage, source },
                });
            })
            .ok()
    }

    /// Runs a stage; if it fails or panics, that is recorded at once.
    fn guard<V>(
        &self,
        stage: &'static str,
        index: usize,
        name: Sha256Text,
        run: impl FnOnce() -> Result<V, LayerError<E>>,
    ) -> Option<V> {
        // What a stage leaves behind when it panics is dropped with it: channels
        // and buffers, and those of the other stages see that they are gone.
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
            Err(LayerError::Panicked {
                stage,
                message: panic_message(&*payload),
            })
        });
        match result {
            Ok(value) => Some(value),
            Err(LayerError::Interrupted) => None,
            Err(source) => {
                self.record(IngestError::Layer {
                    index,
                    digest: name,
                    source,
                });
                None
            }
        }
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    match (
        payload.downcast_ref::<&str>(),
        payload.downcast_ref::<String>(),
    ) {
        (Some(message), _) => (*message).to_owned(),
        (None, Some(message)) => message.clone(),
        (None, None) => "no message".to_owned(),
    }
}
