//! A policy file that may change while the plugin runs.

use super::{PolicyFault, PolicyFile, bytes_of};
use std::path::{Path, PathBuf};

/// Looks at a policy file again and again. It compares what the file holds, not
/// when it was written: in a `ConfigMap` the name leads through two links, of
/// which one is replaced, and times of files in it say little.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// What it held last; none where it could not be read.
    last: Option<Vec<u8>>,
}

/// What a look at the file has found.
#[derive(Debug)]
pub enum Look {
    /// It is as it was at the last look.
    Same,
    /// It says something else now.
    Changed(Box<PolicyFile>),
    /// It is another one now, and not a policy.
    Refused(Vec<PolicyFault>),
}

impl Follower {
    /// Reads a file for the first time.
    pub fn start(path: &Path) -> Result<(Self, PolicyFile), Vec<PolicyFault>> {
        let bytes = bytes_of(path).map_err(|error| vec![PolicyFault::Read(error)])?;
        let policy = PolicyFile::parse(&bytes)?;
        let follower = Follower {
            path: path.to_owned(),
            last: Some(bytes),
        };
        Ok((follower, policy))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it again.
    pub fn look(&mut self) -> Look {
        match bytes_of(&self.path) {
            Err(_) if self.last.is_none() => Look::Same,
            Err(error) => {
                self.last = None;
                Look::Refused(vec![PolicyFault::Read(error)])
            }
            Ok(bytes) if self.last.as_ref() == Some(&bytes) => Look::Same,
            Ok(bytes) => {
                let parsed = PolicyFile::parse(&bytes);
                self.last = Some(bytes);
                match parsed {
                    Ok(policy) => Look::Changed(Box::new(policy)),
                    Err(faults) => Look::Refused(faults),
                }
            }
        }
    }
}
