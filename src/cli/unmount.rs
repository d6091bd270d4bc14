//! `unmount`: unpublishing a volume with no cluster.

use super::CliError;
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
    // Not by a pod: what kubelet has mounted, kubelet unmounts.
    volumes
        .unpublish_named(&args.target)
        .map_err(CliError::volume("unmount", &args.target))
}
