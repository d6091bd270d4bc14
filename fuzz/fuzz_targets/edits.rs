//! Bytes to a branch's log of edits. For any input:
//!
//! * no panic, no endless loop;
//! * edits take no more memory than the log has bytes;
//! * what was read can be written, and is read back the same.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::layer::seal::check::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
