//! Which hosts are asked for the images of a registry: containerd's `certs.d`.
//!
//! In each of the directories that the operator gave, in order, the first of
//! `<host>_<port>_`, `<host>:<port>` and `_default` that exists counts. If it has
//! a `hosts.toml`, that is read; else `*.crt` in it are certificates of
//! authorities, and `*.cert` with `*.key` are ours, as Docker has it. What is on
//! disk is looked at for each request, and read only when it changed.
//!
//! **A registry on loopback that nothing is said about** is treated as containerd
//! does it (`ConfigureHosts` in core/remotes/docker/config/hosts.go, 2.1): on port
//! 80 it is asked in plain HTTP; on 443, or without a port, with TLS; on any other
//! port with TLS, and if it does not speak that, in plain HTTP. Its certificate is
//! not verified then: nobody but this machine is between. Everything else is asked
//! with TLS, and in plain HTTP only where a file says `http://`.

mod parse;
mod place;

pub(super) use place::{Origin, Place};

use super::error::RegistryError;
use super::stamp::{Stamp, Stamped, Stamps};
use parse::{HostEntry, HostsFile};
use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const HOSTS_FILE: &str = "hosts.toml";
/// What counts for registries without a directory of their own.
const DEFAULT_DIR: &str = "_default";
/// The longest `hosts.toml`, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The most registries whose hosts are remembered. Pods name registries.
const MAX_REMEMBERED: usize = 256;

/// Knows the hosts of registries.
#[derive(Debug)]
pub(super) struct Hosts {
    dirs: Vec<PathBuf>,
    known: Mutex<HashMap<String, Stamped<Arc<[Place]>>>>,
}

impl Hosts {
    pub(super) fn new(dirs: Vec<PathBuf>) -> Self {
        Hosts {
            dirs,
            known: Mutex::default(),
        }
    }

    /// The hosts of `registry` (host and port of an image's name), in the order
    /// in which they are asked.
    pub(super) fn places(&self, registry: &str) -> Result<Arc<[Place]>, RegistryError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = known.get(registry).and_then(Stamped::if_unchanged) {
            return Ok(Arc::clone(places));
        }
        known.remove(registry);
        let (places, stamps) = self.read(registry)?;
        let places: Arc<[Place]> = places.into();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        let entry = Stamped::new(Arc::clone(&places), stamps);
        known.insert(registry.to_owned(), entry);
        Ok(places)
    }

    /// Reads what there is, and says what that depended on. Stamps are taken
    /// before the reading, so that a change during it is seen the next time.
    fn read(&self, registry: &str) -> Result<(Vec<Place>, Stamps), RegistryError> {
        let mut stamps = Vec::new();
        for base in &self.dirs {
            for name in directory_names(registry) {
                let dir = base.join(name);
                let stamp = Stamp::of(&dir);
                stamps.push((dir.clone(), stamp));
                match std::fs::metadata(&dir) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(config(&dir, error)),
                }
                let file = dir.join(HOSTS_FILE);
                stamps.push((file.clone(), Stamp::of(&file)));
                let text = read_text(&file)?;
                let hosts = match text.filter(|text| !text.is_empty()) {
                    Some(text) => parse::parse(&text, &dir).map_err(|fault| {
                        config(&file, format!("{} {}", fault.key, fault.reason))
                    })?,
                    None => HostsFile {
                        hosts: Vec::new(),
                        server: certificates(&dir)?,
                    },
                };
                let places = places_of(registry, hosts)
                    .map_err(|fault| config(&file, format!("{} {}", fault.key, fault.reason)))?;
                return Ok((places, stamps));
            }
        }
        let nothing = HostsFile {
            hosts: Vec::new(),
            server: HostEntry::default(),
        };
        let places = places_of(registry, nothing)
            .map_err(|fault| config(Path::new(registry), fault.reason))?;
        Ok((places, stamps))
    }
}

fn places_of(registry: &str, file: HostsFile) -> Result<Vec<Place>, parse::Fault> {
    let mut places = Vec::with_capacity(file.hosts.len() + 1);
    for host in file.hosts {
        places.push(Place::new(registry, host)?);
    }
    places.push(Place::new(registry, file.server)?);
    Ok(places)
}

/// Names that a registry's directory may have, the first first.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = Vec::with_capacity(3);
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push(DEFAULT_DIR.to_owned());
    names
}

fn config(path: &Path, reason: impl ToString) -> RegistryError {
    RegistryError::Config {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}

fn read_text(path: &Path) -> Result<Option<String>, RegistryError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(config(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| config(path, error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(config(
            path,
            format!("it has more than {MAX_FILE_BYTES} bytes"),
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| config(path, "it is not UTF-8"))?;
    Ok(Some(text))
}

/// Docker's way: certificates by what their files' names end with.
fn certificates(dir: &Path) -> Result<HostEntry, RegistryError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| config(dir, error))? {
        let entry = entry.map_err(|error| config(dir, error))?;
        let path = entry.path();
        if !path.is_dir() {
            names.push(path);
        }
    }
    names.sort();
    let ends = |path: &PathBuf, end: &str| {
        let extension = path.extension();
        extension.is_some_and(|extension| extension == end)
    };
    let client = names.iter().filter(|path| ends(path, "cert"));
    Ok(HostEntry {
        ca: names
            .iter()
            .filter(|path| ends(path, "crt"))
            .cloned()
            .collect(),
        client: client
            .map(|path| {
                let key = path.with_extension("key");
                (path.clone(), key.exists().then_some(key))
            })
            .collect(),
        ..HostEntry::default()
    })
}

#[cfg(test)]
mod tests;
