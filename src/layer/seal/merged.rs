//! What the image has at one path, asked of the effective indexes of its lower
//! layers. For the few paths that settling needs; the walk does not use it.

use crate::layer::index::{Index, Node};
use std::cell::RefCell;
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
#[derive(Debug)]
pub(super) struct Merged<'a> {
    pub(super) layers: &'a [Index],
    /// The way to what was asked for last: most questions are about its
    /// neighbourhood, and each step of a way asks every layer.
    way: RefCell<Way>,
}

/// Directories around a path.
#[derive(Debug, Default)]
struct Way {
    path: Vec<u8>,
    /// Lowest layer that shows through in the root, once it is known.
    root: Option<usize>,
    /// For each component that is a directory, from the first on, where it ends
    /// in `path`, and the lowest layer that shows through in it.
    floors: Vec<(usize, usize)>,
}

impl Way {
    /// Goes back to what is strictly above `path`; says where that ends, and its floor.
    fn back_to(&mut self, path: &[u8], root: usize) -> (usize, usize) {
        let common = self
            .path
            .iter()
            .zip(path)
            .take_while(|(a, b)| a == b)
            .count();
        let above = |end: usize| end <= common && path.get(end) == Some(&b'/');
        let kept = self
            .floors
            .iter()
            .take_while(|(end, _)| above(*end))
            .count();
        self.floors.truncate(kept);
        self.floors.last().copied().unwrap_or((0, root))
    }
}

/// What a name is, together with the lowest layer that still shows through
/// inside it, if it is a directory.
struct Step {
    found: Option<Found>,
    floor: usize,
}

impl<'a> Merged<'a> {
    pub(super) fn new(layers: &'a [Index]) -> Self {
        Merged {
            layers,
            way: RefCell::default(),
        }
    }

    /// What is visible at `path`, no link followed.
    pub(super) fn lookup(&self, path: &[u8]) -> io::Result<Option<Found>> {
        let mut way = self.way.borrow_mut();
        let root = match way.root {
            Some(root) if !path.is_empty() => root,
            _ => {
                let step = self.step(b"", 0)?;
                way.root = Some(step.floor);
                if path.is_empty() {
                    return Ok(step.found);
                }
                step.floor
            }
        };
        let (mut end, mut floor) = way.back_to(path, root);
        way.path.clear();
        way.path.extend_from_slice(path);
        loop {
            let start = if end == 0 { 0 } else { end + 1 };
            end = path[start..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(path.len(), |length| start + length);
            let step = self.step(&path[..end], floor)?;
            let is_dir = step.found.as_ref().is_some_and(|found| found.node.is_dir());
            if is_dir {
                way.floors.push((end, step.floor));
            }
            if end == path.len() {
                return Ok(step.found);
            }
            if !is_dir {
                return Ok(None);
            }
            floor = step.floor;
        }
    }

    /// One name, given the lowest layer that shows through in its directory.
    fn step(&self, path: &[u8], floor: usize) -> io::Result<Step> {
        let mut found: Option<Found> = None;
        let mut child_floor = floor;
        for layer in (floor..self.layers.len()).rev() {
            let Some(record) = self.layers[layer].get(path)? else {
                continue;
            };
            let hides = record.hides();
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
            if hides {
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
