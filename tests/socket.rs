//! The CSI services over a real unix socket, with a real client and in place of
//! volumes a fake that remembers what it was asked.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

#[path = "socket/fake.rs"]
mod fake;
#[path = "socket/rules.rs"]
mod rules;

use aufs_csi::csi::policy::{LivePolicy, Policy, Rules};
use aufs_csi::csi::server::{self, Observers, ServeError, Settings, Socket, SocketError};
use aufs_csi::csi::v1;
use aufs_csi::csi::v1::identity_client::IdentityClient;
use aufs_csi::csi::v1::node_client::NodeClient;
use aufs_csi::csi::v1::volume_capability::access_mode::Mode;
use aufs_csi::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use aufs_csi::union::probe::UnionRequest;
use aufs_csi::volume::ErrorKind;
use fake::{Fake, Heard};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Longer than any step of these tests takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a call waits where a test wants it to give up.
const SHORT: Duration = Duration::from_millis(300);

/// What the operator of the node allows.
fn policy() -> Policy {
    Policy {
        kubelet_root: PathBuf::from("/var/lib/kubelet"),
        local_images: vec![PathBuf::from("/images")],
        union: UnionRequest::Auto,
        rules: Rules::default(),
    }
}

/// A server on a socket in a directory of its own.
struct Server {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    observers: Observers,
    heard: Arc<Heard>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    async fn start() -> Self {
        Server::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            node_id: "node-a".to_owned(),
            policy: LivePolicy::from(policy()),
            registration: None,
            topology: vec!["aufs-csi.dev/overlay".to_owned()],
            reply_within: PATIENCE,
            stop_within: PATIENCE,
            look_every: Duration::from_millis(50),
        };
        change(&mut settings);
        let fake = Arc::new(Fake::default());
        let heard = Arc::new(Heard::default());
        let observers = Observers {
            events: heard.clone(),
            ..Observers::default()
        };
        observers.health.tested(Ok(()));
        let socket = Socket::bind(&dir.path().join("csi.sock")).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server::serve(
            socket,
            Arc::clone(&fake),
            settings,
            observers.clone(),
            async {
                // Also where the test is over.
                let _ = stopped.await;
            },
        ));
        Server {
            dir,
            fake,
            observers,
            heard,
            stop: Some(stop),
            serving,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("csi.sock")
    }

    async fn channel(&self) -> Channel {
        let path = self.path();
        // The authority that kubelet sends on this socket.
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .unwrap()
    }

    async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel().await)
    }

    async fn publish(&self, request: v1::NodePublishVolumeRequest) -> Result<(), Status> {
        self.node()
            .await
            .node_publish_volume(request)
            .await
            .map(drop)
    }

    async fn unpublish(&self, volume_id: &str) -> Result<(), Status> {
        let request = unpublish_request(volume_id);
        self.node()
            .await
            .node_unpublish_volume(request)
            .await
            .map(drop)
    }

    /// Makes a call in the background, so that the test can go on.
    async fn publish_later(
        &self,
        request: v1::NodePublishVolumeRequest,
    ) -> JoinHandle<Result<(), Status>> {
        let mut node = self.node().await;
        tokio::spawn(async move { node.node_publish_volume(request).await.map(drop) })
    }

    async fn is_alive(&self) -> bool {
        let mut identity = IdentityClient::new(self.channel().await);
        let reply = identity.probe(v1::ProbeRequest {}).await.unwrap();
        reply.into_inner().ready == Some(true)
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }
}

/// What kubelet sends for an inline volume.
fn publish_request(volume_id: &str) -> v1::NodePublishVolumeRequest {
    let context = [
        ("image", "oci:/images/app:1"),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "pod"),
        ("csi.storage.k8s.io/pod.namespace", "default"),
        ("csi.storage.k8s.io/pod.uid", "6f1f"),
        ("csi.storage.k8s.io/serviceAccount.name", ""),
    ];
    v1::NodePublishVolumeRequest {
        volume_id: volume_id.to_owned(),
        target_path: target(volume_id),
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
    }
}

fn unpublish_request(volume_id: &str) -> v1::NodeUnpublishVolumeRequest {
    v1::NodeUnpublishVolumeRequest {
        volume_id: volume_id.to_owned(),
        target_path: target(volume_id),
    }
}

fn target(volume_id: &str) -> String {
    format!("/var/lib/kubelet/pods/6f1f/volumes/kubernetes.io~csi/{volume_id}/mount")
}

fn set(request: &mut v1::NodePublishVolumeRequest, key: &str, value: &str) {
    request
        .volume_context
        .insert(key.to_owned(), value.to_owned());
}

fn capability(request: &mut v1::NodePublishVolumeRequest) -> &mut v1::VolumeCapability {
    request.volume_capability.as_mut().unwrap()
}

fn mount(request: &mut v1::NodePublishVolumeRequest) -> &mut MountVolume {
    match capability(request).access_type.as_mut().unwrap() {
        AccessType::Mount(mount) => mount,
        AccessType::Block(_) => unreachable!("requests of tests are mounts"),
    }
}

fn mode(request: &mut v1::NodePublishVolumeRequest, mode: i32) {
    capability(request).access_mode = Some(AccessMode { mode });
}

/// Waits until a condition holds; a test that waits in vain fails by name.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(what, waited).await;
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

#[tokio::test]
async fn a_wrong_request_is_refused_before_anything_is_done() {
    type Change = fn(&mut v1::NodePublishVolumeRequest);
    let faults: [(&str, Change); 42] = [
        ("volume_id is missing", |r| r.volume_id.clear()),
        ("volume_id is longer than 128 bytes", |r| {
            r.volume_id = "v".repeat(129)
        }),
        ("volume_id is longer than 128 bytes or has control", |r| {
            r.volume_id = "a\nb".to_owned()
        }),
        ("target_path is missing", |r| r.target_path.clear()),
        ("target_path must be an absolute path", |r| {
            r.target_path = "pods/mount".to_owned()
        }),
        ("target_path must be an absolute path", |r| {
            r.target_path.push_str("/../x")
        }),
        ("target_path must be an absolute path", |r| {
            r.target_path.push_str("/./x")
        }),
        ("target_path must be an absolute path", |r| {
            r.target_path.push('/')
        }),
        ("target_path must be an absolute path", |r| {
            r.target_path.push_str("//x")
        }),
        ("target_path must be an absolute path", |r| {
            r.target_path.push('\0')
        }),
        ("target_path must be an absolute path", |r| {
            r.target_path.push_str(&"/x".repeat(2048))
        }),
        (
            "target_path is not below kubelet's directory /var/lib/kubelet",
            |r| {
                r.target_path = "/etc".to_owned();
            },
        ),
        ("target_path is not below kubelet's", |r| {
            r.target_path = "/var/lib/kubelet2/x".to_owned()
        }),
        ("target_path is not below kubelet's", |r| {
            r.target_path = "/var/lib/kubelet".to_owned()
        }),
        ("volume_capability is missing", |r| {
            r.volume_capability = None
        }),
        ("volume_capability.access_type is missing", |r| {
            capability(r).access_type = None
        }),
        ("volume_capability.access_mode is missing", |r| {
            capability(r).access_mode = None
        }),
        ("cannot be a block device", |r| {
            capability(r).access_type = Some(AccessType::Block(BlockVolume {}));
        }),
        ("csi.fsType cannot be chosen", |r| {
            mount(r).fs_type = "ext4".to_owned()
        }),
        ("mount options cannot be given", |r| {
            mount(r).mount_flags.push("suid".to_owned())
        }),
        ("volume_mount_group must be a group id", |r| {
            mount(r).volume_mount_group = "wheel".to_owned()
        }),
        ("volume_mount_group must be a group id", |r| {
            mount(r).volume_mount_group = "+5".to_owned()
        }),
        ("volume_mount_group must be a group id", |r| {
            mount(r).volume_mount_group = "-1".to_owned()
        }),
        ("volume_mount_group must be a group id", |r| {
            mount(r).volume_mount_group = u32::MAX.to_string();
        }),
        ("access mode must be one for a single node", |r| {
            mode(r, Mode::Unknown.into())
        }),
        ("access mode must be one for a single node", |r| mode(r, 99)),
        ("access mode must be one for a single node", |r| {
            mode(r, Mode::MultiNodeMultiWriter.into())
        }),
        ("access mode must be one for a single node", |r| {
            mode(r, Mode::MultiNodeSingleWriter.into())
        }),
        ("access mode must be one for a single node", |r| {
            mode(r, Mode::MultiNodeReaderOnly.into())
        }),
        ("only volumes that are inline in a pod", |r| {
            r.volume_context.remove("csi.storage.k8s.io/ephemeral");
        }),
        ("only volumes that are inline in a pod", |r| {
            set(r, "csi.storage.k8s.io/ephemeral", "false")
        }),
        ("only volumes that are inline in a pod", |r| {
            set(r, "csi.storage.k8s.io/ephemeral", "True")
        }),
        ("volume attribute image is missing", |r| {
            r.volume_context.remove("image");
        }),
        (
            "unknown volume attribute \"imgae\"; did you mean image?",
            |r| set(r, "imgae", "x"),
        ),
        ("image and images exclude each other", |r| {
            set(r, "images", "a,b")
        }),
        ("cannot read the volume attribute image: ", |r| {
            set(r, "image", "UPPER")
        }),
        ("readOnly: true has none", |r| {
            r.readonly = true;
            set(r, "sizeLimit", "1Gi");
        }),
        ("readOnly: true has none", |r| {
            mode(r, Mode::SingleNodeReaderOnly.into());
            set(r, "medium", "Memory");
        }),
        ("cannot read the volume attribute sizeLimit: ", |r| {
            set(r, "sizeLimit", "-1")
        }),
        ("cannot be used with this version: ", |r| {
            set(r, "sizeLimit", "1Gi")
        }),
        ("volume attribute subPath is \"../opt\"", |r| {
            set(r, "subPath", "../opt")
        }),
        ("cannot be used with this version: ", |r| {
            set(r, "medium", "Memory")
        }),
    ];
    let server = Server::start().await;
    let mut node = server.node().await;
    for (message, change) in faults {
        let mut request = publish_request("v");
        change(&mut request);
        let status = node.node_publish_volume(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{message}: {status}");
        assert!(status.message().contains(message), "{message}: {status}");
        // The specification forbids details.
        assert!(status.details().is_empty(), "{message}");
    }
    for (message, request) in [
        (
            "volume_id is missing",
            v1::NodeUnpublishVolumeRequest {
                volume_id: String::new(),
                ..unpublish_request("v")
            },
        ),
        (
            "target_path is missing",
            v1::NodeUnpublishVolumeRequest {
                target_path: String::new(),
                ..unpublish_request("v")
            },
        ),
        (
            "target_path must be an absolute path",
            v1::NodeUnpublishVolumeRequest {
                target_path: "/a/../b".to_owned(),
                ..unpublish_request("v")
            },
        ),
    ] {
        let status = node.node_unpublish_volume(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{message}");
        assert!(status.message().contains(message), "{status}");
    }
    assert_eq!(server.fake.calls(), [""; 0], "nothing was done");
}

#[tokio::test]
async fn what_the_operator_does_not_allow_is_refused() {
    let only = Policy {
        union: UnionRequest::Overlay,
        ..policy()
    };
    let server = Server::with(|settings| settings.policy = only.into()).await;
    let with = |key: &str, value: &str| {
        let mut request = publish_request("v");
        set(&mut request, key, value);
        request
    };
    for (request, code) in [
        (with("image", "oci:/etc"), Code::PermissionDenied),
        (with("image", "oci:/images/../etc"), Code::PermissionDenied),
        (
            with("image", "docker-archive:/imagesx/app.tar"),
            Code::PermissionDenied,
        ),
        (with("union", "aufs"), Code::FailedPrecondition),
    ] {
        let status = server.publish(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(
            !status.message().contains("/images "),
            "the list is the operator's affair"
        );
    }
    assert_eq!(server.fake.calls(), [""; 0]);
    server.publish(with("union", "overlay")).await.unwrap();
}

#[tokio::test]
async fn a_good_request_arrives_as_it_was_asked() {
    let server = Server::start().await;
    let mut request = publish_request("v");
    mount(&mut request).volume_mount_group = "4321".to_owned();
    set(&mut request, "platform", "linux/arm64");
    set(&mut request, "union", "overlay");
    request.secrets = [("password".to_owned(), "hunter2".to_owned())].into();
    server.publish(request.clone()).await.unwrap();
    let asked = server.fake.published("v").unwrap();
    assert_eq!(asked.images[0].source.to_string(), "oci:/images/app:1");
    assert_eq!(
        asked.images[0].source_root.as_deref(),
        Some(Path::new("/images"))
    );
    assert_eq!(asked.target, Path::new(&target("v")));
    assert!(asked.create_target, "kubelet leaves that to the plugin");
    assert_eq!(asked.mount_group, Some(4321));
    assert_eq!(asked.platform.unwrap().to_string(), "linux/arm64");
    assert_eq!(asked.union, UnionRequest::Overlay);
    assert!(!asked.read_only);
    let keys: Vec<&str> = asked.attributes.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["image", "platform", "union"],
        "what kubelet adds changes and is no part"
    );

    for change in [
        |request: &mut v1::NodePublishVolumeRequest| request.readonly = true,
        |request: &mut v1::NodePublishVolumeRequest| {
            mode(request, Mode::SingleNodeReaderOnly.into());
        },
    ] {
        let mut request = v1::NodePublishVolumeRequest {
            volume_id: "w".to_owned(),
            ..request.clone()
        };
        change(&mut request);
        server.publish(request).await.unwrap();
        let asked = server.fake.published("w").unwrap();
        assert!(asked.read_only);
        assert_eq!(asked.mount_group, None, "the group is there to write");
        server.unpublish("w").await.unwrap();
    }
}

#[tokio::test]
async fn a_live_volume_is_answered_before_its_attributes_are_looked_at() {
    let server = Server::start().await;
    let mut request = publish_request("v");
    // As if the operator had allowed it when the volume was made.
    set(&mut request, "image", "oci:/elsewhere/app");
    server.fake.adopt("v", &request);
    server.publish(request.clone()).await.unwrap();
    // Secrets and tokens change between two requests for the same volume.
    request.secrets = [("token".to_owned(), "new".to_owned())].into();
    set(
        &mut request,
        "csi.storage.k8s.io/serviceAccount.tokens",
        "{}",
    );
    server.publish(request.clone()).await.unwrap();
    assert_eq!(server.fake.calls(), [""; 0]);
    // Another one under the same id is looked at in full.
    request.readonly = true;
    let status = server.publish(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn publish_and_unpublish_can_be_repeated() {
    let server = Server::start().await;
    server.unpublish("never-seen").await.unwrap();
    for _ in 0..2 {
        server.publish(publish_request("v")).await.unwrap();
    }
    for _ in 0..2 {
        server.unpublish("v").await.unwrap();
    }
    assert_eq!(
        server.fake.calls(),
        [
            "unpublish never-seen",
            "publish v",
            "unpublish v",
            "unpublish v"
        ]
    );
    // kubelet's directory may have been another one when it was published.
    let moved = v1::NodeUnpublishVolumeRequest {
        target_path: "/old/kubelet/pods/x/mount".to_owned(),
        ..unpublish_request("v")
    };
    server
        .node()
        .await
        .node_unpublish_volume(moved)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_failure_says_its_kind_and_its_causes() {
    let server = Server::start().await;
    for (kind, code) in [
        (ErrorKind::InvalidArgument, Code::InvalidArgument),
        (ErrorKind::NotFound, Code::NotFound),
        (ErrorKind::AlreadyExists, Code::AlreadyExists),
        (ErrorKind::FailedPrecondition, Code::FailedPrecondition),
        (ErrorKind::ResourceExhausted, Code::ResourceExhausted),
        (ErrorKind::DataLoss, Code::DataLoss),
        (ErrorKind::Aborted, Code::Aborted),
        (ErrorKind::Unavailable, Code::Unavailable),
        (ErrorKind::PermissionDenied, Code::PermissionDenied),
        (ErrorKind::Internal, Code::Internal),
    ] {
        server.fake.fail_with(Some(kind));
        let published = server.publish(publish_request("v")).await.unwrap_err();
        let unpublished = server.unpublish("v").await.unwrap_err();
        for status in [published, unpublished] {
            assert_eq!(status.code(), code);
            assert_eq!(status.message(), "the fake failed: because it was told to");
            assert!(status.details().is_empty());
        }
    }
    server.fake.fail_with(None);
    server.publish(publish_request("v")).await.unwrap();
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_server_lives_on() {
    let server = Server::start().await;
    for _ in 0..2 {
        let status = server
            .publish(publish_request(fake::PANIC))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().contains("this is a bug"), "{status}");
    }
    assert!(server.is_alive().await);
    server.publish(publish_request("v")).await.unwrap();
}

#[tokio::test]
async fn a_retry_joins_the_work_that_goes_on() {
    let server = Server::with(|settings| settings.reply_within = SHORT).await;
    server.fake.close_gate();
    let status = server.publish(publish_request("v")).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::Aborted,
        "kubelet must not forget the volume"
    );
    assert_eq!(
        status.message(),
        "still publishing the volume: pulling layer 1/2, 0 B; work goes on"
    );
    let retry = server.publish_later(publish_request("v")).await;
    server.fake.open_gate();
    // The retry may have come too late for its own patience; then the next one
    // finds the volume.
    if let Err(status) = in_time("the retry", retry).await.unwrap() {
        assert_eq!(status.code(), Code::Aborted);
    }
    until("the volume", || server.fake.published("v").is_some()).await;
    server.publish(publish_request("v")).await.unwrap();
    assert_eq!(server.fake.calls(), ["publish v"], "it was done once");
}

#[tokio::test]
async fn many_callers_share_one_piece_of_work() {
    let server = Server::start().await;
    server.fake.close_gate();
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(server.publish_later(publish_request("v")).await);
    }
    until("the work", || server.fake.is_waiting()).await;
    server.fake.open_gate();
    for caller in callers {
        in_time("a caller", caller).await.unwrap().unwrap();
    }
    assert_eq!(server.fake.calls(), ["publish v"]);
}

#[tokio::test]
async fn work_outlives_a_caller_that_gives_up() {
    let server = Server::start().await;
    server.fake.close_gate();
    let mut request = Request::new(publish_request("v"));
    // As kubelet's own deadline, which makes the server drop the call.
    request.set_timeout(SHORT);
    server
        .node()
        .await
        .node_publish_volume(request)
        .await
        .unwrap_err();
    server.fake.open_gate();
    until("the volume", || server.fake.published("v").is_some()).await;
    server.publish(publish_request("v")).await.unwrap();
    assert_eq!(server.fake.calls(), ["publish v"]);
}

#[tokio::test]
async fn a_volume_has_one_operation_at_a_time() {
    let server = Server::start().await;
    server.fake.close_gate();
    let publish = server.publish_later(publish_request("v")).await;
    until("the work", || server.fake.is_waiting()).await;
    // Another publish for the same id is sent away at once.
    let mut other = publish_request("v");
    other.readonly = true;
    let status = in_time("an answer", server.publish(other))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    // An unpublish waits for its turn.
    let mut node = server.node().await;
    let unpublish =
        tokio::spawn(async move { node.node_unpublish_volume(unpublish_request("v")).await });
    // Other volumes and probes do not wait.
    assert!(in_time("a probe", server.is_alive()).await);
    server.fake.open_gate();
    in_time("the publish", publish).await.unwrap().unwrap();
    in_time("the unpublish", unpublish).await.unwrap().unwrap();
    assert_eq!(server.fake.calls(), ["publish v", "unpublish v"]);
    assert!(server.fake.published("v").is_none());
}

#[tokio::test]
async fn volumes_do_not_wait_for_each_other() {
    let server = Server::start().await;
    server.fake.close_gate();
    let slow = server.publish_later(publish_request("slow")).await;
    until("the work", || server.fake.is_waiting()).await;
    in_time("an unpublish", server.unpublish("other"))
        .await
        .unwrap();
    server.fake.open_gate();
    in_time("the slow one", slow).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_plugin_says_who_it_is_and_what_it_can() {
    let server = Server::start().await;
    let mut identity = IdentityClient::new(server.channel().await);
    let info = identity
        .get_plugin_info(v1::GetPluginInfoRequest {})
        .await
        .unwrap();
    let info = info.into_inner();
    assert_eq!(info.name, "aufs-csi.dev");
    assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
    // The longest that keeps kubelet's socket for it within the kernel's limit
    // everywhere, and first and last a letter, which csi-sanity wants.
    assert!(info.name.len() <= 39);
    assert!(info.name.starts_with(char::is_alphabetic) && info.name.ends_with(char::is_alphabetic));
    identity
        .get_plugin_capabilities(v1::GetPluginCapabilitiesRequest {})
        .await
        .unwrap();
    assert!(server.is_alive().await);
    let mut node = server.node().await;
    let info = node.node_get_info(v1::NodeGetInfoRequest {}).await.unwrap();
    let info = info.into_inner();
    assert_eq!(info.node_id, "node-a");
    let segments = info.accessible_topology.unwrap().segments;
    let label = ("aufs-csi.dev/overlay".to_owned(), "true".to_owned());
    assert_eq!(segments, [label].into());
    let reply = node
        .node_get_capabilities(v1::NodeGetCapabilitiesRequest {})
        .await
        .unwrap();
    use v1::node_service_capability::{Rpc, Type, rpc};
    let types: Vec<Option<Type>> = reply
        .into_inner()
        .capabilities
        .into_iter()
        .map(|capability| capability.r#type)
        .collect();
    let expected = [rpc::Type::GetVolumeStats, rpc::Type::VolumeMountGroup];
    let expected = expected.map(|kind| {
        Some(Type::Rpc(Rpc {
            r#type: kind.into(),
        }))
    });
    assert_eq!(types, expected);
}

#[tokio::test]
async fn a_probe_says_whether_calls_are_taken_and_what_the_node_lacks() {
    let server = Server::start().await;
    let mut identity = IdentityClient::new(server.channel().await);
    let why = "no union filesystem works here".to_owned();
    server.observers.health.tested(Err(why.clone()));
    let status = identity.probe(v1::ProbeRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), why);
    // It is alive all the same: a restart would not help.
    aufs_csi::csi::liveness::ask(&server.path()).await.unwrap();
    server.observers.health.tested(Ok(()));
    assert!(server.is_alive().await);
    server.observers.health.stopping();
    assert!(!server.is_alive().await);
    aufs_csi::csi::liveness::ask(&server.path()).await.unwrap();
}

#[tokio::test]
async fn nobody_at_the_socket_is_told_from_somebody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("csi.sock");
    let ask = || aufs_csi::csi::liveness::ask(&path);
    assert!(ask().await.is_err(), "no socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let error = ask().await.unwrap_err();
    assert!(error.to_string().contains("within 3s"), "{error}");
    drop(listener);
    assert!(ask().await.is_err(), "a stale socket");
}

#[tokio::test]
async fn a_socket_whose_name_is_gone_or_anothers_is_made_again() {
    let server = Server::start().await;
    let path = server.path();
    let is_reachable = || std::os::unix::net::UnixStream::connect(&path).is_ok();
    let mut before = server.node().await;
    let gone = || std::fs::remove_file(&path).unwrap();
    let anothers = || {
        let other = server.dir.path().join("other");
        drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
        std::fs::rename(&other, &path).unwrap();
    };
    for lose in [&gone as &dyn Fn(), &anothers] {
        lose();
        assert!(!is_reachable());
        until("a socket", is_reachable).await;
        let mode = path.symlink_metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(in_time("a probe", server.is_alive()).await);
        // Who was connected still is.
        before
            .node_get_info(v1::NodeGetInfoRequest {})
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_use_of_a_volume_is_told_where_it_is_published_and_nowhere_else() {
    let server = Server::start().await;
    server.publish(publish_request("v")).await.unwrap();
    let mut node = server.node().await;
    let request = |volume_id: &str, volume_path: &str| v1::NodeGetVolumeStatsRequest {
        volume_id: volume_id.to_owned(),
        volume_path: volume_path.to_owned(),
        ..Default::default()
    };
    for (volume_id, path, code) in [
        ("", &*target("v"), Code::InvalidArgument),
        ("v", "", Code::InvalidArgument),
        ("v", "some/path", Code::NotFound),
        ("v", "/some/path", Code::NotFound),
        ("w", &*target("v"), Code::NotFound),
    ] {
        let status = node
            .node_get_volume_stats(request(volume_id, path))
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{volume_id} at {path}");
    }
    let reply = node
        .node_get_volume_stats(request("v", &target("v")))
        .await
        .unwrap();
    let [bytes, inodes] = &reply.into_inner().usage[..] else {
        panic!("bytes and inodes");
    };
    assert_eq!((bytes.used, bytes.available), (7, 90));
    assert_eq!(bytes.total, i64::MAX, "what does not fit is cut");
    assert_eq!(bytes.unit, v1::volume_usage::Unit::Bytes as i32);
    assert_eq!(inodes.unit, v1::volume_usage::Unit::Inodes as i32);
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let server = Server::start().await;
    server.publish(publish_request("v")).await.unwrap();
    let mut request = publish_request("w");
    set(&mut request, "imge", "x");
    server.publish(request).await.unwrap_err();
    let text = server.observers.metrics.text();
    for code in ["OK", "InvalidArgument"] {
        let is_counted = |line: &str| {
            line.starts_with("csi_plugin_operations_seconds_count{")
                && line.contains("\"/csi.v1.Node/NodePublishVolume\"")
                && line.contains(&format!("\"{code}\""))
                && line.ends_with(" 1")
        };
        assert!(text.lines().any(is_counted), "{code}: {text}");
    }
    assert!(text.contains("aufs_csi_operations_in_flight 0"), "{text}");
}

#[tokio::test]
async fn other_calls_are_not_implemented() {
    let server = Server::start().await;
    for path in [
        "/csi.v1.Node/NodeStageVolume",
        "/csi.v1.Node/NodeUnstageVolume",
        "/csi.v1.Node/NodeExpandVolume",
        "/csi.v1.Node/NodeGetVolumeHealth",
        "/csi.v1.Node/Nonsense",
        "/csi.v1.Controller/CreateVolume",
        "/csi.v1.Controller/ControllerGetCapabilities",
        "/csi.v1.GroupController/GroupControllerGetCapabilities",
        "/csi.v0.Node/NodePublishVolume",
        "/grpc.health.v1.Health/Check",
    ] {
        let mut client = tonic::client::Grpc::new(server.channel().await);
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<v1::ProbeRequest, v1::ProbeResponse>::default();
        let status = client
            .unary(
                Request::new(v1::ProbeRequest {}),
                path.parse().unwrap(),
                codec,
            )
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
    }
    assert!(server.is_alive().await);
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_server() {
    let mut server = Server::start().await;
    let metadata = server.path().symlink_metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert!(server.is_alive().await);
    server.stop();
    in_time("the end", &mut server.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(!server.path().exists());
    let left = std::fs::read_dir(server.dir.path()).unwrap().count();
    assert_eq!(left, 0, "nothing else is beside the socket");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/on/demand/csi.sock");
    let socket = Socket::bind(&path).await.unwrap();
    let error = Socket::bind(&path).await.unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    drop(socket);

    // What a killed process leaves: a name, and nobody who listens.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let stale = path.symlink_metadata().unwrap().ino();
    let socket = Socket::bind(&path).await.unwrap();
    // A filesystem may give the number again; that somebody listens shows it too.
    let fresh = path.symlink_metadata().unwrap();
    assert!(fresh.ino() != stale || UnixStream::connect(&path).await.is_ok());
    assert_eq!(fresh.permissions().mode() & 0o7777, 0o600);

    // A successor's socket is not removed with its predecessor.
    std::fs::remove_file(&path).unwrap();
    let successor = Socket::bind(&path).await.unwrap();
    drop(socket);
    assert!(UnixStream::connect(&path).await.is_ok());
    drop(successor);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    let error = Socket::bind(&path).await.unwrap_err();
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    let error = Socket::bind(&path).await.unwrap_err();
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
}

#[tokio::test]
async fn of_two_that_start_at_once_one_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("csi.sock");
    for _ in 0..20 {
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (first, second) = tokio::join!(
            tokio::spawn({
                let path = path.clone();
                async move { Socket::bind(&path).await }
            }),
            tokio::spawn({
                let path = path.clone();
                async move { Socket::bind(&path).await }
            }),
        );
        let bound: Vec<Socket> = [first, second]
            .into_iter()
            .filter_map(|result| result.unwrap().ok())
            .collect();
        assert_eq!(bound.len(), 1);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(bound);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn stopping_lets_work_end_that_ends_in_time() {
    let mut server = Server::start().await;
    server.fake.close_gate();
    let publish = server.publish_later(publish_request("v")).await;
    until("the work", || server.fake.is_waiting()).await;
    server.stop();
    tokio::time::sleep(SHORT).await;
    assert!(!server.serving.is_finished(), "it waits for the work");
    server.fake.open_gate();
    in_time("the answer", publish).await.unwrap().unwrap();
    in_time("the end", &mut server.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(!server.path().exists());
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let mut server = Server::with(|settings| settings.stop_within = SHORT).await;
    server.fake.close_gate();
    let publish = server.publish_later(publish_request("v")).await;
    until("the work", || server.fake.is_waiting()).await;
    server.stop();
    let status = in_time("the answer", publish).await.unwrap().unwrap_err();
    assert_eq!(
        status.code(),
        Code::Unavailable,
        "kubelet must not forget the volume"
    );
    in_time("the end", &mut server.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(!server.path().exists());
    server.fake.open_gate();
}

#[tokio::test]
async fn a_pod_is_told_of_pulls_and_failures_once() {
    let server = Server::start().await;
    server.fake.close_gate();
    let first = server.publish_later(publish_request("csi-1")).await;
    until("the work to begin", || server.fake.is_waiting()).await;
    // The same again joins it, and is told nothing of its own.
    let second = server.publish_later(publish_request("csi-1")).await;
    server.fake.open_gate();
    for call in [first, second] {
        call.await.unwrap().unwrap();
    }
    let pulls = [
        "default/pod 6f1f pulling app",
        "default/pod 6f1f pulled app 7",
    ];
    assert_eq!(server.heard.lines(), pulls);
    // What is there already needs no work.
    server.publish(publish_request("csi-1")).await.unwrap();
    assert_eq!(server.heard.lines().len(), 2);

    server.fake.fail_with(Some(ErrorKind::NotFound));
    let error = server.publish(publish_request("csi-2")).await.unwrap_err();
    let wanted = format!("default/pod 6f1f failed: {}", error.message());
    assert_eq!(server.heard.lines()[2..], [wanted]);
    let mut wrong = publish_request("csi-2");
    set(&mut wrong, "imgae", "x");
    server.publish(wrong).await.unwrap_err();
    assert!(server.heard.lines()[3].contains("\"imgae\""));
    // It goes on, or is about a volume whose pod is going.
    server.fake.fail_with(Some(ErrorKind::Aborted));
    server.publish(publish_request("csi-2")).await.unwrap_err();
    server.fake.fail_with(Some(ErrorKind::Unavailable));
    server.unpublish("csi-1").await.unwrap_err();
    assert_eq!(server.heard.lines().len(), 4);
}
