//! `stage`: images into the store.

use super::output::{self, OutputArgs};
use super::progress::Shown;
use super::{CliError, images};
use crate::config::{CommandCredentialArgs, ConfigFault, Environment, PullArgs};
use crate::image::platform::Platform;
use crate::image::reference::Source;
use crate::layer::store::BranchId;
use crate::pull::PullPolicy;
use crate::union::probe::UnionRequest;
use crate::volume::{PullOptions, Volumes};
use serde::Serialize;

/// Verify images and unpack their layers into the store
///
/// Layers that the store has are not read again. A failure leaves the layers
/// that were complete, and nothing else.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The images.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// When an image of a registry is pulled: always (its name is resolved, and
    /// only what is missing is fetched), missing, or never.
    #[arg(
        long,
        env = "AUFS_CSI_PULL",
        hide_env_values = true,
        value_enum,
        default_value = "always"
    )]
    pull: Pull,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    pub(super) registries: Registries,
    #[command(flatten)]
    output: OutputArgs,
}

/// One image that is staged.
#[derive(Debug, Serialize)]
struct Line {
    /// As it was asked for.
    image: String,
    /// Digest of its manifest.
    manifest: String,
    /// What it is for.
    platform: String,
    /// How many layers it has.
    layers: usize,
    /// How many of them were not in the store.
    fetched: usize,
    /// The branches of a volume of it, uppermost first.
    branches: Vec<BranchId>,
}

/// Which form of an image is wanted.
#[derive(Debug, clap::Args)]
pub(super) struct Choice {
    /// Platform of the image, as os/architecture[/variant]. [default: this node's]
    #[arg(
        long,
        env = "AUFS_CSI_PLATFORM",
        hide_env_values = true,
        value_name = "PLATFORM"
    )]
    platform: Option<String>,
    /// Union filesystem; auto is AUFS where it works, and overlayfs elsewhere.
    #[arg(
        long,
        env = "AUFS_CSI_UNION",
        hide_env_values = true,
        value_enum,
        default_value = "auto"
    )]
    pub(super) union: Union,
}

/// How registries are reached, and with what.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Registries {
    #[command(flatten)]
    pull: PullArgs,
    #[command(flatten)]
    credentials: CommandCredentialArgs,
}

impl Registries {
    /// Validates the options.
    pub(super) fn options(
        self,
        environment: Environment<'_>,
        faults: &mut Vec<ConfigFault>,
    ) -> Option<PullOptions> {
        let options = self.pull.validate(environment, faults);
        let command = self.credentials.validate(environment, faults);
        Some(PullOptions {
            command: command?,
            ..options?
        })
    }
}

/// A union filesystem by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Union {
    Auto,
    Aufs,
    Overlay,
}

/// When an image is pulled, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Pull {
    Always,
    Missing,
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Always => PullPolicy::Always,
            Pull::Missing => PullPolicy::IfNotPresent,
            Pull::Never => PullPolicy::Never,
        }
    }
}

impl Union {
    pub(super) fn name(self) -> &'static str {
        match self {
            Union::Auto => "auto",
            Union::Aufs => "aufs",
            Union::Overlay => "overlay",
        }
    }
}

impl From<Union> for UnionRequest {
    fn from(union: Union) -> Self {
        match union {
            Union::Auto => UnionRequest::Auto,
            Union::Aufs => UnionRequest::Aufs,
            Union::Overlay => UnionRequest::Overlay,
        }
    }
}

impl Choice {
    pub(super) fn platform(&self) -> Result<Option<Platform>, CliError> {
        self.platform
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(CliError::Platform)
    }
}

/// An image by its name. A local one is known by its absolute path, for the same
/// relative path is another image elsewhere.
pub(super) fn source(text: &str) -> Result<Source, CliError> {
    let mut source: Source = text.parse().map_err(CliError::Image)?;
    if let Source::OciDirectory { path, .. }
    | Source::OciArchive { path, .. }
    | Source::DockerArchive { path, .. } = &mut source
    {
        *path = std::path::absolute(&path).map_err(|source| CliError::ImagePath {
            path: path.clone(),
            source,
        })?;
    }
    Ok(source)
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    // All names are read before the first image is staged.
    let sources: Vec<Source> = args
        .images
        .iter()
        .map(|image| source(image))
        .collect::<Result<_, _>>()?;
    let platform = args.choice.platform()?;
    let mut staged = Vec::with_capacity(sources.len());
    for source in &sources {
        let shown = Shown::start();
        let result = volumes.stage(
            source,
            platform.as_ref(),
            args.choice.union.into(),
            args.pull.into(),
            &shown,
        );
        shown.end();
        let image = result.map_err(CliError::volume("stage", &source.to_string()))?;
        staged.push(Line {
            image: source.to_string(),
            manifest: image.image.manifest,
            platform: image.image.platform,
            layers: image.image.layers.len(),
            fetched: image.fetched,
            branches: image.form.branches,
        });
    }
    let header = [
        "MANIFEST", "PLATFORM", "LAYERS", "FETCHED", "BRANCHES", "IMAGE",
    ];
    output::listing(args.output.output, &staged, &header, |line| {
        vec![
            output::short(&line.manifest),
            images::platform(&line.platform),
            line.layers.to_string(),
            line.fetched.to_string(),
            line.branches.len().to_string(),
            output::escaped(line.image.as_bytes()),
        ]
    })
}
