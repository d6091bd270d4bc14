//! `mount`: publishing a volume with no cluster.

use super::CliError;
use super::progress::Shown;
use super::stage::{Choice, Pull, Registries, source};
use crate::image::reference::Source;
use crate::volume::{ImageRequest, PublishRequest, PullChoice, Volumes, attributes};
use clap::builder::BoolishValueParser;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Mount images at a directory, with a writable layer of its own
///
/// Of several images, the first is on top: directories merge, and anything else of
/// an upper image hides what is below it.
///
/// Does what the plugin does for a pod. The target must be an existing, empty
/// directory. The same command again changes nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The images, uppermost first.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The directory.
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    /// No writable layer: every change fails.
    #[arg(
        long, env = "AUFS_CSI_READ_ONLY", hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    read_only: bool,
    /// Show a directory inside the image, links resolved inside it, instead of the
    /// whole image.
    #[arg(
        long,
        env = "AUFS_CSI_SUB_PATH",
        hide_env_values = true,
        value_name = "PATH"
    )]
    sub_path: Option<String>,
    /// Id of the volume, by which `diff` and `export` find it too.
    /// [default: the target's path]
    #[arg(
        long,
        env = "AUFS_CSI_VOLUME_ID",
        hide_env_values = true,
        value_name = "ID"
    )]
    volume_id: Option<String>,
    /// When an image of a registry is pulled: always, missing or never.
    /// [default: always for a tag latest or none, else missing]
    #[arg(long, env = "AUFS_CSI_PULL", hide_env_values = true, value_enum)]
    pull: Option<Pull>,
    /// SELinux context that all files of the volume get, where the kernel has
    /// SELinux.
    #[arg(
        long,
        env = "AUFS_CSI_SELINUX_CONTEXT",
        hide_env_values = true,
        value_name = "CONTEXT"
    )]
    pub(super) selinux_context: Option<String>,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    pub(super) registries: Registries,
}

pub(super) fn run(volumes: &Volumes, args: &Args, label: Option<String>) -> Result<(), CliError> {
    let sources: Vec<Source> = args
        .images
        .iter()
        .map(|image| source(image))
        .collect::<Result<_, _>>()?;
    let platform = args.choice.platform()?;
    let target = resolve(&args.target)?;
    let name = target.to_str().ok_or_else(|| CliError::TargetName {
        path: target.clone(),
    })?;
    let volume_id = args.volume_id.clone().unwrap_or_else(|| name.to_owned());
    // As a pod would have written it, so that the same command is known again.
    let mut attributes = BTreeMap::from([
        names(&sources),
        ("union".to_owned(), args.choice.union.name().to_owned()),
    ]);
    if let Some(platform) = &platform {
        attributes.insert("platform".to_owned(), platform.to_string());
    }
    let sub_path = match &args.sub_path {
        Some(path) => attributes::sub_path(path).map_err(CliError::SubPath)?,
        None => None,
    };
    if let Some(path) = sub_path.as_deref().and_then(Path::to_str) {
        attributes.insert("subPath".to_owned(), path.to_owned());
    }
    let images = sources.into_iter().map(ImageRequest::unconfined);
    let request = PublishRequest {
        sub_path,
        label,
        pull: PullChoice {
            policy: args.pull.map(Into::into),
            ..PullChoice::default()
        },
        platform,
        create_target: false,
        read_only: args.read_only,
        union: args.choice.union.into(),
        attributes,
        ..PublishRequest::of_images(volume_id, images.collect(), target.clone())
    };
    let shown = Shown::start();
    let result = volumes.publish(&request, &shown);
    shown.end();
    let published = result.map_err(CliError::volume("mount at", name))?;
    tracing::info!(
        volume.path = name,
        union = %published.backend,
        manifests = published
            .images
            .iter()
            .map(|image| image.manifest.as_str())
            .collect::<Vec<_>>()
            .join(","),
        branches = published.branches,
        existed = published.existed,
        "mounted"
    );
    Ok(())
}

/// The attribute that names them.
fn names(sources: &[Source]) -> (String, String) {
    let key = match sources {
        [_] => "image",
        _ => "images",
    };
    let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
    (key.to_owned(), names.join(","))
}

/// The directory as the kernel's mount table names it.
fn resolve(target: &Path) -> Result<PathBuf, CliError> {
    let error = |source| CliError::Target {
        path: target.to_owned(),
        source,
    };
    let resolved = target.canonicalize().map_err(error)?;
    if !resolved.is_dir() {
        return Err(error(io::ErrorKind::NotADirectory.into()));
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_directories_by_their_real_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        assert_eq!(resolve(&root.join("link")).unwrap(), root.join("real"));
        let code = |name: &str| resolve(&root.join(name)).unwrap_err().exit_code();
        assert_eq!(code("missing"), crate::cli::exit::NO_INPUT);
        assert_eq!(code("file"), crate::cli::exit::FAILURE);
    }
}
