//! JSON to image indexes, manifests and configs. For any input, under every media type:
//!
//! * no panic, and memory bounded by the largest document;
//! * what is accepted is of the kind that the media type says, and has no more
//!   manifests or layers than the bounds;
//! * the digest of a descriptor is the text that was there;
//! * an error is one short line without control characters.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::image::manifest::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
