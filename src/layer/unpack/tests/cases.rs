//! The ways in which layers are written, legal ones: what they become on disk
//! and in records, before anything is known of the layers below.

use super::*;

/// Name, members, tree, records.
type Case = (
    &'static str,
    Vec<Member>,
    &'static [&'static str],
    &'static [&'static str],
);

fn fifo(path: &str) -> Member {
    (entry(EntryKind::Fifo, path), Vec::new())
}

#[test]
fn every_case_of_the_format_has_its_natural_form() {
    let cases: Vec<Case> = vec![
        (
            "A: a file in a directory that only the layers below describe",
            vec![file("lib/foo", "x")],
            &["lib/", "lib/foo=x"],
            &["0 implied lib", "0 file lib/foo"],
        ),
        (
            "B: a directory of its own over whatever is below",
            vec![dir("lib/"), file("lib/foo", "x")],
            &["lib/", "lib/foo=x"],
            &["0 dir lib", "1 file lib/foo"],
        ),
        (
            "C: a hard link to a layer below",
            vec![hard("g", "./f")],
            &[],
            &["0 foreign(f) g"],
        ),
        (
            "D, E: markers where nothing is",
            vec![
                file("lib/.wh.old", ""),
                file("lib/.wh..wh..opq", ""),
                file("lib/n", "n"),
            ],
            &["lib/", "lib/n=n"],
            &[
                "0 whiteout lib/old",
                "1 opaque lib",
                "2 implied lib",
                "2 file lib/n",
            ],
        ),
        (
            "F1: whiteout, then the file",
            vec![file(".wh.f", ""), file("f", "new")],
            &["f=new"],
            &["0 whiteout f", "1 file f"],
        ),
        (
            "F2: the file, then its whiteout",
            vec![file("f", "new"), file(".wh.f", "")],
            &["f=new"],
            &["0 file f", "1 whiteout f"],
        ),
        (
            "G: opaque after what is inside",
            vec![dir("d"), file("d/n", ""), file("d/.wh..wh..opq", "")],
            &["d/", "d/n="],
            &["0 dir d", "1 file d/n", "2 opaque d"],
        ),
        (
            "H: a file, then a directory of that name",
            vec![file("q", "x"), dir("q/"), file("q/r", "r")],
            &["q/", "q/r=r"],
            &["0 file q", "1 dir q", "2 file q/r"],
        ),
        (
            "I: a directory with content, then a file of that name",
            vec![dir("d"), dir("d/e"), file("d/e/f", ""), file("d", "file")],
            &["d=file"],
            &["0 dir d", "1 dir d/e", "2 file d/e/f", "3 file d"],
        ),
        (
            "J: whiteout, then directory",
            vec![file(".wh.d", ""), dir("d"), file("d/new", "")],
            &["d/", "d/new="],
            &["0 whiteout d", "1 dir d", "2 file d/new"],
        ),
        (
            "J2: directory, then whiteout",
            vec![dir("d"), file("d/new", ""), file(".wh.d", "")],
            &["d/", "d/new="],
            &["0 dir d", "1 file d/new", "2 whiteout d"],
        ),
        (
            "K: whiteouts of what may not exist add nothing",
            vec![file(".wh.nope", ""), file("no/.wh.pe", "")],
            &[],
            &["0 whiteout nope", "1 whiteout no/pe"],
        ),
        (
            "L: a way through the layer's own link",
            vec![link("s", "usr"), file("s/via", "v")],
            &["s->usr", "usr/", "usr/via=v"],
            &["0 link s", "1 implied usr", "1 file usr/via"],
        ),
        (
            "N: a way through the layer's own file",
            vec![file("f", "x"), file("f/sub", "s")],
            &["f/", "f/sub=s"],
            &["0 file f", "1 implied f", "1 file f/sub"],
        ),
        (
            "Q: opaque at the root",
            vec![file(".wh..wh..opq", ""), file("only", "o")],
            &["only=o"],
            &["0 opaque ", "1 file only"],
        ),
        (
            "R: whiteout, then a hard link to the name",
            vec![file(".wh.f", ""), hard("g", "f")],
            &[],
            &["0 whiteout f", "1 foreign(f) g"],
        ),
        (
            "S: markers of any type are markers",
            vec![
                file("e", "e"),
                hard(".wh.f", "e"),
                link(".wh.l", "e"),
                dir(".wh.d/"),
                fifo(".wh.p"),
                file(".wh.n", "not empty"),
                dir("o/.wh..wh..opq"),
            ],
            &["e=e"],
            &[
                "0 file e",
                "1 whiteout f",
                "2 whiteout l",
                "3 whiteout d",
                "4 whiteout p",
                "5 whiteout n",
                "6 opaque o",
            ],
        ),
        (
            "T: the root's own entry",
            vec![dir("./"), file("t", "")],
            &["t="],
            &["0 dir ", "1 file t"],
        ),
        (
            "U: an absolute link leads to the layer's root",
            vec![link("lib", "/usr/lib"), file("lib/foo", "f")],
            &["lib->/usr/lib", "usr/", "usr/lib/", "usr/lib/foo=f"],
            &[
                "0 link lib",
                "1 implied usr",
                "1 implied usr/lib",
                "1 file usr/lib/foo",
            ],
        ),
        (
            "V: AUFS's pseudo-links",
            vec![
                file(".wh..wh.aufs", ""),
                dir(".wh..wh.orph/"),
                file(".wh..wh.orph/x", "x"),
                dir(".wh..wh.plnk/"),
                file(".wh..wh.plnk/123.456", "content"),
                hard("v", "/.wh..wh.plnk/123.456"),
                hard("d/w", ".wh..wh.plnk/123.456"),
            ],
            &["d/", "d/w=content", "v=content"],
            &["5 file v", "6 implied d", "6 file d/w"],
        ),
        (
            "one directory twice keeps what is inside",
            vec![dir("d"), file("d/a", "a"), dir("./d/"), file("d/b", "b")],
            &["d/", "d/a=a", "d/b=b"],
            &["0 dir d", "1 file d/a", "2 dir d", "3 file d/b"],
        ),
        (
            "an implied directory gets its entry late",
            vec![file("d/a", "a"), dir("d")],
            &["d/", "d/a=a"],
            &["0 implied d", "0 file d/a", "1 dir d"],
        ),
        (
            "one file twice: the last one counts",
            vec![file("f", "long content"), file("f", "new")],
            &["f=new"],
            &["0 file f", "1 file f"],
        ),
        (
            "the last component is never followed",
            vec![
                file("f", "kept"),
                link("s", "f"),
                file("s", "mine"),
                link("t", "f"),
                link("t", "d"),
                link("u", "f"),
                dir("u"),
            ],
            &["f=kept", "s=mine", "t->d", "u/"],
            &[
                "0 file f", "1 link s", "2 file s", "3 link t", "4 link t", "5 link u", "6 dir u",
            ],
        ),
        (
            "a chain of links, relative and absolute, with dots",
            vec![
                dir("a/b"),
                link("a/b/up", "../../x/./y"),
                link("x", "/real"),
                dir("real/y"),
                file("a/b/up/f", "f"),
            ],
            &[
                "a/",
                "a/b/",
                "a/b/up->../../x/./y",
                "real/",
                "real/y/",
                "real/y/f=f",
                "x->/real",
            ],
            &[
                "0 implied a",
                "0 dir a/b",
                "1 link a/b/up",
                "2 link x",
                "3 implied real",
                "3 dir real/y",
                "4 passed a/b",
                "4 passed a",
                "4 file real/y/f",
            ],
        ),
        (
            "markers stay where the archive has them, whatever links the layer has",
            vec![
                dir("usr/lib"),
                link("lib", "usr/lib"),
                link("away", "/no/such/./../place"),
                file("lib/.wh.old", ""),
                file("lib/.wh..wh..opq", ""),
                file("away/.wh.x", ""),
                file("away/deep/.wh..wh..opq", ""),
            ],
            &[
                "away->/no/such/./../place",
                "lib->usr/lib",
                "usr/",
                "usr/lib/",
            ],
            &[
                "0 implied usr",
                "0 dir usr/lib",
                "1 link lib",
                "2 link away",
                "3 whiteout lib/old",
                "4 opaque lib",
                "5 whiteout away/x",
                "6 opaque away/deep",
            ],
        ),
        (
            "a marker beneath a file removes nothing",
            vec![
                file("f", "x"),
                file("f/d/.wh.x", ""),
                file("f/.wh..wh..opq", ""),
            ],
            &["f=x"],
            &["0 file f", "1 whiteout f/d/x", "2 opaque f"],
        ),
        (
            "a link's missing way is made only where it ends",
            vec![link("s", "no/../a/b"), file("s/f", "f")],
            &["a/", "a/b/", "a/b/f=f", "s->no/../a/b"],
            &[
                "0 link s",
                "1 passed no",
                "1 implied a",
                "1 implied a/b",
                "1 file a/b/f",
            ],
        ),
        (
            "hard links, through links and to links",
            vec![
                file("d/f", "f"),
                link("s", "d"),
                hard("g", "s/f"),
                hard("s/h", "/d/../d//g2/../f"),
                hard("t", "s"),
                hard("g", "d/f"),
                hard("d/f", "d/f"),
            ],
            &["d/", "d/f=f", "d/h=f", "g=f", "s->d", "t->d"],
            &[
                "0 implied d",
                "0 file d/f",
                "1 link s",
                "2 file g",
                "3 file d/h",
                "4 link t",
                "5 file g",
            ],
        ),
        (
            "a hard link to a layer below replaces what this layer had",
            vec![
                dir("d"),
                file("d/x", ""),
                hard("d", "below/f"),
                hard("n/m", "f"),
            ],
            &["n/"],
            &[
                "0 dir d",
                "1 file d/x",
                "2 foreign(below/f) d",
                "3 implied n",
                "3 foreign(f) n/m",
            ],
        ),
        (
            "a whiteout's prefix is only a prefix",
            vec![file("a.wh.b", ""), file(".wh", ""), file("d/.w", "")],
            &[".wh=", "a.wh.b=", "d/", "d/.w="],
            &["0 file a.wh.b", "1 file .wh", "2 implied d", "2 file d/.w"],
        ),
    ];
    for (what, members, tree, records) in cases {
        let unpacked = unpack(&members);
        assert_eq!(unpacked.tree(), tree, "{what}");
        assert_eq!(unpacked.notes(), records, "{what}");
        assert_eq!(unpacked.stats.entries, members.len() as u64, "{what}");
    }
}

#[test]
fn names_of_one_inode_have_its_number_and_metadata() {
    let mut first = file("d/f", "12345");
    first.0.mode = 0o4751;
    first.0.uid = 7;
    first.0.gid = 8;
    first.0.xattrs = vec![
        (b"trusted.note".to_vec(), vec![0, 1, 255]),
        (b"user.empty".to_vec(), Vec::new()),
    ];
    let mut fifo = fifo("pipe");
    fifo.0.uid = 9;
    let unpacked = unpack(&[
        first,
        hard("g", "d/f"),
        hard("h", "g"),
        link("s", "x"),
        hard("s2", "s"),
        fifo,
        hard("pipe2", "pipe"),
        file("alone", ""),
    ]);
    let node = |path| unpacked.record(path).node.clone().unwrap();
    assert_eq!(node("d/f"), node("g"));
    assert_eq!(node("d/f"), node("h"));
    assert_eq!(node("s"), node("s2"));
    assert_eq!(node("pipe"), node("pipe2"));
    let Node::File { attrs, size, inode } = node("g") else {
        panic!();
    };
    assert_eq!((attrs.mode, attrs.uid, attrs.gid, size), (0o4751, 7, 8, 5));
    assert_eq!(attrs.xattrs.len(), 2);
    let on_disk = std::fs::metadata(unpacked.at("g")).unwrap();
    assert_eq!((on_disk.ino(), on_disk.nlink()), (inode, 3));
    let Node::File { inode: other, .. } = node("alone") else {
        panic!();
    };
    assert_ne!(inode, other);
}

#[test]
fn pseudo_links_give_content_metadata_and_one_inode() {
    let mut kept = file(".wh..wh.plnk/1.2", "kept");
    kept.0.mode = 0o600;
    kept.0.uid = 3;
    let unpacked = unpack(&[
        file(".wh..wh.plnk/1.2", "older"),
        kept,
        hard("a", ".wh..wh.plnk/1.2"),
        hard("b", ".wh..wh.plnk/1.2"),
    ]);
    assert_eq!(unpacked.tree(), ["a=kept", "b=kept"]);
    let Some(Node::File { attrs, inode, size }) = &unpacked.record("a").node else {
        panic!();
    };
    assert_eq!((attrs.mode, attrs.uid, *size), (0o600, 3, 4));
    assert_eq!(unpacked.record("a").node, unpacked.record("b").node);
    assert_eq!(std::fs::metadata(unpacked.at("b")).unwrap().ino(), *inode);
    assert_eq!(unpacked.stats.dropped_entries, 0);
}

#[test]
fn a_link_to_a_pseudo_link_that_never_came_is_refused() {
    for members in [
        vec![hard("v", ".wh..wh.plnk/1.2")],
        vec![file(".wh..wh.plnk/3.4", ""), hard("v", ".wh..wh.plnk/1.2")],
        // Only regular files are kept.
        vec![
            link(".wh..wh.plnk/1.2", "/etc/passwd"),
            hard("v", ".wh..wh.plnk/1.2"),
        ],
    ] {
        assert!(matches!(
            refusal(&members),
            UnpackError::LinkTargetMissing { .. }
        ));
    }
}

#[test]
fn data_comes_in_pieces_and_leaves_holes() {
    let mut sparse = file("sparse", "");
    sparse.0.size = 10 << 20;
    sparse.1 = vec![
        (4096, vec![1; 100]),
        (4196, vec![2; 50]),
        (5 << 20, vec![3; 1]),
    ];
    let mut hole = file("hole", "");
    hole.0.size = 1 << 30;
    hole.1.clear();
    let unpacked = unpack(&[sparse, hole]);
    let content = std::fs::read(unpacked.at("sparse")).unwrap();
    let mut expected = vec![0; 10 << 20];
    expected[4096..4196].fill(1);
    expected[4196..4246].fill(2);
    expected[5 << 20] = 3;
    assert!(content == expected);
    let sparse = std::fs::metadata(unpacked.at("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20);
    let hole = std::fs::metadata(unpacked.at("hole")).unwrap();
    assert_eq!((hole.len(), hole.blocks()), (1 << 30, 0));
    let Some(Node::File { size, .. }) = unpacked.record("hole").node else {
        panic!();
    };
    assert_eq!(size, 1 << 30);
    assert_eq!(unpacked.stats.bytes, 151);
}
