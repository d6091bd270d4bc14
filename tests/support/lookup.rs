//! What a union of branches shows, read from their directories by the rules of
//! `docs/aufs.md` and of the kernel's `overlayfs.rst`, without a mount. Slow and
//! simple, one name after the other.

use super::entry::join;
use super::tree::{Node, Tree, read_one, real_path};
use std::collections::{BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The markers of which union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Markers {
    Aufs,
    Overlay,
}

/// What is in `branches`, uppermost first, below a root of the given metadata.
pub fn look(markers: Markers, branches: &[PathBuf], root: Node) -> Tree {
    let mut tree = Tree::empty();
    tree.nodes.insert(Vec::new(), root);
    let mut inodes = HashMap::new();
    let mut pending = vec![(Vec::new(), branches.iter().collect::<Vec<_>>())];
    while let Some((dir, branches)) = pending.pop() {
        let mut names = BTreeSet::new();
        for branch in &branches {
            for entry in std::fs::read_dir(real_path(branch, &dir)).unwrap() {
                names.insert(entry.unwrap().file_name().as_bytes().to_vec());
            }
        }
        for name in names {
            if markers == Markers::Aufs && name.starts_with(b".wh.") {
                assert!(!name.starts_with(b".wh..wh."), "{name:?} in a branch");
                continue;
            }
            let path = join(&dir, &name);
            let mut found: Option<Node> = None;
            let mut inside = Vec::new();
            for branch in &branches {
                let real = real_path(branch, &path);
                let hidden = real_path(branch, &join(&dir, &[b".wh.", &name[..]].concat()));
                if markers == Markers::Aufs && hidden.symlink_metadata().is_ok() {
                    break;
                }
                let Ok(metadata) = real.symlink_metadata() else {
                    continue;
                };
                let kind = metadata.file_type();
                if markers == Markers::Overlay && kind.is_char_device() && metadata.rdev() == 0 {
                    break;
                }
                if kind.is_dir() {
                    inside.push(*branch);
                } else if found.is_some() {
                    match markers {
                        Markers::Aufs => continue,
                        Markers::Overlay => break,
                    }
                }
                if found.is_none() {
                    found = Some(read_one(&real, &mut inodes).unwrap());
                    if !kind.is_dir() {
                        break;
                    }
                }
                if markers == Markers::Overlay && is_opaque(&real) {
                    break;
                }
            }
            let Some(mut node) = found else { continue };
            if node.is_dir() {
                pending.push((path.clone(), inside));
            }
            // No number of another kind of inode.
            node.inode |= 1 << 40;
            tree.nodes.insert(path, node);
        }
    }
    tree
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(dir, "trusted.overlay.opaque", &mut value).is_ok()
}
