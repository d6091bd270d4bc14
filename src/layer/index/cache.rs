//! Blocks of index files in memory, for whoever asks for many single paths. A
//! search reads a few bytes at some twenty places, and most of these are the
//! same each time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of one block.
const BLOCK: usize = 4 << 10;
/// Blocks that are kept: two megabytes, whatever the number of files.
const BLOCKS: usize = 512;

/// A cache for any number of files that do not change.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// By what hashes there; empty until the first use.
    slots: Mutex<Vec<Slot>>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    file: u64,
    block: u64,
    bytes: Vec<u8>,
}

impl Cache {
    /// Reads into `out` as `read_at` does, but as much as there is. `id` is that
    /// of the file, not 0, and is never another's.
    pub(super) fn read_at(
        &self,
        id: u64,
        file: &File,
        out: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        let mut slots = self.slots();
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let (block, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let slot = place(id, block);
            let slot = &mut slots[slot];
            if (slot.file, slot.block) != (id, block) {
                // Of no file, should reading fail half-way.
                slot.file = 0;
                if slot.bytes.len() < BLOCK {
                    slot.bytes.resize(BLOCK, 0);
                }
                let size = fill(file, &mut slot.bytes, block * BLOCK as u64)?;
                slot.bytes.truncate(size);
                (slot.file, slot.block) = (id, block);
            }
            let rest = slot.bytes.get(within..).unwrap_or_default();
            let part = rest.len().min(out.len() - done);
            if part == 0 {
                break;
            }
            out[done..done + part].copy_from_slice(&rest[..part]);
            done += part;
        }
        Ok(done)
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.is_empty() {
            slots.resize(BLOCKS, Slot::default());
        }
        slots
    }
}

fn place(id: u64, block: u64) -> usize {
    let hash = (block ^ id << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 32) as usize % BLOCKS
}

fn fill(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_read_is_what_the_file_has() {
        let cache = Cache::default();
        let files: Vec<(File, Vec<u8>)> = [0, 1, BLOCK, 3 * BLOCK + 5, 3000 * BLOCK]
            .iter()
            .map(|size| {
                let bytes: Vec<u8> = (0..*size).map(|at| (at * 31 % 251) as u8).collect();
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&bytes).unwrap();
                (file, bytes)
            })
            .collect();
        for round in 0..3000usize {
            for (number, (file, bytes)) in files.iter().enumerate() {
                let offset = round * 7919 % (bytes.len() + 10);
                let mut out = vec![0; round % (2 * BLOCK)];
                let size = cache
                    .read_at(number as u64 + 1, file, &mut out, offset as u64)
                    .unwrap();
                let expected = bytes.get(offset..).unwrap_or_default();
                let expected = &expected[..expected.len().min(out.len())];
                assert!(out[..size] == *expected, "{round} of {number}");
            }
        }
    }
}
