//! Filesystem images: a file behind a loop device, mounted.
//!
//! The device is let go by the kernel (`LO_FLAGS_AUTOCLEAR`) when the last mount
//! and the last descriptor of it are gone, so that a kill at any point leaves no
//! device behind. Before Linux 5.8 a device has its file a moment before it has that
//! flag; one of which a kill made just that is found by its file, and gets the flag
//! or loses the file.
#![expect(
    clippy::disallowed_methods,
    reason = "part of the one place where mount calls are made"
)]

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount as sys;

use super::{mount_flags, raw};
use crate::host::MountFlags;

/// Device numbers of `Documentation/admin-guide/devices.txt`.
const LOOP_MAJOR: u32 = 7;
const CONTROL: (u32, u32) = (10, 237);

/// Offsets in `struct loop_info64` of `linux/loop.h`, and its flags.
mod info {
    use std::ops::Range;
    pub(super) const DEVICE: Range<usize> = 0..8;
    pub(super) const INODE: Range<usize> = 8..16;
    pub(super) const FLAGS: Range<usize> = 52..56;
    pub(super) const AUTOCLEAR: u32 = 4;
    pub(super) const DIRECT_IO: u32 = 16;
}

/// The image's block size: with sectors of that size the kernel can write past
/// its page cache whatever the disk's own are.
const SECTOR: u32 = 4096;

/// How often another process may be faster to take the device that was free.
const ATTEMPTS: usize = 64;

/// Ends a filesystem at the first sign of damage, rather than going on with it.
const OPTIONS: &str = "errors=remount-ro";

/// A loop device.
struct Device {
    number: usize,
    path: PathBuf,
    /// Without it the device would be let go before it is mounted.
    open: OwnedFd,
}

/// `struct loop_info64` of `linux/loop.h`.
type Settings = [u8; raw::LOOP_INFO];

/// What a device's node is opened for.
#[derive(Clone, Copy)]
enum Access {
    Look,
    Use,
}

/// Mounts an ext4 image, with the device that it has already if it has one: a
/// second one would destroy what is written by way of the first.
pub(super) fn mount(
    target: &Path,
    image: &Path,
    devices: &Path,
    flags: MountFlags,
    data: &str,
) -> io::Result<()> {
    let open = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(image, open, Mode::empty())?;
    let device = match attached(image, &file, devices)? {
        Some((device, mut settings)) => {
            if !lets_go(&settings) {
                let flags = number32(&settings, info::FLAGS) | info::AUTOCLEAR;
                settings[info::FLAGS].copy_from_slice(&flags.to_ne_bytes());
                raw::loop_set_status(device.open.as_fd(), settings)?;
            }
            device
        }
        None => attach(&file, devices)?,
    };
    keep_allocated(device.number, "block", "queue/discard_max_bytes");
    let options = match data {
        "" => OPTIONS.to_owned(),
        data => format!("{OPTIONS},{data}"),
    };
    let options = CString::new(options)?;
    let flags = mount_flags(flags);
    sys::mount(&device.path, target, "ext4", flags, options.as_c_str())?;
    keep_allocated(device.number, "fs/ext4", "extent_max_zeroout_kb");
    Ok(())
}

/// See [`crate::host::Host::release_image`].
pub(super) fn release(image: &Path, devices: &Path) -> io::Result<()> {
    let open = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::open(image, open, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    match attached(image, &file, devices)? {
        Some((device, settings)) if !lets_go(&settings) => {
            Ok(raw::loop_clear(device.open.as_fd())?)
        }
        _ => Ok(()),
    }
}

/// Sets to 0 what would make the kernel punch holes into the image: those would
/// have to be allocated again, and the node's disk may be full by then. Without
/// write access to /sys they are filled when the image is mounted next.
fn keep_allocated(number: usize, class: &str, setting: &str) {
    let path = format!("/sys/{class}/loop{number}/{setting}");
    if let Err(error) = fs::write(&path, "0") {
        tracing::debug!(path, %error, "the image may get holes");
    }
}

/// The device that a file is behind already, with its settings.
fn attached(
    image: &Path,
    file: &OwnedFd,
    devices: &Path,
) -> io::Result<Option<(Device, Settings)>> {
    let wanted = rustix::fs::fstat(file)?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop"));
        let Some(number) = number.and_then(|number| number.parse().ok()) else {
            continue;
        };
        // Other people's devices are not to be opened: they may be damaged, or be
        // about to be let go.
        match fs::read(entry.path().join("loop/backing_file")) {
            Ok(backing) if may_be(&backing, image) => {}
            _ => continue,
        }
        let (path, open) = block_device(number, devices, Access::Look)?;
        let settings = match raw::loop_status(open.as_fd()) {
            Ok(settings) => settings,
            // It was let go meanwhile.
            Err(Errno::NXIO) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if is_behind(&settings, &wanted) {
            let device = Device { number, path, open };
            return Ok(Some((device, settings)));
        }
    }
    Ok(None)
}

/// Whether the path that the kernel gives may be that of an image. It is as seen from
/// the mount that the file was opened by, which may be another container's: the last
/// two names are the same in all of them.
fn may_be(backing: &[u8], image: &Path) -> bool {
    let backing = backing.strip_suffix(b"\n").unwrap_or(backing);
    let backing = Path::new(OsStr::from_bytes(backing));
    backing
        .components()
        .rev()
        .take(2)
        .eq(image.components().rev().take(2))
}

fn is_behind(settings: &Settings, file: &Stat) -> bool {
    let number = |range: Range<usize>| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&settings[range]);
        u64::from_ne_bytes(bytes)
    };
    number(info::DEVICE) == file.st_dev && number(info::INODE) == file.st_ino
}

fn number32(settings: &Settings, range: Range<usize>) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&settings[range]);
    u32::from_ne_bytes(bytes)
}

fn lets_go(settings: &Settings) -> bool {
    number32(settings, info::FLAGS) & info::AUTOCLEAR != 0
}

/// Puts a file behind a device that nobody uses.
fn attach(file: &OwnedFd, devices: &Path) -> io::Result<Device> {
    let kind = FileType::CharacterDevice;
    let (_, control) = node("loop-control", kind, CONTROL, devices, Access::Use)?;
    let mut last = Errno::BUSY;
    for _ in 0..ATTEMPTS {
        let number = raw::loop_free(control.as_fd())?;
        let (path, open) = block_device(number, devices, Access::Use)?;
        match configure(&open, file) {
            Ok(()) => return Ok(Device { number, path, open }),
            Err(errno @ Errno::BUSY) => last = errno,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(last.into())
}

fn configure(device: &OwnedFd, file: &OwnedFd) -> Result<(), Errno> {
    let mut settings: Settings = [0; raw::LOOP_INFO];
    let flags = info::AUTOCLEAR | info::DIRECT_IO;
    settings[info::FLAGS].copy_from_slice(&flags.to_ne_bytes());
    let mut config = [0; raw::LOOP_CONFIG];
    config[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    config[4..8].copy_from_slice(&SECTOR.to_ne_bytes());
    config[8..8 + raw::LOOP_INFO].copy_from_slice(&settings);
    match raw::loop_configure(device.as_fd(), config) {
        // Linux before 5.8.
        Err(Errno::INVAL | Errno::NOTTY) => {}
        result => return result,
    }
    raw::loop_set_fd(device.as_fd(), file.as_fd())?;
    settings[info::FLAGS].copy_from_slice(&info::AUTOCLEAR.to_ne_bytes());
    let result = raw::loop_set_status(device.as_fd(), settings);
    if result.is_err() {
        // Nobody else would: it does not clear itself yet.
        let _ = raw::loop_clear(device.as_fd());
    }
    result
}

fn block_device(number: usize, devices: &Path, access: Access) -> io::Result<(PathBuf, OwnedFd)> {
    let minor = u32::try_from(number).map_err(io::Error::other)?;
    let name = format!("loop{number}");
    let kind = FileType::BlockDevice;
    node(&name, kind, (LOOP_MAJOR, minor), devices, access)
}

/// Opens a device by its node, which is made where there is none: a container's
/// /dev has only the devices that there were when it began. In `devices` where
/// /dev cannot be used.
fn node(
    name: &str,
    kind: FileType,
    number: (u32, u32),
    devices: &Path,
    access: Access,
) -> io::Result<(PathBuf, OwnedFd)> {
    let mut first = None;
    for dir in [Path::new("/dev"), devices] {
        let path = dir.join(name);
        match open_node(&path, kind, number, access) {
            Ok(fd) => return Ok((path, fd)),
            Err(errno) => first = first.or(Some(errno)),
        }
    }
    Err(first.unwrap_or(Errno::NOENT).into())
}

fn open_node(
    path: &Path,
    kind: FileType,
    number: (u32, u32),
    access: Access,
) -> Result<OwnedFd, Errno> {
    let device = rustix::fs::makedev(number.0, number.1);
    let access = match access {
        Access::Look => OFlags::RDONLY,
        Access::Use => OFlags::RDWR,
    };
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let mode = Mode::RUSR | Mode::WUSR;
            match rustix::fs::mknodat(CWD, path, kind, mode, device) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            rustix::fs::open(path, flags, Mode::empty())?
        }
        result => result?,
    };
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != device {
        return Err(Errno::NXIO);
    }
    Ok(fd)
}
