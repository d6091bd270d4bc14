//! Edits as data, and a log of them on disk: a layer that hides a directory of
//! a million names has a million of them.

use crate::layer::index::Attrs;
use crate::layer::index::codec::{
    corrupt, get_attrs, get_bytes, get_u8, get_u64, put_attrs, put_bytes, put_u64,
};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// One change to a layer's directory before it serves as a branch. Paths are
/// relative to the layer's root. Applied in the order given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Edit {
    /// What the layer has at `from` (one inode's name, never a directory) gets
    /// the name `to`; directories on the way exist by then.
    Move {
        /// Where the unpacker put it.
        from: Vec<u8>,
        /// Where it belongs.
        to: Vec<u8>,
    },
    /// Removes an empty directory that only what was moved away implied.
    RemoveDirectory {
        /// The directory.
        path: Vec<u8>,
    },
    /// Removes a name that is not a directory.
    RemoveFile {
        /// The name.
        path: Vec<u8>,
    },
    /// Makes the directory where it is missing; its metadata is `attrs` in the end.
    Directory {
        /// The directory.
        path: Vec<u8>,
        /// Its metadata.
        attrs: Attrs,
    },
    /// Makes a directory of which no layer of the image says anything, to hold
    /// what is beneath; its metadata is [`Attrs::implied`].
    Implied {
        /// The directory.
        path: Vec<u8>,
    },
    /// Copies a non-directory of a lower layer, data and metadata.
    Copy {
        /// Which layer of the image, 0 the lowest.
        layer: usize,
        /// Its place in that layer's directory.
        from: Vec<u8>,
        /// Its name here.
        to: Vec<u8>,
    },
    /// Another name for an inode of this layer.
    Link {
        /// A name that it has already.
        from: Vec<u8>,
        /// The further one.
        to: Vec<u8>,
    },
    /// A marker that hides `path` in the branches below: `.wh.<name>` as an
    /// empty file for AUFS, a 0:0 character device for overlay.
    Whiteout {
        /// The hidden name, without prefix.
        path: Vec<u8>,
    },
    /// Marks the directory opaque (overlay only).
    Opaque {
        /// The directory.
        path: Vec<u8>,
    },
}

impl Edit {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Edit::Move { from, to } => pair(out, 1, from, to),
            Edit::RemoveDirectory { path } => single(out, 2, path),
            Edit::RemoveFile { path } => single(out, 3, path),
            Edit::Directory { path, attrs } => {
                single(out, 4, path);
                put_attrs(out, attrs);
            }
            Edit::Copy { layer, from, to } => {
                pair(out, 5, from, to);
                put_u64(out, *layer as u64);
            }
            Edit::Link { from, to } => pair(out, 6, from, to),
            Edit::Whiteout { path } => single(out, 7, path),
            Edit::Opaque { path } => single(out, 8, path),
            Edit::Implied { path } => single(out, 9, path),
        }
    }

    fn decode(input: &mut &[u8]) -> io::Result<Self> {
        let kind = get_u8(input)?;
        let first = get_bytes(input)?.to_vec();
        Ok(match kind {
            1 => Edit::Move {
                from: first,
                to: get_bytes(input)?.to_vec(),
            },
            2 => Edit::RemoveDirectory { path: first },
            3 => Edit::RemoveFile { path: first },
            4 => Edit::Directory {
                path: first,
                attrs: get_attrs(input)?,
            },
            5 => {
                let to = get_bytes(input)?.to_vec();
                Edit::Copy {
                    from: first,
                    to,
                    layer: get_u64(input)? as usize,
                }
            }
            6 => Edit::Link {
                from: first,
                to: get_bytes(input)?.to_vec(),
            },
            7 => Edit::Whiteout { path: first },
            8 => Edit::Opaque { path: first },
            9 => Edit::Implied { path: first },
            _ => return Err(corrupt("unknown kind of edit")),
        })
    }

    /// Whether the edit only adds to the directory, so that what the unpacker
    /// wrote is still where it was.
    pub fn is_additive(&self) -> bool {
        match self {
            Edit::Move { .. } | Edit::RemoveDirectory { .. } | Edit::RemoveFile { .. } => false,
            Edit::Directory { .. }
            | Edit::Implied { .. }
            | Edit::Copy { .. }
            | Edit::Link { .. }
            | Edit::Whiteout { .. }
            | Edit::Opaque { .. } => true,
        }
    }
}

fn single(out: &mut Vec<u8>, kind: u8, path: &[u8]) {
    out.push(kind);
    put_bytes(out, path);
}

fn pair(out: &mut Vec<u8>, kind: u8, from: &[u8], to: &[u8]) {
    single(out, kind, from);
    put_bytes(out, to);
}

/// Encoded edits kept in memory before they are written.
const BUFFER: usize = 16 << 10;

/// The edits of one layer, in order, in a file of its own.
#[derive(Debug)]
pub struct EditLog {
    file: Arc<File>,
    written: u64,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    hash: Sha256,
    count: u64,
    additive: bool,
    copies: bool,
}

impl EditLog {
    /// An empty log in an empty file.
    pub fn new(file: File) -> io::Result<Self> {
        Ok(EditLog {
            file: Arc::new(file),
            written: 0,
            buffer: Vec::new(),
            scratch: Vec::new(),
            hash: Sha256::new(),
            count: 0,
            additive: true,
            copies: false,
        })
    }

    /// Appends one edit.
    pub fn push(&mut self, edit: &Edit) -> io::Result<()> {
        self.scratch.clear();
        edit.encode(&mut self.scratch);
        self.hash.update(&self.scratch);
        put_u64(&mut self.buffer, self.scratch.len() as u64);
        self.buffer.extend_from_slice(&self.scratch);
        self.count += 1;
        self.additive &= edit.is_additive();
        self.copies |= matches!(edit, Edit::Copy { .. });
        if self.buffer.len() >= BUFFER {
            self.finish()?;
        }
        Ok(())
    }

    /// Writes what is still in memory.
    pub fn finish(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Number of edits.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether the layer needs no edit.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether all edits only add; see [`Edit::is_additive`].
    pub fn is_additive(&self) -> bool {
        self.additive
    }

    /// Whether something of a lower layer is copied, so that the result is not
    /// determined by this layer and the edits alone.
    pub fn copies(&self) -> bool {
        self.copies
    }

    /// sha256 over the encoded edits: equal edits, equal digest.
    pub fn digest(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// Reads the edits back, from the beginning. The log must be finished.
    pub fn read(&self) -> EditReader {
        EditReader {
            file: Arc::clone(&self.file),
            offset: 0,
            end: self.written,
            block: Vec::new(),
            at: 0,
        }
    }

    /// Writes the log to `out`, for [`EditReader::open`].
    pub fn copy_to(&self, mut out: impl Write) -> io::Result<()> {
        let mut reader = self.read();
        while reader.fill(1)? > 0 {
            out.write_all(&reader.block[reader.at..])?;
            reader.at = reader.block.len();
        }
        Ok(())
    }
}

/// Reads an [`EditLog`] in order.
#[derive(Debug)]
pub struct EditReader {
    file: Arc<File>,
    offset: u64,
    end: u64,
    block: Vec<u8>,
    at: usize,
}

impl EditReader {
    /// Reads a log that [`EditLog::copy_to`] wrote.
    pub fn open(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(EditReader {
            file: Arc::new(file),
            offset: 0,
            end,
            block: Vec::new(),
            at: 0,
        })
    }

    /// Makes at least `wanted` bytes available where the log has them; says how many there are.
    fn fill(&mut self, wanted: usize) -> io::Result<usize> {
        let have = self.block.len() - self.at;
        if have < wanted {
            self.block.drain(..self.at);
            self.at = 0;
            let more = (wanted.max(BUFFER) as u64).min(self.end - self.offset) as usize;
            self.block.resize(have + more, 0);
            self.file
                .read_exact_at(&mut self.block[have..], self.offset)?;
            self.offset += more as u64;
        }
        Ok(self.block.len() - self.at)
    }

    fn next_edit(&mut self) -> io::Result<Option<Edit>> {
        let available = self.fill(10)?;
        if available == 0 {
            return Ok(None);
        }
        let mut input = &self.block[self.at..];
        let before = input.len();
        let length = usize::try_from(get_u64(&mut input)?)
            .map_err(|_| corrupt("edit is longer than memory"))?;
        self.at += before - input.len();
        // An edit is two paths and attributes; anything longer is a broken file.
        if length > 1 << 20 || self.fill(length)? < length {
            return Err(corrupt("log ends inside an edit"));
        }
        let mut input = &self.block[self.at..self.at + length];
        let edit = Edit::decode(&mut input)?;
        if !input.is_empty() {
            return Err(corrupt("edit is longer than its content"));
        }
        self.at += length;
        Ok(Some(edit))
    }
}

impl Iterator for EditReader {
    type Item = io::Result<Edit>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_edit();
        if next.is_err() {
            // What follows a broken edit has no meaning: the log ends here.
            self.at = self.block.len();
            self.offset = self.end;
        }
        next.transpose()
    }
}
