//! Whether files are still what they were when something was made of them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells one state of a file or directory from another, without reading it.
/// Links are followed, so that what Kubernetes swaps behind one is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(Option<(u64, u64, u64, i64, i64)>);

impl Stamp {
    /// As it is now; that it is not there is a state too.
    pub(super) fn of(path: &Path) -> Self {
        let status = std::fs::metadata(path).ok();
        Stamp(status.map(|status| {
            (
                status.dev(),
                status.ino(),
                status.size(),
                status.mtime(),
                status.mtime_nsec(),
            )
        }))
    }
}

/// What each of some files was.
pub(super) type Stamps = Vec<(PathBuf, Stamp)>;

/// Something that was made of files.
#[derive(Debug)]
pub(super) struct Stamped<T> {
    value: T,
    stamps: Stamps,
}

impl<T> Stamped<T> {
    /// `stamps` were taken before the files were read.
    pub(super) fn new(value: T, stamps: Stamps) -> Self {
        Stamped { value, stamps }
    }

    /// The value, unless one of the files changed.
    pub(super) fn if_unchanged(&self) -> Option<&T> {
        let mut stamps = self.stamps.iter();
        let unchanged = stamps.all(|(path, stamp)| Stamp::of(path) == *stamp);
        unchanged.then_some(&self.value)
    }
}
