//! The plugin puts things right while another process works on the same volumes:
//! a second plugin that was started by mistake, or the one before, which still
//! ends. What it has looked at may be another volume when it comes to act.

use super::driver::{Node, names};
use super::fake::{Kubelet, Volume};
use super::layers;
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Filesystem, Holder, Host, MountCall, MountEntry, MountTable, Place};
use aufs_csi::volume::upkeep::Upkeep;
use aufs_csi::volume::{Owner, PublishRequest, UnpublishRequest, Volumes};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A call, by how many are made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    MountTable,
    Unmount,
}

type Work = Box<dyn FnOnce() + Send>;

/// The kernel, and what others do just before one call of it.
struct Meanwhile {
    call: Call,
    /// Calls to pass first, and then what is done, once.
    next: Mutex<(usize, Option<Work>)>,
}

impl Meanwhile {
    fn before(&self, call: Call) {
        let mut next = self.next.lock().unwrap();
        if call == self.call && next.0 == 0 {
            let work = next.1.take();
            drop(next);
            work.into_iter().for_each(|work| work());
        } else if call == self.call {
            next.0 -= 1;
        }
    }
}

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meanwhile").finish_non_exhaustive()
    }
}

impl Host for Meanwhile {
    fn mount(&self, target: &Path, call: &MountCall) -> io::Result<()> {
        LinuxHost.mount(target, call)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        self.before(Call::Unmount);
        LinuxHost.unmount(target)
    }

    fn mount_table(&self) -> io::Result<Vec<MountEntry>> {
        self.before(Call::MountTable);
        LinuxHost.mount_table()
    }

    fn mount_at(&self, path: &Path) -> io::Result<Option<MountEntry>> {
        LinuxHost.mount_at(path)
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        LinuxHost.place(path)
    }

    fn filesystem(&self, path: &Path) -> io::Result<Filesystem> {
        LinuxHost.filesystem(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        LinuxHost.read(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        LinuxHost.list(path)
    }

    fn release_image(&self, image: &Path, devices: &Path) -> io::Result<()> {
        LinuxHost.release_image(image, devices)
    }

    fn remove_stale(&self, path: &Path) -> io::Result<()> {
        LinuxHost.remove_stale(path)
    }

    fn overlay_appends(&self) -> bool {
        LinuxHost.overlay_appends()
    }

    fn holders(&self, proc: &Path, target: &Path) -> io::Result<Vec<Holder>> {
        LinuxHost.holders(proc, target)
    }

    fn mount_tables(&self, proc: &Path) -> io::Result<Vec<MountTable>> {
        LinuxHost.mount_tables(proc)
    }

    fn is_namespace_alive(&self, proc: &Path, namespace: u64) -> io::Result<bool> {
        LinuxHost.is_namespace_alive(proc, namespace)
    }

    fn pause(&self, time: Duration) {
        LinuxHost.pause(time);
    }
}

/// One process, and another one's volumes of the same node.
struct Two {
    node: Node,
    kubelet: Kubelet,
    image: String,
    other: Arc<Volumes>,
}

impl Two {
    fn new() -> Self {
        let node = Node::new();
        let open = Volumes::open(node.test.volumes_options(), Arc::new(LinuxHost));
        Two {
            kubelet: Kubelet::new(&node.kubelet_root()),
            image: node.image("app", &layers()),
            other: Arc::new(open.unwrap()),
            node,
        }
    }

    /// What kubelet has and the plugin is asked for.
    fn volume(&self) -> (Volume, PublishRequest) {
        let volume = self.kubelet.volume(&self.image);
        volume.make_dirs();
        let source = self.image.parse().unwrap();
        let mut request = self.node.test.request(&volume.id(), &source, false);
        request.target = volume.target();
        request.owner = Owner::Plugin;
        (volume, request)
    }

    /// The one process, in which the other comes in between.
    fn one(&self, call: Call, passed: usize, work: Work) -> Volumes {
        let host = Meanwhile {
            call,
            next: Mutex::new((passed, Some(work))),
        };
        Volumes::open(self.node.test.volumes_options(), Arc::new(host)).unwrap()
    }

    fn ends(&self, volume: &Volume) {
        self.other.unpublish(&unpublish(volume)).unwrap();
        volume.remove_dirs().unwrap();
        volume.remove_pod_dir().unwrap();
    }
}

fn unpublish(volume: &Volume) -> UnpublishRequest {
    UnpublishRequest {
        volume_id: volume.id(),
        target: volume.target(),
        clear_target: true,
    }
}

#[test]
fn a_volume_that_appears_while_the_plugin_starts_is_no_orphan() {
    // Before each look at the mount table.
    for passed in 0..3 {
        let two = Two::new();
        let (volume, request) = two.volume();
        let other = Arc::clone(&two.other);
        let publish = move || drop(other.publish(&request, &()).unwrap());
        let one = two.one(Call::MountTable, passed, Box::new(publish));
        let upkeep = one.recover(&two.node.kubelet_root()).unwrap();
        let mounted = two.node.mounts();
        assert_eq!(
            (upkeep, mounted.len()),
            (Upkeep::default(), two.node.records().len())
        );
        two.ends(&volume);
        two.node.has_no_volumes("afterwards");
    }
}

#[test]
fn a_volume_that_is_to_go_may_be_gone_or_another_one() {
    for (state, comes_back) in [
        ("leaving", true),
        ("leaving", false),
        ("intended", true),
        ("intended", false),
    ] {
        let two = Two::new();
        let mut volumes = [two.volume(), two.volume()];
        volumes.sort_by_key(|(volume, _)| volume.id());
        for (_, request) in &volumes {
            two.other.publish(request, &()).unwrap();
        }
        for (path, mut record) in two.node.records() {
            record["state"] = state.into();
            fs::write(&path, record.to_string()).unwrap();
        }
        // Both are to go. When the first does, so does the second, elsewhere.
        let [first, second] = volumes;
        let other = Arc::clone(&two.other);
        let (ended, request) = (unpublish(&second.0), second.1.clone());
        let work = move || {
            other.unpublish(&ended).unwrap();
            if comes_back {
                other.publish(&request, &()).unwrap();
            }
        };
        let one = two.one(Call::Unmount, 0, Box::new(work));
        let root = two.node.kubelet_root();
        let upkeep = match state {
            "leaving" => one.reap(&root, Duration::MAX),
            _ => one.recover(&root),
        };
        assert_eq!(upkeep.unwrap().done.len(), 1, "{state}");
        let mut expected = Vec::new();
        if comes_back {
            expected.push(second.0.target());
        }
        assert_eq!(two.node.mounts(), expected, "{state}");
        let names = names(&two.node.store().join("volumes"));
        // A directory and its lock.
        assert_eq!(names.len(), 2 * expected.len(), "{names:?}");
        for (volume, _) in [&first, &second] {
            two.ends(volume);
        }
        two.node.has_no_volumes(state);
    }
}
