//! Directories that take the place of a link half-way through a layer.

use super::super::entry::{Entry, dir, file, hardlink, opaque, symlink, whiteout};
use super::{
    Case, Picture, a_dir, a_file, a_symlink, base, base_tree, implied_dir, refused, shows,
};

/// Names that lead through a link of a lower layer until a directory of the same
/// layer takes the link's place, half-way through the tar.
pub fn directories_over_links() -> Vec<Case> {
    let both = || {
        base_tree()
            .with("usr/lib/foo", a_file("foo"))
            .without("lib")
            .with("lib", a_dir())
    };
    let deep = || {
        let mut layer = base();
        layer.extend([dir("usr/lib/e"), file("usr/lib/e/old", b"old")]);
        layer
    };
    vec![
        shows(
            "a directory's second entry does not put off when it took the link's place",
            vec![
                base(),
                vec![
                    file("lib/foo", b"foo"),
                    dir("lib").mode(0o700),
                    file("lib/bar", b"bar"),
                    dir("lib"),
                ],
            ],
            both().with("lib/bar", a_file("bar")),
        ),
        shows(
            "nor where another link leads to it",
            vec![
                [base(), vec![symlink("alias", "lib")]].concat(),
                vec![
                    file("lib/foo", b"foo"),
                    dir("lib").mode(0o700),
                    file("alias/bar", b"bar"),
                    dir("lib"),
                ],
            ],
            both()
                .with("alias", a_symlink("lib"))
                .with("lib/bar", a_file("bar")),
        ),
        shows(
            "nor where nothing came before its first",
            vec![
                [base(), vec![symlink("alias", "lib")]].concat(),
                vec![dir("lib"), file("alias/bar", b"bar"), dir("lib")],
            ],
            base_tree()
                .with("alias", a_symlink("lib"))
                .without("lib")
                .with("lib", a_dir())
                .with("lib/bar", a_file("bar")),
        ),
        shows(
            "what a link led to is replaced before a directory takes the link's place",
            vec![
                base(),
                vec![
                    file("lib/foo", b"foo"),
                    file("usr/lib", b"file"),
                    dir("lib"),
                ],
            ],
            base_tree()
                .without("usr/lib/old")
                .without("usr/lib")
                .with("usr/lib", a_file("file"))
                .without("lib")
                .with("lib", a_dir()),
        ),
        shows(
            "an early entry goes through further links below",
            vec![
                [base(), vec![symlink("usr/lib/e", "/d")]].concat(),
                vec![file("lib/e/n", b"n"), dir("lib")],
            ],
            base_tree()
                .with("usr/lib/e", a_symlink("/d"))
                .with("d/n", a_file("n"))
                .without("lib")
                .with("lib", a_dir()),
        ),
        shows(
            "early directories and late ones beside each other",
            vec![
                deep(),
                vec![
                    file("lib/e/n", b"n"),
                    dir("lib"),
                    dir("lib/g"),
                    file("lib/g/m", b"m"),
                ],
            ],
            base_tree()
                .with("usr/lib/e", a_dir())
                .with("usr/lib/e/old", a_file("old"))
                .with("usr/lib/e/n", a_file("n"))
                .without("lib")
                .with("lib", a_dir())
                .with("lib/g", a_dir())
                .with("lib/g/m", a_file("m")),
        ),
        shows(
            "a name twice beneath a directory that takes no link's place",
            vec![
                base(),
                vec![
                    file("d/n", b"1"),
                    file("d/e/m", b"1"),
                    dir("d"),
                    file("d/n", b"2"),
                    file("d/e/m", b"2"),
                    dir("d/e"),
                    dir("d"),
                ],
            ],
            base_tree()
                .without("d")
                .with("d", a_dir())
                .with("d/n", a_file("2"))
                .with("d/e", a_dir())
                .with("d/e/m", a_file("2")),
        ),
        shows(
            "a name twice before the directory, and twice behind it",
            vec![
                base(),
                vec![
                    file("lib/foo", b"1"),
                    file("lib/foo", b"foo"),
                    dir("lib"),
                    file("lib/bar", b"1"),
                    file("lib/bar", b"bar"),
                ],
            ],
            both().with("lib/bar", a_file("bar")),
        ),
        shows(
            "nor for a hard link by way of that link",
            vec![
                [base(), vec![symlink("alias", "lib")]].concat(),
                vec![
                    dir("lib"),
                    file("lib/n", b"n"),
                    hardlink("g", "alias/n"),
                    dir("lib"),
                ],
            ],
            base_tree()
                .with("alias", a_symlink("lib"))
                .without("lib")
                .with("lib", a_dir())
                .with("lib/n", a_file("n"))
                .also("g", "lib/n"),
        ),
    ]
}

/// Markers are led by the layers below alone, and entries by what the same layer
/// has put on their way.
pub fn ways_that_the_layer_changes() -> Vec<Case> {
    vec![
        shows(
            "a marker goes through a link whose end the layer makes a circle",
            vec![
                vec![dir("lib"), file("lib/a", b"a"), symlink("f", "/lib")],
                vec![symlink("a", "a"), symlink("lib", "/a"), whiteout("f/a")],
            ],
            Picture::new()
                .with("a", a_symlink("a"))
                .with("f", a_symlink("/lib"))
                .with("lib", a_symlink("/a")),
        ),
        shows(
            "a marker below a circle that the layer replaces",
            vec![
                vec![symlink("c", "c/a"), symlink("d", "c"), dir("e")],
                vec![file("c", b"c"), whiteout("e/x"), file("d", b"d")],
            ],
            Picture::new()
                .with("c", a_file("c"))
                .with("d", a_file("d"))
                .with("e", a_dir()),
        ),
        shows(
            "a link on the way of a marker hides itself",
            vec![
                vec![dir("d"), symlink("d/up", "..")],
                vec![file("d/up/x", b"x"), opaque("d/up")],
            ],
            Picture::new()
                .with("d", implied_dir())
                .with("d/up", implied_dir())
                .with("d/up/x", a_file("x")),
        ),
        shows(
            "a marker speaks of what was there before the layer replaced it",
            vec![
                vec![
                    dir("lib"),
                    symlink("lib/a", "/d"),
                    dir("d"),
                    file("d/x", b"x"),
                ],
                vec![file("lib", b"lib"), whiteout("lib/a/x"), dir("lib")],
            ],
            Picture::new().with("lib", a_dir()).with("d", a_dir()),
        ),
        shows(
            "what came through a link is replaced, and comes again",
            vec![
                base(),
                vec![
                    file("lib/foo", b"1"),
                    file("usr/lib", b"file"),
                    file("lib/foo2", b"2"),
                ],
            ],
            base_tree()
                .without("usr/lib/old")
                .without("usr/lib")
                .with("usr/lib", implied_dir())
                .with("usr/lib/foo2", a_file("2")),
        ),
    ]
}

/// Those that have a meaning which is not kept where a layer is unpacked alone.
/// Those that have a meaning which is not kept where a layer is unpacked alone.
pub fn unsettled_cases() -> Vec<Case> {
    let unsettled: &[&str] = &["below lib", "such a layer cannot be unpacked"];
    let lost = |name, mut upper: Vec<Entry>| {
        upper.insert(1, dir("lib"));
        refused(name, vec![base(), upper], unsettled)
    };
    vec![
        refused(
            "an early entry meets what came by way of a link",
            vec![
                base(),
                vec![
                    symlink("lib/e", "/d"),
                    file("usr/lib/e/n", b"n"),
                    dir("usr/lib/e"),
                ],
            ],
            &["below usr/lib/e", "such a layer cannot be unpacked"],
        ),
        lost(
            "a name before the directory and behind it",
            vec![file("lib/foo", b"1"), file("lib/foo", b"2")],
        ),
        lost(
            "a directory before and behind",
            vec![dir("lib/e").mode(0o700), dir("lib/e")],
        ),
        lost(
            "a file before, a directory behind",
            vec![file("lib/e", b"1"), dir("lib/e")],
        ),
        lost(
            "an implied directory before and behind",
            vec![file("lib/e/1", b"1"), file("lib/e/2", b"2")],
        ),
        lost(
            "an implied directory before, its own entry behind",
            vec![file("lib/e/1", b"1"), dir("lib/e")],
        ),
        lost(
            "an implied directory before, a file behind",
            vec![file("lib/e/1", b"1"), file("lib/e", b"2")],
        ),
        refused(
            "a link that came through another one, and went again with its directory",
            vec![
                vec![symlink(".x", "b")],
                vec![
                    symlink(".x/d/c", "/a/b/d"),
                    symlink("b/d/c/c", "/d/a"),
                    symlink("b", "lib"),
                ],
            ],
            &["below b,", "such a layer cannot be unpacked"],
        ),
        refused(
            "a hard link to a file that another one took the place of, through a link",
            vec![
                base(),
                vec![
                    file("usr/lib/foo", b"1"),
                    file("lib/foo", b"2"),
                    hardlink("g", "usr/lib/foo"),
                ],
            ],
            &["below g", "such a layer cannot be unpacked"],
        ),
        refused(
            "a link's text goes up from a name that is another link below",
            vec![
                base(),
                vec![symlink("s", "lib/.."), dir("s/n"), file("lib/m", b"m")],
            ],
            &["below lib", "such a layer cannot be unpacked"],
        ),
        refused(
            "the layer's own link, which a directory took the place of through a link",
            vec![
                vec![symlink("d", "/"), dir("a")],
                vec![symlink("s", "a"), dir("d/s"), file("s/n", b"n")],
            ],
            &["below s", "such a layer cannot be unpacked"],
        ),
        lost(
            "a hard link behind in the place of a file before",
            vec![file("lib/foo", b"1"), hardlink("lib/foo", "f")],
        ),
    ]
}
