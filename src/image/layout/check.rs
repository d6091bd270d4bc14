//! What must hold for any bytes that are read as `oci-layout` or as `index.json`
//! of a layout, as a fuzz target and the tests have it.

use super::{INDEX_FILE, LAYOUT_FILE, Layout};
use crate::image::digest::Digest;
use crate::image::files::archive_of;
use crate::image::manifest::MAX_MANIFESTS;
use crate::image::platform::PlatformChoice;
use crate::image::reference::LayoutSelector;
use crate::image::testdata::{assert_fit, tar};
use crate::image::{ImageSource, SourceError};
use std::collections::BTreeMap;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;

/// Checks that any bytes at all, first as the file that says that it is a
/// layout and then as the list of its images,
///
/// * are read without a panic, or refused with an error that is fit to be shown;
/// * say a version that is known, or are refused;
/// * give entries within the bounds, and one image of them or an error.
///
/// # Panics
/// If one of these does not hold.
pub fn check(bytes: &[u8]) {
    if open(bytes, INDEX, LayoutSelector::Only).is_ok() {
        assert!(bytes.windows(2).any(|pair| pair == b"1."), "no version 1");
    }
    let named = || LayoutSelector::Name("v1".to_owned());
    let digest = || LayoutSelector::Digest(Digest::of(b""));
    for selector in [LayoutSelector::Only, named(), digest()] {
        let Ok(layout) = open(LAYOUT, bytes, selector) else {
            continue;
        };
        assert!(layout.entries.len() <= MAX_MANIFESTS);
        assert!(layout.candidates().len() <= layout.entries.len());
        // There are no blobs.
        let image = layout.image(&PlatformChoice::Host);
        assert!(image.is_err(), "{image:?}");
        if let Err(error) = image {
            assert_fit(&error);
        }
    }
}

fn open(layout: &[u8], index: &[u8], selector: LayoutSelector) -> Result<Layout, SourceError> {
    let files = BTreeMap::from([
        (LAYOUT_FILE.to_owned(), layout.to_vec()),
        (INDEX_FILE.to_owned(), index.to_vec()),
    ]);
    let opened =
        archive_of(&tar(&files)).and_then(|files| Layout::open("name".to_owned(), files, selector));
    opened.inspect_err(|error| assert_fit(error))
}

/// Both files, right and wrong, to start mutations from.
pub fn seeds() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"");
    let entry = |name: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}",
            "size":7,"annotations":{{"org.opencontainers.image.ref.name":"{name}",
            "io.containerd.image.name":"docker.io/library/{name}"}}}}"#
        )
    };
    let index = |entries: &[String]| {
        let entries = entries.join(",");
        format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#).into_bytes()
    };
    let elsewhere = entry("v2").replace("\"size\"", r#""platform":{"os":"plan9"},"size""#);
    vec![
        LAYOUT.to_vec(),
        br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec(),
        br#"{"imageLayoutVersion":"1.\u001b[2J","more":[{}]}"#.to_vec(),
        b"{}".to_vec(),
        INDEX.to_vec(),
        index(&[entry("v1")]),
        index(&[entry("v1"), elsewhere]),
        index(&[entry(r"\u0007\n")]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_hold() {
        for seed in seeds() {
            check(&seed);
        }
        let named = LayoutSelector::Name("v1".to_owned());
        let layout = open(LAYOUT, &seeds()[6], named);
        assert!(layout.is_ok_and(|layout| layout.candidates().len() == 1));
    }
}
