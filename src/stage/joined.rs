//! Several images, each staged on its own, as the branches of one volume.

use super::branch::work_error;
use super::error::{Layers, StageError};
use super::made::{ListError, Made, Pieces};
use super::{StagedImage, Stager};
use crate::layer::index::{Attrs, Index, Node};
use crate::layer::seal::images::{Images, Member};
use crate::layer::seal::{Content, Format};
use crate::layer::store::{BranchId, Ingest, Lease, SealedForm, StackRecord};
use std::collections::HashMap;
use std::fmt::Write;

/// Branches of a stack, lowest first, and what becomes of them.
struct Stack<'a> {
    images: Images<'a>,
    /// Each with its name for a text.
    sources: Vec<(BranchId, Layers)>,
    format: Format,
    /// Keeps what is made of them from being collected.
    lease: &'a Lease,
}

impl Stager<'_> {
    /// One set of branches for several images, the uppermost first, which are in
    /// the store for unions of `format`. What it takes beside their own branches is
    /// made, and is kept for the next volume of the same images. The lease of the
    /// uppermost image keeps it from being collected.
    pub fn join(&self, images: &[StagedImage], format: Format) -> Result<SealedForm, StageError> {
        let [top, _, ..] = images else {
            let root = Attrs::implied();
            // Of none, the tree is empty.
            return Ok(images.first().map_or_else(
                || SealedForm {
                    branches: Vec::new(),
                    root_fits: false,
                    root: (&root).into(),
                },
                |only| only.form.clone(),
            ));
        };
        let manifests: Vec<String> = images
            .iter()
            .map(|image| image.image.manifest.clone())
            .collect();
        let known = self
            .store
            .stack(format.name(), &manifests)
            .map_err(StageError::Store)?;
        if let Some(known) = known {
            top.lease
                .hold_branches(self.store, &known.form.branches)
                .map_err(StageError::Store)?;
            // Looked at once they are held: they may have been collected before.
            if self.is_usable(&known.form)? {
                return Ok(known.form);
            }
        }
        let form = self.build_stack(images, format, &top.lease)?;
        self.store
            .put_stack(&StackRecord {
                format: format.name().to_owned(),
                manifests,
                form: form.clone(),
            })
            .map_err(StageError::Store)?;
        Ok(form)
    }

    fn build_stack(
        &self,
        images: &[StagedImage],
        format: Format,
        lease: &Lease,
    ) -> Result<SealedForm, StageError> {
        let work = Ingest::begin(self.store).map_err(StageError::Store)?;
        let mut members: Vec<Member> = Vec::new();
        let mut sources = Vec::new();
        let mut roots = Vec::new();
        let mut contents: HashMap<&BranchId, Content> = HashMap::new();
        for (number, image) in images.iter().rev().enumerate() {
            for id in image.form.branches.iter().rev() {
                let content = match contents.get(id) {
                    Some(content) => content.clone(),
                    None => self.content(id, &work)?,
                };
                contents.insert(id, content.clone());
                members.push(Member {
                    content,
                    image: number,
                    twin: 0,
                });
                let name = Layers::Branch { id: id.to_string() };
                sources.push((id.clone(), name));
            }
            roots.push(self.said_of_root(image)?);
        }
        for at in 0..members.len() {
            let id = &sources[at].0;
            let uppermost = sources.iter().rposition(|(other, _)| other == id);
            members[at].twin = uppermost.unwrap_or(at);
        }
        let stack = Stack {
            images: Images {
                format,
                members: &members,
                roots: &roots,
            },
            sources,
            format,
            lease,
        };
        let root = stack.images.root();
        let branches = self.branches_of(&stack, &work)?;
        let root = root.unwrap_or_else(Attrs::implied);
        Ok(SealedForm {
            root_fits: self.root_fits(&branches, &root)?,
            branches,
            root: (&root).into(),
        })
    }

    /// What is in a committed branch.
    fn content(&self, id: &BranchId, work: &Ingest) -> Result<Content, StageError> {
        let lost = || StageError::Lost {
            diff_id: id.to_string(),
        };
        let record = self.store.branch(id).map_err(StageError::Store)?;
        let record = record.ok_or_else(lost)?;
        let index = self.store.index(id).map_err(StageError::Store)?;
        if record.edits == 0 {
            return Ok(Content::plain(index));
        }
        // Once before, for the error of the store.
        self.store.edits(id).map_err(StageError::Store)?;
        let edits = || self.store.edits(id).map_err(std::io::Error::other);
        Content::edited(&index, edits, &|| work.scratch())
            .map_err(work_error(&self.store.branch_dir(id)))
    }

    /// What an image says of its root; nothing if it is only implied.
    fn said_of_root(&self, image: &StagedImage) -> Result<Option<Attrs>, StageError> {
        let root = Attrs::from(&image.form.root);
        if root != Attrs::implied() {
            return Ok(Some(root));
        }
        for id in &image.form.branches {
            let index = self.store.index(id).map_err(StageError::Store)?;
            let record = index
                .get(b"")
                .map_err(work_error(&self.store.branch_dir(id)))?;
            if let Some(Node::Directory { .. }) = record.and_then(|record| record.node) {
                return Ok(Some(root));
            }
        }
        Ok(None)
    }

    /// The branches of the union, uppermost first.
    fn branches_of(&self, stack: &Stack<'_>, work: &Ingest) -> Result<Vec<BranchId>, StageError> {
        let members = stack.images.members;
        // The same directory is there once, at its uppermost place.
        let places: Vec<usize> = (0..members.len())
            .rev()
            .filter(|at| members[*at].twin == *at)
            .collect();
        if places.len() <= self.max_branches {
            let correction = self.correction(stack, 0, None, work)?;
            let whole = places.iter().map(|at| stack.sources[*at].0.clone());
            let branches: Vec<BranchId> = correction.into_iter().chain(whole).collect();
            if branches.len() <= self.max_branches {
                return Ok(branches);
            }
        }
        // One for the correction, one for all that is too much.
        let kept = self.max_branches.saturating_sub(2);
        let count = match kept {
            0 => members.len(),
            kept => places[kept] + 1,
        };
        let flat = self.flat_of(stack, count, work)?;
        let index = self.store.index(&flat).map_err(StageError::Store)?;
        let mut branches = Vec::new();
        if kept > 0 {
            branches.extend(self.correction(stack, count, Some((&flat, &index)), work)?);
        }
        let upper = places.iter().filter(|at| **at >= count);
        branches.extend(upper.map(|at| stack.sources[*at].0.clone()));
        branches.push(flat);
        Ok(branches)
    }

    /// A branch by its key, if it is there. From here on it stays, also if it is
    /// only made now.
    fn held_branch(&self, key: &str, lease: &Lease) -> Result<Option<BranchId>, StageError> {
        let id = BranchId::of(key);
        lease
            .hold_branches(self.store, std::slice::from_ref(&id))
            .map_err(StageError::Store)?;
        let found = self.store.branch(&id).map_err(StageError::Store)?;
        Ok(found.map(|_| id))
    }

    /// The lowest `count` members as one branch.
    fn flat_of(
        &self,
        stack: &Stack<'_>,
        count: usize,
        work: &Ingest,
    ) -> Result<BranchId, StageError> {
        let root = stack.images.root();
        let key = format!(
            "merged {} {}root {root:?}",
            stack.format.name(),
            stack.text(count)
        );
        if let Some(id) = self.held_branch(&key, stack.lease)? {
            return Ok(id);
        }
        let mut pieces = Pieces::new(count, work).map_err(work_error(work.path()))?;
        stack
            .images
            .merge::<ListError>(count, |piece| Ok(pieces.push(piece, work)?))
            .map_err(list_error(work))?;
        let made = Made {
            key: &key,
            sources: &stack.sources,
            root,
            format: stack.format,
            what: Layers::Images,
        };
        self.make(&made, pieces, work)
    }

    /// What the union of the members from `from` on and of `flat` needs on top, if
    /// it needs anything.
    fn correction(
        &self,
        stack: &Stack<'_>,
        from: usize,
        flat: Option<(&BranchId, &Index)>,
        work: &Ingest,
    ) -> Result<Option<BranchId>, StageError> {
        let count = stack.sources.len();
        let mut pieces = Pieces::new(count, work).map_err(work_error(work.path()))?;
        let index = flat.map(|(_, index)| index);
        stack
            .images
            .correct::<ListError>(from, index, &|| work.scratch(), |piece| {
                Ok(pieces.push(piece, work)?)
            })
            .map_err(list_error(work))?;
        if pieces.is_empty() {
            return Ok(None);
        }
        let root = stack.images.root();
        let key = format!(
            "correction {} {}from {from} root {root:?}",
            stack.format.name(),
            stack.text(count)
        );
        if let Some(id) = self.held_branch(&key, stack.lease)? {
            return Ok(Some(id));
        }
        let made = Made {
            key: &key,
            sources: &stack.sources,
            root,
            format: stack.format,
            what: Layers::Images,
        };
        self.make(&made, pieces, work).map(Some)
    }
}

impl Stack<'_> {
    /// The lowest `count` branches, lowest first, a `|` before each image.
    fn text(&self, count: usize) -> String {
        let mut text = String::new();
        let mut image = None;
        for (member, (id, _)) in self.images.members.iter().zip(&self.sources).take(count) {
            if image != Some(member.image) {
                text.push_str("| ");
                image = Some(member.image);
            }
            // Into a string, which does not fail.
            let _ = write!(text, "{id} ");
        }
        text
    }
}

fn list_error(work: &Ingest) -> impl FnOnce(ListError) -> StageError {
    move |error| match error {
        ListError::Seal(source) => StageError::Seal {
            layer: Layers::Images,
            source,
        },
        ListError::Io(source) => work_error(work.path())(source),
    }
}
