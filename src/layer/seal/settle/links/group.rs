//! The lists that finding hard links takes, as files: a layer can consist of
//! nothing but links into the layers below it.

use crate::layer::index::codec::{corrupt, get_bytes, get_u64, put_bytes, put_u64};
use crate::layer::index::sort::Sorter;
use crate::layer::index::{Builder, Node, Record, compare};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A layer, and the number of an inode in it.
type Key = (usize, u64);

/// Hard links whose inodes are in the layers below.
pub(in super::super) struct Foreign {
    /// With their targets, in the order of the archive.
    pub(super) by_place: Sorter,
    /// Their names, each with its place in the archive.
    pub(super) by_name: Builder,
    /// Whether there are any.
    pub(in super::super) any: bool,
}

impl Foreign {
    pub(in super::super) fn new(spill: File, by_name: Builder) -> Self {
        Foreign {
            by_place: Sorter::new(spill, Ord::cmp),
            by_name,
            any: false,
        }
    }

    pub(in super::super) fn push(
        &mut self,
        link: &[u8],
        target: &[u8],
        seq: u64,
    ) -> io::Result<()> {
        self.any = true;
        self.by_place.push(|out| {
            out.extend_from_slice(&seq.to_be_bytes());
            put_bytes(out, link);
            put_bytes(out, target);
            8
        })?;
        self.by_name.push(&Record {
            path: name_key(link, seq),
            seq,
            whiteout: true,
            ..Record::default()
        })
    }
}

/// A link, its target, and its place in the archive.
pub(super) fn decode_link(mut item: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>, u64)> {
    let seq = get_number(&mut item)?;
    let link = get_bytes(&mut item)?.to_vec();
    Ok((link, get_bytes(&mut item)?.to_vec(), seq))
}

/// What the keys of one name begin with: no name has a NUL.
pub(super) fn name_key_start(name: &[u8]) -> Vec<u8> {
    [name, b"\0"].concat()
}

/// Sorts the links of one name by their places.
pub(super) fn name_key(name: &[u8], seq: u64) -> Vec<u8> {
    [&name_key_start(name)[..], format!("{seq:016x}").as_bytes()].concat()
}

/// Where each link leads, by its place in the archive.
pub(super) struct Results {
    /// At eight times the place, where its result begins; holes otherwise.
    pub(super) places: File,
    pub(super) results: File,
    pub(super) end: u64,
}

impl Results {
    /// Link `seq` leads to `path`, in that layer or in its own.
    pub(super) fn put(&mut self, seq: u64, path: &[u8], layer: Option<usize>) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(path.len() + 16);
        put_u64(&mut bytes, path.len() as u64);
        put_u64(&mut bytes, layer.map_or(0, |layer| layer as u64 + 1));
        bytes.extend_from_slice(path);
        self.results.write_all_at(&bytes, self.end)?;
        self.places.write_all_at(&self.end.to_le_bytes(), seq * 8)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn get(&self, seq: u64) -> io::Result<(Vec<u8>, Option<usize>)> {
        let mut place = [0; 8];
        self.places.read_exact_at(&mut place, seq * 8)?;
        let place = u64::from_le_bytes(place);
        let mut head = [0; 20];
        let size = self.results.read_at(&mut head, place)?;
        let mut input = &head[..size];
        let length = get_u64(&mut input)?;
        let layer = get_u64(&mut input)?;
        let begin = place + (size - input.len()) as u64;
        let length = usize::try_from(length).map_err(|_| corrupt("path is longer than memory"))?;
        let mut path = vec![0; length];
        self.results.read_exact_at(&mut path, begin)?;
        Ok((path, layer.checked_sub(1).map(|layer| layer as usize)))
    }
}

/// Bits of the filter of inodes, which is a megabyte.
const FILTER_BITS: u64 = 8 << 20;

const SOURCE: u8 = 0;
const NAME: u8 = 1;
const LINK: u8 = 2;

/// Inodes of the layers below that get further names, with the names that they
/// have and those that they get.
pub(super) struct Groups {
    pub(super) sorter: Sorter,
    /// Layers that have any of them.
    pub(super) layers: BTreeSet<usize>,
    /// Which inodes are wanted; some look as if they were, and are passed over
    /// in the end. So the names of all others need not be sorted.
    filter: Vec<u64>,
}

/// One of these inodes.
pub(super) struct Group {
    pub(super) key: Key,
    /// Place of its first link in the archive.
    pub(super) seq: u64,
    /// Where its layer has it.
    pub(super) from: Vec<u8>,
    /// What it becomes in this layer.
    pub(super) node: Node,
    /// The name that it was copied to.
    pub(super) first: Option<Vec<u8>>,
}

/// What is said of an inode, in this order.
pub(super) enum Member<'a> {
    /// Where a link to it found it.
    Source { seq: u64, path: &'a [u8] },
    /// A name in its own layer.
    Name { path: &'a [u8] },
    /// A link to it.
    Link { seq: u64, path: &'a [u8] },
}

impl Groups {
    pub(super) fn new(spill: File) -> Self {
        Groups {
            sorter: Sorter::new(spill, by_inode),
            layers: BTreeSet::new(),
            filter: vec![0; (FILTER_BITS / 64) as usize],
        }
    }

    fn bit(key: Key) -> (usize, u64) {
        // Numbers of inodes are mostly dense, and those of layers are few.
        let bit = (key.1 ^ (key.0 as u64) << 19) % FILTER_BITS;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    pub(super) fn push_link(
        &mut self,
        key: Key,
        seq: u64,
        path: &[u8],
        link: &[u8],
    ) -> io::Result<()> {
        let (word, bit) = Self::bit(key);
        self.filter[word] |= bit;
        self.layers.insert(key.0);
        for (kind, path) in [(SOURCE, path), (LINK, link)] {
            self.sorter.push(|out| {
                put_key(out, key, kind);
                out.extend_from_slice(&seq.to_be_bytes());
                out.extend_from_slice(path);
                KEY + 8
            })?;
        }
        Ok(())
    }

    /// Takes a name, if it is one of an inode that is wanted.
    pub(super) fn push_name(&mut self, key: Key, path: &[u8]) -> io::Result<()> {
        let (word, bit) = Self::bit(key);
        if self.filter[word] & bit == 0 {
            return Ok(());
        }
        self.sorter.push(|out| {
            put_key(out, key, NAME);
            out.extend_from_slice(path);
            KEY + path.len()
        })
    }
}

/// Bytes of a key without what orders members of one kind.
const KEY: usize = 17;

fn put_key(out: &mut Vec<u8>, key: Key, kind: u8) {
    out.extend_from_slice(&(key.0 as u64).to_be_bytes());
    out.extend_from_slice(&key.1.to_be_bytes());
    out.push(kind);
}

fn by_inode(a: &[u8], b: &[u8]) -> Ordering {
    let (a, b) = (a.split_at_checked(KEY), b.split_at_checked(KEY));
    match (a, b) {
        (Some((a, own)), Some((b, other))) => a.cmp(b).then_with(|| match a.last() {
            Some(&NAME) => compare(own, other),
            _ => own.cmp(other),
        }),
        _ => Ordering::Equal,
    }
}

pub(super) fn decode_member(mut item: &[u8]) -> io::Result<(Key, Member<'_>)> {
    let layer = get_number(&mut item)? as usize;
    let inode = get_number(&mut item)?;
    let kind = item
        .split_off_first()
        .ok_or_else(|| corrupt("name of an inode ends early"))?;
    let member = match *kind {
        NAME => Member::Name { path: item },
        SOURCE => Member::Source {
            seq: get_number(&mut item)?,
            path: item,
        },
        _ => Member::Link {
            seq: get_number(&mut item)?,
            path: item,
        },
    };
    Ok(((layer, inode), member))
}

fn get_number(input: &mut &[u8]) -> io::Result<u64> {
    let (head, rest) = input
        .split_first_chunk::<8>()
        .ok_or_else(|| corrupt("number ends early"))?;
    *input = rest;
    Ok(u64::from_be_bytes(*head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_found_by_place() {
        let file = || tempfile::tempfile().unwrap();
        let mut results = Results {
            places: file(),
            results: file(),
            end: 0,
        };
        let long = vec![b'x'; 4000];
        results.put(3, b"a/b", None).unwrap();
        results.put(70_000, &long, Some(300)).unwrap();
        results.put(5, b"", Some(0)).unwrap();
        assert_eq!(results.get(3).unwrap(), (b"a/b".to_vec(), None));
        assert_eq!(results.get(70_000).unwrap(), (long, Some(300)));
        assert_eq!(results.get(5).unwrap(), (Vec::new(), Some(0)));
    }
}
