//! Docker's credential helpers: `docker-credential-NAME get`, of the person whose
//! command this is.

use super::Login;
use super::docker_config::DockerConfig;
use super::exec::{self, Call, ExecError};
use crate::image::printable;
use crate::secret::Secret;
use std::ffi::OsString;
use std::time::Duration;

/// How long a helper may take: it may ask the person something.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Docker Hub, as Docker asks its helpers for it.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The name that stands for none, with which a helper gives an identity token.
const TOKEN_NAME: &str = "<token>";
/// What a helper says that has nothing; it is no failure.
const NOTHING: &[u8] = b"credentials not found in native keychain";

/// Why a helper gave nothing that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HelperError {
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error("failed ({0})")]
    Failed(String),
    #[error("gave an answer that cannot be used")]
    Answer,
    #[error("is not the name of a program")]
    Name,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Raw {
    username: String,
    secret: Secret,
}

/// Which helper a docker config has for a registry, and as what it knows it.
pub(super) fn of<'a>(config: &'a DockerConfig, host: &str) -> Option<(&'a str, String)> {
    let aliases: &[&str] = match host {
        "docker.io" => &[HUB_KEY, "docker.io", "index.docker.io"],
        _ => &[],
    };
    for key in [host].iter().chain(aliases) {
        if let Some(name) = config.helpers.get(*key) {
            return Some((name, (*key).to_owned()));
        }
    }
    let key = aliases.first().copied().unwrap_or(host);
    Some((config.store.as_deref()?, key.to_owned()))
}

/// Asks a helper, which is found where all commands are.
pub(super) fn ask(name: &str, registry: &str) -> Result<Option<Login>, HelperError> {
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err(HelperError::Name);
    }
    ask_program(
        OsString::from(format!("docker-credential-{name}")),
        registry,
    )
}

fn ask_program(program: OsString, registry: &str) -> Result<Option<Login>, HelperError> {
    let ended = exec::run(&Call {
        program: &program,
        args: &["get".to_owned()],
        env: &[],
        input: registry.as_bytes(),
        timeout: TIMEOUT,
    })?;
    tracing::debug!(
        helper = %program.display(),
        status = %ended.status,
        stderr = printable(ended.complaint.trim()),
        "a credential helper was run"
    );
    if !ended.status.success() {
        if ended.output.trim_ascii() == NOTHING {
            return Ok(None);
        }
        return Err(HelperError::Failed(ended.status.to_string()));
    }
    let raw: Raw = serde_json::from_slice(&ended.output).map_err(|_| HelperError::Answer)?;
    Ok(match raw.username.as_str() {
        _ if raw.secret.is_empty() => None,
        TOKEN_NAME => Some(Login::IdentityToken(raw.secret)),
        _ => Some(Login::Basic {
            username: raw.username,
            password: raw.secret,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::super::docker_config::Format;
    use super::super::exec::scripts;
    use super::*;

    #[test]
    fn a_registry_has_one_helper() {
        let json = br#"{"credsStore": "all", "credHelpers": {
            "a.example": "own", "b.example:5000": "other"}}"#;
        let config = DockerConfig::parse(json, Format::Any).unwrap();
        let of = |host: &str| of(&config, host).map(|(name, key)| (name.to_owned(), key));
        let pair = |name: &str, key: &str| Some((name.to_owned(), key.to_owned()));
        assert_eq!(of("a.example"), pair("own", "a.example"));
        assert_eq!(of("b.example:5000"), pair("other", "b.example:5000"));
        assert_eq!(of("b.example"), pair("all", "b.example"));
        assert_eq!(of("docker.io"), pair("all", HUB_KEY));
        for key in ["docker.io", "index.docker.io", HUB_KEY] {
            let json = format!(r#"{{"credHelpers": {{"{key}": "hub"}}}}"#);
            let config = DockerConfig::parse(json.as_bytes(), Format::Any).unwrap();
            assert_eq!(
                super::of(&config, "docker.io"),
                Some(("hub", key.to_owned()))
            );
            assert_eq!(super::of(&config, "a.example"), None);
        }
    }

    #[test]
    fn its_answer_is_a_password_a_token_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ask = |body: &str| {
            let program = scripts::write(dir.path(), "docker-credential-test", body);
            ask_program(program.into_os_string(), "a.example")
        };
        let body = r#"read -r name; test "$1 $name" = "get a.example" &&
            echo '{"ServerURL": "x", "Username": "user", "Secret": "hunter2"}'"#;
        assert_eq!(
            ask(body),
            Ok(Some(Login::Basic {
                username: "user".to_owned(),
                password: Secret::new("hunter2".to_owned())
            }))
        );
        assert_eq!(
            ask(r#"echo '{"ServerURL": "", "Username": "<token>", "Secret": "hunter2"}'"#),
            Ok(Some(Login::IdentityToken(Secret::new(
                "hunter2".to_owned()
            ))))
        );
        let nothing = "echo credentials not found in native keychain; exit 1";
        assert_eq!(ask(nothing), Ok(None));
        for body in [
            "echo hunter2; exit 1",
            r#"echo '{"Username": "hunter2", "Secret": 1}'"#,
            r#"echo '"hunter2"'"#,
        ] {
            let error = ask(body).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter"), "{body}");
        }
        assert_eq!(super::ask("../x", "a.example"), Err(HelperError::Name));
        assert!(matches!(
            super::ask("no-such-helper-anywhere", "a.example"),
            Err(HelperError::Exec(ExecError::Start(_)))
        ));
    }
}
