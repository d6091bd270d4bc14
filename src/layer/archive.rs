//! Tar bytes to entries, without I/O: the caller feeds chunks as they arrive
//! and gets events back. Everything here is foreign input; every bound is a
//! field of [`Limits`](super::limits::Limits) and has an error of its own.
//!
//! ```text
//! parser   the state machine: blocks and bodies → events
//! header   one 512-byte block: formats, numbers, checksum
//! member   a header block with what the extension headers say instead
//! pax      the records of extended headers
//! sparse   the four ways to write down where the holes are
//! writer   entries → tar, for the export of a writable layer
//! ```
//!
//! Where the standard leaves room, the reading is that of Go's `archive/tar`
//! with containerd, for these write and read nearly all layers. Where two
//! well-known readers would see *different members* in the same bytes, the
//! archive is refused, for such a layer can show a scanner one tree and a node
//! another. In particular:
//!
//! * A PAX `size` is the length of the member's data, whatever the header says,
//!   and never that of an extension header between it and the member.
//! * Links, devices, fifos and directories have no data, whatever size they claim.
//! * Two extension headers of one kind for one member, a PAX `path` beside a
//!   different GNU long name, an extension header with no member after it, and
//!   members' own properties (`path`, `linkpath`, `size`, extended attributes,
//!   sparse maps) in a global header are errors.
//! * Global headers do apply otherwise, beneath the local ones.
//! * Type `D` (GNU dump directory) is a directory whose list of names is skipped;
//!   `V` (volume label) is skipped; `M` (continuation) and every type not
//!   named in [`EntryKind`] are errors, as containerd has it, although POSIX
//!   would treat them as regular files.
//! * `SCHILY.xattr.` names and values are taken as they are, and an empty
//!   value is an empty attribute. (GNU tar, unlike Go, writes `=` and `%` in such
//!   names as `%3D` and `%25`; no attribute the kernel knows has them.)
//! * `SCHILY.acl.*` and `RHT.*` records are ignored: the ACLs and labels of
//!   layers come as `SCHILY.xattr.system.posix_acl_access` and so on.
//! * The archive ends after two blocks of zeros; also where the stream ends
//!   between two members or after one block of zeros.

#[cfg(any(test, feature = "testing"))]
pub mod check;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod forge;
mod header;
mod member;
mod parser;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;
mod writer;

pub use error::{ArchiveError, EntryName, ExtensionKind, RecordFault, SparseFault};
pub use parser::{Event, Parser};
pub use writer::{WriteError, Writer};

/// Seconds and nanoseconds since the epoch, as PAX and the kernel have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999, counted forward from `seconds`.
    pub nanos: u32,
}

/// What the archive says an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file (types `0`, NUL, `7` and GNU sparse `S`).
    File,
    /// Hard link to the path in [`Entry::link`].
    HardLink,
    /// Symbolic link with the text in [`Entry::link`].
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Directory (also a file entry whose name ends in `/`, as old tars write it).
    Directory,
    /// Named pipe.
    Fifo,
}

/// One member of the archive, all extension headers applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name as the archive has it, bytes, not yet checked or normalised.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky (`mode & 0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Apparent size of a file in bytes, holes included; 0 for anything else.
    pub size: u64,
    /// Target of a hard link or symlink, bytes.
    pub link: Vec<u8>,
    /// Major and minor of a device.
    pub device: (u32, u32),
    /// Extended attributes (`SCHILY.xattr.*`, `LIBARCHIVE.xattr.*`), name and value,
    /// each name once (the last wins), sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
