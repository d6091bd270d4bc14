//! Where the data of sparse files lies: the four forms of a map, one check.

use super::header::numeric;
use super::pax::decimal;
use super::{ArchiveError, EntryName, SparseFault};

/// Offset in the file and length of a run of data.
pub(super) type Segment = (u64, u64);

/// Bytes of one segment in an old GNU map: two numbers of twelve.
const OLD_SEGMENT_BYTES: usize = 24;

/// A map while it is read: it never holds more than the limit, whatever is promised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) segments: Vec<Segment>,
}

impl Map {
    pub(super) fn push(
        &mut self,
        segment: Segment,
        limit: usize,
        name: &[u8],
    ) -> Result<(), ArchiveError> {
        if self.segments.len() >= limit {
            return Err(ArchiveError::TooManySegments {
                limit,
                seen: self.segments.len() as u64 + 1,
                name: name.into(),
            });
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Reads the segments of an old GNU header or extension block; the first
    /// one without an offset ends them.
    pub(super) fn push_old(
        &mut self,
        fields: &[u8],
        limit: usize,
        name: &[u8],
    ) -> Result<(), ArchiveError> {
        for field in fields.chunks_exact(OLD_SEGMENT_BYTES) {
            if field[0] == 0 {
                break;
            }
            let number = |field: &[u8]| {
                numeric(field)
                    .and_then(|number| u64::try_from(number).ok())
                    .ok_or_else(|| fault(SparseFault::Number, name))
            };
            self.push((number(&field[..12])?, number(&field[12..])?), limit, name)?;
        }
        Ok(())
    }

    /// Reads the comma-separated numbers of `GNU.sparse.map` (0.1). None if
    /// they are none, or not in pairs.
    pub(super) fn push_list(
        &mut self,
        list: &[u8],
        limit: usize,
    ) -> Option<Result<(), ArchiveError>> {
        let mut numbers = list.split(|byte| *byte == b',');
        while let Some(offset) = numbers.next() {
            let offset = decimal(offset)?;
            let length = decimal(numbers.next()?)?;
            if let Err(error) = self.push((offset, length), limit, &[]) {
                return Some(Err(error));
            }
        }
        Some(Ok(()))
    }

    /// Checks the map against the apparent size and the length of what is
    /// stored, and returns it without its empty segments.
    pub(super) fn checked(
        mut self,
        size: u64,
        stored: u64,
        name: &[u8],
    ) -> Result<Vec<Segment>, ArchiveError> {
        let mut end_before = 0u64;
        let mut total = 0u64;
        for (offset, length) in &self.segments {
            if *offset < end_before {
                return Err(fault(SparseFault::Order, name));
            }
            end_before = match offset.checked_add(*length) {
                Some(end) if end <= size => end,
                _ => return Err(fault(SparseFault::BeyondEnd, name)),
            };
            // No overflow: segments do not overlap, so they sum to less than the size.
            total += length;
        }
        if total != stored {
            return Err(fault(SparseFault::StoredLength, name));
        }
        self.segments.retain(|(_, length)| *length > 0);
        Ok(self.segments)
    }
}

/// The map of the 1.0 format, which stands before the file's data as decimal
/// numbers with a newline each: how many segments, then offset and length of
/// each. It comes in pieces, so it is read byte by byte.
#[derive(Debug, Clone, Default)]
pub(super) struct MapReader {
    promised: Option<u64>,
    offset: Option<u64>,
    number: Option<u64>,
    map: Map,
}

impl MapReader {
    /// Takes bytes and returns how many it used, and whether the map is complete.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        limit: usize,
        name: &[u8],
    ) -> Result<(usize, bool), ArchiveError> {
        for (index, byte) in bytes.iter().enumerate() {
            match byte {
                b'0'..=b'9' => {
                    let number = self
                        .number
                        .unwrap_or(0)
                        .checked_mul(10)
                        .and_then(|number| number.checked_add(u64::from(byte - b'0')))
                        .ok_or_else(|| fault(SparseFault::Number, name))?;
                    self.number = Some(number);
                }
                b'\n' => {
                    let number = self
                        .number
                        .take()
                        .ok_or_else(|| fault(SparseFault::Number, name))?;
                    if self.number_read(number, limit, name)? {
                        return Ok((index + 1, true));
                    }
                }
                _ => return Err(fault(SparseFault::Number, name)),
            }
        }
        Ok((bytes.len(), false))
    }

    /// Puts a number in its place; true if it was the last.
    fn number_read(
        &mut self,
        number: u64,
        limit: usize,
        name: &[u8],
    ) -> Result<bool, ArchiveError> {
        match (self.promised, self.offset.take()) {
            (None, _) => {
                if number > limit as u64 {
                    return Err(ArchiveError::TooManySegments {
                        limit,
                        seen: number,
                        name: name.into(),
                    });
                }
                self.promised = Some(number);
            }
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => self.map.push((offset, number), limit, name)?,
        }
        Ok(self.offset.is_none() && self.promised == Some(self.map.segments.len() as u64))
    }

    pub(super) fn finish(self) -> Map {
        self.map
    }

    /// Segments read so far, for tests of the bound.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn segments(&self) -> usize {
        self.map.segments.len()
    }
}

pub(super) fn fault(fault: SparseFault, name: &[u8]) -> ArchiveError {
    ArchiveError::Sparse {
        fault,
        name: EntryName::from(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], limit: usize) -> Result<(usize, bool, Vec<Segment>), ArchiveError> {
        let mut reader = MapReader::default();
        let (used, complete) = reader.push(text, limit, b"f")?;
        Ok((used, complete, reader.finish().segments))
    }

    #[test]
    fn a_map_before_the_data_ends_where_it_says() {
        assert_eq!(read(b"0\n0\n", 9), Ok((2, true, vec![])));
        assert_eq!(read(b"1\n5\n7\nDATA", 9), Ok((6, true, vec![(5, 7)])));
        assert_eq!(read(b"2\n5\n7\n", 9), Ok((6, false, vec![(5, 7)])));
        assert_eq!(read(b"2\n5\n7\n9\n", 9), Ok((8, false, vec![(5, 7)])));
        for text in [
            &b"\n"[..],
            b"1\n\n",
            b"-1\n",
            b"1 \n",
            b"18446744073709551616\n",
        ] {
            assert_eq!(read(text, 9), Err(fault(SparseFault::Number, b"f")));
        }
    }

    // CVE-2025-58183 (Go): a map that promises billions of segments made the
    // reader allocate for them.
    #[test]
    fn a_promise_of_segments_is_refused_before_they_come() {
        let error = ArchiveError::TooManySegments {
            limit: 9,
            seen: 9_999_999_999,
            name: EntryName(b"f".to_vec()),
        };
        assert_eq!(read(b"9999999999\n", 9), Err(error));
    }

    #[test]
    fn maps_are_ordered_inside_the_file_and_cover_what_is_stored() {
        type Case<'a> = (&'a [Segment], u64, u64, Result<&'a [Segment], SparseFault>);
        let table: &[Case<'_>] = &[
            (&[], 10, 0, Ok(&[])),
            (&[(0, 4), (4, 6)], 10, 10, Ok(&[(0, 4), (4, 6)])),
            (&[(2, 4), (10, 0)], 10, 4, Ok(&[(2, 4)])),
            (&[(2, 4), (5, 1)], 10, 5, Err(SparseFault::Order)),
            (&[(5, 1), (2, 1)], 10, 2, Err(SparseFault::Order)),
            (&[(5, 6)], 10, 6, Err(SparseFault::BeyondEnd)),
            (&[(11, 0)], 10, 0, Err(SparseFault::BeyondEnd)),
            (&[(u64::MAX, 2)], u64::MAX, 2, Err(SparseFault::BeyondEnd)),
            (&[(0, 4)], 10, 5, Err(SparseFault::StoredLength)),
            (&[(0, 4)], 10, 3, Err(SparseFault::StoredLength)),
        ];
        for (segments, size, stored, expected) in table {
            let map = Map {
                segments: segments.to_vec(),
            };
            let expected = expected
                .map(<[Segment]>::to_vec)
                .map_err(|sparse| fault(sparse, b"f"));
            assert_eq!(map.checked(*size, *stored, b"f"), expected, "{segments:?}");
        }
    }
}
