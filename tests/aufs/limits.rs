//! How a union is asked for: pages of options, numbers of branches, and the
//! places that AUFS or our probe refuses.

use super::support::bench::{Bench, check_many, many_branches, names, text};
use super::{bench, chain, drop_caches, errno};
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountFlags};
use aufs_csi::union::probe::{self, Cause, ProbeOptions};
use aufs_csi::union::{MountPlan, Writable, mount};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags as Flags;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

/// The text that a page of options has no room for goes with the next one.
/// Here the end of the page moves over every character of the entry that is
/// the first not to fit, one mount for each.
#[test]
fn a_page_ends_at_any_character_of_an_entry() {
    let bench = bench();
    let branches = many_branches(&bench, 40, 150);
    let entry = branches[0].as_os_str().len() + ":=ro+wh".len();
    let mut pages = Vec::new();
    for padding in 0..=entry {
        let mut branches = branches.clone();
        // Two, for one name cannot be that long.
        let (first, second) = (padding / 2, padding - padding / 2);
        let pad = |name: &str, length: usize| format!("{name}{}", "y".repeat(length));
        branches.insert(0, bench.directory(format!("pad/{}", pad("a", first))));
        branches.insert(1, bench.directory(format!("pad/{}", pad("b", second))));
        let plan = bench.plan(&format!("v{padding}"), branches.clone(), padding % 2 == 0);
        let steps = plan.steps(&bench.features).unwrap();
        pages.push(steps.len());
        bench.mount(&plan);
        // The lowest branches are those that would be missing.
        assert_eq!(text(plan.target.join("all")), "0");
        assert!(plan.target.join("own-39").exists(), "padding {padding}");
        assert_eq!(names(&plan.target).len(), 41, "padding {padding}");
        bench.unmount(&plan);
        fs::remove_dir_all(bench.root.join("pad")).unwrap();
    }
    // All of them needed more than one page.
    let one_page = bench.plan("one", branches[..2].to_vec(), false);
    let one_page = one_page.steps(&bench.features).unwrap().len();
    assert!(pages.iter().all(|steps| *steps > one_page), "{pages:?}");
}

/// A page has room for far more short paths than a call has slots.
#[test]
fn short_paths_do_not_overfill_a_call() {
    let bench = bench();
    let branches: Vec<PathBuf> = (0..126)
        .map(|number| {
            let own = format!("own-{number}");
            let name = format!("b/{number}");
            bench.branch(name, &[("all", &number.to_string()), (&own, "")])
        })
        .collect();
    for count in [58, 59, 60, 61, 62, 63, 64, 65, 84, 85, 100, 126] {
        for read_only in [false, true] {
            let plan = bench.plan(
                &format!("{count}-{read_only}"),
                branches[..count].to_vec(),
                read_only,
            );
            check_many(&bench, &plan, count);
        }
    }
}

/// Each call that appends branches replaces the flags of the mount.
#[test]
fn the_flags_survive_the_appending_of_branches() {
    let bench = bench();
    let branches = many_branches(&bench, 126, 60);
    for read_only in [false, true] {
        let plan = bench.plan(&format!("v{read_only}"), branches.clone(), read_only);
        bench.mount(&plan);
        let entry = LinuxHost.mount_at(&plan.target).unwrap().unwrap();
        assert_eq!(entry.flags, MountFlags::volume(read_only));
        let written = fs::write(plan.target.join("new"), "");
        match read_only {
            true => assert_eq!(errno(written), Errno::ROFS),
            false => written.unwrap(),
        }
        bench.unmount(&plan);
    }
}

#[test]
fn a_branch_too_many_is_refused_before_the_kernel_is_asked() {
    let bench = bench();
    let branches = many_branches(&bench, 127, 10);
    let plan = bench.plan("v", branches.clone(), false);
    let error = mount(&LinuxHost, &plan, &bench.features).unwrap_err();
    assert!(chain(&error).contains("128"), "{}", chain(&error));
    // And where the kernel's limit is lower than we believed, it is undone.
    let mut wrong = bench.features.clone();
    wrong.aufs.branch_limit = 1000;
    let error = mount(&LinuxHost, &plan, &wrong).unwrap_err();
    assert!(error.is_undone(), "{}", chain(&error));
    assert!(
        chain(&error).contains("fewer than 128"),
        "{}",
        chain(&error)
    );
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
    check_many(&bench, &bench.plan("w", branches, true), 127);
}

/// A branch without files, one with an empty name list, and a single one.
#[test]
fn few_branches_work_too() {
    let bench = bench();
    let empty = bench.directory("empty");
    for (name, branches) in [
        ("one", vec![empty.clone()]),
        ("two", vec![bench.branch("f", &[("f", "f")]), empty]),
    ] {
        let plan = bench.plan(name, branches.clone(), false);
        bench.mount(&plan);
        fs::write(plan.target.join("new"), "new").unwrap();
        drop_caches();
        assert_eq!(text(plan.target.join("new")), "new");
        assert_eq!(names(&plan.target).len(), branches.len());
        bench.unmount(&plan);
    }
}

#[test]
fn a_target_inside_another_union_is_its_own_mount() {
    let bench = bench();
    let outer = bench.plan("outer", vec![bench.branch("a", &[("in/f", "f")])], false);
    bench.mount(&outer);
    let inside = outer.target.join("in");
    assert!(!LinuxHost.place(&inside).unwrap().mount_root);
    let mut inner = bench.plan("inner", vec![bench.branch("b", &[("g", "g")])], false);
    inner.target = inside.clone();
    bench.mount(&inner);
    assert_eq!(names(&inside), ["g"]);
    fs::write(inside.join("h"), "h").unwrap();
    aufs_csi::union::unmount(&LinuxHost, &[&inside], super::support::bench::PATIENCE).unwrap();
    assert_eq!(names(&inside), ["f"]);
    bench.unmount(&outer);
}

/// A tmpfs as writable layer has no `user.*` attributes before Linux 6.6, and
/// the files of the image may have some.
#[test]
fn memory_as_writable_layer_takes_files_with_attributes() {
    let bench = bench();
    let branch = bench.branch("a", &[("f", "before")]);
    rustix::fs::setxattr(branch.join("f"), "user.a", b"1", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(branch.join("f"), "trusted.b", b"2", XattrFlags::empty()).unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut plan = bench.plan("v", vec![branch], false);
    let upper = memory.path().join("upper");
    fs::create_dir(&upper).unwrap();
    plan.writable = Some(Writable {
        upper,
        work: memory.path().join("work"),
        memory: true,
    });
    bench.mount(&plan);
    let file = plan.target.join("f");
    fs::write(&file, "after").unwrap();
    drop_caches();
    assert_eq!(text(&file), "after");
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(&file, "trusted.b", &mut value).unwrap();
    assert_eq!(&value[..length], b"2");
    bench.unmount(&plan);
}

fn options(bench: &Bench, store: &Path, run: &Path) -> ProbeOptions {
    ProbeOptions {
        store: bench.directory(store),
        run: bench.directory(run),
        os_release: String::new(),
        allow_btrfs: false,
    }
}

fn cause(options: &ProbeOptions) -> Cause {
    let probe = probe::self_test(&LinuxHost, options).unwrap_or_else(|e| panic!("{}", chain(&e)));
    probe.aufs.expect_err("such a place is none for AUFS").cause
}

/// Places where a plugin may well be told to keep its store: each is refused
/// with its reason, and not with the `EINVAL` that the kernel has for all.
#[test]
fn places_that_cannot_hold_branches_are_named() {
    let bench = bench();
    let mount_at = |name: &str, fs_type: &str, flags: Flags, data: &str| {
        let at = bench.directory(name);
        let data = CString::new(data).unwrap();
        rustix::mount::mount("none", &at, fs_type, flags, &*data).unwrap();
        at
    };
    let good_run = bench.run.clone();

    let lower = bench.directory("lower");
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        bench.directory("o/upper").display(),
        bench.directory("o/work").display()
    );
    let overlay = mount_at("overlay", "overlay", Flags::empty(), &data);
    let found = cause(&options(&bench, &overlay.join("store"), &good_run));
    assert!(
        matches!(&found, Cause::StoreFilesystem { name, .. } if name == "overlay"),
        "{found}"
    );

    let plan = bench.plan("v", vec![lower], false);
    bench.mount(&plan);
    let found = cause(&options(&bench, &plan.target.join("store"), &good_run));
    assert!(
        matches!(&found, Cause::StoreFilesystem { name, .. } if name == "aufs"),
        "{found}"
    );
    bench_unmount(&plan);

    let noexec = mount_at("noexec", "tmpfs", Flags::NOEXEC, "");
    let found = cause(&options(&bench, &noexec.join("store"), &good_run));
    assert!(matches!(&found, Cause::StoreFlags { .. }), "{found}");

    let store = PathBuf::from("store");
    let found = cause(&options(&bench, &store, &overlay.join("run")));
    assert!(
        matches!(&found, Cause::XinoFilesystem { name } if name == "overlay"),
        "{found}"
    );

    // And the probe is right: the kernel does refuse these.
    let branch = overlay.join("branch");
    fs::create_dir(&branch).unwrap();
    let plan = bench.plan("w", vec![branch], false);
    assert!(mount(&LinuxHost, &plan, &bench.features).is_err());
    let mut plan = bench.plan("x", vec![bench.directory("b")], false);
    plan.xino = Some(overlay.join("xino"));
    assert!(mount(&LinuxHost, &plan, &bench.features).is_err());
}

fn bench_unmount(plan: &MountPlan) {
    let both = [plan.target.as_path(), plan.staging.as_path()];
    aufs_csi::union::unmount(&LinuxHost, &both, super::support::bench::PATIENCE).unwrap();
}

fn used_bytes(path: &Path) -> u64 {
    let status = rustix::fs::statvfs(path).unwrap();
    (status.f_blocks - status.f_bfree) * status.f_bsize
}

/// The inode translations live in memory, so they must be small, and gone with
/// their unions.
#[test]
fn the_inode_translation_of_a_volume_is_small() {
    const VOLUMES: usize = 50;
    let bench = bench();
    let xino = bench.directory("xino");
    rustix::mount::mount("none", &xino, "tmpfs", Flags::empty(), None).unwrap();
    let branches = many_branches(&bench, 8, 10);
    let before = used_bytes(&xino);
    let plans: Vec<MountPlan> = (0..VOLUMES)
        .map(|number| {
            let mut plan = bench.plan(&number.to_string(), branches.clone(), false);
            plan.xino = Some(xino.join(number.to_string()));
            bench.mount(&plan);
            assert_eq!(names(&plan.target).len(), 9);
            fs::write(plan.target.join("all"), "changed").unwrap();
            plan
        })
        .collect();
    let each = (used_bytes(&xino) - before) / VOLUMES as u64;
    println!("{each} bytes a volume");
    assert!(each <= 64 << 10, "{each} bytes a volume");
    for plan in &plans {
        bench_unmount(plan);
    }
    assert_eq!(used_bytes(&xino), before);
    assert_eq!(names(&xino), Vec::<String>::new());
}

/// A full run directory fails mounts and lookups; it hangs nothing, and what
/// was mounted can be taken down.
#[test]
fn a_full_run_directory_is_an_error_and_no_hang() {
    let bench = bench();
    let xino = bench.directory("xino");
    rustix::mount::mount("none", &xino, "tmpfs", Flags::empty(), Some(c"size=1m")).unwrap();
    let mut plan = bench.plan("v", many_branches(&bench, 8, 10), false);
    plan.xino = Some(xino.join("v"));
    bench.mount(&plan);
    let room = fs::File::create(xino.join("fill")).unwrap();
    let mut size = 0;
    while rustix::fs::fallocate(&room, rustix::fs::FallocateFlags::empty(), size, 4096).is_ok() {
        size += 4096;
    }
    let mut other = bench.plan("w", many_branches(&bench, 8, 20), false);
    other.xino = Some(xino.join("w"));
    // The first numbers are written when it is mounted.
    let refused = mount(&LinuxHost, &other, &bench.features).map(|_| ());
    let error = refused.expect_err("there is no place for its inode numbers");
    assert!(error.is_undone(), "{}", chain(&error));
    assert_eq!(names(&other.target), Vec::<String>::new());
    bench_unmount(&plan);
    drop(room);
    fs::remove_file(xino.join("fill")).unwrap();
    bench.mount(&other);
    assert_eq!(names(&other.target).len(), 9);
    bench_unmount(&other);
}
