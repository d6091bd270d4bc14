//! From an unpacked layer and its edits to a committed branch.

use super::error::{Layers, StageError};
use super::progress::Progress;
use super::sink::directories;
use super::{Place, Stager, Unpacked};
use crate::image::{Image, ImageSource};
use crate::layer::apply::{self, CopyNode};
use crate::layer::index::{Attrs, Builder, Index, Node, Record, RecordLog, Summary};
use crate::layer::ingest::StageTimes;
use crate::layer::seal::{self, Edit, EditLog, Format, SealError, Sealed, Visible};
use crate::layer::store::{BranchId, BranchRecord, Ingest, Lease, unique};
use crate::layer::unpack::{finish_directories, refinish_directories};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

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

fn work_error(path: &Path) -> impl FnOnce(io::Error) -> StageError {
    move |source| StageError::Work {
        path: path.to_owned(),
        source,
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, StageError> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(work_error(path))
}

fn apply_format(format: Format) -> apply::Format {
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

    /// Makes one branch of a range of layers, as the union of them looks.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of build, with its state"
    )]
    pub(super) fn make_flat(
        &self,
        image: &Image,
        key: &str,
        parts: &[BranchId],
        sealed: &Sealed,
        range: Range<usize>,
        format: Format,
        work: &Ingest,
    ) -> Result<(), StageError> {
        let name = format!("flat-{}", unique());
        let tree = work.path().join(&name);
        let root = work.directory(&name).map_err(StageError::Store)?;
        let mut dirs = work
            .scratch()
            .and_then(EditLog::new)
            .map_err(work_error(&tree))?;
        let mut copies = Vec::with_capacity(range.len());
        for _ in range.clone() {
            copies.push(RecordLog::new(work.scratch().map_err(work_error(&tree))?));
        }
        let mut top = Attrs::implied();
        seal::flatten::<FlatError>(&sealed.effective[range.clone()], |visible| {
            match visible {
                Visible::Directory { path, attrs } if path.is_empty() => top = attrs,
                Visible::Directory { path, attrs } => {
                    dirs.push(&Edit::Directory { path, attrs })?;
                }
                Visible::Other { layer, record } => copies[layer].push(&record)?,
            }
            Ok(())
        })
        .map_err(|error| match error {
            FlatError::Seal(source) => StageError::Seal {
                layer: Layers::one(image, range.start + source.layer() - 1),
                source,
            },
            FlatError::Io(source) => StageError::Work {
                path: tree.clone(),
                source,
            },
        })?;
        let layers = Layers::range(&range);
        let nothing = |_: usize| -> io::Result<OwnedFd> { Err(io::ErrorKind::NotFound.into()) };
        dirs.finish().map_err(work_error(&tree))?;
        apply::apply(
            root.as_fd(),
            root.as_fd(),
            dirs.read(),
            apply_format(format),
            self.ownership,
            &nothing,
            &mut |_, _| Ok(()),
        )
        .map_err(|source| StageError::Apply {
            layer: layers.clone(),
            source,
        })?;
        for ((number, id), log) in range.zip(parts).zip(copies) {
            let from = open_dir(&self.store.branch_dir(id))?;
            let nodes = log
                .read()
                .map_err(work_error(&tree))?
                .filter_map(|record| record.map(copy_node).transpose());
            let layer = Layers::one(image, number);
            self.copy_nodes(&layer, &from, &root, nodes, work)?;
        }
        let own = dirs.read().filter_map(|edit| match edit {
            Ok(Edit::Directory { path, attrs }) => Some(Ok((path, attrs))),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        let all = std::iter::once(Ok((Vec::new(), top.clone()))).chain(own);
        finish_directories(root.as_fd(), all, self.ownership).map_err(|source| {
            StageError::Finish {
                layer: layers,
                source,
            }
        })?;
        self.commit_made(key, &tree, &top, work)
    }

    fn copy_nodes(
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

    /// An empty branch whose root has the given metadata: the uppermost one of a
    /// read-only union whose own uppermost layer says nothing of the root.
    pub fn root_branch(&self, root: &Attrs, lease: &Lease) -> Result<BranchId, StageError> {
        let key = format!("root {root:?}");
        let id = BranchId::of(&key);
        lease
            .hold_branches(self.store, std::slice::from_ref(&id))
            .map_err(StageError::Store)?;
        if self.store.branch(&id).map_err(StageError::Store)?.is_some() {
            return Ok(id);
        }
        let work = Ingest::begin(self.store).map_err(StageError::Store)?;
        let dir = work.directory("root").map_err(StageError::Store)?;
        let all = std::iter::once(Ok((Vec::new(), root.clone())));
        finish_directories(dir.as_fd(), all, self.ownership).map_err(StageError::Root)?;
        self.commit_made(&key, &work.path().join("root"), root, &work)?;
        Ok(id)
    }

    /// Commits a branch that is no layer: its index is just its root.
    fn commit_made(
        &self,
        key: &str,
        tree: &Path,
        root: &Attrs,
        work: &Ingest,
    ) -> Result<(), StageError> {
        let path: PathBuf = work.path().join(format!("made-{}.index", unique()));
        let build = || -> io::Result<Index> {
            let mut builder = Builder::new(work.scratch()?);
            builder.push(&Record {
                node: Some(Node::Directory {
                    attrs: root.clone(),
                    late: None,
                }),
                ..Record::default()
            })?;
            builder.finish(
                File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)?,
            )
        };
        build().map_err(work_error(&path))?;
        let edits = work
            .scratch()
            .and_then(EditLog::new)
            .map_err(work_error(&path))?;
        let record = BranchRecord {
            id: BranchId::of(key),
            key: key.to_owned(),
            diff_id: None,
            format: None,
            edits: 0,
            additive: true,
            summary: Summary::default(),
            tar_bytes: 0,
            created: crate::layer::store::now(),
            boot: None,
        };
        self.store
            .commit(tree, &path, &edits, &record)
            .map_err(StageError::Store)?;
        Ok(())
    }
}

/// What is to be copied for a record; nothing for one that has nothing on disk.
fn copy_node(record: Record) -> Option<CopyNode> {
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

/// A step of flattening failed: the indexes, or the log of what is to be done.
enum FlatError {
    Seal(SealError),
    Io(io::Error),
}

impl From<SealError> for FlatError {
    fn from(error: SealError) -> Self {
        FlatError::Seal(error)
    }
}

impl From<io::Error> for FlatError {
    fn from(error: io::Error) -> Self {
        FlatError::Io(error)
    }
}
