//! What one more pod on a node costs: disk, page cache, kernel memory and time,
//! for many volumes of one image of seven layers, each of which is read wholly.
//! And what an fsGroup costs on a large image.
//!
//! `BENCH_PODS` volumes (500), `BENCH_FILES` files in each layer (40) of 64 KiB;
//! `BENCH_LARGE` MiB of the large image (1024);
//! `BENCH_DIR` is a directory on a disk (`/var/tmp`). On every union that this
//! kernel has. It fails if an aim is missed.
#![expect(clippy::print_stdout, reason = "it is what a benchmark is for")]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::image::reference::Source;
use aufs_csi::pull::PullPolicy;
use aufs_csi::stage::StageOptions;
use aufs_csi::union::probe::UnionRequest;
use aufs_csi::volume::{Owner, PublishRequest, VolumeOptions, Volumes};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use support::aims::Aims;
use support::measure::{load, median, seconds};
use support::{Result, chain, image, setting};

/// Layers of the image.
const LAYERS: usize = 7;
/// Bytes of each file.
const FILE_BYTES: u64 = 64 << 10;
/// Volumes at the beginning and at the end whose time counts for all of these.
const EDGE: usize = 10;

/// Most KiB of disk for a pod that writes nothing: its record and empty
/// directories.
const DISK: f64 = 32.0;
/// Most of the image that is in the page cache once more for each further pod,
/// in percent.
const CACHE: f64 = 2.0;
/// Times the first publishes that the last ones may take, and times those without
/// a group that those with one may take.
const SLOWER: f64 = 1.5;
/// Volumes with a group, and as many without, in turn.
const GROUPS: usize = 30;

fn main() -> ExitCode {
    support::isolated("density", "/var/tmp", compare)
}

fn compare(base: &Path) -> Result<ExitCode> {
    let pods = usize::try_from(setting("BENCH_PODS", 500)?)?.max(2 * EDGE);
    let files = usize::try_from(setting("BENCH_FILES", 40)?)?;
    println!("load before: {}", load());
    let layout = base.join("image");
    image::plain_layers(&layout, LAYERS, files, FILE_BYTES)?;
    let large_mib = setting("BENCH_LARGE", 1024)?.max(1);
    let large = base.join("large");
    image::plain_layers(&large, 2, 8, large_mib * (1 << 20) / 16)?;
    let bytes = LAYERS as f64 * files as f64 * FILE_BYTES as f64;
    println!(
        "\n{pods} pods on {LAYERS} layers of {:.0} MiB, each read wholly; for each further pod:",
        bytes / f64::from(1 << 20)
    );
    println!(
        "{:8} {:>9} {:>11} {:>11} | {:>9} {:>9} {:>7}",
        "", "disk KiB", "cache KiB", "kernel KiB", "first ms", "last ms", "ratio"
    );
    let mut aims = Aims::default();
    let mut measured = 0;
    for (name, union) in [
        ("aufs", UnionRequest::Aufs),
        ("overlay", UnionRequest::Overlay),
    ] {
        // A tmpfs, as on a node.
        let run = tempfile::Builder::new()
            .prefix("aufs-csi-bench-")
            .tempdir_in("/dev/shm")?;
        let node = Node::open(&base.join(name), &layout, run.path(), union)?;
        if let Err(error) = node.stage() {
            println!("{name:8} not here: {}", chain(error.as_ref()));
            continue;
        }
        measured += 1;
        let found = node.measure(pods)?;
        println!(
            "{name:8} {:9.1} {:11.1} {:11.1} | {:9.2} {:9.2} {:6.2}x",
            found.disk,
            found.cache,
            found.kernel,
            found.first,
            found.last,
            found.last / found.first
        );
        aims.at_most(format!("{name}: disk for a pod"), " KiB", DISK, found.disk);
        aims.at_most(
            format!("{name}: page cache for a pod, of the image"),
            " %",
            CACHE,
            found.cache * 1024.0 / bytes * 100.0,
        );
        let (without, with, copied) = node.of_group(&large)?;
        println!(
            "{:8} with fsGroup on {large_mib} MiB: {with:.2} ms, {without:.2} without; {copied:.0} KiB copied up",
            ""
        );
        aims.at_most(
            format!("{name}: a publish with fsGroup beside one without"),
            "x",
            SLOWER,
            with / without,
        );
        aims.at_most(
            format!("{name}: what fsGroup copies up"),
            " KiB",
            DISK,
            copied,
        );
        let what = format!("{name}: the last publishes beside the first");
        if can_ask_about_one_mount() {
            aims.at_most(what, "x", SLOWER, found.last / found.first);
        } else {
            // The whole table of mounts is read to verify one.
            aims.unknown(what, &format!("≤ {SLOWER}x"), "Linux < 6.8");
        }
    }
    if measured == 0 {
        return Err("this kernel has no union that works here".into());
    }
    println!("load after: {}", load());
    Ok(aims.judge(None))
}

/// Whether this kernel has `statmount(2)`, which came with Linux 6.8.
fn can_ask_about_one_mount() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut parts = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    (parts.next(), parts.next()) >= (Some(6), Some(8))
}

/// KiB for each further pod, and milliseconds of a publish.
struct Found {
    disk: f64,
    cache: f64,
    kernel: f64,
    first: f64,
    last: f64,
}

struct Node {
    base: PathBuf,
    source: Source,
    union: UnionRequest,
    volumes: Volumes,
}

impl Node {
    fn open(base: &Path, layout: &Path, run: &Path, union: UnionRequest) -> Result<Self> {
        fs::create_dir_all(base)?;
        Ok(Node {
            base: base.to_owned(),
            source: format!("oci:{}:latest", layout.display()).parse()?,
            union,
            volumes: Volumes::open(
                VolumeOptions {
                    root: base.join("store"),
                    run_dir: run.to_owned(),
                    rootless: false,
                    max_branches: None,
                    stage: StageOptions::default(),
                    host_proc: "/proc".into(),
                    pull: Default::default(),
                    collect: Default::default(),
                },
                Arc::new(LinuxHost),
            )?,
        })
    }

    fn stage(&self) -> Result<()> {
        self.volumes
            .stage(&self.source, None, self.union, PullPolicy::Always, &())?;
        Ok(())
    }

    /// Milliseconds without a group and with one, and KiB in a writable layer with
    /// one.
    fn of_group(&self, layout: &Path) -> Result<(f64, f64, f64)> {
        let source: Source = format!("oci:{}:latest", layout.display()).parse()?;
        self.volumes
            .stage(&source, None, self.union, PullPolicy::Always, &())?;
        let (mut without, mut with, mut copied) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..GROUPS {
            for group in [None, Some(4321)] {
                let request = PublishRequest {
                    union: self.union,
                    owner: Owner::Plugin,
                    mount_group: group,
                    ..PublishRequest::new("group", source.clone(), self.base.join("group"))
                };
                let begun = Instant::now();
                self.volumes.publish(&request, &())?;
                let took = seconds(begun.elapsed()) * 1e3;
                match group {
                    None => without.push(took),
                    Some(_) => {
                        with.push(took);
                        let plan = self.volumes.find("group")?.1.plan;
                        let writable = plan.writable.ok_or("no writable layer")?;
                        copied.push(disk(&writable.upper)?);
                    }
                }
                self.volumes.unpublish_named("group")?;
            }
        }
        Ok((median(without), median(with), median(copied)))
    }

    fn measure(&self, pods: usize) -> Result<Found> {
        let mut times = Vec::with_capacity(pods);
        let mut publish = |number: usize| -> Result<()> {
            let target = self.base.join(format!("pod-{number}"));
            let request = PublishRequest {
                union: self.union,
                owner: Owner::Plugin,
                ..PublishRequest::new(format!("pod-{number}"), self.source.clone(), &target)
            };
            let begun = Instant::now();
            self.volumes.publish(&request, &())?;
            times.push(seconds(begun.elapsed()) * 1e3);
            read_tree(&target)
        };
        // What the first ones bring into memory is not one more pod's.
        for number in 0..EDGE {
            publish(number)?;
        }
        let before = Memory::read()?;
        let disk_before = disk(&self.base.join("store/volumes"))?;
        for number in EDGE..pods {
            publish(number)?;
        }
        let after = Memory::read()?;
        let further = (pods - EDGE) as f64;
        let found = Found {
            disk: (disk(&self.base.join("store/volumes"))? - disk_before) / further,
            cache: (after.cache - before.cache) / further,
            kernel: (after.kernel - before.kernel) / further,
            first: median(times[..EDGE].iter().copied()),
            last: median(times[pods - EDGE..].iter().copied()),
        };
        for number in 0..pods {
            self.volumes.unpublish_named(&format!("pod-{number}"))?;
        }
        Ok(found)
    }
}

/// What the kernel holds, in KiB.
struct Memory {
    cache: f64,
    kernel: f64,
}

impl Memory {
    fn read() -> Result<Self> {
        // What is about to go anyway is nobody's cost.
        rustix::fs::sync();
        let text = fs::read_to_string("/proc/meminfo")?;
        let sum = |names: &[&str]| -> f64 {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .filter(|(name, _)| names.contains(name))
                .filter_map(|(_, value)| value.split_whitespace().next()?.parse::<f64>().ok())
                .sum()
        };
        Ok(Memory {
            cache: sum(&["Cached", "Buffers"]),
            kernel: sum(&["Slab", "KernelStack", "PageTables", "Percpu", "VmallocUsed"]),
        })
    }
}

/// KiB that a tree takes on its disk.
fn disk(dir: &Path) -> Result<f64> {
    let mut sum = fs::symlink_metadata(dir)?.blocks() as f64 / 2.0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            sum += disk(&path)?;
        } else {
            sum += metadata.blocks() as f64 / 2.0;
        }
    }
    Ok(sum)
}

fn read_tree(dir: &Path) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            read_tree(&path)?;
        } else {
            let mut file = File::open(&path)?;
            while file.read(&mut buffer)? > 0 {}
        }
    }
    Ok(())
}
