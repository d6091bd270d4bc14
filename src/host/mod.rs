//! The kernel behind a small trait: every mount-related system call, and the
//! few facts of the kernel that a union needs. Policy lives above it.
//!
//! [`linux::LinuxHost`] is the real one. [`fake::FakeHost`] keeps a mount table
//! in memory, fails on demand and remembers what it was asked, for tests.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod linux;
pub mod mountinfo;

pub use mountinfo::MountEntry;

/// Per-mount flags, the ones that this program sets or compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct MountFlags {
    /// Writes fail with `EROFS`.
    pub read_only: bool,
    /// Set-user-id bits and file capabilities have no effect.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Programs cannot be executed.
    pub noexec: bool,
}

impl MountFlags {
    /// What every mount of a volume carries: the content is an image author's,
    /// so neither its set-user-id bits nor its device nodes may mean anything.
    #[must_use]
    pub const fn volume(read_only: bool) -> Self {
        Self {
            read_only,
            nosuid: true,
            nodev: true,
            noexec: false,
        }
    }

    /// Whether everything that `wanted` forbids is forbidden here too.
    #[must_use]
    pub const fn covers(self, wanted: Self) -> bool {
        (self.read_only || !wanted.read_only)
            && (self.nosuid || !wanted.nosuid)
            && (self.nodev || !wanted.nodev)
            && (self.noexec || !wanted.noexec)
    }
}

impl std::fmt::Display for MountFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.read_only { "ro" } else { "rw" })?;
        for (set, name) in [
            (self.nosuid, ",nosuid"),
            (self.nodev, ",nodev"),
            (self.noexec, ",noexec"),
        ] {
            if set {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

/// One mount-making system call (or the few that belong together) as data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MountCall {
    /// `mount(2)` of a new filesystem, its options as one string.
    New {
        /// Name in `/proc/filesystems`; also the mount's source.
        fs_type: &'static str,
        /// Flags of the superblock and of the mount.
        flags: MountFlags,
        /// Option string; at most a page with its final NUL, or the kernel
        /// cuts it silently.
        data: String,
    },
    /// `mount(2)` with `MS_REMOUNT`: changes a superblock's options. The flags
    /// replace those of the mount, so they are always given in full.
    Remount {
        /// Flags of the superblock and of the mount.
        flags: MountFlags,
        /// Option string, as in [`MountCall::New`].
        data: String,
    },
    /// `mount(2)` with `MS_BIND`, not recursive: a second mount of what
    /// `source` shows, with the same flags.
    Bind {
        /// Existing directory.
        source: PathBuf,
        /// Directory below `source` to show instead of `source` itself,
        /// resolved as if `source` were the root directory, so that a symbolic
        /// link inside cannot lead out.
        beneath: Option<PathBuf>,
    },
    /// `mount(2)` with `MS_REMOUNT | MS_BIND`: adds flags to one mount and
    /// keeps those it has.
    AddFlags {
        /// Flags to add.
        flags: MountFlags,
    },
    /// `mount(2)` with `MS_PRIVATE`: what is mounted beneath this mount does not
    /// appear beneath its binds, nor the other way round. It still goes with the
    /// mount that it is in.
    Private,
    /// A new overlay mount.
    Overlay(OverlayCall),
    /// The ext4 filesystem in a file, by way of a loop device that goes with its
    /// last mount; by the device that the file has, if it has one.
    Image {
        /// The file.
        image: PathBuf,
        /// Directory for the nodes of devices, where `/dev` cannot be used: see
        /// [`is_loop_node`].
        devices: PathBuf,
        /// Flags of the superblock and of the mount.
        flags: MountFlags,
        /// Further options of the filesystem, with commas between them; may be empty.
        data: String,
    },
}

impl MountCall {
    /// Short name for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::New { .. } => "mount",
            Self::Remount { .. } => "remount",
            Self::Bind { .. } => "bind mount",
            Self::AddFlags { .. } => "bind remount",
            Self::Private => "change of propagation",
            Self::Overlay(_) => "overlay mount",
            Self::Image { .. } => "mount of an image",
        }
    }
}

/// Whether a node of a loop device, or of their control, has this name.
#[must_use]
pub fn is_loop_node(name: &str) -> bool {
    match name.strip_prefix("loop") {
        Some("-control") => true,
        Some(number) => !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()),
        None => false,
    }
}

/// An overlay mount. It appears at its target complete or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OverlayCall {
    /// How the lower directories are handed to the kernel.
    pub interface: OverlayInterface,
    /// Lower directories, top first.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory; none for a read-only mount.
    pub upper_work: Option<(PathBuf, PathBuf)>,
    /// Further options in order; `None` is an option without a value.
    pub options: Vec<(&'static str, Option<String>)>,
    /// Flags of the superblock and of the mount.
    pub flags: MountFlags,
}

/// The ways to hand lower directories to overlayfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OverlayInterface {
    /// `fsconfig(2)` with one `lowerdir+` per directory (Linux 6.7): no limit
    /// but 255 bytes for each path.
    Appended,
    /// `mount(2)` with the paths joined by colons, within one page.
    Joined,
    /// As `Joined`, but each directory is opened and named
    /// `/proc/self/fd/<n>`, which is shorter than a path of the store. A
    /// process has one working directory for all its threads, so the usual
    /// trick of short relative paths would need a thread of its own.
    JoinedDescriptors,
}

/// What one path is. Two paths with the same device and inode show the same
/// directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whether a mount is attached exactly here.
    pub mount_root: bool,
    /// Device number as major and minor.
    pub device: (u32, u32),
    /// Inode number.
    pub inode: u64,
}

/// What `statfs(2)` tells of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Magic number of the filesystem type, see `statfs(2)`.
    pub magic: u64,
    /// Flags of the mount and its superblock together.
    pub flags: MountFlags,
    /// Longest file name in bytes.
    pub name_max: u64,
    /// Size of the filesystem in bytes.
    pub bytes: u64,
    /// Bytes free for everyone.
    pub bytes_available: u64,
    /// Files and directories that there can be; 0 where the filesystem has no
    /// such limit.
    #[serde(default)]
    pub inodes: u64,
    /// Those that can still be made.
    #[serde(default)]
    pub inodes_available: u64,
}

/// A process that keeps a mount alive or busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id, as the node numbers processes.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub command: String,
    /// How it holds the mount.
    pub by: HeldBy,
}

/// How a process holds a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeldBy {
    /// It is in another mount namespace, which has the filesystem at this path.
    Mount(PathBuf),
    /// Its working or root directory, its program, or an open file is there.
    File,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command.escape_debug())?;
        match &self.by {
            HeldBy::Mount(path) => write!(
                f,
                ", whose mount namespace has it at {}",
                path.display().to_string().escape_debug()
            ),
            HeldBy::File => f.write_str(", which has a file or directory of it open"),
        }
    }
}

/// What one mount namespace has mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountTable {
    /// Its root directory, as seen from here: `/`, or a process's in `/proc`.
    pub root: PathBuf,
    /// The mounts.
    pub entries: Vec<MountEntry>,
}

/// The kernel. All methods block; errors are the plain results of the system
/// calls, and the caller adds what it was doing.
pub trait Host: std::fmt::Debug + Send + Sync {
    /// Makes or changes a mount at `target`, an existing directory.
    fn mount(&self, target: &Path, call: &MountCall) -> io::Result<()>;

    /// Takes the file from the loop device that it is behind, if it would stay there:
    /// where the kernel gives a device its file and its settings in two calls
    /// (before Linux 5.8), a kill between them leaves one that never lets go. A
    /// device in use lets go after that. No such file is fine.
    fn release_image(&self, image: &Path, devices: &Path) -> io::Result<()>;

    /// Unmounts the topmost mount attached at `target`, without following a
    /// symbolic link and never lazily. `EINVAL` where nothing is mounted.
    fn unmount(&self, target: &Path) -> io::Result<()>;

    /// The mount table of this thread's mount namespace. Costs milliseconds
    /// where there are a thousand mounts.
    fn mount_table(&self) -> io::Result<Vec<MountEntry>>;

    /// The topmost mount attached exactly at `path`. Asks the kernel about
    /// this one mount where it can (Linux 6.11), else reads the mount table.
    fn mount_at(&self, path: &Path) -> io::Result<Option<MountEntry>>;

    /// What `path` is, not following a final symbolic link; costs one
    /// microsecond or so.
    fn place(&self, path: &Path) -> io::Result<Place>;

    /// `statfs(2)` of `path`.
    fn filesystem(&self, path: &Path) -> io::Result<Filesystem>;

    /// The content of a small file of the kernel, under `/proc` or `/sys`.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names in a directory of the kernel, under `/proc` or `/sys`.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// Removes a file that a killed run may have left; absent is fine.
    fn remove_stale(&self, path: &Path) -> io::Result<()>;

    /// Whether this kernel's overlayfs knows the option `lowerdir+`.
    fn overlay_appends(&self) -> bool;

    /// Processes that hold what is mounted at `target`, as far as `proc`, the
    /// node's `/proc`, shows them. A mount namespace counts by one process of it,
    /// and not where it has the mount at the same place: there it goes when the
    /// one at `target` does. Costs a look at every process of the node.
    fn holders(&self, proc: &Path, target: &Path) -> io::Result<Vec<Holder>>;

    /// The mount tables of all mount namespaces, as far as `proc` shows their
    /// processes, this thread's own first. Costs a look at every process of the
    /// node, and a reading of each table.
    fn mount_tables(&self, proc: &Path) -> io::Result<Vec<MountTable>>;

    /// Whether any process, as far as `proc` shows them, is in the mount
    /// namespace with this inode number.
    fn is_namespace_alive(&self, proc: &Path, namespace: u64) -> io::Result<bool>;

    /// Waits between two attempts.
    fn pause(&self, time: Duration);
}
