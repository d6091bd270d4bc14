//! The files of a local source, by name: below a directory or in a tar.
//!
//! What is opened is a regular file, or an error: opening a fifo would wait for
//! its writer, and opening a device can do things.

use super::error::SourceError;
use super::manifest::MAX_DOCUMENT_BYTES;
use super::printable;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

pub(super) mod tar;

use tar::TarMembers;

/// How often a lookup is repeated that a concurrent rename disturbed.
const MAX_RESOLVE_TRIES: usize = 32;

/// A path and how far it may lead.
#[derive(Debug)]
pub(super) struct Location {
    path: PathBuf,
    resolve: Resolve,
}

#[derive(Debug)]
enum Resolve {
    /// As the kernel follows any path.
    Anywhere,
    /// `relative` below the directory `root`, and never out of it.
    InRoot { root: OwnedFd, relative: PathBuf },
}

impl Location {
    /// `path` wherever it leads.
    pub(super) fn anywhere(path: &Path) -> Self {
        Location {
            path: path.to_owned(),
            resolve: Resolve::Anywhere,
        }
    }

    /// `path` inside `root`; see [`super::open_in_root`].
    pub(super) fn in_root(root: &Path, path: &Path) -> Result<Self, SourceError> {
        let relative = if path.is_absolute() {
            path.strip_prefix(root)
                .map_err(|_| SourceError::OutsideRoot {
                    path: path.to_owned(),
                    root: root.to_owned(),
                })?
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(rustix::fs::CWD, root, flags, Mode::empty())
            .map_err(|source| open_error(root, source))?;
        Ok(Location {
            path: root.join(relative),
            resolve: Resolve::InRoot {
                root: directory,
                relative: relative.to_owned(),
            },
        })
    }

    /// Opens `name` below the location, or the location itself if it is empty.
    fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        match &self.resolve {
            Resolve::Anywhere => openat(
                rustix::fs::CWD,
                below(&self.path, name),
                flags,
                Mode::empty(),
            ),
            Resolve::InRoot { root, relative } => open_in_root(root, &below(relative, name), flags),
        }
    }

    /// Opens a regular file and gives its size in bytes; none if there is
    /// nothing of that name.
    fn open_file(&self, name: &str) -> Result<Option<(File, u64)>, SourceError> {
        let shown = || below(&self.path, name);
        let missing = |errno| match errno {
            Errno::NOENT => Ok(None),
            other => Err(open_error(&shown(), other)),
        };
        // A look first, which has no effect on whatever it is. What is opened
        // then is looked at again, for the name may mean another file by now.
        let look = match self.open(name, OFlags::PATH) {
            Ok(look) => look,
            Err(errno) => return missing(errno),
        };
        self.regular_size(&look, &shown)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match self.open(name, flags) {
            Ok(file) => file,
            Err(errno) => return missing(errno),
        };
        let size = self.regular_size(&file, &shown)?;
        Ok(Some((File::from(file), size)))
    }

    fn regular_size(
        &self,
        file: impl AsFd,
        shown: &dyn Fn() -> PathBuf,
    ) -> Result<u64, SourceError> {
        let status = fstat(file).map_err(|source| open_error(&shown(), source))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(SourceError::NotAFile { path: shown() });
        }
        Ok(u64::try_from(status.st_size).unwrap_or(0))
    }
}

fn open_error(path: &Path, errno: Errno) -> SourceError {
    SourceError::Open {
        path: path.to_owned(),
        source: errno.into(),
    }
}

/// `path/name`, or `path` where there is no name: joining an empty name would
/// add a slash.
fn below(path: &Path, name: &str) -> PathBuf {
    if name.is_empty() {
        path.to_owned()
    } else {
        path.join(name)
    }
}

fn open_in_root(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_RESOLVE_TRIES {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS) => return open_without_links(root, path, flags),
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// For kernels before 5.6: component by component, with no link and no `..`.
fn open_without_links(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(Errno::XDEV);
            }
        }
    }
    let Some((last, directories)) = names.split_last() else {
        return openat(root, ".", flags, Mode::empty());
    };
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory: Option<OwnedFd> = None;
    for name in directories {
        let base = directory.as_ref().unwrap_or(root);
        directory = Some(openat(base, *name, step, Mode::empty())?);
    }
    let base = directory.as_ref().unwrap_or(root);
    openat(base, *last, flags | OFlags::NOFOLLOW, Mode::empty())
}

/// The files of a source.
#[derive(Debug)]
pub(super) enum Files {
    /// Below a directory.
    Directory(Location),
    /// Members of a tar.
    Archive {
        /// Where the tar is, for errors.
        path: PathBuf,
        /// What is in it.
        members: TarMembers,
    },
}

/// An open file of a source.
pub(super) struct Opened {
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its bytes.
    pub(super) reader: Box<dyn Read + Send>,
}

impl Files {
    /// The files below a directory.
    pub(super) fn directory(location: Location) -> Result<Self, SourceError> {
        match location.open("", OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => Ok(Files::Directory(location)),
            Err(Errno::NOTDIR) => Err(SourceError::NotADirectory {
                path: location.path,
            }),
            Err(errno) => Err(open_error(&location.path, errno)),
        }
    }

    /// The members of a tar, which are listed now.
    pub(super) fn archive(location: Location) -> Result<Self, SourceError> {
        let Some((file, size)) = location.open_file("")? else {
            return Err(open_error(&location.path, Errno::NOENT));
        };
        match TarMembers::list(file, size) {
            Ok(members) => Ok(Files::Archive {
                path: location.path,
                members,
            }),
            Err(source) => Err(SourceError::Tar {
                path: location.path,
                source,
            }),
        }
    }

    /// Where the source is, for errors.
    pub(super) fn path(&self) -> &Path {
        match self {
            Files::Directory(location) => &location.path,
            Files::Archive { path, .. } => path,
        }
    }

    /// Opens a file; none if there is no such. `name` is relative and has no `..`.
    pub(super) fn open(&self, name: &str) -> Result<Option<Opened>, SourceError> {
        match self {
            Files::Directory(location) => {
                Ok(location.open_file(name)?.map(|(file, size)| Opened {
                    size,
                    reader: Box::new(file),
                }))
            }
            Files::Archive { path, members } => {
                let section = members.open(name).map_err(|source| SourceError::Tar {
                    path: path.clone(),
                    source,
                })?;
                Ok(section.map(|section| Opened {
                    size: section.size(),
                    reader: Box::new(section),
                }))
            }
        }
    }

    /// Reads a document; none if there is no such file.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let Some(opened) = self.open(name)? else {
            return Ok(None);
        };
        if opened.size > MAX_DOCUMENT_BYTES {
            return Err(SourceError::FileSize {
                path: self.path().join(printable(name)),
                size: opened.size,
            });
        }
        // A file that grows meanwhile is not followed.
        let mut bytes = Vec::new();
        opened
            .reader
            .take(opened.size)
            .read_to_end(&mut bytes)
            .map_err(|source| self.read_error(name, source))?;
        Ok(Some(bytes))
    }

    /// The error of reading `name`.
    pub(super) fn read_error(&self, name: &str, source: std::io::Error) -> SourceError {
        SourceError::Read {
            path: self.path().join(printable(name)),
            source,
        }
    }
}

/// A file in memory, for checks that read many small ones.
#[cfg(any(test, feature = "testing"))]
#[expect(clippy::expect_used, reason = "without a file nothing is checked")]
pub(super) fn memory(bytes: &[u8]) -> File {
    use std::os::unix::fs::FileExt;
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("file", flags).map(File::from);
    let file = file.expect("make a file in memory");
    file.write_all_at(bytes, 0).expect("write a file in memory");
    file
}

/// The archive that these bytes are.
#[cfg(any(test, feature = "testing"))]
pub(super) fn archive_of(bytes: &[u8]) -> Result<Files, SourceError> {
    let path = PathBuf::from("archive.tar");
    match TarMembers::list(memory(bytes), bytes.len() as u64) {
        Ok(members) => Ok(Files::Archive { path, members }),
        Err(source) => Err(SourceError::Tar { path, source }),
    }
}

#[cfg(test)]
mod tests;
