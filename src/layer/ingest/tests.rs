mod faults;

use super::*;
use crate::layer::EntrySink;
use crate::layer::archive::Entry;
use crate::layer::archive::forge::Forge;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

#[derive(Debug, thiserror::Error)]
#[error("the sink refuses {0}")]
struct Refused(String);

/// Keeps what it gets, in memory.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Collect {
    files: Vec<(String, Vec<u8>)>,
    ended: usize,
    /// The entry that it refuses.
    refuse: Option<String>,
    /// The entry at which it panics.
    panic: Option<String>,
}

impl EntrySink for Collect {
    type Error = Refused;

    fn begin(&mut self, entry: Entry) -> Result<(), Refused> {
        let path = String::from_utf8(entry.path).unwrap();
        if self.refuse.as_ref() == Some(&path) {
            return Err(Refused(path));
        }
        assert_ne!(self.panic.as_ref(), Some(&path), "asked to panic");
        self.files.push((path, Vec::new()));
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        let (_, content) = self.files.last_mut().unwrap();
        assert_eq!(offset, content.len() as u64);
        content.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Refused> {
        self.ended += 1;
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half of it noise, so that it compresses somewhat.
        out.extend_from_slice(&(state & 0x00ff_00ff_00ff_00ff).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::stream::encode_all(bytes, 1).unwrap()
}

/// A layer with files of these sizes, and what a sink gets from it.
fn layer(seed: u64, sizes: &[usize]) -> (Vec<u8>, Collect) {
    let mut forge = Forge::new();
    let mut expected = Collect::default();
    for (number, size) in sizes.iter().enumerate() {
        let path = format!("dir{seed}/file{number}");
        let content = noise(*size, seed + number as u64);
        forge = forge.file(path.as_bytes(), &content);
        expected.files.push((path, content));
        expected.ended += 1;
    }
    (forge.end(), expected)
}

type Job<'a> = LayerJob<'a, Collect, Refused>;

/// A job for a blob in memory whose expectations are met.
fn job<'a>(index: usize, blob: &'a [u8], tar: &[u8]) -> Job<'a> {
    LayerJob {
        index,
        expected_digest: Some(sha256(blob)),
        expected_size: Some(blob.len() as u64),
        diff_id: sha256(tar),
        compression: Compression::Sniff,
        open: Box::new(move || Ok(Box::new(blob))),
        consume: consume(Collect::default()),
    }
}

fn consume<'a>(mut sink: Collect) -> Consume<'a, Collect, Refused> {
    Box::new(move |stream| stream.drive(&mut sink).map(|_| sink))
}

fn open<'a>(reader: impl Read + Send + 'a) -> Open<'a> {
    Box::new(move || Ok(Box::new(reader)))
}

fn options(workers: usize) -> Options {
    Options {
        workers,
        limits: Limits::default(),
    }
}

fn run(
    jobs: Vec<Job<'_>>,
    workers: usize,
) -> Result<Vec<LayerOutcome<Collect>>, IngestError<Refused>> {
    let progress = Progress::new(jobs.iter().map(|job| job.expected_size));
    ingest_layers(jobs, &options(workers), &progress, &AtomicBool::new(false))
}

/// The index and the cause of a failure.
fn failure(
    result: Result<Vec<LayerOutcome<Collect>>, IngestError<Refused>>,
) -> (usize, LayerError<Refused>) {
    match result {
        Err(IngestError::Layer { index, source, .. }) => (index, source),
        other => panic!("{other:?}"),
    }
}

/// Zeros without end, after a valid tar: a layer that only stops when told to.
fn endless<'a>() -> Open<'a> {
    open(io::Cursor::new(Forge::new().end()).chain(io::repeat(0)))
}

#[test]
fn layers_of_all_forms_arrive_in_their_order_with_their_facts() {
    let mut blobs = Vec::new();
    for (number, sizes) in [
        vec![],
        vec![0, 1, 511, 512, 513],
        vec![900_000, 3, 700_000],
        vec![5; 2000],
    ]
    .iter()
    .enumerate()
    {
        let (tar, expected) = layer(number as u64, sizes);
        let half = tar.len() / 2;
        for (format, blob) in [
            (Format::Plain, tar.clone()),
            (Format::Gzip, gzip(&tar)),
            (
                Format::Gzip,
                [gzip(&tar[..half]), gzip(&tar[half..])].concat(),
            ),
            (Format::Zstd, zstd(&tar)),
            (
                Format::Zstd,
                [zstd(&tar[..half]), zstd(&tar[half..])].concat(),
            ),
        ] {
            blobs.push((format, blob, tar.clone(), expected.clone()));
        }
    }
    for workers in [1, 2, 7] {
        let jobs: Vec<_> = blobs
            .iter()
            .enumerate()
            .map(|(index, (_, blob, tar, _))| job(index, blob, tar))
            .collect();
        let progress = Progress::new(jobs.iter().map(|job| job.expected_size));
        let outcomes =
            ingest_layers(jobs, &options(workers), &progress, &AtomicBool::new(false)).unwrap();
        assert_eq!(outcomes.len(), blobs.len());
        for (index, (outcome, (format, blob, tar, expected))) in
            outcomes.iter().zip(&blobs).enumerate()
        {
            assert_eq!(outcome.index, index);
            assert_eq!(
                outcome.facts,
                LayerFacts {
                    format: *format,
                    blob_bytes: blob.len() as u64,
                    tar_bytes: tar.len() as u64,
                    digest: sha256(blob),
                    diff_id: sha256(tar),
                }
            );
            assert!(outcome.value == *expected, "layer {index}");
            let counted = &progress.layers()[index];
            assert_eq!(counted.read(), blob.len() as u64);
            assert_eq!(counted.state(), LayerState::Done);
            let hashed = outcome.times.tar_hash == Spent::default();
            assert_eq!(hashed, *format == Format::Plain);
        }
    }
}

#[test]
fn no_layers_are_no_work() {
    assert!(run(vec![], 3).unwrap().is_empty());
}

#[test]
fn an_empty_blob_is_an_empty_layer() {
    let outcomes = run(vec![job(0, &[], &[])], 1).unwrap();
    assert_eq!(outcomes[0].value, Collect::default());
    assert_eq!(outcomes[0].facts.tar_bytes, 0);
}

#[test]
fn bytes_may_come_one_by_one() {
    struct OneByOne<'a>(&'a [u8]);
    impl Read for OneByOne<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = out.len().min(1);
            self.0.read(&mut out[..count])
        }
    }
    let (tar, expected) = layer(1, &[3000, 70_000]);
    for blob in [gzip(&tar), zstd(&tar), tar.clone()] {
        let mut job = job(0, &blob, &tar);
        job.open = open(OneByOne(&blob));
        assert!(run(vec![job], 1).unwrap()[0].value == expected);
    }
}

#[test]
fn an_interrupted_read_is_repeated() {
    struct Signals<'a>(&'a [u8], bool);
    impl Read for Signals<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = out.len().min(1000);
            self.0.read(&mut out[..count])
        }
    }
    let (tar, expected) = layer(1, &[30_000]);
    let blob = gzip(&tar);
    let mut job = job(0, &blob, &tar);
    job.open = open(Signals(&blob, false));
    assert!(run(vec![job], 1).unwrap()[0].value == expected);
}

#[test]
fn the_largest_layer_is_first_and_lanes_are_bounded() {
    let order = Mutex::new(Vec::new());
    let at_work = AtomicUsize::new(0);
    let layers: Vec<_> = [3usize, 9, 1, 7, 7, 5]
        .iter()
        .map(|size| layer(1, &[size * 10_000]).0)
        .collect();
    let jobs: Vec<Job<'_>> = layers
        .iter()
        .enumerate()
        .map(|(index, tar)| {
            let mut job = job(index, tar, tar);
            let (order, at_work) = (&order, &at_work);
            job.consume = Box::new(move |stream| {
                order.lock().unwrap().push(index);
                assert!(at_work.fetch_add(1, Ordering::SeqCst) < 2);
                let mut sink = Collect::default();
                let result = stream.drive(&mut sink);
                thread::sleep(Duration::from_millis(5));
                at_work.fetch_sub(1, Ordering::SeqCst);
                result.map(|_| sink)
            });
            job
        })
        .collect();
    run(jobs, 1).unwrap();
    assert_eq!(order.lock().unwrap().as_slice(), [1, 3, 4, 5, 0, 2]);
    let jobs: Vec<Job<'_>> = layers
        .iter()
        .enumerate()
        .map(|(index, tar)| {
            let mut job = job(index, tar, tar);
            let at_work = &at_work;
            job.consume = Box::new(move |stream| {
                assert!(at_work.fetch_add(1, Ordering::SeqCst) < 2);
                let mut sink = Collect::default();
                let result = stream.drive(&mut sink);
                thread::sleep(Duration::from_millis(5));
                at_work.fetch_sub(1, Ordering::SeqCst);
                result.map(|_| sink)
            });
            job
        })
        .collect();
    run(jobs, 2).unwrap();
}

#[test]
fn times_add_up_to_what_was_done() {
    let (tar, _) = layer(1, &[6_000_000]);
    let blob = gzip(&tar);
    struct Slow<'a>(&'a [u8]);
    impl Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            thread::sleep(Duration::from_millis(2));
            self.0.read(out)
        }
    }
    let mut job = job(0, &blob, &tar);
    job.open = open(Slow(&blob));
    job.consume = Box::new(|stream| {
        let mut sink = Collect::default();
        stream.drive(&mut sink)?;
        thread::sleep(Duration::from_millis(30));
        Ok(sink)
    });
    let begun = Instant::now();
    let times = run(vec![job], 1).unwrap()[0].times;
    let elapsed = begun.elapsed();
    let reads = blob.len().div_ceil(BLOB_CHUNK.0) as u32;
    assert!(times.read.wall >= Duration::from_millis(2) * reads);
    assert!(times.finish.wall >= Duration::from_millis(30));
    for stage in [times.inflate, times.blob_hash, times.tar_hash, times.write] {
        assert!(
            stage.cpu > Duration::ZERO && stage.wall < elapsed,
            "{times:?}"
        );
    }
    // Waiting for the slow source is nobody's work but the reader's.
    assert!(times.finish.wall < Duration::from_millis(30) + elapsed / 2);
    assert!(times.total().cpu < elapsed * 4);
}
