//! Hosts that cannot now.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// The first `count` answers are `reply`, then comes what was asked for.
fn after(count: usize, reply: Reply) -> Server {
    let so_far = AtomicUsize::new(0);
    Server::start(move |seen| match so_far.fetch_add(1, Ordering::Relaxed) {
        number if number < count => reply.clone(),
        _ => public(seen),
    })
}

#[test]
fn what_fails_for_a_while_is_tried_again() {
    for status in [408, 429, 500, 502, 503, 504] {
        let server = after(2, Reply::new(status));
        session(&registry_with(None), &server.host, &[])
            .head(&tag())
            .unwrap();
        assert_eq!(server.lines().len(), 3, "{status}");
    }
    // Not for ever, and the error is the last one.
    let server = after(100, Reply::new(503));
    let error = session(&registry_with(None), &server.host, &[])
        .head(&tag())
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Status { status: 503, .. }),
        "{error}"
    );
    assert_eq!(server.lines().len(), 3);
    // What will not change is not tried again.
    let server = after(100, Reply::new(404));
    let error = session(&registry_with(None), &server.host, &[])
        .head(&tag())
        .unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("team/app:v1 was not found at 127"),
        "{error}"
    );
    assert_eq!(server.lines().len(), 1);
}

#[test]
fn the_time_that_a_server_wants_is_given_to_it() {
    let server = after(1, Reply::new(429).with("Retry-After", "1"));
    let start = Instant::now();
    session(&registry_with(None), &server.host, &[])
        .head(&tag())
        .unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    // Not more than we have.
    for later in ["60", "Thu, 31 Dec 2099 23:59:59 GMT"] {
        let server = after(100, Reply::new(429).with("Retry-After", later));
        let start = Instant::now();
        let error = session(&registry_with(None), &server.host, &[])
            .head(&tag())
            .unwrap_err();
        assert!(
            matches!(error, RegistryError::Status { status: 429, .. }),
            "{error}"
        );
        assert!(start.elapsed() < Duration::from_secs(2));
        assert_eq!(server.lines().len(), 1);
    }
    // A date that is over is no time at all.
    let server = after(
        1,
        Reply::new(429).with("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT"),
    );
    session(&registry_with(None), &server.host, &[])
        .head(&tag())
        .unwrap();
}

#[test]
fn a_server_that_is_silent_is_not_waited_for() {
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_secs(20));
        Reply::new(200)
    });
    let start = Instant::now();
    let error = session(&registry_with(None), &server.host, &[])
        .head(&tag())
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("did not answer in time"),
        "{error}"
    );
    let patience = patience();
    assert!(start.elapsed() < patience.answer * patience.tries + Duration::from_secs(2));
}

#[test]
fn a_host_that_is_not_there_is_named_with_the_reason() {
    let host = {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        server.local_addr().unwrap().to_string()
    };
    let error = session(&registry_with(None), &host, &[])
        .head(&tag())
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&host) && text.contains("refused"), "{text}");
}
