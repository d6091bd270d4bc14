//! Images in registries.
//!
//! ```text
//! allow       which registries the operator allows (pure)
//! hosts       containerd's certs.d: which hosts stand for a registry
//! proxy       which requests go through a proxy (pure)
//! tls, client one HTTP client for each way of connecting
//! exchange    a request and its redirects
//! challenge   WWW-Authenticate (pure)
//! token       tokens of token servers, shared
//! session     one image with what may be shown for it: tags, documents, blobs
//! download    blobs to files
//! ```
//!
//! The API blocks, and is for plain threads. Behind it is one small runtime,
//! which [`Registry`] owns.
//!
//! **Invariant:** a secret goes to the host that it was looked up for, or to the
//! token server which that host names; to nothing that these redirect to; and
//! nothing shows it.

mod allow;
mod challenge;
mod client;
mod dates;
mod download;
mod error;
mod exchange;
mod hosts;
mod proxy;
mod session;
mod stamp;
mod tls;
mod token;

pub use allow::{AllowError, AllowList, Pattern};
pub use download::{
    Blob, BlobReader, DownloadSettings, DownloadStats, Downloads, Progress, Retry, Spools, Wanted,
};
pub use error::RegistryError;
pub use proxy::Proxies;
pub use session::{Accepted, Head, Reference, RemoteDocuments, Session};

/// What the fuzz target checks.
#[cfg(any(test, feature = "testing"))]
pub mod fuzz {
    pub use super::challenge::{check, seeds};
}

use crate::image::credentials::Keyring;
use crate::image::reference::ImageName;
use client::Clients;
use hosts::Hosts;
use session::Keys;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use token::Tokens;
use tokio::runtime::Runtime;

/// The most hosts without TLS that are remembered.
const MAX_PLAIN: usize = 256;

/// How registries are talked to. The default is a node without configuration.
#[derive(Debug, Clone, Default)]
pub struct RegistrySettings {
    /// What pods may name.
    pub allow: AllowList,
    /// Directories as containerd's `certs.d`, the first first.
    pub certs_dirs: Vec<PathBuf>,
    /// File of the authorities that are trusted; none for the node's own.
    pub ca_bundle: Option<PathBuf>,
    /// The node's proxies.
    pub proxies: Proxies,
    /// How long things may take.
    pub patience: Patience,
    /// How blobs are fetched.
    pub downloads: DownloadSettings,
}

/// How long requests may take, and how often they are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// For a connection to come about, TLS included.
    pub connect: Duration,
    /// For the next bytes to come.
    pub idle: Duration,
    /// For the answer to one request for a document or token, or for the head of
    /// the answer to one for a blob.
    pub answer: Duration,
    /// For a tag or document from first try to last.
    pub total: Duration,
    /// How often the hosts are asked for a tag or document.
    pub tries: u32,
    /// Between the first two tries; it doubles.
    pub pause: Duration,
    /// The longest that a server can make a try wait.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            answer: Duration::from_secs(20),
            total: Duration::from_secs(45),
            tries: 4,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(20),
        }
    }
}

/// The registries, as this process sees them.
#[derive(Debug)]
pub struct Registry {
    allow: AllowList,
    hosts: Hosts,
    clients: Clients,
    tokens: Tokens,
    patience: Patience,
    downloads: Downloads,
    /// Hosts that may be asked without TLS and turned out to have none.
    plain: Mutex<HashSet<String>>,
    /// Only gone while this is dropped.
    runtime: Option<Runtime>,
}

impl Registry {
    /// Connects to nothing yet. Blobs are kept in the directory `blobs`, which is
    /// made if it is not there, and those of another boot than `boot_id` removed.
    pub fn new(
        settings: RegistrySettings,
        blobs: &Path,
        boot_id: &str,
    ) -> Result<Registry, RegistryError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| RegistryError::Config {
            path: what.to_owned(),
            reason: error.to_string(),
        };
        let mut key = [0; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed("random numbers", &error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|error| failed("threads", &error))?;
        let patience = settings.patience;
        let spools = Spools::open(blobs, boot_id).map_err(RegistryError::Disk)?;
        spools.clean().map_err(RegistryError::Disk)?;
        Ok(Registry {
            downloads: Downloads::new(settings.downloads, spools, runtime.handle().clone()),
            allow: settings.allow,
            hosts: Hosts::new(settings.certs_dirs),
            clients: Clients::new(
                settings.proxies,
                settings.ca_bundle,
                patience.connect,
                patience.idle,
            ),
            tokens: Tokens::new(key),
            patience,
            plain: Mutex::default(),
            runtime: Some(runtime),
        })
    }

    /// Begins to deal with an image, with what may be shown for it. Nothing is
    /// connected to yet; what the operator does not allow ends here.
    pub fn session(
        self: &Arc<Self>,
        name: &ImageName,
        keyring: Keyring,
    ) -> Result<Arc<Session>, RegistryError> {
        self.session_with(name, Arc::new(keyring))
    }

    fn session_with(
        self: &Arc<Self>,
        name: &ImageName,
        keys: Arc<dyn Keys>,
    ) -> Result<Arc<Session>, RegistryError> {
        if !self.allow.allows(name) {
            return Err(RegistryError::NotAllowed {
                registry: format!("{}/{}", name.registry(), name.repository()),
            });
        }
        let places = self.hosts.places(name.registry())?;
        let registry = Arc::clone(self);
        Ok(Arc::new(Session::new(registry, name.clone(), keys, places)))
    }

    /// What the downloads of this process did so far.
    pub fn downloads(&self) -> Arc<DownloadStats> {
        self.downloads.stats()
    }

    /// Runs to its end what waits for the network. Not for threads of a runtime.
    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, RegistryError> {
        let runtime = self.runtime.as_ref().ok_or(RegistryError::Cancelled)?;
        Ok(runtime.handle().block_on(work))
    }

    fn is_plain(&self, base: &reqwest::Url) -> bool {
        let plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        plain.contains(base.as_str())
    }

    fn note_plain(&self, base: &reqwest::Url) {
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        if plain.len() >= MAX_PLAIN {
            plain.clear();
        }
        plain.insert(base.to_string());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed everywhere; they end anyway.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = dates::http_date(text)?;
    Some(at.duration_since(now).unwrap_or_default())
}
