//! `unmount`: unpublishing a volume with no cluster.

use super::{CliError, mount};
use crate::volume::Volumes;
use std::path::PathBuf;

/// Unmount a volume and throw its writable layer away
///
/// The directory itself stays.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory where the volume is mounted.
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    let target = mount::resolve(&args.target)?;
    volumes
        .unmount_target(&target)
        .map_err(CliError::volume("unmount", &target.to_string_lossy()))
}
