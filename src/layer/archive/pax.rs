//! The records of PAX extended headers.

use super::sparse::{Map, Segment, fault};
use super::{ArchiveError, EntryName, RecordFault, SparseFault, Timestamp};
use crate::layer::limits::Limits;

/// Prefix of the attributes that star, GNU tar and Go write: value as it is.
pub(super) const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
/// Prefix of libarchive's: name percent-encoded, value in base64.
pub(super) const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// What a header says of a property: nothing, that lower headers do not count
/// (a record with an empty value), or a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    Deleted,
    Set(T),
}

impl<T: Copy> Field<T> {
    /// The value of a local header over that of a global one.
    pub(super) fn over(self, global: Field<T>) -> Option<T> {
        match (self, global) {
            (Field::Set(value), _) | (Field::Absent, Field::Set(value)) => Some(value),
            (Field::Deleted, _) | (Field::Absent, Field::Absent | Field::Deleted) => None,
        }
    }
}

/// The records of a local header, or of all global headers so far, by meaning.
/// Later records replace earlier ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Field<u64>,
    pub(super) gid: Field<u64>,
    pub(super) mtime: Field<Timestamp>,
    pub(super) major: Field<u64>,
    pub(super) minor: Field<u64>,
    /// In order of the records; a name may come several times.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Box<SparseRecords>>,
}

/// The `GNU.sparse.` records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    major: Option<u64>,
    minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    real_size: Option<u64>,
    blocks: Option<u64>,
    /// Map of version 0.1.
    list: Option<Map>,
    /// Map of version 0.0, in records of an offset and a length each.
    pairs: Map,
    offset: Option<u64>,
}

/// Where the map of a sparse file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SparsePlan {
    /// It was in the records (0.0, 0.1) or the header block (old GNU).
    Map { size: u64, map: Map },
    /// It goes on in the blocks that follow (old GNU).
    InBlocks { size: u64, map: Map },
    /// It stands before the data (1.0).
    InData { size: u64 },
}

/// Where records come from, for errors and rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// Offset of the header.
    pub(super) at: u64,
    pub(super) global: bool,
}

impl Pax {
    /// Applies the records of a header over what is there.
    pub(super) fn apply(
        &mut self,
        body: &[u8],
        origin: Origin,
        limits: &Limits,
    ) -> Result<(), ArchiveError> {
        let mut rest = body;
        while !rest.is_empty() {
            let (key, value, after) = split_record(rest).map_err(|fault| ArchiveError::Record {
                fault,
                at: origin.at,
            })?;
            if key.contains(&0) {
                return Err(embedded_nul(key, origin));
            }
            self.apply_record(key, value, origin, limits)?;
            rest = after;
        }
        if let Some(sparse) = &self.sparse
            && sparse.offset.is_some()
        {
            return Err(fault(SparseFault::Number, &[]));
        }
        Ok(())
    }

    fn apply_record(
        &mut self,
        key: &[u8],
        value: &[u8],
        origin: Origin,
        limits: &Limits,
    ) -> Result<(), ArchiveError> {
        let invalid = || ArchiveError::RecordValue {
            key: key.into(),
            at: origin.at,
        };
        // Attributes too: each member after the header would have all of them,
        // and no tool writes such a header.
        let member_only = matches!(key, b"path" | b"linkpath" | b"size")
            || [SPARSE, SCHILY_XATTR, LIBARCHIVE_XATTR]
                .iter()
                .any(|prefix| key.starts_with(prefix));
        if member_only && origin.global {
            return Err(ArchiveError::GlobalKey {
                key: key.into(),
                at: origin.at,
            });
        }
        match key {
            b"path" => self.path = name(key, value, origin)?,
            b"linkpath" => self.link = name(key, value, origin)?,
            b"size" => {
                self.size = match value {
                    [] => None,
                    _ => Some(length(value).ok_or_else(invalid)?),
                };
            }
            b"mtime" => self.mtime = field(value, timestamp).ok_or_else(invalid)?,
            b"uid" => self.uid = field(value, decimal).ok_or_else(invalid)?,
            b"gid" => self.gid = field(value, decimal).ok_or_else(invalid)?,
            b"SCHILY.devmajor" => self.major = field(value, decimal).ok_or_else(invalid)?,
            b"SCHILY.devminor" => self.minor = field(value, decimal).ok_or_else(invalid)?,
            _ => {
                if let Some(name) = key.strip_prefix(SCHILY_XATTR) {
                    if name.is_empty() {
                        return Err(invalid());
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                    let name = percent_decode(name).filter(|name| !name.is_empty());
                    let name = name.ok_or_else(invalid)?;
                    if name.contains(&0) {
                        return Err(embedded_nul(key, origin));
                    }
                    let value = base64_decode(value).ok_or_else(invalid)?;
                    self.xattrs.push((name, value));
                } else if let Some(part) = key.strip_prefix(SPARSE) {
                    let sparse = self.sparse.get_or_insert_default();
                    sparse.apply(part, value, key, origin, limits)?;
                }
            }
        }
        Ok(())
    }
}

impl SparseRecords {
    fn apply(
        &mut self,
        part: &[u8],
        value: &[u8],
        key: &[u8],
        origin: Origin,
        limits: &Limits,
    ) -> Result<(), ArchiveError> {
        let invalid = || ArchiveError::RecordValue {
            key: key.into(),
            at: origin.at,
        };
        let number = || length(value).ok_or_else(invalid);
        match part {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"size" => self.size = Some(number()?),
            b"realsize" => self.real_size = Some(number()?),
            b"numblocks" => self.blocks = Some(number()?),
            b"name" => self.name = name(key, value, origin)?,
            b"map" => {
                let mut map = Map::default();
                if !value.is_empty() {
                    map.push_list(value, limits.max_sparse_segments)
                        .ok_or_else(invalid)??;
                }
                self.list = Some(map);
            }
            b"offset" => {
                if self.offset.replace(number()?).is_some() {
                    return Err(invalid());
                }
            }
            b"numbytes" => {
                let segment: Segment = (self.offset.take().ok_or_else(invalid)?, number()?);
                self.pairs.push(segment, limits.max_sparse_segments, &[])?;
            }
            _ => return Err(invalid()),
        }
        Ok(())
    }

    /// Settles which version it is. A single record that belongs to none is an
    /// error: a reader that ignores it sees another file.
    pub(super) fn plan(self, path: &[u8]) -> Result<SparsePlan, ArchiveError> {
        let size = match (self.size, self.real_size) {
            (Some(size), None) | (None, Some(size)) => size,
            (Some(size), Some(real_size)) if size == real_size => size,
            _ => return Err(fault(SparseFault::Size, path)),
        };
        let map = match (self.list, self.pairs.segments.is_empty()) {
            (Some(_), false) => return Err(fault(SparseFault::Mixed, path)),
            (Some(map), true) => Some(map),
            (None, false) => Some(self.pairs),
            (None, true) => None,
        };
        match (self.major, self.minor) {
            (Some(1), Some(0)) => {
                if map.is_some() {
                    return Err(fault(SparseFault::Mixed, path));
                }
                Ok(SparsePlan::InData { size })
            }
            (None, None) | (Some(0), Some(0 | 1)) => {
                let map = map.unwrap_or_default();
                if self.blocks != Some(map.segments.len() as u64) {
                    return Err(fault(SparseFault::Count, path));
                }
                Ok(SparsePlan::Map { size, map })
            }
            _ => Err(fault(SparseFault::Version, path)),
        }
    }
}

/// Key and value of a record, and what comes after it.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits the first record off.
fn split_record(bytes: &[u8]) -> Result<Record<'_>, RecordFault> {
    let space = bytes
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .ok_or(RecordFault::Length)?;
    if bytes[space] != b' ' {
        return Err(RecordFault::Length);
    }
    let length = decimal(&bytes[..space]).ok_or(RecordFault::Length)?;
    let length = usize::try_from(length).map_err(|_| RecordFault::Bounds)?;
    if length > bytes.len() || length < space + 2 {
        return Err(RecordFault::Bounds);
    }
    let (record, after) = bytes.split_at(length);
    let (last, content) = record[space + 1..]
        .split_last()
        .ok_or(RecordFault::Bounds)?;
    if *last != b'\n' {
        return Err(RecordFault::Newline);
    }
    // Only the first `=` counts; the value may have more, and newlines too.
    match content.iter().position(|byte| *byte == b'=') {
        None | Some(0) => Err(RecordFault::Key),
        Some(equals) => Ok((&content[..equals], &content[equals + 1..], after)),
    }
}

fn embedded_nul(field: &[u8], origin: Origin) -> ArchiveError {
    ArchiveError::EmbeddedNul {
        field: EntryName::from(field),
        at: origin.at,
    }
}

/// A path; none if the record is empty.
fn name(key: &[u8], value: &[u8], origin: Origin) -> Result<Option<Vec<u8>>, ArchiveError> {
    if value.contains(&0) {
        return Err(embedded_nul(key, origin));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn field<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Field<T>> {
    match value {
        [] => Some(Field::Deleted),
        _ => parse(value).map(Field::Set),
    }
}

/// A decimal number: digits and nothing else, no sign, at least one.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| {
        if !byte.is_ascii_digit() {
            return None;
        }
        number.checked_mul(10)?.checked_add(u64::from(byte - b'0'))
    })
}

/// A decimal number that a file's size or offset can be: the kernel's are signed.
fn length(digits: &[u8]) -> Option<u64> {
    decimal(digits).filter(|number| i64::try_from(*number).is_ok())
}

/// Seconds with an optional sign and fraction. Digits beyond nanoseconds are cut.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &[][..]),
    };
    let whole = i128::from(decimal(whole)?);
    let mut nanos = 0u32;
    let mut unit = 100_000_000;
    for byte in fraction {
        if !byte.is_ascii_digit() {
            return None;
        }
        nanos += u32::from(byte - b'0') * unit;
        unit /= 10;
    }
    let (seconds, nanos) = match (negative, nanos) {
        (false, _) => (whole, nanos),
        (true, 0) => (-whole, 0),
        // Nanoseconds count forward, also before 1970.
        (true, _) => (-whole - 1, 1_000_000_000 - nanos),
    };
    Some(Timestamp {
        seconds: i64::try_from(seconds).ok()?,
        nanos,
    })
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex(*bytes.next()?)? << 4 | hex(*bytes.next()?)?,
            _ => *byte,
        });
    }
    Some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Base64 with or without its padding: libarchive writes none.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.len() - text.iter().rev().take_while(|byte| **byte == b'=').count();
    let (digits, padding) = text.split_at(end);
    if padding.len() > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut decoded = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        let [_, bytes @ ..] = bits.to_be_bytes();
        decoded.extend_from_slice(&bytes[..group.len() - 1]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(body: &[u8]) -> Result<Pax, ArchiveError> {
        let mut pax = Pax::default();
        let origin = Origin {
            at: 512,
            global: false,
        };
        pax.apply(body, origin, &Limits::default())?;
        Ok(pax)
    }

    #[test]
    fn records_are_split_by_their_length() {
        let table: &[(&[u8], Result<Record<'_>, RecordFault>)] = &[
            (b"6 k=1\n", Ok((b"k", b"1", b""))),
            (b"5 k=\n", Ok((b"k", b"", b""))),
            (b"6 k=1\nrest", Ok((b"k", b"1", b"rest"))),
            (b"006 k=1\n", Err(RecordFault::Newline)),
            (b"008 k=1\n", Ok((b"k", b"1", b""))),
            (b"8 k=\n\n=\n", Ok((b"k", b"\n\n=", b""))),
            (b"8 k=a=b\n", Ok((b"k", b"a=b", b""))),
            (b"", Err(RecordFault::Length)),
            (b"6", Err(RecordFault::Length)),
            (b" k=1\n", Err(RecordFault::Length)),
            (b"+6 k=1\n", Err(RecordFault::Length)),
            (b"-6 k=1\n", Err(RecordFault::Length)),
            (b"0x6 k=1\n", Err(RecordFault::Length)),
            (b"6\tk=1\n", Err(RecordFault::Length)),
            (b"99999999999999999999 k=1\n", Err(RecordFault::Length)),
            (b"18446744073709551615 k=1\n", Err(RecordFault::Bounds)),
            (b"7 k=1\n", Err(RecordFault::Bounds)),
            (b"0 k=1\n", Err(RecordFault::Bounds)),
            (b"2 k=1\n", Err(RecordFault::Bounds)),
            (b"5 k=1\n", Err(RecordFault::Newline)),
            (b"3 \n", Err(RecordFault::Key)),
            (b"5 =1\n", Err(RecordFault::Key)),
            (b"5 kv\n", Err(RecordFault::Key)),
            (b"\0\0\0", Err(RecordFault::Length)),
        ];
        for (bytes, expected) in table {
            assert_eq!(split_record(bytes), *expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn times_have_a_sign_and_nanoseconds() {
        type Case<'a> = (&'a [u8], Option<(i64, u32)>);
        let table: &[Case<'_>] = &[
            (b"0", Some((0, 0))),
            (b"1.5", Some((1, 500_000_000))),
            (b"1.", Some((1, 0))),
            (b"1.000000001", Some((1, 1))),
            (b"1.0000000019", Some((1, 1))),
            (b"-1", Some((-1, 0))),
            (b"-1.5", Some((-2, 500_000_000))),
            (b"-0.000000001", Some((-1, 999_999_999))),
            (b"-0.0000000001", Some((0, 0))),
            (b"-0", Some((0, 0))),
            (
                b"9223372036854775807.999999999",
                Some((i64::MAX, 999_999_999)),
            ),
            (b"9223372036854775808", None),
            (b"-9223372036854775808", Some((i64::MIN, 0))),
            (b"-9223372036854775808.1", None),
            (b"", None),
            (b".5", None),
            (b"+1", None),
            (b"--1", None),
            (b"1.-5", None),
            (b"1e9", None),
            (b"1.5.5", None),
            (b" 1", None),
        ];
        for (value, expected) in table {
            let expected = expected.map(|(seconds, nanos)| Timestamp { seconds, nanos });
            assert_eq!(timestamp(value), expected, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        let table: &[(&[u8], Option<&[u8]>)] = &[
            (b"", Some(b"")),
            (b"YQ", Some(b"a")),
            (b"YQ==", Some(b"a")),
            (b"YWI", Some(b"ab")),
            (b"YWI=", Some(b"ab")),
            (b"YWJj", Some(b"abc")),
            (b"+/+/", Some(b"\xfb\xff\xbf")),
            (b"AAECAwQ", Some(b"\0\x01\x02\x03\x04")),
            (b"Y", None),
            (b"YWJjY", None),
            (b"YQ===", None),
            (b"Y=Q=", None),
            (b"YW\n", None),
            (b"YW-_", None),
        ];
        for (text, expected) in table {
            assert_eq!(base64_decode(text).as_deref(), *expected);
        }
    }

    #[test]
    fn attribute_names_of_libarchive_are_percent_encoded() {
        let pax = applied(b"29 LIBARCHIVE.xattr.a%3Db=YQ\n").unwrap();
        assert_eq!(pax.xattrs, [(b"a=b".to_vec(), b"a".to_vec())]);
        for body in [
            &b"28 LIBARCHIVE.xattr.a%3=YQ\n\n"[..],
            b"28 LIBARCHIVE.xattr.a%zz=YQ\n",
            b"23 LIBARCHIVE.xattr.=YQ\n",
            b"18 SCHILY.xattr.=\n",
            b"24 LIBARCHIVE.xattr.a=Y\n",
        ] {
            assert!(applied(body).is_err(), "{}", body.escape_ascii());
        }
        assert_eq!(
            applied(b"29 LIBARCHIVE.xattr.a%00b=YQ\n"),
            Err(ArchiveError::EmbeddedNul {
                field: EntryName(b"LIBARCHIVE.xattr.a%00b".to_vec()),
                at: 512
            })
        );
    }

    #[test]
    fn the_last_record_of_a_key_counts_and_an_empty_one_deletes() {
        let pax = applied(b"9 uid=12\n8 uid=7\n8 gid=1\n7 gid=\n8 path=\n").unwrap();
        assert_eq!(pax.uid, Field::Set(7));
        assert_eq!(pax.gid, Field::Deleted);
        assert_eq!(pax.path, None);
        assert_eq!(pax.gid.over(Field::Set(9)), None);
        assert_eq!(Field::Absent.over(Field::Set(9)), Some(9));
        assert_eq!(Field::Set(7).over(Field::Set(9)), Some(7));
    }

    #[test]
    fn sparse_versions_are_told_apart() {
        let segments = |list: &[Segment]| Map {
            segments: list.to_vec(),
        };
        let plan = |body: &[u8]| {
            let pax = applied(body)?;
            pax.sparse.unwrap().plan(b"f")
        };
        let map = |size, list: &[Segment]| {
            Ok(SparsePlan::Map {
                size,
                map: segments(list),
            })
        };
        let version_0_0 = b"22 GNU.sparse.size=99\n26 GNU.sparse.numblocks=1\n\
            23 GNU.sparse.offset=1\n25 GNU.sparse.numbytes=2\n";
        assert_eq!(plan(version_0_0), map(99, &[(1, 2)]));
        let version_0_1 =
            b"22 GNU.sparse.size=99\n26 GNU.sparse.numblocks=2\n26 GNU.sparse.map=1,2,5,6\n";
        assert_eq!(plan(version_0_1), map(99, &[(1, 2), (5, 6)]));
        let version_1_0 =
            b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.realsize=99\n";
        assert_eq!(plan(version_1_0), Ok(SparsePlan::InData { size: 99 }));

        let faults: &[(&[u8], SparseFault)] = &[
            (b"22 GNU.sparse.major=1\n", SparseFault::Size),
            (
                b"22 GNU.sparse.size=99\n22 GNU.sparse.major=2\n22 GNU.sparse.minor=0\n",
                SparseFault::Version,
            ),
            (
                b"22 GNU.sparse.size=99\n26 GNU.sparse.realsize=98\n",
                SparseFault::Size,
            ),
            (b"22 GNU.sparse.size=99\n", SparseFault::Count),
            (
                b"22 GNU.sparse.size=99\n26 GNU.sparse.numblocks=2\n22 GNU.sparse.map=1,2\n",
                SparseFault::Count,
            ),
            (b"23 GNU.sparse.offset=1\n", SparseFault::Number),
        ];
        for (body, expected) in faults {
            let error = plan(body).unwrap_err();
            let name = match expected {
                SparseFault::Number => &b""[..],
                _ => b"f",
            };
            assert_eq!(error, fault(*expected, name), "{}", body.escape_ascii());
        }
        for body in [
            &b"25 GNU.sparse.numbytes=2\n"[..],
            b"23 GNU.sparse.offset=1\n23 GNU.sparse.offset=1\n",
            b"20 GNU.sparse.map=1\n",
            b"23 GNU.sparse.map=1,2,\n",
            b"20 GNU.sparse.new=1\n",
            b"23 GNU.sparse.size=-99\n",
        ] {
            assert!(
                matches!(applied(body), Err(ArchiveError::RecordValue { .. })),
                "{}",
                body.escape_ascii()
            );
        }
    }
}
