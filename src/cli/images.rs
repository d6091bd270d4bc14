//! `images`: the images of the store.

use super::CliError;
use super::output::{self, OutputArgs};
use crate::volume::Volumes;

/// List the images of the store
///
/// The size of an image is that of its layers on disk; a layer that several
/// images share is counted for each of them. USED is how long ago it was staged, or
/// a volume of it began or ended.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    let images = volumes
        .images()
        .map_err(CliError::volume("list", "images"))?;
    let header = [
        "MANIFEST", "PLATFORM", "LAYERS", "SIZE", "VOLUMES", "AGE", "USED", "NAMES",
    ];
    output::listing(args.output.output, &images, &header, |image| {
        let names: Vec<String> = image
            .names
            .iter()
            .map(|name| output::escaped(name.as_bytes()))
            .collect();
        vec![
            output::short(&image.manifest),
            platform(&image.platform),
            image.layers.to_string(),
            output::size(image.bytes),
            image.volumes.len().to_string(),
            output::age(image.created),
            output::age(image.used),
            names.join(", "),
        ]
    })
}

/// A platform from an image's own configuration, which may hold anything.
pub(super) fn platform(text: &str) -> String {
    output::escaped(text.as_bytes())
}
