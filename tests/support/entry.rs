//! One member of a layer, as tests state it: `dir("d").mode(0o1777)`,
//! `file("d/a", b"x")`, `whiteout("d/b")`. Markers are ordinary members with
//! reserved names, as they are in a tar.

use std::collections::BTreeMap;
use std::fmt;

/// Extended attributes by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The members of one layer, in the order of its tar.
pub type Layer = Vec<Entry>;

/// Time since the epoch; `nanos` counts forward, also before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

/// The time of entries that state none: not the epoch, which is what implied
/// directories have.
pub const UNSTATED: Time = Time {
    seconds: 1_500_000_000,
    nanos: 0,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    Char(u32, u32),
    Block(u32, u32),
}

#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// As the tar has it: not normalised; a trailing slash is the writer's business.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub xattrs: Xattrs,
}

impl Entry {
    pub fn new(path: impl AsRef<[u8]>, kind: EntryKind) -> Self {
        let mode = match kind {
            EntryKind::Dir => 0o755,
            EntryKind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        Entry {
            path: path.as_ref().to_vec(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: UNSTATED,
            xattrs: Xattrs::new(),
        }
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn mtime(mut self, seconds: i64, nanos: u32) -> Self {
        self.mtime = Time { seconds, nanos };
        self
    }

    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.xattrs
            .insert(name.as_ref().to_vec(), value.as_ref().to_vec());
        self
    }
}

pub fn dir(path: impl AsRef<[u8]>) -> Entry {
    Entry::new(path, EntryKind::Dir)
}

pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    Entry::new(path, EntryKind::File(content.as_ref().to_vec()))
}

pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry::new(path, EntryKind::Symlink(target.as_ref().to_vec()))
}

pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry::new(path, EntryKind::HardLink(target.as_ref().to_vec()))
}

pub fn fifo(path: impl AsRef<[u8]>) -> Entry {
    Entry::new(path, EntryKind::Fifo)
}

/// Names of the attributes in which the kernel keeps access control lists.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// An access control list as an attribute has it: version 2, then tag,
/// permissions and id of each line. User 1000 may do everything within the mask.
/// It agrees with `mode`, so that setting the mode changes nothing in it.
pub fn acl(mode: u32) -> Vec<u8> {
    let none = u32::MAX;
    let lines = [
        (0x01, mode >> 6, none),
        (0x02, 7, 1000),
        (0x04, 5, none),
        (0x10, mode >> 3, none),
        (0x20, mode, none),
    ];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in lines {
        bytes.extend(u16::to_le_bytes(tag));
        bytes.extend([(permissions & 7) as u8, 0]);
        bytes.extend(u32::to_le_bytes(id));
    }
    bytes
}

/// What becomes of a list when the mode is set: owner, mask and others get it.
pub fn set_acl_mode(list: &mut [u8], mode: u32) {
    for line in list[4..].chunks_exact_mut(8) {
        let bits = match line[0] {
            0x01 => mode >> 6,
            0x10 => mode >> 3,
            0x20 => mode,
            _ => continue,
        };
        line[2] = (bits & 7) as u8;
    }
}

/// The marker that hides `path` of the layers below: `d/x` is named `d/.wh.x`.
pub fn whiteout(path: impl AsRef<[u8]>) -> Entry {
    let path = path.as_ref();
    let split = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |i| i + 1);
    let (parent, name) = path.split_at(split);
    file([parent, b".wh.", name].concat(), b"")
}

/// The marker that hides what the layers below have inside `dir`; empty for the root.
pub fn opaque(dir: impl AsRef<[u8]>) -> Entry {
    file(join(dir.as_ref(), b".wh..wh..opq"), b"")
}

/// `dir` and `name` with a slash between them; the root, which is empty, adds none.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

/// The directory and the name of a path; those of `name` alone are the root and itself.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Whether `path` is strictly inside `dir`; everything is inside the root, but not itself.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    if dir.is_empty() {
        !path.is_empty()
    } else {
        path.strip_prefix(dir)
            .is_some_and(|rest| rest.starts_with(b"/"))
    }
}

/// Bytes as text that is unambiguous in a failure message.
pub fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

impl fmt::Debug for Entry {
    /// As the tables of cases write it, one line an entry: shrunk stacks are read
    /// by people, and pasted. Devices are a word more there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = show(&self.path);
        let implied = Entry::new(&self.path, self.kind.clone());
        match &self.kind {
            EntryKind::Dir => write!(f, "dir(\"{path}\")")?,
            EntryKind::File(content) => write!(f, "file(\"{path}\", b\"{}\")", show(content))?,
            EntryKind::Symlink(target) => write!(f, "symlink(\"{path}\", \"{}\")", show(target))?,
            EntryKind::HardLink(target) => write!(f, "hardlink(\"{path}\", \"{}\")", show(target))?,
            EntryKind::Fifo => write!(f, "fifo(\"{path}\")")?,
            kind @ (EntryKind::Char(..) | EntryKind::Block(..)) => {
                write!(f, "Entry::new(\"{path}\", EntryKind::{kind:?})")?;
            }
        }
        if self.mode != implied.mode {
            write!(f, ".mode({:#05o})", self.mode)?;
        }
        if (self.uid, self.gid) != (0, 0) {
            write!(f, ".owner({}, {})", self.uid, self.gid)?;
        }
        if self.mtime != UNSTATED {
            write!(f, ".mtime({}, {})", self.mtime.seconds, self.mtime.nanos)?;
        }
        for (name, value) in &self.xattrs {
            write!(f, ".xattr(\"{}\", b\"{}\")", show(name), show(value))?;
        }
        Ok(())
    }
}
