//! The records of the store: what a branch is, what an image consists of.

use super::{Store, StoreError, read_json, write_json};
use crate::layer::archive::Timestamp;
use crate::layer::index::{Attrs, Index, Summary};
use crate::layer::seal::{EditReader, Format};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Version of the way in which branches are written; part of every id, so that
/// a mended bug does not live on in old directories.
const BRANCH_VERSION: u32 = 4;

/// Name of a branch on disk: 32 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct BranchId(String);

impl BranchId {
    /// The id of what `key` describes.
    pub fn of(key: &str) -> Self {
        let digest = Sha256::digest(format!("branch v{BRANCH_VERSION}\n{key}"));
        BranchId(hex(&digest[..16]))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BranchId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 32 && text.bytes().all(is_hex) {
            Ok(BranchId(text))
        } else {
            Err("a branch id is 32 lower-case hex digits")
        }
    }
}

impl std::fmt::Display for BranchId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a branch is: `layers/<id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchRecord {
    /// Its name.
    pub id: BranchId,
    /// What the name is made of, whole.
    pub key: String,
    /// diffID of the layer (`sha256:…`); none for a branch made of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<String>,
    /// The format of its markers; none if it has none and serves every union.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Number of edits that sealing made.
    #[serde(default)]
    pub edits: u64,
    /// Whether what the unpacker wrote is still all there, where it was.
    #[serde(default)]
    pub additive: bool,
    /// What the layer holds.
    pub summary: Summary,
    /// Bytes of the uncompressed tar; 0 for a branch made of several.
    #[serde(default)]
    pub tar_bytes: u64,
    /// Seconds since the epoch.
    pub created: u64,
    /// The boot in which this branch is good; none once it is on disk for sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

impl BranchRecord {
    /// What it takes on disk: its files, and for each entry half a block that is
    /// not full and an inode. An estimate; what was really freed is measured.
    #[must_use]
    pub const fn disk_bytes(&self) -> u64 {
        let entries = self.summary.nodes.saturating_mul(2048);
        self.summary.bytes.saturating_add(entries)
    }
}

/// One layer of an image as its manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerEntry {
    /// `sha256:…` of the uncompressed tar.
    pub diff_id: String,
    /// `sha256:…` of the blob, where the source names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Bytes of the blob, where the source says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// An image as branches for one kind of union.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedForm {
    /// The branches, uppermost first, none twice.
    pub branches: Vec<BranchId>,
    /// Metadata of the volume's root.
    pub root: StoredAttrs,
    /// Whether the uppermost branch's own root has just that metadata.
    pub root_fits: bool,
}

/// [`Attrs`] as JSON; values of extended attributes as hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAttrs {
    mode: u32,
    uid: u32,
    gid: u32,
    seconds: i64,
    nanos: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(String, String)>,
}

impl From<&Attrs> for StoredAttrs {
    fn from(attrs: &Attrs) -> Self {
        StoredAttrs {
            mode: attrs.mode,
            uid: attrs.uid,
            gid: attrs.gid,
            seconds: attrs.mtime.seconds,
            nanos: attrs.mtime.nanos,
            xattrs: attrs
                .xattrs
                .iter()
                .map(|(name, value)| (hex(name), hex(value)))
                .collect(),
        }
    }
}

impl From<&StoredAttrs> for Attrs {
    fn from(stored: &StoredAttrs) -> Self {
        let bytes = |text: &str| -> Vec<u8> {
            text.as_bytes()
                .chunks(2)
                .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect()
        };
        Attrs {
            mode: stored.mode,
            uid: stored.uid,
            gid: stored.gid,
            mtime: Timestamp {
                seconds: stored.seconds,
                nanos: stored.nanos,
            },
            xattrs: stored
                .xattrs
                .iter()
                .map(|(name, value)| (bytes(name), bytes(value)))
                .collect(),
        }
    }
}

/// An image in the store: `images/<id>.json`, named by its manifest digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `sha256:…` of the manifest (of the configuration, for sources without one).
    pub manifest: String,
    /// `sha256:…` of the configuration.
    pub config: String,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Layers, lowest first.
    pub layers: Vec<LayerEntry>,
    /// Seconds since the epoch when it was first staged.
    pub created: u64,
    /// Sealed forms by format name.
    pub sealed: std::collections::BTreeMap<String, SealedForm>,
}

/// What a name pointed to when it was last resolved: `images/<id>.ref.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceRecord {
    /// The name, as it was asked for.
    pub name: String,
    /// The platform it was asked for, as text.
    pub platform: String,
    /// `sha256:…` of the manifest.
    pub manifest: String,
    /// When that was found out, in seconds since the epoch.
    pub resolved: u64,
    /// And the nanoseconds of that second.
    #[serde(default)]
    pub resolved_nanos: u32,
}

/// Which manifest an index has for a platform: `images/<id>.index.json`. Unlike a
/// name, a digest never points elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexRecord {
    /// `sha256:…` of the index.
    index: String,
    /// The platform it was asked for, as text.
    platform: String,
    /// `sha256:…` of the manifest.
    pub(super) manifest: String,
}

impl Store {
    /// A committed branch's record; none if there is no such branch, or one that
    /// was not flushed before the machine went down.
    pub fn branch(&self, id: &BranchId) -> Result<Option<BranchRecord>, StoreError> {
        let path = self.layer_file(id, "json");
        // Half-written by a power cut: as if it were not there.
        let Some(record) = read_json::<BranchRecord>(&path).or_else(|error| match error {
            StoreError::Damaged { .. } => Ok(None),
            other => Err(other),
        })?
        else {
            return Ok(None);
        };
        if record.id != *id {
            return Err(StoreError::Mismatch {
                path,
                found: record.id.to_string(),
                wanted: id.to_string(),
            });
        }
        let is_good = record.boot.as_ref().is_none_or(|boot| boot == self.boot());
        Ok((is_good && self.branch_dir(id).is_dir()).then_some(record))
    }

    /// All committed branches.
    pub fn branches(&self) -> Result<Vec<BranchRecord>, StoreError> {
        let mut records = Vec::new();
        for name in self.names("layers", ".json")? {
            if let Ok(id) = BranchId::try_from(name)
                && let Some(record) = self.branch(&id)?
            {
                records.push(record);
            }
        }
        Ok(records)
    }

    /// A branch of the layer with this diffID, in whatever form.
    pub fn variants(&self, diff_id: &str) -> Result<Vec<BranchRecord>, StoreError> {
        let mut branches = self.branches()?;
        branches.retain(|branch| branch.diff_id.as_deref() == Some(diff_id));
        Ok(branches)
    }

    /// What the layer of a branch says about its paths, as it was unpacked.
    pub fn index(&self, id: &BranchId) -> Result<Index, StoreError> {
        let path = self.layer_file(id, "index");
        File::open(&path)
            .and_then(Index::open)
            .map_err(StoreError::io("read", &path))
    }

    /// The edits that sealing made to a branch.
    pub fn edits(&self, id: &BranchId) -> Result<EditReader, StoreError> {
        let path = self.layer_file(id, "edits");
        File::open(&path)
            .and_then(EditReader::open)
            .map_err(StoreError::io("read", &path))
    }

    pub(super) fn image_file(&self, key: &str, kind: &str) -> PathBuf {
        let name = hex(&Sha256::digest(key)[..16]);
        self.root().join("images").join(format!("{name}{kind}"))
    }

    /// The image with this manifest digest.
    pub fn image(&self, manifest: &str) -> Result<Option<ImageRecord>, StoreError> {
        let path = self.image_file(manifest, ".json");
        let record: Option<ImageRecord> = match read_json(&path) {
            Err(StoreError::Damaged { .. }) => None,
            other => other?,
        };
        match record {
            Some(record) if record.manifest != manifest => Err(StoreError::Mismatch {
                path,
                found: record.manifest,
                wanted: manifest.to_owned(),
            }),
            record => Ok(record),
        }
    }

    /// Writes or replaces an image's record.
    pub fn put_image(&self, record: &ImageRecord, durable: bool) -> Result<(), StoreError> {
        write_json(&self.image_file(&record.manifest, ".json"), record, durable)
    }

    /// Adds a form to an image's record, which is `fresh` where the store has
    /// none. What other processes added since the caller looked stays there.
    pub fn put_form(
        &self,
        fresh: ImageRecord,
        format: &str,
        form: SealedForm,
    ) -> Result<ImageRecord, StoreError> {
        let _commits = self.lock_commits()?;
        let mut record = self.image(&fresh.manifest)?.unwrap_or(fresh);
        record.sealed.insert(format.to_owned(), form);
        self.put_image(&record, false)?;
        Ok(record)
    }

    /// All images.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        self.read_all(".json", |name| !name.contains('.'))
    }

    /// All names that were resolved.
    pub fn references(&self) -> Result<Vec<ReferenceRecord>, StoreError> {
        self.read_all(".ref.json", |_| true)
    }

    /// What a name pointed to last.
    pub fn reference(
        &self,
        name: &str,
        platform: &str,
    ) -> Result<Option<ReferenceRecord>, StoreError> {
        match read_json(&self.image_file(&format!("{name}\n{platform}"), ".ref.json")) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            other => other,
        }
    }

    fn put_reference(&self, record: &ReferenceRecord) -> Result<(), StoreError> {
        let key = format!("{}\n{}", record.name, record.platform);
        write_json(&self.image_file(&key, ".ref.json"), record, false)
    }

    /// Notes what a name leads to, found out at the time `resolved` since the
    /// epoch. What was found out later stays: a pull may take long, and its tag be
    /// moved meanwhile.
    pub fn note(
        &self,
        name: &str,
        platform: &str,
        manifest: &str,
        resolved: Duration,
    ) -> Result<(), StoreError> {
        let is_known = |known: &ReferenceRecord| {
            let when = Duration::new(known.resolved, known.resolved_nanos);
            known.manifest == manifest || when > resolved
        };
        if self
            .reference(name, platform)?
            .as_ref()
            .is_some_and(is_known)
        {
            return Ok(());
        }
        let _commits = self.lock_commits()?;
        if self
            .reference(name, platform)?
            .as_ref()
            .is_some_and(is_known)
        {
            return Ok(());
        }
        self.put_reference(&ReferenceRecord {
            name: name.to_owned(),
            platform: platform.to_owned(),
            manifest: manifest.to_owned(),
            resolved: resolved.as_secs(),
            resolved_nanos: resolved.subsec_nanos(),
        })
    }

    /// The manifest that an index has for a platform, if that was noted.
    pub fn manifest_in(&self, index: &str, platform: &str) -> Result<Option<String>, StoreError> {
        let path = self.image_file(&format!("{index}\n{platform}"), ".index.json");
        match read_json::<IndexRecord>(&path) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            other => Ok(other?.map(|record| record.manifest)),
        }
    }

    /// The manifests that an index is known to have, for any platform.
    pub fn manifests_of(&self, index: &str) -> Result<Vec<String>, StoreError> {
        let records: Vec<IndexRecord> = self.read_all(".index.json", |_| true)?;
        let of_it = records.into_iter().filter(|record| record.index == index);
        Ok(of_it.map(|record| record.manifest).collect())
    }

    /// Notes which manifest an index has for a platform.
    pub fn put_manifest_in(
        &self,
        index: &str,
        platform: &str,
        manifest: &str,
    ) -> Result<(), StoreError> {
        let path = self.image_file(&format!("{index}\n{platform}"), ".index.json");
        let record = IndexRecord {
            index: index.to_owned(),
            platform: platform.to_owned(),
            manifest: manifest.to_owned(),
        };
        let _commits = self.lock_commits()?;
        write_json(&path, &record, false)
    }

    /// Notes that an image is used now. Nothing is flushed: after a power loss it
    /// may look less used than it was, and is fetched again in the worst case.
    pub fn touch(&self, manifest: &str) -> Result<(), StoreError> {
        let path = self.image_file(manifest, ".json");
        let touch = || File::open(&path)?.set_modified(std::time::SystemTime::now());
        match touch() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(StoreError::io("note the use of", &path)),
        }
    }

    /// When an image was last staged, published or unpublished, in seconds since
    /// the epoch.
    pub fn last_use(&self, image: &ImageRecord) -> u64 {
        let path = self.image_file(&image.manifest, ".json");
        let time = fs::metadata(path).and_then(|metadata| metadata.modified());
        let since = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok();
        let used = time.ok().and_then(since).map_or(0, |since| since.as_secs());
        used.max(image.created)
    }

    pub(super) fn read_all<T: serde::de::DeserializeOwned>(
        &self,
        suffix: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        for name in self.names("images", suffix)? {
            if !fits(&name) {
                continue;
            }
            match read_json(&self.root().join("images").join(format!("{name}{suffix}"))) {
                Ok(Some(record)) => all.push(record),
                Ok(None) | Err(StoreError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Names in a directory of the store that end in `suffix`, without it, sorted.
    pub(super) fn names(&self, dir: &str, suffix: &str) -> Result<Vec<String>, StoreError> {
        let path = self.root().join(dir);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))? {
            let entry = entry.map_err(StoreError::io("read", &path))?;
            if let Some(name) = entry.file_name().to_str()
                && let Some(name) = name.strip_suffix(suffix)
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_what_was_found_out_last_whoever_says_so_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), "boot", false).unwrap();
        let at = Duration::from_millis;
        let leads_to = |name: &str| {
            let record = store.reference(name, "linux/amd64").unwrap();
            record.map(|record| record.manifest)
        };
        for (manifest, resolved, expected) in [
            ("sha256:1", at(1_000), "sha256:1"),
            ("sha256:2", at(1_500), "sha256:2"),
            // A slow pull of what the tag was before.
            ("sha256:1", at(1_200), "sha256:2"),
            ("sha256:3", at(1_500), "sha256:3"),
        ] {
            store.note("a", "linux/amd64", manifest, resolved).unwrap();
            assert_eq!(leads_to("a").as_deref(), Some(expected), "{manifest}");
        }
        assert_eq!(leads_to("b"), None);
    }

    #[test]
    fn forms_of_several_processes_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let fresh = ImageRecord {
            manifest: "sha256:m".to_owned(),
            config: "sha256:c".to_owned(),
            platform: "linux/amd64".to_owned(),
            layers: Vec::new(),
            created: 1,
            sealed: std::collections::BTreeMap::new(),
        };
        let form = SealedForm {
            branches: Vec::new(),
            root: (&Attrs::implied()).into(),
            root_fits: true,
        };
        // Each with a store of its own, as processes have, and none knows of
        // the others' forms when it begins.
        let names: Vec<String> = (0..8).map(|number| format!("form-{number}")).collect();
        std::thread::scope(|scope| {
            for name in &names {
                scope.spawn(|| {
                    let store = Store::open(&root, "boot", false).unwrap();
                    store.put_form(fresh.clone(), name, form.clone()).unwrap();
                });
            }
        });
        let store = Store::open(&root, "boot", false).unwrap();
        let record = store.image(&fresh.manifest).unwrap().unwrap();
        let kept: Vec<&String> = record.sealed.keys().collect();
        assert_eq!(kept, names.iter().collect::<Vec<_>>());
    }
}
