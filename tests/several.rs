//! A volume of several images shows their merged trees, on real mounts: the
//! hand-written cases, random images against the model, and what it costs. Runs on
//! overlay, and on AUFS with `AUFS_CSI_BACKEND=aufs` where the kernel has it.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::image::reference::Source;
use aufs_csi::layer::store::BranchId;
use aufs_csi::volume::{ErrorKind, Published, Volumes};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use support::entry::{Layer, dir, file, hardlink, whiteout};
use support::generate::image_stacks;
use support::images::{images_cases, merged};
use support::inputs::{NAMED, source};
use support::node::{TestNode, chain};
use support::property::{drop_caches, for_all, shape};
use support::tree::{Compared, Tree, assert_same, diff, read};

fn sources(node: &TestNode, id: &str, images: &[Vec<Layer>]) -> Vec<Source> {
    let images = images.iter().enumerate();
    images
        .map(|(number, layers)| node.image(&format!("{id}-{number}"), layers))
        .collect()
}

fn publish(
    node: &TestNode,
    id: &str,
    images: &[Vec<Layer>],
    read_only: bool,
) -> Result<Published, String> {
    node.publish_all(id, &sources(node, id, images), read_only)
        .map_err(|error| chain(&error))
}

fn text(images: &[Vec<Layer>]) -> String {
    let images = images.iter().map(|layers| source(layers));
    images.collect::<Vec<_>>().join(",\n")
}

#[test]
fn every_case_of_the_table_comes_out_as_it_says() {
    let node = TestNode::new();
    let mut faults = Vec::new();
    for (number, case) in images_cases().iter().enumerate() {
        let expected = merged(&case.images);
        for read_only in [true, false] {
            let id = format!("{number}-{read_only}");
            if let Err(error) = publish(&node, &id, &case.images, read_only) {
                faults.push(format!("{}: {error}", case.name));
                continue;
            }
            let tree = read(&node.target(&id)).unwrap();
            let lines = diff(&expected, &tree, Compared::ALL).into_iter();
            let lines = lines.chain(case.faults(&tree));
            faults.extend(lines.map(|line| format!("{}, {read_only}: {line}", case.name)));
            node.unpublish(&id);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn random_images_look_like_the_model() {
    for_all(192, image_stacks(shape()), |node, id, images| {
        let expected = merged(&images);
        let same = |when: &str, expected: &Tree, id: &str| {
            let lines = diff(expected, &read(&node.target(id)).unwrap(), Compared::ALL);
            prop_assert!(
                lines.is_empty(),
                "{when}: {}\n{}",
                lines.join("\n"),
                text(&images)
            );
            Ok(())
        };
        for read_only in [true, false] {
            let id = format!("{id}{read_only}");
            if let Err(text) = publish(node, &id, &images, read_only) {
                return Err(match NAMED.iter().any(|words| text.contains(words)) {
                    true => TestCaseError::reject(text),
                    false => TestCaseError::fail(text),
                });
            }
            same("mounted", &expected, &id)?;
            drop_caches();
            same("after caches were dropped", &expected, &id)?;
        }
        Ok(())
    });
}

/// Ten images of twelve layers each, which have their lowest two layers in common:
/// each has something of its own, something that all have, and something that it
/// takes away again.
fn ten_of_twelve() -> Vec<Vec<Layer>> {
    let image = |number: usize| {
        let mut layers = vec![
            vec![
                dir("usr"),
                file("usr/base", "base"),
                file("usr/all", "base"),
            ],
            vec![dir("usr/share"), file("usr/share/b", "b")],
        ];
        for layer in 2..12 {
            layers.push(vec![
                dir(format!("own-{number}")),
                file(format!("own-{number}/{layer}"), "own"),
                file("usr/all", format!("{number}-{layer}")),
                file(format!("usr/{layer}"), format!("{number}-{layer}")),
            ]);
        }
        layers[11].push(whiteout(format!("usr/{}", number % 9 + 2)));
        layers
    };
    (0..10).map(image).collect()
}

#[test]
fn ten_images_of_twelve_layers_mount() {
    let node = TestNode::new();
    let images = ten_of_twelve();
    let expected = merged(&images);
    for read_only in [false, true] {
        let id = format!("stack-{read_only}");
        let published = publish(&node, &id, &images, read_only).unwrap();
        // Ten times ten, the two that all have, and what shows what was hidden.
        assert_eq!(published.branches, 103);
        assert_eq!(published.images.len(), 10);
        let tree = read(&node.target(&id)).unwrap();
        assert_same(&id, &expected, &tree, Compared::ALL);
        drop_caches();
        let tree = read(&node.target(&id)).unwrap();
        assert_same(&id, &expected, &tree, Compared::ALL);
        if !read_only {
            std::fs::write(node.target(&id).join("usr/base"), "mine").unwrap();
            std::fs::remove_file(node.target(&id).join("usr/3")).unwrap();
            node.remount(&id);
            assert!(!node.target(&id).join("usr/3").exists());
        }
        node.unpublish(&id);
    }
}

fn stored(node: &TestNode) -> BTreeSet<BranchId> {
    let branches = node.volumes.store().branches().unwrap().into_iter();
    branches.map(|branch| branch.id).collect()
}

#[test]
fn layers_are_on_disk_once_whatever_stacks_they_are_in() {
    let node = TestNode::new();
    let base: Layer = vec![dir("usr"), file("usr/base", "base"), file("usr/gone", "x")];
    let tool: Vec<Layer> = vec![
        base.clone(),
        vec![dir("usr"), file("usr/tool", "tool")],
        vec![dir("usr"), file("usr/tool", "tool 2")],
    ];
    // Its marker speaks of its own lower layer, and the tool has the file.
    let app: Vec<Layer> = vec![
        base,
        vec![dir("usr"), whiteout("usr/gone"), file("app", "a")],
    ];
    node.publish("tool", &node.image("tool", &tool), true)
        .unwrap();
    node.publish("app", &node.image("app", &app), true).unwrap();
    let alone = stored(&node);
    assert_eq!(alone.len(), 4, "three layers and one with a marker");
    let tool_on_top = [tool.clone(), app.clone()];
    let published = publish(&node, "v", &tool_on_top, false).unwrap();
    assert_eq!(published.branches, 4);
    assert_eq!(stored(&node), alone, "nothing is made for these two");
    // The other way round the base's file was removed by the upper image.
    let published = publish(&node, "w", &[app, tool], false).unwrap();
    assert_eq!(published.branches, 5);
    let made: Vec<BranchId> = stored(&node).difference(&alone).cloned().collect();
    let [made] = &made[..] else {
        panic!("{made:?}");
    };
    let made = read(&node.volumes.store().branch_dir(made)).unwrap();
    assert_eq!(made.paths(|node| !node.is_dir()), [b"usr/gone"]);
    assert_eq!(
        std::fs::read_to_string(node.target("w").join("usr/gone")).unwrap(),
        "x"
    );
}

#[test]
fn deeper_stacks_than_the_operator_allows_are_flattened_at_the_bottom() {
    let mut options = None;
    let node = TestNode::new();
    let images = ten_of_twelve();
    let expected = merged(&images);
    // What was flattened once stays so, so the lowest comes last.
    for cap in [40, 12, 3, 2, 1] {
        let mut capped = options.take().unwrap_or_else(|| node.volumes_options());
        capped.max_branches = Some(cap);
        options = Some(capped.clone());
        let host = Arc::new(aufs_csi::host::linux::LinuxHost);
        let volumes = Volumes::open(capped, host).unwrap();
        let id = format!("cap-{cap}");
        let all = sources(&node, &id, &images);
        let request = aufs_csi::volume::PublishRequest {
            images: all
                .into_iter()
                .map(aufs_csi::volume::ImageRequest::unconfined)
                .collect(),
            ..node.request(&id, &"oci:/none".parse().unwrap(), true)
        };
        let published = volumes.publish(&request, &());
        let published = published.unwrap_or_else(|error| panic!("{}", chain(&error)));
        // One may have been kept for a correction that was not needed.
        assert!(
            (cap - 1..=cap).contains(&published.branches),
            "{published:?}"
        );
        assert!(published.branches > 0);
        let tree = read(&node.target(&id)).unwrap();
        assert_same(&id, &expected, &tree, Compared::ALL);
    }
    for cap in [1, 2, 3, 12, 40] {
        node.unpublish(&format!("cap-{cap}"));
    }
}

#[test]
fn an_inode_with_names_on_both_sides_of_a_correction_stays_one() {
    let node = TestNode::new();
    let lower: Vec<Layer> = vec![vec![
        dir("d"),
        file("d/a", "linked"),
        hardlink("d/b", "d/a"),
        hardlink("c", "d/a"),
    ]];
    let upper: Vec<Layer> = vec![vec![file("d/a", "up")], vec![whiteout("d/a")]];
    publish(&node, "v", &[upper, lower], false).unwrap();
    let at = node.target("v");
    use std::os::unix::fs::MetadataExt;
    let inode = |name: &str| std::fs::metadata(at.join(name)).unwrap().ino();
    assert_eq!((inode("d/a"), inode("d/b")), (inode("c"), inode("c")));
}

#[test]
fn a_volume_comes_back_with_each_of_its_images_as_it_was() {
    let node = TestNode::new();
    let first: Vec<Layer> = vec![vec![file("a", "first")]];
    let second: Vec<Layer> = vec![vec![file("b", "second")]];
    let images = [node.image("a", &first), node.image("b", &second)];
    let before = node.publish_all("v", &images, false).unwrap();
    std::fs::write(node.target("v").join("mine"), "mine").unwrap();
    // Both names lead elsewhere by then.
    node.image("a", &[vec![file("a", "later")]]);
    node.image("b", &[vec![file("b", "later")]]);
    node.remount("v");
    let content = |name: &str| std::fs::read_to_string(node.target("v").join(name)).unwrap();
    assert_eq!(
        (content("a"), content("b"), content("mine")),
        ("first".into(), "second".into(), "mine".into())
    );
    assert_eq!(node.record("v").images, before.images);
    let again = node.publish_all("v", &images, false).unwrap();
    assert!(again.existed);
    assert_eq!(again.images, before.images);
}

#[test]
fn an_error_names_the_image_that_it_is_about() {
    let node = TestNode::new();
    let good = node.image("good", &[vec![file("a", "a")]]);
    let missing: Source = format!("oci:{}/missing:latest", node.path().display())
        .parse()
        .unwrap();
    let error = node
        .publish_all("v", &[good.clone(), missing.clone()], true)
        .unwrap_err();
    assert!(
        chain(&error).contains(&missing.to_string()),
        "{}",
        chain(&error)
    );
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // It makes no sense, whichever image is beneath.
    let senseless = node.image("senseless", &[vec![hardlink("a", "nothing")]]);
    let error = node
        .publish_all("v", &[senseless.clone(), good], true)
        .unwrap_err();
    assert!(
        chain(&error).contains(&senseless.to_string()),
        "{}",
        chain(&error)
    );
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
}
