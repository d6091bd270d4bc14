//! Images in registries.

mod download;
mod error;

pub use download::{
    Blob, BlobReader, DownloadSettings, DownloadStats, Downloads, Progress, Retry, Spools, Wanted,
};
pub use error::RegistryError;
