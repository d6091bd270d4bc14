//! The stages of one layer that need no consumer: reading with decompression,
//! and the digests.

use super::buffer::{Chunk, Pool};
use super::error::{LayerError, Sha256Text};
use super::hashing::{Hashed, Hasher, Intake, Part};
use super::source::{Fault, Source};
use super::timing::{Spent, Stopwatch};
use crate::layer::decompress::{Compression, DecompressError, Decompressor, Format};
use crate::layer::limits::Limits;
use std::error::Error;
use std::sync::mpsc::Sender;

/// Uncompressed bytes before which no ratio is checked: a small layer of zeros
/// is no offence.
const RATIO_FREE_BYTES: u64 = 16 << 20;

/// What the consumer's stage gets.
#[derive(Debug)]
pub(super) enum Block {
    /// The next bytes of the tar.
    Tar(Chunk),
    /// The tar is complete.
    End(Totals),
}

/// What the reading stage counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    pub(super) format: Format,
    pub(super) blob_bytes: u64,
    pub(super) tar_bytes: u64,
}

/// What the hashing stage found, the expectations met.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digests {
    pub(super) blob: [u8; 32],
    pub(super) tar: [u8; 32],
}

/// What the reading stage works on.
pub(super) struct Reading<'a> {
    pub(super) expected_size: Option<u64>,
    pub(super) compression: Compression,
    pub(super) limits: &'a Limits,
    pub(super) blob_pool: &'a Pool,
    pub(super) tar_pool: &'a Pool,
    pub(super) count: &'a dyn Fn(u64),
    pub(super) stopped: &'a dyn Fn() -> bool,
    pub(super) hasher: Intake<'a>,
    pub(super) writer: Sender<Block>,
}

impl Reading<'_> {
    /// Reads and decompresses the blob to its end. Returns the time spent in
    /// the reader and in the decoder.
    pub(super) fn run<E: Error + 'static>(
        self,
        open: super::Open<'_>,
    ) -> Result<(Spent, Spent), LayerError<E>> {
        let watch = Stopwatch::start();
        let reader = open().map_err(|source| LayerError::Open { source })?;
        let opening = watch.stop();

        let mut source = Source::new(
            reader,
            self.expected_size,
            self.blob_pool,
            &self.hasher,
            self.count,
            self.stopped,
        );
        let mut inflating = Spent::default();
        let (format, tar_bytes) =
            self.decompress(&mut source, &mut inflating)
                .map_err(|broken| match broken {
                    Broken::Decoder(error) => failure(error, source.take_fault()),
                    Broken::Layer(error) => error,
                })?;
        let totals = Totals {
            format,
            blob_bytes: source.read_bytes(),
            tar_bytes,
        };
        if self.hasher.end(format).is_err() || self.writer.send(Block::End(totals)).is_err() {
            return Err(LayerError::Interrupted);
        }
        let mut reading = source.reading();
        reading += opening;
        Ok((reading, inflating))
    }

    /// Sends the tar to the other stages. Returns its form and size.
    fn decompress<E: Error + 'static>(
        &self,
        source: &mut Source<'_>,
        inflating: &mut Spent,
    ) -> Result<(Format, u64), Broken<E>> {
        let max_window = self.limits.max_zstd_window;
        let mut decoder = Decompressor::new(source, self.compression, max_window, self.stopped)
            .map_err(Broken::Decoder)?;
        let format = decoder.format();
        let mut tar_bytes = 0;
        loop {
            let mut buffer = self.tar_pool.take();
            let space = buffer.space().len();
            let before = decoder.source_mut().elsewhere();
            let watch = Stopwatch::start();
            let count = decoder.read(buffer.space()).map_err(Broken::Decoder)?;
            *inflating += watch.stop() - (decoder.source_mut().elsewhere() - before);
            tar_bytes += count as u64;
            self.check_size(tar_bytes, decoder.source_mut().taken_bytes())
                .map_err(Broken::Layer)?;
            let chunk = buffer.share(count);
            let lost = (self.stopped)()
                || (format != Format::Plain && self.hasher.push(Part::Tar, chunk.clone()).is_err())
                || self.writer.send(Block::Tar(chunk)).is_err();
            if lost {
                return Err(Broken::Layer(LayerError::Interrupted));
            }
            if count < space {
                return Ok((format, tar_bytes));
            }
        }
    }

    fn check_size<E: Error + 'static>(
        &self,
        tar_bytes: u64,
        blob_bytes: u64,
    ) -> Result<(), LayerError<E>> {
        let limits = self.limits;
        if tar_bytes > limits.max_unpacked_bytes {
            return Err(LayerError::UnpackedBytes {
                limit: limits.max_unpacked_bytes,
            });
        }
        if tar_bytes > RATIO_FREE_BYTES && tar_bytes / limits.max_ratio.max(1) > blob_bytes {
            return Err(LayerError::Ratio {
                limit: limits.max_ratio,
            });
        }
        Ok(())
    }
}

/// Why decompression ended early.
enum Broken<E: Error + 'static> {
    /// The decoder's error, behind which may be one of the source.
    Decoder(DecompressError),
    Layer(LayerError<E>),
}

/// The cause behind a decoder's error: what the source said comes before what
/// the decoder made of it.
fn failure<E: Error + 'static>(error: DecompressError, fault: Option<Fault>) -> LayerError<E> {
    match (fault, error) {
        (Some(Fault::Read(source)), _) => LayerError::Read { source },
        (Some(Fault::TooLong { expected }), _) => LayerError::BlobTooLong { expected },
        (Some(Fault::TooShort { expected, actual }), _) => {
            LayerError::BlobTooShort { expected, actual }
        }
        (Some(Fault::Interrupted), _) | (None, DecompressError::Cancelled) => {
            LayerError::Interrupted
        }
        (None, source) => LayerError::Decompress { source },
    }
}

/// Hashes the blob and the tar and compares both with what is expected. Returns
/// the digests and the time that each took.
pub(super) fn hash<E: Error + 'static>(
    hasher: Hasher<'_>,
    expected_blob: Option<[u8; 32]>,
    expected_tar: [u8; 32],
) -> Result<(Digests, Spent, Spent), LayerError<E>> {
    // The reading stage ended without an end, and knows why.
    let Hashed { format, blob, tar } = hasher.run().map_err(|_| LayerError::Interrupted)?;
    let ((blob, blob_spent), (tar, tar_spent)) = (blob, tar);
    let tar = match format {
        Format::Plain => blob,
        Format::Gzip | Format::Zstd => tar,
    };
    // The blob first: where it differs, the tar cannot but differ too.
    if let Some(expected) = expected_blob.filter(|expected| *expected != blob) {
        return Err(LayerError::BlobDigest {
            expected: Sha256Text(expected),
            actual: Sha256Text(blob),
        });
    }
    if tar != expected_tar {
        return Err(LayerError::DiffId {
            expected: Sha256Text(expected_tar),
            actual: Sha256Text(tar),
        });
    }
    Ok((Digests { blob, tar }, blob_spent, tar_spent))
}
