//! Images that the operator wants on the node before anybody asks for them.
//!
//! Each is staged at the start, and pinned by a lease of this process for as long
//! as it is listed: so a person's `gc` leaves it alone too. One that fails is tried
//! again, later each time.

use super::super::pulls::Asker;
use super::super::{VolumeError, Volumes};
use crate::chain::Chain;
use crate::image::platform::PlatformChoice;
use crate::image::reference::Source;
use crate::layer::store::{Held, Lease, StoreError};
use crate::pull::PullPolicy;
use crate::union::probe::UnionRequest;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How long the first failure is waited after; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// Longest wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The images of the list, by their names.
#[derive(Debug, Default)]
pub(super) struct Prefetch(BTreeMap<String, Item>);

/// One of them.
#[derive(Debug, Default)]
struct Item {
    /// What keeps it, whole or as an earlier process left it.
    lease: Option<Lease>,
    is_there: bool,
    failures: u32,
    /// When it is tried again.
    due: Option<Instant>,
}

/// How far prefetching is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefetched {
    /// Images that are there and pinned.
    pub there: usize,
    /// Images that are not, and are tried again.
    pub waiting: usize,
}

impl Volumes {
    /// Stages those images of the list that are due, and lets go of those that are
    /// listed no more. May take as long as pulls take; not for two threads at once.
    pub fn prefetch(&self, union: UnionRequest) -> Prefetched {
        let wanted: BTreeMap<String, Source> = self
            .collection()
            .prefetch
            .iter()
            .map(|source| (source.to_string(), source.clone()))
            .collect();
        let due: Vec<(String, Source)> = {
            let mut items = self.lock_prefetch();
            items.0.retain(|name, _| wanted.contains_key(name));
            let now = Instant::now();
            wanted
                .into_iter()
                .filter(|(name, _)| {
                    let item = items.0.entry(name.clone()).or_default();
                    !item.is_there && item.due.is_none_or(|due| due <= now)
                })
                .collect()
        };
        for (name, _) in &due {
            // What an earlier process staged may be all that there is for now.
            match self.keep_known(name) {
                Ok(Some(lease)) => self.with_item(name, |item| {
                    item.lease.get_or_insert(lease);
                }),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(image = name, error = %Chain(&error), "cannot pin an image");
                }
            }
        }
        for (name, source) in due {
            match self.prefetch_one(&name, &source, union) {
                Ok(lease) => {
                    tracing::info!(image = name, "prefetched");
                    self.with_item(&name, |item| {
                        item.lease = Some(lease);
                        item.is_there = true;
                    });
                }
                Err(error) => self.with_item(&name, |item| {
                    let pause = pause(item.failures);
                    item.failures = item.failures.saturating_add(1);
                    item.due = Instant::now().checked_add(pause);
                    tracing::warn!(
                        image = name,
                        error = %Chain(&error),
                        again_in_s = pause.as_secs(),
                        "cannot prefetch an image"
                    );
                }),
            }
        }
        let items = self.lock_prefetch();
        let there = items.0.values().filter(|item| item.is_there).count();
        Prefetched {
            there,
            waiting: items.0.len() - there,
        }
    }

    fn prefetch_one(
        &self,
        name: &str,
        source: &Source,
        union: UnionRequest,
    ) -> Result<Lease, VolumeError> {
        let backend = self.choose(union)?;
        let asker = Asker::Operator {
            policy: PullPolicy::default_for(source),
            is_node: true,
        };
        let staged = self.with_room(
            || vec![source.clone()],
            || self.stage_from(source, None, None, backend, asker, &()),
        )?;
        let lease = self.lease_of(
            name,
            Held {
                images: vec![staged.image.manifest],
                branches: staged.form.branches.clone(),
                ..Held::default()
            },
        );
        let lease = lease.map_err(VolumeError::Store)?;
        self.store
            .flush(&staged.form.branches)
            .map_err(VolumeError::Store)?;
        Ok(lease)
    }

    /// Keeps what the name led to when it was resolved last.
    fn keep_known(&self, name: &str) -> Result<Option<Lease>, StoreError> {
        let platform = PlatformChoice::Host.to_string();
        let Some(reference) = self.store.reference(name, &platform)? else {
            return Ok(None);
        };
        let Some(image) = self.store.image(&reference.manifest)? else {
            return Ok(None);
        };
        let forms = image.sealed.into_values();
        let held = Held {
            images: vec![image.manifest],
            branches: forms.flat_map(|form| form.branches).collect(),
            ..Held::default()
        };
        self.lease_of(name, held).map(Some)
    }

    fn lease_of(&self, name: &str, held: Held) -> Result<Lease, StoreError> {
        let lease = Lease::begin(&self.store, &format!("prefetch of {name}"))?;
        lease.hold(&self.store, &held)?;
        Ok(lease)
    }

    fn lock_prefetch(&self) -> std::sync::MutexGuard<'_, Prefetch> {
        // The map is whole after every statement, whoever panicked.
        let items = self.collection.prefetch.lock();
        items.unwrap_or_else(PoisonError::into_inner)
    }

    /// The list may have changed while an image was staged.
    fn with_item(&self, name: &str, change: impl FnOnce(&mut Item)) {
        if let Some(item) = self.lock_prefetch().0.get_mut(name) {
            change(item);
        }
    }
}

/// How long is waited after so many failures before.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_waited_after_longer_each_time() {
        let seconds: Vec<u64> = (0..9).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(seconds, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
