//! What must hold for any bytes that are read as `repositories`, or as `json` of
//! an image, in an archive of before Docker 1.10, as a fuzz target and the tests
//! have it.

use super::{Chain, MAX_LAYERS, REPOSITORIES_FILE};
use crate::image::SourceError;
use crate::image::digest::Digest;
use crate::image::files::archive_of;
use crate::image::platform::PlatformChoice;
use crate::image::reference::ArchiveSelector;
use crate::image::testdata::{assert_fit, tar};
use std::collections::BTreeMap;

/// Two images that are there, whatever the bytes say.
const IDS: [&str; 2] = [
    "1111111111111111111111111111111111111111111111111111111111111111",
    "2222222222222222222222222222222222222222222222222222222222222222",
];

/// Checks that any bytes at all, first as the list of images and then as what
/// one image says of itself,
///
/// * are read without a panic, or refused with an error that is fit to be shown;
/// * give a chain within the bounds, of ids that are digests, each once;
/// * give an image that has a layer for each.
///
/// # Panics
/// If one of these does not hold.
pub fn check(bytes: &[u8]) {
    let list = format!(r#"{{"app":{{"1":"{}"}}}}"#, IDS[0]);
    let child = format!(r#"{{"parent":"{}"}}"#, IDS[1]);
    check_archive(bytes, child.as_bytes(), b"{}");
    check_archive(list.as_bytes(), bytes, b"{}");
    check_archive(list.as_bytes(), child.as_bytes(), bytes);
}

fn check_archive(repositories: &[u8], first: &[u8], second: &[u8]) {
    let mut files = BTreeMap::from([(REPOSITORIES_FILE.to_owned(), repositories.to_vec())]);
    for (id, json) in IDS.iter().zip([first, second]) {
        files.insert(format!("{id}/json"), json.to_vec());
        files.insert(format!("{id}/layer.tar"), id.as_bytes().to_vec());
    }
    let bytes = tar(&files);
    let named = "app:1".parse().map(ArchiveSelector::Name).ok();
    let others = [ArchiveSelector::Only, ArchiveSelector::Index(0)];
    for selector in others.into_iter().chain(named) {
        match open(&bytes, &selector) {
            Ok(layers) => assert!((1..=IDS.len()).contains(&layers)),
            Err(error) => assert_fit(&error),
        }
    }
}

/// The number of layers of the image chosen.
fn open(bytes: &[u8], selector: &ArchiveSelector) -> Result<usize, SourceError> {
    let files = archive_of(bytes)?;
    let chain = Chain::choose(&files, selector)?;
    assert!(chain.ids.len() <= MAX_LAYERS);
    for (number, id) in chain.ids.iter().enumerate() {
        assert!(Digest::from_hex(id).is_some() && !chain.ids[..number].contains(id));
    }
    let image = chain.image("name", &files, &PlatformChoice::Host)?;
    assert_eq!(image.layers.len(), chain.ids.len());
    Ok(image.layers.len())
}

/// Lists of images and what images say, to start mutations from.
pub fn seeds() -> Vec<Vec<u8>> {
    let [first, second] = IDS;
    [
        format!(r#"{{"app":{{"1":"{first}","2":"{second}"}}}}"#),
        format!(r#"{{"app":{{"1":"{first}"}},"other":{{"latest":"{first}"}}}}"#),
        format!(r#"{{"app":{{"1":"../{first}"}}}}"#),
        format!(
            r#"{{"id":"{first}","parent":"{second}","os":"linux","architecture":"amd64",
            "variant":"v8","created":"2014-01-01T00:00:00Z","config":{{}}}}"#
        ),
        format!(r#"{{"parent":"{first}"}}"#),
        r#"{"parent":"","os":"\u001b[2J","architecture":null}"#.to_owned(),
        "{}".to_owned(),
        r#"{"a":"#.repeat(200),
    ]
    .map(String::into_bytes)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_hold() {
        for seed in seeds() {
            check(&seed);
        }
        let both = BTreeMap::from([
            (REPOSITORIES_FILE.to_owned(), seeds()[1].clone()),
            (format!("{}/json", IDS[0]), b"{}".to_vec()),
            (format!("{}/layer.tar", IDS[0]), b"layer".to_vec()),
        ]);
        let layers = open(&tar(&both), &ArchiveSelector::Only);
        assert!(matches!(layers, Ok(1)), "{layers:?}");
    }
}
