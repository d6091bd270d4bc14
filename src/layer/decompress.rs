//! The bytes of a blob to the bytes of its tar, as a stream: gzip with any
//! number of members, zstd with any number of frames, or no compression.
//!
//! The form is told by the first bytes, not by the media type: registries hold
//! layers whose media type is wrong, and the container runtimes accept them.
//! What a wrong guess could do is bounded by the diffID, which is a digest of
//! what comes out here. [`Compression::Plain`] is the one exception.
//!
//! A stream has to end where its format says: a truncated one is an error, and
//! so are bytes behind the last gzip member or zstd frame that do not begin
//! another one, be they zeros. (Go's gzip reader, which decides what a layer is
//! for most runtimes, refuses them too.)

#[cfg(any(test, feature = "testing"))]
pub mod check;
#[cfg(any(not(feature = "isal"), test))]
mod gzip;
#[cfg(feature = "isal")]
mod isal;
mod prefixed;
#[cfg(test)]
mod tests;
mod window;
mod zstd;

use prefixed::Prefixed;
use std::fmt;
use std::io::{BufRead, Read};

#[cfg(not(feature = "isal"))]
use gzip::GzipReader;
#[cfg(feature = "isal")]
use isal::GzipReader;

/// Bytes that telling the form takes: bzip2's magic with that of its first block.
const MAGIC_BYTES: usize = 10;

/// What is known about a blob before its first byte. A media type that says
/// gzip or zstd is no knowledge: see above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Nothing that could be relied on: the first bytes tell.
    #[default]
    Sniff,
    /// An uncompressed tar, taken as it is. Nothing is sniffed, for a tar may
    /// begin with any bytes.
    Plain,
}

/// The form that a blob turned out to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A tar without compression, or anything else that has no known magic.
    Plain,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames, skippable ones included.
    Zstd,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Plain => "plain",
            Format::Gzip => "gzip",
            Format::Zstd => "zstd",
        })
    }
}

/// Why a blob could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The reader beneath failed.
    #[error("cannot read the compressed bytes")]
    Read {
        /// The reader's error.
        source: std::io::Error,
    },
    /// The blob has a form that no layer may have.
    #[error("layers compressed with {name} are not supported")]
    Unsupported {
        /// Name of the form.
        name: &'static str,
    },
    /// The gzip stream is damaged, fails its CRC or length, or is followed by
    /// bytes that are no further member.
    #[error("the gzip stream is corrupt")]
    Gzip {
        /// The decoder's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The input ends inside a gzip member.
    #[error("the gzip stream ends early")]
    GzipTruncated,
    /// No memory for a zstd decoder.
    #[error("cannot allocate a zstd decoder")]
    ZstdAllocate,
    /// The zstd stream is damaged, fails its checksum, or needs a dictionary.
    #[error("the zstd stream is corrupt: {message}")]
    Zstd {
        /// What the decoder says.
        message: &'static str,
    },
    /// The bytes behind a frame (or the first ones) are no frame's header.
    #[error("no valid zstd frame header where the next frame should begin")]
    ZstdHeader,
    /// The input ends inside a zstd frame or its header.
    #[error("the zstd stream ends early")]
    ZstdTruncated,
    /// A frame asks for more memory than the limit allows.
    #[error("a zstd frame asks for a window of {window} bytes, the limit is {limit}")]
    ZstdWindow {
        /// What the frame's header asks for, bytes.
        window: u64,
        /// [`Limits::max_zstd_window`](super::limits::Limits::max_zstd_window).
        limit: u64,
    },
    /// The work was cancelled while it waited for memory for a window.
    #[error("cancelled while waiting for memory for a zstd window")]
    Cancelled,
}

/// Tells the form by the first bytes of a blob.
fn sniff(start: &[u8]) -> Result<Format, DecompressError> {
    const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
    const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0x00];
    const BZIP2_BLOCK: &[u8] = &[0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
    if start.starts_with(GZIP) {
        return Ok(Format::Gzip);
    }
    if zstd::begins_frame(start) {
        return Ok(Format::Zstd);
    }
    // Both would otherwise end as a tar with a bad checksum, which tells nobody
    // what is wrong.
    if start.starts_with(XZ) {
        return Err(DecompressError::Unsupported { name: "xz" });
    }
    if start.starts_with(b"BZh") && start.get(4..10) == Some(BZIP2_BLOCK) {
        return Err(DecompressError::Unsupported { name: "bzip2" });
    }
    Ok(Format::Plain)
}

/// Decompresses what a reader delivers. It stays on the thread that made it.
///
/// A decoder for gzip takes about 100 KiB of memory, one for zstd as much as the
/// largest window of its frames. All windows of up to 8 MiB that the process
/// has at a time share 24 MiB, and of larger ones there is one at a time:
/// reading waits until others are done.
pub struct Decompressor<'a, R: BufRead> {
    codec: Codec<'a, R>,
}

enum Codec<'a, R: BufRead> {
    Plain(Prefixed<R>),
    Gzip(GzipReader<Prefixed<R>>),
    Zstd(Box<zstd::ZstdReader<'a, Prefixed<R>>>),
}

impl<R: BufRead> fmt::Debug for Decompressor<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor")
            .field("format", &self.format())
            .finish_non_exhaustive()
    }
}

impl<'a, R: BufRead> Decompressor<'a, R> {
    /// Reads the first bytes of `source` and chooses the decoder.
    /// `max_zstd_window` is in bytes; `cancelled` is asked now and then while
    /// waiting for memory.
    ///
    /// # Errors
    /// [`DecompressError::Read`] and [`DecompressError::Unsupported`].
    pub fn new(
        source: R,
        declared: Compression,
        max_zstd_window: u64,
        cancelled: &'a dyn Fn() -> bool,
    ) -> Result<Self, DecompressError> {
        let source = Prefixed::new(source).map_err(|source| DecompressError::Read { source })?;
        let format = match declared {
            Compression::Plain => Format::Plain,
            Compression::Sniff => sniff(source.prefix())?,
        };
        let codec = match format {
            Format::Plain => Codec::Plain(source),
            Format::Gzip => Codec::Gzip(GzipReader::new(source)),
            Format::Zstd => Codec::Zstd(Box::new(zstd::ZstdReader::new(
                source,
                &window::WINDOWS,
                max_zstd_window,
                cancelled,
            ))),
        };
        Ok(Decompressor { codec })
    }

    /// The form that the first bytes told.
    pub fn format(&self) -> Format {
        match &self.codec {
            Codec::Plain(_) => Format::Plain,
            Codec::Gzip(_) => Format::Gzip,
            Codec::Zstd(_) => Format::Zstd,
        }
    }

    /// The reader beneath. Reading from it would lose what a decoder needs.
    pub fn source_mut(&mut self) -> &mut R {
        match &mut self.codec {
            Codec::Plain(source) => source.inner_mut(),
            Codec::Gzip(reader) => reader.source_mut().inner_mut(),
            Codec::Zstd(reader) => reader.source_mut().inner_mut(),
        }
    }

    /// Fills `out` with the next bytes of the tar and returns how many came;
    /// fewer than `out.len()` only at the end of the stream, whose checksums
    /// are verified by then.
    ///
    /// # Errors
    /// Any of [`DecompressError`]; reading on after one is not meaningful.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, DecompressError> {
        match &mut self.codec {
            Codec::Plain(source) => {
                let mut filled = 0;
                while filled < out.len() {
                    match source.read(&mut out[filled..]) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(source) => return Err(DecompressError::Read { source }),
                    }
                }
                Ok(filled)
            }
            Codec::Gzip(reader) => reader.read(out),
            Codec::Zstd(reader) => reader.read(out),
        }
    }
}
