//! The number of files that the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files to what the process may give itself. Each
/// layer of an image that is being staged takes up to four of them, so that the
/// usual 1,024 end at some 300 layers; the limit is that low for the sake of
/// programs that use `select(2)`, and this one does not. Called once, when the
/// program begins.
pub fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        // Most images do with less.
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
