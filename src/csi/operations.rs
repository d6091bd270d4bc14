//! At most one operation per volume at a time, and it outlives the call that
//! began it: a call ends when its caller's patience does, but half an operation
//! helps nobody. The same request made again joins the operation that runs.

mod latest;

pub(super) use latest::Latest;

use super::events::PodEvents;
use super::request::Wanted;
use super::status;
use crate::telemetry::Metrics;
use crate::volume::Pod;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::Instrument as _;

/// How an operation ended.
type Outcome = Result<(), Status>;

/// What is done to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    /// It is published in this way.
    Publish(Box<Wanted>),
    /// It is taken away from this path.
    Unpublish(PathBuf),
}

impl Operation {
    fn doing(&self) -> &'static str {
        match self {
            Operation::Publish(_) => "publishing the volume",
            Operation::Unpublish(_) => "unpublishing the volume",
        }
    }

    /// The pod that is told of it: not of what becomes of a volume at its end.
    fn pod(&self) -> Option<&Pod> {
        match self {
            Operation::Publish(wanted) => wanted.pod.as_ref(),
            Operation::Unpublish(_) => None,
        }
    }
}

/// An operation that runs.
#[derive(Debug)]
struct Running {
    operation: Operation,
    latest: Arc<Latest>,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// The operations that run, by volume id.
#[derive(Debug)]
pub(super) struct Operations {
    running: Mutex<HashMap<String, Arc<Running>>>,
    /// How long a call waits for its operation.
    reply_within: Duration,
    /// How long it still waits once the plugin is being stopped.
    stop_within: Duration,
    stopping: watch::Receiver<bool>,
    metrics: Metrics,
    events: Arc<dyn PodEvents>,
}

impl Operations {
    pub(super) fn new(
        reply_within: Duration,
        stop_within: Duration,
        stopping: watch::Receiver<bool>,
        metrics: Metrics,
        events: Arc<dyn PodEvents>,
    ) -> Self {
        Operations {
            running: Mutex::default(),
            reply_within,
            stop_within,
            stopping,
            metrics,
            events,
        }
    }

    /// Does `work` on a thread of its own, or joins the same operation if it runs
    /// already, and waits for its end within bounds.
    pub(super) async fn run<W>(
        self: &Arc<Self>,
        volume_id: &str,
        operation: Operation,
        work: W,
    ) -> Outcome
    where
        W: FnOnce(&Latest) -> Outcome + Send + 'static,
    {
        let deadline = Instant::now() + self.reply_within;
        let mut work = work;
        loop {
            if *self.stopping.borrow() {
                return Err(status::stopping());
            }
            let other = match self.enter(volume_id, &operation, work) {
                Ok(running) => return self.wait(&running, deadline).await?,
                Err((other, unused)) => {
                    work = unused;
                    other
                }
            };
            match operation {
                // Whoever wants the volume gone means it, so that waits for its turn.
                Operation::Unpublish(_) => {
                    other.latest.give_up();
                    drop(self.wait(&other, deadline).await?);
                }
                // Its caller tries again.
                Operation::Publish(_) => {
                    return Err(status::in_progress(format!(
                        "the plugin is still {} otherwise; try again",
                        other.operation.doing()
                    )));
                }
            }
        }
    }

    /// Waits for every operation that runs, at most until `deadline`; gives the
    /// number of those that still do.
    pub(super) async fn settle(&self, deadline: Instant) -> usize {
        let all: Vec<Arc<Running>> = self.lock().values().cloned().collect();
        for running in all {
            // The image can come another time; what is mounted is mounted.
            running.latest.give_up();
            let mut outcome = running.outcome.clone();
            // Either it ended or the time did; what is left is counted below.
            let _ = tokio::time::timeout_at(deadline, outcome.wait_for(Option::is_some)).await;
        }
        self.lock().len()
    }

    /// Starts the operation, or joins it if it runs. If another one runs for the
    /// volume, that comes back, and the work unused.
    fn enter<W>(
        self: &Arc<Self>,
        volume_id: &str,
        operation: &Operation,
        work: W,
    ) -> Result<Arc<Running>, (Arc<Running>, W)>
    where
        W: FnOnce(&Latest) -> Outcome + Send + 'static,
    {
        let mut all = self.lock();
        let vacant = match all.entry(volume_id.to_owned()) {
            Entry::Occupied(entry) => {
                let running = Arc::clone(entry.get());
                return if running.operation == *operation {
                    Ok(running)
                } else {
                    Err((running, work))
                };
            }
            Entry::Vacant(vacant) => vacant,
        };
        let told = operation
            .pod()
            .map(|pod| (Arc::clone(&self.events), pod.clone()));
        let latest = Arc::new(Latest::new(told.clone()));
        let (sender, outcome) = watch::channel(None);
        let running = Arc::new(Running {
            operation: operation.clone(),
            latest: Arc::clone(&latest),
            outcome,
        });
        vacant.insert(Arc::clone(&running));
        drop(all);
        self.metrics.operation_began();
        let doing = operation.doing();
        let operations = Arc::clone(self);
        let volume_id = volume_id.to_owned();
        // Lines of the work name the volume and the pod as those of the call do.
        let span = tracing::Span::current();
        let working = span.clone();
        let ended = async move {
            let done = tokio::task::spawn_blocking(move || working.in_scope(|| work(&latest)));
            let outcome = match done.await {
                Ok(outcome) => outcome,
                Err(error) if error.is_panic() => Err(status::bug(doing)),
                Err(_) => Err(status::stopping()),
            };
            // Out of the list before anybody hears of the end, so that whoever
            // does can start anew.
            operations.lock().remove(&volume_id);
            operations.metrics.operation_ended();
            let code = outcome.as_ref().err().map(Status::code);
            // Once for each operation, however many calls wait for it, and also
            // where none does any more. What will be tried again is no failure.
            if let (Some((events, pod)), Err(status)) = (told, &outcome)
                && status.code() != Code::Aborted
            {
                events.failed(&pod, status.message());
            }
            let error = outcome
                .as_ref()
                .err()
                .map(|status| status.message().to_owned());
            if sender.send(Some(outcome)).is_err() {
                tracing::info!(
                    code = code.map(tracing::field::debug),
                    error,
                    "ended {doing} after all callers had left"
                );
            }
        };
        tokio::spawn(ended.instrument(span));
        Ok(running)
    }

    /// The operation's outcome, or why this call does not wait for it any longer.
    async fn wait(&self, running: &Running, deadline: Instant) -> Result<Outcome, Status> {
        let _waiting = running.latest.wait();
        let mut outcome = running.outcome.clone();
        let mut stopping = self.stopping.clone();
        let stopped = async {
            // The sender is gone only when the server is.
            let _ = stopping.wait_for(|stopping| *stopping).await;
            tokio::time::sleep(self.stop_within).await;
        };
        tokio::select! {
            biased;
            ended = outcome.wait_for(Option::is_some) => match ended.as_deref() {
                Ok(Some(outcome)) => Ok(outcome.clone()),
                Ok(None) | Err(_) => Err(status::bug(running.operation.doing())),
            },
            () = stopped => Err(status::stopping()),
            () = tokio::time::sleep_until(deadline) => Err(status::in_progress(format!(
                "still {}: {}; work goes on",
                running.operation.doing(),
                running.latest
            ))),
        }
    }

    /// The map is whole after every statement, so a panic elsewhere that poisoned
    /// the lock does not matter.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
