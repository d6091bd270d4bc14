//! A kubeconfig file, as far as a program without a person needs it: a
//! certificate or a token. What would run other programs or is not verified is
//! refused by name rather than ignored.

use super::{Access, AccessError, MAX_FILE_BYTES, Token, certificates, read as read_file};
use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::path::{Path, PathBuf};

/// The file; what it has besides does not matter here.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: Option<String>,
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
    username: Option<IgnoredAny>,
    r#as: Option<IgnoredAny>,
}

pub(super) fn read(path: &Path) -> Result<Access, AccessError> {
    let bytes = read_file(path, MAX_FILE_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| AccessError::content(path, "not text"))?;
    let text = Secret::new(text);
    let (cluster, user) = parse(text.expose())
        .and_then(choose)
        .map_err(|reason| AccessError::content(path, reason))?;
    Reader { path }.access(cluster, user)
}

fn parse(text: &str) -> Result<Kubeconfig, String> {
    // Its errors say where and not what, which may be a secret.
    crate::yaml::read(text.as_bytes()).map_err(|error| error.to_string())
}

/// What the current context is about.
fn choose(config: Kubeconfig) -> Result<(Cluster, User), String> {
    let wanted = config
        .current_context
        .filter(|name| !name.is_empty())
        .ok_or("it has no current-context")?;
    let missing = |kind: &str, name: &str| format!("it has no {kind} {name:?}");
    let context = config
        .contexts
        .into_iter()
        .flatten()
        .find(|context| context.name == wanted)
        .ok_or_else(|| missing("context", &wanted))?
        .context;
    let cluster = config
        .clusters
        .into_iter()
        .flatten()
        .find(|cluster| cluster.name == context.cluster)
        .ok_or_else(|| missing("cluster", &context.cluster))?
        .cluster;
    let user = match context.user.filter(|name| !name.is_empty()) {
        None => User::default(),
        Some(name) => {
            config
                .users
                .into_iter()
                .flatten()
                .find(|user| user.name == name)
                .ok_or_else(|| missing("user", &name))?
                .user
        }
    };
    let unsupported = [
        (
            "insecure-skip-tls-verify",
            cluster.insecure_skip_tls_verify == Some(true),
        ),
        ("tls-server-name", is_set(&cluster.tls_server_name)),
        ("proxy-url", is_set(&cluster.proxy_url)),
        ("exec", user.exec.is_some()),
        ("auth-provider", user.auth_provider.is_some()),
        ("username", user.username.is_some()),
        ("as", user.r#as.is_some()),
    ];
    match unsupported.iter().find(|(_, is_used)| *is_used) {
        Some((name, _)) => Err(format!("{name} is not supported")),
        None => Ok((cluster, user)),
    }
}

fn is_set(value: &Option<String>) -> bool {
    value.as_ref().is_some_and(|value| !value.is_empty())
}

/// Reads what the file names, relative to itself.
struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn access(&self, cluster: Cluster, user: User) -> Result<Access, AccessError> {
        let User {
            token,
            token_file,
            client_certificate,
            client_certificate_data,
            client_key,
            client_key_data,
            ..
        } = user;
        // The file counts more than the text, as for kubectl.
        let token = match (token_file, token.filter(|token| !token.is_empty())) {
            (Some(path), _) => Token::file(self.beside(&path)),
            (None, Some(token)) => Token::Fixed(Secret::new(token)),
            (None, None) => Token::None,
        };
        let roots = self.pem(
            "certificate-authority-data",
            cluster.certificate_authority_data,
            cluster.certificate_authority,
        )?;
        let certificate = self.pem(
            "client-certificate-data",
            client_certificate_data,
            client_certificate,
        )?;
        let key = self.pem("client-key-data", client_key_data, client_key)?;
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some((text, path)), Some((key, key_path))) => {
                let key = Secret::new(key);
                let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
                    .map_err(|_| AccessError::content(&key_path, "no private key in it"))?;
                Some((certificates(text.as_bytes(), &path)?, key))
            }
            _ => {
                return Err(AccessError::content(
                    self.path,
                    "of a client's certificate and its key there is only one",
                ));
            }
        };
        Ok(Access {
            server: super::server_url(&cluster.server, !matches!(token, Token::None))?,
            roots: match roots {
                Some((text, path)) => certificates(text.as_bytes(), &path)?,
                None => Vec::new(),
            },
            identity,
            token,
        })
    }

    fn beside(&self, path: &Path) -> PathBuf {
        match self.path.parent() {
            Some(directory) => directory.join(path),
            None => path.to_owned(),
        }
    }

    /// PEM out of the file, or of one that it names, with the name of where it is.
    fn pem(
        &self,
        key: &str,
        inline: Option<String>,
        path: Option<PathBuf>,
    ) -> Result<Option<(String, PathBuf)>, AccessError> {
        if let Some(data) = inline.filter(|data| !data.is_empty()) {
            let data = Secret::new(data.split_ascii_whitespace().collect());
            let text = STANDARD
                .decode(data.expose())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| {
                    AccessError::content(self.path, format_args!("{key} is not PEM in base64"))
                })?;
            return Ok(Some((text, self.path.to_owned())));
        }
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(None);
        };
        let path = self.beside(&path);
        let bytes = read_file(&path, MAX_FILE_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|_| AccessError::content(&path, "not text"))?;
        Ok(Some((text, path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    const CERTIFICATE: &str = include_str!("testdata/ca.crt");
    const KEY: &str = include_str!("testdata/key.pem");

    fn config(cluster: Value, user: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "preferences": {},
            "current-context": "here",
            "contexts": [{"name": "there", "context": {"cluster": "far"}},
                {"name": "here", "context": {"cluster": "near", "user": "me"}}],
            "clusters": [{"name": "near", "cluster": cluster}],
            "users": [{"name": "me", "user": user}],
        })
    }

    /// Reads it from a directory that has files beside it.
    fn read_json(config: &Value) -> Result<Access, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        file("config", &config.to_string());
        file("ca.crt", CERTIFICATE);
        file("key.pem", KEY);
        file("token", "hunter2\n");
        let mut access = read(&directory.path().join("config"))
            .map_err(|error| crate::chain::Chain(&error).to_string())?;
        // While it is there.
        access.token.current().map_err(|error| error.to_string())?;
        Ok(access)
    }

    #[test]
    fn certificates_keys_and_tokens_are_in_the_file_or_beside_it() {
        let data = |text: &str| STANDARD.encode(text);
        for (cluster, user, roots, has_identity, token) in [
            (
                json!({"server": "https://h:6443", "certificate-authority": "ca.crt"}),
                json!({"tokenFile": "token"}),
                1,
                false,
                Some("hunter2"),
            ),
            (
                json!({"server": "https://h:6443", "certificate-authority-data": data(CERTIFICATE),
                    "insecure-skip-tls-verify": false, "extensions": null}),
                json!({"token": "hunter2"}),
                1,
                false,
                Some("hunter2"),
            ),
            (
                json!({"server": "https://h:6443"}),
                json!({"client-certificate": "ca.crt", "client-key": "key.pem"}),
                0,
                true,
                None,
            ),
            (
                json!({"server": "https://h:6443"}),
                json!({"client-certificate-data": data(CERTIFICATE), "client-key-data": data(KEY)}),
                0,
                true,
                None,
            ),
        ] {
            let mut access = read_json(&config(cluster, user)).unwrap();
            assert_eq!(access.server, "https://h:6443");
            assert_eq!(access.roots.len(), roots);
            assert_eq!(access.identity.is_some(), has_identity);
            let found = access.token.current().unwrap().map(Secret::expose);
            assert_eq!(found, token);
        }
    }

    #[test]
    fn it_is_yaml_as_kubectl_writes_it() {
        let text = "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://127.0.0.1:6443
  name: kind
contexts:
- context:
    cluster: kind
    namespace: team
    user: admin
  name: kind-admin
current-context: kind-admin
kind: Config
preferences: {}
users:
- name: admin
  user:
    token: '0123'
";
        let (cluster, user) = choose(parse(text).unwrap()).unwrap();
        assert_eq!(cluster.server, "https://127.0.0.1:6443");
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
        assert_eq!(user.token.as_deref(), Some("0123"));
        // `kubectl config view` of one that is empty.
        let empty = "clusters: null\ncontexts: null\ncurrent-context: \"\"\nusers: null\n";
        assert!(choose(parse(empty).unwrap()).is_err());
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_by_name() {
        let cluster = || json!({"server": "https://h"});
        let with = |mut value: Value, key: &str, other: Value| {
            value[key] = other;
            value
        };
        for (key, value) in [
            ("insecure-skip-tls-verify", json!(true)),
            ("tls-server-name", json!("h")),
            ("proxy-url", json!("http://p")),
        ] {
            let error = read_json(&config(with(cluster(), key, value), json!({}))).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
        for (key, value) in [
            ("exec", json!({"command": "aws"})),
            ("auth-provider", json!({"name": "oidc"})),
            ("username", json!("admin")),
            ("as", json!("other")),
        ] {
            let error = read_json(&config(cluster(), with(json!({}), key, value))).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
        for (change, wanted) in [
            (json!({"current-context": null}), "no current-context"),
            (json!({"current-context": "there"}), "no cluster \"far\""),
            (json!({"contexts": null}), "no context \"here\""),
            (json!({"users": []}), "no user \"me\""),
        ] {
            let mut whole = config(cluster(), json!({}));
            for (key, value) in change.as_object().unwrap() {
                whole[key] = value.clone();
            }
            let error = read_json(&whole).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        let half = json!({"client-certificate": "ca.crt"});
        assert!(read_json(&config(cluster(), half)).is_err());
    }

    #[test]
    fn no_error_has_a_part_of_a_secret() {
        for user in [
            json!({"token": ["hunter2"]}),
            json!({"token": {"hunter2": 1}}),
            json!({"client-key-data": "hunter2"}),
            json!({"client-key-data": STANDARD.encode("hunter2"), "client-certificate": "ca.crt"}),
            json!({"client-certificate": "ca.crt", "client-key": "token"}),
            json!("hunter2"),
        ] {
            let error = read_json(&config(json!({"server": "https://h"}), user)).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        for text in [
            "{\"users\": hunter2",
            "users: hunter2",
            "users:\n- hunter2: [",
        ] {
            let error = parse(text).err().unwrap();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
