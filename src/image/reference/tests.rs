use super::*;
use proptest::prelude::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn error_chain(text: &str) -> String {
    let error = text.parse::<Source>().unwrap_err();
    let mut chain = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        chain = format!("{chain}: {cause}");
        next = cause.source();
    }
    chain
}

#[test]
fn names_are_completed_as_docker_does() {
    let digest = format!("sha256:{HEX}");
    for (text, shown) in [
        ("busybox", "docker.io/library/busybox:latest".to_owned()),
        (
            "docker://busybox",
            "docker.io/library/busybox:latest".to_owned(),
        ),
        ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
        ("user/app", "docker.io/user/app:latest".to_owned()),
        (
            "docker.io/busybox",
            "docker.io/library/busybox:latest".to_owned(),
        ),
        ("index.docker.io/a/b:c", "docker.io/a/b:c".to_owned()),
        ("localhost/app", "localhost/app:latest".to_owned()),
        ("localhost:5000/app", "localhost:5000/app:latest".to_owned()),
        ("registry:5000/a:b", "registry:5000/a:b".to_owned()),
        ("Registry/app", "Registry/app:latest".to_owned()),
        ("a.b/c", "a.b/c:latest".to_owned()),
        ("[::1]:5000/app:2", "[::1]:5000/app:2".to_owned()),
        ("[fe80::1]/app:2", "[fe80::1]/app:2".to_owned()),
        (
            "a/b__c/d---e.f",
            "docker.io/a/b__c/d---e.f:latest".to_owned(),
        ),
        ("app:_V.1-x", "docker.io/library/app:_V.1-x".to_owned()),
        // Sources that are names nevertheless.
        ("docker:24", "docker.io/library/docker:24".to_owned()),
        ("dir:latest", "docker.io/library/dir:latest".to_owned()),
        ("docker://oci:1", "docker.io/library/oci:1".to_owned()),
        ("oci/image:1", "docker.io/oci/image:1".to_owned()),
    ] {
        let source: Source = text.parse().unwrap();
        assert_eq!(source.to_string(), format!("docker://{shown}"), "{text}");
        check(text.as_bytes());
    }
    for (text, tag) in [("app@", None), ("app:1@", Some("1"))] {
        let name: ImageName = format!("{text}{digest}").parse().unwrap();
        assert_eq!(name.tag(), tag);
        assert_eq!(name.digest(), Some(&digest.parse().unwrap()));
        assert!(!name.is_latest());
    }
    let name: ImageName = "reg.io:443/a/b".parse().unwrap();
    assert_eq!((name.registry(), name.repository()), ("reg.io:443", "a/b"));
    assert!(name.is_latest());
}

#[test]
fn malformed_names_say_what_is_wrong() {
    let long = "a/".repeat(130) + "b";
    let cases = [
        ("", "empty"),
        ("docker://", "empty"),
        (":tag", "empty"),
        ("https://reg.io/app", "https: is not a source"),
        ("docker://https://reg.io/app", "URL"),
        ("App", "lower-case"),
        ("reg.io/App", "lower-case"),
        ("reg.io/", "part of a repository"),
        ("/app", "part of a repository"),
        ("a//b", "part of a repository"),
        ("a/../b", "part of a repository"),
        ("reg.io/../b", "part of a repository"),
        ("a_-b", "part of a repository"),
        ("a___b", "part of a repository"),
        ("-a", "part of a repository"),
        ("a.", "part of a repository"),
        ("a b", "part of a repository"),
        ("\u{0430}pp", "part of a repository"),
        ("-reg.io/app", "registry host"),
        ("reg..io/app", "registry host"),
        ("reg.io:/app", "registry host"),
        ("reg.io:99999/app", "registry host"),
        ("reg.io:+80/app", "registry host"),
        ("user:secret@reg.io/app", "digest"),
        ("[::g]/app", "registry host"),
        ("[::1/app", "registry host"),
        ("app:", "valid tag"),
        ("app:.x", "valid tag"),
        ("app:a b", "valid tag"),
        ("app:tag:tag", "part of a repository"),
        ("app@", "no algorithm"),
        ("app@sha512:00", "\"sha512\" is not supported"),
        ("app@sha256:00", "64 lower-case hex"),
        (HEX, "64 hex digits are not"),
        (long.as_str(), "more than 255"),
        ("app\n", "control character"),
        (
            "containers-storage:[overlay@/x]app",
            "containers-storage: is not a source",
        ),
        ("docker-daemon:app:1", "docker-daemon: is not a source"),
        ("dir:/some/where", "dir: is not a source"),
    ];
    for (text, part) in cases {
        let error = error_chain(text);
        assert!(error.contains(part), "{text:?}: {error}");
    }
    let error = error_chain(&format!("app:{}", "t".repeat(129)));
    assert!(error.contains("valid tag"), "{error}");
    assert!(error_chain(&"a".repeat(6000)).contains("more than 5120"));
}

#[test]
fn paths_end_at_the_first_colon_unless_escaped() {
    let name = |text: &str| LayoutSelector::Name(text.to_owned());
    for (text, path, selector) in [
        ("oci:dir", "dir", LayoutSelector::Only),
        ("oci:/a/b:v1", "/a/b", name("v1")),
        ("oci:/a/b:reg.io/x:2", "/a/b", name("reg.io/x:2")),
        (r"oci:/a\:b:v1", "/a:b", name("v1")),
        (r"oci:/a\\:v1", r"/a\", name("v1")),
        ("oci:/a b/ü:v+1", "/a b/ü", name("v+1")),
        ("oci:..", "..", LayoutSelector::Only),
    ] {
        let source: Source = text.parse().unwrap();
        let expected = Source::OciDirectory {
            path: PathBuf::from(path),
            selector,
        };
        assert_eq!(source, expected, "{text}");
        assert_eq!(source.to_string(), text);
    }
    let text = format!("oci-archive:f.tar:@sha256:{HEX}");
    let source: Source = text.parse().unwrap();
    let expected = Source::OciArchive {
        path: PathBuf::from("f.tar"),
        selector: LayoutSelector::Digest(Digest::of(b"")),
    };
    assert_eq!(source, expected);
    assert_eq!(source.to_string(), text);
}

#[test]
fn docker_archives_choose_by_name_or_place() {
    for (text, shown) in [
        ("docker-archive:f.tar", "docker-archive:f.tar"),
        ("docker-archive:f.tar:@3", "docker-archive:f.tar:@3"),
        (
            "docker-archive:f.tar:app",
            "docker-archive:f.tar:docker.io/library/app:latest",
        ),
        (
            "docker-archive:f.tar:r.io:5/a:1",
            "docker-archive:f.tar:r.io:5/a:1",
        ),
        (r"docker-archive:C\:f.tar:@0", r"docker-archive:C\:f.tar:@0"),
    ] {
        assert_eq!(text.parse::<Source>().unwrap().to_string(), shown);
        check(text.as_bytes());
    }
}

#[test]
fn malformed_local_sources_say_what_is_wrong() {
    let by_digest = format!("docker-archive:f:app@sha256:{HEX}");
    for (text, part) in [
        ("oci:", "no path after oci:"),
        ("oci::v1", "no path after oci:"),
        ("oci-archive:", "no path after oci-archive:"),
        ("docker-archive::a", "no path after docker-archive:"),
        (r"oci:a\b", "lone backslash"),
        (r"oci:a\", "lone backslash"),
        ("oci:a:", "not a valid tag"),
        ("oci:a:b c", "not a valid tag"),
        ("oci:a:/b", "not a valid tag"),
        ("oci:a:@sha512:00", "\"sha512\" is not supported"),
        ("docker-archive:a:", "empty"),
        ("docker-archive:a:@", ":@0"),
        ("docker-archive:a:@-1", ":@0"),
        ("docker-archive:a:@+1", ":@0"),
        ("docker-archive:a:@99999999999999999999999", ":@0"),
        ("docker-archive:a:App", "lower-case"),
        (by_digest.as_str(), "by digest"),
        ("oci:a\0b", "control character"),
    ] {
        let error = error_chain(text);
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn foreign_text_is_escaped_and_shortened_in_errors() {
    let error = error_chain("app\u{1b}[31m");
    assert!(!error.contains('\u{1b}'), "{error:?}");
    let error = error_chain(&format!("app:{}", "!".repeat(3000)));
    assert!(error.len() < 600, "{error}");
}

proptest! {
    #[test]
    fn any_text_parses_or_fails_and_round_trips(text in ".{0,60}") {
        check(text.as_bytes());
    }

    #[test]
    fn likely_texts_round_trip(
        text in r"(docker://|oci:|oci-archive:|docker-archive:)?[a-zA-Z0-9./_:@\\\[\]-]{0,40}(:@[0-9]{0,2}|@sha256:[0-9a-f]{63,64})?"
    ) {
        check(text.as_bytes());
    }
}
