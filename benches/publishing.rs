//! What a warm publish costs a kubelet: over the socket, with a connection for
//! each call, on a node with nothing else and on one with a thousand volumes.
//!
//! `BENCH_PUBLISHES` volumes are published and unpublished for each figure (300),
//! beside `BENCH_VOLUMES` live ones (1000); `BENCH_DIR` is a directory in memory
//! (`/dev/shm`). The plugin is the program that this benchmark was built with,
//! in a mount namespace of its own, which goes with the process.
#![expect(clippy::print_stdout, reason = "it is what a benchmark is for")]

mod support;

use aufs_csi::csi::v1;
use aufs_csi::csi::v1::node_client::NodeClient;
use aufs_csi::csi::v1::volume_capability::access_mode::Mode;
use aufs_csi::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::aims::Aims;
use support::measure::{load, percentile, seconds};
use support::{Result, image, setting};
use tonic::transport::Endpoint;

/// Layers of the image.
const LAYERS: usize = 8;
/// Longest start of the plugin.
const START: Duration = Duration::from_secs(60);
/// Most milliseconds in the middle, and how many times as many among many volumes.
const AIM: (f64, f64) = (3.0, 1.5);

fn main() -> ExitCode {
    support::isolated("publishing", "/dev/shm", compare)
}

fn compare(base: &Path) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(base))
}

async fn measure(base: &Path) -> Result<ExitCode> {
    let count = setting("BENCH_PUBLISHES", 300)?.max(1);
    let others = setting("BENCH_VOLUMES", 1000)?;
    println!("load before: {}", load());
    image::many_layers(&base.join("image"), LAYERS, 50)?;
    let node = Node::start(base).await?;
    // The first one stages the image.
    node.publish("first").await?;
    println!("\noverlay of {LAYERS} layers, ms of {count} calls in turn, p50 and p99");
    println!(
        "{:>8} | {:>8} {:>8} | {:>8} {:>8} | {:>8} {:>8}",
        "volumes", "publish", "p99", "again", "p99", "unpubl.", "p99"
    );
    let mut middles = Vec::new();
    for live in [0, others] {
        for number in 0..live {
            node.publish(&format!("live-{number}")).await?;
        }
        let (mut published, mut again, mut unpublished) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let id = format!("{live}-{number}");
            published.push(node.publish(&id).await?);
            again.push(node.publish(&id).await?);
            unpublished.push(node.unpublish(&id).await?);
        }
        let figures = |values: &[f64]| (percentile(values, 50), percentile(values, 99));
        let (p, a, u) = (figures(&published), figures(&again), figures(&unpublished));
        println!(
            "{live:8} | {:8.2} {:8.2} | {:8.2} {:8.2} | {:8.2} {:8.2}",
            p.0, p.1, a.0, a.1, u.0, u.1
        );
        middles.push(p.0);
    }
    let mut aims = Aims::default();
    aims.at_most("warm publish, p50", " ms", AIM.0, middles[0]);
    aims.at_most(
        format!("the same beside {others} volumes"),
        "x",
        AIM.1,
        middles[1] / middles[0],
    );
    println!("load after: {}", load());
    Ok(aims.judge(None))
}

/// A plugin, and what a kubelet would do with it.
struct Node {
    base: PathBuf,
    plugin: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its mounts go with the namespace.
        let _ = self.plugin.kill();
        let _ = self.plugin.wait();
    }
}

impl Node {
    #[expect(clippy::disallowed_methods, reason = "the program that is measured")]
    async fn start(base: &Path) -> Result<Self> {
        let plugin = Command::new(env!("CARGO_BIN_EXE_aufs-csi"))
            .env_clear()
            .args(["node", "--node-id", "bench", "--no-registration"])
            .args(["--http-address", "", "--union", "overlay"])
            .arg("--root")
            .arg(base.join("store"))
            .arg("--run-dir")
            .arg(base.join("run"))
            .arg("--endpoint")
            .arg(base.join("csi.sock"))
            .arg("--kubelet-root")
            .arg(base.join("kubelet"))
            .arg("--allow-local-images")
            .arg(base.join("image"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(base.join("log"))?)
            .spawn()?;
        let mut node = Node {
            base: base.to_owned(),
            plugin,
        };
        let begun = Instant::now();
        while !base.join("csi.sock").exists() {
            if begun.elapsed() > START || node.plugin.try_wait()?.is_some() {
                let log = fs::read_to_string(base.join("log"))?;
                return Err(format!("the plugin does not start: {log}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(node)
    }

    /// kubelet makes a connection for each call.
    async fn client(&self) -> Result<NodeClient<tonic::transport::Channel>> {
        let address = format!("unix://{}", self.base.join("csi.sock").display());
        Ok(NodeClient::new(
            Endpoint::from_shared(address)?.connect().await?,
        ))
    }

    fn target(&self, id: &str) -> PathBuf {
        let volume = format!("kubelet/pods/{id}/volumes/kubernetes.io~csi/v/mount");
        self.base.join(volume)
    }

    /// Milliseconds.
    async fn publish(&self, id: &str) -> Result<f64> {
        let target = self.target(id);
        fs::create_dir_all(target.parent().unwrap_or(&target))?;
        let image = format!("oci:{}:latest", self.base.join("image").display());
        let context = [
            ("image", image.as_str()),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ];
        let request = v1::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: target.display().to_string(),
            volume_capability: Some(v1::VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter.into(),
                }),
            }),
            volume_context: context
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Default::default()
        };
        let begun = Instant::now();
        self.client().await?.node_publish_volume(request).await?;
        Ok(seconds(begun.elapsed()) * 1e3)
    }

    /// Milliseconds.
    async fn unpublish(&self, id: &str) -> Result<f64> {
        let request = v1::NodeUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: self.target(id).display().to_string(),
        };
        let begun = Instant::now();
        self.client().await?.node_unpublish_volume(request).await?;
        Ok(seconds(begun.elapsed()) * 1e3)
    }
}
