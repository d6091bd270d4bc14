//! Why a registry did not give what was asked of it.

use crate::image::digest::Digest;
use std::io;
use std::time::Duration;

/// A request to a registry failed, or was not even made.
///
/// What a registry says is foreign text: it is escaped and shortened before it
/// gets here. Secrets never do.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The operator's list does not have this registry.
    #[error("the operator of this node does not allow images from {registry}")]
    NotAllowed {
        /// Host and port of the registry.
        registry: String,
    },
    /// No credential was accepted, and neither was none.
    #[error(
        "{image} needs credentials that are accepted there, and {tried}; name a secret of type kubernetes.io/dockerconfigjson in nodePublishSecretRef"
    )]
    Unauthenticated {
        /// The image or repository.
        image: String,
        /// Which sources were tried, and what became of each: never what they held.
        tried: String,
    },
    /// The registry knows who asks and does not give it.
    #[error("{host} denies access to {image} with {tried}")]
    Denied {
        /// The host.
        host: String,
        /// The image or repository.
        image: String,
        /// Which sources were tried.
        tried: String,
    },
    /// There is no such image.
    #[error("{image} was not found at {hosts}")]
    NotFound {
        /// The image.
        image: String,
        /// The hosts that were asked.
        hosts: String,
    },
    /// A host answered with a status that means that it cannot now, or with one
    /// that means nothing here.
    #[error("{host} answered {status} to {what}{}", said(message))]
    Status {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the registry says, shortened; may be empty.
        message: String,
    },
    /// A host cannot be talked to.
    #[error("cannot reach {host}: {reason}")]
    Unreachable {
        /// The host.
        host: String,
        /// Why, in a few words.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("{what} made no progress for {} s; last: {last}", waited.as_secs())]
    Stalled {
        /// What was being fetched.
        what: String,
        /// How long nothing came.
        waited: Duration,
        /// The last failure, in a few words.
        last: String,
    },
    /// A host's answer is not what the protocol has.
    #[error("{host} gave an answer that cannot be used: {reason}")]
    Malformed {
        /// The host.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What came has another digest than what was asked for.
    #[error("{host} gave other bytes for {digest} than that digest is of")]
    Digest {
        /// The host.
        host: String,
        /// What was asked for.
        digest: Digest,
    },
    /// The node's configuration of a registry cannot be used.
    #[error("cannot use {path}: {reason}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Credentials that were given cannot be read.
    #[error("cannot use the registry credentials that were given: {reason}")]
    Credentials {
        /// What is wrong, without anything of what is in them.
        reason: String,
    },
    /// What was fetched cannot be written down.
    #[error("cannot write what was fetched")]
    Disk(#[source] io::Error),
    /// There is less space than the image needs.
    #[error(
        "the image needs {needed} bytes to be fetched and the store's filesystem has {available} to give"
    )]
    NoSpace {
        /// Bytes still to be fetched.
        needed: u64,
        /// Bytes that may be used.
        available: u64,
        /// Bytes that are left to others.
        reserved: u64,
    },
    /// The program ends, or nobody wants the image any more.
    #[error("fetching was ended")]
    Cancelled,
}

fn said(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(": {message}"),
    }
}
