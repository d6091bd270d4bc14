//! Making a branch visible, and removing what never became so.

use super::{BranchId, BranchRecord, Store, StoreError, remove_directory, write_json};
use crate::layer::seal::EditLog;
use crate::layer::steps;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

impl Store {
    /// Makes a finished directory the branch that `record` describes; `tree` and
    /// `index` are in the caller's work directory and are moved. Returns false
    /// when another process was first: then nothing is moved.
    ///
    /// Nothing is flushed: the record carries the boot id until [`Store::flush`].
    /// The caller holds [`Store::lock_shared`].
    pub fn commit(
        &self,
        tree: &Path,
        index: &Path,
        edits: &EditLog,
        record: &BranchRecord,
    ) -> Result<bool, StoreError> {
        let id = &record.id;
        let _commits = self.lock_commits()?;
        if self.branch(id)?.is_some() {
            return Ok(false);
        }
        let dir = self.branch_dir(id);
        // Of a process that was killed in the middle of this function, or not
        // flushed in time: out of the way, removed with the work directory.
        let residue = tree.with_extension("residue");
        steps::before("move what is in a branch's way");
        match fs::rename(&dir, &residue) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("move", &dir)(error));
            }
            _ => {}
        }
        let result = self.install(tree, index, edits, record);
        if result.is_err() {
            // On a full disk a whole layer would lie there until the next start.
            // What cannot be taken back is what that start removes.
            let _ = fs::rename(&dir, tree);
            let _ = fs::remove_file(self.layer_file(id, "index"));
            let _ = fs::remove_file(self.layer_file(id, "edits"));
        }
        result.map(|()| true)
    }

    fn install(
        &self,
        tree: &Path,
        index: &Path,
        edits: &EditLog,
        record: &BranchRecord,
    ) -> Result<(), StoreError> {
        let id = &record.id;
        let log = self.layer_file(id, "edits");
        steps::before("write the edits");
        File::create(&log)
            .and_then(|file| edits.copy_to(file))
            .map_err(StoreError::io("write", &log))?;
        let kept = self.layer_file(id, "index");
        steps::before("move the index");
        fs::rename(index, &kept).map_err(StoreError::io("write", &kept))?;
        let dir = self.branch_dir(id);
        steps::before("move the branch");
        fs::rename(tree, &dir).map_err(StoreError::io("move", &dir))?;
        let mut record = record.clone();
        record.boot = Some(self.boot().to_owned());
        write_json(&self.layer_file(id, "json"), &record, false)
    }

    /// Waits until the branches are on disk and says so in their records, so
    /// that they outlive the boot.
    pub fn flush(&self, ids: &[BranchId]) -> Result<(), StoreError> {
        // Or another process that starts now takes a record that is being
        // written for one that a dead process left.
        let _shared = self.lock_shared()?;
        let place = |id: &BranchId| fs::metadata(self.branch_dir(id)).map(|found| found.ino());
        let mut pending = Vec::new();
        for id in ids {
            if let Some(record) = self.branch(id)?
                && record.boot.is_some()
                && let Ok(inode) = place(id)
            {
                pending.push((record, inode));
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        self.sync()?;
        {
            let _commits = self.lock_commits()?;
            for (mut record, inode) in pending {
                // It may have been collected meanwhile, and made again since.
                let is_same = place(&record.id).is_ok_and(|now| now == inode);
                if is_same && self.branch(&record.id)?.as_ref() == Some(&record) {
                    record.boot = None;
                    write_json(&self.layer_file(&record.id, "json"), &record, false)?;
                }
            }
        }
        // Until the records are on disk too they still name the boot there.
        self.sync()
    }

    pub(super) fn lock_commits(&self) -> Result<File, StoreError> {
        super::lock(
            &self.root().join("store.commit.lock"),
            super::Sharing::Exclusive,
        )
    }
}

/// Removes branches without a good record, and image forms that lack a branch.
/// Nobody else adds to the store or removes from it.
pub(super) fn remove_uncommitted(store: &Store) -> Result<(), StoreError> {
    super::ingest::remove_lockless(store)?;
    // Names of images are noted by whoever holds this one alone.
    let _commits = store.lock_commits()?;
    let diff = store.root().join("diff");
    for name in store.names("diff", "")? {
        let id = BranchId::try_from(name.clone()).ok();
        let record = id.as_ref().map(|id| store.branch(id)).transpose()?;
        if record.flatten().is_none() {
            remove_directory(&diff.join(&name))?;
        }
    }
    let layers = store.root().join("layers");
    for name in store.names("layers", "")? {
        let id = name
            .split_once('.')
            .and_then(|(id, _)| BranchId::try_from(id.to_owned()).ok());
        let record = id.as_ref().map(|id| store.branch(id)).transpose()?;
        if record.flatten().is_none() || name.contains(".tmp") {
            let path = layers.join(&name);
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    // What was to be a record, of an image or of the store itself.
    for (dir, begin) in [("images", ""), ("", "store")] {
        for name in store.names(dir, "")? {
            if name.starts_with(begin) && name.contains(".tmp") {
                let path = store.root().join(dir).join(&name);
                fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
    }
    for mut image in store.images()? {
        let before = image.sealed.len();
        let mut complete = true;
        image.sealed.retain(|_, form| {
            form.branches.iter().all(|id| match store.branch(id) {
                Ok(record) => record.is_some(),
                Err(_) => {
                    complete = false;
                    true
                }
            })
        });
        if complete && image.sealed.len() != before {
            store.put_image(&image, false)?;
        }
    }
    for stack in store.stacks()? {
        let lost = |id: &BranchId| matches!(store.branch(id), Ok(None));
        if stack.form.branches.iter().any(lost) {
            store.remove_stack(&stack)?;
        }
    }
    Ok(())
}
