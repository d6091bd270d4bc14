//! What the branches of several images show equals their merged trees, without a
//! mount: images are staged and joined, for either union, and what is in the
//! directories is looked up as the union does. Much faster than
//! `tests/several.rs`, so it looks further.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::image::platform::PlatformChoice;
use aufs_csi::layer::index::Attrs;
use aufs_csi::layer::seal::Format;
use aufs_csi::layer::store::Store;
use aufs_csi::layer::tree::Ownership;
use aufs_csi::stage::{StageOptions, StagedImage, Stager};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::PathBuf;
use support::entry::{Layer, Time};
use support::generate::{Shape, image_stacks};
use support::images::{images_cases, merged};
use support::inputs::{NAMED, run, source};
use support::lookup::{Markers, look};
use support::node::chain;
use support::oci_layout::OciLayout;
use support::tarball::{Compression, tars};
use support::tree::{Compared, Node, Tree, diff};

/// Joins the images, at most so many branches, and reads them.
fn joined(images: &[Vec<Layer>], format: Format, max_branches: usize) -> Result<Tree, String> {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = Store::open(&at.path().join("store"), "boot", false).unwrap();
    let stager = Stager {
        store: &store,
        options: StageOptions {
            workers: Some(1),
            ..StageOptions::default()
        },
        ownership: Ownership::Real,
        max_branches,
    };
    let mut staged: Vec<StagedImage> = Vec::new();
    for (number, layers) in images.iter().enumerate() {
        let dir = at.path().join(number.to_string());
        OciLayout::new(&dir).image("latest", &tars(layers), Compression::None);
        let name = format!("oci:{}:latest", dir.display());
        let opened = aufs_csi::image::open(&name.parse().unwrap()).unwrap();
        let platform = PlatformChoice::Host;
        let image = stager
            .stage(opened.as_ref(), &name, &platform, format, &())
            .map_err(|error| chain(&error))?;
        staged.push(image);
    }
    let form = stager
        .join(&staged, format)
        .map_err(|error| chain(&error))?;
    let branches: Vec<PathBuf> = form
        .branches
        .iter()
        .map(|id| store.branch_dir(id))
        .collect();
    assert!(branches.len() <= max_branches, "{branches:?}");
    let distinct: BTreeSet<_> = branches.iter().collect();
    assert_eq!(distinct.len(), branches.len(), "the kernels refuse it");
    // What is a layer's is shared; only a correction and a bottom are made.
    let own = staged.iter().flat_map(|image| &image.form.branches);
    let own: BTreeSet<_> = own.collect();
    let made = form.branches.iter().filter(|id| !own.contains(id)).count();
    assert!(made <= 2, "{made} of {branches:?}");
    let again = stager.join(&staged, format).unwrap();
    assert_eq!(again, form, "what is recorded is what was made");

    let attrs = Attrs::from(&form.root);
    let root = Node {
        mode: attrs.mode,
        uid: attrs.uid,
        gid: attrs.gid,
        mtime: Some(Time {
            seconds: attrs.mtime.seconds,
            nanos: attrs.mtime.nanos,
        }),
        xattrs: attrs.xattrs.into_iter().collect(),
        ..Node::implied_dir(u64::MAX)
    };
    let markers = match format {
        Format::Aufs => Markers::Aufs,
        Format::Overlay | Format::OverlayUser => Markers::Overlay,
    };
    if form.root_fits
        && let Some(top) = branches.first()
    {
        let own = support::tree::read_one(top, &mut Default::default()).unwrap();
        assert_eq!(
            (own.mode, own.uid, own.mtime),
            (root.mode, root.uid, root.mtime)
        );
    }
    Ok(look(markers, &branches, root))
}

fn text(images: &[Vec<Layer>]) -> String {
    let images = images.iter().map(|layers| source(layers));
    images.collect::<Vec<_>>().join(",\n")
}

#[test]
fn every_case_of_the_table_comes_out_as_it_says() {
    let mut faults = Vec::new();
    for case in images_cases() {
        let expected = merged(&case.images);
        for line in case.faults(&expected) {
            faults.push(format!("{}, by the model: {line}", case.name));
        }
        for format in [Format::Aufs, Format::Overlay] {
            for max_branches in [100, 4, 3, 2, 1] {
                let what = format!("{}, {format:?}, {max_branches}", case.name);
                match joined(&case.images, format, max_branches) {
                    Ok(tree) => {
                        let lines = diff(&expected, &tree, Compared::ALL);
                        faults.extend(lines.iter().map(|line| format!("{what}: {line}")));
                    }
                    Err(error) => faults.push(format!("{what}: {error}")),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn random_images(cases: u32, shape: Shape, format: Format) {
    let limits = prop_oneof![3 => Just(100), 1 => Just(5), 1 => Just(4), 1 => 1..4usize];
    run(cases, (image_stacks(shape), limits), |(images, limit)| {
        let expected = merged(&images);
        let tree = match joined(&images, format, limit) {
            Ok(tree) => tree,
            Err(text) if NAMED.iter().any(|words| text.contains(words)) => {
                return Err(TestCaseError::reject(text));
            }
            Err(error) => return Err(TestCaseError::fail(format!("{error}\n{}", text(&images)))),
        };
        let lines = diff(&expected, &tree, Compared::ALL);
        prop_assert!(
            lines.is_empty(),
            "{limit}: {}\n{}",
            lines.join("\n"),
            text(&images)
        );
        Ok(())
    });
}

#[test]
fn random_images_for_aufs() {
    random_images(1500, Shape::DEFAULT, Format::Aufs);
}

#[test]
fn random_images_for_overlay() {
    random_images(1500, Shape::DEFAULT, Format::Overlay);
}

#[test]
fn images_of_many_links() {
    let shape = Shape {
        links: 3,
        max_entries: 4,
        ..Shape::DEFAULT
    };
    random_images(500, shape, Format::Aufs);
    random_images(500, shape, Format::Overlay);
}
