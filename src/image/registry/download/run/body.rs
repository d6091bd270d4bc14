//! From the body of one answer to the end of the spool.

use super::super::places::{BlobBody, BlobFault};
use super::super::stats::Retry;
use super::{Outcome, Run, Took, WRITE_BYTES, malformed, unreachable};
use crate::image::registry::RegistryError;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// After so long with nothing more, what has come is written all the same.
const LINGER: Duration = Duration::from_millis(20);
impl Run<'_> {
    /// Takes a body to its end, or to its fault. What has come stays.
    pub(super) async fn take(&mut self, body: BlobBody, host: &str) -> Outcome<Took> {
        let BlobBody {
            offset: start,
            length,
            mut response,
        } = body;
        let (began, size) = (self.received, self.size());
        let mut offset = start;
        let mut buffer: Vec<u8> = Vec::with_capacity(WRITE_BYTES);
        let mut last = Instant::now();
        let took = loop {
            let patience = match buffer.is_empty() {
                true => self.home.settings.idle.saturating_sub(last.elapsed()),
                false => LINGER,
            };
            let chunk = match timeout(patience, response.chunk()).await {
                Err(_) if !buffer.is_empty() => {
                    self.append(&buffer, host)?;
                    buffer.clear();
                    continue;
                }
                Err(_) => {
                    let silent = last.elapsed().as_secs();
                    let error = unreachable(host, format!("nothing came for {silent} s"));
                    break Took::again(error, Retry::Stall);
                }
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => {
                    let reason = format!("the blob ends after {offset} of {size} bytes");
                    break Took::again(malformed(host, reason), Retry::Cut);
                }
                Ok(Err(_)) => {
                    // The library's text would have the URL with its query.
                    let error = unreachable(host, format!("cut off at byte {offset} of {size}"));
                    break Took::again(error, Retry::Cut);
                }
            };
            last = Instant::now();
            self.home.stats.came(chunk.len() as u64);
            self.pace.came(chunk.len() as u64, last);
            let mut new = &chunk[..];
            // The buffer is empty until what is there already was passed.
            if offset < self.received {
                let known = usize::try_from(self.received - offset).unwrap_or(usize::MAX);
                let (known, rest) = chunk.split_at(known.min(chunk.len()));
                if self.spool.has(known, offset).map_err(RegistryError::Disk)? {
                    self.home.stats.came_again(known.len() as u64);
                    (offset, new) = (offset + known.len() as u64, rest);
                } else if start > 0 {
                    let reason = "it gives other bytes than came before".to_owned();
                    let fault = BlobFault::Range(malformed(host, reason));
                    return Ok(Took::Fault(fault, Retry::Range));
                } else if !self.start_over(offset, host)? {
                    return Ok(Took::again(elsewhere_locked(host), Retry::Broken));
                }
            }
            offset += new.len() as u64;
            if offset > size {
                return self.too_long(host);
            }
            if buffer.is_empty() && new.len() >= WRITE_BYTES / 2 {
                self.append(new, host)?;
            } else {
                buffer.extend_from_slice(new);
            }
            if buffer.len() >= WRITE_BYTES || offset == size {
                self.append(&buffer, host)?;
                buffer.clear();
            }
            if offset == size {
                // A length that was told was compared.
                if length.is_none() && has_more(&mut response).await {
                    return self.too_long(host);
                }
                return Ok(Took::All);
            }
            if let Some(waited) = self.pace.stalled(last) {
                self.append(&buffer, host)?;
                let what = self.what();
                let last = format!("{host} sends too slowly");
                return Err(RegistryError::Stalled { what, waited, last });
            }
        };
        self.append(&buffer, host)?;
        if self.received == began && start < began {
            self.course.was_fruitless();
        }
        Ok(took)
    }

    /// What this host gave is not the blob, even where its start may be.
    fn too_long(&mut self, host: &str) -> Outcome<Took> {
        self.start_over(0, host)?;
        let size = self.size();
        let reason = format!("it sends more than the {size} bytes of the blob");
        let fault = BlobFault::Elsewhere(malformed(host, reason));
        Ok(Took::Fault(fault, Retry::Elsewhere))
    }
}

/// Whether a body that should be over goes on.
async fn has_more(response: &mut reqwest::Response) -> bool {
    let next = timeout(Duration::from_secs(1), response.chunk()).await;
    matches!(next, Ok(Ok(Some(chunk))) if !chunk.is_empty())
}

fn elsewhere_locked(host: &str) -> RegistryError {
    malformed(
        host,
        "it gives other bytes than came before, and another process fetches them".to_owned(),
    )
}
