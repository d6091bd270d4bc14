//! overlayfs: a plan as one call, and the comparison of the options that the
//! kernel reports with what was planned.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{FSCONFIG_VALUE_MAX, Features, MountPlan, MountStep, PlanError, VerifyError};
use crate::host::{MountCall, MountEntry, OverlayCall, OverlayInterface};

/// Most lower directories of one mount (`OVL_MAX_STACK`, Linux 4.19).
pub const LOWER_LIMIT: usize = 500;

/// Magic number of the filesystem in `statfs(2)`.
pub(super) const MAGIC: u64 = 0x794c_7630;
/// A directory that was named by its descriptor is reported so, and the number
/// means nothing any more.
const DESCRIPTOR: &[u8] = b"/proc/self/fd/";

/// Bytes of `/proc/self/fd/<n>` for descriptors of up to five digits, with its
/// colon.
const DESCRIPTOR_BYTES: usize = "/proc/self/fd/65535:".len();

pub(super) fn steps(plan: &MountPlan, features: &Features) -> Result<Vec<MountStep>, PlanError> {
    if plan.branches.len() > LOWER_LIMIT {
        return Err(PlanError::TooManyBranches {
            count: plan.branches.len(),
            limit: LOWER_LIMIT,
        });
    }
    if plan.branches.len() == 1 && plan.writable.is_none() {
        return Err(PlanError::SingleBranch);
    }
    let upper_work = plan
        .writable
        .as_ref()
        .map(|writable| (writable.upper.clone(), writable.work.clone()));
    let options = options(plan, features);
    let interface = interface(plan, features, &options)?;
    // A label in an option string stands between quotes, for it may hold
    // commas; alone in its own system call it does not.
    let options = match (interface, &plan.label) {
        (OverlayInterface::Appended, _) | (_, None) => options,
        (OverlayInterface::Joined | OverlayInterface::JoinedDescriptors, Some(label)) => options
            .into_iter()
            .map(|(key, value)| match key {
                "context" => (key, Some(format!("\"{label}\""))),
                _ => (key, value),
            })
            .collect(),
    };
    let call = MountStep::Call {
        at: plan.union_at().to_path_buf(),
        call: MountCall::Overlay(OverlayCall {
            interface,
            lower: plan.branches.clone(),
            upper_work,
            options,
            flags: plan.flags(),
        }),
    };
    if plan.sub_path.is_some() {
        return Ok(plan.staged(vec![call]));
    }
    Ok(vec![
        call,
        MountStep::VerifyUnion {
            at: plan.target.clone(),
        },
    ])
}

/// Every option whose default depends on how the kernel was built or loaded.
fn options(plan: &MountPlan, features: &Features) -> Vec<(&'static str, Option<String>)> {
    let text = |value: &str| Some(value.to_owned());
    let mut options = vec![
        // The writable layer stays a plain OCI layer: a renamed directory is
        // no reference to its old name, and a changed mode is no file without
        // its content. The pod sees EXDEV, as it does on AUFS.
        ("redirect_dir", text("nofollow")),
        ("metacopy", text("off")),
        // One device number and stable inode numbers where the inode numbers
        // of the filesystems leave room; never an error where they do not.
        ("xino", text("auto")),
    ];
    if plan.writable.is_some() {
        // Keeps hard links together on copy-up, and makes the kernel refuse a
        // writable layer that another mount uses.
        let index = if features.overlay.index { "on" } else { "off" };
        options.push(("index", text(index)));
        // Indexes every copied-up file, for NFS servers; some kernels are
        // built to do that by default.
        options.push(("nfs_export", text("off")));
        // Not `volatile`: a volume outlives a crash of the node, which that
        // option forbids.
    }
    if features.overlay.userxattr {
        options.push(("userxattr", None));
    }
    if let Some(label) = &plan.label {
        options.push(("context", Some(label.clone())));
    }
    options
}

fn interface(
    plan: &MountPlan,
    features: &Features,
    options: &[(&'static str, Option<String>)],
) -> Result<OverlayInterface, PlanError> {
    let writable = plan.writable.as_ref();
    let mut paths = plan
        .branches
        .iter()
        .chain(writable.map(|writable| &writable.upper))
        .chain(writable.map(|writable| &writable.work));
    let length = |path: &Path| path.as_os_str().len();
    if features.overlay.lowerdir_append && paths.all(|path| length(path) <= FSCONFIG_VALUE_MAX) {
        return Ok(OverlayInterface::Appended);
    }
    let limit = features.page_size.saturating_sub(1);
    let fixed = "lowerdir=".len()
        + writable.map_or(0, |writable| {
            ",upperdir=,workdir=".len() + length(&writable.upper) + length(&writable.work)
        })
        + options
            .iter()
            .map(|(key, value)| {
                // Two more for the quotes of a label.
                let value = value.as_ref().map_or(0, |value| 1 + value.len() + 2);
                1 + key.len() + value
            })
            .sum::<usize>();
    let joined = plan
        .branches
        .iter()
        .map(|path| length(path) + 1)
        .sum::<usize>()
        - 1;
    if fixed + joined <= limit {
        return Ok(OverlayInterface::Joined);
    }
    let bytes = fixed + plan.branches.len() * DESCRIPTOR_BYTES - 1;
    if bytes <= limit {
        return Ok(OverlayInterface::JoinedDescriptors);
    }
    Err(PlanError::OptionsTooLong { bytes, limit })
}

/// Compares the options of a union with the plan, as far as they are shown.
pub(super) fn verify_options(plan: &MountPlan, entry: &MountEntry) -> Result<(), VerifyError> {
    let lower = lower_directories(entry);
    if lower.len() != plan.branches.len() {
        return Err(VerifyError::BranchCount {
            expected: plan.branches.len(),
            found: lower.len(),
        });
    }
    for (index, (planned, found)) in plan.branches.iter().zip(&lower).enumerate() {
        let descriptor = found.starts_with(DESCRIPTOR);
        if !descriptor && planned.as_os_str().as_bytes() != *found {
            return Err(VerifyError::Branch {
                index,
                expected: planned.display().to_string(),
                found: String::from_utf8_lossy(found).into_owned(),
            });
        }
    }
    let writable = plan.writable.as_ref();
    for (key, planned) in [
        ("upperdir", writable.map(|writable| &writable.upper)),
        ("workdir", writable.map(|writable| &writable.work)),
    ] {
        let planned: Option<&PathBuf> = planned;
        if entry.option(key) != planned.map(|path| path.as_os_str().as_bytes()) {
            return Err(VerifyError::option(
                key,
                planned.map(PathBuf::as_path),
                entry,
            ));
        }
    }
    // Shown only where it differs from this kernel's default.
    for (key, planned) in [("redirect_dir", "nofollow"), ("metacopy", "off")] {
        // A mount without a writable layer never makes redirects, and kernels
        // differ in the word they report for that.
        let accepted =
            |found: &[u8]| found == planned.as_bytes() || (writable.is_none() && found == b"off");
        if entry.option(key).is_some_and(|found| !accepted(found)) {
            return Err(VerifyError::option(key, Some(Path::new(planned)), entry));
        }
    }
    if entry.has_option("volatile") {
        return Err(VerifyError::option("volatile", None, entry));
    }
    Ok(())
}

/// Whether a mount is of this plan: by its writable layer, which no other union
/// has, or without one by its branches.
pub(super) fn is_of(plan: &MountPlan, entry: &MountEntry) -> bool {
    match &plan.writable {
        Some(writable) => entry.option("upperdir") == Some(writable.upper.as_os_str().as_bytes()),
        None => {
            let lower = lower_directories(entry);
            let is_same = |(planned, found): (&PathBuf, &&[u8])| {
                found.starts_with(DESCRIPTOR) || planned.as_os_str().as_bytes() == *found
            };
            entry.option("upperdir").is_none()
                && lower.len() == plan.branches.len()
                && plan.branches.iter().zip(&lower).all(is_same)
        }
    }
}

/// Whether the lower directories were named by descriptors, which say nothing to
/// anybody else.
pub(super) fn is_by_descriptors(entry: &MountEntry) -> bool {
    lower_directories(entry)
        .iter()
        .any(|lower| lower.starts_with(DESCRIPTOR))
}

/// The lower directories that the kernel reports, top first: `lowerdir+` one by
/// one since Linux 6.8, joined by colons before.
fn lower_directories(entry: &MountEntry) -> Vec<&[u8]> {
    entry
        .option_pairs()
        .filter_map(|(key, value)| match key {
            b"lowerdir+" => Some(vec![value.unwrap_or_default()]),
            b"lowerdir" => Some(
                value
                    .unwrap_or_default()
                    .split(|byte| *byte == b':')
                    .collect(),
            ),
            _ => None,
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::MountFlags;
    use crate::union::Backend;
    use crate::union::tests::{features, plan};
    use proptest::prelude::*;

    fn call(plan: &MountPlan, features: &Features) -> OverlayCall {
        let steps = plan.steps(features).unwrap();
        let call = steps.into_iter().find_map(|step| match step {
            MountStep::Call {
                call: MountCall::Overlay(call),
                ..
            } => Some(call),
            _ => None,
        });
        call.unwrap()
    }

    fn legacy() -> Features {
        let mut features = features();
        features.overlay.lowerdir_append = false;
        features
    }

    #[test]
    fn a_writable_union_is_mounted_at_its_target_at_once() {
        let text = |value: &str| Some(value.to_owned());
        assert_eq!(
            plan(Backend::Overlay, 2, false).steps(&features()).unwrap(),
            vec![
                MountStep::Call {
                    at: "/pods/p/mount".into(),
                    call: MountCall::Overlay(OverlayCall {
                        interface: OverlayInterface::Appended,
                        lower: vec!["/s/diff/000".into(), "/s/diff/001".into()],
                        upper_work: Some(("/s/volumes/v/upper".into(), "/s/volumes/v/work".into())),
                        options: vec![
                            ("redirect_dir", text("nofollow")),
                            ("metacopy", text("off")),
                            ("xino", text("auto")),
                            ("index", text("on")),
                            ("nfs_export", text("off")),
                        ],
                        flags: MountFlags::volume(false),
                    }),
                },
                MountStep::VerifyUnion {
                    at: "/pods/p/mount".into()
                },
            ]
        );
    }

    #[test]
    fn a_directory_inside_is_bound_from_the_staging_path() {
        let mut plan = plan(Backend::Overlay, 2, true);
        plan.sub_path = Some("opt/tools".into());
        let steps = plan.steps(&features()).unwrap();
        let names: Vec<String> = steps
            .iter()
            .map(|step| match step {
                MountStep::Clear { at } => format!("clear {}", at.display()),
                MountStep::RemoveStale { path } => format!("remove {}", path.display()),
                MountStep::Call { at, call } => format!("{} {}", call.name(), at.display()),
                MountStep::VerifyUnion { at } => format!("verify {}", at.display()),
                MountStep::VerifyBind { at, .. } => format!("verify bind {}", at.display()),
                MountStep::Release { at } => format!("release {}", at.display()),
            })
            .collect();
        assert_eq!(
            names,
            [
                "clear /s/volumes/v/staging",
                "overlay mount /s/volumes/v/staging",
                "verify /s/volumes/v/staging",
                "bind mount /pods/p/mount",
                "verify bind /pods/p/mount",
                "release /s/volumes/v/staging",
            ]
        );
    }

    #[test]
    fn options_follow_the_features_and_the_plan() {
        let mut features = features();
        features.overlay.index = false;
        features.overlay.userxattr = true;
        let mut labelled = plan(Backend::Overlay, 2, false);
        labelled.label = Some("u:r:t:s0:c1,c2".into());
        let options = call(&labelled, &features).options;
        assert!(options.contains(&("index", Some("off".into()))));
        assert!(options.contains(&("userxattr", None)));
        assert_eq!(
            options.last(),
            Some(&("context", Some("u:r:t:s0:c1,c2".into())))
        );
        features.overlay.lowerdir_append = false;
        let options = call(&labelled, &features).options;
        assert_eq!(
            options.last(),
            Some(&("context", Some("\"u:r:t:s0:c1,c2\"".into())))
        );
        let read_only = call(&plan(Backend::Overlay, 2, true), &features);
        assert_eq!(read_only.upper_work, None);
        assert!(read_only.flags.read_only);
        assert!(!read_only.options.iter().any(|(key, _)| *key == "index"));
    }

    #[test]
    fn the_interface_follows_the_kernel_and_the_length() {
        let long = |length: usize, count: usize| {
            let mut plan = plan(Backend::Overlay, count, false);
            plan.branches = (0..count)
                .map(|n| format!("/{n:04}{}", "b".repeat(length - 5)).into())
                .collect();
            plan
        };
        use OverlayInterface::{Appended, Joined, JoinedDescriptors};
        for (features, length, count, expected) in [
            (features(), 60, 500, Appended),
            (features(), 255, 10, Appended),
            (features(), 256, 10, Joined),
            (features(), 256, 100, JoinedDescriptors),
            (legacy(), 60, 60, Joined),
            (legacy(), 60, 120, JoinedDescriptors),
            (legacy(), 200, 190, JoinedDescriptors),
        ] {
            let call = call(&long(length, count), &features);
            assert_eq!(call.interface, expected, "{count} of {length} bytes");
        }
        assert!(matches!(
            long(60, 230).steps(&legacy()),
            Err(PlanError::OptionsTooLong { bytes, limit: 4095 }) if bytes > 4095
        ));
        assert_eq!(
            long(60, 501).steps(&features()),
            Err(PlanError::TooManyBranches {
                count: 501,
                limit: 500
            })
        );
        assert_eq!(
            plan(Backend::Overlay, 1, true).steps(&features()),
            Err(PlanError::SingleBranch)
        );
        assert!(plan(Backend::Overlay, 1, false).steps(&features()).is_ok());
    }

    proptest! {
        /// Whatever interface is chosen, the text that it needs fits a page.
        #[test]
        fn a_joined_plan_fits_its_page(count in 1..=200_usize, length in 8..300_usize) {
            let mut plan = plan(Backend::Overlay, count, false);
            plan.branches = (0..count)
                .map(|n| format!("/{n:04}{}", "b".repeat(length)).into())
                .collect();
            if let Ok(steps) = plan.steps(&legacy()) {
                let Some(MountStep::Call { call: MountCall::Overlay(call), .. }) = steps.first()
                else { panic!("the first step is the mount") };
                let descriptor = "/proc/self/fd/65535".len();
                let entry = match call.interface {
                    OverlayInterface::Joined => length + 5,
                    OverlayInterface::JoinedDescriptors => descriptor,
                    OverlayInterface::Appended => panic!("this kernel has no lowerdir+"),
                };
                let options: usize = call
                    .options
                    .iter()
                    .map(|(key, value)| format!(",{key}={}", value.as_deref().unwrap_or("")).len())
                    .sum();
                let text = "lowerdir=".len()
                    + count * (entry + 1) - 1
                    + ",upperdir=/s/volumes/v/upper,workdir=/s/volumes/v/work".len()
                    + options;
                prop_assert!(text <= 4095, "{}", text);
                prop_assert_eq!(&call.lower, &plan.branches);
            } else {
                prop_assert!(count * 20 > 3700);
            }
        }
    }

    fn entry(options: &str) -> MountEntry {
        let line = format!("1 0 0:1 / /m rw - overlay overlay rw,{options}\n");
        crate::host::mountinfo::parse(line.as_bytes())
            .unwrap()
            .remove(0)
    }

    #[test]
    fn the_reported_options_are_compared() {
        let plan = plan(Backend::Overlay, 2, false);
        let dirs = "upperdir=/s/volumes/v/upper,workdir=/s/volumes/v/work";
        for good in [
            format!("lowerdir+=/s/diff/000,lowerdir+=/s/diff/001,{dirs}"),
            format!("lowerdir=/s/diff/000:/s/diff/001,{dirs},index=on,redirect_dir=nofollow"),
            format!("lowerdir=/proc/self/fd/7:/proc/self/fd/8,{dirs},metacopy=off"),
        ] {
            verify_options(&plan, &entry(&good)).unwrap();
        }
        for bad in [
            format!("lowerdir=/s/diff/000,{dirs}"),
            format!("lowerdir=/s/diff/001:/s/diff/000,{dirs}"),
            format!("lowerdir=/s/diff/000:/s/diff/001:/s/diff/002,{dirs}"),
            format!("lowerdir=/proc/self/fd/7,{dirs}"),
            format!("lowerdir+=/s/diff/000,lowerdir+=/s/diff/001x,{dirs}"),
            "lowerdir=/s/diff/000:/s/diff/001".to_owned(),
            "lowerdir=/s/diff/000:/s/diff/001,upperdir=/s/volumes/v/upper,workdir=/o".to_owned(),
            format!("lowerdir=/s/diff/000:/s/diff/001,{dirs},redirect_dir=on"),
            format!("lowerdir=/s/diff/000:/s/diff/001,{dirs},metacopy=on"),
            format!("lowerdir=/s/diff/000:/s/diff/001,{dirs},volatile"),
        ] {
            assert!(verify_options(&plan, &entry(&bad)).is_err(), "{bad}");
        }
    }
}
