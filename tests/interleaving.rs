//! Collection against whatever else works on the store, in every order that two
//! of them can have: one goes to a step and waits there, the other goes to a step
//! of its own, then the first comes to its end and after it the second. Nothing is
//! left to luck, and nothing to time: who would wait for a lock says so, and the
//! other one goes on.
//!
//! Both have a store of their own, as processes have, so locks are between them.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::host::Host;
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::image::reference::Source;
use aufs_csi::layer::collect::{Aim, Marks};
use aufs_csi::layer::steps;
use aufs_csi::pull::PullPolicy;
use aufs_csi::volume::purge::Elsewhere;
use aufs_csi::volume::{
    CollectSettings, ImageRequest, PublishRequest, VolumeError, VolumeOptions, Volumes,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use support::entry::{Layer, dir, file, whiteout};
use support::model::{flatten, merge};
use support::node::{TestNode, chain, union};
use support::tree::{Compared, assert_same, read};

/// One test at a time: they watch the same steps, and count mounts.
static ONE: Mutex<()> = Mutex::new(());

/// How long somebody who waits for a lock is waited for before the other one, who
/// has it, goes a step further. It decides how far that one goes, and nothing else.
const TURN: Duration = Duration::from_millis(1);

/// What somebody at work tells.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// He is before this step and goes on when he is told to.
    At(&'static str),
    Ended,
}

/// How he is told to go on, and how he tells where he is.
struct Link {
    told: Sender<Told>,
    go: Receiver<()>,
}

thread_local! {
    /// Of the thread that is watched. Threads that it starts go their way.
    static LINK: RefCell<Option<Link>> = const { RefCell::new(None) };
}

fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        steps::watch(|what| {
            LINK.with_borrow(|link| {
                if let Some(link) = link {
                    link.told.send(Told::At(what)).unwrap();
                    link.go.recv().unwrap();
                }
            });
        });
    });
}

/// Somebody at work, step by step.
struct Worker {
    told: Receiver<Told>,
    go: Sender<()>,
    thread: JoinHandle<()>,
    at: Told,
    passed: usize,
    /// Told to go on, and has not said where he came to.
    is_running: bool,
}

impl Worker {
    fn start(work: impl FnOnce() + Send + 'static) -> Self {
        let (told_to, told) = channel();
        let (go, go_to) = channel();
        let thread = thread::spawn(move || {
            let ended = told_to.clone();
            LINK.set(Some(Link {
                told: told_to,
                go: go_to,
            }));
            let result = catch_unwind(AssertUnwindSafe(work));
            LINK.set(None);
            ended.send(Told::Ended).unwrap();
            if let Err(panic) = result {
                resume_unwind(panic);
            }
        });
        let at = told.recv().unwrap();
        Worker {
            told,
            go,
            thread,
            at,
            passed: 0,
            is_running: false,
        }
    }

    fn is_ended(&self) -> bool {
        self.at == Told::Ended
    }

    /// Whether his next step is to wait for the other one.
    fn is_stuck(&self) -> bool {
        self.at == Told::At(steps::WAIT)
    }

    fn step(&mut self) {
        self.go.send(()).unwrap();
        self.at = self.told.recv().unwrap();
        self.passed += 1;
    }

    /// Goes on until so many steps are passed, or as far as he can.
    fn go_to(&mut self, steps: usize) {
        while !self.is_ended() && !self.is_stuck() && self.passed < steps {
            self.step();
        }
    }

    /// To the end. Where he waits for a lock that the other one has, that one goes
    /// on until he gets it.
    fn finish(&mut self, other: &mut Worker) {
        self.settle();
        while !self.is_ended() {
            if !self.is_stuck() {
                self.step();
                continue;
            }
            self.go.send(()).unwrap();
            self.passed += 1;
            while let Err(none) = self.told.recv_timeout(TURN).map(|at| self.at = at) {
                assert_eq!(none, RecvTimeoutError::Timeout);
                if other.is_running {
                    // He may wait for this one in turn, for a lock that is free by now.
                    if let Ok(at) = other.told.try_recv() {
                        other.at = at;
                        other.is_running = false;
                    }
                } else if !other.is_ended() {
                    other.go.send(()).unwrap();
                    other.passed += 1;
                    other.is_running = true;
                }
            }
        }
    }

    /// Waits until he is before a step, if he was told to go on and did not say.
    fn settle(&mut self) {
        if self.is_running {
            self.at = self.told.recv().unwrap();
            self.is_running = false;
        }
    }

    fn end(self, what: &str) {
        if let Err(panic) = self.thread.join() {
            eprintln!("{what}");
            resume_unwind(panic);
        }
    }
}

/// The node that both work on, and its images. `a` and `b` share their lowest
/// layer; `b` is in the store and not used.
struct Scene {
    node: TestNode,
    a: Source,
    b: Source,
}

fn shared() -> Layer {
    vec![dir("d"), file("d/shared", b"shared"), file("low", b"low")]
}

fn layers_a() -> Vec<Layer> {
    vec![shared(), vec![file("a", b"a"), whiteout("low")]]
}

fn layers_b() -> Vec<Layer> {
    vec![shared(), vec![file("b", b"b")]]
}

/// Everything that may go, goes.
fn collector(mut options: VolumeOptions) -> VolumeOptions {
    options.collect = CollectSettings {
        marks: Marks {
            min_age: Duration::ZERO,
            ..Marks::default()
        },
        prefetch: Vec::new(),
    };
    options
}

fn open(options: VolumeOptions) -> Volumes {
    Volumes::open(options, Arc::new(LinuxHost)).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

impl Scene {
    fn new() -> Self {
        let node = TestNode::new();
        node.volumes.probe().unwrap();
        Scene {
            a: node.image("a", &layers_a()),
            b: node.image("b", &layers_b()),
            node,
        }
    }

    fn collecting(&self) -> Volumes {
        open(collector(self.node.volumes_options()))
    }

    /// The store holds nothing but what is staged here.
    fn begin(&self, staged: &[&Source]) {
        let all = self.collecting();
        all.collect(Aim::All, true).unwrap();
        assert_eq!(names(&self.node.path().join("store/diff")), BTreeSet::new());
        for source in staged {
            let policy = PullPolicy::IfNotPresent;
            drop(all.stage(source, None, union(), policy, &()).unwrap());
        }
    }

    /// Whatever was done: every volume has its branches and shows its image, every
    /// record its branch and every branch its record, and nothing else is there.
    fn is_sound(&self, what: &str) {
        let store = self.node.path().join("store");
        // Before anything is opened, which would clean up.
        let diff = names(&store.join("diff"));
        let expected: BTreeSet<String> = diff
            .iter()
            .flat_map(|id| ["json", "index", "edits"].map(|kind| format!("{id}.{kind}")))
            .collect();
        assert_eq!(names(&store.join("layers")), expected, "{what}: layers");
        assert_eq!(names(&store.join("ingest")), BTreeSet::new(), "{what}");
        let volumes = &self.node.volumes;
        for volume in volumes.list().unwrap() {
            for id in &volume.branches {
                assert!(
                    store.join("diff").join(id.as_str()).is_dir()
                        && store.join("layers").join(format!("{id}.json")).is_file(),
                    "{what}: {} lacks {id}",
                    volume.volume_id
                );
            }
            let tree = |layers: Vec<Layer>| flatten(&layers).unwrap();
            let expected = match volume.volume_id.as_str() {
                "a" => tree(layers_a()),
                "b" => tree(layers_b()),
                _ => merge(&[tree(layers_a()), tree(layers_b())]),
            };
            let found = read(&volume.target).unwrap();
            assert_same(what, &expected, &found, Compared::ALL);
        }
        for image in volumes.images().unwrap() {
            assert!(!image.names.is_empty(), "{what}: an image without a name");
        }
    }

    /// Nothing is left once nobody needs anything.
    fn ends(&self, what: &str) {
        for volume in self.node.volumes.list().unwrap() {
            self.node.unpublish(&volume.volume_id);
        }
        let all = self.collecting();
        all.collect(Aim::All, true).unwrap();
        for dir in ["diff", "layers", "images", "ingest", "volumes"] {
            let left = names(&self.node.path().join("store").join(dir));
            assert_eq!(left, BTreeSet::new(), "{what}: {dir}");
        }
    }
}

/// Something that is done to the store while others do something else.
type Work = fn(&VolumeOptions, &Source, &Source);

fn collect(options: &VolumeOptions, _: &Source, _: &Source) {
    let volumes = open(collector(options.clone()));
    let collected = volumes.collect(Aim::All, true);
    collected.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

fn stage_a(options: &VolumeOptions, a: &Source, _: &Source) {
    let volumes = open(options.clone());
    let staged = volumes.stage(a, None, union(), PullPolicy::IfNotPresent, &());
    let staged = staged.unwrap_or_else(|error| panic!("stage: {}", chain(&error)));
    // Whoever has it staged can use it, until he lets go of it.
    for id in &staged.form.branches {
        assert!(volumes.store().branch(id).unwrap().is_some(), "{id}");
    }
}

fn publish(options: &VolumeOptions, id: &str, sources: &[&Source], read_only: bool) {
    let volumes = open(options.clone());
    let base = options.root.parent().unwrap();
    let images = sources.iter().map(|source| (*source).clone());
    let images = images.map(ImageRequest::unconfined).collect();
    let request = PublishRequest {
        read_only,
        union: union(),
        ..PublishRequest::of_images(id, images, base.join(format!("target-{id}")))
    };
    let published = volumes.publish(&request, &());
    published.unwrap_or_else(|error| panic!("publish: {}", chain(&error)));
}

fn publish_a(options: &VolumeOptions, a: &Source, _: &Source) {
    publish(options, "a", &[a], false);
}

fn publish_b_read_only(options: &VolumeOptions, _: &Source, b: &Source) {
    publish(options, "b", &[b], true);
}

/// What it takes beside their layers is made for both.
fn publish_both(options: &VolumeOptions, a: &Source, b: &Source) {
    publish(options, "ab", &[a, b], false);
}

/// One order: the first goes to a step and waits, the second to one of its own.
struct Order {
    /// Steps that the first went.
    reached: usize,
    /// Whether the second cannot go further than this.
    is_last: bool,
    what: String,
}

fn in_order(
    first: impl FnOnce() + Send + 'static,
    second: impl FnOnce() + Send + 'static,
    until: usize,
    then: usize,
) -> Order {
    let mut one = Worker::start(first);
    one.go_to(until);
    let reached = one.passed;
    let first_at = one.at.clone();
    let mut two = Worker::start(second);
    two.go_to(then);
    let what = format!("{first_at:?} ({until}), then {:?} ({then})", two.at);
    let is_last = two.passed < then || two.is_ended() || two.is_stuck();
    one.finish(&mut two);
    two.finish(&mut one);
    one.end(&what);
    two.end(&what);
    Order {
        reached,
        is_last,
        what,
    }
}

/// Has every order of two run, with the steps of each; `stride` leaves out steps of
/// the first.
fn all_orders(stride: usize, at_least: usize, mut run: impl FnMut(usize, usize) -> Order) {
    let mut orders = 0;
    let mut until = 0;
    loop {
        let mut reached = usize::MAX;
        for then in 0.. {
            let order = run(until, then);
            reached = reached.min(order.reached);
            orders += 1;
            if order.is_last {
                break;
            }
        }
        if reached < until {
            break;
        }
        until += stride;
    }
    println!("{orders} orders");
    assert!(orders >= at_least, "{orders} orders");
}

/// Runs both in every order; `stride` leaves out steps of the first.
fn in_every_order(
    staged: fn(&Scene) -> Vec<&Source>,
    first: Work,
    second: Work,
    stride: usize,
    at_least: usize,
) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    watch();
    let scene = Scene::new();
    all_orders(stride, at_least, |until, then| {
        scene.begin(&staged(&scene));
        let start = |work: Work| {
            let options = scene.node.volumes_options();
            let (a, b) = (scene.a.clone(), scene.b.clone());
            move || work(&options, &a, &b)
        };
        let order = in_order(start(first), start(second), until, then);
        scene.is_sound(&order.what);
        scene.ends(&order.what);
        order
    });
}

fn purge(options: &VolumeOptions) -> Result<(), VolumeError> {
    Volumes::open(options.clone(), Arc::new(LinuxHost))?.purge(&Elsewhere {
        kubelet_root: "/nonexistent".into(),
        sockets: Vec::new(),
        directories: Vec::new(),
    })
}

/// Either of them may be refused, and neither harms the other: what is mounted has
/// its content, and where nothing is, nothing is left.
#[test]
fn a_purge_while_a_volume_is_published() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    watch();
    let mut outcomes = BTreeSet::new();
    for (stride, at_least, is_purge_first) in [(3, 100, true), (5, 40, false)] {
        all_orders(stride, at_least, |until, then| {
            let scene = Scene::new();
            scene.begin(&[&scene.a]);
            let options = scene.node.volumes_options();
            let published = Arc::new(Mutex::new(None));
            let publishes = {
                let (options, a) = (options.clone(), scene.a.clone());
                let published = Arc::clone(&published);
                move || {
                    let target = options.root.parent().unwrap().join("target-a");
                    let request = PublishRequest {
                        union: union(),
                        ..PublishRequest::new("a", a, target)
                    };
                    // The store may end while it is opened.
                    let volumes = Volumes::open(options, Arc::new(LinuxHost));
                    let result = volumes.and_then(|it| it.publish(&request, &()));
                    *published.lock().unwrap() = Some(result.is_ok());
                }
            };
            let purged = Arc::new(Mutex::new(None));
            let purges = {
                let (options, purged) = (options.clone(), Arc::clone(&purged));
                move || {
                    let result = purge(&options);
                    *purged.lock().unwrap() = Some(result.is_ok());
                }
            };
            let order = match is_purge_first {
                true => in_order(purges, publishes, until, then),
                false => in_order(publishes, purges, until, then),
            };
            let what = &order.what;
            let published = published.lock().unwrap().unwrap();
            let purged = purged.lock().unwrap().unwrap();
            outcomes.insert((published, purged));
            let target = options.root.parent().unwrap().join("target-a");
            if published {
                let expected = flatten(&layers_a()).unwrap();
                assert_same(what, &expected, &read(&target).unwrap(), Compared::ALL);
                open(options.clone()).unpublish_named("a").unwrap();
            }
            let mounts = LinuxHost.mount_table().unwrap();
            let mounted: Vec<_> = mounts
                .iter()
                .map(|entry| &entry.mount_point)
                .filter(|at| at.starts_with(scene.node.path()))
                .collect();
            assert!(mounted.is_empty(), "{what}: {mounted:?}");
            purge(&options).unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
            assert!(!options.root.exists(), "{what}");
            order
        });
    }
    // One of them before the other, and one refused for the other's sake.
    for wanted in [(true, true), (true, false), (false, true)] {
        assert!(outcomes.contains(&wanted), "{wanted:?}: {outcomes:?}");
    }
}

#[test]
fn collection_while_a_volume_of_a_stored_image_is_published() {
    in_every_order(|scene| vec![&scene.a, &scene.b], collect, publish_a, 1, 300);
}

#[test]
fn collection_while_an_image_is_staged_that_shares_a_layer() {
    in_every_order(|scene| vec![&scene.b], collect, stage_a, 1, 300);
}

#[test]
fn a_publish_while_another_collects() {
    in_every_order(|scene| vec![&scene.b], publish_b_read_only, collect, 1, 100);
}

#[test]
fn collection_while_a_volume_of_two_images_is_published() {
    let first: fn(&Scene) -> Vec<&Source> = |scene| vec![&scene.a, &scene.b];
    in_every_order(first, collect, publish_both, 3, 100);
}

#[test]
fn a_stage_from_nothing_while_another_collects() {
    in_every_order(|scene| vec![&scene.b], stage_a, collect, 3, 100);
}

#[test]
fn two_collections() {
    // The second waits for the first wherever that is.
    in_every_order(|scene| vec![&scene.a, &scene.b], collect, collect, 1, 15);
}
