//! A token server, as registries with accounts have one: it knows names and
//! passwords, and gives tokens that `docker-registry` believes.

use super::http::{self, Head};
use super::run;
use super::server::Auth;
use super::tls::{Certificate, self_signed};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

const SERVICE: &str = "registry.test";
const ISSUER: &str = "tokens.test";
/// How long a good token is good, in seconds.
const LIFETIME: i64 = 300;

/// What is wrong with the tokens that are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokens {
    #[default]
    Good,
    /// Over for an hour, whatever the answer says of them.
    Expired,
    /// Good, but said to be good for so many seconds only.
    Short(i64),
    /// None; this status instead.
    Status(u16),
}

/// Who may pull what.
#[derive(Clone, Debug)]
struct Account {
    user: String,
    password: String,
    /// Instead of the password, by POST.
    identity: Option<String>,
    repositories: Vec<String>,
}

/// A request for a token.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Empty where nobody was named or the password is wrong.
    pub user: String,
    /// With its query, or the form of a POST.
    pub query: String,
    pub status: u16,
}

#[derive(Default)]
struct State {
    accounts: Vec<Account>,
    public: Vec<String>,
    tokens: Tokens,
    asked: Vec<Asked>,
    given: Vec<String>,
}

/// The server; ended with this value.
pub struct TokenServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    signer: Certificate,
    dir: tempfile::TempDir,
    state: Mutex<State>,
    ends: AtomicBool,
}

impl TokenServer {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            signer: self_signed(dir.path(), "signer"),
            dir,
            state: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let server = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if server.ends.load(Ordering::Relaxed) {
                    return;
                }
                let (server, Ok(stream)) = (Arc::clone(&server), stream) else {
                    continue;
                };
                // A client that goes away is its own business.
                std::thread::spawn(move || server.serve(stream).ok());
            }
        });
        TokenServer {
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What a registry is told of this server.
    pub fn auth(&self) -> Auth {
        Auth::Token {
            realm: format!("http://{}/token", self.address),
            service: SERVICE.to_owned(),
            issuer: ISSUER.to_owned(),
            bundle: self.shared.signer.certificate.clone(),
        }
    }

    /// Somebody who may pull some repositories.
    pub fn account(&self, user: &str, password: &str, repositories: &[&str]) {
        self.state().accounts.push(Account {
            user: user.to_owned(),
            password: password.to_owned(),
            identity: None,
            repositories: repositories.iter().map(|&name| name.to_owned()).collect(),
        });
    }

    /// What `user` may show instead of the password.
    pub fn identity_token(&self, user: &str, token: &str) {
        let mut state = self.state();
        let account = state.accounts.iter_mut().find(|one| one.user == user);
        account.unwrap().identity = Some(token.to_owned());
    }

    /// Takes an account away.
    pub fn remove(&self, user: &str) {
        self.state().accounts.retain(|one| one.user != user);
    }

    /// A repository that everybody may pull.
    pub fn public(&self, repository: &str) {
        self.state().public.push(repository.to_owned());
    }

    /// Not everybody's any more.
    pub fn close(&self, repository: &str) {
        self.state().public.retain(|one| one != repository);
    }

    /// What is given from now on.
    pub fn give(&self, tokens: Tokens) {
        self.state().tokens = tokens;
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// Every token that it ever gave.
    pub fn given(&self) -> Vec<String> {
        self.state().given.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        // Wakes it up.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let Some(head) = Head::read(&mut reader)? else {
            return Ok(());
        };
        let mut form = String::new();
        let length = head.length().unwrap_or(0);
        reader.take(length).read_to_string(&mut form)?;
        let (status, body) = self.token(&head, &form);
        let kind = ("Content-Type".to_owned(), "application/json".to_owned());
        http::answer(&mut stream, status, &[kind], body.to_string().as_bytes())?;
        stream.flush()
    }

    fn token(&self, head: &Head, form: &str) -> (u16, Value) {
        let query = match head.path().split_once('?') {
            Some((_, query)) if head.method() == "GET" => query,
            _ => form,
        };
        let parameters = parameters(query);
        let value = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key == name);
            found.map_or("", |(_, value)| value.as_str())
        };
        let mut state = self.state.lock().unwrap();
        let (shown, account) = match head.get("Authorization") {
            Some(text) => {
                let pair = text
                    .strip_prefix("Basic ")
                    .and_then(|text| STANDARD.decode(text).ok())
                    .and_then(|bytes| String::from_utf8(bytes).ok());
                let pair = pair.unwrap_or_default();
                let (user, password) = pair.split_once(':').unwrap_or_default();
                let by = |one: &&Account| one.user == user && one.password == password;
                (true, state.accounts.iter().find(by).cloned())
            }
            None if head.method() == "POST" => {
                let (user, password) = (value("username"), value("password"));
                let identity = Some(value("refresh_token")).filter(|token| !token.is_empty());
                let by = |one: &&Account| match identity {
                    Some(token) => one.identity.as_deref() == Some(token),
                    None => one.user == user && one.password == password,
                };
                (true, state.accounts.iter().find(by).cloned())
            }
            None => (false, None),
        };
        let status = match state.tokens {
            Tokens::Status(status) => status,
            _ if shown && account.is_none() => 401,
            _ if value("service") != SERVICE => 400,
            _ => 200,
        };
        state.asked.push(Asked {
            method: head.method().to_owned(),
            user: account
                .as_ref()
                .map(|one| one.user.clone())
                .unwrap_or_default(),
            query: query.to_owned(),
            status,
        });
        if status != 200 {
            return (
                status,
                json!({"errors": [{"code": "UNAUTHORIZED", "message": "no"}]}),
            );
        }
        let may = |repository: &str| {
            let named = |list: &[String]| list.iter().any(|one| one == repository);
            named(&state.public) || account.as_ref().is_some_and(|a| named(&a.repositories))
        };
        let access: Vec<Value> = parameters
            .iter()
            .filter(|(key, _)| key == "scope")
            .flat_map(|(_, value)| value.split(' '))
            .filter_map(|scope| scope.strip_prefix("repository:")?.strip_suffix(":pull"))
            .filter(|repository| may(repository))
            .map(|name| json!({"type": "repository", "name": name, "actions": ["pull"]}))
            .collect();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs() as i64;
        let (issued, lifetime) = match state.tokens {
            Tokens::Expired => (now - 3600 - LIFETIME, LIFETIME),
            Tokens::Short(seconds) => (now, seconds),
            _ => (now, LIFETIME),
        };
        let number = state.given.len();
        let claims = json!({
            "iss": ISSUER, "sub": account.map(|one| one.user).unwrap_or_default(),
            "aud": SERVICE, "iat": issued, "nbf": issued - 10, "exp": issued + lifetime,
            "jti": format!("{number}"), "access": access,
        });
        let token = self.sign(&claims, number);
        state.given.push(token.clone());
        // Nothing says when it was issued, so that a client cannot see that one is
        // over before it is refused.
        (
            200,
            json!({"token": token, "access_token": token, "expires_in": lifetime}),
        )
    }

    fn sign(&self, claims: &Value, number: usize) -> String {
        let pem = fs::read_to_string(&self.signer.certificate).unwrap();
        let der: String = pem
            .lines()
            .filter(|line| !line.starts_with("---"))
            .collect();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&header), part(claims));
        let input = self.dir.path().join(format!("{number}.txt"));
        fs::write(&input, &text).unwrap();
        let signature = run(Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.signer.key)
            .arg(&input));
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.stdout))
    }
}

/// The pairs of a query or a form.
fn parameters(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let digits = std::str::from_utf8(&digits).unwrap_or("00");
                u8::from_str_radix(digits, 16).unwrap_or(0)
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
