//! Owner, mode, attributes and times, to the bit.

use super::*;
use crate::layer::tree::test_support::without_root;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, setxattr};
use std::os::unix::fs::PermissionsExt;

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    let length = lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn xattr_names(path: &Path) -> Vec<String> {
    let mut names = vec![0; 1 << 16];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let mut names: Vec<String> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect();
    names.sort();
    names
}

/// `cap_net_raw+ep` as revision 2 of the kernel's structure.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// An ACL: version 2, then tag, permissions and id of each line.
fn acl(lines: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in lines {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn named_user_acl(mask: u16) -> Vec<u8> {
    let none = u32::MAX;
    acl(&[
        (1, 6, none),
        (2, 7, 1000),
        (4, 4, none),
        (0x10, mask, none),
        (0x20, 0, none),
    ])
}

fn with(
    mut member: Member,
    mode: u32,
    owner: (u32, u32),
    time: (i64, u32),
    xattrs: &[(&str, &[u8])],
) -> Member {
    member.0.mode = mode;
    (member.0.uid, member.0.gid) = owner;
    member.0.mtime = Timestamp {
        seconds: time.0,
        nanos: time.1,
    };
    member.0.xattrs = xattrs
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
        .collect();
    member
}

fn assert_metadata(path: &Path, mode: u32, owner: (u32, u32), time: (i64, u32)) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let path = path.display();
    assert_eq!(meta.mode() & 0o7777, mode, "{path}: {:o}", meta.mode());
    assert_eq!((meta.uid(), meta.gid()), owner, "{path}");
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (time.0, time.1.into()),
        "{path}"
    );
    assert_eq!(
        (meta.atime(), meta.atime_nsec()),
        (time.0, time.1.into()),
        "{path}"
    );
}

#[test]
fn files_links_and_devices_get_theirs_at_once() {
    let time = (-86_401, 999_999_999);
    let device = |kind, path, device| {
        let entry = Entry {
            device,
            ..entry(kind, path)
        };
        (entry, Vec::new())
    };
    let all = [
        (file("plain", "x"), 0o644, (0, 0)),
        (file("open", "x"), 0o666, (0, 0)),
        (file("closed", "x"), 0o000, (0, 0)),
        (file("setuid", "x"), 0o4755, (0, 0)),
        (file("setuid-owned", "x"), 0o6777, (1000, 1001)),
        (file("sticky", ""), 0o1222, (u32::MAX - 1, 5)),
        (link("link", "nowhere"), 0o777, (12, 13)),
        (device(EntryKind::Fifo, "fifo", (9, 9)), 0o662, (1, 2)),
        (device(EntryKind::CharDevice, "char", (1, 3)), 0o666, (0, 0)),
        (device(EntryKind::CharDevice, "null", (0, 0)), 0o000, (0, 0)),
        (
            device(EntryKind::BlockDevice, "block", (259, 70_000)),
            0o2660,
            (0, 6),
        ),
    ];
    let members: Vec<Member> = all
        .iter()
        .map(|(member, mode, owner)| with(member.clone(), *mode, *owner, time, &[]))
        .collect();
    let unpacked = unpack(&members);
    for (member, mode, owner) in &all {
        let path = String::from_utf8(member.0.path.clone()).unwrap();
        assert_metadata(&unpacked.at(&path), *mode, *owner, time);
        let (Some(Node::File { attrs, inode, .. })
        | Some(Node::Symlink { attrs, inode, .. })
        | Some(Node::Special { attrs, inode, .. })) = &unpacked.record(&path).node
        else {
            panic!("{path}");
        };
        assert_eq!(
            (attrs.mode, (attrs.uid, attrs.gid)),
            (*mode, *owner),
            "{path}"
        );
        assert_eq!((attrs.mtime.seconds, attrs.mtime.nanos), time, "{path}");
        let meta = std::fs::symlink_metadata(unpacked.at(&path)).unwrap();
        assert_eq!(meta.ino(), *inode, "{path}");
    }
    for (path, device) in [
        ("char", (1, 3)),
        ("block", (259, 70_000)),
        ("null", (0, 0)),
        ("fifo", (0, 0)),
    ] {
        let rdev = std::fs::symlink_metadata(unpacked.at(path)).unwrap().rdev();
        assert_eq!(rdev, makedev(device.0, device.1), "{path}");
        assert!(
            matches!(unpacked.record(path).node, Some(Node::Special { device: told, .. }) if told == device),
            "{path}"
        );
    }
}

#[test]
fn directories_get_theirs_at_the_end_in_any_order() {
    let time = (1_234_567_890, 987_654_321);
    let unpacked = unpack(&[
        with(dir("."), 0o1777, (3, 4), time, &[]),
        with(
            dir("d"),
            0o2755,
            (5, 6),
            time,
            &[("user.note", b"on a directory")],
        ),
        with(dir("d/closed"), 0o000, (0, 7), time, &[]),
        file("d/closed/f", "x"),
        with(dir("d/closed/in"), 0o711, (0, 0), time, &[]),
        file("implied/f", ""),
    ]);
    for path in ["d", "d/closed", "d/closed/in", "implied"] {
        let meta = std::fs::metadata(unpacked.at(path)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o700, 0), "{path}");
    }
    let check = || {
        assert_metadata(&unpacked.root(), 0o1777, (3, 4), time);
        assert_metadata(&unpacked.at("d"), 0o2755, (5, 6), time);
        assert_metadata(&unpacked.at("d/closed"), 0o000, (0, 7), time);
        assert_metadata(&unpacked.at("d/closed/in"), 0o711, (0, 0), time);
        assert_metadata(&unpacked.at("implied"), 0o755, (0, 0), (0, 0));
        assert_eq!(
            xattr(&unpacked.at("d"), "user.note").unwrap(),
            b"on a directory"
        );
    };
    finish_all(&unpacked, Ownership::Real);
    check();
    // Twice, and in the order in which the entries came.
    let root = open(&unpacked.root());
    let mut dirs: Vec<_> = unpacked
        .records
        .iter()
        .filter_map(|record| match &record.node {
            Some(Node::Directory { attrs, .. }) => Some(Ok((record.path.clone(), attrs.clone()))),
            _ => None,
        })
        .collect();
    dirs.reverse();
    finish_directories(root.as_fd(), dirs.into_iter(), Ownership::Real).unwrap();
    check();
}

#[test]
fn what_is_no_directory_is_not_finished_as_one() {
    let unpacked = unpack(&[link("s", "../outside"), file("f", "")]);
    let before = snapshot(unpacked.dir.path());
    let root = open(&unpacked.root());
    for path in ["s", "f", "s/x", "none"] {
        let dirs = [Ok((path.as_bytes().to_vec(), Attrs::implied()))];
        finish_directories(root.as_fd(), dirs.into_iter(), Ownership::Real).unwrap_err();
    }
    assert_eq!(snapshot(unpacked.dir.path()), before);
}

#[test]
fn extended_attributes_come_as_given() {
    let acl_bytes = named_user_acl(6);
    let large = vec![7; 3000];
    let all: &[(&str, &[u8])] = &[
        ("security.capability", &CAPABILITY),
        ("system.posix_acl_access", &acl_bytes),
        ("trusted.thing", b"t\0t"),
        ("user.empty", b""),
        ("user.large", &large),
    ];
    let time = (1_000, 1);
    let unpacked = unpack(&[
        with(file("f", "content"), 0o660, (4, 5), time, all),
        with(
            dir("d"),
            0o750,
            (0, 0),
            time,
            &[
                ("system.posix_acl_default", &acl_bytes),
                ("trusted.thing", b"d"),
            ],
        ),
        file("d/inherits-nothing", ""),
        with(
            link("l", "x"),
            0o777,
            (0, 0),
            time,
            &[("trusted.thing", b"l")],
        ),
        hard("h", "f"),
    ]);
    finish_all(&unpacked, Ownership::Real);
    for (name, value) in all {
        assert_eq!(
            xattr(&unpacked.at("f"), name).as_deref(),
            Some(*value),
            "{name}"
        );
    }
    assert_metadata(&unpacked.at("f"), 0o660, (4, 5), time);
    assert_eq!(
        xattr(&unpacked.at("d"), "system.posix_acl_default"),
        Some(acl_bytes.clone())
    );
    assert_metadata(&unpacked.at("d"), 0o750, (0, 0), time);
    assert_eq!(xattr_names(&unpacked.at("d/inherits-nothing")), [""; 0]);
    assert_eq!(xattr(&unpacked.at("l"), "trusted.thing").unwrap(), b"l");
    assert_metadata(&unpacked.at("l"), 0o777, (0, 0), time);
    let Some(Node::File { attrs, .. }) = &unpacked.record("f").node else {
        panic!();
    };
    let told: Vec<_> = all
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
        .collect();
    assert_eq!(attrs.xattrs, told);
    assert_eq!(unpacked.record("f").node, unpacked.record("h").node);
    assert_eq!(unpacked.stats.dropped_xattrs, 0);
}

#[test]
fn the_mode_wins_over_an_access_list_that_contradicts_it() {
    let acl = named_user_acl(7);
    let members = [with(
        file("f", ""),
        0o640,
        (0, 0),
        (0, 0),
        &[("system.posix_acl_access", &acl)],
    )];
    let unpacked = unpack(&members);
    assert_metadata(&unpacked.at("f"), 0o640, (0, 0), (0, 0));
    assert_eq!(
        xattr(&unpacked.at("f"), "system.posix_acl_access"),
        Some(named_user_acl(4))
    );
}

#[test]
fn attributes_that_cannot_be_are_dropped_and_counted() {
    let note: &[u8] = b"x";
    let unpacked = unpack(&[
        with(
            file("f", ""),
            0o644,
            (0, 0),
            (0, 0),
            &[
                ("com.apple.provenance", note),
                ("system.posix_acl_default", note),
                ("trusted.SGI_ACL_FILE", note),
                ("trusted.overlay.opaque", b"y"),
                ("user.kept", note),
                ("user.overlay.whiteout", b"y"),
            ],
        ),
        with(
            link("l", "f"),
            0o777,
            (0, 0),
            (0, 0),
            &[("system.posix_acl_access", note), ("user.note", note)],
        ),
        with(
            dir("d"),
            0o755,
            (0, 0),
            (0, 0),
            &[("trusted.overlay.redirect", b"/etc")],
        ),
    ]);
    finish_all(&unpacked, Ownership::Real);
    assert_eq!(xattr_names(&unpacked.at("f")), ["user.kept"]);
    assert_eq!(xattr_names(&unpacked.at("l")), [""; 0]);
    assert_eq!(xattr_names(&unpacked.at("d")), [""; 0]);
    assert_eq!(unpacked.stats.dropped_xattrs, 8);
    let kept: usize = unpacked
        .records
        .iter()
        .map(|record| match &record.node {
            Some(
                Node::File { attrs, .. }
                | Node::Symlink { attrs, .. }
                | Node::Directory { attrs, .. },
            ) => attrs.xattrs.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(kept, 1);
}

#[test]
fn an_attribute_that_is_refused_is_named() {
    for (name, value) in [
        ("system.nothing_known", &b"x"[..]),
        ("user.", b"x"),
        ("security.capability", b"garbage"),
        ("system.posix_acl_access", b"garbage"),
        ("user.huge", &[0; 70_000]),
    ] {
        let member = with(
            file("some/file", ""),
            0o644,
            (0, 0),
            (0, 0),
            &[(name, value)],
        );
        let error = refusal(&[member]);
        assert!(error.to_string().contains("some/file"), "{error}");
        assert!(error.source_text().unwrap().contains(name), "{error:?}");
        assert!(!error.is_out_of_space(), "{error:?}");
    }
}

#[test]
fn owners_and_devices_that_the_kernel_would_misread_are_refused() {
    let nobody = with(file("f", ""), 0o644, (u32::MAX, 0), (0, 0), &[]);
    assert!(matches!(refusal(&[nobody]), UnpackError::Metadata { .. }));
    for device in [(4096, 0), (0, 1 << 20)] {
        let entry = Entry {
            device,
            ..entry(EntryKind::BlockDevice, "b")
        };
        assert!(matches!(
            refusal(&[(entry, Vec::new())]),
            UnpackError::DeviceNumber { .. }
        ));
    }
}

#[test]
fn what_the_parent_directory_hands_down_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), None, Some(77)).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o2700)).unwrap();
    let default = named_user_acl(7);
    setxattr(
        dir.path(),
        "system.posix_acl_default",
        &default,
        XattrFlags::empty(),
    )
    .unwrap();
    let mut records = Vec::new();
    let mut unpacker = Unpacker::new(open(dir.path()), &mut records, Options::default()).unwrap();
    let members = [
        file("f", "x"),
        self::dir("d"),
        file("d/f", "x"),
        self::dir("d/e"),
        (entry(EntryKind::Fifo, "p"), Vec::new()),
        file("implied/f", "x"),
    ];
    feed(&mut unpacker, &members).unwrap();
    unpacker.finish().unwrap();
    let dirs = records.iter().filter_map(|record| match &record.node {
        Some(Node::Directory { attrs, .. }) => Some(Ok((record.path.clone(), attrs.clone()))),
        Some(Node::Implied) => Some(Ok((record.path.clone(), Attrs::implied()))),
        _ => None,
    });
    finish_directories(open(dir.path()).as_fd(), dirs, Ownership::Real).unwrap();
    for (path, mode) in [
        ("f", 0o644),
        ("d", 0o755),
        ("d/f", 0o644),
        ("d/e", 0o755),
        ("p", 0o755),
        ("implied", 0o755),
        ("implied/f", 0o644),
    ] {
        let real = dir.path().join(path);
        let meta = std::fs::metadata(&real).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.gid()), (mode, 0), "{path}");
        assert_eq!(xattr_names(&real), [""; 0], "{path}");
    }
}

#[test]
fn without_root_everything_is_the_callers_own() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let path = dir.path().to_owned();
    without_root(move || {
        let options = Options {
            ownership: Ownership::Single,
            ..Options::default()
        };
        let mut records = Vec::new();
        let mut unpacker = Unpacker::new(open(&path), &mut records, options.clone()).unwrap();
        let time = (5, 6);
        let xattrs: &[(&str, &[u8])] = &[
            ("security.capability", &CAPABILITY),
            ("trusted.thing", b"x"),
            ("user.note", b"kept"),
        ];
        feed(
            &mut unpacker,
            &[
                with(self::dir("."), 0o755, (0, 0), time, &[]),
                with(self::dir("d"), 0o555, (0, 0), time, xattrs),
                with(self::dir("d/e"), 0o000, (1, 2), time, &[]),
                with(file("d/e/f", "x"), 0o4444, (3, 4), time, xattrs),
                with(link("d/l", "e"), 0o777, (3, 4), time, &[]),
                hard("h", "d/l/f"),
                file("d/l/gone", ""),
                self::dir("d/l/gone/deep"),
                file("d/l/gone", "new"),
            ],
        )
        .unwrap();
        let (stats, _) = unpacker.finish().unwrap();
        assert_eq!(stats.dropped_xattrs, 4);
        let mut dirs: Vec<_> = records
            .iter()
            .filter_map(|record| match &record.node {
                Some(Node::Directory { attrs, .. }) if !record.path.ends_with(b"deep") => {
                    Some(Ok((record.path.clone(), attrs.clone())))
                }
                _ => None,
            })
            .collect();
        dirs.sort_by(|a, b| match (a, b) {
            (Ok(a), Ok(b)) => index::compare(&a.0, &b.0),
            (Err(_), _) | (_, Err(_)) => unreachable!(),
        });
        let root = open(&path);
        finish_directories(root.as_fd(), dirs.into_iter(), Ownership::Single).unwrap();

        let nodes: Vec<_> = records
            .iter()
            .filter(|r| r.path == b"h" || r.path == b"d/e/f")
            .collect();
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[0].node, nodes[1].node);
        assert!(matches!(
            &nodes[0].node,
            Some(Node::File { attrs, .. }) if (attrs.uid, attrs.gid, attrs.mode) == (65534, 65534, 0o4444)
        ));

        let device = (entry(EntryKind::CharDevice, "x"), Vec::new());
        let mut unpacker = Unpacker::new(open(&path), &mut records, options).unwrap();
        let error = feed(&mut unpacker, &[device]).unwrap_err();
        assert!(matches!(error, UnpackError::DeviceNeedsRoot { .. }));
    });
    let own = (65534, 65534);
    for (path, mode) in [("d", 0o555), ("d/e", 0o000), ("d/e/f", 0o4444)] {
        assert_metadata(&dir.path().join(path), mode, own, (5, 6));
    }
    assert_eq!(xattr_names(&dir.path().join("d/e/f")), ["user.note"]);
    assert_eq!(std::fs::read(dir.path().join("d/e/gone")).unwrap(), b"new");
}
