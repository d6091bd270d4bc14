//! Settling one layer against those below it: entries that pass through a link
//! of a lower layer go where it leads, and hard links into the layers below get
//! their inode.
//!
//! Whether a component is followed: an entry's own directory or link replaces
//! what is below it, so nothing is followed there; a directory that is only
//! implied leaves a link below in place, so everything beneath goes through it.
//! Markers speak of the layers below, whatever their place in the archive: they
//! go through a link unless the layer has a directory of its own there.

mod links;
mod structure;
mod way;

use super::SealError;
use super::edits::{Edit, EditLog};
use super::merged::Merged;
use crate::layer::index::{Builder, Index, Node, Record, is_below, join, name, parent};
use crate::layer::limits::Limits;
use links::Foreign;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::ops::Range;
use way::{ALL, Followed};

/// Settles `layer` and appends the edits that follow from it to `log`. Returns
/// the layer's effective index.
pub(super) fn settle(
    layer: usize,
    natural: &Index,
    lower: &[Index],
    log: &mut EditLog,
    limits: &Limits,
    scratch: &dyn Fn() -> io::Result<File>,
) -> Result<Index, SealError> {
    Settling {
        layer,
        natural,
        lower: Merged::new(lower),
        limits,
        scratch,
        looped: RefCell::default(),
        relocates: Cell::new(false),
    }
    .run(log)
}

struct Settling<'a> {
    layer: usize,
    natural: &'a Index,
    lower: Merged<'a>,
    limits: &'a Limits,
    scratch: &'a dyn Fn() -> io::Result<File>,
    /// The first link on an entry's way that leads in a circle.
    looped: RefCell<Option<SealError>>,
    /// Whether any entry passed through a link of the layers below.
    relocates: Cell<bool>,
}

/// A directory of the layer on the way to the current record.
struct Level {
    /// Its path as the layer has it.
    natural: Vec<u8>,
    /// Where that is, links of the layers below followed.
    real: Vec<u8>,
    /// Nothing of the layers below shows in it.
    hidden: bool,
    /// For what came before the directory's own entry: where that went.
    early: Option<(Vec<u8>, u64)>,
    /// Which entries can be in it: beneath a directory with an `early`, only
    /// those on one side of that one's own entry.
    span: Range<u64>,
    /// Links of the layers below that lead there.
    links: Vec<Vec<u8>>,
    /// The last entry that passed through them.
    last: Option<u64>,
}

impl Level {
    fn place(&self, seq: u64, is_node: bool) -> &[u8] {
        match &self.early {
            Some((real, before)) if is_node && seq < *before => real,
            _ => &self.real,
        }
    }
}

/// A layer's records, each where it really goes.
struct Relocated {
    effective: Index,
    /// What of it is elsewhere on disk.
    moves: EditLog,
    /// Links of the layers below that entries passed through; `seq` is that of
    /// the last of those.
    followed: Index,
    foreign: Foreign,
}

impl Settling<'_> {
    fn io<T>(&self, result: io::Result<T>) -> Result<T, SealError> {
        result.map_err(SealError::index(self.layer))
    }

    fn builder(&self) -> Result<Builder, SealError> {
        let spill = self.io((self.scratch)())?;
        Ok(Builder::new(spill).bounded(self.limits.max_index_bytes))
    }

    fn finish(&self, builder: Builder) -> Result<Index, SealError> {
        let index = self.io((self.scratch)().and_then(|file| builder.finish(file)))?;
        Ok(index.cached_like(self.natural))
    }

    fn run(&self, log: &mut EditLog) -> Result<Index, SealError> {
        let Relocated {
            mut effective,
            moves,
            followed,
            foreign,
        } = self.relocate()?;
        self.check(&effective, &followed)?;
        let mut links = None;
        if foreign.any {
            let (index, edits) = self.link(&effective, foreign)?;
            (effective, links) = (index, Some(edits));
        }
        self.structural_edits(&effective, &moves, links, log)?;
        Ok(effective)
    }

    /// A layer that changes, half-way, a link or directory that its own entries
    /// pass through by way of links below shows here: something is beneath what
    /// is no directory. So does what went through a link, to where it hides or
    /// replaces a link that other entries pass through.
    fn check(&self, effective: &Index, followed: &Index) -> Result<(), SealError> {
        let mut cursor = effective.cursor();
        let mut around: Vec<Vec<u8>> = Vec::new();
        while let Some(record) = self.io(cursor.next_record())? {
            while around
                .last()
                .is_some_and(|dir| !is_below(&record.path, dir))
            {
                around.pop();
            }
            let Some(node) = &record.node else { continue };
            let above = around.last().map_or(&b""[..], Vec::as_slice);
            let early = matches!(node, Node::Implied | Node::Directory { late: Some(_), .. });
            if !record.lost_link.is_empty() && (early || record.displaced) {
                self.passes_by(effective, &record)?;
            }
            if record.beneath_link || parent(&record.path) != above {
                return Err(self.unsettled(&record.path));
            }
            if node.is_dir() && !record.path.is_empty() {
                around.push(record.path);
            }
        }
        let mut followed = followed.cursor();
        while let Some(Record {
            path: link,
            seq: last,
            ..
        }) = self.io(followed.next_record())?
        {
            let link = &link[..];
            if self.removes(effective, link)? {
                return Err(self.unsettled(link));
            }
            for dir in self_and_ancestors(link) {
                let Some(kept) = self.node_at(effective, dir)? else {
                    continue;
                };
                let replaces = dir == link || !is_dir(&kept);
                let relocated = self.node_at(self.natural, dir)?.is_none_or(|own| {
                    let implied = |record: &Record| record.node == Some(Node::Implied);
                    own.seq != kept.seq || implied(&own) != implied(&kept)
                });
                if replaces && relocated && kept.seq <= last {
                    return Err(self.unsettled(link));
                }
            }
        }
        match self.looped.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Maps every record to where it really goes.
    fn relocate(&self) -> Result<Relocated, SealError> {
        let mut out = self.builder()?;
        let mut moves = self.io((self.scratch)().and_then(EditLog::new))?;
        let mut followed = self.builder()?;
        let mut foreign = Foreign::new(self.io((self.scratch)())?, self.builder()?);
        let mut cursor = self.natural.cursor();
        let mut levels = vec![Level {
            natural: Vec::new(),
            real: Vec::new(),
            hidden: false,
            early: None,
            span: ALL,
            links: Vec::new(),
            last: None,
        }];
        let mut next = self.io(cursor.next_record())?;
        while let Some(record) = next {
            next = self.io(cursor.next_record())?;
            let holds = next
                .as_ref()
                .is_some_and(|next| is_below(&next.path, &record.path));
            if record.path.is_empty() {
                levels[0].hidden = record.opaque;
                self.io(out.push(&record))?;
                continue;
            }
            while let Some(level) = levels.pop_if(|level| {
                !level.natural.is_empty() && !is_below(&record.path, &level.natural)
            }) {
                self.leave(level, &mut followed)?;
            }
            // Directories on the way of which the layer says nothing.
            loop {
                let depth = levels.last().map_or(0, |level| level.natural.len());
                let rest = &record.path[depth..];
                let start = usize::from(depth > 0);
                let Some(length) = rest[start..].iter().position(|byte| *byte == b'/') else {
                    break;
                };
                let path = record.path[..depth + start + length].to_vec();
                let level = self.enter(&levels, path, None, true, record.seq)?;
                levels.push(level);
            }
            let path = record.path.clone();
            let level = self.enter(&levels, path, Some(&record), holds, record.seq)?;
            self.emit(&record, &levels, &level, &mut out, &mut moves, &mut foreign)?;
            pass(&record, &mut levels);
            levels.push(level);
        }
        for level in levels {
            self.leave(level, &mut followed)?;
        }
        self.io(moves.finish())?;
        Ok(Relocated {
            effective: self.finish(out)?,
            moves,
            followed: self.finish(followed)?,
            foreign,
        })
    }

    /// Notes the links that entries below a directory passed through.
    fn leave(&self, level: Level, followed: &mut Builder) -> Result<(), SealError> {
        let Some(seq) = level.last else { return Ok(()) };
        for path in level.links {
            self.relocates.set(true);
            self.io(followed.push(&Record {
                path,
                seq,
                whiteout: true,
                ..Record::default()
            }))?;
        }
        Ok(())
    }

    /// Where `natural` is. A link of the layers below is followed only for what
    /// `holds` says is beneath, for it may lead nowhere.
    fn enter(
        &self,
        levels: &[Level],
        natural: Vec<u8>,
        record: Option<&Record>,
        holds: bool,
        seq: u64,
    ) -> Result<Level, SealError> {
        let Some(above) = levels.last() else {
            return Ok(Level {
                natural,
                real: Vec::new(),
                hidden: false,
                early: None,
                span: ALL,
                links: Vec::new(),
                last: None,
            });
        };
        let node = record.and_then(|record| record.node.as_ref());
        let real = join(above.place(seq, node.is_some()), name(&natural));
        self.check_extent(&real, &natural)?;
        let opaque = record.is_some_and(|record| record.opaque);
        let whiteout = record.is_some_and(|record| record.whiteout);
        let mut level = Level {
            natural,
            hidden: true,
            early: None,
            span: ALL,
            links: Vec::new(),
            last: None,
            real,
        };
        let displaced = record.is_some_and(|record| record.displaced);
        let lost = record.is_some_and(|record| !record.lost_link.is_empty());
        if record.is_some_and(|record| record.beneath_link) || displaced && lost {
            return Err(self.unsettled(&level.natural));
        }
        level.span = self.span(above, &level.natural, record)?;
        let early = level.span.end < above.span.end;
        let hidden = above.hidden && !early || whiteout;
        if hidden && !displaced {
            return Ok(level);
        }
        let below = self
            .io(self.lower.lookup(&level.real))?
            .map(|found| found.node);
        if displaced && matches!(below, Some(Node::Symlink { .. })) {
            return Err(self.unsettled(&level.natural));
        }
        if hidden {
            return Ok(level);
        }
        match (node, &below) {
            (
                Some(Node::Directory {
                    late: Some(own), ..
                }),
                Some(Node::Symlink { target, .. }),
            ) => {
                let first = record.map_or(seq, Record::first);
                let Followed { end, links } =
                    self.follow(levels, &level.real, target, &level.natural, first)?;
                level.early = Some((end, *own));
                level.links = links;
            }
            (Some(Node::Directory { late: None, .. }), Some(Node::Symlink { .. })) => {}
            (Some(node), Some(Node::Symlink { .. })) if !node.is_dir() && !holds && !opaque => {}
            // Also where something else of this layer takes the link's place:
            // then there are only markers beneath, and those come first.
            (_, Some(Node::Symlink { target, .. })) => {
                let Followed { end, links } =
                    self.follow(levels, &level.real, target, &level.natural, seq)?;
                level.real = end;
                level.links = links;
                level.hidden = opaque;
            }
            (_, Some(below)) => {
                level.hidden = opaque || !below.is_dir();
            }
            _ => {}
        }
        Ok(level)
    }

    fn unsettled(&self, path: &[u8]) -> SealError {
        SealError::Unsettled {
            layer: self.layer + 1,
            path: path.into(),
        }
    }

    fn emit(
        &self,
        record: &Record,
        levels: &[Level],
        level: &Level,
        out: &mut Builder,
        moves: &mut EditLog,
        foreign: &mut Foreign,
    ) -> Result<(), SealError> {
        let Some(above) = levels.last() else {
            return Ok(());
        };
        let place = |is_node: bool| join(above.place(record.seq, is_node), name(&record.path));
        let push = |out: &mut Builder, path: Vec<u8>, node: Option<Node>, whiteout, opaque| {
            self.io(out.push(&Record {
                path,
                seq: record.seq,
                cleared: if node.is_some() { record.cleared } else { 0 },
                first: record.first.filter(|_| node.is_some()),
                node,
                whiteout,
                opaque,
                ..Record::default()
            }))
        };
        if !record.lost_link.is_empty() {
            self.io(out.push(&Record {
                path: place(true),
                seq: record.seq,
                lost_link: record.lost_link.clone(),
                ..Record::default()
            }))?;
        }
        if record.displaced && record.node.as_ref().is_some_and(|node| !node.is_dir()) {
            // What was beneath meets what came there by way of links.
            self.io(out.push(&implied(&place(true), record.seq)))?;
        }
        if record.whiteout {
            push(out, place(false), None, true, false)?;
        }
        if record.opaque {
            push(out, level.real.clone(), None, false, true)?;
        }
        let early = level.early.as_ref().map(|(real, _)| real);
        match &record.node {
            None => {}
            Some(Node::Implied) => {
                for dir in self_and_ancestors(&level.real) {
                    self.io(out.push(&Record {
                        path: dir.to_vec(),
                        seq: record.seq,
                        node: Some(Node::Implied),
                        cleared: if dir == level.real { record.cleared } else { 0 },
                        ..Record::default()
                    }))?;
                }
            }
            Some(node @ Node::Directory { late, .. }) => {
                if let Some(early) = early {
                    for dir in self_and_ancestors(early) {
                        self.io(out.push(&implied(dir, record.first())))?;
                    }
                } else if late.is_some() {
                    // What came before it meets what came there by way of links.
                    let first = record.first().max(record.cleared);
                    self.io(out.push(&implied(&place(true), first)))?;
                }
                push(out, place(true), Some(node.clone()), false, false)?;
            }
            Some(node @ Node::ForeignLink { target }) => {
                self.io(foreign.push(&place(true), target, record.seq))?;
                // Something later may take its name.
                push(out, place(true), Some(node.clone()), false, false)?;
            }
            Some(node) => {
                let path = place(true);
                if path != record.path {
                    self.io(moves.push(&Edit::Move {
                        from: record.path.clone(),
                        to: path.clone(),
                    }))?;
                }
                push(out, path, Some(node.clone()), false, false)?;
            }
        }
        Ok(())
    }

    fn node_at(&self, index: &Index, path: &[u8]) -> Result<Option<Record>, SealError> {
        let record = self.io(index.get(path))?;
        Ok(record.filter(|record| record.node.is_some()))
    }
}

/// An entry goes by way of the links of these directories.
fn pass(record: &Record, levels: &mut [Level]) {
    if matches!(record.node, None | Some(Node::Implied)) {
        return;
    }
    for level in levels {
        let passed = match &level.early {
            Some((_, own)) => record.seq < *own,
            None => true,
        };
        if passed {
            level.last = level.last.max(Some(record.seq));
        }
    }
}

fn is_dir(record: &Record) -> bool {
    record.node.as_ref().is_some_and(Node::is_dir)
}

fn implied(path: &[u8], seq: u64) -> Record {
    record(path, seq, &Node::Implied)
}

fn record(path: &[u8], seq: u64, node: &Node) -> Record {
    Record {
        path: path.to_vec(),
        seq,
        node: Some(node.clone()),
        ..Record::default()
    }
}

/// `a`, `a/b`, `a/b/c` of `a/b/c`; nothing of the root.
fn self_and_ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'/')
        .map(|(at, _)| at);
    let ends = slashes.chain((!path.is_empty()).then_some(path.len()));
    ends.map(|end| &path[..end])
}
