//! `purge`: the end of everything of ours on this node.

use super::CliError;
use super::output;
use crate::config::{ConfigFault, PurgeArgs};
use crate::volume::Volumes;
use crate::volume::purge::Elsewhere;

/// Remove everything of this program from the node
///
/// Removes the store with all layers, the run directory, and what the plugin
/// left in kubelet's directories. Nothing is removed while the plugin runs or
/// anything is in use, which is named then: uninstall the plugin, and delete the
/// pods with its volumes first. It may be called again, also after it was
/// interrupted.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    purge: PurgeArgs,
}

impl Args {
    pub(super) fn validate(self, faults: &mut Vec<ConfigFault>) -> Option<Elsewhere> {
        self.purge.validate(faults)
    }
}

pub(super) fn run(volumes: &Volumes, elsewhere: &Elsewhere) -> Result<(), CliError> {
    let root = volumes.store().root().to_owned();
    volumes
        .purge(elsewhere)
        .map_err(CliError::volume("purge", "this node"))?;
    output::to_stdout(|out| {
        writeln!(
            out,
            "Nothing of aufs-csi is left in {} and below {}.",
            root.display(),
            elsewhere.kubelet_root.display()
        )
    })
}
