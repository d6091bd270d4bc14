//! One header block. Nothing here knows what came before it.

/// Bytes of a block; headers are one, data is padded to whole ones.
pub(super) const BLOCK_BYTES: usize = 512;

/// A block.
pub(super) type Block = [u8; BLOCK_BYTES];

/// Bytes from `length` to the next block boundary.
pub(super) fn padding(length: u64) -> u64 {
    // The remainder is below 512, so nothing here can overflow.
    (BLOCK_BYTES as u64 - length % BLOCK_BYTES as u64) % BLOCK_BYTES as u64
}

/// Whether the block is all zeros.
pub(super) fn is_zero(block: &Block) -> bool {
    block[0] == 0 && block.iter().all(|byte| *byte == 0)
}

/// Which fields lie behind the first 257 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// None: Unix version 7.
    V7,
    /// POSIX: device numbers, a prefix of 155 bytes.
    Ustar,
    /// Schilling's star: device numbers, a prefix of 131 bytes, times.
    Star,
    /// GNU: device numbers, times, sparse map, no prefix.
    Gnu,
}

/// A header block with its checksum verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'b> {
    block: &'b Block,
    format: Format,
}

impl<'b> Header<'b> {
    /// None if the checksum is wrong, whether its bytes were summed as
    /// unsigned or, as some old systems did, as signed numbers.
    pub(super) fn new(block: &'b Block) -> Option<Self> {
        let stored = octal(&block[CHECKSUM])?;
        if stored != u64::from(checksum(block))
            && i64::try_from(stored).ok()? != signed_checksum(block)
        {
            return None;
        }
        let format = match &block[257..265] {
            b"ustar  \0" => Format::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if &block[508..512] == b"tar\0" => Format::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            _ => Format::V7,
        };
        Some(Header { block, format })
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// Prefix and name, joined.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[0..100]);
        let prefix = match self.format {
            Format::V7 => &[][..],
            Format::Ustar => text(&self.block[345..500]),
            Format::Star => text(&self.block[345..476]),
            Format::Gnu => self.misplaced_prefix(),
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        let mut path = Vec::with_capacity(prefix.len() + 1 + name.len());
        path.extend_from_slice(prefix);
        path.push(b'/');
        path.extend_from_slice(name);
        path
    }

    /// Go before 1.8 wrote the POSIX prefix into GNU headers, over the times
    /// that are there. Such layers are still pulled, so a prefix is seen where
    /// the fields are no times and the text is plain ASCII, as Go itself does.
    fn misplaced_prefix(&self) -> &'b [u8] {
        let is_time = |field: &[u8]| field[0] == 0 || numeric(field).is_some();
        if is_time(&self.block[345..357]) && is_time(&self.block[357..369]) {
            return &[];
        }
        let prefix = text(&self.block[345..500]);
        if prefix.is_ascii() { prefix } else { &[] }
    }

    pub(super) fn link(&self) -> &'b [u8] {
        text(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Option<i64> {
        numeric(&self.block[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        numeric(&self.block[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        numeric(&self.block[116..124])
    }

    /// Bytes of data behind the header; none if it is no number or negative.
    pub(super) fn size(&self) -> Option<u64> {
        numeric(&self.block[124..136]).and_then(|size| u64::try_from(size).ok())
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        numeric(&self.block[136..148])
    }

    /// Major and minor number; zeros in the version 7 format, which has none.
    pub(super) fn device(&self) -> Option<(i64, i64)> {
        if self.format == Format::V7 {
            return Some((0, 0));
        }
        let major = numeric(&self.block[329..337])?;
        Some((major, numeric(&self.block[337..345])?))
    }

    /// Apparent size of an old GNU sparse file.
    pub(super) fn sparse_size(&self) -> Option<u64> {
        numeric(&self.block[483..495]).and_then(|size| u64::try_from(size).ok())
    }

    /// The four segments of an old GNU sparse header, and whether a block with
    /// more of them follows.
    pub(super) fn sparse_map(&self) -> (&'b [u8], bool) {
        (&self.block[386..482], self.block[482] != 0)
    }
}

/// The 21 segments of an old GNU sparse extension block, and whether another follows.
pub(super) fn sparse_extension(block: &Block) -> (&[u8], bool) {
    (&block[..504], block[504] != 0)
}

/// Bytes of the checksum's own field, which count as spaces.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Sum of the block's bytes, with the checksum field taken as spaces.
pub(super) fn checksum(block: &Block) -> u32 {
    const SPACES: u32 = 8 * b' ' as u32;
    // Sixteen sums side by side, which compilers turn into vector instructions;
    // each is of 32 bytes, so sixteen bits suffice.
    let mut sums = [0u16; 16];
    for row in block.as_chunks::<16>().0 {
        for (sum, byte) in sums.iter_mut().zip(row) {
            *sum += u16::from(*byte);
        }
    }
    let sum: u32 = sums.into_iter().map(u32::from).sum();
    let own: u32 = block[CHECKSUM].iter().map(|byte| u32::from(*byte)).sum();
    sum - own + SPACES
}

/// The same with the bytes as signed numbers, as some old systems summed them.
fn signed_checksum(block: &Block) -> i64 {
    let high = |bytes: &[u8]| bytes.iter().filter(|byte| **byte >= 0x80).count();
    // A byte with the high bit is 256 less as a signed number.
    let count = high(block) - high(&block[CHECKSUM]);
    i64::from(checksum(block)) - 256 * count as i64
}

/// A text field: up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    match field.iter().position(|byte| *byte == 0) {
        Some(end) => &field[..end],
        None => field,
    }
}

/// A number: octal digits, or base 256 where the first bit is set.
pub(super) fn numeric(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field).and_then(|number| i64::try_from(number).ok()),
    }
}

/// Octal digits among leading spaces and NULs and a trailing space or NUL;
/// zero if there is nothing else.
fn octal(field: &[u8]) -> Option<u64> {
    let start = field
        .iter()
        .position(|byte| !matches!(byte, b' ' | 0))
        .unwrap_or(field.len());
    let mut number = 0u64;
    for (index, byte) in field.iter().enumerate().skip(start) {
        match byte {
            b'0'..=b'7' => number = number.checked_mul(8)? + u64::from(byte - b'0'),
            // What lies behind a NUL is left over from an earlier header.
            0 => break,
            b' ' => {
                let rest = &field[index..];
                return rest
                    .iter()
                    .all(|byte| matches!(byte, b' ' | 0))
                    .then_some(number);
            }
            _ => return None,
        }
    }
    Some(number)
}

/// Two's complement, big-endian, in all bits but the first.
fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    // The second bit is the sign; it fills the place of the first.
    let mut number = if first & 0x40 != 0 {
        i64::from(*first) - 0x100
    } else {
        i64::from(first & 0x7f)
    };
    for byte in rest {
        number = number.checked_mul(256)?.checked_add(i64::from(*byte))?;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let table: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"000644 \0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0 644 \0", Some(0o644)),
            (b"644     ", Some(0o644)),
            (b"77777777", Some(0o77_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"", Some(0)),
            (b"12\x0034567", Some(0o12)),
            (b"12 34\0\0\0", None),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"+000001\0", None),
            (b"0x1f\0\0\0\0", None),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", Some(258)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                Some(-1),
            ),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\0\0\0\xff\xff\xff\xff", Some(0xffff_ffff)),
            (b"\xc0\0\0\0\0\0\0\0", Some(-(1 << 62))),
            (b"\xa0\0\0\0\0\0\0\0", Some(1 << 61)),
        ];
        for (field, number) in table {
            assert_eq!(numeric(field), *number, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn padding_reaches_the_next_block() {
        for (length, pad) in [
            (0, 0),
            (1, 511),
            (511, 1),
            (512, 0),
            (513, 511),
            (u64::MAX, 1),
        ] {
            assert_eq!(padding(length), pad);
        }
    }

    #[test]
    fn signed_and_unsigned_sums_differ_by_the_high_bytes() {
        let mut block = [0u8; BLOCK_BYTES];
        block[0] = 0xff;
        block[1] = 0x80;
        block[148] = 0xff;
        let unsigned = 0xffu32 + 0x80 + 8 * 0x20;
        assert_eq!(checksum(&block), unsigned);
        assert_eq!(signed_checksum(&block), i64::from(unsigned) - 512);
    }
}
