//! Which entries of a docker config, or of a credential provider's answer, are
//! for an image: as kubelet's keyring has it, which is what pods are written for.
//! (Kubernetes 1.36, `pkg/credentialprovider/keyring.go`; the tables of the tests
//! are what that code answers.)
//!
//! There are two deviations, and both are only about names. An image at a host
//! without a dot, `localhost/app`, does not get the credentials of Docker Hub: the
//! requests would go to that host, not to Docker Hub. And `registry-1.docker.io`
//! counts as Docker Hub, as it does for skopeo.

use std::collections::{BTreeMap, btree_map};

/// Docker Hub, as images have it.
const HUB: &str = "docker.io";
/// Docker Hub, as docker configs have it. The first one there is counts, and only
/// where no entry is for the image by its name.
const HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// Paths of the registry's API, which old clients wrote behind the host.
const API_PATHS: [&str; 2] = ["/v2/", "/v1/"];

/// Host, port and path that an image can be compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    host: String,
    port: String,
    path: String,
}

impl Pattern {
    /// `host[:port][/path]`, in which a `*` stands for any part of one component of
    /// the host. None where that is no part of a URL.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, path) = split(text)?;
        let (host, port) = split_port(&host);
        Some(Pattern {
            host: host.to_owned(),
            port: port.to_owned(),
            path,
        })
    }

    /// Whether the image `repository` at `host`, which may have a port, is one of
    /// these. A path is a prefix of the text, not of components: what is for
    /// `host/app` is for `host/apples` too.
    pub(super) fn matches(&self, host: &str, repository: &str) -> bool {
        let (host, port) = split_port(host);
        let of_path = self
            .path
            .strip_prefix('/')
            .map_or(self.path.is_empty(), |path| repository.starts_with(path));
        self.port == port
            && of_path
            && self.host.split('.').count() == host.split('.').count()
            && self
                .host
                .split('.')
                .zip(host.split('.'))
                .all(|(pattern, part)| matches_part(pattern, part))
    }
}

/// The authority and the path of a URL without its scheme.
fn split(text: &str) -> Option<(String, String)> {
    if text.contains(|c: char| c.is_ascii_control()) {
        return None;
    }
    let text = text.split(['#', '?']).next().unwrap_or_default();
    let (authority, path) = match text.find('/') {
        Some(slash) => text.split_at(slash),
        None => (text, ""),
    };
    // A user in front, even with a password, is nothing to the host.
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let (name, port) = split_port(host);
    let is_bracketed = name.len() != host.len() && host.starts_with('[');
    let is_name = name.chars().all(|c| {
        c.is_ascii_alphanumeric()
            || "-_.~*".contains(c)
            || !c.is_ascii()
            || is_bracketed && c == ':'
    });
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    (is_name && is_port).then(|| Some((host.to_owned(), decode(path)?)))?
}

/// Host and port; the brackets of an IPv6 address belong to neither.
fn split_port(host: &str) -> (&str, &str) {
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return match rest.strip_prefix(':') {
            Some(port) => (address, port),
            None if rest.is_empty() => (address, ""),
            None => (host, ""),
        };
    }
    match host.rsplit_once(':') {
        Some((name, port)) => (name, port),
        None => (host, ""),
    }
}

/// A path without its percent signs.
fn decode(path: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

/// Whether a component of a host fits a pattern with stars.
fn matches_part(pattern: &str, part: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = part.strip_prefix(first) else {
        return false;
    };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        // The earliest place leaves most to the pieces that follow.
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    true
}

/// Values by what they are for, the most specific first.
#[derive(Debug, Clone)]
pub(super) struct Index<T> {
    /// In the order of the keys backwards, `host/path` comes before `host`, and a
    /// name before a star.
    entries: BTreeMap<String, Entry<T>>,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    /// None for a key that no image has, because of what its path decodes to.
    pattern: Option<Pattern>,
    values: Vec<T>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Index {
            entries: BTreeMap::new(),
        }
    }
}

impl<T> Index<T> {
    /// Adds a value for a key of a docker config: `host[:port][/path]`, also with a
    /// scheme in front, or with the path of the API behind. A key that is no URL is
    /// for no image.
    pub(super) fn add(&mut self, location: &str, value: T) {
        let schemeless = ["https://", "http://"]
            .iter()
            .find_map(|scheme| location.strip_prefix(scheme))
            .unwrap_or(location);
        let Some((host, path)) = split(schemeless) else {
            tracing::debug!("an entry of a docker config is for no registry");
            return;
        };
        let path = match API_PATHS.iter().any(|api| path.starts_with(api)) {
            true => &path["/v2".len()..],
            false => &path,
        };
        let path = if path == "/" { "" } else { path };
        let key = format!("{host}{path}");
        let pattern = Pattern::parse(&key);
        let entry = self.entries.entry(key).or_insert(Entry {
            pattern,
            values: Vec::new(),
        });
        entry.values.push(value);
    }

    /// Adds all of another one, behind what is here for the same.
    pub(super) fn append(&mut self, other: Self) {
        for (key, entry) in other.entries {
            match self.entries.entry(key) {
                btree_map::Entry::Occupied(mut here) => here.get_mut().values.extend(entry.values),
                btree_map::Entry::Vacant(place) => drop(place.insert(entry)),
            }
        }
    }

    /// The values for an image, the most specific first.
    pub(super) fn find(&self, host: &str, repository: &str) -> Vec<&T> {
        let found: Vec<&T> = self
            .entries
            .values()
            .rev()
            .filter(|entry| {
                let pattern = entry.pattern.as_ref();
                pattern.is_some_and(|pattern| pattern.matches(host, repository))
            })
            .flat_map(|entry| &entry.values)
            .collect();
        if !found.is_empty() || (host != HUB && !HUB_ALIASES.contains(&host)) {
            return found;
        }
        let hub = HUB_ALIASES.iter().find_map(|name| self.entries.get(*name));
        hub.map_or_else(Vec::new, |entry| entry.values.iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that are for an image, in order.
    fn found<'a>(image: &str, keys: &[&'a str]) -> Vec<&'a str> {
        let mut index = Index::default();
        // As kubelet has them from a map: in no order that matters but for one key.
        for key in keys {
            index.add(key, *key);
        }
        let (host, repository) = image.split_once('/').unwrap();
        index.find(host, repository).into_iter().copied().collect()
    }

    #[test]
    fn one_key_is_for_an_image_where_kubelet_says_so() {
        for (image, key, is_for) in [
            ("registry.example/app", "registry.example", true),
            ("registry.example/app", "https://registry.example", true),
            ("registry.example/app", "http://registry.example/", true),
            ("registry.example/app", "https://registry.example/v1/", true),
            ("registry.example/app", "https://registry.example/v2/", true),
            ("registry.example/app", "https://registry.example/v1", false),
            (
                "registry.example/app",
                "https://registry.example/v2/app",
                true,
            ),
            (
                "registry.example/app",
                "https://registry.example/v2/v1/app",
                false,
            ),
            ("registry.example/v2/app", "registry.example/v2/app", false),
            ("registry.example/v2/app", "registry.example/v2", true),
            ("registry.example/app", "ftp://registry.example", false),
            ("registry.example/app", "HTTPS://registry.example", false),
            // A path is a prefix of the text.
            ("registry.example/app", "registry.example/ap", true),
            ("registry.example/app", "registry.example/app", true),
            ("registry.example/app", "registry.example/app/", false),
            ("registry.example/app", "registry.example/other", false),
            ("registry.example/app", "registry.example//app", false),
            // Ports are equal, and no port is none.
            ("registry.example:5000/app", "registry.example", false),
            ("registry.example:5000/app", "registry.example:5000", true),
            ("registry.example:5000/app", "registry.example:5001", false),
            ("registry.example/app", "registry.example:443", false),
            ("registry.example/app", "registry.example:", true),
            ("registry.example/app", "registry.example:port", false),
            ("registry.example/app", "registry.example:50:60", false),
            ("127.0.0.1:5000/a", "127.0.0.1:5000", true),
            ("127.0.0.1:5000/a", "127.0.0.*:5000", true),
            ("[::1]:5000/a", "[::1]:5000", true),
            ("[::1]:5000/a", "[::1]", false),
            // A star is within one component.
            ("registry.example:5000/app", "*.example:5000", true),
            ("registry.example:5000/app", "*.example", false),
            ("a.b.example/app", "*.example", false),
            ("a.b.example/app", "*.b.example", true),
            ("a.b.example/app", "*.*.example", true),
            ("a.b.example/app", "a.*.example", true),
            ("a.b.example/app", "*.*.*", true),
            ("app1.example/x", "app*.example", true),
            ("app1.example/x", "ap*1.example", true),
            ("app1.example/x", "*p*.example", true),
            ("app1.example/x", "**.example", true),
            ("app1.example/x", "*2.example", false),
            ("app1.example/x", "*app1*.example", true),
            ("app1.example/x", "app*app1.example", false),
            ("xn--a.example/x", "xn--*.example", true),
            // And the only sign with a meaning.
            ("app1.example/x", "app?.example", false),
            ("app1.example/x", "app[0-9].example", false),
            ("app1.example/x", "[a]pp1.example", false),
            ("app1.example/x", "a\\pp1.example", false),
            // Hosts are compared as they are written.
            ("Registry.example/app", "registry.example", false),
            ("registry.example/app", "REGISTRY.example", false),
            ("registrý.example/app", "registrý.example", true),
            ("registry.example/app", "%72egistry.example", false),
            // What else a URL can have.
            ("registry.example/app", "user@registry.example", true),
            (
                "registry.example/app",
                "https://user:pw@registry.example/",
                true,
            ),
            ("registry.example/app", "registry.example?x", true),
            ("registry.example/app", "registry.example#x", true),
            ("registry.example/app", "registry.example/%61pp", true),
            ("registry.example/app", "registry.example/%2561pp", true),
            ("registry.example/app", "registry.example/%zz", false),
            ("registry.example/app", " registry.example", false),
            ("registry.example/app", "registry.example ", false),
            ("registry.example/app", "registry.example\n", false),
            ("registry.example/app", "", false),
            ("registry.example/app", "*", false),
            ("registry.example/app", "https://", false),
            ("registry.example/app", "/app", false),
        ] {
            assert_eq!(
                !found(image, &[key]).is_empty(),
                is_for,
                "{key} for {image}"
            );
        }
    }

    #[test]
    fn docker_hub_has_other_names_in_docker_configs() {
        let image = "docker.io/library/busybox";
        for (keys, expected) in [
            (&["https://index.docker.io/v1/"][..], 0..1),
            (&["index.docker.io"], 0..1),
            (&["https://index.docker.io/v2/"], 0..1),
            (&["docker.io"], 0..1),
            // By its name, and then no other.
            (&["docker.io", "index.docker.io"], 0..1),
            (&["docker.io/library", "index.docker.io"], 0..1),
            (&["https://index.docker.io/v1"], 0..0),
            (&["index.docker.io/library"], 0..0),
            (&["*.docker.io"], 0..0),
            // Not kubelet's.
            (&["registry-1.docker.io"], 0..1),
            (&["index.docker.io", "registry-1.docker.io"], 0..1),
        ] {
            assert_eq!(found(image, keys), &keys[expected], "{keys:?}");
        }
        assert_eq!(found("index.docker.io/a", &["docker.io"]), [""; 0]);
        assert_eq!(found("index.docker.io/a", &["index.docker.io"]).len(), 1);
    }

    #[test]
    fn what_is_for_docker_hub_goes_nowhere_else() {
        // kubelet would hand it out.
        assert_eq!(found("localhost/a", &["index.docker.io"]), [""; 0]);
        assert_eq!(
            found("registry/a", &["https://index.docker.io/v1/"]),
            [""; 0]
        );
    }

    #[test]
    fn an_ipv6_address_needs_no_port() {
        // For kubelet the brackets are a set of characters, so that it has none.
        assert_eq!(found("[::1]/a", &["[::1]"]), ["[::1]"]);
        assert_eq!(
            found("[::1]/a", &["[::2]", "::1", "[::1", "[::1]x"]),
            [""; 0]
        );
    }

    #[test]
    fn the_most_specific_comes_first() {
        for (image, keys, expected) in [
            (
                "registry.example/app/x",
                &[
                    "registry.example",
                    "registry.example/app",
                    "registry.example/app/x",
                    "*.example",
                    "registry.*",
                    "other.example",
                ][..],
                &[
                    "registry.example/app/x",
                    "registry.example/app",
                    "registry.example",
                    "registry.*",
                    "*.example",
                ][..],
            ),
            (
                "registry.example/app",
                &["registry.example/app", "registry.*/app", "*.example/app"],
                &["registry.example/app", "registry.*/app", "*.example/app"],
            ),
            (
                "gcr.io/etcd-development/etcd",
                &["gcr.io", "gcr.io/etcd-development", "quay.io/coreos"],
                &["gcr.io/etcd-development", "gcr.io"],
            ),
            (
                "a.example/x",
                &["*.example", "a.example", "a.*", "*.*"],
                &["a.example", "a.*", "*.example", "*.*"],
            ),
        ] {
            assert_eq!(found(image, keys), expected, "{image}");
        }
        // What is the same in the end stays in the order in which it was given.
        let keys = [
            "registry.example",
            "https://registry.example/",
            "registry.example/v1/",
        ];
        assert_eq!(found("registry.example/app", &keys), keys);
    }
}
