//! Where an unpacked layer goes: a directory and an index in the work directory.

use crate::image::{LayerContent, LayerDescriptor};
use crate::layer::EntrySink;
use crate::layer::archive::{Entry, EntryKind, Timestamp};
use crate::layer::index::{Attrs, Builder, Index, Node};
use crate::layer::ingest::{LayerError, LayerStream};
use crate::layer::limits::Limits;
use crate::layer::store::Ingest;
use crate::layer::store::StoreError;
use crate::layer::tree::Ownership;
use crate::layer::unpack::{FinishError, Options, UnpackError, Unpacker, finish_directories};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// Takes the entries of one layer.
#[derive(Debug)]
pub(super) struct LayerSink {
    unpacker: Unpacker<Builder>,
    root: OwnedFd,
    ownership: Ownership,
    done: Finished,
}

/// Why a layer could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The work directory.
    #[error("cannot prepare a directory for it")]
    Store(#[source] StoreError),
    /// A file of the work directory.
    #[error("cannot use {path}", path = path.display())]
    Work {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One of its entries.
    #[error("cannot unpack it")]
    Unpack(#[source] UnpackError),
    /// Its directories.
    #[error("its directories cannot be given their metadata")]
    Finish(#[source] FinishError),
}

/// A layer that is unpacked.
#[derive(Debug, Clone)]
pub(super) struct Finished {
    pub(super) tree: PathBuf,
    pub(super) index: PathBuf,
}

impl LayerSink {
    pub(super) fn begin(
        work: &Ingest,
        number: usize,
        ownership: Ownership,
        limits: &Limits,
    ) -> Result<Self, TakeError> {
        let name = format!("{number}-{}", crate::layer::store::unique());
        let root = work.directory(&name).map_err(TakeError::Store)?;
        let done = Finished {
            tree: work.path().join(&name),
            index: work.path().join(format!("{name}.index")),
        };
        let fail = |source| TakeError::Work {
            path: done.tree.clone(),
            source,
        };
        let spill = work.scratch().map_err(fail)?;
        let builder = Builder::new(spill).bounded(limits.max_index_bytes);
        let second = root.try_clone().map_err(fail)?;
        let options = Options {
            ownership,
            limits: limits.clone(),
        };
        let unpacker = Unpacker::new(second, builder, options).map_err(TakeError::Unpack)?;
        Ok(LayerSink {
            unpacker,
            root,
            ownership,
            done,
        })
    }

    /// Sorts the index, and gives the directories their metadata while this is
    /// still done in parallel; only a layer that sealing edits needs it again.
    pub(super) fn finish(self) -> Result<Finished, TakeError> {
        let fail = |path: &PathBuf, source| TakeError::Work {
            path: path.clone(),
            source,
        };
        let (_, builder) = self.unpacker.finish().map_err(TakeError::Unpack)?;
        let index = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&self.done.index)
            .and_then(|file| builder.finish(file))
            .map_err(|source| fail(&self.done.index, source))?;
        finish_directories(self.root.as_fd(), directories(&index), self.ownership)
            .map_err(TakeError::Finish)?;
        Ok(self.done)
    }
}

/// A file that is a layer of its own: nothing says whose it is, or of when.
fn file_entry(path: &str) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size: 0,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

/// Unpacks a layer as it comes, and ends it once it is verified.
pub(super) fn take(
    work: &Ingest,
    number: usize,
    ownership: Ownership,
    limits: &Limits,
    layer: &LayerDescriptor,
    stream: LayerStream<'_>,
) -> Result<Finished, LayerError<TakeError>> {
    let consumer = |source| LayerError::Consumer { source };
    let mut sink = LayerSink::begin(work, number, ownership, limits).map_err(consumer)?;
    let taken = match &layer.content {
        LayerContent::Tar => stream.drive(&mut sink),
        LayerContent::File { path } => {
            stream.drive_file(file_entry(path), layer.size.unwrap_or_default(), &mut sink)
        }
    };
    taken.map_err(|error| error.map_consumer(TakeError::Unpack))?;
    sink.finish().map_err(consumer)
}

impl EntrySink for LayerSink {
    type Error = UnpackError;

    fn begin(&mut self, entry: Entry) -> Result<(), UnpackError> {
        self.unpacker.begin(entry)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), UnpackError> {
        self.unpacker.data(offset, bytes)
    }

    fn end(&mut self) -> Result<(), UnpackError> {
        self.unpacker.end()
    }
}

/// The directories of an index with their metadata, the root always among them.
pub(super) fn directories(index: &Index) -> impl Iterator<Item = io::Result<(Vec<u8>, Attrs)>> {
    let mut cursor = index.cursor();
    let mut root_pending = true;
    let mut held: Option<(Vec<u8>, Attrs)> = None;
    std::iter::from_fn(move || {
        if let Some(held) = held.take() {
            return Some(Ok(held));
        }
        loop {
            let record = match cursor.next_record() {
                Ok(Some(record)) => record,
                Ok(None) if root_pending => {
                    root_pending = false;
                    return Some(Ok((Vec::new(), Attrs::implied())));
                }
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            };
            let attrs = match record.node {
                Some(Node::Directory { attrs, .. }) => attrs,
                Some(Node::Implied) => Attrs::implied(),
                _ => continue,
            };
            let is_root = record.path.is_empty();
            if root_pending && !is_root {
                root_pending = false;
                held = Some((record.path, attrs));
                return Some(Ok((Vec::new(), Attrs::implied())));
            }
            root_pending = false;
            return Some(Ok((record.path, attrs)));
        }
    })
}
