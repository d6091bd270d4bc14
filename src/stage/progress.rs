//! How far work on an image is, for whoever waits for it.

use crate::image::digest::Digest;
use crate::layer::ingest;
use std::sync::Arc;
use std::time::Duration;

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

/// An image of a registry that is on the node now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes of its layers as a registry has them.
    pub bytes: u64,
    /// What it took, from being asked for.
    pub took: Duration,
    /// Whether it was there before, and at most the right to it was asked about.
    pub cached: bool,
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

    /// The image is being fetched from a registry, or whoever fetches it already
    /// is waited for.
    fn pulling(&self, _image: &str) {}

    /// The image of a registry is there.
    fn pulled(&self, _image: &str, _pulled: &Pulled) {}
}

/// For whoever does not care.
impl Progress for () {
    fn layers(&self, _: &Arc<ingest::Progress>) {}

    fn phase(&self, _: Phase) {}
}
