//! One pass through all effective indexes side by side, in the order of the
//! paths. For each path it follows, from the lowest layer to the uppermost,
//! what the image has there, and what the union filesystem would find there;
//! where the two differ, the layer that makes the difference gets an edit.
//!
//! What AUFS finds for a name, from the uppermost branch whose directory takes
//! part: a whiteout ends the search; the first entry decides; below a
//! directory, only directories join it, and anything else is *skipped*. So a
//! directory over a file over a directory shows the lowest one's content, and
//! what hides it must be said name by name. Overlay ends the search at anything
//! that is no directory, and at an opaque one.

use super::edits::{Edit, EditLog};
use super::{Format, SealError};
use crate::layer::index::{Attrs, Cursor, Index, Node, Record, compare, is_below, parent};
use std::cmp::Ordering;
use std::rc::Rc;

/// What a walk leaves behind beside the edits.
pub(super) struct Outcome {
    pub(super) base: usize,
    pub(super) root: Attrs,
}

/// What a layer does at a directory's path, for what is beneath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// It has nothing there.
    Pass,
    /// It has the directory, on top of what is below.
    Merge,
    /// It has the directory, and what is below must not show in it.
    Cut,
    /// It has something else there: the image has no directory any more, but
    /// AUFS finds those below again once an upper layer has one.
    Shadow,
    /// It has a whiteout there: nothing below is found.
    Wipe,
}

/// What the image has at a path, up to some layer.
#[derive(Debug, Clone)]
enum State {
    Absent,
    Link,
    Other,
    Directory(Said),
}

/// What the image says of a directory; nothing, where it is only implied.
type Said = Option<Rc<Attrs>>;

/// A directory on the way to the current path.
struct Frame {
    path: Vec<u8>,
    actions: Vec<Action>,
    /// Whether the branch has the directory on disk.
    present: Vec<bool>,
    /// Metadata that a layer gives the directory when it must have it only to
    /// hold a marker: what the image has there below that layer.
    inherited: Vec<Option<Said>>,
}

/// All layers' records, path by path.
pub(super) struct Streams {
    cursors: Vec<Cursor>,
    heads: Vec<Option<Record>>,
}

impl Streams {
    pub(super) fn new(layers: &[Index]) -> Result<Self, SealError> {
        let mut streams = Streams {
            cursors: layers.iter().map(Index::cursor).collect(),
            heads: vec![None; layers.len()],
        };
        for layer in 0..layers.len() {
            streams.advance(layer)?;
        }
        Ok(streams)
    }

    fn advance(&mut self, layer: usize) -> Result<Option<Record>, SealError> {
        let next = self.cursors[layer]
            .next_record()
            .map_err(SealError::index(layer))?;
        Ok(std::mem::replace(&mut self.heads[layer], next))
    }

    /// The least path, and each layer's record of it.
    #[expect(clippy::type_complexity, reason = "a path and a record per layer")]
    pub(super) fn next(&mut self) -> Result<Option<(Vec<u8>, Vec<Option<Record>>)>, SealError> {
        let mut least: Option<&[u8]> = None;
        for head in self.heads.iter().flatten() {
            if least.is_none_or(|least| compare(&head.path, least) == Ordering::Less) {
                least = Some(&head.path);
            }
        }
        let Some(path) = least.map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        let mut records = Vec::with_capacity(self.heads.len());
        for layer in 0..self.heads.len() {
            let has = self.heads[layer]
                .as_ref()
                .is_some_and(|head| head.path == path);
            records.push(if has { self.advance(layer)? } else { None });
        }
        Ok(Some((path, records)))
    }

    pub(super) fn has_below(&self, layer: usize, dir: &[u8]) -> bool {
        self.heads[layer]
            .as_ref()
            .is_some_and(|head| is_below(&head.path, dir))
    }

    pub(super) fn skip_below(&mut self, layer: usize, dir: &[u8]) -> Result<(), SealError> {
        self.cursors[layer]
            .skip_below(dir)
            .map_err(SealError::index(layer))?;
        self.advance(layer)?;
        Ok(())
    }
}

/// What the walk is for.
enum Purpose<'a> {
    /// Finding the lowest layer, from this one on, with something beneath a
    /// link of the layers below it.
    FindThroughLink { from: usize, found: Option<usize> },
    /// Emitting edits.
    Emit {
        format: Format,
        edits: &'a mut [EditLog],
    },
}

/// The lowest layer from `from` on that passes through a link of a lower one.
pub(super) fn first_through_link(
    layers: &[Index],
    from: usize,
) -> Result<Option<usize>, SealError> {
    let mut walk = Walk {
        streams: Streams::new(layers)?,
        stack: Vec::new(),
        purpose: Purpose::FindThroughLink { from, found: None },
    };
    walk.run()?;
    match walk.purpose {
        Purpose::FindThroughLink { found, .. } => Ok(found),
        Purpose::Emit { .. } => Ok(None),
    }
}

/// Emits the edits of all layers into their logs.
pub(super) fn walk(
    layers: &[Index],
    format: Format,
    edits: &mut [EditLog],
) -> Result<Outcome, SealError> {
    let mut walk = Walk {
        streams: Streams::new(layers)?,
        stack: Vec::new(),
        purpose: Purpose::Emit { format, edits },
    };
    walk.run()
}

struct Walk<'a> {
    streams: Streams,
    stack: Vec<Frame>,
    purpose: Purpose<'a>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<Outcome, SealError> {
        let outcome = self.root()?;
        while let Some((path, records)) = self.streams.next()? {
            while self
                .stack
                .last()
                .is_some_and(|frame| !is_below(&path, &frame.path))
            {
                self.stack.pop();
            }
            self.enter_missing(&path);
            let frame = self.name(path, records)?;
            self.descend(frame)?;
        }
        Ok(outcome)
    }

    /// The root is a directory in every branch; an opaque one makes all layers
    /// below it invisible, and the union goes without them.
    fn root(&mut self) -> Result<Outcome, SealError> {
        let count = self.streams.heads.len();
        let mut root: Said = None;
        let mut base = 0;
        let mut inherited = Vec::with_capacity(count);
        for layer in 0..count {
            inherited.push(Some(root.clone()));
            if self.streams.heads[layer]
                .as_ref()
                .is_none_or(|head| !head.path.is_empty())
            {
                continue;
            }
            if let Some(record) = self.streams.advance(layer)? {
                if record.opaque {
                    base = layer;
                }
                if let Some(Node::Directory { attrs, .. }) = record.node {
                    root = Some(Rc::new(attrs));
                }
            }
        }
        let actions = (0..count)
            .map(|layer| {
                if layer == base && base > 0 {
                    Action::Cut
                } else {
                    Action::Merge
                }
            })
            .collect();
        for layer in 0..base {
            // Nothing of it is visible, so nothing of it is looked at.
            self.streams.skip_below(layer, b"")?;
        }
        self.stack.push(Frame {
            path: Vec::new(),
            actions,
            present: vec![true; count],
            inherited,
        });
        Ok(Outcome {
            base,
            root: root.map_or_else(Attrs::implied, |attrs| Attrs::clone(&attrs)),
        })
    }

    /// Directories on the way that no layer has: only markers are beneath.
    fn enter_missing(&mut self, path: &[u8]) {
        let count = self.streams.heads.len();
        while let Some(frame) = self.stack.last() {
            let depth = frame.path.len();
            if parent(path).len() == depth {
                return;
            }
            let start = if depth == 0 { 0 } else { depth + 1 };
            let length = path[start..]
                .iter()
                .position(|byte| *byte == b'/')
                .unwrap_or(path.len() - start);
            self.stack.push(Frame {
                path: path[..start + length].to_vec(),
                actions: vec![Action::Wipe; count],
                present: vec![false; count],
                inherited: vec![None; count],
            });
        }
    }

    /// Handles one path; what comes back is its frame, should something lie beneath.
    fn name(&mut self, path: Vec<u8>, records: Vec<Option<Record>>) -> Result<Frame, SealError> {
        let count = records.len();
        let mut frame = Frame {
            actions: vec![Action::Pass; count],
            present: vec![false; count],
            inherited: vec![None; count],
            path,
        };
        let mut state = State::Absent;
        let mut reach = Reach::default();
        for (layer, record) in records.into_iter().enumerate() {
            let above = match self.stack.last() {
                Some(above) => above.actions[layer],
                None => Action::Pass,
            };
            match above {
                Action::Shadow => {
                    // Only markers can be here: they come before what shadows.
                    let record = record.unwrap_or_default();
                    self.note_link(layer, &frame.path, &record, &state);
                    state = State::Absent;
                    self.shadowed(&mut reach);
                    frame.actions[layer] = Action::Shadow;
                    continue;
                }
                Action::Wipe => {
                    state = State::Absent;
                    reach = Reach::default();
                    frame.actions[layer] = Action::Wipe;
                    continue;
                }
                Action::Pass | Action::Merge | Action::Cut => {}
            }
            let record = record.unwrap_or_default();
            let hide = above == Action::Cut || self.hides(&record);
            if !hide {
                self.note_link(layer, &frame.path, &record, &state);
            }
            frame.inherited[layer] = match &state {
                State::Directory(said) if !hide => Some(said.clone()),
                _ => None,
            };
            match record.node {
                None if hide => {
                    if self.must_white_out(above, &state, reach) {
                        self.make_directories(layer)?;
                        self.emit(layer, || Edit::Whiteout {
                            path: frame.path.clone(),
                        })?;
                        reach = Reach::default();
                        frame.actions[layer] = Action::Wipe;
                    } else if above == Action::Cut {
                        frame.actions[layer] = Action::Wipe;
                    }
                    state = State::Absent;
                }
                None if record.opaque => {
                    let State::Directory(said) = &state else {
                        continue;
                    };
                    self.make_directories(layer)?;
                    self.emit(layer, || directory(&frame.path, said))?;
                    if self.uses_opaque() {
                        self.emit(layer, || Edit::Opaque {
                            path: frame.path.clone(),
                        })?;
                    }
                    frame.actions[layer] = Action::Cut;
                    frame.present[layer] = true;
                }
                None => {}
                Some(Node::Directory { .. } | Node::Implied) => {
                    let merges = matches!(state, State::Directory(_)) && !hide;
                    let said = match (record.node, &state) {
                        (Some(Node::Directory { attrs, .. }), _) => Some(Rc::new(attrs)),
                        (_, State::Directory(said)) if merges => {
                            if said.is_some() {
                                self.emit(layer, || directory(&frame.path, said))?;
                            }
                            said.clone()
                        }
                        _ => None,
                    };
                    frame.actions[layer] = if merges && !record.opaque {
                        Action::Merge
                    } else {
                        self.cut(layer, &frame.path, above, &state, reach)?
                    };
                    frame.present[layer] = true;
                    state = State::Directory(said);
                    reach = Reach {
                        any: true,
                        directory: true,
                    };
                }
                Some(node) => {
                    frame.actions[layer] = Action::Shadow;
                    state = match node {
                        Node::Symlink { .. } => State::Link,
                        _ => State::Other,
                    };
                    reach.any = true;
                }
            }
        }
        Ok(frame)
    }

    /// A directory that does not continue the one below, if there is one.
    fn cut(
        &mut self,
        layer: usize,
        path: &[u8],
        above: Action,
        state: &State,
        reach: Reach,
    ) -> Result<Action, SealError> {
        let below_is_directory = matches!(state, State::Directory(_));
        if self.uses_opaque() {
            // Inside an opaque directory nothing below is found any more.
            if below_is_directory && above != Action::Cut {
                self.emit(layer, || Edit::Opaque {
                    path: path.to_vec(),
                })?;
            }
            return Ok(if below_is_directory {
                Action::Cut
            } else {
                Action::Merge
            });
        }
        Ok(if below_is_directory || reach.directory {
            Action::Cut
        } else {
            Action::Merge
        })
    }

    /// Markers speak of the layers below as they are, whatever came of a name
    /// half-way through the layer; so where they pass through links is looked for
    /// also below what was replaced.
    fn hides(&self, record: &Record) -> bool {
        match &self.purpose {
            Purpose::FindThroughLink { .. } => record.whiteout,
            Purpose::Emit { .. } => record.hides(),
        }
    }

    fn uses_opaque(&self) -> bool {
        match &self.purpose {
            Purpose::FindThroughLink { .. } => false,
            Purpose::Emit { format, .. } => match format {
                Format::Aufs => false,
                Format::Overlay | Format::OverlayUser => true,
            },
        }
    }

    /// A directory that continues the ones below shows just what the image has
    /// there; one that does not, whatever is found below.
    fn must_white_out(&self, above: Action, state: &State, reach: Reach) -> bool {
        if above == Action::Cut {
            // Under an opaque directory it is hidden already.
            !self.uses_opaque() && reach.any
        } else {
            !matches!(state, State::Absent)
        }
    }

    /// Overlay never looks below something that is no directory; AUFS does.
    fn shadowed(&self, reach: &mut Reach) {
        if self.uses_opaque() {
            *reach = Reach::default();
        }
    }

    /// Makes the directories around the current path in a branch that has none
    /// of its own, to hold a marker.
    fn make_directories(&mut self, layer: usize) -> Result<(), SealError> {
        for depth in 0..self.stack.len() {
            let frame = &mut self.stack[depth];
            if frame.present[layer] {
                continue;
            }
            let Some(said) = frame.inherited[layer].clone() else {
                continue;
            };
            frame.present[layer] = true;
            let edit = directory(&frame.path, &said);
            self.emit(layer, || edit)?;
        }
        Ok(())
    }

    fn emit(&mut self, layer: usize, edit: impl FnOnce() -> Edit) -> Result<(), SealError> {
        if let Purpose::Emit { edits, .. } = &mut self.purpose {
            edits[layer]
                .push(&edit())
                .map_err(SealError::index(layer))?;
        }
        Ok(())
    }

    /// Notes a layer that has something beneath a link of the layers below.
    fn note_link(&mut self, layer: usize, path: &[u8], record: &Record, state: &State) {
        let beneath = record.opaque || record.displaced || self.streams.has_below(layer, path);
        if let Purpose::FindThroughLink { from, found } = &mut self.purpose
            && layer >= *from
            && found.is_none_or(|found| layer < found)
            && matches!(state, State::Link)
            && beneath
        {
            let own = matches!(record.node, Some(Node::Directory { late: None, .. }));
            if !own {
                *found = Some(layer);
            }
        }
    }

    /// Goes into a directory, unless nothing in it can need an edit.
    fn descend(&mut self, frame: Frame) -> Result<(), SealError> {
        let mut layers =
            (0..frame.actions.len()).filter(|layer| self.streams.has_below(*layer, &frame.path));
        let (first, more) = (layers.next(), layers.next());
        let Some(layer) = first else {
            return Ok(());
        };
        let cut_above = frame.actions[layer + 1..].contains(&Action::Cut);
        if more.is_none() && !cut_above {
            return self.streams.skip_below(layer, &frame.path);
        }
        self.stack.push(frame);
        Ok(())
    }
}

/// A directory of which the image says this.
fn directory(path: &[u8], said: &Said) -> Edit {
    let path = path.to_vec();
    match said {
        Some(attrs) => Edit::Directory {
            path,
            attrs: Attrs::clone(attrs),
        },
        None => Edit::Implied { path },
    }
}

/// What a lookup from above would find at a name in the branches so far, with
/// all directories on the way taking part.
#[derive(Debug, Clone, Copy, Default)]
struct Reach {
    /// Anything at all.
    any: bool,
    /// A directory, when looked for as one.
    directory: bool,
}
