//! Entry point: see `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    aufs_csi::cli::run(std::env::args_os())
}
