//! What must hold for any bytes that are read as `manifest.json` of an archive,
//! as a fuzz target and the tests have it.

use super::{Archive, Chosen, MANIFEST_FILE, MAX_LAYERS, MAX_TAGS};
use crate::image::digest::Digest;
use crate::image::files::archive_of;
use crate::image::platform::PlatformChoice;
use crate::image::reference::ArchiveSelector;
use crate::image::testdata::{assert_fit, tar};
use crate::image::{Image, ImageSource, SourceError};
use std::collections::BTreeMap;

const CONFIG: &[u8] =
    br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[
    "sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}"#;

/// Checks that any bytes at all, as the list of images in an archive that has
/// one config and one layer,
///
/// * are read without a panic, or refused with an error that is fit to be shown;
/// * give an image within the bounds, whose layers are members of the archive;
/// * give one that is known by the digest of its config.
///
/// # Panics
/// If one of these does not hold.
pub fn check(bytes: &[u8]) {
    with(bytes, |opened, image| {
        let Chosen::Current(entry) = &opened.image else {
            unreachable!("there is a manifest.json");
        };
        assert!(entry.layers().len() <= MAX_LAYERS && entry.tags().len() <= MAX_TAGS);
        let Ok(image) = image else { return };
        assert_eq!(image.manifest_digest, Digest::of(CONFIG));
        assert_eq!(image.layers.len(), entry.layers().len());
        for number in 0..image.layers.len() {
            assert!(opened.open_layer(&image, number).is_ok());
        }
        assert!(opened.open_layer(&image, image.layers.len()).is_err());
    });
}

/// Opens the archive with every kind of selector.
fn with(bytes: &[u8], found: impl Fn(&Archive, Result<Image, SourceError>)) {
    let config = format!("{}.json", Digest::of(CONFIG).hex());
    let files = BTreeMap::from([
        (MANIFEST_FILE.to_owned(), bytes.to_vec()),
        (config, CONFIG.to_vec()),
        ("config.json".to_owned(), CONFIG.to_vec()),
        ("layer.tar".to_owned(), b"layer".to_vec()),
    ]);
    let bytes = tar(&files);
    let named = "app:1".parse().map(ArchiveSelector::Name).ok();
    let places = [
        ArchiveSelector::Index(0),
        ArchiveSelector::Index(usize::MAX),
    ];
    for selector in [ArchiveSelector::Only]
        .into_iter()
        .chain(named)
        .chain(places)
    {
        let opened =
            archive_of(&bytes).and_then(|files| Archive::open("name".to_owned(), files, &selector));
        match opened {
            Ok(opened) => {
                let image = opened.image(&PlatformChoice::Host);
                if let Err(error) = &image {
                    assert_fit(error);
                }
                found(&opened, image);
            }
            Err(error) => assert_fit(&error),
        }
    }
}

/// Lists of images, to start mutations from.
pub fn seeds() -> Vec<Vec<u8>> {
    let hex = Digest::of(CONFIG).hex();
    [
        format!(r#"[{{"Config":"{hex}.json","RepoTags":["app:1"],"Layers":["layer.tar"]}}]"#),
        r#"[{"Config":"config.json","RepoTags":null,"Layers":["layer.tar"]},
            {"Config":"none","RepoTags":["app:1","other"],"Layers":["a","b"]}]"#
            .to_owned(),
        r#"[{"Config":"../config.json","Layers":["./layer.tar"],"Parent":"x","LayerSources":{}}]"#
            .to_owned(),
        r#"[{"Config":"\u001b[2J","RepoTags":["\u0000\n"],"Layers":[]}]"#.to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        "[".repeat(200),
    ]
    .map(String::into_bytes)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_seeds_hold() {
        let images = Cell::new(0);
        for seed in seeds() {
            check(&seed);
            with(&seed, |_, image| {
                images.set(images.get() + usize::from(image.is_ok()))
            });
        }
        // By default, by name and by place; by place.
        assert_eq!(images.get(), 4);
    }
}
