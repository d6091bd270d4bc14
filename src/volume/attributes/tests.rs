use super::*;
use crate::chain::Chain;
use proptest::prelude::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn parse(pairs: &[(&str, &str)]) -> Result<Attributes, AttributeError> {
    Attributes::parse(&map(pairs), false)
}

fn message(pairs: &[(&str, &str)], read_only: bool) -> String {
    match Attributes::parse(&map(pairs), read_only).and_then(Attributes::supported) {
        Ok(attributes) => format!("accepted: {attributes:?}"),
        Err(error) => Chain(&error).to_string(),
    }
}

#[test]
fn everything_has_a_default_but_the_image() {
    let attributes = parse(&[("image", "oci:/images/app:1")]).unwrap();
    assert_eq!(
        attributes,
        Attributes {
            images: vec!["oci:/images/app:1".parse().unwrap()],
            pull_policy: None,
            sub_path: None,
            size_limit: None,
            medium: Medium::Disk,
            platform: None,
            union: UnionRequest::Auto,
        }
    );
    assert!(attributes.supported().is_ok());
}

#[test]
fn every_key_is_read() {
    let attributes = parse(&[
        (
            "images",
            "registry.example/patch:2, registry.example/base:1\noci:/base,\n",
        ),
        ("pullPolicy", "Never"),
        ("subPath", "opt//tools/"),
        ("sizeLimit", "2Gi"),
        ("medium", "Memory"),
        ("platform", "linux/aarch64"),
        ("union", "overlay"),
    ])
    .unwrap();
    assert_eq!(
        attributes,
        Attributes {
            images: vec![
                "registry.example/patch:2".parse().unwrap(),
                "registry.example/base:1".parse().unwrap(),
                "oci:/base".parse().unwrap(),
            ],
            pull_policy: Some(PullPolicy::Never),
            sub_path: Some(PathBuf::from("opt/tools")),
            size_limit: Some(2 << 30),
            medium: Medium::Memory,
            platform: Some(Platform::new("linux", "arm64", "")),
            union: UnionRequest::Overlay,
        }
    );
}

#[test]
fn every_fault_is_named() {
    let image = ("image", "oci:/images/app");
    for (pairs, expected) in [
        (&[][..], "volume attribute image is missing"),
        (&[("images", " ,\n")], "volume attribute image is missing"),
        (
            &[image, ("iamge", "x")],
            "unknown volume attribute \"iamge\"; did you mean image?",
        ),
        (
            &[image, ("Image", "x")],
            "unknown volume attribute \"Image\"; did you mean image?",
        ),
        (
            &[image, ("sizelimit", "1")],
            "unknown volume attribute \"sizelimit\"; did you mean sizeLimit?",
        ),
        (
            &[image, ("pull-policy", "x")],
            "unknown volume attribute \"pull-policy\"; did you mean pullPolicy?",
        ),
        (
            &[image, ("mountOptions", "suid")],
            "unknown volume attribute \"mountOptions\"; the known ones are image, images, pullPolicy, \
             pullAlways, subPath, sizeLimit, medium, platform, union",
        ),
        (
            &[image, ("images", "a,b")],
            "volume attributes image and images exclude each other",
        ),
        (
            &[image, ("pullPolicy", "Always"), ("pullAlways", "true")],
            "volume attributes pullPolicy and pullAlways exclude each other",
        ),
        (
            &[image, ("pullPolicy", "always")],
            "volume attribute pullPolicy is \"always\"; it must be Always, IfNotPresent or Never",
        ),
        (
            &[image, ("pullAlways", "yes")],
            "volume attribute pullAlways is \"yes\"; it must be \"true\" or \"false\"",
        ),
        (
            &[image, ("medium", "memory")],
            "volume attribute medium is \"memory\"; it must be \"\" or Memory",
        ),
        (
            &[image, ("union", "btrfs")],
            "volume attribute union is \"btrfs\"; it must be auto, aufs or overlay",
        ),
        (
            &[image, ("subPath", "../etc")],
            "volume attribute subPath is \"../etc\"; it must be a relative path without . and ..",
        ),
        (
            &[image, ("subPath", "/etc")],
            "volume attribute subPath is \"/etc\"; it must be a relative path without . and ..",
        ),
        (
            &[image, ("sizeLimit", "lots")],
            "cannot read the volume attribute sizeLimit: \"lots\" is not a quantity; write for example 500Mi or 2Gi",
        ),
        (
            &[image, ("platform", "linux")],
            "cannot read the volume attribute platform: platform \"linux\" is not os/architecture or os/architecture/variant",
        ),
        (
            &[("image", "dir:/x")],
            "cannot read the volume attribute image: dir: is not a source of images here; use docker://, oci:, oci-archive: or docker-archive:",
        ),
    ] {
        assert_eq!(message(pairs, false), expected);
    }
    let many = vec!["a"; MAX_IMAGES + 1].join(",");
    assert_eq!(
        message(&[("images", &many)], false),
        "volume attribute images has more than 32 images"
    );
}

#[test]
fn a_read_only_volume_has_no_writable_layer_to_describe() {
    let image = ("image", "oci:/images/app");
    for (key, value) in [("sizeLimit", "1Gi"), ("medium", "Memory")] {
        assert_eq!(
            message(&[image, (key, value)], true),
            format!(
                "volume attribute {key} is about the writable layer, and a volume with readOnly: true has none"
            )
        );
    }
    assert!(Attributes::parse(&map(&[image, ("medium", "")]), true).is_ok());
}

#[test]
fn what_is_not_built_yet_is_refused_and_not_ignored() {
    let image = ("image", "oci:/images/app");
    for (pairs, key) in [
        (&[image, ("sizeLimit", "1Gi")][..], "sizeLimit"),
        (&[image, ("medium", "Memory")], "medium"),
    ] {
        let error = parse(pairs).unwrap().supported().unwrap_err();
        assert!(
            matches!(error, AttributeError::NotYet { key: found, .. } if found == key),
            "{pairs:?}: {error}"
        );
    }
    for pairs in [
        &[("images", "oci:/a")][..],
        &[("images", "oci:/a,app:1\noci:/b")],
        &[image, ("pullPolicy", "IfNotPresent")],
        &[image, ("pullPolicy", "Never")],
        &[image, ("pullAlways", "true")],
        &[("image", "app"), ("pullPolicy", "Always")],
        &[("image", "app:1"), ("pullPolicy", "IfNotPresent")],
        &[image, ("subPath", "")],
        &[image, ("subPath", "opt/tools")],
        &[image, ("union", "aufs"), ("platform", "linux/arm64")],
    ] {
        assert!(parse(pairs).unwrap().supported().is_ok(), "{pairs:?}");
    }
}

/// The same table is put to the policy of `manifests/admission`, in a real API
/// server.
#[test]
fn the_admission_policys_cases_are_judged_as_it_judges_them() {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Case {
        name: String,
        accepted: bool,
        read_only: bool,
        attributes: BTreeMap<String, String>,
    }
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../e2e/admission/cases.json")).unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let parsed = Attributes::parse(&case.attributes, case.read_only);
        assert_eq!(parsed.is_ok(), case.accepted, "{}: {parsed:?}", case.name);
    }
}

#[test]
fn foreign_text_in_an_error_is_short_and_escaped() {
    let long = "k".repeat(1000);
    let shown = message(&[("image", "app"), (&long, "")], false);
    assert!(shown.chars().count() < 300, "{shown}");
    let shown = message(&[("image", "app"), ("a\nb", "")], false);
    assert!(!shown.contains('\n'), "{shown}");
}

#[test]
fn every_known_key_is_found_from_one_typing_error() {
    for key in KEYS {
        for at in 0..key.len() {
            let mut misspelt = key.to_owned();
            misspelt.remove(at);
            if KEYS.contains(&misspelt.as_str()) {
                continue;
            }
            assert!(nearest(&misspelt, &KEYS).is_some(), "{misspelt}");
        }
        assert_eq!(nearest(key, &KEYS), Some(key));
    }
    assert_eq!(distance("kitten", "sitting"), 3);
    assert_eq!(distance("", "abc"), 3);
}

proptest! {
    #[test]
    fn any_bytes_are_taken_without_a_panic(bytes: Vec<u8>) {
        check(&bytes);
    }

    #[test]
    fn nearly_right_texts_are_taken_without_a_panic(
        pairs in proptest::collection::vec(
            (proptest::sample::select(KEYS.to_vec()), "[-+.eEGiMkm0-9a-z:/,@]{0,12}"), 0..4)
    ) {
        let text: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        check(text.join("\u{1}").as_bytes());
    }
}
