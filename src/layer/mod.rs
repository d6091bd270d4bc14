//! Layers: from the bytes of a tar to a branch directory in the store.
//!
//! ```text
//! archive   tar bytes → entries, under limits (no I/O)
//! tree      movement below one directory, and metadata of what is in it
//! unpack    entries → files beneath one directory, and an index of what came
//! index     what one layer says about each path, sorted, on disk
//! seal      the indexes of all layers → the edits each branch needs (pure)
//! apply     those edits → the directory
//! store     content-addressed directories: commit, lease, remove
//! collect   what is in the store × who needs it → what goes (pure)
//! ```

pub mod apply;
pub mod archive;
pub mod changes;
pub mod collect;
pub mod decompress;
mod digest;
pub mod index;
pub mod ingest;
pub mod limits;
pub mod seal;
pub mod steps;
pub mod store;
pub mod tree;
pub mod unpack;
pub mod upper;

/// Receives the members of an archive, in its order.
pub trait EntrySink {
    /// Why an entry could not be taken.
    type Error: std::error::Error + Send + Sync + 'static;
    /// A new member begins.
    fn begin(&mut self, entry: archive::Entry) -> Result<(), Self::Error>;
    /// Bytes of the member that began last, at `offset` in the file; what no
    /// call covers is a hole.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// The member that began last is complete.
    fn end(&mut self) -> Result<(), Self::Error>;
}

/// Receives what a layer says about its paths, in the order of the archive.
pub trait RecordSink {
    /// Takes one statement; an error is of the file behind it.
    fn record(&mut self, record: &index::Record) -> std::io::Result<()>;
}

impl<S: RecordSink + ?Sized> RecordSink for &mut S {
    fn record(&mut self, record: &index::Record) -> std::io::Result<()> {
        S::record(self, record)
    }
}

impl RecordSink for Vec<index::Record> {
    fn record(&mut self, record: &index::Record) -> std::io::Result<()> {
        self.push(record.clone());
        Ok(())
    }
}
