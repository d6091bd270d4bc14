//! The places between two changes on disk, for tests that end the process there.
//! In a release there is nothing of it.

/// The step before a process waits for a lock that another one holds.
pub const WAIT: &str = "wait for a lock that another one holds";

#[cfg(any(test, feature = "testing"))]
mod watched {
    use std::sync::OnceLock;

    type Watcher = Box<dyn Fn(&'static str) + Send + Sync>;
    static WATCHER: OnceLock<Watcher> = OnceLock::new();

    /// Has `watcher` called before each change from now on, for good.
    pub fn watch(watcher: impl Fn(&'static str) + Send + Sync + 'static) {
        // A second one would be a mistake of the test, which then sees no steps.
        let _ = WATCHER.set(Box::new(watcher));
    }

    /// Something on disk is about to change.
    pub(crate) fn before(what: &'static str) {
        if let Some(watcher) = WATCHER.get() {
            watcher(what);
        }
    }
}

#[cfg(any(test, feature = "testing"))]
pub(crate) use watched::before;
#[cfg(any(test, feature = "testing"))]
pub use watched::watch;

/// Something on disk is about to change.
#[cfg(not(any(test, feature = "testing")))]
pub(crate) const fn before(_: &'static str) {}
