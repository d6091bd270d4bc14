//! Entry point: see `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    aufs_csi::secret::keep_memory_private();
    aufs_csi::stage::raise_descriptor_limit();
    aufs_csi::cli::run(std::env::args_os())
}
