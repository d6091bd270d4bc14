//! Registration with kubelet: the plugin says itself who it is, on a socket in
//! kubelet's directory of plugins, and needs no second container for that.
//!
//! kubelet sees the socket appear, calls `GetInfo` on it, then `NodeGetInfo` at
//! the endpoint named there, and tells the outcome with
//! `NotifyRegistrationStatus`. When the socket's name goes, the plugin is no
//! longer registered. A kubelet that restarts does all that again.

use super::DRIVER_NAME;
use super::registration_v1::registration_server::Registration;
use super::registration_v1::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// The kind of plugin, as kubelet calls it.
const PLUGIN_TYPE: &str = "CSIPlugin";
/// Versions of the CSI that are spoken. kubelet looks at the major number only.
const CSI_VERSIONS: [&str; 1] = ["1.0.0"];

/// Name of the socket in kubelet's directory: one for the plugin, whatever its
/// version, for kubelet refuses a second plugin of the same name.
pub fn socket_name() -> String {
    format!("{DRIVER_NAME}-reg.sock")
}

/// Where the plugin registers itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationSettings {
    /// The socket, in kubelet's directory of plugins.
    pub socket: PathBuf,
    /// The socket of the CSI services, as kubelet sees it.
    pub kubelet_endpoint: PathBuf,
}

/// What kubelet makes of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Registered {
    /// Another program registers the plugin, so it is not known here.
    #[default]
    Elsewhere,
    /// kubelet has not said anything yet, or the socket had to be made again.
    Waiting,
    /// The plugin is registered.
    Yes,
    /// kubelet refuses the plugin, for this reason.
    Refused(String),
}

/// Answers kubelet's registration calls.
#[derive(Debug)]
pub(super) struct RegistrationService {
    endpoint: String,
    state: watch::Sender<Registered>,
}

impl RegistrationService {
    pub(super) fn new(endpoint: &Path, state: watch::Sender<Registered>) -> Self {
        RegistrationService {
            // A configuration with any other path was refused.
            endpoint: endpoint.display().to_string(),
            state,
        }
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        tracing::info!(endpoint = self.endpoint, "kubelet asks who is there");
        Ok(Response::new(PluginInfo {
            r#type: PLUGIN_TYPE.to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: CSI_VERSIONS.map(str::to_owned).into(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let registered = if status.plugin_registered {
            tracing::info!("kubelet has registered the plugin");
            Registered::Yes
        } else {
            // kubelet tries again by itself, at growing intervals.
            tracing::error!(error = status.error, "kubelet refuses the plugin");
            Registered::Refused(status.error)
        };
        self.state.send_replace(registered);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
