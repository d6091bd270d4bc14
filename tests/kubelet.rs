//! The whole life of volumes as a kubelet makes it, against the program as it is
//! shipped and with real mounts. The kubelet is a fake that does what a real one
//! of version 1.36 was seen to do.
//!
//! ```text
//! http2         the wire of its registration client, by hand
//! fake          the kubelet: its directories, calls, and what it makes of errors
//! driver        the plugin as a process, and the node that it is on
//! registration  how the plugin becomes known, and ends
//! pods          what pods get
//! refused       what they do not get
//! rules         what the operator allows, and changes
//! restarts      kubelet, plugin and node begin anew
//! interrupted   calls that nobody waits for to the end
//! forgotten     what kubelet will never ask for again
//! meanwhile     another process at the same volumes
//! load          very many volumes at once
//! ```
//!
//! Needs root, and fails without.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "kubelet/driver.rs"]
mod driver;
#[path = "kubelet/fake.rs"]
mod fake;
#[path = "kubelet/forgotten.rs"]
mod forgotten;
#[path = "kubelet/http2.rs"]
mod http2;
#[path = "kubelet/interrupted.rs"]
mod interrupted;
#[path = "kubelet/load.rs"]
mod load;
#[path = "kubelet/meanwhile.rs"]
mod meanwhile;
#[path = "kubelet/pods.rs"]
mod pods;
#[path = "kubelet/refused.rs"]
mod refused;
#[path = "kubelet/registration.rs"]
mod registration;
#[path = "kubelet/restarts.rs"]
mod restarts;
#[path = "kubelet/rules.rs"]
mod rules;
mod support;
#[path = "kubelet/waiting.rs"]
mod waiting;

use driver::{Driver, Node};
use fake::{Kubelet, Volume};
use support::entry::{Layer, dir, file, hardlink, opaque, symlink, whiteout};
use waiting::{LOOK_EVERY, PATIENCE, in_time, until};

/// A node whose plugin a kubelet has registered.
async fn running() -> (Node, Driver, Kubelet) {
    let node = Node::new();
    let mut kubelet = Kubelet::new(&node.kubelet_root());
    let driver = node.start();
    kubelet.register().await;
    (node, driver, kubelet)
}

/// Layers that a union has to have edits for.
fn layers() -> Vec<Layer> {
    vec![
        vec![
            dir("d").mode(0o2750).owner(7, 8),
            file("d/kept", b"kept").mtime(1_600_000_000, 123_456_789),
            file("d/hidden", b"hidden"),
            file("changed", b"before"),
            dir("emptied"),
            file("emptied/a", b"a"),
        ],
        vec![
            whiteout("d/hidden"),
            opaque("emptied"),
            file("emptied/b", b"b").xattr("user.x", "y"),
            hardlink("linked", "d/kept"),
        ],
        vec![
            file("changed", b"after").mode(0o600),
            symlink("s", "d/kept"),
        ],
    ]
}
