//! Hard links into the layers below: finding the inode, and giving it here all
//! the names that it is to have.

use super::{Foreign, Names, Settling, implied, record, self_and_ancestors};
use crate::layer::index::{Index, Node, Record, join, name, parent};
use crate::layer::seal::SealError;
use crate::layer::seal::edits::Edit;
use crate::layer::seal::merged::Found;
use crate::layer::tree::PathText;
use std::collections::{BTreeMap, HashMap, HashSet};

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
        let dir = self.resolve(own, b"", parent(target), &mut Vec::new(), link, seq)?;
        let path = join(&dir, name(target));
        self.check_extent(&path, link)?;
        Ok(path)
    }

    /// What came beneath a hard link into the layers below made a directory of
    /// it, unless it is one to a symbolic link.
    pub(super) fn passes_by(&self, own: &Index, record: &Record) -> Result<(), SealError> {
        let target = &record.lost_link;
        let path = self.target(own, target, &record.path, record.cleared)?;
        match self.source(own, &path, record.cleared, &record.path)? {
            Source::Own(Node::File { .. } | Node::Special { .. })
            | Source::Lower {
                node: Node::File { .. } | Node::Special { .. },
                ..
            } => Ok(()),
            _ => Err(self.unsettled(&record.path)),
        }
    }

    /// Gives the hard links into the layers below their inode. An inode that
    /// gets a further name is copied here with all its names that are still
    /// visible, so that they stay one inode.
    pub(super) fn link(
        &self,
        own: &Index,
        foreign: &[Foreign],
        edits: &mut Vec<Edit>,
    ) -> Result<Vec<Record>, SealError> {
        // Where each link leads, by name, so that a link to a link finds it too.
        let mut found: HashMap<Vec<u8>, (Vec<u8>, Source)> = HashMap::new();
        let mut wanted: BTreeMap<usize, HashSet<u64>> = BTreeMap::new();
        let mut links = Vec::with_capacity(foreign.len());
        for Foreign { link, target, seq } in foreign {
            let path = self.target(own, target, link, *seq)?;
            let (path, source) = match found.get(&path) {
                Some(known) => known.clone(),
                None => {
                    let source = self.source(own, &path, *seq, link)?;
                    (path, source)
                }
            };
            if let Source::Lower { layer, node } = &source {
                wanted.entry(*layer).or_default().extend(inode(node));
            }
            found.insert(link.clone(), (path, source));
            let kept = self.node_at(own, link)?;
            if kept.is_some_and(|kept| kept.seq == *seq) {
                links.push((link, *seq));
            }
        }
        let names = self.names(&wanted)?;

        let mut added: Vec<Record> = Vec::new();
        // The first name here of each inode that was copied.
        let mut copied: HashMap<(usize, u64), (Vec<u8>, Node)> = HashMap::new();
        for (link, seq) in links {
            let Some((path, source)) = found.get(link) else {
                continue;
            };
            let (first, node) = match source {
                Source::Own(node) => (path.clone(), node.clone()),
                Source::Lower { layer, node } => {
                    let key = (*layer, inode(node).unwrap_or_default());
                    match copied.get(&key) {
                        Some(known) => known.clone(),
                        None => {
                            let node = renumber(node.clone(), seq);
                            let mut visible = Vec::new();
                            for name in names.get(&key).map_or(&[][..], Vec::as_slice) {
                                if self.still_visible(own, name, key)? {
                                    visible.push(name.clone());
                                }
                            }
                            // Without any other name left, the link is the only one.
                            let first = visible.first().unwrap_or(link).clone();
                            edits.push(Edit::Copy {
                                layer: *layer,
                                from: path.clone(),
                                to: first.clone(),
                            });
                            for name in visible.iter().skip(1) {
                                edits.push(Edit::Link {
                                    from: first.clone(),
                                    to: name.clone(),
                                });
                            }
                            added.extend(visible.iter().map(|name| record(name, seq, &node)));
                            copied.insert(key, (first.clone(), node.clone()));
                            (first, node)
                        }
                    }
                }
            };
            if first != *link {
                edits.push(Edit::Link {
                    from: first,
                    to: link.clone(),
                });
            }
            added.push(record(link, seq, &node));
        }
        Ok(added)
    }

    /// What a link of place `seq` in the archive finds at `path`.
    pub(super) fn source(
        &self,
        own: &Index,
        path: &[u8],
        seq: u64,
        link: &[u8],
    ) -> Result<Source, SealError> {
        let layer = self.layer + 1;
        let relocates = !self.followed.borrow().is_empty();
        for dir in self_and_ancestors(path) {
            let record = self.io(own.get(dir))?.unwrap_or_default();
            // What came beneath it by way of a link below, perhaps this very
            // target, went when something else took its place.
            let replaced = record.seq > seq && record.node.is_some_and(|node| !node.is_dir());
            if record.cleared > seq
                || dir == path && !record.lost_link.is_empty()
                || dir != path && replaced && relocates
            {
                return Err(self.unsettled(path));
            }
        }
        let (link, target) = (PathText::from(link), PathText::from(path));
        let node = match self.node_at(own, path)? {
            Some(record) if record.seq <= seq && record.node != Some(Node::Implied) => {
                return match record.node {
                    Some(node) if !node.is_dir() => Ok(Source::Own(node)),
                    _ => Err(SealError::LinkToDirectory {
                        layer,
                        link,
                        target,
                    }),
                };
            }
            _ => self.io(self.lower.lookup(path))?,
        };
        let implied = self
            .node_at(own, path)?
            .is_some_and(|record| record.node == Some(Node::Implied) && record.seq <= seq);
        match node {
            Some(found) if implied && !matches!(found.node, Node::Symlink { .. }) => {
                Err(SealError::LinkToDirectory {
                    layer,
                    link,
                    target,
                })
            }
            None if implied => Err(SealError::LinkToDirectory {
                layer,
                link,
                target,
            }),
            None => Err(SealError::LinkTargetMissing {
                layer,
                link,
                target,
            }),
            Some(_) if self.removes(own, path)? => Err(SealError::LinkTargetRemoved {
                layer,
                link,
                target,
            }),
            Some(found) if found.node.is_dir() => Err(SealError::LinkToDirectory {
                layer,
                link,
                target,
            }),
            Some(Found { layer, node }) => Ok(Source::Lower { layer, node }),
        }
    }

    /// Whether a marker of this layer hides what the layers below have at `path`.
    pub(super) fn removes(&self, own: &Index, path: &[u8]) -> Result<bool, SealError> {
        if self.io(own.get(b""))?.is_some_and(|record| record.opaque) {
            return Ok(true);
        }
        for dir in self_and_ancestors(path) {
            let Some(record) = self.io(own.get(dir))? else {
                continue;
            };
            if record.whiteout || record.opaque && dir.len() < path.len() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All names of the inodes in question, from one pass over each layer.
    fn names(&self, wanted: &BTreeMap<usize, HashSet<u64>>) -> Result<Names, SealError> {
        let mut names = Names::new();
        for (layer, inodes) in wanted {
            let mut cursor = self.lower.layers[*layer].cursor();
            while let Some(record) = self.io(cursor.next_record())? {
                if let Some(inode) = record.node.as_ref().and_then(inode)
                    && inodes.contains(&inode)
                {
                    names.entry((*layer, inode)).or_default().push(record.path);
                }
            }
        }
        Ok(names)
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
            below.is_some_and(|found| (found.layer, inode(&found.node)) == (key.0, Some(key.1)));
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

    /// The index with further records, and the directories that they imply.
    pub(super) fn with(&self, index: &Index, added: Vec<Record>) -> Result<Index, SealError> {
        let mut out = self.builder()?;
        let mut cursor = index.cursor();
        while let Some(mut record) = self.io(cursor.next_record())? {
            if matches!(record.node, Some(Node::ForeignLink { .. })) {
                record.node = None;
            }
            self.io(out.push(&record))?;
        }
        for record in added {
            for dir in self_and_ancestors(parent(&record.path)) {
                self.io(out.push(&implied(dir, record.seq)))?;
            }
            self.io(out.push(&record))?;
        }
        self.io((self.scratch)().and_then(|file| out.finish(file)))
    }
}

/// Where a hard link finds its inode.
#[derive(Clone)]
pub(super) enum Source {
    /// In this layer.
    Own(Node),
    /// In one below.
    Lower { layer: usize, node: Node },
}

fn inode(node: &Node) -> Option<u64> {
    match node {
        Node::File { inode, .. } | Node::Symlink { inode, .. } | Node::Special { inode, .. } => {
            Some(*inode)
        }
        Node::Directory { .. } | Node::Implied | Node::ForeignLink { .. } => None,
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
