//! `repositories` and `json` of archives of before Docker 1.10 to a chain of layers.
//! For any input in the place of each:
//!
//! * no panic, and a chain that ends, within the bounds;
//! * ids are 64 hex digits, each once, and nothing else is looked up;
//! * an error is one short line without control characters.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::image::fuzz::docker_legacy::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
