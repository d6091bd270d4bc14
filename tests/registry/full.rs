//! A store without the space that an image needs.

use super::driver::{Node, names};
use super::registry::push::digest;
use super::registry::run;
use super::registry::server::Registry;
use super::site::{Site, layers, push};
use super::support::entry::file;
use std::collections::BTreeSet;
use std::process::Command;
use tonic::Code;

/// A node whose store has a filesystem of its own, of this size.
fn small(size: &str) -> Node {
    let node = Node::new();
    // Others share the filesystem that it is on otherwise.
    run(Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=0700"),
            "tmpfs",
        ])
        .arg(node.store()));
    node
}

/// A manifest says how large its layers are, and anybody can write one.
#[tokio::test]
async fn an_image_that_claims_more_than_there_could_be_costs_others_nothing() {
    let registry = Registry::open();
    let cached = push(&registry, "full/cached:1", layers(603, 2, 100_000));
    let claims = push(&registry, "full/claims:1", layers(604, 1, 30_000_000));
    let site = Site::on(small("16m"), &["--gc-min-age=0s"]).await;
    let mut volume = site.kubelet.volume(&cached.at(registry.address()));
    site.ready(&mut volume).await;
    site.kubelet.delete(&mut volume).await;
    let there = || ["diff", "blobs"].map(|dir| names(&site.node.store().join(dir)));
    // As a pull leaves it that failed and will be gone on with.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = &digest(boot.trim().as_bytes())["sha256:".len()..][..8];
    let spool = format!("{}.{boot}", "0".repeat(32));
    std::fs::write(site.node.store().join("blobs").join(spool), "x").unwrap();
    let before = there();
    assert!(before.iter().all(|names| !names.is_empty()), "{before:?}");
    for _ in 0..2 {
        let mut volume = site.kubelet.volume(&claims.at(registry.address()));
        let status = site.refused(&mut volume).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(
            status.message().contains("bytes to be fetched"),
            "{status:?}"
        );
        site.kubelet.delete(&mut volume).await;
        assert_eq!(there(), before);
    }
}

fn nothing_is_left(site: &Site, what: &str) {
    for dir in ["blobs", "ingest", "volumes", "diff"] {
        let left = names(&site.node.store().join(dir));
        assert_eq!(left, BTreeSet::new(), "{what}: {dir}");
    }
}

#[tokio::test]
async fn an_image_that_is_too_large_is_refused_and_a_smaller_one_is_not() {
    let registry = Registry::open();
    // Already what is to be fetched is too large.
    let large = push(&registry, "full/large:1", layers(601, 3, 10_000_000));
    // What is to be fetched is small, and what comes out of it is not.
    let swells = vec![vec![file("zeros", vec![0; 40_000_000])]];
    let swells = push(&registry, "full/swells:1", swells);
    let small_one = push(&registry, "full/small:1", layers(602, 3, 100_000));
    let site = Site::on(small("16m"), &[]).await;
    for pushed in [&large, &swells] {
        let mut volume = site.kubelet.volume(&pushed.at(registry.address()));
        let status = site.refused(&mut volume).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        site.kubelet.delete(&mut volume).await;
        nothing_is_left(&site, &pushed.name);
    }
    let mut volume = site.kubelet.volume(&small_one.at(registry.address()));
    site.ready(&mut volume).await;
    small_one.is_at("the small one", &volume);
    site.kubelet.delete(&mut volume).await;
}
