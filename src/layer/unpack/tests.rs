//! Layers of a few entries each, unpacked for real, as root. The directory of
//! each has a neighbour that nothing may touch.

mod cases;
mod hostile;
mod metadata;

use super::*;
use crate::layer::archive::Timestamp;
use crate::layer::index::Node;
use rustix::fs::{CWD, Mode, OFlags, makedev, openat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) fn entry(kind: EntryKind, path: impl AsRef<[u8]>) -> Entry {
    Entry {
        path: path.as_ref().to_vec(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp {
            seconds: 1_600_000_000,
            nanos: 123_456_789,
        },
        size: 0,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

/// An entry and its data.
pub(super) type Member = (Entry, Vec<(u64, Vec<u8>)>);

pub(super) fn dir(path: impl AsRef<[u8]>) -> Member {
    (entry(EntryKind::Directory, path), Vec::new())
}

pub(super) fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Member {
    let content = content.as_ref().to_vec();
    let entry = Entry {
        size: content.len() as u64,
        mode: 0o644,
        ..entry(EntryKind::File, path)
    };
    (entry, vec![(0, content)])
}

pub(super) fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    let entry = Entry {
        link: target.as_ref().to_vec(),
        ..entry(EntryKind::Symlink, path)
    };
    (entry, Vec::new())
}

pub(super) fn hard(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    let entry = Entry {
        link: target.as_ref().to_vec(),
        ..entry(EntryKind::HardLink, path)
    };
    (entry, Vec::new())
}

pub(super) struct Unpacked {
    pub(super) dir: tempfile::TempDir,
    pub(super) records: Vec<Record>,
    pub(super) stats: UnpackStats,
}

pub(super) fn open(path: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).unwrap()
}

pub(super) fn feed<R: RecordSink>(
    unpacker: &mut Unpacker<R>,
    members: &[Member],
) -> Result<(), UnpackError> {
    for (entry, data) in members {
        unpacker.begin(entry.clone())?;
        for (offset, bytes) in data {
            unpacker.data(*offset, bytes)?;
        }
        unpacker.end()?;
    }
    Ok(())
}

/// The directory, the records, and the outcome.
pub(super) type Outcome = (
    tempfile::TempDir,
    Vec<Record>,
    Result<UnpackStats, UnpackError>,
);

/// Unpacks into `root` of a directory that also has `outside/secret`.
pub(super) fn try_unpack(members: &[Member], options: Options) -> Outcome {
    try_unpack_by(options, |unpacker| feed(unpacker, members))
}

/// As [`try_unpack`], but with a hand of its own that feeds the members.
pub(super) fn try_unpack_by(
    options: Options,
    feed: impl FnOnce(&mut Unpacker<&mut Vec<Record>>) -> Result<(), UnpackError>,
) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    std::fs::create_dir(dir.path().join("outside")).unwrap();
    std::fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
    let before = snapshot(&dir.path().join("outside"));
    let mut records = Vec::new();
    let result = (|| {
        let mut unpacker = Unpacker::new(open(&dir.path().join("root")), &mut records, options)?;
        feed(&mut unpacker)?;
        unpacker.finish().map(|(stats, _)| stats)
    })();
    assert_eq!(snapshot(&dir.path().join("outside")), before);
    let neighbours: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(neighbours.len(), 2, "{neighbours:?}");
    for path in paths(&dir.path().join("root")) {
        let is_marker = path.split('/').any(|name| name.starts_with(".wh."));
        // What failed may leave the private directory.
        assert!(
            !is_marker || result.is_err() && path.starts_with(".wh..wh.plnk"),
            "{path}"
        );
    }
    (dir, records, result)
}

pub(super) fn unpack(members: &[Member]) -> Unpacked {
    let (dir, records, result) = try_unpack(members, Options::default());
    let stats = result.unwrap_or_else(|error| panic!("{error}: {:?}", error.source_text()));
    Unpacked {
        dir,
        records,
        stats,
    }
}

pub(super) fn refusal(members: &[Member]) -> UnpackError {
    try_unpack(members, Options::default()).2.unwrap_err()
}

impl UnpackError {
    pub(super) fn source_text(&self) -> Option<String> {
        std::error::Error::source(self).map(ToString::to_string)
    }
}

/// Every path beneath `root`. Reads no file, which would change its access time.
fn paths(root: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
            let path = entry.path();
            paths.push(path.strip_prefix(root).unwrap().to_string_lossy().into());
        }
    }
    paths
}

/// Every path beneath `root`: type, content or target, mode, owner and times.
pub(super) fn snapshot(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, path: &Path, into: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into();
            let tail = format!(
                "{:o} {}:{} {}.{}",
                meta.mode() & 0o7777,
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec()
            );
            let what = if meta.is_dir() {
                walk(root, &path, into);
                "dir".to_owned()
            } else if meta.is_symlink() {
                format!("link {}", std::fs::read_link(&path).unwrap().display())
            } else if meta.is_file() {
                format!(
                    "file {}",
                    String::from_utf8_lossy(&std::fs::read(&path).unwrap())
                )
            } else {
                format!("special {}", meta.rdev())
            };
            into.insert(name, format!("{what} {tail}"));
        }
    }
    let mut into = BTreeMap::new();
    walk(root, root, &mut into);
    into
}

impl Unpacked {
    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(super) fn at(&self, path: impl AsRef<[u8]>) -> PathBuf {
        let path = std::ffi::OsString::from_vec(path.as_ref().to_vec());
        self.root().join(path)
    }

    /// The tree in short: `d/` for directories, `f=content`, `s->target`.
    pub(super) fn tree(&self) -> Vec<String> {
        fn walk(root: &Path, path: &Path, into: &mut Vec<String>) {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                let name = path
                    .strip_prefix(root)
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                let meta = std::fs::symlink_metadata(&path).unwrap();
                if meta.is_dir() {
                    into.push(format!("{name}/"));
                    walk(root, &path, into);
                } else if meta.is_symlink() {
                    into.push(format!(
                        "{name}->{}",
                        std::fs::read_link(&path).unwrap().display()
                    ));
                } else if meta.is_file() {
                    into.push(format!(
                        "{name}={}",
                        std::fs::read_to_string(&path).unwrap()
                    ));
                } else {
                    into.push(format!("{name}*"));
                }
            }
        }
        let mut into = Vec::new();
        walk(&self.root(), &self.root(), &mut into);
        into.sort();
        into
    }

    /// The records in short, in the order they came: the entry's number, counted
    /// from 0, kind, path.
    pub(super) fn notes(&self) -> Vec<String> {
        notes(&self.records)
    }

    pub(super) fn record(&self, path: &str) -> &Record {
        self.records
            .iter()
            .rfind(|record| record.path == path.as_bytes())
            .unwrap_or_else(|| panic!("no record of {path}"))
    }
}

pub(super) fn notes(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| {
            let what = match (&record.node, record.whiteout, record.opaque) {
                (None, true, false) => "whiteout".to_owned(),
                (None, false, true) => "opaque".to_owned(),
                (Some(Node::Directory { .. }), false, false) => "dir".to_owned(),
                (Some(Node::Implied), false, false) => "implied".to_owned(),
                (Some(Node::File { .. }), false, false) => "file".to_owned(),
                (Some(Node::Symlink { .. }), false, false) => "link".to_owned(),
                (Some(Node::Special { .. }), false, false) => "special".to_owned(),
                (Some(Node::ForeignLink { target }), false, false) => {
                    format!("foreign({})", String::from_utf8_lossy(target))
                }
                (None, false, false) if record.displaced => "passed".to_owned(),
                odd => panic!("{odd:?}"),
            };
            format!(
                "{} {what} {}",
                record.seq - 1,
                String::from_utf8_lossy(&record.path)
            )
        })
        .collect()
}

/// The directories' metadata as the index would give it: last entry of each,
/// what is implied with the constant, in the order of paths.
pub(super) fn finish_all(unpacked: &Unpacked, ownership: Ownership) {
    let mut dirs = BTreeMap::new();
    for record in &unpacked.records {
        let attrs = match &record.node {
            Some(Node::Directory { attrs, .. }) => attrs.clone(),
            Some(Node::Implied) => Attrs::implied(),
            _ => continue,
        };
        dirs.insert(record.path.clone(), attrs);
    }
    let mut dirs: Vec<_> = dirs.into_iter().collect();
    dirs.sort_by(|(a, _), (b, _)| index::compare(a, b));
    let root = open(&unpacked.root());
    finish_directories(root.as_fd(), dirs.into_iter().map(Ok), ownership).unwrap();
}
