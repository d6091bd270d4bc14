//! How far an operation is: as a few words for whoever waits, and as events.

use crate::csi::events::PodEvents;
use crate::layer::ingest;
use crate::stage::{Phase, Progress, Pulled};
use crate::volume::Pod;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Remembers how far an operation is.
#[derive(Debug, Default)]
pub(in crate::csi) struct Latest {
    state: Mutex<State>,
    /// Whose volume it is about, and who tells of it.
    told: Option<(Arc<dyn PodEvents>, Pod)>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    counters: Option<Arc<ingest::Progress>>,
}

impl Latest {
    pub(super) fn new(told: Option<(Arc<dyn PodEvents>, Pod)>) -> Self {
        Latest {
            state: Mutex::default(),
            told,
        }
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

    fn pulling(&self, image: &str) {
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
