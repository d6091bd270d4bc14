//! Runs the steps of a plan, compares the kernel's own view with the plan, and
//! undoes everything if anything fails.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::aufs::{self, Paths};
use super::release::{self, Patience, UnmountError};
use super::{Backend, Features, MountPlan, MountStep, PlanError, bind, overlay};
use crate::host::{Host, MountCall, MountEntry, MountFlags, Place};
use rustix::io::Errno;

/// How long a mount of our own may be busy when it is taken down again: only
/// something that walks the whole system touches a path that nobody knows yet.
const UNDO_PATIENCE: Duration = Duration::from_secs(5);

/// How long overlayfs may find a writable layer in use before that is believed.
/// Every process that is started in a mount namespace of its own, such as any
/// container, has a copy of all mounts for a moment, and keeps alive through it
/// a union that has just been unmounted.
const IN_USE_PATIENCE: Duration = Duration::from_secs(2);

/// A union that is mounted as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Id of the union in `/sys/fs/aufs`, where it is one of AUFS.
    pub aufs_id: Option<String>,
}

/// A plan that was not mounted. Unless [`MountError::is_undone`] says
/// otherwise, nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The plan cannot be mounted.
    #[error("the plan cannot be mounted")]
    Plan(#[source] PlanError),
    /// Something is mounted at the target already.
    #[error("{target} is a mount point already", target = target.display())]
    Occupied {
        /// The target.
        target: PathBuf,
    },
    /// The target cannot be looked at.
    #[error("cannot look at {target}", target = target.display())]
    Target {
        /// The target.
        target: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What a killed run left cannot be taken down.
    #[error("cannot take down what an earlier run left")]
    Clear {
        /// Why not.
        source: UnmountError,
    },
    /// A stale xino file cannot be removed.
    #[error("cannot remove the stale file {path}", path = path.display())]
    RemoveStale {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A mount call failed.
    #[error("the {call} at {at} failed{hint}", at = at.display())]
    Call {
        /// Which call.
        call: &'static str,
        /// Where.
        at: PathBuf,
        /// Where to read more, if the errno does not say enough.
        hint: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another mount has the writable layer, seen from here or not.
    #[error("the writable layer {upper} is in use by another mount after waiting {waited:?}", upper = upper.display())]
    InUse {
        /// The directory.
        upper: PathBuf,
        /// Time spent waiting.
        waited: Duration,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The directory inside the union that was to appear is not there, or is no
    /// directory.
    #[error("{sub_path:?} is {what} in the union")]
    SubPath {
        /// The directory.
        sub_path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// The kernel takes fewer branches than it was believed to.
    #[error("the kernel takes fewer than {count} branches")]
    BranchLimit {
        /// Branches of the plan, the writable one included.
        count: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not mount what was planned.
    #[error("the mount at {at} is not as planned", at = at.display())]
    Verify {
        /// Where.
        at: PathBuf,
        /// What differs.
        source: VerifyError,
    },
    /// The staging path cannot be freed.
    #[error("cannot free the staging path")]
    Release {
        /// Why not.
        source: UnmountError,
    },
    /// A step failed, and so did taking down what had been mounted before.
    #[error("mounting failed and could not be undone: {undo}")]
    NotUndone {
        /// Why the mount is still there.
        undo: UnmountError,
        /// Why the plan was not mounted.
        source: Box<MountError>,
    },
}

impl MountError {
    /// Whether the node is as it was before.
    #[must_use]
    pub const fn is_undone(&self) -> bool {
        !matches!(self, Self::NotUndone { .. })
    }
}

/// A mount that is not the planned one.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Nothing is mounted there.
    #[error("{at} is not a mount point", at = at.display())]
    NotMounted {
        /// Where.
        at: PathBuf,
    },
    /// The kernel does not answer.
    #[error("cannot look at {path}", path = path.display())]
    Inspect {
        /// The path that was asked about.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another type of filesystem.
    #[error("{at} is not of type {expected} but has the magic number {found:#x}", at = at.display())]
    Type {
        /// Where.
        at: PathBuf,
        /// Planned type.
        expected: Backend,
        /// Magic number of what is there, see `statfs(2)`.
        found: u64,
    },
    /// Other flags.
    #[error("{at} is mounted {found} and not {expected}", at = at.display())]
    Flags {
        /// Where.
        at: PathBuf,
        /// Planned flags.
        expected: MountFlags,
        /// Flags of what is there.
        found: MountFlags,
    },
    /// An option is missing, foreign, or has another value.
    #[error("option {key}: expected {expected:?}, found {found:?}")]
    Option {
        /// The option.
        key: String,
        /// Planned value, if it has one.
        expected: Option<String>,
        /// Reported value, if it has one.
        found: Option<String>,
    },
    /// More or fewer branches.
    #[error("the union has {found} branches and not {expected}")]
    BranchCount {
        /// Planned branches.
        expected: usize,
        /// Branches that the kernel reports.
        found: usize,
    },
    /// Another branch, or the right one with another permission.
    #[error("branch {index} is {found} and not {expected}")]
    Branch {
        /// Its place, top first, from 0.
        index: usize,
        /// Planned branch.
        expected: String,
        /// Branch that the kernel reports.
        found: String,
    },
    /// The kernel does not say which union this is.
    #[error("the kernel does not tell the id of the union at {at}", at = at.display())]
    NoId {
        /// Where.
        at: PathBuf,
    },
    /// A bind shows another directory.
    #[error("{at} does not show {expected}", at = at.display(), expected = expected.display())]
    OtherDirectory {
        /// The bind.
        at: PathBuf,
        /// What it should show.
        expected: PathBuf,
    },
}

impl VerifyError {
    pub(super) fn option(key: &str, expected: Option<&Path>, entry: &MountEntry) -> Self {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self::Option {
            key: key.to_owned(),
            expected: expected.map(|path| path.display().to_string()),
            found: entry.option(key).map(lossy),
        }
    }
}

/// Mounts a plan: [`MountPlan::steps`], then [`execute`].
pub fn mount(
    host: &dyn Host,
    plan: &MountPlan,
    features: &Features,
) -> Result<Mounted, MountError> {
    let steps = plan.steps(features).map_err(MountError::Plan)?;
    execute(host, plan, features, &steps)
}

/// Runs the `steps` of `plan`. Target and staging path must exist; nothing may
/// be mounted at the target.
pub fn execute(
    host: &dyn Host,
    plan: &MountPlan,
    features: &Features,
    steps: &[MountStep],
) -> Result<Mounted, MountError> {
    let target = host
        .place(&plan.target)
        .map_err(|source| MountError::Target {
            target: plan.target.clone(),
            source,
        })?;
    if target.mount_root {
        // Whoever mounted it, taking it down is not part of mounting.
        return Err(MountError::Occupied {
            target: plan.target.clone(),
        });
    }
    let mut run = Run {
        host,
        plan,
        features,
        made: Vec::new(),
        mounted: Mounted { aufs_id: None },
    };
    for step in steps {
        if let Err(error) = run.step(step) {
            return Err(run.undo(error));
        }
    }
    Ok(run.mounted)
}

/// Whether a plan that was mounted before, perhaps by an earlier run of this
/// program, is still mounted as planned.
pub fn verify(host: &dyn Host, plan: &MountPlan) -> Result<Mounted, VerifyError> {
    let at = &plan.target;
    verify_kind(host, plan, at)?;
    if plan.backend == Backend::Bind {
        bind::verify(host, plan, at, plan.sub_path.is_some())?;
        return Ok(Mounted { aufs_id: None });
    }
    let entry = entry_at(host, at)?;
    if plan.sub_path.is_none() && entry.root != Path::new("/") {
        return Err(VerifyError::OtherDirectory {
            at: at.clone(),
            expected: PathBuf::from("/"),
        });
    }
    let aufs_id = match plan.backend {
        Backend::Aufs => {
            let id = aufs::id_of(&entry).ok_or(VerifyError::NoId { at: at.clone() })?;
            aufs::verify_options(plan, None, &entry, Paths::Suffix)?;
            aufs::verify_branches(host, plan, None, &id, Some(&entry), Paths::Suffix)?;
            Some(id)
        }
        Backend::Overlay => {
            overlay::verify_options(plan, &entry)?;
            None
        }
        Backend::Bind => None,
    };
    Ok(Mounted { aufs_id })
}

/// Type and flags, which cost a microsecond to ask.
fn verify_kind(host: &dyn Host, plan: &MountPlan, at: &Path) -> Result<Place, VerifyError> {
    let inspect = |source| VerifyError::Inspect {
        path: at.to_path_buf(),
        source,
    };
    let not_mounted = || VerifyError::NotMounted {
        at: at.to_path_buf(),
    };
    let place = match host.place(at) {
        Ok(place) if place.mount_root => place,
        Ok(_) => return Err(not_mounted()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_mounted()),
        Err(error) => return Err(inspect(error)),
    };
    let found = host.filesystem(at).map_err(inspect)?;
    let magic = match plan.backend {
        Backend::Aufs => aufs::MAGIC,
        Backend::Overlay => overlay::MAGIC,
        // A bind shows whatever the branch is on.
        Backend::Bind => found.magic,
    };
    if found.magic != magic {
        return Err(VerifyError::Type {
            at: at.to_path_buf(),
            expected: plan.backend,
            found: found.magic,
        });
    }
    // Equal, not at least: a writable volume that came up read-only, or one
    // whose programs cannot run, is not as planned either.
    if found.flags != plan.flags() {
        return Err(VerifyError::Flags {
            at: at.to_path_buf(),
            expected: plan.flags(),
            found: found.flags,
        });
    }
    Ok(place)
}

fn entry_at(host: &dyn Host, at: &Path) -> Result<MountEntry, VerifyError> {
    host.mount_at(at)
        .map_err(|source| VerifyError::Inspect {
            path: at.to_path_buf(),
            source,
        })?
        .ok_or_else(|| VerifyError::NotMounted {
            at: at.to_path_buf(),
        })
}

/// The state of one execution.
struct Run<'a> {
    host: &'a dyn Host,
    plan: &'a MountPlan,
    features: &'a Features,
    /// Where something is mounted by this run, oldest first.
    made: Vec<PathBuf>,
    mounted: Mounted,
}

impl Run<'_> {
    fn step(&mut self, step: &MountStep) -> Result<(), MountError> {
        match step {
            MountStep::Clear { at } => release::detach(self.host, at, UNDO_PATIENCE)
                .map(drop)
                .map_err(|source| MountError::Clear { source }),
            MountStep::RemoveStale { path } => {
                self.host
                    .remove_stale(path)
                    .map_err(|source| MountError::RemoveStale {
                        path: path.clone(),
                        source,
                    })
            }
            MountStep::Call { at, call } => self.call(at, call),
            MountStep::VerifyUnion { at } => {
                self.verify_union(at).map_err(|source| MountError::Verify {
                    at: at.clone(),
                    source,
                })
            }
            MountStep::VerifyBind { at, of } => {
                self.verify_bind(at, of)
                    .map_err(|source| MountError::Verify {
                        at: at.clone(),
                        source,
                    })
            }
            MountStep::Release { at } => {
                release::detach(self.host, at, UNDO_PATIENCE)
                    .map_err(|source| MountError::Release { source })?;
                self.made.retain(|made| made != at);
                Ok(())
            }
        }
    }

    fn call(&mut self, at: &Path, call: &MountCall) -> Result<(), MountError> {
        let mut patience = Patience::new(IN_USE_PATIENCE);
        let result = loop {
            match (self.host.mount(at, call), call) {
                (Err(error), MountCall::Overlay(overlay))
                    if error.kind() == io::ErrorKind::ResourceBusy =>
                {
                    if patience.wait(self.host) {
                        continue;
                    }
                    break match &overlay.upper_work {
                        Some((upper, _)) => {
                            return Err(MountError::InUse {
                                upper: upper.clone(),
                                waited: patience.waited(),
                                source: error,
                            });
                        }
                        None => Err(error),
                    };
                }
                (result, _) => break result,
            }
        };
        match result {
            Ok(()) => {}
            // AUFS says so at the branch that is one too many, wherever.
            Err(source)
                if source.kind() == io::ErrorKind::StorageFull
                    && self.plan.backend == Backend::Aufs =>
            {
                return Err(MountError::BranchLimit {
                    count: self.plan.branches.len() + usize::from(self.plan.writable.is_some()),
                    source,
                });
            }
            Err(source) => {
                if let MountCall::Bind {
                    beneath: Some(beneath),
                    ..
                } = call
                    && let Some(what) = missing(&source)
                {
                    return Err(MountError::SubPath {
                        sub_path: beneath.clone(),
                        what,
                    });
                }
                let hint = match call {
                    // AUFS turns every cause into EINVAL.
                    MountCall::New { .. } | MountCall::Remount { .. } => {
                        "; the kernel's log says why"
                    }
                    MountCall::Bind { .. }
                    | MountCall::AddFlags { .. }
                    | MountCall::Private
                    | MountCall::Overlay(_)
                    | MountCall::Image { .. } => "",
                };
                return Err(MountError::Call {
                    call: call.name(),
                    at: at.to_path_buf(),
                    hint,
                    source,
                });
            }
        }
        match call {
            MountCall::New { .. }
            | MountCall::Bind { .. }
            | MountCall::Overlay(_)
            | MountCall::Image { .. } => {
                self.made.push(at.to_path_buf());
            }
            MountCall::Remount { .. } | MountCall::AddFlags { .. } | MountCall::Private => {}
        }
        Ok(())
    }

    fn verify_union(&mut self, at: &Path) -> Result<(), VerifyError> {
        verify_kind(self.host, self.plan, at)?;
        match self.plan.backend {
            Backend::Bind => bind::verify(self.host, self.plan, at, false),
            Backend::Overlay => overlay::verify_options(self.plan, &entry_at(self.host, at)?),
            Backend::Aufs => self.verify_aufs(at),
        }
    }

    fn verify_aufs(&mut self, at: &Path) -> Result<(), VerifyError> {
        let Self {
            host,
            plan,
            features,
            ..
        } = *self;
        let features = Some(features);
        let entry = entry_at(host, at)?;
        let id = aufs::id_of(&entry).ok_or_else(|| VerifyError::NoId {
            at: at.to_path_buf(),
        })?;
        self.mounted.aufs_id = Some(id.clone());
        aufs::verify_options(plan, features, &entry, Paths::Exact)?;
        aufs::verify_branches(host, plan, features, &id, Some(&entry), Paths::Exact)
    }

    fn verify_bind(&self, at: &Path, of: &Path) -> Result<(), VerifyError> {
        let bind = verify_kind(self.host, self.plan, at)?;
        let union = self.host.place(of).map_err(|source| VerifyError::Inspect {
            path: of.to_path_buf(),
            source,
        })?;
        let inside = self.plan.sub_path.is_some();
        if bind.device != union.device || (!inside && bind.inode != union.inode) {
            return Err(VerifyError::OtherDirectory {
                at: at.to_path_buf(),
                expected: of.to_path_buf(),
            });
        }
        Ok(())
    }

    /// Takes down what this run mounted, newest first, and all of it even if
    /// one refuses.
    fn undo(self, error: MountError) -> MountError {
        let mut failed = None;
        for at in self.made.iter().rev() {
            if let Err(undo) = release::detach(self.host, at, UNDO_PATIENCE) {
                failed.get_or_insert(undo);
            }
        }
        if failed.is_none()
            && let Some(id) = &self.mounted.aufs_id
        {
            let target = &self.plan.staging;
            failed = release::await_union(self.host, target, id, UNDO_PATIENCE).err();
        }
        match failed {
            None => error,
            Some(undo) => MountError::NotUndone {
                undo,
                source: Box::new(error),
            },
        }
    }
}

/// What a path inside a union is, by the answer to opening it as a directory,
/// where that is the fault of whoever named it.
fn missing(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::NOENT => Some("missing, or a link that leads nowhere,"),
        Errno::NOTDIR => Some("no directory"),
        Errno::LOOP => Some("a link that leads to itself"),
        Errno::NAMETOOLONG => Some("a longer name than there can be"),
        // Only where the kernel resolves it without help (before Linux 5.6).
        Errno::XDEV => Some("a link that leads out"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
