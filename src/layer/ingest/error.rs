//! Why layers could not be staged.

use super::super::archive::ArchiveError;
use super::super::decompress::DecompressError;
use std::error::Error;
use std::fmt;
use std::io;

/// A sha256 as it is written: `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256Text(pub [u8; 32]);

impl fmt::Display for Sha256Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the layers of an image could not be staged: the first thing that failed.
#[derive(Debug, thiserror::Error)]
pub enum IngestError<E: Error + 'static> {
    /// One layer failed; the others were given up.
    #[error("cannot stage layer {} ({digest})", index + 1)]
    Layer {
        /// [`LayerJob::index`](super::LayerJob::index), the lowest is 0; the text
        /// counts from 1, as all texts do.
        index: usize,
        /// The blob's digest, or the diffID where only that is known.
        digest: Sha256Text,
        /// What failed.
        source: LayerError<E>,
    },
    /// The caller's token was set before all layers were complete.
    #[error("cancelled")]
    Cancelled,
    /// The system has no thread for any layer.
    #[error("cannot start a thread")]
    Thread {
        /// The system's error.
        source: io::Error,
    },
}

/// Why one layer could not be staged. `E` is the consumer's own error.
#[derive(Debug, thiserror::Error)]
pub enum LayerError<E: Error + 'static> {
    /// The blob cannot be opened.
    #[error("cannot open the blob")]
    Open {
        /// The source's error.
        source: io::Error,
    },
    /// The blob cannot be read to its end.
    #[error("cannot read the blob")]
    Read {
        /// The source's error.
        source: io::Error,
    },
    /// More bytes came than the descriptor says. No more were read.
    #[error("the blob is longer than the {expected} bytes of its descriptor")]
    BlobTooLong {
        /// Size by the descriptor, bytes.
        expected: u64,
    },
    /// Fewer bytes came than the descriptor says.
    #[error("the blob ends after {actual} of {expected} bytes")]
    BlobTooShort {
        /// Size by the descriptor, bytes.
        expected: u64,
        /// What came, bytes.
        actual: u64,
    },
    /// The blob is not the one that the descriptor names.
    #[error("the blob has the digest {actual}, not {expected}")]
    BlobDigest {
        /// What the descriptor says.
        expected: Sha256Text,
        /// What came.
        actual: Sha256Text,
    },
    /// The uncompressed tar is not the one that the image's configuration names.
    #[error("the uncompressed layer has the digest {actual}, not {expected}")]
    DiffId {
        /// What the configuration says.
        expected: Sha256Text,
        /// What came.
        actual: Sha256Text,
    },
    /// The blob cannot be decompressed.
    #[error("cannot decompress the blob")]
    Decompress {
        /// The decoder's error.
        source: DecompressError,
    },
    /// The uncompressed tar exceeds
    /// [`Limits::max_unpacked_bytes`](super::super::limits::Limits::max_unpacked_bytes).
    #[error("the uncompressed layer has more than the allowed {limit} bytes")]
    UnpackedBytes {
        /// The limit, bytes.
        limit: u64,
    },
    /// The tar is so much larger than the blob that it must be made to harm;
    /// [`Limits::max_ratio`](super::super::limits::Limits::max_ratio).
    #[error("the layer unpacks to more than {limit} times its compressed size")]
    Ratio {
        /// The limit, uncompressed bytes per compressed byte.
        limit: u64,
    },
    /// The tar is invalid or exceeds a limit.
    #[error("cannot read the layer's tar")]
    Archive {
        /// The parser's error.
        source: ArchiveError,
    },
    /// The consumer failed.
    #[error("cannot take the layer's files")]
    Consumer {
        /// Its error.
        source: E,
    },
    /// The consumer succeeded without having read the layer to its end.
    #[error("the layer was not read to its end")]
    NotRead,
    /// A stage panicked: a fault of this program or of the consumer.
    #[error("the {stage} stage panicked: {message}")]
    Panicked {
        /// Which stage.
        stage: &'static str,
        /// What it said.
        message: String,
    },
    /// The system has no thread for a stage.
    #[error("cannot start a thread for the {stage} stage")]
    Thread {
        /// Which stage.
        stage: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Another stage of this layer, or another layer, failed first, or the
    /// caller cancelled. [`ingest_layers`](super::ingest_layers) returns that
    /// reason instead.
    #[error("interrupted")]
    Interrupted,
}

impl<E: Error + 'static> LayerError<E> {
    /// The same with another type for the consumer's errors, so that a consumer
    /// can put what its sink says into its own error.
    pub fn map_consumer<F: Error + 'static>(self, map: impl FnOnce(E) -> F) -> LayerError<F> {
        match self {
            LayerError::Consumer { source } => LayerError::Consumer {
                source: map(source),
            },
            LayerError::Open { source } => LayerError::Open { source },
            LayerError::Read { source } => LayerError::Read { source },
            LayerError::BlobTooLong { expected } => LayerError::BlobTooLong { expected },
            LayerError::BlobTooShort { expected, actual } => {
                LayerError::BlobTooShort { expected, actual }
            }
            LayerError::BlobDigest { expected, actual } => {
                LayerError::BlobDigest { expected, actual }
            }
            LayerError::DiffId { expected, actual } => LayerError::DiffId { expected, actual },
            LayerError::Decompress { source } => LayerError::Decompress { source },
            LayerError::UnpackedBytes { limit } => LayerError::UnpackedBytes { limit },
            LayerError::Ratio { limit } => LayerError::Ratio { limit },
            LayerError::Archive { source } => LayerError::Archive { source },
            LayerError::NotRead => LayerError::NotRead,
            LayerError::Panicked { stage, message } => LayerError::Panicked { stage, message },
            LayerError::Thread { stage, source } => LayerError::Thread { stage, source },
            LayerError::Interrupted => LayerError::Interrupted,
        }
    }
}
