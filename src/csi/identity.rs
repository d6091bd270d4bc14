//! The Identity service: name, version, and whether calls are taken.

use super::health::{Answer, Health};
use super::v1::identity_server::Identity;
use super::{DRIVER_NAME, status, v1};
use tonic::{Request, Response, Status};

/// The plugin's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Says who the plugin is. It never waits for volumes, so that a probe is
/// answered whatever they are doing.
#[derive(Debug, Clone)]
pub struct IdentityService {
    health: Health,
}

impl IdentityService {
    /// A service that answers as `health` has it.
    pub fn new(health: Health) -> Self {
        IdentityService { health }
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
        let ready = match self.health.answer() {
            Answer::Ready => true,
            Answer::NotReady => false,
            // The specification's code for a dependency that is missing.
            Answer::Unusable(reason) => return Err(status::unusable(reason)),
        };
        Ok(Response::new(v1::ProbeResponse { ready: Some(ready) }))
    }
}
