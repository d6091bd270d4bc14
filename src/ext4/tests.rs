//! What e2fsprogs, which shares no code with this, say of the images.
#![expect(
    clippy::disallowed_methods,
    reason = "the judges are programs of their own"
)]

use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Sizes around everything that changes the layout: none, a byte, the ends of a
/// group, the bounds of inode and journal sizes, more groups than a block of
/// descriptors has, and what is not a whole number of anything.
const SIZES: [u64; 16] = [
    0,
    1,
    MIB,
    10 * MIB + 1,
    121 * MIB,
    122 * MIB,
    127 * MIB + 4095,
    128 * MIB,
    129 * MIB,
    SMALL - 1,
    SMALL,
    GIB - 1,
    GIB,
    10 * GIB + 7 * 4096 + 5,
    16 * GIB,
    100 * GIB,
];

const IDENTITY: Identity = Identity {
    uuid: *b"\x12\x34\x56\x78\x9a\xbc\x4d\xef\x81\x23\x45\x67\x89\xab\xcd\xef",
    hash_seed: [7; 16],
    created: 1_700_000_000,
};

fn image(layout: &Layout, path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(layout.bytes()).unwrap();
    format(layout, &IDENTITY, |at, bytes| file.write_all_at(bytes, at)).unwrap();
}

fn run(program: &str, arguments: &[&str], path: &Path) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program} of e2fsprogs is needed: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn a_checker_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for usable in SIZES {
        let layout = Layout::for_usable(usable).unwrap();
        image(&layout, &path);
        let (is_clean, text) = run("e2fsck", &["-fn"], &path);
        assert!(is_clean, "{usable}: {text}");
        assert!(
            !text.contains("WARNING") && !text.to_lowercase().contains("fix"),
            "{usable}: {text}"
        );
        let line = text.lines().rfind(|line| line.ends_with("blocks")).unwrap();
        let expected = format!(
            "{}/{} files (0.0% non-contiguous), {}/{} blocks",
            Layout::used_inodes(),
            layout.inodes(),
            layout.used(),
            layout.blocks,
        );
        assert!(line.ends_with(&expected), "{usable}: {line}");
    }
}

#[test]
fn a_checker_finds_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let layout = Layout::for_usable(MIB).unwrap();
    image(&layout, &path);
    let file = File::options().write(true).open(&path).unwrap();
    let bitmap = layout.block_bitmaps() * BLOCK;
    file.write_all_at(&[0xfe], bitmap).unwrap();
    assert!(!run("e2fsck", &["-fn"], &path).0);
}

#[test]
fn it_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    image(&Layout::for_usable(10 * GIB).unwrap(), &path);
    let (is_read, text) = run("dumpe2fs", &["-h"], &path);
    assert!(is_read, "{text}");
    for (key, value) in [
        ("Filesystem UUID", "12345678-9abc-4def-8123-456789abcdef"),
        (
            "Filesystem features",
            "has_journal ext_attr dir_index sparse_super2 filetype extent flex_bg large_file huge_file dir_nlink extra_isize",
        ),
        ("Default mount options", "user_xattr acl"),
        ("Filesystem state", "clean"),
        ("Errors behavior", "Remount read-only"),
        ("Reserved block count", "0"),
        ("First inode", "11"),
        ("Inode size", "256"),
        ("Journal inode", "8"),
        ("Journal backup", "inode blocks"),
        ("Total journal blocks", "16384"),
        ("Journal start", "0"),
        ("Maximum mount count", "-1"),
    ] {
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))
            .unwrap_or_else(|| panic!("no {key} in {text}"));
        let found = found.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(found, value, "{key}");
    }
}

#[test]
fn what_it_costs_is_small() {
    for (usable, at_most) in [(64 * MIB, 16), (GIB, 5), (10 * GIB, 4), (100 * GIB, 3)] {
        let layout = Layout::for_usable(usable).unwrap();
        let cost = layout.bytes() - usable;
        assert!(cost * 100 <= usable * at_most, "{usable}: {cost}");
    }
    // And what has to be written of it is little.
    let mut written = 0;
    let layout = Layout::for_usable(10 * GIB).unwrap();
    format(&layout, &IDENTITY, |_, bytes| {
        written += bytes.len() as u64;
        Ok(())
    })
    .unwrap();
    assert!(written < MIB, "{written}");
}

#[test]
fn nothing_is_written_twice_or_outside() {
    for usable in SIZES {
        let layout = Layout::for_usable(usable).unwrap();
        let mut ranges = Vec::new();
        format(&layout, &IDENTITY, |at, bytes| {
            ranges.push((at, at + bytes.len() as u64));
            Ok(())
        })
        .unwrap();
        assert!(ranges.iter().all(|(_, end)| *end <= layout.bytes()));
        // But for the bitmap of the first inodes, which are used.
        let first = layout.inode_bitmaps() * BLOCK;
        ranges.retain(|range| *range != (first, first + BLOCK));
        ranges.sort_unstable();
        let overlap = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0);
        assert_eq!(overlap, None, "{usable}");
    }
}

#[test]
fn what_has_no_numbers_is_refused() {
    assert!(Layout::for_usable(15 << 40).is_ok());
    for usable in [16 << 40, u64::MAX] {
        assert_eq!(Layout::for_usable(usable), Err(TooLarge { usable }));
    }
}
