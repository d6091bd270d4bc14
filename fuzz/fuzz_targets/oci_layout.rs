//! `oci-layout` and `index.json` of a layout to its images. For any input in the
//! place of each:
//!
//! * no panic, and no more entries than the bound;
//! * another version than 1 is refused;
//! * an error is one short line without control characters.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::image::fuzz::oci_layout::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
