//! `manifest.json` of `docker save` to an image. For any input, under every selector:
//!
//! * no panic, and no more images, layers or tags than the bounds;
//! * an image's layers are members of the archive, and it is known by its config;
//! * an error is one short line without control characters.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::image::fuzz::docker_manifest::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
