//! Writing an index: a sort on disk, so that memory is bounded by its buffers,
//! then one pass that settles what a layer says twice.

use super::codec::{decode, decode_key, encode};
use super::reader::{LENGTH, MAGIC};
use super::sort::Sorter;
use super::{Index, Node, Record, Summary, compare, is_below};
use crate::layer::RecordSink;
use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

/// Collects the records of one layer and sorts them into an [`Index`].
#[derive(Debug)]
pub struct Builder {
    sorter: Sorter,
}

impl RecordSink for Builder {
    fn record(&mut self, record: &Record) -> io::Result<()> {
        self.push(record)
    }
}

impl Builder {
    /// A builder that spills to `spill`, an empty file that nobody else uses
    /// (best without a name, so that a kill leaves nothing).
    pub fn new(spill: File) -> Self {
        Builder {
            sorter: Sorter::new(spill, by_path_and_place),
        }
    }

    /// The same, for [`IndexTooLarge`](super::IndexTooLarge) as the error where
    /// the records take more than `bytes` in all.
    pub fn bounded(mut self, bytes: u64) -> Self {
        self.sorter.max_bytes = bytes;
        self
    }

    /// Takes one statement.
    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        self.sorter.push(|out| encode(record, out))
    }

    /// Sorts and settles everything, writes the index to `out` (empty, open for
    /// reading and writing) and opens it.
    pub fn finish(self, out: File) -> io::Result<Index> {
        let mut sorted = self.sorter.finish()?;
        let (spill, end) = sorted.spill()?;
        let mut settler = Settler::new(Output::new(out, OffsetTable::new(spill, end))?);
        while let Some(record) = sorted.next_item()? {
            settler.take(decode(record)?)?;
        }
        settler.finish()
    }
}

/// By path, then by place in the archive.
fn by_path_and_place(a: &[u8], b: &[u8]) -> Ordering {
    let key = |key| decode_key(key).unwrap_or_default();
    let (a, b) = (key(a), key(b));
    compare(a.0, b.0).then(a.1.cmp(&b.1))
}

/// Settles what a layer says several times about one path, as extraction in the
/// order of the archive would: the last entry wins, and a non-directory takes
/// with it whatever came earlier beneath its name. Markers are not taken along,
/// for they speak of the layers below, wherever they stand.
struct Settler {
    out: Output,
    /// Directories around the current path, with the `seq` of the last
    /// non-directory that stood in their place (or in that of one above).
    stack: Vec<(Vec<u8>, u64)>,
    current: Option<Record>,
    /// As in `stack`, for the current path itself.
    killed: u64,
    /// Order of the symbolic link that stood last at the current path, taken
    /// along or not; none if something else came since.
    link: Option<u64>,
    /// Orders of the first and the last entry that passed through the current
    /// path.
    passed: Option<(u64, u64)>,
    /// What stood at the current path was said to be lost.
    lost: bool,
}

impl Settler {
    fn new(out: Output) -> Self {
        Settler {
            out,
            stack: Vec::new(),
            current: None,
            killed: 0,
            link: None,
            passed: None,
            lost: false,
        }
    }

    fn take(&mut self, record: Record) -> io::Result<()> {
        if self
            .current
            .as_ref()
            .is_none_or(|current| current.path != record.path)
        {
            self.flush()?;
            while let Some((dir, _)) = self.stack.last() {
                if is_below(&record.path, dir) {
                    break;
                }
                self.stack.pop();
            }
            self.killed = self.stack.last().map_or(0, |(_, killed)| *killed);
            self.link = None;
            self.passed = None;
            self.lost = false;
            self.current = Some(Record {
                path: record.path.clone(),
                ..Record::default()
            });
        }
        let Some(current) = self.current.as_mut() else {
            return Ok(());
        };
        let first = record.first();
        current.whiteout |= record.whiteout;
        current.opaque |= record.opaque;
        // What passed through a directory of its own went nowhere else.
        let is_own = matches!(&current.node, Some(Node::Directory { late: None, .. }));
        current.displaced |= record.displaced && !(record.node.is_none() && is_own);
        current.beneath_link |= record.beneath_link;
        if !record.lost_link.is_empty() {
            current.lost_link = record.lost_link;
        }
        if record.cleared > 0 {
            current.cleared = current.cleared.max(record.cleared);
            self.killed = self.killed.max(record.cleared);
            if current.seq < record.cleared {
                let lost = std::mem::take(&mut current.lost_link);
                replace(current, None);
                // Of two links that stood here, it is not known which came last.
                current.beneath_link |= !lost.is_empty() && !current.lost_link.is_empty();
                if !lost.is_empty() {
                    current.lost_link = lost;
                }
            }
        }
        let Some(node) = record.node else {
            if record.displaced {
                current.beneath_link |= self.link.is_some();
                pass(&mut self.passed, record.seq);
                if let Some(Node::ForeignLink { target }) = &current.node {
                    current.lost_link.clone_from(target);
                }
            }
            if record.first.is_some() {
                current.beneath_link |= current.is_lost();
                self.lost = true;
                current.first.get_or_insert(first);
            }
            if current.node.is_none() {
                current.seq = current.seq.max(record.seq);
            }
            return Ok(());
        };
        // The unpacker goes through this layer's own links, so what is beneath
        // one came here by way of a link of the layers below.
        let link = self.link.filter(|link| *link >= record.cleared);
        current.beneath_link |= node == Node::Implied && link.is_some();
        self.link = match node {
            Node::Symlink { .. } => Some(record.seq),
            Node::Implied => link,
            _ => None,
        };
        // Nor is known what stood here until then, which may have been a link.
        let is_known = record.cleared == 0 && node.is_dir();
        if let Some((from, to)) = self.passed.filter(|_| !is_known) {
            current.beneath_link |= from < record.seq && to > first && first < record.seq;
        }
        pass(&mut self.passed, record.seq);
        // On its own way, an entry passes what it takes the place of.
        if record.seq < self.killed
            || record.seq == self.killed && self.killed > 0 && node == Node::Implied
        {
            if node == Node::Implied {
                current.displaced = true;
            } else {
                current.beneath_link |= self.lost;
                current.first.get_or_insert(first);
            }
            if let Node::ForeignLink { target } = node {
                current.lost_link = target;
            }
            current.seq = current.seq.max(record.seq);
            return Ok(());
        }
        let before = if current.is_lost() && current.cleared == 0 {
            None
        } else {
            current.first
        };
        current.first = Some(before.map_or(first, |before| before.min(first)));
        let node = match (node, &current.node) {
            // Implied again: it is there already.
            (Node::Implied, Some(Node::Directory { .. })) => return Ok(()),
            (Node::Directory { attrs, late }, Some(Node::Implied)) if current.seq < record.seq => {
                // Where it is merged with what came by way of links, it may have
                // been there before.
                let was_there = before.is_some_and(|before| first < before) && record.cleared == 0;
                Node::Directory {
                    attrs,
                    late: late.or((!was_there).then_some(record.seq)),
                }
            }
            // A further entry of a directory that began as an implied one.
            (
                Node::Directory { attrs, .. },
                Some(Node::Directory {
                    late: late @ Some(_),
                    ..
                }),
            ) => Node::Directory { attrs, late: *late },
            (node, _) => node,
        };
        if let Some(Node::Implied | Node::Directory { late: Some(_), .. }) = current.node
            && !node.is_dir()
        {
            current.displaced = true;
        }
        if node.is_dir() {
            // Something else stood here before: what the layers below have went
            // with it, and this directory begins empty.
            if current.node.as_ref().is_some_and(|node| !node.is_dir()) {
                current.cleared = current.cleared.max(current.seq);
            }
        } else {
            self.killed = self.killed.max(record.seq);
        }
        replace(current, Some(node));
        current.seq = record.seq;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(mut record) = self.current.take() else {
            return Ok(());
        };
        if record.node.is_some() {
            record.first = record.first.filter(|first| *first < record.seq);
        }
        self.stack.push((record.path.clone(), self.killed));
        let lost = record.displaced || record.is_lost() || !record.lost_link.is_empty();
        if record.node.is_some() || record.whiteout || record.opaque || lost {
            self.out.write(&record)?;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<Index> {
        self.flush()?;
        self.out.finish()
    }
}

fn pass(passed: &mut Option<(u64, u64)>, seq: u64) {
    let (from, to) = passed.unwrap_or((seq, seq));
    *passed = Some((from.min(seq), to.max(seq)));
}

/// Puts `node` in the place of what the record has, and keeps where that led,
/// if it is a hard link that nothing else tells of.
fn replace(record: &mut Record, node: Option<Node>) {
    if let Some(Node::ForeignLink { target }) = std::mem::replace(&mut record.node, node) {
        let same =
            matches!(&record.node, Some(Node::ForeignLink { target: now }) if *now == target);
        if !same {
            record.lost_link = target;
        }
    }
}

/// Writes settled records, and behind them the table of their offsets.
struct Output {
    out: BufWriter<File>,
    position: u64,
    table: OffsetTable,
    scratch: Vec<u8>,
    summary: Summary,
}

impl Output {
    fn new(file: File, table: OffsetTable) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(64 << 10, file);
        out.write_all(MAGIC)?;
        Ok(Output {
            out,
            position: MAGIC.len() as u64,
            table,
            scratch: Vec::new(),
            summary: Summary::default(),
        })
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        self.count(record);
        self.scratch.clear();
        encode(record, &mut self.scratch);
        self.table.push(self.position)?;
        self.out
            .write_all(&(self.scratch.len() as u32).to_le_bytes())?;
        self.out.write_all(&self.scratch)?;
        self.position += (LENGTH + self.scratch.len()) as u64;
        Ok(())
    }

    fn count(&mut self, record: &Record) {
        let summary = &mut self.summary;
        summary.records += 1;
        summary.whiteouts += u64::from(record.whiteout);
        summary.opaques += u64::from(record.opaque);
        summary.nodes += u64::from(record.node.is_some());
        let lost = !record.lost_link.is_empty();
        summary.doubtful += u64::from(record.displaced || record.beneath_link || lost);
        if super::name(&record.path).len() > super::AUFS_NAME_MAX {
            summary.long_names += 1;
        }
        match &record.node {
            Some(Node::Implied) => summary.implied += 1,
            Some(Node::Directory { late: Some(_), .. }) => summary.late += 1,
            Some(Node::ForeignLink { .. }) => summary.foreign_links += 1,
            Some(Node::Symlink { .. }) => summary.symlinks += 1,
            Some(Node::File { size, .. }) => summary.bytes = summary.bytes.saturating_add(*size),
            Some(Node::Special {
                kind: super::SpecialKind::Char,
                device: (0, 0),
                ..
            }) => summary.null_devices += 1,
            Some(Node::Special { .. } | Node::Directory { .. }) | None => {}
        }
    }

    fn finish(mut self) -> io::Result<Index> {
        let table = self.position;
        self.table.write(&mut self.out)?;
        let summary = serde_json::to_vec(&self.summary)?;
        self.out.write_all(&summary)?;
        for number in [self.table.count, table, summary.len() as u64] {
            self.out.write_all(&number.to_le_bytes())?;
        }
        let mut file = self
            .out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Index::open(file)
    }
}

/// Bytes of offsets kept in memory.
const TABLE_BUFFER: usize = 16 << 10;

/// Offsets of records. They belong behind the last record, so until then they
/// are in the spill file, behind what was sorted.
struct OffsetTable {
    spill: File,
    start: u64,
    end: u64,
    buffer: Vec<u8>,
    count: u64,
}

impl OffsetTable {
    fn new(spill: File, start: u64) -> Self {
        OffsetTable {
            spill,
            start,
            end: start,
            buffer: Vec::new(),
            count: 0,
        }
    }

    fn push(&mut self, offset: u64) -> io::Result<()> {
        self.buffer.extend_from_slice(&offset.to_le_bytes());
        self.count += 1;
        if self.buffer.len() >= TABLE_BUFFER {
            self.spill.write_all_at(&self.buffer, self.end)?;
            self.end += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut block = vec![0; TABLE_BUFFER];
        let mut offset = self.start;
        while offset < self.end {
            let part = (self.end - offset).min(block.len() as u64) as usize;
            self.spill.read_exact_at(&mut block[..part], offset)?;
            out.write_all(&block[..part])?;
            offset += part as u64;
        }
        out.write_all(&self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Attrs, join, name, parent};
    use super::*;
    use proptest::prelude::*;

    use super::super::sort::RUN;

    fn index(records: &[Record], run: usize) -> Index {
        let mut builder = Builder::new(tempfile::tempfile().unwrap());
        builder.sorter.run_bytes = run;
        // As of an index of many gigabytes.
        builder.sorter.fan_in = 2;
        for record in records {
            builder.push(record).unwrap();
        }
        builder.finish(tempfile::tempfile().unwrap()).unwrap()
    }

    fn all(index: &Index) -> Vec<Record> {
        let mut cursor = index.cursor();
        let mut records = Vec::new();
        while let Some(record) = cursor.next_record().unwrap() {
            records.push(record);
        }
        records
    }

    fn node(path: &str, seq: u64, node: Node) -> Record {
        Record {
            path: path.into(),
            seq,
            node: Some(node),
            ..Record::default()
        }
    }

    fn file(inode: u64) -> Node {
        Node::File {
            attrs: Attrs::default(),
            size: 1,
            inode,
        }
    }

    fn directory() -> Node {
        Node::Directory {
            attrs: Attrs::implied(),
            late: None,
        }
    }

    fn paths(records: &[Record]) -> Vec<String> {
        records
            .iter()
            .map(|record| String::from_utf8_lossy(&record.path).into_owned())
            .collect()
    }

    #[test]
    fn a_subtree_lies_directly_behind_its_directory() {
        let records: Vec<Record> = ["a", "a!", "a/b", "a-b", "a/b/c", "", "b", "a/!"]
            .iter()
            .enumerate()
            .map(|(seq, path)| node(path, seq as u64, directory()))
            .collect();
        let index = index(&records, RUN);
        assert_eq!(
            paths(&all(&index)),
            ["", "a", "a/!", "a/b", "a/b/c", "a!", "a-b", "b"]
        );
        let mut cursor = index.cursor();
        while let Some(record) = cursor.next_record().unwrap() {
            if record.path == b"a" {
                cursor.skip_below(b"a").unwrap();
                break;
            }
        }
        assert_eq!(cursor.next_record().unwrap().unwrap().path, b"a!");
    }

    #[test]
    fn a_directory_after_something_else_hides_what_is_below() {
        let records = [node("d", 1, file(1)), node("d", 2, directory())];
        let found = all(&index(&records, RUN));
        assert!(found[0].hides());
        let found = all(&index(&[node("d", 2, directory())], RUN));
        assert!(!found[0].hides());
    }

    #[test]
    fn the_last_entry_wins_and_takes_earlier_children_with_it() {
        let records = [
            node("d", 1, directory()),
            node("d/old", 2, file(2)),
            node("d", 3, file(3)),
            node("d", 4, Node::Implied),
            node("d/new", 5, file(5)),
        ];
        let found = all(&index(&records, RUN));
        assert_eq!(paths(&found), ["d", "d/new", "d/old"]);
        assert_eq!(found[0].node, Some(Node::Implied));
        assert!(found[2].is_lost());
    }

    #[test]
    fn markers_survive_what_replaces_their_directory() {
        let mut whiteout = Record {
            path: b"d/x".to_vec(),
            seq: 1,
            whiteout: true,
            ..Record::default()
        };
        let records = [whiteout.clone(), node("d", 2, file(2))];
        let found = all(&index(&records, RUN));
        whiteout.seq = 1;
        assert_eq!(found[1], whiteout);
    }

    #[test]
    fn a_directory_whose_entry_comes_after_its_content_is_late() {
        let records = [
            node("d", 1, Node::Implied),
            node("d/x", 2, file(2)),
            node("d", 3, directory()),
            node("d", 4, directory()),
        ];
        let index = index(&records, RUN);
        assert_eq!(index.summary().late, 1);
        assert_eq!(all(&index)[0].since(), 3);
    }

    #[test]
    fn bytes_that_are_no_index_are_refused() {
        for bytes in [&b""[..], b"short", &[0u8; 100]] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            let error = Index::open(file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn names_split_and_join() {
        assert_eq!(join(parent(b"a/b"), name(b"a/b")), b"a/b");
        assert_eq!(join(parent(b"a"), name(b"a")), b"a");
        assert_eq!(join(b"", b"x"), b"x");
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let path = proptest::collection::vec(0..4u8, 0..4).prop_map(|parts| {
            let parts: Vec<String> = parts
                .iter()
                .map(|part| ["a", "b", "a!", "~"][*part as usize].into())
                .collect();
            parts.join("/").into_bytes()
        });
        let attrs = (
            any::<u32>(),
            any::<u32>(),
            any::<i64>(),
            0..1_000_000_000u32,
        )
            .prop_map(|(mode, uid, seconds, nanos)| Attrs {
                mode,
                uid,
                gid: uid ^ 1,
                mtime: crate::layer::archive::Timestamp { seconds, nanos },
                xattrs: vec![(b"user.x".to_vec(), vec![mode as u8; (uid % 300) as usize])],
            });
        let kind = (attrs, 0..7u8, any::<u64>()).prop_map(|(attrs, kind, number)| match kind {
            0 => None,
            1 => Some(Node::Directory { attrs, late: None }),
            2 => Some(Node::Implied),
            3 => Some(Node::File {
                attrs,
                size: number,
                inode: number / 2,
            }),
            4 => Some(Node::Symlink {
                attrs,
                target: b"../x".to_vec(),
                inode: 7,
            }),
            5 => Some(Node::Special {
                attrs,
                kind: super::super::SpecialKind::Char,
                device: (1, 3),
                inode: 9,
            }),
            _ => Some(Node::ForeignLink {
                target: b"t".to_vec(),
            }),
        });
        (path, kind, any::<bool>(), any::<bool>()).prop_map(|(path, node, whiteout, opaque)| {
            Record {
                path,
                seq: 0,
                node,
                whiteout,
                opaque,
                displaced: whiteout,
                beneath_link: opaque,
                cleared: 0,
                first: None,
                lost_link: Vec::new(),
            }
        })
    }

    proptest! {
        #[test]
        fn sorting_on_disk_equals_sorting_in_memory(mut records in proptest::collection::vec(any_record(), 0..200)) {
            for (seq, record) in records.iter_mut().enumerate() {
                record.seq = seq as u64 + 1;
                record.opaque &= record.node.is_none();
            }
            let small = index(&records, 512);
            let large = index(&records, RUN);
            prop_assert_eq!(all(&small), all(&large));
            prop_assert_eq!(small.summary(), large.summary());
            for record in all(&small) {
                prop_assert_eq!(small.get(&record.path).unwrap(), Some(record));
            }
            prop_assert_eq!(small.get(b"not/there").unwrap(), None);
        }

        #[test]
        fn a_record_survives_its_encoding(record in any_record()) {
            let mut bytes = Vec::new();
            encode(&record, &mut bytes);
            prop_assert_eq!(decode(&bytes).unwrap(), record);
            for cut in 0..bytes.len() {
                prop_assert!(decode(&bytes[..cut]).is_err());
            }
        }
    }
}
