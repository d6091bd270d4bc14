//! Tokens of a registry's token server, fetched once and shared.

mod answer;

use super::challenge::Challenge;
use super::client::Clients;
use super::error::RegistryError;
use super::exchange::{self, Broken, Call};
use super::hosts::{Origin, Place};
use super::proxy::is_loopback;
use crate::image::credentials::{Credential, Login};
use crate::secret::Secret;
use answer::Token;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use zeroize::Zeroizing;

/// The longest answer of a token server, in bytes. Tokens have some kilobytes.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// The most tokens that are kept: one for each repository and credential.
const MAX_TOKENS: usize = 1024;
/// How we call ourselves where the protocol wants a name.
const CLIENT_ID: &str = "aufs-csi";

/// What a registry says about its token server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenServer {
    realm: Url,
    service: Option<String>,
    /// What to ask for, sorted, one repository each.
    scopes: Vec<String>,
}

impl TokenServer {
    /// Of a `Bearer` challenge that `origin` gave for a repository. The reason
    /// against it is in words that fit after the host's name.
    pub(super) fn new(
        challenge: &Challenge,
        asked: &Url,
        repository: &str,
    ) -> Result<Self, &'static str> {
        let realm = challenge.get("realm").ok_or("its challenge has no realm")?;
        let mut realm: Url = realm.parse().map_err(|_| "its realm is not a URL")?;
        let is_local = |url: &Url| url.host_str().is_some_and(is_loopback);
        match realm.scheme() {
            "https" => {}
            // A password must not get from TLS to where everybody can read it.
            "http" if asked.scheme() == "http" || is_local(asked) && is_local(&realm) => {}
            "http" => return Err("its token server is not asked with TLS"),
            _ => return Err("its realm is no http or https URL"),
        }
        let _ = realm.set_username("");
        let _ = realm.set_password(None);
        realm.set_fragment(None);
        // The registry may know the repository under a longer name than we do.
        // More than pulling is not asked for, whatever it suggests.
        let mut scopes: Vec<String> = challenge
            .get("scope")
            .unwrap_or_default()
            .split(' ')
            .filter_map(|scope| scope.strip_prefix("repository:")?.rsplit_once(':'))
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, _)| pull_scope(name))
            .collect();
        if scopes.is_empty() {
            scopes.push(pull_scope(repository));
        }
        scopes.sort();
        scopes.dedup();
        Ok(TokenServer {
            realm,
            service: challenge.get("service").map(str::to_owned),
            scopes,
        })
    }
}

fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum TokenFault {
    /// The credential is not accepted, or cannot be used there.
    Refused,
    /// The server cannot now.
    Again {
        after: Option<Duration>,
        error: RegistryError,
    },
    /// It is of no use.
    Unusable(RegistryError),
}

/// What a token was given for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    realm: String,
    service: Option<String>,
    scopes: Vec<String>,
    /// The host that gets it.
    host: String,
    /// Fingerprint; none for nobody's.
    credential: Option<[u8; 32]>,
}

/// Held while its token is fetched, so that others wait for that one.
type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// All tokens of the process.
pub(super) struct Tokens {
    /// Nobody knows it, so that fingerprints tell nothing.
    key: [u8; 32],
    slots: Mutex<HashMap<Key, Slot>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Tokens {
            key,
            slots: Mutex::default(),
        }
    }

    /// A token that is good for a while, and not the one that was just refused.
    pub(super) async fn get(
        &self,
        clients: &Clients,
        place: &Place,
        server: &TokenServer,
        credential: Option<&Credential>,
        refused: Option<&Secret>,
        deadline: Instant,
    ) -> Result<Secret, TokenFault> {
        let key = Key {
            realm: server.realm.to_string(),
            service: server.service.clone(),
            scopes: server.scopes.clone(),
            host: place.shown.clone(),
            credential: credential.map(|credential| credential.fingerprint(&self.key, "token")),
        };
        let slot = self.slot(key);
        let mut held = slot.lock().await;
        if let Some(token) = held.as_ref()
            && token.until > Instant::now()
            && refused != Some(&token.text)
        {
            return Ok(token.text.clone());
        }
        *held = None;
        let asking = Asking {
            clients,
            place,
            server,
            deadline,
        };
        let token = asking.token(credential).await?;
        let text = token.text.clone();
        *held = Some(token);
        Ok(text)
    }

    fn slot(&self, key: Key) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_TOKENS && !slots.contains_key(&key) {
            // What is in use, or good for longer, is kept.
            let now = Instant::now();
            slots.retain(|_, slot| match slot.try_lock() {
                Ok(held) => held.as_ref().is_some_and(|token| token.until > now),
                Err(_) => true,
            });
            if slots.len() >= MAX_TOKENS {
                slots.clear();
            }
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

/// One request for a token.
struct Asking<'a> {
    clients: &'a Clients,
    place: &'a Place,
    server: &'a TokenServer,
    deadline: Instant,
}

impl Asking<'_> {
    async fn token(&self, credential: Option<&Credential>) -> Result<Token, TokenFault> {
        match credential.map(|credential| &credential.login) {
            None => self.get(None).await,
            Some(Login::Basic { username, password }) => {
                self.get(Some(basic(username, password)?)).await
            }
            Some(Login::IdentityToken(identity)) => match self.refresh(identity).await? {
                Some(token) => Ok(token),
                // Servers of before OAuth. Docker then shows the token as the
                // password of nobody.
                None => self.get(Some(basic("", identity)?)).await,
            },
            // It is a token already.
            Some(Login::RegistryToken(_)) => Err(TokenFault::Refused),
        }
    }

    async fn get(&self, authorization: Option<HeaderValue>) -> Result<Token, TokenFault> {
        let mut url = self.server.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.server.service {
                query.append_pair("service", service);
            }
            for scope in &self.server.scopes {
                query.append_pair("scope", scope);
            }
        }
        let mut own = self.own_header();
        if let Some(authorization) = authorization {
            own.insert(AUTHORIZATION, authorization);
        }
        match self.ask(Method::GET, url, own, None).await? {
            Ok(token) => Ok(token),
            Err(status) => Err(self.unusable(format!("its token server answered {status}"))),
        }
    }

    /// None where the server does not know this way.
    async fn refresh(&self, identity: &Secret) -> Result<Option<Token>, TokenFault> {
        let mut form = Url::parse("form:").map_err(|_| self.unusable("no form".to_owned()))?;
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", CLIENT_ID)
            .append_pair(
                "service",
                self.server.service.as_deref().unwrap_or_default(),
            )
            .append_pair("scope", &self.server.scopes.join(" "))
            .append_pair("refresh_token", identity.expose());
        let text = Zeroizing::new(form.query().unwrap_or_default().to_owned());
        // Before it is dropped, the other copy is overwritten, too.
        drop(Zeroizing::new(String::from(form)));
        let mut own = self.own_header();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        own.insert(CONTENT_TYPE, kind);
        let realm = self.server.realm.clone();
        match self.ask(Method::POST, realm, own, Some(text)).await? {
            Ok(token) => Ok(Some(token)),
            Err(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => Ok(None),
            Err(status) => Err(self.unusable(format!("its token server answered {status}"))),
        }
    }

    /// What the host's configuration adds goes to that host only.
    fn own_header(&self) -> HeaderMap {
        let realm = Origin::of(&self.server.realm);
        let places = [Some(&self.place.base), self.place.plain.as_ref()];
        let is_own = places
            .into_iter()
            .flatten()
            .any(|url| Origin::of(url) == realm);
        match is_own {
            true => self.place.header.clone(),
            false => HeaderMap::new(),
        }
    }

    /// A token, or the status of an answer that says nothing about credentials.
    async fn ask(
        &self,
        method: Method,
        url: Url,
        own: HeaderMap,
        form: Option<Zeroizing<String>>,
    ) -> Result<Result<Token, StatusCode>, TokenFault> {
        let is_own = Origin::of(&url) == Origin::of(&self.place.base);
        let transport = match is_own {
            true => &self.place.transport,
            false => &self.place.transport.elsewhere(),
        };
        let call = Call {
            method,
            url,
            transport,
            own,
            common: HeaderMap::new(),
            form,
            deadline: self.deadline,
        };
        let sent = exchange::send(self.clients, call).await;
        let mut response = sent.map_err(|broken| self.broken(broken))?.response;
        let status = response.status();
        let date = |name| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        match status.as_u16() {
            200..=299 => {}
            401 | 403 => return Err(TokenFault::Refused),
            // What servers answer to a refresh token that they do not know.
            400 if response.url().query().is_none() => return Err(TokenFault::Refused),
            408 | 429 | 500..=599 => {
                let after = date(RETRY_AFTER);
                return Err(TokenFault::Again {
                    after: after.and_then(|after| super::retry_after(&after, SystemTime::now())),
                    error: RegistryError::Status {
                        host: self.host(),
                        what: "a request for a token".to_owned(),
                        status: status.as_u16(),
                        message: String::new(),
                    },
                });
            }
            _ => return Ok(Err(status)),
        }
        let answered = date(reqwest::header::DATE);
        let body = exchange::body(&mut response, MAX_ANSWER_BYTES, self.deadline).await;
        let body = body.map_err(|broken| self.broken(broken))?;
        answer::parse(&body, answered.as_deref(), Instant::now())
            .map(Ok)
            .map_err(|reason| self.unusable(format!("its token server's answer {reason}")))
    }

    fn host(&self) -> String {
        let realm = self.server.realm.host_str();
        realm.unwrap_or_default().to_owned()
    }

    fn unusable(&self, reason: String) -> TokenFault {
        TokenFault::Unusable(RegistryError::Malformed {
            host: self.place.shown.clone(),
            reason,
        })
    }

    fn broken(&self, broken: Broken) -> TokenFault {
        match broken {
            Broken::Unreachable { reason, .. } => TokenFault::Again {
                after: None,
                error: RegistryError::Unreachable {
                    host: format!(
                        "{}, which gives the tokens for {}",
                        self.host(),
                        self.place.shown
                    ),
                    reason,
                },
            },
            Broken::Malformed(reason) => self.unusable(format!("of its token server, {reason}")),
            Broken::Config(error) => TokenFault::Unusable(error),
        }
    }
}

/// A name and a password as a header; what cannot be in one is refused.
fn basic(username: &str, password: &Secret) -> Result<HeaderValue, TokenFault> {
    basic_header(username, password).ok_or(TokenFault::Refused)
}

/// `Basic …`, marked as a secret.
pub(super) fn basic_header(username: &str, password: &Secret) -> Option<HeaderValue> {
    let pair = Zeroizing::new(format!("{username}:{}", password.expose()));
    secret_header("Basic", &STANDARD.encode(pair.as_bytes()))
}

/// `<scheme> <text>`, marked as a secret; none if no header can have it.
pub(super) fn secret_header(scheme: &str, text: &str) -> Option<HeaderValue> {
    let line = Zeroizing::new(format!("{scheme} {text}"));
    let mut value = HeaderValue::from_str(&line).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::super::challenge;
    use super::*;

    fn server(asked: &str, challenge: &str) -> Result<TokenServer, &'static str> {
        let challenges = challenge::parse([format!("Bearer {challenge}").as_bytes()]);
        TokenServer::new(&challenges[0], &asked.parse().unwrap(), "a/b")
    }

    #[test]
    fn only_servers_with_tls_get_passwords_of_registries_with_tls() {
        for (asked, realm, fits) in [
            ("https://a.example", "https://other.example/token", true),
            ("https://a.example", "http://a.example/token", false),
            ("https://a.example", "http://127.0.0.1/token", false),
            ("http://a.example", "http://other.example/token", true),
            ("http://a.example", "https://other.example/token", true),
            ("https://localhost:5000", "http://127.0.0.1/token", true),
            ("https://localhost:5000", "http://a.example/token", false),
            ("https://a.example", "ftp://a.example/token", false),
            ("https://a.example", "/token", false),
        ] {
            let found = server(asked, &format!("realm=\"{realm}\""));
            assert_eq!(found.is_ok(), fits, "{asked} {realm}");
        }
        assert!(server("https://a.example", "service=x").is_err());
    }

    #[test]
    fn no_more_than_pulling_is_asked_for() {
        for (scope, expected) in [
            ("", &["repository:a/b:pull"][..]),
            ("repository:a/b:pull", &["repository:a/b:pull"]),
            ("repository:a/b:pull,push,delete", &["repository:a/b:pull"]),
            ("repository:z/a/b:*", &["repository:z/a/b:pull"]),
            ("registry:catalog:*", &["repository:a/b:pull"]),
            (
                "repository:b:pull repository:a:push repository:b:pull",
                &["repository:a:pull", "repository:b:pull"],
            ),
            ("repository::pull", &["repository:a/b:pull"]),
        ] {
            let challenge = format!("realm=\"https://u:p@a.example/t\",scope=\"{scope}\"");
            let found = server("https://a.example", &challenge).unwrap();
            assert_eq!(found.scopes, expected, "{scope}");
            assert_eq!(found.realm.as_str(), "https://a.example/t");
        }
    }
}
