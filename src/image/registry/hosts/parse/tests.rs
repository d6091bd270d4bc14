use super::*;

fn parsed(text: &str) -> HostsFile {
    parse(text, Path::new("/certs")).unwrap()
}

#[test]
fn a_file_with_everything_is_read_in_its_order() {
    let file = parsed(
        r#"
        server = "https://upstream.example"
        ca = "root.pem"
        [header]
          x-one = "one"

        [host."https://z.example"]
          capabilities = ["pull"]
          ca = "/abs/mirror.pem"
          skip_verify = false
          [host."https://z.example".header]
            x-two = ["a", "b"]

        [host."https://a.example/us"]
          capabilities = ["Pull", "resolve", "push", "referrers"]
          skip_verify = true

        [host."http://m.example:5000"]
          ca = ["one.pem", "/two.pem"]
          client = [["c.cert", "c.key"], ["both.pem", ""]]

        [host."https://k.example"]
          client = "k.pem"
        [host."https://j.example/"]
          client = ["j1.pem", "j2.pem"]
        [host."https://p.example/v2/prefix"]
          override_path = true
        [host."https://n.example"]
          override_path = true
        [host."https://h.example".header]
          x = "y"
        [host."b.example/v2/"]
          dial_timeout = "1m1.5s"
          unknown = 7
        "#,
    );
    let urls: Vec<&str> = file
        .hosts
        .iter()
        .map(|host| host.url.as_ref().unwrap().as_str())
        .collect();
    assert_eq!(
        urls,
        [
            "https://z.example/v2",
            "https://a.example/us/v2",
            "http://m.example:5000/v2",
            "https://k.example/v2",
            "https://j.example/v2",
            "https://p.example/v2/prefix",
            "https://n.example/",
            "https://h.example/v2",
            "https://b.example/v2",
        ]
    );
    let hosts = &file.hosts;
    let capabilities = |pull, resolve| Capabilities { pull, resolve };
    assert_eq!(hosts[0].capabilities, capabilities(true, false));
    assert_eq!(hosts[1].capabilities, capabilities(true, true));
    assert_eq!(hosts[2].capabilities, Capabilities::default());
    assert_eq!(hosts[0].ca, [Path::new("/abs/mirror.pem")]);
    assert_eq!(
        hosts[2].ca,
        [Path::new("/certs/one.pem"), Path::new("/two.pem")]
    );
    assert_eq!(
        (
            hosts[0].skip_verify,
            hosts[1].skip_verify,
            hosts[2].skip_verify
        ),
        (Some(false), Some(true), None)
    );
    let path = |name: &str| Path::new("/certs").join(name);
    assert_eq!(
        hosts[2].client,
        [
            (path("c.cert"), Some(path("c.key"))),
            (path("both.pem"), None)
        ]
    );
    assert_eq!(hosts[3].client, [(path("k.pem"), None)]);
    assert_eq!(
        hosts[4].client,
        [(path("j1.pem"), None), (path("j2.pem"), None)]
    );
    let values: Vec<&str> = hosts[0].header[0].1.iter().map(Secret::expose).collect();
    assert_eq!(
        (hosts[0].header[0].0.as_str(), &values[..]),
        ("x-two", &["a", "b"][..])
    );
    assert_eq!(hosts[7].header[0].0, "x");
    assert_eq!(hosts[8].dial_timeout, Some(Duration::from_millis(61500)));
    assert_eq!(
        file.server.url.unwrap().as_str(),
        "https://upstream.example/v2"
    );
    assert_eq!(file.server.ca, [path("root.pem")]);
    assert_eq!(file.server.header[0].0, "x-one");
    assert!(file.server.capabilities.resolve);
}

#[test]
fn without_a_server_it_is_the_registry_itself() {
    for text in ["", "server = \"\"", "[host.\"https://a.example\"]"] {
        assert_eq!(parsed(text).server.url, None, "{text}");
    }
    assert_eq!(
        parsed("server = 'a.example'").server.url.unwrap().as_str(),
        "https://a.example/v2"
    );
    assert!(parsed("skip_verify = true").server.skip_verify.unwrap());
}

#[test]
fn faults_name_the_key_and_not_the_value() {
    for (text, key, reason) in [
        ("host = 5", "host", "tables"),
        ("[host]\na = 5", "host.\"a\"", "table"),
        ("a =", "line 1", ""),
        ("\n\n[header]\nx = \"hunter2", "line 4", ""),
        ("server = 5", "server", "string"),
        ("server = 'ftp://a'", "server", "https://"),
        ("server = 'https://'", "server", "URL"),
        ("server = 'https://u:hunter2@a.b'", "server", "credentials"),
        ("server = 'https://a.b?hunter2'", "server", "path"),
        (
            "[host.'https://a.b']\ncapabilities = ['fly']",
            "host.\"https://a.b\".capabilities",
            "fly",
        ),
        ("capabilities = true", "capabilities", "list"),
        ("ca = 5", "ca", "list"),
        ("ca = ['']", "ca", "empty"),
        ("client = [['a']]", "client", "two paths"),
        ("client = [['a','b','c']]", "client", "two paths"),
        ("client = [5]", "client", "list of strings"),
        ("skip_verify = 'yes'", "skip_verify", "true or false"),
        ("override_path = 1", "override_path", "true or false"),
        ("dial_timeout = 5", "dial_timeout", "string"),
        ("dial_timeout = '5 s'", "dial_timeout", "time"),
        ("dial_timeout = 's'", "dial_timeout", "time"),
        ("dial_timeout = '-1s'", "dial_timeout", "time"),
        ("header = 'x'", "header", "table"),
        (
            "[header]\nauthorization = {hunter2 = 5}",
            "header.authorization",
            "list",
        ),
        ("[header]\n'a b' = 'hunter2'", "header.a b", "name"),
        ("[header]\na = \"hunter2\\n\"", "header.a", "control"),
        ("skip_verify = true\nskip_verify = true", "line 2", ""),
    ] {
        let fault = parse(text, Path::new("/certs")).unwrap_err();
        assert_eq!(fault.key, key, "{text}: {fault:?}");
        assert!(fault.reason.contains(reason), "{text}: {fault:?}");
        assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
    }
}

#[test]
fn times_are_read_as_go_writes_them() {
    let ms = |ms| Some(Duration::from_millis(ms));
    for (text, expected) in [
        ("1s", ms(1000)),
        ("500ms", ms(500)),
        ("1.5h", ms(5_400_000)),
        ("2m3s", ms(123_000)),
        ("0", ms(0)),
        ("", ms(0)),
        ("0s", ms(0)),
        ("1", None),
        ("1d", None),
        ("..s", None),
        ("99999999999999999999h", None),
    ] {
        assert_eq!(duration(text), expected, "{text}");
    }
    assert_eq!(parsed("dial_timeout = '0s'").server.dial_timeout, None);
}
