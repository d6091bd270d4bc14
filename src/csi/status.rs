//! Errors to gRPC statuses: the only place where codes are chosen.
//!
//! kubelet divides codes in two. After Canceled, DeadlineExceeded, Unavailable,
//! ResourceExhausted and Aborted it takes it that something may be mounted, keeps
//! the pod's directory and unpublishes it in the end. After any other code it
//! removes the directory and never unpublishes, so those are for failures that
//! left nothing behind.

use super::Kinded;
use super::request::RequestError;
use crate::chain::Chain;
use crate::volume::ErrorKind;
use std::error::Error;
use tonic::{Code, Status};

/// The code for a kind of failure.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        // The pod has to be changed; trying again changes nothing.
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        // There is no such image. Final, although it may be pushed later:
        // kubelet tries again either way, and nothing is left behind.
        ErrorKind::NotFound => Code::NotFound,
        // The same id with other properties, which the specification has so.
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        // This node cannot do it, for example AUFS was asked for and is not
        // there: another node may.
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        // Not final for kubelet, which is right: collection may make room.
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        // Content that does not match its digest, whoever is to blame.
        ErrorKind::DataLoss => Code::DataLoss,
        // Work goes on or somebody else is at the volume: come back, do not
        // forget.
        ErrorKind::Aborted => Code::Aborted,
        // May work later; also what could not be undone, so that kubelet
        // unpublishes it.
        ErrorKind::Unavailable => Code::Unavailable,
        // The operator or a registry does not allow it.
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        // Another secret has to be given.
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        // Unexpected, and undone.
        ErrorKind::Internal => Code::Internal,
    }
}

/// The status of a failed operation. Its text is what the pod's events show.
pub fn of_operation(error: &impl Kinded) -> Status {
    with_causes(error.kind(), error)
}

/// The status of a request that cannot be obeyed.
pub fn of_request(error: &RequestError) -> Status {
    with_causes(error.kind(), error)
}

/// The same of a volume that was published before: what its pod wrote is here, and
/// after a final code kubelet would forget it.
pub(super) fn of_recorded(error: &RequestError) -> Status {
    with_causes(ErrorKind::Unavailable, error)
}

/// Work on the volume goes on, or other work is in the way.
pub(super) fn in_progress(message: String) -> Status {
    Status::new(code(ErrorKind::Aborted), message)
}

/// The plugin ends before the work does.
pub(super) fn stopping() -> Status {
    Status::new(
        code(ErrorKind::Unavailable),
        "the plugin is shutting down; try again",
    )
}

/// Nothing can be published on this node.
pub(super) fn unusable(reason: String) -> Status {
    Status::new(code(ErrorKind::FailedPrecondition), reason)
}

/// The work ended in a bug. What it left is not known, but the code is what the
/// specification has for bugs; recovery at the next start looks after the rest.
pub(super) fn bug(operation: &str) -> Status {
    Status::new(
        code(ErrorKind::Internal),
        format!(
            "the plugin failed while it was {operation}; this is a bug, and its log has the place"
        ),
    )
}

fn with_causes(kind: ErrorKind, error: &dyn Error) -> Status {
    Status::new(code(kind), Chain(error).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_unpublishes_only_after_what_may_have_left_something() {
        // kubelet's own list, in isFinalError of its CSI client.
        let not_final = [
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::Unavailable,
            Code::ResourceExhausted,
            Code::Aborted,
        ];
        for (kind, leaves_something) in [
            (ErrorKind::InvalidArgument, false),
            (ErrorKind::NotFound, false),
            (ErrorKind::AlreadyExists, false),
            (ErrorKind::FailedPrecondition, false),
            (ErrorKind::ResourceExhausted, true),
            (ErrorKind::DataLoss, false),
            (ErrorKind::Aborted, true),
            (ErrorKind::Unavailable, true),
            (ErrorKind::PermissionDenied, false),
            (ErrorKind::Unauthenticated, false),
            (ErrorKind::Internal, false),
        ] {
            assert_eq!(
                not_final.contains(&code(kind)),
                leaves_something,
                "{kind:?}"
            );
        }
    }
}
