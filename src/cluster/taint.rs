//! The taint that keeps pods off a node until the plugin is ready there: nodes
//! join the cluster with it, and the plugin of each takes it off its own.

use super::EventsError;
use super::access::Place;
use super::client::{Answer, Client};
use serde_json::{Value, json};
use std::time::Duration;

/// First pause after it could not be taken off; each next one is twice as long,
/// up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A startup taint of this node.
#[derive(Debug)]
pub struct StartupTaint {
    client: Client,
    node: String,
    key: String,
    /// [`FIRST_PAUSE`] unless in tests.
    pub(super) pause: Duration,
}

/// Why it is still there.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    /// The scheduler would still count on no volumes here.
    NotListed,
    /// The node's object changed while it was looked at.
    Changed,
    /// The API server cannot, or will not.
    Answer(Answer),
}

impl StartupTaint {
    /// The taint `key` of `node`. The API server is not asked for anything yet.
    pub fn new(place: &Place, node: &str, key: &str) -> Result<Self, EventsError> {
        let access = place.read().map_err(EventsError::Access)?;
        Ok(StartupTaint {
            client: Client::new(access).map_err(EventsError::Client)?,
            node: node.to_owned(),
            key: key.to_owned(),
            pause: FIRST_PAUSE,
        })
    }

    /// Takes it off, and tries until it is off. Not before the cluster knows that
    /// the plugin is on the node: kubelet says that it is registered a moment
    /// earlier.
    pub async fn remove(&mut self) {
        let mut pause = self.pause;
        loop {
            let why = match self.try_remove().await {
                Ok(0) => return tracing::debug!(taint = self.key, "no startup taint"),
                Ok(_) => return tracing::info!(taint = self.key, "took the startup taint off"),
                Err(why) => why,
            };
            match &why {
                Wait::NotListed | Wait::Changed => {
                    tracing::debug!(taint = self.key, ?why, "the startup taint stays for now");
                }
                Wait::Answer(Answer::Forbidden(said)) => tracing::error!(
                    taint = self.key,
                    error = said,
                    "cannot take the startup taint off: get and patch of nodes and get of csinodes are needed"
                ),
                Wait::Answer(answer) => {
                    tracing::warn!(
                        taint = self.key,
                        ?answer,
                        "cannot take the startup taint off"
                    );
                }
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Takes it off; how many taints that were.
    async fn try_remove(&mut self) -> Result<usize, Wait> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if !self.node.bytes().all(is_name) {
            let why = format!("{:?} is not a node's name", self.node);
            return Err(Wait::Answer(Answer::Refused(why)));
        }
        let csi_node = format!("/apis/storage.k8s.io/v1/csinodes/{}", self.node);
        match self.client.read(&csi_node).await {
            Ok(object) if lists_us(&object) => {}
            Ok(_) | Err(Answer::NotFound) => return Err(Wait::NotListed),
            Err(answer) => return Err(Wait::Answer(answer)),
        }
        let path = format!("/api/v1/nodes/{}", self.node);
        let node = self.client.read(&path).await.map_err(Wait::Answer)?;
        let Some(taints) = node.pointer("/spec/taints").and_then(Value::as_array) else {
            return Ok(0);
        };
        let (ours, others): (Vec<&Value>, Vec<&Value>) =
            taints.iter().partition(|taint| taint["key"] == self.key);
        if ours.is_empty() {
            return Ok(0);
        }
        // Somebody else may taint the node at this moment; that one must stay.
        let patch = json!([
            {"op": "test", "path": "/spec/taints", "value": taints},
            {"op": "replace", "path": "/spec/taints", "value": others},
        ]);
        match self.client.patch(&path, patch.to_string().into()).await {
            Answer::Done => Ok(ours.len()),
            // What the API server says of a test that fails (422).
            Answer::Refused(_) => Err(Wait::Changed),
            answer => Err(Wait::Answer(answer)),
        }
    }
}

/// Whether the cluster knows that the plugin is on the node.
fn lists_us(csi_node: &Value) -> bool {
    let drivers = csi_node.pointer("/spec/drivers").and_then(Value::as_array);
    drivers.is_some_and(|drivers| {
        drivers
            .iter()
            .any(|driver| driver["name"] == crate::DRIVER_NAME)
    })
}
