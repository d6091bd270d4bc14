//! Cases that the table does not have.

use super::super::entry::{
    ACCESS_ACL, DEFAULT_ACL, Entry, EntryKind, Time, acl, dir, fifo, file, hardlink, opaque,
    symlink, whiteout,
};
use super::super::tree::{Kind, Node};
use super::{
    Case, Picture, a_dir, a_file, a_node, a_symlink, base, base_tree, implied_dir, refused, shows,
};

/// All of them.
pub fn further_cases() -> Vec<Case> {
    let mut cases = further_markers();
    cases.extend(further_links());
    cases.extend(further_metadata());
    cases.extend(further_attributes());
    cases.extend(further_refusals());
    cases.extend(super::replaced::directories_over_links());
    cases.extend(super::replaced::ways_that_the_layer_changes());
    cases
}

fn further_markers() -> Vec<Case> {
    let replaced_link = || {
        base_tree()
            .without("lib")
            .with("lib", a_dir())
            .with("lib/n", a_file("n"))
    };
    vec![
        // What an engine writes when a container replaced the link by a
        // directory: overlayfs marks such a directory opaque.
        shows(
            "an opaque directory replaces a link: what it led to stays",
            vec![base(), vec![dir("lib"), opaque("lib"), file("lib/n", b"n")]],
            replaced_link(),
        ),
        shows(
            "the same with the marker first",
            vec![base(), vec![opaque("lib"), dir("lib"), file("lib/n", b"n")]],
            replaced_link(),
        ),
        shows(
            "a whiteout inside of a directory that replaces a link",
            vec![
                base(),
                vec![whiteout("lib/old"), dir("lib"), file("lib/n", b"n")],
            ],
            replaced_link(),
        ),
        shows(
            "a whiteout behind a link that the same layer hides",
            vec![base(), vec![whiteout("lib/old"), whiteout("lib")]],
            base_tree().without("lib"),
        ),
        shows(
            "a whiteout and an implied directory of that name",
            vec![base(), vec![file("p/y", b"y"), whiteout("p")]],
            base_tree()
                .without("p/x")
                .without("p")
                .with("p", implied_dir())
                .with("p/y", a_file("y")),
        ),
        shows(
            "the whiteout of a link leaves what it led to",
            vec![base(), vec![whiteout("lib"), file("lib/n", b"n")]],
            base_tree()
                .without("lib")
                .with("lib", implied_dir())
                .with("lib/n", a_file("n")),
        ),
        shows(
            "markers below a file and in no directory do nothing",
            vec![base(), vec![whiteout("f/x"), opaque("f"), opaque("no")]],
            base_tree(),
        ),
        shows(
            "a root marker and entries of the same layer in any order",
            vec![
                base(),
                vec![
                    dir("").mode(0o711),
                    file("one", b"1"),
                    opaque(""),
                    file("two", b"2"),
                ],
            ],
            Picture::new()
                .without("")
                .with("", a_dir().mode(0o711))
                .with("one", a_file("1"))
                .with("two", a_file("2")),
        ),
        shows(
            "an opaque root keeps the root's metadata",
            vec![vec![dir("").mode(0o711), file("f", b"f")], vec![opaque("")]],
            Picture::new().without("").with("", a_dir().mode(0o711)),
        ),
        shows(
            "the names around the reserved ones",
            vec![
                vec![
                    file(".wh", b"1"),
                    file(".baz", b"2"),
                    file("wh.f", b"3"),
                    file("f", b"f"),
                ],
                vec![whiteout(".baz"), whiteout(".wh")],
            ],
            Picture::new()
                .with("wh.f", a_file("3"))
                .with("f", a_file("f")),
        ),
        shows(
            "AUFS's own names at any depth, and all that is inside",
            vec![
                base(),
                vec![
                    dir(".wh..wh.orph"),
                    file(".wh..wh.orph/x", b"x"),
                    file("d/.wh..wh.tmp.1f2e", b""),
                    file("d/.wh..wh.plnk/1.2", b"no link source"),
                ],
            ],
            base_tree(),
        ),
        shows(
            "two links to one of AUFS's link sources are one file",
            vec![vec![
                file(".wh..wh.plnk/1.2", b"v"),
                hardlink("v", ".wh..wh.plnk/1.2"),
                hardlink("w", "./.wh..wh.plnk/1.2"),
            ]],
            Picture::new().with("v", a_file("v")).also("w", "v"),
        ),
    ]
}

fn further_links() -> Vec<Case> {
    vec![
        shows(
            "hard links chain, across layers and through links",
            vec![
                base(),
                vec![hardlink("g", "lib/old")],
                vec![hardlink("usr/h", "g"), whiteout("lib/old")],
            ],
            base_tree()
                .also("g", "usr/lib/old")
                .also("usr/h", "g")
                .without("usr/lib/old"),
        ),
        shows(
            "a name of a group replaced leaves the others",
            vec![base(), vec![hardlink("g", "f"), file("f", b"new")]],
            base_tree()
                .also("g", "f")
                .without("f")
                .with("f", a_file("new")),
        ),
        shows(
            "a hard link to a symlink is not followed",
            vec![base(), vec![hardlink("g", "lib")]],
            base_tree().also("g", "lib"),
        ),
        shows(
            "a hard link over a directory",
            vec![base(), vec![hardlink("d", "f")]],
            base_tree().without("d/a").without("d").also("d", "f"),
        ),
        shows(
            "a dangling parent link: its target is made",
            vec![
                base(),
                vec![symlink("s", "/usr/deep/er"), file("s/n", b"n")],
            ],
            base_tree()
                .with("s", a_symlink("/usr/deep/er"))
                .with("usr/deep", implied_dir())
                .with("usr/deep/er", implied_dir())
                .with("usr/deep/er/n", a_file("n")),
        ),
        shows(
            "a parent link to a file: the file becomes a directory",
            vec![base(), vec![symlink("s", "f"), file("s/n", b"n")]],
            base_tree()
                .without("f")
                .with("s", a_symlink("f"))
                .with("f", implied_dir())
                .with("f/n", a_file("n")),
        ),
        shows(
            "a link cannot lead out of the root",
            vec![
                vec![dir("d"), symlink("d/up", "../../../..")],
                vec![file("d/up/n", b"n"), file("d/up/d/m", b"m")],
            ],
            Picture::new()
                .with("d", a_dir())
                .with("d/up", a_symlink("../../../.."))
                .with("n", a_file("n"))
                .with("d/m", a_file("m")),
        ),
        shows(
            "the last component of an entry is never followed",
            vec![base(), vec![file("lib", b"file")]],
            base_tree().without("lib").with("lib", a_file("file")),
        ),
        shows(
            "entries before a directory entry go through the link that it replaces",
            vec![base(), vec![file("lib/foo", b"foo"), dir("lib")]],
            base_tree()
                .with("usr/lib/foo", a_file("foo"))
                .without("lib")
                .with("lib", a_dir()),
        ),
    ]
}

fn further_metadata() -> Vec<Case> {
    let tagged = Node {
        xattrs: [(b"user.a".to_vec(), b"1".to_vec())].into(),
        ..a_file("x")
    };
    vec![
        shows(
            "nothing described: implied directories",
            vec![vec![file("a/b/c", b"c")]],
            Picture::new()
                .with("a", implied_dir())
                .with("a/b", implied_dir())
                .with("a/b/c", a_file("c")),
        ),
        shows("no layers at all", vec![], Picture::new()),
        shows(
            "a directory entry gives new metadata and keeps the children",
            vec![base(), vec![dir("p").mode(0o2750).owner(1, 2).mtime(7, 9)]],
            base_tree().without("p").with(
                "p",
                Node {
                    mtime: Some(Time {
                        seconds: 7,
                        nanos: 9,
                    }),
                    ..a_dir().mode(0o2750).owner(1, 2)
                },
            ),
        ),
        shows(
            "a directory's time is its entry's, whatever comes and goes inside",
            vec![
                base(),
                vec![whiteout("d/a"), file("d/n", b"n")],
                vec![whiteout("d/n")],
            ],
            base_tree().without("d/a"),
        ),
        shows(
            "a replaced file's attributes go with it",
            vec![
                vec![
                    file("x", b"").xattr("user.a", "0").xattr("user.b", "0"),
                    file("y", b"").xattr("user.a", "0"),
                ],
                vec![file("x", b"x").xattr("user.a", "1"), file("y", b"y")],
            ],
            Picture::new().with("x", tagged).with("y", a_file("y")),
        ),
        shows(
            "a layer cannot speak to overlayfs",
            vec![vec![
                dir("d").xattr("trusted.overlay.opaque", "y"),
                file("f", b"f").xattr("user.overlay.redirect", "/d"),
            ]],
            Picture::new().with("d", a_dir()).with("f", a_file("f")),
        ),
        shows(
            "pipes, and names written in other ways",
            vec![vec![
                dir("./d/"),
                fifo("/d//./q").mode(0o600),
                hardlink("d/r", "/d/q"),
            ]],
            Picture::new()
                .with("d", a_dir())
                .with("d/q", a_node(Kind::Fifo, 0o600))
                .also("d/r", "d/q"),
        ),
        shows(
            "devices",
            vec![vec![
                Entry::new("null", EntryKind::Char(1, 3)).mode(0o666),
                Entry::new("loop", EntryKind::Block(7, 0))
                    .mode(0o660)
                    .owner(0, 6),
            ]],
            Picture::new()
                .with("null", a_node(Kind::Char(1, 3), 0o666))
                .with("loop", a_node(Kind::Block(7, 0), 0o660).owner(0, 6)),
        ),
    ]
}

/// What sealing makes in a layer has its own attributes: none of the directory
/// that it is made in, and none of what was there before.
fn further_attributes() -> Vec<Case> {
    let with = |node: Node, name: &[u8], value: &[u8]| Node {
        xattrs: [(name.to_vec(), value.to_vec())].into(),
        ..node
    };
    let list = acl(0o750);
    // `cap_net_raw+ep` as revision 2 of the kernel's structure.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let below = || {
        vec![
            dir("d"),
            file("d/f", b"f"),
            dir("d/sub").mode(0o775),
            file("d/sub/x", b"x"),
            fifo("d/p"),
        ]
    };
    let above = || dir("d").xattr(DEFAULT_ACL, &list);
    let shown = || {
        Picture::new()
            .with("d", with(a_dir(), DEFAULT_ACL, &list))
            .with("d/f", a_file("f"))
            .with("d/sub", a_dir().mode(0o775))
            .with("d/sub/x", a_file("x"))
            .with("d/p", a_node(Kind::Fifo, 0o644))
    };
    vec![
        shows(
            "a default list is not handed down to a directory in which something is hidden",
            vec![below(), vec![above(), whiteout("d/sub/x")]],
            shown().without("d/sub/x"),
        ),
        shows(
            "nor to what is linked again",
            vec![
                below(),
                vec![above(), hardlink("g", "d/f"), hardlink("d/q", "d/p")],
            ],
            shown().also("g", "d/f").also("d/q", "d/p"),
        ),
        shows(
            "nor to one that is only implied, and what is linked in it",
            vec![
                below(),
                vec![above(), hardlink("d/sub/g", "d/f"), file("d/sub/n", b"n")],
            ],
            shown().also("d/sub/g", "d/f").with("d/sub/n", a_file("n")),
        ),
        shows(
            "what has a list of its own keeps it",
            vec![
                vec![
                    dir("d"),
                    file("d/f", b"f").mode(0o640).xattr(ACCESS_ACL, acl(0o640)),
                    dir("d/sub").xattr(DEFAULT_ACL, acl(0o700)),
                    file("d/sub/x", b"x"),
                ],
                vec![above(), hardlink("g", "d/f"), whiteout("d/sub/x")],
            ],
            Picture::new()
                .with("d", with(a_dir(), DEFAULT_ACL, &list))
                .with(
                    "d/f",
                    with(a_file("f").mode(0o640), ACCESS_ACL, &acl(0o640)),
                )
                .also("g", "d/f")
                .with("d/sub", with(a_dir(), DEFAULT_ACL, &acl(0o700))),
        ),
        shows(
            "a directory described twice, once through a link, has what came last",
            vec![
                base(),
                vec![
                    dir("usr/lib/e")
                        .xattr("user.a", "1")
                        .xattr(DEFAULT_ACL, &list),
                    file("usr/lib/e/n", b"n"),
                    dir("lib/e"),
                    file("lib/e/m", b"m"),
                ],
            ],
            base_tree()
                .with("usr/lib/e", a_dir())
                .with("usr/lib/e/n", a_file("n"))
                .with("usr/lib/e/m", a_file("m")),
        ),
        shows(
            "a file keeps its capability under a root that has one",
            vec![
                vec![file("f", b"f").xattr("security.capability", capability)],
                vec![
                    dir("").xattr("security.capability", capability),
                    hardlink("g", "f"),
                ],
            ],
            Picture::new()
                .without("")
                .with("", with(a_dir(), b"security.capability", &capability))
                .with("f", with(a_file("f"), b"security.capability", &capability))
                .also("g", "f"),
        ),
    ]
}

fn further_refusals() -> Vec<Case> {
    vec![
        refused(
            "a hard link to nothing",
            vec![base(), vec![hardlink("g", "usr/nothing")]],
            &["g", "usr/nothing"],
        ),
        refused(
            "a hard link to what comes later",
            vec![vec![hardlink("g", "later"), file("later", b"")]],
            &["g", "later"],
        ),
        refused(
            "a hard link to a directory",
            vec![base(), vec![hardlink("g", "usr")]],
            &["g", "usr"],
        ),
        refused(
            "a hard link to a link source that is missing",
            vec![base(), vec![hardlink("g", ".wh..wh.plnk/1.2")]],
            &["g", ".wh..wh.plnk/1.2"],
        ),
        refused(
            "a loop of links in a parent",
            vec![vec![symlink("a", "b"), symlink("b", "a"), file("a/x", b"")]],
            &["a"],
        ),
        refused(
            "a whiteout without a name",
            vec![vec![file("d/.wh.", b"")]],
            &["d/.wh."],
        ),
        refused(
            "a whiteout of the directory itself",
            vec![vec![file("d/.wh..", b"")]],
            &["d/.wh.."],
        ),
        refused(
            "a whiteout of the parent",
            vec![vec![file("d/.wh...", b"")]],
            &["d/.wh..."],
        ),
        refused(
            "a root that is a file",
            vec![vec![file("./", b"")]],
            &["root"],
        ),
    ]
}
