//! kubelet, the plugin and the node begin anew, and pods keep what they have.

use super::driver::Node;
use super::fake::{Kubelet, State, Volume};
use super::support::model::flatten;
use super::support::tree::{Compared, Tree, assert_same, read};
use super::{PATIENCE, layers, running};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use tokio::task::JoinSet;
use tonic::Code;

/// Makes volumes of one image, each with a file that tells which it is.
async fn live(kubelet: &Kubelet, image: &str, count: usize) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for number in 0..count {
        let mut volume = kubelet.volume(image);
        kubelet.set_up(&mut volume).await.unwrap();
        fs::write(volume.target().join("mine"), number.to_string()).unwrap();
        volumes.push(volume);
    }
    volumes
}

fn is_theirs(volumes: &[Volume]) {
    for (number, volume) in volumes.iter().enumerate() {
        let mine = fs::read_to_string(volume.target().join("mine")).unwrap();
        assert_eq!(mine, number.to_string());
    }
}

/// What the pod shows, but for what it wrote.
fn as_published(volume: &Volume) -> Tree {
    let mut tree = read(&volume.target()).unwrap();
    tree.remove(b"mine");
    tree
}

/// But for the root directory, whose time the pod has changed.
const WRITTEN: Compared = Compared {
    root: false,
    ..Compared::ALL
};

/// A kubelet that starts asks for all volumes at once.
async fn replay_all(kubelet: &Kubelet, volumes: &[Volume]) {
    let mut all = JoinSet::new();
    for volume in volumes {
        let (kubelet, volume) = (kubelet.clone(), volume.clone());
        all.spawn(async move { kubelet.replay(&volume).await });
    }
    for result in all.join_all().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn a_kubelet_that_restarts_asks_for_every_volume_again() {
    let (node, mut driver, mut kubelet) = running().await;
    let image = node.image("app", &layers());
    let mut volumes = live(&kubelet, &image, 12).await;
    let mut read_only = kubelet.volume(&image).read_only();
    kubelet.set_up(&mut read_only).await.unwrap();
    let all: Vec<Volume> = volumes.iter().chain([&read_only]).cloned().collect();
    let mounted = |node: &Node| node.mounts().into_iter().collect::<BTreeSet<_>>();
    let expected: BTreeSet<_> = all.iter().map(Volume::target).collect();

    kubelet.register().await;
    replay_all(&kubelet, &all).await;
    assert_eq!(node.mounts().len(), all.len(), "no second mount");
    assert_eq!(mounted(&node), expected);

    // Neither image nor permission is there any more, and all is as it was.
    driver.kill();
    fs::remove_dir_all(node.images().join("app")).unwrap();
    let driver = node.start_with(&[]);
    kubelet.register().await;
    replay_all(&kubelet, &all).await;
    assert_eq!(node.mounts().len(), all.len(), "no second mount");
    assert_eq!(mounted(&node), expected);
    is_theirs(&volumes);
    let mut new = kubelet.volume(&image);
    let status = kubelet.set_up(&mut new).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    drop(driver);
    let _driver = node.start_with(&["--log-level", "debug"]);
    kubelet.register().await;
    for volume in volumes.iter_mut().chain([&mut read_only]) {
        kubelet.delete(volume).await;
    }
    kubelet.delete(&mut new).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn volumes_outlive_the_plugin() {
    let (node, mut driver, mut kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let mut volumes = live(&kubelet, &image, 3).await;
    driver.kill();
    // Pods do not notice.
    fs::write(volumes[0].target().join("changed"), "while it is away").unwrap();
    let driver = node.start();
    kubelet.register().await;
    is_theirs(&volumes);
    let expected = flatten(&layers).unwrap();
    assert_same("as it was", &expected, &as_published(&volumes[1]), WRITTEN);
    // kubelet did not restart, so it asks for none of them again.
    let usage = kubelet.stats(&volumes[0]).await.unwrap();
    assert!(usage.iter().all(|usage| usage.used > 0), "{usage:?}");
    let metrics = driver.get("/metrics").await.1;
    assert!(metrics.contains("\naufs_csi_volumes{state=\"mounted\"} 3\n"));
    for volume in &mut volumes {
        kubelet.delete(volume).await;
    }
    node.has_no_volumes("afterwards");
}

/// Writes another boot's id wherever the store has one; in records of volumes
/// only, or in those of layers, too.
fn another_boot(node: &Node, layers_too: bool) -> usize {
    let mut paths: Vec<_> = node.records().into_iter().map(|(path, _)| path).collect();
    if layers_too {
        let all = fs::read_dir(node.store().join("layers")).unwrap();
        let all = all.map(|entry| entry.unwrap().path());
        paths.extend(all.filter(|path| path.extension().is_some_and(|e| e == "json")));
    }
    let mut changed = 0;
    for path in paths {
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        // A layer that was flushed has none.
        if record["boot"].is_string() {
            record["boot"] = "00000000-1111-2222-3333-444444444444".into();
            fs::write(&path, record.to_string()).unwrap();
            changed += 1;
        }
    }
    changed
}

/// The machine goes down and comes up again.
fn reboot(node: &Node, layers_too: bool) -> usize {
    node.unmount_all();
    fs::remove_dir_all(node.run_dir()).unwrap();
    another_boot(node, layers_too)
}

#[tokio::test]
async fn a_pods_writes_outlive_a_reboot() {
    let (node, mut driver, mut kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let mut volumes = live(&kubelet, &image, 5).await;
    let mut read_only = kubelet.volume(&image).read_only();
    kubelet.set_up(&mut read_only).await.unwrap();
    fs::remove_file(volumes[1].target().join("d/kept")).unwrap();
    // A file with two names, which overlayfs keeps together by the branch's inode.
    let linked = volumes[2].target().join("linked");
    fs::write(&linked, "by the pod").unwrap();
    let expected = flatten(&layers).unwrap();

    // Layers as they are after most power losses, and as they are after one that
    // came before they were on disk.
    for layers_are_lost in [false, true] {
        driver.kill();
        let changed = reboot(&node, layers_are_lost);
        assert_eq!(changed > node.records().len(), layers_are_lost);
        // A pod that was deleted while the node was away.
        let mut gone = volumes.pop().unwrap();
        fs::remove_dir_all(&gone.pod_dir).unwrap();
        gone.state = State::Unmounted;
        driver = node.start();
        kubelet.register().await;
        assert_eq!(node.records().len(), volumes.len() + 1, "that one is gone");

        let mut all = volumes.clone();
        all.push(read_only.clone());
        replay_all(&kubelet, &all).await;
        assert_eq!(node.mounts().len(), all.len());
        is_theirs(&volumes);
        assert!(!volumes[1].target().join("d/kept").exists());
        assert_eq!(fs::read_to_string(&linked).unwrap(), "by the pod");
        // Where that inode is another one now, they are two files.
        let other = fs::read_to_string(linked.with_file_name("d/kept")).unwrap();
        let text = if layers_are_lost {
            "kept"
        } else {
            "by the pod"
        };
        assert_eq!(other, text);
        assert_same("as it was", &expected, &as_published(&volumes[0]), WRITTEN);
        assert_same(
            "read-only",
            &expected,
            &as_published(&read_only),
            Compared::ALL,
        );
        assert_eq!(node.layers().len(), layers.len());
        kubelet.delete(&mut gone).await;
    }
    for volume in volumes.iter_mut().chain([&mut read_only]) {
        kubelet.delete(volume).await;
    }
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_volume_whose_image_is_away_after_a_reboot_waits_for_it() {
    let (node, mut driver, mut kubelet) = running().await;
    let image = node.image("app", &layers());
    let mut volumes = live(&kubelet, &image, 2).await;
    driver.kill();
    reboot(&node, true);
    let (there, away) = (node.images().join("app"), node.path("away"));
    fs::rename(&there, &away).unwrap();
    let _driver = node.start();
    kubelet.register().await;
    let status = kubelet.replay(&volumes[0]).await.unwrap_err();
    // Not one after which kubelet would forget what the pod has written.
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("is kept"), "{status:?}");
    assert_eq!(node.records().len(), 2);
    // A pod that ends before that needs no image for it.
    volumes[1].state = State::Uncertain;
    kubelet.delete(&mut volumes[1]).await;
    fs::rename(&away, &there).unwrap();
    kubelet.replay(&volumes[0]).await.unwrap();
    is_theirs(&volumes[..1]);
    kubelet.delete(&mut volumes[0]).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_mount_that_somebody_took_away_comes_back_when_kubelet_asks() {
    let (node, _driver, kubelet) = running().await;
    let image = node.image("app", &layers());
    let mut volumes = live(&kubelet, &image, 1).await;
    node.unmount_all();
    let request = volumes[0].publish_request();
    kubelet.publish(request, PATIENCE).await.unwrap();
    is_theirs(&volumes);
    assert_eq!(node.mounts().len(), 1);
    kubelet.delete(&mut volumes[0]).await;
    node.has_no_volumes("afterwards");
}
