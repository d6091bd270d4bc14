//! Story: what a layer asks of those below it is settled in the same memory,
//! however much it is. The only test of its file, for it measures the process
//! that it runs in.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::image;
use aufs_csi::image::platform::PlatformChoice;
use aufs_csi::image::reference::Source;
use aufs_csi::layer::seal::Format;
use aufs_csi::layer::tree::Ownership;
use aufs_csi::stage::{StageOptions, Stager};
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use support::node::{TestNode, chain};
use support::oci_layout::{OciLayout, native_architecture};
use support::tarball::{BLOCK, Tar};

/// Peak of the whole process, kB, with this test's own data.
const MAX_PEAK_KB: u64 = 64 << 10;
/// Files of the base, of two names each.
const FILES: usize = 30_000;
/// Links of the layer on top to each of them.
const LINKS: usize = 10;

fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A layer in the making that is never whole in memory.
struct Packer {
    encoder: GzEncoder<Vec<u8>>,
    hash: Sha256,
}

impl Packer {
    fn new() -> Self {
        Packer {
            encoder: GzEncoder::new(Vec::new(), flate2::Compression::fast()),
            hash: Sha256::new(),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.encoder.write_all(bytes).unwrap();
    }

    fn add(&mut self, entry: Tar) {
        self.push(&entry.without_trailer().build());
    }

    /// The descriptor and the diffID.
    fn finish(mut self, layout: &OciLayout) -> (Value, String) {
        self.push(&[0; 2 * BLOCK]);
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let blob = layout.blob(media_type, &self.encoder.finish().unwrap());
        let hex: String = self
            .hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        (blob.descriptor(), format!("sha256:{hex}"))
    }
}

fn base_name(number: usize) -> String {
    format!(
        "base/directory-{}/a-file-of-the-base-{number}",
        number / 100
    )
}

/// A base, and on top of it nothing but hard links into it.
fn links_image(node: &TestNode) -> Source {
    let mut layout = OciLayout::new(node.path().join("links"));
    let mut base = Packer::new();
    let mut upper = Packer::new();
    for number in 0..FILES {
        base.add(Tar::new().file(base_name(number), "content"));
        base.add(Tar::new().hardlink(format!("second/{number}"), base_name(number)));
    }
    for link in 0..LINKS {
        for number in 0..FILES {
            let name = format!("links/directory-{}/{link}-{number}", number / 100);
            // By way of each other, too.
            let target = match link {
                0 => base_name(number),
                1 => format!("links/directory-{}/0-{number}", number / 100),
                _ => format!("second/{number}"),
            };
            upper.add(Tar::new().hardlink(name, target));
        }
    }
    let layers = [base.finish(&layout), upper.finish(&layout)];
    let (descriptors, diff_ids): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
    let config = layout.json_blob(
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "architecture": native_architecture(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }),
    );
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = layout.json_blob(
        media_type,
        &json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": config.descriptor(), "layers": descriptors,
        }),
    );
    layout.tag("latest", manifest.descriptor());
    format!("oci:{}:latest", layout.path().display())
        .parse()
        .unwrap()
}

#[test]
fn three_hundred_thousand_links_into_a_base_stay_below_64_mib() {
    let node = TestNode::new();
    let source = links_image(&node);
    let before = peak_kb();
    let stager = Stager {
        store: node.volumes.store(),
        options: StageOptions::default(),
        ownership: Ownership::Real,
        // So that the two are made one as well.
        max_branches: 1,
    };
    let opened = image::open(&source).unwrap();
    let name = source.to_string();
    let staged = stager
        .stage(&*opened, &name, &PlatformChoice::Host, Format::Overlay, &())
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    for branch in node.volumes.store().branches().unwrap() {
        let dir = node.volumes.store().branch_dir(&branch.id);
        let names = match branch.diff_id {
            // The base alone.
            Some(_) if branch.edits == 0 => 2,
            _ => 2 + LINKS as u64,
        };
        let file = std::fs::metadata(dir.join(base_name(FILES - 1))).unwrap();
        assert_eq!(file.nlink(), names, "{}", branch.key);
    }
    assert_eq!(staged.form.branches.len(), 1);
    let peak = peak_kb();
    println!("peak {peak} kB, {before} kB before");
    assert!(peak < MAX_PEAK_KB, "peak {peak} kB, {before} kB before");
}
