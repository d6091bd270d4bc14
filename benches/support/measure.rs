//! Clocks of processes, and what is made of many measurements.

use super::Result;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one run of something took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Seconds by the clock on the wall.
    pub wall: f64,
    /// Seconds on processors, of all processes that took part. Where other
    /// programs share the machine this says more than the clock on the wall.
    pub cpu: f64,
}

/// The middle of some measurements; the mean of the two middle ones.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

/// The value that `percent` of all values do not exceed.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let place = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(place).copied().unwrap_or(f64::NAN)
}

/// Seconds on processors that a process used, and of it what its ended children
/// used, from `/proc/<pid>/stat` (whose unit has been 1/100 s on every
/// architecture since Linux 2.6).
fn cpu(pid: &str) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything, also parentheses.
    let rest = stat.rsplit_once(')').ok_or("a stat file without a name")?.1;
    let ticks: Vec<f64> = rest
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let [user, system, children_user, children_system] = ticks[..] else {
        return Err("a stat file that is too short".into());
    };
    let children = (children_user + children_system) / 100.0;
    Ok(((user + system) / 100.0 + children, children))
}

/// Seconds on processors of a daemon and its ended children.
pub fn cpu_of(pid: u32) -> Result<f64> {
    Ok(cpu(&pid.to_string())?.0)
}

/// Seconds on processors of this process, its threads included, to the nanosecond.
pub fn own_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs commands one after another; what they say is shown only if one fails.
pub fn run(commands: &mut [Command]) -> Result<Sample> {
    let before = cpu("self")?.1;
    let begun = Instant::now();
    for command in commands {
        let output = command.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(format!(
                "{:?}: {}: {}",
                command.get_program(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )
            .into());
        }
    }
    Ok(Sample {
        wall: begun.elapsed().as_secs_f64(),
        cpu: cpu("self")?.1 - before,
    })
}

/// Peak of this process's resident memory in MiB.
pub fn peak_mib() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .ok_or("no peak of resident memory")?
        .trim()
        .trim_end_matches(" kB")
        .parse()?;
    Ok(kib / 1024.0)
}

/// Processes that run or wait for a processor, in the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// Seconds of a duration.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
