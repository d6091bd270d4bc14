//! kubelet's `CredentialProviderConfig`.

use super::super::CredentialError;
use super::super::matching::Pattern;
use super::protocol::{Version, parse_duration};
use crate::image::printable;
use crate::yaml::{self, YamlError};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

const API_VERSIONS: [&str; 3] = [
    "kubelet.config.k8s.io/v1",
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
];
const KIND: &str = "CredentialProviderConfig";
/// What a file in a directory of configuration is called.
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];
/// The most files of one directory.
const MAX_FILES: usize = 100;

/// Why a configuration of credential providers cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read as one.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// It is something else.
    #[error("it must be a {KIND} of kubelet.config.k8s.io/v1")]
    Kind,
    /// It has no providers.
    #[error("it has no providers")]
    Empty,
    /// A provider is not described as it must be.
    #[error("provider {name:?} {problem}")]
    Provider {
        /// Its name, shortened.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// One provider. Its environment may have secrets in it, so it is not shown.
pub(in crate::image::credentials) struct Settings {
    pub(super) name: String,
    pub(super) match_images: Vec<Pattern>,
    pub(super) default_duration: Duration,
    pub(super) version: Version,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("name", &self.name)
            .field("match_images", &self.match_images)
            .field("default_duration", &self.default_duration)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The file as it is written. Fields that a newer kubelet has are skipped: the
/// file is kubelet's, which has found what is misspelt in it.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    api_version: Option<String>,
    kind: Option<String>,
    providers: Option<Vec<RawProvider>>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProvider {
    #[serde(default)]
    name: String,
    match_images: Option<Vec<String>>,
    default_cache_duration: Option<String>,
    api_version: Option<String>,
    args: Option<Vec<String>>,
    env: Option<Vec<RawVariable>>,
    token_attributes: Option<RawToken>,
}

#[derive(serde::Deserialize)]
struct RawVariable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawToken {
    require_service_account: Option<bool>,
}

/// Reads the providers of a file, or of all files of a directory in the order of
/// their names.
pub(in crate::image::credentials) fn read(path: &Path) -> Result<Vec<Settings>, CredentialError> {
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |source| CredentialError::Read { path, source }
    };
    let mut providers: Vec<Settings> = Vec::new();
    for file in files(path).map_err(cannot(path))? {
        let mut bytes = Vec::new();
        File::open(&file)
            .and_then(|opened| {
                opened
                    .take(yaml::MAX_BYTES as u64 + 1)
                    .read_to_end(&mut bytes)
            })
            .map_err(cannot(&file))?;
        let found = parse(&bytes).and_then(|found| {
            let names = || providers.iter().map(|provider| &provider.name);
            match found
                .iter()
                .find(|new| names().any(|name| *name == new.name))
            {
                Some(twice) => Err(problem(&twice.name, "is there twice")),
                None => Ok(found),
            }
        });
        providers
            .extend(found.map_err(|source| CredentialError::Providers { path: file, source })?);
    }
    if providers.is_empty() && path.is_dir() {
        return Err(CredentialError::NoConfig {
            path: path.to_owned(),
        });
    }
    Ok(providers)
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.metadata()?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir()? {
        let file = entry?.path();
        let is_one = file
            .extension()
            .is_some_and(|extension| EXTENSIONS.iter().any(|one| extension == *one));
        if is_one && file.is_file() && files.len() < MAX_FILES {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn problem(name: &str, problem: &'static str) -> ConfigError {
    ConfigError::Provider {
        name: printable(name),
        problem,
    }
}

/// The providers that can be asked.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Settings>, ConfigError> {
    let raw: Raw = yaml::read(bytes)?;
    let is_kind = raw.kind.as_deref() == Some(KIND)
        && raw
            .api_version
            .is_some_and(|version| API_VERSIONS.contains(&version.as_str()));
    if !is_kind {
        return Err(ConfigError::Kind);
    }
    let raw = raw.providers.unwrap_or_default();
    if raw.is_empty() {
        return Err(ConfigError::Empty);
    }
    let mut providers: Vec<Settings> = Vec::new();
    for provider in raw {
        if providers.iter().any(|other| other.name == provider.name) {
            return Err(problem(&provider.name, "is there twice"));
        }
        providers.extend(provider.settings()?);
    }
    Ok(providers)
}

impl RawProvider {
    /// None for a provider that only works with a token of the pod's service
    /// account: kubelet has such tokens, a CSI driver has none for this.
    fn settings(self) -> Result<Option<Settings>, ConfigError> {
        let fault = |what| problem(&self.name, what);
        let name = self.name.as_str();
        if name.is_empty() || [".", ".."].contains(&name) || name.contains(['/', ' ', '\0']) {
            return Err(fault(
                "must have the name of a file, without slashes and blanks",
            ));
        }
        let version = self.api_version.as_deref().and_then(Version::parse);
        let version = version.ok_or_else(|| {
            fault(
                "needs an apiVersion of credentialprovider.kubelet.k8s.io: v1, v1beta1 or v1alpha1",
            )
        })?;
        let images = self.match_images.iter().flatten();
        let match_images: Vec<Pattern> = images
            .map(|image| Pattern::parse(image))
            .collect::<Option<_>>()
            .ok_or_else(|| fault("has an entry of matchImages that is not HOST[:PORT][/PATH]"))?;
        if match_images.is_empty() {
            return Err(fault("has no matchImages"));
        }
        let duration = self.default_cache_duration.as_deref();
        let default_duration = duration
            .and_then(parse_duration)
            .ok_or_else(|| fault("needs a defaultCacheDuration such as 10m or 1h30m"))?;
        let variables = self.env.iter().flatten();
        if variables
            .clone()
            .any(|variable| variable.name.is_empty() || variable.name.contains(['=', '\0']))
        {
            return Err(fault("has a variable without a name in its env"));
        }
        if let Some(token) = &self.token_attributes {
            if token.require_service_account != Some(false) {
                tracing::warn!(
                    provider = printable(name),
                    "the credential provider wants tokens of service accounts, which only kubelet can give it; it is not used"
                );
                return Ok(None);
            }
            tracing::warn!(
                provider = printable(name),
                "the credential provider is asked without a token of the pod's service account"
            );
        }
        Ok(Some(Settings {
            match_images,
            default_duration,
            version,
            args: self.args.unwrap_or_default(),
            env: self
                .env
                .unwrap_or_default()
                .into_iter()
                .map(|variable| (variable.name, variable.value))
                .collect(),
            name: self.name,
        }))
    }
}
