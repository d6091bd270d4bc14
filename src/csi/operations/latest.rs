//! How far an operation is: as a few words for whoever waits, and as events.

use crate::csi::events::PodEvents;
use crate::layer::ingest;
use crate::stage::{Phase, Progress, Pulled};
use crate::volume::Pod;
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
    /// Whose volume it is about, and who tells of it.
    told: Option<(Arc<dyn PodEvents>, Pod)>,
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
    /// Whether the layers come from a registry.
    is_pulling: bool,
}

impl Latest {
    pub(super) fn new(told: Option<(Arc<dyn PodEvents>, Pod)>) -> Self {
        Latest {
            told,
            ..Latest::default()
        }
    }

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

    fn pulling(&self, image: &str) {
        self.lock().is_pulling = true;
        if let Some((events, pod)) = &self.told {
            events.pulling(pod, image);
        }
    }

    fn pulled(&self, image: &str, pulled: &Pulled) {
        if let Some((events, pod)) = &self.told {
            events.pulled(pod, image, pulled);
        }
    }
}

impl fmt::Display for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let doing = match state.is_pulling {
            true => "pulling",
            false => "unpacking",
        };
        match (state.phase, &state.counters) {
            (Phase::Resolving, _) => f.write_str("looking for the image"),
            (Phase::Layers, None) => write!(f, "{doing} layers"),
            (Phase::Layers, Some(counters)) => write!(f, "{doing} {}", counters.summary()),
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
        latest.pulling("docker://app");
        assert_eq!(latest.to_string(), "pulling layer 1/2, 0 B of 400 MB");
        latest.phase(Phase::Sealing);
        assert_eq!(latest.to_string(), "making the layers fit each other");
        latest.phase(Phase::Mounting);
        assert_eq!(latest.to_string(), "mounting");
    }
}
