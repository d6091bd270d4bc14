//! What hosts and networks do to a download.

use super::super::*;
use super::lab::*;

const KIB: usize = 1 << 10;

#[test]
fn a_blob_comes_as_it_is() {
    for length in [0, 1, 70_000, 300 * KIB, 256 * KIB, 3000 * KIB + 7] {
        let (lab, blob) = (Lab::new(), noise(length, 1));
        let (downloads, places) = (lab.downloads(), Places::honest(&blob));
        let handle = downloads.get(places.clone(), &wanted(&blob));
        assert!(lab.read(&handle).unwrap() == blob, "{length}");
        handle.wait().unwrap();
        let length = length as u64;
        let progress = Progress {
            size: length,
            received: length,
            found: 0,
            network: length,
        };
        assert_eq!(handle.progress(), progress);
        assert_eq!(downloads.stats().bytes_total(), length);
        assert_eq!(downloads.stats().in_flight(), 0);
        // Who comes later finds it.
        drop(handle);
        let again = downloads.get(places.clone(), &wanted(&blob));
        assert!(lab.read(&again).unwrap() == blob);
        assert_eq!(places.offsets().len(), usize::from(length > 0));
        again.remove();
        assert_eq!(lab.files().len(), 0);
        assert!(lab.read(&again).unwrap() == blob, "who has it open goes on");
    }
}

#[test]
fn a_hundred_cuts_cost_nothing_but_time() {
    let (lab, blob) = (Lab::new(), noise(4000 * KIB, 2));
    let cuts = noise(800, 3);
    let source = blob.clone();
    let places = Places::new(1, move |_, offset, before| {
        let Some(cut) = cuts.chunks(8).nth(before) else {
            return Ok(rest(&source, offset));
        };
        let cut = u64::from_le_bytes(cut.try_into().unwrap()) % (80 * KIB as u64);
        let end = source.len().min(usize::try_from(offset + cut).unwrap());
        Ok(part(&source, offset, end, Some(Piece::Cut)))
    });
    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&handle).unwrap() == blob);
    let stats = downloads.stats();
    assert_eq!(stats.bytes_total(), blob.len() as u64);
    assert_eq!(
        stats.retries_total(Retry::Cut) as usize,
        places.offsets().len() - 1
    );
    assert!(places.offsets().len() > 90);
}

#[test]
fn after_silence_it_goes_on_where_it_was() {
    let (lab, blob) = (Lab::new(), noise(500 * KIB, 4));
    let source = blob.clone();
    let places = Places::new(1, move |_, offset, before| match before {
        0 => Ok(part(&source, offset, 100_001, Some(Piece::Hang))),
        _ => Ok(rest(&source, offset)),
    });
    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&handle).unwrap() == blob);
    assert_eq!(places.offsets(), [(0, 0), (0, 100_001)]);
    assert!((30.0..31.0).contains(&places.gaps()[0]));
    assert_eq!(downloads.stats().retries_total(Retry::Stall), 1);
}

#[test]
fn a_download_ends_where_nothing_comes() {
    let lab = Lab::new();
    let places = Places::new(2, |_, _, _| Err(later(None)));
    let began = lab.runtime.block_on(async { tokio::time::Instant::now() });
    let handle = lab.downloads().get(places.clone(), &wanted(b"abc"));
    let error = lab.drive(move || handle.wait()).unwrap_err();
    // The downloads are gone already, which ends it too.
    assert!(matches!(error, RegistryError::Cancelled), "{error}");

    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(b"abc"));
    let error = lab.drive(move || handle.wait()).unwrap_err();
    let RegistryError::Stalled { last, .. } = &error else {
        panic!("{error}");
    };
    assert!(last.contains("503"), "{error}");
    let end = *places.times.lock().unwrap().last().unwrap();
    let seconds = (end - began).as_secs();
    assert!((240..=300).contains(&seconds), "{seconds}");
    // Both were asked, and neither without pause.
    let asked = places.offsets();
    assert!((12..100).contains(&asked.len()), "{}", asked.len());
    assert!(asked.contains(&(0, 0)) && asked.contains(&(1, 0)));
}

#[test]
fn bytes_now_and_then_are_no_progress_and_a_slow_line_is() {
    let (lab, blob) = (Lab::new(), noise(4000 * KIB, 5));
    let drip = |bytes: usize, seconds: u64, source: &[u8]| {
        let pieces = source.chunks(bytes).flat_map(|bytes| {
            let wait = Piece::Wait(Duration::from_secs(seconds));
            [wait, Piece::Bytes(bytes.to_vec())]
        });
        pieces.collect::<Vec<_>>()
    };
    let run = |bytes, seconds| {
        let source = blob.clone();
        let places = Places::new(1, move |_, offset, _| {
            let from = usize::try_from(offset).unwrap();
            let pieces = drip(bytes, seconds, &source[from..]);
            let length = Some(source.len() as u64);
            Ok(Reply {
                offset,
                length,
                pieces,
            })
        });
        let downloads = lab.downloads();
        let handle = downloads.get(places, &wanted(&blob));
        let result = lab.read(&handle);
        handle.remove();
        let received = handle.received();
        handle.refuse();
        (result, received)
    };
    let (result, received) = run(1, 20);
    let error = result.unwrap_err();
    let RegistryError::Stalled { waited, last, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(waited.as_secs(), 300);
    assert!(last.contains("host0"), "{last}");
    assert_eq!(received, 15);
    // Half an hour.
    let (result, _) = run(40 * KIB, 19);
    assert!(result.unwrap() == blob);
}

#[test]
fn a_host_that_says_when_is_waited_for_unless_there_is_another() {
    let (lab, blob) = (Lab::new(), noise(10, 6));
    let source = blob.clone();
    let places = Places::new(1, move |_, offset, before| match before {
        0..2 => Err(later(Some(90))),
        _ => Ok(rest(&source, offset)),
    });
    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&handle).unwrap() == blob);
    let gaps = places.gaps();
    assert!(
        gaps.iter().all(|gap| (90.0..91.0).contains(gap)),
        "{gaps:?}"
    );
    assert_eq!(downloads.stats().retries_total(Retry::RateLimited), 2);
    handle.remove();

    let source = blob.clone();
    let places = Places::new(2, move |place, offset, _| match place {
        0 => Err(later(Some(90))),
        _ => Ok(rest(&source, offset)),
    });
    let handle = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&handle).unwrap() == blob);
    assert!(places.gaps()[0] < 0.1);
    handle.remove();

    // Two minutes of it are excused, not more.
    let places = Places::new(1, |_, _, _| Err(later(Some(7200))));
    let handle = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&handle).is_err());
    let gaps = places.gaps();
    assert!(
        gaps.iter().all(|gap| (120.0..151.0).contains(gap)),
        "{gaps:?}"
    );
    let all: f64 = gaps.iter().sum();
    assert!((240.0..=420.0).contains(&all), "{all}");
}

#[test]
fn a_range_that_is_ignored_or_refused_is_passed_over() {
    for refused in [true, false] {
        let (lab, blob) = (Lab::new(), noise(600 * KIB, 7));
        let source = blob.clone();
        let places = Places::new(1, move |_, offset, before| match (before, offset) {
            (0, _) => Ok(part(&source, 0, 200_000, Some(Piece::Cut))),
            (_, 1..) if refused => Err(BlobFault::Range(status("host0", 416))),
            _ => Ok(rest(&source, 0)),
        });
        let downloads = lab.downloads();
        let handle = downloads.get(places.clone(), &wanted(&blob));
        assert!(lab.read(&handle).unwrap() == blob);
        let expected: &[_] = match refused {
            true => &[(0, 0), (0, 200_000), (0, 0)],
            false => &[(0, 0), (0, 200_000)],
        };
        assert_eq!(places.offsets(), expected);
        assert_eq!(downloads.stats().repeated_bytes_total(), 200_000);
        assert_eq!(handle.progress().network, blob.len() as u64);
    }
}

#[test]
fn a_wrong_offset_or_length_is_a_fault_of_the_host() {
    let (lab, blob) = (Lab::new(), noise(300 * KIB, 8));
    let source = blob.clone();
    let places = Places::new(3, move |place, offset, before| match (place, before) {
        (0, 0) => Ok(part(&source, 0, 100_000, Some(Piece::Cut))),
        (0, _) => Ok(Reply {
            offset: offset + 1,
            ..rest(&source, offset)
        }),
        (1, _) => Ok(Reply {
            length: Some(5),
            ..rest(&source, offset)
        }),
        _ => Ok(rest(&source, offset)),
    });
    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&handle).unwrap() == blob);
    let at = 100_000;
    assert_eq!(
        places.offsets(),
        [(0, 0), (0, at), (0, 0), (1, at), (2, at)]
    );

    // All of them: an error that says who and what.
    let places = Places::new(1, |_, _, _| {
        let (offset, pieces) = (0, Vec::new());
        let length = Some(5);
        Ok(Reply {
            offset,
            length,
            pieces,
        })
    });
    let handle = downloads.get(places, &wanted(b"four"));
    let error = lab.read(&handle).unwrap_err().to_string();
    assert!(
        error.contains("host0") && error.contains("5 bytes"),
        "{error}"
    );
}

#[test]
fn a_body_of_another_length_is_not_the_blob() {
    let (lab, blob) = (Lab::new(), noise(300 * KIB, 9));
    let longer = [&blob[..], b"more"].concat();
    let source = blob.clone();
    let places = Places::new(2, move |place, offset, _| match place {
        0 => Ok(Reply {
            length: None,
            ..rest(&longer, offset)
        }),
        _ => Ok(rest(&source, offset)),
    });
    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(&blob));
    lab.drive({
        let handle = handle.clone();
        move || handle.wait()
    })
    .unwrap();
    assert!(lab.read(&handle).unwrap() == blob);
    assert_eq!(places.offsets(), [(0, 0), (1, 0)]);
    assert_eq!(handle.hosts(), "host1");
    drop(handle);

    // A shorter one, whose host does not say so and ends in peace.
    let other = noise(300 * KIB, 10);
    let source = other.clone();
    let places = Places::new(1, move |_, offset, _| match offset {
        0 => Ok(Reply {
            length: None,
            ..part(&source, 0, 200_000, None)
        }),
        _ => Err(BlobFault::Range(status("host0", 416))),
    });
    let handle = downloads.get(places.clone(), &wanted(&other));
    let error = lab.read(&handle).unwrap_err();
    assert!(matches!(error, RegistryError::Malformed { .. }), "{error}");
    assert!(places.offsets().len() < 15, "{:?}", places.offsets());
}

#[test]
fn the_next_place_is_asked_and_the_most_telling_error_given() {
    let (lab, blob) = (Lab::new(), noise(10, 11));
    let source = blob.clone();
    let places = Places::new(3, move |place, offset, _| match place {
        0 => Err(BlobFault::Elsewhere(not_found())),
        1 => Err(later(None)),
        _ => Ok(rest(&source, offset)),
    });
    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&handle).unwrap() == blob);
    assert_eq!(places.offsets(), [(0, 0), (1, 0), (1, 0), (1, 0), (2, 0)]);
    handle.remove();

    let places = Places::new(3, |place, _, _| {
        Err(BlobFault::Elsewhere(match place {
            0 => status("host0", 500),
            1 => RegistryError::Unauthenticated {
                image: "image".to_owned(),
                tried: "nothing".to_owned(),
            },
            _ => not_found(),
        }))
    });
    let handle = downloads.get(places, &wanted(&blob));
    let error = lab.read(&handle).unwrap_err();
    assert!(
        matches!(error, RegistryError::Unauthenticated { .. }),
        "{error}"
    );
    // A failure is not kept: who comes next tries again.
    let places = Places::honest(&blob);
    let again = downloads.get(places, &wanted(&blob));
    assert!(lab.read(&again).unwrap() == blob);
}

#[test]
fn broken_bytes_are_fetched_again_from_another_host() {
    let (lab, blob) = (Lab::new(), noise(900 * KIB, 12));
    let mut broken = blob.clone();
    broken[500_000] ^= 1;
    let source = blob.clone();
    let places = Places::new(2, move |place, offset, _| match place {
        0 => Ok(rest(&broken, offset)),
        _ => Ok(rest(&source, offset)),
    });
    let downloads = lab.downloads();
    let first = downloads.get(places.clone(), &wanted(&blob));
    let second = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&first).unwrap() != blob);
    assert_eq!(first.hosts(), "host0");
    // Both notice, and it is thrown away once.
    first.discard();
    second.discard();
    assert!(lab.read(&first).unwrap() == blob && lab.read(&second).unwrap() == blob);
    assert_eq!(places.offsets(), [(0, 0), (1, 0)]);
    assert_eq!(first.hosts(), "host1");
    assert_eq!(downloads.stats().retries_total(Retry::Broken), 1);

    // Broken there too, as a job sees it: nobody finds it later.
    first.refuse();
    let error = lab.read(&second).unwrap_err().to_string();
    assert!(error.contains("host1"), "{error}");
    assert_eq!(lab.files().len(), 0);
}

#[test]
fn the_only_host_is_asked_again_for_what_it_gave_broken() {
    let (lab, blob) = (Lab::new(), noise(90 * KIB, 13));
    let source = blob.clone();
    let places = Places::new(1, move |_, offset, before| match before {
        0 => Ok(rest(&noise(90 * KIB, 14), offset)),
        _ => Ok(rest(&source, offset)),
    });
    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&handle).unwrap() != blob);
    handle.discard();
    assert!(lab.read(&handle).unwrap() == blob);
}

#[test]
fn other_bytes_than_before_are_noticed() {
    let (lab, blob) = (Lab::in_real_time(), noise(900 * KIB, 15));
    let mut broken = blob.clone();
    broken[150_000] ^= 1;
    let source = blob.clone();
    let places = Places::new(2, move |place, _, _| match place {
        0 => Ok(part(&broken, 0, 200_000, Some(Piece::Hang))),
        // Always the whole.
        _ => Ok(rest(&source, 0)),
    });
    let downloads = lab.downloads();
    let handle = downloads.get(places.clone(), &wanted(&blob));
    let begun = fetch_some(&lab, &handle, 200_000);
    lab.pause();
    let error = lab.drive(move || read(begun)).unwrap_err();
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
    // The job that failed so says that it was broken, and is not heard: the
    // bytes that are there now are others.
    handle.discard();
    assert!(lab.read(&handle).unwrap() == blob);
    assert_eq!(places.offsets().last(), Some(&(1, 200_000)));
    assert_eq!(lab.files().len(), 1);

    // Hosts that take turns in giving different bytes do not go on for ever.
    let places = Places::new(1, move |_, _, before| {
        let blob = noise(900 * KIB, 100 + before as u64);
        Ok(part(&blob, 0, 200_000, Some(Piece::Cut)))
    });
    let handle = downloads.get(places, &wanted(&noise(900 * KIB, 16)));
    let waiting = handle.clone();
    let error = lab.drive(move || waiting.wait()).unwrap_err();
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
}
