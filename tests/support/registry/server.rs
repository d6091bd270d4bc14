//! Debian's `docker-registry`, as a process of its own.

use super::http::{self, PATIENCE};
use super::tls::Certificate;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A name and a password that the registry's file below has. The hash is bcrypt's,
/// which is all that this registry reads.
pub const USER: &str = "robot";
pub const PASSWORD: &str = "planted-k7Qz-93ff-password";
const HTPASSWD: &str = "robot:$2y$05$abcdefghijklmnopqrstuudT9SKAZHljbcIaMkNCJESBsw8Trlnwe\n";

/// Whom a registry serves.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody, who may also push.
    #[default]
    None,
    /// Who knows [`USER`] and [`PASSWORD`].
    Basic,
    /// Who brings a token of a token server.
    Token {
        realm: String,
        service: String,
        issuer: String,
        /// The certificate of who signs.
        bundle: PathBuf,
    },
}

/// How a registry is to be.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    pub auth: Auth,
    pub tls: Option<Certificate>,
    /// What another registry has, instead of nothing.
    pub storage: Option<PathBuf>,
    /// Where it answers, instead of any free port.
    pub address: Option<String>,
}

/// A registry that runs; ended with this value.
#[derive(Debug)]
pub struct Registry {
    child: Option<Child>,
    address: String,
    storage: PathBuf,
    dir: tempfile::TempDir,
    setup: Setup,
}

impl Registry {
    /// One that serves everybody.
    pub fn open() -> Self {
        Self::start(Setup::default())
    }

    pub fn start(setup: Setup) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("registry-")
            .tempdir_in("/dev/shm")
            .unwrap();
        let storage = setup
            .storage
            .clone()
            .unwrap_or_else(|| dir.path().join("storage"));
        let mut registry = Registry {
            child: None,
            address: String::new(),
            storage,
            dir,
            setup,
        };
        registry.resume();
        registry
    }

    /// A second registry with the same content, for others.
    pub fn with_auth(&self, auth: Auth) -> Self {
        Self::start(Setup {
            auth,
            storage: Some(self.storage.clone()),
            ..Setup::default()
        })
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// What it has logged, which is whom it served.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it. Its address refuses connections until [`Registry::resume`].
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it, at the address that it had before if it had one.
    pub fn resume(&mut self) {
        let config = self.dir.path().join("config.yml");
        fs::write(&config, self.config()).unwrap();
        let log = self.dir.path().join("log");
        let file = File::create(&log).unwrap();
        // Not even where this process is killed does it stay.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn();
        let child = child
            .unwrap_or_else(|error| panic!("this test needs docker-registry; install it: {error}"));
        let begun = Instant::now();
        let child = self.child.insert(child);
        self.address = loop {
            let said = fs::read_to_string(&log).unwrap();
            if let Some(address) = listens(&said) {
                break address;
            }
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "docker-registry does not start ({ended:?}): {said}"
            );
            std::thread::sleep(Duration::from_millis(5));
        };
    }

    fn config(&self) -> String {
        let address = match (&self.setup.address, self.address.as_str()) {
            (Some(address), _) => address,
            (None, "") => "127.0.0.1:0",
            (None, before) => before,
        };
        let dir = self.dir.path();
        let mut text = format!(
            "version: 0.1\n\
             log: {{level: info}}\n\
             storage:\n  filesystem: {{rootdirectory: {:?}}}\n  delete: {{enabled: true}}\n\
             http:\n  addr: {address:?}\n  secret: of-this-test\n",
            self.storage
        );
        if let Some(Certificate { certificate, key }) = &self.setup.tls {
            text.push_str(&format!(
                "  tls: {{certificate: {certificate:?}, key: {key:?}}}\n"
            ));
        }
        match &self.setup.auth {
            Auth::None => {}
            Auth::Basic => {
                let path = dir.join("htpasswd");
                fs::write(&path, HTPASSWD).unwrap();
                text.push_str(&format!(
                    "auth:\n  htpasswd: {{realm: test, path: {path:?}}}\n"
                ));
            }
            Auth::Token {
                realm,
                service,
                issuer,
                bundle,
            } => text.push_str(&format!(
                "auth:\n  token: {{realm: {realm:?}, service: {service:?}, \
                 issuer: {issuer:?}, rootcertbundle: {bundle:?}}}\n"
            )),
        }
        text
    }

    /// A GET of its own, for tests that look whether something is there.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> http::Answer {
        http::request(&self.address, "GET", path, headers, b"")
    }
}

/// Where it says that it listens.
fn listens(log: &str) -> Option<String> {
    let text = log.split("listening on ").nth(1)?;
    let address: String = text
        .chars()
        .take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':'))
        .collect();
    // The line may not be whole yet.
    text[address.len()..].contains('\n').then_some(address)
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.log();
            // Those of its access log.
            let asked = |line: &&str| line.starts_with("127.0.0.1 ");
            let mut lines: Vec<&str> = log.lines().rev().filter(asked).take(20).collect();
            lines.reverse();
            println!("what {} was last asked:\n{}", self.address, lines.join("\n"));
        }
    }
}
