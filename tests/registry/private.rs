//! Credentials: right, wrong, missing, over; from wherever they may come.

use super::registry::proxy::Proxy;
use super::registry::server::{Auth, PASSWORD, Registry, USER};
use super::registry::tokens::{TokenServer, Tokens};
use super::site::{Desk, Pushed, Site, docker_config, layers, push};
use super::support::model::{flatten, merge};
use super::support::tree::{Compared, assert_same, read};
use std::fs;
use tonic::{Code, Status};

/// A registry that everybody may fill, the same one behind a lock, and the lock.
fn guarded(name: &str, seed: u64) -> (Registry, Pushed, Registry) {
    let open = Registry::open();
    let pushed = push(&open, name, layers(seed, 3, 20_000));
    let locked = open.with_auth(Auth::Basic);
    (open, pushed, locked)
}

/// The pod's author learns what is missing and nothing else.
fn is_about_credentials(status: &Status, pushed: &Pushed) {
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let text = status.message();
    assert!(text.contains("nodePublishSecretRef"), "{text}");
    let repository = pushed.name.split(':').next().unwrap();
    assert!(text.contains(repository), "{text}");
    for secret in [PASSWORD, "not-the-password", "Bearer", "Basic "] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn a_password_opens_what_is_locked() {
    let (_open, pushed, locked) = guarded("private/basic:1", 101);
    let site = Site::start().await;
    let image = pushed.at(locked.address());
    let pod = || site.kubelet.volume(&image);

    let mut without = pod();
    is_about_credentials(&site.refused(&mut without).await, &pushed);
    let mut wrong = pod().with_login(locked.address(), USER, "not-the-password");
    let status = site.refused(&mut wrong).await;
    is_about_credentials(&status, &pushed);
    assert!(
        status.message().contains("secret"),
        "the source: {status:?}"
    );
    // Of another registry, and so nothing for this one.
    let mut elsewhere = pod().with_login("other.example", USER, PASSWORD);
    is_about_credentials(&site.refused(&mut elsewhere).await, &pushed);
    assert!(site.node.layers().is_empty());

    let mut right = pod().with_login(locked.address(), USER, PASSWORD);
    site.ready(&mut right).await;
    pushed.is_at("with the password", &right);
    // The longest name that matches counts.
    let mut nearer = pod();
    let config = docker_config(&[
        (locked.address(), USER, "not-the-password"),
        (&format!("{}/private", locked.address()), USER, PASSWORD),
    ]);
    nearer.secrets = vec![(".dockerconfigjson".to_owned(), config)];
    site.ready(&mut nearer).await;
    // And the older kind of secret.
    let mut legacy = pod();
    let config: serde_json::Value =
        serde_json::from_str(&docker_config(&[(locked.address(), USER, PASSWORD)])).unwrap();
    legacy.secrets = vec![(".dockercfg".to_owned(), config["auths"].to_string())];
    site.ready(&mut legacy).await;
    for mut volume in [right, nearer, legacy] {
        site.kubelet.delete(&mut volume).await;
    }
    site.node.has_no_volumes("afterwards");
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_is_an_error_that_shows_nothing_of_it() {
    let (_open, pushed, locked) = guarded("private/broken:1", 102);
    let site = Site::start().await;
    for text in [
        "",
        "{",
        "planted-garbage",
        "{\"auths\":7}",
        "{\"auths\":{\"x\":{\"auth\":\"planted-garbage\"}}}",
    ] {
        let mut volume = site.kubelet.volume(&pushed.at(locked.address()));
        volume.secrets = vec![(".dockerconfigjson".to_owned(), text.to_owned())];
        let status = site.refused(&mut volume).await;
        assert!(
            matches!(status.code(), Code::InvalidArgument | Code::Unauthenticated),
            "{status:?}"
        );
        assert!(!status.message().contains("planted"), "{status:?}");
        site.end(volume).await;
    }
    assert!(!site.driver.log().contains("planted"));
}

#[tokio::test]
async fn the_operators_credentials_are_for_all_pods_and_are_read_again() {
    let (_open, pushed, locked) = guarded("private/node:1", 103);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let write = |password: &str| {
        let text = docker_config(&[(locked.address(), USER, password)]);
        // As a mounted secret changes: at once.
        fs::write(dir.path().join("new"), text).unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
    };
    write("not-the-password");
    let site = Site::with(&["--registry-credentials", file.to_str().unwrap()]).await;
    let image = pushed.at(locked.address());
    let mut volume = site.kubelet.volume(&image);
    let status = site.refused(&mut volume).await;
    is_about_credentials(&status, &pushed);
    write(PASSWORD);
    site.ready(&mut volume).await;
    pushed.is_at("with the operator's", &volume);
    // A pod's own wrong secret does not keep it from those.
    let mut wrong =
        site.kubelet
            .volume(&image)
            .with_login(locked.address(), USER, "not-the-password");
    site.ready(&mut wrong).await;
    site.kubelet.delete(&mut wrong).await;
    site.end(volume).await;
}

#[tokio::test]
async fn a_token_is_got_with_the_pods_password_and_used_again() {
    let tokens = TokenServer::start();
    tokens.account("ann", "her-password", &["private/token"]);
    tokens.account("bob", "his-password", &["other"]);
    tokens.public("public/free");
    let open = Registry::open();
    let pushed = push(&open, "private/token:1", layers(104, 7, 20_000));
    let free = push(&open, "public/free:1", layers(105, 2, 20_000));
    let locked = open.with_auth(tokens.auth());
    let site = Site::start().await;
    let image = pushed.at(locked.address());
    let pod = |user: &str, password: &str| {
        let volume = site.kubelet.volume(&image);
        volume.with_login(locked.address(), user, password)
    };
    let mut volume = site.kubelet.volume(&image);
    is_about_credentials(&site.refused(&mut volume).await, &pushed);
    is_about_credentials(&site.refused(&mut pod("ann", "wrong")).await, &pushed);
    // Known there, but not for this: it gets a token that is good for nothing.
    let status = site.refused(&mut pod("bob", "his-password")).await;
    assert!(
        matches!(
            status.code(),
            Code::PermissionDenied | Code::Unauthenticated
        ),
        "{status:?}"
    );
    assert!(site.node.layers().is_empty());

    let before = tokens.given().len();
    let mut right = pod("ann", "her-password");
    site.ready(&mut right).await;
    pushed.is_at("with a token", &right);
    let given = tokens.given().len() - before;
    assert!(given <= 2, "{given} tokens for one image");
    let asked = tokens.asked().pop().unwrap();
    assert_eq!(asked.user, "ann");
    let query = asked.query.replace("%3A", ":").replace("%2F", "/");
    assert!(query.contains("repository:private/token:pull"), "{query}");
    assert!(!query.contains("push"), "{query}");
    site.kubelet.delete(&mut right).await;

    // Everybody's, with a token all the same.
    let mut volume = site.kubelet.volume(&free.at(locked.address()));
    site.ready(&mut volume).await;
    free.is_at("anonymously", &volume);
    // A password that is wrong does not keep anybody from what is everybody's.
    let mut wrong = site.kubelet.volume(&free.at(locked.address())).with_login(
        locked.address(),
        "ann",
        "wrong",
    );
    site.ready(&mut wrong).await;
    site.kubelet.delete(&mut wrong).await;
    site.end(volume).await;
}

#[tokio::test]
async fn tokens_that_are_over_or_not_to_be_had_are_told() {
    let tokens = TokenServer::start();
    tokens.account("ann", "her-password", &["private/over"]);
    let open = Registry::open();
    let pushed = push(&open, "private/over:1", layers(106, 3, 20_000));
    let locked = open.with_auth(tokens.auth());
    let site = Site::start().await;
    let pod = || {
        let volume = site.kubelet.volume(&pushed.at(locked.address()));
        volume.with_login(locked.address(), "ann", "her-password")
    };
    tokens.give(Tokens::Expired);
    let mut volume = pod();
    let status = site.refused(&mut volume).await;
    is_about_credentials(&status, &pushed);
    // The server of tokens is in trouble, which is nobody's password's fault.
    tokens.give(Tokens::Status(503));
    let status = site.refused(&mut volume).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    for token in tokens.given() {
        assert!(!status.message().contains(&token));
        assert!(!site.driver.log().contains(&token));
    }
    // Those that last for a moment are got again.
    tokens.give(Tokens::Short(1));
    site.ready(&mut volume).await;
    pushed.is_at("with short tokens", &volume);
    site.end(volume).await;
}

#[tokio::test]
async fn an_identity_token_is_shown_to_the_token_server_alone() {
    let tokens = TokenServer::start();
    tokens.account("ann", "her-password", &["private/identity"]);
    tokens.identity_token("ann", "identity-of-ann");
    let open = Registry::open();
    let pushed = push(&open, "private/identity:1", layers(107, 2, 20_000));
    let locked = open.with_auth(tokens.auth());
    let proxy = Proxy::to(locked.address());
    let site = Site::start().await;
    let mut volume = site.kubelet.volume(&pushed.at(&proxy.address()));
    let config = serde_json::json!({"auths": {proxy.address(): {
        "auth": "PHRva2VuPjo=", "identitytoken": "identity-of-ann",
    }}});
    volume.secrets = vec![(".dockerconfigjson".to_owned(), config.to_string())];
    site.ready(&mut volume).await;
    pushed.is_at("with an identity", &volume);
    assert!(
        tokens
            .asked()
            .iter()
            .any(|one| one.method == "POST" && one.user == "ann")
    );
    for one in proxy.exchanges() {
        let shown = one.authorization.unwrap_or_default();
        assert!(!shown.contains("identity-of-ann"), "{shown}");
    }
    site.end(volume).await;
}

#[test]
fn the_command_line_takes_credentials_of_the_person() {
    let (_open, pushed, locked) = guarded("private/command:1", 108);
    let image = pushed.at(locked.address());
    let desk = Desk::new();
    for arguments in [
        &[&*image][..],
        &["--creds", "robot:not-the-password", &image],
    ] {
        let said = desk.fails(arguments);
        assert!(said.contains("credentials"), "{said}");
        assert!(!said.contains("not-the-password"), "{said}");
    }
    assert!(super::driver::names(&desk.path("store/diff")).is_empty());
    let creds = format!("{USER}:{PASSWORD}");
    let staged = desk.stage(&["--creds", &creds, &image]);
    assert_eq!(staged[0]["layers"], 3);

    let config = docker_config(&[(locked.address(), USER, PASSWORD)]);
    let desk = Desk::new();
    fs::write(desk.path("auth.json"), &config).unwrap();
    let file = desk.path("auth.json");
    desk.stage(&["--authfile", file.to_str().unwrap(), &image]);
    // And where docker keeps it.
    let desk = Desk::new();
    fs::create_dir_all(desk.path("home/.docker")).unwrap();
    fs::write(desk.path("home/.docker/config.json"), &config).unwrap();
    desk.stage(&[&image]);
}

#[tokio::test]
async fn of_several_images_the_pod_must_be_given_each() {
    let (open, pushed, locked) = guarded("private/several:1", 131);
    let other = push(&open, "private/open:1", layers(132, 2, 20_000));
    let site = Site::start().await;
    let images = format!(
        "{},{}",
        other.at(open.address()),
        pushed.at(locked.address())
    );
    let pod = || {
        let mut volume = site.kubelet.volume("");
        volume.attributes = vec![("images".to_owned(), images.clone())];
        volume
    };
    let mut without = pod();
    is_about_credentials(&site.refused(&mut without).await, &pushed);
    let mut right = pod().with_login(locked.address(), USER, PASSWORD);
    site.ready(&mut right).await;
    let trees = [&other, &pushed].map(|pushed| flatten(&pushed.layers).unwrap());
    let actual = read(&right.target()).unwrap();
    assert_same("both", &merge(&trees), &actual, Compared::ALL);
    // What is here by now, as one, is nobody's for that.
    let mut without = pod();
    is_about_credentials(&site.refused(&mut without).await, &pushed);
    let mut again = pod().with_login(locked.address(), USER, PASSWORD);
    site.ready(&mut again).await;
    site.kubelet.delete(&mut again).await;
    site.end(right).await;
}
