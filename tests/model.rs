//! The reference model is right: against a table written by hand, against two
//! independent programs, umoci and GNU tar, and against itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "the independent programs are started here"
)]

mod support;

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::cases::{Case, Expected, cases, further_cases};
use support::entry::{Entry, EntryKind, Layer, dir, file, symlink};
use support::generate::{Shape, refused_stacks, stacks};
use support::model::{Note, flatten, flatten_noting, is_internal, is_marker, merge, to_layer};
use support::mutate;
use support::oci_layout::OciLayout;
use support::rootfs::{Recipe, content_bytes};
use support::tarball::{Compression, Header, Tar, field, tars};
use support::tree::{Compared, Kind, Node, Tree, assert_same, diff, read};

fn config() -> ProptestConfig {
    ProptestConfig {
        // A failure that matters becomes a case of the table.
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..ProptestConfig::default()
    }
}

/// What is wrong with an answer to a case; nothing if it is right.
fn complaint(
    case: &Case,
    answer: Result<Tree, String>,
    forgive: fn(&mut Tree, &Tree),
) -> Option<String> {
    match (&case.expected, answer) {
        (Expected::Tree(expected), Ok(tree)) => {
            let mut expected = expected.clone();
            forgive(&mut expected, &tree);
            let lines = diff(&expected, &tree, Compared::ALL);
            (!lines.is_empty()).then(|| lines.join("\n  "))
        }
        (Expected::Refused(words), Err(error)) => {
            let missing = words.iter().find(|word| !error.contains(*word))?;
            Some(format!("the error \"{error}\" does not name {missing}"))
        }
        (Expected::Tree(_), Err(error)) => Some(format!("refused: {error}")),
        (Expected::Refused(_), Ok(tree)) => Some(format!("accepted: {tree:#?}")),
    }
}

#[test]
fn the_model_agrees_with_the_table() {
    let table = cases();
    assert_eq!(table.len(), 25, "the table has 25 cases");
    let wrong: Vec<String> = table
        .iter()
        .chain(&further_cases())
        .filter_map(|case| {
            let answer = flatten(&case.layers).map_err(|error| error.to_string());
            let complaint = complaint(case, answer, |_, _| ())?;
            Some(format!("{}\n  {complaint}", case.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Cases of the table in which umoci 0.4.7 differs, and why the table is right.
const UMOCI_DIFFERS: &[(&str, &str)] = &[
    (
        "N: a file where an entry needs a directory",
        "umoci refuses; container engines make the directory",
    ),
    (
        "a parent link to a file: the file becomes a directory",
        "umoci refuses, as in N",
    ),
    (
        "V: the names that AUFS keeps for itself",
        "umoci extracts them; they are AUFS's bookkeeping, not content",
    ),
    (
        "AUFS's own names at any depth, and all that is inside",
        "as in V",
    ),
    (
        "two links to one of AUFS's link sources are one file",
        "as in V",
    ),
    (
        "the same with the marker first",
        "umoci takes a marker where it stands; the order must not matter",
    ),
    (
        "a whiteout inside of a directory that replaces a link",
        "as with the marker first",
    ),
    (
        "a marker goes through a link whose end the layer makes a circle",
        "as with the marker first",
    ),
    (
        "a link on the way of a marker hides itself",
        "as with the marker first",
    ),
    (
        "a marker speaks of what was there before the layer replaced it",
        "as with the marker first",
    ),
    (
        "what came through a link is replaced, and comes again",
        "umoci refuses, as in N",
    ),
    (
        "a whiteout behind a link that the same layer hides",
        "as with the marker first",
    ),
    (
        "a whiteout and an implied directory of that name",
        "umoci keeps the hidden directory's owner and mode for the new one",
    ),
    (
        "a whiteout without a name",
        "umoci removes the directory it stands in",
    ),
    (
        "a whiteout of the directory itself",
        "umoci removes the directory it stands in",
    ),
];

#[test]
fn umoci_agrees_with_the_table() {
    let wrong: Vec<String> = cases()
        .iter()
        .chain(&further_cases())
        .filter(|case| UMOCI_DIFFERS.iter().all(|(name, _)| *name != case.name))
        .filter_map(|case| {
            let answer = match (&case.expected, umoci(&case.layers)) {
                // The words are the model's: that umoci refuses is enough.
                (Expected::Refused(_), Err(_)) => return None,
                (_, answer) => answer,
            };
            let complaint = complaint(case, answer, forgive_extractors)?;
            Some(format!("{}\n  {complaint}", case.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_named_differences_name_cases() {
    let (table, further) = (cases(), further_cases());
    let names: BTreeSet<&str> = table.iter().chain(&further).map(|case| case.name).collect();
    assert_eq!(
        names.len(),
        table.len() + further.len(),
        "two cases share a name"
    );
    for (name, _) in UMOCI_DIFFERS {
        assert!(names.contains(name), "{name} is no case");
    }
}

/// What makes umoci differ on random stacks: the first because of N, the others
/// because of the order of markers, as above.
const UMOCI_CANNOT: &[Note] = &[
    Note::ParentReplaced,
    Note::MarkerInOwnDirectory,
    Note::MarkersThroughLinks,
];

/// A stack as umoci takes it: without AUFS's own names (V), and each layer's
/// markers first and the highest foremost, for it takes them in their order.
fn for_umoci(stack: Vec<Layer>) -> Vec<Layer> {
    let kept = |mut layer: Layer| {
        let to_internal = |target: &Vec<u8>| is_internal(&file(target, b""));
        layer.retain(|entry| match &entry.kind {
            EntryKind::HardLink(target) => !to_internal(target),
            _ => !is_internal(entry),
        });
        layer.sort_by_key(|entry| {
            let depth = entry.path.iter().filter(|byte| **byte == b'/').count();
            if is_marker(entry) { depth } else { usize::MAX }
        });
        layer
    };
    stack.into_iter().map(kept).collect()
}

/// What a program unpacks that lets the kernel hand down access control lists.
const HANDED_DOWN: Shape = Shape {
    acls: false,
    ..Shape::DEFAULT
};

fn stacks_for_umoci() -> impl Strategy<Value = (Vec<Layer>, Tree)> {
    stacks(HANDED_DOWN).prop_filter_map("umoci differs by name", |stack| {
        let stack = for_umoci(stack);
        let (tree, notes) = flatten_noting(&stack).ok()?;
        let comparable = UMOCI_CANNOT.iter().all(|note| !notes.contains(note));
        comparable.then_some((stack, tree))
    })
}

/// GNU tar knows no markers, follows links in parents, and replaces no full directory.
const TAR_CANNOT: &[Note] = &[
    Note::LinkFollowed,
    Note::LinkReplaced,
    Note::ParentReplaced,
    Note::DirectoryReplaced,
];

/// GNU tar makes links that might lead out of the root only when all else is
/// extracted, and then has forgotten some of the modes of the directories.
fn is_made_late(entry: &Entry) -> bool {
    match &entry.kind {
        EntryKind::Symlink(target) => {
            target.starts_with(b"/") || target.windows(2).any(|pair| pair == b"..")
        }
        _ => false,
    }
}

fn stacks_for_tar() -> impl Strategy<Value = (Vec<Layer>, Tree)> {
    stacks(HANDED_DOWN).prop_filter_map("tar differs by name", |stack| {
        let mut stack = for_umoci(stack);
        for layer in &mut stack {
            layer.retain(|entry| !is_marker(entry) && !is_made_late(entry));
        }
        // The first layers up to what tar cannot do.
        while let Some(layers) = stack.len().checked_sub(1) {
            if let Ok((tree, notes)) = flatten_noting(&stack)
                && TAR_CANNOT.iter().all(|note| !notes.contains(note))
            {
                return Some((stack, tree));
            }
            stack.truncate(layers);
        }
        None
    })
}

/// Extractors make directories, and change what is inside of some, at the time
/// of extraction; directories that they imply also take part in the kernel's
/// inheritance of set-group-ID. Neither is in the layers, so neither is right.
fn forgive_extractors(expected: &mut Tree, actual: &Tree) {
    const LONGEST_TEST: Duration = Duration::from_secs(3600);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let recent = (now - LONGEST_TEST).as_secs() as i64..=now.as_secs() as i64;
    for (path, node) in expected.nodes.iter_mut().filter(|(_, node)| node.is_dir()) {
        let Some(found) = actual.get(path) else {
            continue;
        };
        if found
            .mtime
            .is_some_and(|time| recent.contains(&time.seconds))
        {
            node.mtime = None;
        }
        if node.implied && found.mode == node.mode | 0o2000 {
            (node.mode, node.gid) = (found.mode, found.gid);
        }
    }
}

/// GNU tar leaves a directory the attributes that its new entry does not have,
/// and any directory the set-group-ID bit that the kernel lets it inherit.
fn forgive_tar(expected: &mut Tree, actual: &Tree) {
    forgive_extractors(expected, actual);
    for (path, node) in expected.nodes.iter_mut().filter(|(_, node)| node.is_dir()) {
        let Some(found) = actual.get(path) else {
            continue;
        };
        for (name, value) in &found.xattrs {
            node.xattrs.entry(name.clone()).or_insert(value.clone());
        }
        if found.mode == node.mode | 0o2000 {
            node.mode = found.mode;
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn umoci_agrees_on_random_stacks((stack, tree) in stacks_for_umoci()) {
        let unpacked = umoci(&stack).unwrap();
        let mut expected = tree;
        forgive_extractors(&mut expected, &unpacked);
        let lines = diff(&expected, &unpacked, Compared::ALL);
        prop_assert!(lines.is_empty(), "{}", lines.join("\n"));
    }

    #[test]
    fn gnu_tar_agrees_on_random_stacks((stack, tree) in stacks_for_tar()) {
        let scratch = tempfile::tempdir().unwrap();
        for tar in tars(&stack) {
            extract_with_tar(&tar, scratch.path());
        }
        let extracted = read(scratch.path()).unwrap();
        let mut expected = tree;
        forgive_tar(&mut expected, &extracted);
        let lines = diff(&expected, &extracted, Compared::ALL);
        prop_assert!(lines.is_empty(), "{}", lines.join("\n"));
    }

    #[test]
    fn markers_mean_the_same_wherever_they_stand(
        stack in stacks(Shape::default()),
        places in prop::collection::vec(any::<prop::sample::Index>(), 60),
    ) {
        let mut moved = stack.clone();
        let mut places = places.into_iter().cycle();
        for layer in &mut moved {
            let (markers, mut entries): (Layer, Layer) =
                layer.drain(..).partition(is_marker);
            for marker in markers {
                let at = places.next().unwrap().index(entries.len() + 1);
                entries.insert(at, marker);
            }
            *layer = entries;
        }
        let lines = diff(&flatten(&stack).unwrap(), &flatten(&moved).unwrap(), Compared::ALL);
        prop_assert!(lines.is_empty(), "{}", lines.join("\n"));
    }

    #[test]
    fn a_tree_as_one_layer_is_that_tree(stack in stacks(Shape::default())) {
        let tree = flatten(&stack).unwrap();
        let again = flatten(&[to_layer(&tree)]).unwrap();
        prop_assert_eq!(diff(&tree, &again, Compared::ALL), Vec::<String>::new());
        // Below anything it still hides all, with an opaque root and whatever the root was.
        let mut top = to_layer(&tree);
        top.insert(0, support::entry::opaque(""));
        let over = flatten(&[stack[0].clone(), top]).unwrap();
        prop_assert_eq!(diff(&tree, &over, Compared::ALL), Vec::<String>::new());
    }

    #[test]
    fn merging_is_flattening_without_markers(
        upper in stacks(Shape::default()),
        lower in stacks(Shape::default()),
    ) {
        let (upper, lower) = (flatten(&upper).unwrap(), flatten(&lower).unwrap());
        let merged = merge(&[upper.clone(), lower.clone()]);
        // The same by other means: as two layers of one image. A hard link of
        // the upper one could meet a lower name only through its own first name.
        let mut over = to_layer(&upper);
        over.retain(|entry| {
            let own = upper.get(&entry.path).unwrap();
            !(own.implied && lower.get(&entry.path).is_some_and(|below| below.is_dir()))
        });
        let stacked = flatten(&[to_layer(&lower), over]).unwrap();
        prop_assert_eq!(diff(&stacked, &merged, Compared::ALL), Vec::<String>::new());
    }

    #[test]
    fn stacks_without_meaning_are_refused((stack, error) in refused_stacks(Shape::default())) {
        prop_assert_eq!(flatten(&stack), Err(error));
    }

    #[test]
    fn changes_on_a_directory_are_those_on_the_tree(
        stack in stacks(Shape::default()),
        intents in mutate::intents(24),
    ) {
        let tree = flatten(&stack).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let root = unpack_with_umoci(&[to_layer(&tree)], scratch.path()).unwrap();
        let (changes, changed) = mutate::plan(&tree, &intents, mutate::Allowed::ALL);
        for change in &changes {
            mutate::perform(&root, change).unwrap();
        }
        let lines = diff(&changed, &read(&root).unwrap(), Compared::ALL);
        prop_assert!(lines.is_empty(), "after {changes:#?}\n{}", lines.join("\n"));
    }
}

#[test]
fn a_difference_in_anything_is_seen() {
    let layer = vec![
        dir("d").mode(0o700),
        file("d/f", b"content").xattr("user.a", "1"),
        support::entry::hardlink("d/g", "d/f"),
        symlink("s", "d"),
    ];
    let tree = flatten(&[layer]).unwrap();
    let changed = |path: &str, change: fn(&mut Node)| {
        let mut other = tree.clone();
        change(other.nodes.get_mut(path.as_bytes()).unwrap());
        other
    };
    let mut missing = tree.clone();
    missing.remove(b"d/g");
    let mut group = tree.clone();
    let fresh = group.fresh_inode();
    group.nodes.get_mut(b"d/g".as_slice()).unwrap().inode = fresh;
    let others: [(&str, Tree); 11] = [
        ("a name", missing),
        ("a link group", group),
        ("a mode", changed("d", |node| node.mode = 0o701)),
        ("the root's mode", changed("", |node| node.mode = 0o700)),
        ("an owner", changed("s", |node| node.uid = 1)),
        ("a group", changed("s", |node| node.gid = 1)),
        (
            "a nanosecond",
            changed("d", |node| node.mtime.as_mut().unwrap().nanos = 1),
        ),
        (
            "a link's text",
            changed("s", |node| node.kind = Kind::Symlink(b"e".to_vec())),
        ),
        (
            "a byte",
            changed("d/f", |node| node.kind = Kind::File(b"Content".to_vec())),
        ),
        (
            "an attribute's value",
            changed("d/f", |node| {
                node.xattrs.insert(b"user.a".to_vec(), b"2".to_vec());
            }),
        ),
        ("an attribute", changed("d/f", |node| node.xattrs.clear())),
    ];
    assert_same("itself", &tree, &tree, Compared::ALL);
    for (what, other) in others {
        assert_ne!(
            diff(&tree, &other, Compared::ALL),
            Vec::<String>::new(),
            "{what} differs"
        );
        assert_ne!(
            diff(&other, &tree, Compared::ALL),
            Vec::<String>::new(),
            "{what} differs"
        );
    }
}

/// The same image, stored in every way, is the same image to a real program.
#[test]
fn every_compression_is_readable_by_others() {
    let layer = vec![dir("d"), file("d/big", vec![b'x'; 300_000])];
    let tar = Tar::from_layer(&layer).build();
    for compression in [
        Compression::None,
        Compression::Gzip,
        Compression::GzipMembers(3),
        Compression::Zstd,
    ] {
        let program = match compression {
            Compression::None => "cat",
            Compression::Gzip | Compression::GzipMembers(_) => "gunzip",
            Compression::Zstd => "unzstd",
        };
        let output = run(
            Command::new(program).args(match compression {
                Compression::None => [].as_slice(),
                _ => &["--stdout"],
            }),
            &compression.compress(&tar),
        );
        assert!(output.stdout == tar, "{compression:?}: {output:?}");
    }
}

/// The raw half of the tar writer, read by GNU tar: GNU's long names and binary
/// numbers, PAX records for one member and for all, and POSIX prefixes.
#[test]
fn raw_headers_say_what_they_should() {
    let long = format!("d/{}", "n".repeat(150));
    let header = |name: &str| Header::new(name, b'0').octal(field::MTIME, 1_500_000_000);
    let tar = Tar::new()
        .dir("d", 0o755)
        .gnu_long(b'L', &long)
        .raw(
            &header("cut")
                .raw(field::MAGIC, b"ustar  \0")
                .binary(field::UID, 3_000_000)
                .binary(field::MTIME, -7)
                .octal(field::SIZE, 3),
            b"one",
        )
        .raw(&header("f").raw(field::PREFIX, b"d"), b"")
        .pax(b'g', &[("gid", "7")])
        .pax(b'x', &[("path", "d/pax")])
        .raw(&header("d/plain"), b"")
        .file("d/after", b"")
        .build();
    let expected = flatten(&[vec![
        dir("d"),
        file(&long, b"one").owner(3_000_000, 0).mtime(-7, 0),
        file("d/f", b""),
        file("d/pax", b"").owner(0, 7),
        file("d/after", b"").owner(0, 7),
    ]])
    .unwrap();
    let scratch = tempfile::tempdir().unwrap();
    extract_with_tar(&tar, scratch.path());
    let whole = Compared {
        root: false,
        ..Compared::ALL
    };
    assert_same(
        "raw headers",
        &expected,
        &read(scratch.path()).unwrap(),
        whole,
    );
}

/// What umoci makes of a stack; or what it says.
fn umoci(stack: &[Layer]) -> Result<Tree, String> {
    let scratch = tempfile::tempdir().unwrap();
    let root = unpack_with_umoci(stack, scratch.path())?;
    Ok(read(&root).unwrap())
}

/// Unpacks a stack with umoci, as root, somewhere in `scratch`; where.
fn unpack_with_umoci(stack: &[Layer], scratch: &Path) -> Result<PathBuf, String> {
    let mut layout = OciLayout::new(scratch.join("layout"));
    layout.image("test", &tars(stack), Compression::None);
    let bundle = scratch.join("bundle");
    let mut command = Command::new("umoci");
    command
        .args(["unpack", "--image"])
        .arg(format!("{}:test", layout.path().display()))
        .arg(&bundle);
    let output = run(&mut command, b"");
    if output.status.success() {
        Ok(bundle.join("rootfs"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Extracts one tar with GNU tar, over what is there.
fn extract_with_tar(tar: &[u8], root: &Path) {
    let mut command = Command::new("tar");
    command
        .args(["--extract", "--file=-", "--numeric-owner", "--same-owner"])
        .args(["--preserve-permissions", "--xattrs", "--xattrs-include=*"])
        .arg("--directory")
        .arg(root);
    let output = run(&mut command, tar);
    assert!(
        output.status.success(),
        "tar: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a program that these tests cannot do without, on some input.
fn run(command: &mut Command, input: &[u8]) -> Output {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests compare owners and devices: run them as root"
    );
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("cannot run {program}, an independent judge of the model: {error}; install it")
        });
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("the program reads its input"));
        child.wait_with_output().unwrap()
    })
}

#[test]
fn a_root_filesystem_of_this_machine_means_the_same_to_umoci() {
    const BYTES: u64 = 4 << 20;
    let recipe = Recipe {
        changes_per_layer: 20,
        ..Recipe::of_size(BYTES)
    };
    let layers = recipe.layers().unwrap();
    assert_eq!(layers.len(), 1 + recipe.upper_layers);
    assert!(content_bytes(&layers[0]) >= BYTES, "this machine has files");
    let markers = layers.iter().flatten().filter(|entry| is_marker(entry));
    assert!(
        markers.count() > recipe.upper_layers,
        "layers hide something"
    );
    let mut expected = flatten(&layers).unwrap();
    let unpacked = umoci(&layers).unwrap();
    forgive_extractors(&mut expected, &unpacked);
    assert_same("a root filesystem", &expected, &unpacked, Compared::ALL);
}
