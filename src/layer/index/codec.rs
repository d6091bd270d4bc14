//! Records as bytes. The format is ours and versioned by the store; what is
//! read back is still checked, for a disk can lie.

use super::{Attrs, Node, Record, SpecialKind};
use crate::layer::archive::Timestamp;
use std::io::{self, Error, ErrorKind};

const DISPLACED: u8 = 1 << 4;
const BENEATH_LINK: u8 = 1 << 5;
const WHITEOUT: u8 = 1 << 6;
const OPAQUE: u8 = 1 << 7;

/// Appends the encoding of `record` to `out`. Says how long its beginning is
/// that [`decode_key`] reads.
pub(crate) fn encode(record: &Record, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    put_bytes(out, &record.path);
    put_u64(out, record.seq);
    let key = out.len() - start;
    let mut tag = match &record.node {
        None => 0,
        Some(Node::Directory { late: None, .. }) => 1,
        Some(Node::Directory { late: Some(_), .. }) => 2,
        Some(Node::Implied) => 3,
        Some(Node::File { .. }) => 4,
        Some(Node::Symlink { .. }) => 5,
        Some(Node::Special { kind, .. }) => match kind {
            SpecialKind::Fifo => 6,
            SpecialKind::Char => 7,
            SpecialKind::Block => 8,
        },
        Some(Node::ForeignLink { .. }) => 9,
    };
    if record.whiteout {
        tag |= WHITEOUT;
    }
    if record.opaque {
        tag |= OPAQUE;
    }
    if record.displaced {
        tag |= DISPLACED;
    }
    if record.beneath_link {
        tag |= BENEATH_LINK;
    }
    out.push(tag);
    put_u64(out, record.cleared);
    put_u64(out, record.first.map_or(0, |first| first.saturating_add(1)));
    put_bytes(out, &record.lost_link);
    match &record.node {
        None | Some(Node::Implied) => {}
        Some(Node::Directory { attrs, late }) => {
            put_attrs(out, attrs);
            if let Some(own) = late {
                put_u64(out, *own);
            }
        }
        Some(Node::File { attrs, size, inode }) => {
            put_attrs(out, attrs);
            put_u64(out, *size);
            put_u64(out, *inode);
        }
        Some(Node::Symlink {
            attrs,
            target,
            inode,
        }) => {
            put_attrs(out, attrs);
            put_bytes(out, target);
            put_u64(out, *inode);
        }
        Some(Node::Special {
            attrs,
            device,
            inode,
            ..
        }) => {
            put_attrs(out, attrs);
            put_u64(out, u64::from(device.0));
            put_u64(out, u64::from(device.1));
            put_u64(out, *inode);
        }
        Some(Node::ForeignLink { target }) => put_bytes(out, target),
    }
    key
}

/// Decodes one record that fills `bytes` exactly.
pub(crate) fn decode(bytes: &[u8]) -> io::Result<Record> {
    let mut input = bytes;
    let path = get_bytes(&mut input)?.to_vec();
    let seq = get_u64(&mut input)?;
    let tag = get_u8(&mut input)?;
    let cleared = get_u64(&mut input)?;
    let first = get_u64(&mut input)?.checked_sub(1);
    let lost_link = get_bytes(&mut input)?.to_vec();
    let node = match tag & 0xf {
        0 => None,
        kind @ (1 | 2) => Some(Node::Directory {
            attrs: get_attrs(&mut input)?,
            late: if kind == 2 {
                Some(get_u64(&mut input)?)
            } else {
                None
            },
        }),
        3 => Some(Node::Implied),
        4 => Some(Node::File {
            attrs: get_attrs(&mut input)?,
            size: get_u64(&mut input)?,
            inode: get_u64(&mut input)?,
        }),
        5 => Some(Node::Symlink {
            attrs: get_attrs(&mut input)?,
            target: get_bytes(&mut input)?.to_vec(),
            inode: get_u64(&mut input)?,
        }),
        kind @ 6..=8 => Some(Node::Special {
            attrs: get_attrs(&mut input)?,
            kind: match kind {
                6 => SpecialKind::Fifo,
                7 => SpecialKind::Char,
                _ => SpecialKind::Block,
            },
            device: (get_u32(&mut input)?, get_u32(&mut input)?),
            inode: get_u64(&mut input)?,
        }),
        9 => Some(Node::ForeignLink {
            target: get_bytes(&mut input)?.to_vec(),
        }),
        _ => return Err(corrupt("unknown kind of record")),
    };
    if !input.is_empty() {
        return Err(corrupt("record is longer than its content"));
    }
    Ok(Record {
        path,
        seq,
        node,
        whiteout: tag & WHITEOUT != 0,
        opaque: tag & OPAQUE != 0,
        displaced: tag & DISPLACED != 0,
        beneath_link: tag & BENEATH_LINK != 0,
        cleared,
        first,
        lost_link,
    })
}

/// The path at the beginning of an encoded record, which may be cut short behind it.
pub(crate) fn decode_path(bytes: &[u8]) -> io::Result<&[u8]> {
    let mut input = bytes;
    get_bytes(&mut input)
}

/// The path and the place in the archive, by which records are sorted.
pub(super) fn decode_key(bytes: &[u8]) -> io::Result<(&[u8], u64)> {
    let mut input = bytes;
    Ok((get_bytes(&mut input)?, get_u64(&mut input)?))
}

pub(crate) fn put_attrs(out: &mut Vec<u8>, attrs: &Attrs) {
    put_u64(out, u64::from(attrs.mode));
    put_u64(out, u64::from(attrs.uid));
    put_u64(out, u64::from(attrs.gid));
    out.extend_from_slice(&attrs.mtime.seconds.to_le_bytes());
    put_u64(out, u64::from(attrs.mtime.nanos));
    put_u64(out, attrs.xattrs.len() as u64);
    for (name, value) in &attrs.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
}

pub(crate) fn get_attrs(input: &mut &[u8]) -> io::Result<Attrs> {
    let mode = get_u32(input)?;
    let uid = get_u32(input)?;
    let gid = get_u32(input)?;
    let seconds = match input.split_first_chunk::<8>() {
        Some((head, rest)) => {
            *input = rest;
            i64::from_le_bytes(*head)
        }
        None => return Err(corrupt("record ends in a time")),
    };
    let nanos = get_u32(input)?;
    let count = get_u64(input)?;
    let mut xattrs = Vec::new();
    for _ in 0..count {
        let name = get_bytes(input)?.to_vec();
        let value = get_bytes(input)?.to_vec();
        xattrs.push((name, value));
    }
    Ok(Attrs {
        mode,
        uid,
        gid,
        mtime: Timestamp { seconds, nanos },
        xattrs,
    })
}

/// LEB128, as in DWARF and protobuf.
pub(crate) fn put_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn get_u64(input: &mut &[u8]) -> io::Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = get_u8(input)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(corrupt("number is too long"))
}

fn get_u32(input: &mut &[u8]) -> io::Result<u32> {
    u32::try_from(get_u64(input)?).map_err(|_| corrupt("number is too large"))
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn get_bytes<'a>(input: &mut &'a [u8]) -> io::Result<&'a [u8]> {
    let length = get_u64(input)?;
    match usize::try_from(length)
        .ok()
        .and_then(|length| input.split_at_checked(length))
    {
        Some((head, rest)) => {
            *input = rest;
            Ok(head)
        }
        None => Err(corrupt("record ends in a string")),
    }
}

pub(crate) fn get_u8(input: &mut &[u8]) -> io::Result<u8> {
    match input.split_first() {
        Some((head, rest)) => {
            *input = rest;
            Ok(*head)
        }
        None => Err(corrupt("record ends early")),
    }
}

pub(crate) fn corrupt(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}
