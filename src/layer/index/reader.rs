//! Reading an index: one path by binary search, or all in order. Nothing is
//! held in memory but small buffers, so the size of an image does not matter.

use super::cache::Cache;
use super::codec::{corrupt, decode, decode_path};
use super::{Record, Summary, compare, is_below};
use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// First bytes of an index file; the last one is the format's version.
pub(super) const MAGIC: &[u8; 8] = b"aufsidx\x02";
/// Bytes of the trailer: number of records, offset of the table, size of the summary.
pub(super) const TRAILER: u64 = 24;
/// Bytes of the length before each record.
pub(super) const LENGTH: usize = 4;
/// Read at once by a cursor.
const BLOCK: usize = 16 << 10;

/// Number of the file that is opened next; 0 is none's.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A finished index file, open for reading. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Index {
    file: Arc<File>,
    /// The number of the file in caches.
    id: u64,
    cache: Option<Arc<Cache>>,
    count: u64,
    table: u64,
    summary: Summary,
}

impl Index {
    /// Opens an index that [`super::Builder::finish`] wrote. Fails with
    /// `InvalidData` on anything else.
    pub fn open(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut magic = [0; 8];
        if size < MAGIC.len() as u64 + TRAILER {
            return Err(corrupt("index is too short"));
        }
        file.read_exact_at(&mut magic, 0)?;
        if &magic != MAGIC {
            return Err(corrupt("not an index of this version"));
        }
        let mut trailer = [0; TRAILER as usize];
        file.read_exact_at(&mut trailer, size - TRAILER)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&trailer[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (count, table, summary_size) = (number(0), number(8), number(16));
        let end = count
            .checked_mul(8)
            .and_then(|bytes| bytes.checked_add(table))
            .and_then(|end| end.checked_add(summary_size))
            .and_then(|end| end.checked_add(TRAILER));
        if end != Some(size) || summary_size > 4096 {
            return Err(corrupt("index trailer does not fit the file"));
        }
        let mut json = vec![0; summary_size as usize];
        file.read_exact_at(&mut json, size - TRAILER - summary_size)?;
        let summary = serde_json::from_slice(&json)?;
        Ok(Index {
            file: Arc::new(file),
            id: NEXT_ID.fetch_add(1, Relaxed),
            cache: None,
            count,
            table,
            summary,
        })
    }

    /// The same index, whose single paths are read by way of `cache`.
    pub(crate) fn cached(&self, cache: &Arc<Cache>) -> Self {
        Index {
            cache: Some(Arc::clone(cache)),
            ..self.clone()
        }
    }

    /// With the same cache as `other`.
    pub(crate) fn cached_like(self, other: &Index) -> Self {
        Index {
            cache: other.cache.clone(),
            ..self
        }
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.cache {
            Some(cache) => cache.read_at(self.id, &self.file, out, offset),
            None => self.file.read_at(out, offset),
        }
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.cache {
            Some(cache) => match cache.read_at(self.id, &self.file, out, offset)? {
                size if size == out.len() => Ok(()),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            },
            None => self.file.read_exact_at(out, offset),
        }
    }

    /// What the index holds, in numbers.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The record of one path, if the layer says anything about it.
    pub fn get(&self, path: &[u8]) -> io::Result<Option<Record>> {
        let place = self.lower_bound(path)?;
        if place == self.count {
            return Ok(None);
        }
        let bytes = self.record_bytes(place)?;
        if decode_path(&bytes)? == path {
            return decode(&bytes).map(Some);
        }
        Ok(None)
    }

    /// The last record whose path is before `path`, which need not be there.
    pub(crate) fn last_before(&self, path: &[u8]) -> io::Result<Option<Record>> {
        match self.lower_bound(path)?.checked_sub(1) {
            Some(place) => decode(&self.record_bytes(place)?).map(Some),
            None => Ok(None),
        }
    }

    /// Writes a copy of the index to the new file `path`.
    pub fn copy_to(&self, path: &std::path::Path) -> io::Result<()> {
        let out = File::create_new(path)?;
        let size = self.file.metadata()?.len();
        let mut block = vec![0; 64 << 10];
        let mut offset = 0;
        while offset < size {
            let part = (size - offset).min(block.len() as u64) as usize;
            self.file.read_exact_at(&mut block[..part], offset)?;
            out.write_all_at(&block[..part], offset)?;
            offset += part as u64;
        }
        Ok(())
    }

    /// All records in order.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            index: self.clone(),
            place: 0,
            offset: MAGIC.len() as u64,
            block: Vec::new(),
            block_offset: 0,
        }
    }

    /// Number of the first record whose path is not before `path`.
    fn lower_bound(&self, path: &[u8]) -> io::Result<u64> {
        self.partition(0, |found| compare(found, path) == Ordering::Less)
    }

    /// Binary search from record `low`: the first for which `before` is false.
    fn partition(&self, mut low: u64, before: impl Fn(&[u8]) -> bool) -> io::Result<u64> {
        let mut high = self.count;
        let mut head = [0u8; 256];
        while low < high {
            let middle = low + (high - low) / 2;
            let offset = self.offset(middle)?;
            let size = self.read_at(&mut head, offset)?;
            let is_before = match head.get(LENGTH..size).map(decode_path) {
                Some(Ok(found)) => before(found),
                // A path longer than the first read: take the record whole.
                _ => before(decode_path(&self.record_bytes(middle)?)?),
            };
            if is_before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn offset(&self, place: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact_at(&mut bytes, self.table + place * 8)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn record_bytes(&self, place: u64) -> io::Result<Vec<u8>> {
        let offset = self.offset(place)?;
        let mut length = [0; LENGTH];
        self.read_exact_at(&mut length, offset)?;
        let length = u32::from_le_bytes(length);
        // The table may say anything, even what is no place in any file.
        let end = offset.checked_add(LENGTH as u64 + u64::from(length));
        if end.is_none_or(|end| end > self.table) {
            return Err(corrupt("record reaches into the table"));
        }
        let mut bytes = vec![0; length as usize];
        self.read_exact_at(&mut bytes, offset + LENGTH as u64)?;
        Ok(bytes)
    }
}

/// A position in an [`Index`].
#[derive(Debug)]
pub struct Cursor {
    index: Index,
    /// Number of the record that comes next.
    place: u64,
    /// Its offset in the file.
    offset: u64,
    block: Vec<u8>,
    block_offset: u64,
}

impl Cursor {
    /// The next record, none at the end.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        if self.place == self.index.count {
            return Ok(None);
        }
        let mut length = [0; LENGTH];
        length.copy_from_slice(self.bytes(self.offset, LENGTH)?);
        let length = u32::from_le_bytes(length) as usize;
        let record = decode(self.bytes(self.offset + LENGTH as u64, length)?)?;
        self.place += 1;
        self.offset += (LENGTH + length) as u64;
        Ok(Some(record))
    }

    /// Goes on behind everything beneath `dir`, when the cursor is inside it.
    pub fn skip_below(&mut self, dir: &[u8]) -> io::Result<()> {
        self.place = self.index.partition(self.place, |found| {
            compare(found, dir) != Ordering::Greater || is_below(found, dir)
        })?;
        if self.place < self.index.count {
            self.offset = self.index.offset(self.place)?;
        }
        Ok(())
    }

    fn bytes(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let Some(end) = offset
            .checked_add(length as u64)
            .filter(|end| *end <= self.index.table)
        else {
            return Err(corrupt("record reaches into the table"));
        };
        let inside =
            offset >= self.block_offset && end <= self.block_offset + self.block.len() as u64;
        if !inside {
            let size = length.max(BLOCK).min((self.index.table - offset) as usize);
            self.block.resize(size, 0);
            self.index.file.read_exact_at(&mut self.block, offset)?;
            self.block_offset = offset;
        }
        let start = (offset - self.block_offset) as usize;
        Ok(&self.block[start..start + length])
    }
}
