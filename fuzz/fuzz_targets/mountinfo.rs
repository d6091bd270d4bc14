//! A mount table to entries. For any input:
//!
//! * no panic;
//! * every line is an entry, or the table is refused;
//! * asking for one mount gives what parsing the whole table gives;
//! * what was parsed can be written, and is parsed back the same.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::host::mountinfo::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
