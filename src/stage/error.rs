//! Why an image could not be staged.

use super::sink::TakeError;
use crate::image::{Image, SourceError};
use crate::layer::apply::ApplyError;
use crate::layer::ingest::IngestError;
use crate::layer::seal::SealError;
use crate::layer::store::StoreError;
use crate::layer::unpack::FinishError;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Layers of an image, for a text: the lowest is 1, as everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// One.
    One {
        /// Its number.
        number: usize,
        /// Its diffID.
        diff_id: String,
    },
    /// Some that become one branch.
    Range {
        /// The lowest.
        first: usize,
        /// The uppermost.
        last: usize,
    },
    /// One that is a branch already.
    Branch {
        /// Which.
        id: String,
    },
    /// Those of several images.
    Images,
}

impl Layers {
    /// Layer `index` of the image, 0 the lowest.
    pub(super) fn one(image: &Image, index: usize) -> Self {
        let layer = image.layers.get(index);
        Layers::One {
            number: index + 1,
            diff_id: layer.map_or_else(String::new, |layer| layer.diff_id.to_string()),
        }
    }

    /// These of the image, 0 the lowest.
    pub(super) fn range(range: &Range<usize>) -> Self {
        Layers::Range {
            first: range.start + 1,
            last: range.end,
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layers::One { number, diff_id } => write!(f, "layer {number} of diffID {diff_id}"),
            Layers::Branch { id } => write!(f, "branch {id}"),
            Layers::Images => write!(f, "the images as one tree"),
            Layers::Range { first, last } => write!(f, "layers {first} to {last} as one branch"),
        }
    }
}

/// A step of staging failed. No image is recorded, and nothing half-done is left
/// in the store. Branches that were committed before that step stay: they are
/// whole and verified, and the next try begins with them.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The image's documents.
    #[error("its manifest or configuration cannot be had")]
    Source(#[source] SourceError),
    /// The store.
    #[error("the store cannot be used")]
    Store(#[source] StoreError),
    /// A layer's bytes or entries.
    #[error("a layer cannot be unpacked")]
    Ingest(#[source] IngestError<TakeError>),
    /// What the layers say together.
    #[error("its layers do not fit together ({layer})")]
    Seal {
        /// The layer that does not.
        layer: Layers,
        /// Why.
        #[source]
        source: SealError,
    },
    /// A layer's directory could not be given its final form.
    #[error("{layer} cannot be given its final form")]
    Apply {
        /// Which.
        layer: Layers,
        /// Why.
        #[source]
        source: ApplyError,
    },
    /// The metadata of directories.
    #[error("the directories of {layer} cannot be given their metadata")]
    Finish {
        /// Which.
        layer: Layers,
        /// Why.
        #[source]
        source: FinishError,
    },
    /// The metadata of a directory that is a branch for the sake of its root.
    #[error("the volume's root directory cannot be given its metadata")]
    Root(#[source] FinishError),
    /// A file of the work directory.
    #[error("cannot use {path}", path = path.display())]
    Work {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store would have more than it may.
    #[error(
        "the store has {has} bytes of layers and may have {limit} (--max-store-size); this image needs {needs} more at least"
    )]
    Limit {
        /// Bytes that it may have.
        limit: u64,
        /// Bytes that it has.
        has: u64,
        /// Bytes that the missing layers have at least.
        needs: u64,
    },
    /// A layer that was there is gone.
    #[error("layer {diff_id} was removed while the image was staged; try again")]
    Lost {
        /// Which.
        diff_id: String,
    },
}

impl StageError {
    /// Whether disk space or a quota ran out, anywhere on the way.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, StageError::Limit { .. })
            || matches!(
                crate::layer::tree::errno_in_chain(self),
                Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)
            )
    }
}
