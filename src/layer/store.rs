//! The store: branch directories by content, on the node's disk.
//!
//! ```text
//! store.json            version of everything here
//! store.lock            shared by whoever adds or removes, exclusive for who cleans up
//! store.commit.lock     held for a moment: a branch comes or goes
//! store.lease.lock      held for a moment: a lease names something, or it goes
//! store.collect.lock    one collection at a time
//! diff/<id>/            content of a branch
//! layers/<id>.json      what it is; its existence is the commit
//! layers/<id>.index     what the layer says about its paths, as it was unpacked
//! layers/<id>.edits     what sealing changed in it
//! images/<id>.json      an image by its manifest digest, and its sealed forms
//! images/<id>.ref.json  what a name pointed to last
//! ingest/<name>/        work in progress, with <name>.lock held by its owner
//! ingest/<name>.lock    alone: a lease, which names what its owner relies on
//! volumes/<id>/         a volume's record and writable layer
//! shared/<id>/          a union that read-only volumes share
//! ```
//!
//! Names are 32 hex digits of a sha256, never foreign input. A branch's key is
//! its format, the diffID of its layer and the edits made to it, so a layer
//! that needs no edit is one directory whatever image and union it serves.
//!
//! Several processes may use one store. Nothing is changed in place: a branch
//! or a record appears by rename, whole, or not at all. What a killed process
//! leaves in `ingest/` is recognised by its lock, which the kernel has let go,
//! and removed by the next one ([`Store::clean`]).
//!
//! **Power loss.** A branch is on disk (`syncfs`) before its record says so.
//! Until then the record carries the boot id and is trusted in that boot only.

mod commit;
mod ingest;
mod lease;
mod purge;
mod records;
mod removal;
mod stacks;
#[cfg(test)]
mod tests;

pub use ingest::Ingest;
pub use lease::{Held, Lease};
pub(crate) use purge::remove_empty;
pub(crate) use records::hex;
pub use records::{
    BranchId, BranchRecord, ImageRecord, LayerEntry, ReferenceRecord, SealedForm, StoredAttrs,
};
pub use removal::{Collecting, Removal};
pub use stacks::StackRecord;

use crate::layer::steps;
use crate::layer::tree::metadata::hand_down_nothing;
use crate::layer::tree::{RemoveError, errno_in_chain, remove_tree};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Version of the layout on disk and of everything in it.
pub const STORE_VERSION: u32 = 1;

/// Why the store cannot be used, or a step in it failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the store could not be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was to be done: "create", "read", …
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory could not be removed with its content.
    #[error("cannot remove {path}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// Where it stopped.
        #[source]
        source: RemoveError,
    },
    /// A later version of this program made the store.
    #[error(
        "the store at {path} has version {found}, this program knows versions up to {known}: use a newer one, or another --root"
    )]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The store is of the other kind.
    #[error("the store at {path} is a {is} one: use it as such, or another --root")]
    Rootless {
        /// The store.
        path: PathBuf,
        /// Which kind it is.
        is: &'static str,
    },
    /// The directory is not a store and not empty.
    #[error(
        "{path} holds something else than a store (no store.json): give an empty or a new directory as --root"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// A record does not read as one.
    #[error("the record {path} is damaged")]
    Damaged {
        /// The record.
        path: PathBuf,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// The record's key is not the one that its name stands for.
    #[error("the record {path} is of {found}, not of {wanted}")]
    Mismatch {
        /// The record.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The path of the store has a character that union mounts cannot take.
    #[error(
        "the store's path {path} has characters other than letters, digits and ._-/ , which mount options cannot take"
    )]
    UnfitPath {
        /// The path.
        path: PathBuf,
    },
}

impl StoreError {
    /// For `map_err`: names what was being done and where.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        move |source| StoreError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether disk space or a quota ran out.
    pub fn is_out_of_space(&self) -> bool {
        matches!(errno_in_chain(self), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// Whether the filesystem is mounted read-only.
    pub fn is_read_only(&self) -> bool {
        errno_in_chain(self) == Some(Errno::ROFS)
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct StoreFile {
    version: u32,
    /// Files of one owner, in a user namespace; see [`Store::open`].
    #[serde(default)]
    rootless: bool,
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    boot: String,
    lock: File,
}

/// Held while something is added to the store or removed from it; only who cleans
/// up after dead processes waits for nobody to hold it.
#[derive(Debug)]
pub struct SharedLock(#[expect(dead_code, reason = "held for its flock, released on drop")] File);

impl Store {
    /// Opens the store at `root`, an absolute path, and makes it where there is
    /// none. `boot` is the kernel's boot id. A store is `rootless` for good or
    /// not at all: what one kind writes, the other cannot keep right.
    pub fn open(root: &Path, boot: &str, rootless: bool) -> Result<Self, StoreError> {
        if !Self::is_path_fit(root) {
            return Err(StoreError::UnfitPath {
                path: root.to_owned(),
            });
        }
        let lock_path = root.join("store.lock");
        loop {
            match find(root, rootless) {
                Ok(()) => {}
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    create(root, rootless)?;
                }
                Err(error) => return Err(error),
            }
            // Whoever is about to remove all of it is waited for.
            let _shared = match lock_store(&lock_path, Sharing::Shared) {
                // With its directory.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                other => other?,
            };
            if root.join("store.json").exists() {
                make_directories(root)?;
                break;
            }
        }
        let lock = open_lock(&lock_path).map_err(StoreError::io("open", &lock_path))?;
        // Later there may be no inode left for it, which is when it is wanted.
        // Where this one fails already, whoever needs it says so.
        for name in ["store.collect.lock", "store.lease.lock"] {
            let _ = open_lock(&root.join(name));
        }
        Ok(Store {
            root: root.to_owned(),
            boot: boot.to_owned(),
            lock,
        })
    }

    /// Whether mount options can take the path of a store.
    pub fn is_path_fit(root: &Path) -> bool {
        let fit = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/".contains(byte);
        root.is_absolute() && root.as_os_str().as_encoded_bytes().iter().all(fit)
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The boot in which branches that are not flushed are still good.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Where the content of a branch is.
    pub fn branch_dir(&self, id: &BranchId) -> PathBuf {
        self.root.join("diff").join(id.as_str())
    }

    /// The directory of volumes.
    pub fn volumes_dir(&self) -> PathBuf {
        self.root.join("volumes")
    }

    fn layer_file(&self, id: &BranchId, kind: &str) -> PathBuf {
        self.root.join("layers").join(format!("{id}.{kind}"))
    }

    /// Keeps what is unfinished from being taken for a dead process's. That branches
    /// stay is not said by this but by a [`Lease`] or a volume's record.
    pub fn lock_shared(&self) -> Result<SharedLock, StoreError> {
        let path = self.root.join("store.lock");
        // A description of its own: flock is per open file, not per descriptor.
        lock_store(&path, Sharing::Shared).map(SharedLock)
    }

    /// Removes what killed processes left and what power loss made doubtful.
    /// Does nothing while another process uses the store; says whether it ran.
    pub fn clean(&self) -> Result<bool, StoreError> {
        ingest::remove_dead(self)?;
        let path = self.root.join("store.lock");
        match rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(StoreError::io("lock", &path)(error.into())),
        }
        let result = commit::remove_uncommitted(self);
        rustix::fs::flock(&self.lock, FlockOperation::Unlock)
            .map_err(io::Error::from)
            .map_err(StoreError::io("unlock", &path))?;
        result.map(|()| true)
    }

    /// Waits until everything in the store's filesystem is on disk.
    ///
    /// A write-back error is told once to each descriptor that was open when it
    /// happened, and not to one that is opened after somebody else was told
    /// (`file_sample_sb_err` in `do_dentry_open`). A fresh descriptor would
    /// miss an error of what was written here a moment ago, if only anything
    /// else on the machine ran `sync` since; so it is one from before.
    fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::syncfs(&self.lock)
            .map_err(io::Error::from)
            .map_err(StoreError::io("flush", &self.root))
    }
}

/// Finds out whether there is a store that this program can use; that there is none
/// is an error of the kind `NotFound`.
fn find(root: &Path, rootless: bool) -> Result<(), StoreError> {
    let file = root.join("store.json");
    let bytes = fs::read(&file).map_err(StoreError::io("read", &file))?;
    let found: StoreFile =
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Damaged {
            path: file.clone(),
            source,
        })?;
    // First, for a newer one may mean anything by the rest.
    if found.version > STORE_VERSION {
        return Err(StoreError::Newer {
            path: root.to_owned(),
            found: found.version,
            known: STORE_VERSION,
        });
    }
    if found.rootless != rootless {
        return Err(StoreError::Rootless {
            path: root.to_owned(),
            is: if found.rootless { "rootless" } else { "root's" },
        });
    }
    Ok(())
}

/// Makes those that are missing: in a new store all, and in one whose removal was
/// cut short what had gone by then.
fn make_directories(root: &Path) -> Result<(), StoreError> {
    for name in ["diff", "layers", "images", "ingest", "volumes"] {
        let path = root.join(name);
        if path.is_dir() {
            continue;
        }
        steps::before("make a directory of the store");
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("create", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn create(root: &Path, rootless: bool) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .map_err(StoreError::io("create", root))?;
    let is_new = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            [
                "diff",
                "layers",
                "images",
                "ingest",
                "volumes",
                "lost+found",
            ]
            .iter()
            .any(|name| entry.file_name() == *name)
                || entry.file_name().to_string_lossy().starts_with("store.")
        })
    };
    if !fs::read_dir(root)
        .map_err(StoreError::io("read", root))?
        .all(is_new)
    {
        return Err(StoreError::Foreign {
            path: root.to_owned(),
        });
    }
    // A setuid file in a branch must be out of reach of the node's users.
    fs::set_permissions(root, fs::Permissions::from_mode(0o700))
        .map_err(StoreError::io("protect", root))?;
    bare(root)?;
    // Shared by all who make it at once, and so that nobody cleans meanwhile.
    let _shared = lock_store(&root.join("store.lock"), Sharing::Shared)?;
    make_directories(root)?;
    write_json(
        &root.join("store.json"),
        &StoreFile {
            version: STORE_VERSION,
            rootless,
        },
        true,
    )
}

/// Takes the default access control list from a directory of the store. One that
/// somebody gave to a directory above it would be handed down to every file.
fn bare(path: &Path) -> Result<(), StoreError> {
    open_dir(path)
        .and_then(|dir| hand_down_nothing(dir.as_fd()))
        .map_err(StoreError::io("remove the default ACL of", path))
}

/// With whom a lock is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Shared,
    Exclusive,
}

/// Waits for `store.lock`, which goes with the store: whoever had it last may have
/// removed it.
fn lock_store(path: &Path, sharing: Sharing) -> Result<File, StoreError> {
    loop {
        let lock = lock(path, sharing)?;
        let ours = lock.metadata().map_err(StoreError::io("read", path))?;
        if fs::metadata(path).is_ok_and(|found| found.ino() == ours.ino()) {
            return Ok(lock);
        }
    }
}

/// Waits for a lock. That it has to is a step of its own, so that a test which runs
/// two at a time knows whose turn it is.
fn lock(path: &Path, sharing: Sharing) -> Result<File, StoreError> {
    use FlockOperation::{
        LockExclusive, LockShared, NonBlockingLockExclusive, NonBlockingLockShared,
    };
    let (at_once, wait) = match sharing {
        Sharing::Shared => (NonBlockingLockShared, LockShared),
        Sharing::Exclusive => (NonBlockingLockExclusive, LockExclusive),
    };
    let lock = open_lock(path).map_err(StoreError::io("open", path))?;
    let result = match rustix::fs::flock(&lock, at_once) {
        Err(Errno::WOULDBLOCK) => {
            steps::before(steps::WAIT);
            rustix::fs::flock(&lock, wait)
        }
        result => result,
    };
    result
        .map_err(io::Error::from)
        .map_err(StoreError::io("lock", path))?;
    Ok(lock)
}

fn open_lock(path: &Path) -> io::Result<File> {
    let fd = rustix::fs::open(
        path,
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )?;
    Ok(fd.into())
}

pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?)
}

/// Removes a directory of ours with everything in it; absent is fine.
pub(crate) fn remove_directory(path: &Path) -> Result<(), StoreError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let parent = match open_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(StoreError::io("open", parent))?,
    };
    remove_tree(parent.as_fd(), name.as_encoded_bytes()).map_err(|source| StoreError::Remove {
        path: path.to_owned(),
        source,
    })
}

/// Puts a JSON file in place by rename; with `durable`, on disk before that.
pub(crate) fn write_json<T: serde::Serialize>(
    path: &Path,
    value: &T,
    durable: bool,
) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| StoreError::Damaged {
        path: path.to_owned(),
        source,
    })?;
    bytes.push(b'\n');
    let temporary = path.with_extension(format!("tmp{}", unique()));
    let write = || -> io::Result<()> {
        steps::before("create a record");
        let mut file = File::create_new(&temporary)?;
        steps::before("write a record");
        file.write_all(&bytes)?;
        if durable {
            file.sync_all()?;
        }
        steps::before("rename a record");
        fs::rename(&temporary, path)?;
        if durable && let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| {
        // The name is ours alone; what cannot be removed now is cleaned later.
        let _ = fs::remove_file(&temporary);
        StoreError::io("write", path)(error)
    })
}

/// Reads a JSON file; none where there is none.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| StoreError::Damaged {
                    path: path.to_owned(),
                    source,
                })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// A name part that no other call, thread or process on this machine has:
/// process, its start as the clock has it, and a counter.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64);
    format!(
        "{:x}-{clock:x}-{:x}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}

/// Time since the epoch.
pub(crate) fn clock() -> Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

/// Seconds since the epoch.
pub(crate) fn now() -> u64 {
    clock().as_secs()
}
