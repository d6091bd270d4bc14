//! What a pod changed in its volume.

use super::{VolumeError, Volumes};
use crate::layer::apply::Format;
use crate::layer::changes::{self, Change, ChangesError, LowerBranches};
use crate::layer::store::StoreError;
use crate::union::Backend;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;

impl Volumes {
    /// What the volume has that its image has not, and the other way round; by
    /// id or by where it appears. The pod may be running.
    pub fn diff(&self, volume: &str) -> Result<Vec<Change>, VolumeError> {
        let (upper, branches, format, volume_id) = self.writable(volume)?;
        let lower = LowerBranches::open(&branches, format)
            .map_err(StoreError::io("open the branches of", &upper))
            .map_err(VolumeError::Store)?;
        let fd = open(&upper)?;
        changes::changes(fd.as_fd(), format, &lower).map_err(failed(volume_id))
    }

    /// Writes the volume's writable layer as an OCI layer, an uncompressed tar.
    pub fn export(&self, volume: &str, out: &mut dyn Write) -> Result<(), VolumeError> {
        let (upper, _, format, volume_id) = self.writable(volume)?;
        let fd = open(&upper)?;
        changes::export(fd.as_fd(), format, self.ownership(), out).map_err(failed(volume_id))
    }

    fn writable(
        &self,
        volume: &str,
    ) -> Result<(PathBuf, Vec<PathBuf>, Format, String), VolumeError> {
        let (_, record) = self.find(volume)?;
        let Some(writable) = record.plan.writable else {
            return Err(VolumeError::ReadOnly {
                volume_id: record.volume_id,
            });
        };
        let format = match record.plan.backend {
            Backend::Aufs => Format::Aufs,
            Backend::Overlay | Backend::Bind => Format::Overlay {
                user_xattr: self.options.rootless,
            },
        };
        Ok((
            writable.upper,
            record.plan.branches,
            format,
            record.volume_id,
        ))
    }
}

fn open(path: &PathBuf) -> Result<File, VolumeError> {
    File::open(path)
        .map_err(StoreError::io("open", path))
        .map_err(VolumeError::Store)
}

fn failed(volume_id: String) -> impl FnOnce(ChangesError) -> VolumeError {
    move |source| VolumeError::Changes { volume_id, source }
}
