//! How long staging a large image takes, beside other programs and beside the
//! least that its own stages need. Also the peak of resident memory.
//!
//! `BENCH_MB` megabytes of tar in the image (700); `BENCH_ROUNDS` rounds (3);
//! `BENCH_DIR` a directory in memory (`/dev/shm`); `BENCH_DISK` one on a disk;
//! `BENCH_IMAGE` an OCI layout that `staging image DIR` made before, to compare
//! two builds on the same bytes; `BENCH_PEERS=no` leaves the others out.
#![expect(clippy::print_stdout, reason = "it is what a benchmark is for")]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::image::reference::Source;
use aufs_csi::layer::ingest::{self, StageTimes};
use aufs_csi::stage::{Phase, Progress, StageOptions};
use aufs_csi::union::probe::UnionRequest;
use aufs_csi::volume::{VolumeOptions, Volumes};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use support::image::{self, Facts};
use support::measure::{self, Sample, load, median, seconds};
use support::peers::{Input, Peer};
use support::{Result, chain, setting};

/// What one process that staged an image found out.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Staging {
    /// Seconds until all branches are committed, without the flush.
    wall: f64,
    /// Of these, after the last layer was unpacked.
    sealing: f64,
    /// Seconds that waiting for the disk took.
    flush: f64,
    /// Seconds on processors, all threads, without the flush.
    cpu: f64,
    /// Seconds on processors of the stages alone, in the order of [`STAGES`].
    stages: [f64; 6],
    /// The longest stage of one layer, seconds on a processor.
    longest: f64,
    /// Peak of resident memory.
    peak_mib: f64,
}

const STAGES: [&str; 6] = [
    "read",
    "inflate",
    "blob hash",
    "tar hash",
    "write",
    "finish",
];

fn stages(times: &StageTimes) -> [f64; 6] {
    [
        times.read,
        times.inflate,
        times.blob_hash,
        times.tar_hash,
        times.write,
        times.finish,
    ]
    .map(|spent| seconds(spent.cpu))
}

impl Staging {
    /// What no arrangement of the same stages could be faster than.
    fn bound(&self) -> f64 {
        let sum: f64 = self.stages.iter().sum();
        (sum / cores() as f64).max(self.longest)
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["child", layout, dir] => child(Path::new(layout), Path::new(dir)),
        ["image", dir] => make_image(Path::new(dir)).map(drop),
        // `cargo bench` gives `--bench`, `cargo test --benches` nothing.
        _ => compare(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("staging: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// When the layers were complete.
#[derive(Default)]
struct Clock(Mutex<Option<Instant>>);

impl Progress for Clock {
    fn layers(&self, _: &Arc<ingest::Progress>) {}

    fn phase(&self, phase: Phase) {
        if phase == Phase::Sealing
            && let Ok(mut sealing) = self.0.lock()
        {
            *sealing = Some(Instant::now());
        }
    }
}

/// Stages the image at `layout` into a store below `dir`, in a process of its
/// own, because memory is measured for a process.
fn child(layout: &Path, dir: &Path) -> Result<()> {
    let volumes = Volumes::open(
        VolumeOptions {
            root: dir.join("store"),
            run_dir: dir.join("run"),
            rootless: false,
            stage: StageOptions::default(),
            host_proc: "/proc".into(),
        },
        Arc::new(LinuxHost),
    )?;
    // Once for a node, not for an image.
    volumes.probe()?;
    let source: Source = format!("oci:{}:latest", layout.display()).parse()?;
    let clock = Clock::default();
    let (begun, cpu) = (Instant::now(), measure::own_cpu());
    let staged = volumes.stage(&source, None, UnionRequest::Overlay, &clock)?;
    let wall = seconds(begun.elapsed());
    let cpu = measure::own_cpu() - cpu;
    let sealing = clock.0.into_inner().ok().flatten();
    let mut staging = Staging {
        wall: wall - seconds(staged.flush),
        sealing: sealing.map_or(0.0, |at| seconds(at.elapsed()) - seconds(staged.flush)),
        flush: seconds(staged.flush),
        cpu,
        peak_mib: measure::peak_mib()?,
        ..Staging::default()
    };
    for times in &staged.times {
        let spent = stages(times);
        for (sum, part) in staging.stages.iter_mut().zip(spent) {
            *sum += part;
        }
        staging.longest = spent.into_iter().fold(staging.longest, f64::max);
    }
    println!("{}", serde_json::to_string(&staging)?);
    Ok(())
}

/// Runs [`child`] in a process of its own.
#[expect(clippy::disallowed_methods, reason = "it is this program itself")]
fn stage(layout: &Path, base: &Path) -> Result<Staging> {
    let dir = tempfile::Builder::new().prefix("stage-").tempdir_in(base)?;
    let output = std::process::Command::new(std::env::current_exe()?)
        .arg("child")
        .args([layout, dir.path()])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn make_image(dir: &Path) -> Result<Facts> {
    let begun = Instant::now();
    let facts = image::root_filesystem(dir, setting("BENCH_MB", 700)?)?;
    println!(
        "image: {} layers, {} entries, {:.1} MB of tar, {:.1} MB gzip (made in {:.0} s)",
        facts.layers,
        facts.entries,
        facts.tar_bytes as f64 / 1e6,
        facts.blob_bytes as f64 / 1e6,
        seconds(begun.elapsed())
    );
    Ok(facts)
}

/// A filesystem that flushing means nothing to.
fn is_memory(path: &Path) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(TMPFS))
}

#[expect(clippy::disallowed_methods, reason = "packs the image for its peers")]
fn compare() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err("staging with real owners needs root".into());
    }
    let place = |name: &str, default: &Path| {
        std::env::var_os(name).map_or_else(|| default.to_path_buf(), PathBuf::from)
    };
    let memory = tempfile::Builder::new()
        .prefix("aufs-csi-bench-")
        .tempdir_in(place("BENCH_DIR", Path::new("/dev/shm")))?;
    let rounds = setting("BENCH_ROUNDS", 3)?.max(1);
    println!("load before: {}, {} processors", load(), cores());
    let layout = match std::env::var_os("BENCH_IMAGE") {
        Some(dir) => {
            println!("image: {}", Path::new(&dir).display());
            PathBuf::from(dir)
        }
        None => {
            let layout = memory.path().join("image");
            make_image(&layout)?;
            layout
        }
    };
    let input = Input {
        archive: memory.path().join("image.tar"),
        blobs: image::blobs(&layout)?,
        layout,
    };
    let mut peers = Vec::new();
    if std::env::var("BENCH_PEERS").as_deref() != Ok("no") {
        let mut tar = std::process::Command::new("tar");
        tar.arg("-cf")
            .arg(&input.archive)
            .arg("-C")
            .arg(&input.layout)
            .arg(".");
        measure::run(&mut [tar])?;
        for peer in Peer::ALL {
            match peer.version() {
                Ok(version) => {
                    println!("peer: {version}");
                    peers.push((peer, Vec::new()));
                }
                Err(reason) => println!("left out: {}: {reason}", peer.name()),
            }
        }
    }
    let runs = in_memory(&input, &mut peers, memory.path(), rounds)?;
    report(&runs, &peers, memory.path());
    drop(peers);
    on_disk(&input, &place("BENCH_DISK", &std::env::temp_dir()))?;
    let _ = fs::remove_file(&input.archive);
    memory_of_shapes(memory.path(), &runs)?;
    println!("load after: {}", load());
    Ok(())
}

/// All contenders in turn, round after round.
fn in_memory(
    input: &Input,
    peers: &mut Vec<(Peer, Vec<Sample>)>,
    base: &Path,
    rounds: u64,
) -> Result<Vec<Staging>> {
    let mut runs = Vec::new();
    for _ in 0..rounds {
        runs.push(stage(&input.layout, base)?);
        let mut failed = Vec::new();
        for (peer, samples) in peers.iter_mut() {
            let dir = tempfile::Builder::new().prefix("peer-").tempdir_in(base)?;
            match peer.unpack(input, dir.path()) {
                Ok(sample) => samples.push(sample),
                Err(error) => {
                    println!("left out: {}: {}", peer.name(), chain(error.as_ref()));
                    failed.push(*peer);
                }
            }
        }
        peers.retain(|(peer, _)| !failed.contains(peer));
    }
    Ok(runs)
}

fn report(runs: &[Staging], peers: &[(Peer, Vec<Sample>)], place: &Path) {
    let of = |value: fn(&Staging) -> f64| median(runs.iter().map(value));
    let (wall, cpu) = (of(|run| run.wall), of(|run| run.cpu));
    println!(
        "\nstaging in {}, medians of {} rounds",
        place.display(),
        runs.len()
    );
    println!(
        "{:36} {:>8} {:>8} {:>8} {:>8}",
        "", "seconds", "÷ ours", "cpu s", "÷ ours"
    );
    println!(
        "{:36} {wall:8.2} {:>8} {cpu:8.2}",
        "aufs-csi, verified and sealed", ""
    );
    for (peer, samples) in peers {
        let peer_wall = median(samples.iter().map(|sample| sample.wall));
        let peer_cpu = median(samples.iter().map(|sample| sample.cpu));
        println!(
            "{:36} {peer_wall:8.2} {:7.1}x {peer_cpu:8.2} {:7.1}x",
            peer.name(),
            peer_wall / wall,
            peer_cpu / cpu
        );
    }
    println!("\nstages, seconds on a processor, all layers:");
    for (number, name) in STAGES.iter().enumerate() {
        println!(
            "  {name:10} {:6.3}",
            median(runs.iter().map(|run| run.stages[number]))
        );
    }
    println!(
        "  sealing and commit, by the clock: {:.3}",
        of(|run| run.sealing)
    );
    println!("  longest stage of a layer: {:.3}", of(|run| run.longest));
    println!(
        "bound, max(stages ÷ {} processors, longest stage): {:.3} s; ours ÷ bound: {:.2} (aim 1.3), by processor time: {:.2}",
        cores(),
        of(Staging::bound),
        median(runs.iter().map(|run| run.wall / run.bound())),
        median(
            runs.iter()
                .map(|run| run.cpu / run.stages.iter().sum::<f64>())
        ),
    );
    println!(
        "flush (syncfs, before a branch counts after a power cut), not in the times above: {:.3} s{}",
        of(|run| run.flush),
        if is_memory(place) {
            "; this filesystem is memory, so nothing was flushed"
        } else {
            ""
        },
    );
}

/// One round on a disk, to be seen and not judged.
fn on_disk(input: &Input, base: &Path) -> Result<()> {
    if is_memory(base) {
        println!(
            "\nno disk: {} is memory; BENCH_DISK names another place",
            base.display()
        );
        return Ok(());
    }
    let run = stage(&input.layout, base)?;
    println!("\non the disk of {}, one round, not judged", base.display());
    println!(
        "{:36} {:8.2}, and {:.2} to flush it",
        "aufs-csi", run.wall, run.flush
    );
    if !input.archive.exists() {
        return Ok(());
    }
    for peer in [Peer::Umoci, Peer::Tar] {
        let dir = tempfile::Builder::new().prefix("peer-").tempdir_in(base)?;
        match peer.unpack(input, dir.path()) {
            Ok(sample) => println!("{:36} {:8.2}, not flushed", peer.name(), sample.wall),
            Err(error) => println!("{}: {}", peer.name(), chain(error.as_ref())),
        }
    }
    Ok(())
}

/// Makes an image of some shape in a directory.
type Maker = dyn Fn(&Path) -> Result<Facts>;

/// The peak of memory for this image and for two odd ones.
fn memory_of_shapes(base: &Path, runs: &[Staging]) -> Result<()> {
    println!("\npeak of resident memory, MiB (aim 64):");
    let peak = runs.iter().map(|run| run.peak_mib).fold(0.0, f64::max);
    println!("  {:36} {peak:6.1}", "this image");
    let scale = setting("BENCH_MB", 700)? as usize;
    let entries = scale * 500_000 / 700;
    let shapes: [(String, Box<Maker>); 2] = [
        (
            format!("{entries} small files in one layer"),
            Box::new(move |dir| image::many_entries(dir, entries)),
        ),
        (
            "100 layers".to_owned(),
            Box::new(|dir| image::many_layers(dir, 100, 200)),
        ),
    ];
    for (name, make) in shapes {
        let dir = base.join("shape");
        make(&dir)?;
        let run = stage(&dir, base)?;
        println!(
            "  {name:36} {:6.1}   ({:.2} s, {:.2} x its bound; sealing {:.2} s)",
            run.peak_mib,
            run.wall,
            run.wall / run.bound(),
            run.sealing
        );
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}
