//! What the property tests on mounted volumes share.

use super::entry::Layer;
use super::generate::Shape;
use super::inputs::{run, source};
use super::node::{TestNode, chain};
use super::tree::{Compared, Tree, diff, read};
use proptest::prelude::*;
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
    format!("{what}:\n{}\n{}", lines.join("\n"), source(layers))
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
    let node = TestNode::new();
    let count = Cell::new(0);
    run(cases, strategy, |value| {
        count.set(count.get() + 1);
        let id = count.get().to_string();
        let result = check(&node, &id, value);
        for volume in node.volumes.list().unwrap() {
            node.unpublish(&volume.volume_id);
        }
        result
    });
}
