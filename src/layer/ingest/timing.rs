//! How long each stage of a layer worked, always measured: two clocks are read
//! per chunk of a quarter megabyte, which takes less than a microsecond.

use rustix::time::{ClockId, clock_gettime};
use std::ops::{AddAssign, Sub};
use std::time::{Duration, Instant};

/// Time that a stage spent working, without waiting for other stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// By the clock on the wall. Where there are more threads than processors
    /// this includes the time that the thread waited for one.
    pub wall: Duration,
    /// On a processor, user and system time of the thread. It lacks the time
    /// that the thread waited for the network or a disk.
    pub cpu: Duration,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.cpu += other.cpu;
    }
}

impl Spent {
    /// For each of two pieces of work that were done as one.
    pub(super) fn half(self) -> Self {
        Spent {
            wall: self.wall / 2,
            cpu: self.cpu / 2,
        }
    }
}

impl Sub for Spent {
    type Output = Spent;

    /// What is left; never less than nothing.
    fn sub(self, other: Self) -> Spent {
        Spent {
            wall: self.wall.saturating_sub(other.wall),
            cpu: self.cpu.saturating_sub(other.cpu),
        }
    }
}

/// Where the time of one layer went. Reading and inflating share a thread, so
/// do the two digests, which may be computed by another layer's; writing has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StageTimes {
    /// Reading the blob from its source.
    pub read: Spent,
    /// Decompression.
    pub inflate: Spent,
    /// Digest of the blob.
    pub blob_hash: Spent,
    /// Digest of the tar; nothing for an uncompressed blob, whose digest it is.
    pub tar_hash: Spent,
    /// Parsing the tar and what the sink does with the entries.
    pub write: Spent,
    /// What the consumer did apart from that, so before the first entry and
    /// after the last.
    pub finish: Spent,
}

impl StageTimes {
    /// All stages together.
    pub fn total(&self) -> Spent {
        let mut total = self.read;
        for stage in [
            self.inflate,
            self.blob_hash,
            self.tar_hash,
            self.write,
            self.finish,
        ] {
            total += stage;
        }
        total
    }
}

/// Measures one piece of work on the thread that it was started on.
pub(super) struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Stopwatch {
            wall: Instant::now(),
            cpu: thread_cpu_time(),
        }
    }

    pub(super) fn stop(&self) -> Spent {
        Spent {
            wall: self.wall.elapsed(),
            cpu: thread_cpu_time().saturating_sub(self.cpu),
        }
    }
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Both are positive on this clock.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_counts_on_the_wall_and_not_on_the_processor() {
        let watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(30));
        let spent = watch.stop();
        assert!(spent.wall >= Duration::from_millis(30));
        assert!(spent.cpu < Duration::from_millis(20), "{spent:?}");
    }
}
