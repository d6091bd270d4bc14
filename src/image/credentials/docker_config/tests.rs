use super::*;
use base64::engine::general_purpose::STANDARD as BASE64;

const PLANTED: &str = "hunter2-planted";

fn entry(json: &str) -> Result<Vec<Login>, DockerConfigError> {
    let json = format!(r#"{{"auths": {{"registry.example": {json}}}}}"#);
    let config = DockerConfig::parse(json.as_bytes(), Format::Current)?;
    let found = config.logins.find("registry.example", "app");
    Ok(found.into_iter().cloned().collect())
}

fn basic(username: &str, password: &str) -> Login {
    Login::Basic {
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
    }
}

fn auth(plain: &[u8]) -> String {
    format!(r#"{{"auth": "{}"}}"#, BASE64.encode(plain))
}

#[test]
fn a_name_and_a_password_are_written_in_many_ways() {
    for (json, expected) in [
        (auth(b"user:pass"), basic("user", "pass")),
        (auth(b"user:pass:word:"), basic("user", "pass:word:")),
        (auth(b":pass"), basic("", "pass")),
        (auth(b"user:"), basic("user", "")),
        // Without padding, and with it.
        (r#"{"auth": "dTpwYQ=="}"#.to_owned(), basic("u", "pa")),
        (r#"{"auth": "dTpwYQ"}"#.to_owned(), basic("u", "pa")),
        // Both alphabets: u:???>>>
        (
            r#"{"auth": "dTo/Pz8+Pj4="}"#.to_owned(),
            basic("u", "???>>>"),
        ),
        (
            r#"{"auth": "dTo_Pz8-Pj4"}"#.to_owned(),
            basic("u", "???>>>"),
        ),
        (r#"{"auth": " dTpw\n YQ==\n"}"#.to_owned(), basic("u", "pa")),
        // As Docker before 1.2 wrote it.
        (auth(b"user:pass\0\0\0"), basic("user", "pass")),
        (
            r#"{"username": "user", "password": "pass"}"#.to_owned(),
            basic("user", "pass"),
        ),
        (
            r#"{"username": "user", "password": "pa\u0073s"}"#.to_owned(),
            basic("user", "pass"),
        ),
        // What is in base64 counts more.
        (
            format!(
                r#"{{"username": "a", "password": "b", {}"#,
                &auth(b"user:pass")[1..]
            ),
            basic("user", "pass"),
        ),
        (
            r#"{"username": "user", "password": "pass", "auth": ""}"#.to_owned(),
            basic("user", "pass"),
        ),
        (
            r#"{"username": "user", "email": 1, "x": []}"#.to_owned(),
            basic("user", ""),
        ),
    ] {
        assert_eq!(entry(&json), Ok(vec![expected]), "{json}");
    }
}

#[test]
fn tokens_come_before_a_password_and_nothing_is_nothing() {
    let token = |text: &str| Secret::new(text.to_owned());
    let json = r#"{"registrytoken": "r", "identitytoken": "i", "username": "u", "password": "p"}"#;
    assert_eq!(
        entry(json),
        Ok(vec![
            Login::RegistryToken(token("r")),
            Login::IdentityToken(token("i")),
            basic("u", "p")
        ])
    );
    // As Azure writes it: a name of zeros, which is no name.
    let json = format!(r#"{{"identitytoken": "i", {}"#, &auth(b"00000000:")[1..]);
    assert_eq!(entry(&json), Ok(vec![Login::IdentityToken(token("i"))]));
    for json in [
        "{}",
        "null",
        r#"{"auth": null}"#,
        r#"{"identitytoken": ""}"#,
        r#"{"auth": "Og=="}"#,
    ] {
        assert_eq!(entry(json), Ok(Vec::new()), "{json}");
    }
}

#[test]
fn today_and_before_differ_in_one_level() {
    let new = br#"{"auths": {"registry.example": {"username": "u", "password": "p"}}}"#;
    let old = br#"{"registry.example": {"username": "u", "password": "p", "email": "a@b"}}"#;
    let count = |bytes: &[u8], format| {
        let config = DockerConfig::parse(bytes, format).unwrap();
        config.logins.find("registry.example", "app").len()
    };
    for (bytes, format, expected) in [
        (&new[..], Format::Current, 1),
        (&new[..], Format::Any, 1),
        // What is for a registry called "auths" is for nobody.
        (&new[..], Format::Legacy, 0),
        (&old[..], Format::Legacy, 1),
        (&old[..], Format::Any, 1),
        (&old[..], Format::Current, 0),
        (
            br#"{"HttpHeaders": {"a": "b"}, "detachKeys": "x"}"#,
            Format::Any,
            0,
        ),
        (b"{}", Format::Any, 0),
    ] {
        assert_eq!(count(bytes, format), expected, "{format:?}");
    }
    let helpers = br#"{"credsStore": "", "credHelpers": {"a.example": "own"}}"#;
    let config = DockerConfig::parse(helpers, Format::Any).unwrap();
    assert_eq!((config.helpers.len(), config.store), (1, None));
}

#[test]
fn the_last_of_two_equal_keys_counts() {
    let json = br#"{"auths": {"registry.example": {"username": "a"}, "registry.example": {"username": "b"}}}"#;
    let config = DockerConfig::parse(json, Format::Current).unwrap();
    let found = config.logins.find("registry.example", "app");
    assert_eq!(found, [&basic("b", "")]);
}

#[test]
fn an_error_says_where_and_never_what() {
    let planted = BASE64.encode(PLANTED);
    for (json, expected) in [
        (
            format!(r#"{{"auth": "{PLANTED}!"}}"#),
            r#"the entry for "registry.example" has an auth that is not base64"#,
        ),
        (
            format!(r#"{{"auth": "{planted}"}}"#),
            r#"the entry for "registry.example" has an auth that is not base64 of USER:PASSWORD"#,
        ),
        (
            auth(b"hunter2-planted\xff:"),
            r#"the entry for "registry.example" has an auth that is not text"#,
        ),
        (
            format!(r#""{PLANTED}""#),
            "line 1, column 49: not what a docker config has there",
        ),
        (
            format!(r#"{{"password": ["{PLANTED}"]}}"#),
            "line 1, column 46: not what a docker config has there",
        ),
        (
            format!(r#"{{"password": "{PLANTED}""#),
            "line 1, column 64: the JSON ends too early",
        ),
        (
            format!(r#"{{"password": {PLANTED}}}"#),
            "line 1, column 46: not JSON",
        ),
    ] {
        // The end of the text belongs to what is cut off.
        let error = entry(&json).unwrap_err();
        let shown = error.to_string();
        assert!(!format!("{error:?} {shown}").contains("hunter"), "{shown}");
        assert!(!shown.contains(&planted), "{shown}");
        let what = expected.rsplit(": ").next().unwrap();
        assert!(shown.ends_with(what), "{shown} for {json}");
        if !expected.starts_with("line") {
            assert_eq!(shown, expected);
        }
    }
    let json =
        format!(r#"{{"auths": {{"https://u:{PLANTED}@registry.example": {{"auth": "!"}}}}}}"#);
    let error = DockerConfig::parse(json.as_bytes(), Format::Any).unwrap_err();
    assert!(!error.to_string().contains("hunter"), "{error}");
}

#[test]
fn a_debug_text_has_no_password() {
    let json = format!(
        r#"{{"auths": {{"https://u:{PLANTED}@registry.example": {{"username": "user", "password": "{PLANTED}", "identitytoken": "{PLANTED}"}}}}}}"#
    );
    let config = DockerConfig::parse(json.as_bytes(), Format::Any).unwrap();
    let shown = format!("{config:?} {config:#?}");
    assert!(
        shown.contains("registry.example") && !shown.contains("hunter"),
        "{shown}"
    );
}

#[test]
fn there_are_bounds() {
    let long = vec![b' '; MAX_BYTES + 1];
    assert!(matches!(
        DockerConfig::parse(&long, Format::Any),
        Err(DockerConfigError::TooLarge { bytes }) if bytes == MAX_BYTES + 1
    ));
    let many = |count: usize| {
        let entries: Vec<String> = (0..count)
            .map(|n| format!(r#""r{n}.example": {{}}"#))
            .collect();
        let json = format!(r#"{{"auths": {{{}}}}}"#, entries.join(","));
        DockerConfig::parse(json.as_bytes(), Format::Current).is_ok()
    };
    assert!(many(MAX_ENTRIES) && !many(MAX_ENTRIES + 1));
}
