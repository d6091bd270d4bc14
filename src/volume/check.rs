//! What a node can do, for `check`.

use super::limit::Means;
use super::{VolumeError, Volumes};
use crate::chain::Chain;
use crate::union::Backend;
use crate::union::probe::{
    AufsFacts, OverlayFacts, Probe, UnionRequest, Unusable, choose, filesystem_name,
};
use serde::Serialize;

/// What one check of the node found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be, or just a fact.
    Ok,
    /// Volumes can be published, but not all of them or not as well.
    Warning,
    /// No volume can be published until it is mended.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, a word or two that do not change.
    pub subject: String,
    /// Whether it is good.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What the operator can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What a node can do, and how. Its field names are those of `--output json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct CheckReport {
    /// The union that volumes get here, if they get any.
    pub union: Option<Backend>,
    /// Everything that was looked at, in a fixed order.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether volumes can be published here.
    pub fn is_usable(&self) -> bool {
        let failed = |finding: &Finding| finding.verdict == Verdict::Failed;
        self.union.is_some() && !self.findings.iter().any(failed)
    }
}

impl Volumes {
    /// Looks at what volumes need of this node, with a real mount of each union.
    /// What `wanted` says must be among those that work.
    pub fn check(&self, wanted: UnionRequest) -> CheckReport {
        let mut findings = Vec::new();
        let branches = self.store.branches();
        findings.push(match branches {
            Ok(branches) => ok(
                "store",
                format!(
                    "{} with {} layers",
                    self.store.root().display(),
                    branches.len()
                ),
            ),
            Err(error) => failed("store", Chain(&error).to_string(), None),
        });
        findings.extend(self.disk());
        findings.extend(self.limits());
        let union = match self.probe_afresh() {
            Ok(probe) => {
                unions(probe, wanted, &mut findings);
                findings.extend(exceptions(probe));
                choose(wanted, probe).ok()
            }
            Err(error) => {
                findings.push(failed("self-test", Chain(&error).to_string(), None));
                None
            }
        };
        CheckReport { union, findings }
    }

    /// What holds writable layers to their limits, each by one that was made.
    fn limits(&self) -> Vec<Finding> {
        let describe = |(means, result)| {
            let (subject, works) = match means {
                Means::Image => (
                    "sizeLimit",
                    "on disk: by a filesystem image, allocated in full; holds for everybody, \
                     root and copy-ups included",
                ),
                Means::Memory => (
                    "sizeLimit in memory",
                    "by a tmpfs; holds for everybody, root and copy-ups included",
                ),
            };
            match result {
                Ok(()) => ok(subject, works.to_owned()),
                Err(error) => Finding {
                    subject: subject.to_owned(),
                    verdict: Verdict::Warning,
                    detail: format!(
                        "volumes with such a limit are refused: {}",
                        Chain(&error as &VolumeError)
                    ),
                    remedy: match means {
                        Means::Image => Some(
                            "let the plugin use loop devices (the kernel's module loop, a \
                             privileged container), and have the store on ext4 or XFS"
                                .to_owned(),
                        ),
                        Means::Memory => None,
                    },
                },
            }
        };
        self.try_limits().into_iter().map(describe).collect()
    }

    /// What the store is on, and what else that filesystem has.
    fn disk(&self) -> Vec<Finding> {
        let root = self.store.root();
        let found = match self.host.filesystem(root) {
            Ok(found) => found,
            Err(error) => return vec![failed("disk", error.to_string(), None)],
        };
        let options = || -> Option<String> {
            let table = self.host.mount_table().ok()?;
            let entry = table
                .into_iter()
                .filter(|entry| root.starts_with(&entry.mount_point))
                .max_by_key(|entry| entry.mount_point.components().count())?;
            entry.options.into_string().ok()
        };
        let options = options().unwrap_or_default();
        let quota = options
            .split(',')
            .find(|option| matches!(*option, "prjquota" | "pquota"));
        vec![
            ok(
                "disk",
                format!(
                    "{}, {} MiB free of {} MiB",
                    filesystem_name(found.magic),
                    found.bytes_available >> 20,
                    found.bytes >> 20,
                ),
            ),
            ok(
                "quota",
                match quota {
                    Some(option) => {
                        format!("project quota is on ({option}), which sizeLimit does not need")
                    }
                    None => "project quota is off, which sizeLimit does not need".to_owned(),
                },
            ),
        ]
    }
}

impl CheckReport {
    /// The report where the store cannot even be opened.
    pub fn of_unopened(error: &VolumeError) -> Self {
        CheckReport {
            union: None,
            findings: vec![failed("store", Chain(error).to_string(), None)],
        }
    }
}

/// In which few points a volume is not what its image says, or not for ever.
fn exceptions(probe: &Probe) -> Vec<Finding> {
    let mut found = vec![ok(
        "fsGroup",
        "the volume's root directory gets the pod's group; nothing below it does".to_owned(),
    )];
    if probe.aufs.is_ok() {
        found.push(ok(
            "hard links",
            "on aufs, groups that a pod has written may be separate files after the node was rebooted"
                .to_owned(),
        ));
    }
    found
}

/// What the probe says; that a union is missing fails only where it is wanted, or
/// where both are missing.
fn unions(probe: &Probe, wanted: UnionRequest, findings: &mut Vec<Finding>) {
    findings.push(ok("kernel", probe.kernel.clone()));
    let is_none = probe.aufs.is_err() && probe.overlay.is_err();
    let missing = |subject, only, unusable: &Unusable| Finding {
        subject: String::from(subject),
        verdict: if is_none || wanted == only {
            Verdict::Failed
        } else {
            Verdict::Warning
        },
        detail: Chain(unusable).to_string(),
        remedy: Some(unusable.remedy.clone()).filter(|remedy| !remedy.is_empty()),
    };
    findings.push(match &probe.aufs {
        Ok(facts) => ok("aufs", describe_aufs(facts)),
        Err(unusable) => missing("aufs", UnionRequest::Aufs, unusable),
    });
    findings.push(match &probe.overlay {
        Ok(facts) => ok("overlay", describe_overlay(facts)),
        Err(unusable) => missing("overlay", UnionRequest::Overlay, unusable),
    });
}

fn describe_aufs(facts: &AufsFacts) -> String {
    format!(
        "works: version {}, at most {} branches, dirperm1 {}, extended attributes {}",
        facts.version.as_deref().unwrap_or("unknown"),
        facts.features.branch_limit,
        if facts.features.dirperm1 { "yes" } else { "no" },
        if facts.xattr {
            "kept"
        } else {
            "lost at copy-up"
        },
    )
}

fn describe_overlay(facts: &OverlayFacts) -> String {
    format!(
        "works: lowerdir+ {}, index {}, marks in {}",
        if facts.features.lowerdir_append {
            "yes"
        } else {
            "no"
        },
        if facts.features.index { "on" } else { "off" },
        if facts.features.userxattr {
            "user.overlay"
        } else {
            "trusted.overlay"
        },
    )
}

fn ok(subject: &str, detail: String) -> Finding {
    Finding {
        subject: subject.to_owned(),
        verdict: Verdict::Ok,
        detail,
        remedy: None,
    }
}

fn failed(subject: &str, detail: String, remedy: Option<String>) -> Finding {
    Finding {
        subject: subject.to_owned(),
        verdict: Verdict::Failed,
        detail,
        remedy,
    }
}
