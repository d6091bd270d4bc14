//! Registries for tests: the real one of Debian, what signs its tokens, what
//! stands between it and a client and does harm, and what fills it.
//!
//! ```text
//! server  docker-registry as a process
//! tls     a private certificate authority
//! tokens  a token server
//! push    images and artifacts into a registry
//! proxy   cuts, corrupts, stalls, redirects; counts what it passes
//! http    as much of HTTP/1.1 as these need
//! ```
//!
//! Everything is on loopback, on ports that the kernel chooses, and ends with the
//! value that started it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each program uses another part; a broken fixture has to stop it"
)]
#![allow(
    unreachable_pub,
    reason = "shared by several crates, public in none of them"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "other programs are what these are about"
)]

pub mod http;
pub mod proxy;
pub mod push;
pub mod server;
pub mod tls;
pub mod tokens;
pub mod tunnel;

use std::process::{Command, Output};

/// Runs a program to its end; what it says is shown only if it fails.
pub fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("this test needs {program}; install it: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
