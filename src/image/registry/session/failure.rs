//! What one host's refusal means, and which of several says most.

use super::super::error::RegistryError;
use super::super::exchange::Broken;
use std::time::Duration;

/// A host did not give what was asked for.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) verdict: Verdict,
    pub(super) error: RegistryError,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same host may give it later.
    Again(Option<Duration>),
    /// It does not give it to us: 401 or 403.
    NoAccess,
    /// It does not have it.
    NotFound,
    /// It does not know this kind of request.
    Method,
    /// It does not have it from that byte on.
    Range,
    /// It will not change its mind.
    Final,
}

impl Failure {
    pub(super) fn malformed(host: &str, reason: impl Into<String>) -> Self {
        Failure {
            verdict: Verdict::Final,
            error: RegistryError::Malformed {
                host: host.to_owned(),
                reason: reason.into(),
            },
        }
    }

    pub(super) fn broken(host: &str, broken: Broken) -> Self {
        match broken {
            Broken::Unreachable { reason, .. } => Failure {
                verdict: Verdict::Again(None),
                error: RegistryError::Unreachable {
                    host: host.to_owned(),
                    reason,
                },
            },
            Broken::Malformed(reason) => Failure::malformed(host, reason),
            Broken::Config(error) => Failure {
                verdict: Verdict::Final,
                error,
            },
        }
    }

    /// Of several things that one host said to several credentials.
    pub(super) fn rank(&self) -> u8 {
        match self.verdict {
            Verdict::Range | Verdict::Method => 5,
            // To have been let in and told that there is nothing says more than
            // to have been refused with something else.
            Verdict::NotFound => 4,
            Verdict::Final => 3,
            Verdict::NoAccess => match self.error {
                RegistryError::Denied { .. } => 2,
                _ => 1,
            },
            Verdict::Again(_) => 0,
        }
    }
}

/// A failure, and which host it is of.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) host: String,
    /// Whether that is the registry itself, and no stand-in.
    pub(super) is_registry: bool,
    pub(super) failure: Failure,
}

/// The error that says most about why none of the hosts gave an image.
///
/// What the registry itself says goes before what mirrors say: that a mirror has
/// nothing, or wants to know more, means little while the registry is down. The
/// rest is added where there is room for it.
pub(super) fn most_telling(mut told: Vec<Told>, image: &str) -> RegistryError {
    let weight = |told: &Told| match told.failure.verdict {
        Verdict::NoAccess => 4,
        Verdict::Final | Verdict::Range | Verdict::Method => 3,
        Verdict::NotFound => 2,
        Verdict::Again(_) => 1,
    };
    // The last of several that are equal, which is the one closest to the registry.
    let best = told
        .iter()
        .enumerate()
        .max_by_key(|(_, told)| (told.is_registry, weight(told)))
        .map(|(number, _)| number);
    let Some(best) = best else {
        return RegistryError::NotFound {
            image: image.to_owned(),
            hosts: "no host, for none is configured that may be asked for it".to_owned(),
        };
    };
    let main = told.remove(best);
    let before: String = told
        .iter()
        .map(|told| format!("; {}", short(told)))
        .collect();
    match main.failure.error {
        RegistryError::NotFound { image, hosts } => {
            let others = told.iter();
            let others = others.filter(|told| told.failure.verdict == Verdict::NotFound);
            let mut all: Vec<String> = others.map(|told| told.host.clone()).collect();
            all.push(hosts);
            RegistryError::NotFound {
                image,
                hosts: all.join(", "),
            }
        }
        RegistryError::Unreachable { host, reason } => RegistryError::Unreachable {
            host,
            reason: reason + &before,
        },
        RegistryError::Status {
            host,
            what,
            status,
            message,
        } => RegistryError::Status {
            host,
            what,
            status,
            message: match message.is_empty() {
                true => before.trim_start_matches("; ").to_owned(),
                false => message + &before,
            },
        },
        other => other,
    }
}

/// A host and what became of it, in a few words.
fn short(told: &Told) -> String {
    let what = match &told.failure.error {
        RegistryError::Unreachable { .. } => "was not reached".to_owned(),
        RegistryError::Status { status, .. } => format!("answered {status}"),
        RegistryError::NotFound { .. } => "does not have it".to_owned(),
        RegistryError::Unauthenticated { .. } => "wants other credentials".to_owned(),
        RegistryError::Denied { .. } => "denies access".to_owned(),
        _ => "gave nothing that can be used".to_owned(),
    };
    format!("{} {what}", told.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(host: &str, is_registry: bool, kind: u16) -> Told {
        let (host, image) = (host.to_owned(), "a/b".to_owned());
        let again = Verdict::Again(None);
        let (verdict, error) = match kind {
            0 => (
                again,
                RegistryError::Unreachable {
                    host: host.clone(),
                    reason: "refused".to_owned(),
                },
            ),
            401 => (
                Verdict::NoAccess,
                RegistryError::Unauthenticated {
                    image,
                    tried: "nothing was there to try".to_owned(),
                },
            ),
            404 => (
                Verdict::NotFound,
                RegistryError::NotFound {
                    image,
                    hosts: host.clone(),
                },
            ),
            status => (
                again,
                RegistryError::Status {
                    host: host.clone(),
                    what: "it".to_owned(),
                    status,
                    message: String::new(),
                },
            ),
        };
        Told {
            host,
            is_registry,
            failure: Failure { verdict, error },
        }
    }

    #[test]
    fn the_registry_goes_before_its_mirrors() {
        for (hosts, expected) in [
            (vec![], "a/b was not found at no host"),
            (
                vec![("m", false, 404), ("r", true, 404)],
                "a/b was not found at m, r",
            ),
            (
                vec![("m", false, 404), ("r", true, 401)],
                "a/b needs credentials",
            ),
            (
                vec![("m", false, 401), ("r", true, 0)],
                "cannot reach r: refused; m wants other",
            ),
            (
                vec![("m", false, 500), ("r", true, 404)],
                "a/b was not found at r",
            ),
            (
                vec![("m", false, 0), ("r", true, 503)],
                "r answered 503 to it: m was not reached",
            ),
            (
                vec![("m", false, 404), ("n", false, 401)],
                "a/b needs credentials",
            ),
            (
                vec![("m", false, 0), ("n", false, 500)],
                "n answered 500 to it: m was not",
            ),
        ] {
            let told = hosts
                .iter()
                .map(|(host, own, kind)| told(host, *own, *kind));
            let error = most_telling(told.collect(), "a/b").to_string();
            assert!(error.starts_with(expected), "{hosts:?}: {error}");
        }
    }
}
