//! Settling one layer against those below it: entries that pass through a link
//! of a lower layer go where it leads, and hard links into the layers below get
//! their inode.
//!
//! Whether a component is followed: an entry's own directory or link replaces
//! what is below it, so nothing is followed there; a directory that is only
//! implied leaves a link below in place, so everything beneath goes through it.
//! Markers speak of the layers below, whatever their place in the archive: they
//! go through a link unless the layer has a directory of its own there.

use super::edits::{Edit, EditLog};
use super::merged::{Found, Merged};
use super::{SealError, show};
use crate::layer::index::{Attrs, Builder, Index, Node, Record, is_below, join, name, parent};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;

/// As the kernel's MAXSYMLINKS.
const MAX_LINKS: usize = 40;

/// Settles `layer` and appends the edits that follow from it to `log`. Returns
/// the layer's effective index.
pub(super) fn settle(
    layer: usize,
    natural: &Index,
    lower: &[Index],
    log: &mut EditLog,
    scratch: &dyn Fn() -> io::Result<File>,
) -> Result<Index, SealError> {
    Settling {
        layer,
        natural,
        lower: Merged { layers: lower },
        scratch,
        followed: RefCell::default(),
        looped: RefCell::default(),
    }
    .run(log)
}

struct Settling<'a> {
    layer: usize,
    natural: &'a Index,
    lower: Merged<'a>,
    scratch: &'a dyn Fn() -> io::Result<File>,
    /// Links of the layers below that entries passed through, and the last of those.
    followed: RefCell<BTreeMap<Vec<u8>, u64>>,
    /// The first link among them that leads in a circle.
    looped: RefCell<Option<SealError>>,
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
    /// Links of the layers below that lead there.
    links: Vec<Vec<u8>>,
}

impl Level {
    fn place(&self, seq: u64, is_node: bool) -> &[u8] {
        match &self.early {
            Some((real, before)) if is_node && seq < *before => real,
            _ => &self.real,
        }
    }
}

/// All names of inodes, by layer and number.
type Names = HashMap<(usize, u64), Vec<Vec<u8>>>;

/// A hard link whose inode is in a layer below.
struct Foreign {
    link: Vec<u8>,
    target: Vec<u8>,
    seq: u64,
}

impl Settling<'_> {
    fn io<T>(&self, result: io::Result<T>) -> Result<T, SealError> {
        result.map_err(SealError::index(self.layer))
    }

    fn builder(&self) -> Result<Builder, SealError> {
        Ok(Builder::new(self.io((self.scratch)())?))
    }

    fn run(&self, log: &mut EditLog) -> Result<Index, SealError> {
        let mut moves = self.io((self.scratch)().and_then(EditLog::new))?;
        let mut foreign = Vec::new();
        let mut effective = self.relocate(&mut moves, &mut foreign)?;
        self.io(moves.finish())?;

        self.check(&effective)?;
        let mut links = Vec::new();
        if !foreign.is_empty() {
            foreign.sort_by_key(|foreign| foreign.seq);
            let added = self.link(&effective, &foreign, &mut links)?;
            effective = self.with(&effective, added)?;
        }
        self.structural_edits(&effective, &moves, links, log)?;
        Ok(effective)
    }

    /// A layer that changes, half-way, a link or directory that its own entries
    /// pass through by way of links below shows here: something is beneath what
    /// is no directory. So does what went through a link, to where it hides or
    /// replaces a link that other entries pass through.
    fn check(&self, effective: &Index) -> Result<(), SealError> {
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
            let early = matches!(node, Node::Implied | Node::Directory { late: true, .. });
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
        for (link, last) in &*self.followed.borrow() {
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
                if replaces && relocated && kept.seq <= *last {
                    return Err(self.unsettled(link));
                }
            }
        }
        match self.looped.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What came beneath a hard link into the layers below made a directory of
    /// it, unless it is one to a symbolic link.
    fn passes_by(&self, own: &Index, record: &Record) -> Result<(), SealError> {
        let target = &record.lost_link;
        let dir = self.resolve(own, b"", parent(target), &mut Vec::new(), record.cleared)?;
        let path = join(&dir, name(target));
        match self.source(own, &path, record.cleared, &record.path)? {
            Source::Own(Node::File { .. } | Node::Special { .. })
            | Source::Lower {
                node: Node::File { .. } | Node::Special { .. },
                ..
            } => Ok(()),
            _ => Err(self.unsettled(&record.path)),
        }
    }

    /// Maps every record to where it really goes.
    fn relocate(
        &self,
        moves: &mut EditLog,
        foreign: &mut Vec<Foreign>,
    ) -> Result<Index, SealError> {
        let mut out = self.builder()?;
        let mut cursor = self.natural.cursor();
        let mut levels = vec![Level {
            natural: Vec::new(),
            real: Vec::new(),
            hidden: false,
            early: None,
            links: Vec::new(),
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
            while levels.len() > 1
                && levels
                    .last()
                    .is_some_and(|level| !is_below(&record.path, &level.natural))
            {
                levels.pop();
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
            self.emit(&record, &levels, &level, &mut out, moves, foreign)?;
            levels.push(level);
        }
        self.io((self.scratch)().and_then(|file| out.finish(file)))
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
                links: Vec::new(),
            });
        };
        let node = record.and_then(|record| record.node.as_ref());
        let real = join(above.place(seq, node.is_some()), name(&natural));
        let opaque = record.is_some_and(|record| record.opaque);
        let whiteout = record.is_some_and(|record| record.whiteout);
        let mut level = Level {
            natural,
            hidden: true,
            early: None,
            links: Vec::new(),
            real,
        };
        let displaced = record.is_some_and(|record| record.displaced);
        let lost = record.is_some_and(|record| !record.lost_link.is_empty());
        if record.is_some_and(|record| record.beneath_link) || displaced && lost {
            return Err(self.unsettled(&level.natural));
        }
        if (above.hidden || whiteout) && !displaced {
            return Ok(level);
        }
        let below = self
            .io(self.lower.lookup(&level.real))?
            .map(|found| found.node);
        if displaced && matches!(below, Some(Node::Symlink { .. })) {
            return Err(self.unsettled(&level.natural));
        }
        if above.hidden || whiteout {
            return Ok(level);
        }
        match (node, &below) {
            (Some(Node::Directory { late: true, .. }), Some(Node::Symlink { target, .. })) => {
                let (real, links) = self.follow(&level.real, target, seq)?;
                level.early = Some((real, seq));
                level.links = links;
            }
            (Some(Node::Directory { late: false, .. }), Some(Node::Symlink { .. })) => {}
            (Some(node), Some(Node::Symlink { .. })) if !node.is_dir() && !holds && !opaque => {}
            // Also where something else of this layer takes the link's place:
            // then there are only markers beneath, and those come first.
            (_, Some(Node::Symlink { target, .. })) => {
                (level.real, level.links) = self.follow(&level.real, target, seq)?;
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
            path: show(path),
        }
    }

    fn emit(
        &self,
        record: &Record,
        levels: &[Level],
        level: &Level,
        out: &mut Builder,
        moves: &mut EditLog,
        foreign: &mut Vec<Foreign>,
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
        let is_entry = !matches!(record.node, None | Some(Node::Implied));
        for level in levels.iter().filter(|_| is_entry) {
            let passed = level
                .early
                .as_ref()
                .is_none_or(|(_, own)| record.seq < *own);
            for link in level.links.iter().filter(|_| passed) {
                let mut followed = self.followed.borrow_mut();
                let last = followed.entry(link.clone()).or_default();
                *last = record.seq.max(*last);
            }
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
            Some(node @ Node::Directory { .. }) => {
                if let Some(early) = early {
                    for dir in self_and_ancestors(early) {
                        self.io(out.push(&implied(dir, record.seq)))?;
                    }
                }
                push(out, place(true), Some(node.clone()), false, false)?;
            }
            Some(node @ Node::ForeignLink { target }) => {
                foreign.push(Foreign {
                    link: place(true),
                    target: target.clone(),
                    seq: record.seq,
                });
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
        let node = record.node.filter(|_| record.seq <= seq);
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

    /// Where the link at `path` with text `target` leads, within the root, and
    /// the links on the way.
    fn follow(
        &self,
        path: &[u8],
        target: &[u8],
        seq: u64,
    ) -> Result<(Vec<u8>, Vec<Vec<u8>>), SealError> {
        let mut links = vec![path.to_vec()];
        let start = if target.starts_with(b"/") {
            &[]
        } else {
            parent(path)
        };
        let end = match self.resolve(self.natural, start, target, &mut links, seq) {
            // Unless the layer breaks the circle, which shows in the end.
            Err(error @ SealError::LinkLoop { .. }) => {
                self.looped.borrow_mut().get_or_insert(error);
                path.to_vec()
            }
            resolved => resolved?,
        };
        Ok((end, links))
    }

    /// Resolves `rest` from directory `start`; what does not exist is taken as
    /// it is written, for it will be made. Adds the links on the way to `links`.
    fn resolve(
        &self,
        own: &Index,
        start: &[u8],
        rest: &[u8],
        links: &mut Vec<Vec<u8>>,
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
        while let Some(component) = pending.pop() {
            if component == b".." {
                current.truncate(parent(&current).len());
                hidden.pop();
                continue;
            }
            let next = join(&current, &component);
            let above = hidden.last().copied().unwrap_or(false);
            let (node, hides) = self.visible(own, &next, seq, above)?;
            if let Some(Node::Symlink { target, .. }) = node {
                links.push(next);
                if links.len() > MAX_LINKS {
                    return Err(SealError::LinkLoop {
                        layer: self.layer + 1,
                        path: show(&links[0]),
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
        Ok(current)
    }

    /// Gives the hard links into the layers below their inode. An inode that
    /// gets a further name is copied here with all its names that are still
    /// visible, so that they stay one inode.
    fn link(
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
            let dir = self.resolve(own, b"", parent(target), &mut Vec::new(), *seq)?;
            let path = join(&dir, name(target));
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
    fn source(&self, own: &Index, path: &[u8], seq: u64, link: &[u8]) -> Result<Source, SealError> {
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
        let (link, target) = (show(link), show(path));
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
    fn removes(&self, own: &Index, path: &[u8]) -> Result<bool, SealError> {
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
    fn with(&self, index: &Index, added: Vec<Record>) -> Result<Index, SealError> {
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

    /// From where the unpacker put things to where the effective index has them.
    /// What moves goes by way of names that nothing has, for its place may be
    /// that of something which goes itself.
    fn structural_edits(
        &self,
        effective: &Index,
        moves: &EditLog,
        links: Vec<Edit>,
        log: &mut EditLog,
    ) -> Result<(), SealError> {
        let aside = self.unused_name()?;
        let mut waiting = self.io((self.scratch)().and_then(EditLog::new))?;
        let mut gone = Vec::new();
        let mut moves = moves.read().peekable();
        let mut natural = self.natural.cursor();
        while let Some(record) = self.io(natural.next_record())? {
            let path = record.path;
            let Some(node) = record.node else { continue };
            if matches!(node, Node::ForeignLink { .. }) {
                continue;
            }
            if node.is_dir() {
                let stays = path.is_empty()
                    || self
                        .node_at(effective, &path)?
                        .is_some_and(|kept| is_dir(&kept));
                if !stays {
                    gone.push(path);
                }
                continue;
            }
            // Both are in the order of the natural paths.
            let moved =
                moves.next_if(|edit| matches!(edit, Ok(Edit::Move { from, .. }) if *from == path));
            let place = match moved {
                Some(Ok(Edit::Move { to, .. })) => to,
                _ => path.clone(),
            };
            let wins = self
                .node_at(effective, &place)?
                .is_some_and(|kept| !is_dir(&kept) && kept.seq == record.seq);
            if !wins {
                self.io(log.push(&Edit::RemoveFile { path }))?;
            } else if place != path {
                let mut from = aside.clone();
                from.extend_from_slice(waiting.len().to_string().as_bytes());
                self.io(log.push(&Edit::Move {
                    from: path,
                    to: from.clone(),
                }))?;
                self.io(waiting.push(&Edit::Move { from, to: place }))?;
            }
        }
        for path in gone.into_iter().rev() {
            self.io(log.push(&Edit::RemoveDirectory { path }))?;
        }
        let mut cursor = effective.cursor();
        while let Some(record) = self.io(cursor.next_record())? {
            if !is_dir(&record) || record.path.is_empty() {
                continue;
            }
            let before = self.node_at(self.natural, &record.path)?;
            if !before.is_some_and(|own| is_dir(&own)) {
                let attrs = match record.node {
                    Some(Node::Directory { attrs, .. }) => attrs,
                    _ => Attrs::implied(),
                };
                self.io(log.push(&Edit::Directory {
                    path: record.path,
                    attrs,
                }))?;
            }
        }
        self.io(waiting.finish())?;
        for edit in waiting.read() {
            let edit = self.io(edit)?;
            self.io(log.push(&edit))?;
        }
        for edit in links {
            self.io(log.push(&edit))?;
        }
        Ok(())
    }

    fn node_at(&self, index: &Index, path: &[u8]) -> Result<Option<Record>, SealError> {
        let record = self.io(index.get(path))?;
        Ok(record.filter(|record| record.node.is_some()))
    }

    /// The beginning of names that the layer's root directory has not.
    fn unused_name(&self) -> Result<Vec<u8>, SealError> {
        let mut prefix = b".moving-".to_vec();
        let mut cursor = self.natural.cursor();
        while let Some(record) = self.io(cursor.next_record())? {
            while record.path.starts_with(&prefix) {
                prefix.push(b'-');
            }
        }
        Ok(prefix)
    }
}

fn is_dir(record: &Record) -> bool {
    record.node.as_ref().is_some_and(Node::is_dir)
}

/// Where a hard link finds its inode.
#[derive(Clone)]
enum Source {
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

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
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
