//! One image of a registry, with what may be shown for it.
//!
//! Hosts are asked in order. One that cannot now is passed over, and asked again
//! after a while if no other gave an answer; one that does not have it or does not
//! give it is not asked again. What a host wants to be shown it says itself, so
//! the first request to it shows nothing, and an image that comes then is public.

mod ask;
mod blobs;
mod documents;
mod failure;

pub use documents::RemoteDocuments;

use super::challenge::Challenge;
use super::download::{Blob, BlobPlaces, Downloads, Wanted};
use super::error::RegistryError;
use super::hosts::Place;
use super::{Patience, Registry};
use crate::image::credentials::{Credential, Keyring};
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::image::reference::ImageName;
use failure::{Failure, Told, Verdict, most_telling};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a host that was not reached is asked last.
const SIDELINED: Duration = Duration::from_secs(60);

/// What may be shown to whom.
pub(super) trait Keys: Send + Sync {
    /// To a host for a repository of it, in the order in which it is tried. May
    /// take minutes.
    fn lookup(&self, host: &str, repository: &str) -> Vec<Credential>;

    /// Where that was looked for, and what was there, for an error.
    fn sources(&self, host: &str, repository: &str) -> String;
}

impl Keys for Keyring {
    fn lookup(&self, host: &str, repository: &str) -> Vec<Credential> {
        Keyring::lookup(self, host, repository)
    }

    fn sources(&self, host: &str, repository: &str) -> String {
        Keyring::sources(self, host, repository)
    }
}

/// An image's name, and what may be shown for it.
pub struct Session {
    registry: Arc<Registry>,
    name: ImageName,
    keys: Arc<dyn Keys>,
    /// In the order in which they are asked.
    places: Arc<[Place]>,
    /// What was learnt about each of them.
    states: Vec<Mutex<PlaceState>>,
    /// A document that came with its tag's digest, so that it is not fetched twice.
    fetched: Mutex<Option<(Digest, Vec<u8>)>>,
}

/// What was learnt about a host.
#[derive(Debug, Clone, Default)]
struct PlaceState {
    /// What it wants to be shown; empty while it was not asked, or wants nothing.
    challenges: Vec<Challenge>,
    /// What it took, once it did.
    taken: Option<Accepted>,
    /// Until when it is asked after the others.
    sidelined: Option<Instant>,
}

/// Which version of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// What the tag means now.
    Tag(String),
    /// Just this.
    Digest(Digest),
}

impl Reference {
    /// What `name` means: its digest if it has one, its tag else.
    pub fn of(name: &ImageName) -> Self {
        match (name.digest(), name.tag()) {
            (Some(digest), _) => Reference::Digest(*digest),
            (None, tag) => Reference::Tag(tag.unwrap_or("latest").to_owned()),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => f.write_str(tag),
            Reference::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// What a registry says about a [`Reference`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The manifest or index. Its media type is empty where the registry's says
    /// nothing.
    pub descriptor: Descriptor,
    /// What was shown to the host that said so.
    pub accepted: Accepted,
    /// The document, where asking for its digest brought it along.
    pub bytes: Option<Vec<u8>>,
}

/// What a host took as a proof of who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Nothing of anybody's was shown, so everybody may have it.
    Anonymous,
    /// This.
    With(Credential),
}

impl Accepted {
    fn credential(&self) -> Option<&Credential> {
        match self {
            Accepted::Anonymous => None,
            Accepted::With(credential) => Some(credential),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(
        registry: Arc<Registry>,
        name: ImageName,
        keys: Arc<dyn Keys>,
        places: Arc<[Place]>,
    ) -> Self {
        Session {
            registry,
            name,
            keys,
            states: places.iter().map(|_| Mutex::default()).collect(),
            places,
            fetched: Mutex::default(),
        }
    }

    /// The image's name.
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// Registry and repository.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.name.registry(), self.name.repository())
    }

    /// What a tag or digest is, from the first host that says so. Hosts that may
    /// not say what a tag means are not asked for one.
    pub fn head(&self, reference: &Reference) -> Result<Head, RegistryError> {
        self.registry.wait(self.head_async(reference))?
    }

    /// Begins to fetch blobs of the image, or joins whoever fetches them. That
    /// they may be had must have been found out before.
    pub fn download(
        self: &Arc<Self>,
        downloads: &Downloads,
        wanted: &[Wanted<'_>],
    ) -> Vec<Arc<Blob>> {
        let places: Arc<dyn BlobPlaces> = Arc::<Session>::clone(self);
        downloads.get_all(&places, wanted)
    }

    /// The documents of the image.
    pub fn documents(self: &Arc<Self>) -> RemoteDocuments {
        RemoteDocuments::new(Arc::clone(self))
    }

    fn state(&self, place: usize) -> MutexGuard<'_, PlaceState> {
        let state = &self.states[place];
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn patience(&self) -> &Patience {
        &self.registry.patience
    }

    /// Asks hosts of the numbers `places` with `attempt` until one gives
    /// something.
    async fn anywhere<T, F>(
        &self,
        mut places: Vec<usize>,
        attempt: impl Fn(usize, Instant) -> F,
    ) -> Result<T, Vec<Told>>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let patience = self.patience();
        let mut end = Instant::now() + patience.total;
        let mut pause = patience.pause;
        let now = Instant::now();
        // Those that were not reached a moment ago come last; the sort is stable.
        places.sort_by_key(|place| {
            self.state(*place)
                .sidelined
                .is_some_and(|until| until > now)
        });
        let mut told: Vec<Told> = Vec::new();
        for round in 1..=patience.tries.max(1) {
            let mut again = Vec::new();
            let mut longest: Option<Duration> = None;
            for place in places {
                let deadline = end.min(Instant::now() + patience.answer);
                let start = Instant::now();
                let failure = match attempt(place, deadline).await {
                    Ok(found) => return Ok(found),
                    Err(failure) => failure,
                };
                // What credentials took to be found is not the hosts' fault.
                end += start.elapsed().saturating_sub(patience.answer);
                tracing::debug!(
                    host = self.places[place].shown,
                    error = %failure.error,
                    "a host gave nothing"
                );
                if let Verdict::Again(after) = failure.verdict {
                    again.push(place);
                    longest = longest.max(after);
                }
                if matches!(failure.error, RegistryError::Unreachable { .. }) {
                    self.state(place).sidelined = Some(Instant::now() + SIDELINED);
                }
                let host = self.places[place].shown.clone();
                told.retain(|told| told.host != host);
                told.push(Told {
                    host,
                    is_registry: self.places[place].stands_for.is_none(),
                    failure,
                });
            }
            // Where the registry itself said no, mirrors do not know better.
            let refused = told
                .iter()
                .any(|told| told.is_registry && !matches!(told.failure.verdict, Verdict::Again(_)));
            let wait = pause
                .mul_f64(0.5 + jitter())
                .max(longest.unwrap_or_default());
            let too_long = wait > patience.longest_pause || Instant::now() + wait >= end;
            if again.is_empty() || refused || too_long || round == patience.tries.max(1) {
                break;
            }
            tokio::time::sleep(wait).await;
            pause *= 2;
            places = again;
        }
        Err(told)
    }

    /// The numbers of the hosts that fit.
    fn places_that(&self, fits: impl Fn(&Place) -> bool) -> Vec<usize> {
        let places = self.places.iter().enumerate();
        places
            .filter(|(_, place)| fits(place))
            .map(|(number, _)| number)
            .collect()
    }

    fn error_of(&self, told: Vec<Told>, what: &str) -> RegistryError {
        most_telling(told, what)
    }
}

/// From 0 to 1, so that many that wait do not come back at once.
fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without random numbers they do come back at once, which also works.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
