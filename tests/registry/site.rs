//! A node whose plugin pulls, and images in registries for it.

use super::driver::{Driver, Node};
use super::fake::{Kubelet, State, Volume, is_final};
use super::in_time;
use super::registry::push::Repository;
use super::registry::server::Registry;
use super::support::entry::{Layer, dir, file, whiteout};
use super::support::model::flatten;
use super::support::oci_layout::{Image, OciLayout};
use super::support::tarball::{Compression, tars};
use super::support::tree::{Compared, assert_same, read};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::process::{Command, Output};
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::Status;

/// Numbers that look random and are the same in every run.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// By Marsaglia's xorshift.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Bytes that no compression makes fewer.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        let mut bytes: Vec<u8> = words.take(count.div_ceil(8)).flatten().collect();
        bytes.truncate(count);
        bytes
    }
}

/// Layers of about so many bytes each, which no other seed has; each but the
/// first hides something of the one below.
pub(crate) fn layers(seed: u64, count: usize, bytes: usize) -> Vec<Layer> {
    let mut numbers = Numbers::new(seed);
    let layer = |number: usize| {
        let mut layer = vec![
            dir(format!("l{number}")).mode(0o750),
            file(format!("l{number}/kept"), numbers.bytes(bytes / 2)),
            file(format!("l{number}/hidden"), format!("{seed} {number}")),
            file("top", numbers.bytes(bytes / 2)),
        ];
        if let Some(below) = number.checked_sub(1) {
            layer.push(whiteout(format!("l{below}/hidden")));
        }
        layer
    };
    (0..count).map(layer).collect()
}

/// An image in a registry, and what it consists of.
#[derive(Debug, Clone)]
pub(crate) struct Pushed {
    /// `repository:tag`.
    pub(crate) name: String,
    pub(crate) layers: Vec<Layer>,
    pub(crate) image: Image,
}

impl Pushed {
    /// Its name at a registry, or at what stands in front of one.
    pub(crate) fn at(&self, address: &str) -> String {
        format!("{address}/{}", self.name)
    }

    /// Bytes of its layers and config.
    pub(crate) fn bytes(&self) -> u64 {
        let layers = self.image.layers.iter().map(|layer| layer.size);
        layers.sum::<u64>() + self.image.config.size
    }

    pub(crate) fn is_at(&self, what: &str, volume: &Volume) {
        let actual = read(&volume.target()).unwrap();
        let expected = flatten(&self.layers).unwrap();
        assert_same(what, &expected, &actual, Compared::ALL);
    }
}

/// Pushes layers as an image.
pub(crate) fn push(registry: &Registry, name: &str, layers: Vec<Layer>) -> Pushed {
    push_as(registry, name, layers, Compression::Gzip)
}

pub(crate) fn push_as(
    registry: &Registry,
    name: &str,
    layers: Vec<Layer>,
    compression: Compression,
) -> Pushed {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = OciLayout::new(dir.path());
    let image = layout.image("latest", &tars(&layers), compression);
    let (repository, tag) = name.split_once(':').unwrap();
    let to = Repository::new(registry.address(), repository);
    let digest = to.layout(dir.path(), "latest");
    to.tag(&digest, tag);
    Pushed {
        name: name.to_owned(),
        layers,
        image,
    }
}

/// A docker config with accounts at hosts.
pub(crate) fn docker_config(accounts: &[(&str, &str, &str)]) -> String {
    let auths: serde_json::Map<_, _> = accounts
        .iter()
        .map(|(host, user, password)| {
            let auth = STANDARD.encode(format!("{user}:{password}"));
            ((*host).to_owned(), json!({"auth": auth}))
        })
        .collect();
    json!({ "auths": auths }).to_string()
}

impl Volume {
    /// With the secret that `nodePublishSecretRef` names.
    pub(crate) fn with_login(mut self, host: &str, user: &str, password: &str) -> Self {
        let config = docker_config(&[(host, user, password)]);
        self.secrets = vec![(".dockerconfigjson".to_owned(), config)];
        self
    }
}

/// A node with a registered plugin.
pub(crate) struct Site {
    // Before the node, whose directory has its log.
    pub(crate) driver: Driver,
    pub(crate) node: Node,
    pub(crate) kubelet: Kubelet,
    flags: Vec<String>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With options of the plugin.
    pub(crate) async fn with(flags: &[&str]) -> Self {
        Self::on(Node::new(), flags).await
    }

    /// On a node that was prepared.
    pub(crate) async fn on(node: Node, flags: &[&str]) -> Self {
        let mut kubelet = Kubelet::new(&node.kubelet_root());
        let driver = node.start_with(flags);
        kubelet.register().await;
        Site {
            node,
            driver,
            kubelet,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        }
    }

    /// Starts the plugin again, after it was killed or ended.
    pub(crate) async fn again(&mut self) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.driver = self.node.start_with(&flags);
        self.kubelet.register().await;
    }

    /// Attempts until the pod has its volume, as kubelet makes them.
    pub(crate) async fn ready(&self, volume: &mut Volume) {
        ready(&self.kubelet, volume).await;
    }

    /// The pod's one attempt fails with this.
    pub(crate) async fn refused(&self, volume: &mut Volume) -> Status {
        let image = volume.attributes[0].1.clone();
        match self.kubelet.set_up(volume).await {
            Err(status) => status,
            Ok(()) => panic!("{image} was given"),
        }
    }

    /// The pods' volumes at once.
    pub(crate) async fn all_ready(&self, volumes: Vec<Volume>) -> Vec<Volume> {
        let mut set = JoinSet::new();
        for mut volume in volumes {
            let kubelet = self.kubelet.clone();
            set.spawn(async move {
                ready(&kubelet, &mut volume).await;
                volume
            });
        }
        set.join_all().await
    }

    /// Ends a pod, and sees that nothing is left of any.
    pub(crate) async fn end(&self, mut volume: Volume) {
        self.kubelet.delete(&mut volume).await;
        self.node.has_no_volumes("afterwards");
    }
}

async fn ready(kubelet: &Kubelet, volume: &mut Volume) {
    let image = volume.attributes[0].1.clone();
    in_time(&format!("a volume of {image}"), async {
        while let Err(status) = kubelet.set_up(volume).await {
            assert!(!is_final(status.code()), "{image}: {status:?}");
            assert_eq!(volume.state, State::Uncertain);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

/// A store for the command line.
pub(crate) struct Desk {
    dir: tempfile::TempDir,
    /// Beside those of the store.
    pub(crate) environment: Vec<(String, String)>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Desk {
            dir: tempfile::Builder::new()
                .prefix("registry-desk-")
                .tempdir_in("/dev/shm")
                .unwrap(),
            environment: Vec::new(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aufs-csi"));
        command
            .env_clear()
            .env("AUFS_CSI_ROOT", self.path("store"))
            .env("AUFS_CSI_RUN_DIR", self.path("run"))
            .env("HOME", self.path("home"))
            .envs(self.environment.iter().cloned())
            .args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints, as JSON.
    pub(crate) fn stage(&self, arguments: &[&str]) -> serde_json::Value {
        let all = [&["stage", "--output", "json"], arguments].concat();
        let output = self.run(&all);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What it says where it fails.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["stage"], arguments].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}: {errors}");
        errors
    }
}
