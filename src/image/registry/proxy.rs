//! Which requests go through a proxy, as Go programs and so the node's container
//! runtime decide it. Pure.
//!
//! `HTTPS_PROXY` is for `https:` and `HTTP_PROXY` for `http:`, each in upper case
//! before lower case. `NO_PROXY` is a list of hosts that are asked directly:
//! `host`, which includes what is below it; `.host`, which is only what is below
//! it; `*.host`, the same; an address; a network as `10.0.0.0/8`; each but the
//! network with an optional `:port`; `*` for all. Loopback is never proxied.

use super::error::RegistryError;
use crate::secret::Secret;
use reqwest::Url;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's proxies. The default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

/// One proxy.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    /// Without its credentials.
    pub(super) url: Url,
    /// What the proxy is shown.
    pub(super) login: Option<(String, Secret)>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.url)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    /// Address and length of the prefix in bits.
    Network(IpAddr, u8),
    Address(IpAddr, Option<u16>),
    /// `.host`, and whether `host` itself is meant too.
    Domain {
        suffix: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// What the environment says; `variable` gives a variable by its name.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, RegistryError> {
        let either = |name: &str| {
            let names = [name.to_ascii_uppercase(), name.to_ascii_lowercase()];
            let mut values = names.iter().map(|name| variable(name));
            values.find_map(|value| value.filter(|value| !value.is_empty()))
        };
        let proxy = |name: &str| {
            let parsed = either(name).map(|value| parse_proxy(&value)).transpose();
            parsed.map_err(|reason| RegistryError::Config {
                path: name.to_owned(),
                reason: reason.to_owned(),
            })
        };
        Ok(Proxies {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            exceptions: parse_exceptions(&either("NO_PROXY").unwrap_or_default()),
        })
    }

    /// Of `http:` and of `https:`, in this order.
    pub(super) fn both(&self) -> [(&'static str, Option<&Proxy>); 2] {
        [("http", self.http.as_ref()), ("https", self.https.as_ref())]
    }

    /// Whether this URL is asked for directly even where there is a proxy.
    pub(super) fn is_direct(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else {
            return true;
        };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if is_loopback(&host) {
            return true;
        }
        let port = url.port_or_known_default();
        let address = address(&host);
        let dotted = format!(".{host}");
        self.exceptions.iter().any(|exception| match exception {
            Exception::All => true,
            Exception::Network(network, prefix) => {
                address.is_some_and(|address| is_in(address, *network, *prefix))
            }
            Exception::Address(other, its_port) => {
                address == Some(*other) && (its_port.is_none() || *its_port == port)
            }
            Exception::Domain {
                suffix,
                itself,
                port: its_port,
            } => {
                let fits = host.ends_with(suffix.as_str()) || *itself && dotted == *suffix;
                fits && (its_port.is_none() || *its_port == port)
            }
        })
    }
}

/// `localhost`, 127.0.0.0/8 or ::1, without a port; brackets do not matter.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || address(host).is_some_and(|address| match address {
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) => mapped.is_loopback(),
                None => address.is_loopback(),
            },
            IpAddr::V4(address) => address.is_loopback(),
        })
}

fn address(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}

/// The reason has nothing of the value, which may hold a password.
fn parse_proxy(value: &str) -> Result<Proxy, &'static str> {
    let text = match value.contains("://") {
        true => value.to_owned(),
        false => format!("http://{value}"),
    };
    let mut url: Url = text.parse().map_err(|_| "it is not the URL of a proxy")?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err("only proxies that are http:// or https:// can be used");
    }
    let login = match (url.username(), url.password()) {
        ("", None) => None,
        (username, password) => Some((
            decoded(username),
            Secret::new(decoded(password.unwrap_or_default())),
        )),
    };
    // What has a host can have credentials, so these do not fail.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok(Proxy { url, login })
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let hex = behind
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse_exceptions(text: &str) -> Vec<Exception> {
    // curl divides by blanks too.
    let entries = text.split([',', ' ', '\t']);
    entries
        .map(|entry| entry.trim().to_ascii_lowercase())
        .filter(|entry| !entry.is_empty())
        .filter_map(|entry| parse_exception(&entry))
        .collect()
}

/// One entry; what means nothing is passed over, as elsewhere.
fn parse_exception(entry: &str) -> Option<Exception> {
    if entry == "*" {
        return Some(Exception::All);
    }
    if let Some((network, prefix)) = entry.split_once('/') {
        let network: IpAddr = network.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let bits = if network.is_ipv4() { 32 } else { 128 };
        return (prefix <= bits).then_some(Exception::Network(network, prefix));
    }
    if let Some(whole) = address(entry) {
        return Some(Exception::Address(whole, None));
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (entry, None),
    };
    if let Some(address) = address(host) {
        return Some(Exception::Address(address, port));
    }
    let host = host
        .strip_prefix('*')
        .filter(|rest| rest.starts_with('.'))
        .unwrap_or(host);
    let host = host.trim_end_matches('.');
    match host.strip_prefix('.') {
        Some("") => None,
        _ if host.is_empty() => None,
        Some(_) => Some(Exception::Domain {
            suffix: host.to_owned(),
            itself: false,
            port,
        }),
        None => Some(Exception::Domain {
            suffix: format!(".{host}"),
            itself: true,
            port,
        }),
    }
}

fn is_in(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let v4 = |address: Ipv4Addr| u32::from(address).checked_shr(32 - u32::from(prefix));
    let v6 = |address: Ipv6Addr| u128::from(address).checked_shr(128 - u32::from(prefix));
    match (address, network) {
        // Shifted by all its bits, everything is the same.
        (IpAddr::V4(address), IpAddr::V4(network)) => v4(address) == v4(network),
        (IpAddr::V6(address), IpAddr::V6(network)) => v6(address) == v6(network),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let get = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Proxies::from_environment(get).unwrap()
    }

    #[test]
    fn exceptions_are_those_of_go() {
        for (list, direct, proxied) in [
            (
                "",
                &[
                    "http://localhost:5/",
                    "https://127.9.9.9/",
                    "https://[::1]:5000/",
                ][..],
                &["https://example.com/", "https://10.0.0.1/"][..],
            ),
            ("*", &["https://example.com/"], &[]),
            (
                "example.com",
                &[
                    "https://example.com/",
                    "https://a.example.com:5/",
                    "https://EXAMPLE.com./",
                ],
                &["https://notexample.com/", "https://example.com.org/"],
            ),
            (
                ".example.com",
                &["https://a.example.com/"],
                &["https://example.com/"],
            ),
            (
                "*.example.com",
                &["https://a.b.example.com/"],
                &["https://example.com/"],
            ),
            (
                "example.com:8080",
                &["http://example.com:8080/"],
                &["http://example.com/"],
            ),
            (
                "example.com:443",
                &["https://example.com/"],
                &["http://example.com/"],
            ),
            (
                "10.0.0.0/8, fd00::/8",
                &["https://10.255.0.1/", "https://[fd12::1]/"],
                &[
                    "https://11.0.0.1/",
                    "https://[fe80::1]/",
                    "https://ten.example/",
                ],
            ),
            ("0.0.0.0/0", &["https://11.0.0.1/"], &["https://[fe80::1]/"]),
            (
                "192.0.2.1,[2001:db8::1]:80",
                &["https://192.0.2.1:5/", "http://[2001:db8::1]/"],
                &["https://192.0.2.2/", "https://[2001:db8::1]/"],
            ),
            (
                "a.example b.example\t,c.example",
                &["https://b.example/", "https://c.example/"],
                &["https://d.example/"],
            ),
            ("10.0.0.0/99,:80,.,x:y,,", &[], &["https://10.0.0.1/"]),
        ] {
            let proxies = proxies(&[("NO_PROXY", list)]);
            for url in direct {
                assert!(proxies.is_direct(&url.parse().unwrap()), "{list:?} {url}");
            }
            for url in proxied {
                assert!(!proxies.is_direct(&url.parse().unwrap()), "{list:?} {url}");
            }
        }
    }

    #[test]
    fn proxies_are_read_from_either_case_and_show_no_password() {
        let found = proxies(&[
            ("HTTP_PROXY", ""),
            ("http_proxy", "proxy.example:3128"),
            ("HTTPS_PROXY", "http://user:p%40ss%zz@proxy.example"),
            ("https_proxy", "http://other.example"),
        ]);
        let [(_, http), (_, https)] = found.both();
        assert_eq!(http.unwrap().url.as_str(), "http://proxy.example:3128/");
        assert_eq!(http.unwrap().login, None);
        let (username, password) = https.unwrap().login.clone().unwrap();
        assert_eq!((username.as_str(), password.expose()), ("user", "p@ss%zz"));
        assert_eq!(https.unwrap().url.as_str(), "http://proxy.example/");
        assert!(!format!("{found:?}").contains("ss%"), "{found:?}");
        for value in ["socks5://u:hunter2@x", "http://u:hunter2@"] {
            let error = Proxies::from_environment(|_| Some(value.to_owned())).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(
                shown.contains("HTTP_PROXY") && !shown.contains("hunter2"),
                "{shown}"
            );
        }
    }
}
