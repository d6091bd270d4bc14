//! A secret reaches nothing but its registry: some are planted wherever secrets
//! may be, and then looked for wherever they must not be.

use super::registry::proxy::{Fault, On, Proxy};
use super::registry::server::{Auth, PASSWORD, Registry, USER};
use super::registry::tokens::{TokenServer, Tokens};
use super::site::{Desk, Site, docker_config, layers, push};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs;
use std::path::{Path, PathBuf};

/// All files below a directory, through no links.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// The secrets, each in the forms that it is sent in.
fn forms(secrets: &[String]) -> Vec<Vec<u8>> {
    let forms = secrets.iter().flat_map(|secret| {
        let encoded = |text: String| STANDARD.encode(text).trim_end_matches('=').to_owned();
        let mut forms = vec![secret.clone(), encoded(secret.clone())];
        forms.extend([USER, "ann", "<token>"].map(|user| encoded(format!("{user}:{secret}"))));
        // The part of a token that nobody could guess.
        forms.extend(secret.rsplit('.').next().map(str::to_owned));
        forms
    });
    forms.map(String::into_bytes).collect()
}

fn has_none(what: &str, bytes: &[u8], forms: &[Vec<u8>]) {
    for form in forms {
        let found = bytes.windows(form.len()).any(|window| window == form);
        assert!(!found, "{what} has {}", String::from_utf8_lossy(form));
    }
}

#[tokio::test]
async fn no_secret_is_anywhere_but_on_its_way() {
    let tokens = TokenServer::start();
    tokens.account("ann", "planted-password-of-ann", &["secrets/token"]);
    tokens.identity_token("ann", "planted-identity-of-ann");
    let open = Registry::open();
    let by_token = push(&open, "secrets/token:1", layers(901, 2, 30_000));
    let by_password = push(&open, "secrets/basic:1", layers(902, 2, 30_000));
    let locked = open.with_auth(Auth::Basic);
    let tokened = open.with_auth(tokens.auth());
    let cdn = Proxy::to(open.address());
    let proxy = Proxy::to(locked.address());
    let to = format!("http://planted-user:planted-userinfo@{}", cdn.address());
    proxy.on(
        On::blob(&by_password.image.layers[1].digest).times(1),
        Fault::Redirect(to),
    );
    // Signed, as content networks have it; what is there fails at first.
    proxy.on(
        On::blob(&by_password.image.layers[0].digest).times(1),
        Fault::Status {
            code: 307,
            headers: vec![(
                "Location".to_owned(),
                format!(
                    "http://{}/v2/secrets/basic/blobs/{}?X-Signature=planted-signature",
                    cdn.address(),
                    by_password.image.layers[0].digest
                ),
            )],
            body: String::new(),
        },
    );
    cdn.on(On::path("X-Signature"), Fault::status(500));

    let dir = tempfile::tempdir().unwrap();
    let (host, basic) = (tokened.address().to_owned(), proxy.address());
    let config = dir.path().join("config.json");
    fs::write(
        &config,
        docker_config(&[(&basic, USER, "planted-of-the-node")]),
    )
    .unwrap();
    let certs = dir.path().join("certs.d");
    fs::create_dir_all(certs.join(&basic)).unwrap();
    let text = format!(
        "server = \"http://{basic}\"\n[host.\"http://{basic}\".header]\nx-key = \"planted-header\"\n"
    );
    fs::write(certs.join(&basic).join("hosts.toml"), text).unwrap();
    let flags = [
        "--registry-credentials",
        config.to_str().unwrap(),
        "--certs-dir",
        certs.to_str().unwrap(),
        "--log-level",
        "trace",
    ];
    let mut site = Site::with(&flags).await;
    let mut said = Vec::new();
    let pod = |site: &Site, image: &str, host: &str, user: &str, password: &str| {
        let volume = site.kubelet.volume(image).with("pullPolicy", "Always");
        volume.with_login(host, user, password)
    };
    let mut volumes = Vec::new();
    let wrong = [
        (by_token.at(&host), &host, "ann", "planted-wrong-password"),
        (
            by_password.at(&basic),
            &basic,
            USER,
            "planted-wrong-password",
        ),
        (
            by_password.at(&basic).replace(":1", ":none"),
            &basic,
            USER,
            PASSWORD,
        ),
    ];
    for (image, host, user, password) in wrong {
        let mut volume = pod(&site, &image, host, user, password);
        said.push(site.refused(&mut volume).await);
    }
    for tokens_are in [Tokens::Expired, Tokens::Status(401), Tokens::Status(500)] {
        tokens.give(tokens_are);
        let mut volume = pod(
            &site,
            &by_token.at(&host),
            &host,
            "ann",
            "planted-password-of-ann",
        );
        said.push(site.refused(&mut volume).await);
        volumes.push(volume);
    }
    tokens.give(Tokens::Good);
    let mut identity = site.kubelet.volume(&by_token.at(&host));
    identity.secrets = vec![(
        ".dockerconfigjson".to_owned(),
        serde_json::json!({"auths": {&host: {"identitytoken": "planted-identity-of-ann"}}})
            .to_string(),
    )];
    site.ready(&mut identity).await;
    volumes.push(identity);
    for (image, host, user, password) in [
        (by_token.at(&host), &host, "ann", "planted-password-of-ann"),
        (by_password.at(&basic), &basic, USER, PASSWORD),
    ] {
        let mut volume = pod(&site, &image, host, user, password);
        site.ready(&mut volume).await;
        volumes.push(volume);
    }
    let metrics = site.driver.get("/metrics").await.1;

    let mut secrets: Vec<String> = [
        PASSWORD,
        "planted-password-of-ann",
        "planted-identity-of-ann",
        "planted-wrong-password",
        "planted-of-the-node",
        "planted-header",
        "planted-signature",
        "planted-userinfo",
    ]
    .map(str::to_owned)
    .to_vec();
    secrets.extend(tokens.given());
    let forms = forms(&secrets);
    // That the search finds something where there is something.
    let given = tokens.given().concat();
    assert!(
        forms
            .iter()
            .any(|form| given.as_bytes().windows(form.len()).any(|w| w == form))
    );
    for status in &said {
        has_none("an error", format!("{status:?}").as_bytes(), &forms);
    }
    has_none("the metrics", metrics.as_bytes(), &forms);
    let look = |site: &Site| {
        for log in &site.driver.logs {
            has_none("the log", &fs::read(log).unwrap(), &forms);
        }
        let mut looked = 0;
        for dir in [
            site.node.store(),
            site.node.run_dir(),
            site.node.kubelet_root(),
        ] {
            for path in files(&dir) {
                has_none(
                    &path.display().to_string(),
                    &fs::read(&path).unwrap(),
                    &forms,
                );
                looked += 1;
            }
        }
        assert!(looked > 10, "{looked} files");
    };
    look(&site);
    for volume in &mut volumes {
        site.kubelet.delete(volume).await;
    }
    look(&site);
    site.driver.kill();
    look(&site);
    site.again().await;
    look(&site);
}

#[test]
fn the_command_line_keeps_them_to_itself() {
    let open = Registry::open();
    let pushed = push(&open, "secrets/command:1", layers(903, 2, 30_000));
    let locked = open.with_auth(Auth::Basic);
    let desk = Desk::new();
    let forms = forms(&[PASSWORD.to_owned(), "planted-wrong-password".to_owned()]);
    for password in ["planted-wrong-password", PASSWORD] {
        let creds = format!("{USER}:{password}");
        let image = pushed.at(locked.address());
        let output = desk.run(&["stage", "--log-level", "trace", "--creds", &creds, &image]);
        assert_eq!(output.status.success(), password == PASSWORD);
        has_none("what it prints", &output.stdout, &forms);
        has_none("what it says", &output.stderr, &forms);
    }
    for path in files(&desk.path("")) {
        has_none(
            &path.display().to_string(),
            &fs::read(&path).unwrap(),
            &forms,
        );
    }
}
