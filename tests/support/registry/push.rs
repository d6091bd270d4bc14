//! Fills a registry: by the protocol itself, or with `skopeo`.

use super::http::{Answer, request};
use super::run;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::process::Command;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TAG: &str = "org.opencontainers.image.ref.name";

/// A repository at a registry that everybody may push to.
#[derive(Clone, Debug)]
pub struct Repository {
    pub registry: String,
    pub name: String,
}

impl Repository {
    pub fn new(registry: &str, name: &str) -> Self {
        Repository {
            registry: registry.to_owned(),
            name: name.to_owned(),
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.name)
    }

    /// Uploads a blob; its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let begun = request(
            &self.registry,
            "POST",
            &self.path("blobs/uploads/"),
            &[],
            b"",
        );
        assert_eq!(begun.status(), 202, "{}", begun.text());
        let location = begun.head.get("Location").unwrap();
        let path = location.find("/v2/").map_or(location, |at| &location[at..]);
        let digest = digest(bytes);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={digest}");
        let kind = [("Content-Type", "application/octet-stream")];
        let done = request(&self.registry, "PUT", &path, &kind, bytes);
        assert_eq!(done.status(), 201, "{}", done.text());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Uploads a manifest or an index under a tag; its digest.
    pub fn manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let done = self.try_manifest(tag, media_type, bytes);
        assert_eq!(done.status(), 201, "{}", done.text());
        digest(bytes)
    }

    /// As [`Repository::manifest`], where the registry may refuse it.
    pub fn try_manifest(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Answer {
        let path = self.path(&format!("manifests/{reference}"));
        let kind = [("Content-Type", media_type)];
        request(&self.registry, "PUT", &path, &kind, bytes)
    }

    /// Uploads what an OCI layout has under `tag`, an index with all in it too;
    /// its digest.
    pub fn layout(&self, dir: &Path, tag: &str) -> String {
        let blob = |digest: &str| {
            let path = dir.join("blobs").join(digest.replace(':', "/"));
            fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let index: Value =
            serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        let named = manifests
            .iter()
            .find(|one| one["annotations"][TAG] == tag)
            .unwrap_or_else(|| panic!("no {tag} in {}", dir.display()));
        let (top, bytes) = (text(&named["digest"]), blob(text(&named["digest"])));
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        let kind = match document["mediaType"].as_str() {
            Some(kind) => kind,
            None if document["manifests"].is_array() => INDEX,
            None => MANIFEST,
        };
        for inner in document["manifests"].as_array().into_iter().flatten() {
            let digest = text(&inner["digest"]);
            let bytes = blob(digest);
            self.parts(&serde_json::from_slice(&bytes).unwrap(), &blob);
            let done = self.try_manifest(digest, text(&inner["mediaType"]), &bytes);
            assert_eq!(done.status(), 201, "{}", done.text());
        }
        self.parts(&document, &blob);
        self.manifest(tag, kind, &bytes);
        top.to_owned()
    }

    /// Gives a manifest another tag.
    pub fn tag(&self, digest: &str, tag: &str) {
        let path = self.path(&format!("manifests/{digest}"));
        let accept = [(
            "Accept",
            concat!(
                "application/vnd.oci.image.manifest.v1+json,",
                "application/vnd.oci.image.index.v1+json,",
                "application/vnd.docker.distribution.manifest.v2+json",
            ),
        )];
        let found = request(&self.registry, "GET", &path, &accept, b"");
        assert_eq!(found.status(), 200, "{}", found.text());
        let kind = found.head.get("Content-Type").unwrap();
        self.manifest(tag, kind, &found.body);
    }

    /// Uploads a manifest's config and layers.
    fn parts(&self, manifest: &Value, blob: &dyn Fn(&str) -> Vec<u8>) {
        let config = manifest.get("config").into_iter();
        let layers = manifest["layers"].as_array();
        for part in config.chain(layers.into_iter().flatten()) {
            self.blob(text(&part["mediaType"]), &blob(text(&part["digest"])));
        }
    }

    /// Uploads files as an artifact, each a layer of its own with its name as the
    /// title; the artifact's digest.
    pub fn artifact(&self, tag: &str, files: &[(&str, &[u8])]) -> String {
        let layers: Vec<Value> = files
            .iter()
            .map(|(name, bytes)| {
                let mut layer = self.blob("application/octet-stream", bytes);
                layer["annotations"] = json!({"org.opencontainers.image.title": name});
                layer
            })
            .collect();
        // As version 1.1 of the specification has it.
        let config = self.blob("application/vnd.oci.empty.v1+json", b"{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "artifactType": "application/vnd.example.files",
            "config": config, "layers": layers,
        });
        self.manifest(tag, MANIFEST, manifest.to_string().as_bytes())
    }

    /// Has `skopeo` copy an image here, `from` in its own words.
    pub fn skopeo(&self, options: &[&str], from: &str, tag: &str) {
        let to = format!("docker://{}/{}:{tag}", self.registry, self.name);
        run(Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
            ])
            .args(options)
            .args([from, &to]));
    }
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

/// `sha256:<hex>` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}
