//! Writable layers with a limit, on the running kernel: what a pod can write and
//! what not, as root and as somebody else, and who else notices.
//!
//! Needs root and loop devices, and fails without. `AUFS_CSI_BACKEND` chooses the
//! union.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::ext4::{self, Identity, Layout};
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountCall, MountFlags};
use aufs_csi::image::reference::Source;
use aufs_csi::layer::collect::Marks;
use aufs_csi::union::probe::UnionRequest;
use aufs_csi::union::unmount;
use aufs_csi::volume::{CollectSettings, ErrorKind, Medium, PublishRequest, VolumeError};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::entry::{Layer, dir, file};
use support::node::{TestNode, chain, union};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 32 * MIB;
/// What a filesystem may have beyond its limit, for what the union keeps in it:
/// as the README says.
const BEYOND: u64 = 64 << 10;
const SOMEBODY: u32 = 4711;

/// An image with a file that is large for these limits, a directory for anybody
/// and one small file.
fn stack() -> Vec<Layer> {
    let large: Vec<u8> = (0..20 * MIB).map(|at| (at % 251) as u8).collect();
    vec![vec![
        dir("open").mode(0o777),
        file("large", &large).mode(0o666),
        file("small", b"small").mode(0o666),
    ]]
}

fn limited(
    node: &TestNode,
    id: &str,
    source: &Source,
    limit: u64,
    medium: Medium,
) -> PublishRequest {
    PublishRequest {
        size_limit: Some(limit),
        medium,
        ..node.request(id, source, false)
    }
}

#[track_caller]
fn publish(node: &TestNode, request: &PublishRequest) {
    let result = node.volumes.publish(request, &());
    result.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

/// Does something without any of root's privileges.
fn as_somebody<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // This thread only; with the ids it loses its capabilities.
            let user = rustix::thread::Uid::from_raw(SOMEBODY);
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            act()
        });
        thread.join().unwrap()
    })
}

/// Writes into a new file until there is an error; bytes that are on the disk, and
/// which error.
fn fill(path: &Path) -> (u64, Errno) {
    let mut file = File::create(path).unwrap();
    let chunk = vec![0x5a; 64 << 10];
    let mut written = 0;
    let mut size = chunk.len();
    loop {
        match file.write(&chunk[..size]).and_then(|length| {
            file.sync_data()?;
            Ok(length)
        }) {
            Ok(length) => written += length as u64,
            // To the last byte that there is room for.
            Err(_) if size > 4096 => size = 4096,
            Err(error) => return (written, Errno::from_io_error(&error).unwrap()),
        }
    }
}

fn copy_up(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(b"x")
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// The directory of a volume in the store.
fn directory(node: &TestNode, id: &str) -> PathBuf {
    let record = node.record(id);
    record.plan.staging.parent().unwrap().to_owned()
}

/// Files behind loop devices that are below a directory.
fn loops(below: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap();
    devices
        .filter_map(|entry| {
            fs::read_to_string(entry.unwrap().path().join("loop/backing_file")).ok()
        })
        .filter(|file| Path::new(file).starts_with(below))
        .collect()
}

/// Nothing is left of any volume.
#[track_caller]
fn is_clear(node: &TestNode) {
    let mounts: Vec<PathBuf> = LinuxHost
        .mount_table()
        .unwrap()
        .into_iter()
        .map(|entry| entry.mount_point)
        .filter(|at| at.starts_with(node.path()))
        .collect();
    assert_eq!(mounts, Vec::<PathBuf>::new());
    let volumes = fs::read_dir(node.path().join("store/volumes")).unwrap();
    let left: Vec<_> = volumes.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    // The kernel lets a device go behind the unmount's back.
    for _ in 0..100 {
        if loops(node.path()).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("loop devices: {:?}", loops(node.path()));
}

fn a_full_volume(medium: Medium) {
    let node = TestNode::new();
    let source = node.image("image", &stack());
    publish(&node, &limited(&node, "full", &source, LIMIT, medium));
    publish(&node, &limited(&node, "limited", &source, LIMIT, medium));
    node.publish("free", &source, false).unwrap();
    let target = node.target("full");

    // Root, and then whoever has no privilege, gets what was promised and no more.
    for (name, as_root) in [("root", true), ("somebody", false)] {
        let path = target.join("open").join(name);
        let (written, error) = if as_root {
            fill(&path)
        } else {
            as_somebody(|| fill(&path))
        };
        assert_eq!(error, Errno::NOSPC, "{name}");
        let (least, most) = (LIMIT - LIMIT / 100, LIMIT + BEYOND);
        assert!((least..=most).contains(&written), "{name}: {written}");
        // Nor can anybody have a lower file copied up that does not fit.
        for path in ["large", "small"] {
            let path = target.join(path);
            let error = copy_up(&path).unwrap_err();
            assert_eq!(errno(&error), Some(Errno::NOSPC), "{name}");
            let error = as_somebody(|| copy_up(&path)).unwrap_err();
            assert_eq!(errno(&error), Some(Errno::NOSPC), "{name}");
        }
        // What there is can be read all the same.
        assert_eq!(fs::read(target.join("small")).unwrap(), b"small");
        let usage = node.volumes.usage("full", &target).unwrap();
        assert_eq!(usage.bytes.total, LIMIT);
        assert!(usage.bytes.available <= 8192, "{usage:?}");
        // Others notice nothing.
        for other in ["limited", "free"] {
            let other = node.target(other);
            fs::write(other.join("mine"), vec![1; MIB as usize]).unwrap();
            copy_up(&other.join("small")).unwrap();
        }
        fs::remove_file(path).unwrap();
    }
    let usage = node.volumes.usage("full", &target).unwrap();
    assert!(usage.bytes.used < MIB, "{usage:?}");
    // Now there is room for one copy of the large file, and no second.
    copy_up(&target.join("large")).unwrap();
    let usage = node.volumes.usage("full", &target).unwrap();
    assert!(
        (20 * MIB - BEYOND..22 * MIB).contains(&usage.bytes.used),
        "{usage:?}"
    );
    let (written, error) = fill(&target.join("more"));
    assert_eq!(error, Errno::NOSPC);
    assert!(written <= LIMIT - 20 * MIB + BEYOND, "{written}");
    for id in ["full", "limited", "free"] {
        node.unpublish(id);
    }
    is_clear(&node);
}

#[test]
fn a_full_volume_on_disk_harms_nobody() {
    a_full_volume(Medium::Disk);
}

#[test]
fn a_full_volume_in_memory_harms_nobody() {
    a_full_volume(Medium::Memory);
}

#[test]
fn inodes_are_limited_too() {
    for medium in [Medium::Disk, Medium::Memory] {
        let node = TestNode::new();
        let source = node.image("image", &stack());
        publish(&node, &limited(&node, "v", &source, MIB, medium));
        let target = node.target("v");
        let total = node.volumes.usage("v", &target).unwrap().inodes.total;
        let mut made = 0;
        let error = loop {
            match File::create_new(target.join(format!("open/{made}"))) {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(errno(&error), Some(Errno::NOSPC));
        assert!(made <= total, "{made} of {total}");
        assert!(made + 64 >= total, "{made} of {total}");
        node.unpublish("v");
        is_clear(&node);
    }
}

/// A disk for a store, of its own, that can be filled.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new(bytes: u64) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("aufs-csi-disk-")
            .tempdir()
            .unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        let layout = Layout::for_usable(bytes).unwrap();
        let file = File::create(&image).unwrap();
        file.set_len(layout.bytes()).unwrap();
        let identity = Identity {
            uuid: [0x42; 16],
            hash_seed: [1; 16],
            created: 1_700_000_000,
        };
        ext4::format(&layout, &identity, |at, bytes| file.write_all_at(bytes, at)).unwrap();
        fs::create_dir(&at).unwrap();
        let call = MountCall::Image {
            image,
            devices: dir.path().to_owned(),
            flags: MountFlags::default(),
            data: String::new(),
        };
        LinuxHost.mount(&at, &call).unwrap();
        Disk { dir }
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("at")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&LinuxHost, &[&self.at()], Duration::from_secs(10));
    }
}

#[test]
fn a_full_disk_of_the_node_is_not_the_volumes_business() {
    let disk = Disk::new(192 * MIB);
    let node = TestNode::in_dir(&disk.at());
    let source = node.image("image", &stack());
    publish(&node, &limited(&node, "v", &source, LIMIT, Medium::Disk));
    let image = directory(&node, "v").join("image");
    let allocated = || fs::metadata(&image).unwrap().blocks() * 512;
    let promised = fs::metadata(&image).unwrap().len();
    assert!(allocated() >= promised);
    let (_, error) = fill(&disk.at().join("filler"));
    assert_eq!(error, Errno::NOSPC);

    // All that was promised can be written, and is there, also what was written in
    // the middle of space that was only allocated.
    let target = node.target("v");
    let sparse = File::create(target.join("open/sparse")).unwrap();
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&sparse, flags, 0, 4 * MIB).unwrap();
    for at in 0..64 {
        sparse.write_all_at(b"here", at * 20_000).unwrap();
    }
    sparse.sync_all().unwrap();
    let content: Vec<u8> = (0..26 * MIB).map(|at| (at % 249) as u8).collect();
    let written = File::create(target.join("open/content")).unwrap();
    written.write_all_at(&content, 0).unwrap();
    written.sync_all().unwrap();
    fs::remove_file(target.join("open/sparse")).unwrap();
    assert!(allocated() >= promised, "the image has holes");
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert!(fs::read(target.join("open/content")).unwrap() == content);

    // One for which there is no room is refused at once, and leaves nothing.
    let request = limited(&node, "no-room", &source, LIMIT, Medium::Disk);
    let error = node.volumes.publish(&request, &()).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ResourceExhausted,
        "{}",
        chain(&error)
    );
    assert_eq!(node.volumes.list().unwrap().len(), 1);
    drop((sparse, written));
    // Not even a volume with all its space used needs any to go away.
    node.unpublish("v");
    is_clear(&node);
}

/// A limit that no disk here could hold costs nobody anything: neither the space of
/// the node while it is looked for, nor the images that nobody uses just now.
#[test]
fn what_can_never_be_held_is_refused_and_costs_nobody_anything() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let disk = Disk::new(192 * MIB);
    let node = TestNode::in_dir(&disk.at());
    let source = node.image("image", &stack());
    publish(&node, &limited(&node, "v", &source, LIMIT, Medium::Disk));
    node.unpublish("v");
    // Nothing is too young to go.
    node.volumes.set_collection(CollectSettings {
        marks: Marks {
            min_age: Duration::ZERO,
            ..Marks::default()
        },
        prefetch: Vec::new(),
    });
    let branches = || names(&disk.at());
    let cached = branches();
    let free = || LinuxHost.filesystem(&disk.at()).unwrap().bytes_available;
    let before = free();
    let (least, ends) = (AtomicU64::new(before), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::SeqCst) {
                least.fetch_min(free(), Ordering::SeqCst);
            }
        });
        for bytes in [1 << 30, 1 << 40] {
            let request = limited(&node, "w", &source, bytes, Medium::Disk);
            let error = node.volumes.publish(&request, &()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
            let text = chain(&error);
            assert!(text.contains("bytes of the node's disk"), "{text}");
        }
        ends.store(true, Ordering::SeqCst);
    });
    let least = least.into_inner();
    assert!(least + 8 * MIB > before, "{least} of {before} were free");
    assert_eq!(branches(), cached);
    is_clear(&node);
}

/// Branches of all stores below.
fn names(at: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let diff = path.join("store/diff");
        let entries = fs::read_dir(diff).into_iter().flatten();
        found.extend(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

#[test]
fn what_was_written_to_a_disk_comes_back_and_what_was_in_memory_does_not() {
    for medium in [Medium::Disk, Medium::Memory] {
        let node = TestNode::new();
        let source = node.image("image", &stack());
        let request = limited(&node, "v", &source, LIMIT, medium);
        publish(&node, &request);
        let (target, dir) = (node.target("v"), directory(&node, "v"));
        fs::write(target.join("open/kept"), "by the pod").unwrap();
        copy_up(&target.join("small")).unwrap();
        // As a reboot: neither mount is there, and the record is of another boot.
        for at in [&target, &dir.join("fs")] {
            unmount(&LinuxHost, &[at], Duration::from_secs(10)).unwrap();
        }
        let path = dir.join("record.json");
        let mut record: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["boot"] = "the boot before".into();
        fs::write(&path, record.to_string()).unwrap();
        // The limit was the operator's, and is not the pod's to say again.
        let again = PublishRequest {
            size_limit: None,
            ..request
        };
        publish(&node, &again);
        let kept = fs::read_to_string(target.join("open/kept")).ok();
        let small = fs::read_to_string(target.join("small")).unwrap();
        match medium {
            Medium::Disk => assert_eq!((kept.as_deref(), &*small), (Some("by the pod"), "smallx")),
            Medium::Memory => assert_eq!((kept, &*small), (None, "small")),
        }
        let (_, error) = fill(&target.join("open/more"));
        assert_eq!(error, Errno::NOSPC);
        node.unpublish("v");
        is_clear(&node);
    }
}

/// What a volume was stays known while it cannot be mounted again, or the operator's
/// rules of today would hold for a pod of yesterday.
#[test]
fn a_volume_that_cannot_begin_again_yet_is_not_forgotten() {
    let node = TestNode::new();
    let source = node.image("image", &stack());
    let request = limited(&node, "v", &source, LIMIT, Medium::Memory);
    publish(&node, &request);
    let (target, dir) = (node.target("v"), directory(&node, "v"));
    for at in [&target, &dir.join("fs")] {
        unmount(&LinuxHost, &[at], Duration::from_secs(10)).unwrap();
    }
    let image = node.path().join("images/image");
    let away = node.path().join("away");
    fs::rename(&image, &away).unwrap();
    let again = PublishRequest {
        size_limit: None,
        ..request
    };
    for _ in 0..2 {
        let error = node.volumes.publish(&again, &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(&error));
        assert!(chain(&error).contains("cannot open"), "{}", chain(&error));
        let error = node.volumes.usage("v", &target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", chain(&error));
    }
    fs::rename(&away, &image).unwrap();
    publish(&node, &again);
    let (_, error) = fill(&target.join("open/more"));
    assert_eq!(error, Errno::NOSPC);
    node.unpublish("v");
    is_clear(&node);
}

#[test]
fn a_filesystem_that_is_mounted_elsewhere_only_is_found_again() {
    for medium in [Medium::Disk, Medium::Memory] {
        let mut node = TestNode::new();
        let source = node.image("image", &stack());
        let request = limited(&node, "v", &source, LIMIT, medium);
        publish(&node, &request);
        let (target, fs_dir) = (node.target("v"), directory(&node, "v").join("fs"));
        fs::write(target.join("open/kept"), vec![7; MIB as usize]).unwrap();
        // As after a restart in a container that had the mount to itself; AUFS has
        // its branches by the mount and keeps it.
        match unmount(&LinuxHost, &[&fs_dir], Duration::ZERO) {
            Ok(_) => {
                node.reopen();
                assert!(node.volumes.publish(&request, &()).unwrap().existed);
                let usage = node.volumes.usage("v", &target).unwrap();
                assert!(
                    (MIB - BEYOND..2 * MIB).contains(&usage.bytes.used),
                    "{usage:?}"
                );
                let error = node.volumes.diff("v").unwrap_err();
                assert!(
                    matches!(error, VolumeError::Unreachable { .. }),
                    "{}",
                    chain(&error)
                );
            }
            Err(error) => assert_eq!(union(), UnionRequest::Aufs, "{}", chain(&error)),
        }
        node.unpublish("v");
        is_clear(&node);
    }
}

#[test]
fn what_the_pod_changed_is_told_of_a_limited_volume_too() {
    for medium in [Medium::Disk, Medium::Memory] {
        let node = TestNode::new();
        let source = node.image("image", &stack());
        publish(&node, &limited(&node, "v", &source, LIMIT, medium));
        fs::write(node.target("v").join("open/new"), "new").unwrap();
        let changes = node.volumes.diff("v").unwrap();
        let paths: Vec<_> = changes
            .iter()
            .map(|change| String::from_utf8_lossy(&change.path))
            .collect();
        assert_eq!(paths, ["open", "open/new"]);
        let at = directory(&node, "v").join("fs");
        let entry = LinuxHost.mount_at(&at).unwrap().unwrap();
        assert!(entry.flags.nosuid && entry.flags.nodev, "{entry:?}");
        assert_eq!(
            fs::metadata(&at).unwrap().permissions().mode() & 0o7777,
            0o700
        );
        node.unpublish("v");
        is_clear(&node);
    }
}

#[test]
fn memory_without_any_limit_is_refused() {
    let node = TestNode::new();
    let source = node.image("image", &stack());
    let request = PublishRequest {
        medium: Medium::Memory,
        ..node.request("v", &source, false)
    };
    let error = node.volumes.publish(&request, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(
        chain(&error).contains("give it a sizeLimit"),
        "{}",
        chain(&error)
    );
    is_clear(&node);
}

#[test]
fn a_group_that_may_write_copies_nothing_but_the_root_up() {
    for medium in [None, Some(Medium::Disk), Some(Medium::Memory)] {
        let node = TestNode::new();
        let source = node.image("image", &stack());
        let request = PublishRequest {
            mount_group: Some(4712),
            size_limit: medium.map(|_| LIMIT),
            medium: medium.unwrap_or_default(),
            ..node.request("v", &source, false)
        };
        publish(&node, &request);
        let metadata = fs::metadata(node.target("v")).unwrap();
        assert_eq!(metadata.gid(), 4712);
        assert_eq!(metadata.mode() & 0o2070, 0o2070);
        let upper = node.record("v").plan.writable.unwrap().upper;
        let own: Vec<_> = fs::read_dir(&upper)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            // AUFS keeps files of its own there.
            .filter(|name| !name.to_string_lossy().starts_with(".wh."))
            .collect();
        assert_eq!(own, Vec::<std::ffi::OsString>::new());
        assert_eq!(node.volumes.diff("v").unwrap().len(), 0);
        node.unpublish("v");
        is_clear(&node);
    }
}

/// Where the kernel gives a device its file and its settings in two calls, a kill
/// between them leaves a device that does not let go by itself.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a device that is not ours to make"
)]
fn a_device_that_would_never_let_go_is_made_to() {
    for again in [false, true] {
        let node = TestNode::new();
        let source = node.image("image", &stack());
        let request = limited(&node, "v", &source, LIMIT, Medium::Disk);
        publish(&node, &request);
        let (target, dir) = (node.target("v"), directory(&node, "v"));
        fs::write(target.join("open/kept"), "by the pod").unwrap();
        for at in [&target, &dir.join("fs")] {
            unmount(&LinuxHost, &[at], Duration::from_secs(10)).unwrap();
        }
        for _ in 0..100 {
            if loops(node.path()).is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let made = std::process::Command::new("losetup")
            // As busybox knows it too.
            .arg("-f")
            .arg(dir.join("image"))
            .status();
        assert!(made.unwrap().success());
        assert_eq!(loops(node.path()).len(), 1);
        if again {
            publish(&node, &request);
            assert_eq!(loops(node.path()).len(), 1);
            let kept = fs::read_to_string(target.join("open/kept")).unwrap();
            assert_eq!(kept, "by the pod");
        }
        node.unpublish("v");
        is_clear(&node);
    }
}

#[test]
fn devices_come_and_go_side_by_side() {
    let node = TestNode::new();
    let source = node.image("image", &stack());
    let (node, source) = (&node, &source);
    std::thread::scope(|scope| {
        for lane in 0..4 {
            scope.spawn(move || {
                for turn in 0..5 {
                    let id = format!("v{lane}-{turn}");
                    publish(node, &limited(node, &id, source, MIB, Medium::Disk));
                    fs::write(node.target(&id).join("open/mine"), &id).unwrap();
                    assert_eq!(
                        fs::read_to_string(node.target(&id).join("open/mine")).unwrap(),
                        id
                    );
                    node.unpublish(&id);
                }
            });
        }
    });
    is_clear(node);
}
