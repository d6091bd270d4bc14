//! What the benchmarks share.
#![allow(dead_code, reason = "each benchmark uses another part")]
#![allow(unreachable_pub, reason = "shared by several crates, public in none")]

pub mod aims;
pub mod image;
pub mod measure;
pub mod peers;

use std::path::Path;
use std::process::{Command, ExitCode};

/// Anything that goes wrong ends a benchmark.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{name} is {text:?}, which is no number").into()),
        Err(_) => Ok(default),
    }
}

/// A message with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The program `name`: runs itself again in a mount namespace of its own and there
/// calls `measure`, with a directory below `base` if `BENCH_DIR` does not name
/// another one.
pub fn isolated(
    name: &str,
    base: &str,
    measure: impl FnOnce(&Path) -> Result<ExitCode>,
) -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let result = match (arguments.next(), arguments.next()) {
        (Some(inside), Some(dir)) if inside == "inside" => measure(Path::new(&dir)),
        _ => again(base),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{name}: {}", chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

#[expect(clippy::disallowed_methods, reason = "it is this program itself")]
fn again(base: &str) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        return Err("mounting needs root".into());
    }
    // Made and removed out here: inside, mounts may still be in it.
    let base = std::env::var_os("BENCH_DIR").unwrap_or_else(|| base.into());
    let dir = tempfile::Builder::new()
        .prefix("aufs-csi-bench-")
        .tempdir_in(base)?;
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .arg("inside")
        .arg(dir.path())
        .status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
