//! Docker configs to credentials. For any input, in every form:
//!
//! * no panic, and no more registries than the bound;
//! * no credential with nothing in it;
//! * an error is one short line without control characters.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::image::fuzz::docker_config::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
