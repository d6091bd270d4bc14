//! What must hold for any bytes that are read as a docker config, as a fuzz
//! target and the tests have it.

use super::super::Login;
use super::{DockerConfig, Format, MAX_ENTRIES};
use std::error::Error;

/// Images that the seeds have something for.
const IMAGES: [(&str, &str); 4] = [
    ("docker.io", "library/busybox"),
    ("registry.example", "team/app"),
    ("registry.example:5000", "app"),
    ("[::1]:5000", "app"),
];

/// Checks that any bytes at all
///
/// * are read without a panic, or refused with an error of one short line;
/// * give no more than there may be, and no credential with nothing in it;
/// * mean the same in a file of any form as they do in one of today's.
///
/// # Panics
/// If one of these does not hold.
pub fn check(bytes: &[u8]) {
    for format in [Format::Current, Format::Legacy, Format::Any] {
        match DockerConfig::parse(bytes, format) {
            Ok(config) => fits(&config),
            Err(error) => {
                let text = error.to_string();
                assert!(text.chars().count() < 400 && !text.contains(char::is_control));
                assert!(error.source().is_none());
            }
        }
    }
    let Ok(config) = DockerConfig::parse(bytes, Format::Current) else {
        return;
    };
    for (host, repository) in IMAGES {
        let found = config.logins.find(host, repository);
        if !found.is_empty() {
            let any = DockerConfig::parse(bytes, Format::Any);
            assert!(any.is_ok_and(|any| any.logins.find(host, repository) == found));
        }
    }
}

fn fits(config: &DockerConfig) {
    assert!(config.helpers.len() <= MAX_ENTRIES);
    for (host, repository) in IMAGES {
        for login in config.logins.find(host, repository) {
            match login {
                Login::Basic { username, password } => {
                    assert!(!username.is_empty() || !password.is_empty());
                }
                Login::IdentityToken(token) | Login::RegistryToken(token) => {
                    assert!(!token.is_empty());
                }
            }
        }
    }
}

/// Docker configs, to start mutations from.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        // user:pass:word
        r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNzOndvcmQ="}}}"#,
        r#"{"auths":{"registry.example/team":{"auth":"dXNlcjo_Pz8"},"*.example":{
            "username":"user","password":"secret"}},"credsStore":"pass"}"#,
        r#"{"registry.example:5000":{"auth":"dXNlcjpwYXNzAAAA","email":"a@b"}}"#,
        r#"{"auths":{"[::1]:5000":{"auth":"OjA=","identitytoken":"token"},
            "registry.example":{"registrytoken":"token"}},"credHelpers":{"a.example":"ecr-login"}}"#,
        r#"{"auths":{"registry.example":{"auth":"nobase64!"}}}"#,
        r#"{"auths":{"registry.example":{"auth":"bm9jb2xvbg=="}}}"#,
        r#"{"auths":{"registry.example":null,"https://u:p@registry.example/v2/":{}}}"#,
        r#"{"auths":null,"HttpHeaders":{"a":"b"}}"#,
        "{}",
        "null",
        "[[[[[[[[[[[[[[[[",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_hold() {
        let mut found = 0;
        for seed in seeds() {
            check(&seed);
            if let Ok(config) = DockerConfig::parse(&seed, Format::Any) {
                let of = |(host, repository)| config.logins.find(host, repository).len();
                found += IMAGES.into_iter().map(of).sum::<usize>();
            }
        }
        // One, two, one, three.
        assert_eq!(found, 7);
    }
}
