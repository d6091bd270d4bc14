//! What the property tests on mounted volumes share.

use super::entry::Layer;
use super::generate::Shape;
use super::node::{TestNode, chain};
use super::tree::{Compared, Tree, diff, read};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::Cell;

/// Root's page and dentry caches are the kernel's to drop; what was right only
/// because it was cached must not pass.
pub fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "2").expect("drop caches, as root");
}

/// What generated layers may have: everything, or no extended attributes with
/// `AUFS_CSI_TEST_XATTRS=none`, for branches on a tmpfs before Linux 6.6.
pub fn shape() -> Shape {
    let xattrs = match std::env::var("AUFS_CSI_TEST_XATTRS").as_deref() {
        Ok("none") => false,
        Ok(other) => panic!("AUFS_CSI_TEST_XATTRS is {other}, and can only be none"),
        Err(_) => true,
    };
    Shape {
        xattrs,
        ..Shape::default()
    }
}

/// Publishes an image of these layers as the volume `id`, and reads it.
pub fn mounted(
    node: &TestNode,
    id: &str,
    layers: &[Layer],
    read_only: bool,
) -> Result<Tree, String> {
    let source = node.image(id, layers);
    node.publish(id, &source, read_only)
        .map_err(|error| chain(&error))?;
    Ok(read(&node.target(id)).expect("read the volume"))
}

/// A failure as text.
pub fn complain(what: &str, lines: &[String], layers: &[Layer]) -> String {
    format!("{what}:\n{}\nlayers: {layers:#?}", lines.join("\n"))
}

/// Fails where the volume `id` departs from `expected`.
pub fn same(
    when: &str,
    expected: &Tree,
    node: &TestNode,
    id: &str,
    compared: Compared,
    layers: &[Layer],
) -> Result<(), TestCaseError> {
    let actual = read(&node.target(id)).unwrap();
    let lines = diff(expected, &actual, compared);
    prop_assert!(lines.is_empty(), "{}", complain(when, &lines, layers));
    Ok(())
}

/// Runs `check` on that many generated inputs, with one node for all of them.
/// `PROPTEST_CASES` gives another number.
pub fn for_all<S: Strategy>(
    cases: u32,
    strategy: S,
    check: impl Fn(&TestNode, &str, S::Value) -> Result<(), TestCaseError>,
) {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(cases);
    let config = Config {
        cases,
        max_shrink_iters: 300,
        // At most one in ten may be of the kind that is refused, more of a few.
        max_global_rejects: cases / 10 + 10,
        failure_persistence: None,
        ..Config::default()
    };
    let node = TestNode::new();
    let count = Cell::new(0);
    // The same inputs every time, so that a change can be told from luck;
    // `PROPTEST_SEED=random` explores.
    let mut runner = match std::env::var("PROPTEST_SEED").as_deref() {
        Ok("random") => TestRunner::new(config),
        _ => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let result = runner.run(&strategy, |value| {
        count.set(count.get() + 1);
        let id = count.get().to_string();
        let result = check(&node, &id, value);
        for volume in node.volumes.list().unwrap() {
            node.unpublish(&volume.volume_id);
        }
        result
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
