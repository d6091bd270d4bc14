//! Images on disk for tests: an OCI layout directory, and the archive that
//! `docker save` writes (the form since Docker 25, which is both at once).

use super::entry::{dir, file};
use super::tarball::{Compression, Tar};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// What an image consists of.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Blob,
    pub config: Blob,
    /// As stored, the lowest first.
    pub layers: Vec<Blob>,
    /// Digests of the uncompressed tars, the lowest first.
    pub diff_ids: Vec<String>,
}

/// Something stored by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:<hex>`.
    pub digest: String,
    /// In bytes.
    pub size: u64,
    pub media_type: String,
}

impl Blob {
    pub fn new(media_type: &str, bytes: &[u8]) -> Self {
        Blob {
            digest: digest(bytes),
            size: bytes.len() as u64,
            media_type: media_type.to_string(),
        }
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// `sha256:<hex>` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The architecture of this machine, in the image specification's words.
pub fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A directory of the OCI image layout.
#[derive(Debug)]
pub struct OciLayout {
    dir: PathBuf,
    references: Vec<Value>,
}

impl OciLayout {
    /// An empty layout in `dir`, which is made where it is missing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        fs::create_dir_all(dir.join("blobs/sha256")).expect("make the blob directory");
        let layout = OciLayout {
            dir,
            references: Vec::new(),
        };
        layout.write("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}));
        layout.write_index();
        layout
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where a blob is stored; what is there may be damaged by a test.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// Stores an image for this machine's platform under a tag.
    pub fn image(&mut self, tag: &str, tars: &[Vec<u8>], compression: Compression) -> Image {
        let image = self.untagged(tars, compression, native_architecture());
        self.tag(tag, image.manifest.descriptor());
        image
    }

    /// Stores one image for each architecture, and an index of them under a tag.
    pub fn multi_platform(
        &mut self,
        tag: &str,
        platforms: &[(&str, Vec<Vec<u8>>)],
        compression: Compression,
    ) -> Vec<Image> {
        let images: Vec<Image> = platforms
            .iter()
            .map(|(architecture, tars)| self.untagged(tars, compression, architecture))
            .collect();
        let manifests: Vec<Value> = images
            .iter()
            .zip(platforms)
            .map(|(image, (architecture, _))| {
                let mut descriptor = image.manifest.descriptor();
                descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let index = self.json_blob(INDEX, &index);
        self.tag(tag, index.descriptor());
        images
    }

    fn untagged(&self, tars: &[Vec<u8>], compression: Compression, architecture: &str) -> Image {
        let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
        let layers: Vec<Blob> = tars
            .iter()
            .map(|tar| self.blob(compression.media_type(), &compression.compress(tar)))
            .collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.json_blob(CONFIG, &config);
        let descriptors: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": descriptors,
        });
        Image {
            manifest: self.json_blob(MANIFEST, &manifest),
            config,
            layers,
            diff_ids,
        }
    }

    /// Stores any bytes by their digest.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Blob {
        let blob = Blob::new(media_type, bytes);
        fs::write(self.blob_path(&blob.digest), bytes).expect("write a blob");
        blob
    }

    pub fn json_blob(&self, media_type: &str, value: &Value) -> Blob {
        let bytes = serde_json::to_vec(value).expect("serialize");
        self.blob(media_type, &bytes)
    }

    /// Gives a manifest or index a name; one that the name had before loses it.
    pub fn tag(&mut self, tag: &str, mut descriptor: Value) {
        const NAME: &str = "org.opencontainers.image.ref.name";
        self.references
            .retain(|reference| reference["annotations"][NAME] != tag);
        descriptor["annotations"] = json!({NAME: tag});
        self.references.push(descriptor);
        self.write_index();
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.references});
        self.write("index.json", &index);
    }

    fn write(&self, name: &str, value: &Value) {
        let bytes = serde_json::to_vec(value).expect("serialize");
        fs::write(self.dir.join(name), bytes).expect("write into the layout");
    }

    /// The whole layout as one tar (`oci-archive`).
    pub fn archive(&self) -> Vec<u8> {
        self.archive_with(Vec::new())
    }

    /// As `docker save` writes it: the layout, and a `manifest.json` that names
    /// each image's files. `images` are those of this layout, with their names.
    pub fn docker_archive(&self, images: &[(&str, &Image)]) -> Vec<u8> {
        let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
        let manifest: Vec<Value> = images
            .iter()
            .map(|(name, image)| {
                let layers: Vec<String> = image
                    .layers
                    .iter()
                    .map(|layer| path(&layer.digest))
                    .collect();
                json!({
                    "Config": path(&image.config.digest),
                    "RepoTags": [name],
                    "Layers": layers,
                })
            })
            .collect();
        let bytes = serde_json::to_vec(&manifest).expect("serialize");
        self.archive_with(vec![("manifest.json".to_string(), bytes)])
    }

    fn archive_with(&self, more: Vec<(String, Vec<u8>)>) -> Vec<u8> {
        let mut names: Vec<String> = fs::read_dir(self.dir.join("blobs/sha256"))
            .expect("list the blobs")
            .map(|blob| blob.expect("list the blobs").file_name())
            .map(|name| format!("blobs/sha256/{}", name.to_str().expect("hex")))
            .collect();
        names.sort();
        names.extend(["index.json".to_string(), "oci-layout".to_string()]);
        let tar = Tar::new().entry(dir("blobs")).entry(dir("blobs/sha256"));
        let tar = names.iter().fold(tar, |tar, name| {
            let bytes = fs::read(self.dir.join(name)).expect("read the layout");
            tar.entry(file(name, bytes))
        });
        more.into_iter()
            .fold(tar, |tar, (name, bytes)| tar.entry(file(name, bytes)))
            .build()
    }
}
