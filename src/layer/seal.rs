//! Sealing: from the indexes of an image's layers to the edits that make the
//! union of the branches equal what OCI says the image is.
//!
//! Layers are unpacked alone, without knowing what lies below. That is enough
//! for nearly every entry; the rest is settled here, as data, before a branch
//! is committed:
//!
//! 1. `settle` follows, for a layer that needs it, links of
//!    the layers below (an entry `lib/foo` where `lib` is a link to `usr/lib`)
//!    and finds the targets of hard links into them. The result is the layer's
//!    *effective* index.
//! 2. `walk` goes once through all effective indexes side by
//!    side, keeps for every path what the image has there after each layer, and
//!    emits what a branch needs beside its own entries so that the union shows
//!    the same: whiteouts, opaque markers, and the metadata of directories that
//!    a layer only implies.
//!
//! Several images are sealed one by one; `images` then compares what the union of
//! all their branches shows with what it should.
//!
//! Nothing here touches a branch; `apply` does. Memory is bounded by the depth
//! of the tree and the number of layers, whatever the number of entries.

#[cfg(any(test, feature = "testing"))]
pub mod check;
mod content;
mod edits;
mod flatten;
pub mod images;
mod merged;
mod settle;
#[cfg(test)]
mod tests;
mod walk;

pub use content::Content;
pub use edits::{Edit, EditLog, EditReader};
pub use flatten::{Visible, flatten};

use super::index::cache::Cache;
use super::index::{Attrs, Index, IndexTooLarge};
use super::limits::Limits;
use super::tree::PathText;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// What the markers of a branch look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `.wh.<name>` files, no opaque markers at all: with two of them stacked at
    /// one directory AUFS obeys the lowest, and shows what the upper one hides.
    Aufs,
    /// 0:0 character devices and `trusted.overlay.opaque`.
    Overlay,
    /// As `Overlay`, with `user.overlay.opaque`: for a union that an
    /// unprivileged user mounts in a user namespace.
    OverlayUser,
}

impl Format {
    /// Short and stable: part of branch ids and records.
    pub fn name(self) -> &'static str {
        match self {
            Format::Aufs => "aufs",
            Format::Overlay => "overlay",
            Format::OverlayUser => "overlay-user",
        }
    }
}

/// Why an image cannot be sealed. Paths are as the layer has them; layers are
/// counted from 1, the lowest.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// An index or a temporary file could not be read or written.
    #[error("cannot read or write the index of layer {layer}")]
    Index {
        /// The layer.
        layer: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A hard link whose target no layer has.
    #[error(
        "layer {layer} has a hard link {link} to {target}, which neither it nor a layer below it has"
    )]
    LinkTargetMissing {
        /// The layer.
        layer: usize,
        /// The link.
        link: PathText,
        /// Its target.
        target: PathText,
    },
    /// A hard link to something that the same layer removes.
    #[error("layer {layer} has a hard link {link} to {target}, which the same layer removes")]
    LinkTargetRemoved {
        /// The layer.
        layer: usize,
        /// The link.
        link: PathText,
        /// Its target.
        target: PathText,
    },
    /// A hard link to a directory.
    #[error("layer {layer} has a hard link {link} to the directory {target}")]
    LinkToDirectory {
        /// The layer.
        layer: usize,
        /// The link.
        link: PathText,
        /// Its target.
        target: PathText,
    },
    /// Links of the layers below that lead to each other, on the way of an entry.
    #[error("layer {layer} has entries below {path}, where links lead in a circle")]
    LinkLoop {
        /// The layer.
        layer: usize,
        /// Where.
        path: PathText,
    },
    /// Links of the layers below, one after the other, on the way of an entry.
    #[error("layer {layer} has entries below {path}, which pass more than {limit} symbolic links")]
    TooManyLinks {
        /// The layer.
        layer: usize,
        /// Where.
        path: PathText,
        /// The limit.
        limit: usize,
    },
    /// Links of the layers below that lead over very long ways.
    #[error(
        "layer {layer} has {path}, whose way passes more than {limit} components of symbolic links"
    )]
    TooManySteps {
        /// The layer.
        layer: usize,
        /// The entry, or the directory that it is in.
        path: PathText,
        /// The limit.
        limit: usize,
    },
    /// [`Limits::max_depth`], links of the layers below followed.
    #[error(
        "layer {layer} has {path}, which symbolic links lead to a path of more than {limit} components"
    )]
    TooDeep {
        /// The layer.
        layer: usize,
        /// The entry, or the directory that it is in.
        path: PathText,
        /// The limit.
        limit: usize,
    },
    /// [`Limits::max_path_bytes`], links of the layers below followed.
    #[error(
        "layer {layer} has {path}, which symbolic links lead to a path of more than {limit} bytes"
    )]
    TooLong {
        /// The layer.
        layer: usize,
        /// The entry, or the directory that it is in.
        path: PathText,
        /// The limit.
        limit: usize,
    },
    /// [`Limits::max_index_bytes`], what sealing adds included.
    #[error(
        "layer {layer} has so much that is settled by the layers below it that it takes more than {limit} bytes"
    )]
    IndexTooLarge {
        /// The layer.
        layer: usize,
        /// The limit.
        limit: u64,
    },
    /// A component that no Linux filesystem takes, in a link of the layers below.
    #[error(
        "layer {layer} has {path}, which symbolic links lead to a name of more than {limit} bytes"
    )]
    NameTooLong {
        /// The layer.
        layer: usize,
        /// The entry, or the directory that it is in.
        path: PathText,
        /// The limit.
        limit: usize,
    },
    /// A layer that uses one name for several things, such that what it means
    /// hangs on a link of the layers below and is not kept when it is unpacked
    /// alone. No tool is known to write such a layer.
    #[error(
        "layer {layer} has entries below {path}, passes through a link there, and replaces the name itself: such a layer cannot be unpacked; build the image again"
    )]
    Unsettled {
        /// The layer.
        layer: usize,
        /// Where.
        path: PathText,
    },
    /// What overlayfs would take for a whiteout.
    #[error(
        "layer {layer} has a character device 0:0 at {path}, which overlayfs takes for a deletion mark; AUFS can mount this image"
    )]
    NullDevice {
        /// The layer.
        layer: usize,
        /// The device.
        path: PathText,
    },
    /// A name that AUFS lists and cannot open.
    #[error(
        "layer {layer} has a name of {length} bytes at {path}; AUFS takes at most 242, overlayfs can mount this image"
    )]
    LongName {
        /// The layer.
        layer: usize,
        /// The path.
        path: PathText,
        /// Bytes of its last component.
        length: usize,
    },
}

impl SealError {
    /// The layer that it is about, the lowest is 1.
    pub fn layer(&self) -> usize {
        match self {
            SealError::Index { layer, .. }
            | SealError::LinkTargetMissing { layer, .. }
            | SealError::LinkTargetRemoved { layer, .. }
            | SealError::LinkToDirectory { layer, .. }
            | SealError::LinkLoop { layer, .. }
            | SealError::TooManyLinks { layer, .. }
            | SealError::TooManySteps { layer, .. }
            | SealError::TooDeep { layer, .. }
            | SealError::TooLong { layer, .. }
            | SealError::NameTooLong { layer, .. }
            | SealError::IndexTooLarge { layer, .. }
            | SealError::Unsettled { layer, .. }
            | SealError::NullDevice { layer, .. }
            | SealError::LongName { layer, .. } => *layer,
        }
    }

    fn index(layer: usize) -> impl FnOnce(io::Error) -> SealError {
        move |source| match IndexTooLarge::of(&source) {
            Some(IndexTooLarge { limit }) => SealError::IndexTooLarge {
                layer: layer + 1,
                limit,
            },
            None => SealError::Index {
                layer: layer + 1,
                source,
            },
        }
    }
}

/// An image's sealed form: what to change in each layer's directory, and how
/// the union is put together.
#[derive(Debug)]
pub struct Sealed {
    /// Edits of each layer, lowest first; an empty log means that the layer
    /// serves as it was unpacked.
    pub edits: Vec<EditLog>,
    /// The effective index of each layer: where its content is once the edits
    /// are made.
    pub effective: Vec<Index>,
    /// The lowest layer that is visible at all (0 but for a root opaque).
    pub base: usize,
    /// Metadata of the merged root directory.
    pub root: Attrs,
}

/// Seals a stack of layers, lowest first. Of the `limits`, those of paths hold
/// also for where links of lower layers lead. `scratch` gives empty temporary
/// files (for edit logs and rewritten indexes), best without names.
pub fn seal(
    layers: &[Index],
    format: Format,
    limits: &Limits,
    scratch: &dyn Fn() -> io::Result<File>,
) -> Result<Sealed, SealError> {
    let cache = Arc::new(Cache::default());
    let mut effective: Vec<Index> = layers.iter().map(|layer| layer.cached(&cache)).collect();
    let mut edits = Vec::with_capacity(layers.len());
    for layer in 0..layers.len() {
        let log = scratch()
            .and_then(EditLog::new)
            .map_err(SealError::index(layer))?;
        edits.push(log);
    }
    // Upper layers see the lower ones as settled, so this goes upwards.
    let mut next = 0;
    while let Some(layer) = first_to_settle(&effective, next)? {
        effective[layer] = settle::settle(
            layer,
            &effective[layer],
            &effective[..layer],
            &mut edits[layer],
            limits,
            scratch,
        )?;
        next = layer + 1;
    }
    refuse_unfit(&effective, format)?;
    let outcome = walk::walk(&effective, format, &mut edits)?;
    for (layer, log) in edits.iter_mut().enumerate() {
        log.finish().map_err(SealError::index(layer))?;
    }
    Ok(Sealed {
        edits,
        effective,
        base: outcome.base,
        root: outcome.root,
    })
}

/// The lowest layer from `from` on that follows links of the layers below it.
fn first_to_settle(layers: &[Index], from: usize) -> Result<Option<usize>, SealError> {
    let foreign = (from..layers.len()).find(|layer| {
        let summary = layers[*layer].summary();
        summary.foreign_links + summary.doubtful > 0
    });
    let below = foreign.map_or(layers.len(), |layer| layer);
    // Without symlinks beneath, or without anything that could pass through
    // one, the walk would find nothing.
    let may_pass = |layer: &usize| {
        let links = layers[..*layer]
            .iter()
            .any(|lower| lower.summary().symlinks > 0);
        let own = layers[*layer].summary();
        links && own.implied + own.late + own.whiteouts + own.opaques > 0
    };
    if (from..below).any(|layer| may_pass(&layer))
        && let Some(layer) = walk::first_through_link(&layers[..below], from)?
    {
        return Ok(Some(layer));
    }
    Ok(foreign)
}

/// Refuses what the union filesystem cannot show.
fn refuse_unfit(layers: &[Index], format: Format) -> Result<(), SealError> {
    use super::index::{Node, SpecialKind, name};
    for (layer, index) in layers.iter().enumerate() {
        let summary = index.summary();
        let suspect = match format {
            Format::Aufs => summary.long_names,
            Format::Overlay | Format::OverlayUser => summary.null_devices,
        };
        if suspect == 0 {
            continue;
        }
        let mut cursor = index.cursor();
        while let Some(record) = cursor.next_record().map_err(SealError::index(layer))? {
            let length = name(&record.path).len();
            match (format, &record.node) {
                (Format::Aufs, Some(_)) if length > super::index::AUFS_NAME_MAX => {
                    return Err(SealError::LongName {
                        layer: layer + 1,
                        path: record.path[..].into(),
                        length,
                    });
                }
                (
                    Format::Overlay | Format::OverlayUser,
                    Some(Node::Special {
                        kind: SpecialKind::Char,
                        device: (0, 0),
                        ..
                    }),
                ) => {
                    return Err(SealError::NullDevice {
                        layer: layer + 1,
                        path: record.path[..].into(),
                    });
                }
                _ => {}
            }
        }
    }
    Ok(())
}
