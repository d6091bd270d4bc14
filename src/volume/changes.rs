//! What a pod changed in its volume.

use super::limit;
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
        if record.limit.is_some() && !self.is_mount(&limit::mount_point(&dir))? {
            return Err(VolumeError::Unreachable {
                volume_id: record.volume_id,
            });
        }
        let format = match record.plan.backend {
            Backend::Aufs => Format::Aufs,
            Backend::Overlay | Backend::Bind => Format::Overlay {
                user_xattr: self.options.rootless,
            },
        };
        Ok((dir, record, upper, format))
    }
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
