//! What the tests of the modules that write trees share.

use rustix::fs::{Gid, Uid};

/// Runs `test` in a thread of its own that is nobody, without capabilities.
pub(in crate::layer) fn without_root<T: Send + 'static>(
    test: impl FnOnce() -> T + Send + 'static,
) -> T {
    let nobody = 65534;
    std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(nobody), Gid::from_raw(nobody));
        // By the system call a thread changes alone, which libc would prevent.
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        test()
    })
    .join()
    .unwrap()
}

/// Runs `test` in a thread with mounts of its own, which end with it, and with
/// a tmpfs of one MiB on the directory that it gets.
#[expect(
    clippy::disallowed_methods,
    reason = "the mounts are the test's own, in a namespace that ends with its thread"
)]
#[expect(
    deprecated,
    reason = "without CLONE_FILES, which is not asked for, the call is safe"
)]
pub(in crate::layer) fn with_small_disk<T: Send + 'static>(
    test: impl FnOnce(&std::path::Path) -> T + Send + 'static,
) -> T {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    std::thread::spawn(move || {
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        // Otherwise what is mounted here is mounted for everybody.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let size = c"size=1m,nr_inodes=200";
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), size).unwrap();
        let result = test(dir.path());
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        result
    })
    .join()
    .unwrap()
}

/// Makes `source` visible at `target`, in the namespace of [`with_small_disk`].
#[expect(clippy::disallowed_methods, reason = "as above")]
pub(in crate::layer) fn bind(source: &std::path::Path, target: &std::path::Path) {
    rustix::mount::mount_bind(source, target).unwrap();
}
