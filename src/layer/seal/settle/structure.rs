//! From where the unpacker put things to where the effective index has them.

use super::{Settling, implied, is_dir};
use crate::layer::index::sort::Sorter;
use crate::layer::index::{Attrs, Builder, Index, Node, Record, compare};
use crate::layer::seal::SealError;
use crate::layer::seal::edits::{Edit, EditLog};
use std::io;

impl Settling<'_> {
    /// From where the unpacker put things to where the effective index has them.
    /// What moves goes by way of names that nothing has, for its place may be
    /// that of something which goes itself.
    pub(super) fn structural_edits(
        &self,
        effective: &Index,
        moves: &EditLog,
        links: Option<EditLog>,
        log: &mut EditLog,
    ) -> Result<(), SealError> {
        let aside = self.unused_name()?;
        let mut waiting = self.io((self.scratch)().and_then(EditLog::new))?;
        // What is below a directory goes before it.
        let mut gone = Sorter::new(self.io((self.scratch)())?, |a, b| compare(b, a));
        let mut moves = moves.read().peekable();
        let mut replaced = Inodes(self.builder()?);
        let mut natural = self.natural.cursor();
        while let Some(record) = self.io(natural.next_record())? {
            let path = record.path;
            let Some(node) = record.node else { continue };
            if matches!(node, Node::ForeignLink { .. }) {
                continue;
            }
            if node.is_dir() {
                let stays = path.is_empty()
                    || self
                        .node_at(effective, &path)?
                        .is_some_and(|kept| is_dir(&kept));
                if !stays {
                    self.io(gone.push(|out| {
                        out.extend_from_slice(&path);
                        path.len()
                    }))?;
                }
                continue;
            }
            // Both are in the order of the natural paths.
            let moved =
                moves.next_if(|edit| matches!(edit, Ok(Edit::Move { from, .. }) if *from == path));
            let place = match moved {
                Some(Ok(Edit::Move { to, .. })) => to,
                _ => path.clone(),
            };
            let wins = self
                .node_at(effective, &place)?
                .is_some_and(|kept| !is_dir(&kept) && kept.seq == record.seq);
            if !wins {
                if let Node::Symlink { .. } = node {
                    // What came by way of it later was meant for what replaced it.
                    return Err(self.unsettled(&path));
                }
                replaced
                    .take(&node, record.seq)
                    .map_err(SealError::index(self.layer))?;
                self.io(log.push(&Edit::RemoveFile { path }))?;
            } else if place != path {
                let mut from = aside.clone();
                from.extend_from_slice(waiting.len().to_string().as_bytes());
                self.io(log.push(&Edit::Move {
                    from: path,
                    to: from.clone(),
                }))?;
                self.io(waiting.push(&Edit::Move { from, to: place }))?;
            }
        }
        self.check_names(replaced)?;
        let mut gone = self.io(gone.finish())?;
        while let Some(path) = self.io(gone.next_item())? {
            let path = path.to_vec();
            self.io(log.push(&Edit::RemoveDirectory { path }))?;
        }
        let mut cursor = effective.cursor();
        while let Some(record) = self.io(cursor.next_record())? {
            if !is_dir(&record) || record.path.is_empty() {
                continue;
            }
            let before = self.node_at(self.natural, &record.path)?;
            // What came there by way of a link may be what the layer says of it.
            if before.as_ref().map(said) != Some(said(&record)) {
                let path = record.path;
                self.io(log.push(&match record.node {
                    Some(Node::Directory { attrs, .. }) => Edit::Directory { path, attrs },
                    _ => Edit::Implied { path },
                }))?;
            }
        }
        self.io(waiting.finish())?;
        for edit in waiting.read() {
            let edit = self.io(edit)?;
            self.io(log.push(&edit))?;
        }
        for edit in links.iter().flat_map(EditLog::read) {
            let edit = self.io(edit)?;
            self.io(log.push(&edit))?;
        }
        Ok(())
    }

    /// The unpacker has made a hard link to what it found under a name. Had
    /// something else come there by then, by way of a link, the link was meant
    /// for that.
    fn check_names(&self, replaced: Inodes) -> Result<(), SealError> {
        let replaced = self.finish(replaced.0)?;
        if replaced.summary().records == 0 {
            return Ok(());
        }
        let mut natural = self.natural.cursor();
        while let Some(record) = self.io(natural.next_record())? {
            let Some(inode) = record.node.as_ref().and_then(Node::inode) else {
                continue;
            };
            let first = self.io(replaced.get(&Inodes::key(inode)))?;
            if first.is_some_and(|first| first.first() < record.seq) {
                return Err(self.unsettled(&record.path));
            }
        }
        Ok(())
    }

    /// The beginning of names that the layer's root directory has not.
    fn unused_name(&self) -> Result<Vec<u8>, SealError> {
        let mut prefix = b".moving-".to_vec();
        let mut cursor = self.natural.cursor();
        while let Some(record) = self.io(cursor.next_record())? {
            while record.path.starts_with(&prefix) {
                prefix.push(b'-');
            }
        }
        Ok(prefix)
    }
}

/// What a record says of a directory, if it is one.
fn said(record: &Record) -> Option<Option<&Attrs>> {
    match &record.node {
        Some(Node::Directory { attrs, .. }) => Some(Some(attrs)),
        Some(Node::Implied) => Some(None),
        _ => None,
    }
}

/// Inodes, each with the place in the archive of the first of its names that
/// was taken.
struct Inodes(Builder);

impl Inodes {
    fn key(inode: u64) -> Vec<u8> {
        format!("{inode:x}").into_bytes()
    }

    fn take(&mut self, node: &Node, seq: u64) -> io::Result<()> {
        let Some(inode) = node.inode() else {
            return Ok(());
        };
        self.0.push(&implied(&Self::key(inode), seq))
    }
}
