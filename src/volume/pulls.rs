//! Images from registries, for volumes and for a person's commands.

use super::{Owner, PublishRequest, VolumeError};
use crate::chain::Chain;
use crate::image::ImageSource;
use crate::image::credentials::{
    CommandCredentials, CredentialError, CredentialSettings, Keyring, NodeCredentials,
};
use crate::image::digest::Digest;
use crate::image::platform::PlatformChoice;
use crate::image::reference::{ImageName, Source};
use crate::image::registry::{Registry, RegistryError, RegistrySettings, Retry, Spools};
use crate::layer::seal::Format;
use crate::layer::store::{Store, StoreError};
use crate::pull::{Book, Local, Promises, PullError, PullPolicy, Puller, Staging, Want};
use crate::secret::Secret;
use crate::stage::{Progress, Pulled, StagedImage, Stager};
use crate::telemetry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long access that a registry gave counts for.
const DEFAULT_MEMORY: Duration = Duration::from_secs(24 * 3600);
/// After how long a pull ends that nobody waits for.
const DEFAULT_ABANDONED_AFTER: Duration = Duration::from_secs(600);

/// Where blobs are fetched into, below the store.
const BLOBS: &str = "blobs";
/// How long what was fetched is kept for a pull that ended early.
const KEPT: Duration = Duration::from_secs(3600);

/// How images come from registries.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which registries, and how they are talked to.
    pub registry: RegistrySettings,
    /// What may be shown to them.
    pub credentials: CredentialSettings,
    /// What a person's command may show to them.
    pub command: CommandCredentials,
    /// How long access that a registry gave counts without asking again.
    pub memory: Duration,
    /// After how long a pull ends that nobody waits for.
    pub abandoned_after: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        PullOptions {
            registry: RegistrySettings::default(),
            credentials: CredentialSettings::default(),
            command: CommandCredentials::None,
            memory: DEFAULT_MEMORY,
            abandoned_after: DEFAULT_ABANDONED_AFTER,
        }
    }
}

/// Who wants an image.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asker<'a> {
    /// A person, with a command; the store is that person's own.
    Operator {
        /// When it is pulled.
        policy: PullPolicy,
        /// Whether it is the node itself, with its own credentials.
        is_node: bool,
    },
    /// A volume.
    Volume {
        request: &'a PublishRequest,
        /// Digest of the manifest that it has to be; none for a new volume.
        was: Option<&'a str>,
    },
}

impl Asker<'_> {
    /// Whether the store is not the asker's own.
    pub(super) fn is_a_pod(&self) -> bool {
        match self {
            Asker::Operator { .. } => false,
            Asker::Volume { request, .. } => request.owner == Owner::Plugin,
        }
    }
}

impl<'a> Asker<'a> {
    pub(super) fn of(request: &'a PublishRequest, was: Option<&'a str>) -> Self {
        Asker::Volume { request, was }
    }
}

/// What brings images, made when the first one is wanted: a command that wants
/// none needs no threads for it.
#[derive(Debug)]
pub(super) struct Pulls {
    store: Arc<Store>,
    options: PullOptions,
    promises: Promises,
    book: Arc<Book>,
    running: Mutex<Option<Arc<Running>>>,
}

#[derive(Debug)]
struct Running {
    puller: Puller,
    credentials: Arc<NodeCredentials>,
    command: CommandCredentials,
}

impl Pulls {
    pub(super) fn new(store: Arc<Store>, options: PullOptions) -> Self {
        Pulls {
            promises: Promises::of(store.root()),
            book: Arc::new(Book::of(store.root(), options.memory)),
            store,
            options,
            running: Mutex::default(),
        }
    }

    /// The pulls so far, if any image was wanted yet.
    fn running(&self) -> Option<Arc<Running>> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What came of the pulls of this process.
    pub(super) fn counts(&self) -> telemetry::Pulls {
        let Some(running) = self.running() else {
            return telemetry::Pulls::default();
        };
        let puller = &running.puller;
        let stats = puller.stats();
        let downloads = puller.registry().downloads();
        telemetry::Pulls {
            pulled: stats.pulled.load(Ordering::Relaxed),
            cached: stats.cached.load(Ordering::Relaxed),
            failed: stats.failed.load(Ordering::Relaxed),
            running: puller.running() as u64,
            bytes: downloads.bytes_total(),
            resumed_bytes: downloads.resumed_bytes_total(),
            in_flight: downloads.in_flight(),
            waiting: downloads.waiting(),
            retries: Retry::ALL
                .iter()
                .map(|&reason| (reason.name(), downloads.retries_total(reason)))
                .collect(),
        }
    }

    /// What volumes are promised: their ids, and digests of images.
    pub(super) fn promised(&self) -> Result<Vec<(String, Vec<String>)>, StoreError> {
        self.promises.all()
    }

    /// Forgets who delivered layers that are not in `kept`, see
    /// [`Book::forget_layers_but`].
    pub(super) fn forget_layers_but(&self, kept: &BTreeSet<String>) -> Result<usize, StoreError> {
        self.book.forget_layers_but(kept)
    }

    /// Removes what was fetched for pulls that nobody has gone on with, by this
    /// process or by an earlier one, and what volumes were promised that are gone.
    pub(super) fn expire(&self) -> Result<(), StoreError> {
        self.promises.clean()?;
        self.expire_after(KEPT).map(drop)
    }

    /// Bytes that [`Pulls::expire_after`] would free at once.
    pub(super) fn idle_bytes(&self) -> Result<u64, StoreError> {
        let dir = self.store.root().join(BLOBS);
        if !dir.exists() {
            return Ok(0);
        }
        Spools::open(&dir, self.store.boot())
            .and_then(|spools| spools.idle_bytes())
            .map_err(StoreError::io("look at old downloads in", &dir))
    }

    /// Whether any image is being pulled.
    pub(super) fn are_running(&self) -> bool {
        self.running()
            .is_some_and(|running| running.puller.running() > 0)
    }

    /// As [`Pulls::expire`], of what was not written to for this time. What is being
    /// fetched or unpacked stays. Gives the number of blobs.
    pub(super) fn expire_after(&self, age: Duration) -> Result<usize, StoreError> {
        let dir = self.store.root().join(BLOBS);
        if !dir.exists() {
            return Ok(0);
        }
        let remove = || -> io::Result<usize> {
            let spools = Spools::open(&dir, self.store.boot())?;
            Ok(spools.clean()? + spools.expire(age)?)
        };
        let removed = remove().map_err(StoreError::io("remove old downloads from", &dir))?;
        if removed > 0 {
            tracing::info!(removed, "removed what was fetched and never used");
        }
        Ok(removed)
    }

    /// Reads what can be read before the first image is wanted, so that a fault of
    /// the configuration is told at the start and not to a pod.
    pub(super) fn prepare(&self) -> Result<(), PullError> {
        self.start().map(|_| ())
    }

    fn start(&self) -> Result<Arc<Running>, PullError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running {
            return Ok(Arc::clone(running));
        }
        let options = &self.options;
        let blobs = self.store.root().join(BLOBS);
        let registry = Registry::new(options.registry.clone(), &blobs, self.store.boot())
            .map_err(PullError::Registry)?;
        let credentials = NodeCredentials::open(&options.credentials).map_err(|error| {
            PullError::Registry(RegistryError::Config {
                path: "the node's configuration of registry credentials".to_owned(),
                reason: Chain(&error).to_string(),
            })
        })?;
        let puller = Puller::new(
            Arc::clone(&self.store),
            Arc::new(registry),
            Arc::clone(&self.book),
            options.abandoned_after,
        );
        let command = options
            .command
            .clone()
            .with_password()
            .map_err(|error| PullError::Registry(unreadable(&error)))?;
        let started = Arc::new(Running {
            puller,
            credentials: Arc::new(credentials),
            command,
        });
        *running = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Makes an image of a registry ready.
    pub(super) fn stage(
        &self,
        name: &ImageName,
        platform: &PlatformChoice,
        stager: &Stager<'_>,
        format: Format,
        asker: Asker<'_>,
        progress: &dyn Progress,
    ) -> Result<StagedImage, VolumeError> {
        let source = Source::Registry(name.clone());
        let failed = |error: Arc<PullError>| VolumeError::Pull {
            image: name.to_string(),
            source: error,
        };
        let failed_once = |error: PullError| failed(Arc::new(error));
        let running = self.start().map_err(failed_once)?;
        let (policy, volume, was) = match asker {
            Asker::Operator { policy, .. } => (policy, None, None),
            Asker::Volume { request, was } => (
                request
                    .pull
                    .policy
                    .unwrap_or_else(|| PullPolicy::default_for(&source)),
                Some(request),
                was,
            ),
        };
        let is_persons = volume.is_none_or(|request| request.owner == Owner::Command);
        let is_node = matches!(asker, Asker::Operator { is_node: true, .. });
        let keyring = match volume {
            None if is_node => running.keyring(&BTreeMap::new()),
            Some(request) if !is_persons => running.keyring(&request.pull.secrets),
            _ => Keyring::command(&running.command, &[name.registry()]),
        };
        let keyring =
            keyring.map_err(|error| failed_once(PullError::Registry(unreadable(&error))))?;
        let promised = match (was, volume) {
            (Some(was), _) => was.parse().ok(),
            (None, Some(request)) => self
                .promises
                .get(&request.volume_id, &source.to_string())
                .map_err(|error| failed_once(PullError::Store(error)))?,
            (None, None) => None,
        };
        let want = Want {
            name,
            platform,
            policy,
            promised,
            keyring,
            by_operator: is_persons,
            staging: Staging {
                format,
                ownership: stager.ownership,
                max_branches: stager.max_branches,
                options: stager.options.clone(),
            },
        };
        let promise = |digest: &Digest| match volume {
            Some(request) => self
                .promises
                .make(&request.volume_id, &source.to_string(), digest),
            None => Ok(()),
        };
        let is_promise = want.promised.is_some() && was.is_none();
        let staged = running.puller.stage(&want, &promise, progress);
        if let (Err(error), Some(request)) = (&staged, volume)
            && is_promise
            && matches!(error.registry(), Some(RegistryError::NotFound { .. }))
        {
            // Nobody can keep it any more; the next attempt begins with the tag.
            self.end_promise(&request.volume_id);
        }
        let found = staged.map_err(failed)?;
        let record = &found.image.image;
        tracing::info!(
            image = %source,
            manifest = record.manifest,
            fetched = found.fetched,
            cached = found.cached,
            duration_ms = u64::try_from(found.took.as_millis()).unwrap_or(u64::MAX),
            "the image is here"
        );
        if let Ok(digest) = record.manifest.parse() {
            let sizes = record.layers.iter().filter_map(|layer| layer.size);
            let pulled = Pulled {
                digest,
                bytes: sizes.fold(0, u64::saturating_add),
                took: found.took,
                cached: found.cached,
            };
            progress.pulled(&source.to_string(), &pulled);
        }
        Ok(found.image)
    }

    /// Makes a local image ready for a pod.
    pub(super) fn stage_local(
        &self,
        source: &dyn ImageSource,
        name: &str,
        platform: &PlatformChoice,
        stager: &Stager<'_>,
        format: Format,
        progress: &dyn Progress,
    ) -> Result<StagedImage, VolumeError> {
        let local = Local::new(source, name, &self.book);
        let staged = stager
            .stage(&local, name, platform, format, progress)
            .map_err(VolumeError::Stage)?;
        local.delivered().map_err(VolumeError::Store)?;
        Ok(staged)
    }

    /// A volume is there, or gone: what it was promised does not matter any more.
    pub(super) fn end_promise(&self, volume_id: &str) {
        if let Err(error) = self.promises.end(volume_id) {
            // It is forgotten in a day.
            tracing::warn!(error = %Chain(&error), "cannot remove what a volume was promised");
        }
    }
}

impl Running {
    /// What a pod may show.
    fn keyring(&self, secrets: &BTreeMap<String, Secret>) -> Result<Keyring, CredentialError> {
        Keyring::from_pod(secrets, Arc::clone(&self.credentials))
    }
}

fn unreadable(error: &CredentialError) -> RegistryError {
    RegistryError::Credentials {
        reason: Chain(error).to_string(),
    }
}
