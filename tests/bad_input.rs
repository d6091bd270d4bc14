//! What cannot work is refused with one clear error and leaves nothing: images
//! that are damaged, malformed or hostile, stores and targets that cannot be
//! used, and a disk that fills up in the middle.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::image::reference::Source;
use aufs_csi::layer::limits::Limits;
use aufs_csi::stage::StageOptions;
use aufs_csi::union::probe::UnionRequest;
use aufs_csi::volume::{ErrorKind, PublishRequest, VolumeError, VolumeOptions, Volumes};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::entry::{Layer, dir, file, hardlink, symlink};
use support::model::flatten;
use support::node::{TestNode, chain};
use support::oci_layout::{Image, OciLayout};
use support::tarball::{Compression, Tar, tars};
use support::tree::{Compared, assert_same, read};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Bytes that no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Two layers that seal with edits on any union.
fn good() -> Vec<Layer> {
    vec![
        vec![dir("d"), file("d/a", noise(5000)), file("f", b"f")],
        vec![support::entry::whiteout("d/a"), file("d/b", b"b")],
    ]
}

/// The names in a directory; none where it is missing.
fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The types of what is mounted at a directory.
fn mount_types(at: &Path) -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|line| line.split(' ').nth(4).map(Path::new) == Some(at))
        .filter_map(|line| line.split(" - ").nth(1)?.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// Mounts at or below a directory.
fn mounts(below: &Path) -> BTreeSet<String> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|at| Path::new(at).starts_with(below))
        .map(str::to_owned)
        .collect()
}

/// All that a failed call could have left.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    ingest: BTreeSet<String>,
    volumes: BTreeSet<String>,
    branches: BTreeSet<String>,
    records: BTreeSet<String>,
    images: BTreeSet<String>,
    mounts: BTreeSet<String>,
}

impl Left {
    fn of(store: &Path) -> Self {
        Left {
            ingest: names(&store.join("ingest")),
            volumes: names(&store.join("volumes")),
            branches: names(&store.join("diff")),
            records: names(&store.join("layers")),
            images: names(&store.join("images")),
            mounts: mounts(store.parent().unwrap()),
        }
    }

    /// Fails unless every branch has a whole record and nothing is in the making.
    fn is_whole(&self, what: &str) {
        assert!(self.ingest.is_empty(), "{what}: {self:#?}");
        let expected: BTreeSet<String> = self
            .branches
            .iter()
            .flat_map(|id| ["json", "index", "edits"].map(|kind| format!("{id}.{kind}")))
            .collect();
        assert_eq!(self.records, expected, "{what}");
        assert!(
            !self.images.iter().any(|name| name.contains(".tmp")),
            "{what}: {self:#?}"
        );
    }
}

/// One error: its kind and, of each group of words, one that the chain has.
fn is_clear(what: &str, error: &VolumeError, kind: ErrorKind, words: &[&str]) {
    let text = chain(error);
    assert_eq!(error.kind(), kind, "{what}: {text}");
    for word in words {
        assert!(
            word.split('|').any(|word| text.contains(word)),
            "{what}: {text:?} does not say {word:?}"
        );
    }
}

/// A volume that is refused, and what is as it was.
fn refused(node: &TestNode, request: &PublishRequest, kind: ErrorKind, words: &[&str]) {
    let what = &request.volume_id;
    let store = node.path().join("store");
    let (before, target) = (Left::of(&store), request.target.exists());
    let error = node
        .volumes
        .publish(request, &())
        .expect_err(&format!("{what} is mounted"));
    is_clear(what, &error, kind, words);
    let after = Left::of(&store);
    assert_eq!(after, before, "{what} left something");
    after.is_whole(what);
    assert_eq!(request.target.exists(), target, "{what}: the target");
}

/// The node still works.
fn still_works(node: &TestNode) {
    let layers = good();
    let source = node.image("good", &layers);
    node.publish("good", &source, false)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let expected = flatten(&layers).unwrap();
    let actual = read(&node.target("good")).unwrap();
    assert_same("afterwards", &expected, &actual, Compared::ALL);
    node.unpublish("good");
}

/// A layout with the good image, to be spoiled.
struct Spoiled {
    layout: OciLayout,
    image: Image,
    manifest: Value,
    config: Value,
}

impl Spoiled {
    fn new(node: &TestNode, name: &str, compression: Compression) -> Self {
        let mut layout = OciLayout::new(node.path().join("spoiled").join(name));
        let image = layout.image("latest", &tars(&good()), compression);
        let load = |digest: &str| -> Value {
            serde_json::from_slice(&fs::read(layout.blob_path(digest)).unwrap()).unwrap()
        };
        Spoiled {
            manifest: load(&image.manifest.digest),
            config: load(&image.config.digest),
            layout,
            image,
        }
    }

    fn source(&self) -> Source {
        format!("oci:{}:latest", self.layout.path().display())
            .parse()
            .unwrap()
    }

    /// Where the lowest layer is.
    fn blob(&self) -> PathBuf {
        self.layout.blob_path(&self.image.layers[0].digest)
    }

    /// Stores the manifest as it is now in place of the image's own.
    fn rewrite(mut self) -> Source {
        let config = self
            .layout
            .json_blob("application/vnd.oci.image.config.v1+json", &self.config);
        self.manifest["config"] = config.descriptor();
        self.retag(MANIFEST)
    }

    fn retag(&mut self, media_type: &str) -> Source {
        let manifest = self.layout.json_blob(media_type, &self.manifest);
        self.layout.tag("latest", manifest.descriptor());
        self.source()
    }

    /// Gives the lowest layer another blob, truly described.
    fn replace_blob(mut self, bytes: &[u8]) -> Source {
        let media_type = self.image.layers[0].media_type.clone();
        self.manifest["layers"][0] = self.layout.blob(&media_type, bytes).descriptor();
        self.rewrite()
    }
}

const KINDS: [(&str, Compression); 3] = [
    ("tar", Compression::None),
    ("gzip", Compression::Gzip),
    ("zstd", Compression::Zstd),
];

#[test]
fn damaged_blobs() {
    let node = TestNode::new();
    let check = |name: &str, source: Source, words: &[&str]| {
        let request = node.request(name, &source, false);
        refused(&node, &request, ErrorKind::DataLoss, words);
    };
    for (kind, compression) in KINDS {
        let spoil = |what: &str| Spoiled::new(&node, &format!("{what}-{kind}"), compression);

        let image = spoil("cut");
        let bytes = fs::read(image.blob()).unwrap();
        fs::write(image.blob(), &bytes[..bytes.len() / 2]).unwrap();
        check(
            &format!("cut {kind}"),
            image.source(),
            &["bytes instead of"],
        );

        let image = spoil("cut-and-described");
        let source = image.replace_blob(&bytes[..bytes.len() / 2]);
        let words = [
            "layer 1",
            "ends early|archive ends|corrupt|uncompressed layer has",
        ];
        check(&format!("cut and described {kind}"), source, &words);

        // Every eighth of it, so that header, body and checksum are met.
        for part in 0..8 {
            let image = spoil(&format!("flipped-{part}"));
            let mut flipped = bytes.clone();
            flipped[(bytes.len() - 1) * part / 7] ^= 0x10;
            fs::write(image.blob(), &flipped).unwrap();
            let words = ["layer 1", "has the digest|corrupt|frame|tar|compress|ends"];
            check(&format!("flipped {part} {kind}"), image.source(), &words);

            // As if whoever made the image had damaged it before describing it.
            // A gzip header says nothing that matters, so that one is left out.
            if part > 0 {
                let image = spoil(&format!("flipped-and-described-{part}"));
                let source = image.replace_blob(&flipped);
                check(
                    &format!("flipped and described {part} {kind}"),
                    source,
                    &words,
                );
            }
        }

        let image = spoil("exchanged");
        let mut other = good();
        other[0][1] = file("d/a", vec![0; 5000]);
        let mut blob = compression.compress(&tars(&other)[0]);
        if compression == Compression::None {
            assert_eq!(blob.len(), bytes.len());
        } else {
            // A size that is right, as a careful attacker would have it.
            blob = bytes.iter().rev().copied().collect();
        }
        fs::write(image.blob(), blob).unwrap();
        let words = ["layer 1", "has the digest|compress|read the layer's tar"];
        check(&format!("exchanged {kind}"), image.source(), &words);

        let mut image = spoil("diff-id");
        let wrong = support::oci_layout::digest(b"another");
        image.config["rootfs"]["diff_ids"][0] = json!(wrong);
        let words = ["uncompressed layer has the digest", &wrong];
        check(&format!("wrong diffID {kind}"), image.rewrite(), &words);

        for (how, difference) in [("small", -1), ("large", 1)] {
            let mut image = spoil(how);
            let size = image.image.layers[0].size as i64 + difference;
            image.manifest["layers"][0]["size"] = json!(size);
            let words = ["bytes instead of", &size.to_string()];
            check(&format!("size too {how} {kind}"), image.rewrite(), &words);
        }
    }
    still_works(&node);
}

#[test]
fn malformed_images() {
    let node = TestNode::new();
    let spoil = |what: &str| Spoiled::new(&node, what, Compression::Gzip);
    let check = |name: &str, source: Source, kind: ErrorKind, words: &[&str]| {
        refused(&node, &node.request(name, &source, false), kind, words);
    };
    use ErrorKind::{DataLoss, InvalidArgument, NotFound};

    for (name, media_type, words) in [
        (
            "unknown",
            "application/vnd.oci.image.layer.v1.tar+rar",
            "unsupported media type",
        ),
        (
            "non-distributable",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "non-distributable",
        ),
        (
            "foreign",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "non-distributable",
        ),
    ] {
        let mut image = spoil(name);
        image.manifest["layers"][1]["mediaType"] = json!(media_type);
        check(
            name,
            image.rewrite(),
            InvalidArgument,
            &[words, media_type, "layer 2"],
        );
    }

    let image = spoil("no-blob");
    fs::remove_file(image.blob()).unwrap();
    let digest = image.image.layers[0].digest.clone();
    check(
        "no blob",
        image.source(),
        NotFound,
        &["is missing from", &digest],
    );

    let image = spoil("no-config");
    fs::remove_file(image.layout.blob_path(&image.image.config.digest)).unwrap();
    let digest = image.image.config.digest.clone();
    check(
        "no config",
        image.source(),
        NotFound,
        &["is missing from", &digest],
    );

    let mut image = spoil("count");
    image.manifest["layers"].as_array_mut().unwrap().pop();
    let words = ["manifest has 1 layers, but the config has 2 diff ids"];
    check("layer count", image.rewrite(), InvalidArgument, &words);

    let mut image = spoil("schema-1");
    image.manifest =
        json!({"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": []});
    let source = image.retag(MANIFEST);
    check("schema 1", source, InvalidArgument, &["Docker schema 1"]);

    let mut image = spoil("not-json");
    let blob = image.layout.blob(MANIFEST, b"{\"schemaVersion\": 2, ");
    image.layout.tag("latest", blob.descriptor());
    check(
        "not JSON",
        image.source(),
        InvalidArgument,
        &["malformed", &blob.digest],
    );

    // An index that names itself cannot have the digest of what it holds.
    let mut image = spoil("itself");
    let digest = support::oci_layout::digest(b"an index");
    let own = json!({"mediaType": INDEX, "digest": digest, "size": 200});
    let mut index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [own]}).to_string();
    index.extend(std::iter::repeat_n(' ', 300 - index.len()));
    fs::write(image.layout.blob_path(&digest), &index).unwrap();
    let descriptor = json!({"mediaType": INDEX, "digest": digest, "size": index.len()});
    image.layout.tag("latest", descriptor);
    check(
        "itself",
        image.source(),
        DataLoss,
        &["has content with the digest", &digest],
    );

    let mut image = spoil("deep");
    let mut inner = image.image.manifest.clone();
    for _ in 0..12 {
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [inner.descriptor()],
        });
        inner = image.layout.json_blob(INDEX, &index);
    }
    image.layout.tag("latest", inner.descriptor());
    check(
        "deep",
        image.source(),
        InvalidArgument,
        &["nested deeper than"],
    );

    let mut layout = OciLayout::new(node.path().join("spoiled/platforms"));
    let platforms = [("sparc64", tars(&good())), ("mips64", tars(&good()))];
    layout.multi_platform("latest", &platforms, Compression::Gzip);
    let source: Source = format!("oci:{}:latest", layout.path().display())
        .parse()
        .unwrap();
    let words = ["image has nothing for linux/", "sparc64", "mips64"];
    check("not for this node", source, NotFound, &words);

    let mut request = node.request("platform", &spoil("platform").source(), false);
    request.platform = Some("plan9/arm64".parse().unwrap());
    refused(
        &node,
        &request,
        NotFound,
        &["image has nothing for plan9/arm64"],
    );

    let source: Source = "oci:/nonexistent/layout:latest".parse().unwrap();
    check("no layout", source, NotFound, &["/nonexistent/layout"]);
    let other = spoil("tag");
    let path = other.layout.path().display();
    let source: Source = format!("oci:{path}:other").parse().unwrap();
    check(
        "no tag",
        source,
        NotFound,
        &["has no image \"other\"", "latest"],
    );
    still_works(&node);
}

#[test]
fn hostile_layers_that_are_refused() {
    let node = TestNode::new();
    let victim = node.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let outside = format!("../../../../../../../../..{}", victim.display());
    let cases = [
        (
            "name with ..",
            Tar::new().file(&outside, "evil"),
            "refused for its name",
        ),
        (
            "inner ..",
            Tar::new().dir("a", 0o755).file("a/../../evil", "x"),
            "refused for its name",
        ),
        (
            "hard link out",
            Tar::new().hardlink("evil", &outside),
            "refused for its link target",
        ),
        (
            "hard link by a link",
            Tar::new()
                .symlink("up", "../../../..")
                .hardlink("evil", "up/victim"),
            "which neither it nor a layer below it has",
        ),
        (
            "loop of links",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", "x"),
            "symbolic links|refused",
        ),
        (
            "cut in a header",
            Tar::new()
                .file("f", "x")
                .bytes(vec![b'x'; 100])
                .without_trailer(),
            "archive ends",
        ),
        (
            "no tar",
            Tar::new().bytes(noise(4096)),
            "wrong checksum|no valid number",
        ),
    ];
    for (name, tar, words) in cases {
        let dir_name = name.replace(' ', "-");
        let source = node.image_of_tars(&dir_name, &[tar.build()], Compression::Gzip);
        let request = node.request(name, &source, false);
        let before = Left::of(&node.path().join("store"));
        let error = node.volumes.publish(&request, &()).expect_err(name);
        let kind = error.kind();
        assert!(
            matches!(kind, ErrorKind::FailedPrecondition | ErrorKind::DataLoss),
            "{name}: {kind:?}"
        );
        is_clear(
            name,
            &error,
            kind,
            &["cannot stage layer 1|layer 1 has", words],
        );
        assert_eq!(Left::of(&node.path().join("store")), before, "{name}");
        assert!(!request.target.exists(), "{name}");
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(fs::metadata(&victim).unwrap().nlink(), 1);
    still_works(&node);
}

#[test]
fn hostile_layers_that_stay_inside() {
    let node = TestNode::new();
    let victim = node.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let out = victim.to_str().unwrap();
    let cases = [
        (
            "absolute link",
            vec![vec![symlink("out", out), file("out/evil", b"evil")]],
        ),
        (
            "link in a later layer",
            vec![vec![symlink("out", out)], vec![file("out/evil", b"evil")]],
        ),
        (
            "directory becomes a link half-way",
            vec![vec![
                dir("a"),
                file("a/x", b"x"),
                symlink("a", out),
                file("a/evil", b"evil"),
            ]],
        ),
        (
            "a device in place of a file",
            vec![vec![
                support::entry::Entry::new("null", support::entry::EntryKind::Char(1, 3)),
                file("null", b"a file now"),
                support::entry::fifo("pipe"),
                file("pipe", b"not waiting for a reader"),
            ]],
        ),
        (
            "a file over a hard link to another",
            vec![vec![
                file("a", b"first"),
                hardlink("b", "a"),
                file("b", b"second"),
            ]],
        ),
    ];
    for (name, layers) in cases {
        let id = name.replace(' ', "-");
        let source = node.image(&id, &layers);
        node.publish(&id, &source, false)
            .unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        let expected = flatten(&layers).unwrap();
        assert_same(
            name,
            &expected,
            &read(&node.target(&id)).unwrap(),
            Compared::ALL,
        );
        node.unpublish(&id);
        assert_eq!(names(&victim), BTreeSet::new(), "{name}");
    }
}

/// A node with a store and options of its own.
fn open(
    root: &Path,
    node: &TestNode,
    rootless: bool,
    limits: Limits,
) -> Result<Volumes, VolumeError> {
    // Made by the node, on a tmpfs, and removed with it.
    let name = node.path().file_name().unwrap().to_string_lossy();
    Volumes::open(
        VolumeOptions {
            root: root.to_owned(),
            run_dir: Path::new("/dev/shm").join(format!("{name}-run")),
            rootless,
            max_branches: None,
            stage: StageOptions {
                limits,
                ..StageOptions::default()
            },
            host_proc: "/proc".into(),
            pull: Default::default(),
            collect: Default::default(),
        },
        Arc::new(LinuxHost),
    )
}

#[test]
fn bombs_meet_a_limit_that_the_error_names() {
    let node = TestNode::new();
    let zeros = vec![vec![file("zeros", vec![0; 32 << 20])]];
    let many: Vec<Layer> = vec![(0..10).map(|n| file(format!("f{n}"), b"")).collect()];
    let path = vec![vec![file("a/b/c/d/e/f/g/h", b"")]];
    let default = Limits::default;
    let cases = [
        (
            "ratio",
            &zeros,
            Limits {
                max_ratio: 50,
                ..default()
            },
            "more than 50 times",
        ),
        (
            "bytes",
            &zeros,
            Limits {
                max_unpacked_bytes: 1 << 20,
                ..default()
            },
            "more than the allowed 1048576 bytes",
        ),
        (
            "apparent",
            &zeros,
            Limits {
                max_apparent_bytes: 1 << 20,
                ..default()
            },
            "the limit is 1048576",
        ),
        (
            "entries",
            &many,
            Limits {
                max_entries: 3,
                ..default()
            },
            "more than 3 ",
        ),
        (
            "index",
            &many,
            Limits {
                max_index_bytes: 100,
                ..default()
            },
            "takes more than 100 bytes",
        ),
        (
            "path",
            &path,
            Limits {
                max_path_bytes: 10,
                ..default()
            },
            "the limit is 10",
        ),
        (
            "depth",
            &path,
            Limits {
                max_depth: 4,
                ..default()
            },
            "it has more than 4 components",
        ),
    ];
    for (name, layers, limits, words) in cases {
        let source = node.image(name, layers);
        let root = node.path().join("store");
        let volumes = open(&root, &node, false, limits).unwrap();
        let before = Left::of(&root);
        let error = volumes
            .publish(&node.request(name, &source, false), &())
            .expect_err(name);
        is_clear(
            name,
            &error,
            ErrorKind::FailedPrecondition,
            &["cannot stage layer 1", words],
        );
        assert_eq!(Left::of(&root), before, "{name}");
        assert!(!node.target(name).exists(), "{name}");
    }
    still_works(&node);
}

/// Links of a lower layer that lead far beyond what one name could say: each
/// is within the bounds, and all of them together are not.
#[test]
fn ways_through_links_of_lower_layers_meet_a_limit_that_the_error_names() {
    let node = TestNode::new();
    let deep = |count: usize| "/a".repeat(count);
    let wide = format!("/{}", "n".repeat(200)).repeat(15);
    let chain_of = |count: usize, way: &str| -> Layer {
        let text = |n: usize| format!("l{}{way}", n + 1);
        let last = way[1..].to_owned();
        let target = |n| if n < count { text(n) } else { last.clone() };
        (1..=count)
            .map(|n| symlink(format!("l{n}"), target(n)))
            .collect()
    };
    let cases: Vec<(&str, Layer, &[&str])> = vec![
        (
            "deep",
            chain_of(2, &deep(300)),
            &["more than 512 components"],
        ),
        ("long", chain_of(2, &wide), &["more than 4095 bytes"]),
        (
            "name",
            chain_of(1, &format!("/{}", "n".repeat(300))),
            &["more than 255 bytes"],
        ),
        // What stays where it is costs the same to follow.
        (
            "steps",
            chain_of(3, &"/a/..".repeat(800)),
            &["more than 4096 components"],
        ),
        (
            "all of them",
            chain_of(40, &deep(2040)),
            &["more than 4096 components|more than 512 components"],
        ),
    ];
    for (name, links, words) in cases {
        let id = name.replace(' ', "-");
        for (kind, upper) in [
            ("file", vec![file("l1/x", b"x")]),
            ("marker", vec![support::entry::whiteout("l1/x")]),
            ("link", vec![hardlink("g", "l1/x")]),
        ] {
            let source = node.image(&format!("{id}-{kind}"), &[links.clone(), upper]);
            let request = node.request(&format!("{name} {kind}"), &source, false);
            let path = if kind == "link" { "g" } else { "l1" };
            let words = [&["layer 2", path][..], words].concat();
            refused(&node, &request, ErrorKind::FailedPrecondition, &words);
        }
    }
    still_works(&node);
}

#[test]
fn errors_about_long_names_fit_into_an_event() {
    let node = TestNode::new();
    let long = format!("{}/x", vec!["n".repeat(199); 20].join("/"));
    for (name, upper, kind) in [
        (
            "missing",
            vec![hardlink("g", &long)],
            "which neither it nor",
        ),
        (
            "long name",
            vec![hardlink(&long, "no")],
            "which neither it nor",
        ),
        (
            "binary",
            vec![hardlink(vec![0xff; 250], vec![0x1b; 250])],
            "which neither it nor",
        ),
    ] {
        let source = node.image(&name.replace(' ', "-"), &[vec![file("f", b"")], upper]);
        let request = node.request(name, &source, false);
        // Numbered from the lowest, which is 1, and named by what it consists of.
        let words = ["layer 2 of diffID sha256:", "layer 2 has", kind];
        refused(&node, &request, ErrorKind::FailedPrecondition, &words);
        let error = node.volumes.publish(&request, &()).expect_err(name);
        let text = chain(&error);
        assert!(text.len() < 1024, "{name}: {} bytes: {text}", text.len());
    }
    still_works(&node);
}

#[test]
fn targets_that_cannot_be_used() {
    let node = TestNode::new();
    let source = node.image("good", &good());
    let with = |id: &str, prepare: &dyn Fn(&Path)| {
        let mut request = node.request(id, &source, false);
        request.create_target = false;
        prepare(&request.target);
        request
    };
    let missing = with("missing", &|_| {});
    refused(
        &node,
        &missing,
        ErrorKind::InvalidArgument,
        &["does not exist", "make an empty directory"],
    );
    let full = with("full", &|target| {
        fs::create_dir(target).unwrap();
        fs::write(target.join("precious"), "").unwrap();
    });
    refused(
        &node,
        &full,
        ErrorKind::FailedPrecondition,
        &["is not empty"],
    );
    assert!(full.target.join("precious").exists());
    let plain = with("plain", &|target| fs::write(target, "").unwrap());
    refused(
        &node,
        &plain,
        ErrorKind::InvalidArgument,
        &["is no directory"],
    );
    let link = with("link", &|target| {
        std::os::unix::fs::symlink("/nonexistent", target).unwrap()
    });
    let error = node.volumes.publish(&link, &()).unwrap_err();
    is_clear(
        "link",
        &error,
        ErrorKind::InvalidArgument,
        &["no directory|does not exist"],
    );
    let mut below = with("below", &|target| fs::write(target, "").unwrap());
    below.target.push("sub");
    refused(
        &node,
        &below,
        ErrorKind::InvalidArgument,
        &["cannot use", "sub"],
    );

    node.publish("first", &source, false).unwrap();
    let mut second = node.request("second", &source, false);
    second.target = node.target("first");
    refused(
        &node,
        &second,
        ErrorKind::FailedPrecondition,
        &["is a mount point already"],
    );
    let mut elsewhere = node.request("first", &source, false);
    elsewhere.target = node.target("elsewhere");
    refused(
        &node,
        &elsewhere,
        ErrorKind::FailedPrecondition,
        &["volume first is at"],
    );
    let other = node.request("first", &source, true);
    refused(
        &node,
        &other,
        ErrorKind::AlreadyExists,
        &["exists with other attributes"],
    );
    node.unpublish("first");
    still_works(&node);
}

#[test]
fn a_union_that_the_kernel_does_not_have() {
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    let node = TestNode::new();
    let layers = good();
    let mut request = node.request("aufs", &node.image("good", &layers), false);
    request.union = UnionRequest::Aufs;
    if known.lines().any(|line| line.ends_with("\taufs")) {
        // A kernel that has it mounts it, and nothing else instead.
        node.volumes.publish(&request, &()).unwrap();
        let (expected, actual) = (flatten(&layers).unwrap(), read(&request.target).unwrap());
        assert_same("aufs", &expected, &actual, Compared::ALL);
        assert!(mount_types(&request.target).contains(&"aufs".to_owned()));
        node.unpublish("aufs");
        return;
    }
    // The second time from what was found out the first time.
    for _ in 0..2 {
        let words = ["aufs was asked for and cannot be used", "; "];
        let error = node.volumes.publish(&request, &()).unwrap_err();
        is_clear("aufs", &error, ErrorKind::FailedPrecondition, &words);
        Left::of(&node.path().join("store")).is_whole("aufs");
        assert_eq!(names(&node.path().join("store/volumes")), BTreeSet::new());
        assert!(!request.target.exists());
    }
}

#[test]
fn stores_that_cannot_be_used() {
    let node = TestNode::new();
    let check = |name: &str, root: &Path, rootless: bool, words: &[&str]| {
        let before = (names(root), Left::of(root));
        let error = open(root, &node, rootless, Limits::default()).expect_err(name);
        is_clear(name, &error, ErrorKind::FailedPrecondition, words);
        assert_eq!((names(root), Left::of(root)), before, "{name}");
    };
    let make = |name: &str| {
        let root = node.path().join(name);
        fs::create_dir(&root).unwrap();
        root
    };
    let newer = make("newer");
    fs::write(
        newer.join("store.json"),
        r#"{"version": 2, "rootless": true, "new": 1}"#,
    )
    .unwrap();
    check(
        "newer",
        &newer,
        false,
        &["has version 2", "use a newer one, or another --root"],
    );
    let other = make("other");
    fs::write(other.join("thesis.tex"), "").unwrap();
    check(
        "no store",
        &other,
        false,
        &["holds something else than a store"],
    );
    check("unfit", &make("com,ma"), false, &["characters other than"]);
    let own = node.path().join("store");
    check("root's", &own, true, &["is a root's one"]);
    let rootless = node.path().join("rootless");
    drop(open(&rootless, &node, true, Limits::default()).unwrap());
    check("rootless", &rootless, false, &["is a rootless one"]);
}

/// A mount that goes with the test.
struct Mounted(PathBuf);

#[expect(
    clippy::disallowed_methods,
    reason = "a disk to fill, and one that cannot be written"
)]
impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount(
            "tmpfs",
            at,
            "tmpfs",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .expect("mount a tmpfs, as root");
        Mounted(at.to_owned())
    }

    fn read_only(from: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        rustix::mount::mount_bind(from, at).expect("bind, as root");
        let mounted = Mounted(at.to_owned());
        rustix::mount::mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
        mounted
    }
}

#[expect(clippy::disallowed_methods, reason = "as above")]
impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_read_only_store() {
    let node = TestNode::new();
    let source = node.image("good", &good());
    node.publish("good", &source, false).unwrap();
    node.unpublish("good");
    let at = node.path().join("read-only");
    let _mounted = Mounted::read_only(&node.path().join("store"), &at);
    let error = open(&at, &node, false, Limits::default()).expect_err("read-only");
    is_clear(
        "read-only",
        &error,
        ErrorKind::FailedPrecondition,
        &["Read-only file system", "read-only"],
    );
    still_works(&node);
}

/// Bytes that are free.
fn free(at: &Path) -> u64 {
    let facts = rustix::fs::statvfs(at).unwrap();
    facts.f_bavail * facts.f_frsize
}

#[test]
fn a_disk_that_fills_up() {
    let node = TestNode::new();
    let disk = node.path().join("disk");
    let _mounted = Mounted::tmpfs(&disk, "size=8m");
    let root = disk.join("store");
    let volumes = open(&root, &node, false, Limits::default()).unwrap();
    volumes.probe().unwrap();
    let empty = free(&disk);

    let mut large = good();
    large.push(
        (0..16)
            .map(|n| file(format!("f{n}"), noise(1 << 20)))
            .collect(),
    );
    let source = node.image("large", &large);
    let before = Left::of(&root);
    let request = node.request("large", &source, false);
    for _ in 0..2 {
        let error = volumes.publish(&request, &()).expect_err("does not fit");
        is_clear(
            "full",
            &error,
            ErrorKind::ResourceExhausted,
            &["No space left on device"],
        );
        assert_eq!(Left::of(&root), before);
        assert!(!request.target.exists());
        assert_eq!(free(&disk), empty, "space is not given back");
    }

    let layers = good();
    let source = node.image("small", &layers);
    let small = node.request("small", &source, false);
    // With so few pages left that another step fails each time.
    let (mut failed, mut done, mut partly) = (0, 0, 0);
    let mut kept = BTreeSet::new();
    for pages in 0..64 {
        let ballast = disk.join("ballast");
        let filler = vec![1_u8; (free(&disk) - pages * 4096) as usize];
        fs::write(&ballast, filler).unwrap();
        let what = format!("with {pages} pages left");
        match volumes.publish(&small, &()) {
            Ok(_) => {
                // Taking it down has to work with nothing left at all.
                let _ = fs::write(disk.join("rest"), vec![1_u8; 1 << 20]);
                volumes
                    .unpublish_named("small")
                    .unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
                fs::remove_file(disk.join("rest")).unwrap();
                done += 1;
            }
            Err(error) => {
                is_clear(
                    &what,
                    &error,
                    ErrorKind::ResourceExhausted,
                    &["No space left on device"],
                );
                failed += 1;
                // No image, but the layers that were whole before it failed.
                let left = Left::of(&root);
                let is_known = |name: &String| !name.ends_with(".ref.json");
                let images = |left: &Left| left.images.iter().filter(|name| is_known(name)).count();
                assert_eq!(images(&left) > 0, done > 0, "{what}: {left:#?}");
                partly += u32::from(done == 0 && !left.branches.is_empty());
            }
        }
        let left = Left::of(&root);
        left.is_whole(&what);
        // The next try begins with what this one has verified.
        assert!(left.branches.is_superset(&kept), "{what}: {left:#?}");
        kept.clone_from(&left.branches);
        assert_eq!(left.volumes, before.volumes, "{what}");
        assert_eq!(left.mounts, before.mounts, "{what}");
        assert!(!small.target.exists(), "{what}");
        fs::remove_file(&ballast).unwrap();
    }
    assert!(
        failed > 3 && done > 3 && partly > 0,
        "{failed} failed, {partly} of them after a commit, {done} done"
    );

    volumes.publish(&small, &()).unwrap();
    let expected = flatten(&layers).unwrap();
    let actual = read(&small.target).unwrap();
    assert_same("afterwards", &expected, &actual, Compared::ALL);
    volumes.unpublish_named("small").unwrap();
}
