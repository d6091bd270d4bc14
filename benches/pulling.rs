//! How long it takes to have a large image of a registry in the store, beside
//! other programs and beside staging the same image from disk. The registry is
//! Debian's, on loopback, so that the network is nobody's excuse. It fails if an
//! aim is missed.
//!
//! `BENCH_MB` megabytes of tar in the image (700); `BENCH_ROUNDS` rounds (3);
//! `BENCH_DIR` a directory in memory (`/dev/shm`); `BENCH_PEERS=no` leaves the
//! others out. An image of less than 600 MB is good to try the benchmark, and
//! nothing is judged by it.
#![expect(clippy::print_stdout, reason = "it is what a benchmark is for")]
#![expect(
    clippy::disallowed_methods,
    reason = "it compares programs, this one among them"
)]

#[path = "../tests/support/registry/mod.rs"]
mod registry;
mod support;

use registry::push::Repository;
use registry::server::Registry;
use std::path::Path;
use std::process::{Command, ExitCode};
use support::aims::Aims;
use support::image;
use support::measure::{self, Sample, load, median};
use support::peers::Puller;
use support::{Result, chain, setting};

/// How many times faster than each of the others pulling is to be.
const FASTER: f64 = 6.0;
/// What pulling may take of staging the same from disk.
const OF_DISK: f64 = 1.3;
/// What a real image has at least.
const REAL_BYTES: u64 = 600_000_000;

fn main() -> ExitCode {
    match compare() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pulling: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Stages an image into a new store below `base`, as a person does.
fn stage(source: &str, base: &Path) -> Result<Sample> {
    let dir = tempfile::Builder::new().prefix("stage-").tempdir_in(base)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_aufs-csi"));
    command
        .env_clear()
        .env("AUFS_CSI_ROOT", dir.path().join("store"))
        .env("AUFS_CSI_RUN_DIR", dir.path().join("run"))
        .args(["stage", "--union", "overlay", source]);
    measure::run(&mut [command])
}

type Run<'a> = dyn Fn(&Path) -> Result<Sample> + 'a;

/// One contender and what was measured of it.
struct Row<'a> {
    name: &'static str,
    run: Box<Run<'a>>,
    samples: Vec<Sample>,
    /// Why it is left out.
    failure: Option<String>,
}

impl Row<'_> {
    fn wall(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.wall))
    }

    fn cpu(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.cpu))
    }
}

fn compare() -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        return Err("staging with real owners needs root".into());
    }
    let base = std::env::var_os("BENCH_DIR").unwrap_or_else(|| "/dev/shm".into());
    let memory = tempfile::Builder::new()
        .prefix("aufs-csi-bench-")
        .tempdir_in(base)?;
    let rounds = setting("BENCH_ROUNDS", 3)?.max(1);
    println!("load before: {}", load());
    let layout = memory.path().join("image");
    let facts = image::root_filesystem(&layout, setting("BENCH_MB", 700)?)?;
    println!(
        "image: {} layers, {} entries, {:.1} MB of tar, {:.1} MB gzip",
        facts.layers,
        facts.entries,
        facts.tar_bytes as f64 / 1e6,
        facts.blob_bytes as f64 / 1e6,
    );
    let server = Registry::open();
    Repository::new(server.address(), "bench").layout(&layout, "latest");
    let image = format!("{}/bench:latest", server.address());
    let (remote, local) = (
        format!("docker://{image}"),
        format!("oci:{}:latest", layout.display()),
    );
    let row = |name, run| Row {
        name,
        run,
        samples: Vec::new(),
        failure: None,
    };
    let mut rows = vec![
        row(
            "aufs-csi, pulled",
            Box::new(|base: &Path| stage(&remote, base)) as Box<_>,
        ),
        row(
            "aufs-csi, from disk",
            Box::new(|base: &Path| stage(&local, base)),
        ),
    ];
    for peer in Puller::ALL {
        let image = &image;
        let run = move |base: &Path| {
            let dir = tempfile::Builder::new().prefix("peer-").tempdir_in(base)?;
            peer.pull(image, dir.path())
        };
        rows.push(row(peer.name(), Box::new(run)));
    }
    let is_alone = std::env::var("BENCH_PEERS").as_deref() == Ok("no");
    for (number, row) in rows.iter_mut().enumerate() {
        row.failure = (is_alone && number >= 2).then(|| "BENCH_PEERS=no".to_owned());
    }
    for _ in 0..rounds {
        for (number, row) in rows.iter_mut().enumerate() {
            if row.failure.is_some() {
                continue;
            }
            match (row.run)(memory.path()) {
                Ok(sample) => row.samples.push(sample),
                // Ours has to run.
                Err(error) if number < 2 => return Err(error),
                Err(error) => row.failure = Some(chain(error.as_ref())),
            }
        }
    }
    let aims = report(&rows, rounds);
    println!("load after: {}", load());
    let small = format!(
        "the image has {} MB, and not 600 or more",
        facts.tar_bytes / 1_000_000
    );
    Ok(aims.judge((facts.tar_bytes < REAL_BYTES).then_some(&small)))
}

fn report(rows: &[Row<'_>], rounds: u64) -> Aims {
    println!("\npulling from loopback, medians of {rounds} rounds, each contender in turn");
    println!(
        "{:36} {:>8} {:>8} {:>12}",
        "", "seconds", "cpu s", "÷ pulled"
    );
    let mut aims = Aims::default();
    let [pulled, disk, peers @ ..] = rows else {
        return aims;
    };
    for row in rows.iter().filter(|row| row.failure.is_none()) {
        let ratio = row.wall() / pulled.wall();
        println!(
            "{:36} {:8.2} {:8.2} {ratio:11.1}x",
            row.name,
            row.wall(),
            row.cpu()
        );
    }
    for row in peers {
        let what = format!("{} ÷ ours", row.name);
        match &row.failure {
            None => aims.at_least(what, "x", FASTER, row.wall() / pulled.wall()),
            Some(reason) => {
                println!("left out: {}: {reason}", row.name);
                aims.unknown(what, &format!("≥ {FASTER}x"), reason);
            }
        }
    }
    let ratio = pulled.wall() / disk.wall();
    aims.at_most("pulled ÷ from disk, ours", "x", OF_DISK, ratio);
    aims
}
