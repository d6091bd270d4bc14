//! The Container Storage Interface: sockets and messages.
//!
//! ```text
//! server      the socket, the services on it, draining
//! identity    who we are
//! node        decode → volumes → encode
//! request     messages → typed requests (pure)
//! operations  at most one operation per volume; it outlives the call that began it
//! status      the one table from errors to gRPC codes
//! ```
//!
//! **Invariant:** nothing outside this module knows gRPC, and nothing in it
//! touches a filesystem but the socket. Disk work happens on threads of its own.

pub mod identity;
pub mod node;
mod operations;
pub mod request;
pub mod server;
pub mod status;

/// The messages, clients and servers that `proto/csi.proto` generates.
#[doc(hidden)]
#[expect(
    clippy::allow_attributes_without_reason,
    reason = "generated code; its documentation is proto/csi.proto"
)]
pub mod v1 {
    tonic::include_proto!("csi.v1");

    // Its secrets are credentials of a pod, and attributes may hold tokens: a
    // debug line must show neither.
    impl std::fmt::Debug for NodePublishVolumeRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("NodePublishVolumeRequest")
                .field("volume_id", &self.volume_id)
                .field("target_path", &self.target_path)
                .field("volume_capability", &self.volume_capability)
                .field("readonly", &self.readonly)
                .finish_non_exhaustive()
        }
    }
}

/// The plugin's name, as in the CSIDriver object and in pods. It never changes:
/// pods and the records of kubelet have it.
pub const DRIVER_NAME: &str = "aufs-csi.dev";

use crate::stage::Progress;
use crate::volume::{ErrorKind, PublishRequest, VolumeError, Volumes};
use request::Wanted;
use std::error::Error;
use std::path::Path;

/// An error that says which kind of failure it is.
pub trait Kinded: Error + Send + Sync + 'static {
    /// The kind.
    fn kind(&self) -> ErrorKind;
}

/// What the Node service needs of volumes. Its methods block.
pub trait VolumeService: Send + Sync + 'static {
    /// Why an operation failed.
    type Error: Kinded;

    /// Whether the volume is recorded and mounted in just this way, so that
    /// there is nothing to parse, to check or to do: kubelet asks again for
    /// every volume when it restarts.
    fn is_published(&self, wanted: &Wanted) -> Result<bool, Self::Error>;

    /// Mounts a volume; done before is fine.
    fn publish(&self, request: &PublishRequest, progress: &dyn Progress)
    -> Result<(), Self::Error>;

    /// Takes a volume away; an unknown one is fine.
    fn unpublish(&self, volume_id: &str, target: &Path) -> Result<(), Self::Error>;
}

impl Kinded for VolumeError {
    fn kind(&self) -> ErrorKind {
        VolumeError::kind(self)
    }
}

impl VolumeService for Volumes {
    type Error = VolumeError;

    fn is_published(&self, wanted: &Wanted) -> Result<bool, VolumeError> {
        Volumes::is_published(
            self,
            &wanted.volume_id,
            &wanted.target,
            wanted.read_only,
            wanted.mount_group,
            &wanted.attributes,
        )
    }

    fn publish(
        &self,
        request: &PublishRequest,
        progress: &dyn Progress,
    ) -> Result<(), VolumeError> {
        Volumes::publish(self, request, progress).map(|_| ())
    }

    fn unpublish(&self, volume_id: &str, target: &Path) -> Result<(), VolumeError> {
        Volumes::unpublish(self, volume_id, target)
    }
}
