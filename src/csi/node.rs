//! The Node service: each method decodes, calls and encodes.

use super::operations::{Operation, Operations};
use super::policy::LivePolicy;
use super::request::{self, Wanted};
use super::v1::node_server::Node;
use super::v1::node_service_capability::{Rpc, Type, rpc};
use super::v1::volume_usage::Unit;
use super::{VolumeService, status, v1};
use crate::secret::Secret;
use crate::volume::stats::Amount;
use crate::volume::{Pod, Standing, UnpublishRequest};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument as _;

/// Publishes and unpublishes volumes.
#[derive(Debug)]
pub struct NodeService<S> {
    volumes: Arc<S>,
    policy: LivePolicy,
    node_id: String,
    topology: Vec<String>,
    operations: Arc<Operations>,
}

// Derived, it would ask the same of `S`.
impl<S> Clone for NodeService<S> {
    fn clone(&self) -> Self {
        NodeService {
            volumes: Arc::clone(&self.volumes),
            policy: self.policy.clone(),
            node_id: self.node_id.clone(),
            topology: self.topology.clone(),
            operations: Arc::clone(&self.operations),
        }
    }
}

impl<S: VolumeService> NodeService<S> {
    pub(super) fn new(
        volumes: Arc<S>,
        policy: LivePolicy,
        node_id: String,
        topology: Vec<String>,
        operations: Arc<Operations>,
    ) -> Self {
        NodeService {
            volumes,
            policy,
            node_id,
            topology,
            operations,
        }
    }

    async fn publish(
        &self,
        wanted: Wanted,
        secrets: BTreeMap<String, Secret>,
    ) -> Result<(), Status> {
        let volume_id = wanted.volume_id.clone();
        let operation = Operation::Publish(Box::new(wanted.clone()));
        let volumes = Arc::clone(&self.volumes);
        let policy = self.policy.clone();
        self.operations
            .run(&volume_id, operation, move |latest| {
                let failed = |error| status::of_operation(&error);
                let standing = volumes.standing(&wanted).map_err(failed)?;
                if standing == Standing::Published {
                    return Ok(());
                }
                let request = request::publish(&wanted, secrets, &policy.now(), standing).map_err(
                    |error| match standing {
                        Standing::Recorded => status::of_recorded(&error),
                        Standing::Unknown | Standing::Published => status::of_request(&error),
                    },
                )?;
                volumes.publish(&request, latest).map_err(failed)
            })
            .await
    }

    async fn unpublish(&self, request: UnpublishRequest) -> Result<(), Status> {
        let volume_id = request.volume_id.clone();
        let operation = Operation::Unpublish(request.target.clone());
        let volumes = Arc::clone(&self.volumes);
        self.operations
            .run(&volume_id, operation, move |_| {
                volumes
                    .unpublish(&request)
                    .map_err(|error| status::of_operation(&error))
            })
            .await
    }

    async fn usage(
        &self,
        request: v1::NodeGetVolumeStatsRequest,
    ) -> Result<Vec<v1::VolumeUsage>, Status> {
        let (volume_id, path) =
            request::usage(request).map_err(|error| status::of_request(&error))?;
        let volumes = Arc::clone(&self.volumes);
        let asked = tokio::task::spawn_blocking(move || {
            volumes
                .usage(&volume_id, &path)
                .map_err(|error| status::of_operation(&error))
        });
        let usage = asked
            .await
            .map_err(|_| status::bug("counting what the volume uses"))??;
        let message = |unit: Unit, amount: Amount| v1::VolumeUsage {
            available: signed(amount.available),
            total: signed(amount.total),
            used: signed(amount.used),
            unit: unit.into(),
        };
        Ok(vec![
            message(Unit::Bytes, usage.bytes),
            message(Unit::Inodes, usage.inodes),
        ])
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl<S: VolumeService> Node for NodeService<S> {
    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Result<Response<v1::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let mut call = Call::begin(
            "NodePublishVolume",
            &request.volume_id,
            &request.target_path,
        );
        let result = match request::wanted(request) {
            Ok((wanted, secrets)) => {
                call.pod = wanted.pod.clone();
                let span = call.span();
                self.publish(wanted, secrets).instrument(span).await
            }
            Err(error) => Err(status::of_request(&error)),
        };
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
        let result = match request::unpublish(request, &self.policy.now()) {
            Ok(request) => self.unpublish(request).instrument(call.span()).await,
            Err(error) => Err(status::of_request(&error)),
        };
        call.end(&result);
        result.map(|()| Response::new(v1::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<v1::NodeGetVolumeStatsResponse>, Status> {
        // kubelet asks for every volume each minute, so it is not logged.
        let usage = self.usage(request.into_inner()).await?;
        Ok(Response::new(v1::NodeGetVolumeStatsResponse { usage }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<v1::NodeGetCapabilitiesResponse>, Status> {
        let capabilities = [
            rpc::Type::GetVolumeStats,
            // kubelet leaves fsGroup to a plugin that says so. If this one did
            // not, kubelet would change every file of the image, and so copy all
            // of it up.
            rpc::Type::VolumeMountGroup,
        ];
        Ok(Response::new(v1::NodeGetCapabilitiesResponse {
            capabilities: capabilities
                .map(|capability| v1::NodeServiceCapability {
                    r#type: Some(Type::Rpc(Rpc {
                        r#type: capability.into(),
                    })),
                })
                .into(),
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
            // One key for each thing the node can do and none whose value could
            // change: kubelet refuses a plugin that contradicts a label.
            accessible_topology: (!self.topology.is_empty()).then(|| v1::Topology {
                segments: self
                    .topology
                    .iter()
                    .map(|key| (key.clone(), "true".to_owned()))
                    .collect::<HashMap<_, _>>(),
            }),
        }))
    }
}

/// The one log line of a call, also where its caller gives up and the handler is
/// dropped. Secrets and attributes are not in it.
struct Call {
    rpc: &'static str,
    volume_id: String,
    target: String,
    pod: Option<Pod>,
    began: Instant,
    is_logged: bool,
}

impl Call {
    fn begin(rpc: &'static str, volume_id: &str, target: &str) -> Self {
        Call {
            rpc,
            volume_id: volume_id.escape_debug().to_string(),
            target: target.escape_debug().to_string(),
            pod: None,
            began: Instant::now(),
            is_logged: false,
        }
    }

    /// For every line that is logged in the course of the call.
    fn span(&self) -> tracing::Span {
        tracing::info_span!(
            "volume",
            volume.id = self.volume_id,
            pod = self.pod.as_ref().map(tracing::field::display),
        )
    }

    fn end(mut self, result: &Result<(), Status>) {
        self.is_logged = true;
        let _in_span = self.span().entered();
        let Err(status) = result else {
            tracing::info!(
                volume.path = self.target,
                duration_ms = self.milliseconds(),
                "{}",
                self.rpc
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
                volume.path = self.target,
                duration_ms = self.milliseconds(),
                code = ?status.code(),
                error = status.message(),
                "{} failed", self.rpc
            );
        } else {
            tracing::warn!(
                volume.path = self.target,
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
            let _in_span = self.span().entered();
            tracing::warn!(
                volume.path = self.target,
                duration_ms = self.milliseconds(),
                "{}: the caller left before the answer; work goes on",
                self.rpc
            );
        }
    }
}
