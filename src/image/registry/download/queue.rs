//! Whose turn it is: so many downloads in all and from each host, the largest
//! of those that wait first, for the largest decides when an image is there.

use super::stats::DownloadStats;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Debug)]
pub(super) struct Queue {
    in_all: usize,
    per_host: usize,
    stats: Arc<DownloadStats>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Nobody gets a turn while a batch is being put in.
    held: usize,
    next: u64,
    waiting: Vec<Waiting>,
    running: HashSet<u64>,
    hosts: HashMap<String, usize>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    size: u64,
    host: String,
    notify: Arc<Notify>,
}

/// A place in the queue, then a turn; given back on drop.
#[derive(Debug)]
pub(super) struct Turn {
    queue: Arc<Queue>,
    number: u64,
    host: String,
    notify: Arc<Notify>,
}

/// Nobody gets a turn while this lives.
#[derive(Debug)]
pub(super) struct Hold<'a>(&'a Queue);

impl Queue {
    pub(super) fn new(in_all: usize, per_host: usize, stats: Arc<DownloadStats>) -> Arc<Queue> {
        Arc::new(Queue {
            in_all: in_all.max(1),
            per_host: per_host.max(1),
            stats,
            state: Mutex::default(),
        })
    }

    pub(super) fn enter(self: &Arc<Self>, host: &str, size: u64) -> Turn {
        let notify = Arc::new(Notify::new());
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.push(Waiting {
            number,
            size,
            host: host.to_owned(),
            notify: notify.clone(),
        });
        self.give(state);
        Turn {
            queue: self.clone(),
            number,
            host: host.to_owned(),
            notify,
        }
    }

    pub(super) fn hold(&self) -> Hold<'_> {
        self.lock().held += 1;
        Hold(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives turns to whoever can have one.
    fn give(&self, mut state: MutexGuard<'_, State>) {
        while state.held == 0 && state.running.len() < self.in_all {
            let has_room = |host: &str| state.hosts.get(host).is_none_or(|n| *n < self.per_host);
            let next = (state.waiting.iter().enumerate())
                .filter(|(_, waiting)| has_room(&waiting.host))
                .max_by_key(|(_, waiting)| (waiting.size, Reverse(waiting.number)))
                .map(|(index, _)| index);
            let Some(index) = next else { break };
            let chosen = state.waiting.swap_remove(index);
            state.running.insert(chosen.number);
            *state.hosts.entry(chosen.host).or_default() += 1;
            chosen.notify.notify_one();
        }
        self.stats.queue(state.running.len(), state.waiting.len());
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.held -= 1;
        self.0.give(state);
    }
}

impl Turn {
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Waits until it has come.
    pub(super) async fn come(&self) {
        while !self.has_come() {
            // A notification from between is kept.
            self.notify.notified().await;
        }
    }

    pub(super) fn has_come(&self) -> bool {
        self.queue.lock().running.contains(&self.number)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if state.running.remove(&self.number) {
            if let Some(count) = state.hosts.get_mut(&self.host) {
                *count -= 1;
                if *count == 0 {
                    state.hosts.remove(&self.host);
                }
            }
        } else {
            state
                .waiting
                .retain(|waiting| waiting.number != self.number);
        }
        self.queue.give(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(in_all: usize, per_host: usize) -> Arc<Queue> {
        Queue::new(in_all, per_host, Arc::default())
    }

    #[test]
    fn the_largest_that_waits_is_next() {
        let queue = queue(1, 1);
        let hold = queue.hold();
        let sizes = [5, 40, 7, 40, 3];
        let mut turns: Vec<(u64, Turn)> = (sizes.iter())
            .map(|size| (*size, queue.enter("a", *size)))
            .collect();
        assert!(turns.iter().all(|(_, turn)| !turn.has_come()));
        drop(hold);
        let mut order = Vec::new();
        while let Some(index) = turns.iter().position(|(_, turn)| turn.has_come()) {
            let (size, turn) = turns.remove(index);
            order.push((size, turn.number));
        }
        assert_eq!(order, [(40, 1), (40, 3), (7, 2), (5, 0), (3, 4)]);
        assert_eq!((queue.stats.in_flight(), queue.stats.waiting()), (0, 0));
    }

    #[test]
    fn a_full_host_does_not_hold_up_another() {
        let queue = queue(3, 2);
        let a: Vec<Turn> = (0..3).map(|n| queue.enter("a", 100 - n)).collect();
        let b: Vec<Turn> = (0..2).map(|n| queue.enter("b", 10 - n)).collect();
        let come = |turns: &[Turn]| turns.iter().map(Turn::has_come).collect::<Vec<_>>();
        assert_eq!(come(&a), [true, true, false]);
        // The third turn in all, and there is no fourth.
        assert_eq!(come(&b), [true, false]);
        assert_eq!((queue.stats.in_flight(), queue.stats.waiting()), (3, 2));
        // Who gives up while waiting leaves the queue.
        drop(b.into_iter().next_back());
        drop(a.into_iter().next());
        assert!(queue.lock().waiting.is_empty() && queue.lock().running.is_empty());
        assert!(queue.lock().hosts.is_empty());
    }
}
