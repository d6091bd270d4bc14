//! Errors that several readers get, and the one of several that says most.

use crate::image::registry::RegistryError;
use std::io;

/// The same error again: everybody who waits for a blob gets it.
pub(super) fn again(error: &RegistryError) -> RegistryError {
    use RegistryError as E;
    match error {
        E::NotAllowed { registry } => E::NotAllowed {
            registry: registry.clone(),
        },
        E::Unauthenticated { image, tried } => E::Unauthenticated {
            image: image.clone(),
            tried: tried.clone(),
        },
        E::Denied { host, image, tried } => E::Denied {
            host: host.clone(),
            image: image.clone(),
            tried: tried.clone(),
        },
        E::NotFound { image, hosts } => E::NotFound {
            image: image.clone(),
            hosts: hosts.clone(),
        },
        E::Status {
            host,
            what,
            status,
            message,
        } => E::Status {
            host: host.clone(),
            what: what.clone(),
            status: *status,
            message: message.clone(),
        },
        E::Unreachable { host, reason } => E::Unreachable {
            host: host.clone(),
            reason: reason.clone(),
        },
        E::Stalled { what, waited, last } => E::Stalled {
            what: what.clone(),
            waited: *waited,
            last: last.clone(),
        },
        E::Malformed { host, reason } => E::Malformed {
            host: host.clone(),
            reason: reason.clone(),
        },
        E::Digest { host, digest } => E::Digest {
            host: host.clone(),
            digest: *digest,
        },
        E::Config { path, reason } => E::Config {
            path: path.clone(),
            reason: reason.clone(),
        },
        E::Credentials { reason } => E::Credentials {
            reason: reason.clone(),
        },
        E::Disk(error) => E::Disk(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        }),
        E::NoSpace {
            needed,
            available,
            reserved,
        } => E::NoSpace {
            needed: *needed,
            available: *available,
            reserved: *reserved,
        },
        E::Cancelled => E::Cancelled,
    }
}

/// How much an error says about what somebody can do. A mirror that is down or
/// does not have the blob says less than a registry that wants credentials.
pub(super) fn telling(error: &RegistryError) -> u8 {
    match error {
        RegistryError::Unauthenticated { .. } | RegistryError::NotAllowed { .. } => 6,
        RegistryError::Denied { .. } | RegistryError::Credentials { .. } => 5,
        RegistryError::Digest { .. } | RegistryError::Malformed { .. } => 4,
        RegistryError::NotFound { .. } => 3,
        RegistryError::Status { .. } => 2,
        RegistryError::Unreachable { .. } | RegistryError::Stalled { .. } => 1,
        RegistryError::Config { .. }
        | RegistryError::Disk(_)
        | RegistryError::NoSpace { .. }
        | RegistryError::Cancelled => 0,
    }
}
