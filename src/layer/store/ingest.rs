//! Work in progress: a directory of `ingest/` with a lock that the kernel lets
//! go when its owner dies, however it dies.

use super::{Store, StoreError, bare, open_dir, open_lock, remove_directory, unique};
use crate::layer::steps;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A name in `ingest/` with the lock of its owner, which goes with it.
#[derive(Debug)]
pub(super) struct Claim {
    /// Where its owner may work.
    work: PathBuf,
    /// Whether he does.
    has_work: bool,
    lock_path: PathBuf,
    lock: File,
}

impl Claim {
    /// Takes a name that nobody has.
    pub(super) fn take(store: &Store) -> Result<Self, StoreError> {
        let base = store.root().join("ingest");
        loop {
            let name = unique();
            let lock_path = base.join(format!("{name}.lock"));
            steps::before("make the lock of work");
            let lock = open_lock(&lock_path).map_err(StoreError::io("create", &lock_path))?;
            rustix::fs::flock(&lock, FlockOperation::LockExclusive)
                .map_err(io::Error::from)
                .map_err(StoreError::io("lock", &lock_path))?;
            // Somebody may have taken the file for a dead one's before it was locked.
            let ours = lock
                .metadata()
                .map_err(StoreError::io("read", &lock_path))?;
            if fs::metadata(&lock_path).is_ok_and(|found| found.ino() == ours.ino()) {
                return Ok(Claim {
                    work: base.join(&name),
                    has_work: false,
                    lock_path,
                    lock,
                });
            }
        }
    }

    /// The file that is locked.
    pub(super) fn file(&self) -> &File {
        &self.lock
    }

    /// Where that is.
    pub(super) fn lock_path(&self) -> &Path {
        &self.lock_path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let work = self.has_work.then_some(self.work.as_path());
        if let Err(error) = remove(work, &self.lock_path) {
            tracing::warn!(path = %self.work.display(), error = &error as &dyn std::error::Error,
                "what is left of work stays until the next start");
        }
    }
}

/// One directory of work in progress; removed on drop, with what is still in it.
#[derive(Debug)]
pub struct Ingest {
    claim: Claim,
}

impl Ingest {
    /// Begins work in the store.
    pub fn begin(store: &Store) -> Result<Self, StoreError> {
        // From here on the lock file goes with it, whatever fails.
        let mut claim = Claim::take(store)?;
        claim.has_work = true;
        steps::before("make the directory of work");
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&claim.work)
            .map_err(StoreError::io("create", &claim.work))?;
        // All trees begin in it.
        bare(&claim.work)?;
        Ok(Ingest { claim })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.claim.work
    }

    /// Makes a directory in it and opens it.
    pub fn directory(&self, name: &str) -> Result<OwnedFd, StoreError> {
        let path = self.path().join(name);
        steps::before("make a directory to work in");
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(StoreError::io("create", &path))?;
        open_dir(&path).map_err(StoreError::io("open", &path))
    }

    /// An empty file without a name, on the store's filesystem.
    pub fn scratch(&self) -> io::Result<File> {
        scratch_in(self.path())
    }
}

/// An empty file without a name in the filesystem of `dir`.
fn scratch_in(dir: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(fd.into()),
        // Not every filesystem has nameless files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = dir.join(format!("scratch-{}", unique()));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

fn remove(work: Option<&Path>, lock_path: &Path) -> Result<(), StoreError> {
    if let Some(work) = work {
        remove_directory(work)?;
    }
    steps::before("remove the lock of work");
    match fs::remove_file(lock_path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", lock_path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes the directories whose owners are gone.
pub(super) fn remove_dead(store: &Store) -> Result<(), StoreError> {
    let base = store.root().join("ingest");
    for name in store.names("ingest", ".lock")? {
        let lock_path = base.join(format!("{name}.lock"));
        let lock = match File::open(&lock_path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StoreError::io("open", &lock_path)(error)),
        };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Another one may have removed it, and the name be taken again.
            let ours = lock
                .metadata()
                .map_err(StoreError::io("read", &lock_path))?;
            if fs::metadata(&lock_path).is_ok_and(|found| found.ino() != ours.ino()) {
                continue;
            }
            let path = base.join(&name);
            remove(Some(&path), &lock_path)?;
        }
    }
    Ok(())
}

/// Removes directories that have lost their locks, which only a power cut can
/// do. Nobody else uses the store.
pub(super) fn remove_lockless(store: &Store) -> Result<(), StoreError> {
    let base = store.root().join("ingest");
    for name in store.names("ingest", "")? {
        if !name.ends_with(".lock") && !base.join(format!("{name}.lock")).exists() {
            remove_directory(&base.join(&name))?;
        }
    }
    Ok(())
}
