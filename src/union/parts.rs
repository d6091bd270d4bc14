//! What a mount consists of, whoever made it: for those who must not remove it.

use super::{aufs, overlay};
use crate::host::{Host, MountEntry};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Texts in which the paths of all directories stand that a mount shows; none
/// where the kernel does not tell them. The mount is in a table, and reached below
/// `root`, which is `/` or the root of a process in another namespace.
pub fn parts(host: &dyn Host, root: &Path, entry: &MountEntry) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut texts = vec![entry.root.as_os_str().as_bytes().to_vec()];
    if entry.fs_type == "aufs" {
        let inside = entry.mount_point.strip_prefix("/");
        let at = root.join(inside.unwrap_or(&entry.mount_point));
        match aufs::branches_at(host, &at, entry)? {
            Some(branches) => texts.extend(branches),
            None => return Ok(None),
        }
    } else if entry.fs_type == "overlay" {
        if overlay::is_by_descriptors(entry) {
            return Ok(None);
        }
        texts.push(entry.options.as_bytes().to_vec());
    }
    Ok(Some(texts))
}
