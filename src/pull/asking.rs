//! From what one volume wants to an image that the store has, or to the digest
//! that has to be pulled: policy and access.

use super::access::Public;
use super::source::Stored;
use super::{Inner, PullError, PullPolicy, Want, stager};
use crate::chain::find;
use crate::image::SourceError;
use crate::image::digest::Digest;
use crate::image::reference::Source;
use crate::image::registry::{Accepted, Head, Reference, RegistryError, Session};
use crate::layer::store::StoreError;
use crate::stage::{Progress, StagedImage};
use std::sync::Arc;
use std::time::Duration;

/// One volume's way to an image.
pub(super) struct Asking<'a> {
    inner: &'a Inner,
    pub(super) want: &'a Want<'a>,
    /// As names are recorded.
    pub(super) name: String,
    /// `registry/repository`.
    pub(super) repository: String,
    /// What the image has to be, or what its name says.
    reference: Reference,
    pub(super) session: Arc<Session>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(inner: &'a Inner, want: &'a Want<'a>) -> Result<Self, PullError> {
        let name = want.name;
        // This also looks whether the operator allows the registry.
        let session = inner
            .registry
            .session(name, want.keyring.clone())
            .map_err(PullError::Registry)?;
        let reference = match want.promised {
            Some(digest) => Reference::Digest(digest),
            None => Reference::of(name),
        };
        Ok(Asking {
            inner,
            want,
            name: Source::Registry(name.clone()).to_string(),
            repository: format!("{}/{}", name.registry(), name.repository()),
            reference,
            session,
        })
    }

    /// The name under which what it leads to is noted. What a volume was promised
    /// may not be what its tag leads to now, so that is noted by its digest.
    fn noted_name(&self) -> String {
        match &self.reference {
            Reference::Digest(digest) if self.want.name.digest().is_none() => {
                format!("docker://{}@{digest}", self.repository)
            }
            Reference::Digest(_) | Reference::Tag(_) => self.name.clone(),
        }
    }

    /// The image as the store has it, where that will do.
    pub(super) fn as_stored(
        &self,
        progress: &dyn Progress,
    ) -> Result<Option<StagedImage>, PullError> {
        let policy = self.want.policy;
        if policy == PullPolicy::Always {
            return Ok(None);
        }
        let Some(manifest) = self.known_manifest()? else {
            return match policy {
                PullPolicy::Never => Err(PullError::NotPresent),
                PullPolicy::Always | PullPolicy::IfNotPresent => Ok(None),
            };
        };
        if !self.is_accepted()? {
            if policy == PullPolicy::Never {
                return Err(PullError::NoAccess);
            }
            self.ask_for_access(&manifest)?;
        }
        let found = self.use_stored(&manifest, progress)?;
        match (found, policy) {
            (None, PullPolicy::Never) => Err(PullError::NotPresent),
            (found, _) => Ok(found),
        }
    }

    /// What the store says that the name leads to.
    fn known_manifest(&self) -> Result<Option<String>, PullError> {
        let store = &self.inner.store;
        let platform = self.want.platform.to_string();
        let known = match &self.reference {
            Reference::Digest(digest) => self.manifest_of(digest)?,
            Reference::Tag(_) => store
                .reference(&self.name, &platform)
                .map_err(PullError::Store)?
                .map(|record| record.manifest),
        };
        Ok(known)
    }

    /// The manifest for the wanted platform that a digest stands for, if the store
    /// has an image of it.
    fn manifest_of(&self, digest: &Digest) -> Result<Option<String>, PullError> {
        let store = &self.inner.store;
        let text = digest.to_string();
        let platform = self.want.platform.to_string();
        if let Some(manifest) = store
            .manifest_in(&text, &platform)
            .map_err(PullError::Store)?
        {
            return Ok(Some(manifest));
        }
        let image = store.image(&text).map_err(PullError::Store)?;
        Ok(image
            .filter(|image| {
                image
                    .platform
                    .parse()
                    .is_ok_and(|platform| self.want.platform.takes_single(&platform))
            })
            .map(|image| image.manifest))
    }

    /// Whether it is known that this one may have what the repository has.
    fn is_accepted(&self) -> Result<bool, PullError> {
        if self.want.by_operator {
            return Ok(true);
        }
        let book = &self.inner.book;
        match book.is_public(&self.repository).map_err(PullError::Store)? {
            Public::Fresh => return Ok(true),
            // The registry may be out of reach for good, and once is enough to
            // have read it all.
            Public::Stale if self.want.policy == PullPolicy::Never => return Ok(true),
            Public::Stale | Public::No => {}
        }
        let name = self.want.name;
        let credentials = self.want.keyring.lookup(name.registry(), name.repository());
        book.accepts(&self.repository, &credentials)
            .map_err(PullError::Store)
    }

    /// Has the registry say whether this one may have it.
    fn ask_for_access(&self, manifest: &str) -> Result<(), PullError> {
        let of_manifest = manifest.parse().map(Reference::Digest);
        let asked = match of_manifest {
            Ok(reference) => self.head(&reference),
            Err(_) => self.head(&self.reference),
        };
        let asked = match asked {
            // The tag has moved on, and the registry keeps only what has one.
            Err(PullError::Registry(RegistryError::NotFound { .. })) => self.head(&self.reference),
            other => other,
        };
        match asked {
            Ok(_) => Ok(()),
            Err(PullError::Registry(
                RegistryError::Unreachable { .. }
                | RegistryError::Status { .. }
                | RegistryError::Stalled { .. },
            )) if self
                .inner
                .book
                .is_public(&self.repository)
                .map_err(PullError::Store)?
                == Public::Stale =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Where the name leads now.
    pub(super) fn resolve(&self) -> Result<Head, PullError> {
        self.head(&self.reference)
    }

    /// Asks the registry, and remembers whom it answered.
    fn head(&self, reference: &Reference) -> Result<Head, PullError> {
        let book = &self.inner.book;
        match self.session.head(reference) {
            Ok(head) => {
                match &head.accepted {
                    Accepted::Anonymous => book.note_public(&self.repository),
                    Accepted::With(credential) => book.note_accepted(&self.repository, credential),
                }
                .map_err(PullError::Store)?;
                Ok(head)
            }
            Err(error) => {
                if matches!(
                    error,
                    RegistryError::Unauthenticated { .. } | RegistryError::Denied { .. }
                ) {
                    book.note_restricted(&self.repository)
                        .map_err(PullError::Store)?;
                }
                Err(PullError::Registry(error))
            }
        }
    }

    /// The image that a digest stands for, if the store has all of it.
    pub(super) fn stored(
        &self,
        digest: &Digest,
        progress: &dyn Progress,
    ) -> Result<Option<StagedImage>, PullError> {
        match self.manifest_of(digest)? {
            Some(manifest) => self.use_stored(&manifest, progress),
            None => Ok(None),
        }
    }

    fn use_stored(
        &self,
        manifest: &str,
        progress: &dyn Progress,
    ) -> Result<Option<StagedImage>, PullError> {
        let inner = self.inner;
        let Some(record) = inner.store.image(manifest).map_err(PullError::Store)? else {
            return Ok(None);
        };
        let source = Stored::new(
            self.name.clone(),
            &record,
            &self.repository,
            &inner.book,
            self.want.by_operator,
        );
        let Some(source) = source else {
            return Ok(None);
        };
        let staging = &self.want.staging;
        let staged = stager(&inner.store, staging, staging.options.clone()).stage_unnamed(
            &source,
            self.want.platform,
            staging.format,
            progress,
        );
        match staged {
            Ok(image) => Ok(Some(image)),
            Err(error) if find(&error).is_some_and(is_not_stored) => Ok(None),
            Err(error) => Err(PullError::Stage(error)),
        }
    }

    /// Notes where the name and the digest lead, for the next one; the registry was
    /// asked at the time `resolved`.
    pub(super) fn note(
        &self,
        digest: &Digest,
        manifest: &str,
        resolved: Duration,
    ) -> Result<(), StoreError> {
        let store = &self.inner.store;
        let platform = self.want.platform.to_string();
        if digest.to_string() != manifest {
            store.put_manifest_in(&digest.to_string(), &platform, manifest)?;
        }
        store.note(&self.noted_name(), &platform, manifest, resolved)
    }
}

fn is_not_stored(error: &SourceError) -> bool {
    matches!(error, SourceError::NotStored)
}
