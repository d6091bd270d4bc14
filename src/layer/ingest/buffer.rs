//! Buffers that go from stage to stage and come back. Their number bounds both
//! the memory of a layer and how far a fast stage gets ahead of a slow one: who
//! wants to fill a buffer waits until one is free.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// A fixed number of buffers of one size.
pub(super) struct Pool {
    free: Receiver<Vec<u8>>,
    home: Sender<Vec<u8>>,
}

impl Pool {
    pub(super) fn new(count: usize, bytes: usize) -> Self {
        let (home, free) = channel();
        for _ in 0..count {
            // The receiver is right here, so this cannot fail.
            let _ = home.send(vec![0; bytes]);
        }
        Pool { free, home }
    }

    /// Waits for a free buffer. The stages that hold the others either go on or
    /// end, and both sets them free.
    pub(super) fn take(&self) -> Buffer {
        Buffer {
            // The pool has a sender itself, so there is always one.
            bytes: self.free.recv().unwrap_or_default(),
            home: self.home.clone(),
        }
    }
}

/// A buffer that one stage fills.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl Buffer {
    /// All of the buffer; what it holds is left over from its last use.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Shares the first `length` bytes with other stages.
    pub(super) fn share(self, length: usize) -> Chunk {
        Chunk(Arc::new(Filled {
            length: length.min(self.bytes.len()),
            buffer: self,
        }))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Fails if the pool is gone, and then nobody wants the buffer.
        let _ = self.home.send(std::mem::take(&mut self.bytes));
    }
}

/// Bytes that several stages read; the buffer is free when the last is done.
#[derive(Clone)]
pub(super) struct Chunk(Arc<Filled>);

struct Filled {
    length: usize,
    buffer: Buffer,
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.buffer.bytes[..self.0.length]
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_free_again_when_the_last_reader_is_done() {
        let pool = Pool::new(1, 8);
        let mut buffer = pool.take();
        buffer.space()[..3].copy_from_slice(b"abc");
        let chunk = buffer.share(3);
        let other = chunk.clone();
        assert!(pool.free.try_recv().is_err());
        drop(chunk);
        assert_eq!(&*other, b"abc");
        assert!(pool.free.try_recv().is_err());
        drop(other);
        assert_eq!(pool.take().space().len(), 8);
    }

    #[test]
    fn a_buffer_that_is_never_filled_comes_back_too() {
        let pool = Pool::new(1, 8);
        drop(pool.take());
        drop(pool.take());
        let buffer = pool.take();
        drop(pool);
        drop(buffer);
    }
}
