//! The digests of all layers at work, so that two streams are hashed together
//! where that is faster (see [`crate::layer::digest`]).
//!
//! Each layer keeps a thread of its own for its digests. When that has bytes to
//! hash, it takes along those of any other stream that nobody is busy with. So
//! no thread waits for another's, and as many work as there are layers. What
//! finds no partner lies until one comes, but never longer than until the next
//! bytes of the same stream: a stream holds back one buffer, of which its layer
//! has others.

use super::buffer::Chunk;
use super::timing::{Spent, Stopwatch};
use crate::layer::decompress::Format;
use crate::layer::digest::{Sha256, gains_from_pairs};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Chunks of a stream that are not left lying for want of a partner.
const ENOUGH: usize = 2;

/// The streams of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Blob,
    /// For an uncompressed blob nothing comes.
    Tar,
}

/// The digests of all layers at work.
pub(super) struct Hashing {
    board: Mutex<Board>,
    pairs: bool,
}

#[derive(Default)]
struct Board {
    layers: BTreeMap<u64, Layer>,
    opened: u64,
}

struct Layer {
    streams: [Stream; 2],
    /// Set when both streams are complete.
    format: Option<Format>,
    /// Whether more may come.
    fed: bool,
    /// Wakes the layer's thread.
    wake: Arc<Condvar>,
}

struct Stream {
    /// None while a thread works on it.
    digest: Option<Sha256>,
    /// The thread that worked on it ended in a panic.
    lost: bool,
    waiting: VecDeque<Chunk>,
    /// Bytes of the first chunk that are done.
    done: usize,
    spent: Spent,
}

/// Both digests of a layer and the time that each took.
#[derive(Debug)]
pub(super) struct Hashed {
    pub(super) format: Format,
    pub(super) blob: ([u8; 32], Spent),
    pub(super) tar: ([u8; 32], Spent),
}

/// The layer's thread is gone, or the bytes end early. Who did that knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

impl Hashing {
    pub(super) fn new() -> Self {
        Hashing {
            board: Mutex::default(),
            pairs: gains_from_pairs(),
        }
    }

    /// Begins a layer: one end takes bytes, the other hashes them.
    pub(super) fn open(&self) -> (Intake<'_>, Hasher<'_>) {
        let stream = || Stream {
            digest: Some(Sha256::new()),
            lost: false,
            waiting: VecDeque::new(),
            done: 0,
            spent: Spent::default(),
        };
        let wake = Arc::new(Condvar::new());
        let mut board = self.lock();
        board.opened += 1;
        let layer = board.opened;
        board.layers.insert(
            layer,
            Layer {
                streams: [stream(), stream()],
                format: None,
                fed: true,
                wake: Arc::clone(&wake),
            },
        );
        drop(board);
        let intake = Intake {
            hashing: self,
            layer,
        };
        let hasher = Hasher {
            hashing: self,
            layer,
            wake,
        };
        (intake, hasher)
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a layer, and wakes its thread if that has to do now.
    fn change(&self, layer: u64, change: impl FnOnce(&mut Layer)) -> Result<(), Gone> {
        let mut board = self.lock();
        let found = board.layers.get_mut(&layer).ok_or(Gone)?;
        change(found);
        let wake = Arc::clone(&found.wake);
        let asleep = matches!(board.next(layer, self.pairs), Next::Wait);
        drop(board);
        if !asleep {
            wake.notify_one();
        }
        Ok(())
    }
}

/// What a layer's thread has to do.
enum Next {
    Wait,
    /// Hash the next bytes of these streams, of which the first is the layer's own.
    Hash((u64, usize), Option<(u64, usize)>),
    Finish(Format),
    GiveUp,
}

impl Board {
    fn next(&self, own: u64, pairs: bool) -> Next {
        let Some(layer) = self.layers.get(&own) else {
            return Next::GiveUp;
        };
        if layer.streams.iter().any(|stream| stream.lost) || !layer.fed && layer.format.is_none() {
            return Next::GiveUp;
        }
        let Some(first) = self.longest(|id, _| id == own) else {
            let at_work = layer.streams.iter().any(|stream| stream.digest.is_none());
            return match layer.format {
                Some(format) if !at_work => Next::Finish(format),
                _ => Next::Wait,
            };
        };
        let second = self
            .longest(|id, part| (id, part) != first)
            .filter(|_| pairs);
        let pressing =
            !pairs || layer.format.is_some() || layer.streams[first.1].waiting.len() >= ENOUGH;
        match second {
            None if !pressing => Next::Wait,
            second => Next::Hash(first, second),
        }
    }

    /// Of the streams that have bytes and that nobody works on, the one that has
    /// most.
    fn longest(&self, wanted: impl Fn(u64, usize) -> bool) -> Option<(u64, usize)> {
        let streams = self.layers.iter().flat_map(|(id, layer)| {
            let streams = layer.streams.iter().enumerate();
            streams.map(move |(part, stream)| ((*id, part), stream))
        });
        streams
            .filter(|((id, part), stream)| {
                !stream.waiting.is_empty() && stream.digest.is_some() && wanted(*id, *part)
            })
            .max_by_key(|(_, stream)| stream.waiting.len())
            .map(|(place, _)| place)
    }

    fn stream(&mut self, (layer, part): (u64, usize)) -> Option<&mut Stream> {
        Some(&mut self.layers.get_mut(&layer)?.streams[part])
    }

    /// Bytes of the stream's first chunk that are still to be hashed.
    fn rest(&self, (layer, part): (u64, usize)) -> usize {
        self.layers.get(&layer).map_or(0, |layer| {
            let stream = &layer.streams[part];
            stream
                .waiting
                .front()
                .map_or(0, |chunk| chunk.len() - stream.done)
        })
    }
}

/// Takes the bytes of a layer.
pub(super) struct Intake<'a> {
    hashing: &'a Hashing,
    layer: u64,
}

impl Intake<'_> {
    /// The next bytes of a stream.
    pub(super) fn push(&self, part: Part, chunk: Chunk) -> Result<(), Gone> {
        self.hashing.change(self.layer, |layer| {
            layer.streams[part as usize].waiting.push_back(chunk);
        })
    }

    /// Both streams are complete.
    pub(super) fn end(&self, format: Format) -> Result<(), Gone> {
        let end = |layer: &mut Layer| layer.format = Some(format);
        self.hashing.change(self.layer, end)
    }
}

impl Drop for Intake<'_> {
    fn drop(&mut self) {
        // Fails if nobody is there any more to be told.
        let _ = self.hashing.change(self.layer, |layer| layer.fed = false);
    }
}

/// Hashes the bytes of a layer, on the layer's own thread.
pub(super) struct Hasher<'a> {
    hashing: &'a Hashing,
    layer: u64,
    wake: Arc<Condvar>,
}

impl Hasher<'_> {
    /// Works until both streams are complete.
    pub(super) fn run(self) -> Result<Hashed, Gone> {
        let mut board = self.hashing.lock();
        loop {
            match board.next(self.layer, self.hashing.pairs) {
                Next::Wait => {
                    board = self
                        .wake
                        .wait(board)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Next::Hash(first, second) => {
                    let rest = board.rest(first);
                    let length = second.map_or(rest, |second| rest.min(board.rest(second)));
                    let mut take = |place| Piece::take(self.hashing, &mut board, place, length);
                    let pieces = (take(first), second.and_then(take));
                    drop(board);
                    match pieces {
                        (Some(first), Some(second)) => hash_both(first, second),
                        (Some(first), None) => hash(first),
                        // Cannot be: both were seen under the same lock.
                        (None, _) => return Err(Gone),
                    }
                    board = self.hashing.lock();
                }
                Next::Finish(format) => {
                    let mut finish = |part: Part| {
                        let stream = board.stream((self.layer, part as usize)).ok_or(Gone)?;
                        let digest = stream.digest.take().ok_or(Gone)?;
                        Ok((digest.finish(), stream.spent))
                    };
                    let (blob, tar) = (finish(Part::Blob)?, finish(Part::Tar)?);
                    return Ok(Hashed { format, blob, tar });
                }
                Next::GiveUp => return Err(Gone),
            }
        }
    }
}

impl Drop for Hasher<'_> {
    fn drop(&mut self) {
        // With it go the buffers that others may wait for.
        let layer = self.hashing.lock().layers.remove(&self.layer);
        drop(layer);
    }
}

/// Bytes that a thread works on, and the digest that they belong to, which goes
/// back when the piece is dropped.
struct Piece<'a> {
    hashing: &'a Hashing,
    place: (u64, usize),
    digest: Sha256,
    chunk: Chunk,
    start: usize,
    length: usize,
    /// None unless the bytes are in the digest.
    spent: Option<Spent>,
}

impl<'a> Piece<'a> {
    /// The next `length` bytes of a stream, which its first chunk has.
    fn take(
        hashing: &'a Hashing,
        board: &mut Board,
        place: (u64, usize),
        length: usize,
    ) -> Option<Self> {
        let stream = board.stream(place)?;
        let chunk = stream.waiting.front()?.clone();
        let digest = stream.digest.take()?;
        let start = stream.done;
        stream.done += length;
        if stream.done >= chunk.len() {
            stream.waiting.pop_front();
            stream.done = 0;
        }
        Some(Piece {
            hashing,
            place,
            digest,
            chunk,
            start,
            length,
            spent: None,
        })
    }
}

impl Drop for Piece<'_> {
    fn drop(&mut self) {
        let (layer, part) = self.place;
        // Fails if the layer was given up.
        let _ = self.hashing.change(layer, |layer| {
            let stream = &mut layer.streams[part];
            match self.spent {
                Some(spent) => {
                    stream.digest = Some(self.digest.clone());
                    stream.spent += spent;
                }
                None => stream.lost = true,
            }
        });
    }
}

fn hash(mut piece: Piece<'_>) {
    let watch = Stopwatch::start();
    let bytes = &piece.chunk[piece.start..piece.start + piece.length];
    piece.digest.update(bytes);
    piece.spent = Some(watch.stop());
}

/// The time is shared between them, for they have as many bytes.
fn hash_both(mut first: Piece<'_>, mut second: Piece<'_>) {
    let watch = Stopwatch::start();
    let (one, other) = (&mut first, &mut second);
    Sha256::update_both(
        [&mut one.digest, &mut other.digest],
        [
            &one.chunk[one.start..][..one.length],
            &other.chunk[other.start..][..other.length],
        ],
    );
    let half = watch.stop().half();
    (first.spent, second.spent) = (Some(half), Some(half));
}

impl fmt::Debug for Hashing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hashing")
            .field("pairs", &self.pairs)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::Pool;
    use super::*;
    use sha2::Digest;
    use std::thread;

    fn chunk(pool: &Pool, bytes: &[u8]) -> Chunk {
        let mut buffer = pool.take();
        buffer.space()[..bytes.len()].copy_from_slice(bytes);
        buffer.share(bytes.len())
    }

    fn expected(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    /// With and without pairs, whatever this processor gains from.
    fn both() -> [Hashing; 2] {
        [true, false].map(|pairs| Hashing {
            board: Mutex::default(),
            pairs,
        })
    }

    #[test]
    fn layers_at_work_at_a_time_get_their_own_digests() {
        for hashing in both() {
            thread::scope(|scope| {
                for layer in 0..5usize {
                    let (intake, hasher) = hashing.open();
                    let pool = Pool::new(4, 5000);
                    let work = scope.spawn(move || hasher.run());
                    scope.spawn(move || {
                        let (mut blob, mut tar) = (Vec::new(), Vec::new());
                        for round in 0..200 {
                            let bytes = vec![(layer * 31 + round) as u8; 5000 - 6 * layer * round];
                            // As in a layer: more of the tar than of the blob.
                            if round % 3 == 0 {
                                blob.extend_from_slice(&bytes);
                                intake.push(Part::Blob, chunk(&pool, &bytes)).unwrap();
                            }
                            tar.extend_from_slice(&bytes[1..]);
                            intake.push(Part::Tar, chunk(&pool, &bytes[1..])).unwrap();
                        }
                        intake.end(Format::Zstd).unwrap();
                        let hashed = work.join().unwrap().unwrap();
                        assert_eq!(hashed.format, Format::Zstd);
                        assert_eq!(hashed.blob.0, expected(&blob));
                        assert_eq!(hashed.tar.0, expected(&tar));
                        assert!(hashed.blob.1.wall > Default::default());
                    });
                }
            });
        }
    }

    #[test]
    fn a_stream_without_a_partner_holds_back_one_buffer_only() {
        for hashing in both() {
            let (intake, hasher) = hashing.open();
            let pool = Pool::new(2, 100);
            thread::scope(|scope| {
                let work = scope.spawn(|| hasher.run());
                // Each waits for a buffer that only hashing sets free.
                for byte in 0..50 {
                    intake.push(Part::Tar, chunk(&pool, &[byte; 100])).unwrap();
                }
                intake.end(Format::Gzip).unwrap();
                let hashed = work.join().unwrap().unwrap();
                let all: Vec<u8> = (0..50).flat_map(|byte| [byte; 100]).collect();
                assert_eq!(hashed.tar.0, expected(&all));
                assert_eq!(hashed.blob, (expected(b""), Spent::default()));
            });
        }
    }

    #[test]
    fn bytes_that_end_early_end_the_work() {
        for hashing in both() {
            let (intake, hasher) = hashing.open();
            let pool = Pool::new(2, 100);
            thread::scope(|scope| {
                let work = scope.spawn(|| hasher.run());
                intake.push(Part::Blob, chunk(&pool, b"lost")).unwrap();
                drop(intake);
                assert_eq!(work.join().unwrap().unwrap_err(), Gone);
            });
            assert!(hashing.lock().layers.is_empty());
            drop((pool.take(), pool.take()));
        }
    }

    #[test]
    fn without_its_thread_a_layer_takes_nothing_and_its_buffers_are_free() {
        for hashing in both() {
            let (intake, hasher) = hashing.open();
            let pool = Pool::new(2, 100);
            intake.push(Part::Blob, chunk(&pool, b"lost")).unwrap();
            drop(hasher);
            assert_eq!(intake.push(Part::Blob, chunk(&pool, b"x")), Err(Gone));
            assert_eq!(intake.end(Format::Gzip), Err(Gone));
            drop((pool.take(), pool.take()));
        }
    }

    #[test]
    fn a_stream_that_another_layers_thread_lost_ends_its_layer() {
        for hashing in both() {
            let (intake, hasher) = hashing.open();
            let pool = Pool::new(1, 100);
            intake.push(Part::Tar, chunk(&pool, b"bytes")).unwrap();
            intake.end(Format::Gzip).unwrap();
            let place = (hasher.layer, Part::Tar as usize);
            let piece = Piece::take(&hashing, &mut hashing.lock(), place, 5);
            // As when a panic unwinds through it.
            drop(piece.unwrap());
            assert_eq!(hasher.run().unwrap_err(), Gone);
        }
    }
}
