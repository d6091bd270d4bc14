//! One header block of a tar, and the records of a PAX header, as far as they
//! say where members are.

/// Tars consist of blocks of this many bytes.
pub(super) const BLOCK_BYTES: usize = 512;

/// What a header introduces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    /// Directories and special files, which have no data.
    Empty,
    /// GNU sparse file.
    Sparse,
    LongName,
    LongLink,
    Pax,
    PaxGlobal,
    /// Not defined; it has data as its size says.
    Unknown,
}

impl Kind {
    /// Whether it is no member but says something about others.
    pub(super) fn is_extension(self) -> bool {
        matches!(
            self,
            Kind::LongName | Kind::LongLink | Kind::Pax | Kind::PaxGlobal
        )
    }
}

/// A header whose checksum is right.
#[derive(Debug)]
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK_BYTES],
    pub(super) kind: Kind,
    pub(super) size: u64,
}

impl<'a> Header<'a> {
    /// Reads a block; none if it is no header.
    pub(super) fn parse(block: &'a [u8; BLOCK_BYTES]) -> Option<Self> {
        let stated = number(&block[148..156])?;
        let rest = || block[..148].iter().chain(&block[156..]);
        // The checksum's own field counts as eight spaces.
        let unsigned: u64 = rest().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
        // Old writers summed signed characters.
        let signed: i64 = rest()
            .map(|byte| i64::from(byte.cast_signed()))
            .sum::<i64>()
            + 8 * 32;
        if stated != unsigned && i64::try_from(stated) != Ok(signed) {
            return None;
        }
        let mut kind = match block[156] {
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3'..=b'6' => Kind::Empty,
            b'S' => Kind::Sparse,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            b'x' => Kind::Pax,
            b'g' => Kind::PaxGlobal,
            _ => Kind::Unknown,
        };
        if kind == Kind::File && super::until_nul(&block[..100]).ends_with(b"/") {
            kind = Kind::Empty;
        }
        Some(Header {
            block,
            kind,
            size: number(&block[124..136])?,
        })
    }

    /// The name, with the prefix that POSIX has (and GNU uses otherwise).
    pub(super) fn name(&self) -> Vec<u8> {
        let name = super::until_nul(&self.block[..100]);
        let prefix = super::until_nul(&self.block[345..500]);
        if &self.block[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    /// Where a link leads.
    pub(super) fn link(&self) -> Vec<u8> {
        super::until_nul(&self.block[157..257]).to_vec()
    }
}

/// A number in octal, or in base 256 if the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Bit 6 is the sign; nothing here is negative.
        let mut value = u64::from(first & 0x7f);
        if value >= 0x40 {
            return None;
        }
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(value);
    }
    let text = std::str::from_utf8(super::until_nul(field)).ok()?;
    match text.trim_matches(' ') {
        "" => Some(0),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            u64::from_str_radix(digits, 8).ok()
        }
        _ => None,
    }
}

/// What matters of a PAX header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PaxRecords {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) sparse: bool,
}

impl PaxRecords {
    /// Reads `<length> <key>=<value>\n` records; none if they are malformed.
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut records = PaxRecords::default();
        while !bytes.is_empty() {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => records.path = Some(value.to_vec()),
                b"linkpath" => records.link_path = Some(value.to_vec()),
                b"size" => records.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                _ if key.starts_with(b"GNU.sparse.") => records.sparse = true,
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Some(records)
    }
}
