//! Read-only volumes of one content are one union, on real mounts.
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
use aufs_csi::volume::{Owner, PublishRequest, UnpublishRequest};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use support::entry::{Layer, dir, file, whiteout};
use support::model::flatten;
use support::node::{TestNode, chain};
use support::tree::{Compared, assert_same, read};

/// Pods of one image.
const PODS: usize = 100;
/// Pods that come and go at the same time.
const THREADS: usize = 4;
/// How often each does.
const ROUNDS: usize = 40;

fn layers() -> Vec<Layer> {
    vec![
        vec![
            dir("d").mode(0o750),
            file("d/gone", "x"),
            file("d/kept", "y"),
        ],
        vec![whiteout("d/gone"), file("d/added", "z")],
    ]
}

fn request(node: &TestNode, image: &Source, id: &str) -> PublishRequest {
    PublishRequest {
        owner: Owner::Plugin,
        ..node.request(id, image, true)
    }
}

fn publish(node: &TestNode, request: &PublishRequest) {
    node.volumes
        .publish(request, &())
        .unwrap_or_else(|error| panic!("{}: {}", request.volume_id, chain(&error)));
}

fn unpublish(node: &TestNode, id: &str) {
    let request = UnpublishRequest {
        volume_id: id.to_owned(),
        target: node.target(id),
        clear_target: true,
    };
    let result = node.volumes.unpublish(&request);
    result.unwrap_or_else(|error| panic!("{id}: {}", chain(&error)));
}

fn mounts(node: &TestNode) -> Vec<PathBuf> {
    let table = LinuxHost.mount_table().unwrap().into_iter();
    let at = table.map(|entry| entry.mount_point);
    at.filter(|at| at.starts_with(node.path())).collect()
}

/// Or not there.
fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none()) || !dir.exists()
}

#[track_caller]
fn is_clear(node: &TestNode) {
    assert_eq!(mounts(node), Vec::<PathBuf>::new());
    for name in ["volumes", "shared"] {
        assert!(is_empty(&node.path().join("store").join(name)), "{name}");
    }
    let run = node.volumes_options().run_dir;
    assert!(is_empty(&run.join("xino")));
}

#[test]
fn a_hundred_read_only_pods_of_one_image_are_one_filesystem() {
    let node = TestNode::new();
    let image = node.image("app", &layers());
    let expected = flatten(&layers()).unwrap();
    let ids: Vec<String> = (0..PODS).map(|number| format!("v{number}")).collect();
    for id in &ids {
        publish(&node, &request(&node, &image, id));
    }
    let devices: BTreeSet<(u32, u32)> = ids
        .iter()
        .map(|id| LinuxHost.place(&node.target(id)).unwrap().device)
        .collect();
    assert_eq!(devices.len(), 1, "superblocks");
    assert_eq!(mounts(&node).len(), PODS + 1);
    for id in [&ids[0], &ids[PODS - 1]] {
        let shown = read(&node.target(id)).unwrap();
        assert_same(id, &expected, &shown, Compared::ALL);
        let refused = fs::write(node.target(id).join("d/new"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    for id in &ids[..PODS - 1] {
        unpublish(&node, id);
    }
    let last = &ids[PODS - 1];
    let shown = read(&node.target(last)).unwrap();
    assert_same("the last", &expected, &shown, Compared::ALL);
    unpublish(&node, last);
    is_clear(&node);
}

#[test]
fn different_directories_of_one_image_share_and_other_images_do_not() {
    let node = TestNode::new();
    let image = node.image("app", &layers());
    let mut other = layers();
    other.push(vec![file("more", "x")]);
    let other = node.image("other", &other);
    publish(&node, &request(&node, &image, "whole"));
    let inside = PublishRequest {
        sub_path: Some("d".into()),
        ..request(&node, &image, "inside")
    };
    publish(&node, &inside);
    publish(&node, &request(&node, &other, "other"));
    let device = |id: &str| LinuxHost.place(&node.target(id)).unwrap().device;
    assert_eq!(device("whole"), device("inside"));
    assert_ne!(device("whole"), device("other"));
    assert!(node.target("inside").join("kept").exists());
    let missing = PublishRequest {
        sub_path: Some("none".into()),
        ..request(&node, &image, "missing")
    };
    node.volumes.publish(&missing, &()).unwrap_err();
    assert!(!node.target("missing").exists());
    for id in ["whole", "inside", "other"] {
        unpublish(&node, id);
    }
    is_clear(&node);
}

#[test]
fn a_restart_keeps_them_and_goes_on() {
    let mut node = TestNode::new();
    let image = node.image("app", &layers());
    publish(&node, &request(&node, &image, "before"));
    node.reopen();
    let kubelet = node.path().join("kubelet");
    fs::create_dir(&kubelet).unwrap();
    let upkeep = node.volumes.recover(&kubelet).unwrap();
    assert_eq!(upkeep.stuck, 0);
    publish(&node, &request(&node, &image, "after"));
    let device = |id: &str| LinuxHost.place(&node.target(id)).unwrap().device;
    assert_eq!(device("before"), device("after"));
    let again = request(&node, &image, "before");
    assert!(node.volumes.publish(&again, &()).unwrap().existed);
    unpublish(&node, "before");
    assert!(node.target("after").join("d/kept").exists());
    unpublish(&node, "after");
    is_clear(&node);
}

#[test]
fn pods_that_come_and_go_at_once_always_see_their_image() {
    let node = TestNode::new();
    let image = node.image("app", &layers());
    // Staged once, so that it is the mounts that meet.
    publish(&node, &request(&node, &image, "first"));
    unpublish(&node, "first");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (node, image) = (&node, &image);
            scope.spawn(move || {
                let id = format!("v{thread}");
                for round in 0..ROUNDS {
                    publish(node, &request(node, image, &id));
                    let kept = fs::read_to_string(node.target(&id).join("d/kept"));
                    assert_eq!(kept.unwrap(), "y", "{id} in round {round}");
                    unpublish(node, &id);
                }
            });
        }
    });
    is_clear(&node);
}

#[test]
fn a_label_is_given_exactly_where_the_kernel_knows_labels() {
    const LABEL: &str = "system_u:object_r:container_file_t:s0";
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap();
    let has_selinux = filesystems
        .split_whitespace()
        .any(|name| name == "selinuxfs");
    let node = TestNode::new();
    let one = node.image("one", &layers()[..1]);
    let two = node.image("two", &layers());
    for (id, image, read_only) in [
        ("bind", &one, true),
        ("union", &two, true),
        ("writable", &one, false),
    ] {
        let request = PublishRequest {
            label: Some(LABEL.to_owned()),
            read_only,
            ..request(&node, image, id)
        };
        publish(&node, &request);
        let entry = LinuxHost.mount_at(&node.target(id)).unwrap().unwrap();
        assert_eq!(entry.option("context").is_some(), has_selinux, "{id}");
        assert_eq!(node.record(id).plan.label.is_some(), has_selinux, "{id}");
        assert_eq!(fs::read(node.target(id).join("d/kept")).unwrap(), b"y");
        unpublish(&node, id);
    }
    is_clear(&node);
}

/// What somebody mounts in one pod's volume is not in another's, which it would hold.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "what somebody else mounts on the node"
)]
fn what_is_mounted_in_one_volume_does_not_appear_in_the_others() {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
    // A union that is shared, and plain binds of one tree.
    for layers in [layers(), layers()[..1].to_vec()] {
        let node = TestNode::new();
        let image = node.image("image", &layers);
        // As the store and kubelet's pods are in the plugin's container.
        mount_bind(node.path(), node.path()).unwrap();
        mount_change(node.path(), MountPropagationFlags::SHARED).unwrap();
        let at = |id: &str| node.target(id).join("d");
        for id in ["a", "b"] {
            publish(&node, &request(&node, &image, id));
        }
        mount_bind(node.path(), at("a")).unwrap();
        let table = LinuxHost.mount_table().unwrap();
        let mounted: Vec<_> = table.iter().map(|entry| &entry.mount_point).collect();
        assert!(mounted.contains(&&at("a")));
        assert!(!mounted.contains(&&at("b")));
        unmount(at("a"), UnmountFlags::empty()).unwrap();
        for id in ["a", "b"] {
            unpublish(&node, id);
        }
        unmount(node.path(), UnmountFlags::empty()).unwrap();
    }
}
