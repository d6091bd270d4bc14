//! What has to be put right: records × mount table → repairs. Pure; `upkeep`
//! looks, and does what comes out.
//!
//! Only volumes of the plugin are looked at. A person's are theirs, and one that
//! a newer version of this program made is that one's.

use super::pods::{self, PodDirectory};
use super::record::{Owner, RECORD_VERSION, VolumeRecord, VolumeState};
use crate::host::MountEntry;
use std::path::{Path, PathBuf};

/// A volume as it is found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its directory in the store.
    pub dir: PathBuf,
    /// Its record.
    pub record: VolumeRecord,
    /// What kubelet has of it.
    pub pod: PodDirectory,
}

/// The node as it is found.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// The kernel's boot id.
    pub boot: &'a str,
    /// kubelet's directory.
    pub kubelet_root: &'a Path,
    /// The store's directory of volumes.
    pub volumes_dir: &'a Path,
    /// Directories of volumes that have a record which cannot be read.
    pub unreadable: &'a [PathBuf],
}

/// Something that has to be put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// The volume goes.
    TakeDown {
        /// Its directory in the store.
        dir: PathBuf,
        /// Why.
        why: Reason,
    },
    /// The volume is mounted although its record does not say so yet: the
    /// process died in between.
    Adopt {
        /// Its directory in the store.
        dir: PathBuf,
    },
    /// The volume is not mounted and its pod may still have it: kubelet will ask
    /// for it again, and gets it with the writable layer that it has.
    Await {
        /// Its directory in the store.
        dir: PathBuf,
    },
    /// A union of ours that no record knows.
    Unmount {
        /// Where it is mounted.
        at: PathBuf,
    },
}

/// Why a volume goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It was being mounted for the first time, so no pod has seen it.
    Interrupted,
    /// It was being taken down.
    Leaving,
    /// kubelet has forgotten it, or its directory is gone.
    Forgotten,
}

impl Reason {
    /// As in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interrupted => "interrupted",
            Self::Leaving => "leaving",
            Self::Forgotten => "forgotten",
        }
    }
}

impl Repair {
    /// As in logs and metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::TakeDown { why, .. } => why.name(),
            Self::Adopt { .. } => "adopted",
            Self::Await { .. } => "awaited",
            Self::Unmount { .. } => "orphan",
        }
    }
}

/// What has to be put right when the plugin starts. What is mounted is never in
/// it, however little kubelet knows of it: whether it is in use has to be looked
/// at, and for longer than once. The table is read before the records are, for a
/// volume is recorded before it is mounted: one that somebody mounts meanwhile is
/// then no orphan.
#[must_use]
pub fn repairs(found: &[Found], table: &[MountEntry], node: &Node<'_>) -> Vec<Repair> {
    let of_volumes = found
        .iter()
        .filter(|found| is_ours(&found.record))
        .filter_map(|found| {
            let is_mounted = is_mounted(&found.record, table);
            repair(found, is_mounted, node)
        });
    of_volumes.chain(orphans(found, table, node)).collect()
}

/// Whether a volume is to be put right and cleared away by this program.
pub(super) fn is_ours(record: &VolumeRecord) -> bool {
    record.owner == Owner::Plugin && record.version <= RECORD_VERSION
}

/// What has to be put right with one volume.
fn repair(found: &Found, is_mounted: bool, node: &Node<'_>) -> Option<Repair> {
    let dir = found.dir.clone();
    let take_down = |why| {
        Some(Repair::TakeDown {
            dir: found.dir.clone(),
            why,
        })
    };
    let is_this_boot = found.record.boot == node.boot;
    match found.record.state {
        VolumeState::Intended => take_down(Reason::Interrupted),
        VolumeState::Leaving => take_down(Reason::Leaving),
        VolumeState::Mounted if is_this_boot && is_mounted => None,
        VolumeState::Returning if is_this_boot && is_mounted => Some(Repair::Adopt { dir }),
        // One that begins anew may be mounted, but no pod has seen that.
        VolumeState::Mounted | VolumeState::Returning | VolumeState::Beginning => match found.pod {
            // kubelet writes its file anew when it comes back to a pod, and a
            // power loss may have taken the old one. If it does not, the reaper
            // will see that.
            PodDirectory::Present | PodDirectory::Forgotten => Some(Repair::Await { dir }),
            PodDirectory::Gone => take_down(Reason::Forgotten),
        },
    }
}

fn is_mounted(record: &VolumeRecord, table: &[MountEntry]) -> bool {
    table.iter().any(|entry| {
        entry.mount_point == record.target && record.plan.owns(record.aufs_id.as_deref(), entry)
    })
}

/// Whether a mount is of the volume with this directory, as far as that can be
/// told without its record: by where it is, by its writable layer, or on AUFS by
/// its inode translation, whose file has the directory's name.
pub(super) fn is_of(dir: &Path, entry: &MountEntry) -> bool {
    entry.mount_point.starts_with(dir)
        || path_option(entry, "upperdir").is_some_and(|upper| upper.starts_with(dir))
        || path_option(entry, "xino").is_some_and(|xino| xino.file_name() == dir.file_name())
}

fn path_option<'a>(entry: &'a MountEntry, key: &str) -> Option<&'a Path> {
    let value = std::str::from_utf8(entry.option(key)?).ok()?;
    Some(Path::new(value))
}

/// Mounts of ours that no record knows: a union on a writable layer of the store,
/// anything at a staging path, a writable layer's own filesystem, and a union of AUFS where only the plugin makes
/// one and kubelet knows nothing of it either.
fn orphans(found: &[Found], table: &[MountEntry], node: &Node<'_>) -> Vec<Repair> {
    let is_recorded = |entry: &MountEntry| {
        found
            .iter()
            .any(|found| entry.mount_point == found.record.target || is_of(&found.dir, entry))
            || node.unreadable.iter().any(|dir| is_of(dir, entry))
    };
    let volume_of = |path: &Path| path.starts_with(node.volumes_dir);
    let is_orphan = |entry: &&MountEntry| {
        let at = &entry.mount_point;
        if is_recorded(entry) {
            return false;
        }
        let is_named = |wanted| at.file_name().is_some_and(|name| name == wanted);
        if volume_of(at) && (is_named("staging") || is_named("fs")) {
            return true;
        }
        match path_option(entry, "upperdir") {
            Some(upper) => entry.fs_type == "overlay" && volume_of(upper),
            None => {
                entry.fs_type == "aufs"
                    && pods::is_kubelets(node.kubelet_root, at)
                    && pods::directory_of(node.kubelet_root, at)
                        .is_ok_and(|pod| pod != PodDirectory::Present)
            }
        }
    };
    // A writable layer's filesystem after the union that has it.
    let (filesystems, unions): (Vec<_>, Vec<_>) =
        table.iter().filter(is_orphan).partition(|entry| {
            entry
                .mount_point
                .file_name()
                .is_some_and(|name| name == "fs")
        });
    unions
        .into_iter()
        .chain(filesystems)
        .map(|entry| Repair::Unmount {
            at: entry.mount_point.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
