//! What the image has at one path, asked of the effective indexes of its lower
//! layers. For the few paths that settling needs; the walk does not use it.

use crate::layer::index::{Index, Node};
use std::io;

/// What is visible at a path.
#[derive(Debug)]
pub(super) struct Found {
    /// The layer that brings it (the uppermost, for a directory).
    pub(super) layer: usize,
    /// What it is there.
    pub(super) node: Node,
}

/// The layers below one that is being settled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merged<'a> {
    pub(super) layers: &'a [Index],
}

/// What a name is, together with the lowest layer that still shows through
/// inside it, if it is a directory.
struct Step {
    found: Option<Found>,
    floor: usize,
}

impl Merged<'_> {
    /// What is visible at `path`, no link followed.
    pub(super) fn lookup(&self, path: &[u8]) -> io::Result<Option<Found>> {
        let mut step = self.step(b"", 0)?;
        let mut end = 0;
        while end < path.len() {
            match &step.found {
                Some(found) if !found.node.is_dir() => return Ok(None),
                None if end > 0 => return Ok(None),
                Some(_) | None => {}
            }
            let start = if end == 0 { 0 } else { end + 1 };
            end = path[start..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(path.len(), |length| start + length);
            step = self.step(&path[..end], step.floor)?;
        }
        Ok(step.found)
    }

    /// One name, given the lowest layer that shows through in its directory.
    fn step(&self, path: &[u8], floor: usize) -> io::Result<Step> {
        let mut found: Option<Found> = None;
        let mut child_floor = floor;
        for layer in (floor..self.layers.len()).rev() {
            let Some(record) = self.layers[layer].get(path)? else {
                continue;
            };
            match (record.node, &found) {
                (Some(node), None) => {
                    let is_dir = node.is_dir();
                    found = Some(Found { layer, node });
                    if !is_dir {
                        break;
                    }
                }
                (Some(node), Some(_)) if !node.is_dir() => {
                    // A directory over something else: that ends here.
                    child_floor = child_floor.max(layer + 1);
                    break;
                }
                (Some(_) | None, _) => {}
            }
            if record.opaque {
                child_floor = child_floor.max(layer);
            }
            if record.whiteout {
                child_floor = child_floor.max(layer);
                break;
            }
        }
        Ok(Step {
            found,
            floor: child_floor,
        })
    }
}
