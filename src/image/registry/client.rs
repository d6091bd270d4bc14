//! HTTP clients: one for each way of connecting, made when it is first needed and
//! again when a file that it was made of changes.

use super::error::RegistryError;
use super::proxy::Proxies;
use super::stamp::{Stamp, Stamped};
use super::tls;
use reqwest::Client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::HashMap;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What servers see of us.
const USER_AGENT: &str = concat!("aufs-csi/", env!("CARGO_PKG_VERSION"));
/// What names are resolved with. A client reads them once.
const RESOLVER_FILES: [&str; 2] = [RESOLV_CONF, "/etc/hosts"];
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The most ways of connecting that are kept. Each is one of the operator's, so
/// this is only against a configuration that is rewritten all the time.
const MAX_CLIENTS: usize = 64;

/// How a host is connected to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Transport {
    /// How its connections are secured.
    pub(super) tls: Tls,
    /// How long a connection may take to come about, where that is not as
    /// elsewhere.
    pub(super) dial_timeout: Option<Duration>,
}

/// How connections are secured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// Files of authorities that are trusted besides the node's.
    pub(super) ca: Vec<PathBuf>,
    /// Our certificates, with their keys where those are in other files.
    pub(super) client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether any certificate will do.
    pub(super) skip_verify: bool,
}

impl Tls {
    fn files(&self) -> impl Iterator<Item = &Path> {
        let keys = self.client.iter().filter_map(|(_, key)| key.as_ref());
        let certificates = self.client.iter().map(|(certificate, _)| certificate);
        let all = self.ca.iter().chain(certificates).chain(keys);
        all.map(PathBuf::as_path)
    }
}

impl Transport {
    /// For another host that this one sends us to: who we are is not for it.
    pub(super) fn elsewhere(&self) -> Self {
        let mut transport = self.clone();
        transport.tls.client.clear();
        transport
    }
}

/// Makes and keeps clients.
#[derive(Debug)]
pub(super) struct Clients {
    proxies: Arc<Proxies>,
    ca_bundle: Option<PathBuf>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    known: Mutex<HashMap<Transport, Stamped<Client>>>,
}

impl Clients {
    pub(super) fn new(
        proxies: Proxies,
        ca_bundle: Option<PathBuf>,
        connect_timeout: Duration,
        idle_timeout: Duration,
    ) -> Self {
        Clients {
            proxies: Arc::new(proxies),
            ca_bundle,
            connect_timeout,
            idle_timeout,
            known: Mutex::default(),
        }
    }

    /// The client that connects like this.
    pub(super) fn get(&self, transport: &Transport) -> Result<Client, RegistryError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = known.get(transport).and_then(Stamped::if_unchanged) {
            return Ok(client.clone());
        }
        // Its connections end when the requests do that use them.
        known.remove(transport);
        let bundle = tls::bundle(self.ca_bundle.as_deref());
        let resolver = RESOLVER_FILES.iter().map(Path::new);
        let files = transport
            .tls
            .files()
            .chain(bundle.as_deref())
            .chain(resolver);
        let stamps = files
            .map(|path| (path.to_owned(), Stamp::of(path)))
            .collect();
        let client = self.make(transport, bundle.as_deref())?;
        if known.len() >= MAX_CLIENTS {
            known.clear();
        }
        known.insert(transport.clone(), Stamped::new(client.clone(), stamps));
        Ok(client)
    }

    fn make(&self, transport: &Transport, bundle: Option<&Path>) -> Result<Client, RegistryError> {
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .tls_backend_preconfigured(tls::config(&transport.tls, bundle)?)
            .connect_timeout(transport.dial_timeout.unwrap_or(self.connect_timeout))
            .read_timeout(self.idle_timeout)
            .tcp_keepalive(Duration::from_secs(30))
            // Who is sent where is decided in `exchange`.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy();
        for (scheme, proxy) in self.proxies.both() {
            let Some(proxy) = proxy else { continue };
            let (exceptions, target) = (Arc::clone(&self.proxies), proxy.url.clone());
            let mut rule = reqwest::Proxy::custom(move |url| {
                let proxied = url.scheme() == scheme && !exceptions.is_direct(url);
                proxied.then(|| target.clone())
            });
            if let Some((username, password)) = &proxy.login {
                rule = rule.basic_auth(username, password.expose());
            }
            builder = builder.proxy(rule);
        }
        if !Path::new(RESOLV_CONF).is_file() {
            // Hickory would ask Google then, which nobody agreed to.
            builder = builder.dns_resolver(LibraryResolver);
        }
        builder.build().map_err(|error| RegistryError::Config {
            path: "HTTP".to_owned(),
            reason: error.to_string(),
        })
    }
}

/// Names as the C library resolves them: `/etc/hosts` even in a static binary.
#[derive(Debug, Clone, Copy)]
struct LibraryResolver;

impl Resolve for LibraryResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let look = move || (name.as_str(), 0).to_socket_addrs();
            let found = tokio::task::spawn_blocking(look).await??;
            Ok(Box::new(found) as Addrs)
        })
    }
}
