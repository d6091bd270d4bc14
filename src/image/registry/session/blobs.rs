//! Blobs, as their hosts begin to give them.

use super::super::download::{Blob, BlobBody, BlobFault, BlobPlaces, Wanted};
use super::super::error::RegistryError;
use super::super::exchange::within;
use super::Session;
use super::ask::Ask;
use super::documents::identity;
use super::failure::{Failure, Verdict};
use crate::image::digest::Digest;
use reqwest::Method;
use reqwest::header::{
    ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE,
};
use std::pin::Pin;
use std::sync::Arc;

impl BlobPlaces for Session {
    fn count(&self) -> usize {
        self.pulling().count()
    }

    fn host(&self, place: usize) -> String {
        match self.pulling().nth(place) {
            Some(number) => self.places[number].shown.clone(),
            None => self.name.registry().to_owned(),
        }
    }

    fn begin(
        &self,
        place: usize,
        digest: &Digest,
        offset: u64,
    ) -> Pin<Box<dyn Future<Output = Result<BlobBody, BlobFault>> + Send + '_>> {
        let digest = *digest;
        Box::pin(async move {
            let Some(number) = self.pulling().nth(place) else {
                return Err(BlobFault::Elsewhere(RegistryError::NotFound {
                    image: self.repository(),
                    hosts: "no host".to_owned(),
                }));
            };
            let begun = self.begin_at(number, digest, offset).await;
            begun.map_err(|failure| match failure.verdict {
                Verdict::Again(after) => BlobFault::Again {
                    after,
                    error: failure.error,
                },
                Verdict::Range => BlobFault::Range(failure.error),
                Verdict::NoAccess | Verdict::NotFound | Verdict::Method | Verdict::Final => {
                    BlobFault::Elsewhere(failure.error)
                }
            })
        })
    }
}

impl Session {
    /// Begins to fetch blobs of the repository, given by digest and size, or joins
    /// whoever fetches them for the same repository. An error if they do not fit
    /// on the disk with as much again, which is what unpacking them takes at least.
    pub fn fetch(
        self: &Arc<Self>,
        blobs: &[(Digest, u64)],
    ) -> Result<Vec<Arc<Blob>>, RegistryError> {
        let domain = self.repository();
        let wanted: Vec<Wanted<'_>> = blobs
            .iter()
            .map(|&(digest, size)| Wanted {
                domain: &domain,
                digest,
                size,
            })
            .collect();
        let downloads = &self.registry.downloads;
        let sum = blobs
            .iter()
            .fold(0, |sum: u64, (_, size)| sum.saturating_add(*size));
        downloads.check_space(&wanted, sum)?;
        let places: Arc<dyn BlobPlaces> = Arc::clone(self) as _;
        Ok(downloads.get_all(&places, &wanted))
    }

    /// The numbers of the hosts that may give content.
    fn pulling(&self) -> impl Iterator<Item = usize> {
        let places = self.places.iter().enumerate();
        places
            .filter(|(_, place)| place.pull)
            .map(|(number, _)| number)
    }

    async fn begin_at(
        &self,
        number: usize,
        digest: Digest,
        offset: u64,
    ) -> Result<BlobBody, Failure> {
        let mut header = identity();
        header.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            header.insert(RANGE, range);
        }
        let ask = Ask {
            method: Method::GET,
            path: format!("blobs/{digest}"),
            header,
            what: format!("blob {digest} of {}", self.repository()),
            deadline: within(self.patience().answer),
        };
        let (answer, _) = self.ask(number, &ask).await?;
        let status = answer.response.status().as_u16();
        let part = part(status, answer.response.headers(), offset)
            .map_err(|reason| Failure::malformed(&self.places[number].shown, reason))?;
        Ok(BlobBody {
            offset: part.0,
            length: part.1,
            response: answer.response,
        })
    }
}

/// Where the body of an answer begins, and how long the whole blob is. The reason
/// against it fits behind "an answer that cannot be used".
fn part(status: u16, header: &HeaderMap, asked: u64) -> Result<(u64, Option<u64>), &'static str> {
    let text = |name| header.get(name).and_then(|value| value.to_str().ok());
    if text(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err("a blob is encoded, although none of that was asked for");
    }
    if status != 206 {
        return Ok((
            0,
            text(CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        ));
    }
    let range = text(CONTENT_RANGE).ok_or("a part of a blob does not say which")?;
    let parsed = range.trim().strip_prefix("bytes ").and_then(|range| {
        let (range, length) = range.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let length = match length {
            "*" => None,
            length => Some(length.parse::<u64>().ok()?),
        };
        let is_sound = first <= last && length.is_none_or(|length| last < length);
        is_sound.then_some((first, length))
    });
    match parsed {
        Some((first, length)) if first == asked => Ok((first, length)),
        Some(_) => Err("a part of a blob is not the one that was asked for"),
        None => Err("a part of a blob does not say which"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_comes_is_the_one_that_was_asked_for() {
        for (status, range, length, expected) in [
            (200, None, Some("10"), Ok((0, Some(10)))),
            (200, Some("bytes 5-9/10"), None, Ok((0, None))),
            (206, Some("bytes 5-9/10"), Some("5"), Ok((5, Some(10)))),
            (206, Some("bytes 5-9/*"), None, Ok((5, None))),
            (206, None, Some("5"), Err("does not say which")),
            (206, Some("bytes 0-9/10"), None, Err("not the one")),
            (206, Some("bytes 5-10/10"), None, Err("does not say which")),
            (206, Some("bytes 5-4/10"), None, Err("does not say which")),
            (206, Some("items 5-9/10"), None, Err("does not say which")),
            (206, Some("bytes */10"), None, Err("does not say which")),
            (
                206,
                Some("bytes 5-99999999999999999999/10"),
                None,
                Err("does not say which"),
            ),
        ] {
            let mut header = HeaderMap::new();
            if let Some(range) = range {
                header.insert(CONTENT_RANGE, range.parse().unwrap());
            }
            if let Some(length) = length {
                header.insert(CONTENT_LENGTH, length.parse().unwrap());
            }
            match (part(status, &header, 5), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(reason), Err(expected)) => assert!(reason.contains(expected), "{reason}"),
                (found, expected) => panic!("{range:?}: {found:?} instead of {expected:?}"),
            }
        }
        let mut header = HeaderMap::new();
        header.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        assert!(part(200, &header, 0).is_err());
    }
}
