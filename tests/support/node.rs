//! A node of its own for a test: a store, a run directory and places for
//! volumes, on real mounts. Everything is taken down when it goes out of scope.

use super::entry::Layer;
use super::oci_layout::OciLayout;
use super::tarball::{Compression, tars};
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::image::reference::Source;
use aufs_csi::stage::StageOptions;
use aufs_csi::union::{self, probe::UnionRequest};
use aufs_csi::volume::record::VolumeRecord;
use aufs_csi::volume::{
    ImageRequest, Owner, PublishRequest, Published, UnpublishRequest, VolumeError, VolumeOptions,
    Volumes,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which union the suite runs on: `AUFS_CSI_BACKEND`, overlay by default.
pub fn union() -> UnionRequest {
    match std::env::var("AUFS_CSI_BACKEND") {
        Ok(name) => name
            .parse()
            .unwrap_or_else(|error| panic!("AUFS_CSI_BACKEND: {error}")),
        Err(_) => UnionRequest::Overlay,
    }
}

/// A store with its volumes.
pub struct TestNode {
    pub volumes: Volumes,
    dir: Option<tempfile::TempDir>,
}

impl TestNode {
    /// Needs root, for it mounts.
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes real mounts: run it as root"
        );
        let base = std::env::var_os("AUFS_CSI_TEST_DIR").map_or_else(fast_dir, PathBuf::from);
        Self::in_dir(&base)
    }

    /// Where the store is to be on a certain filesystem.
    pub fn in_dir(base: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("aufs-csi-test-")
            .rand_bytes(8)
            .tempdir_in(base)
            .unwrap();
        let volumes = Self::open(dir.path());
        TestNode {
            volumes,
            dir: Some(dir),
        }
    }

    fn open(dir: &Path) -> Volumes {
        Volumes::open(Self::options(dir), Arc::new(LinuxHost)).unwrap()
    }

    /// Where things are of the node in a directory.
    pub fn options(dir: &Path) -> VolumeOptions {
        VolumeOptions {
            root: dir.join("store"),
            run_dir: run_dir(dir),
            rootless: false,
            max_branches: None,
            stage: StageOptions::default(),
            host_proc: PathBuf::from("/proc"),
            pull: Default::default(),
            collect: Default::default(),
        }
    }

    /// Where things are, for another process on the same store.
    pub fn volumes_options(&self) -> VolumeOptions {
        Self::options(self.path())
    }

    pub fn path(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// As after a restart of the program.
    pub fn reopen(&mut self) {
        self.volumes = Self::open(self.path());
    }

    /// An image of these layers, and how it is asked for.
    pub fn image(&self, name: &str, layers: &[Layer]) -> Source {
        self.image_of_tars(name, &tars(layers), Compression::Gzip)
    }

    pub fn image_of_tars(&self, name: &str, tars: &[Vec<u8>], compression: Compression) -> Source {
        let dir = self.path().join("images").join(name);
        let mut layout = OciLayout::new(&dir);
        layout.image("latest", tars, compression);
        format!("oci:{}:latest", dir.display()).parse().unwrap()
    }

    pub fn request(&self, id: &str, source: &Source, read_only: bool) -> PublishRequest {
        PublishRequest {
            read_only,
            union: union(),
            ..PublishRequest::new(id, source.clone(), self.target(id))
        }
    }

    pub fn target(&self, id: &str) -> PathBuf {
        self.path().join(format!("target-{id}"))
    }

    pub fn publish(
        &self,
        id: &str,
        source: &Source,
        read_only: bool,
    ) -> Result<Published, VolumeError> {
        self.volumes
            .publish(&self.request(id, source, read_only), &())
    }

    /// Of several images, the uppermost first.
    pub fn publish_all(
        &self,
        id: &str,
        sources: &[Source],
        read_only: bool,
    ) -> Result<Published, VolumeError> {
        let images = sources.iter().cloned().map(ImageRequest::unconfined);
        let request = PublishRequest {
            images: images.collect(),
            ..self.request(id, &sources[0], read_only)
        };
        self.volumes.publish(&request, &())
    }

    /// Takes the union of a volume down, as a reboot does, and has it mounted again
    /// with the writable layer as it is by then.
    pub fn remount(&self, id: &str) {
        let record = self.record(id);
        let patience = std::time::Duration::from_secs(10);
        union::unmount(&LinuxHost, &[&record.target], patience).unwrap();
        let sources = record
            .images
            .iter()
            .map(|image| image.image.parse().unwrap());
        let sources: Vec<Source> = sources.collect();
        let again = self.publish_all(id, &sources, record.read_only);
        let again = again.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(!again.existed, "it was mounted all the time");
    }

    /// The record of a volume.
    pub fn record(&self, id: &str) -> VolumeRecord {
        std::fs::read_dir(self.path().join("store/volumes"))
            .unwrap()
            .filter_map(|entry| std::fs::read(entry.unwrap().path().join("record.json")).ok())
            .map(|bytes| serde_json::from_slice::<VolumeRecord>(&bytes).unwrap())
            .find(|record| record.volume_id == id)
            .expect("the record of a volume that is mounted")
    }

    pub fn unpublish(&self, id: &str) {
        self.try_unpublish(id).unwrap();
    }

    pub fn try_unpublish(&self, id: &str) -> Result<(), VolumeError> {
        self.volumes.unpublish(&UnpublishRequest {
            volume_id: id.to_owned(),
            target: self.target(id),
            clear_target: false,
        })
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        for volume in self.volumes.list().unwrap_or_default() {
            let _ = self.volumes.unpublish(&UnpublishRequest {
                volume_id: volume.volume_id,
                target: volume.target,
                clear_target: false,
            });
        }
        if let Some(dir) = &self.dir {
            let run = run_dir(dir.path());
            let _ = std::fs::remove_dir_all(run);
        }
    }
}

/// On a tmpfs, and not inside of the node's own directory.
fn run_dir(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap().to_string_lossy();
    Path::new("/dev/shm").join(format!("{name}-run"))
}

/// Memory, where it has `user.*` attributes (Linux 6.6): every unmount of an
/// overlay waits for the disk of its upper directory.
fn fast_dir() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let probe = tempfile::NamedTempFile::new_in(&memory);
    let fits = probe.is_ok_and(|file| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(file.as_file(), "user.probe", b"1", flags).is_ok()
    });
    if fits { memory } else { std::env::temp_dir() }
}

/// A message with all its causes, as a user sees it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
