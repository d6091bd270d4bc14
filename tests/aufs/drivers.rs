//! What the AUFS drivers of Docker and containerd are tested for, as far as it
//! applies to volumes; also where those drivers fail.

use super::support::entry::{
    Entry, EntryKind, Layer, dir, fifo, file, hardlink, opaque, symlink, whiteout,
};
use super::support::model::flatten;
use super::support::property::drop_caches;
use super::support::tarball::{Compression, tars};
use super::support::tree::{Compared, assert_same, read};
use super::{as_user, assert_right, node, publish};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Layers that each add a file, change one of all, and every tenth of which
/// removes what the one before it added.
fn tall(count: usize) -> Vec<Layer> {
    (0..count)
        .map(|number| {
            let mut layer = vec![
                file(format!("own-{number}"), number.to_string()),
                file("all", format!("last changed by {number}")),
            ];
            if number % 10 == 9 {
                layer.push(whiteout(format!("own-{}", number - 1)));
            }
            layer
        })
        .collect()
}

#[test]
fn one_hundred_and_twenty_six_layers() {
    let node = node();
    let layers = tall(126);
    assert_right(&node, "tall", &layers);
    let published = node
        .publish("again", &node.image("tall", &layers), false)
        .unwrap();
    assert_eq!(published.branches, 126);
}

/// Beyond what the kernel takes the lowest layers become one branch. Here the
/// border lies within everything that an upper layer may do to a lower one.
#[test]
fn more_layers_than_the_kernel_has_branches() {
    let node = node();
    let mut layers = tall(150);
    for number in 10..140 {
        let name = format!("d-{number}");
        layers[number].extend([
            dir(&name).mode(0o700).owner(5, 6),
            file(format!("{name}/a"), b"a").xattr("user.a", "1"),
            file(format!("{name}/b"), b"b"),
            symlink(format!("{name}/s"), "a"),
            hardlink(format!("{name}/h"), format!("{name}/a")),
            fifo(format!("{name}/p")),
        ]);
        let upper = &mut layers[number + 1];
        match number % 6 {
            0 => upper.push(whiteout(&name)),
            1 => upper.extend([dir(&name), opaque(&name), file(format!("{name}/c"), b"c")]),
            2 => upper.push(file(&name, b"was a directory")),
            3 => upper.push(whiteout(format!("{name}/a"))),
            4 => upper.push(hardlink(format!("h-{number}"), format!("{name}/b"))),
            _ => upper.push(dir(&name).mode(0o1777)),
        }
        if number % 6 == 2 {
            layers[number + 2].extend([dir(&name), file(format!("{name}/new"), b"new")]);
        }
    }
    assert_right(&node, "taller", &layers);
    let source = node.image("taller", &layers);
    for (id, read_only) in [("read-only", true), ("writable", false)] {
        let published = node.publish(id, &source, read_only).unwrap();
        assert!(published.branches <= 126, "{}", published.branches);
        assert!(published.branches >= 125, "{}", published.branches);
    }
    // The files of the lowest branch are as changeable as any.
    let at = node.target("writable");
    fs::write(at.join("own-0"), "changed").unwrap();
    fs::remove_file(at.join("own-1")).unwrap();
    drop_caches();
    assert_eq!(fs::read(at.join("own-0")).unwrap(), b"changed");
    assert!(!at.join("own-1").exists());
}

/// What Docker's driver makes of it: the files that the middle layer removed
/// are back, for of two opaque markers the lowest one is obeyed.
#[test]
fn a_directory_removed_and_made_again_in_every_layer() {
    let node = node();
    let again = |name: &str| {
        vec![
            whiteout("bar"),
            dir("bar"),
            opaque("bar"),
            file(format!("bar/{name}"), name),
        ]
    };
    let bottom = vec![dir("bar"), file("bar/a", b"a"), file("bar/b", b"b")];
    let layers = [bottom, again("c"), again("d"), again("e")];
    for count in 2..=layers.len() {
        assert_right(&node, &count.to_string(), &layers[..count]);
    }
    // And the same by a pod, above a layer that did it too.
    let at = publish(&node, "pod", &layers[..2], false);
    let bar = at.join("bar");
    for name in ["x", "y"] {
        fs::remove_dir_all(&bar).unwrap();
        fs::create_dir(&bar).unwrap();
        fs::write(bar.join(name), name).unwrap();
        drop_caches();
        let names: Vec<_> = fs::read_dir(&bar)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [name]);
    }
}

#[test]
fn directories_and_files_removed_and_made_again_in_any_layer() {
    let node = node();
    let steps: [Layer; 6] = [
        vec![
            dir("etc"),
            file("etc/a", b"1"),
            file("etc/b", b"1"),
            dir("lib"),
            dir("lib/deep"),
            file("lib/deep/x", b"1"),
        ],
        vec![whiteout("etc/a"), whiteout("lib")],
        vec![file("etc/a", b"3"), dir("lib"), file("lib/new", b"3")],
        vec![
            whiteout("lib/new"),
            dir("lib/deep"),
            file("lib/deep/y", b"4"),
        ],
        vec![whiteout("lib/deep/y"), whiteout("etc")],
        vec![dir("etc").mode(0o700), file("etc/c", b"6")],
    ];
    for count in 2..=steps.len() {
        assert_right(&node, &count.to_string(), &steps[..count]);
    }
}

#[test]
fn markers_of_any_type_hide_and_never_show() {
    let node = node();
    let bottom = vec![
        file("file", b"1"),
        file("link", b"2"),
        file("pipe", b"3"),
        file("device", b"4"),
        file("full", b"5"),
        file("plain", b"6"),
        dir("dir"),
        file("dir/inside", b"7"),
        file("kept", b"8"),
    ];
    let top = vec![
        Entry::new(".wh.file", EntryKind::Dir),
        Entry::new(".wh.link", EntryKind::Symlink(b"kept".to_vec())),
        Entry::new(".wh.pipe", EntryKind::Fifo),
        Entry::new(".wh.device", EntryKind::Char(1, 3)),
        file(".wh.full", b"text that nobody expects"),
        hardlink(".wh.plain", "kept"),
        Entry::new("dir/.wh..wh..opq", EntryKind::Dir),
    ];
    assert_right(&node, "types", &[bottom.clone(), top.clone()]);
    // In the lowest layer there is nothing to hide.
    let top: Layer = top.into_iter().filter(|e| e.path != b".wh.plain").collect();
    assert_right(&node, "bottom", std::slice::from_ref(&top));
    assert_right(&node, "three", &[bottom.clone(), top, bottom]);
}

/// Two branches cannot be one directory, and a layer's history may repeat it.
#[test]
fn a_layer_that_comes_twice() {
    let node = node();
    let layer = || {
        vec![
            dir("d"),
            file("d/a", b"a"),
            file("b", b"b"),
            hardlink("c", "b"),
        ]
    };
    let between = vec![whiteout("d"), file("b", b"other"), file("e", b"e")];
    assert_right(&node, "aa", &[layer(), layer()]);
    assert_right(&node, "aba", &[layer(), between.clone(), layer()]);
    assert_right(&node, "abab", &[layer(), between.clone(), layer(), between]);
    assert_right(&node, "empty", &[vec![], layer(), vec![], vec![]]);
}

/// One inode under two names of a union would be one file, whatever the image
/// says.
#[test]
fn branches_share_no_inode() {
    let node = node();
    let layers = [
        vec![file("a", b"one"), hardlink("b", "a")],
        vec![hardlink("c", "a"), file("d", b"one")],
        vec![hardlink("e", "d"), hardlink("f", "c")],
    ];
    assert_right(&node, "links", &layers);
    // The lowest branch of these is made of copies of many.
    let mut tall = tall(150);
    for number in 0..100 {
        tall[number].extend([
            dir("d"),
            file(format!("d/first-{number}"), b"linked"),
            hardlink(format!("d/second-{number}"), format!("d/first-{number}")),
        ]);
        let target = format!("d/second-{number}");
        tall[number + 40].push(hardlink(format!("third-{number}"), target));
    }
    assert_right(&node, "tall links", &tall);
    let flat = fs::read_dir(node.path().join("store/layers"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap_or_default())
        .filter(|record| record.contains("\"key\": \"flat "))
        .count();
    assert!(flat > 0, "nothing was made one branch");

    let mut owners: HashMap<(u64, u64), OsString> = HashMap::new();
    for branch in fs::read_dir(node.path().join("store/diff")).unwrap() {
        let branch = branch.unwrap();
        let mut pending = vec![branch.path()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    pending.push(entry.path());
                }
                let owner = owners
                    .entry((metadata.dev(), metadata.ino()))
                    .or_insert_with(|| branch.file_name());
                assert_eq!(*owner, branch.file_name(), "an inode of two branches");
            }
        }
    }
    assert!(owners.len() > 300, "{}", owners.len());
}

#[test]
fn hard_links_of_a_lower_layer_stay_one_file() {
    let node = node();
    let layers = [
        vec![
            file("first", b"text"),
            hardlink("second", "first"),
            dir("d"),
        ],
        vec![hardlink("d/third", "second")],
    ];
    let at = publish(&node, "v", &layers, false);
    let names = ["first", "second", "d/third"].map(|name| at.join(name));
    let check = |expected: &str, count: u64| {
        for name in &names {
            assert_eq!(fs::read_to_string(name).unwrap(), expected);
            assert_eq!(
                name.metadata().unwrap().nlink(),
                count,
                "{}",
                name.display()
            );
        }
        let inodes = names.each_ref().map(|name| name.metadata().unwrap().ino());
        assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    };
    check("text", 3);
    fs::write(&names[1], "changed").unwrap();
    check("changed", 3);
    drop_caches();
    check("changed", 3);
    fs::hard_link(&names[0], at.join("fourth")).unwrap();
    check("changed", 4);
    fs::remove_file(at.join("fourth")).unwrap();
    drop_caches();
    check("changed", 3);
    fs::remove_file(&names[0]).unwrap();
    for name in &names[1..] {
        assert_eq!(fs::read_to_string(name).unwrap(), "changed");
    }
}

/// Same name, size and time, another content: nothing may take it for the same.
#[test]
fn a_file_updated_within_the_same_second() {
    let node = node();
    let layers = [
        vec![file("etc/conf", b"old"), file("bin", b"#!")],
        vec![file("etc/conf", b"new"), file("bin", b"#?").mode(0o755)],
    ];
    assert_right(&node, "v", &layers);
}

#[test]
fn files_moved_from_a_lower_layer() {
    let node = node();
    let layers = [
        vec![
            dir("d1"),
            file("d1/f1", b"move me"),
            dir("d2"),
            file("e", b"e"),
        ],
        vec![whiteout("d1/f1"), file("d2/f1", b"move me")],
        vec![hardlink("e2", "e")],
        vec![whiteout("e")],
    ];
    assert_right(&node, "v", &layers);
    let at = publish(&node, "pod", &layers[..1], false);
    fs::rename(at.join("d1/f1"), at.join("d2/f1")).unwrap();
    fs::rename(at.join("e"), at.join("d1/f1")).unwrap();
    drop_caches();
    assert_eq!(fs::read(at.join("d2/f1")).unwrap(), b"move me");
    assert_eq!(fs::read(at.join("d1/f1")).unwrap(), b"e");
    assert!(!at.join("e").exists());
}

/// An odd start: names with blanks, odd modes and owners, nothing else in it.
#[test]
fn the_first_layer_is_as_it_was_packed() {
    let node = node();
    let layers = [vec![
        dir("a subdir").mode(0o1705).owner(1, 2),
        file("a file", b"Hello").mode(0o4222),
    ]];
    assert_right(&node, "base", &layers);
    let at = publish(&node, "v", &layers, false);
    let names: Vec<_> = fs::read_dir(&at)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// A directory's permissions are those of its uppermost layer alone, for the
/// kernel too: not those of each branch that has it.
#[test]
fn permissions_and_owners_are_the_upper_layers() {
    let node = node();
    let layers = [
        vec![
            dir("opened").mode(0o700),
            file("opened/f", b"f"),
            dir("given").mode(0o700),
            dir("given/deep").mode(0o700),
            file("given/deep/old", b"old").mode(0o600),
            dir("closed"),
            file("closed/f", b"f"),
        ],
        vec![
            dir("opened").mode(0o755),
            dir("given").owner(1000, 1000).mode(0o700),
            dir("given/deep").owner(1000, 1000).mode(0o700),
            file("given/deep/old", b"old").owner(1000, 1000).mode(0o600),
            dir("closed").mode(0o700),
        ],
    ];
    assert_right(&node, "v", &layers);
    let at = publish(&node, "pod", &layers, false);
    as_user(1000, || {
        assert_eq!(fs::read(at.join("opened/f")).unwrap(), b"f");
        let deep = at.join("given/deep");
        fs::write(deep.join("new"), "new").unwrap();
        fs::write(deep.join("old"), "changed").unwrap();
        fs::rename(deep.join("old"), deep.join("renamed")).unwrap();
        fs::create_dir(deep.join("d")).unwrap();
        fs::remove_dir(deep.join("d")).unwrap();
        fs::remove_file(deep.join("new")).unwrap();
        fs::remove_file(deep.join("renamed")).unwrap();
        fs::remove_dir(&deep).unwrap();
        let refused = fs::read(at.join("closed/f")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        let refused = fs::write(at.join("opened/new"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    });
    assert!(!at.join("given/deep").exists());
}

/// What a pod changed, exported, is a layer: an image with it on top shows
/// what the pod saw.
#[test]
fn the_writable_layer_is_a_layer() {
    let node = node();
    let layers = [vec![
        dir("d"),
        file("d/a", b"a").xattr("user.a", "1"),
        file("d/b", b"b"),
        dir("e").mode(0o700),
        file("e/f", b"f"),
        hardlink("e/g", "e/f"),
        file("h", b"h"),
        symlink("s", "h"),
    ]];
    let at = publish(&node, "pod", &layers, false);
    fs::write(at.join("d/a"), "changed").unwrap();
    fs::remove_file(at.join("d/b")).unwrap();
    fs::remove_dir_all(at.join("e")).unwrap();
    fs::create_dir(at.join("e")).unwrap();
    fs::write(at.join("e/new"), "new").unwrap();
    fs::hard_link(at.join("e/new"), at.join("e/newer")).unwrap();
    fs::set_permissions(at.join("h"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::rename(at.join("s"), at.join("t")).unwrap();
    fs::remove_file(at.join("h")).unwrap();
    fs::create_dir(at.join("h")).unwrap();

    let mut exported = Vec::new();
    node.volumes.export("pod", &mut exported).unwrap();
    let mut all = tars(&layers);
    all.push(exported);
    let source = node.image_of_tars("committed", &all, Compression::Gzip);
    node.publish("committed", &source, true).unwrap();
    let seen = read(&at).unwrap();
    let committed = read(&node.target("committed")).unwrap();
    assert_same("committed", &seen, &committed, Compared::ALL);

    let changes = node.volumes.diff("pod").unwrap();
    let mut lines: Vec<String> = changes
        .iter()
        .map(|change| {
            let path = String::from_utf8_lossy(&change.path);
            format!("{} /{path}", change.kind.letter())
        })
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "A /e/new",
            "A /e/newer",
            "A /t",
            "C /d",
            "C /d/a",
            "C /e",
            "C /h",
            "D /d/b",
            "D /e/f",
            "D /e/g",
            "D /s",
        ]
    );
}

/// A volume that changed nothing differs in nothing.
#[test]
fn a_fresh_volume_has_no_changes() {
    let node = node();
    let layers = [vec![dir("d"), file("d/a", b"a")]];
    let at = publish(&node, "pod", &layers, false);
    assert_eq!(read(&at).unwrap().nodes.len(), 3);
    assert!(node.volumes.diff("pod").unwrap().is_empty());
}

#[test]
fn a_read_only_volume_refuses_every_change() {
    let node = node();
    let layers = [vec![dir("d"), file("d/f", b"f")], vec![file("g", b"g")]];
    let at = publish(&node, "v", &layers, true);
    type Attempt = fn(&Path) -> std::io::Result<()>;
    let changes: [(&str, Attempt); 9] = [
        ("write", |at| fs::write(at.join("d/f"), "x")),
        ("create", |at| fs::write(at.join("new"), "x")),
        ("unlink", |at| fs::remove_file(at.join("g"))),
        ("mkdir", |at| fs::create_dir(at.join("new"))),
        ("rename", |at| fs::rename(at.join("g"), at.join("h"))),
        ("link", |at| fs::hard_link(at.join("g"), at.join("h"))),
        ("symlink", |at| {
            std::os::unix::fs::symlink("g", at.join("h"))
        }),
        ("chmod", |at| {
            fs::set_permissions(at.join("g"), fs::Permissions::from_mode(0o600))
        }),
        ("chown", |at| {
            std::os::unix::fs::chown(at.join("g"), Some(1), Some(1))
        }),
    ];
    for (name, change) in changes {
        let error = change(&at).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ReadOnlyFilesystem,
            "{name}"
        );
    }
    let expected = flatten(&layers).unwrap();
    assert_same("unchanged", &expected, &read(&at).unwrap(), Compared::ALL);
}
