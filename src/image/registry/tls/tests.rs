//! Handshakes in memory.

use super::*;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConnection, ServerConfig, ServerConnection};

const CA: &str = "ca.pem";
const ALONE: &str = "alone.pem";

fn fixture(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/image/registry/tls/tests");
    dir.join(name)
}

fn trusting(ca: &[&str]) -> Tls {
    Tls {
        ca: ca.iter().map(|name| fixture(name)).collect(),
        ..Tls::default()
    }
}

/// A server with a certificate of this name; `asks` for the client's, too.
fn server(name: &str, asks: bool) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(certificates(&fixture(CA)).unwrap().remove(0))
        .unwrap();
    let builder = match asks {
        true => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap(),
        ),
        false => builder.with_no_client_auth(),
    };
    let key = PrivateKeyDer::from_pem_file(fixture(&format!("{name}.key"))).unwrap();
    let chain = certificates(&fixture(&format!("{name}.pem"))).unwrap();
    builder.with_single_cert(chain, key).unwrap()
}

/// What becomes of a connection to `host`.
fn handshake(tls: &Tls, server: ServerConfig, host: &'static str) -> Result<(), rustls::Error> {
    // The tests' own authority is in no bundle; the built-in ones stand in.
    let config = Arc::new(config(tls, None).unwrap());
    let mut client = ClientConnection::new(config, host.try_into().unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        let mut bytes = &wire[..];
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
        }
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        let mut bytes = &wire[..];
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
        }
        client.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn only_who_is_trusted_is_talked_to() {
    let unverified = Tls {
        skip_verify: true,
        ..Tls::default()
    };
    let name = "registry.example";
    for (tls, server_name, host, accepted) in [
        (trusting(&[]), "server", name, false),
        (trusting(&[CA]), "server", name, true),
        (trusting(&[CA]), "server", "other.example", false),
        (trusting(&[CA]), "alone", name, false),
        (trusting(&[CA, ALONE]), "alone", name, true),
        (trusting(&[ALONE]), "alone", "other.example", false),
        (trusting(&[ALONE]), "server", name, false),
        (unverified.clone(), "server", "other.example", true),
        (unverified, "alone", name, true),
    ] {
        let outcome = handshake(&tls, server(server_name, false), host);
        assert_eq!(
            outcome.is_ok(),
            accepted,
            "{tls:?} {server_name} {host}: {outcome:?}"
        );
    }
}

#[test]
fn a_node_without_a_bundle_has_the_roots_that_are_built_in() {
    let built_in = node_roots(None).unwrap().roots.len();
    assert!(built_in > 50, "{built_in}");
    let dir = tempfile::tempdir().unwrap();
    let chosen = dir.path().join("chosen.pem");
    assert_eq!(bundle(Some(&chosen)), Some(chosen.clone()));
    // One that was chosen and is not there is a fault, and not a reason to trust
    // others.
    assert!(node_roots(Some(&chosen)).is_err());
    std::fs::write(&chosen, "").unwrap();
    assert!(node_roots(Some(&chosen)).is_err());
}

#[test]
fn we_say_who_we_are_where_we_are_told_to() {
    let name = "registry.example";
    assert!(handshake(&trusting(&[CA]), server("server", true), name).is_err());
    let mut tls = trusting(&[CA]);
    tls.client = vec![(fixture("client.pem"), None)];
    handshake(&tls, server("server", true), name).unwrap();
    handshake(&tls, server("server", false), name).unwrap();
    tls.client = vec![(fixture("client.pem"), Some(fixture("client.pem")))];
    handshake(&tls, server("server", true), name).unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.pem");
    std::fs::write(&bad, "hunter2").unwrap();
    let client = |certificate: &Path, key: Option<&Path>| Tls {
        client: vec![(certificate.to_owned(), key.map(Path::to_owned))],
        ..Tls::default()
    };
    let authority = |path: &Path| Tls {
        ca: vec![path.to_owned()],
        ..Tls::default()
    };
    for (tls, part) in [
        (authority(&bad), "bad.pem: it has no certificate"),
        (
            authority(&dir.path().join("gone.pem")),
            "gone.pem: No such file",
        ),
        (client(&bad, None), "bad.pem: it has no certificate"),
        (
            client(&fixture("client.pem"), Some(&bad)),
            "bad.pem: it has no private key",
        ),
        (
            client(&fixture("server.pem"), None),
            "server.pem: it has no private key",
        ),
        (
            client(&fixture("server.pem"), Some(&fixture("alone.key"))),
            "alone.key: the key cannot be used",
        ),
    ] {
        let error = config(&tls, None).unwrap_err().to_string();
        assert!(
            error.contains(part) && !error.contains("hunter2"),
            "{error}"
        );
    }
    let error = config(&Tls::default(), Some(&bad)).unwrap_err().to_string();
    assert!(error.contains("no certificate"), "{error}");
    assert_eq!(bundle(Some(&bad)), Some(bad));
}
