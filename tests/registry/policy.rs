//! When the registry is asked, and what a volume keeps.

use super::fake::Volume;
use super::registry::proxy::{Fault, On, Proxy};
use super::registry::server::{Auth, PASSWORD, Registry, USER};
use super::site::{Pushed, Site, layers, push};
use std::time::Duration;
use tonic::Code;

/// A tag that leads to one image and, when it is moved, to another.
struct Tag {
    registry: Registry,
    proxy: Proxy,
    name: &'static str,
}

impl Tag {
    fn new(name: &'static str) -> Self {
        let registry = Registry::open();
        let proxy = Proxy::to(registry.address());
        Tag {
            registry,
            proxy,
            name,
        }
    }

    fn leads_to(&self, seed: u64) -> Pushed {
        push(&self.registry, self.name, layers(seed, 2, 30_000))
    }

    fn image(&self) -> String {
        format!("{}/{}", self.proxy.address(), self.name)
    }

    /// A volume that was told what it gets, and whose layers do not come.
    async fn promises(&self, pushed: &Pushed, site: &Site) -> Volume {
        for layer in &pushed.image.layers {
            self.proxy.on(On::blob(&layer.digest), Fault::status(503));
        }
        let mut volume = site
            .kubelet
            .volume(&self.image())
            .with("pullPolicy", "Always");
        while self.proxy.requests("GET", &pushed.image.layers[0].digest) == 0 {
            let short = Duration::from_millis(500);
            site.kubelet
                .set_up_within(&mut volume, short)
                .await
                .unwrap_err();
        }
        volume
    }
}

#[tokio::test]
async fn a_tag_is_asked_for_always_or_if_it_is_not_here() {
    let tag = Tag::new("policy/app:1");
    let site = Site::start().await;
    let first = tag.leads_to(701);
    let mut one = site.kubelet.volume(&tag.image());
    site.ready(&mut one).await;
    first.is_at("at first", &one);

    let second = tag.leads_to(702);
    tag.proxy.forget();
    let mut same = site.kubelet.volume(&tag.image());
    site.ready(&mut same).await;
    first.is_at("it is here", &same);
    assert_eq!(tag.proxy.exchanges().len(), 0, "nobody is asked");

    for (key, value) in [("pullPolicy", "Always"), ("pullAlways", "true")] {
        let mut new = site.kubelet.volume(&tag.image()).with(key, value);
        site.ready(&mut new).await;
        second.is_at(value, &new);
        site.kubelet.delete(&mut new).await;
    }
    // What is here already is not fetched once more.
    for layer in &second.image.layers {
        assert_eq!(tag.proxy.requests("GET", &layer.digest), 1);
    }
    // Those that live have what they had.
    first.is_at("the first pod", &one);
    for mut volume in [one, same] {
        site.kubelet.delete(&mut volume).await;
    }
    site.node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn latest_is_asked_for_always() {
    for name in ["policy/app:latest", "policy/app"] {
        let tag = Tag::new("policy/app:latest");
        let site = Site::start().await;
        let image = format!("{}/{name}", tag.proxy.address());
        for seed in [711, 712] {
            let pushed = tag.leads_to(seed);
            let mut volume = site.kubelet.volume(&image);
            site.ready(&mut volume).await;
            pushed.is_at(name, &volume);
            site.end(volume).await;
        }
    }
}

#[tokio::test]
async fn without_the_registry_what_is_here_is_given_unless_it_is_to_be_asked() {
    let mut tag = Tag::new("policy/away:1");
    let site = Site::start().await;
    let pushed = tag.leads_to(721);
    let pod = |policy: &str| site.kubelet.volume(&tag.image()).with("pullPolicy", policy);
    let mut never = pod("Never");
    let status = site.refused(&mut never).await;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains("Never"), "{status:?}");
    assert_eq!(tag.proxy.exchanges().len(), 0, "nobody is asked");
    let mut first = pod("IfNotPresent");
    site.ready(&mut first).await;
    let mut volumes = vec![first];
    let mut asked = pod("Always");
    let rest = [pod("Never"), pod("IfNotPresent")];
    tag.registry.stop();
    for mut volume in rest {
        site.ready(&mut volume).await;
        pushed.is_at("the registry is away", &volume);
        volumes.push(volume);
    }
    let status = site.refused(&mut asked).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // It comes back, and kubelet has asked again all the time.
    tag.registry.resume();
    site.ready(&mut asked).await;
    volumes.push(asked);
    for mut volume in volumes {
        site.kubelet.delete(&mut volume).await;
    }
    site.node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_volume_keeps_the_digest_that_it_was_first_given() {
    for is_restarted in [false, true] {
        let tag = Tag::new("policy/moving:1");
        let mut site = Site::start().await;
        let first = tag.leads_to(731);
        let mut volume = tag.promises(&first, &site).await;
        let second = tag.leads_to(732);
        if is_restarted {
            site.driver.kill();
            site.again().await;
        }
        tag.proxy.heal();
        site.ready(&mut volume).await;
        first.is_at("what it was promised", &volume);
        // Another pod is another matter.
        let mut other = site
            .kubelet
            .volume(&tag.image())
            .with("pullPolicy", "Always");
        site.ready(&mut other).await;
        second.is_at("what the tag is now", &other);
        site.kubelet.delete(&mut other).await;
        site.end(volume).await;
    }
}

#[tokio::test]
async fn a_promise_ends_when_the_registry_has_nothing_to_keep_it_with() {
    let tag = Tag::new("policy/pruned:1");
    let mut site = Site::start().await;
    let first = tag.leads_to(733);
    let mut volume = tag.promises(&first, &site).await;
    let second = tag.leads_to(734);
    // The pull that runs has the manifest.
    site.driver.kill();
    site.again().await;
    tag.proxy.heal();
    let pruned = format!("manifests/{}", first.image.manifest.digest);
    tag.proxy.on(On::path(&pruned), Fault::status(404));
    let status = site.refused(&mut volume).await;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    site.ready(&mut volume).await;
    second.is_at("what the tag is now", &volume);
    site.end(volume).await;
}

#[tokio::test]
async fn what_was_promised_to_one_volume_is_not_what_the_tag_means_to_others() {
    let mut tag = Tag::new("policy/moved:1");
    let site = Site::start().await;
    let first = tag.leads_to(736);
    let mut promised = tag.promises(&first, &site).await;
    let second = tag.leads_to(737);
    tag.proxy.heal();
    let mut moved = site
        .kubelet
        .volume(&tag.image())
        .with("pullPolicy", "Always");
    site.ready(&mut moved).await;
    second.is_at("what the tag is now", &moved);
    // The first image comes by its digest, so the promise is kept from the store.
    let by_digest = format!(
        "{}/policy/moved@{}",
        tag.proxy.address(),
        first.image.manifest.digest
    );
    let mut exact = site.kubelet.volume(&by_digest);
    site.ready(&mut exact).await;
    site.ready(&mut promised).await;
    first.is_at("what it was promised", &promised);
    // With nobody left to ask, the tag is what it was last seen to be.
    tag.registry.stop();
    let mut last = site
        .kubelet
        .volume(&tag.image())
        .with("pullPolicy", "Never");
    site.ready(&mut last).await;
    second.is_at("what the tag was last", &last);
    for mut volume in [promised, moved, exact] {
        site.kubelet.delete(&mut volume).await;
    }
    site.end(last).await;
}

#[tokio::test]
async fn a_volume_that_is_mounted_is_confirmed_without_asking_anybody() {
    let open = Registry::open();
    let pushed = push(&open, "policy/live:1", layers(741, 2, 30_000));
    let mut locked = open.with_auth(Auth::Basic);
    let site = Site::start().await;
    let mut volume = site
        .kubelet
        .volume(&pushed.at(locked.address()))
        .with("pullPolicy", "Always")
        .with_login(locked.address(), USER, PASSWORD);
    site.ready(&mut volume).await;
    locked.stop();
    // As a kubelet that starts; by now with another secret.
    site.kubelet.replay(&volume).await.unwrap();
    let host = locked.address().to_owned();
    let replayed = volume.clone().with_login(&host, USER, "not-the-password");
    site.kubelet.replay(&replayed).await.unwrap();
    site.end(volume).await;
}

#[tokio::test]
async fn registries_that_the_operator_does_not_allow_are_not_even_asked() {
    let tag = Tag::new("policy/allowed:1");
    tag.leads_to(751);
    let site = Site::with(&["--allow-registry", "good.example"]).await;
    let mut volume = site.kubelet.volume(&tag.image());
    let status = site.refused(&mut volume).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("operator"), "{status:?}");
    assert_eq!(tag.proxy.exchanges().len(), 0);
    site.end(volume).await;
    drop(site);

    let here = format!(
        "127.0.0.1:{}",
        tag.proxy.address().rsplit(':').next().unwrap()
    );
    for glob in [here.as_str(), "127.0.0.1:*"] {
        let site =
            Site::with(&["--allow-registry", "good.example", "--allow-registry", glob]).await;
        let mut volume = site.kubelet.volume(&tag.image());
        site.ready(&mut volume).await;
        site.end(volume).await;
    }
}
