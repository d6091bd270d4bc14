//! The options of whatever pulls images: how registries are reached, and for how
//! long what they said counts.

use super::{ConfigFault, Environment, directory};
use crate::chain::Chain;
use crate::image::registry::{AllowList, DownloadSettings, Proxies, RegistrySettings};
use crate::volume::PullOptions;
use clap::builder::OsStringValueParser;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Where containerd keeps what it is told of registries.
const DEFAULT_CERTS_DIR: &str = "/etc/containerd/certs.d";
/// Downloads at the same time, in all.
const DEFAULT_DOWNLOADS: usize = 6;
/// And from one host, as containerd's default.
const DEFAULT_DOWNLOADS_PER_HOST: usize = 3;

/// Options of whatever pulls images.
#[derive(Debug, Clone, clap::Args)]
pub struct PullArgs {
    /// Directory with a directory for each registry, in which a hosts.toml says
    /// how it is reached: the node's containerd has it. Can be given several
    /// times; in the variable, a colon is between two. The first that has
    /// something for a registry counts.
    #[arg(
        long = "certs-dir", env = "AUFS_CSI_CERTS_DIR", hide_env_values = true, value_name = "DIR",
        value_delimiter = ':', value_parser = OsStringValueParser::new(),
        default_value = DEFAULT_CERTS_DIR, help_heading = "Registries"
    )]
    pub certs_dir: Vec<OsString>,

    /// File with the certificates of the authorities that are trusted.
    /// [default: SSL_CERT_FILE or the node's own bundle]
    #[arg(
        long,
        env = "AUFS_CSI_CA_BUNDLE",
        hide_env_values = true,
        value_name = "FILE",
        help_heading = "Registries"
    )]
    pub ca_bundle: Option<PathBuf>,

    /// Layers that are fetched at the same time.
    #[arg(
        long,
        env = "AUFS_CSI_MAX_DOWNLOADS",
        hide_env_values = true,
        value_name = "NUMBER",
        default_value_t = DEFAULT_DOWNLOADS,
        help_heading = "Registries"
    )]
    pub max_downloads: usize,

    /// Layers that are fetched at the same time from one host.
    #[arg(
        long,
        env = "AUFS_CSI_MAX_DOWNLOADS_PER_REGISTRY",
        hide_env_values = true,
        value_name = "NUMBER",
        default_value_t = DEFAULT_DOWNLOADS_PER_HOST,
        help_heading = "Registries"
    )]
    pub max_downloads_per_registry: usize,
}

impl Default for PullArgs {
    fn default() -> Self {
        PullArgs {
            certs_dir: vec![DEFAULT_CERTS_DIR.into()],
            ca_bundle: None,
            max_downloads: DEFAULT_DOWNLOADS,
            max_downloads_per_registry: DEFAULT_DOWNLOADS_PER_HOST,
        }
    }
}

impl PullArgs {
    /// Validates the options.
    pub fn validate(
        self,
        environment: Environment<'_>,
        faults: &mut Vec<ConfigFault>,
    ) -> Option<PullOptions> {
        let before = faults.len();
        let certs_dirs = self
            .certs_dir
            .into_iter()
            .filter(|path| !path.is_empty())
            .filter_map(|path| directory("--certs-dir", Some(path.into()), "", faults))
            .collect();
        let ca_bundle = self
            .ca_bundle
            .or_else(|| environment("SSL_CERT_FILE").map(PathBuf::from))
            .and_then(|path| directory("--ca-bundle", Some(path), "", faults));
        for (option, number) in [
            ("--max-downloads", self.max_downloads),
            (
                "--max-downloads-per-registry",
                self.max_downloads_per_registry,
            ),
        ] {
            if number == 0 {
                faults.push(ConfigFault::Value {
                    option,
                    value: number.to_string(),
                    expected: "at least 1",
                });
            }
        }
        let proxies = Proxies::from_environment(environment).unwrap_or_else(|error| {
            faults.push(ConfigFault::Proxy {
                reason: Chain(&error).to_string(),
            });
            Proxies::default()
        });
        if faults.len() > before {
            return None;
        }
        Some(PullOptions {
            registry: RegistrySettings {
                certs_dirs,
                ca_bundle,
                proxies,
                downloads: DownloadSettings {
                    in_all: self.max_downloads,
                    per_host: self.max_downloads_per_registry,
                    ..DownloadSettings::default()
                },
                ..RegistrySettings::default()
            },
            ..PullOptions::default()
        })
    }
}

/// The operator's list of what pods may name; without one, all.
pub(super) fn allow_list(patterns: &[String], faults: &mut Vec<ConfigFault>) -> AllowList {
    let patterns: Vec<&String> = patterns
        .iter()
        // A variable that ends in a comma, or is empty, has an empty part.
        .filter(|pattern| !pattern.trim().is_empty())
        .collect();
    if patterns.is_empty() {
        return AllowList::all();
    }
    let mut parsed = Vec::with_capacity(patterns.len());
    for pattern in patterns {
        match pattern.trim().parse() {
            Ok(pattern) => parsed.push(pattern),
            Err(error) => faults.push(ConfigFault::Pattern(error)),
        }
    }
    AllowList::new(parsed)
}

/// A time as Kubernetes writes it: `90s`, `10m`, `24h`, `1h30m`.
pub(super) fn duration(
    option: &'static str,
    text: &str,
    faults: &mut Vec<ConfigFault>,
) -> Option<Duration> {
    let parsed = parse_duration(text);
    if parsed.is_none() {
        faults.push(ConfigFault::Value {
            option,
            value: text.to_owned(),
            expected: "a time such as 90s, 10m or 24h",
        });
    }
    parsed
}

pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            _ => return None,
        };
        sum = sum.checked_add(unit)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_in_kubernetes() {
        for (text, seconds) in [
            ("90s", Some(90.0)),
            ("10m", Some(600.0)),
            ("24h", Some(86_400.0)),
            ("1h30m", Some(5_400.0)),
            ("500ms", Some(0.5)),
            ("0s", Some(0.0)),
            ("", None),
            ("10", None),
            ("-1s", None),
            ("1d", None),
            ("h", None),
            ("99999999999999999999h", None),
        ] {
            let found = parse_duration(text).map(|time| time.as_secs_f64());
            assert_eq!(found, seconds, "{text:?}");
        }
    }

    #[test]
    fn all_faults_of_registries_are_found_at_once() {
        let mut faults = Vec::new();
        let args = PullArgs {
            certs_dir: vec!["certs.d".into()],
            ca_bundle: Some("bundle.pem".into()),
            max_downloads: 0,
            max_downloads_per_registry: 0,
        };
        let environment = |name: &str| (name == "HTTPS_PROXY").then(|| "ftp://proxy".to_owned());
        assert!(args.validate(&environment, &mut faults).is_none());
        assert_eq!(faults.len(), 5, "{faults:?}");
        allow_list(&["https://registry".to_owned(), String::new()], &mut faults);
        assert!(matches!(faults.last(), Some(ConfigFault::Pattern(_))));
        assert_eq!(allow_list(&[String::new()], &mut faults), AllowList::all());
    }

    #[test]
    fn the_variable_of_other_programs_names_the_bundle() {
        let environment = |name: &str| (name == "SSL_CERT_FILE").then(|| "/ca.pem".to_owned());
        let options = PullArgs::default()
            .validate(&environment, &mut Vec::new())
            .unwrap();
        assert_eq!(options.registry.ca_bundle, Some(PathBuf::from("/ca.pem")));
        assert_eq!(
            options.registry.certs_dirs,
            [PathBuf::from(DEFAULT_CERTS_DIR)]
        );
    }
}
