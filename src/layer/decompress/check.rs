//! What must hold for any bytes that are decompressed, as a fuzz target and the
//! tests have it.

use super::{Compression, Decompressor, Format};
use std::io::{BufReader, Read, Write};

/// The largest window of a zstd frame here, bytes.
const MAX_WINDOW: u64 = 1 << 20;
/// So much of what comes out is looked at, bytes.
const MAX_OUTPUT: usize = 1 << 20;

/// What came out, and why it ended early.
struct Outcome {
    format: Option<Format>,
    bytes: Vec<u8>,
    error: Option<String>,
    /// The output was cut off at its bound.
    cut: bool,
}

/// Decompresses with an input buffer and an output buffer of these sizes.
fn decompress(blob: &[u8], input: usize, output: usize) -> Outcome {
    let mut outcome = Outcome {
        format: None,
        bytes: Vec::new(),
        error: None,
        cut: false,
    };
    let source = BufReader::with_capacity(input, blob);
    let never = || false;
    let mut decoder = match Decompressor::new(source, Compression::Sniff, MAX_WINDOW, &never) {
        Ok(decoder) => decoder,
        Err(error) => {
            outcome.error = Some(error.to_string());
            return outcome;
        }
    };
    outcome.format = Some(decoder.format());
    let mut out = vec![0; output];
    loop {
        match decoder.read(&mut out) {
            Ok(count) => {
                outcome.bytes.extend_from_slice(&out[..count]);
                if count < out.len() {
                    assert!(
                        matches!(decoder.read(&mut out), Ok(0)),
                        "the end is not the end"
                    );
                    return outcome;
                }
                if outcome.bytes.len() >= MAX_OUTPUT {
                    outcome.cut = true;
                    return outcome;
                }
            }
            Err(error) => {
                outcome.error = Some(error.to_string());
                return outcome;
            }
        }
    }
}

/// Checks that any bytes at all are decompressed
///
/// * without a panic, and to an end,
/// * to the same bytes or the same error however input and output are cut,
/// * unchanged, if they have no known form,
/// * if without an error, to what an independent reader makes of them.
///
/// # Panics
/// If one of these does not hold.
pub fn check(blob: &[u8]) {
    let whole = decompress(blob, blob.len().max(16), 64 << 10);
    for (input, output) in [(1, 64 << 10), (7, 100), (4096, 1009)] {
        let cut = decompress(blob, input, output);
        assert_eq!(cut.format, whole.format);
        if whole.cut || cut.cut {
            let common = whole.bytes.len().min(cut.bytes.len());
            assert!(whole.bytes[..common] == cut.bytes[..common]);
            continue;
        }
        assert_eq!(cut.error, whole.error);
        // What was decoded in the same call as an error is lost with it.
        assert!(cut.error.is_some() || cut.bytes == whole.bytes);
    }
    if whole.error.is_some() || whole.cut {
        return;
    }
    let mut expected = Vec::new();
    let peer = match whole.format {
        Some(Format::Gzip) => flate2::bufread::MultiGzDecoder::new(blob).read_to_end(&mut expected),
        Some(Format::Zstd) => zstd::stream::read::Decoder::with_buffer(blob)
            .and_then(|mut decoder| decoder.read_to_end(&mut expected)),
        Some(Format::Plain) | None => {
            expected.extend_from_slice(blob);
            Ok(blob.len())
        }
    };
    // ISA-L does not look at the reserved flags in the header of a member.
    let lenient = cfg!(feature = "isal")
        && whole.format == Some(Format::Gzip)
        && peer
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::InvalidInput);
    assert!(
        lenient || peer.is_ok() && expected == whole.bytes,
        "{:?} to {} bytes, another reader: {peer:?}, {} bytes; it begins {}",
        whole.format,
        whole.bytes.len(),
        expected.len(),
        blob[..blob.len().min(40)].escape_ascii()
    );
}

/// Blobs of every form, to start mutations from.
///
/// # Panics
/// If an encoder fails.
#[expect(clippy::expect_used, reason = "the encoders write into memory")]
pub fn seeds() -> Vec<Vec<u8>> {
    let text = b"a tar has much that repeats, a tar has zeros\0\0\0\0".repeat(40);
    let gzip = |bytes: &[u8]| {
        let builder = flate2::GzBuilder::new().filename("layer.tar").comment("c");
        let mut encoder = builder.write(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(bytes).expect("write into memory");
        encoder.finish().expect("write into memory")
    };
    let zstd = |bytes: &[u8], checksum: bool, size: bool| {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).expect("make an encoder");
        encoder.include_checksum(checksum).expect("set a flag");
        encoder.include_contentsize(size).expect("set a flag");
        encoder.write_all(bytes).expect("write into memory");
        encoder.finish().expect("write into memory")
    };
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
    vec![
        text.clone(),
        gzip(&text),
        gzip(b""),
        [gzip(b"one"), gzip(&text)].concat(),
        zstd(&text, true, false),
        zstd(b"short", false, false),
        zstd::bulk::compress(&text, 3).expect("compress"),
        [skippable.clone(), zstd(&text, true, true), skippable].concat(),
        [zstd(b"one", true, true), zstd(b"two", true, true)].concat(),
        b"BZh91AY&SY".to_vec(),
    ]
}
