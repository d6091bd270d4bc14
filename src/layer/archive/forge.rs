//! Hand-made headers, for tests: everything that a writer would not write.

use super::header::{BLOCK_BYTES, Block, checksum, padding};

/// The three families of headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// Version 7: no magic.
    V7,
    /// POSIX.
    Ustar,
    /// GNU.
    Gnu,
}

/// An archive under construction: blocks are appended as told, checksum are right.
#[derive(Debug, Clone, Default)]
pub struct Forge {
    bytes: Vec<u8>,
}

/// A header block whose fields can be overwritten before it is appended.
#[derive(Debug, Clone)]
pub struct Forged {
    block: Block,
}

impl Forged {
    /// A POSIX header with mode 0644, owner 0, mtime 0.
    pub fn new(name: &[u8], kind: u8, size: u64) -> Self {
        let mut forged = Forged {
            block: [0; BLOCK_BYTES],
        };
        forged = forged
            .set(0, &name[..name.len().min(100)])
            .set(100, b"0000644\0")
            .set(108, b"0000000\0")
            .set(116, b"0000000\0")
            .set(124, format!("{size:011o}\0").as_bytes())
            .set(136, b"00000000000\0")
            .set(156, &[kind]);
        forged.magic(Magic::Ustar)
    }

    /// Overwrites bytes of the block.
    #[must_use]
    pub fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Sets the link target.
    #[must_use]
    pub fn link(self, target: &[u8]) -> Self {
        self.set(157, target)
    }

    /// Sets the format.
    #[must_use]
    pub fn magic(self, magic: Magic) -> Self {
        self.set(
            257,
            match magic {
                Magic::V7 => &[0; 8],
                Magic::Ustar => b"ustar\x0000",
                Magic::Gnu => b"ustar  \0",
            },
        )
    }

    /// The block with its checksum.
    pub fn block(mut self) -> Block {
        fix_checksum(&mut self.block);
        self.block
    }
}

/// Makes the checksum of a block right.
pub(super) fn fix_checksum(block: &mut Block) {
    let checksum = checksum(block);
    block[148..156].copy_from_slice(format!("{checksum:06o}\0 ").as_bytes());
}

impl Forge {
    /// An empty archive.
    pub fn new() -> Self {
        Forge::default()
    }

    /// Appends bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a header and a body with its padding.
    #[must_use]
    pub fn add(self, header: Forged, body: &[u8]) -> Self {
        let padding = padding(body.len() as u64) as usize;
        self.raw(&header.block())
            .raw(body)
            .raw(&[0; BLOCK_BYTES][..padding])
    }

    /// Appends a regular file.
    #[must_use]
    pub fn file(self, name: &[u8], body: &[u8]) -> Self {
        self.add(Forged::new(name, b'0', body.len() as u64), body)
    }

    /// Appends an extension header of the given kind (`x`, `g`, `L`, `K`).
    #[must_use]
    pub fn extension(self, kind: u8, body: &[u8]) -> Self {
        self.add(Forged::new(b"extension", kind, body.len() as u64), body)
    }

    /// Appends a local PAX header.
    #[must_use]
    pub fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        self.extension(b'x', &pax_records(records))
    }

    /// Appends the end of the archive and gives its bytes.
    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 2 * BLOCK_BYTES]).bytes
    }

    /// The bytes without an end.
    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// PAX records with their lengths.
pub fn pax_records(records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let content = key.len() + value.len() + 3;
        let mut length = content + 1;
        while length != content + length.to_string().len() {
            length += 1;
        }
        body.extend_from_slice(format!("{length} ").as_bytes());
        body.extend_from_slice(key);
        body.push(b'=');
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    body
}

/// Archives of every kind that the parser knows, to start mutations from.
pub fn seeds() -> Vec<Vec<u8>> {
    let long = [b'n'; 300];
    let sparse_1_0 = b"2\n0\n4\n4096\n3\n";
    let mut in_data = sparse_1_0.to_vec();
    in_data.resize(BLOCK_BYTES, 0);
    in_data.extend_from_slice(b"headend");
    let mut old_extension = [0u8; BLOCK_BYTES];
    old_extension[..12].copy_from_slice(b"00000010000\0");
    old_extension[12..24].copy_from_slice(b"00000000003\0");
    vec![
        Forge::new().end(),
        Forge::new()
            .add(Forged::new(b"d/", b'5', 0), b"")
            .file(b"d/f", b"content")
            .add(Forged::new(b"d/l", b'1', 0).link(b"d/f"), b"")
            .add(Forged::new(b"d/s", b'2', 0).link(b"../f"), b"")
            .add(
                Forged::new(b"c", b'3', 0)
                    .set(329, b"0000001\0")
                    .set(337, b"0000003\0"),
                b"",
            )
            .add(Forged::new(b"p", b'6', 0), b"")
            .add(Forged::new(b"n", b'0', 3).set(345, b"prefix/of/it"), b"abc")
            .end(),
        Forge::new()
            .add(Forged::new(b"d/", 0, 0).magic(Magic::V7), b"")
            .add(Forged::new(b"d/f", 0, 600).magic(Magic::V7), &[7; 600])
            .end(),
        Forge::new()
            .extension(
                b'g',
                &pax_records(&[(b"comment", b"c"), (b"mtime", b"5.5")]),
            )
            .pax(&[
                (b"path", &long),
                (b"size", b"3"),
                (b"mtime", b"-1.25"),
                (b"uid", b"3000000"),
                (b"SCHILY.xattr.user.a", b"v\n="),
                (b"LIBARCHIVE.xattr.user.b%3D", b"YWI"),
            ])
            .add(Forged::new(b"f", b'0', 0), b"abc")
            .file(b"after", b"it")
            .end(),
        Forge::new()
            .extension(b'L', &[&long[..], b"\0"].concat())
            .extension(b'K', &[&long[..], b"\0"].concat())
            .add(Forged::new(b"n", b'2', 0).magic(Magic::Gnu), b"")
            .add(Forged::new(b"label", b'V', 0).magic(Magic::Gnu), b"")
            .add(Forged::new(b"dump", b'D', 4).magic(Magic::Gnu), b"Yf\0\0")
            .end(),
        Forge::new()
            .pax(&[
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", b"sparse"),
                (b"GNU.sparse.realsize", b"8192"),
            ])
            .file(b"x", &in_data)
            .file(b"after", b"it")
            .end(),
        Forge::new()
            .pax(&[
                (b"GNU.sparse.size", b"8192"),
                (b"GNU.sparse.numblocks", b"2"),
                (b"GNU.sparse.map", b"0,4,4096,3"),
            ])
            .file(b"x", b"headend")
            .pax(&[
                (b"GNU.sparse.size", b"8192"),
                (b"GNU.sparse.numblocks", b"1"),
                (b"GNU.sparse.offset", b"4096"),
                (b"GNU.sparse.numbytes", b"3"),
            ])
            .file(b"y", b"end")
            .end(),
        Forge::new()
            .raw(
                &Forged::new(b"old", b'S', 7)
                    .magic(Magic::Gnu)
                    .set(386, b"00000000000\0")
                    .set(398, b"00000000004\0")
                    .set(482, b"\x01")
                    .set(483, b"00000020000\0")
                    .block(),
            )
            .raw(&old_extension)
            .raw(b"headend")
            .raw(&[0; BLOCK_BYTES - 7])
            .file(b"after", b"it")
            .end(),
    ]
}
