//! The table of modules in ARCHITECTURE.md holds: who may use whom is read from
//! the sources, because a boundary that nobody checks is a wish.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

/// What the files below a path must not mention, outside comments.
struct Rule {
    /// File or directory below `src`.
    part: &'static str,
    /// Paths that it must not use.
    forbidden: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        part: "host",
        forbidden: &[
            "crate::image",
            "crate::layer",
            "crate::stage",
            "crate::union",
            "crate::volume",
            "crate::csi",
            "crate::cli",
        ],
    },
    Rule {
        part: "union",
        forbidden: &[
            "crate::image",
            "crate::layer",
            "crate::stage",
            "crate::volume",
            "crate::csi",
            "crate::cli",
        ],
    },
    Rule {
        part: "image",
        forbidden: &[
            "crate::host",
            "crate::layer",
            "crate::stage",
            "crate::union",
            "crate::volume",
            "crate::csi",
            "crate::cli",
        ],
    },
    Rule {
        part: "layer",
        forbidden: &[
            "crate::host",
            "crate::image",
            "crate::stage",
            "crate::union",
            "crate::volume",
            "crate::csi",
            "crate::cli",
        ],
    },
    Rule {
        part: "stage",
        forbidden: &[
            "crate::host",
            "crate::union",
            "crate::volume",
            "crate::csi",
            "crate::cli",
        ],
    },
    Rule {
        part: "volume",
        forbidden: &["crate::csi", "crate::cli"],
    },
    Rule {
        part: "cli",
        forbidden: &["rustix"],
    },
    Rule {
        part: "csi",
        forbidden: &[
            "crate::layer::apply",
            "crate::layer::seal",
            "crate::layer::store",
            "crate::layer::unpack",
            "crate::host",
            "crate::cli",
            "rustix::mount",
        ],
    },
];

/// Libraries that stop at one part of the program.
const OWNED: &[(&str, &str)] = &[
    ("tonic", "csi"),
    ("clap", "cli"),
    ("indicatif", "cli"),
    ("rustix::mount", "host/linux"),
];

/// All sources of the program, as paths relative to `src`, with their text. Files
/// that only tests compile may use what they like.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&base, &mut paths);
    paths.retain(|path| !is_test_only(path.strip_prefix(&base).unwrap()));
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&base).unwrap().to_owned(), text)
        })
        .collect()
}

fn is_test_only(path: &Path) -> bool {
    path.with_extension("")
        .iter()
        .any(|name| name == "tests" || name == "test_support" || name == "testdata")
}

/// Whether the file belongs to `part`: `part.rs`, or anything in `part/`.
fn belongs(path: &Path, part: &str) -> bool {
    path.starts_with(part) || path == Path::new(part).with_extension("rs")
}

/// Lines of code that mention `name` as a path, with their numbers.
fn mentions<'a>(text: &'a str, name: &str) -> Vec<(usize, &'a str)> {
    let ends =
        |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
    text.lines()
        .enumerate()
        .filter(|(_, line)| {
            let code = line.split("//").next().unwrap_or_default();
            code.match_indices(name).any(|(at, _)| {
                let bytes = code.as_bytes();
                let begins = at == 0 || ends(bytes.get(at - 1)) && bytes[at - 1] != b':';
                begins && ends(bytes.get(at + name.len()))
            })
        })
        .map(|(number, line)| (number + 1, line.trim()))
        .collect()
}

#[test]
fn no_module_uses_one_that_it_may_not() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for rule in RULES.iter().filter(|rule| belongs(&path, rule.part)) {
            for name in rule.forbidden {
                for (number, line) in mentions(&text, name) {
                    faults.push(format!("src/{}:{number}: {line}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn libraries_stop_where_the_table_says() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (library, owner) in OWNED {
            if belongs(&path, owner) {
                continue;
            }
            for (number, line) in mentions(&text, &format!("{library}::")) {
                faults.push(format!("src/{}:{number}: {line}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn mentions_are_whole_names_in_code() {
    let found = |text: &str| mentions(text, "crate::host").len();
    assert_eq!(found("use crate::host::Host;"), 1);
    assert_eq!(found("use crate::host;"), 1);
    assert_eq!(found("    // as in crate::host::Host"), 0);
    assert_eq!(found("use crate::hosts;"), 0);
    assert_eq!(found("use other_crate::host;"), 0);
    assert_eq!(
        found("/// [`crate::host`]\nfn f() -> crate::host::Place {}"),
        1
    );
}
