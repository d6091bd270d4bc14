use super::*;

const ENCODED: &[u8] = b"%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Faufs-csi.dev-reg.sock";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Writes headers as grpc-go does: what is new goes into the table of the
/// connection, and what is in there is referred to. (The library's own encoder
/// never does that.)
#[derive(Default)]
struct Encoder {
    /// Newest last.
    table: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Encoder {
    /// Entries of the static table, which come first: RFC 7541, appendix A.
    const STATIC: usize = 61;

    fn header(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let known = self
            .table
            .iter()
            .rev()
            .position(|(n, v)| n == name && v == value);
        if let Some(at) = known {
            out.push(0x80 | (Self::STATIC + 1 + at) as u8);
            return;
        }
        out.push(0x40);
        string(name, out);
        string(value, out);
        self.table.push((name.to_vec(), value.to_vec()));
    }
}

/// The headers of a call.
fn block(encoder: &mut Encoder, path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in [
        (b":method".as_slice(), b"POST".as_slice()),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", ENCODED),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-go/1.72.2"),
        (b"te", b"trailers"),
    ] {
        encoder.header(name, value, &mut out);
    }
    out
}

fn rewritten(bytes: &[u8], step: usize) -> Result<Vec<u8>, AuthorityError> {
    let mut rewriter = Rewriter::new();
    let mut out = Vec::new();
    for part in bytes.chunks(step) {
        rewriter.feed(part, &mut out)?;
    }
    assert!(rewriter.pending.is_empty() && rewriter.block.is_none());
    Ok(out)
}

/// The frames of a connection: type, flags, stream, payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut found = Vec::new();
    bytes = bytes.strip_prefix(PREFACE).unwrap();
    while !bytes.is_empty() {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        let payload = bytes[9..9 + length].to_vec();
        found.push((bytes[3], bytes[4], stream, payload));
        bytes = &bytes[9 + length..];
    }
    found
}

fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    frames.iter().for_each(|frame| bytes.extend(frame));
    bytes
}

fn headers(decoder: &mut Decoder<'_>, block: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    decoder
        .decode(block)
        .unwrap()
        .into_iter()
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

#[test]
fn only_the_authority_is_another_however_the_bytes_come() {
    let mut encoder = Encoder::default();
    let calls = [
        b"/pluginregistration.Registration/GetInfo".as_slice(),
        b"/pluginregistration.Registration/NotifyRegistrationStatus",
    ];
    let settings = frame(0x4, 0, 0, &[]);
    let data = frame(0x0, END_STREAM, 1, b"\0\0\0\0\0");
    let first = block(&mut encoder, calls[0]);
    let second = block(&mut encoder, calls[1]);
    // All but its path is in the table of headers by now.
    assert!(second.len() < calls[1].len() + 15, "{}", second.len());
    assert!(first.len() > calls[0].len() + ENCODED.len());
    let sent = connection(&[
        settings.clone(),
        frame(HEADERS, END_HEADERS, 1, &first),
        data.clone(),
        frame(HEADERS, END_HEADERS | END_STREAM, 3, &second),
    ]);
    for step in [1, 2, 7, 24, 33, 1000, sent.len()] {
        let out = rewritten(&sent, step).unwrap();
        let found = frames(&out);
        // A decoder without memory reads each block.
        for (at, stream, flags, path) in [
            (1, 1, END_HEADERS, calls[0]),
            (3, 3, END_HEADERS | END_STREAM, calls[1]),
        ] {
            let (kind, found_flags, found_stream, payload) = &found[at];
            assert_eq!(
                (*kind, *found_flags, *found_stream),
                (HEADERS, flags, stream)
            );
            let mut fresh = Decoder::new();
            fresh.set_max_allowed_table_size(0);
            let path = std::str::from_utf8(path).unwrap();
            let expected = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "localhost"),
                ("content-type", "application/grpc"),
                ("user-agent", "grpc-go/1.72.2"),
                ("te", "trailers"),
            ];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(headers(&mut fresh, payload), expected, "step {step}");
        }
        let others = connection(&[settings.clone(), data.clone()]);
        assert_eq!(
            [&found[0], &found[2]],
            [&frames(&others)[0], &frames(&others)[1]]
        );
    }
}

#[test]
fn blocks_in_several_frames_with_padding_and_priority_are_one() {
    let mut encoder = Encoder::default();
    let bytes = block(&mut encoder, b"/a");
    let (begin, rest) = bytes.split_at(10);
    let (middle, end) = rest.split_at(5);
    let mut padded = vec![3];
    padded.extend([0, 0, 0, 0, 16]);
    padded.extend(begin);
    padded.extend([0; 3]);
    let sent = connection(&[
        frame(HEADERS, PADDED | PRIORITY | END_STREAM, 5, &padded),
        frame(CONTINUATION, 0, 5, middle),
        frame(CONTINUATION, END_HEADERS, 5, end),
    ]);
    let found = frames(&rewritten(&sent, 11).unwrap());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1, END_HEADERS | END_STREAM);
    let found = headers(&mut Decoder::new(), &found[0].3);
    assert!(found.contains(&(":authority".to_owned(), "localhost".to_owned())));
}

#[test]
fn long_values_keep_their_bytes_and_long_blocks_are_cut() {
    for length in [0, 126, 127, 128, 254, 255, 256, 16_383, 40_000] {
        let value = vec![b'v'; length];
        let mut bytes = Vec::new();
        literal(b"x-long", &value, &mut bytes);
        let parts: Vec<_> = bytes.chunks(MAX_FRAME_BYTES).collect();
        let mut sent = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let kind = if at == 0 { HEADERS } else { CONTINUATION };
            let flags = if at + 1 == parts.len() {
                END_HEADERS
            } else {
                0
            };
            sent.push(frame(kind, flags, 1, part));
        }
        let found = frames(&rewritten(&connection(&sent), 999).unwrap());
        assert!(found.iter().all(|frame| frame.3.len() <= MAX_FRAME_BYTES));
        let whole: Vec<u8> = found.into_iter().flat_map(|frame| frame.3).collect();
        let found = Decoder::new().decode(&whole).unwrap();
        assert_eq!(found, [(b"x-long".to_vec(), value)], "{length}");
    }
}

#[test]
fn what_is_not_http_2_ends_the_connection() {
    let headers = |flags, payload: &[u8]| connection(&[frame(HEADERS, flags, 1, payload)]);
    let huge = frame(CONTINUATION, 0, 1, &[0; MAX_FRAME_BYTES]);
    for (sent, error) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), AuthorityError::Preface),
        (
            connection(&[vec![1, 0, 0, 0, 0, 0, 0, 0, 0]]),
            AuthorityError::FrameTooLong { bytes: 65_536 },
        ),
        (
            headers(END_HEADERS | PADDED, &[]),
            AuthorityError::Truncated,
        ),
        (
            headers(END_HEADERS | PADDED, &[9, 0]),
            AuthorityError::Truncated,
        ),
        (
            headers(END_HEADERS | PRIORITY, &[0; 4]),
            AuthorityError::Truncated,
        ),
        (headers(END_HEADERS, &[0xff]), AuthorityError::Compression),
        // An entry of a table that has none.
        (headers(END_HEADERS, &[0xbe]), AuthorityError::Compression),
        (
            connection(&[frame(CONTINUATION, END_HEADERS, 1, &[])]),
            AuthorityError::Interrupted,
        ),
        (
            connection(&[frame(HEADERS, 0, 1, &[]), frame(0x0, 0, 1, &[])]),
            AuthorityError::Interrupted,
        ),
        (
            connection(&[frame(HEADERS, 0, 1, &[]), frame(CONTINUATION, 0, 3, &[])]),
            AuthorityError::Interrupted,
        ),
        (
            connection(&[
                frame(HEADERS, 0, 1, &[]),
                huge.clone(),
                huge.clone(),
                huge.clone(),
                huge.clone(),
                huge,
            ]),
            AuthorityError::BlockTooLong,
        ),
    ] {
        assert_eq!(rewritten(&sent, 4096).unwrap_err(), error);
    }
}
