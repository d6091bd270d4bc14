//! A process that does one thing to the node and may be killed at one of its
//! steps. It is this program over again.

use super::node::{open, request, source, unpublish_request};
use super::support::node::{chain, union};
use aufs_csi::layer::collect::Aim;
use aufs_csi::layer::steps;
use aufs_csi::pull::PullPolicy;
use aufs_csi::volume::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// What such a process is told, line by line: its node, its last step, its work.
const ORDERS: &str = "AUFS_CSI_SOAK_WORKER";

/// What it is to do.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Stage(usize),
    /// All that may go, or only what has to.
    Collect(bool),
    Publish(String, Vec<usize>, bool),
    Unpublish(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) work: Work,
    /// The step before which it dies; 0 for none.
    pub(crate) point: u64,
}

/// One at work.
pub(crate) struct Running(Child);

impl Running {
    #[expect(
        clippy::disallowed_methods,
        reason = "only a process of its own can be killed like one"
    )]
    pub(crate) fn start(dir: &Path, order: &Order) -> Self {
        let work = match &order.work {
            Work::Stage(image) => format!("stage\n{image}"),
            Work::Collect(all) => format!("collect\n{all}"),
            Work::Publish(id, images, read_only) => {
                let images: Vec<String> = images.iter().map(ToString::to_string).collect();
                format!("publish\n{id}\n{}\n{read_only}", images.join(" "))
            }
            Work::Unpublish(id) => format!("unpublish\n{id}"),
        };
        let orders = format!("{}\n{}\n{work}", dir.display(), order.point);
        let child = Command::new(std::env::current_exe().unwrap())
            .env(ORDERS, orders)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running(child)
    }

    /// Whether it was killed; if not, it did its work or found no space.
    pub(crate) fn end(self, what: &str) -> bool {
        let output = self.0.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let killed = output.status.signal() == Some(9);
        assert!(killed || output.status.success(), "{what}: {errors}");
        killed
    }
}

/// Whether this process is one.
pub(crate) fn is_one() -> bool {
    std::env::var_os(ORDERS).is_some()
}

pub(crate) fn run() {
    let orders = std::env::var(ORDERS).unwrap();
    let orders: Vec<&str> = orders.split('\n').collect();
    let [dir, point, work @ ..] = &orders[..] else {
        panic!("{orders:?}");
    };
    let (dir, point) = (Path::new(dir), point.parse::<u64>().unwrap());
    let passed = AtomicU64::new(0);
    steps::watch(move |_| {
        if passed.fetch_add(1, Ordering::SeqCst) + 1 == point {
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            unreachable!("a signal that cannot be caught");
        }
    });
    let volumes = open(dir);
    let number = |text: &str| text.parse::<usize>().unwrap();
    let result = match work {
        ["stage", image] => {
            let source = source(dir, number(image));
            let policy = PullPolicy::IfNotPresent;
            volumes.stage(&source, None, union(), policy, &()).map(drop)
        }
        ["collect", "true"] => volumes.collect(Aim::All, true).map(drop),
        ["collect", _] => volumes.collect(Aim::Marks, true).map(drop),
        ["publish", id, images, read_only] => {
            let images: Vec<usize> = images.split(' ').map(number).collect();
            let request = request(dir, id, &images, *read_only == "true");
            volumes.publish(&request, &()).map(drop)
        }
        ["unpublish", id] => volumes.unpublish(&unpublish_request(dir, id)),
        _ => panic!("{work:?}"),
    };
    match result {
        Err(error) if error.kind() != ErrorKind::ResourceExhausted => panic!("{}", chain(&error)),
        _ => {}
    }
}
