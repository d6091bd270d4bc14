//! TLS settings: whom we trust, and who we say we are.
//!
//! Trusted are the node's authorities, those that a registry's configuration
//! adds, and, on a node that has none, those that browsers trust, which are
//! built in.

use super::client::Tls;
use super::error::RegistryError;
use rustls::client::ResolvesClientCert;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where distributions keep the authorities that a machine trusts.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The longest file of certificates or keys, in bytes. Bundles have 200 KiB.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Which file has the node's authorities; none if there is none.
pub(super) fn bundle(chosen: Option<&Path>) -> Option<PathBuf> {
    let known = || {
        BUNDLES
            .iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
    };
    chosen.map(Path::to_owned).or_else(known)
}

/// Makes what a connection needs.
pub(super) fn config(tls: &Tls, bundle: Option<&Path>) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(Path::new("TLS"), error))?;
    let verifier: Arc<dyn ServerCertVerifier> = if tls.skip_verify {
        Arc::new(Unverified(Arc::clone(&provider)))
    } else {
        let (mut roots, mut pinned) = (node_roots(bundle)?, Vec::new());
        for path in &tls.ca {
            let certificates = certificates(path)?;
            for certificate in &certificates {
                roots
                    .add(certificate.clone())
                    .map_err(|error| fault(path, error))?;
            }
            pinned.extend(certificates);
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| fault(bundle.unwrap_or(Path::new("TLS")), error))?;
        Arc::new(Verified { inner, pinned })
    };
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = if tls.client.is_empty() {
        builder.with_no_client_auth()
    } else {
        let keys = tls.client.iter();
        let keys = keys.map(|(certificate, key)| certified(certificate, key.as_deref(), &provider));
        builder.with_client_cert_resolver(Arc::new(Ours(keys.collect::<Result<_, _>>()?)))
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn fault(path: &Path, reason: impl ToString) -> RegistryError {
    RegistryError::Config {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}

fn node_roots(bundle: Option<&Path>) -> Result<RootCertStore, RegistryError> {
    let Some(path) = bundle else {
        return Ok(RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        });
    };
    let mut roots = RootCertStore::empty();
    // Bundles have old certificates which no longer parse; the rest counts.
    let (added, _) = roots.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        return Err(fault(path, "it has no usable certificate"));
    }
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    let length = std::fs::metadata(path)
        .map_err(|error| fault(path, error))?
        .len();
    if length > MAX_FILE_BYTES {
        return Err(fault(
            path,
            format!("it has more than {MAX_FILE_BYTES} bytes"),
        ));
    }
    std::fs::read(path).map_err(|error| fault(path, error))
}

/// All certificates of a PEM file, which has at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| fault(path, error))?;
    if found.is_empty() {
        return Err(fault(path, "it has no certificate in PEM form"));
    }
    Ok(found)
}

/// A certificate with its key, which may be in the same file.
fn certified(
    path: &Path,
    key: Option<&Path>,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, RegistryError> {
    let chain = certificates(path)?;
    let key_path = key.unwrap_or(path);
    let bytes = zeroize::Zeroizing::new(read(key_path)?);
    // Neither error quotes the file, of which the key is a part.
    let key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| fault(key_path, "it has no private key in PEM form"))?;
    let certified = CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| fault(key_path, format!("the key cannot be used: {error}")))?;
    Ok(Arc::new(certified))
}

/// Our certificates. Which one a server wants is told from the kind of its key
/// only; where there are several, the first of that kind is shown.
#[derive(Debug)]
struct Ours(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Ours {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let mut keys = self.0.iter();
        let fitting = keys.find(|ours| ours.key.choose_scheme(schemes).is_some());
        fitting.cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// As the web does it, with one exception: a certificate that the operator named
/// as an authority is also taken as a server's own. `openssl req -x509` makes such
/// certificates, every other program takes them, and webpki alone does not. When
/// it ends is then for the operator to know.
#[derive(Debug)]
struct Verified {
    inner: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verified {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pinned.iter().any(|pinned| pinned == certificate) {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.inner
            .verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Any certificate, because the operator says so (`skip_verify`). That the server
/// has its key is still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
