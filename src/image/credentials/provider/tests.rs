use super::super::exec::scripts;
use super::config::parse;
use super::protocol::{Version, parse_duration};
use super::*;
use crate::image::credentials::{
    CredentialError, CredentialSettings, NodeCredentials, ProviderSettings,
};
use crate::image::testdata::chain;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const PLANTED: &str = "hunter2-planted";

/// A directory of providers, and how often each was run.
struct Providers {
    dir: TempDir,
}

impl Providers {
    fn new() -> Self {
        Providers {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A provider whose program counts its runs and then does `body`.
    fn add(&self, name: &str, extra: &str, body: &str) -> Provider {
        let body = format!("echo run >> {}\n{body}", self.runs(name).display());
        scripts::write(self.dir.path(), name, &body);
        let text = format!(
            "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n- name: {name}\n  matchImages: ['*.example', 'registry.example:5000/team']\n  defaultCacheDuration: 10m\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n{extra}"
        );
        let settings = parse(text.as_bytes()).unwrap().remove(0);
        Provider::new(settings, self.dir.path())
    }

    fn runs(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.runs"))
    }

    fn count(&self, name: &str) -> usize {
        let text = fs::read_to_string(self.runs(name)).unwrap_or_default();
        text.lines().count()
    }
}

/// A script that answers.
fn answer(key_type: &str, extra: &str) -> String {
    format!(
        r#"cat > /dev/null; echo '{{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "{key_type}", "auth": {{"*.example": {{"username": "user", "password": "{PLANTED}"}}}}{extra}}}'"#
    )
}

fn login() -> Login {
    Login::Basic {
        username: "user".to_owned(),
        password: Secret::new(PLANTED.to_owned()),
    }
}

#[test]
fn a_provider_is_asked_as_kubelet_asks() {
    let providers = Providers::new();
    let seen = providers.dir.path().join("seen");
    let extra = "  args: [get, 'a b']\n  env:\n  - {name: REGION, value: north}\n";
    let body = format!(
        "{{ echo \"$1/$2/$REGION\"; cat; }} > {}\n{}",
        seen.display(),
        answer("Registry", "")
    );
    let provider = providers.add("one", extra, &body);
    let outcome = provider.ask("registry.example", "team/app").unwrap();
    assert_eq!(*outcome, [("*.example".to_owned(), login())]);
    let seen = fs::read_to_string(seen).unwrap();
    let (first, request) = seen.split_once('\n').unwrap();
    assert_eq!(first, "get/a b/north");
    let request: serde_json::Value = serde_json::from_str(request).unwrap();
    assert_eq!(
        request,
        serde_json::json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "image": "registry.example/team/app",
        })
    );
    for (host, repository, is_for) in [
        ("registry.example", "a", true),
        ("a.b.example", "a", false),
        ("registry.example:5000", "team/app", true),
        ("registry.example:5000", "other", false),
    ] {
        assert_eq!(
            provider.is_for(host, repository),
            is_for,
            "{host}/{repository}"
        );
    }
}

#[test]
fn an_answer_is_good_for_what_it_says() {
    let providers = Providers::new();
    // Of three images, two at one registry: how often each kind is asked for.
    for (name, key_type, extra, runs) in [
        ("image", "Image", "", 3),
        ("registry", "Registry", "", 2),
        ("global", "Global", "", 1),
        ("never", "Global", r#", "cacheDuration": "0s""#, 6),
        ("before", "Global", r#", "cacheDuration": "-1h""#, 6),
        ("short", "Global", r#", "cacheDuration": "1ns""#, 6),
        ("long", "Global", r#", "cacheDuration": "2500000h""#, 1),
        ("default", "Global", r#", "cacheDuration": null"#, 1),
    ] {
        let provider = providers.add(name, "", &answer(key_type, extra));
        for _ in 0..2 {
            for (host, repository) in [("a.example", "x"), ("a.example", "y"), ("b.example", "x")] {
                assert_eq!(provider.ask(host, repository).unwrap().len(), 1);
            }
        }
        assert_eq!(providers.count(name), runs, "{name}");
    }
    let mut provider = providers.add("none", "", &answer("Global", ""));
    provider.settings.default_duration = Duration::ZERO;
    for _ in 0..2 {
        provider.ask("a.example", "x").unwrap();
    }
    assert_eq!(providers.count("none"), 2, "a default of nothing");
}

#[test]
fn what_is_kept_ends_and_is_bounded() {
    let mut state = State::default();
    let outcome = || Ok(Arc::new(Vec::new()));
    let hour = Duration::from_secs(3600);
    state.keep(Key::Global, outcome(), Duration::from_millis(1));
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(state.find("a.example/x", "a.example"), None);
    for number in 0..MAX_KEPT + 10 {
        let time = hour + Duration::from_secs(number as u64);
        state.keep(Key::Image(format!("a.example/{number}")), outcome(), time);
    }
    assert_eq!(state.kept.len(), MAX_KEPT);
    assert_eq!(state.find("a.example/0", "a.example"), None);
    assert!(state.find("a.example/500", "a.example").is_some());
}

#[test]
fn one_image_is_asked_for_once_at_a_time() {
    let providers = Providers::new();
    let body = format!(
        "sleep 0.3\n{}",
        answer("Image", r#", "cacheDuration": "0s""#)
    );
    let provider = providers.add("slow", "", &body);
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| provider.ask("a.example", "x").map(|answer| answer.len())))
            .collect();
        for asked in asking {
            assert_eq!(asked.join().unwrap(), Ok(1));
        }
    });
    // Who began after it had ended asked again; nobody has to.
    assert!(
        (1..8).contains(&providers.count("slow")),
        "{}",
        providers.count("slow")
    );
    assert!(lock(&provider.state).running.is_empty());
}

#[test]
fn whatever_a_provider_does_wrong_is_named_and_not_quoted() {
    let providers = Providers::new();
    let response = |changed: &str| {
        format!(
            r#"echo '{{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", {changed}}}'"#
        )
    };
    for (number, (body, expected)) in [
        (format!("echo {PLANTED}; exit 1"), "failed (exit status: 1; see the log at debug)"),
        ("kill -9 $$".to_owned(), "failed (signal: 9 (SIGKILL); see the log at debug)"),
        (format!("echo '\"{PLANTED}\"'"), "it is not JSON of a CredentialProviderResponse"),
        (format!("echo '{{\"{PLANTED}'"), "it is not JSON of a CredentialProviderResponse"),
        ("exit 0".to_owned(), "it is not JSON of a CredentialProviderResponse"),
        (
            response(&format!(r#""cacheKeyType": "Image", "auth": {{"x": "{PLANTED}"}}"#)),
            "it is not JSON of a CredentialProviderResponse",
        ),
        (
            response(&format!(r#""cacheKeyType": "{PLANTED}""#)),
            "its cacheKeyType is not Image, Registry or Global",
        ),
        (
            response(&format!(r#""cacheKeyType": "Image", "cacheDuration": "{PLANTED}""#)),
            "its cacheDuration is no duration",
        ),
        (
            format!(r#"echo '{{"kind": "{PLANTED}"}}'"#),
            "its kind is not CredentialProviderResponse",
        ),
        (
            format!(
                r#"echo '{{"kind": "CredentialProviderResponse", "apiVersion": "{PLANTED}"}}'"#
            ),
            "its apiVersion is not that of the request",
        ),
        (
            r#"echo '{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1beta1", "cacheKeyType": "Image"}'"#.to_owned(),
            "its apiVersion is not that of the request",
        ),
        ("yes".to_owned(), "gave more than 1048576 bytes"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("p{number}");
        let provider = providers.add(&name, "", &body);
        let error = provider.ask("a.example", "x").unwrap_err();
        let shown = error.to_string();
        assert!(shown.ends_with(expected), "{shown} for {body}");
        assert!(!format!("{shown} {error:?} {provider:?}").contains("hunter"), "{shown}");
        // It is not run for each who asks.
        assert_eq!(provider.ask("a.example", "x"), Err(error));
        assert_eq!(providers.count(&name), 1);
    }
    let mut provider = providers.add("hangs", "", "sleep 100");
    provider.timeout = Duration::from_millis(200);
    let error = provider.ask("a.example", "x").unwrap_err();
    assert!(matches!(error, ProviderError::Exec(ExecError::TimedOut(_))));
    fs::remove_file(providers.dir.path().join("hangs")).unwrap();
    let shown = provider.ask("a.example", "y").unwrap_err().to_string();
    assert!(shown.starts_with("cannot be run: No such file"), "{shown}");
}

#[test]
fn no_text_has_what_a_provider_knows() {
    let providers = Providers::new();
    let extra = format!("  env:\n  - {{name: TOKEN, value: {PLANTED}}}\n  args: [{PLANTED}]\n");
    let provider = providers.add("one", &extra, &answer("Global", ""));
    let outcome = provider.ask("a.example", "x");
    let shown = format!("{provider:?} {provider:#?} {outcome:?}");
    assert!(
        shown.contains("Global") && !shown.contains("hunter"),
        "{shown}"
    );
}

#[test]
fn answers_of_several_are_put_in_order() {
    let providers = Providers::new();
    let answer = |name: &str, auth: &str| {
        let body = format!(
            r#"echo '{{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Image", "auth": {auth}}}'"#
        );
        providers.add(name, "", &body)
    };
    let list = [
        answer(
            "first",
            r#"{"*.example": {"username": "1", "password": ""}, "a.example": {"username": "2", "password": ""}}"#,
        ),
        answer(
            "second",
            r#"{"a.example/x": {"username": "3", "password": ""}, "a.example": {"username": "4", "password": ""}}"#,
        ),
        answer(
            "other",
            r#"{"b.example": {"username": "5", "password": ""}, "a.example": {"username": "", "password": ""}}"#,
        ),
        answer("empty", "null"),
        providers.add("broken", "", "exit 1"),
    ];
    let mut look = Look::new("a.example", "x");
    ask_all(&list, "a.example", "x", &mut look);
    let found: Vec<(String, &str)> = look
        .credentials
        .iter()
        .map(|credential| match &credential.login {
            Login::Basic { username, .. } => (credential.origin.to_string(), username.as_str()),
            Login::IdentityToken(_) | Login::RegistryToken(_) => unreachable!(),
        })
        .collect();
    let of = |name: &str| format!("the credential provider {name}");
    assert_eq!(
        found,
        [
            (of("second"), "3"),
            (of("first"), "2"),
            (of("second"), "4"),
            (of("first"), "1")
        ]
    );
    assert_eq!(
        look.notes,
        [
            "the credential provider first has an entry",
            "the credential provider second has an entry",
            "the credential provider other has nothing for it",
            "the credential provider empty has nothing for it",
            "the credential provider broken failed (exit status: 1; see the log at debug)",
        ]
    );
    let mut look = Look::new("nobody", "x");
    ask_all(&list, "nobody", "x", &mut look);
    assert_eq!(look.notes, ["no credential provider is for it"]);
}

#[test]
fn durations_are_gos() {
    for (text, seconds) in [
        ("0", Some(0.0)),
        ("0s", Some(0.0)),
        ("10m", Some(600.0)),
        ("1h30m0s", Some(5400.0)),
        ("1.5h", Some(5400.0)),
        (".5s", Some(0.5)),
        ("1.s", Some(1.0)),
        ("+2s", Some(2.0)),
        ("500ms", Some(0.5)),
        ("3us", Some(3e-6)),
        ("3µs", Some(3e-6)),
        ("", None),
        ("+", None),
        ("1", None),
        ("s", None),
        (".s", None),
        ("1d", None),
        ("1 s", None),
        ("-1s", None),
        ("1e3s", None),
        ("1s2", None),
        ("99999999999999999999999h", None),
    ] {
        let expected = seconds.map(Duration::from_secs_f64);
        assert_eq!(parse_duration(text), expected, "{text:?}");
    }
}

#[test]
fn a_configuration_is_kubelets() {
    let text = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
      - "registry.io:8080/path"
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1beta1
    args:
      - get-credentials
    env:
      - name: AWS_PROFILE
        value: example_profile
      - name: EMPTY
  - name: wants-token
    matchImages: ["a.example"]
    defaultCacheDuration: "0"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    tokenAttributes: {serviceAccountTokenAudience: x, cacheType: Token, requireServiceAccount: true}
  - name: takes-token
    matchImages: ["a.example"]
    defaultCacheDuration: "0"
    apiVersion: credentialprovider.kubelet.k8s.io/v1alpha1
    tokenAttributes: {serviceAccountTokenAudience: x, cacheType: Token, requireServiceAccount: false}
    ofANewerKubelet: {a: [1]}
"#;
    let found = parse(text.as_bytes()).unwrap();
    let names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["ecr-credential-provider", "takes-token"]);
    assert_eq!(found[0].version, Version::V1Beta1);
    assert_eq!(found[0].default_duration, Duration::from_secs(12 * 3600));
    assert_eq!(found[0].args, ["get-credentials"]);
    assert_eq!(found[0].env[1], ("EMPTY".to_owned(), String::new()));
    assert!(found[0].match_images[0].matches("1.dkr.ecr.north.amazonaws.com", "x"));
    assert_eq!(found[1].version, Version::V1Alpha1);
}

#[test]
fn a_wrong_configuration_is_said_what_is_wrong_with() {
    let whole = |providers: &str| {
        format!(
            "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1beta1\nproviders: {providers}"
        )
    };
    let provider = |changed: &str, with: &str| {
        let good = r#"[{name: one, matchImages: [a.example], defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1, env: []}]"#;
        assert!(good.contains(changed), "{changed}");
        whole(&good.replacen(changed, with, 1))
    };
    assert!(parse(provider("[]", "[]").as_bytes()).is_ok());
    for (text, expected) in [
        (
            provider("name: one", "name: a/b"),
            "must have the name of a file",
        ),
        (
            provider("name: one", "name: '..'"),
            "must have the name of a file",
        ),
        (
            provider("name: one", "name: 'a b'"),
            "must have the name of a file",
        ),
        (provider("name: one, ", ""), "must have the name of a file"),
        (provider("[a.example]", "[]"), "has no matchImages"),
        (
            provider("a.example", "'a b'"),
            "has an entry of matchImages",
        ),
        (provider("1m", "1x"), "needs a defaultCacheDuration"),
        (provider("1m", "'-1m'"), "needs a defaultCacheDuration"),
        (
            provider("defaultCacheDuration: 1m, ", ""),
            "needs a defaultCacheDuration",
        ),
        (provider("k8s.io/v1,", "k8s.io/v2,"), "needs an apiVersion"),
        (
            provider("credentialprovider.", "other."),
            "needs an apiVersion",
        ),
        (
            provider("env: []", "env: [{name: 'A=B'}]"),
            "has a variable without a name",
        ),
        (
            provider("env: []}", "env: []}, {name: one}"),
            "is there twice",
        ),
        (whole("[]"), "it has no providers"),
        (whole("{}"), "no YAML"),
        (whole(&format!("[{{env: {PLANTED}}}]")), "no YAML"),
        (
            whole(&format!("[{{env: [{{name: {PLANTED}, value: [1]}}]}}]")),
            "no YAML",
        ),
        (
            "kind: Pod\napiVersion: v1".to_owned(),
            "it must be a CredentialProviderConfig",
        ),
        (String::new(), ""),
    ] {
        let error = parse(text.as_bytes()).unwrap_err();
        let shown = chain(&error);
        assert!(shown.contains(expected), "{shown} for {text}");
        assert!(!format!("{shown} {error:?}").contains("hunter"), "{shown}");
    }
}

#[test]
fn a_directory_of_configurations_is_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, name: &str| {
        let text = format!(
            r#"{{"kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1", "providers": [{{"name": "{name}", "matchImages": ["a"], "defaultCacheDuration": "1m0s", "apiVersion": "credentialprovider.kubelet.k8s.io/v1"}}]}}"#
        );
        fs::write(dir.path().join(file), text).unwrap();
    };
    let open = || {
        NodeCredentials::open(&CredentialSettings {
            docker_config: None,
            providers: Some(ProviderSettings {
                config: dir.path().to_owned(),
                bin_dir: dir.path().to_owned(),
            }),
        })
    };
    assert!(matches!(open(), Err(CredentialError::NoConfig { .. })));
    write("20.yaml", "second");
    write("10.json", "first");
    write("30.yml", "third");
    write("notes.txt", "no-provider");
    fs::create_dir(dir.path().join("40.yaml")).unwrap();
    let names: Vec<String> = read(dir.path())
        .unwrap()
        .into_iter()
        .map(|settings| settings.name)
        .collect();
    assert_eq!(names, ["first", "second", "third"]);
    assert!(open().is_ok(), "programs may come later");
    write("50.yaml", "first");
    let error = chain(&open().unwrap_err());
    assert!(
        error.ends_with("provider \"first\" is there twice"),
        "{error}"
    );
    let error = read(&dir.path().join("none")).unwrap_err();
    assert!(matches!(error, CredentialError::Read { .. }));
}
