//! What the writer writes, the parser reads back.

use super::super::check::{Member, transcript};
use super::super::{Entry, EntryKind, Event, Parser, Timestamp, WriteError, Writer};
use super::file;
use crate::layer::limits::Limits;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::io;

/// Names of all lengths, most of them plain, none empty or with a NUL.
fn any_name(max_bytes: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(prop_oneof![Just(b'/'), Just(b'a'), Just(b'='), 0x20..0x7fu8], 1..=max_bytes),
        1 => "[äöü/]{1,40}".prop_map(String::into_bytes),
        1 => vec(1..=255u8, 1..=max_bytes),
    ]
}

fn any_kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        Just(EntryKind::File),
        Just(EntryKind::HardLink),
        Just(EntryKind::Symlink),
        Just(EntryKind::CharDevice),
        Just(EntryKind::BlockDevice),
        Just(EntryKind::Directory),
        Just(EntryKind::Fifo),
    ]
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    let seconds = prop_oneof![0..1i64 << 34, -9..9i64, any::<i64>()];
    let nanos = prop_oneof![Just(0), Just(500_000_000), 0..1_000_000_000u32];
    (seconds, nanos).prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
}

prop_compose! {
    fn any_member()(
        path in any_name(300),
        kind in any_kind(),
        link in any_name(300),
        mode in 0..=0o7777u32,
        uid in prop_oneof![0..5000u32, 0..u32::MAX],
        gid in prop_oneof![0..5000u32, 0..u32::MAX],
        mtime in any_time(),
        device in (any::<u32>(), 0..300u32),
        xattrs in btree_map(any_name(40), vec(any::<u8>(), 0..200), 0..4),
        content in vec(any::<u8>(), 0..1100),
    ) -> Member {
        let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let is_link = matches!(kind, EntryKind::HardLink | EntryKind::Symlink);
        let content = if kind == EntryKind::File { content } else { Vec::new() };
        Member {
            entry: Entry {
                path,
                kind,
                mode,
                uid,
                gid,
                mtime,
                size: content.len() as u64,
                link: if is_link { link } else { Vec::new() },
                device: if is_device { device } else { (0, 0) },
                xattrs: xattrs.into_iter().collect(),
            },
            runs: if content.is_empty() { Vec::new() } else { vec![(0, content)] },
            complete: true,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_members_are_read_back(members in vec(any_member(), 0..6)) {
        let mut writer = Writer::new(Vec::new());
        for member in &members {
            writer.entry(&member.entry).unwrap();
            // In two pieces, to see that the padding comes once.
            for (_, run) in &member.runs {
                let (first, second) = run.split_at(run.len() / 3);
                writer.data(first).unwrap();
                writer.data(second).unwrap();
            }
        }
        let bytes = writer.finish().unwrap();
        let read = transcript(&bytes, &Limits::default(), || usize::MAX);
        prop_assert_eq!(read.end, Ok(true));
        prop_assert_eq!(read.members, members);
    }
}

/// The first entry of an archive that the writer began, and whether it has a PAX header.
fn written(entry: &Entry) -> (Entry, bool) {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).entry(entry).unwrap();
    let mut parser = Parser::new(Limits::default());
    match parser.next(&mut &bytes[..]) {
        Ok(Event::Entry(entry)) => (entry, bytes[156] == b'x'),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_fits_a_posix_header_has_no_extension() {
    let prefixed =
        |prefix: usize, name: usize| [&vec![b'p'; prefix][..], b"/", &vec![b'n'; name]].concat();
    let seconds = |seconds| Timestamp { seconds, nanos: 0 };
    let table = [
        (file(&[b'n'; 100], 0), false),
        (file(&[b'n'; 101], 0), true),
        (file(&prefixed(155, 100), 0), false),
        (file(&prefixed(156, 100), 0), true),
        (file(&prefixed(155, 101), 0), true),
        // A prefix cannot be empty, a name neither.
        (file(&prefixed(0, 100), 0), true),
        (file(&prefixed(100, 0), 0), true),
        (file("ä".as_bytes(), 0), true),
        (file(b"f", (1 << 33) - 1), false),
        (file(b"f", 1 << 33), true),
        (
            Entry {
                uid: (1 << 21) - 1,
                ..file(b"f", 0)
            },
            false,
        ),
        (
            Entry {
                gid: 1 << 21,
                ..file(b"f", 0)
            },
            true,
        ),
        (
            Entry {
                mtime: seconds((1 << 33) - 1),
                ..file(b"f", 0)
            },
            false,
        ),
        (
            Entry {
                mtime: seconds(1 << 33),
                ..file(b"f", 0)
            },
            true,
        ),
        (
            Entry {
                mtime: seconds(-1),
                ..file(b"f", 0)
            },
            true,
        ),
        (
            Entry {
                kind: EntryKind::Symlink,
                link: vec![b't'; 100],
                ..file(b"f", 0)
            },
            false,
        ),
        (
            Entry {
                kind: EntryKind::Symlink,
                link: vec![b't'; 101],
                ..file(b"f", 0)
            },
            true,
        ),
        (
            Entry {
                kind: EntryKind::CharDevice,
                device: ((1 << 21) - 1, 1),
                ..file(b"f", 0)
            },
            false,
        ),
        (
            Entry {
                kind: EntryKind::CharDevice,
                device: (1, 1 << 21),
                ..file(b"f", 0)
            },
            true,
        ),
    ];
    for (entry, extended) in table {
        assert_eq!(written(&entry), (entry, extended));
    }
}

#[test]
fn the_bytes_are_those_of_the_standard() {
    let entry = Entry {
        mtime: Timestamp {
            seconds: -2,
            nanos: 500_000_000,
        },
        xattrs: vec![
            (b"user.a".to_vec(), b"\0=\n".to_vec()),
            (b"user.b=%".to_vec(), b"ab".to_vec()),
        ],
        ..file(b"n\xff", 3)
    };
    let mut writer = Writer::new(Vec::new());
    writer.entry(&entry).unwrap();
    writer.data(b"abc").unwrap();
    let bytes = writer.finish().unwrap();
    let records: &[u8] = b"21 hdrcharset=BINARY\n11 path=n\xff\n14 mtime=-1.5\n\
        27 SCHILY.xattr.user.a=\0=\n\n37 LIBARCHIVE.xattr.user.b%3D%25=YWI\n";
    assert_eq!(&bytes[512..][..records.len()], records);
    assert_eq!(bytes.len(), 512 + 512 + 512 + 512 + 1024);
    assert_eq!(&bytes[257..265], b"ustar\x0000");
    let header = &bytes[1024..1536];
    assert_eq!(&header[..100][..3], b"n\xff\0");
    assert_eq!(&header[100..108], b"0000644\0");
    assert_eq!(&header[124..136], b"00000000003\0");
    assert_eq!(&header[136..148], b"00000000000\0");
    assert_eq!(&bytes[1536..1540], b"abc\0");
}

#[test]
fn the_length_of_a_record_counts_its_own_digits() {
    for length in (1..120).chain(900..1100).chain([9_990, 10_000]) {
        let path = vec![0xe4; length.min(4095)];
        let entry = Entry {
            xattrs: vec![(b"a".to_vec(), vec![b'v'; length])],
            ..file(&path, 0)
        };
        assert_eq!(written(&entry), (entry, true));
    }
}

#[test]
fn members_must_be_as_long_as_they_say() {
    let mut writer = Writer::new(Vec::new());
    writer.entry(&file(b"f", 5)).unwrap();
    writer.data(b"abc").unwrap();
    assert!(matches!(
        writer.data(b"def"),
        Err(WriteError::TooLong { excess: 1, .. })
    ));
    assert!(matches!(
        writer.entry(&file(b"g", 0)),
        Err(WriteError::TooShort { missing: 2, .. })
    ));
    assert!(matches!(
        writer.finish(),
        Err(WriteError::TooShort { missing: 2, .. })
    ));
}

#[test]
fn what_no_archive_can_hold_is_an_error() {
    let symlink = |link: &[u8]| Entry {
        kind: EntryKind::Symlink,
        link: link.to_vec(),
        ..file(b"l", 0)
    };
    let attribute = |name: &[u8]| Entry {
        xattrs: vec![(name.to_vec(), Vec::new())],
        ..file(b"f", 0)
    };
    let table = [
        (file(b"", 0), "path"),
        (file(b"a\0b", 0), "path"),
        (symlink(b""), "link target"),
        (symlink(b"a\0b"), "link target"),
        (attribute(b""), "attribute name"),
        (attribute(b"a\0b"), "attribute name"),
    ];
    for (entry, expected) in table {
        match Writer::new(io::sink()).entry(&entry) {
            Err(WriteError::Name { field, .. }) => assert_eq!(field, expected),
            other => panic!("{other:?}"),
        }
    }
    let error = Writer::new(io::sink()).entry(&file(b"f", u64::MAX));
    assert!(matches!(
        error,
        Err(WriteError::Size { size: u64::MAX, .. })
    ));
}

#[test]
fn a_failing_disk_is_an_error_that_names_the_member() {
    let mut small = [0u8; 700];
    let mut writer = Writer::new(&mut small[..]);
    writer.entry(&file(b"f", 300)).unwrap();
    let error = writer.data(&[1; 300]).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"failed to write the archive member "f""#
    );
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.downcast_ref::<io::Error>().is_some());
}
