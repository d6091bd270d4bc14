//! One inode, copied with data, holes and metadata.

use super::ApplyError;
use crate::layer::tree::metadata::{self, Inode, Reader};
use crate::layer::tree::{MetadataError, Ownership};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, copy_file_range, fstat, ftruncate,
    ioctl_ficlone, mknodat, openat, readlinkat, seek, statat, symlinkat,
};
use rustix::io::{Errno, pread, pwrite};
use std::io;

const BUFFER_BYTES: usize = 256 << 10;

/// Why an inode could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyFault {
    /// A directory, which is never copied as one inode.
    #[error("it is a directory")]
    Directory,
    /// stat(2), open(2) or readlink(2) of what is to be copied.
    #[error("cannot open what is to be copied")]
    Open {
        /// What the kernel said.
        source: io::Error,
    },
    /// open(2), symlink(2) or mknod(2) of the copy.
    #[error("cannot make the copy")]
    Create {
        /// What the kernel said.
        source: io::Error,
    },
    /// The data.
    #[error("cannot copy the data")]
    Data {
        /// What the kernel said.
        source: io::Error,
    },
    /// It is shorter than it was when the copy began.
    #[error("it became shorter while it was copied")]
    Shortened,
    /// The metadata, of either.
    #[error("cannot copy the metadata")]
    Metadata {
        /// Why.
        source: MetadataError,
    },
}

/// What the directories are like that copies are made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directories {
    /// Made here, without metadata.
    Bare,
    /// With the layer's metadata, of which they may hand some down.
    Finished,
}

/// Copies inodes into one filesystem, by the cheapest means that it has.
pub(super) struct Copier {
    ownership: Ownership,
    directories: Directories,
    reader: Reader,
    /// Whether extents can be shared; false after the first refusal.
    clones: bool,
    /// Whether the kernel copies by itself; false after the first refusal.
    copies: bool,
    /// For the case that it does neither; allocated then.
    buffer: Vec<u8>,
    /// Data copied so far.
    pub(super) bytes: u64,
}

impl Copier {
    /// `fresh` is a directory without metadata on the filesystem of the copies.
    pub(super) fn new(
        fresh: BorrowedFd<'_>,
        directories: Directories,
        ownership: Ownership,
    ) -> Result<Self, ApplyError> {
        Ok(Copier {
            ownership,
            directories,
            reader: Reader::new(fresh).map_err(|source| ApplyError::RootMetadata { source })?,
            clones: true,
            copies: true,
            buffer: Vec::new(),
            bytes: 0,
        })
    }

    /// Leaves out means of copying that the filesystem may well have.
    #[cfg(test)]
    pub(super) fn force(&mut self, clones: bool, copies: bool) {
        (self.clones, self.copies) = (clones, copies);
    }

    /// Copies `from` in the directory `source` to the new name `to` in `target`.
    pub(super) fn copy(
        &mut self,
        source: BorrowedFd<'_>,
        from: &[u8],
        target: BorrowedFd<'_>,
        to: &[u8],
    ) -> Result<(), CopyFault> {
        let stat = statat(source, from, AtFlags::SYMLINK_NOFOLLOW).map_err(open_error)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Err(CopyFault::Directory),
            FileType::RegularFile => self.copy_file(source, from, target, to),
            FileType::Symlink => {
                let text = readlinkat(source, from, Vec::new()).map_err(open_error)?;
                symlinkat(&text, target, to).map_err(create_error)?;
                self.copy_named_metadata(source, from, &stat, target, to)
            }
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
                mknodat(target, to, kind, mode, stat.st_rdev).map_err(create_error)?;
                self.copy_named_metadata(source, from, &stat, target, to)
            }
        }
    }

    fn copy_named_metadata(
        &mut self,
        source: BorrowedFd<'_>,
        from: &[u8],
        stat: &Stat,
        target: BorrowedFd<'_>,
        to: &[u8],
    ) -> Result<(), CopyFault> {
        let made = statat(target, to, AtFlags::SYMLINK_NOFOLLOW).map_err(create_error)?;
        let source = Inode::Named {
            directory: source,
            name: from,
        };
        let target = Inode::Named {
            directory: target,
            name: to,
        };
        self.copy_metadata(source, stat, target, &made)
    }

    fn copy_metadata(
        &mut self,
        source: Inode<'_>,
        stat: &Stat,
        target: Inode<'_>,
        made: &Stat,
    ) -> Result<(), CopyFault> {
        let fault = |source| CopyFault::Metadata { source };
        let ownership = self.ownership;
        let mut attrs = self.reader.read(source, stat, ownership).map_err(fault)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        metadata::reduce(&mut attrs, kind, ownership);
        if self.directories == Directories::Finished {
            self.reader
                .remove_others(target, made, &attrs, ownership)
                .map_err(fault)?;
        }
        metadata::set(target, made, &attrs, ownership).map_err(fault)
    }

    fn copy_file(
        &mut self,
        source: BorrowedFd<'_>,
        from: &[u8],
        target: BorrowedFd<'_>,
        to: &[u8],
    ) -> Result<(), CopyFault> {
        let source = openat(
            source,
            from,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(open_error)?;
        let stat = fstat(&source).map_err(open_error)?;
        let target = openat(
            target,
            to,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(stat.st_mode & 0o777 | 0o600),
        )
        .map_err(create_error)?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        if size > 0 {
            self.copy_data(&source, &target, size)?;
        }
        let made = fstat(&target).map_err(create_error)?;
        self.copy_metadata(
            Inode::Open(source.as_fd()),
            &stat,
            Inode::Open(target.as_fd()),
            &made,
        )
    }

    fn copy_data(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        size: u64,
    ) -> Result<(), CopyFault> {
        if self.clones {
            match ioctl_ficlone(target, source) {
                Ok(()) => {
                    self.bytes += size;
                    return Ok(());
                }
                Err(error @ (Errno::NOSPC | Errno::DQUOT)) => return Err(data_error(error)),
                // Other filesystem, or one without shared extents.
                Err(_) => self.clones = false,
            }
        }
        let mut offset = 0;
        while offset < size {
            let Some((start, end)) = next_data(source, offset, size)? else {
                break;
            };
            self.copy_range(source, target, start, end)?;
            self.bytes += end - start;
            offset = end;
        }
        // A hole at the end is what no write has reached.
        ftruncate(target, size).map_err(data_error)
    }

    fn copy_range(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        mut start: u64,
        end: u64,
    ) -> Result<(), CopyFault> {
        while self.copies && start < end {
            let (mut read_at, mut write_at) = (start, start);
            let length = usize::try_from(end - start).unwrap_or(1 << 30).min(1 << 30);
            match copy_file_range(
                source,
                Some(&mut read_at),
                target,
                Some(&mut write_at),
                length,
            ) {
                // Some kernels copy nothing without saying why.
                Ok(0) => break,
                Ok(copied) => start += copied as u64,
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                    self.copies = false
                }
                Err(error) => return Err(data_error(error)),
            }
        }
        if start < end {
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        while start < end {
            let length = usize::try_from(end - start)
                .unwrap_or(BUFFER_BYTES)
                .min(BUFFER_BYTES);
            let read = match pread(source, &mut self.buffer[..length], start) {
                Ok(0) => return Err(CopyFault::Shortened),
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(data_error(error)),
            };
            let mut written = 0;
            while written < read {
                match pwrite(target, &self.buffer[written..read], start + written as u64) {
                    Ok(0) => return Err(data_error(Errno::IO)),
                    Ok(count) => written += count,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(data_error(error)),
                }
            }
            start += read as u64;
        }
        Ok(())
    }
}

/// The next stretch of data at or after `offset`; none if only a hole is left.
fn next_data(source: &OwnedFd, offset: u64, size: u64) -> Result<Option<(u64, u64)>, CopyFault> {
    let start = match seek(source, SeekFrom::Data(offset)) {
        Ok(start) if start < size => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // A filesystem that does not tell holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((offset, size))),
        Err(error) => return Err(data_error(error)),
    };
    let end = seek(source, SeekFrom::Hole(start)).map_err(data_error)?;
    Ok(Some((start, end.min(size))))
}

fn open_error(source: Errno) -> CopyFault {
    CopyFault::Open {
        source: source.into(),
    }
}

fn create_error(source: Errno) -> CopyFault {
    CopyFault::Create {
        source: source.into(),
    }
}

fn data_error(source: Errno) -> CopyFault {
    CopyFault::Data {
        source: source.into(),
    }
}
