//! Records in a file, in the order in which they came: for lists that memory
//! should not hold.

use super::Record;
use super::codec::{decode, encode};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

/// Written to memory at most before it goes to the file, in bytes.
const BUFFER: usize = 8 << 10;

/// A list of records in a file of its own.
#[derive(Debug)]
pub struct RecordLog {
    out: BufWriter<File>,
    scratch: Vec<u8>,
}

impl RecordLog {
    /// An empty list in an empty file.
    pub fn new(file: File) -> Self {
        RecordLog {
            out: BufWriter::with_capacity(BUFFER, file),
            scratch: Vec::new(),
        }
    }

    /// Appends a record.
    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        self.scratch.clear();
        encode(record, &mut self.scratch);
        self.out
            .write_all(&(self.scratch.len() as u32).to_le_bytes())?;
        self.out.write_all(&self.scratch)
    }

    /// Ends the list and reads it from the beginning.
    pub fn read(self) -> io::Result<impl Iterator<Item = io::Result<Record>>> {
        let mut file = self
            .out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        let mut input = BufReader::with_capacity(BUFFER, file);
        let mut block = Vec::new();
        Ok(std::iter::from_fn(move || {
            let mut length = [0; 4];
            match input.read_exact(&mut length) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
                Err(error) => return Some(Err(error)),
                Ok(()) => {}
            }
            block.resize(u32::from_le_bytes(length) as usize, 0);
            Some(input.read_exact(&mut block).and_then(|()| decode(&block)))
        }))
    }
}
