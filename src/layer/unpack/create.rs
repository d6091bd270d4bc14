//! Entries that become inodes: made under their name, given their metadata,
//! and told to the index.

use super::name::{self, NameError};
use super::{OpenFile, UnpackError, Unpacker};
use crate::layer::RecordSink;
use crate::layer::archive::Entry;
use crate::layer::index::{self, Attrs, Node, Record, SpecialKind};
use crate::layer::tree::metadata::{self, Inode};
use crate::layer::tree::{Ownership, PathText, remove_tree};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fstat, ftruncate, makedev, mkdirat, mknodat, openat, statat,
    symlinkat,
};
use rustix::io::{Errno, pwrite};
use std::io;

const CREATE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// What the kernel stores of a device number (`MKDEV`: 12 and 20 bits).
const MAX_DEVICE: (u32, u32) = (0xfff, 0xf_ffff);

/// Where a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Into the tree, for entry number `seq`.
    Tree { seq: u64 },
    /// Into the private directory; no record is made.
    PseudoLink,
}

impl<R: RecordSink> Unpacker<R> {
    fn attrs(&mut self, entry: &mut Entry, kind: FileType) -> Attrs {
        let mut attrs = Attrs {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: std::mem::take(&mut entry.xattrs),
        };
        self.stats.dropped_xattrs += metadata::reduce(&mut attrs, kind, self.options.ownership);
        attrs
    }

    pub(super) fn create_directory(
        &mut self,
        entry: Entry,
        path: Vec<u8>,
        seq: u64,
    ) -> Result<(), UnpackError> {
        let name = index::name(&path);
        let directory = self.cursor.directory();
        let created = match mkdirat(directory, name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let stat =
                    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|source| {
                        UnpackError::Inspect {
                            path: path[..].into(),
                            source: source.into(),
                        }
                    })?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    Ok(())
                } else {
                    self.remove(&path)?;
                    mkdirat(directory, name, Mode::RWXU)
                }
            }
            created => created,
        };
        created.map_err(|source| UnpackError::CreateDirectory {
            path: path[..].into(),
            source: source.into(),
        })?;
        self.note_directory(entry, path, seq)
    }

    pub(super) fn note_directory(
        &mut self,
        mut entry: Entry,
        path: Vec<u8>,
        seq: u64,
    ) -> Result<(), UnpackError> {
        let attrs = self.attrs(&mut entry, FileType::Directory);
        self.record(&Record {
            path,
            seq,
            node: Some(Node::Directory { attrs, late: None }),
            ..Record::default()
        })
    }

    pub(super) fn create_symlink(
        &mut self,
        mut entry: Entry,
        path: Vec<u8>,
        seq: u64,
    ) -> Result<(), UnpackError> {
        let limit = self.options.limits.max_path_bytes;
        let fault = match entry.link.len() {
            0 => Some(NameError::Empty),
            length if length > limit => Some(NameError::TooLong { limit }),
            _ => None,
        };
        if let Some(source) = fault {
            return Err(UnpackError::Target {
                path: path[..].into(),
                target: entry.link[..].into(),
                source,
            });
        }
        let target = std::mem::take(&mut entry.link);
        self.replacing(
            &path,
            |directory, name| symlinkat(&target[..], directory, name),
            |path, source| UnpackError::CreateSymlink { path, source },
        )?;
        let attrs = self.attrs(&mut entry, FileType::Symlink);
        let inode = self.settle(&path, &attrs)?;
        self.record(&Record {
            path,
            seq,
            node: Some(Node::Symlink {
                attrs,
                target,
                inode,
            }),
            ..Record::default()
        })
    }

    pub(super) fn create_special(
        &mut self,
        mut entry: Entry,
        path: Vec<u8>,
        kind: SpecialKind,
        seq: u64,
    ) -> Result<(), UnpackError> {
        let file_type = match kind {
            SpecialKind::Fifo => FileType::Fifo,
            SpecialKind::Char => FileType::CharacterDevice,
            SpecialKind::Block => FileType::BlockDevice,
        };
        let device = match kind {
            SpecialKind::Fifo => (0, 0),
            SpecialKind::Char | SpecialKind::Block => entry.device,
        };
        if kind != SpecialKind::Fifo && self.options.ownership == Ownership::Single {
            return Err(UnpackError::DeviceNeedsRoot {
                path: path[..].into(),
            });
        }
        if device.0 > MAX_DEVICE.0 || device.1 > MAX_DEVICE.1 {
            return Err(UnpackError::DeviceNumber {
                path: path[..].into(),
                major: device.0,
                minor: device.1,
            });
        }
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        self.replacing(
            &path,
            |directory, name| {
                mknodat(
                    directory,
                    name,
                    file_type,
                    mode,
                    makedev(device.0, device.1),
                )
            },
            |path, source| UnpackError::CreateSpecial { path, source },
        )?;
        let attrs = self.attrs(&mut entry, file_type);
        let inode = self.settle(&path, &attrs)?;
        self.record(&Record {
            path,
            seq,
            node: Some(Node::Special {
                attrs,
                kind,
                device,
                inode,
            }),
            ..Record::default()
        })
    }

    /// Gives what was just made at `path`, where the cursor is, its metadata;
    /// returns its inode number.
    fn settle(&self, path: &[u8], attrs: &Attrs) -> Result<u64, UnpackError> {
        let directory = self.cursor.directory();
        let name = index::name(path);
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|source| {
            UnpackError::Inspect {
                path: path.into(),
                source: source.into(),
            }
        })?;
        let inode = Inode::Named { directory, name };
        metadata::set(inode, &stat, attrs, self.options.ownership).map_err(|source| {
            UnpackError::Metadata {
                path: path.into(),
                source,
            }
        })?;
        Ok(stat.st_ino)
    }

    pub(super) fn create_file(
        &mut self,
        mut entry: Entry,
        path: Vec<u8>,
        target: Target,
    ) -> Result<(), UnpackError> {
        // Set-id bits come last: a write would take them away again. Without
        // root so does what closes the file to its owner, who could otherwise
        // not give it extended attributes.
        let mode = Mode::from_raw_mode(match self.options.ownership {
            Ownership::Real => entry.mode & 0o777,
            Ownership::Single => entry.mode & 0o777 | 0o600,
        });
        let directory = match (target, &self.pseudo_links) {
            (Target::PseudoLink, Some(directory)) => directory.as_fd(),
            _ => self.cursor.directory(),
        };
        let fd = replacing(
            directory,
            &path,
            |directory, name| openat(directory, name, CREATE, mode),
            |path, source| UnpackError::CreateFile { path, source },
        )?;
        let attrs = self.attrs(&mut entry, FileType::RegularFile);
        self.file = Some(OpenFile {
            fd,
            path,
            target,
            attrs,
            size: entry.size,
            end: 0,
        });
        Ok(())
    }

    pub(super) fn create_pseudo_links(&self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let root = self.cursor.root();
        mkdirat(root, name::PSEUDO_LINKS, Mode::RWXU)
            .and_then(|()| {
                openat(
                    root,
                    name::PSEUDO_LINKS,
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
            })
            .map_err(|source| UnpackError::CreateDirectory {
                path: path.into(),
                source: source.into(),
            })
    }

    /// [`replacing`] where the cursor is.
    pub(super) fn replacing<T>(
        &self,
        path: &[u8],
        create: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
        fault: impl FnOnce(PathText, io::Error) -> UnpackError,
    ) -> Result<T, UnpackError> {
        replacing(self.cursor.directory(), path, create, fault)
    }

    /// Removes what is at `path`, in the directory where the cursor is.
    pub(super) fn remove(&self, path: &[u8]) -> Result<(), UnpackError> {
        remove(self.cursor.directory(), path)
    }

    pub(super) fn finish_file(&mut self, file: OpenFile) -> Result<(), UnpackError> {
        if file.end < file.size {
            ftruncate(&file.fd, file.size).map_err(|source| UnpackError::Write {
                path: file.path[..].into(),
                source: source.into(),
            })?;
        }
        let stat = fstat(&file.fd).map_err(|source| UnpackError::Inspect {
            path: file.path[..].into(),
            source: source.into(),
        })?;
        let inode = Inode::Open(file.fd.as_fd());
        metadata::set(inode, &stat, &file.attrs, self.options.ownership).map_err(|source| {
            UnpackError::Metadata {
                path: file.path[..].into(),
                source,
            }
        })?;
        let Target::Tree { seq } = file.target else {
            return Ok(());
        };
        self.record(&Record {
            path: file.path,
            seq,
            node: Some(Node::File {
                attrs: file.attrs,
                size: file.size,
                inode: stat.st_ino,
            }),
            ..Record::default()
        })
    }
}

pub(super) fn write_at(fd: &OwnedFd, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(fd, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                bytes = &bytes[written..];
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Makes the last component of `path` in `directory`, which the rest of `path`
/// led to. Only if something is there already is it looked at, and removed.
fn replacing<T>(
    directory: BorrowedFd<'_>,
    path: &[u8],
    create: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    fault: impl FnOnce(PathText, io::Error) -> UnpackError,
) -> Result<T, UnpackError> {
    let name = index::name(path);
    let created = match create(directory, name) {
        Err(Errno::EXIST) => {
            remove(directory, path)?;
            create(directory, name)
        }
        created => created,
    };
    created.map_err(|source| fault(path.into(), source.into()))
}

fn remove(directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
    remove_tree(directory, index::name(path)).map_err(|source| UnpackError::Replace {
        path: path.into(),
        source,
    })
}
