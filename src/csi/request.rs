//! Messages to typed requests: everything that can be wrong with a request is
//! found here, before anything is done. Pure.

use super::policy::Policy;
use super::v1;
use super::v1::volume_capability::AccessType;
use super::v1::volume_capability::access_mode::Mode;
use crate::secret::Secret;
use crate::volume::attributes::{AttributeError, Attributes};
use crate::volume::{
    ErrorKind, ImageRequest, Owner, Pod, PublishRequest, PullChoice, Standing, UnpublishRequest,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Keys that kubelet adds to the attributes of a volume, over a user's own of
/// the same name.
const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";
/// The one that says that the volume is inline in a pod.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Those that say which pod that is.
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
/// Longest of these in bytes: more is no name of an object.
const MAX_POD_BYTES: usize = 253;
/// Longest volume id in bytes: what the specification allows any string.
const MAX_VOLUME_ID_BYTES: usize = 128;
/// Longest target path in bytes, the kernel's limit without the final NUL.
const MAX_PATH_BYTES: usize = 4095;
/// The group id that means "leave it" to chown.
const NO_GROUP: u32 = u32::MAX;

/// A volume as it was asked for. Two requests for one volume are the same if
/// these are: credentials and what kubelet adds are not part of it, for they
/// change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The caller's id of the volume.
    pub volume_id: String,
    /// Where it shall appear.
    pub target: PathBuf,
    /// No writable layer.
    pub read_only: bool,
    /// Group of the volume's root directory; none for a read-only volume.
    pub mount_group: Option<u32>,
    /// The attributes that the pod's author wrote.
    pub attributes: BTreeMap<String, String>,
    /// Whether kubelet says that the volume is inline in a pod.
    pub is_ephemeral: bool,
    /// Which pod that is.
    pub pod: Option<Pod>,
}

/// Why a request cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A field that must be given is not.
    #[error("{field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// The volume id is too long or has control characters.
    #[error("volume_id is longer than {MAX_VOLUME_ID_BYTES} bytes or has control characters")]
    VolumeId,
    /// The target is not an absolute path in its shortest form.
    #[error(
        "target_path must be an absolute path without ., .. and doubled slashes, of at most {MAX_PATH_BYTES} bytes"
    )]
    Target,
    /// The target is not one of kubelet's.
    #[error("target_path is not below kubelet's directory {}; --kubelet-root says where that is", root.display())]
    TargetOutside {
        /// kubelet's directory.
        root: PathBuf,
    },
    /// The volume is wanted as a block device.
    #[error("the volume cannot be a block device; leave csi.fsType away")]
    Block,
    /// A filesystem type was asked for.
    #[error("csi.fsType cannot be chosen; leave it away")]
    FsType,
    /// Mount options were given.
    #[error("mount options cannot be given")]
    MountFlags,
    /// The access mode is unknown or is for volumes of several nodes.
    #[error("the access mode must be one for a single node")]
    AccessMode,
    /// The group is not a number that a group can have.
    #[error("volume_mount_group must be a group id")]
    MountGroup,
    /// The volume is not inline in a pod, or kubelet does not say so.
    #[error(
        "only volumes that are inline in a pod can be published: {EPHEMERAL} is not \"true\"; the CSIDriver object needs podInfoOnMount: true and the lifecycle mode Ephemeral"
    )]
    NotEphemeral,
    /// The attributes are wrong.
    #[error("cannot use the volume's attributes")]
    Attributes(#[source] AttributeError),
    /// A rule of the operator's is broken.
    #[error("policy rule {rule}: {what}")]
    Rule {
        /// Its key in the policy file.
        rule: &'static str,
        /// What breaks it.
        what: String,
    },
    /// The pod names a local image and may not.
    #[error(
        "policy rule localImages: the operator of this node does not allow the local image {image}"
    )]
    LocalImage {
        /// The image.
        image: String,
    },
    /// The pod asks for a union that the operator does not use.
    #[error("policy rule allowedUnions: the operator of this node does not allow union: {asked}")]
    Union {
        /// The union.
        asked: &'static str,
    },
}

impl RequestError {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RequestError::Missing { .. }
            | RequestError::VolumeId
            | RequestError::Target
            | RequestError::TargetOutside { .. }
            | RequestError::Block
            | RequestError::FsType
            | RequestError::MountFlags
            | RequestError::AccessMode
            | RequestError::MountGroup
            | RequestError::NotEphemeral
            | RequestError::Attributes(_) => ErrorKind::InvalidArgument,
            RequestError::Rule { .. } | RequestError::LocalImage { .. } => {
                ErrorKind::PermissionDenied
            }
            // As where this kernel has no AUFS: another node may be set up for it.
            RequestError::Union { .. } => ErrorKind::FailedPrecondition,
        }
    }
}

/// Checks the form of a publish request: everything but the pod's attributes and
/// what the operator allows, neither of which matters for a volume that is
/// published already. The pod's secrets come beside it, for they change.
pub fn wanted(
    request: v1::NodePublishVolumeRequest,
) -> Result<(Wanted, BTreeMap<String, Secret>), RequestError> {
    // First of all, so that whatever else is wrong they are wiped.
    let secrets = request
        .secrets
        .into_iter()
        .map(|(key, value)| (key, Secret::new(value)))
        .collect();
    let volume_id = volume_id(request.volume_id)?;
    let target = target(&request.target_path)?;
    let capability = request.volume_capability.ok_or(RequestError::Missing {
        field: "volume_capability",
    })?;
    let mount = match capability.access_type {
        None => {
            return Err(RequestError::Missing {
                field: "volume_capability.access_type",
            });
        }
        Some(AccessType::Block(_)) => return Err(RequestError::Block),
        Some(AccessType::Mount(mount)) => mount,
    };
    if !mount.fs_type.is_empty() {
        return Err(RequestError::FsType);
    }
    if !mount.mount_flags.is_empty() {
        return Err(RequestError::MountFlags);
    }
    let mode = capability.access_mode.ok_or(RequestError::Missing {
        field: "volume_capability.access_mode",
    })?;
    let only_read = match Mode::try_from(mode.mode).unwrap_or(Mode::Unknown) {
        Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter => {
            false
        }
        Mode::SingleNodeReaderOnly => true,
        Mode::Unknown
        | Mode::MultiNodeReaderOnly
        | Mode::MultiNodeSingleWriter
        | Mode::MultiNodeMultiWriter => return Err(RequestError::AccessMode),
    };
    let read_only = request.readonly || only_read;
    let mount_group = mount_group(&mount.volume_mount_group)?;
    let context = |key| request.volume_context.get(key);
    let is_ephemeral = context(EPHEMERAL).is_some_and(|value| value == "true");
    // For logs only, so what is no name is left out rather than refused.
    let name = |key| {
        context(key)
            .filter(|name| name.len() <= MAX_POD_BYTES && !name.chars().any(char::is_control))
            .cloned()
    };
    let pod = match (name(POD_NAMESPACE), name(POD_NAME)) {
        (Some(namespace), Some(pod)) => Some(Pod {
            namespace,
            name: pod,
            uid: name(POD_UID).unwrap_or_default(),
        }),
        _ => None,
    };
    let attributes: BTreeMap<String, String> = request
        .volume_context
        .into_iter()
        .filter(|(key, _)| !key.starts_with(KUBELET_PREFIX))
        .collect();
    let wanted = Wanted {
        volume_id,
        target,
        read_only,
        // The group is there to write.
        mount_group: mount_group.filter(|_| !read_only),
        attributes,
        is_ephemeral,
        pod,
    };
    Ok((wanted, secrets))
}

/// Checks the pod's attributes, and what the operator allows. A volume that was
/// published before, and only is not mounted now, is not held to rules that may
/// have come later: what its pod wrote is on the node.
pub fn publish(
    wanted: &Wanted,
    secrets: BTreeMap<String, Secret>,
    policy: &Policy,
    standing: Standing,
) -> Result<PublishRequest, RequestError> {
    if !is_below(&wanted.target, &policy.kubelet_root) {
        return Err(RequestError::TargetOutside {
            root: policy.kubelet_root.clone(),
        });
    }
    if !wanted.is_ephemeral {
        return Err(RequestError::NotEphemeral);
    }
    let attributes = Attributes::parse(&wanted.attributes, wanted.read_only)
        .and_then(Attributes::supported)
        .map_err(RequestError::Attributes)?;
    let (size_limit, union) = match standing {
        Standing::Recorded => (attributes.size_limit, attributes.union),
        Standing::Unknown | Standing::Published => (
            policy.admit(&attributes, wanted.read_only)?,
            policy.union(attributes.union)?,
        ),
    };
    let images = attributes
        .images
        .into_iter()
        .map(|source| {
            Ok(ImageRequest {
                source_root: policy.source_root(&source)?,
                source,
            })
        })
        .collect::<Result<Vec<_>, RequestError>>()?;
    Ok(PublishRequest {
        volume_id: wanted.volume_id.clone(),
        images,
        pull: PullChoice {
            policy: attributes.pull_policy,
            secrets,
        },
        platform: attributes.platform,
        target: wanted.target.clone(),
        // kubelet makes the directory above, and leaves this one to the plugin.
        create_target: true,
        read_only: wanted.read_only,
        sub_path: attributes.sub_path,
        size_limit,
        medium: attributes.medium,
        union,
        label: policy.rules.selinux_context.clone(),
        mount_group: wanted.mount_group,
        attributes: wanted.attributes.clone(),
        owner: Owner::Plugin,
        pod: wanted.pod.clone(),
    })
}

/// Checks an unpublish request. The target may be anywhere: where the operator
/// has moved kubelet's directory, the volumes of before must still go away. What
/// no record names is touched only in kubelet's directory, where a target is one
/// volume's and nobody else's.
pub fn unpublish(
    request: v1::NodeUnpublishVolumeRequest,
    policy: &Policy,
) -> Result<UnpublishRequest, RequestError> {
    let target = target(&request.target_path)?;
    Ok(UnpublishRequest {
        volume_id: volume_id(request.volume_id)?,
        clear_target: is_below(&target, &policy.kubelet_root),
        target,
    })
}

/// Checks a request for a volume's statistics.
pub fn usage(request: v1::NodeGetVolumeStatsRequest) -> Result<(String, PathBuf), RequestError> {
    let volume_id = volume_id(request.volume_id)?;
    if request.volume_path.is_empty() {
        return Err(RequestError::Missing {
            field: "volume_path",
        });
    }
    // Compared with the volume's own, so that any other text is just another path.
    Ok((volume_id, PathBuf::from(request.volume_path)))
}

fn is_below(path: &Path, root: &Path) -> bool {
    path.starts_with(root) && path != root
}

fn volume_id(id: String) -> Result<String, RequestError> {
    if id.is_empty() {
        return Err(RequestError::Missing { field: "volume_id" });
    }
    // Also keeps log lines whole.
    if id.len() > MAX_VOLUME_ID_BYTES || id.chars().any(char::is_control) {
        return Err(RequestError::VolumeId);
    }
    Ok(id)
}

fn target(path: &str) -> Result<PathBuf, RequestError> {
    if path.is_empty() {
        return Err(RequestError::Missing {
            field: "target_path",
        });
    }
    if path.len() > MAX_PATH_BYTES || path.chars().any(char::is_control) || !is_shortest(path) {
        return Err(RequestError::Target);
    }
    Ok(PathBuf::from(path))
}

/// Whether a path is absolute and nothing in it could be left away.
fn is_shortest(path: &str) -> bool {
    match path.strip_prefix('/') {
        Some(rest) => rest
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".."),
        None => false,
    }
}

fn mount_group(text: &str) -> Result<Option<u32>, RequestError> {
    if text.is_empty() {
        return Ok(None);
    }
    // The parser alone would also take a plus sign.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(group) if is_number && group != NO_GROUP => Ok(Some(group)),
        _ => Err(RequestError::MountGroup),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_attributes_are_not_shown_in_debug_output() {
        let request = v1::NodePublishVolumeRequest {
            secrets: [("k".to_owned(), "hunter2".to_owned())].into(),
            volume_context: [("t".to_owned(), "hunter2".to_owned())].into(),
            ..Default::default()
        };
        assert!(!format!("{request:?}").contains("hunter2"));
    }
}
