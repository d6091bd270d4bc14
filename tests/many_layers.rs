//! Story: an image of hundreds of layers is staged, flattened and mounted also
//! where a process begins with few descriptors, as most do.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "the program is run as a process of its own, with a limit of its own"
)]

mod support;

use std::process::Command;
use support::entry::{Layer, dir, file, symlink};
use support::node::TestNode;

const LAYERS: usize = 600;

#[test]
fn six_hundred_layers_with_a_thousand_descriptors() {
    let node = TestNode::new();
    let mut layers: Vec<Layer> = vec![vec![
        dir("usr"),
        dir("usr/lib"),
        symlink("lib", "usr/lib"),
        file("usr/lib/0", b"0"),
    ]];
    // Some are settled by those below them, which takes the most files.
    layers.extend((1..LAYERS).map(|n| {
        let dir = if n % 30 == 0 { "lib" } else { "usr/lib" };
        vec![file(format!("{dir}/{n}"), n.to_string())]
    }));
    let source = node.image("many", &layers);
    let target = node.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("sh")
            .args([
                "-c",
                "ulimit -Sn 1024 && ulimit -Hn 4096 && exec \"$0\" \"$@\"",
            ])
            .arg(env!("CARGO_BIN_EXE_aufs-csi"))
            .args(arguments)
            .arg("--root")
            .arg(node.path().join("store"))
            .arg("--run-dir")
            .arg(node.volumes_options().run_dir)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
    };
    let (source, at) = (source.to_string(), target.to_str().unwrap());
    let union = std::env::var("AUFS_CSI_BACKEND").unwrap_or_else(|_| "overlay".to_owned());
    run(&["mount", "--union", &union, &source, at]);
    for n in [0, 1, LAYERS / 2, LAYERS - 1] {
        let content = std::fs::read_to_string(target.join("lib").join(n.to_string())).unwrap();
        assert_eq!(content, n.to_string());
    }
    assert_eq!(
        std::fs::read_dir(target.join("usr/lib")).unwrap().count(),
        LAYERS
    );
    run(&["unmount", at]);
}
