use super::*;
use crate::image::testdata::chain;
use std::os::unix::fs::symlink;
use std::path::Path;

/// `root/in/{file,fifo,dir}` and links of all kinds, `outside` beside `root`.
fn tree() -> tempfile::TempDir {
    let top = tempfile::tempdir().unwrap();
    let inside = top.path().join("root/in");
    std::fs::create_dir_all(inside.join("dir")).unwrap();
    std::fs::write(top.path().join("outside"), "outside").unwrap();
    std::fs::write(top.path().join("root/up"), "up").unwrap();
    std::fs::write(inside.join("file"), "file").unwrap();
    std::fs::write(inside.join("dir/deep"), "deep").unwrap();
    let fifo = inside.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    // Opening a socket fails in its own way, so it tells whether it was tried.
    std::os::unix::net::UnixListener::bind(inside.join("socket")).unwrap();
    for (target, name) in [
        ("file", "to-file"),
        ("../up", "to-up"),
        ("/up", "to-absolute"),
        ("../../outside", "to-outside"),
        ("fifo", "to-fifo"),
        ("nothing", "dangling"),
        ("loop", "loop"),
        ("dir", "to-dir"),
        ("/proc/self/cwd", "magic"),
    ] {
        symlink(target, inside.join(name)).unwrap();
    }
    let absolute = top.path().join("outside");
    symlink(absolute, inside.join("to-outside-absolute")).unwrap();
    top
}

fn text(files: &Files, name: &str) -> Result<Option<String>, String> {
    let bytes = files.read(name).map_err(|error| chain(&error))?;
    Ok(bytes.map(|bytes| String::from_utf8(bytes).unwrap()))
}

fn some(text: &str) -> Result<Option<String>, String> {
    Ok(Some(text.to_owned()))
}

#[test]
fn an_operators_directory_is_followed_anywhere() {
    let top = tree();
    let location = Location::anywhere(&top.path().join("root/in"));
    let files = Files::directory(location).unwrap();
    for (name, expected) in [
        ("file", "file"),
        ("dir/deep", "deep"),
        ("to-dir/deep", "deep"),
        ("to-up", "up"),
        ("to-outside", "outside"),
        ("to-outside-absolute", "outside"),
    ] {
        assert_eq!(text(&files, name), some(expected), "{name}");
    }
    assert_eq!(text(&files, "nothing"), Ok(None));
    assert_eq!(text(&files, "dangling"), Ok(None));
    let error = text(&files, "loop").unwrap_err();
    assert!(error.contains("cannot open"), "{error}");
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_waiting() {
    let top = tree();
    for location in [
        Location::anywhere(&top.path().join("root/in")),
        Location::in_root(&top.path().join("root"), Path::new("in")).unwrap(),
    ] {
        let files = Files::directory(location).unwrap();
        for name in ["fifo", "to-fifo", "dir", "to-dir", "socket"] {
            let error = text(&files, name).unwrap_err();
            assert!(error.contains("is not a regular file"), "{name}: {error}");
        }
    }
    let fifo = Location::anywhere(&top.path().join("root/in/fifo"));
    let error = Files::archive(fifo).unwrap_err();
    assert!(matches!(error, SourceError::NotAFile { .. }), "{error}");
    let device = Location::anywhere(Path::new("/dev/null"));
    let error = Files::archive(device).unwrap_err();
    assert!(matches!(error, SourceError::NotAFile { .. }), "{error}");
    let file = Location::anywhere(&top.path().join("root/in/file"));
    let error = Files::directory(file).unwrap_err();
    assert!(
        matches!(error, SourceError::NotADirectory { .. }),
        "{error}"
    );
    let nothing = Location::anywhere(&top.path().join("nothing"));
    let error = Files::directory(nothing).unwrap_err();
    assert!(matches!(error, SourceError::Open { .. }), "{error}");
}

#[test]
fn nothing_leads_out_of_a_root() {
    let top = tree();
    let root = top.path().join("root");
    for path in ["in", "../in", "../../in", "in/../in", "./in/dir/.."] {
        let location = Location::in_root(&root, Path::new(path)).unwrap();
        let files = Files::directory(location).unwrap();
        assert_eq!(text(&files, "file"), some("file"), "{path}");
    }
    let location = Location::in_root(&root, &root.join("in")).unwrap();
    let files = Files::directory(location).unwrap();
    for (name, expected) in [
        ("to-file", some("file")),
        ("to-up", some("up")),
        ("to-absolute", some("up")),
        ("to-outside", Ok(None)),
        ("to-outside-absolute", Ok(None)),
        ("magic", Ok(None)),
        ("dangling", Ok(None)),
    ] {
        assert_eq!(text(&files, name), expected, "{name}");
    }
    let error = Location::in_root(&root, Path::new("/etc")).unwrap_err();
    assert!(matches!(error, SourceError::OutsideRoot { .. }), "{error}");
    // The beginning of a name is not a directory above it.
    let sibling = top.path().join("root2");
    let error = Location::in_root(&root, &sibling).unwrap_err();
    assert!(matches!(error, SourceError::OutsideRoot { .. }), "{error}");
}

#[test]
fn magic_links_inside_a_root_are_refused() {
    // Of all roots, `/` is the one in which they would work.
    let path = Path::new("proc/self/cwd");
    let location = Location::in_root(Path::new("/"), path).unwrap();
    let error = Files::directory(location).unwrap_err();
    assert!(matches!(error, SourceError::Open { .. }), "{error}");
}

#[test]
fn old_kernels_take_no_links_in_a_root() {
    let top = tree();
    let root = std::fs::File::open(top.path().join("root")).unwrap();
    let root = OwnedFd::from(root);
    let open = |path: &str| open_without_links(&root, Path::new(path), OFlags::PATH);
    for path in ["in/file", "./in/dir/deep", "in", ".", "in/fifo"] {
        open(path).unwrap();
    }
    for path in ["../outside", "/up", "in/../up", "in/to-dir/deep"] {
        open(path).unwrap_err();
    }
    // A link at the end is opened as itself, and is then no regular file.
    let link = open("in/to-file").unwrap();
    let status = fstat(&link).unwrap();
    assert_eq!(FileType::from_raw_mode(status.st_mode), FileType::Symlink);
}

#[test]
fn documents_are_bounded() {
    let top = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(top.path().join("big")).unwrap();
    file.set_len(MAX_DOCUMENT_BYTES).unwrap();
    let files = Files::directory(Location::anywhere(top.path())).unwrap();
    let bytes = files.read("big").unwrap().unwrap();
    assert_eq!(bytes.len() as u64, MAX_DOCUMENT_BYTES);
    file.set_len(MAX_DOCUMENT_BYTES + 1).unwrap();
    let error = files.read("big").unwrap_err();
    assert!(matches!(error, SourceError::FileSize { .. }), "{error}");
}
