//! What pods do not get, and that nothing is left of it: after a final error
//! kubelet never asks for its end.

use super::driver::{Driver, Node};
use super::fake::{Kubelet, State, Volume, is_final};
use super::{PATIENCE, layers, running};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tonic::{Code, Status};

/// Text that must not appear anywhere.
const MARKER: &str = "hunter2-5d41402abc4b2a76";

/// The pod is refused, for a reason that says so, and is then deleted, which
/// asks for nothing.
async fn is_refused(node: &Node, kubelet: &Kubelet, mut volume: Volume, code: Code) -> Status {
    let status = kubelet.set_up(&mut volume).await.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(is_final(code));
    assert_eq!(volume.state, State::Unmounted);
    assert!(!volume.dir().exists(), "kubelet could remove its directory");
    kubelet.delete(&mut volume).await;
    node.has_no_volumes(status.message());
    status
}

#[tokio::test]
async fn a_wrong_attribute_is_named_in_what_the_pod_sees() {
    let (node, _driver, kubelet) = running().await;
    let image = node.image("app", &layers());
    let misspelt = kubelet.volume(&image).with("imgae", "x");
    let status = is_refused(&node, &kubelet, misspelt, Code::InvalidArgument).await;
    let expected = "unknown volume attribute \"imgae\"; did you mean image?";
    assert!(status.message().contains(expected), "{status:?}");
    let missing = kubelet.volume("oci:/nowhere");
    is_refused(&node, &kubelet, missing, Code::PermissionDenied).await;
    let missing = format!("oci:{}:latest", node.images().join("none").display());
    let missing = kubelet.volume(&missing);
    is_refused(&node, &kubelet, missing, Code::NotFound).await;
    assert!(node.layers().is_empty(), "nothing was staged");
    // What is refused once is no worse for it: the author mends the pod.
    let mut mended = kubelet.volume(&image);
    let mut wrong = mended.clone().with("imgae", "x");
    kubelet.set_up(&mut wrong).await.unwrap_err();
    kubelet.set_up(&mut mended).await.unwrap();
    kubelet.delete(&mut mended).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn one_id_is_one_volume() {
    let (node, _driver, kubelet) = running().await;
    let image = node.image("app", &layers());
    let mut volume = kubelet.volume(&image);
    kubelet.set_up(&mut volume).await.unwrap();
    fs::write(volume.target().join("new"), "x").unwrap();
    let publish = |request| kubelet.publish(request, PATIENCE);

    let other_image = node.image("other", &layers()[..1]);
    let mut others = Vec::new();
    others.push(volume.clone().read_only());
    others.push(volume.clone().with("union", "auto"));
    others.push(volume.clone());
    others[2].attributes[0].1 = other_image;
    others.push(volume.clone());
    others[3].fs_group = Some(7);
    for other in others {
        let status = publish(other.publish_request()).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    }
    let mut elsewhere = volume.publish_request();
    elsewhere.target_path = elsewhere.target_path.replace("/data/mount", "/else/mount");
    let status = publish(elsewhere.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(!Path::new(&elsewhere.target_path).exists());
    // What kubelet itself adds, and credentials, may differ.
    let mut same = volume.publish_request();
    same.secrets.insert("password".to_owned(), "new".to_owned());
    let key = "csi.storage.k8s.io/serviceAccount.name".to_owned();
    same.volume_context.insert(key, "another".to_owned());
    publish(same).await.unwrap();

    assert_eq!(node.mounts(), [volume.target()]);
    assert!(volume.target().join("new").exists());
    assert_eq!(
        node.layers().len(),
        layers().len(),
        "nothing else was staged"
    );
    kubelet.delete(&mut volume).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_local_image_must_be_where_the_operator_allows_them() {
    let (node, driver, mut kubelet) = running().await;
    let outside = node.path("outside");
    let image = node.image_at(&outside.join("app"), &layers());
    // Links are resolved as if the allowed directory were the root, so that what
    // they name is not there.
    symlink(outside.join("app"), node.images().join("link")).unwrap();
    symlink("../outside", node.images().join("up")).unwrap();
    let allowed = node.images();
    let climbing = allowed.join("../outside/app");
    for (path, code) in [
        (outside.join("app"), Code::PermissionDenied),
        (climbing, Code::PermissionDenied),
        (allowed.join("link"), Code::NotFound),
        (allowed.join("up/app"), Code::NotFound),
    ] {
        let image = format!("oci:{}:latest", path.display());
        let volume = kubelet.volume(&image);
        is_refused(&node, &kubelet, volume, code).await;
    }
    assert!(node.layers().is_empty(), "nothing was staged");
    drop(driver);
    // Another operator, or the same later.
    let _driver = node.start_with(&[]);
    kubelet.register().await;
    let local = node.image("app", &layers());
    for image in [image, local] {
        let volume = kubelet.volume(&image);
        is_refused(&node, &kubelet, volume, Code::PermissionDenied).await;
    }
}

#[tokio::test]
async fn an_unknown_volume_is_cleared_from_its_target() {
    let (node, _driver, kubelet) = running().await;
    let image = node.image("app", &layers());
    // Never published, and kubelet made its directory all the same.
    let mut never = kubelet.volume(&image);
    never.make_dirs();
    never.state = State::Uncertain;
    fs::create_dir(never.target()).unwrap();
    kubelet.delete(&mut never).await;

    // Two mounts at its target, and no record of them: the store was lost.
    let mut lost = kubelet.volume(&image);
    kubelet.set_up(&mut lost).await.unwrap();
    let (record, _) = node.records().remove(0);
    let volume = record.parent().unwrap();
    let aside = node.path("aside");
    fs::rename(volume, &aside).unwrap();
    fs::remove_file(volume.with_extension("lock")).unwrap();
    node.bind(&node.images(), &lost.target());
    assert_eq!(node.mounts().len(), 2);
    kubelet.delete(&mut lost).await;
    node.has_no_volumes("afterwards");
    // Nothing was removed through a mount.
    assert!(node.images().join("app/index.json").exists());
    fs::remove_dir_all(aside).unwrap();
}

/// Where the marker is, of all that the plugin has written and says.
async fn places_of_marker(node: &Node, driver: &Driver) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |place: String, bytes: &[u8]| {
        let has = |bytes: &[u8]| bytes.windows(MARKER.len()).any(|w| w == MARKER.as_bytes());
        if has(place.as_bytes()) || has(bytes) {
            found.push(place);
        }
    };
    for path in ["/metrics", "/readyz", "/livez"] {
        look(path.to_owned(), driver.get(path).await.1.as_bytes());
    }
    let mut pending = vec![node.store(), node.run_dir()];
    pending.extend(driver.logs.clone());
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            look(path.display().to_string(), b"");
        } else {
            // Sockets and devices have nothing to read.
            let content = match path.is_file() {
                true => fs::read(&path).unwrap(),
                false => Vec::new(),
            };
            look(path.display().to_string(), &content);
        }
    }
    found
}

#[tokio::test]
async fn no_secret_is_written_anywhere() {
    let node = Node::new();
    let mut kubelet = Kubelet::new(&node.kubelet_root());
    let images = node.images();
    let driver = node.start_with(&[
        "--allow-local-images",
        images.to_str().unwrap(),
        // Whatever an operator turns on to find a fault.
        "--log-level",
        "trace",
    ]);
    kubelet.register().await;
    let image = node.image("app", &layers());
    let secret = |mut volume: Volume| {
        let docker = format!("{{\"auths\":{{\"r.example\":{{\"auth\":\"{MARKER}\"}}}}}}");
        volume.secrets = vec![
            (".dockerconfigjson".to_owned(), docker),
            (MARKER.to_owned(), MARKER.to_owned()),
        ];
        // Where the cluster hands tokens out as attributes.
        volume.with("csi.storage.k8s.io/serviceAccount.tokens", MARKER)
    };
    let mut accepted = secret(kubelet.volume(&image));
    kubelet.set_up(&mut accepted).await.unwrap();
    kubelet.replay(&accepted).await.unwrap();
    let other = accepted.clone().read_only();
    let status = kubelet.publish(other.publish_request(), PATIENCE).await;
    let mut answers = vec![status.unwrap_err()];
    for refused in [
        kubelet.volume(&image).with("password", MARKER),
        kubelet.volume("registry.example/app:1"),
        kubelet.volume("oci:/etc/shadow"),
        kubelet.volume(&format!("oci:{}", images.join("none").display())),
    ] {
        let mut refused = secret(refused);
        answers.push(kubelet.set_up(&mut refused).await.unwrap_err());
    }
    for status in &answers {
        assert!(!format!("{status:?}").contains(MARKER), "{status:?}");
    }
    assert_eq!(places_of_marker(&node, &driver).await, Vec::<String>::new());
    kubelet.delete(&mut accepted).await;
    assert_eq!(places_of_marker(&node, &driver).await, Vec::<String>::new());
    // It would have been found.
    let planted = node.store().join("images/planted");
    fs::write(&planted, format!("x{MARKER}")).unwrap();
    let found = places_of_marker(&node, &driver).await;
    assert_eq!(found, [planted.display().to_string()]);
}
