//! Bytes to a layer's index. For any input:
//!
//! * no panic, no endless loop, also where directories are passed over;
//! * records take no more memory than the file has bytes;
//! * records are written and read back the same;
//! * a lookup gives a record of the path that was asked for, or none;
//! * where table and records agree, every path is found, and passing over a
//!   directory leaves out just what is beneath it.
//!
//! Errors are fine.
#![no_main]

use aufs_csi::layer::index::check::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes));
