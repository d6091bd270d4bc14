//! The writable layer as an OCI layer: a tar that other tools apply on top of
//! the image.

use super::{ChangesError, Item, read_error, walk};
use crate::layer::apply::Format;
use crate::layer::archive::{Entry, EntryKind, Writer};
use crate::layer::index::{Attrs, join, name, parent};
use crate::layer::tree::Ownership;
use crate::layer::tree::metadata::{Inode, Reader};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

/// Read and written at a time, in bytes.
const BLOCK: usize = 256 << 10;

/// Writes the writable layer `upper` to `out`.
///
/// # Errors
/// [`ChangesError`]; `out` then holds the beginning of an archive.
pub fn export(
    upper: BorrowedFd<'_>,
    format: Format,
    ownership: Ownership,
    out: &mut dyn io::Write,
) -> Result<(), ChangesError> {
    let metadata = |path: &[u8]| {
        let path = path.to_vec();
        move |source| ChangesError::Metadata {
            path: path[..].into(),
            source,
        }
    };
    let mut exporter = Exporter {
        writer: Writer::new(io::BufWriter::with_capacity(BLOCK, out)),
        // No attribute is taken for the filesystem's own: what `security.*`
        // there is was there for the pod too.
        reader: Reader::new(upper).map_err(metadata(b""))?,
        ownership,
        linked: HashMap::new(),
        block: vec![0; BLOCK],
    };
    let stat = statat(upper, ".", AtFlags::SYMLINK_NOFOLLOW).map_err(read_error(b""))?;
    exporter.entry(b"", upper, b".", stat)?;
    walk(upper, format, &mut |item| match item {
        Item::Whiteout { path } => {
            exporter.marker(&join(parent(path), &[&b".wh."[..], name(path)].concat()))
        }
        Item::Entry {
            path,
            directory,
            name,
            stat,
            opaque,
        } => {
            exporter.entry(path, directory, name, stat)?;
            if opaque {
                exporter.marker(&join(path, b".wh..wh..opq"))?;
            }
            Ok(())
        }
    })?;
    exporter
        .writer
        .finish()
        .map_err(|source| ChangesError::Write { source })?;
    Ok(())
}

struct Exporter<W: io::Write> {
    writer: Writer<W>,
    reader: Reader,
    ownership: Ownership,
    /// First name of each inode that has several.
    linked: HashMap<u64, Vec<u8>>,
    block: Vec<u8>,
}

fn empty(path: Vec<u8>, kind: EntryKind, attrs: Attrs) -> Entry {
    Entry {
        path,
        kind,
        mode: attrs.mode,
        uid: attrs.uid,
        gid: attrs.gid,
        mtime: attrs.mtime,
        size: 0,
        link: Vec::new(),
        device: (0, 0),
        xattrs: attrs.xattrs,
    }
}

impl<W: io::Write> Exporter<W> {
    fn write(&mut self, entry: &Entry) -> Result<(), ChangesError> {
        self.writer
            .entry(entry)
            .map_err(|source| ChangesError::Write { source })
    }

    fn marker(&mut self, path: &[u8]) -> Result<(), ChangesError> {
        let attrs = Attrs {
            mode: 0o600,
            ..Attrs::default()
        };
        self.write(&empty(path.to_vec(), EntryKind::File, attrs))
    }

    fn entry(
        &mut self,
        path: &[u8],
        directory: BorrowedFd<'_>,
        file: &[u8],
        stat: Stat,
    ) -> Result<(), ChangesError> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => EntryKind::Directory,
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => EntryKind::Symlink,
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            // A tar has no word for a socket, and without its server it is nothing.
            _ => return Ok(()),
        };
        if name(path).starts_with(b".wh.") {
            return Err(ChangesError::Reserved { path: path.into() });
        }
        let inode = Inode::Named {
            directory,
            name: file,
        };
        let mut attrs = self
            .reader
            .read(inode, &stat, self.ownership)
            .map_err(|source| ChangesError::Metadata {
                path: path.into(),
                source,
            })?;
        attrs.xattrs.retain(|(name, _)| {
            !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.")
        });
        let shown = match (path.is_empty(), kind) {
            (true, _) => b"./".to_vec(),
            (false, EntryKind::Directory) => [path, b"/"].concat(),
            (false, _) => path.to_vec(),
        };
        let mut entry = empty(shown, kind, attrs);
        if kind != EntryKind::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&stat.st_ino) {
                entry.kind = EntryKind::HardLink;
                entry.link = first.clone();
                return self.write(&entry);
            }
        }
        match kind {
            EntryKind::Symlink => {
                entry.link = readlinkat(directory, file, Vec::new())
                    .map_err(read_error(path))?
                    .into_bytes();
            }
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                entry.device = (major(stat.st_rdev), minor(stat.st_rdev));
            }
            EntryKind::File => {
                if self.file(path, directory, file, entry)? {
                    self.remember(path, kind, &stat);
                }
                return Ok(());
            }
            EntryKind::Directory | EntryKind::Fifo | EntryKind::HardLink => {}
        }
        self.write(&entry)?;
        self.remember(path, kind, &stat);
        Ok(())
    }

    /// Other names of it are links to this one, which is in the archive now.
    fn remember(&mut self, path: &[u8], kind: EntryKind, stat: &Stat) {
        if kind != EntryKind::Directory && stat.st_nlink > 1 {
            self.linked.insert(stat.st_ino, path.to_vec());
        }
    }

    /// Whether it was there to be written.
    fn file(
        &mut self,
        path: &[u8],
        directory: BorrowedFd<'_>,
        file: &[u8],
        mut entry: Entry,
    ) -> Result<bool, ChangesError> {
        // The pod may put a fifo there at any moment: do not wait for it.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(directory, file, flags, Mode::empty()).map_err(read_error(path))?;
        let stat = fstat(fd.as_fd()).map_err(read_error(path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        entry.size = u64::try_from(stat.st_size).unwrap_or_default();
        self.write(&entry)?;
        let mut data = File::from(fd).take(entry.size);
        let mut left = entry.size;
        while left > 0 {
            let length = data
                .read(&mut self.block)
                .map_err(|source| ChangesError::Read {
                    path: path.into(),
                    source,
                })?;
            if length == 0 {
                return Err(ChangesError::Shortened { path: path.into() });
            }
            left -= length as u64;
            self.writer
                .data(&self.block[..length])
                .map_err(|source| ChangesError::Write { source })?;
        }
        Ok(true)
    }
}
