//! Connections that break: what came before is not fetched again.

use super::driver::names;
use super::registry::proxy::{Fault, On, Proxy};
use super::registry::server::Registry;
use super::site::{Numbers, Pushed, Site, layers, push};

/// Images, each of which is cut at least once.
const CUTS: u64 = 100;
/// Of them at once.
const AT_ONCE: usize = 10;

/// What an interrupted pull may fetch of what the image has.
fn is_little(proxy: &Proxy, pushed: &Pushed) {
    let (fetched, has) = (bytes_of(proxy, pushed), pushed.bytes());
    assert!(
        fetched * 10 <= has * 12,
        "{}: {fetched} bytes were fetched of {has}",
        pushed.name
    );
}

fn bytes_of(proxy: &Proxy, pushed: &Pushed) -> u64 {
    let layers = pushed.image.layers.iter();
    let blobs = layers.chain([&pushed.image.config]);
    blobs.map(|blob| proxy.bytes(&blob.digest)).sum()
}

#[tokio::test]
async fn a_hundred_cuts_at_random_offsets_cost_a_fifth_at_most() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let site = Site::start().await;
    let mut numbers = Numbers::new(7);
    let images: Vec<Pushed> = (0..CUTS)
        .map(|number| {
            let name = format!("resumed/cut-{number}:1");
            let pushed = push(&registry, &name, layers(1000 + number, 2, 150_000));
            let layers = &pushed.image.layers;
            let layer = &layers[numbers.below(layers.len() as u64) as usize];
            // Once, or again and again, each time a bit further; the first
            // and the last byte among the places.
            let cuts = 1 + number % 3;
            let mut places: Vec<u64> = (0..cuts).map(|_| numbers.below(layer.size)).collect();
            match number {
                0 => places = vec![0],
                1 => places = vec![layer.size - 1],
                _ => places.sort_unstable(),
            }
            for at in places {
                proxy.on(On::blob(&layer.digest).times(1), Fault::Cut(at));
            }
            pushed
        })
        .collect();
    for some in images.chunks(AT_ONCE) {
        let volumes = some
            .iter()
            .map(|pushed| site.kubelet.volume(&pushed.at(&proxy.address())))
            .collect();
        for mut volume in site.all_ready(volumes).await {
            let image = &volume.attributes[0].1;
            let pushed = some.iter().find(|one| image.ends_with(&one.name)).unwrap();
            pushed.is_at(&pushed.name, &volume);
            is_little(&proxy, pushed);
            site.kubelet.delete(&mut volume).await;
        }
        site.node.has_no_volumes("after some");
    }
    let resumed = proxy
        .exchanges()
        .iter()
        .filter(|one| one.status == 206)
        .count();
    assert!(
        resumed >= CUTS as usize - 1,
        "{resumed} parts were asked for"
    );
    let left = names(&site.node.store().join("blobs"));
    assert!(left.is_empty(), "what was fetched is not kept: {left:?}");
}

#[tokio::test]
async fn a_registry_without_ranges_gives_it_all_again() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let site = Site::start().await;
    // Of one that ignores them, and one that refuses them.
    for (number, fault) in [Fault::NoRange, Fault::status(416)].into_iter().enumerate() {
        let name = format!("resumed/whole-{number}:1");
        let pushed = push(&registry, &name, layers(1200 + number as u64, 2, 150_000));
        let layer = &pushed.image.layers[0];
        let cut = layer.size / 2;
        proxy.on(On::blob(&layer.digest).times(1), Fault::Cut(cut));
        proxy.on(On::blob(&layer.digest).times(1), fault);
        let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
        site.ready(&mut volume).await;
        pushed.is_at(&name, &volume);
        assert!(proxy.bytes(&layer.digest) <= cut + layer.size);
        site.end(volume).await;
    }
}

#[tokio::test]
async fn a_proxy_that_breaks_off_at_every_turn_is_got_the_better_of() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let site = Site::start().await;
    let pushed = push(&registry, "resumed/often:1", layers(1300, 1, 800_000));
    let layer = &pushed.image.layers[0];
    // Every connection brings a little; there is progress, and so no end.
    let step = layer.size / 12;
    for number in 1..12 {
        proxy.on(On::blob(&layer.digest).times(1), Fault::Cut(number * step));
    }
    let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
    site.ready(&mut volume).await;
    pushed.is_at("in twelve parts", &volume);
    assert_eq!(proxy.requests("GET", &layer.digest), 12);
    assert_eq!(proxy.bytes(&layer.digest), layer.size);
    site.end(volume).await;
}
