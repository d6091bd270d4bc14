use super::*;
use crate::image::digest::Digest;
use crate::image::testdata::{LayoutBuilder, chain, named, tar, with, write};
use crate::image::{self, Compression};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A layout on disk, as directory and as tar.
struct OnDisk {
    top: tempfile::TempDir,
}

impl OnDisk {
    fn new(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let top = tempfile::tempdir().unwrap();
        write(&top.path().join("layout"), files);
        std::fs::write(top.path().join("layout.tar"), tar(files)).unwrap();
        OnDisk { top }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.top.path().join("layout").join(name)
    }

    /// Opens both forms.
    fn sources(&self, selector: &str) -> Vec<Result<Box<dyn ImageSource>, SourceError>> {
        let top = self.top.path().display();
        [
            format!("oci:{top}/layout{selector}"),
            format!("oci-archive:{top}/layout.tar{selector}"),
        ]
        .iter()
        .map(|source| image::open(&source.parse().unwrap()))
        .collect()
    }

    /// The first layer's content that both forms agree on, or their error.
    fn first_layer(&self, selector: &str, choice: &PlatformChoice) -> Result<String, String> {
        let mut results = self.sources(selector).into_iter().map(|source| {
            let source = source.map_err(|error| chain(&error))?;
            let image = source.image(choice).map_err(|error| chain(&error))?;
            let mut text = String::new();
            let layer = source
                .open_layer(&image, 0)
                .map_err(|error| chain(&error))?;
            { layer }.read_to_string(&mut text).unwrap();
            Ok(text)
        });
        let first = results.next().unwrap();
        for other in results {
            match (&first, &other) {
                (Ok(first), Ok(other)) => assert_eq!(first, other),
                (Err(_), Err(_)) => {}
                _ => panic!("{first:?} and {other:?}"),
            }
        }
        first
    }
}

fn only(text: &str) -> PlatformChoice {
    PlatformChoice::Only(text.parse().unwrap())
}

#[test]
fn the_only_image_needs_no_tag() {
    let mut layout = LayoutBuilder::default();
    let image = layout.image("linux", "amd64", &[b"one", b"two"]);
    layout.index = vec![named(image.clone(), "v1")];
    let disk = OnDisk::new(&layout.finish());
    for source in disk.sources("") {
        let source = source.unwrap();
        let found = source.image(&only("linux/amd64")).unwrap();
        assert_eq!(
            found.manifest_digest.to_string(),
            image["digest"].as_str().unwrap()
        );
        assert_eq!(found.config_digest, Digest::of(&found.config));
        assert_eq!(found.platform.to_string(), "linux/amd64");
        assert!(found.name.starts_with("oci"), "{}", found.name);
        let expected: Vec<_> = [b"one", b"two"]
            .map(|bytes| image::LayerDescriptor {
                digest: Some(Digest::of(bytes)),
                diff_id: Digest::of(bytes),
                size: Some(3),
                compression: Compression::None,
                content: image::LayerContent::Tar,
            })
            .into();
        assert_eq!(found.layers, expected);
        // Layers can be read in any order and at the same time.
        let mut readers: Vec<_> = [1, 0]
            .map(|index| source.open_layer(&found, index).unwrap())
            .into();
        let texts: Vec<String> = readers
            .iter_mut()
            .map(|reader| {
                let mut text = String::new();
                reader.read_to_string(&mut text).unwrap();
                text
            })
            .collect();
        assert_eq!(texts, ["two", "one"]);
        let error = source.open_layer(&found, 2).err().unwrap().to_string();
        assert_eq!(error, "image has 2 layers, and layer 3 was asked for");
    }
}

#[test]
fn tags_and_digests_choose_among_several() {
    let mut layout = LayoutBuilder::default();
    let a = layout.image("linux", "amd64", &[b"a"]);
    let b = layout.image("linux", "amd64", &[b"b"]);
    let containerd = with(
        b.clone(),
        "annotations",
        json!({
            "org.opencontainers.image.ref.name": "v2",
            "io.containerd.image.name": "docker.io/library/b:v2",
        }),
    );
    let xml = json!({"mediaType": "application/xml", "digest": a["digest"], "size": 1});
    layout.index = vec![xml, named(a.clone(), "reg.io/a:v1"), containerd];
    let disk = OnDisk::new(&layout.finish());
    let choice = only("linux/amd64");
    for (selector, content) in [
        (":reg.io/a:v1", "a"),
        (":v2", "b"),
        (":docker.io/library/b:v2", "b"),
        (":b:v2", "b"),
        (&format!(":@{}", a["digest"].as_str().unwrap()), "a"),
    ] {
        assert_eq!(
            disk.first_layer(selector, &choice),
            Ok(content.to_owned()),
            "{selector}"
        );
    }
    let error = disk.first_layer("", &choice).unwrap_err();
    assert!(
        error.ends_with(
            "several images that fit; choose one of reg.io/a:v1, docker.io/library/b:v2"
        ),
        "{error}"
    );
    for selector in [
        ":v1",
        ":a:v1",
        ":v2:x",
        &format!(":@{}", Digest::of(b"none")),
    ] {
        let error = disk.first_layer(selector, &choice).unwrap_err();
        assert!(
            error.contains(&format!("has no image {:?}", &selector[1..]))
                && error.ends_with("it has reg.io/a:v1, docker.io/library/b:v2"),
            "{error}"
        );
    }
}

#[test]
fn one_image_under_several_tags_is_one_image() {
    let mut layout = LayoutBuilder::default();
    let image = layout.image("linux", "amd64", &[b"a"]);
    let index = layout.nested(std::slice::from_ref(&image));
    layout.index = vec![
        named(image.clone(), "v1"),
        named(image, "v2"),
        named(index, "v3"),
    ];
    let disk = OnDisk::new(&layout.finish());
    for selector in ["", ":v1", ":v2", ":v3"] {
        let content = disk.first_layer(selector, &only("linux/amd64"));
        assert_eq!(content, Ok("a".to_owned()), "{selector}");
    }
}

#[test]
fn the_platform_chooses_among_images_of_one_name() {
    let mut layout = LayoutBuilder::default();
    let arm = |image: Value, variant: &str| {
        let platform = json!({"os": "linux", "architecture": "arm", "variant": variant});
        named(with(image, "platform", platform), "v1")
    };
    let v6 = layout.image("linux", "arm", &[b"6"]);
    let v7 = layout.image("linux", "arm", &[b"7"]);
    let amd64 = layout.image("linux", "amd64", &[b"x"]);
    let other = layout.image("linux", "riscv64", &[b"r"]);
    layout.index = vec![
        arm(v6, "v6"),
        arm(v7, "v7"),
        named(amd64, "v1"),
        named(other, "v2"),
    ];
    let disk = OnDisk::new(&layout.finish());
    for (platform, content) in [
        ("linux/arm/v8", "7"),
        ("linux/arm/v7", "7"),
        ("linux/arm/v6", "6"),
        ("linux/amd64", "x"),
    ] {
        for selector in ["", ":v1"] {
            let found = disk.first_layer(selector, &only(platform));
            assert_eq!(found, Ok(content.to_owned()), "{platform} {selector}");
        }
    }
    let error = disk.first_layer("", &only("linux/s390x")).unwrap_err();
    assert_eq!(
        error,
        "image has nothing for linux/s390x; it has linux/arm/v6, linux/arm/v7, linux/amd64, linux/riscv64"
    );
    let error = disk.first_layer(":v2", &only("linux/amd64")).unwrap_err();
    assert_eq!(
        error,
        "image has nothing for linux/amd64; it has linux/riscv64"
    );
}

#[test]
fn an_older_variant_of_another_image_is_another_image() {
    let mut layout = LayoutBuilder::default();
    let new = layout.image("linux", "arm", &[b"new"]);
    let old = layout.image("linux", "arm", &[b"old"]);
    let v6 = json!({"os": "linux", "architecture": "arm", "variant": "v6"});
    layout.index = vec![named(new, "a"), named(with(old, "platform", v6), "b")];
    let disk = OnDisk::new(&layout.finish());
    let error = disk.first_layer("", &only("linux/arm/v7")).unwrap_err();
    assert!(error.ends_with("choose one of a, b"), "{error}");
}

#[test]
fn what_is_no_layout_is_refused() {
    let mut layout = LayoutBuilder::default();
    let image = layout.image("linux", "amd64", &[b"a"]);
    layout.index = vec![image.clone()];
    let good = layout.finish();
    let manifest_blob = blob_name(&image["digest"].as_str().unwrap().parse().unwrap());
    let without = |name: &str| {
        let mut files = good.clone();
        files.remove(name).unwrap();
        files
    };
    let changed = |name: &str, bytes: &str| {
        let mut files = good.clone();
        files.insert(name.to_owned(), bytes.as_bytes().to_vec());
        files
    };
    let layer_blob = blob_name(&Digest::of(b"a"));
    let cases = [
        (
            without("oci-layout"),
            "has no oci-layout; it is not an OCI image layout",
        ),
        (
            without("index.json"),
            "has no index.json; it is not an OCI image layout",
        ),
        (without(&manifest_blob), "is missing from"),
        (without(&layer_blob), "is missing from"),
        (changed("oci-layout", "{}"), "cannot use oci-layout"),
        (
            changed("oci-layout", r#"{"imageLayoutVersion":"2.0"}"#),
            "version \"2.0\"",
        ),
        (changed("index.json", "{}"), "has no images"),
        (
            changed("index.json", r#"{"manifests":null}"#),
            "has no images",
        ),
        (changed("index.json", "["), "cannot use index.json"),
        (
            changed(
                "index.json",
                &String::from_utf8_lossy(&good[&manifest_blob]),
            ),
            "but is a manifest",
        ),
        (changed(&manifest_blob, "{}"), "bytes instead of"),
        (changed(&layer_blob, "ab"), "has 2 bytes instead of 1"),
    ];
    for (files, part) in cases {
        let disk = OnDisk::new(&files);
        let error = disk.first_layer("", &only("linux/amd64")).unwrap_err();
        assert!(error.contains(part), "{part:?} expected: {error}");
    }
    let docker = BTreeMap::from([("manifest.json".to_owned(), b"[]".to_vec())]);
    let disk = OnDisk::new(&docker);
    let error = disk.sources("").remove(1).unwrap_err().to_string();
    assert!(error.ends_with("use docker-archive:"), "{error}");
    let directory = format!("oci-archive:{}", disk.path("").display());
    let error = image::open(&directory.parse().unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("is not a regular file"),
        "{error}"
    );
}

#[test]
fn a_layout_in_a_root_does_not_leave_it() {
    let mut layout = LayoutBuilder::default();
    let image = layout.image("linux", "amd64", &[b"secret"]);
    layout.index = vec![image];
    let disk = OnDisk::new(&layout.finish());
    let blob = disk.path(&blob_name(&Digest::of(b"secret")));
    let elsewhere = disk.top.path().join("elsewhere");
    std::fs::rename(&blob, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
    // The operator may link blobs to wherever they are.
    disk.sources("").remove(0).unwrap();
    let open = |root: &std::path::Path, path: &str| {
        let source = image::open_in_root(root, &format!("oci:{path}").parse().unwrap())?;
        let image = source.image(&PlatformChoice::Host)?;
        source.open_layer(&image, 0).map(drop)
    };
    let top = disk.top.path();
    let error = open(top, "layout").unwrap_err();
    assert!(matches!(error, SourceError::MissingBlob { .. }), "{error}");
    let error = open(&top.join("layout"), "../elsewhere").unwrap_err();
    assert!(matches!(error, SourceError::Open { .. }), "{error}");
    let error = open(top, "/etc").unwrap_err();
    assert!(matches!(error, SourceError::OutsideRoot { .. }), "{error}");
    // A relative link inside the root is as good as a file.
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("../../../elsewhere", &blob).unwrap();
    open(top, "layout").unwrap();
    open(top, &top.join("layout").display().to_string()).unwrap();
}

#[test]
fn a_registry_is_not_opened() {
    let error = image::open(&"busybox".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "an image of a registry has to be pulled");
    let root = std::path::Path::new("/");
    let error = image::open_in_root(root, &"busybox".parse().unwrap()).unwrap_err();
    assert!(matches!(error, SourceError::NotLocal), "{error}");
}
