//! What only a kernel with AUFS can show. `make e2e-aufs` runs it inside of one;
//! elsewhere every test fails and says so.
//!
//! ```text
//! drivers  what the AUFS drivers of Docker and containerd are tested for
//! limits   pages of options, numbers of branches, places that AUFS refuses
//! use      volumes in use, come and go, or are found again
//! pod      what a program in a pod notices
//! ```
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests make mounts of their own, and processes that hold volumes"
)]

#[path = "../support/mod.rs"]
mod support;

mod drivers;
mod limits;
mod pod;
#[path = "use.rs"]
mod used;

use std::path::PathBuf;
use support::bench::{Bench, backend};
use support::entry::Layer;
use support::model::flatten;
use support::node::{TestNode, chain};
use support::property::drop_caches;
use support::tree::{Compared, assert_same, read};

/// Every test starts here: with AUFS, or not at all.
fn need_aufs() {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap();
    assert!(
        filesystems
            .lines()
            .any(|line| line.ends_with("\taufs") || line == "aufs"),
        "this kernel has no AUFS: run `make e2e-aufs AUFS_KERNEL=<bzImage>`"
    );
    assert_eq!(
        backend(),
        aufs_csi::union::Backend::Aufs,
        "set AUFS_CSI_BACKEND=aufs"
    );
}

fn node() -> TestNode {
    need_aufs();
    TestNode::new()
}

fn bench() -> Bench {
    need_aufs();
    Bench::new()
}

/// Publishes a volume of these layers; where it is.
fn publish(node: &TestNode, id: &str, layers: &[Layer], read_only: bool) -> PathBuf {
    let source = node.image(id, layers);
    node.publish(id, &source, read_only)
        .unwrap_or_else(|error| panic!("{id}: {}", chain(&error)));
    node.target(id)
}

/// Publishes the layers with and without a writable layer, and compares both
/// with the model, also after the kernel forgot what it had cached.
fn assert_right(node: &TestNode, id: &str, layers: &[Layer]) {
    let expected = flatten(layers).unwrap();
    for read_only in [true, false] {
        let id = format!("{id}-{read_only}");
        let at = publish(node, &id, layers, read_only);
        assert_same(&id, &expected, &read(&at).unwrap(), Compared::ALL);
        drop_caches();
        let what = format!("{id}, caches dropped");
        assert_same(&what, &expected, &read(&at).unwrap(), Compared::ALL);
        node.unpublish(&id);
    }
}

/// Runs `work` as an ordinary user, without privileges, in a thread of its own.
fn as_user<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> T {
    use rustix::process::{Gid, Uid};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // These change the calling thread alone.
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_gid(Gid::from_raw(user)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(user)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// The kernel's number for an error.
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&result.unwrap_err()).expect("an answer of the kernel")
}

/// The unions that live, by the kernel's own list.
fn unions() -> Vec<String> {
    std::fs::read_dir("/sys/fs/aufs")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("si_"))
        .collect()
}
