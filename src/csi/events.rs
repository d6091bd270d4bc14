//! Whom to tell what happens to a pod's volume, besides the caller.

use crate::stage::Pulled;
use crate::volume::Pod;
use std::fmt;

/// Tells a pod's author what happens to the pod's volume. Its methods return at
/// once, from any thread: nothing waits for what they say.
pub trait PodEvents: fmt::Debug + Send + Sync + 'static {
    /// The image is being fetched from a registry.
    fn pulling(&self, pod: &Pod, image: &str);

    /// The image of a registry is on the node.
    fn pulled(&self, pod: &Pod, image: &str, pulled: &Pulled);

    /// The volume cannot be published.
    fn failed(&self, pod: &Pod, cause: &str);
}

/// For where nobody is to be told.
impl PodEvents for () {
    fn pulling(&self, _: &Pod, _: &str) {}

    fn pulled(&self, _: &Pod, _: &str, _: &Pulled) {}

    fn failed(&self, _: &Pod, _: &str) {}
}
