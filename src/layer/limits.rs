//! The bounds on what one layer may ask of a node. All of a layer is foreign
//! input: each bound is checked while the bytes stream by, before what would
//! break it is done, and has an error of its own where it is checked.

/// Links on one way, as many as the kernel follows (`MAXSYMLINKS`).
pub(crate) const MAX_LINKS: usize = 40;

/// Components of link targets on one way. 40 links of 2,047 components each
/// are 80,000 look-ups for one entry; nobody's layer needs a twentieth.
pub(crate) const MAX_STEPS: usize = 4096;

/// The longest component that a Linux filesystem takes.
pub(crate) const MAX_COMPONENT_BYTES: usize = 255;

/// Bounds of one layer. [`Limits::default`] is far above what real images have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Members of the archive.
    pub max_entries: u64,
    /// Bytes of one path or link target.
    pub max_path_bytes: usize,
    /// Components of one path.
    pub max_depth: usize,
    /// Bytes of one PAX header or GNU long-name record.
    pub max_header_bytes: usize,
    /// Bytes of all extended attributes of one entry, names and values.
    pub max_xattr_bytes: usize,
    /// Data segments of one sparse file.
    pub max_sparse_segments: usize,
    /// Sum of the apparent sizes of all files, holes included, in bytes.
    pub max_apparent_bytes: u64,
    /// Bytes of what one layer's index says about its paths, each statement
    /// counted, also those that sealing adds.
    pub max_index_bytes: u64,
    /// Bytes of the uncompressed tar.
    pub max_unpacked_bytes: u64,
    /// Uncompressed bytes per compressed byte; checked after the first 16 MiB
    /// so that a small layer of zeros is no offence.
    pub max_ratio: u64,
    /// Window of a zstd frame in bytes.
    pub max_zstd_window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_entries: 10_000_000,
            // The kernel's PATH_MAX less its NUL.
            max_path_bytes: 4095,
            max_depth: 512,
            max_header_bytes: 1 << 20,
            // The kernel takes 64 KiB a value; this leaves room for several.
            max_xattr_bytes: 256 << 10,
            max_sparse_segments: 1 << 16,
            max_apparent_bytes: 1 << 40,
            // 400 bytes for each of the entries; a hundred are common. What can
            // make more of a few bytes are hard links to a file with large
            // extended attributes, and deep directories behind links.
            max_index_bytes: 4 << 30,
            max_unpacked_bytes: 256 << 30,
            // Deflate cannot exceed 1032:1; zstd can, far.
            max_ratio: 1100,
            max_zstd_window: 128 << 20,
        }
    }
}
