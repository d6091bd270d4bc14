//! What is in a branch, once it is made: what the layer has, and the edits. The
//! markers of the layer itself say nothing here; sealing has turned those that
//! matter into edits.

use super::edits::{Edit, EditReader};
use crate::layer::index::codec::corrupt;
use crate::layer::index::{Attrs, Builder, Index, Node, Record};
use std::fs::File;
use std::io;

/// What is in one branch, for unions of one format.
#[derive(Debug, Clone)]
pub struct Content {
    pub(super) index: Index,
    /// Whether the markers in `index` are on disk.
    pub(super) marked: bool,
}

/// Inodes that a layer has from the layers below it are numbered from here on;
/// its own are numbered by entries.
const COPIED: u64 = 1 << 63;

impl Content {
    /// Of a branch with nothing but what its index has.
    pub fn plain(index: Index) -> Self {
        Content {
            index,
            marked: false,
        }
    }

    /// Of a branch whose layer was edited. `scratch` gives empty files.
    pub fn edited(
        natural: &Index,
        edits: impl Fn() -> io::Result<EditReader>,
        scratch: &dyn Fn() -> io::Result<File>,
    ) -> io::Result<Self> {
        let gone = gone(edits()?, scratch)?;
        let mut out = Builder::new(scratch()?);
        let mut cursor = natural.cursor();
        while let Some(record) = cursor.next_record()? {
            let Some(node) = record.node else { continue };
            if matches!(node, Node::ForeignLink { .. }) {
                // Not on disk until an edit makes it.
                continue;
            }
            if let Some(path) = place(&gone, record.path)? {
                out.push(&at(path, 0, node))?;
            }
        }
        let mut copied = COPIED;
        let mut links = false;
        // Of several edits of one directory, the last one says what it is.
        for (edit, seq) in edits()?.zip(1..) {
            let (path, node) = match edit? {
                Edit::Move { .. } | Edit::RemoveDirectory { .. } | Edit::RemoveFile { .. } => {
                    continue;
                }
                Edit::Directory { path, attrs } => (path, Node::Directory { attrs, late: None }),
                Edit::Implied { path } => (path, Node::Implied),
                Edit::Copy { to, .. } => {
                    copied += 1;
                    (to, file(copied))
                }
                Edit::Link { from, to } => {
                    links = true;
                    (to, Node::ForeignLink { target: from })
                }
                Edit::Whiteout { path } => {
                    out.push(&Record {
                        path,
                        seq,
                        whiteout: true,
                        ..Record::default()
                    })?;
                    continue;
                }
                Edit::Opaque { path } => {
                    out.push(&Record {
                        path,
                        seq,
                        opaque: true,
                        ..Record::default()
                    })?;
                    continue;
                }
            };
            out.push(&at(path, seq, node))?;
        }
        let mut index = out.finish(scratch()?)?;
        if links {
            index = linked(&index, scratch)?;
        }
        Ok(Content {
            index,
            marked: true,
        })
    }
}

fn at(path: Vec<u8>, seq: u64, node: Node) -> Record {
    Record {
        path,
        seq,
        node: Some(node),
        ..Record::default()
    }
}

/// Something that is no directory; what it is does not matter to a union.
fn file(inode: u64) -> Node {
    Node::File {
        attrs: Attrs::default(),
        size: 0,
        inode,
    }
}

/// What moves, with its new place as a link's target, and what is removed or is
/// said anew.
fn gone(edits: EditReader, scratch: &dyn Fn() -> io::Result<File>) -> io::Result<Index> {
    let mut out = Builder::new(scratch()?);
    for edit in edits {
        match edit? {
            Edit::Move { from, to } => {
                out.push(&at(from, 0, Node::ForeignLink { target: to }))?;
            }
            Edit::RemoveDirectory { path } | Edit::RemoveFile { path } => {
                out.push(&Record {
                    path,
                    whiteout: true,
                    ..Record::default()
                })?;
            }
            // Beside what the layer says of it, that would not count.
            Edit::Implied { path } => {
                out.push(&Record {
                    path,
                    opaque: true,
                    ..Record::default()
                })?;
            }
            Edit::Directory { .. }
            | Edit::Copy { .. }
            | Edit::Link { .. }
            | Edit::Whiteout { .. }
            | Edit::Opaque { .. } => {}
        }
    }
    out.finish(scratch()?)
}

/// Where what the layer had at `path` is; nowhere, if it was removed.
fn place(gone: &Index, mut path: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    // To a name that nothing has, and from there to its place.
    for _ in 0..2 {
        match gone.get(&path)? {
            Some(Record {
                node: Some(Node::ForeignLink { target }),
                ..
            }) => path = target,
            Some(_) => return Ok(None),
            None => break,
        }
    }
    Ok(Some(path))
}

/// The same with the inode of each link.
fn linked(index: &Index, scratch: &dyn Fn() -> io::Result<File>) -> io::Result<Index> {
    let mut out = Builder::new(scratch()?);
    let mut cursor = index.cursor();
    while let Some(mut record) = cursor.next_record()? {
        let mut steps = index.summary().foreign_links;
        while let Some(Node::ForeignLink { target }) = &record.node {
            let source = match steps.checked_sub(1) {
                Some(left) => {
                    steps = left;
                    index.get(target)?
                }
                None => None,
            };
            let Some(source) = source else {
                return Err(corrupt("an edit links to a name that the branch has not"));
            };
            record.node = source.node;
        }
        out.push(&record)?;
    }
    out.finish(scratch()?)
}
