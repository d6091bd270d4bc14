//! Volumes that exist only in a map.

use aufs_csi::csi::events::PodEvents;
use aufs_csi::csi::request::Wanted;
use aufs_csi::csi::{Kinded, VolumeService, v1};
use aufs_csi::image::digest::Digest;
use aufs_csi::layer::ingest;
use aufs_csi::stage::{Progress, Pulled};
use aufs_csi::volume::stats::{Amount, Usage};
use aufs_csi::volume::{ErrorKind, Pod, PublishRequest, Standing, UnpublishRequest};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Publishing a volume of this id panics.
pub(crate) const PANIC: &str = "panic";

/// Remembers what it was asked, and does as it was told.
#[derive(Default)]
pub(crate) struct Fake {
    calls: Mutex<Vec<String>>,
    volumes: Mutex<HashMap<String, Published>>,
    fails_with: Mutex<Option<ErrorKind>>,
    gate: Mutex<Gate>,
    gate_moved: Condvar,
    is_rebooted: AtomicBool,
}

/// A volume that is there.
struct Published {
    target: PathBuf,
    read_only: bool,
    attributes: BTreeMap<String, String>,
    /// None if it was there before the server.
    request: Option<PublishRequest>,
}

#[derive(Default)]
struct Gate {
    is_closed: bool,
    waiting: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("the fake failed")]
pub(crate) struct FakeError {
    kind: ErrorKind,
    source: Told,
}

#[derive(Debug, thiserror::Error)]
#[error("because it was told to")]
struct Told;

impl Kinded for FakeError {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl Fake {
    /// Publishes and unpublishes in their order; what needed none is not in it.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// How the volume was asked for, if it is published.
    pub(crate) fn published(&self, volume_id: &str) -> Option<PublishRequest> {
        self.volumes.lock().unwrap().get(volume_id)?.request.clone()
    }

    /// No volume is mounted any more, and all are remembered.
    pub(crate) fn reboot(&self) {
        self.is_rebooted.store(true, Ordering::SeqCst);
    }

    /// A volume that was published before the server was started.
    pub(crate) fn adopt(&self, volume_id: &str, request: &v1::NodePublishVolumeRequest) {
        let image = request.volume_context["image"].clone();
        let volume = Published {
            target: PathBuf::from(&request.target_path),
            read_only: request.readonly,
            attributes: BTreeMap::from([("image".to_owned(), image)]),
            request: None,
        };
        self.volumes
            .lock()
            .unwrap()
            .insert(volume_id.to_owned(), volume);
    }

    /// Makes everything fail, or nothing.
    pub(crate) fn fail_with(&self, kind: Option<ErrorKind>) {
        *self.fails_with.lock().unwrap() = kind;
    }

    /// Makes every publish wait.
    pub(crate) fn close_gate(&self) {
        self.gate.lock().unwrap().is_closed = true;
    }

    pub(crate) fn open_gate(&self) {
        self.gate.lock().unwrap().is_closed = false;
        self.gate_moved.notify_all();
    }

    /// Whether a publish waits at the gate.
    pub(crate) fn is_waiting(&self) -> bool {
        self.gate.lock().unwrap().waiting > 0
    }

    fn pass_gate(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        while gate.is_closed {
            gate = self.gate_moved.wait(gate).unwrap();
        }
        gate.waiting -= 1;
    }

    fn note(&self, call: String) -> Result<(), FakeError> {
        self.calls.lock().unwrap().push(call);
        match *self.fails_with.lock().unwrap() {
            Some(kind) => Err(FakeError { kind, source: Told }),
            None => Ok(()),
        }
    }
}

impl VolumeService for Fake {
    type Error = FakeError;

    fn standing(&self, wanted: &Wanted) -> Result<Standing, FakeError> {
        let volumes = self.volumes.lock().unwrap();
        let is_same = |volume: &&Published| {
            volume.target == wanted.target
                && volume.read_only == wanted.read_only
                && volume.attributes == wanted.attributes
        };
        Ok(match volumes.get(&wanted.volume_id).filter(is_same) {
            None => Standing::Unknown,
            Some(_) if self.is_rebooted.load(Ordering::SeqCst) => Standing::Recorded,
            Some(_) => Standing::Published,
        })
    }

    fn publish(&self, request: &PublishRequest, progress: &dyn Progress) -> Result<(), FakeError> {
        if request.volume_id == PANIC {
            panic!("as the test asked");
        }
        self.note(format!("publish {}", request.volume_id))?;
        progress.pulling("app");
        progress.layers(&Arc::new(ingest::Progress::new([None, None])));
        self.pass_gate();
        progress.pulled(
            "app",
            &Pulled {
                digest: Digest::of(b""),
                bytes: 7,
                took: Duration::from_secs(1),
                cached: true,
            },
        );
        let volume = Published {
            target: request.target.clone(),
            read_only: request.read_only,
            attributes: request.attributes.clone(),
            request: Some(request.clone()),
        };
        self.volumes
            .lock()
            .unwrap()
            .insert(request.volume_id.clone(), volume);
        Ok(())
    }

    fn unpublish(&self, request: &UnpublishRequest) -> Result<(), FakeError> {
        let unknown = if request.clear_target {
            ""
        } else {
            " elsewhere"
        };
        self.note(format!("unpublish {}{unknown}", request.volume_id))?;
        self.volumes.lock().unwrap().remove(&request.volume_id);
        Ok(())
    }

    fn usage(&self, volume_id: &str, target: &Path) -> Result<Usage, FakeError> {
        let volumes = self.volumes.lock().unwrap();
        match volumes.get(volume_id) {
            Some(volume) if volume.target == target => Ok(Usage {
                bytes: Amount {
                    used: 7,
                    available: 90,
                    total: u64::MAX,
                },
                inodes: Amount::default(),
            }),
            _ => Err(FakeError {
                kind: ErrorKind::NotFound,
                source: Told,
            }),
        }
    }
}

/// What was told about pods' volumes, in its order.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Vec<String>>);

impl Heard {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn note(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl PodEvents for Heard {
    fn pulling(&self, pod: &Pod, image: &str) {
        self.note(format!("{pod} {} pulling {image}", pod.uid));
    }

    fn pulled(&self, pod: &Pod, image: &str, pulled: &Pulled) {
        self.note(format!("{pod} {} pulled {image} {}", pod.uid, pulled.bytes));
    }

    fn failed(&self, pod: &Pod, cause: &str) {
        self.note(format!("{pod} {} failed: {cause}", pod.uid));
    }
}
