//! What a stack of layers shows, path by path: for branches that are made of
//! several layers because the kernel takes only so many.

use super::SealError;
use super::walk::Streams;
use crate::layer::index::{Attrs, Index, Node, Record, is_below};

/// One path of the merged tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visible {
    /// A directory with its final metadata; the root comes first, always.
    Directory {
        /// Its path.
        path: Vec<u8>,
        /// Its metadata; none if it is only implied.
        attrs: Option<Attrs>,
    },
    /// Anything else.
    Other {
        /// Which layer has it, 0 the lowest.
        layer: usize,
        /// What that layer says of it; its path is also that in the layer's
        /// directory.
        record: Record,
    },
}

/// Lists what the effective indexes of a stack show, parents before children.
pub fn flatten<E: From<SealError>>(
    layers: &[Index],
    mut each: impl FnMut(Visible) -> Result<(), E>,
) -> Result<(), E> {
    let mut streams = Streams::new(layers)?;
    // Directories around the current path: which layers show in them.
    let mut stack: Vec<(Vec<u8>, Vec<bool>)> = Vec::new();
    let mut root_seen = false;
    while let Some((path, records)) = streams.next()? {
        if !root_seen && !path.is_empty() {
            each(Visible::Directory {
                path: Vec::new(),
                attrs: None,
            })?;
            stack.push((Vec::new(), vec![true; layers.len()]));
        }
        root_seen = true;
        while stack.last().is_some_and(|(dir, _)| !is_below(&path, dir)) {
            stack.pop();
        }
        let above = stack.last().map(|(_, live)| live.as_slice());
        let in_view = crate::layer::index::parent(&path)
            == stack.last().map_or(&b""[..], |(dir, _)| dir.as_slice());
        if !in_view {
            // Beneath something that is not visible as a directory.
            continue;
        }
        let mut live = vec![false; layers.len()];
        let mut attrs = None;
        let mut is_dir = path.is_empty();
        let mut content_ends = false;
        let mut other = None;
        for (layer, record) in records.into_iter().enumerate().rev() {
            if above.is_some_and(|above| !above[layer]) {
                continue;
            }
            let Some(record) = record else {
                // There may be markers of the layer beneath.
                live[layer] = !content_ends;
                continue;
            };
            match &record.node {
                Some(Node::Directory { attrs: own, .. }) => {
                    is_dir = true;
                    live[layer] = !content_ends;
                    attrs.get_or_insert_with(|| own.clone());
                }
                Some(Node::Implied) => {
                    is_dir = true;
                    live[layer] = !content_ends;
                }
                Some(_) if is_dir => break,
                Some(Node::ForeignLink { .. }) => break,
                Some(_) => {
                    other = Some((layer, record));
                    break;
                }
                None => live[layer] = !content_ends,
            }
            content_ends |= record.opaque;
            if record.hides() {
                break;
            }
        }
        if let Some((layer, record)) = other {
            each(Visible::Other { layer, record })?;
        } else if is_dir {
            each(Visible::Directory {
                path: path.clone(),
                attrs,
            })?;
            stack.push((path, live));
        }
    }
    if !root_seen {
        each(Visible::Directory {
            path: Vec::new(),
            attrs: None,
        })?;
    }
    Ok(())
}
