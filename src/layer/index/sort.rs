//! Sorting on disk: items as bytes, in runs that fit in memory, which are then
//! merged so many at a time that memory does not depend on their number.

use super::codec::corrupt;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

/// Bytes sorted in memory at a time.
pub(super) const RUN: usize = 1 << 20;
/// Bytes read at a time from each run while merging.
const MERGE_BLOCK: usize = 8 << 10;
/// Runs merged at a time. With a block and a key of each this takes a megabyte
/// or two, also where several layers are at it side by side; a million records
/// of common length need no second pass.
const FAN_IN: usize = 128;
/// Bytes before each item in a run: its length, and that of its key.
const HEAD: u64 = 8;

/// Orders the keys of items.
pub(crate) type Compare = fn(&[u8], &[u8]) -> Ordering;

/// More is to be sorted than [`Limits::max_index_bytes`] allows.
///
/// [`Limits::max_index_bytes`]: crate::layer::limits::Limits::max_index_bytes
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is said of its paths takes more than {limit} bytes")]
pub struct IndexTooLarge {
    /// The limit.
    pub limit: u64,
}

impl IndexTooLarge {
    /// Itself, if `error` carries it.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// Where an item of the run in memory is.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u32,
    key: u32,
    length: u32,
}

impl Place {
    fn key(self, run: &[u8]) -> &[u8] {
        &run[self.start as usize..(self.start + self.key) as usize]
    }

    fn item(self, run: &[u8]) -> &[u8] {
        &run[self.start as usize..(self.start + self.length) as usize]
    }
}

/// Takes items in any order and gives them back in that of their keys; those of
/// equal keys as they came.
#[derive(Debug)]
pub(crate) struct Sorter {
    compare: Compare,
    run: Vec<u8>,
    places: Vec<Place>,
    spill: File,
    spilled: u64,
    /// Where each sorted run lies in `spill`.
    runs: Vec<(u64, u64)>,
    taken: u64,
    pub(super) max_bytes: u64,
    pub(super) run_bytes: usize,
    pub(super) fan_in: usize,
}

impl Sorter {
    /// A sorter that spills to `spill`, an empty file that nobody else uses.
    pub(crate) fn new(spill: File, compare: Compare) -> Self {
        Sorter {
            compare,
            run: Vec::new(),
            places: Vec::new(),
            spill,
            spilled: 0,
            runs: Vec::new(),
            taken: 0,
            max_bytes: u64::MAX,
            run_bytes: RUN,
            fan_in: FAN_IN,
        }
    }

    /// Takes the item that `write` appends, and says how long its key is, with
    /// which it begins.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>) -> usize) -> io::Result<()> {
        let start = self.run.len();
        let key = write(&mut self.run);
        let length = self.run.len() - start;
        self.taken += length as u64;
        if self.taken > self.max_bytes {
            let limit = self.max_bytes;
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                IndexTooLarge { limit },
            ));
        }
        self.places.push(Place {
            start: start as u32,
            key: key as u32,
            length: length as u32,
        });
        if self.run.len() >= self.run_bytes {
            self.spill_run()?;
        }
        Ok(())
    }

    fn sort_run(&mut self) {
        let (run, compare) = (&self.run, self.compare);
        self.places.sort_by(|a, b| compare(a.key(run), b.key(run)));
    }

    fn spill_run(&mut self) -> io::Result<()> {
        self.sort_run();
        let mut out = RunWriter::new(&self.spill, self.spilled);
        for place in &self.places {
            out.push(place.key, place.item(&self.run))?;
        }
        let start = self.spilled;
        self.spilled = out.finish()?;
        self.runs.push((start, self.spilled));
        self.run.clear();
        self.places.clear();
        Ok(())
    }

    /// The items in order.
    pub(crate) fn finish(mut self) -> io::Result<Sorted> {
        if self.runs.is_empty() {
            self.sort_run();
            return Ok(Sorted {
                spill: self.spill,
                end: 0,
                item: Vec::new(),
                rest: Rest::Memory {
                    run: self.run,
                    places: self.places.into_iter(),
                },
            });
        }
        if !self.places.is_empty() {
            self.spill_run()?;
        }
        (self.run, self.places) = (Vec::new(), Vec::new());
        let mut item = Vec::new();
        while self.runs.len() > self.fan_in {
            // Neighbours, so that equal keys stay in the order in which they came.
            let mut longer = Vec::with_capacity(self.runs.len().div_ceil(self.fan_in));
            for runs in self.runs.chunks(self.fan_in) {
                let mut merge = Merge::new(&self.spill, runs, self.compare)?;
                let mut out = RunWriter::new(&self.spill, self.spilled);
                while let Some(key) = merge.next(&self.spill, &mut item)? {
                    out.push(key, &item)?;
                }
                let start = self.spilled;
                self.spilled = out.finish()?;
                longer.push((start, self.spilled));
            }
            self.runs = longer;
        }
        let merge = Merge::new(&self.spill, &self.runs, self.compare)?;
        Ok(Sorted {
            spill: self.spill,
            end: self.spilled,
            item,
            rest: Rest::Disk(merge),
        })
    }
}

/// Writes a run behind what a file holds.
struct RunWriter<'a> {
    out: BufWriter<At<'a>>,
    end: u64,
}

/// A place in a file that is read elsewhere.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.offset)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> RunWriter<'a> {
    fn new(file: &'a File, offset: u64) -> Self {
        RunWriter {
            out: BufWriter::with_capacity(64 << 10, At { file, offset }),
            end: offset,
        }
    }

    fn push(&mut self, key: u32, item: &[u8]) -> io::Result<()> {
        self.out.write_all(&(item.len() as u32).to_le_bytes())?;
        self.out.write_all(&key.to_le_bytes())?;
        self.out.write_all(item)?;
        self.end += HEAD + item.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> io::Result<u64> {
        self.out.flush()?;
        Ok(self.end)
    }
}

/// Sorted items, one after the other.
#[derive(Debug)]
pub(crate) struct Sorted {
    spill: File,
    /// Where the spill file is free from.
    end: u64,
    item: Vec<u8>,
    rest: Rest,
}

#[derive(Debug)]
enum Rest {
    Memory {
        run: Vec<u8>,
        places: std::vec::IntoIter<Place>,
    },
    Disk(Merge),
}

impl Sorted {
    /// The next item, none at the end.
    pub(crate) fn next_item(&mut self) -> io::Result<Option<&[u8]>> {
        match &mut self.rest {
            Rest::Memory { run, places } => Ok(places.next().map(|place| place.item(run))),
            Rest::Disk(merge) => Ok(merge
                .next(&self.spill, &mut self.item)?
                .map(|_| self.item.as_slice())),
        }
    }

    /// The spill file again, and from where on it is free.
    pub(super) fn spill(&self) -> io::Result<(File, u64)> {
        Ok((self.spill.try_clone()?, self.end))
    }
}

/// Several runs read side by side.
#[derive(Debug)]
struct Merge {
    compare: Compare,
    runs: Vec<Run>,
    heap: BinaryHeap<Reverse<Head>>,
}

/// The key of a run's next item. The rest stays on disk until its turn: it may
/// be a thousand times as long.
#[derive(Debug)]
struct Head {
    compare: Compare,
    key: Vec<u8>,
    run: usize,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.compare)(&self.key, &other.key).then(self.run.cmp(&other.run))
    }
}

impl Merge {
    fn new(spill: &File, runs: &[(u64, u64)], compare: Compare) -> io::Result<Self> {
        let mut merge = Merge {
            compare,
            runs: Vec::with_capacity(runs.len()),
            heap: BinaryHeap::with_capacity(runs.len()),
        };
        for (number, &(next, end)) in runs.iter().enumerate() {
            merge.runs.push(Run {
                next,
                end,
                block: Vec::new(),
                at: 0,
                body: 0,
            });
            merge.refill(spill, number, Vec::new())?;
        }
        Ok(merge)
    }

    fn refill(&mut self, spill: &File, run: usize, mut key: Vec<u8>) -> io::Result<()> {
        if self.runs[run].key(spill, &mut key)? {
            self.heap.push(Reverse(Head {
                compare: self.compare,
                key,
                run,
            }));
        }
        Ok(())
    }

    /// Puts the next item into `item` and gives the length of its key.
    fn next(&mut self, spill: &File, item: &mut Vec<u8>) -> io::Result<Option<u32>> {
        let Some(Reverse(head)) = self.heap.pop() else {
            return Ok(None);
        };
        item.clear();
        item.extend_from_slice(&head.key);
        self.runs[head.run].body(spill, item)?;
        let length = head.key.len() as u32;
        self.refill(spill, head.run, head.key)?;
        Ok(Some(length))
    }
}

/// One sorted run while merging.
#[derive(Debug)]
struct Run {
    next: u64,
    end: u64,
    block: Vec<u8>,
    at: usize,
    /// Bytes left of the item whose key was read.
    body: usize,
}

impl Run {
    /// Appends the next `length` bytes to `out`.
    fn take(&mut self, spill: &File, length: usize, out: &mut Vec<u8>) -> io::Result<()> {
        let mut missing = length;
        while missing > 0 {
            if self.at == self.block.len() {
                let size = (self.end - self.next).min(MERGE_BLOCK as u64) as usize;
                self.block.resize(size, 0);
                spill.read_exact_at(&mut self.block, self.next)?;
                self.next += size as u64;
                self.at = 0;
            }
            let part = missing.min(self.block.len() - self.at);
            if part == 0 {
                return Err(corrupt("run ends inside a record"));
            }
            out.extend_from_slice(&self.block[self.at..self.at + part]);
            self.at += part;
            missing -= part;
        }
        Ok(())
    }

    /// Reads the next item's key; false at the end.
    fn key(&mut self, spill: &File, key: &mut Vec<u8>) -> io::Result<bool> {
        if self.next == self.end && self.at == self.block.len() {
            return Ok(false);
        }
        key.clear();
        self.take(spill, HEAD as usize, key)?;
        let number = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&key[at..at + 4]);
            u32::from_le_bytes(bytes) as usize
        };
        let (item, length) = (number(0), number(4));
        self.body = item
            .checked_sub(length)
            .ok_or_else(|| corrupt("key is longer than its record"))?;
        key.clear();
        self.take(spill, length, key)?;
        Ok(true)
    }

    fn body(&mut self, spill: &File, out: &mut Vec<u8>) -> io::Result<()> {
        self.take(spill, self.body, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items of four bytes: a key of one, and their number.
    fn sorted(keys: &[u8], run_bytes: usize, fan_in: usize) -> Vec<Vec<u8>> {
        let mut sorter = Sorter::new(tempfile::tempfile().unwrap(), Ord::cmp);
        (sorter.run_bytes, sorter.fan_in) = (run_bytes, fan_in);
        for (number, key) in keys.iter().enumerate() {
            sorter
                .push(|out| {
                    out.push(*key);
                    out.extend_from_slice(&(number as u16).to_be_bytes());
                    1
                })
                .unwrap();
        }
        let mut sorted = sorter.finish().unwrap();
        let mut items = Vec::new();
        while let Some(item) = sorted.next_item().unwrap() {
            items.push(item.to_vec());
        }
        items
    }

    #[test]
    fn any_number_of_passes_sorts_alike_and_keeps_the_order_of_equals() {
        let keys: Vec<u8> = (0..1000u32).map(|n| (n * 7919 % 61) as u8).collect();
        let whole = sorted(&keys, RUN, FAN_IN);
        assert_eq!(whole.len(), keys.len());
        assert!(whole.is_sorted(), "by key, then as they came");
        for fan_in in [2, 3, 7, 1000] {
            assert_eq!(sorted(&keys, 12, fan_in), whole, "{fan_in} at a time");
        }
    }

    #[test]
    fn no_more_runs_are_open_than_are_merged_at_a_time() {
        let mut sorter = Sorter::new(tempfile::tempfile().unwrap(), Ord::cmp);
        sorter.run_bytes = 1;
        for key in (0..=255u8).rev().cycle().take(100 * FAN_IN) {
            sorter
                .push(|out| {
                    out.push(key);
                    1
                })
                .unwrap();
        }
        assert_eq!(sorter.runs.len(), 100 * FAN_IN);
        match sorter.finish().unwrap().rest {
            Rest::Disk(merge) => assert_eq!(merge.runs.len(), 100),
            Rest::Memory { .. } => panic!("nothing was spilled"),
        }
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        let mut sorter = Sorter::new(tempfile::tempfile().unwrap(), Ord::cmp);
        sorter.max_bytes = 2;
        let mut push = || {
            sorter.push(|out| {
                out.push(b'x');
                1
            })
        };
        push().unwrap();
        push().unwrap();
        let error = push().unwrap_err();
        assert_eq!(IndexTooLarge::of(&error), Some(IndexTooLarge { limit: 2 }));
    }
}
