//! The consumer's end of a layer: the tar, or one file, as entries for a sink.

use super::LayerFacts;
use super::error::LayerError;
use super::progress::{LayerState, Progress};
use super::stages::{Block, Digests, Totals};
use super::timing::{Spent, Stopwatch};
use crate::layer::EntrySink;
use crate::layer::archive::{ArchiveError, Entry, Event, Parser};
use crate::layer::limits::Limits;
use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::sync::mpsc::Receiver;

/// One layer, to be read by its consumer on the consumer's own thread.
pub struct LayerStream<'a> {
    pub(super) index: usize,
    pub(super) blocks: Receiver<Block>,
    pub(super) verdict: Receiver<Digests>,
    pub(super) limits: &'a Limits,
    pub(super) stopped: &'a dyn Fn() -> bool,
    pub(super) progress: &'a Progress,
    /// Set when the layer was read to its end and is what it should be.
    pub(super) facts: &'a Cell<Option<LayerFacts>>,
    pub(super) writing: &'a Cell<Spent>,
    pub(super) waiting: &'a Cell<Spent>,
}

impl fmt::Debug for LayerStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerStream")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl LayerStream<'_> {
    /// Gives all entries of the layer to `sink`. When it returns successfully,
    /// both digests and the size are verified; until then everything that the
    /// sink got may be forged.
    ///
    /// # Errors
    /// [`LayerError::Archive`]; [`LayerError::Consumer`] with what the sink
    /// says; [`LayerError::Interrupted`] if there is a reason elsewhere.
    pub fn drive<S: EntrySink>(self, sink: &mut S) -> Result<LayerFacts, LayerError<S::Error>> {
        let mut parser = Parser::new(self.limits.clone());
        let mut ended = false;
        let totals = loop {
            match self.next_block()? {
                Block::End(totals) => break totals,
                // What follows the end of the archive is in the digest, and is
                // of no other meaning.
                Block::Tar(_) if ended => {}
                Block::Tar(chunk) => {
                    let watch = Stopwatch::start();
                    let result = feed(&mut parser, &chunk, sink);
                    self.writing.update(|mut spent| {
                        spent += watch.stop();
                        spent
                    });
                    ended = result?;
                }
            }
        };
        parser.finish().map_err(archive)?;
        self.verified(totals)
    }

    /// Waits for the digests, which end the layer.
    fn verified<E: Error + 'static>(&self, totals: Totals) -> Result<LayerFacts, LayerError<E>> {
        let digests = self.wait(|stream| stream.verdict.recv().ok())?;
        let facts = facts(totals, digests);
        self.facts.set(Some(facts));
        self.progress.set(self.index, LayerState::Finishing);
        Ok(facts)
    }

    /// Gives the layer to `sink` as one file, which `entry` describes but for its
    /// size. As for [`LayerStream::drive`], it is verified at the end.
    ///
    /// # Errors
    /// As for [`LayerStream::drive`].
    pub fn drive_file<S: EntrySink>(
        self,
        mut entry: Entry,
        size: u64,
        sink: &mut S,
    ) -> Result<LayerFacts, LayerError<S::Error>> {
        if size > self.limits.max_apparent_bytes {
            let limit = self.limits.max_apparent_bytes;
            return Err(LayerError::UnpackedBytes { limit });
        }
        let consumer = |source| LayerError::Consumer { source };
        entry.size = size;
        sink.begin(entry).map_err(consumer)?;
        let mut offset = 0;
        let totals = loop {
            match self.next_block()? {
                Block::End(totals) => break totals,
                Block::Tar(chunk) => {
                    let watch = Stopwatch::start();
                    let result = sink.data(offset, &chunk);
                    offset += chunk.len() as u64;
                    self.writing.update(|mut spent| {
                        spent += watch.stop();
                        spent
                    });
                    result.map_err(consumer)?;
                }
            }
        };
        sink.end().map_err(consumer)?;
        self.verified(totals)
    }

    fn next_block<E: Error + 'static>(&self) -> Result<Block, LayerError<E>> {
        let block = self.wait(|stream| stream.blocks.recv().ok())?;
        if (self.stopped)() {
            return Err(LayerError::Interrupted);
        }
        Ok(block)
    }

    /// Waits for another stage; if that ended early, it knows why.
    fn wait<V, E: Error + 'static>(
        &self,
        receive: impl FnOnce(&Self) -> Option<V>,
    ) -> Result<V, LayerError<E>> {
        let watch = Stopwatch::start();
        let received = receive(self);
        self.waiting.update(|mut spent| {
            spent += watch.stop();
            spent
        });
        received.ok_or(LayerError::Interrupted)
    }
}

fn facts(totals: Totals, digests: Digests) -> LayerFacts {
    LayerFacts {
        format: totals.format,
        blob_bytes: totals.blob_bytes,
        tar_bytes: totals.tar_bytes,
        digest: digests.blob,
        diff_id: digests.tar,
    }
}

fn archive<E: Error + 'static>(source: ArchiveError) -> LayerError<E> {
    LayerError::Archive { source }
}

/// Gives the parser one chunk. Returns whether the archive ended in it.
fn feed<S: EntrySink>(
    parser: &mut Parser,
    mut input: &[u8],
    sink: &mut S,
) -> Result<bool, LayerError<S::Error>> {
    loop {
        let result = match parser.next(&mut input).map_err(archive)? {
            Event::NeedInput => return Ok(false),
            Event::End => return Ok(true),
            Event::Entry(entry) => sink.begin(entry),
            Event::Data { offset, bytes } => sink.data(offset, bytes),
            Event::EntryEnd => sink.end(),
        };
        result.map_err(|source| LayerError::Consumer { source })?;
    }
}
