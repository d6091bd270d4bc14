//! Tars and layouts made by hand, for the tests and the fuzz targets' checks here.

#[cfg(test)]
mod layouts;

#[cfg(test)]
pub(crate) use layouts::{LayoutBuilder, named, with, write};

use std::collections::BTreeMap;

/// One member of a tar in the POSIX form.
pub(crate) fn member(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

/// Writes the checksum of a header.
pub(super) fn seal(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A tar of regular files.
pub(crate) fn tar(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, data) in files {
        bytes.extend(member(b'0', name, "", data));
    }
    bytes.extend([0; 1024]);
    bytes
}

/// An error and all its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Checks that an error is fit to be shown: a line, whatever is quoted in it.
pub(super) fn assert_fit(error: &dyn std::error::Error) {
    let text = chain(error);
    assert!(
        text.len() < 16 << 10 && !text.contains(char::is_control),
        "{text:?}"
    );
}
