//! The options of `purge`.

use super::node::{DEFAULT_KUBELET_ROOT, REGISTRATION_DIR};
use super::{ConfigFault, directory};
use crate::csi::registration;
use crate::volume::purge::Elsewhere;
use std::path::PathBuf;

/// Where the plugin was.
#[derive(Debug, Clone, clap::Args)]
pub struct PurgeArgs {
    /// kubelet's directory, as the plugin had it.
    #[arg(
        long,
        env = "AUFS_CSI_KUBELET_ROOT",
        hide_env_values = true,
        value_name = "DIR",
        default_value = DEFAULT_KUBELET_ROOT
    )]
    pub kubelet_root: PathBuf,
}

impl PurgeArgs {
    /// Validates them: where something of the plugin can be beside its store.
    pub fn validate(self, faults: &mut Vec<ConfigFault>) -> Option<Elsewhere> {
        let kubelet_root = directory("--kubelet-root", Some(self.kubelet_root), "", faults)?;
        let plugin = kubelet_root.join("plugins").join(crate::DRIVER_NAME);
        Some(Elsewhere {
            sockets: vec![
                plugin.join("csi.sock"),
                kubelet_root
                    .join(REGISTRATION_DIR)
                    .join(registration::socket_name()),
            ],
            directories: vec![plugin],
            kubelet_root,
        })
    }
}
