//! `volumes`: the volumes of this node.

use super::CliError;
use super::output::{self, OutputArgs};
use crate::volume::record::VolumeState;
use crate::volume::{RecordedImage, Volumes};
use std::os::unix::ffi::OsStrExt;

/// List the volumes of this node
///
/// An incomplete volume is one whose mounting was interrupted; the next attempt,
/// or the next start of the plugin, clears it away. A returning one waits to be
/// mounted again with what was written to it, after a reboot for example, and one
/// that is beginning lost that and waits to be mounted anew.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    let list = volumes
        .list()
        .map_err(CliError::volume("list", "volumes"))?;
    let header = [
        "VOLUME", "IMAGES", "UNION", "STATE", "BRANCHES", "AGE", "TARGET",
    ];
    output::listing(args.output.output, &list, &header, |volume| {
        vec![
            output::escaped(volume.volume_id.as_bytes()),
            output::escaped(images(&volume.images).as_bytes()),
            volume.backend.to_string(),
            state(volume.state, volume.read_only).to_owned(),
            volume.branches.len().to_string(),
            output::age(volume.created),
            output::escaped(volume.target.as_os_str().as_bytes()),
        ]
    })
}

/// As a pod writes them.
fn images(images: &[RecordedImage]) -> String {
    let names: Vec<&str> = images.iter().map(|image| image.image.as_str()).collect();
    names.join(",")
}

fn state(state: VolumeState, is_read_only: bool) -> &'static str {
    match (state, is_read_only) {
        (VolumeState::Mounted, true) => "read-only",
        (VolumeState::Mounted, false) => "writable",
        (VolumeState::Intended, _) => "incomplete",
        (VolumeState::Returning, _) => "returning",
        (VolumeState::Beginning, _) => "beginning",
        (VolumeState::Leaving, _) => "leaving",
    }
}
