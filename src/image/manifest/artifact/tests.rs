use super::super::{Document, parse_document};
use super::*;
use serde_json::{Value, json};

/// `title`, `unpack` and `digest` annotations of a layer, as far as they are given.
fn layer(bytes: &[u8], title: Option<&str>, more: Value) -> Value {
    let mut annotations = more;
    if let Some(title) = title {
        annotations["org.opencontainers.image.title"] = json!(title);
    }
    json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": Digest::of(bytes),
        "size": bytes.len(),
        "annotations": annotations,
    })
}

fn file(title: &str) -> Value {
    layer(b"bytes", Some(title), json!({}))
}

fn parse(layers: &[Value]) -> Result<Manifest, ManifestError> {
    let document = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x-model",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": Digest::of(b"{}"),
            "size": 2,
        },
        "layers": layers,
    });
    match parse_document(document.to_string().as_bytes(), "")? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => panic!("an index"),
    }
}

#[test]
fn titled_layers_are_files() {
    let manifest = parse(&[file("a/b c/ä.txt"), file("..d"), file("a/b")]).unwrap();
    assert!(manifest.is_artifact);
    let paths: Vec<&LayerContent> = manifest.layers.iter().map(|layer| &layer.content).collect();
    let content = |path: &str| LayerContent::File {
        path: path.to_owned(),
    };
    assert_eq!(
        paths,
        [&content("a/b c/ä.txt"), &content("..d"), &content("a/b")]
    );
    // The same bytes at other places are other layers, and the same everywhere.
    let ids = manifest.own_diff_ids().unwrap();
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    assert_eq!(
        parse(&[file("..d")]).unwrap().own_diff_ids().unwrap(),
        ids[1..2]
    );
    assert!(!ids.contains(&Digest::of(b"bytes")));
}

#[test]
fn a_directory_of_oras_is_a_tar_that_is_known_by_its_digest() {
    let tar = Digest::of(b"tar");
    let annotations = json!({
        "io.deis.oras.content.unpack": "true",
        "io.deis.oras.content.digest": tar,
    });
    let manifest = parse(&[layer(b"gz", Some("dir"), annotations)]).unwrap();
    assert_eq!(manifest.layers[0].content, LayerContent::Tar);
    assert_eq!(manifest.layers[0].compression, Compression::Sniff);
    assert_eq!(manifest.own_diff_ids(), Some(vec![tar]));
    let silent = json!({"io.deis.oras.content.unpack": "true"});
    let error = parse(&[layer(b"gz", Some("dir"), silent)]).unwrap_err();
    assert!(
        error.to_string().contains("without io.deis.oras"),
        "{error}"
    );
    // Only that is said to be unpacked.
    let not = json!({"io.deis.oras.content.unpack": "false"});
    let manifest = parse(&[layer(b"gz", Some("dir"), not)]).unwrap();
    assert!(matches!(
        manifest.layers[0].content,
        LayerContent::File { .. }
    ));
}

#[test]
fn titles_that_lead_elsewhere_are_refused() {
    let (long, longer) = ("x".repeat(256), "x/".repeat(2048) + "x");
    for (titles, part) in [
        (&[""][..], "empty"),
        (&["/etc/passwd"], "absolute"),
        (&["../a"], ". or .."),
        (&["a/../b"], ". or .."),
        (&["a/.."], ". or .."),
        (&["./a"], ". or .."),
        (&["a//b"], "a part of it is empty"),
        (&["a/"], "a part of it is empty"),
        (&["a\0b"], "NUL"),
        (&[".wh.a"], "marker"),
        (&["a/.wh..wh..opq"], "marker"),
        (&[&long], "longer than a name"),
        (&[&longer], "longer than a path"),
        (&["a", "a"], "another layer has the same"),
        (&["a/b", "c", "a"], "part of its path"),
        (&["a", "a/b/c"], "part of its path"),
    ] {
        let layers: Vec<Value> = titles.iter().map(|title| file(title)).collect();
        let error = parse(&layers).unwrap_err();
        assert!(
            matches!(error, ManifestError::Title { .. }),
            "{titles:?}: {error}"
        );
        assert!(error.to_string().contains(part), "{titles:?}: {error}");
    }
}

#[test]
fn artifacts_that_are_not_files_stay_refused() {
    let silent = layer(b"bytes", None, json!({}));
    for layers in [vec![], vec![silent.clone()], vec![file("a"), silent]] {
        let error = parse(&layers).unwrap_err();
        assert!(matches!(error, ManifestError::Artifact { .. }), "{error}");
        assert!(error.to_string().contains("application/x-model"), "{error}");
    }
}
