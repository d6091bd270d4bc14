//! How the plugin becomes known to kubelet, and how it leaves.

use super::driver::Node;
use super::fake::Kubelet;
use super::http2::{CallError, Connection};
use super::{PATIENCE, layers, running, until};
use aufs_csi::csi::v1::{ProbeRequest, ProbeResponse};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[tokio::test]
async fn a_kubelet_registers_the_plugin() {
    let node = Node::new();
    let mut kubelet = Kubelet::new(&node.kubelet_root());
    let driver = node.start();
    until("the socket", || node.registration().exists()).await;
    // What is in front of it is there already.
    assert!(node.endpoint().exists());
    for socket in [node.registration(), node.endpoint()] {
        let mode = socket.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{}", socket.display());
    }
    let (status, text) = driver.get("/readyz").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    let waits = "[-]registration: kubelet has not registered the plugin yet";
    assert!(text.lines().any(|line| line == waits), "{text}");
    assert!(
        driver
            .get("/metrics")
            .await
            .1
            .contains("\naufs_csi_registered 0\n")
    );

    // What is asked there is what a plain server cannot take, so that it would
    // show if the plugin were one.
    let mut plain = Connection::dial(&node.endpoint()).unwrap();
    let probe: Result<ProbeResponse, _> =
        plain.call("/csi.v1.Identity/Probe", &ProbeRequest {}, PATIENCE);
    // PROTOCOL_ERROR: RFC 9113, section 7.
    assert!(matches!(probe, Err(CallError::Reset(1))), "{probe:?}");
    let info = kubelet.register().await;
    assert_eq!(info.node_id, "node-a");
    assert_eq!(info.max_volumes_per_node, 0);
    let labels = info.accessible_topology.unwrap().segments;
    assert_eq!(labels["aufs-csi.dev/overlay"], "true");
    assert!(labels.values().all(|value| value == "true"), "{labels:?}");
    let (status, text) = driver.get("/readyz").await;
    assert_eq!(status, "HTTP/1.1 200 OK", "{text}");
    assert_eq!(text, "[+]process ok\n[+]node ok\n[+]registration ok\n");
    assert_eq!(driver.get("/livez").await.0, "HTTP/1.1 200 OK");
    let metrics = driver.get("/metrics").await.1;
    for line in [
        "aufs_csi_registered 1",
        "csi_plugin_operations_seconds_count{driver_name=\"aufs-csi.dev\",method_name=\"/csi.v1.Node/NodeGetInfo\",grpc_status_code=\"OK\"} 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}: {metrics}"
        );
    }
}

#[tokio::test]
async fn a_socket_that_is_lost_is_made_again_and_registered_again() {
    let (node, driver, mut kubelet) = running().await;
    let before = node.registration().metadata().unwrap().ino();
    fs::remove_file(node.registration()).unwrap();
    until("the socket", || node.registration().exists()).await;
    // A filesystem may give a number again, but not while the first is open.
    assert_ne!(node.registration().metadata().unwrap().ino(), before);
    let metrics = driver.get("/metrics").await.1;
    assert!(metrics.contains("\naufs_csi_registered 0\n"), "{metrics}");
    kubelet.register().await;
    let metrics = driver.get("/metrics").await.1;
    assert!(metrics.contains("\naufs_csi_registered 1\n"), "{metrics}");
    // A kubelet that restarts registers what is there once more.
    kubelet.register().await;
    // The socket of the services is kept as well.
    fs::remove_file(node.endpoint()).unwrap();
    until("the socket", || node.endpoint().exists()).await;
    kubelet.register().await;
}

#[tokio::test]
async fn another_process_at_the_address_of_probes_does_not_keep_volumes_away() {
    let node = Node::new();
    let mut kubelet = Kubelet::new(&node.kubelet_root());
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let driver = node.start_with(&["--http-address", &address]);
    until("the socket", || node.registration().exists()).await;
    kubelet.register().await;
    assert_eq!(driver.logged("answering probes"), 0);
    drop(other);
    assert_eq!(driver.get("/readyz").await.0, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_plugin_that_is_stopped_finishes_and_leaves_the_mounts() {
    let (node, mut driver, mut kubelet) = running().await;
    let image = node.image("app", &layers());
    let mut live = kubelet.volume(&image);
    kubelet.set_up(&mut live).await.unwrap();
    let mut late = kubelet.volume(&image);
    late.make_dirs();
    let held = node.hold_store();
    let publishing = {
        let request = late.publish_request();
        let call = kubelet.call(super::PATIENCE, request, |mut node, request| async move {
            node.node_publish_volume(request).await
        });
        let stopping = async {
            until("the call", || node.lock_of(&late).exists()).await;
            driver.terminate();
            // First the one that kubelet watches, so that it makes no new calls.
            until("the end of registration", || !node.registration().exists()).await;
            assert!(node.endpoint().exists(), "a call still runs");
            assert!(driver.is_running());
            drop(held);
        };
        tokio::join!(call, stopping).0
    };
    publishing.unwrap();
    let status = driver.ended().await;
    assert_eq!(status.code(), Some(0), "{}", driver.log());
    assert!(!node.endpoint().exists() && !node.registration().exists());
    assert_eq!(node.mounts(), [live.target(), late.target()]);
    fs::write(live.target().join("while"), "it is away").unwrap();

    let _driver = node.start();
    kubelet.register().await;
    for volume in [&mut live, &mut late] {
        kubelet.replay(volume).await.unwrap();
        volume.state = super::fake::State::Mounted;
    }
    assert_eq!(node.mounts().len(), 2);
    for volume in [&mut live, &mut late] {
        kubelet.delete(volume).await;
    }
    node.has_no_volumes("afterwards");
}
