//! The process is killed before every call to the kernel and before every change
//! of the store and its records, one after the other, while it publishes, mounts
//! again and unpublishes a volume of the plugin's. Each time the next process has
//! to come to what an undisturbed run comes to, whatever kubelet does next.
//!
//! The processes that die are this one over again: `dies` below.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Filesystem, Holder, Host, MountCall, MountEntry, MountTable, Place};
use aufs_csi::image::reference::Source;
use aufs_csi::layer::steps;
use aufs_csi::union::unmount;
use aufs_csi::volume::record::VolumeState;
use aufs_csi::volume::{
    ImageRequest, Medium, Owner, PublishRequest, Published, UnpublishRequest, Volumes,
};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use support::entry::{Layer, dir, file, hardlink, opaque, symlink, whiteout};
use support::images::merged;
use support::node::{TestNode, chain, union};
use support::tree::{Compared, Tree, assert_same, read};

const VOLUME: &str = "csi-0123456789abcdef";
/// What a process that is to die is told: its node, image, work and point.
const ORDERS: &str = "AUFS_CSI_TEST_DIES";
/// Before each word about where a process dies.
const MARK: &str = "dies before: ";

// What dies.

/// Points that this process has come to.
static PASSED: AtomicUsize = AtomicUsize::new(0);

/// Ends this process here if it is the point, with nothing run or unwound.
fn point(what: &str, last: usize) {
    if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == last {
        eprintln!("{MARK}{what}");
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        unreachable!("a signal that cannot be caught");
    }
}

/// The kernel, until a certain call.
#[derive(Debug)]
struct Mortal {
    last: usize,
}

impl Mortal {
    fn at(&self, what: &str) -> LinuxHost {
        point(what, self.last);
        LinuxHost
    }
}

impl Host for Mortal {
    fn mount(&self, target: &Path, call: &MountCall) -> io::Result<()> {
        self.at(call.name()).mount(target, call)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        self.at("unmount").unmount(target)
    }

    fn mount_table(&self) -> io::Result<Vec<MountEntry>> {
        self.at("reading the mount table").mount_table()
    }

    fn mount_at(&self, path: &Path) -> io::Result<Option<MountEntry>> {
        self.at("asking for a mount").mount_at(path)
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        self.at("asking for a place").place(path)
    }

    fn filesystem(&self, path: &Path) -> io::Result<Filesystem> {
        self.at("asking for a filesystem").filesystem(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.at("reading a file of the kernel").read(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.at("listing a directory of the kernel").list(path)
    }

    fn release_image(&self, image: &Path, devices: &Path) -> io::Result<()> {
        self.at("releasing an image").release_image(image, devices)
    }

    fn remove_stale(&self, path: &Path) -> io::Result<()> {
        self.at("removing a stale file").remove_stale(path)
    }

    fn overlay_appends(&self) -> bool {
        self.at("asking for lowerdir+").overlay_appends()
    }

    fn holders(&self, proc: &Path, target: &Path) -> io::Result<Vec<Holder>> {
        self.at("asking who holds a mount").holders(proc, target)
    }

    fn mount_tables(&self, proc: &Path) -> io::Result<Vec<MountTable>> {
        self.at("reading all mount tables").mount_tables(proc)
    }

    fn is_namespace_alive(&self, proc: &Path, namespace: u64) -> io::Result<bool> {
        LinuxHost.is_namespace_alive(proc, namespace)
    }

    fn pause(&self, time: Duration) {
        LinuxHost.pause(time);
    }
}

#[test]
#[ignore = "started by the other tests, to be killed"]
fn dies() {
    let orders = std::env::var(ORDERS).expect("this is no test of its own");
    let orders: Vec<&str> = orders.split('\n').collect();
    let [node, source, work, kind, last] = orders[..] else {
        panic!("{orders:?}");
    };
    let last = last.parse().unwrap();
    steps::watch(move |what| point(what, last));
    let node = Path::new(node);
    let volumes = Volumes::open(TestNode::options(node), Arc::new(Mortal { last })).unwrap();
    let result = match work {
        "publish" => {
            let sources: Vec<Source> = source
                .split(',')
                .map(|source| source.parse().unwrap())
                .collect();
            let request = publish_request(node, &sources, Kind::named(kind));
            volumes.publish(&request, &()).map(drop)
        }
        _ => volumes.unpublish(&unpublish_request(node)),
    };
    result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    // Whoever asked was not answered yet.
    point("its answer", last);
}

// kubelet's side.

fn kubelet(node: &Path) -> PathBuf {
    node.join("kubelet")
}

fn target(node: &Path) -> PathBuf {
    kubelet(node).join("pods/0-1-2/volumes/kubernetes.io~csi/data/mount")
}

fn publish_request(node: &Path, sources: &[Source], kind: Kind) -> PublishRequest {
    let images = sources.iter().cloned().map(ImageRequest::unconfined);
    PublishRequest {
        read_only: kind == Kind::ReadOnly,
        size_limit: matches!(kind, Kind::Disk | Kind::Memory).then_some(1 << 20),
        medium: match kind {
            Kind::Memory => Medium::Memory,
            _ => Medium::Disk,
        },
        union: union(),
        attributes: [("images".to_owned(), joined(sources))].into(),
        owner: Owner::Plugin,
        ..PublishRequest::of_images(VOLUME, images.collect(), target(node))
    }
}

fn joined(sources: &[Source]) -> String {
    let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
    names.join(",")
}

fn unpublish_request(node: &Path) -> UnpublishRequest {
    UnpublishRequest {
        volume_id: VOLUME.to_owned(),
        target: target(node),
        clear_target: true,
    }
}

/// Which kind of volume it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ReadOnly,
    Writable,
    /// With a limit, on disk.
    Disk,
    /// With a limit, in memory.
    Memory,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::ReadOnly, Kind::Writable, Kind::Disk, Kind::Memory];

    fn name(self) -> &'static str {
        match self {
            Kind::ReadOnly => "read-only",
            Kind::Writable => "writable",
            Kind::Disk => "limited on disk",
            Kind::Memory => "limited in memory",
        }
    }

    fn named(name: &str) -> Self {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .unwrap()
    }
}

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Publishing a volume of an image that the store does not have.
    Publish,
    /// Publishing one again whose mount somebody took away.
    MountAgain,
    /// The same after a reboot.
    AfterReboot,
    Unpublish,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// kubelet asks for the volume, again or in spite of all.
    Publish,
    /// kubelet asks for its end, again or in spite of all.
    Unpublish,
    /// kubelet asks for nothing any more: the plugin starts, and the pod is gone.
    Gone,
    /// The plugin starts, and kubelet will ask for something later.
    Later,
}

const NEXT: [Next; 4] = [Next::Publish, Next::Unpublish, Next::Gone, Next::Later];

/// Between fork and exec a new process has copies of all descriptors of this one,
/// and with them its locks: no other thread may be at a volume then.
static STARTING: RwLock<()> = RwLock::new(());

/// What this process does to volumes itself.
fn at_work() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// A node and one volume of it.
struct Scene {
    node: TestNode,
    /// Uppermost first.
    sources: Vec<Source>,
    /// What the images are.
    image: Tree,
    kind: Kind,
    work: Work,
}

/// A stack that needs edits of every kind, and is small.
fn stack() -> Vec<Layer> {
    vec![
        vec![
            dir("a").mode(0o750).owner(7, 8),
            file("a/0", b"a0").xattr("user.name", "value"),
            file("a/1", b"a1"),
            dir("b"),
            file("b/0", b"b0"),
        ],
        vec![
            whiteout("a/0"),
            symlink("s", "a"),
            hardlink("linked", "a/1"),
        ],
        vec![opaque("b"), file("b/1", b"b1"), file("s/through", b"t")],
    ]
}

fn single() -> Vec<Layer> {
    vec![vec![dir("a").mode(0o710), file("a/0", b"a0").owner(7, 8)]]
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

impl Scene {
    fn new(layers: &[Layer], kind: Kind, work: Work) -> Self {
        Self::of_images(&[layers.to_vec()], kind, work)
    }

    fn of_images(images: &[Vec<Layer>], kind: Kind, work: Work) -> Self {
        let node = TestNode::new();
        // Kept for the processes that follow: a self-test takes a second.
        node.volumes.probe().unwrap();
        Scene {
            sources: images
                .iter()
                .enumerate()
                .map(|(number, layers)| node.image(&format!("image-{number}"), layers))
                .collect(),
            image: merged(images),
            node,
            kind,
            work,
        }
    }

    fn target(&self) -> PathBuf {
        target(self.node.path())
    }

    fn store(&self) -> PathBuf {
        self.node.path().join("store")
    }

    /// As after a restart of the plugin.
    fn start(&self) -> Volumes {
        Volumes::open(self.node.volumes_options(), Arc::new(LinuxHost))
            .unwrap_or_else(|error| panic!("the next start: {}", chain(&error)))
    }

    fn publish(&self, volumes: &Volumes, what: &str) -> Published {
        let request = publish_request(self.node.path(), &self.sources, self.kind);
        volumes
            .publish(&request, &())
            .unwrap_or_else(|error| panic!("{what}: publish: {}", chain(&error)))
    }

    fn unpublish(&self, volumes: &Volumes, what: &str) {
        volumes
            .unpublish(&unpublish_request(self.node.path()))
            .unwrap_or_else(|error| panic!("{what}: unpublish: {}", chain(&error)));
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let table = LinuxHost.mount_table().unwrap().into_iter();
        table
            .map(|entry| entry.mount_point)
            .filter(|at| at.starts_with(self.node.path()))
            // Whether one of these is left is seen by its directory.
            .filter(|at| !at.starts_with(self.store().join("shared")))
            .collect()
    }

    /// What is mounted of a volume that is, in the order in which it was.
    fn own_mounts(&self) -> Vec<PathBuf> {
        let volumes = self.store().join("volumes");
        let is_limited = matches!(self.kind, Kind::Disk | Kind::Memory);
        let own = names(&volumes)
            .into_iter()
            .find(|name| is_limited && !name.ends_with(".lock"));
        let own = own.map(|name| volumes.join(name).join("fs"));
        own.into_iter().chain([self.target()]).collect()
    }

    /// As kubelet does it before it asks for a volume.
    fn make_pod(&self) {
        let data = self.target().with_file_name("vol_data.json");
        fs::create_dir_all(data.parent().unwrap()).unwrap();
        fs::write(data, "{}").unwrap();
    }

    /// All of it, except below what is mounted.
    fn remove_pod(&self) {
        let volume = self.target().parent().unwrap().to_owned();
        fs::remove_file(volume.join("vol_data.json")).unwrap();
        if !self.mounts().contains(&self.target()) {
            fs::remove_dir_all(volume).unwrap();
        }
    }

    /// Brings the node to where the work begins; what the volume shows then.
    fn prepare(&self) -> Option<Tree> {
        let _at_work = at_work();
        self.make_pod();
        if self.work == Work::Publish {
            // Every layer is fetched, and the store itself is made anew.
            fs::remove_dir_all(self.store()).unwrap();
            return None;
        }
        let volumes = self.start();
        self.publish(&volumes, "before");
        if self.kind != Kind::ReadOnly {
            fs::write(self.target().join("a/1"), "by the pod").unwrap();
            fs::remove_dir_all(self.target().join("b")).unwrap();
        }
        let shown = read(&self.target()).unwrap();
        if self.work != Work::Unpublish {
            // Any process that starts has a copy of it for a moment.
            unmount(&LinuxHost, &[&self.target()], Duration::from_secs(5)).unwrap();
        }
        if self.work == Work::AfterReboot {
            for at in self.mounts() {
                unmount(&LinuxHost, &[&at], Duration::from_secs(5)).unwrap();
            }
            let record = names(&self.store().join("volumes"));
            let record = record.iter().find(|name| !name.ends_with(".lock")).unwrap();
            let record = self
                .store()
                .join("volumes")
                .join(record)
                .join("record.json");
            let mut value: serde_json::Value =
                serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
            value["boot"] = "the boot before".into();
            fs::write(&record, value.to_string()).unwrap();
        }
        Some(shown)
    }

    /// Lets a process do the work until it comes to a point; where that was, or
    /// none if it came to its end.
    #[expect(
        clippy::disallowed_methods,
        reason = "only a process of its own can be killed like one"
    )]
    fn die(&self, last: usize) -> Option<String> {
        let orders = [
            self.node.path().to_str().unwrap(),
            &joined(&self.sources),
            match self.work {
                Work::Unpublish => "unpublish",
                Work::Publish | Work::MountAgain | Work::AfterReboot => "publish",
            },
            self.kind.name(),
            &last.to_string(),
        ];
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "dies", "--nocapture"])
            .env(ORDERS, orders.join("\n"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn().unwrap();
        drop(starting);
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let killed = errors.lines().find_map(|line| line.split_once(MARK));
        match killed {
            Some((_, at)) if output.status.signal() == Some(9) => Some(at.to_owned()),
            _ => {
                assert!(output.status.success(), "at point {last}: {errors}");
                None
            }
        }
    }

    /// Nothing is left of the volume, nor of anything that was in the making.
    fn is_clear(&self, what: &str) {
        let store = self.store();
        assert_eq!(self.mounts(), Vec::<PathBuf>::new(), "{what}: mounts");
        let run = self.node.volumes_options().run_dir;
        for dir in [
            store.join("volumes"),
            store.join("ingest"),
            store.join("probe"),
            store.join("shared"),
            run.join("xino"),
            run.join("probe"),
        ] {
            assert_eq!(names(&dir), BTreeSet::new(), "{what}: {}", dir.display());
        }
        assert!(!self.target().exists(), "{what}: the target");
        // Every branch has its record and every record its branch.
        let expected: BTreeSet<String> = names(&store.join("diff"))
            .iter()
            .flat_map(|id| ["json", "index", "edits"].map(|kind| format!("{id}.{kind}")))
            .collect();
        assert_eq!(names(&store.join("layers")), expected, "{what}: layers");
        let images = names(&store.join("images"));
        assert!(
            images.iter().all(|name| name.ends_with(".json")),
            "{what}: {images:?}"
        );
        let whole = ["diff", "images", "ingest", "layers", "volumes"];
        let known = [
            "probe",
            "shared",
            "store.collect.lock",
            "store.commit.lock",
            "store.json",
            "store.lease.lock",
            "store.lock",
        ];
        let all: BTreeSet<String> = whole.iter().chain(&known).map(|&s| s.into()).collect();
        let found = names(&store);
        assert!(found.is_subset(&all), "{what}: {found:?}");
    }

    /// The volume is mounted once, and shows this.
    fn shows(&self, expected: &Tree, what: &str) {
        assert_eq!(self.mounts(), self.own_mounts(), "{what}: mounts");
        let found = read(&self.target()).unwrap();
        assert_same(what, expected, &found, Compared::ALL);
    }

    /// A new volume is as one on a node where nothing ever happened, so that the
    /// layers in the store are whole; and goes as one does.
    fn works(&self, volumes: &Volumes, what: &str) {
        self.make_pod();
        assert!(!self.publish(volumes, what).existed, "{what}");
        self.shows(&self.image, what);
        self.unpublish(volumes, what);
        self.is_clear(what);
    }

    /// What comes after the kill, and what must come of it.
    fn go_on(&self, next: Next, before: Option<&Tree>, what: &str) {
        let _at_work = at_work();
        let volumes = self.start();
        let kubelet = kubelet(self.node.path());
        match next {
            Next::Publish => {
                let published = self.publish(&volumes, what);
                let kept = match self.work {
                    Work::Publish => false,
                    // What a pod wrote is there for as long as it may come back.
                    Work::MountAgain | Work::AfterReboot => true,
                    // kubelet changed its mind before the record did.
                    Work::Unpublish => published.existed,
                };
                let expected = before.filter(|_| kept).unwrap_or(&self.image);
                self.shows(expected, what);
                self.unpublish(&volumes, what);
            }
            Next::Unpublish => self.unpublish(&volumes, what),
            Next::Gone => {
                self.remove_pod();
                volumes.recover(&kubelet).unwrap();
                if !self.mounts().is_empty() {
                    // It came to be mounted, so whether it is in use has to be
                    // looked at, which recovery does not.
                    self.state_is(&volumes, &[VolumeState::Mounted], what);
                    // Any process that starts in a namespace of its own has a copy
                    // of all mounts for a moment, and is taken for a user.
                    let mut upkeep = volumes.reap(&kubelet, Duration::ZERO).unwrap();
                    for _ in 0..100 {
                        if !upkeep.done.is_empty() {
                            break;
                        }
                        std::thread::sleep(Duration::from_millis(50));
                        upkeep = volumes.reap(&kubelet, Duration::ZERO).unwrap();
                    }
                    assert_eq!(
                        (upkeep.done, upkeep.stuck),
                        (vec!["forgotten"], 0),
                        "{what}"
                    );
                }
            }
            Next::Later => {
                volumes.recover(&kubelet).unwrap();
                if self.work == Work::MountAgain || self.work == Work::AfterReboot {
                    let states = [VolumeState::Mounted, VolumeState::Returning];
                    self.state_is(&volumes, &states, what);
                    self.publish(&volumes, what);
                    self.shows(before.unwrap(), what);
                } else if volumes.list().unwrap().is_empty() {
                    self.is_clear(what);
                } else {
                    // It was mounted already, or it still is.
                    self.state_is(&volumes, &[VolumeState::Mounted], what);
                    assert!(self.publish(&volumes, what).existed, "{what}");
                    self.shows(before.unwrap_or(&self.image), what);
                }
                self.unpublish(&volumes, what);
            }
        }
        self.is_clear(what);
        self.works(&volumes, what);
    }

    fn state_is(&self, volumes: &Volumes, expected: &[VolumeState], what: &str) {
        let list = volumes.list().unwrap();
        let states: Vec<VolumeState> = list.iter().map(|volume| volume.state).collect();
        assert!(
            states.len() == 1 && expected.contains(&states[0]),
            "{what}: {states:?}"
        );
    }

    /// Kills the work at every point there is, and goes on in every way.
    fn kill_at_every_point(&self, at_least: usize) {
        let begin = std::time::Instant::now();
        let mut points = Vec::new();
        loop {
            let last = points.len() + 1;
            let mut place = None;
            for next in NEXT {
                let before = self.prepare();
                // Threads take turns, so one process may come further than another.
                let died = self.die(last);
                let what = format!(
                    "{:?} killed at point {last}, before: {}; then {next:?}",
                    self.work,
                    died.as_deref().unwrap_or("nothing"),
                );
                self.go_on(next, before.as_ref(), &what);
                place = place.or(died);
            }
            match place {
                Some(place) => points.push(place),
                None => break,
            }
        }
        println!(
            "{:?}, {}: {} points in {:?}: {points:#?}",
            self.work,
            self.kind.name(),
            points.len(),
            begin.elapsed(),
        );
        assert!(points.len() >= at_least, "{} points", points.len());
        // The last one is where all is done.
        assert_eq!(points.last().map(String::as_str), Some("its answer"));
    }
}

#[test]
fn while_it_publishes_a_writable_volume() {
    Scene::new(&stack(), Kind::Writable, Work::Publish).kill_at_every_point(50);
}

#[test]
fn while_it_publishes_a_read_only_volume() {
    Scene::new(&stack(), Kind::ReadOnly, Work::Publish).kill_at_every_point(50);
}

#[test]
fn while_it_publishes_a_volume_with_a_limit_on_disk() {
    Scene::new(&single(), Kind::Disk, Work::Publish).kill_at_every_point(50);
}

#[test]
fn while_it_publishes_a_volume_with_a_limit_in_memory() {
    Scene::new(&single(), Kind::Memory, Work::Publish).kill_at_every_point(50);
}

#[test]
fn while_it_mounts_a_volume_with_a_limit_again() {
    Scene::new(&stack(), Kind::Memory, Work::MountAgain).kill_at_every_point(10);
}

#[test]
fn while_it_mounts_a_volume_with_a_limit_again_after_a_reboot() {
    Scene::new(&stack(), Kind::Disk, Work::AfterReboot).kill_at_every_point(10);
}

#[test]
fn while_it_unpublishes_a_volume_with_a_limit() {
    Scene::new(&stack(), Kind::Disk, Work::Unpublish).kill_at_every_point(20);
}

#[test]
fn while_it_publishes_a_single_layer() {
    Scene::new(&single(), Kind::ReadOnly, Work::Publish).kill_at_every_point(40);
}

/// With a correction of every kind on top.
#[test]
fn while_it_publishes_several_images() {
    let lower = vec![vec![
        dir("a").mode(0o700),
        file("a/0", b"lower"),
        dir("b"),
        file("b/0", b"lower"),
        file("s", b"lower"),
    ]];
    Scene::of_images(&[stack(), lower], Kind::Writable, Work::Publish).kill_at_every_point(60);
}

#[test]
fn while_it_mounts_a_volume_again() {
    Scene::new(&stack(), Kind::Writable, Work::MountAgain).kill_at_every_point(10);
}

#[test]
fn while_it_mounts_a_volume_again_after_a_reboot() {
    Scene::new(&stack(), Kind::Writable, Work::AfterReboot).kill_at_every_point(10);
}

#[test]
fn while_it_mounts_a_single_layer_again() {
    Scene::new(&single(), Kind::ReadOnly, Work::MountAgain).kill_at_every_point(10);
}

#[test]
fn while_it_mounts_a_read_only_volume_again() {
    Scene::new(&stack(), Kind::ReadOnly, Work::MountAgain).kill_at_every_point(10);
}

#[test]
fn while_it_mounts_a_read_only_volume_again_after_a_reboot() {
    Scene::new(&stack(), Kind::ReadOnly, Work::AfterReboot).kill_at_every_point(10);
}

#[test]
fn while_it_unpublishes_a_read_only_volume() {
    Scene::new(&stack(), Kind::ReadOnly, Work::Unpublish).kill_at_every_point(20);
}

#[test]
fn while_it_unpublishes_a_writable_volume() {
    Scene::new(&stack(), Kind::Writable, Work::Unpublish).kill_at_every_point(20);
}

#[test]
fn while_it_unpublishes_a_single_layer() {
    Scene::new(&single(), Kind::ReadOnly, Work::Unpublish).kill_at_every_point(15);
}

#[test]
fn a_mount_without_a_record_does_not_keep_the_store_shut() {
    let _at_work = at_work();
    let scene = Scene::new(&single(), Kind::ReadOnly, Work::Publish);
    // As after somebody has removed the record of a volume that was being mounted.
    let staging = scene
        .store()
        .join("volumes")
        .join("0".repeat(32))
        .join("staging");
    fs::create_dir_all(&staging).unwrap();
    let bind = MountCall::Bind {
        source: scene.store().join("diff"),
        beneath: None,
    };
    LinuxHost.mount(&staging, &bind).unwrap();
    let volumes = scene.start();
    scene.make_pod();
    let upkeep = volumes.recover(&kubelet(scene.node.path())).unwrap();
    assert_eq!((upkeep.done, upkeep.stuck), (vec!["orphan"], 0));
    scene.is_clear("recovery");
    scene.works(&volumes, "afterwards");
}
