//! `subPath` on real mounts: a directory inside an image is all that a volume
//! shows, also after changes and when it is mounted again, and what is none is
//! refused with nothing left.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::host::Host as _;
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::image::reference::Source;
use aufs_csi::layer::changes::ChangeKind;
use aufs_csi::union::{Backend, unmount};
use aufs_csi::volume::{ErrorKind, PublishRequest, Published, VolumeError};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::entry::{Layer, dir, file, symlink, whiteout};
use support::node::{TestNode, chain};

/// A directory that several layers make, and links that lead in, out and nowhere.
fn layers() -> Vec<Layer> {
    vec![
        vec![
            dir("opt").mode(0o755),
            dir("opt/tools").mode(0o750).owner(7, 8).mtime(1_000_000, 5),
            file("opt/tools/gone", "x"),
            file("opt/tools/kept", "kept"),
            dir("opt/tools/deep"),
            file("opt/tools/deep/file", "deep"),
            file("etc", "no directory"),
            symlink("absolute", "/opt/tools"),
            symlink("climbing", "../../../../opt/tools"),
            symlink("host", "/proc/1"),
            symlink("loop", "loop"),
        ],
        vec![whiteout("opt/tools/gone"), file("opt/tools/added", "added")],
    ]
}

fn request(node: &TestNode, image: &Source, read_only: bool, path: &str) -> PublishRequest {
    PublishRequest {
        sub_path: Some(path.into()),
        ..node.request("v", image, read_only)
    }
}

fn publish(node: &TestNode, request: &PublishRequest) -> Result<Published, VolumeError> {
    node.volumes.publish(request, &())
}

/// Nothing is mounted, recorded or lying about.
fn is_empty(node: &TestNode) {
    assert_eq!(
        names(&node.path().join("store/volumes")),
        Vec::<String>::new()
    );
    assert!(!node.target("v").exists());
    let table = LinuxHost.mount_table().unwrap();
    let ours = table
        .iter()
        .filter(|entry| entry.mount_point.starts_with(node.path()));
    assert_eq!(ours.count(), 0);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_volume_shows_a_directory_of_its_image_and_nothing_else() {
    let node = TestNode::new();
    let image = node.image("app", &layers());
    for read_only in [false, true] {
        for path in ["opt/tools", "absolute", "climbing"] {
            let request = request(&node, &image, read_only, path);
            publish(&node, &request).unwrap_or_else(|error| panic!("{path}: {}", chain(&error)));
            let at = node.target("v");
            assert_eq!(names(&at), ["added", "deep", "kept"], "{path}");
            let root = fs::metadata(&at).unwrap();
            assert_eq!((root.uid(), root.gid()), (7, 8), "{path}");
            assert_eq!(root.mode() & 0o7777, 0o750, "{path}");
            assert_eq!(root.mtime(), 1_000_000, "{path}");
            assert!(publish(&node, &request).unwrap().existed, "{path}");
            let written = fs::write(at.join("new"), "by the pod");
            assert_eq!(written.is_err(), read_only, "{path}");
            let listed = node.volumes.list().unwrap();
            assert_eq!(listed[0].sub_path.as_deref(), Some(Path::new(path)));
            node.unpublish("v");
            is_empty(&node);
        }
    }
}

#[test]
fn what_a_pod_wrote_there_is_there_again() {
    let mut node = TestNode::new();
    let image = node.image("app", &layers());
    let request = request(&node, &image, false, "opt/tools");
    publish(&node, &request).unwrap();
    fs::write(node.target("v").join("new"), "by the pod").unwrap();
    fs::remove_file(node.target("v").join("kept")).unwrap();
    unmount(&LinuxHost, &[&node.target("v")], Duration::from_secs(10)).unwrap();
    node.reopen();
    assert!(!publish(&node, &request).unwrap().existed);
    assert_eq!(names(&node.target("v")), ["added", "deep", "new"]);
    let changes = node.volumes.diff("v").unwrap();
    let changes: Vec<(ChangeKind, String)> = changes
        .into_iter()
        .map(|change| (change.kind, String::from_utf8(change.path).unwrap()))
        .collect();
    // Paths are the image's, so that an export fits on top of it.
    assert!(changes.contains(&(ChangeKind::Added, "opt/tools/new".to_owned())));
    assert!(changes.contains(&(ChangeKind::Deleted, "opt/tools/kept".to_owned())));
    node.unpublish("v");
    is_empty(&node);
}

#[test]
fn what_is_no_directory_of_the_image_is_refused_and_leaves_nothing() {
    let node = TestNode::new();
    let image = node.image("app", &layers());
    for read_only in [false, true] {
        for (path, what) in [
            ("opt/none", "missing"),
            ("opt/tools/gone", "missing"),
            ("host", "missing"),
            ("etc", "no directory"),
            ("etc/below", "no directory"),
            ("loop", "leads to itself"),
        ] {
            let error = publish(&node, &request(&node, &image, read_only, path)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{path}");
            let text = chain(&error);
            for part in ["subPath", path, what, "images/app"] {
                assert!(text.contains(part), "{path}: {part}: {text}");
            }
            is_empty(&node);
        }
    }
}

#[test]
fn a_single_layer_is_bound_without_a_union() {
    let node = TestNode::new();
    let image = node.image("one", &layers()[..1]);
    let published = publish(&node, &request(&node, &image, true, "opt/tools/deep")).unwrap();
    assert_eq!(published.backend, Backend::Bind);
    assert_eq!(names(&node.target("v")), ["file"]);
    assert!(fs::write(node.target("v").join("new"), "x").is_err());
    node.unpublish("v");
    is_empty(&node);
}

/// Paths below a directory, without a leading slash.
fn below(dir: &Path, prefix: &str, into: &mut Vec<String>) {
    for name in names(dir) {
        let path = dir.join(&name);
        let shown = format!("{prefix}{name}");
        into.push(shown.clone());
        if path.symlink_metadata().unwrap().is_dir() {
            below(&path, &format!("{shown}/"), into);
        }
    }
}

#[test]
fn a_group_gets_the_directory_that_is_shown_and_nothing_is_copied_up_with_it() {
    let node = TestNode::new();
    let image = node.image("app", &layers());
    let request = PublishRequest {
        mount_group: Some(4321),
        ..request(&node, &image, false, "opt/tools")
    };
    publish(&node, &request).unwrap();
    let root = fs::metadata(node.target("v")).unwrap();
    assert_eq!((root.uid(), root.gid()), (7, 4321));
    assert_eq!(root.mode() & 0o7777, 0o2770);
    assert_eq!(root.mtime(), 1_000_000);
    let inside = fs::metadata(node.target("v").join("deep")).unwrap();
    assert_ne!(inside.gid(), 4321);
    let upper: PathBuf = node.record("v").plan.writable.unwrap().upper;
    // The image's own root keeps the image's group.
    assert_ne!(fs::metadata(&upper).unwrap().gid(), 4321);
    let mut copied = Vec::new();
    below(&upper, "", &mut copied);
    copied.retain(|path| !path.starts_with(".wh..wh."));
    assert_eq!(copied, ["opt", "opt/tools"]);
    node.unpublish("v");
    is_empty(&node);
}
