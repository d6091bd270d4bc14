//! What a union must do before a pod may rely on it. Each case mounts a small
//! union, uses it as a program would, and compares; kernels are known that
//! fail each of them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use super::self_test::Lab;
use crate::union::{Backend, Features, MountError, UnmountError};

pub(super) type Case = fn(&Lab, &Features) -> Result<(), CaseError>;

/// All cases with their names, cheapest first.
pub(super) const ALL: [(&str, Case); 6] = [
    ("reading and changing files", reads_and_changes),
    ("mounting again", keeps_changes_across_mounts),
    ("deleting a directory of several branches", deletes_for_good),
    ("unmounting after mapping a file", lets_go_of_mapped_files),
    ("refusing writes", refuses_writes),
    ("stacking many branches", stacks_many),
];

/// A union that does not do what it must.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaseError {
    #[error("cannot mount")]
    Mount(#[source] MountError),
    #[error("cannot unmount")]
    Unmount(#[source] UnmountError),
    #[error("{action} {path} failed", path = path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{subject} is {found} instead of {expected}")]
    Differs {
        subject: String,
        expected: String,
        found: String,
    },
}

/// What a branch of a case holds at a path.
enum Content {
    File(&'static str),
    Directory,
    /// Hides what lower branches have at this path.
    Whiteout,
}

fn attempt<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, CaseError> {
    result.map_err(|source| CaseError::File {
        action,
        path: path.to_path_buf(),
        source,
    })
}

fn expect<T: PartialEq + std::fmt::Debug>(
    subject: impl std::fmt::Display,
    expected: &T,
    found: &T,
) -> Result<(), CaseError> {
    if expected == found {
        return Ok(());
    }
    Err(CaseError::Differs {
        subject: subject.to_string(),
        expected: format!("{expected:?}"),
        found: format!("{found:?}"),
    })
}

fn branch(lab: &Lab, content: &[(&str, Content)]) -> Result<PathBuf, CaseError> {
    let root = attempt("making", Path::new("a branch"), lab.directory())?;
    for (path, content) in content {
        let path = root.join(path);
        let made = match (content, lab.backend) {
            (Content::File(text), _) => fs::write(&path, text),
            (Content::Directory, _) => fs::create_dir(&path),
            (Content::Whiteout, Backend::Aufs) => match path.file_name() {
                Some(name) => {
                    let mut marker = std::ffi::OsString::from(".wh.");
                    marker.push(name);
                    fs::write(path.with_file_name(marker), "")
                }
                None => Ok(()),
            },
            (Content::Whiteout, Backend::Overlay | Backend::Bind) => {
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(CWD, &path, kind, Mode::empty(), 0).map_err(io::Error::from)
            }
        };
        attempt("making", &path, made)?;
    }
    Ok(root)
}

fn names(directory: &Path) -> Result<BTreeSet<String>, CaseError> {
    let list = || -> io::Result<BTreeSet<String>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    attempt("listing", directory, list())
}

fn expect_names(directory: &Path, expected: &[&str]) -> Result<(), CaseError> {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    expect(directory.display(), &expected, &names(directory)?)
}

fn expect_text(path: &Path, expected: &str) -> Result<(), CaseError> {
    let found = attempt("reading", path, fs::read_to_string(path))?;
    expect(path.display(), &expected.to_owned(), &found)
}

fn expect_absent(path: &Path) -> Result<(), CaseError> {
    let found = match fs::symlink_metadata(path) {
        Ok(_) => "there".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "absent".to_owned(),
        Err(error) => error.to_string(),
    };
    expect(path.display(), &"absent".to_owned(), &found)
}

/// Three branches with a file that is hidden, one that is covered, and a
/// directory that is merged.
fn three_branches(lab: &Lab) -> Result<Vec<PathBuf>, CaseError> {
    let bottom = branch(
        lab,
        &[
            ("hidden", Content::File("hidden")),
            ("covered", Content::File("bottom")),
            ("changed", Content::File("before")),
            ("removed", Content::File("removed")),
            ("renamed", Content::File("renamed")),
            ("directory", Content::Directory),
            ("directory/bottom", Content::File("bottom")),
        ],
    )?;
    let middle = branch(
        lab,
        &[
            ("hidden", Content::Whiteout),
            ("covered", Content::File("middle")),
            ("directory", Content::Directory),
            ("directory/middle", Content::File("middle")),
        ],
    )?;
    let top = branch(lab, &[("top", Content::File("top"))])?;
    Ok(vec![top, middle, bottom])
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// A module that does not match its kernel fails the simplest operations.
fn reads_and_changes(lab: &Lab, features: &Features) -> Result<(), CaseError> {
    let branches = three_branches(lab)?;
    let bottom = branches.last().cloned().unwrap_or_default();
    let plan = attempt("making", Path::new("a plan"), lab.plan(branches, true))?;
    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    let at = |name: &str| plan.target.join(name);
    let lower_names = [
        "changed",
        "covered",
        "directory",
        "removed",
        "renamed",
        "top",
    ];
    expect_names(&plan.target, &lower_names)?;
    expect_names(&at("directory"), &["bottom", "middle"])?;
    expect_text(&at("covered"), "middle")?;
    expect_absent(&at("hidden"))?;

    attempt("writing", &at("new"), fs::write(at("new"), "new"))?;
    attempt(
        "appending to",
        &at("changed"),
        append(&at("changed"), " and after"),
    )?;
    attempt("removing", &at("removed"), fs::remove_file(at("removed")))?;
    attempt(
        "renaming",
        &at("renamed"),
        fs::rename(at("renamed"), at("moved")),
    )?;
    let directory = at("directory");
    attempt("removing", &directory, fs::remove_dir_all(&directory))?;
    attempt("making", &directory, fs::create_dir(&directory))?;

    expect_names(
        &plan.target,
        &["changed", "covered", "directory", "moved", "new", "top"],
    )?;
    expect_names(&directory, &[])?;
    expect_text(&at("changed"), "before and after")?;
    expect_text(&at("moved"), "renamed")?;
    expect_text(&at("new"), "new")?;
    expect_text(&bottom.join("changed"), "before")?;
    let lower = [
        "changed",
        "covered",
        "directory",
        "hidden",
        "removed",
        "renamed",
    ];
    expect_names(&bottom, &lower)?;
    lab.unmount(&plan).map_err(CaseError::Unmount)
}

/// What a union remembers only in the kernel's memory is lost here.
fn keeps_changes_across_mounts(lab: &Lab, features: &Features) -> Result<(), CaseError> {
    let branches = three_branches(lab)?;
    let plan = attempt("making", Path::new("a plan"), lab.plan(branches, true))?;
    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    let at = |name: &str| plan.target.join(name);
    attempt("removing", &at("covered"), fs::remove_file(at("covered")))?;
    attempt("appending to", &at("top"), append(&at("top"), "!"))?;
    let inside = at("directory/bottom");
    attempt("removing", &inside, fs::remove_file(&inside))?;
    lab.unmount(&plan).map_err(CaseError::Unmount)?;
    expect_names(&plan.target, &[])?;
    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    expect_absent(&at("covered"))?;
    expect_text(&at("top"), "top!")?;
    expect_names(&at("directory"), &["middle"])?;
    lab.unmount(&plan).map_err(CaseError::Unmount)
}

/// Some kernels (Linux 3.13 of Ubuntu) fail to hide a directory that a middle
/// branch has too: its files come back after `rm -rf`.
fn deletes_for_good(lab: &Lab, features: &Features) -> Result<(), CaseError> {
    let with = |name: &'static str| {
        branch(
            lab,
            &[
                ("directory", Content::Directory),
                ("directory/deep", Content::Directory),
                (name, Content::File("text")),
            ],
        )
    };
    let branches = vec![
        branch(lab, &[])?,
        with("directory/a")?,
        branch(lab, &[("other", Content::Directory)])?,
        with("directory/deep/b")?,
        with("directory/c")?,
        with("directory/deep/d")?,
    ];
    let plan = attempt("making", Path::new("a plan"), lab.plan(branches, true))?;
    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    let directory = plan.target.join("directory");
    expect_names(&directory, &["a", "c", "deep"])?;
    expect_names(&directory.join("deep"), &["b", "d"])?;
    attempt("removing", &directory, fs::remove_dir_all(&directory))?;
    expect_absent(&directory)?;
    expect_names(&plan.target, &["other"])?;
    lab.unmount(&plan).map_err(CaseError::Unmount)?;

    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    expect_absent(&directory)?;
    attempt("making", &directory, fs::create_dir(&directory))?;
    expect_names(&directory, &[])?;
    lab.unmount(&plan).map_err(CaseError::Unmount)?;

    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    expect_names(&directory, &[])?;
    lab.unmount(&plan).map_err(CaseError::Unmount)
}

/// Kernels whose memory mapping patch does not match count a mapped file wrong
/// and never unmount again.
fn lets_go_of_mapped_files(lab: &Lab, features: &Features) -> Result<(), CaseError> {
    let branches = vec![branch(lab, &[("program", Content::File("code"))])?];
    let plan = attempt("making", Path::new("a plan"), lab.plan(branches, true))?;
    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    let program = plan.target.join("program");
    for text in ["code", "code, changed"] {
        let file = attempt("opening", &program, File::open(&program))?;
        let mapped = crate::host::linux::read_mapped(&file, 64);
        let mapped = attempt("mapping", &program, mapped)?;
        expect(
            format_args!("the mapping of {}", program.display()),
            &text.to_owned(),
            &String::from_utf8_lossy(&mapped).into_owned(),
        )?;
        if text == "code" {
            attempt("appending to", &program, append(&program, ", changed"))?;
        }
    }
    lab.unmount(&plan).map_err(CaseError::Unmount)
}

fn refuses_writes(lab: &Lab, features: &Features) -> Result<(), CaseError> {
    let branches = three_branches(lab)?;
    let plan = attempt("making", Path::new("a plan"), lab.plan(branches, false))?;
    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    let new = plan.target.join("new");
    let found = fs::write(&new, "").map_err(|error| error.kind());
    expect(
        "a write to a read-only union",
        &Err(io::ErrorKind::ReadOnlyFilesystem),
        &found,
    )?;
    expect_absent(&plan.target.join("hidden"))?;
    expect_text(&plan.target.join("covered"), "middle")?;
    lab.unmount(&plan).map_err(CaseError::Unmount)
}

/// More branches than one call takes.
fn stacks_many(lab: &Lab, features: &Features) -> Result<(), CaseError> {
    const COUNT: usize = 100;
    let mut branches = Vec::with_capacity(COUNT);
    for index in 0..COUNT {
        let root = branch(lab, &[])?;
        for name in ["all".to_owned(), format!("only-{index}")] {
            let file = root.join(name);
            attempt("writing", &file, fs::write(&file, index.to_string()))?;
        }
        branches.push(root);
    }
    let plan = attempt("making", Path::new("a plan"), lab.plan(branches, true))?;
    lab.mount(&plan, features).map_err(CaseError::Mount)?;
    expect_text(&plan.target.join("all"), "0")?;
    for index in 0..COUNT {
        let file = plan.target.join(format!("only-{index}"));
        expect_text(&file, &index.to_string())?;
    }
    let found = names(&plan.target)?.len();
    expect("the number of names", &(COUNT + 1), &found)?;
    lab.unmount(&plan).map_err(CaseError::Unmount)
}
