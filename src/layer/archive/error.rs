//! What can be wrong with an archive.

use std::fmt;

/// Bytes of a name shown in a message; the rest of a longer one is left out.
const MAX_SHOWN_BYTES: usize = 256;

/// The name of a member as the archive has it, for messages: shown with its
/// control and non-ASCII bytes escaped and a bounded length, so that a layer
/// cannot write into a log.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EntryName(pub Vec<u8>);

impl From<&[u8]> for EntryName {
    fn from(name: &[u8]) -> Self {
        EntryName(name.to_vec())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(no name)");
        }
        let shown = &self.0[..self.0.len().min(MAX_SHOWN_BYTES)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            write!(f, "… ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The headers that say something about the member after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtensionKind {
    /// PAX records for one member (`x`).
    Pax,
    /// PAX records for all members from here on (`g`).
    GlobalPax,
    /// GNU long name (`L`).
    LongName,
    /// GNU long link target (`K`).
    LongLink,
}

impl fmt::Display for ExtensionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExtensionKind::Pax => "extended header",
            ExtensionKind::GlobalPax => "global extended header",
            ExtensionKind::LongName => "long name",
            ExtensionKind::LongLink => "long link target",
        })
    }
}

/// How a PAX record breaks the form `length key=value\n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFault {
    /// The length is no decimal number, or no space follows it.
    Length,
    /// The record would end beyond its header, or before its own value.
    Bounds,
    /// The last byte is no newline.
    Newline,
    /// There is no `=`, or no key before it.
    Key,
}

impl fmt::Display for RecordFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordFault::Length => "its length is no number",
            RecordFault::Bounds => "its length does not fit",
            RecordFault::Newline => "it does not end in a newline",
            RecordFault::Key => "it has no key",
        })
    }
}

/// What is wrong with the description of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparseFault {
    /// A version of the PAX sparse format other than 0.0, 0.1 and 1.0.
    Version,
    /// A member that is no regular file.
    NotAFile,
    /// A GNU sparse member in a header that is not of the GNU format (the
    /// STAR format has the same type with another layout).
    NotGnu,
    /// No apparent size, or two different ones.
    Size,
    /// A number of the map is none, or is missing.
    Number,
    /// The map has not as many segments as it says.
    Count,
    /// Descriptions of two versions at once: readers differ in which they take.
    Mixed,
    /// A segment overlaps or precedes the one before it.
    Order,
    /// A segment ends beyond the apparent size.
    BeyondEnd,
    /// The segments are not together as long as the data that is stored.
    StoredLength,
}

impl fmt::Display for SparseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SparseFault::Version => "its version is unknown",
            SparseFault::NotAFile => "the member is no regular file",
            SparseFault::NotGnu => "the header is not of the GNU format",
            SparseFault::Size => "it has no single apparent size",
            SparseFault::Number => "a number of its map is malformed or missing",
            SparseFault::Count => "its map has not the promised length",
            SparseFault::Mixed => "it is described twice",
            SparseFault::Order => "its segments overlap or are out of order",
            SparseFault::BeyondEnd => "a segment ends beyond its size",
            SparseFault::StoredLength => "its segments do not add up to the stored data",
        })
    }
}

/// Why an archive was refused. `at` is the offset in the uncompressed tar of
/// the header concerned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    // Limits.
    /// Attack: millions of empty members, each half a kilobyte that compresses
    /// to nothing, use up the node's inodes.
    #[error("more than {limit} members, at {name}")]
    TooManyEntries {
        /// `max_entries`.
        limit: u64,
        /// The first member too many.
        name: EntryName,
    },
    /// Attack: names that no system call takes fail late, after the rest was
    /// written, or are cut to the name of something else.
    #[error("path of {seen} bytes, the limit is {limit}: {name}")]
    PathTooLong {
        /// `max_path_bytes`.
        limit: usize,
        /// Bytes of the path.
        seen: usize,
        /// The path.
        name: EntryName,
    },
    /// As [`ArchiveError::PathTooLong`], of the target of a link.
    #[error("link target of {seen} bytes, the limit is {limit}: {name}")]
    LinkTooLong {
        /// `max_path_bytes`.
        limit: usize,
        /// Bytes of the target.
        seen: usize,
        /// The link.
        name: EntryName,
    },
    /// Attack: an extension header is the one thing that a reader must hold in
    /// memory as a whole; a large one, or one that only claims to be, exhausts it.
    #[error("{kind} of {seen} bytes, the limit is {limit}, at offset {at}")]
    HeaderTooLarge {
        /// `max_header_bytes`.
        limit: usize,
        /// Bytes that the header claims.
        seen: u64,
        /// Which header.
        kind: ExtensionKind,
        /// Offset of it.
        at: u64,
    },
    /// Attack: attributes are kept by the file system in scarce space, and
    /// global ones come back with every member.
    #[error("extended attributes of {seen} bytes, the limit is {limit}: {name}")]
    XattrsTooLarge {
        /// `max_xattr_bytes`.
        limit: usize,
        /// Bytes of names and values.
        seen: usize,
        /// The member; no name if they are of a global header.
        name: EntryName,
    },
    /// Attack: a sparse map of millions of empty segments costs memory and
    /// time for a file that holds nothing.
    #[error("sparse file of {seen} segments, the limit is {limit}: {name}")]
    TooManySegments {
        /// `max_sparse_segments`.
        limit: usize,
        /// Segments promised, or read so far.
        seen: u64,
        /// The file, as far as its name is known.
        name: EntryName,
    },
    /// Attack: a sparse file of exabytes costs nothing to send; whoever copies
    /// it up, or sums sizes, pays.
    #[error("files of {seen} bytes together, holes included, the limit is {limit}, at {name}")]
    ApparentTooLarge {
        /// `max_apparent_bytes`.
        limit: u64,
        /// Sum of sizes with this file.
        seen: u64,
        /// The file that exceeded it.
        name: EntryName,
    },

    // Blocks.
    /// The block is no header: damaged, or the reader was led to a wrong place.
    #[error("header with a wrong checksum at offset {at}")]
    Checksum {
        /// Offset of the block.
        at: u64,
    },
    /// A block of zeros with a member after it: some readers stop there,
    /// others go on.
    #[error("member after a block of zeros at offset {at}")]
    LoneZeroBlock {
        /// Offset of the member's header.
        at: u64,
    },
    /// A number in a header is malformed, negative where that makes no sense,
    /// or beyond 64 bits. (Attack: a negative size makes some readers walk
    /// backwards for ever.)
    #[error("{field} is no valid number in the header at offset {at}")]
    Number {
        /// The field.
        field: &'static str,
        /// Offset of the header.
        at: u64,
    },
    /// A number is well-formed, but not one that the kernel has: an owner
    /// beyond 32 bits or equal to 2³²−1 (which chown(2) reads as "leave it").
    #[error("{field} {value} is out of range: {name}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it is.
        value: i128,
        /// The member.
        name: EntryName,
    },
    /// A type of member that layers do not have.
    #[error("unknown type {:?} of member {name}", char::from(*.kind))]
    UnknownKind {
        /// The type, a byte.
        kind: u8,
        /// The member.
        name: EntryName,
    },
    /// The member began in another archive (type `M`).
    #[error("continuation of a multi-volume archive: {name}")]
    MultiVolume {
        /// The member.
        name: EntryName,
    },

    // Extension headers.
    /// A PAX record is malformed. Skipping it would let two readers see two
    /// archives.
    #[error("malformed extended header record at offset {at}: {fault}")]
    Record {
        /// What is wrong.
        fault: RecordFault,
        /// Offset of the extension header.
        at: u64,
    },
    /// The value of a PAX record is not of its key's form.
    #[error("invalid value of {key} in the extended header at offset {at}")]
    RecordValue {
        /// The key.
        key: EntryName,
        /// Offset of the extension header.
        at: u64,
    },
    /// A name with a NUL in it, which C programs cut there and others do not.
    #[error("NUL inside {field} in the header at offset {at}")]
    EmbeddedNul {
        /// What has it.
        field: EntryName,
        /// Offset of the header.
        at: u64,
    },
    /// A global header sets what only one member can have.
    #[error("{key} in the global extended header at offset {at}")]
    GlobalKey {
        /// The key.
        key: EntryName,
        /// Offset of the extension header.
        at: u64,
    },
    /// Two extension headers of one kind for one member: readers differ in
    /// which one counts.
    #[error("second {kind} for one member at offset {at}")]
    DuplicateExtension {
        /// Which kind.
        kind: ExtensionKind,
        /// Offset of the second.
        at: u64,
    },
    /// An extension header with no member after it.
    #[error("extension header without a member before offset {at}")]
    OrphanExtension {
        /// Offset at which the member was missing.
        at: u64,
    },
    /// A member that PAX and GNU headers give different names: readers differ
    /// in which one counts.
    #[error("member with two names, {pax} and {gnu}")]
    ConflictingNames {
        /// Path or link target of the PAX header.
        pax: EntryName,
        /// That of the GNU header.
        gnu: EntryName,
    },
    /// The description of a sparse file makes no sense.
    #[error("invalid sparse file {name}: {fault}")]
    Sparse {
        /// What is wrong.
        fault: SparseFault,
        /// The file, as far as its name is known.
        name: EntryName,
    },

    /// The stream ended inside a header, or inside a member's data.
    #[error("archive ends inside a header or member, after {at} bytes")]
    Truncated {
        /// Length of the stream.
        at: u64,
    },
}
