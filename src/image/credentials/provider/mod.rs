//! kubelet's credential providers: programs of the node that know the credentials
//! of a cloud's registries. Configured by kubelet's own file, run as kubelet runs
//! them, and their answers kept as kubelet keeps them (Kubernetes 1.36,
//! `pkg/credentialprovider/plugin`).
//!
//! A failure is kept for some seconds, too: a provider that hangs costs one minute,
//! and not one for each request of each pod.

mod config;
mod protocol;
#[cfg(test)]
mod tests;

pub use config::ConfigError;
pub(super) use config::{Settings, read};
use protocol::{Keep, Response};

use super::exec::{self, Call, ExecError};
use super::matching::Index;
use super::{Credential, Login, Look, Origin};
use crate::image::printable;
use crate::secret::Secret;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a provider may take: what kubelet gives it.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a failure is an answer.
const FAILURE_KEPT: Duration = Duration::from_secs(10);
/// The most answers that are kept of one provider. Pods' authors choose the names
/// of images, and some providers answer for each image alone.
const MAX_KEPT: usize = 1024;

/// Why a provider gave nothing that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProviderError {
    /// It could not be run to its end.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// It ended with an error; what it says about it is in the log.
    #[error("failed ({0}; see the log at debug)")]
    Failed(String),
    /// Its answer is none.
    #[error("gave an answer that cannot be used: {0}")]
    Answer(&'static str),
}

/// What a provider answered: for which images, and what.
pub(super) type Answer = Vec<(String, Login)>;
type Outcome = Result<Arc<Answer>, ProviderError>;

/// A provider and what it answered before.
#[derive(Debug)]
pub(super) struct Provider {
    settings: Settings,
    program: OsString,
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Key, Kept>,
    running: HashMap<String, Arc<Flight>>,
}

/// What an answer is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Image(String),
    Registry(String),
    Global,
}

#[derive(Debug)]
struct Kept {
    outcome: Outcome,
    until: Instant,
}

/// A call whose outcome others wait for.
#[derive(Debug, Default)]
struct Flight {
    outcome: Mutex<Option<Outcome>>,
    landed: Condvar,
}

impl Provider {
    pub(super) fn new(settings: Settings, bin_dir: &Path) -> Self {
        Provider {
            program: bin_dir.join(&settings.name).into_os_string(),
            settings,
            timeout: TIMEOUT,
            state: Mutex::default(),
        }
    }

    pub(super) fn origin(&self) -> Origin {
        Origin::Provider(self.settings.name.clone())
    }

    /// Whether its program is there.
    pub(super) fn find(&self) -> io::Result<()> {
        Path::new(&self.program).metadata().map(drop)
    }

    /// Whether the provider is asked about an image at all.
    pub(super) fn is_for(&self, host: &str, repository: &str) -> bool {
        let mut patterns = self.settings.match_images.iter();
        patterns.any(|pattern| pattern.matches(host, repository))
    }

    /// What the provider has for an image, from an earlier answer where that is
    /// still good. Who asks for the same image at the same time waits for the same
    /// answer.
    pub(super) fn ask(&self, host: &str, repository: &str) -> Outcome {
        let image = format!("{host}/{repository}");
        let mut state = lock(&self.state);
        if let Some(outcome) = state.find(&image, host) {
            return outcome;
        }
        if let Some(flight) = state.running.get(&image).cloned() {
            drop(state);
            return flight.wait();
        }
        let flight = Arc::new(Flight::default());
        state.running.insert(image.clone(), Arc::clone(&flight));
        drop(state);
        // Should this thread panic, those that wait get an outcome all the same.
        let mut landing = Landing {
            provider: self,
            image: &image,
            flight: &flight,
            outcome: Err(ProviderError::Answer("it was not awaited")),
            keep: None,
        };
        let (outcome, keep) = self.call(&image, host);
        landing.outcome = outcome.clone();
        landing.keep = keep;
        drop(landing);
        outcome
    }

    /// Runs the provider; with its outcome, for what and for how long it is good.
    fn call(&self, image: &str, host: &str) -> (Outcome, Option<(Key, Duration)>) {
        match self.execute(image) {
            Ok(response) => {
                let key = match response.keep {
                    Keep::Image => Key::Image(image.to_owned()),
                    Keep::Registry => Key::Registry(host.to_owned()),
                    Keep::Global => Key::Global,
                };
                let time = response.duration.unwrap_or(self.settings.default_duration);
                let keep = (!time.is_zero()).then_some((key, time));
                (Ok(Arc::new(response.auth)), keep)
            }
            Err(error) => {
                tracing::warn!(
                    provider = self.settings.name,
                    image = printable(image),
                    %error,
                    "a credential provider failed"
                );
                let key = Key::Image(image.to_owned());
                (Err(error), Some((key, FAILURE_KEPT)))
            }
        }
    }

    fn execute(&self, image: &str) -> Result<Response, ProviderError> {
        let settings = &self.settings;
        let started = Instant::now();
        let ended = exec::run(&Call {
            program: &self.program,
            args: &settings.args,
            env: &settings.env,
            input: protocol::request(settings.version, image).as_bytes(),
            timeout: self.timeout,
        })?;
        tracing::debug!(
            provider = settings.name,
            image = printable(image),
            status = %ended.status,
            milliseconds = started.elapsed().as_millis() as u64,
            stderr = printable(ended.complaint.trim()),
            "a credential provider was run"
        );
        if !ended.status.success() {
            return Err(ProviderError::Failed(ended.status.to_string()));
        }
        Response::parse(&ended.output, settings.version).map_err(ProviderError::Answer)
    }
}

/// Adds what all providers have for an image. As with kubelet, what is most
/// specific comes first, whoever gave it, and of two that are equally so the one
/// of the provider that is named first.
pub(super) fn ask_all(providers: &[Provider], host: &str, repository: &str, look: &mut Look) {
    let mut found: Index<Credential> = Index::default();
    let mut answers = false;
    for provider in providers.iter().filter(|one| one.is_for(host, repository)) {
        answers = true;
        let origin = provider.origin();
        match provider.ask(host, repository) {
            Ok(answer) => {
                let mut own = Index::default();
                for (images, login) in &*answer {
                    let origin = origin.clone();
                    let login = login.clone();
                    own.add(images, Credential { origin, login });
                }
                look.note(match own.find(host, repository).len() {
                    0 => format!("{origin} has nothing for it"),
                    _ => format!("{origin} has an entry"),
                });
                found.append(own);
            }
            Err(error) => look.note(format!("{origin} {error}")),
        }
    }
    if !answers && !providers.is_empty() {
        look.note("no credential provider is for it");
    }
    for credential in found.find(host, repository) {
        look.push(credential.clone());
    }
}

impl State {
    /// As kubelet looks: for the image, its registry, and everything.
    fn find(&self, image: &str, host: &str) -> Option<Outcome> {
        let now = Instant::now();
        [
            Key::Image(image.to_owned()),
            Key::Registry(host.to_owned()),
            Key::Global,
        ]
        .iter()
        .filter_map(|key| self.kept.get(key))
        .find(|kept| now < kept.until)
        .map(|kept| kept.outcome.clone())
    }

    fn keep(&mut self, key: Key, outcome: Outcome, time: Duration) {
        let now = Instant::now();
        self.kept.retain(|_, kept| now < kept.until);
        if self.kept.len() >= MAX_KEPT {
            let first = self.kept.iter().min_by_key(|(_, kept)| kept.until);
            let first = first.map(|(key, _)| key.clone());
            first.map(|first| self.kept.remove(&first));
        }
        // A time that no clock has is for ever; a year is, for a process.
        let until = now + time.min(Duration::from_secs(365 * 24 * 3600));
        self.kept.insert(key, Kept { outcome, until });
    }
}

impl Flight {
    fn wait(&self) -> Outcome {
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = &*outcome {
                return outcome.clone();
            }
            outcome = self
                .landed
                .wait(outcome)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Hands an outcome to those who wait for it, and keeps it.
struct Landing<'a> {
    provider: &'a Provider,
    image: &'a str,
    flight: &'a Flight,
    outcome: Outcome,
    keep: Option<(Key, Duration)>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.provider.state);
        if let Some((key, time)) = self.keep.take() {
            state.keep(key, self.outcome.clone(), time);
        }
        state.running.remove(self.image);
        drop(state);
        *lock(&self.flight.outcome) = Some(self.outcome.clone());
        self.flight.landed.notify_all();
    }
}

/// Nothing that is locked here is ever left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name and a password, if there is either.
fn basic(username: String, password: Secret) -> Option<Login> {
    let is_empty = username.is_empty() && password.is_empty();
    (!is_empty).then_some(Login::Basic { username, password })
}
