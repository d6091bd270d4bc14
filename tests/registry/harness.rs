//! That what the stories stand on does what it says, seen by other programs.

use super::registry::http::request;
use super::registry::proxy::{Fault, Gate, On, Proxy};
use super::registry::push::{Repository, digest};
use super::registry::run;
use super::registry::server::{Auth, PASSWORD, Registry, Setup, USER};
use super::registry::tls::Authority;
use super::registry::tokens::{TokenServer, Tokens};
use super::site::{layers, push};
use super::until;
use std::process::Command;

/// Whether `skopeo` can read an image at a registry, and what it says if not.
fn inspect(options: &[&str], image: &str) -> Result<String, String> {
    let output = Command::new("skopeo")
        .args(["inspect", "--format", "{{.Digest}}"])
        .args(options)
        .arg(format!("docker://{image}"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

const PLAIN: &str = "--tls-verify=false";

/// What `curl` gets, with its exit code.
fn curl(arguments: &[&str]) -> (i32, Vec<u8>) {
    let output = Command::new("curl")
        .args(["--silent", "--max-time", "30"])
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code().unwrap(), output.stdout)
}

#[test]
fn a_registry_serves_what_was_pushed_and_knows_passwords() {
    let open = Registry::open();
    let pushed = push(&open, "team/app:1", layers(1, 2, 1000));
    let found = inspect(&[PLAIN], &pushed.at(open.address()));
    assert_eq!(found, Ok(pushed.image.manifest.digest.clone()));

    let basic = open.with_auth(Auth::Basic);
    let image = pushed.at(basic.address());
    let creds = format!("--creds={USER}:{PASSWORD}");
    inspect(&[PLAIN, "--no-creds"], &image).unwrap_err();
    inspect(&[PLAIN, "--creds=robot:wrong"], &image).unwrap_err();
    inspect(&[PLAIN, &creds], &image).unwrap();

    // It comes back where it was.
    let mut open = open;
    open.stop();
    inspect(&[PLAIN], &pushed.at(open.address())).unwrap_err();
    open.resume();
    inspect(&[PLAIN], &pushed.at(open.address())).unwrap();
}

#[test]
fn a_registry_believes_the_token_server() {
    let tokens = TokenServer::start();
    tokens.account("ann", "her password", &["team/app"]);
    tokens.account("bob", "his password", &["other"]);
    tokens.public("free");
    let open = Registry::open();
    let pushed = push(&open, "team/app:1", layers(1, 1, 1000));
    let free = push(&open, "free:1", layers(2, 1, 1000));
    let guarded = open.with_auth(tokens.auth());
    let image = pushed.at(guarded.address());
    inspect(&[PLAIN, "--no-creds"], &image).unwrap_err();
    inspect(&[PLAIN, "--creds=ann:wrong"], &image).unwrap_err();
    inspect(&[PLAIN, "--creds=bob:his password"], &image).unwrap_err();
    inspect(&[PLAIN, "--creds=ann:her password"], &image).unwrap();
    inspect(&[PLAIN, "--no-creds"], &free.at(guarded.address())).unwrap();
    tokens.give(Tokens::Expired);
    inspect(&[PLAIN, "--creds=ann:her password"], &image).unwrap_err();
    assert!(tokens.asked().iter().any(|one| one.user == "ann"));
}

#[test]
fn a_registry_speaks_tls_with_an_authority_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path());
    let registry = Registry::start(Setup {
        tls: Some(authority.server("server")),
        ..Setup::default()
    });
    let url = format!("https://{}/v2/", registry.address());
    let ca = authority.own.certificate.to_str().unwrap();
    assert_eq!(curl(&["--cacert", ca, &url]).0, 0);
    assert_eq!(curl(&[&url]).0, 60, "nobody else trusts it");
}

/// A registry with one blob, and its path.
fn with_blob(bytes: &[u8]) -> (Registry, String) {
    let registry = Registry::open();
    Repository::new(registry.address(), "r").blob("application/octet-stream", bytes);
    let path = format!("/v2/r/blobs/{}", digest(bytes));
    (registry, path)
}

#[test]
fn a_proxy_passes_everything_and_counts_it() {
    let registry = Registry::open();
    let pushed = push(&registry, "team/app:1", layers(1, 3, 100_000));
    let proxy = Proxy::to(registry.address());
    let dir = tempfile::tempdir().unwrap();
    run(Command::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
        ])
        .arg(format!("docker://{}", pushed.at(&proxy.address())))
        .arg(format!("oci:{}:x", dir.path().display())));
    for layer in &pushed.image.layers {
        let copied = dir
            .path()
            .join("blobs")
            .join(layer.digest.replace(':', "/"));
        assert_eq!(digest(&std::fs::read(copied).unwrap()), layer.digest);
        assert_eq!(proxy.requests("GET", &layer.digest), 1);
        assert_eq!(proxy.bytes(&layer.digest), layer.size);
    }
    assert_eq!(proxy.bytes("/blobs/"), pushed.bytes());
    assert!(proxy.exchanges().iter().all(|one| one.is_over && !one.left));
}

#[test]
fn a_proxy_does_the_harm_that_it_is_asked_for() {
    let bytes: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let (registry, path) = with_blob(&bytes);
    let proxy = Proxy::to(registry.address());
    let url = format!("http://{}{path}", proxy.address());
    let once = || On::blob("").times(1);
    assert_eq!(curl(&[&url]), (0, bytes.clone()));

    proxy.on(once(), Fault::Cut(70_001));
    assert_eq!(curl(&[&url]), (18, bytes[..70_001].to_vec()));
    // The same place of the blob, whatever part of it is asked for.
    proxy.on(once(), Fault::Cut(70_001));
    assert_eq!(
        curl(&["-r", "70000-", &url]),
        (18, bytes[70_000..70_001].to_vec())
    );

    proxy.on(once().after(1), Fault::Corrupt(123_456));
    assert_eq!(curl(&[&url]), (0, bytes.clone()));
    let mut wrong = bytes.clone();
    wrong[123_456] ^= 1;
    assert_eq!(curl(&[&url]), (0, wrong.clone()));
    proxy.on(once(), Fault::Corrupt(123_456));
    assert_eq!(
        curl(&["-r", "123400-", &url]),
        (0, wrong[123_400..].to_vec())
    );

    proxy.on(once(), Fault::NoRange);
    assert_eq!(curl(&["-r", "70000-", &url]), (0, bytes.clone()));
    proxy.on(once(), Fault::busy("7"));
    let answer = request(&proxy.address(), "GET", &path, &[], b"");
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.head.get("Retry-After"), Some("7"));
    for code in [404, 416, 500] {
        proxy.on(once(), Fault::status(code));
        assert_eq!(
            request(&proxy.address(), "GET", &path, &[], b"").status(),
            code
        );
    }
    proxy.on(once(), Fault::Throttle(100 << 20));
    assert_eq!(curl(&[&url]), (0, bytes.clone()));

    let elsewhere = Proxy::to(registry.address());
    let to = format!("http://{}", elsewhere.address());
    proxy.on(once(), Fault::Redirect(to));
    let login = format!("{USER}:{PASSWORD}");
    assert_eq!(curl(&["-L", "-u", &login, &url]), (0, bytes));
    assert_eq!(elsewhere.exchanges().len(), 1);
    let shown = proxy.exchanges().pop().unwrap().authorization;
    assert!(shown.unwrap().starts_with("Basic "));
}

#[tokio::test]
async fn a_proxy_holds_an_answer_until_it_is_told_to_go_on() {
    let bytes = vec![7; 300_000];
    let (registry, path) = with_blob(&bytes);
    let proxy = Proxy::to(registry.address());
    let gate = Gate::new();
    proxy.on(On::blob("").times(2), Fault::Hold(100_000, gate.clone()));
    let url = format!("http://{}{path}", proxy.address());
    let client = tokio::task::spawn_blocking(move || curl(&[&url]));
    until("the gate", || gate.waiting() == 1).await;
    assert_eq!(proxy.bytes("/blobs/"), 100_000);
    // Another client does not wait.
    let url = format!("http://{}{path}", proxy.address());
    let (code, some) = curl(&["--max-time", "1", &url]);
    assert_eq!((code, some.len()), (28, 100_000));
    until("the one that left", || {
        proxy.exchanges().iter().any(|one| one.left)
    })
    .await;
    gate.open();
    assert_eq!(client.await.unwrap(), (0, bytes));
}
