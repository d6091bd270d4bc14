//! Where a way leads through links of this layer and of those below, within
//! the bounds that also hold for what the unpacker follows.

use super::{Level, Settling, self_and_ancestors};
use crate::layer::index::{Index, Node, Record, join, parent};
use crate::layer::limits::{MAX_COMPONENT_BYTES, MAX_LINKS, MAX_STEPS};
use crate::layer::seal::SealError;
use crate::layer::seal::merged::Found;
use std::ops::Range;

/// Every entry of a layer.
pub(super) const ALL: Range<u64> = 0..u64::MAX;

/// Says what is at a path, see [`Settling::walk_links`].
pub(super) type Look<'a> =
    &'a mut dyn FnMut(&[u8], bool) -> Result<(Option<Node>, bool), SealError>;

/// Where a link of the layers below leads.
pub(super) struct Followed {
    /// The place, within the root.
    pub(super) end: Vec<u8>,
    /// Nothing of the layers below shows in it.
    pub(super) hidden: bool,
    /// Links on the way, the first one included.
    pub(super) links: Vec<Vec<u8>>,
}

/// What is at a path at some entry of the archive.
pub(super) enum There {
    Nothing,
    Own(Node),
    Lower(Found),
    /// Something that was replaced since, and of which too little is kept.
    Unknown,
}

impl There {
    pub(super) fn node(&self) -> Option<&Node> {
        match self {
            There::Own(node) | There::Lower(Found { node, .. }) => Some(node),
            There::Nothing | There::Unknown => None,
        }
    }
}

impl Settling<'_> {
    /// What the layers below have at `path`, unless a marker hides it.
    pub(super) fn below(&self, path: &[u8]) -> Result<Option<Found>, SealError> {
        if let Some(markers) = &self.markers
            && self.removes(markers, path)?
        {
            return Ok(None);
        }
        self.io(self.lower.lookup(path))
    }

    /// What is at `path` when entry `seq` of this layer is extracted, and
    /// whether this layer hides what is below inside it: an own entry that came
    /// before, else what is below, unless that is `hidden`.
    pub(super) fn there(
        &self,
        own: &Index,
        path: &[u8],
        seq: u64,
        hidden: bool,
    ) -> Result<(There, bool), SealError> {
        let record = self.io(own.get(path))?.unwrap_or_default();
        if record.is_lost() && !hidden {
            return Ok((There::Unknown, hidden));
        }
        let hidden = hidden || record.cleared > 0 && record.cleared <= seq;
        let (first, since) = (record.first(), record.since());
        let node = match record.node {
            Some(_) if seq < first => None,
            Some(node) if since <= seq => Some(node),
            // Until its own entry came, if that is what came first.
            Some(Node::Implied | Node::Directory { late: Some(_), .. }) if record.cleared == 0 => {
                Some(Node::Implied)
            }
            Some(_) => return Ok((There::Unknown, hidden)),
            None => None,
        };
        let hides = hidden || node.as_ref().is_some_and(|node| !node.is_dir());
        let there = match node {
            None | Some(Node::Implied) if !hidden => match (self.below(path)?, node) {
                // What was below it has become a directory.
                (Some(found), Some(_)) if !found.node.is_dir() && !is_link(&found.node) => {
                    return Ok((There::Own(Node::Implied), true));
                }
                (Some(found), _) => There::Lower(found),
                (None, Some(node)) => There::Own(node),
                (None, None) => There::Nothing,
            },
            Some(node) => There::Own(node),
            None => There::Nothing,
        };
        Ok((there, hides))
    }

    /// Which entries can be in `natural`. Where a directory took a link's place,
    /// what came on both sides of its own entry is in two places, and the
    /// unpacker has made one of them.
    pub(super) fn span(
        &self,
        above: &Level,
        natural: &[u8],
        record: Option<&Record>,
    ) -> Result<Range<u64>, SealError> {
        let mut span = above.span.clone();
        let node = record.filter(|record| record.node.is_some());
        if let Some((_, own)) = above.early {
            match node {
                Some(node) if node.seq < own => span.end = span.end.min(own),
                _ => span.start = span.start.max(own),
            }
        }
        let within =
            node.is_none_or(|node| span.contains(&node.first()) && span.contains(&node.seq));
        if !within {
            return Err(self.unsettled(natural));
        }
        Ok(span)
    }

    /// Where the link at `path` with text `target` leads, for the sake of
    /// `entry`, number `seq` of the archive.
    pub(super) fn follow(
        &self,
        levels: &[Level],
        path: &[u8],
        target: &[u8],
        entry: &[u8],
        seq: u64,
    ) -> Result<Followed, SealError> {
        let mut links = vec![path.to_vec()];
        let start = if target.starts_with(b"/") {
            &[]
        } else {
            parent(path)
        };
        let (end, hidden) = self.resolve(self.natural, start, target, &mut links, entry, seq)?;
        // Those before it on the entry's way count as well.
        let before: usize = levels.iter().map(|level| level.links.len()).sum();
        if before + links.len() > MAX_LINKS {
            return Err(self.too_many_links(entry));
        }
        Ok(Followed { end, hidden, links })
    }

    /// Where entries come, number `seq` of the archive among them, that pass
    /// through the implied directory `natural`, which is at `real` unless that is
    /// a link.
    pub(super) fn lead(
        &self,
        levels: &[Level],
        real: &[u8],
        natural: &[u8],
        hidden: bool,
        seq: u64,
    ) -> Result<Followed, SealError> {
        let (node, hides) = self.passed(real, natural, hidden, seq)?;
        match node {
            Some(Node::Symlink { target, .. }) => self.follow(levels, real, &target, natural, seq),
            _ => Ok(Followed {
                end: real.to_vec(),
                hidden: hides,
                links: Vec::new(),
            }),
        }
    }

    /// What the directory `natural`, which is at `real`, is made over, and whether
    /// nothing of the layers below shows in it then.
    pub(super) fn passed(
        &self,
        real: &[u8],
        natural: &[u8],
        hidden: bool,
        seq: u64,
    ) -> Result<(Option<Node>, bool), SealError> {
        if real == natural {
            // The unpacker went through what this layer has there.
            let below = if hidden { None } else { self.below(real)? };
            let node = below.map(|found| found.node);
            let hides = !node.as_ref().is_some_and(Node::is_dir);
            return Ok((node, hides));
        }
        match self.there(self.natural, real, seq, hidden)? {
            (There::Unknown, _) => Err(self.unsettled(natural)),
            (there, hides) => Ok((there.node().cloned(), hides)),
        }
    }

    pub(super) fn too_many_links(&self, entry: &[u8]) -> SealError {
        SealError::TooManyLinks {
            layer: self.layer + 1,
            path: entry.into(),
            limit: MAX_LINKS,
        }
    }

    /// Resolves `rest` from directory `start`, for the sake of `entry`; what does
    /// not exist is taken as it is written, for it will be made. Adds the links
    /// on the way to `links`. Says also whether nothing of the layers below shows
    /// at the end.
    pub(super) fn resolve(
        &self,
        own: &Index,
        start: &[u8],
        rest: &[u8],
        links: &mut Vec<Vec<u8>>,
        entry: &[u8],
        seq: u64,
    ) -> Result<(Vec<u8>, bool), SealError> {
        let mut look = |path: &[u8], hidden: bool| match self.there(own, path, seq, hidden)? {
            (There::Unknown, _) => Err(self.unsettled(path)),
            (there, hides) => Ok((there.node().cloned(), hides)),
        };
        self.walk_links(&mut look, start, rest, links, entry)
    }

    /// The same, with `look` for what is at a path, given whether nothing of the
    /// layers below shows in its directory, and whether that holds in it.
    pub(super) fn walk_links(
        &self,
        look: Look<'_>,
        start: &[u8],
        rest: &[u8],
        links: &mut Vec<Vec<u8>>,
        entry: &[u8],
    ) -> Result<(Vec<u8>, bool), SealError> {
        let mut current = start.to_vec();
        // For each component of `current`, whether nothing below shows in it.
        let mut hidden = Vec::new();
        for dir in self_and_ancestors(start) {
            let above = hidden.last().copied().unwrap_or(false);
            hidden.push(look(dir, above)?.1);
        }
        let mut pending: Vec<Vec<u8>> = split(rest).rev().map(<[u8]>::to_vec).collect();
        let mut steps = 0;
        loop {
            // Each of them is a step to come, if the way ends at all.
            if steps + pending.len() > MAX_STEPS {
                return Err(SealError::TooManySteps {
                    layer: self.layer + 1,
                    path: entry.into(),
                    limit: MAX_STEPS,
                });
            }
            let above = hidden.last().copied().unwrap_or(false);
            let Some(component) = pending.pop() else {
                return Ok((current, above));
            };
            steps += 1;
            if component == b".." {
                current.truncate(parent(&current).len());
                hidden.pop();
                continue;
            }
            let next = join(&current, &component);
            self.check_extent(&next, entry)?;
            let (node, hides) = look(&next, above)?;
            if let Some(Node::Symlink { target, .. }) = node {
                links.push(next);
                if links.len() > MAX_LINKS {
                    return Err(SealError::LinkLoop {
                        layer: self.layer + 1,
                        path: links[0][..].into(),
                    });
                }
                if target.starts_with(b"/") {
                    current.clear();
                    hidden.clear();
                }
                pending.extend(split(&target).rev().map(<[u8]>::to_vec));
            } else {
                current = next;
                hidden.push(hides);
            }
        }
    }

    /// Checks the extent of `real`, where links lead `entry`. Everything that
    /// sealing holds or writes of a path is bounded by this.
    pub(super) fn check_extent(&self, real: &[u8], entry: &[u8]) -> Result<(), SealError> {
        let (layer, path) = (self.layer + 1, || entry.into());
        let depth = self_and_ancestors(real).count();
        if depth > self.limits.max_depth {
            return Err(SealError::TooDeep {
                layer,
                path: path(),
                limit: self.limits.max_depth,
            });
        }
        if real.len() > self.limits.max_path_bytes {
            return Err(SealError::TooLong {
                layer,
                path: path(),
                limit: self.limits.max_path_bytes,
            });
        }
        // What is above it was checked when the way came there.
        if crate::layer::index::name(real).len() > MAX_COMPONENT_BYTES {
            return Err(SealError::NameTooLong {
                layer,
                path: path(),
                limit: MAX_COMPONENT_BYTES,
            });
        }
        Ok(())
    }
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

fn is_link(node: &Node) -> bool {
    matches!(node, Node::Symlink { .. })
}
