//! Metrics: their names, and where they are counted.
//!
//! Calls are counted as csi-lib-utils has it, so that dashboards for CSI drivers
//! fit. The rest begins with `aufs_csi_`. No label holds the name of an image,
//! a pod or a volume: a node's series must not grow with what runs on it.

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper bounds in seconds: those of csi-lib-utils, and three below them, for a
/// warm publish takes milliseconds.
const SECONDS: [f64; 16] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0,
];

/// Media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What can become of an event; see [`Metrics::event`].
const EVENT_OUTCOMES: [&str; 5] = ["sent", "limited", "dropped", "refused", "failed"];

/// A label with its value.
type Label = (&'static str, String);
/// The one label of a family.
type One = [Label; 1];

/// Labels of a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CallLabels {
    method: String,
    code: &'static str,
}

impl EncodeLabelSet for CallLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        [
            ("driver_name", crate::DRIVER_NAME),
            ("method_name", self.method.as_str()),
            ("grpc_status_code", self.code),
        ]
        .encode(encoder)
    }
}

/// What a node holds, counted when somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holdings {
    /// Volumes that are mounted.
    pub mounted: u64,
    /// Volumes that are being mounted, or whose mounting was interrupted.
    pub intended: u64,
    /// Volumes that are being taken down.
    pub leaving: u64,
    /// Volumes that wait to be mounted again.
    pub returning: u64,
    /// Branches in the store.
    pub layers: u64,
    /// Bytes of their files.
    pub layer_bytes: u64,
}

/// What collection in this process came to, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Runs.
    pub runs: u64,
    /// Images that were removed.
    pub images: u64,
    /// Branches that were removed.
    pub layers: u64,
    /// Bytes of those, as far as they can be estimated.
    pub bytes: u64,
    /// Size of the store's filesystem.
    pub disk_bytes: u64,
    /// Bytes of it that are free.
    pub disk_free: u64,
    /// Percent at which something goes.
    pub high: u8,
    /// Percent down to which it goes.
    pub low: u8,
    /// Bytes that the layers may have together; 0 for any number.
    pub limit: u64,
}

/// What the pulls of this process came to, counted by whoever pulls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pulls {
    /// Images that were brought.
    pub pulled: u64,
    /// Images that were there, and that the volume was allowed.
    pub cached: u64,
    /// Images that did not come.
    pub failed: u64,
    /// Pulls that run now.
    pub running: u64,
    /// Bytes of blobs that came from registries.
    pub bytes: u64,
    /// Bytes that had come before and were found on disk.
    pub resumed_bytes: u64,
    /// Blobs that are being fetched now.
    pub in_flight: u64,
    /// Blobs that wait for their turn.
    pub waiting: u64,
    /// How often something was asked for again, by reason.
    pub retries: Vec<(&'static str, u64)>,
}

/// The metrics of this process. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<All>);

#[derive(Debug)]
struct All {
    registry: Registry,
    calls: Family<CallLabels, Histogram>,
    in_flight: Gauge,
    registered: Gauge,
    volumes: Family<One, Gauge>,
    layers: Gauge,
    layer_bytes: Gauge,
    unions: Family<One, Gauge>,
    repairs: Family<One, Counter>,
    stuck: Gauge,
    pulls: Family<One, Counter>,
    pulls_running: Gauge,
    pull_bytes: Counter,
    pull_resumed_bytes: Counter,
    pull_retries: Family<One, Counter>,
    downloads: Family<One, Gauge>,
    events: Family<One, Counter>,
    collections: Counter,
    collected: Family<One, Counter>,
    collected_bytes: Counter,
    disk: Family<One, Gauge>,
    marks: Family<One, Gauge>,
    limit: Gauge,
    policy_reloads: Family<One, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let calls = Family::new_with_constructor(histogram as fn() -> Histogram);
        registry.register(
            "csi_plugin_operations_seconds",
            "Duration of CSI calls by method and code",
            Family::clone(&calls),
        );
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64());
        registry.register(
            "process_start_time_seconds",
            "Start of the process since the epoch",
            ConstGauge::new(started),
        );
        let own = registry.sub_registry_with_prefix("aufs_csi");
        own.register(
            "build",
            "Version of the program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let in_flight = Gauge::default();
        own.register(
            "operations_in_flight",
            "Volumes that are being published or unpublished",
            in_flight.clone(),
        );
        let registered = Gauge::default();
        own.register(
            "registered",
            "Whether kubelet has registered the plugin, 1 or 0; 0 where another program registers it",
            registered.clone(),
        );
        let volumes = Family::default();
        own.register("volumes", "Volumes by state", Family::clone(&volumes));
        let layers = Gauge::default();
        own.register("layers", "Layer directories in the store", layers.clone());
        let layer_bytes = Gauge::default();
        own.register_with_unit(
            "layers",
            "Size of the files in layer directories",
            Unit::Bytes,
            layer_bytes.clone(),
        );
        let unions = Family::default();
        own.register(
            "union_usable",
            "Whether a union filesystem passed its self-test, 1 or 0",
            Family::clone(&unions),
        );
        let repairs = Family::default();
        own.register(
            "repairs",
            "What was put right after crashes, reboots and lost pods, by kind",
            Family::clone(&repairs),
        );
        let stuck = Gauge::default();
        own.register(
            "stuck_volumes",
            "Volumes that are to go and are still in use, at the last look",
            stuck.clone(),
        );
        let events = Family::default();
        own.register(
            "events",
            "Events on pods by what became of them: sent, limited, dropped, refused or failed",
            Family::clone(&events),
        );
        // There from the start, so that the first of them is an increase.
        for outcome in EVENT_OUTCOMES {
            let labels = [("outcome", outcome.to_owned())];
            drop(events.get_or_create(&labels));
        }
        let policy_reloads = Family::default();
        own.register(
            "policy_reloads",
            "Changes of the policy file by what became of them: applied or refused",
            Family::clone(&policy_reloads),
        );
        let pulls = Family::default();
        own.register(
            "pulls",
            "Images of registries that volumes asked for, by what became of it",
            Family::clone(&pulls),
        );
        let pulls_running = Gauge::default();
        own.register("pulls_running", "Pulls that run now", pulls_running.clone());
        let pull_bytes = Counter::default();
        own.register_with_unit(
            "pull",
            "Blobs that came from registries",
            Unit::Bytes,
            pull_bytes.clone(),
        );
        let pull_resumed_bytes = Counter::default();
        own.register_with_unit(
            "pull_resumed",
            "Blobs that had come before and did not have to come again",
            Unit::Bytes,
            pull_resumed_bytes.clone(),
        );
        let pull_retries = Family::default();
        own.register(
            "pull_retries",
            "How often a blob was asked for again, by reason",
            Family::clone(&pull_retries),
        );
        let downloads = Family::default();
        own.register(
            "downloads",
            "Blobs that are being fetched, or wait for their turn",
            Family::clone(&downloads),
        );
        let collections = Counter::default();
        own.register("collections", "Runs of collection", collections.clone());
        let collected = Family::default();
        own.register(
            "collected",
            "What collection removed from the store, by kind",
            Family::clone(&collected),
        );
        let collected_bytes = Counter::default();
        own.register_with_unit(
            "collected",
            "Estimated size of the layers that collection removed",
            Unit::Bytes,
            collected_bytes.clone(),
        );
        let disk = Family::default();
        own.register_with_unit(
            "store_filesystem",
            "The filesystem of the store: its size, and what of it is free",
            Unit::Bytes,
            Family::clone(&disk),
        );
        let marks = Family::default();
        own.register(
            "collection_mark_percent",
            "Use of that filesystem at which collection begins (high) and ends (low)",
            Family::clone(&marks),
        );
        let limit = Gauge::default();
        own.register_with_unit(
            "store_limit",
            "Size that all layers may have together, 0 for any",
            Unit::Bytes,
            limit.clone(),
        );
        Metrics(Arc::new(All {
            collections,
            collected,
            collected_bytes,
            disk,
            marks,
            limit,
            registry,
            calls,
            in_flight,
            registered,
            volumes,
            layers,
            layer_bytes,
            unions,
            repairs,
            stuck,
            pulls,
            pulls_running,
            pull_bytes,
            pull_resumed_bytes,
            pull_retries,
            downloads,
            events,
            policy_reloads,
        }))
    }
}

impl Metrics {
    /// What the pulls of this process came to.
    pub fn pulls(&self, pulls: &Pulls) {
        let set = |counter: &Counter, value: u64| counter.inner().store(value, Ordering::Relaxed);
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let all = &self.0;
        for (outcome, count) in [
            ("pulled", pulls.pulled),
            ("cached", pulls.cached),
            ("failed", pulls.failed),
        ] {
            let labels = [("outcome", outcome.to_owned())];
            set(&all.pulls.get_or_create(&labels), count);
        }
        for (reason, count) in &pulls.retries {
            let labels = [("reason", (*reason).to_owned())];
            set(&all.pull_retries.get_or_create(&labels), *count);
        }
        for (state, count) in [("running", pulls.in_flight), ("waiting", pulls.waiting)] {
            let labels = [("state", state.to_owned())];
            all.downloads.get_or_create(&labels).set(signed(count));
        }
        all.pulls_running.set(signed(pulls.running));
        set(&all.pull_bytes, pulls.bytes);
        set(&all.pull_resumed_bytes, pulls.resumed_bytes);
    }

    /// What collection came to, and where it stands.
    pub fn collected(&self, found: &Collected) {
        let set = |counter: &Counter, value: u64| counter.inner().store(value, Ordering::Relaxed);
        let all = &self.0;
        set(&all.collections, found.runs);
        set(&all.collected_bytes, found.bytes);
        for (kind, count) in [("image", found.images), ("layer", found.layers)] {
            let labels = [("kind", kind.to_owned())];
            set(&all.collected.get_or_create(&labels), count);
        }
        for (state, bytes) in [("size", found.disk_bytes), ("free", found.disk_free)] {
            let labels = [("state", state.to_owned())];
            all.disk.get_or_create(&labels).set(signed(bytes));
        }
        for (mark, percent) in [("high", found.high), ("low", found.low)] {
            let labels = [("mark", mark.to_owned())];
            all.marks.get_or_create(&labels).set(percent.into());
        }
        all.limit.set(signed(found.limit));
    }

    /// A call was answered.
    pub fn call(&self, method: &str, code: &'static str, took: Duration) {
        let labels = CallLabels {
            method: method.to_owned(),
            code,
        };
        self.0
            .calls
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Work on a volume began.
    pub fn operation_began(&self) {
        self.0.in_flight.inc();
    }

    /// Work on a volume ended.
    pub fn operation_ended(&self) {
        self.0.in_flight.dec();
    }

    /// Whether kubelet has registered the plugin.
    pub fn registered(&self, yes: bool) {
        self.0.registered.set(yes.into());
    }

    /// Whether a union passed its self-test.
    pub fn union_usable(&self, name: &str, yes: bool) {
        let labels = [("union", name.to_owned())];
        self.0.unions.get_or_create(&labels).set(yes.into());
    }

    /// Something was put right.
    pub fn repaired(&self, kind: &str) {
        self.0
            .repairs
            .get_or_create(&[("kind", kind.to_owned())])
            .inc();
    }

    /// Volumes that should be gone and cannot be taken down.
    pub fn stuck(&self, count: usize) {
        self.0.stuck.set(signed(count as u64));
    }

    /// Something became of an event on a pod.
    pub fn event(&self, outcome: &'static str) {
        self.0
            .events
            .get_or_create(&[("outcome", outcome.to_owned())])
            .inc();
    }

    /// The policy file has changed, and holds or was refused.
    pub fn policy_reloaded(&self, outcome: &'static str) {
        self.0
            .policy_reloads
            .get_or_create(&[("outcome", outcome.to_owned())])
            .inc();
    }

    /// What the node holds now.
    pub fn holdings(&self, holdings: &Holdings) {
        for (state, count) in [
            ("mounted", holdings.mounted),
            ("intended", holdings.intended),
            ("leaving", holdings.leaving),
            ("returning", holdings.returning),
        ] {
            self.0
                .volumes
                .get_or_create(&[("state", state.to_owned())])
                .set(signed(count));
        }
        self.0.layers.set(signed(holdings.layers));
        self.0.layer_bytes.set(signed(holdings.layer_bytes));
    }

    /// All of it, as OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A string takes whatever is written to it.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_names_and_labels_that_dashboards_for_drivers_expect() {
        let metrics = Metrics::default();
        let took = Duration::from_millis(300);
        metrics.call("/csi.v1.Node/NodePublishVolume", "Aborted", took);
        let text = metrics.text();
        let series = "csi_plugin_operations_seconds_bucket{le=\"0.5\",driver_name=\"aufs-csi.dev\",method_name=\"/csi.v1.Node/NodePublishVolume\",grpc_status_code=\"Aborted\"} 1";
        let sorted = |line: &str| {
            let mut parts: Vec<_> = line.split(['{', ',', '}']).map(str::to_owned).collect();
            parts.sort();
            parts
        };
        assert!(
            text.lines().any(|line| sorted(line) == sorted(series)),
            "{text}"
        );
    }

    #[test]
    fn what_a_node_holds_is_told_whole() {
        let metrics = Metrics::default();
        metrics.holdings(&Holdings {
            mounted: 3,
            layers: 7,
            layer_bytes: 1 << 40,
            ..Holdings::default()
        });
        metrics.registered(true);
        metrics.union_usable("aufs", false);
        metrics.repaired("undone");
        metrics.stuck(2);
        metrics.event("dropped");
        metrics.collected(&Collected {
            runs: 4,
            images: 5,
            bytes: 1 << 20,
            disk_free: 77,
            high: 80,
            ..Collected::default()
        });
        let text = metrics.text();
        for line in [
            "aufs_csi_volumes{state=\"mounted\"} 3",
            "aufs_csi_volumes{state=\"leaving\"} 0",
            "aufs_csi_layers 7",
            "aufs_csi_layers_bytes 1099511627776",
            "aufs_csi_registered 1",
            "aufs_csi_union_usable{union=\"aufs\"} 0",
            "aufs_csi_repairs_total{kind=\"undone\"} 1",
            "aufs_csi_stuck_volumes 2",
            "aufs_csi_events_total{outcome=\"dropped\"} 1",
            "aufs_csi_collections_total 4",
            "aufs_csi_collected_total{kind=\"image\"} 5",
            "aufs_csi_collected_bytes_total 1048576",
            "aufs_csi_store_filesystem_bytes{state=\"free\"} 77",
            "aufs_csi_collection_mark_percent{mark=\"high\"} 80",
            "aufs_csi_store_limit_bytes 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(text.contains("process_start_time_seconds "), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
