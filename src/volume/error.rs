//! What can go wrong with a volume, and which kind of failure it is for whoever
//! asked: the one place that decides, for gRPC codes and exit codes alike.

use crate::image::SourceError;
use crate::image::reference::Source;
use crate::image::registry::RegistryError;
use crate::layer::archive::ArchiveError;
use crate::layer::decompress::DecompressError;
use crate::layer::ingest::{IngestError, LayerError};
use crate::layer::seal::SealError;
use crate::layer::store::StoreError;
use crate::layer::tree::errno_in_chain;
use crate::pull::{JobError, PullError};
use crate::stage::{StageError, TakeError};
use crate::union::probe::{ChooseError, ProbeError};
use crate::union::{MountError, UnmountError};
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Kinds of failure, as gRPC and CSI tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request makes no sense, whatever the state.
    InvalidArgument,
    /// The image, or the volume, is not there.
    NotFound,
    /// The volume exists, and is another one.
    AlreadyExists,
    /// The request makes sense, but not on this node or not now.
    FailedPrecondition,
    /// Disk space or a limit ran out.
    ResourceExhausted,
    /// The image's bytes are not what they should be.
    DataLoss,
    /// Something is in the way that will go.
    Aborted,
    /// The node or a registry cannot do it at the moment.
    Unavailable,
    /// Not allowed.
    PermissionDenied,
    /// A registry did not accept the credentials, or there were none.
    Unauthenticated,
    /// The node failed, or this program did.
    Internal,
}

/// Why a volume operation failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The store.
    #[error("the store cannot be used")]
    Store(#[source] StoreError),
    /// Where the image comes from.
    #[error("the image cannot be read")]
    Source(#[source] SourceError),
    /// One of several images.
    #[error("the image {image} cannot be had")]
    Image {
        /// Which.
        image: String,
        /// Why not.
        source: Box<VolumeError>,
    },
    /// Bringing it from a registry, or finding it in the store.
    #[error("cannot get the image {image}")]
    Pull {
        /// The image.
        image: String,
        /// Why not.
        source: Arc<PullError>,
    },
    /// Its layers.
    #[error("the image cannot be staged")]
    Stage(#[source] StageError),
    /// No union filesystem.
    #[error("the volume cannot be mounted on this node")]
    Union(#[source] ChooseError),
    /// What the node can do could not be found out.
    #[error("the self-test of this node could not be made")]
    Probe(#[source] ProbeError),
    /// The mount.
    #[error("the volume cannot be mounted")]
    Mount(#[source] MountError),
    /// The unmount.
    #[error("the volume cannot be unmounted yet")]
    Unmount(#[source] UnmountError),
    /// What is mounted here stays here.
    #[error("mounts below {path} do not reach the node: mount it into the plugin's container with mountPropagation: Bidirectional, and make it shared on the node (mount --make-rshared /)", path = path.display())]
    NotPropagated {
        /// The mount that is not shared.
        path: PathBuf,
    },
    /// A mount failed, and so did clearing it away.
    #[error("publishing failed and could not be undone ({undo}); the next unpublish or start will")]
    NotUndone {
        /// What could not be undone.
        undo: Box<VolumeError>,
        /// Why publishing failed.
        source: Box<VolumeError>,
    },
    /// A volume that was there before cannot be mounted again yet. Its writable
    /// layer is kept.
    #[error("volume {volume_id} cannot be mounted again yet; what was written to it is kept")]
    NotReturned {
        /// Its id.
        volume_id: String,
        /// Why not.
        source: Box<VolumeError>,
    },
    /// A volume that lost what was written to it cannot be mounted anew yet. What it
    /// was made of is kept.
    #[error(
        "volume {volume_id} cannot be mounted again yet; what was written to it was lost, and it will begin with the same images"
    )]
    NotBegun {
        /// Its id.
        volume_id: String,
        /// Why not.
        source: Box<VolumeError>,
    },
    /// What there was before cannot be looked at, so the volume may be there.
    #[error("what there is of volume {volume_id} cannot be found out")]
    Unclear {
        /// Its id.
        volume_id: String,
        /// Why not.
        source: Box<VolumeError>,
    },
    /// What an interrupted publish or unpublish left is still there.
    #[error("what is left of an earlier volume {volume_id} cannot be taken down yet")]
    NotCleared {
        /// Its id.
        volume_id: String,
        /// Why not.
        source: Box<VolumeError>,
    },
    /// The plugin still serves, and would go on using what is removed.
    #[error("the plugin runs: {socket} answers; uninstall it first", socket = socket.display())]
    PluginRuns {
        /// One of its sockets.
        socket: PathBuf,
    },
    /// There are volumes, or mounts of ours.
    #[error(
        "still in use: {}; delete these pods, or unmount these volumes, then try again",
        what.join(", ")
    )]
    StillInUse {
        /// Each of them, in words.
        what: Vec<String>,
    },
    /// The disk or the store is full, and nothing more may be removed.
    #[error(
        "no space in the store {root}, and enough cannot be made ({needed} of its images are in use, {young} were used a moment ago): free space on that filesystem of the node, remove pods that use other images, or change --max-store-size or --gc-min-age",
        root = root.display()
    )]
    NoRoom {
        /// The store.
        root: PathBuf,
        /// Images and layers that somebody needs.
        needed: usize,
        /// Images and layers that were used within the minimum age.
        young: usize,
        /// What found no space.
        source: Box<VolumeError>,
    },
    /// A path cannot be used.
    #[error("cannot use {target}", target = target.display())]
    Target {
        /// The path.
        target: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no such target.
    #[error("target {target} does not exist: make an empty directory for the volume", target = target.display())]
    TargetMissing {
        /// The target.
        target: PathBuf,
    },
    /// The target is a file or a link.
    #[error("target {target} is no directory", target = target.display())]
    TargetNoDirectory {
        /// The target.
        target: PathBuf,
    },
    /// The target has content, which a mount would hide.
    #[error("target {target} is not empty: a mount would hide what is in it", target = target.display())]
    TargetNotEmpty {
        /// The target.
        target: PathBuf,
    },
    /// Something is mounted at the target.
    #[error("target {target} is a mount point already", target = target.display())]
    TargetMounted {
        /// The target.
        target: PathBuf,
    },
    /// The volume is published elsewhere.
    #[error("volume {volume_id} is at {target} already", target = target.display())]
    OtherTarget {
        /// Its id.
        volume_id: String,
        /// Where it is.
        target: PathBuf,
    },
    /// The volume was published with other attributes.
    #[error("volume {volume_id} exists with other attributes")]
    OtherRequest {
        /// Its id.
        volume_id: String,
    },
    /// A mount of another mount namespace, which cannot be seen from here.
    #[error(
        "volume {volume_id} was mounted in another mount namespace, in which processes still run: unmount it there, or end them"
    )]
    OtherNamespace {
        /// Its id.
        volume_id: String,
    },
    /// Something else is mounted on top of the volume.
    #[error("something else is mounted over the volume at {target}: unmount that first", target = target.display())]
    Covered {
        /// Where the volume is.
        target: PathBuf,
    },
    /// The target is another volume's.
    #[error("at {target} is another volume, {volume_id}", target = target.display())]
    OtherVolume {
        /// The target.
        target: PathBuf,
        /// Its id.
        volume_id: String,
    },
    /// The volume is not at this path.
    #[error("volume {volume_id} is not published at {path}", path = path.display())]
    NotThere {
        /// Its id.
        volume_id: String,
        /// The path that was asked about.
        path: PathBuf,
    },
    /// What a crash left in the writable layer cannot be put right.
    #[error("what a crash left in the writable layer of volume {volume_id} cannot be put right")]
    Residue {
        /// Its id.
        volume_id: String,
        /// Why.
        #[source]
        source: crate::layer::upper::UpperError,
    },
    /// How full it is cannot be found out.
    #[error("cannot count what volume {volume_id} uses")]
    Usage {
        /// Its id.
        volume_id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record was written by a later version.
    #[error("volume {volume_id} was published by a newer version of this program")]
    NewerRecord {
        /// Its id.
        volume_id: String,
    },
    /// Nothing here holds a writable layer to its limit.
    #[error("the writable layer cannot be given a filesystem of its own, which is what limits it")]
    Limit(#[source] io::Error),
    /// Its space would never be free again.
    #[error("cannot take {} from the loop device that it is behind", .image.display())]
    Release {
        /// The file.
        image: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A limit on disk is a promise, and the disk cannot keep it.
    #[error("the writable layer needs {needs} bytes of the node's disk, and they are not free")]
    NoRoomForLimit {
        /// Bytes of its filesystem.
        needs: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The limit is beyond what there are numbers for.
    #[error("the volume's sizeLimit is too large")]
    LimitTooLarge(#[source] crate::ext4::TooLarge),
    /// A writable layer in memory has no limit.
    #[error(
        "a volume in memory (medium: Memory) needs a limit: give it a sizeLimit, for this node has no default"
    )]
    UnlimitedMemory,
    /// Its writable layer has a filesystem that is mounted where others see it.
    #[error(
        "the writable layer of volume {volume_id} is mounted in another mount namespace: mount the store's directory into the plugin's container with mountPropagation: Bidirectional"
    )]
    Unreachable {
        /// Its id.
        volume_id: String,
    },
    /// The union that read-only volumes of this content share is not as it was made.
    #[error("what is mounted at {at}, which volumes share, is not their union", at = at.display())]
    Shared {
        /// Where it should be.
        at: PathBuf,
        /// What differs.
        #[source]
        source: crate::union::VerifyError,
    },
    /// The directory inside its images that it is to show cannot be shown.
    #[error("volume attribute subPath: {sub_path:?} is {what} in the image {image}")]
    SubPath {
        /// The directory.
        sub_path: PathBuf,
        /// What it is instead.
        what: &'static str,
        /// The images, separated by commas.
        image: String,
    },
    /// The directory that a volume shows cannot be given its group.
    #[error("the volume at {target} cannot be given the group of the pod's fsGroup", target = target.display())]
    Group {
        /// The directory.
        target: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is asked for without any image.
    #[error("the volume has no image")]
    NoImage,
    /// No such volume.
    #[error("there is no volume {volume:?}")]
    NoSuchVolume {
        /// As it was asked for.
        volume: String,
    },
    /// A pod has several volumes, and it was not said which.
    #[error("pod {pod} has several volumes: {volumes}; say which, with --volume NAME or by its id")]
    SeveralVolumes {
        /// The pod.
        pod: String,
        /// Their names in the pod, with their ids.
        volumes: String,
    },
    /// A pod has no volume of this name.
    #[error("pod {pod} has no volume {name:?} here; it has {volumes}")]
    NoVolumeOfPod {
        /// The pod.
        pod: String,
        /// The name.
        name: String,
        /// Those that it has.
        volumes: String,
    },
    /// It was taken down while it was read.
    #[error("volume {volume_id} was unpublished meanwhile, so what was read of it is not whole")]
    Ended {
        /// Its id.
        volume_id: String,
    },
    /// It has no writable layer, so nothing can have changed.
    #[error("volume {volume_id} is read-only: it has no changes")]
    ReadOnly {
        /// Its id.
        volume_id: String,
    },
    /// The writable layer's root directory.
    #[error("the root of volume {volume_id} cannot be given its metadata")]
    Root {
        /// Its id.
        volume_id: String,
        /// Why.
        #[source]
        source: crate::layer::unpack::FinishError,
    },
    /// Its changes cannot be read.
    #[error("cannot read the changes of volume {volume_id}")]
    Changes {
        /// Its id.
        volume_id: String,
        /// Why.
        #[source]
        source: crate::layer::changes::ChangesError,
    },
}

impl VolumeError {
    /// The same, naming the image where it does not yet.
    pub(super) fn of_image(self, image: &Source) -> Self {
        match self {
            VolumeError::Source(_) | VolumeError::Stage(_) => VolumeError::Image {
                image: image.to_string(),
                source: Box::new(self),
            },
            other => other,
        }
    }

    /// For `map_err` of a look at what there is of a volume.
    pub(super) fn unclear(volume_id: &str) -> impl FnOnce(Self) -> Self {
        |source| VolumeError::Unclear {
            volume_id: volume_id.to_owned(),
            source: Box::new(source),
        }
    }

    /// For `map_err` of taking down what an earlier process left.
    pub(super) fn not_cleared(volume_id: &str) -> impl FnOnce(Self) -> Self {
        |source| VolumeError::NotCleared {
            volume_id: volume_id.to_owned(),
            source: Box::new(source),
        }
    }

    /// For `map_err` of mounting again what was mounted before.
    pub(super) fn not_returned(volume_id: &str) -> impl FnOnce(Self) -> Self {
        |source| VolumeError::NotReturned {
            volume_id: volume_id.to_owned(),
            source: Box::new(source),
        }
    }

    /// For `map_err` of mounting anew what was mounted before.
    pub(super) fn not_begun(volume_id: &str) -> impl FnOnce(Self) -> Self {
        |source| VolumeError::NotBegun {
            volume_id: volume_id.to_owned(),
            source: Box::new(source),
        }
    }

    /// Which kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            VolumeError::Store(error) => store_kind(error),
            VolumeError::Limit(error) => limit_kind(error),
            VolumeError::NoRoomForLimit { .. } => ErrorKind::ResourceExhausted,
            VolumeError::LimitTooLarge(_) | VolumeError::UnlimitedMemory => {
                ErrorKind::FailedPrecondition
            }
            VolumeError::Unreachable { .. } => ErrorKind::Unavailable,
            VolumeError::Source(error) => source_kind(error),
            VolumeError::Image { source, .. } => source.kind(),
            VolumeError::Pull { source, .. } => pull_kind(source),
            VolumeError::Stage(error) => stage_kind(error),
            VolumeError::Union(_) | VolumeError::NotPropagated { .. } => {
                ErrorKind::FailedPrecondition
            }
            VolumeError::Probe(error) if errno_in_chain(error) == Some(Errno::NOSPC) => {
                ErrorKind::ResourceExhausted
            }
            VolumeError::Probe(_) => ErrorKind::Unavailable,
            // Whoever has it lets go of it, or the next attempt says so again.
            VolumeError::Mount(MountError::InUse { .. }) => ErrorKind::Aborted,
            VolumeError::Mount(error) if error.is_undone() => ErrorKind::Internal,
            VolumeError::Mount(_) | VolumeError::NotUndone { .. } => ErrorKind::Unavailable,
            VolumeError::NoRoom { .. } => ErrorKind::ResourceExhausted,
            VolumeError::Unmount(_) | VolumeError::Release { .. } => ErrorKind::Aborted,
            VolumeError::Target { source, .. } => match source.kind() {
                io::ErrorKind::NotADirectory => ErrorKind::InvalidArgument,
                _ => ErrorKind::Internal,
            },
            VolumeError::NoImage
            | VolumeError::SubPath { .. }
            | VolumeError::TargetMissing { .. }
            | VolumeError::TargetNoDirectory { .. } => ErrorKind::InvalidArgument,
            VolumeError::TargetNotEmpty { .. }
            | VolumeError::TargetMounted { .. }
            | VolumeError::OtherTarget { .. }
            | VolumeError::OtherVolume { .. }
            | VolumeError::NewerRecord { .. }
            | VolumeError::ReadOnly { .. } => ErrorKind::FailedPrecondition,
            VolumeError::OtherRequest { .. } => ErrorKind::AlreadyExists,
            // Another process has to let go first, and may.
            VolumeError::PluginRuns { .. }
            | VolumeError::StillInUse { .. }
            | VolumeError::OtherNamespace { .. }
            | VolumeError::Covered { .. }
            | VolumeError::Ended { .. } => ErrorKind::Aborted,
            VolumeError::NoSuchVolume { .. }
            | VolumeError::NoVolumeOfPod { .. }
            | VolumeError::NotThere { .. } => ErrorKind::NotFound,
            VolumeError::SeveralVolumes { .. } => ErrorKind::InvalidArgument,
            // Something of the volume is or may be there, be it what the pod wrote,
            // so that kubelet must not forget it: none of the final codes will do.
            VolumeError::NotReturned { source, .. }
            | VolumeError::NotBegun { source, .. }
            | VolumeError::Unclear { source, .. }
            | VolumeError::NotCleared { source, .. } => match source.kind() {
                kind @ (ErrorKind::ResourceExhausted | ErrorKind::Aborted) => kind,
                _ => ErrorKind::Unavailable,
            },
            VolumeError::Group { source, .. } => match Errno::from_io_error(source) {
                Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::ResourceExhausted,
                _ => ErrorKind::Internal,
            },
            VolumeError::Changes { .. }
            | VolumeError::Root { .. }
            | VolumeError::Shared { .. }
            | VolumeError::Residue { .. }
            | VolumeError::Usage { .. } => ErrorKind::Internal,
        }
    }
}

/// As [`VolumeError::kind`], for making a writable layer's filesystem.
fn limit_kind(error: &io::Error) -> ErrorKind {
    match Errno::from_io_error(error) {
        Some(Errno::NOMEM) => ErrorKind::ResourceExhausted,
        // All loop devices were taken just before.
        Some(Errno::BUSY) => ErrorKind::Aborted,
        Some(Errno::IO | Errno::MFILE | Errno::NFILE) => ErrorKind::Internal,
        // No permission, no device, no such filesystem, or a store's disk that
        // cannot promise space.
        _ => ErrorKind::FailedPrecondition,
    }
}

/// As [`VolumeError::kind`], for the store's own errors.
fn store_kind(error: &StoreError) -> ErrorKind {
    match error {
        error if error.is_out_of_space() => ErrorKind::ResourceExhausted,
        error if error.is_read_only() => ErrorKind::FailedPrecondition,
        StoreError::Io { .. }
        | StoreError::Remove { .. }
        | StoreError::Damaged { .. }
        | StoreError::Mismatch { .. } => ErrorKind::Internal,
        StoreError::Newer { .. }
        | StoreError::Rootless { .. }
        | StoreError::Foreign { .. }
        | StoreError::UnfitPath { .. } => ErrorKind::FailedPrecondition,
    }
}

/// As [`VolumeError::kind`], for sources of images.
fn source_kind(error: &SourceError) -> ErrorKind {
    match error {
        SourceError::NotLocal | SourceError::Notes { .. } => ErrorKind::Internal,
        SourceError::Registry(error) => registry_kind(error),
        SourceError::NotStored => ErrorKind::Aborted,
        SourceError::OutsideRoot { .. } => ErrorKind::PermissionDenied,
        SourceError::Open { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            _ => ErrorKind::Internal,
        },
        SourceError::Read { .. } => ErrorKind::Internal,
        SourceError::NoSuchImage { .. }
        | SourceError::Missing { .. }
        | SourceError::MissingBlob { .. }
        | SourceError::NoImages { .. }
        | SourceError::NoPlatform { .. } => ErrorKind::NotFound,
        SourceError::BlobSize { .. } | SourceError::BlobDigest { .. } => ErrorKind::DataLoss,
        SourceError::NotAFile { .. }
        | SourceError::NotADirectory { .. }
        | SourceError::FileSize { .. }
        | SourceError::Tar { .. }
        | SourceError::LayoutVersion { .. }
        | SourceError::List { .. }
        | SourceError::Document { .. }
        | SourceError::DocumentSize { .. }
        | SourceError::TooDeep { .. }
        | SourceError::TooManyDocuments
        | SourceError::SeveralImages { .. }
        | SourceError::ImageId { .. }
        | SourceError::ParentChain { .. }
        | SourceError::CompressedLayer { .. }
        | SourceError::LayerIndex { .. } => ErrorKind::InvalidArgument,
    }
}

/// As [`VolumeError::kind`], for registries.
fn registry_kind(error: &RegistryError) -> ErrorKind {
    match error {
        RegistryError::NotAllowed { .. } | RegistryError::Denied { .. } => {
            ErrorKind::PermissionDenied
        }
        RegistryError::Unauthenticated { .. } => ErrorKind::Unauthenticated,
        RegistryError::Credentials { .. } => ErrorKind::InvalidArgument,
        RegistryError::NotFound { .. } => ErrorKind::NotFound,
        RegistryError::Status { .. }
        | RegistryError::Unreachable { .. }
        | RegistryError::Stalled { .. } => ErrorKind::Unavailable,
        RegistryError::Malformed { .. } | RegistryError::Digest { .. } => ErrorKind::DataLoss,
        RegistryError::Config { .. } => ErrorKind::FailedPrecondition,
        RegistryError::NoSpace { .. } => ErrorKind::ResourceExhausted,
        RegistryError::Disk(error) => match Errno::from_io_error(error) {
            Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::ResourceExhausted,
            _ => ErrorKind::Internal,
        },
        RegistryError::Cancelled => ErrorKind::Aborted,
    }
}

fn pull_kind(error: &PullError) -> ErrorKind {
    match error {
        PullError::Registry(error) => registry_kind(error),
        PullError::Stage(error) => stage_kind(error),
        PullError::Store(error) => store_kind(error),
        PullError::NotPresent => ErrorKind::NotFound,
        PullError::NoAccess => ErrorKind::PermissionDenied,
        PullError::Job(JobError::GivenUp | JobError::Abandoned(_)) => ErrorKind::Aborted,
        PullError::Job(JobError::NoThread) => ErrorKind::Unavailable,
        PullError::Job(JobError::Panicked) => ErrorKind::Internal,
    }
}

fn stage_kind(error: &StageError) -> ErrorKind {
    if error.is_out_of_space() {
        return ErrorKind::ResourceExhausted;
    }
    match error {
        StageError::Source(error) => source_kind(error),
        StageError::Store(error) => store_kind(error),
        StageError::Ingest(IngestError::Layer { source, .. }) => layer_kind(source),
        StageError::Ingest(IngestError::Cancelled) => ErrorKind::Aborted,
        StageError::Ingest(IngestError::Thread { .. }) => ErrorKind::Unavailable,
        StageError::Seal {
            source: SealError::Index { .. },
            ..
        } => ErrorKind::Internal,
        StageError::Seal { .. } => ErrorKind::FailedPrecondition,
        StageError::Apply { .. }
        | StageError::Finish { .. }
        | StageError::Root(_)
        | StageError::Work { .. } => ErrorKind::Internal,
        StageError::Limit { .. } => ErrorKind::ResourceExhausted,
        StageError::Lost { .. } => ErrorKind::Aborted,
    }
}

/// What the image's author can mend, and what only the node's operator can.
fn layer_kind(error: &LayerError<TakeError>) -> ErrorKind {
    match error {
        // A source says what is wrong with the blob; the reader in between
        // knows of system errors only.
        LayerError::Open { source } | LayerError::Read { source } => {
            match source.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(error) => source_kind(error),
                None => match source.get_ref().and_then(|inner| inner.downcast_ref()) {
                    Some(error) => registry_kind(error),
                    None => ErrorKind::Unavailable,
                },
            }
        }
        // What goes beyond a limit may be just what its author meant.
        LayerError::Archive {
            source:
                ArchiveError::TooManyEntries { .. }
                | ArchiveError::PathTooLong { .. }
                | ArchiveError::LinkTooLong { .. }
                | ArchiveError::HeaderTooLarge { .. }
                | ArchiveError::XattrsTooLarge { .. }
                | ArchiveError::TooManySegments { .. }
                | ArchiveError::ApparentTooLarge { .. },
        }
        | LayerError::Decompress {
            source: DecompressError::ZstdWindow { .. },
        } => ErrorKind::FailedPrecondition,
        LayerError::BlobTooLong { .. }
        | LayerError::BlobTooShort { .. }
        | LayerError::BlobDigest { .. }
        | LayerError::DiffId { .. }
        | LayerError::Decompress { .. }
        | LayerError::Archive { .. } => ErrorKind::DataLoss,
        LayerError::UnpackedBytes { .. } | LayerError::Ratio { .. } => {
            ErrorKind::FailedPrecondition
        }
        LayerError::Consumer {
            source: TakeError::Unpack(_),
        } => ErrorKind::FailedPrecondition,
        LayerError::Consumer {
            source: TakeError::Store(_) | TakeError::Work { .. } | TakeError::Finish(_),
        } => ErrorKind::Internal,
        LayerError::NotRead | LayerError::Panicked { .. } => ErrorKind::Internal,
        LayerError::Thread { .. } => ErrorKind::Unavailable,
        LayerError::Interrupted => ErrorKind::Aborted,
    }
}
