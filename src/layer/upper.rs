//! A writable layer seen as a plain directory: how much it holds, what a crash of
//! the machine leaves in one of AUFS, and what overlayfs remembers of the branches
//! below. A pod fills it as it likes, so no link is followed and depth is bounded.

use super::tree::PathText;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawDir, fremovexattr, openat, statat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Directories deep that are looked at. A pod cannot make deeper ones by a path,
/// and what is deeper still is neither counted nor mended.
const MAX_DEPTH: usize = 512;
/// Bytes of one read of a directory, some 800 names.
const READ_BYTES: usize = 32 << 10;
/// What `st_blocks` counts, in bytes, whatever the filesystem's blocks: stat(2).
const BLOCK_BYTES: u64 = 512;

/// Begins the names that AUFS keeps to itself, and those of whiteouts:
/// fs/aufs/whout.h.
const WHITEOUT: &[u8] = b".wh.";
const PRIVATE: &[u8] = b".wh..wh.";
/// Directories in the root of a writable branch. The first has files that were
/// open when they were removed, the second one name for each file with several
/// names of which not all are in this branch.
const ORPHANS: &[u8] = b".wh..wh.orph";
const PSEUDO_LINKS: &[u8] = b".wh..wh.plnk";
/// Marks a directory as opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The file of which whiteouts are hard links.
const BASE: &[u8] = b".wh..wh.aufs";

/// Where overlayfs keeps, at the root of a writable layer, which directory the
/// uppermost branch was: `OVL_XATTR_ORIGIN` of fs/overlayfs/overlayfs.h.
const ORIGIN: &str = "trusted.overlay.origin";
/// The same for a mount with `userxattr`.
const USER_ORIGIN: &str = "user.overlay.origin";

/// What a writable layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holds {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, directories and the rest.
    pub inodes: u64,
}

/// Something in a writable layer could not be looked at or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct UpperError {
    action: &'static str,
    path: PathText,
    source: io::Error,
}

fn failed(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> UpperError {
    move |errno| UpperError {
        action,
        path: path.into(),
        source: errno.into(),
    }
}

/// A directory on the way down.
struct Level {
    fd: OwnedFd,
    path: Vec<u8>,
    /// Subdirectories still to come.
    directories: Vec<Vec<u8>>,
}

fn open(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Counts a writable layer, also while a pod changes it. A file with several
/// names counts once in all if all of them are in it.
pub fn count(upper: BorrowedFd<'_>) -> Result<Holds, UpperError> {
    // A fraction of a file for each of its names; the rest is cut at the end.
    let (mut bytes, mut inodes) = (0_f64, 0_f64);
    let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
    let root = open(upper, b".").map_err(failed("open", b"."))?;
    let mut levels = vec![Level {
        directories: read(&root, &mut buffer, &mut bytes, &mut inodes)
            .map_err(failed("read", b"."))?,
        fd: root,
        path: Vec::new(),
    }];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else {
            break;
        };
        let Some(name) = level.directories.pop() else {
            levels.pop();
            continue;
        };
        if depth > MAX_DEPTH {
            continue;
        }
        let path = super::index::join(&level.path, &name);
        let fd = match open(level.fd.as_fd(), &name) {
            Ok(fd) => fd,
            // The pod was faster.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(errno) => return Err(failed("open", &path)(errno)),
        };
        let directories =
            read(&fd, &mut buffer, &mut bytes, &mut inodes).map_err(failed("read", &path))?;
        levels.push(Level {
            fd,
            path,
            directories,
        });
    }
    Ok(Holds {
        bytes: bytes.round() as u64,
        // The directory itself is there without any change of the pod's.
        inodes: inodes.round() as u64,
    })
}

/// Counts what is in one directory; gives the directories in it.
fn read(
    fd: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
    bytes: &mut f64,
    inodes: &mut f64,
) -> Result<Vec<Vec<u8>>, Errno> {
    let mut directories = Vec::new();
    let mut entries = RawDir::new(fd, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let stat = match statat(fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let share = if is_directory {
            1.0
        } else {
            1.0 / (stat.st_nlink.max(1) as f64)
        };
        *bytes += (stat.st_blocks as u64 * BLOCK_BYTES) as f64 * share;
        *inodes += share;
        if is_directory {
            directories.push(name.to_vec());
        }
    }
    Ok(directories)
}

/// Puts a writable layer of AUFS right after the machine went down with the
/// union mounted. Otherwise such a union may answer with EIO, or show again what
/// was removed:
///
/// - a name that exists and is whited out beside it was being made or removed
///   when the power went; the name stays, for what is removed once too often
///   cannot be had back;
/// - temporary names of renames go;
/// - files that were removed while they were open go, and so do the names by
///   which AUFS keeps hard links together: they are for the union that is gone.
///
/// Gives the number of names that were removed.
pub fn put_right(upper: BorrowedFd<'_>) -> Result<u64, UpperError> {
    let mut removed = 0;
    for kept in [ORPHANS, PSEUDO_LINKS] {
        let fd = match open(upper, kept) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(failed("open", kept)(errno)),
        };
        for name in names(fd.as_fd()).map_err(failed("read", kept))? {
            let path = super::index::join(kept, &name);
            super::tree::remove_tree(fd.as_fd(), &name).map_err(|source| UpperError {
                action: "remove",
                path: path[..].into(),
                source: io::Error::other(source),
            })?;
            removed += 1;
        }
    }
    let root = open(upper, b".").map_err(failed("open", b"."))?;
    let mut levels = vec![mend(root, Vec::new(), &mut removed)?];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else {
            return Ok(removed);
        };
        let Some(name) = level.directories.pop() else {
            levels.pop();
            continue;
        };
        if depth > MAX_DEPTH {
            continue;
        }
        let path = super::index::join(&level.path, &name);
        let fd = open(level.fd.as_fd(), &name).map_err(failed("open", &path))?;
        levels.push(mend(fd, path, &mut removed)?);
    }
}

/// Lets overlayfs mount the layer on branches that are the same and were written
/// anew. With `index=on` it compares the directory by its inode and says ESTALE
/// for any other one. It notes the one that it finds when there is none.
pub fn forget_origin(upper: BorrowedFd<'_>, user_xattr: bool) -> Result<(), UpperError> {
    let name = if user_xattr { USER_ORIGIN } else { ORIGIN };
    match fremovexattr(upper, name) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(errno) => Err(failed("remove trusted.overlay.origin of", b".")(errno)),
    }
}

/// Puts one directory right.
fn mend(fd: OwnedFd, path: Vec<u8>, removed: &mut u64) -> Result<Level, UpperError> {
    let found = names(fd.as_fd()).map_err(failed("read", &path))?;
    let present: BTreeSet<&[u8]> = found.iter().map(Vec::as_slice).collect();
    let mut directories = Vec::new();
    for name in &found {
        let at = super::index::join(&path, name);
        let is_stale = match name.strip_prefix(PRIVATE) {
            // In the root these are of the branch, and what is in them was seen to.
            Some(_) if [ORPHANS, PSEUDO_LINKS, BASE, OPAQUE].contains(&name.as_slice()) => continue,
            // `.wh..wh.<name>.<4 hex digits>`
            Some(_) => true,
            None => name
                .strip_prefix(WHITEOUT)
                .is_some_and(|hidden| present.contains(hidden)),
        };
        if is_stale {
            super::tree::remove_tree(fd.as_fd(), name).map_err(|source| UpperError {
                action: "remove",
                path: at[..].into(),
                source: io::Error::other(source),
            })?;
            *removed += 1;
            continue;
        }
        let stat = statat(&fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("look at", &at))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            directories.push(name.clone());
        }
    }
    Ok(Level {
        fd,
        path,
        directories,
    })
}

fn names(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(fd)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            found.push(name);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::path::Path;

    fn fd(path: &Path) -> File {
        File::open(path).unwrap()
    }

    #[test]
    fn a_file_counts_once_whatever_its_names() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(count(fd(dir.path()).as_fd()).unwrap(), Holds::default());
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), vec![7; 1 << 20]).unwrap();
        let one = count(fd(dir.path()).as_fd()).unwrap();
        assert_eq!(one.inodes, 3);
        assert!(one.bytes >= 1 << 20, "{one:?}");
        for name in ["x", "a/y", "a/b/z"] {
            fs::hard_link(dir.path().join("a/b/file"), dir.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let all = count(fd(dir.path()).as_fd()).unwrap();
        assert_eq!(all.inodes, 4);
        // A directory may have grown by a block.
        assert!(all.bytes < one.bytes + (64 << 10), "{one:?} {all:?}");
    }

    #[test]
    fn what_a_crash_left_goes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path();
        for name in ["d/e", ".wh..wh.orph/12.dir", ".wh..wh.plnk"] {
            fs::create_dir_all(upper.join(name)).unwrap();
        }
        let kept = [
            ".wh..wh.aufs",
            ".wh.removed",
            "both",
            "d/.wh..wh..opq",
            "d/.wh.gone",
            "d/e/file",
            "d/e/.wh.x",
        ];
        let stale = [
            ".wh.both",
            ".wh..wh.orph/13",
            ".wh..wh.orph/12.dir/inside",
            ".wh..wh.plnk/4.5",
            ".wh..wh.renamed.0a1b",
            "d/e/.wh.file",
            "d/e/.wh..wh.n.ffff",
        ];
        for name in kept.iter().chain(&stale) {
            fs::write(upper.join(name), name).unwrap();
        }
        assert_eq!(put_right(fd(upper).as_fd()).unwrap(), 7);
        for name in kept {
            assert_eq!(fs::read(upper.join(name)).unwrap(), name.as_bytes());
        }
        for name in stale {
            assert!(!upper.join(name).exists(), "{name}");
        }
        assert!(upper.join(".wh..wh.orph").is_dir() && upper.join(".wh..wh.plnk").is_dir());
        assert_eq!(put_right(fd(upper).as_fd()).unwrap(), 0);
    }
}
