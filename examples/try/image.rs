//! An OCI image of three layers, made from files of this machine.

use crate::Failure;
use aufs_csi::image::digest::Digest;
use aufs_csi::image::platform::Platform;
use aufs_csi::layer::archive::{Entry, EntryKind, Timestamp, Writer};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes of files that the lowest layer takes at most: enough to see that it is
/// shared, and little enough to be packed in seconds.
const BASE_BYTES: u64 = 24 << 20;
/// Larger files are passed over, so that there are many.
const FILE_BYTES: u64 = 2 << 20;
/// Where files are taken from; these are on every distribution.
const DIRECTORIES: [&str; 4] = [
    "/usr/bin",
    "/usr/lib/systemd",
    "/usr/share/common-licenses",
    "/usr/share",
];
/// A time for what is made up.
const SOME_TIME: i64 = 1_700_000_000;

/// A file of the base image that the second layer deletes.
pub(crate) const DELETED: &str = "etc/motd";
/// A file that every layer brings, so that the uppermost one shows.
pub(crate) const VERSION: &str = "etc/version";

/// What was made.
pub(crate) struct Made {
    /// For people: one line for each layer.
    pub(crate) layers: Vec<String>,
    /// A larger file of the base layer, to show that it is shared.
    pub(crate) shared: PathBuf,
    /// Bytes of all files.
    pub(crate) bytes: u64,
}

/// Writes the image as an OCI layout with the tag `1`.
pub(crate) fn make(layout: &Path) -> Result<Made, Failure> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(Failure::path("make", &blobs))?;
    let files = files()?;
    let shared = files
        .iter()
        .max_by_key(|(_, metadata)| metadata.len())
        .map(|(path, _)| path.strip_prefix("/").unwrap_or(path).to_owned())
        .ok_or(Failure::NoFiles)?;

    let mut base = Layer::default();
    for name in ["etc", "srv", "tmp", "usr"] {
        base.directory(name)?;
    }
    base.file(VERSION, b"base\n")?;
    base.file(DELETED, b"Welcome.\n")?;
    let count = files.len();
    for (path, metadata) in files {
        base.copy(&path, &metadata)?;
    }
    let base_bytes = base.bytes;

    let mut patch = Layer::default();
    patch.file(VERSION, b"patch\n")?;
    // How a layer says that a file of the layers below is gone.
    patch.file("etc/.wh.motd", b"")?;

    let mut app = Layer::default();
    app.file(VERSION, b"app\n")?;
    app.directory("srv/app")?;
    app.file("srv/app/greeting", b"Hello from the image.\n")?;
    app.file("srv/app/settings", b"colour=blue\n")?;
    app.link("srv/app/current", "greeting")?;

    let mut described = Vec::new();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    let mut bytes = 0;
    for (layer, what) in [
        (
            base,
            format!(
                "base: {count} files of this machine, {} MB",
                base_bytes / 1_000_000
            ),
        ),
        (
            patch,
            format!("patch: deletes /{DELETED}, changes /{VERSION}"),
        ),
        (app, "app: adds /srv/app".to_owned()),
    ] {
        bytes += layer.bytes;
        let tar = layer.finish()?;
        diff_ids.push(Digest::of(&tar).to_string());
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar)
            .map_err(Failure::system("compress a layer"))?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let compressed = gzip.finish().map_err(Failure::system("compress a layer"))?;
        descriptors.push(blob(&blobs, media_type, &compressed)?);
        described.push(what);
    }
    let platform = Platform::host();
    let config = json!({
        "os": platform.os,
        "architecture": platform.architecture,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(
        &blobs,
        "application/vnd.oci.image.config.v1+json",
        &bytes_of(&config),
    )?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = blob(&blobs, manifest_type, &bytes_of(&manifest))?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    for (name, content) in [
        ("index.json", index),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
    ] {
        let path = layout.join(name);
        fs::write(&path, bytes_of(&content)).map_err(Failure::path("write", &path))?;
    }
    Ok(Made {
        layers: described,
        shared,
        bytes,
    })
}

fn bytes_of(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Writes a blob and gives its descriptor.
fn blob(blobs: &Path, media_type: &str, bytes: &[u8]) -> Result<Value, Failure> {
    let digest = Digest::of(bytes);
    let path = blobs.join(digest.hex());
    fs::write(&path, bytes).map_err(Failure::path("write", &path))?;
    Ok(json!({
        "mediaType": media_type,
        "digest": digest.to_string(),
        "size": bytes.len(),
    }))
}

/// Files that anybody may read, in a fixed order.
fn files() -> Result<Vec<(PathBuf, fs::Metadata)>, Failure> {
    let mut found = Vec::new();
    let mut left = BASE_BYTES;
    for directory in DIRECTORIES {
        // Not every distribution has each of them.
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            let is_fit = metadata.is_file()
                && metadata.permissions().mode() & 0o6004 == 0o004
                && metadata.len() <= FILE_BYTES.min(left);
            if is_fit {
                left -= metadata.len();
                found.push((path, metadata));
            }
        }
    }
    Ok(found)
}

/// A layer that is being written.
struct Layer {
    tar: Writer<Vec<u8>>,
    bytes: u64,
}

impl Default for Layer {
    fn default() -> Self {
        Layer {
            tar: Writer::new(Vec::new()),
            bytes: 0,
        }
    }
}

impl Layer {
    fn directory(&mut self, path: &str) -> Result<(), Failure> {
        self.add(&entry(path, EntryKind::Directory, 0o755), &[])
    }

    fn file(&mut self, path: &str, content: &[u8]) -> Result<(), Failure> {
        self.add(&entry(path, EntryKind::File, 0o644), content)
    }

    fn link(&mut self, path: &str, to: &str) -> Result<(), Failure> {
        let mut link = entry(path, EntryKind::Symlink, 0o777);
        link.link = to.as_bytes().to_vec();
        self.add(&link, &[])
    }

    /// A file of this machine. Its directories are only implied, as in many images.
    fn copy(&mut self, path: &Path, metadata: &fs::Metadata) -> Result<(), Failure> {
        let content = fs::read(path).map_err(Failure::path("read", path))?;
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
        let mut file = entry(&name, EntryKind::File, metadata.mode() & 0o777);
        file.mtime = Timestamp {
            seconds: metadata.mtime(),
            nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        };
        self.add(&file, &content)
    }

    fn add(&mut self, entry: &Entry, content: &[u8]) -> Result<(), Failure> {
        self.bytes += content.len() as u64;
        let entry = Entry {
            size: content.len() as u64,
            ..entry.clone()
        };
        self.tar
            .entry(&entry)
            .and_then(|()| self.tar.data(content))
            .map_err(Failure::Layer)
    }

    fn finish(self) -> Result<Vec<u8>, Failure> {
        self.tar.finish().map_err(Failure::Layer)
    }
}

fn entry(path: &str, kind: EntryKind, mode: u32) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp {
            seconds: SOME_TIME,
            nanos: 0,
        },
        size: 0,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    }
}
