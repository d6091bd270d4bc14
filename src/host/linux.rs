//! The real kernel. The only file that makes mount calls. Its part `raw` makes
//! with `unsafe` three system calls that `rustix` does not offer.
#![expect(
    clippy::disallowed_methods,
    reason = "this file is the one place where mount calls are made"
)]

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::mount as sys;

use super::mountinfo::{self, MountEntry};
use super::{
    Filesystem, Holder, Host, MountCall, MountFlags, MountTable, OverlayCall, OverlayInterface,
    Place,
};

mod holders;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod image;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod raw;

/// The mount table of the calling thread, which is the process's unless the
/// thread went into a namespace of its own.
const MOUNT_TABLE: &str = "/proc/thread-self/mountinfo";

/// `STATX_MNT_ID_UNIQUE` of `linux/stat.h` (Linux 6.8): the id that
/// `statmount(2)` takes.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// Longest file in sysfs, in bytes, on the smallest pages; a shorter reading
/// is a complete one.
const SYSFS_FILE_MAX: usize = 4096;

/// How often a table that changes while it is read is read again.
const TABLE_READS: usize = 8;

/// The kernel that this program runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxHost;

/// The system call's error together with what the kernel wrote about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct KernelMessage {
    message: String,
    source: io::Error,
}

impl Host for LinuxHost {
    fn mount(&self, target: &Path, call: &MountCall) -> io::Result<()> {
        match call {
            MountCall::New {
                fs_type,
                flags,
                data,
            } => {
                let data = CString::new(data.as_bytes())?;
                sys::mount(
                    *fs_type,
                    target,
                    *fs_type,
                    mount_flags(*flags),
                    data.as_c_str(),
                )?;
                Ok(())
            }
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            MountCall::Image {
                image,
                devices,
                flags,
                data,
            } => image::mount(target, image, devices, *flags, data),
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            MountCall::Image { .. } => Err(io::ErrorKind::Unsupported.into()),
            MountCall::Remount { flags, data } => {
                sys::mount_remount(target, mount_flags(*flags), data.as_str())?;
                Ok(())
            }
            MountCall::Bind {
                source,
                beneath: None,
            } => Ok(sys::mount_bind(source, target)?),
            MountCall::Bind {
                source,
                beneath: Some(beneath),
            } => {
                let directory = open_beneath(source, beneath)?;
                Ok(sys::mount_bind(descriptor_path(&directory), target)?)
            }
            MountCall::Private => Ok(sys::mount_change(
                target,
                sys::MountPropagationFlags::PRIVATE,
            )?),
            MountCall::AddFlags { flags } => {
                // A bind remount replaces the flags, and may not drop those
                // that a user namespace has locked.
                let present = mount_flags(self.filesystem(target)?.flags);
                let flags = sys::MountFlags::BIND | present | mount_flags(*flags);
                Ok(sys::mount_remount(target, flags, "")?)
            }
            MountCall::Overlay(call) => match call.interface {
                OverlayInterface::Appended => mount_overlay_appended(target, call),
                OverlayInterface::Joined => mount_overlay_joined(target, call, &call.lower),
                OverlayInterface::JoinedDescriptors => {
                    let open = |path: &PathBuf| open_directory(path);
                    let opened = call
                        .lower
                        .iter()
                        .map(open)
                        .collect::<io::Result<Vec<_>>>()?;
                    let lower: Vec<PathBuf> = opened.iter().map(descriptor_path).collect();
                    mount_overlay_joined(target, call, &lower)
                }
            },
        }
    }

    fn release_image(&self, image: &Path, devices: &Path) -> io::Result<()> {
        image::release(image, devices)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        Ok(sys::unmount(target, sys::UnmountFlags::NOFOLLOW)?)
    }

    fn mount_table(&self) -> io::Result<Vec<MountEntry>> {
        let mut text = read_mount_table()?;
        // Before Linux 5.8 the table is read by position, page by page: a
        // mount that goes away meanwhile makes another one be skipped. Two
        // equal readings cannot both have skipped it. The same release brought
        // mount ids to statx, which is how this one is recognised.
        if !statx(CWD, Path::new("/"), StatxFlags::MNT_ID)?.1.mount_id {
            for _ in 0..TABLE_READS {
                let again = read_mount_table()?;
                let stable = again == text;
                text = again;
                if stable {
                    break;
                }
            }
        }
        parse_table(&text)
    }

    fn mount_at(&self, path: &Path) -> io::Result<Option<MountEntry>> {
        if !self.place(path)?.mount_root {
            return Ok(None);
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        {
            let unique = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
            let (status, known) = statx(CWD, path, unique)?;
            if known.unique_id
                && let Some(entry) = raw::statmount(status.stx_mnt_id)
            {
                return Ok(Some(entry));
            }
        }
        let id = mount_id(path)?;
        mountinfo::parse_one(&read_mount_table()?, id).map_err(malformed)
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        let (status, known) = statx(CWD, path, StatxFlags::BASIC_STATS)?;
        let mount_root = if known.mount_root {
            status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        } else {
            // Linux before 5.8: a mount is attached here exactly if the path
            // and its parent directory are in different mounts.
            match path.parent() {
                Some(parent) => mount_id(path)? != mount_id(parent)?,
                None => true,
            }
        };
        Ok(Place {
            mount_root,
            device: (status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
        })
    }

    fn filesystem(&self, path: &Path) -> io::Result<Filesystem> {
        // Flag bits of `statfs(2)`; `rustix` gives the number as it is.
        const ST_RDONLY: u64 = 1;
        const ST_NOSUID: u64 = 2;
        const ST_NODEV: u64 = 4;
        const ST_NOEXEC: u64 = 8;
        let status = rustix::fs::statfs(path)?;
        let flags = widen(status.f_flags);
        let block = widen(status.f_bsize);
        Ok(Filesystem {
            // Magic numbers are 32 bits; the field's sign must not spread.
            magic: widen(status.f_type) & 0xffff_ffff,
            flags: MountFlags {
                read_only: flags & ST_RDONLY != 0,
                nosuid: flags & ST_NOSUID != 0,
                nodev: flags & ST_NODEV != 0,
                noexec: flags & ST_NOEXEC != 0,
            },
            name_max: widen(status.f_namelen),
            bytes: status.f_blocks.saturating_mul(block),
            bytes_available: status.f_bavail.saturating_mul(block),
            inodes: widen(status.f_files),
            inodes_available: widen(status.f_ffree),
        })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        // A verification reads a file for each branch, so it matters that each
        // takes three system calls and not five.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let mut content = vec![0_u8; SYSFS_FILE_MAX];
        let length = rustix::io::read(&file, &mut content)?;
        content.truncate(length);
        let whole = path.starts_with("/sys") && length < SYSFS_FILE_MAX;
        if !whole {
            File::from(file).read_to_end(&mut content)?;
        }
        Ok(content)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    fn remove_stale(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn overlay_appends(&self) -> bool {
        let takes = |key| {
            sys::fsopen("overlay", sys::FsOpenFlags::FSOPEN_CLOEXEC)
                .and_then(|context| sys::fsconfig_set_string(&context, key, "/"))
                .is_ok()
        };
        // Before Linux 6.5 overlayfs looks at its options only when it is
        // mounted, and until then any key will do.
        takes("lowerdir+") && !takes("no-such-option")
    }

    fn holders(&self, proc: &Path, target: &Path) -> io::Result<Vec<Holder>> {
        match self.mount_at(target)? {
            Some(entry) => holders::of(proc, &entry, target),
            None => Ok(Vec::new()),
        }
    }

    fn mount_tables(&self, proc: &Path) -> io::Result<Vec<MountTable>> {
        let own = MountTable {
            root: PathBuf::from("/"),
            entries: self.mount_table()?,
        };
        holders::tables(proc, own)
    }

    fn is_namespace_alive(&self, proc: &Path, namespace: u64) -> io::Result<bool> {
        holders::is_namespace_alive(proc, namespace)
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

fn mount_flags(flags: MountFlags) -> sys::MountFlags {
    let mut bits = sys::MountFlags::empty();
    bits.set(sys::MountFlags::RDONLY, flags.read_only);
    bits.set(sys::MountFlags::NOSUID, flags.nosuid);
    bits.set(sys::MountFlags::NODEV, flags.nodev);
    bits.set(sys::MountFlags::NOEXEC, flags.noexec);
    bits
}

fn attribute_flags(flags: MountFlags) -> sys::MountAttrFlags {
    let mut bits = sys::MountAttrFlags::empty();
    bits.set(sys::MountAttrFlags::MOUNT_ATTR_RDONLY, flags.read_only);
    bits.set(sys::MountAttrFlags::MOUNT_ATTR_NOSUID, flags.nosuid);
    bits.set(sys::MountAttrFlags::MOUNT_ATTR_NODEV, flags.nodev);
    bits.set(sys::MountAttrFlags::MOUNT_ATTR_NOEXEC, flags.noexec);
    bits
}

/// Widens a field of `statfs(2)`, whose types differ between architectures.
fn widen(value: impl TryInto<u64> + TryInto<i64> + Copy) -> u64 {
    let unsigned: Result<u64, _> = value.try_into();
    unsigned.unwrap_or_else(|_| {
        let signed: Result<i64, _> = value.try_into();
        signed.map_or(0, i64::cast_unsigned)
    })
}

fn mount_overlay_appended(target: &Path, call: &OverlayCall) -> io::Result<()> {
    let context = sys::fsopen("overlay", sys::FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configure = || -> rustix::io::Result<OwnedFd> {
        sys::fsconfig_set_string(&context, "source", "overlay")?;
        for lower in &call.lower {
            sys::fsconfig_set_string(&context, "lowerdir+", lower)?;
        }
        if let Some((upper, work)) = &call.upper_work {
            sys::fsconfig_set_string(&context, "upperdir", upper)?;
            sys::fsconfig_set_string(&context, "workdir", work)?;
        }
        for (key, value) in &call.options {
            match value {
                Some(value) => sys::fsconfig_set_string(&context, *key, value.as_str())?,
                None => sys::fsconfig_set_flag(&context, *key)?,
            }
        }
        if call.flags.read_only {
            sys::fsconfig_set_flag(&context, "ro")?;
        }
        sys::fsconfig_create(&context)?;
        sys::fsmount(
            &context,
            sys::FsMountFlags::FSMOUNT_CLOEXEC,
            attribute_flags(call.flags),
        )
    };
    let mount = configure().map_err(|errno| explain(context.try_clone(), errno))?;
    sys::move_mount(
        &mount,
        "",
        CWD,
        target,
        sys::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Adds what the kernel wrote into the filesystem context, if anything: an
/// errno of a mount is rarely enough to act on.
fn explain(context: io::Result<OwnedFd>, errno: rustix::io::Errno) -> io::Error {
    let source = io::Error::from(errno);
    let mut message = String::new();
    let mut line = [0_u8; 512];
    if let Ok(context) = context {
        let mut context = File::from(context);
        // Each read gives one message, prefixed by its severity.
        while let Ok(length @ 1..) = context.read(&mut line) {
            let text = String::from_utf8_lossy(&line[..length]);
            if !message.is_empty() {
                message.push_str("; ");
            }
            message.push_str(text.trim_end().get(2..).unwrap_or_default());
        }
    }
    if message.is_empty() {
        return source;
    }
    io::Error::new(source.kind(), KernelMessage { message, source })
}

fn mount_overlay_joined(target: &Path, call: &OverlayCall, lower: &[PathBuf]) -> io::Result<()> {
    let mut data = b"lowerdir=".to_vec();
    for (index, path) in lower.iter().enumerate() {
        if index > 0 {
            data.push(b':');
        }
        data.extend(path.as_os_str().as_bytes());
    }
    if let Some((upper, work)) = &call.upper_work {
        data.extend(b",upperdir=");
        data.extend(upper.as_os_str().as_bytes());
        data.extend(b",workdir=");
        data.extend(work.as_os_str().as_bytes());
    }
    for (key, value) in &call.options {
        data.push(b',');
        data.extend(key.as_bytes());
        if let Some(value) = value {
            data.push(b'=');
            data.extend(value.as_bytes());
        }
    }
    if data.len() >= rustix::param::page_size() {
        // The kernel would cut the text silently.
        return Err(io::Error::from(rustix::io::Errno::TOOBIG));
    }
    let data = CString::new(data)?;
    sys::mount(
        "overlay",
        target,
        "overlay",
        mount_flags(call.flags),
        data.as_c_str(),
    )?;
    Ok(())
}

/// What a `statx` answer is known to contain.
struct Known {
    mount_id: bool,
    unique_id: bool,
    mount_root: bool,
}

fn statx(
    directory: impl std::os::fd::AsFd,
    path: &Path,
    wanted: StatxFlags,
) -> io::Result<(rustix::fs::Statx, Known)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let status = rustix::fs::statx(directory, path, flags, wanted | StatxFlags::INO)?;
    let known = Known {
        mount_id: status.stx_mask & StatxFlags::MNT_ID.bits() != 0,
        unique_id: status.stx_mask & STATX_MNT_ID_UNIQUE != 0,
        mount_root: status
            .stx_attributes_mask
            .contains(StatxAttributes::MOUNT_ROOT),
    };
    Ok((status, known))
}

/// The id of the mount that `path` is in, as the mount table has it.
fn mount_id(path: &Path) -> io::Result<u64> {
    let (status, known) = statx(CWD, path, StatxFlags::MNT_ID)?;
    if known.mount_id && !known.unique_id {
        return Ok(status.stx_mnt_id);
    }
    // Linux before 5.8.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
    let info = format!("/proc/thread-self/fdinfo/{}", descriptor.as_raw_fd());
    std::fs::read_to_string(info)?
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn read_mount_table() -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(64 << 10);
    File::open(MOUNT_TABLE)?.read_to_end(&mut text)?;
    Ok(text)
}

fn parse_table(text: &[u8]) -> io::Result<Vec<MountEntry>> {
    mountinfo::parse(text).map_err(malformed)
}

fn malformed(error: mountinfo::ParseError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Names an open directory by a path that any system call takes.
fn descriptor_path(descriptor: &OwnedFd) -> PathBuf {
    // Threads share their descriptors, and this is the shortest such path.
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIRECTORY, Mode::empty())?)
}

/// Opens a directory below `root`, whose content is foreign: symbolic links
/// are resolved as if `root` were the root directory, and nothing mounted
/// below it is entered.
fn open_beneath(root: &Path, beneath: &Path) -> io::Result<OwnedFd> {
    let root = open_directory(root)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // A symbolic link as the last component is followed too.
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    match rustix::fs::openat2(&root, beneath, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOSYS) => {}
        result => return Ok(result?),
    }
    // Linux before 5.6. Without the kernel's help a symbolic link is an error
    // rather than a risk.
    let mut directory = root;
    for component in beneath.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::from(rustix::io::Errno::XDEV));
            }
        };
        directory = rustix::fs::openat(&directory, name, DIRECTORY, Mode::empty())?;
    }
    Ok(directory)
}

/// Maps `file` as the loader maps a program (private, readable, executable)
/// and returns the bytes at its start that the mapping shows, at most
/// `length` of them; for the probe of kernels whose memory mapping patch is
/// broken. The file must not be cut while this runs.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn read_mapped(file: &File, length: usize) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    raw::read_mapped(file, length.min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mount_is_told_as_the_table_tells_it() {
        let host = LinuxHost;
        let table = host.mount_table().unwrap();
        for path in ["/", "/proc"] {
            let path = Path::new(path);
            let entry = host.mount_at(path).unwrap().expect("it is a mount");
            let listed = table
                .iter()
                .rev()
                .find(|listed| listed.mount_point == path)
                .unwrap();
            assert_eq!(&entry, listed);
            assert!(host.place(path).unwrap().mount_root);
        }
    }

    #[test]
    fn a_plain_directory_is_no_mount() {
        let directory = tempfile::tempdir().unwrap();
        let place = LinuxHost.place(directory.path()).unwrap();
        assert!(!place.mount_root);
        assert_ne!(place.inode, 0);
        assert_eq!(LinuxHost.mount_at(directory.path()).unwrap(), None);
        let absent = LinuxHost.place(&directory.path().join("absent"));
        assert_eq!(absent.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_old_way_to_a_mount_id_agrees_with_the_new() {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open("/proc", flags, Mode::empty()).unwrap();
        let info = format!("/proc/thread-self/fdinfo/{}", descriptor.as_raw_fd());
        let text = std::fs::read_to_string(info).unwrap();
        let line = format!("mnt_id:\t{}", mount_id(Path::new("/proc")).unwrap());
        assert!(text.lines().any(|found| found == line), "{text}");
    }

    #[test]
    fn flags_come_from_statfs() {
        let proc = LinuxHost.filesystem(Path::new("/proc")).unwrap();
        assert_eq!(proc.magic, 0x9fa0);
        let listed = LinuxHost.mount_at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(proc.flags.nosuid, listed.flags.nosuid);
        assert_eq!(proc.flags.noexec, listed.flags.noexec);
    }

    #[test]
    fn a_path_below_a_root_cannot_leave_it() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/deep")).unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../../..", root.path().join("etc/up")).unwrap();
        let same = |beneath: &str, expected: &str| {
            let opened = open_beneath(root.path(), Path::new(beneath)).unwrap();
            let opened = rustix::fs::fstat(&opened).unwrap();
            let expected = rustix::fs::stat(root.path().join(expected)).unwrap();
            assert_eq!(opened.st_ino, expected.st_ino, "{beneath}");
        };
        same("etc/deep", "etc/deep");
        same("out/deep", "etc/deep");
        same("etc/up", "");
        same("../..", "");
        same("/etc", "etc");
        assert!(open_beneath(root.path(), Path::new("absent")).is_err());
    }

    #[test]
    fn a_mapping_shows_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"text").unwrap();
        let opened = File::open(file.path()).unwrap();
        assert_eq!(read_mapped(&opened, 16).unwrap(), b"text");
        assert_eq!(read_mapped(&opened, 2).unwrap(), b"te");
    }
}
