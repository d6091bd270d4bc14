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
mod markers;
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
    let mut settling = Settling {
        layer,
        natural,
        lower: Merged::new(lower),
        limits,
        scratch,
        markers: None,
        looped: RefCell::default(),
        relocates: Cell::new(false),
    };
    settling.markers =
        Some(settling.find_markers()?).filter(|markers| markers.summary().records > 0);
    settling.run(log)
}

struct Settling<'a> {
    layer: usize,
    natural: &'a Index,
    lower: Merged<'a>,
    limits: &'a Limits,
    scratch: &'a dyn Fn() -> io::Result<File>,
    /// This layer's markers, each where it acts, if there are any.
    markers: Option<Index>,
    /// The first link on an entry's way that leads in a circle.
    looped: RefCell<Option<SealError>>,
    /// Whether any entry passed through a link of the layers below.
    relocates: Cell<bool>,
}

/// A directory of the layer on the way to the current record.
struct Level {
    /// Its path as the layer has it.
    natural: Vec<u8>,
    /// Where it is, no link followed at its own name.
    here: Vec<u8>,
    /// Where what is in it goes, links of the layers below followed.
    real: Vec<u8>,
    /// Nothing of the layers below shows in it.
    hidden: bool,
    /// As of its own name.
    hidden_here: bool,
    /// For what came before the directory's own entry: where that went.
    early: Option<(Vec<u8>, u64)>,
    /// It is only implied.
    is_implied: bool,
    /// Which entries can be in it: beneath a directory with an `early`, only
    /// those on one side of that one's own entry.
    span: Range<u64>,
    /// Links of the layers below that lead there.
    links: Vec<Vec<u8>>,
    /// Why what is in it leads nowhere.
    fault: Option<SealError>,
    /// For which entry the way was looked up.
    seq: u64,
    /// The first and the last entry that went this way.
    passed: Option<(u64, u64)>,
}

impl Level {
    fn new(natural: Vec<u8>, here: Vec<u8>, seq: u64) -> Self {
        Level {
            natural,
            real: here.clone(),
            here,
            hidden: false,
            hidden_here: false,
            early: None,
            is_implied: false,
            span: ALL,
            links: Vec::new(),
            fault: None,
            seq,
            passed: None,
        }
    }

    fn place(&self, seq: u64) -> &[u8] {
        match &self.early {
            Some((real, before)) if seq < *before => real,
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
            if record.beneath_link {
                return Err(self.unsettled(&record.path));
            }
            let early = matches!(
                record.node,
                Some(Node::Implied | Node::Directory { late: Some(_), .. })
            );
            if !record.lost_link.is_empty() && (early || record.displaced) {
                self.passes_by(effective, &record)?;
            }
            let Some(node) = &record.node else { continue };
            let above = around.last().map_or(&b""[..], Vec::as_slice);
            if parent(&record.path) != above {
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
            for dir in self_and_ancestors(link) {
                let Some(kept) = self.node_at(effective, dir)? else {
                    continue;
                };
                let replaces = dir == link || !is_dir(&kept) || kept.cleared > 0;
                let relocated = self.node_at(self.natural, dir)?.is_none_or(|own| {
                    let implied = |record: &Record| record.node == Some(Node::Implied);
                    (own.seq, own.cleared, implied(&own))
                        != (kept.seq, kept.cleared, implied(&kept))
                });
                if replaces && relocated && kept.first() <= last {
                    return Err(self.unsettled(link));
                }
            }
        }
        match self.looped.take() {
            // Something else that came through links may break the circle.
            Some(SealError::LinkLoop { layer, path }) if self.relocates.get() => {
                Err(SealError::Unsettled { layer, path })
            }
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
        let mut levels = vec![Level::new(Vec::new(), Vec::new(), 0)];
        let mut next = self.io(cursor.next_record())?;
        while let Some(record) = next {
            next = self.io(cursor.next_record())?;
            let holds = next
                .as_ref()
                .is_some_and(|next| is_below(&next.path, &record.path));
            if record.path.is_empty() {
                self.io(out.push(&record))?;
                continue;
            }
            while let Some(level) = levels.pop_if(|level| {
                !level.natural.is_empty() && !is_below(&record.path, &level.natural)
            }) {
                self.leave(level, &levels, &mut out, &mut followed)?;
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
            self.emit(&record, &level, &mut out, &mut moves, &mut foreign)?;
            pass(&record, &mut levels);
            levels.push(level);
        }
        while let Some(level) = levels.pop() {
            self.leave(level, &levels, &mut out, &mut followed)?;
        }
        if let Some(markers) = &self.markers {
            let mut cursor = markers.cursor();
            while let Some(marker) = self.io(cursor.next_record())? {
                self.io(out.push(&marker))?;
            }
        }
        self.io(moves.finish())?;
        Ok(Relocated {
            effective: self.finish(out)?,
            moves,
            followed: self.finish(followed)?,
            foreign,
        })
    }

    /// Checks that a directory's way was the same for all entries below it, and
    /// notes the links on it.
    fn leave(
        &self,
        mut level: Level,
        levels: &[Level],
        out: &mut Builder,
        followed: &mut Builder,
    ) -> Result<(), SealError> {
        let Some((first, last)) = level.passed else {
            return Ok(());
        };
        let looped = match level.fault.take() {
            // Unless the layer breaks the circle, which shows in the end.
            Some(error @ SealError::LinkLoop { .. }) => {
                self.looped.borrow_mut().get_or_insert(error);
                level.links.push(level.here.clone());
                true
            }
            Some(error) => return Err(error),
            None => false,
        };
        let real = level.early.as_ref().map_or(&level.real, |(real, _)| real);
        if *real == level.natural && level.links.is_empty() {
            return Ok(());
        }
        let looks = level.is_implied || level.early.is_some();
        for seq in [first, last]
            .into_iter()
            .filter(|seq| looks && *seq != level.seq)
        {
            let way = self.lead(levels, &level.here, &level.natural, level.hidden_here, seq);
            match way {
                Err(SealError::LinkLoop { .. }) if !level.links.is_empty() => {}
                Ok(Followed { end, .. }) if end == *real => {}
                Ok(_) | Err(SealError::LinkLoop { .. }) => {
                    return Err(self.unsettled(&level.natural));
                }
                Err(error) => return Err(error),
            }
        }
        if last > level.seq {
            // Something else may have taken its place in between.
            for dir in self_and_ancestors(real) {
                self.io(out.push(&implied(dir, last)))?;
            }
        }
        for path in level.links {
            self.relocates.set(self.relocates.get() || !looped);
            self.io(followed.push(&Record {
                path,
                seq: last,
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
            return Ok(Level::new(natural, Vec::new(), seq));
        };
        let here = join(above.place(seq), name(&natural));
        self.check_extent(&here, &natural)?;
        let mut level = Level::new(natural, here, seq);
        let displaced = record.is_some_and(|record| record.displaced);
        let lost = record.is_some_and(|record| !record.lost_link.is_empty());
        if record.is_some_and(|record| record.beneath_link) || displaced && lost {
            return Err(self.unsettled(&level.natural));
        }
        level.span = self.span(above, &level.natural, record)?;
        let early = level.span.end < above.span.end;
        let cleared = record.is_some_and(|record| record.cleared > 0);
        level.hidden = above.hidden && !early || cleared;
        level.hidden_here = level.hidden;
        if displaced {
            let below = self.below(&level.here)?.map(|found| found.node);
            if matches!(below, Some(Node::Symlink { .. })) {
                return Err(self.unsettled(&level.natural));
            }
        }
        let node = record.and_then(|record| record.node.as_ref());
        if !holds && !matches!(node, Some(Node::Implied)) {
            return Ok(level);
        }
        match node {
            None | Some(Node::Implied) => {
                level.is_implied = true;
                let way = self.lead(levels, &level.here, &level.natural, level.hidden, seq);
                if let Some(Followed { end, hidden, links }) = reached(way, &mut level)? {
                    (level.real, level.hidden, level.links) = (end, hidden, links);
                }
            }
            Some(Node::Directory {
                late: Some(own), ..
            }) => {
                level.seq = record.map_or(seq, Record::first);
                let way = self.lead(levels, &level.here, &level.natural, level.hidden, level.seq);
                if let Some(Followed { end, hidden, links }) = reached(way, &mut level)? {
                    level.hidden = hidden || !links.is_empty();
                    if !links.is_empty() {
                        (level.early, level.links) = (Some((end, *own)), links);
                    }
                }
            }
            Some(Node::Directory { late: None, .. }) => {
                let (node, hides) = self.passed(&level.here, &level.natural, level.hidden, seq)?;
                level.hidden = hides || !node.is_some_and(|node| node.is_dir());
            }
            Some(_) => level.hidden = true,
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
        level: &Level,
        out: &mut Builder,
        moves: &mut EditLog,
        foreign: &mut Foreign,
    ) -> Result<(), SealError> {
        let here = || level.here.clone();
        let push = |out: &mut Builder, node: &Node| {
            self.io(out.push(&Record {
                path: here(),
                seq: record.seq,
                cleared: record.cleared,
                first: record.first,
                node: Some(node.clone()),
                ..Record::default()
            }))
        };
        if record.is_lost() || !record.lost_link.is_empty() {
            self.io(out.push(&Record {
                path: here(),
                seq: record.seq,
                first: record.first.filter(|_| record.is_lost()),
                lost_link: record.lost_link.clone(),
                ..Record::default()
            }))?;
        }
        if record.displaced && record.cleared == 0 {
            // What was beneath meets what came there by way of links.
            let until = match &record.node {
                Some(node) if node.is_dir() => record.first(),
                _ => record.seq,
            };
            self.io(out.push(&Record {
                path: here(),
                seq: until,
                displaced: true,
                ..Record::default()
            }))?;
        }
        match &record.node {
            None => {}
            Some(Node::Implied) => {
                for dir in self_and_ancestors(&level.real) {
                    let own = *dir == *level.real;
                    self.io(out.push(&Record {
                        path: dir.to_vec(),
                        seq: record.seq,
                        node: Some(Node::Implied),
                        cleared: if own { record.cleared } else { 0 },
                        first: record.first.filter(|_| own),
                        ..Record::default()
                    }))?;
                }
            }
            Some(node @ Node::Directory { late, .. }) => {
                if let Some((early, _)) = &level.early {
                    for dir in self_and_ancestors(early) {
                        self.io(out.push(&implied(dir, record.first())))?;
                    }
                } else if late.is_some() && record.cleared == 0 {
                    // What came before it meets what came there by way of links.
                    self.io(out.push(&implied(&level.here, record.first())))?;
                }
                push(out, node)?;
            }
            Some(node @ Node::ForeignLink { target }) => {
                self.io(foreign.push(&level.here, target, record.seq))?;
                // Something later may take its name.
                push(out, node)?;
            }
            Some(node) => {
                if level.here != record.path {
                    self.io(moves.push(&Edit::Move {
                        from: record.path.clone(),
                        to: here(),
                    }))?;
                }
                push(out, node)?;
            }
        }
        Ok(())
    }

    fn node_at(&self, index: &Index, path: &[u8]) -> Result<Option<Record>, SealError> {
        let record = self.io(index.get(path))?;
        Ok(record.filter(|record| record.node.is_some()))
    }
}

/// What is known of a way; a way that leads nowhere is a fault only of what
/// passes through it.
fn reached(
    way: Result<Followed, SealError>,
    level: &mut Level,
) -> Result<Option<Followed>, SealError> {
    match way {
        Ok(way) => Ok(Some(way)),
        Err(error @ (SealError::Index { .. } | SealError::IndexTooLarge { .. })) => Err(error),
        Err(error) => {
            level.fault = Some(error);
            Ok(None)
        }
    }
}

/// An entry goes by way of these directories.
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
            let (first, last) = level.passed.unwrap_or((record.seq, record.seq));
            level.passed = Some((first.min(record.seq), last.max(record.seq)));
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
