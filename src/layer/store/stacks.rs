//! Records of several images as the branches of one union.

use super::{SealedForm, Store, StoreError, read_json, write_json};
use crate::layer::steps;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;

/// Several images as one, for one kind of union: `images/<id>.stack.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackRecord {
    /// Name of the format.
    pub format: String,
    /// `sha256:…` of each image's manifest, uppermost first.
    pub manifests: Vec<String>,
    /// The branches of all.
    pub form: SealedForm,
}

impl StackRecord {
    fn key(format: &str, manifests: &[String]) -> String {
        format!("{format}\n{}", manifests.join("\n"))
    }
}

impl Store {
    /// Several images, uppermost first, as one.
    pub fn stack(
        &self,
        format: &str,
        manifests: &[String],
    ) -> Result<Option<StackRecord>, StoreError> {
        let path = self.image_file(&StackRecord::key(format, manifests), ".stack.json");
        match read_json(&path) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            other => other,
        }
    }

    /// Writes or replaces what several images are as one.
    pub fn put_stack(&self, record: &StackRecord) -> Result<(), StoreError> {
        let key = StackRecord::key(&record.format, &record.manifests);
        let _commits = self.lock_commits()?;
        write_json(&self.image_file(&key, ".stack.json"), record, false)
    }

    /// All stacks of images.
    pub fn stacks(&self) -> Result<Vec<StackRecord>, StoreError> {
        self.read_all(".stack.json", |_| true)
    }

    /// Removes the record of a stack, whose branches stay.
    pub fn remove_stack(&self, record: &StackRecord) -> Result<(), StoreError> {
        let key = StackRecord::key(&record.format, &record.manifests);
        let path = self.image_file(&key, ".stack.json");
        steps::before("remove the record of several images");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}
