//! Layers in shorthand, sealed without any disk but the indexes' own: `d/` and
//! `d/@5` (owned by 5) are directories, `f` a file, `l -> t` a symbolic link,
//! `g => t` a hard link that the unpacker left to sealing, and `.wh.` names are
//! markers. Entries are in the order of the archive.

use super::*;
use crate::layer::index::{Builder, Node, Record, join, name, parent};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn text(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).unwrap()
}

fn index(entries: &[&str]) -> Index {
    let mut builder = Builder::new(tempfile::tempfile().unwrap());
    for (number, entry) in entries.iter().enumerate() {
        let seq = number as u64 + 1;
        let push = |builder: &mut Builder, path: &str, node| {
            let path = path.as_bytes().to_vec();
            let record = Record {
                path,
                seq,
                node,
                ..Record::default()
            };
            builder.push(&record).unwrap();
        };
        let (entry, uid) = entry.split_once('@').unwrap_or((entry, "0"));
        let attrs = Attrs {
            mode: 0o700,
            uid: uid.parse().unwrap(),
            ..Attrs::default()
        };
        let (path, node) = if let Some((path, target)) = entry.split_once(" -> ") {
            let target = target.as_bytes().to_vec();
            let inode = seq;
            (
                path,
                Node::Symlink {
                    attrs,
                    target,
                    inode,
                },
            )
        } else if let Some((path, target)) = entry.split_once(" => ") {
            let target = target.as_bytes().to_vec();
            (path, Node::ForeignLink { target })
        } else if let Some(path) = entry.strip_suffix('/') {
            (path, Node::Directory { attrs, late: None })
        } else if let Some(hidden) = name(entry.as_bytes()).strip_prefix(b".wh.") {
            let opaque = hidden == b".wh..opq";
            let dir = parent(entry.as_bytes());
            let record = Record {
                path: if opaque {
                    dir.to_vec()
                } else {
                    join(dir, hidden)
                },
                seq,
                whiteout: !opaque,
                opaque,
                ..Record::default()
            };
            builder.push(&record).unwrap();
            continue;
        } else {
            let (size, inode) = (1, seq);
            (entry, Node::File { attrs, size, inode })
        };
        for (at, _) in path.match_indices('/') {
            push(&mut builder, &path[..at], Some(Node::Implied));
        }
        push(&mut builder, path, Some(node));
    }
    builder.finish(tempfile::tempfile().unwrap()).unwrap()
}

fn try_sealed(layers: &[&[&str]], format: Format) -> Result<Sealed, SealError> {
    let layers: Vec<Index> = layers.iter().map(|layer| index(layer)).collect();
    seal(&layers, format, &Limits::default(), &tempfile::tempfile)
}

fn sealed(layers: &[&[&str]], format: Format) -> Sealed {
    try_sealed(layers, format).unwrap_or_else(|error| panic!("{error}: {layers:?}"))
}

fn show_edit(edit: Edit) -> String {
    match edit {
        Edit::Move { from, to } => format!("move {} to {}", text(&from), text(&to)),
        Edit::RemoveDirectory { path } => format!("rmdir {}", text(&path)),
        Edit::RemoveFile { path } => format!("rm {}", text(&path)),
        Edit::Directory { path, attrs } => format!("dir {} of {}", text(&path), attrs.uid),
        Edit::Implied { path } => format!("implied {}", text(&path)),
        Edit::Copy { layer, from, to } => {
            format!("copy {} of {layer} to {}", text(&from), text(&to))
        }
        Edit::Link { from, to } => format!("link {} to {}", text(&from), text(&to)),
        Edit::Whiteout { path } => format!("hide {}", text(&path)),
        Edit::Opaque { path } => format!("opaque {}", text(&path)),
    }
}

fn edits(log: &EditLog) -> Vec<String> {
    log.read().map(|edit| show_edit(edit.unwrap())).collect()
}

/// Expects these edits of each layer, in order.
#[track_caller]
fn assert_edits(format: Format, layers: &[&[&str]], expected: &[&[&str]]) {
    let sealed = sealed(layers, format);
    let found: Vec<Vec<String>> = sealed.edits.iter().map(edits).collect();
    assert_eq!(found, expected, "{layers:?}");
    for (log, expected) in sealed.edits.iter().zip(expected) {
        assert_eq!(log.is_empty(), expected.is_empty());
    }
}

#[test]
fn aufs_is_told_name_by_name() {
    let both = |layers: &[&[&str]], expected: &[&[&str]]| {
        assert_edits(Format::Aufs, layers, expected);
    };
    // An opaque directory hides each name that is there, and no other.
    both(
        &[
            &["d/", "d/a", "d/b"],
            &["d/", "d/.wh..wh..opq", "d/b", "d/c"],
        ],
        &[&[], &["hide d/a"]],
    );
    // Also where the one below was opaque itself.
    both(
        &[
            &["d/", "d/a"],
            &["d/", "d/.wh..wh..opq", "d/c"],
            &["d/", "d/.wh..wh..opq", "d/e"],
        ],
        &[&[], &["hide d/a"], &["hide d/c"]],
    );
    // A directory over a file over a directory.
    both(
        &[&["d/", "d/a"], &["d"], &["d/", "d/b"]],
        &[&[], &[], &["hide d/a"]],
    );
    // A marker beside the layer's own entry would hide both.
    both(&[&["f"], &[".wh.f", "f"]], &[&[], &[]]);
    both(
        &[&["d/", "d/a"], &[".wh.d", "d/", "d/new"]],
        &[&[], &["hide d/a"]],
    );
}

#[test]
fn overlay_is_told_by_directory() {
    let both = |layers: &[&[&str]], expected: &[&[&str]]| {
        assert_edits(Format::Overlay, layers, expected);
        assert_edits(Format::OverlayUser, layers, expected);
    };
    both(
        &[
            &["d/", "d/a", "d/b"],
            &["d/", "d/.wh..wh..opq", "d/b", "d/c"],
        ],
        &[&[], &["opaque d"]],
    );
    both(
        &[&["d/", "d/a"], &[".wh.d", "d/", "d/new"]],
        &[&[], &["opaque d"]],
    );
    // Overlay looks no further than a file.
    both(&[&["d/", "d/a"], &["d"], &["d/", "d/b"]], &[&[], &[], &[]]);
    both(&[&["f"], &[".wh.f", "f"]], &[&[], &[]]);
}

#[test]
fn what_needs_nothing_gets_nothing_and_can_be_shared() {
    for format in [Format::Aufs, Format::Overlay] {
        for layers in [
            &[&["d/", "d/a", "f"][..], &["d/", "d/b", "g"]][..],
            // Whiteouts of nothing, and those of the lowest layer.
            &[&["a"], &[".wh.nope", "no/.wh.pe"]],
            &[&[".wh.a", "d/", "d/.wh.b", "e/.wh..wh..opq"], &["c"]],
            // A file over a directory, and a directory over a file.
            &[&["d/", "d/a"], &["d"]],
            &[&["f"], &["f/", "f/k"]],
            &[&["f"], &["f/k"]],
            // Implied, and as the constant says where nothing is below.
            &[&["f"], &["d/k"]],
        ] {
            let none = vec![&[][..]; layers.len()];
            assert_edits(format, layers, &none);
        }
    }
}

#[test]
fn a_whiteout_brings_its_directory_as_it_is_below() {
    for format in [Format::Aufs, Format::Overlay] {
        assert_edits(
            format,
            &[&["d/@5", "d/e/@6", "d/e/f"], &["d/e/.wh.f"]],
            &[&[], &["dir d of 5", "dir d/e of 6", "hide d/e/f"]],
        );
        // An implied directory too, also from two layers below.
        assert_edits(
            format,
            &[&["p/@5", "p/x"], &["q"], &["p/y"]],
            &[&[], &[], &["dir p of 5"]],
        );
    }
}

#[test]
fn an_opaque_root_leaves_the_layers_below_it_out() {
    for format in [Format::Aufs, Format::Overlay] {
        let layers: &[&[&str]] = &[&["a", "/@3"], &["b"], &[".wh..wh..opq", "c"], &[".wh.a"]];
        assert_edits(format, layers, &[&[], &[], &[], &[]]);
        assert_eq!(sealed(layers, format).base, 2);
    }
    let root = |layers| sealed(layers, Format::Aufs).root.uid;
    assert_eq!(root(&[&["/@3", "a"], &["b"]]), 3);
    assert_eq!(root(&[&["/@3", "a"], &["/@4"], &["b"]]), 4);
    assert_eq!(sealed(&[&["a"]], Format::Aufs).root, Attrs::implied());
}

#[test]
fn links_of_the_layers_below_are_followed() {
    let lower: &[&str] = &["usr/", "usr/lib/", "usr/lib/old", "lib -> usr/lib"];
    let moved: &[&str] = &[
        "move lib/new to .moving-0",
        "rmdir lib",
        "implied usr",
        "implied usr/lib",
        "move .moving-0 to usr/lib/new",
    ];
    // The directories are given what those below have, in the end.
    let attributes: &[&str] = &["dir usr of 0", "dir usr/lib of 0"];
    assert_edits(
        Format::Overlay,
        &[lower, &["lib/new"]],
        &[&[], &[moved, attributes].concat()],
    );
    assert_edits(
        Format::Overlay,
        &[lower, &["lib/.wh.old"]],
        &[
            &[],
            &["dir usr of 0", "dir usr/lib of 0", "hide usr/lib/old"],
        ],
    );
    // The layer's own directory takes the link's place.
    assert_edits(
        Format::Overlay,
        &[lower, &["lib/", "lib/new", "lib/.wh.old"]],
        &[&[], &[]],
    );
}

#[test]
fn a_hard_link_brings_all_names_that_still_show() {
    let lower = || {
        // Two names of one inode, as the unpacker numbers them.
        let mut builder = Builder::new(tempfile::tempfile().unwrap());
        for (seq, path) in ["a", "b", "d/c"].iter().enumerate() {
            let node = Node::File {
                attrs: Attrs::default(),
                size: 1,
                inode: 7,
            };
            let path = path.as_bytes().to_vec();
            let seq = seq as u64;
            let record = Record {
                path,
                seq,
                node: Some(node),
                ..Record::default()
            };
            builder.push(&record).unwrap();
        }
        let directory = Record {
            path: b"d".to_vec(),
            node: Some(Node::Implied),
            ..Record::default()
        };
        builder.push(&directory).unwrap();
        builder.finish(tempfile::tempfile().unwrap()).unwrap()
    };
    let linked = |upper: &[&str]| {
        let sealed = seal(
            &[lower(), index(upper)],
            Format::Aufs,
            &Limits::default(),
            &tempfile::tempfile,
        )
        .unwrap();
        assert!(sealed.edits[1].copies());
        edits(&sealed.edits[1])
    };
    assert_eq!(
        linked(&["g => b"]),
        [
            "implied d",
            "copy b of 0 to a",
            "link a to b",
            "link a to d/c",
            "link a to g"
        ]
    );
    assert_eq!(
        linked(&[".wh.a", "d", "g => b", "h => g"]),
        ["copy b of 0 to b", "link b to g", "link b to h", "hide a"]
    );
    // Nothing else of it shows any more.
    assert_eq!(linked(&["g => b", "a", "b", "d"]), ["copy b of 0 to g"]);
}

#[test]
fn what_was_lost_is_refused_rather_than_guessed() {
    let lower: &[&str] = &["f", "d/x", "usr/", "lib -> usr", "up -> ..", "o -> o"];
    for upper in [
        // A link to a link that is no more.
        &["d/l => f", "g => d/l", "d"][..],
        &["l => f", "g => l", "l"],
        // What was beneath an implied directory is gone from the disk.
        &["lib/x", "lib"],
        // Something may have stood here before.
        &["l => lib", "l/x"],
        &["up/l => up", "l/x", "up/l", "l"],
        // A link to what went through a link, and then with its directory.
        &["lib/x", "g => usr/x", "usr"],
        &["usr/", "lib/x", "g => usr/x", "usr"],
    ] {
        let refused = try_sealed(&[lower, upper], Format::Overlay).map(|_| ());
        assert!(
            matches!(refused, Err(SealError::Unsettled { layer: 2, .. })),
            "{upper:?}: {refused:?}"
        );
    }
}

#[test]
fn what_makes_no_sense_says_so() {
    let lower: &[&str] = &["f", "d/x", "o -> o"];
    let refused = |upper: &[&str]| try_sealed(&[lower, upper], Format::Aufs).unwrap_err();
    use SealError as E;
    assert!(matches!(refused(&["g => no"]), E::LinkTargetMissing { .. }));
    assert!(matches!(
        refused(&[".wh.f", "g => f"]),
        E::LinkTargetRemoved { layer: 2, link, target } if link.as_bytes() == b"g" && target.as_bytes() == b"f"
    ));
    assert!(matches!(refused(&["g => d"]), E::LinkToDirectory { .. }));
    assert!(matches!(refused(&["o/x"]), E::LinkLoop { .. }));
    // A circle that nothing enters harms nobody.
    assert_edits(Format::Aufs, &[lower, &["o", "f"]], &[&[], &[]]);
}

#[test]
fn ways_through_links_are_bounded() {
    let link = |from: &str, to: &str| format!("{from} -> {to}");
    let refused = |links: &[String], upper: &[&str], limits: &Limits| {
        let lower: Vec<&str> = links.iter().map(String::as_str).collect();
        let layers = [index(&lower), index(upper)];
        seal(&layers, Format::Aufs, limits, &tempfile::tempfile).map(|_| ())
    };
    let (few, default) = (
        Limits {
            max_depth: 6,
            max_path_bytes: 40,
            ..Limits::default()
        },
        Limits::default(),
    );
    let two = |text: &str| [link("l", &format!("m/{text}")), link("m", text)];
    use SealError as E;
    // Each link is within the bounds; both together are at them, or beyond.
    for upper in ["l/x", "l/.wh.x", "g => l/x"] {
        let result = refused(&two("a/a/a"), &[upper], &few);
        assert!(
            matches!(
                result,
                Err(E::TooDeep {
                    layer: 2,
                    limit: 6,
                    ..
                })
            ),
            "{result:?}"
        );
        let result = refused(&two("aaaaaaaaaaaaaaaaaaaa"), &[upper], &few);
        assert!(
            matches!(
                result,
                Err(E::TooLong {
                    layer: 2,
                    limit: 40,
                    ..
                })
            ),
            "{result:?}"
        );
        let long = [link("l", &"n".repeat(256))];
        let result = refused(&long, &[upper], &default);
        assert!(
            matches!(
                result,
                Err(E::NameTooLong {
                    layer: 2,
                    limit: 255,
                    ..
                })
            ),
            "{result:?}"
        );
        let turns = two(&"a/../".repeat(1025));
        let result = refused(&turns, &[upper], &default);
        assert!(
            matches!(
                result,
                Err(E::TooManySteps {
                    layer: 2,
                    limit: 4096,
                    ..
                })
            ),
            "{result:?}"
        );
    }
    assert!(refused(&two("a/a"), &["l/x/y"], &few).is_ok());
    assert!(refused(&two(&"a/../".repeat(900)), &["l/x"], &default).is_ok());
    // What is beneath the place goes on from there.
    let result = refused(&two("a/a"), &["l/x/y/z"], &few);
    assert!(matches!(result, Err(E::TooDeep { .. })), "{result:?}");
    // One way, whichever of its directories the links are in.
    let one = &[link("l", ".")];
    let way = |n: usize| format!("{}x", "l/".repeat(n));
    assert!(refused(one, &[&way(40)], &default).is_ok());
    let result = refused(one, &[&way(41)], &default);
    assert!(
        matches!(
            result,
            Err(E::TooManyLinks {
                layer: 2,
                limit: 40,
                ..
            })
        ),
        "{result:?}"
    );
}

#[test]
fn what_is_settled_is_bounded_whatever_it_grew_from() {
    // Each of these directories says all of those on the way to it again.
    let lower = format!("l -> {}", ["d"; 100].join("/"));
    let upper: Vec<String> = (0..100).map(|n| format!("l/{n}/x")).collect();
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    let layers = [index(&[&lower]), index(&upper)];
    let limits = Limits {
        max_index_bytes: 1 << 20,
        ..Limits::default()
    };
    let refused = seal(&layers, Format::Aufs, &limits, &tempfile::tempfile).map(|_| ());
    let limit = limits.max_index_bytes;
    assert!(
        matches!(refused, Err(SealError::IndexTooLarge { layer: 2, limit: found }) if found == limit),
        "{refused:?}"
    );
}

/// What a branch has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    Directory(Attrs),
    /// The layer that has it, and where.
    Other(usize),
}

/// A branch as it lies on disk when its edits are made.
#[derive(Debug, Default)]
struct Branch {
    entries: BTreeMap<Vec<u8>, Shown>,
    whiteouts: BTreeSet<Vec<u8>>,
    opaques: BTreeSet<Vec<u8>>,
}

fn branch(layer: usize, sealed: &Sealed) -> Branch {
    let mut branch = Branch::default();
    let mut cursor = sealed.effective[layer].cursor();
    while let Some(record) = cursor.next_record().unwrap() {
        let shown = match record.node {
            None => continue,
            Some(Node::Directory { attrs, .. }) => Shown::Directory(attrs),
            Some(Node::Implied) => Shown::Directory(Attrs::implied()),
            Some(_) => Shown::Other(layer),
        };
        branch.entries.insert(record.path, shown);
    }
    for edit in sealed.edits[layer].read() {
        match edit.unwrap() {
            Edit::Directory { path, attrs } => {
                let missing_parent =
                    !parent(&path).is_empty() && !branch.entries.contains_key(parent(&path));
                assert!(!missing_parent, "{}", text(&path));
                branch.entries.insert(path, Shown::Directory(attrs));
            }
            Edit::Implied { path } => {
                let above = parent(&path);
                assert!(above.is_empty() || branch.entries.contains_key(above));
                branch
                    .entries
                    .insert(path, Shown::Directory(Attrs::implied()));
            }
            Edit::Whiteout { path } => {
                assert!(branch.whiteouts.insert(path));
            }
            Edit::Opaque { path } => {
                assert!(branch.opaques.insert(path));
            }
            // Their outcome is what the effective index says.
            Edit::Move { .. }
            | Edit::RemoveDirectory { .. }
            | Edit::RemoveFile { .. }
            | Edit::Copy { .. }
            | Edit::Link { .. } => {}
        }
    }
    branch
}

/// What the union filesystem shows of these branches, the lowest first, by its
/// rules for one name after the other.
fn union(branches: &[Branch], format: Format) -> BTreeMap<Vec<u8>, Shown> {
    let mut shown = BTreeMap::new();
    let mut directories = vec![(Vec::new(), (0..branches.len()).collect::<Vec<usize>>())];
    while let Some((dir, parts)) = directories.pop() {
        let names: BTreeSet<&Vec<u8>> = parts
            .iter()
            .flat_map(|part| branches[*part].entries.keys())
            .filter(|path| !path.is_empty() && parent(path) == dir)
            .collect();
        for path in names {
            let mut found = None;
            let mut below = Vec::new();
            for part in parts.iter().rev() {
                let branch = &branches[*part];
                if branch.whiteouts.contains(path) {
                    break;
                }
                let entry = branch.entries.get(path);
                match (entry, &found) {
                    (None, _) => {}
                    (Some(Shown::Directory(_)), _) => {
                        below.insert(0, *part);
                        found = found.or(entry);
                    }
                    (Some(Shown::Other(_)), None) => {
                        found = entry;
                        break;
                    }
                    // Here AUFS goes on, and overlay does not.
                    (Some(Shown::Other(_)), Some(_)) if format == Format::Aufs => {}
                    (Some(Shown::Other(_)), Some(_)) => break,
                }
                if branch.opaques.contains(path) {
                    break;
                }
            }
            if let Some(found) = found {
                shown.insert(path.clone(), found.clone());
            }
            if !below.is_empty() {
                directories.push((path.clone(), below));
            }
        }
    }
    shown
}

fn meant(sealed: &Sealed) -> BTreeMap<Vec<u8>, Shown> {
    let mut meant = BTreeMap::new();
    flatten(&sealed.effective, |visible| {
        match visible {
            Visible::Directory { path, attrs } if path.is_empty() => {
                assert_eq!(attrs.unwrap_or_else(Attrs::implied), sealed.root);
            }
            Visible::Directory { path, attrs } => {
                let attrs = attrs.unwrap_or_else(Attrs::implied);
                meant.insert(path, Shown::Directory(attrs));
            }
            Visible::Other { layer, record } => {
                meant.insert(record.path, Shown::Other(layer));
            }
        }
        Ok::<(), SealError>(())
    })
    .unwrap();
    meant
}

fn any_entry() -> impl Strategy<Value = String> {
    let path = proptest::collection::vec(proptest::sample::select(&["a", "b", "c"]), 1..=3)
        .prop_map(|names| names.join("/"));
    let wh = |path: &str, marker: &str| {
        let dir = text(&join(parent(path.as_bytes()), b""));
        format!("{dir}.wh.{}{marker}", text(name(path.as_bytes())))
    };
    (path, 0..12u8, 0..3u8).prop_map(move |(path, kind, uid)| match kind {
        0..4 => format!("{path}/@{uid}"),
        4..8 => path,
        8..10 => wh(&path, ""),
        10 => format!("{path}/.wh..wh..opq"),
        _ => format!("{path} -> {}", ["a", "../b", "/c/a"][usize::from(uid)]),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The edits make each union filesystem show what the layers mean. Two ways
    /// to the same tree: the union's rules, looked up name by name, and the merge.
    #[test]
    fn the_union_of_the_branches_shows_what_the_layers_mean(
        layers in proptest::collection::vec(proptest::collection::vec(any_entry(), 0..7), 1..6),
        root in proptest::option::weighted(0.1, 0..5usize),
    ) {
        let mut layers: Vec<Vec<&str>> = layers
            .iter()
            .map(|layer| layer.iter().map(String::as_str).collect())
            .collect();
        if let Some(layer) = root.and_then(|root| layers.get_mut(root)) {
            layer.push(".wh..wh..opq");
        }
        let layers: Vec<&[&str]> = layers.iter().map(Vec::as_slice).collect();
        for format in [Format::Aufs, Format::Overlay] {
            let sealed = match try_sealed(&layers, format) {
                Ok(sealed) => sealed,
                Err(SealError::Unsettled { .. } | SealError::LinkLoop { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            let branches: Vec<Branch> = (sealed.base..layers.len())
                .map(|layer| branch(layer, &sealed))
                .collect();
            for branch in &branches {
                let beside = branch.whiteouts.iter().find(|path| branch.entries.contains_key(*path));
                prop_assert_eq!(beside, None, "a whiteout beside its own entry");
            }
            prop_assert_eq!(union(&branches, format), meant(&sealed), "{:?}", format);
        }
    }
}
