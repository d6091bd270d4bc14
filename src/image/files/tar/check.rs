//! What must hold for any bytes that are read as an archive of images, as a fuzz
//! target and the tests have it.

use super::{BLOCK_BYTES, MAX_MEMBERS, MAX_NAME_BYTES, Member, TarMembers, normalise};
use crate::image::files::memory;
use crate::image::testdata::{assert_fit, member, seal};
use std::io::Read;

/// Checks that any bytes at all are
///
/// * listed without a panic, each header once, or refused with an error that is
///   fit to be shown;
/// * listed to members that lie inside of the bytes, and whose names lead
///   nowhere else;
/// * read, member by member and through links, to no more than that.
///
/// Checksums are repaired in a second round, for a mutation hardly ever hits one.
///
/// # Panics
/// If one of these does not hold.
pub fn check(bytes: &[u8]) {
    check_exact(bytes);
    let mut repaired = bytes.to_vec();
    for block in repaired.chunks_exact_mut(BLOCK_BYTES) {
        if block.iter().any(|byte| *byte != 0) {
            seal(block);
        }
    }
    check_exact(&repaired);
}

fn check_exact(bytes: &[u8]) {
    let length = bytes.len() as u64;
    let members = match TarMembers::list(memory(bytes), length) {
        Ok(members) => members,
        Err(error) => return assert_fit(&error),
    };
    assert!(members.members.len() <= MAX_MEMBERS.min(bytes.len() / BLOCK_BYTES));
    for (name, member) in &members.members {
        assert_eq!(normalise(&[], name).as_ref(), Some(name));
        assert!(name.len() <= MAX_NAME_BYTES);
        match member {
            Member::File { offset, size } => {
                let end = offset.checked_add(*size);
                assert!(
                    end.is_some_and(|end| end <= length),
                    "{name:?} ends at {end:?}"
                );
            }
            Member::Link(Some(target)) => assert_eq!(normalise(&[], target).as_ref(), Some(target)),
            Member::Link(None) | Member::Other => {}
        }
        match members.open(name) {
            Ok(None) => assert!(matches!(member, Member::Other), "{name:?}"),
            Ok(Some(mut section)) => {
                let mut content = Vec::new();
                let read = section.read_to_end(&mut content);
                assert!(read.is_ok_and(|read| read as u64 == section.size()));
                assert!(content.len() <= bytes.len());
            }
            Err(error) => assert_fit(&error),
        }
    }
    // What is looked up is foreign too.
    for name in ["", "/", "..", "a/../../b", "manifest.json", "\u{1b}[2J"] {
        if let Err(error) = members.open(name) {
            assert_fit(&error);
        }
    }
}

/// Archives with every kind of header, to start mutations from.
pub fn seeds() -> Vec<Vec<u8>> {
    let end = || vec![0; 2 * BLOCK_BYTES];
    let pax = |records: &[u8]| member(b'x', "PaxHeaders/x", "", records);
    let mut prefixed = member(b'0', "layer.tar", "", b"prefixed");
    prefixed[345..348].copy_from_slice(b"abc");
    seal(&mut prefixed);
    // A size in base 256.
    let mut binary = member(b'0', "binary", "", b"12345");
    binary[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\0\0\0\0\x05");
    seal(&mut binary);
    vec![
        [
            member(b'0', "manifest.json", "", b"[]"),
            member(b'5', "blobs/", "", b""),
            member(b'2', "blobs/link", "../manifest.json", b""),
            member(b'1', "hard", "blobs/link", b""),
            member(b'2', "a", "b", b""),
            member(b'2', "b", "a", b""),
            end(),
        ]
        .concat(),
        [
            pax(b"14 path=p/q/r\n16 linkpath=s/t\n9 size=3\n"),
            member(b'0', "short", "", b"abc"),
            member(b'L', "././@LongLink", "", &[b'n'; 150]),
            member(b'K', "././@LongLink", "", b"manifest.json\0"),
            member(b'2', "short", "", b""),
            member(b'g', "pax_global_header", "", b"18 comment=ignored"),
            member(b'0', "../outside", "", b"x"),
            end(),
        ]
        .concat(),
        [prefixed, binary, member(b'0', "twice", "", b"1")].concat(),
        [pax(b"22 GNU.sparse.major=1\n"), member(b'0', "s", "", b"")].concat(),
        [member(b'S', "sparse", "", b""), end()].concat(),
        b"\x1f\x8b\x08\0\0\0".to_vec(),
        end(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_hold() {
        let listed = seeds()
            .iter()
            .inspect(|seed| check(seed))
            .filter(|seed| TarMembers::list(memory(seed), seed.len() as u64).is_ok())
            .count();
        assert_eq!(listed, 4);
    }
}
