//! The options that say where credentials of registries are.

use super::{ConfigFault, Environment, directory};
use crate::image::credentials::{CommandCredentials, CredentialSettings, ProviderSettings};
use crate::secret::Secret;
use std::convert::Infallible;
use std::path::PathBuf;

/// Options of the node plugin.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct NodeCredentialArgs {
    /// Docker config (config.json) with registry credentials for the images of all
    /// pods, which are tried after those of the pod. It is read again when it
    /// changes, and need not be there.
    #[arg(
        long,
        env = "AUFS_CSI_REGISTRY_CREDENTIALS",
        hide_env_values = true,
        value_name = "FILE",
        help_heading = "Registries"
    )]
    pub registry_credentials: Option<PathBuf>,

    /// kubelet's configuration of credential providers, or a directory of such;
    /// give it what kubelet's option of the same name has.
    #[arg(
        long,
        env = "AUFS_CSI_IMAGE_CREDENTIAL_PROVIDER_CONFIG",
        hide_env_values = true,
        value_name = "FILE",
        help_heading = "Registries"
    )]
    pub image_credential_provider_config: Option<PathBuf>,

    /// Directory of the credential providers' programs, as kubelet's option of the
    /// same name has it. They are run as this program's user.
    #[arg(
        long,
        env = "AUFS_CSI_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Registries"
    )]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
}

impl NodeCredentialArgs {
    /// Validates them.
    pub fn validate(self, faults: &mut Vec<ConfigFault>) -> Option<CredentialSettings> {
        const CONFIG: &str = "--image-credential-provider-config";
        const BIN_DIR: &str = "--image-credential-provider-bin-dir";
        let before = faults.len();
        let mut absolute = |option, path: Option<PathBuf>| {
            let path = path.filter(|path| !path.as_os_str().is_empty())?;
            // What it is not is among the faults then.
            directory(option, Some(path.clone()), "", faults).or(Some(path))
        };
        let docker_config = absolute("--registry-credentials", self.registry_credentials);
        let config = absolute(CONFIG, self.image_credential_provider_config);
        let bin_dir = absolute(BIN_DIR, self.image_credential_provider_bin_dir);
        let providers = match (config, bin_dir) {
            (Some(config), Some(bin_dir)) => Some(ProviderSettings { config, bin_dir }),
            (None, None) => None,
            (Some(_), None) => {
                faults.push(ConfigFault::Missing {
                    option: BIN_DIR,
                    remedy: "the configuration of credential providers needs the directory of their programs",
                });
                None
            }
            (None, Some(_)) => {
                faults.push(ConfigFault::Missing {
                    option: CONFIG,
                    remedy: "the programs of credential providers need their configuration",
                });
                None
            }
        };
        (faults.len() == before).then_some(CredentialSettings {
            docker_config,
            providers,
        })
    }
}

/// Options of a person's command that pulls.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CommandCredentialArgs {
    /// Name and password for the registries of the images. Everybody on this
    /// machine can see the command line: give the password in the variable, or
    /// leave it away and it is read from the terminal or standard input.
    #[arg(
        long,
        env = "AUFS_CSI_CREDS",
        hide_env_values = true,
        value_name = "USER[:PASSWORD]",
        value_parser = secret,
        help_heading = "Registries"
    )]
    pub creds: Option<Secret>,

    /// Docker config with registry credentials, also by credential helpers.
    /// [default: $REGISTRY_AUTH_FILE, config.json in $DOCKER_CONFIG, or
    /// ~/.docker/config.json]
    #[arg(
        long,
        env = "AUFS_CSI_AUTHFILE",
        hide_env_values = true,
        value_name = "FILE",
        help_heading = "Registries"
    )]
    pub authfile: Option<PathBuf>,
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

impl CommandCredentialArgs {
    /// Validates them. What `--creds` says comes before any file.
    pub fn validate(
        self,
        environment: Environment<'_>,
        faults: &mut Vec<ConfigFault>,
    ) -> Option<CommandCredentials> {
        if let Some(creds) = self.creds.filter(|creds| !creds.is_empty()) {
            let (username, password) = match creds.expose().split_once(':') {
                Some((username, password)) => (username, Some(password)),
                None => (creds.expose(), None),
            };
            if username.is_empty() {
                faults.push(ConfigFault::Creds);
                return None;
            }
            return Some(CommandCredentials::Login {
                username: username.to_owned(),
                password: password.map(|password| Secret::new(password.to_owned())),
            });
        }
        let variable = |name: &str| environment(name).map(PathBuf::from);
        let named = self
            .authfile
            .filter(|path| !path.as_os_str().is_empty())
            .or_else(|| variable("REGISTRY_AUTH_FILE"));
        let is_required = named.is_some();
        let home = || Some(variable("HOME")?.join(".docker"));
        let usual = || Some(variable("DOCKER_CONFIG").or_else(home)?.join("config.json"));
        Some(match named.or_else(usual) {
            Some(path) => CommandCredentials::File { path, is_required },
            None => CommandCredentials::None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<PathBuf> {
        Some(PathBuf::from(text))
    }

    #[test]
    fn providers_need_both_or_neither() {
        let validate = |args: NodeCredentialArgs| {
            let mut faults = Vec::new();
            let settings = args.validate(&mut faults);
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            (settings, faults)
        };
        assert_eq!(
            validate(NodeCredentialArgs::default()),
            (Some(CredentialSettings::default()), Vec::new())
        );
        let (settings, faults) = validate(NodeCredentialArgs {
            registry_credentials: path("/etc//config.json"),
            image_credential_provider_config: path("/etc/providers.yaml"),
            image_credential_provider_bin_dir: path("/opt/bin/"),
        });
        let expected = CredentialSettings {
            docker_config: path("/etc/config.json"),
            providers: Some(ProviderSettings {
                config: PathBuf::from("/etc/providers.yaml"),
                bin_dir: PathBuf::from("/opt/bin"),
            }),
        };
        assert_eq!((settings, faults), (Some(expected), Vec::new()));
        let (settings, faults) = validate(NodeCredentialArgs {
            registry_credentials: path("config.json"),
            image_credential_provider_config: path("providers.yaml"),
            image_credential_provider_bin_dir: path(""),
        });
        assert_eq!(settings, None);
        assert_eq!(
            faults,
            [
                "--registry-credentials \"config.json\" is not an absolute path without ..",
                "--image-credential-provider-config \"providers.yaml\" is not an absolute path without ..",
                "--image-credential-provider-bin-dir is missing; the configuration of credential providers needs the directory of their programs",
            ]
        );
        let (_, faults) = validate(NodeCredentialArgs {
            image_credential_provider_bin_dir: path("/bin"),
            ..NodeCredentialArgs::default()
        });
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("--image-credential-provider-config is missing"));
    }

    #[test]
    fn a_command_has_credentials_from_the_first_place_there_is() {
        let validate = |creds: &str, authfile: &str, variables: &[(&str, &str)]| {
            let find = |name: &str| {
                let pair = variables.iter().find(|(variable, _)| *variable == name);
                pair.map(|(_, value)| (*value).to_owned())
            };
            let args = CommandCredentialArgs {
                creds: Some(Secret::new(creds.to_owned())),
                authfile: path(authfile),
            };
            args.validate(&find, &mut Vec::new())
        };
        let login = |username: &str, password: Option<&str>| {
            Some(CommandCredentials::Login {
                username: username.to_owned(),
                password: password.map(|password| Secret::new(password.to_owned())),
            })
        };
        let file = |text: &str, is_required| {
            let path = PathBuf::from(text);
            Some(CommandCredentials::File { path, is_required })
        };
        assert_eq!(validate("u:p:w", "/a", &[]), login("u", Some("p:w")));
        assert_eq!(validate("u:", "/a", &[]), login("u", Some("")));
        assert_eq!(validate("u", "/a", &[]), login("u", None));
        let all = [
            ("REGISTRY_AUTH_FILE", "/b"),
            ("DOCKER_CONFIG", "/c"),
            ("HOME", "/home/u"),
        ];
        assert_eq!(validate("", "a", &all), file("a", true));
        assert_eq!(validate("", "", &all), file("/b", true));
        assert_eq!(validate("", "", &all[1..]), file("/c/config.json", false));
        let home = file("/home/u/.docker/config.json", false);
        assert_eq!(validate("", "", &all[2..]), home);
        assert_eq!(validate("", "", &[]), Some(CommandCredentials::None));
    }

    #[test]
    fn no_fault_and_no_debug_text_has_a_password() {
        let mut faults = Vec::new();
        let args = CommandCredentialArgs {
            creds: Some(Secret::new(":hunter2".to_owned())),
            authfile: None,
        };
        let debug = format!("{args:?}");
        assert_eq!(args.validate(&|_| None, &mut faults), None);
        let shown = format!("{debug} {faults:?} {}", faults[0]);
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
