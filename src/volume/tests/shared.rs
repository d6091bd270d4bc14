//! Read-only volumes that share a union, on the kernel in memory.

use super::*;

/// Two volumes of one image, of a pod each.
struct Two {
    node: Node,
    host: Arc<FakeHost>,
    volumes: Volumes,
}

const IDS: [&str; 2] = ["one", "other"];

impl Two {
    fn new(union: UnionRequest) -> Self {
        let node = Node::new(union, 2, true, Owner::Plugin);
        let host = Arc::new(FakeHost::new());
        let volumes = node.open(&host);
        let two = Two {
            node,
            host,
            volumes,
        };
        for id in IDS {
            let pod = two.target(id).parent().unwrap().to_owned();
            fs::create_dir_all(&pod).unwrap();
            fs::write(pod.join("vol_data.json"), "{}").unwrap();
        }
        two
    }

    fn target(&self, id: &str) -> PathBuf {
        let pods = self.node.kubelet().join("pods").join(id);
        pods.join("volumes/kubernetes.io~csi/v/mount")
    }

    fn request(&self, id: &str) -> PublishRequest {
        PublishRequest {
            volume_id: id.to_owned(),
            target: self.target(id),
            ..self.node.request()
        }
    }

    fn publish(&self, id: &str) -> Published {
        let published = self.volumes.publish(&self.request(id), &());
        published.unwrap_or_else(|error| panic!("{id}: {}", text(&error)))
    }

    fn try_unpublish(&self, id: &str) -> Result<(), VolumeError> {
        self.volumes.unpublish(&UnpublishRequest {
            volume_id: id.to_owned(),
            target: self.target(id),
            clear_target: true,
        })
    }

    fn unpublish(&self, id: &str) {
        let result = self.try_unpublish(id);
        result.unwrap_or_else(|error| panic!("{id}: {}", text(&error)));
    }

    /// Where their union is mounted.
    fn mount(&self) -> PathBuf {
        let homes = self.node.names("store/shared");
        let home = homes
            .iter()
            .find(|name| !name.to_string_lossy().contains('.'));
        let shared = self.node.path("store/shared");
        shared.join(home.expect("a shared union")).join("mount")
    }

    fn is_clear(&self, what: &str) {
        self.node.is_clear(&self.host, &[], what);
        for id in IDS {
            assert!(!self.target(id).exists(), "{what}: {id}");
        }
    }
}

const UNIONS: [UnionRequest; 2] = [UnionRequest::Aufs, UnionRequest::Overlay];

#[test]
fn the_last_one_that_leaves_takes_the_union_down() {
    for union in UNIONS {
        for (first, last) in [(IDS[0], IDS[1]), (IDS[1], IDS[0])] {
            let two = Two::new(union);
            for id in IDS {
                two.publish(id);
                assert!(two.publish(id).existed, "{union:?}");
            }
            assert_eq!(two.host.superblocks(), 1, "{union:?}");
            two.unpublish(first);
            let left = [two.mount(), two.target(last)];
            let mut mounted = two.host.mounted();
            mounted.sort();
            let mut left = left.to_vec();
            left.sort();
            assert_eq!(mounted, left, "{union:?}");
            two.unpublish(last);
            two.is_clear("at the end");
        }
    }
}

/// Lets the other volume go just when this one is about to be mounted.
#[derive(Debug)]
struct Leaver<'a>(&'a Volumes, UnpublishRequest);

impl Progress for Leaver<'_> {
    fn layers(&self, _: &Arc<ingest::Progress>) {}

    fn phase(&self, phase: Phase) {
        if phase == Phase::Mounting {
            self.0.unpublish(&self.1).unwrap();
        }
    }
}

#[test]
fn one_can_come_while_the_last_one_leaves() {
    for union in UNIONS {
        let two = Two::new(union);
        two.publish("one");
        let leaver = Leaver(
            &two.volumes,
            UnpublishRequest {
                volume_id: "one".to_owned(),
                target: two.target("one"),
                clear_target: true,
            },
        );
        two.volumes.publish(&two.request("other"), &leaver).unwrap();
        assert_eq!(two.host.superblocks(), 1, "{union:?}");
        assert!(two.publish("other").existed);
        two.unpublish("other");
        two.is_clear("at the end");
    }
}

#[test]
fn a_union_that_cannot_be_seen_any_more_is_made_anew_beside_the_old_one() {
    for union in UNIONS {
        for first in IDS {
            let two = Two::new(union);
            two.publish("one");
            two.host.unmount(&two.mount()).unwrap();
            assert!(two.publish("one").existed, "its bind keeps it alive");
            two.publish("other");
            assert_eq!(two.host.superblocks(), 2, "{union:?}");
            two.unpublish(first);
            // The new one stays for whoever of the two is left.
            let left = if first == "one" { 1 } else { 2 };
            assert_eq!(two.host.superblocks(), left, "{union:?} without {first}");
            for id in IDS {
                two.unpublish(id);
            }
            two.is_clear("at the end");
        }
    }
}

#[test]
fn a_start_leaves_what_is_used_and_takes_down_what_is_not() {
    for union in UNIONS {
        let mut two = Two::new(union);
        two.publish("one");
        two.volumes = two.node.open(&two.host);
        let upkeep = two.volumes.recover(&two.node.kubelet()).unwrap();
        assert_eq!((upkeep.done.len(), upkeep.stuck), (0, 0), "{upkeep:?}");
        two.publish("other");
        assert_eq!(two.host.superblocks(), 1, "{union:?}");
        // As if the records had been lost, and the volumes with them.
        for id in IDS {
            two.host.unmount(&two.target(id)).unwrap();
            fs::remove_dir(two.target(id)).unwrap();
            let dir = two
                .node
                .path("store/volumes")
                .join(record::directory_name(id));
            fs::remove_dir_all(dir).unwrap();
        }
        two.volumes = two.node.open(&two.host);
        let upkeep = two.volumes.recover(&two.node.kubelet()).unwrap();
        assert_eq!((upkeep.done, upkeep.stuck), (vec!["shared"], 0));
        two.is_clear("after the start");
    }
}

#[test]
fn after_a_reboot_they_share_again() {
    for union in UNIONS {
        let mut two = Two::new(union);
        for id in IDS {
            two.publish(id);
        }
        // The machine goes down: of the mounts nothing is left.
        two.host = Arc::new(FakeHost::new());
        two.volumes = two.node.open(&two.host);
        for id in IDS {
            let dir = two
                .node
                .path("store/volumes")
                .join(record::directory_name(id));
            let mut record = record::read(&dir).unwrap().unwrap();
            record.boot = "the boot before".to_owned();
            record::write(&dir, &record).unwrap();
        }
        two.volumes.recover(&two.node.kubelet()).unwrap();
        // One comes back, the other's pod is gone.
        assert!(!two.publish("one").existed);
        two.unpublish("other");
        assert_eq!(two.host.superblocks(), 1, "{union:?}");
        two.unpublish("one");
        two.is_clear("at the end");
    }
}

#[test]
fn a_union_that_is_held_elsewhere_keeps_the_last_volumes_pins() {
    let two = Two::new(UnionRequest::Aufs);
    two.publish("one");
    two.publish("other");
    two.host.hold(&two.target("one"));
    // Others pin its branches.
    two.unpublish("one");
    let error = two.try_unpublish("other").unwrap_err();
    assert!(
        matches!(error, VolumeError::Unmount(UnmountError::Lingering { .. })),
        "{}",
        text(&error)
    );
    assert_eq!(two.volumes.list().unwrap().len(), 1, "its record stays");
    two.host.let_go();
    two.unpublish("other");
    two.is_clear("at the end");
}
