//! Artifacts whose layers are files: a manifest of something else than a container
//! image, with a title for each layer. Pure.
//!
//! A layer is one file, of the name that `org.opencontainers.image.title` gives;
//! ORAS marks the tar of a directory with `io.deis.oras.content.unpack`, and the
//! names in it begin with the title already.

use super::raw::RawDescriptor;
use super::{Compression, Manifest, ManifestError, ManifestLayer, parse_digest};
use crate::image::digest::Digest;
use crate::image::printable;
use std::collections::HashSet;

/// Longest title in bytes: what the kernel takes for a path.
const MAX_TITLE_BYTES: usize = 4095;
/// Longest part of a title in bytes: what filesystems take for a name.
const MAX_COMPONENT_BYTES: usize = 255;

/// What a layer is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LayerContent {
    /// The tar of a tree.
    Tar,
    /// One file, which is the blob itself.
    File {
        /// Where it is in the image's tree: names divided by `/`, none of them
        /// empty, `.`, `..` or a marker.
        path: String,
    },
}

/// The layers of an artifact; an error if they are not files.
pub(super) fn layers(
    artifact: &str,
    raw: Vec<RawDescriptor>,
) -> Result<Vec<ManifestLayer>, ManifestError> {
    let titled = raw.iter().filter(|layer| title(layer).is_some()).count();
    if titled == 0 || titled < raw.len() {
        return Err(ManifestError::Artifact {
            artifact: printable(artifact),
        });
    }
    let mut layers = Vec::with_capacity(raw.len());
    let mut titles = HashSet::new();
    for (index, layer) in raw.iter().enumerate() {
        let title = title(layer).unwrap_or_default();
        let refused = |reason| ManifestError::Title {
            index,
            title: printable(title),
            reason,
        };
        check_title(title).map_err(refused)?;
        if !titles.insert(title) {
            return Err(refused("another layer has the same"));
        }
        layers.push(artifact_layer(index, title, layer)?);
    }
    // A file cannot be where another one's directory is.
    for (index, layer) in layers.iter().enumerate() {
        let LayerContent::File { path } = &layer.content else {
            continue;
        };
        let mut above = path.match_indices('/').map(|(end, _)| &path[..end]);
        if above.any(|directory| titles.contains(directory)) {
            return Err(ManifestError::Title {
                index,
                title: printable(path),
                reason: "another layer has a part of its path",
            });
        }
    }
    Ok(layers)
}

fn title(layer: &RawDescriptor) -> Option<&str> {
    layer.annotations.as_ref()?.title.as_deref()
}

fn check_title(title: &str) -> Result<(), &'static str> {
    if title.is_empty() {
        return Err("it is empty");
    }
    if title.starts_with('/') {
        return Err("it is an absolute path");
    }
    if title.len() > MAX_TITLE_BYTES {
        return Err("it is longer than a path may be");
    }
    if title.contains('\0') {
        return Err("it has a NUL");
    }
    for component in title.split('/') {
        match component {
            "" => return Err("a part of it is empty"),
            "." | ".." => return Err("it has . or .. in it"),
            marker if marker.starts_with(".wh.") => return Err("it is a marker's name"),
            long if long.len() > MAX_COMPONENT_BYTES => {
                return Err("a part of it is longer than a name may be");
            }
            _ => {}
        }
    }
    Ok(())
}

fn artifact_layer(
    index: usize,
    title: &str,
    raw: &RawDescriptor,
) -> Result<ManifestLayer, ManifestError> {
    let layer = |compression, content, diff_id| {
        Ok(ManifestLayer {
            digest: parse_digest(&raw.digest, || format!("layer {}", index + 1))?,
            size: raw.size,
            compression,
            content,
            diff_id,
        })
    };
    let annotations = raw.annotations.as_ref();
    let is_directory = annotations.is_some_and(|all| all.unpack.as_deref() == Some("true"));
    if !is_directory {
        let path = title.to_owned();
        let digest = parse_digest(&raw.digest, || format!("layer {}", index + 1))?;
        let diff_id = file_id(&digest, &path);
        return layer(
            Compression::None,
            LayerContent::File { path },
            Some(diff_id),
        );
    }
    let digest = annotations.and_then(|all| all.content_digest.as_deref());
    let digest = digest.ok_or_else(|| ManifestError::Title {
        index,
        title: printable(title),
        reason: "it is a directory without io.deis.oras.content.digest",
    })?;
    let diff_id = parse_digest(digest, || format!("uncompressed layer {}", index + 1))?;
    layer(Compression::Sniff, LayerContent::Tar, Some(diff_id))
}

/// What stands for the diffID of a layer that is a file, for a layer is known by
/// that: the digest of a line that says what it is. No tar has such a digest, for
/// it would have to be that line.
fn file_id(blob: &Digest, path: &str) -> Digest {
    Digest::of(format!("file {blob} {path}").as_bytes())
}

impl Manifest {
    /// The diffIDs of an artifact's layers; none for an image, whose config has
    /// them.
    pub(in crate::image) fn own_diff_ids(&self) -> Option<Vec<Digest>> {
        self.is_artifact.then(|| {
            self.layers
                .iter()
                .filter_map(|layer| layer.diff_id)
                .collect()
        })
    }
}

#[cfg(test)]
mod tests;
