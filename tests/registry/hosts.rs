//! The node's configuration of registries, as its containerd has it.

use super::registry::proxy::{Fault, On, Proxy};
use super::registry::server::{Registry, Setup};
use super::registry::tls::Authority;
use super::registry::tunnel::Tunnel;
use super::site::{Desk, Pushed, Site, layers, push};
use std::fs;
use std::path::{Path, PathBuf};
use tonic::Code;

/// Writes `certs.d/<host>/hosts.toml`, all at once.
fn configure(certs: &Path, host: &str, text: &str) {
    let dir = certs.join(host);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("new"), text).unwrap();
    fs::rename(dir.join("new"), dir.join("hosts.toml")).unwrap();
}

fn certs() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs.d");
    fs::create_dir(&certs).unwrap();
    (dir, certs)
}

#[tokio::test]
async fn a_private_authority_is_trusted_once_the_node_is_told() {
    let (dir, certs) = certs();
    let authority = Authority::new(&dir.path().join("right"));
    let other = Authority::new(&dir.path().join("other"));
    let open = Registry::open();
    let pushed = push(&open, "hosts/tls:1", layers(201, 2, 20_000));
    let secure = Registry::start(Setup {
        tls: Some(authority.server("server")),
        storage: Some(open.storage().to_owned()),
        ..Setup::default()
    });
    let host = secure.address();
    let site = Site::with(&["--certs-dir", certs.to_str().unwrap()]).await;
    let trust = |ca: &Path| {
        configure(
            &certs,
            host,
            &format!("server = \"https://{host}\"\nca = {ca:?}\n"),
        );
    };
    let mut volume = site.kubelet.volume(&pushed.at(host));
    trust(&other.own.certificate);
    let status = site.refused(&mut volume).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let text = status.message().to_lowercase();
    assert!(text.contains("certificate"), "{status:?}");
    assert!(text.contains(host), "{status:?}");
    // Edited while the plugin runs.
    trust(&authority.own.certificate);
    site.ready(&mut volume).await;
    pushed.is_at("over TLS", &volume);
    site.end(volume).await;
}

#[tokio::test]
async fn a_certificate_may_be_not_verified_where_the_node_says_so() {
    let (dir, certs) = certs();
    let authority = Authority::new(dir.path());
    let open = Registry::open();
    let pushed = push(&open, "hosts/skip:1", layers(202, 1, 20_000));
    let secure = Registry::start(Setup {
        tls: Some(authority.server("server")),
        storage: Some(open.storage().to_owned()),
        ..Setup::default()
    });
    let host = secure.address();
    configure(
        &certs,
        host,
        &format!("server = \"https://{host}\"\n[host.\"https://{host}\"]\nskip_verify = true\n"),
    );
    let desk = Desk::new();
    desk.stage(&["--certs-dir", certs.to_str().unwrap(), &pushed.at(host)]);
}

#[test]
fn a_certificate_is_shown_to_who_wants_one() {
    let (dir, certs) = certs();
    let authority = Authority::new(dir.path());
    let open = Registry::open();
    let pushed = push(&open, "hosts/client:1", layers(203, 1, 20_000));
    let secure = Registry::start(Setup {
        tls: Some(authority.server("server")),
        clients: Some(authority.own.certificate.clone()),
        storage: Some(open.storage().to_owned()),
        ..Setup::default()
    });
    let host = secure.address();
    let (ca, client) = (&authority.own.certificate, authority.client("client"));
    let desk = Desk::new();
    let arguments = ["--certs-dir", certs.to_str().unwrap(), &pushed.at(host)];
    let text = format!("server = \"https://{host}\"\nca = {ca:?}\n");
    configure(&certs, host, &text);
    desk.fails(&arguments);
    let own = format!("client = [[{:?}, {:?}]]\n", client.certificate, client.key);
    configure(&certs, host, &(text + &own));
    desk.stage(&arguments);
}

/// A mirror and the registry that it mirrors, each with a proxy before it, and a
/// registry of this name configured with both.
struct Mirrored {
    _registries: [Registry; 2],
    pushed: Pushed,
    mirror: Proxy,
    origin: Proxy,
    certs: PathBuf,
    _dir: tempfile::TempDir,
}

const NAME: &str = "registry.test:5000";

impl Mirrored {
    /// The mirror has it, or not.
    fn new(seed: u64, is_mirrored: bool, options: &str) -> Self {
        let registries = [Registry::open(), Registry::open()];
        let image = || layers(seed, 3, 50_000);
        let pushed = push(&registries[1], "hosts/mirrored:1", image());
        if is_mirrored {
            push(&registries[0], "hosts/mirrored:1", image());
        }
        let [mirror, origin] = [0, 1].map(|at| Proxy::to(registries[at].address()));
        let (dir, certs) = certs();
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n{options}\n",
            origin.address(),
            mirror.address()
        );
        configure(&certs, NAME, &text);
        Mirrored {
            _registries: registries,
            pushed,
            mirror,
            origin,
            certs,
            _dir: dir,
        }
    }

    async fn pull(&self, what: &str) {
        let site = Site::with(&["--certs-dir", self.certs.to_str().unwrap()]).await;
        let mut volume = site.kubelet.volume(&self.pushed.at(NAME));
        site.ready(&mut volume).await;
        self.pushed.is_at(what, &volume);
        site.end(volume).await;
    }
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_not_at_all() {
    let it = Mirrored::new(
        211,
        true,
        "[host.\"HOST\".header]\nx-of-the-node = [\"here\"]",
    );
    // A header goes with the host that it is configured for.
    let text = fs::read_to_string(it.certs.join(NAME).join("hosts.toml")).unwrap();
    let text = text.replace("HOST", &format!("http://{}", it.mirror.address()));
    configure(&it.certs, NAME, &text);
    it.pull("from the mirror").await;
    assert_eq!(it.origin.exchanges().len(), 0);
    assert_eq!(it.mirror.bytes("/blobs/"), it.pushed.bytes());
    for one in it.mirror.exchanges() {
        let has = |name: &str, value: &str| {
            let found =
                |(key, text): &(String, String)| key.eq_ignore_ascii_case(name) && text == value;
            one.headers.iter().any(found)
        };
        assert!(has("x-of-the-node", "here"), "{one:?}");
        assert!(
            one.path
                .contains(&format!("ns={}", NAME.replace(':', "%3A")))
                || one.path.contains(&format!("ns={NAME}")),
            "whom it stands for: {}",
            one.path
        );
    }
}

#[tokio::test]
async fn a_mirror_that_has_nothing_or_answers_nonsense_is_passed_over() {
    for (number, status) in [None, Some(500), Some(403), Some(404)]
        .into_iter()
        .enumerate()
    {
        let it = Mirrored::new(220 + number as u64, status.is_some(), "");
        if let Some(code) = status {
            it.mirror.on(On::path("/v2/"), Fault::status(code));
        }
        it.pull(&format!("the mirror answers {status:?}")).await;
        assert_eq!(it.origin.bytes("/blobs/"), it.pushed.bytes(), "{status:?}");
    }
}

#[tokio::test]
async fn a_mirror_that_is_away_is_passed_over() {
    let mut it = Mirrored::new(231, true, "");
    // Nobody listens there any more.
    let origin = it.origin.address();
    it.mirror = Proxy::to(&origin);
    it.pull("no mirror").await;
    assert_eq!(it.origin.bytes("/blobs/"), it.pushed.bytes());
}

#[tokio::test]
async fn what_a_mirror_began_the_registry_ends() {
    let it = Mirrored::new(232, true, "");
    let layer = &it.pushed.image.layers[1];
    it.mirror
        .on(On::blob(&layer.digest).times(1), Fault::Cut(20_000));
    it.mirror.on(On::blob(&layer.digest), Fault::status(503));
    it.pull("half of a layer from each").await;
    assert_eq!(it.mirror.bytes(&layer.digest), 20_000);
    assert_eq!(it.origin.bytes(&layer.digest), layer.size - 20_000);
}

#[tokio::test]
async fn a_layer_that_a_mirror_has_wrong_comes_from_the_registry() {
    let it = Mirrored::new(233, true, "");
    let layer = &it.pushed.image.layers[1];
    it.mirror
        .on(On::blob(&layer.digest), Fault::Corrupt(10_000));
    it.pull("a wrong byte at the mirror").await;
    assert_eq!(it.origin.bytes(&layer.digest), layer.size);
}

#[tokio::test]
async fn a_mirror_without_resolve_is_not_asked_what_a_tag_means() {
    let it = Mirrored::new(234, true, "");
    let text = fs::read_to_string(it.certs.join(NAME).join("hosts.toml")).unwrap();
    configure(&it.certs, NAME, &text.replace(", \"resolve\"", ""));
    it.pull("pull only").await;
    assert_eq!(it.mirror.requests("", "/manifests/1"), 0);
    assert!(it.origin.requests("", "/manifests/1") > 0);
    assert_eq!(it.mirror.bytes("/blobs/"), it.pushed.bytes());
}

#[test]
fn what_is_for_all_registries_is_for_one_that_has_nothing_of_its_own() {
    let it = Mirrored::new(235, true, "");
    fs::rename(it.certs.join(NAME), it.certs.join("_default")).unwrap();
    let desk = Desk::new();
    let certs = it.certs.to_str().unwrap();
    desk.stage(&["--certs-dir", certs, &it.pushed.at("some.test")]);
    assert_eq!(it.mirror.bytes("/blobs/"), it.pushed.bytes());
}

#[test]
fn the_environments_proxy_is_for_hosts_that_are_not_here() {
    let registry = Registry::open();
    let pushed = push(&registry, "hosts/proxied:1", layers(241, 2, 20_000));
    let proxy = Proxy::to(registry.address());
    let (_dir, certs) = certs();
    configure(&certs, NAME, &format!("server = \"http://{NAME}\"\n"));
    let certs = certs.to_str().unwrap();
    let mut desk = Desk::new();
    let url = format!("http://{}", proxy.address());
    desk.environment = vec![("HTTP_PROXY".to_owned(), url)];
    desk.stage(&["--certs-dir", certs, &pushed.at(NAME)]);
    assert_eq!(proxy.bytes("/blobs/"), pushed.bytes());
    let named = |one: &super::registry::proxy::Exchange| {
        one.path.starts_with("http://registry.test:5000/v2/")
    };
    assert!(proxy.exchanges().iter().all(named));

    // Loopback, and what is named, is asked without it.
    proxy.forget();
    let more = push(&registry, "hosts/proxied:2", layers(242, 1, 20_000));
    desk.stage(&[&more.at(registry.address())]);
    assert_eq!(proxy.exchanges().len(), 0);
    desk.environment
        .push(("NO_PROXY".to_owned(), "registry.test".to_owned()));
    let other = push(&registry, "hosts/proxied:3", layers(243, 1, 20_000));
    desk.fails(&["--certs-dir", certs, &other.at(NAME)]);
    assert_eq!(proxy.exchanges().len(), 0);
}

#[test]
fn tls_goes_through_a_proxy_that_wants_a_password_and_sees_nothing_else() {
    const LOGIN: &str = "proxy-user:planted-proxy-password";
    let (dir, certs) = certs();
    let authority = Authority::new(dir.path());
    let open = Registry::open();
    let pushed = push(&open, "hosts/tunnelled:1", layers(251, 2, 20_000));
    let secure = Registry::start(Setup {
        tls: Some(authority.server("server")),
        storage: Some(open.storage().to_owned()),
        ..Setup::default()
    });
    let ca = &authority.own.certificate;
    configure(
        &certs,
        NAME,
        &format!("server = \"https://{NAME}\"\nca = {ca:?}\n"),
    );
    let arguments = ["--certs-dir", certs.to_str().unwrap(), &pushed.at(NAME)];
    let tunnel = Tunnel::to(secure.address(), LOGIN);
    let mut desk = Desk::new();
    let variable = |login: &str| vec![("HTTPS_PROXY".to_owned(), tunnel.url(login))];
    desk.environment = variable("proxy-user:planted-wrong");
    let text = desk.fails(&arguments);
    assert!(text.contains("proxy authorization required"), "{text}");
    assert!(!text.contains("planted"), "{text}");
    assert_eq!(tunnel.asked(), Vec::<String>::new());
    // The proxy resolves the name, which nobody else knows.
    desk.environment = variable(LOGIN);
    desk.stage(&arguments);
    assert!(!tunnel.asked().is_empty());
    assert!(tunnel.asked().iter().all(|host| host == NAME));
}
