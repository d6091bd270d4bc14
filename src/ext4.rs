//! An empty ext4 filesystem, as bytes at offsets, for images that limit a
//! writable layer. Pure: whoever has a file that reads as zeroes writes these
//! few bytes into it, and the kernel mounts it. No `mkfs` is run.
//!
//! ```text
//! block 0  superblock, at byte 1024
//!       1  group descriptors
//!          block bitmaps, inode bitmaps, inode tables: of all groups in a row
//!          journal
//!          root directory, lost+found
//!          free
//! ```
//!
//! Everything that is used at first is one run at the start (`flex_bg` lets the
//! bitmaps and tables of a group be anywhere), so that hardly anything but zeroes
//! has to be written, whatever the size. There is a journal, for a node may lose
//! its power; no copies of the superblock (`sparse_super2` without any), for
//! nobody repairs such an image; and no checksums of metadata, which are for disks
//! that forget. Numbers of fields are from Documentation/filesystems/ext4 and
//! fs/ext4/ext4.h of Linux, and of the journal from include/linux/jbd2.h.

use std::io;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Blocks of a group: as many as a block has bits.
const GROUP_BLOCKS: u64 = 8 * BLOCK;
/// Bytes of an inode: the kernel's and mke2fs's usual size, with room for
/// nanoseconds and short extended attributes.
const INODE_BYTES: u64 = 256;
const BLOCK_INODES: u64 = BLOCK / INODE_BYTES;
/// Bytes of a group descriptor, and how many a block holds.
const DESCRIPTOR: u64 = 32;
const BLOCK_DESCRIPTORS: u64 = BLOCK / DESCRIPTOR;

/// Below this many bytes a filesystem gets an inode for every 4 KiB, as mke2fs
/// does it for small ones; above, for every 16 KiB.
const SMALL: u64 = 512 << 20;

/// The root directory's inode, the journal's, and that of lost+found, the first
/// that is not reserved.
const ROOT: u64 = 2;
const JOURNAL: u64 = 8;
const LOST: u64 = 11;

/// Blocks that are used behind the journal: of the two directories.
const DIRECTORIES: u64 = 2;
/// Blocks that the union needs for directories of its own.
const UNION: u64 = 16;
/// What the kernel keeps back at the mount, so that delayed writes do not fail: a
/// fiftieth, and at most so many blocks (`ext4_calculate_resv_clusters`).
const RESERVED_PART: u64 = 50;
const RESERVED_MOST: u64 = 4096;
/// Blocks are numbered with 32 bits here, less what would overflow them.
const MOST_BLOCKS: u64 = (1 << 32) - GROUP_BLOCKS;

/// A filesystem of more bytes than this format has numbers for was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a filesystem image for {usable} bytes would be larger than ext4 is without 64-bit numbers"
)]
pub struct TooLarge {
    usable: u64,
}

/// Where what is in a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Blocks in all.
    blocks: u64,
    groups: u64,
    group_inodes: u64,
    journal: u64,
}

impl Layout {
    /// The smallest filesystem in which files can have `usable` bytes together.
    pub fn for_usable(usable: u64) -> Result<Self, TooLarge> {
        let wanted = usable.div_ceil(BLOCK).saturating_add(UNION);
        let mut blocks = wanted;
        loop {
            if blocks > MOST_BLOCKS {
                return Err(TooLarge { usable });
            }
            let layout = Layout::of(blocks, usable);
            let free = blocks.saturating_sub(layout.used() + layout.kept_back());
            if free >= wanted {
                return Ok(layout);
            }
            blocks += wanted - free;
        }
    }

    fn of(blocks: u64, usable: u64) -> Self {
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let per_inode = if usable < SMALL { 1 } else { 4 };
        let in_group = blocks.min(GROUP_BLOCKS) / per_inode;
        Layout {
            blocks,
            groups,
            // A table is whole blocks, and the reserved inodes are in the first.
            group_inodes: in_group.max(BLOCK_INODES).next_multiple_of(BLOCK_INODES),
            // The least that the kernel takes is 1024 (JBD2_MIN_JOURNAL_BLOCKS).
            journal: match usable {
                0..0x4000_0000 => 1024,
                0x4000_0000..0x2_0000_0000 => 4096,
                _ => 16384,
            },
        }
    }

    /// Bytes of the image.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.blocks * BLOCK
    }

    /// Files and directories that there can be.
    #[must_use]
    pub const fn inodes(&self) -> u64 {
        self.groups * self.group_inodes
    }

    /// Inodes that are used from the start.
    #[must_use]
    pub const fn used_inodes() -> u64 {
        LOST
    }

    const fn kept_back(&self) -> u64 {
        let part = self.blocks / RESERVED_PART;
        if part < RESERVED_MOST {
            part
        } else {
            RESERVED_MOST
        }
    }

    const fn table_blocks(&self) -> u64 {
        self.group_inodes / BLOCK_INODES
    }

    const fn descriptor_blocks(&self) -> u64 {
        self.groups.div_ceil(BLOCK_DESCRIPTORS)
    }

    const fn block_bitmaps(&self) -> u64 {
        1 + self.descriptor_blocks()
    }

    const fn inode_bitmaps(&self) -> u64 {
        self.block_bitmaps() + self.groups
    }

    const fn tables(&self) -> u64 {
        self.inode_bitmaps() + self.groups
    }

    const fn journal_start(&self) -> u64 {
        self.tables() + self.groups * self.table_blocks()
    }

    const fn root_block(&self) -> u64 {
        self.journal_start() + self.journal
    }

    /// Blocks that are used at first: the run at the start.
    const fn used(&self) -> u64 {
        self.root_block() + DIRECTORIES
    }

    /// Used and existing blocks of a group.
    fn of_group(&self, group: u64) -> (u64, u64) {
        let start = group * GROUP_BLOCKS;
        let within = |end: u64| end.saturating_sub(start).min(GROUP_BLOCKS);
        (within(self.used()), within(self.blocks))
    }
}

/// What tells one filesystem from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Start of the hashes by which directories are ordered: not to be guessed
    /// by who chooses the names.
    pub hash_seed: [u8; 16],
    /// When it is made, in seconds since the epoch.
    pub created: u64,
}

/// Hands the bytes of an empty filesystem to `write`, each with its offset; all
/// else must read as zeroes.
pub fn format(
    layout: &Layout,
    identity: &Identity,
    mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    write(BLOCK, &descriptors(layout))?;
    for group in 0..layout.groups {
        let (used, existing) = layout.of_group(group);
        if used > 0 || existing < GROUP_BLOCKS {
            let mut bitmap = [0; BLOCK as usize];
            set_bits(&mut bitmap, 0, used);
            set_bits(&mut bitmap, existing, GROUP_BLOCKS);
            write((layout.block_bitmaps() + group) * BLOCK, &bitmap)?;
        }
    }
    if layout.group_inodes < GROUP_BLOCKS {
        let mut empty = [0; BLOCK as usize];
        set_bits(&mut empty, layout.group_inodes, GROUP_BLOCKS);
        // Some at a time: there are thousands where there are terabytes.
        let many = empty.repeat(layout.groups.min(64) as usize);
        let mut group = 0;
        while group < layout.groups {
            let count = (layout.groups - group).min(64);
            let bytes = &many[..(count * BLOCK) as usize];
            write((layout.inode_bitmaps() + group) * BLOCK, bytes)?;
            group += count;
        }
    }
    let mut bitmap = [0; BLOCK as usize];
    set_bits(&mut bitmap, 0, LOST);
    set_bits(&mut bitmap, layout.group_inodes, GROUP_BLOCKS);
    write(layout.inode_bitmaps() * BLOCK, &bitmap)?;
    write(layout.tables() * BLOCK, &inodes(layout, identity))?;
    write(layout.journal_start() * BLOCK, &journal(layout, identity))?;
    write(layout.root_block() * BLOCK, &directories())?;
    // Last: without it there is no filesystem.
    write(SUPERBLOCK, &superblock(layout, identity))
}

/// Where the superblock is, in bytes.
const SUPERBLOCK: u64 = 1024;

/// Bytes with numbers at offsets, of either end.
struct Fields(Vec<u8>);

impl Fields {
    fn new(length: u64) -> Self {
        Fields(vec![0; length as usize])
    }

    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u8(&mut self, at: usize, value: u8) {
        self.bytes(at, &[value]);
    }

    fn u16(&mut self, at: usize, value: u64) {
        self.bytes(at, &value.to_le_bytes()[..2]);
    }

    fn u32(&mut self, at: usize, value: u64) {
        self.bytes(at, &value.to_le_bytes()[..4]);
    }

    fn big_u32(&mut self, at: usize, value: u64) {
        self.bytes(at, &value.to_be_bytes()[4..]);
    }
}

fn set_bits(bitmap: &mut [u8], from: u64, to: u64) {
    for bit in from..to {
        bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
    }
}

/// `struct ext4_super_block`.
fn superblock(layout: &Layout, identity: &Identity) -> Vec<u8> {
    /// has_journal, ext_attr, dir_index, sparse_super2.
    const COMPATIBLE: u64 = 0x4 | 0x8 | 0x20 | 0x200;
    /// filetype, extents, flex_bg.
    const INCOMPATIBLE: u64 = 0x2 | 0x40 | 0x200;
    /// large_file, huge_file, dir_nlink, extra_isize.
    const READ_ONLY_COMPATIBLE: u64 = 0x2 | 0x8 | 0x20 | 0x40;
    /// user_xattr, acl.
    const MOUNT_OPTIONS: u64 = 0x4 | 0x8;
    let mut f = Fields::new(1024);
    f.u32(0x00, layout.inodes());
    f.u32(0x04, layout.blocks);
    f.u32(0x0c, layout.blocks - layout.used());
    f.u32(0x10, layout.inodes() - Layout::used_inodes());
    // Blocks and clusters of 4096 bytes: 1024 << 2.
    f.u32(0x18, 2);
    f.u32(0x1c, 2);
    f.u32(0x20, GROUP_BLOCKS);
    f.u32(0x24, GROUP_BLOCKS);
    f.u32(0x28, layout.group_inodes);
    f.u32(0x30, identity.created);
    // Never checked for the number of its mounts.
    f.u16(0x36, 0xffff);
    f.u16(0x38, 0xef53);
    // Clean; errors: remount read-only.
    f.u16(0x3a, 1);
    f.u16(0x3c, 2);
    f.u32(0x40, identity.created);
    // Revision with inodes of any size.
    f.u32(0x4c, 1);
    f.u32(0x54, LOST);
    f.u16(0x58, INODE_BYTES);
    f.u32(0x5c, COMPATIBLE);
    f.u32(0x60, INCOMPATIBLE);
    f.u32(0x64, READ_ONLY_COMPATIBLE);
    f.bytes(0x68, &identity.uuid);
    f.u32(0xe0, JOURNAL);
    f.bytes(0xec, &identity.hash_seed);
    // half_md4.
    f.u8(0xfc, 1);
    // The journal's blocks are kept at 0x10c as well, should its inode be lost.
    f.u8(0xfd, 1);
    f.u32(0x100, MOUNT_OPTIONS);
    f.u32(0x108, identity.created);
    f.bytes(0x10c, &extent(layout.journal_start(), layout.journal));
    f.u32(0x10c + 64, layout.journal * BLOCK);
    f.u16(0x15c, 32);
    f.u16(0x15e, 32);
    // Names are hashed as signed characters, as on x86.
    f.u32(0x160, 1);
    // Groups of sixteen are filled together.
    f.u8(0x174, 4);
    f.0
}

/// `struct ext4_group_desc`, of all groups.
fn descriptors(layout: &Layout) -> Vec<u8> {
    let mut f = Fields::new(layout.descriptor_blocks() * BLOCK);
    for group in 0..layout.groups {
        let at = (group * DESCRIPTOR) as usize;
        let (used, existing) = layout.of_group(group);
        let is_first = group == 0;
        f.u32(at, layout.block_bitmaps() + group);
        f.u32(at + 4, layout.inode_bitmaps() + group);
        f.u32(at + 8, layout.tables() + group * layout.table_blocks());
        f.u16(at + 12, existing - used);
        let inodes = if is_first { LOST } else { 0 };
        f.u16(at + 14, layout.group_inodes - inodes);
        f.u16(at + 16, if is_first { DIRECTORIES } else { 0 });
    }
    f.0
}

/// The 60 bytes of an inode that say which blocks it has: one run.
fn extent(start: u64, length: u64) -> [u8; 60] {
    let mut f = Fields::new(60);
    f.u16(0, 0xf30a);
    // One extent of at most four, and no level below.
    f.u16(2, 1);
    f.u16(4, 4);
    f.u16(12 + 4, length);
    f.u32(12 + 8, start);
    let mut bytes = [0; 60];
    bytes.copy_from_slice(&f.0);
    bytes
}

/// The first block or so of the first inode table: `struct ext4_inode`.
fn inodes(layout: &Layout, identity: &Identity) -> Vec<u8> {
    const EXTENTS: u64 = 0x8_0000;
    let mut f = Fields::new(LOST * INODE_BYTES);
    let mut inode = |number: u64, mode: u64, links: u64, start: u64, length: u64| {
        let at = ((number - 1) * INODE_BYTES) as usize;
        f.u16(at, mode);
        f.u32(at + 0x04, length * BLOCK);
        for time in [0x08, 0x0c, 0x10, 0x90] {
            f.u32(at + time, identity.created);
        }
        f.u16(at + 0x1a, links);
        // In units of 512 bytes.
        f.u32(at + 0x1c, length * (BLOCK / 512));
        f.u32(at + 0x20, EXTENTS);
        f.bytes(at + 0x28, &extent(start, length));
        f.u16(at + 0x80, 32);
    };
    let root = layout.root_block();
    inode(ROOT, 0o040_700, 3, root, 1);
    inode(LOST, 0o040_700, 2, root + 1, 1);
    inode(
        JOURNAL,
        0o100_600,
        1,
        layout.journal_start(),
        layout.journal,
    );
    f.0
}

/// The blocks of the root directory and of lost+found: `struct ext4_dir_entry_2`.
fn directories() -> Vec<u8> {
    const DIRECTORY: u8 = 2;
    let mut f = Fields::new(DIRECTORIES * BLOCK);
    let mut entry = |at: usize, inode: u64, length: u64, name: &[u8]| {
        f.u32(at, inode);
        f.u16(at + 4, length);
        f.u8(at + 6, name.len() as u8);
        f.u8(at + 7, DIRECTORY);
        f.bytes(at + 8, name);
    };
    entry(0, ROOT, 12, b".");
    entry(12, ROOT, 12, b"..");
    entry(24, LOST, BLOCK - 24, b"lost+found");
    let lost = BLOCK as usize;
    entry(lost, LOST, 12, b".");
    entry(lost + 12, ROOT, BLOCK - 12, b"..");
    f.0
}

/// `struct journal_superblock_s`: an empty journal.
fn journal(layout: &Layout, identity: &Identity) -> Vec<u8> {
    let mut f = Fields::new(1024);
    f.big_u32(0, 0xc03b_3998);
    // A superblock of the second version.
    f.big_u32(4, 4);
    f.big_u32(0x0c, BLOCK);
    f.big_u32(0x10, layout.journal);
    f.big_u32(0x14, 1);
    f.big_u32(0x18, 1);
    f.bytes(0x30, &identity.uuid);
    f.big_u32(0x40, 1);
    f.0
}

#[cfg(test)]
mod tests;
