//! Every limit: what is just inside is taken, what is just outside has the
//! limit's own error.

use super::super::check::transcript;
use super::super::forge::{Forge, Forged, Magic, pax_records};
use super::super::{ArchiveError, ExtensionKind, Parser};
use super::name;
use crate::layer::limits::Limits;

fn end(forge: Forge, limits: &Limits) -> Result<bool, ArchiveError> {
    transcript(&forge.end(), limits, || usize::MAX).end
}

#[test]
fn members_are_counted() {
    let limits = Limits {
        max_entries: 2,
        ..Limits::default()
    };
    let two = Forge::new().file(b"a", b"").file(b"b", b"");
    assert_eq!(end(two.clone(), &limits), Ok(true));
    let expected = ArchiveError::TooManyEntries {
        limit: 2,
        name: name(b"c"),
    };
    assert_eq!(end(two.file(b"c", b""), &limits), Err(expected));
}

#[test]
fn paths_and_targets_are_bounded() {
    let limits = Limits {
        max_path_bytes: 8,
        ..Limits::default()
    };
    let link = |target: &[u8]| Forge::new().add(Forged::new(b"l", b'2', 0).link(target), b"");
    assert_eq!(end(Forge::new().file(b"12345678", b""), &limits), Ok(true));
    assert_eq!(end(link(b"12345678"), &limits), Ok(true));
    let too_long = ArchiveError::PathTooLong {
        limit: 8,
        seen: 9,
        name: name(b"123456789"),
    };
    for forge in [
        Forge::new().file(b"123456789", b""),
        Forge::new().pax(&[(b"path", b"123456789")]).file(b"f", b""),
        Forge::new().extension(b'L', b"123456789\0").file(b"f", b""),
    ] {
        assert_eq!(end(forge, &limits), Err(too_long.clone()));
    }
    let too_long = ArchiveError::LinkTooLong {
        limit: 8,
        seen: 9,
        name: name(b"l"),
    };
    assert_eq!(end(link(b"123456789"), &limits), Err(too_long));
}

// CVE-2022-2879 (Go): a header that claims gigabytes was read into memory.
#[test]
fn an_extension_header_is_refused_by_what_it_claims() {
    let limits = Limits {
        max_header_bytes: 100,
        ..Limits::default()
    };
    for (kind, extension) in [
        (b'x', ExtensionKind::Pax),
        (b'g', ExtensionKind::GlobalPax),
        (b'L', ExtensionKind::LongName),
        (b'K', ExtensionKind::LongLink),
    ] {
        for claim in [101, 0o77_777_777_777] {
            // Not a byte of it has come.
            let header = Forged::new(b"h", kind, claim).block();
            let mut parser = Parser::new(limits.clone());
            let expected = ArchiveError::HeaderTooLarge {
                limit: 100,
                seen: claim,
                kind: extension,
                at: 0,
            };
            assert_eq!(parser.next(&mut &header[..]), Err(expected));
            assert_eq!(parser.held_bytes(), 0);
        }
    }
    let body = pax_records(&[(b"comment", &[b'c'; 38]), (b"comment", &[b'c'; 38])]);
    assert_eq!(body.len(), 100);
    let fits = Forge::new().extension(b'x', &body).file(b"f", b"");
    assert_eq!(end(fits, &limits), Ok(true));
}

#[test]
fn memory_follows_what_arrived_not_what_was_claimed() {
    let header = Forged::new(b"h", b'x', 1 << 20).block();
    let mut parser = Parser::new(Limits::default());
    let mut input = &[&header[..], b"12345"].concat()[..];
    assert_eq!(parser.next(&mut input), Ok(super::super::Event::NeedInput));
    assert!(parser.held_bytes() < 100);
}

#[test]
fn attributes_are_bounded_together() {
    let limits = Limits {
        max_xattr_bytes: 8,
        ..Limits::default()
    };
    let with = |value: &'static [u8]| {
        let records: [(&[u8], &[u8]); 2] =
            [(b"SCHILY.xattr.ab", b"12"), (b"SCHILY.xattr.cd", value)];
        Forge::new()
            .extension(b'x', &pax_records(&records))
            .file(b"f", b"")
    };
    assert_eq!(end(with(b"12"), &limits), Ok(true));
    let expected = ArchiveError::XattrsTooLarge {
        limit: 8,
        seen: 9,
        name: name(b"f"),
    };
    assert_eq!(end(with(b"123"), &limits), Err(expected));
}

#[test]
fn sparse_segments_are_bounded_in_every_version() {
    let limits = Limits {
        max_sparse_segments: 2,
        ..Limits::default()
    };
    let versions = |segments: usize| {
        let count = segments.to_string();
        let list = vec!["1,0"; segments].join(",");
        let mut pairs: Vec<(&[u8], &[u8])> = vec![
            (b"GNU.sparse.size", b"9"),
            (b"GNU.sparse.numblocks", count.as_bytes()),
        ];
        pairs.extend(
            [
                (&b"GNU.sparse.offset"[..], &b"1"[..]),
                (b"GNU.sparse.numbytes", b"0"),
            ]
            .repeat(segments),
        );
        let mut in_data = format!("{count}\n{}", "1\n0\n".repeat(segments)).into_bytes();
        in_data.resize(512, 0);
        let mut old = Forged::new(b"f", b'S', 0)
            .magic(Magic::Gnu)
            .set(483, b"11\0");
        for index in 0..segments {
            old = old
                .set(386 + 24 * index, b"1\0")
                .set(398 + 24 * index, b"0\0");
        }
        [
            Forge::new()
                .pax(&[
                    (b"GNU.sparse.size", b"9"),
                    (b"GNU.sparse.numblocks", count.as_bytes()),
                    (b"GNU.sparse.map", list.as_bytes()),
                ])
                .file(b"f", b""),
            Forge::new().pax(&pairs).file(b"f", b""),
            Forge::new()
                .pax(&[
                    (b"GNU.sparse.realsize", b"9"),
                    (b"GNU.sparse.major", b"1"),
                    (b"GNU.sparse.minor", b"0"),
                ])
                .file(b"f", &in_data),
            Forge::new().add(old, b""),
        ]
    };
    for forge in versions(2) {
        assert_eq!(end(forge, &limits), Ok(true));
    }
    for forge in versions(3) {
        match end(forge, &limits) {
            Err(ArchiveError::TooManySegments {
                limit: 2, seen: 3, ..
            }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn apparent_sizes_are_summed() {
    let limits = Limits {
        max_apparent_bytes: 10,
        ..Limits::default()
    };
    let six = Forge::new().file(b"a", b"123456");
    assert_eq!(end(six.clone().file(b"b", b"1234"), &limits), Ok(true));
    let too_large = |seen| {
        Err(ArchiveError::ApparentTooLarge {
            limit: 10,
            seen,
            name: name(b"b"),
        })
    };
    assert_eq!(
        end(six.clone().file(b"b", b"12345"), &limits),
        too_large(11)
    );
    // Holes count, and are refused before the map is read.
    let hole = |size: &[u8]| {
        let records: &[(&[u8], &[u8])] = &[
            (b"GNU.sparse.realsize", size),
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
        ];
        six.clone()
            .pax(records)
            .add(Forged::new(b"b", b'0', 512), b"")
    };
    assert_eq!(
        end(hole(b"9223372036854775807"), &limits),
        too_large((1 << 63) + 5)
    );
    let old = Forged::new(b"b", b'S', 0)
        .magic(Magic::Gnu)
        .set(483, b"5\0");
    assert_eq!(end(six.clone().add(old, b""), &limits), too_large(11));
    let claimed = six
        .pax(&[(b"size", b"9223372036854775807")])
        .file(b"b", b"");
    assert_eq!(end(claimed, &limits), too_large((1 << 63) + 5));
}
