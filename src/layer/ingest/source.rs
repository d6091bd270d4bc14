//! The blob as it comes: counted, compared with its size, and shared with the
//! stage that hashes it.

use super::buffer::{Chunk, Pool};
use super::hashing::{Intake, Part};
use super::timing::{Spent, Stopwatch};
use std::io::{self, BufRead, ErrorKind, Read};

/// Reads the blob in chunks for a decoder.
pub(super) struct Source<'a> {
    reader: Box<dyn Read + 'a>,
    expected_size: Option<u64>,
    pool: &'a Pool,
    hasher: &'a Intake<'a>,
    /// Told how many bytes came.
    count: &'a dyn Fn(u64),
    stopped: &'a dyn Fn() -> bool,
    chunk: Option<Chunk>,
    position: usize,
    read: u64,
    ended: bool,
    fault: Option<Fault>,
    reading: Spent,
    waiting: Spent,
}

/// Why there is no more to read. Decoders only pass on an [`io::Error`], so it
/// waits in [`Source::take_fault`].
#[derive(Debug)]
pub(super) enum Fault {
    Read(io::Error),
    TooLong { expected: u64 },
    TooShort { expected: u64, actual: u64 },
    Interrupted,
}

impl<'a> Source<'a> {
    pub(super) fn new(
        reader: Box<dyn Read + 'a>,
        expected_size: Option<u64>,
        pool: &'a Pool,
        hasher: &'a Intake<'a>,
        count: &'a dyn Fn(u64),
        stopped: &'a dyn Fn() -> bool,
    ) -> Self {
        Source {
            reader,
            expected_size,
            pool,
            hasher,
            count,
            stopped,
            chunk: None,
            position: 0,
            read: 0,
            ended: false,
            fault: None,
            reading: Spent::default(),
            waiting: Spent::default(),
        }
    }

    /// Why the last read failed.
    pub(super) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Bytes of the blob that came.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read
    }

    /// Bytes that the decoder took.
    pub(super) fn taken_bytes(&self) -> u64 {
        self.read - self.rest().len() as u64
    }

    /// Time spent in the reader so far.
    pub(super) fn reading(&self) -> Spent {
        self.reading
    }

    /// Time spent in the reader and waiting for buffers so far.
    pub(super) fn elsewhere(&self) -> Spent {
        let mut elsewhere = self.reading;
        elsewhere += self.waiting;
        elsewhere
    }

    fn rest(&self) -> &[u8] {
        match &self.chunk {
            Some(chunk) => &chunk[self.position..],
            None => &[],
        }
    }

    /// Reads the next chunk, as large as its buffer unless the blob ends.
    fn refill(&mut self) -> Result<(), Fault> {
        self.chunk = None;
        self.position = 0;
        let watch = Stopwatch::start();
        let mut buffer = self.pool.take();
        self.waiting += watch.stop();

        let watch = Stopwatch::start();
        let mut filled = 0;
        while filled < buffer.space().len() {
            if (self.stopped)() {
                return Err(Fault::Interrupted);
            }
            let count = match self.reader.read(&mut buffer.space()[filled..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Read(error)),
            };
            filled += count;
            self.read += count as u64;
            (self.count)(count as u64);
            if let Some(expected) = self.expected_size.filter(|size| self.read > *size) {
                return Err(Fault::TooLong { expected });
            }
        }
        self.reading += watch.stop();
        if let Some(expected) = self
            .expected_size
            .filter(|size| self.ended && self.read < *size)
        {
            return Err(Fault::TooShort {
                expected,
                actual: self.read,
            });
        }
        if filled > 0 {
            let chunk = buffer.share(filled);
            if self.hasher.push(Part::Blob, chunk.clone()).is_err() {
                return Err(Fault::Interrupted);
            }
            self.chunk = Some(chunk);
        }
        Ok(())
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest().is_empty() && !self.ended {
            self.refill().map_err(|fault| {
                // Whoever tries again gets the end, never more bytes.
                self.ended = true;
                self.fault = Some(fault);
                io::Error::other("the blob cannot be read")
            })?;
        }
        Ok(self.rest())
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

impl Read for Source<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(out.len());
        out[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}
