//! Why a layer could not be unpacked.

use super::NameError;
use crate::layer::tree::{MetadataError, PathText, RemoveError, errno_in_chain};
use rustix::io::Errno;
use std::io;

/// Why an entry could not be put on disk. `path` is the entry's, relative to
/// the layer's root. What is on disk then is of no use and to be removed.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The entry's name is refused as such.
    #[error("entry {path} is refused for its name")]
    Name {
        /// The name as the archive has it.
        path: PathText,
        /// Why.
        source: NameError,
    },
    /// A link's target is refused as such.
    #[error("entry {path} is refused for its link target {target}")]
    Target {
        /// The link.
        path: PathText,
        /// The target as the archive has it.
        target: PathText,
        /// Why.
        source: NameError,
    },
    /// The way to the entry, through the layer's own links, is refused.
    #[error("entry {path} is refused for where the layer's links lead it")]
    Way {
        /// The entry.
        path: PathText,
        /// Why.
        source: NameError,
    },
    /// The layer's links turn in circles, or as good as.
    #[error("entry {path} passes more than {limit} symbolic links")]
    TooManyLinks {
        /// The entry.
        path: PathText,
        /// The limit.
        limit: usize,
    },
    /// The layer's links lead over very long ways.
    #[error("entry {path} passes more than {limit} components of symbolic links")]
    TooManySteps {
        /// The entry.
        path: PathText,
        /// The limit.
        limit: usize,
    },
    /// An entry for the root that is no directory.
    #[error("the layer's root is not a directory")]
    RootNotDirectory,
    /// Hard link to a directory.
    #[error("entry {path} is a hard link to the directory {target}")]
    LinkToDirectory {
        /// The link.
        path: PathText,
        /// Its target.
        target: PathText,
    },
    /// Hard link to what this layer says cannot exist.
    #[error("entry {path} is a hard link to {target}, which is not there")]
    LinkTargetMissing {
        /// The link.
        path: PathText,
        /// Its target.
        target: PathText,
    },
    /// Hard link that would remove its own target.
    #[error("entry {path} is a hard link that replaces its target {target}")]
    LinkReplacesTarget {
        /// The link.
        path: PathText,
        /// Its target.
        target: PathText,
    },
    /// More files, directories and links than [`Limits::max_entries`](crate::layer::limits::Limits::max_entries),
    /// those directories counted that the archive only implies.
    #[error("entry {path} makes it more than {limit} files and directories")]
    TooManyNodes {
        /// The entry.
        path: PathText,
        /// The limit.
        limit: u64,
    },
    /// A device under [`Ownership::Single`](crate::layer::tree::Ownership::Single).
    #[error("entry {path} is a device node, which only root can make")]
    DeviceNeedsRoot {
        /// The entry.
        path: PathText,
    },
    /// A device number that the kernel would cut.
    #[error("entry {path} has the device number {major}:{minor}, beyond Linux's 4095:1048575")]
    DeviceNumber {
        /// The entry.
        path: PathText,
        /// Major.
        major: u32,
        /// Minor.
        minor: u32,
    },
    /// Data behind the size that the entry's header gave.
    #[error("entry {path} has data beyond its size of {size} bytes")]
    DataBeyondSize {
        /// The entry.
        path: PathText,
        /// Its size in bytes.
        size: u64,
    },
    /// A file began and did not end: the archive was cut.
    #[error("entry {path} is not complete")]
    Incomplete {
        /// The entry.
        path: PathText,
    },
    /// open(2) of a directory on the way.
    #[error("cannot enter a directory on the way to {path}")]
    Enter {
        /// The entry.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// readlink(2), or dup(2) or stat(2) of what is there.
    #[error("cannot look at {path}")]
    Inspect {
        /// What it was about.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// mkdir(2).
    #[error("cannot make directory {path}")]
    CreateDirectory {
        /// The directory.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// open(2) of a new file.
    #[error("cannot make file {path}")]
    CreateFile {
        /// The file.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// symlink(2).
    #[error("cannot make symbolic link {path}")]
    CreateSymlink {
        /// The link.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// mknod(2).
    #[error("cannot make special file {path}")]
    CreateSpecial {
        /// The file.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// link(2).
    #[error("cannot link {path} to {target}")]
    CreateLink {
        /// The new name.
        path: PathText,
        /// The old one.
        target: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// write(2) or ftruncate(2).
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathText,
        /// What the kernel said.
        source: io::Error,
    },
    /// What a later entry replaces could not be removed.
    #[error("cannot replace {path}")]
    Replace {
        /// The entry.
        path: PathText,
        /// Why.
        source: RemoveError,
    },
    /// Owner, mode, extended attributes or times.
    #[error("cannot set metadata of {path}")]
    Metadata {
        /// The entry.
        path: PathText,
        /// Why.
        source: MetadataError,
    },
    /// The index did not take what was found.
    #[error("cannot note {path} in the layer's index")]
    Record {
        /// The entry.
        path: PathText,
        /// The sink's error.
        source: io::Error,
    },
}

impl UnpackError {
    /// Whether the filesystem or a quota on it is full: then it is not the
    /// layer's fault, and it may succeed when something has been removed.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// Whether the filesystem is read-only, as it becomes after disk errors.
    pub fn is_read_only(&self) -> bool {
        self.errno() == Some(Errno::ROFS)
    }

    fn errno(&self) -> Option<Errno> {
        errno_in_chain(self)
    }
}
