//! Who is shown what.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

fn line(username: &str, password: &str) -> String {
    format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    )
}

fn identity(token: &str) -> Credential {
    Credential {
        origin: Origin::Node,
        login: Login::IdentityToken(Secret::new(token.to_owned())),
    }
}

#[test]
fn credentials_are_tried_in_order_and_the_right_one_is_kept() {
    let right = line("right", "pass2");
    let server = Server::start(move |seen| match seen.get("authorization") {
        Some(shown) if shown == right => public(seen),
        _ => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
    });
    let keys = [
        (server.host.as_str(), basic(Origin::Pod, "wrong", "pass1")),
        ("other.example", basic(Origin::Pod, "other", "pass3")),
        (server.host.as_str(), identity("pass4")),
        (server.host.as_str(), basic(Origin::Node, "right", "pass2")),
    ];
    let session = session(&registry_with(None), &server.host, &keys);
    let head = session.head(&tag()).unwrap();
    assert_eq!(head.accepted, Accepted::With(keys[3].1.clone()));
    session.documents().load(&head.descriptor).unwrap();
    let lines = server.lines();
    // Nothing, the wrong one, the right one; then only that.
    let shown: Vec<&str> = lines
        .iter()
        .map(|line| line.splitn(3, ' ').last().unwrap())
        .collect();
    let (wrong, right) = (line("wrong", "pass1"), line("right", "pass2"));
    assert_eq!(shown, ["-", &wrong, &right, &right]);
    let debug = format!("{session:?} {head:?}");
    assert!(
        (1..=4).all(|number| !debug.contains(&format!("pass{number}"))),
        "{debug}"
    );
}

#[test]
fn an_error_says_which_sources_were_refused_and_not_what_they_held() {
    // It even sends back what it was shown.
    let server = Server::start(|seen| {
        let shown = seen.get("authorization").unwrap_or_default();
        let body = format!(r#"{{"errors":[{{"code":"X","message":"{shown}"}}]}}"#);
        Reply::new(401)
            .with("WWW-Authenticate", "Basic realm=\"x\"")
            .body(body)
    });
    let registry = registry_with(None);
    let keys = [
        (server.host.as_str(), basic(Origin::Pod, "user1", "pass1")),
        (
            server.host.as_str(),
            basic(Origin::Provider("ecr".to_owned()), "user2", "pass2"),
        ),
    ];
    let error = session(&registry, &server.host, &keys)
        .head(&tag())
        .unwrap_err();
    let text = shown(&error);
    assert!(
        matches!(error, RegistryError::Unauthenticated { .. }),
        "{text}"
    );
    for part in [
        "team/app",
        "nodePublishSecretRef and the credential provider ecr",
        &server.host,
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("pass") && !text.contains("user1"), "{text}");
    let error = session(&registry, &server.host, &[])
        .head(&tag())
        .unwrap_err();
    let part = format!("there are none for {} (somebody was asked)", server.host);
    assert!(error.to_string().contains(&part), "{error}");
}

#[test]
fn what_a_registry_says_is_told_unless_it_is_a_secret() {
    for (message, told) in [("slow\\ndown", true), ("SECRET", false)] {
        let server = Server::start(move |seen| match seen.get("authorization") {
            None => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
            Some(shown) => {
                let message = message.replace("SECRET", shown);
                let body = format!(r#"{{"errors":[{{"code":"BAD","message":"{message}"}}]}}"#);
                Reply::new(400).body(body)
            }
        });
        let keys = [(server.host.as_str(), basic(Origin::Pod, "u", "pass1"))];
        let session = session(&registry_with(None), &server.host, &keys);
        let error = session.documents().load(&descriptor(MANIFEST, INDEX_TYPE));
        let text = error.unwrap_err().to_string();
        assert_eq!(text.contains("BAD: slow\\ndown"), told, "{text}");
        assert!(
            text.contains("answered 400") && !text.contains("Basic"),
            "{text}"
        );
    }
}

#[test]
fn access_that_is_denied_is_not_missing_credentials() {
    let server = Server::start(|seen| match seen.get("authorization") {
        None => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => Reply::new(403),
    });
    let keys = [(server.host.as_str(), basic(Origin::Pod, "u", "pass1"))];
    let error = session(&registry_with(None), &server.host, &keys)
        .head(&tag())
        .unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("with the pod's nodePublishSecretRef"),
        "{error}"
    );
}

/// A registry that wants tokens, and their server on another address. `give`
/// answers requests for tokens; a token `good…` is taken, but not `good-old`.
fn with_tokens(give: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Server, Server) {
    let tokens = Server::start_at("127.0.0.2", give);
    let challenge = format!(
        "Bearer realm=\"http://{}/token?a=b\",service=\"reg\",scope=\"repository:team/app:pull,push\"",
        tokens.host
    );
    let server = Server::start(move |seen| match seen.get("authorization") {
        Some(shown) if shown.starts_with("Bearer good") && shown != "Bearer good-old" => {
            public(seen)
        }
        _ => Reply::new(401).with("WWW-Authenticate", &challenge),
    });
    (server, tokens)
}

fn token(text: &str) -> Reply {
    Reply::new(200).body(format!(r#"{{"token":"{text}","expires_in":300}}"#))
}

#[test]
fn tokens_are_fetched_with_the_password_and_kept() {
    let (server, tokens) = with_tokens(|seen| match seen.get("authorization") {
        Some(shown) if shown == line("u", "pass1") => token("good-u"),
        Some(_) => Reply::new(401),
        None => token("good-public"),
    });
    let registry = registry_with(None);
    let right = basic(Origin::Pod, "u", "pass1");
    for round in 0..2 {
        let keys = [(server.host.as_str(), right.clone())];
        let session = session(&registry, &server.host, &keys);
        let head = session.head(&tag()).unwrap();
        assert_eq!(head.accepted, Accepted::With(right.clone()));
        session.documents().load(&head.descriptor).unwrap();
        let expected = match round {
            0 => 1,
            _ => 0,
        };
        let asked = tokens.lines();
        assert_eq!(asked.len(), expected);
        for asked in asked {
            let query = "/token?a=b&service=reg&scope=repository%3Ateam%2Fapp%3Apull";
            assert_eq!(asked, format!("GET {query} {}", line("u", "pass1")));
        }
        // The registry never sees the password.
        assert!(server.lines().iter().all(|line| !line.contains("Basic")));
    }
    // Another credential has a token of its own; one that is refused leaves the
    // public one.
    let keys = [(server.host.as_str(), basic(Origin::Pod, "u", "pass2"))];
    let head = session(&registry, &server.host, &keys)
        .head(&tag())
        .unwrap();
    assert_eq!(head.accepted, Accepted::Anonymous);
    assert_eq!(tokens.lines().len(), 2);
    assert!(!format!("{registry:?}").contains("good"));
}

#[test]
fn a_token_that_ended_is_replaced() {
    let old = Mutex::new(true);
    let (server, tokens) = with_tokens(move |_| {
        let first = std::mem::take(&mut *old.lock().unwrap());
        token(if first { "good-old" } else { "good-new" })
    });
    let registry = registry_with(None);
    let head = session(&registry, &server.host, &[]).head(&tag()).unwrap();
    assert_eq!(head.accepted, Accepted::Anonymous);
    assert_eq!(tokens.lines().len(), 2);
    session(&registry, &server.host, &[]).head(&tag()).unwrap();
    assert_eq!(tokens.lines().len(), 0);
}

#[test]
fn a_token_that_is_over_by_the_clock_is_not_shown() {
    let (server, tokens) =
        with_tokens(|_| Reply::new(200).body(r#"{"access_token":"good","expires_in":0.001}"#));
    let registry = registry_with(None);
    for _ in 0..2 {
        session(&registry, &server.host, &[]).head(&tag()).unwrap();
        assert_eq!(tokens.lines().len(), 1);
    }
    assert_eq!(server.lines().len(), 4);
}

#[test]
fn a_token_is_never_good_enough() {
    let (server, tokens) = with_tokens(|_| token("good-old"));
    let error = session(&registry_with(None), &server.host, &[])
        .head(&tag())
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Unauthenticated { .. }),
        "{error}"
    );
    assert_eq!(tokens.lines().len(), 2);
}

#[test]
fn identity_tokens_are_exchanged() {
    for old in [false, true] {
        let (server, tokens) = with_tokens(move |seen| match seen.method.as_str() {
            "POST" if old => Reply::new(404),
            "POST" if seen.body.contains("refresh_token=pass%2F1") => token("good"),
            "GET" if seen.get("authorization") == Some(&line("", "pass/1")) => token("good"),
            _ => Reply::new(401),
        });
        let keys = [(server.host.as_str(), identity("pass/1"))];
        let head = session(&registry_with(None), &server.host, &keys)
            .head(&tag())
            .unwrap();
        assert_eq!(head.accepted, Accepted::With(keys[0].1.clone()));
        let seen = tokens.seen();
        assert_eq!(seen.len(), if old { 2 } else { 1 });
        assert_eq!(
            seen[0].body,
            "grant_type=refresh_token&client_id=aufs-csi&service=reg\
             &scope=repository%3Ateam%2Fapp%3Apull&refresh_token=pass%2F1"
        );
    }
}

#[test]
fn a_token_of_the_registry_is_shown_as_it_is() {
    let (server, tokens) = with_tokens(|_| Reply::new(401));
    let credential = Credential {
        origin: Origin::Command,
        login: Login::RegistryToken(Secret::new("good-mine".to_owned())),
    };
    let keys = [(server.host.as_str(), credential)];
    let head = session(&registry_with(None), &server.host, &keys)
        .head(&tag())
        .unwrap();
    assert_eq!(head.accepted, Accepted::With(keys[0].1.clone()));
    assert!(tokens.lines().is_empty());
}

#[test]
fn many_wait_for_one_token() {
    let (server, tokens) = with_tokens(|_| {
        std::thread::sleep(Duration::from_millis(200));
        token("good")
    });
    let registry = registry_with(None);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| session(&registry, &server.host, &[]).head(&tag()).unwrap());
        }
    });
    assert_eq!(tokens.lines().len(), 1);
}

#[test]
fn what_a_token_server_says_wrong_is_an_error_without_its_words() {
    for (reply, part) in [
        (Reply::new(200).body("hunter2"), "not the JSON"),
        (
            Reply::new(200).body(vec![b'x'; 70 << 10]),
            "more than 65536 bytes",
        ),
        (Reply::new(404).body("hunter2"), "answered 404"),
        (Reply::new(503).body("hunter2"), "answered 503"),
        (
            Reply::new(302).with("Location", "/token?hunter2"),
            "redirects more than",
        ),
    ] {
        let (server, _tokens) = with_tokens(move |_| reply.clone());
        let error = session(&registry_with(None), &server.host, &[])
            .head(&tag())
            .unwrap_err();
        let text = shown(&error);
        assert!(text.contains(part) && !text.contains("hunter2"), "{text}");
    }
}
