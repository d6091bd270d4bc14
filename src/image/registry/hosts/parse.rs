//! `hosts.toml`, as containerd reads it. Pure.

use crate::image::printable;
use crate::secret::Secret;
use reqwest::Url;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What a file says about a registry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HostsFile {
    /// Asked in this order, which is that of the file.
    pub(super) hosts: Vec<HostEntry>,
    /// Asked after them. Without a URL, it is the registry itself.
    pub(super) server: HostEntry,
}

/// What it says about one host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HostEntry {
    /// Where its API begins; the path has `/v2` already, unless the file says
    /// that it shall not.
    pub(super) url: Option<Url>,
    pub(super) capabilities: Capabilities,
    pub(super) ca: Vec<PathBuf>,
    /// Certificates with their keys; a key that is in the certificate's file has
    /// no path.
    pub(super) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(super) skip_verify: Option<bool>,
    /// They may hold credentials.
    pub(super) header: Vec<(String, Vec<Secret>)>,
    pub(super) dial_timeout: Option<Duration>,
}

/// What a host is good for. Pushing is not for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) pull: bool,
    /// Whether it may say what a tag means.
    pub(super) resolve: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities {
            pull: true,
            resolve: true,
        }
    }
}

/// What is wrong with a file: the key, and why. Values are not in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) key: String,
    pub(super) reason: String,
}

impl Fault {
    fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Fault {
            key: key.into(),
            reason: reason.into(),
        }
    }
}

/// Reads a file whose paths are relative to `dir`.
pub(super) fn parse(text: &str, dir: &Path) -> Result<HostsFile, Fault> {
    let document = DeTable::parse(text).map_err(|error| {
        // Only the message: the whole error quotes the line, and a line may
        // have a header with a password.
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |before| before.matches('\n').count() + 1);
        Fault::new(format!("line {line}"), printable(error.message()))
    })?;
    let root = document.get_ref();
    let mut hosts = Vec::new();
    if let Some(table) = find(root, "host") {
        let DeValue::Table(table) = table else {
            return Err(Fault::new("host", "must be tables: [host.\"https://…\"]"));
        };
        // The map is in the order of the alphabet; where the keys stand in the
        // text is the order that the operator chose.
        let mut entries: Vec<(usize, &str, &DeValue<'_>)> = table
            .iter()
            .map(|(key, value)| (key.span().start, key.get_ref().as_ref(), value.get_ref()))
            .collect();
        entries.sort_by_key(|(place, ..)| *place);
        for (_, url, value) in entries {
            let prefix = format!("host.{:?}.", printable(url));
            let DeValue::Table(table) = value else {
                return Err(Fault::new(prefix.trim_end_matches('.'), "must be a table"));
            };
            hosts.push(entry(Some(url), table, &prefix, dir)?);
        }
    }
    let server = match find(root, "server") {
        Some(value) => Some(string(value, "server")?).filter(|server| !server.is_empty()),
        None => None,
    };
    Ok(HostsFile {
        hosts,
        server: entry(server, root, "", dir)?,
    })
}

fn find<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<&'t DeValue<'i>> {
    let mut entries = table.iter();
    let found = entries.find(|(key, _)| key.get_ref().as_ref() == name);
    found.map(|(_, value)| value.get_ref())
}

/// One host's keys. Keys that are not known are passed over, as containerd does:
/// a newer containerd may know them.
fn entry(
    url: Option<&str>,
    table: &DeTable<'_>,
    prefix: &str,
    dir: &Path,
) -> Result<HostEntry, Fault> {
    let key = |name: &str| format!("{prefix}{name}");
    let mut found = HostEntry::default();
    let mut override_path = false;
    for (name, value) in table {
        let (name, value) = (name.get_ref().as_ref(), value.get_ref());
        match name {
            "capabilities" => found.capabilities = capabilities(value, &key(name))?,
            "ca" => found.ca = paths(value, &key(name), dir)?,
            "client" => found.client = pairs(value, &key(name), dir)?,
            "skip_verify" => found.skip_verify = Some(boolean(value, &key(name))?),
            "override_path" => override_path = boolean(value, &key(name))?,
            "dial_timeout" => {
                let text = string(value, &key(name))?;
                let timeout = duration(text).ok_or_else(|| {
                    Fault::new(key(name), "must be a time such as \"3s\" or \"500ms\"")
                })?;
                // Nothing and zero mean no time of its own.
                found.dial_timeout = (!timeout.is_zero()).then_some(timeout);
            }
            "header" => found.header = header(value, &key(name))?,
            _ => {}
        }
    }
    if let Some(text) = url {
        let name = match prefix {
            "" => "server",
            prefix => prefix.trim_end_matches('.'),
        };
        found.url = Some(base(text, override_path).map_err(|reason| Fault::new(name, reason))?);
    }
    Ok(found)
}

/// Where the API of a host begins.
fn base(text: &str, override_path: bool) -> Result<Url, &'static str> {
    let text = match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    };
    let mut url: Url = text.parse().map_err(|_| "is not a URL")?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
        return Err("must begin with https:// or http:// and a host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not have credentials in it");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must end with its path");
    }
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    url.set_path(&path);
    Ok(url)
}

fn string<'t>(value: &'t DeValue<'_>, key: &str) -> Result<&'t str, Fault> {
    match value {
        DeValue::String(text) => Ok(text.as_ref()),
        _ => Err(Fault::new(key, "must be a string")),
    }
}

fn boolean(value: &DeValue<'_>, key: &str) -> Result<bool, Fault> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err(Fault::new(key, "must be true or false")),
    }
}

/// A string, or a list of them.
fn strings<'t>(value: &'t DeValue<'_>, key: &str) -> Result<Vec<&'t str>, Fault> {
    match value {
        DeValue::String(text) => Ok(vec![text.as_ref()]),
        DeValue::Array(list) => list
            .iter()
            .map(|value: &Spanned<DeValue<'_>>| string(value.get_ref(), key))
            .collect(),
        _ => Err(Fault::new(key, "must be a string or a list of strings")),
    }
}

fn capabilities(value: &DeValue<'_>, key: &str) -> Result<Capabilities, Fault> {
    let names = strings(value, key)?;
    if names.is_empty() {
        return Ok(Capabilities::default());
    }
    let mut found = Capabilities {
        pull: false,
        resolve: false,
    };
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" | "referrers" => {}
            other => {
                let reason = format!("{:?} is no capability", printable(other));
                return Err(Fault::new(key, reason));
            }
        }
    }
    Ok(found)
}

fn paths(value: &DeValue<'_>, key: &str, dir: &Path) -> Result<Vec<PathBuf>, Fault> {
    let paths = strings(value, key)?;
    if paths.contains(&"") {
        return Err(Fault::new(key, "has an empty path"));
    }
    Ok(paths.into_iter().map(|path| dir.join(path)).collect())
}

/// A path, a list of paths, or a list of pairs of a certificate and its key.
fn pairs(
    value: &DeValue<'_>,
    key: &str,
    dir: &Path,
) -> Result<Vec<(PathBuf, Option<PathBuf>)>, Fault> {
    let DeValue::Array(list) = value else {
        let paths = paths(value, key, dir)?;
        return Ok(paths.into_iter().map(|path| (path, None)).collect());
    };
    let mut found = Vec::new();
    for value in list.iter() {
        let parts = strings(value.get_ref(), key)?;
        let (certificate, own_key) = match (value.get_ref(), &parts[..]) {
            (DeValue::String(_), [certificate]) => (*certificate, ""),
            (_, [certificate, own_key]) => (*certificate, *own_key),
            _ => return Err(Fault::new(key, "has a pair that is not two paths")),
        };
        if certificate.is_empty() {
            return Err(Fault::new(key, "has an empty path"));
        }
        let own_key = (!own_key.is_empty()).then(|| dir.join(own_key));
        found.push((dir.join(certificate), own_key));
    }
    Ok(found)
}

fn header(value: &DeValue<'_>, key: &str) -> Result<Vec<(String, Vec<Secret>)>, Fault> {
    let DeValue::Table(table) = value else {
        return Err(Fault::new(key, "must be a table"));
    };
    let mut found = Vec::new();
    for (name, value) in table {
        let name = name.get_ref().as_ref();
        let key = format!("{key}.{}", printable(name));
        let valid = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(valid) {
            return Err(Fault::new(key, "is not the name of a header"));
        }
        let values = strings(value.get_ref(), &key)?;
        if values
            .iter()
            .any(|value| value.chars().any(char::is_control))
        {
            return Err(Fault::new(key, "has a control character"));
        }
        let values = values
            .into_iter()
            .map(|value| Secret::new(value.to_owned()));
        found.push((name.to_owned(), values.collect()));
    }
    Ok(found)
}

/// A time as Go writes them: numbers with units, `1m30s`, `1.5h`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    if text.is_empty() || text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * seconds;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests;
