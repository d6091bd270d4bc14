//! Images in registries.

mod error;

pub use error::RegistryError;
