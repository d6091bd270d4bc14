//! Images of a realistic size in an OCI layout, written as a stream: nothing of
//! their size is held in memory. The same machine gives the same image.

use super::Result;
use aufs_csi::layer::archive::{Entry, EntryKind, Timestamp, Writer};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Directories that the image is made of, in this order, those that exist.
const SOURCES: [&str; 8] = [
    "/etc",
    "/usr/bin",
    "/usr/sbin",
    "/usr/include",
    "/usr/lib/python3",
    "/usr/lib/python3.11",
    "/usr/share",
    "/usr/lib",
];

/// Larger files are left out: they are toolchains of the machine, not what
/// images are made of.
const MAX_FILE: u64 = 8 << 20;

/// Shares of the size that the layers get, in percent. One has no size of its
/// own: it only changes and removes what is below.
const SHARES: [u64; 7] = [20, 28, 22, 0, 9, 20, 1];

/// Of the lowest layer's files, one in so many is removed by the layer without
/// size, and as many are replaced.
const CHANGED: usize = 60;

/// What an image holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    pub layers: usize,
    pub entries: u64,
    pub tar_bytes: u64,
    pub blob_bytes: u64,
}

/// One layer as it is stored.
struct Blob {
    digest: String,
    diff_id: String,
    size: u64,
    tar_bytes: u64,
    entries: u64,
}

/// Hashes and counts what passes.
struct Tee<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Tee<W> {
    fn new(inner: W) -> Self {
        Tee {
            inner,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    fn digest(&mut self) -> String {
        digest_text(std::mem::take(&mut self.hash))
    }
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn digest_text(hash: Sha256) -> String {
    let hex: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

type Tar = Writer<Tee<GzEncoder<Tee<BufWriter<File>>>>>;

/// Writes one layer into the layout at `dir`.
fn layer(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut dyn FnMut(Entry, Option<&mut dyn Read>) -> Result<()>) -> Result<()>,
) -> Result<Blob> {
    let path = dir.join(name);
    let file = Tee::new(BufWriter::with_capacity(256 << 10, File::create(&path)?));
    let mut tar: Tar = Writer::new(Tee::new(GzEncoder::new(file, Compression::default())));
    let mut entries = 0;
    let mut buffer = vec![0; 128 << 10];
    fill(&mut |entry, content| {
        entries += 1;
        let mut left = entry.size;
        tar.entry(&entry)?;
        let Some(content) = content else {
            return Ok(());
        };
        while left > 0 {
            let wanted = buffer.len().min(left.try_into()?);
            let mut count = content.read(&mut buffer[..wanted])?;
            if count == 0 {
                // It became shorter since it was looked at.
                buffer[..wanted].fill(0);
                count = wanted;
            }
            tar.data(&buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    })?;
    let mut tar = tar.finish()?;
    let (diff_id, tar_bytes) = (tar.digest(), tar.bytes);
    let mut blob = tar.inner.finish()?;
    blob.flush()?;
    let (digest, size) = (blob.digest(), blob.bytes);
    fs::rename(path, dir.join("blobs").join(digest.replace(':', "/")))?;
    Ok(Blob {
        digest,
        diff_id,
        size,
        tar_bytes,
        entries,
    })
}

/// Stores the documents of an image with these layers, under the tag `latest`;
/// also the list that `docker load` wants.
fn finish(dir: &Path, layers: &[Blob]) -> Result<Facts> {
    let store = |value: &Value, media_type: &str| -> Result<Value> {
        let bytes = serde_json::to_vec(value)?;
        let digest = digest_text(Sha256::new_with_prefix(&bytes));
        fs::write(dir.join("blobs").join(digest.replace(':', "/")), &bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let diff_ids: Vec<&str> = layers.iter().map(|layer| &layer.diff_id[..]).collect();
    let config = store(
        &json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }),
        "application/vnd.oci.image.config.v1+json",
    )?;
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest,
                "size": layer.size,
            })
        })
        .collect();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let mut manifest = store(
        &json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config,
            "layers": descriptors,
        }),
        manifest_type,
    )?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let paths: Vec<String> = layers.iter().map(|layer| path(&layer.digest)).collect();
    let write = |name: &str, value: Value| fs::write(dir.join(name), value.to_string());
    write("oci-layout", json!({"imageLayoutVersion": "1.0.0"}))?;
    write(
        "index.json",
        json!({"schemaVersion": 2, "manifests": [manifest]}),
    )?;
    write(
        "manifest.json",
        json!([{
            "Config": path(config["digest"].as_str().unwrap_or_default()),
            "RepoTags": ["bench:latest"],
            "Layers": paths,
        }]),
    )?;
    Ok(Facts {
        layers: layers.len(),
        entries: layers.iter().map(|layer| layer.entries).sum(),
        tar_bytes: layers.iter().map(|layer| layer.tar_bytes).sum(),
        blob_bytes: layers.iter().map(|layer| layer.size).sum(),
    })
}

/// The facts of a layout that was made before, from its documents alone.
pub fn describe(dir: &Path) -> Result<usize> {
    let list: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json"))?)?;
    Ok(list[0]["Layers"].as_array().map_or(0, Vec::len))
}

/// The layers' blobs, the lowest first.
pub fn blobs(dir: &Path) -> Result<Vec<PathBuf>> {
    let list: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json"))?)?;
    let layers = list[0]["Layers"].as_array().ok_or("no layers")?;
    Ok(layers
        .iter()
        .filter_map(Value::as_str)
        .map(|path| dir.join(path))
        .collect())
}

/// A root filesystem of about so many megabytes of tar, made of this machine's
/// own files: trees in layers, one layer that changes and removes what is below
/// it, and one with an opaque directory.
pub fn root_filesystem(dir: &Path, megabytes: u64) -> Result<Facts> {
    fs::create_dir_all(dir.join("blobs/sha256"))?;
    let mut files = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for source in SOURCES.iter().map(Path::new).filter(|path| path.is_dir()) {
        for above in source.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if above != source && seen.insert(above.to_path_buf()) {
                files.push(above.to_path_buf());
            }
        }
        walk(source, &mut seen, &mut files)?;
    }
    let mut parts: Vec<Vec<(PathBuf, fs::Metadata)>> = SHARES.iter().map(|_| Vec::new()).collect();
    let budgets = SHARES.map(|share| megabytes * 1_000_000 * share / 100);
    let (mut part, mut used, mut total) = (0, 0, 0);
    for path in files {
        while part < SHARES.len() && used >= budgets[part] {
            (part, used) = (part + 1, 0);
        }
        if part == SHARES.len() {
            break;
        }
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_file() && (metadata.len() > MAX_FILE || File::open(&path).is_err()) {
            continue;
        }
        if !(metadata.is_file() || metadata.is_dir() || metadata.is_symlink()) {
            continue;
        }
        let data = if metadata.is_file() {
            metadata.len()
        } else {
            0
        };
        used += 512 + data.next_multiple_of(512);
        total += 512 + data.next_multiple_of(512);
        parts[part].push((path, metadata));
    }
    if total < megabytes * 1_000_000 * 9 / 10 {
        eprintln!(
            "note: this machine has only {} MB of files for it",
            total / 1_000_000
        );
    }
    let regular = |part: &[(PathBuf, fs::Metadata)]| -> Vec<Vec<u8>> {
        part.iter()
            .filter(|(_, metadata)| metadata.is_file())
            .map(|(path, _)| inside(path))
            .collect()
    };
    let lowest = regular(&parts[0]);
    let second = regular(&parts[1]);
    let queue = Mutex::new((0..SHARES.len()).collect::<Vec<_>>());
    let done: Mutex<HashMap<usize, std::result::Result<Blob, String>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(number) = queue.lock().ok().and_then(|mut queue| queue.pop()) else {
                        return;
                    };
                    let made = layer(dir, &format!("layer-{number}"), |put| {
                        tree(&parts[number], put)?;
                        if SHARES[number] == 0 {
                            changes(&lowest, put)?;
                        }
                        if number + 1 == SHARES.len() {
                            opaque(&second, put)?;
                        }
                        Ok(())
                    });
                    if let Ok(mut done) = done.lock() {
                        done.insert(number, made.map_err(|error| error.to_string()));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|_| "a layer's thread failed")?;
    let layers = (0..SHARES.len())
        .map(|number| Ok(done.remove(&number).ok_or("a layer is missing")??))
        .collect::<Result<Vec<_>>>()?;
    finish(dir, &layers)
}

/// Many small files: what staging costs for each entry, and whether its memory
/// grows with them.
pub fn many_entries(dir: &Path, count: usize) -> Result<Facts> {
    fs::create_dir_all(dir.join("blobs/sha256"))?;
    let blob = layer(dir, "layer", |put| {
        for number in 0..count {
            if number % 500 == 0 {
                put(
                    new_entry(format!("d{:04}", number / 500), EntryKind::Directory, 0),
                    None,
                )?;
            }
            let content = format!("content of file {number}\n");
            let path = format!("d{:04}/file-{number}", number / 500);
            let entry = new_entry(path, EntryKind::File, content.len() as u64);
            put(entry, Some(&mut content.as_bytes()))?;
        }
        Ok(())
    })?;
    finish(dir, &[blob])
}

/// An image of `count` layers, each with as many files of its own in one
/// directory, of `bytes` bytes that differ from file to file.
pub fn plain_layers(dir: &Path, count: usize, files: usize, bytes: u64) -> Result<Facts> {
    fs::create_dir_all(dir.join("blobs/sha256"))?;
    let mut blobs = Vec::with_capacity(count);
    for number in 0..count {
        blobs.push(layer(dir, "layer", |put| {
            put(new_entry("all", EntryKind::Directory, 0), None)?;
            for file in 0..files {
                let line = format!("layer {number}, file {file}\n");
                let mut content = io::repeat(0).take(bytes);
                let mut content = io::Cursor::new(line).chain(&mut content);
                let name = format!("all/{number}-{file}");
                put(new_entry(name, EntryKind::File, bytes), Some(&mut content))?;
            }
            Ok(())
        })?);
    }
    finish(dir, &blobs)
}

/// Many layers, each with some files of its own and a change of one below.
pub fn many_layers(dir: &Path, count: usize, files: usize) -> Result<Facts> {
    fs::create_dir_all(dir.join("blobs/sha256"))?;
    let mut blobs = Vec::with_capacity(count);
    for number in 0..count {
        blobs.push(layer(dir, "layer", |put| {
            put(new_entry("all", EntryKind::Directory, 0), None)?;
            for file in 0..files {
                let content = format!("layer {number}, file {file}\n").repeat(40);
                let entry = new_entry(
                    format!("all/{number}-{file}"),
                    EntryKind::File,
                    content.len() as u64,
                );
                put(entry, Some(&mut content.as_bytes()))?;
            }
            if number > 0 {
                let hidden = format!("all/.wh.{}-0", number - 1);
                put(new_entry(hidden, EntryKind::File, 0), None)?;
            }
            Ok(())
        })?);
    }
    finish(dir, &blobs)
}

type Put<'a> = &'a mut dyn FnMut(Entry, Option<&mut dyn Read>) -> Result<()>;

fn new_entry(path: impl Into<Vec<u8>>, kind: EntryKind, size: u64) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: if kind == EntryKind::Directory {
            0o755
        } else {
            0o644
        },
        uid: 0,
        gid: 0,
        mtime: Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        },
        size,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

/// A path of this machine as an archive has it.
fn inside(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec()
}

/// A directory and what is below it on the same filesystem, in the order of names.
fn walk(
    path: &Path,
    seen: &mut std::collections::HashSet<PathBuf>,
    files: &mut Vec<PathBuf>,
) -> Result<()> {
    if !seen.insert(path.to_path_buf()) {
        return Ok(());
    }
    files.push(path.to_path_buf());
    let Ok(list) = fs::read_dir(path) else {
        return Ok(());
    };
    let mut names: Vec<PathBuf> = list
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        match fs::symlink_metadata(&name) {
            Ok(metadata) if metadata.is_dir() => walk(&name, seen, files)?,
            Ok(_) if seen.insert(name.clone()) => files.push(name),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn tree(part: &[(PathBuf, fs::Metadata)], put: Put<'_>) -> Result<()> {
    let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    for (path, metadata) in part {
        let name = inside(path);
        if name.is_empty() {
            continue;
        }
        let mut entry = Entry {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: Timestamp {
                seconds: metadata.mtime(),
                nanos: 0,
            },
            ..new_entry(name.clone(), EntryKind::Directory, 0)
        };
        if metadata.is_dir() {
            put(entry, None)?;
            continue;
        }
        if metadata.is_symlink() {
            entry.kind = EntryKind::Symlink;
            entry.link = fs::read_link(path)?.into_os_string().into_vec();
            put(entry, None)?;
            continue;
        }
        let identity = (metadata.dev(), metadata.ino());
        if let Some(link) = first.get(&identity) {
            entry.kind = EntryKind::HardLink;
            entry.link.clone_from(link);
            put(entry, None)?;
            continue;
        }
        if metadata.nlink() > 1 {
            first.insert(identity, name);
        }
        entry.kind = EntryKind::File;
        entry.size = metadata.len();
        put(entry, Some(&mut File::open(path)?))?;
    }
    Ok(())
}

/// Removes some files of the lowest layer, and replaces others.
fn changes(lowest: &[Vec<u8>], put: Put<'_>) -> Result<()> {
    for pair in lowest.chunks(CHANGED) {
        let [gone, changed, ..] = pair else {
            continue;
        };
        let (parent, name) = split(gone);
        let path = [parent, b"/.wh.", name].concat();
        put(new_entry(path, EntryKind::File, 0), None)?;
        let content = b"changed\n".repeat(100);
        let entry = new_entry(changed.clone(), EntryKind::File, content.len() as u64);
        put(entry, Some(&mut &content[..]))?;
    }
    Ok(())
}

/// Empties the directory that holds the file in the middle, and fills it anew.
fn opaque(files: &[Vec<u8>], put: Put<'_>) -> Result<()> {
    let Some(middle) = files.get(files.len() / 2) else {
        return Ok(());
    };
    let dir = split(middle).0;
    put(new_entry(dir.to_vec(), EntryKind::Directory, 0), None)?;
    put(
        new_entry([dir, b"/.wh..wh..opq"].concat(), EntryKind::File, 0),
        None,
    )?;
    let content = b"instead\n";
    let entry = new_entry([dir, b"/instead"].concat(), EntryKind::File, 8);
    put(entry, Some(&mut &content[..]))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b".", path),
    }
}
