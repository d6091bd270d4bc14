//! Who holds a mount, read from `/proc`. Processes come and go meanwhile, so one
//! that cannot be read is one that is gone.

use crate::host::mountinfo::{self, MountEntry};
use crate::host::{HeldBy, Holder, MountTable};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most holders that are looked for; one is enough to act on.
const MAX_HOLDERS: usize = 8;

/// As [`Host::holders`](crate::host::Host::holders), of the mount `entry` at
/// `target`.
pub(super) fn of(proc: &Path, entry: &MountEntry, target: &Path) -> io::Result<Vec<Holder>> {
    let mut seen = BTreeSet::from([namespace(Path::new("/proc/thread-self"))?]);
    let mut found = Vec::new();
    for (pid, process) in processes(proc)? {
        if found.len() == MAX_HOLDERS {
            break;
        }
        let Ok(namespace) = namespace(&process) else {
            continue;
        };
        let elsewhere = seen
            .insert(namespace)
            .then(|| mounted(&process, entry, target))
            .flatten();
        let by = match elsewhere {
            Some(path) => HeldBy::Mount(path),
            // A bind mount's number is that of a whole disk.
            None if entry.root == Path::new("/") && has_open(&process, entry.device) => {
                HeldBy::File
            }
            None => continue,
        };
        let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
        found.push(Holder {
            pid,
            command: command.trim_end().to_owned(),
            by,
        });
    }
    Ok(found)
}

/// As [`Host::mount_tables`](crate::host::Host::mount_tables), after this thread's
/// own one.
pub(super) fn tables(proc: &Path, own: MountTable) -> io::Result<Vec<MountTable>> {
    let mut seen = BTreeSet::from([namespace(Path::new("/proc/thread-self"))?]);
    let mut tables = vec![own];
    for (_, process) in processes(proc)? {
        let Ok(namespace) = namespace(&process) else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        // One that has just ended; another process of its namespace may not have.
        let Ok(text) = fs::read(process.join("mountinfo")) else {
            continue;
        };
        if text.is_empty() {
            continue;
        }
        seen.insert(namespace);
        tables.push(MountTable {
            root: process.join("root"),
            entries: mountinfo::parse(&text).map_err(io::Error::other)?,
        });
    }
    Ok(tables)
}

/// As [`Host::is_namespace_alive`](crate::host::Host::is_namespace_alive).
pub(super) fn is_namespace_alive(proc: &Path, wanted: u64) -> io::Result<bool> {
    Ok(processes(proc)?
        .iter()
        .any(|(_, process)| namespace(process).is_ok_and(|found| found == wanted)))
}

fn processes(proc: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(pid) = pid {
            found.push((pid, entry.path()));
        }
    }
    Ok(found)
}

fn namespace(process: &Path) -> io::Result<u64> {
    Ok(fs::metadata(process.join("ns/mnt"))?.ino())
}

/// Where the process has what `entry` shows, unless that is the same place. In a
/// container the place may have something in front.
fn mounted(process: &Path, entry: &MountEntry, target: &Path) -> Option<PathBuf> {
    let text = fs::read(process.join("mountinfo")).ok()?;
    let table = mountinfo::parse(&text).ok()?;
    let place = target.strip_prefix("/").unwrap_or(target);
    table
        .into_iter()
        .find(|other| {
            other.device == entry.device
                && other.root.starts_with(&entry.root)
                && !other.mount_point.ends_with(place)
        })
        .map(|other| other.mount_point)
}

/// Whether the process has anything open in the filesystem with this number.
fn has_open(process: &Path, device: (u32, u32)) -> bool {
    let is_there = |path: &Path| {
        fs::metadata(path).is_ok_and(|found| {
            let number = found.dev();
            (rustix::fs::major(number), rustix::fs::minor(number)) == device
        })
    };
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    ["cwd", "root", "exe"]
        .iter()
        .any(|name| is_there(&process.join(name)))
        || files.flatten().any(|file| is_there(&file.path()))
}
