//! What registries hold, whoever wrote it, and what becomes of it.

use super::registry::proxy::Proxy;
use super::registry::push::Repository;
use super::registry::run;
use super::registry::server::Registry;
use super::site::{Desk, Site, layers, push, push_as};
use super::support::entry::{dir, file};
use super::support::oci_layout::{OciLayout, native_architecture};
use super::support::tarball::{Compression, tars};
use std::fs;
use std::process::Command;
use tonic::Code;

#[tokio::test]
async fn every_compression_is_the_same_tree() {
    let registry = Registry::open();
    let site = Site::start().await;
    for (seed, compression) in [
        (1, Compression::None),
        (2, Compression::Gzip),
        (3, Compression::GzipMembers(3)),
        (4, Compression::Zstd),
    ] {
        let name = format!("forms/compressed:{seed}");
        let pushed = push_as(&registry, &name, layers(seed, 3, 50_000), compression);
        let mut volume = site.kubelet.volume(&pushed.at(registry.address()));
        site.ready(&mut volume).await;
        pushed.is_at(&name, &volume);
        site.end(volume).await;
    }
}

#[tokio::test]
async fn what_skopeo_makes_of_an_image_is_the_same_image() {
    let registry = Registry::open();
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let to = Repository::new(registry.address(), "forms/skopeo");
    for (seed, tag, options) in [
        (11, "docker", &["--format=v2s2"][..]),
        (12, "oci", &["--format=oci"]),
        (13, "zstd", &["--format=oci", "--dest-compress-format=zstd"]),
    ] {
        let layers = layers(seed, 3, 20_000);
        let mut layout = OciLayout::new(dir.path().join(tag));
        let image = layout.image("x", &tars(&layers), Compression::None);
        let from = format!("oci:{}:x", layout.path().display());
        to.skopeo(options, &from, tag);
        let name = format!("{}/forms/skopeo:{tag}", registry.address());
        let mut volume = site.kubelet.volume(&name);
        site.ready(&mut volume).await;
        let pushed = super::site::Pushed {
            name,
            layers,
            image,
        };
        pushed.is_at(tag, &volume);
        site.end(volume).await;
    }
}

#[tokio::test]
async fn what_buildah_builds_and_pushes_is_what_was_copied_into_it() {
    let registry = Registry::open();
    let site = Site::start().await;
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    let buildah = |arguments: &[&str]| {
        let output = run(Command::new("buildah")
            .args(["--storage-driver=vfs", "--root", &at("root")])
            .args(["--runroot", &at("runroot")])
            .args(arguments));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    fs::create_dir(home.path().join("content")).unwrap();
    fs::write(home.path().join("content/hello"), "from buildah").unwrap();
    // The program asks for one, and an empty one says nothing about anybody.
    fs::write(
        at("policy.json"),
        "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}",
    )
    .unwrap();
    let container = buildah(&["from", "scratch"]);
    buildah(&["copy", &container, &at("content"), "/opt"]);
    let policy = format!("--signature-policy={}", at("policy.json"));
    let image = format!("{}/forms/buildah:1", registry.address());
    for format in ["oci", "docker"] {
        let to = format!("docker://{image}-{format}");
        let form = format!("--format={format}");
        buildah(&[
            "commit",
            "--tls-verify=false",
            &policy,
            &form,
            &container,
            &to,
        ]);
        let mut volume = site.kubelet.volume(&format!("{image}-{format}"));
        site.ready(&mut volume).await;
        let text = fs::read_to_string(volume.target().join("opt/hello")).unwrap();
        assert_eq!(text, "from buildah");
        assert_eq!(fs::read_dir(volume.target()).unwrap().count(), 1);
        site.end(volume).await;
    }
}

#[tokio::test]
async fn the_nodes_platform_is_chosen_and_another_one_on_demand() {
    let registry = Registry::open();
    let site = Site::start().await;
    let other = match native_architecture() {
        "arm64" => "amd64",
        _ => "arm64",
    };
    let files = |name: &str| vec![vec![dir("d"), file("d/arch", name)]];
    let platforms = [
        (other, tars(&files(other))),
        (native_architecture(), tars(&files(native_architecture()))),
    ];
    let at = tempfile::tempdir().unwrap();
    let mut layout = OciLayout::new(at.path());
    layout.multi_platform("x", &platforms, Compression::Gzip);
    let index = Repository::new(registry.address(), "forms/platforms").layout(at.path(), "x");
    let image = format!("{}/forms/platforms", registry.address());
    for name in [format!("{image}:x"), format!("{image}@{index}")] {
        let mut own = site.kubelet.volume(&name);
        let mut foreign = site
            .kubelet
            .volume(&name)
            .with("platform", &format!("linux/{other}"));
        let mut missing = site.kubelet.volume(&name).with("platform", "linux/s390x");
        for (volume, expected) in [(&mut own, native_architecture()), (&mut foreign, other)] {
            site.ready(volume).await;
            let text = fs::read_to_string(volume.target().join("d/arch")).unwrap();
            assert_eq!(text, expected);
        }
        let status = site.refused(&mut missing).await;
        assert!(status.message().contains("s390x"), "{status:?}");
        site.kubelet.delete(&mut own).await;
        site.kubelet.delete(&mut foreign).await;
        site.kubelet.delete(&mut missing).await;
        site.node.has_no_volumes(&name);
    }
}

#[tokio::test]
async fn a_digest_decides_whatever_the_tag_says() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let site = Site::start().await;
    let pushed = push(&registry, "forms/digest:1", layers(21, 2, 20_000));
    let digest = &pushed.image.manifest.digest;
    for name in [
        format!("forms/digest@{digest}"),
        format!("forms/digest:no-such-tag@{digest}"),
    ] {
        let mut volume = site.kubelet.volume(&format!("{}/{name}", proxy.address()));
        site.ready(&mut volume).await;
        pushed.is_at(&name, &volume);
        site.end(volume).await;
    }
    assert_eq!(proxy.requests("", "no-such-tag"), 0);
}

#[tokio::test]
async fn an_artifact_of_plain_files_is_a_tree_of_them() {
    let registry = Registry::open();
    let site = Site::start().await;
    let files: [(&str, &[u8]); 3] = [
        ("model.bin", &[7; 100_000]),
        ("conf/settings.json", b"{}"),
        ("README", b"read me"),
    ];
    Repository::new(registry.address(), "forms/artifact").artifact("1", &files);
    let mut volume = site
        .kubelet
        .volume(&format!("{}/forms/artifact:1", registry.address()));
    site.ready(&mut volume).await;
    for (name, bytes) in files {
        assert_eq!(
            fs::read(volume.target().join(name)).unwrap(),
            bytes,
            "{name}"
        );
    }
    assert_eq!(fs::read_dir(volume.target()).unwrap().count(), 3);
    site.end(volume).await;

    // A title that leads elsewhere.
    for title in ["../escaped", "/etc/escaped", "a/../../escaped", ""] {
        let bad = Repository::new(registry.address(), "forms/bad");
        bad.artifact("1", &[(title, b"x")]);
        let mut volume = site
            .kubelet
            .volume(&format!("{}/forms/bad:1", registry.address()));
        match site.kubelet.set_up(&mut volume).await {
            // Inside of the volume or not at all.
            Ok(()) => assert!(!volume.dir().join("escaped").exists(), "{title}"),
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{status:?}"),
        }
        site.end(volume).await;
    }
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let registry = Registry::open();
    let site = Site::start().await;
    push(&registry, "forms/some:1", layers(31, 1, 1000));
    for name in ["forms/some:2", "forms/none:1"] {
        let image = format!("{}/{name}", registry.address());
        let mut volume = site.kubelet.volume(&image);
        let status = site.refused(&mut volume).await;
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().contains(name), "{status:?}");
        site.end(volume).await;
    }
}

#[test]
fn the_command_line_stages_from_a_registry() {
    let registry = Registry::open();
    let proxy = Proxy::to(registry.address());
    let pushed = push(&registry, "forms/command:1", layers(41, 3, 20_000));
    let desk = Desk::new();
    for (image, fetched) in [
        (format!("docker://{}", pushed.at(&proxy.address())), 3),
        (pushed.at(&proxy.address()), 0),
    ] {
        let staged = desk.stage(&[&image]);
        assert_eq!(staged[0]["manifest"], pushed.image.manifest.digest.as_str());
        assert_eq!(staged[0]["layers"], 3);
        assert_eq!(staged[0]["fetched"], fetched, "{image}");
    }
    for layer in &pushed.image.layers {
        assert_eq!(proxy.bytes(&layer.digest), layer.size);
    }
    assert_eq!(super::driver::names(&desk.path("store/diff")).len(), 3);
    let left = super::driver::names(&desk.path("store/blobs"));
    assert!(left.is_empty(), "what was fetched is not kept: {left:?}");
}
