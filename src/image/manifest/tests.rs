use super::*;
use crate::image::testdata::{chain, with};
use proptest::prelude::*;
use serde_json::{Value, json};

fn digest(number: usize) -> String {
    Digest::of(&number.to_le_bytes()).to_string()
}

fn descriptor(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": digest(0), "size": 7})
}

fn layer(kind: &str) -> Value {
    descriptor(&format!("application/vnd.oci.image.layer.v1.{kind}"))
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG),
        "layers": [layer("tar"), layer("tar+gzip"), layer("tar+zstd")],
    })
}

fn index() -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_MANIFEST)]})
}

fn parse(document: &Value) -> Result<Document, ManifestError> {
    parse_document(document.to_string().as_bytes(), "")
}

fn manifest_of(document: &Value) -> Manifest {
    match parse(document).unwrap() {
        Document::Manifest(manifest) => manifest,
        Document::Index(_) => panic!("{document} is an index"),
    }
}

fn entries_of(document: &Value) -> Vec<IndexEntry> {
    match parse(document).unwrap() {
        Document::Index(entries) => entries,
        Document::Manifest(_) => panic!("{document} is a manifest"),
    }
}

fn refusal(document: &Value) -> String {
    chain(&parse(document).unwrap_err())
}

#[test]
fn oci_manifest_is_read() {
    let manifest = manifest_of(&image());
    assert_eq!(manifest.config.digest.to_string(), digest(0));
    assert_eq!(manifest.config.size, 7);
    let compressions: Vec<Compression> = manifest.layers.iter().map(|l| l.compression).collect();
    assert_eq!(
        compressions,
        [Compression::None, Compression::Gzip, Compression::Zstd]
    );
}

#[test]
fn docker_manifest_is_read() {
    let docker = |kind: &str| descriptor(&format!("application/vnd.docker.image.rootfs.{kind}"));
    let document = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": descriptor(DOCKER_CONFIG),
        "layers": [docker("diff.tar.gzip"), docker("diff.tar"), docker("diff.tar.zstd")],
    });
    let compressions: Vec<Compression> = manifest_of(&document)
        .layers
        .iter()
        .map(|l| l.compression)
        .collect();
    assert_eq!(
        compressions,
        [Compression::Gzip, Compression::Sniff, Compression::Zstd]
    );
    // Early tools did not call the config by its type.
    let early = with(document, "config", descriptor("application/octet-stream"));
    manifest_of(&early);
    let oci = with(image(), "config", descriptor("application/octet-stream"));
    assert!(refusal(&oci).contains("another artifact"));
}

#[test]
fn missing_media_type_is_tolerated_where_the_fields_tell() {
    for (document, kind) in [(image(), Kind::Manifest), (index(), Kind::Index)] {
        let mut silent = document.clone();
        silent.as_object_mut().unwrap().remove("mediaType");
        for bytes in [document.to_string(), silent.to_string()] {
            for media_type in ["", OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
                let fits = media_type.is_empty() || kind_of(media_type).unwrap() == Some(kind);
                let parsed = parse_document(bytes.as_bytes(), media_type);
                assert_eq!(parsed.is_ok(), fits, "{bytes} as {media_type:?}");
            }
        }
    }
    for text in ["{}", r#"{"schemaVersion":2}"#] {
        let error = parse_document(text.as_bytes(), "").unwrap_err();
        assert!(matches!(error, ManifestError::Neither), "{error}");
    }
    // An empty list as Go writes it.
    let empty = br#"{"schemaVersion":2,"manifests":null}"#;
    let parsed = parse_document(empty, OCI_INDEX).unwrap();
    assert_eq!(parsed, Document::Index(Vec::new()));
}

#[test]
fn a_document_that_is_two_things_is_refused() {
    for key in ["config", "layers"] {
        let both = with(index(), key, image()[key].clone());
        assert!(
            refusal(&both).contains("both an index and a manifest"),
            "{key}"
        );
        let silent = with(both, "mediaType", Value::Null);
        assert!(
            refusal(&silent).contains("both an index and a manifest"),
            "{key}"
        );
    }
    let named_otherwise = with(image(), "mediaType", json!(OCI_INDEX));
    assert!(refusal(&named_otherwise).contains("but is a manifest"));
    let named_otherwise = with(index(), "mediaType", json!(DOCKER_MANIFEST));
    assert!(refusal(&named_otherwise).contains("but is an index"));
    // Readers differ in which of two equal keys they take.
    let twice = index()
        .to_string()
        .replace("\"manifests\":", "\"manifests\":[],\"manifests\":");
    let error = parse_document(twice.as_bytes(), "").unwrap_err();
    assert!(error.to_string().contains("duplicate field"), "{error}");
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let schema1 = json!({"schemaVersion": 1, "fsLayers": [], "history": []});
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let no_config = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []});
    let cases = [
        (schema1.clone(), "schema 1"),
        (with(schema1.clone(), "schemaVersion", json!(2)), "schema 1"),
        (
            with(image(), "mediaType", json!(DOCKER_SCHEMA1[1])),
            "schema 1",
        ),
        (with(image(), "schemaVersion", json!(3)), "version 3"),
        (
            with(image(), "mediaType", json!("text/html")),
            "\"text/html\"",
        ),
        (
            with(
                image(),
                "layers",
                json!([layer("tar"), descriptor(foreign)]),
            ),
            "layer 2 is non-distributable",
        ),
        (
            with(
                image(),
                "layers",
                json!([descriptor(
                    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
                )]),
            ),
            "layer 1 is non-distributable",
        ),
        (
            with(image(), "layers", json!([layer("tar+gzip+encrypted")])),
            "unsupported media type",
        ),
        (
            with(image(), "layers", json!([descriptor("")])),
            "unsupported media type",
        ),
        (
            with(
                image(),
                "config",
                descriptor("application/vnd.cncf.helm.config.v1+json"),
            ),
            "\"application/vnd.cncf.helm.config.v1+json\" is not a container image",
        ),
        (
            with(
                with(
                    image(),
                    "config",
                    descriptor("application/vnd.oci.empty.v1+json"),
                ),
                "artifactType",
                json!("application/x-model"),
            ),
            "\"application/x-model\" is not a container image",
        ),
        (
            with(no_config.clone(), "artifactType", json!("a/b")),
            "\"a/b\" is not a container image",
        ),
        (no_config, "neither"),
        (json!([]), "malformed"),
        (json!("text"), "malformed"),
        (with(image(), "schemaVersion", json!("2")), "malformed"),
        (with(image(), "layers", json!([{"size": -1}])), "malformed"),
        (
            with(
                image(),
                "config",
                json!({"mediaType": OCI_CONFIG, "digest": digest(1), "size": -1}),
            ),
            "malformed",
        ),
        (
            with(
                image(),
                "config",
                json!({"mediaType": OCI_CONFIG, "digest": "sha512:ab", "size": 1}),
            ),
            "digest of the config: digest algorithm \"sha512\" is not supported",
        ),
        (
            with(
                image(),
                "layers",
                json!([with(
                    layer("tar"),
                    "digest",
                    json!("sha256:../../etc/passwd")
                )]),
            ),
            "digest of the layer 1",
        ),
    ];
    for (document, part) in cases {
        let error = refusal(&document);
        assert!(error.contains(part), "{document}: {error}");
    }
    let error = parse_document(image().to_string().as_bytes(), DOCKER_SCHEMA1[0]).unwrap_err();
    assert!(matches!(error, ManifestError::Schema1));
}

#[test]
fn lists_and_sizes_are_bounded() {
    let layers = |count| with(image(), "layers", Value::Array(vec![layer("tar"); count]));
    assert_eq!(manifest_of(&layers(MAX_LAYERS)).layers.len(), MAX_LAYERS);
    assert!(refusal(&layers(MAX_LAYERS + 1)).contains("at most 4096"));
    let manifests = |count| {
        with(
            index(),
            "manifests",
            Value::Array(vec![descriptor(""); count]),
        )
    };
    assert_eq!(entries_of(&manifests(MAX_MANIFESTS)).len(), MAX_MANIFESTS);
    assert!(refusal(&manifests(MAX_MANIFESTS + 1)).contains("at most 4096"));
    let limit = usize::try_from(MAX_DOCUMENT_BYTES).unwrap();
    let mut bytes = image().to_string().into_bytes();
    bytes.resize(limit, b' ');
    parse_document(&bytes, "").unwrap();
    bytes.push(b' ');
    let error = parse_document(&bytes, "").unwrap_err();
    assert!(matches!(error, ManifestError::TooLarge { .. }));
    let diff_ids = json!({"rootfs": {"diff_ids": vec![digest(0); MAX_LAYERS + 1]}});
    assert!(parse_config(diff_ids.to_string().as_bytes()).is_err());
    // Deep nesting ends in an error before it ends the stack.
    let deep = format!("{{\"x\":{}", "[".repeat(1 << 20));
    assert!(parse_document(deep.as_bytes(), "").is_err());
}

#[test]
fn errors_quote_little_of_foreign_text() {
    let long = "\u{1b}x".repeat(100_000);
    for document in [
        with(image(), "schemaVersion", json!(long)),
        with(image(), "mediaType", json!(long)),
        with(image(), "config", descriptor(&long)),
        with(image(), "layers", json!([descriptor(&long)])),
        with(
            image(),
            "layers",
            json!([with(layer("tar"), "digest", json!(long))]),
        ),
    ] {
        let error = refusal(&document);
        assert!(error.len() < 3000 && !error.contains('\u{1b}'), "{error:?}");
    }
}

#[test]
fn index_entries_tell_what_can_be_an_image() {
    let entry = |changes: Value| {
        let mut entry = descriptor(OCI_MANIFEST);
        let changes = changes.as_object().unwrap().clone();
        entry.as_object_mut().unwrap().extend(changes);
        entries_of(&with(index(), "manifests", json!([entry]))).remove(0)
    };
    let plain =
        entry(json!({"platform": {"os": "linux", "architecture": "aarch64", "variant": "v8"}}));
    assert!(plain.is_candidate());
    assert_eq!(plain.platform.unwrap().to_string(), "linux/arm64");
    assert!(entry(json!({"mediaType": OCI_INDEX})).is_candidate());
    assert!(entry(json!({"mediaType": null})).is_candidate());
    assert_eq!(
        entry(json!({"platform": {"os": null, "architecture": ""}})).platform,
        None
    );
    for other in [
        json!({"platform": {"os": "unknown", "architecture": "unknown"}}),
        json!({"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}),
        json!({"mediaType": "application/xml"}),
        json!({"mediaType": DOCKER_SCHEMA1[0]}),
    ] {
        assert!(!entry(other.clone()).is_candidate(), "{other}");
    }
    // A digest that cannot be used only matters where it would be used.
    let foreign = entry(json!({"digest": "sha512:ab"}));
    assert!(matches!(
        foreign.descriptor(),
        Err(ManifestError::Digest { .. })
    ));
    let names = entry(json!({"annotations": {
        "org.opencontainers.image.ref.name": "v1",
        "io.containerd.image.name": "docker.io/library/a:v1",
        "other": {"not": "a string"},
    }}));
    assert_eq!(names.ref_name.as_deref(), Some("v1"));
    assert_eq!(names.image_name.as_deref(), Some("docker.io/library/a:v1"));
}

#[test]
fn config_gives_platform_and_diff_ids() {
    let config = json!({
        "os": "linux", "architecture": "arm", "variant": "v6",
        "config": {"Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(0), digest(1)]},
        "history": [{"empty_layer": true}, {}, {}, {"empty_layer": true}],
    });
    let parsed = parse_config(config.to_string().as_bytes()).unwrap();
    assert_eq!(parsed.platform.to_string(), "linux/arm/v6");
    let diff_ids: Vec<String> = parsed.diff_ids.iter().map(Digest::to_string).collect();
    assert_eq!(diff_ids, [digest(0), digest(1)]);
    parsed.check_layers(2).unwrap();
    let error = parsed.check_layers(3).unwrap_err().to_string();
    assert_eq!(
        error,
        "manifest has 3 layers, but the config has 2 diff ids"
    );
    let empty = parse_config(br#"{"rootfs":{"type":"layers","diff_ids":null}}"#).unwrap();
    assert!(empty.diff_ids.is_empty() && empty.platform.is_unspecified());
    assert_eq!(parse_config(b"{}").unwrap(), empty);
    for (text, part) in [
        (
            r#"{"rootfs":{"type":"base","diff_ids":[]}}"#,
            "type \"base\"",
        ),
        (
            r#"{"rootfs":{"diff_ids":["md5:00"]}}"#,
            "uncompressed layer 1",
        ),
        (r#"{"rootfs":{},"rootfs":{}}"#, "duplicate field"),
        ("", "malformed"),
    ] {
        let error = chain(&parse_config(text.as_bytes()).unwrap_err());
        assert!(error.contains(part), "{text}: {error}");
    }
}

/// JSON in which the words of such documents are frequent.
fn likely_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        OCI_INDEX,
        OCI_MANIFEST,
        OCI_CONFIG,
        DOCKER_LIST,
        DOCKER_MANIFEST,
        DOCKER_CONFIG,
        "application/vnd.oci.image.layer.v1.tar",
        "layers",
        "linux",
        "amd64",
        "\u{7}",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ]);
    let keys = prop::sample::select(vec![
        "schemaVersion",
        "mediaType",
        "artifactType",
        "manifests",
        "config",
        "layers",
        "fsLayers",
        "digest",
        "size",
        "platform",
        "annotations",
        "os",
        "architecture",
        "rootfs",
        "diff_ids",
        "type",
        "org.opencontainers.image.ref.name",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-1i64..4).prop_map(Value::from),
        words.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..8).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
    }

    #[test]
    fn any_json_is_read_or_refused(value in likely_json()) {
        check(value.to_string().as_bytes());
    }

    #[test]
    fn a_changed_document_is_read_or_refused(at in 0usize..400, byte in any::<u8>()) {
        for document in [image(), index()] {
            let mut bytes = document.to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            check(&bytes);
        }
    }
}
