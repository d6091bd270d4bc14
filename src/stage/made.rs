//! Branches that are no layer: several of them as one, what corrects a union of
//! several images, and one that is there for its root only.

use super::Stager;
use super::branch::{apply_format, copy_node, open_dir, work_error};
use super::error::{Layers, StageError};
use crate::layer::apply;
use crate::layer::index::{Attrs, Builder, Index, Node, Record, RecordLog};
use crate::layer::seal::images::Piece;
use crate::layer::seal::{Edit, EditLog, Format, SealError};
use crate::layer::store::{BranchId, BranchRecord, Ingest, Lease, unique};
use crate::layer::unpack::finish_directories;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A branch that is made of others.
pub(super) struct Made<'a> {
    /// What it is named by.
    pub(super) key: &'a str,
    /// Where the pieces that are no directories are copied from, by their member.
    pub(super) sources: &'a [(BranchId, Layers)],
    /// What is said of its root.
    pub(super) root: Option<Attrs>,
    /// The format of what it hides.
    pub(super) format: Format,
    /// What it is, for a text.
    pub(super) what: Layers,
}

/// Making a list of pieces failed: the indexes, or the log of what is to be done.
pub(super) enum ListError {
    Seal(SealError),
    Io(io::Error),
}

impl From<SealError> for ListError {
    fn from(error: SealError) -> Self {
        ListError::Seal(error)
    }
}

impl From<io::Error> for ListError {
    fn from(error: io::Error) -> Self {
        ListError::Io(error)
    }
}

/// What a branch is to hold, on disk.
pub(super) struct Pieces {
    /// Directories and markers.
    edits: EditLog,
    /// What is copied from each source.
    copies: Vec<Option<RecordLog>>,
    index: Builder,
    count: u64,
    hides: bool,
}

impl Pieces {
    /// None yet, from so many sources.
    pub(super) fn new(sources: usize, work: &Ingest) -> io::Result<Self> {
        Ok(Pieces {
            edits: work.scratch().and_then(EditLog::new)?,
            copies: std::iter::repeat_with(|| None).take(sources).collect(),
            index: Builder::new(work.scratch()?),
            count: 0,
            hides: false,
        })
    }

    /// Takes the next one.
    pub(super) fn push(&mut self, piece: Piece, work: &Ingest) -> io::Result<()> {
        self.count += 1;
        let said = match piece {
            Piece::Directory { path, attrs } => {
                let node = match &attrs {
                    Some(attrs) => Node::Directory {
                        attrs: attrs.clone(),
                        late: None,
                    },
                    None => Node::Implied,
                };
                self.edits.push(&match attrs {
                    Some(attrs) => Edit::Directory {
                        path: path.clone(),
                        attrs,
                    },
                    None => Edit::Implied { path: path.clone() },
                })?;
                Record {
                    path,
                    node: Some(node),
                    ..Record::default()
                }
            }
            Piece::Hidden { path } => {
                self.hides = true;
                self.edits.push(&Edit::Whiteout { path: path.clone() })?;
                Record {
                    path,
                    whiteout: true,
                    ..Record::default()
                }
            }
            Piece::Other { member, record } => {
                let log = match &mut self.copies[member] {
                    Some(log) => log,
                    none => none.insert(RecordLog::new(work.scratch()?)),
                };
                log.push(&record)?;
                Record {
                    path: record.path,
                    seq: member as u64,
                    node: record.node.map(|node| renumbered(node, member)),
                    ..Record::default()
                }
            }
        };
        self.index.push(&said)
    }

    /// Whether there is any.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The node with an inode that no other source has.
fn renumbered(mut node: Node, member: usize) -> Node {
    if let Node::File { inode, .. } | Node::Symlink { inode, .. } | Node::Special { inode, .. } =
        &mut node
    {
        // Far above the number of entries of any layer.
        *inode ^= (member as u64 + 1) << 44;
    }
    node
}

impl Stager<'_> {
    /// Makes a branch of these pieces and commits it.
    pub(super) fn make(
        &self,
        made: &Made<'_>,
        pieces: Pieces,
        work: &Ingest,
    ) -> Result<BranchId, StageError> {
        let name = format!("made-{}", unique());
        let tree = work.path().join(&name);
        let root = work.directory(&name).map_err(StageError::Store)?;
        let Pieces {
            mut edits,
            copies,
            mut index,
            hides,
            ..
        } = pieces;
        let nothing = |_: usize| -> io::Result<OwnedFd> { Err(io::ErrorKind::NotFound.into()) };
        edits.finish().map_err(work_error(&tree))?;
        apply::apply(
            root.as_fd(),
            root.as_fd(),
            edits.read(),
            apply_format(made.format),
            self.ownership,
            &nothing,
            &mut |_, _| Ok(()),
        )
        .map_err(|source| StageError::Apply {
            layer: made.what.clone(),
            source,
        })?;
        for ((id, layer), log) in made.sources.iter().zip(copies) {
            let Some(log) = log else { continue };
            let from = open_dir(&self.store.branch_dir(id))?;
            let nodes = log
                .read()
                .map_err(work_error(&tree))?
                .filter_map(|record| record.map(copy_node).transpose());
            self.copy_nodes(layer, &from, &root, nodes, work)?;
        }
        let own = edits.read().filter_map(|edit| match edit {
            Ok(Edit::Directory { path, attrs }) => Some(Ok((path, attrs))),
            Ok(Edit::Implied { path }) => Some(Ok((path, Attrs::implied()))),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        let top = made.root.clone().unwrap_or_else(Attrs::implied);
        let all = std::iter::once(Ok((Vec::new(), top))).chain(own);
        finish_directories(root.as_fd(), all, self.ownership).map_err(|source| {
            StageError::Finish {
                layer: made.what.clone(),
                source,
            }
        })?;
        index
            .push(&root_record(made.root.clone()))
            .map_err(work_error(&tree))?;
        let format = hides.then_some(made.format);
        self.commit_made(made.key, &tree, format, index, work)
    }

    /// An empty branch whose root has the given metadata: the uppermost one of a
    /// read-only union whose own uppermost layer says nothing of the root.
    pub fn root_branch(&self, root: &Attrs, lease: &Lease) -> Result<BranchId, StageError> {
        let key = format!("root {root:?}");
        let id = BranchId::of(&key);
        lease
            .hold_branches(self.store, std::slice::from_ref(&id))
            .map_err(StageError::Store)?;
        if self.store.branch(&id).map_err(StageError::Store)?.is_some() {
            return Ok(id);
        }
        let work = Ingest::begin(self.store).map_err(StageError::Store)?;
        let dir = work.directory("root").map_err(StageError::Store)?;
        let tree = work.path().join("root");
        let all = std::iter::once(Ok((Vec::new(), root.clone())));
        finish_directories(dir.as_fd(), all, self.ownership).map_err(StageError::Root)?;
        let mut index = work
            .scratch()
            .map(Builder::new)
            .map_err(work_error(&tree))?;
        index
            .push(&root_record(Some(root.clone())))
            .map_err(work_error(&tree))?;
        self.commit_made(&key, &tree, None, index, &work)
    }

    /// Commits a branch that is no layer.
    fn commit_made(
        &self,
        key: &str,
        tree: &Path,
        format: Option<Format>,
        index: Builder,
        work: &Ingest,
    ) -> Result<BranchId, StageError> {
        let path: PathBuf = work.path().join(format!("made-{}.index", unique()));
        let index: Index = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|file| index.finish(file))
            .map_err(work_error(&path))?;
        let edits = work
            .scratch()
            .and_then(EditLog::new)
            .map_err(work_error(&path))?;
        let record = BranchRecord {
            id: BranchId::of(key),
            key: key.to_owned(),
            diff_id: None,
            format,
            edits: 0,
            additive: true,
            summary: *index.summary(),
            tar_bytes: 0,
            created: crate::layer::store::now(),
            boot: None,
        };
        self.store
            .commit(tree, &path, &edits, &record)
            .map_err(StageError::Store)?;
        Ok(record.id)
    }
}

fn root_record(said: Option<Attrs>) -> Record {
    Record {
        node: Some(match said {
            Some(attrs) => Node::Directory { attrs, late: None },
            None => Node::Implied,
        }),
        ..Record::default()
    }
}
