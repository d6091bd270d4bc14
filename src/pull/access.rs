//! Who may have what the store holds, without asking a registry again.
//!
//! That an image is in the store proves nothing for the pod that names it:
//! another pod's secret may have brought it. So the store remembers, for each
//! repository, whether it gave its content to somebody without credentials, and
//! which credentials it accepted; and, for each layer that came from a registry,
//! which repositories have delivered its bytes.
//!
//! ```text
//! access/key                    32 random bytes, for the hashes below
//! access/<id>.repository.json   a repository
//! access/<id>.layer.json        a layer by its diffID
//! ```
//!
//! **Invariant:** a credential is on disk only as an HMAC-SHA256 under a key that
//! never leaves the node, over the repository and all of the credential; and it
//! counts until its time is over.
//!
//! **Invariant:** what is said of a layer is written before its branch is
//! committed, and is flushed with it. A record that cannot be read allows
//! nothing. A layer without a record came from a local source.

use crate::image::credentials::{Credential, Origin};
use crate::layer::store::{StoreError, hex, now, read_json, write_json};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most credentials that are remembered of one repository; the oldest go first.
const MAX_ACCEPTED: usize = 256;
/// Most repositories that are remembered of one layer; the oldest go first.
const MAX_ORIGINS: usize = 256;
/// What is hashed in place of a credential that the operator gave for all pods.
/// Those change by the hour, and it does not matter which of them it was.
const FOR_ALL: &str = "for all pods";

/// What is known of a repository.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RepositoryRecord {
    /// `registry/repository`.
    repository: String,
    /// When it last gave content to somebody without credentials, in seconds
    /// since the epoch; none if it never did, or has refused since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public: Option<u64>,
    /// Credentials that it accepted.
    #[serde(default)]
    accepted: Vec<Accepted>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Accepted {
    /// The keyed hash.
    hash: String,
    /// Until when it counts, in seconds since the epoch.
    until: u64,
}

/// What is known of a layer that came from a registry.
#[derive(Debug, Default, Serialize, Deserialize)]
struct LayerRecord {
    /// diffID.
    diff_id: String,
    /// Repositories that have delivered all of its bytes.
    #[serde(default)]
    repositories: Vec<String>,
}

/// Whether a repository is open to everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Public {
    /// It was a short while ago.
    Fresh,
    /// It was once, and has not been asked for longer than things are remembered.
    Stale,
    /// Nothing says so.
    No,
}

/// The records, and the key.
#[derive(Debug)]
pub(crate) struct Book {
    dir: PathBuf,
    /// Read, or made, when it is first needed.
    key: Mutex<Option<[u8; 32]>>,
    memory: Duration,
}

impl Book {
    /// The records below the store's `root`. What is learnt counts for `memory`.
    pub(crate) fn of(root: &Path, memory: Duration) -> Self {
        Book {
            dir: root.join("access"),
            key: Mutex::default(),
            memory,
        }
    }

    fn key(&self) -> Result<[u8; 32], StoreError> {
        let mut known = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = *known {
            return Ok(key);
        }
        self.make_dir()?;
        let path = self.dir.join("key");
        let key = read_key(&path)
            .transpose()
            .unwrap_or_else(|| make_key(&self.dir, &path))
            .map_err(StoreError::io("read", &path))?;
        *known = Some(key);
        Ok(key)
    }

    fn make_dir(&self) -> Result<(), StoreError> {
        match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(StoreError::io("create", &self.dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether everybody may have what the repository has.
    pub(crate) fn is_public(&self, repository: &str) -> Result<Public, StoreError> {
        let record = self.repository(repository)?;
        Ok(match record.public {
            Some(when) if now().saturating_sub(when) < self.memory.as_secs() => Public::Fresh,
            Some(_) => Public::Stale,
            None => Public::No,
        })
    }

    /// Whether the repository has accepted one of these, and that still counts.
    pub(crate) fn accepts(
        &self,
        repository: &str,
        credentials: &[Credential],
    ) -> Result<bool, StoreError> {
        let record = self.repository(repository)?;
        let now = now();
        for credential in credentials {
            let hash = self.hash(repository, credential)?;
            let mut accepted = record.accepted.iter();
            if accepted.any(|accepted| accepted.until > now && accepted.hash == hash) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The repository gave content to somebody without credentials.
    pub(crate) fn note_public(&self, repository: &str) -> Result<(), StoreError> {
        self.change_repository(repository, |record| record.public = Some(now()))
    }

    /// The repository refused whoever came without credentials.
    pub(crate) fn note_restricted(&self, repository: &str) -> Result<(), StoreError> {
        if self.repository(repository)?.public.is_none() {
            return Ok(());
        }
        self.change_repository(repository, |record| record.public = None)
    }

    /// The repository accepted a credential.
    pub(crate) fn note_accepted(
        &self,
        repository: &str,
        credential: &Credential,
    ) -> Result<(), StoreError> {
        let hash = self.hash(repository, credential)?;
        let now = now();
        let until = now.saturating_add(self.memory.as_secs());
        self.change_repository(repository, |record| {
            record
                .accepted
                .retain(|accepted| accepted.until > now && accepted.hash != hash);
            let surplus = (record.accepted.len() + 1).saturating_sub(MAX_ACCEPTED);
            record.accepted.drain(..surplus);
            record.accepted.push(Accepted { hash, until });
        })
    }

    /// Layers are about to be fetched that the store has not: until a repository
    /// has delivered them, they are nobody's.
    pub(crate) fn expect(&self, diff_ids: &[String]) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        for diff_id in diff_ids {
            let path = self.layer_path(diff_id);
            if !path.exists() {
                let record = LayerRecord {
                    diff_id: diff_id.clone(),
                    repositories: Vec::new(),
                };
                write_json(&path, &record, false)?;
            }
        }
        Ok(())
    }

    /// The repository has delivered these layers, and they were verified.
    pub(crate) fn note_delivered(
        &self,
        repository: &str,
        diff_ids: &[String],
    ) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        for diff_id in diff_ids {
            let path = self.layer_path(diff_id);
            let mut record = read_layer(&path)?.unwrap_or_default();
            record.diff_id.clone_from(diff_id);
            record.repositories.retain(|known| known != repository);
            let surplus = (record.repositories.len() + 1).saturating_sub(MAX_ORIGINS);
            record.repositories.drain(..surplus);
            record.repositories.push(repository.to_owned());
            write_json(&path, &record, false)?;
        }
        Ok(())
    }

    /// The same of a local image: only where something is known of a layer, for
    /// one that never was in a registry is nobody's secret.
    pub(crate) fn note_delivered_locally(
        &self,
        source: &str,
        diff_ids: &[String],
    ) -> Result<(), StoreError> {
        let known: Vec<String> = diff_ids
            .iter()
            .filter(|diff_id| self.layer_path(diff_id).exists())
            .cloned()
            .collect();
        match known.is_empty() {
            true => Ok(()),
            false => self.note_delivered(source, &known),
        }
    }

    /// Forgets layers that are not in `kept`. The caller sees to it that none of
    /// them is in the store, comes into it meanwhile, or is being fetched: a layer
    /// of which nothing is known is everybody's.
    pub(crate) fn forget_layers_but(
        &self,
        kept: &std::collections::BTreeSet<String>,
    ) -> Result<usize, StoreError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(StoreError::io("read", &self.dir))?,
        };
        let _lock = self.lock()?;
        let mut forgotten = 0;
        for entry in entries {
            let path = entry.map_err(StoreError::io("read", &self.dir))?.path();
            let is_layer = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().ends_with(b".layer.json"));
            // One that cannot be read allows nothing, and may be of any layer.
            let Some(record) = is_layer.then(|| read_layer(&path)).transpose()?.flatten() else {
                continue;
            };
            if record.diff_id.is_empty() || kept.contains(&record.diff_id) {
                continue;
            }
            crate::layer::steps::before("forget who delivered a layer");
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &path)(error));
                }
                _ => forgotten += 1,
            }
        }
        Ok(forgotten)
    }

    /// Whether whoever may have the repository's content may have this layer, if
    /// an image of the repository names it: the repository has delivered it
    /// itself, a public one has, or it never was in a registry.
    pub(crate) fn may_reuse(&self, repository: &str, diff_id: &str) -> Result<bool, StoreError> {
        let Some(record) = read_layer(&self.layer_path(diff_id))? else {
            return Ok(true);
        };
        if record.repositories.iter().any(|known| known == repository) {
            return Ok(true);
        }
        for origin in &record.repositories {
            if self.is_public(origin)? != Public::No {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn hash(&self, repository: &str, credential: &Credential) -> Result<String, StoreError> {
        let key = self.key()?;
        Ok(match &credential.origin {
            Origin::Node | Origin::Provider(_) => {
                let mut hasher = Sha256::new();
                hasher.update(key);
                hasher.update(FOR_ALL);
                hasher.update(repository);
                hex(&hasher.finalize())
            }
            Origin::Pod | Origin::Command => hex(&credential.fingerprint(&key, repository)),
        })
    }

    fn repository(&self, repository: &str) -> Result<RepositoryRecord, StoreError> {
        let record: Option<RepositoryRecord> = match read_json(&self.repository_path(repository)) {
            Err(StoreError::Damaged { .. }) => None,
            other => other?,
        };
        // Another repository with the same id would be a broken sha256.
        Ok(record
            .filter(|record| record.repository == repository)
            .unwrap_or_default())
    }

    fn change_repository(
        &self,
        repository: &str,
        change: impl FnOnce(&mut RepositoryRecord),
    ) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut record = self.repository(repository)?;
        repository.clone_into(&mut record.repository);
        change(&mut record);
        write_json(&self.repository_path(repository), &record, false)
    }

    fn repository_path(&self, repository: &str) -> PathBuf {
        self.path(repository, "repository.json")
    }

    fn layer_path(&self, diff_id: &str) -> PathBuf {
        self.path(diff_id, "layer.json")
    }

    fn path(&self, key: &str, kind: &str) -> PathBuf {
        let name = hex(&Sha256::digest(key)[..16]);
        self.dir.join(format!("{name}.{kind}"))
    }

    /// Held for a change, which reads and writes: other processes change too.
    fn lock(&self) -> Result<File, StoreError> {
        self.make_dir()?;
        let path = self.dir.join("lock");
        let open = || -> io::Result<File> {
            let fd = rustix::fs::open(
                &path,
                OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::RUSR | Mode::WUSR,
            )?;
            rustix::fs::flock(&fd, FlockOperation::LockExclusive)?;
            Ok(fd.into())
        };
        open().map_err(StoreError::io("lock", &path))
    }
}

/// A layer's record; one that cannot be read is of a layer that nobody delivered.
fn read_layer(path: &Path) -> Result<Option<LayerRecord>, StoreError> {
    match read_json(path) {
        Err(StoreError::Damaged { .. }) => Ok(Some(LayerRecord::default())),
        other => other,
    }
}

fn read_key(path: &Path) -> io::Result<Option<[u8; 32]>> {
    match fs::read(path) {
        // A key that a power cut has shortened is made anew: its hashes match
        // nothing any more, which costs a question to a registry.
        Ok(bytes) => Ok(bytes.try_into().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the key, whole or not at all; whoever is first has made it for all.
fn make_key(dir: &Path, path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    let mut filled = 0;
    while filled < key.len() {
        filled +=
            rustix::rand::getrandom(&mut key[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    let temporary = dir.join(format!("key.{}", crate::layer::store::unique()));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&key)?;
    file.sync_all()?;
    let linked = fs::hard_link(&temporary, path);
    if read_key(path)?.is_none() {
        // What stands there is no key.
        fs::rename(&temporary, path)?;
    } else {
        fs::remove_file(&temporary)?;
    }
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => read_key(path)?.ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::credentials::Login;
    use crate::secret::Secret;

    const DAY: Duration = Duration::from_secs(86_400);

    fn credential(origin: Origin, password: &str) -> Credential {
        Credential {
            origin,
            login: Login::Basic {
                username: "user".to_owned(),
                password: Secret::new(password.to_owned()),
            },
        }
    }

    #[test]
    fn a_credential_counts_for_its_repository_and_its_time() {
        let root = tempfile::tempdir().unwrap();
        let book = Book::of(root.path(), DAY);
        let (right, wrong) = (
            credential(Origin::Pod, "right"),
            credential(Origin::Pod, "wrong"),
        );
        book.note_accepted("r/a", &right).unwrap();
        let accepts = |book: &Book, repository: &str, credential: &Credential| {
            book.accepts(repository, std::slice::from_ref(credential))
                .unwrap()
        };
        assert!(accepts(&book, "r/a", &right));
        assert!(!accepts(&book, "r/a", &wrong));
        assert!(!accepts(&book, "r/ab", &right));
        assert!(!book.accepts("r/a", &[]).unwrap());
        // Another process knows it too, and one that remembers nothing does not.
        assert!(accepts(&Book::of(root.path(), DAY), "r/a", &right));
        let short = Book::of(root.path(), Duration::ZERO);
        short.note_accepted("r/b", &right).unwrap();
        assert!(!accepts(&book, "r/b", &right));
    }

    #[test]
    fn what_the_operator_gave_for_all_pods_counts_whatever_it_is_at_the_moment() {
        let root = tempfile::tempdir().unwrap();
        let book = Book::of(root.path(), DAY);
        let provider = |password| credential(Origin::Provider("cloud".to_owned()), password);
        book.note_accepted("r/a", &provider("of nine o'clock"))
            .unwrap();
        assert!(book.accepts("r/a", &[provider("of ten o'clock")]).unwrap());
        assert!(
            book.accepts("r/a", &[credential(Origin::Node, "x")])
                .unwrap()
        );
        assert!(
            !book
                .accepts("r/a", &[credential(Origin::Pod, "of nine o'clock")])
                .unwrap()
        );
        assert!(!book.accepts("r/b", &[provider("of ten o'clock")]).unwrap());
    }

    #[test]
    fn no_record_has_a_secret() {
        let root = tempfile::tempdir().unwrap();
        let book = Book::of(root.path(), DAY);
        book.note_accepted("r/a", &credential(Origin::Pod, "planted-secret"))
            .unwrap();
        let mut files = 0;
        for entry in fs::read_dir(root.path().join("access")).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            files += 1;
            for needle in [&b"planted-secret"[..], b"user"] {
                assert!(!bytes.windows(needle.len()).any(|window| window == needle));
            }
        }
        assert_eq!(files, 3, "the key, the lock and the record");
    }

    #[test]
    fn the_oldest_credentials_are_forgotten_first() {
        let root = tempfile::tempdir().unwrap();
        let book = Book::of(root.path(), DAY);
        let numbered = |number: usize| credential(Origin::Pod, &number.to_string());
        for number in 0..=MAX_ACCEPTED {
            book.note_accepted("r/a", &numbered(number)).unwrap();
        }
        assert!(!book.accepts("r/a", &[numbered(0)]).unwrap());
        assert!(book.accepts("r/a", &[numbered(1)]).unwrap());
        assert!(book.accepts("r/a", &[numbered(MAX_ACCEPTED)]).unwrap());
    }

    #[test]
    fn a_repository_is_public_until_it_refuses() {
        let root = tempfile::tempdir().unwrap();
        let book = Book::of(root.path(), DAY);
        assert_eq!(book.is_public("r/a").unwrap(), Public::No);
        book.note_public("r/a").unwrap();
        assert_eq!(book.is_public("r/a").unwrap(), Public::Fresh);
        let forgetful = Book::of(root.path(), Duration::ZERO);
        assert_eq!(forgetful.is_public("r/a").unwrap(), Public::Stale);
        book.note_restricted("r/a").unwrap();
        assert_eq!(book.is_public("r/a").unwrap(), Public::No);
    }

    #[test]
    fn a_layer_is_for_whom_its_bytes_were_delivered() {
        let root = tempfile::tempdir().unwrap();
        let book = Book::of(root.path(), DAY);
        let layer = "sha256:l".to_owned();
        let may = |repository: &str| book.may_reuse(repository, &layer).unwrap();
        assert!(may("r/a"), "it never was in a registry");
        book.expect(std::slice::from_ref(&layer)).unwrap();
        assert!(!may("r/a"), "expected is not delivered");
        book.note_delivered("r/private", std::slice::from_ref(&layer))
            .unwrap();
        assert!(may("r/private"));
        assert!(!may("r/attacker"));
        book.expect(std::slice::from_ref(&layer)).unwrap();
        assert!(may("r/private"), "expecting it again forgets nothing");
        book.note_public("r/other").unwrap();
        assert!(!may("r/attacker"));
        book.note_delivered("r/other", std::slice::from_ref(&layer))
            .unwrap();
        assert!(may("r/attacker"), "everybody could have it from there");
    }

    #[test]
    fn a_damaged_record_allows_nothing() {
        let root = tempfile::tempdir().unwrap();
        let book = Book::of(root.path(), DAY);
        let right = credential(Origin::Pod, "right");
        book.note_accepted("r/a", &right).unwrap();
        book.note_public("r/b").unwrap();
        book.note_delivered("r/a", &["sha256:l".to_owned()])
            .unwrap();
        for entry in fs::read_dir(root.path().join("access")).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                fs::write(path, b"{\"repos").unwrap();
            }
        }
        assert!(!book.accepts("r/a", &[right]).unwrap());
        assert_eq!(book.is_public("r/b").unwrap(), Public::No);
        assert!(!book.may_reuse("r/a", "sha256:l").unwrap());
    }

    #[test]
    fn several_processes_make_one_key() {
        let root = tempfile::tempdir().unwrap();
        let keys: Vec<[u8; 32]> = std::thread::scope(|scope| {
            let open = || Book::of(root.path(), DAY).key().unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(keys.iter().all(|key| key == &keys[0] && key != &[0; 32]));
        fs::write(root.path().join("access/key"), b"short").unwrap();
        assert_ne!(Book::of(root.path(), DAY).key().unwrap(), keys[0]);
    }
}
