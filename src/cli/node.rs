//! `node`: the CSI plugin.

use super::CliError;
use crate::chain::Chain;
use crate::cluster::{Events, StartupTaint};
use crate::config::policy::{Follower, Look};
use crate::config::{CommonConfig, NodeArgs, NodeConfig};
use crate::csi::health::Health;
use crate::csi::policy::{LivePolicy, Policy};

use crate::csi::server::{
    self, LOOK_EVERY, Observers, REPLY_WITHIN, STOP_WITHIN, Settings, Socket,
};
use crate::probes::{Probes, Watched};
use crate::telemetry::{self, Metrics};
use crate::volume::upkeep::{DOUBT, Upkeep};
use crate::volume::{CollectSettings, PullOptions, VolumeOptions, Volumes};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// How long threads may still take after everything else has ended: they have
/// had their time by then, and a killed operation is mended at the next start.
const THREADS_WITHIN: Duration = Duration::from_millis(500);
/// Threads of the runtime, which only hand calls on to threads of their own.
const RUNTIME_THREADS: usize = 2;
/// How long a thread that worked for a call waits for the next one.
const THREAD_KEPT: Duration = Duration::from_secs(2);
/// How often an address for probes that another process has is tried again.
const BIND_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether an image of the list to prefetch is due, or no
/// longer listed.
const PREFETCH_EVERY: Duration = Duration::from_secs(10);
/// Every so many times that volumes are looked after, what is too old is removed
/// and what is left of interrupted work, also where the disk has space.
const COLLECT_EVERY: u32 = 10;
/// How often kubelet's directories are looked at for volumes that it has
/// forgotten, and layers are flushed that a publish has staged.
const UPKEEP_EVERY: Duration = Duration::from_secs(30);
/// How often the policy file is read. kubelet itself brings a change of a
/// ConfigMap within a minute or so.
const POLICY_EVERY: Duration = Duration::from_secs(3);

/// Serve as the CSI plugin of this node, until SIGTERM or SIGINT
///
/// Puts right what an earlier process left, tests the node, serves the CSI
/// Identity and Node services on a unix socket, and registers itself with
/// kubelet. All faults of the configuration are reported at once, with exit
/// code 64.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

pub(super) fn run(common: CommonConfig, node: NodeConfig) -> Result<(), CliError> {
    telemetry::start(common.log_format, common.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_keep_alive(THREAD_KEPT)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let options = VolumeOptions {
        pull: PullOptions {
            credentials: node.credentials.clone(),
            ..node.pull.clone()
        },
        collect: match &node.policy_file {
            Some((_, file)) => file.collection(&node.collect),
            None => node.collect.clone(),
        },
        ..common.store
    };
    let result = runtime.block_on(serve(options, node));
    runtime.shutdown_timeout(THREADS_WITHIN);
    result
}

/// A signal to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self, CliError> {
        Ok(Stop {
            terminate: signal(SignalKind::terminate()).map_err(CliError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(CliError::Signals)?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn serve(options: VolumeOptions, node: NodeConfig) -> Result<(), CliError> {
    // Before any socket is there, so that no signal can miss its removal.
    let mut stop = Stop::new()?;
    let metrics = Metrics::default();
    let observers = Observers {
        events: Arc::new(events(&node, &metrics)),
        metrics,
        ..Observers::default()
    };
    let known = Arc::new(OnceLock::new());
    // First of all, so that a long recovery is not taken for a hanging process.
    let _probes = answer_probes(&node, &observers, &known).await?;
    let root = node.policy.kubelet_root.clone();
    let metrics = observers.metrics.clone();
    let starting = blocking(move || start(options, &root, &metrics));
    let volumes = tokio::select! {
        volumes = starting => Arc::new(volumes?),
        () = stop.asked() => return Ok(()),
    };
    // Nobody else sets it.
    let _ = known.set(Arc::clone(&volumes));
    let policy = match &node.policy_file {
        Some((_, file)) => file.over(&node.policy),
        None => node.policy.clone(),
    };
    let topology = examine(&volumes, &policy, &observers);
    let policy = LivePolicy::from(policy);
    let socket = Socket::bind(&node.socket).await.map_err(CliError::Socket)?;
    tracing::info!(
        socket = %node.socket.display(),
        node.id = node.node_id,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    let _upkeep = Task(tokio::spawn(keep_up(
        Arc::clone(&volumes),
        node.policy.kubelet_root.clone(),
        observers.metrics.clone(),
    )));
    let _taint = startup_taint(&node).map(|taint| {
        let health = observers.health.clone();
        Task(tokio::spawn(keep_off(taint, health)))
    });
    let _collect = Task(tokio::spawn(keep_collected(Arc::clone(&volumes))));
    let _prefetch = Task(tokio::spawn(keep_prefetched(
        Arc::clone(&volumes),
        policy.clone(),
    )));
    let _policy = node.policy_file.map(|(follower, _)| {
        let ruled = Ruled {
            flags: node.policy,
            collect: node.collect,
            live: policy.clone(),
            volumes: Arc::clone(&volumes),
        };
        Task(tokio::spawn(follow(
            follower,
            ruled,
            observers.metrics.clone(),
        )))
    });
    let settings = Settings {
        node_id: node.node_id,
        policy,
        registration: node.registration,
        topology,
        reply_within: REPLY_WITHIN,
        stop_within: STOP_WITHIN,
        look_every: LOOK_EVERY,
    };
    let kept = Arc::clone(&volumes);
    let served = server::serve(socket, volumes, settings, observers, async move {
        stop.asked().await;
    })
    .await
    .map_err(CliError::Serve);
    blocking(move || tell_what_stays(&kept)).await;
    served
}

/// Says what whoever uninstalls the plugin should know; after an upgrade the next
/// one takes over.
fn tell_what_stays(volumes: &Volumes) {
    match volumes.holdings() {
        Ok(holdings) if holdings.mounted > 0 => tracing::warn!(
            volumes = holdings.mounted,
            "volumes stay mounted; their pods cannot end before the plugin runs on this node again"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(error = %Chain(&error), "cannot count volumes"),
    }
}

/// Events on pods, if they can be sent. Volumes do not depend on them, so the
/// plugin serves without.
fn events(node: &NodeConfig, metrics: &Metrics) -> Events {
    let Some(place) = &node.events else {
        tracing::info!("no events on pods: not in a cluster, or not wanted");
        return Events::off();
    };
    Events::start(place, &node.node_id, metrics.clone()).unwrap_or_else(|error| {
        tracing::error!(error = %Chain(&error), "no events on pods; --no-events means so");
        Events::off()
    })
}

/// The taint that keeps pods away until the plugin is ready, if there is one.
fn startup_taint(node: &NodeConfig) -> Option<StartupTaint> {
    let (key, place) = node.startup_taint.as_ref()?;
    match StartupTaint::new(place, &node.node_id, key) {
        Ok(taint) => Some(taint),
        Err(error) => {
            tracing::error!(error = %Chain(&error), "the startup taint stays on this node");
            None
        }
    }
}

/// Takes the taint off whenever the plugin has become ready: a node that joins
/// anew, with the same plugin, has it again.
async fn keep_off(mut taint: StartupTaint, health: Health) {
    loop {
        health.ready().await;
        taint.remove().await;
        health.registration_said().await;
    }
}

/// A task that ends when it is not wanted any more.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves probes and metrics, if they are wanted.
async fn answer_probes(
    node: &NodeConfig,
    observers: &Observers,
    known: &Arc<OnceLock<Arc<Volumes>>>,
) -> Result<Option<Task>, CliError> {
    let Some(address) = node.http_address else {
        return Ok(None);
    };
    let known = Arc::clone(known);
    let watched = Watched {
        health: observers.health.clone(),
        metrics: observers.metrics.clone(),
        socket: node.socket.clone(),
        count: Arc::new(move |metrics| count(known.get(), metrics)),
    };
    let probes = match Probes::bind(address).await {
        Ok(probes) => Some(probes),
        // Another process with that port must not keep volumes from coming and
        // going. It may be this plugin's predecessor, which is not quite gone.
        Err(error) if error.is_in_use() => {
            tracing::error!(error = %Chain(&error), "trying again");
            None
        }
        Err(error) => return Err(CliError::Probes(error)),
    };
    Ok(Some(Task(tokio::spawn(async move {
        let probes = match probes {
            Some(probes) => probes,
            None => bind_later(address).await,
        };
        let bound: Option<SocketAddr> = probes.address().ok();
        tracing::info!(
            address = bound.map(tracing::field::display),
            "answering probes"
        );
        probes.serve(watched).await;
    }))))
}

/// Listens as soon as the address is free.
async fn bind_later(address: SocketAddr) -> Probes {
    loop {
        tokio::time::sleep(BIND_EVERY).await;
        match Probes::bind(address).await {
            Ok(probes) => return probes,
            Err(error) => tracing::debug!(error = %Chain(&error), "trying again"),
        }
    }
}

/// Counts what the node holds.
fn count(volumes: Option<&Arc<Volumes>>, metrics: &Metrics) {
    let Some(volumes) = volumes else {
        return;
    };
    metrics.pulls(&volumes.pulls());
    match volumes.collected() {
        Ok(collected) => metrics.collected(&collected),
        Err(error) => tracing::warn!(error = %Chain(&error), "cannot count what was collected"),
    }
    match volumes.holdings() {
        Ok(holdings) => metrics.holdings(&holdings),
        Err(error) => tracing::warn!(error = %Chain(&error), "cannot count volumes and layers"),
    }
}

/// Opens the store, puts right what an earlier process left, and tests the node
/// with real mounts.
fn start(
    options: VolumeOptions,
    kubelet_root: &Path,
    metrics: &Metrics,
) -> Result<Volumes, CliError> {
    let volumes = super::open_store(options)?;
    let upkeep = volumes
        .recover(kubelet_root)
        .map_err(CliError::volume("recover", "volumes"))?;
    note(&upkeep, metrics);
    let probe = volumes
        .probe_afresh()
        .map_err(CliError::volume("test", "this node"))?;
    // No reason to stop: volumes must go, and some need no registry.
    if let Err(error) = volumes.prepare_pulls() {
        tracing::error!(error = %Chain(&error), "images of registries cannot be pulled");
    }
    tracing::info!(
        aufs = probe.aufs.is_ok(),
        overlay = probe.overlay.is_ok(),
        kernel = probe.kernel,
        "self-test made"
    );
    Ok(volumes)
}

/// What the node can do: for probes, for metrics, and as keys of labels.
fn examine(volumes: &Volumes, policy: &Policy, observers: &Observers) -> Vec<String> {
    let mut topology = Vec::new();
    for (name, works) in volumes.unions() {
        observers.metrics.union_usable(name, works);
        if works {
            topology.push(format!("{}/{name}", crate::DRIVER_NAME));
        }
    }
    let usable = volumes
        .can_publish(policy.union, &policy.kubelet_root)
        .map_err(|error| Chain(&error).to_string());
    if let Err(why) = &usable {
        tracing::error!(why, "volumes cannot be published on this node");
    }
    observers.health.tested(usable);
    topology
}

/// What a policy file decides about, and what the flags say of the same.
struct Ruled {
    flags: Policy,
    collect: CollectSettings,
    live: LivePolicy,
    volumes: Arc<Volumes>,
}

/// Lets what the policy file says hold as soon as it changes. One that cannot be
/// read is refused: what an operator wrote is not guessed at.
async fn follow(mut follower: Follower, ruled: Ruled, metrics: Metrics) {
    let mut ticks = tokio::time::interval(POLICY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let file = follower.path().display().to_string();
        let look;
        (follower, look) = blocking(move || {
            let look = follower.look();
            (follower, look)
        })
        .await;
        match look {
            Look::Same => {}
            Look::Changed(policy) => {
                ruled.live.replace(policy.over(&ruled.flags));
                let collect = policy.collection(&ruled.collect);
                ruled.volumes.set_collection(collect);
                metrics.policy_reloaded("applied");
                tracing::info!(file, "the policy has changed");
            }
            Look::Refused(faults) => {
                metrics.policy_reloaded("refused");
                for fault in &faults {
                    tracing::error!(
                        file,
                        fault = %Chain(fault),
                        "the policy is refused, and the one before holds on"
                    );
                }
            }
        }
    }
}

/// Looks after volumes from time to time, for as long as the plugin serves.
async fn keep_up(volumes: Arc<Volumes>, kubelet_root: PathBuf, metrics: Metrics) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once, just after recovery.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (volumes, root, metrics) =
            (Arc::clone(&volumes), kubelet_root.clone(), metrics.clone());
        blocking(move || {
            match volumes.reap(&root, DOUBT) {
                Ok(upkeep) => note(&upkeep, &metrics),
                Err(error) => tracing::warn!(error = %Chain(&error), "cannot look after volumes"),
            }
            if let Err(error) = volumes.flush() {
                tracing::warn!(error = %Chain(&error), "cannot flush layers");
            }
            if let Err(error) = volumes.expire_downloads() {
                tracing::warn!(error = %Chain(&error), "cannot remove old downloads");
            }
        })
        .await;
    }
}

/// Removes what nobody needs, for as long as the plugin serves. A task of its own:
/// it takes as long as deleting takes, and branches wait to be flushed.
async fn keep_collected(volumes: Arc<Volumes>) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    for round in 0_u32.. {
        ticks.tick().await;
        let volumes = Arc::clone(&volumes);
        blocking(move || {
            if let Err(error) = volumes.collect_if_needed(round % COLLECT_EVERY == 0) {
                tracing::warn!(error = %Chain(&error), "cannot remove what nobody needs");
            }
        })
        .await;
    }
}

/// Has the images of the operator's list on the node, for as long as the plugin
/// serves. A task of its own: a pull may take longer than volumes can wait to be
/// looked after.
async fn keep_prefetched(volumes: Arc<Volumes>, policy: LivePolicy) {
    let mut ticks = tokio::time::interval(PREFETCH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let volumes = Arc::clone(&volumes);
        let union = policy.now().union;
        blocking(move || volumes.prefetch(union)).await;
    }
}

fn note(upkeep: &Upkeep, metrics: &Metrics) {
    for kind in &upkeep.done {
        metrics.repaired(kind);
    }
    metrics.stuck(upkeep.stuck);
}

/// Work that waits for disks, on a thread of its own. A panic in it is one here.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> {
    let working = tokio::task::spawn_blocking(work);
    async move {
        match working.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Nobody cancels it but the runtime, when it ends.
                Err(_) => std::future::pending().await,
            },
        }
    }
}
