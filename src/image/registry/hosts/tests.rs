use super::*;
use std::fs;

/// `base host|plain|login|stands_for|pull resolve|skip`, one line for each place.
fn shown(places: &[Place]) -> Vec<String> {
    let line = |place: &Place| {
        format!(
            "{} {} {} {} {}{}{}",
            place.base,
            place.plain.as_ref().map_or("-", |plain| plain.as_str()),
            place.login_host,
            place.stands_for.as_deref().unwrap_or("-"),
            if place.pull { "p" } else { "" },
            if place.resolve { "r" } else { "" },
            if place.transport.tls.skip_verify {
                " unverified"
            } else {
                ""
            },
        )
    };
    places.iter().map(line).collect()
}

#[test]
fn without_a_file_a_registry_is_asked_itself() {
    for (registry, expected) in [
        (
            "docker.io",
            "https://registry-1.docker.io/v2 - docker.io - pr",
        ),
        ("a.example", "https://a.example/v2 - a.example - pr"),
        ("a.example:443", "https://a.example/v2 - a.example:443 - pr"),
        (
            "a.example:80",
            "https://a.example:80/v2 - a.example:80 - pr",
        ),
        (
            "localhost",
            "https://localhost/v2 - localhost - pr unverified",
        ),
        (
            "localhost:443",
            "https://localhost/v2 - localhost:443 - pr unverified",
        ),
        (
            "localhost:80",
            "http://localhost/v2 - localhost:80 - pr unverified",
        ),
        (
            "localhost:5000",
            "https://localhost:5000/v2 http://localhost:5000/v2 localhost:5000 - pr unverified",
        ),
        (
            "127.1.2.3:5000",
            "https://127.1.2.3:5000/v2 http://127.1.2.3:5000/v2 127.1.2.3:5000 - pr unverified",
        ),
        (
            "[::1]:5000",
            "https://[::1]:5000/v2 http://[::1]:5000/v2 [::1]:5000 - pr unverified",
        ),
        (
            "10.0.0.1:5000",
            "https://10.0.0.1:5000/v2 - 10.0.0.1:5000 - pr",
        ),
    ] {
        let places = Hosts::new(Vec::new()).places(registry).unwrap();
        assert_eq!(shown(&places), [expected], "{registry}");
    }
}

#[test]
fn hosts_come_before_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("docker.io");
    fs::create_dir(&own).unwrap();
    fs::write(
        own.join("hosts.toml"),
        r#"
        server = "https://index.docker.io"
        [host."https://z.example/v2/hub"]
          override_path = true
          capabilities = ["pull"]
        [host."http://a.example:5000"]
          skip_verify = true
        [host."http://a.example"]
          capabilities = ["resolve"]
        [host."https://registry-1.docker.io"]
        "#,
    )
    .unwrap();
    let hosts = Hosts::new(vec![dir.path().to_owned()]);
    let places = hosts.places("docker.io").unwrap();
    assert_eq!(
        shown(&places),
        [
            "https://z.example/v2/hub - z.example docker.io p",
            "https://a.example:5000/v2 http://a.example:5000/v2 a.example:5000 docker.io pr unverified",
            "http://a.example/v2 - a.example docker.io ",
            "https://registry-1.docker.io/v2 - docker.io - pr",
            "https://index.docker.io/v2 - docker.io - pr",
        ]
    );
    assert_eq!(
        (places[0].prefix.as_str(), places[1].prefix.as_str()),
        ("hub/", "")
    );
}

#[test]
fn the_first_directory_counts_and_changes_are_noticed() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hosts = Hosts::new(vec![first.path().to_owned(), second.path().to_owned()]);
    let registry = "a.example:5000";
    let server = |dir: &Path, name: &str, server: &str| {
        fs::create_dir_all(dir.join(name)).unwrap();
        let text = format!("server = \"https://{server}\"");
        fs::write(dir.join(name).join("hosts.toml"), text).unwrap();
    };
    let asked = || hosts.places(registry).unwrap()[0].shown.clone();
    assert_eq!(asked(), registry);
    server(second.path(), "_default", "s1.example");
    assert_eq!(asked(), "s1.example");
    server(second.path(), registry, "s2.example");
    assert_eq!(asked(), "s2.example");
    server(second.path(), "a.example_5000_", "s3.example");
    assert_eq!(asked(), "s3.example");
    server(first.path(), "_default", "s4.example");
    assert_eq!(asked(), "s4.example");
    server(first.path(), "_default", "s55.example");
    assert_eq!(asked(), "s55.example");
    // As long as nothing changes, nothing is read.
    let (one, two) = (
        hosts.places(registry).unwrap(),
        hosts.places(registry).unwrap(),
    );
    assert!(Arc::ptr_eq(&one, &two));
    fs::write(first.path().join("_default/hosts.toml"), "ca = 5").unwrap();
    let error = hosts.places(registry).unwrap_err().to_string();
    assert!(error.contains("_default/hosts.toml: ca must be"), "{error}");
    fs::remove_dir_all(first.path().join("_default")).unwrap();
    assert_eq!(asked(), "s3.example");
}

#[test]
fn files_named_as_docker_names_them_count_where_there_is_no_hosts_file() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("localhost:5000");
    fs::create_dir_all(own.join("sub.crt")).unwrap();
    for name in ["b.crt", "a.crt", "x.cert", "x.key", "y.cert", "readme"] {
        fs::write(own.join(name), "").unwrap();
    }
    let hosts = Hosts::new(vec![dir.path().to_owned()]);
    let tls = hosts.places("localhost:5000").unwrap()[0]
        .transport
        .tls
        .clone();
    assert_eq!(tls.ca, [own.join("a.crt"), own.join("b.crt")]);
    assert_eq!(
        tls.client,
        [
            (own.join("x.cert"), Some(own.join("x.key"))),
            (own.join("y.cert"), None)
        ]
    );
    // What has a certificate is verified with it.
    assert!(!tls.skip_verify);
    // One more is noticed.
    fs::write(own.join("c.crt"), "").unwrap();
    assert_eq!(
        hosts.places("localhost:5000").unwrap()[0]
            .transport
            .tls
            .ca
            .len(),
        3
    );
}

#[test]
fn values_of_headers_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("_default")).unwrap();
    let text = "[header]\nauthorization = 'Bearer hunter2'\nx = ['hunter2', 'b']";
    fs::write(dir.path().join("_default/hosts.toml"), text).unwrap();
    let hosts = Hosts::new(vec![dir.path().to_owned()]);
    let places = hosts.places("a.example").unwrap();
    assert_eq!(places[0].header.len(), 3);
    assert!(!format!("{places:?} {hosts:?}").contains("hunter2"));
}
