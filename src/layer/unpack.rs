//! Entries of one layer → files beneath one directory, and what the layer says
//! about each path as records.
//!
//! A layer is unpacked by itself, into a fresh directory, before anything is
//! known of the layers below it. Its markers (whiteouts, opaque directories)
//! and its links into the layers below become records only; sealing decides
//! what they mean on disk.
//!
//! What an archive cannot do:
//! - leave the directory: every component is opened by itself and no link is
//!   followed by the kernel; the layer's own links are resolved here, as if the
//!   directory were the root of the system;
//! - meet a marker on disk or make one: no name with the prefix `.wh.` ever
//!   reaches the disk, neither from an entry nor from a link's text (but for a
//!   private directory of that prefix, which is therefore out of reach);
//! - use memory: nothing is kept of an entry once it is on disk.
//!
//! Directories are 0700 and without any other metadata until
//! [`finish_directories`], so that they pass nothing on to what is made in
//! them and get their times last.

mod create;
mod directories;
mod error;
mod link;
mod name;
mod resolve;
#[cfg(test)]
mod tests;

pub use directories::{FinishError, finish_directories, refinish_directories};
pub use error::UnpackError;
pub use name::NameError;

use super::archive::{Entry, EntryKind};
use super::index::{self, Attrs, Record, SpecialKind};
use super::limits::Limits;
use super::tree::metadata::{DEFAULT_ACL, Reader, hand_down_nothing};
use super::tree::{Cursor, MetadataError, Ownership, PathText, remove_tree};
use super::{EntrySink, RecordSink};
use create::{Target, write_at};
use name::Meaning;
use resolve::Missing;
use rustix::fd::{AsFd, OwnedFd};

/// How a layer is unpacked.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whose the files are to be.
    pub ownership: Ownership,
    /// Bounds; of these, path length, depth, and number of files are checked
    /// here, the rest where the archive is read.
    pub limits: Limits,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnpackStats {
    /// Entries taken, of whatever meaning.
    pub entries: u64,
    /// Files, directories and links made, implied directories included.
    pub nodes: u64,
    /// Directories made that had no entry of their own by then.
    pub implied_directories: u64,
    /// Bytes of file data written.
    pub bytes: u64,
    /// Entries dropped as AUFS's bookkeeping.
    pub dropped_entries: u64,
    /// Extended attributes dropped that no Linux inode of that type can have,
    /// that are overlayfs's own, or that need root.
    pub dropped_xattrs: u64,
}

/// Writes the entries of one layer below a directory.
#[derive(Debug)]
pub struct Unpacker<R: RecordSink> {
    cursor: Cursor,
    records: R,
    options: Options,
    reader: Reader,
    /// The private directory for AUFS's pseudo-links, once there is one.
    pseudo_links: Option<OwnedFd>,
    /// The file that the data goes to; none while what comes is dropped.
    file: Option<OpenFile>,
    stats: UnpackStats,
}

#[derive(Debug)]
struct OpenFile {
    fd: OwnedFd,
    path: Vec<u8>,
    target: Target,
    attrs: Attrs,
    /// Apparent size by the entry's header.
    size: u64,
    /// End of the data that came, holes before it included.
    end: u64,
}

impl<R: RecordSink> Unpacker<R> {
    /// An unpacker that writes into `root`, an empty directory of the caller's
    /// that nobody else touches, and tells `records` what it finds. `/proc` has
    /// to be mounted: extended attributes of links go through it.
    ///
    /// # Errors
    /// [`UnpackError::Metadata`] if `root`'s extended attributes cannot be listed,
    /// or the default access control list not be taken from it.
    pub fn new(root: OwnedFd, records: R, options: Options) -> Result<Self, UnpackError> {
        let reader = hand_down_nothing(root.as_fd())
            .map_err(|source| MetadataError::RemoveXattr {
                name: DEFAULT_ACL.into(),
                source,
            })
            .and_then(|()| Reader::new(root.as_fd()))
            .map_err(|source| UnpackError::Metadata {
                path: root_text(),
                source,
            })?;
        Ok(Unpacker {
            cursor: Cursor::new(root),
            records,
            options,
            reader,
            pseudo_links: None,
            file: None,
            stats: UnpackStats::default(),
        })
    }

    /// Ends the layer. Directories still lack their metadata.
    ///
    /// # Errors
    /// [`UnpackError::Incomplete`] if the last file did not end.
    pub fn finish(self) -> Result<(UnpackStats, R), UnpackError> {
        self.check_complete()?;
        if self.pseudo_links.is_some() {
            remove_tree(self.cursor.root(), name::PSEUDO_LINKS).map_err(|source| {
                UnpackError::Replace {
                    path: name::PSEUDO_LINKS.into(),
                    source,
                }
            })?;
        }
        Ok((self.stats, self.records))
    }

    fn check_complete(&self) -> Result<(), UnpackError> {
        match &self.file {
            None => Ok(()),
            Some(file) => Err(UnpackError::Incomplete {
                path: file.path[..].into(),
            }),
        }
    }

    fn record(&mut self, record: &Record) -> Result<(), UnpackError> {
        self.records
            .record(record)
            .map_err(|source| UnpackError::Record {
                path: record.path[..].into(),
                source,
            })
    }

    /// Counts what is about to be made at `path`.
    fn count_node(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.stats.nodes += 1;
        let limit = self.options.limits.max_entries;
        if self.stats.nodes > limit {
            return Err(UnpackError::TooManyNodes {
                path: path.into(),
                limit,
            });
        }
        Ok(())
    }

    /// What the layer hides, in the directory `parent`.
    fn marker(&mut self, parent: &[u8], name: Option<&[u8]>, seq: u64) -> Result<(), UnpackError> {
        // As the archive has it: whether a link of the layers below is followed
        // on the way is settled when the image is sealed, and this layer's own
        // links are no way to what the layers below have.
        let directory = parent.to_vec();
        self.record(&Record {
            path: match name {
                Some(name) => index::join(&directory, name),
                None => directory,
            },
            seq,
            node: None,
            whiteout: name.is_some(),
            opaque: name.is_none(),
            ..Record::default()
        })
    }

    /// Notes that entry `seq` went through `path` by way of this layer's own
    /// links: where one of the layers below has a link there, that leads
    /// elsewhere.
    fn note_passed(&mut self, path: Vec<u8>, seq: u64) -> Result<(), UnpackError> {
        self.record(&Record {
            path,
            seq,
            displaced: true,
            ..Record::default()
        })
    }

    fn node(&mut self, entry: Entry, path: &[u8], seq: u64) -> Result<(), UnpackError> {
        if path.is_empty() {
            if entry.kind != EntryKind::Directory {
                return Err(UnpackError::RootNotDirectory);
            }
            return self.note_directory(entry, Vec::new(), seq);
        }
        if entry.kind == EntryKind::HardLink {
            return self.hard_link(&entry, path, seq);
        }
        let missing = self.resolve(index::parent(path), path)?;
        let name = index::name(path);
        self.check_way(&missing, name)
            .map_err(|source| UnpackError::Way {
                path: path.into(),
                source,
            })?;
        if missing != Missing::default() {
            self.create_missing(&missing, seq)?;
        }
        self.count_node(path)?;
        let place = index::join(self.cursor.path(), name);
        match entry.kind {
            EntryKind::File => self.create_file(entry, place, Target::Tree { seq }),
            EntryKind::Directory => {
                if place != path {
                    // Markers may be below either name of it.
                    self.note_passed(path.to_vec(), seq)?;
                    self.note_passed(place.clone(), seq)?;
                }
                self.create_directory(entry, place, seq)
            }
            EntryKind::Symlink => self.create_symlink(entry, place, seq),
            EntryKind::Fifo => self.create_special(entry, place, SpecialKind::Fifo, seq),
            EntryKind::CharDevice => self.create_special(entry, place, SpecialKind::Char, seq),
            EntryKind::BlockDevice => self.create_special(entry, place, SpecialKind::Block, seq),
            // Taken above.
            EntryKind::HardLink => Ok(()),
        }
    }
}

impl<R: RecordSink> EntrySink for Unpacker<R> {
    type Error = UnpackError;

    fn begin(&mut self, entry: Entry) -> Result<(), UnpackError> {
        self.check_complete()?;
        // From 1 on: 0 is before all of them.
        self.stats.entries += 1;
        let seq = self.stats.entries;
        let refuse = |source| UnpackError::Name {
            path: entry.path[..].into(),
            source,
        };
        let path = name::normalise(&entry.path, &self.options.limits).map_err(refuse)?;
        match name::meaning(&path).map_err(refuse)? {
            Meaning::Node => self.node(entry, &path, seq),
            Meaning::Whiteout { parent, name } => self.marker(parent, Some(name), seq),
            Meaning::Opaque { parent } => self.marker(parent, None, seq),
            Meaning::PseudoLink { .. } if entry.kind == EntryKind::File => {
                self.pseudo_link(entry, &path)
            }
            Meaning::PseudoLink { .. } | Meaning::Bookkeeping => {
                self.stats.dropped_entries += 1;
                Ok(())
            }
        }
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), UnpackError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let end = offset
            .checked_add(bytes.len() as u64)
            .filter(|end| *end <= file.size)
            .ok_or_else(|| UnpackError::DataBeyondSize {
                path: file.path[..].into(),
                size: file.size,
            })?;
        write_at(&file.fd, offset, bytes).map_err(|source| UnpackError::Write {
            path: file.path[..].into(),
            source,
        })?;
        file.end = file.end.max(end);
        self.stats.bytes += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self) -> Result<(), UnpackError> {
        match self.file.take() {
            Some(file) => self.finish_file(file),
            None => Ok(()),
        }
    }
}

fn root_text() -> PathText {
    PathText::from(&b""[..])
}
