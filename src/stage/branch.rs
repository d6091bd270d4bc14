//! From an unpacked layer and its edits to a committed branch.

use super::error::{Layers, StageError};
use super::progress::Progress;
use super::sink::directories;
use super::{Place, Stager, Unpacked};
use crate::image::{Image, ImageSource};
use crate::layer::apply::{self, CopyNode};
use crate::layer::index::{Index, Node, Record};
use crate::layer::ingest::StageTimes;
use crate::layer::seal::{Edit, EditLog, Format, Sealed};
use crate::layer::store::{BranchId, BranchRecord, Ingest, unique};
use crate::layer::unpack::{finish_directories, refinish_directories};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// What a layer's branch is named by: what it is made of, and nothing else. A
/// layer without edits is the same for every format; one that copies from the
/// layers below it, `lower`, is made of them too.
pub(super) fn branch_key(
    diff_id: &str,
    format: Format,
    edits: &EditLog,
    lower: &[BranchId],
) -> String {
    if edits.is_empty() {
        return format!("layer {diff_id} plain");
    }
    let digest = crate::layer::store::hex(&edits.digest());
    let key = format!("layer {diff_id} {} {digest}", format.name());
    if edits.copies() {
        format!("{key} on {}", flat_key(lower))
    } else {
        key
    }
}

/// What a branch made of several others is named by.
pub(super) fn flat_key(parts: &[BranchId]) -> String {
    let parts: Vec<&str> = parts.iter().map(BranchId::as_str).collect();
    format!("flat {}", parts.join(" "))
}

pub(super) fn work_error(path: &Path) -> impl FnOnce(io::Error) -> StageError {
    move |source| StageError::Work {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, StageError> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(work_error(path))
}

pub(super) fn apply_format(format: Format) -> apply::Format {
    match format {
        Format::Aufs => apply::Format::Aufs,
        Format::Overlay => apply::Format::Overlay { user_xattr: false },
        Format::OverlayUser => apply::Format::Overlay { user_xattr: true },
    }
}

impl Stager<'_> {
    /// Makes the branch of one layer of an image and commits it. The lower ones
    /// are committed.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of build, with its state"
    )]
    pub(super) fn make_branch(
        &self,
        source: &dyn ImageSource,
        image: &Image,
        number: usize,
        format: Format,
        key: &str,
        ids: &[BranchId],
        sealed: &Sealed,
        indexes: &[Index],
        places: &mut HashMap<String, Place>,
        work: &Ingest,
        progress: &dyn Progress,
    ) -> Result<(), StageError> {
        let diff_id = image.layers[number].diff_id.to_string();
        let edits = &sealed.edits[number];
        let unpacked = match places.remove(&diff_id) {
            Some(Place::Fresh(unpacked)) => unpacked,
            Some(Place::Stored(branch)) if branch.additive => {
                self.copy_branch(image, number, &branch, &indexes[number], work)?
            }
            // Only in a form in which its content was moved about.
            Some(Place::Stored(_)) | None => self
                .fetch(source, image, &[number], work, progress)?
                .pop()
                .map(|(_, unpacked)| unpacked)
                .ok_or_else(|| StageError::Lost {
                    diff_id: diff_id.clone(),
                })?,
        };
        if !edits.is_empty() {
            self.edit(image, number, &unpacked.tree, format, ids, sealed, work)?;
        }
        let id = ids[number].clone();
        let record = BranchRecord {
            id,
            key: key.to_owned(),
            diff_id: Some(diff_id.clone()),
            format: (!edits.is_empty()).then_some(format),
            edits: edits.len(),
            additive: edits.is_additive(),
            summary: *indexes[number].summary(),
            tar_bytes: unpacked.tar_bytes,
            created: crate::layer::store::now(),
            boot: None,
        };
        self.store
            .commit(&unpacked.tree, &unpacked.index, edits, &record)
            .map_err(StageError::Store)?;
        // From here on it is in the store, should the image have it once more.
        places.insert(diff_id, Place::Stored(record));
        Ok(())
    }

    /// Makes the edits of one layer in its directory.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of make_branch, with its state"
    )]
    fn edit(
        &self,
        image: &Image,
        number: usize,
        tree: &Path,
        format: Format,
        ids: &[BranchId],
        sealed: &Sealed,
        work: &Ingest,
    ) -> Result<(), StageError> {
        let root = open_dir(tree)?;
        let fresh = open_dir(work.path())?;
        let mut attrs = work
            .scratch()
            .and_then(EditLog::new)
            .map_err(work_error(tree))?;
        let lower = |layer: usize| -> io::Result<OwnedFd> {
            let id = ids
                .get(layer)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            File::open(self.store.branch_dir(id)).map(OwnedFd::from)
        };
        apply::apply(
            root.as_fd(),
            fresh.as_fd(),
            sealed.edits[number].read(),
            apply_format(format),
            self.ownership,
            &lower,
            &mut |path, own| {
                attrs.push(&Edit::Directory {
                    path: path.to_vec(),
                    attrs: own,
                })
            },
        )
        .map_err(|source| StageError::Apply {
            layer: Layers::one(image, number),
            source,
        })?;
        attrs.finish().map_err(work_error(tree))?;
        // Markers and moves touched the times of directories, and new ones have
        // what finished ones handed down to them; and what the layer only
        // implied gets what is below it.
        let own = directories(&sealed.effective[number]);
        let from_edits = attrs.read().filter_map(|edit| match edit {
            Ok(Edit::Directory { path, attrs }) => Some(Ok((path, attrs))),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        let dirs = own.chain(from_edits);
        refinish_directories(root.as_fd(), fresh.as_fd(), dirs, self.ownership).map_err(|source| {
            StageError::Finish {
                layer: Layers::one(image, number),
                source,
            }
        })
    }

    /// A copy of a layer that the store has in another form, as it was unpacked.
    fn copy_branch(
        &self,
        image: &Image,
        number: usize,
        branch: &BranchRecord,
        index: &Index,
        work: &Ingest,
    ) -> Result<Unpacked, StageError> {
        let name = format!("copy-{}", unique());
        let tree = work.path().join(&name);
        let to = work.directory(&name).map_err(StageError::Store)?;
        let from_path = self.store.branch_dir(&branch.id);
        let from = open_dir(&from_path)?;
        let mut cursor = index.cursor();
        let nodes = std::iter::from_fn(|| cursor.next_record().transpose())
            .filter_map(|record| record.map(copy_node).transpose());
        let layer = Layers::one(image, number);
        self.copy_nodes(&layer, &from, &to, nodes, work)?;
        finish_directories(to.as_fd(), directories(index), self.ownership)
            .map_err(|source| StageError::Finish { layer, source })?;
        let index_path = work.path().join(format!("{name}.index"));
        index
            .copy_to(&index_path)
            .map_err(work_error(&index_path))?;
        Ok(Unpacked {
            tree,
            index: index_path,
            tar_bytes: branch.tar_bytes,
            times: StageTimes::default(),
        })
    }

    pub(super) fn copy_nodes(
        &self,
        layer: &Layers,
        from: &OwnedFd,
        to: &OwnedFd,
        nodes: impl Iterator<Item = io::Result<CopyNode>>,
        work: &Ingest,
    ) -> Result<(), StageError> {
        let aside = work
            .directory(&format!("aside-{}", unique()))
            .map_err(StageError::Store)?;
        let (from, to) = (from.as_fd(), to.as_fd());
        apply::copy_nodes(from, to, aside.as_fd(), nodes, self.ownership)
            .map(|_| ())
            .map_err(|source| StageError::Apply {
                layer: layer.clone(),
                source,
            })
    }
}

/// What is to be copied for a record; nothing for one that has nothing on disk.
pub(super) fn copy_node(record: Record) -> Option<CopyNode> {
    let (is_directory, inode) = match record.node? {
        Node::File { inode, .. } | Node::Symlink { inode, .. } | Node::Special { inode, .. } => {
            (false, inode)
        }
        Node::Directory { .. } | Node::Implied => (true, 0),
        Node::ForeignLink { .. } => return None,
    };
    (!record.path.is_empty()).then(|| CopyNode {
        from: record.path.clone(),
        to: record.path,
        is_directory,
        inode,
    })
}
