//! Blobs to files.

pub(in crate::image::registry) mod places;
