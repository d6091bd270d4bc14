//! What the node can do, found out once a boot.

use super::{VolumeError, Volumes, canonical};
use crate::layer::store::{StoreError, read_json, write_json};
use crate::union::Backend;
use crate::union::probe::{self, Probe, ProbeOptions, UnionRequest};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Where a self-test's result is kept, in the run directory.
pub(super) const PROBE_FILE: &str = "probe.json";

/// A self-test's result that is kept.
#[derive(serde::Serialize, serde::Deserialize)]
struct KnownProbe {
    key: String,
    probe: Probe,
}

impl Volumes {
    /// The union for a volume. A refusal that was kept is asked for again, for
    /// whoever was told the remedy may have followed it.
    pub(super) fn choose(&self, wanted: UnionRequest) -> Result<Backend, VolumeError> {
        let known = self.probe.get().is_none().then(|| self.known_probe());
        match known.flatten() {
            Some(known) if probe::choose(wanted, &known).is_err() => self.probe_afresh()?,
            _ => self.probe()?,
        };
        probe::choose(wanted, self.probe()?).map_err(VolumeError::Union)
    }

    /// The `SELinux` label that a volume gets: the one that is wanted, if this
    /// kernel has `SELinux`. Another one would refuse the mount, and there is
    /// nothing that the label could protect.
    pub(super) fn label(&self, wanted: Option<&str>) -> Option<String> {
        wanted.filter(|_| self.has_selinux()).map(ToOwned::to_owned)
    }

    /// Whether `SELinux` is on in this kernel: only then it has registered its
    /// filesystem (`init_sel_fs` of security/selinux/selinuxfs.c).
    fn has_selinux(&self) -> bool {
        *self.selinux.get_or_init(|| {
            let has = self
                .host
                .read(Path::new("/proc/filesystems"))
                .is_ok_and(|list| {
                    let list = String::from_utf8_lossy(&list);
                    list.split_whitespace().any(|name| name == "selinuxfs")
                });
            if !has {
                tracing::info!("volumes get no SELinux label: this kernel has no SELinux");
            }
            has
        })
    }

    /// What this node can do. A self-test takes about a second, so its result is
    /// kept for the boot, beside the xino files.
    pub fn probe(&self) -> Result<&Probe, VolumeError> {
        if let Some(probe) = self.probe.get() {
            return Ok(probe);
        }
        match self.known_probe() {
            Some(known) => Ok(self.probe.get_or_init(|| known)),
            None => self.probe_afresh(),
        }
    }

    /// A result that was kept in this boot.
    fn known_probe(&self) -> Option<Probe> {
        match read_json::<KnownProbe>(&self.options.run_dir.join(PROBE_FILE)) {
            Ok(Some(known)) if known.key == self.probe_key() => Some(known.probe),
            // One that cannot be read is one of another version.
            _ => None,
        }
    }

    /// As [`Volumes::probe`], with a self-test unless one was made already: for
    /// a node's start and for `check`, which want to see what is, not what was.
    pub fn probe_afresh(&self) -> Result<&Probe, VolumeError> {
        if let Some(probe) = self.probe.get() {
            return Ok(probe);
        }
        let options = ProbeOptions {
            store: self.store.root().to_owned(),
            run: self.options.run_dir.clone(),
            // For remedies only; without it they are general ones.
            os_release: fs::read_to_string("/etc/os-release").unwrap_or_default(),
            allow_btrfs: false,
        };
        let probe = probe::self_test(self.host.as_ref(), &options).map_err(VolumeError::Probe)?;
        let known = KnownProbe {
            key: self.probe_key(),
            probe,
        };
        self.forget_unfinished_probes();
        if let Err(error) = write_json(&self.options.run_dir.join(PROBE_FILE), &known, false) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the self-test's result is not kept"
            );
        }
        Ok(self.probe.get_or_init(|| known.probe))
    }

    /// Removes what processes left that were killed while they kept a result. One
    /// that is just at it makes its test again next time.
    fn forget_unfinished_probes(&self) {
        let entries = fs::read_dir(&self.options.run_dir).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("probe.tmp") {
                // What stays is as small as it is harmless.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Each union by its name, and whether it passed its self-test.
    pub fn unions(&self) -> [(&'static str, bool); 2] {
        let probe = self.probe.get();
        [
            (
                Backend::Aufs.name(),
                probe.is_some_and(|probe| probe.aufs.is_ok()),
            ),
            (
                Backend::Overlay.name(),
                probe.is_some_and(|probe| probe.overlay.is_ok()),
            ),
        ]
    }

    /// Whether volumes of the operator's choice can be published here and then
    /// seen by kubelet: a container has mounts of its own, which reach the node
    /// only where they propagate.
    pub fn can_publish(&self, union: UnionRequest, kubelet_root: &Path) -> Result<(), VolumeError> {
        self.choose(union)?;
        // Where the node's processes cannot be seen, nothing is known to be wrong.
        let init = fs::metadata(self.options.host_proc.join("1/ns/mnt"));
        if init.is_ok_and(|init| init.ino() != self.namespace) {
            self.propagates(kubelet_root)
        } else {
            Ok(())
        }
    }

    /// Whether what is mounted in kubelet's directory of pods is seen outside.
    fn propagates(&self, kubelet_root: &Path) -> Result<(), VolumeError> {
        let table = self
            .host
            .mount_table()
            .map_err(StoreError::io("read", Path::new("the mount table")))
            .map_err(VolumeError::Store)?;
        let pods = canonical(kubelet_root)?.join("pods");
        let holding = table
            .iter()
            .filter(|entry| pods.starts_with(&entry.mount_point))
            .max_by_key(|entry| entry.mount_point.components().count());
        match holding {
            Some(entry) if entry.shared.is_none() => Err(VolumeError::NotPropagated {
                path: entry.mount_point.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// What a self-test's result holds for: this boot, store, program and user.
    fn probe_key(&self) -> String {
        format!(
            "{} {} {} {}",
            self.store.boot(),
            self.store.root().display(),
            env!("CARGO_PKG_VERSION"),
            self.options.rootless,
        )
    }
}
