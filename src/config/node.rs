//! The options of `node`.

use super::policy::{Follower, PolicyFile};
use super::pull::{PullArgs, allow_list, duration};
use super::{
    CollectArgs, ConfigFault, Environment, MAX_SOCKET_PATH_BYTES, NodeCredentialArgs, directory,
    label,
};
use crate::cluster::Place;
use crate::csi::policy::{Policy, Rules};
use crate::csi::registration::{self, RegistrationSettings};
use crate::image::credentials::CredentialSettings;
use crate::volume::{CollectSettings, PullOptions};
use clap::builder::{BoolishValueParser, OsStringValueParser};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

/// Where kubelet looks for the socket of a plugin of this name.
const DEFAULT_ENDPOINT: &str = "unix:///var/lib/kubelet/plugins/aufs-csi.dev/csi.sock";
/// kubelet's directory where nobody gave it another one.
pub(super) const DEFAULT_KUBELET_ROOT: &str = "/var/lib/kubelet";
/// Where kubelet looks for sockets to register, below its own directory.
pub(super) const REGISTRATION_DIR: &str = "plugins_registry";
/// Where probes and metrics are served: for this node only.
const DEFAULT_HTTP_ADDRESS: &str = "127.0.0.1:9809";
/// How long access that a registry gave counts.
const DEFAULT_CREDENTIAL_MEMORY: &str = "24h";
/// After how long a pull ends that nobody waits for.
const DEFAULT_ABANDONED_AFTER: &str = "10m";
/// Longest node name in bytes, from the CSI specification.
const MAX_NODE_ID_BYTES: usize = 256;

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
        default_value = DEFAULT_KUBELET_ROOT
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

    /// File that says what pods may do, in YAML: docs/policy.md has its keys. What
    /// it says wins over the options here, and it is read again when it changes;
    /// one with a fault is then refused, and what held before holds on.
    #[arg(
        long,
        env = "AUFS_CSI_POLICY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub policy: Option<PathBuf>,

    /// SELinux context that all files of volumes get, where the kernel has
    /// SELinux; without one, a container runtime would relabel each file, which
    /// copies the whole image up.
    #[arg(
        long,
        env = "AUFS_CSI_SELINUX_CONTEXT",
        hide_env_values = true,
        value_name = "CONTEXT"
    )]
    pub selinux_context: Option<String>,

    /// Image that pods may name: HOST, HOST/PATH/* or *.DOMAIN. Can be given
    /// several times; in the variable, a comma is between two. Without it, all.
    #[arg(
        long,
        env = "AUFS_CSI_ALLOW_REGISTRY",
        hide_env_values = true,
        value_name = "PATTERN",
        value_delimiter = ',',
        help_heading = "Registries"
    )]
    pub allow_registry: Vec<String>,

    /// How long access that a registry gave to a pod counts for others with the
    /// same credentials, before the registry is asked again.
    #[arg(
        long,
        env = "AUFS_CSI_CREDENTIAL_MEMORY",
        hide_env_values = true,
        value_name = "TIME",
        default_value = DEFAULT_CREDENTIAL_MEMORY,
        help_heading = "Registries"
    )]
    pub credential_memory: String,

    /// After how long a pull ends that nobody has waited for.
    #[arg(
        long,
        env = "AUFS_CSI_ABANDONED_AFTER",
        hide_env_values = true,
        value_name = "TIME",
        default_value = DEFAULT_ABANDONED_AFTER,
        help_heading = "Registries"
    )]
    pub abandoned_after: String,

    /// How registries are reached.
    #[command(flatten)]
    pub pull: PullArgs,

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

    /// Tell nothing to the API server. Otherwise, pulls and failures become
    /// events on the pods if the plugin runs in a pod with a service account
    /// (verbs create and patch of the resource events), or --kubeconfig is given.
    #[arg(
        long,
        env = "AUFS_CSI_NO_EVENTS",
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub no_events: bool,

    /// How to reach the API server, as kubectl has it: a server with its
    /// certificate authority, and a token or a client's certificate.
    /// [default: what Kubernetes gives to the plugin's pod]
    #[arg(
        long,
        env = "AUFS_CSI_KUBECONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub kubeconfig: Option<PathBuf>,

    /// Key of a taint that is taken off this node once kubelet has registered the
    /// plugin and volumes can be published, so that no pod comes before. Needs
    /// the API server, as events do, with the verbs get and patch of nodes and
    /// get of csinodes.
    #[arg(
        long,
        env = "AUFS_CSI_STARTUP_TAINT",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub startup_taint: Option<String>,

    /// Where credentials of registries are.
    #[command(flatten)]
    pub credentials: NodeCredentialArgs,

    /// Image that is staged at the start, with the node's own credentials, and
    /// stays while it is given here. Can be given several times; in the variable,
    /// a comma is between two.
    #[arg(
        long,
        env = "AUFS_CSI_PREFETCH",
        hide_env_values = true,
        value_name = "IMAGE",
        value_delimiter = ',',
        help_heading = "Collection"
    )]
    pub prefetch: Vec<String>,

    /// When what nobody needs is removed.
    #[command(flatten)]
    pub collect: CollectArgs,
}

/// The configuration of the node plugin.
#[derive(Debug)]
pub struct NodeConfig {
    /// Path of the socket.
    pub socket: PathBuf,
    /// The node's name.
    pub node_id: String,
    /// What pods may do, by the flags alone.
    pub policy: Policy,
    /// The file that wins over them, and what it said at the start.
    pub policy_file: Option<(Follower, PolicyFile)>,
    /// How images come from registries.
    pub pull: PullOptions,
    /// Where the plugin registers itself, if it does.
    pub registration: Option<RegistrationSettings>,
    /// Where probes and metrics are served, if anywhere.
    pub http_address: Option<SocketAddr>,
    /// Which API server is told of events, if one is.
    pub events: Option<Place>,
    /// Which taint is taken off the node when all is ready, and where, if any.
    pub startup_taint: Option<(String, Place)>,
    /// Where the node's credentials of registries are.
    pub credentials: CredentialSettings,
    /// What goes from the store when.
    pub collect: CollectSettings,
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
        let allow = allow_list(&self.allow_registry, faults);
        let memory = duration("--credential-memory", &self.credential_memory, faults);
        let abandoned_after = duration("--abandoned-after", &self.abandoned_after, faults);
        let pull = self.pull.validate(environment, faults);
        let selinux_context = label(self.selinux_context, faults);
        let is_ruled = self.policy.is_some();
        let policy_file = self.policy.and_then(|file| read_policy(file, faults));
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
        let kubeconfig = self
            .kubeconfig
            .map(|file| directory("--kubeconfig", Some(file), "", faults));
        let api_server = match kubeconfig {
            Some(file) => file.map(Place::Kubeconfig),
            None => in_pod(environment),
        };
        let startup_taint = match (self.startup_taint, &api_server) {
            // A variable that is set to nothing.
            (Some(key), _) if key.is_empty() => None,
            (None, _) => None,
            (Some(key), Some(place)) => Some((key, place.clone())),
            (Some(_), None) => {
                faults.push(ConfigFault::Missing {
                    option: "--kubeconfig",
                    remedy: "--startup-taint needs the API server, which is known without it only in a pod",
                });
                None
            }
        };
        let credentials = self.credentials.validate(faults);
        let collect = self.collect.validate(&self.prefetch, faults);
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
                rules: Rules {
                    registries: allow.clone(),
                    selinux_context,
                    ..Rules::default()
                },
            },
            policy_file,
            pull: pull.and_then(|mut pull| {
                // With a file, the list may change: then only requests are held to it.
                if !is_ruled {
                    pull.registry.allow = allow;
                }
                pull.memory = memory?;
                pull.abandoned_after = abandoned_after?;
                Some(pull)
            })?,
            registration: match registration {
                Some(settings) => Some(settings?),
                None => None,
            },
            http_address,
            events: api_server.filter(|_| !self.no_events),
            startup_taint,
            credentials: credentials?,
            collect: collect?,
        })
    }
}

/// Reads the policy file, if it has no fault.
fn read_policy(file: PathBuf, faults: &mut Vec<ConfigFault>) -> Option<(Follower, PolicyFile)> {
    let file = directory("--policy", Some(file), "", faults)?;
    Follower::start(&file)
        .map_err(|found| {
            faults.extend(found.into_iter().map(|source| ConfigFault::Policy {
                file: file.clone(),
                source,
            }));
        })
        .ok()
}

/// Where Kubernetes says the API server is, to a process in a pod.
fn in_pod(environment: Environment<'_>) -> Option<Place> {
    Some(Place::Pod {
        host: environment("KUBERNETES_SERVICE_HOST")?,
        port: environment("KUBERNETES_SERVICE_PORT")?,
    })
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

    fn node_args() -> NodeArgs {
        NodeArgs {
            endpoint: None,
            kubelet_root: PathBuf::from("/var/lib/kubelet/"),
            node_id: Some("node-a".to_owned()),
            allow_local_images: Vec::new(),
            allow_registry: Vec::new(),
            credential_memory: DEFAULT_CREDENTIAL_MEMORY.to_owned(),
            abandoned_after: DEFAULT_ABANDONED_AFTER.to_owned(),
            pull: PullArgs::default(),
            union: "auto".to_owned(),
            registration_dir: None,
            kubelet_endpoint: None,
            no_registration: false,
            http_address: DEFAULT_HTTP_ADDRESS.to_owned(),
            no_events: false,
            policy: None,
            selinux_context: None,
            kubeconfig: None,
            startup_taint: None,
            credentials: NodeCredentialArgs::default(),
            prefetch: Vec::new(),
            collect: CollectArgs::default(),
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
    fn events_go_to_the_cluster_that_the_plugin_is_in_unless_told_otherwise() {
        let pod = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        let to = |environment: Environment<'_>, no_events, file: Option<&str>| {
            let args = NodeArgs {
                no_events,
                kubeconfig: file.map(PathBuf::from),
                ..node_args()
            };
            let config = args.validate(environment, &mut Vec::new());
            config.map(|config| config.events)
        };
        let in_pod = Place::Pod {
            host: "10.96.0.1".to_owned(),
            port: "443".to_owned(),
        };
        let in_file = Place::Kubeconfig(PathBuf::from("/etc/kubeconfig"));
        assert_eq!(to(&empty, false, None), Some(None));
        assert_eq!(to(&pod, false, None), Some(Some(in_pod)));
        assert_eq!(
            to(&pod, false, Some("/etc//kubeconfig")),
            Some(Some(in_file))
        );
        assert_eq!(to(&pod, true, Some("/etc/kubeconfig")), Some(None));
        assert_eq!(to(&pod, false, Some("kubeconfig")), None);
    }

    #[test]
    fn a_startup_taint_needs_the_api_server() {
        let pod = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        let taint = |environment: Environment<'_>, key: &str| {
            let args = NodeArgs {
                startup_taint: Some(key.to_owned()),
                // Not a reason to leave it.
                no_events: true,
                ..node_args()
            };
            let mut faults = Vec::new();
            let config = args.validate(environment, &mut faults);
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            config
                .map(|config| config.startup_taint.map(|(key, _)| key))
                .ok_or(faults)
        };
        assert_eq!(taint(&pod, "a/b"), Ok(Some("a/b".to_owned())));
        assert_eq!(taint(&pod, ""), Ok(None));
        let faults = taint(&empty, "a/b").unwrap_err();
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains("--startup-taint"), "{faults:?}");
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
}
