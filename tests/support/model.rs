//! The reference model: what a stack of layers means, by the image
//! specification (`layer.md`), in the plainest form that can be written. It is
//! slow, holds everything in memory and does one thing after the other.
//!
//! A layer is applied in two steps. First all its markers act on what the
//! layers below brought, wherever they stand in the tar; then its entries are
//! extracted in the order of the tar, as tar would, but inside the root.

use super::entry::{Entry, EntryKind, Layer, UNSTATED, Xattrs, is_below, join, show, split};
use super::tree::{Kind, Node, Tree, is_overlay_xattr};
use std::collections::{BTreeMap, BTreeSet};

/// How many links one path may go through, as in the kernel.
const MAX_LINKS: usize = 40;

/// Layers that have no meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("hard link {link} to {target}, which does not exist")]
    MissingTarget { link: String, target: String },
    #[error("hard link {link} to {target}, which is a directory")]
    LinkToDirectory { link: String, target: String },
    #[error("too many symbolic links on the way through {path}")]
    LinkLoop { path: String },
    #[error("whiteout {path} names no file")]
    WhiteoutOfNothing { path: String },
    #[error("{path} is inside of a whiteout")]
    InsideWhiteout { path: String },
    #[error("{path} has a parent component")]
    ParentComponent { path: String },
    #[error("the root is not a directory")]
    RootIsNoDirectory,
    #[error("symbolic link {path} has no target")]
    EmptySymlink { path: String },
}

/// Something unusual that a layer made necessary: other tools differ there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// An entry's parent was not a directory and was replaced by one.
    ParentReplaced,
    /// A link stood in a parent position and was followed.
    LinkFollowed,
    /// A link's text goes up (`..`) from where there is no directory. Walking by
    /// name is what extractors do; the kernel would find nothing there.
    ParentOfNoDirectory,
    /// A marker stood below a path that another marker of its layer hides.
    MarkerBelowMarker,
    /// A marker stood below a link that its own layer replaces by a directory.
    MarkerInOwnDirectory,
    /// One of several markers of a layer is reached through a link, which
    /// another of them may hide: they all speak of the layers as they were.
    MarkersThroughLinks,
    /// A name of AUFS's own was dropped.
    InternalDropped,
    /// A hard link took the place of its own target, or of a directory above it.
    LinkReplacesTarget,
    /// An entry that is no directory replaced one.
    DirectoryReplaced,
    /// An entry replaced a link.
    LinkReplaced,
}

/// The tree that the layers make, the lowest first.
pub fn flatten(layers: &[Layer]) -> Result<Tree, ModelError> {
    flatten_noting(layers).map(|(tree, _)| tree)
}

/// As [`flatten`], with what was unusual on the way.
pub fn flatten_noting(layers: &[Layer]) -> Result<(Tree, BTreeSet<Note>), ModelError> {
    let mut notes = BTreeSet::new();
    let mut tree = Tree::empty();
    for layer in layers {
        tree = apply_layer(&tree, layer, &mut notes)?;
    }
    Ok((tree, notes))
}

/// One more layer on top of `lower`; what is unusual goes to `notes`.
pub fn apply_layer(
    lower: &Tree,
    layer: &Layer,
    notes: &mut BTreeSet<Note>,
) -> Result<Tree, ModelError> {
    let members = layer
        .iter()
        .map(|entry| Ok((normalise(&entry.path)?, entry)))
        .collect::<Result<Vec<_>, ModelError>>()?;
    let mut tree = lower.clone();
    for hidden in hidden_paths(lower, &members, notes)? {
        tree.remove(&hidden);
    }
    // Files in AUFS's own link directory exist only for links to them.
    let mut aside = BTreeMap::new();
    for (path, entry) in &members {
        match role(path)? {
            Role::Content => extract(&mut tree, &aside, path, entry, notes)?,
            Role::LinkSource => {
                notes.insert(Note::InternalDropped);
                if let EntryKind::File(content) = &entry.kind {
                    let inode = tree.fresh_inode();
                    let node = new_node(entry, Kind::File(content.clone()), inode);
                    aside.insert(path.clone(), node);
                }
            }
            Role::Internal => {
                notes.insert(Note::InternalDropped);
            }
            Role::Whiteout(_) | Role::Opaque(_) => {}
        }
    }
    Ok(tree)
}

/// Several images in one volume: each is flattened on its own, the first on
/// top; directories merge, anything else hides what is below it. Where directories
/// merge, the metadata is that of the upper one, unless that is only implied.
pub fn merge(images: &[Tree]) -> Tree {
    let mut merged = Tree::empty();
    for image in images.iter().rev() {
        let mut numbers = BTreeMap::new();
        for (path, node) in &image.nodes {
            // Parents sort before their children, so each parent is in place.
            let both_dirs = node.is_dir() && merged.get(path).is_some_and(Node::is_dir);
            if !both_dirs {
                merged.remove(path);
            } else if node.implied {
                continue;
            }
            let inode = *numbers
                .entry(node.inode)
                .or_insert_with(|| merged.fresh_inode());
            merged.nodes.insert(
                path.clone(),
                Node {
                    inode,
                    ..node.clone()
                },
            );
        }
    }
    merged
}

/// A layer that is the whole of `tree`: every directory has an entry, and an
/// inode's further names are hard links to its first.
pub fn to_layer(tree: &Tree) -> Layer {
    let mut first_names: BTreeMap<u64, &Vec<u8>> = BTreeMap::new();
    let mut layer = Layer::new();
    for (path, node) in &tree.nodes {
        let first = *first_names.entry(node.inode).or_insert(path);
        let kind = match &node.kind {
            _ if first != path => EntryKind::HardLink(first.clone()),
            Kind::Dir => EntryKind::Dir,
            Kind::File(content) => EntryKind::File(content.clone()),
            Kind::Symlink(target) => EntryKind::Symlink(target.clone()),
            Kind::Fifo => EntryKind::Fifo,
            Kind::Char(major, minor) => EntryKind::Char(*major, *minor),
            Kind::Block(major, minor) => EntryKind::Block(*major, *minor),
            Kind::Socket => panic!("{} is a socket: no tar holds one", show(path)),
        };
        layer.push(Entry {
            path: path.clone(),
            kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime.unwrap_or(UNSTATED),
            xattrs: node.xattrs.clone(),
        });
    }
    layer
}

/// Whether an entry is a whiteout or an opaque marker.
pub fn is_marker(entry: &Entry) -> bool {
    let role = normalise(&entry.path).and_then(|path| role(&path));
    matches!(role, Ok(Role::Whiteout(_) | Role::Opaque(_)))
}

/// Whether an entry has one of the names that AUFS keeps for itself.
pub fn is_internal(entry: &Entry) -> bool {
    let role = normalise(&entry.path).and_then(|path| role(&path));
    matches!(role, Ok(Role::LinkSource | Role::Internal))
}

/// What a path's name makes of its entry, whatever the entry's type.
enum Role {
    /// Something to extract.
    Content,
    /// Hides this path (as written, links not resolved).
    Whiteout(Vec<u8>),
    /// Hides what is inside this directory (as written).
    Opaque(Vec<u8>),
    /// A file of the root's `.wh..wh.plnk/`.
    LinkSource,
    /// Any other name that AUFS keeps for itself.
    Internal,
}

const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
const INTERNAL_PREFIX: &[u8] = b".wh..wh.";
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const LINK_SOURCES: &[u8] = b".wh..wh.plnk";

fn role(path: &[u8]) -> Result<Role, ModelError> {
    let (parent, name) = split(path);
    if parent == LINK_SOURCES {
        return Ok(Role::LinkSource);
    }
    let parents = || parent.split(|byte| *byte == b'/');
    if parents().any(|component| component.starts_with(INTERNAL_PREFIX)) {
        return Ok(Role::Internal);
    }
    if parents().any(|component| component.starts_with(WHITEOUT_PREFIX)) {
        return Err(ModelError::InsideWhiteout { path: show(path) });
    }
    if name == OPAQUE_NAME {
        return Ok(Role::Opaque(parent.to_vec()));
    }
    if name.starts_with(INTERNAL_PREFIX) {
        return Ok(Role::Internal);
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        None => Ok(Role::Content),
        Some(b"" | b"." | b"..") => Err(ModelError::WhiteoutOfNothing { path: show(path) }),
        Some(hidden) => Ok(Role::Whiteout(join(parent, hidden))),
    }
}

/// The paths of `lower` that the layer's markers hide. All markers look at the
/// same unchanged tree, so that their order cannot matter.
fn hidden_paths(
    lower: &Tree,
    members: &[(Vec<u8>, &Entry)],
    notes: &mut BTreeSet<Note>,
) -> Result<BTreeSet<Vec<u8>>, ModelError> {
    let mut said = Said::default();
    for (path, entry) in members {
        match role(path)? {
            Role::Whiteout(path) => said.whiteouts.insert(path),
            Role::Opaque(dir) => said.opaques.insert(dir),
            Role::Content if entry.kind == EntryKind::Dir => said.dirs.insert(path.clone()),
            Role::Content | Role::LinkSource | Role::Internal => false,
        };
    }
    let mut hidden = BTreeSet::new();
    for path in &said.whiteouts {
        let (parent, name) = split(path);
        if let Some(dir) = marked_dir(lower, &said, parent, notes)? {
            hidden.insert(join(&dir, name));
        }
    }
    for dir in &said.opaques {
        if let Some(dir) = marked_dir(lower, &said, dir, notes)? {
            hidden.extend(lower.children(&dir));
        }
    }
    Ok(hidden)
}

/// What a layer says about paths, as it writes them.
#[derive(Default)]
struct Said {
    dirs: BTreeSet<Vec<u8>>,
    whiteouts: BTreeSet<Vec<u8>>,
    opaques: BTreeSet<Vec<u8>>,
}

impl Said {
    /// Whether another marker of the layer hides `path` already.
    fn hides(&self, path: &[u8]) -> bool {
        self.whiteouts.contains(path) || self.opaques.contains(split(path).0)
    }
}

/// The directory of `lower` in which a marker acts, reached through links; none
/// if there is nothing that it could hide.
///
/// A link that the layer itself hides, or replaces by a directory, is not
/// followed: the marker belongs to the layer's own directory. Engines write such
/// layers when a container replaces a link by a directory, which overlayfs then
/// marks opaque; what the link led to must stay.
fn marked_dir(
    lower: &Tree,
    said: &Said,
    written: &[u8],
    notes: &mut BTreeSet<Note>,
) -> Result<Option<Vec<u8>>, ModelError> {
    let mut prefix = Vec::new();
    for component in components(written) {
        prefix = join(&prefix, component);
        if said.hides(&prefix) {
            notes.insert(Note::MarkerBelowMarker);
            return Ok(None);
        }
        if said.dirs.contains(&prefix) {
            let (parent, name) = split(&prefix);
            let here = join(&resolve(lower, parent, notes)?, name);
            if lower.get(&here).is_some_and(Node::is_symlink) {
                notes.insert(Note::MarkerInOwnDirectory);
                return Ok(None);
            }
        }
    }
    let dir = resolve(lower, written, notes)?;
    if dir != written && said.whiteouts.len() + said.opaques.len() > 1 {
        notes.insert(Note::MarkersThroughLinks);
    }
    Ok(lower.get(&dir).is_some_and(Node::is_dir).then_some(dir))
}

/// Where `written` leads when every link on the way, the last one too, is
/// followed inside of the root. What does not exist is walked through by name.
fn resolve(tree: &Tree, written: &[u8], notes: &mut BTreeSet<Note>) -> Result<Vec<u8>, ModelError> {
    let reversed =
        |path: &[u8]| -> Vec<Vec<u8>> { components(path).rev().map(<[u8]>::to_vec).collect() };
    // What is still to be walked, the next component last.
    let mut pending = reversed(written);
    let mut here = Vec::new();
    let mut links = 0;
    while let Some(component) = pending.pop() {
        if component == b".." {
            if !tree.get(&here).is_some_and(Node::is_dir) {
                notes.insert(Note::ParentOfNoDirectory);
            }
            here = split(&here).0.to_vec();
            continue;
        }
        let next = join(&here, &component);
        match tree.get(&next).map(|node| &node.kind) {
            Some(Kind::Symlink(target)) => {
                notes.insert(Note::LinkFollowed);
                links += 1;
                if links > MAX_LINKS {
                    return Err(ModelError::LinkLoop {
                        path: show(written),
                    });
                }
                if target.starts_with(b"/") {
                    here.clear();
                }
                pending.extend(reversed(target));
            }
            _ => here = next,
        }
    }
    Ok(here)
}

/// Makes `real`, in which no link is left, a directory, and all above it: what
/// is missing or of another type becomes an implied directory.
fn make_dirs(tree: &mut Tree, real: &[u8], notes: &mut BTreeSet<Note>) {
    let mut here = Vec::new();
    for component in components(real) {
        here = join(&here, component);
        let old = tree.get(&here);
        if old.is_some_and(Node::is_dir) {
            continue;
        }
        if old.is_some() {
            notes.insert(Note::ParentReplaced);
        }
        let inode = tree.fresh_inode();
        tree.nodes.insert(here.clone(), Node::implied_dir(inode));
    }
}

/// Extracts one entry over what is there.
fn extract(
    tree: &mut Tree,
    aside: &BTreeMap<Vec<u8>, Node>,
    path: &[u8],
    entry: &Entry,
    notes: &mut BTreeSet<Note>,
) -> Result<(), ModelError> {
    if path.is_empty() && entry.kind != EntryKind::Dir {
        return Err(ModelError::RootIsNoDirectory);
    }
    let (parent, name) = split(path);
    let dir = resolve(tree, parent, notes)?;
    make_dirs(tree, &dir, notes);
    let here = join(&dir, name);
    let inode = tree.fresh_inode();
    let kind = match &entry.kind {
        EntryKind::HardLink(target) => {
            let (real_target, node) = link_target(tree, aside, path, target, notes)?;
            if real_target == here || is_below(&real_target, &here) {
                notes.insert(Note::LinkReplacesTarget);
            }
            replace(tree, here, node, notes);
            return Ok(());
        }
        EntryKind::Symlink(target) if target.is_empty() => {
            return Err(ModelError::EmptySymlink { path: show(path) });
        }
        EntryKind::Dir => Kind::Dir,
        EntryKind::File(content) => Kind::File(content.clone()),
        EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
        EntryKind::Fifo => Kind::Fifo,
        EntryKind::Char(major, minor) => Kind::Char(*major, *minor),
        EntryKind::Block(major, minor) => Kind::Block(*major, *minor),
    };
    replace(tree, here, new_node(entry, kind, inode), notes);
    Ok(())
}

/// Puts `node` at `path`. A directory over a directory keeps what is inside it;
/// anything else takes the place of all that was there.
fn replace(tree: &mut Tree, path: Vec<u8>, node: Node, notes: &mut BTreeSet<Note>) {
    let old = tree.get(&path);
    let keeps_children = node.is_dir() && old.is_some_and(Node::is_dir);
    if old.is_some() && !keeps_children {
        if old.is_some_and(Node::is_dir) {
            notes.insert(Note::DirectoryReplaced);
        } else if old.is_some_and(Node::is_symlink) {
            notes.insert(Note::LinkReplaced);
        }
        tree.remove(&path);
    }
    tree.nodes.insert(path, node);
}

/// The real path and the inode that a hard link names: the target's directory is
/// reached through links, the target itself is not followed.
fn link_target(
    tree: &Tree,
    aside: &BTreeMap<Vec<u8>, Node>,
    link: &[u8],
    target: &[u8],
    notes: &mut BTreeSet<Note>,
) -> Result<(Vec<u8>, Node), ModelError> {
    let target = normalise(target)?;
    if let Some(node) = aside.get(&target) {
        return Ok((target, node.clone()));
    }
    let missing = || ModelError::MissingTarget {
        link: show(link),
        target: show(&target),
    };
    let (parent, name) = split(&target);
    let real = join(&resolve(tree, parent, notes)?, name);
    let node = tree.get(&real).ok_or_else(missing)?.clone();
    if node.is_dir() {
        return Err(ModelError::LinkToDirectory {
            link: show(link),
            target: show(&target),
        });
    }
    Ok((real, node))
}

fn new_node(entry: &Entry, kind: Kind, inode: u64) -> Node {
    let xattrs: Xattrs = entry
        .xattrs
        .iter()
        .filter(|(name, _)| !is_overlay_xattr(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    Node {
        mode: match kind {
            Kind::Symlink(_) => 0o777,
            _ => entry.mode,
        },
        kind,
        uid: entry.uid,
        gid: entry.gid,
        mtime: Some(entry.mtime),
        xattrs,
        inode,
        implied: false,
    }
}

/// A tar's path as a path of the tree: no leading slash, no `.`, nothing empty.
pub fn normalise(path: &[u8]) -> Result<Vec<u8>, ModelError> {
    let mut normal = Vec::new();
    for component in components(path) {
        if component == b".." {
            return Err(ModelError::ParentComponent { path: show(path) });
        }
        normal = join(&normal, component);
    }
    Ok(normal)
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
}
