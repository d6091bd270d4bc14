//! What a layer means, as a table written by hand: 25 cases that real tools
//! disagree about (A to V), and further ones that came up since.

mod further;
mod replaced;

pub use further::further_cases;
pub use replaced::unsettled_cases;

use super::entry::{Layer, Time, UNSTATED, dir, file, hardlink, opaque, symlink, whiteout};
use super::tree::{Kind, Node, Tree};

/// One stack of layers and what it must become.
#[derive(Debug)]
pub struct Case {
    /// The letter that the table gives it, and the point in a few words.
    pub name: &'static str,
    pub layers: Vec<Layer>,
    pub expected: Expected,
}

#[derive(Debug)]
pub enum Expected {
    Tree(Tree),
    /// The stack makes no sense; the error names all of these.
    Refused(Vec<&'static str>),
}

/// The lowest layer of all cases but U.
fn base() -> Layer {
    vec![
        dir("usr"),
        dir("usr/lib"),
        file("usr/lib/old", b"old"),
        symlink("lib", "usr/lib"),
        file("f", b"f").mode(0o640),
        dir("d").mtime(1_400_000_000, 0),
        file("d/a", b"a"),
        dir("p").mode(0o1777).owner(5, 0),
        file("p/x", b"x"),
        file("z", b"z"),
    ]
}

/// What the lowest layer alone is, name by name.
fn base_tree() -> Picture {
    Picture::new()
        .with("usr", a_dir())
        .with("usr/lib", a_dir())
        .with("usr/lib/old", a_file("old"))
        .with("lib", a_symlink("usr/lib"))
        .with("f", a_file("f").mode(0o640))
        .with("d", a_dir().time(1_400_000_000))
        .with("d/a", a_file("a"))
        .with("p", a_dir().mode(0o1777).owner(5, 0))
        .with("p/x", a_file("x"))
        .with("z", a_file("z"))
}

/// An expected tree in the making. Names come and go one by one: nothing is
/// resolved, and nothing beneath a name goes with it.
#[derive(Clone)]
struct Picture(Tree);

impl Picture {
    fn new() -> Self {
        Picture(Tree::empty())
    }

    fn with(mut self, path: &str, mut node: Node) -> Self {
        node.inode = self.0.fresh_inode();
        self.0.nodes.insert(path.into(), node);
        self
    }

    /// A further name of what `first` is.
    fn also(mut self, path: &str, first: &str) -> Self {
        let node = self.0.get(first).expect("the first name is there").clone();
        self.0.nodes.insert(path.into(), node);
        self
    }

    fn without(mut self, path: &str) -> Self {
        self.0
            .nodes
            .remove(path.as_bytes())
            .expect("the name is there");
        self
    }
}

impl Node {
    fn mode(self, mode: u32) -> Self {
        Node { mode, ..self }
    }

    fn owner(self, uid: u32, gid: u32) -> Self {
        Node { uid, gid, ..self }
    }

    fn time(self, seconds: i64) -> Self {
        let mtime = Some(Time { seconds, nanos: 0 });
        Node { mtime, ..self }
    }
}

fn a_node(kind: Kind, mode: u32) -> Node {
    Node {
        kind,
        mode,
        implied: false,
        mtime: Some(UNSTATED),
        ..Node::implied_dir(0)
    }
}

fn a_dir() -> Node {
    a_node(Kind::Dir, 0o755)
}

fn implied_dir() -> Node {
    Node::implied_dir(0)
}

fn a_file(content: &str) -> Node {
    a_node(Kind::File(content.into()), 0o644)
}

fn a_symlink(target: &str) -> Node {
    a_node(Kind::Symlink(target.into()), 0o777)
}

fn shows(name: &'static str, layers: Vec<Layer>, picture: Picture) -> Case {
    let expected = Expected::Tree(picture.0);
    Case {
        name,
        layers,
        expected,
    }
}

fn refused(name: &'static str, layers: Vec<Layer>, words: &[&'static str]) -> Case {
    let expected = Expected::Refused(words.to_vec());
    Case {
        name,
        layers,
        expected,
    }
}

/// The 25 cases of the table.
pub fn cases() -> Vec<Case> {
    let mut cases = links_below();
    cases.extend(markers_and_types());
    cases.extend(oddities());
    cases
}

/// A to E and U: what a layer means depends on links of the layers below.
fn links_below() -> Vec<Case> {
    vec![
        shows(
            "A: through a link of the layer below",
            vec![base(), vec![file("lib/foo", b"foo")]],
            base_tree().with("usr/lib/foo", a_file("foo")),
        ),
        shows(
            "B: a directory entry replaces a link",
            vec![
                base(),
                vec![dir("lib").mode(0o700), file("lib/foo", b"foo")],
            ],
            base_tree()
                .without("lib")
                .with("lib", a_dir().mode(0o700))
                .with("lib/foo", a_file("foo")),
        ),
        shows(
            "C: a hard link to a file of the layer below",
            vec![base(), vec![hardlink("g", "f").mode(0o777).owner(7, 7)]],
            base_tree().also("g", "f"),
        ),
        shows(
            "D: a whiteout through a link",
            vec![base(), vec![whiteout("lib/old")]],
            base_tree().without("usr/lib/old"),
        ),
        shows(
            "E: an opaque marker through a link",
            vec![base(), vec![opaque("lib"), file("lib/n", b"n")]],
            base_tree()
                .without("usr/lib/old")
                .with("usr/lib/n", a_file("n")),
        ),
        shows(
            "U: an absolute link is resolved inside of the root",
            vec![
                vec![dir("usr"), dir("usr/lib"), symlink("lib", "/usr/lib")],
                vec![file("lib/foo", b"foo")],
            ],
            Picture::new()
                .with("usr", a_dir())
                .with("usr/lib", a_dir())
                .with("lib", a_symlink("/usr/lib"))
                .with("usr/lib/foo", a_file("foo")),
        ),
    ]
}

/// F to K and O to Q: markers, and entries of another type than what is below.
fn markers_and_types() -> Vec<Case> {
    vec![
        shows(
            "F1: a whiteout, then the file",
            vec![base(), vec![whiteout("f"), file("f", b"new")]],
            base_tree().without("f").with("f", a_file("new")),
        ),
        shows(
            "F2: the file, then its whiteout",
            vec![base(), vec![file("f", b"new"), whiteout("f")]],
            base_tree().without("f").with("f", a_file("new")),
        ),
        shows(
            "G: an opaque marker behind what it stands beside",
            vec![base(), vec![dir("d"), file("d/n", b"n"), opaque("d")]],
            base_tree()
                .without("d/a")
                .without("d")
                .with("d", a_dir())
                .with("d/n", a_file("n")),
        ),
        shows(
            "H: a file, then a directory of that name",
            vec![base(), vec![file("q", b"q"), dir("q"), file("q/r", b"r")]],
            base_tree().with("q", a_dir()).with("q/r", a_file("r")),
        ),
        shows(
            "I1: a file over a directory",
            vec![base(), vec![file("d", b"d")]],
            base_tree()
                .without("d/a")
                .without("d")
                .with("d", a_file("d")),
        ),
        shows(
            "I2: a directory over a file",
            vec![base(), vec![dir("f"), file("f/k", b"k")]],
            base_tree()
                .without("f")
                .with("f", a_dir())
                .with("f/k", a_file("k")),
        ),
        shows(
            "J: the whiteout of a directory, then a new one",
            vec![base(), vec![whiteout("d"), dir("d"), file("d/new", b"new")]],
            base_tree()
                .without("d/a")
                .without("d")
                .with("d", a_dir())
                .with("d/new", a_file("new")),
        ),
        shows(
            "J2: a new directory, then the old one's whiteout",
            vec![base(), vec![dir("d"), file("d/new", b"new"), whiteout("d")]],
            base_tree()
                .without("d/a")
                .without("d")
                .with("d", a_dir())
                .with("d/new", a_file("new")),
        ),
        shows(
            "K: whiteouts of what is not there",
            vec![base(), vec![whiteout("nope"), whiteout("no/pe")]],
            base_tree(),
        ),
        shows(
            "O: a directory over a file over a directory",
            vec![
                base(),
                vec![file("d", b"d")],
                vec![dir("d"), file("d/b", b"b")],
            ],
            base_tree()
                .without("d/a")
                .without("d")
                .with("d", a_dir())
                .with("d/b", a_file("b")),
        ),
        shows(
            "P: opaque over opaque",
            vec![
                base(),
                vec![dir("d"), opaque("d"), file("d/c", b"c")],
                vec![dir("d"), opaque("d"), file("d/e", b"e")],
            ],
            base_tree()
                .without("d/a")
                .without("d")
                .with("d", a_dir())
                .with("d/e", a_file("e")),
        ),
        shows(
            "Q: the root is opaque",
            vec![base(), vec![opaque(""), file("only", b"only")]],
            Picture::new().with("only", a_file("only")),
        ),
    ]
}

/// L to N and R to V.
fn oddities() -> Vec<Case> {
    vec![
        shows(
            "L: through a link of the same layer",
            vec![base(), vec![symlink("s", "usr"), file("s/via", b"via")]],
            base_tree()
                .with("s", a_symlink("usr"))
                .with("usr/via", a_file("via")),
        ),
        shows(
            "M: an implied directory keeps what is below",
            vec![base(), vec![file("p/y", b"y")]],
            base_tree().with("p/y", a_file("y")),
        ),
        shows(
            "N: a file where an entry needs a directory",
            vec![base(), vec![file("f/sub", b"sub")]],
            base_tree()
                .without("f")
                .with("f", implied_dir())
                .with("f/sub", a_file("sub")),
        ),
        refused(
            "R: a hard link to what its own layer hides",
            vec![base(), vec![whiteout("f"), hardlink("g", "f")]],
            &["g", "f"],
        ),
        shows(
            "S: a hard link whose name is a whiteout's",
            vec![base(), vec![file("e", b"e"), hardlink(".wh.f", "e")]],
            base_tree().without("f").with("e", a_file("e")),
        ),
        shows(
            "T: the root's own entry",
            vec![base(), vec![dir("").mode(0o700), file("t", b"t")]],
            base_tree()
                .without("")
                .with("", a_dir().mode(0o700))
                .with("t", a_file("t")),
        ),
        shows(
            "V: the names that AUFS keeps for itself",
            vec![
                base(),
                vec![
                    file(".wh..wh.aufs", b""),
                    dir(".wh..wh.plnk").mode(0o700),
                    file(".wh..wh.plnk/123.456", b"v").mode(0o600),
                    hardlink("v", ".wh..wh.plnk/123.456"),
                ],
            ],
            base_tree().with("v", a_file("v").mode(0o600)),
        ),
    ]
}
