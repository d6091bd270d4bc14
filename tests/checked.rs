//! What the kernel makes of an image that this program has formatted, in the eyes
//! of e2fsck: after use, and after a node that lost its power in the middle of it.
//!
//! Needs root, loop devices and e2fsprogs, and fails without.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "the judge is a program of its own"
)]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountCall, MountFlags};
use aufs_csi::union::unmount;
use aufs_csi::volume::{Medium, PublishRequest};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::entry::{dir, file};
use support::node::{TestNode, chain};

/// A volume with an image, and the image.
fn volume(limit: u64) -> (TestNode, PathBuf) {
    let node = TestNode::new();
    let source = node.image("image", &[vec![dir("d"), file("d/lower", b"lower")]]);
    let request = PublishRequest {
        size_limit: Some(limit),
        medium: Medium::Disk,
        ..node.request("v", &source, false)
    };
    let result = node.volumes.publish(&request, &());
    result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let image = node.record("v").plan.staging.with_file_name("image");
    (node, image)
}

/// Some of everything, on disk afterwards.
fn use_it(target: &Path) {
    for at in 0..300 {
        let path = target.join(format!("d/{at}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), vec![at as u8; at * 97]).unwrap();
        fs::hard_link(path.join("file"), path.join("second")).unwrap();
        symlink("../lower", path.join("link")).unwrap();
    }
    for at in (0..300).step_by(3) {
        fs::remove_dir_all(target.join(format!("d/{at}"))).unwrap();
    }
    let sparse = File::create(target.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    fs::remove_file(target.join("d/lower")).unwrap();
    rustix::fs::sync();
}

#[track_caller]
fn is_clean(image: &Path) {
    let output = Command::new("e2fsck").arg("-fn").arg(image).output();
    let output = output.expect("e2fsck of e2fsprogs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

#[test]
fn an_image_that_was_used_is_whole_and_allocated() {
    let (node, image) = volume(64 << 20);
    let before = fs::metadata(&image).unwrap().blocks();
    use_it(&node.target("v"));
    let after = fs::metadata(&image).unwrap();
    assert!(after.blocks() >= before, "it has holes");
    assert!(after.blocks() * 512 >= after.len());
    for at in [&node.target("v"), &image.with_file_name("fs")] {
        unmount(&LinuxHost, &[at], Duration::from_secs(10)).unwrap();
    }
    is_clean(&image);
    node.unpublish("v");
}

#[test]
fn after_a_power_loss_the_journal_has_what_was_synced() {
    let (node, image) = volume(64 << 20);
    let target = node.target("v");
    use_it(&target);
    // What is written now is anywhere between the page cache and the disk.
    fs::write(target.join("late"), vec![1; 1 << 20]).unwrap();
    let other = node.path().join("after");
    let at = node.path().join("at");
    fs::copy(&image, &other).unwrap();
    fs::create_dir(&at).unwrap();
    let call = MountCall::Image {
        image: other.clone(),
        devices: node.path().to_owned(),
        flags: MountFlags::volume(false),
        data: String::new(),
    };
    LinuxHost.mount(&at, &call).unwrap();
    let upper = at.join("upper/d");
    for at in 0..300 {
        let file = fs::read(upper.join(format!("{at}/file"))).ok();
        let expected = (at % 3 != 0).then(|| vec![at as u8; at * 97]);
        assert_eq!(file, expected, "{at}");
    }
    unmount(&LinuxHost, &[&at], Duration::from_secs(10)).unwrap();
    is_clean(&other);
    node.unpublish("v");
}
