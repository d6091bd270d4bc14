//! What a pod changed: a writable layer read as the OCI layer that it nearly is.
//!
//! The pod may be running. What is read is never a link followed, a device
//! opened or a fifo waited for; a file that grows while it is read is taken up
//! to the size it had, one that shrinks is an error, and what goes before its turn
//! comes is left out. So a file that the pod replaces by a rename is the old or the
//! new one, whole; one that it writes in place can be a mixture, and of what it
//! moves meanwhile from one directory to another either name can be seen, both or
//! none.

mod export;
mod lower;

pub use export::export;
pub use lower::LowerBranches;

use super::apply::Format;
use super::tree::{PathText, errno_in_chain};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, openat, statat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Directories deep that a pod may nest before its changes are not read any more.
const MAX_DEPTH: usize = 512;

/// One line of `diff`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Path from the volume's root, without a leading slash.
    pub path: Vec<u8>,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The image has it not.
    Added,
    /// The image has it, with other content or metadata; also a directory in
    /// which something changed.
    Changed,
    /// The image has it and the volume has not. What was inside it is not listed.
    Deleted,
}

impl ChangeKind {
    /// `A`, `C` or `D`, as the container tools print it.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        }
    }
}

/// The changes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// A system call on something in the writable layer, or in the branches below it.
    #[error("cannot read {path}")]
    Read {
        /// Where.
        path: PathText,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Metadata of something in the writable layer.
    #[error("cannot read the metadata of {path}")]
    Metadata {
        /// Where.
        path: PathText,
        /// Why.
        #[source]
        source: super::tree::MetadataError,
    },
    /// Directories in directories.
    #[error("{path} is nested deeper than {MAX_DEPTH} directories")]
    TooDeep {
        /// Where.
        path: PathText,
    },
    /// The pod truncated a file while it was read.
    #[error("{path} became shorter while it was read; export again, best with the pod at rest")]
    Shortened {
        /// Which.
        path: PathText,
    },
    /// A layer cannot hold such a name: there it hides another one.
    #[error("{path} has a name that begins with .wh., which in a layer is a whiteout; rename it")]
    Reserved {
        /// Which.
        path: PathText,
    },
    /// The archive could not be written.
    #[error("cannot write the archive")]
    Write {
        /// Why.
        #[source]
        source: super::archive::WriteError,
    },
}

impl ChangesError {
    /// Whether something is not there any more, or not as what it was listed: the
    /// pod was faster.
    fn is_gone(&self) -> bool {
        let errno = match self {
            ChangesError::Read { source, .. } => Errno::from_io_error(source),
            ChangesError::Metadata { source, .. } => errno_in_chain(source),
            ChangesError::TooDeep { .. }
            | ChangesError::Shortened { .. }
            | ChangesError::Reserved { .. }
            | ChangesError::Write { .. } => None,
        };
        // The last is a fifo or socket in the place of a file.
        matches!(
            errno,
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO)
        )
    }
}

fn read_error(path: &[u8]) -> impl FnOnce(Errno) -> ChangesError {
    move |errno| ChangesError::Read {
        path: path.into(),
        source: errno.into(),
    }
}

/// What the writable layer says, in the order of the paths.
enum Item<'a> {
    /// It hides what is below at `path`.
    Whiteout { path: &'a [u8] },
    /// It has this; for a directory, `opaque` hides what is below in it.
    Entry {
        path: &'a [u8],
        directory: BorrowedFd<'a>,
        name: &'a [u8],
        stat: Stat,
        opaque: bool,
    },
}

/// Walks a writable layer in sorted order. Not recursive in stack terms beyond
/// [`MAX_DEPTH`] open directories.
fn walk(
    upper: BorrowedFd<'_>,
    format: Format,
    each: &mut dyn FnMut(Item<'_>) -> Result<(), ChangesError>,
) -> Result<(), ChangesError> {
    struct Level {
        fd: OwnedFd,
        path: Vec<u8>,
        /// Names still to come, the next one last.
        names: Vec<Vec<u8>>,
    }
    let open =
        |parent: BorrowedFd<'_>, name: &[u8], path: Vec<u8>| -> Result<Level, ChangesError> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(parent, name, flags, Mode::empty()).map_err(read_error(&path))?;
            let mut names = names_in(fd.as_fd()).map_err(read_error(&path))?;
            names.reverse();
            Ok(Level { fd, path, names })
        };
    let mut levels = vec![open(upper, b".", Vec::new())?];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else {
            return Ok(());
        };
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let path = super::index::join(&level.path, &name);
        if format == Format::Aufs && name.starts_with(b".wh.") {
            // `.wh..wh.*` is AUFS's own; the opaque marker is read with its directory.
            if !name.starts_with(b".wh..wh.") {
                let hidden = super::index::join(&level.path, &name[4..]);
                each(Item::Whiteout { path: &hidden })?;
            }
            continue;
        }
        let fd = level.fd.as_fd();
        let stat = match statat(fd, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // The pod was faster.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(read_error(&path)(errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(format, Format::Overlay { .. })
            && kind == FileType::CharacterDevice
            && stat.st_rdev == 0
        {
            each(Item::Whiteout { path: &path })?;
            continue;
        }
        if kind != FileType::Directory {
            let item = Item::Entry {
                path: &path,
                directory: fd,
                name: &name,
                stat,
                opaque: false,
            };
            match each(item) {
                Err(error) if !error.is_gone() => return Err(error),
                _ => continue,
            }
        }
        if depth > MAX_DEPTH {
            return Err(ChangesError::TooDeep {
                path: path[..].into(),
            });
        }
        let next = match open(fd, &name, path.clone()) {
            Ok(next) => next,
            Err(error) if error.is_gone() => continue,
            Err(error) => return Err(error),
        };
        let opaque = is_opaque(next.fd.as_fd(), format).map_err(read_error(&path))?;
        let item = Item::Entry {
            path: &path,
            directory: fd,
            name: &name,
            stat,
            opaque,
        };
        match each(item) {
            Ok(()) => levels.push(next),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Names in a directory, sorted.
fn names_in(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_opaque(directory: BorrowedFd<'_>, format: Format) -> rustix::io::Result<bool> {
    let name = match format {
        Format::Aufs => {
            return match statat(directory, ".wh..wh..opq", AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Ok(true),
                Err(Errno::NOENT) => Ok(false),
                Err(errno) => Err(errno),
            };
        }
        Format::Overlay { user_xattr: false } => "trusted.overlay.opaque",
        Format::Overlay { user_xattr: true } => "user.overlay.opaque",
    };
    let mut value = [0u8; 4];
    match fgetxattr(directory, name, &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// What changed in a writable layer on top of its branches, sorted by path.
///
/// # Errors
/// [`ChangesError`]; the first thing that could not be read.
pub fn changes(
    upper: BorrowedFd<'_>,
    format: Format,
    lower: &LowerBranches,
) -> Result<Vec<Change>, ChangesError> {
    let mut found = BTreeSet::new();
    walk(upper, format, &mut |item| {
        let mut note = |path: &[u8], kind| {
            found.insert(Change {
                path: path.to_vec(),
                kind,
            });
        };
        match item {
            Item::Whiteout { path } => {
                // One that hides nothing is left of something that came and went.
                if lower.has(path)? {
                    note(path, ChangeKind::Deleted);
                }
            }
            Item::Entry {
                path,
                directory,
                name,
                opaque,
                ..
            } => {
                if !lower.has(path)? {
                    note(path, ChangeKind::Added);
                    return Ok(());
                }
                note(path, ChangeKind::Changed);
                if opaque {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let own = openat(directory, name, flags, Mode::empty())
                        .and_then(|fd| names_in(fd.as_fd()))
                        .map_err(read_error(path))?;
                    for hidden in lower.names(path)? {
                        if own.binary_search(&hidden).is_err() {
                            note(&super::index::join(path, &hidden), ChangeKind::Deleted);
                        }
                    }
                }
            }
        }
        Ok(())
    })?;
    Ok(found.into_iter().collect())
}
