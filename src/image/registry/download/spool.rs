//! Files that blobs are fetched into.
//!
//! `<dir>/<32 hex>.<8 hex of the boot id>`, only ever appended to. What a file of
//! this boot has is what was written to it, for the page cache outlives whoever
//! wrote; after a power loss it need not be, so a file of another boot is never
//! used and removed at the start. A kill leaves a shorter file, which the next
//! download of the blob goes on with, or which expires.
//!
//! Who appends holds an exclusive flock. A file that cannot be used is unlinked,
//! never shortened: whoever has it open reads what was there.

use super::super::RegistryError;
use crate::image::digest::Digest;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Hex digits of a file's name that say which blob it is.
const NAME_DIGITS: usize = 32;
/// Those that say of which boot it is.
const BOOT_DIGITS: usize = 8;
/// Of the filesystem's space, one part in this many is left alone.
const RESERVED_PART: u64 = 100;
/// And at least this much: what other programs of a node need to go on.
const RESERVED_BYTES: u64 = 64 << 20;

/// The directory of the spool files, in one boot.
#[derive(Debug)]
pub struct Spools {
    dir: PathBuf,
    boot: String,
}

/// What a filesystem has to give.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    /// Bytes that may be written.
    pub(super) available: u64,
    /// Bytes that are left alone.
    pub(super) reserved: u64,
}

impl Space {
    /// That so many bytes would be needed.
    pub(super) fn is_less_than(self, needed: u64) -> RegistryError {
        RegistryError::NoSpace {
            needed,
            available: self.available,
            reserved: self.reserved,
        }
    }
}

/// One open spool file.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    path: PathBuf,
}

/// An exclusive lock on a spool; given back on drop.
#[derive(Debug)]
pub(super) struct Appending(Option<Arc<Spool>>);

impl Spools {
    /// Makes the directory (not those above it) if it is not there. `boot_id` is
    /// the kernel's.
    pub fn open(dir: &Path, boot_id: &str) -> io::Result<Spools> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let boot: String = boot_id.chars().take(BOOT_DIGITS).collect();
        // Not a UUID as the kernel's are: still one name for each.
        let boot = match is_hex(&boot, BOOT_DIGITS) {
            true => boot,
            false => Digest::of(boot_id.as_bytes()).hex()[..BOOT_DIGITS].to_owned(),
        };
        let dir = dir.to_owned();
        Ok(Spools { dir, boot })
    }

    /// Removes the files of earlier boots, and says how many.
    pub fn clean(&self) -> io::Result<usize> {
        self.remove_where(|boot, _| boot != self.boot)
    }

    /// Removes files that nobody has open for fetching and that nothing was
    /// written to for `age`, and says how many.
    pub fn expire(&self, age: Duration) -> io::Result<usize> {
        let now = SystemTime::now();
        self.remove_where(|_, metadata| {
            let written = metadata.modified().unwrap_or(now);
            now.duration_since(written).is_ok_and(|old| old >= age)
        })
    }

    /// Bytes of the files that nobody has open for fetching or uses.
    pub fn idle_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        self.each(|path, _, metadata| {
            let taken = metadata.blocks().saturating_mul(512);
            bytes += if is_unlocked(path)? { taken } else { 0 };
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Bytes that may be written here.
    pub(super) fn space(&self) -> io::Result<Space> {
        let filesystem = rustix::fs::statvfs(&self.dir)?;
        let all = filesystem.f_blocks.saturating_mul(filesystem.f_frsize);
        let free = filesystem.f_bavail.saturating_mul(filesystem.f_frsize);
        // On a filesystem smaller than ten times that, a tenth.
        let reserved = RESERVED_BYTES.min(all / 10).max(all / RESERVED_PART);
        Ok(Space {
            available: free.saturating_sub(reserved),
            reserved,
        })
    }

    /// Bytes that are there of a blob.
    pub(super) fn length(&self, name: &Digest) -> u64 {
        fs::symlink_metadata(self.path(name)).map_or(0, |metadata| metadata.len())
    }

    /// Opens a blob's file, which is made if it is not there.
    pub(super) fn spool(&self, name: &Digest) -> io::Result<Spool> {
        let path = self.path(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        Ok(Spool { file, path })
    }

    fn path(&self, name: &Digest) -> PathBuf {
        let name = &name.hex()[..NAME_DIGITS];
        self.dir.join(format!("{name}.{}", self.boot))
    }

    fn remove_where(&self, unwanted: impl Fn(&str, &Metadata) -> bool) -> io::Result<usize> {
        let mut removed = 0;
        self.each(|path, boot, metadata| {
            if unwanted(boot, metadata) {
                removed += usize::from(remove_unlocked(path)?);
            }
            Ok(())
        })?;
        Ok(removed)
    }

    /// Visits all files, with the boot that they are of.
    fn each(
        &self,
        mut visit: impl FnMut(&Path, &str, &Metadata) -> io::Result<()>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let boot = name
                .to_str()
                .and_then(|name| name.split_once('.'))
                .filter(|(name, boot)| is_hex(name, NAME_DIGITS) && is_hex(boot, BOOT_DIGITS))
                .map(|(_, boot)| boot);
            // Something else is none of ours.
            let (Some(boot), Ok(metadata)) = (boot, entry.metadata()) else {
                continue;
            };
            if metadata.is_file() {
                visit(&entry.path(), boot, &metadata)?;
            }
        }
        Ok(())
    }
}

/// Whether the file was removed; not if somebody fetches into it or uses it.
fn remove_unlocked(path: &Path) -> io::Result<bool> {
    match opened(path)? {
        Some(spool) => Ok(spool.lock()? && spool.remove()?),
        None => Ok(false),
    }
}

/// Whether nobody fetches into the file or uses it.
fn is_unlocked(path: &Path) -> io::Result<bool> {
    match opened(path)? {
        Some(spool) => spool.lock(),
        None => Ok(false),
    }
}

fn opened(path: &Path) -> io::Result<Option<Spool>> {
    match File::open(path) {
        Ok(file) => Ok(Some(Spool {
            file,
            path: path.to_owned(),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl Spool {
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether the file still has its name.
    pub(super) fn is_current(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match fs::symlink_metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Locks it for appending, unless somebody else has.
    pub(super) fn try_append(self: &Arc<Self>) -> io::Result<Option<Appending>> {
        Ok(self.lock()?.then(|| Appending(Some(self.clone()))))
    }

    fn lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Whether the bytes at `offset` are these.
    pub(super) fn has(&self, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let mut found = vec![0; bytes.len()];
        match self.file.read_exact_at(&mut found, offset) {
            Ok(()) => Ok(found == bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Appends the first `length` bytes of another, which is empty itself.
    pub(super) fn copy_start(&self, from: &Spool, length: u64) -> io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        let mut offset = 0;
        while offset < length {
            let wanted = buffer
                .len()
                .min(usize::try_from(length - offset).unwrap_or(usize::MAX));
            from.file.read_exact_at(&mut buffer[..wanted], offset)?;
            self.write_at(&buffer[..wanted], offset)?;
            offset += wanted as u64;
        }
        Ok(())
    }

    /// Takes the file's name away, if it is still this file's.
    pub(super) fn remove(&self) -> io::Result<bool> {
        if !self.is_current()? {
            return Ok(false);
        }
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Marks it as in use: it does not expire for as long as this is open.
    pub(super) fn hold(&self) {
        // Where it fails, somebody appends to it, which keeps it as well.
        let _ = rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockShared);
    }
}

impl Appending {
    /// Nothing more is to be appended, and the file is in use.
    pub(super) fn end(mut self) {
        if let Some(spool) = self.0.take() {
            spool.hold();
        }
    }
}

impl Drop for Appending {
    fn drop(&mut self) {
        if let Some(spool) = &self.0 {
            // Readers have the same description open, so closing does not unlock.
            let _ = rustix::fs::flock(&spool.file, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const BOOT: &str = "0a1b2c3d-0000-4000-8000-000000000000";
    const OTHER_BOOT: &str = "ffffffff-0000-4000-8000-000000000000";

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_of_another_boot_is_neither_used_nor_kept() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("blobs");
        let name = Digest::of(b"name");
        let first = Spools::open(&dir, BOOT).unwrap();
        first.spool(&name).unwrap().write_at(b"abc", 0).unwrap();
        fs::write(dir.join("README"), "not ours").unwrap();
        assert_eq!(
            fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let file = dir.join(format!("{}.0a1b2c3d", &name.hex()[..32]));
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );

        let same = Spools::open(&dir, BOOT).unwrap();
        assert_eq!((same.clean().unwrap(), same.length(&name)), (0, 3));
        let second = Spools::open(&dir, OTHER_BOOT).unwrap();
        assert_eq!(second.length(&name), 0);
        assert_eq!(second.clean().unwrap(), 1);
        assert_eq!(names(&dir), ["README"]);
        assert_eq!(Spools::open(&dir, "no uuid").unwrap().boot.len(), 8);
    }

    #[test]
    fn only_what_is_old_and_unused_expires() {
        let dir = tempfile::tempdir().unwrap();
        let spools = Spools::open(dir.path(), BOOT).unwrap();
        let spool = |name: &[u8]| Arc::new(spools.spool(&Digest::of(name)).unwrap());
        let (fetched, held, unused) = (spool(b"1"), spool(b"2"), spool(b"3"));
        let appending = fetched.try_append().unwrap().unwrap();
        // Another description, as another process has it.
        assert!(spool(b"1").try_append().unwrap().is_none());
        held.hold();
        assert_eq!(spools.expire(Duration::from_secs(3600)).unwrap(), 0);
        assert_eq!(spools.expire(Duration::ZERO).unwrap(), 1);
        assert!(!unused.is_current().unwrap());
        assert!(fetched.is_current().unwrap() && held.is_current().unwrap());
        drop((appending, held));
        assert_eq!(spools.expire(Duration::ZERO).unwrap(), 2);
    }

    #[test]
    fn a_file_that_took_the_name_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let spools = Spools::open(dir.path(), BOOT).unwrap();
        let name = Digest::of(b"name");
        let first = spools.spool(&name).unwrap();
        assert!(first.remove().unwrap());
        let second = spools.spool(&name).unwrap();
        assert!(!first.is_current().unwrap() && !first.remove().unwrap());
        assert!(second.is_current().unwrap());
    }
}
