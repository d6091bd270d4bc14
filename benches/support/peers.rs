//! The other programs that unpack images, where they are installed. The daemons
//! are started by hand, with all they keep in a directory of ours.
#![expect(
    clippy::disallowed_methods,
    reason = "these are other programs; the rule is for the plugin"
)]

use super::Result;
use super::measure::{Sample, cpu_of, run};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where an image is, in the forms that the peers read.
#[derive(Debug)]
pub struct Input {
    /// An OCI layout, with the list that `docker load` wants.
    pub layout: PathBuf,
    /// The same as one tar.
    pub archive: PathBuf,
    /// The layers' blobs, the lowest first.
    pub blobs: Vec<PathBuf>,
}

/// A program to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Umoci,
    Containerd,
    Docker,
    Tar,
}

impl Peer {
    pub const ALL: [Peer; 4] = [Peer::Umoci, Peer::Containerd, Peer::Docker, Peer::Tar];

    pub fn name(self) -> &'static str {
        match self {
            Peer::Umoci => "umoci unpack",
            Peer::Containerd => "containerd import and unpack",
            Peer::Docker => "docker load",
            Peer::Tar => "tar -xz, no digests, no whiteouts",
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Peer::Umoci => &["umoci"],
            Peer::Containerd => &["containerd", "ctr"],
            Peer::Docker => &["dockerd", "docker"],
            Peer::Tar => &["tar", "gzip"],
        }
    }

    /// Its version, or why it is left out.
    pub fn version(self) -> std::result::Result<String, String> {
        for program in self.programs() {
            let found = Command::new(program).arg("--version").output();
            found.map_err(|error| format!("{program}: {error}"))?;
        }
        let output = Command::new(self.programs()[0]).arg("--version").output();
        let text = output.map_err(|error| error.to_string())?.stdout;
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Unpacks the image below `dir`, which is empty.
    pub fn unpack(self, input: &Input, dir: &Path) -> Result<Sample> {
        match self {
            Peer::Umoci => {
                let mut umoci = Command::new("umoci");
                umoci.args(["unpack", "--image"]);
                umoci.arg(format!("{}:latest", input.layout.display()));
                umoci.arg(dir.join("bundle"));
                run(&mut [umoci])
            }
            Peer::Tar => {
                let mut all: Vec<Command> = Vec::new();
                for blob in &input.blobs {
                    let mut tar = Command::new("tar");
                    tar.args(["--warning=none", "-xzf"])
                        .arg(blob)
                        .arg("-C")
                        .arg(dir);
                    all.push(tar);
                }
                run(&mut all)
            }
            Peer::Containerd => containerd(&input.archive, dir),
            Peer::Docker => docker(&input.archive, dir),
        }
    }
}

/// A daemon of ours; stopped, by its id, when it goes out of scope.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command, log: &Path, ready: impl Fn() -> Command) -> Result<Self> {
        let file = fs::File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        let mut daemon = Daemon(child);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = daemon.0.try_wait()? {
                let said = fs::read_to_string(log)?;
                let last = said.lines().last().unwrap_or_default().to_owned();
                return Err(format!("the daemon ended with {status}: {last}").into());
            }
            if run(&mut [ready()]).is_ok() {
                return Ok(daemon);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err("the daemon does not answer".into())
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a client, and adds what its daemon worked meanwhile.
fn with_daemon(daemon: &Daemon, client: Command) -> Result<Sample> {
    let before = cpu_of(daemon.id())?;
    let mut sample = run(&mut [client])?;
    sample.cpu += cpu_of(daemon.id())? - before;
    Ok(sample)
}

/// A containerd of ours, with all that it keeps in a directory.
struct Containerd {
    daemon: Daemon,
    socket: PathBuf,
}

impl Containerd {
    fn start(dir: &Path) -> Result<Self> {
        let socket = dir.join("sock");
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {opt:?}\n",
            root = dir.join("root"),
            state = dir.join("state"),
            ttrpc = dir.join("ttrpc"),
            opt = dir.join("opt"),
        );
        let file = dir.join("config.toml");
        fs::write(&file, config)?;
        let daemon = Daemon::start(
            Command::new("containerd").arg("--config").arg(&file),
            &dir.join("log"),
            || ctr(&socket, &["version"]),
        )?;
        Ok(Containerd { daemon, socket })
    }

    fn run(&self, arguments: &[&str], last: &Path) -> Result<Sample> {
        let mut client = ctr(&self.socket, arguments);
        client.arg(last);
        with_daemon(&self.daemon, client)
    }
}

fn ctr(socket: &Path, arguments: &[&str]) -> Command {
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(socket).args(arguments);
    ctr
}

fn containerd(archive: &Path, dir: &Path) -> Result<Sample> {
    let import = ["images", "import", "--snapshotter", "overlayfs"];
    let arguments = [&import[..], &["--base-name", "bench"]].concat();
    Containerd::start(dir)?.run(&arguments, archive)
}

/// A program that pulls an image from a registry and unpacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Puller {
    SkopeoUmoci,
    Containerd,
}

impl Puller {
    pub const ALL: [Puller; 2] = [Puller::SkopeoUmoci, Puller::Containerd];

    pub fn name(self) -> &'static str {
        match self {
            Puller::SkopeoUmoci => "skopeo copy and umoci unpack",
            Puller::Containerd => "containerd's ctr images pull",
        }
    }

    /// Pulls from a registry on loopback, and unpacks below `dir`, which is empty.
    pub fn pull(self, image: &str, dir: &Path) -> Result<Sample> {
        match self {
            Puller::SkopeoUmoci => {
                let layout = dir.join("layout").display().to_string();
                let mut skopeo = Command::new("skopeo");
                skopeo.args(["--insecure-policy", "copy", "--quiet"]);
                skopeo.arg("--src-tls-verify=false");
                skopeo.arg(format!("docker://{image}"));
                skopeo.arg(format!("oci:{layout}:latest"));
                let mut umoci = Command::new("umoci");
                umoci.args(["unpack", "--image", &format!("{layout}:latest")]);
                umoci.arg(dir.join("bundle"));
                run(&mut [skopeo, umoci])
            }
            Puller::Containerd => {
                let pull = [
                    "images",
                    "pull",
                    "--plain-http",
                    "--snapshotter",
                    "overlayfs",
                ];
                Containerd::start(dir)?.run(&pull, Path::new(image))
            }
        }
    }
}

fn docker(archive: &Path, dir: &Path) -> Result<Sample> {
    let socket = format!("unix://{}", dir.join("sock").display());
    let docker = || {
        let mut docker = Command::new("docker");
        docker.arg("-H").arg(&socket);
        docker.env("DOCKER_CONFIG", dir.join("config"));
        docker
    };
    let daemon = Daemon::start(
        Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args(["--storage-driver=overlay2", "-H", &socket])
            .arg("--data-root")
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid")),
        &dir.join("log"),
        || {
            let mut version = docker();
            version.arg("version");
            version
        },
    )?;
    let mut load = docker();
    load.args(["load", "--quiet", "--input"]).arg(archive);
    with_daemon(&daemon, load)
}
