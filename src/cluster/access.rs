//! Where the API server is, and who this plugin is to it.

mod kubeconfig;

use crate::secret::Secret;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where Kubernetes puts what a pod's process may show to the API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Longest token in bytes: one of a service account has about a thousand.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// Longest file of certificates, and kubeconfig, in bytes: clusters of years
/// have a few dozen.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// How long a token is used before its file is read again. kubelet replaces a
/// token when a fifth of its time, which is an hour, is left.
const TOKEN_FRESH: Duration = Duration::from_secs(60);

/// Where it is said how to reach the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the environment of a pod, and in the files of its service account.
    Pod {
        /// `KUBERNETES_SERVICE_HOST`.
        host: String,
        /// `KUBERNETES_SERVICE_PORT`.
        port: String,
    },
    /// In a file as `kubectl` has it.
    Kubeconfig(PathBuf),
}

/// It is not known how the API server can be reached. Nothing of a secret is in
/// it, and so nothing that a parser says of a file that has some.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file is needed.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not usable: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The address is none.
    #[error("the API server's address {address:?} is not usable: {reason}")]
    Address {
        /// The address, which may be foreign.
        address: String,
        /// Why.
        reason: &'static str,
    },
}

impl AccessError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| AccessError::File {
            path: path.to_owned(),
            source,
        }
    }

    fn content(path: &Path, reason: impl fmt::Display) -> Self {
        AccessError::Content {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// How the API server is reached.
#[derive(Debug)]
pub(super) struct Access {
    /// Its URL without a slash at the end.
    pub(super) server: String,
    /// Who may have signed its certificate; empty for those that everybody trusts.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Who we are, by certificate.
    pub(super) identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Who we are, by token.
    pub(super) token: Token,
}

impl Place {
    pub(super) fn read(&self) -> Result<Access, AccessError> {
        match self {
            Place::Pod { host, port } => in_pod(host, port, Path::new(SERVICE_ACCOUNT)),
            Place::Kubeconfig(path) => kubeconfig::read(path),
        }
    }
}

fn in_pod(host: &str, port: &str, directory: &Path) -> Result<Access, AccessError> {
    // An IPv6 address comes without brackets.
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    let roots = directory.join("ca.crt");
    let mut token = Token::file(directory.join("token"));
    // So that it is known from the start if there is none.
    token.renew()?;
    Ok(Access {
        server: server_url(&format!("https://{host}:{port}"), true)?,
        roots: certificates(&read(&roots, MAX_FILE_BYTES)?, &roots)?,
        identity: None,
        token,
    })
}

/// A URL that paths of the API can be put behind.
fn server_url(address: &str, shows_token: bool) -> Result<String, AccessError> {
    let fault = |reason| AccessError::Address {
        // It may have a password, which is refused, but must not be shown.
        address: address
            .rsplit_once('@')
            .map_or(address, |(_, host)| host)
            .escape_debug()
            .to_string(),
        reason,
    };
    let url = reqwest::Url::parse(address).map_err(|_| fault("it is not a URL"))?;
    let host = url.host_str().unwrap_or_default();
    let is_loopback = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault("it has a user's name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(fault("it has more than a host and a path"));
    }
    match url.scheme() {
        "https" => {}
        "http" if is_loopback || !shows_token => {}
        "http" => return Err(fault("a token would be sent to it without encryption")),
        _ => return Err(fault("it does not begin with https://")),
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Proves who we are, if anything does.
#[derive(Debug)]
pub(super) enum Token {
    /// A certificate does, or nothing.
    None,
    /// It does not change.
    Fixed(Secret),
    /// Somebody replaces it from time to time.
    File {
        path: PathBuf,
        known: Option<(Secret, Instant)>,
    },
}

impl Token {
    fn file(path: PathBuf) -> Self {
        Token::File { path, known: None }
    }

    /// The token, read again if that was long ago. Where it cannot be, the old
    /// one may still do.
    pub(super) fn current(&mut self) -> Result<Option<&Secret>, AccessError> {
        let is_old = match self {
            Token::File { known, .. } => known
                .as_ref()
                .is_none_or(|(_, since)| since.elapsed() >= TOKEN_FRESH),
            Token::None | Token::Fixed(_) => false,
        };
        if is_old {
            let renewed = self.renew();
            if self.known().is_none() {
                renewed?;
            }
        }
        Ok(self.known())
    }

    /// Reads the file again, because the token was refused. Whether it is another.
    pub(super) fn renew(&mut self) -> Result<bool, AccessError> {
        let Token::File { path, known } = self else {
            return Ok(false);
        };
        let bytes = read(path, MAX_TOKEN_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|_| AccessError::content(path, "not text"))?;
        let text = Secret::new(text);
        let token = Secret::new(text.expose().trim().to_owned());
        if token.expose().is_empty() {
            return Err(AccessError::content(path, "empty"));
        }
        let is_other = known.as_ref().is_none_or(|(old, _)| *old != token);
        *known = Some((token, Instant::now()));
        Ok(is_other)
    }

    fn known(&self) -> Option<&Secret> {
        match self {
            Token::None => None,
            Token::Fixed(token) => Some(token),
            Token::File { known, .. } => known.as_ref().map(|(token, _)| token),
        }
    }
}

/// A whole file, unless it is longer than such a file can be.
fn read(path: &Path, longest: u64) -> Result<Vec<u8>, AccessError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(AccessError::file(path))?;
    file.take(longest + 1)
        .read_to_end(&mut bytes)
        .map_err(AccessError::file(path))?;
    if bytes.len() as u64 > longest {
        return Err(AccessError::content(
            path,
            format_args!("longer than {longest} bytes"),
        ));
    }
    Ok(bytes)
}

/// The certificates of a PEM file, of which there must be some.
fn certificates(text: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(AccessError::content(path, "no certificate in it")),
        Err(_) => Err(AccessError::content(path, "a certificate in it is damaged")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_token_goes_nowhere_unencrypted() {
        for (address, shows_token, wanted) in [
            ("https://10.96.0.1:443", true, Some("https://10.96.0.1")),
            ("https://[fd00::1]:443", true, Some("https://[fd00::1]")),
            (
                "https://h:6443/k8s/c-1/",
                true,
                Some("https://h:6443/k8s/c-1"),
            ),
            ("http://127.0.0.1:8001", true, Some("http://127.0.0.1:8001")),
            ("http://[::1]:8001", true, Some("http://[::1]:8001")),
            ("http://localhost:8001", true, Some("http://localhost:8001")),
            ("http://10.0.0.1:8001", false, Some("http://10.0.0.1:8001")),
            ("http://10.0.0.1:8001", true, None),
            ("https://user:hunter2@h", true, None),
            ("https://h/?a=b", true, None),
            ("ftp://h", true, None),
            ("h:6443", true, None),
            ("", true, None),
        ] {
            let url = server_url(address, shows_token);
            assert_eq!(url.as_deref().ok(), wanted, "{address}");
            if let Err(error) = url {
                assert!(!error.to_string().contains("hunter2"), "{error}");
            }
        }
    }

    #[test]
    fn a_pod_has_an_address_and_the_files_of_its_service_account() {
        let directory = tempfile::tempdir().unwrap();
        let fault = |name: &str| {
            let error = in_pod("10.96.0.1", "443", directory.path()).unwrap_err();
            let text = crate::chain::Chain(&error).to_string();
            assert!(text.contains(name), "{text}");
        };
        fault("token");
        fs::write(directory.path().join("token"), " hunter2\n").unwrap();
        fault("ca.crt");
        fs::write(directory.path().join("ca.crt"), "nothing").unwrap();
        fault("no certificate");
        let certificate = include_str!("access/testdata/ca.crt");
        fs::write(directory.path().join("ca.crt"), certificate).unwrap();
        let mut access = in_pod("fd00::1", "6443", directory.path()).unwrap();
        assert_eq!(access.server, "https://[fd00::1]:6443");
        assert_eq!(access.roots.len(), 1);
        let token = access.token.current().unwrap().unwrap();
        assert_eq!(token.expose(), "hunter2");
        assert!(!format!("{access:?}").contains("hunter2"));
    }

    #[test]
    fn a_token_is_read_again_when_it_is_old_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "one").unwrap();
        let mut token = Token::file(path.clone());
        let shown = |token: &mut Token| token.current().unwrap().unwrap().expose().to_owned();
        let age = |token: &mut Token| {
            if let Token::File {
                known: Some(known), ..
            } = token
            {
                known.1 = Instant::now().checked_sub(TOKEN_FRESH).unwrap();
            }
        };
        assert_eq!(shown(&mut token), "one");
        fs::write(&path, "two").unwrap();
        assert_eq!(shown(&mut token), "one", "read once a minute");
        age(&mut token);
        assert_eq!(shown(&mut token), "two");
        fs::write(&path, "three").unwrap();
        assert!(token.renew().unwrap());
        assert!(!token.renew().unwrap(), "the same again");
        assert_eq!(shown(&mut token), "three");
        // In the middle of being replaced, say.
        fs::remove_file(&path).unwrap();
        age(&mut token);
        assert_eq!(shown(&mut token), "three");
        assert!(token.renew().is_err());
        fs::write(&path, " \n").unwrap();
        assert!(token.renew().is_err());
        fs::write(&path, vec![b'x'; MAX_TOKEN_BYTES as usize + 1]).unwrap();
        assert!(token.renew().is_err());
        assert_eq!(shown(&mut token), "three");
        assert!(Token::file(path).current().is_err());
    }
}
