//! Many pods at once.

use super::registry::proxy::{Fault, On, Proxy};
use super::registry::server::{Auth, PASSWORD, Registry, USER};
use super::site::{Site, layers, push};
use super::support::model::flatten;
use super::support::tree::{Compared, assert_same, read};

const PODS: usize = 50;

#[tokio::test]
async fn fifty_pods_fetch_each_blob_of_their_image_once() {
    let open = Registry::open();
    let pushed = push(&open, "together/app:1", layers(401, 7, 100_000));
    let locked = open.with_auth(Auth::Basic);
    let proxy = Proxy::to(locked.address());
    // So that all of them come while it runs.
    for layer in &pushed.image.layers {
        proxy.on(On::blob(&layer.digest), Fault::Throttle(100_000));
    }
    let site = Site::start().await;
    let host = proxy.address();
    let pod = |_| {
        let volume = site.kubelet.volume(&pushed.at(&host));
        volume.with_login(&host, USER, PASSWORD)
    };
    let volumes = site.all_ready((0..PODS).map(pod).collect()).await;
    assert_eq!(site.node.mounts().len(), PODS);
    for layer in &pushed.image.layers {
        assert_eq!(proxy.requests("GET", &layer.digest), 1, "{}", layer.digest);
        assert_eq!(proxy.bytes(&layer.digest), layer.size);
    }
    assert_eq!(proxy.requests("GET", &pushed.image.config.digest), 1);
    let metrics = site.driver.get("/metrics").await.1;
    let count = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().unwrap())
    };
    let layers = pushed.image.layers.iter().map(|layer| layer.size);
    assert_eq!(count("aufs_csi_pull_bytes_total"), layers.sum::<u64>());
    let of = |outcome: &str| count(&format!("aufs_csi_pulls_total{{outcome=\"{outcome}\"}}"));
    // Whoever came when all was there found it.
    assert_eq!(of("pulled") + of("cached"), PODS as u64);
    assert!(of("pulled") > 0);
    assert_eq!((of("failed"), count("aufs_csi_pulls_running")), (0, 0));
    let expected = flatten(&pushed.layers).unwrap();
    for mut volume in volumes {
        let actual = read(&volume.target()).unwrap();
        assert_same("each of them", &expected, &actual, Compared::ALL);
        site.kubelet.delete(&mut volume).await;
    }
    site.node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn two_images_that_share_layers_fetch_them_once() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let base = layers(402, 5, 100_000);
    let images = ["together/one:1", "together/one:2"].map(|name| {
        let own = layers(
            name.len() as u64 + u64::from(name.as_bytes()[13]),
            1,
            20_000,
        );
        let all = [base.clone(), own].concat();
        push(&registry, name, all)
    });
    for layer in &images[0].image.layers[..5] {
        proxy.on(On::blob(&layer.digest), Fault::Throttle(100_000));
    }
    let site = Site::start().await;
    let volumes = images
        .iter()
        .map(|one| site.kubelet.volume(&one.at(&proxy.address())))
        .collect();
    for mut volume in site.all_ready(volumes).await {
        let image = &volume.attributes[0].1;
        let pushed = images
            .iter()
            .find(|one| image.ends_with(&one.name))
            .unwrap();
        pushed.is_at(&pushed.name, &volume);
        site.kubelet.delete(&mut volume).await;
    }
    for layer in &images[0].image.layers[..5] {
        assert_eq!(proxy.bytes(&layer.digest), layer.size, "{}", layer.digest);
    }
    site.node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn no_more_is_fetched_at_once_than_the_operator_wants() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let pushed = push(&registry, "together/few:1", layers(403, 7, 20_000));
    let gate = super::registry::proxy::Gate::new();
    for layer in &pushed.image.layers {
        proxy.on(On::blob(&layer.digest), Fault::Hold(1000, gate.clone()));
    }
    let site = Site::with(&["--max-downloads-per-registry", "2"]).await;
    let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
    let open = async {
        super::until("two downloads", || gate.waiting() == 2).await;
        // A third would come by now.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let begun =
            |layer: &&super::support::oci_layout::Blob| proxy.requests("GET", &layer.digest) > 0;
        assert_eq!(pushed.image.layers.iter().filter(begun).count(), 2);
        gate.open();
    };
    tokio::join!(site.ready(&mut volume), open);
    pushed.is_at("two at a time", &volume);
    site.end(volume).await;
}
