//! How far work on an image is, for whoever waits for it.

use crate::layer::ingest;
use std::sync::Arc;

/// What is done, in this order. What was done before is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Phase {
    /// The image is being found and its documents are read.
    #[default]
    Resolving,
    /// Its layers are read, verified and unpacked.
    Layers,
    /// The layers are made to fit each other.
    Sealing,
    /// The union is mounted.
    Mounting,
}

/// Is told how far the work is, from the thread that does it; it must not wait.
pub trait Progress: Send + Sync {
    /// The layers begin; the counters are of all layers of the image and move
    /// while they are unpacked.
    fn layers(&self, counters: &Arc<ingest::Progress>);

    /// Another phase begins.
    fn phase(&self, phase: Phase);

    /// Whether anybody waits at this moment.
    fn is_wanted(&self) -> bool {
        true
    }

    /// Whether nobody will wait any more, so that what can be left should be.
    fn is_given_up(&self) -> bool {
        false
    }
}

/// For whoever does not care.
impl Progress for () {
    fn layers(&self, _: &Arc<ingest::Progress>) {}

    fn phase(&self, _: Phase) {}
}
