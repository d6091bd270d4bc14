//! The node: a small disk, its images, and what can be asked of it.

use super::support::entry::{Layer, dir, file, opaque, whiteout};
use super::support::model::{flatten, merge};
use super::support::node::{TestNode, chain, union};
use super::support::oci_layout::OciLayout;
use super::support::tarball::{Compression, tars};
use super::support::tree::Tree;
use super::worker::{Order, Running};
use super::{Random, names};
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountCall, MountFlags};
use aufs_csi::image::reference::Source;
use aufs_csi::layer::collect::{Aim, Marks};
use aufs_csi::pull::PullPolicy;
use aufs_csi::union::unmount;
use aufs_csi::volume::{
    CollectSettings, ImageRequest, Medium, Owner, PublishRequest, UnpublishRequest, VolumeError,
    VolumeInfo, VolumeOptions, Volumes, record,
};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Size of the disk.
pub(crate) const SIZE_MIB: u64 = 24;
pub(crate) const MIB: u64 = 1 << 20;
/// Images; together they are some times as large as the disk.
const IMAGES: usize = 16;
/// Layers that images share.
const SHARED: usize = 5;
/// Most bytes of a writable layer that has a limit.
const LIMIT: u64 = 2 * MIB;

pub(crate) struct Image {
    pub(crate) source: Source,
    pub(crate) shows: Tree,
}

pub(crate) struct Node {
    dir: tempfile::TempDir,
    pub(crate) images: Vec<Image>,
    volumes: Option<Volumes>,
}

/// The options of every process of the node in this directory.
pub(crate) fn options(dir: &Path) -> VolumeOptions {
    let mut options = TestNode::options(dir);
    options.root = dir.join("disk/store");
    options.collect = CollectSettings {
        marks: Marks {
            high: 95,
            low: 85,
            min_age: Duration::ZERO,
            ..Marks::default()
        },
        prefetch: Vec::new(),
    };
    options
}

pub(crate) fn open(dir: &Path) -> Volumes {
    let volumes = Volumes::open(options(dir), Arc::new(LinuxHost));
    volumes.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

pub(crate) fn source(dir: &Path, image: usize) -> Source {
    let path = dir.join("images").join(image.to_string());
    format!("oci:{}:latest", path.display()).parse().unwrap()
}

pub(crate) fn target(dir: &Path, id: &str) -> PathBuf {
    dir.join("targets").join(id)
}

pub(crate) fn request(dir: &Path, id: &str, images: &[usize], read_only: bool) -> PublishRequest {
    let images = images.iter().map(|&image| source(dir, image));
    let images = images.map(ImageRequest::unconfined).collect();
    let limit = limit(id).filter(|_| !read_only);
    PublishRequest {
        read_only,
        size_limit: limit.map(|_| LIMIT),
        medium: limit.unwrap_or_default(),
        union: union(),
        // Those of commands share no unions.
        owner: Owner::Plugin,
        ..PublishRequest::of_images(id, images, target(dir, id))
    }
}

/// What limits the writable layer of a volume: its id says so, to every process.
pub(crate) fn limit(id: &str) -> Option<Medium> {
    match id.strip_prefix('v')?.parse::<u64>().ok()? % 6 {
        1 => Some(Medium::Disk),
        2 => Some(Medium::Memory),
        _ => None,
    }
}

pub(crate) fn unpublish_request(dir: &Path, id: &str) -> UnpublishRequest {
    UnpublishRequest {
        volume_id: id.to_owned(),
        target: target(dir, id),
        clear_target: true,
    }
}

/// Layers that share names, so that they hide some of each other's, and have up to
/// a sixth of the disk that does not compress.
fn layer(random: &mut Random, number: usize) -> Layer {
    let bytes = random.below(SIZE_MIB * MIB / 6);
    let content: Vec<u8> = (0..bytes / 8)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    let mut layer = vec![
        dir("d"),
        file(format!("d/{number}"), &content),
        dir("e").mode(0o750),
        file(format!("e/{}", number % 3), number.to_string().as_bytes()),
    ];
    match number % 4 {
        1 => layer.push(whiteout(format!("d/{}", number - 1))),
        2 => layer.push(opaque("e")),
        _ => {}
    }
    layer
}

impl Node {
    pub(crate) fn new(random: &mut Random) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this makes real mounts: run it as root"
        );
        let dir = tempfile::Builder::new()
            .prefix("aufs-csi-soak-")
            .rand_bytes(8)
            .tempdir()
            .unwrap();
        for inside in ["disk", "targets", "images"] {
            fs::create_dir(dir.path().join(inside)).unwrap();
        }
        let call = MountCall::New {
            fs_type: "tmpfs",
            flags: MountFlags::default(),
            data: format!("size={SIZE_MIB}m,nr_inodes=4k,mode=0700"),
        };
        LinuxHost.mount(&dir.path().join("disk"), &call).unwrap();
        let shared: Vec<Layer> = (0..SHARED).map(|number| layer(random, number)).collect();
        let images = (0..IMAGES)
            .map(|number| {
                let mut layers: Vec<Layer> = (0..random.below(3))
                    .map(|_| shared[random.below(SHARED as u64) as usize].clone())
                    .collect();
                layers.push(layer(random, SHARED + number));
                let path = dir.path().join("images").join(number.to_string());
                OciLayout::new(&path).image("latest", &tars(&layers), Compression::Gzip);
                Image {
                    source: source(dir.path(), number),
                    shows: flatten(&layers).unwrap(),
                }
            })
            .collect();
        let volumes = open(dir.path());
        volumes.probe().unwrap();
        Node {
            dir,
            images,
            volumes: Some(volumes),
        }
    }

    fn volumes(&self) -> &Volumes {
        self.volumes.as_ref().unwrap()
    }

    pub(crate) fn target(&self, id: &str) -> PathBuf {
        target(self.dir.path(), id)
    }

    /// What a volume of these images shows at first.
    pub(crate) fn shows(&self, images: &[usize]) -> Tree {
        let trees: Vec<Tree> = images
            .iter()
            .map(|&image| self.images[image].shows.clone())
            .collect();
        match &trees[..] {
            [only] => only.clone(),
            several => merge(several),
        }
    }

    /// A volume's directory in the store.
    fn volume(&self, id: &str) -> PathBuf {
        self.store("volumes").join(record::directory_name(id))
    }

    /// The union that a volume shares with others of the same content, if it does.
    fn shared(&self, id: &str) -> Option<String> {
        let bytes = fs::read(self.volume(id).join("record.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        record["shared"].as_str().map(str::to_owned)
    }

    fn store(&self, inside: &str) -> PathBuf {
        self.dir.path().join("disk/store").join(inside)
    }

    /// Whether it was there.
    pub(crate) fn publish(
        &self,
        id: &str,
        images: &[usize],
        read_only: bool,
    ) -> Result<bool, VolumeError> {
        let request = request(self.dir.path(), id, images, read_only);
        let published = self.volumes().publish(&request, &())?;
        Ok(published.existed)
    }

    pub(crate) fn unpublish(&self, id: &str, what: &str) {
        let request = unpublish_request(self.dir.path(), id);
        let result = self.volumes().unpublish(&request);
        result.unwrap_or_else(|error| panic!("{what}: unpublish {id}: {}", chain(&error)));
        self.is_gone(id, what);
    }

    pub(crate) fn stage(&self, image: usize) -> Result<(), VolumeError> {
        let source = &self.images[image].source;
        let policy = PullPolicy::IfNotPresent;
        let staged = self.volumes().stage(source, None, union(), policy, &());
        staged.map(drop)
    }

    pub(crate) fn collect(&self, all: bool, what: &str) {
        let aim = if all { Aim::All } else { Aim::Marks };
        let result = self.volumes().collect(aim, true);
        result.unwrap_or_else(|error| panic!("{what}: collect: {}", chain(&error)));
    }

    pub(crate) fn start(&self, order: &Order) -> Running {
        Running::start(self.dir.path(), order)
    }

    /// Nothing of the volume is left.
    pub(crate) fn is_gone(&self, id: &str, what: &str) {
        let list = self.volumes().list().unwrap();
        assert!(list.iter().all(|it| it.volume_id != id), "{what}: {id}");
        assert!(!self.target(id).exists(), "{what}: the target of {id}");
    }

    fn mounts(&self) -> BTreeSet<PathBuf> {
        let table = LinuxHost.mount_table().unwrap().into_iter();
        table
            .map(|entry| entry.mount_point)
            .filter(|at| at.starts_with(self.dir.path()))
            .collect()
    }

    /// These volumes are there and no others, by their records, their directories,
    /// and their mounts; and every branch that they need.
    pub(crate) fn has_just(&self, live: &[String], what: &str) {
        let list = self.volumes().list().unwrap();
        let found: BTreeSet<&String> = list.iter().map(|volume| &volume.volume_id).collect();
        assert_eq!(found, live.iter().collect(), "{what}: records");
        for id in list.iter().flat_map(|volume| &volume.branches) {
            let branch = self.volumes().store().branch(id).unwrap();
            assert!(branch.is_some(), "{what}: a volume lacks {id}");
        }
        let mut mounts: BTreeSet<PathBuf> = live.iter().map(|id| self.target(id)).collect();
        mounts.insert(self.dir.path().join("disk"));
        for volume in list.iter().filter(|volume| !volume.read_only) {
            if limit(&volume.volume_id).is_some() {
                mounts.insert(self.volume(&volume.volume_id).join("fs"));
            }
        }
        let shared = list
            .iter()
            .filter_map(|volume| self.shared(&volume.volume_id));
        mounts.extend(shared.map(|id| self.store("shared").join(id).join("mount")));
        assert_eq!(self.mounts(), mounts, "{what}: mounts");
        let targets: BTreeSet<String> = live.iter().cloned().collect();
        let found = names(&self.dir.path().join("targets"));
        assert_eq!(found, targets, "{what}: targets");
    }

    /// With nobody at work and everything collected, what is there is just what the
    /// live volumes need.
    pub(crate) fn quiet(&mut self, live: &[String]) {
        let what = "in the quiet";
        // As after a restart.
        self.volumes = Some(open(self.dir.path()));
        self.collect(true, what);
        self.has_just(live, what);
        let list = self.volumes().list().unwrap();
        let needed: BTreeSet<String> = list
            .iter()
            .flat_map(|volume| volume.branches.iter().map(ToString::to_string))
            .collect();
        assert_eq!(names(&self.store("diff")), needed, "{what}: branches");
        let kinds = ["json", "index", "edits"];
        let files = |id: &String| kinds.map(|kind| format!("{id}.{kind}"));
        let files: BTreeSet<String> = needed.iter().flat_map(files).collect();
        assert_eq!(names(&self.store("layers")), files, "{what}: layers");
        let images = self.volumes().images().unwrap();
        let images: BTreeSet<&String> = images.iter().map(|image| &image.manifest).collect();
        let needed = list.iter().flat_map(|volume| &volume.images);
        let needed = needed.map(|image| &image.manifest).collect();
        assert_eq!(images, needed, "{what}: images");
        assert_eq!(
            names(&self.store("ingest")),
            BTreeSet::new(),
            "{what}: work"
        );
        assert_eq!(
            names(&self.store("volumes")).len(),
            2 * live.len(),
            "{what}"
        );
        let unions: BTreeSet<String> = live.iter().filter_map(|id| self.shared(id)).collect();
        let found = names(&self.store("shared"));
        let found = found.into_iter().filter(|name| !name.ends_with(".lock"));
        assert_eq!(found.collect::<BTreeSet<_>>(), unions, "{what}: shared");
        let run = options(self.dir.path()).run_dir;
        let xino = names(&run.join("xino")).len();
        assert!(xino <= live.len(), "{what}: {xino} xino files");
        self.further(live, what);
    }

    /// What else a volume may have of the node, by what the kernel says and not by
    /// the records.
    fn further(&self, live: &[String], what: &str) {
        let list = self.volumes().list().unwrap();
        let writable = |id: &&String| {
            let is = |volume: &VolumeInfo| volume.volume_id == **id && !volume.read_only;
            list.iter().any(is)
        };
        let images: BTreeSet<PathBuf> = live
            .iter()
            .filter(|id| limit(id) == Some(Medium::Disk))
            .filter(writable)
            .map(|id| self.volume(id).join("image"))
            .collect();
        let backing = |name: &String| Path::new("/sys/block").join(name).join("loop/backing_file");
        let loops: Vec<PathBuf> = names(Path::new("/sys/block"))
            .iter()
            .filter_map(|name| fs::read_to_string(backing(name)).ok())
            .map(|file| PathBuf::from(file.trim()))
            .filter(|file| file.starts_with(self.dir.path()))
            .collect();
        assert_eq!(loops.len(), images.len(), "{what}: {loops:?}");
        assert_eq!(
            loops.into_iter().collect::<BTreeSet<_>>(),
            images,
            "{what}: loop devices"
        );
    }

    /// There is nothing left but the store itself.
    pub(crate) fn is_empty(&self) {
        for inside in ["diff", "layers", "images", "ingest", "volumes"] {
            assert_eq!(names(&self.store(inside)), BTreeSet::new(), "{inside}");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let dir = self.dir.path().to_owned();
        if let Some(volumes) = &self.volumes {
            for volume in volumes.list().unwrap_or_default() {
                let _ = volumes.unpublish_named(&volume.volume_id);
            }
        }
        self.volumes = None;
        let patience = Duration::from_secs(10);
        for at in self.mounts().iter().rev() {
            if let Err(error) = unmount(&LinuxHost, &[at], patience) {
                eprintln!("soak: {}: {}", at.display(), chain(&error));
            }
        }
        let _ = fs::remove_dir_all(options(&dir).run_dir);
    }
}
