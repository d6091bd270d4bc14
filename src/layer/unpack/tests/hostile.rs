//! Layers that mean harm, or make no sense. [`try_unpack`] checks for each
//! that nothing beside the layer's directory was touched.

use super::*;
use crate::layer::tree::test_support::with_small_disk;
use proptest::prelude::*;

/// Every way out that was ever tried on archive extractors, as a directory
/// that the way leads to and that is then written into.
#[test]
fn no_link_leads_out() {
    for (target, inside) in [
        ("../outside", "outside"),
        ("../../../../../outside", "outside"),
        ("/../outside", "outside"),
        ("/outside", "outside"),
        ("./.././outside/", "outside"),
        ("/", ""),
        ("..", ""),
        (".", ""),
        ("/proc/self/cwd", "proc/self/cwd"),
    ] {
        let unpacked = unpack(&[
            link("s", target),
            file("s/secret", "written"),
            hard("stolen", "s/secret"),
            file("s/.wh.other", ""),
        ]);
        let place = index::join(inside.as_bytes(), b"secret");
        assert_eq!(
            std::fs::read(unpacked.at(&place)).unwrap(),
            b"written",
            "{target}"
        );
        assert_eq!(
            std::fs::read(unpacked.at("stolen")).unwrap(),
            b"written",
            "{target}"
        );
        assert_eq!(
            unpacked.records.last().unwrap().path,
            b"s/other",
            "{target}"
        );
    }
}

#[test]
fn an_absolute_path_of_the_host_is_not_reached() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "host").unwrap();
    let host = outside.path().as_os_str().as_bytes();
    let unpacked = unpack(&[
        link("s", host),
        file("s/victim", "layer"),
        file("s/new", "layer"),
        file(victim.as_os_str().as_bytes(), "absolute"),
        link("v", victim.as_os_str().as_bytes()),
        file("v", "replaced"),
    ]);
    assert_eq!(std::fs::read(&victim).unwrap(), b"host");
    assert!(!outside.path().join("new").exists());
    assert_eq!(
        std::fs::read(unpacked.at(&host[1..]).join("victim")).unwrap(),
        b"absolute"
    );
    // The host's file is none of this layer's: it can only be one of a layer below.
    let unpacked = unpack(&[hard("h", victim.as_os_str().as_bytes())]);
    assert!(matches!(
        unpacked.records[0].node,
        Some(Node::ForeignLink { .. })
    ));
    assert!(unpacked.tree().is_empty());
}

/// The same names reach directories and links in turn, so that a descriptor
/// kept too long would write into what is gone, or elsewhere.
#[test]
fn what_replaces_a_directory_half_way_is_seen_at_once() {
    let unpacked = unpack(&[
        file("a/b/c/one", "1"),
        link("a/b", "/other"),
        file("a/b/c/two", "2"),
        dir("a/b"),
        file("a/b/c/three", "3"),
        link("a", "../../outside"),
        file("a/b/c/four", "4"),
        file("a", "file"),
        file("a/b/c/five", "5"),
    ]);
    assert_eq!(
        unpacked.tree(),
        [
            "a/",
            "a/b/",
            "a/b/c/",
            "a/b/c/five=5",
            "other/",
            "other/c/",
            "other/c/two=2",
            "outside/",
            "outside/b/",
            "outside/b/c/",
            "outside/b/c/four=4",
        ]
    );
    // A link that led to where the next entry replaces the link itself.
    let unpacked = unpack(&[
        dir("d"),
        link("d/t", ".."),
        link("s", "d"),
        file("s/t/one", "1"),
        dir("s/t/s"),
        file("s/t/two", "2"),
    ]);
    assert_eq!(
        unpacked.tree(),
        ["d/", "d/t->..", "one=1", "s/", "s/t/", "s/t/two=2"]
    );
    // A way that a later entry changes without anything being removed.
    let unpacked = unpack(&[
        link("s", "a/../b"),
        file("s/one", "1"),
        dir("c/d"),
        link("a", "c/d"),
        file("s/two", "2"),
    ]);
    assert_eq!(
        unpacked.tree(),
        [
            "a->c/d",
            "b/",
            "b/one=1",
            "c/",
            "c/b/",
            "c/b/two=2",
            "c/d/",
            "s->a/../b"
        ]
    );
}

#[test]
fn names_that_climb_out_are_refused() {
    for name in [
        "..",
        "../outside/secret",
        "a/../../outside/secret",
        "/../outside/secret",
        "./../root/x",
    ] {
        for member in [file(name, "x"), dir(name), link(name, "x"), hard(name, "x")] {
            assert!(
                matches!(
                    refusal(&[member]),
                    UnpackError::Name {
                        source: NameError::AboveRoot,
                        ..
                    }
                ),
                "{name}"
            );
        }
        assert!(
            matches!(
                refusal(&[file("x", ""), hard("h", name)]),
                UnpackError::Target {
                    source: NameError::AboveRoot,
                    ..
                }
            ),
            "{name}"
        );
    }
}

#[test]
fn circles_and_long_ways_end() {
    for members in [
        vec![link("a", "a"), file("a/x", "")],
        vec![link("a", "b"), link("b", "a"), file("a/x", "")],
        vec![link("a", "b/../a"), link("b", "."), file("a/x", "")],
        vec![link("a", "/a/b"), dir("a/x")],
        vec![link("a", "/a/b"), hard("h", "a/x")],
    ] {
        assert!(matches!(
            refusal(&members),
            UnpackError::TooManyLinks { limit: 40, .. }
        ));
    }
    // 40 links are fine, as they are to the kernel.
    let mut chain: Vec<Member> = (0..40)
        .map(|number| link(format!("l{number}"), format!("l{}", number + 1)))
        .collect();
    chain.push(dir("l40"));
    chain.push(file("l0/x", "at the end"));
    let tree = unpack(&chain).tree();
    assert!(tree.contains(&"l40/x=at the end".to_owned()), "{tree:?}");
    chain.insert(0, link("m", "l0"));
    chain.push(file("m/x", ""));
    assert!(matches!(refusal(&chain), UnpackError::TooManyLinks { .. }));

    let long = vec!["a/.."; 800].join("/");
    let mut members = vec![dir("a")];
    members
        .extend((0..9).map(|number| link(format!("l{number}"), format!("{long}/l{}", number + 1))));
    members.push(file("l0/x", ""));
    assert!(matches!(
        refusal(&members),
        UnpackError::TooManySteps { .. }
    ));
}

#[test]
fn links_do_not_make_ways_longer_than_the_limits() {
    let deep = vec!["d"; 300].join("/");
    let members = [
        link("s", &deep),
        link(format!("{deep}/t"), &deep),
        file("s/t/x", ""),
    ];
    assert!(matches!(
        refusal(&members),
        UnpackError::Way {
            source: NameError::TooDeep { limit: 512 },
            ..
        }
    ));
    let wide = vec!["n".repeat(200); 15].join("/");
    let members = [
        link("s", &wide),
        link(format!("{wide}/t"), &wide),
        file("s/t/x", ""),
    ];
    assert!(matches!(
        refusal(&members),
        UnpackError::Way {
            source: NameError::TooLong { limit: 4095 },
            ..
        }
    ));
    let members = [link("s", "n".repeat(256)), file("s/x", "")];
    assert!(matches!(
        refusal(&members),
        UnpackError::Way {
            source: NameError::ComponentTooLong,
            ..
        }
    ));
    for target in [String::new(), "n".repeat(5000)] {
        let refused = refusal(&[link("s", target)]);
        assert!(matches!(refused, UnpackError::Target { .. }));
    }
}

#[test]
fn no_marker_comes_to_disk_by_way_of_a_link() {
    for target in [
        ".wh.f",
        ".wh..wh..opq",
        "/.wh..wh.plnk",
        "d/.wh.x/y",
        ".wh..wh.plnk/1.2",
    ] {
        for last in ["x", "x/y"] {
            let members = [
                dir("d"),
                file(".wh..wh.plnk/1.2", "kept"),
                link("s", target),
                file(format!("s/{last}"), ""),
            ];
            assert!(
                matches!(
                    refusal(&members),
                    UnpackError::Way {
                        source: NameError::Whiteout,
                        ..
                    }
                ),
                "{target} {last}"
            );
        }
        let members = [link("s", target), hard("h", "s/x")];
        assert!(
            matches!(refusal(&members), UnpackError::Way { .. }),
            "{target}"
        );
    }
}

#[test]
fn markers_that_make_no_sense_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."] {
        let refused = refusal(&[dir("d"), file(name, "")]);
        assert_eq!(
            refused.source_text().unwrap(),
            NameError::WhiteoutOfNothing.to_string(),
            "{name}"
        );
    }
    for name in [".wh.d/x", "d/.wh.x/y/z", ".wh.d/.wh..wh.x"] {
        let refused = refusal(&[dir("d"), file(name, "")]);
        assert_eq!(
            refused.source_text().unwrap(),
            NameError::InsideWhiteout.to_string(),
            "{name}"
        );
    }
    for target in [
        ".wh.x",
        "d/.wh.x",
        ".wh..wh..opq",
        ".wh..wh.aufs",
        "d/.wh..wh.plnk/1",
    ] {
        let refused = refusal(&[dir("d"), hard("h", target)]);
        assert_eq!(
            refused.source_text().unwrap(),
            NameError::Whiteout.to_string(),
            "{target}"
        );
    }
}

#[test]
fn hard_links_that_make_no_sense_are_refused() {
    use UnpackError as E;
    let f = || file("d/f", "");
    for (members, expected) in [
        (vec![f(), hard("h", "/")], "directory"),
        (vec![f(), hard("h", ".")], "directory"),
        (vec![hard("h", "h")], "missing"),
        (vec![f(), hard("d", "d/f")], "replaces"),
        (vec![f(), hard("d/f/x/y", "d/f")], "replaces"),
        (vec![f(), link("s", "d"), hard("s/f/x", "d/f")], "replaces"),
    ] {
        let found = match refusal(&members) {
            E::LinkToDirectory { .. } => "directory",
            E::LinkTargetMissing { .. } => "missing",
            E::LinkReplacesTarget { .. } => "replaces",
            other => panic!("{other}"),
        };
        assert_eq!(found, expected);
    }
}

#[test]
fn a_hard_link_beneath_a_file_is_left_to_sealing() {
    // A link of the layers below may have made a directory of the file.
    let unpacked = unpack(&[file("d/f", ""), hard("h", "d/f/x")]);
    let target = b"d/f/x".to_vec();
    assert_eq!(
        unpacked.record("h").node,
        Some(Node::ForeignLink { target })
    );
    assert_eq!(unpacked.tree(), ["d/", "d/f="]);
}

#[test]
fn the_root_can_only_be_a_directory() {
    for name in ["", ".", "/", "a/.."] {
        for member in [file(name, ""), link(name, "/etc")] {
            assert!(matches!(refusal(&[member]), UnpackError::RootNotDirectory));
        }
    }
}

#[test]
fn names_of_any_bytes_and_of_full_length_come_through() {
    let odd = b"\xff\xfe new\nline \\ \"q\" \xc3\x28";
    let full = vec![b'n'; 255];
    let deep = vec!["d"; 511].join("/");
    let unpacked = unpack(&[
        file(odd, "odd"),
        file(&full, "full"),
        file(format!("{deep}/f"), "deep"),
        file(format!("{}/g", &deep[..201]), "back"),
        hard(format!("{deep}/h"), format!("{deep}/f")),
    ]);
    assert_eq!(std::fs::read(unpacked.at(odd)).unwrap(), b"odd");
    assert_eq!(std::fs::read(unpacked.at(&full)).unwrap(), b"full");
    assert_eq!(
        std::fs::read(unpacked.at(format!("{deep}/h"))).unwrap(),
        b"deep"
    );
    assert_eq!(unpacked.stats.implied_directories, 511);
    assert!(matches!(
        refusal(&[file(vec![b'n'; 256], "")]),
        UnpackError::Name {
            source: NameError::ComponentTooLong,
            ..
        }
    ));
    assert!(matches!(
        refusal(&[file(format!("{deep}/d/f"), "")]),
        UnpackError::Name {
            source: NameError::TooDeep { .. },
            ..
        }
    ));
}

#[test]
fn implied_directories_count_against_the_limit_too() {
    let options = Options {
        limits: Limits {
            max_entries: 100,
            ..Limits::default()
        },
        ..Options::default()
    };
    let members: Vec<Member> = (0..10)
        .map(|number| file(format!("{number}/{}/f", vec!["d"; 20].join("/")), ""))
        .collect();
    let error = try_unpack(&members, options).2.unwrap_err();
    assert!(matches!(
        error,
        UnpackError::TooManyNodes { limit: 100, .. }
    ));
}

#[test]
fn a_file_gets_no_more_than_its_size_and_has_to_end() {
    let mut long = file("f", "12345");
    long.0.size = 4;
    assert!(matches!(
        refusal(&[long]),
        UnpackError::DataBeyondSize { size: 4, .. }
    ));
    let mut far = file("f", "1");
    far.1[0].0 = u64::MAX;
    assert!(matches!(
        refusal(&[far]),
        UnpackError::DataBeyondSize { .. }
    ));

    let dir = tempfile::tempdir().unwrap();
    let mut records = Vec::new();
    let mut unpacker = Unpacker::new(open(dir.path()), &mut records, Options::default()).unwrap();
    unpacker.begin(file("f", "x").0).unwrap();
    let error = unpacker.begin(file("g", "").0).unwrap_err();
    assert!(matches!(error, UnpackError::Incomplete { .. }));
    assert!(matches!(
        unpacker.finish(),
        Err(UnpackError::Incomplete { .. })
    ));
}

#[test]
fn a_full_or_failing_sink_is_told_apart() {
    struct Full;
    impl RecordSink for Full {
        fn record(&mut self, _: &Record) -> io::Result<()> {
            Err(Errno::NOSPC.into())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut full = Full;
    let mut unpacker = Unpacker::new(open(dir.path()), &mut full, Options::default()).unwrap();
    let error = feed(&mut unpacker, &[file("f", "")]).unwrap_err();
    assert!(error.is_out_of_space() && !error.is_read_only(), "{error}");
    let write = UnpackError::Write {
        path: root_text(),
        source: Errno::ROFS.into(),
    };
    assert!(write.is_read_only() && !write.is_out_of_space());
    assert!(!refusal(&[file("..", "")]).is_out_of_space());
}

#[test]
fn a_full_disk_is_told_apart_from_a_bad_layer() {
    with_small_disk(|disk| {
        let mut large = file("large", vec![1; 700 << 10]);
        large.1.push((700 << 10, vec![2; 700 << 10]));
        large.0.size = 1400 << 10;
        let many: Vec<Member> = (0..300)
            .map(|number| link(format!("{number}"), "x"))
            .collect();
        for (name, members) in [("bytes", vec![large]), ("inodes", many)] {
            let root = disk.join(name);
            std::fs::create_dir(&root).unwrap();
            let mut records = Vec::new();
            let mut unpacker =
                Unpacker::new(open(&root), &mut records, Options::default()).unwrap();
            let error = feed(&mut unpacker, &members).unwrap_err();
            assert!(error.is_out_of_space(), "{error:?}");
            drop(unpacker);
            // What is removed makes room again.
            remove_tree(open(disk).as_fd(), name.as_bytes()).unwrap();
        }
    });
}

#[test]
fn replacing_a_filled_directory_follows_no_link_in_it() {
    let unpacked = unpack(&[
        link("d/l", "../../outside"),
        link("d/e/m", "/"),
        file("kept", "kept"),
        hard("d/h", "kept"),
        file("d", "file"),
    ]);
    assert_eq!(unpacked.tree(), ["d=file", "kept=kept"]);
}

/// Errors that are the layer's fault and come before anything is changed.
fn is_refusal(error: &UnpackError) -> bool {
    use UnpackError as E;
    matches!(
        error,
        E::Name { .. }
            | E::Target { .. }
            | E::Way { .. }
            | E::TooManyLinks { .. }
            | E::TooManySteps { .. }
            | E::RootNotDirectory
            | E::LinkToDirectory { .. }
            | E::LinkTargetMissing { .. }
            | E::LinkReplacesTarget { .. }
    )
}

fn any_member() -> impl Strategy<Value = Member> {
    let component = prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", "secret"]),
        2 => prop::sample::select(vec!["..", ".", "", "outside"]),
        2 => prop::sample::select(vec![
            ".wh.a", ".wh..wh..opq", ".wh..wh.plnk", ".wh.", ".wh...", ".wh..wh.b",
        ]),
    ];
    let path = prop::collection::vec(component, 1..5).prop_map(|names| names.join("/"));
    let target = prop_oneof![
        4 => path.clone(),
        1 => path.clone().prop_map(|path| format!("/{path}")),
        1 => path.clone().prop_map(|path| format!("../../{path}")),
    ];
    (0..6, path, target).prop_map(|(kind, path, target)| match kind {
        0 | 1 => file(path, "written by the layer"),
        2 => dir(path),
        3 | 4 => link(path, target),
        _ => hard(path, target),
    })
}

proptest! {
    /// [`try_unpack`] looks at the neighbours and for markers. Entries that are
    /// refused change nothing, so the rest can follow, and no other error comes
    /// up than a refusal. What was taken is told truly: the last word on each
    /// path is what is there, and nothing else is.
    #[test]
    fn any_layer_stays_in_its_directory_and_is_recorded_as_it_is(
        members in prop::collection::vec(any_member(), 1..40),
    ) {
        let (dir, records, result) = try_unpack_by(Options::default(), |unpacker| {
            for member in &members {
                match feed(unpacker, std::slice::from_ref(member)) {
                    Ok(()) => {}
                    Err(error) if is_refusal(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        prop_assert!(result.is_ok(), "{:?}", result);
        let root = dir.path().join("root");
        let mut nodes: BTreeMap<Vec<u8>, &Record> = BTreeMap::new();
        for record in records.iter().filter(|record| record.node.is_some()) {
            // What was beneath is gone once it is no directory.
            if record.node.as_ref().is_some_and(|node| !node.is_dir()) {
                nodes.retain(|path, _| !index::is_below(path, &record.path));
            }
            nodes.insert(record.path.clone(), record);
        }
        nodes.remove(&b""[..]);
        let mut on_disk = snapshot(&root);
        for (path, record) in nodes {
            let path = String::from_utf8(path).unwrap();
            let found = on_disk.remove(&path);
            let kind = match record.node.as_ref().unwrap() {
                Node::Directory { .. } | Node::Implied => "dir",
                Node::File { .. } => "file",
                Node::Symlink { .. } => "link",
                Node::Special { .. } => "special",
                Node::ForeignLink { .. } => {
                    prop_assert_eq!(found, None);
                    continue;
                }
            };
            prop_assert!(found.as_ref().is_some_and(|found| found.starts_with(kind)), "{} {:?}", path, found);
        }
        prop_assert!(on_disk.is_empty(), "{:?}", on_disk);
    }
}
