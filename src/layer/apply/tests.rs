//! Edits and copies on real directories, as root.

use super::*;
use crate::layer::archive::Timestamp;
use crate::layer::tree::test_support::without_root;
use rustix::fd::AsFd;
use rustix::fs::{CWD, chownat, ftruncate, lgetxattr, setxattr};
use rustix::fs::{Gid, Timespec, Timestamps, Uid, utimensat};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn open(path: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).unwrap()
}

fn ok(edits: Vec<Edit>) -> impl Iterator<Item = Result<Edit, Infallible>> {
    edits.into_iter().map(Ok)
}

fn bytes(path: &str) -> Vec<u8> {
    path.as_bytes().to_vec()
}

fn no_lower(_: usize) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::NotFound.into())
}

type HandedBack = Vec<(Vec<u8>, Attrs)>;

/// Applies, and returns the directories whose metadata was handed back.
fn try_apply(
    root: &Path,
    format: Format,
    edits: Vec<Edit>,
) -> Result<(ApplyStats, HandedBack), ApplyError> {
    let mut directories = Vec::new();
    let root = open(root);
    let stats = apply(
        root.as_fd(),
        root.as_fd(),
        ok(edits),
        format,
        Ownership::Real,
        &no_lower,
        &mut |path, attrs| {
            directories.push((path.to_vec(), attrs));
            Ok(())
        },
    )?;
    Ok((stats, directories))
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    let length = lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

#[test]
fn edits_are_made_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    std::fs::create_dir_all(root.join("lib")).unwrap();
    std::fs::write(root.join("lib/foo"), "foo").unwrap();
    std::fs::write(root.join("lib/bar"), "bar").unwrap();
    std::fs::write(root.join("gone"), "").unwrap();
    let attrs = Attrs {
        mode: 0o1777,
        mtime: Timestamp {
            seconds: 3,
            nanos: 4,
        },
        ..Attrs::default()
    };
    let (stats, directories) = try_apply(
        root,
        Format::Aufs,
        vec![
            Edit::Directory {
                path: bytes("usr"),
                attrs: attrs.clone(),
            },
            Edit::Directory {
                path: bytes("usr/lib"),
                attrs: Attrs::implied(),
            },
            Edit::Move {
                from: bytes("lib/foo"),
                to: bytes("usr/lib/foo"),
            },
            Edit::Move {
                from: bytes("lib/bar"),
                to: bytes("usr/lib/bar"),
            },
            Edit::RemoveDirectory { path: bytes("lib") },
            Edit::RemoveFile {
                path: bytes("gone"),
            },
            Edit::Link {
                from: bytes("usr/lib/foo"),
                to: bytes("foo2"),
            },
            Edit::Whiteout {
                path: bytes("usr/lib/old"),
            },
            // What was removed as a directory may come again as one.
            Edit::Directory {
                path: bytes("lib"),
                attrs: attrs.clone(),
            },
            Edit::Move {
                from: bytes("foo2"),
                to: bytes("lib/foo2"),
            },
            // The root, and one that exists.
            Edit::Directory {
                path: Vec::new(),
                attrs: attrs.clone(),
            },
            Edit::Directory {
                path: bytes("lib"),
                attrs: Attrs::implied(),
            },
        ],
    )
    .unwrap();
    assert_eq!((stats.edits, stats.whiteouts), (12, 1));
    let told: Vec<_> = directories
        .iter()
        .map(|(path, attrs)| (std::str::from_utf8(path).unwrap(), attrs.mode))
        .collect();
    assert_eq!(
        told,
        [
            ("usr", 0o1777),
            ("usr/lib", 0o755),
            ("lib", 0o1777),
            ("", 0o1777),
            ("lib", 0o755)
        ]
    );
    assert_eq!(std::fs::read(root.join("usr/lib/bar")).unwrap(), b"bar");
    let foo = std::fs::metadata(root.join("usr/lib/foo")).unwrap();
    let foo2 = std::fs::metadata(root.join("lib/foo2")).unwrap();
    assert_eq!((foo.ino(), foo.nlink()), (foo2.ino(), 2));
    let marker = std::fs::symlink_metadata(root.join("usr/lib/.wh.old")).unwrap();
    assert!(marker.is_file() && marker.len() == 0 && marker.nlink() == 1);
    assert_eq!(marker.mode() & 0o7777, 0o444);
    assert!(!root.join("gone").exists() && !root.join("foo2").exists());
}

#[test]
fn overlay_gets_devices_and_attributes() {
    for (user_xattr, name) in [
        (false, "trusted.overlay.opaque"),
        (true, "user.overlay.opaque"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let format = Format::Overlay { user_xattr };
        let edits = vec![
            Edit::Opaque { path: bytes("a/b") },
            Edit::Opaque { path: Vec::new() },
            Edit::Whiteout {
                path: bytes("a/gone"),
            },
        ];
        try_apply(dir.path(), format, edits).unwrap();
        for path in ["a/b", ""] {
            assert_eq!(xattr(&dir.path().join(path), name).unwrap(), b"y");
        }
        assert_eq!(xattr(&dir.path().join("a"), name), None);
        let marker = std::fs::symlink_metadata(dir.path().join("a/gone")).unwrap();
        assert!(marker.file_type().is_char_device());
        assert_eq!(marker.rdev(), 0);
    }
}

#[test]
fn what_sealing_did_not_expect_is_an_error_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("d/e")).unwrap();
    std::fs::create_dir(dir.path().join("outside")).unwrap();
    std::fs::write(root.join("f"), "f").unwrap();
    std::fs::write(root.join("g"), "g").unwrap();
    symlink("../outside", root.join("s")).unwrap();
    let attrs = Attrs::implied;
    let move_ = |from: &str, to: &str| Edit::Move {
        from: bytes(from),
        to: bytes(to),
    };
    let link = |from: &str, to: &str| Edit::Link {
        from: bytes(from),
        to: bytes(to),
    };
    let path = bytes;
    for edit in [
        move_("f", "g"),
        move_("d", "h"),
        move_("f", "s/f"),
        move_("f", "none/f"),
        move_("none", "h"),
        link("f", "g"),
        link("f", "s/f"),
        link("d", "h"),
        Edit::RemoveDirectory { path: path("d") },
        Edit::RemoveDirectory { path: path("f") },
        Edit::RemoveFile { path: path("d/e") },
        Edit::RemoveFile { path: path("none") },
        Edit::RemoveFile { path: path("s/x") },
        Edit::Directory {
            path: path("f"),
            attrs: attrs(),
        },
        Edit::Directory {
            path: path("s"),
            attrs: attrs(),
        },
        Edit::Directory {
            path: path("no/no"),
            attrs: attrs(),
        },
        Edit::Whiteout {
            path: path("s/hidden"),
        },
        Edit::Opaque { path: path("s") },
        Edit::Opaque { path: path("f") },
        Edit::Opaque { path: path("d") },
        Edit::Copy {
            layer: 0,
            from: path("x"),
            to: path("x"),
        },
    ] {
        try_apply(&root, Format::Aufs, vec![edit.clone()]).expect_err(&format!("{edit:?}"));
    }
    let mut names: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["d", "f", "g", "s"]);
    assert_eq!(std::fs::read(root.join("g")).unwrap(), b"g");
    assert!(root.join("d/e").is_dir());
    assert_eq!(
        std::fs::read_dir(dir.path().join("outside"))
            .unwrap()
            .count(),
        0
    );
    // The same name twice, in either format.
    for format in [Format::Aufs, Format::Overlay { user_xattr: false }] {
        let whiteout = Edit::Whiteout { path: bytes("w") };
        let error = try_apply(&root, format, vec![whiteout.clone(), whiteout]).unwrap_err();
        assert!(matches!(
            error,
            ApplyError::Edit {
                step: Step::Whiteout,
                ..
            }
        ));
    }
}

/// One of each type, with everything that metadata can be, in `root`.
fn furnish(root: &Path) {
    std::fs::create_dir_all(root.join("d/e")).unwrap();
    std::fs::write(root.join("d/f"), "content of f").unwrap();
    std::fs::hard_link(root.join("d/f"), root.join("d/e/f2")).unwrap();
    std::fs::write(root.join("setuid"), "").unwrap();
    std::fs::set_permissions(root.join("setuid"), PermissionsExt::from_mode(0o4711)).unwrap();
    std::fs::set_permissions(root.join("d/f"), PermissionsExt::from_mode(0o400)).unwrap();
    symlink("d/f", root.join("link")).unwrap();
    let flags = Mode::from_raw_mode(0o620);
    mknodat(CWD, root.join("fifo"), FileType::Fifo, flags, 0).unwrap();
    let (character, block) = (FileType::CharacterDevice, FileType::BlockDevice);
    mknodat(CWD, root.join("char"), character, flags, makedev(1, 3)).unwrap();
    mknodat(CWD, root.join("block"), block, flags, makedev(7, 700)).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(&[1; 5000], 1 << 20).unwrap();
    sparse.write_all_at(&[2; 70_000], 8 << 20).unwrap();
    ftruncate(&sparse, 64 << 20).unwrap();
    let hole = std::fs::File::create(root.join("hole")).unwrap();
    ftruncate(&hole, 1 << 30).unwrap();
    let none = XattrFlags::empty();
    setxattr(root.join("d/f"), "user.note", b"note", none).unwrap();
    setxattr(root.join("d/f"), "trusted.note", b"t", none).unwrap();
    setxattr(root.join("d/f"), "trusted.overlay.metacopy", b"", none).unwrap();
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    setxattr(
        root.join("setuid"),
        "security.capability",
        &capability,
        none,
    )
    .unwrap();
    for (number, name) in FURNITURE.iter().enumerate() {
        let number = u32::try_from(number).unwrap();
        let time = Timespec {
            tv_sec: i64::from(number) * 1000,
            tv_nsec: i64::from(number) + 1,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let (uid, gid) = (Uid::from_raw(number), Gid::from_raw(100 + number));
        if *name != "setuid" {
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            chownat(CWD, root.join(name), Some(uid), Some(gid), nofollow).unwrap();
        }
        utimensat(CWD, root.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

const FURNITURE: [&str; 8] = [
    "setuid", "d/f", "link", "fifo", "char", "block", "sparse", "hole",
];

fn assert_same(from: &Path, to: &Path) {
    let (a, b) = (
        std::fs::symlink_metadata(from).unwrap(),
        std::fs::symlink_metadata(to).unwrap(),
    );
    let all = |meta: &std::fs::Metadata| {
        let times = (meta.mtime(), meta.mtime_nsec());
        (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            times,
            meta.size(),
            meta.rdev(),
        )
    };
    assert_eq!(all(&a), all(&b), "{}", from.display());
    if a.is_symlink() {
        assert_eq!(
            std::fs::read_link(from).unwrap(),
            std::fs::read_link(to).unwrap()
        );
    }
    if a.is_file() {
        assert!(b.blocks() <= a.blocks() + 256, "{}", from.display());
        if a.len() <= 64 << 20 {
            assert!(std::fs::read(from).unwrap() == std::fs::read(to).unwrap());
        }
    }
    for name in ["user.note", "trusted.note", "security.capability"] {
        assert_eq!(
            xattr(from, name),
            xattr(to, name),
            "{} {name}",
            from.display()
        );
    }
    assert_eq!(xattr(to, "trusted.overlay.metacopy"), None);
}

#[test]
fn copies_from_lower_layers_are_complete() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    // More layers than stay open, on the same and on another filesystem.
    let layers: Vec<_> = (0..7)
        .map(|number| match number % 2 {
            0 => dir.path().join(format!("layer-{number}")),
            _ => other.path().join(format!("layer-{number}")),
        })
        .collect();
    for layer in &layers {
        std::fs::create_dir(layer).unwrap();
        furnish(layer);
    }
    let root = dir.path().join("root");
    let mut edits = Vec::new();
    for layer in 0..layers.len() {
        std::fs::create_dir_all(root.join(format!("{layer}"))).unwrap();
    }
    for name in FURNITURE {
        for layer in 0..layers.len() {
            edits.push(Edit::Copy {
                layer,
                from: bytes(name),
                to: bytes(&format!("{layer}/{}", name.replace('/', "-"))),
            });
        }
    }
    let fresh = open(dir.path());
    let stats = apply(
        open(&root).as_fd(),
        fresh.as_fd(),
        ok(edits),
        Format::Aufs,
        Ownership::Real,
        &|layer| Ok(open(&layers[layer])),
        &mut |_, _| Ok(()),
    )
    .unwrap();
    assert_eq!(stats.copied, 56);
    for (number, layer) in layers.iter().enumerate() {
        for name in FURNITURE {
            let copy = root.join(format!("{number}/{}", name.replace('/', "-")));
            assert_same(&layer.join(name), &copy);
        }
    }
    let directory = Edit::Copy {
        layer: 0,
        from: bytes("d"),
        to: bytes("d"),
    };
    let error = apply(
        open(&root).as_fd(),
        fresh.as_fd(),
        ok(vec![directory]),
        Format::Aufs,
        Ownership::Real,
        &|layer| Ok(open(&layers[layer])),
        &mut |_, _| Ok(()),
    )
    .unwrap_err();
    assert!(matches!(
        error,
        ApplyError::Copy {
            source: CopyFault::Directory,
            ..
        }
    ));
}

#[test]
fn data_is_the_same_by_whichever_means_it_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    for (clones, copies) in [(true, true), (false, true), (false, false)] {
        let target = tempfile::tempdir().unwrap();
        let (from, to) = (open(dir.path()), open(target.path()));
        let mut copier = Copier::new(to.as_fd(), Directories::Bare, Ownership::Real).unwrap();
        copier.force(clones, copies);
        for name in ["sparse", "hole", "setuid"] {
            copier
                .copy(from.as_fd(), name.as_bytes(), to.as_fd(), name.as_bytes())
                .unwrap();
            assert_same(&dir.path().join(name), &target.path().join(name));
        }
        if !clones {
            assert!(
                (75_000..200_000).contains(&copier.bytes),
                "{}",
                copier.bytes
            );
        }
    }
}

#[test]
fn a_branch_is_copied_with_its_link_groups() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    std::fs::create_dir(&to).unwrap();
    furnish(&from);
    std::fs::hard_link(from.join("link"), from.join("d/link2")).unwrap();
    std::fs::write(from.join("d/left-out"), "").unwrap();
    let node = |path: &str, to: &str| {
        let meta = std::fs::symlink_metadata(from.join(path)).unwrap();
        Ok::<_, Infallible>(CopyNode {
            from: bytes(path),
            to: bytes(to),
            is_directory: meta.is_dir(),
            inode: meta.ino(),
        })
    };
    let mut nodes = vec![
        node("", ""),
        node("d", "d"),
        node("d/e", "d/e"),
        node("d/e/f2", "d/e/f2"),
        node("d/link2", "d/link2"),
    ];
    nodes.extend(FURNITURE.iter().map(|name| node(name, name)));
    let aside = dir.path().join("aside");
    std::fs::create_dir(&aside).unwrap();
    let stats = copy_nodes(
        open(&from).as_fd(),
        open(&to).as_fd(),
        open(&aside).as_fd(),
        nodes.into_iter(),
        Ownership::Real,
    )
    .unwrap();
    assert_eq!((stats.edits, stats.copied), (13, 8));
    for name in FURNITURE.iter().chain(&["d/e/f2", "d/link2"]) {
        assert_same(&from.join(name), &to.join(name));
    }
    let inode = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap().ino();
    assert_eq!(inode("d/f"), inode("d/e/f2"));
    assert_eq!(inode("link"), inode("d/link2"));
    // Of these all names are copied, so that none is kept aside any more.
    assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 0);
    assert_eq!(std::fs::metadata(to.join("d/f")).unwrap().nlink(), 2);
    assert!(!to.join("d/left-out").exists());
    assert_eq!(
        std::fs::metadata(to.join("d")).unwrap().mode() & 0o7777,
        0o700
    );
    let mut by_inode: BTreeMap<u64, u32> = BTreeMap::new();
    for name in FURNITURE {
        *by_inode.entry(inode(name)).or_default() += 1;
    }
    assert_eq!(by_inode.len(), FURNITURE.len());
}

#[test]
fn without_root_copies_are_the_callers_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    without_root(move || {
        let (from, to) = (path.join("from"), path.join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("f"), "f").unwrap();
        setxattr(from.join("f"), "user.note", b"n", XattrFlags::empty()).unwrap();
        std::fs::set_permissions(from.join("f"), PermissionsExt::from_mode(0o444)).unwrap();
        let edits = vec![
            Edit::Copy {
                layer: 0,
                from: bytes("f"),
                to: bytes("f"),
            },
            Edit::Whiteout { path: bytes("w") },
            Edit::Opaque { path: Vec::new() },
        ];
        apply(
            open(&to).as_fd(),
            open(&to).as_fd(),
            ok(edits),
            Format::Overlay { user_xattr: true },
            Ownership::Single,
            &|_| Ok(open(&from)),
            &mut |_, _| Ok(()),
        )
        .unwrap();
        assert_same(&from.join("f"), &to.join("f"));
        let marker = std::fs::symlink_metadata(to.join("w")).unwrap();
        assert!(marker.file_type().is_char_device() && marker.rdev() == 0);
    });
}

#[test]
fn a_full_disk_is_told_apart() {
    let error = ApplyError::Copy {
        from: PathText::from(&b"a"[..]),
        to: PathText::from(&b"b"[..]),
        source: CopyFault::Data {
            source: Errno::DQUOT.into(),
        },
    };
    assert!(error.is_out_of_space() && !error.is_read_only());
    let dir = tempfile::tempdir().unwrap();
    let edit = Edit::RemoveFile { path: bytes("x") };
    let error = try_apply(dir.path(), Format::Aufs, vec![edit]).unwrap_err();
    assert!(!error.is_out_of_space());
}
