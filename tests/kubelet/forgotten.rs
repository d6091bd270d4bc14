//! What kubelet will never ask for again: lost `vol_data.json`, vanished
//! directories. The plugin looks for these every half minute and waits two more
//! before it acts; here the same code is called without that.

use super::driver::Node;
use super::fake::{Kubelet, Volume};
use super::support::model::flatten;
use super::support::tree::{Compared, assert_same, read};
use super::{PATIENCE, layers, running, until};
use aufs_csi::volume::upkeep::Upkeep;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn reap(node: &Node) -> Upkeep {
    let volumes = &node.test.volumes;
    volumes.reap(&node.kubelet_root(), Duration::ZERO).unwrap()
}

/// A process in a mount namespace of its own, as of a container.
struct Container(Child);

impl Container {
    /// Runs `script` in one, and returns when that has come to its end.
    #[expect(
        clippy::disallowed_methods,
        reason = "a mount namespace of its own needs a process of its own"
    )]
    fn after(script: &str) -> Self {
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg(format!(
                "{script}\necho done\nexec sleep {}",
                PATIENCE.as_secs()
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux is needed");
        let mut container = Container(child);
        let mut line = String::new();
        let mut output = BufReader::new(container.0.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n", "the script failed: {script}");
        container
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn live(kubelet: &Kubelet, image: &str) -> Volume {
    let mut volume = kubelet.volume(image);
    kubelet.set_up(&mut volume).await.unwrap();
    volume
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_volume_without_vol_data_goes_once_nobody_uses_it() {
    let (node, _driver, kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let (mut wanted, forgotten) = (live(&kubelet, &image).await, live(&kubelet, &image).await);
    assert_eq!(reap(&node), Upkeep::default(), "kubelet knows both");
    fs::remove_file(forgotten.data()).unwrap();
    // Its container has it under another name, and nothing open.
    let inside = node.path("inside");
    fs::create_dir(&inside).unwrap();
    let script = format!(
        "mount --bind {} {}",
        text(&forgotten.target()),
        text(&inside)
    );
    let container = Container::after(&script);
    let in_use = Upkeep {
        done: Vec::new(),
        stuck: 1,
    };
    assert_eq!(reap(&node), in_use);
    let expected = flatten(&layers).unwrap();
    let actual = read(&forgotten.target()).unwrap();
    assert_same("in use", &expected, &actual, Compared::ALL);
    drop(container);

    // Somebody works in it.
    let open = Container::after(&format!("cd {}", text(&forgotten.target())));
    assert_eq!(reap(&node), in_use);
    drop(open);
    assert_eq!(reap(&node).done, ["forgotten"]);
    assert_eq!(node.mounts(), [wanted.target()]);
    forgotten.remove_dirs().unwrap();
    forgotten.remove_pod_dir().unwrap();
    kubelet.delete(&mut wanted).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_volume_whose_directory_vanished_goes() {
    let (node, mut driver, mut kubelet) = running().await;
    let image = node.image("app", &layers());
    // A process that does not see the mount can remove the directory that it is
    // on, and the kernel then takes it off everywhere.
    let remove = |volume: &Volume| {
        let (target, pod) = (volume.target(), &volume.pod_dir);
        let script = format!("umount {}; rm -r {}", text(&target), text(pod));
        drop(Container::after(&script));
        assert!(!pod.exists());
    };
    let mut wanted = live(&kubelet, &image).await;
    let first = live(&kubelet, &image).await;
    remove(&first);
    assert_eq!(reap(&node).done, ["forgotten"]);
    assert_eq!(node.mounts(), [wanted.target()]);
    assert_eq!(node.records().len(), 1);

    // Found at the start, that needs no doubt: nothing is mounted any more.
    let second = live(&kubelet, &image).await;
    remove(&second);
    driver.kill();
    let _driver = node.start();
    kubelet.register().await;
    assert_eq!(node.records().len(), 1);
    kubelet.delete(&mut wanted).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn what_is_mounted_is_not_taken_away_at_the_start() {
    let (node, mut driver, mut kubelet) = running().await;
    let image = node.image("app", &layers());
    let volume = live(&kubelet, &image).await;
    fs::remove_file(volume.data()).unwrap();
    driver.kill();
    let _driver = node.start();
    kubelet.register().await;
    // Whether kubelet writes it again is not known yet.
    assert_eq!(node.mounts(), [volume.target()]);
    assert!(volume.target().join("changed").exists());
    let gone = || reap(&node).done == ["forgotten"];
    until("the end of the volume", gone).await;
    volume.remove_dirs().unwrap();
    volume.remove_pod_dir().unwrap();
    node.has_no_volumes("afterwards");
}
