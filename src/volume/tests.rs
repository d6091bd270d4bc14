//! Volumes on the kernel in memory: what no real kernel does when a test wants it.
//! The store is a real directory, and its images are.

use super::record::VolumeState;
use super::upkeep::Upkeep;
use super::*;
use crate::chain::Chain;
use crate::host::fake::{Call, FakeHost};
use crate::host::{MountCall, MountFlags, OverlayCall, OverlayInterface};
use crate::image::testdata::{LayoutBuilder, named, tar, write};
use crate::layer::ingest;
use crate::stage::Phase;
use crate::union::probe::{AufsFacts, OverlayFacts};
use crate::union::{MountError, UnmountError, tests::features};
use rustix::io::Errno;
use std::time::Duration;

mod failures;
mod labels;
mod room;
mod shared;

/// A node: its directories, and how volumes are asked for.
struct Node {
    dir: tempfile::TempDir,
    union: UnionRequest,
    read_only: bool,
    owner: Owner,
    /// Where its writable layer is, if that has a limit.
    limited: Option<Medium>,
}

impl Node {
    fn new(union: UnionRequest, layers: usize, read_only: bool, owner: Owner) -> Self {
        // In memory where that is possible: each of thousands of cases makes and
        // removes a few directories.
        let memory = Path::new("/dev/shm");
        let dir = tempfile::tempdir_in(memory)
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let tars: Vec<Vec<u8>> = (0..layers)
            .map(|layer| {
                let path = format!("file{layer}");
                tar(&BTreeMap::from([(path, b"content".to_vec())]))
            })
            .collect();
        let tars: Vec<&[u8]> = tars.iter().map(Vec::as_slice).collect();
        let mut layout = LayoutBuilder::default();
        let architecture = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let image = layout.image("linux", architecture, &tars);
        layout.index.push(named(image, "latest"));
        write(&dir.path().join("image"), &layout.finish());
        let node = Node {
            dir,
            union,
            read_only,
            owner,
            limited: None,
        };
        fs::create_dir_all(node.target().parent().unwrap()).unwrap();
        node.remember();
        node
    }

    fn aufs(owner: Owner) -> Self {
        Self::new(UnionRequest::Aufs, 2, false, owner)
    }

    fn overlay(owner: Owner) -> Self {
        Self::new(UnionRequest::Overlay, 2, false, owner)
    }

    fn limited(self, medium: Medium) -> Self {
        Node {
            limited: Some(medium),
            ..self
        }
    }

    /// Where the volume's writable layer is.
    fn upper(&self) -> PathBuf {
        match self.limited {
            Some(_) => self.volume().join("fs/upper"),
            None => self.volume().join("upper"),
        }
    }

    /// What is mounted of a volume that is.
    fn mounts(&self) -> Vec<PathBuf> {
        let own = self.limited.map(|_| self.volume().join("fs"));
        own.into_iter().chain([self.target()]).collect()
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside)
    }

    fn kubelet(&self) -> PathBuf {
        self.path("kubelet")
    }

    fn target(&self) -> PathBuf {
        self.kubelet()
            .join("pods/u/volumes/kubernetes.io~csi/v/mount")
    }

    /// kubelet knows of the volume.
    fn remember(&self) {
        fs::write(self.target().with_file_name("vol_data.json"), "{}").unwrap();
    }

    /// kubelet's file is lost.
    fn forget(&self) {
        fs::remove_file(self.target().with_file_name("vol_data.json")).unwrap();
    }

    /// As after a start of the program, on a kernel that was there before.
    fn open(&self, host: &Arc<FakeHost>) -> Volumes {
        host.write("/proc/sys/kernel/random/boot_id", "this-boot\n");
        let options = VolumeOptions {
            root: self.path("store"),
            run_dir: self.path("run"),
            // Nobody but root could give files away.
            rootless: true,
            max_branches: None,
            stage: StageOptions::default(),
            host_proc: PathBuf::from("/proc"),
            pull: Default::default(),
            collect: Default::default(),
        };
        let host: Arc<dyn Host> = Arc::<FakeHost>::clone(host);
        let volumes = Volumes::open(options, host).unwrap();
        let features = features();
        // What is mounted in memory has no files, so a self-test would fail.
        let probe = Probe {
            kernel: String::from("6.12.0"),
            page_size: features.page_size,
            aufs: Ok(AufsFacts {
                version: None,
                xattr: true,
                features: features.aufs,
            }),
            overlay: Ok(OverlayFacts {
                features: features.overlay,
            }),
        };
        volumes.probe.set(probe).unwrap();
        volumes
    }

    fn request(&self) -> PublishRequest {
        let image = format!("oci:{}:latest", self.path("image").display());
        PublishRequest {
            read_only: self.read_only,
            union: self.union,
            owner: self.owner,
            size_limit: self.limited.map(|_| 1 << 20),
            medium: self.limited.unwrap_or_default(),
            ..PublishRequest::new("v", image.parse().unwrap(), self.target())
        }
    }

    fn publish(&self, volumes: &Volumes) -> Result<Published, VolumeError> {
        volumes.publish(&self.request(), &())
    }

    fn unpublish(&self, volumes: &Volumes) -> Result<(), VolumeError> {
        volumes.unpublish(&UnpublishRequest {
            volume_id: String::from("v"),
            target: self.target(),
            clear_target: self.owner == Owner::Plugin,
        })
    }

    /// The volume's directory in the store.
    fn volume(&self) -> PathBuf {
        self.path("store/volumes").join(record::directory_name("v"))
    }

    fn record(&self) -> VolumeRecord {
        record::read(&self.volume()).unwrap().unwrap()
    }

    fn change_record(&self, change: impl FnOnce(&mut VolumeRecord)) {
        let mut record = self.record();
        change(&mut record);
        record::write(&self.volume(), &record).unwrap();
    }

    /// Whether all that there is of the volume is there.
    fn keeps_all(&self) -> bool {
        self.volume().join("record.json").exists()
            && (self.read_only || self.upper().exists())
            && (self.limited != Some(Medium::Disk) || self.volume().join("image").exists())
    }

    /// What is mounted, but for unions that volumes share: whether one of these is
    /// left is seen by its directory.
    fn mounted(&self, host: &FakeHost) -> Vec<PathBuf> {
        let mut mounted = host.mounted();
        mounted.retain(|at| !at.starts_with(self.path("store/shared")));
        mounted
    }

    fn names(&self, dir: &str) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(self.path(dir)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    /// Nothing is left of the volume, and what others have mounted is.
    #[track_caller]
    fn is_clear(&self, host: &FakeHost, others: &[PathBuf], what: &str) {
        assert_eq!(host.mounted(), others, "{what}: mounts");
        assert_eq!(host.superblocks(), others.len(), "{what}: unions");
        for dir in ["store/volumes", "store/shared", "store/ingest", "run/xino"] {
            assert!(self.names(dir).is_empty(), "{what}: {dir}");
        }
        assert!(!self.target().exists(), "{what}: the target");
    }
}

/// Something of somebody else's.
fn foreign() -> MountCall {
    MountCall::Overlay(OverlayCall {
        interface: OverlayInterface::Joined,
        lower: vec!["/somebody/a".into(), "/somebody/b".into()],
        upper_work: None,
        options: Vec::new(),
        flags: MountFlags::default(),
    })
}

/// Error texts with their causes.
fn text(error: &VolumeError) -> String {
    Chain(error).to_string()
}

#[test]
fn a_union_that_is_held_elsewhere_keeps_its_directories() {
    for owner in [Owner::Command, Owner::Plugin] {
        let node = Node::aufs(owner);
        let host = Arc::new(FakeHost::new());
        let volumes = node.open(&host);
        node.publish(&volumes).unwrap();
        host.hold(&node.target());
        for attempt in ["the first", "the second", "after a restart"] {
            let volumes = node.open(&host);
            let error = node.unpublish(&volumes).unwrap_err();
            assert!(
                matches!(error, VolumeError::Unmount(UnmountError::Lingering { .. })),
                "{attempt}: {}",
                text(&error)
            );
            assert_eq!(error.kind(), ErrorKind::Aborted);
            assert_eq!(host.mounted(), Vec::<PathBuf>::new(), "{attempt}");
            assert!(node.keeps_all(), "{attempt}");
        }
        let volumes = node.open(&host);
        // Nor does it go when it is asked for again, or nobody asks at all.
        let error = node.publish(&volumes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Aborted, "{}", text(&error));
        node.forget();
        let stuck = usize::from(owner == Owner::Plugin);
        let upkeep = volumes.recover(&node.kubelet()).unwrap();
        assert_eq!((upkeep.done.len(), upkeep.stuck), (0, stuck));
        let upkeep = volumes.reap(&node.kubelet(), Duration::ZERO).unwrap();
        assert_eq!((upkeep.done.len(), upkeep.stuck), (0, stuck));
        assert!(node.keeps_all());
        host.let_go();
        node.unpublish(&volumes).unwrap();
        node.is_clear(&host, &[], "at last");
    }
}

/// Mounts something at the target when the volume is about to be.
#[derive(Debug)]
struct Intruder(Arc<FakeHost>, PathBuf);

impl Progress for Intruder {
    fn layers(&self, _: &Arc<ingest::Progress>) {}

    fn phase(&self, phase: Phase) {
        if phase == Phase::Mounting {
            self.0.mount(&self.1, &foreign()).unwrap();
        }
    }
}

#[test]
fn what_somebody_mounts_at_the_target_meanwhile_stays() {
    for owner in [Owner::Command, Owner::Plugin] {
        for (union, layers, read_only) in [
            (UnionRequest::Aufs, 2, false),
            (UnionRequest::Overlay, 2, false),
            (UnionRequest::Overlay, 1, true),
        ] {
            let node = Node::new(union, layers, read_only, owner);
            let host = Arc::new(FakeHost::new());
            let volumes = node.open(&host);
            let intruder = Intruder(Arc::clone(&host), node.target());
            let error = volumes.publish(&node.request(), &intruder).unwrap_err();
            assert!(
                matches!(error, VolumeError::Mount(MountError::Occupied { .. })),
                "{}",
                text(&error)
            );
            assert_eq!(host.mounted(), [node.target()]);
            assert!(node.names("store/volumes").is_empty());
            // A second attempt is told so before anything is done.
            let error = node.publish(&volumes).unwrap_err();
            assert!(
                matches!(error, VolumeError::TargetMounted { .. }),
                "{}",
                text(&error)
            );
            assert_eq!(host.mounted(), [node.target()]);
        }
    }
}

#[test]
fn a_command_does_not_unmount_what_covers_its_volume() {
    for (union, layers, read_only) in [
        (UnionRequest::Aufs, 2, false),
        (UnionRequest::Overlay, 2, false),
        (UnionRequest::Overlay, 1, true),
    ] {
        let node = Node::new(union, layers, read_only, Owner::Command);
        let host = Arc::new(FakeHost::new());
        let volumes = node.open(&host);
        node.publish(&volumes).unwrap();
        host.mount(&node.target(), &foreign()).unwrap();
        let both = [node.target(), node.target()];
        let error = node.unpublish(&volumes).unwrap_err();
        assert!(
            matches!(error, VolumeError::Covered { .. }),
            "{union:?}: {}",
            text(&error)
        );
        assert_eq!(host.mounted(), both);
        // Nor is a second one mounted over it, and nothing is lost by asking.
        assert!(node.publish(&volumes).is_err());
        assert_eq!(host.mounted(), both);
        assert!(node.keeps_all());
        host.unmount(&node.target()).unwrap();
        assert!(node.publish(&volumes).unwrap().existed);
        node.unpublish(&volumes).unwrap();
        node.is_clear(&host, &[], "at last");
    }
}

#[test]
fn what_is_mounted_instead_of_a_commands_volume_is_not_its_own() {
    let node = Node::overlay(Owner::Command);
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    node.publish(&volumes).unwrap();
    host.unmount(&node.target()).unwrap();
    host.mount(&node.target(), &foreign()).unwrap();
    // The volume is gone already; its target is somebody's now.
    let error = node.publish(&volumes).unwrap_err();
    assert!(
        matches!(&error, VolumeError::NotReturned { source, .. }
            if matches!(**source, VolumeError::TargetMounted { .. })),
        "{}",
        text(&error)
    );
    assert!(node.keeps_all());
    assert_eq!(host.mounted(), [node.target()]);
}

#[test]
fn only_a_dead_namespaces_volume_is_another_ones_to_take_down() {
    const OTHER: u64 = 4_026_532_999;
    for (union, layers, read_only) in [
        (UnionRequest::Aufs, 2, false),
        (UnionRequest::Overlay, 2, false),
        (UnionRequest::Overlay, 1, true),
    ] {
        let node = Node::new(union, layers, read_only, Owner::Command);
        let there = Arc::new(FakeHost::new());
        node.publish(&node.open(&there)).unwrap();
        node.change_record(|record| record.mount_namespace = OTHER);
        // Here nothing of it can be seen.
        let host = Arc::new(FakeHost::new());
        host.live_in(OTHER);
        let volumes = node.open(&host);
        let error = node.unpublish(&volumes).unwrap_err();
        assert!(
            matches!(error, VolumeError::OtherNamespace { .. }),
            "{union:?}: {}",
            text(&error)
        );
        assert!(node.keeps_all());
        // Nor may it be mounted a second time: on one writable layer two unions
        // destroy each other's work.
        let error = node.publish(&volumes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Aborted, "{}", text(&error));
        assert_eq!(host.mounted(), Vec::<PathBuf>::new(), "{union:?}");
        assert_eq!(node.record().mount_namespace, OTHER);
        // Where nobody lives there any more, the mounts are gone too.
        let host = Arc::new(FakeHost::new());
        node.unpublish(&node.open(&host)).unwrap();
        node.is_clear(&host, &[], "at last");
    }
}

#[test]
fn recovery_judges_a_volume_again_when_it_has_locked_it() {
    // Another process mounts the volume to its end after this one has looked.
    let node = Node::overlay(Owner::Plugin);
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    node.publish(&volumes).unwrap();
    let mut first = node.record();
    first.volume_id = String::from("a");
    first.state = VolumeState::Intended;
    first.target = node.target().with_file_name("a");
    let first_dir = record::directory(volumes.store(), "a");
    fs::create_dir(&first_dir).unwrap();
    record::write(&first_dir, &first).unwrap();
    node.change_record(|record| record.state = VolumeState::Intended);
    let (dir, mut mounted) = (node.volume(), node.record());
    mounted.state = VolumeState::Mounted;
    let its_target = first.target.clone();
    // No call fails: it is only the moment at which the other one is taken down.
    host.fail(
        move |call| {
            if *call == Call::Place(its_target.clone()) {
                record::write(&dir, &mounted).unwrap();
            }
            false
        },
        0,
        0,
        Errno::IO,
    );
    let upkeep = volumes.recover(&node.kubelet()).unwrap();
    let expected = Upkeep {
        done: vec!["interrupted"],
        stuck: 0,
    };
    assert_eq!(upkeep, expected);
    assert_eq!(host.mounted(), [node.target()]);
    assert!(node.keeps_all());
    assert!(node.publish(&volumes).unwrap().existed);
}

#[test]
fn a_volume_that_is_mounted_during_recovery_is_no_orphan() {
    // The record is there before the mount is, so also before it is looked for.
    let node = Node::overlay(Owner::Command);
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    node.publish(&volumes).unwrap();
    let (dir, record) = (node.volume(), node.record());
    fs::rename(dir.join("record.json"), dir.join("hidden")).unwrap();
    host.fail(
        move |call| {
            if *call == Call::MountTable {
                record::write(&dir, &record).unwrap();
            }
            false
        },
        0,
        0,
        Errno::IO,
    );
    let upkeep = volumes.recover(&node.kubelet()).unwrap();
    assert_eq!(upkeep, Upkeep::default());
    assert_eq!(host.mounted(), [node.target()]);
}

#[test]
fn an_orphan_goes_and_what_lies_beneath_it_stays() {
    let node = Node::overlay(Owner::Plugin);
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    node.publish(&volumes).unwrap();
    let elsewhere = node.path("elsewhere");
    let orphan = host.calls().into_iter().find_map(|call| match call {
        Call::Mount(_, call @ MountCall::Overlay(_)) => Some(call),
        _ => None,
    });
    node.unpublish(&volumes).unwrap();
    host.mount(&elsewhere, &foreign()).unwrap();
    host.mount(&elsewhere, &orphan.unwrap()).unwrap();
    let upkeep = volumes.recover(&node.kubelet()).unwrap();
    assert_eq!(upkeep.done, ["orphan"]);
    node.is_clear(&host, &[elsewhere], "recovery");
}

#[test]
fn a_mounted_volume_whose_record_is_damaged_is_left_alone() {
    for node in [Node::overlay(Owner::Plugin), Node::aufs(Owner::Plugin)] {
        let host = Arc::new(FakeHost::new());
        let volumes = node.open(&host);
        node.publish(&volumes).unwrap();
        fs::write(node.volume().join("record.json"), "{").unwrap();
        // Not even if kubelet has forgotten it.
        node.forget();
        let upkeep = node.open(&host).recover(&node.kubelet()).unwrap();
        assert_eq!((upkeep.done.len(), upkeep.stuck), (0, 1));
        assert_eq!(host.mounted(), [node.target()]);
        assert!(node.keeps_all());
        // With its mount it goes: only a power loss does both.
        host.unmount(&node.target()).unwrap();
        let upkeep = node.open(&host).recover(&node.kubelet()).unwrap();
        assert_eq!(upkeep.done, ["damaged"]);
        assert!(node.names("store/volumes").is_empty());
    }
}

#[test]
fn a_newer_versions_record_is_not_taken_for_a_damaged_one() {
    let node = Node::overlay(Owner::Plugin);
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    node.publish(&volumes).unwrap();
    host.unmount(&node.target()).unwrap();
    fs::write(node.volume().join("record.json"), r#"{"version": 99}"#).unwrap();
    let volumes = node.open(&host);
    assert_eq!(volumes.recover(&node.kubelet()).unwrap(), Upkeep::default());
    let error = node.publish(&volumes).unwrap_err();
    // It may well be mounted and in use, so it is not to be forgotten.
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(text(&error).contains("newer version"), "{}", text(&error));
    assert!(node.unpublish(&volumes).is_err());
    node.forget();
    let upkeep = volumes.reap(&node.kubelet(), Duration::ZERO).unwrap();
    assert_eq!(upkeep, Upkeep::default());
    assert!(node.keeps_all());
}

#[test]
fn a_pod_whose_file_was_lost_keeps_its_volume_for_a_while() {
    // As after a power loss, when kubelet is about to come back to the pod.
    let node = Node::overlay(Owner::Plugin);
    let host = Arc::new(FakeHost::new());
    node.publish(&node.open(&host)).unwrap();
    let written = node.volume().join("upper/written");
    fs::write(&written, "by the pod").unwrap();
    node.change_record(|record| record.boot = String::from("the boot before"));
    node.forget();
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    assert_eq!(volumes.recover(&node.kubelet()).unwrap().done, ["awaited"]);
    let doubt = Duration::from_secs(3600);
    assert_eq!(
        volumes.reap(&node.kubelet(), doubt).unwrap(),
        Upkeep::default()
    );
    node.remember();
    assert!(!node.publish(&volumes).unwrap().existed);
    assert_eq!(fs::read(&written).unwrap(), b"by the pod");
    // Where kubelet does not come back, nobody waits for ever.
    host.unmount(&node.target()).unwrap();
    node.forget();
    assert_eq!(volumes.recover(&node.kubelet()).unwrap().done, ["awaited"]);
    let upkeep = volumes.reap(&node.kubelet(), Duration::ZERO).unwrap();
    assert_eq!(upkeep.done, ["forgotten"]);
    node.is_clear(&host, &[], "the reaper");
}

#[test]
fn a_refused_unpublish_leaves_no_lock() {
    let node = Node::overlay(Owner::Plugin);
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    node.publish(&volumes).unwrap();
    let before = node.names("store/volumes").len();
    let error = volumes
        .unpublish(&UnpublishRequest {
            volume_id: String::from("another"),
            target: node.target(),
            clear_target: true,
        })
        .unwrap_err();
    assert!(
        matches!(error, VolumeError::OtherVolume { .. }),
        "{}",
        text(&error)
    );
    assert_eq!(node.names("store/volumes").len(), before);
    assert_eq!(host.mounted(), [node.target()]);
}

#[test]
fn kubelets_directory_may_be_named_by_a_link() {
    let node = Node::overlay(Owner::Plugin);
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    node.publish(&volumes).unwrap();
    let link = node.path("link");
    std::os::unix::fs::symlink(node.kubelet(), &link).unwrap();
    node.forget();
    let upkeep = volumes.reap(&link, Duration::ZERO).unwrap();
    assert_eq!(upkeep.done, ["forgotten"]);
    node.is_clear(&host, &[], "the reaper");
}

#[test]
fn a_volume_that_is_in_use_is_not_reaped() {
    let node = Node::overlay(Owner::Plugin);
    let host = Arc::new(FakeHost::new());
    let volumes = node.open(&host);
    node.publish(&volumes).unwrap();
    node.forget();
    host.hold(&node.target());
    let upkeep = volumes.reap(&node.kubelet(), Duration::ZERO).unwrap();
    assert_eq!((upkeep.done.len(), upkeep.stuck), (0, 1));
    assert_eq!(host.mounted(), [node.target()]);
    assert!(node.keeps_all());
    host.let_go();
    let upkeep = volumes.reap(&node.kubelet(), Duration::ZERO).unwrap();
    assert_eq!(upkeep.done, ["forgotten"]);
    node.is_clear(&host, &[], "the reaper");
}
