//! Artifacts whose layers are files, such as `oras push` makes, become a volume of
//! those files.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::image::reference::Source;
use aufs_csi::volume::ErrorKind;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use support::entry::{dir, file};
use support::node::{TestNode, chain};
use support::oci_layout::{OciLayout, digest};
use support::tarball::{Compression, tars};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TITLE: &str = "org.opencontainers.image.title";

/// Media type and bytes.
type Layer = (&'static str, Vec<u8>);

/// A layout with one artifact, `latest`, and how it is asked for.
fn artifact(node: &TestNode, name: &str, layers: &[(Layer, Value)]) -> (OciLayout, Source) {
    let path = node.path().join("images").join(name);
    let mut layout = OciLayout::new(&path);
    let mut descriptors = Vec::new();
    for ((media_type, bytes), annotations) in layers {
        let mut descriptor = layout.blob(media_type, bytes).descriptor();
        descriptor["annotations"] = annotations.clone();
        descriptors.push(descriptor);
    }
    let config = layout.blob("application/vnd.oci.empty.v1+json", b"{}");
    let manifest = layout.json_blob(
        MANIFEST,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/x-model",
            "config": config.descriptor(),
            "layers": descriptors,
        }),
    );
    layout.tag("latest", manifest.descriptor());
    let source = format!("oci:{}:latest", path.display());
    (layout, source.parse().unwrap())
}

fn blob(bytes: &[u8]) -> Layer {
    ("application/octet-stream", bytes.to_vec())
}

#[test]
fn files_of_an_artifact_are_the_volume() {
    let node = TestNode::new();
    let tar = tars(&[vec![dir("tree"), file("tree/leaf", b"leaf")]]).remove(0);
    let packed = (
        Compression::Gzip.media_type(),
        Compression::Gzip.compress(&tar),
    );
    let packed_annotations = json!({
        TITLE: "tree",
        "io.deis.oras.content.unpack": "true",
        "io.deis.oras.content.digest": digest(&tar),
    });
    // One that looks like a layer, one that is empty, and the same bytes twice.
    let gzip = Compression::Gzip.compress(b"not a tar");
    let layers = [
        (blob(b"weights"), json!({TITLE: "model/weights.bin"})),
        (blob(&gzip), json!({TITLE: "model/archive.tar.gz"})),
        (blob(b""), json!({TITLE: "empty"})),
        (blob(b"weights"), json!({TITLE: "copy"})),
        (packed, packed_annotations),
    ];
    let (_, source) = artifact(&node, "model", &layers);
    node.publish("v", &source, true).unwrap();
    let at = node.target("v");
    for (name, content) in [
        ("model/weights.bin", &b"weights"[..]),
        ("model/archive.tar.gz", &gzip),
        ("empty", b""),
        ("copy", b"weights"),
        ("tree/leaf", b"leaf"),
    ] {
        assert_eq!(fs::read(at.join(name)).unwrap(), content, "{name}");
    }
    for name in ["model/weights.bin", "empty"] {
        let status = fs::metadata(at.join(name)).unwrap();
        assert_eq!(
            (
                status.mode() & 0o7777,
                status.uid(),
                status.gid(),
                status.mtime()
            ),
            (0o644, 0, 0, 0),
            "{name}"
        );
    }
    node.unpublish("v");

    // What is there already is not read again, wherever it is named.
    let (layout, source) = artifact(&node, "again", &layers[..1]);
    fs::remove_file(layout.blob_path(&digest(b"weights"))).unwrap();
    node.publish("w", &source, false).unwrap();
    assert_eq!(
        fs::read(node.target("w").join("model/weights.bin")).unwrap(),
        b"weights"
    );
    node.unpublish("w");
}

#[test]
fn a_damaged_file_is_refused() {
    let node = TestNode::new();
    let layers = [(blob(b"weights"), json!({TITLE: "weights"}))];
    let (layout, source) = artifact(&node, "model", &layers);
    fs::write(layout.blob_path(&digest(b"weights")), b"WEIGHTS").unwrap();
    let error = node.publish("v", &source, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{}", chain(&error));
}
