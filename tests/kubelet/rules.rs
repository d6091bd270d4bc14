//! The operator's policy file, which changes while the plugin runs.

use super::driver::Node;
use super::fake::{Kubelet, Volume};
use super::{layers, until};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tonic::Code;

/// As kubelet brings a `ConfigMap` to a container: what the name leads to is
/// swapped by one rename.
fn write(dir: &Path, version: u32, text: &str) {
    let data = dir.join(format!("..version{version}"));
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("policy.yaml"), text).unwrap();
    symlink(data.file_name().unwrap(), dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    if version == 1 {
        symlink("..data/policy.yaml", dir.join("policy.yaml")).unwrap();
    }
}

async fn refused(kubelet: &Kubelet, volume: &Volume, rule: &str) {
    let mut volume = volume.clone();
    let status = kubelet.set_up(&mut volume).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let expected = format!("policy rule {rule}: ");
    assert!(status.message().starts_with(&expected), "{status:?}");
    kubelet.delete(&mut volume).await;
}

#[tokio::test]
async fn a_policy_that_changes_holds_for_new_volumes_and_not_for_those_that_are_there() {
    let node = Node::new();
    let mut kubelet = Kubelet::new(&node.kubelet_root());
    let dir = node.path("policy");
    fs::create_dir(&dir).unwrap();
    let images = node.images().display().to_string();
    let open = format!("localImages: ['{images}']\n");
    write(&dir, 1, &open);
    let file = dir.join("policy.yaml");
    let driver = node.start_with(&["--policy", file.to_str().unwrap()]);
    kubelet.register().await;
    let reloads = async |outcome: &str| {
        let line = format!("aufs_csi_policy_reloads_total{{outcome=\"{outcome}\"}} ");
        let metrics = driver.get("/metrics").await.1;
        let found = metrics.lines().find_map(|found| found.strip_prefix(&line));
        found.map_or(0, |count| count.parse::<u32>().unwrap())
    };
    let image = node.image("app", &layers());
    let mut old = kubelet.volume(&image);
    let mut part = kubelet.volume(&image).with("subPath", "d");
    kubelet.set_up(&mut old).await.unwrap();
    kubelet.set_up(&mut part).await.unwrap();
    assert!(part.target().join("kept").exists());
    fs::write(old.target().join("new"), "by the pod").unwrap();

    write(&dir, 2, &format!("{open}readOnlyOnly: true\n"));
    while reloads("applied").await == 0 {
        tokio::time::sleep(super::LOOK_EVERY).await;
    }
    refused(&kubelet, &kubelet.volume(&image), "readOnlyOnly").await;
    let mut reading = kubelet.volume(&image).read_only();
    kubelet.set_up(&mut reading).await.unwrap();
    // kubelet restarts; then the machine does.
    for volume in [&old, &part] {
        kubelet.replay(volume).await.unwrap();
    }
    node.unmount_all();
    for volume in [&old, &part, &reading] {
        kubelet.replay(volume).await.unwrap();
    }
    let written = fs::read_to_string(old.target().join("new"));
    assert_eq!(written.unwrap(), "by the pod");

    // One with a fault is refused: what held before holds on.
    write(&dir, 3, "readOnlyOnly: false\nlocalImage: []\n");
    while reloads("refused").await == 0 {
        tokio::time::sleep(super::LOOK_EVERY).await;
    }
    refused(&kubelet, &kubelet.volume(&image), "readOnlyOnly").await;
    until("a line in the log", || {
        driver.log().contains("did you mean localImages?")
    })
    .await;

    write(&dir, 4, "localImages: []\n");
    while reloads("applied").await == 1 {
        tokio::time::sleep(super::LOOK_EVERY).await;
    }
    refused(&kubelet, &kubelet.volume(&image), "localImages").await;
    // One that was there and has to be mounted again waits for a rule that lets it:
    // after a final code kubelet would forget it, with what its pod wrote.
    node.unmount_all();
    let status = kubelet.replay(&old).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("localImages"), "{status:?}");
    write(&dir, 5, &open);
    while reloads("applied").await == 2 {
        tokio::time::sleep(super::LOOK_EVERY).await;
    }
    for volume in [&old, &part, &reading] {
        kubelet.replay(volume).await.unwrap();
    }
    let written = fs::read_to_string(old.target().join("new"));
    assert_eq!(written.unwrap(), "by the pod");
    for mut volume in [old, part, reading] {
        kubelet.delete(&mut volume).await;
    }
    node.has_no_volumes("afterwards");
}
