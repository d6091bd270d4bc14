//! System calls that `rustix` does not offer, on the architectures that this
//! program is built for. Everything `unsafe` that is about the kernel is here.
#![expect(
    unsafe_code,
    reason = "statmount(2), mmap(2) and the ioctls of loop devices have no safe wrapper among the dependencies"
)]

use std::arch::asm;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::host::{MountEntry, MountFlags};

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const MMAP: usize = 9;
    pub(super) const MUNMAP: usize = 11;
    pub(super) const IOCTL: usize = 16;
    pub(super) const STATMOUNT: usize = 457;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const MMAP: usize = 222;
    pub(super) const MUNMAP: usize = 215;
    pub(super) const IOCTL: usize = 29;
    pub(super) const STATMOUNT: usize = 457;
}

/// Makes a system call.
///
/// # Safety
/// As for the call itself: every argument that the kernel takes for an address
/// must be valid for what the call reads or writes there.
unsafe fn syscall(number: usize, arguments: [usize; 6]) -> Result<usize, rustix::io::Errno> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention; the caller answers for the
    // arguments. Memory is not marked untouched, so the compiler reloads it.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    // The kernel returns the negated errno, which is at most 4095.
    match i32::try_from(result) {
        Ok(errno @ -4095..=-1) => Err(rustix::io::Errno::from_raw_os_error(-errno)),
        _ => Ok(result.cast_unsigned()),
    }
}

/// `struct mnt_id_req` of `linux/mount.h`, its first version.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mount_id: u64,
    mask: u64,
}

/// Offsets in `struct statmount` of `linux/mount.h`, and its mask bits.
mod field {
    pub(super) const MOUNT_OPTIONS: usize = 4;
    pub(super) const MASK: usize = 8;
    pub(super) const DEVICE_MAJOR: usize = 16;
    pub(super) const DEVICE_MINOR: usize = 20;
    pub(super) const SUPER_FLAGS: usize = 32;
    pub(super) const TYPE: usize = 36;
    pub(super) const ID: usize = 56;
    pub(super) const PARENT: usize = 60;
    pub(super) const ATTRIBUTES: usize = 64;
    pub(super) const PEER_GROUP: usize = 80;
    pub(super) const ROOT: usize = 104;
    pub(super) const POINT: usize = 108;
    pub(super) const SUBTYPE: usize = 120;
    pub(super) const SOURCE: usize = 124;
    /// Where the strings begin; the fields above are offsets from here.
    pub(super) const STRINGS: usize = 512;

    /// Superblock, mount, root, mount point, type: Linux 6.8.
    pub(super) const BASIC: u64 = 0x01 | 0x02 | 0x08 | 0x10 | 0x20;
    /// Options (6.11). They are what this call is made for.
    pub(super) const OPTIONS_BIT: u64 = 0x80;
    /// Subtype, and source of the superblock (6.14).
    pub(super) const SUBTYPE_BIT: u64 = 0x100;
    pub(super) const SOURCE_BIT: u64 = 0x200;
}

/// Asks the kernel about one mount, by its unique id. `None` where the kernel
/// cannot tell everything; the mount table can.
pub(super) fn statmount(mount_id: u64) -> Option<MountEntry> {
    // Enough for the options of sixty layers; grown when the kernel says so.
    let mut bytes = vec![0_u8; 8 << 10];
    let optional = field::SUBTYPE_BIT | field::SOURCE_BIT;
    let request = Request {
        size: 24,
        spare: 0,
        mount_id,
        mask: field::BASIC | field::OPTIONS_BIT | optional,
    };
    loop {
        // SAFETY: `request` is the structure that its `size` says and is only
        // read; `bytes` is writable for the length that is passed. The kernel
        // copies bytes, so the buffer needs no alignment.
        let result = unsafe {
            syscall(
                number::STATMOUNT,
                [
                    (&raw const request).expose_provenance(),
                    bytes.as_mut_ptr().expose_provenance(),
                    bytes.len(),
                    0,
                    0,
                    0,
                ],
            )
        };
        match result {
            Ok(_) => return decode(&bytes),
            Err(rustix::io::Errno::OVERFLOW) if bytes.len() < 1 << 20 => {
                bytes.resize(bytes.len() * 4, 0);
            }
            Err(_) => return None,
        }
    }
}

fn decode(bytes: &[u8]) -> Option<MountEntry> {
    let number32 = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let number64 = |at: usize| {
        let bytes = bytes.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let text = |at: usize| {
        let start = field::STRINGS.checked_add(usize::try_from(number32(at)?).ok()?)?;
        let text = bytes.get(start..)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        Some(OsStr::from_bytes(&text[..end]).to_os_string())
    };
    let mask = number64(field::MASK)?;
    let wanted = field::BASIC;
    if mask & wanted != wanted {
        return None;
    }
    // No options, no bit: but then the kernel must be one that has them, which
    // the source, newer still, tells.
    let options = if mask & field::OPTIONS_BIT != 0 {
        text(field::MOUNT_OPTIONS)?
    } else if mask & field::SOURCE_BIT != 0 {
        OsString::new()
    } else {
        return None;
    };
    let mut fs_type = text(field::TYPE)?;
    if mask & field::SUBTYPE_BIT != 0 {
        fs_type.push(".");
        fs_type.push(text(field::SUBTYPE)?);
    }
    let source = if mask & field::SOURCE_BIT != 0 {
        text(field::SOURCE)?
    } else {
        OsString::new()
    };
    let attributes = number64(field::ATTRIBUTES)?;
    let peer_group = number64(field::PEER_GROUP)?;
    Some(MountEntry {
        id: number32(field::ID)?.into(),
        parent: number32(field::PARENT)?.into(),
        device: (
            number32(field::DEVICE_MAJOR)?,
            number32(field::DEVICE_MINOR)?,
        ),
        root: PathBuf::from(text(field::ROOT)?),
        mount_point: PathBuf::from(text(field::POINT)?),
        // MOUNT_ATTR_* of linux/mount.h.
        flags: MountFlags {
            read_only: attributes & 1 != 0,
            nosuid: attributes & 2 != 0,
            nodev: attributes & 4 != 0,
            noexec: attributes & 8 != 0,
        },
        shared: (peer_group != 0).then_some(peer_group),
        fs_type,
        source,
        super_read_only: number32(field::SUPER_FLAGS)? & 1 != 0,
        options,
    })
}

/// A private mapping that one may read and execute.
struct Mapping {
    address: usize,
    length: usize,
}

impl Mapping {
    fn new(file: &File, length: usize) -> io::Result<Self> {
        // PROT_READ | PROT_EXEC, MAP_PRIVATE.
        let (protection, flags) = (1 | 4, 2);
        let descriptor = usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
        // SAFETY: without MAP_FIXED the kernel chooses unused addresses, so no
        // memory of this program is touched.
        let address =
            unsafe { syscall(number::MMAP, [0, length, protection, flags, descriptor, 0]) }?;
        Ok(Self { address, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and nothing borrows it.
        let result = unsafe { syscall(number::MUNMAP, [self.address, self.length, 0, 0, 0, 0]) };
        debug_assert!(result.is_ok(), "a mapping of our own can be unmapped");
    }
}

pub(super) fn read_mapped(file: &File, length: usize) -> io::Result<Vec<u8>> {
    if length == 0 {
        return Ok(Vec::new());
    }
    let mapping = Mapping::new(file, length)?;
    let start = std::ptr::with_exposed_provenance::<u8>(mapping.address);
    let mut bytes = vec![0_u8; length];
    // SAFETY: the mapping is readable for its whole length, which lies within
    // the file, and lives until the copy is made. The two do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(start, bytes.as_mut_ptr(), length) };
    Ok(bytes)
}

/// Bytes of `struct loop_info64` and `struct loop_config` of `linux/loop.h`.
pub(super) const LOOP_INFO: usize = 232;
pub(super) const LOOP_CONFIG: usize = 304;

/// Requests of `linux/loop.h`.
mod request {
    pub(super) const SET_FD: usize = 0x4c00;
    pub(super) const CLR_FD: usize = 0x4c01;
    pub(super) const SET_STATUS64: usize = 0x4c04;
    pub(super) const GET_STATUS64: usize = 0x4c05;
    pub(super) const CONFIGURE: usize = 0x4c0a;
    pub(super) const CTL_GET_FREE: usize = 0x4c82;
}

/// An ioctl whose argument is a number, or none.
///
/// # Safety
/// The request must be one for which the kernel takes the argument for no address.
unsafe fn ioctl_number(
    fd: BorrowedFd<'_>,
    request: usize,
    argument: usize,
) -> Result<usize, rustix::io::Errno> {
    let fd = usize::try_from(fd.as_raw_fd()).map_err(|_| rustix::io::Errno::BADF)?;
    // SAFETY: the caller answers for the argument.
    unsafe { syscall(number::IOCTL, [fd, request, argument, 0, 0, 0]) }
}

/// An ioctl with a structure that the kernel reads or writes.
///
/// # Safety
/// The structure of the request must not be larger than `argument`, and hold no
/// addresses.
unsafe fn ioctl_bytes(
    fd: BorrowedFd<'_>,
    request: usize,
    argument: &mut [u8],
) -> Result<usize, rustix::io::Errno> {
    // SAFETY: the bytes are this function's alone, and enough of them.
    unsafe { ioctl_number(fd, request, argument.as_mut_ptr().expose_provenance()) }
}

/// The number of a loop device that nobody uses; made if there is none.
pub(super) fn loop_free(control: BorrowedFd<'_>) -> Result<usize, rustix::io::Errno> {
    // SAFETY: the request has no argument. On a descriptor of anything else it
    // is unknown, as are the following.
    unsafe { ioctl_number(control, request::CTL_GET_FREE, 0) }
}

/// Gives a loop device its file and settings at once (Linux 5.8).
pub(super) fn loop_configure(
    device: BorrowedFd<'_>,
    mut config: [u8; LOOP_CONFIG],
) -> Result<(), rustix::io::Errno> {
    // SAFETY: the size is that of the structure, which has no addresses.
    unsafe { ioctl_bytes(device, request::CONFIGURE, &mut config) }.map(drop)
}

/// Gives a loop device its file.
pub(super) fn loop_set_fd(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
) -> Result<(), rustix::io::Errno> {
    let file = usize::try_from(file.as_raw_fd()).map_err(|_| rustix::io::Errno::BADF)?;
    // SAFETY: the argument is a descriptor.
    unsafe { ioctl_number(device, request::SET_FD, file) }.map(drop)
}

/// Takes its file from a loop device.
pub(super) fn loop_clear(device: BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
    // SAFETY: the request has no argument.
    unsafe { ioctl_number(device, request::CLR_FD, 0) }.map(drop)
}

/// Gives a loop device that has a file its settings.
pub(super) fn loop_set_status(
    device: BorrowedFd<'_>,
    mut info: [u8; LOOP_INFO],
) -> Result<(), rustix::io::Errno> {
    // SAFETY: the size is that of the structure, which has no addresses.
    unsafe { ioctl_bytes(device, request::SET_STATUS64, &mut info) }.map(drop)
}

/// The settings of a loop device.
pub(super) fn loop_status(device: BorrowedFd<'_>) -> Result<[u8; LOOP_INFO], rustix::io::Errno> {
    let mut info = [0; LOOP_INFO];
    // SAFETY: the size is that of the structure, which is bytes in any case.
    unsafe { ioctl_bytes(device, request::GET_STATUS64, &mut info) }?;
    Ok(info)
}
