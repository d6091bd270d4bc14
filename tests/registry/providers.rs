//! Credential providers: the programs that a node's kubelet has for registries
//! whose passwords last for hours.

use super::in_time;
use super::registry::server::{Auth, PASSWORD, Registry, USER};
use super::site::{Site, layers, push};
use aufs_csi::layer::collect::{Aim, Marks};
use aufs_csi::volume::CollectSettings;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Code;

/// A provider that answers with a file and counts how often it is asked.
struct Provider {
    dir: tempfile::TempDir,
}

impl Provider {
    fn new(registry: &str) -> Self {
        let it = Provider {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(it.path("bin")).unwrap();
        let script = format!(
            "#!/bin/sh\ncat >>{dir}/asked\necho >>{dir}/asked\nexec cat {dir}/answer\n",
            dir = it.dir.path().display()
        );
        fs::write(it.path("bin/vault"), script).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(it.path("bin/vault"), mode).unwrap();
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": [{
                "name": "vault",
                "matchImages": [registry],
                "defaultCacheDuration": "1h",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            }],
        });
        fs::write(it.path("config"), config.to_string()).unwrap();
        it
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it answers from now on, for a registry.
    fn knows(&self, registry: &str, password: &str, cached: &str) {
        let answer = json!({
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "kind": "CredentialProviderResponse",
            "cacheKeyType": "Registry",
            "cacheDuration": cached,
            "auth": {registry: {"username": USER, "password": password}},
        });
        fs::write(self.path("answer"), answer.to_string()).unwrap();
    }

    fn asked(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path("asked")).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    async fn site(&self) -> Site {
        self.site_with(&[]).await
    }

    /// With further options of the plugin.
    async fn site_with(&self, flags: &[&str]) -> Site {
        let shown = |path: &Path| path.display().to_string();
        let (config, bin) = (shown(&self.path("config")), shown(&self.path("bin")));
        let providers = [
            "--image-credential-provider-config",
            &config,
            "--image-credential-provider-bin-dir",
            &bin,
        ];
        Site::with(&[&providers, flags].concat()).await
    }
}

#[tokio::test]
async fn a_provider_is_asked_once_for_many_pods_of_a_registry() {
    let open = Registry::open();
    let images = [951, 952].map(|seed| {
        push(
            &open,
            &format!("providers/app:{seed}"),
            layers(seed, 2, 20_000),
        )
    });
    let locked = open.with_auth(Auth::Basic);
    let provider = Provider::new(locked.address());
    provider.knows(locked.address(), PASSWORD, "1h");
    let site = provider.site().await;
    let volumes = [0, 1, 0, 1].map(|at: usize| {
        let volume = site.kubelet.volume(&images[at].at(locked.address()));
        volume.with("pullPolicy", "Always")
    });
    for mut volume in site.all_ready(volumes.to_vec()).await {
        let image = &volume.attributes[0].1;
        let pushed = images
            .iter()
            .find(|one| image.ends_with(&one.name))
            .unwrap();
        pushed.is_at(&pushed.name, &volume);
        site.kubelet.delete(&mut volume).await;
    }
    let asked = provider.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0]["kind"], "CredentialProviderRequest");
    let image = asked[0]["image"].as_str().unwrap();
    assert!(image.starts_with(locked.address()), "{image}");
    site.node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn what_is_prefetched_comes_with_the_nodes_credentials_and_stays() {
    let open = Registry::open();
    let pushed = push(&open, "providers/early:1", layers(954, 2, 20_000));
    let locked = open.with_auth(Auth::Basic);
    let provider = Provider::new(locked.address());
    provider.knows(locked.address(), PASSWORD, "1h");
    let image = pushed.at(locked.address());
    let site = provider.site_with(&["--prefetch", &image]).await;
    let volumes = &site.node.test.volumes;
    in_time("the image before any pod", async {
        while volumes.images().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let name = format!("docker://{image}");
    in_time("the pin", async {
        while volumes.images().unwrap()[0].kept != [format!("prefetch of {name}")] {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    // Without a minimum age, and although nobody uses it.
    let settings = CollectSettings {
        marks: Marks {
            min_age: Duration::ZERO,
            ..Marks::default()
        },
        prefetch: Vec::new(),
    };
    volumes.set_collection(settings);
    let collect = volumes.collect(Aim::All, true).unwrap().unwrap();
    assert_eq!(volumes.images().unwrap().len(), 1, "{collect:?}");
    // A pod needs access all the same; its node has it.
    let mut volume = site.kubelet.volume(&image);
    site.ready(&mut volume).await;
    pushed.is_at("prefetched", &volume);
    site.kubelet.delete(&mut volume).await;
    // When the plugin ends, so does its list.
    let Site { node, driver, .. } = site;
    drop(driver);
    node.test.volumes.collect(Aim::All, true).unwrap();
    let left = node.test.volumes.images().unwrap();
    assert!(left.is_empty(), "{left:?}");
    let access = node.test.path().join("store/access");
    let layers = fs::read_dir(access).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".layer.json")
    });
    assert_eq!(layers.count(), 0, "who delivered layers that are gone");
}

#[tokio::test]
async fn a_provider_whose_password_is_wrong_is_named_and_asked_again() {
    let open = Registry::open();
    let pushed = push(&open, "providers/wrong:1", layers(953, 1, 20_000));
    let locked = open.with_auth(Auth::Basic);
    let provider = Provider::new(locked.address());
    provider.knows(locked.address(), "planted-wrong-password", "0s");
    let site = provider.site().await;
    let mut volume = site.kubelet.volume(&pushed.at(locked.address()));
    let status = site.refused(&mut volume).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("vault"), "{status:?}");
    assert!(!status.message().contains("planted"), "{status:?}");
    // What is no answer at all does not stand in the way of anybody.
    fs::write(provider.path("answer"), "planted-garbage").unwrap();
    let status = site.refused(&mut volume).await;
    assert!(!status.message().contains("planted"), "{status:?}");
    let mut own = volume.clone().with_login(locked.address(), USER, PASSWORD);
    site.ready(&mut own).await;
    site.kubelet.delete(&mut own).await;
    // It comes right again. One that failed is left alone for a while.
    provider.knows(locked.address(), PASSWORD, "0s");
    let mut volume = volume.with("pullPolicy", "Always");
    in_time("the provider's password", async {
        while let Err(status) = site.kubelet.set_up(&mut volume).await {
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    pushed.is_at("with the provider's", &volume);
    assert!(!site.driver.log().contains("planted"));
    site.end(volume).await;
}
