//! Which unions can this node make, and how? Pure judgement of facts; the
//! facts come from [`self_test()`], which really mounts.

use serde::{Deserialize, Serialize};

use super::{AufsFeatures, Backend, Features, OverlayFeatures, aufs};
use crate::host::Filesystem;

mod cases;
mod self_test;

pub use self_test::{ProbeError, ProbeOptions, self_test};

/// What a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Size of a memory page in bytes.
    pub page_size: usize,
    /// AUFS, or why not.
    pub aufs: Result<AufsFacts, Unusable>,
    /// overlayfs, or why not.
    pub overlay: Result<OverlayFacts, Unusable>,
}

/// AUFS on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AufsFacts {
    /// Version of the module, where it tells.
    pub version: Option<String>,
    /// Whether extended attributes are kept (`CONFIG_AUFS_XATTR`), as measured.
    pub xattr: bool,
    /// What mounts make use of.
    pub features: AufsFeatures,
}

/// overlayfs on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayFacts {
    /// What mounts make use of.
    pub features: OverlayFeatures,
}

/// Why a backend cannot be used, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{cause}")]
pub struct Unusable {
    /// Why.
    pub cause: Cause,
    /// What an operator can do.
    pub remedy: String,
}

/// Why a backend cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", rename_all_fields = "snake_case")]
pub enum Cause {
    /// Below the floor.
    #[error("kernel {found} is older than {needed}")]
    KernelTooOld {
        /// Its release.
        found: String,
        /// The oldest that is supported.
        needed: String,
    },
    /// Neither built in nor loadable.
    #[error("the kernel has no {backend}")]
    NotInKernel {
        /// The filesystem.
        backend: Backend,
    },
    /// Mounting is not permitted.
    #[error("mounting {backend} is not permitted to this process")]
    NotPermitted {
        /// The filesystem.
        backend: Backend,
        /// Whether this is not the initial user namespace.
        user_namespace: bool,
    },
    /// The store is on a filesystem that this union does not work on.
    #[error("the store is on {name}, which {backend} cannot use")]
    StoreFilesystem {
        /// The union.
        backend: Backend,
        /// Type of the store's filesystem.
        name: String,
    },
    /// The store is on btrfs, which needs the operator's consent.
    #[error("the store is on btrfs, where users of aufs have lost data")]
    StoreBtrfs,
    /// The store is mounted read-only or without execution.
    #[error("the store is mounted {flags}")]
    StoreFlags {
        /// The flags.
        flags: String,
    },
    /// The store's filesystem has too short names.
    #[error("the store's filesystem has names of {found} bytes at most and aufs needs 255")]
    NameLength {
        /// Longest name in bytes.
        found: u64,
    },
    /// The xino file's directory is on a filesystem that AUFS refuses.
    #[error("the run directory is on {name}, where aufs keeps no inode translation")]
    XinoFilesystem {
        /// Type of its filesystem.
        name: String,
    },
    /// A version that is known to crash.
    #[error("aufs {version} is known to crash the kernel")]
    BadVersion {
        /// The version.
        version: String,
    },
    /// It mounts, or should, but does not do what it must.
    #[error("the self-test failed at {step}: {detail}")]
    SelfTest {
        /// What was tried.
        step: String,
        /// What happened.
        detail: String,
    },
}

/// Which union a volume asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnionRequest {
    /// AUFS where it is usable, else overlayfs.
    #[default]
    Auto,
    /// AUFS or nothing.
    Aufs,
    /// overlayfs or nothing.
    Overlay,
}

impl std::str::FromStr for UnionRequest {
    type Err = UnknownUnion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "aufs" => Ok(Self::Aufs),
            "overlay" => Ok(Self::Overlay),
            _ => Err(UnknownUnion {
                found: text.to_owned(),
            }),
        }
    }
}

/// A word that names no union.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is none of auto, aufs, overlay")]
pub struct UnknownUnion {
    /// The word.
    pub found: String,
}

/// A request that this node cannot fulfil.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// One backend was asked for.
    #[error("{backend} was asked for and cannot be used: {reason}; {remedy}", remedy = reason.remedy)]
    Unusable {
        /// The backend.
        backend: Backend,
        /// Why not.
        reason: Box<Unusable>,
    },
    /// Any would do and there is none.
    #[error("no union can be used: {aufs}; {overlay}")]
    None {
        /// Why not AUFS.
        aufs: Box<Unusable>,
        /// Why not overlayfs.
        overlay: Box<Unusable>,
    },
}

/// The backend for a volume. Only `auto` falls back.
pub fn choose(request: UnionRequest, probe: &Probe) -> Result<Backend, ChooseError> {
    let unusable = |backend, reason: &Unusable| ChooseError::Unusable {
        backend,
        reason: Box::new(reason.clone()),
    };
    match (request, &probe.aufs, &probe.overlay) {
        (UnionRequest::Auto | UnionRequest::Aufs, Ok(_), _) => Ok(Backend::Aufs),
        (UnionRequest::Auto | UnionRequest::Overlay, _, Ok(_)) => Ok(Backend::Overlay),
        (UnionRequest::Aufs, Err(reason), _) => Err(unusable(Backend::Aufs, reason)),
        (UnionRequest::Overlay, _, Err(reason)) => Err(unusable(Backend::Overlay, reason)),
        (UnionRequest::Auto, Err(aufs), Err(overlay)) => Err(ChooseError::None {
            aufs: Box::new(aufs.clone()),
            overlay: Box::new(overlay.clone()),
        }),
    }
}

impl Probe {
    /// The features that plans are built with. Those of an unusable backend
    /// are the most modest ones.
    #[must_use]
    pub fn features(&self) -> Features {
        Features {
            page_size: self.page_size,
            aufs: match &self.aufs {
                Ok(facts) => facts.features.clone(),
                Err(_) => MODEST_AUFS,
            },
            overlay: match &self.overlay {
                Ok(facts) => facts.features.clone(),
                Err(_) => MODEST_OVERLAY,
            },
        }
    }
}

/// What every AUFS can do.
const MODEST_AUFS: AufsFeatures = AufsFeatures {
    dirperm1: false,
    icexusr: false,
    branch_limit: aufs::BRANCH_LIMIT_DEFAULT,
};

/// What every overlayfs can do.
const MODEST_OVERLAY: OverlayFeatures = OverlayFeatures {
    lowerdir_append: false,
    index: false,
    userxattr: false,
};

/// What is known before anything is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Kernel release.
    pub kernel: String,
    /// Whether this is not the initial user namespace.
    pub user_namespace: bool,
    /// Where the node's software comes from.
    pub distribution: Distribution,
    /// Filesystem of the store.
    pub store: Filesystem,
    /// Filesystem of the run directory, where xino files live.
    pub run: Filesystem,
    /// Whether the operator takes the risk of AUFS on btrfs.
    pub allow_btrfs: bool,
}

/// The parts of `os-release(5)` that remedies differ by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Distribution {
    /// `ID`, and after it the words of `ID_LIKE`.
    pub ids: Vec<String>,
    /// `VERSION_ID`.
    pub version: String,
}

impl Distribution {
    /// Reads `os-release(5)`; what cannot be read is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.trim().split_once('='))
                .find(|(found, _)| *found == key)
                .map(|(_, value)| value.trim_matches(['"', '\'']))
                .unwrap_or_default()
        };
        let words = value("ID").split_whitespace();
        Self {
            ids: words
                .chain(value("ID_LIKE").split_whitespace())
                .map(str::to_owned)
                .collect(),
            version: value("VERSION_ID").to_owned(),
        }
    }
}

/// Oldest kernels, as major and minor version.
const AUFS_FLOOR: (u32, u32) = (5, 4);
const OVERLAY_FLOOR: (u32, u32) = (5, 11);

/// Versions of AUFS that crash when a mapped file is used, so that no
/// self-test may be run on them.
const CRASHING: [&str; 1] = ["6.14.7-20250922"];

/// A verdict without mounting anything.
pub(super) fn judge(backend: Backend, facts: &Facts) -> Result<(), Cause> {
    let floor = match backend {
        Backend::Aufs => AUFS_FLOOR,
        Backend::Overlay | Backend::Bind => OVERLAY_FLOOR,
    };
    // A release that is no version says nothing; the self-test does.
    if version_of(&facts.kernel).is_some_and(|version| version < floor) {
        return Err(Cause::KernelTooOld {
            found: facts.kernel.clone(),
            needed: format!("{}.{}", floor.0, floor.1),
        });
    }
    if backend == Backend::Aufs && facts.user_namespace {
        // The module's parameter allow_userns exists, off, and is no promise.
        return Err(Cause::NotPermitted {
            backend,
            user_namespace: true,
        });
    }
    let name = filesystem_name(facts.store.magic);
    let refused = || Cause::StoreFilesystem {
        backend,
        name: name.clone(),
    };
    match (backend, name.as_str()) {
        (_, "ext4" | "xfs" | "tmpfs") | (Backend::Bind, _) => {}
        (Backend::Aufs, "btrfs") if facts.allow_btrfs => {}
        (Backend::Aufs, "btrfs") => return Err(Cause::StoreBtrfs),
        // Others were never tested below AUFS, and some hang it.
        (Backend::Aufs, _)
        | (
            Backend::Overlay,
            "overlay" | "aufs" | "ecryptfs" | "nfs" | "fuse" | "9p" | "cifs" | "smb2" | "ramfs"
            | "vfat" | "exfat",
        ) => return Err(refused()),
        // The self-test is the better judge.
        (Backend::Overlay, _) => {}
    }
    if facts.store.flags.read_only || facts.store.flags.noexec {
        return Err(Cause::StoreFlags {
            flags: facts.store.flags.to_string(),
        });
    }
    if backend == Backend::Aufs {
        if facts.store.name_max < 255 {
            return Err(Cause::NameLength {
                found: facts.store.name_max,
            });
        }
        let run = filesystem_name(facts.run.magic);
        // XFS, btrfs and network filesystems are refused by AUFS itself; in a
        // container the default place is overlay, which is refused too.
        if !matches!(run.as_str(), "tmpfs" | "ext4") {
            return Err(Cause::XinoFilesystem { name: run });
        }
    }
    Ok(())
}

/// A verdict on a loaded module's version.
pub(super) fn judge_version(version: Option<&str>) -> Result<(), Cause> {
    match version {
        Some(version) if CRASHING.contains(&version) => Err(Cause::BadVersion {
            version: version.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Adds to a cause what an operator can do about it.
pub(super) fn with_remedy(cause: Cause, facts: &Facts) -> Unusable {
    let remedy = remedy(&cause, facts);
    Unusable { cause, remedy }
}

fn remedy(cause: &Cause, facts: &Facts) -> String {
    let text = match cause {
        Cause::NotInKernel {
            backend: Backend::Aufs,
        } => return aufs_remedy(&facts.distribution, &facts.kernel),
        Cause::NotInKernel { .. } => {
            "load the module overlay, or use a kernel with CONFIG_OVERLAY_FS"
        }
        Cause::KernelTooOld { .. } => "upgrade the kernel",
        Cause::NotPermitted {
            user_namespace: true,
            backend: Backend::Aufs,
        } => "aufs needs root of the initial user namespace; use overlay here",
        Cause::NotPermitted { .. } => "run the plugin privileged, with CAP_SYS_ADMIN",
        Cause::StoreFilesystem { .. } => {
            "put the store on ext4 or XFS: a host directory, not the container's own filesystem"
        }
        Cause::StoreBtrfs => "put the store on ext4 or XFS, or allow btrfs in the configuration",
        Cause::StoreFlags { .. } => "mount the store's filesystem with rw and exec",
        Cause::NameLength { .. } => "put the store on ext4 or XFS",
        Cause::XinoFilesystem { .. } => {
            "mount a tmpfs of the host, such as /run, as the run directory"
        }
        Cause::BadVersion { .. } => "use a kernel with another release of aufs",
        Cause::SelfTest { .. } => {
            "the kernel's log (dmesg) may say more; use a kernel whose aufs branch matches it \
             exactly, or the other union"
        }
    };
    text.to_owned()
}

/// How AUFS comes to a node of this distribution.
fn aufs_remedy(distribution: &Distribution, kernel: &str) -> String {
    let other = "or let volumes use overlay (union: auto)";
    let known = distribution.ids.iter().find_map(|id| {
        let text = match id.as_str() {
            "ubuntu" if is_old_ubuntu(&distribution.version) => {
                format!("install linux-modules-extra-{kernel} and load the module aufs")
            }
            "ubuntu" => "this release of Ubuntu ships no aufs; install a kernel that was patched \
                         with aufs-standalone"
                .to_owned(),
            "debian" => {
                "Debian ships aufs-dkms up to release 10 only; build a kernel patched with \
                         aufs-standalone"
                    .to_owned()
            }
            "gentoo" => "install a kernel with the aufs patches (sys-fs/aufs, or a patched \
                         sources package) and load the module aufs"
                .to_owned(),
            "arch" => "install a kernel with the aufs patches from the user repository (AUR) and \
                       load the module aufs"
                .to_owned(),
            "fedora" | "rhel" | "centos" | "suse" | "opensuse" | "sles" | "alpine" => {
                "this distribution ships no aufs; build a kernel patched with aufs-standalone"
                    .to_owned()
            }
            "flatcar" | "bottlerocket" | "talos" | "cos" | "amzn" => {
                "this distribution's kernel cannot be extended with aufs".to_owned()
            }
            _ => return None,
        };
        Some(text)
    });
    let text = known.unwrap_or_else(|| {
        "load the module aufs, or build a kernel patched with aufs-standalone".to_owned()
    });
    format!("{text}, {other}")
}

/// Ubuntu had AUFS among its modules until 20.10.
fn is_old_ubuntu(version: &str) -> bool {
    let year = version.split('.').next().and_then(|year| year.parse().ok());
    year.is_some_and(|year: u32| year <= 20)
}

/// Major and minor version at the beginning of a kernel release.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

/// The branch limit that a module was built with, from its configuration as
/// `/sys/fs/aufs/config` shows it.
fn branch_limit(config: Option<&str>) -> usize {
    config
        .into_iter()
        .flat_map(str::lines)
        .filter_map(|line| line.trim().strip_suffix("=y"))
        .filter_map(|key| key.strip_prefix("CONFIG_AUFS_BRANCH_MAX_"))
        .find_map(|limit| limit.parse().ok())
        .unwrap_or(aufs::BRANCH_LIMIT_DEFAULT)
}

/// Name of a filesystem type from its magic number, see `statfs(2)`.
pub fn filesystem_name(magic: u64) -> String {
    let name = match magic {
        // One number for ext2, ext3 and ext4.
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x0102_1994 => "tmpfs",
        0x9123_683e => "btrfs",
        super::overlay::MAGIC => "overlay",
        aufs::MAGIC => "aufs",
        0xf15f => "ecryptfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0xf2f5_2010 => "f2fs",
        0x2fc1_2fc1 => "zfs",
        0x0102_1997 => "9p",
        0x8584_58f6 => "ramfs",
        0xff53_4d42 => "cifs",
        0xfe53_4d42 => "smb2",
        0x00c3_6400 => "ceph",
        0x4d44 => "vfat",
        0x2011_bab0 => "exfat",
        0xca45_1a4e => "bcachefs",
        _ => return format!("a filesystem of type {magic:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::MountFlags;

    const EXT4: u64 = 0xef53;
    const TMPFS: u64 = 0x0102_1994;

    fn on(magic: u64) -> Filesystem {
        Filesystem {
            magic,
            flags: MountFlags::default(),
            name_max: 255,
            bytes: 1 << 30,
            bytes_available: 1 << 29,
            inodes: 1 << 20,
            inodes_available: 1 << 19,
        }
    }

    fn facts() -> Facts {
        Facts {
            kernel: "6.1.192".into(),
            user_namespace: false,
            distribution: Distribution::default(),
            store: on(EXT4),
            run: on(TMPFS),
            allow_btrfs: false,
        }
    }

    fn unusable(cause: Cause) -> Unusable {
        with_remedy(cause, &facts())
    }

    #[test]
    fn a_usual_node_is_good_for_both() {
        assert_eq!(judge(Backend::Aufs, &facts()), Ok(()));
        assert_eq!(judge(Backend::Overlay, &facts()), Ok(()));
    }

    #[test]
    fn the_stores_filesystem_decides() {
        // Name, magic number, good for AUFS, good for overlay.
        let cases = [
            ("ext4", 0xef53, true, true),
            ("xfs", 0x5846_5342, true, true),
            ("tmpfs", 0x0102_1994, true, true),
            ("btrfs", 0x9123_683e, false, true),
            ("overlay", 0x794c_7630, false, false),
            ("aufs", 0x6175_6673, false, false),
            ("ecryptfs", 0xf15f, false, false),
            ("nfs", 0x6969, false, false),
            ("fuse", 0x6573_5546, false, false),
            ("f2fs", 0xf2f5_2010, false, true),
            ("unknown", 0x1234, false, true),
        ];
        for (name, magic, aufs, overlay) in cases {
            let mut facts = facts();
            facts.store = on(magic);
            assert_eq!(judge(Backend::Aufs, &facts).is_ok(), aufs, "{name}");
            assert_eq!(judge(Backend::Overlay, &facts).is_ok(), overlay, "{name}");
        }
        let mut btrfs = facts();
        btrfs.store = on(0x9123_683e);
        assert_eq!(judge(Backend::Aufs, &btrfs), Err(Cause::StoreBtrfs));
        btrfs.allow_btrfs = true;
        assert_eq!(judge(Backend::Aufs, &btrfs), Ok(()));
    }

    #[test]
    fn the_run_directory_must_take_xino_files() {
        for (magic, good) in [
            (TMPFS, true),
            (EXT4, true),
            (0x5846_5342, false),
            (0x794c_7630, false),
        ] {
            let mut facts = facts();
            facts.run = on(magic);
            assert_eq!(judge(Backend::Aufs, &facts).is_ok(), good, "{magic:#x}");
            assert_eq!(judge(Backend::Overlay, &facts), Ok(()));
        }
    }

    #[test]
    fn a_store_without_writing_or_execution_is_refused() {
        for flags in [
            MountFlags {
                read_only: true,
                ..MountFlags::default()
            },
            MountFlags {
                noexec: true,
                ..MountFlags::default()
            },
        ] {
            let mut facts = facts();
            facts.store.flags = flags;
            for backend in [Backend::Aufs, Backend::Overlay] {
                let verdict = judge(backend, &facts);
                assert!(matches!(verdict, Err(Cause::StoreFlags { .. })));
            }
        }
        let mut nodev = facts();
        nodev.store.flags.nodev = true;
        nodev.store.flags.nosuid = true;
        assert_eq!(judge(Backend::Aufs, &nodev), Ok(()));
        let mut short = facts();
        short.store.name_max = 143;
        assert_eq!(
            judge(Backend::Aufs, &short),
            Err(Cause::NameLength { found: 143 })
        );
    }

    #[test]
    fn floors_are_compared_as_numbers() {
        for (kernel, aufs, overlay) in [
            ("5.3.18-x", false, false),
            ("5.4.0-150-generic", true, false),
            ("5.10.0", true, false),
            ("5.11.0-rc1", true, true),
            ("6.1.192-aufs", true, true),
            ("10.0", true, true),
            ("4.19.0", false, false),
            ("strange", true, true),
        ] {
            let mut facts = facts();
            facts.kernel = kernel.into();
            assert_eq!(judge(Backend::Aufs, &facts).is_ok(), aufs, "{kernel}");
            assert_eq!(judge(Backend::Overlay, &facts).is_ok(), overlay, "{kernel}");
        }
    }

    #[test]
    fn a_user_namespace_is_for_overlay_only() {
        let mut facts = facts();
        facts.user_namespace = true;
        assert_eq!(
            judge(Backend::Aufs, &facts),
            Err(Cause::NotPermitted {
                backend: Backend::Aufs,
                user_namespace: true
            })
        );
        assert_eq!(judge(Backend::Overlay, &facts), Ok(()));
    }

    #[test]
    fn a_version_that_crashes_is_never_tried() {
        assert!(judge_version(Some("6.14.7-20250922")).is_err());
        assert!(judge_version(Some("6.1-20240701")).is_ok());
        assert!(judge_version(None).is_ok());
    }

    #[test]
    fn the_branch_limit_is_read_from_the_configuration() {
        for (config, limit) in [
            (None, 127),
            (Some(""), 127),
            (
                Some("CONFIG_AUFS_FS=m\nCONFIG_AUFS_BRANCH_MAX_127=y\nCONFIG_AUFS_XATTR=y\n"),
                127,
            ),
            (
                Some("CONFIG_AUFS_BRANCH_MAX_127=n\nCONFIG_AUFS_BRANCH_MAX_511=y\n"),
                511,
            ),
            (Some("CONFIG_AUFS_BRANCH_MAX_32767=y"), 32767),
            (Some("CONFIG_AUFS_BRANCH_MAX_many=y"), 127),
        ] {
            assert_eq!(branch_limit(config), limit, "{config:?}");
        }
    }

    #[test]
    fn only_auto_falls_back() {
        use UnionRequest::{Aufs, Auto, Overlay};
        let missing = |backend| unusable(Cause::NotInKernel { backend });
        let probe = |aufs: bool, overlay: bool| Probe {
            kernel: "6.1".into(),
            page_size: 4096,
            aufs: if aufs {
                Ok(AufsFacts {
                    version: None,
                    xattr: true,
                    features: MODEST_AUFS,
                })
            } else {
                Err(missing(Backend::Aufs))
            },
            overlay: if overlay {
                Ok(OverlayFacts {
                    features: MODEST_OVERLAY,
                })
            } else {
                Err(missing(Backend::Overlay))
            },
        };
        for (request, aufs, overlay, expected) in [
            (Auto, true, true, Some(Backend::Aufs)),
            (Auto, true, false, Some(Backend::Aufs)),
            (Auto, false, true, Some(Backend::Overlay)),
            (Auto, false, false, None),
            (Aufs, true, true, Some(Backend::Aufs)),
            (Aufs, false, true, None),
            (Overlay, true, true, Some(Backend::Overlay)),
            (Overlay, true, false, None),
        ] {
            assert_eq!(
                choose(request, &probe(aufs, overlay)).ok(),
                expected,
                "{request:?}, aufs {aufs}, overlay {overlay}"
            );
        }
        let json = serde_json::to_string(&probe(true, false)).unwrap();
        let read: Probe = serde_json::from_str(&json).unwrap();
        assert_eq!(read, probe(true, false));
        assert!(json.contains("not_in_kernel"), "{json}");
    }

    #[test]
    fn the_remedy_names_the_distributions_own_way() {
        for (release, expected) in [
            (
                "ID=ubuntu\nVERSION_ID=\"20.04\"\n",
                "linux-modules-extra-6.1.192",
            ),
            ("ID=ubuntu\nVERSION_ID=\"24.04\"\n", "ships no aufs"),
            (
                "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=\"21\"\n",
                "Ubuntu",
            ),
            ("ID=debian\nVERSION_ID=\"12\"\n", "Debian ships aufs-dkms"),
            ("ID='gentoo'\n", "load the module aufs"),
            ("ID=bottlerocket\n", "cannot be extended"),
            (
                "ID=rocky\nID_LIKE=\"rhel centos fedora\"\n",
                "build a kernel",
            ),
            ("NAME=nothing", "build a kernel"),
            ("", "build a kernel"),
        ] {
            let mut facts = facts();
            facts.distribution = Distribution::parse(release);
            let cause = Cause::NotInKernel {
                backend: Backend::Aufs,
            };
            let remedy = with_remedy(cause, &facts).remedy;
            assert!(remedy.contains(expected), "{release:?}: {remedy}");
            assert!(remedy.contains("overlay"), "{remedy}");
        }
    }

    #[test]
    fn a_request_is_one_of_three_words() {
        assert_eq!("auto".parse(), Ok(UnionRequest::Auto));
        assert_eq!("aufs".parse(), Ok(UnionRequest::Aufs));
        assert_eq!("overlay".parse(), Ok(UnionRequest::Overlay));
        for word in ["", "AUFS", "overlayfs", "bind"] {
            assert!(word.parse::<UnionRequest>().is_err(), "{word}");
        }
    }
}
