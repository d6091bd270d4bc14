//! Owner, mode, extended attributes and times of one inode: how they are set,
//! in which order, and how they are read back.
//!
//! | step | why there |
//! |---|---|
//! | data | a write takes setuid bits and `security.capability` away |
//! | owner | so does a change of owner |
//! | foreign attributes removed | only where there can be any, see [`Reader::remove_others`] |
//! | extended attributes | an access ACL changes the mode's group bits |
//! | mode | the archive's mode is what counts, to the bit |
//! | times | last, for all of the above touch them |

use super::PathText;
use crate::layer::archive::Timestamp;
use crate::layer::index::Attrs;
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstatfs, futimens, lgetxattr,
    llistxattr, lremovexattr, lsetxattr, utimensat,
};
use rustix::io::Errno;
use std::io;

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
pub(in crate::layer) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// The kernel's bound on one value and on a list of names (`XATTR_SIZE_MAX`).
const MAX_XATTR_BYTES: usize = 64 << 10;
const SETUID_SETGID: u32 = 0o6000;

/// Whose files they are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// As the layer says; needs root's capabilities.
    #[default]
    Real,
    /// All of them the caller's own, whatever the layer says, for use without
    /// root. What only root may make is left out (attributes of the `trusted`
    /// and `security` namespaces) or refused (devices).
    Single,
}

/// Metadata could not be set or read.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// chown.
    #[error("cannot set owner {uid}:{gid}")]
    Owner {
        /// Wanted owner.
        uid: u32,
        /// Wanted group.
        gid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// chmod.
    #[error("cannot set mode {mode:04o}")]
    Mode {
        /// Wanted permission bits.
        mode: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// An extended attribute that the filesystem or the kernel refuses.
    #[error("cannot set extended attribute {name} of {bytes} bytes")]
    SetXattr {
        /// Its name.
        name: PathText,
        /// Length of its value.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The filesystem has space, but none for so large an attribute.
    #[error("extended attribute {name} of {bytes} bytes is more than the filesystem can hold")]
    XattrTooLarge {
        /// Its name.
        name: PathText,
        /// Length of its value.
        bytes: usize,
    },
    /// An extended attribute that is not the layer's.
    #[error("cannot remove extended attribute {name}")]
    RemoveXattr {
        /// Its name.
        name: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// utimensat.
    #[error("cannot set modification time {}.{:09}", time.seconds, time.nanos)]
    Times {
        /// Wanted time.
        time: Timestamp,
        /// What the kernel said.
        source: io::Error,
    },
    /// The names of the extended attributes.
    #[error("cannot list extended attributes")]
    ListXattrs {
        /// What the kernel said.
        source: io::Error,
    },
    /// The value of an extended attribute.
    #[error("cannot read extended attribute {name}")]
    GetXattr {
        /// Its name.
        name: PathText,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An inode to work on.
#[derive(Debug, Clone, Copy)]
pub(in crate::layer) enum Inode<'a> {
    /// By a descriptor open for reading or writing.
    Open(BorrowedFd<'a>),
    /// By its name in a directory; never followed if it is a symbolic link.
    Named {
        /// The directory, possibly an `O_PATH` descriptor.
        directory: BorrowedFd<'a>,
        /// One component.
        name: &'a [u8],
    },
}

impl Inode<'_> {
    /// There is no `setxattrat` before Linux 6.13, and an `O_PATH` descriptor
    /// takes no `fsetxattr`; the way through `/proc` works for both.
    fn proc_path(directory: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        path
    }

    fn set_xattr(self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Inode::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Inode::Named {
                directory,
                name: file,
            } => lsetxattr(
                Self::proc_path(directory, file),
                name,
                value,
                XattrFlags::empty(),
            ),
        }
    }

    fn remove_xattr(self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Inode::Open(fd) => fremovexattr(fd, name),
            Inode::Named {
                directory,
                name: file,
            } => lremovexattr(Self::proc_path(directory, file), name),
        }
    }

    fn list_xattrs(self, list: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Inode::Open(fd) => flistxattr(fd, list),
            Inode::Named { directory, name } => llistxattr(Self::proc_path(directory, name), list),
        }
    }

    fn get_xattr(self, name: &[u8], value: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Inode::Open(fd) => fgetxattr(fd, name, value),
            Inode::Named {
                directory,
                name: file,
            } => lgetxattr(Self::proc_path(directory, file), name, value),
        }
    }

    /// Whether the filesystem has any space left worth the name.
    fn has_space(self) -> bool {
        let (Inode::Open(fd) | Inode::Named { directory: fd, .. }) = self;
        fstatfs(fd).is_ok_and(|stat| stat.f_blocks == 0 || stat.f_bavail > 64)
    }
}

/// Reduces `attrs` to what an inode of type `kind` can have, and says how many
/// extended attributes that cost. Nothing is lost that any Linux system could
/// have shown:
/// - `trusted.overlay.*` and `user.overlay.*` are overlayfs's own notes, which
///   an image must not forge;
/// - names outside Linux's four namespaces (as macOS writes them) and `user.*`
///   on links and devices cannot exist on Linux, and an image that an ordinary
///   runtime takes is not refused for them;
/// - `trusted.SGI_ACL_*` is what XFS calls its access control lists a second time;
/// - the `trusted` and `security` namespaces under [`Ownership::Single`].
pub(in crate::layer) fn reduce(attrs: &mut Attrs, kind: FileType, ownership: Ownership) -> u64 {
    attrs.mode = match kind {
        // A link has no mode of its own: this is what the kernel shows.
        FileType::Symlink => 0o777,
        _ => attrs.mode & 0o7777,
    };
    // The kernel takes any 32 bits as a wish for UTIME_NOW and UTIME_OMIT.
    attrs.mtime.nanos = attrs.mtime.nanos.min(999_999_999);
    if ownership == Ownership::Single {
        attrs.uid = rustix::process::geteuid().as_raw();
        attrs.gid = rustix::process::getegid().as_raw();
    }
    let before = attrs.xattrs.len();
    attrs
        .xattrs
        .retain(|(name, _)| is_possible(name, kind, ownership));
    (before - attrs.xattrs.len()) as u64
}

fn is_possible(name: &[u8], kind: FileType, ownership: Ownership) -> bool {
    if is_overlay_note(name) || name.starts_with(b"trusted.SGI_ACL_") {
        return false;
    }
    let has_data = matches!(kind, FileType::RegularFile | FileType::Directory);
    if name.starts_with(b"user.") {
        has_data
    } else if name == ACCESS_ACL {
        kind != FileType::Symlink
    } else if name == DEFAULT_ACL {
        kind == FileType::Directory
    } else if name.starts_with(b"trusted.") || name.starts_with(b"security.") {
        ownership == Ownership::Real
    } else {
        name.starts_with(b"system.")
    }
}

fn is_overlay_note(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Takes the default access control list from a directory, so that what is made
/// in it gets none from it.
pub(in crate::layer) fn hand_down_nothing(directory: BorrowedFd<'_>) -> io::Result<()> {
    let inode = Inode::Named {
        directory,
        name: b".",
    };
    match inode.remove_xattr(DEFAULT_ACL) {
        // The second: a filesystem without such lists.
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives an inode, `stat` being what it has now, the metadata `attrs`, which
/// [`reduce`] has seen. Only calls that change something are made. No extended
/// attribute is removed: a fresh inode in a bare directory has none.
pub(in crate::layer) fn set(
    inode: Inode<'_>,
    stat: &Stat,
    attrs: &Attrs,
    ownership: Ownership,
) -> Result<(), MetadataError> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let chown =
        ownership == Ownership::Real && (stat.st_uid, stat.st_gid) != (attrs.uid, attrs.gid);
    if chown {
        set_owner(inode, attrs).map_err(|source| MetadataError::Owner {
            uid: attrs.uid,
            gid: attrs.gid,
            source: source.into(),
        })?;
    }
    let mut has_acl = false;
    for (name, value) in &attrs.xattrs {
        has_acl |= name == ACCESS_ACL;
        inode.set_xattr(name, value).map_err(|error| match error {
            // ext4 says so also if one attribute exceeds a block.
            Errno::NOSPC if inode.has_space() => MetadataError::XattrTooLarge {
                name: name[..].into(),
                bytes: value.len(),
            },
            _ => MetadataError::SetXattr {
                name: name[..].into(),
                bytes: value.len(),
                source: error.into(),
            },
        })?;
    }
    let differs = stat.st_mode & 0o7777 != attrs.mode
        || has_acl
        || (chown && attrs.mode & SETUID_SETGID != 0);
    if differs && kind != FileType::Symlink {
        set_mode(inode, attrs.mode).map_err(|source| MetadataError::Mode {
            mode: attrs.mode,
            source: source.into(),
        })?;
    }
    set_times(inode, attrs.mtime).map_err(|source| MetadataError::Times {
        time: attrs.mtime,
        source: source.into(),
    })
}

fn set_owner(inode: Inode<'_>, attrs: &Attrs) -> Result<(), Errno> {
    // All ones means "leave it" to the kernel and is no owner of anything.
    if attrs.uid == u32::MAX || attrs.gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    let owner = Some(Uid::from_raw(attrs.uid));
    let group = Some(Gid::from_raw(attrs.gid));
    match inode {
        Inode::Open(fd) => fchown(fd, owner, group),
        Inode::Named { directory, name } => {
            chownat(directory, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

fn set_mode(inode: Inode<'_>, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode);
    match inode {
        Inode::Open(fd) => fchmod(fd, mode),
        // Only ever for what the caller has seen not to be a link; a call that
        // does not follow exists since Linux 6.6 only.
        Inode::Named { directory, name } => chmodat(directory, name, mode, AtFlags::empty()),
    }
}

fn set_times(inode: Inode<'_>, mtime: Timestamp) -> Result<(), Errno> {
    let time = Timespec {
        tv_sec: mtime.seconds,
        tv_nsec: mtime.nanos.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    match inode {
        Inode::Open(fd) => futimens(fd, &times),
        Inode::Named { directory, name } => {
            utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

/// Reads metadata back from disk, and compares it with what should be there.
#[derive(Debug)]
pub(in crate::layer) struct Reader {
    /// Attributes that every inode gets from the kernel unasked (as
    /// `security.selinux`), which are not the layer's.
    ambient: Vec<Vec<u8>>,
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Reader {
    /// A reader for the filesystem that the directory `fresh` is on, newly made
    /// and without any attribute given to it: a layer's own directory does only
    /// until the layer's metadata is on it.
    pub(in crate::layer) fn new(fresh: BorrowedFd<'_>) -> Result<Self, MetadataError> {
        let mut reader = Reader {
            ambient: Vec::new(),
            names: vec![0; MAX_XATTR_BYTES],
            value: vec![0; MAX_XATTR_BYTES],
        };
        let inode = Inode::Named {
            directory: fresh,
            name: b".",
        };
        let mut names = reader.list(inode)?;
        names.retain(|name| name.starts_with(b"security."));
        reader.ambient = names;
        Ok(reader)
    }

    fn list(&mut self, inode: Inode<'_>) -> Result<Vec<Vec<u8>>, MetadataError> {
        let length = match inode.list_xattrs(&mut self.names) {
            Ok(length) => length,
            // A filesystem without any.
            Err(Errno::NOTSUP) => 0,
            Err(source) => {
                return Err(MetadataError::ListXattrs {
                    source: source.into(),
                });
            }
        };
        let mut names: Vec<Vec<u8>> = self.names[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes the extended attributes that the inode has and `attrs` does not
    /// name: the access control lists that a directory with a default one hands
    /// down, and what another description of the same directory has given it.
    /// What the union keeps there for itself stays.
    pub(in crate::layer) fn remove_others(
        &mut self,
        inode: Inode<'_>,
        stat: &Stat,
        attrs: &Attrs,
        ownership: Ownership,
    ) -> Result<(), MetadataError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        for name in self.list(inode)? {
            let wanted = attrs.xattrs.iter().any(|(wanted, _)| *wanted == name);
            if wanted || self.ambient.contains(&name) || !is_possible(&name, kind, ownership) {
                continue;
            }
            inode
                .remove_xattr(&name)
                .map_err(|source| MetadataError::RemoveXattr {
                    name: name[..].into(),
                    source: source.into(),
                })?;
        }
        Ok(())
    }

    /// What `stat` and the filesystem say of an inode, as [`reduce`] would
    /// leave it.
    pub(in crate::layer) fn read(
        &mut self,
        inode: Inode<'_>,
        stat: &Stat,
        ownership: Ownership,
    ) -> Result<Attrs, MetadataError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut xattrs = Vec::new();
        for name in self.list(inode)? {
            if self.ambient.contains(&name) || !is_possible(&name, kind, ownership) {
                continue;
            }
            let length = inode.get_xattr(&name, &mut self.value).map_err(|source| {
                MetadataError::GetXattr {
                    name: name[..].into(),
                    source: source.into(),
                }
            })?;
            xattrs.push((name, self.value[..length].to_vec()));
        }
        Ok(Attrs {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Timestamp {
                seconds: stat.st_mtime,
                nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            },
            xattrs,
        })
    }
}
