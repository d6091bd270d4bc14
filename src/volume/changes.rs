//! What a pod changed in its volume.

use super::record::{self, VolumeRecord, VolumeState};
use super::{VolumeError, Volumes};
use crate::layer::apply::Format;
use crate::layer::changes::{self, Change, ChangesError, LowerBranches};
use crate::layer::store::StoreError;
use crate::union::Backend;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

impl Volumes {
    /// What the volume has that its image has not, and the other way round; by
    /// id or by where it appears. The pod may be running.
    pub fn diff(&self, volume: &str) -> Result<Vec<Change>, VolumeError> {
        let (dir, record, upper, format) = self.writable(volume)?;
        let lower = LowerBranches::open(&record.plan.branches, format)
            .map_err(StoreError::io("open the branches of", &upper))
            .map_err(VolumeError::Store)?;
        let fd = open(&upper)?;
        let changes =
            changes::changes(fd.as_fd(), format, &lower).map_err(failed(&record.volume_id));
        self.is_same(&dir, &record)?;
        changes
    }

    /// Writes the volume's writable layer as an OCI layer, an uncompressed tar.
    pub fn export(&self, volume: &str, out: &mut dyn Write) -> Result<(), VolumeError> {
        let (dir, record, upper, format) = self.writable(volume)?;
        let fd = open(&upper)?;
        let exported = changes::export(fd.as_fd(), format, self.ownership(), out)
            .map_err(failed(&record.volume_id));
        self.is_same(&dir, &record)?;
        exported
    }

    /// Whether the volume is still the one that was looked at. If it was taken
    /// down meanwhile, what was read is a part of it, whether it looks so or not.
    fn is_same(&self, dir: &Path, record: &VolumeRecord) -> Result<(), VolumeError> {
        match record::read(dir).map_err(VolumeError::Store)? {
            Some(now) if now.created == record.created && now.state != VolumeState::Leaving => {
                Ok(())
            }
            _ => Err(VolumeError::Ended {
                volume_id: record.volume_id.clone(),
            }),
        }
    }

    /// The id of a volume that a person means: by that id, by where it appears, or
    /// by its pod, as `NAMESPACE/POD`, and where that has several by its `name` in
    /// the pod.
    pub fn meant(&self, text: &str, name: Option<&str>) -> Result<String, VolumeError> {
        let records = record::all(&self.store).map_err(VolumeError::Store)?;
        let of_pod: Vec<&VolumeRecord> = records
            .iter()
            .map(|(_, record)| record)
            .filter(|record| {
                record
                    .pod
                    .as_ref()
                    .is_some_and(|pod| pod.to_string() == text)
            })
            .collect();
        if of_pod.is_empty() || records.iter().any(|(_, record)| record.volume_id == text) {
            return self.find(text).map(|(_, record)| record.volume_id);
        }
        let shown = |records: &[&VolumeRecord]| {
            let mut shown: Vec<String> = records
                .iter()
                .map(|record| format!("{} ({})", name_in_pod(record), record.volume_id))
                .collect();
            shown.sort();
            shown.join(", ")
        };
        let mut named = of_pod.clone();
        named.retain(|record| name.is_none_or(|name| name_in_pod(record) == name));
        // A pod that was made again has the name of one that is just going.
        if named.len() > 1 {
            let staying = |record: &&VolumeRecord| record.state == VolumeState::Mounted;
            if named.iter().any(|record| staying(&record)) {
                named.retain(|record| staying(&record));
            }
        }
        match (&named[..], name) {
            ([one], _) => Ok(one.volume_id.clone()),
            ([], Some(name)) => Err(VolumeError::NoVolumeOfPod {
                pod: text.to_owned(),
                name: name.to_owned(),
                volumes: shown(&of_pod),
            }),
            (several, _) => Err(VolumeError::SeveralVolumes {
                pod: text.to_owned(),
                volumes: shown(several),
            }),
        }
    }

    fn writable(
        &self,
        volume: &str,
    ) -> Result<(PathBuf, VolumeRecord, PathBuf, Format), VolumeError> {
        let (dir, record) = self.find(volume)?;
        let Some(writable) = &record.plan.writable else {
            return Err(VolumeError::ReadOnly {
                volume_id: record.volume_id,
            });
        };
        let upper = writable.upper.clone();
        let format = match record.plan.backend {
            Backend::Aufs => Format::Aufs,
            Backend::Overlay | Backend::Bind => Format::Overlay {
                user_xattr: self.options.rootless,
            },
        };
        Ok((dir, record, upper, format))
    }
}

/// What the pod calls it: kubelet publishes at `…/kubernetes.io~csi/<name>/mount`.
fn name_in_pod(record: &VolumeRecord) -> String {
    let name = record.target.parent().and_then(Path::file_name);
    name.unwrap_or_default().to_string_lossy().into_owned()
}

fn open(path: &Path) -> Result<File, VolumeError> {
    File::open(path)
        .map_err(StoreError::io("open", path))
        .map_err(VolumeError::Store)
}

fn failed(volume_id: &str) -> impl FnOnce(ChangesError) -> VolumeError {
    move |source| VolumeError::Changes {
        volume_id: volume_id.to_owned(),
        source,
    }
}
