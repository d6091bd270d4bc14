//! The checks of the fuzz targets, run over mutations of their seeds a fixed
//! number of times, so that an ordinary test run notices a parser that panics,
//! loops or contradicts itself. Deterministic: a failure names what repeats it.
//! Real fuzzing, with coverage, is in `fuzz/`.

use aufs_csi::host::mountinfo;
use aufs_csi::image::{fuzz, manifest, reference, registry};
use aufs_csi::layer::{archive, decompress, index, seal};
use aufs_csi::volume::attributes;

/// Mutations per parser; a few seconds without optimisation. Of eighteen faults
/// put into the tar parser on trial, this found the ten that break an invariant
/// at once; the other eight are for the tables and properties of
/// the module to find, and they do.
const MUTATIONS: u64 = 3000;

/// Marsaglia's xorshift: no dependency, the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }
}

/// Bytes that parsers trip over: signs, digits, separators, extremes.
const INTERESTING: &[u8] = b"\0\x01\x7f\x80\xff 09-+=\n/.,xgLKSVMD1257";

/// Changes `bytes` in one to five places; `unit` is the size of the pieces
/// that the format is made of.
fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], unit: usize, random: &mut Random) {
    for _ in 0..=random.below(5) {
        if bytes.is_empty() {
            bytes.extend_from_slice(&others[random.below(others.len())]);
            continue;
        }
        let at = random.below(bytes.len());
        let piece = at / unit * unit;
        let piece_end = (piece + unit).min(bytes.len());
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 | 2 => bytes[at] = INTERESTING[random.below(INTERESTING.len())],
            3 => {
                let end = (at + 1 + random.below(12)).min(bytes.len());
                let byte = INTERESTING[random.below(INTERESTING.len())];
                bytes[at..end].fill(byte);
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(piece..piece_end)),
            6 => {
                let copy = bytes[piece..piece_end].to_vec();
                let to = random.below(bytes.len() / unit + 1) * unit;
                bytes.splice(to..to, copy);
            }
            _ => {
                let other = &others[random.below(others.len())];
                let from = random.below(other.len() / unit + 1) * unit;
                bytes.splice(piece..piece, other[from..].iter().copied());
            }
        }
        bytes.truncate(64 * unit);
    }
}

fn smoke(seeds: &[Vec<u8>], unit: usize, check: impl Fn(&[u8])) {
    for seed in seeds {
        check(seed);
    }
    for number in 0..MUTATIONS {
        let mut random = Random::new(number);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        mutate(&mut bytes, seeds, unit, &mut random);
        let context = Context(number);
        check(&bytes);
        std::mem::forget(context);
    }
}

/// Says which mutation it was if the check panics.
struct Context(u64);

impl Drop for Context {
    fn drop(&mut self) {
        eprintln!("mutation number {}", self.0);
    }
}

#[test]
fn archive() {
    smoke(&archive::forge::seeds(), 512, archive::check::check);
}

#[test]
fn manifest() {
    smoke(&manifest::seeds(), 64, manifest::check);
}

#[test]
fn image_archive() {
    smoke(
        &fuzz::image_archive::seeds(),
        512,
        fuzz::image_archive::check,
    );
}

#[test]
fn docker_manifest() {
    smoke(
        &fuzz::docker_manifest::seeds(),
        16,
        fuzz::docker_manifest::check,
    );
}

#[test]
fn docker_legacy() {
    smoke(
        &fuzz::docker_legacy::seeds(),
        16,
        fuzz::docker_legacy::check,
    );
}

#[test]
fn docker_config() {
    smoke(
        &fuzz::docker_config::seeds(),
        16,
        fuzz::docker_config::check,
    );
}

#[test]
fn oci_layout() {
    smoke(&fuzz::oci_layout::seeds(), 16, fuzz::oci_layout::check);
}

#[test]
fn reference() {
    smoke(&reference::seeds(), 8, reference::check);
}

#[test]
fn challenge() {
    smoke(&registry::fuzz::seeds(), 8, registry::fuzz::check);
}

#[test]
fn mountinfo() {
    smoke(&mountinfo::seeds(), 16, mountinfo::check);
}

#[test]
fn attributes() {
    smoke(&attributes::seeds(), 16, attributes::check);
}

#[test]
fn index() {
    smoke(&index::check::seeds(), 16, index::check::check);
}

#[test]
fn edits() {
    smoke(&seal::check::seeds(), 16, seal::check::check);
}

#[test]
fn decompress() {
    smoke(&decompress::check::seeds(), 64, decompress::check::check);
}
