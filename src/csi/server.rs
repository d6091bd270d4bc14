//! The services on their sockets, and how they end.
//!
//! The socket of the CSI services is there before the one for registration, and
//! goes after it: whoever reads in the latter that the plugin is there can call
//! it at once.

use super::VolumeService;
use super::authority::Localhost;
use super::events::PodEvents;
use super::health::Health;
use super::identity::IdentityService;
use super::node::NodeService;
use super::operations::Operations;
use super::policy::LivePolicy;
use super::registration::{Registered, RegistrationService, RegistrationSettings};
use super::registration_v1::registration_server::RegistrationServer;
use super::socket::KeptSocket;
pub use super::socket::{Socket, SocketError};
use super::v1::identity_server::{IdentityServer, SERVICE_NAME as IDENTITY};
use super::v1::node_server::{NodeServer, SERVICE_NAME as NODE};
use crate::telemetry::Metrics;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::Server;
use tonic::{Code, Status};

/// How long a call waits for its work. kubelet waits two minutes for the whole
/// of a mount, of which it spends some on other calls; an answer that comes in
/// time can say how far the work is.
pub const REPLY_WITHIN: Duration = Duration::from_secs(100);
/// How long work may still take once the plugin is being stopped. A pod has 30
/// seconds by default, and the answers have to get out too.
pub const STOP_WITHIN: Duration = Duration::from_secs(15);
/// How long the answers may take after that.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// How often the names of the sockets are looked at. Without one, kubelet cannot
/// make a call; it tries again within seconds to minutes.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What the server is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node's name.
    pub node_id: String,
    /// What pods may do.
    pub policy: LivePolicy,
    /// Where the plugin registers itself; none where another program does that.
    pub registration: Option<RegistrationSettings>,
    /// Keys of labels of the node, all with the value `true`: what it can do.
    pub topology: Vec<String>,
    /// How long a call waits for its work; [`REPLY_WITHIN`] unless in tests.
    pub reply_within: Duration,
    /// How long work may take once `stop` is ready; [`STOP_WITHIN`] unless in tests.
    pub stop_within: Duration,
    /// How often the sockets are looked at; [`LOOK_EVERY`] unless in tests.
    pub look_every: Duration,
}

/// Why serving ended in an error.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no socket to register the plugin on.
    #[error("cannot register with kubelet")]
    Registration(#[source] SocketError),
    /// The transport failed.
    #[error("cannot serve calls")]
    Transport(#[source] tonic::transport::Error),
}

/// What the services share with whoever watches them.
#[derive(Debug, Clone)]
pub struct Observers {
    /// What is right and wrong with the plugin.
    pub health: Health,
    /// Counts and durations of calls.
    pub metrics: Metrics,
    /// Who tells of what happens to the volumes of pods; nobody by default.
    pub events: Arc<dyn PodEvents>,
}

impl Default for Observers {
    fn default() -> Self {
        Observers {
            health: Health::default(),
            metrics: Metrics::default(),
            events: Arc::new(()),
        }
    }
}

/// Serves calls until `stop` is ready; then takes no more of them, lets those
/// that run and the work behind them end within bounds, and removes the sockets.
pub async fn serve<S: VolumeService>(
    socket: Socket,
    volumes: Arc<S>,
    settings: Settings,
    observers: Observers,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (mut socket, connections) = KeptSocket::new(socket);
    let (stop_sender, stopping) = watch::channel(false);
    let operations = Arc::new(Operations::new(
        settings.reply_within,
        settings.stop_within,
        stopping.clone(),
        observers.metrics.clone(),
        Arc::clone(&observers.events),
    ));
    let services = Services {
        identity: IdentityServer::new(IdentityService::new(observers.health.clone())),
        node: NodeServer::new(NodeService::new(
            volumes,
            settings.policy,
            settings.node_id,
            settings.topology,
            Arc::clone(&operations),
        )),
        metrics: observers.metrics.clone(),
    };
    let serving = Server::builder().serve_with_incoming_shutdown(
        services,
        connections,
        stopped(stopping.clone()),
    );
    // The services are reachable from here on, so now they may be told of.
    let (registrar, registering) =
        match register(settings.registration, &observers.health, stopping.clone()).await? {
            Some((socket, serving)) => (Some(socket), Some(serving)),
            None => (None, None),
        };
    let registering = async {
        match registering {
            Some(serving) => serving.await,
            None => std::future::pending().await,
        }
    };
    let mut registrar = registrar;
    tokio::pin!(serving, registering);
    {
        let looking_after = look_after(
            &mut socket,
            registrar.as_mut(),
            settings.look_every,
            &observers.health,
        );
        tokio::select! {
            result = &mut serving => return result.map_err(ServeError::Transport),
            result = &mut registering => return result.map_err(ServeError::Transport),
            () = looking_after => {}
            () = stop => {}
        }
    }
    tracing::info!("stopping: finishing what runs");
    observers.health.stopping();
    // First, so that kubelet makes no new calls that are then refused.
    drop(registrar);
    stop_sender.send_replace(true);
    let work_ends = Instant::now() + settings.stop_within;
    match tokio::time::timeout_at(work_ends + FLUSH_WITHIN, serving).await {
        Ok(result) => result.map_err(ServeError::Transport)?,
        Err(_) => tracing::warn!("stopping with connections open"),
    }
    let left = operations.settle(work_ends).await;
    if left > 0 {
        tracing::warn!(operations = left, "stopping in the middle of operations");
    }
    drop(socket);
    Ok(())
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // The sender lives as long as serving does.
    let _ = stopping.wait_for(|stopped| *stopped).await;
}

/// Makes the socket for registration, and what serves it.
async fn register(
    settings: Option<RegistrationSettings>,
    health: &Health,
    stopping: watch::Receiver<bool>,
) -> Result<
    Option<(
        KeptSocket,
        impl Future<Output = Result<(), tonic::transport::Error>>,
    )>,
    ServeError,
> {
    let Some(settings) = settings else {
        return Ok(None);
    };
    let state = health.registration();
    state.send_replace(Registered::Waiting);
    let service = RegistrationService::new(&settings.kubelet_endpoint, state);
    let socket = Socket::bind(&settings.socket)
        .await
        .map_err(ServeError::Registration)?;
    let (socket, connections) = KeptSocket::new(socket);
    let serving = Server::builder().serve_with_incoming_shutdown(
        RegistrationServer::new(service),
        connections.map(|connection| connection.map(Localhost::new)),
        stopped(stopping),
    );
    Ok(Some((socket, serving)))
}

/// Makes sockets again whose names are gone, for as long as the plugin serves.
async fn look_after(
    socket: &mut KeptSocket,
    mut registrar: Option<&mut KeptSocket>,
    every: Duration,
    health: &Health,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match socket.look_after().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("the plugin's socket was gone and is made again"),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the plugin's socket is gone and cannot be made again"
                );
                // Nobody is to be told of a plugin that cannot be reached.
                continue;
            }
        }
        let Some(registrar) = registrar.as_deref_mut() else {
            continue;
        };
        match registrar.look_after().await {
            Ok(false) => {}
            Ok(true) => {
                health.registration().send_replace(Registered::Waiting);
                tracing::warn!("the registration socket was gone and is made again");
            }
            Err(error) => {
                health.registration().send_replace(Registered::Waiting);
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the registration socket is gone and cannot be made again"
                );
            }
        }
    }
}

/// Hands each call to its service, and counts it.
#[derive(Debug)]
struct Services<S> {
    identity: IdentityServer<IdentityService>,
    node: NodeServer<NodeService<S>>,
    metrics: Metrics,
}

// Derived, it would ask the same of `S`.
impl<S> Clone for Services<S> {
    fn clone(&self) -> Self {
        Services {
            identity: self.identity.clone(),
            node: self.node.clone(),
            metrics: self.metrics.clone(),
        }
    }
}

impl<S: VolumeService> Service<http::Request<Body>> for Services<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The generated services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().to_owned();
        // `/package.Service/Method`
        let service = method.split('/').nth(1);
        let reply = match service {
            Some(IDENTITY) => self.identity.call(request),
            Some(NODE) => self.node.call(request),
            _ => {
                let status = Status::unimplemented("the plugin has no such service");
                return Box::pin(async move { Ok(status.into_http()) });
            }
        };
        let began = Instant::now();
        let metrics = self.metrics.clone();
        Box::pin(async move {
            let reply = reply.await?;
            // An error of a call with one answer is in the headers; otherwise
            // the status comes after the answer, and is OK.
            let code = Status::from_header_map(reply.headers()).map_or(Code::Ok, |s| s.code());
            // What is not served is not counted by a name that a caller chose.
            if code != Code::Unimplemented {
                metrics.call(&method, code_name(code), began.elapsed());
            }
            Ok(reply)
        })
    }
}

/// The name of a code as Go writes it, which dashboards for CSI drivers expect.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
