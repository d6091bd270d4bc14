//! Unix sockets as a plugin needs them: for this user only, one owner at a time,
//! and kept: kubelet, an administrator or a node's clean-up may remove the file
//! of a socket that is still served, after which nobody can reach the plugin.

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::Stream;

/// Connections that may wait to be accepted: kubelet makes one for each call and
/// asks for every volume of the node at once when it restarts.
const BACKLOG: u32 = 1024;
/// How long a plugin at the same socket has to take a connection before it is
/// held for alive anyway.
const LIFE_SIGN_WITHIN: Duration = Duration::from_secs(1);
/// Permissions of a directory that is made for the socket, as kubelet's own.
const DIRECTORY_MODE: u32 = 0o750;

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

impl SocketFile {
    /// Whether the name still leads to this socket.
    fn is_there(&self) -> bool {
        self.path
            .symlink_metadata()
            .is_ok_and(|metadata| place(&metadata) == self.place)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have replaced it already.
        if !self.is_there() {
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

/// A served socket: its name, and the way to give its server another listener.
#[derive(Debug)]
pub(super) struct KeptSocket {
    path: PathBuf,
    /// None where the name was lost and could not be made again yet.
    file: Option<SocketFile>,
    listeners: mpsc::UnboundedSender<UnixListener>,
}

impl KeptSocket {
    /// The socket as a stream of connections, and as a name to look after.
    pub(super) fn new(socket: Socket) -> (Self, Connections) {
        let Socket { listener, file } = socket;
        let (listeners, others) = mpsc::unbounded_channel();
        let kept = KeptSocket {
            path: file.path.clone(),
            file: Some(file),
            listeners,
        };
        (kept, Connections { listener, others })
    }

    /// Makes the socket again if its name is gone or is another's; whether it
    /// did. Connections that were made before go on.
    pub(super) async fn look_after(&mut self) -> Result<bool, SocketError> {
        if self.file.as_ref().is_some_and(SocketFile::is_there) {
            return Ok(false);
        }
        self.file = None;
        let Socket { listener, file } = Socket::bind(&self.path).await?;
        self.file = Some(file);
        // Whoever serves it is gone only where the plugin stops.
        let _ = self.listeners.send(listener);
        Ok(true)
    }
}

/// The connections to a socket, wherever it has to be made again.
#[derive(Debug)]
pub(super) struct Connections {
    listener: UnixListener,
    others: mpsc::UnboundedReceiver<UnixListener>,
}

impl Stream for Connections {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while let Poll::Ready(Some(listener)) = this.others.poll_recv(context) {
            this.listener = listener;
        }
        match this.listener.poll_accept(context) {
            Poll::Ready(result) => Poll::Ready(Some(result.map(|(connection, _)| connection))),
            Poll::Pending => Poll::Pending,
        }
    }
}
