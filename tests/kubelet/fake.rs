//! A kubelet, as far as a plugin sees one: the directories that it makes and
//! removes, the calls that it makes, and what it concludes from their errors.

use super::driver::names;
use super::http2::{CallError, Connection};
use super::{LOOK_EVERY, PATIENCE, in_time};
use aufs_csi::csi::registration_v1::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use aufs_csi::csi::v1;
use aufs_csi::csi::v1::node_client::NodeClient;
use aufs_csi::csi::v1::volume_capability::access_mode::Mode;
use aufs_csi::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::error::Error;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// How long a plugin has for each step of its registration.
const GET_INFO_WITHIN: Duration = Duration::from_secs(1);
const NODE_GET_INFO_WITHIN: Duration = Duration::from_secs(120);
const NOTIFY_WITHIN: Duration = Duration::from_secs(5);
/// How long all the calls of a mount or an unmount may take together.
const MOUNT_WITHIN: Duration = Duration::from_secs(120);
/// First pause after something failed; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const REGISTRY: &str = "plugins_registry";
const KEY_PREFIX: &str = "csi.storage.k8s.io/";

/// How far kubelet believes a volume to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not mounted, or as good as: there will be no unpublish.
    Unmounted,
    /// Perhaps mounted: there will be an unpublish.
    Uncertain,
    Mounted,
}

/// An inline volume of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) pod_uid: String,
    pub(crate) name: String,
    pub(crate) read_only: bool,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) secrets: Vec<(String, String)>,
    pub(crate) fs_group: Option<u32>,
    pub(crate) state: State,
    /// `<root>/pods/<uid>`.
    pub(crate) pod_dir: PathBuf,
}

impl Volume {
    /// `csi-` and the hash of the pod's uid and the volume's name.
    pub(crate) fn id(&self) -> String {
        let text = format!("{}{}", self.pod_uid, self.name);
        let hash = Sha256::digest(text);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("csi-{hex}")
    }

    /// The volume's own directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.pod_dir
            .join("volumes/kubernetes.io~csi")
            .join(&self.name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir().join("vol_data.json")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.dir().join("mount")
    }

    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        self.attributes.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// What is sent. Of keys that a pod's author wrote, kubelet's own win.
    pub(crate) fn publish_request(&self) -> v1::NodePublishVolumeRequest {
        let pod_info = [
            ("pod.name", format!("pod-{}", &self.pod_uid[..8])),
            ("pod.namespace", "default".to_owned()),
            ("pod.uid", self.pod_uid.clone()),
            ("serviceAccount.name", String::new()),
            ("ephemeral", "true".to_owned()),
        ];
        let pod_info = pod_info.map(|(key, value)| (format!("{KEY_PREFIX}{key}"), value));
        v1::NodePublishVolumeRequest {
            volume_id: self.id(),
            target_path: self.target().display().to_string(),
            volume_capability: Some(v1::VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume {
                    volume_mount_group: self.fs_group.map(|g| g.to_string()).unwrap_or_default(),
                    ..Default::default()
                })),
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter.into(),
                }),
            }),
            readonly: self.read_only,
            volume_context: self.attributes.iter().cloned().chain(pod_info).collect(),
            secrets: self.secrets.iter().cloned().collect(),
            ..Default::default()
        }
    }

    pub(crate) fn unpublish_request(&self) -> v1::NodeUnpublishVolumeRequest {
        v1::NodeUnpublishVolumeRequest {
            volume_id: self.id(),
            target_path: self.target().display().to_string(),
        }
    }

    /// Makes what is there before a publish: everything but the target.
    pub(crate) fn make_dirs(&self) {
        let mut maker = DirBuilder::new();
        maker
            .recursive(true)
            .mode(0o750)
            .create(self.dir())
            .unwrap();
        let data = json!({
            "attachmentID": format!("csi-{}", hex_of(&self.name)),
            "driverName": "aufs-csi.dev",
            "nodeName": "node-a",
            "specVolID": self.name,
            "volumeHandle": self.id(),
            "volumeLifecycleMode": "Ephemeral",
        });
        fs::write(self.data(), data.to_string()).unwrap();
    }

    /// Removes the volume's directory. What stands in the way keeps the pod
    /// Terminating, for kubelet removes no content.
    pub(crate) fn remove_dirs(&self) -> Result<(), String> {
        let target = self.target();
        // kubelet tells a mount by its device, as `mountpoint` does.
        if let (Ok(at), Ok(parent)) = (target.symlink_metadata(), self.dir().metadata())
            && at.dev() != parent.dev()
        {
            return Err(format!("{} is still mounted", target.display()));
        }
        remove(&target, |path| fs::remove_dir(path))?;
        remove(&self.data(), |path| fs::remove_file(path))?;
        remove(&self.dir(), |path| fs::remove_dir(path))
    }

    /// Removes the pod's directory once its volumes are gone.
    pub(crate) fn remove_pod_dir(&self) -> Result<(), String> {
        let volumes = self.pod_dir.join("volumes");
        for path in [
            volumes.join("kubernetes.io~csi"),
            volumes,
            self.pod_dir.clone(),
        ] {
            remove(&path, |path| fs::remove_dir(path))?;
        }
        Ok(())
    }
}

fn hex_of(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn remove(path: &Path, how: impl Fn(&Path) -> io::Result<()>) -> Result<(), String> {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether kubelet takes it that nothing is left after such an answer:
/// `isFinalError` of its CSI client.
pub(crate) fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// What a connection to kubelet's client looks like that breaks.
fn broken(error: &dyn Error) -> Status {
    Status::unavailable(format!("connection error: {error:?}"))
}

/// The kubelet of one node.
#[derive(Debug, Clone)]
pub(crate) struct Kubelet {
    root: PathBuf,
    /// Of the registered plugin, as it named it.
    endpoint: Option<PathBuf>,
    pods: Arc<AtomicUsize>,
}

impl Kubelet {
    pub(crate) fn new(root: &Path) -> Self {
        let mut maker = DirBuilder::new();
        maker.recursive(true).mode(0o750);
        maker.create(root.join(REGISTRY)).unwrap();
        maker.create(root.join("pods")).unwrap();
        Kubelet {
            root: root.to_owned(),
            endpoint: None,
            pods: Arc::default(),
        }
    }

    /// A volume of a new pod.
    pub(crate) fn volume(&self, image: &str) -> Volume {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let pod_uid = format!("{number:08x}-0000-4000-8000-000000000000");
        Volume {
            name: "data".to_owned(),
            read_only: false,
            attributes: vec![("image".to_owned(), image.to_owned())],
            secrets: Vec::new(),
            fs_group: None,
            state: State::Unmounted,
            pod_dir: self.root.join("pods").join(&pod_uid),
            pod_uid,
        }
    }

    /// What the plugin manager does when a socket appears, again and again until
    /// it succeeds.
    pub(crate) async fn register(&mut self) -> v1::NodeGetInfoResponse {
        let began = Instant::now();
        let mut backoff = FIRST_BACKOFF;
        loop {
            super::until("a socket to register", || {
                self.registration_socket().is_some()
            })
            .await;
            let socket = self.registration_socket();
            match self.try_register(&socket.clone().unwrap_or_default()).await {
                Ok(info) => return info,
                Err(error) => {
                    assert!(began.elapsed() < PATIENCE, "not registered: {error}");
                    // One that would never work, whoever tries again.
                    let is_refused =
                        matches!(&error, CallError::Reset(_) | CallError::Malformed(_));
                    assert!(!is_refused, "kubelet cannot speak to the plugin: {error}");
                    // A socket that is made again is tried at once.
                    let place = |path: Option<PathBuf>| path?.metadata().ok().map(|m| m.ino());
                    let tried = place(socket);
                    let is_new = async {
                        while place(self.registration_socket()) == tried {
                            tokio::time::sleep(LOOK_EVERY).await;
                        }
                    };
                    // Either of the two ends the pause.
                    let _ = tokio::time::timeout(backoff, is_new).await;
                    backoff *= 2;
                }
            }
        }
    }

    /// The socket of a plugin: any that does not begin with a dot.
    pub(crate) fn registration_socket(&self) -> Option<PathBuf> {
        let registry = self.root.join(REGISTRY);
        let mut sockets = names(&registry)
            .into_iter()
            .filter(|name| !name.starts_with('.'))
            .map(|name| registry.join(name))
            .filter(|path| {
                path.symlink_metadata()
                    .is_ok_and(|found| found.file_type().is_socket())
            });
        let socket = sockets.next()?;
        assert_eq!(sockets.next(), None, "one socket for one plugin");
        Some(socket)
    }

    async fn try_register(&mut self, socket: &Path) -> Result<v1::NodeGetInfoResponse, CallError> {
        let mut connection = Connection::dial(socket)?;
        let info: PluginInfo = connection.call(
            "/pluginregistration.Registration/GetInfo",
            &InfoRequest {},
            GET_INFO_WITHIN,
        )?;
        let mut refusal = String::new();
        if info.r#type != "CSIPlugin" {
            refusal = format!("no handler for plugins of type {}", info.r#type);
        }
        if !info.supported_versions.iter().any(|v| v.starts_with("1.")) {
            refusal = format!("no version 1 in {:?}", info.supported_versions);
        }
        let endpoint = match info.endpoint.as_str() {
            "" => socket.to_owned(),
            endpoint => PathBuf::from(endpoint),
        };
        self.endpoint = Some(endpoint);
        let asked = self
            .call(
                NODE_GET_INFO_WITHIN,
                v1::NodeGetInfoRequest {},
                |mut node, request| async move { node.node_get_info(request).await },
            )
            .await;
        let node = match asked {
            Ok(node) if node.node_id.is_empty() => {
                refusal = "the node has no id".to_owned();
                node
            }
            Ok(node) => node,
            Err(status) => {
                refusal = status.to_string();
                v1::NodeGetInfoResponse::default()
            }
        };
        let status = RegistrationStatus {
            plugin_registered: refusal.is_empty(),
            error: refusal.clone(),
        };
        let _: RegistrationStatusResponse = connection.call(
            "/pluginregistration.Registration/NotifyRegistrationStatus",
            &status,
            NOTIFY_WITHIN,
        )?;
        match refusal.as_str() {
            "" => Ok(node),
            _ => {
                self.endpoint = None;
                Err(CallError::Status("refused".to_owned(), refusal))
            }
        }
    }

    /// One call on a connection of its own, with what is left of the time in its
    /// headers.
    pub(crate) async fn call<Q, A, F>(
        &self,
        within: Duration,
        request: Q,
        method: impl FnOnce(NodeClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let Some(path) = self.endpoint.clone() else {
            return Err(Status::unavailable("driver name aufs-csi.dev not found"));
        };
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|error| broken(&error))?;
        let mut request = Request::new(request);
        request.set_timeout(within);
        match method(NodeClient::new(channel), request).await {
            Ok(answer) => Ok(answer.into_inner()),
            // One that no server has sent.
            Err(status) if status.source().is_some() && is_final(status.code()) => {
                Err(broken(&status))
            }
            Err(status) => {
                assert!(status.details().is_empty(), "statuses have no details");
                Err(status)
            }
        }
    }

    /// The calls of a mount, within one time for all of them.
    pub(crate) async fn publish(
        &self,
        request: v1::NodePublishVolumeRequest,
        within: Duration,
    ) -> Result<(), Status> {
        let deadline = Instant::now() + within;
        let left = || deadline.saturating_duration_since(Instant::now());
        for _ in 0..2 {
            self.call(
                left(),
                v1::NodeGetCapabilitiesRequest {},
                |mut node, request| async move { node.node_get_capabilities(request).await },
            )
            .await?;
        }
        self.call(left(), request, |mut node, request| async move {
            node.node_publish_volume(request).await
        })
        .await
        .map(drop)
    }

    pub(crate) async fn unpublish(
        &self,
        request: v1::NodeUnpublishVolumeRequest,
    ) -> Result<(), Status> {
        self.call(MOUNT_WITHIN, request, |mut node, request| async move {
            node.node_unpublish_volume(request).await
        })
        .await
        .map(drop)
    }

    pub(crate) async fn stats(&self, volume: &Volume) -> Result<Vec<v1::VolumeUsage>, Status> {
        let request = v1::NodeGetVolumeStatsRequest {
            volume_id: volume.id(),
            volume_path: volume.target().display().to_string(),
            ..Default::default()
        };
        let answer = self.call(MOUNT_WITHIN, request, |mut node, request| async move {
            node.node_get_volume_stats(request).await
        });
        answer.await.map(|answer| answer.usage)
    }

    /// Mounts a volume for a pod that starts. One attempt; a pod that stays would
    /// see more of them.
    pub(crate) async fn set_up(&self, volume: &mut Volume) -> Result<(), Status> {
        self.set_up_within(volume, MOUNT_WITHIN).await
    }

    pub(crate) async fn set_up_within(
        &self,
        volume: &mut Volume,
        within: Duration,
    ) -> Result<(), Status> {
        volume.make_dirs();
        let result = self.publish(volume.publish_request(), within).await;
        volume.state = match &result {
            Ok(()) => State::Mounted,
            Err(status) if is_final(status.code()) => {
                volume.remove_dirs().unwrap();
                State::Unmounted
            }
            Err(_) => State::Uncertain,
        };
        result
    }

    /// As a kubelet that starts does for every volume whose `vol_data.json` it
    /// finds. Whatever comes of it, the directory stays.
    pub(crate) async fn replay(&self, volume: &Volume) -> Result<(), Status> {
        assert!(volume.data().exists(), "kubelet knows the volume");
        self.publish(volume.publish_request(), MOUNT_WITHIN).await
    }

    /// Takes a volume away from a pod that ends. One attempt.
    pub(crate) async fn tear_down(&self, volume: &mut Volume) -> Result<(), Status> {
        if volume.state != State::Unmounted {
            self.unpublish(volume.unpublish_request()).await?;
            let stuck = |why: String| Status::internal(format!("stuck Terminating: {why}"));
            volume.remove_dirs().map_err(stuck)?;
        }
        volume.state = State::Unmounted;
        Ok(())
    }

    /// The pod with this one volume is deleted: attempts until one succeeds.
    pub(crate) async fn delete(&self, volume: &mut Volume) {
        in_time("the end of a pod", async {
            let mut backoff = FIRST_BACKOFF;
            while let Err(status) = self.tear_down(volume).await {
                assert!(!is_final(status.code()), "{status:?}");
                tokio::time::sleep(backoff).await;
                backoff *= 2;
            }
        })
        .await;
        volume.remove_pod_dir().unwrap();
    }
}
