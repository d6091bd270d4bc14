//! Hard links: to a file of this layer, to one of a layer below, or to one
//! that AUFS kept aside.
//!
//! Nothing is remembered of the files that came, for there may be any number
//! of them. What a link's record needs is read from the disk: the inode number
//! groups the names, and the metadata is what the first name gave the inode.

use super::create::Target;
use super::name::{self, Meaning, NameError};
use super::resolve::Missing;
use super::{UnpackError, Unpacker};
use crate::layer::RecordSink;
use crate::layer::archive::Entry;
use crate::layer::index::{self, Node, Record, SpecialKind};
use crate::layer::tree::metadata::Inode;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Stat, linkat, major, minor, readlinkat, statat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

/// A hard link's target, found on disk.
struct Found {
    directory: OwnedFd,
    /// Where it is, links resolved; for an error's text and for comparison.
    path: Vec<u8>,
    stat: Stat,
}

impl<R: RecordSink> Unpacker<R> {
    /// Takes a hard link named `path`, in normal form.
    pub(super) fn hard_link(
        &mut self,
        entry: &Entry,
        path: &[u8],
        seq: u64,
    ) -> Result<(), UnpackError> {
        let refuse = |source| UnpackError::Target {
            path: path.into(),
            target: entry.link[..].into(),
            source,
        };
        let target = name::normalise(&entry.link, &self.options.limits).map_err(refuse)?;
        if target.is_empty() {
            return Err(to_directory(path, &target));
        }
        let found = match name::meaning(&target).map_err(refuse)? {
            Meaning::Node => self.find(&target, path)?,
            Meaning::PseudoLink { name } => Some(self.find_pseudo_link(name, &target, path)?),
            Meaning::Whiteout { .. } | Meaning::Opaque { .. } | Meaning::Bookkeeping => {
                return Err(refuse(NameError::Whiteout));
            }
        };

        let missing = self.resolve(index::parent(path), path)?;
        let name = index::name(path);
        self.check_way(&missing, name)
            .map_err(|source| UnpackError::Way {
                path: path.into(),
                source,
            })?;
        let link = index::join(&self.way(&missing), name);
        match found {
            Some(found) => self.link_to_found(&found, link, &missing, seq),
            None => self.link_to_below(target, link, &missing, seq),
        }
    }

    /// Finds a target in this layer. None if the layer does not have it, but
    /// one of those below may.
    fn find(&mut self, target: &[u8], path: &[u8]) -> Result<Option<Found>, UnpackError> {
        let missing = self.resolve(index::parent(target), path)?;
        // Also where something of this layer is in the way: it may have become a
        // directory by way of a link of the layers below. Sealing knows.
        if !missing.rest.is_empty() {
            return Ok(None);
        }
        let name = index::name(target);
        let directory = self.cursor.directory();
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(source) => return Err(inspect_error(target, source)),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            // Where this layer only implies it, one of those below may have a
            // link there, and that is what the target is. Sealing knows.
            return Ok(None);
        }
        Ok(Some(Found {
            directory: keep(directory).map_err(|source| inspect_error(target, source))?,
            path: index::join(self.cursor.path(), name),
            stat,
        }))
    }

    fn find_pseudo_link(
        &self,
        name: &[u8],
        target: &[u8],
        path: &[u8],
    ) -> Result<Found, UnpackError> {
        let Some(directory) = &self.pseudo_links else {
            return Err(target_missing(path, target));
        };
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Found {
                directory: keep(directory.as_fd())
                    .map_err(|source| inspect_error(target, source))?,
                path: target.to_vec(),
                stat,
            }),
            Err(Errno::NOENT) => Err(target_missing(path, target)),
            Err(source) => Err(inspect_error(target, source)),
        }
    }

    fn link_to_found(
        &mut self,
        found: &Found,
        link: Vec<u8>,
        missing: &Missing,
        seq: u64,
    ) -> Result<(), UnpackError> {
        if link == found.path {
            return Ok(());
        }
        if index::is_below(&link, &found.path) || index::is_below(&found.path, &link) {
            return Err(UnpackError::LinkReplacesTarget {
                path: link[..].into(),
                target: found.path[..].into(),
            });
        }
        self.create_missing(missing, seq)?;
        self.count_node(&link)?;
        let target_name = index::name(&found.path);
        self.replacing(
            &link,
            |directory, name| {
                let flags = AtFlags::empty();
                linkat(&found.directory, target_name, directory, name, flags)
            },
            |path, source| UnpackError::CreateLink {
                path,
                target: found.path[..].into(),
                source,
            },
        )?;
        let node = self.node_on_disk(found, &link)?;
        self.record(&Record {
            path: link,
            seq,
            node: Some(node),
            ..Record::default()
        })
    }

    /// Notes a link to what only a layer below can have. What this layer had
    /// under the name so far is gone.
    fn link_to_below(
        &mut self,
        target: Vec<u8>,
        link: Vec<u8>,
        missing: &Missing,
        seq: u64,
    ) -> Result<(), UnpackError> {
        if target == link {
            return Err(target_missing(&link, &target));
        }
        self.create_missing(missing, seq)?;
        self.count_node(&link)?;
        self.remove(&link)?;
        self.record(&Record {
            path: link,
            seq,
            node: Some(Node::ForeignLink { target }),
            ..Record::default()
        })
    }

    fn node_on_disk(&mut self, found: &Found, link: &[u8]) -> Result<Node, UnpackError> {
        let name = index::name(&found.path);
        let stat = &found.stat;
        let inode = Inode::Named {
            directory: found.directory.as_fd(),
            name,
        };
        let ownership = self.options.ownership;
        let attrs =
            self.reader
                .read(inode, stat, ownership)
                .map_err(|source| UnpackError::Metadata {
                    path: link.into(),
                    source,
                })?;
        let inode = stat.st_ino;
        let special = |kind| Node::Special {
            attrs: attrs.clone(),
            kind,
            device: (major(stat.st_rdev), minor(stat.st_rdev)),
            inode,
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Node::Symlink {
                target: readlinkat(&found.directory, name, Vec::new())
                    .map_err(|source| inspect_error(link, source))?
                    .into_bytes(),
                attrs,
                inode,
            },
            FileType::Fifo => special(SpecialKind::Fifo),
            FileType::CharacterDevice => special(SpecialKind::Char),
            FileType::BlockDevice => special(SpecialKind::Block),
            _ => Node::File {
                attrs,
                size: u64::try_from(stat.st_size).unwrap_or_default(),
                inode,
            },
        })
    }

    /// Keeps a file of the directory of pseudo-links, out of every entry's
    /// reach, until the links to it come.
    pub(super) fn pseudo_link(&mut self, entry: Entry, path: &[u8]) -> Result<(), UnpackError> {
        if self.pseudo_links.is_none() {
            self.pseudo_links = Some(self.create_pseudo_links(path)?);
        }
        self.count_node(path)?;
        self.create_file(entry, path.to_vec(), Target::PseudoLink)
    }
}

/// A descriptor of the directory that outlives the cursor's stay in it.
fn keep(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fcntl_dupfd_cloexec(directory, 0)
}

fn to_directory(path: &[u8], target: &[u8]) -> UnpackError {
    UnpackError::LinkToDirectory {
        path: path.into(),
        target: target.into(),
    }
}

fn target_missing(path: &[u8], target: &[u8]) -> UnpackError {
    UnpackError::LinkTargetMissing {
        path: path.into(),
        target: target.into(),
    }
}

fn inspect_error(path: &[u8], source: Errno) -> UnpackError {
    UnpackError::Inspect {
        path: path.into(),
        source: source.into(),
    }
}
