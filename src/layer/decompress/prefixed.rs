//! A reader whose first bytes can be looked at before they are read.

use super::MAGIC_BYTES;
use std::io::{BufRead, ErrorKind, Read, Result};

/// Holds the first [`MAGIC_BYTES`] apart, for a reader may deliver one at a time.
pub(super) struct Prefixed<R> {
    prefix: [u8; MAGIC_BYTES],
    length: usize,
    position: usize,
    inner: R,
}

impl<R: BufRead> Prefixed<R> {
    pub(super) fn new(mut inner: R) -> Result<Self> {
        let mut prefix = [0; MAGIC_BYTES];
        let mut length = 0;
        while length < MAGIC_BYTES {
            let bytes = fill(&mut inner)?;
            let taken = bytes.len().min(MAGIC_BYTES - length);
            if taken == 0 {
                break;
            }
            prefix[length..length + taken].copy_from_slice(&bytes[..taken]);
            inner.consume(taken);
            length += taken;
        }
        Ok(Prefixed {
            prefix,
            length,
            position: 0,
            inner,
        })
    }

    /// The first bytes, fewer than [`MAGIC_BYTES`] only if there are no more.
    pub(super) fn prefix(&self) -> &[u8] {
        &self.prefix[..self.length]
    }

    pub(super) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }
}

impl<R: BufRead> BufRead for Prefixed<R> {
    fn fill_buf(&mut self) -> Result<&[u8]> {
        if self.position < self.length {
            return Ok(&self.prefix[self.position..self.length]);
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if self.position < self.length {
            self.position += amount;
        } else {
            self.inner.consume(amount);
        }
    }
}

impl<R: BufRead> Read for Prefixed<R> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let bytes = self.fill_buf()?;
        let taken = bytes.len().min(out.len());
        out[..taken].copy_from_slice(&bytes[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

/// `fill_buf` that a signal does not interrupt.
pub(super) fn fill<R: BufRead>(reader: &mut R) -> Result<&[u8]> {
    // Asked for twice because a borrow that is returned from a loop holds the
    // reader in every turn of it; the second call returns what the first found.
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    reader.fill_buf()
}
