//! Pulls that nobody waits for to the end: the plugin is killed, or its caller
//! leaves.

use super::fake::State;
use super::registry::proxy::{Fault, Gate, On, Proxy};
use super::registry::server::Registry;
use super::site::{Pushed, Site, layers, push};
use super::{in_time, until};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tonic::Code;

/// Longer than it takes until the plugin is at work on a call.
const SHORT: Duration = Duration::from_millis(500);

/// An image whose layers come to two thirds and no further.
struct Held {
    _registry: Registry,
    proxy: Proxy,
    pushed: Pushed,
    gate: Gate,
}

impl Held {
    fn new(seed: u64) -> Self {
        let registry = Registry::open();
        let proxy = Proxy::to(registry.address());
        let pushed = push(&registry, "killed/app:1", layers(seed, 3, 1_000_000));
        let gate = Gate::new();
        for layer in &pushed.image.layers {
            let at = layer.size * 2 / 3;
            proxy.on(On::blob(&layer.digest), Fault::Hold(at, gate.clone()));
        }
        Held {
            _registry: registry,
            proxy,
            pushed,
            gate,
        }
    }

    /// Waits until all has come that will.
    async fn is_held(&self) {
        let layers = self.pushed.image.layers.len();
        until("the layers that are held", || self.gate.waiting() == layers).await;
    }

    /// Waits until nearly all that came is on disk.
    async fn is_on_disk(&self, store: &Path) {
        let came = self.proxy.bytes("/blobs/");
        until("what came on disk", || {
            bytes_in(&store.join("blobs")) * 20 >= came * 19
        })
        .await;
    }
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

#[tokio::test]
async fn a_plugin_that_is_killed_in_the_middle_goes_on_from_there() {
    let held = Held::new(501);
    let mut site = Site::start().await;
    let store = site.node.store();
    let mut volume = site.kubelet.volume(&held.pushed.at(&held.proxy.address()));
    let kubelet = site.kubelet.clone();
    let killing = async {
        held.is_held().await;
        held.is_on_disk(&store).await;
        site.driver.kill();
    };
    let (result, ()) = tokio::join!(kubelet.set_up(&mut volume), killing);
    assert_eq!(result.unwrap_err().code(), Code::Unavailable);
    assert_eq!(volume.state, State::Uncertain);
    held.proxy.heal();
    site.again().await;
    site.ready(&mut volume).await;
    held.pushed.is_at("after the kill", &volume);
    let (fetched, has) = (held.proxy.bytes("/blobs/"), held.pushed.bytes());
    assert!(fetched * 10 <= has * 12, "{fetched} bytes of {has}");
    site.end(volume).await;
    assert_eq!(bytes_in(&store.join("blobs")), 0, "nothing is kept");
}

#[tokio::test]
async fn what_was_fetched_and_damaged_on_disk_meanwhile_is_fetched_again() {
    let held = Held::new(502);
    let mut site = Site::start().await;
    let store = site.node.store();
    let mut volume = site.kubelet.volume(&held.pushed.at(&held.proxy.address()));
    let kubelet = site.kubelet.clone();
    let killing = async {
        held.is_held().await;
        held.is_on_disk(&store).await;
        site.driver.kill();
    };
    let (result, ()) = tokio::join!(kubelet.set_up(&mut volume), killing);
    result.unwrap_err();
    for entry in fs::read_dir(store.join("blobs")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if let Some(byte) = bytes.get_mut(100_000) {
            *byte ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    held.proxy.heal();
    site.again().await;
    site.ready(&mut volume).await;
    held.pushed.is_at("after the damage", &volume);
    site.end(volume).await;
}

/// Asks for the volume and leaves before it is there.
async fn leave(site: &Site, volume: &mut super::Volume) {
    let status = site.kubelet.set_up_within(volume, SHORT).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_pull_outlives_its_caller_and_the_next_one_joins_it() {
    let held = Held::new(503);
    let site = Site::start().await;
    let mut volume = site.kubelet.volume(&held.pushed.at(&held.proxy.address()));
    while held.gate.waiting() < 3 {
        leave(&site, &mut volume).await;
    }
    held.gate.open();
    site.ready(&mut volume).await;
    held.pushed.is_at("afterwards", &volume);
    for layer in &held.pushed.image.layers {
        assert_eq!(held.proxy.requests("GET", &layer.digest), 1);
    }
    site.end(volume).await;
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_ends_and_what_it_has_is_kept() {
    let held = Held::new(504);
    let site = Site::with(&["--abandoned-after", "1s"]).await;
    let mut volume = site.kubelet.volume(&held.pushed.at(&held.proxy.address()));
    let call = site.kubelet.clone();
    let mut asked = volume.clone();
    asked.make_dirs();
    tokio::select! {
        result = call.set_up(&mut asked) => panic!("it is held: {result:?}"),
        () = held.is_held() => {}
    }
    // The call was dropped, which closed its connection.
    until("the end of the pull", || {
        held.proxy.exchanges().iter().filter(|one| one.left).count() == 3
    })
    .await;
    held.proxy.heal();
    site.ready(&mut volume).await;
    held.pushed.is_at("asked for again", &volume);
    let (fetched, has) = (held.proxy.bytes("/blobs/"), held.pushed.bytes());
    assert!(fetched * 10 <= has * 12, "{fetched} bytes of {has}");
    site.end(volume).await;
}

#[tokio::test]
async fn a_pod_that_is_deleted_does_not_wait_for_its_pull() {
    let held = Held::new(505);
    let site = Site::start().await;
    let mut volume = site.kubelet.volume(&held.pushed.at(&held.proxy.address()));
    while held.gate.waiting() < 3 {
        leave(&site, &mut volume).await;
    }
    // The gate is closed all the time.
    in_time("the end of the pod", site.kubelet.delete(&mut volume)).await;
    site.node.has_no_volumes("without the pull's end");
    held.gate.open();
    // Its image is good for the next one, whether that pull was ended or not.
    held.proxy.heal();
    let mut next = site.kubelet.volume(&held.pushed.at(&held.proxy.address()));
    site.ready(&mut next).await;
    held.pushed.is_at("the next pod", &next);
    site.end(next).await;
}

#[tokio::test]
async fn a_plugin_that_is_told_to_end_does_so_in_the_middle_of_a_pull() {
    let held = Held::new(506);
    let mut site = Site::start().await;
    let mut volume = site.kubelet.volume(&held.pushed.at(&held.proxy.address()));
    let kubelet = site.kubelet.clone();
    let ending = async {
        held.is_held().await;
        site.driver.terminate();
        site.driver.ended().await
    };
    let (result, status) = tokio::join!(kubelet.set_up(&mut volume), ending);
    assert_eq!(result.unwrap_err().code(), Code::Unavailable);
    assert_eq!(status.code(), Some(0), "{status}");
    held.proxy.heal();
    site.again().await;
    site.ready(&mut volume).await;
    held.pushed.is_at("after the restart", &volume);
    site.end(volume).await;
}
