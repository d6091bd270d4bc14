use super::*;
use crate::csi::policy::Rules;

fn parse(text: &str) -> PolicyFile {
    PolicyFile::parse(text.as_bytes()).unwrap_or_else(|faults| panic!("{text}: {faults:?}"))
}

fn faults(text: &str) -> Vec<String> {
    let faults = PolicyFile::parse(text.as_bytes()).unwrap_err();
    faults.iter().map(ToString::to_string).collect()
}

const WHOLE: &str = "
allowedRegistries: [registry.example, 'ghcr.io/team/*']
allowedUnions: [overlay]
allowedMedia: [Disk]
localImages: [/srv//images/]
readOnlyOnly: true
maxImages: 4
sizeLimit: {default: 1Gi, maximum: 10Gi}
memory:
  default: 64Mi
  maximum: 268435456
prefetch:
- registry.example/app:1
- oci:/srv/images/base
gc: {high: 80%, low: 70, maxSize: 50G, minAge: 10m, maxAge: 168h}
selinuxContext: system_u:object_r:container_file_t:s0
";

#[test]
fn every_key_is_read() {
    let mib = |number: u64| Some(number << 20);
    let expected = PolicyFile {
        allowed_registries: Some(AllowList::new(vec![
            "registry.example".parse().unwrap(),
            "ghcr.io/team/*".parse().unwrap(),
        ])),
        allowed_unions: Some(UnionRequest::Overlay),
        allowed_media: Some(Media {
            disk: true,
            memory: false,
        }),
        local_images: Some(vec![PathBuf::from("/srv/images")]),
        read_only_only: Some(true),
        max_images: Some(4),
        size_limit: Some(SizeRule {
            default: mib(1024),
            maximum: mib(10_240),
        }),
        memory: Some(SizeRule {
            default: mib(64),
            maximum: mib(256),
        }),
        prefetch: Some(vec![
            "registry.example/app:1".parse().unwrap(),
            "oci:/srv/images/base".parse().unwrap(),
        ]),
        gc: GcRules {
            high: Some(80),
            low: Some(70),
            max_size: Some(50_000_000_000),
            min_age: Some(Duration::from_secs(600)),
            max_age: Some(Duration::from_secs(7 * 24 * 3600)),
        },
        selinux_context: Some("system_u:object_r:container_file_t:s0".to_owned()),
    };
    assert_eq!(parse(WHOLE), expected);
    for key in KEYS {
        assert!(WHOLE.contains(&format!("\n{key}:")), "{key} is not tried");
    }
    for empty in ["", "{}", "# nothing\n", "gc:\nsizeLimit:\n", "gc: {}"] {
        let parsed = parse(empty);
        assert_eq!(parsed.gc, GcRules::default(), "{empty:?}");
        assert_eq!(parsed.over(&flags()), flags(), "{empty:?}");
    }
}

#[test]
fn the_reference_shows_every_key() {
    let text = include_str!("../../../docs/policy.md");
    let (_, rest) = text.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let shown = parse(example);
    assert_eq!(shown.max_images, Some(8));
    for key in KEYS {
        assert!(
            example.contains(&format!("\n{key}:")) || example.starts_with(key),
            "{key}"
        );
    }
    for key in SIZE_KEYS.iter().chain(&GC_KEYS) {
        assert!(example.contains(&format!("\n  {key}:")), "{key}");
    }
}

fn flags() -> Policy {
    Policy {
        kubelet_root: PathBuf::from("/var/lib/kubelet"),
        local_images: vec![PathBuf::from("/flags")],
        union: UnionRequest::Aufs,
        rules: Rules {
            registries: AllowList::new(vec!["flags.example".parse().unwrap()]),
            selinux_context: Some("flags".to_owned()),
            ..Rules::default()
        },
    }
}

#[test]
fn what_the_file_says_wins_over_the_flags_and_what_it_does_not_say_is_theirs() {
    let policy = parse("allowedUnions: [overlay, aufs]\nlocalImages: []\nmaxImages: 2\n");
    let expected = Policy {
        local_images: Vec::new(),
        union: UnionRequest::Auto,
        rules: Rules {
            max_images: Some(2),
            ..flags().rules
        },
        ..flags()
    };
    assert_eq!(policy.over(&flags()), expected);
    // An empty list allows nothing; no list leaves it to the flags.
    let policy = parse("allowedRegistries: []\nselinuxContext: a:b\n").over(&flags());
    assert_eq!(policy.rules.registries, AllowList::new(Vec::new()));
    assert_eq!(policy.rules.selinux_context.as_deref(), Some("a:b"));
    let policy = parse("allowedMedia: []\nreadOnlyOnly: false\n").over(&flags());
    let none = Media {
        disk: false,
        memory: false,
    };
    assert_eq!(policy.rules.media, none);
    let whole = parse(WHOLE).over(&flags());
    assert!(whole.rules.read_only_only);
    assert_eq!(whole.rules.disk.default, Some(1 << 30));
}

#[test]
fn what_the_file_says_of_collection_wins_over_the_flags() {
    use crate::layer::collect::Marks;
    let hours = |number: u64| Duration::from_secs(number * 3600);
    let flags = CollectSettings {
        marks: Marks {
            high: 80,
            low: 70,
            max_size: Some(9),
            min_age: hours(1),
            max_age: Some(hours(100)),
        },
        prefetch: vec!["oci:/flags".parse().unwrap()],
    };
    assert_eq!(parse("").collection(&flags), flags);
    let whole = parse(WHOLE).collection(&flags);
    assert_eq!(
        whole.marks,
        Marks {
            high: 80,
            low: 70,
            max_size: Some(50_000_000_000),
            min_age: Duration::from_secs(600),
            max_age: Some(hours(168)),
        }
    );
    let names: Vec<String> = whole.prefetch.iter().map(Source::to_string).collect();
    assert_eq!(
        names,
        ["docker://registry.example/app:1", "oci:/srv/images/base"]
    );
    // One of two from the file never contradicts the other from a flag.
    for (text, high, low, young, old) in [
        ("gc: {high: 60}", 60, 60, 1, 100),
        ("gc: {low: 90}", 90, 90, 1, 100),
        ("gc: {minAge: 200h}", 80, 70, 200, 200),
        ("gc: {maxAge: 30m}", 80, 70, 0, 0),
    ] {
        let marks = parse(text).collection(&flags).marks;
        let found = (marks.high, marks.low, marks.min_age, marks.max_age);
        let (young, old) = match old {
            0 => (Duration::from_secs(1800), Duration::from_secs(1800)),
            _ => (hours(young), hours(old)),
        };
        assert_eq!(found, (high, low, young, Some(old)), "{text}");
    }
    assert_eq!(
        parse("prefetch: []").collection(&flags).prefetch,
        Vec::new()
    );
}

#[test]
fn all_faults_are_told_at_once_each_with_its_key() {
    let text = "
alowedRegistries: [a.example]
allowedRegistries: ['https://a.example', a.example, 7]
allowedUnions: [btrfs]
allowedMedia: [disk]
localImages: [images, /a/../b]
readOnlyOnly: 'yes'
maxImages: 33
sizeLimit: {default: 2Gi, maximum: 1Gi, minimum: 1}
memory: 1Gi
prefetch: [UPPER]
gc: {high: 70, low: 80%, minAge: 2h, maxAge: 1h, maxSize: many, zzz: 1}
selinuxContext: 'a\"b'
";
    assert_eq!(
        faults(text),
        [
            "unknown key \"alowedRegistries\"; did you mean allowedRegistries?",
            "cannot read allowedRegistries[0]: \"https://a.example\" is not a pattern of allowed images: leave the scheme away",
            "allowedRegistries[2] is 7; it must be a text",
            "allowedUnions[0] is btrfs; it must be aufs or overlay",
            "allowedUnions is empty; it must be a list of aufs, overlay or both",
            "allowedMedia[0] is disk; it must be Disk or Memory",
            "localImages[0] is images; it must be an absolute path without ..",
            "localImages[1] is /a/../b; it must be an absolute path without ..",
            "readOnlyOnly is \"yes\"; it must be true or false",
            "maxImages is 33; it must be from 1 to 32",
            "unknown key \"sizeLimit.minimum\"; did you mean sizeLimit.maximum?",
            "sizeLimit.default is more than sizeLimit.maximum",
            "memory is \"1Gi\"; it must be a map of keys to values",
            "cannot read prefetch[0]: \"UPPER\" is not an image reference: repository \"UPPER\" must be lower-case",
            "unknown key \"gc.zzz\"; the known ones are high, low, maxSize, minAge, maxAge",
            "cannot read gc.maxSize: \"many\" is not a quantity; write for example 500Mi or 2Gi",
            "gc.low is more than gc.high",
            "gc.minAge is more than gc.maxAge",
            "selinuxContext is \"a\\\\\"b\"; it must be an SELinux context such as system_u:object_r:container_file_t:s0",
        ]
    );
    for text in ["[]", "text", "7"] {
        let faults = faults(text);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].contains("a map of keys"), "{text}: {faults:?}");
    }
    for text in ["a: [", "maxImages: 1\nmaxImages: 2\n", "\u{0}"] {
        let faults = faults(text);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].starts_with("line "), "{text}: {faults:?}");
    }
}

/// Swaps what the name leads to as kubelet does for a `ConfigMap`: a new
/// directory, and one link that is replaced by a rename.
fn publish(dir: &Path, version: u32, text: &str) {
    let data = dir.join(format!("..version{version}"));
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("policy.yaml"), text).unwrap();
    let link = dir.join("..data_tmp");
    std::os::unix::fs::symlink(data.file_name().unwrap(), &link).unwrap();
    std::fs::rename(&link, dir.join("..data")).unwrap();
}

#[test]
fn a_file_is_followed_through_the_links_of_a_config_map() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    std::os::unix::fs::symlink("..data/policy.yaml", &path).unwrap();
    let missing = Follower::start(&path).unwrap_err();
    assert!(matches!(missing[..], [PolicyFault::Read(_)]));
    publish(dir.path(), 1, "maxImages: 1");
    let (mut follower, policy) = Follower::start(&path).unwrap();
    assert_eq!(policy.max_images, Some(1));
    assert!(matches!(follower.look(), Look::Same));
    publish(dir.path(), 2, "maxImages: 2");
    match follower.look() {
        Look::Changed(policy) => assert_eq!(policy.max_images, Some(2)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(follower.look(), Look::Same));
    // What is wrong is told once, and so is that it is missing.
    publish(dir.path(), 3, "maxImages: none");
    assert!(matches!(follower.look(), Look::Refused(_)));
    assert!(matches!(follower.look(), Look::Same));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(follower.look(), Look::Refused(_)));
    assert!(matches!(follower.look(), Look::Same));
    std::fs::write(&path, "maxImages: 2").unwrap();
    assert!(matches!(follower.look(), Look::Changed(_)));
}
