//! The loop that fetches one blob into its file, whatever happens on the way.
//!
//! It is the only one that appends: the flock says so to other processes, and
//! while another has it, its bytes are taken as they appear. What was written is
//! then known to the readers, so a fault costs what was on the wire.

mod body;

use super::Inner;
use super::course::{Course, Pace, Step};
use super::fetch::{Arrival, Fetch, Follower, Position, named};
use super::places::{BlobBody, BlobFault, BlobPlaces};
use super::queue::Turn;
use super::spool::{Appending, Spool};
use super::stats::Retry;
use crate::image::digest::{Digest, Hasher};
use crate::image::registry::RegistryError;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Bytes that are written at once. Fewer cost more calls and wake the readers
/// more often.
const WRITE_BYTES: usize = 256 << 10;
/// How often the disk's free space is looked at.
const SPACE_CHECK_BYTES: u64 = 16 << 20;
/// How often it is looked whether another process has ended, or brought more.
const OTHER_PROCESS: Duration = Duration::from_millis(100);
/// An answer's head takes no longer than this; the client has bounds of its own
/// for each of its steps.
const LONGEST_BEGIN: Duration = Duration::from_secs(120);
/// How often other bytes than before are taken for better ones. Hosts that give
/// different bytes for a digest would otherwise take turns for ever.
const START_OVERS: u32 = 3;

/// What a task begins with.
pub(super) struct Start {
    pub(super) home: Arc<Inner>,
    pub(super) fetch: Arc<Fetch>,
    pub(super) places: Arc<dyn BlobPlaces>,
    pub(super) turn: Turn,
    pub(super) generation: u64,
    pub(super) spool: Arc<Spool>,
    pub(super) avoided: Vec<String>,
}

/// Fetches, and says in the end how it went. Aborting it is allowed at any time.
pub(super) async fn run(start: Start) {
    let Start {
        home,
        fetch,
        places,
        turn,
        generation,
        spool,
        avoided,
    } = start;
    let avoided = (0..places.count()).map(|place| avoided.contains(&places.host(place)));
    let course = Course::new(avoided);
    let pace = home.settings.pace();
    let mut run = Run {
        course,
        pace,
        home: &home,
        places: &*places,
        turn: Some(turn),
        spool,
        ended: Ended { fetch, generation },
        appending: None,
        received: 0,
        space_checked: 0,
        start_overs: 0,
        check: None,
    };
    let how = run.fetch().await;
    if let (Ok(()), Some(appending)) = (&how, run.appending.take()) {
        appending.end();
    }
    let Ended { fetch, generation } = &run.ended;
    fetch.finish(*generation, how);
}

/// Whoever waits is told even if the task ends by a bug, or its runtime does.
struct Ended {
    fetch: Arc<Fetch>,
    generation: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.fetch
            .finish(self.generation, Err(RegistryError::Cancelled));
    }
}

struct Run<'a> {
    home: &'a Inner,
    places: &'a dyn BlobPlaces,
    course: Course,
    pace: Pace,
    turn: Option<Turn>,
    spool: Arc<Spool>,
    appending: Option<Appending>,
    ended: Ended,
    /// Bytes in the spool, all of which count.
    received: u64,
    /// How many there were when the free space was looked at.
    space_checked: u64,
    start_overs: u32,
    /// Hashes all bytes, where some are of an earlier download.
    check: Option<JoinHandle<Result<Digest, RegistryError>>>,
}

/// How reading a body ended.
enum Took {
    All,
    Fault(BlobFault, Retry),
}

type Outcome<T> = Result<T, RegistryError>;

impl Run<'_> {
    async fn fetch(&mut self) -> Outcome<()> {
        let mut place = self.course.current();
        if let Some(turn) = &self.turn {
            turn.come().await;
            self.pace = self.home.settings.pace();
        }
        loop {
            if self.appending.is_none() && self.open().await? {
                return Ok(());
            }
            let host = self.places.host(place);
            self.wait_turn(&host).await;
            let from_zero = self.course.is_from_zero(place) || self.received == 0;
            let offset = if from_zero { 0 } else { self.received };
            let (fault, reason) = match self.ask(place, &host, offset).await {
                Err(fault) => (fault, None),
                Ok(body) => match self.take(body, &host).await? {
                    Took::All => break,
                    Took::Fault(fault, reason) => (fault, Some(reason)),
                },
            };
            place = self.next(fault, reason, from_zero).await?;
        }
        self.verdict().await
    }

    fn size(&self) -> u64 {
        self.ended.fetch.size
    }

    /// Has a turn for `host`. One for another is given back first: nobody holds
    /// one while he waits for one.
    async fn wait_turn(&mut self, host: &str) {
        let before = Instant::now();
        let turn = self.turn.take().filter(|turn| turn.host() == host);
        let turn = turn.unwrap_or_else(|| self.home.queue.enter(host, self.size()));
        self.turn.insert(turn).come().await;
        self.pace.excuse(before.elapsed());
    }

    /// Has the spool for itself, and knows how much is in it. True if that is
    /// everything.
    async fn open(&mut self) -> Outcome<bool> {
        loop {
            let appending = self.spool.try_append().map_err(RegistryError::Disk)?;
            let length = self.spool.length().map_err(RegistryError::Disk)?;
            if length == self.size() {
                self.found(length)?;
                match appending {
                    Some(appending) => appending.end(),
                    None => self.spool.hold(),
                }
                return Ok(true);
            }
            if !self.spool.is_current().map_err(RegistryError::Disk)? {
                // Another process threw it away, or it expired just now.
                self.reopen()?;
                continue;
            }
            if let Some(appending) = appending {
                self.appending = Some(appending);
                if length > self.size() {
                    self.spool.remove().map_err(RegistryError::Disk)?;
                    continue;
                }
                self.found(length)?;
                if length > 0 {
                    self.check = Some(self.checking());
                }
                return Ok(false);
            }
            // Who waits for another process has no turn: its own downloads may
            // wait for one that waits for a download of this process.
            self.turn = None;
            if length < self.size() {
                self.found(length)?;
            }
            if let Some(waited) = self.pace.stalled(Instant::now()) {
                let what = format!("{} in another process", self.what());
                let last = "it has the file locked".to_owned();
                return Err(RegistryError::Stalled { what, waited, last });
            }
            sleep(OTHER_PROCESS).await;
        }
    }

    /// So many bytes are there that this download has not fetched.
    fn found(&mut self, length: u64) -> Outcome<()> {
        let new = length.saturating_sub(self.received);
        self.pace.came(new, Instant::now());
        self.home.stats.found(new);
        self.received = length;
        self.arrived(Arrival::Found)
    }

    fn arrived(&mut self, kind: Arrival<'_>) -> Outcome<()> {
        let Ended { fetch, generation } = &self.ended;
        match fetch.arrived(*generation, self.received, kind) {
            true => Ok(()),
            false => Err(RegistryError::Cancelled),
        }
    }

    async fn ask(&mut self, place: usize, host: &str, offset: u64) -> Result<BlobBody, BlobFault> {
        let digest = &self.ended.fetch.digest;
        let answer = timeout(LONGEST_BEGIN, self.places.begin(place, digest, offset)).await;
        let body = answer.unwrap_or_else(|_| {
            let error = unreachable(host, "it did not answer");
            Err(BlobFault::Again { after: None, error })
        })?;
        let size = self.size();
        if let Some(length) = body.length.filter(|length| *length != size) {
            let reason = format!("it has {length} bytes for {digest}, the manifest says {size}");
            return Err(BlobFault::Elsewhere(malformed(host, reason)));
        }
        if body.offset > offset {
            let offset = body.offset;
            let reason = format!("asked for {digest} it continues at byte {offset}");
            return Err(BlobFault::Range(malformed(host, reason)));
        }
        Ok(body)
    }

    /// Waits as the course has it, and says which place is asked then.
    async fn next(
        &mut self,
        fault: BlobFault,
        reason: Option<Retry>,
        from_zero: bool,
    ) -> Outcome<usize> {
        let last = match &fault {
            BlobFault::Again { error, .. }
            | BlobFault::Elsewhere(error)
            | BlobFault::Range(error) => error.to_string(),
        };
        let now = Instant::now();
        let (kind, step) = self.course.after(fault, now, chance(), from_zero);
        let reason = match kind {
            Retry::Busy => reason.unwrap_or(kind),
            _ => kind,
        };
        let (place, wait, asked) = match step {
            Step::Fail(error) => return Err(error),
            Step::Ask { place, wait, asked } => (place, wait, asked),
        };
        self.home.stats.retried(reason);
        let what = self.what();
        tracing::debug!(blob = what, ?reason, ?wait, cause = last, "asking again");
        // A host's wish is not waited for where it would be in vain.
        self.pace.excuse_asked(asked);
        if let Some(waited) = self.pace.stalled(now + wait) {
            let stalled = RegistryError::Stalled { what, waited, last };
            return Err(self.course.stalled(stalled));
        }
        sleep(wait).await;
        Ok(place)
    }

    fn what(&self) -> String {
        format!("blob {}", self.ended.fetch.digest)
    }

    fn append(&mut self, bytes: &[u8], host: &str) -> Outcome<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.received - self.space_checked >= SPACE_CHECK_BYTES {
            self.space_checked = self.received;
            let space = self.home.spools.space().map_err(RegistryError::Disk)?;
            if space.available == 0 {
                return Err(space.is_less_than(self.size() - self.received));
            }
        }
        // On this thread, although it may wait for the disk: then everything
        // that is fetched waits for the same disk, and so it should.
        (self.spool.write_at(bytes, self.received)).map_err(RegistryError::Disk)?;
        self.received += bytes.len() as u64;
        self.course.progressed(bytes.len() as u64);
        self.arrived(Arrival::From(host))
    }

    /// Throws away what is there, but for the first `keep` bytes, which go into
    /// another file. False if another process has that one.
    fn start_over(&mut self, keep: u64, host: &str) -> Outcome<bool> {
        self.start_overs += 1;
        if self.start_overs > START_OVERS {
            let (host, digest) = (host.to_owned(), self.ended.fetch.digest);
            return Err(RegistryError::Digest { host, digest });
        }
        self.home.stats.retried(Retry::Broken);
        self.spool.remove().map_err(RegistryError::Disk)?;
        let old = self.spool.clone();
        let length = self.reopen()?;
        let appending = self.spool.try_append().map_err(RegistryError::Disk)?;
        if length > 0 || appending.is_none() {
            return Ok(false);
        }
        self.appending = appending;
        (self.spool.copy_start(&old, keep)).map_err(RegistryError::Disk)?;
        self.received = keep;
        if keep > 0 {
            self.arrived(Arrival::From(host))?;
        }
        Ok(true)
    }

    /// Goes on with whatever file has the name, and nothing of it counts yet.
    /// Gives its length.
    fn reopen(&mut self) -> Outcome<u64> {
        let Ended { fetch, generation } = &mut self.ended;
        let spool = self.home.spools.spool(&fetch.key);
        let spool = Arc::new(spool.map_err(RegistryError::Disk)?);
        let length = spool.length().map_err(RegistryError::Disk)?;
        let next = fetch.start_over(*generation, spool.clone());
        *generation = next.ok_or(RegistryError::Cancelled)?;
        (self.spool, self.appending, self.check) = (spool, None, None);
        (self.received, self.space_checked) = (0, 0);
        Ok(length)
    }

    /// Follows the bytes and hashes them, on a thread of its own.
    fn checking(&self) -> JoinHandle<Outcome<Digest>> {
        let fetch = self.ended.fetch.clone();
        let mut at = Position {
            generation: self.ended.generation,
            offset: 0,
        };
        self.home.handle.spawn_blocking(move || {
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; WRITE_BYTES];
            loop {
                match fetch.read(&mut at, &mut buffer, Follower::Check)? {
                    0 => return Ok(hasher.finish()),
                    count => hasher.update(&buffer[..count]),
                }
            }
        })
    }

    async fn verdict(&mut self) -> Outcome<()> {
        let Some(check) = self.check.take() else {
            return Ok(());
        };
        let digest = self.ended.fetch.digest;
        // It ends early only with the runtime, or by a bug.
        let found = check.await.unwrap_or(Err(RegistryError::Cancelled))?;
        if found != digest {
            let host = named(&self.ended.fetch.lock().hosts);
            return Err(RegistryError::Digest { host, digest });
        }
        Ok(())
    }
}

impl Took {
    fn again(error: RegistryError, reason: Retry) -> Took {
        Took::Fault(BlobFault::Again { after: None, error }, reason)
    }
}

fn malformed(host: &str, reason: String) -> RegistryError {
    let host = host.to_owned();
    RegistryError::Malformed { host, reason }
}

fn unreachable(host: &str, reason: impl Into<String>) -> RegistryError {
    RegistryError::Unreachable {
        host: host.to_owned(),
        reason: reason.into(),
    }
}

/// Something below 1, another each time; not for secrets.
fn chance() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or(0);
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}
