//! What the branches below a writable layer show at a path, asked of their
//! directories by the rules of the union filesystem that they were made for.

use super::{ChangesError, is_opaque, names_in, read_error};
use crate::layer::apply::Format;
use crate::layer::index::{join, name, parent};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// The read-only branches of a union.
#[derive(Debug)]
pub struct LowerBranches {
    /// Uppermost first.
    branches: Vec<OwnedFd>,
    format: Format,
}

/// What one branch has at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    Nothing,
    Directory,
    Other,
    Whiteout,
}

impl LowerBranches {
    /// Opens the branches, uppermost first.
    ///
    /// # Errors
    /// What `open(2)` says of a branch.
    pub fn open(branches: &[PathBuf], format: Format) -> io::Result<Self> {
        let branches = branches
            .iter()
            .map(|path| std::fs::File::open(path).map(OwnedFd::from))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(LowerBranches { branches, format })
    }

    /// Whether the branches show anything at `path`.
    ///
    /// # Errors
    /// [`ChangesError::Read`].
    pub fn has(&self, path: &[u8]) -> Result<bool, ChangesError> {
        let directories = self.directories(parent(path))?;
        for branch in directories {
            match self.at(branch, path)? {
                Has::Nothing => {}
                Has::Whiteout => return Ok(false),
                Has::Directory | Has::Other => return Ok(true),
            }
        }
        Ok(false)
    }

    /// The names that the branches show in the directory `path`.
    ///
    /// # Errors
    /// [`ChangesError::Read`].
    pub fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, ChangesError> {
        let mut candidates = BTreeSet::new();
        for branch in self.directories(path)? {
            if let Some(directory) = self.open_directory(branch, path)? {
                candidates.extend(names_in(directory.as_fd()).map_err(read_error(path))?);
            }
        }
        let mut shown = Vec::new();
        for candidate in candidates {
            let is_marker = self.format == Format::Aufs && candidate.starts_with(b".wh.");
            if !is_marker && self.has(&join(path, &candidate))? {
                shown.push(candidate);
            }
        }
        Ok(shown)
    }

    /// The branches whose directory `path` takes part in the union, uppermost first.
    fn directories(&self, path: &[u8]) -> Result<Vec<usize>, ChangesError> {
        let mut branches: Vec<usize> = (0..self.branches.len()).collect();
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| at)
            .chain((!path.is_empty()).then_some(path.len()));
        for end in ends {
            let path = &path[..end];
            let mut next = Vec::new();
            for branch in branches {
                match self.at(branch, path)? {
                    Has::Nothing => {}
                    Has::Whiteout => break,
                    Has::Other if next.is_empty() => return Ok(Vec::new()),
                    // AUFS looks on below what is no directory; overlay does not.
                    Has::Other if self.format == Format::Aufs => {}
                    Has::Other => break,
                    Has::Directory => {
                        next.push(branch);
                        if self.format != Format::Aufs
                            && let Some(fd) = self.open_directory(branch, path)?
                            && is_opaque(fd.as_fd(), self.format).map_err(read_error(path))?
                        {
                            break;
                        }
                    }
                }
            }
            branches = next;
        }
        Ok(branches)
    }

    fn at(&self, branch: usize, path: &[u8]) -> Result<Has, ChangesError> {
        let Some(directory) = self.open_directory(branch, parent(path))? else {
            return Ok(Has::Nothing);
        };
        let stat = |name: &[u8]| match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(read_error(path)(errno)),
        };
        let name = name(path);
        if self.format == Format::Aufs && stat(&[b".wh.", name].concat())?.is_some() {
            return Ok(Has::Whiteout);
        }
        Ok(match stat(name)? {
            None => Has::Nothing,
            Some(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Has::Directory,
                FileType::CharacterDevice if stat.st_rdev == 0 && self.format != Format::Aufs => {
                    Has::Whiteout
                }
                _ => Has::Other,
            },
        })
    }

    fn open_directory(&self, branch: usize, path: &[u8]) -> Result<Option<OwnedFd>, ChangesError> {
        let path_or_root = if path.is_empty() { &b"."[..] } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let root = &self.branches[branch];
        match openat2(root, path_or_root, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(read_error(path)(errno)),
        }
    }
}
