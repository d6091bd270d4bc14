//! What the node can do, found out once a boot.

use super::{VolumeError, Volumes, canonical};
use crate::layer::store::{StoreError, read_json, write_json};
use crate::union::Backend;
use crate::union::probe::{self, Probe, ProbeOptions, UnionRequest};
use std::fs;
use std::os::unix::fs::DirBuilderExt;

/// Where a self-test's result is kept, in the run directory.
const PROBE_FILE: &str = "probe.json";

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
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.options.run_dir)
            .map_err(StoreError::io("create", &self.options.run_dir))
            .map_err(VolumeError::Store)?;
        let options = ProbeOptions {
            store: self.store.root().to_owned(),
            run: canonical(&self.options.run_dir)?,
            // For remedies only; without it they are general ones.
            os_release: fs::read_to_string("/etc/os-release").unwrap_or_default(),
            allow_btrfs: false,
        };
        let probe = probe::self_test(self.host.as_ref(), &options).map_err(VolumeError::Probe)?;
        let known = KnownProbe {
            key: self.probe_key(),
            probe,
        };
        if let Err(error) = write_json(&self.options.run_dir.join(PROBE_FILE), &known, false) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the self-test's result is not kept"
            );
        }
        Ok(self.probe.get_or_init(|| known.probe))
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
