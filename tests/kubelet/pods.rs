//! What pods get, from their start to their end.

use super::driver::names;
use super::fake::State;
use super::support::entry::{dir, file, whiteout};
use super::support::model::{flatten, merge};
use super::support::tree::{Compared, assert_same, read};
use super::{layers, running};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

#[tokio::test]
async fn two_pods_write_to_one_image_and_see_only_their_own() {
    let (node, driver, kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let expected = flatten(&layers).unwrap();
    let (mut one, mut other) = (kubelet.volume(&image), kubelet.volume(&image));
    let (first, second) = tokio::join!(kubelet.set_up(&mut one), kubelet.set_up(&mut other));
    first.unwrap();
    second.unwrap();
    assert_eq!(node.mounts().len(), 2);
    for volume in [&one, &other] {
        let actual = read(&volume.target()).unwrap();
        assert_same("at first", &expected, &actual, Compared::ALL);
    }
    assert_eq!(node.layers().len(), layers.len(), "each layer once");

    let at = |name: &str| one.target().join(name);
    fs::write(at("changed"), "by one").unwrap();
    fs::remove_file(at("d/kept")).unwrap();
    fs::create_dir(at("new")).unwrap();
    let actual = read(&other.target()).unwrap();
    assert_same(
        "after the other's changes",
        &expected,
        &actual,
        Compared::ALL,
    );

    let usage = kubelet.stats(&one).await.unwrap();
    assert!(
        usage.iter().all(|u| u.used > 0 && u.total >= u.used),
        "{usage:?}"
    );
    let metrics = driver.get("/metrics").await.1;
    for line in [
        "csi_plugin_operations_seconds_count{driver_name=\"aufs-csi.dev\",method_name=\"/csi.v1.Node/NodePublishVolume\",grpc_status_code=\"OK\"} 2",
        "aufs_csi_volumes{state=\"mounted\"} 2",
        "aufs_csi_layers 3",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}: {metrics}"
        );
    }

    kubelet.delete(&mut one).await;
    let actual = read(&other.target()).unwrap();
    assert_same("after the other's end", &expected, &actual, Compared::ALL);
    kubelet.delete(&mut other).await;
    node.has_no_volumes("afterwards");
    // What they wrote is gone, what they shared stays.
    assert_eq!(node.layers().len(), layers.len());
    let mut next = kubelet.volume(&image);
    kubelet.set_up(&mut next).await.unwrap();
    let actual = read(&next.target()).unwrap();
    assert_same("a later pod", &expected, &actual, Compared::ALL);
    kubelet.delete(&mut next).await;
}

#[tokio::test]
async fn a_read_only_volume_takes_no_writes() {
    let (node, _driver, kubelet) = running().await;
    let layers = layers();
    // One of several layers, and one of a single layer, which needs no union.
    for (name, layers) in [("many", &layers[..]), ("one", &layers[..1])] {
        let mut volume = kubelet.volume(&node.image(name, layers)).read_only();
        // It has no root of its own that could be given to a group.
        volume.fs_group = Some(4321);
        kubelet.set_up(&mut volume).await.unwrap();
        let actual = read(&volume.target()).unwrap();
        assert_same(name, &flatten(layers).unwrap(), &actual, Compared::ALL);
        let refused = fs::write(volume.target().join("new"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        kubelet.stats(&volume).await.unwrap();
        kubelet.delete(&mut volume).await;
        node.has_no_volumes(name);
    }
}

#[tokio::test]
async fn a_pod_can_have_two_volumes() {
    let (node, _driver, kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let mut first = kubelet.volume(&image);
    let mut second = first.clone();
    second.name = "more".to_owned();
    second.read_only = true;
    let (one, two) = tokio::join!(kubelet.set_up(&mut first), kubelet.set_up(&mut second));
    one.unwrap();
    two.unwrap();
    fs::write(first.target().join("changed"), "by the pod").unwrap();
    let actual = read(&second.target()).unwrap();
    assert_same(
        "the other",
        &flatten(&layers).unwrap(),
        &actual,
        Compared::ALL,
    );
    let (one, two) = tokio::join!(
        kubelet.tear_down(&mut first),
        kubelet.tear_down(&mut second)
    );
    one.unwrap();
    two.unwrap();
    first.remove_pod_dir().unwrap();
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_group_is_given_the_root_directory_and_nothing_else() {
    let (node, _driver, kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let mut volume = kubelet.volume(&image);
    volume.fs_group = Some(4321);
    kubelet.set_up(&mut volume).await.unwrap();
    let mut expected = flatten(&layers).unwrap();
    let root = expected.nodes.get_mut(&b""[..]).unwrap();
    root.gid = 4321;
    root.mode |= 0o2070;
    let actual = read(&volume.target()).unwrap();
    assert_same("as mounted", &expected, &actual, Compared::ALL);
    let upper = node.records()[0].0.with_file_name("upper");
    assert_eq!(names(&upper), BTreeSet::new(), "nothing is copied up");
    // What is made in it is the group's, too.
    fs::write(volume.target().join("new"), "x").unwrap();
    assert_eq!(volume.target().join("new").metadata().unwrap().gid(), 4321);
    kubelet.delete(&mut volume).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_pod_that_is_deleted_by_force_while_the_plugin_is_away_ends_when_it_is_back() {
    let (node, mut driver, mut kubelet) = running().await;
    let image = node.image("app", &layers());
    let (mut deleted, mut live) = (kubelet.volume(&image), kubelet.volume(&image));
    kubelet.set_up(&mut deleted).await.unwrap();
    kubelet.set_up(&mut live).await.unwrap();
    driver.kill();
    // Its object is gone from the API server; kubelet unpublishes all the same.
    let status = kubelet.tear_down(&mut deleted).await.unwrap_err();
    assert!(!super::fake::is_final(status.code()), "{status:?}");
    assert!(deleted.target().join("changed").exists(), "it waits");
    // Nobody else may be started meanwhile.
    let mut late = kubelet.volume(&image);
    kubelet.set_up(&mut late).await.unwrap_err();
    assert_eq!(late.state, State::Uncertain);
    let _driver = node.start();
    kubelet.register().await;
    kubelet.delete(&mut deleted).await;
    assert_eq!(node.mounts(), [live.target()]);
    kubelet.set_up(&mut late).await.unwrap();
    for volume in [&mut live, &mut late] {
        kubelet.delete(volume).await;
    }
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_pod_has_several_images_in_one_volume() {
    let (node, _driver, kubelet) = running().await;
    let base = layers();
    // It has the file that the base hides, and takes away one that both have.
    let patch = vec![
        vec![
            dir("d"),
            file("d/hidden", "of the patch"),
            file("changed", "x"),
        ],
        vec![whiteout("changed"), file("new", "new")],
    ];
    let images = [&patch, &base].map(|layers| flatten(layers).unwrap());
    let expected = merge(&images);
    let (patch, base) = (node.image("patch", &patch), node.image("base", &base));
    let mut volume = kubelet.volume("");
    // As it is written in a YAML block.
    volume.attributes = vec![("images".to_owned(), format!("{patch},\n{base}\n"))];
    let mut read_only = volume.clone().read_only();
    read_only.name = "more".to_owned();
    for volume in [&mut volume, &mut read_only] {
        kubelet.set_up(volume).await.unwrap();
        let actual = read(&volume.target()).unwrap();
        assert_same("at first", &expected, &actual, Compared::ALL);
    }
    let target = volume.target();
    let text = |name: &str| fs::read_to_string(target.join(name)).unwrap();
    assert_eq!(text("d/hidden"), "of the patch");
    assert_eq!(text("changed"), "after");
    // A kubelet that starts again asks for it again.
    fs::write(target.join("new"), "by the pod").unwrap();
    kubelet.set_up(&mut volume).await.unwrap();
    assert_eq!(text("new"), "by the pod");
    // The other way round it is another volume.
    let mut turned = kubelet.volume("").read_only();
    turned.attributes = vec![("images".to_owned(), format!("{base},{patch}"))];
    kubelet.set_up(&mut turned).await.unwrap();
    let of_patch = fs::read_to_string(turned.target().join("d/hidden")).unwrap();
    assert_eq!(of_patch, "of the patch");
    let expected = merge(&[images[1].clone(), images[0].clone()]);
    let actual = read(&turned.target()).unwrap();
    assert_same("turned", &expected, &actual, Compared::ALL);

    let mut missing = kubelet.volume("");
    let nowhere = base.replace("base", "nowhere");
    missing.attributes = vec![("images".to_owned(), format!("{base},{nowhere}"))];
    let status = kubelet.set_up(&mut missing).await.unwrap_err();
    assert!(status.message().contains(&nowhere), "{status:?}");
    missing.remove_pod_dir().unwrap();
    kubelet.tear_down(&mut read_only).await.unwrap();
    for volume in [&mut volume, &mut turned] {
        kubelet.delete(volume).await;
    }
    node.has_no_volumes("afterwards");
}
