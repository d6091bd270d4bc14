//! A volume's record: written before anything is mounted, and enough to undo
//! the volume with no other help.

use super::limit::Limit;
use crate::chain::Chain;
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
    /// Was mounted, and is about to be mounted again with the writable layer
    /// that it has: after a reboot, or where its mount got lost.
    Returning,
    /// Was mounted and lost what was written to it: it is emptied, and about to be
    /// mounted anew with the content, the union and the limit that are recorded.
    Beginning,
    /// Being taken down.
    Leaving,
}

/// Whose volume it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// A person's, who mounted it by a command. Only commands touch it.
    #[default]
    Command,
    /// A pod's, by way of the plugin, which also puts it right and clears it away.
    Plugin,
}

/// The pod that a volume is for, as kubelet names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty where kubelet did not say.
    #[serde(default)]
    pub uid: String,
}

impl std::fmt::Display for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An image of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedImage {
    /// As it was asked for.
    pub image: String,
    /// `sha256:…` of its manifest: what the volume keeps whatever the name
    /// points to later.
    pub manifest: String,
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
    /// Whose it is.
    #[serde(default)]
    pub owner: Owner,
    /// The pod that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Its images, uppermost first.
    pub images: Vec<RecordedImage>,
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
    /// What its writable layer is limited to, if it is: it is then in a
    /// filesystem of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// The mount as data.
    pub plan: MountPlan,
    /// Id of the union in `/sys/fs/aufs`, where it is one of AUFS: it may live
    /// on where nobody here can see its mount, and until it does not, its
    /// directories must stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aufs_id: Option<String>,
    /// The union that it shares with other volumes, by its directory in `shared/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
    /// Boot in which it was mounted.
    pub boot: String,
    /// Inode of the mount namespace in which it was mounted: nobody in another
    /// one can see the mount, or may judge that it is gone.
    pub mount_namespace: u64,
    /// Seconds since the epoch.
    pub created: u64,
}

impl VolumeRecord {
    /// Digests of its images' manifests, the uppermost first.
    pub fn manifests(&self) -> Vec<&str> {
        let images = self.images.iter();
        images.map(|image| image.manifest.as_str()).collect()
    }
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

/// Of a record, whichever version wrote it, what `T` has.
pub(super) fn read_as<T: serde::de::DeserializeOwned>(dir: &Path) -> Result<Option<T>, StoreError> {
    read_json(&dir.join("record.json"))
}

/// Whether there is a record, readable or not.
pub(super) fn exists(dir: &Path) -> bool {
    // What cannot be looked at is not taken for missing.
    !matches!(dir.join("record.json").try_exists(), Ok(false))
}

/// Whether a record that cannot be read is just one of a newer version.
pub(super) fn is_newer(dir: &Path) -> bool {
    #[derive(Deserialize)]
    struct OnlyVersion {
        version: u32,
    }
    read_json(&dir.join("record.json"))
        .ok()
        .flatten()
        .is_some_and(|record: OnlyVersion| record.version > RECORD_VERSION)
}

/// Writes or replaces a volume's record.
pub fn write(dir: &Path, record: &VolumeRecord) -> Result<(), StoreError> {
    write_json(&dir.join("record.json"), record, false)
}

/// All volumes' records with their directories, by volume id. One that cannot be
/// read is logged and left out: it must not hide the others.
pub fn all(store: &Store) -> Result<Vec<(PathBuf, VolumeRecord)>, StoreError> {
    let mut found = Vec::new();
    for path in directories(store)? {
        match read(&path) {
            Ok(Some(record)) => found.push((path, record)),
            Ok(None) => {}
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::warn!(error = %Chain(&error), "a volume is left out");
            }
            Err(error) => return Err(error),
        }
    }
    found.sort_by(|a, b| a.1.volume_id.cmp(&b.1.volume_id));
    Ok(found)
}

/// The directories of all volumes, in no order.
pub(super) fn directories(store: &Store) -> Result<Vec<PathBuf>, StoreError> {
    let base = store.volumes_dir();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&base).map_err(StoreError::io("read", &base))? {
        let path = entry.map_err(StoreError::io("read", &base))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}
