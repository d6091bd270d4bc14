//! What the store holds and who uses it, for people and programs to read.

use super::record::{self, Owner, Pod, RecordedImage, VolumeState};
use super::{VolumeError, Volumes};
use crate::layer::seal::Format;
use crate::layer::store::BranchId;
use crate::union::Backend;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A volume as listings show it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct VolumeInfo {
    /// Its id.
    pub volume_id: String,
    /// `intended`, `mounted`, `returning` or `leaving`.
    pub state: VolumeState,
    /// `plugin` for a pod's, `command` for a person's.
    pub owner: Owner,
    /// The pod, where kubelet named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Its images, uppermost first.
    pub images: Vec<RecordedImage>,
    /// How it is mounted.
    pub backend: Backend,
    /// Without a writable layer.
    pub read_only: bool,
    /// The directory inside its image that it shows, if not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<PathBuf>,
    /// Where it appears.
    pub target: PathBuf,
    /// Its branches, uppermost first.
    pub branches: Vec<BranchId>,
    /// Seconds since the epoch.
    pub created: u64,
}

/// An image as listings show it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ImageInfo {
    /// The names that lead to it.
    pub names: Vec<String>,
    /// Digest of its manifest.
    pub manifest: String,
    /// `os/architecture`.
    pub platform: String,
    /// Number of layers.
    pub layers: usize,
    /// Formats in which it is ready.
    pub formats: Vec<String>,
    /// Bytes of its files, layers that are not in the store left out.
    pub bytes: u64,
    /// Volumes that use it.
    pub volumes: Vec<String>,
    /// What else keeps it: pulls that run, and the list of images to prefetch.
    pub kept: Vec<String>,
    /// When it was last staged, or a volume of it began or ended, in seconds since
    /// the epoch.
    pub used: u64,
    /// Seconds since the epoch.
    pub created: u64,
}

/// A branch as listings show it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LayerInfo {
    /// Its name in the store.
    pub id: BranchId,
    /// diffID of the layer; none for a branch made of several.
    pub diff_id: Option<String>,
    /// `any` for a layer without markers, else the union that it is made for.
    pub format: String,
    /// Files, directories and links in it.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Edits that sealing made.
    pub edits: u64,
    /// Whether it is on disk for sure, or only good until the machine goes down.
    pub flushed: bool,
    /// Images that have it.
    pub images: Vec<String>,
    /// Volumes that use it.
    pub volumes: Vec<String>,
}

impl Volumes {
    /// All volumes.
    pub fn list(&self) -> Result<Vec<VolumeInfo>, VolumeError> {
        let records = record::all(&self.store).map_err(VolumeError::Store)?;
        Ok(records
            .into_iter()
            .map(|(_, record)| VolumeInfo {
                volume_id: record.volume_id,
                state: record.state,
                owner: record.owner,
                pod: record.pod,
                images: record.images,
                backend: record.plan.backend,
                read_only: record.read_only,
                sub_path: record.plan.sub_path,
                target: record.target,
                branches: record.branches,
                created: record.created,
            })
            .collect())
    }

    /// All images.
    pub fn images(&self) -> Result<Vec<ImageInfo>, VolumeError> {
        let volumes = self.list()?;
        let references = self.store.references().map_err(VolumeError::Store)?;
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        for branch in self.store.branches().map_err(VolumeError::Store)? {
            if let Some(diff_id) = branch.diff_id {
                sizes.insert(diff_id, branch.summary.bytes);
            }
        }
        let leases = self.store.held().map_err(VolumeError::Store)?;
        let leases = leases.unwrap_or_default();
        let images = self.store.images().map_err(VolumeError::Store)?;
        Ok(images
            .into_iter()
            .map(|image| ImageInfo {
                kept: leases
                    .iter()
                    .filter(|held| held.images.contains(&image.manifest))
                    .map(|held| held.purpose.clone())
                    .collect(),
                used: self.store.last_use(&image),
                names: references
                    .iter()
                    .filter(|reference| reference.manifest == image.manifest)
                    .map(|reference| reference.name.clone())
                    .collect(),
                bytes: image
                    .layers
                    .iter()
                    .filter_map(|layer| sizes.get(&layer.diff_id))
                    .sum(),
                volumes: volumes
                    .iter()
                    .filter(|volume| {
                        let mut images = volume.images.iter();
                        images.any(|used| used.manifest == image.manifest)
                    })
                    .map(|volume| volume.volume_id.clone())
                    .collect(),
                platform: image.platform,
                layers: image.layers.len(),
                formats: image.sealed.into_keys().collect(),
                manifest: image.manifest,
                created: image.created,
            })
            .collect())
    }

    /// All branches.
    pub fn layers(&self) -> Result<Vec<LayerInfo>, VolumeError> {
        let volumes = self.list()?;
        let images = self.store.images().map_err(VolumeError::Store)?;
        let branches = self.store.branches().map_err(VolumeError::Store)?;
        Ok(branches
            .into_iter()
            .map(|branch| LayerInfo {
                images: images
                    .iter()
                    .filter(|image| {
                        image
                            .sealed
                            .values()
                            .any(|form| form.branches.contains(&branch.id))
                    })
                    .map(|image| image.manifest.clone())
                    .collect(),
                volumes: volumes
                    .iter()
                    .filter(|volume| volume.branches.contains(&branch.id))
                    .map(|volume| volume.volume_id.clone())
                    .collect(),
                format: branch.format.map_or("any", Format::name).to_owned(),
                entries: branch.summary.nodes,
                bytes: branch.summary.bytes,
                edits: branch.edits,
                flushed: branch.boot.is_none(),
                diff_id: branch.diff_id,
                id: branch.id,
            })
            .collect())
    }
}
