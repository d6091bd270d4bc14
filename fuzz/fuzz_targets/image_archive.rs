//! The outer tar of `oci-archive:` and `docker-archive:` to members. For any input:
//!
//! * no panic, no endless loop, and memory bounded by the number of headers;
//! * members lie inside of the archive, and names and links lead nowhere else;
//! * what is read of a member is what its header said;
//! * an error is one short line without control characters.
//!
//! Errors are fine. Checksums are repaired in a second round.
#![no_main]

use aufs_csi::image::fuzz::image_archive::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
