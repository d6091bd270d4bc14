//! Volumes that come and go, are in use when they should go, or are found
//! again.

use super::support::bench::{PATIENCE, names};
use super::support::entry::{Layer, dir, file, hardlink};
use super::support::model::flatten;
use super::support::tree::{Compared, assert_same, read};
use super::{bench, chain, drop_caches, node, publish, unions};
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountEntry};
use aufs_csi::union::{UnmountError, unmount};
use aufs_csi::volume::record::VolumeState;
use rustix::mount::mount_bind;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn layers() -> [Layer; 2] {
    [
        vec![dir("d"), file("d/a", b"a"), file("b", b"b")],
        vec![file("d/c", b"c"), hardlink("e", "b")],
    ]
}

/// Removed only when nobody has anything open in it, and whole until then.
#[test]
fn a_volume_in_use_is_not_removed() {
    let node = node();
    let at = publish(&node, "v", &layers(), false);
    let open = fs::File::open(at.join("d/a")).unwrap();
    let error = node.try_unpublish("v").unwrap_err();
    assert!(chain(&error).contains("in use"), "{}", chain(&error));
    let listed = node.volumes.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state, VolumeState::Leaving);
    let expected = flatten(&layers()).unwrap();
    assert_same("in use", &expected, &read(&at).unwrap(), Compared::ALL);
    drop(open);
    node.unpublish("v");
    assert!(!at.exists());
    assert!(node.volumes.list().unwrap().is_empty());
    // Once more, and of one that never was: nothing to do.
    node.unpublish("v");
    node.unpublish("never");
}

/// Kills what a test started.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, arguments: &[&str], place: &Path) -> Holder {
    let child = Command::new(program)
        .args(arguments)
        .current_dir(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut holder = Holder(child);
    // It says so when it is there.
    let mut byte = [0];
    std::io::Read::read_exact(holder.0.stdout.as_mut().unwrap(), &mut byte).unwrap();
    holder
}

const STAY: &str = "echo; exec sleep 1000";

#[test]
fn whoever_stands_in_a_volume_keeps_it() {
    let bench = bench();
    let plan = bench.plan("v", vec![bench.branch("a", &[("d/f", "f")])], false);
    bench.mount(&plan);
    let holder = start("/bin/busybox", &["sh", "-c", STAY], &plan.target.join("d"));
    let result = unmount(&LinuxHost, &[&plan.target], Duration::from_millis(300));
    assert!(
        matches!(result, Err(UnmountError::Busy { .. })),
        "{result:?}"
    );
    drop(holder);
    bench.unmount(&plan);
}

/// A mount namespace that was copied while the volume was mounted keeps the
/// union alive: its branches must stay.
#[test]
fn a_union_held_by_another_namespace_is_noticed() {
    let bench = bench();
    let plan = bench.plan("v", vec![bench.branch("a", &[("f", "f")])], false);
    bench.mount(&plan);
    let id = unions();
    let arguments = ["unshare", "-m", "sh", "-c", STAY];
    let holder = start("/bin/busybox", &arguments, Path::new("/"));
    let result = unmount(&LinuxHost, &[&plan.target], Duration::from_millis(300));
    assert!(
        matches!(result, Err(UnmountError::Lingering { .. })),
        "{result:?}"
    );
    assert!(unions().iter().any(|union| id.contains(union)));
    drop(holder);
    bench.mount(&plan);
    bench.unmount(&plan);
}

/// Also where it is tried again, and by another process: nothing of the union
/// can be seen from here by then.
#[test]
fn a_volume_held_by_another_namespace_keeps_its_writable_layer() {
    let mut node = node();
    let at = publish(&node, "v", &layers(), false);
    fs::write(at.join("mine"), "written").unwrap();
    let upper = node.record("v").plan.writable.unwrap().upper;
    // It shall hold this one, and not what other tests have mounted just then.
    let only = format!(
        "while read -r _ at type _; do [ $type != aufs ] || [ $at = {} ] || umount $at; \
         done </proc/mounts; {STAY}",
        at.display()
    );
    let arguments = ["unshare", "-m", "sh", "-c", only.as_str()];
    let holder = start("/bin/busybox", &arguments, Path::new("/"));
    for _ in 0..2 {
        let error = node.try_unpublish("v").unwrap_err();
        assert!(
            chain(&error).contains("held elsewhere"),
            "{}",
            chain(&error)
        );
        assert_eq!(fs::read(upper.join("mine")).unwrap(), b"written");
        node.reopen();
    }
    drop(holder);
    node.unpublish("v");
    assert!(!upper.exists() && !at.exists());
}

/// As after a reboot: the mount is gone, and what the pod wrote is not.
#[test]
fn an_unmounted_volume_comes_back_with_what_was_written() {
    let mut node = node();
    let source = node.image("v", &layers());
    node.publish("v", &source, false).unwrap();
    let at = node.target("v");
    fs::write(at.join("b"), "changed").unwrap();
    fs::remove_file(at.join("d/a")).unwrap();
    fs::write(at.join("d/new"), "new").unwrap();
    let upper = node.record("v").plan.writable.unwrap().upper;
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    // What the power may leave between two steps of AUFS.
    fs::write(upper.join("d/.wh.new"), "").unwrap();
    fs::write(upper.join("d/.wh..wh.new.0a1b"), "").unwrap();
    fs::write(upper.join(".wh..wh.orph/7"), "open and removed").unwrap();
    node.reopen();
    assert!(!node.publish("v", &source, false).unwrap().existed);
    assert_eq!(fs::read(at.join("b")).unwrap(), b"changed");
    assert_eq!(fs::read(at.join("d/new")).unwrap(), b"new");
    assert_eq!(names(&at.join("d")), ["c", "new"]);
    node.unpublish("v");
}

#[test]
fn a_restart_finds_what_was_published() {
    let mut node = node();
    let source = node.image("v", &layers());
    let first = node.publish("v", &source, false).unwrap();
    let at = node.target("v");
    fs::write(at.join("b"), "changed").unwrap();
    let entry = LinuxHost.mount_at(&at).unwrap().unwrap();
    let id = String::from_utf8_lossy(entry.option("si").unwrap()).into_owned();
    assert!(unions().contains(&format!("si_{id}")));
    for _ in 0..3 {
        node.reopen();
        let again = node.publish("v", &source, false).unwrap();
        assert!(again.existed);
        assert_eq!(again.images, first.images);
        assert_eq!(fs::read(at.join("b")).unwrap(), b"changed");
    }
    node.reopen();
    node.unpublish("v");
    assert!(!at.exists());
    assert_eq!(
        names(&node.path().join("store/volumes")),
        Vec::<String>::new()
    );
    // Other tests may have been given its number since, but then it is theirs.
    let ours = |entry: &MountEntry| entry.mount_point.starts_with(node.path());
    assert!(!LinuxHost.mount_table().unwrap().iter().any(ours));
    // A new volume of the same name has nothing of the old one.
    node.publish("v", &source, false).unwrap();
    let expected = flatten(&layers()).unwrap();
    assert_same("anew", &expected, &read(&at).unwrap(), Compared::ALL);
}

/// Kernels raced over the inode translations of unions that are made at the
/// same time.
#[test]
fn volumes_come_and_go_at_the_same_time() {
    const THREADS: usize = 8;
    const TIMES: usize = 12;
    let node = node();
    let source = node.image("v", &layers());
    let expected = flatten(&layers()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (node, source, expected) = (&node, &source, &expected);
            scope.spawn(move || {
                for time in 0..TIMES {
                    let id = format!("{thread}-{time}");
                    let read_only = (thread + time) % 3 == 0;
                    node.publish(&id, source, read_only)
                        .unwrap_or_else(|error| panic!("{id}: {}", chain(&error)));
                    let at = node.target(&id);
                    assert_same(&id, expected, &read(&at).unwrap(), Compared::ALL);
                    if !read_only {
                        fs::write(at.join("own"), &id).unwrap();
                        fs::write(at.join("b"), &id).unwrap();
                        assert_eq!(fs::read_to_string(at.join("e")).unwrap(), id);
                    }
                    node.unpublish(&id);
                }
            });
        }
    });
    assert!(node.volumes.list().unwrap().is_empty());
    assert_eq!(
        names(&node.path().join("store/volumes")),
        Vec::<String>::new()
    );
}

/// Nothing in the kernel keeps two unions from one writable layer.
#[test]
fn the_same_volume_twice_at_once_is_one_union() {
    let node = node();
    let source = node.image("v", &layers());
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| node.publish("v", &source, false)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let made = results.into_iter().filter(|result| {
        !result
            .as_ref()
            .unwrap_or_else(|e| panic!("{}", chain(e)))
            .existed
    });
    assert_eq!(made.count(), 1);
    let table = LinuxHost.mount_table().unwrap();
    let at = node.target("v");
    assert_eq!(
        table.iter().filter(|entry| entry.mount_point == at).count(),
        1
    );
}

/// The kernel remembers links of changed files until the union ends; that must
/// cost nothing when it does.
#[test]
fn thousands_of_changed_links_do_not_delay_the_end() {
    const FILES: usize = 2_000;
    let bench = bench();
    let branch = bench.directory("a");
    for number in 0..FILES {
        let path = branch.join(format!("f{number}"));
        fs::write(&path, "text").unwrap();
        fs::hard_link(&path, branch.join(format!("g{number}"))).unwrap();
    }
    let plan = bench.plan("v", vec![branch], false);
    bench.mount(&plan);
    for number in 0..FILES {
        fs::write(plan.target.join(format!("f{number}")), "changed").unwrap();
    }
    for number in (0..FILES).step_by(97) {
        let path = plan.target.join(format!("g{number}"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "changed");
        assert_eq!(path.metadata().unwrap().nlink(), 2);
    }
    let started = Instant::now();
    bench.unmount(&plan);
    let elapsed = started.elapsed();
    println!("in {elapsed:?}");
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
}

/// A bind of what a volume shows, as a runtime makes them for each container.
#[test]
fn binds_of_a_volume_work_and_hold_it() {
    let bench = bench();
    let plan = bench.plan("v", vec![bench.branch("a", &[("d/f", "f")])], false);
    bench.mount(&plan);
    let (whole, inside) = (bench.directory("whole"), bench.directory("inside"));
    mount_bind(&plan.target, &whole).unwrap();
    mount_bind(plan.target.join("d"), &inside).unwrap();
    fs::write(inside.join("g"), "g").unwrap();
    assert_eq!(names(&whole.join("d")), ["f", "g"]);
    let result = unmount(&LinuxHost, &[&plan.target], Duration::from_millis(100));
    assert!(
        matches!(result, Err(UnmountError::Lingering { .. })),
        "{result:?}"
    );
    assert_eq!(names(&inside), ["f", "g"]);
    unmount(&LinuxHost, &[&whole, &inside], PATIENCE).unwrap();
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
}

/// The time of a directory that a layer describes and the volume reads through
/// is kept, also where names of several branches meet in it.
#[test]
fn a_volume_published_again_looks_as_at_first() {
    let node = node();
    let expected = flatten(&layers()).unwrap();
    for time in 0..4 {
        let at = publish(&node, "v", &layers(), time % 2 == 0);
        assert_same("again", &expected, &read(&at).unwrap(), Compared::ALL);
        if time % 2 == 1 {
            fs::remove_dir_all(at.join("d")).unwrap();
            fs::write(at.join("b"), "changed").unwrap();
        }
        drop_caches();
        node.unpublish("v");
    }
}
