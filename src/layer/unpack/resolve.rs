//! Where a name leads, given what the layer itself has put on disk so far.
//!
//! A path is resolved as if the layer's directory were the root of the system:
//! absolute links begin there and `..` stops there. What does not exist is
//! taken as it is written. Resolving changes nothing on disk; making the
//! missing directories is a second step, which a hard link's target does not take.

use super::name::{self, NameError};
use super::{UnpackError, Unpacker};
use crate::layer::RecordSink;
use crate::layer::index::{self, Node, Record};
use crate::layer::limits::{MAX_LINKS, MAX_STEPS};
use crate::layer::tree::PathText;
use rustix::fs::{Mode, mkdirat, readlinkat};
use rustix::io::Errno;

/// What of a directory's path does not exist. The existing part is where the
/// cursor is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// In normal form, relative to the cursor; empty if the directory exists.
    /// Something that is neither directory nor link may be in its place.
    pub(super) rest: Vec<u8>,
}

impl<R: RecordSink> Unpacker<R> {
    /// Goes to the deepest existing directory on the way to the directory
    /// `dir`, for the sake of the entry `path`.
    pub(super) fn resolve(&mut self, dir: &[u8], path: &[u8]) -> Result<Missing, UnpackError> {
        // Components of the cursor's path are real directories, so what `dir`
        // has in common with it needs no look-up.
        let mut at = self
            .cursor
            .ascend_to_common(dir)
            .map_err(|source| enter_error(path, source))?;
        while at < dir.len() {
            let end = component_end(dir, at);
            match self.cursor.descend(&dir[at..end]) {
                Ok(()) => at = (end + 1).min(dir.len()),
                Err(Errno::NOENT) => {
                    return Ok(Missing {
                        rest: dir[at..].to_vec(),
                    });
                }
                Err(Errno::NOTDIR) => return self.resolve_links(dir[at..].to_vec(), path),
                Err(source) => return Err(enter_error(path, source)),
            }
        }
        Ok(Missing::default())
    }

    /// Continues with `todo` where something is in the way that is no directory.
    fn resolve_links(&mut self, mut todo: Vec<u8>, path: &[u8]) -> Result<Missing, UnpackError> {
        let refuse = |source| UnpackError::Way {
            path: path.into(),
            source,
        };
        let mut missing = Missing::default();
        let mut at = 0;
        let mut links = 0;
        let mut steps = 0;
        while at < todo.len() {
            let end = component_end(&todo, at);
            let component = &todo[at..end];
            at = end + 1;
            steps += 1;
            if steps > MAX_STEPS {
                return Err(UnpackError::TooManySteps {
                    path: path.into(),
                    limit: MAX_STEPS,
                });
            }
            match component {
                b"" | b"." => continue,
                b".." => {
                    let left = self.way(&missing);
                    if !left.is_empty() {
                        self.note_passed(left, self.stats.entries)?;
                    }
                    if missing.rest.is_empty() {
                        self.go_up(path)?;
                    } else {
                        let length = index::parent(&missing.rest).len();
                        missing.rest.truncate(length);
                    }
                    continue;
                }
                _ => {}
            }
            name::check_component(component).map_err(refuse)?;
            // A link's text is not an entry's name and was not looked at: it
            // must not bring a marker into being.
            if component.starts_with(name::WHITEOUT) {
                return Err(refuse(NameError::Whiteout));
            }
            if !missing.rest.is_empty() {
                missing.rest.push(b'/');
                missing.rest.extend_from_slice(component);
                self.check_way(&missing, &[]).map_err(refuse)?;
                continue;
            }
            match self.cursor.descend(component) {
                Ok(()) => self.check_way(&missing, &[]).map_err(refuse)?,
                Err(Errno::NOENT) => missing.rest.extend_from_slice(component),
                Err(Errno::NOTDIR) => match self.read_link(component, path)? {
                    Some(target) => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(UnpackError::TooManyLinks {
                                path: path.into(),
                                limit: MAX_LINKS,
                            });
                        }
                        if target.first() == Some(&b'/') {
                            self.cursor
                                .ascend_to(0)
                                .map_err(|source| enter_error(path, source))?;
                        }
                        let mut spliced = target;
                        if at < todo.len() {
                            spliced.push(b'/');
                            spliced.extend_from_slice(&todo[at..]);
                        }
                        todo = spliced;
                        at = 0;
                    }
                    None => missing.rest.extend_from_slice(component),
                },
                Err(source) => return Err(enter_error(path, source)),
            }
        }
        Ok(missing)
    }

    fn go_up(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let depth = self.cursor.depth().saturating_sub(1);
        self.cursor
            .ascend_to(depth)
            .map_err(|source| enter_error(path, source))
    }

    /// The text of the link `name` where the cursor is; none if it is no link.
    fn read_link(&self, name: &[u8], path: &[u8]) -> Result<Option<Vec<u8>>, UnpackError> {
        match readlinkat(self.cursor.directory(), name, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::INVAL) => Ok(None),
            Err(source) => Err(UnpackError::Inspect {
                path: path.into(),
                source: source.into(),
            }),
        }
    }

    /// Checks the extent of the way that was found, with `name` at its end.
    pub(super) fn check_way(&self, missing: &Missing, name: &[u8]) -> Result<(), NameError> {
        let mut depth = self.cursor.depth();
        let mut bytes = self.cursor.path().len();
        for part in [&missing.rest[..], name] {
            if !part.is_empty() {
                depth += 1 + part.iter().filter(|byte| **byte == b'/').count();
                bytes += usize::from(bytes > 0) + part.len();
            }
        }
        name::check_extent(depth, bytes, &self.options.limits)
    }

    /// The path that the cursor and what is missing make.
    pub(super) fn way(&self, missing: &Missing) -> Vec<u8> {
        if missing.rest.is_empty() {
            self.cursor.path().to_vec()
        } else {
            index::join(self.cursor.path(), &missing.rest)
        }
    }

    /// Makes what is missing, goes there, and notes the directories as implied
    /// by entry number `seq`.
    pub(super) fn create_missing(
        &mut self,
        missing: &Missing,
        seq: u64,
    ) -> Result<(), UnpackError> {
        for name in missing.rest.split(|byte| *byte == b'/') {
            if name.is_empty() {
                continue;
            }
            let path = index::join(self.cursor.path(), name);
            self.count_node(&path)?;
            self.replacing(
                &path,
                |directory, name| mkdirat(directory, name, Mode::RWXU),
                |path, source| UnpackError::CreateDirectory { path, source },
            )?;
            self.stats.implied_directories += 1;
            self.record(&Record {
                path,
                seq,
                node: Some(Node::Implied),
                ..Record::default()
            })?;
            self.cursor
                .descend(name)
                .map_err(|source| enter_error(name, source))?;
        }
        Ok(())
    }
}

fn component_end(path: &[u8], start: usize) -> usize {
    path[start..]
        .iter()
        .position(|byte| *byte == b'/')
        .map_or(path.len(), |length| start + length)
}

pub(super) fn enter_error(path: &[u8], source: Errno) -> UnpackError {
    UnpackError::Enter {
        path: PathText::from(path),
        source: source.into(),
    }
}
