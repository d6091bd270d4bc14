//! The digests that volumes were first given.
//!
//! A tag may move while an image is being pulled, and the plugin may be killed
//! meanwhile: the volume still gets what it was promised. Its own record has that
//! once it is mounted; until then a file `pulls/<id>.json` has.

use crate::image::digest::Digest;
use crate::layer::store::{StoreError, hex, read_json, write_json};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A promise is forgotten when nobody has asked for it for so long, in seconds, and
/// the volume is taken to be gone.
const FORGOTTEN_AFTER: u64 = 86_400;
/// It keeps its image for so long, in seconds: kubelet asks every two minutes or so
/// for as long as there is a pod, and does not say when there is none.
const KEEPS: u64 = 3600;

/// The promises of a store.
#[derive(Debug)]
pub(crate) struct Promises {
    dir: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    volume_id: String,
    /// By the image's name: what it led to.
    digests: BTreeMap<String, String>,
}

impl Promises {
    /// Those of the store at `root`.
    pub(crate) fn of(root: &Path) -> Self {
        Promises {
            dir: root.join("pulls"),
        }
    }

    /// What the volume was promised for this name, for somebody who is about to make
    /// it: it was asked for a moment ago from here on.
    pub(crate) fn get(&self, volume_id: &str, name: &str) -> Result<Option<Digest>, StoreError> {
        let Some(record) = self.read(volume_id)? else {
            return Ok(None);
        };
        let path = self.path(volume_id);
        let now = FileTimes::new().set_modified(SystemTime::now());
        let touched = File::open(&path).and_then(|file| file.set_times(now));
        if let Err(error) = touched
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(StoreError::io("touch", &path)(error));
        }
        let digest = record.digests.get(name);
        Ok(digest.and_then(|digest| digest.parse().ok()))
    }

    /// Promises the volume a digest, unless it was promised one.
    pub(crate) fn make(
        &self,
        volume_id: &str,
        name: &str,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        let mut record = self.read(volume_id)?.unwrap_or_else(|| Record {
            volume_id: volume_id.to_owned(),
            digests: BTreeMap::new(),
        });
        if record.digests.contains_key(name) {
            return Ok(());
        }
        record.digests.insert(name.to_owned(), digest.to_string());
        match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("create", &self.dir)(error));
            }
            _ => {}
        }
        write_json(&self.path(volume_id), &record, false)
    }

    /// The promise is kept, or nobody wants it kept.
    pub(crate) fn end(&self, volume_id: &str) -> Result<(), StoreError> {
        let path = self.path(volume_id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// What volumes are promised that somebody waits for: their ids, and digests.
    pub(crate) fn all(&self) -> Result<Vec<(String, Vec<String>)>, StoreError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(StoreError::io("read", &self.dir))?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(StoreError::io("read", &self.dir))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // One that cannot be read promises nothing, see `read`.
            if let Ok(Some(record)) = read_json::<Record>(&path)
                && age(&path)?.is_some_and(|age| age <= KEEPS)
            {
                all.push((record.volume_id, record.digests.into_values().collect()));
            }
        }
        Ok(all)
    }

    /// Forgets promises that nobody has asked for in a day.
    pub(crate) fn clean(&self) -> Result<(), StoreError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(StoreError::io("read", &self.dir))?,
        };
        for entry in entries {
            let path = entry.map_err(StoreError::io("read", &self.dir))?.path();
            // Others are being written.
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let record: Option<Record> = match read_json(&path) {
                Err(StoreError::Damaged { .. }) => None,
                other => other?,
            };
            if record.is_none() || age(&path)?.is_none_or(|age| age > FORGOTTEN_AFTER) {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(StoreError::io("remove", &path)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn read(&self, volume_id: &str) -> Result<Option<Record>, StoreError> {
        let record: Option<Record> = match read_json(&self.path(volume_id)) {
            Err(StoreError::Damaged { .. }) => None,
            other => other?,
        };
        Ok(record.filter(|record| record.volume_id == volume_id))
    }

    fn path(&self, volume_id: &str) -> PathBuf {
        let name = hex(&Sha256::digest(volume_id)[..16]);
        self.dir.join(format!("{name}.json"))
    }
}

/// Seconds since a promise was asked for; none where it is gone.
fn age(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::metadata(path).and_then(|found| found.modified()) {
        // One from the future was asked for just before the clock was set back.
        Ok(asked) => Ok(Some(asked.elapsed().map_or(0, |age| age.as_secs()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_first_promise_stands_until_it_is_ended() {
        let root = tempfile::tempdir().unwrap();
        let promises = Promises::of(root.path());
        let (first, second) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(promises.get("v", "a").unwrap(), None);
        promises.make("v", "a", &first).unwrap();
        promises.make("v", "a", &second).unwrap();
        promises.make("v", "b", &second).unwrap();
        let after_a_restart = Promises::of(root.path());
        assert_eq!(after_a_restart.get("v", "a").unwrap(), Some(first));
        assert_eq!(after_a_restart.get("v", "b").unwrap(), Some(second));
        assert_eq!(after_a_restart.get("w", "a").unwrap(), None);
        promises.end("v").unwrap();
        promises.end("v").unwrap();
        assert_eq!(promises.get("v", "a").unwrap(), None);
    }

    #[test]
    fn old_and_damaged_ones_are_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let promises = Promises::of(root.path());
        promises.clean().unwrap();
        promises.make("new", "a", &Digest::of(b"1")).unwrap();
        promises.make("old", "a", &Digest::of(b"1")).unwrap();
        asked_before(&promises, "old", FORGOTTEN_AFTER + 1);
        fs::write(promises.path("damaged"), b"{").unwrap();
        assert_eq!(promises.get("damaged", "a").unwrap(), None);
        promises.clean().unwrap();
        assert_eq!(fs::read_dir(&promises.dir).unwrap().count(), 1);
    }

    fn asked_before(promises: &Promises, volume_id: &str, seconds: u64) {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        let file = File::open(promises.path(volume_id)).unwrap();
        file.set_times(FileTimes::new().set_modified(then)).unwrap();
    }

    #[test]
    fn an_image_is_kept_for_as_long_as_somebody_asks() {
        let root = tempfile::tempdir().unwrap();
        let promises = Promises::of(root.path());
        let digest = Digest::of(b"1");
        for id in ["waited for", "given up"] {
            promises.make(id, "a", &digest).unwrap();
            asked_before(&promises, id, KEEPS + 1);
        }
        assert_eq!(promises.all().unwrap(), []);
        assert_eq!(promises.get("waited for", "a").unwrap(), Some(digest));
        let kept = promises.all().unwrap();
        assert_eq!(kept, [("waited for".to_owned(), vec![digest.to_string()])]);
        // It holds for longer than that.
        promises.clean().unwrap();
        assert_eq!(promises.get("given up", "a").unwrap(), Some(digest));
    }
}
