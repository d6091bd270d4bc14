//! Collection on a real store with real mounts: what stays, what goes, what is
//! told; a full disk; and a process that is killed at every step of it.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountCall, MountFlags};
use aufs_csi::image::reference::Source;
use aufs_csi::layer::collect::{Aim, Marks, Subject, Verdict};
use aufs_csi::layer::steps;
use aufs_csi::layer::store::{Held, Lease};
use aufs_csi::pull::PullPolicy;
use aufs_csi::volume::{CollectSettings, ErrorKind, VolumeOptions, Volumes};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::entry::{Layer, dir, file, whiteout};
use support::node::{TestNode, chain, union};

/// What a process that is to die is told: its node and point.
const ORDERS: &str = "AUFS_CSI_TEST_COLLECTION_DIES";

fn marks(min_age: u64) -> CollectSettings {
    CollectSettings {
        marks: Marks {
            min_age: Duration::from_secs(min_age),
            ..Marks::default()
        },
        prefetch: Vec::new(),
    }
}

/// What is not needed may go at once.
fn at_once(mut options: VolumeOptions) -> VolumeOptions {
    options.collect = marks(0);
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

fn base() -> Layer {
    vec![dir("d"), file("d/base", b"base"), file("low", b"low")]
}

fn image(node: &TestNode, name: &str) -> Source {
    node.image(
        name,
        &[base(), vec![file(name, name.as_bytes()), whiteout("low")]],
    )
}

fn stage(volumes: &Volumes, source: &Source) -> String {
    let staged = volumes.stage(source, None, union(), PullPolicy::IfNotPresent, &());
    let staged = staged.unwrap_or_else(|error| panic!("{}", chain(&error)));
    staged.image.manifest
}

/// Images by what becomes of them.
fn verdict(volumes: &Volumes, aim: Aim, manifest: &str) -> Verdict {
    let plan = volumes.plan_collection(aim).unwrap();
    let subject = Subject::Image(manifest.to_owned());
    let found = plan.decisions.into_iter().find(|it| it.subject == subject);
    found.expect("a decision about the image").verdict
}

fn store(node: &TestNode, inside: &str) -> PathBuf {
    node.path().join("store").join(inside)
}

fn is_empty(node: &TestNode, what: &str) {
    for inside in ["diff", "layers", "images", "ingest", "volumes"] {
        assert_eq!(
            names(&store(node, inside)),
            BTreeSet::new(),
            "{what}: {inside}"
        );
    }
}

#[test]
fn what_a_volume_needs_stays_and_the_rest_goes() {
    let node = TestNode::new();
    let (used, unused) = (image(&node, "used"), image(&node, "unused"));
    let volumes = open(at_once(node.volumes_options()));
    let unused = stage(&volumes, &unused);
    let manifest = node.publish("v", &used, false).unwrap().images[0]
        .manifest
        .clone();
    let branches = node.record("v").branches;
    // There is space, so nothing goes without being asked to.
    assert_eq!(verdict(&volumes, Aim::Marks, &unused), Verdict::Room);
    assert_eq!(
        volumes.collect(Aim::Marks, true).unwrap().unwrap().removed,
        0
    );
    assert_eq!(
        verdict(&volumes, Aim::All, &manifest),
        Verdict::Needed(vec!["volume v".to_owned()])
    );
    let collect = volumes.collect(Aim::All, true).unwrap().unwrap();
    assert!(collect.removed >= 1 && collect.freed > 0, "{collect:?}");
    let left: BTreeSet<String> = branches.iter().map(ToString::to_string).collect();
    assert_eq!(names(&store(&node, "diff")), left);
    let images = volumes.images().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(fs::read(node.target("v").join("used")).unwrap(), b"used");
    // Its end is a use, and then it may go as well.
    node.unpublish("v");
    assert_eq!(
        verdict(&node.volumes, Aim::All, &manifest),
        young(&node, &manifest)
    );
    volumes.collect(Aim::All, true).unwrap();
    is_empty(&node, "afterwards");
    // And it comes again.
    node.publish("v", &used, true).unwrap();
}

/// As the node's own settings have it: seconds pass, so only that it is young.
fn young(node: &TestNode, manifest: &str) -> Verdict {
    match verdict(&node.volumes, Aim::All, manifest) {
        Verdict::Young(left) if left > 0 && left <= 120 => Verdict::Young(left),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_mount_that_nothing_records_keeps_its_layers() {
    let node = TestNode::new();
    let source = image(&node, "image");
    for read_only in [false, true] {
        node.publish("v", &source, read_only).unwrap();
        let branches = node.record("v").branches;
        let volumes = open(at_once(node.volumes_options()));
        // Somebody loses the record.
        let dir = names(&store(&node, "volumes"));
        let dir = dir.iter().find(|name| !name.ends_with(".lock")).unwrap();
        let record = store(&node, "volumes").join(dir).join("record.json");
        let aside = node.path().join("record.json");
        fs::rename(&record, &aside).unwrap();
        volumes.collect(Aim::All, true).unwrap();
        for id in &branches {
            assert!(store(&node, "diff").join(id.as_str()).is_dir(), "{id}");
            assert!(volumes.store().branch(id).unwrap().is_some(), "{id}");
        }
        assert_eq!(fs::read(node.target("v").join("image")).unwrap(), b"image");
        fs::rename(&aside, &record).unwrap();
        node.unpublish("v");
        volumes.collect(Aim::All, true).unwrap();
        is_empty(&node, "afterwards");
    }
}

#[test]
fn a_record_that_cannot_be_read_keeps_everything() {
    let node = TestNode::new();
    let volumes = open(at_once(node.volumes_options()));
    let manifest = stage(&volumes, &image(&node, "image"));
    let dir = store(&node, "volumes").join("0".repeat(32));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("record.json"), "{\"version\": 1, \"volu").unwrap();
    let plan = volumes.plan_collection(Aim::All).unwrap();
    assert!(
        plan.decisions
            .iter()
            .all(|it| matches!(it.verdict, Verdict::Doubt(_))),
        "{plan:?}"
    );
    assert_eq!(volumes.collect(Aim::All, true).unwrap().unwrap().removed, 0);
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(verdict(&volumes, Aim::All, &manifest), Verdict::Asked);
}

#[test]
fn a_promise_and_a_lease_keep_an_image() {
    let node = TestNode::new();
    let volumes = open(at_once(node.volumes_options()));
    let manifest = stage(&volumes, &image(&node, "image"));
    let pulls = store(&node, "pulls");
    fs::create_dir(&pulls).unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    let promise = format!(
        "{{\"volume_id\": \"v\", \"digests\": {{\"docker://x\": {manifest:?}}}, \"created\": {now}}}"
    );
    fs::write(pulls.join("0.json"), promise).unwrap();
    assert_eq!(
        verdict(&volumes, Aim::All, &manifest),
        Verdict::Needed(vec!["promise to volume v".to_owned()])
    );
    fs::remove_dir_all(&pulls).unwrap();
    let lease = Lease::begin(node.volumes.store(), "a test").unwrap();
    let held = Held {
        images: vec![manifest.clone()],
        ..Held::default()
    };
    lease.hold(node.volumes.store(), &held).unwrap();
    volumes.collect(Aim::All, true).unwrap();
    assert_eq!(
        verdict(&volumes, Aim::All, &manifest),
        Verdict::Needed(vec!["a test".to_owned()])
    );
    drop(lease);
    volumes.collect(Aim::All, true).unwrap();
    is_empty(&node, "afterwards");
}

#[test]
fn what_is_prefetched_stays_while_it_is_listed() {
    let node = TestNode::new();
    let source = image(&node, "image");
    let missing: Source = format!("oci:{}/none:latest", node.path().display())
        .parse()
        .unwrap();
    let mut options = at_once(node.volumes_options());
    options.collect.prefetch = vec![source.clone(), missing];
    let volumes = open(options);
    let prefetched = volumes.prefetch(union());
    assert_eq!((prefetched.there, prefetched.waiting), (1, 1));
    // A person's command, which knows of no list.
    let other = open(at_once(node.volumes_options()));
    let name = source.to_string();
    let image = &other.images().unwrap()[0];
    assert_eq!(image.names, std::slice::from_ref(&name));
    other.collect(Aim::All, true).unwrap();
    assert_eq!(
        verdict(&other, Aim::All, &image.manifest),
        Verdict::Needed(vec![format!("prefetch of {name}")])
    );
    volumes.set_collection(marks(0));
    let prefetched = volumes.prefetch(union());
    assert_eq!((prefetched.there, prefetched.waiting), (0, 0));
    other.collect(Aim::All, true).unwrap();
    is_empty(&node, "afterwards");
}

#[test]
fn only_layers_that_are_gone_are_forgotten_of_access() {
    let node = TestNode::new();
    let volumes = open(at_once(node.volumes_options()));
    let manifest = stage(&volumes, &image(&node, "image"));
    let access = store(&node, "access");
    fs::create_dir(&access).unwrap();
    let there = volumes
        .layers()
        .unwrap()
        .into_iter()
        .find_map(|it| it.diff_id);
    let records = [("0", there.unwrap()), ("1", "sha256:gone".to_owned())];
    for (name, diff_id) in &records {
        let record = format!("{{\"diff_id\": {diff_id:?}, \"repositories\": [\"r\"]}}");
        fs::write(access.join(format!("{name}.layer.json")), record).unwrap();
    }
    let lease = Lease::begin(volumes.store(), "a pull").unwrap();
    let held = Held {
        layers: vec!["sha256:gone".to_owned()],
        ..Held::default()
    };
    lease.hold(volumes.store(), &held).unwrap();
    volumes.collect(Aim::Marks, true).unwrap();
    assert!(access.join("1.layer.json").exists(), "it is being fetched");
    drop(lease);
    volumes.collect(Aim::Marks, true).unwrap();
    assert!(!access.join("1.layer.json").exists());
    assert!(access.join("0.layer.json").exists(), "{manifest} has it");
    volumes.collect(Aim::All, true).unwrap();
    assert!(!access.join("0.layer.json").exists());
}

/// A node on a filesystem of so many MiB.
struct Small {
    node: Option<TestNode>,
    dir: tempfile::TempDir,
}

impl Small {
    fn new(mib: u64) -> Self {
        let node = TestNode::new();
        let dir = tempfile::tempdir().unwrap();
        let call = MountCall::New {
            fs_type: "tmpfs",
            flags: MountFlags::default(),
            data: format!("size={mib}m,mode=0700"),
        };
        LinuxHost.mount(dir.path(), &call).unwrap();
        Small {
            node: Some(node),
            dir,
        }
    }

    fn node(&self) -> &TestNode {
        self.node.as_ref().unwrap()
    }

    fn options(&self, min_age: u64) -> VolumeOptions {
        let mut options = self.node().volumes_options();
        options.root = self.dir.path().join("store");
        options.collect = marks(min_age);
        options
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        for volume in open(self.options(0)).list().unwrap_or_default() {
            let _ = open(self.options(0)).unpublish_named(&volume.volume_id);
        }
        let patience = Duration::from_secs(10);
        aufs_csi::union::unmount(&LinuxHost, &[self.dir.path()], patience).unwrap();
    }
}

/// An image of so many bytes that do not compress.
fn large(node: &TestNode, name: &str, bytes: usize) -> Source {
    let mut state = name
        .bytes()
        .fold(1_u64, |sum, byte| sum * 31 + u64::from(byte));
    let content: Vec<u8> = (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    node.image(name, &[vec![file("content", &content)]])
}

const MIB: usize = 1 << 20;

#[test]
fn a_publish_that_finds_no_space_makes_some_or_says_what_to_do() {
    let small = Small::new(16);
    let node = small.node();
    let sources: Vec<Source> = (0..4)
        .map(|number| large(node, &format!("image{number}"), 5 * MIB))
        .collect();
    let volumes = open(small.options(0));
    volumes.probe().unwrap();
    let publish = |volumes: &Volumes, number: usize| {
        let request = node.request(&format!("v{number}"), &sources[number], true);
        volumes.publish(&request, &())
    };
    publish(&volumes, 0).unwrap();
    publish(&volumes, 1).unwrap();
    // Two of 5 MiB are in use, and a third does not fit with what is needed to
    // unpack it.
    stage_fails_for_space(
        &publish(&volumes, 2)
            .map(drop)
            .and_then(|()| publish(&volumes, 3).map(drop)),
    );
    let node_is = volumes.list().unwrap();
    assert!(
        node_is.iter().all(|volume| volume.volume_id != "v3"),
        "{node_is:?}"
    );
    // One of them ends: that is enough, at once where no minimum age says no.
    volumes.unpublish_named("v0").unwrap();
    let cautious = open(small.options(600));
    stage_fails_for_space(&publish(&cautious, 3).map(drop));
    publish(&volumes, 3).unwrap();
    let first = sources[0].to_string();
    let images = volumes.images().unwrap();
    assert!(images.iter().all(|image| !image.names.contains(&first)));
}

fn stage_fails_for_space(result: &Result<(), aufs_csi::volume::VolumeError>) {
    let error = result.as_ref().unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ResourceExhausted,
        "{}",
        chain(error)
    );
    let text = chain(error);
    for word in ["no space in the store", "in use", "--max-store-size"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn the_limit_of_the_store_is_kept_by_removing_and_then_by_refusing() {
    let node = TestNode::new();
    let sources: Vec<Source> = (0..3)
        .map(|number| large(&node, &format!("image{number}"), MIB))
        .collect();
    let mut options = at_once(node.volumes_options());
    options.collect.marks.max_size = Some(5 * MIB as u64 / 2);
    let volumes = open(options);
    let publish = |number: usize| {
        let request = node.request(&format!("v{number}"), &sources[number], true);
        volumes.publish(&request, &())
    };
    stage(&volumes, &sources[0]);
    publish(1).unwrap();
    // The first has to go for the third.
    publish(2).unwrap();
    assert_eq!(volumes.images().unwrap().len(), 2);
    let error = publish(0).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ResourceExhausted,
        "{}",
        chain(&error)
    );
    assert!(
        chain(&error).contains("--max-store-size"),
        "{}",
        chain(&error)
    );
    assert_eq!(volumes.list().unwrap().len(), 2);
}

#[test]
fn above_the_high_mark_the_least_recently_used_goes() {
    let small = Small::new(64);
    let node = small.node();
    let volumes = open(small.options(0));
    let mut manifests = Vec::new();
    for number in 0..10 {
        let source = large(node, &format!("image{number}"), 5 * MIB);
        manifests.push(stage(&volumes, &source));
        let path = names(&small.dir.path().join("store/images"));
        assert!(!path.is_empty());
        // Each used a minute after the one before; the clock has seconds only.
        age(&volumes, &small, &manifests);
    }
    // 50 MiB of 64, and something else takes 6 more: over 80 %.
    fs::write(small.dir.path().join("else"), vec![1; 6 * MIB]).unwrap();
    let collect = volumes
        .collect_if_needed(false)
        .unwrap()
        .expect("it is over");
    assert!(collect.used_percent > 80, "{collect:?}");
    let left: Vec<String> = volumes
        .images()
        .unwrap()
        .into_iter()
        .map(|image| image.manifest)
        .collect();
    let gone: Vec<bool> = manifests.iter().map(|it| !left.contains(it)).collect();
    // 56 MiB down to 44.8: three images of 5.
    assert_eq!(gone.iter().filter(|gone| **gone).count(), 3, "{gone:?}");
    assert_eq!(gone[..3], [true, true, true]);
    assert_eq!(
        volumes
            .collect_if_needed(false)
            .unwrap()
            .map(|it| it.removed),
        None
    );
}

/// And not all that may: he has some room then, and the rest is somebody's cache.
#[test]
fn who_does_not_know_how_much_he_needs_gets_the_disk_down_to_the_low_mark() {
    let small = Small::new(64);
    let node = small.node();
    let volumes = open(small.options(0));
    let mut manifests = Vec::new();
    for number in 0..10 {
        let source = large(node, &format!("image{number}"), 5 * MIB);
        manifests.push(stage(&volumes, &source));
        age(&volumes, &small, &manifests);
    }
    // 50 MiB of 64, down to 44.8.
    let collect = volumes.collect(Aim::Short, true).unwrap().unwrap();
    assert_eq!(collect.removed, 2, "{collect:?}");
    assert_eq!(volumes.images().unwrap().len(), 8);
    // There already, and still without room.
    volumes.collect(Aim::Short, true).unwrap();
    assert_eq!(volumes.images().unwrap().len(), 0);
}

/// Makes the last of them look used later than those before.
fn age(volumes: &Volumes, small: &Small, manifests: &[String]) {
    let dir = small.dir.path().join("store/images");
    for name in names(&dir) {
        let path = dir.join(&name);
        let text = fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let Some(number) = manifests.iter().position(|it| value["manifest"] == **it) else {
            continue;
        };
        if value.get("sealed").is_none() {
            continue;
        }
        let mut value = value;
        value["created"] = 1.into();
        fs::write(&path, value.to_string()).unwrap();
        let time = Duration::from_secs(1_000_000 + 60 * number as u64);
        let file = fs::File::open(&path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + time).unwrap();
    }
    assert_eq!(volumes.images().unwrap().len(), manifests.len());
}

// Killed.

static PASSED: AtomicUsize = AtomicUsize::new(0);

#[test]
#[ignore = "started by another test, to be killed"]
fn dies() {
    let orders = std::env::var(ORDERS).expect("this is no test of its own");
    let (node, last) = orders.split_once('\n').unwrap();
    let last: usize = last.parse().unwrap();
    let volumes = open(at_once(TestNode::options(Path::new(node))));
    steps::watch(move |_| {
        if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == last {
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            unreachable!("a signal that cannot be caught");
        }
    });
    volumes.collect(Aim::All, true).unwrap();
}

/// Whether the process was killed.
#[expect(
    clippy::disallowed_methods,
    reason = "only a process of its own can be killed like one"
)]
fn die(node: &TestNode, last: usize) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "dies", "--nocapture"])
        .env(ORDERS, format!("{}\n{last}", node.path().display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(9);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(killed || output.status.success(), "{errors}");
    killed
}

#[test]
fn a_collection_that_is_killed_anywhere_harms_nothing_and_leaves_nothing() {
    let node = TestNode::new();
    node.volumes.probe().unwrap();
    let used = image(&node, "used");
    let more: Layer = vec![file("more", b"more")];
    let unused = [base(), vec![file("unused", b"unused")], more];
    let unused = node.image("unused", &unused);
    let mut points = 0;
    loop {
        let volumes = open(at_once(node.volumes_options()));
        stage(&volumes, &unused);
        node.publish("v", &used, false).unwrap();
        // The part of the store that a volume needs, and a form of its own.
        let killed = die(&node, points + 1);
        let what = format!("killed at point {}", points + 1);
        assert_eq!(
            fs::read(node.target("v").join("used")).unwrap(),
            b"used",
            "{what}"
        );
        for id in &node.record("v").branches {
            assert!(
                volumes.store().branch(id).unwrap().is_some(),
                "{what}: {id}"
            );
        }
        // What went half-way comes again, whole, for who wants it, also where no
        // collection and no start has looked since.
        match points % 3 {
            0 => {
                node.publish("w", &unused, false).unwrap();
                assert_eq!(
                    fs::read(node.target("w").join("unused")).unwrap(),
                    b"unused"
                );
                node.unpublish("w");
            }
            // The next start clears up, on a store that nobody uses.
            1 => drop(open(node.volumes_options())),
            _ => {}
        }
        node.unpublish("v");
        let collect = volumes.collect(Aim::All, true).unwrap().unwrap();
        let what = format!("{what}: {collect:#?}");
        is_empty(&node, &what);
        if !killed {
            break;
        }
        points += 1;
    }
    println!("{points} points");
    assert!(points >= 15, "{points} points");
}
