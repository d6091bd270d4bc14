//! A volume's record: written before anything is mounted, and enough to undo
//! the volume with no other help.

use crate::layer::store::{BranchId, Store, StoreError, read_json, write_json};
use crate::union::MountPlan;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Version of the record's content.
pub const RECORD_VERSION: u32 = 1;

/// How far a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// About to be mounted, or its mount was interrupted.
    Intended,
    /// Mounted and verified.
    Mounted,
    /// Being taken down.
    Leaving,
}

/// `volumes/<id>/record.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// The volume's id as the caller gave it.
    pub volume_id: String,
    /// How far it is.
    pub state: VolumeState,
    /// The image as it was asked for.
    pub image: String,
    /// `sha256:…` of its manifest: what the volume keeps whatever the name
    /// points to later.
    pub manifest: String,
    /// Its branches, uppermost first: what collection must leave alone.
    pub branches: Vec<BranchId>,
    /// Where it appears, as it was asked for.
    pub target: PathBuf,
    /// Whether the target was made for the volume and goes with it.
    pub target_created: bool,
    /// Without a writable layer.
    pub read_only: bool,
    /// Group that its root directory was given, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_group: Option<u32>,
    /// The attributes it was asked for with; the same again is the same volume.
    pub attributes: BTreeMap<String, String>,
    /// The mount as data.
    pub plan: MountPlan,
    /// Boot in which it was mounted.
    pub boot: String,
    /// Inode of the mount namespace in which it was mounted: nobody in another
    /// one can see the mount, or may judge that it is gone.
    pub mount_namespace: u64,
    /// Seconds since the epoch.
    pub created: u64,
}

/// Name of a volume's directory: 32 hex digits, never foreign input.
pub fn directory_name(volume_id: &str) -> String {
    crate::layer::store::hex(&Sha256::digest(volume_id)[..16])
}

/// A volume's directory in the store.
pub fn directory(store: &Store, volume_id: &str) -> PathBuf {
    store.volumes_dir().join(directory_name(volume_id))
}

/// Reads a volume's record; none if there is no such volume. One that was cut
/// short by a power loss is [`StoreError::Damaged`].
pub fn read(dir: &Path) -> Result<Option<VolumeRecord>, StoreError> {
    read_json(&dir.join("record.json"))
}

/// Whether there is a record, readable or not.
pub(super) fn exists(dir: &Path) -> bool {
    // What cannot be looked at is not taken for missing.
    !matches!(dir.join("record.json").try_exists(), Ok(false))
}

/// Writes or replaces a volume's record.
pub fn write(dir: &Path, record: &VolumeRecord) -> Result<(), StoreError> {
    write_json(&dir.join("record.json"), record, false)
}

/// All volumes' records with their directories, by volume id.
pub fn all(store: &Store) -> Result<Vec<(PathBuf, VolumeRecord)>, StoreError> {
    let base = store.volumes_dir();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&base).map_err(StoreError::io("read", &base))? {
        let path = entry.map_err(StoreError::io("read", &base))?.path();
        if path.is_dir()
            && let Some(record) = read(&path)?
        {
            found.push((path, record));
        }
    }
    found.sort_by(|a, b| a.1.volume_id.cmp(&b.1.volume_id));
    Ok(found)
}
