//! Filesystem images: a file behind a loop device, mounted.
//!
//! The device is let go by the kernel (`LO_FLAGS_AUTOCLEAR`) when the last mount
//! and the last descriptor of it are gone, so that a kill at any point leaves no
//! device behind.
#![expect(
    clippy::disallowed_methods,
    reason = "part of the one place where mount calls are made"
)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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
    _open: OwnedFd,
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
    let device = match attached(&file, devices)? {
        Some(device) => device,
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

/// Sets to 0 what would make the kernel punch holes into the image: those would
/// have to be allocated again, and the node's disk may be full by then. Without
/// write access to /sys they are filled when the image is mounted next.
fn keep_allocated(number: usize, class: &str, setting: &str) {
    let path = format!("/sys/{class}/loop{number}/{setting}");
    if let Err(error) = fs::write(&path, "0") {
        tracing::debug!(path, %error, "the image may get holes");
    }
}

/// The device that a file is behind already.
fn attached(file: &OwnedFd, devices: &Path) -> io::Result<Option<Device>> {
    let wanted = rustix::fs::fstat(file)?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop"));
        let Some(number) = number.and_then(|number| number.parse().ok()) else {
            continue;
        };
        if !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let (path, fd) = block_device(number, devices)?;
        let info = match raw::loop_status(fd.as_fd()) {
            Ok(info) => info,
            // It was let go meanwhile.
            Err(Errno::NXIO) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if is_behind(&info, &wanted) {
            let _open = fd;
            return Ok(Some(Device {
                number,
                path,
                _open,
            }));
        }
    }
    Ok(None)
}

fn is_behind(info: &[u8; raw::LOOP_INFO], file: &Stat) -> bool {
    let number = |range: std::ops::Range<usize>| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&info[range]);
        u64::from_ne_bytes(bytes)
    };
    number(info::DEVICE) == file.st_dev && number(info::INODE) == file.st_ino
}

/// Puts a file behind a device that nobody uses.
fn attach(file: &OwnedFd, devices: &Path) -> io::Result<Device> {
    let (_, control) = node("loop-control", FileType::CharacterDevice, CONTROL, devices)?;
    let mut last = Errno::BUSY;
    for _ in 0..ATTEMPTS {
        let number = raw::loop_free(control.as_fd())?;
        let (path, fd) = block_device(number, devices)?;
        match configure(&fd, file) {
            Ok(()) => {
                let _open = fd;
                return Ok(Device {
                    number,
                    path,
                    _open,
                });
            }
            Err(errno @ Errno::BUSY) => last = errno,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(last.into())
}

fn configure(device: &OwnedFd, file: &OwnedFd) -> Result<(), Errno> {
    let mut settings = [0; raw::LOOP_INFO];
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

fn block_device(number: usize, devices: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    let minor = u32::try_from(number).map_err(io::Error::other)?;
    let name = format!("loop{number}");
    node(&name, FileType::BlockDevice, (LOOP_MAJOR, minor), devices)
}

/// Opens a device by its node, which is made where there is none: a container's
/// /dev has only the devices that there were when it began. In `devices` where
/// /dev cannot be used.
fn node(
    name: &str,
    kind: FileType,
    number: (u32, u32),
    devices: &Path,
) -> io::Result<(PathBuf, OwnedFd)> {
    let mut first = None;
    for dir in [Path::new("/dev"), devices] {
        let path = dir.join(name);
        match open_node(&path, kind, number) {
            Ok(fd) => return Ok((path, fd)),
            Err(errno) => first = first.or(Some(errno)),
        }
    }
    Err(first.unwrap_or(Errno::NOENT).into())
}

fn open_node(path: &Path, kind: FileType, number: (u32, u32)) -> Result<OwnedFd, Errno> {
    let device = rustix::fs::makedev(number.0, number.1);
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
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
