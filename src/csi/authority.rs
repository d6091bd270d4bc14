//! kubelet's registration client names the socket's path, percent-encoded, as
//! the `:authority` of its calls: `%2Fvar%2Flib%2Fkubelet%2F…-reg.sock`. That is
//! no authority in the sense of RFC 3986, so the HTTP/2 library beneath the
//! server resets the stream before any service sees it, and the plugin could
//! never be registered. (kubelet's other clients say `localhost`.)
//!
//! [`Localhost`] stands between that one socket and the server. It passes
//! everything through but the blocks of headers from the client, in which it
//! puts `localhost` in the authority's place. Since header compression is a
//! state shared by both ends, each block is decoded and written anew, and in a
//! form that leaves the server's table of headers empty.

use fluke_hpack::Decoder;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What a client sends before its first frame: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, type, flags and stream of a frame: RFC 9113, section 4.1.
const FRAME_HEADER_BYTES: usize = 9;
/// Longest frame that either side may send without having agreed on more, which
/// the server never does: RFC 9113, section 4.2.
const MAX_FRAME_BYTES: usize = 16_384;
/// Longest block of headers of one call. kubelet's have some 300 bytes.
const MAX_BLOCK_BYTES: usize = 65_536;
/// How much is read at once; calls of this service have less than a kilobyte.
const READ_BYTES: usize = 4096;

/// Frame types: RFC 9113, section 6.
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
/// Flags of HEADERS and CONTINUATION.
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bytes of the priority fields, which are deprecated and skipped.
const PRIORITY_BYTES: usize = 5;

const AUTHORITY: &[u8] = b":authority";
const LOCALHOST: &[u8] = b"localhost";

/// Why a client's bytes are not HTTP/2 that can be rewritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AuthorityError {
    /// The connection does not begin as one of HTTP/2.
    #[error("the connection does not begin with the preface of HTTP/2")]
    Preface,
    /// A frame is longer than the server takes.
    #[error("a frame has {bytes} bytes, more than {MAX_FRAME_BYTES}")]
    FrameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A block of headers does not end.
    #[error("a block of headers has more than {MAX_BLOCK_BYTES} bytes")]
    BlockTooLong,
    /// A frame in the middle of a block of headers that does not belong to it.
    #[error("a block of headers is interrupted")]
    Interrupted,
    /// Padding or priority is longer than the frame.
    #[error("a frame is shorter than its own fields")]
    Truncated,
    /// The block cannot be decoded.
    #[error("a block of headers cannot be decoded")]
    Compression,
}

/// A block of headers of which not all frames have come yet.
#[derive(Debug)]
struct Block {
    stream: [u8; 4],
    ends_stream: bool,
    bytes: Vec<u8>,
}

/// What a client sends, with another authority. Pure: bytes in, bytes out.
struct Rewriter {
    decoder: Decoder<'static>,
    /// Bytes that are not a whole frame yet.
    pending: Vec<u8>,
    block: Option<Block>,
    has_begun: bool,
}

impl fmt::Debug for Rewriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rewriter")
            .field("pending", &self.pending.len())
            .field("block", &self.block)
            .field("has_begun", &self.has_begun)
            .finish_non_exhaustive()
    }
}

impl Rewriter {
    fn new() -> Self {
        Rewriter {
            decoder: Decoder::new(),
            pending: Vec::new(),
            block: None,
            has_begun: false,
        }
    }

    /// Takes the next bytes of the client and appends to `out` what the server
    /// is to read.
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), AuthorityError> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        if !self.has_begun {
            if !PREFACE.starts_with(&rest[..rest.len().min(PREFACE.len())]) {
                return Err(AuthorityError::Preface);
            }
            let Some((preface, after)) = rest.split_at_checked(PREFACE.len()) else {
                self.pending = pending;
                return Ok(());
            };
            out.extend_from_slice(preface);
            rest = after;
            self.has_begun = true;
        }
        while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
            let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
            if length > MAX_FRAME_BYTES {
                return Err(AuthorityError::FrameTooLong { bytes: length });
            }
            let Some((payload, next)) = after.split_at_checked(length) else {
                break;
            };
            match (kind, &mut self.block) {
                (HEADERS, None) => {
                    let block = Block {
                        stream: [s0, s1, s2, s3],
                        ends_stream: flags & END_STREAM != 0,
                        bytes: fragment(payload, flags)?.to_vec(),
                    };
                    self.take(block, flags, out)?;
                }
                (CONTINUATION, Some(_)) => {
                    let Some(mut block) = self.block.take() else {
                        return Err(AuthorityError::Interrupted);
                    };
                    if block.stream != [s0, s1, s2, s3] {
                        return Err(AuthorityError::Interrupted);
                    }
                    if block.bytes.len() + length > MAX_BLOCK_BYTES {
                        return Err(AuthorityError::BlockTooLong);
                    }
                    block.bytes.extend_from_slice(payload);
                    self.take(block, flags, out)?;
                }
                (_, Some(_)) | (CONTINUATION, None) => return Err(AuthorityError::Interrupted),
                (_, None) => {
                    out.extend_from_slice(header);
                    out.extend_from_slice(payload);
                }
            }
            rest = next;
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    /// Writes a block that is whole, or keeps it.
    fn take(&mut self, block: Block, flags: u8, out: &mut Vec<u8>) -> Result<(), AuthorityError> {
        if flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(block.bytes.len() * 2);
        self.decoder
            .decode_with_cb(&block.bytes, |name, value| {
                let is_authority = name.as_ref() == AUTHORITY;
                literal(
                    &name,
                    if is_authority { LOCALHOST } else { &value },
                    &mut bytes,
                );
            })
            .map_err(|_| AuthorityError::Compression)?;
        let mut parts = bytes.chunks(MAX_FRAME_BYTES).peekable();
        let mut kind = HEADERS;
        while let Some(part) = parts.next() {
            let mut flags = 0;
            if kind == HEADERS && block.ends_stream {
                flags |= END_STREAM;
            }
            if parts.peek().is_none() {
                flags |= END_HEADERS;
            }
            let [_, l0, l1, l2] = (part.len() as u32).to_be_bytes();
            out.extend_from_slice(&[l0, l1, l2, kind, flags]);
            out.extend_from_slice(&block.stream);
            out.extend_from_slice(part);
            kind = CONTINUATION;
        }
        Ok(())
    }
}

/// The part of a HEADERS frame that belongs to the block.
fn fragment(payload: &[u8], flags: u8) -> Result<&[u8], AuthorityError> {
    let mut payload = payload;
    if flags & PADDED != 0 {
        let (&padding, rest) = payload.split_first().ok_or(AuthorityError::Truncated)?;
        let end = rest
            .len()
            .checked_sub(usize::from(padding))
            .ok_or(AuthorityError::Truncated)?;
        payload = &rest[..end];
    }
    if flags & PRIORITY != 0 {
        payload = payload
            .get(PRIORITY_BYTES..)
            .ok_or(AuthorityError::Truncated)?;
    }
    Ok(payload)
}

/// A header as a literal that goes into no table, its name and value as they
/// are: RFC 7541, section 6.2.2.
fn literal(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    string(name, out);
    string(value, out);
}

/// RFC 7541, sections 5.1 and 5.2, without Huffman coding.
fn string(bytes: &[u8], out: &mut Vec<u8>) {
    const PREFIX: usize = 0x7f;
    if bytes.len() < PREFIX {
        out.push(bytes.len() as u8);
    } else {
        out.push(PREFIX as u8);
        let mut rest = bytes.len() - PREFIX;
        while rest >= 0x80 {
            out.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(bytes);
}

/// A connection whose client says `localhost`.
#[derive(Debug)]
pub(super) struct Localhost<C> {
    connection: C,
    rewriter: Rewriter,
    /// What the server has not read yet, from `read` on.
    ready: Vec<u8>,
    read: usize,
}

impl<C> Localhost<C> {
    pub(super) fn new(connection: C) -> Self {
        Localhost {
            connection,
            rewriter: Rewriter::new(),
            ready: Vec::new(),
            read: 0,
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Localhost<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let left = &this.ready[this.read..];
            if !left.is_empty() {
                let count = left.len().min(buffer.remaining());
                buffer.put_slice(&left[..count]);
                this.read += count;
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.read = 0;
            let mut bytes = [0; READ_BYTES];
            let mut fresh = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.connection).poll_read(context, &mut fresh))?;
            if fresh.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = this.rewriter.feed(fresh.filled(), &mut this.ready) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot read a call on the registration socket"
                );
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Localhost<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().connection).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_shutdown(context)
    }
}

impl<C> Connected for Localhost<C> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests;
