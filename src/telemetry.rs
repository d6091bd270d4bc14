//! Logs: lines on standard error, as text or JSON; and metrics.

pub mod metrics;

pub use metrics::{Collected, Holdings, Metrics, Pulls};

use crate::chain::Chain;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Which log lines are written: a level (`info`), or levels by module
/// (`warn,aufs_csi::csi=debug`).
#[derive(Debug)]
pub struct LogLevel(EnvFilter);

/// A text is no [`LogLevel`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is not a log level; write error, warn, info, debug or trace, or for example warn,aufs_csi=debug"
)]
pub struct LogLevelError {
    /// The text.
    text: String,
    /// What is wrong with it.
    source: Option<ParseError>,
}

impl std::str::FromStr for LogLevel {
    type Err = LogLevelError;

    fn from_str(text: &str) -> Result<Self, LogLevelError> {
        let error = |source| LogLevelError {
            text: text.to_owned(),
            source,
        };
        // The parser of filters takes a lone word for the name of a module, so a
        // misspelt level would silence everything.
        let is_level = |level: &str| level.parse::<tracing::level_filters::LevelFilter>().is_ok();
        let fits = text.split(',').all(|part| {
            !part.is_empty() && is_level(part.rsplit_once('=').map_or(part, |(_, level)| level))
        });
        if !fits {
            return Err(error(None));
        }
        EnvFilter::builder()
            .parse(text)
            .map(LogLevel)
            .map_err(|source| error(Some(source)))
    }
}

/// Sends log lines of this process to standard error; also the panics of its
/// threads, so that they are found where everything else is. The first call in
/// a process decides.
pub fn start(format: LogFormat, level: LogLevel) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(level.0)
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    match started {
        Ok(()) => std::panic::set_hook(Box::new(log_panic)),
        Err(error) => tracing::debug!(error = %Chain(error.as_ref()), "logs were started before"),
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let thread = std::thread::current();
    let place = panic.location().map(ToString::to_string);
    // Only kept where the environment asks for it, as without this hook.
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(
        panic.message = message,
        panic.place = place,
        panic.thread = thread.name(),
        panic.backtrace = %backtrace,
        "a thread panicked; this is a bug"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_and_typing_errors_are_not_taken_for_modules() {
        for text in [
            "info",
            "WARN",
            "off",
            "warn,aufs_csi=debug",
            "aufs_csi::csi=trace",
        ] {
            assert!(text.parse::<LogLevel>().is_ok(), "{text}");
        }
        for text in ["", "inof", "info,", "aufs_csi", "aufs_csi=loud", "verbose"] {
            assert!(text.parse::<LogLevel>().is_err(), "{text:?}");
        }
    }
}
