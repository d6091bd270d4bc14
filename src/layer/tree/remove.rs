//! Removal of a tree that anybody may have filled: of any depth and width,
//! with a bounded number of descriptors, following no link and entering no
//! mount point.

use super::PathText;
use crate::layer::steps;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, StatxAttributes, StatxFlags, chmodat,
    fchmod, openat, seek, statx, unlinkat,
};
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;

/// Directories kept open at a time. On the way back the rest are reached by
/// `..`, and compared with what they were on the way down.
const MAX_OPEN: usize = 32;
/// Bytes of one read of a directory, some 800 names.
const READ_BYTES: usize = 32 << 10;
/// Subdirectories noted before the first of them is removed.
const MAX_PENDING: usize = 1024;
/// How often a directory is read again that claims not to be empty though no
/// name was left in it; some filesystems lose their place while names go away.
const MAX_REREADS: u32 = 4;

/// A tree could not be removed; what is left of it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// A directory of it cannot be opened.
    #[error("cannot open {path} to empty it")]
    Open {
        /// Relative to the directory that the tree was removed from.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory of it cannot be read.
    #[error("cannot list {path}")]
    List {
        /// As above.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// A name of it cannot be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// As above.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something is mounted on a directory of it. What is mounted is not ours.
    #[error("{path} is a mount point")]
    MountPoint {
        /// As above.
        path: PathText,
    },
    /// Somebody moved a directory away while its content was being removed.
    #[error("{path} was moved while it was being removed")]
    Moved {
        /// As above.
        path: PathText,
    },
}

/// Removes `name`, one component, from the directory `parent`, with all that
/// is beneath it if it is a directory. A name that is not there is no error.
///
/// # Errors
/// [`RemoveError`]; nothing outside the tree has been touched then either.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), RemoveError> {
    steps::before("remove");
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Removal::begin(parent, name)?.run(),
        Err(source) => Err(RemoveError::Remove {
            path: name.into(),
            source: source.into(),
        }),
    }
}

/// A directory that is being emptied.
struct Level {
    name: Vec<u8>,
    identity: Identity,
    /// Open unless [`MAX_OPEN`] deeper ones are.
    directory: Option<OwnedFd>,
    /// Subdirectories that were met and are still to be removed.
    pending: Vec<Vec<u8>>,
    rereads: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    inode: u64,
}

struct Removal<'a> {
    parent: BorrowedFd<'a>,
    levels: Vec<Level>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl<'a> Removal<'a> {
    fn begin(parent: BorrowedFd<'a>, name: &[u8]) -> Result<Self, RemoveError> {
        let mut removal = Removal {
            parent,
            levels: Vec::new(),
            buffer: vec![MaybeUninit::uninit(); READ_BYTES],
        };
        removal.descend(name.to_vec())?;
        Ok(removal)
    }

    fn run(mut self) -> Result<(), RemoveError> {
        while let Some(level) = self.levels.last_mut() {
            match level.pending.pop() {
                Some(name) => self.descend(name)?,
                None => {
                    if self.unlink_files()? {
                        self.ascend()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn path_of(&self, name: &[u8]) -> PathText {
        let mut path = Vec::new();
        for level in &self.levels {
            path.extend_from_slice(&level.name);
            path.push(b'/');
            // What comes further down would not be shown.
            if path.len() > 2 * PathText::MAX_SHOWN {
                break;
            }
        }
        path.extend_from_slice(name);
        path.as_slice().into()
    }

    /// The innermost directory.
    fn directory(&self) -> BorrowedFd<'_> {
        self.levels
            .last()
            .and_then(|level| level.directory.as_ref())
            .map_or(self.parent, AsFd::as_fd)
    }

    /// Opens the subdirectory `name` of the innermost directory.
    fn descend(&mut self, name: Vec<u8>) -> Result<(), RemoveError> {
        let (directory, identity) = match self.open(&name) {
            Ok(opened) => opened,
            Err(OpenFault::Gone) => return Ok(()),
            Err(OpenFault::Mounted) => {
                return Err(RemoveError::MountPoint {
                    path: self.path_of(&name),
                });
            }
            Err(OpenFault::Io(source)) => {
                return Err(RemoveError::Open {
                    path: self.path_of(&name),
                    source: source.into(),
                });
            }
        };
        if let Some(far) = self.levels.len().checked_sub(MAX_OPEN) {
            self.levels[far].directory = None;
        }
        self.levels.push(Level {
            name,
            identity,
            directory: Some(directory),
            pending: Vec::new(),
            rereads: 0,
        });
        Ok(())
    }

    fn open(&self, name: &[u8]) -> Result<(OwnedFd, Identity), OpenFault> {
        let parent = self.directory();
        let directory = match open_directory(parent, name) {
            Err(Errno::ACCESS) => {
                // Without root the owner must first be let in. That it is a
                // directory and no link is what EACCES here says.
                chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
                open_directory(parent, name)?
            }
            opened => opened?,
        };
        let stat = statx(
            &directory,
            c"",
            AtFlags::EMPTY_PATH,
            StatxFlags::BASIC_STATS,
        )?;
        let is_mounted = if stat
            .stx_attributes_mask
            .contains(StatxAttributes::MOUNT_ROOT)
        {
            stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        } else {
            mount_id(parent)? != mount_id(directory.as_fd())?
        };
        if is_mounted {
            return Err(OpenFault::Mounted);
        }
        let mode = u32::from(stat.stx_mode);
        if mode & 0o700 != 0o700 && !rustix::process::geteuid().is_root() {
            fchmod(&directory, Mode::RWXU)?;
        }
        let identity = Identity {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
        };
        Ok((directory, identity))
    }

    /// Removes what is no directory from the innermost directory and notes
    /// what is one; true if nothing is left in it.
    fn unlink_files(&mut self) -> Result<bool, RemoveError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut pending = Vec::new();
        let result = self.scan(&mut buffer, &mut pending);
        self.buffer = buffer;
        let is_empty = pending.is_empty();
        if let Some(level) = self.levels.last_mut() {
            level.pending = pending;
        }
        result.map(|()| is_empty)
    }

    fn scan(
        &self,
        buffer: &mut [MaybeUninit<u8>],
        pending: &mut Vec<Vec<u8>>,
    ) -> Result<(), RemoveError> {
        let directory = self.directory();
        let mut entries = RawDir::new(directory, buffer);
        // Only whole reads are taken, for what is left of one would be lost.
        while !(entries.is_buffer_empty() && pending.len() >= MAX_PENDING) {
            let entry = match entries.next() {
                None => break,
                Some(Ok(entry)) => entry,
                Some(Err(source)) => {
                    return Err(RemoveError::List {
                        path: self.path_of(b""),
                        source: source.into(),
                    });
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                pending.push(name.to_bytes().to_vec());
                continue;
            }
            steps::before("unlink");
            match unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // A filesystem that does not tell types.
                Err(Errno::ISDIR) => pending.push(name.to_bytes().to_vec()),
                Err(source) => {
                    return Err(RemoveError::Remove {
                        path: self.path_of(name.to_bytes()),
                        source: source.into(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Removes the innermost directory, which is empty, and goes to the one
    /// that holds it.
    fn ascend(&mut self) -> Result<(), RemoveError> {
        self.reopen_parent()?;
        let Some(mut level) = self.levels.pop() else {
            return Ok(());
        };
        steps::before("rmdir");
        match unlinkat(self.directory(), &level.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY) if level.rereads < MAX_REREADS => {
                level.rereads += 1;
                let rewound = match &level.directory {
                    Some(directory) => seek(directory, SeekFrom::Start(0)).map(drop),
                    None => Ok(()),
                };
                self.levels.push(level);
                rewound.map_err(|source| RemoveError::List {
                    path: self.path_of(b""),
                    source: source.into(),
                })
            }
            Err(source) => Err(RemoveError::Remove {
                path: self.path_of(&level.name),
                source: source.into(),
            }),
        }
    }

    /// Makes sure that the directory around the innermost one is open.
    fn reopen_parent(&mut self) -> Result<(), RemoveError> {
        let [.., outer, inner] = self.levels.as_mut_slice() else {
            return Ok(());
        };
        let (None, Some(inner_directory)) = (&outer.directory, &inner.directory) else {
            return Ok(());
        };
        let reopened = open_directory(inner_directory.as_fd(), b"..").and_then(|directory| {
            let stat = statx(&directory, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
            let identity = Identity {
                device: (stat.stx_dev_major, stat.stx_dev_minor),
                inode: stat.stx_ino,
            };
            Ok((directory, identity))
        });
        let (directory, identity) = reopened.map_err(|source| RemoveError::Open {
            path: self.path_of(b".."),
            source: source.into(),
        })?;
        let outer_index = self.levels.len() - 2;
        if self.levels[outer_index].identity != identity {
            return Err(RemoveError::Moved {
                path: self.path_of(b""),
            });
        }
        self.levels[outer_index].directory = Some(directory);
        Ok(())
    }
}

enum OpenFault {
    Gone,
    Mounted,
    Io(Errno),
}

impl From<Errno> for OpenFault {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT => OpenFault::Gone,
            _ => OpenFault::Io(error),
        }
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// The mount that a descriptor is on, for kernels before 5.8, whose statx does
/// not tell mount points.
fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(path)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|value| value.trim().parse().ok())
        .ok_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mkdirat};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    fn open(path: &Path) -> OwnedFd {
        openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap()
    }

    fn remove(dir: &Path, name: &str) {
        remove_tree(open(dir).as_fd(), name.as_bytes()).unwrap();
        assert!(std::fs::symlink_metadata(dir.join(name)).is_err());
    }

    #[test]
    fn removes_files_links_and_what_is_missing_but_follows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&kept, tree.join("link")).unwrap();
        symlink(&kept, tree.join("a/b/link")).unwrap();
        std::fs::hard_link(kept.join("file"), tree.join("a/hard")).unwrap();
        symlink(&kept, dir.path().join("top")).unwrap();
        for name in ["tree", "top", "missing"] {
            remove(dir.path(), name);
        }
        assert_eq!(std::fs::read(kept.join("file")).unwrap(), b"x");
    }

    #[test]
    fn removes_more_names_than_one_read_returns() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        for number in 0..1500 {
            std::fs::create_dir(tree.join(format!("directory-{number}"))).unwrap();
            std::fs::write(tree.join(format!("file-{number}")), "").unwrap();
        }
        remove(dir.path(), "tree");
    }

    #[test]
    fn removes_what_is_deeper_than_any_path_can_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = open(dir.path());
        for _ in 0..1500 {
            mkdirat(&at, "deep", Mode::RWXU).unwrap();
            mkdirat(&at, "side", Mode::RWXU).unwrap();
            at = open_directory(at.as_fd(), b"deep").unwrap();
        }
        drop(at);
        remove(dir.path(), "deep");
    }

    #[test]
    fn without_root_it_lets_itself_into_closed_directories() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        crate::layer::tree::test_support::without_root(move || {
            for mode in [0o000, 0o200, 0o500, 0o400] {
                let tree = path.join("tree");
                std::fs::create_dir_all(tree.join("in")).unwrap();
                std::fs::write(tree.join("in/file"), "").unwrap();
                for directory in [tree.join("in"), tree] {
                    std::fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
                }
                remove(&path, "tree");
            }
        });
    }

    /// A bind mount is of the same filesystem, so that device numbers say nothing.
    #[test]
    fn what_is_mounted_inside_is_not_emptied() {
        crate::layer::tree::test_support::with_small_disk(|dir| {
            let kept = dir.join("kept");
            std::fs::create_dir(&kept).unwrap();
            std::fs::write(kept.join("file"), "kept").unwrap();
            let mounted = dir.join("tree/a/mounted");
            std::fs::create_dir_all(&mounted).unwrap();
            std::fs::create_dir(dir.join("tree/b")).unwrap();
            crate::layer::tree::test_support::bind(&kept, &mounted);
            let parent = open(dir);
            for (parent, name, path) in [
                (parent.as_fd(), "tree", "tree/a/mounted"),
                (open(&dir.join("tree/a")).as_fd(), "mounted", "mounted"),
            ] {
                let error = remove_tree(parent, name.as_bytes()).unwrap_err();
                assert!(
                    matches!(&error, RemoveError::MountPoint { path: at } if at.as_bytes() == path.as_bytes()),
                    "{error:?}"
                );
            }
            assert_eq!(std::fs::read(kept.join("file")).unwrap(), b"kept");
        });
    }

    #[test]
    fn knows_a_mount_point_also_on_old_kernels() {
        let root = open(Path::new("/"));
        let proc = open(Path::new("/proc"));
        let tmp = tempfile::tempdir_in("/proc/self/cwd").unwrap();
        assert_ne!(
            mount_id(root.as_fd()).unwrap(),
            mount_id(proc.as_fd()).unwrap()
        );
        let here = open(tmp.path());
        let above = open_directory(here.as_fd(), b"..").unwrap();
        assert_eq!(
            mount_id(here.as_fd()).unwrap(),
            mount_id(above.as_fd()).unwrap()
        );
        let removal = Removal {
            parent: root.as_fd(),
            levels: Vec::new(),
            buffer: Vec::new(),
        };
        assert!(matches!(removal.open(b"proc"), Err(OpenFault::Mounted)));
    }
}
