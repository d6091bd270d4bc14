//! Real unions on the running kernel: every kind of plan is mounted, used,
//! verified again and taken down.
//!
//! Needs root, and fails without. `AUFS_CSI_BACKEND=aufs|overlay` chooses the
//! union (default overlay), `AUFS_CSI_TEST_DIR` a directory that it can use
//! (default the temporary directory), `AUFS_CSI_TEST_RUN` one on a tmpfs for
//! the inode translation of AUFS (default `/dev/shm`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests make mounts of their own, and start themselves in a user namespace"
)]

mod support;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{HeldBy, Host, MountCall, MountFlags, OverlayInterface};
use aufs_csi::union::probe::{self, ProbeOptions, UnionRequest};
use aufs_csi::union::{
    Backend, MountError, MountStep, UnmountError, VerifyError, mount, unmount, verify,
};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use support::bench::{Bench, PATIENCE, backend, check_many, many_branches, names, text};
use support::node::chain;

/// A bottom with files, and a top that hides, covers and adds.
fn two_branches(bench: &Bench) -> Vec<PathBuf> {
    let bottom = bench.branch(
        "diff/bottom",
        &[
            ("hidden", "x"),
            ("covered", "bottom"),
            ("d/a", "a"),
            ("kept", "kept"),
        ],
    );
    let top = bench.branch("diff/top", &[("covered", "top"), ("d/b", "b")]);
    bench.whiteout(&top, "hidden");
    vec![top, bottom]
}

#[test]
fn a_writable_union_takes_changes_in_its_writable_layer() {
    writable_union(&Bench::new());
}

fn writable_union(bench: &Bench) {
    let branches = two_branches(bench);
    let plan = bench.plan("v", branches.clone(), false);
    bench.mount(&plan);
    assert_eq!(bench.mounts(), std::slice::from_ref(&plan.target));
    let at = |name: &str| plan.target.join(name);
    assert_eq!(names(&plan.target), ["covered", "d", "kept"]);
    assert_eq!(names(&at("d")), ["a", "b"]);
    assert_eq!(text(at("covered")), "top");
    fs::write(at("kept"), "changed").unwrap();
    fs::write(at("new"), "new").unwrap();
    fs::remove_dir_all(at("d")).unwrap();
    fs::create_dir(at("d")).unwrap();
    assert_eq!(names(&at("d")), Vec::<String>::new());
    bench.unmount(&plan);
    assert_eq!(text(branches[1].join("kept")), "kept");
    let upper = &plan.writable.as_ref().unwrap().upper;
    assert_eq!(text(upper.join("kept")), "changed");

    bench.mount(&plan);
    assert_eq!(names(&plan.target), ["covered", "d", "kept", "new"]);
    assert_eq!(names(&at("d")), Vec::<String>::new());
    assert_eq!(text(at("kept")), "changed");
    bench.unmount(&plan);
}

#[test]
fn a_read_only_union_refuses_writes() {
    let bench = Bench::new();
    let plan = bench.plan("v", two_branches(&bench), true);
    bench.mount(&plan);
    assert_eq!(names(&plan.target), ["covered", "d", "kept"]);
    let error = fs::write(plan.target.join("new"), "").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    let error = fs::remove_file(plan.target.join("kept")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    bench.unmount(&plan);
}

#[test]
fn a_read_only_volume_of_one_branch_is_a_bind() {
    let bench = Bench::new();
    let branch = bench.branch("diff/only", &[("a", "a"), ("d/b", "b")]);
    let mut plan = bench.plan("v", vec![branch.clone()], true);
    assert_eq!(plan.backend, Backend::Bind);
    bench.mount(&plan);
    assert_eq!(names(&plan.target), ["a", "d"]);
    let error = fs::write(plan.target.join("a"), "").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    // The branch itself is as writable as before.
    fs::write(branch.join("c"), "c").unwrap();
    bench.unmount(&plan);

    plan.sub_path = Some("d".into());
    bench.mount(&plan);
    assert_eq!(names(&plan.target), ["b"]);
    bench.unmount(&plan);
}

#[test]
fn the_flags_reach_the_target() {
    let bench = Bench::new();
    let branch = bench.branch("diff/a", &[("f", "f")]);
    let second = bench.branch("diff/b", &[]);
    for (name, branches, read_only) in [
        ("rw", vec![branch.clone()], false),
        ("ro", vec![branch.clone(), second], true),
        ("bind", vec![branch], true),
    ] {
        let plan = bench.plan(name, branches, read_only);
        bench.mount(&plan);
        let table = LinuxHost.mount_table().unwrap();
        let mut listed = table.iter().rev();
        let entry = listed.find(|entry| entry.mount_point == plan.target);
        assert_eq!(
            entry.unwrap().flags,
            MountFlags::volume(read_only),
            "{name}"
        );
        let asked = LinuxHost.mount_at(&plan.target).unwrap();
        assert_eq!(asked.as_ref(), entry, "{name}");
        bench.unmount(&plan);
    }
}

#[test]
fn a_union_has_as_many_branches_as_an_image_has_layers() {
    let bench = Bench::new();
    let branches = many_branches(&bench, 126, 32);
    check_many(&bench, &bench.plan("rw", branches.clone(), false), 126);
    check_many(&bench, &bench.plan("ro", branches, true), 126);
}

#[test]
fn a_page_boundary_may_fall_anywhere() {
    let bench = Bench::new();
    // The option text grows by a byte for each branch from one to the next.
    for length in 60..66 {
        let branches = many_branches(&bench, 60, length);
        let mut plan = bench.plan(&format!("v{length}"), branches, false);
        plan.xino = Some(bench.run.join("x".repeat(length)));
        check_many(&bench, &plan, 60);
        fs::remove_dir_all(bench.root.join("many")).unwrap();
    }
}

#[test]
fn kernels_without_lowerdir_append_take_as_many_layers() {
    let mut bench = Bench::new();
    bench.features.overlay.lowerdir_append = false;
    for (count, length, expected) in [
        (20, 10, OverlayInterface::Joined),
        (120, 32, OverlayInterface::JoinedDescriptors),
        (180, 60, OverlayInterface::JoinedDescriptors),
    ] {
        let branches = many_branches(&bench, count, length);
        let mut plan = bench.plan(&format!("v{count}"), branches, false);
        plan.backend = Backend::Overlay;
        let steps = plan.steps(&bench.features).unwrap();
        assert!(matches!(
            &steps[0],
            MountStep::Call { call: MountCall::Overlay(call), .. } if call.interface == expected
        ));
        check_many(&bench, &plan, count);
        fs::remove_dir_all(bench.root.join("many")).unwrap();
    }
}

#[test]
fn a_directory_inside_is_published_and_never_one_outside() {
    let bench = Bench::new();
    let mut branches = two_branches(&bench);
    let links = bench.branch("diff/links", &[("opt/tools/t", "t")]);
    symlink("/opt/tools", links.join("absolute")).unwrap();
    symlink("../../../../opt", links.join("upwards")).unwrap();
    symlink("/etc", links.join("etc")).unwrap();
    branches.push(links);
    for (read_only, sub_path, expected) in [
        (false, "opt/tools", Some(&["t"][..])),
        (true, "absolute", Some(&["t"][..])),
        (false, "upwards", Some(&["tools"][..])),
        (true, "upwards/tools", Some(&["t"][..])),
        (false, "d", Some(&["a", "b"][..])),
        // There is no /etc in the volume, whatever there is on the node.
        (false, "etc", None),
        (true, "absent", None),
        (false, "kept", None),
    ] {
        let name = format!("{}-{read_only}", sub_path.replace('/', "-"));
        let mut plan = bench.plan(&name, branches.clone(), read_only);
        plan.sub_path = Some(sub_path.into());
        match expected {
            Some(expected) => {
                bench.mount(&plan);
                assert_eq!(names(&plan.target), expected, "{sub_path}");
                assert_eq!(bench.mounts(), std::slice::from_ref(&plan.target));
                bench.unmount(&plan);
            }
            None => {
                let error = mount(&LinuxHost, &plan, &bench.features).unwrap_err();
                assert!(error.is_undone(), "{}", chain(&error));
                assert_eq!(bench.mounts(), Vec::<PathBuf>::new(), "{sub_path}");
            }
        }
    }
}

#[test]
fn a_mount_that_fails_leaves_nothing() {
    let bench = Bench::new();
    let good = bench.branch("diff/good", &[("f", "f")]);
    let absent = bench.root.join("diff/absent");
    let file = bench.branch("diff/d", &[("file", "")]).join("file");
    for bad in [absent.clone(), file] {
        for position in [0, 1] {
            let name = format!("{}-{position}", bad.file_name().unwrap().display());
            let mut branches = vec![good.clone()];
            branches.insert(position, bad.clone());
            let plan = bench.plan(&name, branches, false);
            let error = mount(&LinuxHost, &plan, &bench.features).unwrap_err();
            assert!(
                matches!(error, MountError::Call { .. }),
                "{}",
                chain(&error)
            );
            assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
        }
    }
    // On AUFS the second call fails, after the first made a mount.
    let mut branches = many_branches(&bench, 80, 40);
    branches.push(absent);
    let plan = bench.plan("late", branches, false);
    assert!(mount(&LinuxHost, &plan, &bench.features).is_err());
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
}

#[test]
fn a_run_killed_after_any_step_is_repaired_by_the_next() {
    let bench = Bench::new();
    let branches = two_branches(&bench);
    let mut inside = bench.plan("inside", branches.clone(), false);
    inside.sub_path = Some("d".into());
    let bind = bench.plan("bind", branches[..1].to_vec(), true);
    for plan in [bench.plan("v", branches, false), inside, bind] {
        let steps = plan.steps(&bench.features).unwrap();
        for end in 1..steps.len() {
            for step in &steps[..end] {
                match step {
                    MountStep::Call { at, call } => LinuxHost.mount(at, call).unwrap(),
                    MountStep::Release { at } => LinuxHost.unmount(at).unwrap(),
                    MountStep::RemoveStale { path } => LinuxHost.remove_stale(path).unwrap(),
                    MountStep::Clear { .. }
                    | MountStep::VerifyUnion { .. }
                    | MountStep::VerifyBind { .. } => {}
                }
            }
            if verify(&LinuxHost, &plan).is_err() {
                let both = [plan.target.as_path(), plan.staging.as_path()];
                unmount(&LinuxHost, &both, PATIENCE).unwrap();
                bench.mount(&plan);
            }
            bench.unmount(&plan);
        }
    }
}

#[test]
fn a_volume_in_use_is_not_taken_down() {
    let bench = Bench::new();
    let plan = bench.plan("v", two_branches(&bench), false);
    bench.mount(&plan);
    let open = fs::File::open(plan.target.join("kept")).unwrap();
    let started = Instant::now();
    let short = Duration::from_millis(200);
    let error = unmount(&LinuxHost, &[&plan.target], short).unwrap_err();
    assert!(
        matches!(error, UnmountError::Busy { .. }),
        "{}",
        chain(&error)
    );
    assert!(started.elapsed() >= short);
    verify(&LinuxHost, &plan).unwrap();
    drop(open);
    bench.unmount(&plan);
    assert_eq!(unmount(&LinuxHost, &[&plan.target], PATIENCE).unwrap(), 0);
}

#[test]
fn a_union_that_is_mounted_elsewhere_too_is_recognised() {
    let bench = Bench::new();
    let plan = bench.plan("v", two_branches(&bench), false);
    bench.mount(&plan);
    let copy = bench.directory("copy");
    mount_bind(&plan.target, &copy).unwrap();
    let result = unmount(&LinuxHost, &[&plan.target], Duration::from_millis(100));
    match backend() {
        Backend::Aufs => assert!(matches!(result, Err(UnmountError::Lingering { .. }))),
        // The kernel does not tell; the next mount of the same writable layer
        // is what it refuses.
        Backend::Overlay | Backend::Bind => {
            assert_eq!(result.unwrap(), 1);
            let error = mount(&LinuxHost, &plan, &bench.features).unwrap_err();
            assert!(
                matches!(error, MountError::InUse { .. }),
                "{}",
                chain(&error)
            );
        }
    }
    unmount(&LinuxHost, &[&copy], PATIENCE).unwrap();
    bench.mount(&plan);
    bench.unmount(&plan);
}

/// A process that ends with the test.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn whoever_holds_a_volume_is_named() {
    let bench = Bench::new();
    let plan = bench.plan("v", two_branches(&bench), false);
    bench.mount(&plan);
    let holders = || {
        LinuxHost
            .holders(Path::new("/proc"), &plan.target)
            .unwrap()
            .into_iter()
            // Tests beside this one start processes, which have copies of all
            // mounts for a moment.
            .filter(|holder| ["cat", "sleep"].contains(&holder.command.as_str()))
            .collect::<Vec<_>>()
    };
    assert_eq!(holders(), []);

    let mut inside = std::process::Command::new("cat");
    inside.current_dir(&plan.target);
    inside.stdin(std::process::Stdio::piped());
    let inside = Process(inside.spawn().unwrap());
    let [found] = &holders()[..] else {
        panic!("the process inside: {:?}", holders());
    };
    assert_eq!((found.pid, &found.by), (inside.0.id(), &HeldBy::File));
    drop(inside);

    // As a container has it: under another name, and not under the one here.
    let elsewhere = bench.directory("elsewhere");
    let script = format!(
        "mount --bind {target} {elsewhere} && umount {target} && echo there && exec sleep 60",
        target = plan.target.display(),
        elsewhere = elsewhere.display(),
    );
    let mut container = std::process::Command::new("unshare");
    container.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    container.stdout(std::process::Stdio::piped());
    let mut container = Process(container.spawn().unwrap());
    let mut line = String::new();
    let stdout = container.0.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "there\n");
    // The shell becomes that program a moment later.
    let began = std::time::Instant::now();
    let found = loop {
        if let [found] = &holders()[..] {
            break found.clone();
        }
        assert!(began.elapsed() < PATIENCE, "the container: {:?}", holders());
    };
    assert_eq!(found.pid, container.0.id());
    assert_eq!(found.by, HeldBy::Mount(elsewhere));
    assert!(found.to_string().contains("(sleep), whose mount namespace"));
    drop(container);

    // A copy at the same place is no holder: it goes with the original.
    let mut copy = std::process::Command::new("unshare");
    copy.args(["--mount", "--propagation", "private", "sleep", "60"]);
    let copy = Process(copy.spawn().unwrap());
    assert_eq!(holders(), []);
    drop(copy);
    bench.unmount(&plan);
}

#[test]
fn another_union_at_the_target_is_no_match() {
    let bench = Bench::new();
    let plan = bench.plan("v", two_branches(&bench), false);
    bench.mount(&plan);
    let mut reversed = plan.clone();
    reversed.branches.reverse();
    let mut fewer = plan.clone();
    fewer.branches.pop();
    let mut other_upper = plan.clone();
    other_upper.writable.as_mut().unwrap().upper = bench.directory("other");
    let mut read_only = plan.clone();
    read_only.read_only = true;
    read_only.writable = None;
    for (name, other) in [
        ("reversed", reversed),
        ("fewer", fewer),
        ("upper", other_upper),
        ("read-only", read_only),
    ] {
        assert!(verify(&LinuxHost, &other).is_err(), "{name}");
    }
    let error = mount(&LinuxHost, &plan, &bench.features).unwrap_err();
    assert!(matches!(error, MountError::Occupied { .. }));
    bench.unmount(&plan);
    let error = verify(&LinuxHost, &plan).unwrap_err();
    assert!(matches!(error, VerifyError::NotMounted { .. }));
}

#[test]
fn mounts_stacked_on_the_target_all_go() {
    let bench = Bench::new();
    let plan = bench.plan("v", two_branches(&bench), false);
    bench.mount(&plan);
    let other = bench.directory("other");
    mount_bind(&other, &plan.target).unwrap();
    assert_eq!(unmount(&LinuxHost, &[&plan.target], PATIENCE).unwrap(), 2);
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
}

/// As where kubelet's directory is a Bidirectional mount: what the plugin
/// mounts in its container appears on the host, with the same flags.
#[test]
fn what_propagates_to_the_host_carries_the_flags() {
    let bench = Bench::new();
    let (container, host) = (bench.directory("container"), bench.directory("host"));
    mount_bind(&container, &container).unwrap();
    mount_change(&container, MountPropagationFlags::SHARED).unwrap();
    mount_bind(&container, &host).unwrap();
    let branches = two_branches(&bench);
    for (name, branches, read_only) in [
        ("rw", branches.clone(), false),
        ("ro", branches.clone(), true),
        ("bind", branches[..1].to_vec(), true),
    ] {
        let mut plan = bench.plan(name, branches, read_only);
        // The staging path is in a shared mount too, as in a store that is.
        plan.staging = bench.directory(format!("container/{name}-staging"));
        plan.target = bench.directory(format!("container/{name}-target"));
        bench.mount(&plan);
        let seen = host.join(format!("{name}-target"));
        let flags = LinuxHost.filesystem(&seen).unwrap().flags;
        assert_eq!(flags, MountFlags::volume(read_only), "{name}");
        let entry = LinuxHost.mount_at(&seen).unwrap().expect("it propagated");
        assert_eq!(entry.flags, MountFlags::volume(read_only), "{name}");
        assert!(!LinuxHost.place(&plan.staging).unwrap().mount_root);
        let both = [plan.target.as_path(), plan.staging.as_path()];
        unmount(&LinuxHost, &both, PATIENCE).unwrap();
        assert!(!LinuxHost.place(&seen).unwrap().mount_root);
    }
}

#[test]
fn devices_do_not_count_in_a_volume() {
    let bench = Bench::new();
    let branch = bench.branch("diff/a", &[]);
    let null = branch.join("null");
    let kind = FileType::CharacterDevice;
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(CWD, &null, kind, Mode::from_raw_mode(0o666), device).unwrap();
    fs::set_permissions(&null, fs::Permissions::from_mode(0o666)).unwrap();
    fs::read(&null).expect("the device works outside of the volume");
    let plan = bench.plan("v", vec![branch], false);
    bench.mount(&plan);
    let inside = plan.target.join("null");
    assert!(inside.metadata().unwrap().file_type().is_char_device());
    let error = fs::read(&inside).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    bench.unmount(&plan);
}

#[test]
fn a_target_with_any_name_works() {
    let bench = Bench::new();
    let mut plan = bench.plan("v", two_branches(&bench), false);
    plan.target = bench.directory("a b,c:d=e\\f\"g\u{e4}\n#");
    bench.mount(&plan);
    assert_eq!(names(&plan.target), ["covered", "d", "kept"]);
    bench.unmount(&plan);
}

#[test]
fn the_self_test_finds_this_kernels_union_good() {
    let bench = Bench::new();
    let options = ProbeOptions {
        store: bench.root.clone(),
        run: bench.run.clone(),
        os_release: fs::read_to_string("/etc/os-release").unwrap_or_default(),
        allow_btrfs: false,
    };
    // What a killed probe left.
    let left = bench.directory("probe/overlay/7");
    mount_bind(bench.directory("other"), &left).unwrap();
    let started = Instant::now();
    let probe = probe::self_test(&LinuxHost, &options).unwrap_or_else(|e| panic!("{}", chain(&e)));
    println!("in {:?}", started.elapsed());
    println!("{}", serde_json::to_string_pretty(&probe).unwrap());
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
    assert_eq!(names(&bench.root.join("probe")), Vec::<String>::new());
    assert_eq!(names(&bench.run.join("probe")), Vec::<String>::new());
    let filesystems = text("/proc/filesystems");
    let has = |name: &str| {
        let line = format!("nodev\t{name}");
        filesystems.lines().any(|found| found == line)
    };
    assert_eq!(probe.aufs.is_ok(), has("aufs"), "{:?}", probe.aufs);
    assert_eq!(probe.overlay.is_ok(), has("overlay"), "{:?}", probe.overlay);
    let (asked, expected) = match backend() {
        Backend::Aufs => (UnionRequest::Aufs, Backend::Aufs),
        Backend::Overlay | Backend::Bind => (UnionRequest::Overlay, Backend::Overlay),
    };
    assert_eq!(probe::choose(asked, &probe).unwrap(), expected);
    // What was found is what the other tests take for granted.
    let found = probe.features();
    match expected {
        Backend::Aufs => assert_eq!(found.aufs, bench.features.aufs),
        Backend::Overlay | Backend::Bind => {
            assert_eq!(found.overlay, bench.features.overlay);
        }
    }
}

#[test]
fn a_user_namespace_can_make_overlays() {
    let program = std::env::current_exe().unwrap();
    let arguments: [OsString; 8] = [
        "--user".into(),
        "--map-root-user".into(),
        "--mount".into(),
        program.into(),
        "--ignored".into(),
        "--exact".into(),
        "inside_a_user_namespace".into(),
        "--nocapture".into(),
    ];
    let output = std::process::Command::new("unshare")
        .args(arguments)
        .env("AUFS_CSI_BACKEND", "overlay")
        .output()
        .expect("the program unshare of util-linux is needed");
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{errors}");
    assert!(printed.contains("1 passed"), "{printed}{errors}");
}

#[test]
#[ignore = "started by the test above, in a user namespace"]
fn inside_a_user_namespace() {
    let bench = Bench::new();
    assert!(bench.features.overlay.userxattr);
    writable_union(&bench);
    let branch = bench.branch("diff/only", &[("a", "a")]);
    let bind = bench.plan("bind", vec![branch], true);
    bench.mount(&bind);
    bench.unmount(&bind);
    let options = ProbeOptions {
        store: bench.root.clone(),
        run: bench.run.clone(),
        os_release: String::new(),
        allow_btrfs: false,
    };
    let probe = probe::self_test(&LinuxHost, &options).unwrap();
    let found = probe.features().overlay;
    assert_eq!(found, bench.features.overlay, "{:?}", probe.overlay);
    assert!(probe.aufs.is_err());
}
