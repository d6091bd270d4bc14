//! `layers`: the branches of the store.

use super::CliError;
use super::output::{self, OutputArgs};
use crate::volume::Volumes;

/// List the layers of the store
///
/// A layer that holds marks of one union filesystem exists once for each that is
/// in use; FORMAT says for which. EDITS are the marks that
/// were written because of the layers below.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    let layers = volumes
        .layers()
        .map_err(CliError::volume("list", "layers"))?;
    let header = [
        "LAYER", "DIFFID", "FORMAT", "EDITS", "ENTRIES", "SIZE", "IMAGES", "VOLUMES",
    ];
    output::listing(args.output.output, &layers, &header, |layer| {
        vec![
            output::short(layer.id.as_str()),
            layer
                .diff_id
                .as_deref()
                .map_or_else(|| "flattened".to_owned(), output::short),
            layer.format.clone(),
            layer.edits.to_string(),
            layer.entries.to_string(),
            output::size(layer.bytes),
            layer.images.len().to_string(),
            layer.volumes.len().to_string(),
        ]
    })
}
