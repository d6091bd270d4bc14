//! `diff`: what was changed in a volume.

use super::CliError;
use super::output::{self, Output, OutputArgs};
use crate::layer::changes::Change;
use crate::volume::Volumes;
use serde::Serialize;
use std::io::{self, Write};

/// List what was changed in a volume
///
/// One line for each path: A added, C changed (content or metadata; a directory
/// also where something in it was added or removed), D deleted. A backslash in a
/// path is doubled; control characters, and bytes that are not UTF-8, are written
/// as \xNN.
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
    #[command(flatten)]
    output: OutputArgs,
}

/// One change in JSON.
#[derive(Debug, Serialize)]
struct Line {
    kind: char,
    path: String,
}

impl From<&Change> for Line {
    fn from(change: &Change) -> Self {
        Line {
            kind: change.kind.letter(),
            path: format!("/{}", output::escaped(&change.path)),
        }
    }
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    let volume = super::named(volumes, &args.volume, args.name.as_deref())?;
    let changes = volumes
        .diff(&volume)
        .map_err(CliError::volume("compare", &volume))?;
    let lines: Vec<Line> = changes.iter().map(Line::from).collect();
    match args.output.output {
        Output::Json => output::json(&lines),
        Output::Text => output::to_stdout(|out| text(out, &lines)),
    }
}

fn text(out: &mut dyn Write, lines: &[Line]) -> io::Result<()> {
    lines
        .iter()
        .try_for_each(|line| writeln!(out, "{} {}", line.kind, line.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::changes::ChangeKind;

    #[test]
    fn changes_are_lines_as_of_other_container_tools() {
        let change = |kind, path: &[u8]| {
            Line::from(&Change {
                kind,
                path: path.to_vec(),
            })
        };
        let lines = [
            change(ChangeKind::Changed, b"etc"),
            change(ChangeKind::Added, b"etc/new\nname"),
            change(ChangeKind::Deleted, b"etc/\xff"),
        ];
        let mut out = Vec::new();
        text(&mut out, &lines).unwrap();
        assert_eq!(out, b"C /etc\nA /etc/new\\x0aname\nD /etc/\\xff\n");
    }
}
