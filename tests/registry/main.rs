//! Pulls from a real registry, with a proxy between that does what networks do,
//! by the program as it is shipped: its command line, and the plugin as a
//! kubelet talks to it.
//!
//! ```text
//! harness    that the registry, the token server and the proxy do what they say
//! site       a node whose plugin pulls; images in registries
//! forms      what registries hold, and what becomes of it
//! private    credentials: right, wrong, missing, over
//! providers  the programs of the node's kubelet
//! hosts      the node's configuration of registries: mirrors, authorities
//! resumed    connections that break
//! faults     answers that are wrong, late or elsewhere
//! together   many pods at once
//! killed     pulls that nobody waits for to the end
//! full       a store without space
//! policy     when the registry is asked, and what is kept
//! cached     who may have what is on the node
//! secrets    that a secret reaches nothing but its registry
//! ```
//!
//! Needs root, and fails without.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests, which run other programs"
)]

#[allow(dead_code, reason = "shared with the tests of kubelet's calls")]
#[path = "../kubelet/driver.rs"]
mod driver;
#[allow(dead_code, reason = "shared with the tests of kubelet's calls")]
#[path = "../kubelet/fake.rs"]
mod fake;
#[path = "../kubelet/http2.rs"]
mod http2;
#[path = "../support/registry/mod.rs"]
mod registry;
#[path = "../support/mod.rs"]
mod support;
#[path = "../kubelet/waiting.rs"]
mod waiting;

mod cached;
mod faults;
mod forms;
mod full;
mod harness;
mod hosts;
mod killed;
mod policy;
mod private;
mod providers;
mod resumed;
mod secrets;
mod site;
mod together;

use fake::Volume;
use waiting::{LOOK_EVERY, PATIENCE, in_time, until};
