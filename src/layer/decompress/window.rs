//! Memory for the windows of zstd decoders, counted over the whole process:
//! a frame's header may ask for a window far larger than the frame, and many
//! layers are decompressed at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Windows up to this size are what compressors use by default; 8 MiB is also
/// what RFC 8878 recommends that every decoder takes.
pub(super) const ORDINARY_BYTES: u64 = 8 << 20;

/// What all ordinary windows of the process may take together.
const ORDINARY_BUDGET: u64 = 24 << 20;

/// How often a waiting decoder looks whether it is cancelled.
const POLL: Duration = Duration::from_millis(50);

/// The windows of this process.
pub(super) static WINDOWS: WindowPool = WindowPool::new(ORDINARY_BUDGET);

/// A budget of bytes for ordinary windows and one place for a larger one.
#[derive(Debug)]
pub(super) struct WindowPool {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    ordinary_left: u64,
    large_in_use: bool,
}

impl WindowPool {
    pub(super) const fn new(budget: u64) -> Self {
        WindowPool {
            state: Mutex::new(State {
                ordinary_left: budget,
                large_in_use: false,
            }),
            freed: Condvar::new(),
        }
    }

    /// Waits for `bytes` of memory; `None` when cancelled. Who holds a permit
    /// must drop it before asking for another: two that wait for each other
    /// would wait for ever.
    pub(super) fn acquire(&self, bytes: u64, cancelled: &dyn Fn() -> bool) -> Option<Permit<'_>> {
        let mut state = self.lock();
        loop {
            if bytes > ORDINARY_BYTES {
                if !state.large_in_use {
                    state.large_in_use = true;
                    return Some(Permit { pool: self, bytes });
                }
            } else if bytes <= state.ordinary_left {
                state.ordinary_left -= bytes;
                return Some(Permit { pool: self, bytes });
            }
            if cancelled() {
                return None;
            }
            state = match self.freed.wait_timeout(state, POLL) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that was granted; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    pool: &'a WindowPool,
    bytes: u64,
}

impl Permit<'_> {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        if self.bytes > ORDINARY_BYTES {
            state.large_in_use = false;
        } else {
            state.ordinary_left += self.bytes;
        }
        self.pool.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const MIB: u64 = 1 << 20;

    #[test]
    fn an_exhausted_budget_makes_wait_until_cancelled() {
        let pool = WindowPool::new(10 * MIB);
        let first = pool.acquire(8 * MIB, &|| false).unwrap();
        assert_eq!(first.bytes(), 8 * MIB);
        assert!(pool.acquire(8 * MIB, &|| true).is_none());
        assert!(pool.acquire(2 * MIB, &|| true).is_some());
        drop(first);
        assert!(pool.acquire(8 * MIB, &|| true).is_some());
    }

    #[test]
    fn there_is_one_large_window_and_it_leaves_the_ordinary_ones_alone() {
        let pool = WindowPool::new(8 * MIB);
        let large = pool.acquire(128 * MIB, &|| true).unwrap();
        assert!(pool.acquire(9 * MIB, &|| true).is_none());
        assert!(pool.acquire(8 * MIB, &|| true).is_some());
        drop(large);
        assert!(pool.acquire(9 * MIB, &|| true).is_some());
    }

    #[test]
    fn many_threads_never_hold_more_than_the_budget() {
        let pool = WindowPool::new(3 * MIB);
        let held = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let permit = pool.acquire(MIB, &|| false).unwrap();
                        assert!(held.fetch_add(MIB, Ordering::SeqCst) < 3 * MIB);
                        std::thread::yield_now();
                        held.fetch_sub(MIB, Ordering::SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert!(pool.acquire(3 * MIB, &|| true).is_some());
    }
}
