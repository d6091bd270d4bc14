//! The state machine: blocks and bodies to events.

use super::Entry;
use super::error::{ArchiveError, EntryName, ExtensionKind, SparseFault};
use super::header::{BLOCK_BYTES, Block, Header, is_zero, padding, sparse_extension, text};
use super::member::{self, Content, LABEL, Member, Pending};
use super::pax::{Origin, Pax, SparsePlan};
use super::sparse::{Map, MapReader, Segment, fault};
use crate::layer::limits::Limits;

/// Reads a tar from pieces of any length.
///
/// Memory is bounded by [`Limits`]: an extension header is held while it
/// arrives (`max_header_bytes`), then what it says about the next member; a
/// sparse map (`max_sparse_segments`); global attributes (`max_xattr_bytes`).
/// Nothing is allocated for bytes that are only promised.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    state: State,
    /// Bytes used so far, all calls together.
    consumed: u64,
    /// Bytes of a body that nobody wants, before anything else is read.
    skip: u64,
    /// Bytes of padding after that; unlike the body they may be missing at the end.
    padding: u64,
    /// A block that came in pieces, and how much of it is here.
    block: Block,
    block_filled: usize,
    /// An extension header that came in pieces.
    body: Vec<u8>,
    pending: Pending,
    global: Pax,
    /// Members so far.
    entries: u64,
    /// Sum of their apparent sizes.
    apparent: u64,
}

/// What the parser gives its caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The input is used up, and the archive is not at its end. (If the stream
    /// is, [`Parser::finish`] says whether that is right.)
    NeedInput,
    /// A member begins. Zero or more [`Event::Data`] and one
    /// [`Event::EntryEnd`] follow, whatever its kind.
    Entry(Entry),
    /// Bytes of the member, a slice of the input.
    Data {
        /// Where they belong in the file. It only grows within a member; what
        /// is left out is a hole.
        offset: u64,
        /// The bytes, at least one.
        bytes: &'a [u8],
    },
    /// The member is complete.
    EntryEnd,
    /// The archive ended. All input is used now and in calls that follow.
    End,
}

#[derive(Debug)]
enum State {
    /// At a header.
    Header,
    /// After one block of zeros.
    ZeroBlock,
    /// In an extension header's body.
    Extension {
        kind: ExtensionKind,
        size: usize,
        /// Offset of its header.
        at: u64,
    },
    /// In the extension blocks of an old GNU sparse header.
    SparseBlocks { held: Box<Held>, map: Map },
    /// In a sparse map that stands before the data.
    SparseMap { held: Box<Held>, reader: MapReader },
    /// In a member's data.
    Data {
        /// Offset in the file, and what is left of the segment.
        segment: Segment,
        /// Segments behind it.
        segments: std::vec::IntoIter<Segment>,
        /// Padding behind the member.
        padding: u64,
    },
    /// After the end.
    End,
    /// After an error, which every later call gives again.
    Failed(Box<ArchiveError>),
}

/// A sparse member that is not given out until its map is known to be sound.
#[derive(Debug)]
struct Held {
    entry: Entry,
    /// Bytes that follow, the map included.
    stored: u64,
    /// Bytes of them that were read.
    read: u64,
}

impl Parser {
    /// A parser at the start of an archive.
    pub fn new(limits: Limits) -> Self {
        Parser {
            limits,
            state: State::Header,
            consumed: 0,
            skip: 0,
            padding: 0,
            block: [0; BLOCK_BYTES],
            block_filled: 0,
            body: Vec::new(),
            pending: Pending::default(),
            global: Pax::default(),
            entries: 0,
            apparent: 0,
        }
    }

    /// The next event; `input` is advanced past the bytes that it took.
    ///
    /// # Errors
    /// What makes the archive invalid or exceeds a limit. Every later call
    /// gives the same error.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Event<'a>, ArchiveError> {
        self.step(input).inspect_err(|error| {
            self.state = State::Failed(Box::new(error.clone()));
            (self.skip, self.padding) = (0, 0);
        })
    }

    /// To be called at the end of the stream: whether the archive may end here.
    ///
    /// # Errors
    /// [`ArchiveError::Truncated`] inside a header or a member,
    /// [`ArchiveError::OrphanExtension`] before a member, or the error that
    /// [`Parser::next`] had.
    pub fn finish(&self) -> Result<(), ArchiveError> {
        match &self.state {
            State::End => Ok(()),
            State::Failed(error) => Err((**error).clone()),
            State::Header | State::ZeroBlock if self.block_filled == 0 && self.skip == 0 => {
                self.no_orphan(self.consumed)
            }
            State::Header
            | State::ZeroBlock
            | State::Extension { .. }
            | State::SparseBlocks { .. }
            | State::SparseMap { .. }
            | State::Data { .. } => Err(ArchiveError::Truncated { at: self.consumed }),
        }
    }

    /// Bytes that are held for headers, for tests of the bound.
    #[cfg(any(test, feature = "testing"))]
    pub fn held_bytes(&self) -> usize {
        let xattrs = |pax: &Pax| -> usize {
            let bytes = pax
                .xattrs
                .iter()
                .map(|(name, value)| name.len() + value.len());
            bytes.sum()
        };
        let segments = match &self.state {
            State::SparseBlocks { map, .. } => map.segments.len(),
            State::SparseMap { reader, .. } => reader.segments(),
            State::Data { segments, .. } => segments.len(),
            _ => 0,
        };
        self.body.capacity()
            + xattrs(&self.global)
            + self.pending.pax.as_ref().map_or(0, xattrs)
            + self.pending.long_name.as_ref().map_or(0, Vec::len)
            + self.pending.long_link.as_ref().map_or(0, Vec::len)
            + segments * size_of::<Segment>()
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Event<'a>, ArchiveError> {
        loop {
            if !self.pass_over(input) {
                return Ok(Event::NeedInput);
            }
            match &mut self.state {
                State::Header | State::ZeroBlock => {
                    let at = self.consumed - self.block_filled as u64;
                    let Some(event) =
                        self.with_block(input, |parser, block| parser.block_at(block, at))
                    else {
                        return Ok(Event::NeedInput);
                    };
                    if let Some(event) = event? {
                        return Ok(event);
                    }
                }
                State::Extension { kind, size, at } => {
                    let (kind, size, at) = (*kind, *size, *at);
                    let missing = size - self.body.len();
                    if self.body.is_empty() && input.len() >= size {
                        let body = self.take(input, size);
                        self.extension(kind, body, at)?;
                    } else {
                        let bytes = self.take(input, missing.min(input.len()));
                        self.body.extend_from_slice(bytes);
                        if self.body.len() < size {
                            return Ok(Event::NeedInput);
                        }
                        let mut body = std::mem::take(&mut self.body);
                        self.extension(kind, &body, at)?;
                        body.clear();
                        self.body = body;
                    }
                    self.padding = padding(size as u64);
                    self.state = State::Header;
                }
                State::SparseBlocks { .. } => {
                    let Some(event) = self.with_block(input, Parser::sparse_block) else {
                        return Ok(Event::NeedInput);
                    };
                    if let Some(event) = event? {
                        return Ok(event);
                    }
                }
                State::SparseMap { held, reader } => {
                    let left = usize::try_from(held.stored - held.read).unwrap_or(usize::MAX);
                    let bytes = &input[..left.min(input.len())];
                    let limit = self.limits.max_sparse_segments;
                    let (used, complete) = reader.push(bytes, limit, &held.entry.path)?;
                    held.read += used as u64;
                    let map_ended = complete.then_some(held.read);
                    let exhausted = used == left;
                    self.take(input, used);
                    match map_ended {
                        Some(length) => return self.map_read(length),
                        None if exhausted => return Err(self.held_fault(SparseFault::Number)),
                        None => return Ok(Event::NeedInput),
                    }
                }
                State::Data {
                    segment,
                    segments,
                    padding,
                } => {
                    let (offset, left) = *segment;
                    if left == 0 {
                        if let Some(next) = segments.next() {
                            *segment = next;
                            continue;
                        }
                        self.padding = *padding;
                        self.state = State::Header;
                        return Ok(Event::EntryEnd);
                    }
                    if input.is_empty() {
                        return Ok(Event::NeedInput);
                    }
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    // A segment ends below 2⁶³, which was checked.
                    *segment = (offset + length as u64, left - length as u64);
                    let bytes = self.take(input, length);
                    return Ok(Event::Data { offset, bytes });
                }
                State::End => {
                    self.take(input, input.len());
                    return Ok(Event::End);
                }
                State::Failed(error) => return Err((**error).clone()),
            }
        }
    }

    /// Takes bytes from the front of the input.
    fn take<'a>(&mut self, input: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (taken, rest) = input.split_at(length);
        *input = rest;
        self.consumed = self.consumed.saturating_add(length as u64);
        taken
    }

    /// Passes over what is to be skipped; false if more input is needed for it.
    fn pass_over(&mut self, input: &mut &[u8]) -> bool {
        if self.skip == 0 && self.padding == 0 {
            return true;
        }
        for left in [&mut self.skip, &mut self.padding] {
            let length = usize::try_from(*left)
                .unwrap_or(usize::MAX)
                .min(input.len());
            *left -= length as u64;
            *input = &input[length..];
            self.consumed = self.consumed.saturating_add(length as u64);
        }
        self.skip == 0 && self.padding == 0
    }

    /// Calls `f` with the next block; none if more input is needed for it. A
    /// block that is in the input as a whole is not copied.
    fn with_block<T>(
        &mut self,
        input: &mut &[u8],
        f: impl FnOnce(&mut Self, &Block) -> T,
    ) -> Option<T> {
        if self.block_filled == 0
            && let Some((block, rest)) = input.split_first_chunk::<BLOCK_BYTES>()
        {
            *input = rest;
            self.consumed = self.consumed.saturating_add(BLOCK_BYTES as u64);
            return Some(f(self, block));
        }
        let length = input.len().min(BLOCK_BYTES - self.block_filled);
        let bytes = self.take(input, length);
        self.block[self.block_filled..][..length].copy_from_slice(bytes);
        self.block_filled += length;
        if self.block_filled < BLOCK_BYTES {
            return None;
        }
        self.block_filled = 0;
        let block = self.block;
        Some(f(self, &block))
    }

    fn no_orphan(&self, at: u64) -> Result<(), ArchiveError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        Err(ArchiveError::OrphanExtension { at })
    }

    /// A block where a header is expected; none if it begins no member.
    fn block_at(&mut self, block: &Block, at: u64) -> Result<Option<Event<'static>>, ArchiveError> {
        let after_zeros = matches!(self.state, State::ZeroBlock);
        if is_zero(block) {
            self.no_orphan(at)?;
            self.state = match after_zeros {
                true => State::End,
                false => State::ZeroBlock,
            };
            return Ok(None);
        }
        if after_zeros {
            return Err(ArchiveError::LoneZeroBlock { at });
        }
        let header = Header::new(block).ok_or(ArchiveError::Checksum { at })?;
        let size = header
            .size()
            .ok_or(ArchiveError::Number { field: "size", at })?;
        let (kind, pending) = match header.kind() {
            b'x' => (ExtensionKind::Pax, self.pending.pax.is_some()),
            b'g' => (ExtensionKind::GlobalPax, false),
            b'L' => (ExtensionKind::LongName, self.pending.long_name.is_some()),
            b'K' => (ExtensionKind::LongLink, self.pending.long_link.is_some()),
            _ => return self.member(header, size, at),
        };
        if pending {
            return Err(ArchiveError::DuplicateExtension { kind, at });
        }
        let limit = self.limits.max_header_bytes;
        let size = match usize::try_from(size) {
            Ok(size) if size <= limit => size,
            _ => {
                return Err(ArchiveError::HeaderTooLarge {
                    limit,
                    seen: size,
                    kind,
                    at,
                });
            }
        };
        self.state = State::Extension { kind, size, at };
        Ok(None)
    }

    /// An extension header's body is complete.
    fn extension(&mut self, kind: ExtensionKind, body: &[u8], at: u64) -> Result<(), ArchiveError> {
        let long_text = || {
            let name = text(body);
            if body[name.len()..].iter().any(|byte| *byte != 0) {
                return Err(ArchiveError::EmbeddedNul {
                    field: EntryName(kind.to_string().into_bytes()),
                    at,
                });
            }
            Ok(Some(name.to_vec()))
        };
        match kind {
            ExtensionKind::LongName => self.pending.long_name = long_text()?,
            ExtensionKind::LongLink => self.pending.long_link = long_text()?,
            ExtensionKind::Pax => {
                let mut pax = Pax::default();
                pax.apply(body, Origin { at, global: false }, &self.limits)?;
                self.pending.pax = Some(pax);
            }
            ExtensionKind::GlobalPax => {
                self.global
                    .apply(body, Origin { at, global: true }, &self.limits)?;
            }
        }
        Ok(())
    }

    /// A header that is no extension; none if it is to be passed over.
    fn member(
        &mut self,
        header: Header<'_>,
        size: u64,
        at: u64,
    ) -> Result<Option<Event<'static>>, ArchiveError> {
        // Taken whatever comes, for these never reach beyond this header.
        let pending = std::mem::take(&mut self.pending);
        if header.kind() == LABEL {
            self.skip = pending.pax.and_then(|pax| pax.size).unwrap_or(size);
            self.padding = padding(self.skip);
            self.state = State::Header;
            return Ok(None);
        }
        let Member {
            entry,
            stored,
            content,
        } = member::read(header, size, at, pending, &self.global, &self.limits)?;
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(ArchiveError::TooManyEntries {
                limit: self.limits.max_entries,
                name: EntryName(entry.path),
            });
        }
        match content {
            Content::Skipped => {
                self.skip = stored;
                Ok(Some(self.open(entry, (0, 0), Vec::new(), padding(stored))))
            }
            Content::Whole => {
                let entry = self.sized(entry, stored)?;
                let padding = padding(stored);
                Ok(Some(self.open(entry, (0, stored), Vec::new(), padding)))
            }
            Content::Sparse(SparsePlan::Map { size, map }) => {
                let entry = self.sized(entry, size)?;
                let segments = map.checked(size, stored, &entry.path)?;
                Ok(Some(self.open(entry, (0, 0), segments, padding(stored))))
            }
            Content::Sparse(SparsePlan::InBlocks { size, map }) => {
                let held = Box::new(Held {
                    entry: self.sized(entry, size)?,
                    stored,
                    read: 0,
                });
                self.state = State::SparseBlocks { held, map };
                Ok(None)
            }
            Content::Sparse(SparsePlan::InData { size }) => {
                let held = Box::new(Held {
                    entry: self.sized(entry, size)?,
                    stored,
                    read: 0,
                });
                let reader = MapReader::default();
                self.state = State::SparseMap { held, reader };
                Ok(None)
            }
        }
    }

    /// Gives a file its apparent size, and counts it.
    fn sized(&mut self, mut entry: Entry, size: u64) -> Result<Entry, ArchiveError> {
        let sum = self.apparent.saturating_add(size);
        if sum > self.limits.max_apparent_bytes {
            return Err(ArchiveError::ApparentTooLarge {
                limit: self.limits.max_apparent_bytes,
                seen: sum,
                name: EntryName(entry.path),
            });
        }
        self.apparent = sum;
        entry.size = size;
        Ok(entry)
    }

    /// Gives out a member whose data begins here.
    fn open(
        &mut self,
        entry: Entry,
        segment: Segment,
        segments: Vec<Segment>,
        padding: u64,
    ) -> Event<'static> {
        self.state = State::Data {
            segment,
            segments: segments.into_iter(),
            padding,
        };
        Event::Entry(entry)
    }

    fn sparse_block(&mut self, block: &Block) -> Result<Option<Event<'static>>, ArchiveError> {
        let State::SparseBlocks { held, map } = &mut self.state else {
            return Ok(None);
        };
        let (fields, extended) = sparse_extension(block);
        map.push_old(fields, self.limits.max_sparse_segments, &held.entry.path)?;
        if extended {
            return Ok(None);
        }
        let State::SparseBlocks { held, map } = std::mem::replace(&mut self.state, State::Header)
        else {
            return Ok(None);
        };
        let segments = map.checked(held.entry.size, held.stored, &held.entry.path)?;
        Ok(Some(self.open(
            held.entry,
            (0, 0),
            segments,
            padding(held.stored),
        )))
    }

    /// The map before the data is complete, `length` bytes with no padding.
    fn map_read(&mut self, length: u64) -> Result<Event<'static>, ArchiveError> {
        let State::SparseMap { held, reader } = std::mem::replace(&mut self.state, State::Header)
        else {
            return Ok(Event::NeedInput);
        };
        let map_padding = padding(length);
        let stored = length
            .checked_add(map_padding)
            .and_then(|map| held.stored.checked_sub(map))
            .ok_or_else(|| fault(SparseFault::StoredLength, &held.entry.path))?;
        self.skip = map_padding;
        let segments = reader
            .finish()
            .checked(held.entry.size, stored, &held.entry.path)?;
        Ok(self.open(held.entry, (0, 0), segments, padding(held.stored)))
    }

    fn held_fault(&self, sparse: SparseFault) -> ArchiveError {
        match &self.state {
            State::SparseMap { held, .. } => fault(sparse, &held.entry.path),
            _ => fault(sparse, &[]),
        }
    }
}
