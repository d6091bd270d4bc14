//! What somebody is about to use and has not recorded yet: a lease.
//!
//! Whoever stages an image or mounts a volume names the branches and images
//! that it relies on, in the file of a lock in `ingest/` that the kernel lets go
//! when its owner dies, however it dies. Names are added under the lock of leases,
//! and collection reads them and removes under the same lock: it sees a name before
//! it removes, or whoever looks for the branch afterwards sees that it is gone.
//! So nothing has to be locked for as long as a pull takes.

use super::ingest::{Claim, remove_dead};
use super::{BranchId, Store, StoreError};
use crate::layer::steps;
use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// Names that are held until this is dropped.
#[derive(Debug)]
pub struct Lease {
    claim: Claim,
    /// What is in the file, so that nothing is written twice.
    held: Mutex<Held>,
}

/// What a lease names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// What for, for people.
    pub purpose: String,
    /// Branches that must stay.
    pub branches: Vec<BranchId>,
    /// Images that must stay, by the digests of their manifests.
    pub images: Vec<String>,
    /// Layers that are about to be fetched, by their diffIDs.
    pub layers: Vec<String>,
}

impl Held {
    /// What is in `other` and not in this one.
    fn lacks(&self, other: &Held) -> Held {
        fn new<T: Clone + PartialEq>(have: &[T], more: &[T]) -> Vec<T> {
            more.iter()
                .filter(|it| !have.contains(it))
                .cloned()
                .collect()
        }
        Held {
            purpose: String::new(),
            branches: new(&self.branches, &other.branches),
            images: new(&self.images, &other.images),
            layers: new(&self.layers, &other.layers),
        }
    }

    fn is_empty(&self) -> bool {
        self.branches.is_empty() && self.images.is_empty() && self.layers.is_empty()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let lines = self.branches.iter().map(|id| ("branch", id.as_str()));
        let lines = lines.chain(self.images.iter().map(|it| ("image", it.as_str())));
        for (kind, name) in lines.chain(self.layers.iter().map(|it| ("layer", it.as_str()))) {
            text.push_str(kind);
            text.push(' ');
            text.push_str(name);
            text.push('\n');
        }
        text
    }

    /// What a file says. A line that is not understood is one of another version
    /// or cut short, and its names are unknown: none.
    fn parse(text: &str) -> Option<Held> {
        let mut held = Held::default();
        for line in text.split_inclusive('\n') {
            let (kind, name) = line.strip_suffix('\n')?.split_once(' ')?;
            match kind {
                "for" => name.clone_into(&mut held.purpose),
                "branch" => held
                    .branches
                    .push(BranchId::try_from(name.to_owned()).ok()?),
                "image" => held.images.push(name.to_owned()),
                "layer" => held.layers.push(name.to_owned()),
                _ => return None,
            }
        }
        Some(held)
    }
}

impl Lease {
    /// One that names nothing yet. `purpose` is a line for people.
    pub fn begin(store: &Store, purpose: &str) -> Result<Self, StoreError> {
        let claim = Claim::take(store)?;
        let held = Held {
            purpose: purpose.replace('\n', " "),
            ..Held::default()
        };
        let lease = Lease {
            claim,
            held: Mutex::new(held.clone()),
        };
        // It names nothing, so it may be read half-written.
        lease.write(&format!("for {}\n", held.purpose))?;
        Ok(lease)
    }

    /// Names what has to stay from here on. What is there is to be looked at
    /// afterwards: it may have gone before this.
    pub fn hold(&self, store: &Store, more: &Held) -> Result<(), StoreError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let new = held.lacks(more);
        if new.is_empty() {
            return Ok(());
        }
        self.append(store, &new.text())?;
        held.branches.extend(new.branches);
        held.images.extend(new.images);
        held.layers.extend(new.layers);
        steps::before("look for what is relied on");
        Ok(())
    }

    /// As [`Lease::hold`], of branches.
    pub fn hold_branches(&self, store: &Store, ids: &[BranchId]) -> Result<(), StoreError> {
        let more = Held {
            branches: ids.to_vec(),
            ..Held::default()
        };
        self.hold(store, &more)
    }

    fn append(&self, store: &Store, text: &str) -> Result<(), StoreError> {
        let _leases = store.lock_leases()?;
        self.write(text)
    }

    fn write(&self, text: &str) -> Result<(), StoreError> {
        steps::before("write what is relied on");
        let file = self.claim.file();
        let before = file.metadata().map(|metadata| metadata.len());
        let path = self.claim.lock_path();
        (&mut &*file).write_all(text.as_bytes()).map_err(|error| {
            // On a full disk half a line may be there, which nobody can read.
            if let Ok(length) = before {
                let _ = file.set_len(length);
            }
            StoreError::io("write", path)(error)
        })
    }
}

impl Store {
    /// What all leases of this store name; none where one cannot be read, for
    /// then anything may be relied on. The caller holds [`Store::lock_leases`].
    pub(super) fn leases(&self) -> Result<Option<Vec<Held>>, StoreError> {
        let base = self.root().join("ingest");
        let mut all = Vec::new();
        for name in self.names("ingest", ".lock")? {
            let path = base.join(format!("{name}.lock"));
            let text = match fs::read_to_string(&path) {
                // Its owner has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
                other => other.map_err(StoreError::io("read", &path))?,
            };
            match Held::parse(&text) {
                // A work directory's, or of somebody who has just begun.
                Some(held) if held == Held::default() => {}
                Some(held) => all.push(held),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// Held for as long as it takes to add a name, or to remove something that
    /// nobody has named.
    pub(super) fn lock_leases(&self) -> Result<File, StoreError> {
        super::lock(
            &self.root().join("store.lease.lock"),
            super::Sharing::Exclusive,
        )
    }

    /// As [`super::Removal::leases`], for who only looks.
    pub fn held(&self) -> Result<Option<Vec<Held>>, StoreError> {
        let _leases = self.lock_leases()?;
        self.leases()
    }

    /// Removes what killed processes left of their work and their leases.
    pub fn forget_the_dead(&self) -> Result<(), StoreError> {
        remove_dead(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(store: &Store) -> Vec<Held> {
        store.held().unwrap().expect("readable leases")
    }

    #[test]
    fn a_lease_names_things_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), "boot", false).unwrap();
        let other = Store::open(&dir.path().join("store"), "boot", false).unwrap();
        let lease = Lease::begin(&store, "a\ntest").unwrap();
        let held = Held {
            purpose: "a test".to_owned(),
            branches: vec![BranchId::of("1"), BranchId::of("2")],
            images: vec!["sha256:m".to_owned()],
            layers: vec!["sha256:d".to_owned()],
        };
        lease.hold_branches(&store, &held.branches[..1]).unwrap();
        lease.hold(&store, &held).unwrap();
        lease.hold(&store, &held).unwrap();
        assert_eq!(names(&other), [held]);
        // It is alive, so nobody else removes it.
        other.forget_the_dead().unwrap();
        assert_eq!(names(&other).len(), 1);
        drop(lease);
        assert_eq!(names(&other), []);
        assert_eq!(other.names("ingest", "").unwrap(), [""; 0]);
    }

    #[test]
    fn what_a_dead_process_relied_on_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), "boot", false).unwrap();
        let path = store.root().join("ingest/1-2-3.lock");
        fs::write(&path, format!("for x\nbranch {}\n", BranchId::of("1"))).unwrap();
        assert_eq!(names(&store).len(), 1);
        store.forget_the_dead().unwrap();
        assert_eq!(names(&store), []);
    }

    #[test]
    fn a_lease_that_cannot_be_read_may_name_anything() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), "boot", false).unwrap();
        let path = store.root().join("ingest/1-2-3.lock");
        for text in ["for x\nbranch 123", "for x\nstack 1\n", "branch x\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(store.held().unwrap(), None, "{text:?}");
        }
    }
}
