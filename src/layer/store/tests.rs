//! The store on a real directory.

use super::*;
use rustix::fs::{XattrFlags, llistxattr, setxattr};

const DEFAULT_ACL: &str = "system.posix_acl_default";

/// User 1000 may do everything.
fn hand_down_a_list(dir: &Path) {
    let none = u32::MAX;
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 7u16, none),
        (2, 7, 1000),
        (4, 5, none),
        (0x10, 7, none),
        (0x20, 0, none),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    setxattr(dir, DEFAULT_ACL, &list, XattrFlags::empty()).unwrap();
}

/// Attributes of `path`, but for those that the machine gives to everything.
fn attributes(path: &Path) -> Vec<String> {
    let mut names = vec![0; 1 << 16];
    let length = llistxattr(path, &mut names[..]).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .filter(|name| name.starts_with("system."))
        .collect()
}

#[test]
fn a_default_access_control_list_around_the_store_reaches_nothing_in_it() {
    let dir = tempfile::tempdir().unwrap();
    hand_down_a_list(dir.path());
    let root = dir.path().join("deep/store");
    let store = Store::open(&root, "boot", false).unwrap();
    for name in ["diff", "layers", "images", "ingest", "volumes"] {
        assert_eq!(attributes(&root.join(name)), [""; 0], "{name}");
    }
    // Somebody does it again, to all of the store.
    hand_down_a_list(&root.join("ingest"));
    let work = Ingest::begin(&store).unwrap();
    work.directory("tree").unwrap();
    assert_eq!(attributes(&work.path().join("tree")), [""; 0]);
    File::create(work.path().join("tree/file")).unwrap();
    assert_eq!(attributes(&work.path().join("tree/file")), [""; 0]);
}
