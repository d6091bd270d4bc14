//! The Node service: each method decodes, calls and encodes.

use super::operations::{Operation, Operations};
use super::request::{self, Policy};
use super::v1::node_server::Node;
use super::v1::node_service_capability::{Rpc, Type, rpc};
use super::{VolumeService, status, v1};
use std::sync::Arc;
use std::time::Instant;
use tonic::{Code, Request, Response, Status};

/// Publishes and unpublishes volumes.
#[derive(Debug)]
pub struct NodeService<S> {
    volumes: Arc<S>,
    policy: Arc<Policy>,
    node_id: String,
    operations: Arc<Operations>,
}

// Derived, it would ask the same of `S`.
impl<S> Clone for NodeService<S> {
    fn clone(&self) -> Self {
        NodeService {
            volumes: Arc::clone(&self.volumes),
            policy: Arc::clone(&self.policy),
            node_id: self.node_id.clone(),
            operations: Arc::clone(&self.operations),
        }
    }
}

impl<S: VolumeService> NodeService<S> {
    pub(super) fn new(
        volumes: Arc<S>,
        policy: Policy,
        node_id: String,
        operations: Arc<Operations>,
    ) -> Self {
        NodeService {
            volumes,
            policy: Arc::new(policy),
            node_id,
            operations,
        }
    }

    async fn publish(&self, request: v1::NodePublishVolumeRequest) -> Result<(), Status> {
        let wanted =
            request::wanted(request, &self.policy).map_err(|error| status::of_request(&error))?;
        let volume_id = wanted.volume_id.clone();
        let operation = Operation::Publish(Box::new(wanted.clone()));
        let volumes = Arc::clone(&self.volumes);
        let policy = Arc::clone(&self.policy);
        self.operations
            .run(&volume_id, operation, move |latest| {
                let failed = |error| status::of_operation(&error);
                if volumes.is_published(&wanted).map_err(failed)? {
                    return Ok(());
                }
                let request = request::publish(&wanted, &policy)
                    .map_err(|error| status::of_request(&error))?;
                volumes.publish(&request, latest).map_err(failed)
            })
            .await
    }

    async fn unpublish(&self, request: v1::NodeUnpublishVolumeRequest) -> Result<(), Status> {
        let unwanted = request::unwanted(request).map_err(|error| status::of_request(&error))?;
        let volume_id = unwanted.volume_id.clone();
        let operation = Operation::Unpublish(unwanted.target.clone());
        let volumes = Arc::clone(&self.volumes);
        self.operations
            .run(&volume_id, operation, move |_| {
                volumes
                    .unpublish(&unwanted.volume_id, &unwanted.target)
                    .map_err(|error| status::of_operation(&error))
            })
            .await
    }
}

#[tonic::async_trait]
impl<S: VolumeService> Node for NodeService<S> {
    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Result<Response<v1::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::begin(
            "NodePublishVolume",
            &request.volume_id,
            &request.target_path,
        );
        let result = self.publish(request).await;
        call.end(&result);
        result.map(|()| Response::new(v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<v1::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::begin(
            "NodeUnpublishVolume",
            &request.volume_id,
            &request.target_path,
        );
        let result = self.unpublish(request).await;
        call.end(&result);
        result.map(|()| Response::new(v1::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<v1::NodeGetCapabilitiesResponse>, Status> {
        // kubelet leaves fsGroup to a plugin that says so. If this one did not,
        // kubelet would change every file of the image, and so copy all of it up.
        let mount_group = v1::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: rpc::Type::VolumeMountGroup.into(),
            })),
        };
        Ok(Response::new(v1::NodeGetCapabilitiesResponse {
            capabilities: vec![mount_group],
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<v1::NodeGetInfoRequest>,
    ) -> Result<Response<v1::NodeGetInfoResponse>, Status> {
        tracing::info!(node.id = self.node_id, "NodeGetInfo");
        Ok(Response::new(v1::NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: None,
        }))
    }
}

/// The one log line of a call, also where its caller gives up and the handler is
/// dropped. Secrets and attributes are not in it.
struct Call {
    rpc: &'static str,
    volume_id: String,
    target: String,
    began: Instant,
    is_logged: bool,
}

impl Call {
    fn begin(rpc: &'static str, volume_id: &str, target: &str) -> Self {
        Call {
            rpc,
            volume_id: volume_id.to_owned(),
            target: target.to_owned(),
            began: Instant::now(),
            is_logged: false,
        }
    }

    fn end(mut self, result: &Result<(), Status>) {
        self.is_logged = true;
        let Err(status) = result else {
            tracing::info!(
                volume.id = %self.volume_id.escape_debug(),
                volume.path = %self.target.escape_debug(),
                duration_ms = self.milliseconds(),
                "{}", self.rpc
            );
            return;
        };
        // Faults of the plugin and its content are the operator's to see; others
        // are answers that the caller sees too.
        if matches!(
            status.code(),
            Code::Internal | Code::DataLoss | Code::Unknown
        ) {
            tracing::error!(
                volume.id = %self.volume_id.escape_debug(),
                volume.path = %self.target.escape_debug(),
                duration_ms = self.milliseconds(),
                code = ?status.code(),
                error = status.message(),
                "{} failed", self.rpc
            );
        } else {
            tracing::warn!(
                volume.id = %self.volume_id.escape_debug(),
                volume.path = %self.target.escape_debug(),
                duration_ms = self.milliseconds(),
                code = ?status.code(),
                error = status.message(),
                "{} failed", self.rpc
            );
        }
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_logged {
            tracing::warn!(
                volume.id = %self.volume_id.escape_debug(),
                volume.path = %self.target.escape_debug(),
                duration_ms = self.milliseconds(),
                "{}: the caller left before the answer; work goes on", self.rpc
            );
        }
    }
}
