//! Who may have what is on the node: that it is there proves nothing.

use super::registry::http::request;
use super::registry::proxy::{Fault, Gate, On, Proxy};
use super::registry::server::{Auth, PASSWORD, Registry, USER};
use super::registry::tokens::TokenServer;
use super::site::{Site, layers, push};
use super::support::oci_layout::OciLayout;
use super::support::tarball::{Compression, tars};
use super::until;
use tonic::Code;

#[tokio::test]
async fn what_one_pod_may_have_another_has_not_for_that() {
    let open = Registry::open();
    let pushed = push(&open, "cached/private:1", layers(801, 3, 30_000));
    let mut locked = open.with_auth(Auth::Basic);
    let host = locked.address().to_owned();
    let site = Site::start().await;
    let pod = |policy: &str| {
        let volume = site.kubelet.volume(&pushed.at(&host));
        volume.with("pullPolicy", policy)
    };
    let mut owner = pod("IfNotPresent").with_login(&host, USER, PASSWORD);
    site.ready(&mut owner).await;
    for policy in ["IfNotPresent", "Always"] {
        for mut volume in [
            pod(policy),
            pod(policy).with_login(&host, USER, "not-the-password"),
            pod(policy).with_login(&host, "somebody", PASSWORD),
        ] {
            let status = site.refused(&mut volume).await;
            assert_eq!(status.code(), Code::Unauthenticated, "{policy}: {status:?}");
        }
    }
    let digest = &pushed.image.manifest.digest;
    let by_digest = format!("{host}/cached/private@{digest}");
    let status = site.refused(&mut site.kubelet.volume(&by_digest)).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    // It is not asked, so only what is on record counts.
    for mut volume in [
        pod("Never"),
        pod("Never").with_login(&host, USER, "not-the-password"),
    ] {
        let status = site.refused(&mut volume).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }
    assert_eq!(site.node.mounts(), [owner.target()]);

    locked.stop();
    let mut volumes = vec![owner];
    for policy in ["Never", "IfNotPresent"] {
        let mut volume = pod(policy).with_login(&host, USER, PASSWORD);
        site.ready(&mut volume).await;
        pushed.is_at(policy, &volume);
        volumes.push(volume);
        // Whom nobody can ask about has nothing.
        let status = site.refused(&mut pod(policy)).await;
        assert!(
            matches!(status.code(), Code::PermissionDenied | Code::Unavailable),
            "{status:?}"
        );
    }
    for mut volume in volumes {
        site.kubelet.delete(&mut volume).await;
    }
}

#[tokio::test]
async fn what_is_on_record_is_so_after_a_restart_and_ends_with_its_time() {
    let open = Registry::open();
    let pushed = push(&open, "cached/record:1", layers(802, 2, 30_000));
    let mut locked = open.with_auth(Auth::Basic);
    let host = locked.address().to_owned();
    for (memory, is_remembered) in [("24h", true), ("1s", false)] {
        let mut site = Site::with(&["--credential-memory", memory]).await;
        let image = pushed.at(&host);
        let pod = |site: &Site| {
            let volume = site.kubelet.volume(&image).with("pullPolicy", "Never");
            volume.with_login(&host, USER, PASSWORD)
        };
        let mut first = site
            .kubelet
            .volume(&image)
            .with_login(&host, USER, PASSWORD);
        site.ready(&mut first).await;
        site.driver.kill();
        site.again().await;
        locked.stop();
        // Until the second is over.
        tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
        let mut second = pod(&site);
        if is_remembered {
            site.ready(&mut second).await;
        } else {
            let status = site.refused(&mut second).await;
            assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        }
        site.kubelet.delete(&mut second).await;
        site.kubelet.delete(&mut first).await;
        locked.resume();
    }
}

#[tokio::test]
async fn a_pull_that_runs_is_joined_only_by_who_may() {
    let open = Registry::open();
    let pushed = push(&open, "cached/running:1", layers(803, 3, 30_000));
    let locked = open.with_auth(Auth::Basic);
    let proxy = Proxy::to(locked.address());
    let host = proxy.address();
    let gate = Gate::new();
    for layer in &pushed.image.layers {
        proxy.on(On::blob(&layer.digest), Fault::Hold(1000, gate.clone()));
    }
    let site = Site::start().await;
    let mut owner = site
        .kubelet
        .volume(&pushed.at(&host))
        .with_login(&host, USER, PASSWORD);
    let others = async {
        until("the pull", || gate.waiting() > 0).await;
        for mut volume in [
            site.kubelet.volume(&pushed.at(&host)),
            site.kubelet
                .volume(&pushed.at(&host))
                .with_login(&host, USER, "not-the-password"),
        ] {
            let status = site.refused(&mut volume).await;
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        }
        gate.open();
    };
    tokio::join!(site.ready(&mut owner), others);
    site.end(owner).await;
}

#[tokio::test]
async fn to_name_a_digest_proves_nothing() {
    let open = Registry::open();
    let secret_layers = layers(804, 2, 30_000);
    let pushed = push(&open, "cached/theirs:1", secret_layers.clone());
    let locked = open.with_auth(Auth::Basic);
    let site = Site::start().await;
    let host = locked.address();
    let mut owner = site
        .kubelet
        .volume(&pushed.at(host))
        .with_login(host, USER, PASSWORD);
    site.ready(&mut owner).await;

    // The attacker's own registry has a manifest that names the layers, and a
    // config that names their diffIDs, both of which a manifest tells; but not
    // the layers. One of them is the attacker's, so that it is another image.
    let attackers = Registry::open();
    let proxy = Proxy::to(attackers.address());
    let all = [secret_layers, layers(805, 1, 10_000)].concat();
    let own = push(&attackers, "cached/mine:1", all);
    for layer in &pushed.image.layers {
        let path = format!("/v2/cached/mine/blobs/{}", layer.digest);
        let gone = request(attackers.address(), "DELETE", &path, &[], b"");
        assert_eq!(gone.status(), 202, "{}", gone.text());
    }
    let mut thief = site.kubelet.volume(&own.at(&proxy.address()));
    let status = site.refused(&mut thief).await;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert_eq!(site.node.mounts(), [owner.target()]);
    assert!(
        proxy.requests("GET", &pushed.image.layers[0].digest) > 0,
        "it was asked for"
    );
    site.kubelet.delete(&mut thief).await;

    // The whole of the image in the attacker's repository, under its own digest.
    let whole = push(&attackers, "cached/same:1", layers(804, 2, 30_000));
    assert_eq!(whole.image.manifest, pushed.image.manifest);
    let path = format!("/v2/cached/same/blobs/{}", whole.image.layers[1].digest);
    request(attackers.address(), "DELETE", &path, &[], b"");
    for name in [
        whole.at(&proxy.address()),
        format!(
            "{}/cached/same@{}",
            proxy.address(),
            whole.image.manifest.digest
        ),
    ] {
        let mut thief = site.kubelet.volume(&name);
        let status = site.refused(&mut thief).await;
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        site.kubelet.delete(&mut thief).await;
    }
    assert_eq!(site.node.mounts(), [owner.target()]);

    // Who really has it may use what is here.
    let honest = push(&attackers, "cached/honest:1", layers(804, 2, 30_000));
    let mut volume = site.kubelet.volume(&honest.at(&proxy.address()));
    site.ready(&mut volume).await;
    honest.is_at("delivered here as well", &volume);
    assert_eq!(site.node.layers().len(), 2, "each layer once");
    site.kubelet.delete(&mut volume).await;
    site.end(owner).await;
}

#[tokio::test]
async fn a_layer_of_a_public_image_is_used_by_all_without_fetching_it_again() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let base = layers(806, 2, 30_000);
    let first = push(&registry, "cached/base:1", base.clone());
    let second = push(
        &registry,
        "cached/app:1",
        [base, layers(807, 1, 10_000)].concat(),
    );
    let site = Site::start().await;
    let mut volumes = Vec::new();
    for pushed in [&first, &second] {
        let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
        site.ready(&mut volume).await;
        pushed.is_at(&pushed.name, &volume);
        volumes.push(volume);
    }
    for layer in &first.image.layers {
        assert_eq!(proxy.requests("GET", &layer.digest), 1);
    }
    for mut volume in volumes {
        site.kubelet.delete(&mut volume).await;
    }
}

#[tokio::test]
async fn a_repository_that_is_closed_is_closed_to_who_asks_from_then_on() {
    let tokens = TokenServer::start();
    tokens.account("ann", "her-password", &["cached/closing"]);
    tokens.public("cached/closing");
    let open = Registry::open();
    let pushed = push(&open, "cached/closing:1", layers(808, 2, 30_000));
    let locked = open.with_auth(tokens.auth());
    let host = locked.address();
    let site = Site::start().await;
    let pod = || {
        site.kubelet
            .volume(&pushed.at(host))
            .with("pullPolicy", "Always")
    };
    let mut first = pod();
    site.ready(&mut first).await;
    tokens.close("cached/closing");
    let status = site.refused(&mut pod()).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    // It was seen to be closed, so that even who would not ask has to.
    let mut later = site.kubelet.volume(&pushed.at(host));
    let status = site.refused(&mut later).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let mut ann = pod().with_login(host, "ann", "her-password");
    site.ready(&mut ann).await;
    site.kubelet.delete(&mut ann).await;
    site.end(first).await;
}

#[tokio::test]
async fn an_image_from_the_nodes_disk_lends_nothing_to_a_registry_and_takes_nothing() {
    let open = Registry::open();
    let secret = layers(809, 2, 30_000);
    let pushed = push(&open, "cached/secret:1", secret.clone());
    let locked = open.with_auth(Auth::Basic);
    let node = super::driver::Node::new();
    let images = node.images();
    let site = Site::on(node, &["--allow-local-images", images.to_str().unwrap()]).await;
    let host = locked.address();
    let mut owner = site
        .kubelet
        .volume(&pushed.at(host))
        .with_login(host, USER, PASSWORD);
    site.ready(&mut owner).await;
    // A layout on disk with the manifest and without the layers.
    let dir = images.join("thief");
    let mut layout = OciLayout::new(&dir);
    let image = layout.image("x", &tars(&secret), Compression::Gzip);
    for layer in &image.layers {
        std::fs::remove_file(layout.blob_path(&layer.digest)).unwrap();
    }
    let mut thief = site.kubelet.volume(&format!("oci:{}:x", dir.display()));
    site.refused(&mut thief).await;
    assert_eq!(site.node.mounts(), [owner.target()]);
    site.kubelet.delete(&mut thief).await;
    site.end(owner).await;
}
