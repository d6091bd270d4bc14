//! The plugin asked through its own socket, as a kubelet would: whether the
//! socket leads here, and whether calls are answered.

use super::v1::ProbeRequest;
use super::v1::identity_client::IdentityClient;
use std::path::Path;
use std::time::Duration;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

/// How long an answer may take. `Probe` waits for nothing, so one that takes
/// longer is of a process that does not get on.
const WITHIN: Duration = Duration::from_secs(3);

/// Why the plugin is taken for dead.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The path cannot be written as an address.
    #[error("the socket has no address")]
    Address(#[source] tonic::transport::Error),
    /// Nobody takes the connection.
    #[error("cannot connect to the plugin's own socket")]
    Connect(#[source] tonic::transport::Error),
    /// The call failed.
    #[error("the plugin does not answer through its own socket")]
    Call(#[source] Box<tonic::Status>),
    /// Nothing came in time.
    #[error("the plugin does not answer through its own socket within {WITHIN:?}")]
    Timeout,
}

/// Calls `Probe` on the socket. A plugin that says that it is not ready is alive,
/// and so is one that cannot work on this node: a restart would help neither.
pub async fn ask(socket: &Path) -> Result<(), DeadError> {
    let asking = async {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .map_err(DeadError::Address)?
            .connect()
            .await
            .map_err(DeadError::Connect)?;
        match IdentityClient::new(channel)
            .probe(Request::new(ProbeRequest {}))
            .await
        {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
            Err(status) => Err(DeadError::Call(Box::new(status))),
        }
    };
    tokio::time::timeout(WITHIN, asking)
        .await
        .unwrap_or(Err(DeadError::Timeout))
}
