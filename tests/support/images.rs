//! What several images are together, as a table written by hand.

use super::entry::{Entry, Layer, dir, file, hardlink, opaque, symlink, whiteout};
use super::model::{flatten, merge};
use super::tree::{Kind, Tree};

/// Several images, uppermost first, and some of what they must become. That the
/// model agrees is checked too.
pub struct ImagesCase {
    pub name: &'static str,
    pub images: Vec<Vec<Layer>>,
    /// Paths of the merged tree, each with the content of a file, `/` for a
    /// directory, or nothing if there must be nothing.
    pub shows: &'static [(&'static str, &'static str)],
}

/// The merged tree of images, by the model.
pub fn merged(images: &[Vec<Layer>]) -> Tree {
    let trees: Vec<Tree> = images
        .iter()
        .map(|layers| flatten(layers).expect("images that make sense"))
        .collect();
    merge(&trees)
}

impl ImagesCase {
    /// What a tree departs from the table in.
    pub fn faults(&self, tree: &Tree) -> Vec<String> {
        let shown = |path: &str| match tree.get(path).map(|node| &node.kind) {
            None => String::new(),
            Some(Kind::Dir) => "/".to_owned(),
            Some(Kind::File(content)) => String::from_utf8_lossy(content).into_owned(),
            Some(other) => other.to_string(),
        };
        let lines = self.shows.iter().filter_map(|(path, expected)| {
            let found = shown(path);
            (found != *expected).then(|| format!("{path} is {found:?}, expected {expected:?}"))
        });
        lines.collect()
    }
}

fn base() -> Layer {
    vec![
        dir("etc").mode(0o711),
        file("etc/conf", "base"),
        file("etc/other", "other"),
        dir("d"),
        file("d/a", "a"),
        file("d/b", "b"),
        hardlink("d/b2", "d/b"),
    ]
}

pub fn images_cases() -> Vec<ImagesCase> {
    let case = |name, images: &[&[&[Entry]]], shows| ImagesCase {
        name,
        images: images
            .iter()
            .map(|layers| layers.iter().map(|layer| layer.to_vec()).collect())
            .collect(),
        shows,
    };
    vec![
        case(
            "directories merge, and the first image is on top",
            &[
                &[&[dir("d"), file("d/x", "up"), file("d/both", "up")]],
                &[&[dir("d"), file("d/y", "low"), file("d/both", "low")]],
            ],
            &[("d/x", "up"), ("d/y", "low"), ("d/both", "up")],
        ),
        case(
            "a whiteout hides what its own image has, and nothing of another",
            &[
                &[
                    &[dir("d"), file("d/x", "up"), file("d/own", "own")],
                    &[whiteout("d/x"), whiteout("d/own")],
                ],
                &[&[dir("d"), file("d/x", "low")]],
            ],
            &[("d/x", "low"), ("d/own", "")],
        ),
        case(
            "a directory that an image removes shows that of a lower image, whole",
            &[
                &[
                    &[dir("d"), dir("d/e"), file("d/e/x", "up")],
                    &[whiteout("d")],
                ],
                &[&[dir("d"), dir("d/e"), file("d/e/y", "low"), file("d/z", "z")]],
            ],
            &[("d/e/x", ""), ("d/e/y", "low"), ("d/z", "z")],
        ),
        case(
            "an opaque directory hides what its own image has",
            &[
                &[
                    &[dir("d"), file("d/x", "up")],
                    &[dir("d"), opaque("d"), file("d/new", "new")],
                ],
                &[&[dir("d"), file("d/x", "low"), file("d/y", "y")]],
            ],
            &[("d/x", "low"), ("d/y", "y"), ("d/new", "new")],
        ),
        case(
            "an opaque root too",
            &[
                &[&[dir("d"), file("x", "up")], &[opaque(""), file("n", "n")]],
                &[&[dir("d").mode(0o700), file("x", "low")]],
            ],
            &[("x", "low"), ("d", "/"), ("n", "n")],
        ),
        case(
            "a directory over a lower image's file hides it, and the other way round",
            &[
                &[&[dir("a"), file("a/x", "x"), file("b", "file")]],
                &[&[file("a", "file"), dir("b"), file("b/y", "y")]],
            ],
            &[("a", "/"), ("a/x", "x"), ("b", "file"), ("b/y", "")],
        ),
        case(
            "a file between two directories of one image does not cut off a lower image",
            &[
                &[
                    &[dir("p"), file("p/own", "own")],
                    &[file("p", "file")],
                    &[dir("p"), file("p/new", "new")],
                ],
                &[&[dir("p"), file("p/low", "low"), file("p/own", "low")]],
            ],
            &[("p/own", "low"), ("p/new", "new"), ("p/low", "low")],
        ),
        case(
            "what a lower image has replaced by a file stays gone beneath a directory",
            &[
                &[&[dir("p"), file("p/new", "new")]],
                &[&[dir("p"), file("p/old", "old")], &[file("p", "file")]],
            ],
            &[("p/new", "new"), ("p/old", "")],
        ),
        case(
            "a file of the image between hides the directory of the lowest",
            &[
                &[&[dir("p"), file("p/new", "new")]],
                &[&[file("p", "file")]],
                &[&[dir("p"), file("p/old", "old")]],
            ],
            &[("p/new", "new"), ("p/old", "")],
        ),
        case(
            "a link of a lower image is not followed",
            &[
                &[&[dir("lib"), file("lib/x", "up")]],
                &[&[
                    dir("usr"),
                    dir("usr/lib"),
                    file("usr/lib/y", "y"),
                    symlink("lib", "usr/lib"),
                ]],
            ],
            &[("lib", "/"), ("lib/x", "up"), ("usr/lib/x", "")],
        ),
        case(
            "nor one above it, and inside an image it is",
            &[
                &[
                    &[dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib")],
                    &[file("lib/x", "up"), whiteout("lib/y")],
                ],
                &[&[
                    dir("lib"),
                    file("lib/y", "low"),
                    dir("usr"),
                    file("usr/y", "y"),
                ]],
            ],
            &[("usr/lib/x", "up"), ("lib/y", ""), ("usr/y", "y")],
        ),
        case(
            "a directory that is only implied changes nothing of a lower image's",
            &[
                &[&[file("d/x", "x")], &[whiteout("d/x")], &[file("e/y", "y")]],
                &[&[dir("d").mode(0o1777).owner(5, 6), dir("e").mode(0o700)]],
            ],
            &[("d", "/"), ("d/x", ""), ("e/y", "y")],
        ),
        case(
            "one that an image has removed and implies again says nothing either",
            &[
                &[
                    &[dir("d").mode(0o700), file("d/x", "x")],
                    &[whiteout("d"), file("d/y", "y")],
                ],
                &[&[dir("d").mode(0o1777), file("d/x", "low")]],
            ],
            &[("d/x", "low"), ("d/y", "y")],
        ),
        case(
            "what looks like an implied directory and is none",
            &[
                &[&[dir("d").mtime(0, 0)], &[file("d/x", "x")]],
                &[&[dir("d").mode(0o700)]],
            ],
            &[("d/x", "x")],
        ),
        case(
            "an upper image without the file that it shares shows the lower image's",
            &[
                &[&base()[..], &[whiteout("etc/conf"), whiteout("d")]],
                &[&base()[..], &[file("etc/other", "changed")]],
            ],
            &[
                ("etc/conf", "base"),
                ("etc/other", "other"),
                ("d/a", "a"),
                ("d/b2", "b"),
            ],
        ),
        case(
            "names of one inode stay one where only some were hidden",
            &[
                &[&[dir("d"), file("d/b", "up")], &[whiteout("d/b")]],
                &[&base()[..]],
            ],
            &[("d/b", "b"), ("d/b2", "b")],
        ),
        case(
            "and do not become one with those of another image",
            &[&[&base()[..], &[whiteout("d/b")]], &[&base()[..]]],
            &[("d/b", "b"), ("d/b2", "b")],
        ),
        case(
            "a shared layer whose effect is needed further down",
            &[
                &[&base()[..], &[file("top", "1")]],
                &[
                    &[dir("etc"), file("etc/conf", "lowest"), file("low", "low")],
                    &base()[..],
                    &[whiteout("etc/other"), whiteout("low")],
                ],
            ],
            &[("etc/conf", "base"), ("etc/other", "other"), ("low", "")],
        ),
        case(
            "the same image twice is that image",
            &[
                &[&base()[..], &[whiteout("d/a")]],
                &[&base()[..], &[whiteout("d/a")]],
            ],
            &[("d/a", ""), ("d/b", "b")],
        ),
        case(
            "an image between that has nothing",
            &[
                &[&[file("x", "x")]],
                &[&[]],
                &[&[dir("").mode(0o700), file("y", "y")]],
            ],
            &[("x", "x"), ("y", "y")],
        ),
    ]
}
