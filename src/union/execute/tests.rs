use rustix::io::Errno;

use super::*;
use crate::host::fake::{Call, FakeHost};
use crate::host::{OverlayCall, OverlayInterface};
use crate::union::tests::{features, plan};
use crate::union::unmount;

const PATIENCE: Duration = Duration::from_secs(1);

fn with_sub_path(mut plan: MountPlan) -> MountPlan {
    plan.sub_path = Some("opt/tools".into());
    plan
}

/// One plan of each kind.
fn plans() -> Vec<(&'static str, MountPlan)> {
    vec![
        ("aufs", plan(Backend::Aufs, 3, false)),
        ("aufs, read-only", plan(Backend::Aufs, 3, true)),
        ("aufs, in pages", plan(Backend::Aufs, 126, false)),
        ("aufs, inside", with_sub_path(plan(Backend::Aufs, 2, false))),
        ("overlay", plan(Backend::Overlay, 3, false)),
        ("overlay, read-only", plan(Backend::Overlay, 120, true)),
        (
            "overlay, inside",
            with_sub_path(plan(Backend::Overlay, 2, true)),
        ),
        ("bind", plan(Backend::Bind, 1, true)),
        ("bind, inside", with_sub_path(plan(Backend::Bind, 1, true))),
    ]
}

#[test]
fn every_kind_of_plan_is_mounted_verified_again_and_unmounted() {
    for (name, plan) in plans() {
        let host = FakeHost::new();
        let mounted = mount(&host, &plan, &features()).unwrap_or_else(|error| {
            panic!("{name}: {error}: {:?}", std::error::Error::source(&error))
        });
        assert_eq!(host.mounted(), std::slice::from_ref(&plan.target), "{name}");
        assert_eq!(mounted.aufs_id.is_some(), plan.backend == Backend::Aufs);
        assert_eq!(verify(&host, &plan).unwrap(), mounted, "{name}");
        assert_eq!(unmount(&host, &[&plan.target], PATIENCE).unwrap(), 1);
        assert_eq!(host.mounted(), Vec::<PathBuf>::new(), "{name}");
        assert_eq!(host.superblocks(), 0, "{name}");
        assert!(matches!(
            verify(&host, &plan),
            Err(VerifyError::NotMounted { .. })
        ));
        assert_eq!(unmount(&host, &[&plan.target], PATIENCE).unwrap(), 0);
    }
}

#[test]
fn the_calls_of_an_aufs_mount_are_these_and_no_others() {
    let host = FakeHost::new();
    let plan = plan(Backend::Aufs, 1, false);
    mount(&host, &plan, &features()).unwrap();
    let (staging, target) = (plan.staging.clone(), plan.target.clone());
    let sysfs = |file: &str| PathBuf::from("/sys/fs/aufs").join(file);
    let unions = host.list(Path::new("/sys/fs/aufs")).unwrap();
    let union = unions[0].to_str().unwrap();
    let expected = [
        Call::Place(target.clone()),
        Call::Place(staging.clone()),
        Call::RemoveStale("/run/x/v".into()),
        Call::Mount(
            staging.clone(),
            MountCall::New {
                fs_type: "aufs",
                flags: MountFlags::volume(false),
                data: "br=/s/volumes/v/upper=rw:/s/diff/000=ro+wh,dio,acl,dirperm1,xino=/run/x/v"
                    .into(),
            },
        ),
        Call::Place(staging.clone()),
        Call::Filesystem(staging.clone()),
        Call::MountAt(staging.clone()),
        Call::Read(sysfs(&format!("{union}/br0"))),
        Call::Read(sysfs(&format!("{union}/br1"))),
        // One more than planned, which must not be there.
        Call::Read(sysfs(&format!("{union}/br2"))),
        Call::Mount(
            target.clone(),
            MountCall::Bind {
                source: staging.clone(),
                beneath: None,
            },
        ),
        Call::Place(target.clone()),
        Call::Filesystem(target),
        Call::Place(staging.clone()),
        Call::Place(staging.clone()),
        Call::Unmount(staging.clone()),
        Call::Place(staging),
    ];
    let calls = host.calls();
    assert_eq!(calls[..calls.len() - 1], expected);
}

#[test]
fn a_warm_overlay_mount_never_reads_the_mount_table() {
    let host = FakeHost::new();
    let plan = plan(Backend::Overlay, 2, false);
    mount(&host, &plan, &features()).unwrap();
    let target = plan.target.clone();
    let calls = host.calls();
    assert!(matches!(
        &calls[..],
        [
            Call::Place(a),
            Call::Mount(b, MountCall::Overlay(OverlayCall { interface: OverlayInterface::Appended, .. })),
            Call::Place(c),
            Call::Filesystem(d),
            Call::MountAt(e),
        ] if [a, b, c, d, e].into_iter().all(|path| *path == target)
    ));
}

#[test]
fn a_failure_of_any_call_leaves_nothing_behind() {
    for (name, plan) in plans() {
        let host = FakeHost::new();
        mount(&host, &plan, &features()).unwrap();
        let calls = host.calls();
        for (index, call) in calls.iter().enumerate() {
            for errno in [Errno::INVAL, Errno::NOMEM, Errno::NOSPC, Errno::IO] {
                let host = FakeHost::new();
                host.fail(|_| true, index, 1, errno);
                match mount(&host, &plan, &features()) {
                    Ok(_) => {
                        // Asking whether the staging path is free again, or
                        // which unions live, may fail without harm.
                        assert!(
                            matches!(
                                call,
                                Call::Place(_) | Call::List(_) | Call::Read(_) | Call::Unmount(_)
                            ),
                            "{name}: call {index} failed with {errno:?} unnoticed: {call:?}"
                        );
                        assert_eq!(host.mounted(), std::slice::from_ref(&plan.target));
                        verify(&host, &plan).unwrap();
                    }
                    Err(error) => {
                        assert!(error.is_undone(), "{name} {index}: {error}");
                        assert_eq!(
                            host.mounted(),
                            Vec::<PathBuf>::new(),
                            "{name}: call {index}, {call:?}, {errno:?}"
                        );
                        assert_eq!(host.superblocks(), 0);
                        mount(&host, &plan, &features()).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn a_union_that_is_not_as_planned_is_undone() {
    type Tamper = fn(&mut Vec<String>);
    let cases: [(&str, Tamper); 5] = [
        ("a branch is missing", |list| drop(list.pop())),
        ("a branch is extra", |list| {
            list.push("/s/diff/999=ro+wh".into())
        }),
        ("two are exchanged", |list| {
            let last = list.len() - 1;
            list.swap(last, last - 1);
        }),
        ("one is another", |list| {
            if let Some(last) = list.last_mut() {
                *last = last.replace("/s/diff/0", "/s/diff/1");
            }
        }),
        ("permissions differ", |list| {
            if let Some(last) = list.last_mut() {
                *last = last.replace("ro+wh", "ro");
            }
        }),
    ];
    for hidden in [false, true] {
        for (name, tamper) in cases {
            for backend in [Backend::Aufs, Backend::Overlay] {
                if backend == Backend::Overlay && name.starts_with("permissions") {
                    continue;
                }
                let host = FakeHost::new();
                if hidden {
                    host.hide_branches();
                }
                host.tamper_branches(tamper);
                let plan = plan(backend, 3, false);
                let error = mount(&host, &plan, &features()).unwrap_err();
                assert!(
                    matches!(error, MountError::Verify { .. }),
                    "{backend}: {name}: {error}"
                );
                assert_eq!(host.mounted(), Vec::<PathBuf>::new(), "{backend}: {name}");
                assert_eq!(host.superblocks(), 0);
            }
        }
    }
}

#[test]
fn wrong_flags_are_undone_whichever_they_are() {
    let right = MountFlags::volume(false);
    for (name, flags) in [
        (
            "suid",
            MountFlags {
                nosuid: false,
                ..right
            },
        ),
        (
            "dev",
            MountFlags {
                nodev: false,
                ..right
            },
        ),
        (
            "noexec",
            MountFlags {
                noexec: true,
                ..right
            },
        ),
        (
            "read-only",
            MountFlags {
                read_only: true,
                ..right
            },
        ),
    ] {
        for backend in [Backend::Aufs, Backend::Overlay] {
            let host = FakeHost::new();
            host.tamper_flags(flags);
            let error = mount(&host, &plan(backend, 2, false), &features()).unwrap_err();
            assert!(
                matches!(
                    error,
                    MountError::Verify {
                        source: VerifyError::Flags { .. },
                        ..
                    }
                ),
                "{backend} {name}: {error}"
            );
            assert_eq!(host.mounted(), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn a_module_that_hides_its_branches_from_sysfs_is_verified_too() {
    let host = FakeHost::new();
    host.hide_branches();
    let plan = plan(Backend::Aufs, 126, false);
    let mounted = mount(&host, &plan, &features()).unwrap();
    assert_eq!(verify(&host, &plan).unwrap(), mounted);
    assert!(host.calls().contains(&Call::MountAt(plan.staging)));
}

#[test]
fn a_union_that_somebody_else_is_mounting_is_not_touched() {
    let host = FakeHost::new();
    host.others_mount();
    let plan = plan(Backend::Aufs, 3, false);
    let mounted = mount(&host, &plan, &features()).unwrap();
    assert_eq!(verify(&host, &plan).unwrap(), mounted);
    assert!(host.calls().contains(&Call::MountAt(plan.staging)));
    assert_eq!(unmount(&host, &[&plan.target], PATIENCE).unwrap(), 1);
}

#[test]
fn a_busy_branch_is_read_again() {
    let host = FakeHost::new();
    let is_branch = |call: &Call| matches!(call, Call::Read(path) if path.file_name().is_some_and(|name| name == "br1"));
    host.fail(is_branch, 0, 7, Errno::BUSY);
    mount(&host, &plan(Backend::Aufs, 2, false), &features()).unwrap();
    let pauses = host.calls();
    let pauses = pauses.iter().filter(|call| matches!(call, Call::Pause(_)));
    assert_eq!(pauses.count(), 7);

    let host = FakeHost::new();
    host.fail(is_branch, 0, usize::MAX, Errno::BUSY);
    let error = mount(&host, &plan(Backend::Aufs, 2, false), &features()).unwrap_err();
    assert!(matches!(error, MountError::Verify { .. }), "{error}");
    assert_eq!(host.mounted(), Vec::<PathBuf>::new());
}

/// What a run does that is killed after these steps: it undoes nothing.
fn killed_after(host: &FakeHost, steps: &[MountStep]) {
    for step in steps {
        match step {
            MountStep::Call { at, call } => host.mount(at, call).unwrap(),
            MountStep::Release { at } => host.unmount(at).unwrap(),
            MountStep::Clear { .. }
            | MountStep::RemoveStale { .. }
            | MountStep::VerifyUnion { .. }
            | MountStep::VerifyBind { .. } => {}
        }
    }
}

#[test]
fn what_a_killed_run_left_at_the_staging_path_is_cleared() {
    for (name, plan) in plans() {
        let steps = plan.steps(&features()).unwrap();
        for end in 1..steps.len() {
            let host = FakeHost::new();
            killed_after(&host, &steps[..end]);
            // The retry, as the volume's owner does it.
            let both = [plan.target.as_path(), plan.staging.as_path()];
            if verify(&host, &plan).is_err() {
                unmount(&host, &both, PATIENCE).unwrap();
                mount(&host, &plan, &features()).unwrap();
                assert_eq!(host.mounted(), std::slice::from_ref(&plan.target));
            }
            verify(&host, &plan).unwrap();
            unmount(&host, &both, PATIENCE).unwrap();
            assert!(
                host.mounted().is_empty(),
                "{name}, killed after {end} steps"
            );
            assert_eq!(host.superblocks(), 0, "{name}, killed after {end} steps");

            // Unpublished without a retry.
            let host = FakeHost::new();
            killed_after(&host, &steps[..end]);
            unmount(&host, &both, PATIENCE).unwrap();
            assert!(
                host.mounted().is_empty(),
                "{name}, killed after {end} steps"
            );
            assert_eq!(host.superblocks(), 0, "{name}, killed after {end} steps");

            // Only the target was taken down, by something else.
            let host = FakeHost::new();
            killed_after(&host, &steps[..end]);
            while host.unmount(&plan.target).is_ok() {}
            mount(&host, &plan, &features()).unwrap();
            assert_eq!(host.mounted(), std::slice::from_ref(&plan.target));
        }
    }
}

#[test]
fn an_occupied_target_is_left_alone() {
    let host = FakeHost::new();
    let plan = plan(Backend::Overlay, 2, false);
    mount(&host, &plan, &features()).unwrap();
    let error = mount(&host, &plan, &features()).unwrap_err();
    assert!(matches!(error, MountError::Occupied { .. }));
    assert_eq!(host.mounted(), std::slice::from_ref(&plan.target));
    let host = FakeHost::new();
    host.remove(plan.target.clone());
    let error = mount(&host, &plan, &features()).unwrap_err();
    assert!(matches!(error, MountError::Target { .. }));
}

#[test]
fn an_undo_that_fails_is_told() {
    let host = FakeHost::new();
    let plan = plan(Backend::Aufs, 2, false);
    let is_bind = |call: &Call| matches!(call, Call::Mount(_, MountCall::Bind { .. }));
    host.fail(is_bind, 0, 1, Errno::NOMEM);
    host.fail(
        |call| matches!(call, Call::Unmount(_)),
        0,
        usize::MAX,
        Errno::BUSY,
    );
    let error = mount(&host, &plan, &features()).unwrap_err();
    assert!(!error.is_undone());
    assert!(matches!(
        error,
        MountError::NotUndone {
            undo: UnmountError::Busy { .. },
            source
        } if matches!(*source, MountError::Call { .. })
    ));
    host.heal();
    mount(&host, &plan, &features()).unwrap();
    assert_eq!(host.mounted(), [plan.target]);
}

#[test]
fn a_kernel_with_a_lower_branch_limit_is_told_apart() {
    let host = FakeHost::new();
    let mut features = features();
    features.aufs.branch_limit = 511;
    let error = mount(&host, &plan(Backend::Aufs, 200, false), &features).unwrap_err();
    assert!(
        matches!(error, MountError::BranchLimit { count: 201, .. }),
        "{error}"
    );
    assert_eq!(host.mounted(), Vec::<PathBuf>::new());
}

#[test]
fn a_busy_target_is_waited_for_within_the_given_time() {
    let host = FakeHost::new();
    let plan = plan(Backend::Overlay, 2, false);
    mount(&host, &plan, &features()).unwrap();
    let is_unmount = |call: &Call| matches!(call, Call::Unmount(_));
    host.fail(is_unmount, 0, 5, Errno::BUSY);
    assert_eq!(unmount(&host, &[&plan.target], PATIENCE).unwrap(), 1);

    mount(&host, &plan, &features()).unwrap();
    host.clear_calls();
    host.fail(is_unmount, 0, usize::MAX, Errno::BUSY);
    let error = unmount(&host, &[&plan.target], PATIENCE).unwrap_err();
    assert!(matches!(error, UnmountError::Busy { waited, .. } if waited == PATIENCE));
    let waited: Duration = host
        .calls()
        .iter()
        .map(|call| match call {
            Call::Pause(time) => *time,
            _ => Duration::ZERO,
        })
        .sum();
    assert_eq!(waited, PATIENCE);
    assert_eq!(host.mounted(), [plan.target]);
}

#[test]
fn every_mount_stacked_at_the_target_is_taken_down() {
    let host = FakeHost::new();
    let plan = plan(Backend::Overlay, 2, false);
    let steps = plan.steps(&features()).unwrap();
    for _ in 0..3 {
        if let MountStep::Call { at, call } = &steps[0] {
            host.mount(at, call).unwrap();
        }
    }
    assert_eq!(unmount(&host, &[&plan.target], PATIENCE).unwrap(), 3);
    assert_eq!(host.superblocks(), 0);
}

#[test]
fn a_union_that_is_held_elsewhere_is_not_released() {
    let host = FakeHost::new();
    let plan = plan(Backend::Aufs, 2, false);
    mount(&host, &plan, &features()).unwrap();
    host.hold(&plan.target);
    let error = unmount(&host, &[&plan.target], PATIENCE).unwrap_err();
    assert!(
        matches!(error, UnmountError::Lingering { waited, .. } if waited == PATIENCE),
        "{error}"
    );
    host.let_go();
    assert_eq!(unmount(&host, &[&plan.target], PATIENCE).unwrap(), 0);
}

#[test]
fn a_broken_mount_is_unmounted_all_the_same() {
    let host = FakeHost::new();
    let plan = plan(Backend::Overlay, 2, false);
    mount(&host, &plan, &features()).unwrap();
    host.fail(
        |call| matches!(call, Call::Place(_) | Call::Filesystem(_)),
        0,
        2,
        Errno::STALE,
    );
    assert_eq!(unmount(&host, &[&plan.target], PATIENCE).unwrap(), 1);
    assert_eq!(host.mounted(), Vec::<PathBuf>::new());
}

#[test]
fn an_absent_target_is_unmounted_already() {
    let host = FakeHost::new();
    host.remove("/pods/p/mount");
    assert_eq!(
        unmount(&host, &[Path::new("/pods/p/mount")], PATIENCE).unwrap(),
        0
    );
    assert!(!host.calls().iter().any(Call::is_change));
}

#[test]
fn another_mount_at_the_target_is_no_match() {
    let host = FakeHost::new();
    let aufs = plan(Backend::Aufs, 2, false);
    mount(&host, &aufs, &features()).unwrap();
    let overlay = plan(Backend::Overlay, 2, false);
    assert!(matches!(
        verify(&host, &overlay),
        Err(VerifyError::Type { .. })
    ));
    let mut other = aufs.clone();
    other.branches.reverse();
    assert!(matches!(
        verify(&host, &other),
        Err(VerifyError::Branch { index: 1, .. })
    ));
    let mut read_only = aufs.clone();
    read_only.read_only = true;
    read_only.writable = None;
    assert!(matches!(
        verify(&host, &read_only),
        Err(VerifyError::Flags { .. })
    ));
    let mut other = aufs;
    other.xino = Some("/run/x/other".into());
    assert!(matches!(
        verify(&host, &other),
        Err(VerifyError::Option { .. })
    ));
}
