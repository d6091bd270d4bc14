//! Movement below one directory, and nowhere else.
//!
//! Everything that touches a layer's directory goes through a [`Cursor`]: it
//! holds a descriptor of the directory that it is in and of those above it,
//! opens one component at a time and never follows a link. So a path that is
//! used again costs no look-up, and nothing that an archive puts on disk can
//! lead out of the directory.

pub(super) mod metadata;
mod remove;
#[cfg(test)]
pub(super) mod test_support;

pub use metadata::{MetadataError, Ownership};
pub use remove::{RemoveError, remove_tree};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fmt;
use std::io;

/// Directories that a cursor keeps open besides its root. Trees are rarely
/// deeper than 20; what is deeper is opened again on the way back, so that a
/// hostile tree cannot use up the process's descriptors.
const MAX_HELD: usize = 64;

/// What a directory is opened with on the way to something beneath it. As it
/// gives no right to read, the cursor passes directories that it may not list.
const DESCEND: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A path of a tree in an error message: control characters and bytes that are
/// not UTF-8 are escaped, and what is very long is cut.
#[derive(Clone, PartialEq, Eq)]
pub struct PathText(Vec<u8>);

impl PathText {
    /// Bytes that are shown, escapes included: error texts end up in Kubernetes
    /// events of 1 KiB.
    const MAX_SHOWN: usize = 256;

    /// The path, unescaped.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for PathText {
    fn from(path: &[u8]) -> Self {
        PathText(path.to_vec())
    }
}

impl fmt::Display for PathText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("/");
        }
        let mut text = String::new();
        let mut shown = 0;
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() || character == '\\' {
                    text.extend(character.escape_default());
                } else {
                    text.push(character);
                }
                if text.len() > Self::MAX_SHOWN {
                    return write!(formatter, "{}…", &text[..shown]);
                }
                shown = text.len();
            }
            for byte in chunk.invalid() {
                text.push_str(&format!("\\x{byte:02x}"));
                if text.len() > Self::MAX_SHOWN {
                    return write!(formatter, "{}…", &text[..shown]);
                }
                shown = text.len();
            }
        }
        formatter.write_str(&text)
    }
}

impl fmt::Debug for PathText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

/// The system call's error at the end of an error's chain. By the chain rather
/// than by variant, so that no variant with a system call in it is forgotten.
pub(crate) fn errno_in_chain(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let mut link = Some(error);
    while let Some(error) = link {
        // One that only carries another error has no number of its own.
        if let Some(errno) = error.downcast_ref().and_then(Errno::from_io_error) {
            return Some(errno);
        }
        link = error.source();
    }
    None
}

/// A directory of the tree could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter directory {path}")]
pub struct EnterError {
    /// The directory, relative to the root.
    pub path: PathText,
    /// `ENOENT`, `ENOTDIR` (also for a symbolic link) or worse.
    pub source: io::Error,
}

/// A place in a tree: a directory beneath a root, reached without links.
///
/// The descriptors it holds are of directories, not of names: whoever removes
/// or renames a directory that the cursor is in calls [`Cursor::leave`] first.
#[derive(Debug)]
pub struct Cursor {
    root: OwnedFd,
    /// Where it is; empty at the root.
    path: Vec<u8>,
    /// Length of `path` after each of its components.
    ends: Vec<usize>,
    /// Descriptors of the last `held.len()` components. Never empty while
    /// `ends` is not, so that the last one is always where the cursor is.
    held: VecDeque<OwnedFd>,
}

impl Cursor {
    /// A cursor at `root`, which may be an `O_PATH` descriptor.
    pub fn new(root: OwnedFd) -> Self {
        Cursor {
            root,
            path: Vec::new(),
            ends: Vec::new(),
            held: VecDeque::new(),
        }
    }

    /// The path of the directory it is in, relative to the root.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Components between the root and the directory it is in.
    pub fn depth(&self) -> usize {
        self.ends.len()
    }

    /// The directory it is in: good as the first argument of the `*at` calls,
    /// not for reading.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.held.back().unwrap_or(&self.root).as_fd()
    }

    /// The root that it began with.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Goes to the directory `path`, by way of what it has in common with the
    /// present place.
    ///
    /// # Errors
    /// [`EnterError`] if a component is missing or no directory; the cursor is
    /// then in the last directory that could be entered.
    pub fn enter(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, EnterError> {
        self.enter_raw(path).map_err(|source| EnterError {
            path: path.into(),
            source: source.into(),
        })?;
        Ok(self.directory())
    }

    fn enter_raw(&mut self, path: &[u8]) -> Result<(), Errno> {
        let rest = self.ascend_to_common(path)?;
        for name in path[rest..].split(|byte| *byte == b'/') {
            if !name.is_empty() {
                self.descend(name)?;
            }
        }
        Ok(())
    }

    /// Goes up until what is left is the beginning of `path`; says at which
    /// byte of `path` the rest begins.
    pub(super) fn ascend_to_common(&mut self, path: &[u8]) -> Result<usize, Errno> {
        let equal = self
            .path
            .iter()
            .zip(path)
            .take_while(|(a, b)| a == b)
            .count();
        let is_boundary =
            |end: usize| end <= equal && path.get(end).is_none_or(|byte| *byte == b'/');
        let mut depth = self.ends.partition_point(|end| *end <= equal);
        while depth > 0 && !is_boundary(self.ends[depth - 1]) {
            depth -= 1;
        }
        self.ascend_to(depth)?;
        Ok(match self.path.len() {
            0 => 0,
            length => (length + 1).min(path.len()),
        })
    }

    /// Enters `name`, one component, which must be a directory; `ENOTDIR` is
    /// also a symbolic link's answer.
    pub(super) fn descend(&mut self, name: &[u8]) -> Result<(), Errno> {
        debug_assert!(!name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..");
        let directory = match openat(self.directory(), name, DESCEND, Mode::empty()) {
            Ok(directory) => directory,
            // Some filesystems answer so for a symbolic link.
            Err(Errno::LOOP) => return Err(Errno::NOTDIR),
            Err(error) => return Err(error),
        };
        self.hold(directory);
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self.ends.push(self.path.len());
        Ok(())
    }

    /// Goes up until only the first `depth` components are left.
    pub(super) fn ascend_to(&mut self, depth: usize) -> Result<(), Errno> {
        if depth >= self.ends.len() {
            return Ok(());
        }
        let closed = self.ends.len() - depth;
        self.ends.truncate(depth);
        self.path.truncate(self.ends.last().copied().unwrap_or(0));
        let held = self.held.len().saturating_sub(closed);
        self.held.truncate(held);
        if self.held.is_empty() && depth > 0 {
            self.reopen().inspect_err(|_| self.reset())?;
        }
        Ok(())
    }

    /// Goes up so far that it is neither in `path` nor beneath it.
    ///
    /// # Errors
    /// [`EnterError`] if a directory that was closed long ago cannot be opened again.
    pub fn leave(&mut self, path: &[u8]) -> Result<(), EnterError> {
        if self.path == path || super::index::is_below(&self.path, path) {
            let depth = self.ends.partition_point(|end| *end < path.len());
            self.ascend_to(depth).map_err(|source| EnterError {
                path: path.into(),
                source: source.into(),
            })?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.path.clear();
        self.ends.clear();
        self.held.clear();
    }

    fn hold(&mut self, directory: OwnedFd) {
        if self.held.len() == MAX_HELD {
            self.held.pop_front();
        }
        self.held.push_back(directory);
    }

    /// Opens the components of `path` again, whose descriptors were given up.
    fn reopen(&mut self) -> Result<(), Errno> {
        let mut start = 0;
        for index in 0..self.ends.len() {
            let end = self.ends[index];
            let directory = openat(
                self.directory(),
                &self.path[start..end],
                DESCEND,
                Mode::empty(),
            )?;
            self.hold(directory);
            start = end + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, fstat, mkdirat, unlinkat};
    use std::os::unix::fs::symlink;

    fn open(path: &std::path::Path) -> OwnedFd {
        openat(CWD, path, DESCEND, Mode::empty()).unwrap()
    }

    fn inode(path: &std::path::Path) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&std::fs::symlink_metadata(path).unwrap())
    }

    #[test]
    fn enters_by_common_prefix_and_only_whole_components() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["a/b/c", "a/bc/d", "ab"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let mut cursor = Cursor::new(open(root.path()));
        for dir in ["a/b/c", "a/bc/d", "a/b", "ab", "a", "", "a/b/c", "a/b"] {
            let directory = cursor.enter(dir.as_bytes()).unwrap();
            assert_eq!(
                fstat(directory).unwrap().st_ino,
                inode(&root.path().join(dir)),
                "{dir}"
            );
            assert_eq!(cursor.path(), dir.as_bytes());
        }
    }

    #[test]
    fn a_link_on_the_way_is_an_error_and_the_cursor_stays_usable() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/real")).unwrap();
        symlink("/", root.path().join("a/link")).unwrap();
        let mut cursor = Cursor::new(open(root.path()));
        for path in ["a/link", "a/link/etc", "a/none/x"] {
            cursor.enter(path.as_bytes()).unwrap_err();
            assert_eq!(cursor.path(), b"a");
        }
        cursor.enter(b"a/real").unwrap();
    }

    #[test]
    fn deeper_than_the_held_descriptors_it_still_finds_every_level() {
        let root = tempfile::tempdir().unwrap();
        let mut cursor = Cursor::new(open(root.path()));
        let mut inodes = vec![inode(root.path())];
        for _ in 0..300 {
            mkdirat(cursor.directory(), "d", Mode::RWXU).unwrap();
            cursor.descend(b"d").unwrap();
            inodes.push(fstat(cursor.directory()).unwrap().st_ino);
        }
        assert_eq!(cursor.held.len(), MAX_HELD);
        for depth in (0..300).rev().chain([0]) {
            cursor.ascend_to(depth).unwrap();
            assert_eq!(fstat(cursor.directory()).unwrap().st_ino, inodes[depth]);
        }
        cursor.enter(vec!["d"; 300].join("/").as_bytes()).unwrap();
        cursor.ascend_to(3).unwrap();
        assert_eq!(fstat(cursor.directory()).unwrap().st_ino, inodes[3]);
    }

    #[test]
    fn leaves_a_directory_that_is_to_be_removed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b/c")).unwrap();
        std::fs::create_dir_all(root.path().join("a/bb")).unwrap();
        let mut cursor = Cursor::new(open(root.path()));
        cursor.enter(b"a/bb").unwrap();
        cursor.leave(b"a/b").unwrap();
        assert_eq!(cursor.path(), b"a/bb");
        for gone in ["a/b/c", "a/b"] {
            cursor.enter(b"a/b/c").unwrap_or_else(|_| panic!());
            cursor.leave(gone.as_bytes()).unwrap();
            assert_eq!(cursor.path(), super::super::index::parent(gone.as_bytes()));
        }
        cursor.enter(b"a/b/c").unwrap();
        cursor.leave(b"a/b").unwrap();
        let parent = cursor.enter(b"a/b").unwrap();
        unlinkat(parent, "c", rustix::fs::AtFlags::REMOVEDIR).unwrap();
        cursor.enter(b"a/b/c").unwrap_err();
    }

    #[test]
    fn text_of_a_path_is_harmless() {
        let text = PathText::from(&b"a\n\x1b[0m\xff\\/\xc3\xa9"[..]).to_string();
        assert_eq!(text, "a\\n\\u{1b}[0m\\xff\\\\/\u{e9}");
        assert_eq!(PathText::from(&b""[..]).to_string(), "/");
        let long = PathText::from(&[b'x'; 5000][..]).to_string();
        assert!(long.ends_with('…') && long.len() < 300);
        for byte in [0x1b, 0xff, b'\\'] {
            let long = PathText::from(&[byte; 5000][..]).to_string();
            assert!(long.ends_with('…') && long.len() < 300, "{long}");
        }
    }
}
