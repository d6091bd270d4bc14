//! GNU tar as the other end: the parser reads what it writes, and it reads
//! what the writer writes. What is compared is the file system.
#![expect(
    clippy::disallowed_methods,
    reason = "the peer is a program; only the plugin itself runs none"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test that fails fails the test"
)]

use aufs_csi::layer::archive::check::{Transcript, check, transcript};
use aufs_csi::layer::archive::{Entry, EntryKind, Timestamp, Writer};
use aufs_csi::layer::limits::Limits;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A directory on a real file system, for tmpfs has no `user.` attributes on older kernels.
fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn user_xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut xattrs: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length =
                rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// Names that fit into every format.
fn plain_tree(root: &Path) {
    std::fs::create_dir(root.join("dir")).unwrap();
    std::fs::write(root.join("dir/file"), vec![7; 1500]).unwrap();
    std::fs::write(root.join("empty"), b"").unwrap();
    std::fs::write(root.join("block"), vec![1; 512]).unwrap();
    std::fs::hard_link(root.join("dir/file"), root.join("linked")).unwrap();
    symlink("../outside", root.join("dir/symlink")).unwrap();
    let mode = Mode::from_raw_mode(0o6751);
    rustix::fs::chmod(root.join("block"), mode).unwrap();
    set_mtime(&root.join("block"), 1_234_567_890, 0);
    for path in ["dir/file", "dir/symlink", "empty", "dir", "."] {
        set_mtime(&root.join(path), 1_600_000_000, 0);
    }
}

/// Long names, for which the formats have their own ways.
fn long_tree(root: &Path) {
    let deep = format!("{0}/{0}/{0}", "d".repeat(120));
    std::fs::create_dir_all(root.join(&deep)).unwrap();
    let long = root.join(&deep).join("n".repeat(200));
    std::fs::write(&long, b"long").unwrap();
    std::fs::hard_link(&long, root.join("short")).unwrap();
    symlink("t".repeat(300), root.join("to")).unwrap();
    let odd = [&b"odd\n\xff\xfe "[..], &[b'o'; 110]].concat();
    std::fs::write(root.join(OsStr::from_bytes(&odd)), b"odd").unwrap();
    // Before 1970, which needs base 256 or PAX.
    set_mtime(&long, -5, 0);
    set_mtime(&root.join("to"), -1, 0);
}

/// Runs GNU tar on a tree.
fn archive(root: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(options)
        .args(["--numeric-owner", "-C"])
        .arg(root)
        .args(["-cf", "-", "."])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "tar {options:?}");
    output.stdout
}

fn parse(bytes: &[u8]) -> Transcript {
    let transcript = transcript(bytes, &Limits::default(), || usize::MAX);
    assert_eq!(transcript.end, Ok(true));
    transcript
}

/// Compares an archive with the tree that it is of, and returns its entries by path.
fn compare(bytes: &[u8], root: &Path, nanoseconds: bool) -> BTreeMap<Vec<u8>, Entry> {
    let transcript = parse(bytes);
    let mut entries = BTreeMap::new();
    for (index, member) in transcript.members.iter().enumerate() {
        let entry = &member.entry;
        let path = root.join(OsStr::from_bytes(&entry.path));
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let kind = match entry.kind {
            EntryKind::File => FileType::RegularFile,
            EntryKind::Directory => FileType::Directory,
            EntryKind::Symlink => FileType::Symlink,
            EntryKind::Fifo => FileType::Fifo,
            EntryKind::HardLink => {
                let target = root.join(OsStr::from_bytes(&entry.link));
                let target = std::fs::symlink_metadata(target).unwrap();
                assert_eq!(target.ino(), metadata.ino());
                FileType::from_raw_mode(metadata.mode())
            }
            EntryKind::CharDevice | EntryKind::BlockDevice => FileType::Unknown,
        };
        assert_eq!(FileType::from_raw_mode(metadata.mode()), kind, "{path:?}");
        assert_eq!(entry.mode, metadata.mode() & 0o7777, "{path:?}");
        assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()));
        assert_eq!(entry.mtime.seconds, metadata.mtime(), "{path:?}");
        if nanoseconds {
            assert_eq!(i64::from(entry.mtime.nanos), metadata.mtime_nsec());
        }
        match entry.kind {
            EntryKind::File => {
                assert_eq!(entry.size, metadata.size());
                let content = transcript.content(index);
                assert!(content == std::fs::read(&path).unwrap(), "{path:?}");
            }
            EntryKind::Symlink => {
                let target = std::fs::read_link(&path).unwrap();
                assert_eq!(entry.link, target.as_os_str().as_bytes());
            }
            _ => {}
        }
        entries.insert(entry.path.clone(), entry.clone());
    }
    assert_eq!(entries.len(), count(root));
    entries
}

/// Files and directories of a tree, its root included.
fn count(root: &Path) -> usize {
    let entries = std::fs::read_dir(root).unwrap();
    let below = entries.map(|entry| {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => count(&entry.path()),
            false => 1,
        }
    });
    1 + below.sum::<usize>()
}

#[test]
fn every_format_of_gnu_tar_is_read() {
    let tree = directory();
    plain_tree(tree.path());
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let bytes = archive(tree.path(), &[&format!("--format={format}")]);
        let entries = compare(&bytes, tree.path(), false);
        let links = entries
            .values()
            .filter(|entry| entry.kind == EntryKind::HardLink);
        assert_eq!(links.count(), 1, "{format}");
        check(&bytes);
    }
}

#[test]
fn long_names_and_early_times_are_read() {
    let tree = directory();
    long_tree(tree.path());
    rustix::fs::mknodat(
        CWD,
        tree.path().join("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for format in ["oldgnu", "gnu", "posix"] {
        let bytes = archive(tree.path(), &[&format!("--format={format}")]);
        compare(&bytes, tree.path(), format == "posix");
        check(&bytes);
    }
}

#[test]
fn a_prefix_of_ustar_is_read() {
    let tree = directory();
    let deep = format!("{0}/{0}", "d".repeat(70));
    std::fs::create_dir_all(tree.path().join(&deep)).unwrap();
    std::fs::write(tree.path().join(&deep).join("n".repeat(90)), b"long").unwrap();
    let bytes = archive(tree.path(), &["--format=ustar"]);
    compare(&bytes, tree.path(), false);
}

#[test]
fn sparse_files_of_every_version_are_read() {
    let tree = directory();
    let sparse = |name: &str, size: u64, runs: &[(u64, usize)]| {
        let file = std::fs::File::create(tree.path().join(name)).unwrap();
        for (index, (offset, length)) in runs.iter().enumerate() {
            let bytes = vec![(index % 255) as u8 + 1; *length];
            file.write_all_at(&bytes, *offset).unwrap();
        }
        file.set_len(size).unwrap();
    };
    let many: Vec<_> = (0..300).map(|index| (index * 131_072, 4096)).collect();
    sparse("hole", 1 << 20, &[]);
    sparse("middle", 1 << 20, &[(524_288, 5000)]);
    sparse("end", (1 << 20) + 10, &[(1 << 20, 10)]);
    sparse("both", 1 << 20, &[(0, 4096), ((1 << 20) - 4096, 4096)]);
    sparse("many", 300 * 131_072, &many);
    let long = "n".repeat(150);
    sparse(&long, 1 << 20, &[(524_288, 4096)]);
    for options in [
        &["--format=gnu"][..],
        &["--format=oldgnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let options = [&["--sparse", "--hole-detection=raw"], options].concat();
        let bytes = archive(tree.path(), &options);
        // Holes were left out, or this would test nothing.
        assert!(bytes.len() < 4 << 20, "{options:?}: {} bytes", bytes.len());
        compare(&bytes, tree.path(), false);
        let many = parse(&bytes).members.into_iter();
        let mut many = many.filter(|member| member.entry.path.ends_with(b"many"));
        assert_eq!(many.next().unwrap().runs.len(), 300, "{options:?}");
    }
}

#[test]
fn attributes_and_nanoseconds_are_read() {
    let tree = directory();
    let path = tree.path().join("f");
    std::fs::write(&path, b"content").unwrap();
    set_xattr(&path, "user.empty", b"");
    set_xattr(&path, "user.binary", b"\0\n=\xff");
    set_xattr(&path, "user.long", &[b'v'; 1000]);
    set_xattr(tree.path(), "user.dir", b"d");
    set_mtime(&path, 1_600_000_000, 123_456_789);
    set_mtime(tree.path(), -2, 500_000_000);
    let bytes = archive(tree.path(), &["--format=posix", "--xattrs"]);
    let entries = compare(&bytes, tree.path(), true);
    assert_eq!(entries[&b"./f"[..]].xattrs, user_xattrs(&path));
    assert_eq!(entries[&b"./f"[..]].xattrs.len(), 3);
    assert_eq!(entries[&b"./"[..]].xattrs, user_xattrs(tree.path()));
}

#[test]
fn labels_and_global_headers_are_passed_over() {
    let tree = directory();
    plain_tree(tree.path());
    for format in ["gnu", "posix"] {
        let bytes = archive(
            tree.path(),
            &[&format!("--format={format}"), "--label=volume"],
        );
        compare(&bytes, tree.path(), false);
    }
    let global = "--pax-option=globexthdr.name=g,comment=c,mtime:=-7.5";
    let bytes = archive(tree.path(), &["--format=posix", global]);
    let mtime = Timestamp {
        seconds: -8,
        nanos: 500_000_000,
    };
    assert!(
        parse(&bytes)
            .members
            .iter()
            .all(|member| member.entry.mtime == mtime)
    );
}

/// Writes a tree with the writer, as GNU tar would have archived it.
fn write(transcript: &Transcript) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (index, member) in transcript.members.iter().enumerate() {
        writer.entry(&member.entry).unwrap();
        writer.data(&transcript.content(index)).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn gnu_tar_extracts_what_the_writer_writes() {
    let tree = directory();
    plain_tree(tree.path());
    long_tree(tree.path());
    let path = tree.path().join("dir/file");
    set_xattr(&path, "user.binary", b"\0\n=\xff");
    set_xattr(&path, "user.empty", b"");
    set_mtime(&path, 1_600_000_000, 120_000_000);
    set_mtime(tree.path(), -2, 999_999_999);
    let original = parse(&archive(tree.path(), &["--format=posix", "--xattrs"]));
    let written = write(&original);
    assert_eq!(parse(&written), original);

    let extracted = directory();
    let mut tar = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--same-permissions"])
        .args(["--warning=no-timestamp", "--warning=no-unknown-keyword"])
        .args(["-xf", "-", "-C"])
        .arg(extracted.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(&written).unwrap();
    assert!(tar.wait().unwrap().success());
    compare(&written, extracted.path(), true);
    let xattrs = user_xattrs(&extracted.path().join("dir/file"));
    assert_eq!(xattrs, user_xattrs(&path));
    assert_eq!(xattrs.len(), 2);
}
