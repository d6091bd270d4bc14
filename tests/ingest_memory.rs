//! Staging takes little memory, however many layers there are and whatever
//! they hold. The only test in its file, because it measures the process.
#![expect(clippy::unwrap_used, reason = "a test")]

use aufs_csi::layer::EntrySink;
use aufs_csi::layer::archive::Entry;
use aufs_csi::layer::archive::forge::{Forge, Forged};
use aufs_csi::layer::decompress::Compression;
use aufs_csi::layer::ingest::{LayerJob, Options, Progress, ingest_layers};
use aufs_csi::layer::limits::Limits;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;

/// Peak of the whole process, kB, with this test's own data.
const MAX_PEAK_KB: u64 = 64 << 10;

/// Counts what it gets.
#[derive(Default)]
struct Count {
    entries: usize,
    bytes: u64,
}

impl EntrySink for Count {
    type Error = Infallible;

    fn begin(&mut self, _: Entry) -> Result<(), Infallible> {
        self.entries += 1;
        Ok(())
    }

    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), Infallible> {
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A tar of one file of `megabytes`, as a reader, for it must not be in memory.
fn tar(megabytes: u64) -> impl Read {
    let size = megabytes << 20;
    let header = Forge::new()
        .add(Forged::new(b"file", b'0', size), &[])
        .bytes();
    std::io::Cursor::new(header)
        .chain(Pattern(0).take(size))
        .chain(std::io::repeat(0).take(1024))
}

/// Bytes that compress well, but not like zeros.
struct Pattern(u64);

impl Read for Pattern {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        for byte in out.iter_mut() {
            self.0 += 1;
            *byte = (self.0 / 64 % 251) as u8 ^ (self.0 % 7) as u8;
        }
        Ok(out.len())
    }
}

struct Layer {
    blob: Vec<u8>,
    diff_id: [u8; 32],
    entries: usize,
    bytes: u64,
}

/// Compresses a tar and hashes it on the way.
fn compress<W: Write>(
    mut tar: impl Read,
    mut encoder: W,
    finish: impl FnOnce(W) -> Vec<u8>,
) -> (Vec<u8>, [u8; 32]) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = tar.read(&mut buffer).unwrap();
        if count == 0 {
            return (finish(encoder), hash.finalize().into());
        }
        hash.update(&buffer[..count]);
        encoder.write_all(&buffer[..count]).unwrap();
    }
}

#[test]
fn a_hundred_layers_and_wide_windows_stay_below_64_mib() {
    let mut layers = Vec::new();
    for number in 0..100u64 {
        // Mostly small, some of many entries, a few large with windows of 8 MiB.
        let (entries, bytes, tar): (_, _, Box<dyn Read>) = match number {
            0..3 => (1, 40 << 20, Box::new(tar(40))),
            3..6 => {
                let mut forge = Forge::new();
                for entry in 0..3000 {
                    forge = forge.file(format!("d/f{entry}").as_bytes(), b"content");
                }
                (3000, 21_000, Box::new(std::io::Cursor::new(forge.end())))
            }
            _ => (1, 1 << 20, Box::new(tar(1))),
        };
        let (blob, diff_id) = if number % 2 == 0 {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(23).unwrap();
            compress(tar, encoder, |encoder| encoder.finish().unwrap())
        } else {
            let encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            compress(tar, encoder, |encoder| encoder.finish().unwrap())
        };
        layers.push(Layer {
            blob,
            diff_id,
            entries,
            bytes,
        });
    }
    let before = peak_kb();

    // As many lanes as there are by default at most.
    let options = Options {
        workers: 8,
        limits: Limits::default(),
    };
    let jobs = layers
        .iter()
        .enumerate()
        .map(|(index, layer)| LayerJob {
            index,
            expected_digest: Some(Sha256::digest(&layer.blob).into()),
            expected_size: Some(layer.blob.len() as u64),
            diff_id: layer.diff_id,
            compression: Compression::Sniff,
            open: Box::new(|| Ok(Box::new(layer.blob.as_slice()))),
            consume: Box::new(|stream| {
                let mut count = Count::default();
                stream.drive(&mut count).map(|_| count)
            }),
        })
        .collect();
    let progress = Progress::new(layers.iter().map(|layer| Some(layer.blob.len() as u64)));
    let outcomes = ingest_layers(jobs, &options, &progress, &AtomicBool::new(false)).unwrap();
    for (outcome, layer) in outcomes.iter().zip(&layers) {
        assert_eq!(outcome.value.entries, layer.entries);
        assert_eq!(outcome.value.bytes, layer.bytes);
    }
    let peak = peak_kb();
    assert!(peak < MAX_PEAK_KB, "peak {peak} kB, {before} kB before");
    println!("peak {peak} kB, {before} kB before");
}
