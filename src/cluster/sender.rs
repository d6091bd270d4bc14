//! The one task that sends events: in order, not too many, and again for a while
//! if the API server is away.

use super::client::{Answer, Client};
use super::event::{self, Note};
use super::series::{Pace, SAME_WITHIN, Series, Step};
use crate::telemetry::Metrics;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// First pause after the API server could not be reached; each next one is twice
/// as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How old an event may become before it is given up. It would still be seen,
/// but what comes after it says more.
const TOO_OLD: Duration = SAME_WITHIN;

/// What is needed to send, and what became of what was sent.
#[derive(Debug)]
pub(super) struct Sender {
    client: Client,
    node: String,
    metrics: Metrics,
    series: Series,
    pace: Pace,
    pause: Duration,
    is_away: bool,
    has_said_forbidden: bool,
}

impl Sender {
    pub(super) fn new(client: Client, node: String, metrics: Metrics) -> Self {
        Sender {
            client,
            node,
            metrics,
            series: Series::default(),
            pace: Pace::new(Instant::now()),
            pause: FIRST_PAUSE,
            is_away: false,
            has_said_forbidden: false,
        }
    }

    /// Sends what comes, until nothing can come any more.
    pub(super) async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            let outcome = match self.series.admit(&note, Instant::now()) {
                None => "limited",
                Some(step) => {
                    tokio::time::sleep(self.pace.wait(Instant::now())).await;
                    self.deliver(&note, step).await
                }
            };
            self.metrics.event(outcome);
        }
    }

    /// Sends one event; gives what became of it.
    async fn deliver(&mut self, note: &Note, mut step: Step) -> &'static str {
        loop {
            let asked = match self.ask(note, &step).await {
                Answer::Done | Answer::Exists => {
                    self.back();
                    self.series.sent(note, &step.name);
                    return "sent";
                }
                // It was deleted, or is older than the API server keeps events.
                Answer::NotFound if step.is_known => {
                    step.is_known = false;
                    step.name = self.series.rename(note);
                    continue;
                }
                Answer::NotFound | Answer::Ending => {
                    tracing::debug!(
                        namespace = note.subject.namespace,
                        "no namespace for an event"
                    );
                    self.back();
                    return "refused";
                }
                Answer::Forbidden(why) => {
                    self.back();
                    self.forbidden(&why);
                    return "refused";
                }
                Answer::Refused(why) => {
                    self.back();
                    tracing::warn!(why, "the API server takes no such event");
                    return "refused";
                }
                Answer::Busy { why, pause } => {
                    self.away(&why);
                    pause
                }
            };
            let age = SystemTime::now().duration_since(note.at);
            if age.is_ok_and(|age| age >= TOO_OLD) {
                return "failed";
            }
            tokio::time::sleep(asked.unwrap_or_else(|| jittered(self.pause))).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn ask(&mut self, note: &Note, step: &Step) -> Answer {
        let subject = &note.subject;
        let namespace = &subject.namespace;
        let body = if step.is_known {
            event::repetition(step.count, note.at)
        } else {
            let (first, last) = (step.first, note.at);
            event::creation(subject, &step.name, &self.node, step.count, first, last)
        };
        match body {
            Ok(body) if step.is_known => self.client.change(namespace, &step.name, body).await,
            Ok(body) => self.client.create(namespace, body).await,
            Err(error) => Answer::Refused(error.to_string()),
        }
    }

    fn away(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_away, true) {
            tracing::warn!(
                why,
                "no events on pods for now: the API server cannot be asked"
            );
        }
    }

    fn back(&mut self) {
        self.pause = FIRST_PAUSE;
        if std::mem::take(&mut self.is_away) {
            tracing::info!("the API server can be asked again");
        }
    }

    fn forbidden(&mut self, why: &str) {
        if !std::mem::replace(&mut self.has_said_forbidden, true) {
            tracing::warn!(
                why,
                "no events on pods: this needs the verbs create and patch for the resource events, or --no-events"
            );
        }
    }
}

/// Half as long up to one and a half times as long, so that the plugins of all
/// nodes do not come at once.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 1024;
    // Below 1024 of both.
    pause.mul_f64(0.5 + random as f64 / 1024.0)
}
