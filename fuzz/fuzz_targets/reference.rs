//! What a user calls an image to a source. For any input:
//!
//! * no panic;
//! * what is accepted is shown in a form that parses to the same.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::image::reference::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
