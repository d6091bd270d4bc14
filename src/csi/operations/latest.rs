//! How far an operation is, as a few words for whoever waits.

use crate::layer::ingest;
use crate::stage::{Phase, Progress};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Remembers how far an operation is.
#[derive(Debug, Default)]
pub(in crate::csi) struct Latest {
    state: Mutex<State>,
    /// Calls that wait for the operation at this moment.
    waiting: AtomicUsize,
    /// Set when the operation had better end.
    given_up: AtomicBool,
}

/// A call that waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Latest);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    counters: Option<Arc<ingest::Progress>>,
}

impl Latest {
    /// A call begins to wait.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Nobody will want what the operation brings.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// The state is whole after every statement, whoever panicked.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Latest {
    fn layers(&self, counters: &Arc<ingest::Progress>) {
        let mut state = self.lock();
        state.phase = Phase::Layers;
        state.counters = Some(Arc::clone(counters));
    }

    fn phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        match (state.phase, &state.counters) {
            (Phase::Resolving, _) => f.write_str("looking for the image"),
            (Phase::Layers, None) => f.write_str("unpacking layers"),
            (Phase::Layers, Some(counters)) => write!(f, "unpacking {}", counters.summary()),
            (Phase::Sealing, _) => f.write_str("making the layers fit each other"),
            (Phase::Mounting, _) => f.write_str("mounting"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_follow_the_work() {
        let latest = Latest::default();
        assert_eq!(latest.to_string(), "looking for the image");
        let sizes = [Some(300_000_000), Some(100_000_000)];
        latest.layers(&Arc::new(ingest::Progress::new(sizes)));
        assert_eq!(latest.to_string(), "unpacking layer 1/2, 0 B of 400 MB");
        latest.phase(Phase::Sealing);
        assert_eq!(latest.to_string(), "making the layers fit each other");
        latest.phase(Phase::Mounting);
        assert_eq!(latest.to_string(), "mounting");
    }
}
