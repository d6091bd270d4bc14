//! Layered ephemeral volumes for Kubernetes pods: the layers of an OCI image
//! are staged once per node as read-only branches, and every volume is a union
//! mount of them (AUFS, or overlayfs where the kernel has none) with a thin
//! writable layer on top.
//!
//! Modules in reading order. Dependencies point one way:
//! `main → cli → {probes, cluster, csi} → volume → {pull → stage → {layer, image}, union → host}`.

pub mod chain;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod csi;
pub mod ext4;
pub mod host;
pub mod image;
pub mod layer;
pub mod probes;
pub mod pull;
pub mod secret;
pub mod stage;
pub mod telemetry;
pub mod union;
pub mod volume;
pub mod yaml;

/// The plugin's name, as in the CSIDriver object and in pods. It never changes:
/// pods and the records of kubelet have it.
pub const DRIVER_NAME: &str = "aufs-csi.dev";
