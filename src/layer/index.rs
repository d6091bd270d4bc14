//! What one layer says about each path: a sorted file on disk.
//!
//! The unpacker pushes a [`Record`] for everything that it meets, in the order
//! of the tar; [`Builder::finish`] sorts them (on disk, so that memory stays
//! bounded whatever the number of entries) and settles what a layer says twice
//! about one path. Sealing reads the result as a stream or asks for one path.
//!
//! Paths are relative to the layer's root, without a leading slash; the root
//! itself is the empty path. They sort component by component ([`compare`]), so
//! that a directory is followed at once by everything beneath it.

mod builder;
pub(crate) mod cache;
#[cfg(any(test, feature = "testing"))]
pub mod check;
pub(crate) mod codec;
mod log;
mod reader;
pub(crate) mod sort;

pub use builder::Builder;
pub use log::RecordLog;
pub use reader::{Cursor, Index};
pub use sort::IndexTooLarge;

use super::archive::Timestamp;
use std::cmp::Ordering;

/// Metadata of an inode, as the layer gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Attrs {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attrs {
    /// What a directory gets that no layer describes: root's, 0755, epoch.
    /// Constant, so that staging twice gives the same tree.
    pub fn implied() -> Self {
        Attrs {
            mode: 0o755,
            ..Attrs::default()
        }
    }
}

/// What a layer has at a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    /// A directory with an entry of its own.
    Directory {
        /// Metadata of the entry.
        attrs: Attrs,
        /// Order of the directory's own entry, of the first one if there are
        /// several, where something came below while it was still implied: what
        /// came before that entry went through whatever the layers below had.
        late: Option<u64>,
    },
    /// A directory that only the entries beneath it imply. On disk it exists
    /// with [`Attrs::implied`] until sealing gives it what the layers below say.
    Implied,
    /// Regular file; the same `inode` under several paths is a hard-link group.
    File {
        /// Metadata.
        attrs: Attrs,
        /// Apparent size in bytes.
        size: u64,
        /// Number of the inode, unique within the layer (the `seq` of its first name).
        inode: u64,
    },
    /// Symbolic link, with the same grouping.
    Symlink {
        /// Metadata; `mode` is not meaningful.
        attrs: Attrs,
        /// The link's text.
        target: Vec<u8>,
        /// As of a file.
        inode: u64,
    },
    /// Fifo, character or block device.
    Special {
        /// Metadata.
        attrs: Attrs,
        /// Which of the three.
        kind: SpecialKind,
        /// Major and minor, 0 for a fifo.
        device: (u32, u32),
        /// As of a file.
        inode: u64,
    },
    /// A hard link to a name that this layer does not have: one of the layers
    /// below must. Nothing is on disk for it yet.
    ForeignLink {
        /// The target, normalised lexically, not resolved.
        target: Vec<u8>,
    },
}

/// The kinds of [`Node::Special`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpecialKind {
    /// Named pipe.
    Fifo,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

impl Node {
    /// Whether it is a directory, of either kind.
    pub fn is_dir(&self) -> bool {
        matches!(self, Node::Directory { .. } | Node::Implied)
    }

    /// The number of the inode, of what can have several names.
    pub fn inode(&self) -> Option<u64> {
        match self {
            Node::File { inode, .. }
            | Node::Symlink { inode, .. }
            | Node::Special { inode, .. } => Some(*inode),
            Node::Directory { .. } | Node::Implied | Node::ForeignLink { .. } => None,
        }
    }
}

/// One statement of a layer about one path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The path, relative to the layer's root; empty for the root.
    pub path: Vec<u8>,
    /// Order in the archive; later statements win over earlier ones.
    pub seq: u64,
    /// What the layer has here; none if it only hides something.
    pub node: Option<Node>,
    /// The layer has `.wh.<name>`: what the layers below have here is hidden.
    pub whiteout: bool,
    /// The layer has `.wh..wh..opq` in this directory: what the layers below
    /// have inside it is hidden.
    pub opaque: bool,
    /// Something of this layer was beneath this name, while only implied as a
    /// directory, and then something else took the name. Where the layers below
    /// have a link here, that went elsewhere, and what the unpacker wrote of it
    /// is gone.
    pub displaced: bool,
    /// Something of this layer is beneath a name that it made a symbolic link,
    /// having come there by way of another.
    pub beneath_link: bool,
    /// Order of the last entry, other than a directory, that stood here before
    /// the directory that is here now; 0 for none. It took with it what came
    /// before it.
    pub cleared: u64,
    /// Order of the first entry that stood here, an implied directory included,
    /// where there were several. Of those that were replaced nothing else is
    /// kept. Without a `node`: something other than an implied directory was
    /// here and went with a directory above.
    pub first: Option<u64>,
    /// Target of the last hard link into the layers below that stood here and
    /// was replaced; empty for none. What came by way of it, or is a link to
    /// it, was meant for its target.
    pub lost_link: Vec<u8>,
}

impl Record {
    /// Order of the first entry that stood here.
    pub fn first(&self) -> u64 {
        self.first.unwrap_or(self.seq)
    }

    /// Nothing of the layers below shows here: a marker says so, or something
    /// else stood here before the directory that does now, which began empty.
    pub fn hides(&self) -> bool {
        self.whiteout || self.cleared > 0
    }

    /// Something stood here that nothing is known of any more.
    pub fn is_lost(&self) -> bool {
        self.node.is_none() && self.first.is_some()
    }

    /// From which entry on there is what the record says. A directory is
    /// there from its first own entry on, a later one changes its metadata.
    pub fn since(&self) -> u64 {
        match self.node {
            Some(Node::Directory {
                late: Some(own), ..
            }) => own,
            Some(Node::Directory { late: None, .. }) if self.cleared == 0 => self.first(),
            _ => self.seq,
        }
    }
}

/// Compares paths component by component: `/` sorts before every other byte,
/// so a subtree is contiguous and directly behind its directory.
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: u8| {
        if byte == b'/' {
            0u16
        } else {
            u16::from(byte) + 1
        }
    };
    for (x, y) in a.iter().zip(b) {
        if x != y {
            return rank(*x).cmp(&rank(*y));
        }
    }
    a.len().cmp(&b.len())
}

/// Whether `path` is strictly inside directory `dir` (the root holds everything).
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    if dir.is_empty() {
        return !path.is_empty();
    }
    path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/'
}

/// The directory that holds `path`; the root's is the root.
pub fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => &path[..slash],
        None => &[],
    }
}

/// The last component of `path`.
pub fn name(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => &path[slash + 1..],
        None => path,
    }
}

/// `dir` and `name` joined; the root adds no slash.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// What a whole index holds, so that sealing can skip what a layer does not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Records.
    pub records: u64,
    /// Paths with a node.
    pub nodes: u64,
    /// Whiteouts.
    pub whiteouts: u64,
    /// Opaque directories.
    pub opaques: u64,
    /// Directories that are only implied.
    pub implied: u64,
    /// Directories whose own entry came after something beneath them.
    pub late: u64,
    /// Hard links into the layers below.
    pub foreign_links: u64,
    /// Records that are `displaced` or `beneath_link`, or have a `lost_link`.
    pub doubtful: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Character devices 0:0, which overlayfs would take for whiteouts.
    pub null_devices: u64,
    /// Names longer than AUFS can look up (242 bytes).
    pub long_names: u64,
    /// Sum of the files' apparent sizes, each name counted.
    pub bytes: u64,
}

/// Bytes of the longest name that AUFS can look up: 255 less what it needs for
/// its own temporary names (its `statfs` says 242).
pub const AUFS_NAME_MAX: usize = 242;
