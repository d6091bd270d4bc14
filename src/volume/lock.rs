//! One operation per volume at a time, in this process and in any other that
//! uses the store.

use super::{VolumeError, record};
use crate::chain::Chain;
use crate::layer::steps;
use crate::layer::store::{StoreError, remove_directory};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Held during an operation; released on drop.
#[derive(Debug)]
pub struct VolumeLock {
    file: File,
    path: PathBuf,
}

impl VolumeLock {
    /// Waits for the volume whose directory is `dir`. The lock file lies beside
    /// the directory, because the directory comes and goes under the lock.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.with_extension("lock");
        loop {
            let file = open(&path).map_err(StoreError::io("open", &path))?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .map_err(io::Error::from)
                .map_err(StoreError::io("lock", &path))?;
            // Whoever held it last may have removed the file meanwhile.
            let ours = file.metadata().map_err(StoreError::io("read", &path))?;
            if std::fs::metadata(&path).is_ok_and(|found| found.ino() == ours.ino()) {
                return Ok(VolumeLock { file, path });
            }
        }
    }

    /// As [`VolumeLock::take`], but none where somebody works on the volume.
    pub(super) fn try_take(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.with_extension("lock");
        let file = open(&path).map_err(StoreError::io("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(StoreError::io("lock", &path)(error.into())),
        }
        let ours = file.metadata().map_err(StoreError::io("read", &path))?;
        let is_named = std::fs::metadata(&path).is_ok_and(|found| found.ino() == ours.ino());
        Ok(is_named.then_some(VolumeLock { file, path }))
    }

    /// Ends an operation: where nothing is left of the volume, neither is its
    /// lock file. The first error is the one that counts.
    pub(super) fn end<T>(
        self,
        dir: &Path,
        result: Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        if dir.exists() {
            return result;
        }
        match (self.remove().map_err(VolumeError::Store), result) {
            (Ok(()), result) => result,
            (Err(error), Ok(_)) => Err(error),
            (Err(error), Err(first)) => {
                tracing::warn!(error = %Chain(&error), "a lock file stays until the next start");
                Err(first)
            }
        }
    }

    /// Releases the lock of a volume that is gone, and removes its file.
    pub fn remove(self) -> Result<(), StoreError> {
        steps::before("remove a volume's lock");
        let result = std::fs::remove_file(&self.path).map_err(StoreError::io("remove", &self.path));
        drop(self.file);
        result
    }
}

fn open(path: &Path) -> io::Result<File> {
    steps::before("make a volume's lock");
    let fd = rustix::fs::open(
        path,
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )?;
    Ok(fd.into())
}

/// Removes what a process that was killed left of volumes without a record: a
/// lock file, and perhaps a directory.
pub(super) fn remove_idle(volumes: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(volumes).map_err(StoreError::io("read", volumes))? {
        let dir = entry
            .map_err(StoreError::io("read", volumes))?
            .path()
            .with_extension("");
        if record::exists(&dir) {
            continue;
        }
        if let Some(lock) = VolumeLock::try_take(&dir)? {
            // Somebody may have written it, and gone, before it was locked.
            if !record::exists(&dir) {
                match remove_directory(&dir) {
                    Ok(()) => lock.remove()?,
                    // One that something is mounted in, most likely: recovery
                    // takes that down, but only if the store can be opened.
                    Err(error) => tracing::warn!(
                        error = %Chain(&error),
                        "what a killed process left of a volume stays"
                    ),
                }
            }
        }
    }
    Ok(())
}
