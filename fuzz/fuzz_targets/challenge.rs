//! What a registry wants to be shown (`WWW-Authenticate`). For any input:
//!
//! * no panic;
//! * what is read is bounded, and is read again from its plainest form.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::image::registry::fuzz::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
