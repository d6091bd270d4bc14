//! What is in the branches equals what OCI says the image is, without a mount:
//! layers are unpacked, sealed and edited, and what their effective indexes show
//! is looked up in their directories. Much faster than `tests/meaning.rs`, so it
//! looks further, above all at layers that pass through links.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::layer::EntrySink;
use aufs_csi::layer::apply;
use aufs_csi::layer::archive;
use aufs_csi::layer::index::{Attrs, Builder, Index, Node as Said};
use aufs_csi::layer::limits::Limits;
use aufs_csi::layer::seal::{Edit, Format, SealError, Visible, flatten as show, seal};
use aufs_csi::layer::tree::Ownership;
use aufs_csi::layer::unpack::{Options, Unpacker, finish_directories, refinish_directories};
use proptest::prelude::*;
use rustix::fd::{AsFd, OwnedFd};
use std::cell::Cell;
use std::error::Error;
use std::fs::File;
use std::io;
use std::path::Path;
use support::cases::{Expected, cases, further_cases, unsettled_cases};
use support::entry::{Entry, EntryKind, Layer, Time};
use support::generate::{Shape, stacks};
use support::inputs::{NAMED, run, source};
use support::model::flatten;
use support::tree::{Compared, Node, Tree, diff, read_one};

fn member(entry: &Entry) -> archive::Entry {
    let (kind, link, size, device) = match &entry.kind {
        EntryKind::Dir => (archive::EntryKind::Directory, Vec::new(), 0, (0, 0)),
        EntryKind::File(content) => (
            archive::EntryKind::File,
            Vec::new(),
            content.len() as u64,
            (0, 0),
        ),
        EntryKind::Symlink(target) => (archive::EntryKind::Symlink, target.clone(), 0, (0, 0)),
        EntryKind::HardLink(target) => (archive::EntryKind::HardLink, target.clone(), 0, (0, 0)),
        EntryKind::Fifo => (archive::EntryKind::Fifo, Vec::new(), 0, (0, 0)),
        EntryKind::Char(major, minor) => (
            archive::EntryKind::CharDevice,
            Vec::new(),
            0,
            (*major, *minor),
        ),
        EntryKind::Block(major, minor) => (
            archive::EntryKind::BlockDevice,
            Vec::new(),
            0,
            (*major, *minor),
        ),
    };
    archive::Entry {
        path: entry.path.clone(),
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: archive::Timestamp {
            seconds: entry.mtime.seconds,
            nanos: entry.mtime.nanos,
        },
        size,
        link,
        device,
        xattrs: entry.xattrs.clone().into_iter().collect(),
    }
}

fn directories(index: &Index) -> Vec<io::Result<(Vec<u8>, Attrs)>> {
    let mut cursor = index.cursor();
    let mut root = Attrs::implied();
    let mut dirs = Vec::new();
    while let Some(record) = cursor.next_record().unwrap() {
        let attrs = match record.node {
            Some(Said::Directory { attrs, .. }) => attrs,
            Some(Said::Implied) => Attrs::implied(),
            _ => continue,
        };
        if record.path.is_empty() {
            root = attrs;
        } else {
            dirs.push(Ok((record.path, attrs)));
        }
    }
    dirs.insert(0, Ok((Vec::new(), root)));
    dirs
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

type Failed = Box<dyn Error + Send + Sync>;

/// Unpacks one layer into `dir`.
fn unpack(layer: &Layer, dir: &Path, scratch: &Path) -> Result<Index, Failed> {
    let file = || tempfile::tempfile_in(scratch);
    let builder = Builder::new(file()?);
    let mut unpacker = Unpacker::new(open(dir), builder, Options::default())?;
    for entry in layer {
        unpacker.begin(member(entry))?;
        if let EntryKind::File(content) = &entry.kind {
            unpacker.data(0, content)?;
        }
        unpacker.end()?;
    }
    let (_, builder) = unpacker.finish()?;
    let index = builder.finish(file()?)?;
    let dirs = directories(&index).into_iter();
    finish_directories(open(dir).as_fd(), dirs, Ownership::Real)?;
    Ok(index)
}

/// What the branches of these layers show.
fn shown(layers: &[Layer], format: Format) -> Result<Tree, Failed> {
    let at = tempfile::tempdir_in("/dev/shm")?;
    let scratch = at.path().join("scratch");
    std::fs::create_dir(&scratch)?;
    let dir = |layer: usize| at.path().join(layer.to_string());
    let mut indexes = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        std::fs::create_dir(dir(number))?;
        indexes.push(unpack(layer, &dir(number), &scratch)?);
    }
    let file = || tempfile::tempfile_in(&scratch);
    let sealed = seal(&indexes, format, &Limits::default(), &file)?;
    for (number, edits) in sealed.edits.iter().enumerate() {
        if edits.is_empty() {
            continue;
        }
        let (root, fresh) = (open(&dir(number)), open(&scratch));
        let mut dirs = directories(&sealed.effective[number]);
        let made = edits.read().filter(|edit| {
            // Whether a union understands the markers is what mounts tell.
            !matches!(edit, Ok(Edit::Whiteout { .. } | Edit::Opaque { .. }))
        });
        apply::apply(
            root.as_fd(),
            fresh.as_fd(),
            made,
            apply::Format::Aufs,
            Ownership::Real,
            &|layer| Ok(open(&dir(layer))),
            &mut |path, attrs| {
                dirs.push(Ok((path.to_vec(), attrs)));
                Ok(())
            },
        )?;
        refinish_directories(
            root.as_fd(),
            fresh.as_fd(),
            dirs.into_iter(),
            Ownership::Real,
        )?;
    }
    let mut tree = Tree::empty();
    let mut inodes = std::collections::HashMap::new();
    show::<Unread>(&sealed.effective[sealed.base..], |visible| {
        match visible {
            Visible::Directory { path, attrs } => {
                // An opaque root keeps the metadata that layers below gave it.
                let attrs = match path[..] {
                    [] => sealed.root.clone(),
                    _ => attrs.unwrap_or_else(Attrs::implied),
                };
                let inode = tree.fresh_inode();
                let node = Node {
                    mode: attrs.mode,
                    uid: attrs.uid,
                    gid: attrs.gid,
                    mtime: Some(Time {
                        seconds: attrs.mtime.seconds,
                        nanos: attrs.mtime.nanos,
                    }),
                    xattrs: attrs.xattrs.into_iter().collect(),
                    ..Node::implied_dir(inode | 1 << 60)
                };
                tree.nodes.insert(path, node);
            }
            Visible::Other { layer, record } => {
                let real = support::tree::real_path(&dir(sealed.base + layer), &record.path);
                let node = read_one(&real, &mut inodes)
                    .map_err(|error| Unread(format!("{}: {error}", real.display())))?;
                tree.nodes.insert(record.path, node);
            }
        }
        Ok(())
    })
    .map_err(|error| error.0)?;
    Ok(tree)
}

struct Unread(String);

impl From<SealError> for Unread {
    fn from(error: SealError) -> Self {
        Unread(error.to_string())
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}

/// Refusals are counted: too many of them fail the test.
fn look_like_the_model(cases: u32, shape: Shape) {
    let (refused, count) = (Cell::new(0), Cell::new(0));
    run(cases, stacks(shape), |layers| {
        count.set(count.get() + 1);
        let expected = flatten(&layers).expect("generated to have a meaning");
        match shown(&layers, Format::Overlay) {
            Ok(tree) => {
                let lines = diff(&expected, &tree, Compared::ALL);
                prop_assert!(
                    lines.is_empty(),
                    "{}\n{}",
                    lines.join("\n"),
                    source(&layers)
                );
                Ok(())
            }
            Err(error) => {
                let error = chain(&*error);
                if NAMED.iter().any(|words| error.contains(words)) {
                    refused.set(refused.get() + 1);
                    return Ok(());
                }
                Err(TestCaseError::fail(format!("{error}\n{}", source(&layers))))
            }
        }
    });
    let (refused, count) = (refused.get(), count.get());
    println!("refused: {refused} of {count}");
    assert!(refused * 5 < count * 2, "{refused} of {count} are refused");
}

#[test]
fn every_case_of_the_table_comes_out_as_it_says() {
    let mut faults = Vec::new();
    let refused = unsettled_cases();
    for case in cases().into_iter().chain(further_cases()).chain(refused) {
        let name = case.name;
        match (shown(&case.layers, Format::Aufs), &case.expected) {
            (Ok(tree), Expected::Tree(expected)) => {
                let lines = diff(expected, &tree, Compared::ALL);
                if !lines.is_empty() {
                    faults.push(format!("{name}:\n{}", lines.join("\n")));
                }
            }
            (Err(error), Expected::Refused(words)) => {
                let text = chain(&*error);
                if words.iter().any(|word| !text.contains(word)) {
                    faults.push(format!("{name}: {text:?} does not name all of {words:?}"));
                }
            }
            (Ok(_), Expected::Refused(_)) => faults.push(format!("{name}: accepted")),
            (Err(error), Expected::Tree(_)) => faults.push(format!("{name}: {}", chain(&*error))),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn branches_hold_what_the_layers_mean() {
    look_like_the_model(1024, Shape::default());
}

#[test]
fn so_they_do_where_links_lead_to_links() {
    let shape = Shape {
        links: 4,
        ..Shape::default()
    };
    look_like_the_model(1024, shape);
}
