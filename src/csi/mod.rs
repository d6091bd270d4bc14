//! The Container Storage Interface: sockets and messages.
//!
//! ```text
//! server        the services on their sockets, draining
//! socket        sockets: for one owner, made again when their name is lost
//! registration  what kubelet is told of the plugin
//! authority     kubelet's registration calls, put right
//! identity      who we are
//! node          decode → volumes → encode
//! request       messages → typed requests (pure)
//! policy        what the operator allows pods (pure)
//! operations    at most one operation per volume; it outlives the call that began it
//! events        what is told about a pod's volume besides the answer
//! health        what is right and wrong, for probes
//! liveness      the plugin asked through its own socket
//! status        the one table from errors to gRPC codes
//! ```
//!
//! **Invariant:** nothing outside this module knows gRPC, and nothing in it
//! touches a filesystem but the socket. Disk work happens on threads of its own.

mod authority;
pub mod events;
pub mod health;
pub mod identity;
pub mod liveness;
pub mod node;
mod operations;
pub mod policy;
pub mod registration;
pub mod request;
pub mod server;
mod socket;
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

/// The messages, clients and servers that `proto/pluginregistration.proto`
/// generates.
#[doc(hidden)]
#[expect(
    clippy::allow_attributes_without_reason,
    reason = "generated code; its documentation is proto/pluginregistration.proto"
)]
pub mod registration_v1 {
    tonic::include_proto!("pluginregistration");
}

use crate::DRIVER_NAME;
use crate::stage::Progress;
use crate::volume::stats::Usage;
use crate::volume::{ErrorKind, PublishRequest, Standing, UnpublishRequest, VolumeError, Volumes};
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

    /// What there is of the volume, just as it is wanted: kubelet asks again for
    /// every volume when it restarts.
    fn standing(&self, wanted: &Wanted) -> Result<Standing, Self::Error>;

    /// Mounts a volume; done before is fine.
    fn publish(&self, request: &PublishRequest, progress: &dyn Progress)
    -> Result<(), Self::Error>;

    /// Takes a volume away; an unknown one is fine.
    fn unpublish(&self, request: &UnpublishRequest) -> Result<(), Self::Error>;

    /// How full a volume is.
    fn usage(&self, volume_id: &str, target: &Path) -> Result<Usage, Self::Error>;
}

impl Kinded for VolumeError {
    fn kind(&self) -> ErrorKind {
        VolumeError::kind(self)
    }
}

impl VolumeService for Volumes {
    type Error = VolumeError;

    fn standing(&self, wanted: &Wanted) -> Result<Standing, VolumeError> {
        Volumes::standing(
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

    fn unpublish(&self, request: &UnpublishRequest) -> Result<(), VolumeError> {
        Volumes::unpublish(self, request)
    }

    fn usage(&self, volume_id: &str, target: &Path) -> Result<Usage, VolumeError> {
        Volumes::usage(self, volume_id, target)
    }
}
