//! Processes, jobs, turns and disks.

use super::super::*;
use super::lab::*;
use rustix::fs::Mode;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

const KIB: usize = 1 << 10;

/// One host that stops after so many bytes the first time.
fn stopping(blob: &[u8], end: usize) -> Arc<Places> {
    let blob = blob.to_vec();
    Places::new(1, move |_, offset, before| match before {
        0 => Ok(part(&blob, offset, end, Some(Piece::Hang))),
        _ => Ok(rest(&blob, offset)),
    })
}

#[test]
fn another_process_goes_on_and_verifies_what_it_found() {
    for is_broken in [false, true] {
        let blob = noise(900 * KIB, 20);
        let mut lab = Lab::in_real_time();
        let places = stopping(&blob, 300_000);
        let downloads = lab.downloads();
        let handle = downloads.get(places.clone(), &wanted(&blob));
        fetch_some(&lab, &handle, 300_000);
        // As a kill does it: nothing of the process ends in order.
        let runtime = std::mem::replace(&mut lab.runtime, Lab::in_real_time().runtime);
        std::mem::forget((downloads, handle));
        drop(runtime);
        let (name, length) = lab.files().into_iter().next().unwrap();
        assert_eq!(length, 300_000);
        if is_broken {
            let path = lab.dir.path().join(name);
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[blob[1000] ^ 1], 1000).unwrap();
        }

        let places = Places::honest(&blob);
        let downloads = lab.downloads();
        let handle = downloads.get(places.clone(), &wanted(&blob));
        let result = lab.read(&handle);
        assert_eq!(places.offsets(), [(0, 300_000)]);
        assert_eq!(downloads.stats().resumed_bytes_total(), 300_000);
        let progress = handle.progress();
        assert_eq!(progress.found, 300_000);
        if is_broken {
            let error = result.unwrap_err();
            assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
            assert_eq!(lab.files().len(), 0);
            handle.discard();
            assert!(lab.read(&handle).unwrap() == blob);
        } else {
            assert!(result.unwrap() == blob);
            assert_eq!(progress.network, blob.len() as u64 - 300_000);
        }
    }
}

#[test]
fn bytes_of_another_boot_are_fetched_again() {
    let (lab, blob) = (Lab::new(), noise(100 * KIB, 21));
    let first = lab.downloads();
    let handle = first.get(Places::honest(&blob), &wanted(&blob));
    assert!(lab.read(&handle).unwrap() == blob);
    let boot = "ffffffff-0000-4000-8000-000000000000";
    let spools = Spools::open(lab.dir.path(), boot).unwrap();
    let runtime = lab.runtime.handle().clone();
    let second = Downloads::new(DownloadSettings::default(), spools, runtime);
    let places = Places::honest(&blob);
    let again = second.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&again).unwrap() == blob);
    assert_eq!(places.offsets(), [(0, 0)]);
    // What somebody has open stays until he is done.
    assert_eq!(second.spools().clean().unwrap(), 0);
    drop((handle, first));
    assert_eq!(second.spools().clean().unwrap(), 1);
}

#[test]
fn two_processes_fetch_once() {
    let (lab, blob) = (Lab::in_real_time(), noise(900 * KIB, 22));
    let (first, second) = (lab.downloads(), lab.downloads());
    let source = blob.clone();
    let slow = Places::new(1, move |_, offset, _| {
        let mut reply = rest(&source, offset);
        reply.pieces.insert(5, Piece::Wait(Duration::from_secs(20)));
        Ok(reply)
    });
    let one = first.get(slow.clone(), &wanted(&blob));
    fetch_some(&lab, &one, 100_000);
    let places = Places::honest(&blob);
    let other = second.get(places.clone(), &wanted(&blob));
    lab.pause();
    assert!(lab.read(&other).unwrap() == blob);
    assert_eq!(places.offsets(), []);
    assert_eq!(other.progress().network, 0);
    assert!(lab.read(&one).unwrap() == blob);
    drop((one, other));
    lab.settle();
    assert_eq!(first.spools().expire(Duration::ZERO).unwrap(), 1);

    lab.resume();
    // The one that fetches ends; the one that waits goes on.
    let one = first.get(stopping(&blob, 400_000), &wanted(&blob));
    fetch_some(&lab, &one, 400_000);
    let other = second.get(places.clone(), &wanted(&blob));
    fetch_some(&lab, &other, 400_000);
    assert_eq!(places.offsets(), []);
    drop(one);
    assert!(lab.read(&other).unwrap() == blob);
    assert_eq!(places.offsets(), [(0, 400_000)]);
}

#[test]
fn fifty_readers_one_fetch() {
    let (lab, blob) = (Lab::new(), noise(700 * KIB, 23));
    let (downloads, places) = (lab.downloads(), Places::honest(&blob));
    let handles: Vec<_> = (0..50)
        .map(|_| downloads.get(places.clone(), &wanted(&blob)))
        .collect();
    let expected = blob.clone();
    lab.drive(move || {
        let readers = handles.iter().map(|handle| {
            let reader = handle.reader();
            thread::spawn(move || read(reader))
        });
        let readers: Vec<_> = readers.collect();
        for reader in readers {
            assert!(reader.join().unwrap().unwrap() == expected);
        }
    });
    assert_eq!(places.offsets(), [(0, 0)]);
}

#[test]
fn bytes_stay_within_their_domain() {
    let (lab, blob) = (Lab::new(), noise(100 * KIB, 24));
    let (downloads, owner) = (lab.downloads(), Places::honest(&blob));
    let private = Wanted {
        domain: "registry/private",
        ..wanted(&blob)
    };
    let handle = downloads.get(owner, &private);
    assert!(lab.read(&handle).unwrap() == blob);
    let stranger = Places::new(1, |_, _, _| Err(BlobFault::Elsewhere(not_found())));
    for domain in ["", "registry/stranger"] {
        let guess = Wanted {
            domain,
            ..wanted(&blob)
        };
        let handle = downloads.get(stranger.clone(), &guess);
        let error = lab.read(&handle).unwrap_err();
        assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
        assert_eq!(handle.received(), 0);
    }
}

#[test]
fn who_cancels_is_gone_and_the_others_are_not() {
    let (lab, blob) = (Lab::in_real_time(), noise(900 * KIB, 25));
    let (downloads, places) = (lab.downloads(), stopping(&blob, 300_000));
    let one = downloads.get(places.clone(), &wanted(&blob));
    let other = downloads.get(places.clone(), &wanted(&blob));
    fetch_some(&lab, &one, 300_000);
    let waiting = other.reader();
    let waiting = thread::spawn(move || read(waiting));
    let leaving = one.reader();
    let leaving = thread::spawn(move || read(leaving));
    one.cancel();
    let error = leaving.join().unwrap().unwrap_err();
    assert!(matches!(error, RegistryError::Cancelled), "{error}");
    assert!(matches!(one.wait(), Err(RegistryError::Cancelled)));
    assert_eq!((places.open(), downloads.stats().in_flight()), (1, 1));
    lab.pause();
    assert!(lab.drive(move || waiting.join().unwrap()).unwrap() == blob);
    drop((one, other));

    lab.resume();
    // The last one ends it, with its turn, its connection and its task.
    let blob = noise(900 * KIB, 26);
    let places = stopping(&blob, 300_000);
    let last = downloads.get(places.clone(), &wanted(&blob));
    let reader = fetch_some(&lab, &last, 300_000);
    drop(last);
    lab.settle();
    assert_eq!(places.open(), 1, "a reader still wants it");
    drop(reader);
    lab.settle();
    assert_eq!((places.open(), downloads.stats().in_flight()), (0, 0));
    assert_eq!(lab.runtime.metrics().num_alive_tasks(), 0);
    assert_eq!(Arc::strong_count(&places), 1);
    // And is gone on with.
    let again = downloads.get(places.clone(), &wanted(&blob));
    assert!(lab.read(&again).unwrap() == blob);
    assert_eq!(places.offsets(), [(0, 0), (0, 300_000)]);
}

#[test]
fn nothing_is_left_of_downloads_that_are_dropped() {
    let (lab, blob) = (Lab::in_real_time(), noise(900 * KIB, 27));
    let (downloads, places) = (lab.downloads(), stopping(&blob, 300_000));
    let all = places.clone() as Arc<dyn BlobPlaces>;
    let others: Vec<Vec<u8>> = (0..10).map(|n| noise(1000, 300 + n)).collect();
    let wanted_all: Vec<_> = others.iter().map(|blob| wanted(blob)).collect();
    let first = downloads.get(places.clone(), &wanted(&blob));
    let handles = downloads.get_all(&all, &wanted_all);
    drop(all);
    fetch_some(&lab, &first, 300_000);
    let reader = first.reader();
    let reader = thread::spawn(move || read(reader));
    drop(downloads);
    let error = reader.join().unwrap().unwrap_err();
    assert!(matches!(error, RegistryError::Cancelled), "{error}");
    lab.settle();
    assert_eq!(places.open(), 0);
    assert_eq!(lab.runtime.metrics().num_alive_tasks(), 0);
    drop((first, handles));
    assert_eq!(Arc::strong_count(&places), 1);
}

#[test]
fn the_end_of_the_runtime_is_told() {
    let (lab, blob) = (Lab::in_real_time(), noise(900 * KIB, 28));
    let downloads = lab.downloads();
    let handle = downloads.get(stopping(&blob, 300_000), &wanted(&blob));
    fetch_some(&lab, &handle, 300_000);
    let reader = handle.reader();
    let reader = thread::spawn(move || read(reader));
    drop(lab.runtime);
    let error = reader.join().unwrap().unwrap_err();
    assert!(matches!(error, RegistryError::Cancelled), "{error}");
}

#[test]
fn the_largest_begin_and_hosts_are_not_overrun() {
    let lab = Lab::new();
    let sizes = [30, 900, 5, 400, 400, 77];
    let blobs: Vec<_> = (sizes.iter().zip(0..))
        .map(|(size, seed)| noise(size * KIB, 400 + seed))
        .collect();
    let run = |in_all, per_host| {
        let sources = blobs.clone();
        let places = Places::new(1, move |_, _, _| {
            let (offset, pieces) = (0, vec![Piece::Wait(Duration::from_secs(1)), Piece::Cut]);
            let length = None;
            Ok(Reply {
                offset,
                length,
                pieces,
            })
        });
        let settings = DownloadSettings {
            in_all,
            per_host,
            ..DownloadSettings::default()
        };
        let downloads = lab.downloads_with(settings);
        let wanted_all: Vec<_> = sources.iter().map(|blob| wanted(blob)).collect();
        let as_places = places.clone() as Arc<dyn BlobPlaces>;
        let handles = downloads.get_all(&as_places, &wanted_all);
        lab.runtime
            .block_on(async { tokio::time::sleep(Duration::from_secs(2000)).await });
        drop(handles);
        lab.settle();
        let asked = places.asked.lock().unwrap();
        let mut order: Vec<usize> = Vec::new();
        for (_, _, digest) in asked.iter() {
            let index = wanted_all
                .iter()
                .position(|wanted| wanted.digest == *digest);
            if !order.contains(&index.unwrap()) {
                order.push(index.unwrap());
            }
        }
        (order, places.most.load(std::sync::atomic::Ordering::SeqCst))
    };
    assert_eq!(run(1, 1), (vec![1, 3, 4, 5, 0, 2], 1));
    assert_eq!(run(6, 2).1, 2);
    assert_eq!(run(4, 9).1, 4);
}

/// A small filesystem of its own.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    #[expect(
        clippy::disallowed_methods,
        reason = "a full disk for the test, not a volume"
    )]
    fn new(options: &std::ffi::CStr) -> Tmpfs {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options)
            .expect("a tmpfs is mounted for this test: run it as root");
        Tmpfs(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    #[expect(
        clippy::disallowed_methods,
        reason = "a full disk for the test, not a volume"
    )]
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.0.path(), flags).unwrap();
    }
}

#[test]
fn a_full_disk_ends_it_and_gets_its_space_back() {
    let lab = Lab::new();
    // Of the first, the kernel says that it is full; of the second, the look at
    // the free space does, which leaves a tenth.
    for (options, length) in [(c"size=1m", 4 << 20), (c"size=17m", 40 << 20)] {
        let disk = Tmpfs::new(options);
        let dir = disk.path().join("blobs");
        let spools = Spools::open(&dir, BOOT).unwrap();
        let settings = DownloadSettings::default();
        let downloads = Downloads::new(settings, spools, lab.runtime.handle().clone());
        let blob = noise(length, 29);
        let places = Places::honest(&blob);
        let wanted = [wanted(&blob)];
        let error = downloads.check_space(&wanted, 0).unwrap_err();
        let RegistryError::NoSpace {
            needed, available, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(needed, length as u64);
        assert!(available > 0 && available < 16 << 20, "{available}");
        downloads.check_space(&[], available).unwrap();
        downloads.check_space(&[], available + 1).unwrap_err();

        let handle = downloads.get(places, &wanted[0]);
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let reader = handle.reader();
                thread::spawn(move || read(reader))
            })
            .collect();
        let errors = lab.drive(move || {
            let errors = readers.into_iter().map(|reader| reader.join().unwrap());
            errors.map(Result::unwrap_err).collect::<Vec<_>>()
        });
        for error in errors {
            match error {
                RegistryError::Disk(error) => assert_eq!(error.kind(), ErrorKind::StorageFull),
                RegistryError::NoSpace { available: 0, .. } => {}
                error => panic!("{error}"),
            }
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        // The space is there again, with the handle still open.
        downloads.check_space(&[], available).unwrap();
    }
}

#[test]
fn a_directory_that_cannot_be_used_is_an_error_for_who_reads() {
    let (lab, blob) = (Lab::new(), noise(10, 30));
    let downloads = lab.downloads();
    rustix::fs::mkdir(lab.dir.path().join("x"), Mode::RWXU).unwrap();
    std::fs::remove_dir_all(lab.dir.path()).unwrap();
    let handle = downloads.get(Places::honest(&blob), &wanted(&blob));
    let error = lab.read(&handle).unwrap_err();
    assert!(matches!(error, RegistryError::Disk(_)), "{error}");
    assert!(downloads.check_space(&[], 0).is_err());
}
