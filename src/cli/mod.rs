//! The command line: one file per verb.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "help texts show what may be left out in brackets"
)]

mod check;
mod diff;
pub mod exit;
mod export;
mod gc;
mod images;
mod layers;
mod mount;
mod node;
mod output;
mod progress;
mod purge;
mod stage;
mod unmount;
mod volumes;

use crate::chain::Chain;
use crate::config::{self, CommonConfig, ConfigFault, StoreArgs};
use crate::csi::server::{ServeError, SocketError};
use crate::host::linux::LinuxHost;
use crate::image::platform::PlatformError;
use crate::image::reference::ReferenceError;
use crate::probes::BindError;
use crate::telemetry;
use crate::volume::attributes::AttributeError;
use crate::volume::{PullOptions, VolumeError, VolumeOptions, Volumes};
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Layered ephemeral volumes for Kubernetes pods: the layers of OCI images are
/// staged once per node, and each volume is a union mount of them (AUFS, or
/// overlayfs where the kernel has none) with a thin writable layer on top.
///
/// IMAGE is docker://NAME (a registry, also without docker://), oci:DIR[:TAG],
/// oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG]. A colon in a path
/// is written `\:`.
///
/// Every option has a variable in the environment, named with its help.
#[derive(Debug, Parser)]
#[command(name = "aufs-csi", version, after_help = exit::TABLE, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    store: StoreArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Node(Box<node::Args>),
    Check(check::Args),
    Stage(stage::Args),
    Mount(mount::Args),
    Unmount(unmount::Args),
    Images(images::Args),
    Layers(layers::Args),
    Volumes(volumes::Args),
    Diff(diff::Args),
    Export(export::Args),
    Purge(purge::Args),
    Gc(gc::Args),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong.
    #[error("the configuration is wrong")]
    Configuration(Vec<ConfigFault>),
    /// An image source cannot be read.
    #[error("cannot read the image name")]
    Image(#[source] ReferenceError),
    /// The path of a local image cannot be made absolute.
    #[error("cannot use the path {} of an image", path.display())]
    ImagePath {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The platform cannot be read.
    #[error("cannot read --platform")]
    Platform(#[source] PlatformError),
    /// The directory inside an image cannot be read.
    #[error("cannot read --sub-path")]
    SubPath(#[source] AttributeError),
    /// The target of a mount is missing or cannot be reached.
    #[error("cannot use the target {}", path.display())]
    Target {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The target of a mount has a name that a record cannot hold.
    #[error("the target {} is not a directory with a name in UTF-8", path.display())]
    TargetName {
        /// The path.
        path: PathBuf,
    },
    /// A tar would fill a terminal with bytes.
    #[error("a tar is not written to a terminal; use --file FILE or a pipe")]
    Terminal,
    /// The file that was asked for cannot be made.
    #[error("cannot write {}", path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The store cannot be opened.
    #[error("cannot open the store {}", root.display())]
    Open {
        /// The store.
        root: PathBuf,
        /// Why not. In a box, as errors of the domain are large.
        source: Box<VolumeError>,
    },
    /// An operation of the store or of volumes failed.
    #[error("cannot {action} {object}")]
    Volume {
        /// What was done.
        action: &'static str,
        /// To what.
        object: String,
        /// Why not. In a box, as errors of the domain are large.
        source: Box<VolumeError>,
    },
    /// `check` found that volumes cannot be published.
    #[error("volumes cannot be published on this node")]
    Unusable,
    /// The threads of the node plugin cannot be started.
    #[error("cannot start threads")]
    Runtime(#[source] io::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// There is no address for probes and metrics.
    #[error("cannot answer probes")]
    Probes(#[source] BindError),
    /// There is no socket.
    #[error("cannot listen")]
    Socket(#[source] SocketError),
    /// Serving ended.
    #[error("cannot go on")]
    Serve(#[source] ServeError),
}

impl CliError {
    /// The exit code for it.
    fn exit_code(&self) -> u8 {
        match self {
            CliError::Configuration(_)
            | CliError::Image(_)
            | CliError::Platform(_)
            | CliError::SubPath(_)
            | CliError::TargetName { .. }
            | CliError::Terminal => exit::USAGE,
            CliError::Target { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => exit::NO_INPUT,
                io::ErrorKind::PermissionDenied => exit::NO_PERMISSION,
                _ => exit::FAILURE,
            },
            CliError::File { .. } => exit::CANNOT_CREATE,
            CliError::Output(_) => exit::IO,
            CliError::Open { source, .. } | CliError::Volume { source, .. } => {
                exit::of_error(source)
            }
            CliError::Unusable
            | CliError::Runtime(_)
            | CliError::ImagePath { .. }
            | CliError::Signals(_)
            | CliError::Probes(_)
            | CliError::Socket(_)
            | CliError::Serve(_) => exit::FAILURE,
        }
    }

    /// For `map_err` of an operation.
    fn volume(action: &'static str, object: &str) -> impl FnOnce(VolumeError) -> CliError {
        let object = object.to_owned();
        move |source| CliError::Volume {
            action,
            object,
            source: Box::new(source),
        }
    }
}

/// Runs the command of `arguments`, the program's own name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            // Nothing is left to be told where even this cannot be written.
            let _ = error.print();
            return exit::code(code);
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let faults: &[ConfigFault] = match &error {
                CliError::Configuration(faults) => faults,
                _ => &[],
            };
            for fault in faults {
                eprintln!("aufs-csi: {}", Chain(fault));
            }
            if faults.is_empty() {
                eprintln!("aufs-csi: {}", Chain(&error));
            }
            exit::code(error.exit_code())
        }
    }
}

impl Cli {
    fn run(self) -> Result<(), CliError> {
        let mut faults = Vec::new();
        let is_node = matches!(self.command, Command::Node(_));
        let common = self
            .store
            .validate(is_node, &config::environment, &mut faults);
        match self.command {
            Command::Node(args) => {
                let node = args.node.validate(&config::environment, &mut faults);
                match (common, node) {
                    (Some(common), Some(node)) => node::run(common, node),
                    _ => Err(CliError::Configuration(faults)),
                }
            }
            Command::Check(args) => {
                args.check_policy(&mut faults);
                if !faults.is_empty() {
                    return Err(CliError::Configuration(faults));
                }
                check::run(opened(common, faults), &args)
            }
            Command::Stage(args) => {
                let pull = args
                    .registries
                    .clone()
                    .options(&config::environment, &mut faults);
                stage::run(&pulling(common, pull, faults)?, &args)
            }
            Command::Mount(args) => {
                let label = config::label(args.selinux_context.clone(), &mut faults);
                let pull = args
                    .registries
                    .clone()
                    .options(&config::environment, &mut faults);
                mount::run(&pulling(common, pull, faults)?, &args, label)
            }
            Command::Unmount(args) => unmount::run(&opened(common, faults)?, &args),
            Command::Images(args) => images::run(&opened(common, faults)?, &args),
            Command::Layers(args) => layers::run(&opened(common, faults)?, &args),
            Command::Volumes(args) => volumes::run(&opened(common, faults)?, &args),
            Command::Diff(args) => diff::run(&opened(common, faults)?, &args),
            Command::Export(args) => export::run(&opened(common, faults)?, &args),
            Command::Purge(args) => {
                let elsewhere = args.validate(&mut faults);
                let volumes = opened(common, faults)?;
                // None only with a fault, of which it was told just now.
                elsewhere.map_or(Ok(()), |elsewhere| purge::run(&volumes, &elsewhere))
            }
            Command::Gc(args) => {
                let collect = args.settings(&mut faults);
                match (common, collect) {
                    (Some(mut common), Some(collect)) if faults.is_empty() => {
                        common.store.collect = collect;
                        gc::run(&open(common)?, &args)
                    }
                    _ => Err(CliError::Configuration(faults)),
                }
            }
        }
    }
}

fn opened(common: Option<CommonConfig>, faults: Vec<ConfigFault>) -> Result<Volumes, CliError> {
    open(common.ok_or(CliError::Configuration(faults))?)
}

/// As [`opened`], for a command that pulls images.
fn pulling(
    common: Option<CommonConfig>,
    pull: Option<PullOptions>,
    faults: Vec<ConfigFault>,
) -> Result<Volumes, CliError> {
    match (common, pull) {
        (Some(mut common), Some(pull)) if faults.is_empty() => {
            common.store.pull = pull;
            open(common)
        }
        _ => Err(CliError::Configuration(faults)),
    }
}

/// The id of the volume that a person means: see [`Volumes::meant`].
fn named(volumes: &Volumes, text: &str, name: Option<&str>) -> Result<String, CliError> {
    volumes
        .meant(text, name)
        .map_err(CliError::volume("find", text))
}

/// Starts the logs and opens the store.
fn open(common: CommonConfig) -> Result<Volumes, CliError> {
    telemetry::start(common.log_format, common.log_level);
    open_store(common.store)
}

fn open_store(options: VolumeOptions) -> Result<Volumes, CliError> {
    let root = options.root.clone();
    Volumes::open(options, Arc::new(LinuxHost)).map_err(|source| CliError::Open {
        root,
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, Command as Definition, CommandFactory};

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_a_variable_named_after_it() {
        fn look(command: &Definition) {
            let is_option = |arg: &&Arg| {
                !arg.is_positional() && arg.get_id() != "help" && arg.get_id() != "version"
            };
            for arg in command.get_arguments().filter(is_option) {
                let long = arg.get_long().unwrap();
                let expected = format!("AUFS_CSI_{}", long.to_uppercase().replace('-', "_"));
                let found = arg.get_env().and_then(|name| name.to_str());
                assert_eq!(
                    found,
                    Some(expected.as_str()),
                    "{} --{long}",
                    command.get_name()
                );
                assert!(arg.get_help().is_some(), "--{long}");
            }
            command.get_subcommands().for_each(look);
        }
        look(&Cli::command());
    }

    #[test]
    fn what_is_wrong_with_the_command_line_is_exit_code_64() {
        let code =
            |arguments: &[&str]| run(["aufs-csi"].iter().chain(arguments).map(OsString::from));
        for arguments in [
            &[][..],
            &["frobnicate"],
            &["mount", "oci:/x"],
            &["layers", "--output", "xml"],
            &["node", "--node-id", "a", "--union", "btrfs"],
            &["layers", "--root", "relative"],
        ] {
            assert_eq!(code(arguments), exit::code(exit::USAGE), "{arguments:?}");
        }
        assert_eq!(code(&["--version"]), ExitCode::SUCCESS);
    }
}
