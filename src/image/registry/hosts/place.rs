//! One host that can be asked for the images of a registry.

use super::super::client::{Tls, Transport};
use super::super::proxy::is_loopback;
use super::parse::{Capabilities, Fault, HostEntry};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// Docker Hub in image names, and the host that has its images.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Hosts that are Docker Hub.
const DOCKER_HUB_HOSTS: [&str; 3] = [DOCKER_HUB, DOCKER_HUB_HOST, "index.docker.io"];

/// Scheme, host and port: what a secret that is meant for one host is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image::registry) struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// Of a URL.
    pub(in crate::image::registry) fn of(url: &Url) -> Self {
        Origin {
            scheme: url.scheme().to_owned(),
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default(),
        }
    }
}

/// One host that can be asked for the images of a registry.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::image::registry) struct Place {
    /// Where its API begins, without a slash at the end.
    pub(in crate::image::registry) base: Url,
    /// Where it begins if the host turns out to speak no TLS; none where that
    /// is not allowed.
    pub(in crate::image::registry) plain: Option<Url>,
    /// Host and port, for people.
    pub(in crate::image::registry) shown: String,
    /// The host by which credentials are looked up.
    pub(in crate::image::registry) login_host: String,
    /// What the registry puts before the repository's name, with a slash at the
    /// end, where its URL says that it has a prefix.
    pub(in crate::image::registry) prefix: String,
    /// The registry that it stands in for; none if it is that itself.
    pub(in crate::image::registry) stands_for: Option<String>,
    /// Whether it may give content.
    pub(in crate::image::registry) pull: bool,
    /// Whether it may say what a tag means.
    pub(in crate::image::registry) resolve: bool,
    /// How it is connected to.
    pub(in crate::image::registry) transport: Transport,
    /// What each request to it has; the values are marked as secrets.
    pub(in crate::image::registry) header: HeaderMap,
}

impl Place {
    /// What a file says about a host, completed with what it does not say.
    pub(super) fn new(registry: &str, entry: HostEntry) -> Result<Self, Fault> {
        let mut tls = Tls {
            ca: entry.ca,
            client: entry.client,
            skip_verify: entry.skip_verify.unwrap_or(false),
        };
        let has_tls = entry.skip_verify.is_some() || tls != Tls::default();
        let fault = |reason: &str| Fault {
            key: "server".to_owned(),
            reason: reason.to_owned(),
        };
        let (base, plain, capabilities) = match entry.url {
            // A port with both a scheme and settings for the other one: first
            // what the settings are for. 80 leaves no doubt, nor does no port.
            Some(url) if url.scheme() == "http" && has_tls && url.port().is_some() => {
                let mut secure = url.clone();
                secure
                    .set_scheme("https")
                    .map_err(|()| fault("cannot be asked with TLS"))?;
                (secure, Some(url), entry.capabilities)
            }
            Some(url) => (url, None, entry.capabilities),
            None => {
                let (base, plain) = default_base(registry)
                    .ok_or_else(|| fault("the registry's name is not a host"))?;
                let local = base.host_str().is_some_and(is_loopback);
                if local && !has_tls {
                    tls.skip_verify = true;
                }
                (base, plain, Capabilities::default())
            }
        };
        let shown = shown(&base);
        let is_registry = is_same_host(&base, registry);
        let login_host = if is_registry {
            registry.to_owned()
        } else if DOCKER_HUB_HOSTS.contains(&shown.as_str()) {
            DOCKER_HUB.to_owned()
        } else {
            shown.clone()
        };
        let prefix = match base.path().trim_start_matches('/').strip_prefix("v2/") {
            Some(prefix) if !prefix.is_empty() => format!("{prefix}/"),
            _ => String::new(),
        };
        let mut header = HeaderMap::new();
        for (name, values) in entry.header {
            let fault = |reason: &str| Fault {
                key: format!("header.{name}"),
                reason: reason.to_owned(),
            };
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| fault("is not the name of a header"))?;
            for value in values {
                let mut value = HeaderValue::from_str(value.expose())
                    .map_err(|_| fault("is not the value of a header"))?;
                value.set_sensitive(true);
                header.append(name.clone(), value);
            }
        }
        Ok(Place {
            base,
            plain,
            shown,
            login_host,
            prefix,
            stands_for: (!is_registry).then(|| registry.to_owned()),
            pull: capabilities.pull,
            resolve: capabilities.pull && capabilities.resolve,
            transport: Transport {
                tls,
                dial_timeout: entry.dial_timeout,
            },
            header,
        })
    }
}

/// The registry itself, and how else it may be asked: see the head of `hosts`.
fn default_base(registry: &str) -> Option<(Url, Option<Url>)> {
    if registry == DOCKER_HUB {
        let url = format!("https://{DOCKER_HUB_HOST}/v2");
        return Some((url.parse().ok()?, None));
    }
    let secure: Url = format!("https://{registry}/v2").parse().ok()?;
    let plain: Url = format!("http://{registry}/v2").parse().ok()?;
    if !is_loopback(secure.host_str()?) {
        return Some((secure, None));
    }
    // A port that is the scheme's own is not in a URL any more.
    let written = registry.rsplit_once(':').map(|(_, port)| port);
    match (secure.port(), plain.port()) {
        (_, None) if written == Some("80") => Some((plain, None)),
        (None, _) => Some((secure, None)),
        (Some(_), _) => Some((secure, Some(plain))),
    }
}

/// Host and port, the port only if it is not the scheme's own.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn is_same_host(url: &Url, registry: &str) -> bool {
    let shown = shown(url);
    if registry == DOCKER_HUB {
        return DOCKER_HUB_HOSTS.contains(&shown.as_str());
    }
    let other = format!("{}://{registry}", url.scheme()).parse();
    other.is_ok_and(|other: Url| Origin::of(&other) == Origin::of(url))
}
