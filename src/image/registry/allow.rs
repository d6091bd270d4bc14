//! Which registries and repositories the operator lets pods name. Pure.
//!
//! ```text
//! registry.example           everything in that registry
//! registry.example:5000/team/*   what is below team/, at any depth
//! *.example                  every registry of that domain, without a port
//! docker.io/library/*        Docker's own images
//! ghcr.io/*/app              one component of any name
//! **                         everything
//! ```
//!
//! `*` stands for any characters of one component (of the host with its port, or
//! of one part of the path); `**`, and a `*` that is the whole last component,
//! for any number of components.

use crate::image::printable;
use crate::image::reference::ImageName;
use std::fmt;
use std::str::FromStr;

/// What stands for Docker Hub in image names.
const DOCKER_HUB: &str = "docker.io";
/// Other names of it that people write.
const DOCKER_HUB_ALIASES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "hub.docker.com"];

/// The operator's list of what may be pulled. The default allows everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowList(Option<Vec<Pattern>>);

/// Why a text is no pattern of an [`AllowList`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a pattern of allowed images: {reason}")]
pub struct AllowError {
    /// The text, shortened.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// Of the host with its port.
    host: String,
    /// Of each component of the repository; none for all repositories.
    path: Option<Vec<Part>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// One component, in which `*` stands for any characters.
    One(String),
    /// Any number of components.
    Any,
    /// One component or more, at the end.
    Below,
}

impl Default for AllowList {
    fn default() -> Self {
        AllowList::all()
    }
}

impl AllowList {
    /// Everything.
    pub fn all() -> Self {
        AllowList(None)
    }

    /// What one of `patterns` fits, and nothing else; nothing at all if there are none.
    pub fn new(patterns: Vec<Pattern>) -> Self {
        AllowList(Some(patterns))
    }

    /// Whether pods may name this image.
    pub fn allows(&self, name: &ImageName) -> bool {
        match &self.0 {
            None => true,
            Some(patterns) => patterns
                .iter()
                .any(|pattern| pattern.fits(name.registry(), name.repository())),
        }
    }
}

impl Pattern {
    fn fits(&self, registry: &str, repository: &str) -> bool {
        let components: Vec<&str> = repository.split('/').collect();
        // Host names are the same in both cases.
        glob(&self.host, &registry.to_ascii_lowercase())
            && self
                .path
                .as_ref()
                .is_none_or(|parts| fits_parts(parts, &components))
    }
}

impl FromStr for Pattern {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        let fault = |reason| AllowError {
            pattern: printable(text),
            reason,
        };
        if text.contains("://") {
            return Err(fault("leave the scheme away"));
        }
        let (host, path) = match text.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (text, None),
        };
        let host = match host {
            "" => return Err(fault("it has no registry")),
            "**" => "*",
            host => host,
        };
        let known = |c: char| c.is_ascii_alphanumeric() || "._-*:[]".contains(c);
        if !host.chars().all(known) {
            return Err(fault("it has a character that no registry has"));
        }
        let is_host = host == "localhost" || host.contains(['.', ':', '*', '[']);
        if path.is_some() && !is_host {
            // In an image's name, this would be a repository of Docker Hub.
            return Err(fault("begin with the registry, such as docker.io/"));
        }
        let mut host = host.to_ascii_lowercase();
        if DOCKER_HUB_ALIASES.contains(&host.as_str()) {
            host = DOCKER_HUB.to_owned();
        }
        let path = match path {
            None => None,
            Some(path) => {
                let mut parts = Vec::new();
                let count = path.split('/').count();
                for (number, component) in path.split('/').enumerate() {
                    parts.push(match component {
                        "" => return Err(fault("a part of its path is empty")),
                        "*" | "**" if number + 1 == count => Part::Below,
                        "**" => Part::Any,
                        one if one.contains(':') => {
                            return Err(fault("it may not name a tag"));
                        }
                        one if !one.chars().all(is_of_component) => {
                            return Err(fault("it has a character that no repository has"));
                        }
                        one => Part::One(one.to_owned()),
                    });
                }
                // As in images' names, where busybox is library/busybox.
                if let ([Part::One(_)], DOCKER_HUB) = (&parts[..], host.as_str()) {
                    parts.insert(0, Part::One("library".to_owned()));
                }
                Some(parts)
            }
        };
        Ok(Pattern { host, path })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        for part in self.path.iter().flatten() {
            match part {
                Part::One(text) => write!(f, "/{text}")?,
                Part::Any => f.write_str("/**")?,
                Part::Below => f.write_str("/*")?,
            }
        }
        Ok(())
    }
}

fn is_of_component(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || "._-*".contains(c)
}

/// Whether the components are what the parts describe. Each part is compared
/// with each component at most once, so this does not explode.
fn fits_parts(parts: &[Part], components: &[&str]) -> bool {
    // Which numbers of components the parts so far may stand for.
    let mut reach = vec![false; components.len() + 1];
    reach[0] = true;
    for part in parts {
        let mut next = vec![false; components.len() + 1];
        match part {
            Part::Any | Part::Below => {
                let Some(first) = reach.iter().position(|reached| *reached) else {
                    return false;
                };
                let skipped = usize::from(*part == Part::Below);
                next[(first + skipped).min(components.len())..].fill(true);
                // With nothing left, there is nothing below.
                if first + skipped > components.len() {
                    return false;
                }
            }
            Part::One(pattern) => {
                for (number, component) in components.iter().enumerate() {
                    next[number + 1] = reach[number] && glob(pattern, component);
                }
            }
        }
        reach = next;
    }
    reach[components.len()]
}

/// Whether `text` is `pattern`, in which `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else {
        // No star in it.
        return rest.is_empty();
    };
    for piece in pieces {
        // The earliest place leaves most for those that come.
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(patterns: &[&str]) -> AllowList {
        AllowList::new(patterns.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn patterns_fit_what_they_say() {
        for (pattern, fitting, others) in [
            ("docker.io", &["busybox", "a/b"][..], &["ghcr.io/a"][..]),
            ("index.docker.io/library/*", &["busybox:1"], &["a/b"]),
            ("docker.io/busybox", &["busybox"], &["alpine", "a/busybox"]),
            (
                "registry.example",
                &["registry.example/a/b/c"],
                &["registry.example:5000/a", "x.registry.example/a"],
            ),
            (
                "Registry.Example:5000/team/*",
                &[
                    "registry.example:5000/team/a",
                    "registry.example:5000/team/a/b",
                ],
                &[
                    "registry.example:5000/team",
                    "registry.example:5000/teams/a",
                    "registry.example/team/a",
                ],
            ),
            (
                "*.example",
                &["a.example/x", "a.b.example/x/y"],
                &["example.org/x", "a.example.org/x", "a.example:1/x"],
            ),
            (
                "ghcr.io/*/app",
                &["ghcr.io/a/app"],
                &["ghcr.io/a/b/app", "ghcr.io/app", "ghcr.io/a/app/x"],
            ),
            (
                "ghcr.io/**/app",
                &["ghcr.io/a/b/app", "ghcr.io/app"],
                &["ghcr.io/a/apps"],
            ),
            (
                "ghcr.io/a/b-*-c",
                &["ghcr.io/a/b-x-c", "ghcr.io/a/b-x-y-c"],
                &["ghcr.io/a/b-c", "ghcr.io/a/b-x/c"],
            ),
            ("**", &["busybox", "[::1]:5/a"], &[]),
            ("localhost", &["localhost/a"], &["localhost:5000/a"]),
            ("*/team/*", &["a.b/team/x", "team/x"], &["a.b/x/team/y"]),
        ] {
            let list = list(&[pattern]);
            for name in fitting {
                assert!(list.allows(&name.parse().unwrap()), "{pattern} {name}");
            }
            for name in others {
                assert!(!list.allows(&name.parse().unwrap()), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn a_list_allows_what_one_of_its_lines_does() {
        let name: ImageName = "ghcr.io/a/b".parse().unwrap();
        assert!(AllowList::default().allows(&name));
        assert!(!list(&[]).allows(&name));
        assert!(list(&["docker.io", "ghcr.io"]).allows(&name));
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no registry"),
            ("/a", "no registry"),
            ("https://ghcr.io", "scheme"),
            ("library/busybox", "begin with the registry"),
            ("ghcr.io/a//b", "empty"),
            ("ghcr.io/a/", "empty"),
            ("ghcr.io/a:1", "tag"),
            ("ghcr.io/a@sha256:1", "tag"),
            ("ghcr.io/A", "character"),
            ("ghcr.io/a?", "character"),
            ("ghcr.io\n/a", "character"),
        ] {
            let error = text.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        for (text, shown) in [
            ("docker.io/busybox", "docker.io/library/busybox"),
            ("ghcr.io/a/**", "ghcr.io/a/*"),
            ("**", "*"),
        ] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), shown);
        }
    }
}
