//! Removing from the store what nobody needs, while others use it.
//!
//! A branch ends as it begins, by its record: with `layers/<id>.json` gone, it is
//! no branch any more. That, and moving its content out of the way, happens under
//! the locks of commits and leases, together with the last look at who needs it; the content is
//! removed when nobody waits any more, and not before it is on disk that the
//! record is gone. What a kill leaves between any two steps is found by the next
//! collection ([`Removal::residue`]) or start.

use super::records::{IndexRecord, ReferenceRecord};
use super::{
    BranchId, Held, ImageRecord, StackRecord, Store, StoreError, read_json, remove_directory,
    unique,
};
use crate::layer::steps;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Held by the one who collects.
#[derive(Debug)]
pub struct Collecting(#[expect(dead_code, reason = "held for its flock, released on drop")] File);

/// A moment in which no branch comes, and no lease names one.
#[derive(Debug)]
pub struct Removal<'a> {
    store: &'a Store,
    /// Of commits and of leases.
    locks: [File; 2],
    /// Content that is nobody's any more.
    gone: Vec<PathBuf>,
    changed: bool,
}

impl Store {
    /// Begins to collect; none where another process does. With `wait`, when that
    /// one is ready.
    pub fn collect(&self, wait: bool) -> Result<Option<Collecting>, StoreError> {
        use rustix::fs::FlockOperation::NonBlockingLockExclusive;
        let path = self.root().join("store.collect.lock");
        if wait {
            return super::lock(&path, super::Sharing::Exclusive)
                .map(|lock| Some(Collecting(lock)));
        }
        let lock = super::open_lock(&path).map_err(StoreError::io("open", &path))?;
        match rustix::fs::flock(&lock, NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Collecting(lock))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(StoreError::io("lock", &path)(error.into())),
        }
    }

    /// Keeps branches from coming and leases from naming any, until it ends. The
    /// caller collects, holds [`Store::lock_shared`], and is quick.
    pub fn begin_removal(&self, _: &Collecting) -> Result<Removal<'_>, StoreError> {
        steps::before("look who needs what");
        Ok(Removal {
            store: self,
            // In this order; nobody else wants both.
            locks: [self.lock_commits()?, self.lock_leases()?],
            gone: Vec::new(),
            changed: false,
        })
    }
}

impl Removal<'_> {
    /// What leases name; none where that cannot be told.
    pub fn leases(&self) -> Result<Option<Vec<Held>>, StoreError> {
        self.store.leases()
    }

    /// Ends a branch. Its content is removed by [`Removal::end`].
    pub fn branch(&mut self, id: &BranchId) -> Result<(), StoreError> {
        steps::before("remove a branch's record");
        self.unlink(&self.store.layer_file(id, "json"))?;
        self.set_aside(&self.store.branch_dir(id))?;
        for kind in ["index", "edits"] {
            steps::before("remove what belongs to a branch");
            self.unlink(&self.store.layer_file(id, kind))?;
        }
        Ok(())
    }

    /// Ends an image: what leads to it, and its record.
    pub fn image(&mut self, image: &ImageRecord) -> Result<(), StoreError> {
        let names = |manifest: &str| manifest == image.manifest;
        self.names_of(&names)?;
        steps::before("remove an image's record");
        self.unlink(&self.store.image_file(&image.manifest, ".json"))
    }

    /// Removes names and indexes that lead to such a manifest.
    fn names_of(&mut self, leads: &dyn Fn(&str) -> bool) -> Result<(), StoreError> {
        let dir = self.store.root().join("images");
        for name in self.store.names("images", ".ref.json")? {
            let path = dir.join(format!("{name}.ref.json"));
            let record = read_json::<ReferenceRecord>(&path);
            if matches!(record, Ok(Some(record)) if leads(&record.manifest)) {
                steps::before("remove a name of an image");
                self.unlink(&path)?;
            }
        }
        for name in self.store.names("images", ".index.json")? {
            let path = dir.join(format!("{name}.index.json"));
            let record = read_json::<IndexRecord>(&path);
            if matches!(record, Ok(Some(record)) if leads(&record.manifest)) {
                steps::before("remove an index of an image");
                self.unlink(&path)?;
            }
        }
        for name in self.store.names("images", ".stack.json")? {
            let path = dir.join(format!("{name}.stack.json"));
            let record = read_json::<StackRecord>(&path);
            if matches!(record, Ok(Some(record)) if record.manifests.iter().any(|it| leads(it))) {
                steps::before("remove the record of several images");
                self.unlink(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what a kill in the middle of a removal left, or in the middle of a
    /// commit: content without a record, but what `is_shown` by a mount, and names
    /// that lead to no image and no lease's. Gives the number of directories.
    pub fn residue(
        &mut self,
        leases: &[Held],
        is_shown: &dyn Fn(&BranchId) -> bool,
    ) -> Result<usize, StoreError> {
        let diff = self.store.root().join("diff");
        let mut found = 0;
        for name in self.store.names("diff", "")? {
            // What was set aside begins with the branch's name.
            let (id, is_aside) = match name.split_once('.') {
                Some((id, _)) => (id, true),
                None => (name.as_str(), false),
            };
            let id = BranchId::try_from(id.to_owned()).ok();
            let is_branch = match &id {
                Some(id) if !is_aside => self.store.branch(id)?.is_some(),
                _ => false,
            };
            if is_branch || id.as_ref().is_some_and(is_shown) {
                continue;
            }
            found += 1;
            match (id, is_aside) {
                (Some(id), false) => self.branch(&id)?,
                _ => self.gone.push(diff.join(&name)),
            }
        }
        let layers = self.store.root().join("layers");
        for name in self.store.names("layers", "")? {
            let id = name.split_once('.').map(|(id, _)| id.to_owned());
            let id = id.and_then(|id| BranchId::try_from(id).ok());
            // What is being written is another's.
            if let Some(id) = id
                && (name.ends_with(".index") || name.ends_with(".edits"))
                && self.store.branch(&id)?.is_none()
            {
                steps::before("remove what belongs to a branch");
                self.unlink(&layers.join(&name))?;
            }
        }
        let images: BTreeSet<String> = self
            .store
            .images()?
            .into_iter()
            .map(|image| image.manifest)
            .collect();
        let leased = |manifest: &str| {
            let mut held = leases.iter().flat_map(|held| &held.images);
            held.any(|image| image == manifest)
        };
        self.names_of(&|manifest| !images.contains(manifest) && !leased(manifest))?;
        Ok(found)
    }

    /// Lets others go on, waits until it is on disk that records are gone, and
    /// removes the content.
    pub fn end(self) -> Result<(), StoreError> {
        let Removal {
            store,
            locks,
            gone,
            changed,
        } = self;
        drop(locks);
        if changed {
            // After a power loss a record must not be back whose content is not.
            steps::before("flush the removal of records");
            for dir in ["layers", "diff"] {
                let path = store.root().join(dir);
                File::open(&path)
                    .and_then(|dir| dir.sync_all())
                    .map_err(StoreError::io("flush", &path))?;
            }
        }
        for path in &gone {
            steps::before("remove the content of a branch");
            remove_directory(path)?;
        }
        Ok(())
    }

    /// Moves a directory to a name that is no branch's, in the same directory, for
    /// a disk that is full has no place for another one.
    fn set_aside(&mut self, dir: &Path) -> Result<(), StoreError> {
        let aside = dir.with_extension(format!("gone-{}", unique()));
        steps::before("set the content of a branch aside");
        match fs::rename(dir, &aside) {
            Ok(()) => {
                self.changed = true;
                self.gone.push(aside);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("move", dir)(error)),
        }
    }

    fn unlink(&mut self, path: &Path) -> Result<(), StoreError> {
        match fs::remove_file(path) {
            Ok(()) => {
                self.changed = true;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("remove", path)(error)),
        }
    }
}
