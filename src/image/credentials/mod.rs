//! What may be shown to a registry, and where it comes from.
//!
//! ```text
//! docker_config  docker configs → logins by registry (pure)
//! matching       which entries are for an image, as kubelet has it (pure)
//! provider       kubelet's credential-provider plugins, and what they answered
//! helper         Docker's credential helpers, for commands
//! exec           running those programs; nothing else is ever executed
//! node           what the node has for all pods
//! keyring        what one request may use, in order
//! ```
//!
//! **Invariant:** neither an error nor a log line nor a `Debug` text has anything
//! of a password, a token, a docker config or a program's answer.

mod ask;
mod docker_config;
mod error;
mod exec;
mod helper;
mod keyring;
mod matching;
mod node;
mod provider;

#[cfg(any(test, feature = "testing"))]
pub use docker_config::check;
pub use docker_config::{DockerConfig, DockerConfigError, Format};
pub use error::CredentialError;
use keyring::Look;
pub use keyring::{CommandCredentials, Keyring};
pub use node::{CredentialSettings, NodeCredentials, ProviderSettings};
pub use provider::ConfigError;

use crate::secret::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// Something that proves to a registry who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Who gave it to us.
    pub origin: Origin,
    /// What is shown.
    pub login: Login,
}

/// Where a credential comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The pod's `nodePublishSecretRef`.
    Pod,
    /// A credential-provider plugin of kubelet's, by its name.
    Provider(String),
    /// The plugin's own docker config, which the operator gave for all pods.
    Node,
    /// A person's command: `--creds` or the person's docker config.
    Command,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Pod => f.write_str("the pod's nodePublishSecretRef"),
            Origin::Provider(name) => write!(f, "the credential provider {name}"),
            Origin::Node => f.write_str("the node's registry credentials"),
            Origin::Command => f.write_str("the credentials of the command"),
        }
    }
}

/// What a credential consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// What a token server gives tokens for, instead of a password.
    IdentityToken(Secret),
    /// A token that the registry itself takes.
    RegistryToken(Secret),
}

impl Credential {
    /// A keyed hash by which the same credential for the same `scope` is known
    /// again, and which tells nobody without the key anything.
    pub fn fingerprint(&self, key: &[u8; 32], scope: &str) -> [u8; 32] {
        let (kind, username, secret) = match &self.login {
            Login::Basic { username, password } => ("basic", username.as_str(), password),
            Login::IdentityToken(token) => ("identity", "", token),
            Login::RegistryToken(token) => ("token", "", token),
        };
        // A key may have any length, so this cannot fail; were it to, the hash
        // of nothing would match nothing that was recorded.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
            return [0; 32];
        };
        for part in [scope, kind, username, secret.expose()] {
            // With their lengths, so that no two lists of parts read the same.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }
}
