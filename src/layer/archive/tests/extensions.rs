//! PAX, GNU long names and sparse files.

use super::super::forge::{Forge, Forged, Magic, pax_records};
use super::super::{ArchiveError, EntryKind, RecordFault, SparseFault, Timestamp};
use super::{contents, entries, error, name, parse};

#[test]
fn pax_records_override_the_header() {
    let bytes = Forge::new()
        .pax(&[
            (b"path", b"new\nname"),
            (b"uid", b"4000000000"),
            (b"gid", b"9"),
            (b"mtime", b"-1.25"),
            (b"atime", b"not looked at"),
            (b"size", b"3"),
            (b"hdrcharset", b"BINARY"),
            (b"comment", b""),
            (b"SCHILY.xattr.user.b", b"a=b\0\n"),
            (b"SCHILY.xattr.user.a", b""),
            (b"SCHILY.acl.access", b"user::rwx"),
            (b"RHT.security.selinux", b"label"),
        ])
        .add(Forged::new(b"old", b'0', 0), b"abc")
        .file(b"after", b"")
        .end();
    let entries = entries(&bytes);
    assert_eq!(entries.len(), 2);
    let entry = &entries[0];
    assert_eq!(entry.path, b"new\nname");
    assert_eq!((entry.uid, entry.gid, entry.size), (4_000_000_000, 9, 3));
    let mtime = Timestamp {
        seconds: -2,
        nanos: 750_000_000,
    };
    assert_eq!(entry.mtime, mtime);
    let xattrs = [
        (b"user.a".to_vec(), b"".to_vec()),
        (b"user.b".to_vec(), b"a=b\0\n".to_vec()),
    ];
    assert_eq!(entry.xattrs, xattrs);
    // They are of one member only.
    assert_eq!(entries[1], super::file(b"after", 0));
}

#[test]
fn an_attribute_given_twice_has_its_last_value() {
    let bytes = Forge::new()
        .pax(&[
            (b"SCHILY.xattr.user.a", b"1"),
            (b"SCHILY.xattr.user.b", b"1"),
            (b"LIBARCHIVE.xattr.user.a", b"Mg"),
            (b"SCHILY.xattr.user.a", b"3"),
        ])
        .file(b"f", b"")
        .end();
    let xattrs = [
        (b"user.a".to_vec(), b"3".to_vec()),
        (b"user.b".to_vec(), b"1".to_vec()),
    ];
    assert_eq!(entries(&bytes)[0].xattrs, xattrs);
}

#[test]
fn global_records_lie_beneath_local_ones() {
    let bytes = Forge::new()
        .extension(
            b'g',
            &pax_records(&[
                (b"mtime", b"7.5"),
                (b"uid", b"1"),
                (b"gid", b"2"),
                (b"comment", b"of git"),
            ]),
        )
        .file(b"plain", b"")
        .pax(&[
            (b"mtime", b""),
            (b"uid", b"5"),
            (b"SCHILY.xattr.user.b", b"l"),
        ])
        // A global header between a local one and its member is for both.
        .extension(b'g', &pax_records(&[(b"gid", b"3")]))
        .file(b"local", b"")
        .extension(b'g', &pax_records(&[(b"uid", b"")]))
        .file(b"last", b"")
        .end();
    let seen: Vec<_> = entries(&bytes)
        .into_iter()
        .map(|entry| (entry.uid, entry.gid, entry.mtime.seconds, entry.xattrs))
        .collect();
    let expected = [
        (1, 2, 7, vec![]),
        (5, 3, 0, vec![(b"user.b".to_vec(), b"l".to_vec())]),
        (0, 3, 7, vec![]),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn global_records_cannot_be_about_one_member() {
    for key in [
        &b"path"[..],
        b"linkpath",
        b"size",
        b"GNU.sparse.map",
        // Each member would have them, however many there are.
        b"SCHILY.xattr.user.a",
        b"LIBARCHIVE.xattr.user.a",
    ] {
        let bytes = Forge::new()
            .extension(b'g', &pax_records(&[(key, b"1")]))
            .file(b"f", b"")
            .end();
        let expected = ArchiveError::GlobalKey {
            key: name(key),
            at: 0,
        };
        assert_eq!(error(&bytes), expected);
    }
}

#[test]
fn broken_records_are_errors_not_skipped() {
    let value = |key: &[u8]| ArchiveError::RecordValue {
        key: name(key),
        at: 0,
    };
    let nul = |field: &[u8]| ArchiveError::EmbeddedNul {
        field: name(field),
        at: 0,
    };
    let record = |fault| ArchiveError::Record { fault, at: 0 };
    let table: &[(&[u8], ArchiveError)] = &[
        (b"nonsense", record(RecordFault::Length)),
        (b"99 path=f\n", record(RecordFault::Bounds)),
        (b"10 path=f\n\0\0", record(RecordFault::Length)),
        (b"10 path=a\x00", record(RecordFault::Newline)),
        (b"12 path=a\0b\n", nul(b"path")),
        (b"16 linkpath=a\0b\n", nul(b"linkpath")),
        (b"23 SCHILY.xattr.a\0b=cd\n", nul(b"SCHILY.xattr.a\0b")),
        (b"11 size=-1\n", value(b"size")),
        (b"11 size=+1\n", value(b"size")),
        (b"12 size=1.5\n", value(b"size")),
        (b"11 size= 1\n", value(b"size")),
        (b"28 size=9223372036854775808\n", value(b"size")),
        (b"13 mtime=now\n", value(b"mtime")),
        (b"29 mtime=9223372036854775808\n", value(b"mtime")),
        (b"10 uid=-1\n", value(b"uid")),
    ];
    for (body, expected) in table {
        let bytes = Forge::new().extension(b'x', body).file(b"f", b"").end();
        assert_eq!(error(&bytes), *expected, "{}", body.escape_ascii());
    }
    let bytes = Forge::new()
        .pax(&[(b"uid", b"4294967295")])
        .file(b"f", b"")
        .end();
    let expected = ArchiveError::OutOfRange {
        field: "uid",
        value: 0xffff_ffff,
        name: name(b"f"),
    };
    assert_eq!(error(&bytes), expected);
}

#[test]
fn a_pax_header_may_be_empty() {
    let bytes = Forge::new().extension(b'x', b"").file(b"f", b"abc").end();
    assert_eq!(contents(&bytes), [(b"f".to_vec(), b"abc".to_vec())]);
}

#[test]
fn devices_may_have_large_numbers() {
    let bytes = Forge::new()
        .pax(&[
            (b"SCHILY.devmajor", b"4294967295"),
            (b"SCHILY.devminor", b"3"),
        ])
        .add(Forged::new(b"c", b'3', 0), b"")
        .end();
    assert_eq!(entries(&bytes)[0].device, (u32::MAX, 3));
    let bytes = Forge::new()
        .pax(&[(b"SCHILY.devmajor", b"4294967296")])
        .add(Forged::new(b"c", b'3', 0), b"")
        .end();
    assert!(matches!(
        error(&bytes),
        ArchiveError::OutOfRange { field: "major", .. }
    ));
}

#[test]
fn gnu_long_names_and_links_replace_the_header() {
    let long_name = [b'n'; 700];
    let long_link = [b'l'; 600];
    let bytes = Forge::new()
        .extension(b'K', &[&long_link[..], b"\0"].concat())
        .extension(b'L', &[&long_name[..], b"\0"].concat())
        .add(Forged::new(b"n", b'2', 0).link(b"l").magic(Magic::Gnu), b"")
        .file(b"after", b"")
        .end();
    let entries = entries(&bytes);
    assert_eq!(entries[0].path, long_name);
    assert_eq!(entries[0].link, long_link);
    assert_eq!(entries[1].path, b"after");
    // An old directory by its slash, which only the long name shows.
    let bytes = Forge::new()
        .extension(b'L', b"long/\0")
        .add(Forged::new(b"lo", 0, 0).magic(Magic::Gnu), b"")
        .end();
    assert_eq!(super::entries(&bytes)[0].kind, EntryKind::Directory);
    // No name at all, or one without its NUL.
    let bytes = Forge::new()
        .extension(b'L', b"")
        .file(b"f", b"")
        .extension(b'L', b"whole")
        .file(b"w", b"")
        .end();
    let paths: Vec<_> = super::entries(&bytes)
        .into_iter()
        .map(|entry| entry.path)
        .collect();
    assert_eq!(paths, [&b"f"[..], b"whole"]);
}

/// Content of the sparse files below: 8192 bytes, data at 0 and 4096.
fn sparse_content() -> Vec<u8> {
    let mut content = vec![0; 8192];
    content[..4].copy_from_slice(b"head");
    content[4096..4099].copy_from_slice(b"end");
    content
}

fn sparse_in_data(map: &[u8], data: &[u8]) -> Vec<u8> {
    let mut body = map.to_vec();
    body.resize(map.len().next_multiple_of(512), 0);
    body.extend_from_slice(data);
    body
}

const VERSION_1_0: &[(&[u8], &[u8])] = &[
    (b"GNU.sparse.major", b"1"),
    (b"GNU.sparse.minor", b"0"),
    (b"GNU.sparse.name", b"real"),
    (b"GNU.sparse.realsize", b"8192"),
];

#[test]
fn sparse_files_of_every_version_come_as_data_with_jumps() {
    let old = |extended: &[u8], size: u64| {
        Forged::new(b"real", b'S', size)
            .magic(Magic::Gnu)
            .set(386, b"00000000000\0")
            .set(398, b"00000000004\0")
            .set(482, extended)
            .set(483, b"00000020000\0")
    };
    let mut block = [0u8; 512];
    block[..12].copy_from_slice(b"00000010000\0");
    block[12..24].copy_from_slice(b"00000000003\0");
    let mut first_block = [0u8; 512];
    first_block[504] = 1;
    let table = [
        Forge::new()
            .pax(VERSION_1_0)
            .file(b"x", &sparse_in_data(b"2\n0\n4\n4096\n3\n", b"headend")),
        Forge::new().pax(VERSION_1_0).file(
            b"x",
            &sparse_in_data(b"3\n0\n4\n4096\n3\n8192\n0\n", b"headend"),
        ),
        Forge::new()
            .pax(&[
                (b"GNU.sparse.size", b"8192"),
                (b"GNU.sparse.numblocks", b"2"),
                (b"GNU.sparse.map", b"0,4,4096,3"),
            ])
            .file(b"real", b"headend"),
        Forge::new()
            .pax(&[
                (b"GNU.sparse.size", b"8192"),
                (b"GNU.sparse.numblocks", b"2"),
                (b"GNU.sparse.offset", b"0"),
                (b"GNU.sparse.numbytes", b"4"),
                (b"GNU.sparse.offset", b"4096"),
                (b"GNU.sparse.numbytes", b"3"),
            ])
            .file(b"real", b"headend"),
        Forge::new()
            .raw(&old(b"\x01", 7).block())
            .raw(&block)
            .raw(&sparse_in_data(b"", b"headend"))
            .raw(&[0; 505]),
        // An extension block may be empty.
        Forge::new()
            .raw(&old(b"\x01", 7).block())
            .raw(&first_block)
            .raw(&block)
            .raw(b"headend")
            .raw(&[0; 505]),
    ];
    for forge in table {
        let bytes = forge.file(b"after", b"it").end();
        let expected = [
            (b"real".to_vec(), sparse_content()),
            (b"after".to_vec(), b"it".to_vec()),
        ];
        assert_eq!(contents(&bytes), expected);
        let runs = &parse(&bytes).members[0].runs;
        assert_eq!(runs[..], [(0, b"head".to_vec()), (4096, b"end".to_vec())]);
    }
}

#[test]
fn a_sparse_file_may_be_one_hole() {
    let bytes = Forge::new()
        .pax(VERSION_1_0)
        .file(b"x", &sparse_in_data(b"0\n", b""))
        .pax(&[(b"GNU.sparse.size", b"5"), (b"GNU.sparse.numblocks", b"0")])
        .file(b"y", b"")
        .end();
    let expected = [
        (b"real".to_vec(), vec![0; 8192]),
        (b"y".to_vec(), vec![0; 5]),
    ];
    assert_eq!(contents(&bytes), expected);
    assert!(
        parse(&bytes)
            .members
            .iter()
            .all(|member| member.runs.is_empty())
    );
}

#[test]
fn sparse_descriptions_that_contradict_are_errors() {
    let in_data = |map: &[u8], data: &[u8]| {
        Forge::new()
            .pax(VERSION_1_0)
            .file(b"x", &sparse_in_data(map, data))
    };
    let old = |magic| {
        Forged::new(b"real", b'S', 0)
            .magic(magic)
            .set(483, b"00000020000\0")
    };
    let table = [
        (in_data(b"2\n0\n4\n2\n3\n", b"headend"), SparseFault::Order),
        (in_data(b"1\n8192\n1\n", b"x"), SparseFault::BeyondEnd),
        (in_data(b"1\n0\n5\n", b"head"), SparseFault::StoredLength),
        (in_data(b"1\n0\n3\n", b"head"), SparseFault::StoredLength),
        (in_data(b"1\nx\n", b""), SparseFault::Number),
        (in_data(b"", b""), SparseFault::Number),
        // The map is longer than the member.
        (
            Forge::new().pax(VERSION_1_0).file(b"x", b"2\n0\n4\n"),
            SparseFault::Number,
        ),
        // The map's padding is not in the member.
        (
            Forge::new().pax(VERSION_1_0).file(b"x", b"0\n"),
            SparseFault::StoredLength,
        ),
        (
            Forge::new()
                .pax(VERSION_1_0)
                .add(Forged::new(b"x", b'5', 0), b""),
            SparseFault::NotAFile,
        ),
        (
            Forge::new().add(old(Magic::Ustar), b""),
            SparseFault::NotGnu,
        ),
        (Forge::new().add(old(Magic::V7), b""), SparseFault::NotGnu),
        (
            Forge::new().add(old(Magic::Gnu).set(483, &[0xff; 12]), b""),
            SparseFault::Size,
        ),
        (
            Forge::new().add(old(Magic::Gnu).set(386, b"1").set(398, b"x"), b""),
            SparseFault::Number,
        ),
        (
            Forge::new().pax(VERSION_1_0).add(old(Magic::Gnu), b""),
            SparseFault::Mixed,
        ),
    ];
    for (index, (forge, expected)) in table.into_iter().enumerate() {
        match error(&forge.end()) {
            ArchiveError::Sparse { fault, .. } => assert_eq!(fault, expected, "case {index}"),
            other => panic!("case {index}: {other}"),
        }
    }
}
