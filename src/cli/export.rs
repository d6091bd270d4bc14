//! `export`: the writable layer of a volume as a layer of an image.

use super::CliError;
use crate::volume::Volumes;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes that are gathered for each write.
const BUFFER_BYTES: usize = 1 << 20;
/// Permissions of the file: what a pod wrote may be a secret.
const FILE_MODE: u32 = 0o600;

/// Write what was changed in a volume as a layer tar
///
/// The tar is an uncompressed layer in the OCI format, with whiteouts for what
/// was deleted; other tools can put it on top of the volume's image.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id or target of the volume, or its pod as NAMESPACE/POD. The pod may be
    /// running: a file that it replaces by a rename is the old or the new one; what
    /// it writes in place just now may be half of each.
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// Name of the volume in its pod, where that has several.
    #[arg(
        long = "volume",
        env = "AUFS_CSI_VOLUME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    name: Option<String>,
    /// File to write, complete or not at all. [default: standard output]
    #[arg(
        long,
        short = 'o',
        env = "AUFS_CSI_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    file: Option<PathBuf>,
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    let volume = super::named(volumes, &args.volume, args.name.as_deref())?;
    let failed = CliError::volume("export", &volume);
    match &args.file {
        Some(path) => to_file(path, |out| volumes.export(&volume, out).map_err(failed)),
        None if io::stdout().is_terminal() => Err(CliError::Terminal),
        None => {
            let mut out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
            volumes.export(&volume, &mut out).map_err(failed)?;
            out.flush().map_err(CliError::Output)
        }
    }
}

/// Lets `write` make the file under another name beside it, which it gets only
/// when it is complete. What is no regular file (a pipe, `/dev/null`) cannot be
/// replaced and is written as it is.
fn to_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let failed = |source| CliError::File {
        path: path.to_owned(),
        source,
    };
    let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    if is_special {
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        return fill(file, write, failed).map(drop);
    }
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
    let mut partial_name = name.to_owned();
    partial_name.push(format!(".{}.partial", std::process::id()));
    let partial = path.with_file_name(partial_name);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&partial)
        .map_err(failed)?;
    let result = fill(file, write, failed).and_then(|file| {
        file.sync_all().map_err(failed)?;
        fs::rename(&partial, path).map_err(failed)
    });
    if result.is_err()
        && let Err(error) = fs::remove_file(&partial)
    {
        tracing::warn!(path = %partial.display(), %error, "cannot remove what was written");
    }
    result
}

fn fill(
    file: File,
    write: impl FnOnce(&mut dyn Write) -> Result<(), CliError>,
    failed: impl Fn(io::Error) -> CliError,
) -> Result<File, CliError> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    write(&mut out)?;
    out.into_inner().map_err(|error| failed(error.into_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_complete_or_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.tar");
        fs::write(&path, "before").unwrap();
        let error = to_file(&path, |out| {
            out.write_all(b"half").map_err(CliError::Output)?;
            Err(CliError::Terminal)
        });
        assert!(matches!(error, Err(CliError::Terminal)));
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        to_file(&path, |out| {
            out.write_all(b"whole").map_err(CliError::Output)
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_regular_file_is_not_replaced() {
        to_file(Path::new("/dev/null"), |out| {
            out.write_all(b"x").map_err(CliError::Output)
        })
        .unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
