//! What must hold for any bytes that are read as a log of edits, as a fuzz
//! target and the tests have it.

use super::{Edit, EditLog, EditReader};
use crate::layer::index::Attrs;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file without a name.
fn scratch(bytes: &[u8]) -> io::Result<File> {
    let file = File::from(memfd_create("edits", MemfdFlags::CLOEXEC)?);
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

/// Checks that any bytes at all, opened as a log of edits, are
///
/// * read without a panic, to their end in a bounded number of steps and without
///   more memory than there are bytes,
/// * read to edits that are written and read back the same.
///
/// # Panics
/// If one of these does not hold, or if there is no memory for a file.
#[expect(clippy::expect_used, reason = "without a file nothing is checked")]
pub fn check(bytes: &[u8]) {
    let file = scratch(bytes).expect("write a file in memory");
    let Ok(reader) = EditReader::open(file) else {
        return;
    };
    let mut edits = Vec::new();
    for edit in reader {
        // What follows an error has no meaning.
        let Ok(edit) = edit else { break };
        edits.push(edit);
        assert!(edits.len() <= bytes.len(), "the log goes on");
    }
    let written = write(&edits).expect("write a file in memory");
    assert!(
        written.len() <= bytes.len(),
        "edits are longer than the log"
    );
    let again: Vec<Edit> = scratch(&written)
        .and_then(EditReader::open)
        .and_then(Iterator::collect)
        .expect("what was written is read");
    assert_eq!(again, edits);
}

/// The bytes of a log of these edits.
fn write(edits: &[Edit]) -> io::Result<Vec<u8>> {
    let mut log = EditLog::new(scratch(b"")?)?;
    for edit in edits {
        log.push(edit)?;
    }
    log.finish()?;
    let mut bytes = Vec::new();
    log.copy_to(&mut bytes)?;
    Ok(bytes)
}

/// Logs with edits of every kind, to start mutations from.
///
/// # Panics
/// If there is no memory for a file.
#[expect(clippy::expect_used, reason = "what is made here is small")]
pub fn seeds() -> Vec<Vec<u8>> {
    let (path, from, to) = (b"usr/lib".to_vec(), b"lib/a".to_vec(), b"b".to_vec());
    let attrs = Attrs {
        uid: 1000,
        xattrs: vec![(b"user.a".to_vec(), vec![b'v'; 200])],
        ..Attrs::implied()
    };
    let edits = vec![
        Edit::Move {
            from: from.clone(),
            to: to.clone(),
        },
        Edit::RemoveDirectory { path: path.clone() },
        Edit::RemoveFile { path: path.clone() },
        Edit::Directory {
            path: path.clone(),
            attrs,
        },
        Edit::Copy {
            layer: 3,
            from: from.clone(),
            to: to.clone(),
        },
        Edit::Link { from, to },
        Edit::Whiteout { path: path.clone() },
        Edit::Opaque { path: path.clone() },
        Edit::Implied { path },
    ];
    let mut logs: Vec<Vec<Edit>> = edits.iter().map(|edit| vec![edit.clone()]).collect();
    logs.push(edits);
    logs.iter()
        .map(|edits| write(edits).expect("write a log into memory"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_an_edit_and_a_log_that_ends_early_are_errors() {
        let whole = write(&[Edit::Opaque {
            path: b"d".to_vec(),
        }])
        .unwrap();
        let last = |bytes: &[u8]| EditReader::open(scratch(bytes).unwrap()).unwrap().last();
        assert!(matches!(last(&whole), Some(Ok(Edit::Opaque { .. }))));
        let mut longer = whole.clone();
        longer[0] += 1;
        longer.push(0);
        let error = last(&longer).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "edit is longer than its content");
        let error = last(&whole[..whole.len() - 1]).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "log ends inside an edit");
    }
}
