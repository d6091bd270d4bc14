//! The requests that are made to the API server: an event is created, and one
//! that is there is counted up; an object is read, and patched.

use super::access::{Access, Token};
use crate::secret::Secret;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Longest time of a request, from the connection to the end of the answer.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection is kept for the next event.
const IDLE: Duration = Duration::from_secs(60);
/// Bytes of an answer that are looked at: an error has a few hundred.
const MAX_ANSWER_BYTES: usize = 16 << 10;
/// Longest object that is read, in bytes. A node's lists its images.
const MAX_OBJECT_BYTES: usize = 4 << 20;
/// Characters of what the API server says that are repeated in a log line.
const MAX_SHOWN: usize = 300;
/// Longest pause that the API server can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// There is no client for this API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A certificate of the API server's authority cannot be used.
    #[error("cannot trust the API server's certificate authority")]
    Root(#[source] rustls::Error),
    /// The certificate or the key that says who we are cannot be used.
    #[error("cannot use the client's certificate")]
    Identity(#[source] rustls::Error),
    /// The TLS library does not do what it must.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The HTTP client cannot be made.
    #[error("cannot set up HTTP")]
    Http(#[source] reqwest::Error),
}

/// What the API server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// An event of that name is there.
    Exists,
    /// There is no such event, or namespace.
    NotFound,
    /// We may not, whatever it is that we are.
    Forbidden(String),
    /// The namespace is on its way out.
    Ending,
    /// It cannot now.
    Busy {
        why: String,
        pause: Option<Duration>,
    },
    /// It does not like the event.
    Refused(String),
}

/// Talks to one API server.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    server: String,
    token: Token,
    /// Longest time of a request; [`REQUEST_WITHIN`] unless in tests.
    pub(super) within: Duration,
}

impl Client {
    pub(super) fn new(access: Access) -> Result<Self, ClientError> {
        let mut roots = RootCertStore::empty();
        if access.roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        for certificate in access.roots {
            roots.add(certificate).map_err(ClientError::Root)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(ClientError::Tls)?
            .with_root_certificates(roots);
        let tls = match access.identity {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(ClientError::Identity)?,
            None => builder.with_no_client_auth(),
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("aufs-csi/", env!("CARGO_PKG_VERSION")))
            // The API server is in the cluster, and sends nobody elsewhere.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // How often something is tried is decided in one place.
            .retry(reqwest::retry::never())
            .connect_timeout(REQUEST_WITHIN)
            .timeout(REQUEST_WITHIN)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build()
            .map_err(ClientError::Http)?;
        Ok(Client {
            http,
            server: access.server,
            token: access.token,
            within: REQUEST_WITHIN,
        })
    }

    /// Creates an event.
    pub(super) async fn create(&mut self, namespace: &str, body: Vec<u8>) -> Answer {
        let url = format!("{}/api/v1/namespaces/{namespace}/events", self.server);
        self.send(Method::POST, &url, "application/json", body)
            .await
            .0
    }

    /// Changes an event as a merge patch says.
    pub(super) async fn change(&mut self, namespace: &str, name: &str, body: Vec<u8>) -> Answer {
        let url = format!(
            "{}/api/v1/namespaces/{namespace}/events/{name}",
            self.server
        );
        self.send(Method::PATCH, &url, "application/merge-patch+json", body)
            .await
            .0
    }

    /// Changes the object at `path` as a list of operations says; one of them may
    /// be a test, and if that fails the object is not changed (RFC 6902).
    pub(super) async fn patch(&mut self, path: &str, body: Vec<u8>) -> Answer {
        let url = format!("{}{path}", self.server);
        self.send(Method::PATCH, &url, "application/json-patch+json", body)
            .await
            .0
    }

    /// Reads the object at `path`.
    pub(super) async fn read(&mut self, path: &str) -> Result<serde_json::Value, Answer> {
        let url = format!("{}{path}", self.server);
        let (answer, text) = self
            .send(Method::GET, &url, "application/json", Vec::new())
            .await;
        match answer {
            Answer::Done => serde_json::from_slice(&text)
                .map_err(|_| Answer::Refused("its answer is not JSON".to_owned())),
            other => Err(other),
        }
    }

    async fn send(
        &mut self,
        method: Method,
        url: &str,
        content: &'static str,
        body: Vec<u8>,
    ) -> (Answer, Vec<u8>) {
        let first = self.try_send(method.clone(), url, content, &body).await;
        let Err(Unauthorized) = first else {
            return first.unwrap_or_else(|Unauthorized| (unauthorized(), Vec::new()));
        };
        // A token is replaced before it ends, so there may be a new one.
        match self.token.renew() {
            Ok(true) => self
                .try_send(method, url, content, &body)
                .await
                .unwrap_or_else(|Unauthorized| (unauthorized(), Vec::new())),
            Ok(false) => (unauthorized(), Vec::new()),
            Err(error) => (busy(crate::chain::Chain(&error).to_string()), Vec::new()),
        }
    }

    async fn try_send(
        &mut self,
        method: Method,
        url: &str,
        content: &'static str,
        body: &[u8],
    ) -> Result<(Answer, Vec<u8>), Unauthorized> {
        let failed = |why: String| Ok((busy(why), Vec::new()));
        // Of an error, no more than is told of it.
        let limit = match method {
            Method::GET => MAX_OBJECT_BYTES,
            _ => MAX_ANSWER_BYTES,
        };
        let mut request = self
            .http
            .request(method, url)
            .header(CONTENT_TYPE, HeaderValue::from_static(content))
            .body(body.to_vec());
        match self.token.current().map(|token| token.map(bearer)) {
            Ok(None) => {}
            Ok(Some(Some(header))) => request = request.header(AUTHORIZATION, header),
            Ok(Some(None)) => return failed("the token has characters that none has".to_owned()),
            Err(error) => return failed(crate::chain::Chain(&error).to_string()),
        }
        // The client's own limit leaves out what it does before it connects.
        match tokio::time::timeout(self.within, async {
            let mut response = request.send().await?;
            let text = start_of(&mut response, limit).await?;
            Ok::<_, reqwest::Error>((response, text))
        })
        .await
        {
            Err(_) => failed("no answer in time".to_owned()),
            Ok(Err(error)) => {
                let error = error.without_url();
                failed(crate::chain::Chain(&error).to_string())
            }
            Ok(Ok((response, _))) if response.status() == StatusCode::UNAUTHORIZED => {
                Err(Unauthorized)
            }
            Ok(Ok((response, text))) => Ok((answer(&response, &text), text)),
        }
    }
}

/// The API server does not know the token.
struct Unauthorized;

fn unauthorized() -> Answer {
    busy("it does not know who we are (401)".to_owned())
}

fn busy(why: String) -> Answer {
    Answer::Busy { why, pause: None }
}

fn bearer(token: &Secret) -> Option<HeaderValue> {
    let text = Secret::new(format!("Bearer {}", token.expose()));
    let mut header = HeaderValue::from_str(text.expose()).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// As much of the answer as is ever looked at.
async fn start_of(response: &mut Response, limit: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut text = Vec::new();
    while text.len() < limit
        && let Some(chunk) = response.chunk().await?
    {
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

fn answer(response: &Response, text: &[u8]) -> Answer {
    let status = response.status();
    if status.is_success() {
        return Answer::Done;
    }
    let said = Said::read(text);
    match status {
        StatusCode::CONFLICT if said.reason == "AlreadyExists" => Answer::Exists,
        StatusCode::NOT_FOUND => Answer::NotFound,
        StatusCode::FORBIDDEN if said.is_ending() => Answer::Ending,
        StatusCode::FORBIDDEN => Answer::Forbidden(said.shown(status)),
        // Somebody changed the event at the same time.
        StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            Answer::Busy {
                why: said.shown(status),
                pause: pause(response),
            }
        }
        status if status.is_server_error() => Answer::Busy {
            why: said.shown(status),
            pause: pause(response),
        },
        _ => Answer::Refused(said.shown(status)),
    }
}

/// How long the API server asks to be left alone.
fn pause(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    let pause = Duration::from_secs(seconds.parse().ok()?);
    Some(pause.min(MAX_PAUSE))
}

/// The API's `Status`, as far as it is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    message: String,
    reason: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

impl Said {
    fn read(text: &[u8]) -> Self {
        // Something between us and the API server may answer as it likes.
        serde_json::from_slice(text).unwrap_or_default()
    }

    /// Nothing can be created in a namespace that is being deleted, and that is
    /// not about rights although it comes with the same code.
    fn is_ending(&self) -> bool {
        let mut causes = self.details.iter().flat_map(|details| &details.causes);
        causes.any(|cause| cause.reason == "NamespaceTerminating")
    }

    fn shown(&self, status: StatusCode) -> String {
        let message: String = self
            .message
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_SHOWN)
            .collect();
        match message.as_str() {
            "" => format!("it answered {}", status.as_u16()),
            message => format!("it answered {}: {message}", status.as_u16()),
        }
    }
}
