//! Taking mounts down: with patience, never lazily. A lazily unmounted union
//! lives on unseen while its branches are deleted under it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::aufs;
use crate::host::Host;

/// First wait after the kernel said busy; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// Longest wait between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Most mounts stacked on one path that are taken down; more is no leftover
/// but something that mounts as fast as this unmounts.
const STACK_MAX: usize = 64;

/// A mount that could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Something still uses it. Trying again later may well succeed.
    #[error("{target} is in use after waiting {waited:?}", target = target.display())]
    Busy {
        /// The mount point.
        target: PathBuf,
        /// Time spent waiting.
        waited: Duration,
        /// The last answer.
        source: io::Error,
    },
    /// The kernel refused for another reason.
    #[error("cannot unmount {target}", target = target.display())]
    Call {
        /// The mount point.
        target: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The mounts do not come to an end.
    #[error("{target} still is a mount after {count} were taken off it", target = target.display())]
    Stacked {
        /// The mount point.
        target: PathBuf,
        /// Mounts that were taken down.
        count: usize,
    },
    /// The mount is gone here but its union lives on, in another mount
    /// namespace. Its branches must not be deleted.
    #[error("the union si_{id} of {target} is held elsewhere after waiting {waited:?}", target = target.display())]
    Lingering {
        /// The mount point.
        target: PathBuf,
        /// Id of the union in `/sys/fs/aufs`.
        id: String,
        /// Time spent waiting.
        waited: Duration,
    },
    /// The kernel does not tell whether a union lives.
    #[error("cannot ask whether the union si_{id} of {target} lives", target = target.display())]
    Inspect {
        /// The mount point.
        target: PathBuf,
        /// Id of the union in `/sys/fs/aufs`.
        id: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Time that may be spent waiting.
pub(super) struct Patience {
    left: Duration,
    waited: Duration,
    next: Duration,
}

impl Patience {
    pub(super) const fn new(left: Duration) -> Self {
        Self {
            left,
            waited: Duration::ZERO,
            next: FIRST_PAUSE,
        }
    }

    /// Waits a little; `false` when there is no time left.
    pub(super) fn wait(&mut self, host: &dyn Host) -> bool {
        let pause = self.next.min(self.left);
        if pause.is_zero() {
            return false;
        }
        host.pause(pause);
        self.left -= pause;
        self.waited += pause;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        true
    }

    /// Time spent so far.
    pub(super) const fn waited(&self) -> Duration {
        self.waited
    }
}

/// Takes down every mount stacked at each of `paths`, in their order, and then
/// waits until the unions behind them are gone; waits at most for `patience`
/// in all. Returns how many mounts there were; none, or no such path, is fine.
///
/// The paths of a volume are its target and its staging path, in this order: a
/// killed run may have left a mount at the latter, and either keeps the union
/// alive. On success the writable layer and the pins of the branches may go.
pub fn unmount(
    host: &dyn Host,
    paths: &[&Path],
    patience: Duration,
) -> Result<usize, UnmountError> {
    unmount_union(host, paths, None, patience)
}

/// As [`unmount`], but takes down only the topmost mount at `path`.
pub fn unmount_top(host: &dyn Host, path: &Path, patience: Duration) -> Result<(), UnmountError> {
    let mut patience = Patience::new(patience);
    let union = union_at(host, path);
    take_down_one(host, path, &mut patience)?;
    match union {
        Some(id) => await_end(host, path, &id, &mut patience),
        None => Ok(()),
    }
}

/// As [`unmount`], of a union of AUFS whose id is known: it is waited for also
/// where none of its mounts can be seen from here, because an earlier attempt
/// took them down and others live in another mount namespace.
pub fn unmount_union(
    host: &dyn Host,
    paths: &[&Path],
    known: Option<&str>,
    patience: Duration,
) -> Result<usize, UnmountError> {
    let mut patience = Patience::new(patience);
    let mut unions = BTreeMap::new();
    let mut count = 0;
    for path in paths {
        let mut found = BTreeSet::new();
        count += take_down(host, path, &mut patience, Some(&mut found))?;
        unions.extend(found.into_iter().map(|id| (id, *path)));
    }
    if let (Some(id), Some(path)) = (known, paths.first())
        && !unions.contains_key(id)
        // The kernel gives ids out again.
        && !is_anothers(host, id, path)?
    {
        unions.insert(id.to_owned(), path);
    }
    for (id, path) in unions {
        await_end(host, path, &id, &mut patience)?;
    }
    Ok(count)
}

/// Whether a mount that can be seen has this id. Asked only when those of the
/// volume itself are down, so that it is another's.
fn is_anothers(host: &dyn Host, id: &str, target: &Path) -> Result<bool, UnmountError> {
    let inspect = |source| UnmountError::Inspect {
        target: target.to_path_buf(),
        id: id.to_owned(),
        source,
    };
    // Mostly it is gone, and then the mount table need not be read.
    if !aufs::lives(host, id).map_err(inspect)? {
        return Ok(false);
    }
    let table = host.mount_table().map_err(inspect)?;
    Ok(table
        .iter()
        .any(|entry| aufs::id_of(entry).as_deref() == Some(id)))
}

/// As [`unmount`], but leaves alone what still lives elsewhere.
pub fn detach(host: &dyn Host, target: &Path, patience: Duration) -> Result<usize, UnmountError> {
    take_down(host, target, &mut Patience::new(patience), None)
}

/// Waits until the union `id` is gone.
pub(super) fn await_union(
    host: &dyn Host,
    target: &Path,
    id: &str,
    patience: Duration,
) -> Result<(), UnmountError> {
    await_end(host, target, id, &mut Patience::new(patience))
}

fn take_down(
    host: &dyn Host,
    target: &Path,
    patience: &mut Patience,
    mut unions: Option<&mut BTreeSet<String>>,
) -> Result<usize, UnmountError> {
    let mut count = 0;
    while is_mounted(host, target) {
        if count == STACK_MAX {
            return Err(UnmountError::Stacked {
                target: target.to_path_buf(),
                count,
            });
        }
        if let Some(unions) = unions.as_deref_mut() {
            unions.extend(union_at(host, target));
        }
        if !take_down_one(host, target, patience)? {
            break;
        }
        count += 1;
    }
    Ok(count)
}

/// Whether something is mounted at `target`. A mount whose filesystem is
/// broken answers with an error, and must be unmounted all the same.
fn is_mounted(host: &dyn Host, target: &Path) -> bool {
    match host.place(target) {
        Ok(place) => place.mount_root,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The id of the AUFS union at `target`, if it is one. Only then is the mount
/// table worth reading.
pub fn union_at(host: &dyn Host, target: &Path) -> Option<String> {
    if host.filesystem(target).ok()?.magic != aufs::MAGIC {
        return None;
    }
    aufs::id_of(&host.mount_at(target).ok()??)
}

/// Unmounts the topmost mount; `false` if there was none.
fn take_down_one(
    host: &dyn Host,
    target: &Path,
    patience: &mut Patience,
) -> Result<bool, UnmountError> {
    loop {
        let source = match host.unmount(target) {
            Ok(()) => return Ok(true),
            Err(error) => error,
        };
        match source.kind() {
            io::ErrorKind::NotFound => return Ok(false),
            // EINVAL: not a mount point, for somebody else was faster; unless it
            // still is a mount, which then may not be unmounted from here. Where
            // the path does not answer, the mount is not taken for gone: what is
            // beneath it would be deleted.
            io::ErrorKind::InvalidInput if !is_mounted(host, target) => {
                return Ok(false);
            }
            io::ErrorKind::ResourceBusy => {
                if !patience.wait(host) {
                    return Err(UnmountError::Busy {
                        target: target.to_path_buf(),
                        waited: patience.waited,
                        source,
                    });
                }
            }
            _ => {
                return Err(UnmountError::Call {
                    target: target.to_path_buf(),
                    source,
                });
            }
        }
    }
}

fn await_end(
    host: &dyn Host,
    target: &Path,
    id: &str,
    patience: &mut Patience,
) -> Result<(), UnmountError> {
    loop {
        match aufs::lives(host, id) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(source) => {
                return Err(UnmountError::Inspect {
                    target: target.to_path_buf(),
                    id: id.to_owned(),
                    source,
                });
            }
        }
        if !patience.wait(host) {
            return Err(UnmountError::Lingering {
                target: target.to_path_buf(),
                id: id.to_owned(),
                waited: patience.waited,
            });
        }
    }
}
