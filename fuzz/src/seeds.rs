//! Writes the seeds of every target to `corpus/<target>/`, next to this crate's manifest.

use aufs_csi::host::mountinfo;
use aufs_csi::image::{fuzz, manifest, reference, registry};
use aufs_csi::layer::{archive, decompress, index, seal};
use aufs_csi::volume::attributes;
use std::path::Path;

fn main() -> std::io::Result<()> {
    write("archive", &archive::forge::seeds())?;
    write("manifest", &manifest::seeds())?;
    write("image_archive", &fuzz::image_archive::seeds())?;
    write("docker_manifest", &fuzz::docker_manifest::seeds())?;
    write("docker_legacy", &fuzz::docker_legacy::seeds())?;
    write("docker_config", &fuzz::docker_config::seeds())?;
    write("oci_layout", &fuzz::oci_layout::seeds())?;
    write("reference", &reference::seeds())?;
    write("challenge", &registry::fuzz::seeds())?;
    write("mountinfo", &mountinfo::seeds())?;
    write("attributes", &attributes::seeds())?;
    write("index", &index::check::seeds())?;
    write("edits", &seal::check::seeds())?;
    write("decompress", &decompress::check::seeds())
}

fn write(target: &str, seeds: &[Vec<u8>]) -> std::io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    std::fs::create_dir_all(&directory)?;
    for (index, seed) in seeds.iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{index:02}")), seed)?;
    }
    Ok(())
}
