//! What a program in a pod notices of AUFS. Not all of it is good: where it
//! departs from a plain disk, the documentation says so and this shows it.

use super::support::entry::{ACCESS_ACL, acl, dir, file, hardlink};
use super::support::property::drop_caches;
use super::{errno, node, publish};
use aufs_csi::host::Host;
use aufs_csi::host::linux::LinuxHost;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, XattrFlags, inotify};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

/// As on any union: who renames a directory must be ready to copy it, as `mv` is.
#[test]
fn renaming_a_directory_of_the_image_is_refused_and_mv_copies() {
    let node = node();
    let layers = [
        vec![
            dir("d").mode(0o750),
            file("d/a", b"a"),
            hardlink("d/b", "d/a"),
        ],
        vec![dir("d/deep"), file("d/deep/c", b"c"), dir("empty")],
    ];
    let at = publish(&node, "v", &layers, false);
    let refused = fs::rename(at.join("d"), at.join("e"));
    assert_eq!(errno(refused), Errno::XDEV);
    let status = Command::new("/bin/busybox")
        .arg("mv")
        .args([at.join("d"), at.join("e")])
        .status()
        .unwrap();
    assert!(status.success());
    drop_caches();
    assert!(!at.join("d").exists());
    assert_eq!(fs::read(at.join("e/a")).unwrap(), b"a");
    assert_eq!(fs::read(at.join("e/deep/c")).unwrap(), b"c");
    assert_eq!(
        at.join("e").metadata().unwrap().permissions().mode() & 0o7777,
        0o750
    );
    // What is now the pod's own moves like anywhere else.
    fs::rename(at.join("e"), at.join("f")).unwrap();
    assert_eq!(fs::read(at.join("f/deep/c")).unwrap(), b"c");
    fs::create_dir(at.join("new")).unwrap();
    fs::write(at.join("new/n"), "n").unwrap();
    fs::rename(at.join("new"), at.join("d")).unwrap();
    assert_eq!(fs::read_dir(at.join("d")).unwrap().count(), 1);
    // A directory of the image without content moves too.
    fs::rename(at.join("empty"), at.join("moved")).unwrap();
    drop_caches();
    assert!(at.join("moved").is_dir() && !at.join("empty").exists());
}

#[test]
fn renaming_knows_the_ordinary_flags() {
    let node = node();
    let at = publish(&node, "v", &[vec![file("a", b"a"), file("b", b"b")]], false);
    let rename = |from: &str, to: &str, flags| {
        rustix::fs::renameat_with(CWD, at.join(from), CWD, at.join(to), flags)
    };
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("a", "b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(at.join("a")).unwrap(), b"b");
    assert_eq!(fs::read(at.join("b")).unwrap(), b"a");
    // So an overlay cannot have its upper directory in a volume.
    assert_eq!(rename("a", "c", RenameFlags::WHITEOUT), Err(Errno::INVAL));
}

#[test]
fn names_of_markers_are_refused() {
    let node = node();
    let at = publish(&node, "v", &[vec![file("f", b"f"), dir("d")]], false);
    for name in [".wh.f", ".wh.new", "d/.wh..wh..opq", ".wh..wh.aufs", ".wh."] {
        let path = at.join(name);
        assert_eq!(errno(fs::write(&path, "")), Errno::PERM, "{name}");
        assert_eq!(errno(fs::create_dir(&path)), Errno::PERM, "{name}");
        assert_eq!(
            errno(fs::rename(at.join("f"), &path)),
            Errno::PERM,
            "{name}"
        );
        assert_eq!(
            errno(fs::hard_link(at.join("f"), &path)),
            Errno::PERM,
            "{name}"
        );
        // Not even looked up.
        assert_eq!(errno(fs::metadata(&path)), Errno::PERM, "{name}");
    }
    for name in [".wh", "wh.f", ".whx", "a.wh.b"] {
        fs::write(at.join(name), "fine").unwrap();
    }
    assert_eq!(fs::read(at.join("f")).unwrap(), b"f");
}

#[test]
fn names_have_at_most_242_bytes() {
    let node = node();
    let longest = "x".repeat(242);
    let layers = [
        vec![file(&longest, b"from the image")],
        vec![file("f", b"f")],
    ];
    let at = publish(&node, "v", &layers, false);
    assert_eq!(LinuxHost.filesystem(&at).unwrap().name_max, 242);
    assert_eq!(fs::read(at.join(&longest)).unwrap(), b"from the image");
    fs::write(at.join(&longest), "changed").unwrap();
    fs::remove_file(at.join(&longest)).unwrap();
    fs::write(at.join("y".repeat(242)), "new").unwrap();
    let too_long = "y".repeat(243);
    assert_eq!(errno(fs::write(at.join(&too_long), "")), Errno::NAMETOOLONG);
    // It would be listed and could not be opened, so such an image is refused.
    let source = node.image("long", &[vec![file("ok", b"")], vec![file(&too_long, b"")]]);
    let error = super::chain(&node.publish("long", &source, false).unwrap_err());
    assert!(error.contains("243") && error.contains("242"), "{error}");
}

/// An aligned buffer, as direct I/O needs it.
fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    buffer.resize(length + 4096, 0);
    let start = buffer.as_ptr().align_offset(4096);
    &mut buffer[start..start + length]
}

#[test]
fn direct_io_works_before_and_after_the_copy() {
    let node = node();
    let content: Vec<u8> = (0..3 * 4096_u32).map(|n| (n % 251) as u8).collect();
    let at = publish(&node, "v", &[vec![file("data", &content)]], false);
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    let open = |write: bool| {
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(flags);
        options.open(at.join("data")).unwrap()
    };
    let mut memory = Vec::new();
    let lower = open(false);
    let buffer = aligned(&mut memory, 4096);
    lower.read_exact_at(buffer, 4096).unwrap();
    assert_eq!(buffer, &content[4096..8192]);
    let upper = open(true);
    buffer.fill(7);
    upper.write_all_at(buffer, 8192).unwrap();
    drop((lower, upper));
    drop_caches();
    let again = open(true);
    let buffer = aligned(&mut memory, 3 * 4096);
    again.read_exact_at(buffer, 0).unwrap();
    assert_eq!(buffer[..8192], content[..8192]);
    assert!(buffer[8192..].iter().all(|byte| *byte == 7));
}

/// Who has a file open keeps seeing it, whoever changes it first.
#[test]
fn an_open_file_follows_its_copy() {
    let node = node();
    let at = publish(&node, "v", &[vec![file("f", b"before")]], false);
    let path = at.join("f");
    let mut reader = File::open(&path).unwrap();
    let before = reader.metadata().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before");
    fs::write(&path, "after, and longer").unwrap();
    text.clear();
    reader.seek(SeekFrom::Start(0)).unwrap();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "after, and longer");
    let after = reader.metadata().unwrap();
    assert_eq!((before.dev(), before.ino()), (after.dev(), after.ino()));
    assert_eq!(path.metadata().unwrap().ino(), before.ino());
    fs::remove_file(&path).unwrap();
    text.clear();
    reader.seek(SeekFrom::Start(0)).unwrap();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "after, and longer");
}

#[test]
fn directories_keep_their_inode_and_their_name() {
    let node = node();
    let at = publish(
        &node,
        "v",
        &[vec![dir("a"), dir("a/b"), file("a/b/c", b"c")]],
        false,
    );
    let inode = |path: &str| at.join(path).metadata().unwrap().ino();
    let before = (inode("a"), inode("a/b"));
    fs::write(at.join("a/b/new"), "").unwrap();
    fs::set_permissions(at.join("a"), fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!((inode("a"), inode("a/b")), before);
    let output = Command::new("/bin/busybox")
        .args(["sh", "-c", "pwd -P; touch here; chmod 700 .; pwd -P; ls"])
        .current_dir(at.join("a/b"))
        .output()
        .unwrap();
    let place = at.join("a/b");
    let expected = format!("{0}\n{0}\nc\nhere\nnew\n", place.display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn sockets_and_pipes_work() {
    let node = node();
    let at = publish(
        &node,
        "v",
        &[vec![dir("run"), dir("a").mode(0o1777)]],
        false,
    );
    let path = at.join("run/socket");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut text = String::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "hello");
    drop(listener);
    fs::remove_file(&path).unwrap();

    let pipe = at.join("a/pipe");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, &pipe, kind, Mode::from_raw_mode(0o600), 0).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&pipe, "through the pipe").unwrap());
        assert_eq!(fs::read_to_string(&pipe).unwrap(), "through the pipe");
    });
}

/// A program that waits for changes of a file of the image hears of the first
/// one too, which copies it.
#[test]
fn watches_outlive_the_copy() {
    let node = node();
    let at = publish(&node, "v", &[vec![file("log", b"start\n")]], false);
    let path = at.join("log");
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, &path, inotify::WatchFlags::MODIFY).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    for _ in 0..2 {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"line\n").unwrap();
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        let event = events.next().expect("a change was told");
        assert!(event.events().contains(inotify::ReadFlags::MODIFY));
        while events.next().is_ok() {}
    }
}

/// Bytes that the volume's writable layer takes on disk.
fn written(node: &super::TestNode, volume: &str) -> u64 {
    fn sum(dir: &Path) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            bytes += match entry.file_type()?.is_dir() {
                true => sum(&entry.path())?,
                false => entry.metadata()?.blocks() * 512,
            };
        }
        Ok(bytes)
    }
    let (dir, _) = node.volumes.find(volume).unwrap();
    sum(&dir.join("upper")).unwrap()
}

/// Any change copies the whole file, holes aside; the group of a volume is
/// given to its root alone for that reason.
#[test]
fn a_change_of_metadata_copies_the_file() {
    const SIZE: usize = 8 << 20;
    let node = node();
    let big = vec![1_u8; SIZE];
    let layers = [vec![dir("d"), file("d/big", &big), file("d/other", &big)]];
    let source = node.image("big", &layers);
    let mut request = node.request("v", &source, false);
    request.mount_group = Some(2000);
    node.volumes.publish(&request, &()).unwrap();
    let at = node.target("v");
    let root = at.metadata().unwrap();
    assert_eq!(root.gid(), 2000);
    assert_eq!(root.mode() & 0o2070, 0o2070);
    assert_eq!(at.join("d/big").metadata().unwrap().gid(), 0);
    assert!(written(&node, "v") < 1 << 20, "{}", written(&node, "v"));
    std::os::unix::fs::chown(at.join("d/big"), Some(5), None).unwrap();
    let bytes = written(&node, "v");
    assert!(
        bytes >= SIZE as u64 && bytes < SIZE as u64 + (1 << 20),
        "{bytes}"
    );
}

#[test]
fn holes_stay_holes_when_a_file_is_copied() {
    const SIZE: u64 = 16 << 20;
    let node = node();
    let at = publish(&node, "v", &[vec![file("f", b"f")]], false);
    // Made in a volume and exported, so that it comes as a layer with holes.
    let sparse = File::create(at.join("sparse")).unwrap();
    sparse.set_len(SIZE).unwrap();
    sparse.write_all_at(b"end", SIZE - 3).unwrap();
    drop(sparse);
    let mut exported = Vec::new();
    node.volumes.export("v", &mut exported).unwrap();
    let compression = super::support::tarball::Compression::Gzip;
    let source = node.image_of_tars("sparse", &[exported], compression);
    node.publish("w", &source, false).unwrap();
    let copy = OpenOptions::new()
        .append(true)
        .open(node.target("w").join("sparse"));
    copy.unwrap().write_all(b"!").unwrap();
    let bytes = written(&node, "w");
    assert!(bytes < 1 << 20, "{bytes}");
    let content = fs::read(node.target("w").join("sparse")).unwrap();
    assert_eq!(content.len() as u64, SIZE + 1);
    assert_eq!(&content[content.len() - 4..], b"end!");
    assert!(content[..content.len() - 4].iter().all(|byte| *byte == 0));
}

/// Version 2, effective, `cap_net_bind_service`.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn attributes_survive_the_copy() {
    let node = node();
    let program = file("program", b"code")
        .mode(0o755)
        .xattr("security.capability", CAPABILITY)
        .xattr("user.a", "1")
        .xattr("trusted.b", "2");
    let at = publish(&node, "v", &[vec![program]], false);
    let path = at.join("program");
    let get = |name: &str| {
        let mut value = [0_u8; 64];
        let length = rustix::fs::getxattr(&path, name, &mut value)?;
        Ok::<_, Errno>(value[..length].to_vec())
    };
    assert_eq!(get("security.capability").unwrap(), CAPABILITY);
    // A change of its time copies it and is no reason to lose a capability.
    File::open(&path)
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert!(written(&node, "v") > 0);
    assert_eq!(get("security.capability").unwrap(), CAPABILITY);
    assert_eq!(get("user.a").unwrap(), b"1");
    assert_eq!(get("trusted.b").unwrap(), b"2");
    rustix::fs::setxattr(&path, "user.c", b"3", XattrFlags::empty()).unwrap();
    drop_caches();
    assert_eq!(get("user.c").unwrap(), b"3");
}

/// Where AUFS departs: an attribute that is removed stays, without a value. A
/// release that mends this is as welcome.
#[test]
fn a_removed_attribute_has_no_value() {
    let node = node();
    let at = publish(
        &node,
        "v",
        &[vec![file("f", b"f").xattr("user.a", "1")]],
        false,
    );
    rustix::fs::removexattr(at.join("f"), "user.a").unwrap();
    drop_caches();
    let mut value = [0_u8; 8];
    match rustix::fs::getxattr(at.join("f"), "user.a", &mut value) {
        Ok(length) => assert_eq!(length, 0),
        Err(error) => assert_eq!(error, Errno::NODATA),
    }
}

/// Times of the image are exact to the nanosecond, and so are those of changes;
/// those that a program sets have whole seconds.
#[test]
fn times_that_are_set_have_whole_seconds() {
    let node = node();
    let layers = [vec![
        dir("").mtime(1_000_000_000, 1),
        file("f", b"f").mtime(1_200_000_000, 123_456_789),
        dir("d").mtime(1_300_000_000, 999_999_999),
    ]];
    let at = publish(&node, "v", &layers, false);
    let time = |path: &str| {
        let metadata = at.join(path).metadata().unwrap();
        (metadata.mtime(), metadata.mtime_nsec())
    };
    for _ in 0..2 {
        assert_eq!(time(""), (1_000_000_000, 1));
        assert_eq!(time("f"), (1_200_000_000, 123_456_789));
        assert_eq!(time("d"), (1_300_000_000, 999_999_999));
        drop_caches();
    }
    // Copied for a change that leaves the time alone.
    fs::set_permissions(at.join("f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(time("f"), (1_200_000_000, 123_456_789));
    let new = std::time::UNIX_EPOCH + std::time::Duration::new(1_400_000_000, 987_654_321);
    File::open(at.join("f")).unwrap().set_modified(new).unwrap();
    drop_caches();
    let (seconds, nanos) = time("f");
    assert_eq!(seconds, 1_400_000_000);
    assert!(nanos == 0 || nanos == 987_654_321, "{nanos}");
}

/// A directory of the image that something is made in is copied, and so are those
/// around it, each of which then has the time at which the next one came into it.
#[test]
fn directories_around_a_change_have_its_time() {
    let node = node();
    let old = |path: &str| dir(path).mtime(1_300_000_000, 5);
    let layers = [vec![
        old("d"),
        old("d/e"),
        old("d/e/f"),
        old("d/other"),
        old("x"),
    ]];
    let at = publish(&node, "v", &layers, false);
    let is_old = |path: &str| {
        let metadata = at.join(path).metadata().unwrap();
        (metadata.mtime(), metadata.mtime_nsec()) == (1_300_000_000, 5)
    };
    fs::write(at.join("d/e/f/new"), "new").unwrap();
    for _ in 0..2 {
        let times = ["d", "d/e", "d/e/f", "d/other", "x"].map(is_old);
        assert_eq!(times, [false, false, false, true, true]);
        drop_caches();
    }
}

/// A change of the mode changes the access control list with it, which AUFS shows
/// as it was for as long as it remembers it.
#[test]
fn a_changed_mode_shows_the_old_list_for_a_while() {
    let node = node();
    let layers = [vec![dir("d").mode(0o755).xattr(ACCESS_ACL, acl(0o755))]];
    let at = publish(&node, "v", &layers, false).join("d");
    let list = || {
        let mut value = vec![0; 256];
        let length = rustix::fs::lgetxattr(&at, ACCESS_ACL, &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    assert_eq!(list(), acl(0o755));
    fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(at.metadata().unwrap().mode() & 0o7777, 0o700);
    assert_eq!(list(), acl(0o755));
    // The kernel need not drop all of its caches the first time.
    for _ in 0..100 {
        drop_caches();
        if list() == acl(0o700) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(list(), acl(0o700));
}

#[test]
fn space_is_reserved_and_locks_hold() {
    let node = node();
    let at = publish(&node, "v", &[vec![file("f", b"f")]], false);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(at.join("f"))
        .unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    let other = File::open(at.join("f")).unwrap();
    file.lock().unwrap();
    assert!(other.try_lock().is_err());
    file.unlock().unwrap();
    other.try_lock().unwrap();
}

/// A temporary file without a name can be given one.
#[test]
fn nameless_files_can_be_linked() {
    let node = node();
    let at = publish(&node, "v", &[vec![dir("d"), file("d/f", b"f")]], false);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let nameless = rustix::fs::open(at.join("d"), flags, Mode::from_raw_mode(0o600)).unwrap();
    let mut nameless = File::from(nameless);
    nameless.write_all(b"text").unwrap();
    rustix::fs::linkat(&nameless, "", CWD, at.join("d/named"), AtFlags::EMPTY_PATH).unwrap();
    drop(nameless);
    drop_caches();
    assert_eq!(fs::read(at.join("d/named")).unwrap(), b"text");
}
