//! Filesystems of their own for writable layers that have a limit: a tmpfs, or an
//! image behind a loop device. Why these: ADR 17.
//!
//! A limit holds for everybody, root in the pod included, and for copies that the
//! union makes of lower files, since it is the size of the filesystem. What is
//! promised to a volume on disk is allocated when it is published: a node's full
//! disk is then no business of the volume's.

use super::attributes::Medium;
use super::record::VolumeRecord;
use super::stats::{Amount, Usage};
use super::{PublishRequest, VolumeError, Volumes, make_dir};
use crate::ext4::{self, Identity, Layout};
use crate::host::{Filesystem, MountCall, MountFlags};
use crate::layer::steps;
use crate::layer::store::StoreError;
use crate::union;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A tmpfs has one inode for so many bytes: a page. Their memory is the kernel's
/// and not counted in its size.
const MEMORY_INODE_BYTES: u64 = 4096;
/// The fewest inodes of a tmpfs.
const MEMORY_INODES: u64 = 1024;

/// What holds a writable layer to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// A tmpfs.
    Memory,
    /// An ext4 filesystem in a file.
    Image,
}

/// The limit of a writable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// What holds it.
    pub means: Means,
    /// Bytes that its files can have together.
    pub bytes: u64,
    /// Files and directories that it can have.
    pub inodes: u64,
}

/// Where a volume's own filesystem is mounted.
pub(super) fn mount_point(dir: &Path) -> PathBuf {
    dir.join("fs")
}

/// The file that it is in, if it is in one.
fn image(dir: &Path) -> PathBuf {
    dir.join("image")
}

/// The directory that has a volume's writable layer and what belongs to it.
pub(super) fn writable_base(dir: &Path, limit: Option<&Limit>) -> PathBuf {
    match limit {
        Some(_) => mount_point(dir),
        None => dir.to_owned(),
    }
}

impl Limit {
    /// The limit of a volume's writable layer, if it is to have one.
    pub(super) fn of(request: &PublishRequest) -> Result<Option<Self>, VolumeError> {
        match (request.medium, request.size_limit) {
            _ if request.read_only => Ok(None),
            // The kernel's own limit is half of the node's memory.
            (Medium::Memory, None) => Err(VolumeError::UnlimitedMemory),
            (Medium::Memory, Some(bytes)) => Ok(Some(Limit::in_memory(bytes))),
            (Medium::Disk, None) => Ok(None),
            (Medium::Disk, Some(bytes)) => Limit::on_disk(bytes).map(Some),
        }
    }

    fn in_memory(bytes: u64) -> Self {
        // A page is the least that there is; 0 would be no limit at all.
        let bytes = bytes.max(MEMORY_INODE_BYTES);
        Limit {
            means: Means::Memory,
            bytes,
            inodes: (bytes / MEMORY_INODE_BYTES).max(MEMORY_INODES),
        }
    }

    fn on_disk(bytes: u64) -> Result<Self, VolumeError> {
        let layout = Layout::for_usable(bytes).map_err(VolumeError::LimitTooLarge)?;
        Ok(Limit {
            means: Means::Image,
            bytes,
            inodes: layout.inodes() - Layout::used_inodes(),
        })
    }

    /// How full a filesystem is that was made for this limit. It is a little larger
    /// than that, for what the union itself keeps in it.
    pub(super) fn usage(&self, found: &Filesystem) -> Usage {
        let of = |total: u64, available: u64| {
            let available = available.min(total);
            Amount {
                used: total - available,
                available,
                total,
            }
        };
        Usage {
            bytes: of(self.bytes, found.bytes_available),
            inodes: of(self.inodes, found.inodes_available),
        }
    }
}

impl Volumes {
    /// Makes the filesystem of a writable layer, and mounts it, with the `SELinux`
    /// label of its files where they get one.
    pub(super) fn make_filesystem(
        &self,
        dir: &Path,
        limit: &Limit,
        label: Option<&str>,
    ) -> Result<(), VolumeError> {
        make_dir(&mount_point(dir), 0o700)?;
        match limit.means {
            Means::Memory => self.mount_memory(dir, limit, label),
            Means::Image => {
                // Where there is no room, the caller collects and begins anew.
                self.has_room(dir, limit)?;
                make_image(&image(dir), limit)?;
                self.mount_image(dir, label)
            }
        }
        .map_err(VolumeError::Limit)
    }

    /// Refuses what the disk cannot hold before any of it is allocated: ext4 would
    /// allocate all that there is before it says that this is not enough, and
    /// everybody else on the node would be without space until it is let go.
    fn has_room(&self, dir: &Path, limit: &Limit) -> Result<(), VolumeError> {
        let layout = Layout::for_usable(limit.bytes).map_err(VolumeError::LimitTooLarge)?;
        let disk = self.host.filesystem(dir).map_err(VolumeError::Limit)?;
        match layout.bytes() > disk.bytes_available {
            true => Err(VolumeError::NoRoomForLimit {
                needs: layout.bytes(),
                source: Errno::NOSPC.into(),
            }),
            false => Ok(()),
        }
    }

    fn mount_memory(
        &self,
        dir: &Path,
        limit: &Limit,
        label: Option<&str>,
    ) -> Result<(), io::Error> {
        // Last, for it may hold commas.
        let label = label
            .map(|label| format!(",{}", context(label)))
            .unwrap_or_default();
        let call = |further| MountCall::New {
            fs_type: "tmpfs",
            flags: MountFlags::volume(false),
            data: format!(
                "size={},nr_inodes={},mode=0700{further}{label}",
                limit.bytes, limit.inodes
            ),
        };
        let at = mount_point(dir);
        steps::before("mount the memory of a writable layer");
        // What is in memory shall not come to a disk, as in an emptyDir; before
        // Linux 6.4 it may be swapped out all the same.
        match self.host.mount(&at, &call(",noswap")) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                self.host.mount(&at, &call(""))
            }
            result => result,
        }
    }

    fn mount_image(&self, dir: &Path, label: Option<&str>) -> Result<(), io::Error> {
        let call = MountCall::Image {
            image: image(dir),
            devices: self.options.run_dir.clone(),
            flags: MountFlags::volume(false),
            data: label.map(context).unwrap_or_default(),
        };
        steps::before("mount the image of a writable layer");
        self.host.mount(&mount_point(dir), &call)
    }

    /// Mounts the filesystem of a volume's writable layer where it is not mounted
    /// any more: after a reboot, or after a restart of a container that had it to
    /// itself. Whether it is there: what was in memory is gone with its last mount.
    pub(super) fn mount_filesystem_again(
        &self,
        dir: &Path,
        record: &VolumeRecord,
    ) -> Result<bool, VolumeError> {
        let Some(limit) = &record.limit else {
            return Ok(true);
        };
        if self.is_mount(&mount_point(dir))? {
            return Ok(true);
        }
        let image = image(dir);
        match limit.means {
            Means::Memory => Ok(false),
            Means::Image if !image.exists() => Ok(false),
            Means::Image => {
                let file = File::options().write(true).open(&image);
                let filled = file.and_then(|file| allocate(&file, file.metadata()?.len()));
                if let Err(error) = filled {
                    tracing::warn!(
                        volume.id = record.volume_id,
                        %error,
                        "the space of the writable layer's image cannot be made sure of"
                    );
                }
                make_dir(&mount_point(dir), 0o700)?;
                let label = record.plan.label.as_deref();
                self.mount_image(dir, label).map_err(VolumeError::Limit)?;
                Ok(true)
            }
        }
    }

    /// Takes down the filesystem of a volume's writable layer, if it is mounted.
    pub(super) fn unmount_filesystem(
        &self,
        dir: &Path,
        patience: Duration,
    ) -> Result<(), VolumeError> {
        steps::before("unmount the filesystem of a writable layer");
        let host = self.host.as_ref();
        union::detach(host, &mount_point(dir), patience).map_err(VolumeError::Unmount)?;
        let image = image(dir);
        if !image.exists() {
            return Ok(());
        }
        steps::before("release the image of a writable layer");
        let released = host.release_image(&image, &self.options.run_dir);
        released.map_err(|source| VolumeError::Release { image, source })
    }

    /// Removes what there is of a volume, down to its directory.
    pub(super) fn remove_volume_dir(&self, dir: &Path) -> Result<(), VolumeError> {
        self.unmount_filesystem(dir, Duration::ZERO)?;
        self.remove_dir_tree(dir)
    }

    /// How full a volume with a limit is: what its filesystem says, which is asked
    /// by way of the union where it is mounted in another namespace.
    pub(super) fn limited_usage(
        &self,
        dir: &Path,
        record: &VolumeRecord,
        limit: &Limit,
    ) -> Result<Usage, VolumeError> {
        let own = mount_point(dir);
        let at = match self.is_mount(&own)? {
            true => own,
            false if self.shows(record)? => record.target.clone(),
            false => {
                return Err(VolumeError::Unreachable {
                    volume_id: record.volume_id.clone(),
                });
            }
        };
        let found = self.host.filesystem(&at);
        let found = found.map_err(|source| VolumeError::Usage {
            volume_id: record.volume_id.clone(),
            source,
        })?;
        Ok(limit.usage(&found))
    }

    /// What limits writable layers here, found out by making one of each kind.
    pub(super) fn try_limits(&self) -> Vec<(Means, Result<(), VolumeError>)> {
        const BYTES: u64 = 1 << 20;
        let attempt = |limit: Limit| {
            let dir = self.store.root().join("probe").join("limit");
            let made = make_dir(&self.store.root().join("probe"), 0o700)
                .and_then(|()| self.remove_volume_dir(&dir))
                .and_then(|()| make_dir(&dir, 0o700))
                .and_then(|()| self.make_filesystem(&dir, &limit, None));
            made.and(self.remove_volume_dir(&dir))
        };
        vec![
            (Means::Image, Limit::on_disk(BYTES).and_then(attempt)),
            (Means::Memory, attempt(Limit::in_memory(BYTES))),
        ]
    }
}

/// The option that gives all files of a filesystem one label.
fn context(label: &str) -> String {
    format!("context=\"{label}\"")
}

/// Makes an image: all of its bytes are allocated, and what is not zero is on disk.
fn make_image(path: &Path, limit: &Limit) -> Result<(), VolumeError> {
    let layout = Layout::for_usable(limit.bytes).map_err(VolumeError::LimitTooLarge)?;
    let identity = identity().map_err(VolumeError::Limit)?;
    steps::before("make an image");
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::io("make", path))
        .map_err(VolumeError::Store)?;
    steps::before("allocate an image");
    allocate(&file, layout.bytes()).map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::NOSPC | Errno::DQUOT) => VolumeError::NoRoomForLimit {
            needs: layout.bytes(),
            source,
        },
        _ => VolumeError::Limit(source),
    })?;
    steps::before("format an image");
    ext4::format(&layout, &identity, |at, bytes| file.write_all_at(bytes, at))
        .and_then(|()| file.sync_all())
        .map_err(StoreError::io("write", path))
        .map_err(VolumeError::Store)
}

/// Has the first `bytes` of a file on disk, zeroes where there was nothing.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn identity() -> io::Result<Identity> {
    let mut random = [0; 32];
    let mut filled = 0;
    while filled < random.len() {
        filled += rustix::rand::getrandom(&mut random[filled..], GetRandomFlags::empty())?;
    }
    let (mut uuid, mut hash_seed) = ([0; 16], [0; 16]);
    uuid.copy_from_slice(&random[..16]);
    hash_seed.copy_from_slice(&random[16..]);
    // RFC 9562: version 4, of this variant.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(Identity {
        uuid,
        hash_seed,
        created: crate::layer::store::now(),
    })
}
