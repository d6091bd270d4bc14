use super::*;
use flate2::write::GzEncoder;
use flate2::{Compression as Level, Crc, GzBuilder};
use std::io::{BufReader, Write};

const WINDOW: u64 = 128 << 20;

/// Delivers at most so many bytes at a time.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.1.min(out.len());
        self.0.read(&mut out[..count])
    }
}

fn decompress_in_pieces(
    blob: &[u8],
    input: usize,
    output: usize,
    max_window: u64,
) -> Result<Vec<u8>, DecompressError> {
    let source = BufReader::with_capacity(input, Dribble(blob, input));
    let never = || false;
    let mut decoder = Decompressor::new(source, Compression::Sniff, max_window, &never)?;
    let mut out = vec![0; output];
    let mut result = Vec::new();
    loop {
        let count = decoder.read(&mut out)?;
        result.extend_from_slice(&out[..count]);
        if count < out.len() {
            // The end stays the end.
            assert_eq!(decoder.read(&mut out)?, 0);
            return Ok(result);
        }
    }
}

fn decompress(blob: &[u8]) -> Result<Vec<u8>, DecompressError> {
    decompress_in_pieces(blob, 8 << 10, 16 << 10, WINDOW)
}

/// Text that compresses, but not to nothing, and with long-range repeats.
fn sample(bytes: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut out = Vec::with_capacity(bytes + 64);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state.is_multiple_of(5) && out.len() > 4096 {
            let from = (state >> 8) as usize % (out.len() - 64);
            out.extend_from_within(from..from + 64);
        } else {
            writeln!(out, "line {} of {}", state % 1000, state >> 40).unwrap();
        }
    }
    out.truncate(bytes);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A member whose header has every optional field, and its own CRC.
fn gzip_with_all_fields(bytes: &[u8]) -> Vec<u8> {
    let plain = GzBuilder::new()
        .extra(vec![7; 300])
        .filename("layer.tar")
        .comment("a comment")
        .mtime(1)
        .write(Vec::new(), Level::new(6));
    let mut encoder = plain;
    encoder.write_all(bytes).unwrap();
    let mut member = encoder.finish().unwrap();
    const HEADER_CRC: u8 = 2;
    member[3] |= HEADER_CRC;
    let header = 10 + 2 + 300 + b"layer.tar\0".len() + b"a comment\0".len();
    let mut crc = Crc::new();
    crc.update(&member[..header]);
    let low = (crc.sum() as u16).to_le_bytes();
    member.splice(header..header, low);
    member
}

struct ZstdForm {
    checksum: bool,
    content_size: bool,
    window_log: u32,
}

fn zstd_frame(bytes: &[u8], form: &ZstdForm) -> Vec<u8> {
    let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(form.checksum).unwrap();
    encoder.include_contentsize(form.content_size).unwrap();
    if form.window_log > 0 {
        encoder.window_log(form.window_log).unwrap();
    }
    if form.content_size {
        encoder
            .set_pledged_src_size(Some(bytes.len() as u64))
            .unwrap();
    }
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd_frame(
        bytes,
        &ZstdForm {
            checksum: true,
            content_size: false,
            window_log: 0,
        },
    )
}

fn skippable(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x50 | kind, 0x2a, 0x4d, 0x18];
    frame.extend_from_slice(&(content.len() as u32).to_le_bytes());
    frame.extend_from_slice(content);
    frame
}

/// Name, blob, and what it holds.
fn forms() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let text = sample(150_000);
    let (a, b) = text.split_at(70_000);
    let single = ::zstd::bulk::compress(a, 3).unwrap();
    let unsized_frame = |bytes: &[u8]| {
        zstd_frame(
            bytes,
            &ZstdForm {
                checksum: false,
                content_size: false,
                window_log: 0,
            },
        )
    };
    let sized = zstd_frame(
        b,
        &ZstdForm {
            checksum: true,
            content_size: true,
            window_log: 20,
        },
    );
    vec![
        ("nothing", vec![], vec![]),
        ("one byte", vec![0x1f], vec![0x1f]),
        ("plain", text.clone(), text.clone()),
        ("gzip", gzip(&text), text.clone()),
        ("gzip of nothing", gzip(&[]), vec![]),
        ("gzip members", [gzip(a), gzip(b)].concat(), text.clone()),
        (
            "gzip members, empty ones among them",
            [gzip(&[]), gzip(a), gzip(&[]), gzip(&[]), gzip(b), gzip(&[])].concat(),
            text.clone(),
        ),
        (
            "gzip with every header field",
            [gzip_with_all_fields(a), gzip_with_all_fields(b)].concat(),
            text.clone(),
        ),
        ("zstd", zstd(&text), text.clone()),
        ("zstd of nothing", zstd(&[]), vec![]),
        (
            "zstd frames of all kinds",
            [unsized_frame(a), sized].concat(),
            text.clone(),
        ),
        (
            "zstd frames with skippable ones around",
            [
                skippable(0, b"pzstd"),
                single,
                skippable(3, &[]),
                skippable(15, &[0x28; 5000]),
                zstd(b),
                skippable(1, &[9; 64]),
                skippable(2, &[]),
            ]
            .concat(),
            text.clone(),
        ),
        ("zstd of no frame", skippable(0, b"only this"), vec![]),
    ]
}

#[test]
fn every_form_gives_its_bytes_however_they_come_and_go() {
    for (name, blob, text) in forms() {
        for (input, output) in [(1, 4096), (3, 1000), (4096, 7), (64 << 10, 256 << 10)] {
            let result = decompress_in_pieces(&blob, input, output, WINDOW);
            assert!(
                result.as_ref().is_ok_and(|result| *result == text),
                "{name}, {input} to {output}: {:?}",
                result.map(|result| result.len())
            );
        }
    }
}

#[test]
fn output_that_ends_with_the_buffer_ends() {
    for blob in [gzip(&sample(4096)), zstd(&sample(4096)), sample(4096)] {
        for output in [1, 2048, 4096, 4097] {
            let result = decompress_in_pieces(&blob, 100, output, WINDOW).unwrap();
            assert_eq!(result, sample(4096), "{output}");
        }
    }
}

#[test]
fn a_truncated_stream_is_an_error_at_every_byte() {
    let text = sample(3000);
    for (name, blob) in [
        ("gzip", gzip(&text)),
        ("gzip with fields", gzip_with_all_fields(&text)),
        ("zstd", zstd(&text)),
        ("zstd bulk", ::zstd::bulk::compress(&text, 3).unwrap()),
    ] {
        // Shorter than the magic, it is something else.
        for length in 8..blob.len() {
            for input in [1, 4096] {
                let error = decompress_in_pieces(&blob[..length], input, 4096, WINDOW)
                    .expect_err(&format!("{name} of {length} bytes"));
                assert!(
                    matches!(
                        error,
                        DecompressError::GzipTruncated | DecompressError::ZstdTruncated
                    ),
                    "{name} of {length} bytes: {error:?}"
                );
            }
        }
    }
    // In a second member or frame likewise, but between them nothing is missing.
    for blob in [gzip(&text), zstd(&text)] {
        let twice = [blob.as_slice(), &blob].concat();
        for length in blob.len()..twice.len() {
            let result = decompress(&twice[..length]);
            assert_eq!(result.is_ok(), length == blob.len(), "{length}");
        }
    }
    let skipping = [zstd(&text), skippable(0, &[1; 9])].concat();
    for length in skipping.len() - 16..skipping.len() {
        assert!(decompress(&skipping[..length]).is_err(), "{length}");
    }
}

#[test]
fn a_flipped_bit_gives_the_same_bytes_or_an_error() {
    let text = sample(1500);
    for blob in [gzip(&text), gzip_with_all_fields(&text), zstd(&text)] {
        let mut refused = 0;
        for bit in 4 * 8..blob.len() * 8 {
            let mut broken = blob.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            match decompress(&broken) {
                Ok(result) => assert!(result == text, "bit {bit}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > blob.len() * 8 / 2, "{refused}");
    }
}

#[test]
fn bytes_behind_the_end_are_an_error_zeros_too() {
    for blob in [gzip(&sample(500)), zstd(&sample(500))] {
        for tail in [&[0u8; 1][..], &[0; 512], b"garbage that is long enough"] {
            let mut longer = blob.clone();
            longer.extend_from_slice(tail);
            assert!(decompress(&longer).is_err(), "{tail:?}");
        }
    }
}

#[test]
fn a_wrong_length_or_crc_behind_a_member_is_an_error() {
    let blob = gzip(&sample(500));
    for at in 1..=8 {
        let mut broken = blob.clone();
        let place = broken.len() - at;
        broken[place] ^= 0x10;
        assert!(matches!(
            decompress(&broken),
            Err(DecompressError::Gzip { .. })
        ));
    }
}

#[test]
fn a_member_header_that_fails_its_own_crc_is_an_error() {
    let mut blob = gzip_with_all_fields(b"content");
    blob[20] ^= 1;
    assert!(matches!(
        decompress(&blob),
        Err(DecompressError::Gzip { .. })
    ));
}

#[test]
fn thousands_of_small_members_and_frames_are_read() {
    let text = sample(400_000);
    let members: Vec<u8> = text.chunks(100).flat_map(gzip).collect();
    assert!(decompress(&members).unwrap() == text);
    let frames: Vec<u8> = text.chunks(100).flat_map(zstd).collect();
    assert!(decompress(&frames).unwrap() == text);
}

#[test]
fn known_forms_that_no_layer_has_are_named() {
    for (start, name) in [
        (&b"\xfd7zXZ\0and more"[..], "xz"),
        (b"BZh91AY&SY and more", "bzip2"),
    ] {
        match decompress(start) {
            Err(DecompressError::Unsupported { name: told }) => assert_eq!(told, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    // The name of a file in a tar may begin like that.
    assert_eq!(decompress(b"BZh9").unwrap(), b"BZh9");
    assert_eq!(decompress(b"BZh9 is a file").unwrap(), b"BZh9 is a file");
}

#[test]
fn what_is_known_to_be_plain_is_not_sniffed() {
    let blob = gzip(b"content");
    let never = || false;
    let mut decoder =
        Decompressor::new(blob.as_slice(), Compression::Plain, WINDOW, &never).unwrap();
    let mut out = vec![0; blob.len() + 1];
    assert_eq!(decoder.read(&mut out).unwrap(), blob.len());
    assert_eq!(&out[..blob.len()], blob);
    assert_eq!(decoder.format(), Format::Plain);
}

#[test]
fn an_error_of_the_reader_is_told_as_such() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
        }
    }
    let text = sample(200_000);
    for blob in [gzip(&text), zstd(&text), text.clone()] {
        for length in [0, 5, blob.len() / 2] {
            let source = BufReader::new(blob[..length].chain(Broken));
            let never = || false;
            let result = Decompressor::new(source, Compression::Sniff, WINDOW, &never).and_then(
                |mut decoder| {
                    let mut out = vec![0; 1 << 20];
                    decoder.read(&mut out)
                },
            );
            match result {
                Err(DecompressError::Read { source }) => {
                    assert_eq!(source.kind(), std::io::ErrorKind::ConnectionReset);
                }
                other => panic!("{length}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_window_beyond_the_limit_is_refused_before_it_is_allocated() {
    let text = sample(100_000);
    let wide = zstd_frame(
        &text,
        &ZstdForm {
            checksum: true,
            content_size: false,
            window_log: 25,
        },
    );
    // 32 MiB: one such decoder at a time, but allowed.
    assert!(decompress(&wide).unwrap() == text);
    match decompress_in_pieces(&wide, 4096, 4096, 8 << 20) {
        Err(DecompressError::ZstdWindow { window, limit }) => {
            assert_eq!((window, limit), (32 << 20, 8 << 20));
        }
        other => panic!("{:?}", other.map(|result| result.len())),
    }
    // A window of 3.75 TiB, and a content of as much in a single segment.
    let monster = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0, 0, 0, 0];
    assert!(matches!(
        decompress(&monster),
        Err(DecompressError::ZstdWindow { window, .. }) if window == 15 << 38
    ));
    let mut segment = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    segment.extend_from_slice(&u64::MAX.to_le_bytes());
    segment.extend_from_slice(&[0; 8]);
    assert!(matches!(
        decompress(&segment),
        Err(DecompressError::ZstdWindow {
            window: u64::MAX,
            ..
        })
    ));
}

#[test]
fn frames_may_grow_and_shrink_in_what_they_ask_for() {
    let text = sample(100_000);
    let mut blob = Vec::new();
    let mut expected = Vec::new();
    for window_log in [10, 20, 17, 24, 11, 26, 25, 22] {
        blob.extend(zstd_frame(
            &text,
            &ZstdForm {
                checksum: true,
                content_size: window_log % 2 == 0,
                window_log,
            },
        ));
        expected.extend_from_slice(&text);
    }
    assert!(decompress(&blob).unwrap() == expected);
}

#[test]
fn a_frame_that_needs_a_dictionary_or_has_a_reserved_bit_is_an_error() {
    let dictionary = sample(5000);
    let mut encoder = ::zstd::stream::Encoder::with_dictionary(Vec::new(), 3, &dictionary).unwrap();
    encoder.write_all(&sample(3000)).unwrap();
    let mut blob = encoder.finish().unwrap();
    // A raw dictionary has no id, so the frame does not say that it needs one.
    assert!(decompress(&blob).is_err());
    blob[4] |= 0b1000;
    assert!(matches!(
        decompress(&blob),
        Err(DecompressError::ZstdHeader)
    ));
}

#[test]
fn waiting_for_memory_ends_when_cancelled() {
    let held = window::WINDOWS.acquire(64 << 20, &|| false).unwrap();
    let wide = zstd_frame(
        &sample(1000),
        &ZstdForm {
            checksum: false,
            content_size: false,
            window_log: 25,
        },
    );
    let cancelled = || true;
    let mut decoder =
        Decompressor::new(wide.as_slice(), Compression::Sniff, WINDOW, &cancelled).unwrap();
    assert!(matches!(
        decoder.read(&mut [0; 10]),
        Err(DecompressError::Cancelled)
    ));
    drop(held);
}

#[cfg(feature = "isal")]
#[test]
fn both_gzip_decoders_agree() {
    use super::gzip::GzipReader as Portable;
    let text = sample(2_000_000);
    let mut blobs: Vec<Vec<u8>> = (0..=9)
        .map(|level| {
            let mut encoder = GzEncoder::new(Vec::new(), Level::new(level));
            encoder.write_all(&text).unwrap();
            encoder.finish().unwrap()
        })
        .collect();
    blobs.push(text.chunks(3000).flat_map(gzip).collect());
    blobs.push([gzip(&text), vec![0; 9]].concat());
    blobs.push(gzip(&text)[..100_000].to_vec());
    for (place, blob) in blobs.iter().enumerate() {
        for output in [1000, 256 << 10] {
            let mut portable = Portable::new(blob.as_slice());
            let mut out = vec![0; output];
            let mut bytes = Vec::new();
            let expected = loop {
                match portable.read(&mut out) {
                    Ok(count) => {
                        bytes.extend_from_slice(&out[..count]);
                        if count < output {
                            break Some(bytes);
                        }
                    }
                    Err(_) => break None,
                }
            };
            let result = decompress_in_pieces(blob, 100_000, output, WINDOW).ok();
            assert!(result == expected, "blob {place}, {output}");
        }
    }
}
