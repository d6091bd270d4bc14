//! Gzip with Intel's ISA-L, in steps as large as the buffers.
//!
//! Every call of the decoder copies 32 KiB of history in and out again, and the
//! safe reader of the `isal` crate calls it for every 16 KiB of input. So the
//! decoder itself is called here (ADR 14), which is a fourteenth faster. Traits
//! of it that shape what is here:
//! - It forgets the flags of a member's header where its input ends in one, so
//!   every step gets all the input that there is, or [`LOW`]. What is still
//!   refused, other than by the portable decoder, is a header of more than that.
//!   What is taken, other than by that, is a header with reserved flags; the
//!   digests tell what came out of it.
//! - It does not say that its input ended early: it makes no progress then.
#![expect(unsafe_code, reason = "the safe interface takes 16 KiB at a time")]

use super::DecompressError;
use super::prefixed::fill;
use isal::isal_sys::igzip_lib as igzip;
use std::io::BufRead;
use std::ptr::null_mut;

/// Bytes of input that are held, and how few may be left before more are read.
const INPUT: usize = 256 << 10;
const LOW: usize = INPUT / 2;

pub(super) struct GzipReader<R: BufRead> {
    source: R,
    /// The source has no more.
    ended: bool,
    input: Vec<u8>,
    /// The part of `input` that the decoder has not taken yet.
    start: usize,
    end: usize,
    state: Box<igzip::inflate_state>,
}

impl<R: BufRead> GzipReader<R> {
    pub(super) fn new(source: R) -> Self {
        // SAFETY: numbers, unions and arrays of them, and pointers that may be
        // null: all of them may be zero.
        let mut state: Box<igzip::inflate_state> = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: the state is valid, and this reads nothing else.
        unsafe { igzip::isal_inflate_init(&raw mut *state) };
        state.crc_flag = igzip::ISAL_GZIP;
        GzipReader {
            source,
            ended: false,
            input: vec![0; INPUT],
            start: 0,
            end: 0,
            state,
        }
    }

    pub(super) fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, DecompressError> {
        let mut filled = 0;
        while filled < out.len() {
            self.refill()?;
            if self.is_behind_member() {
                if self.start == self.end {
                    break;
                }
                // SAFETY: as for the call in `new`.
                unsafe { igzip::isal_inflate_reset(&raw mut *self.state) };
            }
            let (taken, made) = self.step(&mut out[filled..])?;
            filled += made;
            if taken == 0 && made == 0 && !self.is_behind_member() {
                return Err(if self.ended {
                    DecompressError::GzipTruncated
                } else {
                    corrupt("the decoder makes no progress")
                });
            }
        }
        Ok(filled)
    }

    fn is_behind_member(&self) -> bool {
        self.state.block_state == igzip::isal_block_state_ISAL_BLOCK_FINISH
    }

    /// Sees to it that at least [`LOW`] bytes of input are there, or all.
    fn refill(&mut self) -> Result<(), DecompressError> {
        if self.ended || self.end - self.start >= LOW {
            return Ok(());
        }
        self.input.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < INPUT {
            let bytes =
                fill(&mut self.source).map_err(|source| DecompressError::Read { source })?;
            if bytes.is_empty() {
                self.ended = true;
                break;
            }
            let taken = bytes.len().min(INPUT - self.end);
            self.input[self.end..self.end + taken].copy_from_slice(&bytes[..taken]);
            self.source.consume(taken);
            self.end += taken;
        }
        Ok(())
    }

    /// Runs the decoder once: bytes taken and bytes made.
    fn step(&mut self, out: &mut [u8]) -> Result<(usize, usize), DecompressError> {
        let input = &mut self.input[self.start..self.end];
        let state = &mut *self.state;
        // What does not fit a number of 32 bits is for the next step.
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        (state.next_in, state.avail_in) = (input.as_mut_ptr(), count(input.len()));
        (state.next_out, state.avail_out) = (out.as_mut_ptr(), count(out.len()));
        let given = (state.avail_in, state.avail_out);
        // SAFETY: both pointers are good for as many bytes as stand beside
        // them, and nothing else has these buffers. What the decoder keeps
        // between calls is inside of the state.
        let code = unsafe { igzip::isal_inflate(&raw mut *state) };
        (state.next_in, state.next_out) = (null_mut(), null_mut());
        // Damaged input can make the decoder give back more than it got.
        let used = (
            given.0.checked_sub(state.avail_in),
            given.1.checked_sub(state.avail_out),
        );
        let (taken, made) = match used {
            (Some(taken), Some(made)) => (taken as usize, made as usize),
            _ => return Err(corrupt("the decoder lost its place")),
        };
        self.start += taken;
        let problem = match code {
            0.. => return Ok((taken, made)),
            igzip::ISAL_INVALID_BLOCK => "invalid block",
            igzip::ISAL_INVALID_SYMBOL => "invalid symbol",
            igzip::ISAL_INVALID_LOOKBACK => "a distance that leads before the beginning",
            igzip::ISAL_INVALID_WRAPPER => "no gzip header",
            igzip::ISAL_UNSUPPORTED_METHOD => "unsupported method of compression",
            igzip::ISAL_INCORRECT_CHECKSUM => "incorrect checksum",
            _ => "unknown error of the decoder",
        };
        Err(corrupt(problem))
    }
}

fn corrupt(problem: &'static str) -> DecompressError {
    DecompressError::Gzip {
        source: problem.into(),
    }
}
