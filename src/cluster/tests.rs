//! Events against an API server of our own, over real connections.

use super::access::Place;
use super::client::Client;
use super::{Events, QUEUE, StartupTaint};
use crate::csi::events::PodEvents;
use crate::image::digest::Digest;
use crate::stage::Pulled;
use crate::telemetry::Metrics;
use crate::volume::Pod;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tracing_subscriber::fmt::MakeWriter;

/// Longer than any step here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request as it came.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    path: String,
    content: String,
    token: String,
    body: Value,
}

/// What is answered to the request of this number, which begins at 0: a status
/// and a body; no status is no answer at all.
type Answers = dyn Fn(usize, &Asked) -> (Option<u16>, Value) + Send + Sync;

/// The API server, as far as events go.
struct Api {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
    address: String,
    metrics: Metrics,
}

impl Api {
    async fn start(
        answers: impl Fn(usize, &Asked) -> (Option<u16>, Value) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (all, answers): (_, Arc<Answers>) = (Arc::clone(&asked), Arc::new(answers));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (all, answers) = (Arc::clone(&all), Arc::clone(&answers));
                let serve = service_fn(move |request| {
                    answer(request, Arc::clone(&all), Arc::clone(&answers))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), serve),
                );
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let api = Api {
            directory,
            asked,
            address,
            metrics: Metrics::default(),
        };
        api.set_token("first-token");
        api
    }

    /// One that takes everything.
    async fn willing() -> Self {
        Api::start(|_, _| (Some(201), json!({}))).await
    }

    fn set_token(&self, token: &str) {
        std::fs::write(self.directory.path().join("token"), token).unwrap();
    }

    fn place(&self) -> Place {
        let path = self.directory.path().join("kubeconfig");
        let config = json!({
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.address}}],
            "users": [{"name": "u", "user": {"tokenFile": "token"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        Place::Kubeconfig(path)
    }

    fn events(&self) -> Events {
        Events::start(&self.place(), "node-a", self.metrics.clone()).unwrap()
    }

    /// Events whose requests have less time.
    fn events_within(&self, within: Duration) -> Events {
        let mut client = Client::new(self.place().read().unwrap()).unwrap();
        client.within = within;
        Events::through(client, "node-a", self.metrics.clone())
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    async fn wait_for(&self, what: &str, is_so: impl Fn(&Api) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            let shown = || format!("{what}: {:#?}\n{}", self.asked(), self.metrics.text());
            assert!(Instant::now() < until, "{}", shown());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wait_for_requests(&self, count: usize) -> Vec<Asked> {
        self.wait_for("requests", |api| api.asked().len() >= count)
            .await;
        self.asked()
    }

    /// Waits until so many events came to this end.
    async fn wait_for_outcome(&self, outcome: &str, count: u64) {
        self.wait_for(outcome, |api| api.outcome(outcome) >= count)
            .await;
        assert_eq!(self.outcome(outcome), count);
    }

    fn outcome(&self, outcome: &str) -> u64 {
        let name = format!("aufs_csi_events_total{{outcome=\"{outcome}\"}} ");
        let text = self.metrics.text();
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |count| count.parse().unwrap())
    }
}

async fn answer(
    request: Request<Incoming>,
    all: Arc<Mutex<Vec<Asked>>>,
    answers: Arc<Answers>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let header = |name: &str| {
        let value = head.headers.get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or_default().to_owned()
    };
    let asked = Asked {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        content: header("content-type"),
        token: header("authorization"),
        body: serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default(),
    };
    let number = {
        let mut all = all.lock().unwrap();
        all.push(asked.clone());
        all.len() - 1
    };
    let (status, body) = answers(number, &asked);
    let Some(status) = status else {
        return std::future::pending().await;
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status.try_into().unwrap();
    Ok(response)
}

fn pod(name: &str) -> Pod {
    Pod {
        namespace: "team".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
    }
}

/// Keeps what is logged by the thread of a test.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self, part: &str) -> usize {
        let text = self.text();
        text.lines().filter(|line| line.contains(part)).count()
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        self.clone()
    }
}

#[tokio::test]
async fn an_event_is_created_and_then_counted_up() {
    let api = Api::willing().await;
    let events = api.events();
    events.failed(&pod("web"), "no such image");
    events.failed(&pod("web"), "no such image");
    events.failed(&pod("web"), "no space");
    let asked = api.wait_for_requests(3).await;
    let shown: Vec<_> = asked
        .iter()
        .map(|asked| {
            (
                asked.method.as_str(),
                asked.content.as_str(),
                asked.token.as_str(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("POST", "application/json", "Bearer first-token"),
            (
                "PATCH",
                "application/merge-patch+json",
                "Bearer first-token"
            ),
            ("POST", "application/json", "Bearer first-token"),
        ]
    );
    let name = asked[0].body["metadata"]["name"].as_str().unwrap();
    assert_eq!(asked[0].path, "/api/v1/namespaces/team/events");
    assert_eq!(
        asked[1].path,
        format!("/api/v1/namespaces/team/events/{name}")
    );
    assert_eq!(asked[0].body["count"], 1);
    assert_eq!(asked[0].body["involvedObject"]["uid"], "uid-web");
    assert_eq!(asked[1].body["count"], 2);
    let keys: Vec<_> = asked[1].body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["count", "lastTimestamp"]);
    assert_eq!(asked[2].body["message"], "no space");
    api.wait_for_outcome("sent", 3).await;
}

#[tokio::test]
async fn pulls_are_told_as_kubelet_tells_them() {
    let api = Api::willing().await;
    let events = api.events();
    let pulled = Pulled {
        digest: Digest::of(b""),
        bytes: 7,
        took: Duration::from_secs(2),
        cached: false,
    };
    events.pulling(&pod("web"), "example.org/app:1");
    events.pulled(&pod("web"), "example.org/app:1", &pulled);
    let asked = api.wait_for_requests(2).await;
    let shown: Vec<_> = asked
        .iter()
        .map(|asked| (asked.body["reason"].clone(), asked.body["type"].clone()))
        .collect();
    assert_eq!(
        shown,
        [
            (json!("Pulling"), json!("Normal")),
            (json!("Pulled"), json!("Normal")),
        ]
    );
    let message = asked[1].body["message"].as_str().unwrap();
    assert!(
        message.starts_with("Pulled image \"example.org/app:1\" (sha256:"),
        "{message}"
    );
    // Nobody is told where there is no API server.
    Events::off().failed(&pod("web"), "x");
}

#[tokio::test]
async fn an_event_that_was_deleted_is_created_again_with_its_count() {
    let api = Api::start(|_, asked| match asked.method.as_str() {
        "PATCH" => (Some(404), json!({"reason": "NotFound"})),
        _ => (Some(201), json!({})),
    })
    .await;
    let events = api.events();
    events.failed(&pod("web"), "x");
    events.failed(&pod("web"), "x");
    let asked = api.wait_for_requests(3).await;
    let methods: Vec<_> = asked.iter().map(|asked| asked.method.as_str()).collect();
    assert_eq!(methods, ["POST", "PATCH", "POST"]);
    assert_eq!(asked[2].body["count"], 2);
    assert_eq!(
        asked[2].body["firstTimestamp"],
        asked[0].body["firstTimestamp"]
    );
    assert_ne!(
        asked[2].body["metadata"]["name"],
        asked[0].body["metadata"]["name"]
    );
    api.wait_for_outcome("sent", 2).await;
}

#[tokio::test]
async fn a_pod_that_fails_on_and_on_has_few_events() {
    let api = Api::willing().await;
    let events = api.events();
    for number in 0..40 {
        events.failed(&pod("web"), &format!("failure {number}"));
    }
    events.failed(&pod("other"), "failure");
    api.wait_for_outcome("limited", 15).await;
    api.wait_for_outcome("sent", 26).await;
}

#[tokio::test]
async fn a_server_that_hangs_holds_nothing_up_and_a_full_queue_drops() {
    let (log, _guard) = Log::capture();
    let api = Api::start(|number, _| (number.checked_sub(2).map(|_| 201), json!({}))).await;
    let events = api.events_within(Duration::from_millis(300));
    let began = Instant::now();
    for number in 0..QUEUE + 40 {
        events.failed(&pod(&format!("web-{number}")), "x");
    }
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // The task has not run yet, on this thread.
    assert_eq!(api.outcome("dropped"), 40);
    let asked = api.wait_for_requests(3).await;
    // The first one is tried until it gets through.
    let names: Vec<_> = asked[..3].iter().map(|asked| &asked.body).collect();
    assert_eq!((names[0], names[1]), (names[1], names[2]));
    api.wait_for("sent", |api| api.outcome("sent") > 3).await;
    assert_eq!(log.lines("no events on pods for now"), 1, "{}", log.text());
    assert_eq!(log.lines("no answer in time"), 1, "{}", log.text());
    assert_eq!(log.lines("can be asked again"), 1, "{}", log.text());
}

#[tokio::test]
async fn what_the_api_server_cannot_now_is_tried_again() {
    let api = Api::start(|number, _| match number {
        0 => (Some(503), json!({"message": "no etcd"})),
        1 => (Some(429), json!({})),
        // The first request did it after all.
        2 => (Some(409), json!({"reason": "AlreadyExists"})),
        _ => (Some(200), json!({})),
    })
    .await;
    let events = api.events();
    events.failed(&pod("web"), "x");
    api.wait_for_outcome("sent", 1).await;
    events.failed(&pod("web"), "x");
    let asked = api.wait_for_requests(4).await;
    assert_eq!(asked[3].method, "PATCH");
}

#[tokio::test]
async fn a_token_that_is_refused_is_read_again() {
    let (log, _guard) = Log::capture();
    let api = Api::start(|_, asked| match asked.token.as_str() {
        "Bearer second-token" => (Some(201), json!({})),
        _ => (Some(401), json!({"reason": "Unauthorized"})),
    })
    .await;
    let events = api.events();
    events.failed(&pod("web"), "x");
    // The same one is not shown twice in a row.
    let asked = api.wait_for_requests(2).await;
    assert_eq!(
        (asked[0].token.as_str(), asked[1].token.as_str()),
        ("Bearer first-token", "Bearer first-token")
    );
    api.set_token("second-token");
    api.wait_for_outcome("sent", 1).await;
    let count = api.asked().len();
    events.failed(&pod("web"), "x");
    let asked = api.wait_for_requests(count + 1).await;
    assert_eq!(asked[count].token, "Bearer second-token");
    assert_eq!(log.lines("(401)"), 1, "{}", log.text());
    let text = format!("{}{events:?}{}", log.text(), api.metrics.text());
    for secret in ["first-token", "second-token"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn a_missing_right_is_said_once() {
    let (log, _guard) = Log::capture();
    let api = Api::start(|number, _| match number {
        0 => (
            Some(403),
            json!({"reason": "Forbidden", "message": "being terminated",
                "details": {"causes": [{"reason": "NamespaceTerminating"}]}}),
        ),
        _ => (
            Some(403),
            json!({"reason": "Forbidden", "message": "cannot create\nresource \"events\""}),
        ),
    })
    .await;
    let events = api.events();
    for number in 0..4 {
        events.failed(&pod("web"), &format!("{number}"));
    }
    api.wait_for_outcome("refused", 4).await;
    assert_eq!(log.lines(" WARN "), 1, "{}", log.text());
    assert_eq!(
        log.lines("verbs create and patch for the resource events"),
        1
    );
    assert_eq!(log.lines("being terminated"), 0, "{}", log.text());
}

#[tokio::test]
async fn answers_without_end_or_sense_do_no_harm() {
    let api = Api::start(|number, _| match number {
        0 => (Some(200), json!("x".repeat(8 << 20))),
        1 => (Some(422), json!(["what"])),
        2 => (Some(301), json!({})),
        _ => (Some(404), json!({})),
    })
    .await;
    let events = api.events();
    for number in 0..4 {
        events.failed(&pod("web"), &format!("{number}"));
    }
    api.wait_for_outcome("refused", 3).await;
    api.wait_for_outcome("sent", 1).await;
    assert_eq!(api.asked().len(), 4);
}

#[tokio::test]
async fn no_events_is_an_error_only_where_they_were_meant_to_be() {
    let nowhere = Place::Kubeconfig(PathBuf::from("/nonexistent/kubeconfig"));
    let error = Events::start(&nowhere, "node-a", Metrics::default()).unwrap_err();
    let text = crate::chain::Chain(&error).to_string();
    assert!(text.contains("/nonexistent/kubeconfig"), "{text}");
}

/// A CSINode with these drivers, and a Node with these taints.
fn csi_node(drivers: &[&str]) -> Value {
    let drivers: Vec<Value> = drivers.iter().map(|name| json!({"name": name})).collect();
    json!({"kind": "CSINode", "spec": {"drivers": drivers}})
}

fn taint(key: &str, effect: &str) -> Value {
    json!({"key": key, "effect": effect})
}

fn quick_taint(api: &Api) -> StartupTaint {
    let mut taint = StartupTaint::new(&api.place(), "node-a", "example.org/wait").unwrap();
    taint.pause = Duration::from_millis(1);
    taint
}

const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/node-a";
const NODE: &str = "/api/v1/nodes/node-a";

#[tokio::test]
async fn the_startup_taint_goes_and_others_stay() {
    let others = [taint("a", "NoSchedule"), taint("b", "NoExecute")];
    let ours = [
        taint("example.org/wait", "NoExecute"),
        taint("example.org/wait", "NoSchedule"),
    ];
    let all = vec![
        others[0].clone(),
        ours[0].clone(),
        ours[1].clone(),
        others[1].clone(),
    ];
    let found = all.clone();
    let api = Api::start(move |_, asked| match (&*asked.method, &*asked.path) {
        ("GET", CSI_NODE) => (Some(200), csi_node(&["other.example", crate::DRIVER_NAME])),
        ("GET", NODE) => (Some(200), json!({"spec": {"taints": found}})),
        ("PATCH", NODE) => (Some(200), json!({})),
        _ => (Some(404), json!({})),
    })
    .await;
    quick_taint(&api).remove().await;
    let asked = api.asked();
    assert_eq!(asked.len(), 3, "{asked:#?}");
    assert_eq!(asked[2].content, "application/json-patch+json");
    assert_eq!(asked[2].token, "Bearer first-token");
    assert_eq!(
        asked[2].body,
        json!([
            {"op": "test", "path": "/spec/taints", "value": all},
            {"op": "replace", "path": "/spec/taints", "value": others},
        ])
    );
}

#[tokio::test]
async fn a_node_without_the_taint_is_left_alone() {
    for spec in [
        json!({}),
        json!({"taints": null}),
        json!({"taints": [taint("other", "NoSchedule")]}),
    ] {
        let api = Api::start(move |_, asked| match &*asked.path {
            CSI_NODE => (Some(200), csi_node(&[crate::DRIVER_NAME])),
            _ => (Some(200), json!({"spec": spec})),
        })
        .await;
        quick_taint(&api).remove().await;
        assert!(api.asked().iter().all(|asked| asked.method == "GET"));
    }
}

#[tokio::test]
async fn the_startup_taint_stays_until_the_cluster_knows_the_plugin() {
    let api = Api::start(move |number, asked| match (number, &*asked.path) {
        // Not there, without drivers, with another one; then the API server is away.
        (0, _) => (Some(404), json!({"reason": "NotFound"})),
        (1, _) => (Some(200), json!({"spec": {}})),
        (2, _) => (Some(200), csi_node(&["other.example"])),
        (3, _) => (Some(503), json!({})),
        (_, CSI_NODE) => (Some(200), csi_node(&[crate::DRIVER_NAME])),
        (5, NODE) => (Some(403), json!({"reason": "Forbidden"})),
        // Somebody changes the node, once.
        (8, NODE) => (Some(422), json!({"reason": "Invalid"})),
        _ => (
            Some(200),
            json!({"spec": {"taints": [taint("example.org/wait", "NoExecute")]}}),
        ),
    })
    .await;
    quick_taint(&api).remove().await;
    let asked = api.asked();
    let asked: Vec<(&str, &str)> = asked
        .iter()
        .map(|asked| (&*asked.method, &*asked.path))
        .collect();
    let (csi, get, patch) = (("GET", CSI_NODE), ("GET", NODE), ("PATCH", NODE));
    let wanted = [
        csi, csi, csi, csi, csi, get, csi, get, patch, csi, get, patch,
    ];
    assert_eq!(asked, wanted);
}
