//! OCI layouts made by hand.

use crate::image::digest::Digest;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A layout in memory.
#[derive(Debug, Default)]
pub(crate) struct LayoutBuilder {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) index: Vec<Value>,
}

impl LayoutBuilder {
    /// Adds a blob and gives its descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let name = format!("blobs/sha256/{}", digest.hex());
        self.files.insert(name, bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Adds an image with uncompressed layers and gives its manifest's descriptor.
    pub(crate) fn image(&mut self, os: &str, architecture: &str, layers: &[&[u8]]) -> Value {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({
            "os": os,
            "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"empty_layer": true}],
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    /// Adds an index and gives its descriptor.
    pub(crate) fn nested(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.blob(
            "application/vnd.oci.image.index.v1+json",
            index.to_string().as_bytes(),
        )
    }

    /// All files, with `oci-layout` and `index.json`.
    pub(crate) fn finish(mut self) -> BTreeMap<String, Vec<u8>> {
        let index = json!({"schemaVersion": 2, "manifests": self.index});
        self.files
            .insert("index.json".to_owned(), index.to_string().into_bytes());
        self.files.insert(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        self.files
    }
}

/// Adds a field to a JSON object.
pub(crate) fn with(mut object: Value, key: &str, value: Value) -> Value {
    object[key] = value;
    object
}

/// Adds the name of an image to its descriptor.
pub(crate) fn named(object: Value, name: &str) -> Value {
    with(
        object,
        "annotations",
        json!({"org.opencontainers.image.ref.name": name}),
    )
}

/// Writes files below a directory.
pub(crate) fn write(directory: &std::path::Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
