//! `node`: the CSI plugin.

use super::CliError;
use crate::config::{CommonConfig, NodeArgs, NodeConfig};
use crate::csi::server::{self, REPLY_WITHIN, STOP_WITHIN, Settings, Socket};
use crate::volume::Volumes;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long threads may still take after everything else has ended: they have
/// had their time by then, and a killed operation is mended at the next start.
const THREADS_WITHIN: Duration = Duration::from_millis(500);

/// Serve as the CSI plugin of this node, until SIGTERM or SIGINT
///
/// Serves the CSI Identity and Node services on a unix socket. All faults of the
/// configuration are reported at once, with exit code 64.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

pub(super) fn run(common: CommonConfig, node: NodeConfig) -> Result<(), CliError> {
    let volumes = super::open(common)?;
    // Before anybody asks for a volume, so that the first one need not wait.
    let probe = volumes
        .probe_afresh()
        .map_err(CliError::volume("test", "this node"))?;
    tracing::info!(
        aufs = probe.aufs.is_ok(),
        overlay = probe.overlay.is_ok(),
        kernel = probe.kernel,
        "self-test made"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let result = runtime.block_on(serve(volumes, node));
    runtime.shutdown_timeout(THREADS_WITHIN);
    result
}

async fn serve(volumes: Volumes, node: NodeConfig) -> Result<(), CliError> {
    // Before the socket is there, so that no signal can miss its removal.
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Signals)?;
    let socket = Socket::bind(&node.socket).await.map_err(CliError::Socket)?;
    tracing::info!(
        socket = %node.socket.display(),
        node.id = node.node_id,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    let settings = Settings {
        node_id: node.node_id,
        policy: node.policy,
        reply_within: REPLY_WITHIN,
        stop_within: STOP_WITHIN,
    };
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server::serve(socket, Arc::new(volumes), settings, stop)
        .await
        .map_err(CliError::Serve)
}
