//! Random changes, as a program in a pod makes them, by ordinary system calls;
//! and what they make of a tree. A change is planned on the tree that the ones
//! before it leave, so each succeeds on a filesystem that works.
//!
//! Not among them: renaming directories, which unions refuse (`EXDEV`).

mod perform;

use super::entry::{ACCESS_ACL, DEFAULT_ACL, Time, Xattrs, join, set_acl_mode, split};
use super::tree::{Kind, Node, Tree};
use proptest::prelude::*;
use proptest::sample::{Index, select};

pub use perform::perform;

/// One change, on paths that exist (or do not) when its turn comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Create {
        path: Vec<u8>,
        content: Vec<u8>,
        mode: u32,
    },
    /// Overwrites from an offset, in or behind what is there.
    WriteAt {
        path: Vec<u8>,
        offset: u64,
        data: Vec<u8>,
    },
    Append {
        path: Vec<u8>,
        data: Vec<u8>,
    },
    Truncate {
        path: Vec<u8>,
        length: u64,
    },
    Unlink {
        path: Vec<u8>,
    },
    Rmdir {
        path: Vec<u8>,
    },
    /// `rm -rf` and `mkdir`: what was inside must not come back.
    RecreateDir {
        path: Vec<u8>,
        mode: u32,
    },
    Mkdir {
        path: Vec<u8>,
        mode: u32,
    },
    Mkfifo {
        path: Vec<u8>,
        mode: u32,
    },
    Symlink {
        path: Vec<u8>,
        target: Vec<u8>,
    },
    Link {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// Of something that is no directory, perhaps over another such thing.
    Rename {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Chmod {
        path: Vec<u8>,
        mode: u32,
    },
    Chown {
        path: Vec<u8>,
        uid: u32,
        gid: u32,
    },
    Utimens {
        path: Vec<u8>,
        mtime: Time,
    },
    SetXattr {
        path: Vec<u8>,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    RemoveXattr {
        path: Vec<u8>,
        name: Vec<u8>,
    },
}

impl Change {
    /// The paths that it names.
    pub fn paths(&self) -> Vec<&[u8]> {
        match self {
            Change::Link { from, to } | Change::Rename { from, to } => vec![from, to],
            Change::Create { path, .. }
            | Change::WriteAt { path, .. }
            | Change::Append { path, .. }
            | Change::Truncate { path, .. }
            | Change::Unlink { path }
            | Change::Rmdir { path }
            | Change::RecreateDir { path, .. }
            | Change::Mkdir { path, .. }
            | Change::Mkfifo { path, .. }
            | Change::Symlink { path, .. }
            | Change::Chmod { path, .. }
            | Change::Chown { path, .. }
            | Change::Utimens { path, .. }
            | Change::SetXattr { path, .. }
            | Change::RemoveXattr { path, .. } => vec![path],
        }
    }
}

/// What the filesystem under change is able to do.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Names of one inode stay one when it is changed. Without, such inodes
    /// only lose names.
    pub link_groups: bool,
    /// `user.*` attributes can be written.
    pub xattrs: bool,
    /// An attribute that is removed is gone. AUFS keeps it, without a value.
    pub xattr_removal: bool,
    /// Any owner can be given.
    pub owners: bool,
}

impl Allowed {
    pub const ALL: Allowed = Allowed {
        link_groups: true,
        xattrs: true,
        xattr_removal: true,
        owners: true,
    };
}

/// A change before it is known on what.
#[derive(Clone, Debug)]
pub struct Intent {
    what: What,
    /// What is changed.
    subject: Index,
    /// Where a new name goes.
    place: Index,
    name: &'static str,
    mode: u32,
    data: Vec<u8>,
    number: u32,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Create,
    WriteAt,
    Append,
    Truncate,
    Unlink,
    Rmdir,
    RecreateDir,
    Mkdir,
    Mkfifo,
    Symlink,
    Link,
    Rename,
    Chmod,
    Chown,
    Utimens,
    SetXattr,
    RemoveXattr,
}

/// At most `count` changes.
pub fn intents(count: usize) -> impl Strategy<Value = Vec<Intent>> {
    let what = select(&[
        What::Create,
        What::WriteAt,
        What::Append,
        What::Truncate,
        What::Unlink,
        What::Rmdir,
        What::RecreateDir,
        What::Mkdir,
        What::Mkfifo,
        What::Symlink,
        What::Link,
        What::Rename,
        What::Chmod,
        What::Chown,
        What::Utimens,
        What::SetXattr,
        What::RemoveXattr,
    ]);
    let name = select(&["a", "b", "c", "d", "new", "other"]);
    let mode = select(&[0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o444]);
    let data = prop::collection::vec(any::<u8>(), 1..6);
    let intent = (
        what,
        any::<Index>(),
        any::<Index>(),
        name,
        mode,
        data,
        any::<u32>(),
    );
    let intent = intent.prop_map(|(what, subject, place, name, mode, data, number)| Intent {
        what,
        subject,
        place,
        name,
        mode,
        data,
        number,
    });
    prop::collection::vec(intent, 0..=count)
}

/// The changes that the intents come to on `tree`, and the tree after them.
/// What finds nothing to act on is left out.
pub fn plan(tree: &Tree, intents: &[Intent], allowed: Allowed) -> (Vec<Change>, Tree) {
    let mut tree = tree.clone();
    let mut changes = Vec::new();
    for intent in intents {
        if let Some(change) = intent.on(&tree, allowed) {
            apply(&mut tree, &change);
            changes.push(change);
        }
    }
    (changes, tree)
}

impl Intent {
    fn on(&self, tree: &Tree, allowed: Allowed) -> Option<Change> {
        let names = |node: &Node| {
            tree.nodes
                .values()
                .filter(|other| other.inode == node.inode)
                .count()
        };
        let subject = |wanted: &dyn Fn(&Node) -> bool| {
            let paths = tree.paths(wanted);
            (!paths.is_empty()).then(|| paths[self.subject.index(paths.len())].clone())
        };
        let changeable = |node: &Node| allowed.link_groups || node.is_dir() || names(node) == 1;
        let is_file = |node: &Node| matches!(node.kind, Kind::File(_));
        let is_link = |node: &Node| matches!(node.kind, Kind::Symlink(_));
        let free = || {
            let path = self.new_path(tree)?;
            tree.get(&path).is_none().then_some(path)
        };
        let file = || subject(&|node| is_file(node) && changeable(node));
        let inode = || subject(&|node| !node.is_dir() && changeable(node));
        let taggable = || {
            subject(&|node| allowed.xattrs && (is_file(node) || node.is_dir()) && changeable(node))
        };
        let data = self.data.clone();
        let mode = self.mode;
        Some(match self.what {
            What::Create => Change::Create {
                path: free()?,
                content: data,
                mode,
            },
            What::WriteAt => Change::WriteAt {
                path: file()?,
                offset: u64::from(self.number % 6),
                data,
            },
            What::Append => Change::Append {
                path: file()?,
                data,
            },
            What::Truncate => Change::Truncate {
                path: file()?,
                length: u64::from(self.number % 9),
            },
            What::Unlink => Change::Unlink {
                path: subject(&|node| !node.is_dir())?,
            },
            What::Rmdir => {
                let empty: Vec<Vec<u8>> = tree
                    .paths(Node::is_dir)
                    .into_iter()
                    .filter(|path| !path.is_empty() && tree.children(path).is_empty())
                    .collect();
                let count = empty.len();
                (count > 0).then(|| Change::Rmdir {
                    path: empty[self.subject.index(count)].clone(),
                })?
            }
            What::RecreateDir => Change::RecreateDir {
                path: subject(&Node::is_dir).filter(|path| !path.is_empty())?,
                mode,
            },
            What::Mkdir => Change::Mkdir {
                path: free()?,
                mode,
            },
            What::Mkfifo => Change::Mkfifo {
                path: free()?,
                mode,
            },
            What::Symlink => Change::Symlink {
                path: free()?,
                target: [b"../", self.name.as_bytes()].concat(),
            },
            What::Link => {
                // Without link groups, none may come to be.
                let from = allowed.link_groups.then(inode).flatten()?;
                Change::Link { from, to: free()? }
            }
            What::Rename => {
                let (from, to) = (inode()?, self.new_path(tree)?);
                let in_the_way = tree.get(&to).is_some_and(Node::is_dir);
                (!in_the_way).then_some(Change::Rename { from, to })?
            }
            What::Chmod => Change::Chmod {
                path: subject(&|node| !is_link(node) && changeable(node))?,
                mode,
            },
            What::Chown => Change::Chown {
                path: subject(&|node| allowed.owners && changeable(node))?,
                uid: self.number % 3,
                gid: self.number / 3 % 3,
            },
            What::Utimens => Change::Utimens {
                path: subject(&changeable)?,
                mtime: Time {
                    seconds: 1_200_000_000 + i64::from(self.number % 1000),
                    nanos: self.number % 1_000_000_000,
                },
            },
            What::SetXattr => Change::SetXattr {
                path: taggable()?,
                name: format!("user.{}", self.name).into_bytes(),
                value: data,
            },
            What::RemoveXattr => {
                let is_user = |name: &&Vec<u8>| name.starts_with(b"user.");
                let tagged =
                    |node: &Node| node.xattrs.keys().any(|name| is_user(&name)) && changeable(node);
                let removal = allowed.xattrs && allowed.xattr_removal;
                let path = subject(&|node| removal && tagged(node))?;
                let name = tree.get(&path)?.xattrs.keys().find(is_user)?.clone();
                Change::RemoveXattr { path, name }
            }
        })
    }

    /// A name in some directory, taken or not.
    fn new_path(&self, tree: &Tree) -> Option<Vec<u8>> {
        let dirs = tree.paths(Node::is_dir);
        let dir = (!dirs.is_empty()).then(|| &dirs[self.place.index(dirs.len())])?;
        Some(join(dir, self.name.as_bytes()))
    }
}

/// Does to the tree what the change does to a directory of root's.
pub fn apply(tree: &mut Tree, change: &Change) {
    match change {
        Change::Create {
            path,
            content,
            mode,
        } => {
            add(tree, path, Kind::File(content.clone()), *mode);
        }
        Change::Mkdir { path, mode } => add(tree, path, Kind::Dir, *mode),
        Change::Mkfifo { path, mode } => add(tree, path, Kind::Fifo, *mode),
        Change::Symlink { path, target } => {
            add(tree, path, Kind::Symlink(target.clone()), 0o777);
        }
        Change::WriteAt { path, offset, data } => write(tree, path, |content| {
            let start = usize::try_from(*offset).expect("small");
            let end = start + data.len();
            content.resize(content.len().max(end), 0);
            content[start..end].copy_from_slice(data);
        }),
        Change::Append { path, data } => write(tree, path, |content| content.extend(data)),
        Change::Truncate { path, length } => write(tree, path, |content| {
            content.resize(usize::try_from(*length).expect("small"), 0);
        }),
        Change::Unlink { path } | Change::Rmdir { path } => {
            tree.remove(path);
            touch(tree, split(path).0);
        }
        Change::RecreateDir { path, mode } => {
            tree.remove(path);
            add(tree, path, Kind::Dir, *mode);
        }
        Change::Link { from, to } => {
            let node = tree.get(from).expect("planned").clone();
            tree.nodes.insert(to.clone(), node);
            touch(tree, split(to).0);
        }
        Change::Rename { from, to } => {
            let node = tree.get(from).expect("planned").clone();
            // Two names of one inode: rename(2) does nothing and succeeds.
            if tree.get(to).is_none_or(|old| old.inode != node.inode) {
                tree.remove(from);
                tree.nodes.insert(to.clone(), node);
                touch(tree, split(from).0);
                touch(tree, split(to).0);
            }
        }
        Change::Chmod { path, mode } => {
            let mode = *mode;
            change_at(tree, path, |node| {
                node.mode = mode;
                if let Some(list) = node.xattrs.get_mut(ACCESS_ACL) {
                    set_acl_mode(list, mode);
                }
            });
        }
        Change::Chown { path, uid, gid } => change_at(tree, path, |node| {
            (node.uid, node.gid) = (*uid, *gid);
            // The kernel takes the set-ID bits of what is no directory; of the
            // group's only where the group may execute.
            if matches!(node.kind, Kind::File(_) | Kind::Fifo) {
                node.mode &= !0o4000;
                if node.mode & 0o010 != 0 {
                    node.mode &= !0o2000;
                }
            }
        }),
        Change::Utimens { path, mtime } => {
            change_at(tree, path, |node| node.mtime = Some(*mtime));
        }
        Change::SetXattr { path, name, value } => change_at(tree, path, |node| {
            node.xattrs.insert(name.clone(), value.clone());
        }),
        Change::RemoveXattr { path, name } => change_at(tree, path, |node| {
            node.xattrs.remove(name);
        }),
    }
}

/// Leaves the times out of `changed` of what the changes were about, and of all
/// directories around it, whatever they made of them; those of all else are as
/// in `before`.
pub fn forget_times(changed: &mut Tree, before: &Tree, changes: &[Change]) {
    let mut about: Vec<u64> = Vec::new();
    for path in changes.iter().flat_map(Change::paths) {
        for tree in [&*changed, before] {
            let mut path = path;
            loop {
                about.extend(tree.get(path).map(|node| node.inode));
                if path.is_empty() {
                    break;
                }
                path = split(path).0;
            }
        }
    }
    for node in changed.nodes.values_mut() {
        if about.contains(&node.inode) {
            node.mtime = None;
        }
    }
}

/// A new inode of root's; in a set-group-ID directory it has the directory's
/// group, and from one with a default access control list it has that.
fn add(tree: &mut Tree, path: &[u8], kind: Kind, mode: u32) {
    let parent = tree.get(split(path).0).expect("planned");
    let gid = if parent.mode & 0o2000 != 0 {
        parent.gid
    } else {
        0
    };
    let mut xattrs = Xattrs::new();
    if let Some(list) = parent.xattrs.get(DEFAULT_ACL)
        && !matches!(kind, Kind::Symlink(_))
    {
        if kind == Kind::Dir {
            xattrs.insert(DEFAULT_ACL.to_vec(), list.clone());
        }
        let mut list = list.clone();
        set_acl_mode(&mut list, mode);
        xattrs.insert(ACCESS_ACL.to_vec(), list);
    }
    let inode = tree.fresh_inode();
    let node = Node {
        kind,
        mode,
        gid,
        mtime: None,
        xattrs,
        implied: false,
        ..Node::implied_dir(inode)
    };
    tree.nodes.insert(path.to_vec(), node);
    touch(tree, split(path).0);
}

/// The directory's time is that of the change, whenever that was.
fn touch(tree: &mut Tree, dir: &[u8]) {
    tree.nodes.get_mut(dir).expect("planned").mtime = None;
}

fn write(tree: &mut Tree, path: &[u8], edit: impl Fn(&mut Vec<u8>)) {
    change_at(tree, path, |node| match &mut node.kind {
        Kind::File(content) => {
            edit(content);
            node.mtime = None;
        }
        other => panic!("planned on a {other}"),
    });
}

fn change_at(tree: &mut Tree, path: &[u8], change: impl Fn(&mut Node)) {
    let inode = tree.get(path).expect("planned").inode;
    tree.change_inode(inode, change);
}
