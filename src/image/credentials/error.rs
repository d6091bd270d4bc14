//! Why there are no credentials.

use super::docker_config::DockerConfigError;
use super::provider::ConfigError;
use crate::image::printable;
use std::io;
use std::path::PathBuf;

/// Credentials cannot be read. Nothing of what they hold is in the text.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The pod's secret is of another kind.
    #[error(
        "the secret of nodePublishSecretRef has {}, and neither .dockerconfigjson nor .dockercfg; name one of type kubernetes.io/dockerconfigjson, as kubectl create secret docker-registry makes it",
        listed(found)
    )]
    SecretKeys {
        /// The keys that it has.
        found: Vec<String>,
    },
    /// The docker config in the pod's secret cannot be used.
    #[error("the key {key:?} of the secret of nodePublishSecretRef is not a docker config")]
    Secret {
        /// Its key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: DockerConfigError,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no docker config.
    #[error("{} is not a docker config", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DockerConfigError,
    },
    /// The configuration of credential providers cannot be used.
    #[error("{} is not a configuration of credential providers", path.display())]
    Providers {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// A directory has no file in it that configures credential providers.
    #[error("{} has no .json, .yaml or .yml in it", path.display())]
    NoConfig {
        /// The directory.
        path: PathBuf,
    },
    /// A password cannot be asked for.
    #[error("cannot read the password from standard input")]
    Password(#[source] io::Error),
}

/// The most keys that an error lists.
const MAX_LISTED: usize = 5;

fn listed(keys: &[String]) -> String {
    let mut shown: Vec<String> = keys
        .iter()
        .take(MAX_LISTED)
        .map(|key| printable(key))
        .collect();
    if keys.len() > MAX_LISTED {
        shown.push(format!("{} more", keys.len() - MAX_LISTED));
    }
    match shown.len() {
        0 => "nothing".to_owned(),
        1 => format!("the key {}", shown.join("")),
        _ => format!("the keys {}", shown.join(", ")),
    }
}
