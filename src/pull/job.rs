//! One pull, from a manifest to branches: on a thread of its own, which nobody
//! who waits for it can end.

use super::jobs::Handle;
use super::source::Remote;
use super::{Inner, LOOK_EVERY, PullError, Staging, stager};
use crate::image::manifest::Descriptor;
use crate::image::platform::PlatformChoice;
use crate::image::registry::{RegistryError, Session};
use crate::stage::{StageOptions, StagedImage};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// One pull, with all that it needs on a thread of its own.
pub(super) struct Job {
    pub(super) inner: Arc<Inner>,
    pub(super) session: Arc<Session>,
    pub(super) root: Descriptor,
    pub(super) name: String,
    pub(super) repository: String,
    pub(super) platform: PlatformChoice,
    pub(super) staging: Staging,
    pub(super) by_operator: bool,
}

impl Job {
    pub(super) fn run(self, handle: &Handle) -> Result<(StagedImage, u64), PullError> {
        let inner = &self.inner;
        let _slot = inner.unpacking.take(handle)?;
        let source = Remote::new(
            self.name.clone(),
            self.repository.clone(),
            self.session,
            self.root,
            &inner.book,
            self.by_operator,
        );
        let options = StageOptions {
            cancel: Arc::clone(handle.cancel()),
            ..self.staging.options.clone()
        };
        let stager = stager(&inner.store, &self.staging, options);
        let result = source.cancelled_by(handle, || {
            loop {
                let format = self.staging.format;
                match stager.stage_unnamed(&source, &self.platform, format, handle) {
                    Err(error) if source.fetch_again(&error) => {}
                    result => return result,
                }
            }
        });
        match result {
            Ok(image) => {
                inner
                    .book
                    .note_delivered(&self.repository, &source.delivered())
                    .map_err(PullError::Store)?;
                let bytes = source.fetched_bytes();
                source.remove_blobs();
                Ok((image, bytes))
            }
            Err(error) => {
                if error.is_out_of_space() {
                    source.remove_blobs();
                }
                source.refuse(&error);
                Err(PullError::Stage(error))
            }
        }
    }
}

/// A number of places for work that takes memory.
#[derive(Debug)]
pub(super) struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One of them, given back on drop.
struct Slot<'a>(&'a Slots);

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Slots {
            free: Mutex::new(count),
            freed: Condvar::new(),
        }
    }

    fn take(&self, handle: &Handle) -> Result<Slot<'_>, PullError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if handle.cancel().load(Ordering::Relaxed) {
                return Err(PullError::Registry(RegistryError::Cancelled));
            }
            if *free > 0 {
                *free -= 1;
                return Ok(Slot(self));
            }
            let waited = self.freed.wait_timeout(free, LOOK_EVERY);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free += 1;
        drop(free);
        self.0.freed.notify_one();
    }
}
