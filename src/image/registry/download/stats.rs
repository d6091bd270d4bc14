//! Counters of all downloads of the process.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why something was asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The body ended early.
    Cut,
    /// Nothing came for too long.
    Stall,
    /// The host said that it cannot at the moment, or could not be reached.
    Busy,
    /// The host said when to come back.
    RateLimited,
    /// The host could not continue from where the download was.
    Range,
    /// The host does not give the blob; the next was asked.
    Elsewhere,
    /// The bytes were other ones, and were thrown away.
    Broken,
}

impl Retry {
    /// All of them, in the order of their declaration.
    pub const ALL: [Retry; 7] = [
        Retry::Cut,
        Retry::Stall,
        Retry::Busy,
        Retry::RateLimited,
        Retry::Range,
        Retry::Elsewhere,
        Retry::Broken,
    ];

    /// The name in a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Retry::Cut => "cut",
            Retry::Stall => "stall",
            Retry::Busy => "busy",
            Retry::RateLimited => "rate_limited",
            Retry::Range => "range",
            Retry::Elsewhere => "elsewhere",
            Retry::Broken => "broken",
        }
    }
}

/// What the downloads of this process did so far. Only the gauges ever go down.
#[derive(Debug, Default)]
pub struct DownloadStats {
    bytes: AtomicU64,
    repeated: AtomicU64,
    resumed: AtomicU64,
    in_flight: AtomicU64,
    waiting: AtomicU64,
    retries: [AtomicU64; Retry::ALL.len()],
}

impl DownloadStats {
    /// Bytes of blobs that came from registries, those that came twice included.
    pub fn bytes_total(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Those of them that had come before.
    pub fn repeated_bytes_total(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Bytes that were found on disk and not fetched again.
    pub fn resumed_bytes_total(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Downloads that have their turn now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Downloads that wait for their turn.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How often something was asked for again, for that reason.
    pub fn retries_total(&self, reason: Retry) -> u64 {
        self.retries[reason as usize].load(Ordering::Relaxed)
    }

    pub(super) fn came(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn came_again(&self, bytes: u64) {
        self.repeated.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn found(&self, bytes: u64) {
        self.resumed.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn retried(&self, reason: Retry) {
        self.retries[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn queue(&self, running: usize, waiting: usize) {
        self.in_flight.store(running as u64, Ordering::Relaxed);
        self.waiting.store(waiting as u64, Ordering::Relaxed);
    }
}
