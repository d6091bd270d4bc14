//! The plugin as a process, and what kubelet would say to it.
#![expect(
    clippy::disallowed_methods,
    reason = "the story is about programs: it starts the plugin and the commands of a person"
)]

use crate::Failure;
use aufs_csi::csi::v1;
use aufs_csi::csi::v1::identity_client::IdentityClient;
use aufs_csi::csi::v1::node_client::NodeClient;
use aufs_csi::csi::v1::volume_capability::access_mode::Mode;
use aufs_csi::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use hyper_util::rt::TokioIo;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// How long the plugin may take to start and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where everything of this story is.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) program: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) rootless: bool,
}

impl Place {
    pub(crate) fn store(&self) -> PathBuf {
        self.work.join("store")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.work.join("images")
    }

    pub(crate) fn kubelet(&self) -> PathBuf {
        self.work.join("kubelet")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.work.join("csi.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.work.join("plugin.log")
    }

    /// Where kubelet would want the volume of a pod.
    pub(crate) fn target(&self, pod: &str) -> PathBuf {
        self.kubelet()
            .join("pods")
            .join(pod)
            .join("volumes/kubernetes.io~csi/data/mount")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb);
        command.arg("--root").arg(self.store());
        command.arg("--run-dir").arg(&self.run);
        if self.rootless {
            command.arg("--rootless");
        }
        command
    }

    /// What a command of the program prints.
    pub(crate) fn output(&self, arguments: &[&str]) -> Result<String, Failure> {
        let (verb, rest) = arguments.split_first().ok_or(Failure::NoFiles)?;
        let output = self
            .command(verb)
            .args(rest)
            .output()
            .map_err(Failure::path("run", &self.program))?;
        if !output.status.success() {
            return Err(Failure::Command {
                command: arguments.join(" "),
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether volumes can be published here; else what `check` says.
    pub(crate) fn check(&self) -> Result<Result<String, String>, Failure> {
        let output = self
            .command("check")
            .output()
            .map_err(Failure::path("run", &self.program))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Ok(if output.status.success() {
            Ok(said)
        } else {
            Err(said)
        })
    }
}

/// The plugin. Killed if the story ends early.
#[derive(Debug)]
pub(crate) struct Plugin {
    process: Child,
    channel: Channel,
}

impl Plugin {
    pub(crate) async fn start(place: &Place) -> Result<Self, Failure> {
        let log = File::create(place.log()).map_err(Failure::path("make", &place.log()))?;
        fs::create_dir_all(place.kubelet()).map_err(Failure::path("make", &place.kubelet()))?;
        let mut process = place
            .command("node")
            .arg("--endpoint")
            .arg(format!("unix://{}", place.socket().display()))
            .arg("--kubelet-root")
            .arg(place.kubelet())
            .arg("--allow-local-images")
            .arg(place.images())
            .args(["--node-id", "this-machine"])
            .stderr(log)
            .spawn()
            .map_err(Failure::path("run", &place.program))?;
        let began = Instant::now();
        loop {
            if let Ok(channel) = connect(&place.socket()).await {
                return Ok(Plugin { process, channel });
            }
            if let Some(status) = process
                .try_wait()
                .map_err(Failure::system("watch the plugin"))?
            {
                return Err(Failure::Ended { status });
            }
            if began.elapsed() > PATIENCE {
                process.kill().map_err(Failure::system("kill the plugin"))?;
                return Err(Failure::Slow { what: "start" });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Name and version.
    pub(crate) async fn info(&self) -> Result<v1::GetPluginInfoResponse, Failure> {
        let mut identity = IdentityClient::new(self.channel.clone());
        let reply = identity
            .get_plugin_info(v1::GetPluginInfoRequest {})
            .await?;
        Ok(reply.into_inner())
    }

    /// What kubelet sends for an inline volume of a pod; gives the time it took.
    pub(crate) async fn publish(
        &self,
        place: &Place,
        pod: &str,
        image: &str,
    ) -> Result<Duration, Failure> {
        let target = place.target(pod);
        // kubelet makes the directory above, and the plugin the last one.
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(Failure::path("make", parent))?;
        }
        let context = [
            ("image", image),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", pod),
        ];
        let request = v1::NodePublishVolumeRequest {
            volume_id: volume_id(pod),
            target_path: target.to_string_lossy().into_owned(),
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
        let began = Instant::now();
        let mut node = NodeClient::new(self.channel.clone());
        node.node_publish_volume(request).await?;
        Ok(began.elapsed())
    }

    pub(crate) async fn unpublish(&self, place: &Place, pod: &str) -> Result<(), Failure> {
        let request = v1::NodeUnpublishVolumeRequest {
            volume_id: volume_id(pod),
            target_path: place.target(pod).to_string_lossy().into_owned(),
        };
        let mut node = NodeClient::new(self.channel.clone());
        node.node_unpublish_volume(request).await?;
        Ok(())
    }

    /// Asks the plugin to end, as kubelet does with its pod.
    pub(crate) async fn stop(mut self) -> Result<ExitStatus, Failure> {
        let id = self.process.id();
        Command::new("kill")
            .arg(id.to_string())
            .status()
            .map_err(Failure::system("run kill"))?;
        let began = Instant::now();
        loop {
            let ended = self.process.try_wait();
            if let Some(status) = ended.map_err(Failure::system("watch the plugin"))? {
                return Ok(status);
            }
            if began.elapsed() > PATIENCE {
                return Err(Failure::Slow { what: "end" });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait()
            && let Err(error) = self
                .process
                .kill()
                .and_then(|()| self.process.wait().map(drop))
        {
            eprintln!("cannot end the plugin: {error}");
        }
    }
}

fn volume_id(pod: &str) -> String {
    format!("csi-{pod}")
}

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
}
