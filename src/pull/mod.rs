//! Images from registries into the store: who may have what, by which digest,
//! and one job for each content.
//!
//! ```text
//! asking   policy and access: from what a volume wants to a digest
//! access   what is known of repositories, credentials and layers, on disk
//! promise  the digests that volumes were first given, on disk
//! job      one pull
//! jobs     one of them for each content; it ends when nobody waits for it
//! source   a repository, or the store itself, as a source of layers
//! ```
//!
//! **Invariant:** a volume gets an image only if its repository is known to be
//! public, if these credentials were accepted for it before, or if the registry
//! accepts them now; and that is found out before a job is joined. That the store
//! has an image, or that a job for it runs, changes nothing.

mod access;
mod asking;
mod job;
mod jobs;
mod promise;
mod source;

pub(crate) use access::Book;
pub use jobs::JobError;
pub(crate) use promise::Promises;
pub(crate) use source::Local;

use crate::chain::find;
use crate::image::SourceError;
use crate::image::credentials::Keyring;
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::image::platform::PlatformChoice;
use crate::image::reference::{ImageName, Source};
use crate::image::registry::{Registry, RegistryError};
use crate::layer::seal::Format;
use crate::layer::store::{Store, StoreError};
use crate::layer::tree::Ownership;
use crate::stage::{Progress, StageError, StageOptions, StagedImage, Stager};
use asking::Asking;
use job::{Job, Slots};
use jobs::Jobs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pulls at the same time; each takes threads and memory. Others wait for their
/// turn.
const MAX_AT_WORK: usize = 8;
/// How often a job that waits for its turn looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Its name is resolved again for every volume.
    Always,
    /// Only if the store does not have it.
    IfNotPresent,
    /// Not even then.
    Never,
}

impl PullPolicy {
    /// Kubernetes' rule: a tag `latest`, also one that is only implied, moves.
    pub fn default_for(source: &Source) -> Self {
        match source {
            Source::Registry(name) if name.is_latest() => PullPolicy::Always,
            Source::Registry(_)
            | Source::OciDirectory { .. }
            | Source::OciArchive { .. }
            | Source::DockerArchive { .. } => PullPolicy::IfNotPresent,
        }
    }
}

/// Why an image is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry.
    #[error(transparent)]
    Registry(RegistryError),
    /// Its layers.
    #[error("the image cannot be staged")]
    Stage(#[source] StageError),
    /// The store.
    #[error("the store cannot be used")]
    Store(#[source] StoreError),
    /// It may not be pulled, and is not there.
    #[error("pullPolicy is Never, and this node does not have the image")]
    NotPresent,
    /// It may not be pulled, and is there for others.
    #[error(
        "pullPolicy is Never, and the registry has not been seen to give this image to whoever has the pod's credentials; with IfNotPresent it would be asked"
    )]
    NoAccess,
    /// The pull ended without an outcome.
    #[error(transparent)]
    Job(JobError),
}

/// How an image is staged, once it is here.
#[derive(Debug, Clone)]
pub struct Staging {
    /// The format of its branches.
    pub format: Format,
    /// Whose the files are to be.
    pub ownership: Ownership,
    /// Branches of one image at most.
    pub max_branches: usize,
    /// Bounds.
    pub options: StageOptions,
}

/// An image that somebody wants.
#[derive(Debug)]
pub struct Want<'a> {
    /// Its name.
    pub name: &'a ImageName,
    /// Which platform of it.
    pub platform: &'a PlatformChoice,
    /// When it is pulled.
    pub policy: PullPolicy,
    /// The digest that it has to have, where its name was resolved before.
    pub promised: Option<Digest>,
    /// What may be shown to the registry.
    pub keyring: Keyring,
    /// Whether it is a person's command: the store is that person's own.
    pub by_operator: bool,
    /// How it is staged.
    pub staging: Staging,
}

/// An image that was wanted, in the store.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its branches.
    pub image: StagedImage,
    /// Bytes that came over the network for it, by whoever's asking.
    pub fetched: u64,
    /// Whether nothing had to come.
    pub cached: bool,
    /// How long it took, from the first question.
    pub took: Duration,
}

/// What the pulls of this process came to.
#[derive(Debug, Default)]
pub struct PullStats {
    /// Pulls that brought something.
    pub pulled: AtomicU64,
    /// Images that were there.
    pub cached: AtomicU64,
    /// Pulls that failed.
    pub failed: AtomicU64,
}

/// What a job brings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Content {
    repository: String,
    digest: Digest,
    platform: String,
    format: &'static str,
    max_branches: usize,
    by_operator: bool,
}

/// The outcome of a job, for all who waited.
type Outcome = Result<(StagedImage, u64), Arc<PullError>>;

/// Brings images for one store.
#[derive(Debug)]
pub struct Puller {
    inner: Arc<Inner>,
    jobs: Jobs<Content, Outcome>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    registry: Arc<Registry>,
    book: Arc<Book>,
    unpacking: Slots,
    stats: PullStats,
}

impl Puller {
    /// With what is known of access. A job that nobody has waited for ends
    /// `abandoned_after` that.
    pub(crate) fn new(
        store: Arc<Store>,
        registry: Arc<Registry>,
        book: Arc<Book>,
        abandoned_after: Duration,
    ) -> Self {
        Puller {
            inner: Arc::new(Inner {
                store,
                registry,
                book,
                unpacking: Slots::new(MAX_AT_WORK),
                stats: PullStats::default(),
            }),
            jobs: Jobs::new(abandoned_after),
        }
    }

    /// What the pulls of this process came to.
    pub fn stats(&self) -> &PullStats {
        &self.inner.stats
    }

    /// Jobs that run.
    pub fn running(&self) -> usize {
        self.jobs.count()
    }

    /// The registries.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.inner.registry
    }

    /// Makes the image ready. `promise` is told the digest that its name leads to,
    /// before anything of it is fetched.
    pub fn stage(
        &self,
        want: &Want<'_>,
        promise: &dyn Fn(&Digest) -> Result<(), StoreError>,
        progress: &dyn Progress,
    ) -> Result<Found, Arc<PullError>> {
        let stats = &self.inner.stats;
        let result = self.find(want, promise, progress);
        let counter = match &result {
            Ok(found) if found.cached => &stats.cached,
            Ok(_) => &stats.pulled,
            Err(_) => &stats.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn find(
        &self,
        want: &Want<'_>,
        promise: &dyn Fn(&Digest) -> Result<(), StoreError>,
        progress: &dyn Progress,
    ) -> Result<Found, Arc<PullError>> {
        let began = Instant::now();
        let asking = Asking::new(&self.inner, want).map_err(Arc::new)?;
        if let Some(image) = asking.as_stored(progress).map_err(Arc::new)? {
            return Ok(Found {
                image,
                fetched: 0,
                cached: true,
                took: began.elapsed(),
            });
        }
        progress.pulling(&asking.name);
        let resolved = crate::layer::store::clock();
        let head = asking.resolve().map_err(Arc::new)?;
        let digest = head.descriptor.digest;
        promise(&digest).map_err(|error| Arc::new(PullError::Store(error)))?;
        // The name may lead to what is here already.
        let there = asking.stored(&digest, progress).map_err(Arc::new)?;
        let (image, fetched, cached) = match there {
            Some(image) => (image, 0, true),
            None => {
                let (image, fetched) = self.pull(&asking, head.descriptor, progress)?;
                (image, fetched, false)
            }
        };
        asking
            .note(&digest, &image.image.manifest, resolved)
            .map_err(|error| Arc::new(PullError::Store(error)))?;
        Ok(Found {
            image,
            fetched,
            cached,
            took: began.elapsed(),
        })
    }

    /// Begins a job, or joins one that runs.
    fn pull(&self, asking: &Asking<'_>, root: Descriptor, progress: &dyn Progress) -> Outcome {
        let want = asking.want;
        let content = Content {
            repository: asking.repository.clone(),
            digest: root.digest,
            platform: want.platform.to_string(),
            format: want.staging.format.name(),
            max_branches: want.staging.max_branches,
            by_operator: want.by_operator,
        };
        loop {
            let job = Job {
                inner: Arc::clone(&self.inner),
                session: Arc::clone(&asking.session),
                root: root.clone(),
                name: asking.name.clone(),
                repository: asking.repository.clone(),
                platform: want.platform.clone(),
                staging: want.staging.clone(),
                by_operator: want.by_operator,
            };
            let (part, outcome) = self.jobs.run(&content, progress, move |handle| {
                job.run(handle).map_err(Arc::new)
            });
            match outcome {
                // It came with somebody else's credentials, which were refused in
                // the middle of it. These are good, or it would not be here.
                Ok(Err(error)) if part == jobs::Part::Joined && error.is_of_credentials() => {}
                Ok(outcome) => return outcome,
                Err(error) => return Err(Arc::new(PullError::Job(error))),
            }
        }
    }
}

impl PullError {
    /// What a registry did to it, if it did anything.
    pub fn registry(&self) -> Option<&RegistryError> {
        match self {
            PullError::Registry(error) => Some(error),
            PullError::Stage(error) => registry_error(error),
            PullError::Store(_)
            | PullError::NotPresent
            | PullError::NoAccess
            | PullError::Job(_) => None,
        }
    }

    fn is_of_credentials(&self) -> bool {
        matches!(
            self.registry(),
            Some(RegistryError::Unauthenticated { .. } | RegistryError::Denied { .. })
        )
    }
}

/// What a registry did to a failure to stage, if it did anything.
fn registry_error(error: &StageError) -> Option<&RegistryError> {
    match find(error) {
        Some(SourceError::Registry(error)) => Some(error),
        _ => find(error),
    }
}

fn stager<'a>(store: &'a Store, staging: &Staging, options: StageOptions) -> Stager<'a> {
    Stager {
        store,
        options,
        ownership: staging.ownership,
        max_branches: staging.max_branches,
    }
}
