//! The end of a store.

use super::{Sharing, Store, StoreError, lock_store, remove_directory};
use crate::layer::steps;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// What says that something else is there goes before it: whatever is left by a
/// kill, the store can be opened, used, and purged again.
const FIRST: [&str; 4] = ["images", "pulls", "access", "layers"];
/// The one makes the directory a store, so it goes after all that is in it; and
/// while the other is there, whoever opens the store waits until all is gone.
const LAST: [&str; 2] = ["store.json", "store.lock"];
/// The filesystem's own, where the store has one to itself.
const THEIRS: &str = "lost+found";

/// A store that nobody else uses for as long as this is there.
#[derive(Debug)]
pub struct Alone<'a>(
    &'a Store,
    #[expect(dead_code, reason = "held for its flock, released on drop")] File,
);

impl Store {
    /// Waits for who uses the store. What was there before may have changed.
    pub fn lock_alone(&self) -> Result<Alone<'_>, StoreError> {
        let path = self.root.join("store.lock");
        lock_store(&path, Sharing::Exclusive).map(|file| Alone(self, file))
    }
}

impl Alone<'_> {
    /// Removes the store with everything in it, whatever its name, for the
    /// directory is the store's alone. Nothing may be mounted in it; a mount point
    /// ends it with an error. The directory itself stays where something is mounted
    /// on it, or where it is a mount.
    pub fn purge(self) -> Result<(), StoreError> {
        let root = &self.0.root;
        let mut names: Vec<OsString> = FIRST.map(OsString::from).into();
        for entry in fs::read_dir(root).map_err(StoreError::io("list", root))? {
            let name = entry.map_err(StoreError::io("list", root))?.file_name();
            let is_late = LAST.iter().any(|late| name == *late);
            if !is_late && name != THEIRS && !names.contains(&name) {
                names.push(name);
            }
        }
        names.extend(LAST.map(OsString::from));
        for name in names {
            steps::before("remove a part of the store");
            remove(&root.join(name))?;
        }
        steps::before("remove the store's directory");
        remove_empty(root)
    }
}

/// Removes a file, or a directory with everything in it; absent is fine.
fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => remove_directory(path),
        Ok(_) => fs::remove_file(path).map_err(StoreError::io("remove", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// Removes a directory if it is empty, nobody's mount point, and there.
pub(crate) fn remove_empty(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir(path) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
            ) =>
        {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
