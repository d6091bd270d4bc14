//! What the parser makes of hand-made archives.

mod advisories;
mod extensions;
mod limits;
mod writer;

use super::check::{Transcript, check, transcript};
use super::forge::{Forge, Forged, Magic, seeds};
use super::{ArchiveError, Entry, EntryKind, EntryName, Timestamp};
use crate::layer::limits::Limits;
use proptest::prelude::*;

/// Parses in one piece, and in all the ways that `check` has.
fn parse(bytes: &[u8]) -> Transcript {
    check(bytes);
    transcript(bytes, &Limits::default(), || usize::MAX)
}

/// The entries of an archive without errors.
fn entries(bytes: &[u8]) -> Vec<Entry> {
    let transcript = parse(bytes);
    assert_eq!(transcript.end.as_ref().err(), None);
    let members = transcript.members.into_iter();
    members.map(|member| member.entry).collect()
}

/// Paths and contents of an archive without errors.
fn contents(bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let transcript = parse(bytes);
    assert_eq!(transcript.end.as_ref().err(), None);
    let members = transcript.members.iter().enumerate();
    members
        .map(|(index, member)| (member.entry.path.clone(), transcript.content(index)))
        .collect()
}

fn error(bytes: &[u8]) -> ArchiveError {
    parse(bytes).end.unwrap_err()
}

fn name(text: &[u8]) -> EntryName {
    EntryName(text.to_vec())
}

fn file(path: &[u8], size: u64) -> Entry {
    Entry {
        path: path.to_vec(),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

#[test]
fn every_type_has_its_kind() {
    let table: &[(u8, &[u8], Magic, EntryKind)] = &[
        (b'0', b"f", Magic::Ustar, EntryKind::File),
        (0, b"f", Magic::V7, EntryKind::File),
        (b'7', b"f", Magic::Ustar, EntryKind::File),
        // Only the old type says "directory" by a slash, as Go has it.
        (0, b"f/", Magic::V7, EntryKind::Directory),
        (0, b"f/", Magic::Ustar, EntryKind::Directory),
        (b'0', b"f/", Magic::Ustar, EntryKind::File),
        (b'1', b"f", Magic::Ustar, EntryKind::HardLink),
        (b'2', b"f", Magic::Ustar, EntryKind::Symlink),
        (b'3', b"f", Magic::Ustar, EntryKind::CharDevice),
        (b'4', b"f", Magic::Ustar, EntryKind::BlockDevice),
        (b'5', b"f", Magic::Ustar, EntryKind::Directory),
        (b'6', b"f", Magic::Ustar, EntryKind::Fifo),
        (b'D', b"f", Magic::Gnu, EntryKind::Directory),
    ];
    for (kind, path, magic, expected) in table {
        let header = Forged::new(path, *kind, 0).magic(*magic).link(b"t");
        let entries = entries(&Forge::new().add(header, b"").end());
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].kind, *expected, "type {kind}");
        assert_eq!(entries[0].path, *path);
        let has_link = matches!(expected, EntryKind::HardLink | EntryKind::Symlink);
        assert_eq!(entries[0].link, if has_link { &b"t"[..] } else { b"" });
    }
}

#[test]
fn types_that_layers_do_not_have_are_refused() {
    for kind in [
        b'8', b'9', b'A', b'E', b'I', b'N', b'X', b'Z', b' ', 1, 0xff,
    ] {
        let bytes = Forge::new().add(Forged::new(b"f", kind, 3), b"abc").end();
        let expected = ArchiveError::UnknownKind {
            kind,
            name: name(b"f"),
        };
        assert_eq!(error(&bytes), expected);
    }
    let bytes = Forge::new().add(Forged::new(b"f", b'M', 3), b"abc").end();
    let expected = ArchiveError::MultiVolume { name: name(b"f") };
    assert_eq!(error(&bytes), expected);
}

#[test]
fn the_fields_of_a_header_are_read() {
    let header = Forged::new(b"dev", b'4', 0)
        .set(100, b"0106755\0")
        .set(108, b"0001750\0")
        .set(116, b"\x80\0\0\0\x10\0\0\0")
        .set(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe")
        .set(329, b"0000010\0")
        .set(337, b"0000377\0");
    let expected = Entry {
        kind: EntryKind::BlockDevice,
        mode: 0o6755,
        uid: 1000,
        gid: 0x1000_0000,
        mtime: Timestamp {
            seconds: -2,
            nanos: 0,
        },
        device: (8, 255),
        ..file(b"dev", 0)
    };
    assert_eq!(entries(&Forge::new().add(header, b"").end()), [expected]);
}

#[test]
fn names_fill_their_fields_and_take_a_prefix() {
    let hundred = [b'n'; 100];
    let full_prefix = [b'p'; 155];
    let joined = [&full_prefix[..], b"/", &hundred].concat();
    let star_prefix = [b'p'; 131];
    let header = || Forged::new(&hundred, b'0', 0);
    let table = [
        (header(), hundred.to_vec()),
        (header().set(345, &full_prefix), joined),
        // Version 7 and GNU have other things there.
        (
            header().set(345, &full_prefix).magic(Magic::V7),
            hundred.to_vec(),
        ),
        (
            header()
                .set(345, b"00000000001 00000000000\0")
                .magic(Magic::Gnu),
            hundred.to_vec(),
        ),
        // Go before 1.8.
        (
            header().set(345, b"old/go").magic(Magic::Gnu),
            [b"old/go/", &hundred[..]].concat(),
        ),
        (
            header().set(345, b"n\xc3\xb6n").magic(Magic::Gnu),
            hundred.to_vec(),
        ),
        // Star's prefix is shorter, with times behind it.
        (
            header()
                .set(345, &star_prefix)
                .set(476, b"00000000000 00000000000\0")
                .set(508, b"tar\0"),
            [&star_prefix[..], b"/", &hundred].concat(),
        ),
        // What an earlier header left behind the NUL is no part of the name.
        (Forged::new(b"short\0leftover", b'0', 0), b"short".to_vec()),
        (Forged::new(b"\xff\xfe", b'0', 0), b"\xff\xfe".to_vec()),
    ];
    for (header, path) in table {
        let entries = entries(&Forge::new().add(header, b"").end());
        assert_eq!(entries[0].path, path, "{}", path.escape_ascii());
    }
}

#[test]
fn checksums_may_be_signed_and_must_be_right() {
    let unsigned = Forged::new(b"\xe9\xe9", b'0', 0).block();
    let digits = std::str::from_utf8(&unsigned[148..154]).unwrap();
    let sum = u32::from_str_radix(digits, 8).unwrap();
    let with = |sum: u32| {
        let mut block = unsigned;
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Forge::new().raw(&block).end()
    };
    assert_eq!(entries(&with(sum)).len(), 1);
    assert_eq!(entries(&with(sum - 512)).len(), 1);
    for wrong in [sum - 1, sum + 1, sum - 256, 0] {
        let end = transcript(&with(wrong), &Limits::default(), || usize::MAX).end;
        assert_eq!(end, Err(ArchiveError::Checksum { at: 0 }));
    }
}

#[test]
fn numbers_that_make_no_sense_are_errors() {
    let number = |field| ArchiveError::Number { field, at: 0 };
    let header = || Forged::new(b"f", b'0', 0);
    let range = |field, value| ArchiveError::OutOfRange {
        field,
        value,
        name: name(b"f"),
    };
    let table = [
        (header().set(100, b"rw-r--r-"), number("mode")),
        (header().set(108, b"root\0\0\0\0"), number("uid")),
        (header().set(116, b"-1\0\0\0\0\0\0"), number("gid")),
        (header().set(124, b"0000000000z\0"), number("size")),
        (header().set(124, &[0xff; 12]), number("size")),
        (header().set(136, b"yesterday..."), number("mtime")),
        (
            header().set(136, b"\x80\0\0\0\x80\0\0\0\0\0\0\0"),
            number("mtime"),
        ),
        (
            header().set(108, b"\x80\0\0\x01\0\0\0\0"),
            range("uid", 1 << 32),
        ),
        (header().set(116, &[0xff; 8]), range("gid", -1)),
        // chown(2) takes it for "leave the owner".
        (
            header().set(108, b"\x80\0\0\0\xff\xff\xff\xff"),
            range("uid", 0xffff_ffff),
        ),
        (
            header().set(156, b"3").set(329, b"c\0\0\0\0\0\0\0"),
            number("device"),
        ),
        (
            header().set(156, b"3").set(337, &[0xff; 8]),
            range("minor", -1),
        ),
    ];
    for (header, expected) in table {
        assert_eq!(error(&Forge::new().add(header, b"").end()), expected);
    }
}

#[test]
fn what_has_no_data_has_none_whatever_its_size_says() {
    for kind in b'1'..=b'6' {
        let header = Forged::new(b"special", kind, 512).link(b"t");
        let bytes = Forge::new().raw(&header.block()).file(b"f", b"abc").end();
        let entries = entries(&bytes);
        assert_eq!(entries.len(), 2, "type {}", char::from(kind));
        assert_eq!((entries[0].size, entries[1].size), (0, 3));
    }
    // The list of names in a GNU dump directory is data, but not ours.
    let bytes = Forge::new()
        .add(Forged::new(b"dump", b'D', 4).magic(Magic::Gnu), b"Yf\0\0")
        .file(b"f", b"abc");
    let paths: Vec<_> = contents(&bytes.clone().end());
    assert_eq!(
        paths,
        [(b"dump".to_vec(), vec![]), (b"f".to_vec(), b"abc".to_vec())]
    );
    let label = Forge::new().add(Forged::new(b"label", b'V', 3).magic(Magic::Gnu), b"abc");
    assert_eq!(contents(&label.raw(&bytes.bytes()).end()), paths);
}

#[test]
fn data_is_a_slice_of_the_input() {
    let body: Vec<u8> = (0..2000u32).map(|number| number as u8).collect();
    let bytes = Forge::new().file(b"f", &body).end();
    let mut parser = super::Parser::new(Limits::default());
    let mut input = &bytes[..];
    assert!(matches!(
        parser.next(&mut input),
        Ok(super::Event::Entry(_))
    ));
    let Ok(super::Event::Data {
        offset: 0,
        bytes: data,
    }) = parser.next(&mut input)
    else {
        panic!("data follows the entry");
    };
    assert_eq!(data.as_ptr(), bytes[512..].as_ptr());
    assert_eq!(data, body);
}

#[test]
fn the_archive_ends_after_zeros_or_between_members() {
    let one = || Forge::new().file(b"f", b"abc");
    let zeros = [0u8; 512];
    let table: &[(Vec<u8>, Result<bool, ArchiveError>)] = &[
        (Vec::new(), Ok(false)),
        (one().bytes(), Ok(false)),
        (one().raw(&zeros).bytes(), Ok(false)),
        (one().end(), Ok(true)),
        (one().raw(&[0; 10240]).bytes(), Ok(true)),
        // Whatever comes behind the end is not looked at.
        (
            Forge::new().raw(&one().end()).raw(b"garbage").bytes(),
            Ok(true),
        ),
        (
            one().raw(&zeros).file(b"g", b"").bytes(),
            Err(ArchiveError::LoneZeroBlock { at: 1536 }),
        ),
        (
            one().raw(&zeros[..511]).bytes(),
            Err(ArchiveError::Truncated { at: 1535 }),
        ),
        (
            one().raw(&zeros).raw(&zeros[..1]).bytes(),
            Err(ArchiveError::Truncated { at: 1537 }),
        ),
        (
            one().raw(&[b'x'; 512]).bytes(),
            Err(ArchiveError::Checksum { at: 1024 }),
        ),
    ];
    for (bytes, expected) in table {
        let transcript = parse(bytes);
        assert_eq!(transcript.end, *expected);
        assert_eq!(transcript.members.len(), usize::from(!bytes.is_empty()));
    }
}

#[test]
fn an_archive_cut_anywhere_ends_early_or_is_an_error() {
    for seed in seeds() {
        let whole = transcript(&seed, &Limits::default(), || usize::MAX);
        assert_eq!(whole.end, Ok(true));
        for length in 0..seed.len() {
            let cut = transcript(&seed[..length], &Limits::default(), || usize::MAX);
            // Cut, it never shows anything that the whole does not have.
            let complete = cut.members.iter().filter(|member| member.complete).count();
            assert_eq!(cut.members[..complete], whole.members[..complete]);
            match cut.end {
                // The last member may lack its padding, no more.
                Ok(_) => assert_eq!(complete, cut.members.len(), "cut at {length}"),
                Err(ArchiveError::Truncated { at } | ArchiveError::OrphanExtension { at }) => {
                    assert_eq!(at, length as u64);
                }
                Err(error) => panic!("cut at {length}: {error}"),
            }
        }
    }
}

#[test]
fn a_cut_inside_a_header_or_data_is_an_error() {
    let bytes = Forge::new()
        .pax(&[(b"path", b"f")])
        .file(b"f", &[1; 600])
        .end();
    let cut = |length: usize| parse(&bytes[..length]).end;
    for length in (1..512).chain(513..515).chain(1025..1536).chain(1536..2136) {
        assert_eq!(
            cut(length),
            Err(ArchiveError::Truncated { at: length as u64 }),
            "cut at {length}"
        );
    }
    // Between an extension header's data and its member.
    for length in [600, 1024] {
        assert_eq!(
            cut(length),
            Err(ArchiveError::OrphanExtension { at: length as u64 })
        );
    }
    for length in [0, 2136, 2200, 2560, 3072] {
        assert_eq!(cut(length), Ok(false), "cut at {length}");
    }
}

#[test]
fn seeds_hold_what_they_are_meant_to() {
    let counts: Vec<usize> = seeds().iter().map(|seed| entries(seed).len()).collect();
    assert_eq!(counts, [0, 7, 2, 2, 2, 2, 2, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// `check` itself compares the events of different cuts; here the cuts
    /// are the generator's, so that they shrink.
    #[test]
    fn events_do_not_depend_on_how_the_stream_is_cut(
        seed in 0..seeds().len(),
        pieces in proptest::collection::vec(1usize..1500, 1..12),
    ) {
        let bytes = &seeds()[seed];
        let mut next = pieces.iter().cycle();
        let cut = transcript(bytes, &Limits::default(), || *next.next().unwrap());
        prop_assert_eq!(cut, transcript(bytes, &Limits::default(), || usize::MAX));
    }

    #[test]
    fn random_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        check(&bytes);
    }
}
