//! Where a layer's markers act. They speak of the layers below, as those are:
//! neither their place in the archive nor what else the layer holds leads them
//! elsewhere. They go through a link unless the layer hides it or has a
//! directory of its own in its place.

use super::{Settling, self_and_ancestors};
use crate::layer::index::{Index, Node, Record, is_below, join, name, parent};
use crate::layer::limits::MAX_LINKS;
use crate::layer::seal::SealError;

/// A directory on the way to the current record.
struct Level {
    natural: Vec<u8>,
    /// The layer has a directory here. None if it may have had one, which
    /// something else replaced.
    is_own: Option<bool>,
    whiteout: bool,
    opaque: bool,
    /// Where markers in it act, if there is anything that they could hide; found
    /// once there is one.
    place: Option<Option<Place>>,
}

#[derive(Clone)]
struct Place {
    path: Vec<u8>,
    /// Links on the way there.
    links: usize,
}

impl Level {
    fn new(record: &Record) -> Self {
        let is_own = match record.node {
            Some(Node::Directory { .. }) => Some(true),
            Some(Node::Implied) if record.cleared == 0 => Some(false),
            Some(Node::Implied) if record.first() == record.cleared => Some(false),
            _ if record.first.is_none() => Some(false),
            _ => None,
        };
        Level {
            natural: record.path.clone(),
            is_own,
            whiteout: record.whiteout,
            opaque: record.opaque,
            place: None,
        }
    }
}

impl Settling<'_> {
    /// The layer's markers, each where it acts.
    pub(super) fn find_markers(&self) -> Result<Index, SealError> {
        let mut out = self.builder()?;
        let summary = self.natural.summary();
        if summary.whiteouts + summary.opaques > 0 {
            self.place_markers(|path, whiteout| {
                self.io(out.push(&Record {
                    path,
                    whiteout,
                    opaque: !whiteout,
                    ..Record::default()
                }))
            })?;
        }
        self.finish(out)
    }

    fn place_markers(
        &self,
        mut put: impl FnMut(Vec<u8>, bool) -> Result<(), SealError>,
    ) -> Result<(), SealError> {
        let mut cursor = self.natural.cursor();
        let mut levels = vec![Level::new(&Record::default())];
        while let Some(record) = self.io(cursor.next_record())? {
            if record.path.is_empty() {
                levels[0].opaque = record.opaque;
            }
            while levels
                .pop_if(|level| {
                    !level.natural.is_empty() && !is_below(&record.path, &level.natural)
                })
                .is_some()
            {}
            let above = levels.last().map_or(0, |level| level.natural.len());
            // Directories on the way of which the layer says nothing.
            for dir in self_and_ancestors(parent(&record.path)).filter(|dir| dir.len() > above) {
                levels.push(Level::new(&Record {
                    path: dir.to_vec(),
                    ..Record::default()
                }));
            }
            if record.whiteout
                && let Some(place) = self.place(&mut levels)?
                && self.is_directory(&place.path)?
            {
                put(join(&place.path, name(&record.path)), true)?;
            }
            if !record.path.is_empty() {
                levels.push(Level::new(&record));
            }
            if record.opaque
                && let Some(place) = self.place(&mut levels)?
                && self.is_directory(&place.path)?
            {
                put(place.path, false)?;
            }
        }
        Ok(())
    }

    fn is_directory(&self, path: &[u8]) -> Result<bool, SealError> {
        let found = self.io(self.lower.lookup(path))?;
        // No layer has to say anything about the root.
        Ok(path.is_empty() || found.is_some_and(|found| found.node.is_dir()))
    }

    /// Where markers in the last of `levels` act.
    fn place(&self, levels: &mut [Level]) -> Result<Option<Place>, SealError> {
        let known = levels.iter().rposition(|level| level.place.is_some());
        let mut hidden = false;
        let mut place = Some(Place {
            path: Vec::new(),
            links: 0,
        });
        for (at, level) in levels.iter_mut().enumerate() {
            if known.is_some_and(|known| at < known) {
                continue;
            }
            place = match (&level.place, place) {
                (Some(known), _) => known.clone(),
                (None, place) if level.natural.is_empty() => place,
                (None, Some(above)) if !hidden && !level.whiteout => {
                    self.enter_marked(above, level)?
                }
                _ => None,
            };
            level.place = Some(place.clone());
            hidden = level.opaque;
        }
        Ok(place)
    }

    fn enter_marked(&self, above: Place, level: &Level) -> Result<Option<Place>, SealError> {
        let path = join(&above.path, name(&level.natural));
        let below = self.io(self.lower.lookup(&path))?;
        let Some(Node::Symlink { target, .. }) = below.map(|found| found.node) else {
            return Ok(Some(Place { path, ..above }));
        };
        match level.is_own {
            Some(true) => Ok(None),
            None => Err(self.unsettled(&level.natural)),
            Some(false) => {
                let mut links = vec![path.clone()];
                let mut lower = |path: &[u8], _: bool| {
                    let found = self.io(self.lower.lookup(path))?;
                    Ok((found.map(|found| found.node), false))
                };
                let start = if target.starts_with(b"/") {
                    &[]
                } else {
                    parent(&path)
                };
                let (path, _) =
                    self.walk_links(&mut lower, start, &target, &mut links, &level.natural)?;
                let links = above.links + links.len();
                if links > MAX_LINKS {
                    return Err(self.too_many_links(&level.natural));
                }
                Ok(Some(Place { path, links }))
            }
        }
    }
}
