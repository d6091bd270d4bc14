//! A node with the plugin on it: the real program as a process of its own, its
//! directories, and what it leaves in them.

use super::support::entry::Layer;
use super::support::node::TestNode;
use super::support::oci_layout::OciLayout;
use super::support::tarball::{Compression, tars};
use super::{PATIENCE, Volume, until};
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountCall};
use aufs_csi::volume::record::directory_name;
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// The directories of a node. Everything mounted there goes with it.
pub(crate) struct Node {
    /// Its store and run directory are the plugin's.
    pub(crate) test: TestNode,
    starts: Cell<usize>,
}

impl Node {
    pub(crate) fn new() -> Self {
        isolate();
        let test = TestNode::new();
        fs::create_dir(test.path().join("images")).unwrap();
        Node {
            test,
            starts: Cell::new(0),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.test.path().join(name)
    }

    /// kubelet's directory.
    pub(crate) fn kubelet_root(&self) -> PathBuf {
        self.path("kubelet")
    }

    /// Where the operator allows local images.
    pub(crate) fn images(&self) -> PathBuf {
        self.path("images")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.test.volumes_options().run_dir
    }

    /// The plugin's socket, where kubelet expects that of a plugin of this name.
    pub(crate) fn endpoint(&self) -> PathBuf {
        self.kubelet_root().join("plugins/aufs-csi.dev/csi.sock")
    }

    pub(crate) fn registration(&self) -> PathBuf {
        self.kubelet_root()
            .join("plugins_registry/aufs-csi.dev-reg.sock")
    }

    /// An image on the node's disk, as a pod names it.
    pub(crate) fn image(&self, name: &str, layers: &[Layer]) -> String {
        self.image_at(&self.images().join(name), layers)
    }

    pub(crate) fn image_at(&self, dir: &Path, layers: &[Layer]) -> String {
        OciLayout::new(dir).image("latest", &tars(layers), Compression::Gzip);
        format!("oci:{}:latest", dir.display())
    }

    /// Starts the plugin as an operator would who allows local images.
    pub(crate) fn start(&self) -> Driver {
        let images = self.images();
        self.start_with(&["--allow-local-images", images.to_str().unwrap()])
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the plugin as it is shipped, which can be killed"
    )]
    pub(crate) fn start_with(&self, more: &[&str]) -> Driver {
        let number = self.starts.get();
        self.starts.set(number + 1);
        let logs = ["out", "err"].map(|stream| self.path(&format!("driver-{number}.{stream}")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_aufs-csi"));
        command.env_clear().arg("node");
        for (option, value) in [
            ("--root", self.store()),
            ("--run-dir", self.run_dir()),
            ("--kubelet-root", self.kubelet_root()),
            ("--node-id", PathBuf::from("node-a")),
            ("--log-format", PathBuf::from("json")),
        ] {
            command.arg(option).arg(value);
        }
        if !more.contains(&"--http-address") {
            command.args(["--http-address", "127.0.0.1:0"]);
        }
        command.arg(format!("--endpoint=unix://{}", self.endpoint().display()));
        if let Ok(union) = std::env::var("AUFS_CSI_BACKEND") {
            command.args(["--union", &union]);
        }
        let child = command
            .args(more)
            .stdin(Stdio::null())
            .stdout(File::create(&logs[0]).unwrap())
            .stderr(File::create(&logs[1]).unwrap())
            .spawn()
            .unwrap();
        Driver { child, logs }
    }

    /// Keeps every publish from staging, until the result is dropped: as long as
    /// somebody removes things from the store, nobody adds any.
    pub(crate) fn hold_store(&self) -> File {
        self.hold("store.lock")
    }

    /// Keeps every layer that is unpacked from being committed.
    pub(crate) fn hold_commits(&self) -> File {
        self.hold("store.commit.lock")
    }

    fn hold(&self, lock: &str) -> File {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.store().join(lock))
            .unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file
    }

    /// The lock of a volume: there while somebody works on it, and as long as it
    /// is not gone.
    pub(crate) fn lock_of(&self, volume: &Volume) -> PathBuf {
        let name = directory_name(&volume.id());
        self.store().join("volumes").join(name + ".lock")
    }

    /// Mount points below the node's directory, one for each mount.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let mut mounts = self.all_mounts();
        // What volumes share is no volume.
        mounts.retain(|at| !at.starts_with(self.store().join("shared")));
        mounts
    }

    fn all_mounts(&self) -> Vec<PathBuf> {
        let base = self.test.path();
        let table = LinuxHost.mount_table().unwrap();
        let all = table.into_iter().map(|entry| entry.mount_point);
        all.filter(|at| at.starts_with(base)).collect()
    }

    /// Mounts a directory a second time.
    pub(crate) fn bind(&self, source: &Path, at: &Path) {
        let call = MountCall::Bind {
            source: source.to_owned(),
            beneath: None,
        };
        LinuxHost.mount(at, &call).unwrap();
    }

    /// Takes every mount away, as a reboot does.
    pub(crate) fn unmount_all(&self) {
        for at in self.all_mounts().iter().rev() {
            LinuxHost.unmount(at).unwrap();
        }
    }

    /// Directories of layers in the store.
    pub(crate) fn layers(&self) -> BTreeSet<String> {
        names(&self.store().join("diff"))
    }

    /// Records of volumes, each with its path.
    pub(crate) fn records(&self) -> Vec<(PathBuf, Value)> {
        let volumes = self.store().join("volumes");
        let paths = names(&volumes)
            .into_iter()
            .map(|name| volumes.join(name).join("record.json"));
        paths
            .filter_map(|path| {
                let text = fs::read(&path).ok()?;
                Some((path, serde_json::from_slice(&text).unwrap()))
            })
            .collect()
    }

    /// Nothing is left of any volume: no mount, no directory, no lock file, and
    /// nothing in the making.
    pub(crate) fn has_no_volumes(&self, what: &str) {
        assert_eq!(self.all_mounts(), Vec::<PathBuf>::new(), "{what}: mounts");
        for (place, dir) in [
            ("volumes", self.store().join("volumes")),
            ("ingest", self.store().join("ingest")),
            ("probe", self.store().join("probe")),
            ("shared", self.store().join("shared")),
            ("xino", self.run_dir().join("xino")),
            ("pods", self.kubelet_root().join("pods")),
        ] {
            assert_eq!(names(&dir), BTreeSet::new(), "{what}: {place}");
        }
    }
}

/// Gives this test mounts of its own: whatever else starts a container on this
/// machine would have copies of them for as long as that runs, and overlayfs then
/// refuses a writable layer for a second mount. It is the calling thread that gets
/// them, with all processes that it starts; the runtime of a test is on it.
#[expect(
    clippy::disallowed_methods,
    reason = "the plugin is to find a node as it is, not to make one"
)]
#[expect(
    deprecated,
    reason = "its successor is unsafe, for what other flags do to descriptors"
)]
fn isolate() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes real mounts: run it as root"
    );
    rustix::thread::unshare(UnshareFlags::NEWNS).unwrap();
    // Apart from the machine's, and in itself as kubelet wants it.
    for how in [
        MountPropagationFlags::PRIVATE,
        MountPropagationFlags::SHARED,
    ] {
        mount_change("/", how | MountPropagationFlags::REC).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Of a test that failed; otherwise there are none.
        for at in self.all_mounts().iter().rev() {
            let _ = LinuxHost.unmount(at);
        }
    }
}

pub(crate) fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The running plugin; killed when it is dropped.
pub(crate) struct Driver {
    child: Child,
    /// Standard output and standard error.
    pub(crate) logs: [PathBuf; 2],
}

impl Driver {
    /// As the kernel does where memory runs out, or an operator.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As a kubelet does that stops the plugin's pod.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the plugin's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its log so far, a JSON object a line.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.logs[1]).unwrap()
    }

    /// Number of log lines with this message.
    pub(crate) fn logged(&self, message: &str) -> usize {
        self.log()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["message"] == message)
            .count()
    }

    /// The body of an answer over HTTP with its status line, once the plugin has
    /// told where it answers.
    pub(crate) async fn get(&self, path: &str) -> (String, String) {
        let mut address = None;
        until("the address of probes", || {
            address = self.log().lines().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                (line["message"] == "answering probes").then(|| line["address"].clone())
            });
            address.is_some()
        })
        .await;
        let address = address.unwrap();
        let mut stream = TcpStream::connect(address.as_str().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: node-a\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.lines().next().unwrap();
        (status.to_owned(), body.to_owned())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the plugin's log:\n{}", self.log());
        }
    }
}
