//! Edits → a layer's directory as it serves as a branch; and copies of a
//! branch directory, from which another form of the same layer is made.
//!
//! Nothing is decided here: sealing says what is to be done, and what it did
//! not expect to find (a name that exists, a directory that is missing) is an
//! error rather than repaired. Directories may have their metadata already;
//! [`refinish_directories`](super::unpack::refinish_directories) is the step
//! after this one, for edits touch the times of directories, and what is made
//! inherits from them.

mod copy;
#[cfg(test)]
mod tests;

use super::index::{self, Attrs};
use super::seal::Edit;
use super::tree::{Cursor, EnterError, MetadataError, Ownership, PathText};
pub use copy::CopyFault;
use copy::{Copier, Directories};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, XattrFlags, fsetxattr, linkat, makedev,
    mkdirat, mknodat, openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::collections::VecDeque;
use std::error::Error;
use std::io;

/// Layers that stay open to be copied from, besides the one being edited.
const MAX_OPEN_LAYERS: usize = 4;
/// What AUFS creates its own whiteouts with.
const WHITEOUT_MODE: u32 = 0o444;

/// How a branch writes what it hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// AUFS: `.wh.<name>`, an empty file.
    Aufs,
    /// overlayfs: a 0:0 character device of that name, and an extended
    /// attribute on opaque directories.
    Overlay {
        /// The mount will have `userxattr`: `user.overlay.` instead of
        /// `trusted.overlay.`, which needs root.
        user_xattr: bool,
    },
}

/// What an edit was about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Give it another name.
    Move,
    /// Remove the empty directory.
    RemoveDirectory,
    /// Remove the name.
    RemoveFile,
    /// Make the directory.
    CreateDirectory,
    /// Link it under another name.
    Link,
    /// Hide it from the branches below.
    Whiteout,
    /// Make the directory opaque.
    Opaque,
}

impl Step {
    fn text(self) -> &'static str {
        match self {
            Step::Move => "move",
            Step::RemoveDirectory => "remove directory",
            Step::RemoveFile => "remove",
            Step::CreateDirectory => "make directory",
            Step::Link => "link",
            Step::Whiteout => "make a whiteout of",
            Step::Opaque => "make opaque",
        }
    }
}

/// A layer could not be edited or copied; its directory is then of no use.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The list of edits, or of nodes to copy, could not be read.
    #[error("cannot read what is to be done")]
    List {
        /// The list's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A directory on the way to an edited path.
    #[error("cannot reach {path}")]
    Enter {
        /// The edited path.
        path: PathText,
        /// Why.
        source: EnterError,
    },
    /// One edit's system call.
    #[error("cannot {} {path}", step.text())]
    Edit {
        /// What was to be done.
        step: Step,
        /// To what.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// A marker of one format in a branch of the other.
    #[error("an opaque directory {path} in a branch for AUFS, which has to be without")]
    OpaqueInAufs {
        /// The directory.
        path: PathText,
    },
    /// A lower layer's directory could not be opened.
    #[error("cannot open layer {} to copy {path} from it", layer + 1)]
    Layer {
        /// Its place in the image, 0 the lowest; the text counts from 1.
        layer: usize,
        /// What was to be copied.
        path: PathText,
        /// The caller's error.
        source: io::Error,
    },
    /// Data or metadata could not be copied.
    #[error("cannot copy {from} to {to}")]
    Copy {
        /// Its path in the other directory.
        from: PathText,
        /// Its path here.
        to: PathText,
        /// Why.
        source: CopyFault,
    },
    /// The caller did not take a directory's metadata.
    #[error("cannot note metadata of directory {path}")]
    Directory {
        /// The directory.
        path: PathText,
        /// The caller's error.
        source: io::Error,
    },
    /// The directory itself could not be looked at.
    #[error("cannot use the layer's directory")]
    Root {
        /// Why.
        source: io::Error,
    },
    /// The extended attributes of the directory itself could not be listed.
    #[error("cannot read metadata of the layer's directory")]
    RootMetadata {
        /// Why.
        source: MetadataError,
    },
}

impl ApplyError {
    /// Whether the filesystem or a quota on it is full.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// Whether the filesystem is read-only, as it becomes after disk errors.
    pub fn is_read_only(&self) -> bool {
        self.errno() == Some(Errno::ROFS)
    }

    fn errno(&self) -> Option<Errno> {
        super::tree::errno_in_chain(self)
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApplyStats {
    /// Edits made.
    pub edits: u64,
    /// Whiteouts among them.
    pub whiteouts: u64,
    /// Files, links and devices copied from other layers.
    pub copied: u64,
    /// Bytes of file data copied, shared extents included, holes not.
    pub copied_bytes: u64,
}

/// Makes `edits`, in their order, on the layer's directory `root`. `fresh` is a
/// directory on the same filesystem that no metadata was given to.
///
/// `lower` opens the directory of another layer of the image to copy from it.
/// `directories` is given the metadata of every directory among the edits, to be
/// merged into what `refinish_directories` gets.
///
/// # Errors
/// [`ApplyError`] at the first edit that fails.
pub fn apply<E: Into<Box<dyn Error + Send + Sync>>>(
    root: BorrowedFd<'_>,
    fresh: BorrowedFd<'_>,
    edits: impl Iterator<Item = Result<Edit, E>>,
    format: Format,
    ownership: Ownership,
    lower: &dyn Fn(usize) -> io::Result<OwnedFd>,
    directories: &mut dyn FnMut(&[u8], Attrs) -> io::Result<()>,
) -> Result<ApplyStats, ApplyError> {
    let mut editor = Editor {
        here: cursor(root)?,
        there: cursor(root)?,
        layers: VecDeque::new(),
        copier: Copier::new(fresh, Directories::Finished, ownership)?,
        format,
        stats: ApplyStats::default(),
    };
    for edit in edits {
        let edit = edit.map_err(|error| ApplyError::List {
            source: error.into(),
        })?;
        editor.edit(edit, lower, directories)?;
        editor.stats.edits += 1;
    }
    editor.stats.copied_bytes = editor.copier.bytes;
    Ok(editor.stats)
}

struct Editor {
    /// Where the edited name is.
    here: Cursor,
    /// Where the name is that a move or link begins with.
    there: Cursor,
    /// Layers that were copied from, the last used first.
    layers: VecDeque<(usize, Cursor)>,
    copier: Copier,
    format: Format,
    stats: ApplyStats,
}

impl Editor {
    fn edit(
        &mut self,
        edit: Edit,
        lower: &dyn Fn(usize) -> io::Result<OwnedFd>,
        directories: &mut dyn FnMut(&[u8], Attrs) -> io::Result<()>,
    ) -> Result<(), ApplyError> {
        match edit {
            Edit::Move { from, to } => self.rename(&from, &to),
            Edit::RemoveDirectory { path } => self.remove_directory(&path),
            Edit::RemoveFile { path } => self.at(&path, Step::RemoveFile, |directory, name| {
                unlinkat(directory, name, AtFlags::empty())
            }),
            Edit::Directory { path, attrs } => self.make_directory(&path, attrs, directories),
            Edit::Implied { path } => self.make_directory(&path, Attrs::implied(), directories),
            Edit::Copy { layer, from, to } => self.copy(layer, &from, &to, lower),
            Edit::Link { from, to } => {
                let source = enter(&mut self.there, &from)?;
                let directory = enter(&mut self.here, &to)?;
                linkat(
                    source,
                    index::name(&from),
                    directory,
                    index::name(&to),
                    AtFlags::empty(),
                )
                .map_err(|source| edit_error(Step::Link, &to, source))
            }
            Edit::Whiteout { path } => self.whiteout(&path),
            Edit::Opaque { path } => self.opaque(&path),
        }
    }

    fn make_directory(
        &mut self,
        path: &[u8],
        attrs: Attrs,
        directories: &mut dyn FnMut(&[u8], Attrs) -> io::Result<()>,
    ) -> Result<(), ApplyError> {
        if !path.is_empty() {
            self.at(path, Step::CreateDirectory, make_directory)?;
        }
        directories(path, attrs).map_err(|source| ApplyError::Directory {
            path: path.into(),
            source,
        })
    }

    /// Does something to the name at the end of `path`.
    fn at(
        &mut self,
        path: &[u8],
        step: Step,
        act: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), ApplyError> {
        let directory = enter(&mut self.here, path)?;
        act(directory, index::name(path)).map_err(|source| edit_error(step, path, source))
    }

    fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), ApplyError> {
        let source = enter(&mut self.there, from)?;
        let directory = enter(&mut self.here, to)?;
        let (old, new) = (index::name(from), index::name(to));
        // A directory would take the cursors with it; no edit moves one.
        is_directory(source, old)
            .and_then(|is_directory| match is_directory {
                true => Err(Errno::ISDIR),
                false => rename_to_free(source, old, directory, new),
            })
            .map_err(|source| edit_error(Step::Move, from, source))
    }

    fn remove_directory(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        for cursor in [&mut self.here, &mut self.there] {
            cursor.leave(path).map_err(|source| ApplyError::Enter {
                path: path.into(),
                source,
            })?;
        }
        self.at(path, Step::RemoveDirectory, |directory, name| {
            unlinkat(directory, name, AtFlags::REMOVEDIR)
        })
    }

    fn copy(
        &mut self,
        layer: usize,
        from: &[u8],
        to: &[u8],
        lower: &dyn Fn(usize) -> io::Result<OwnedFd>,
    ) -> Result<(), ApplyError> {
        let position = self.layers.iter().position(|(open, _)| *open == layer);
        let mut source = match position.and_then(|position| self.layers.remove(position)) {
            Some((_, cursor)) => cursor,
            None => Cursor::new(lower(layer).map_err(|source| ApplyError::Layer {
                layer,
                path: from.into(),
                source,
            })?),
        };
        let copied = copy_one(&mut self.copier, &mut source, from, &mut self.here, to);
        self.layers.push_front((layer, source));
        self.layers.truncate(MAX_OPEN_LAYERS);
        self.stats.copied += 1;
        copied
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        self.stats.whiteouts += 1;
        let format = self.format;
        self.at(path, Step::Whiteout, |directory, name| match format {
            Format::Aufs => {
                let marker = [b".wh.", name].concat();
                let mode = Mode::from_raw_mode(WHITEOUT_MODE);
                mknodat(directory, &marker[..], FileType::RegularFile, mode, 0)
            }
            Format::Overlay { .. } => mknodat(
                directory,
                name,
                FileType::CharacterDevice,
                Mode::empty(),
                makedev(0, 0),
            ),
        })
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        let xattr = match self.format {
            Format::Overlay { user_xattr: false } => "trusted.overlay.opaque",
            Format::Overlay { user_xattr: true } => "user.overlay.opaque",
            Format::Aufs => return Err(ApplyError::OpaqueInAufs { path: path.into() }),
        };
        self.at(path, Step::Opaque, |directory, name| {
            let directory = openat(
                directory,
                if name.is_empty() { b"." } else { name },
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            fsetxattr(&directory, xattr, b"y", XattrFlags::empty())
        })
    }
}

/// One node of a branch to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyNode {
    /// Its path in the directory that is copied.
    pub from: Vec<u8>,
    /// Its path in the new one; the directory that holds it comes before it.
    pub to: Vec<u8>,
    /// A directory, which is made without its metadata.
    pub is_directory: bool,
    /// For anything else: nodes of the same number become one inode.
    pub inode: u64,
}

/// Copies the branch directory `from`, node by node, into the directory `to`,
/// whose directories are without metadata, and stay so, as after unpacking.
///
/// `aside` is an empty directory on the same filesystem as `to`. Inodes of which
/// more names may come have one there meanwhile, for memory does not hold them;
/// those that are left in the end are the caller's to remove.
///
/// # Errors
/// [`ApplyError`] at the first node that fails.
pub fn copy_nodes<E: Into<Box<dyn Error + Send + Sync>>>(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    aside: BorrowedFd<'_>,
    nodes: impl Iterator<Item = Result<CopyNode, E>>,
    ownership: Ownership,
) -> Result<ApplyStats, ApplyError> {
    let mut source = cursor(from)?;
    let mut here = cursor(to)?;
    let mut copier = Copier::new(to, Directories::Bare, ownership)?;
    let mut stats = ApplyStats::default();
    for node in nodes {
        let node = node.map_err(|error| ApplyError::List {
            source: error.into(),
        })?;
        stats.edits += 1;
        if node.is_directory {
            if !node.to.is_empty() {
                let directory = enter(&mut here, &node.to)?;
                make_directory(directory, index::name(&node.to))
                    .map_err(|source| edit_error(Step::CreateDirectory, &node.to, source))?;
            }
            continue;
        }
        let link_error = |source| edit_error(Step::Link, &node.to, source);
        let (from, to) = (index::name(&node.from), index::name(&node.to));
        let names = {
            let directory = enter(&mut source, &node.from)?;
            let stat = statat(directory, from, AtFlags::SYMLINK_NOFOLLOW);
            names(&stat.map_err(|source| copy_error(&node, source))?)
        };
        let kept = format!("{:x}", node.inode);
        if names > 1 {
            let directory = enter(&mut here, &node.to)?;
            match statat(aside, &kept, AtFlags::SYMLINK_NOFOLLOW) {
                // The last one takes the name that was kept, so that there are
                // never more names than in the source.
                Ok(copy) if self::names(&copy) >= names => {
                    renameat(aside, &kept, directory, to).map_err(link_error)?;
                    continue;
                }
                Ok(_) => {
                    linkat(aside, &kept, directory, to, AtFlags::empty()).map_err(link_error)?;
                    continue;
                }
                Err(Errno::NOENT) => {}
                Err(source) => return Err(link_error(source)),
            }
        }
        copy_one(&mut copier, &mut source, &node.from, &mut here, &node.to)?;
        stats.copied += 1;
        if names > 1 {
            let directory = enter(&mut here, &node.to)?;
            linkat(directory, to, aside, &kept, AtFlags::empty()).map_err(link_error)?;
        }
    }
    stats.copied_bytes = copier.bytes;
    Ok(stats)
}

fn copy_one(
    copier: &mut Copier,
    source: &mut Cursor,
    from: &[u8],
    target: &mut Cursor,
    to: &[u8],
) -> Result<(), ApplyError> {
    let source = enter(source, from)?;
    let target = enter(target, to)?;
    copier
        .copy(source, index::name(from), target, index::name(to))
        .map_err(|source| ApplyError::Copy {
            from: from.into(),
            to: to.into(),
            source,
        })
}

fn cursor(root: BorrowedFd<'_>) -> Result<Cursor, ApplyError> {
    fcntl_dupfd_cloexec(root, 0)
        .map(Cursor::new)
        .map_err(|source| ApplyError::Root {
            source: source.into(),
        })
}

/// Goes to the directory that holds `path`.
fn enter<'a>(cursor: &'a mut Cursor, path: &[u8]) -> Result<BorrowedFd<'a>, ApplyError> {
    cursor
        .enter(index::parent(path))
        .map_err(|source| ApplyError::Enter {
            path: path.into(),
            source,
        })
}

fn edit_error(step: Step, path: &[u8], source: Errno) -> ApplyError {
    ApplyError::Edit {
        step,
        path: path.into(),
        source: source.into(),
    }
}

fn copy_error(node: &CopyNode, source: Errno) -> ApplyError {
    ApplyError::Copy {
        from: node.from[..].into(),
        to: node.to[..].into(),
        source: CopyFault::Open {
            source: source.into(),
        },
    }
}

/// Names of an inode.
fn names(stat: &Stat) -> u64 {
    // A link count has 32 or 64 bits, by architecture.
    fn widen(count: impl Into<u64>) -> u64 {
        count.into()
    }
    widen(stat.st_nlink)
}

fn is_directory(directory: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn make_directory(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match mkdirat(directory, name, Mode::RWXU) {
        Err(Errno::EXIST) if is_directory(directory, name)? => Ok(()),
        made => made,
    }
}

fn rename_to_free(
    source: BorrowedFd<'_>,
    old: &[u8],
    directory: BorrowedFd<'_>,
    new: &[u8],
) -> Result<(), Errno> {
    match renameat_with(source, old, directory, new, RenameFlags::NOREPLACE) {
        // The filesystem does not know the flag. Nobody else is at work here,
        // so looking first is as good.
        Err(Errno::INVAL | Errno::NOSYS) => {
            match statat(directory, new, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => renameat(source, old, directory, new),
                Ok(_) => Err(Errno::EXIST),
                Err(error) => Err(error),
            }
        }
        renamed => renamed,
    }
}
