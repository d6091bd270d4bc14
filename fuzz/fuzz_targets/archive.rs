//! Tar bytes to entries. For any input:
//!
//! * no panic, no endless loop: every few calls use up input;
//! * memory is bounded by the limits, not by what headers claim;
//! * the events are the same however the stream is cut;
//! * members stay within every limit, data within its file, in order;
//! * an error stays, and nothing comes after the end;
//! * what was parsed can be written, and is parsed back the same.
//!
//! Errors are fine. Checksums are repaired in a second round, for a mutation
//! hardly ever hits one.
#![no_main]

use aufs_csi::layer::archive::check::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
