//! Calls that nobody waits for to the end: the plugin is killed, or its caller
//! leaves. Either somebody asks again and gets what was asked for, or nothing is
//! left.

use super::driver::{Driver, Node, names};
use super::fake::{Kubelet, State, Volume, is_final};
use super::support::entry::{Layer, dir, file};
use super::support::model::flatten;
use super::support::tree::{Compared, assert_same, read};
use super::{LOOK_EVERY, PATIENCE, layers, running, until};
use std::fs::{self, File};
use std::time::{Duration, Instant};
use tonic::Code;

/// Kills at any moment that meet a call of each kind, if there is time for them.
const KILLS: usize = 10;
/// Longer than it takes until the plugin is at work on a call.
const SHORT: Duration = Duration::from_millis(500);

/// Layers that take a while: thousands of files, in some layers more than in others.
fn many_files(number: usize) -> Vec<Layer> {
    let layer = |name: usize, files: usize| {
        let content = format!("image {number} layer {name}").repeat(20);
        let path = move |file: usize| format!("l{name}/f{file}");
        let files = (0..files).map(|f| file(path(f), &content));
        std::iter::once(dir(format!("l{name}")))
            .chain(files)
            .collect()
    };
    vec![layer(0, 4000), layer(1, 100), layer(2, 2000)]
}

fn is_right(what: &str, volume: &Volume, layers: &[Layer]) {
    let actual = read(&volume.target()).unwrap();
    assert_same(what, &flatten(layers).unwrap(), &actual, Compared::ALL);
}

/// Starts the plugin again as its pod's runtime does.
async fn again(node: &Node, kubelet: &mut Kubelet, driver: &mut Driver) {
    *driver = node.start();
    kubelet.register().await;
}

/// Whether a publish has come so far.
type Moment = fn(&Node) -> bool;

const UNPACKING: Moment = |node| {
    let ingest = node.store().join("ingest");
    names(&ingest).iter().any(|name| !name.ends_with(".lock"))
};

const MOMENTS: [(&str, Moment); 4] = [
    ("killed when layers are unpacked", UNPACKING),
    ("killed when a layer is committed", |node| {
        names(&node.store().join("layers"))
            .iter()
            .any(|name| name.ends_with(".json"))
    }),
    ("killed when the record is written", |node| {
        !node.records().is_empty()
    }),
    ("killed when it is mounted", |node| {
        !node.mounts().is_empty()
    }),
];

#[tokio::test]
async fn a_publish_is_killed_and_asked_for_again() {
    for (number, (what, has_come)) in MOMENTS.into_iter().enumerate() {
        let (node, mut driver, mut kubelet) = running().await;
        let layers = many_files(number);
        let image = node.image("big", &layers);
        let mut volume = kubelet.volume(&image);
        publish_and_kill(&node, &kubelet, &mut driver, &mut volume, has_come).await;
        again(&node, &mut kubelet, &mut driver).await;
        kubelet.set_up(&mut volume).await.unwrap();
        is_right(what, &volume, &layers);
        assert_eq!(node.layers().len(), layers.len(), "{what}");
        assert_eq!(node.mounts(), [volume.target()], "{what}");
        kubelet.delete(&mut volume).await;
        node.has_no_volumes(what);
    }
}

#[tokio::test]
async fn a_publish_is_killed_and_the_pod_goes() {
    for (number, (what, has_come)) in MOMENTS.into_iter().enumerate() {
        let (node, mut driver, mut kubelet) = running().await;
        let image = node.image("big", &many_files(number));
        let mut volume = kubelet.volume(&image);
        publish_and_kill(&node, &kubelet, &mut driver, &mut volume, has_come).await;
        // The pod is deleted at once, and kubelet cannot do anything for it yet.
        kubelet.tear_down(&mut volume).await.unwrap_err();
        again(&node, &mut kubelet, &mut driver).await;
        kubelet.delete(&mut volume).await;
        node.has_no_volumes(what);

        // And where nobody asks: the next start clears away what no pod can have
        // seen, and kubelet finds nothing in the way of its own clearing.
        let image = node.image("other", &many_files(100 + number));
        let mut volume = kubelet.volume(&image);
        publish_and_kill(&node, &kubelet, &mut driver, &mut volume, has_come).await;
        let is_mounted = node.records().iter().any(|(_, r)| r["state"] == "mounted");
        again(&node, &mut kubelet, &mut driver).await;
        if !is_mounted {
            volume.remove_dirs().unwrap();
            volume.state = State::Unmounted;
        }
        kubelet.delete(&mut volume).await;
        node.has_no_volumes(what);
    }
}

#[tokio::test]
async fn a_mount_is_killed_before_it_is_recorded() {
    let (node, mut driver, mut kubelet) = running().await;
    let image = node.image("app", &layers());
    // The moment is too short to be met, but what it leaves is known.
    for (state, is_kept) in [("intended", false), ("returning", true)] {
        let mut volume = kubelet.volume(&image);
        kubelet.set_up(&mut volume).await.unwrap();
        fs::write(volume.target().join("mine"), "mine").unwrap();
        driver.kill();
        let (path, mut record) = node.records().remove(0);
        record["state"] = state.into();
        fs::write(&path, record.to_string()).unwrap();
        again(&node, &mut kubelet, &mut driver).await;
        if is_kept {
            // It was there before, and so is what the pod has written.
            assert_eq!(node.records()[0].1["state"], "mounted");
            assert_eq!(node.mounts(), [volume.target()]);
            assert!(volume.target().join("mine").exists());
        } else {
            // No pod has seen it, and nothing is in the way of what kubelet does
            // where it has forgotten it.
            assert!(node.records().is_empty());
            volume.remove_dirs().unwrap();
            volume.state = State::Unmounted;
        }
        kubelet.delete(&mut volume).await;
        node.has_no_volumes(state);
    }
}

/// Publishes, and kills the plugin at a moment, or after it where the machine is
/// busy; but in the middle of unpacking for certain.
async fn publish_and_kill(
    node: &Node,
    kubelet: &Kubelet,
    driver: &mut Driver,
    volume: &mut Volume,
    has_come: Moment,
) {
    let before = node.layers();
    let is_unpacking = std::ptr::fn_addr_eq(has_come, UNPACKING);
    let held = is_unpacking.then(|| node.hold_commits());
    let killing = async {
        // Of a second image on the node, the layers of the first are no sign.
        let is_new = || is_unpacking || node.layers() != before;
        until("the moment to kill", || has_come(node) && is_new()).await;
        driver.kill();
        drop(held);
    };
    let (result, ()) = tokio::join!(kubelet.set_up(volume), killing);
    match result {
        Ok(()) => assert!(!is_unpacking, "no layer could be committed"),
        Err(status) => {
            assert!(!is_final(status.code()), "{status:?}");
            assert_eq!(volume.state, State::Uncertain);
        }
    }
}

#[tokio::test]
async fn an_unpublish_is_killed() {
    for asks_again in [true, false] {
        let (node, mut driver, mut kubelet) = running().await;
        let image = node.image("app", &layers());
        // While it waits for somebody who still uses the volume.
        let mut busy = kubelet.volume(&image);
        kubelet.set_up(&mut busy).await.unwrap();
        let user = File::open(busy.target().join("changed")).unwrap();
        let killing = async {
            let is_leaving = || node.records().iter().any(|(_, r)| r["state"] == "leaving");
            until("the unmount", is_leaving).await;
            driver.kill();
        };
        let (result, ()) = tokio::join!(kubelet.tear_down(&mut busy), killing);
        assert!(!is_final(result.unwrap_err().code()));
        assert_eq!(node.mounts(), [busy.target()], "who uses it still can");
        again(&node, &mut kubelet, &mut driver).await;
        let metrics = driver.get("/metrics").await.1;
        assert!(
            metrics.contains("\naufs_csi_stuck_volumes 1\n"),
            "{metrics}"
        );
        drop(user);
        if asks_again {
            kubelet.delete(&mut busy).await;
        } else {
            // The next start finishes what was begun.
            driver.kill();
            again(&node, &mut kubelet, &mut driver).await;
            busy.remove_dirs().unwrap();
            busy.remove_pod_dir().unwrap();
        }
        node.has_no_volumes("while it unmounts");

        // While it removes what the pod has written.
        let mut full = kubelet.volume(&image);
        kubelet.set_up(&mut full).await.unwrap();
        for number in 0..5000 {
            fs::write(full.target().join(number.to_string()), b"").unwrap();
        }
        let upper = node.records()[0].0.with_file_name("upper");
        let killing = async {
            until("the removal", || {
                fs::read_dir(&upper).map_or(0, Iterator::count) < 5000
            })
            .await;
            driver.kill();
        };
        let (result, ()) = tokio::join!(kubelet.tear_down(&mut full), killing);
        let is_met = result.is_err();
        again(&node, &mut kubelet, &mut driver).await;
        if is_met && asks_again {
            kubelet.delete(&mut full).await;
        } else {
            full.remove_dirs().unwrap();
            full.remove_pod_dir().unwrap();
        }
        node.has_no_volumes("while it removes");
        // The name and the directory are as good as new.
        let mut next = kubelet.volume(&image);
        kubelet.set_up(&mut next).await.unwrap();
        is_right("afterwards", &next, &layers());
        kubelet.delete(&mut next).await;
        node.has_no_volumes("afterwards");
    }
}

#[tokio::test]
async fn kills_at_any_moment_of_warm_calls_leave_nothing() {
    let (node, mut driver, mut kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let (mut up, mut down) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let mut volume = kubelet.volume(&image);
        let begin = Instant::now();
        kubelet.set_up(&mut volume).await.unwrap();
        up = up.min(begin.elapsed());
        let begin = Instant::now();
        kubelet.delete(&mut volume).await;
        down = down.min(begin.elapsed());
    }
    let begin = Instant::now();
    let (mut met_up, mut met_down) = (0, 0);
    // 0.618… of the circle each time spreads any number of them evenly.
    let moments = (1..=150).map(|number| (f64::from(number) * 0.618_034).fract());
    for (number, moment) in moments.enumerate() {
        if met_up >= KILLS && met_down >= KILLS || begin.elapsed() > PATIENCE / 2 {
            break;
        }
        let what = format!("{moment} of {up:?} and {down:?}");
        let mut volume = kubelet.volume(&image);
        let is_up = number % 2 == 0;
        if !is_up {
            kubelet.set_up(&mut volume).await.unwrap();
        }
        let after = if is_up { up } else { down }.mul_f64(moment);
        let killing = async {
            tokio::time::sleep(after).await;
            driver.kill();
        };
        if is_up {
            let (result, ()) = tokio::join!(kubelet.set_up(&mut volume), killing);
            met_up += usize::from(result.is_err());
        } else {
            let (result, ()) = tokio::join!(kubelet.tear_down(&mut volume), killing);
            met_down += usize::from(result.is_err());
        }
        again(&node, &mut kubelet, &mut driver).await;
        if number % 4 == 0 {
            kubelet.set_up(&mut volume).await.unwrap();
            is_right(&what, &volume, &layers);
            assert_eq!(node.mounts(), [volume.target()], "{what}");
        }
        kubelet.delete(&mut volume).await;
        node.has_no_volumes(&what);
    }
    // On a busy machine most come too late.
    println!("{met_up} and {met_down} kills met a call");
    assert!(met_up + met_down > 0);
}

/// Logged for each caller that leaves.
const LEFT: &str = "NodePublishVolume: the caller left before the answer; work goes on";

/// A publish whose caller leaves while the plugin works on it, which it must not
/// be able to finish meanwhile.
async fn leave(kubelet: &Kubelet, driver: &Driver, volume: &mut Volume, how: Leaving) {
    let before = driver.logged(LEFT);
    let mut patience = SHORT;
    // On a busy machine the call may not even have come to the plugin by then.
    while driver.logged(LEFT) == before {
        match how {
            Leaving::Deadline => {
                let status = kubelet.set_up_within(volume, patience).await.unwrap_err();
                assert!(
                    matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded),
                    "{status:?}"
                );
            }
            Leaving::Reset => {
                volume.make_dirs();
                let call = kubelet.publish(volume.publish_request(), PATIENCE);
                tokio::time::timeout(patience, call).await.unwrap_err();
                volume.state = State::Uncertain;
            }
        }
        assert_eq!(volume.state, State::Uncertain);
        let logged = async {
            while driver.logged(LEFT) == before {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // If it did not come, there is no such line.
        let _ = tokio::time::timeout(patience, logged).await;
        patience *= 2;
        assert!(patience < PATIENCE, "no call comes to the plugin");
    }
}

#[derive(Clone, Copy)]
enum Leaving {
    /// Its time is over, which the plugin knows from its headers.
    Deadline,
    /// It resets the stream, or its process ends.
    Reset,
}

#[tokio::test]
async fn work_goes_on_when_its_caller_leaves_and_the_next_one_joins_it() {
    let (node, driver, kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let mut volume = kubelet.volume(&image);
    let held = node.hold_store();
    leave(&kubelet, &driver, &mut volume, Leaving::Deadline).await;
    leave(&kubelet, &driver, &mut volume, Leaving::Reset).await;
    let mut same = volume.clone();
    let stays = kubelet.set_up(&mut volume);
    let release = async {
        leave(&kubelet, &driver, &mut same, Leaving::Deadline).await;
        let metrics = driver.get("/metrics").await.1;
        let line = "aufs_csi_operations_in_flight 1";
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
        drop(held);
    };
    let (stayed, ()) = tokio::join!(stays, release);
    stayed.unwrap();
    is_right("afterwards", &volume, &layers);
    assert_eq!(node.mounts(), [volume.target()]);
    kubelet.delete(&mut volume).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn staging_goes_on_when_its_caller_leaves() {
    let (node, driver, kubelet) = running().await;
    let layers = many_files(0);
    let mut volume = kubelet.volume(&node.image("big", &layers));
    volume.make_dirs();
    let held = node.hold_commits();
    let call = kubelet.publish(volume.publish_request(), PATIENCE);
    tokio::select! {
        result = call => panic!("no layer can be committed: {result:?}"),
        () = until("layers that are unpacked", || UNPACKING(&node)) => {}
    }
    until("the log line", || driver.logged(LEFT) == 1).await;
    assert_eq!(node.records().len(), 0);
    drop(held);
    until("the image's layers", || node.layers().len() == layers.len()).await;
    until("the mount", || {
        node.records().iter().any(|(_, r)| r["state"] == "mounted")
    })
    .await;
    kubelet.set_up(&mut volume).await.unwrap();
    is_right("afterwards", &volume, &layers);
    assert_eq!(node.mounts(), [volume.target()]);
    kubelet.delete(&mut volume).await;
    node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_pod_is_deleted_while_its_volume_is_published() {
    let (node, driver, kubelet) = running().await;
    let image = node.image("big", &many_files(0));
    // At first the image has to be staged, then it is there.
    for how in [Leaving::Deadline, Leaving::Reset] {
        let mut volume = kubelet.volume(&image);
        let held = node.hold_store();
        leave(&kubelet, &driver, &mut volume, how).await;
        let lock = node.lock_of(&volume);
        let release = async {
            // That an unpublish waits for its turn leaves no trace, so this gives
            // it the time to do otherwise.
            tokio::time::sleep(SHORT).await;
            assert!(lock.exists(), "the publish still runs");
            assert_eq!(driver.get("/livez").await.0, "HTTP/1.1 200 OK");
            drop(held);
        };
        let (deleted, ()) = tokio::join!(kubelet.tear_down(&mut volume), release);
        deleted.unwrap();
        volume.remove_pod_dir().unwrap();
        node.has_no_volumes("afterwards");
    }
}
