//! One request and its answer, redirects followed.
//!
//! **Invariant:** what is secret in a request goes to the scheme, host and port
//! that it is meant for, and to nothing that this host sends us to. Nothing that
//! began with TLS goes on without.

use super::client::{Clients, Transport};
use super::error::RegistryError;
use super::hosts::Origin;
use crate::image::printable;
use reqwest::header::{HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, Url};
use std::error::Error;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

/// The most redirects of one request.
const MAX_REDIRECTS: usize = 10;

/// A request.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) transport: &'a Transport,
    /// For the URL's own host only.
    pub(super) own: HeaderMap,
    /// For every host that the request gets to.
    pub(super) common: HeaderMap,
    /// Not sent anywhere else either.
    pub(super) form: Option<Zeroizing<String>>,
    /// When the head of the answer has to be there.
    pub(super) deadline: Instant,
}

/// An answer, its body not yet read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// Whether another host than the one that was asked gave it.
    pub(super) is_foreign: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Broken {
    /// The host was not reached or did not answer; it may later.
    Unreachable {
        /// Why, in a few words.
        reason: String,
        /// Whether it is there and speaks no TLS.
        without_tls: bool,
    },
    /// What it answered is of no use.
    Malformed(String),
    /// We cannot ask as we were told to.
    Config(RegistryError),
}

impl Broken {
    fn in_time() -> Self {
        Broken::Unreachable {
            reason: "it did not answer in time".to_owned(),
            without_tls: false,
        }
    }
}

/// Sends a request, and sends it on where the answer says so.
pub(super) async fn send(clients: &Clients, call: Call<'_>) -> Result<Answer, Broken> {
    let meant_for = Origin::of(&call.url);
    let mut url = call.url;
    let mut form = call.form;
    for _ in 0..=MAX_REDIRECTS {
        let is_own = Origin::of(&url) == meant_for;
        let transport = match is_own {
            true => call.transport,
            false => &call.transport.elsewhere(),
        };
        let client = clients.get(transport).map_err(Broken::Config)?;
        let mut request = client
            .request(call.method.clone(), url.clone())
            .headers(call.common.clone());
        if is_own {
            request = request.headers(call.own.clone());
        }
        let is_form = form.is_some();
        if let Some(form) = form.take() {
            // The library's copy is its own.
            request = request.body(form.as_str().to_owned());
        }
        let response = match timeout_at(call.deadline, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(broken(&error)),
            Err(_) => return Err(Broken::in_time()),
        };
        let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        if !is_redirect || is_form {
            return Ok(Answer {
                response,
                is_foreign: !is_own,
            });
        }
        let location = response.headers().get(LOCATION);
        let location = location.map(HeaderValue::as_bytes);
        url = target(&url, location).map_err(|reason| Broken::Malformed(reason.to_owned()))?;
    }
    Err(Broken::Malformed(format!(
        "it redirects more than {MAX_REDIRECTS} times"
    )))
}

/// Where an answer sends us.
fn target(from: &Url, location: Option<&[u8]>) -> Result<Url, &'static str> {
    let location = location.and_then(|location| std::str::from_utf8(location).ok());
    let location = location.ok_or("it redirects to nowhere")?;
    let mut url = from
        .join(location)
        .map_err(|_| "it redirects to what is no URL")?;
    match (from.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err("it redirects from TLS to plain HTTP"),
        _ => return Err("it redirects to something else than HTTP"),
    }
    // They would become credentials, which are not for a host to choose.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    Ok(url)
}

/// The rest of an answer, if it has at most `limit` bytes.
pub(super) async fn body(
    response: &mut Response,
    limit: u64,
    deadline: Instant,
) -> Result<Zeroizing<Vec<u8>>, Broken> {
    let mut bytes = Zeroizing::new(Vec::new());
    loop {
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(None)) => return Ok(bytes),
            Ok(Ok(Some(chunk))) if (bytes.len() + chunk.len()) as u64 > limit => {
                return Err(Broken::Malformed(format!("it has more than {limit} bytes")));
            }
            Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
            Ok(Err(error)) => return Err(broken(&error)),
            Err(_) => return Err(Broken::in_time()),
        }
    }
}

/// A time from now on.
pub(super) fn within(limit: Duration) -> Instant {
    Instant::now() + limit
}

/// What an error of the library means. Its own text has the URL, with what a
/// host may have put into its query; that of its causes has not.
fn broken(error: &reqwest::Error) -> Broken {
    if error.is_timeout() {
        let reason = match error.is_connect() {
            true => "no connection came about in time",
            false => "it did not answer in time",
        };
        return Broken::Unreachable {
            reason: reason.to_owned(),
            without_tls: false,
        };
    }
    let mut reason = "the connection failed".to_owned();
    let mut without_tls = false;
    let mut is_name = false;
    let mut cause = error.source();
    while let Some(inner) = cause {
        reason = inner.to_string();
        // The library's word for it; what the resolver says comes behind.
        is_name |= error.is_connect() && reason == "dns error";
        without_tls |= error.is_connect() && is_other_than_tls(inner);
        cause = inner.source();
    }
    if is_name {
        reason = unknown_name(&reason);
    }
    Broken::Unreachable {
        reason: printable(&reason),
        without_tls,
    }
}

/// What a resolver's failure means to whoever wrote the name.
fn unknown_name(said: &str) -> String {
    // It goes on with the question as the resolver's own data structure.
    match said.starts_with("no record") {
        true => "the node's name servers do not know its name".to_owned(),
        false => format!("its name cannot be resolved: {said}"),
    }
}

/// Whether a cause of a failed connection looks like a host that has no TLS: it
/// answered with something else, or hung up at our first message.
fn is_other_than_tls(cause: &(dyn Error + 'static)) -> bool {
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidMessage(_));
    }
    let Some(error) = cause.downcast_ref::<io::Error>() else {
        return false;
    };
    let hung_up = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
    // What an I/O error wraps is not among its sources, and may be one again.
    let is_inside = error
        .get_ref()
        .is_some_and(|inner| is_other_than_tls(inner));
    is_inside || hung_up.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_known_is_told_in_words() {
        let said = "no records found for Query { name: Name(\"r.example.\"), query_type: AAAA }";
        let words = unknown_name(said);
        assert_eq!(words, "the node's name servers do not know its name");
        let words = unknown_name("request timed out");
        assert_eq!(words, "its name cannot be resolved: request timed out");
    }

    #[test]
    fn redirects_lead_to_http_and_never_out_of_tls() {
        for (from, location, expected) in [
            ("https://a.b/v2/x", "/y?z#f", Ok("https://a.b/y?z")),
            ("https://a.b/v2/x", "https://u:p@c.d/y", Ok("https://c.d/y")),
            ("https://a.b/v2/x", "//c.d/y", Ok("https://c.d/y")),
            ("http://a.b/v2/x", "http://c.d/y", Ok("http://c.d/y")),
            ("http://a.b/v2/x", "https://c.d/y", Ok("https://c.d/y")),
            ("https://a.b/v2/x", "http://a.b/v2/x", Err("plain HTTP")),
            ("https://a.b/v2/x", "ftp://a.b/", Err("something else")),
            (
                "http://a.b/v2/x",
                "file:///etc/passwd",
                Err("something else"),
            ),
            ("http://a.b/v2/x", "http://", Err("no URL")),
        ] {
            let from: Url = from.parse().unwrap();
            let found = target(&from, Some(location.as_bytes()));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_str(), expected),
                (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
                (found, _) => panic!("{location}: {found:?}"),
            }
        }
        let from: Url = "https://a.b".parse().unwrap();
        assert!(target(&from, None).is_err());
        assert!(target(&from, Some(b"\xff")).is_err());
    }
}
