//! Random layer stacks. Names are few, so that layers meet at the same paths
//! often; much is aimed at what the layers below have, so that it hits. A
//! candidate that makes no sense where it stands is left out again, so every
//! stack of [`stacks`] has a meaning and most of what is drawn is used.

use super::entry::{
    ACCESS_ACL, DEFAULT_ACL, Entry, EntryKind, Layer, Time, UNSTATED, Xattrs, acl, join, opaque,
    whiteout,
};
use super::model::{ModelError, Note, apply_layer, flatten};
use super::tree::{Kind, Node, Tree};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::collections::BTreeSet;

/// What a stack may contain.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// At most so many layers; at least two.
    pub max_layers: usize,
    /// At most so many candidates in a layer.
    pub max_entries: usize,
    /// What only root may set: owners, and `trusted.*` attributes.
    pub privileged: bool,
    /// `user.*` attributes: not where the filesystem has none.
    pub xattrs: bool,
    /// Access control lists, for files and for what is made in directories, if
    /// `privileged` and `xattrs`. Who extracts by the kernel's means alone gets
    /// wrong ones where a directory hands its own down.
    pub acls: bool,
    /// How often names lead to what is there: 1 is as it comes, more are stacks
    /// of little but links.
    pub links: u32,
}

impl Shape {
    pub const DEFAULT: Shape = Shape {
        max_layers: 6,
        max_entries: 10,
        privileged: true,
        xattrs: true,
        acls: true,
        links: 1,
    };
}

impl Default for Shape {
    fn default() -> Self {
        Shape::DEFAULT
    }
}

const NAMES: &[&str] = &["a", "b", "c", "d", "lib", "usr", "f", ".x"];

/// Stacks that have a meaning, the lowest layer first.
pub fn stacks(shape: Shape) -> impl Strategy<Value = Vec<Layer>> {
    vec(
        vec(candidate(shape), 0..=shape.max_entries),
        2..=shape.max_layers,
    )
    .prop_map(|layers| {
        let mut tree = Tree::empty();
        let mut stack = Vec::new();
        for candidates in layers {
            let layer = sensible_layer(&tree, candidates);
            tree = apply_layer(&tree, &layer, &mut BTreeSet::new())
                .expect("a layer of entries that were tried");
            stack.push(layer);
        }
        stack
    })
}

/// One to four images, the uppermost first, whose layers each have a meaning where
/// they stand. Most share their lowest layers with another one, and some have a
/// layer of another one somewhere else.
pub fn image_stacks(shape: Shape) -> impl Strategy<Value = Vec<Vec<Layer>>> {
    let image = (
        option::weighted(0.7, (any::<Index>(), any::<Index>())),
        option::weighted(0.2, any::<Index>()),
        vec(vec(candidate(shape), 0..=shape.max_entries), 0..=3),
    );
    vec(image, 1..=4).prop_map(|images| {
        let mut stacks: Vec<Vec<Layer>> = Vec::new();
        for (prefix, borrowed, own) in images {
            let mut stack = Vec::new();
            if let Some((image, layers)) = prefix.filter(|_| !stacks.is_empty()) {
                let from = &stacks[image.index(stacks.len())];
                stack.extend_from_slice(&from[..layers.index(from.len() + 1)]);
            }
            let mut tree = flatten(&stack).expect("the lowest layers of a stack that makes sense");
            for candidates in own {
                let layer = sensible_layer(&tree, candidates);
                tree = apply_layer(&tree, &layer, &mut BTreeSet::new())
                    .expect("a layer of entries that were tried");
                stack.push(layer);
            }
            let others: Vec<&Layer> = stacks.iter().flatten().collect();
            if let Some(layer) = borrowed.filter(|_| !others.is_empty()) {
                let layer = others[layer.index(others.len())].clone();
                let mut notes = BTreeSet::new();
                if apply_layer(&tree, &layer, &mut notes).is_ok()
                    && UNSETTLED.iter().all(|note| !notes.contains(note))
                {
                    stack.push(layer);
                }
            }
            if stack.is_empty() {
                stack.push(Layer::new());
            }
            stacks.push(stack);
        }
        stacks
    })
}

/// Stacks that make no sense, and how the model refuses them. The offending
/// layer is the last one; what is before it has a meaning.
pub fn refused_stacks(shape: Shape) -> impl Strategy<Value = (Vec<Layer>, ModelError)> {
    (stacks(shape), offence(), any::<Index>(), any::<Index>()).prop_filter_map(
        "the offence is none in this stack",
        |(mut stack, offence, place, pick)| {
            let tree = flatten(&stack).expect("a stack that has a meaning");
            let offending = offence.entries(&tree, pick);
            // Most of the top layer stays around it, for realism.
            let top = stack.last_mut().expect("two layers or more");
            let at = place.index(top.len() + 1);
            top.splice(at..at, offending);
            let error = flatten(&stack).err()?;
            Some((stack, error))
        },
    )
}

/// One way to make no sense.
#[derive(Clone, Copy, Debug)]
enum Offence {
    LinkToNothing,
    LinkToDirectory,
    LinkToHidden,
    LinkLoop,
    NamelessWhiteout,
    RootFile,
}

fn offence() -> impl Strategy<Value = Offence> {
    select(&[
        Offence::LinkToNothing,
        Offence::LinkToDirectory,
        Offence::LinkToHidden,
        Offence::LinkLoop,
        Offence::NamelessWhiteout,
        Offence::RootFile,
    ])
}

impl Offence {
    fn entries(self, tree: &Tree, pick: Index) -> Vec<Entry> {
        let entry = |path: &[u8], kind| Entry::new(path, kind);
        let link = |target: &[u8]| entry(b"zz", EntryKind::HardLink(target.to_vec()));
        match self {
            Offence::LinkToNothing => vec![link(b"nothing")],
            Offence::LinkToDirectory => {
                let dirs = tree.paths(Node::is_dir);
                vec![link(&dirs[pick.index(dirs.len())])]
            }
            Offence::LinkToHidden => {
                let files = tree.paths(|node| !node.is_dir());
                match files.len() {
                    0 => Vec::new(),
                    count => {
                        let file = &files[pick.index(count)];
                        vec![whiteout(file), link(file)]
                    }
                }
            }
            Offence::LinkLoop => vec![
                entry(b"z1", EntryKind::Symlink(b"z2".to_vec())),
                entry(b"z2", EntryKind::Symlink(b"z1/x".to_vec())),
                entry(b"z1/y", EntryKind::File(Vec::new())),
            ],
            Offence::NamelessWhiteout => {
                let names: [&[u8]; 3] = [b".wh.", b".wh..", b".wh..."];
                let dirs = tree.paths(Node::is_dir);
                let dir = &dirs[pick.index(dirs.len())];
                let path = join(dir, names[pick.index(names.len())]);
                vec![entry(&path, EntryKind::File(Vec::new()))]
            }
            Offence::RootFile => vec![entry(b"./", EntryKind::File(Vec::new()))],
        }
    }
}

/// An entry before it is known what is below it.
#[derive(Clone, Debug)]
struct Candidate {
    place: Place,
    what: What,
    meta: Meta,
    /// Written as `./path`.
    dotted: bool,
}

/// Where an entry goes.
#[derive(Clone, Debug)]
enum Place {
    /// Anywhere.
    Path(Vec<&'static str>),
    /// At something that is there.
    Existing(Index),
    /// In a directory that is there, or behind a link to who knows where.
    Inside(Index, &'static str),
    Root,
}

#[derive(Clone, Debug)]
enum What {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    /// A symlink to something that is there, from the root.
    SymlinkTo(Index),
    HardLinkTo(Index),
    Fifo,
    Whiteout,
    Opaque,
    /// A name that AUFS keeps for itself.
    Internal,
    /// A file that only links to it bring into the tree, and such a link.
    LinkSource(Vec<u8>),
    LinkToSource,
}

const LINK_SOURCE: &[u8] = b".wh..wh.plnk/12.34";

#[derive(Clone, Debug)]
struct Meta {
    mode: u32,
    owner: (u32, u32),
    mtime: Time,
    xattrs: Xattrs,
    /// Whether it has an access control list, which agrees with the mode.
    access: bool,
    /// What a directory hands down.
    default: Option<u32>,
}

fn candidate(shape: Shape) -> impl Strategy<Value = Candidate> {
    (place(), what(shape), meta(shape), prop::bool::weighted(0.1)).prop_map(
        |(place, what, meta, dotted)| Candidate {
            place,
            what,
            meta,
            dotted,
        },
    )
}

fn name() -> impl Strategy<Value = &'static str> {
    select(NAMES)
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        6 => vec(name(), 1..=3).prop_map(Place::Path),
        5 => any::<Index>().prop_map(Place::Existing),
        6 => (any::<Index>(), name()).prop_map(|(index, name)| Place::Inside(index, name)),
        1 => Just(Place::Root),
    ]
}

fn what(shape: Shape) -> impl Strategy<Value = What> {
    let links = shape.links;
    prop_oneof![
        5 => Just(What::Dir),
        7 => vec(any::<u8>(), 0..4).prop_map(What::File),
        2 * links => symlink_text().prop_map(What::Symlink),
        2 * links => any::<Index>().prop_map(What::SymlinkTo),
        2 + links => any::<Index>().prop_map(What::HardLinkTo),
        1 => Just(What::Fifo),
        5 => Just(What::Whiteout),
        2 => Just(What::Opaque),
        1 => internal(),
    ]
}

fn internal() -> impl Strategy<Value = What> {
    prop_oneof![
        Just(What::Internal),
        vec(any::<u8>(), 0..4).prop_map(What::LinkSource),
        Just(What::LinkToSource),
    ]
}

/// Relative, absolute, upwards, dangling: whatever comes of it.
fn symlink_text() -> impl Strategy<Value = Vec<u8>> {
    let component = prop_oneof![4 => name(), 1 => Just("..")];
    (any::<bool>(), vec(component, 1..=3)).prop_map(|(absolute, components)| {
        let root = if absolute { "/" } else { "" };
        format!("{root}{}", components.join("/")).into_bytes()
    })
}

fn meta(shape: Shape) -> impl Strategy<Value = Meta> {
    let mode = prop_oneof![
        4 => select(&[0o755, 0o644]),
        1 => select(&[0o700, 0o000, 0o555, 0o4755, 0o2755, 0o1777, 0o2644, 0o7777]),
    ];
    // The last one does not fit into the octal digits of a plain header.
    let id = prop_oneof![2 => Just(0), 1 => select(&[5, 1000, 70_000, 3_000_000])];
    let owner =
        (id.clone(), id).prop_map(move |owner| if shape.privileged { owner } else { (0, 0) });
    let nanos = select(&[0, 1, 500_000_000, 999_999_999]);
    let seconds = prop_oneof![
        4 => select(&[1_000_000_000, UNSTATED.seconds]),
        1 => select(&[0, 1, -1, 4_000_000_000]),
    ];
    let mtime = (seconds, nanos).prop_map(|(seconds, nanos)| Time { seconds, nanos });
    let names = select(&["user.a", "user.b", "trusted.c"]);
    let xattrs = option::weighted(0.15, btree_map(names, vec(any::<u8>(), 1..4), 1..=2));
    let xattrs = xattrs.prop_map(move |xattrs| {
        let xattrs = xattrs.filter(|_| shape.xattrs).unwrap_or_default();
        xattrs
            .into_iter()
            .filter(|(name, _)| shape.privileged || name.starts_with("user."))
            .map(|(name, value)| (name.as_bytes().to_vec(), value))
            .collect()
    });
    let has_acls = shape.privileged && shape.xattrs && shape.acls;
    let access = prop::bool::weighted(0.2);
    let default = option::weighted(0.25, select(&[0o750, 0o577]));
    (mode, owner, mtime, xattrs, access, default).prop_map(
        move |(mode, owner, mtime, xattrs, access, default)| Meta {
            mode,
            owner,
            mtime,
            xattrs,
            access: access && has_acls,
            default: default.filter(|_| has_acls),
        },
    )
}

/// What no specification says a word about; programs may do as they like.
const UNSETTLED: &[Note] = &[Note::LinkReplacesTarget, Note::ParentOfNoDirectory];

/// The candidates that make sense on top of `lower`, in their order.
fn sensible_layer(lower: &Tree, candidates: Vec<Candidate>) -> Layer {
    let mut layer = Layer::new();
    let mut tree = lower.clone();
    for candidate in candidates {
        // Markers aim at what the layers below have, entries at what is there by then.
        let seen = match candidate.what {
            What::Whiteout | What::Opaque => lower,
            _ => &tree,
        };
        let Some(entry) = candidate.entry(seen) else {
            continue;
        };
        layer.push(entry);
        let mut notes = BTreeSet::new();
        match apply_layer(lower, &layer, &mut notes) {
            Ok(next) if UNSETTLED.iter().all(|note| !notes.contains(note)) => tree = next,
            Ok(_) | Err(_) => {
                layer.pop();
            }
        }
    }
    layer
}

impl Candidate {
    /// The entry, once it is known what is there; none if it would be of no use.
    fn entry(self, tree: &Tree) -> Option<Entry> {
        let mut path = self.path(tree)?;
        let kind = match self.what {
            What::Internal => {
                path = join(&path, b".wh..wh.aufs");
                EntryKind::File(Vec::new())
            }
            What::LinkSource(content) => {
                path = LINK_SOURCE.to_vec();
                EntryKind::File(content)
            }
            What::LinkToSource => EntryKind::HardLink(LINK_SOURCE.to_vec()),
            What::Whiteout if path.is_empty() => return None,
            What::Whiteout => return Some(whiteout(path)),
            What::Opaque => return Some(opaque(path)),
            What::Dir => EntryKind::Dir,
            What::File(content) => EntryKind::File(content),
            What::Symlink(target) => EntryKind::Symlink(target),
            What::SymlinkTo(index) => {
                let target = pick(index, &tree.paths(|_| true))?;
                EntryKind::Symlink([b"/", target.as_slice()].concat())
            }
            What::HardLinkTo(index) => {
                let target = pick(index, &tree.paths(|node| !node.is_dir()))?;
                EntryKind::HardLink(target)
            }
            What::Fifo => EntryKind::Fifo,
        };
        if path.is_empty() && kind != EntryKind::Dir {
            return None;
        }
        let path = if self.dotted {
            [b"./", path.as_slice()].concat()
        } else {
            path
        };
        let mut entry = Entry::new(path, kind);
        entry.mtime = self.meta.mtime;
        (entry.uid, entry.gid) = self.meta.owner;
        if !matches!(entry.kind, EntryKind::Symlink(_)) {
            entry.mode = self.meta.mode;
        }
        // The kernel allows `user.*` on files and directories only.
        if matches!(entry.kind, EntryKind::File(_) | EntryKind::Dir) {
            entry.xattrs = self.meta.xattrs;
        }
        if self.meta.access && !matches!(entry.kind, EntryKind::Symlink(_) | EntryKind::HardLink(_))
        {
            let list = acl(entry.mode);
            entry.xattrs.insert(ACCESS_ACL.to_vec(), list);
        }
        if let (EntryKind::Dir, Some(mode)) = (&entry.kind, self.meta.default) {
            entry.xattrs.insert(DEFAULT_ACL.to_vec(), acl(mode));
        }
        Some(entry)
    }

    fn path(&self, tree: &Tree) -> Option<Vec<u8>> {
        match &self.place {
            Place::Path(components) => Some(components.join("/").into_bytes()),
            Place::Existing(index) => pick(*index, &tree.paths(|_| true)),
            Place::Inside(index, name) => {
                let through = |node: &Node| matches!(node.kind, Kind::Dir | Kind::Symlink(_));
                let dir = pick(*index, &tree.paths(through))?;
                Some(join(&dir, name.as_bytes()))
            }
            Place::Root => Some(Vec::new()),
        }
    }
}

fn pick(index: Index, paths: &[Vec<u8>]) -> Option<Vec<u8>> {
    (!paths.is_empty()).then(|| paths[index.index(paths.len())].clone())
}
