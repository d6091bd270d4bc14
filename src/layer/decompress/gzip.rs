//! Gzip with the portable decoder. It parses the header of a member (extra
//! field, name, comment, header CRC) and verifies CRC and length behind it;
//! what is done here is the sequence of members.

use super::DecompressError;
use super::prefixed::fill;
use flate2::{Decompress, FlushDecompress, Status};
use std::io::BufRead;

/// Window of every gzip stream, as a power of two.
const WINDOW_BITS: u8 = 15;

pub(super) struct GzipReader<R> {
    source: R,
    decoder: Decompress,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first byte of a member, and `first` of all.
    Start { first: bool },
    /// In a member.
    Member,
    /// The input ended behind a member.
    End,
}

impl<R: BufRead> GzipReader<R> {
    pub(super) fn new(source: R) -> Self {
        GzipReader {
            source,
            decoder: Decompress::new_gzip(WINDOW_BITS),
            state: State::Start { first: true },
        }
    }

    #[cfg_attr(
        feature = "isal",
        expect(dead_code, reason = "with ISA-L, this decoder only serves comparisons")
    )]
    pub(super) fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, DecompressError> {
        let mut filled = 0;
        while filled < out.len() {
            let input =
                fill(&mut self.source).map_err(|source| DecompressError::Read { source })?;
            match self.state {
                State::End => break,
                State::Start { first } => {
                    if !input.is_empty() {
                        if !first {
                            self.decoder.reset(true);
                        }
                        self.state = State::Member;
                    } else if first {
                        return Err(DecompressError::GzipTruncated);
                    } else {
                        self.state = State::End;
                    }
                }
                State::Member => {
                    let ended = input.is_empty();
                    let (before_in, before_out) =
                        (self.decoder.total_in(), self.decoder.total_out());
                    let status = self
                        .decoder
                        .decompress(input, &mut out[filled..], FlushDecompress::None)
                        .map_err(|error| DecompressError::Gzip {
                            source: Box::new(error),
                        })?;
                    let taken = (self.decoder.total_in() - before_in) as usize;
                    let made = (self.decoder.total_out() - before_out) as usize;
                    self.source.consume(taken);
                    filled += made;
                    match status {
                        Status::StreamEnd => self.state = State::Start { first: false },
                        // Without input the decoder may still hold output.
                        Status::Ok | Status::BufError if taken == 0 && made == 0 => {
                            return Err(if ended {
                                DecompressError::GzipTruncated
                            } else {
                                DecompressError::Gzip {
                                    source: "the decoder makes no progress".into(),
                                }
                            });
                        }
                        Status::Ok | Status::BufError => {}
                    }
                }
            }
        }
        Ok(filled)
    }
}
