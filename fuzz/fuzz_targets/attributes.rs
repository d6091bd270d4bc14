//! Attributes of a volume, `key=value` separated by bytes of 1. For any input,
//! for volumes that may be written and that may not:
//!
//! * no panic;
//! * what is accepted has at least one image and no more than the bound, and no
//!   size limit of zero or of a volume that is only read;
//! * an error with its causes stays short.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::volume::attributes::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
