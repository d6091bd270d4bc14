//! The table of modules in ARCHITECTURE.md holds: who may use whom is read from
//! the sources, because a boundary that nobody checks is a wish.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

/// What the files below a path must not mention, outside comments.
struct Rule {
    /// File or directory below `src`.
    part: &'static str,
    /// Paths that it must not use, with all that is below them.
    forbidden: &'static [&'static str],
    /// Paths below those that it may use all the same.
    allowed: &'static [&'static str],
}

/// What only checks for fuzz targets use: files in memory.
const MEMORY: &[&str] = &["rustix::fs::MemfdFlags", "rustix::fs::memfd_create"];

/// What a pure part of talking to registries does without.
const PURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::path",
    "std::process",
    "std::time::SystemTime",
    "rustix",
    "tokio",
    "reqwest::Client",
];

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
        allowed: &[],
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
        allowed: &[],
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
        allowed: &[],
    },
    Rule {
        part: "image/registry/allow",
        forbidden: PURE,
        allowed: &[],
    },
    Rule {
        part: "image/registry/challenge",
        forbidden: PURE,
        allowed: &[],
    },
    Rule {
        part: "image/registry/dates",
        forbidden: PURE,
        allowed: &["std::time"],
    },
    Rule {
        part: "image/registry/proxy",
        forbidden: PURE,
        allowed: &[
            "std::net::IpAddr",
            "std::net::Ipv4Addr",
            "std::net::Ipv6Addr",
        ],
    },
    Rule {
        part: "image/registry/hosts/parse",
        forbidden: PURE,
        allowed: &["std::path"],
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
        allowed: &[],
    },
    Rule {
        part: "stage",
        forbidden: &[
            "crate::host",
            "crate::union",
            "crate::pull",
            "crate::volume",
            "crate::csi",
            "crate::cli",
        ],
        allowed: &[],
    },
    Rule {
        part: "pull",
        forbidden: &[
            "crate::host",
            "crate::union",
            "crate::volume",
            "crate::csi",
            "crate::cli",
        ],
        allowed: &[],
    },
    Rule {
        part: "volume",
        forbidden: &["crate::csi", "crate::cli"],
        allowed: &[],
    },
    Rule {
        part: "cli",
        forbidden: &["rustix"],
        allowed: &[],
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
        allowed: &[],
    },
    Rule {
        part: "csi/policy",
        forbidden: PURE,
        allowed: &["std::path"],
    },
    Rule {
        part: "probes",
        forbidden: &[
            "rustix",
            "crate::host",
            "crate::image",
            "crate::layer",
            "crate::stage",
            "crate::union",
            "crate::volume",
            "crate::cli",
        ],
        allowed: &[],
    },
    Rule {
        part: "cluster",
        forbidden: &[
            "rustix",
            "crate::host",
            "crate::image",
            "crate::layer",
            "crate::stage",
            "crate::union",
            "crate::volume",
            "crate::csi",
            "crate::cli",
        ],
        // What is told, and of whom.
        allowed: &[
            "crate::csi::events::PodEvents",
            "crate::stage::Pulled",
            "crate::volume::Pod",
        ],
    },
    Rule {
        part: "config",
        forbidden: &["rustix", "crate::host"],
        allowed: &[],
    },
    Rule {
        part: "telemetry",
        forbidden: &[
            "crate::host",
            "crate::image",
            "crate::layer",
            "crate::stage",
            "crate::union",
            "crate::volume",
            "crate::csi",
        ],
        allowed: &[],
    },
    Rule {
        part: "layer/digest",
        forbidden: &["std::fs", "std::io", "std::path", "rustix", "crate::layer"],
        allowed: &["crate::layer::digest"],
    },
    Rule {
        part: "layer/archive",
        forbidden: &[
            "std::fs",
            "std::net",
            "std::os",
            "std::path",
            "std::process",
            "rustix",
            "crate::layer",
        ],
        allowed: &["crate::layer::archive", "crate::layer::limits"],
    },
    Rule {
        part: "layer/decompress",
        forbidden: &["std::fs", "std::path", "rustix", "crate::layer"],
        allowed: &["crate::layer::decompress", "crate::layer::limits"],
    },
    Rule {
        part: "layer/ingest",
        forbidden: &["std::fs", "std::path", "rustix", "crate::layer"],
        allowed: &[
            "crate::layer::ingest",
            "crate::layer::archive",
            "crate::layer::decompress",
            "crate::layer::digest",
            "crate::layer::limits",
            "crate::layer::EntrySink",
            "rustix::time",
        ],
    },
    Rule {
        part: "layer/tree",
        forbidden: &["std::fs", "std::path", "crate::layer"],
        allowed: &[
            // Of /proc.
            "std::fs::read_to_string",
            "crate::layer::tree",
            "crate::layer::archive::Timestamp",
            "crate::layer::index",
            "crate::layer::steps",
        ],
    },
    Rule {
        part: "layer/unpack",
        forbidden: &["std::fs", "std::path", "crate::layer"],
        allowed: &[
            "crate::layer::unpack",
            "crate::layer::archive",
            "crate::layer::index",
            "crate::layer::limits",
            "crate::layer::tree",
            "crate::layer::EntrySink",
            "crate::layer::RecordSink",
        ],
    },
    Rule {
        part: "layer/index",
        forbidden: &["std::fs", "std::path", "rustix", "crate::layer"],
        allowed: &[
            "std::fs::File",
            "std::path::Path",
            "crate::layer::index",
            "crate::layer::archive::Timestamp",
            "crate::layer::RecordSink",
        ],
    },
    Rule {
        part: "layer/seal",
        forbidden: &["std::fs", "std::path", "rustix", "crate::layer"],
        allowed: &[
            "std::fs::File",
            "crate::layer::seal",
            "crate::layer::index",
            "crate::layer::limits",
            // How a foreign path is shown, and nothing that moves in a tree.
            "crate::layer::tree::PathText",
        ],
    },
    Rule {
        part: "layer/apply",
        forbidden: &["std::fs", "std::path", "crate::layer"],
        allowed: &[
            "crate::layer::apply",
            "crate::layer::index",
            // Of sealing only what it says, nothing that decides.
            "crate::layer::seal::Edit",
            "crate::layer::tree",
        ],
    },
    Rule {
        part: "layer/changes",
        forbidden: &["crate::layer"],
        allowed: &[
            "crate::layer::changes",
            "crate::layer::apply::Format",
            "crate::layer::archive",
            "crate::layer::index",
            "crate::layer::tree",
        ],
    },
    Rule {
        part: "layer/upper",
        forbidden: &["std::fs", "std::path", "crate::layer"],
        allowed: &["crate::layer::index", "crate::layer::tree"],
    },
    Rule {
        part: "layer/collect",
        forbidden: &[
            "std::fs",
            "std::io",
            "std::path",
            "std::time::SystemTime",
            "rustix",
            "crate::layer",
        ],
        allowed: &["crate::layer::collect", "crate::layer::store::BranchId"],
    },
    Rule {
        part: "volume/collect/shown",
        forbidden: &["std::fs", "std::io", "rustix", "crate::host"],
        allowed: &[],
    },
    Rule {
        part: "layer/store",
        forbidden: &["crate::layer"],
        allowed: &[
            "crate::layer::store",
            "crate::layer::archive::Timestamp",
            "crate::layer::index",
            "crate::layer::seal",
            "crate::layer::steps",
            "crate::layer::tree",
        ],
    },
];

/// Libraries that stop at some parts of the program.
const OWNED: &[(&str, &[&str])] = &[
    ("tonic", &["csi"]),
    // Flags and environment are the configuration's.
    ("clap", &["cli", "config"]),
    ("fluke_hpack", &["csi/authority"]),
    ("hyper", &["probes"]),
    ("indicatif", &["cli"]),
    ("prometheus_client", &["telemetry"]),
    // Connections are a registry's, or the API server's.
    ("reqwest", &["image/registry", "cluster"]),
    ("rustls", &["image/registry", "cluster"]),
    ("toml", &["image/registry/hosts"]),
    ("webpki_roots", &["image/registry", "cluster"]),
    ("rustix::mount", &["host/linux"]),
    ("rustix::termios", &["image/credentials/ask"]),
    (
        "base64",
        &["image/credentials", "image/registry", "cluster"],
    ),
    ("hmac", &["image/credentials"]),
    // YAML is read in one place, where its errors lose what they quote.
    ("serde_saphyr", &["yaml"]),
    ("std::process::Command", &["image/credentials/exec"]),
    (
        "zeroize",
        &["secret", "image/credentials", "image/registry"],
    ),
];

/// All sources of the program, as paths relative to `src`, with their text. What
/// only tests compile may use what it likes.
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
            let path = path.strip_prefix(&base).unwrap().to_owned();
            (path, without_tests(&text).to_owned())
        })
        .collect()
}

/// The text up to a module of tests inside of the file, which is the last thing
/// in it (clippy's `items_after_test_module`).
fn without_tests(text: &str) -> &str {
    let tests = text
        .find("#[cfg(test)]\nmod ")
        .filter(|start| text[*start..].lines().nth(1).unwrap().ends_with('{'));
    &text[..tests.unwrap_or(text.len())]
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

/// A path that a file uses, as it is seen from everywhere.
#[derive(Debug, PartialEq, Eq)]
struct Used {
    path: String,
    line: usize,
}

/// The module that a file is, as `crate::layer::store`.
fn module_of(file: &Path) -> String {
    let mut module = "crate".to_owned();
    for part in &file.with_extension("") {
        let part = part.to_str().unwrap();
        if !["mod", "lib", "main"].contains(&part) {
            module = format!("{module}::{part}");
        }
    }
    module
}

/// All paths of at least two components in the code of a file, also those that
/// `use` groups in braces, and those that begin with `super` or `self`. (There
/// are no modules inside of files, in which `super` would be another.)
fn used(file: &Path, text: &str) -> Vec<Used> {
    let module = module_of(file);
    let mut found = Vec::new();
    // Around each open brace of a `use`, what stands before it.
    let mut groups: Vec<String> = Vec::new();
    let mut in_use = false;
    // Whether what comes is only a name for it in this file.
    let mut renamed = false;
    let mut path = String::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        // Who may see something is no use of it.
        let code = code
            .replace("pub(in crate::layer)", "")
            .replace("pub(in crate::image)", "");
        let mut end = |path: &mut String, groups: &[String], in_use: bool| {
            let prefix = groups.last().filter(|_| in_use).map_or("", String::as_str);
            let (whole, is_path) = (format!("{prefix}{path}"), !path.is_empty());
            path.clear();
            let whole = whole.trim_end_matches(':').trim_start_matches("::");
            if is_path && whole.contains("::") {
                let path = absolute(&module, whole);
                let line = number + 1;
                found.push(Used { path, line });
            }
        };
        for word in words(&code) {
            match word {
                "use" => (in_use, groups) = (true, Vec::new()),
                ";" => {
                    end(&mut path, &groups, in_use);
                    (in_use, groups, renamed) = (false, Vec::new(), false);
                }
                "{" if in_use => {
                    let prefix = groups.last().cloned().unwrap_or_default();
                    groups.push(format!("{prefix}{path}"));
                    path.clear();
                }
                "}" if in_use => {
                    end(&mut path, &groups, in_use);
                    groups.pop();
                    renamed = false;
                }
                "::" => path.push_str(word),
                name if name.starts_with(|c: char| c.is_alphanumeric() || c == '_') => {
                    // `as` and the like: two names without a colon between.
                    let divided = !path.is_empty() && !path.ends_with(':');
                    if divided {
                        end(&mut path, &groups, in_use);
                    }
                    renamed = in_use && (divided && name == "as" || renamed);
                    if !renamed {
                        path.push_str(name);
                    }
                }
                _ => {
                    end(&mut path, &groups, in_use);
                    renamed = false;
                }
            }
        }
        if !in_use || !path.ends_with("::") {
            end(&mut path, &groups, in_use);
        }
    }
    found
}

/// Names, `::`, and every other character by itself; blanks only divide.
fn words(code: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_name(first) {
            rest.find(|c| !is_name(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (word, behind) = rest.split_at(length);
        if !first.is_whitespace() {
            words.push(word);
        }
        rest = behind;
    }
    words
}

fn absolute(module: &str, path: &str) -> String {
    let mut base: Option<String> = None;
    let mut rest = path;
    loop {
        let (first, behind) = rest.split_once("::").unwrap_or((rest, ""));
        match first {
            "self" => base = base.or(Some(module.to_owned())),
            "super" => {
                let from = base.unwrap_or_else(|| module.to_owned());
                let above = from.rsplit_once("::").map_or("crate", |(above, _)| above);
                base = Some(above.to_owned());
            }
            _ => break,
        }
        rest = behind;
    }
    match (base, rest) {
        (Some(base), "") => base,
        (Some(base), rest) => format!("{base}::{rest}"),
        (None, rest) => rest.to_owned(),
    }
}

fn is_at_or_below(path: &str, name: &str) -> bool {
    path.strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn no_module_uses_one_that_it_may_not() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for Used { path: name, line } in used(&path, &text) {
            let is_memory = path.ends_with("check.rs") && MEMORY.contains(&&name[..]);
            for rule in RULES.iter().filter(|rule| belongs(&path, rule.part)) {
                let matches = |list: &[&str]| list.iter().any(|part| is_at_or_below(&name, part));
                if matches(rule.forbidden) && !matches(rule.allowed) && !is_memory {
                    faults.push(format!("src/{}:{line}: {name}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn libraries_stop_where_the_table_says() {
    let mut faults = Vec::new();
    let mut seen = vec![false; OWNED.len()];
    for (path, text) in sources() {
        for Used { path: name, line } in used(&path, &text) {
            for (number, (library, owners)) in OWNED.iter().enumerate() {
                if !is_at_or_below(&name, library) {
                    continue;
                }
                if owners.iter().any(|owner| belongs(&path, owner)) {
                    seen[number] = true;
                } else {
                    faults.push(format!("src/{}:{line}: {name}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // A library that is found nowhere is misspelt, or gone.
    assert_eq!(seen, vec![true; OWNED.len()]);
}

/// Files that may have `unsafe` in them, each with its decision in docs/adr.
const UNSAFE: &[&str] = &[
    "host/linux/raw.rs",
    "layer/decompress/isal.rs",
    "layer/digest/two.rs",
];

#[test]
fn unsafe_code_is_where_it_was_decided() {
    let mut found: Vec<String> = Vec::new();
    for (path, text) in sources() {
        let code = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        if code.flat_map(words).any(|word| word == "unsafe") {
            found.push(path.to_str().unwrap().to_owned());
        }
    }
    assert_eq!(found, UNSAFE);
}

#[test]
fn every_rule_is_about_something() {
    let files: Vec<PathBuf> = sources().into_iter().map(|(path, _)| path).collect();
    for rule in RULES {
        let part = rule.part;
        assert!(files.iter().any(|file| belongs(file, part)), "{part}");
    }
}

#[test]
fn paths_are_found_however_they_are_written() {
    let found = |text: &str| -> Vec<String> {
        let used = used(Path::new("layer/store/commit.rs"), text);
        used.into_iter().map(|used| used.path).collect()
    };
    for (text, paths) in [
        ("use crate::host::Host;", &["crate::host::Host"][..]),
        ("use crate::host;", &["crate::host"]),
        ("#[derive(Debug, clap::Args)]", &["clap::Args"]),
        ("    // as in crate::host::Host", &[]),
        (
            "/// [`crate::host`]\nfn f() -> crate::host::Place {}",
            &["crate::host::Place"],
        ),
        (
            "use crate::{\n    host::{self, Host as Kernel},\n    image,\n};",
            &["crate::host::self", "crate::host::Host", "crate::image"],
        ),
        (
            "use super::super::seal::Edit;",
            &["crate::layer::seal::Edit"],
        ),
        (
            "use super::{Store, StoreError};",
            &[
                "crate::layer::store::Store",
                "crate::layer::store::StoreError",
            ],
        ),
        (
            "self::inner::call()",
            &["crate::layer::store::commit::inner::call"],
        ),
        ("let _ = ::tonic::Status::ok(a);", &["tonic::Status::ok"]),
        ("use crate::hosts;", &["crate::hosts"]),
    ] {
        assert_eq!(found(text), paths, "{text}");
    }
    let is_clap = |text: &str| found(text).iter().any(|path| is_at_or_below(path, "clap"));
    assert!(is_clap("use clap::Parser;") && is_clap("f::<clap::Error>()"));
    assert!(!is_clap("use clapper::Parser;") && !is_clap("use my_clap::Parser;"));
    assert!(!is_clap("use crate::cli::clap::Parser;") && !is_clap("fn clap() {}"));
    assert!(is_at_or_below("crate::host::Host", "crate::host"));
    assert!(!is_at_or_below("crate::hosts::Host", "crate::host"));
    assert_eq!(module_of(Path::new("host/mod.rs")), "crate::host");
}

/// Functions that check any bytes, by the module that they are in.
fn checks_of_bytes() -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources() {
        for line in text.lines() {
            let is_check = line
                .trim_start()
                .strip_prefix("pub fn check(")
                .and_then(|rest| rest.split_once(": "))
                .is_some_and(|(_, rest)| rest == "&[u8]) {");
            if is_check {
                let module = module_of(&path);
                found.push(format!("{}::check", module.trim_start_matches("crate::")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_parser_of_foreign_bytes_is_fuzzed() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    // `| target | bytes | checked function |`
    let readme = read(&fuzz.join("README.md"));
    let mut rows: Vec<(String, String)> = readme
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut quoted = line.split('`').skip(1).step_by(2).map(str::to_owned);
            (quoted.next().unwrap(), quoted.last().unwrap())
        })
        .collect();
    rows.sort_by(|left, right| left.1.cmp(&right.1));
    let listed: Vec<&String> = rows.iter().map(|(_, check)| check).collect();
    assert_eq!(listed, checks_of_bytes().iter().collect::<Vec<_>>());
    let (manifest, seeds) = (
        read(&fuzz.join("Cargo.toml")),
        read(&fuzz.join("src/seeds.rs")),
    );
    let smoke = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_smoke.rs"));
    for (target, _) in &rows {
        assert!(
            fuzz.join(format!("fuzz_targets/{target}.rs")).exists(),
            "{target}"
        );
        for (text, wanted) in [
            (&manifest, format!("name = \"{target}\"")),
            (&seeds, format!("write(\"{target}\"")),
            (&smoke, format!("#[test]\nfn {target}()")),
        ] {
            assert!(text.contains(&wanted), "no {wanted}");
        }
    }
    let targets = fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count();
    assert_eq!(targets, rows.len(), "a target is in no row");
}
