//! Exit codes, those of `sysexits.h` where one fits. [`TABLE`] is also what
//! `--help` shows.

use crate::union::MountError;
use crate::volume::{ErrorKind, VolumeError};
use std::process::ExitCode;

/// It failed, or `check` says no.
pub const FAILURE: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 64;
/// Content is not what its digest says.
pub const DATA: u8 = 65;
/// An input does not exist.
pub const NO_INPUT: u8 = 66;
/// This node cannot do it.
pub const UNAVAILABLE: u8 = 69;
/// Something is in the way of what should be made.
pub const CANNOT_CREATE: u8 = 73;
/// Output cannot be written.
pub const IO: u8 = 74;
/// It may work later.
pub const TEMPORARY: u8 = 75;
/// It is not allowed.
pub const NO_PERMISSION: u8 = 77;

/// The end of `--help`.
pub const TABLE: &str = "\
Exit codes:
   0  done; for `check`: volumes can be published here
   1  failed; for `check`: they cannot
  64  the command line or the configuration is wrong
  65  content is not what its digest says
  66  an image, a volume or a directory that was named does not exist
  69  this node cannot do it, for example for want of a union filesystem
  73  something is in the way: another volume has the id or the target
  74  output cannot be written
  75  it may work later: disk full, somebody else at it, network
  77  not allowed";

/// The code for a kind of failure.
pub fn of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidArgument => USAGE,
        ErrorKind::NotFound => NO_INPUT,
        ErrorKind::AlreadyExists => CANNOT_CREATE,
        ErrorKind::FailedPrecondition => UNAVAILABLE,
        ErrorKind::ResourceExhausted | ErrorKind::Aborted | ErrorKind::Unavailable => TEMPORARY,
        ErrorKind::DataLoss => DATA,
        ErrorKind::PermissionDenied | ErrorKind::Unauthenticated => NO_PERMISSION,
        ErrorKind::Internal => FAILURE,
    }
}

/// The code for a failure: where something is in the way, a person can move it,
/// whatever the kind is called for others.
pub fn of_error(error: &VolumeError) -> u8 {
    match error {
        VolumeError::TargetMounted { .. }
        | VolumeError::TargetNotEmpty { .. }
        | VolumeError::OtherTarget { .. }
        | VolumeError::OtherVolume { .. }
        | VolumeError::Covered { .. }
        | VolumeError::Mount(MountError::Occupied { .. }) => CANNOT_CREATE,
        _ => of(error.kind()),
    }
}

/// What `main` returns.
pub fn code(code: u8) -> ExitCode {
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_has_a_code_of_its_own() {
        let target = || std::path::PathBuf::from("/mnt");
        let volume_id = || "v".to_owned();
        for error in [
            VolumeError::TargetMounted { target: target() },
            VolumeError::TargetNotEmpty { target: target() },
            VolumeError::Covered { target: target() },
            VolumeError::OtherTarget {
                volume_id: volume_id(),
                target: target(),
            },
            VolumeError::OtherVolume {
                volume_id: volume_id(),
                target: target(),
            },
            VolumeError::OtherRequest {
                volume_id: volume_id(),
            },
        ] {
            assert_eq!(of_error(&error), CANNOT_CREATE, "{error}");
        }
        let missing = VolumeError::TargetMissing { target: target() };
        assert_eq!(of_error(&missing), USAGE);
    }

    #[test]
    fn every_code_is_in_the_table() {
        for code in [
            FAILURE,
            USAGE,
            DATA,
            NO_INPUT,
            UNAVAILABLE,
            CANNOT_CREATE,
            IO,
            TEMPORARY,
            NO_PERMISSION,
        ] {
            let starts = |line: &str| line.trim_start().starts_with(&format!("{code}  "));
            assert_eq!(
                TABLE.lines().filter(|line| starts(line)).count(),
                1,
                "{code}"
            );
        }
    }
}
