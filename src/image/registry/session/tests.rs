mod access;
mod hosts;
mod server;
mod trouble;

use super::*;
use crate::image::credentials::{Login, Origin};
use crate::image::registry::{AllowList, Proxies, RegistrySettings};
use crate::image::resolve::Documents;
use crate::secret::Secret;
use server::{Reply, Seen, Server};
use std::path::Path;

/// Impatient, so that tests are short.
fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        idle: Duration::from_secs(2),
        answer: Duration::from_secs(2),
        total: Duration::from_secs(10),
        tries: 3,
        pause: Duration::from_millis(20),
        longest_pause: Duration::from_secs(2),
    }
}

/// What is fetched is of no interest here; nothing is.
fn opened(settings: RegistrySettings) -> Arc<Registry> {
    let blobs = tempfile::tempdir().unwrap();
    Arc::new(Registry::new(settings, blobs.path(), "boot").unwrap())
}

fn registry_with(certs: Option<&Path>) -> Arc<Registry> {
    let settings = RegistrySettings {
        certs_dirs: certs.map(Path::to_owned).into_iter().collect(),
        patience: patience(),
        ..RegistrySettings::default()
    };
    opened(settings)
}

fn session(registry: &Arc<Registry>, host: &str, keys: &[(&str, Credential)]) -> Arc<Session> {
    let keys = keys.iter();
    let keys = keys.map(|(host, key)| ((*host).to_owned(), key.clone()));
    let name = format!("{host}/team/app:v1").parse().unwrap();
    let keys = Arc::new(Fixed(keys.collect()));
    registry.session_with(&name, keys).unwrap()
}

/// Credentials with the hosts that they are for.
struct Fixed(Vec<(String, Credential)>);

impl Keys for Fixed {
    fn lookup(&self, host: &str, repository: &str) -> Vec<Credential> {
        assert_eq!(repository, "team/app");
        let own = self.0.iter().filter(|(other, _)| other == host);
        own.map(|(_, credential)| credential.clone()).collect()
    }

    fn sources(&self, _host: &str, _repository: &str) -> String {
        "somebody was asked".to_owned()
    }
}

fn basic(origin: Origin, username: &str, password: &str) -> Credential {
    let (username, password) = (username.to_owned(), Secret::new(password.to_owned()));
    Credential {
        origin,
        login: Login::Basic { username, password },
    }
}

fn tag() -> Reference {
    Reference::Tag("v1".to_owned())
}

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

fn descriptor(bytes: &[u8], media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    }
}

/// What a registry answers to a request for [`MANIFEST`].
fn manifest() -> Reply {
    Reply::new(200)
        .with("Content-Type", INDEX_TYPE)
        .with("Docker-Content-Digest", Digest::of(MANIFEST))
        .body(MANIFEST)
}

/// A registry that everybody may read.
fn public(seen: &Seen) -> Reply {
    let path = seen.path.split('?').next().unwrap();
    match path.strip_prefix("/v2/team/app/") {
        Some("manifests/v1") => manifest(),
        Some(path) if path.ends_with(&Digest::of(MANIFEST).to_string()) => manifest(),
        _ => Reply::new(404),
    }
}

/// The text of an error with all that `Debug` shows.
fn shown(error: &RegistryError) -> String {
    format!("{error} {error:?}")
}

fn hosts_toml(certs: &Path, registry: &str, text: &str) {
    let dir = certs.join(registry);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("hosts.toml"), text).unwrap();
}

#[test]
fn a_public_image_is_had_without_showing_anything() {
    let server = Server::start(public);
    let registry = registry_with(None);
    let key = basic(Origin::Pod, "u", "hunter2");
    let session = session(&registry, &server.host, &[(&server.host, key)]);
    let head = session.head(&tag()).unwrap();
    assert_eq!(head.descriptor, descriptor(MANIFEST, INDEX_TYPE));
    assert_eq!((head.accepted, head.bytes), (Accepted::Anonymous, None));
    let documents = session.documents();
    assert_eq!(documents.load(&head.descriptor).unwrap(), MANIFEST);
    // Without a type, it may be kept as either.
    assert_eq!(documents.load(&descriptor(MANIFEST, "")).unwrap(), MANIFEST);
    let config = descriptor(MANIFEST, "application/vnd.oci.image.config.v1+json");
    assert_eq!(documents.load(&config).unwrap(), MANIFEST);
    let digest = Digest::of(MANIFEST);
    let seen = server.seen();
    assert_eq!(
        seen.iter().map(Seen::line).collect::<Vec<_>>(),
        [
            "HEAD /v2/team/app/manifests/v1 -".to_owned(),
            format!("GET /v2/team/app/manifests/{digest} -"),
            format!("GET /v2/team/app/manifests/{digest} -"),
            format!("GET /v2/team/app/blobs/{digest} -"),
        ]
    );
    let agent = concat!("aufs-csi/", env!("CARGO_PKG_VERSION"));
    assert_eq!(seen[0].get("user-agent"), Some(agent));
    assert_eq!(seen[0].get("accept-encoding"), Some("identity"));
    for wanted in [
        "oci.image.index",
        "oci.image.manifest",
        "manifest.list",
        "manifest.v2",
    ] {
        assert!(seen[0].get("accept").unwrap().contains(wanted), "{wanted}");
    }
}

#[test]
fn names_are_resolved() {
    let server = Server::start(public);
    let (_, port) = server.host.rsplit_once(':').unwrap();
    let host = format!("localhost:{port}");
    let session = session(&registry_with(None), &host, &[]);
    session.head(&tag()).unwrap();
    assert_eq!(server.seen()[0].get("host"), Some(host.as_str()));
}

#[test]
fn what_the_operator_does_not_allow_is_not_even_connected_to() {
    let server = Server::start(public);
    let settings = RegistrySettings {
        allow: AllowList::new(vec!["ghcr.io".parse().unwrap()]),
        ..RegistrySettings::default()
    };
    let registry = opened(settings);
    let name = format!("{}/team/app", server.host).parse().unwrap();
    let keys = Arc::new(Fixed(Vec::new()));
    let error = registry.session_with(&name, keys).unwrap_err();
    assert!(matches!(error, RegistryError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains("/team/app"), "{error}");
    assert!(server.seen().is_empty());
}

#[test]
fn a_tag_without_a_digest_is_fetched_once() {
    for head in [
        Reply::new(405),
        Reply::new(200).with("Content-Type", INDEX_TYPE),
        Reply::new(200)
            .with("Docker-Content-Digest", "sha512:00")
            .body(MANIFEST),
        Reply::new(200)
            .with("Docker-Content-Digest", Digest::of(MANIFEST))
            .without_length(),
    ] {
        let server = Server::start(move |seen| match seen.method.as_str() {
            "HEAD" => head.clone(),
            _ => Reply::new(200)
                .with("Content-Type", "text/plain; charset=x")
                .body(MANIFEST),
        });
        let session = session(&registry_with(None), &server.host, &[]);
        let head = session.head(&tag()).unwrap();
        // The type is not one of a document, so it says nothing.
        assert_eq!(head.descriptor, descriptor(MANIFEST, ""));
        assert_eq!(head.bytes.as_deref(), Some(MANIFEST));
        assert_eq!(
            session.documents().load(&head.descriptor).unwrap(),
            MANIFEST
        );
        assert_eq!(server.seen().len(), 2);
    }
}

#[test]
fn documents_are_bounded_and_verified() {
    let large = descriptor(MANIFEST, INDEX_TYPE);
    for (reply, part) in [
        (Reply::new(200).body(vec![b' '; 5 << 20]), "more than"),
        (
            Reply::new(200).body(vec![b' '; 5 << 20]).without_length(),
            "more than",
        ),
        (Reply::new(200).body(b"other"), "other bytes"),
        (Reply::new(302), "redirects to nowhere"),
        (
            Reply::new(302).with("Location", "ftp://x/"),
            "something else than HTTP",
        ),
    ] {
        let server = Server::start(move |_| reply.clone());
        let session = session(&registry_with(None), &server.host, &[]);
        let error = session.documents().load(&large).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // A tag that leads to something that is too large.
    let head = Reply::new(200)
        .with("Docker-Content-Digest", Digest::of(MANIFEST))
        .with("Content-Length", 5 << 20);
    let server = Server::start(move |_| head.clone());
    let error = session(&registry_with(None), &server.host, &[])
        .head(&tag())
        .unwrap_err();
    assert!(
        error.to_string().contains("a manifest of 5242880 bytes"),
        "{error}"
    );
}

#[test]
fn a_proxy_is_asked_for_what_is_not_excepted() {
    let proxy = Server::start(|seen| match seen.path.strip_prefix("http://reg.example") {
        Some(path) => public(&Seen {
            path: path.to_owned(),
            ..seen.clone()
        }),
        None => Reply::new(500),
    });
    let certs = tempfile::tempdir().unwrap();
    hosts_toml(certs.path(), "reg.example", "server = 'http://reg.example'");
    let address = format!("http://user:hunter2@{}", proxy.host);
    let settings = RegistrySettings {
        certs_dirs: vec![certs.path().to_owned()],
        patience: patience(),
        proxies: Proxies::from_environment(|name| (name == "http_proxy").then(|| address.clone()))
            .unwrap(),
        ..RegistrySettings::default()
    };
    assert!(!format!("{settings:?}").contains("hunter2"));
    let registry = opened(settings);
    session(&registry, "reg.example", &[]).head(&tag()).unwrap();
    let seen = proxy.seen();
    assert_eq!(
        seen[0].get("proxy-authorization"),
        Some("Basic dXNlcjpodW50ZXIy")
    );
    assert!(!format!("{registry:?}").contains("hunter2"));
    // Loopback never is.
    let server = Server::start(public);
    session(&registry, &server.host, &[]).head(&tag()).unwrap();
    assert_eq!((proxy.seen().len(), server.seen().len()), (1, 1));
}
