//! What one request may use, and in which order it is tried.

use super::docker_config::{DockerConfig, Format};
use super::matching::Index;
use super::node::{self, NodeCredentials};
use super::{Credential, CredentialError, Login, Origin, ask, helper};
use crate::image::printable;
use crate::secret::Secret;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(test)]
mod tests;

/// Keys of a secret that have a docker config. A secret of any type can have
/// several, `other.dockerconfigjson` beside `.dockerconfigjson`.
const SECRET_KEYS: [(&str, Format); 2] = [
    (".dockerconfigjson", Format::Current),
    (".dockercfg", Format::Legacy),
];

/// The credentials that one request may use: of a pod, or of a person's command.
///
/// Cheap to clone. What was found is not kept here, for a token of a provider can
/// end while an image is being pulled.
#[derive(Debug, Clone)]
pub struct Keyring(Arc<Sources>);

#[derive(Debug)]
struct Sources {
    own: Own,
    node: Option<Arc<NodeCredentials>>,
    /// What each source had when it was last looked for something, for errors.
    looked: Mutex<BTreeMap<(String, String), String>>,
}

/// What comes first.
#[derive(Debug)]
enum Own {
    /// A pod without a secret.
    NoSecret,
    /// Docker configs of the pod's secret.
    Secret(Index<Login>),
    /// `--creds`, for these registries and no other.
    Login(Login, BTreeSet<String>),
    /// A person's docker config.
    Config(DockerConfig),
}

/// The credentials of a person's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandCredentials {
    /// `--creds`: a name, and a password unless it is to be asked for.
    Login {
        /// The name.
        username: String,
        /// The password.
        password: Option<Secret>,
    },
    /// A docker config.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether it was named, so that it must be there.
        is_required: bool,
    },
    /// None: the command's person has no docker config.
    None,
}

impl CommandCredentials {
    /// The same with a password: one that was not given is asked for, once for all
    /// images of the command.
    pub fn with_password(self) -> Result<Self, CredentialError> {
        match self {
            CommandCredentials::Login {
                username,
                password: None,
            } => {
                let password = ask::ask_password(&format!("password of {username}"))?;
                Ok(CommandCredentials::Login {
                    username,
                    password: Some(password),
                })
            }
            other => Ok(other),
        }
    }
}

/// What was found for an image, and where it was looked for.
#[derive(Debug)]
pub(super) struct Look {
    image: String,
    pub(super) credentials: Vec<Credential>,
    pub(super) notes: Vec<String>,
}

impl Look {
    pub(super) fn new(host: &str, repository: &str) -> Self {
        Look {
            image: printable(&format!("{host}/{repository}")),
            credentials: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds what a source has, which may be nothing.
    pub(super) fn add(&mut self, origin: Origin, found: impl Iterator<Item = Credential>) {
        let before = self.credentials.len();
        let mut count = 0;
        for credential in found {
            count += 1;
            self.push(credential);
        }
        let has = match origin {
            Origin::Node | Origin::Command => "have",
            Origin::Pod | Origin::Provider(_) => "has",
        };
        let what = match (count, self.credentials.len() - before) {
            (0, _) => format!("nothing for {}", self.image),
            (_, 0) => "the same".to_owned(),
            (1, _) => "an entry".to_owned(),
            (count, _) => format!("{count} entries"),
        };
        self.note(format!("{origin} {has} {what}"));
    }

    /// What was refused once need not be shown again from elsewhere.
    pub(super) fn push(&mut self, credential: Credential) {
        let mut known = self.credentials.iter();
        if !known.any(|other| other.login == credential.login) {
            self.credentials.push(credential);
        }
    }
}

impl Keyring {
    /// What a pod may use: the secret that its volume names in
    /// `nodePublishSecretRef` (empty for none), and what the node has for all.
    pub fn from_pod(
        secret: &BTreeMap<String, Secret>,
        node: Arc<NodeCredentials>,
    ) -> Result<Self, CredentialError> {
        let own = match secret.is_empty() {
            true => Own::NoSecret,
            false => Own::Secret(read_secret(secret)?),
        };
        Ok(Keyring::new(own, Some(node)))
    }

    /// What a person's command may use. `--creds` are for the `registries` of the
    /// images that the command names, and not for their mirrors; the password is
    /// asked for here if it was not given.
    pub fn command(
        credentials: &CommandCredentials,
        registries: &[&str],
    ) -> Result<Self, CredentialError> {
        let own = match credentials {
            CommandCredentials::None => Own::Config(DockerConfig::default()),
            CommandCredentials::Login { username, password } => {
                let password = match password {
                    Some(password) => password.clone(),
                    None => ask::ask_password(&format!("password of {username}"))?,
                };
                let login = Login::Basic {
                    username: username.clone(),
                    password,
                };
                let registries = registries.iter().map(|&registry| registry.to_owned());
                Own::Login(login, registries.collect())
            }
            CommandCredentials::File { path, is_required } => {
                let config = node::read_config(path)?;
                if config.is_none() && *is_required {
                    return Err(CredentialError::Read {
                        path: path.clone(),
                        source: std::io::ErrorKind::NotFound.into(),
                    });
                }
                Own::Config(config.unwrap_or_default())
            }
        };
        Ok(Keyring::new(own, None))
    }

    fn new(own: Own, node: Option<Arc<NodeCredentials>>) -> Self {
        Keyring(Arc::new(Sources {
            own,
            node,
            looked: Mutex::default(),
        }))
    }

    /// What may be shown to the registry `host` (with its port; `docker.io` for
    /// Docker Hub) for a repository of it, in the order in which it is to be tried,
    /// none twice. Can run programs and so take minutes.
    pub fn lookup(&self, host: &str, repository: &str) -> Vec<Credential> {
        let look = self.look(host, repository);
        self.remember(host, repository, &look);
        look.credentials
    }

    /// Where credentials for a repository were looked for last, and what was there,
    /// as a part of a sentence for an error: "the pod's nodePublishSecretRef has
    /// nothing for …; the credential provider … failed: …". It has nothing of what
    /// was found.
    pub fn sources(&self, host: &str, repository: &str) -> String {
        let key = (host.to_owned(), repository.to_owned());
        let looked = self.0.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notes) = looked.get(&key) {
            return notes.clone();
        }
        drop(looked);
        let look = self.look(host, repository);
        self.remember(host, repository, &look)
    }

    fn remember(&self, host: &str, repository: &str, look: &Look) -> String {
        let notes = look.notes.join("; ");
        let key = (host.to_owned(), repository.to_owned());
        let mut looked = self.0.looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.insert(key, notes.clone());
        notes
    }

    fn look(&self, host: &str, repository: &str) -> Look {
        let mut look = Look::new(host, repository);
        let of = |origin: &Origin, logins: &Index<Login>| {
            let found = logins.find(host, repository).into_iter();
            let found: Vec<Credential> = found
                .map(|login| Credential {
                    origin: origin.clone(),
                    login: login.clone(),
                })
                .collect();
            found.into_iter()
        };
        match &self.0.own {
            Own::NoSecret => look.note("the pod names no secret in nodePublishSecretRef"),
            Own::Secret(logins) => look.add(Origin::Pod, of(&Origin::Pod, logins)),
            Own::Login(login, registries) => {
                let is_for = registries.contains(host);
                let found = is_for.then(|| Credential {
                    origin: Origin::Command,
                    login: login.clone(),
                });
                look.add(Origin::Command, found.into_iter());
            }
            Own::Config(config) => {
                ask_helper(config, host, &mut look);
                look.add(Origin::Command, of(&Origin::Command, &config.logins));
            }
        }
        if let Some(node) = &self.0.node {
            node.look(host, repository, &mut look);
        }
        look
    }
}

fn ask_helper(config: &DockerConfig, host: &str, look: &mut Look) {
    let Some((name, registry)) = helper::of(config, host) else {
        return;
    };
    let shown = printable(name);
    match helper::ask(name, &registry) {
        Ok(Some(login)) => {
            look.push(Credential {
                origin: Origin::Command,
                login,
            });
            look.note(format!("the credential helper {shown} has an entry"));
        }
        Ok(None) => look.note(format!(
            "the credential helper {shown} has nothing for {host}"
        )),
        Err(error) => {
            tracing::warn!(helper = shown, %error, "a credential helper failed");
            look.note(format!("the credential helper {shown} {error}"));
        }
    }
}

/// The docker configs of a secret.
fn read_secret(secret: &BTreeMap<String, Secret>) -> Result<Index<Login>, CredentialError> {
    let mut logins = Index::default();
    let mut is_one = false;
    for (key, value) in secret {
        let format = SECRET_KEYS.iter().find(|(suffix, _)| key.ends_with(suffix));
        let Some((_, format)) = format else {
            continue;
        };
        let config = DockerConfig::parse(value.expose().as_bytes(), *format).map_err(|source| {
            CredentialError::Secret {
                key: printable(key),
                source,
            }
        })?;
        is_one = true;
        logins.append(config.logins);
    }
    if !is_one {
        return Err(CredentialError::SecretKeys {
            found: secret.keys().cloned().collect(),
        });
    }
    Ok(logins)
}
