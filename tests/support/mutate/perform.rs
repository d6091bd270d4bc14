//! A change, by system calls.

use super::super::entry::split;
use super::super::tree::real_path;
use super::Change;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Makes the change below `root`, by system calls. Where a wrong tree has a link
/// in the way that should be none, this fails instead of changing the machine.
pub fn perform(root: &Path, change: &Change) -> io::Result<()> {
    for path in change.paths() {
        refuse_links(root, path)?;
    }
    let real = |path: &[u8]| real_path(root, path);
    match change {
        Change::Create {
            path,
            content,
            mode,
        } => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let fd = rustix::fs::open(real(path), flags, Mode::from_raw_mode(0o600))?;
            let mut file = fs::File::from(fd);
            file.write_all(content)?;
            // Past the umask.
            rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode))?;
        }
        Change::WriteAt { path, offset, data } => {
            let file = open(&real(path), |options| options.write(true))?;
            file.write_all_at(data, *offset)?;
        }
        Change::Append { path, data } => {
            let mut file = open(&real(path), |options| options.append(true))?;
            file.write_all(data)?;
        }
        Change::Truncate { path, length } => {
            let file = open(&real(path), |options| options.write(true))?;
            file.set_len(*length)?;
        }
        Change::Unlink { path } => fs::remove_file(real(path))?,
        Change::Rmdir { path } => fs::remove_dir(real(path))?,
        Change::RecreateDir { path, mode } => {
            fs::remove_dir_all(real(path))?;
            make_dir(&real(path), *mode)?;
        }
        Change::Mkdir { path, mode } => make_dir(&real(path), *mode)?,
        Change::Mkfifo { path, mode } => {
            let mode = Mode::from_raw_mode(*mode);
            rustix::fs::mknodat(CWD, real(path), FileType::Fifo, mode, 0)?;
            rustix::fs::chmod(real(path), mode)?;
        }
        Change::Symlink { path, target } => {
            std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), real(path))?;
        }
        Change::Link { from, to } => {
            rustix::fs::linkat(CWD, real(from), CWD, real(to), AtFlags::empty())?;
        }
        Change::Rename { from, to } => fs::rename(real(from), real(to))?,
        Change::Chmod { path, mode } => {
            if fs::symlink_metadata(real(path))?.is_symlink() {
                return Err(rustix::io::Errno::LOOP.into());
            }
            rustix::fs::chmod(real(path), Mode::from_raw_mode(*mode))?;
        }
        Change::Chown { path, uid, gid } => rustix::fs::chownat(
            CWD,
            real(path),
            Some(Uid::from_raw(*uid)),
            Some(Gid::from_raw(*gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?,
        Change::Utimens { path, mtime } => {
            let time = Timespec {
                tv_sec: mtime.seconds,
                tv_nsec: mtime.nanos.into(),
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::utimensat(CWD, real(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Change::SetXattr { path, name, value } => {
            rustix::fs::lsetxattr(real(path), name.as_slice(), value, XattrFlags::empty())?;
        }
        Change::RemoveXattr { path, name } => {
            rustix::fs::lremovexattr(real(path), name.as_slice())?;
        }
    }
    Ok(())
}

/// Fails if a parent of `path` is a link, or `path` itself leads out through one.
fn refuse_links(root: &Path, path: &[u8]) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let parent = match split(path).0 {
        b"" => b".",
        parent => parent,
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(&root, parent, flags, Mode::empty(), resolve)?;
    Ok(())
}

fn open(
    real: &Path,
    how: fn(&mut fs::OpenOptions) -> &mut fs::OpenOptions,
) -> io::Result<fs::File> {
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).expect("a small flag");
    how(&mut fs::OpenOptions::new())
        .custom_flags(nofollow)
        .open(real)
}

fn make_dir(real: &Path, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::mkdir(real, mode)?;
    rustix::fs::chmod(real, mode)?;
    Ok(())
}
