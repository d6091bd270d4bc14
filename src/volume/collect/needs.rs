//! Who needs which image and which branch: the one place where that is listed.
//! Whatever else is to keep something in the store is to be added here.

use super::super::record::{self, RECORD_VERSION, RecordedImage, VolumeRecord};
use super::super::{VolumeError, Volumes};
use super::shown::branches_in;
use crate::chain::Chain;
use crate::host::{MountEntry, MountTable};
use crate::layer::collect::{Branch, Disk, Facts, Image, Need};
use crate::layer::store::{BranchId, BranchRecord, Held, StoreError};
use crate::union;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What of a volume's record counts here, whichever version wrote it.
#[derive(Debug, Deserialize)]
struct Pin {
    version: u32,
    volume_id: String,
    images: Vec<RecordedImage>,
    branches: Vec<BranchId>,
}

/// What the kernel has mounted, looked at before anything else: what is mounted
/// afterwards is recorded before.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Branches that a mount shows, and where.
    shown: Vec<(PathBuf, BTreeSet<BranchId>)>,
    /// A mount that may show any branch.
    unclear: Option<PathBuf>,
}

impl Mounts {
    /// Whether a mount shows this branch.
    pub(super) fn show(&self, id: &BranchId) -> bool {
        self.shown.iter().any(|(_, branches)| branches.contains(id))
    }

    /// Whether a mount may show any branch.
    pub(super) fn is_unclear(&self) -> bool {
        self.unclear.is_some()
    }
}

impl Volumes {
    /// What is mounted on this node, in all mount namespaces that can be seen.
    pub(super) fn mounts(&self) -> Result<Mounts, VolumeError> {
        let host = self.host.as_ref();
        let tables = self.mount_tables()?;
        let volumes = record::all(&self.store).map_err(VolumeError::Store)?;
        // A superblock has one number in all namespaces.
        let recorded: BTreeSet<(u32, u32)> = tables
            .iter()
            .flat_map(|table| &table.entries)
            .filter(|entry| is_union(entry) && is_recorded(entry, &volumes))
            .map(|entry| entry.device)
            .collect();
        let mut mounts = Mounts::default();
        let mut unclear = Vec::new();
        let mut seen = BTreeSet::new();
        for table in &tables {
            for entry in &table.entries {
                let is_known = is_union(entry) && recorded.contains(&entry.device);
                if is_known || !seen.insert((entry.device, entry.root.clone())) {
                    continue;
                }
                let parts = union::parts(host, &table.root, entry);
                match parts {
                    Ok(Some(texts)) => {
                        let ids: BTreeSet<BranchId> =
                            texts.iter().flat_map(|text| self.ours_in(text)).collect();
                        if !ids.is_empty() {
                            mounts.shown.push((entry.mount_point.clone(), ids));
                        }
                    }
                    Ok(None) => {
                        if self.may_be_ours(entry) {
                            unclear.push(entry);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(
                            at = %entry.mount_point.display(),
                            %error,
                            "what a union consists of cannot be found out"
                        );
                        unclear.push(entry);
                    }
                }
            }
        }
        if !unclear.is_empty() {
            // One that was unmounted meanwhile needs nothing any more.
            let tables = self.mount_tables()?;
            let mut now = tables.iter().flat_map(|table| &table.entries);
            let still = now.find(|entry| {
                let is_it = |it: &&MountEntry| (it.id, it.device) == (entry.id, entry.device);
                unclear.iter().any(is_it)
            });
            mounts.unclear = still.map(|entry| entry.mount_point.clone());
        }
        Ok(mounts)
    }

    fn mount_tables(&self) -> Result<Vec<MountTable>, VolumeError> {
        self.host
            .mount_tables(&self.options.host_proc)
            .map_err(StoreError::io("read", Path::new("the mount tables")))
            .map_err(VolumeError::Store)
    }

    /// Branches of this store that a text names. Another store on this machine
    /// has the same names for the same content: a path that leads to a directory
    /// which is not this store's counts for nothing, one that leads nowhere from
    /// here may have been written in another container.
    fn ours_in(&self, text: &[u8]) -> Vec<BranchId> {
        let is_ours = |(id, path): &(BranchId, PathBuf)| {
            let own = self.store.branch_dir(id);
            if *path == own || !path.is_absolute() {
                return true;
            }
            match (fs::metadata(path), fs::metadata(own)) {
                (Ok(shown), Ok(own)) => (shown.dev(), shown.ino()) == (own.dev(), own.ino()),
                (Ok(_), Err(_)) | (Err(_), _) => true,
            }
        };
        let found = branches_in(text).into_iter().filter(is_ours);
        found.map(|(id, _)| id).collect()
    }

    /// Whether a union of unknown branches may be one that an earlier process
    /// made: with a writable layer it says whose it is.
    fn may_be_ours(&self, entry: &MountEntry) -> bool {
        let upper = entry.option("upperdir").or_else(|| entry.option("xino"));
        let Some(upper) = upper.and_then(|path| std::str::from_utf8(path).ok()) else {
            return true;
        };
        Path::new(upper).starts_with(self.store.volumes_dir())
            || Path::new(upper).starts_with(&self.options.run_dir)
    }

    /// The store as it is, and who needs what of it. `leases` are none where one
    /// of them cannot be read. With `known`, the branches are taken to be these,
    /// and names of images are not looked for.
    pub(super) fn facts(
        &self,
        mounts: &Mounts,
        leases: Option<&[Held]>,
        known: Option<&[Branch]>,
    ) -> Result<Facts, VolumeError> {
        // Leases before volumes: a lease ends when the volume's record is there.
        let mut needs: Vec<Need> = leases
            .unwrap_or_default()
            .iter()
            .map(|held| Need {
                who: held.purpose.clone(),
                images: held.images.iter().cloned().collect(),
                branches: held.branches.iter().cloned().collect(),
            })
            .collect();
        let mut doubt = match leases {
            Some(_) => None,
            None => Some("a lease cannot be read".to_owned()),
        };
        if let Some(at) = &mounts.unclear {
            doubt = Some(format!(
                "the layers of the union at {} cannot be found out",
                at.display()
            ));
        }
        for dir in record::directories(&self.store).map_err(VolumeError::Store)? {
            match pin(&dir) {
                Ok(Some(pin)) => needs.push(Need {
                    who: format!("volume {}", pin.volume_id),
                    images: pin.images.into_iter().map(|image| image.manifest).collect(),
                    branches: pin.branches.into_iter().collect(),
                }),
                Ok(None) => {}
                Err(error) => doubt = Some(Chain(&error).to_string()),
            }
        }
        needs.extend(self.promised()?);
        needs.extend(mounts.shown.iter().map(|(at, branches)| Need {
            who: format!("mount {}", at.display()),
            images: BTreeSet::new(),
            branches: branches.clone(),
        }));
        let store = &self.store;
        let stacks = store.stacks().map_err(VolumeError::Store)?;
        let images = store.images().map_err(VolumeError::Store)?;
        let of_images: BTreeSet<BranchId> = images
            .iter()
            .flat_map(|image| image.sealed.values())
            .flat_map(|form| form.branches.iter().cloned())
            .collect();
        let references = match known {
            Some(_) => Vec::new(),
            None => store.references().map_err(VolumeError::Store)?,
        };
        let branches = match known {
            Some(known) => known.to_vec(),
            None => {
                let branches = store.branches().map_err(VolumeError::Store)?;
                branches.into_iter().map(branch).collect()
            }
        };
        let names = |manifest: &str| {
            let leads = references.iter().filter(|it| it.manifest == manifest);
            leads.map(|it| it.name.clone()).collect()
        };
        Ok(Facts {
            now: crate::layer::store::now(),
            disk: self.store_disk()?,
            branches,
            images: images
                .into_iter()
                .map(|image| Image {
                    names: names(&image.manifest),
                    used: store.last_use(&image),
                    // What was made for several images goes with the uppermost.
                    branches: stacks
                        .iter()
                        .filter(|stack| stack.manifests.first() == Some(&image.manifest))
                        .flat_map(|stack| stack.form.branches.iter())
                        .filter(|id| !of_images.contains(*id))
                        .cloned()
                        .chain(image.sealed.into_values().flat_map(|form| form.branches))
                        .collect(),
                    manifest: image.manifest,
                })
                .collect(),
            needs,
            doubt,
        })
    }

    /// Images that volumes were promised whose pull has not ended.
    fn promised(&self) -> Result<Vec<Need>, VolumeError> {
        let promises = self.pulls.promised().map_err(VolumeError::Store)?;
        let mut needs = Vec::with_capacity(promises.len());
        for (volume_id, digests) in promises {
            let mut images = BTreeSet::new();
            for digest in digests {
                let of_index = self.store.manifests_of(&digest);
                images.extend(of_index.map_err(VolumeError::Store)?);
                images.insert(digest);
            }
            needs.push(Need {
                who: format!("promise to volume {volume_id}"),
                images,
                branches: BTreeSet::new(),
            });
        }
        Ok(needs)
    }

    /// The filesystem of the store.
    pub(super) fn store_disk(&self) -> Result<Disk, VolumeError> {
        let root = self.store.root();
        let found = self
            .host
            .filesystem(root)
            .map_err(StoreError::io("read the size of", root))
            .map_err(VolumeError::Store)?;
        Ok(Disk {
            bytes: found.bytes,
            bytes_free: found.bytes_available,
            inodes: found.inodes,
            inodes_free: found.inodes_available,
        })
    }
}

fn branch(record: BranchRecord) -> Branch {
    Branch {
        bytes: record.disk_bytes(),
        entries: record.summary.nodes,
        created: record.created,
        id: record.id,
    }
}

fn is_union(entry: &MountEntry) -> bool {
    entry.fs_type == "aufs" || entry.fs_type == "overlay"
}

/// Whether a union is one of these volumes'.
fn is_recorded(entry: &MountEntry, volumes: &[(PathBuf, VolumeRecord)]) -> bool {
    let is_of = |(dir, record): &(PathBuf, VolumeRecord)| {
        let is_there = entry.mount_point == record.target || entry.mount_point.starts_with(dir);
        is_there && record.plan.owns(record.aufs_id.as_deref(), entry)
    };
    volumes.iter().any(is_of)
}

/// What a volume's record keeps. One of which that cannot be read keeps all.
fn pin(dir: &Path) -> Result<Option<Pin>, StoreError> {
    match record::read_as::<Pin>(dir) {
        Ok(Some(pin)) if pin.version > RECORD_VERSION => {
            tracing::debug!(volume.id = pin.volume_id, "the pin of a newer version");
            Ok(Some(pin))
        }
        other => other,
    }
}
