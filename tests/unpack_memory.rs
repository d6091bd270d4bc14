//! Story: a layer of any number of files is unpacked in the same memory. The
//! only test of its file, for it measures the process that it runs in.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use aufs_csi::layer::archive::{Entry, EntryKind, Timestamp};
use aufs_csi::layer::index::Record;
use aufs_csi::layer::unpack::{Options, Unpacker};
use aufs_csi::layer::{EntrySink, RecordSink};
use std::fs::File;

/// Keeps nothing but their number.
struct Count(u64);

impl RecordSink for Count {
    fn record(&mut self, _: &Record) -> std::io::Result<()> {
        self.0 += 1;
        Ok(())
    }
}

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64 / 1024
}

fn entry(kind: EntryKind, path: String) -> Entry {
    Entry {
        path: path.into_bytes(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size: 0,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

#[test]
fn a_hundred_thousand_files_take_the_memory_of_ten_thousand() {
    // Not on disk, which would be busy for long with so many names.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = File::open(dir.path()).unwrap().into();
    let mut unpacker = Unpacker::new(root, Count(0), Options::default()).unwrap();
    let mut early = 0;
    for number in 0..100_000u32 {
        let path = format!("some/directory-{}/file-{number}", number / 100);
        let mut file = entry(EntryKind::File, path.clone());
        file.size = 10;
        file.xattrs = vec![(b"trusted.note".to_vec(), b"of a few bytes".to_vec())];
        unpacker.begin(file).unwrap();
        unpacker.data(0, b"some bytes").unwrap();
        unpacker.end().unwrap();
        if number % 10 == 0 {
            let mut link = entry(EntryKind::HardLink, format!("link-{number}"));
            link.link = path.into_bytes();
            unpacker.begin(link).unwrap();
            unpacker.end().unwrap();
        }
        if number == 10_000 {
            early = resident_kib();
        }
    }
    let (stats, records) = unpacker.finish().unwrap();
    assert_eq!(stats.entries, 110_000);
    assert_eq!(records.0, 110_000 + 1_001);
    // A path and a map's entry for each would be 10 MiB at the least.
    let late = resident_kib();
    assert!(late < early + 2048, "{early} KiB grew to {late} KiB");
}
