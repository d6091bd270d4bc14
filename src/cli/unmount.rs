//! `unmount`: unpublishing a volume with no cluster.

use super::{CliError, named};
use crate::volume::Volumes;

/// Unmount a volume and throw its writable layer away
///
/// A directory that was there before the volume stays.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory where the volume is mounted, or the volume's id.
    #[arg(value_name = "TARGET")]
    target: String,
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    let volume = named(volumes, &args.target)?;
    volumes
        .unpublish_named(&volume)
        .map_err(CliError::volume("unmount", &args.target))
}
