//! The seam to the protocol: where a blob can be had, and what asking gives.

use crate::image::digest::Digest;
use crate::image::registry::RegistryError;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// The hosts that may have a repository's blobs, in the order in which they are
/// to be asked, with whatever asking them needs.
pub(in crate::image::registry) trait BlobPlaces:
    Send + Sync + 'static
{
    /// How many there are; at least one.
    fn count(&self) -> usize;

    /// Host and port of one of them, for errors and for the bound on each host.
    fn host(&self, place: usize) -> String;

    /// Asks a place for a blob from `offset` on. Connecting, credentials and
    /// redirects are behind this, and retries are not.
    fn begin(
        &self,
        place: usize,
        digest: &Digest,
        offset: u64,
    ) -> Pin<Box<dyn Future<Output = Result<BlobBody, BlobFault>> + Send + '_>>;
}

/// An answer whose body is the blob, or its end.
pub(in crate::image::registry) struct BlobBody {
    /// Of the first byte that comes: 0 where the Range was ignored.
    pub(in crate::image::registry) offset: u64,
    /// Length of the whole blob, if the host tells.
    pub(in crate::image::registry) length: Option<u64>,
    /// The body, and nothing read of it yet.
    pub(in crate::image::registry) response: reqwest::Response,
}

/// Why there is no body, and what to do then.
#[derive(Debug)]
pub(in crate::image::registry) enum BlobFault {
    /// The same place may give it later.
    Again {
        /// What the host said about when (Retry-After).
        after: Option<Duration>,
        /// What happened.
        error: RegistryError,
    },
    /// This place will not give it.
    Elsewhere(RegistryError),
    /// It does not give it from that offset on.
    Range(RegistryError),
}
