//! What a mount shows, path by path: the tree that the model computes and that
//! is read back from a real directory, and their comparison in readable text.

use super::entry::{Time, Xattrs, is_below, join, show, split};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Char(u32, u32),
    Block(u32, u32),
}

/// An inode under one of its names. All names of an inode hold the same copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky; 0777 for a symlink.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// None where no particular time can be expected, after a change for example.
    pub mtime: Option<Time>,
    pub xattrs: Xattrs,
    /// Names with the same number are one hard-link group.
    pub inode: u64,
    /// No layer describes this directory. Only the model knows; a tree read
    /// from disk has `false` everywhere, and comparing ignores it.
    pub implied: bool,
}

impl Node {
    /// The directory that no layer describes: root's, 0755, epoch, no xattrs.
    pub fn implied_dir(inode: u64) -> Self {
        Node {
            kind: Kind::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Some(Time::default()),
            xattrs: Xattrs::new(),
            inode,
            implied: true,
        }
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    pub fn is_symlink(&self) -> bool {
        matches!(self.kind, Kind::Symlink(_))
    }
}

/// Nodes by path relative to the root, without a leading slash; the root is the
/// empty path. Every parent of a path is a directory of the tree.
#[derive(Clone, PartialEq, Eq)]
pub struct Tree {
    pub nodes: BTreeMap<Vec<u8>, Node>,
    /// No inode has this number or a higher one.
    next_inode: u64,
}

impl Tree {
    /// A root that no layer describes, and nothing in it.
    pub fn empty() -> Self {
        Tree {
            nodes: BTreeMap::from([(Vec::new(), Node::implied_dir(0))]),
            next_inode: 1,
        }
    }

    pub fn get(&self, path: impl AsRef<[u8]>) -> Option<&Node> {
        self.nodes.get(path.as_ref())
    }

    /// A number that no inode of the tree has or had.
    pub fn fresh_inode(&mut self) -> u64 {
        self.next_inode += 1;
        self.next_inode - 1
    }

    /// Removes what is at `path` and everything beneath it; nothing is fine too.
    pub fn remove(&mut self, path: &[u8]) {
        for inside in self.inside(path) {
            self.nodes.remove(&inside);
        }
        self.nodes.remove(path);
    }

    /// The paths directly inside `dir`.
    pub fn children(&self, dir: &[u8]) -> Vec<Vec<u8>> {
        let mut inside = self.inside(dir);
        inside.retain(|path| split(path).0 == dir);
        inside
    }

    /// The paths anywhere inside `dir`, in order.
    fn inside(&self, dir: &[u8]) -> Vec<Vec<u8>> {
        self.nodes
            .range(join(dir, b"")..)
            .map(|(path, _)| path)
            .skip_while(|path| path.is_empty())
            .take_while(|path| is_below(path, dir))
            .cloned()
            .collect()
    }

    /// The paths that satisfy `wanted`, in order.
    pub fn paths(&self, wanted: impl Fn(&Node) -> bool) -> Vec<Vec<u8>> {
        self.nodes
            .iter()
            .filter(|(_, node)| wanted(node))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// Changes an inode under all its names.
    pub fn change_inode(&mut self, inode: u64, change: impl Fn(&mut Node)) {
        self.nodes
            .values_mut()
            .filter(|node| node.inode == inode)
            .for_each(change);
    }

    /// The visible names of each inode, directories aside, keyed by each name.
    fn link_groups(&self) -> HashMap<&[u8], BTreeSet<&[u8]>> {
        let mut names: HashMap<u64, BTreeSet<&[u8]>> = HashMap::new();
        for (path, node) in self.nodes.iter().filter(|(_, node)| !node.is_dir()) {
            names.entry(node.inode).or_default().insert(path);
        }
        let mut groups = HashMap::new();
        for group in names.into_values() {
            for name in &group {
                groups.insert(*name, group.clone());
            }
        }
        groups
    }
}

/// Why a directory could not be read back.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {path}")]
pub struct ReadError {
    step: &'static str,
    path: String,
    source: io::Error,
}

/// Reads the tree below `root`, following nothing and changing nothing but atimes.
pub fn read(root: &Path) -> Result<Tree, ReadError> {
    let mut nodes = BTreeMap::new();
    let mut inodes = HashMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let real = real_path(root, &path);
        let failed = |step| {
            let path = real.display().to_string();
            move |source: io::Error| ReadError { step, path, source }
        };
        let node = read_one(&real, &mut inodes).map_err(failed("read"))?;
        if node.is_dir() {
            for child in std::fs::read_dir(&real).map_err(failed("list"))? {
                let child = child.map_err(failed("list"))?;
                pending.push(join(&path, child.file_name().as_bytes()));
            }
        }
        nodes.insert(path, node);
    }
    let next_inode = inodes.len() as u64;
    Ok(Tree { nodes, next_inode })
}

/// Where `path` of a tree is below `root`.
pub fn real_path(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() {
        root.to_path_buf()
    } else {
        root.join(std::ffi::OsStr::from_bytes(path))
    }
}

/// One inode; `inodes` numbers what was met before by device and inode number.
pub fn read_one(real: &Path, inodes: &mut HashMap<(u32, u32, u64), u64>) -> io::Result<Node> {
    let stat = rustix::fs::statx(
        CWD,
        real,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    )?;
    let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
    let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => Kind::Dir,
        FileType::RegularFile => Kind::File(read_content(real)?),
        FileType::Symlink => Kind::Symlink(std::fs::read_link(real)?.into_os_string().into_vec()),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char(device.0, device.1),
        FileType::BlockDevice => Kind::Block(device.0, device.1),
        FileType::Unknown => return Err(io::Error::other("unknown file type")),
    };
    let number = inodes.len() as u64;
    let identity = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    let inode = if kind == Kind::Dir {
        // Some unions number directories as they like; they have no link groups.
        inodes.insert((u32::MAX, u32::MAX, number), number);
        number
    } else {
        *inodes.entry(identity).or_insert(number)
    };
    Ok(Node {
        kind,
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mtime: Some(Time {
            seconds: stat.stx_mtime.tv_sec,
            nanos: stat.stx_mtime.tv_nsec,
        }),
        xattrs: read_xattrs(real)?,
        inode,
        implied: false,
    })
}

fn read_content(real: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut content = Vec::new();
    std::fs::File::from(rustix::fs::open(real, flags, Mode::empty())?).read_to_end(&mut content)?;
    Ok(content)
}

fn read_xattrs(real: &Path) -> io::Result<Xattrs> {
    // The kernel's limits for a list of names and for a value.
    let mut buffer = vec![0u8; 64 << 10];
    let length = match rustix::fs::llistxattr(real, &mut buffer) {
        Ok(length) => length,
        // A filesystem that has none.
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = Xattrs::new();
    let names = buffer[..length].to_vec();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if is_compared_xattr(name) {
            let length = rustix::fs::lgetxattr(real, name, &mut buffer)?;
            xattrs.insert(name.to_vec(), buffer[..length].to_vec());
        }
    }
    Ok(xattrs)
}

/// Not the union's own notes, nor what the machine's security policy labels, nor
/// what XFS calls its access control lists a second time; of `system.*` only
/// what a layer can carry.
pub fn is_compared_xattr(name: &[u8]) -> bool {
    !is_overlay_xattr(name)
        && name != b"security.selinux"
        && !name.starts_with(b"trusted.SGI_ACL_")
        && (!name.starts_with(b"system.") || name.starts_with(b"system.posix_acl_"))
}

/// Names in which overlayfs keeps its own state; a layer cannot set them.
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// What a comparison looks at. Types, contents, modes, targets and devices always count.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// The root directory's own metadata.
    pub root: bool,
    /// uid and gid: not as an unprivileged user.
    pub owners: bool,
    /// Modification times.
    pub mtimes: bool,
    /// Modification times of directories that no layer describes.
    pub implied_mtimes: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// Which names are one inode.
    pub link_groups: bool,
}

impl Compared {
    pub const ALL: Compared = Compared {
        root: true,
        owners: true,
        mtimes: true,
        implied_mtimes: true,
        xattrs: true,
        link_groups: true,
    };
}

/// One line for everything in which `actual` departs from `expected`; empty if it is right.
pub fn diff(expected: &Tree, actual: &Tree, compared: Compared) -> Vec<String> {
    let mut lines = Vec::new();
    let paths: BTreeSet<&Vec<u8>> = expected.nodes.keys().chain(actual.nodes.keys()).collect();
    let (expected_groups, actual_groups) = (expected.link_groups(), actual.link_groups());
    for path in paths {
        let name = if path.is_empty() {
            "(root)".to_string()
        } else {
            show(path)
        };
        match (expected.get(path), actual.get(path)) {
            (Some(node), None) => lines.push(format!("{name}: missing, expected {}", node.kind)),
            (None, Some(node)) => lines.push(format!("{name}: unexpected {}", node.kind)),
            (Some(expected), Some(actual)) => {
                if !path.is_empty() || compared.root {
                    lines.extend(
                        diff_node(expected, actual, compared)
                            .into_iter()
                            .map(|line| format!("{name}: {line}")),
                    );
                }
                let groups = (
                    expected_groups.get(path.as_slice()),
                    actual_groups.get(path.as_slice()),
                );
                if let (true, (Some(expected), Some(actual))) = (compared.link_groups, groups)
                    && expected != actual
                {
                    let (expected, actual) = (show_group(expected), show_group(actual));
                    lines.push(format!(
                        "{name}: hard-link group {actual}, expected {expected}"
                    ));
                }
            }
            (None, None) => unreachable!("the path came from one of the two"),
        }
    }
    lines
}

fn diff_node(expected: &Node, actual: &Node, compared: Compared) -> Vec<String> {
    let mut lines = Vec::new();
    if expected.kind != actual.kind {
        lines.push(format!("{}, expected {}", actual.kind, expected.kind));
    }
    if expected.mode != actual.mode && !matches!(actual.kind, Kind::Symlink(_)) {
        lines.push(format!(
            "mode {:04o}, expected {:04o}",
            actual.mode, expected.mode
        ));
    }
    let owners = |node: &Node| (node.uid, node.gid);
    if compared.owners && owners(expected) != owners(actual) {
        lines.push(format!(
            "owner {}:{}, expected {}:{}",
            actual.uid, actual.gid, expected.uid, expected.gid
        ));
    }
    let timed = compared.mtimes && (compared.implied_mtimes || !expected.implied);
    if let (true, Some(wanted), Some(found)) = (timed, expected.mtime, actual.mtime)
        && wanted != found
    {
        lines.push(format!("mtime {found}, expected {wanted}"));
    }
    if compared.xattrs {
        let names: BTreeSet<_> = expected.xattrs.keys().chain(actual.xattrs.keys()).collect();
        for name in names {
            let text = |value: Option<&Vec<u8>>| value.map_or("none".to_string(), |v| show(v));
            let (wanted, found) = (expected.xattrs.get(name), actual.xattrs.get(name));
            if wanted != found {
                let name = show(name);
                lines.push(format!(
                    "xattr {name} is {}, expected {}",
                    text(found),
                    text(wanted)
                ));
            }
        }
    }
    lines
}

fn show_group(group: &BTreeSet<&[u8]>) -> String {
    let names: Vec<String> = group.iter().map(|name| show(name)).collect();
    format!("{{{}}}", names.join(", "))
}

/// Stops the test with all differences; `what` names the comparison.
#[track_caller]
pub fn assert_same(what: &str, expected: &Tree, actual: &Tree, compared: Compared) {
    let lines = diff(expected, actual, compared);
    assert!(lines.is_empty(), "{what}:\n  {}", lines.join("\n  "));
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Dir => write!(f, "directory"),
            Kind::File(content) if content.len() > 32 => {
                write!(f, "file of {} bytes", content.len())?;
                // Enough to tell two long contents apart in a failure message.
                let sum = content.iter().fold(0u32, |sum, byte| {
                    sum.wrapping_mul(31).wrapping_add(u32::from(*byte))
                });
                write!(f, " (sum {sum:08x})")
            }
            Kind::File(content) => write!(f, "file \"{}\"", show(content)),
            Kind::Symlink(target) => write!(f, "symlink to \"{}\"", show(target)),
            Kind::Fifo => write!(f, "fifo"),
            Kind::Socket => write!(f, "socket"),
            Kind::Char(major, minor) => write!(f, "character device {major}:{minor}"),
            Kind::Block(major, minor) => write!(f, "block device {major}:{minor}"),
        }
    }
}

impl fmt::Debug for Tree {
    /// One line a name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, node) in &self.nodes {
            write!(f, "\n  /{}: {} {:04o}", show(path), node.kind, node.mode)?;
            write!(f, " {}:{} inode {}", node.uid, node.gid, node.inode)?;
            match node.mtime {
                Some(mtime) => write!(f, " @{mtime}")?,
                None => write!(f, " @any")?,
            }
            for (name, value) in &node.xattrs {
                write!(f, " [{}={}]", show(name), show(value))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.seconds, self.nanos)
    }
}
