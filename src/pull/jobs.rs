//! One job for each content, however many volumes wait for it.
//!
//! A job runs on threads of its own and does not end with who began it. Whoever
//! waits says from time to time whether anybody still waits for *him*; a job that
//! nobody has waited for in ten minutes is ended.

use crate::layer::ingest;
use crate::stage::{Phase, Progress};
use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How often whoever waits looks whether it is still worth it, and a job whether
/// anybody waits.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why there is no outcome to be had of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Whoever waited has been told to wait no more.
    #[error("it is not wanted any more")]
    GivenUp,
    /// Nobody waited for too long.
    #[error("nobody has waited for it for {} s, so the pull was ended; what it had verified is kept", .0.as_secs())]
    Abandoned(Duration),
    /// It ended in a bug.
    #[error("the pull failed in a way that is a bug; the plugin's log has the place")]
    Panicked,
    /// The system has no thread to give.
    #[error("the system has no thread for the pull")]
    NoThread,
}

/// What a job is given to tell how it is going, and to be told.
#[derive(Debug)]
pub(super) struct Handle {
    cancel: Arc<AtomicBool>,
    shown: Mutex<Shown>,
}

/// How far a job is.
#[derive(Debug, Default)]
struct Shown {
    /// Counts changes.
    version: u64,
    phase: Phase,
    counters: Option<Arc<ingest::Progress>>,
}

impl Handle {
    /// Set when the job is to end.
    pub(super) fn cancel(&self) -> &Arc<AtomicBool> {
        &self.cancel
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `progress` what is new since `version`.
    fn relay(&self, version: &mut u64, progress: &dyn Progress) {
        let (phase, counters) = {
            let shown = self.lock();
            if shown.version == *version {
                return;
            }
            *version = shown.version;
            (shown.phase, shown.counters.clone())
        };
        if let Some(counters) = counters {
            progress.layers(&counters);
        }
        progress.phase(phase);
    }
}

impl Progress for Handle {
    fn layers(&self, counters: &Arc<ingest::Progress>) {
        let mut shown = self.lock();
        shown.version += 1;
        shown.counters = Some(Arc::clone(counters));
    }

    fn phase(&self, phase: Phase) {
        let mut shown = self.lock();
        shown.version += 1;
        shown.phase = phase;
    }
}

/// A job that runs, or has just ended.
struct Job<T> {
    handle: Arc<Handle>,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    outcome: Option<Result<T, JobError>>,
    /// When somebody last waited.
    wanted: Instant,
}

impl<T> fmt::Debug for Job<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").finish_non_exhaustive()
    }
}

impl<T> Job<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The jobs that run, by what they are to bring.
#[derive(Debug)]
pub(super) struct Jobs<K, T> {
    running: Arc<Mutex<HashMap<K, Arc<Job<T>>>>>,
    abandoned_after: Duration,
}

/// How somebody got the outcome of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Began it.
    Began,
    /// Came when it ran.
    Joined,
}

impl<K, T> Jobs<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + 'static,
{
    pub(super) fn new(abandoned_after: Duration) -> Self {
        Jobs {
            running: Arc::default(),
            abandoned_after,
        }
    }

    /// How many run.
    pub(super) fn count(&self) -> usize {
        lock(&self.running).len()
    }

    /// Waits for the job of this key, which `work` is if none runs.
    pub(super) fn run<W>(
        &self,
        key: &K,
        progress: &dyn Progress,
        work: W,
    ) -> (Part, Result<T, JobError>)
    where
        W: FnOnce(&Handle) -> T + Send + 'static,
    {
        let (part, job) = match self.enter(key, work) {
            Ok(entered) => entered,
            Err(error) => return (Part::Began, Err(error)),
        };
        (part, self.wait(&job, progress))
    }

    fn enter<W>(&self, key: &K, work: W) -> Result<(Part, Arc<Job<T>>), JobError>
    where
        W: FnOnce(&Handle) -> T + Send + 'static,
    {
        let mut running = lock(&self.running);
        let vacant = match running.entry(key.clone()) {
            Entry::Occupied(entry) => {
                let job = Arc::clone(entry.get());
                job.lock().wanted = Instant::now();
                return Ok((Part::Joined, job));
            }
            Entry::Vacant(vacant) => vacant,
        };
        let job = Arc::new(Job {
            handle: Arc::new(Handle {
                cancel: Arc::default(),
                shown: Mutex::default(),
            }),
            state: Mutex::new(State {
                outcome: None,
                wanted: Instant::now(),
            }),
            changed: Condvar::new(),
        });
        let runner = Runner {
            job: Arc::clone(&job),
            all: Arc::clone(&self.running),
            key: key.clone(),
            abandoned_after: self.abandoned_after,
            span: tracing::Span::current(),
        };
        Builder::new()
            .name("pull".to_owned())
            .spawn(move || runner.run(work))
            .map_err(|_| JobError::NoThread)?;
        vacant.insert(Arc::clone(&job));
        Ok((Part::Began, job))
    }

    fn wait(&self, job: &Job<T>, progress: &dyn Progress) -> Result<T, JobError> {
        let mut version = 0;
        let mut state = job.lock();
        loop {
            if let Some(outcome) = &state.outcome {
                return outcome.clone();
            }
            if progress.is_given_up() {
                return Err(JobError::GivenUp);
            }
            if progress.is_wanted() {
                state.wanted = Instant::now();
            }
            drop(state);
            job.handle.relay(&mut version, progress);
            let locked = job.lock();
            let ended = job
                .changed
                .wait_timeout_while(locked, LOOK_EVERY, |state| state.outcome.is_none());
            state = match ended {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

/// The map is whole after every statement, whoever panicked.
fn lock<K, T>(running: &Mutex<HashMap<K, Arc<Job<T>>>>) -> MutexGuard<'_, HashMap<K, Arc<Job<T>>>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread of a job.
struct Runner<K, T> {
    job: Arc<Job<T>>,
    all: Arc<Mutex<HashMap<K, Arc<Job<T>>>>>,
    key: K,
    abandoned_after: Duration,
    span: tracing::Span,
}

impl<K: Eq + Hash, T: Clone + Send> Runner<K, T> {
    fn run<W>(self, work: W)
    where
        W: FnOnce(&Handle) -> T + Send,
    {
        let job = &*self.job;
        let (span, abandoned_after) = (&self.span, self.abandoned_after);
        let done = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            let watch = scope.spawn(|| watch(job, &done, abandoned_after));
            let working = || span.in_scope(|| work(&job.handle));
            let outcome = catch_unwind(AssertUnwindSafe(working));
            done.store(true, Ordering::Release);
            watch.thread().unpark();
            let abandoned = watch.join().unwrap_or(false);
            match outcome {
                // What came to its end all the same is not thrown away; what
                // failed because it was ended is told as that by whoever joins
                // next, and nobody else hears of it.
                Ok(outcome) => (Ok(outcome), abandoned),
                Err(panic) => {
                    tracing::error!(panic = text(&*panic), "a pull panicked");
                    (Err(JobError::Panicked), false)
                }
            }
        });
        // Out of the list before anybody hears of the end, so that whoever does
        // can begin anew.
        lock(&self.all).remove(&self.key);
        let (outcome, abandoned) = outcome;
        if abandoned {
            tracing::info!("the pull was ended, for nobody has waited for it");
        }
        let mut state = job.lock();
        state.outcome = Some(match outcome {
            Ok(_) if abandoned => Err(JobError::Abandoned(self.abandoned_after)),
            other => other,
        });
        drop(state);
        job.changed.notify_all();
    }
}

/// Ends a job that nobody wants; says whether it did.
fn watch<T>(job: &Job<T>, done: &AtomicBool, abandoned_after: Duration) -> bool {
    while !done.load(Ordering::Acquire) {
        let unwanted = job.lock().wanted.elapsed();
        match abandoned_after.checked_sub(unwanted) {
            Some(left) if !left.is_zero() => std::thread::park_timeout(left),
            _ => {
                job.handle.cancel.store(true, Ordering::Relaxed);
                return true;
            }
        }
    }
    false
}

fn text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(600);

    /// Somebody who waits, or not.
    #[derive(Default)]
    struct Waiter {
        unwanted: AtomicBool,
        given_up: AtomicBool,
        phases: Mutex<Vec<Phase>>,
    }

    impl Progress for Waiter {
        fn layers(&self, _: &Arc<ingest::Progress>) {}

        fn phase(&self, phase: Phase) {
            self.phases.lock().unwrap().push(phase);
        }

        fn is_wanted(&self) -> bool {
            !self.unwanted.load(Ordering::Relaxed)
        }

        fn is_given_up(&self) -> bool {
            self.given_up.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn many_wait_for_one_job() {
        let jobs: Arc<Jobs<u8, u32>> = Arc::new(Jobs::new(LONG));
        let (go, gone) = channel::<()>();
        let (part, job) = jobs
            .enter(&7, move |_| gone.recv().map_or(0, |()| 42))
            .unwrap();
        assert_eq!(part, Part::Began);
        let threads: Vec<_> = (0..49)
            .map(|_| {
                let jobs = Arc::clone(&jobs);
                std::thread::spawn(move || jobs.run(&7, &Waiter::default(), |_| 0))
            })
            .collect();
        // Here, in the map, with the runner, and with each who waits.
        while Arc::strong_count(&job) < 3 + threads.len() {
            std::thread::yield_now();
        }
        go.send(()).unwrap();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), (Part::Joined, Ok(42)));
        }
        assert_eq!(jobs.wait(&job, &()), Ok(42));
        assert_eq!(jobs.count(), 0);
    }

    #[test]
    fn a_job_outlives_who_began_it_and_the_next_one_joins_it() {
        let jobs: Arc<Jobs<u8, u32>> = Arc::new(Jobs::new(LONG));
        let (go, gone) = channel::<()>();
        let waiter = Waiter::default();
        waiter.given_up.store(true, Ordering::Relaxed);
        let (part, outcome) = jobs.run(&1, &waiter, move |handle| {
            handle.phase(Phase::Sealing);
            gone.recv().unwrap();
            42
        });
        assert_eq!((part, outcome), (Part::Began, Err(JobError::GivenUp)));
        assert_eq!(jobs.count(), 1, "it goes on");
        let second = Arc::clone(&jobs);
        let joined = std::thread::spawn(move || {
            let waiter = Waiter::default();
            let outcome = second.run(&1, &waiter, |_| 0);
            let phases = waiter.phases.lock().unwrap().clone();
            (outcome, phases)
        });
        while Arc::strong_count(&lock(&jobs.running)[&1]) < 3 {
            std::thread::yield_now();
        }
        go.send(()).unwrap();
        let ((part, outcome), phases) = joined.join().unwrap();
        assert_eq!((part, outcome), (Part::Joined, Ok(42)));
        assert!(phases.contains(&Phase::Sealing) || phases.is_empty());
    }

    #[test]
    fn what_nobody_waits_for_is_ended() {
        let jobs: Jobs<u8, ()> = Jobs::new(Duration::from_millis(30));
        let waiter = Waiter::default();
        waiter.unwanted.store(true, Ordering::Relaxed);
        let (_, outcome) = jobs.run(&1, &waiter, |handle| {
            while !handle.cancel().load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        });
        assert!(matches!(outcome, Err(JobError::Abandoned(_))));
        assert_eq!(jobs.count(), 0);
    }

    #[test]
    fn a_bug_in_the_work_is_an_outcome() {
        let jobs: Jobs<u8, ()> = Jobs::new(LONG);
        let (_, outcome) = jobs.run(&1, &(), |_| panic!("a bug"));
        assert_eq!(outcome, Err(JobError::Panicked));
        assert_eq!(jobs.run(&1, &(), |_| ()).1, Ok(()), "the key is free again");
    }
}
