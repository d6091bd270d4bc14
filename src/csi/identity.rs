//! The Identity service: name, version, and whether calls are taken.

use super::v1::identity_server::Identity;
use super::{DRIVER_NAME, v1};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// The plugin's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Says who the plugin is. It never waits for volumes, so that a probe is
/// answered whatever they are doing.
#[derive(Debug, Clone)]
pub struct IdentityService {
    stopping: watch::Receiver<bool>,
}

impl IdentityService {
    /// A service that is ready until `stopping` says true.
    pub fn new(stopping: watch::Receiver<bool>) -> Self {
        IdentityService { stopping }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<v1::GetPluginInfoRequest>,
    ) -> Result<Response<v1::GetPluginInfoResponse>, Status> {
        Ok(Response::new(v1::GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: VERSION.to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<v1::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(v1::GetPluginCapabilitiesResponse {}))
    }

    async fn probe(
        &self,
        _: Request<v1::ProbeRequest>,
    ) -> Result<Response<v1::ProbeResponse>, Status> {
        // The store is opened and recovered before the socket is there.
        Ok(Response::new(v1::ProbeResponse {
            ready: Some(!*self.stopping.borrow()),
        }))
    }
}
