//! The cluster's API server, which is told of pulls and failures as events on
//! pods.
//!
//! ```text
//! access   where the API server is and how it knows us: in a pod, or a kubeconfig
//! client   the requests
//! event    what happened → what the API takes (pure)
//! series   what is the same again, and what is too much (pure)
//! sender   the one task that sends
//! taint    the one that keeps pods off this node until the plugin is ready
//! ```
//!
//! **Invariant:** nothing waits for the API server. Events go into a bounded
//! queue, and are lost where it is full. Nothing of the cluster is listed or
//! watched, and nothing is read but this node's own objects, for the taint.

mod access;
mod client;
mod event;
mod sender;
mod series;
mod taint;
#[cfg(test)]
mod tests;

pub use access::{AccessError, Place};
pub use client::ClientError;
pub use taint::StartupTaint;

use crate::csi::events::PodEvents;
use crate::stage::Pulled;
use crate::telemetry::Metrics;
use crate::volume::Pod;
use client::Client;
use event::{Note, Reason};
use tokio::sync::mpsc;

/// Events that wait to be sent: more than a node starts pods at once.
const QUEUE: usize = 256;

/// Why there will be no events.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// It is not known where the API server is, or who we are to it.
    #[error("cannot read how the API server is reached")]
    Access(#[source] AccessError),
    /// There is no client for it.
    #[error("cannot make a client of the API server")]
    Client(#[source] ClientError),
}

/// Events on pods. Clones are the same ones; without any of them, no more is sent.
#[derive(Debug, Clone)]
pub struct Events(Option<Queue>);

#[derive(Debug, Clone)]
struct Queue {
    notes: mpsc::Sender<Note>,
    metrics: Metrics,
}

impl Events {
    /// None at all.
    pub fn off() -> Self {
        Events(None)
    }

    /// Begins to send what this node has to tell to the API server at `place`,
    /// on a task of the runtime that this is called in. The API server is not
    /// asked for anything yet.
    pub fn start(place: &Place, node: &str, metrics: Metrics) -> Result<Self, EventsError> {
        let access = place.read().map_err(EventsError::Access)?;
        let client = Client::new(access).map_err(EventsError::Client)?;
        Ok(Events::through(client, node, metrics))
    }

    fn through(client: Client, node: &str, metrics: Metrics) -> Self {
        let (sender, notes) = mpsc::channel(QUEUE);
        let sending = sender::Sender::new(client, node.to_owned(), metrics.clone());
        tokio::spawn(sending.run(notes));
        Events(Some(Queue {
            notes: sender,
            metrics,
        }))
    }

    fn tell(&self, pod: &Pod, reason: Reason, message: &str) {
        let Some(queue) = &self.0 else {
            return;
        };
        let Some(note) = Note::new(pod, reason, message) else {
            tracing::debug!(%pod, "not a pod that can have events");
            return;
        };
        if queue.notes.try_send(note).is_err() {
            queue.metrics.event("dropped");
        }
    }
}

impl PodEvents for Events {
    fn pulling(&self, pod: &Pod, image: &str) {
        self.tell(pod, Reason::Pulling, &event::pulling(image));
    }

    fn pulled(&self, pod: &Pod, image: &str, pulled: &Pulled) {
        self.tell(pod, Reason::Pulled, &event::pulled(image, pulled));
    }

    fn failed(&self, pod: &Pod, cause: &str) {
        self.tell(pod, Reason::Failed, cause);
    }
}
