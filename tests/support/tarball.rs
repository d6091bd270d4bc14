//! A tar writer for tests: ordinary layers in one line each, and headers of
//! which every field can be set to what no sane archive holds.

use super::entry::{self, Entry, EntryKind, Layer, Time};
use std::io::Write;
use std::ops::Range;

pub const BLOCK: usize = 512;

/// Fields of a header block, by offset: for [`Header::raw`].
pub mod field {
    use std::ops::Range;
    pub const NAME: Range<usize> = 0..100;
    pub const MODE: Range<usize> = 100..108;
    pub const UID: Range<usize> = 108..116;
    pub const GID: Range<usize> = 116..124;
    pub const SIZE: Range<usize> = 124..136;
    pub const MTIME: Range<usize> = 136..148;
    pub const CHECKSUM: Range<usize> = 148..156;
    pub const TYPE: Range<usize> = 156..157;
    pub const LINK: Range<usize> = 157..257;
    pub const MAGIC: Range<usize> = 257..265;
    pub const UNAME: Range<usize> = 265..297;
    pub const GNAME: Range<usize> = 297..329;
    pub const MAJOR: Range<usize> = 329..337;
    pub const MINOR: Range<usize> = 337..345;
    pub const PREFIX: Range<usize> = 345..500;
}

/// One header block. Setters cut off what does not fit; the checksum is made
/// when the block is taken, unless it was set.
#[derive(Clone, Debug)]
pub struct Header {
    block: [u8; BLOCK],
    own_checksum: bool,
}

impl Header {
    /// A POSIX header with zeros for numbers and mode 0644.
    pub fn new(name: impl AsRef<[u8]>, typeflag: u8) -> Self {
        let header = Header {
            block: [0; BLOCK],
            own_checksum: false,
        };
        header
            .raw(field::NAME, name)
            .raw(field::TYPE, [typeflag])
            .raw(field::MAGIC, b"ustar\x0000")
            .octal(field::MODE, 0o644)
            .octal(field::UID, 0)
            .octal(field::GID, 0)
            .octal(field::SIZE, 0)
            .octal(field::MTIME, 0)
            .octal(field::MAJOR, 0)
            .octal(field::MINOR, 0)
    }

    /// A field's bytes, filled up with NUL.
    pub fn raw(mut self, field: Range<usize>, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let place = &mut self.block[field.clone()];
        place.fill(0);
        let length = bytes.len().min(place.len());
        place[..length].copy_from_slice(&bytes[..length]);
        self.own_checksum |= field == field::CHECKSUM;
        self
    }

    /// A number as tar has it: octal digits and a NUL. One that does not fit
    /// is an error of the test.
    pub fn octal(self, field: Range<usize>, value: u64) -> Self {
        let width = field.len() - 1;
        let digits = format!("{value:0width$o}");
        assert!(
            digits.len() <= width,
            "{value} does not fit into {width} octal digits"
        );
        self.raw(field, digits)
    }

    /// A number in GNU's binary form, for any value that 64 bits hold.
    pub fn binary(self, field: Range<usize>, value: i64) -> Self {
        let mut bytes = vec![if value < 0 { 0xff } else { 0 }; field.len()];
        let start = bytes.len() - 8;
        bytes[start..].copy_from_slice(&value.to_be_bytes());
        bytes[0] |= 0x80;
        self.raw(field, bytes)
    }

    pub fn block(&self) -> [u8; BLOCK] {
        let mut block = self.block;
        if !self.own_checksum {
            block[field::CHECKSUM].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[field::CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        block
    }
}

/// A tar in the making. Methods that describe an entry append it; [`Tar::mode`]
/// and its like change the entry appended last.
#[derive(Clone, Debug, Default)]
pub struct Tar {
    members: Vec<Member>,
    no_trailer: bool,
}

#[derive(Clone, Debug)]
enum Member {
    Entry(Entry),
    Bytes(Vec<u8>),
}

impl Tar {
    pub fn new() -> Self {
        Tar::default()
    }

    pub fn from_layer(layer: &Layer) -> Self {
        layer.iter().cloned().fold(Tar::new(), Tar::entry)
    }

    pub fn entry(mut self, entry: Entry) -> Self {
        self.members.push(Member::Entry(entry));
        self
    }

    pub fn dir(self, path: impl AsRef<[u8]>, mode: u32) -> Self {
        self.entry(entry::dir(path).mode(mode))
    }

    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(entry::file(path, content))
    }

    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(entry::symlink(path, target))
    }

    pub fn hardlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(entry::hardlink(path, target))
    }

    pub fn fifo(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(entry::fifo(path))
    }

    pub fn char_device(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.entry(Entry::new(path, EntryKind::Char(major, minor)))
    }

    pub fn block_device(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.entry(Entry::new(path, EntryKind::Block(major, minor)))
    }

    /// The marker that hides `path`, as in [`entry::whiteout`].
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(entry::whiteout(path))
    }

    /// The marker that hides what is inside `dir`, as in [`entry::opaque`].
    pub fn opaque(self, dir: impl AsRef<[u8]>) -> Self {
        self.entry(entry::opaque(dir))
    }

    pub fn mode(self, mode: u32) -> Self {
        self.change_last(|entry| entry.mode(mode))
    }

    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.change_last(|entry| entry.owner(uid, gid))
    }

    pub fn mtime(self, seconds: i64, nanos: u32) -> Self {
        self.change_last(|entry| entry.mtime(seconds, nanos))
    }

    pub fn xattr(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.change_last(|entry| entry.xattr(name, value))
    }

    fn change_last(mut self, change: impl FnOnce(Entry) -> Entry) -> Self {
        match self.members.pop() {
            Some(Member::Entry(entry)) => self.entry(change(entry)),
            other => panic!("the last member is no entry: {other:?}"),
        }
    }

    /// A header as it is, and data filled up to whole blocks. The header's size
    /// field is the caller's.
    pub fn raw(self, header: &Header, data: impl AsRef<[u8]>) -> Self {
        let mut bytes = header.block().to_vec();
        push_data(&mut bytes, data.as_ref());
        self.bytes(bytes)
    }

    /// A PAX header for the next member (`x`), or for all that follow (`g`).
    pub fn pax<K: AsRef<[u8]>, V: AsRef<[u8]>>(self, typeflag: u8, records: &[(K, V)]) -> Self {
        let data: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key.as_ref(), value.as_ref()))
            .collect();
        let header = Header::new("PaxHeader", typeflag).octal(field::SIZE, data.len() as u64);
        self.raw(&header, data)
    }

    /// GNU's header for a long name (`L`) or link target (`K`) of the next member.
    pub fn gnu_long(self, typeflag: u8, text: impl AsRef<[u8]>) -> Self {
        let data = [text.as_ref(), b"\0"].concat();
        let header = Header::new("././@LongLink", typeflag)
            .raw(field::MAGIC, b"ustar  \0")
            .octal(field::SIZE, data.len() as u64);
        self.raw(&header, data)
    }

    /// Any bytes at all, as they are.
    pub fn bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.members.push(Member::Bytes(bytes.into()));
        self
    }

    /// Leaves out the two zero blocks at the end.
    pub fn without_trailer(mut self) -> Self {
        self.no_trailer = true;
        self
    }

    /// The entries, for the model; raw bytes are not among them.
    pub fn layer(&self) -> Layer {
        self.members
            .iter()
            .filter_map(|member| match member {
                Member::Entry(entry) => Some(entry.clone()),
                Member::Bytes(_) => None,
            })
            .collect()
    }

    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for member in &self.members {
            match member {
                Member::Entry(entry) => push_entry(&mut bytes, entry),
                Member::Bytes(raw) => bytes.extend_from_slice(raw),
            }
        }
        if !self.no_trailer {
            bytes.resize(bytes.len() + 2 * BLOCK, 0);
        }
        bytes
    }
}

/// The tars of a stack, the lowest first.
pub fn tars(layers: &[Layer]) -> Vec<Vec<u8>> {
    layers
        .iter()
        .map(|layer| Tar::from_layer(layer).build())
        .collect()
}

/// An entry in POSIX form, with a PAX header where the plain one is too small.
fn push_entry(bytes: &mut Vec<u8>, entry: &Entry) {
    let mut name = entry.path.clone();
    if entry.kind == EntryKind::Dir && !name.ends_with(b"/") {
        // The root's own entry is `./`.
        name.extend_from_slice(if name.is_empty() { b"./" } else { b"/" });
    }
    let nothing: &[u8] = b"";
    let (typeflag, link, data, device) = match &entry.kind {
        EntryKind::File(content) => (b'0', nothing, content.as_slice(), (0, 0)),
        EntryKind::HardLink(target) => (b'1', target.as_slice(), nothing, (0, 0)),
        EntryKind::Symlink(target) => (b'2', target.as_slice(), nothing, (0, 0)),
        EntryKind::Char(major, minor) => (b'3', nothing, nothing, (*major, *minor)),
        EntryKind::Block(major, minor) => (b'4', nothing, nothing, (*major, *minor)),
        EntryKind::Dir => (b'5', nothing, nothing, (0, 0)),
        EntryKind::Fifo => (b'6', nothing, nothing, (0, 0)),
    };
    let mut records = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| records.extend(pax_record(key, value));
    if name.len() > field::NAME.len() {
        record(b"path", &name);
    }
    if link.len() > field::LINK.len() {
        record(b"linkpath", link);
    }
    let plain_time = entry.mtime.nanos == 0 && (0..1 << 33).contains(&entry.mtime.seconds);
    if !plain_time {
        record(b"mtime", decimal_time(entry.mtime).as_bytes());
    }
    const MAX_OCTAL_ID: u32 = 0o7_777_777;
    if entry.uid > MAX_OCTAL_ID {
        record(b"uid", entry.uid.to_string().as_bytes());
    }
    if entry.gid > MAX_OCTAL_ID {
        record(b"gid", entry.gid.to_string().as_bytes());
    }
    for (attribute, value) in &entry.xattrs {
        record(&[b"SCHILY.xattr.", attribute.as_slice()].concat(), value);
    }
    if !records.is_empty() {
        let header = Header::new("PaxHeader", b'x').octal(field::SIZE, records.len() as u64);
        bytes.extend_from_slice(&header.block());
        push_data(bytes, &records);
    }
    let octal_id = |id: u32| u64::from(if id > MAX_OCTAL_ID { 0 } else { id });
    let seconds = if plain_time { entry.mtime.seconds } else { 0 };
    let header = Header::new(&name, typeflag)
        .octal(field::MODE, entry.mode.into())
        .octal(field::UID, octal_id(entry.uid))
        .octal(field::GID, octal_id(entry.gid))
        .octal(field::SIZE, data.len() as u64)
        .octal(field::MTIME, seconds.unsigned_abs())
        .octal(field::MAJOR, device.0.into())
        .octal(field::MINOR, device.1.into())
        .raw(field::LINK, link);
    bytes.extend_from_slice(&header.block());
    push_data(bytes, data);
}

fn push_data(bytes: &mut Vec<u8>, data: &[u8]) {
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
}

/// `<length> <key>=<value>\n`, where the length counts itself.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// Seconds with a decimal fraction, the sign before the whole.
fn decimal_time(time: Time) -> String {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let magnitude = nanos.unsigned_abs();
    let (whole, fraction) = (magnitude / 1_000_000_000, magnitude % 1_000_000_000);
    if fraction == 0 {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{fraction:09}")
    }
}

/// How a layer's tar is stored in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    /// Several gzip members one after the other, as parallel compressors write.
    GzipMembers(usize),
    Zstd,
}

impl Compression {
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip | Compression::GzipMembers(_) => {
                "application/vnd.oci.image.layer.v1.tar+gzip"
            }
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    pub fn compress(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Compression::None => bytes.to_vec(),
            Compression::Gzip => gzip(bytes),
            Compression::GzipMembers(count) => {
                let part = bytes.len().div_ceil(count.max(1)).max(1);
                bytes.chunks(part).flat_map(gzip).collect()
            }
            Compression::Zstd => zstd::encode_all(bytes, 3).expect("zstd into memory"),
        }
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).expect("gzip into memory");
    encoder.finish().expect("gzip into memory")
}
