//! What goes from a store, and why: a pure function.
//!
//! Images are what is used and forgotten, so they go or stay whole, least
//! recently used first; a branch goes when no image that stays has it and nobody
//! needs it. A branch of no image, such as one of a pull that failed, is looked
//! at by itself. Where the rules disagree, the first of these holds:
//!
//! 1. What is needed stays: by a volume, a promise, a lease, or a mount.
//! 2. What was used less than the minimum age ago stays.
//! 3. What was not used for the maximum age goes.
//! 4. While the disk is over its high mark or the store over its limit, the least
//!    recently used goes, until the disk is at its low mark and the store within
//!    its limit; but not what would free nothing.

use super::store::BranchId;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// See [`Disk::few_inodes`].
const FEW_INODES: u64 = 1024;

/// When something goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// Percent of the filesystem, in bytes or inodes, at which something goes.
    pub high: u8,
    /// Percent down to which it goes then.
    pub low: u8,
    /// Bytes that all branches may have together; none for any number.
    pub max_size: Option<u64>,
    /// What was used within this time stays.
    pub min_age: Duration,
    /// What was not used for this time goes; none for never.
    pub max_age: Option<Duration>,
}

impl Default for Marks {
    fn default() -> Self {
        Marks {
            // kubelet begins to remove images at 85 %, and to evict pods at 85 to
            // 90 %; what is here has to go before that.
            high: 80,
            low: 70,
            max_size: None,
            // As kubelet's for images.
            min_age: Duration::from_secs(120),
            max_age: None,
        }
    }
}

/// The filesystem of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disk {
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes that are free.
    pub bytes_free: u64,
    /// Its inodes; 0 where there is no limit.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

impl Disk {
    /// Inodes that are enough for whoever needs a few; 0 where there is no limit.
    #[must_use]
    pub fn few_inodes(&self) -> u64 {
        FEW_INODES.min(self.inodes / 10)
    }
}

/// A branch as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Its name.
    pub id: BranchId,
    /// Bytes on disk, as far as they can be estimated.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
    /// Seconds since the epoch.
    pub created: u64,
}

/// Something that has branches and is used: an image in all its forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its manifest.
    pub manifest: String,
    /// Names that lead to it.
    pub names: Vec<String>,
    /// Last use, in seconds since the epoch.
    pub used: u64,
    /// Its branches in all forms.
    pub branches: BTreeSet<BranchId>,
}

/// Somebody who needs images or branches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// Who, for people: `volume csi-…`.
    pub who: String,
    /// Manifests of images.
    pub images: BTreeSet<String>,
    /// Branches.
    pub branches: BTreeSet<BranchId>,
}

/// The store as it is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Seconds since the epoch.
    pub now: u64,
    /// The filesystem.
    pub disk: Disk,
    /// All branches.
    pub branches: Vec<Branch>,
    /// All images.
    pub images: Vec<Image>,
    /// Who needs what.
    pub needs: Vec<Need>,
    /// Why it is not known who needs what; then nothing goes.
    pub doubt: Option<String>,
}

/// How much is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// What the marks say.
    Marks,
    /// Somebody needs so much, and a few inodes: just that much.
    Room {
        /// Bytes of the store's limit.
        store: u64,
        /// Bytes of the disk.
        disk: u64,
    },
    /// Somebody is out of space and does not know how much he needs: down to the low
    /// mark, and if the disk is there already, all that may.
    Short,
    /// All that may, whatever the marks say.
    All,
}

/// What is decided about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// An image, by the digest of its manifest.
    Image(String),
    /// A branch of no image.
    Layer(BranchId),
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It goes: not used for longer than the maximum age.
    Expired,
    /// It goes: space is short, and it is the least recently used.
    Space,
    /// It goes: all that may was to go.
    Asked,
    /// It stays: somebody needs it.
    Needed(Vec<String>),
    /// It stays for so many seconds at least.
    Young(u64),
    /// It stays: what it has is needed by others, so nothing would be freed.
    Shared,
    /// It stays: there is space.
    Room,
    /// It stays: it is not known who needs what.
    Doubt(String),
}

impl Verdict {
    /// Whether it goes.
    pub fn goes(&self) -> bool {
        matches!(self, Verdict::Expired | Verdict::Space | Verdict::Asked)
    }
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// About what.
    pub subject: Subject,
    /// Names that lead to it.
    pub names: Vec<String>,
    /// Last use, in seconds since the epoch.
    pub used: u64,
    /// Bytes of its branches, those that others share counted too.
    pub bytes: u64,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Branches that go with it, the first of those that share them having gone.
    pub branches: Vec<BranchId>,
    /// Bytes of those.
    pub freed: u64,
}

/// Bytes of all branches.
#[must_use]
pub fn store_bytes(branches: &[Branch]) -> u64 {
    let sizes = branches.iter().map(|branch| branch.bytes);
    sizes.fold(0, u64::saturating_add)
}

/// Something that goes or stays.
struct Unit<'a> {
    subject: Subject,
    names: &'a [String],
    used: u64,
    branches: BTreeSet<BranchId>,
}

/// Everything that goes or stays, the least recently used first. What else has
/// branches that are used, or has images, is to be added here.
fn units(facts: &Facts) -> Vec<Unit<'_>> {
    let known: BTreeSet<&BranchId> = facts.branches.iter().map(|branch| &branch.id).collect();
    let mut units: Vec<Unit<'_>> = facts
        .images
        .iter()
        .map(|image| Unit {
            subject: Subject::Image(image.manifest.clone()),
            names: &image.names,
            used: image.used,
            branches: image
                .branches
                .iter()
                .filter(|id| known.contains(id))
                .cloned()
                .collect(),
        })
        .collect();
    let of_images: BTreeSet<BranchId> = units
        .iter()
        .flat_map(|unit| unit.branches.clone())
        .collect();
    let loose = facts
        .branches
        .iter()
        .filter(|branch| !of_images.contains(&branch.id));
    units.extend(loose.map(|branch| Unit {
        subject: Subject::Layer(branch.id.clone()),
        names: &[],
        used: branch.created,
        branches: BTreeSet::from([branch.id.clone()]),
    }));
    units.sort_by(|a, b| (a.used, &a.subject).cmp(&(b.used, &b.subject)));
    units
}

/// Who needs a unit. A volume needs its image too, whose record says where its
/// content is to be had again; a branch of an image may be needed without it.
fn needed_by(unit: &Unit<'_>, needs: &[Need]) -> Vec<String> {
    let is_needed = |need: &&Need| match &unit.subject {
        Subject::Image(manifest) => need.images.contains(manifest),
        Subject::Layer(id) => need.branches.contains(id),
    };
    let who = needs.iter().filter(is_needed).map(|need| need.who.clone());
    who.collect()
}

/// What is still to be freed.
struct Pressure {
    all: bool,
    bytes: u64,
    inodes: u64,
    store: u64,
}

impl Pressure {
    fn of(facts: &Facts, marks: &Marks, aim: Aim) -> Self {
        let Disk {
            bytes,
            bytes_free,
            inodes,
            inodes_free,
        } = facts.disk;
        let part = |whole: u64, percent: u8| {
            let part = u128::from(whole) * u128::from(percent.min(100)) / 100;
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let over = |whole: u64, free: u64| {
            let used = whole.saturating_sub(free);
            let begins = match aim {
                Aim::Marks => used > part(whole, marks.high),
                Aim::Short | Aim::All => true,
                Aim::Room { .. } => false,
            };
            match begins {
                true => used.saturating_sub(part(whole, marks.low)),
                false => 0,
            }
        };
        let size = store_bytes(&facts.branches);
        let store = match (marks.max_size, aim) {
            (Some(max), Aim::Room { store, .. }) => size.saturating_add(store).saturating_sub(max),
            // As much below the limit as the low mark is below the high one, or
            // each pull would have to collect.
            (Some(max), Aim::Marks) if size > max => {
                let low = u128::from(max) * u128::from(marks.low) / u128::from(marks.high.max(1));
                size.saturating_sub(u64::try_from(low).unwrap_or(max).min(max))
            }
            (Some(max), Aim::Short) => size.saturating_sub(max),
            (Some(_), Aim::Marks | Aim::All) | (None, _) => 0,
        };
        let mut pressure = Pressure {
            all: aim == Aim::All,
            bytes: over(bytes, bytes_free),
            inodes: over(inodes, inodes_free),
            store,
        };
        match aim {
            Aim::Room { disk, .. } => {
                pressure.bytes = disk.saturating_sub(bytes_free);
                pressure.inodes = facts.disk.few_inodes().saturating_sub(inodes_free);
            }
            // It is not the whole disk that is full: a quota, or an image that is
            // larger than all that is free.
            Aim::Short => pressure.all = !pressure.is_on(),
            Aim::Marks | Aim::All => {}
        }
        pressure
    }

    fn is_on(&self) -> bool {
        self.all || self.bytes > 0 || self.inodes > 0 || self.store > 0
    }

    fn freed(&mut self, branch: &Branch) {
        self.bytes = self.bytes.saturating_sub(branch.bytes);
        self.store = self.store.saturating_sub(branch.bytes);
        self.inodes = self.inodes.saturating_sub(branch.entries);
    }
}

/// Decides about everything in the store, in the order in which it goes.
#[must_use]
pub fn decide(facts: &Facts, marks: &Marks, aim: Aim) -> Vec<Decision> {
    let sizes: BTreeMap<&BranchId, &Branch> = facts
        .branches
        .iter()
        .map(|branch| (&branch.id, branch))
        .collect();
    let units = units(facts);
    let age = |unit: &Unit<'_>| facts.now.saturating_sub(unit.used);
    // What stays whatever happens.
    let stays = |unit: &Unit<'_>| -> Option<Verdict> {
        if let Some(doubt) = &facts.doubt {
            return Some(Verdict::Doubt(doubt.clone()));
        }
        let needed = needed_by(unit, &facts.needs);
        if !needed.is_empty() {
            return Some(Verdict::Needed(needed));
        }
        let left = marks.min_age.as_secs().saturating_sub(age(unit));
        (left > 0).then_some(Verdict::Young(left))
    };
    let fixed: Vec<Option<Verdict>> = units.iter().map(stays).collect();
    // How many have a branch that may still go; what is pinned never does.
    let mut owners: BTreeMap<&BranchId, usize> = BTreeMap::new();
    for unit in &units {
        for id in &unit.branches {
            *owners.entry(id).or_default() += 1;
        }
    }
    let mut pinned: BTreeSet<&BranchId> =
        facts.needs.iter().flat_map(|need| &need.branches).collect();
    for (unit, fixed) in units.iter().zip(&fixed) {
        if fixed.is_some() {
            pinned.extend(&unit.branches);
        }
    }
    let mut pressure = Pressure::of(facts, marks, aim);
    let mut decisions = Vec::with_capacity(units.len());
    for (unit, fixed) in units.iter().zip(fixed) {
        let frees = unit.branches.is_empty() || unit.branches.iter().any(|id| !pinned.contains(id));
        let is_old = marks.max_age.is_some_and(|max| age(unit) >= max.as_secs());
        let verdict = match fixed {
            Some(verdict) => verdict,
            None if is_old => Verdict::Expired,
            None if !frees && aim != Aim::All => Verdict::Shared,
            None if aim == Aim::All => Verdict::Asked,
            None if pressure.is_on() => Verdict::Space,
            None => Verdict::Room,
        };
        let mut branches = Vec::new();
        if verdict.goes() {
            for id in &unit.branches {
                let left = owners.entry(id).or_default();
                *left = left.saturating_sub(1);
                if *left == 0 && !pinned.contains(id) {
                    branches.push(id.clone());
                }
            }
        }
        let bytes_of = |id: &BranchId| sizes.get(id).map_or(0, |branch| branch.bytes);
        for id in &branches {
            if let Some(branch) = sizes.get(id) {
                pressure.freed(branch);
            }
        }
        decisions.push(Decision {
            subject: unit.subject.clone(),
            names: unit.names.to_vec(),
            used: unit.used,
            bytes: unit.branches.iter().map(bytes_of).sum(),
            verdict,
            freed: branches.iter().map(bytes_of).sum(),
            branches,
        });
    }
    decisions
}

/// What of a decision still holds when the store looks as in `facts` by now: the
/// branches that may go with the subject, or none if that stays.
#[must_use]
pub fn still_goes(facts: &Facts, marks: &Marks, decided: &Decision) -> Option<Vec<BranchId>> {
    if facts.doubt.is_some() {
        return None;
    }
    let units = units(facts);
    let unit = units.iter().find(|unit| unit.subject == decided.subject)?;
    let age = facts.now.saturating_sub(unit.used);
    if unit.used > decided.used && age < marks.min_age.as_secs()
        || !needed_by(unit, &facts.needs).is_empty()
    {
        return None;
    }
    let is_needed = |id: &BranchId| {
        let others = units.iter().filter(|other| other.subject != unit.subject);
        facts.needs.iter().any(|need| need.branches.contains(id))
            || others
                .flat_map(|other| &other.branches)
                .any(|other| other == id)
    };
    Some(
        unit.branches
            .iter()
            .filter(|id| !is_needed(id))
            .cloned()
            .collect(),
    )
}

#[cfg(test)]
mod tests;
