//! The self-test: gathers the facts, mounts small unions of every kind below
//! the store, and lets the cases use them.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::cases;
use super::{
    AufsFacts, Cause, Distribution, Facts, MODEST_AUFS, MODEST_OVERLAY, OverlayFacts, Probe,
    Unusable,
};
use crate::host::{Host, MountCall, MountFlags};
use crate::union::{
    AufsFeatures, Backend, Features, MountError, MountPlan, OverlayFeatures, UnmountError,
    Writable, mount, unmount,
};

/// How long a probe's mount may be busy. A kernel that leaks references to
/// mapped files never lets go.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long another probe of the same store is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// What to probe.
#[derive(Debug, Clone)]
pub struct ProbeOptions {
    /// The store's root, canonical. A directory `probe` is made in it, which
    /// stays there, empty.
    pub store: PathBuf,
    /// Directory for xino files, canonical, on a tmpfs of the host.
    pub run: PathBuf,
    /// Content of the host's `os-release(5)`, for remedies; may be empty.
    pub os_release: String,
    /// Whether AUFS may be used on btrfs.
    pub allow_btrfs: bool,
}

/// A probe that could not be made; it says nothing about the unions.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel does not tell a fact.
    #[error("cannot read {path}", path = path.display())]
    Fact {
        /// Where the fact is.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A directory of the probe cannot be made.
    #[error("cannot make {path}", path = path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The probe's directory cannot be locked.
    #[error("cannot lock {path}", path = path.display())]
    Lock {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Finds out what unions this node can make. Takes a fraction of a second, and
/// loads the kernel's module if that is all that is missing. One at a time for
/// each store; a second one waits.
pub fn self_test(host: &dyn Host, options: &ProbeOptions) -> Result<Probe, ProbeError> {
    let facts = gather(host, options)?;
    let room = Room::enter(host, options)?;
    let aufs = room.test(host, Backend::Aufs, &facts, test_aufs);
    let overlay = room.test(host, Backend::Overlay, &facts, |lab| {
        test_overlay(lab, facts.user_namespace)
    });
    room.empty(host);
    Ok(Probe {
        kernel: facts.kernel,
        page_size: rustix::param::page_size(),
        aufs,
        overlay,
    })
}

fn gather(host: &dyn Host, options: &ProbeOptions) -> Result<Facts, ProbeError> {
    let read = |path: &str| {
        let path = Path::new(path);
        host.read(path)
            .map(|text| String::from_utf8_lossy(&text).trim().to_owned())
            .map_err(|source| ProbeError::Fact {
                path: path.to_path_buf(),
                source,
            })
    };
    let filesystem = |path: &Path| {
        host.filesystem(path).map_err(|source| ProbeError::Fact {
            path: path.to_path_buf(),
            source,
        })
    };
    let user_map = read("/proc/self/uid_map")?;
    let everyone = ["0", "0", "4294967295"];
    Ok(Facts {
        kernel: read("/proc/sys/kernel/osrelease")?,
        user_namespace: !user_map.split_whitespace().eq(everyone),
        distribution: Distribution::parse(&options.os_release),
        store: filesystem(&options.store)?,
        run: filesystem(&options.run)?,
        allow_btrfs: options.allow_btrfs,
    })
}

/// The probe's directories, held by a lock.
struct Room {
    store: PathBuf,
    run: PathBuf,
    /// Name of this probe's own directories: that of an earlier one may still
    /// be occupied by a mount that nothing can take down.
    name: String,
    _lock: OwnedFd,
}

impl Room {
    fn enter(host: &dyn Host, options: &ProbeOptions) -> Result<Self, ProbeError> {
        let store = options.store.join("probe");
        let run = options.run.join("probe");
        let create = |path: &Path| {
            fs::create_dir_all(path).map_err(|source| ProbeError::Create {
                path: path.to_path_buf(),
                source,
            })
        };
        create(&store)?;
        create(&run)?;
        let mut room = Self {
            _lock: lock(host, &store)?,
            store,
            run,
            name: String::new(),
        };
        room.empty(host);
        let names = (0..=u32::MAX).map(|number| number.to_string());
        let mut free = names.filter(|name| !room.store.join(name).exists());
        room.name = free.next().unwrap_or_default();
        create(&room.run.join(&room.name))?;
        Ok(room)
    }

    /// Takes down and removes what is inside, as far as that is possible. What
    /// remains is no reason to withhold a verdict, and often is explained by
    /// it.
    fn empty(&self, host: &dyn Host) {
        let mounts = || -> io::Result<Vec<PathBuf>> {
            let table = host.mount_table()?.into_iter().rev();
            Ok(table
                .map(|entry| entry.mount_point)
                .filter(|at| *at != self.store && at.starts_with(&self.store))
                .collect())
        };
        let empty = || -> io::Result<()> {
            for at in mounts()? {
                if let Err(error) = unmount(host, &[&at], PATIENCE) {
                    tracing::warn!(path = %at.display(), %error, "a probe's mount remains");
                }
            }
            // Nothing is ever removed through a mount.
            let left = mounts()?;
            for directory in [&self.store, &self.run] {
                for entry in fs::read_dir(directory)? {
                    let path = entry?.path();
                    let occupied = left.iter().any(|at| {
                        at.strip_prefix(&self.store)
                            .is_ok_and(|inside| inside.iter().next() == path.file_name())
                    });
                    if !occupied {
                        fs::remove_dir_all(path)?;
                    }
                }
            }
            Ok(())
        };
        if let Err(error) = empty() {
            let path = self.store.display();
            tracing::warn!(%path, %error, "a probe's directory remains");
        }
    }

    fn test<T>(
        &self,
        host: &dyn Host,
        backend: Backend,
        facts: &Facts,
        test: impl FnOnce(&Lab) -> Result<T, Cause>,
    ) -> Result<T, Unusable> {
        let lab = Lab {
            host,
            backend,
            directory: self.store.join(&self.name).join(backend.name()),
            run: self.run.join(&self.name),
            mounted: RefCell::new(Vec::new()),
            next: Cell::new(0),
        };
        let result = super::judge(backend, facts).and_then(|()| test(&lab));
        let cleared = lab.clear();
        match (result, cleared) {
            (Ok(value), Ok(())) => Ok(value),
            (Err(cause), _) | (Ok(_), Err(cause)) => Err(super::with_remedy(cause, facts)),
        }
    }
}

fn lock(host: &dyn Host, directory: &Path) -> Result<OwnedFd, ProbeError> {
    let refused = |errno: Errno| ProbeError::Lock {
        path: directory.to_path_buf(),
        source: errno.into(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptor = rustix::fs::open(directory, flags, Mode::empty()).map_err(refused)?;
    let mut waited = Duration::ZERO;
    loop {
        match rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(descriptor),
            Err(Errno::WOULDBLOCK) if waited < LOCK_PATIENCE => {
                host.pause(LOCK_PAUSE);
                waited += LOCK_PAUSE;
            }
            Err(errno) => return Err(refused(errno)),
        }
    }
}

/// Where the cases work: fresh directories, and unions that are taken down
/// whatever happens.
pub(super) struct Lab<'a> {
    pub(super) host: &'a dyn Host,
    pub(super) backend: Backend,
    directory: PathBuf,
    run: PathBuf,
    mounted: RefCell<Vec<MountPlan>>,
    next: Cell<u32>,
}

impl Lab<'_> {
    /// A new empty directory.
    pub(super) fn directory(&self) -> io::Result<PathBuf> {
        let number = self.next.replace(self.next.get() + 1);
        let directory = self.directory.join(number.to_string());
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// A plan over `branches`, top first, with a writable layer of its own.
    pub(super) fn plan(&self, branches: Vec<PathBuf>, writable: bool) -> io::Result<MountPlan> {
        let writable = match writable {
            true => Some(Writable {
                upper: self.directory()?,
                work: self.directory()?,
                memory: false,
            }),
            false => None,
        };
        let number = self.next.replace(self.next.get() + 1);
        Ok(MountPlan {
            backend: self.backend,
            branches,
            read_only: writable.is_none(),
            writable,
            target: self.directory()?,
            staging: self.directory()?,
            sub_path: None,
            label: None,
            xino: Some(self.run.join(format!("xino-{number}"))),
        })
    }

    /// Mounts a plan of this lab.
    pub(super) fn mount(&self, plan: &MountPlan, features: &Features) -> Result<(), MountError> {
        mount(self.host, plan, features)?;
        self.mounted.borrow_mut().push(plan.clone());
        Ok(())
    }

    /// Takes a plan of this lab down.
    pub(super) fn unmount(&self, plan: &MountPlan) -> Result<(), UnmountError> {
        unmount(self.host, &[&plan.target, &plan.staging], PATIENCE)?;
        self.mounted
            .borrow_mut()
            .retain(|mounted| mounted.target != plan.target);
        Ok(())
    }

    fn clear(&self) -> Result<(), Cause> {
        let plans = self.mounted.take();
        let mut result = Ok(());
        for plan in plans {
            if let Err(error) = self.unmount(&plan) {
                result = Err(failure("taking down", &error));
            }
        }
        result
    }
}

/// A failed step as a cause, with all that the errors say.
fn failure(step: &str, error: &dyn Error) -> Cause {
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        detail.push_str(": ");
        detail.push_str(&error.to_string());
        source = error.source();
    }
    Cause::SelfTest {
        step: step.to_owned(),
        detail,
    }
}

/// The cause behind the first mount of a backend, which tells whether the
/// kernel has it at all.
fn first_failure(backend: Backend, error: &MountError) -> Cause {
    let mut source: Option<&dyn Error> = Some(error);
    let mut errno = None;
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            errno = errno.or(error.raw_os_error());
        }
        source = error.source();
    }
    match errno.map(Errno::from_raw_os_error) {
        Some(Errno::NODEV) => Cause::NotInKernel { backend },
        Some(Errno::PERM) => Cause::NotPermitted {
            backend,
            user_namespace: false,
        },
        _ => failure("the first mount", error),
    }
}

fn prepared<T>(result: io::Result<T>) -> Result<T, Cause> {
    result.map_err(|error| failure("preparing directories", &error))
}

/// Mounts a plan that may well not be mountable, and takes it down.
fn mounts(lab: &Lab, plan: &MountPlan, features: &Features) -> Result<bool, Cause> {
    match lab.mount(plan, features) {
        Ok(()) => {}
        Err(error @ MountError::NotUndone { .. }) => return Err(failure("undoing", &error)),
        Err(_) => return Ok(false),
    }
    lab.unmount(plan)
        .map_err(|error| failure("unmounting", &error))?;
    Ok(true)
}

fn features(aufs: AufsFeatures, overlay: OverlayFeatures) -> Features {
    Features {
        page_size: rustix::param::page_size(),
        aufs,
        overlay,
    }
}

fn test_aufs(lab: &Lab) -> Result<AufsFacts, Cause> {
    let read = |path: &str| {
        let text = lab.host.read(Path::new(path)).ok()?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    };
    // The first attempt makes the kernel load the module, and it is the
    // measure for the ones after it: that they fail says something about an
    // option only if it succeeds.
    let branch = prepared(lab.directory())?;
    prepared(fs::write(branch.join("file"), "content"))?;
    load(lab, &branch)?;
    super::judge_version(read("/sys/module/aufs/version").as_deref())?;

    let mut aufs = AufsFeatures {
        branch_limit: super::branch_limit(read("/sys/fs/aufs/config").as_deref()),
        ..MODEST_AUFS
    };
    let plan = prepared(lab.plan(vec![branch.clone()], true))?;
    lab.mount(&plan, &features(aufs.clone(), MODEST_OVERLAY))
        .map_err(|error| first_failure(Backend::Aufs, &error))?;
    lab.unmount(&plan)
        .map_err(|error| failure("unmounting", &error))?;

    let with = |aufs: &AufsFeatures| features(aufs.clone(), MODEST_OVERLAY);
    let wanted = AufsFeatures {
        dirperm1: true,
        ..aufs.clone()
    };
    let plan = prepared(lab.plan(vec![branch.clone()], true))?;
    aufs.dirperm1 = mounts(lab, &plan, &with(&wanted))?;
    // An unknown attribute is no error of the mount but one of its
    // verification, so this is the same question.
    let wanted = AufsFeatures {
        icexusr: true,
        ..aufs.clone()
    };
    let mut plan = prepared(lab.plan(vec![branch.clone()], true))?;
    if let Some(writable) = &mut plan.writable {
        writable.memory = true;
    }
    aufs.icexusr = mounts(lab, &plan, &with(&wanted))?;

    let found = features(aufs.clone(), MODEST_OVERLAY);
    let xattr = keeps_attributes(lab, &branch, &found)?;
    run_cases(lab, &found)?;
    Ok(AufsFacts {
        version: read("/sys/module/aufs/version"),
        xattr,
        features: aufs,
    })
}

/// Makes the kernel load the module, by a mount call that needs nothing else.
fn load(lab: &Lab, branch: &Path) -> Result<(), Cause> {
    let at = prepared(lab.directory())?;
    let call = MountCall::New {
        fs_type: "aufs",
        flags: MountFlags::volume(true),
        data: format!("br={}=ro+wh,noxino", branch.display()),
    };
    let mounted = lab.host.mount(&at, &call);
    let backend = Backend::Aufs;
    match mounted {
        Ok(()) => unmount(lab.host, &[&at], PATIENCE)
            .map(drop)
            .map_err(|error| failure("unmounting", &error)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NODEV) => Err(Cause::NotInKernel { backend }),
            Some(Errno::PERM) => Err(Cause::NotPermitted {
                backend,
                user_namespace: false,
            }),
            // Whether a real mount works is asked next.
            _ => Ok(()),
        },
    }
}

/// Whether an extended attribute of a branch shows through the union. `false`
/// too where the store's filesystem has none to show.
fn keeps_attributes(lab: &Lab, branch: &Path, features: &Features) -> Result<bool, Cause> {
    let (name, value) = ("user.aufs-csi.probe", b"kept");
    let file = branch.join("file");
    if rustix::fs::setxattr(&file, name, value, XattrFlags::empty()).is_err() {
        return Ok(false);
    }
    let plan = prepared(lab.plan(vec![branch.to_path_buf()], true))?;
    lab.mount(&plan, features)
        .map_err(|error| failure("mounting", &error))?;
    let mut found = [0_u8; 16];
    let length = rustix::fs::getxattr(plan.target.join("file"), name, &mut found);
    lab.unmount(&plan)
        .map_err(|error| failure("unmounting", &error))?;
    Ok(length.is_ok_and(|length| found.get(..length) == Some(value)))
}

fn test_overlay(lab: &Lab, user_namespace: bool) -> Result<OverlayFacts, Cause> {
    let mut overlay = OverlayFeatures {
        lowerdir_append: lab.host.overlay_appends(),
        index: true,
        userxattr: user_namespace,
    };
    let branch = prepared(lab.directory())?;
    let plan = prepared(lab.plan(vec![branch], true))?;
    lab.mount(&plan, &features(MODEST_AUFS, overlay.clone()))
        .map_err(|error| first_failure(Backend::Overlay, &error))?;
    // Where an index cannot be kept the kernel goes on without, silently; but
    // then it makes no directory for it.
    overlay.index = plan
        .writable
        .as_ref()
        .is_some_and(|writable| writable.work.join("index").is_dir());
    lab.unmount(&plan)
        .map_err(|error| failure("unmounting", &error))?;
    run_cases(lab, &features(MODEST_AUFS, overlay.clone()))?;
    Ok(OverlayFacts { features: overlay })
}

fn run_cases(lab: &Lab, features: &Features) -> Result<(), Cause> {
    for (name, case) in cases::ALL {
        case(lab, features).map_err(|error| failure(name, &error))?;
    }
    Ok(())
}
