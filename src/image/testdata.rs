//! Tars and layouts made by hand, for the tests here.

use super::digest::Digest;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One member of a tar in the POSIX form.
pub(crate) fn member(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

/// Writes the checksum of a header.
pub(super) fn seal(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A tar of regular files.
pub(crate) fn tar(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, data) in files {
        bytes.extend(member(b'0', name, "", data));
    }
    bytes.extend([0; 1024]);
    bytes
}

/// A layout in memory.
#[derive(Debug, Default)]
pub(crate) struct LayoutBuilder {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) index: Vec<Value>,
}

impl LayoutBuilder {
    /// Adds a blob and gives its descriptor.
    pub(super) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
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
    pub(super) fn nested(&mut self, manifests: &[Value]) -> Value {
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
pub(super) fn with(mut object: Value, key: &str, value: Value) -> Value {
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

/// An error and all its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
