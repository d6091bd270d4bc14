//! A power cut while images are staged. `make e2e-aufs` runs this in a machine
//! that is stopped dead in the middle of `AUFS_CSI_POWER=write`, and then, on
//! the same disk, as `AUFS_CSI_POWER=check`.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::image::reference::Source;
use aufs_csi::pull::PullPolicy;
use aufs_csi::stage::StageOptions;
use aufs_csi::volume::{Owner, PublishRequest, VolumeOptions, Volumes};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::entry::{Layer, dir, file, hardlink, symlink, whiteout};
use support::model::flatten;
use support::node::{chain, union};
use support::oci_layout::OciLayout;
use support::property::drop_caches;
use support::tarball::{Compression, tars};
use support::tree::{Compared, assert_same, read};

fn number(variable: &str) -> u64 {
    let value = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set"));
    value
        .parse()
        .unwrap_or_else(|_| panic!("{variable} is {value}"))
}

fn base() -> PathBuf {
    let dir = std::env::var_os("AUFS_CSI_POWER_DIR").expect("AUFS_CSI_POWER_DIR is set");
    PathBuf::from(dir)
}

fn open() -> Volumes {
    let options = VolumeOptions {
        root: base().join("store"),
        run_dir: PathBuf::from("/dev/shm/power-run"),
        rootless: false,
        max_branches: None,
        stage: StageOptions::default(),
        host_proc: "/proc".into(),
        pull: Default::default(),
        collect: Default::default(),
    };
    Volumes::open(options, Arc::new(LinuxHost)).unwrap_or_else(|e| panic!("{}", chain(&e)))
}

/// Bytes that tell where they belong, from a few to some hundred thousand.
fn content(image: u64, layer: u64, file: u64) -> Vec<u8> {
    let mut state = (image * 131 + layer * 17 + file).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let size = match next() % 8 {
        0 => 200_000 + next() % 100_000,
        1 | 2 => 20_000 + next() % 20_000,
        _ => 1 + next() % 5_000,
    };
    let mut bytes = format!("image {image} layer {layer} file {file}\n").into_bytes();
    bytes.extend((0..size).map(|_| (next() >> 32) as u8));
    bytes
}

/// Image after image: three layers of its own above one that two share, so
/// that what is flushed stands on what another call staged.
fn image(number: u64) -> Vec<Layer> {
    let shared = number / 2;
    let files = |layer: u64, image: u64| -> Layer {
        let mut entries = vec![dir(format!("l{layer}")).mode(0o750)];
        for name in 0..8 {
            let path = format!("l{layer}/f{name}");
            entries.push(
                file(path, content(image, layer, name))
                    .mode(0o640)
                    .owner(7, 8),
            );
        }
        entries
    };
    let mut layers = vec![
        files(0, 1_000_000 + shared),
        files(1, number),
        files(2, number),
        files(3, number),
    ];
    layers[1].push(whiteout("l0/f0"));
    layers[2].extend([hardlink("linked", "l0/f1"), symlink("s", "l1")]);
    // Through the link of the layer below, and over a file by a directory.
    layers[3].extend([file("s/through", b"through"), dir("l0/f2"), whiteout("l1")]);
    layers[3].push(file("l1/anew", content(number, 3, 99)));
    layers
}

/// Kept in memory, for the machine's disk is the store's alone.
fn source(number: u64) -> Source {
    let dir = Path::new("/dev/shm/power-images").join(number.to_string());
    let _ = fs::remove_dir_all(&dir);
    OciLayout::new(&dir).image("latest", &tars(&image(number)), Compression::None);
    format!("oci:{}:latest", dir.display()).parse().unwrap()
}

fn forget(number: u64) {
    let dir = Path::new("/dev/shm/power-images").join(number.to_string());
    fs::remove_dir_all(dir).unwrap();
}

fn request(number: u64, source: &Source) -> PublishRequest {
    PublishRequest {
        union: union(),
        owner: Owner::Plugin,
        ..PublishRequest::new(
            format!("volume-{number}"),
            source.clone(),
            format!("/run/target-{number}"),
        )
    }
}

/// Stages until the power is cut. Of three images one is only published, which
/// flushes nothing, and one volume in two stays.
fn write() {
    let volumes = open();
    for number in number("AUFS_CSI_POWER_FIRST").. {
        let source = source(number);
        if number % 3 == 0 {
            let request = request(number, &source);
            volumes
                .publish(&request, &())
                .unwrap_or_else(|e| panic!("{}", chain(&e)));
            fs::write(request.target.join("own"), "of the pod").unwrap();
            if number % 2 == 0 {
                volumes.unpublish_named(&request.volume_id).unwrap();
            }
            println!("published {number}");
        } else {
            volumes
                .stage(&source, None, union(), PullPolicy::Always, &())
                .unwrap_or_else(|e| panic!("{}", chain(&e)));
            println!("flushed {number}");
        }
        forget(number);
    }
}

/// Everything that the store has, or gets now, is right; what was said to be
/// flushed is there without being fetched.
fn check() {
    let flushed = number("AUFS_CSI_POWER_FLUSHED");
    let volumes = open();
    let branches = volumes.layers().unwrap();
    assert!(
        branches.iter().all(|branch| branch.flushed),
        "a layer that was not flushed is trusted in another boot"
    );
    let left = fs::read_dir(base().join("store/ingest")).unwrap().count();
    assert_eq!(left, 0, "what was being staged is still there");
    println!("{} branches outlived the power cut", branches.len());
    let listed = volumes.list().unwrap().into_iter();
    let mut kept: BTreeSet<String> = listed.map(|volume| volume.volume_id).collect();
    let mut returned = 0;
    let (mut found, mut anew) = (0, 0);
    // Not all of a long past: those before the previous cut were checked then.
    for number in flushed.saturating_sub(40).max(1)..=flushed + 3 {
        let source = source(number);
        let staged = volumes
            .stage(&source, None, union(), PullPolicy::Always, &())
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        if number <= flushed && number % 3 != 0 {
            assert_eq!(staged.fetched, 0, "image {number} was flushed and is lost");
        }
        match staged.fetched {
            0 => found += 1,
            _ => anew += 1,
        }
        let request = request(number, &source);
        // A volume of before the cut comes back, with what its pod had written as
        // far as that was on disk.
        let is_kept = kept.remove(&request.volume_id);
        returned += u32::from(is_kept);
        let published = volumes
            .publish(&request, &())
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert!(!published.existed);
        let expected = flatten(&image(number)).unwrap();
        for _ in 0..2 {
            let mut tree = read(&request.target).unwrap();
            let mut compared = Compared::ALL;
            if is_kept && tree.get(b"own").is_some() {
                tree.remove(b"own");
                // Its time.
                compared.root = false;
            }
            assert_same(&format!("image {number}"), &expected, &tree, compared);
            drop_caches();
        }
        volumes.unpublish_named(&request.volume_id).unwrap();
        forget(number);
    }
    println!("{found} images found and {anew} staged anew, all right");
    println!("{returned} volumes came back");
    // Those of a longer past go as they are.
    for volume in volumes.list().unwrap() {
        volumes
            .unpublish_named(&volume.volume_id)
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
    }
    let left = fs::read_dir(base().join("store/volumes")).unwrap().count();
    assert_eq!(left, 0, "something of a volume is left");
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    match std::env::var("AUFS_CSI_POWER").as_deref() {
        Ok("write") => write(),
        Ok("check") => check(),
        _ => panic!("set AUFS_CSI_POWER to write or check, as `make e2e-aufs` does"),
    }
}
