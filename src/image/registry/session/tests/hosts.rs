//! Which hosts are asked, and what each of them gets to see.

use super::super::super::download::{BlobFault, BlobPlaces};
use super::*;

/// A host of the registry `reg.example`, in the file's words.
fn host(server: &Server, more: &str) -> String {
    format!("[host.\"http://{}\"]\n{more}\n", server.host)
}

/// A registry `reg.example` with mirrors.
fn mirrored(upstream: &Server, hosts: &[String]) -> (Arc<Registry>, tempfile::TempDir) {
    let certs = tempfile::tempdir().unwrap();
    let text = format!("server = \"http://{}\"\n{}", upstream.host, hosts.concat());
    hosts_toml(certs.path(), "reg.example", &text);
    (registry_with(Some(certs.path())), certs)
}

#[test]
fn mirrors_are_asked_first_and_passed_over_when_they_fail() {
    let dead = {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        server.local_addr().unwrap().to_string()
    };
    for (status, reached) in [(404, 1), (500, 1), (503, 1), (401, 1), (403, 1), (418, 1)] {
        let mirror = Server::start(move |_| Reply::new(status));
        let upstream = Server::start(public);
        let dead = format!("[host.\"http://{dead}\"]\n");
        let (registry, _certs) = mirrored(&upstream, &[dead, host(&mirror, "")]);
        let session = session(&registry, "reg.example", &[]);
        let head = session.head(&tag()).unwrap();
        assert_eq!(head.descriptor.digest, Digest::of(MANIFEST));
        let asked = "HEAD /v2/team/app/manifests/v1?ns=reg.example -";
        assert_eq!(mirror.lines(), vec![asked; reached], "{status}");
        assert_eq!(upstream.lines(), [asked]);
    }
}

#[test]
fn a_mirror_that_may_not_resolve_gives_content_only() {
    let mirror = Server::start(public);
    let upstream = Server::start(public);
    let (registry, _certs) = mirrored(&upstream, &[host(&mirror, "capabilities = ['pull']")]);
    let session = session(&registry, "reg.example", &[]);
    let head = session.head(&tag()).unwrap();
    session.documents().load(&head.descriptor).unwrap();
    session
        .head(&Reference::Digest(head.descriptor.digest))
        .unwrap();
    assert_eq!(upstream.lines().len(), 1);
    assert_eq!(mirror.lines().len(), 2);
}

#[test]
fn a_mirror_that_gives_other_bytes_is_passed_over() {
    let mirror = Server::start(|_| Reply::new(200).body(b"other"));
    let upstream = Server::start(public);
    let (registry, _certs) = mirrored(&upstream, &[host(&mirror, "capabilities = ['pull']")]);
    let session = session(&registry, "reg.example", &[]);
    let wanted = descriptor(MANIFEST, INDEX_TYPE);
    assert_eq!(session.documents().load(&wanted).unwrap(), MANIFEST);
    assert_eq!(mirror.lines().len(), 1);
}

#[test]
fn each_host_is_shown_what_is_meant_for_it() {
    let challenge = |_: &Seen| Reply::new(401).with("WWW-Authenticate", "Basic realm=x");
    let mirror = Server::start(challenge);
    let upstream = Server::start(challenge);
    let more = "header = {authorization = 'Custom pass3', x-mirror = ['a', 'b']}";
    let (registry, _certs) = mirrored(&upstream, &[host(&mirror, more)]);
    let keys = [
        ("reg.example", basic(Origin::Pod, "u", "pass1")),
        (upstream.host.as_str(), basic(Origin::Node, "u", "pass2")),
    ];
    let error = session(&registry, "reg.example", &keys)
        .head(&tag())
        .unwrap_err();
    assert!(!shown(&error).contains("pass"));
    // The registry's name is not the host that stands for it.
    let seen = mirror.lines();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].ends_with(" Custom pass3"), "{seen:?}");
    let seen = upstream.lines();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[1].ends_with("Basic dTpwYXNzMg=="), "{seen:?}");
}

#[test]
fn redirects_get_no_secrets_unless_they_stay() {
    let store = Server::start_at("127.0.0.2", public);
    let to = format!("http://{}/v2/team/app/manifests/v1", store.host);
    let registry_server = Server::start(move |seen| match seen.path.split('?').next().unwrap() {
        "/v2/team/app/manifests/v1" => Reply::new(307).with("Location", "/elsewhere"),
        _ if seen.get("authorization").is_none() => {
            Reply::new(401).with("WWW-Authenticate", "Basic realm=x")
        }
        _ => Reply::new(302).with("Location", &to),
    });
    let certs = tempfile::tempdir().unwrap();
    let text = "[header]\nx-secret = 'pass2'";
    hosts_toml(certs.path(), &registry_server.host, text);
    let registry = registry_with(Some(certs.path()));
    let keys = [(
        registry_server.host.as_str(),
        basic(Origin::Pod, "u", "pass1"),
    )];
    let session = session(&registry, &registry_server.host, &keys);
    let head = session.head(&tag()).unwrap();
    assert_eq!(head.accepted, Accepted::With(keys[0].1.clone()));
    for seen in registry_server.seen() {
        assert_eq!(seen.get("x-secret"), Some("pass2"));
    }
    let seen = store.seen();
    assert_eq!(
        (seen[0].get("authorization"), seen[0].get("x-secret")),
        (None, None)
    );
    // What is common goes along.
    assert!(seen[0].get("accept").unwrap().contains("manifest.list"));
}

#[test]
fn a_store_behind_the_registry_gets_no_credentials_even_if_it_asks() {
    let store = Server::start_at("127.0.0.2", |_| {
        Reply::new(401)
            .with("WWW-Authenticate", "Basic realm=x")
            .body("hunter2")
    });
    let to = format!("http://{}/x?signature=hunter2", store.host);
    let server = Server::start(move |_| Reply::new(302).with("Location", &to));
    let keys = [
        (server.host.as_str(), basic(Origin::Pod, "u", "pass1")),
        (store.host.as_str(), basic(Origin::Pod, "u", "pass2")),
    ];
    let error = session(&registry_with(None), &server.host, &keys)
        .head(&tag())
        .unwrap_err();
    let text = shown(&error);
    assert!(
        text.contains("answered 401") && !text.contains("hunter2"),
        "{text}"
    );
    assert!(
        store
            .seen()
            .iter()
            .all(|seen| seen.get("authorization").is_none())
    );
}

#[test]
fn blobs_begin_where_they_are_asked_to() {
    let digest = Digest::of(MANIFEST);
    let replies = [
        (200, None, None),
        (206, Some("bytes 5-9/10"), None),
        (206, Some("bytes 4-9/10"), None),
        (416, None, None),
        (404, None, None),
        (401, None, None),
        (429, None, Some("7")),
        (503, None, None),
        (418, None, None),
    ];
    let server = Server::start(move |seen| {
        let number: usize = seen.get("range").unwrap()[6..7].parse().unwrap();
        let number = number - 1;
        let (status, range, after) = replies[number];
        let mut reply = Reply::new(status).body(b"12345");
        reply
            .header
            .extend(range.map(|range| ("Content-Range".to_owned(), range.to_owned())));
        reply
            .header
            .extend(after.map(|after| ("Retry-After".to_owned(), after.to_owned())));
        reply
    });
    let session = session(&registry_with(None), &server.host, &[]);
    assert_eq!((session.count(), session.host(0)), (1, server.host.clone()));
    let begin = |offset: u64| {
        let begun = session
            .registry
            .wait(session.begin(0, &digest, offset))
            .unwrap();
        match begun {
            Ok(body) => format!("{} {:?}", body.offset, body.length),
            Err(BlobFault::Again { after, error }) => format!("again {after:?} {error}"),
            Err(BlobFault::Elsewhere(error)) => format!("elsewhere {error}"),
            Err(BlobFault::Range(error)) => format!("range {error}"),
        }
    };
    assert_eq!(begin(1), "0 Some(5)");
    // The offsets choose the answers, so this one is not what was asked for.
    assert!(begin(2).contains("elsewhere") && begin(2).contains("not the one"));
    assert!(begin(4).starts_with("range "), "{}", begin(4));
    assert!(begin(5).contains("was not found at"), "{}", begin(5));
    assert!(begin(6).starts_with("elsewhere ") && begin(6).contains("needs credentials"));
    assert!(begin(7).starts_with("again Some(7s) "), "{}", begin(7));
    assert!(begin(8).starts_with("again None "), "{}", begin(8));
    assert!(begin(9).contains("answered 418"), "{}", begin(9));
    let seen = server.seen();
    assert_eq!(seen[0].get("range"), Some("bytes=1-"));
    assert_eq!(seen[0].get("accept-encoding"), Some("identity"));
    assert_eq!(seen[0].path, format!("/v2/team/app/blobs/{digest}"));
}
