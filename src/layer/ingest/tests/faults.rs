//! What is wrong with a layer, its source or its consumer is told, and stops all.

use super::*;
use crate::layer::decompress::DecompressError;

#[test]
fn wrong_digests_and_sizes_are_told_apart() {
    let (tar, _) = layer(1, &[300_000]);
    for blob in [gzip(&tar), zstd(&tar)] {
        let size = blob.len() as u64;
        let wrong = |change: &dyn Fn(&mut Job<'_>)| {
            let mut job = job(4, &blob, &tar);
            change(&mut job);
            let (index, cause) = failure(run(vec![job], 2));
            assert_eq!(index, 4);
            cause
        };
        let cause = wrong(&|job| job.expected_digest = Some([1; 32]));
        assert!(matches!(
            cause,
            LayerError::BlobDigest { expected: Sha256Text(expected), actual: Sha256Text(actual) }
                if expected == [1; 32] && actual == sha256(&blob)
        ));
        let cause = wrong(&|job| job.diff_id = [2; 32]);
        assert!(matches!(
            cause,
            LayerError::DiffId { expected: Sha256Text(expected), actual: Sha256Text(actual) }
                if expected == [2; 32] && actual == sha256(&tar)
        ));
        let cause = wrong(&|job| {
            job.diff_id = [2; 32];
            job.expected_digest = Some([1; 32]);
        });
        assert!(matches!(cause, LayerError::BlobDigest { .. }), "{cause:?}");
        let cause = wrong(&|job| job.expected_size = Some(size - 1));
        assert!(
            matches!(cause, LayerError::BlobTooLong { expected } if expected == size - 1),
            "{cause:?}"
        );
        let cause = wrong(&|job| job.expected_size = Some(size + 1));
        assert!(
            matches!(
                cause,
                LayerError::BlobTooShort { expected, actual }
                    if expected == size + 1 && actual == size
            ),
            "{cause:?}"
        );
    }
}

#[test]
fn an_uncompressed_layer_is_checked_against_both_names() {
    let (tar, _) = layer(1, &[300_000]);
    let mut named_wrong = job(0, &tar, &tar);
    named_wrong.expected_digest = Some([1; 32]);
    assert!(matches!(
        failure(run(vec![named_wrong], 1)).1,
        LayerError::BlobDigest { .. }
    ));
    let mut diff_wrong = job(0, &tar, &tar);
    diff_wrong.diff_id = [2; 32];
    assert!(matches!(
        failure(run(vec![diff_wrong], 1)).1,
        LayerError::DiffId { .. }
    ));
    let mut unnamed = job(0, &tar, &tar);
    unnamed.expected_digest = None;
    unnamed.expected_size = None;
    assert_eq!(run(vec![unnamed], 1).unwrap()[0].facts.digest, sha256(&tar));
}

#[test]
fn a_blob_that_is_too_long_is_not_read_to_its_end() {
    let mut job = job(0, &[], &Forge::new().end());
    job.expected_size = Some(2_000_000);
    job.expected_digest = None;
    job.open = endless();
    assert!(matches!(
        failure(run(vec![job], 1)).1,
        LayerError::BlobTooLong {
            expected: 2_000_000
        }
    ));
}

#[test]
fn a_blob_named_by_its_diff_id_is_not_sniffed() {
    // Not a tar, so it ends as an error of the parser rather than of gzip.
    let blob = gzip(&layer(1, &[10]).0);
    let job = job(0, &blob, &blob);
    let cause = failure(run(vec![job], 1)).1;
    assert!(matches!(cause, LayerError::Archive { .. }), "{cause:?}");
}

#[test]
fn a_truncated_blob_is_an_error_wherever_it_ends() {
    let (tar, _) = layer(3, &[2000, 100]);
    for blob in [gzip(&tar), zstd(&tar), tar.clone()] {
        let step = blob.len() / 60 + 1;
        for length in (0..blob.len()).step_by(step) {
            let mut short = job(0, &blob[..length], &tar);
            short.expected_digest = Some(sha256(&blob));
            short.expected_size = Some(blob.len() as u64);
            let cause = failure(run(vec![short], 1)).1;
            assert!(
                matches!(cause, LayerError::BlobTooShort { actual, .. } if actual == length as u64)
                    || matches!(cause, LayerError::Archive { .. }),
                "{length}: {cause:?}"
            );
            // No descriptor, as in an archive: the diffID alone has to tell.
            let mut unnamed = job(0, &blob[..length], &tar);
            (unnamed.expected_digest, unnamed.expected_size) = (None, None);
            failure(run(vec![unnamed], 1));
        }
    }
}

#[test]
fn a_flipped_bit_is_an_error_wherever_it_is() {
    let (tar, _) = layer(3, &[900, 100]);
    for blob in [gzip(&tar), zstd(&tar), tar.clone()] {
        for bit in (0..blob.len() * 8).step_by(blob.len() / 30) {
            let mut flipped = blob.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let mut job = job(0, &flipped, &tar);
            job.expected_digest = Some(sha256(&blob));
            failure(run(vec![job], 1));
        }
    }
}

#[test]
fn what_follows_the_end_of_the_tar_counts_in_the_digest_only() {
    let (mut tar, expected) = layer(2, &[1000]);
    tar.extend_from_slice(&noise(700_000, 9));
    let blob = zstd(&tar);
    let outcomes = run(vec![job(0, &blob, &tar)], 1).unwrap();
    assert!(outcomes[0].value == expected);
    assert_eq!(outcomes[0].facts.tar_bytes, tar.len() as u64);
}

#[test]
fn bombs_end_at_their_limits() {
    let zeros = vec![0; 64 << 20];
    let tar = [Forge::new().end(), zeros].concat();
    for blob in [gzip(&tar), zstd(&tar)] {
        let result = |limits: Limits| {
            let jobs = vec![job(0, &blob, &tar)];
            let progress = Progress::default();
            let options = Options { workers: 1, limits };
            ingest_layers(jobs, &options, &progress, &AtomicBool::new(false))
        };
        assert!(
            result(Limits {
                max_ratio: 1_000_000,
                ..Limits::default()
            })
            .is_ok()
        );
        assert!(matches!(
            failure(result(Limits {
                max_ratio: 50,
                ..Limits::default()
            }))
            .1,
            LayerError::Ratio { limit: 50 }
        ));
        assert!(matches!(
            failure(result(Limits {
                max_unpacked_bytes: 10 << 20,
                ..Limits::default()
            }))
            .1,
            LayerError::UnpackedBytes { limit } if limit == 10 << 20
        ));
        // A limit below the free allowance of the ratio holds, too.
        assert!(matches!(
            failure(result(Limits {
                max_unpacked_bytes: 100,
                ..Limits::default()
            }))
            .1,
            LayerError::UnpackedBytes { limit: 100 }
        ));
    }
    // As zstd packs zeros, the default ratio is enough; small ones are harmless.
    let blob = zstd(&tar);
    assert!(matches!(
        failure(run(vec![job(0, &blob, &tar)], 1)).1,
        LayerError::Ratio { limit: 1100 }
    ));
    let small = &tar[..15 << 20];
    let blob = zstd(small);
    assert!(run(vec![job(0, &blob, small)], 1).is_ok());
}

#[test]
fn a_window_beyond_the_limit_is_an_error_of_its_own() {
    let (tar, _) = layer(1, &[100_000]);
    let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(24).unwrap();
    encoder.write_all(&tar).unwrap();
    let blob = encoder.finish().unwrap();
    let options = Options {
        workers: 1,
        limits: Limits {
            max_zstd_window: 8 << 20,
            ..Limits::default()
        },
    };
    let result = ingest_layers(
        vec![job(0, &blob, &tar)],
        &options,
        &Progress::default(),
        &AtomicBool::new(false),
    );
    assert!(matches!(
        failure(result).1,
        LayerError::Decompress {
            source: DecompressError::ZstdWindow { window, limit }
        } if window == 16 << 20 && limit == 8 << 20
    ));
}

#[test]
fn the_limits_of_the_parser_hold() {
    let (tar, _) = layer(1, &[1, 1, 1]);
    let blob = gzip(&tar);
    let options = Options {
        workers: 1,
        limits: Limits {
            max_entries: 2,
            ..Limits::default()
        },
    };
    let result = ingest_layers(
        vec![job(0, &blob, &tar)],
        &options,
        &Progress::default(),
        &AtomicBool::new(false),
    );
    assert!(matches!(failure(result).1, LayerError::Archive { .. }));
}

#[test]
fn an_error_of_the_sink_stops_every_layer_and_is_told_with_its_own() {
    let (tar, _) = layer(1, &[1, 2, 3_000_000]);
    let blob = gzip(&tar);
    let mut refused = job(5, &blob, &tar);
    refused.consume = consume(Collect {
        refuse: Some("dir1/file1".into()),
        ..Collect::default()
    });
    let mut other = job(6, &[], &[]);
    other.open = endless();
    (other.expected_digest, other.expected_size) = (None, None);
    let begun = Instant::now();
    let result = run(vec![other, refused], 2);
    assert!(begun.elapsed() < Duration::from_secs(20));
    let text = result.as_ref().unwrap_err().to_string();
    assert_eq!(
        text,
        format!("cannot stage layer 6 ({})", Sha256Text(sha256(&blob)))
    );
    let (index, cause) = failure(result);
    assert_eq!(index, 5);
    assert!(matches!(cause, LayerError::Consumer { source } if source.0 == "dir1/file1"));
}

#[test]
fn panics_become_errors_wherever_they_happen() {
    struct PanickingRead;
    impl Read for PanickingRead {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("in read")
        }
    }
    let (tar, _) = layer(1, &[1, 2, 3_000_000]);
    let blob = gzip(&tar);
    type Change<'c> = &'c dyn Fn(&mut Job<'_>);
    let changes: [(&str, &str, Change<'_>); 5] = [
        ("reading", "in open", &|job| {
            job.open = Box::new(|| panic!("in open"));
        }),
        ("reading", "in read", &|job| job.open = open(PanickingRead)),
        ("consuming", "asked to panic", &|job| {
            job.consume = consume(Collect {
                panic: Some("dir1/file1".into()),
                ..Collect::default()
            });
        }),
        ("consuming", "number 7", &|job| {
            job.consume = Box::new(|_| panic!("number {}", 7));
        }),
        ("consuming", "afterwards", &|job| {
            job.consume = Box::new(|stream| {
                stream.drive(&mut Collect::default())?;
                panic!("afterwards")
            });
        }),
    ];
    for (stage, message, change) in changes {
        let mut panicking = job(0, &blob, &tar);
        change(&mut panicking);
        let mut other = job(1, &[], &[]);
        other.open = endless();
        (other.expected_digest, other.expected_size) = (None, None);
        match failure(run(vec![panicking, other], 2)) {
            (
                0,
                LayerError::Panicked {
                    stage: told,
                    message: said,
                },
            ) => {
                assert_eq!(told, stage);
                assert!(said.contains(message), "{said}");
            }
            other => panic!("{message}: {other:?}"),
        }
    }
}

#[test]
fn a_failing_source_is_told_with_its_error() {
    let mut unopened = job(0, &[], &[]);
    unopened.open = Box::new(|| Err(io::ErrorKind::NotFound.into()));
    assert!(matches!(
        failure(run(vec![unopened], 1)).1,
        LayerError::Open { source } if source.kind() == io::ErrorKind::NotFound
    ));
    struct Reset;
    impl Read for Reset {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let (tar, _) = layer(1, &[600_000]);
    for blob in [gzip(&tar), zstd(&tar), tar.clone()] {
        for length in [0, 7, 100_000, blob.len()] {
            let mut job = job(0, &blob, &tar);
            job.open = open(blob[..length].chain(Reset));
            let cause = failure(run(vec![job], 1)).1;
            assert!(
                matches!(&cause, LayerError::Read { source }
                    if source.kind() == io::ErrorKind::ConnectionReset),
                "{length}: {cause:?}"
            );
        }
    }
}

#[test]
fn a_consumer_that_does_not_read_to_the_end_fails() {
    let (tar, _) = layer(1, &[10]);
    let blob = gzip(&tar);
    let mut idle = job(0, &blob, &tar);
    idle.consume = Box::new(|_| Ok(Collect::default()));
    assert!(matches!(failure(run(vec![idle], 1)).1, LayerError::NotRead));
    // Nor does one that takes no for an answer.
    let mut stubborn = job(0, &blob, &tar);
    stubborn.diff_id = [1; 32];
    stubborn.consume = Box::new(|stream| {
        let mut sink = Collect::default();
        let _ = stream.drive(&mut sink);
        Ok(sink)
    });
    assert!(matches!(
        failure(run(vec![stubborn], 1)).1,
        LayerError::DiffId { .. } | LayerError::NotRead
    ));
}

#[test]
fn the_consumer_is_told_only_when_all_is_verified() {
    let (tar, _) = layer(1, &[500_000]);
    let blob = gzip(&tar);
    let finished = AtomicBool::new(false);
    let mut wrong = job(0, &blob, &tar);
    wrong.expected_digest = Some([9; 32]);
    wrong.consume = Box::new(|stream| {
        let mut sink = Collect::default();
        stream.drive(&mut sink)?;
        finished.store(true, Ordering::SeqCst);
        Ok(sink)
    });
    failure(run(vec![wrong], 1));
    assert!(!finished.load(Ordering::SeqCst));
}

#[test]
fn cancelling_ends_the_work_without_blame() {
    let cancel = AtomicBool::new(false);
    let jobs: Vec<_> = (0..5)
        .map(|index| {
            let mut job = job(index, &[], &[]);
            job.open = endless();
            (job.expected_digest, job.expected_size) = (None, None);
            job
        })
        .collect();
    let progress = Progress::new([None; 5]);
    let cancelled_at = thread::scope(|scope| {
        let canceller = scope.spawn(|| {
            // Both lanes are in the middle of a layer.
            while progress.layers()[..2]
                .iter()
                .any(|layer| layer.read() < 1 << 20)
            {
                thread::sleep(Duration::from_millis(1));
            }
            cancel.store(true, Ordering::Relaxed);
            Instant::now()
        });
        let result = ingest_layers(jobs, &options(2), &progress, &cancel);
        assert!(matches!(result, Err(IngestError::Cancelled)), "{result:?}");
        canceller.join().unwrap()
    });
    assert!(cancelled_at.elapsed() < Duration::from_secs(5));
    let states: Vec<_> = progress.layers().iter().map(LayerProgress::state).collect();
    assert_eq!(
        states,
        [
            LayerState::Failed,
            LayerState::Failed,
            LayerState::Waiting,
            LayerState::Waiting,
            LayerState::Waiting
        ]
    );
}

#[test]
fn what_breaks_because_of_cancelling_is_no_failure() {
    struct Closing<'a>(&'a AtomicBool);
    impl Read for Closing<'_> {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.store(true, Ordering::Relaxed);
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
    let cancel = AtomicBool::new(false);
    let mut job = job(0, &[], &[]);
    job.open = open(Closing(&cancel));
    let result = ingest_layers(vec![job], &options(1), &Progress::default(), &cancel);
    assert!(matches!(result, Err(IngestError::Cancelled)), "{result:?}");
}

#[test]
fn a_layer_that_was_complete_before_another_failed_stays_done() {
    let (tar, expected) = layer(1, &[1000]);
    let blob = gzip(&tar);
    let kept = Mutex::new(None);
    let mut good = job(0, &blob, &tar);
    good.consume = Box::new(|stream| {
        let mut sink = Collect::default();
        stream.drive(&mut sink)?;
        *kept.lock().unwrap() = Some(sink.clone());
        Ok(sink)
    });
    // The smaller one comes later, for there is one lane.
    let mut bad = job(1, &blob[..blob.len() - 1], &tar);
    bad.expected_digest = None;
    let progress = Progress::new([None, None]);
    let result = ingest_layers(
        vec![bad, good],
        &options(1),
        &progress,
        &AtomicBool::new(false),
    );
    assert_eq!(failure(result).0, 1);
    assert!(kept.into_inner().unwrap() == Some(expected));
    assert_eq!(progress.layers()[0].state(), LayerState::Done);
    assert_eq!(progress.layers()[1].state(), LayerState::Failed);
}

#[test]
fn an_error_keeps_its_cause_when_the_consumer_wraps_its_sink() {
    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] Refused);
    let error = LayerError::Consumer {
        source: Refused("it".into()),
    };
    assert!(matches!(
        error.map_consumer(Wrapped),
        LayerError::Consumer { source: Wrapped(Refused(text)) } if text == "it"
    ));
    let error: LayerError<Refused> = LayerError::Ratio { limit: 7 };
    assert!(matches!(
        error.map_consumer(Wrapped),
        LayerError::Ratio { limit: 7 }
    ));
}
