//! Zstd: any number of frames, among them skippable ones, which zstd:chunked
//! and pzstd put between and behind the others.
//!
//! The frame headers are read here before the decoder gets them, because a
//! header says how much memory its frame needs, and that memory has to be
//! granted first.

use super::DecompressError;
use super::prefixed::fill;
use super::window::{ORDINARY_BYTES, Permit, WindowPool};
use std::io::BufRead;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The magics of skippable frames differ in the low four bits of the first byte.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// The longest frame header: magic, descriptor, window, dictionary, content size.
const MAX_HEADER_BYTES: usize = 18;

/// The least memory that is counted for a decoder, so that small frames of
/// growing size do not each get a new one.
const MIN_PERMIT_BYTES: u64 = 256 << 10;

/// Powers of two that the decoder takes as its window limit on 64 bits.
const WINDOW_LOG_RANGE: (u32, u32) = (10, 31);

/// Whether these first bytes of a blob begin a frame of either kind.
pub(super) fn begins_frame(start: &[u8]) -> bool {
    start.starts_with(&MAGIC) || (start.len() >= 8 && is_skippable(start))
}

fn is_skippable(start: &[u8]) -> bool {
    start.len() >= 4 && start[0] & 0xf0 == SKIPPABLE_MAGIC[0] && start[1..4] == SKIPPABLE_MAGIC[1..]
}

pub(super) struct ZstdReader<'a, R> {
    source: R,
    max_window: u64,
    pool: &'static WindowPool,
    cancelled: &'a dyn Fn() -> bool,
    decoder: Option<Decoder>,
    state: State,
}

/// A decoder and the memory granted to it.
struct Decoder {
    // Dropped in this order: the memory is free before its permit is.
    context: DCtx<'static>,
    permit: Permit<'static>,
}

enum State {
    /// Gathering a frame's header.
    Header(HeaderBytes),
    /// In the data of a frame.
    Frame,
    /// In a skippable frame, so many bytes before its end.
    Skip { left: u64 },
    /// The input ended behind a frame.
    End,
}

#[derive(Default)]
struct HeaderBytes {
    bytes: [u8; MAX_HEADER_BYTES],
    length: usize,
}

/// What the bytes of a header say.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    /// The header goes on for at least this many bytes in all.
    Incomplete { needs: usize },
    /// A skippable frame with so many bytes of content.
    Skippable { content: u64 },
    /// A frame of data.
    Frame {
        /// Window as the format defines it, bytes.
        window: u64,
        /// Memory that decoding takes: the window, or the content if that is smaller.
        memory: u64,
    },
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Header, DecompressError> {
        if bytes.len() < 5 {
            return Ok(Header::Incomplete { needs: 5 });
        }
        if is_skippable(bytes) {
            if bytes.len() < 8 {
                return Ok(Header::Incomplete { needs: 8 });
            }
            return Ok(Header::Skippable {
                content: little_endian(&bytes[4..8]),
            });
        }
        if bytes[..4] != MAGIC {
            return Err(DecompressError::ZstdHeader);
        }
        let descriptor = bytes[4];
        if descriptor & 0b1000 != 0 {
            return Err(DecompressError::ZstdHeader);
        }
        let single_segment = descriptor & 0b10_0000 != 0;
        let window_bytes = usize::from(!single_segment);
        let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 0b11)];
        let content_bytes = match descriptor >> 6 {
            0 => usize::from(single_segment),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let needs = 5 + window_bytes + dictionary_bytes + content_bytes;
        if bytes.len() < needs {
            return Ok(Header::Incomplete { needs });
        }
        let content = match content_bytes {
            0 => None,
            2 => Some(little_endian(&bytes[needs - 2..needs]) + 256),
            length => Some(little_endian(&bytes[needs - length..needs])),
        };
        let window = if single_segment {
            content.unwrap_or(0)
        } else {
            let base = 1u64 << (10 + (bytes[5] >> 3));
            base + base / 8 * u64::from(bytes[5] & 0b111)
        };
        Ok(Header::Frame {
            window,
            memory: content.map_or(window, |content| content.min(window)),
        })
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl<'a, R: BufRead> ZstdReader<'a, R> {
    pub(super) fn new(
        source: R,
        pool: &'static WindowPool,
        max_window: u64,
        cancelled: &'a dyn Fn() -> bool,
    ) -> Self {
        ZstdReader {
            source,
            max_window,
            pool,
            cancelled,
            decoder: None,
            state: State::Header(HeaderBytes::default()),
        }
    }

    pub(super) fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, DecompressError> {
        let mut filled = 0;
        while filled < out.len() {
            let input =
                fill(&mut self.source).map_err(|source| DecompressError::Read { source })?;
            match &mut self.state {
                State::End => break,
                State::Skip { left } => {
                    if *left == 0 {
                        self.state = State::Header(HeaderBytes::default());
                        continue;
                    }
                    if input.is_empty() {
                        return Err(DecompressError::ZstdTruncated);
                    }
                    let taken = input
                        .len()
                        .min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    self.source.consume(taken);
                }
                State::Header(header) => {
                    match Header::parse(&header.bytes[..header.length])? {
                        // `sniff` saw a magic, so this is behind a frame.
                        Header::Incomplete { .. } if input.is_empty() && header.length == 0 => {
                            self.state = State::End;
                        }
                        Header::Incomplete { .. } if input.is_empty() => {
                            return Err(DecompressError::ZstdTruncated);
                        }
                        Header::Incomplete { needs } => {
                            let taken = input.len().min(needs - header.length);
                            header.bytes[header.length..header.length + taken]
                                .copy_from_slice(&input[..taken]);
                            header.length += taken;
                            self.source.consume(taken);
                        }
                        Header::Skippable { content } => self.state = State::Skip { left: content },
                        Header::Frame { window, memory } => {
                            let header = std::mem::take(header);
                            self.begin_frame(&header, window, memory)?;
                            self.state = State::Frame;
                        }
                    }
                }
                State::Frame => {
                    let Some(decoder) = &mut self.decoder else {
                        return Err(DecompressError::ZstdHeader);
                    };
                    let (taken, made, ended) = step(decoder, input, &mut out[filled..])?;
                    if taken == 0 && made == 0 && !ended {
                        // Without input the decoder may still hold output, but
                        // here it holds none.
                        return Err(DecompressError::ZstdTruncated);
                    }
                    self.source.consume(taken);
                    filled += made;
                    if ended {
                        self.state = State::Header(HeaderBytes::default());
                    }
                }
            }
        }
        Ok(filled)
    }

    /// Gets a decoder that may use `memory` bytes, and gives it the header.
    fn begin_frame(
        &mut self,
        header: &HeaderBytes,
        window: u64,
        memory: u64,
    ) -> Result<(), DecompressError> {
        if window > self.max_window {
            return Err(DecompressError::ZstdWindow {
                window,
                limit: self.max_window,
            });
        }
        let large = memory > ORDINARY_BYTES;
        let fits = self.decoder.as_ref().is_some_and(|decoder| {
            let held = decoder.permit.bytes();
            held >= memory && large == (held > ORDINARY_BYTES)
        });
        if !fits {
            // Gives the memory back before it asks for more.
            self.decoder = None;
            let bytes = if large {
                memory
            } else {
                memory.next_power_of_two().max(MIN_PERMIT_BYTES)
            };
            let permit = self
                .pool
                .acquire(bytes, self.cancelled)
                .ok_or(DecompressError::Cancelled)?;
            let mut context = DCtx::try_create().ok_or(DecompressError::ZstdAllocate)?;
            // What it guards against is checked above; the decoder's own
            // default would refuse what the operator allowed.
            let log = self.max_window.max(1).next_power_of_two().ilog2();
            let log = log.clamp(WINDOW_LOG_RANGE.0, WINDOW_LOG_RANGE.1);
            context
                .set_parameter(DParameter::WindowLogMax(log))
                .map_err(zstd_error)?;
            self.decoder = Some(Decoder { context, permit });
        }
        if let Some(decoder) = &mut self.decoder {
            step(decoder, &header.bytes[..header.length], &mut [])?;
        }
        Ok(())
    }
}

/// Runs the decoder once: bytes taken, bytes made, and whether the frame is complete.
fn step(
    decoder: &mut Decoder,
    input: &[u8],
    out: &mut [u8],
) -> Result<(usize, usize, bool), DecompressError> {
    let mut input = InBuffer::around(input);
    let mut out = OutBuffer::around(out);
    let hint = decoder
        .context
        .decompress_stream(&mut out, &mut input)
        .map_err(zstd_error)?;
    Ok((input.pos(), out.pos(), hint == 0))
}

fn zstd_error(code: usize) -> DecompressError {
    DecompressError::Zstd {
        message: get_error_name(code),
    }
}
