//! One download, as those see it who wait for its bytes.

use super::spool::Spool;
use super::{Inner, Key};
use crate::image::digest::Digest;
use crate::image::registry::RegistryError;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use tokio::task::AbortHandle;

/// A download and its state. The task that fetches changes it, and any number of
/// threads wait for it.
pub(super) struct Fetch {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) key: Key,
    pub(super) home: Weak<Inner>,
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    /// Counts up whenever the bytes so far were thrown away. Whoever has read
    /// some of them cannot go on.
    pub(super) generation: u64,
    /// None where there never was a file, or it was given up.
    pub(super) spool: Option<Arc<Spool>>,
    /// Bytes of the blob that are there.
    pub(super) received: u64,
    /// Those of them that were there before, or that another process wrote.
    pub(super) found: u64,
    /// Bytes that came for this download, thrown away or not.
    pub(super) network: u64,
    /// Hosts that gave what is there, as far as it is known.
    pub(super) hosts: Vec<String>,
    /// Hosts whose bytes were thrown away.
    pub(super) avoided: Vec<String>,
    /// How it ended.
    pub(super) end: Option<Result<(), RegistryError>>,
    /// How many handles want it.
    interest: usize,
    task: Option<AbortHandle>,
}

impl State {
    /// The task that fetches now.
    pub(super) fn runs(&mut self, task: AbortHandle) {
        self.task = Some(task);
    }

    /// Stops it.
    pub(super) fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// These gave broken bytes.
    pub(super) fn avoid(&mut self, hosts: Vec<String>) {
        self.avoided.retain(|host| !hosts.contains(host));
        self.avoided.extend(hosts);
    }
}

impl Fetch {
    /// With one handle that wants it, which the caller makes.
    pub(super) fn new(key: Key, size: u64, digest: Digest, home: &Arc<Inner>) -> Arc<Fetch> {
        Arc::new(Fetch {
            digest,
            size,
            key,
            home: Arc::downgrade(home),
            state: Mutex::new(State {
                generation: 0,
                spool: None,
                received: 0,
                found: 0,
                network: 0,
                hosts: Vec::new(),
                avoided: Vec::new(),
                end: None,
                interest: 1,
                task: None,
            }),
            changed: Condvar::new(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change. Whoever changes something says so with `wake`.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    /// One more handle, unless it failed or was given up.
    pub(super) fn join(&self) -> bool {
        let mut state = self.lock();
        let is_alive = !matches!(state.end, Some(Err(_)));
        state.interest += usize::from(is_alive);
        is_alive
    }

    /// One handle less. With the last, an unfinished download ends; what came
    /// stays on disk.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.interest = state.interest.saturating_sub(1);
        if state.interest == 0 && state.end.is_none() {
            self.end(&mut state, Err(RegistryError::Cancelled));
        }
    }

    /// Ends it whoever wants it.
    pub(super) fn give_up(&self) {
        let mut state = self.lock();
        if state.end.is_none() {
            self.end(&mut state, Err(RegistryError::Cancelled));
        }
    }

    /// Ends it, with its task.
    fn end(&self, state: &mut State, how: Result<(), RegistryError>) {
        state.end = Some(how);
        state.stop();
        self.wake();
    }

    /// The task's own end. It says nothing if the bytes were thrown away since:
    /// another task fetches then.
    pub(super) fn finish(&self, generation: u64, how: Result<(), RegistryError>) {
        let mut state = self.lock();
        if state.generation != generation || state.end.is_some() {
            return;
        }
        let is_lost = matches!(
            how,
            Err(RegistryError::Disk(_)
                | RegistryError::NoSpace { .. }
                | RegistryError::Digest { .. })
        );
        if is_lost && let Some(spool) = state.spool.take() {
            // The node gets its space back, and the next try does not find
            // what is broken.
            remove(&spool);
        }
        state.task = None;
        state.end = Some(how);
        self.wake();
    }

    /// Ends it because the bytes of `generation` are broken.
    pub(super) fn refuse(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation != generation {
            return;
        }
        let host = named(&state.hosts);
        let digest = self.digest;
        if let Some(spool) = state.spool.take() {
            remove(&spool);
        }
        self.end(&mut state, Err(RegistryError::Digest { host, digest }));
    }

    /// So much is there now. False if the bytes were thrown away, or the
    /// download was ended.
    pub(super) fn arrived(&self, generation: u64, received: u64, kind: Arrival<'_>) -> bool {
        let mut state = self.lock();
        if state.generation != generation || state.end.is_some() {
            return false;
        }
        let new = received.saturating_sub(state.received);
        state.received = state.received.max(received);
        match kind {
            Arrival::Found => state.found += new,
            Arrival::From(host) => {
                state.network += new;
                if state.hosts.last().is_none_or(|last| last != host) {
                    state.hosts.retain(|known| known != host);
                    state.hosts.push(host.to_owned());
                }
            }
        }
        self.wake();
        true
    }

    /// Begins anew with another file, of which nothing counts yet. Gives the new
    /// generation; none if `generation` is not the present one.
    pub(super) fn start_over(&self, generation: u64, spool: Arc<Spool>) -> Option<u64> {
        let mut state = self.lock();
        if state.generation != generation || state.end.is_some() {
            return None;
        }
        if state.received > 0 {
            state.generation += 1;
        }
        (state.spool, state.received, state.found) = (Some(spool), 0, 0);
        let gave = std::mem::take(&mut state.hosts);
        state.avoid(gave);
        self.wake();
        Some(state.generation)
    }

    /// Reads at a position of a generation's bytes, waiting for the first of
    /// them. Nothing is read only at the end: for `Follower::Check` that is where
    /// the last byte has come, for a reader where the download has succeeded.
    pub(super) fn read(&self, at: &mut Position, to: &mut [u8], who: Follower<'_>) -> Read {
        let mut state = self.lock();
        let (spool, available) = loop {
            if let Follower::Reader(is_cancelled) = who
                && is_cancelled()
            {
                return Err(RegistryError::Cancelled);
            }
            if let Some(Err(error)) = &state.end {
                return Err(super::error::again(error));
            }
            if at.generation != state.generation {
                if at.offset > 0 || matches!(who, Follower::Check) {
                    return Err(self.broken(&state));
                }
                at.generation = state.generation;
            }
            let is_over = match who {
                Follower::Reader(_) => state.end.is_some(),
                Follower::Check => at.offset == self.size,
            };
            match &state.spool {
                Some(spool) if at.offset < state.received => {
                    break (spool.clone(), state.received - at.offset);
                }
                _ if is_over => return Ok(0),
                _ => state = self.wait(state),
            }
        };
        drop(state);
        let wanted = to
            .len()
            .min(usize::try_from(available).unwrap_or(usize::MAX));
        let count = spool
            .read_at(&mut to[..wanted], at.offset)
            .map_err(RegistryError::Disk)?;
        if count == 0 && wanted > 0 {
            // Only somebody who shortened the file by hand gets here.
            return Err(RegistryError::Disk(
                std::io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        at.offset += count as u64;
        Ok(count)
    }

    /// Whoever has seen bytes that were thrown away cannot go on.
    fn broken(&self, state: &State) -> RegistryError {
        RegistryError::Digest {
            host: named(&state.avoided),
            digest: self.digest,
        }
    }
}

type Read = Result<usize, RegistryError>;

/// Where the bytes came from that have arrived.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arrival<'a> {
    /// They were on disk, or another process put them there.
    Found,
    /// This host.
    From(&'a str),
}

/// Who follows the bytes.
#[derive(Clone, Copy)]
pub(super) enum Follower<'a> {
    /// A reader, with the question whether it was told to stop.
    Reader(&'a dyn Fn() -> bool),
    /// Who verifies the digest before the download succeeds.
    Check,
}

/// Where a follower is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) generation: u64,
    pub(super) offset: u64,
}

/// Hosts for an error.
pub(super) fn named(hosts: &[String]) -> String {
    match hosts {
        [] => "the registry".to_owned(),
        hosts => hosts.join(", "),
    }
}

/// Takes a spool's name away; what is left otherwise expires.
pub(super) fn remove(spool: &Spool) {
    if let Err(error) = spool.remove() {
        tracing::warn!(%error, "cannot remove what was fetched of a blob");
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch")
            .field("digest", &self.digest)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
