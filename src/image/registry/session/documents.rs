//! Tags, manifests, indexes and configs.

use super::super::error::RegistryError;
use super::super::exchange;
use super::ask::Ask;
use super::failure::{Failure, Verdict};
use super::{Accepted, Head, Reference, Session};
use crate::image::digest::Digest;
use crate::image::error::SourceError;
use crate::image::manifest::{Descriptor, MAX_DOCUMENT_BYTES, MEDIA_TYPES};
use crate::image::resolve::Documents;
use reqwest::Method;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue,
};
use std::fmt;
use std::sync::{Arc, PoisonError};
use tokio::time::Instant;

/// What a registry calls the digest of what it gives.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// The documents of an image, fetched as they are asked for.
pub struct RemoteDocuments {
    session: Arc<Session>,
}

impl fmt::Debug for RemoteDocuments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteDocuments")
            .field(&self.session.name)
            .finish()
    }
}

impl RemoteDocuments {
    pub(super) fn new(session: Arc<Session>) -> Self {
        RemoteDocuments { session }
    }
}

impl Documents for RemoteDocuments {
    fn load(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let session = &self.session;
        let work = session.load_async(descriptor);
        let loaded = session.registry.wait(work).and_then(|loaded| loaded);
        loaded.map_err(SourceError::Registry)
    }
}

/// Where a registry keeps a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Blob,
}

impl Session {
    pub(super) async fn head_async(&self, reference: &Reference) -> Result<Head, RegistryError> {
        let may_be_asked = match reference {
            Reference::Tag(_) => self.places_that(|place| place.resolve),
            Reference::Digest(_) => self.places_that(|place| place.pull),
        };
        let what = self.shown_reference(reference);
        let found = self
            .anywhere(may_be_asked, |place, deadline| {
                self.head_at(place, reference, &what, deadline)
            })
            .await;
        let head = found.map_err(|told| self.error_of(told, &what))?;
        if let Some(bytes) = &head.bytes {
            let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            *fetched = Some((head.descriptor.digest, bytes.clone()));
        }
        Ok(head)
    }

    fn shown_reference(&self, reference: &Reference) -> String {
        match reference {
            Reference::Tag(tag) => format!("{}:{tag}", self.repository()),
            Reference::Digest(digest) => format!("{}@{digest}", self.repository()),
        }
    }

    async fn head_at(
        &self,
        place: usize,
        reference: &Reference,
        what: &str,
        deadline: Instant,
    ) -> Result<Head, Failure> {
        let mut ask = Ask {
            method: Method::HEAD,
            path: format!("manifests/{reference}"),
            header: manifest_header(),
            what: what.to_owned(),
            deadline,
        };
        match self.ask(place, &ask).await {
            Ok((answer, accepted)) => {
                let header = answer.response.headers();
                let size = text(header, CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok());
                let digest = match reference {
                    Reference::Digest(digest) => Some(*digest),
                    Reference::Tag(_) => {
                        text(header, CONTENT_DIGEST).and_then(|digest| digest.parse().ok())
                    }
                };
                if let (Some(digest), Some(size)) = (digest, size)
                    && size > 0
                {
                    self.check_size(place, size)?;
                    return Ok(Head {
                        descriptor: Descriptor {
                            media_type: media_type(header),
                            digest,
                            size,
                        },
                        accepted,
                        bytes: None,
                    });
                }
            }
            Err(failure) if failure.verdict == Verdict::Method => {}
            Err(failure) => return Err(failure),
        }
        // Some registries do not say enough about a document that they do not send.
        ask.method = Method::GET;
        let (mut answer, accepted) = self.ask(place, &ask).await?;
        let media_type = media_type(answer.response.headers());
        let host = &self.places[place].shown;
        let body = exchange::body(&mut answer.response, MAX_DOCUMENT_BYTES, deadline).await;
        let mut body = body.map_err(|broken| Failure::broken(host, broken))?;
        let bytes = std::mem::take(&mut *body);
        let digest = Digest::of(&bytes);
        match reference {
            Reference::Digest(wanted) if *wanted != digest => {
                return Err(self.other_bytes(place, *wanted));
            }
            Reference::Digest(_) | Reference::Tag(_) => {}
        }
        Ok(Head {
            descriptor: Descriptor {
                media_type,
                digest,
                size: bytes.len() as u64,
            },
            accepted,
            bytes: Some(bytes),
        })
    }

    fn check_size(&self, place: usize, size: u64) -> Result<(), Failure> {
        if size <= MAX_DOCUMENT_BYTES {
            return Ok(());
        }
        let reason = format!(
            "a manifest of {size} bytes, and {MAX_DOCUMENT_BYTES} are the most that one may have"
        );
        Err(Failure::malformed(&self.places[place].shown, reason))
    }

    fn other_bytes(&self, place: usize, digest: Digest) -> Failure {
        Failure {
            verdict: Verdict::Final,
            error: RegistryError::Digest {
                host: self.places[place].shown.clone(),
                digest,
            },
        }
    }

    async fn load_async(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        {
            let fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((digest, bytes)) = fetched.as_ref()
                && *digest == descriptor.digest
            {
                return Ok(bytes.clone());
            }
        }
        let what = self.shown_reference(&Reference::Digest(descriptor.digest));
        let kinds = match descriptor.media_type.as_str() {
            // It may be either; a manifest is likelier.
            "" => &[Kind::Manifest, Kind::Blob][..],
            known if MEDIA_TYPES.contains(&known) => &[Kind::Manifest],
            _ => &[Kind::Blob],
        };
        let mut last = None;
        for kind in kinds {
            let places = self.places_that(|place| place.pull);
            let found = self
                .anywhere(places, |place, deadline| {
                    self.load_at(place, descriptor, *kind, &what, deadline)
                })
                .await;
            match found {
                Ok(bytes) => return Ok(bytes),
                Err(told) => last = Some(self.error_of(told, &what)),
            }
            if !matches!(last, Some(RegistryError::NotFound { .. })) {
                break;
            }
        }
        Err(last.unwrap_or_else(|| self.error_of(Vec::new(), &what)))
    }

    async fn load_at(
        &self,
        place: usize,
        descriptor: &Descriptor,
        kind: Kind,
        what: &str,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let digest = descriptor.digest;
        let (folder, header) = match kind {
            Kind::Manifest => ("manifests", manifest_header()),
            Kind::Blob => ("blobs", blob_header()),
        };
        let ask = Ask {
            method: Method::GET,
            path: format!("{folder}/{digest}"),
            header,
            what: what.to_owned(),
            deadline,
        };
        let (mut answer, Accepted::Anonymous | Accepted::With(_)) = self.ask(place, &ask).await?;
        let host = &self.places[place].shown;
        let limit = descriptor.size.min(MAX_DOCUMENT_BYTES);
        let body = exchange::body(&mut answer.response, limit, deadline).await;
        let mut body = body.map_err(|broken| Failure::broken(host, broken))?;
        let bytes = std::mem::take(&mut *body);
        // The caller verifies it too; here it decides about the next host.
        if Digest::of(&bytes) != digest {
            return Err(self.other_bytes(place, digest));
        }
        Ok(bytes)
    }
}

/// For what can be either kind of manifest or index, or something of before them,
/// which we say more about than "not found".
fn manifest_header() -> HeaderMap {
    let mut header = identity();
    let accept = format!("{}, */*", MEDIA_TYPES.join(", "));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        header.insert(ACCEPT, accept);
    }
    header
}

fn blob_header() -> HeaderMap {
    let mut header = identity();
    header.insert(ACCEPT, HeaderValue::from_static("*/*"));
    header
}

/// Bytes as they are, for they have a digest.
pub(super) fn identity() -> HeaderMap {
    let mut header = HeaderMap::new();
    header.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    header
}

fn text<'a>(header: &'a HeaderMap, name: &str) -> Option<&'a str> {
    header.get(name)?.to_str().ok()
}

/// What the registry calls a document, if that is a document's name; everything
/// else is what servers say who do not know.
fn media_type(header: &HeaderMap) -> String {
    let said = text(header, CONTENT_TYPE.as_str()).unwrap_or_default();
    let bare = said.split(';').next().unwrap_or_default().trim();
    match bare.starts_with("application/vnd.") {
        true => bare.to_owned(),
        false => String::new(),
    }
}
