use super::*;
use crate::image::testdata::{LayoutBuilder, chain, with};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Blobs in memory; notes what was read.
struct Memory {
    files: BTreeMap<String, Vec<u8>>,
    read: RefCell<Vec<Digest>>,
}

impl Memory {
    fn new(layout: LayoutBuilder) -> Self {
        Memory {
            files: layout.files,
            read: RefCell::default(),
        }
    }
}

impl Documents for Memory {
    fn load(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.read.borrow_mut().push(descriptor.digest);
        let name = format!("blobs/sha256/{}", descriptor.digest.hex());
        self.files
            .get(&name)
            .cloned()
            .ok_or_else(|| SourceError::MissingBlob {
                path: "memory".into(),
                digest: descriptor.digest,
            })
    }
}

fn descriptor(value: &Value) -> Descriptor {
    Descriptor {
        media_type: value["mediaType"].as_str().unwrap_or_default().to_owned(),
        digest: value["digest"].as_str().unwrap().parse().unwrap(),
        size: value["size"].as_u64().unwrap(),
    }
}

fn only(text: &str) -> PlatformChoice {
    PlatformChoice::Only(text.parse().unwrap())
}

/// The architecture that is found below `root`.
fn find(memory: &Memory, root: &Value, wanted: &str) -> Result<String, String> {
    resolve(memory, &descriptor(root), None, &only(wanted))
        .map(|found| found.platform.to_string())
        .map_err(|error| chain(&error))
}

fn platform(image: Value, architecture: &str, variant: &str) -> Value {
    with(
        image,
        "platform",
        json!({"os": "linux", "architecture": architecture, "variant": variant}),
    )
}

#[test]
fn index_with_platforms_reads_only_what_it_takes() {
    let mut layout = LayoutBuilder::default();
    let amd64 = platform(layout.image("linux", "amd64", &[b"a"]), "amd64", "");
    let arm64 = platform(layout.image("linux", "arm64", &[b"b"]), "arm64", "v8");
    // Named, but not there: only a part of the image was copied.
    let absent = json!({"digest": Digest::of(b"absent"), "size": 6});
    let s390x = platform(absent, "s390x", "");
    let attestation = with(
        layout.image("unknown", "unknown", &[b"c"]),
        "annotations",
        json!({"vnd.docker.reference.type": "attestation-manifest"}),
    );
    let root = layout.nested(&[s390x, attestation, amd64.clone(), arm64.clone()]);
    let memory = Memory::new(layout);
    assert_eq!(
        find(&memory, &root, "linux/arm64"),
        Ok("linux/arm64".to_owned())
    );
    assert_eq!(memory.read.borrow().len(), 3);
    assert_eq!(memory.read.borrow()[1], descriptor(&arm64).digest);
    let error = find(&memory, &root, "linux/riscv64").unwrap_err();
    assert_eq!(
        error,
        "image has nothing for linux/riscv64; it has linux/s390x, linux/amd64, linux/arm64"
    );
    let error = find(&memory, &root, "linux/s390x").unwrap_err();
    assert!(error.contains("is missing from"), "{error}");
    let error = find(&memory, &root, "unknown/unknown").unwrap_err();
    assert!(error.contains("nothing for unknown/unknown"), "{error}");
}

#[test]
fn the_nearest_variant_is_taken_whatever_the_order() {
    let mut layout = LayoutBuilder::default();
    let v5 = platform(layout.image("linux", "arm", &[b"5"]), "arm", "v5");
    let v6 = platform(layout.image("linux", "arm", &[b"6"]), "arm", "v6");
    let v7 = platform(layout.image("linux", "arm", &[b"7"]), "arm", "v7");
    let root = layout.nested(&[v5, v7, v6]);
    let memory = Memory::new(layout);
    assert_eq!(
        find(&memory, &root, "linux/arm/v8"),
        Ok("linux/arm/v7".to_owned())
    );
    assert_eq!(
        find(&memory, &root, "linux/arm/v6"),
        Ok("linux/arm/v6".to_owned())
    );
    assert_eq!(
        find(&memory, &root, "linux/arm/v5"),
        Ok("linux/arm/v5".to_owned())
    );
}

#[test]
fn entries_without_platform_are_judged_by_their_config() {
    let mut layout = LayoutBuilder::default();
    let amd64 = layout.image("linux", "amd64", &[b"a"]);
    let arm64 = layout.image("linux", "arm64", &[b"b"]);
    let artifact = layout.blob(
        "application/vnd.oci.image.manifest.v1+json",
        json!({"schemaVersion": 2, "artifactType": "a/signature", "layers": [], "config":
            {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2}})
        .to_string()
        .as_bytes(),
    );
    let root = layout.nested(&[artifact, amd64, arm64]);
    let memory = Memory::new(layout);
    assert_eq!(
        find(&memory, &root, "linux/arm64"),
        Ok("linux/arm64".to_owned())
    );
    let error = find(&memory, &root, "linux/386").unwrap_err();
    assert_eq!(
        error,
        "image has nothing for linux/386; it has a/signature, linux/amd64, linux/arm64"
    );
}

#[test]
fn a_single_manifest_is_taken_unless_a_platform_was_asked_for() {
    let mut layout = LayoutBuilder::default();
    let image = layout.image("linux", "mips", &[b"a", b"b"]);
    let memory = Memory::new(layout);
    let found = resolve(&memory, &descriptor(&image), None, &PlatformChoice::Host).unwrap();
    assert_eq!(found.platform.to_string(), "linux/mips");
    assert_eq!(found.rank, None);
    let image = found.into_image("name".to_owned());
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[1].diff_id, Digest::of(b"b"));
    assert_eq!(image.layers[1].digest, Some(Digest::of(b"b")));
    assert_eq!(image.config_digest, Digest::of(&image.config));
    let error = resolve(
        &memory,
        &Descriptor {
            media_type: String::new(),
            digest: image.manifest_digest,
            size: memory.files[&format!("blobs/sha256/{}", image.manifest_digest.hex())].len()
                as u64,
        },
        None,
        &only("linux/amd64"),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "image has nothing for linux/amd64; it has linux/mips"
    );
}

#[test]
fn nesting_ends_at_its_limit() {
    let mut layout = LayoutBuilder::default();
    let mut nested = layout.image("linux", "amd64", &[b"a"]);
    let mut roots = Vec::new();
    for _ in 0..=MAX_DEPTH {
        nested = layout.nested(&[nested]);
        roots.push(nested.clone());
    }
    let memory = Memory::new(layout);
    for root in &roots[..MAX_DEPTH] {
        assert_eq!(
            find(&memory, root, "linux/amd64"),
            Ok("linux/amd64".to_owned())
        );
    }
    let error = find(&memory, &roots[MAX_DEPTH], "linux/amd64").unwrap_err();
    assert!(error.contains("nested deeper than 4"), "{error}");
}

#[test]
fn indexes_side_by_side_are_not_nesting() {
    let mut layout = LayoutBuilder::default();
    let mut indexes = Vec::new();
    for number in 0..=MAX_DEPTH {
        let image = layout.image("linux", &format!("a{number}"), &[b"a"]);
        indexes.push(layout.nested(&[image]));
    }
    let root = layout.nested(&indexes);
    let wanted = format!("linux/a{MAX_DEPTH}");
    assert_eq!(find(&Memory::new(layout), &root, &wanted), Ok(wanted));
}

#[test]
fn much_of_the_same_is_read_once_and_much_else_is_refused() {
    let mut layout = LayoutBuilder::default();
    let mut wide = layout.image("linux", "mips", &[b"a"]);
    for _ in 0..MAX_DEPTH {
        wide = layout.nested(&vec![wide; 50]);
    }
    let images: Vec<Value> = (0..MAX_DOCUMENTS)
        .map(|n| layout.image("linux", &format!("a{n}"), &[b"a"]))
        .collect();
    let many = layout.nested(&images);
    let memory = Memory::new(layout);
    let error = find(&memory, &wide, "linux/amd64").unwrap_err();
    assert!(error.contains("it has linux/mips"), "{error}");
    assert_eq!(memory.read.borrow().len(), MAX_DEPTH + 2);
    let error = find(&memory, &many, "linux/amd64").unwrap_err();
    assert!(error.contains("more than 256 manifests"), "{error}");
}

#[test]
fn documents_are_verified() {
    let mut layout = LayoutBuilder::default();
    let image = layout.image("linux", "amd64", &[b"a"]);
    let root = layout.nested(&[platform(image.clone(), "amd64", "")]);
    let name = |value: &Value| format!("blobs/sha256/{}", descriptor(value).digest.hex());
    let files = layout.files;
    let found = |changed: BTreeMap<String, Vec<u8>>| {
        let memory = Memory {
            files: changed,
            read: RefCell::default(),
        };
        find(&memory, &root, "linux/amd64")
    };
    found(files.clone()).unwrap();
    let config: Value = serde_json::from_slice(&files[&name(&image)]).unwrap();
    for blob in [name(&root), name(&image), name(&config["config"])] {
        let mut changed = files.clone();
        let bytes = changed.get_mut(&blob).unwrap();
        let end = bytes.len() - 1;
        bytes[end] = b' ';
        let error = found(changed.clone()).unwrap_err();
        assert!(error.contains("has content with the digest"), "{error}");
        changed.get_mut(&blob).unwrap().push(b' ');
        let error = found(changed.clone()).unwrap_err();
        assert!(error.contains("bytes instead of"), "{error}");
        changed.remove(&blob);
        let error = found(changed).unwrap_err();
        assert!(error.contains("is missing"), "{error}");
    }
    let huge = with(root.clone(), "size", json!(MAX_DOCUMENT_BYTES + 1));
    let memory = Memory {
        files,
        read: RefCell::default(),
    };
    let error = find(&memory, &huge, "linux/amd64").unwrap_err();
    assert!(error.contains("more than 4194304"), "{error}");
    assert!(memory.read.borrow().is_empty());
}

#[test]
fn layer_counts_must_agree() {
    let mut layout = LayoutBuilder::default();
    let image = layout.image("linux", "amd64", &[b"a", b"b"]);
    let name = format!("blobs/sha256/{}", descriptor(&image).digest.hex());
    let mut manifest: Value = serde_json::from_slice(&layout.files[&name]).unwrap();
    manifest["layers"].as_array_mut().unwrap().pop();
    let root = layout.blob("", manifest.to_string().as_bytes());
    let error = find(&Memory::new(layout), &root, "linux/amd64").unwrap_err();
    assert!(
        error.contains("manifest has 1 layers, but the config has 2"),
        "{error}"
    );
}
