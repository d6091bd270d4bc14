//! AUFS: a plan as option strings in pages, and the comparison of what the
//! kernel says a union is with what was planned.
//!
//! The kernel's parser is unforgiving in ways that lose layers silently: text
//! beyond a page is cut, an unknown permission word means plain `ro` (which
//! ignores whiteouts), an empty token ends the list, and more than 84 entries
//! in one call have crashed a kernel. So each call stays well inside the
//! limits, and every branch is read back.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Features, MountPlan, MountStep, PlanError, VerifyError};
use crate::host::{Host, MountCall, MountEntry};

/// Most options plus branches in one mount call. The kernel's table has 84
/// slots for pages of 4 KiB, and overrunning it ended in an oops on Linux 6.1.
pub const CALL_ENTRIES_MAX: usize = 64;

/// Branches of one union where the kernel does not tell its limit: the
/// smallest one that it can be built with.
pub const BRANCH_LIMIT_DEFAULT: usize = 127;

/// Magic number of the filesystem in `statfs(2)`.
pub(super) const MAGIC: u64 = 0x6175_6673;

/// Where the kernel describes its unions.
const SYSFS: &str = "/sys/fs/aufs";

/// Attempts to read a branch while something else holds the union's lock.
const READ_ATTEMPTS: u32 = 200;
/// Time between them.
const READ_PAUSE: Duration = Duration::from_millis(5);

/// Permission word of the read-only branches: `ro` alone ignores whiteouts.
const LOWER: &str = "ro+wh";

pub(super) fn steps(plan: &MountPlan, features: &Features) -> Result<Vec<MountStep>, PlanError> {
    let xino = plan.xino.as_ref().ok_or(PlanError::NoXino)?;
    let branches = branches(plan, features);
    if branches.len() > features.aufs.branch_limit {
        return Err(PlanError::TooManyBranches {
            count: branches.len(),
            limit: features.aufs.branch_limit,
        });
    }
    let (first, further) = pages(plan, features, &branches, xino)?;
    let flags = plan.flags();
    let call = |call| MountStep::Call {
        at: plan.staging.clone(),
        call,
    };
    let mut build = vec![
        // The path is the volume's own, so no other mount is using it: the
        // kernels that raced over a shared name need no lock here.
        MountStep::RemoveStale { path: xino.clone() },
        call(MountCall::New {
            fs_type: "aufs",
            flags,
            data: first,
        }),
    ];
    build.extend(
        further
            .into_iter()
            .map(|data| call(MountCall::Remount { flags, data })),
    );
    Ok(plan.staged(build))
}

/// The branches with their permission words, top first, as the kernel is told
/// and as it tells.
fn branches(plan: &MountPlan, features: &Features) -> Vec<(PathBuf, &'static str)> {
    let upper = plan.writable.iter().map(|writable| {
        let permission = match writable.memory && features.aufs.icexusr {
            true => "rw+icexusr",
            false => "rw",
        };
        (writable.upper.clone(), permission)
    });
    let lower = plan.branches.iter().map(|path| (path.clone(), LOWER));
    upper.chain(lower).collect()
}

/// The option strings: of the mount, and of the remounts that append what it
/// had no room for.
fn pages(
    plan: &MountPlan,
    features: &Features,
    branches: &[(PathBuf, &'static str)],
    xino: &Path,
) -> Result<(String, Vec<String>), PlanError> {
    // The label is the last option of each page, for it may hold commas.
    let label = match &plan.label {
        Some(label) => format!(",context=\"{label}\""),
        None => String::new(),
    };
    let dirperm1 = if features.aufs.dirperm1 {
        ",dirperm1"
    } else {
        ""
    };
    // AUFS lists access control lists in any case, and without the option neither
    // shows nor obeys them. A kernel that has none ignores it (`fsctx.c`).
    let suffix = format!(",dio,acl{dirperm1},xino={}{label}", text(xino));
    let label_options = usize::from(plan.label.is_some());
    let options = 3 + usize::from(features.aufs.dirperm1) + label_options;
    let mut queue = branches
        .iter()
        .map(|(path, permission)| (path, format!("{}={permission}", text(path))))
        .peekable();

    let page = features.page_size.saturating_sub(1);
    let first_room = Room {
        bytes: page.saturating_sub("br=".len() + suffix.len()),
        entries: CALL_ENTRIES_MAX - options,
    };
    let first = first_room.take(&mut queue, "", ':')?;
    let first = format!("br={first}{suffix}");

    let further_room = Room {
        bytes: page.saturating_sub(label.len()),
        entries: CALL_ENTRIES_MAX - label_options,
    };
    let mut further = Vec::new();
    while queue.peek().is_some() {
        let appended = further_room.take(&mut queue, "append=", ',')?;
        further.push(format!("{appended}{label}"));
    }
    Ok((first, further))
}

/// What one call has room for.
struct Room {
    bytes: usize,
    entries: usize,
}

impl Room {
    /// Takes entries off the queue while they fit, and joins them. At least
    /// one, or an error.
    fn take<'a>(
        &self,
        queue: &mut std::iter::Peekable<impl Iterator<Item = (&'a PathBuf, String)>>,
        prefix: &str,
        separator: char,
    ) -> Result<String, PlanError> {
        let mut joined = String::new();
        let mut entries = 0;
        while let Some((path, entry)) = queue.peek() {
            let separators = usize::from(entries > 0);
            let bytes = separators + prefix.len() + entry.len();
            if entries == self.entries || joined.len() + bytes > self.bytes {
                if entries == 0 {
                    return Err(PlanError::EntryTooLong {
                        path: (*path).clone(),
                        bytes,
                        budget: self.bytes,
                    });
                }
                break;
            }
            if entries > 0 {
                joined.push(separator);
            }
            joined.push_str(prefix);
            joined.push_str(entry);
            entries += 1;
            queue.next();
        }
        Ok(joined)
    }
}

/// A path as text; the plan's validation left only ASCII.
fn text(path: &Path) -> std::borrow::Cow<'_, str> {
    path.to_string_lossy()
}

/// The id of a union, from its mount options: the only safe way to find out
/// which union of `/sys/fs/aufs` is at a mount point.
///
/// Reading a file there of a union that somebody else is still mounting, or
/// unmounting, **crashes the kernel**: the directory is shown while it is not
/// connected to the superblock (seen on Linux 6.1, a null pointer in
/// `sysaufs_si_show`). So no file below `/sys/fs/aufs/si_<id>` is ever read
/// unless that very union is held mounted by the caller. What appeared since an
/// earlier look does not tell either, not even if it is one name alone: the id
/// is made of an address, which may have been that of a union that just ended.
pub(super) fn id_of(entry: &MountEntry) -> Option<String> {
    let id = std::str::from_utf8(entry.option("si")?).ok()?;
    let hexadecimal = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    hexadecimal.then(|| id.to_owned())
}

/// Whether the union `id` still lives anywhere on the node.
pub(super) fn lives(host: &dyn Host, id: &str) -> io::Result<bool> {
    match host.list(&Path::new(SYSFS).join(format!("si_{id}"))) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a mount is of this plan: by the path of its xino file, which is one
/// volume's alone, or where that is not shown (AUFS shows it only where it is
/// not the default of the writable branch's filesystem) by its id. Where that is
/// not known either, because the process died before it wrote it down, the table
/// does not tell, and a union of AUFS at the volume's target is taken for its own.
pub(super) fn is_of(plan: &MountPlan, id: Option<&str>, entry: &MountEntry) -> bool {
    match (&plan.xino, entry.option("xino"), id) {
        (Some(xino), Some(found), _) => same_path(xino, found, Paths::Suffix),
        (_, _, Some(id)) => id_of(entry).as_deref() == Some(id),
        (_, _, None) => true,
    }
}

/// How a branch's path may be reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paths {
    /// By this run of the program: exactly as planned.
    Exact,
    /// Perhaps by an earlier run in another container, whose mounts are gone:
    /// the kernel then prints paths from the root of those mounts, so the
    /// planned path may have more in front.
    Suffix,
}

/// Compares the options of a union with the plan, as far as they are shown.
pub(super) fn verify_options(
    plan: &MountPlan,
    features: Option<&Features>,
    entry: &MountEntry,
    paths: Paths,
) -> Result<(), VerifyError> {
    let mut wanted = vec!["dio"];
    if features.is_some_and(|features| features.aufs.dirperm1) {
        wanted.push("dirperm1");
    }
    for key in wanted {
        if !entry.has_option(key) {
            return Err(VerifyError::option(key, None, entry));
        }
    }
    for key in ["shwh", "noplink", "noxino", "udba", "dirren", "sum"] {
        if entry.has_option(key) {
            return Err(VerifyError::option(key, None, entry));
        }
    }
    if let (Some(xino), Some(found)) = (&plan.xino, entry.option("xino"))
        && !same_path(xino, found, paths)
    {
        return Err(VerifyError::option("xino", Some(xino), entry));
    }
    Ok(())
}

/// Compares the branches of the union `id` with the plan, one by one.
pub(super) fn verify_branches(
    host: &dyn Host,
    plan: &MountPlan,
    features: Option<&Features>,
    id: &str,
    entry: Option<&MountEntry>,
    paths: Paths,
) -> Result<(), VerifyError> {
    let planned: Vec<(PathBuf, Vec<&str>)> = match features {
        Some(features) => branches(plan, features)
            .into_iter()
            .map(|(path, permission)| (path, vec![permission]))
            .collect(),
        // The features of the run that mounted it are not known any more.
        None => plan
            .writable
            .iter()
            .map(|writable| (writable.upper.clone(), vec!["rw", "rw+icexusr"]))
            .chain(plan.branches.iter().map(|path| (path.clone(), vec![LOWER])))
            .collect(),
    };
    let found = match entry.and_then(listed_branches) {
        Some(found) => found,
        None => read_branches(host, id, planned.len())?,
    };
    if found.len() != planned.len() {
        return Err(VerifyError::BranchCount {
            expected: planned.len(),
            found: found.len(),
        });
    }
    for (index, ((path, permissions), found)) in planned.iter().zip(&found).enumerate() {
        let equal = found
            .iter()
            .rposition(|byte| *byte == b'=')
            .is_some_and(|at| {
                let (found_path, found_permission) = (&found[..at], &found[at + 1..]);
                permissions
                    .iter()
                    .any(|permission| permission.as_bytes() == found_permission)
                    && same_path(path, found_path, paths)
            });
        if !equal {
            return Err(VerifyError::Branch {
                index,
                expected: format!("{}={}", path.display(), permissions.join(" or ")),
                found: String::from_utf8_lossy(found).into_owned(),
            });
        }
    }
    Ok(())
}

fn same_path(planned: &Path, found: &[u8], paths: Paths) -> bool {
    if planned.as_os_str().as_bytes() == found {
        return true;
    }
    let found = PathBuf::from(OsString::from_vec(found.to_vec()));
    match (paths, found.strip_prefix("/")) {
        (Paths::Suffix, Ok(relative)) => {
            !relative.as_os_str().is_empty() && planned.ends_with(relative)
        }
        _ => false,
    }
}

/// The branches in the mount options, where the module was loaded with
/// `brs=0`; otherwise they are in sysfs.
fn listed_branches(entry: &MountEntry) -> Option<Vec<Vec<u8>>> {
    let options = entry.options.as_bytes();
    let mut tokens = options.split(|byte| *byte == b',');
    let list = tokens.find_map(|token| token.strip_prefix(b"br:"))?;
    Some(
        list.split(|byte| *byte == b':')
            .map(<[u8]>::to_vec)
            .collect(),
    )
}

fn read_branches(host: &dyn Host, id: &str, planned: usize) -> Result<Vec<Vec<u8>>, VerifyError> {
    let directory = PathBuf::from(format!("{SYSFS}/si_{id}"));
    let mut found = Vec::new();
    // One more than planned is read, so that an extra branch shows.
    for index in 0..=planned {
        let path = directory.join(format!("br{index}"));
        match read_patiently(host, &path) {
            Ok(line) => found.push(line.trim_ascii_end().to_vec()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(source) => return Err(VerifyError::Inspect { path, source }),
        }
    }
    Ok(found)
}

/// The branches of the union that is mounted at `at`, whoever mounted it; none
/// where that is not to be found out without danger.
pub(super) fn branches_at(
    host: &dyn Host,
    at: &Path,
    entry: &MountEntry,
) -> io::Result<Option<Vec<Vec<u8>>>> {
    use std::os::unix::fs::MetadataExt;
    if let Some(listed) = listed_branches(entry) {
        return Ok(Some(listed));
    }
    let Some(id) = id_of(entry) else {
        return Ok(None);
    };
    // Open, it cannot be unmounted; and it is the one in the table, for no other
    // has its number as long as it lives. So its files in sysfs may be read.
    let held = match std::fs::File::open(at) {
        Ok(held) => held,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let number = held.metadata()?.dev();
    if (rustix::fs::major(number), rustix::fs::minor(number)) != entry.device {
        return Ok(None);
    }
    match read_branches(host, &id, usize::MAX - 1) {
        Ok(found) if found.is_empty() => Ok(None),
        Ok(found) => Ok(Some(found)),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Reads a file of the union, which answers `EBUSY` while a remount or another
/// writer holds the union's lock.
fn read_patiently(host: &dyn Host, path: &Path) -> io::Result<Vec<u8>> {
    let mut attempts = 0;
    loop {
        match host.read(path) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && attempts < READ_ATTEMPTS =>
            {
                attempts += 1;
                host.pause(READ_PAUSE);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::MountFlags;
    use crate::union::Backend;
    use crate::union::tests::{features, plan};
    use proptest::prelude::*;

    /// The option strings of a plan: the mount's and the remounts'.
    fn data(plan: &MountPlan, features: &Features) -> Vec<String> {
        let steps = plan.steps(features).unwrap();
        steps
            .into_iter()
            .filter_map(|step| match step {
                MountStep::Call {
                    call: MountCall::New { data, .. } | MountCall::Remount { data, .. },
                    ..
                } => Some(data),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_writable_union_is_built_verified_and_then_bound() {
        let at = || PathBuf::from("/s/volumes/v/staging");
        let target = || PathBuf::from("/pods/p/mount");
        assert_eq!(
            plan(Backend::Aufs, 2, false).steps(&features()).unwrap(),
            vec![
                MountStep::Clear { at: at() },
                MountStep::RemoveStale {
                    path: "/run/x/v".into()
                },
                MountStep::Call {
                    at: at(),
                    call: MountCall::New {
                        fs_type: "aufs",
                        flags: MountFlags {
                            read_only: false,
                            nosuid: true,
                            nodev: true,
                            noexec: false
                        },
                        data: "br=/s/volumes/v/upper=rw:/s/diff/000=ro+wh:/s/diff/001=ro+wh,\
                               dio,acl,dirperm1,xino=/run/x/v"
                            .into(),
                    },
                },
                MountStep::VerifyUnion { at: at() },
                MountStep::Call {
                    at: target(),
                    call: MountCall::Bind {
                        source: at(),
                        beneath: None
                    },
                },
                MountStep::VerifyBind {
                    at: target(),
                    of: at()
                },
                MountStep::Release { at: at() },
            ]
        );
    }

    #[test]
    fn options_follow_the_features_and_the_plan() {
        let mut old = features();
        old.aufs.dirperm1 = false;
        old.aufs.icexusr = false;
        let mut memory = plan(Backend::Aufs, 1, false);
        memory.writable.as_mut().unwrap().memory = true;
        let mut labelled = plan(Backend::Aufs, 1, true);
        labelled.label = Some("system_u:object_r:container_file_t:s0:c1,c2".into());
        let cases = [
            (
                plan(Backend::Aufs, 1, false),
                &old,
                "br=/s/volumes/v/upper=rw:/s/diff/000=ro+wh,dio,acl,xino=/run/x/v",
            ),
            (
                memory.clone(),
                &features(),
                "br=/s/volumes/v/upper=rw+icexusr:/s/diff/000=ro+wh,dio,acl,dirperm1,xino=/run/x/v",
            ),
            (
                memory,
                &old,
                "br=/s/volumes/v/upper=rw:/s/diff/000=ro+wh,dio,acl,xino=/run/x/v",
            ),
            (
                plan(Backend::Aufs, 2, true),
                &features(),
                "br=/s/diff/000=ro+wh:/s/diff/001=ro+wh,dio,acl,dirperm1,xino=/run/x/v",
            ),
            (
                labelled,
                &features(),
                "br=/s/diff/000=ro+wh,dio,acl,dirperm1,xino=/run/x/v,\
                 context=\"system_u:object_r:container_file_t:s0:c1,c2\"",
            ),
        ];
        for (plan, features, expected) in cases {
            assert_eq!(data(&plan, features), [expected]);
        }
    }

    #[test]
    fn many_branches_go_in_pages_with_the_flags_and_label_repeated() {
        let mut plan = plan(Backend::Aufs, 126, true);
        plan.label = Some("a:b:c:s0:c1,c2,c3,c4,c5,c6".into());
        let steps = plan.steps(&features()).unwrap();
        let mut remounts = 0;
        for step in &steps {
            if let MountStep::Call {
                at,
                call: MountCall::Remount { flags, data },
            } = step
            {
                remounts += 1;
                assert_eq!(at, &plan.staging);
                assert_eq!(*flags, MountFlags::volume(true));
                assert!(data.starts_with("append=/s/diff/"), "{data}");
                assert!(data.ends_with(",context=\"a:b:c:s0:c1,c2,c3,c4,c5,c6\""));
            }
        }
        // 60 branches beside four options, then 63 beside one, then the rest.
        assert_eq!(remounts, 2);
    }

    #[test]
    fn a_plan_beyond_the_limits_is_refused() {
        assert!(plan(Backend::Aufs, 126, false).steps(&features()).is_ok());
        assert_eq!(
            plan(Backend::Aufs, 127, false).steps(&features()),
            Err(PlanError::TooManyBranches {
                count: 128,
                limit: 127
            })
        );
        let mut bare = plan(Backend::Aufs, 1, false);
        bare.xino = None;
        assert_eq!(bare.steps(&features()), Err(PlanError::NoXino));
        for position in [0, 1] {
            let mut long = plan(Backend::Aufs, 2, true);
            long.branches[position] = format!("/{}", "a".repeat(4089)).into();
            assert!(
                matches!(
                    long.steps(&features()),
                    Err(PlanError::EntryTooLong { bytes, budget, .. }) if bytes > budget
                ),
                "{position}"
            );
        }
    }

    /// A reader of option strings that shares nothing with the builder:
    /// branches with permissions in order, after `br=` and `append=` alike.
    fn read_back(pages: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        for page in pages {
            for token in page.split(',') {
                if let Some(list) = token.strip_prefix("br=") {
                    found.extend(list.split(':').map(str::to_owned));
                } else if let Some(entry) = token.strip_prefix("append=") {
                    found.push(entry.to_owned());
                }
            }
        }
        found
    }

    proptest! {
        /// Path lengths sweep over the page boundary, so that it would fall on
        /// every character of an entry if it fell anywhere.
        #[test]
        fn every_page_is_safe_and_none_loses_a_branch(
            count in 1..=126_usize,
            length in 8..400_usize,
            step in 0..3_usize,
            xino_length in 1..200_usize,
            read_only in any::<bool>(),
            dirperm1 in any::<bool>(),
            labelled in any::<bool>(),
        ) {
            let mut features = features();
            features.aufs.dirperm1 = dirperm1;
            let mut plan = plan(Backend::Aufs, count, read_only);
            plan.branches = (0..count)
                .map(|n| format!("/{}{n:05}", "b".repeat(length + n * step)).into())
                .collect();
            plan.xino = Some(format!("/run/{}", "x".repeat(xino_length)).into());
            plan.label = labelled.then(|| "u:r:t:s0:c1,c2".into());
            let pages = data(&plan, &features);

            let mut expected: Vec<String> = plan
                .branches
                .iter()
                .map(|path| format!("{}=ro+wh", path.display()))
                .collect();
            if !read_only {
                expected.insert(0, "/s/volumes/v/upper=rw".into());
            }
            prop_assert_eq!(read_back(&pages), expected);
            for page in &pages {
                prop_assert!(page.len() <= 4095);
                // Without the label, whose comma is quoted.
                let plain = page.split(",context=").next().unwrap();
                for bad in [",,", "::", ":,", ",:", "=,", "=:"] {
                    prop_assert!(!plain.contains(bad), "{} in {}", bad, plain);
                }
                prop_assert!(!plain.ends_with([',', ':']));
                prop_assert!(!plain.starts_with([',', ':']));
                let entries = plain.split([',', ':']).count() + usize::from(labelled);
                prop_assert!(entries <= CALL_ENTRIES_MAX, "{} entries", entries);
            }
            // No page ends while the next entry would still fit both limits.
            for pair in pages.windows(2) {
                let next = pair[1].split(',').next().unwrap();
                let entries = pair[0].split([',', ':']).count();
                prop_assert!(
                    pair[0].len() + next.len() + 1 > 4095 - 7
                        || entries + 1 > CALL_ENTRIES_MAX - 1,
                    "a page ends early"
                );
            }
        }
    }

    #[test]
    fn a_path_from_a_mount_that_is_gone_is_recognised_by_its_end() {
        let planned = Path::new("/var/lib/x/diff/0123");
        for (found, exact, suffix) in [
            ("/var/lib/x/diff/0123", true, true),
            ("/diff/0123", false, true),
            ("/0123", false, true),
            ("/123", false, false),
            ("/", false, false),
            ("", false, false),
            ("diff/0123", false, false),
            ("/other/0123", false, false),
        ] {
            let same = |paths| same_path(planned, found.as_bytes(), paths);
            assert_eq!(same(Paths::Exact), exact, "{found}");
            assert_eq!(same(Paths::Suffix), suffix, "{found}");
        }
    }
}
