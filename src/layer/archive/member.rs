//! One member: its header block, with what the extension headers before it and
//! the global ones say instead.

use super::error::{ArchiveError, EntryName, SparseFault};
use super::header::{Format, Header};
use super::pax::{Field, Pax, SparsePlan, SparseRecords};
use super::sparse::{Map, fault};
use super::{Entry, EntryKind, Timestamp};
use crate::layer::limits::Limits;

/// Type of a volume's label, which is no member at all.
pub(super) const LABEL: u8 = b'V';

/// What extension headers say about the member to come.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) pax: Option<Pax>,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

/// A member, and where its data is.
#[derive(Debug)]
pub(super) struct Member {
    /// The entry; its size is still zero.
    pub(super) entry: Entry,
    /// Bytes that follow the header, without padding and sparse blocks.
    pub(super) stored: u64,
    pub(super) content: Content,
}

/// What the bytes behind the header are.
#[derive(Debug)]
pub(super) enum Content {
    /// Nothing that is wanted, if anything at all.
    Skipped,
    /// The file.
    Whole,
    /// The file without its holes.
    Sparse(SparsePlan),
}

/// Puts a member together from its header block, whose `size` field and offset
/// `at` are given, and all that stands before it.
pub(super) fn read(
    header: Header<'_>,
    size: u64,
    at: u64,
    pending: Pending,
    global: &Pax,
    limits: &Limits,
) -> Result<Member, ArchiveError> {
    let mut pax = pending.pax.unwrap_or_default();
    let sparse = pax.sparse.take();
    let sparse_name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
    let path = one_name(sparse_name.or(pax.path.take()), pending.long_name)?
        .unwrap_or_else(|| header.path());
    if path.len() > limits.max_path_bytes {
        return Err(ArchiveError::PathTooLong {
            limit: limits.max_path_bytes,
            seen: path.len(),
            name: EntryName(path),
        });
    }
    // The length of the data, not only of the file: a reader that takes the
    // one from here and the other from there loses its place.
    let stored = pax.size.unwrap_or(size);
    let kind = match header.kind() {
        0 if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' | b'D' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'M' => {
            return Err(ArchiveError::MultiVolume {
                name: EntryName(path),
            });
        }
        kind => {
            return Err(ArchiveError::UnknownKind {
                kind,
                name: EntryName(path),
            });
        }
    };
    let link = match kind {
        EntryKind::HardLink | EntryKind::Symlink => {
            one_name(pax.link.take(), pending.long_link)?.unwrap_or_else(|| header.link().to_vec())
        }
        EntryKind::File
        | EntryKind::CharDevice
        | EntryKind::BlockDevice
        | EntryKind::Directory
        | EntryKind::Fifo => Vec::new(),
    };
    if link.len() > limits.max_path_bytes {
        return Err(ArchiveError::LinkTooLong {
            limit: limits.max_path_bytes,
            seen: link.len(),
            name: EntryName(path),
        });
    }
    let uid = pick(pax.uid, global.uid, "uid", header.uid(), at)?;
    let gid = pick(pax.gid, global.gid, "gid", header.gid(), at)?;
    let device = match kind {
        EntryKind::CharDevice | EntryKind::BlockDevice => device(&header, &pax, global, at, &path)?,
        EntryKind::File
        | EntryKind::HardLink
        | EntryKind::Symlink
        | EntryKind::Directory
        | EntryKind::Fifo => (0, 0),
    };
    let mtime = match pax.mtime.over(global.mtime) {
        Some(mtime) => mtime,
        None => Timestamp {
            seconds: number("mtime", header.mtime(), at)?,
            nanos: 0,
        },
    };
    let mode = number("mode", header.mode(), at)?;
    let mut xattrs = pax.xattrs;
    settle_xattrs(&mut xattrs, limits, &path)?;
    let entry = Entry {
        kind,
        mode: (mode & 0o7777) as u32,
        uid: owner("uid", uid, &path)?,
        gid: owner("gid", gid, &path)?,
        mtime,
        size: 0,
        link,
        device,
        xattrs,
        path,
    };
    // Go, GNU tar and libarchive all find no data behind what is no file,
    // apart from the list of names in a dump directory.
    let stored = match header.kind() {
        b'D' => stored,
        _ if kind == EntryKind::File => stored,
        _ => 0,
    };
    let content = content(&header, &entry, sparse, limits)?;
    Ok(Member {
        entry,
        stored,
        content,
    })
}

fn content(
    header: &Header<'_>,
    entry: &Entry,
    sparse: Option<Box<SparseRecords>>,
    limits: &Limits,
) -> Result<Content, ArchiveError> {
    let is_old_sparse = header.kind() == b'S';
    match sparse {
        Some(_) if entry.kind != EntryKind::File => Err(fault(SparseFault::NotAFile, &entry.path)),
        None if entry.kind != EntryKind::File => Ok(Content::Skipped),
        Some(_) if is_old_sparse => Err(fault(SparseFault::Mixed, &entry.path)),
        Some(sparse) => sparse.plan(&entry.path).map(Content::Sparse),
        None if is_old_sparse => old_sparse(header, entry, limits).map(Content::Sparse),
        None => Ok(Content::Whole),
    }
}

fn old_sparse(
    header: &Header<'_>,
    entry: &Entry,
    limits: &Limits,
) -> Result<SparsePlan, ArchiveError> {
    if header.format() != Format::Gnu {
        return Err(fault(SparseFault::NotGnu, &entry.path));
    }
    let size = header
        .sparse_size()
        .ok_or_else(|| fault(SparseFault::Size, &entry.path))?;
    let (fields, extended) = header.sparse_map();
    let mut map = Map::default();
    map.push_old(fields, limits.max_sparse_segments, &entry.path)?;
    Ok(match extended {
        true => SparsePlan::InBlocks { size, map },
        false => SparsePlan::Map { size, map },
    })
}

fn device(
    header: &Header<'_>,
    pax: &Pax,
    global: &Pax,
    at: u64,
    path: &[u8],
) -> Result<(u32, u32), ArchiveError> {
    let (major, minor) = number("device", header.device(), at)?;
    let major = pick(pax.major, global.major, "major", Some(major), at)?;
    let minor = pick(pax.minor, global.minor, "minor", Some(minor), at)?;
    Ok((narrow("major", major, path)?, narrow("minor", minor, path)?))
}

fn number<T>(field: &'static str, number: Option<T>, at: u64) -> Result<T, ArchiveError> {
    number.ok_or(ArchiveError::Number { field, at })
}

/// A number of the local header, the global one, or the header block.
fn pick(
    local: Field<u64>,
    global: Field<u64>,
    field: &'static str,
    block: Option<i64>,
    at: u64,
) -> Result<i128, ArchiveError> {
    match local.over(global) {
        Some(value) => Ok(i128::from(value)),
        None => Ok(i128::from(number(field, block, at)?)),
    }
}

fn narrow(field: &'static str, value: i128, path: &[u8]) -> Result<u32, ArchiveError> {
    u32::try_from(value).map_err(|_| ArchiveError::OutOfRange {
        field,
        value,
        name: path.into(),
    })
}

/// A user or group: 32 bits, and not the number that chown(2) takes for "none".
fn owner(field: &'static str, value: i128, path: &[u8]) -> Result<u32, ArchiveError> {
    match narrow(field, value, path)? {
        u32::MAX => Err(ArchiveError::OutOfRange {
            field,
            value,
            name: path.into(),
        }),
        owner => Ok(owner),
    }
}

/// The name that PAX and GNU headers give; an error if they give two.
fn one_name(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, ArchiveError> {
    // An empty long name is none, as Go has it.
    match (pax, gnu.filter(|gnu| !gnu.is_empty())) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(ArchiveError::ConflictingNames {
            pax: EntryName(pax),
            gnu: EntryName(gnu),
        }),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

/// Sorts by name, keeps the last of each, and checks the limit.
fn settle_xattrs(
    xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>,
    limits: &Limits,
    path: &[u8],
) -> Result<(), ArchiveError> {
    if xattrs.is_empty() {
        return Ok(());
    }
    // Stable: of equal names the later one stays behind the earlier.
    xattrs.sort_by(|a, b| a.0.cmp(&b.0));
    xattrs.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            std::mem::swap(later, kept);
        }
        same
    });
    let seen = xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if seen > limits.max_xattr_bytes {
        return Err(ArchiveError::XattrsTooLarge {
            limit: limits.max_xattr_bytes,
            seen,
            name: path.into(),
        });
    }
    Ok(())
}
