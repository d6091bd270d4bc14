//! Hard links into the layers below: finding the inode, and giving it here all
//! the names that it is to have.

mod group;

use super::way::There;
use super::{Settling, implied, record, self_and_ancestors};
use crate::layer::index::codec::corrupt;
use crate::layer::index::{Builder, Index, Node, Record, join, name, parent};
use crate::layer::seal::SealError;
use crate::layer::seal::edits::{Edit, EditLog};
use crate::layer::seal::merged::Found;
use crate::layer::tree::PathText;
pub(super) use group::Foreign;
use group::{Group, Groups, Member, Results, decode_link, decode_member, name_key, name_key_start};

impl Settling<'_> {
    /// The place that a hard link's target names, links followed but for the
    /// last component.
    fn target(
        &self,
        own: &Index,
        target: &[u8],
        link: &[u8],
        seq: u64,
    ) -> Result<Vec<u8>, SealError> {
        let (dir, _) = self.resolve(own, b"", parent(target), &mut Vec::new(), link, seq)?;
        let path = join(&dir, name(target));
        self.check_extent(&path, link)?;
        Ok(path)
    }

    /// What came beneath a hard link into the layers below made a directory of
    /// it, unless it is one to a symbolic link.
    pub(super) fn passes_by(&self, own: &Index, record: &Record) -> Result<(), SealError> {
        let source = self
            .target(own, &record.lost_link, &record.path, record.cleared)
            .and_then(|path| self.source(own, &path, record.cleared, &record.path));
        match source {
            Ok(
                Source::Own(Node::File { .. } | Node::Special { .. })
                | Source::Lower {
                    node: Node::File { .. } | Node::Special { .. },
                    ..
                },
            ) => Ok(()),
            Err(error @ (SealError::Index { .. } | SealError::IndexTooLarge { .. })) => Err(error),
            // It may have led elsewhere before.
            Ok(_) | Err(_) => Err(self.unsettled(&record.path)),
        }
    }

    /// Gives the hard links into the layers below their inode. An inode that
    /// gets a further name is copied here with all its names that are still
    /// visible, so that they stay one inode. Returns the index with all of
    /// these names, and the edits that make them.
    pub(super) fn link(
        &self,
        own: &Index,
        foreign: Foreign,
    ) -> Result<(Index, EditLog), SealError> {
        let mut out = self.builder()?;
        let mut edits = self.io((self.scratch)().and_then(EditLog::new))?;
        let mut cursor = own.cursor();
        while let Some(mut record) = self.io(cursor.next_record())? {
            if matches!(record.node, Some(Node::ForeignLink { .. })) {
                record.node = None;
            }
            self.io(out.push(&record))?;
        }
        let mut groups = self.io((self.scratch)().map(Groups::new))?;
        self.find(own, foreign, &mut groups, &mut edits, &mut out)?;
        for layer in groups.layers.clone() {
            let mut cursor = self.lower.layers[layer].cursor();
            while let Some(record) = self.io(cursor.next_record())? {
                if let Some(inode) = record.node.as_ref().and_then(Node::inode) {
                    self.io(groups.push_name((layer, inode), &record.path))?;
                }
            }
        }
        self.copy(own, groups, &mut edits, &mut out)?;
        self.io(edits.finish())?;
        Ok((self.finish(out)?, edits))
    }

    /// Finds what each link leads to, in the order of the archive. Those to an
    /// inode of this layer are made at once, the others are given to `groups`.
    fn find(
        &self,
        own: &Index,
        foreign: Foreign,
        groups: &mut Groups,
        edits: &mut EditLog,
        out: &mut Builder,
    ) -> Result<(), SealError> {
        let names = self.finish(foreign.by_name)?;
        let mut found = Results {
            places: self.io((self.scratch)())?,
            results: self.io((self.scratch)())?,
            end: 0,
        };
        let mut in_order = self.io(foreign.by_place.finish())?;
        while let Some(item) = self.io(in_order.next_item())? {
            let (link, target, seq) = self.io(decode_link(item))?;
            let path = self.target(own, &target, &link, seq)?;
            // By name, so that a link to a link finds what that one leads to.
            let earlier = self
                .io(names.last_before(&name_key(&path, seq)))?
                .filter(|record| record.path.starts_with(&name_key_start(&path)));
            let earlier = match earlier {
                Some(earlier) if self.is_still(own, &path, earlier.seq, seq)? => Some(earlier),
                _ => None,
            };
            let (path, source) = match earlier {
                Some(record) => {
                    let (path, layer) = self.io(found.get(record.seq))?;
                    let source = self.source_again(own, &path, layer)?;
                    (path, source)
                }
                None => {
                    let source = self.source(own, &path, seq, &link)?;
                    (path, source)
                }
            };
            self.io(found.put(seq, &path, source.layer()))?;
            let kept = self.node_at(own, &link)?;
            if kept.is_none_or(|kept| kept.seq != seq) {
                // Something later took its name.
                continue;
            }
            match source {
                Source::Own(node) => {
                    self.io(out.push(&record(&link, seq, &node)))?;
                    if path != link {
                        self.io(edits.push(&Edit::Link {
                            from: path,
                            to: link,
                        }))?;
                    }
                }
                Source::Lower { layer, node } => {
                    let inode = node.inode().unwrap_or_default();
                    self.io(groups.push_link((layer, inode), seq, &path, &link))?;
                }
            }
        }
        Ok(())
    }

    /// Whether link `earlier` is at `path` when entry `seq` comes.
    fn is_still(
        &self,
        own: &Index,
        path: &[u8],
        earlier: u64,
        seq: u64,
    ) -> Result<bool, SealError> {
        let Some(kept) = self.node_at(own, path)? else {
            return Ok(!self.relocates.get());
        };
        if kept.seq == earlier {
            return Ok(true);
        }
        // Without ways through links, the unpacker would have found what else
        // took its name by then.
        Ok(kept.since() > seq && !self.relocates.get())
    }

    /// What was found at `path` before: in that layer, or in this one.
    fn source_again(
        &self,
        own: &Index,
        path: &[u8],
        layer: Option<usize>,
    ) -> Result<Source, SealError> {
        let index = match layer {
            Some(layer) => &self.lower.layers[layer],
            None => own,
        };
        let node = self
            .io(index.get(path))?
            .and_then(|record| record.node)
            .ok_or_else(|| corrupt("what a link led to is gone"));
        let node = self.io(node)?;
        Ok(match layer {
            Some(layer) => Source::Lower { layer, node },
            None => Source::Own(node),
        })
    }

    /// Copies each inode to the first of its names and links the others to it.
    fn copy(
        &self,
        own: &Index,
        groups: Groups,
        edits: &mut EditLog,
        out: &mut Builder,
    ) -> Result<(), SealError> {
        let mut current: Option<Group> = None;
        // The directory of the name before.
        let mut last: Option<Vec<u8>> = None;
        let mut items = self.io(groups.sorter.finish())?;
        while let Some(item) = self.io(items.next_item())? {
            let (key, what) = self.io(decode_member(item))?;
            let same = current.as_mut().filter(|group| group.key == key);
            let (name, seq, group) = match (what, same) {
                // The first link's; the others are to the same inode.
                (Member::Source { seq, path }, None) => {
                    let source = self.source_again(own, path, Some(key.0))?;
                    let (Source::Own(node) | Source::Lower { node, .. }) = source;
                    current = Some(Group {
                        key,
                        seq,
                        from: path.to_vec(),
                        node: renumber(node, seq),
                        first: None,
                    });
                    last = None;
                    continue;
                }
                // Of an inode that only looked like one that is wanted.
                (Member::Name { .. } | Member::Link { .. }, None) => continue,
                (Member::Source { .. }, Some(_)) => continue,
                (Member::Name { path }, Some(group)) => {
                    if !self.still_visible(own, path, key)? {
                        continue;
                    }
                    let dir = parent(path);
                    if last.as_deref() != Some(dir) {
                        for dir in self_and_ancestors(dir) {
                            self.io(out.push(&implied(dir, group.seq)))?;
                        }
                        last = Some(dir.to_vec());
                    }
                    (path, group.seq, group)
                }
                (Member::Link { seq, path }, Some(group)) => (path, seq, group),
            };
            self.io(out.push(&record(name, seq, &group.node)))?;
            let edit = match &group.first {
                Some(first) => Edit::Link {
                    from: first.clone(),
                    to: name.to_vec(),
                },
                None => {
                    // Without any other name left, a link is the only one.
                    group.first = Some(name.to_vec());
                    Edit::Copy {
                        layer: key.0,
                        from: group.from.clone(),
                        to: name.to_vec(),
                    }
                }
            };
            self.io(edits.push(&edit))?;
        }
        Ok(())
    }

    /// What a link of place `seq` in the archive finds at `path`.
    pub(super) fn source(
        &self,
        own: &Index,
        path: &[u8],
        seq: u64,
        link: &[u8],
    ) -> Result<Source, SealError> {
        let mut found = There::Nothing;
        let mut hidden = false;
        for dir in self_and_ancestors(path) {
            (found, hidden) = self.there(own, dir, seq, hidden)?;
            if let There::Unknown = found {
                // The unpacker has looked, and found nothing on disk; that is
                // enough, unless something came through links.
                let record = self.io(own.get(dir))?;
                let foreign = record.is_some_and(|record| {
                    matches!(record.node, Some(Node::ForeignLink { .. }))
                        || !record.lost_link.is_empty()
                });
                found = match self.below(dir)? {
                    Some(below) if !foreign && !self.relocates.get() => There::Lower(below),
                    _ => return Err(self.unsettled(path)),
                };
            }
        }
        let layer = self.layer + 1;
        let (link, target) = (PathText::from(link), PathText::from(path));
        match found {
            There::Own(node) if !node.is_dir() => Ok(Source::Own(node)),
            There::Lower(Found { layer, node }) if !node.is_dir() => {
                Ok(Source::Lower { layer, node })
            }
            There::Own(_) | There::Lower(_) => Err(SealError::LinkToDirectory {
                layer,
                link,
                target,
            }),
            There::Nothing | There::Unknown => {
                let below = self.io(self.lower.lookup(path))?;
                Err(match below {
                    Some(_) if self.removes(own, path)? => SealError::LinkTargetRemoved {
                        layer,
                        link,
                        target,
                    },
                    _ => SealError::LinkTargetMissing {
                        layer,
                        link,
                        target,
                    },
                })
            }
        }
    }

    /// Whether this layer hides what the layers below have at `path`, by a marker
    /// or by a directory that took the place of something else.
    pub(super) fn removes(&self, own: &Index, path: &[u8]) -> Result<bool, SealError> {
        if self.io(own.get(b""))?.is_some_and(|record| record.opaque) {
            return Ok(true);
        }
        for dir in self_and_ancestors(path) {
            let Some(record) = self.io(own.get(dir))? else {
                continue;
            };
            if record.hides() || record.opaque && dir.len() < path.len() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether that inode of a lower layer is what the image shows at `path`
    /// also with this layer on top.
    fn still_visible(
        &self,
        own: &Index,
        path: &[u8],
        key: (usize, u64),
    ) -> Result<bool, SealError> {
        let below = self.io(self.lower.lookup(path))?;
        let same =
            below.is_some_and(|found| (found.layer, found.node.inode()) == (key.0, Some(key.1)));
        if !same || self.removes(own, path)? {
            return Ok(false);
        }
        // Nothing of this layer in its place, nor in that of a directory above.
        for dir in self_and_ancestors(path) {
            let node = self.io(own.get(dir))?.and_then(|record| record.node);
            if node.is_some_and(|node| dir == path || !node.is_dir()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Where a hard link finds its inode.
pub(super) enum Source {
    /// In this layer.
    Own(Node),
    /// In one below.
    Lower { layer: usize, node: Node },
}

impl Source {
    fn layer(&self) -> Option<usize> {
        match self {
            Source::Own(_) => None,
            Source::Lower { layer, .. } => Some(*layer),
        }
    }
}

/// A copy has an inode of its own. Real numbers are far below the high bit.
fn renumber(mut node: Node, seq: u64) -> Node {
    if let Node::File { inode, .. } | Node::Symlink { inode, .. } | Node::Special { inode, .. } =
        &mut node
    {
        *inode = seq | 1 << 63;
    }
    node
}
