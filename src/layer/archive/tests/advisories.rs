//! The published ways in which tar readers were led astray, by their names.
//! (Those about what is done with a name, such as RUSTSEC-2021-0080, CVE-2025-59825
//! and CVE-2026-33056, are the unpacker's.)

use super::super::forge::{Forge, Forged, Magic, pax_records};
use super::super::{ArchiveError, ExtensionKind};
use super::{contents, entries, error, name};

/// An archive inside an archive: what a reader finds that looks in the data.
fn smuggled() -> Vec<u8> {
    Forge::new().file(b"smuggled", b"evil").end()
}

// TARmageddon: the header says that there is no data, PAX says that there is;
// readers that went by the header took the data for members.
#[test]
fn cve_2025_62518_pax_size_is_where_the_next_header_is() {
    let inner = smuggled();
    let bytes = Forge::new()
        .pax(&[(b"size", inner.len().to_string().as_bytes())])
        .add(Forged::new(b"outer.tar", b'0', 0), &inner)
        .file(b"after", b"it")
        .end();
    let expected = [
        (b"outer.tar".to_vec(), inner),
        (b"after".to_vec(), b"it".to_vec()),
    ];
    assert_eq!(contents(&bytes), expected);
}

// The `tar` crate took the PAX size only where the header's was zero.
#[test]
fn cve_2026_33055_pax_size_counts_beside_a_header_size() {
    let inner = smuggled();
    for header_size in [1, 512, 1024, 1 << 30] {
        let bytes = Forge::new()
            .pax(&[(b"size", inner.len().to_string().as_bytes())])
            .add(Forged::new(b"outer.tar", b'0', header_size), &inner)
            .file(b"after", b"it")
            .end();
        let paths: Vec<_> = entries(&bytes)
            .into_iter()
            .map(|entry| entry.path)
            .collect();
        assert_eq!(paths, [&b"outer.tar"[..], b"after"]);
    }
    // Also downwards, to nothing.
    let bytes = Forge::new()
        .pax(&[(b"size", b"0")])
        .raw(&Forged::new(b"empty", b'0', 512).block())
        .file(b"after", b"it")
        .end();
    let expected = [
        (b"empty".to_vec(), vec![]),
        (b"after".to_vec(), b"it".to_vec()),
    ];
    assert_eq!(contents(&bytes), expected);
}

// RUSTSEC-2026-0112 (GHSA-fp55-jw48-c537) and GHSA-3cv2-h65g-fgmm: a PAX size
// was taken for that of the GNU header between it and its member.
#[test]
fn ghsa_3cv2_h65g_fgmm_pax_size_is_not_of_other_extension_headers() {
    let bytes = Forge::new()
        .pax(&[(b"size", b"2048")])
        .extension(b'L', b"longname.txt\0")
        .extension(b'g', &pax_records(&[(b"comment", b"c")]))
        .add(Forged::new(b"file_a", b'0', 16), &[b'A'; 2048])
        .file(b"file_b", b"B")
        .end();
    let expected = [
        (b"longname.txt".to_vec(), vec![b'A'; 2048]),
        (b"file_b".to_vec(), b"B".to_vec()),
    ];
    assert_eq!(contents(&bytes), expected);
    // Nor of what is skipped, nor of the member behind that.
    let bytes = Forge::new()
        .pax(&[(b"size", b"512"), (b"uid", b"7")])
        .add(Forged::new(b"label", b'V', 0).magic(Magic::Gnu), &[0; 512])
        .file(b"f", b"abc")
        .end();
    let entries = entries(&bytes);
    assert_eq!((entries[0].size, entries[0].uid), (3, 0));
}

// GHSA-6gx3-4362-rf54: malformed PAX records were passed over in silence, and
// with them the name or size that other readers still saw.
#[test]
fn ghsa_6gx3_4362_rf54_malformed_records_are_not_skipped() {
    for body in [
        &b"12 path=evil\n"[..],
        b"14 path=evil\n9 size=x\n",
        b"13 path=evil",
        b"path=evil\n",
    ] {
        let bytes = Forge::new().extension(b'x', body).file(b"good", b"").end();
        assert!(
            matches!(
                error(&bytes),
                ArchiveError::Record { .. } | ArchiveError::RecordValue { .. }
            ),
            "{}",
            body.escape_ascii()
        );
    }
}

// One reader shows the name up to the NUL, another the whole or the header's.
#[test]
fn names_with_a_nul_inside_are_refused() {
    for (kind, body) in [
        (b'L', &b"shown\0hidden\0"[..]),
        (b'K', b"shown\0hidden"),
        (b'x', b"21 path=shown\0hidden\n"),
        (b'x', b"25 linkpath=shown\0hidden\n"),
    ] {
        let bytes = Forge::new()
            .extension(kind, body)
            .add(Forged::new(b"l", b'2', 0).link(b"t"), b"")
            .end();
        assert!(matches!(
            error(&bytes),
            ArchiveError::EmbeddedNul { at: 0, .. }
        ));
    }
}

// Readers differ in whether the first or the last of them counts, and in
// whether PAX or GNU does.
#[test]
fn a_member_has_one_name() {
    for (kind, extension) in [
        (b'x', ExtensionKind::Pax),
        (b'L', ExtensionKind::LongName),
        (b'K', ExtensionKind::LongLink),
    ] {
        let bytes = Forge::new()
            .extension(kind, b"")
            .extension(kind, b"")
            .file(b"f", b"")
            .end();
        let expected = ArchiveError::DuplicateExtension {
            kind: extension,
            at: 512,
        };
        assert_eq!(error(&bytes), expected);
    }
    let two_names = |gnu: &[u8]| {
        Forge::new()
            .pax(&[(b"path", b"pax")])
            .extension(b'L', gnu)
            .file(b"f", b"")
            .end()
    };
    let expected = ArchiveError::ConflictingNames {
        pax: name(b"pax"),
        gnu: name(b"gnu"),
    };
    assert_eq!(error(&two_names(b"gnu\0")), expected);
    assert_eq!(entries(&two_names(b"pax\0"))[0].path, b"pax");
    let two_targets = Forge::new()
        .extension(b'K', b"gnu\0")
        .pax(&[(b"linkpath", b"pax")])
        .add(Forged::new(b"l", b'2', 0), b"")
        .end();
    assert_eq!(error(&two_targets), expected);
}

// An extension header left over at the end would be for whatever is appended.
#[test]
fn an_extension_header_needs_its_member() {
    let alone = Forge::new().file(b"f", b"").pax(&[(b"path", b"x")]);
    let expected = ArchiveError::OrphanExtension { at: 1536 };
    assert_eq!(error(&alone.clone().end()), expected);
    assert_eq!(error(&alone.bytes()), expected);
}

// CVE-2025-8194 (Python): a negative size led the reader back to where it was.
#[test]
fn cve_2025_8194_negative_sizes_are_refused() {
    for kind in [b'0', b'x', b'L', b'1', b'5'] {
        let header = Forged::new(b"f", kind, 0).set(124, &[0xff; 12]);
        let expected = ArchiveError::Number {
            field: "size",
            at: 0,
        };
        assert_eq!(error(&Forge::new().add(header, b"").end()), expected);
    }
}

// CVE-2022-48303 (GNU tar): a base-256 number cut short by its field's end.
#[test]
fn cve_2022_48303_base_256_times_in_version_7_headers() {
    let header = Forged::new(b"f", b'0', 0)
        .magic(Magic::V7)
        .set(136, &[0x80; 12]);
    let expected = ArchiveError::Number {
        field: "mtime",
        at: 0,
    };
    assert_eq!(error(&Forge::new().add(header, b"").end()), expected);
}

// CVE-2019-9923 (GNU tar): sparse records without what they refer to.
#[test]
fn cve_2019_9923_sparse_records_in_parts_are_refused() {
    for records in [
        &[(&b"GNU.sparse.numbytes"[..], &b"1"[..])][..],
        &[(b"GNU.sparse.offset", b"1")],
        &[(b"GNU.sparse.map", b"0,1")],
        &[(b"GNU.sparse.name", b"f")],
        &[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")],
    ] {
        let bytes = Forge::new().pax(records).file(b"f", b"a").end();
        assert!(matches!(
            error(&bytes),
            ArchiveError::Sparse { .. } | ArchiveError::RecordValue { .. }
        ));
    }
}

// A name goes into logs and error texts.
#[test]
fn errors_show_names_escaped_and_cut() {
    let bytes = Forge::new()
        .add(Forged::new(b"a\n\x1b[31mERROR", b'Z', 0), b"")
        .end();
    let expected = r#"unknown type 'Z' of member "a\n\x1b[31mERROR""#;
    assert_eq!(error(&bytes).to_string(), expected);
    let bytes = Forge::new()
        .pax(&[(b"path", &[b'n'; 5000])])
        .file(b"f", b"")
        .end();
    let text = error(&bytes).to_string();
    assert!(text.starts_with("path of 5000 bytes, the limit is 4095: \"nnn"));
    assert!(text.ends_with("nnn\"… (5000 bytes)") && text.len() < 400);
}
