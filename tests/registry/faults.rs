//! Answers that are wrong, late, or elsewhere.

use super::driver::names;
use super::registry::proxy::{Fault, Gate, On, Proxy};
use super::registry::server::{Auth, PASSWORD, Registry, USER};
use super::site::{Pushed, Site, layers, push};
use super::until;
use std::collections::BTreeSet;
use tonic::Code;

async fn pulled(seed: u64, on: impl Fn(&Pushed) -> Vec<(On, Fault)>) -> (Proxy, Pushed) {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let pushed = push(&registry, "faults/some:1", layers(seed, 3, 50_000));
    for (on, fault) in on(&pushed) {
        proxy.on(on, fault);
    }
    let site = Site::start().await;
    let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
    site.ready(&mut volume).await;
    pushed.is_at("in spite of it", &volume);
    site.end(volume).await;
    (proxy, pushed)
}

#[tokio::test]
async fn a_layer_that_is_wrong_once_is_fetched_once_more() {
    let (proxy, pushed) = pulled(301, |pushed| {
        let digest = &pushed.image.layers[1].digest;
        vec![(On::blob(digest).times(1), Fault::Corrupt(30_000))]
    })
    .await;
    for (number, layer) in pushed.image.layers.iter().enumerate() {
        let times = if number == 1 { 2 } else { 1 };
        assert_eq!(proxy.bytes(&layer.digest), times * layer.size, "{number}");
    }
}

#[tokio::test]
async fn a_layer_that_is_always_wrong_fails_by_its_name_and_leaves_nothing() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let pushed = push(&registry, "faults/wrong:1", layers(302, 3, 50_000));
    let site = Site::start().await;
    let layer = &pushed.image.layers[1];
    // At the beginning, where the decompressor sees it, and at the end, where
    // nobody does but the digest.
    for at in [5, 30_000, layer.size - 1] {
        proxy.heal();
        proxy.on(On::blob(&layer.digest), Fault::Corrupt(at));
        proxy.forget();
        let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
        let status = site.refused(&mut volume).await;
        assert_eq!(status.code(), Code::DataLoss, "{at}: {status:?}");
        let text = status.message();
        assert!(text.contains(&layer.digest[..19]), "{at}: {text}");
        assert!(proxy.requests("GET", &layer.digest) <= 2, "refetched once");
        site.end(volume).await;
        let left = names(&site.node.store().join("blobs"));
        let key = &super::registry::push::digest(layer.digest.as_bytes())[7..39];
        assert!(!left.iter().any(|name| name.starts_with(key)), "{left:?}");
    }
    proxy.heal();
    let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
    site.ready(&mut volume).await;
    pushed.is_at("healed", &volume);
    site.end(volume).await;
}

#[tokio::test]
async fn documents_that_are_wrong_are_not_believed() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let pushed = push(&registry, "faults/documents:1", layers(303, 1, 10_000));
    let site = Site::start().await;
    for part in ["/manifests/", &pushed.image.config.digest] {
        proxy.heal();
        proxy.on(On::path(part).method("GET"), Fault::Corrupt(60));
        let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
        let status = site.refused(&mut volume).await;
        assert_eq!(status.code(), Code::DataLoss, "{part}: {status:?}");
        site.end(volume).await;
        assert_eq!(site.node.layers(), BTreeSet::new());
    }
}

#[tokio::test]
async fn who_is_busy_is_asked_again_when_he_says() {
    let (proxy, pushed) = pulled(304, |pushed| {
        let digest = &pushed.image.layers[0].digest;
        vec![
            (On::path("/manifests/").times(1), Fault::busy("1")),
            (On::blob(digest).times(2), Fault::busy("1")),
        ]
    })
    .await;
    let layer = &pushed.image.layers[0];
    assert_eq!(proxy.requests("GET", &layer.digest), 3);
    assert_eq!(proxy.bytes(&layer.digest), layer.size);
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again() {
    for code in [500, 502, 503, 504] {
        let (proxy, pushed) = pulled(310 + u64::from(code), |pushed| {
            let digest = &pushed.image.layers[0].digest;
            vec![
                (On::path("/manifests/").times(2), Fault::status(code)),
                (On::blob(digest).times(2), Fault::status(code)),
            ]
        })
        .await;
        let layer = &pushed.image.layers[0];
        assert_eq!(proxy.requests("GET", &layer.digest), 3, "{code}");
    }
}

#[tokio::test]
async fn a_layer_that_is_not_there_is_named() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let pushed = push(&registry, "faults/missing:1", layers(305, 2, 10_000));
    let site = Site::start().await;
    let layer = &pushed.image.layers[1];
    proxy.on(On::blob(&layer.digest), Fault::status(404));
    let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
    let status = site.refused(&mut volume).await;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains(&layer.digest[..19]), "{status:?}");
    site.end(volume).await;
}

#[tokio::test]
async fn what_stalls_is_left_and_goes_on_elsewhere_from_where_it_was() {
    let gate = Gate::new();
    let (proxy, pushed) = pulled(306, |pushed| {
        let digest = &pushed.image.layers[0].digest;
        vec![(On::blob(digest).times(1), Fault::Hold(20_000, gate.clone()))]
    })
    .await;
    let layer = &pushed.image.layers[0];
    assert_eq!(proxy.bytes(&layer.digest), layer.size);
    until("the end of the one that stalled", || {
        proxy.exchanges().iter().any(|one| one.left)
    })
    .await;
}

#[tokio::test]
async fn what_is_slow_but_comes_is_waited_for() {
    let (proxy, pushed) = pulled(307, |pushed| {
        let digest = &pushed.image.layers[0].digest;
        vec![
            (
                On::path("/manifests/"),
                Fault::Delay(std::time::Duration::from_millis(300)),
            ),
            (On::blob(digest), Fault::Throttle(20_000)),
        ]
    })
    .await;
    let layer = &pushed.image.layers[0];
    assert_eq!(proxy.requests("GET", &layer.digest), 1);
}

#[tokio::test]
async fn who_is_sent_elsewhere_shows_nothing_there() {
    let open = Registry::open();
    let pushed = push(&open, "faults/elsewhere:1", layers(308, 3, 50_000));
    let locked = open.with_auth(Auth::Basic);
    // Another port is another host, as well as another name.
    let cdn = Proxy::to(open.address());
    let port = cdn.address();
    let port = port.rsplit(':').next().unwrap();
    for (number, to) in [cdn.address(), format!("localhost:{port}")]
        .into_iter()
        .enumerate()
    {
        let proxy = Proxy::to(locked.address());
        proxy.on(On::blob(""), Fault::Redirect(format!("http://{to}")));
        cdn.forget();
        // A cut there is mended there, too.
        let layer = &pushed.image.layers[0];
        cdn.on(On::blob(&layer.digest).times(1), Fault::Cut(layer.size / 2));
        let site = Site::start().await;
        let host = proxy.address();
        let mut volume = site
            .kubelet
            .volume(&pushed.at(&host))
            .with_login(&host, USER, PASSWORD);
        site.ready(&mut volume).await;
        pushed.is_at("by way of another host", &volume);
        assert_eq!(cdn.bytes("/blobs/"), pushed.bytes(), "{number}");
        for one in cdn.exchanges() {
            assert_eq!(one.authorization, None, "{number}: {one:?}");
            assert!(!format!("{one:?}").contains(PASSWORD));
        }
        assert!(
            proxy
                .exchanges()
                .iter()
                .any(|one| one.authorization.is_some())
        );
        site.end(volume).await;
    }
}

#[tokio::test]
async fn who_is_sent_in_circles_stops() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let pushed = push(&registry, "faults/circle:1", layers(309, 1, 10_000));
    let site = Site::start().await;
    let to = format!("http://{}", proxy.address());
    proxy.on(On::path("/manifests/"), Fault::Redirect(to));
    let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
    let status = site.refused(&mut volume).await;
    assert!(status.message().contains("redirect"), "{status:?}");
    let asked = proxy.exchanges().len();
    assert!(asked < 200, "{asked} requests");
    site.kubelet.delete(&mut volume).await;
}
