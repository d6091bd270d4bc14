//! Where a way leads through links of this layer and of those below, within
//! the bounds that also hold for what the unpacker follows.

use super::{Level, Settling, self_and_ancestors};
use crate::layer::index::{Index, Node, Record, join, parent};
use crate::layer::limits::{MAX_COMPONENT_BYTES, MAX_LINKS, MAX_STEPS};
use crate::layer::seal::SealError;
use std::ops::Range;

/// Every entry of a layer.
pub(super) const ALL: Range<u64> = 0..u64::MAX;

/// Where a link of the layers below leads.
pub(super) struct Followed {
    /// The place, within the root.
    pub(super) end: Vec<u8>,
    /// Links on the way, the first one included.
    pub(super) links: Vec<Vec<u8>>,
}

impl Settling<'_> {
    /// What is at `path` when entry `seq` of this layer is extracted, and
    /// whether this layer hides what is below inside it: an own entry that came
    /// before, else what is below, unless that is `hidden`.
    fn visible(
        &self,
        own: &Index,
        path: &[u8],
        seq: u64,
        hidden: bool,
    ) -> Result<(Option<Node>, bool), SealError> {
        let record = self.io(own.get(path))?.unwrap_or_default();
        if record.cleared > seq {
            return Err(self.unsettled(path));
        }
        let hidden = hidden || record.whiteout;
        // What comes later took the place of what may have been here until then.
        let later = record.seq > seq && record.node.as_ref().is_some_and(|node| !node.is_dir());
        let since = record.since();
        let node = record.node.filter(|_| since <= seq);
        let hides = hidden || record.opaque || node.as_ref().is_some_and(|node| !node.is_dir());
        match node {
            Some(Node::Implied) | None if !hidden => {
                let below = self.io(self.lower.lookup(path))?.map(|found| found.node);
                if later && matches!(below, Some(Node::Symlink { .. })) {
                    return Err(self.unsettled(path));
                }
                Ok((below.or(node), hides))
            }
            node => Ok((node, hides)),
        }
    }

    /// Which entries can be in `natural`. Where a directory took a link's place,
    /// what came on both sides of its own entry is in two places, and the
    /// unpacker has made one of them. Markers speak of the later side.
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
        let marked = record.is_none_or(|record| record.whiteout || record.opaque);
        if !within || marked && span.end != ALL.end {
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
        let end = match self.resolve(self.natural, start, target, &mut links, entry, seq) {
            // Unless the layer breaks the circle, which shows in the end.
            Err(error @ SealError::LinkLoop { .. }) => {
                self.looped.borrow_mut().get_or_insert(error);
                path.to_vec()
            }
            resolved => {
                let end = resolved?;
                // Those before it on the entry's way count as well.
                let before: usize = levels.iter().map(|level| level.links.len()).sum();
                if before + links.len() > MAX_LINKS {
                    return Err(SealError::TooManyLinks {
                        layer: self.layer + 1,
                        path: entry.into(),
                        limit: MAX_LINKS,
                    });
                }
                end
            }
        };
        Ok(Followed { end, links })
    }

    /// Resolves `rest` from directory `start`, for the sake of `entry`; what does
    /// not exist is taken as it is written, for it will be made. Adds the links
    /// on the way to `links`.
    pub(super) fn resolve(
        &self,
        own: &Index,
        start: &[u8],
        rest: &[u8],
        links: &mut Vec<Vec<u8>>,
        entry: &[u8],
        seq: u64,
    ) -> Result<Vec<u8>, SealError> {
        let mut current = start.to_vec();
        // For each component of `current`, whether nothing below shows in it.
        let mut hidden = Vec::new();
        for dir in self_and_ancestors(start) {
            let above = hidden.last().copied().unwrap_or(false);
            hidden.push(self.visible(own, dir, seq, above)?.1);
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
            let Some(component) = pending.pop() else {
                return Ok(current);
            };
            steps += 1;
            if component == b".." {
                current.truncate(parent(&current).len());
                hidden.pop();
                continue;
            }
            let next = join(&current, &component);
            self.check_extent(&next, entry)?;
            let above = hidden.last().copied().unwrap_or(false);
            let (node, hides) = self.visible(own, &next, seq, above)?;
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
