//! Flags and environment to a validated configuration. All faults of one are
//! found at once, for whoever mends a manifest wants one round and not five.

use crate::csi::registration::{self, RegistrationSettings};
use crate::csi::request::Policy;
use crate::stage::StageOptions;
use crate::telemetry::{LogFormat, LogLevel, LogLevelError};
use crate::volume::VolumeOptions;
use clap::builder::{BoolishValueParser, OsStringValueParser};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

/// Where a node keeps its store.
const DEFAULT_ROOT: &str = "/var/lib/aufs-csi";
/// Where a node keeps what does not survive a reboot.
const DEFAULT_RUN_DIR: &str = "/run/aufs-csi";
/// Where kubelet looks for the socket of a plugin of this name.
const DEFAULT_ENDPOINT: &str = "unix:///var/lib/kubelet/plugins/aufs-csi.dev/csi.sock";
/// Where kubelet looks for sockets to register, below its own directory.
const REGISTRATION_DIR: &str = "plugins_registry";
/// Where probes and metrics are served: for this node only.
const DEFAULT_HTTP_ADDRESS: &str = "127.0.0.1:9809";
/// Where the processes of the node are.
const DEFAULT_HOST_PROC: &str = "/proc";
/// Longest path of a socket in bytes: the kernel's 108 with a final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest node name in bytes, from the CSI specification.
const MAX_NODE_ID_BYTES: usize = 256;
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

/// Options of the node plugin.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeArgs {
    /// Unix socket where the CSI services are served: unix:///PATH. The socket
    /// is for this user only; a stale one is replaced. Where this option and its
    /// variable are not given, the variable CSI_ENDPOINT counts.
    /// [default: unix:///var/lib/kubelet/plugins/aufs-csi.dev/csi.sock]
    #[arg(
        long,
        env = "AUFS_CSI_ENDPOINT",
        hide_env_values = true,
        value_name = "ENDPOINT"
    )]
    pub endpoint: Option<String>,

    /// kubelet's directory, as kubelet itself calls it; volumes are published
    /// only below it. (/var/snap/microk8s/common/var/lib/kubelet for microk8s,
    /// /var/lib/k0s/kubelet for k0s.)
    #[arg(
        long,
        env = "AUFS_CSI_KUBELET_ROOT",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "/var/lib/kubelet"
    )]
    pub kubelet_root: PathBuf,

    /// Name of this node in the cluster (spec.nodeName of the plugin's pod).
    #[arg(
        long,
        env = "AUFS_CSI_NODE_ID",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub node_id: Option<String>,

    /// Directory below which pods may use local images (oci:, oci-archive: and
    /// docker-archive:), symbolic links resolved inside it. Can be given several
    /// times; in the variable, a colon is between two. Without it pods may use
    /// none, for a pod's author must not read files of the node.
    #[arg(
        long = "allow-local-images", env = "AUFS_CSI_ALLOW_LOCAL_IMAGES", hide_env_values = true, value_name = "DIR",
        value_delimiter = ':', value_parser = OsStringValueParser::new()
    )]
    pub allow_local_images: Vec<OsString>,

    /// Union filesystem of the volumes: auto, aufs or overlay. With auto, it is
    /// AUFS where its self-test passes and overlayfs elsewhere, and a pod may
    /// choose; with another value, a pod that chooses differently is refused.
    #[arg(
        long,
        env = "AUFS_CSI_UNION",
        hide_env_values = true,
        value_name = "UNION",
        default_value = "auto"
    )]
    pub union: String,

    /// Directory where kubelet looks for plugins; a socket is made there by which
    /// the plugin registers itself. [default: plugins_registry below --kubelet-root]
    #[arg(
        long,
        env = "AUFS_CSI_REGISTRATION_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub registration_dir: Option<PathBuf>,

    /// Path of the CSI socket as kubelet sees it, where a container has it under
    /// another name. [default: the path in --endpoint]
    #[arg(
        long,
        env = "AUFS_CSI_KUBELET_ENDPOINT",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub kubelet_endpoint: Option<PathBuf>,

    /// Do not register with kubelet: another program does, such as the
    /// node-driver-registrar.
    #[arg(
        long,
        env = "AUFS_CSI_NO_REGISTRATION",
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub no_registration: bool,

    /// Address for probes and metrics over HTTP: /livez, /readyz and /metrics.
    /// Port 0 is any that is free, an empty address is none.
    #[arg(
        long,
        env = "AUFS_CSI_HTTP_ADDRESS",
        hide_env_values = true,
        value_name = "HOST:PORT",
        default_value = DEFAULT_HTTP_ADDRESS
    )]
    pub http_address: String,
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

/// The configuration of the node plugin.
#[derive(Debug)]
pub struct NodeConfig {
    /// Path of the socket.
    pub socket: PathBuf,
    /// The node's name.
    pub node_id: String,
    /// What pods may do.
    pub policy: Policy,
    /// Where the plugin registers itself, if it does.
    pub registration: Option<RegistrationSettings>,
    /// Where probes and metrics are served, if anywhere.
    pub http_address: Option<SocketAddr>,
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
                host_proc: host_proc?,
            },
            log_format,
            log_level: log_level.ok()?,
        })
    }
}

impl NodeArgs {
    /// Validates the options of the node plugin.
    pub fn validate(
        self,
        environment: Environment<'_>,
        faults: &mut Vec<ConfigFault>,
    ) -> Option<NodeConfig> {
        let before = faults.len();
        // The variable that the CSI specification names; it counts less than what
        // was meant for this program.
        let endpoint = self
            .endpoint
            .or_else(|| environment("CSI_ENDPOINT"))
            .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let socket = socket_path(&endpoint).map_err(|fault| faults.push(fault));
        let kubelet_root = directory("--kubelet-root", Some(self.kubelet_root), "", faults);
        let node_id = self.node_id.filter(|id| !id.is_empty());
        match &node_id {
            None => faults.push(ConfigFault::Missing {
                option: "--node-id",
                remedy: "give the node's name, spec.nodeName of the plugin's pod",
            }),
            Some(id) if id.len() > MAX_NODE_ID_BYTES || id.chars().any(char::is_control) => {
                faults.push(ConfigFault::Value {
                    option: "--node-id",
                    value: id.clone(),
                    expected: "at most 256 bytes without control characters",
                });
            }
            Some(_) => {}
        }
        let local_images = self
            .allow_local_images
            .into_iter()
            // A variable that ends in a colon, or is empty, has an empty part.
            .filter(|path| !path.is_empty())
            .filter_map(|path| directory("--allow-local-images", Some(path.into()), "", faults))
            .collect();
        let union = self.union.parse();
        if union.is_err() {
            faults.push(ConfigFault::Value {
                option: "--union",
                value: self.union,
                expected: "auto, aufs or overlay",
            });
        }
        let registration = (!self.no_registration).then(|| {
            let dir = match self.registration_dir {
                Some(dir) => dir,
                // If that one is missing, it was said above.
                None => kubelet_root.as_ref()?.join(REGISTRATION_DIR),
            };
            let dir = directory("--registration-dir", Some(dir), "", faults)?;
            let path = dir.join(registration::socket_name());
            if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
                faults.push(ConfigFault::SocketLength {
                    option: "--registration-dir",
                    value: path.display().to_string(),
                });
            }
            let endpoint = match self.kubelet_endpoint {
                Some(endpoint) => endpoint,
                None => socket.as_ref().ok()?.clone(),
            };
            Some(RegistrationSettings {
                socket: path,
                kubelet_endpoint: directory("--kubelet-endpoint", Some(endpoint), "", faults)?,
            })
        });
        let http_address = match self.http_address.as_str() {
            "" => None,
            address => match address.parse() {
                Ok(address) => Some(address),
                Err(_) => {
                    faults.push(ConfigFault::Value {
                        option: "--http-address",
                        value: self.http_address.clone(),
                        expected: "an IP address and a port, such as 127.0.0.1:9809 or [::]:9809, or empty",
                    });
                    None
                }
            },
        };
        if faults.len() > before {
            return None;
        }
        Some(NodeConfig {
            socket: socket.ok()?,
            node_id: node_id?,
            policy: Policy {
                kubelet_root: kubelet_root?,
                local_images,
                union: union.ok()?,
            },
            registration: match registration {
                Some(settings) => Some(settings?),
                None => None,
            },
            http_address,
        })
    }
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

/// The path in `unix:///path`. Also read are `unix:/path` and, as other plugins
/// read it, `unix://path` with the slash forgotten.
fn socket_path(endpoint: &str) -> Result<PathBuf, ConfigFault> {
    let fault = || ConfigFault::Endpoint {
        value: endpoint.to_owned(),
    };
    let path = match endpoint.split_once(':') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("unix") => {
            match rest.strip_prefix("//") {
                Some(path) if !path.starts_with('/') && !path.is_empty() => format!("/{path}"),
                Some(path) => path.to_owned(),
                None => rest.to_owned(),
            }
        }
        Some(_) => return Err(fault()),
        None => endpoint.to_owned(),
    };
    let parsed = Path::new(&path);
    let climbs = parsed
        .components()
        .any(|component| component == Component::ParentDir);
    if !parsed.is_absolute()
        || climbs
        || parsed.file_name().is_none()
        || path.ends_with('/')
        || path.contains('\0')
    {
        return Err(fault());
    }
    if path.len() > MAX_SOCKET_PATH_BYTES {
        return Err(ConfigFault::SocketLength {
            option: "--endpoint",
            value: endpoint.to_owned(),
        });
    }
    Ok(parsed.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::probe::UnionRequest;

    fn store_args() -> StoreArgs {
        StoreArgs {
            root: None,
            run_dir: None,
            rootless: false,
            log_format: "text".to_owned(),
            log_level: None,
            host_proc: PathBuf::from(DEFAULT_HOST_PROC),
        }
    }

    fn node_args() -> NodeArgs {
        NodeArgs {
            endpoint: None,
            kubelet_root: PathBuf::from("/var/lib/kubelet/"),
            node_id: Some("node-a".to_owned()),
            allow_local_images: Vec::new(),
            union: "auto".to_owned(),
            registration_dir: None,
            kubelet_endpoint: None,
            no_registration: false,
            http_address: DEFAULT_HTTP_ADDRESS.to_owned(),
        }
    }

    fn empty(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn endpoints_are_unix_sockets_in_all_usual_spellings() {
        for (endpoint, path) in [
            ("unix:///csi/csi.sock", Some("/csi/csi.sock")),
            ("UNIX:///csi/csi.sock", Some("/csi/csi.sock")),
            ("unix:/csi/csi.sock", Some("/csi/csi.sock")),
            ("unix://csi/csi.sock", Some("/csi/csi.sock")),
            ("/csi/csi.sock", Some("/csi/csi.sock")),
            ("unix:////csi//csi.sock", Some("/csi/csi.sock")),
            ("unix:csi.sock", None),
            ("csi.sock", None),
            ("unix://", None),
            ("unix:///", None),
            ("unix:///csi/", None),
            ("unix:///csi/../csi.sock", None),
            ("tcp://0.0.0.0:10000", None),
            ("", None),
        ] {
            assert_eq!(
                socket_path(endpoint).ok().as_deref(),
                path.map(Path::new),
                "{endpoint:?}"
            );
        }
        let fits = format!("unix:///{}", "s".repeat(MAX_SOCKET_PATH_BYTES - 1));
        assert!(socket_path(&fits).is_ok());
        assert!(matches!(
            socket_path(&format!("{fits}s")),
            Err(ConfigFault::SocketLength { .. })
        ));
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
            allow_local_images: vec!["/ok".into(), "images".into()],
            union: "btrfs".to_owned(),
            registration_dir: Some(PathBuf::from("/plugins/../registry")),
            kubelet_endpoint: Some(PathBuf::from("csi.sock")),
            no_registration: false,
            http_address: "localhost:http".to_owned(),
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
                "--registration-dir \"/plugins/../registry\" is not an absolute path without ..",
                "--http-address is \"localhost:http\"; it must be an IP address and a port, such as 127.0.0.1:9809 or [::]:9809, or empty",
            ]
        );
    }

    #[test]
    fn paths_are_in_their_shortest_form() {
        let mut faults = Vec::new();
        let node = NodeArgs {
            allow_local_images: vec!["/images//a/./".into(), "".into()],
            union: "aufs".to_owned(),
            ..node_args()
        };
        let config = node.validate(&empty, &mut faults).unwrap();
        assert_eq!(config.policy.kubelet_root, Path::new("/var/lib/kubelet"));
        assert_eq!(config.policy.local_images, [PathBuf::from("/images/a")]);
        assert_eq!(config.policy.union, UnionRequest::Aufs);
        let shown = config.policy.kubelet_root.to_str().unwrap();
        assert_eq!(shown, "/var/lib/kubelet", "no trailing slash");
        assert!(faults.is_empty());
    }

    #[test]
    fn the_variable_of_the_specification_counts_least() {
        let given = |name: &str| (name == "CSI_ENDPOINT").then(|| "unix:///spec.sock".to_owned());
        let socket = |endpoint: Option<&str>, environment: Environment<'_>| {
            let node = NodeArgs {
                endpoint: endpoint.map(str::to_owned),
                ..node_args()
            };
            node.validate(environment, &mut Vec::new()).unwrap().socket
        };
        assert_eq!(socket(Some("/own.sock"), &given), Path::new("/own.sock"));
        assert_eq!(socket(None, &given), Path::new("/spec.sock"));
        assert_eq!(
            socket(None, &empty),
            Path::new("/var/lib/kubelet/plugins/aufs-csi.dev/csi.sock")
        );
    }

    #[test]
    fn the_plugin_registers_itself_in_kubelets_directory_unless_told_otherwise() {
        let registration = |change: fn(&mut NodeArgs)| {
            let mut args = node_args();
            change(&mut args);
            let config = args.validate(&empty, &mut Vec::new()).unwrap();
            config.registration.map(|settings| {
                let text = |path: PathBuf| path.display().to_string();
                (text(settings.socket), text(settings.kubelet_endpoint))
            })
        };
        let endpoint = "/var/lib/kubelet/plugins/aufs-csi.dev/csi.sock".to_owned();
        let in_root = "/var/lib/kubelet/plugins_registry/aufs-csi.dev-reg.sock".to_owned();
        assert_eq!(registration(|_| {}), Some((in_root, endpoint.clone())));
        let moved = registration(|args| {
            args.registration_dir = Some("/registration/".into());
            args.endpoint = Some("unix:///csi/csi.sock".to_owned());
            args.kubelet_endpoint = Some("/var/lib/kubelet/plugins/aufs-csi.dev/csi.sock".into());
        });
        let socket = "/registration/aufs-csi.dev-reg.sock".to_owned();
        assert_eq!(moved, Some((socket, endpoint)));
        assert_eq!(registration(|args| args.no_registration = true), None);
        let mut faults = Vec::new();
        let mut args = node_args();
        args.registration_dir = Some(PathBuf::from(format!("/{}", "d".repeat(90))));
        assert!(args.validate(&empty, &mut faults).is_none());
        assert!(matches!(faults[..], [ConfigFault::SocketLength { .. }]));
    }

    #[test]
    fn probes_can_be_anywhere_or_nowhere() {
        let address = |text: &str| {
            let args = NodeArgs {
                http_address: text.to_owned(),
                ..node_args()
            };
            args.validate(&empty, &mut Vec::new())
                .map(|config| config.http_address.map(|address| address.to_string()))
        };
        for (text, found) in [
            ("", Some(None)),
            ("0.0.0.0:80", Some(Some("0.0.0.0:80".to_owned()))),
            ("[::1]:0", Some(Some("[::1]:0".to_owned()))),
            (":9809", None),
            ("9809", None),
        ] {
            assert_eq!(address(text), found, "{text}");
        }
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
