//! Unions that read-only volumes share. Pods of one image see the same files and
//! can change none, so they get one union with a bind for each: one superblock,
//! one set of inodes and dentries in the kernel's memory, however many pods.
//!
//! ```text
//! shared/<id>/mount      the union
//! shared/<id>/staging    where one of AUFS is built
//! shared/<id>/users/<v>  a file for each volume that uses it, by its directory's name
//! shared/<id>.lock       held by whoever makes it, joins it or leaves it
//! ```
//!
//! A volume's record says which one it uses, before the file that says so here is
//! made; that file is there before the bind is, and goes after it. So whoever
//! leaves last, which the lock decides, takes the union down, and what a killed
//! process leaves is found from the records ([`Volumes::tidy_shared`]).
//!
//! Where the union's own mount cannot be seen any more, because it was made in a
//! container whose mounts do not reach the node, the next volume makes a new one;
//! the old one lives for as long as its binds do. Two read-only unions of the same
//! branches are no danger to each other.
//!
//! Only the plugin's volumes share: a person's command may run in any mount
//! namespace, and nobody in another one could take its union down.

use super::lock::VolumeLock;
use super::publish::of_mount;
use super::record::{self, Owner, VolumeRecord};
use super::{VolumeError, Volumes, make_dir};
use crate::chain::Chain;
use crate::host::MountCall;
use crate::layer::steps;
use crate::layer::store::{StoreError, hex};
use crate::union::{self, Backend, Features, MountPlan, VerifyError};
use sha2::{Digest as _, Sha256};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an unmount of what a killed process left waits for who still uses it.
const TIDY_PATIENCE: Duration = Duration::from_millis(200);

/// Name of the union that a volume shares, if it shares one: of the calls that make
/// it. So one that another version of this program made in another way is not taken
/// for the same, and lives beside it until its last volume goes.
pub(super) fn id_of(plan: &MountPlan, owner: Owner, features: &Features) -> Option<String> {
    if !plan.read_only || plan.backend == Backend::Bind || owner != Owner::Plugin {
        return None;
    }
    let anywhere = MountPlan {
        target: "/target".into(),
        staging: "/staging".into(),
        sub_path: None,
        xino: Some("/xino".into()),
        ..plan.clone()
    };
    // A plan that cannot be mounted says why when it is.
    let steps = anywhere.steps(features).ok()?;
    let mut hasher = Digesting(Sha256::new());
    steps.hash(&mut hasher);
    Some(hex(&hasher.0.finalize()[..16]))
}

/// Digests what is hashed: a text of it would take as long as a mount. Another
/// compiler may hash in another way, as another version may make other calls.
struct Digesting(Sha256);

impl Hasher for Digesting {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// Where a shared union is.
struct Home {
    dir: PathBuf,
    xino: PathBuf,
}

impl Home {
    fn mount(&self) -> PathBuf {
        self.dir.join("mount")
    }

    fn staging(&self) -> PathBuf {
        self.dir.join("staging")
    }

    fn users(&self) -> PathBuf {
        self.dir.join("users")
    }

    /// The union of a volume's plan, mounted here.
    fn plan(&self, of: &MountPlan) -> MountPlan {
        MountPlan {
            target: self.mount(),
            staging: self.staging(),
            sub_path: None,
            xino: Some(self.xino.clone()),
            ..of.clone()
        }
    }

    /// Volumes that use it, by the names of their directories.
    fn list(&self) -> Result<Vec<OsString>, VolumeError> {
        names(&self.users())
    }
}

impl Volumes {
    fn shared_dir(&self) -> PathBuf {
        self.store.root().join("shared")
    }

    fn home(&self, id: &str) -> Home {
        let dir = self.shared_dir().join(id);
        Home {
            xino: self.xino_path(&dir),
            dir,
        }
    }

    /// The file of the inode translation of AUFS, of the volume with this directory
    /// or of the union that it shares. It can be made, if the union is one of AUFS.
    pub(super) fn xino_of(
        &self,
        dir: &Path,
        shared: Option<&str>,
        backend: Backend,
    ) -> Result<PathBuf, VolumeError> {
        if backend == Backend::Aufs {
            make_all(&self.xino_dir())?;
        }
        Ok(match shared {
            Some(id) => self.home(id).xino,
            None => self.xino_path(dir),
        })
    }

    /// Binds a recorded volume to the union that it shares, which is made if it is
    /// not there.
    pub(super) fn mount_shared(
        &self,
        dir: &Path,
        record: &mut VolumeRecord,
        id: &str,
    ) -> Result<(), VolumeError> {
        make_all(&self.shared_dir())?;
        let home = self.home(id);
        let lock = VolumeLock::take(&home.dir).map_err(VolumeError::Store)?;
        let joined = self.join(&home, dir, record);
        lock.end(&home.dir, joined)
    }

    /// The caller has the lock.
    fn join(&self, home: &Home, dir: &Path, record: &mut VolumeRecord) -> Result<(), VolumeError> {
        let host = self.host.as_ref();
        let features = self.probe()?.features();
        for part in [&home.dir, &home.users(), &home.mount(), &home.staging()] {
            make_dir(part, 0o700)?;
        }
        let user = home.users().join(name_of(dir));
        steps::before("note that a volume uses the shared union");
        fs::File::create(&user)
            .map_err(StoreError::io("create", &user))
            .map_err(VolumeError::Store)?;
        let plan = home.plan(&record.plan);
        match union::verify(host, &plan) {
            Ok(_) => {}
            Err(VerifyError::NotMounted { .. }) => {
                union::mount(host, &plan, &features).map_err(VolumeError::Mount)?;
            }
            Err(source) => {
                return Err(VolumeError::Shared {
                    at: plan.target,
                    source,
                });
            }
        }
        // Or what somebody mounts in one pod's volume is in all pods' and holds them.
        host.mount(&plan.target, &MountCall::Private)
            .map_err(|source| VolumeError::Target {
                target: plan.target.clone(),
                source,
            })?;
        let steps = record.plan.bound_from(&plan.target);
        union::execute(host, &record.plan, &features, &steps)
            .map_err(|error| of_mount(error, record))?;
        record.aufs_id = union::union_at(host, &record.target);
        Ok(())
    }

    /// A volume whose bind is gone leaves the union that it shared. The last one
    /// takes it down.
    pub(super) fn leave_shared(
        &self,
        dir: &Path,
        record: &VolumeRecord,
        patience: Duration,
    ) -> Result<(), VolumeError> {
        let Some(id) = &record.shared else {
            return Ok(());
        };
        let home = self.home(id);
        if !self.shared_dir().exists() {
            return Ok(());
        }
        let lock = VolumeLock::take(&home.dir).map_err(VolumeError::Store)?;
        let name = name_of(dir);
        let left = home.list().and_then(|users| {
            let known = record.aufs_id.as_deref();
            if users.iter().all(|user| *user == name) {
                return self.end_shared(&home, known, patience);
            }
            // Its own union may be another one than is mounted here now, and
            // nobody else's.
            let host = self.host.as_ref();
            if known.is_some() && known != union::union_at(host, &home.mount()).as_deref() {
                union::unmount_union(host, &[&record.target], known, patience)
                    .map_err(VolumeError::Unmount)?;
            }
            remove_user(&home, &name)
        });
        lock.end(&home.dir, left)
    }

    /// Takes a union down that nobody uses. The caller has the lock.
    fn end_shared(
        &self,
        home: &Home,
        aufs_id: Option<&str>,
        patience: Duration,
    ) -> Result<(), VolumeError> {
        let (mount, staging) = (home.mount(), home.staging());
        union::unmount_union(self.host.as_ref(), &[&mount, &staging], aufs_id, patience)
            .map_err(VolumeError::Unmount)?;
        self.host
            .remove_stale(&home.xino)
            .map_err(StoreError::io("remove", &home.xino))
            .map_err(VolumeError::Store)?;
        // Each only if it is empty: nothing beneath a mount is ever removed.
        remove_empty(&mount)?;
        remove_empty(&staging)?;
        for user in home.list()? {
            remove_user(home, &user)?;
        }
        remove_empty(&home.users())?;
        remove_empty(&home.dir)
    }

    /// Takes down shared unions that no volume's record knows, and forgets users
    /// that are none: what killed processes left. Gives the number of those that
    /// were taken down, and of those that are in use although they should not be.
    pub fn tidy_shared(&self) -> Result<(usize, usize), VolumeError> {
        let (mut done, mut stuck) = (0, 0);
        let base = self.shared_dir();
        let mut homes: Vec<PathBuf> = names(&base)?
            .iter()
            .map(|name| base.join(name).with_extension(""))
            .collect();
        homes.sort();
        homes.dedup();
        for dir in homes {
            match self.tidy_one(&dir) {
                Ok(ended) => done += usize::from(ended),
                Err(error) => {
                    stuck += 1;
                    tracing::warn!(
                        path = %dir.display(),
                        error = %Chain(&error),
                        "a union that nobody should use stays"
                    );
                }
            }
        }
        Ok((done, stuck))
    }

    fn tidy_one(&self, dir: &Path) -> Result<bool, VolumeError> {
        let Some(lock) = VolumeLock::try_take(dir).map_err(VolumeError::Store)? else {
            return Ok(false);
        };
        let home = Home {
            xino: self.xino_path(dir),
            dir: dir.to_owned(),
        };
        let tidied = self.tidy_locked(&home);
        lock.end(dir, tidied)
    }

    fn tidy_locked(&self, home: &Home) -> Result<bool, VolumeError> {
        let id = name_of(&home.dir);
        let mut is_used = false;
        for user in home.list()? {
            let volume = self.store.volumes_dir().join(&user);
            let uses = match record::read(&volume) {
                Ok(Some(record)) => record.shared.is_some_and(|shared| *shared == *id),
                Ok(None) => false,
                // What cannot be read is not taken for gone.
                Err(_) => true,
            };
            match uses {
                true => is_used = true,
                false => remove_user(home, &user)?,
            }
        }
        if is_used {
            return Ok(false);
        }
        let is_mounted = self.is_mount(&home.mount())?;
        self.end_shared(home, None, TIDY_PATIENCE)?;
        Ok(is_mounted)
    }
}

/// The last part of a path of the store.
fn name_of(path: &Path) -> OsString {
    path.file_name().map(OsStr::to_owned).unwrap_or_default()
}

fn remove_user(home: &Home, name: &OsStr) -> Result<(), VolumeError> {
    let user = home.users().join(name);
    steps::before("note that a volume uses the shared union no more");
    match fs::remove_file(&user) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(VolumeError::Store(StoreError::io("remove", &user)(error)))
        }
        _ => Ok(()),
    }
}

fn remove_empty(dir: &Path) -> Result<(), VolumeError> {
    steps::before("remove a directory of a shared union");
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(VolumeError::Store(StoreError::io("remove", dir)(error)))
        }
        _ => Ok(()),
    }
}

/// The names in a directory; none if there is no such directory.
fn names(dir: &Path) -> Result<Vec<OsString>, VolumeError> {
    let failed = |error| VolumeError::Store(StoreError::io("read", dir)(error));
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name()).map_err(failed))
        .collect()
}

/// Makes a directory, and those above it that are missing.
fn make_all(dir: &Path) -> Result<(), VolumeError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(StoreError::io("create", dir))
        .map_err(VolumeError::Store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_union_is_shared_by_what_makes_it_and_not_by_where_it_is() {
        let features = union::tests::features();
        let plan = |name: &str| MountPlan {
            backend: Backend::Aufs,
            branches: vec!["/s/diff/b".into(), "/s/diff/a".into()],
            writable: None,
            target: format!("/pods/{name}").into(),
            staging: format!("/s/volumes/{name}/staging").into(),
            sub_path: (name == "sub").then(|| "d".into()),
            read_only: true,
            label: None,
            xino: Some(format!("/run/{name}").into()),
        };
        let id = |plan: &MountPlan| id_of(plan, Owner::Plugin, &features).unwrap();
        let one = id(&plan("one"));
        assert_eq!(one, id(&plan("two")));
        assert_eq!(one, id(&plan("sub")));
        let mut others = vec![one.clone()];
        for change in [
            (|plan| plan.branches.reverse()) as fn(&mut MountPlan),
            |plan| plan.label = Some("u:r:t:s0".to_owned()),
            |plan| plan.backend = Backend::Overlay,
        ] {
            let mut other = plan("one");
            change(&mut other);
            others.push(id(&other));
        }
        // As a version of this program that gives other options.
        let mut older = features.clone();
        older.aufs.dirperm1 = false;
        others.extend(id_of(&plan("one"), Owner::Plugin, &older));
        let count = others.len();
        others.sort();
        others.dedup();
        assert_eq!((count, others.len()), (5, 5));
        assert_eq!(id_of(&plan("one"), Owner::Command, &features), None);
    }
}
