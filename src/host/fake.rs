//! A kernel in memory: a mount table with state, failures on demand, and a
//! record of every call, so that tests compare whole sequences.
//!
//! It is strict where the real one is (a target must not be unmounted twice, a
//! duplicate branch is `EINVAL`) and as careless where the real one is (option
//! text beyond a page is cut silently, a remount replaces the flags).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::{
    Filesystem, HeldBy, Holder, Host, MountCall, MountEntry, MountFlags, MountTable, OverlayCall,
    Place,
};

/// Magic numbers as in `statfs(2)`.
const EXT4: u64 = 0xef53;
const OVERLAY: u64 = 0x794c_7630;
const AUFS: u64 = 0x6175_6673;
const TMPFS: u64 = 0x0102_1994;

/// Entries of one AUFS mount call beyond which a real kernel answered E2BIG
/// and then crashed.
const AUFS_SLOTS: usize = 84;

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`Host::mount`].
    Mount(PathBuf, MountCall),
    /// [`Host::unmount`].
    Unmount(PathBuf),
    /// [`Host::mount_table`].
    MountTable,
    /// [`Host::mount_at`].
    MountAt(PathBuf),
    /// [`Host::place`].
    Place(PathBuf),
    /// [`Host::filesystem`].
    Filesystem(PathBuf),
    /// [`Host::read`].
    Read(PathBuf),
    /// [`Host::list`].
    List(PathBuf),
    /// [`Host::release_image`].
    ReleaseImage(PathBuf),
    /// [`Host::remove_stale`].
    RemoveStale(PathBuf),
    /// [`Host::holders`].
    Holders(PathBuf),
    /// [`Host::pause`].
    Pause(Duration),
}

impl Call {
    /// Whether it changes anything.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Mount(..) | Self::Unmount(_) | Self::RemoveStale(_)
        )
    }
}

/// Chooses calls that fail.
type Selector = Box<dyn Fn(&Call) -> bool + Send>;

struct Failure {
    selector: Selector,
    /// Matching calls that still succeed.
    skip: usize,
    /// Calls that fail after those.
    times: usize,
    errno: i32,
}

#[derive(Debug, Clone)]
struct Attached {
    id: u64,
    at: PathBuf,
    superblock: u64,
    /// Path inside the superblock, or of the plain directory behind it.
    root: PathBuf,
    flags: MountFlags,
}

#[derive(Debug, Clone)]
struct Superblock {
    fs_type: &'static str,
    magic: u64,
    read_only: bool,
    /// Branches of AUFS as `path=permission`.
    branches: Vec<String>,
    options: String,
    xino: Option<String>,
    /// Still being mounted by somebody else: it has a directory in sysfs, and
    /// reading a file in it crashes a real kernel.
    unborn: bool,
}

type Tamper = Box<dyn Fn(&mut Vec<String>) + Send>;

#[derive(Default)]
struct State {
    mounts: Vec<Attached>,
    superblocks: BTreeMap<u64, Superblock>,
    calls: Vec<Call>,
    failures: Vec<Failure>,
    files: BTreeMap<PathBuf, Vec<u8>>,
    absent: BTreeSet<PathBuf>,
    held: BTreeSet<u64>,
    namespaces: BTreeSet<u64>,
    tamper: Option<Tamper>,
    tamper_flags: Option<MountFlags>,
    next: u64,
    appends: bool,
    branches_hidden: bool,
    others_mount: bool,
}

/// The in-memory kernel. Every directory exists unless declared absent.
pub struct FakeHost {
    state: Mutex<State>,
    page_size: usize,
}

impl std::fmt::Debug for FakeHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeHost").finish_non_exhaustive()
    }
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// A kernel with AUFS and overlay and nothing mounted.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            appends: true,
            next: 100,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            page_size: 4096,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere must not hide why.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `times` of the calls that `selector` matches fail with `errno`,
    /// after `skip` of them succeeded.
    pub fn fail(
        &self,
        selector: impl Fn(&Call) -> bool + Send + 'static,
        skip: usize,
        times: usize,
        errno: Errno,
    ) {
        self.state().failures.push(Failure {
            selector: Box::new(selector),
            skip,
            times,
            errno: errno.raw_os_error(),
        });
    }

    /// Takes every failure back.
    pub fn heal(&self) {
        self.state().failures.clear();
    }

    /// Lets a new union's branch list come out changed: of AUFS all branches as
    /// `path=permission`, of overlay the paths of the lower directories.
    pub fn tamper_branches(&self, change: impl Fn(&mut Vec<String>) + Send + 'static) {
        self.state().tamper = Some(Box::new(change));
    }

    /// Lets every new mount have these flags instead of the wanted ones.
    pub fn tamper_flags(&self, flags: MountFlags) {
        self.state().tamper_flags = Some(flags);
    }

    /// Hides the branches of AUFS from sysfs and shows them among the mount
    /// options, as a module loaded with `brs=0` does.
    pub fn hide_branches(&self) {
        self.state().branches_hidden = true;
    }

    /// Lets somebody else begin to mount a union of AUFS during each mount.
    pub fn others_mount(&self) {
        self.state().others_mount = true;
    }

    /// Keeps the union that is mounted at `at` alive after its last unmount,
    /// as another mount namespace does.
    pub fn hold(&self, at: &Path) {
        let mut state = self.state();
        if let Some(superblock) = state.top(at).map(|mount| mount.superblock) {
            state.held.insert(superblock);
        }
    }

    /// Has a process in another mount namespace.
    pub fn live_in(&self, namespace: u64) {
        self.state().namespaces.insert(namespace);
    }

    /// Lets the unions that were held go.
    pub fn let_go(&self) {
        let mut state = self.state();
        state.held.clear();
        state.forget_unused();
    }

    /// Writes a file of the kernel.
    pub fn write(&self, path: impl Into<PathBuf>, content: impl Into<Vec<u8>>) {
        self.state().files.insert(path.into(), content.into());
    }

    /// Declares that a path does not exist.
    pub fn remove(&self, path: impl Into<PathBuf>) {
        self.state().absent.insert(path.into());
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// The calls so far that change something.
    #[must_use]
    pub fn changes(&self) -> Vec<Call> {
        let calls = self.calls().into_iter();
        calls.filter(Call::is_change).collect()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.state().calls.clear();
    }

    /// Mount points in the order of mounting.
    #[must_use]
    pub fn mounted(&self) -> Vec<PathBuf> {
        let state = self.state();
        state.mounts.iter().map(|mount| mount.at.clone()).collect()
    }

    /// Number of unions that live, mounted or held.
    #[must_use]
    pub fn superblocks(&self) -> usize {
        self.state().superblocks.len()
    }

    /// Notes the call and answers whether it may go on.
    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let mut errno = None;
        for failure in &mut state.failures {
            if !(failure.selector)(&call) {
                continue;
            }
            if failure.skip > 0 {
                failure.skip -= 1;
            } else if failure.times > 0 {
                failure.times -= 1;
                errno = Some(failure.errno);
                break;
            }
        }
        state.calls.push(call);
        match errno {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(state),
        }
    }
}

fn refused(errno: Errno) -> io::Error {
    io::Error::from(errno)
}

fn number_of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish() | 1
}

impl State {
    fn top(&self, at: &Path) -> Option<&Attached> {
        self.mounts.iter().rev().find(|mount| mount.at == at)
    }

    /// The mount that `path` is in, and the path inside its superblock.
    fn resolve(&self, path: &Path) -> (Option<&Attached>, PathBuf) {
        let covering = path.ancestors().find_map(|ancestor| {
            let mount = self.top(ancestor)?;
            let rest = path.strip_prefix(ancestor).unwrap_or(path);
            Some((mount, rest))
        });
        match covering {
            Some((mount, rest)) if rest.as_os_str().is_empty() => (Some(mount), mount.root.clone()),
            Some((mount, rest)) => (Some(mount), mount.root.join(rest)),
            None => (None, path.to_path_buf()),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        !path.ancestors().any(|path| self.absent.contains(path))
    }

    fn attach(&mut self, at: &Path, superblock: u64, root: PathBuf, flags: MountFlags) {
        self.next += 1;
        let flags = self.tamper_flags.unwrap_or(flags);
        self.mounts.push(Attached {
            id: self.next,
            at: at.to_path_buf(),
            superblock,
            root,
            flags,
        });
    }

    fn new_superblock(&mut self, superblock: Superblock) -> u64 {
        self.next += 1;
        let id = self.next;
        self.superblocks.insert(id, superblock);
        id
    }

    fn forget_unused(&mut self) {
        let used: BTreeSet<u64> = self
            .mounts
            .iter()
            .map(|mount| mount.superblock)
            .chain(self.held.iter().copied())
            .collect();
        self.superblocks.retain(|id, _| used.contains(id));
    }

    fn mount_aufs(&mut self, at: &Path, flags: MountFlags, data: &str) -> io::Result<()> {
        let (branches, options, xino) = read_aufs(data)?;
        let mut union = Superblock {
            fs_type: "aufs",
            magic: AUFS,
            read_only: flags.read_only,
            branches: Vec::new(),
            options,
            xino,
            unborn: false,
        };
        add_branches(&mut union, branches)?;
        if let Some(tamper) = &self.tamper {
            tamper(&mut union.branches);
        }
        if self.others_mount {
            let other = Superblock {
                unborn: true,
                ..union.clone()
            };
            let other = self.new_superblock(other);
            self.held.insert(other);
        }
        let superblock = self.new_superblock(union);
        self.attach(at, superblock, "/".into(), flags);
        Ok(())
    }

    fn mount_overlay(&mut self, at: &Path, call: &OverlayCall) {
        let mut lower: Vec<String> = call
            .lower
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        if let Some(tamper) = &self.tamper {
            tamper(&mut lower);
        }
        let mut options: Vec<String> = lower
            .into_iter()
            .map(|path| format!("lowerdir+={path}"))
            .collect();
        if let Some((upper, work)) = &call.upper_work {
            options.push(format!("upperdir={}", upper.display()));
            options.push(format!("workdir={}", work.display()));
        }
        options.extend(call.options.iter().map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => (*key).to_owned(),
        }));
        let superblock = self.new_superblock(Superblock {
            fs_type: "overlay",
            magic: OVERLAY,
            read_only: call.flags.read_only,
            branches: Vec::new(),
            options: options.join(","),
            xino: None,
            unborn: false,
        });
        self.attach(at, superblock, "/".into(), call.flags);
    }

    fn mount_plain(
        &mut self,
        at: &Path,
        (fs_type, magic): (&'static str, u64),
        options: &str,
        flags: MountFlags,
    ) {
        let superblock = self.new_superblock(Superblock {
            fs_type,
            magic,
            read_only: flags.read_only,
            branches: Vec::new(),
            options: options.to_owned(),
            xino: None,
            unborn: false,
        });
        self.attach(at, superblock, "/".into(), flags);
    }

    fn bind(&mut self, at: &Path, source: &Path, beneath: Option<&Path>) -> io::Result<()> {
        if !self.exists(source) {
            return Err(refused(Errno::NOENT));
        }
        let (mount, mut root) = self.resolve(source);
        let (superblock, flags) = match mount {
            Some(mount) => (mount.superblock, mount.flags),
            None => (0, MountFlags::default()),
        };
        if let Some(beneath) = beneath {
            root.push(beneath.strip_prefix("/").unwrap_or(beneath));
        }
        self.attach(at, superblock, root, flags);
        Ok(())
    }

    fn entry(&self, mount: &Attached) -> MountEntry {
        let superblock = self.superblocks.get(&mount.superblock);
        let options = match superblock {
            Some(union) if union.fs_type == "aufs" => {
                let hidden = if self.branches_hidden {
                    format!(",br:{}", union.branches.join(":"))
                } else {
                    String::new()
                };
                format!("si={:x},{}{hidden}", mount.superblock, union.options)
            }
            Some(union) => union.options.clone(),
            None => String::new(),
        };
        MountEntry {
            id: mount.id,
            parent: 1,
            device: device(mount.superblock),
            root: mount.root.clone(),
            mount_point: mount.at.clone(),
            flags: mount.flags,
            shared: None,
            fs_type: superblock.map_or("ext4", |union| union.fs_type).into(),
            source: "none".into(),
            super_read_only: superblock.is_some_and(|union| union.read_only),
            options: options.into(),
        }
    }

    /// A file below `/sys/fs/aufs`.
    fn read_sysfs(&self, path: &Path) -> Option<Vec<u8>> {
        let inside = path.strip_prefix("/sys/fs/aufs").ok()?;
        let mut parts = inside.iter().map(|part| part.to_str().unwrap_or_default());
        let id = parts.next()?.strip_prefix("si_")?;
        let union = self.superblocks.get(&u64::from_str_radix(id, 16).ok()?)?;
        assert!(
            !union.unborn,
            "reading {} crashes the kernel",
            path.display()
        );
        let content = match parts.next()? {
            "xi_path" => union.xino.clone()?,
            file if !self.branches_hidden => {
                let index: usize = file.strip_prefix("br")?.parse().ok()?;
                union.branches.get(index)?.clone()
            }
            _ => return None,
        };
        Some(format!("{content}\n").into_bytes())
    }
}

fn device(superblock: u64) -> (u32, u32) {
    match u32::try_from(superblock) {
        Ok(0) | Err(_) => (8, 1),
        Ok(minor) => (0, minor),
    }
}

/// Reads AUFS options as the kernel does, in its own words.
fn read_aufs(data: &str) -> io::Result<(Vec<String>, String, Option<String>)> {
    let mut branches = Vec::new();
    let mut options = Vec::new();
    let mut xino = None;
    let mut slots = 0;
    for token in data.split(',') {
        if token.is_empty() {
            break;
        }
        if let Some(list) = token.strip_prefix("br=") {
            for branch in list.split(':').take_while(|branch| !branch.is_empty()) {
                branches.push(branch.to_owned());
                slots += 1;
            }
            continue;
        }
        slots += 1;
        if let Some(branch) = token.strip_prefix("append=") {
            branches.push(branch.to_owned());
            continue;
        }
        if let Some(path) = token.strip_prefix("xino=") {
            xino = Some(path.to_owned());
        }
        options.push(token);
    }
    if slots > AUFS_SLOTS {
        return Err(refused(Errno::TOOBIG));
    }
    Ok((branches, options.join(","), xino))
}

fn add_branches(union: &mut Superblock, branches: Vec<String>) -> io::Result<()> {
    let path_of = |branch: &str| branch.split('=').next().unwrap_or_default().to_owned();
    for branch in branches {
        let (path, permission) = branch.split_once('=').unwrap_or((&branch, ""));
        let known = ["rw", "rw+icexusr", "ro", "ro+wh", "rr", "rr+wh"];
        let permission = match permission {
            "" if union.branches.is_empty() => "rw",
            permission if known.contains(&permission) => permission,
            // An unknown word is no error.
            _ => "ro",
        };
        if union.branches.iter().any(|other| path_of(other) == path) {
            return Err(refused(Errno::INVAL));
        }
        if union.branches.len() == 127 {
            return Err(refused(Errno::NOSPC));
        }
        union.branches.push(format!("{path}={permission}"));
    }
    Ok(())
}

impl Host for FakeHost {
    fn mount(&self, target: &Path, call: &MountCall) -> io::Result<()> {
        let mut state = self.enter(Call::Mount(target.to_path_buf(), call.clone()))?;
        if !state.exists(target) {
            return Err(refused(Errno::NOENT));
        }
        let cut = |data: &str| {
            let end = data.len().min(self.page_size - 1);
            data[..end].to_owned()
        };
        match call {
            MountCall::New {
                fs_type: "aufs",
                flags,
                data,
            } => state.mount_aufs(target, *flags, &cut(data)),
            MountCall::New {
                fs_type: "tmpfs",
                flags,
                data,
            } => {
                state.mount_plain(target, ("tmpfs", TMPFS), &cut(data), *flags);
                Ok(())
            }
            MountCall::New { .. } => Err(refused(Errno::NODEV)),
            MountCall::Image {
                image, flags, data, ..
            } => {
                if !state.exists(image) {
                    return Err(refused(Errno::NOENT));
                }
                let options = format!("errors=remount-ro,{data}");
                let options = options.trim_end_matches(',');
                state.mount_plain(target, ("ext4", EXT4), options, *flags);
                Ok(())
            }
            MountCall::Remount { flags, data } => {
                let (branches, _, _) = read_aufs(&cut(data))?;
                let Some(superblock) = state.top(target).map(|mount| mount.superblock) else {
                    return Err(refused(Errno::INVAL));
                };
                if let Some(union) = state.superblocks.get_mut(&superblock) {
                    union.read_only = flags.read_only;
                    add_branches(union, branches)?;
                }
                state.set_flags(target, |_| *flags);
                Ok(())
            }
            MountCall::Bind { source, beneath } => state.bind(target, source, beneath.as_deref()),
            MountCall::Private => match state.top(target) {
                Some(_) => Ok(()),
                None => Err(refused(Errno::INVAL)),
            },
            MountCall::AddFlags { flags } => {
                if state.top(target).is_none() {
                    return Err(refused(Errno::INVAL));
                }
                state.set_flags(target, |present| MountFlags {
                    read_only: present.read_only || flags.read_only,
                    nosuid: present.nosuid || flags.nosuid,
                    nodev: present.nodev || flags.nodev,
                    noexec: present.noexec || flags.noexec,
                });
                Ok(())
            }
            MountCall::Overlay(call) => {
                state.mount_overlay(target, call);
                Ok(())
            }
        }
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        let mut state = self.enter(Call::Unmount(target.to_path_buf()))?;
        if !state.exists(target) {
            return Err(refused(Errno::NOENT));
        }
        let Some(index) = state.mounts.iter().rposition(|mount| mount.at == target) else {
            return Err(refused(Errno::INVAL));
        };
        let nested = |mount: &Attached| mount.at != target && mount.at.starts_with(target);
        if state.mounts.iter().any(nested) {
            return Err(refused(Errno::BUSY));
        }
        state.mounts.remove(index);
        state.forget_unused();
        Ok(())
    }

    fn mount_table(&self) -> io::Result<Vec<MountEntry>> {
        let state = self.enter(Call::MountTable)?;
        Ok(state
            .mounts
            .iter()
            .map(|mount| state.entry(mount))
            .collect())
    }

    fn mount_at(&self, path: &Path) -> io::Result<Option<MountEntry>> {
        let state = self.enter(Call::MountAt(path.to_path_buf()))?;
        if !state.exists(path) {
            return Err(refused(Errno::NOENT));
        }
        Ok(state.top(path).map(|mount| state.entry(mount)))
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        let state = self.enter(Call::Place(path.to_path_buf()))?;
        if !state.exists(path) {
            return Err(refused(Errno::NOENT));
        }
        let (mount, inside) = state.resolve(path);
        Ok(Place {
            mount_root: state.top(path).is_some(),
            device: device(mount.map_or(0, |mount| mount.superblock)),
            inode: number_of(inside),
        })
    }

    fn filesystem(&self, path: &Path) -> io::Result<Filesystem> {
        let state = self.enter(Call::Filesystem(path.to_path_buf()))?;
        if !state.exists(path) {
            return Err(refused(Errno::NOENT));
        }
        let (mount, _) = state.resolve(path);
        let superblock = mount.and_then(|mount| state.superblocks.get(&mount.superblock));
        let mut flags = mount.map_or(MountFlags::default(), |mount| mount.flags);
        flags.read_only |= superblock.is_some_and(|superblock| superblock.read_only);
        Ok(Filesystem {
            magic: superblock.map_or(EXT4, |superblock| superblock.magic),
            flags,
            name_max: 255,
            bytes: 1 << 40,
            bytes_available: 1 << 39,
            inodes: 1 << 20,
            inodes_available: 1 << 19,
        })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.enter(Call::Read(path.to_path_buf()))?;
        state
            .files
            .get(path)
            .cloned()
            .or_else(|| state.read_sysfs(path))
            .ok_or_else(|| refused(Errno::NOENT))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let state = self.enter(Call::List(path.to_path_buf()))?;
        let unions = state
            .superblocks
            .iter()
            .filter(|(_, superblock)| superblock.fs_type == "aufs")
            .map(|(id, _)| Path::new("/sys/fs/aufs").join(format!("si_{id:x}/xi_path")));
        let names: BTreeSet<OsString> = state
            .files
            .keys()
            .cloned()
            .chain(unions)
            .filter_map(|file| {
                let inside = file.strip_prefix(path).ok()?;
                Some(inside.iter().next()?.to_os_string())
            })
            .collect();
        if names.is_empty() {
            return Err(refused(Errno::NOENT));
        }
        Ok(names.into_iter().collect())
    }

    fn release_image(&self, image: &Path, _: &Path) -> io::Result<()> {
        // Its devices go with their mounts.
        self.enter(Call::ReleaseImage(image.to_path_buf()))
            .map(drop)
    }

    fn remove_stale(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter(Call::RemoveStale(path.to_path_buf()))?;
        state.files.remove(path);
        Ok(())
    }

    fn overlay_appends(&self) -> bool {
        self.state().appends
    }

    fn holders(&self, _: &Path, target: &Path) -> io::Result<Vec<Holder>> {
        let state = self.enter(Call::Holders(target.to_path_buf()))?;
        let top = state.top(target).map(|mount| mount.superblock);
        let is_held = top.is_some_and(|superblock| state.held.contains(&superblock));
        Ok(is_held
            .then(|| Holder {
                pid: 4711,
                command: "holder".to_owned(),
                by: HeldBy::Mount("/held".into()),
            })
            .into_iter()
            .collect())
    }

    fn mount_tables(&self, _: &Path) -> io::Result<Vec<MountTable>> {
        Ok(vec![MountTable {
            root: PathBuf::from("/"),
            entries: self.mount_table()?,
        }])
    }

    fn is_namespace_alive(&self, _: &Path, namespace: u64) -> io::Result<bool> {
        Ok(self.state().namespaces.contains(&namespace))
    }

    fn pause(&self, time: Duration) {
        self.state().calls.push(Call::Pause(time));
    }
}

impl State {
    fn set_flags(&mut self, at: &Path, change: impl Fn(MountFlags) -> MountFlags) {
        if let Some(mount) = self.mounts.iter_mut().rev().find(|mount| mount.at == at) {
            mount.flags = change(mount.flags);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn aufs(data: &str) -> MountCall {
        MountCall::New {
            fs_type: "aufs",
            flags: MountFlags::volume(false),
            data: data.into(),
        }
    }

    #[test]
    fn a_union_lives_as_long_as_its_last_mount() {
        let host = FakeHost::new();
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        host.mount(a, &aufs("br=/u=rw:/l=ro+wh,dio,xino=/x"))
            .unwrap();
        let bind = MountCall::Bind {
            source: a.into(),
            beneath: None,
        };
        host.mount(b, &bind).unwrap();
        assert_eq!(host.place(a).unwrap().inode, host.place(b).unwrap().inode);
        host.unmount(a).unwrap();
        assert_eq!(host.list(Path::new("/sys/fs/aufs")).unwrap().len(), 1);
        assert_eq!(host.filesystem(b).unwrap().magic, AUFS);
        host.unmount(b).unwrap();
        assert_eq!(host.superblocks(), 0);
        assert!(host.unmount(b).is_err());
    }

    #[test]
    fn it_is_as_careless_as_the_real_kernel() {
        let host = FakeHost::new();
        let at = Path::new("/a");
        host.mount(at, &aufs("br=/u=rw:/l=ro+w,,dio")).unwrap();
        let id = host.list(Path::new("/sys/fs/aufs")).unwrap().remove(0);
        let branch = Path::new("/sys/fs/aufs").join(id).join("br1");
        assert_eq!(host.read(&branch).unwrap(), b"/l=ro\n");
        let entry = host.mount_at(at).unwrap().unwrap();
        assert!(
            !entry
                .options
                .as_bytes()
                .windows(3)
                .any(|part| part == b"dio")
        );
        let remount = MountCall::Remount {
            flags: MountFlags::default(),
            data: "append=/m=ro+wh".into(),
        };
        host.mount(at, &remount).unwrap();
        assert!(!host.filesystem(at).unwrap().flags.nosuid);
        assert!(host.mount(at, &aufs("br=/u=rw:/u=ro")).is_err());
    }
}
