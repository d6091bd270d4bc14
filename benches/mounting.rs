//! What publishing a volume of a staged image costs beside the bare mount of
//! the same plan, alone and among a thousand other mounts.
//!
//! `BENCH_MOUNTS` volumes of each kind (300); `BENCH_OTHERS` other mounts (1000);
//! `BENCH_DIR` a directory in memory (`/dev/shm`). All mounts are made in a
//! mount namespace of its own, which goes with the process. It fails if an aim
//! is missed.
#![expect(clippy::print_stdout, reason = "it is what a benchmark is for")]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountCall};
use aufs_csi::image::reference::Source;
use aufs_csi::pull::PullPolicy;
use aufs_csi::stage::StageOptions;
use aufs_csi::union::probe::UnionRequest;
use aufs_csi::union::{Features, MountPlan, MountStep};
use aufs_csi::volume::{Owner, PublishRequest, VolumeOptions, Volumes};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use support::aims::Aims;
use support::measure::{load, percentile, seconds};
use support::{Result, image, setting};

/// Layers of the image.
const LAYERS: usize = 8;

/// What a warm publish may cost: so many times the bare mount, and so much more.
const AIM: (f64, f64) = (3.0, 300.0);

fn main() -> ExitCode {
    support::isolated("mounting", "/dev/shm", compare)
}

fn compare(base: &Path) -> Result<ExitCode> {
    let count = setting("BENCH_MOUNTS", 300)?.max(1);
    let others = setting("BENCH_OTHERS", 1000)?;
    println!("load before: {}", load());
    let layout = base.join("image");
    image::many_layers(&layout, LAYERS, 50)?;
    let source: Source = format!("oci:{}:latest", layout.display()).parse()?;
    let volumes = Volumes::open(
        VolumeOptions {
            root: base.join("store"),
            run_dir: base.join("run"),
            rootless: false,
            max_branches: None,
            stage: StageOptions::default(),
            host_proc: "/proc".into(),
            pull: Default::default(),
            collect: Default::default(),
        },
        Arc::new(LinuxHost),
    )?;
    let features = volumes.probe()?.features();
    volumes.stage(
        &source,
        None,
        UnionRequest::Overlay,
        PullPolicy::Always,
        &(),
    )?;

    println!("\noverlay of {LAYERS} layers, µs of {count} mounts in turn with as many bare ones");
    println!(
        "{:12} {:>8} | {:>8} {:>8} | {:>8} {:>8} | {:>6}",
        "", "others", "bare p50", "p99", "ours p50", "p99", "ratio"
    );
    let mut aims = Aims::default();
    for number in [0, others] {
        for place in 0..number {
            let at = base.join(format!("other/{place}"));
            fs::create_dir_all(&at)?;
            let call = MountCall::Bind {
                source: at.clone(),
                beneath: None,
            };
            LinuxHost.mount(&at, &call)?;
        }
        for read_only in [true, false] {
            let publishing = Publishing {
                volumes: &volumes,
                features: &features,
                source: &source,
                base,
                read_only,
            };
            let (bare, ours) = publishing.measure(count)?;
            let (middle, bare_middle) = (percentile(&ours, 50), percentile(&bare, 50));
            let kind = if read_only { "read-only" } else { "writable" };
            println!(
                "{kind:12} {number:8} | {bare_middle:8.0} {:8.0} | {middle:8.0} {:8.0} | {:5.2}x",
                percentile(&bare, 99),
                percentile(&ours, 99),
                middle / bare_middle,
            );
            aims.at_most(
                format!(
                    "{kind}, {number} others: {} × the bare mount + {} µs",
                    AIM.0, AIM.1
                ),
                " µs",
                (AIM.0 * bare_middle + AIM.1).round(),
                middle,
            );
        }
    }
    println!("load after: {}", load());
    Ok(aims.judge(None))
}

struct Publishing<'a> {
    volumes: &'a Volumes,
    features: &'a Features,
    source: &'a Source,
    base: &'a Path,
    read_only: bool,
}

impl Publishing<'_> {
    /// Microseconds of bare mounts and of publishing, one of each in turn.
    fn measure(&self, count: u64) -> Result<(Vec<f64>, Vec<f64>)> {
        let plan = self.plan()?;
        // Not measured: whatever is only slow at first.
        for _ in 0..5 {
            self.bare(&plan)?;
            self.publish()?;
        }
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..count {
            bare.push(self.bare(&plan)?);
            ours.push(self.publish()?);
        }
        Ok((bare, ours))
    }

    fn request(&self) -> PublishRequest {
        PublishRequest {
            read_only: self.read_only,
            union: UnionRequest::Overlay,
            owner: Owner::Plugin,
            ..PublishRequest::new("bench", self.source.clone(), self.base.join("target"))
        }
    }

    /// What the kernel is asked for when the volume is published.
    fn plan(&self) -> Result<MountPlan> {
        let request = self.request();
        self.volumes.publish(&request, &())?;
        let plan = self.volumes.find(&request.volume_id)?.1.plan;
        self.volumes.unpublish_named(&request.volume_id)?;
        Ok(plan)
    }

    fn publish(&self) -> Result<f64> {
        let request = self.request();
        let begun = Instant::now();
        self.volumes.publish(&request, &())?;
        let took = seconds(begun.elapsed()) * 1e6;
        self.volumes.unpublish_named(&request.volume_id)?;
        Ok(took)
    }

    /// The system calls of the plan that mount something, and nothing else.
    fn bare(&self, plan: &MountPlan) -> Result<f64> {
        let mut dirs = vec![plan.target.clone(), plan.staging.clone()];
        if let Some(writable) = &plan.writable {
            dirs.extend([writable.upper.clone(), writable.work.clone()]);
        }
        for dir in &dirs {
            fs::create_dir_all(dir)?;
        }
        let calls: Vec<(PathBuf, MountCall)> = plan
            .steps(self.features)?
            .into_iter()
            .filter_map(|step| match step {
                MountStep::Call { at, call } => Some((at, call)),
                MountStep::Clear { .. }
                | MountStep::RemoveStale { .. }
                | MountStep::VerifyUnion { .. }
                | MountStep::VerifyBind { .. }
                | MountStep::Release { .. } => None,
            })
            .collect();
        let begun = Instant::now();
        for (at, call) in &calls {
            LinuxHost.mount(at, call)?;
        }
        let took = seconds(begun.elapsed()) * 1e6;
        for (at, call) in calls.iter().rev() {
            if !matches!(call, MountCall::Remount { .. } | MountCall::AddFlags { .. }) {
                LinuxHost.unmount(at)?;
            }
        }
        for dir in &dirs {
            fs::remove_dir_all(dir)?;
        }
        // The volume's directory is publish's to make.
        if let Some(volume) = plan.staging.parent() {
            fs::remove_dir(volume)?;
        }
        Ok(took)
    }
}
