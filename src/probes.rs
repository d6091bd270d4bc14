//! What a kubelet and a monitoring system ask over HTTP: `/livez`, `/readyz` and
//! `/metrics`.
//!
//! It is there before anything else, so that a long recovery is not taken for a
//! process that hangs.

use crate::chain::Chain;
use crate::csi::health::Health;
use crate::csi::liveness;
use crate::csi::registration::Registered;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::CONTENT_TYPE;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE as TYPE_HEADER, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// How long a client may take to send its request: whoever opens connections
/// and says nothing must not keep them.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// Connections at one time. A kubelet and a monitoring system have a few.
const MAX_CONNECTIONS: usize = 32;
/// Pause after the system refused a connection, for want of descriptors most
/// likely, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// There is no address to listen on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for probes and metrics; --http-address says where")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

impl BindError {
    /// Whether another process has the address, which may end.
    pub fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

/// Counts what only counts when somebody asks. It may block.
pub type Count = Arc<dyn Fn(&Metrics) + Send + Sync>;

/// What the answers are made of.
#[derive(Clone)]
pub struct Watched {
    /// The plugin's condition.
    pub health: Health,
    /// Its metrics.
    pub metrics: Metrics,
    /// Its socket.
    pub socket: PathBuf,
    /// Brings the metrics up to date.
    pub count: Count,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("health", &self.health)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// A listener for probes.
#[derive(Debug)]
pub struct Probes(TcpListener);

impl Probes {
    /// Listens at `address`.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        TcpListener::bind(address)
            .await
            .map(Probes)
            .map_err(|source| BindError { address, source })
    }

    /// Where it listens; the port may have been chosen by the system.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers, until it is dropped.
    pub async fn serve(self, watched: Watched) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let permit = Arc::clone(&connections).acquire_owned().await;
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection for probes");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let watched = watched.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let answering = service_fn(move |request| {
                    let watched = watched.clone();
                    async move { Ok::<_, Infallible>(answer(&request, &watched).await) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST_WITHIN)
                    .serve_connection(TokioIo::new(stream), answering)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "a connection for probes ended");
                }
            });
        }
    }
}

async fn answer(request: &Request<Incoming>, watched: &Watched) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/livez" => live(watched).await,
        "/readyz" => ready(&watched.health),
        "/metrics" => metrics(watched).await,
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /livez, /readyz and /metrics\n".to_owned(),
        ),
    }
}

/// Whether the process gets on. Until it serves its socket, that it answers here
/// is all there is to know.
async fn live(watched: &Watched) -> Response<Full<Bytes>> {
    if !watched.health.is_serving() {
        return text(StatusCode::OK, "ok: starting or stopping\n".to_owned());
    }
    match liveness::ask(&watched.socket).await {
        Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
        Err(error) => {
            let why = Chain(&error).to_string();
            tracing::error!(error = why, "the plugin is not alive");
            text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
        }
    }
}

/// Each condition on a line of its own, as the components of Kubernetes do it.
fn ready(health: &Health) -> Response<Full<Bytes>> {
    let mut lines = String::new();
    let mut code = StatusCode::OK;
    for (name, result) in health.conditions() {
        // A string takes whatever is written to it.
        let _ = match result {
            Ok(()) => writeln!(lines, "[+]{name} ok"),
            Err(why) => {
                code = StatusCode::SERVICE_UNAVAILABLE;
                writeln!(lines, "[-]{name}: {why}")
            }
        };
    }
    text(code, lines)
}

async fn metrics(watched: &Watched) -> Response<Full<Bytes>> {
    match watched.health.registered() {
        Registered::Elsewhere => {}
        Registered::Yes => watched.metrics.registered(true),
        Registered::Waiting | Registered::Refused(_) => watched.metrics.registered(false),
    }
    let (count, metrics) = (Arc::clone(&watched.count), watched.metrics.clone());
    let counted = tokio::task::spawn_blocking(move || {
        count(&metrics);
        metrics.text()
    });
    match counted.await {
        Ok(lines) => {
            let mut response = text(StatusCode::OK, lines);
            response
                .headers_mut()
                .insert(TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
            response
        }
        Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "counting failed; the log says where\n".to_owned(),
        ),
    }
}

fn text(code: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = code;
    response.headers_mut().insert(
        TYPE_HEADER,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
