//! What the node itself has for all pods: kubelet's credential providers, and a
//! docker config of the driver's own.

use super::docker_config::{DockerConfig, DockerConfigError, Format, MAX_BYTES};
use super::provider::{self, Provider};
use super::{Credential, CredentialError, Look, Origin};
use crate::chain::Chain;
use rustix::fs::fstat;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

/// Where the node's credentials are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialSettings {
    /// The driver's docker config, if it has one. It need not be there (yet).
    pub docker_config: Option<PathBuf>,
    /// kubelet's credential providers, if they are used.
    pub providers: Option<ProviderSettings>,
}

/// Where kubelet's credential providers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderSettings {
    /// kubelet's `CredentialProviderConfig`, or a directory of such.
    pub config: PathBuf,
    /// The directory of the programs.
    pub bin_dir: PathBuf,
}

/// The credentials of the node, for as long as the process lives.
#[derive(Debug, Default)]
pub struct NodeCredentials {
    providers: Vec<Provider>,
    docker_config: Option<WatchedConfig>,
}

impl NodeCredentials {
    /// Reads the configuration of the providers, which stays as it is until the
    /// process ends, as it does for kubelet. The docker config is read when it is
    /// needed, and again when it has changed.
    pub fn open(settings: &CredentialSettings) -> Result<Self, CredentialError> {
        let mut providers = Vec::new();
        if let Some(ProviderSettings { config, bin_dir }) = &settings.providers {
            for settings in provider::read(config)? {
                let provider = Provider::new(settings, bin_dir);
                if let Err(error) = provider.find() {
                    // It can come later, and other pods need none.
                    tracing::warn!(provider = %provider.origin(), %error, "not there");
                }
                providers.push(provider);
            }
        }
        Ok(NodeCredentials {
            providers,
            docker_config: settings.docker_config.clone().map(WatchedConfig::new),
        })
    }

    /// Adds what the node has for an image.
    pub(super) fn look(&self, host: &str, repository: &str, look: &mut Look) {
        provider::ask_all(&self.providers, host, repository, look);
        if let Some(config) = &self.docker_config {
            let origin = || Origin::Node;
            match config.read() {
                Ok(Some(config)) => {
                    let found = config.logins.find(host, repository).into_iter().cloned();
                    look.add(
                        origin(),
                        found.map(|login| Credential {
                            origin: origin(),
                            login,
                        }),
                    );
                }
                Ok(None) => look.note("the node has no file of registry credentials"),
                Err(Broken) => look.note(
                    "the node's registry credentials cannot be read (the plugin's log says why)",
                ),
            }
        }
    }
}

/// A docker config that is read again when it has changed.
#[derive(Debug)]
struct WatchedConfig {
    path: PathBuf,
    last: Mutex<Option<Last>>,
}

/// The file cannot be used; why is in the log, and not for a pod's author.
#[derive(Debug, Clone, Copy)]
struct Broken;

#[derive(Debug)]
struct Last {
    /// None where there was no file.
    stamp: Option<Stamp>,
    result: Result<Option<Arc<DockerConfig>>, String>,
}

/// By what a file is known to be the same. Kubernetes replaces files of a secret
/// by others, so that the inode is another one then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl WatchedConfig {
    fn new(path: PathBuf) -> Self {
        WatchedConfig {
            path,
            last: Mutex::new(None),
        }
    }

    /// The file as it is now. That it is broken is logged once for each time that
    /// it is broken in another way.
    fn read(&self) -> Result<Option<Arc<DockerConfig>>, Broken> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (stamp, result) = match open(&self.path) {
            Ok(None) => (None, Ok(None)),
            Ok(Some((file, stamp))) => match &*last {
                Some(last) if last.stamp == Some(stamp) => {
                    return last.result.clone().map_err(|_| Broken);
                }
                _ => (Some(stamp), parse(&self.path, file).map(Some)),
            },
            Err(source) => {
                let path = self.path.clone();
                (None, Err(CredentialError::Read { path, source }))
            }
        };
        let result = result.map_err(|error| Chain(&error).to_string());
        if let Err(why) = &result {
            let was = last.as_ref().and_then(|last| last.result.as_ref().err());
            if was != Some(why) {
                tracing::error!(why, "the node's registry credentials cannot be read");
            }
        }
        if let Ok(Some(config)) = &result
            && (config.store.is_some() || !config.helpers.is_empty())
        {
            tracing::warn!(
                path = %self.path.display(),
                "credential helpers of a docker config are for commands only; use kubelet's credential providers"
            );
        }
        let result = &last.insert(Last { stamp, result }).result;
        result.clone().map_err(|_| Broken)
    }
}

/// Reads a docker config that a person named; none where there is no such file.
pub(super) fn read_config(path: &Path) -> Result<Option<DockerConfig>, CredentialError> {
    let opened = open(path).map_err(|source| CredentialError::Read {
        path: path.to_owned(),
        source,
    })?;
    opened.map(|(file, _)| parse_owned(path, file)).transpose()
}

fn open(path: &Path) -> io::Result<Option<(File, Stamp)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = fstat(&file)?;
    let stamp = Stamp {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    };
    Ok(Some((file, stamp)))
}

fn parse(path: &Path, file: File) -> Result<Arc<DockerConfig>, CredentialError> {
    parse_owned(path, file).map(Arc::new)
}

fn parse_owned(path: &Path, file: File) -> Result<DockerConfig, CredentialError> {
    // All the room that there can be, for growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    file.take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| CredentialError::Read {
            path: path.to_owned(),
            source,
        })?;
    DockerConfig::parse(&bytes, Format::Any).map_err(|source: DockerConfigError| {
        CredentialError::File {
            path: path.to_owned(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Login;
    use super::*;
    use crate::secret::Secret;

    fn look(node: &NodeCredentials) -> (Vec<Credential>, String) {
        let mut look = Look::new("registry.example", "app");
        node.look("registry.example", "app", &mut look);
        (look.credentials, look.notes.join("; "))
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let settings = CredentialSettings {
            docker_config: Some(path.clone()),
            providers: None,
        };
        let node = NodeCredentials::open(&settings).unwrap();
        let none = "the node has no file of registry credentials";
        assert_eq!(look(&node), (Vec::new(), none.to_owned()));
        for password in ["one", "two"] {
            let json = format!(
                r#"{{"auths": {{"registry.example": {{"username": "user", "password": "{password}"}}}}}}"#
            );
            // As Kubernetes does it.
            std::fs::write(dir.path().join("new"), json).unwrap();
            std::fs::rename(dir.path().join("new"), &path).unwrap();
            let (credentials, notes) = look(&node);
            assert_eq!(notes, "the node's registry credentials have an entry");
            let expected = Credential {
                origin: Origin::Node,
                login: Login::Basic {
                    username: "user".to_owned(),
                    password: Secret::new(password.to_owned()),
                },
            };
            assert_eq!(credentials, [expected]);
            // And not where it has not.
            let read = |node: &NodeCredentials| {
                let config = node.docker_config.as_ref().unwrap();
                config.read().unwrap().unwrap()
            };
            assert!(Arc::ptr_eq(&read(&node), &read(&node)));
        }
        std::fs::write(
            &path,
            r#"{"auths": {"registry.example": {"auth": "hunter2"}}}"#,
        )
        .unwrap();
        let (credentials, notes) = look(&node);
        assert!(credentials.is_empty());
        assert_eq!(
            notes,
            "the node's registry credentials cannot be read (the plugin's log says why)"
        );
        assert!(!format!("{node:?}").contains("hunter"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(look(&node).1, none);
        std::fs::create_dir(&path).unwrap();
        assert!(look(&node).1.contains("cannot be read"));
    }
}
