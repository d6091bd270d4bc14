use super::super::exec::scripts;
use super::*;
use crate::image::credentials::{CredentialSettings, ProviderSettings};
use crate::image::testdata::chain;

const PLANTED: &str = "hunter2-planted";

fn secret(pairs: &[(&str, &str)]) -> BTreeMap<String, Secret> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), Secret::new((*value).to_owned())))
        .collect()
}

fn auths(registry: &str, username: &str) -> String {
    format!(r#"{{"{registry}": {{"username": "{username}", "password": "{PLANTED}"}}}}"#)
}

fn current(registry: &str, username: &str) -> String {
    format!(r#"{{"auths": {}}}"#, auths(registry, username))
}

fn pod(pairs: &[(&str, &str)]) -> Result<Keyring, CredentialError> {
    Keyring::from_pod(&secret(pairs), Arc::default())
}

/// Who gave it, and the name in it.
fn names(credentials: &[Credential]) -> Vec<(Origin, &str)> {
    let credentials = credentials.iter();
    credentials
        .map(|credential| {
            let name = match &credential.login {
                Login::Basic { username, .. } => username.as_str(),
                Login::IdentityToken(_) | Login::RegistryToken(_) => "",
            };
            (credential.origin.clone(), name)
        })
        .collect()
}

#[test]
fn a_pods_secret_has_docker_configs_of_both_forms() {
    let keyring = pod(&[
        (".dockerconfigjson", &current("a.example", "new")),
        (".dockercfg", &auths("a.example", "old")),
        ("team.dockerconfigjson", &current("b.example", "team")),
        ("ca.crt", "-----BEGIN"),
    ])
    .unwrap();
    let found = keyring.lookup("a.example", "app");
    assert_eq!(names(&found), [(Origin::Pod, "old"), (Origin::Pod, "new")]);
    assert_eq!(
        keyring.sources("a.example", "app"),
        "the pod's nodePublishSecretRef has 2 entries"
    );
    assert_eq!(
        names(&keyring.lookup("b.example", "app")),
        [(Origin::Pod, "team")]
    );
    assert!(keyring.lookup("c.example", "app").is_empty());
    assert_eq!(
        keyring.sources("c.example", "app"),
        "the pod's nodePublishSecretRef has nothing for c.example/app"
    );
}

#[test]
fn a_secret_of_another_kind_is_refused_with_what_to_do() {
    let error = pod(&[("username", PLANTED), ("password", PLANTED)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the secret of nodePublishSecretRef has the keys password, username, and neither .dockerconfigjson nor .dockercfg; name one of type kubernetes.io/dockerconfigjson, as kubectl create secret docker-registry makes it"
    );
    assert!(!format!("{error:?}").contains("hunter"));
    let many: Vec<String> = (0..8).map(|number| format!("k{number}\n")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
    let shown = pod(&many).unwrap_err().to_string();
    assert!(
        shown.contains(r"the keys k0\n, k1\n, k2\n, k3\n, k4\n, 3 more, and"),
        "{shown}"
    );
    for text in [
        PLANTED.to_owned(),
        format!(r#"{{"auths": {{"a.example": "{PLANTED}"}}}}"#),
        format!(r#"{{"auths": {{"a.example": {{"auth": "{PLANTED}!"}}}}}}"#),
        format!(r#"{{"auths": {{"a.example": {{"auth": "{PLANTED}", }}}}}}"#),
    ] {
        for key in [".dockerconfigjson", ".dockercfg"] {
            let Err(error) = pod(&[(key, &text)]) else {
                assert_eq!(key, ".dockercfg", "{text}");
                continue;
            };
            let shown = chain(&error);
            assert!(
                shown.starts_with(&format!("the key {key:?} of the secret")),
                "{shown}"
            );
            assert!(!format!("{shown} {error:?}").contains("hunter"), "{shown}");
        }
    }
}

#[test]
fn a_pod_comes_first_then_the_providers_then_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let response = |auth: &str| {
        format!(
            r#"echo '{{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry", "auth": {auth}}}'"#
        )
    };
    scripts::write(dir.path(), "cloud", &response(&auths("*.example", "cloud")));
    scripts::write(
        dir.path(),
        "broken",
        &format!("echo {PLANTED}; echo {PLANTED} >&2; exit 7"),
    );
    let provider = |name: &str| {
        format!(
            "{{name: {name}, matchImages: ['*.example'], defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1}}"
        )
    };
    let config = format!(
        "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders: [{}, {}]",
        provider("broken"),
        provider("cloud")
    );
    std::fs::write(path("providers.yaml"), config).unwrap();
    // The second is what the pod has, too.
    let both = format!(
        r#"{{"auths": {{"a.example": {{"username": "node", "password": "{PLANTED}"}}, "a.*": {{"username": "pod", "password": "{PLANTED}"}}}}}}"#
    );
    std::fs::write(path("config.json"), both).unwrap();
    let node = NodeCredentials::open(&CredentialSettings {
        docker_config: Some(path("config.json")),
        providers: Some(ProviderSettings {
            config: path("providers.yaml"),
            bin_dir: dir.path().to_owned(),
        }),
    });
    let node = Arc::new(node.unwrap());
    let text = current("a.example", "pod");
    let keyring =
        Keyring::from_pod(&secret(&[(".dockerconfigjson", &text)]), Arc::clone(&node)).unwrap();
    let found = keyring.lookup("a.example", "app");
    assert_eq!(
        names(&found),
        [
            (Origin::Pod, "pod"),
            (Origin::Provider("cloud".to_owned()), "cloud"),
            (Origin::Node, "node"),
        ]
    );
    assert_eq!(
        keyring.sources("a.example", "app"),
        "the pod's nodePublishSecretRef has an entry; the credential provider broken failed (exit status: 7; see the log at debug); the credential provider cloud has an entry; the node's registry credentials have 2 entries"
    );
    let shown = format!("{keyring:?} {keyring:#?} {found:?}");
    assert!(
        shown.contains("cloud") && !shown.contains("hunter"),
        "{shown}"
    );
    let keyring = Keyring::from_pod(&BTreeMap::new(), node).unwrap();
    assert_eq!(
        keyring.sources("quay.io", "app"),
        "the pod names no secret in nodePublishSecretRef; no credential provider is for it; the node's registry credentials have nothing for quay.io/app"
    );
    assert_eq!(names(&keyring.lookup("a.example", "app")).len(), 3);
}

#[test]
fn a_persons_login_is_for_the_images_that_were_named() {
    let login = CommandCredentials::Login {
        username: "user".to_owned(),
        password: Some(Secret::new(PLANTED.to_owned())),
    };
    let keyring = Keyring::command(&login, &["a.example:5000", "docker.io"]).unwrap();
    for host in ["a.example:5000", "docker.io"] {
        assert_eq!(
            names(&keyring.lookup(host, "app")),
            [(Origin::Command, "user")]
        );
    }
    assert!(keyring.lookup("mirror.example", "app").is_empty());
    assert_eq!(
        keyring.sources("mirror.example", "app"),
        "the credentials of the command have nothing for mirror.example/app"
    );
    assert!(!format!("{login:?} {keyring:?}").contains("hunter"));
}

#[test]
fn a_persons_docker_config_must_be_there_if_it_was_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let command = |is_required| {
        let path = path.clone();
        Keyring::command(&CommandCredentials::File { path, is_required }, &[])
    };
    assert!(matches!(command(true), Err(CredentialError::Read { .. })));
    assert!(
        command(false)
            .unwrap()
            .lookup("a.example", "app")
            .is_empty()
    );
    std::fs::write(&path, current("a.example", "user")).unwrap();
    let keyring = command(true).unwrap();
    assert_eq!(
        names(&keyring.lookup("a.example", "app")),
        [(Origin::Command, "user")]
    );
    std::fs::write(&path, r#"{"credsStore": "no-such-helper-anywhere"}"#).unwrap();
    let keyring = command(false).unwrap();
    assert!(keyring.lookup("a.example", "app").is_empty());
    let sources = keyring.sources("a.example", "app");
    assert!(
        sources.starts_with("the credential helper no-such-helper-anywhere cannot be run: "),
        "{sources}"
    );
    std::fs::write(&path, PLANTED).unwrap();
    let shown = chain(&command(false).unwrap_err());
    assert!(
        shown.contains("is not a docker config") && !shown.contains("hunter"),
        "{shown}"
    );
    let none = Keyring::command(&CommandCredentials::None, &[]).unwrap();
    assert!(none.lookup("a.example", "app").is_empty());
}

#[test]
fn a_fingerprint_tells_credentials_and_scopes_apart() {
    let credential = |username: &str, password: &str| Credential {
        origin: Origin::Pod,
        login: Login::Basic {
            username: username.to_owned(),
            password: Secret::new(password.to_owned()),
        },
    };
    let of = |credential: Credential, scope: &str| credential.fingerprint(&[7; 32], scope);
    let first = of(credential("user", "pass"), "a.example/app");
    assert_eq!(of(credential("user", "pass"), "a.example/app"), first);
    let node = Credential {
        origin: Origin::Node,
        ..credential("user", "pass")
    };
    assert_eq!(of(node, "a.example/app"), first, "whoever gave it");
    for other in [
        of(credential("userp", "ass"), "a.example/app"),
        of(credential("user", "pass"), "a.example/apps"),
        credential("user", "pass").fingerprint(&[8; 32], "a.example/app"),
        of(
            Credential {
                origin: Origin::Pod,
                login: Login::IdentityToken(Secret::new("pass".to_owned())),
            },
            "a.example/app",
        ),
    ] {
        assert_ne!(other, first);
    }
}
