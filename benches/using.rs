//! What a pod pays for a union when it uses it: the first write to a file of the
//! image (copy-up) by size, and a cold lookup and a cold listing by depth, beside
//! the same on a plain directory.
//!
//! On every union that this kernel has. `BENCH_LARGEST` is the largest file in
//! MiB (1024); `BENCH_ROUNDS` rounds for each figure of depth (5); `BENCH_DIR` is
//! a directory on a disk (`/var/tmp`). Branches are made by hand: what is measured
//! is the kernel's, with the options of this program. No aims: it gives the
//! figures of docs/aufs.md.
#![expect(clippy::print_stdout, reason = "it is what a benchmark is for")]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::union::probe::{Probe, ProbeOptions, self_test};
use aufs_csi::union::{Backend, Features, MountPlan, Writable, mount, unmount};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::measure::{load, median, seconds};
use support::{Result, setting};

/// Numbers of read-only branches; the last is near AUFS's usual limit.
const DEPTHS: [usize; 3] = [2, 32, 120];
/// Files of the directory that is listed, in all branches together.
const FILES: usize = 1200;
/// Files that are looked up, all in the lowest branch.
const LOOKED_UP: usize = 200;
/// How long a union may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    support::isolated("using", "/var/tmp", compare)
}

fn compare(base: &Path) -> Result<ExitCode> {
    let base = base.canonicalize()?;
    let run = tempfile::Builder::new()
        .prefix("aufs-csi-bench-")
        .tempdir_in("/dev/shm")?;
    println!("load before: {}", load());
    let store = base.join("probe");
    fs::create_dir(&store)?;
    let probe = self_test(
        &LinuxHost,
        &ProbeOptions {
            store,
            run: run.path().canonicalize()?,
            os_release: String::new(),
            allow_btrfs: false,
        },
    )?;
    let bench = Bench {
        backends: backends(&probe),
        features: probe.features(),
        base,
        run: run.path().canonicalize()?,
    };
    if bench.backends.is_empty() {
        return Err("this kernel has no union that works here".into());
    }
    bench.copy_up()?;
    bench.depths()?;
    println!("load after: {}", load());
    Ok(ExitCode::SUCCESS)
}

fn backends(probe: &Probe) -> Vec<Backend> {
    let mut found = Vec::new();
    match &probe.aufs {
        Ok(_) => found.push(Backend::Aufs),
        Err(error) => println!("no AUFS here: {error}"),
    }
    match &probe.overlay {
        Ok(_) => found.push(Backend::Overlay),
        Err(error) => println!("no overlay here: {error}"),
    }
    found
}

struct Bench {
    base: PathBuf,
    run: PathBuf,
    features: Features,
    backends: Vec<Backend>,
}

impl Bench {
    /// A union of these branches with a writable layer, for as long as `work`
    /// takes.
    fn with_union<T>(
        &self,
        backend: Backend,
        branches: &[PathBuf],
        work: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        let volume = self.base.join("volume");
        let made = |name: &str| -> Result<PathBuf> {
            let path = volume.join(name);
            fs::create_dir_all(&path)?;
            Ok(path)
        };
        let plan = MountPlan {
            backend,
            branches: branches.to_vec(),
            writable: Some(Writable {
                upper: made("upper")?,
                work: made("work")?,
                memory: false,
            }),
            target: made("target")?,
            staging: made("staging")?,
            sub_path: None,
            read_only: false,
            label: None,
            xino: Some(self.run.join("xino")),
        };
        mount(&LinuxHost, &plan, &self.features)?;
        let result = work(&plan.target);
        unmount(&LinuxHost, &[&plan.target], PATIENCE)?;
        fs::remove_dir_all(&volume)?;
        result
    }

    /// Seconds until one byte is written to a file of the lowest branch.
    fn copy_up(&self) -> Result<()> {
        let largest = setting("BENCH_LARGEST", 1024)?.max(1);
        let branches: Vec<PathBuf> = (0..2)
            .map(|number| self.base.join(format!("copy-up/{number}")))
            .collect();
        for branch in &branches {
            fs::create_dir_all(branch)?;
        }
        println!("\nfirst write to a file of the image, ms; copied by a program, ms; ratio");
        println!(
            "{:8} {:>9} | {:>10} {:>10} {:>7}",
            "", "MiB", "union", "copy", "ratio"
        );
        for size in [1, 100, largest] {
            let file = branches[1].join("file");
            fill(&file, size)?;
            for &backend in &self.backends {
                // Both read from memory what they read, and both flush what they write.
                read_all(&file)?;
                let up = self.with_union(backend, &branches, |target| {
                    let begun = Instant::now();
                    let mut file = File::options().write(true).open(target.join("file"))?;
                    file.seek(SeekFrom::Start(1))?;
                    file.write_all(b"!")?;
                    file.sync_all()?;
                    Ok(seconds(begun.elapsed()) * 1e3)
                })?;
                read_all(&file)?;
                let copied = self.base.join("copied");
                let begun = Instant::now();
                std::io::copy(
                    &mut File::open(&file)?.take(u64::MAX),
                    &mut File::create(&copied)?,
                )?;
                File::open(&copied)?.sync_all()?;
                let copy = seconds(begun.elapsed()) * 1e3;
                fs::remove_file(&copied)?;
                println!(
                    "{:8} {size:9} | {up:10.1} {copy:10.1} {:6.2}x",
                    backend.name(),
                    up / copy
                );
            }
            fs::remove_file(&file)?;
        }
        Ok(())
    }

    /// Microseconds of a lookup and of a listing, both with nothing in the
    /// kernel's caches of names.
    fn depths(&self) -> Result<()> {
        let rounds = setting("BENCH_ROUNDS", 5)?.max(1);
        println!(
            "\ncold, µs: one lookup of a file in the lowest branch; one listing of {FILES} files"
        );
        println!(
            "{:8} {:>9} | {:>10} {:>10}",
            "", "branches", "lookup", "listing"
        );
        for depth in DEPTHS {
            let dir = self.base.join(format!("depth-{depth}"));
            let branches: Vec<PathBuf> = (0..depth)
                .map(|number| dir.join(number.to_string()))
                .collect();
            let plain = dir.join("plain");
            for (number, branch) in branches.iter().enumerate() {
                fs::create_dir_all(branch.join("all"))?;
                fs::create_dir_all(plain.join("all"))?;
                for file in (number..FILES).step_by(depth) {
                    File::create(branch.join(format!("all/{file}")))?;
                    File::create(plain.join(format!("all/{file}")))?;
                }
                if number + 1 == depth {
                    for file in 0..LOOKED_UP {
                        File::create(branch.join(format!("all/lowest-{file}")))?;
                        File::create(plain.join(format!("all/lowest-{file}")))?;
                    }
                }
            }
            let print = |name: &str, (lookup, listing): (f64, f64)| {
                println!("{name:8} {depth:9} | {lookup:10.1} {listing:10.0}");
            };
            print("plain", names(&plain, rounds)?);
            for &backend in &self.backends {
                let figures =
                    self.with_union(backend, &branches, |target| names(target, rounds))?;
                print(backend.name(), figures);
            }
            fs::remove_dir_all(&dir)?;
        }
        Ok(())
    }
}

fn names(dir: &Path, rounds: u64) -> Result<(f64, f64)> {
    let (mut lookups, mut listings) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        forget_names()?;
        // The directory itself is not what is measured.
        fs::metadata(dir.join("all"))?;
        let begun = Instant::now();
        for file in 0..LOOKED_UP {
            fs::metadata(dir.join(format!("all/lowest-{file}")))?;
        }
        lookups.push(seconds(begun.elapsed()) * 1e6 / LOOKED_UP as f64);
        forget_names()?;
        fs::metadata(dir.join("all"))?;
        let begun = Instant::now();
        let found = fs::read_dir(dir.join("all"))?.count();
        listings.push(seconds(begun.elapsed()) * 1e6);
        if found != FILES + LOOKED_UP {
            return Err(format!("{found} files are listed in {}", dir.display()).into());
        }
    }
    Ok((median(lookups), median(listings)))
}

/// Drops the kernel's entries of names and inodes; what is on disk stays in memory.
fn forget_names() -> Result<()> {
    rustix::fs::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "2")?)
}

/// A file of so many MiB whose blocks are all different.
fn fill(path: &Path, megabytes: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0x5a; 1 << 20];
    for number in 0..megabytes {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

fn read_all(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}
