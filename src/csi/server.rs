//! The socket, the services on it, and how they end.

use super::VolumeService;
use super::identity::IdentityService;
use super::node::NodeService;
use super::operations::Operations;
use super::request::Policy;
use super::v1::identity_server::{IdentityServer, SERVICE_NAME as IDENTITY};
use super::v1::node_server::{NodeServer, SERVICE_NAME as NODE};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use std::convert::Infallible;
use std::fs::{DirBuilder, File, Metadata};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::Server;

/// How long a call waits for its work. kubelet waits two minutes for the whole
/// of a mount, of which it spends some on other calls; an answer that comes in
/// time can say how far the work is.
pub const REPLY_WITHIN: Duration = Duration::from_secs(100);
/// How long work may still take once the plugin is being stopped. A pod has 30
/// seconds by default, and the answers have to get out too.
pub const STOP_WITHIN: Duration = Duration::from_secs(15);
/// How long the answers may take after that.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// Connections that may wait to be accepted: kubelet makes one for each call and
/// asks for every volume of the node at once when it restarts.
const BACKLOG: u32 = 1024;
/// How long a plugin at the same socket has to take a connection before it is
/// held for alive anyway.
const LIFE_SIGN_WITHIN: Duration = Duration::from_secs(1);
/// Permissions of a directory that is made for the socket, as kubelet's own.
const DIRECTORY_MODE: u32 = 0o750;

/// What the server is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The node's name.
    pub node_id: String,
    /// What pods may do.
    pub policy: Policy,
    /// How long a call waits for its work; [`REPLY_WITHIN`] unless in tests.
    pub reply_within: Duration,
    /// How long work may take once `stop` is ready; [`STOP_WITHIN`] unless in tests.
    pub stop_within: Duration,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Its directory cannot be made, opened or locked.
    #[error("cannot prepare the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something else than a socket has its name.
    #[error("{} exists and is not a socket; it is left as it is", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process serves it.
    #[error("another process serves {}", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// What a killed process left cannot be looked at or removed.
    #[error("cannot remove the stale socket {}", path.display())]
    Stale {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be made.
    #[error("cannot make the socket {}", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why serving ended in an error.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("cannot serve calls")]
    Transport(#[source] tonic::transport::Error),
}

/// A socket that listens, for this user only; removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    /// Kept apart from the listener, which is dropped before.
    file: SocketFile,
}

/// The name of a socket in the filesystem.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode, which tell whether the name is still ours.
    place: (u64, u64),
}

impl Socket {
    /// Makes the socket, and its directory where it is missing. A socket that a
    /// killed process left is replaced; one that somebody serves is not.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let cannot_prepare = |source| SocketError::Directory {
            path: directory.to_owned(),
            source,
        };
        let cannot_bind = |source| SocketError::Bind {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(cannot_prepare)?;
        // Of two plugins that start at once, the second must not remove the
        // socket that the first has just made. A lock of the directory, for no
        // other file may lie beside the socket.
        let locked = File::open(directory).map_err(cannot_prepare)?;
        flock(&locked, FlockOperation::LockExclusive)
            .map_err(|error| cannot_prepare(error.into()))?;
        remove_stale(path).await?;
        let socket = UnixSocket::new_stream().map_err(cannot_bind)?;
        // Before it has a name, so that it never has one with other permissions.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|error| cannot_bind(error.into()))?;
        socket.bind(path).map_err(cannot_bind)?;
        let place = place(&path.symlink_metadata().map_err(cannot_bind)?);
        let file = SocketFile {
            path: path.to_owned(),
            place,
        };
        let listener = socket.listen(BACKLOG).map_err(cannot_bind)?;
        Ok(Socket { listener, file })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have replaced it already.
        let is_ours = self
            .path
            .symlink_metadata()
            .is_ok_and(|metadata| place(&metadata) == self.place);
        if !is_ours {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn place(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Removes the socket of a process that is gone.
async fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let stale = |source| SocketError::Stale {
        path: path.to_owned(),
        source,
    };
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(stale(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    // Only a refused connection proves that nobody listens: one that is slow or
    // has a full backlog is alive.
    match tokio::time::timeout(LIFE_SIGN_WITHIN, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(stale)
        }
        Ok(_) | Err(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Serves calls until `stop` is ready; then takes no more of them, lets those
/// that run and the work behind them end within bounds, and removes the socket.
pub async fn serve<S: VolumeService>(
    socket: Socket,
    volumes: Arc<S>,
    settings: Settings,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let Socket { listener, file } = socket;
    let (stop_sender, stopping) = watch::channel(false);
    let operations = Arc::new(Operations::new(
        settings.reply_within,
        settings.stop_within,
        stopping.clone(),
    ));
    let services = Services {
        identity: IdentityServer::new(IdentityService::new(stopping.clone())),
        node: NodeServer::new(NodeService::new(
            volumes,
            settings.policy,
            settings.node_id,
            Arc::clone(&operations),
        )),
    };
    let mut stopped = stopping.clone();
    let serving = Server::builder().serve_with_incoming_shutdown(
        services,
        UnixListenerStream::new(listener),
        async move {
            // The sender lives as long as this function.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        },
    );
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return result.map_err(ServeError::Transport),
        () = stop => {}
    }
    tracing::info!("stopping: finishing what runs");
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
    drop(file);
    Ok(())
}

/// Hands each call to its service.
#[derive(Debug)]
struct Services<S> {
    identity: IdentityServer<IdentityService>,
    node: NodeServer<NodeService<S>>,
}

// Derived, it would ask the same of `S`.
impl<S> Clone for Services<S> {
    fn clone(&self) -> Self {
        Services {
            identity: self.identity.clone(),
            node: self.node.clone(),
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
        // `/package.Service/Method`
        let service = request.uri().path().split('/').nth(1);
        match service {
            Some(IDENTITY) => self.identity.call(request),
            Some(NODE) => self.node.call(request),
            _ => {
                let status = Status::unimplemented("the plugin has no such service");
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}
