//! Flags and environment to a validated configuration. All faults of one are
//! found at once, for whoever mends a manifest wants one round and not five.

mod collect;
mod credentials;
mod node;
pub mod policy;
mod pull;
mod purge;

pub use collect::CollectArgs;
pub use credentials::{CommandCredentialArgs, NodeCredentialArgs};
pub use node::{NodeArgs, NodeConfig};
pub use pull::PullArgs;
pub use purge::PurgeArgs;

use crate::image::registry::AllowError;
use crate::stage::StageOptions;
use crate::telemetry::{LogFormat, LogLevel, LogLevelError};
use crate::volume::{CollectSettings, PullOptions, VolumeOptions};
use clap::builder::BoolishValueParser;
use policy::PolicyFault;
use std::path::{Component, PathBuf};

/// Where a node keeps its store.
const DEFAULT_ROOT: &str = "/var/lib/aufs-csi";
/// Where a node keeps what does not survive a reboot.
const DEFAULT_RUN_DIR: &str = "/run/aufs-csi";
/// Where the processes of the node are.
const DEFAULT_HOST_PROC: &str = "/proc";
/// Longest path of a socket in bytes: the kernel's 108 with a final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Logs of the node plugin, which are the record of what it did.
const NODE_LOG_LEVEL: &str = "info";
/// Logs of a person's command, which says itself what it did.
const COMMAND_LOG_LEVEL: &str = "warn";

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    /// A path must begin with a slash.
    #[error("{option} {value:?} is not an absolute path without ..")]
    NotAbsolute {
        /// The option.
        option: &'static str,
        /// Its value.
        value: PathBuf,
    },
    /// A value must be given.
    #[error("{option} is missing; {remedy}")]
    Missing {
        /// The option.
        option: &'static str,
        /// What to give.
        remedy: &'static str,
    },
    /// A value is none of the possible ones.
    #[error("{option} is {value:?}; it must be {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// The endpoint is not a unix socket.
    #[error("--endpoint {value:?} is not a unix socket; write unix:///path/csi.sock")]
    Endpoint {
        /// The value.
        value: String,
    },
    /// The kernel takes no socket of this name.
    #[error(
        "{option} {value:?} is longer than the {MAX_SOCKET_PATH_BYTES} bytes that the path of a socket can have"
    )]
    SocketLength {
        /// The option.
        option: &'static str,
        /// The value.
        value: String,
    },
    /// A proxy of the environment cannot be used.
    #[error("{reason}")]
    Proxy {
        /// Why not.
        reason: String,
    },
    /// A pattern of images that pods may name cannot be read.
    #[error("cannot read --allow-registry")]
    Pattern(#[source] AllowError),
    /// An image of the list to prefetch cannot be read.
    #[error("cannot read --prefetch {image:?}")]
    Prefetch {
        /// As it was given.
        image: String,
        /// What is wrong with it.
        source: crate::image::reference::ReferenceError,
    },
    /// The policy file is wrong.
    #[error("the policy file {file}", file = file.display())]
    Policy {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: PolicyFault,
    },
    /// There is no name in the credentials; they are not shown.
    #[error("--creds has no name before the colon; write USER[:PASSWORD]")]
    Creds,
    /// The log level cannot be read.
    #[error("cannot read --log-level")]
    LogLevel(#[source] LogLevelError),
}

/// Options of every verb.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreArgs {
    /// Directory of the store: layers, images and the writable layers of volumes.
    /// It must be on a local filesystem that is not itself an overlay.
    /// [default: /var/lib/aufs-csi; with --rootless aufs-csi below
    /// $XDG_DATA_HOME or ~/.local/share]
    #[arg(
        long,
        global = true,
        env = "AUFS_CSI_ROOT",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Store"
    )]
    pub root: Option<PathBuf>,

    /// Directory, on a tmpfs, for what need not survive a reboot.
    /// [default: /run/aufs-csi; with --rootless aufs-csi below $XDG_RUNTIME_DIR]
    #[arg(
        long,
        global = true,
        env = "AUFS_CSI_RUN_DIR",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Store"
    )]
    pub run_dir: Option<PathBuf>,

    /// Work without privileges, inside a user and mount namespace of the caller's
    /// (`unshare --user --map-root-user --mount`): files belong to one owner,
    /// images with device nodes are refused, and overlayfs keeps its marks in user.*
    /// attributes. A store is either rootless or not.
    #[arg(
        long, global = true, env = "AUFS_CSI_ROOTLESS", hide_env_values = true, value_parser = BoolishValueParser::new(),
        help_heading = "Store"
    )]
    pub rootless: bool,

    /// Most branches that the layers of a volume's images become, 1 or more. The
    /// lowest layers of deeper ones are made one, once for all volumes, which takes
    /// disk space and makes lookups and listings of directories faster. What was made
    /// one under a lower number stays so. [default: what the kernel takes]
    #[arg(
        long,
        global = true,
        env = "AUFS_CSI_MAX_BRANCHES",
        hide_env_values = true,
        value_name = "NUMBER",
        help_heading = "Store"
    )]
    pub max_branches: Option<usize>,

    /// The node's /proc, where a container has it under another name. It tells
    /// which process holds a volume that cannot be unmounted, and whether one
    /// that kubelet forgot is still in use.
    #[arg(
        long,
        global = true,
        env = "AUFS_CSI_HOST_PROC",
        hide_env_values = true,
        value_name = "DIR",
        default_value = DEFAULT_HOST_PROC,
        help_heading = "Store"
    )]
    pub host_proc: PathBuf,

    /// How log lines are written to standard error: text or json.
    #[arg(
        long,
        global = true,
        env = "AUFS_CSI_LOG_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Logs"
    )]
    pub log_format: String,

    /// Which log lines are written: error, warn, info, debug or trace, or levels
    /// by module, such as warn,aufs_csi::csi=debug. [default: info for node,
    /// warn for all else]
    #[arg(
        long,
        global = true,
        env = "AUFS_CSI_LOG_LEVEL",
        hide_env_values = true,
        value_name = "LEVEL",
        help_heading = "Logs"
    )]
    pub log_level: Option<String>,
}

/// What holds for every verb.
#[derive(Debug)]
pub struct CommonConfig {
    /// Where things are kept, and how.
    pub store: VolumeOptions,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which of them.
    pub log_level: LogLevel,
}

/// A variable of the environment, if it is set and not empty.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl StoreArgs {
    /// Validates the options of every verb.
    pub fn validate(
        self,
        is_node: bool,
        environment: Environment<'_>,
        faults: &mut Vec<ConfigFault>,
    ) -> Option<CommonConfig> {
        let before = faults.len();
        let below = |variable: &str, fallback: Option<&str>| {
            let home = || Some(PathBuf::from(environment("HOME")?).join(fallback?));
            let base = environment(variable).map(PathBuf::from).or_else(home)?;
            Some(base.join("aufs-csi"))
        };
        let root = self.root.or_else(|| match self.rootless {
            true => below("XDG_DATA_HOME", Some(".local/share")),
            false => Some(PathBuf::from(DEFAULT_ROOT)),
        });
        let run_dir = self.run_dir.or_else(|| match self.rootless {
            true => below("XDG_RUNTIME_DIR", None),
            false => Some(PathBuf::from(DEFAULT_RUN_DIR)),
        });
        let root = directory("--root", root, "give a directory, or set HOME", faults);
        let run_dir = directory(
            "--run-dir",
            run_dir,
            "give a directory on a tmpfs, or set XDG_RUNTIME_DIR",
            faults,
        );
        if self.max_branches == Some(0) {
            faults.push(ConfigFault::Value {
                option: "--max-branches",
                value: "0".to_owned(),
                expected: "1 or more",
            });
        }
        let host_proc = directory("--host-proc", Some(self.host_proc), "", faults);
        let log_format = match self.log_format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                faults.push(ConfigFault::Value {
                    option: "--log-format",
                    value: other.to_owned(),
                    expected: "text or json",
                });
                LogFormat::Text
            }
        };
        let default = if is_node {
            NODE_LOG_LEVEL
        } else {
            COMMAND_LOG_LEVEL
        };
        let log_level = self
            .log_level
            .as_deref()
            .unwrap_or(default)
            .parse()
            .map_err(|error| faults.push(ConfigFault::LogLevel(error)));
        if faults.len() > before {
            return None;
        }
        Some(CommonConfig {
            store: VolumeOptions {
                root: root?,
                run_dir: run_dir?,
                rootless: self.rootless,
                stage: StageOptions::default(),
                max_branches: self.max_branches,
                host_proc: host_proc?,
                pull: PullOptions::default(),
                collect: CollectSettings::default(),
            },
            log_format,
            log_level: log_level.ok()?,
        })
    }
}

/// An `SELinux` context; an empty one is none.
pub(crate) fn label(text: Option<String>, faults: &mut Vec<ConfigFault>) -> Option<String> {
    let text = text.filter(|text| !text.is_empty())?;
    if !crate::union::is_label(&text) {
        faults.push(ConfigFault::Value {
            option: "--selinux-context",
            value: text,
            expected: "an SELinux context such as system_u:object_r:container_file_t:s0",
        });
        return None;
    }
    Some(text)
}

/// An absolute path in its shortest form, so that others compare with it.
fn directory(
    option: &'static str,
    path: Option<PathBuf>,
    remedy: &'static str,
    faults: &mut Vec<ConfigFault>,
) -> Option<PathBuf> {
    let Some(path) = path else {
        faults.push(ConfigFault::Missing { option, remedy });
        return None;
    };
    let climbs = path
        .components()
        .any(|component| component == Component::ParentDir);
    if !path.is_absolute() || climbs {
        faults.push(ConfigFault::NotAbsolute {
            option,
            value: path,
        });
        return None;
    }
    Some(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn store_args() -> StoreArgs {
        StoreArgs {
            root: None,
            run_dir: None,
            rootless: false,
            max_branches: None,
            log_format: "text".to_owned(),
            log_level: None,
            host_proc: PathBuf::from(DEFAULT_HOST_PROC),
        }
    }

    fn empty(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn all_faults_are_found_at_once() {
        let mut faults = Vec::new();
        let store = StoreArgs {
            root: Some(PathBuf::from("store")),
            run_dir: Some(PathBuf::from("/run/../x")),
            log_format: "xml".to_owned(),
            log_level: Some("loud".to_owned()),
            host_proc: PathBuf::from("proc"),
            ..store_args()
        };
        assert!(store.validate(true, &empty, &mut faults).is_none());
        let node = NodeArgs {
            endpoint: Some("tcp://x".to_owned()),
            kubelet_root: PathBuf::from("kubelet"),
            node_id: Some(String::new()),
            allow_registry: Vec::new(),
            credential_memory: "24h".to_owned(),
            abandoned_after: "10m".to_owned(),
            pull: PullArgs::default(),
            allow_local_images: vec!["/ok".into(), "images".into()],
            union: "btrfs".to_owned(),
            registration_dir: Some(PathBuf::from("/plugins/../registry")),
            kubelet_endpoint: Some(PathBuf::from("csi.sock")),
            no_registration: false,
            http_address: "localhost:http".to_owned(),
            no_events: false,
            policy: None,
            selinux_context: Some("a b".to_owned()),
            kubeconfig: Some(PathBuf::from("kubeconfig")),
            startup_taint: None,
            prefetch: Vec::new(),
            collect: CollectArgs::default(),
            credentials: NodeCredentialArgs {
                registry_credentials: Some(PathBuf::from("config.json")),
                ..NodeCredentialArgs::default()
            },
        };
        assert!(node.validate(&empty, &mut faults).is_none());
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "--root \"store\" is not an absolute path without ..",
                "--run-dir \"/run/../x\" is not an absolute path without ..",
                "--host-proc \"proc\" is not an absolute path without ..",
                "--log-format is \"xml\"; it must be text or json",
                "cannot read --log-level",
                "--endpoint \"tcp://x\" is not a unix socket; write unix:///path/csi.sock",
                "--kubelet-root \"kubelet\" is not an absolute path without ..",
                "--node-id is missing; give the node's name, spec.nodeName of the plugin's pod",
                "--allow-local-images \"images\" is not an absolute path without ..",
                "--union is \"btrfs\"; it must be auto, aufs or overlay",
                "--selinux-context is \"a b\"; it must be an SELinux context such as system_u:object_r:container_file_t:s0",
                "--registration-dir \"/plugins/../registry\" is not an absolute path without ..",
                "--http-address is \"localhost:http\"; it must be an IP address and a port, such as 127.0.0.1:9809 or [::]:9809, or empty",
                "--kubeconfig \"kubeconfig\" is not an absolute path without ..",
                "--registry-credentials \"config.json\" is not an absolute path without ..",
            ]
        );
    }

    #[test]
    fn a_rootless_store_is_in_the_users_directories() {
        let store = |pairs: &[(&str, &str)]| {
            let find = |name: &str| {
                let pair = pairs.iter().find(|(variable, _)| *variable == name);
                pair.map(|(_, value)| (*value).to_owned())
            };
            let args = StoreArgs {
                rootless: true,
                ..store_args()
            };
            let mut faults = Vec::new();
            let config = args.validate(false, &find, &mut faults);
            config.map(|config| (config.store.root, config.store.run_dir))
        };
        assert_eq!(
            store(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/7")]),
            Some((
                "/home/u/.local/share/aufs-csi".into(),
                "/run/user/7/aufs-csi".into()
            ))
        );
        assert_eq!(
            store(&[
                ("XDG_DATA_HOME", "/data"),
                ("XDG_RUNTIME_DIR", "/run/user/7")
            ]),
            Some(("/data/aufs-csi".into(), "/run/user/7/aufs-csi".into()))
        );
        assert_eq!(store(&[("HOME", "/home/u")]), None);
        let config = store_args()
            .validate(false, &empty, &mut Vec::new())
            .unwrap();
        assert_eq!(config.store.root, Path::new(DEFAULT_ROOT));
        assert_eq!(config.store.run_dir, Path::new(DEFAULT_RUN_DIR));
    }
}
