//! Whole images, judged by programs that are not ours: what `umoci unpack` makes
//! of an image is what its volume shows; what `skopeo` copies is still the same
//! image; and what `export` writes is, to others and to us, what the volume
//! showed. Then, what images have in common is on disk once.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod support;

use aufs_csi::image::platform::PlatformChoice;
use aufs_csi::image::{self, reference::Source};
use aufs_csi::layer::seal::Format;
use aufs_csi::layer::tree::Ownership;
use aufs_csi::stage::{StageOptions, StagedImage, Stager};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::entry::{Layer, Time, dir, file, hardlink, opaque, split, symlink, whiteout};
use support::model::is_marker;
use support::mutate::{Change, perform};
use support::node::TestNode;
use support::rootfs::{Recipe, content_bytes};
use support::tarball::{Compression, tars};
use support::tree::{Compared, Tree, assert_same, read, real_path};

/// Runs a program that these tests cannot do without; what it prints.
fn run(directory: &Path, program: &str, arguments: &[&str]) -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "the independent programs are started here, and our own from outside"
    )]
    let mut command = Command::new(program);
    let output = command
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| {
            panic!("this test needs {program}; install it and run the test again: {error}")
        });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Our own program, on the node's store.
fn aufs_csi(node: &TestNode, arguments: &[&str]) -> String {
    let options = node.volumes_options();
    let (root, run_dir) = (
        options.root.to_str().unwrap(),
        options.run_dir.to_str().unwrap(),
    );
    let store = ["--root", root, "--run-dir", run_dir];
    let program = env!("CARGO_BIN_EXE_aufs-csi");
    run(node.path(), program, &[arguments, &store].concat())
}

/// What umoci makes of `layout:latest` below `at`.
fn umoci(at: &Path, layout: &str) -> Tree {
    let bundle = format!("{}-bundle", layout.replace('/', "-"));
    let image = format!("{layout}:latest");
    run(at, "umoci", &["unpack", "--image", &image, &bundle]);
    let tree = read(&at.join(&bundle).join("rootfs")).unwrap();
    fs::remove_dir_all(at.join(&bundle)).unwrap();
    tree
}

fn skopeo_copy(at: &Path, options: &[&str], from: &str, to: &str) {
    let arguments = ["--insecure-policy", "copy", "--quiet"];
    run(at, "skopeo", &[&arguments, options, &[from, to]].concat());
}

fn source(text: &str) -> Source {
    text.parse().unwrap()
}

/// Where umoci is known to differ, on anything: a directory in which it made or
/// removed something after its entry has the time of that, not of the entry.
/// `touched` names these directories; no other is forgiven.
fn forgive_times(expected: &mut Tree, touched: &BTreeSet<Vec<u8>>) {
    const LONGEST_TEST: Duration = Duration::from_secs(3600);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let recent = (now - LONGEST_TEST).as_secs() as i64..=now.as_secs() as i64;
    for (path, node) in &mut expected.nodes {
        let is_recent = node
            .mtime
            .is_some_and(|time| recent.contains(&time.seconds));
        if node.is_dir() && touched.contains(path) && is_recent {
            node.mtime = None;
        }
    }
}

/// The directories that hold what the layers hide or state, but for the lowest
/// layer; and the root, which no layer of these tests states.
fn touched(layers: &[Layer]) -> BTreeSet<Vec<u8>> {
    let holders = layers[1..]
        .iter()
        .flatten()
        .map(|entry| split(&entry.path).0.to_vec());
    holders.chain([Vec::new()]).collect()
}

/// What a new volume of the image shows.
fn shown(node: &TestNode, id: &str, source: &Source, read_only: bool) -> Tree {
    node.publish(id, source, read_only).unwrap();
    let tree = read(&node.target(id)).unwrap();
    node.unpublish(id);
    tree
}

#[test]
fn a_whole_image_is_what_umoci_unpacks() {
    const BYTES: u64 = 32 << 20;
    let recipe = Recipe::of_size(BYTES);
    let layers = recipe.layers().unwrap();
    assert!(content_bytes(&layers[0]) >= BYTES, "this machine has files");
    let markers = layers.iter().flatten().filter(|entry| is_marker(entry));
    assert!(
        markers.count() > recipe.upper_layers,
        "layers hide something"
    );

    let node = TestNode::new();
    let tars = tars(&layers);
    let gzip = node.image_of_tars("gzip", &tars, Compression::Gzip);
    let mut expected = umoci(node.path(), "images/gzip");
    assert!(expected.nodes.len() > 1000, "umoci unpacked something");
    forgive_times(&mut expected, &touched(&layers));
    for read_only in [true, false] {
        let tree = shown(&node, "gzip", &gzip, read_only);
        assert_same("gzip", &expected, &tree, Compared::ALL);
    }

    // This umoci takes no zstd, so its tree of the same layers is the judge.
    let other = TestNode::new();
    for (name, compression) in [("zstd", Compression::Zstd), ("plain", Compression::None)] {
        let source = other.image_of_tars(name, &tars, compression);
        let tree = shown(&other, name, &source, false);
        assert_same(name, &expected, &tree, Compared::ALL);
        assert_eq!(
            branches(&other, &source),
            branches(&node, &gzip),
            "{name} is made of the same layers"
        );
    }
}

/// Stages the image, as a volume of overlayfs would; its branches, uppermost first.
fn branches(node: &TestNode, source: &Source) -> Vec<String> {
    let staged = stage(node, source, Format::Overlay);
    ids(&staged)
}

fn ids(staged: &StagedImage) -> Vec<String> {
    let branches = &staged.form.branches;
    branches.iter().map(|id| id.as_str().to_owned()).collect()
}

fn stage(node: &TestNode, source: &Source, format: Format) -> StagedImage {
    let stager = Stager {
        store: node.volumes.store(),
        options: StageOptions::default(),
        ownership: Ownership::Real,
        max_branches: 100,
    };
    let opened = image::open(source).unwrap();
    stager
        .stage(
            &*opened,
            &source.to_string(),
            &PlatformChoice::Host,
            format,
            &(),
        )
        .unwrap()
}

#[test]
fn an_image_is_the_same_wherever_skopeo_copied_it() {
    let recipe = Recipe {
        changes_per_layer: 20,
        ..Recipe::of_size(4 << 20)
    };
    let layers = recipe.layers().unwrap();
    let node = TestNode::new();
    let original = node.image("original", &layers);
    let at = node.path();
    let expected = shown(&node, "original", &original, false);
    let expected_branches = branches(&node, &original);
    assert_eq!(expected_branches.len(), layers.len());

    let from = "oci:images/original:latest";
    skopeo_copy(at, &[], from, "oci:again:v1");
    skopeo_copy(at, &[], from, "oci-archive:a.tar:reg.io/app:2");
    skopeo_copy(at, &[], from, "docker-archive:d.tar:app:2");
    // And back, through two of them, in another compression.
    skopeo_copy(
        at,
        &[],
        "docker-archive:d.tar:app:2",
        "oci-archive:b.tar:v1",
    );
    let zstd = ["--dest-compress", "--dest-compress-format", "zstd"];
    skopeo_copy(at, &zstd, "oci-archive:b.tar:v1", "oci:zstd:v1");

    let on_disk = node.volumes.layers().unwrap().len();
    for (number, rest) in [
        "oci:@/again:v1",
        "oci-archive:@/a.tar:reg.io/app:2",
        "docker-archive:@/d.tar:app:2",
        "oci-archive:@/b.tar:v1",
        "oci:@/zstd:v1",
    ]
    .iter()
    .enumerate()
    {
        let copy = source(&rest.replace('@', at.to_str().unwrap()));
        // Where the layers are known, by their diffIDs, none is fetched.
        let staged = stage(&node, &copy, Format::Overlay);
        assert_eq!(staged.fetched, 0, "{rest}");
        assert_eq!(ids(&staged), expected_branches, "{rest}");

        let fresh = TestNode::new();
        let staged = stage(&fresh, &copy, Format::Overlay);
        assert_eq!(staged.fetched, layers.len(), "{rest}");
        assert_eq!(ids(&staged), expected_branches, "{rest}");
        let tree = shown(&fresh, &format!("copy{number}"), &copy, number % 2 == 0);
        assert_same(rest, &expected, &tree, Compared::ALL);
    }
    assert_eq!(node.volumes.layers().unwrap().len(), on_disk);
}

/// Two layers with one of everything that the changes below are made to.
fn base_layers() -> [Layer; 2] {
    let lower = vec![
        dir("").mode(0o755).mtime(1_400_000_000, 7),
        dir("etc"),
        file("etc/config", b"as it was\n").mode(0o640).owner(0, 12),
        file("etc/untouched", b"untouched\n"),
        dir("home").mode(0o750).owner(1000, 1000),
        file("home/delete-me", b"-"),
        file("home/replace-me", b"a file"),
        dir("cache").mode(0o1777),
        dir("cache/deep"),
        file("cache/deep/old", b"old"),
        file("cache/old", b"old"),
        file("cache/under", b"under"),
        dir("gone"),
        dir("gone/with"),
        file("gone/with/all", b"all"),
        dir("bin"),
        file("bin/tool", b"#!/bin/sh\n").mode(0o755),
        hardlink("bin/same-tool", "bin/tool"),
        symlink("bin/sh", "tool"),
        dir("closed").mode(0o711),
        file("closed/inside", b"inside"),
    ];
    let upper = vec![
        dir("etc"),
        file("etc/config", b"the upper layer's\n")
            .mode(0o644)
            .mtime(9, 999_999_999),
        whiteout("cache/under"),
        file("home/upper", b"upper"),
    ];
    [lower, upper]
}

/// What is done in the volume.
fn changes() -> Vec<Change> {
    let path = |path: &str| path.as_bytes().to_vec();
    vec![
        Change::Create {
            path: path("etc/created"),
            content: vec![b'c'; 300_000],
            mode: 0o600,
        },
        Change::Append {
            path: path("etc/config"),
            data: b"and more\n".to_vec(),
        },
        Change::Unlink {
            path: path("home/delete-me"),
        },
        // A directory where a file was, with something in it.
        Change::Unlink {
            path: path("home/replace-me"),
        },
        Change::Mkdir {
            path: path("home/replace-me"),
            mode: 0o2770,
        },
        Change::Create {
            path: path("home/replace-me/in"),
            content: b"in".to_vec(),
            mode: 0o644,
        },
        // The same directory again, without what was in it.
        Change::RecreateDir {
            path: path("cache"),
            mode: 0o700,
        },
        Change::Create {
            path: path("cache/old"),
            content: b"new".to_vec(),
            mode: 0o644,
        },
        Change::Create {
            path: path("cache/fresh"),
            content: Vec::new(),
            mode: 0o644,
        },
        Change::Unlink {
            path: path("gone/with/all"),
        },
        Change::Rmdir {
            path: path("gone/with"),
        },
        Change::Rmdir { path: path("gone") },
        Change::Link {
            from: path("etc/created"),
            to: path("home/linked"),
        },
        Change::Link {
            from: path("etc/created"),
            to: path("etc/a-third-name"),
        },
        Change::Symlink {
            path: path("bin/dangling"),
            target: path("/no/such/thing"),
        },
        Change::Mkfifo {
            path: path("home/pipe"),
            mode: 0o622,
        },
        Change::SetXattr {
            path: path("etc/untouched"),
            name: path("user.note"),
            value: b"\x00\xff=".to_vec(),
        },
        Change::SetXattr {
            path: path("home"),
            name: path("user.dir"),
            value: b"d".to_vec(),
        },
        Change::Create {
            path: path("bin/setuid"),
            content: b"#!/bin/true\n".to_vec(),
            mode: 0o4755,
        },
        Change::Chmod {
            path: path("closed"),
            mode: 0o1700,
        },
        Change::Chown {
            path: path("home/upper"),
            uid: 70_000,
            gid: 5,
        },
        Change::Utimens {
            path: path("bin/setuid"),
            mtime: Time {
                seconds: -1,
                nanos: 123_456_789,
            },
        },
        // Comes and goes: nothing is left to say of it.
        Change::Create {
            path: path("closed/temporary"),
            content: b"t".to_vec(),
            mode: 0o644,
        },
        Change::Unlink {
            path: path("closed/temporary"),
        },
    ]
}

const CHANGED: &str = "\
C /bin
A /bin/dangling
A /bin/setuid
C /cache
D /cache/deep
A /cache/fresh
C /cache/old
C /closed
C /etc
A /etc/a-third-name
C /etc/config
A /etc/created
C /etc/untouched
D /gone
C /home
D /home/delete-me
A /home/linked
A /home/pipe
C /home/replace-me
A /home/replace-me/in
C /home/upper
";

#[test]
fn an_export_is_to_others_what_the_volume_showed() {
    let node = TestNode::new();
    let at = node.path();
    let original = node.image("base", &base_layers());
    node.publish("app", &original, false).unwrap();
    let target = node.target("app");
    for change in changes() {
        perform(&target, &change).unwrap_or_else(|error| panic!("{change:?}: {error}"));
    }
    let volume = read(&target).unwrap();

    assert_eq!(aufs_csi(&node, &["diff", "app"]), CHANGED);
    assert_eq!(
        aufs_csi(&node, &["diff", target.to_str().unwrap()]),
        CHANGED
    );

    aufs_csi(&node, &["export", "app", "--file", "layer.tar"]);
    run(at, "cp", &["--archive", "images/base", "images/exported"]);
    let image = ["--image", "images/exported:latest"];
    run(
        at,
        "umoci",
        &[&["raw", "add-layer"], &image[..], &["layer.tar"]].concat(),
    );
    let unpacked = umoci(at, "images/exported");
    let mut expected = volume.clone();
    forgive_directory_times(&mut expected, &unpacked);
    assert_same("umoci", &expected, &unpacked, Compared::ALL);

    let exported = source(&format!("oci:{}/images/exported:latest", at.display()));
    for read_only in [true, false] {
        let again = shown(&node, "again", &exported, read_only);
        assert_same("staged again", &volume, &again, Compared::ALL);
    }
    // The base is there already, and nothing was changed in the new volume.
    assert_eq!(
        branches(&node, &exported)[1..],
        branches(&node, &original)[..]
    );
    node.publish("unchanged", &exported, false).unwrap();
    assert_eq!(aufs_csi(&node, &["diff", "unchanged"]), "");
    node.unpublish("unchanged");
    node.unpublish("app");
}

/// umoci makes what is in a directory after the directory's own entry, so that
/// the directories of the export have the time of unpacking.
fn forgive_directory_times(expected: &mut Tree, unpacked: &Tree) {
    let written = ["", "bin", "cache", "etc", "home", "home/replace-me"];
    for path in written.map(str::as_bytes) {
        assert!(unpacked.get(path).is_some_and(|node| node.is_dir()));
        expected.nodes.get_mut(path).unwrap().mtime = None;
    }
}

#[test]
fn names_that_layers_reserve_are_not_exported_as_markers() {
    let node = TestNode::new();
    let original = node.image("base", &base_layers());
    node.publish("app", &original, false).unwrap();
    fs::write(node.target("app").join("etc/.wh.untouched"), b"content").unwrap();
    let mut tar = Vec::new();
    let error = node.volumes.export("app", &mut tar).unwrap_err();
    let text = support::node::chain(&error);
    assert!(text.contains("etc/.wh.untouched"), "{text}");
    node.unpublish("app");
}

/// Where a branch lies, found by what it is made of.
fn branch_directories(node: &TestNode) -> BTreeMap<String, Vec<PathBuf>> {
    let mut directories: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for layer in node.volumes.layers().unwrap() {
        let directory = node.volumes.store().branch_dir(&layer.id);
        assert!(directory.is_dir());
        let diff_id = layer.diff_id.unwrap();
        directories.entry(diff_id).or_default().push(directory);
    }
    directories
}

#[test]
fn a_base_under_two_images_is_on_disk_once() {
    let node = TestNode::new();
    let base = vec![dir("usr"), file("usr/shared", vec![b's'; 100_000])];
    let images = ["one", "two"].map(|name| {
        let own = vec![file(format!("usr/{name}"), name)];
        node.image(name, &[base.clone(), own])
    });
    for (id, source) in ["one", "two"].iter().zip(&images) {
        node.publish(id, source, false).unwrap();
    }
    let directories = branch_directories(&node);
    assert_eq!(directories.len(), 3, "a base and two that are on it");
    assert!(directories.values().all(|places| places.len() == 1));

    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let [one, two] = ["one", "two"].map(|id| inode(node.target(id).join("usr/shared")));
    assert_eq!(one, two, "both show the same file");
    let on_disk: Vec<PathBuf> = directories
        .values()
        .flatten()
        .map(|place| real_path(place, b"usr/shared"))
        .filter(|path| path.exists())
        .collect();
    assert_eq!(on_disk.len(), 1);
    assert_eq!(inode(on_disk[0].clone()), one, "which is the branch's");

    // A write through one of them is neither in the other nor in the branch.
    fs::write(node.target("one").join("usr/shared"), "changed").unwrap();
    for path in [node.target("two").join("usr/shared"), on_disk[0].clone()] {
        assert_eq!(fs::read(path).unwrap(), vec![b's'; 100_000]);
    }
    node.unpublish("one");
    node.unpublish("two");
}

#[test]
fn layers_without_edits_serve_every_format_and_nothing_is_fetched_twice() {
    let node = TestNode::new();
    let layers = [
        vec![dir("d"), file("d/a", b"a"), file("d/b", b"b")],
        vec![file("d/c", b"c"), dir("d")],
        vec![dir("d"), opaque("d"), file("d/e", b"e")],
    ];
    let source = node.image("app", &layers);
    let overlay = stage(&node, &source, Format::Overlay);
    assert_eq!(overlay.fetched, 3);

    // From here on there is nothing that a layer could be fetched from.
    let blobs = node.path().join("images/app/blobs/sha256");
    let mut removed = 0;
    for layer in &overlay.image.layers {
        let digest = layer.digest.as_deref().unwrap();
        fs::remove_file(blobs.join(digest.strip_prefix("sha256:").unwrap())).unwrap();
        removed += 1;
    }
    assert_eq!(removed, 3);

    let again = stage(&node, &source, Format::Overlay);
    assert_eq!((again.fetched, ids(&again)), (0, ids(&overlay)));
    let aufs = stage(&node, &source, Format::Aufs);
    assert_eq!(aufs.fetched, 0);
    let (overlay, aufs) = (ids(&overlay), ids(&aufs));
    assert_eq!(overlay.len(), 3);
    assert_eq!(aufs[1..], overlay[1..], "the lower two need no edit");
    assert_ne!(aufs[0], overlay[0], "the opaque one has other markers");
    let directories = branch_directories(&node);
    let counts: Vec<usize> = directories.values().map(Vec::len).collect();
    assert_eq!(counts.iter().sum::<usize>(), 4);
    assert_eq!(directories.len(), 3);
}
