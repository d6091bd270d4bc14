//! `diff` and `export` of volumes that are in use, on real mounts.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::layer::changes::ChangeKind;
use aufs_csi::volume::{ErrorKind, Owner, Pod, PublishRequest};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use support::entry::{dir, file};
use support::node::{TestNode, chain};

/// Exports while the pod writes.
const EXPORTS: usize = 60;
/// Bytes of a file that is replaced again and again.
const BYTES: usize = 200_000;

/// Files of a tar, by name. As much of the format as an export has.
fn files(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
    };
    let mut found = BTreeMap::new();
    let mut at = 0;
    while tar[at] != 0 {
        let header = &tar[at..at + 512];
        let size = usize::from_str_radix(text(&header[124..136]).trim(), 8).unwrap();
        let content = &tar[at + 512..at + 512 + size];
        if header[156] == b'0' {
            found.insert(text(&header[..100]), content.to_vec());
        }
        at += 512 + size.div_ceil(512) * 512;
    }
    found
}

/// What a busy pod does: files and directories come, go and change places.
fn churn(root: &Path, round: usize) {
    let at = |name: &str| root.join(name);
    let name = format!("file{}", round % 7);
    fs::write(at(&name), "x").unwrap();
    let _ = fs::hard_link(at(&name), at("other"));
    fs::create_dir_all(at("d/e/f")).unwrap();
    fs::write(at("d/e/f/deep"), "x").unwrap();
    // A file where a directory was, and the other way round.
    let _ = fs::remove_dir_all(at("turns"));
    let _ = fs::remove_file(at("turns"));
    match round % 2 {
        0 => fs::write(at("turns"), "x").unwrap(),
        _ => fs::create_dir(at("turns")).unwrap(),
    }
    let byte = [b'a' + u8::try_from(round % 26).unwrap()];
    fs::write(at("new"), byte.repeat(BYTES)).unwrap();
    fs::rename(at("new"), at("replaced")).unwrap();
    fs::remove_file(at(&name)).unwrap();
    fs::remove_file(at("other")).unwrap();
    fs::remove_dir_all(at("d")).unwrap();
}

#[test]
fn a_pod_that_writes_is_read_without_an_error_and_what_rests_is_whole() {
    let node = TestNode::new();
    let image = node.image("app", &[vec![dir("d"), file("base", "image")]]);
    node.publish("v", &image, false).unwrap();
    let root = node.target("v");
    fs::write(root.join("rests"), "written before").unwrap();
    fs::write(root.join("replaced"), "a".repeat(BYTES)).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pod = scope.spawn(|| {
            let mut round = 0;
            while !is_done.load(Ordering::SeqCst) {
                churn(&root, round);
                round += 1;
            }
            round
        });
        let mut failed = None;
        for number in 0..EXPORTS {
            let mut tar = Vec::new();
            if let Err(error) = node.volumes.export("v", &mut tar) {
                failed = Some(format!("export {number}: {}", chain(&error)));
                break;
            }
            let files = files(&tar);
            assert_eq!(files["rests"], b"written before");
            let replaced = &files["replaced"];
            assert_eq!(replaced.len(), BYTES);
            assert!(
                replaced.iter().all(|byte| *byte == replaced[0]),
                "a file that is replaced by a rename is one of both"
            );
            match node.volumes.diff("v") {
                Ok(changes) => assert!(
                    changes
                        .iter()
                        .any(|change| change.path == b"rests" && change.kind == ChangeKind::Added)
                ),
                Err(error) => {
                    failed = Some(format!("diff {number}: {}", chain(&error)));
                    break;
                }
            }
        }
        is_done.store(true, Ordering::SeqCst);
        let rounds = pod.join().unwrap();
        assert_eq!(failed, None, "after {rounds} rounds of the pod");
        assert!(rounds > 10, "{rounds} rounds");
    });
    node.unpublish("v");
}

#[test]
fn a_volume_is_meant_by_its_pod_and_where_there_are_several_by_its_name_too() {
    let node = TestNode::new();
    let image = node.image("app", &[vec![file("base", "image")]]);
    let publish = |id: &str, pod: &str, name: &str| {
        let target: PathBuf = node.path().join("pods").join(pod).join(name).join("mount");
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let request = PublishRequest {
            owner: Owner::Plugin,
            pod: Some(Pod {
                namespace: "default".to_owned(),
                name: pod.to_owned(),
                uid: String::new(),
            }),
            target: target.clone(),
            ..node.request(id, &image, false)
        };
        node.volumes.publish(&request, &()).unwrap();
        target
    };
    let alone = publish("csi-1", "alone", "data");
    publish("csi-2", "rich", "data");
    publish("csi-3", "rich", "cache");
    let meant = |text: &str, name: Option<&str>| {
        let found = node.volumes.meant(text, name);
        found.map_err(|error| (error.kind(), chain(&error)))
    };
    assert_eq!(meant("default/alone", None).unwrap(), "csi-1");
    assert_eq!(meant("default/rich", Some("cache")).unwrap(), "csi-3");
    assert_eq!(meant("csi-2", None).unwrap(), "csi-2");
    assert_eq!(meant(alone.to_str().unwrap(), None).unwrap(), "csi-1");
    let (kind, text) = meant("default/rich", None).unwrap_err();
    assert_eq!(kind, ErrorKind::InvalidArgument);
    assert!(text.contains("cache (csi-3), data (csi-2)"), "{text}");
    let (kind, text) = meant("default/rich", Some("date")).unwrap_err();
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(text.contains("no volume \"date\""), "{text}");
    assert_eq!(
        meant("default/none", None).unwrap_err().0,
        ErrorKind::NotFound
    );
    // What it wrote, by its name.
    fs::write(alone.join("new"), "x").unwrap();
    let changes = node.volumes.diff(&meant("default/alone", None).unwrap());
    assert_eq!(changes.unwrap()[0].path, b"new");
}
