//! Images as real tools write them: made with `umoci`, converted with `skopeo`,
//! packed with GNU tar, and read by us to the same documents and layers.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use aufs_csi::image::digest::{Digest, HashingReader};
use aufs_csi::image::platform::{Platform, PlatformChoice};
use aufs_csi::image::{self, Compression, Image, ImageSource};
use std::io::Read;
use std::path::Path;
use tempfile::TempDir;

/// Runs a tool in `directory` and gives what it prints.
fn run(directory: &Path, program: &str, arguments: &[&str]) -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test is about what other programs write"
    )]
    let mut command = std::process::Command::new(program);
    let output = command
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| {
            panic!("this test needs {program}; install it and run the test again: {error}")
        });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn skopeo_copy(directory: &Path, options: &[&str], from: &str, to: &str) {
    let arguments = ["--insecure-policy", "copy", "--quiet"];
    run(
        directory,
        "skopeo",
        &[&arguments, options, &[from, to]].concat(),
    );
}

/// A layout `layout` with the image `v1` of three layers, two of them equal.
fn made_by_umoci() -> TempDir {
    let top = tempfile::tempdir().unwrap();
    let at = top.path();
    run(at, "umoci", &["init", "--layout", "layout"]);
    run(at, "umoci", &["new", "--image", "layout:v1"]);
    for layer in ["one", "two", "one"] {
        let tree = at.join(layer);
        std::fs::create_dir_all(&tree).unwrap();
        // Enough that compression makes a difference.
        std::fs::write(tree.join("file"), layer.repeat(10_000)).unwrap();
        let tar = format!("{layer}.tar");
        run(at, "tar", &["--mtime=@0", "-cf", &tar, "-C", layer, "."]);
        run(
            at,
            "umoci",
            &["raw", "add-layer", "--image", "layout:v1", &tar],
        );
    }
    top
}

fn open(top: &TempDir, prefix: &str, rest: &str) -> Box<dyn ImageSource> {
    let text = format!("{prefix}:{}/{rest}", top.path().display());
    image::open(&text.parse().unwrap()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Reads the image and checks both digests and the size of every layer.
fn verified(source: &dyn ImageSource) -> Image {
    let image = source.image(&PlatformChoice::Host).unwrap();
    assert_eq!(Digest::of(&image.config), image.config_digest);
    for (index, layer) in image.layers.iter().enumerate() {
        let mut blob = Vec::new();
        let mut reader = HashingReader::new(source.open_layer(&image, index).unwrap());
        reader.read_to_end(&mut blob).unwrap();
        assert_eq!(layer.size, Some(reader.length()));
        if let Some(digest) = layer.digest {
            assert_eq!(reader.finish(), digest);
        }
        let plain = match layer.compression {
            Compression::Gzip => Digest::of_reader(flate2::read::GzDecoder::new(&blob[..])),
            Compression::Zstd => Digest::of_reader(zstd::Decoder::new(&blob[..]).unwrap()),
            Compression::None | Compression::Sniff => Ok(Digest::of(&blob)),
        };
        assert_eq!(plain.unwrap(), layer.diff_id);
    }
    image
}

fn compressions(image: &Image) -> Vec<Compression> {
    image.layers.iter().map(|layer| layer.compression).collect()
}

#[test]
fn what_umoci_writes_is_what_skopeo_says() {
    let top = made_by_umoci();
    let image = verified(&*open(&top, "oci", "layout:v1"));
    assert_eq!(compressions(&image), [Compression::Gzip; 3]);
    assert_eq!(image.platform, Platform::host());
    let digest = run(
        top.path(),
        "skopeo",
        &["inspect", "--format", "{{.Digest}}", "oci:layout:v1"],
    );
    assert_eq!(image.manifest_digest.to_string(), digest.trim());
    let config = run(
        top.path(),
        "skopeo",
        &["inspect", "--raw", "--config", "oci:layout:v1"],
    );
    assert_eq!(String::from_utf8(image.config).unwrap(), config);
}

#[test]
fn every_form_that_skopeo_writes_is_the_same_image() {
    let top = made_by_umoci();
    let at = top.path();
    let original = verified(&*open(&top, "oci", "layout"));
    let diff_ids =
        |image: &Image| -> Vec<Digest> { image.layers.iter().map(|layer| layer.diff_id).collect() };

    skopeo_copy(at, &[], "oci:layout:v1", "oci-archive:a.tar:reg.io/app:2");
    for rest in ["a.tar", "a.tar:reg.io/app:2"] {
        let image = verified(&*open(&top, "oci-archive", rest));
        assert_eq!(image.manifest_digest, original.manifest_digest);
        assert_eq!(image.layers, original.layers);
    }

    // Equal layers become one file and symbolic links to it.
    skopeo_copy(at, &[], "oci:layout:v1", "docker-archive:d.tar:app:2");
    for rest in [
        "d.tar",
        "d.tar:app:2",
        "d.tar:docker.io/library/app:2",
        "d.tar:@0",
    ] {
        let image = verified(&*open(&top, "docker-archive", rest));
        assert_eq!(image.config_digest, original.config_digest);
        assert_eq!(diff_ids(&image), diff_ids(&original));
        assert_eq!(compressions(&image), [Compression::Sniff; 3]);
    }

    let zstd = ["--dest-compress", "--dest-compress-format", "zstd"];
    skopeo_copy(at, &zstd, "docker-archive:d.tar:app:2", "oci:zstd:v1");
    let image = verified(&*open(&top, "oci", "zstd:v1"));
    assert_eq!(compressions(&image), [Compression::Zstd; 3]);
    assert_eq!(diff_ids(&image), diff_ids(&original));
}

#[test]
fn the_old_form_inside_skopeos_archive_is_read_too() {
    let top = made_by_umoci();
    let at = top.path();
    let original = verified(&*open(&top, "oci", "layout"));
    skopeo_copy(at, &[], "oci:layout:v1", "docker-archive:d.tar:app:2");
    // It writes `repositories` and the chain of parents as well.
    std::fs::create_dir(at.join("unpacked")).unwrap();
    run(at, "tar", &["-xf", "d.tar", "-C", "unpacked"]);
    std::fs::remove_file(at.join("unpacked/manifest.json")).unwrap();
    run(at, "tar", &["-cf", "d.tar", "-C", "unpacked", "."]);
    let image = verified(&*open(&top, "docker-archive", "d.tar:app:2"));
    assert_eq!(compressions(&image), [Compression::None; 3]);
    for (layer, expected) in image.layers.iter().zip(&original.layers) {
        assert_eq!(layer.diff_id, expected.diff_id);
    }
    assert_eq!(image.layers.len(), original.layers.len());
}

#[test]
fn every_format_of_gnu_tar_is_an_archive() {
    let top = made_by_umoci();
    let at = top.path();
    let original = verified(&*open(&top, "oci", "layout"));
    for format in ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"] {
        let option = format!("--format={format}");
        run(
            at,
            "tar",
            &[&option, "-cf", "packed.tar", "-C", "layout", "."],
        );
        let image = verified(&*open(&top, "oci-archive", "packed.tar"));
        assert_eq!(image.layers, original.layers, "{format}");
    }
    // Members behind names that need an extension header are found as well.
    let long = "n".repeat(200);
    std::fs::create_dir_all(at.join("layout/a").join(&long)).unwrap();
    std::fs::write(at.join("layout/a").join(&long).join("x"), "x").unwrap();
    for format in ["gnu", "pax"] {
        let option = format!("--format={format}");
        run(
            at,
            "tar",
            &[
                &option,
                "--sort=name",
                "-cf",
                "packed.tar",
                "-C",
                "layout",
                ".",
            ],
        );
        let image = verified(&*open(&top, "oci-archive", "packed.tar"));
        assert_eq!(image.layers, original.layers, "{format}");
    }
    run(at, "gzip", &["-k", "packed.tar"]);
    let text = format!("oci-archive:{}/packed.tar.gz", at.display());
    let error = image::open(&text.parse().unwrap()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "it is compressed with gzip; decompress it first");
}

#[test]
fn several_tags_of_umoci_are_told_apart() {
    let top = made_by_umoci();
    let at = top.path();
    run(at, "umoci", &["tag", "--image", "layout:v1", "same"]);
    let image = verified(&*open(&top, "oci", "layout"));
    assert_eq!(
        verified(&*open(&top, "oci", "layout:same")).layers,
        image.layers
    );
    run(
        at,
        "umoci",
        &[
            "config",
            "--image",
            "layout:v1",
            "--tag",
            "other",
            "--config.env",
            "A=b",
        ],
    );
    let error = open(&top, "oci", "layout")
        .image(&PlatformChoice::Host)
        .unwrap_err();
    let text = error.to_string();
    for tag in ["v1", "same", "other"] {
        assert!(text.contains(tag), "{text}");
    }
    let other = verified(&*open(&top, "oci", "layout:other"));
    assert_eq!(other.layers, image.layers);
    assert_ne!(other.config_digest, image.config_digest);
}
