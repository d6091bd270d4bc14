//! A read-only volume of a single branch: a bind mount of the branch.

use super::{MountPlan, MountStep, PlanError};
use crate::host::{Host, MountCall};
use crate::union::VerifyError;
use std::path::Path;

pub(super) fn steps(plan: &MountPlan) -> Result<Vec<MountStep>, PlanError> {
    let [branch] = plan.branches.as_slice() else {
        return Err(PlanError::NotBindable);
    };
    // A bind shows the branch's own files, whose labels it cannot change.
    if !plan.read_only || plan.label.is_some() {
        return Err(PlanError::NotBindable);
    }
    let at = || plan.staging.clone();
    Ok(plan.staged(vec![
        MountStep::Call {
            at: at(),
            call: MountCall::Bind {
                source: branch.clone(),
                beneath: None,
            },
        },
        MountStep::Call {
            at: at(),
            call: MountCall::AddFlags {
                flags: plan.flags(),
            },
        },
        // Else what is mounted in one volume would be in all of the branch, and in
        // the store.
        MountStep::Call {
            at: at(),
            call: MountCall::Private,
        },
    ]))
}

/// Whether a mount whose root is `root` shows this branch. It is named from the
/// root of its filesystem, so a mount point of that is missing in front, and a
/// subvolume or what the store is a bind mount of is there instead: what both
/// have is the branch's own name and that of the directory of branches.
pub(super) fn is_of(branch: &Path, root: &Path) -> bool {
    let root = root.strip_prefix("/").unwrap_or(root);
    let name = |path: &Path| path.file_name().map(ToOwned::to_owned);
    let parent = |path: &Path| path.parent().and_then(name);
    // A whole filesystem is no branch, and any path ends with nothing.
    name(root).is_some()
        && (branch.ends_with(root) || name(root) == name(branch) && parent(root) == parent(branch))
}

/// Whether `at` shows the branch itself, or with `inside` a directory of the
/// same filesystem.
pub(super) fn verify(
    host: &dyn Host,
    plan: &MountPlan,
    at: &Path,
    inside: bool,
) -> Result<(), VerifyError> {
    let place = |path: &Path| {
        host.place(path).map_err(|source| VerifyError::Inspect {
            path: path.to_path_buf(),
            source,
        })
    };
    let shown = place(at)?;
    for branch in &plan.branches {
        let branch_place = place(branch)?;
        if shown.device != branch_place.device || (!inside && shown.inode != branch_place.inode) {
            return Err(VerifyError::OtherDirectory {
                at: at.to_path_buf(),
                expected: branch.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::MountFlags;
    use crate::union::Backend;
    use crate::union::tests::{features, plan};

    #[test]
    fn the_flags_are_set_before_the_target_shows_anything() {
        let staging = || "/s/volumes/v/staging".into();
        let target = || "/pods/p/mount".into();
        assert_eq!(
            plan(Backend::Bind, 1, true).steps(&features()).unwrap(),
            vec![
                MountStep::Clear { at: staging() },
                MountStep::Call {
                    at: staging(),
                    call: MountCall::Bind {
                        source: "/s/diff/000".into(),
                        beneath: None
                    },
                },
                MountStep::Call {
                    at: staging(),
                    call: MountCall::AddFlags {
                        flags: MountFlags {
                            read_only: true,
                            nosuid: true,
                            nodev: true,
                            noexec: false
                        }
                    },
                },
                MountStep::Call {
                    at: staging(),
                    call: MountCall::Private,
                },
                MountStep::VerifyUnion { at: staging() },
                MountStep::Call {
                    at: target(),
                    call: MountCall::Bind {
                        source: staging(),
                        beneath: None
                    },
                },
                MountStep::VerifyBind {
                    at: target(),
                    of: staging()
                },
                MountStep::Release { at: staging() },
            ]
        );
    }

    #[test]
    fn a_branch_is_recognised_from_the_root_of_its_filesystem() {
        let branch = Path::new("/var/lib/aufs-csi/diff/00ff");
        for (root, is, why) in [
            (
                "/var/lib/aufs-csi/diff/00ff",
                true,
                "on the root filesystem",
            ),
            ("/aufs-csi/diff/00ff", true, "/var/lib is a filesystem"),
            ("/diff/00ff", true, "the store is one"),
            ("/00ff", true, "its branches are"),
            ("/@/var/lib/aufs-csi/diff/00ff", true, "in a subvolume"),
            ("/disk/store/diff/00ff", true, "the store is a bind mount"),
            ("/", false, "a filesystem as a whole"),
            ("/var/lib/aufs-csi/diff/00fe", false, "another branch"),
            ("/var/lib/aufs-csi/diff", false, "all branches"),
            ("/home/00ff", false, "not in a directory of branches"),
        ] {
            assert_eq!(is_of(branch, Path::new(root)), is, "{root}: {why}");
        }
    }

    #[test]
    fn what_a_bind_cannot_do_is_refused() {
        let writable = plan(Backend::Bind, 1, false);
        let several = plan(Backend::Bind, 2, true);
        let mut labelled = plan(Backend::Bind, 1, true);
        labelled.label = Some("system_u:object_r:container_file_t:s0".into());
        for plan in [writable, several, labelled] {
            assert_eq!(plan.steps(&features()), Err(PlanError::NotBindable));
        }
    }
}
