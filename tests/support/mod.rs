//! What several test crates share: the reference model of OCI flattening, and
//! what is needed to feed it and a real mount with the same layers and changes.
//! Nothing here uses the library under test, so that the two can disagree.
//!
//! ```text
//! entry     one member of a layer, as tests state it
//! tree      what a mount shows, path by path: read it, compare two
//! model     layers → tree, by the image specification
//! cases     the hand-written table of what layers mean
//! images    the hand-written table of what several images are together
//! lookup    what a union of branches shows, without a mount
//! tarball   layers → tar, compression, OCI layout, docker-archive
//! generate  random layer stacks, and images that share layers
//! inputs    running properties on them, and showing what fails
//! mutate    random changes, to a mount and to a tree
//! node      a store with volumes, on real mounts
//! property  running properties on that node
//! bench     hand-laid branches, and plans to mount them
//! rootfs    large layers made of this machine's files, for benchmarks
//! ```
#![allow(
    dead_code,
    unused_imports,
    reason = "each test crate uses another part"
)]
#![allow(
    unreachable_pub,
    reason = "shared by several crates, public in none of them"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a broken fixture has to stop the test that uses it"
)]

pub mod bench;
pub mod cases;
pub mod entry;
pub mod generate;
pub mod images;
pub mod inputs;
pub mod lookup;
pub mod model;
pub mod mutate;
pub mod node;
pub mod oci_layout;
pub mod property;
pub mod rootfs;
pub mod tarball;
pub mod tree;
