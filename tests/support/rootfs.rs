//! Layers of a realistic size and shape for benchmarks, made of what this
//! machine has installed: real directory trees, file sizes, links and
//! compressibility. The same machine gives the same layers; another one others.

use super::entry::{Entry, EntryKind, Layer, Time, join, opaque, split, whiteout};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What to make layers of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Directories to take files from, one after the other until the size is
    /// reached; those that do not exist are passed over.
    pub sources: Vec<PathBuf>,
    /// Bytes of file content in the lowest layer, about.
    pub base_bytes: u64,
    /// Layers above the lowest one.
    pub upper_layers: usize,
    /// Files that each upper layer changes, and as many again that it removes
    /// and adds.
    pub changes_per_layer: usize,
}

impl Recipe {
    /// A base of about so many bytes and a few layers on top of it.
    pub fn of_size(base_bytes: u64) -> Self {
        let sources = [
            "/usr/lib/python3",
            "/usr/share/doc",
            "/usr/share",
            "/usr/lib",
        ];
        Recipe {
            sources: sources.iter().map(PathBuf::from).collect(),
            base_bytes,
            upper_layers: 4,
            changes_per_layer: 200,
        }
    }

    /// The layers, the lowest first. The last one also has an opaque directory.
    pub fn layers(&self) -> io::Result<Vec<Layer>> {
        let base = self.base()?;
        let files: Vec<Vec<u8>> = base
            .iter()
            .filter(|entry| matches!(entry.kind, EntryKind::File(_)))
            .map(|entry| entry.path.clone())
            .collect();
        // What is hidden once is not touched again, so that every change hits.
        let (mut gone, mut layers) = (BTreeSet::new(), vec![base]);
        for number in 0..self.upper_layers {
            let mut layer = self.upper_layer(number, &files, &mut gone);
            if number + 1 == self.upper_layers {
                layer.extend(opaque_directory(&files));
            }
            layers.push(layer);
        }
        Ok(layers)
    }

    fn base(&self) -> io::Result<Layer> {
        let mut base = Collector {
            left: self.base_bytes,
            ..Collector::default()
        };
        for source in self.sources.iter().filter(|source| source.is_dir()) {
            base.walk(source)?;
        }
        Ok(base.layer)
    }

    fn upper_layer(&self, number: usize, files: &[Vec<u8>], gone: &mut BTreeSet<Vec<u8>>) -> Layer {
        let mut layer = Layer::new();
        if files.is_empty() {
            return layer;
        }
        // A fixed stride spreads the changes over the tree. It is prime, so that
        // it meets each file once before it comes round.
        const STRIDE: usize = 7919;
        let mut place = number * self.changes_per_layer * 2 * STRIDE;
        let mut next = || {
            place += STRIDE;
            &files[place % files.len()]
        };
        for _ in 0..self.changes_per_layer {
            let path = next();
            if !gone.contains(path) {
                let content = format!("layer {number} of {}\n", files.len()).repeat(64);
                layer.push(Entry::new(path, EntryKind::File(content.into_bytes())));
            }
            let path = next();
            let changed_here = layer.iter().any(|entry| entry.path == *path);
            if !changed_here && gone.insert(path.clone()) {
                layer.push(whiteout(path));
            }
            let added = join(split(path).0, format!("added-{number}").as_bytes());
            layer.push(Entry::new(added, EntryKind::File(vec![b'+'; 512])));
        }
        layer
    }
}

/// The directory that holds the file in the middle, emptied and filled anew.
fn opaque_directory(files: &[Vec<u8>]) -> Layer {
    let Some(middle) = files.get(files.len() / 2) else {
        return Layer::new();
    };
    let dir = split(middle).0;
    vec![
        Entry::new(dir, EntryKind::Dir),
        opaque(dir),
        Entry::new(join(dir, b"instead"), EntryKind::File(vec![b'i'; 512])),
    ]
}

/// Takes files until there is enough of them.
#[derive(Default)]
struct Collector {
    layer: Layer,
    taken: BTreeSet<Vec<u8>>,
    /// First names of inodes that have several.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    /// Bytes that are still wanted.
    left: u64,
}

impl Collector {
    /// Takes a directory and what is below it, in the order of names.
    fn walk(&mut self, real: &Path) -> io::Result<()> {
        if self.left == 0 {
            return Ok(());
        }
        for ancestor in real.ancestors().collect::<Vec<_>>().into_iter().rev() {
            self.take(ancestor)?;
        }
        let mut names: Vec<_> = fs::read_dir(real)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            if self.left == 0 {
                break;
            }
            match fs::symlink_metadata(&name)?.is_dir() {
                true => self.walk(&name)?,
                false => self.take(&name)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, real: &Path) -> io::Result<()> {
        let bytes = real.as_os_str().as_bytes();
        let path = bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec();
        if path.is_empty() || !self.taken.insert(path.clone()) {
            return Ok(());
        }
        let meta = fs::symlink_metadata(real)?;
        let identity = (meta.dev(), meta.ino());
        let kind = if meta.is_dir() {
            EntryKind::Dir
        } else if let Some(first) = self.links.get(&identity) {
            EntryKind::HardLink(first.clone())
        } else if meta.is_symlink() {
            EntryKind::Symlink(fs::read_link(real)?.into_os_string().into_vec())
        } else if meta.is_file() {
            self.left = self.left.saturating_sub(meta.len());
            EntryKind::File(fs::read(real)?)
        } else {
            // Sockets and devices are not what benchmarks are about.
            return Ok(());
        };
        if !meta.is_dir() && meta.nlink() > 1 {
            self.links.entry(identity).or_insert(path.clone());
        }
        self.layer.push(Entry {
            path,
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: Time {
                seconds: meta.mtime(),
                nanos: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
            },
            xattrs: Default::default(),
        });
        Ok(())
    }
}

/// Bytes of file content in a layer.
pub fn content_bytes(layer: &Layer) -> u64 {
    let size = |entry: &Entry| match &entry.kind {
        EntryKind::File(content) => content.len() as u64,
        _ => 0,
    };
    layer.iter().map(size).sum()
}
