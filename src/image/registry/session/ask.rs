//! One request to one host, with one credential after the other.

use super::super::challenge::{self, Challenge};
use super::super::error::RegistryError;
use super::super::exchange::{self, Answer, Broken, Call};
use super::super::hosts::Place;
use super::super::retry_after;
use super::super::token::{TokenFault, TokenServer, basic_header, secret_header};
use super::failure::{Failure, Verdict};
use super::{Accepted, Session};
use crate::image::credentials::{Credential, Login};
use crate::image::printable;
use crate::secret::Secret;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;

/// The longest body of an error that is read, in bytes.
const MAX_MESSAGE_BYTES: u64 = 8 << 10;

/// What is asked for, of whichever host.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Below the repository: `manifests/…` or `blobs/…`.
    pub(super) path: String,
    /// Every host may see these.
    pub(super) header: HeaderMap,
    /// What that is, for people.
    pub(super) what: String,
    pub(super) deadline: Instant,
}

/// A credential in the form in which it is shown.
struct Shown {
    header: HeaderValue,
    /// The token in it, if it came from a token server.
    token: Option<Secret>,
}

/// Why a credential has no form for a host.
enum NotShown {
    /// It is not accepted there, or is of a kind that does not work there.
    Refused,
    /// Something else is wrong.
    Failed(Failure),
}

/// What became of a request with one credential.
enum Tried {
    Answered(Answer),
    Failed(Failure),
}

impl Session {
    /// Asks one host, with what it took before or with whatever fits, and says
    /// what it took.
    pub(super) async fn ask(
        &self,
        number: usize,
        ask: &Ask,
    ) -> Result<(Answer, Accepted), Failure> {
        let mut ask = ask.clone();
        let ask = &mut ask;
        let state = self.state(number).clone();
        if state.challenges.is_empty() {
            let answer = self.send(number, ask, None).await?;
            if answer.response.status().as_u16() != 401 || answer.is_foreign {
                let answer = self.judge(number, ask, answer, None).await?;
                return Ok((answer, Accepted::Anonymous));
            }
            let challenges = challenges_of(&answer);
            if challenges.is_empty() {
                return Err(self.refused(number));
            }
            self.state(number).challenges = challenges;
        }
        // What worked works again, unless it expired. Then everything is tried,
        // for a plugin may have something newer.
        if let Some(accepted) = state.taken {
            match self.try_with(number, ask, accepted.credential()).await {
                Tried::Answered(answer) => return Ok((answer, accepted)),
                Tried::Failed(failure) if failure.verdict != Verdict::NoAccess => {
                    return Err(failure);
                }
                Tried::Failed(_) => self.state(number).taken = None,
            }
        }
        let start = Instant::now();
        let (credentials, sources) = self.credentials(number).await;
        ask.deadline += start.elapsed();
        let mut worst: Option<Failure> = None;
        for credential in credentials.iter().map(Some).chain([None]) {
            if credential.is_none() && !self.has_tokens(number) {
                // The request without anything was refused already.
                continue;
            }
            let failure = match self.try_with(number, ask, credential).await {
                Tried::Answered(answer) => {
                    let accepted = match credential {
                        Some(credential) => Accepted::With(credential.clone()),
                        None => Accepted::Anonymous,
                    };
                    self.state(number).taken = Some(accepted.clone());
                    return Ok((answer, accepted));
                }
                Tried::Failed(failure) => failure,
            };
            // A host that is in trouble now may take this one later.
            if matches!(failure.verdict, Verdict::Again(_)) {
                return Err(failure);
            }
            let rank = failure.rank();
            if worst.as_ref().is_none_or(|worst| worst.rank() < rank) {
                worst = Some(failure);
            }
        }
        match worst {
            Some(failure) if failure.verdict != Verdict::NoAccess => Err(failure),
            other => {
                let denied = other
                    .is_some_and(|failure| matches!(failure.error, RegistryError::Denied { .. }));
                Err(self.unauthenticated(number, &credentials, &sources, denied))
            }
        }
    }

    /// What the pod may show to a host, and where that was looked for. Plugins may have to be run for that, so
    /// this is for a thread that may wait.
    async fn credentials(&self, number: usize) -> (Vec<Credential>, String) {
        let keys = Arc::clone(&self.keys);
        let host = self.places[number].login_host.clone();
        let repository = self.repository_at(number);
        let look = move || {
            let found = keys.lookup(&host, &repository);
            (found, keys.sources(&host, &repository))
        };
        // It fails only if looking up panics, or the program ends.
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// The repository's name as the host knows it.
    pub(super) fn repository_at(&self, number: usize) -> String {
        format!("{}{}", self.places[number].prefix, self.name.repository())
    }

    fn has_tokens(&self, number: usize) -> bool {
        let state = self.state(number);
        state
            .challenges
            .iter()
            .any(|challenge| challenge.scheme == "bearer")
    }

    /// Asks with one credential, or with nobody's token.
    async fn try_with(&self, number: usize, ask: &Ask, credential: Option<&Credential>) -> Tried {
        let mut refused: Option<Secret> = None;
        loop {
            let shown = self
                .shown(number, credential, refused.as_ref(), ask.deadline)
                .await;
            let shown = match shown {
                Ok(shown) => shown,
                Err(NotShown::Refused) => {
                    return Tried::Failed(self.refused(number));
                }
                Err(NotShown::Failed(failure)) => return Tried::Failed(failure),
            };
            let answer = match self.send(number, ask, Some(&shown.header)).await {
                Ok(answer) => answer,
                Err(failure) => return Tried::Failed(failure),
            };
            let is_refused = answer.response.status().as_u16() == 401 && !answer.is_foreign;
            if is_refused && shown.token.is_some() && refused.is_none() {
                // A token that was kept may have ended before its time, or the
                // host wants one for something else now.
                let challenges = challenges_of(&answer);
                if !challenges.is_empty() {
                    self.state(number).challenges = challenges;
                }
                refused = shown.token;
                continue;
            }
            return match self.judge(number, ask, answer, Some(&shown)).await {
                Ok(answer) => Tried::Answered(answer),
                Err(failure) => Tried::Failed(failure),
            };
        }
    }

    /// A credential in the form that the host wants.
    async fn shown(
        &self,
        number: usize,
        credential: Option<&Credential>,
        refused: Option<&Secret>,
        deadline: Instant,
    ) -> Result<Shown, NotShown> {
        let place = &self.places[number];
        let as_it_is = |header: Option<HeaderValue>| {
            let header = header.ok_or(NotShown::Refused)?;
            Ok(Shown {
                header,
                token: None,
            })
        };
        if let Some(Login::RegistryToken(token)) = credential.map(|credential| &credential.login) {
            return as_it_is(secret_header("Bearer", token.expose()));
        }
        let challenges = self.state(number).challenges.clone();
        let of = |scheme: &str| {
            challenges
                .iter()
                .find(|challenge| challenge.scheme == scheme)
        };
        if let Some(challenge) = of("bearer") {
            let base = self.base(place);
            let server = TokenServer::new(challenge, base, &self.repository_at(number))
                .map_err(|reason| NotShown::Failed(Failure::malformed(&place.shown, reason)))?;
            let registry = &self.registry;
            let token = registry
                .tokens
                .get(
                    &registry.clients,
                    place,
                    &server,
                    credential,
                    refused,
                    deadline,
                )
                .await;
            let token = token.map_err(|fault| match fault {
                TokenFault::Refused => NotShown::Refused,
                TokenFault::Again { after, error } => NotShown::Failed(Failure {
                    verdict: Verdict::Again(after),
                    error,
                }),
                TokenFault::Unusable(error) => NotShown::Failed(Failure {
                    verdict: Verdict::Final,
                    error,
                }),
            })?;
            let header = secret_header("Bearer", token.expose()).ok_or(NotShown::Refused)?;
            return Ok(Shown {
                header,
                token: Some(token),
            });
        }
        match credential.map(|credential| &credential.login) {
            Some(Login::Basic { username, password }) if of("basic").is_some() => {
                as_it_is(basic_header(username, password))
            }
            // Other schemes are not for registries.
            _ => Err(NotShown::Refused),
        }
    }

    /// Where a host's API is, as far as that is known by now.
    fn base<'a>(&self, place: &'a Place) -> &'a Url {
        match &place.plain {
            Some(plain) if self.registry.is_plain(&place.base) => plain,
            _ => &place.base,
        }
    }

    /// Sends the request to one host, with TLS or, where that is allowed and
    /// turns out to be needed, without.
    async fn send(
        &self,
        number: usize,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let place = &self.places[number];
        loop {
            let base = self.base(place);
            let mut own = place.header.clone();
            if let Some(authorization) = authorization {
                own.insert(AUTHORIZATION, authorization.clone());
            }
            let call = Call {
                method: ask.method.clone(),
                url: self.url(place, base, &ask.path),
                transport: &place.transport,
                own,
                common: ask.header.clone(),
                form: None,
                deadline: ask.deadline,
            };
            match exchange::send(&self.registry.clients, call).await {
                Ok(answer) => return Ok(answer),
                Err(Broken::Unreachable {
                    without_tls: true, ..
                }) if place.plain.is_some() && *base == place.base => {
                    self.registry.note_plain(&place.base);
                }
                Err(broken) => return Err(Failure::broken(&place.shown, broken)),
            }
        }
    }

    fn url(&self, place: &Place, base: &Url, path: &str) -> Url {
        let mut url = base.clone();
        let start = base.path().trim_end_matches('/');
        url.set_path(&format!("{start}/{}/{path}", self.name.repository()));
        // What stands in for several registries has to know for which now.
        if let Some(registry) = &place.stands_for {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    /// An answer that has what was asked for, or what is wrong.
    async fn judge(
        &self,
        number: usize,
        ask: &Ask,
        answer: Answer,
        shown: Option<&Shown>,
    ) -> Result<Answer, Failure> {
        let host = &self.places[number].shown;
        let status = answer.response.status().as_u16();
        let verdict = match status {
            200 | 206 => return Ok(answer),
            401 if !answer.is_foreign => return Err(self.refused(number)),
            // Of a store behind the registry, it is a link that has expired.
            401 | 403 if answer.is_foreign => Verdict::Again(None),
            403 => {
                return Err(Failure {
                    verdict: Verdict::NoAccess,
                    error: RegistryError::Denied {
                        host: host.clone(),
                        image: self.repository(),
                        tried: String::new(),
                    },
                });
            }
            404 => {
                return Err(Failure {
                    verdict: Verdict::NotFound,
                    error: RegistryError::NotFound {
                        image: ask.what.clone(),
                        hosts: host.clone(),
                    },
                });
            }
            405 => Verdict::Method,
            416 => Verdict::Range,
            408 | 425 | 429 | 500..=599 => {
                let after = answer.response.headers().get(RETRY_AFTER);
                let after = after.and_then(|after| after.to_str().ok());
                Verdict::Again(after.and_then(|after| retry_after(after, SystemTime::now())))
            }
            _ => Verdict::Final,
        };
        let message = self.message(answer, shown, ask.deadline).await;
        Err(Failure {
            verdict,
            error: RegistryError::Status {
                host: host.clone(),
                what: format!("a request for {}", ask.what),
                status,
                message,
            },
        })
    }

    /// What a registry says about its error. Where we were sent elsewhere, what
    /// is said there is nobody's business here.
    async fn message(
        &self,
        mut answer: Answer,
        shown: Option<&Shown>,
        deadline: Instant,
    ) -> String {
        if answer.is_foreign {
            return String::new();
        }
        let body = exchange::body(&mut answer.response, MAX_MESSAGE_BYTES, deadline).await;
        let message = body
            .ok()
            .and_then(|body| message_of(&body))
            .unwrap_or_default();
        // A host that sends back what it was shown must not get it into a log.
        let secret = shown.and_then(|shown| {
            let line = std::str::from_utf8(shown.header.as_bytes()).ok()?;
            Some(line.split_once(' ')?.1)
        });
        match secret {
            Some(secret) if message.contains(secret) => String::new(),
            _ => printable(&message),
        }
    }

    /// That a host took none of `credentials`, nor nothing; `sources` are all that
    /// were looked at.
    fn unauthenticated(
        &self,
        number: usize,
        credentials: &[Credential],
        sources: &str,
        denied: bool,
    ) -> Failure {
        let host = &self.places[number].shown;
        let image = self.repository();
        let mut origins: Vec<String> = Vec::new();
        for credential in credentials {
            let origin = credential.origin.to_string();
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        let origins = origins.join(" and ");
        let looked = match sources {
            "" => String::new(),
            sources => format!(" ({sources})"),
        };
        let error = match (origins.is_empty(), denied) {
            (true, true) => RegistryError::Denied {
                host: host.clone(),
                image,
                tried: format!("no credentials{looked}"),
            },
            (false, true) => RegistryError::Denied {
                host: host.clone(),
                image,
                tried: format!("{origins}{looked}"),
            },
            (true, false) => RegistryError::Unauthenticated {
                image,
                tried: format!("there are none for {host}{looked}"),
            },
            (false, false) => RegistryError::Unauthenticated {
                image,
                tried: format!("{host} refused {origins}{looked}"),
            },
        };
        Failure {
            verdict: Verdict::NoAccess,
            error,
        }
    }

    /// That a host refused one credential. Which ones there were is said where
    /// all were tried.
    fn refused(&self, number: usize) -> Failure {
        self.unauthenticated(number, &[], "", false)
    }
}

fn challenges_of(answer: &Answer) -> Vec<Challenge> {
    let values = answer.response.headers().get_all(WWW_AUTHENTICATE);
    challenge::parse(values.iter().map(HeaderValue::as_bytes))
}

#[derive(serde::Deserialize)]
struct RawErrors {
    errors: Vec<RawError>,
}

#[derive(serde::Deserialize)]
struct RawError {
    code: Option<String>,
    message: Option<String>,
}

/// The first error in the body of a registry's answer.
fn message_of(body: &[u8]) -> Option<String> {
    let raw: RawErrors = serde_json::from_slice(body).ok()?;
    let first = raw.errors.into_iter().next()?;
    let parts = [first.code, first.message].into_iter().flatten();
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    Some(parts.join(": "))
}
