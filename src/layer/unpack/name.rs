//! Names as an archive has them: brought into one form, bounded, and told
//! apart by the whiteout prefix. Pure.

use crate::layer::index;
use crate::layer::limits::{Limits, MAX_COMPONENT_BYTES};

/// What makes a name a whiteout, in the layer format.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// AUFS's names for its own bookkeeping; old images brought them along.
const BOOKKEEPING: &[u8] = b".wh..wh.";
/// Hides all that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// At the root of a layer that AUFS-Docker before 1.4 wrote: the directory of
/// the files that had several names, which are hard links into it.
pub(super) const PSEUDO_LINKS: &[u8] = b".wh..wh.plnk";

/// A name is refused, whatever is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A symbolic link to nothing, which Linux does not have.
    #[error("it is empty")]
    Empty,
    /// `..` beyond the root.
    #[error("it climbs above the root")]
    AboveRoot,
    /// [`Limits::max_path_bytes`].
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// [`Limits::max_depth`].
    #[error("it has more than {limit} components")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// No Linux filesystem takes the component.
    #[error("a component of it is longer than 255 bytes")]
    ComponentTooLong,
    /// `.wh.`, `.wh..` or `.wh...`: it would hide the directory itself or the
    /// one around it.
    #[error("the whiteout names nothing in its directory")]
    WhiteoutOfNothing,
    /// Something beneath a whiteout, which is no directory.
    #[error("it is inside a whiteout")]
    InsideWhiteout,
    /// A whiteout's name where only a file's can be meant.
    #[error("it is a whiteout's name")]
    Whiteout,
}

/// What a name, in normal form, stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// A node of the tree.
    Node,
    /// Hides `name` of the layers below in directory `parent`.
    Whiteout { parent: &'a [u8], name: &'a [u8] },
    /// Hides all of the layers below in directory `parent`.
    Opaque { parent: &'a [u8] },
    /// A file in the directory of pseudo-links.
    PseudoLink { name: &'a [u8] },
    /// AUFS's bookkeeping, of no meaning to anybody else.
    Bookkeeping,
}

/// Brings a name into the form of an index path: relative to the root, no
/// empty, `.` or `..` components. `..` takes back what stands before it, as if
/// no component were a link. The root becomes the empty path.
pub(super) fn normalise(raw: &[u8], limits: &Limits) -> Result<Vec<u8>, NameError> {
    let mut path = Vec::with_capacity(raw.len());
    let mut depth = 0;
    for component in raw.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => {
                if path.is_empty() {
                    return Err(NameError::AboveRoot);
                }
                let length = index::parent(&path).len();
                path.truncate(length);
                depth -= 1;
                continue;
            }
            _ => {}
        }
        check_component(component)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        depth += 1;
        check_extent(depth, path.len(), limits)?;
    }
    Ok(path)
}

pub(super) fn check_component(component: &[u8]) -> Result<(), NameError> {
    if component.len() > MAX_COMPONENT_BYTES {
        return Err(NameError::ComponentTooLong);
    }
    Ok(())
}

/// Checks a path of `depth` components in `bytes` bytes.
pub(super) fn check_extent(depth: usize, bytes: usize, limits: &Limits) -> Result<(), NameError> {
    if bytes > limits.max_path_bytes {
        return Err(NameError::TooLong {
            limit: limits.max_path_bytes,
        });
    }
    if depth > limits.max_depth {
        return Err(NameError::TooDeep {
            limit: limits.max_depth,
        });
    }
    Ok(())
}

/// Says what a name in normal form stands for. The first component with the
/// whiteout prefix decides.
pub(super) fn meaning(path: &[u8]) -> Result<Meaning<'_>, NameError> {
    let mut start = 0;
    for component in path.split(|byte| *byte == b'/') {
        if component.starts_with(WHITEOUT) {
            let end = start + component.len();
            let parent = &path[..start.saturating_sub(1)];
            let beneath = path.get(end + 1..);
            return marker_meaning(parent, component, beneath);
        }
        start += component.len() + 1;
    }
    Ok(Meaning::Node)
}

fn marker_meaning<'a>(
    parent: &'a [u8],
    marker: &'a [u8],
    beneath: Option<&'a [u8]>,
) -> Result<Meaning<'a>, NameError> {
    match beneath {
        None if marker == OPAQUE => Ok(Meaning::Opaque { parent }),
        None if marker.starts_with(BOOKKEEPING) => Ok(Meaning::Bookkeeping),
        None => match &marker[WHITEOUT.len()..] {
            b"" | b"." | b".." => Err(NameError::WhiteoutOfNothing),
            name => Ok(Meaning::Whiteout { parent, name }),
        },
        Some(name) if marker == PSEUDO_LINKS && parent.is_empty() && !name.contains(&b'/') => {
            Ok(Meaning::PseudoLink { name })
        }
        Some(_) if marker.starts_with(BOOKKEEPING) => Ok(Meaning::Bookkeeping),
        Some(_) => Err(NameError::InsideWhiteout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(raw: &str) -> Result<String, NameError> {
        normalise(raw.as_bytes(), &Limits::default()).map(|path| String::from_utf8(path).unwrap())
    }

    #[test]
    fn names_get_one_form() {
        for (raw, path) in [
            ("", ""),
            (".", ""),
            ("./", ""),
            ("/", ""),
            ("//./", ""),
            ("a", "a"),
            ("./a/b/", "a/b"),
            ("/a//b/./c", "a/b/c"),
            ("a/../b", "b"),
            ("a/b/../../c", "c"),
            ("a/..", ""),
            ("...", "..."),
            (".a/..b", ".a/..b"),
        ] {
            assert_eq!(normal(raw).as_deref(), Ok(path), "{raw}");
        }
    }

    #[test]
    fn names_that_climb_out_are_refused() {
        for raw in [
            "..",
            "../x",
            "/..",
            "/../x",
            "./../x",
            "a/../..",
            "a/../../a/x",
            "../../../../etc/passwd",
            "a//..//..//x",
        ] {
            assert_eq!(normal(raw), Err(NameError::AboveRoot), "{raw}");
        }
    }

    #[test]
    fn names_beyond_the_limits_are_refused() {
        let limits = Limits::default();
        let component = |bytes| vec![b'n'; bytes];
        assert_eq!(normalise(&component(255), &limits), Ok(component(255)));
        assert_eq!(
            normalise(&component(256), &limits),
            Err(NameError::ComponentTooLong)
        );
        let deep = |depth| vec!["d"; depth].join("/").into_bytes();
        assert_eq!(normalise(&deep(512), &limits), Ok(deep(512)));
        assert_eq!(
            normalise(&deep(513), &limits),
            Err(NameError::TooDeep { limit: 512 })
        );
        let long = vec!["n".repeat(255); 16].join("/").into_bytes();
        assert_eq!(long.len(), 4095);
        assert_eq!(normalise(&long, &limits).as_deref(), Ok(&long[..]));
        let longer = [&long[..], b"/n"].concat();
        assert_eq!(
            normalise(&longer, &limits),
            Err(NameError::TooLong { limit: 4095 })
        );
    }

    #[test]
    fn the_whiteout_prefix_decides_the_meaning() {
        let whiteout = |parent: &'static str, name: &'static str| {
            Ok(Meaning::Whiteout {
                parent: parent.as_bytes(),
                name: name.as_bytes(),
            })
        };
        for (path, expected) in [
            ("", Ok(Meaning::Node)),
            ("a/b", Ok(Meaning::Node)),
            (".wh", Ok(Meaning::Node)),
            ("a.wh.b", Ok(Meaning::Node)),
            (".wh.a", whiteout("", "a")),
            ("d/e/.wh.a", whiteout("d/e", "a")),
            (".wh.wh.a", whiteout("", "wh.a")),
            (".wh..a", whiteout("", ".a")),
            (".wh....", whiteout("", "...")),
            (".wh..wh", whiteout("", ".wh")),
            (".wh.", Err(NameError::WhiteoutOfNothing)),
            ("d/.wh..", Err(NameError::WhiteoutOfNothing)),
            ("d/.wh...", Err(NameError::WhiteoutOfNothing)),
            (".wh..wh..opq", Ok(Meaning::Opaque { parent: b"" })),
            ("d/.wh..wh..opq", Ok(Meaning::Opaque { parent: b"d" })),
            (".wh..wh..opqx", Ok(Meaning::Bookkeeping)),
            (".wh..wh.aufs", Ok(Meaning::Bookkeeping)),
            (".wh..wh.", Ok(Meaning::Bookkeeping)),
            ("d/.wh..wh.x", Ok(Meaning::Bookkeeping)),
            (".wh..wh.orph/x/y", Ok(Meaning::Bookkeeping)),
            (".wh..wh..opq/x", Ok(Meaning::Bookkeeping)),
            (".wh..wh.x/.wh.y", Ok(Meaning::Bookkeeping)),
            (".wh..wh.plnk", Ok(Meaning::Bookkeeping)),
            (".wh..wh.plnk/1.2", Ok(Meaning::PseudoLink { name: b"1.2" })),
            (".wh..wh.plnk/1/2", Ok(Meaning::Bookkeeping)),
            ("d/.wh..wh.plnk/1.2", Ok(Meaning::Bookkeeping)),
            (".wh.a/b", Err(NameError::InsideWhiteout)),
            ("d/.wh.a/b/c", Err(NameError::InsideWhiteout)),
            (".wh.a/.wh..wh.x", Err(NameError::InsideWhiteout)),
            (".wh./b", Err(NameError::InsideWhiteout)),
        ] {
            assert_eq!(meaning(path.as_bytes()), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_name_is_its_own_normal_form(raw in "([./]|a|\\.wh\\.){0,24}") {
            let limits = Limits::default();
            if let Ok(path) = normalise(raw.as_bytes(), &limits) {
                prop_assert_eq!(normalise(&path, &limits), Ok(path.clone()));
                let components = path.split(|byte| *byte == b'/');
                prop_assert!(
                    path.is_empty()
                        || components
                            .into_iter()
                            .all(|name| !matches!(name, b"" | b"." | b".."))
                );
            }
        }
    }
}
