//! What must hold for any bytes at all. The fuzz target and the smoke test of
//! the ordinary test run both call [`check`].

use super::forge::fix_checksum;
use super::header::{BLOCK_BYTES, padding};
use super::{ArchiveError, Entry, EntryKind, Event, Parser, Writer};
use crate::layer::limits::Limits;

/// One member, its data joined to contiguous runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The entry.
    pub entry: Entry,
    /// Offset and bytes of each run.
    pub runs: Vec<(u64, Vec<u8>)>,
    /// Whether its end was seen.
    pub complete: bool,
}

/// What an archive holds, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// The members in their order.
    pub members: Vec<Member>,
    /// Whether there was an end-of-archive mark, or the error.
    pub end: Result<bool, ArchiveError>,
}

impl Transcript {
    /// The whole content of a member, holes filled with zeros.
    pub fn content(&self, member: usize) -> Vec<u8> {
        let member = &self.members[member];
        let mut content = vec![0; member.entry.size as usize];
        for (offset, bytes) in &member.runs {
            content[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        content
    }
}

/// Parses pieces whose lengths `piece` gives, and checks what must hold at
/// every step.
///
/// # Panics
/// If an invariant is broken.
pub fn transcript(bytes: &[u8], limits: &Limits, mut piece: impl FnMut() -> usize) -> Transcript {
    let mut parser = Parser::new(limits.clone());
    let mut members: Vec<Member> = Vec::new();
    let mut rest = bytes;
    let mut ended = false;
    let mut apparent = 0u64;
    let error = 'pieces: loop {
        let (mut input, after) = rest.split_at(piece().max(1).min(rest.len()));
        rest = after;
        // Events that used no input; more than a few in a row means a loop.
        let mut idle = 0;
        loop {
            let before = input.len();
            let event = match parser.next(&mut input) {
                Ok(event) => event,
                Err(error) => {
                    assert_eq!(
                        parser.next(&mut input),
                        Err(error.clone()),
                        "an error stays"
                    );
                    assert_eq!(parser.finish(), Err(error.clone()), "an error stays");
                    break 'pieces Some(error);
                }
            };
            idle = if input.len() < before { 0 } else { idle + 1 };
            assert!(idle <= 4, "the parser makes progress");
            assert!(
                parser.held_bytes() <= held_bound(limits),
                "{} bytes held",
                parser.held_bytes()
            );
            let open = members.last_mut().filter(|member| !member.complete);
            assert!(!ended || event == Event::End, "nothing comes after the end");
            match event {
                Event::NeedInput => {
                    assert!(
                        input.is_empty(),
                        "input is used up before more is asked for"
                    );
                    break;
                }
                Event::End => {
                    assert!(open.is_none() && input.is_empty());
                    ended = true;
                    break;
                }
                Event::Entry(entry) => {
                    assert!(open.is_none(), "members do not nest");
                    assert!(entry.path.len() <= limits.max_path_bytes);
                    assert!(entry.link.len() <= limits.max_path_bytes);
                    assert!(!entry.path.contains(&0) && !entry.link.contains(&0));
                    assert!(entry.mode <= 0o7777 && entry.mtime.nanos < 1_000_000_000);
                    assert!(entry.uid != u32::MAX && entry.gid != u32::MAX);
                    assert!(entry.kind == EntryKind::File || entry.size == 0);
                    assert!(entry.xattrs.windows(2).all(|pair| pair[0].0 < pair[1].0));
                    let xattrs = entry
                        .xattrs
                        .iter()
                        .map(|(name, value)| name.len() + value.len());
                    assert!(xattrs.sum::<usize>() <= limits.max_xattr_bytes);
                    apparent += entry.size;
                    assert!(apparent <= limits.max_apparent_bytes);
                    members.push(Member {
                        entry,
                        runs: Vec::new(),
                        complete: false,
                    });
                    assert!(members.len() as u64 <= limits.max_entries);
                }
                Event::Data { offset, bytes } => {
                    assert!(!bytes.is_empty() && open.is_some());
                    let Some(member) = open else { continue };
                    let end = offset + bytes.len() as u64;
                    assert!(end <= member.entry.size, "data stays inside the file");
                    match member.runs.last_mut() {
                        Some((start, run)) if *start + run.len() as u64 == offset => {
                            run.extend_from_slice(bytes);
                        }
                        last => {
                            let above = last
                                .is_none_or(|(start, run)| *start + (run.len() as u64) < offset);
                            assert!(above, "offsets grow");
                            member.runs.push((offset, bytes.to_vec()));
                        }
                    }
                }
                Event::EntryEnd => {
                    assert!(open.is_some(), "only a member ends");
                    let Some(member) = open else { continue };
                    member.complete = true;
                }
            }
        }
        if rest.is_empty() {
            break parser.finish().err();
        }
    };
    if error.is_none() {
        assert!(members.iter().all(|member| member.complete));
    }
    Transcript {
        members,
        end: error.map_or(Ok(ended), Err),
    }
}

/// What a parser may hold: a header in its buffer and what was read from one
/// (a local PAX header, two long texts), a map. Vectors may have twice the capacity that they need.
fn held_bound(limits: &Limits) -> usize {
    2 * limits.max_header_bytes + 3 * limits.max_header_bytes + 16 * limits.max_sparse_segments
}

/// Limits small enough for short inputs to exceed them.
fn tight() -> Limits {
    Limits {
        max_entries: 6,
        max_path_bytes: 200,
        max_header_bytes: 400,
        max_xattr_bytes: 20,
        max_sparse_segments: 3,
        max_apparent_bytes: 10_000,
        ..Limits::default()
    }
}

/// Checks that any bytes at all, and the same with right checksums, are parsed
///
/// * without a panic, in bounded memory and a bounded number of steps,
/// * to the same events however the stream is cut,
/// * within the limits,
/// * to entries that the writer writes and the parser reads back the same.
///
/// # Panics
/// If one of these does not hold.
pub fn check(bytes: &[u8]) {
    check_exact(bytes);
    let mut repaired = bytes.to_vec();
    // A mutation hardly ever hits a checksum, so it is made right where a
    // block looks like a header.
    for block in repaired.as_chunks_mut::<BLOCK_BYTES>().0 {
        if block[257..262] == *b"ustar" {
            fix_checksum(block);
        }
    }
    if repaired != bytes {
        check_exact(&repaired);
    }
}

fn check_exact(bytes: &[u8]) {
    // The cuts depend on the input alone, so that a finding can be repeated.
    let mut random = bytes.iter().fold(0x9e37_79b9_7f4a_7c15_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random_piece = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // As often short pieces as long ones.
        let bound = 1 << (random % 12);
        (random >> 32) as usize % bound + 1
    };
    for limits in [Limits::default(), tight()] {
        let whole = transcript(bytes, &limits, || usize::MAX);
        assert_eq!(whole, transcript(bytes, &limits, &mut random_piece));
        assert_eq!(whole, transcript(bytes, &limits, || BLOCK_BYTES - 1));
        if bytes.len() < 16 * BLOCK_BYTES {
            assert_eq!(whole, transcript(bytes, &limits, || 1));
        }
        rewrite(&whole);
    }
}

/// Writes what was parsed and parses that.
fn rewrite(original: &Transcript) {
    let mut writer = Writer::new(Vec::new());
    let mut expected = Vec::new();
    for (index, member) in original.members.iter().enumerate() {
        let entry = &member.entry;
        let needs_link = matches!(entry.kind, EntryKind::HardLink | EntryKind::Symlink);
        let writable = !entry.path.is_empty() && (!needs_link || !entry.link.is_empty());
        // Large holes would have to be written out.
        if !member.complete || !writable || entry.size > 1 << 20 {
            continue;
        }
        let content = original.content(index);
        assert!(writer.entry(entry).is_ok() && writer.data(&content).is_ok());
        let runs = match content.is_empty() {
            true => Vec::new(),
            false => vec![(0, content)],
        };
        expected.push(Member {
            entry: entry.clone(),
            runs,
            complete: true,
        });
    }
    let written = writer.finish().unwrap_or_default();
    assert_eq!(padding(written.len() as u64), 0);
    // The writer spells some attributes longer than they came.
    let limits = Limits {
        max_header_bytes: 4 << 20,
        ..Limits::default()
    };
    let read = transcript(&written, &limits, || usize::MAX);
    assert_eq!(read.end, Ok(true));
    assert_eq!(read.members, expected);
}
