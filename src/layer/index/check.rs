//! What must hold for any bytes that are read as an index, as a fuzz target and
//! the tests have it.

use super::codec::{decode, encode};
use super::{Attrs, Builder, Index, Node, Record, SpecialKind, compare, is_below};
use rustix::fs::{MemfdFlags, memfd_create};
use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// An empty file without a name.
fn scratch() -> io::Result<File> {
    Ok(memfd_create("index", MemfdFlags::CLOEXEC)?.into())
}

/// Checks that any bytes at all, opened as an index, are
///
/// * read without a panic, to their end in a bounded number of steps, in order
///   and with any directory passed over,
/// * read to records that are no longer than the bytes, and that are written
///   and read back the same,
/// * asked for any path, answered with a record of that path or none.
///
/// # Panics
/// If one of these does not hold, or if there is no memory for a file.
#[expect(clippy::expect_used, reason = "without a file nothing is checked")]
pub fn check(bytes: &[u8]) {
    let file = scratch().expect("make a file in memory");
    file.write_all_at(bytes, 0).expect("write into memory");
    let Ok(index) = Index::open(file) else {
        return;
    };
    let mut records = Vec::new();
    let mut cursor = index.cursor();
    let whole = loop {
        // Each takes eight bytes of the table.
        assert!(records.len() <= bytes.len() / 8, "the index goes on");
        match cursor.next_record() {
            Ok(Some(record)) => records.push(record),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let mut length = 0;
    for record in &records {
        let mut encoded = Vec::new();
        encode(record, &mut encoded);
        assert_eq!(decode(&encoded).ok().as_ref(), Some(record));
        length += encoded.len();
    }
    assert!(length <= bytes.len(), "records are longer than the file");

    let paths = records.iter().map(|record| &record.path[..]);
    for path in paths.clone().chain([&b""[..], b"\xff", b"a/b"]) {
        if let Ok(Some(found)) = index.get(path) {
            assert_eq!(found.path, path);
        }
    }
    for dir in paths.take(16) {
        skip(&index, dir, bytes.len());
    }
    if whole && is_consistent(&index, &records) {
        lookups(&index, &records);
    }
}

/// Passes over a directory wherever the cursor stands.
fn skip(index: &Index, dir: &[u8], size: usize) {
    let mut cursor = index.cursor();
    let mut steps = 0;
    while let Ok(Some(_)) = cursor.next_record() {
        steps += 1;
        assert!(steps <= size / 8, "the index goes on");
        if cursor.skip_below(dir).is_err() {
            return;
        }
    }
}

/// Whether the records are sorted and the table says where they are; mutations
/// that leave it so are the ones that change what records say.
fn is_consistent(index: &Index, records: &[Record]) -> bool {
    records.is_sorted_by(|a, b| compare(&a.path, &b.path) == Ordering::Less)
        && (0..records.len()).all(|place| {
            index
                .record_bytes(place as u64)
                .and_then(|bytes| decode(&bytes))
                .is_ok_and(|record| record == records[place])
        })
}

/// In a good index every path is found, and passing over a directory leaves out
/// just what is beneath it.
fn lookups(index: &Index, records: &[Record]) {
    for (place, record) in records.iter().enumerate().take(16) {
        let found = index.get(&record.path).ok().flatten();
        assert_eq!(found.as_ref(), Some(record));
        let mut cursor = index.cursor();
        for _ in 0..=place {
            assert!(matches!(cursor.next_record(), Ok(Some(_))));
        }
        assert!(cursor.skip_below(&record.path).is_ok());
        let expected = records[place + 1..]
            .iter()
            .find(|other| !is_below(&other.path, &record.path));
        assert_eq!(cursor.next_record().ok().flatten().as_ref(), expected);
    }
}

/// Indexes with records of every kind, to start mutations from.
///
/// # Panics
/// If there is no memory for a file.
#[expect(clippy::expect_used, reason = "what is made here is small")]
pub fn seeds() -> Vec<Vec<u8>> {
    let attrs = Attrs {
        mode: 0o4755,
        uid: 1000,
        xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())],
        ..Attrs::implied()
    };
    let nodes = |attrs: &Attrs| {
        vec![
            None,
            Some(Node::Implied),
            Some(Node::Directory {
                attrs: attrs.clone(),
                late: Some(2),
            }),
            Some(Node::File {
                attrs: attrs.clone(),
                size: 1 << 40,
                inode: 5,
            }),
            Some(Node::Symlink {
                attrs: attrs.clone(),
                target: b"../usr".to_vec(),
                inode: 6,
            }),
            Some(Node::Special {
                attrs: attrs.clone(),
                kind: SpecialKind::Char,
                device: (1, 3),
                inode: 7,
            }),
            Some(Node::ForeignLink {
                target: b"usr/lib".to_vec(),
            }),
        ]
    };
    let mut all: Vec<Record> = Vec::new();
    for (number, node) in nodes(&attrs).into_iter().enumerate() {
        for dir in ["", "d/", "d/e/"] {
            all.push(Record {
                path: format!("{dir}{}", ["w", "i", "d", "f", "l", "n", "h"][number]).into_bytes(),
                seq: all.len() as u64 + 1,
                whiteout: node.is_none(),
                opaque: dir == "d/" && number == 2,
                node: node.clone(),
                ..Record::default()
            });
        }
    }
    let long = Record {
        path: [b'n'; 300].to_vec(),
        seq: 99,
        whiteout: true,
        ..Record::default()
    };
    [Vec::new(), vec![long], all[..3].to_vec(), all]
        .into_iter()
        .map(|records| write(&records).expect("write an index into memory"))
        .collect()
}

fn write(records: &[Record]) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(scratch()?);
    for record in records {
        builder.push(record)?;
    }
    let out = scratch()?;
    builder.finish(out.try_clone()?)?;
    let mut bytes = vec![0; out.metadata()?.len() as usize];
    out.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
