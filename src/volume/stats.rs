//! How full a volume is.

use super::limit::Means;
use super::{VolumeError, Volumes, canonical, record};
use crate::layer::store::StoreError;
use crate::layer::upper::{self, Holds};
use crate::telemetry::{Holdings, Pulls};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Youngest count that is made anew. kubelet asks for every volume each minute.
const RECOUNT_AFTER: Duration = Duration::from_secs(20);
/// A count that took long is good for that many times as long, so that counting
/// never takes more than a small part of the time.
const RECOUNT_FACTOR: u32 = 50;

/// How much of something there is, and how much of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// What the volume uses: its writable layer alone.
    pub used: u64,
    /// What can still be used: up to the volume's limit, or else by all who share
    /// the disk.
    pub available: u64,
    /// All there is.
    pub total: u64,
}

/// How full a volume is. One that is read-only uses nothing and has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes.
    pub bytes: Amount,
    /// Inodes.
    pub inodes: Amount,
}

/// What was counted last, by writable layer.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<HashMap<PathBuf, Count>>);

#[derive(Debug, Clone, Copy)]
struct Count {
    holds: Holds,
    made: Instant,
    took: Duration,
}

impl Counted {
    /// The map is whole after every statement, whoever panicked.
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn young(&self, upper: &Path) -> Option<Holds> {
        let count = *self.lock().get(upper)?;
        let good_for = RECOUNT_AFTER.max(count.took * RECOUNT_FACTOR);
        (count.made.elapsed() < good_for).then_some(count.holds)
    }

    pub(super) fn forget(&self, upper: &Path) {
        self.lock().remove(upper);
    }
}

impl Volumes {
    /// How full the volume at `target` is.
    pub fn usage(&self, volume_id: &str, target: &Path) -> Result<Usage, VolumeError> {
        let dir = record::directory(&self.store, volume_id);
        let not_there = || VolumeError::NotThere {
            volume_id: volume_id.to_owned(),
            path: target.to_owned(),
        };
        let record = record::read(&dir)
            .map_err(VolumeError::Store)?
            .ok_or_else(not_there)?;
        if !target.is_absolute() || canonical(target)? != record.target {
            return Err(not_there());
        }
        let Some(writable) = &record.plan.writable else {
            return Ok(Usage::default());
        };
        if record.state == record::VolumeState::Beginning {
            // Its record is all that is there of it.
            return Err(not_there());
        }
        if let Some(limit) = &record.limit {
            return self.limited_usage(&dir, &record, limit);
        }
        let failed = |source| VolumeError::Usage {
            volume_id: volume_id.to_owned(),
            source,
        };
        let holds = self.count(&writable.upper)?;
        let disk = self.host.filesystem(&writable.upper).map_err(failed)?;
        Ok(Usage {
            bytes: Amount {
                used: holds.bytes,
                available: disk.bytes_available,
                total: disk.bytes,
            },
            inodes: Amount {
                used: holds.inodes,
                available: disk.inodes_available,
                total: disk.inodes,
            },
        })
    }

    fn count(&self, upper: &Path) -> Result<Holds, VolumeError> {
        if let Some(holds) = self.counted.young(upper) {
            return Ok(holds);
        }
        let began = Instant::now();
        let holds = File::open(upper)
            .and_then(|fd| upper::count(fd.as_fd()).map_err(io::Error::other))
            .map_err(StoreError::io("count", upper))
            .map_err(VolumeError::Store)?;
        let count = Count {
            holds,
            made: Instant::now(),
            took: began.elapsed(),
        };
        self.counted.lock().insert(upper.to_owned(), count);
        Ok(holds)
    }

    /// What came of the pulls of this process, for metrics.
    pub fn pulls(&self) -> Pulls {
        self.pulls.counts()
    }

    /// Removes what was fetched from registries and has not been used in an hour.
    pub fn expire_downloads(&self) -> Result<(), VolumeError> {
        self.pulls.expire().map_err(VolumeError::Store)
    }

    /// What the node holds, for metrics.
    pub fn holdings(&self) -> Result<Holdings, VolumeError> {
        let mut holdings = Holdings::default();
        for (_, record) in record::all(&self.store).map_err(VolumeError::Store)? {
            match record.state {
                record::VolumeState::Intended => holdings.intended += 1,
                record::VolumeState::Mounted => holdings.mounted += 1,
                record::VolumeState::Returning | record::VolumeState::Beginning => {
                    holdings.returning += 1;
                }
                record::VolumeState::Leaving => holdings.leaving += 1,
            }
            match &record.limit {
                Some(limit) if limit.means == Means::Memory => {
                    holdings.limit_memory_bytes += limit.bytes;
                }
                Some(limit) => holdings.limit_disk_bytes += limit.bytes,
                None => {}
            }
        }
        for branch in self.store.branches().map_err(VolumeError::Store)? {
            holdings.layers += 1;
            holdings.layer_bytes += branch.summary.bytes;
        }
        Ok(holdings)
    }
}
