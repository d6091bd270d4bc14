//! Why an image could not be staged.

use super::sink::TakeError;
use crate::image::SourceError;
use crate::layer::apply::ApplyError;
use crate::layer::ingest::IngestError;
use crate::layer::seal::SealError;
use crate::layer::store::StoreError;
use crate::layer::unpack::FinishError;
use std::io;
use std::path::PathBuf;

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
    #[error("its layers do not fit together")]
    Seal(#[source] SealError),
    /// A layer's directory could not be given its final form.
    #[error("layer {layer} cannot be given its final form")]
    Apply {
        /// Its number, the lowest is 1.
        layer: usize,
        /// Why.
        #[source]
        source: ApplyError,
    },
    /// The metadata of directories.
    #[error("the directories of layer {layer} cannot be given their metadata")]
    Finish {
        /// Its number, the lowest is 1.
        layer: usize,
        /// Why.
        #[source]
        source: FinishError,
    },
    /// A file of the work directory.
    #[error("cannot use {path}", path = path.display())]
    Work {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
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
        matches!(
            crate::layer::tree::errno_in_chain(self),
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)
        )
    }
}
