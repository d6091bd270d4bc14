//! What kubelet's registration client puts on the wire: HTTP/2 and HPACK as
//! grpc-go writes them, by hand, because no library of ours sends the
//! `:authority` that this one does.

use fluke_hpack::Decoder;
use prost::Message;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame types and flags: RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// Length of a message, after a byte that says whether it is compressed.
const GRPC_PREFIX_BYTES: usize = 5;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The connection failed, or nothing came in time.
    #[error("the connection fails: {0}")]
    Io(#[from] io::Error),
    /// The server refused the stream: what one does that takes no such
    /// `:authority`.
    #[error("the stream is reset with code {0}")]
    Reset(u32),
    /// The server ended the connection.
    #[error("the connection is ended with code {0}")]
    GoAway(u32),
    /// The call itself failed.
    #[error("status {0}: {1}")]
    Status(String, String),
    /// The answer is no answer.
    #[error("no answer is {0}")]
    Malformed(String),
}

/// One connection to a socket.
pub(crate) struct Connection {
    stream: UnixStream,
    encoder: Encoder,
    decoder: Decoder<'static>,
    authority: String,
    next_stream: u32,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Connection {
    pub(crate) fn dial(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut hello = PREFACE.to_vec();
        push_frame(&mut hello, SETTINGS, 0, 0, &[]);
        stream.write_all(&hello)?;
        Ok(Connection {
            stream,
            encoder: Encoder::default(),
            decoder: Decoder::new(),
            // With no authority of its own, grpc-go takes the path of the socket.
            authority: socket.display().to_string().replace('/', "%2F"),
            next_stream: 1,
        })
    }

    /// A call with one message each way.
    pub(crate) fn call<A: Message + Default>(
        &mut self,
        path: &str,
        question: &impl Message,
        within: Duration,
    ) -> Result<A, CallError> {
        let deadline = Instant::now() + within;
        let stream = self.next_stream;
        self.next_stream += 2;
        let timeout = format!("{}u", within.as_micros().min(99_999_999));
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self.authority.as_str()),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-go/1.72.2"),
            ("te", "trailers"),
            ("grpc-timeout", timeout.as_str()),
        ] {
            self.encoder.header(name, value, &mut block);
        }
        let question = question.encode_to_vec();
        let mut data = vec![0];
        data.extend((question.len() as u32).to_be_bytes());
        data.extend(question);
        let mut out = Vec::new();
        push_frame(&mut out, HEADERS, END_HEADERS, stream, &block);
        push_frame(&mut out, DATA, END_STREAM, stream, &data);
        self.stream.write_all(&out)?;
        self.answer(stream, deadline)
    }

    fn answer<A: Message + Default>(
        &mut self,
        stream: u32,
        deadline: Instant,
    ) -> Result<A, CallError> {
        let (mut headers, mut body) = (Vec::new(), Vec::new());
        loop {
            let frame = self.read_frame(deadline)?;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.reply(SETTINGS, &[])?,
                PING if frame.flags & ACK == 0 => self.reply(PING, &frame.payload)?,
                SETTINGS | PING | WINDOW_UPDATE => {}
                GOAWAY => return Err(CallError::GoAway(code(&frame.payload[4..]))),
                RST_STREAM if frame.stream == stream => {
                    return Err(CallError::Reset(code(&frame.payload)));
                }
                HEADERS if frame.stream == stream => {
                    // The server sends neither padding nor priorities, and its
                    // blocks fit a frame.
                    assert_eq!(frame.flags & !END_STREAM, END_HEADERS);
                    let block = self.decoder.decode(&frame.payload);
                    headers.extend(block.map_err(|error| malformed(&error))?);
                }
                DATA if frame.stream == stream => body.extend(frame.payload),
                other => return Err(CallError::Malformed(format!("a frame of type {other}"))),
            }
            if frame.stream == stream && frame.flags & END_STREAM != 0 {
                break;
            }
        }
        let header = |name: &str| {
            let found = headers.iter().rev().find(|(n, _)| n == name.as_bytes());
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        if header(":status").as_deref() != Some("200") {
            return Err(CallError::Malformed(format!("{headers:?}")));
        }
        let status = header("grpc-status").unwrap_or_default();
        if status != "0" {
            let message = header("grpc-message").unwrap_or_default();
            return Err(CallError::Status(status, message));
        }
        let message = body.get(GRPC_PREFIX_BYTES..).unwrap_or_default();
        A::decode(message).map_err(|error| malformed(&error))
    }

    fn reply(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        push_frame(&mut out, kind, ACK, 0, payload);
        self.stream.write_all(&out)
    }

    fn read_frame(&mut self, deadline: Instant) -> io::Result<Frame> {
        let mut header = [0; 9];
        self.read(&mut header, deadline)?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        self.read(&mut payload, deadline)?;
        Ok(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            payload,
        })
    }

    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut bytes[done..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}

fn malformed(error: &impl fmt::Debug) -> CallError {
    CallError::Malformed(format!("{error:?}"))
}

fn code(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(u32::MAX, |code| u32::from_be_bytes(*code))
}

fn push_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// HPACK as golang.org/x/net/http2/hpack writes it: what is in the static table
/// or in the connection's is referred to, everything else goes into the latter,
/// and text is Huffman-coded where that is shorter.
#[derive(Default)]
struct Encoder {
    /// Newest last. Two calls stay far below its 4096 bytes.
    table: Vec<(String, String)>,
}

impl Encoder {
    /// Entries of the static table: RFC 7541, appendix A.
    const STATIC: usize = 61;

    fn header(&mut self, name: &str, value: &str, out: &mut Vec<u8>) {
        let (known_name, is_whole) = self.search(name, value);
        if is_whole {
            integer(0x80, 7, known_name, out);
            return;
        }
        integer(0x40, 6, known_name, out);
        if known_name == 0 {
            string(name, out);
        }
        string(value, out);
        self.table.push((name.to_owned(), value.to_owned()));
    }

    /// Index of the header or of its name, 0 for none, and whether it is the
    /// header with its value.
    fn search(&self, name: &str, value: &str) -> (usize, bool) {
        let known = match (name, value) {
            (":method", "POST") => return (3, true),
            (":scheme", "http") => return (6, true),
            (":authority", _) => 1,
            (":path", _) => 4,
            ("content-type", _) => 31,
            ("user-agent", _) => 58,
            _ => 0,
        };
        let newest = || self.table.iter().rev();
        let at = |index: usize| Self::STATIC + 1 + index;
        match newest().position(|(n, v)| n == name && v == value) {
            Some(index) => (at(index), true),
            None if known > 0 => (known, false),
            None => {
                let named = newest().position(|(n, _)| n == name);
                (named.map_or(0, at), false)
            }
        }
    }
}

/// RFC 7541, section 5.1.
fn integer(first: u8, prefix: u32, value: usize, out: &mut Vec<u8>) {
    let most = (1 << prefix) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// RFC 7541, section 5.2.
fn string(text: &str, out: &mut Vec<u8>) {
    let coded = huffman(text);
    if coded.len() < text.len() {
        integer(0x80, 7, coded.len(), out);
        out.extend(coded);
    } else {
        integer(0, 7, text.len(), out);
        out.extend(text.as_bytes());
    }
}

/// Codes of the printable characters from the space on, each with its length in
/// bits: RFC 7541, appendix B.
const HUFFMAN: &str = "14/6 3f8/10 3f9/10 ffa/12 1ff9/13 15/6 f8/8 7fa/11 3fa/10 3fb/10 f9/8 \
    7fb/11 fa/8 16/6 17/6 18/6 0/5 1/5 2/5 19/6 1a/6 1b/6 1c/6 1d/6 1e/6 1f/6 5c/7 fb/8 7ffc/15 \
    20/6 ffb/12 3fc/10 1ffa/13 21/6 5d/7 5e/7 5f/7 60/7 61/7 62/7 63/7 64/7 65/7 66/7 67/7 68/7 \
    69/7 6a/7 6b/7 6c/7 6d/7 6e/7 6f/7 70/7 71/7 72/7 fc/8 73/7 fd/8 1ffb/13 7fff0/19 1ffc/13 \
    3ffc/14 22/6 7ffd/15 3/5 23/6 4/5 24/6 5/5 25/6 26/6 27/6 6/5 74/7 75/7 28/6 29/6 2a/6 7/5 \
    2b/6 76/7 2c/6 8/5 9/5 2d/6 77/7 78/7 79/7 7a/7 7b/7 7ffe/15 7fc/11 3ffd/14 1ffd/13";

fn huffman(text: &str) -> Vec<u8> {
    let codes: Vec<(u64, u32)> = HUFFMAN
        .split_whitespace()
        .map(|pair| {
            let (code, bits) = pair.split_once('/').unwrap();
            (
                u64::from_str_radix(code, 16).unwrap(),
                bits.parse().unwrap(),
            )
        })
        .collect();
    let (mut out, mut pending, mut held) = (Vec::new(), 0_u64, 0);
    for byte in text.bytes() {
        let (code, bits) = codes[usize::from(byte - b' ')];
        pending = pending << bits | code;
        held += bits;
        while held >= 8 {
            held -= 8;
            out.push((pending >> held) as u8);
        }
    }
    if held > 0 {
        // Filled up with ones.
        out.push((pending << (8 - held)) as u8 | (0xff >> held) as u8);
    }
    out
}
