//! Images from registries into the store: who may have what, by which digest,
//! and one job for each content.
//!
//! ```text
//! access   what is known of repositories, credentials and layers, on disk
//! promise  the digests that volumes were first given, on disk
//! jobs     one job for each content; it ends when nobody waits for it
//! source   a repository, or the store itself, as a source of layers
//! ```
//!
//! **Invariant:** a volume gets an image only if its repository is known to be
//! public, if these credentials were accepted for it before, or if the registry
//! accepts them now; and that is found out before a job is joined. That the store
//! has an image, or that a job for it runs, changes nothing.

mod access;
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
use crate::image::registry::{Accepted, Head, Reference, Registry, RegistryError, Session};
use crate::layer::seal::Format;
use crate::layer::store::{Store, StoreError};
use crate::layer::tree::Ownership;
use crate::stage::{Progress, StageError, StageOptions, StagedImage, Stager};
use access::Public;
use jobs::{Handle, Jobs};
use source::{Remote, Stored};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Images that are unpacked at the same time; each takes threads and memory. The
/// downloads of others go on meanwhile.
const MAX_UNPACKING: usize = 8;
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
                unpacking: Slots::new(MAX_UNPACKING),
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
            .note(&digest, &image.image.manifest)
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
                name: asking.name_at(&root.digest),
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
    fn is_of_credentials(&self) -> bool {
        let error = match self {
            PullError::Registry(error) => Some(error),
            PullError::Stage(error) => registry_error(error),
            PullError::Store(_)
            | PullError::NotPresent
            | PullError::NoAccess
            | PullError::Job(_) => None,
        };
        matches!(
            error,
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

/// One volume's way to an image.
struct Asking<'a> {
    inner: &'a Inner,
    want: &'a Want<'a>,
    /// As names are recorded.
    name: String,
    /// `registry/repository`.
    repository: String,
    /// What the image has to be, or what its name says.
    reference: Reference,
    session: Arc<Session>,
}

impl<'a> Asking<'a> {
    fn new(inner: &'a Inner, want: &'a Want<'a>) -> Result<Self, PullError> {
        let name = want.name;
        // This also looks whether the operator allows the registry.
        let session = inner
            .registry
            .session(name, want.keyring.clone())
            .map_err(PullError::Registry)?;
        let reference = match want.promised {
            Some(digest) => Reference::Digest(digest),
            None => Reference::of(name),
        };
        Ok(Asking {
            inner,
            want,
            name: Source::Registry(name.clone()).to_string(),
            repository: format!("{}/{}", name.registry(), name.repository()),
            reference,
            session,
        })
    }

    /// The name of just this content.
    fn name_at(&self, digest: &Digest) -> String {
        format!("docker://{}@{digest}", self.repository)
    }

    /// The image as the store has it, where that will do.
    fn as_stored(&self, progress: &dyn Progress) -> Result<Option<StagedImage>, PullError> {
        let policy = self.want.policy;
        if policy == PullPolicy::Always {
            return Ok(None);
        }
        let Some(manifest) = self.known_manifest()? else {
            return match policy {
                PullPolicy::Never => Err(PullError::NotPresent),
                PullPolicy::Always | PullPolicy::IfNotPresent => Ok(None),
            };
        };
        if !self.is_accepted()? {
            if policy == PullPolicy::Never {
                return Err(PullError::NoAccess);
            }
            self.ask_for_access(&manifest)?;
        }
        let found = self.use_stored(&manifest, progress)?;
        match (found, policy) {
            (None, PullPolicy::Never) => Err(PullError::NotPresent),
            (found, _) => Ok(found),
        }
    }

    /// What the store says that the name leads to.
    fn known_manifest(&self) -> Result<Option<String>, PullError> {
        let store = &self.inner.store;
        let platform = self.want.platform.to_string();
        let known = match &self.reference {
            Reference::Digest(digest) => self.manifest_of(digest)?,
            Reference::Tag(_) => store
                .reference(&self.name, &platform)
                .map_err(PullError::Store)?
                .map(|record| record.manifest),
        };
        Ok(known)
    }

    /// The manifest for the wanted platform that a digest stands for, if the store
    /// has an image of it.
    fn manifest_of(&self, digest: &Digest) -> Result<Option<String>, PullError> {
        let store = &self.inner.store;
        let text = digest.to_string();
        let platform = self.want.platform.to_string();
        if let Some(manifest) = store
            .manifest_in(&text, &platform)
            .map_err(PullError::Store)?
        {
            return Ok(Some(manifest));
        }
        let image = store.image(&text).map_err(PullError::Store)?;
        Ok(image
            .filter(|image| {
                image
                    .platform
                    .parse()
                    .is_ok_and(|platform| self.want.platform.takes_single(&platform))
            })
            .map(|image| image.manifest))
    }

    /// Whether it is known that this one may have what the repository has.
    fn is_accepted(&self) -> Result<bool, PullError> {
        if self.want.by_operator {
            return Ok(true);
        }
        let book = &self.inner.book;
        match book.is_public(&self.repository).map_err(PullError::Store)? {
            Public::Fresh => return Ok(true),
            // The registry may be out of reach for good, and once is enough to
            // have read it all.
            Public::Stale if self.want.policy == PullPolicy::Never => return Ok(true),
            Public::Stale | Public::No => {}
        }
        let name = self.want.name;
        let credentials = self.want.keyring.lookup(name.registry(), name.repository());
        book.accepts(&self.repository, &credentials)
            .map_err(PullError::Store)
    }

    /// Has the registry say whether this one may have it.
    fn ask_for_access(&self, manifest: &str) -> Result<(), PullError> {
        let of_manifest = manifest.parse().map(Reference::Digest);
        let asked = match of_manifest {
            Ok(reference) => self.head(&reference),
            Err(_) => self.head(&self.reference),
        };
        let asked = match asked {
            // The tag has moved on, and the registry keeps only what has one.
            Err(PullError::Registry(RegistryError::NotFound { .. })) => self.head(&self.reference),
            other => other,
        };
        match asked {
            Ok(_) => Ok(()),
            Err(PullError::Registry(
                RegistryError::Unreachable { .. }
                | RegistryError::Status { .. }
                | RegistryError::Stalled { .. },
            )) if self
                .inner
                .book
                .is_public(&self.repository)
                .map_err(PullError::Store)?
                == Public::Stale =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Where the name leads now.
    fn resolve(&self) -> Result<Head, PullError> {
        self.head(&self.reference)
    }

    /// Asks the registry, and remembers whom it answered.
    fn head(&self, reference: &Reference) -> Result<Head, PullError> {
        let book = &self.inner.book;
        match self.session.head(reference) {
            Ok(head) => {
                match &head.accepted {
                    Accepted::Anonymous => book.note_public(&self.repository),
                    Accepted::With(credential) => book.note_accepted(&self.repository, credential),
                }
                .map_err(PullError::Store)?;
                Ok(head)
            }
            Err(error) => {
                if matches!(
                    error,
                    RegistryError::Unauthenticated { .. } | RegistryError::Denied { .. }
                ) {
                    book.note_restricted(&self.repository)
                        .map_err(PullError::Store)?;
                }
                Err(PullError::Registry(error))
            }
        }
    }

    /// The image that a digest stands for, if the store has all of it.
    fn stored(
        &self,
        digest: &Digest,
        progress: &dyn Progress,
    ) -> Result<Option<StagedImage>, PullError> {
        match self.manifest_of(digest)? {
            Some(manifest) => self.use_stored(&manifest, progress),
            None => Ok(None),
        }
    }

    fn use_stored(
        &self,
        manifest: &str,
        progress: &dyn Progress,
    ) -> Result<Option<StagedImage>, PullError> {
        let inner = self.inner;
        let Some(record) = inner.store.image(manifest).map_err(PullError::Store)? else {
            return Ok(None);
        };
        let source = Stored::new(
            self.name.clone(),
            &record,
            &self.repository,
            &inner.book,
            self.want.by_operator,
        );
        let Some(source) = source else {
            return Ok(None);
        };
        let staging = &self.want.staging;
        let staged = stager(&inner.store, staging, staging.options.clone()).stage(
            &source,
            &self.name,
            self.want.platform,
            staging.format,
            progress,
        );
        match staged {
            Ok(image) => Ok(Some(image)),
            Err(error) if find(&error).is_some_and(is_not_stored) => Ok(None),
            Err(error) => Err(PullError::Stage(error)),
        }
    }

    /// Notes where the name and the digest lead, for the next one.
    fn note(&self, digest: &Digest, manifest: &str) -> Result<(), StoreError> {
        let store = &self.inner.store;
        let platform = self.want.platform.to_string();
        if digest.to_string() != manifest {
            store.put_manifest_in(&digest.to_string(), &platform, manifest)?;
        }
        match self.reference {
            Reference::Tag(_) => store.note(&self.name, &platform, manifest),
            // What was promised may not be what the tag leads to now.
            Reference::Digest(_) if self.want.name.digest().is_none() => Ok(()),
            Reference::Digest(_) => store.note(&self.name, &platform, manifest),
        }
    }
}

fn is_not_stored(error: &SourceError) -> bool {
    matches!(error, SourceError::NotStored)
}

fn stager<'a>(store: &'a Store, staging: &Staging, options: StageOptions) -> Stager<'a> {
    Stager {
        store,
        options,
        ownership: staging.ownership,
        max_branches: staging.max_branches,
    }
}

/// One pull, with all that it needs on a thread of its own.
struct Job {
    inner: Arc<Inner>,
    session: Arc<Session>,
    root: Descriptor,
    name: String,
    repository: String,
    platform: PlatformChoice,
    staging: Staging,
    by_operator: bool,
}

impl Job {
    fn run(self, handle: &Handle) -> Result<(StagedImage, u64), PullError> {
        let inner = &self.inner;
        let _slot = inner.unpacking.take(handle)?;
        let source = Remote::new(
            self.name.clone(),
            self.repository.clone(),
            self.session,
            self.root,
            &inner.book,
            self.by_operator,
        );
        let options = StageOptions {
            cancel: Arc::clone(handle.cancel()),
            ..self.staging.options.clone()
        };
        let stager = stager(&inner.store, &self.staging, options);
        let result = source.cancelled_by(handle, || {
            loop {
                let format = self.staging.format;
                match stager.stage(&source, &self.name, &self.platform, format, handle) {
                    Err(error) if source.fetch_again(&error) => {}
                    result => return result,
                }
            }
        });
        match result {
            Ok(image) => {
                inner
                    .book
                    .note_delivered(&self.repository, &source.delivered())
                    .map_err(PullError::Store)?;
                let bytes = source.fetched_bytes();
                source.remove_blobs();
                Ok((image, bytes))
            }
            Err(error) => {
                if error.is_out_of_space() {
                    source.remove_blobs();
                }
                source.refuse(&error);
                Err(PullError::Stage(error))
            }
        }
    }
}

/// A number of places for work that takes memory.
#[derive(Debug)]
struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One of them, given back on drop.
struct Slot<'a>(&'a Slots);

impl Slots {
    fn new(count: usize) -> Self {
        Slots {
            free: Mutex::new(count),
            freed: Condvar::new(),
        }
    }

    fn take(&self, handle: &Handle) -> Result<Slot<'_>, PullError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if handle.cancel().load(Ordering::Relaxed) {
                return Err(PullError::Registry(RegistryError::Cancelled));
            }
            if *free > 0 {
                *free -= 1;
                return Ok(Slot(self));
            }
            let waited = self.freed.wait_timeout(free, LOOK_EVERY);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free += 1;
        drop(free);
        self.0.freed.notify_one();
    }
}
