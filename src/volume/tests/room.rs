//! Room is made once, and only where it helps.

use super::*;
use crate::layer::store::StoreError;
use std::cell::Cell;
use std::sync::Barrier;

/// With an image that nobody needs.
fn opened(node: &Node, host: &Arc<FakeHost>) -> Volumes {
    let volumes = node.open(host);
    let mut settings = (*volumes.collection()).clone();
    settings.marks.min_age = Duration::ZERO;
    volumes.set_collection(settings);
    restage(node, &volumes);
    volumes
}

fn restage(node: &Node, volumes: &Volumes) {
    let source = node.request().images.remove(0).source;
    let policy = PullPolicy::IfNotPresent;
    volumes
        .stage(&source, None, node.union, policy, &())
        .unwrap();
}

fn images(volumes: &Volumes) -> usize {
    volumes.images().unwrap().len()
}

/// Of the store's disk, of which nobody knows how much it needed.
fn full() -> VolumeError {
    VolumeError::Store(StoreError::io("write", Path::new("/x"))(
        Errno::NOSPC.into(),
    ))
}

fn is_no_room(result: Result<(), VolumeError>) {
    let error = result.unwrap_err();
    assert!(
        matches!(error, VolumeError::NoRoom { .. }),
        "{}",
        text(&error)
    );
}

#[test]
fn all_who_found_no_space_at_the_same_time_get_one_collection() {
    let node = Node::overlay(Owner::Plugin);
    let volumes = opened(&node, &Arc::new(FakeHost::new()));
    let failed_together = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let attempts = Cell::new(0);
                let work = || {
                    attempts.set(attempts.get() + 1);
                    if attempts.get() > 1 {
                        return Ok(());
                    }
                    failed_together.wait();
                    Err(full())
                };
                volumes.with_room(Vec::new, work).unwrap();
                assert_eq!(attempts.get(), 2);
            });
        }
    });
    assert_eq!(volumes.collected().unwrap().runs, 1);
    assert_eq!(images(&volumes), 0);
}

#[test]
fn what_did_not_fit_into_all_that_there_was_empties_the_store_once() {
    let node = Node::overlay(Owner::Plugin);
    let volumes = opened(&node, &Arc::new(FakeHost::new()));
    let large = || {
        node.request()
            .images
            .into_iter()
            .map(|it| it.source)
            .collect()
    };
    is_no_room(volumes.with_room(large, || Err(full())));
    assert_eq!(images(&volumes), 0);
    for _ in 0..3 {
        restage(&node, &volumes);
        is_no_room(volumes.with_room(large, || Err(full())));
        assert_eq!(images(&volumes), 1);
    }
    // Others are no larger for that.
    let first = Cell::new(true);
    let other = || match first.replace(false) {
        true => Err(full()),
        false => Ok(()),
    };
    volumes.with_room(Vec::new, other).unwrap();
    assert_eq!(images(&volumes), 0);
}

/// The disk in memory has half of a TiB to give.
#[test]
fn nothing_goes_for_who_needs_more_than_there_is_or_less_than_is_free() {
    let node = Node::overlay(Owner::Plugin);
    let volumes = opened(&node, &Arc::new(FakeHost::new()));
    let limit = |needs| VolumeError::NoRoomForLimit {
        needs,
        source: Errno::NOSPC.into(),
    };
    is_no_room(volumes.with_room(Vec::new, || Err(limit(1 << 41))));
    let attempts = Cell::new(0);
    let met = || {
        attempts.set(attempts.get() + 1);
        Err(limit(1 << 30))
    };
    let error = volumes.with_room::<()>(Vec::new, met).unwrap_err();
    // There is room; it is not for want of it.
    assert!(matches!(error, VolumeError::NoRoomForLimit { .. }));
    assert_eq!(attempts.get(), 2);
    let memory = || Err(VolumeError::Limit(Errno::NOMEM.into()));
    let error = volumes.with_room::<()>(Vec::new, memory).unwrap_err();
    assert!(matches!(error, VolumeError::Limit(_)));
    assert_eq!(images(&volumes), 1);
}

/// Something that was fetched and is not used, as a pull leaves it that failed.
fn leave_download(node: &Node) -> PathBuf {
    let dir = node.path("store/blobs");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join(format!("{}.{}", "0".repeat(32), "0".repeat(8)));
    fs::write(&file, [7; 4096]).unwrap();
    file
}

#[test]
fn what_others_could_go_on_with_stays_where_it_would_not_help() {
    let node = Node::overlay(Owner::Plugin);
    let volumes = opened(&node, &Arc::new(FakeHost::new()));
    let download = leave_download(&node);
    let limit = || {
        Err(VolumeError::NoRoomForLimit {
            needs: 1 << 41,
            source: Errno::NOSPC.into(),
        })
    };
    is_no_room(volumes.with_room(Vec::new, limit));
    assert!(download.exists());
    assert_eq!(images(&volumes), 1);
}

#[test]
fn scraps_are_not_taken_for_room() {
    let node = Node::overlay(Owner::Plugin);
    let volumes = opened(&node, &Arc::new(FakeHost::new()));
    let download = leave_download(&node);
    let work = || match volumes.images().unwrap().len() {
        0 => Ok(()),
        _ => Err(full()),
    };
    volumes.with_room(Vec::new, work).unwrap();
    assert!(!download.exists());
}
