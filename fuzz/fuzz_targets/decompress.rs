//! A blob to the bytes of its tar, with a zstd window of 1 MiB at most. For any input:
//!
//! * no panic, no endless loop;
//! * the output or the error is the same however input and output are cut;
//! * the end stays the end;
//! * bytes without a known form come out unchanged;
//! * what is accepted is what an independent reader accepts, with the same output.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::layer::decompress::check::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
