use super::*;
use crate::image::testdata::{chain, member, seal};
use std::io::Write;

fn list(bytes: &[u8]) -> Result<TarMembers, TarError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    TarMembers::list(file, bytes.len() as u64)
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.extend([0; 1024]);
    bytes
}

fn content(members: &TarMembers, name: &str) -> Option<Vec<u8>> {
    let mut section = members.open(name).unwrap()?;
    let mut bytes = Vec::new();
    section.read_to_end(&mut bytes).unwrap();
    assert_eq!(section.size(), bytes.len() as u64);
    Some(bytes)
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        // The length counts its own digits; all here have two or three.
        let length = match rest.len() + 2 {
            length @ ..=99 => length,
            length => length + 1,
        };
        data.push_str(&format!("{length}{rest}"));
    }
    member(b'x', "PaxHeaders/x", "", data.as_bytes())
}

#[test]
fn members_are_found_by_name_whatever_way_it_is_stored() {
    let long = format!("long/{}", "n".repeat(150));
    let mut prefixed = member(b'0', "layer.tar", "", b"prefixed");
    prefixed[345..348].copy_from_slice(b"abc");
    seal(&mut prefixed);
    // The GNU form has other things where POSIX has the prefix.
    let mut gnu = member(b'0', "gnu", "", b"gnu");
    gnu[257..265].copy_from_slice(b"ustar  \0");
    gnu[345..356].copy_from_slice(b"15000000000");
    seal(&mut gnu);
    let bytes = archive(&[
        member(b'5', "blobs/", "", b""),
        member(b'0', "./index.json", "", b"index"),
        member(b'\0', "old", "", &[7; 512]),
        prefixed,
        gnu,
        pax(&[("path", &long), ("mtime", "1.5")]),
        member(b'0', "short", "", b"long by pax"),
        member(b'L', "././@LongLink", "", format!("{long}2\0").as_bytes()),
        member(b'0', "short", "", b"long by gnu"),
        member(b'g', "pax_global_header", "", b"18 comment=ignored"),
        member(b'0', "empty", "", b""),
        member(b'0', "twice", "", b"first"),
        member(b'0', "twice", "", b"second"),
        member(b'0', "../outside", "", b"x"),
    ]);
    let members = list(&bytes).unwrap();
    let long2 = format!("{long}2");
    for (name, data) in [
        ("index.json", &b"index"[..]),
        ("old", &[7; 512]),
        ("abc/layer.tar", b"prefixed"),
        ("gnu", b"gnu"),
        (&long, b"long by pax"),
        (&long2, b"long by gnu"),
        ("empty", b""),
        ("twice", b"second"),
        ("./twice", b"second"),
    ] {
        assert_eq!(content(&members, name).as_deref(), Some(data), "{name}");
    }
    for name in [
        "short",
        "blobs",
        "outside",
        "../outside",
        "nothing",
        "",
        ".",
    ] {
        assert_eq!(content(&members, name), None, "{name}");
    }
}

#[test]
fn sizes_may_be_in_base_256_and_in_pax() {
    let mut binary = member(b'0', "binary", "", b"abc");
    binary[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    seal(&mut binary);
    let mut by_pax = member(b'0', "pax", "", b"abcd");
    by_pax[124..136].copy_from_slice(b"00000000000\0");
    seal(&mut by_pax);
    let bytes = archive(&[
        binary,
        pax(&[("size", "4")]),
        by_pax,
        member(b'0', "next", "", b"n"),
    ]);
    let members = list(&bytes).unwrap();
    assert_eq!(content(&members, "binary").unwrap(), b"abc");
    assert_eq!(content(&members, "pax").unwrap(), b"abcd");
    assert_eq!(content(&members, "next").unwrap(), b"n");
}

#[test]
fn links_are_followed_inside_the_archive_only() {
    let bytes = archive(&[
        member(b'2', "id/layer.tar", "../base/layer.tar", b""),
        member(b'1', "hard", "base/layer.tar", b""),
        member(b'2', "twice", "id/layer.tar", b""),
        member(b'0', "base/layer.tar", "", b"layer"),
        member(b'2', "absolute", "/base/layer.tar", b""),
        member(b'2', "out", "../base/layer.tar", b""),
        member(b'2', "dangling", "nothing", b""),
        member(b'2', "a", "b", b""),
        member(b'2', "b", "a", b""),
        member(b'2', "to-directory", "base", b""),
        member(b'5', "base", "", b""),
        pax(&[("linkpath", "base/layer.tar")]),
        member(b'2', "by-pax", "x", b""),
        member(b'K', "././@LongLink", "", b"base/layer.tar\0"),
        member(b'1', "by-gnu", "x", b""),
    ]);
    let members = list(&bytes).unwrap();
    for name in ["id/layer.tar", "hard", "twice", "by-pax", "by-gnu"] {
        assert_eq!(content(&members, name).unwrap(), b"layer", "{name}");
    }
    for name in ["absolute", "out", "dangling", "a", "to-directory"] {
        let error = members.open(name).unwrap_err();
        assert!(matches!(error, TarError::Link { .. }), "{name}: {error}");
    }
}

#[test]
fn what_is_no_tar_is_refused() {
    let good = member(b'0', "a", "", b"data");
    let mut wrong_sum = good.clone();
    wrong_sum[0] ^= 1;
    let mut negative = good.clone();
    negative[124] = 0xff;
    seal(&mut negative);
    let mut huge = good.clone();
    huge[124..136].copy_from_slice(b"777777777777");
    seal(&mut huge);
    let mut enormous = good.clone();
    enormous[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]);
    seal(&mut enormous);
    let mut long_extension = member(b'x', "x", "", b"");
    long_extension[124..135].copy_from_slice(b"00000400000");
    seal(&mut long_extension);
    let mut gzip = vec![0; 600];
    gzip[..4].copy_from_slice(b"\x1f\x8b\x08\x00");
    let after = |member: &[u8]| [good.as_slice(), member].concat();
    let cases = [
        (b"".to_vec(), "no valid header at byte 0"),
        (b"text".to_vec(), "no valid header at byte 0"),
        (
            b"\x1f\x8b\x08\x00\x00\x00\x00".to_vec(),
            "compressed with gzip",
        ),
        (gzip, "compressed with gzip"),
        (
            b"\x28\xb5\x2f\xfd\x00\x00\x00".to_vec(),
            "compressed with zstd",
        ),
        (vec![b'x'; 2048], "no valid header at byte 0"),
        (after(&vec![b'x'; 512]), "no valid header at byte 1024"),
        (wrong_sum, "no valid header at byte 0"),
        (negative, "no valid header at byte 0"),
        (good[..514].to_vec(), "cut off: the member at byte 0"),
        (after(&good[..100]), "cut off: the member at byte 1024"),
        (after(&huge), "cut off: the member at byte 1024"),
        (after(&enormous), "cut off: the member at byte 1024"),
        (after(&long_extension), "has 131072 bytes, more than 65536"),
        (
            after(&member(b'x', "x", "", b"no record")),
            "at byte 1024 is malformed",
        ),
        (
            after(&member(b'x', "x", "", b"999 a=b\n")),
            "at byte 1024 is malformed",
        ),
        (
            after(&member(b'x', "x", "", b"3 a")),
            "at byte 1024 is malformed",
        ),
        (
            after(&member(b'x', "x", "", b"0 a=b\n")),
            "at byte 1024 is malformed",
        ),
        (
            after(&member(b'x', "x", "", b"6 a=b\x00")),
            "at byte 1024 is malformed",
        ),
        (after(&pax(&[("size", "-1")])), "at byte 1024 is malformed"),
        (after(&member(b'S', "s", "", b"")), "is sparse"),
        (
            [pax(&[("GNU.sparse.major", "1")]), good.clone()].concat(),
            "is sparse",
        ),
    ];
    for (bytes, part) in cases {
        let error = chain(&list(&bytes).unwrap_err());
        assert!(error.contains(part), "{part:?} expected: {error}");
    }
}

#[test]
fn the_end_may_be_bare_or_followed_by_anything() {
    let good = member(b'0', "a", "", b"data");
    let mut followed = archive(std::slice::from_ref(&good));
    followed.extend(vec![b'x'; 999]);
    for bytes in [good.clone(), good[..516].to_vec(), followed] {
        assert_eq!(content(&list(&bytes).unwrap(), "a").unwrap(), b"data");
    }
    assert_eq!(content(&list(&[0; 10240]).unwrap(), "a"), None);
}

#[test]
fn the_number_of_members_is_bounded() {
    let one = member(b'0', "a", "", b"");
    list(&one.repeat(MAX_MEMBERS)).unwrap();
    let error = list(&one.repeat(MAX_MEMBERS + 1)).unwrap_err();
    assert!(matches!(error, TarError::TooManyMembers), "{error}");
    // Extensions count too, or there could be any number before one member.
    let error = list(&member(b'g', "g", "", b"").repeat(MAX_MEMBERS + 1)).unwrap_err();
    assert!(matches!(error, TarError::TooManyMembers), "{error}");
}

#[test]
fn an_archive_that_shrinks_is_an_error_not_an_early_end() {
    let mut file = tempfile::tempfile().unwrap();
    let bytes = archive(&[member(b'0', "a", "", &[1; 2000])]);
    file.write_all(&bytes).unwrap();
    let members = TarMembers::list(file.try_clone().unwrap(), bytes.len() as u64).unwrap();
    file.set_len(1000).unwrap();
    let mut section = members.open("a").unwrap().unwrap();
    let error = section.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_listed_or_refused(
        at in 0usize..2048,
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
        sealed in proptest::prelude::any::<bool>(),
    ) {
        let mut archive = archive(&[
            member(b'0', "a", "", b"data"),
            pax(&[("path", "b")]),
            member(b'2', "c", "a", b""),
        ]);
        let end = (at + bytes.len()).min(archive.len());
        archive[at..end].copy_from_slice(&bytes[..end - at]);
        if sealed {
            for header in [0, 1024, 2048] {
                seal(&mut archive[header..header + 512]);
            }
        }
        if let Ok(members) = list(&archive) {
            for name in members.members.keys() {
                if let Ok(Some(mut section)) = members.open(name) {
                    let read = section.read_to_end(&mut Vec::new()).unwrap();
                    assert_eq!(read as u64, section.size());
                }
            }
        }
    }
}
