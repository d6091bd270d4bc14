//! The last step of a layer, and of its edits: directories get their metadata.

use crate::layer::index::{self, Attrs};
use crate::layer::tree::metadata::{self, Inode, Reader};
use crate::layer::tree::{Cursor, EnterError, MetadataError, Ownership, PathText, errno_in_chain};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::io;

/// A directory could not be given its metadata.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// The list of directories could not be read.
    #[error("cannot read the layer's directories")]
    List {
        /// The list's error.
        source: io::Error,
    },
    /// The way to it.
    #[error("cannot reach directory {path}")]
    Enter {
        /// The directory.
        path: PathText,
        /// Why.
        source: EnterError,
    },
    /// open(2) or stat(2).
    #[error("cannot open directory {path}")]
    Open {
        /// The directory.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// Owner, mode, extended attributes or times.
    #[error("cannot set metadata of directory {path}")]
    Metadata {
        /// The directory.
        path: PathText,
        /// Why.
        source: MetadataError,
    },
}

impl FinishError {
    /// Whether the filesystem or a quota on it is full.
    pub fn is_out_of_space(&self) -> bool {
        let errno = errno_in_chain(self);
        matches!(errno, Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// Whether the filesystem is read-only, as it becomes after disk errors.
    pub fn is_read_only(&self) -> bool {
        errno_in_chain(self) == Some(Errno::ROFS)
    }
}

/// Gives the directories `dirs` beneath `root`, and `root` itself as the empty
/// path, their metadata; they are without any. Nothing may be made or removed in
/// them afterwards.
///
/// In the order of an index a directory is finished after all that is beneath
/// it, so that also a caller without root passes a directory before it is
/// closed to it. Any other order is as good for root.
///
/// # Errors
/// [`FinishError`] at the first directory that fails, the rest untouched.
pub fn finish_directories(
    root: BorrowedFd<'_>,
    dirs: impl Iterator<Item = Result<(Vec<u8>, Attrs), io::Error>>,
    ownership: Ownership,
) -> Result<(), FinishError> {
    finish_all(root, dirs, ownership, None)
}

/// [`finish_directories`] for those that were finished before, or were made in
/// one that was: what they have and `dirs` does not say is taken from them.
/// `fresh` is a directory on the same filesystem without any metadata.
///
/// # Errors
/// As [`finish_directories`].
pub fn refinish_directories(
    root: BorrowedFd<'_>,
    fresh: BorrowedFd<'_>,
    dirs: impl Iterator<Item = Result<(Vec<u8>, Attrs), io::Error>>,
    ownership: Ownership,
) -> Result<(), FinishError> {
    let reader = Reader::new(fresh).map_err(|source| FinishError::Metadata {
        path: PathText::from(&b""[..]),
        source,
    })?;
    finish_all(root, dirs, ownership, Some(reader))
}

fn finish_all(
    root: BorrowedFd<'_>,
    dirs: impl Iterator<Item = Result<(Vec<u8>, Attrs), io::Error>>,
    ownership: Ownership,
    mut found: Option<Reader>,
) -> Result<(), FinishError> {
    let root = fcntl_dupfd_cloexec(root, 0).map_err(|source| FinishError::Open {
        path: PathText::from(&b""[..]),
        source: source.into(),
    })?;
    let mut cursor = Cursor::new(root);
    // Directories around the present one: not more than a path is deep.
    let mut open: Vec<(Vec<u8>, Attrs)> = Vec::new();
    for directory in dirs {
        let (path, attrs) = directory.map_err(|source| FinishError::List { source })?;
        while let Some((done, attrs)) = open.pop_if(|(outer, _)| !index::is_below(&path, outer)) {
            finish(&mut cursor, &done, attrs, ownership, &mut found)?;
        }
        open.push((path, attrs));
    }
    while let Some((done, attrs)) = open.pop() {
        finish(&mut cursor, &done, attrs, ownership, &mut found)?;
    }
    Ok(())
}

fn finish(
    cursor: &mut Cursor,
    path: &[u8],
    mut attrs: Attrs,
    ownership: Ownership,
    found: &mut Option<Reader>,
) -> Result<(), FinishError> {
    let parent = cursor
        .enter(index::parent(path))
        .map_err(|source| FinishError::Enter {
            path: path.into(),
            source,
        })?;
    let name = match index::name(path) {
        b"" => b".",
        name => name,
    };
    let opened = openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .and_then(|directory| Ok((fstat(&directory)?, directory)));
    let (stat, directory) = opened.map_err(|source| FinishError::Open {
        path: path.into(),
        source: source.into(),
    })?;
    metadata::reduce(&mut attrs, FileType::Directory, ownership);
    let inode = Inode::Open(directory.as_fd());
    found
        .as_mut()
        .map_or(Ok(()), |found| {
            found.remove_others(inode, &stat, &attrs, ownership)
        })
        .and_then(|()| metadata::set(inode, &stat, &attrs, ownership))
        .map_err(|source| FinishError::Metadata {
            path: path.into(),
            source,
        })
}
