//! How far the layers of an image are, in counters that others may read at any
//! time: a progress bar, or the text of an RPC's error.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerState {
    /// Its turn has not come.
    Waiting,
    /// Its blob is read and its files are written.
    Reading,
    /// Its bytes are verified; the consumer finishes.
    Finishing,
    /// It is complete.
    Done,
    /// It failed, or was given up because another one did.
    Failed,
}

const STATES: [LayerState; 5] = [
    LayerState::Waiting,
    LayerState::Reading,
    LayerState::Finishing,
    LayerState::Done,
    LayerState::Failed,
];

/// Counters of all layers of an image.
#[derive(Debug, Default)]
pub struct Progress {
    layers: Vec<LayerProgress>,
}

/// Counters of one layer.
#[derive(Debug)]
pub struct LayerProgress {
    total: Option<u64>,
    read: AtomicU64,
    state: AtomicU8,
}

impl LayerProgress {
    /// Size of the blob in bytes, where the descriptor tells it.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Bytes of the blob that came so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// What happens to it.
    pub fn state(&self) -> LayerState {
        let state = usize::from(self.state.load(Ordering::Relaxed));
        STATES.get(state).copied().unwrap_or(LayerState::Waiting)
    }
}

impl Progress {
    /// Counters for layers whose blobs have these sizes, in bytes.
    pub fn new(totals: impl IntoIterator<Item = Option<u64>>) -> Self {
        let layer = |total| LayerProgress {
            total,
            read: AtomicU64::new(0),
            state: AtomicU8::new(LayerState::Waiting as u8),
        };
        Progress {
            layers: totals.into_iter().map(layer).collect(),
        }
    }

    /// The layers in their order.
    pub fn layers(&self) -> &[LayerProgress] {
        &self.layers
    }

    /// All layers together, at this moment.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary {
            layers: self.layers.len(),
            done: 0,
            read_bytes: 0,
            total_bytes: Some(0),
        };
        for layer in &self.layers {
            summary.done += usize::from(layer.state() == LayerState::Done);
            summary.read_bytes += layer.read();
            summary.total_bytes = summary
                .total_bytes
                .zip(layer.total)
                .map(|(sum, total)| sum.saturating_add(total));
        }
        summary
    }

    // Layers that the counters were not made for are not counted: a progress
    // bar is no reason to fail.

    pub(super) fn add(&self, index: usize, bytes: u64) {
        if let Some(layer) = self.layers.get(index) {
            layer.read.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn set(&self, index: usize, state: LayerState) {
        if let Some(layer) = self.layers.get(index) {
            layer.state.store(state as u8, Ordering::Relaxed);
        }
    }
}

/// All layers together. Displayed as `layer 3/7, 412 MB of 1.1 GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Number of layers.
    pub layers: usize,
    /// Layers that are complete.
    pub done: usize,
    /// Bytes of blobs that came so far.
    pub read_bytes: u64,
    /// Sum of the blobs' sizes, unless one is unknown.
    pub total_bytes: Option<u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = (self.done + 1).min(self.layers);
        write!(
            f,
            "layer {current}/{}, {}",
            self.layers,
            Bytes(self.read_bytes)
        )?;
        match self.total_bytes {
            Some(total) => write!(f, " of {}", Bytes(total)),
            None => Ok(()),
        }
    }
}

/// Bytes with a decimal unit: `999 B`, `4.2 kB`, `412 MB`, `1.1 GB`.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
        let mut divisor = 1u128;
        for unit in UNITS {
            let rounded = |scale: u128| (u128::from(self.0) * scale + divisor / 2) / divisor;
            let last = unit == UNITS[UNITS.len() - 1];
            if divisor > 1 && rounded(10) < 100 {
                return write!(f, "{}.{} {unit}", rounded(10) / 10, rounded(10) % 10);
            } else if rounded(1) < 1000 || last {
                return write!(f, "{} {unit}", rounded(1));
            }
            divisor *= 1000;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_two_digits_or_more() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (9_949, "9.9 kB"),
            (9_951, "10 kB"),
            (999_499, "999 kB"),
            (999_951, "1.0 MB"),
            (412_345_678, "412 MB"),
            (1_099_999_999, "1.1 GB"),
            (1_550_000_000_000, "1.6 TB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text, "{bytes}");
        }
    }

    #[test]
    fn the_summary_tells_the_layer_at_work_and_the_bytes() {
        let progress = Progress::new([Some(700_000_000), Some(400_000_000), Some(1)]);
        assert_eq!(progress.summary().to_string(), "layer 1/3, 0 B of 1.1 GB");
        progress.add(0, 412_000_000);
        progress.set(2, LayerState::Done);
        assert_eq!(
            progress.summary().to_string(),
            "layer 2/3, 412 MB of 1.1 GB"
        );
        progress.set(0, LayerState::Done);
        progress.set(1, LayerState::Done);
        assert_eq!(
            progress.summary().to_string(),
            "layer 3/3, 412 MB of 1.1 GB"
        );
        progress.add(7, 1);
        progress.set(7, LayerState::Failed);
        assert_eq!(
            Progress::new([None, Some(3)]).summary().to_string(),
            "layer 1/2, 0 B"
        );
    }

    #[test]
    fn every_state_survives_its_counter() {
        let progress = Progress::new([None]);
        for state in STATES {
            progress.set(0, state);
            assert_eq!(progress.layers()[0].state(), state);
        }
    }
}
