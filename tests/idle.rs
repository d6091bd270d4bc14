//! The plugin at rest costs next to nothing, also after it has staged a large
//! image: little memory of its own, and no wake-ups to speak of.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use aufs_csi::csi::v1;
use aufs_csi::csi::v1::node_client::NodeClient;
use aufs_csi::csi::v1::volume_capability::access_mode::Mode;
use aufs_csi::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::entry::{dir, file, hardlink, whiteout};
use support::oci_layout::OciLayout;
use support::tarball::{Compression, tars};
use tonic::transport::Endpoint;

/// Anonymous memory of the idle plugin, in KiB.
const MOST_KIB: u64 = 15 * 1024;
/// How long it may take to give memory back after a large stage.
const REST: Duration = Duration::from_secs(60);
/// How long wake-ups are counted for, and how many there may be: nothing wakes
/// up more often than once a second, and the tasks that look after sockets and
/// volumes have seconds to minutes.
const WATCHED: Duration = Duration::from_secs(10);
const MOST_WAKES: u64 = 20;

struct Plugin(Child);

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Plugin {
    /// A field of `/proc/<pid>/status`, or of all threads together.
    fn field(&self, name: &str) -> u64 {
        let status = format!("/proc/{}/status", self.0.id());
        let text = fs::read_to_string(status).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Times that a thread of it slept, and so woke up.
    fn sleeps(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        tasks
            .filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok())
            .filter_map(|text| {
                let name = "voluntary_ctxt_switches:";
                let line = text.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse::<u64>().ok()
            })
            .sum()
    }
}

/// Layers with many entries that need edits, so that all of staging is exercised.
fn large_image(layout: &Path) {
    let mut layers = Vec::new();
    for layer in 0..4 {
        let mut entries = vec![dir(format!("l{layer}"))];
        for number in 0..6_000 {
            let bytes = format!("{layer} {number}").repeat(40);
            entries.push(file(format!("l{layer}/f{number}"), bytes));
        }
        if layer > 0 {
            for number in 0..500 {
                entries.push(whiteout(format!("l{}/f{number}", layer - 1)));
                let link = format!("l{layer}/link{number}");
                entries.push(hardlink(link, format!("l{}/f{}", layer - 1, 3000 + number)));
            }
        }
        layers.push(entries);
    }
    OciLayout::new(layout).image("latest", &tars(&layers), Compression::Gzip);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "memory is a process's own")]
async fn an_idle_plugin_has_little_memory_and_sleeps() {
    let node = support::node::TestNode::new();
    let base = node.path();
    large_image(&base.join("images/large"));
    let child = Command::new(env!("CARGO_BIN_EXE_aufs-csi"))
        .env_clear()
        .args(["node", "--node-id", "idle", "--http-address", "127.0.0.1:0"])
        .arg("--root")
        .arg(base.join("plugin/store"))
        .arg("--run-dir")
        .arg(base.join("plugin/run"))
        .arg("--endpoint")
        .arg(base.join("plugin/csi.sock"))
        .arg("--kubelet-root")
        .arg(base.join("kubelet"))
        .arg("--allow-local-images")
        .arg(base.join("images"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let plugin = Plugin(child);
    let socket = base.join("plugin/csi.sock");
    let began = Instant::now();
    while !socket.exists() {
        assert!(began.elapsed() < REST, "the plugin's socket");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let target = base.join("kubelet/pods/p/volumes/kubernetes.io~csi/v/mount");
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::write(target.with_file_name("vol_data.json"), "{}").unwrap();
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = NodeClient::new(channel);
    let image = format!("oci:{}:latest", base.join("images/large").display());
    let request = v1::NodePublishVolumeRequest {
        volume_id: "v".to_owned(),
        target_path: target.display().to_string(),
        volume_capability: Some(v1::VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: Some(AccessMode {
                mode: Mode::SingleNodeWriter.into(),
            }),
        }),
        volume_context: [
            ("image".to_owned(), image),
            ("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned()),
        ]
        .into(),
        ..Default::default()
    };
    client.node_publish_volume(request).await.unwrap();
    // That it cannot be dumped is read back in `secret`; that it is so from the
    // beginning, here.
    let limits = fs::read_to_string(format!("/proc/{}/limits", plugin.0.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    println!("after staging: {} KiB", plugin.field("RssAnon:"));
    let began = Instant::now();
    while plugin.field("RssAnon:") > MOST_KIB {
        let kib = plugin.field("RssAnon:");
        assert!(began.elapsed() < REST, "{kib} KiB after {REST:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!(
        "after {:?}: {} KiB",
        began.elapsed(),
        plugin.field("RssAnon:")
    );
    // Threads that worked for the call have gone by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = plugin.sleeps();
    tokio::time::sleep(WATCHED).await;
    let wakes = plugin.sleeps() - before;
    println!("{wakes} wake-ups in {WATCHED:?}");
    assert!(wakes <= MOST_WAKES, "{wakes} wake-ups in {WATCHED:?}");
    let request = v1::NodeUnpublishVolumeRequest {
        volume_id: "v".to_owned(),
        target_path: target.display().to_string(),
    };
    client.node_unpublish_volume(request).await.unwrap();
}
