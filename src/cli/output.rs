//! What listings look like: aligned text for people, JSON for programs.

use super::CliError;
use serde::Serialize;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// How a listing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Output {
    /// Aligned columns for people.
    #[default]
    Text,
    /// One JSON document with stable field names; sizes in bytes, times in
    /// seconds since the epoch.
    Json,
}

/// The option of every listing.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct OutputArgs {
    /// How the listing is written to standard output.
    #[arg(
        long,
        short,
        env = "AUFS_CSI_OUTPUT",
        hide_env_values = true,
        value_enum,
        default_value = "text"
    )]
    pub(super) output: Output,
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no
/// failure.
pub(super) fn to_stdout(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), CliError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(CliError::Output),
    }
}

/// Writes a listing as a table or as JSON.
pub(super) fn listing<T: Serialize>(
    output: Output,
    items: &[T],
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), CliError> {
    match output {
        Output::Json => json(&items),
        Output::Text => {
            let rows: Vec<Vec<String>> = items.iter().map(row).collect();
            to_stdout(|out| table(out, header, &rows))
        }
    }
}

/// Writes one JSON document.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    to_stdout(|out| {
        serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
        writeln!(out)
    })
}

/// Writes columns, each as wide as its widest cell. Columns of numbers (all cells
/// begin with a digit, or are `-`) are aligned right.
pub(super) fn table(out: &mut dyn Write, header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width_of = |text: &str| text.chars().count();
    let columns: Vec<(usize, bool)> = header
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = || rows.iter().filter_map(|row| row.get(column));
            let width = cells().map(|cell| width_of(cell)).max().unwrap_or(0);
            let is_number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit());
            let right = cells().any(is_number) && cells().all(|cell| cell == "-" || is_size(cell));
            (width.max(width_of(title)), right)
        })
        .collect();
    let titles: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (cell, (width, right)) in row.iter().zip(&columns) {
            let padding = " ".repeat(width - width_of(cell).min(*width));
            let parts = if *right {
                [padding.as_str(), cell]
            } else {
                [cell.as_str(), &padding]
            };
            line.extend(parts);
            line.push_str("  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Whether a cell is a number, with a unit or without.
fn is_size(cell: &str) -> bool {
    let number = cell.split(' ').next().unwrap_or_default();
    !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// A size for people, to three figures, in units of 1024.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        // What would be shown as 1024 is one of the next unit.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 9.995 {
        format!("{value:.2} {unit}")
    } else if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// How long ago a time was, for people.
pub(super) fn age(seconds_since_epoch: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    span(now.saturating_sub(seconds_since_epoch))
}

pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The beginning of a digest or id, as people write it; whole in JSON.
pub(super) fn short(digest: &str) -> String {
    const CHARACTERS: usize = 12;
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.chars().take(CHARACTERS).collect()
}

/// A path or other bytes on one line, and without what a terminal would obey: a
/// backslash is doubled, control characters and bytes that are not UTF-8 are
/// `\xNN`. It can be turned back without loss.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let hex = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    };
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => hex(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => text.push(c),
            }
        }
        hex(&mut text, chunk.invalid());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_figures() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 * 1024 - 1, "10.0 KiB"),
            (1536, "1.50 KiB"),
            (100 * 1024, "100 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (1023 * 1024, "1023 KiB"),
            (5 << 30, "5.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), shown, "{bytes}");
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, shown) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_200, "2h"),
            (172_800, "2d"),
        ] {
            assert_eq!(span(seconds), shown);
        }
    }

    #[test]
    fn names_cannot_command_a_terminal_and_are_not_mixed_up() {
        for (bytes, shown) in [
            (&b"plain/\xc3\xa9"[..], "plain/é"),
            (b"a\x1b[2J", "a\\x1b[2J"),
            (b"a\nb", "a\\x0ab"),
            (b"a\\x0ab", "a\\\\x0ab"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"\xc2\x9b", "\\xc2\\x9b"),
        ] {
            assert_eq!(escaped(bytes), shown);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = vec![
            vec!["app".to_owned(), "5 B".to_owned(), "x".to_owned()],
            vec!["a".to_owned(), "1023 KiB".to_owned(), "1x".to_owned()],
            vec!["é".to_owned(), "-".to_owned(), String::new()],
        ];
        let mut out = Vec::new();
        table(&mut out, &["NAME", "SIZE", "END"], &rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME      SIZE  END\n\
             app        5 B  x\n\
             a     1023 KiB  1x\n\
             é            -\n"
        );
    }
}
