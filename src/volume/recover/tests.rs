//! What becomes of a volume, for everything that it can be found as. A row that
//! is wrong costs a pod its data or the node its disk, so each says why.

use super::*;
use crate::host::MountFlags;
use crate::union::tests::plan;
use crate::union::{Backend, MountPlan};
use std::collections::BTreeMap;
use std::fmt::Debug;

const BOOT: &str = "this boot";
const OTHER_BOOT: &str = "another boot";
const ROOT: &str = "/var/lib/kubelet";
const TARGET: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount";
const VOLUMES: &str = "/s/volumes";
const BACKENDS: [Backend; 3] = [Backend::Aufs, Backend::Overlay, Backend::Bind];

use Owner::{Command, Plugin};
use PodDirectory::{Forgotten, Gone, Present};
use VolumeState::{Beginning, Intended, Leaving, Mounted, Returning};

const OWNERS: [Owner; 2] = [Plugin, Command];
const STATES: [VolumeState; 5] = [Intended, Mounted, Returning, Beginning, Leaving];
const PODS: [PodDirectory; 3] = [Present, PodDirectory::Forgotten, Gone];

/// What is mounted at the volume's target, the lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Nothing,
    Own,
    Foreign,
    /// Somebody has mounted something over it.
    OwnThenForeign,
    ForeignThenOwn,
}

const ATS: [At; 5] = [
    At::Nothing,
    At::Own,
    At::Foreign,
    At::OwnThenForeign,
    At::ForeignThenOwn,
];
const OWN: &[At] = &[At::Own, At::OwnThenForeign, At::ForeignThenOwn];
const NOT_OWN: &[At] = &[At::Nothing, At::Foreign];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    This,
    Other,
}

const BOOTS: [Boot; 2] = [Boot::This, Boot::Other];

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Do {
    Nothing,
    TakeDown(Reason),
    Adopt,
    Await,
}

/// Combinations of which all are treated alike.
struct Row {
    owners: &'static [Owner],
    states: &'static [VolumeState],
    boots: &'static [Boot],
    ats: &'static [At],
    pods: &'static [PodDirectory],
    expected: Do,
    why: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        owners: &[Command],
        states: &STATES,
        boots: &BOOTS,
        ats: &ATS,
        pods: &PODS,
        expected: Do::Nothing,
        why: "a person's volume is theirs, whatever became of it",
    },
    Row {
        owners: &[Plugin],
        states: &[Intended],
        boots: &BOOTS,
        ats: &ATS,
        pods: &PODS,
        expected: Do::TakeDown(Reason::Interrupted),
        why: "kubelet was not told of it, so no pod has written to it, and a retry starts anew",
    },
    Row {
        owners: &[Plugin],
        states: &[Leaving],
        boots: &BOOTS,
        ats: &ATS,
        pods: &PODS,
        expected: Do::TakeDown(Reason::Leaving),
        why: "kubelet has asked for its end already, and need not ask again",
    },
    Row {
        owners: &[Plugin],
        states: &[Mounted],
        boots: &[Boot::This],
        ats: OWN,
        pods: &PODS,
        expected: Do::Nothing,
        why: "it works; one that kubelet has forgotten may be in use, which takes more than a look",
    },
    Row {
        owners: &[Plugin],
        states: &[Returning],
        boots: &[Boot::This],
        ats: OWN,
        pods: &PODS,
        expected: Do::Adopt,
        why: "it was mounted again, and only its record does not say so yet",
    },
    Row {
        owners: &[Plugin],
        states: &[Mounted, Returning],
        boots: &[Boot::This],
        ats: NOT_OWN,
        pods: &[Present],
        expected: Do::Await,
        why: "kubelet will ask for it again, and what the pod wrote is still there",
    },
    Row {
        owners: &[Plugin],
        states: &[Mounted, Returning],
        boots: &[Boot::This],
        ats: NOT_OWN,
        pods: &[Forgotten],
        expected: Do::Await,
        why: "kubelet may be making or removing it this moment; the reaper looks for longer",
    },
    Row {
        owners: &[Plugin],
        states: &[Mounted, Returning],
        boots: &[Boot::This],
        ats: NOT_OWN,
        pods: &[Gone],
        expected: Do::TakeDown(Reason::Forgotten),
        why: "nobody sees it, and without its directory no pod will ask for it again",
    },
    Row {
        owners: &[Plugin],
        states: &[Beginning],
        boots: &[Boot::This],
        ats: &ATS,
        pods: &[Present, Forgotten],
        expected: Do::Await,
        why: "its record is all that is left of it, and kubelet was not told of any mount",
    },
    Row {
        owners: &[Plugin],
        states: &[Beginning],
        boots: &[Boot::This],
        ats: &ATS,
        pods: &[Gone],
        expected: Do::TakeDown(Reason::Forgotten),
        why: "no pod will ask for it again",
    },
    Row {
        owners: &[Plugin],
        states: &[Mounted, Returning, Beginning],
        boots: &[Boot::Other],
        // No mount outlives its boot, so what looks like the volume is not it.
        ats: &ATS,
        pods: &[Present],
        expected: Do::Await,
        why: "a pod that outlives a reboot keeps what it wrote, as with emptyDir",
    },
    Row {
        owners: &[Plugin],
        states: &[Mounted, Returning, Beginning],
        boots: &[Boot::Other],
        ats: &ATS,
        pods: &[Forgotten],
        expected: Do::Await,
        why: "a power loss may have taken vol_data.json, and kubelet writes it anew for the pod",
    },
    Row {
        owners: &[Plugin],
        states: &[Mounted, Returning, Beginning],
        boots: &[Boot::Other],
        ats: &ATS,
        pods: &[Gone],
        expected: Do::TakeDown(Reason::Forgotten),
        why: "its pod went while the node was down",
    },
];

fn plan_of(backend: Backend, volume: &str, target: &str) -> MountPlan {
    let mut plan = plan(backend, 1, backend == Backend::Bind);
    let dir = Path::new(VOLUMES).join(volume);
    if let Some(writable) = &mut plan.writable {
        writable.upper = dir.join("upper");
        writable.work = dir.join("work");
    }
    plan.staging = dir.join("staging");
    plan.target = target.into();
    plan.xino = Some(Path::new("/run/x").join(volume));
    plan
}

fn found(backend: Backend, volume: &str, target: &str) -> Found {
    let plan = plan_of(backend, volume, target);
    Found {
        dir: Path::new(VOLUMES).join(volume),
        record: VolumeRecord {
            version: RECORD_VERSION,
            volume_id: volume.to_owned(),
            state: Mounted,
            owner: Plugin,
            pod: None,
            shared: None,
            images: Vec::new(),
            branches: Vec::new(),
            target: plan.target.clone(),
            target_created: true,
            read_only: plan.read_only,
            mount_group: None,
            attributes: BTreeMap::new(),
            limit: None,
            plan,
            aufs_id: None,
            boot: BOOT.to_owned(),
            mount_namespace: 1,
            created: 0,
        },
        pod: Present,
    }
}

fn entry(at: &str, fs_type: &str, root: &str, options: &str) -> MountEntry {
    MountEntry {
        id: 7,
        parent: 1,
        device: (0, 50),
        root: root.into(),
        mount_point: at.into(),
        flags: MountFlags::default(),
        shared: None,
        fs_type: fs_type.into(),
        source: "none".into(),
        super_read_only: false,
        options: options.into(),
    }
}

/// The mount that a volume's plan makes.
fn own(found: &Found) -> MountEntry {
    let at = found.record.target.to_str().unwrap();
    let plan = &found.record.plan;
    let branch = plan.branches[0].display();
    match (plan.backend, &plan.writable) {
        (Backend::Aufs, _) => {
            let xino = plan.xino.as_ref().unwrap().display();
            entry(at, "aufs", "/", &format!("si=5,xino={xino},dio"))
        }
        (Backend::Overlay, Some(writable)) => {
            let (upper, work) = (writable.upper.display(), writable.work.display());
            let options = format!("lowerdir+={branch},upperdir={upper},workdir={work}");
            entry(at, "overlay", "/", &options)
        }
        (Backend::Overlay, None) => entry(at, "overlay", "/", &format!("lowerdir+={branch}")),
        (Backend::Bind, _) => entry(at, "ext4", plan.branches[0].to_str().unwrap(), ""),
    }
}

/// Mounts of others at a target: of another filesystem, and of the same kind.
fn foreign(found: &Found) -> Vec<MountEntry> {
    let at = found.record.target.to_str().unwrap();
    vec![
        entry(at, "tmpfs", "/", "size=1k"),
        entry(at, "ext4", "/home/somebody", ""),
        entry(at, "aufs", "/", "si=6,xino=/run/x/another"),
        entry(at, "overlay", "/", "lowerdir=/a:/b,upperdir=/u,workdir=/w"),
    ]
}

fn tables(at: At, found: &Found) -> Vec<Vec<MountEntry>> {
    let with = |order: fn(MountEntry, MountEntry) -> Vec<MountEntry>| {
        let foreign = foreign(found).into_iter();
        foreign.map(|other| order(own(found), other)).collect()
    };
    match at {
        At::Nothing => vec![Vec::new()],
        At::Own => vec![vec![own(found)]],
        At::Foreign => with(|_, other| vec![other]),
        At::OwnThenForeign => with(|own, other| vec![own, other]),
        At::ForeignThenOwn => with(|own, other| vec![other, own]),
    }
}

fn node(unreadable: &[PathBuf]) -> Node<'_> {
    Node {
        boot: BOOT,
        kubelet_root: Path::new(ROOT),
        volumes_dir: Path::new(VOLUMES),
        unreadable,
    }
}

fn repairs_of(found: &[Found], table: &[MountEntry]) -> Vec<Repair> {
    repairs(found, table, &node(&[]))
}

/// Every combination of the five.
fn combinations() -> impl Iterator<Item = (Owner, VolumeState, Boot, At, PodDirectory)> {
    OWNERS.into_iter().flat_map(|owner| {
        STATES.into_iter().flat_map(move |state| {
            BOOTS.into_iter().flat_map(move |boot| {
                ATS.into_iter().flat_map(move |at| {
                    PODS.into_iter()
                        .map(move |pod| (owner, state, boot, at, pod))
                })
            })
        })
    })
}

#[test]
fn every_volume_that_can_be_found_is_put_right() {
    let mut count = 0;
    for combination @ (owner, state, boot, at, pod) in combinations() {
        let rows: Vec<&Row> = ROWS
            .iter()
            .filter(|row| {
                row.owners.contains(&owner)
                    && row.states.contains(&state)
                    && row.boots.contains(&boot)
                    && row.ats.contains(&at)
                    && row.pods.contains(&pod)
            })
            .collect();
        let [row] = rows[..] else {
            panic!("{combination:?} is in {} rows", rows.len());
        };
        for backend in BACKENDS {
            let mut found = found(backend, "v", TARGET);
            found.record.owner = owner;
            found.record.state = state;
            found.pod = pod;
            if boot == Boot::Other {
                OTHER_BOOT.clone_into(&mut found.record.boot);
            }
            let dir = found.dir.clone();
            let expected = match row.expected {
                Do::Nothing => vec![],
                Do::TakeDown(why) => vec![Repair::TakeDown { dir, why }],
                Do::Adopt => vec![Repair::Adopt { dir }],
                Do::Await => vec![Repair::Await { dir }],
            };
            for table in tables(at, &found) {
                let repairs = repairs_of(std::slice::from_ref(&found), &table);
                assert_eq!(
                    repairs, expected,
                    "{combination:?} {backend}: {}: {table:#?}",
                    row.why
                );
                count += 1;
            }
        }
    }
    // 4 of foreign mounts for each of 3 in 5, by themselves or with the own one.
    assert_eq!(count, 2 * STATES.len() * 2 * 3 * 3 * (2 + 3 * 4));
}

#[test]
fn volumes_of_a_newer_version_are_left_to_it() {
    // It may mean something else by any state.
    for combination @ (owner, state, _, at, pod) in combinations() {
        let mut found = found(Backend::Overlay, "v", TARGET);
        found.record.version = RECORD_VERSION + 1;
        found.record.owner = owner;
        found.record.state = state;
        found.pod = pod;
        for table in tables(at, &found) {
            let repairs = repairs_of(std::slice::from_ref(&found), &table);
            assert_eq!(repairs, [], "{combination:?}");
        }
    }
}

#[test]
fn each_volume_is_judged_by_itself() {
    let mut first = found(Backend::Overlay, "a", TARGET);
    let second = found(
        Backend::Overlay,
        "b",
        "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/w/mount",
    );
    // What is mounted of the one, and at the other's target, is not the other's.
    let mut elsewhere = own(&first);
    elsewhere.mount_point = second.record.target.clone();
    let table = [own(&first), elsewhere];
    let expected = [Repair::Await {
        dir: second.dir.clone(),
    }];
    assert_eq!(
        repairs_of(&[first.clone(), second.clone()], &table),
        expected
    );
    first.record.state = Leaving;
    let expected = [
        Repair::TakeDown {
            dir: first.dir.clone(),
            why: Reason::Leaving,
        },
        expected[0].clone(),
    ];
    assert_eq!(repairs_of(&[first, second], &table), expected);
}

/// A directory of kubelet's in the temporary directory, for the one question that
/// is asked of the disk.
struct Kubelet(tempfile::TempDir);

impl Kubelet {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("pods")).unwrap();
        Kubelet(root)
    }

    fn target(&self, plugin: &str, name: &str) -> String {
        let root = self.0.path().display();
        format!("{root}/pods/u/volumes/{plugin}/{name}/mount")
    }

    /// A target that kubelet has forgotten, or not.
    fn csi(&self, name: &str, is_known: bool) -> String {
        let target = self.target("kubernetes.io~csi", name);
        std::fs::create_dir_all(&target).unwrap();
        if is_known {
            let data = Path::new(&target).with_file_name("vol_data.json");
            std::fs::write(data, "{}").unwrap();
        }
        target
    }
}

#[test]
fn only_what_this_program_alone_can_have_mounted_is_an_orphan() {
    let kubelet = Kubelet::new();
    let (known, forgotten) = (kubelet.csi("known", true), kubelet.csi("forgotten", false));
    let gone = kubelet.target("kubernetes.io~csi", "gone");
    let no_csi = kubelet.target("kubernetes.io~empty-dir", "cache");
    let upper = |upper: &str| format!("lowerdir=/s/diff/0,upperdir={upper},workdir=/w");
    let recorded = found(Backend::Overlay, "recorded", TARGET);
    let unreadable = [PathBuf::from("/s/volumes/unreadable")];
    let rows: &[(&str, bool, MountEntry)] = &[
        (
            "a staging path of no record: a union of ours that no volume has",
            true,
            entry("/s/volumes/lost/staging", "overlay", "/", &upper("/u")),
        ),
        (
            "a bind mount at such a path",
            true,
            entry("/s/volumes/lost/staging", "ext4", "/s/diff/0", ""),
        ),
        (
            "a union of AUFS at such a path",
            true,
            entry("/s/volumes/lost/staging", "aufs", "/", "si=1"),
        ),
        (
            "a writable layer's own filesystem that no record has",
            true,
            entry("/s/volumes/lost/fs", "ext4", "/", ""),
        ),
        (
            "one that a record has",
            false,
            entry("/s/volumes/recorded/fs", "tmpfs", "/", ""),
        ),
        (
            "a volume's staging path: it is taken down or mounted with the volume",
            false,
            entry("/s/volumes/recorded/staging", "aufs", "/", "si=1"),
        ),
        (
            "one of a volume whose record cannot be read: it may be a live pod's",
            false,
            entry("/s/volumes/unreadable/staging", "aufs", "/", "si=1"),
        ),
        (
            "something in a volume's directory that is never made by us",
            false,
            entry("/s/volumes/lost/upper", "tmpfs", "/", ""),
        ),
        (
            "the store's own filesystem",
            false,
            entry("/s/volumes", "ext4", "/", ""),
        ),
        (
            "an overlay on a writable layer of the store that no record has",
            true,
            entry(&gone, "overlay", "/", &upper("/s/volumes/lost/upper")),
        ),
        (
            "the same where kubelet knows of it: it shows what is deleted",
            true,
            entry(&known, "overlay", "/", &upper("/s/volumes/lost/upper")),
        ),
        (
            "the same anywhere else: a person's, whose record is lost all the same",
            true,
            entry("/mnt", "overlay", "/", &upper("/s/volumes/lost/upper")),
        ),
        (
            "a recorded writable layer, mounted a second time by somebody",
            false,
            entry("/mnt", "overlay", "/", &upper("/s/volumes/recorded/upper")),
        ),
        (
            "a writable layer whose record cannot be read",
            false,
            entry(
                "/mnt",
                "overlay",
                "/",
                &upper("/s/volumes/unreadable/upper"),
            ),
        ),
        (
            "a recorded target with another union on it",
            false,
            entry(TARGET, "overlay", "/", &upper("/s/volumes/lost/upper")),
        ),
        (
            "an overlay of a container",
            false,
            entry(
                "/run/containerd/x/rootfs",
                "overlay",
                "/",
                "lowerdir=/c/1:/c/2,upperdir=/c/3,workdir=/c/4",
            ),
        ),
        (
            "another store's volume",
            false,
            entry("/mnt", "overlay", "/", &upper("/s/volumes2/lost/upper")),
        ),
        (
            "another filesystem that has such an option too",
            false,
            entry("/mnt", "fuse", "/", &upper("/s/volumes/lost/upper")),
        ),
        (
            "AUFS at a CSI path that kubelet has forgotten",
            true,
            entry(&forgotten, "aufs", "/", "si=2"),
        ),
        (
            "AUFS at a CSI path that is gone as far as can be seen",
            true,
            entry(&gone, "aufs", "/", "si=2"),
        ),
        (
            "AUFS of a volume whose record cannot be read, at such a path",
            false,
            entry(&forgotten, "aufs", "/", "si=2,xino=/run/x/unreadable"),
        ),
        (
            "AUFS of a recorded volume, which somebody has mounted there too",
            false,
            entry(&forgotten, "aufs", "/", "si=2,xino=/run/x/recorded"),
        ),
        (
            "AUFS at a CSI path that kubelet can still unpublish",
            false,
            entry(&known, "aufs", "/", "si=2"),
        ),
        (
            "AUFS at a path of kubelet's that is no CSI volume's",
            false,
            entry(&no_csi, "aufs", "/", "si=2"),
        ),
        (
            "AUFS of somebody else: Docker's, a live system's root",
            false,
            entry("/var/lib/docker/aufs/mnt/1", "aufs", "/", "si=2"),
        ),
        (
            "another driver's volumes, forgotten by kubelet or not",
            false,
            entry(&forgotten, "nfs4", "/export", "addr=10.0.0.1"),
        ),
        (
            "another driver's bind mount",
            false,
            entry(&forgotten, "ext4", "/data/0", ""),
        ),
        (
            "another driver's overlay",
            false,
            entry(&forgotten, "overlay", "/", "lowerdir=/a:/b"),
        ),
        (
            "a volume in memory of another driver",
            false,
            entry(&forgotten, "tmpfs", "/", "size=1k"),
        ),
    ];
    let node = Node {
        kubelet_root: kubelet.0.path(),
        ..node(&unreadable)
    };
    // Of the recorded volume itself nothing is to be done.
    let table = [own(&recorded)];
    assert_eq!(repairs(std::slice::from_ref(&recorded), &table, &node), []);
    for (why, is_orphan, entry) in rows {
        let at = entry.mount_point.clone();
        let expected = is_orphan.then_some(Repair::Unmount { at });
        let table = [own(&recorded), entry.clone()];
        let repairs = repairs(std::slice::from_ref(&recorded), &table, &node);
        assert_eq!(repairs, Vec::from_iter(expected), "{why}: {entry:#?}");
    }
}

#[test]
fn orphans_are_taken_down_one_by_one() {
    let lost = |at: &str| {
        let options = "lowerdir=/s/diff/0,upperdir=/s/volumes/lost/upper,workdir=/w";
        entry(at, "overlay", "/", options)
    };
    let table = [
        lost("/mnt"),
        lost("/mnt"),
        entry("/srv", "tmpfs", "/", ""),
        lost("/srv"),
    ];
    let expected = ["/mnt", "/mnt", "/srv"].map(|at| Repair::Unmount { at: at.into() });
    assert_eq!(repairs_of(&[], &table), expected);
}
