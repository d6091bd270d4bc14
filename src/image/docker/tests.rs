use crate::image::digest::Digest;
use crate::image::platform::PlatformChoice;
use crate::image::testdata::{chain, member, tar};
use crate::image::{self, Compression, Image, ImageSource, SourceError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;

/// Opens an archive made of these bytes.
fn open(bytes: &[u8], selector: &str) -> Result<Box<dyn ImageSource>, SourceError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let source = format!("docker-archive:{}{selector}", file.path().display());
    // The source keeps the file open, its name is not needed again.
    image::open(&source.parse().unwrap())
}

fn image_of(bytes: &[u8], selector: &str) -> Result<Image, String> {
    open(bytes, selector)
        .and_then(|source| source.image(&PlatformChoice::Host))
        .map_err(|error| chain(&error))
}

/// What the layers of an image hold.
fn contents(bytes: &[u8], selector: &str) -> Result<Vec<String>, String> {
    let image = image_of(bytes, selector)?;
    let source = open(bytes, selector).map_err(|error| chain(&error))?;
    let layers = (0..image.layers.len()).map(|index| {
        let mut text = String::new();
        let layer = source
            .open_layer(&image, index)
            .map_err(|error| chain(&error))?;
        { layer }.read_to_string(&mut text).unwrap();
        Ok(text)
    });
    layers.collect()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({"os": "linux", "architecture": "s390x", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

/// Adds an image in the form of Docker 1.10; gives its entry.
fn add(files: &mut BTreeMap<String, Vec<u8>>, tags: &[&str], layers: &[&[u8]]) -> Value {
    let config = config(layers);
    let name = format!("{}.json", Digest::of(&config).hex());
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("{}/layer.tar", Digest::of(layer).hex());
        files.insert(name.clone(), layer.to_vec());
        names.push(name);
    }
    files.insert(name.clone(), config);
    json!({"Config": name, "RepoTags": tags, "Layers": names})
}

fn archive(mut files: BTreeMap<String, Vec<u8>>, entries: &[Value]) -> Vec<u8> {
    let manifest = Value::from(entries.to_vec()).to_string();
    files.insert("manifest.json".to_owned(), manifest.into_bytes());
    tar(&files)
}

#[test]
fn images_are_read_and_known_by_their_config() {
    let mut files = BTreeMap::new();
    let entry = add(&mut files, &["app:1"], &[b"one", b"two", b"one"]);
    let bytes = archive(files, &[entry]);
    let image = image_of(&bytes, "").unwrap();
    assert_eq!(image.config, config(&[b"one", b"two", b"one"]));
    assert_eq!(image.config_digest, Digest::of(&image.config));
    assert_eq!(image.manifest_digest, image.config_digest);
    assert_eq!(image.platform.to_string(), "linux/s390x");
    let layer = &image.layers[1];
    assert_eq!(
        (layer.digest, layer.diff_id, layer.size, layer.compression),
        (None, Digest::of(b"two"), Some(3), Compression::Sniff)
    );
    let expected = ["one", "two", "one"].map(str::to_owned);
    assert_eq!(contents(&bytes, "").unwrap(), expected);
    let source = open(&bytes, "").unwrap();
    let error = source.open_layer(&image, 3).err().unwrap();
    assert!(matches!(
        error,
        SourceError::LayerIndex {
            index: 3,
            layers: 3
        }
    ));
    let choice = PlatformChoice::Only("linux/amd64".parse().unwrap());
    let error = source.image(&choice).unwrap_err().to_string();
    assert_eq!(
        error,
        "image has nothing for linux/amd64; it has linux/s390x"
    );
}

#[test]
fn names_and_places_choose_among_several() {
    let mut files = BTreeMap::new();
    let a = add(&mut files, &["app:1", "reg.io:5/app:1"], &[b"a"]);
    let b = add(&mut files, &["app:2"], &[b"b"]);
    let mut untagged = add(&mut files, &[], &[b"c"]);
    untagged["RepoTags"] = Value::Null;
    let bytes = archive(files, &[a, b, untagged]);
    for (selector, content) in [
        (":app:1", "a"),
        (":docker.io/library/app:1", "a"),
        (":reg.io:5/app:1", "a"),
        (":app:2", "b"),
        (":@0", "a"),
        (":@2", "c"),
    ] {
        assert_eq!(contents(&bytes, selector).unwrap(), [content], "{selector}");
    }
    let listed = "app:1 (@0), app:2 (@1), @2";
    let error = image_of(&bytes, "").unwrap_err();
    assert!(
        error.ends_with(&format!("choose one of {listed}")),
        "{error}"
    );
    for selector in [":app", ":@3", ":other:1"] {
        let error = image_of(&bytes, selector).unwrap_err();
        assert!(
            error.ends_with(&format!("it has {listed}")),
            "{selector}: {error}"
        );
    }
}

#[test]
fn a_name_given_twice_means_the_later_image() {
    let mut files = BTreeMap::new();
    let earlier = add(&mut files, &["app:1"], &[b"earlier"]);
    let later = add(&mut files, &["app:1"], &[b"later"]);
    let bytes = archive(files, &[earlier, later]);
    assert_eq!(contents(&bytes, ":app:1").unwrap(), ["later"]);
}

#[test]
fn forms_of_other_tools_are_read() {
    let layers: [&[u8]; 2] = [b"one", b"two"];
    let config = config(&layers);
    let hex = |bytes: &[u8]| Digest::of(bytes).hex();
    // Blobs as in an OCI layout, since Docker 25.
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", hex(bytes));
    let files = BTreeMap::from([
        (blob(&config), config.clone()),
        (blob(b"one"), b"one".to_vec()),
        (blob(b"two"), b"two".to_vec()),
    ]);
    let entry =
        json!({"Config": blob(&config), "RepoTags": null, "Layers": [blob(b"one"), blob(b"two")]});
    let bytes = archive(files, &[entry]);
    assert_eq!(contents(&bytes, "").unwrap(), ["one", "two"]);
    assert_eq!(
        image_of(&bytes, "").unwrap().layers[1].digest,
        Some(Digest::of(b"two"))
    );
    // Names without digests, or with them in other places.
    for name in ["config.json", &format!("sha256:{}", hex(&config))] {
        let files = BTreeMap::from([
            (name.to_owned(), config.clone()),
            ("1.tar.gz".to_owned(), b"one".to_vec()),
            ("2.tar.gz".to_owned(), b"two".to_vec()),
        ]);
        let entry = json!({"Config": name, "Layers": ["1.tar.gz", "2.tar.gz"]});
        assert_eq!(
            contents(&archive(files, &[entry]), "").unwrap(),
            ["one", "two"]
        );
    }
    // A layer that an earlier image has is a symbolic link.
    let manifest =
        json!([{"Config": "c.json", "Layers": ["x/layer.tar", "y/layer.tar"]}]).to_string();
    let bytes = [
        member(b'2', "y/layer.tar", "../two.tar", b""),
        member(b'0', "two.tar", "", b"two"),
        member(b'0', "x/layer.tar", "", b"one"),
        member(b'0', "c.json", "", &config),
        member(b'0', "manifest.json", "", manifest.as_bytes()),
    ];
    assert_eq!(contents(&bytes.concat(), "").unwrap(), ["one", "two"]);
}

#[test]
fn damaged_archives_are_refused() {
    let mut files = BTreeMap::new();
    let entry = add(&mut files, &["app:1"], &[b"one", b"two"]);
    let config_name = entry["Config"].as_str().unwrap().to_owned();
    let layer = entry["Layers"][0].as_str().unwrap().to_owned();
    let without = |name: &str| {
        let mut files = files.clone();
        files.remove(name).unwrap();
        archive(files, std::slice::from_ref(&entry))
    };
    let mut other_config = files.clone();
    other_config.insert(config_name.clone(), b"{}".to_vec());
    let mut one_layer = entry.clone();
    one_layer["Layers"].as_array_mut().unwrap().pop();
    let mut escaping = entry.clone();
    escaping["Config"] = json!("../../etc/passwd");
    let one = |entry: Value| archive(files.clone(), &[entry]);
    let mut compressed = archive(files.clone(), std::slice::from_ref(&entry));
    compressed[..2].copy_from_slice(b"\x1f\x8b");
    let layout = BTreeMap::from([("oci-layout".to_owned(), b"{}".to_vec())]);
    let cases = [
        (without(&config_name), "the archive is incomplete"),
        (without(&layer), "the archive is incomplete"),
        (
            archive(other_config, std::slice::from_ref(&entry)),
            "has content with the digest",
        ),
        (
            one(one_layer),
            "manifest has 1 layers, but the config has 2",
        ),
        (one(escaping), "has no ../../etc/passwd"),
        (one(json!({"Config": 1})), "cannot use manifest.json"),
        (archive(files.clone(), &[]), "has no images"),
        (compressed, "compressed with gzip; decompress it first"),
        (tar(&layout), "use oci-archive:"),
        (tar(&files), "it is not what docker save writes"),
    ];
    for (bytes, part) in cases {
        let error = image_of(&bytes, "").unwrap_err();
        assert!(error.contains(part), "{part:?} expected: {error}");
    }
}

/// An id as old Docker made them.
fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// An archive of before Docker 1.10: images as (id, parent, layer).
fn legacy(repositories: &Value, images: &[(char, Option<char>, &[u8])]) -> Vec<u8> {
    let mut files = BTreeMap::new();
    for (name, parent, layer) in images {
        let mut json = json!({"id": id(*name), "os": "linux", "architecture": "amd64"});
        if let Some(parent) = parent {
            json["parent"] = json!(id(*parent));
        }
        files.insert(format!("{}/VERSION", id(*name)), b"1.0".to_vec());
        files.insert(format!("{}/json", id(*name)), json.to_string().into_bytes());
        files.insert(format!("{}/layer.tar", id(*name)), layer.to_vec());
    }
    files.insert(
        "repositories".to_owned(),
        repositories.to_string().into_bytes(),
    );
    tar(&files)
}

#[test]
fn archives_of_before_docker_1_10_are_read() {
    let images: [(char, Option<char>, &[u8]); 4] = [
        ('c', Some('b'), b"top"),
        ('b', Some('a'), b"middle"),
        ('a', None, b"base"),
        ('d', Some('a'), b"other"),
    ];
    let one = legacy(&json!({"app": {"1": id('c'), "latest": id('c')}}), &images);
    let image = image_of(&one, "").unwrap();
    let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let expected = [&b"base"[..], b"middle", b"top"].map(Digest::of);
    assert_eq!(diff_ids, expected);
    let layer = &image.layers[0];
    assert_eq!(
        (layer.digest, layer.size, layer.compression),
        (None, Some(4), Compression::None)
    );
    assert_eq!(image.platform.to_string(), "linux/amd64");
    // The derived config is one that any reader of configs understands.
    let config = crate::image::manifest::parse_config(&image.config).unwrap();
    assert_eq!(
        (config.diff_ids, config.platform),
        (diff_ids, image.platform.clone())
    );
    assert_eq!(image.manifest_digest, Digest::of(&image.config));
    assert_eq!(contents(&one, ":app").unwrap(), ["base", "middle", "top"]);

    let two = legacy(
        &json!({"app": {"1": id('c')}, "reg.io:5/other": {"2": id('d')}}),
        &images,
    );
    assert_eq!(
        contents(&two, ":reg.io:5/other:2").unwrap(),
        ["base", "other"]
    );
    let error = image_of(&two, "").unwrap_err();
    assert!(
        error.ends_with("choose one of app:1, reg.io:5/other:2"),
        "{error}"
    );
    for selector in [":app:3", ":@0"] {
        let error = image_of(&two, selector).unwrap_err();
        assert!(error.ends_with("it has app:1, reg.io:5/other:2"), "{error}");
    }
}

#[test]
fn damaged_old_archives_are_refused() {
    let app = |id: &str| json!({"app": {"1": id}});
    let cases = [
        (
            legacy(
                &app(&id('a')),
                &[('a', Some('b'), b"x"), ('b', Some('a'), b"y")],
            ),
            "does not end within",
        ),
        (
            legacy(&app(&id('a')), &[('a', Some('b'), b"x")]),
            "the archive is incomplete",
        ),
        (
            legacy(&app("../../etc"), &[('a', None, b"x")]),
            "which is not 64 hex digits",
        ),
        (
            legacy(&app(&id('a')), &[('a', None, b"\x1f\x8b\x08")]),
            "is compressed",
        ),
        (
            legacy(&json!({"app": 1}), &[('a', None, b"x")]),
            "cannot use repositories",
        ),
        (legacy(&json!({}), &[('a', None, b"x")]), "has no images"),
    ];
    for (bytes, part) in cases {
        let error = image_of(&bytes, "").unwrap_err();
        assert!(error.contains(part), "{part:?} expected: {error}");
    }
}
