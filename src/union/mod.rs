//! Unions: from a plan, which is data, to a mount that the kernel confirms.
//!
//! ```text
//! MountPlan + Features ──steps()──► [MountStep] ──execute()──► Mounted
//!        (pure, per backend: aufs, overlay, bind)    (verifies, or undoes all)
//! ```
//!
//! `probe` finds out the [`Features`] of the kernel and chooses a backend;
//! `release` takes mounts down again.
//!
//! # Invariants
//! - What is mounted at a plan's target is exactly the plan's union: AUFS and
//!   bind mounts are built at a private staging path, compared with the plan,
//!   and only then bound to the target; an overlay mount appears complete.
//! - Bound, not moved: `MS_MOVE` out of a shared mount is refused by the
//!   kernel, and the store may well lie in one. A bind keeps the flags of its
//!   source, so every copy that propagates to the host carries them too. (A
//!   bind made first and remounted read-only at the target would not do: flags
//!   do not propagate, and the host's copy would stay writable.)
//! - Nothing is ever unmounted lazily.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::{MountCall, MountEntry, MountFlags};

pub mod aufs;
mod bind;
mod execute;
pub mod overlay;
mod parts;
pub mod probe;
mod release;

pub use execute::{MountError, Mounted, VerifyError, execute, mount, verify};
pub use parts::parts;
pub use release::{UnmountError, detach, union_at, unmount, unmount_top, unmount_union};

/// Longest option value that `fsconfig(2)` takes, in bytes.
const FSCONFIG_VALUE_MAX: usize = 255;

/// How a union is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// AUFS.
    Aufs,
    /// overlayfs.
    Overlay,
    /// A read-only bind mount of the only branch.
    Bind,
}

impl Backend {
    /// The backend that really mounts a union asked of this one: a read-only
    /// volume of a single branch needs no union at all, and overlayfs refuses
    /// to make one.
    #[must_use]
    pub const fn for_volume(self, branches: usize, read_only: bool) -> Self {
        if read_only && branches == 1 {
            Self::Bind
        } else {
            self
        }
    }

    /// Lower-case name, as in configuration and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aufs => "aufs",
            Self::Overlay => "overlay",
            Self::Bind => "bind",
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The writable layer of a union.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writable {
    /// Directory that takes the changes. Of one union alone: the kernel does
    /// not notice a second one on AUFS, and both would be corrupted.
    pub upper: PathBuf,
    /// Empty directory on the same filesystem, which overlayfs needs; unused
    /// by AUFS.
    pub work: PathBuf,
    /// Whether both are on a tmpfs, which may have no `user.*` attributes.
    pub memory: bool,
}

/// A union mount as data.
///
/// Branch, writable layer and xino paths are absolute and canonical (no
/// symbolic link, `.`, `..` or doubled slash), since they are compared with
/// what the kernel reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// How it is made.
    pub backend: Backend,
    /// Read-only branches, top first.
    pub branches: Vec<PathBuf>,
    /// The writable layer above them, if any.
    pub writable: Option<Writable>,
    /// Existing directory where the union appears.
    pub target: PathBuf,
    /// Existing private directory of this volume, where the union is built
    /// before it appears; not seen by the pod.
    pub staging: PathBuf,
    /// Directory inside the union that appears at the target instead of its
    /// root. Links in it are resolved inside the union.
    pub sub_path: Option<PathBuf>,
    /// Whether writes are refused; then there is no writable layer.
    pub read_only: bool,
    /// `SELinux` label that all files get (`context=`).
    pub label: Option<String>,
    /// File of this volume alone on a host tmpfs, for the inode translation of
    /// AUFS, which creates and unlinks it. Needed by AUFS, unused by others.
    pub xino: Option<PathBuf>,
}

/// What the kernel can do, as data; see `probe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Size of a memory page in bytes; mount options end one byte before.
    pub page_size: usize,
    /// Of AUFS.
    pub aufs: AufsFeatures,
    /// Of overlayfs.
    pub overlay: OverlayFeatures,
}

/// What this kernel's AUFS can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AufsFeatures {
    /// Knows the option `dirperm1`: a directory's permission bits count on its
    /// topmost branch only, as everywhere else on Linux.
    pub dirperm1: bool,
    /// Knows the branch attribute `icexusr`: a copy-up to a filesystem without
    /// `user.*` attributes drops them instead of failing.
    pub icexusr: bool,
    /// Branches that one union may have, the writable one included.
    pub branch_limit: usize,
}

/// What this kernel's overlayfs can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayFeatures {
    /// Takes lower directories one by one (`lowerdir+`, Linux 6.7).
    pub lowerdir_append: bool,
    /// Can keep hard links together on copy-up (`index=on`).
    pub index: bool,
    /// Must keep its marks in `user.*` attributes, because this process is not
    /// root of the initial user namespace (`userxattr`, Linux 5.11).
    pub userxattr: bool,
}

/// One thing to do for a mount, in order; the whole list is compared in tests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MountStep {
    /// Unmount what a killed run left at the staging path.
    Clear {
        /// The staging path.
        at: PathBuf,
    },
    /// Remove a file that a killed run may have left.
    RemoveStale {
        /// The xino file: a stale one makes AUFS refuse the mount.
        path: PathBuf,
    },
    /// Make or change a mount.
    Call {
        /// Where.
        at: PathBuf,
        /// How.
        call: MountCall,
    },
    /// Compare the mount with the plan: type, flags, options, every branch.
    VerifyUnion {
        /// The union's own mount.
        at: PathBuf,
    },
    /// Compare a bind with the mount that it was made of.
    VerifyBind {
        /// The bind.
        at: PathBuf,
        /// The mount it shows.
        of: PathBuf,
    },
    /// Unmount the staging path; the target keeps the union alive.
    Release {
        /// The staging path.
        at: PathBuf,
    },
}

/// Which path of a plan an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A read-only branch.
    Branch,
    /// The writable layer.
    Upper,
    /// Overlay's work directory.
    Work,
    /// The xino file.
    Xino,
    /// The target.
    Target,
    /// The staging path.
    Staging,
    /// The directory inside the union.
    SubPath,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Branch => "branch",
            Self::Upper => "upper directory",
            Self::Work => "work directory",
            Self::Xino => "xino file",
            Self::Target => "target",
            Self::Staging => "staging path",
            Self::SubPath => "path inside the volume",
        })
    }
}

/// A plan that cannot be mounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A path is relative, or not in its shortest form.
    #[error("{role} {path} is not an absolute path in its shortest form", path = path.display())]
    NotCanonical {
        /// Which path.
        role: Role,
        /// The path.
        path: PathBuf,
    },
    /// A path has a character that mount options could misread.
    #[error(
        "{role} {path} has a character other than letters, digits, '.', '_', '-' and '/'",
        path = path.display()
    )]
    Character {
        /// Which path.
        role: Role,
        /// The path.
        path: PathBuf,
    },
    /// No branch at all.
    #[error("the union has no branch")]
    NoBranch,
    /// More branches than the kernel takes.
    #[error("the union has {count} branches and the kernel takes {limit}")]
    TooManyBranches {
        /// Branches of the plan, the writable one included on AUFS.
        count: usize,
        /// Most that the kernel takes.
        limit: usize,
    },
    /// One directory of the union is another one or lies inside it.
    #[error("{inner} is or lies inside {outer}", inner = inner.display(), outer = outer.display())]
    Overlap {
        /// The directory around the other.
        outer: PathBuf,
        /// The directory inside, or the same one.
        inner: PathBuf,
    },
    /// A read-only plan with a writable layer, or the contrary.
    #[error("a volume has a writable layer exactly if it is not read-only")]
    Writability,
    /// AUFS without a xino file.
    #[error("a union by aufs needs a xino file")]
    NoXino,
    /// A read-only overlay of one branch.
    #[error("overlayfs does not mount a single branch; a bind mount shows it")]
    SingleBranch,
    /// A bind mount that is writable or has several branches.
    #[error("a bind mount shows exactly one branch, read-only and without a label")]
    NotBindable,
    /// One entry does not fit the option string even alone.
    #[error("{path} takes {bytes} bytes of the mount options and {budget} are left", path = path.display())]
    EntryTooLong {
        /// The path.
        path: PathBuf,
        /// Bytes of the entry.
        bytes: usize,
        /// Bytes that one call has for entries.
        budget: usize,
    },
    /// An overlay option string that does not fit, on a kernel that takes only
    /// one.
    #[error("the mount options take {bytes} bytes and the kernel takes {limit}")]
    OptionsTooLong {
        /// Bytes of the options in their shortest form.
        bytes: usize,
        /// Most that the kernel takes.
        limit: usize,
    },
    /// A label that could end the option it is in.
    #[error("{label:?} is not an SELinux label")]
    Label {
        /// The label.
        label: String,
    },
}

impl MountPlan {
    /// The steps that mount this plan. Pure.
    pub fn steps(&self, features: &Features) -> Result<Vec<MountStep>, PlanError> {
        self.validate()?;
        match self.backend {
            Backend::Aufs => aufs::steps(self, features),
            Backend::Overlay => overlay::steps(self, features),
            Backend::Bind => bind::steps(self),
        }
    }

    /// Whether a mount is one of this plan's union, by what the mount table
    /// says: which filesystem it is and what is its own alone. `aufs_id` is the
    /// union's id in `/sys/fs/aufs`, where it is known. Pure.
    #[must_use]
    pub fn owns(&self, aufs_id: Option<&str>, entry: &MountEntry) -> bool {
        let is = |fs_type: &str| entry.fs_type == fs_type;
        match self.backend {
            Backend::Aufs => is("aufs") && aufs::is_of(self, aufs_id, entry),
            Backend::Overlay => is("overlay") && overlay::is_of(self, entry),
            Backend::Bind => self
                .branches
                .first()
                .is_some_and(|branch| match self.sub_path {
                    Some(_) => entry
                        .root
                        .ancestors()
                        .any(|above| bind::is_of(branch, above)),
                    None => bind::is_of(branch, &entry.root),
                }),
        }
    }

    /// Flags of the mounts of this plan.
    #[must_use]
    pub const fn flags(&self) -> MountFlags {
        MountFlags::volume(self.read_only)
    }

    fn validate(&self) -> Result<(), PlanError> {
        let single = |role, path: &PathBuf| (role, path.clone());
        let mut option_paths: Vec<(Role, PathBuf)> = self
            .branches
            .iter()
            .map(|path| single(Role::Branch, path))
            .collect();
        if let Some(writable) = &self.writable {
            option_paths.push(single(Role::Upper, &writable.upper));
            if self.backend == Backend::Overlay {
                option_paths.push(single(Role::Work, &writable.work));
            }
        }
        if self.backend == Backend::Aufs
            && let Some(xino) = &self.xino
        {
            option_paths.push(single(Role::Xino, xino));
        }
        for (role, path) in &option_paths {
            check_canonical(*role, path)?;
            check_characters(*role, path)?;
        }
        // These two are arguments of their own, so any character may occur.
        check_canonical(Role::Target, &self.target)?;
        check_canonical(Role::Staging, &self.staging)?;
        if let Some(sub_path) = &self.sub_path
            && sub_path.as_os_str().is_empty()
        {
            return Err(PlanError::NotCanonical {
                role: Role::SubPath,
                path: sub_path.clone(),
            });
        }
        if self.branches.is_empty() {
            return Err(PlanError::NoBranch);
        }
        if self.read_only == self.writable.is_some() {
            return Err(PlanError::Writability);
        }
        if let Some(label) = &self.label
            && !is_label(label)
        {
            return Err(PlanError::Label {
                label: label.clone(),
            });
        }
        option_paths.push(single(Role::Target, &self.target));
        option_paths.push(single(Role::Staging, &self.staging));
        check_overlap(option_paths.into_iter().map(|(_, path)| path).collect())
    }

    /// The steps that show a union of this plan that is mounted at `at` already.
    /// The bind has the flags of that mount.
    #[must_use]
    pub fn bound_from(&self, at: &Path) -> Vec<MountStep> {
        vec![
            MountStep::Call {
                at: self.target.clone(),
                call: MountCall::Bind {
                    source: at.to_path_buf(),
                    beneath: self.sub_path.clone(),
                },
            },
            MountStep::VerifyBind {
                at: self.target.clone(),
                of: at.to_path_buf(),
            },
        ]
    }

    /// Where the union itself is mounted: at the target at once, or at the
    /// staging path first.
    fn union_at(&self) -> &Path {
        if self.backend == Backend::Overlay && self.sub_path.is_none() {
            &self.target
        } else {
            &self.staging
        }
    }

    /// The steps around a union that is built at the staging path.
    fn staged(&self, build: Vec<MountStep>) -> Vec<MountStep> {
        let staging = || self.staging.clone();
        let mut steps = vec![MountStep::Clear { at: staging() }];
        steps.extend(build);
        steps.extend([
            MountStep::VerifyUnion { at: staging() },
            MountStep::Call {
                at: self.target.clone(),
                call: MountCall::Bind {
                    source: staging(),
                    beneath: self.sub_path.clone(),
                },
            },
            MountStep::VerifyBind {
                at: self.target.clone(),
                of: staging(),
            },
            MountStep::Release { at: staging() },
        ]);
        steps
    }
}

fn check_canonical(role: Role, path: &Path) -> Result<(), PlanError> {
    let shortest: PathBuf = path.components().collect();
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // Paths compare by components, so a doubled slash needs the plain bytes.
    if path.is_absolute() && plain && shortest.as_os_str() == path.as_os_str() {
        return Ok(());
    }
    Err(PlanError::NotCanonical {
        role,
        path: path.to_path_buf(),
    })
}

fn check_characters(role: Role, path: &Path) -> Result<(), PlanError> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/".contains(byte);
    if path.as_os_str().as_encoded_bytes().iter().all(plain) {
        return Ok(());
    }
    Err(PlanError::Character {
        role,
        path: path.to_path_buf(),
    })
}

/// Whether a text can be an `SELinux` context.
#[must_use]
pub fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_label_byte)
}

/// Letters of an `SELinux` context; neither a quote nor a backslash, so that it
/// can stand between quotes.
const fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':' | b',')
}

/// The kernels refuse a branch twice or inside another one with a bare
/// `EINVAL`, so it is found here. A xino file or target inside a branch would
/// change the branch itself.
fn check_overlap(mut paths: Vec<PathBuf>) -> Result<(), PlanError> {
    // By components a directory sorts right before what lies inside it.
    paths.sort();
    for pair in paths.windows(2) {
        if let [outer, inner] = pair
            && inner.starts_with(outer)
        {
            return Err(PlanError::Overlap {
                outer: outer.clone(),
                inner: inner.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn features() -> Features {
        Features {
            page_size: 4096,
            aufs: AufsFeatures {
                dirperm1: true,
                icexusr: true,
                branch_limit: 127,
            },
            overlay: OverlayFeatures {
                lowerdir_append: true,
                index: true,
                userxattr: false,
            },
        }
    }

    pub(crate) fn plan(backend: Backend, branches: usize, read_only: bool) -> MountPlan {
        MountPlan {
            backend,
            branches: (0..branches)
                .map(|n| PathBuf::from(format!("/s/diff/{n:03}")))
                .collect(),
            writable: (!read_only).then(|| Writable {
                upper: "/s/volumes/v/upper".into(),
                work: "/s/volumes/v/work".into(),
                memory: false,
            }),
            target: "/pods/p/mount".into(),
            staging: "/s/volumes/v/staging".into(),
            sub_path: None,
            read_only,
            label: None,
            xino: Some("/run/x/v".into()),
        }
    }

    #[test]
    fn a_path_that_options_could_misread_is_refused() {
        for character in [":", ",", "=", " ", "\\", "\"", "+", "#", "ä", "\n"] {
            let path = PathBuf::from(format!("/s/a{character}b"));
            for backend in [Backend::Aufs, Backend::Overlay, Backend::Bind] {
                let mut plan = plan(backend, 1, true);
                plan.branches[0] = path.clone();
                let expected = Err(PlanError::Character {
                    role: Role::Branch,
                    path: path.clone(),
                });
                assert_eq!(plan.steps(&features()), expected, "{character:?}");
            }
            let mut plan = plan(Backend::Aufs, 2, true);
            plan.xino = Some(path.clone());
            assert!(
                matches!(
                    plan.steps(&features()),
                    Err(PlanError::Character {
                        role: Role::Xino,
                        ..
                    })
                ),
                "{character:?}"
            );
        }
    }

    #[test]
    fn a_path_must_be_in_its_shortest_form() {
        for path in ["", "s/a", "/s/../a", "/s/./a", "/s//a", "/s/a/", "/.."] {
            let mut branch = plan(Backend::Aufs, 1, false);
            branch.branches[0] = path.into();
            let mut target = plan(Backend::Aufs, 1, false);
            target.target = path.into();
            for plan in [branch, target] {
                assert!(
                    matches!(plan.steps(&features()), Err(PlanError::NotCanonical { .. })),
                    "{path:?}"
                );
            }
        }
        let mut odd = plan(Backend::Aufs, 1, false);
        odd.target = "/pods/a b:c,d".into();
        assert!(odd.steps(&features()).is_ok());
    }

    #[test]
    fn no_two_directories_of_a_union_overlap() {
        type Change = fn(&mut MountPlan);
        let cases: [(&str, Change); 8] = [
            ("same branch", |p| p.branches[2] = p.branches[0].clone()),
            ("branch in branch", |p| {
                p.branches[2] = "/s/diff/000/x".into()
            }),
            ("branch around branch", |p| p.branches[2] = "/s/diff".into()),
            ("upper in branch", |p| {
                p.writable.as_mut().unwrap().upper = "/s/diff/001/u".into();
            }),
            ("work in upper", |p| {
                p.writable.as_mut().unwrap().work = "/s/volumes/v/upper/w".into();
            }),
            ("staging in upper", |p| {
                p.staging = "/s/volumes/v/upper/s".into()
            }),
            ("target in branch", |p| p.target = "/s/diff/002/t".into()),
            ("staging is target", |p| p.staging = p.target.clone()),
        ];
        for (name, change) in cases {
            let mut plan = plan(Backend::Overlay, 3, false);
            change(&mut plan);
            assert!(
                matches!(plan.steps(&features()), Err(PlanError::Overlap { .. })),
                "{name}"
            );
        }
        // A common prefix of the names alone is no overlap.
        let mut plan = plan(Backend::Overlay, 3, false);
        plan.branches = vec![
            "/s/a".into(),
            "/s/a.b".into(),
            "/s/ab".into(),
            "/s/a-".into(),
        ];
        assert!(plan.steps(&features()).is_ok());
    }

    #[test]
    fn contradictory_plans_are_refused() {
        let mut empty = plan(Backend::Aufs, 0, false);
        assert_eq!(empty.steps(&features()), Err(PlanError::NoBranch));
        empty.branches = vec!["/s/a".into()];
        empty.read_only = true;
        assert_eq!(empty.steps(&features()), Err(PlanError::Writability));
        let mut bare = plan(Backend::Aufs, 2, false);
        bare.writable = None;
        assert_eq!(bare.steps(&features()), Err(PlanError::Writability));
        let mut labelled = plan(Backend::Aufs, 2, false);
        for label in ["", "a\"b", "a b", "a\\b"] {
            labelled.label = Some(label.into());
            assert_eq!(
                labelled.steps(&features()),
                Err(PlanError::Label {
                    label: label.into()
                })
            );
        }
        let mut sub_path = plan(Backend::Aufs, 2, false);
        sub_path.sub_path = Some("".into());
        assert!(sub_path.steps(&features()).is_err());
    }

    #[test]
    fn only_a_read_only_single_branch_needs_no_union() {
        for backend in [Backend::Aufs, Backend::Overlay] {
            assert_eq!(backend.for_volume(1, true), Backend::Bind);
            assert_eq!(backend.for_volume(1, false), backend);
            assert_eq!(backend.for_volume(2, true), backend);
        }
    }
}
