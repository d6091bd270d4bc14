//! The end of everything on this node: for whoever has uninstalled the plugin.

use super::ability::PROBE_FILE;
use super::record;
use super::{VolumeError, Volumes};
use crate::host::is_loop_node;
use crate::layer::steps;
use crate::layer::store::{StoreError, remove_directory, remove_empty};
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What there is beside the store and the run directory.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// kubelet's directory, which tells whether a pod still wants its volume. It
    /// need not be there.
    pub kubelet_root: PathBuf,
    /// The plugin's sockets. While one of them answers, the plugin runs.
    pub sockets: Vec<PathBuf>,
    /// Directories that go if they are empty then.
    pub directories: Vec<PathBuf>,
}

impl Volumes {
    /// Removes all that is ours from this node: layers, records, sockets. Not
    /// while the plugin runs, and not while there is a volume or anything else
    /// mounted: these are named, and nothing is removed. May be called again
    /// whatever became of an earlier call.
    pub fn purge(&self, elsewhere: &Elsewhere) -> Result<(), VolumeError> {
        is_stopped(elsewhere)?;
        // Nothing is known of mounts that are recorded by other names than they
        // have here: in a container that has the node's root below a directory, all
        // of them would seem to be gone.
        let elsewhere_made = self.recorded_elsewhere()?;
        if !elsewhere_made.is_empty() {
            return Err(VolumeError::StillInUse {
                what: elsewhere_made,
            });
        }
        // What nobody wants any more goes the usual way.
        if elsewhere.kubelet_root.exists() {
            self.recover(&elsewhere.kubelet_root)?;
            self.reap(&elsewhere.kubelet_root, Duration::ZERO)?;
        }
        self.nothing_is_left()?;
        let alone = self.store.lock_alone().map_err(VolumeError::Store)?;
        // Whoever was waited for may have mounted a volume.
        is_stopped(elsewhere)?;
        self.nothing_is_left()?;
        alone.purge().map_err(VolumeError::Store)?;
        let remove = || -> Result<(), StoreError> {
            let run = &self.options.run_dir;
            steps::before("remove the run directory");
            for name in ["xino", "probe"] {
                remove_directory(&run.join(name))?;
            }
            remove_file(&run.join(PROBE_FILE))?;
            remove_loop_nodes(run)?;
            remove_empty(run)?;
            for socket in &elsewhere.sockets {
                steps::before("remove a socket");
                remove_file(socket)?;
            }
            elsewhere
                .directories
                .iter()
                .try_for_each(|path| remove_empty(path))
        };
        remove().map_err(VolumeError::Store)
    }

    fn nothing_is_left(&self) -> Result<(), VolumeError> {
        match self.left()? {
            left if left.is_empty() => Ok(()),
            left => Err(VolumeError::StillInUse { what: left }),
        }
    }

    /// Volumes that were made where the store has another path.
    fn recorded_elsewhere(&self) -> Result<Vec<String>, VolumeError> {
        let records = record::all(&self.store).map_err(VolumeError::Store)?;
        Ok(records
            .into_iter()
            .filter(|(dir, record)| record.plan.staging.parent() != Some(dir.as_path()))
            .map(|(_, record)| {
                format!(
                    "{} at {}, which was made where its directory is {}: purge it from there",
                    record
                        .pod
                        .map_or(record.volume_id, |pod| format!("pod {pod}")),
                    record.target.display(),
                    record
                        .plan
                        .staging
                        .parent()
                        .unwrap_or(&record.plan.staging)
                        .display()
                )
            })
            .collect())
    }

    /// Volumes, and mounts in the store or the run directory, each with words
    /// that help to find who has it.
    fn left(&self) -> Result<Vec<String>, VolumeError> {
        let records = record::all(&self.store).map_err(VolumeError::Store)?;
        let mut left = Vec::new();
        for dir in record::directories(&self.store).map_err(VolumeError::Store)? {
            let known = records.iter().find(|(known, _)| *known == dir);
            match known.map(|(_, record)| record) {
                Some(record) => left.push(match &record.pod {
                    Some(pod) => format!("pod {pod} at {}", record.target.display()),
                    None => format!("{} at {}", record.volume_id, record.target.display()),
                }),
                // Of a newer version of this program, or damaged.
                None if record::exists(&dir) => left.push(dir.display().to_string()),
                None => {}
            }
        }
        for entry in self.table()? {
            let at = &entry.mount_point;
            let is_below = |base: &Path| at.starts_with(base) && at != base;
            if is_below(self.store.root()) || is_below(&self.options.run_dir) {
                left.push(format!("a mount at {}", at.display()));
            }
        }
        Ok(left)
    }
}

fn is_stopped(elsewhere: &Elsewhere) -> Result<(), VolumeError> {
    let answers = |socket: &&PathBuf| UnixStream::connect(socket).is_ok();
    match elsewhere.sockets.iter().find(answers) {
        Some(socket) => Err(VolumeError::PluginRuns {
            socket: socket.clone(),
        }),
        None => Ok(()),
    }
}

/// Nodes that were made for images where `/dev` had none.
fn remove_loop_nodes(dir: &Path) -> Result<(), StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(StoreError::io("read", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(StoreError::io("read", dir))?;
        if entry.file_name().to_str().is_some_and(is_loop_node) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
