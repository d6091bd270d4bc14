//! Entries to tar, for the export of a writable layer: POSIX headers where
//! everything fits, PAX records for the rest. The same entries always give the
//! same bytes.

use super::header::{BLOCK_BYTES, Block, checksum, padding};
use super::pax::{LIBARCHIVE_XATTR, SCHILY_XATTR};
use super::{Entry, EntryKind, EntryName, Timestamp};
use std::io;

/// Largest number of a field of eight bytes: seven octal digits and a NUL.
const MAX_SHORT: u64 = (1 << 21) - 1;
/// Largest number of a field of twelve bytes: eleven octal digits and a NUL.
const MAX_LONG: u64 = (1 << 33) - 1;
const NAME_BYTES: usize = 100;
const PREFIX_BYTES: usize = 155;

/// Writes an archive. For each member: [`Writer::entry`], then its data, as
/// many bytes as [`Entry::size`] says; at last [`Writer::finish`].
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    /// Bytes of the current member that are still to come.
    missing: u64,
    /// Padding behind them.
    padding: u64,
    /// The current member.
    name: EntryName,
    /// Extension records; kept to reuse its memory.
    records: Vec<u8>,
}

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The underlying writer failed.
    #[error("failed to write the archive member {name}")]
    Write {
        /// The member.
        name: EntryName,
        /// What failed.
        source: io::Error,
    },
    /// The underlying writer failed at the end of the archive.
    #[error("failed to write the end of the archive")]
    WriteEnd(#[source] io::Error),
    /// More data than the entry's size.
    #[error("{excess} bytes more than its size for the archive member {name}")]
    TooLong {
        /// Bytes too many.
        excess: u64,
        /// The member.
        name: EntryName,
    },
    /// The next member or the end came before all of the data.
    #[error("{missing} bytes less than its size for the archive member {name}")]
    TooShort {
        /// Bytes too few.
        missing: u64,
        /// The member.
        name: EntryName,
    },
    /// A path, link target or attribute name that no archive can hold: empty,
    /// or with a NUL in it.
    #[error("{field} of the archive member {name} is empty or has a NUL")]
    Name {
        /// Which of them.
        field: &'static str,
        /// The member.
        name: EntryName,
    },
    /// A size that no file can have.
    #[error("size of {size} bytes of the archive member {name}")]
    Size {
        /// [`Entry::size`].
        size: u64,
        /// The member.
        name: EntryName,
    },
}

impl<W: io::Write> Writer<W> {
    /// A writer of an archive into `inner`, which should be buffered.
    pub fn new(inner: W) -> Self {
        Writer {
            inner,
            missing: 0,
            padding: 0,
            name: EntryName::default(),
            records: Vec::new(),
        }
    }

    /// Begins a member. The path is written as it is; a directory's may end in `/`.
    ///
    /// # Errors
    /// [`WriteError::TooShort`] if the member before is not complete,
    /// [`WriteError::Name`] and [`WriteError::Size`] for what a tar cannot say,
    /// [`WriteError::Write`].
    pub fn entry(&mut self, entry: &Entry) -> Result<(), WriteError> {
        self.complete()?;
        self.name.0.clone_from(&entry.path);
        check(entry)?;
        let mut block = [0u8; BLOCK_BYTES];
        self.records.clear();
        let size = match entry.kind {
            EntryKind::File => entry.size,
            _ => 0,
        };
        describe(entry, size, &mut block, &mut self.records);
        if !self.records.is_empty() {
            let mut extension = [0u8; BLOCK_BYTES];
            put(&mut extension, 0, b"PaxHeaders/0");
            put_octal(&mut extension[100..108], 0o644);
            put_octal(&mut extension[108..116], 0);
            put_octal(&mut extension[116..124], 0);
            // Far below the field's limit: no name or attribute is gigabytes long.
            put_octal(&mut extension[124..136], self.records.len() as u64);
            put_octal(&mut extension[136..148], 0);
            seal(&mut extension, b'x');
            let padding = padding(self.records.len() as u64);
            self.records
                .resize(self.records.len() + padding as usize, 0);
            write(&mut self.inner, &extension, &self.name)?;
            write(&mut self.inner, &self.records, &self.name)?;
        }
        write(&mut self.inner, &block, &self.name)?;
        self.missing = size;
        self.padding = padding(size);
        Ok(())
    }

    /// Writes the next bytes of the member's data.
    ///
    /// # Errors
    /// [`WriteError::TooLong`], [`WriteError::Write`].
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        match self.missing.checked_sub(bytes.len() as u64) {
            Some(missing) => self.missing = missing,
            None => {
                return Err(WriteError::TooLong {
                    excess: bytes.len() as u64 - self.missing,
                    name: self.name.clone(),
                });
            }
        }
        write(&mut self.inner, bytes, &self.name)
    }

    /// Ends the archive and gives the underlying writer back, flushed.
    ///
    /// # Errors
    /// [`WriteError::TooShort`], [`WriteError::Write`], [`WriteError::WriteEnd`].
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.complete()?;
        self.inner
            .write_all(&[0; 2 * BLOCK_BYTES])
            .and_then(|()| self.inner.flush())
            .map_err(WriteError::WriteEnd)?;
        Ok(self.inner)
    }

    /// Pads the member before.
    fn complete(&mut self) -> Result<(), WriteError> {
        if self.missing > 0 {
            return Err(WriteError::TooShort {
                missing: self.missing,
                name: self.name.clone(),
            });
        }
        let padding = std::mem::take(&mut self.padding) as usize;
        write(&mut self.inner, &[0; BLOCK_BYTES][..padding], &self.name)
    }
}

fn write(inner: &mut impl io::Write, bytes: &[u8], name: &EntryName) -> Result<(), WriteError> {
    inner.write_all(bytes).map_err(|source| WriteError::Write {
        name: name.clone(),
        source,
    })
}

fn check(entry: &Entry) -> Result<(), WriteError> {
    let is_name = |name: &[u8]| !name.is_empty() && !name.contains(&0);
    let field = if !is_name(&entry.path) {
        Some("path")
    } else if has_link(entry) && !is_name(&entry.link) {
        Some("link target")
    } else if !entry.xattrs.iter().all(|(name, _)| is_name(name)) {
        Some("attribute name")
    } else {
        None
    };
    let name = || EntryName(entry.path.clone());
    if let Some(field) = field {
        return Err(WriteError::Name {
            field,
            name: name(),
        });
    }
    if i64::try_from(entry.size).is_err() {
        return Err(WriteError::Size {
            size: entry.size,
            name: name(),
        });
    }
    Ok(())
}

fn has_link(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::HardLink | EntryKind::Symlink)
}

/// Writes an entry into a header block, and what does not fit as records.
fn describe(entry: &Entry, size: u64, block: &mut Block, records: &mut Vec<u8>) {
    let link = if has_link(entry) {
        &entry.link[..]
    } else {
        &[]
    };
    let (prefix, name) = split_path(&entry.path);
    let path_fits = is_portable(&entry.path) && name.len() <= NAME_BYTES;
    let link_fits = is_portable(link) && link.len() <= NAME_BYTES;
    let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
    // It is about the values of the whole header, so it comes first.
    if !path_fits && !is_text(&entry.path) || !link_fits && !is_text(link) {
        push_record(records, b"hdrcharset", b"", b"BINARY");
    }
    if path_fits {
        put(block, 345, prefix);
        put(block, 0, name);
    } else {
        push_record(records, b"path", b"", &entry.path);
        // For readers that know no PAX.
        put(block, 0, &entry.path[..entry.path.len().min(NAME_BYTES)]);
    }
    if !link_fits {
        push_record(records, b"linkpath", b"", link);
    }
    put(block, 157, &link[..link.len().min(NAME_BYTES)]);
    put_octal(&mut block[100..108], u64::from(entry.mode & 0o7777));
    let mut numbers = vec![
        (108..116, u64::from(entry.uid), &b"uid"[..]),
        (116..124, u64::from(entry.gid), b"gid"),
        (124..136, size, b"size"),
    ];
    if matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
        numbers.push((329..337, u64::from(entry.device.0), b"SCHILY.devmajor"));
        numbers.push((337..345, u64::from(entry.device.1), b"SCHILY.devminor"));
    }
    for (range, number, key) in numbers {
        let field = &mut block[range];
        let limit = if field.len() == 8 {
            MAX_SHORT
        } else {
            MAX_LONG
        };
        // Zero, not a number cut off, where a record has the right one.
        put_octal(field, if number <= limit { number } else { 0 });
        if number > limit {
            push_record(records, key, b"", number.to_string().as_bytes());
        }
    }
    let seconds = u64::try_from(entry.mtime.seconds).unwrap_or(0);
    put_octal(&mut block[136..148], seconds.min(MAX_LONG));
    if entry.mtime.nanos != 0 || entry.mtime.seconds < 0 || seconds > MAX_LONG {
        push_record(records, b"mtime", b"", decimal_time(entry.mtime).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        // The first `=` of a record ends its key, so such a name is encoded.
        if name.contains(&b'=') {
            push_record(
                records,
                LIBARCHIVE_XATTR,
                &percent_encode(name),
                &base64_encode(value),
            );
        } else {
            push_record(records, SCHILY_XATTR, name, value);
        }
    }
    let kind = match entry.kind {
        EntryKind::File => b'0',
        EntryKind::HardLink => b'1',
        EntryKind::Symlink => b'2',
        EntryKind::CharDevice => b'3',
        EntryKind::BlockDevice => b'4',
        EntryKind::Directory => b'5',
        EntryKind::Fifo => b'6',
    };
    seal(block, kind);
}

/// Whether a name may stand in a header block, whose charset nobody knows.
fn is_portable(name: &[u8]) -> bool {
    name.is_ascii()
}

/// Prefix and name, if the path has a slash to be split at and needs it;
/// otherwise no prefix and the whole path.
fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= NAME_BYTES {
        return (&[], path);
    }
    let mut slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let split = slashes.find_map(|(at, _)| {
        let name = path.len() - at - 1;
        (1..=NAME_BYTES).contains(&name).then_some(at)
    });
    match split {
        // The prefix may not be empty, or the leading slash would be lost.
        Some(at) if (1..=PREFIX_BYTES).contains(&at) => (&path[..at], &path[at + 1..]),
        _ => (&[], path),
    }
}

fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Octal digits that fill the field but its last byte, which stays NUL.
fn put_octal(field: &mut [u8], mut number: u64) {
    if let Some((_, digits)) = field.split_last_mut() {
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number & 7) as u8;
            number >>= 3;
        }
    }
}

/// Sets type, format and checksum.
fn seal(block: &mut Block, kind: u8) {
    block[156] = kind;
    put(block, 257, b"ustar\x0000");
    let checksum = checksum(block);
    put_octal(&mut block[148..155], u64::from(checksum));
    block[155] = b' ';
}

/// Appends `length key=value\n`, in which the length counts its own digits.
fn push_record(records: &mut Vec<u8>, key: &[u8], key_rest: &[u8], value: &[u8]) {
    // A space, `=` and a newline besides.
    let content = key.len() + key_rest.len() + value.len() + 3;
    let digits = |number: usize| number.checked_ilog10().unwrap_or(0) as usize + 1;
    let mut length = content + digits(content);
    if digits(length) > digits(content) {
        length += 1;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.extend_from_slice(key_rest);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn decimal_time(time: Timestamp) -> String {
    // Before 1970 the fraction counts away from the epoch like the seconds.
    let (sign, seconds, nanos) = match (time.seconds < 0, time.nanos) {
        (false, nanos) => ("", time.seconds.unsigned_abs(), nanos),
        (true, 0) => ("-", time.seconds.unsigned_abs(), 0),
        (true, nanos) => (
            "-",
            time.seconds.unsigned_abs() - 1,
            1_000_000_000u32.saturating_sub(nanos),
        ),
    };
    if nanos == 0 {
        return format!("{sign}{seconds}");
    }
    let text = format!("{sign}{seconds}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

fn percent_encode(name: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(name.len());
    for byte in name {
        if byte.is_ascii_graphic() && !matches!(byte, b'%' | b'=') {
            encoded.push(*byte);
        } else {
            encoded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    encoded
}

/// Base64 without padding, as libarchive writes it.
fn base64_encode(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut padded = [0u8; 4];
        padded[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(padded);
        for digit in 0..=group.len() {
            encoded.push(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]);
        }
    }
    encoded
}
