//! How long staging a large image takes, beside other programs and beside the
//! least that its own stages need. Also the peak of resident memory. It fails if
//! an aim is missed.
//!
//! `BENCH_ISAL` is this program built with the feature `isal`, the fastest build,
//! which then takes turns with this one on the same image (`make bench` does so);
//! `BENCH_MB` megabytes of tar in the image (700); `BENCH_ROUNDS` rounds (3);
//! `BENCH_DIR` a directory in memory (`/dev/shm`); `BENCH_DISK` one on a disk;
//! `BENCH_IMAGE` an OCI layout that `staging image DIR` made before;
//! `BENCH_PEERS=no` leaves the others out. An image of less than 600 MB is good
//! to try the benchmark, and nothing is judged by it.
#![expect(clippy::print_stdout, reason = "it is what a benchmark is for")]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::image::reference::Source;
use aufs_csi::layer::ingest::{self, StageTimes};
use aufs_csi::pull::PullPolicy;
use aufs_csi::stage::{Phase, Progress, StageOptions};
use aufs_csi::union::probe::UnionRequest;
use aufs_csi::volume::{VolumeOptions, Volumes};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use support::aims::Aims;
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

/// How many times faster than umoci and containerd staging is to be: the portable
/// build, and the fastest.
const PORTABLE: f64 = 7.0;
const FASTEST: f64 = 9.0;
/// What staging may take of the least that its stages need.
const OF_BOUND: f64 = 1.3;
/// What it may have of memory, whatever the image.
const PEAK_MIB: f64 = 64.0;
/// What a real image has at least.
const REAL_BYTES: u64 = 600_000_000;

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
    let done = |()| ExitCode::SUCCESS;
    let result = match arguments[..] {
        ["child", layout, dir] => child(Path::new(layout), Path::new(dir)).map(done),
        ["image", dir] => make_image(Path::new(dir)).map(drop).map(done),
        // `cargo bench` gives `--bench`, `cargo test --benches` nothing.
        _ => compare(),
    };
    match result {
        Ok(code) => code,
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
            max_branches: None,
            stage: StageOptions::default(),
            host_proc: "/proc".into(),
            pull: Default::default(),
            collect: Default::default(),
        },
        Arc::new(LinuxHost),
    )?;
    // Once for a node, not for an image.
    volumes.probe()?;
    let source: Source = format!("oci:{}:latest", layout.display()).parse()?;
    let clock = Clock::default();
    let (begun, cpu) = (Instant::now(), measure::own_cpu());
    let staged = volumes.stage(
        &source,
        None,
        UnionRequest::Overlay,
        PullPolicy::Always,
        &clock,
    )?;
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

/// One build of this program.
struct Build {
    name: &'static str,
    program: PathBuf,
    /// How much faster than the peers it is to be.
    aim: f64,
    runs: Vec<Staging>,
}

impl Build {
    fn new(name: &'static str, program: PathBuf, aim: f64) -> Self {
        let runs = Vec::new();
        Build {
            name,
            program,
            aim,
            runs,
        }
    }

    /// This one, and the fastest if there is one.
    fn all() -> Result<Vec<Self>> {
        let own = std::env::current_exe()?;
        // Whoever builds this one with the feature measures that.
        let mut all = vec![match cfg!(feature = "isal") {
            false => Build::new("portable", own, PORTABLE),
            true => Build::new("isal", own, FASTEST),
        }];
        if let Some(program) = std::env::var_os("BENCH_ISAL") {
            all.push(Build::new("isal", PathBuf::from(program), FASTEST));
        }
        Ok(all)
    }

    fn of(&self, value: fn(&Staging) -> f64) -> f64 {
        median(self.runs.iter().map(value))
    }
}

/// Runs [`child`] of a build in a process of its own.
#[expect(clippy::disallowed_methods, reason = "it is this program itself")]
fn stage(program: &Path, layout: &Path, base: &Path) -> Result<Staging> {
    let dir = tempfile::Builder::new().prefix("stage-").tempdir_in(base)?;
    let output = std::process::Command::new(program)
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
fn compare() -> Result<ExitCode> {
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
    let (layout, tar_bytes) = match std::env::var_os("BENCH_IMAGE") {
        Some(dir) => {
            println!("image: {}", Path::new(&dir).display());
            // Whoever made it knows how large it is.
            (PathBuf::from(dir), REAL_BYTES)
        }
        None => {
            let layout = memory.path().join("image");
            let facts = make_image(&layout)?;
            (layout, facts.tar_bytes)
        }
    };
    let input = Input {
        archive: memory.path().join("image.tar"),
        blobs: image::blobs(&layout)?,
        layout,
    };
    let mut builds = Build::all()?;
    let mut peers = Vec::new();
    let mut left_out = Vec::new();
    if std::env::var("BENCH_PEERS").as_deref() == Ok("no") {
        left_out.extend(Peer::ALL.map(|peer| (peer, "BENCH_PEERS=no".to_owned())));
    } else {
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
                Err(reason) => left_out.push((peer, reason)),
            }
        }
    }
    in_memory(
        &input,
        &mut builds,
        &mut peers,
        &mut left_out,
        memory.path(),
        rounds,
    )?;
    for (peer, reason) in &left_out {
        println!("left out: {}: {reason}", peer.name());
    }
    let mut aims = Aims::default();
    report(&builds, &peers, memory.path());
    judge(&builds, &peers, &left_out, &mut aims);
    drop(peers);
    on_disk(&input, &builds, &place("BENCH_DISK", &std::env::temp_dir()))?;
    let _ = fs::remove_file(&input.archive);
    memory_of_shapes(memory.path(), &builds, &mut aims)?;
    println!("load after: {}", load());
    let small = format!(
        "the image has {} MB, and not 600 or more",
        tar_bytes / 1_000_000
    );
    Ok(aims.judge((tar_bytes < REAL_BYTES).then_some(&small)))
}

/// All contenders in turn, round after round.
fn in_memory(
    input: &Input,
    builds: &mut [Build],
    peers: &mut Vec<(Peer, Vec<Sample>)>,
    left_out: &mut Vec<(Peer, String)>,
    base: &Path,
    rounds: u64,
) -> Result<()> {
    for _ in 0..rounds {
        for build in &mut *builds {
            build.runs.push(stage(&build.program, &input.layout, base)?);
        }
        for (peer, samples) in &mut *peers {
            let dir = tempfile::Builder::new().prefix("peer-").tempdir_in(base)?;
            match peer.unpack(input, dir.path()) {
                Ok(sample) => samples.push(sample),
                Err(error) => left_out.push((*peer, chain(error.as_ref()))),
            }
        }
        peers.retain(|(peer, _)| !left_out.iter().any(|(other, _)| other == peer));
    }
    Ok(())
}

fn report(builds: &[Build], peers: &[(Peer, Vec<Sample>)], place: &Path) {
    println!(
        "\nstaging in {}, medians of {} rounds, each contender in turn",
        place.display(),
        builds[0].runs.len()
    );
    print!("{:36} {:>8} {:>8}", "", "seconds", "cpu s");
    for build in builds {
        print!(" {:>12} {:>8}", format!("÷ {}", build.name), "cpu");
    }
    println!();
    for build in builds {
        let name = format!("aufs-csi {}, verified and sealed", build.name);
        println!(
            "{name:36} {:8.2} {:8.2}",
            build.of(|run| run.wall),
            build.of(|run| run.cpu)
        );
    }
    for (peer, samples) in peers {
        let (wall, cpu) = medians(samples);
        print!("{:36} {wall:8.2} {cpu:8.2}", peer.name());
        for build in builds {
            let (own, own_cpu) = (build.of(|run| run.wall), build.of(|run| run.cpu));
            print!(" {:11.1}x {:7.1}x", wall / own, cpu / own_cpu);
        }
        println!();
    }
    for build in builds {
        println!(
            "\n{}: stages, seconds on a processor, all layers:",
            build.name
        );
        for (number, name) in STAGES.iter().enumerate() {
            let spent = median(build.runs.iter().map(|run| run.stages[number]));
            println!("  {name:10} {spent:6.3}");
        }
        println!(
            "  sealing and commit, by the clock: {:.3}; longest stage of a layer: {:.3}",
            build.of(|run| run.sealing),
            build.of(|run| run.longest)
        );
        println!(
            "  bound, max(stages ÷ {} processors, longest stage): {:.3} s; processor time ÷ stages: {:.2}",
            cores(),
            build.of(Staging::bound),
            build.of(|run| run.cpu / run.stages.iter().sum::<f64>()),
        );
        println!(
            "  flush (syncfs, before a branch counts after a power cut), not in the times above: {:.3} s{}",
            build.of(|run| run.flush),
            if is_memory(place) {
                "; this filesystem is memory, so nothing was flushed"
            } else {
                ""
            },
        );
    }
}

fn medians(samples: &[Sample]) -> (f64, f64) {
    let wall = median(samples.iter().map(|sample| sample.wall));
    (wall, median(samples.iter().map(|sample| sample.cpu)))
}

/// What of the speed can be told by now.
fn judge(
    builds: &[Build],
    peers: &[(Peer, Vec<Sample>)],
    left_out: &[(Peer, String)],
    aims: &mut Aims,
) {
    for build in builds {
        for peer in [Peer::Umoci, Peer::Containerd] {
            let what = format!("{}: {} ÷ ours", build.name, peer.name());
            let reason = left_out.iter().find(|(other, _)| *other == peer);
            match (peers.iter().find(|(other, _)| *other == peer), reason) {
                (Some((_, samples)), _) => {
                    let ratio = medians(samples).0 / build.of(|run| run.wall);
                    aims.at_least(what, "x", build.aim, ratio);
                }
                (None, reason) => {
                    let reason = reason.map_or("", |(_, reason)| reason);
                    aims.unknown(what, &format!("≥ {}x", build.aim), reason);
                }
            }
        }
        aims.at_most(
            format!("{}: ours ÷ bound of its stages", build.name),
            "x",
            OF_BOUND,
            build.of(|run| run.wall / run.bound()),
        );
    }
    if !builds.iter().any(|build| build.name == "isal") {
        let reason = "BENCH_ISAL is not set; make bench builds it";
        aims.unknown("isal: umoci and containerd ÷ ours", "≥ 9x", reason);
    }
}

/// One round on a disk, to be seen and not judged.
fn on_disk(input: &Input, builds: &[Build], base: &Path) -> Result<()> {
    if is_memory(base) {
        println!(
            "\nno disk: {} is memory; BENCH_DISK names another place",
            base.display()
        );
        return Ok(());
    }
    println!("\non the disk of {}, one round, not judged", base.display());
    for build in builds {
        let run = stage(&build.program, &input.layout, base)?;
        println!(
            "{:36} {:8.2}, and {:.2} to flush it",
            format!("aufs-csi {}", build.name),
            run.wall,
            run.flush
        );
    }
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
fn memory_of_shapes(base: &Path, builds: &[Build], aims: &mut Aims) -> Result<()> {
    for build in builds {
        let peak = build
            .runs
            .iter()
            .map(|run| run.peak_mib)
            .fold(0.0, f64::max);
        let what = format!("{}: peak of memory, this image", build.name);
        aims.at_most(what, " MiB", PEAK_MIB, peak);
    }
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
    println!("\nother shapes:");
    for (name, make) in shapes {
        let dir = base.join("shape");
        make(&dir)?;
        for build in builds {
            let run = stage(&build.program, &dir, base)?;
            println!(
                "  {:10} {name:36} {:.2} s, {:.2} x its bound; sealing {:.2} s",
                build.name,
                run.wall,
                run.wall / run.bound(),
                run.sealing
            );
            let what = format!("{}: peak of memory, {name}", build.name);
            aims.at_most(what, " MiB", PEAK_MIB, run.peak_mib);
        }
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}
