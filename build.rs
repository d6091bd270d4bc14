//! Compiles the protocol definitions, without `protoc`.

use std::error::Error;

/// Where the definitions are.
const PROTO_DIR: &str = "proto";
/// Holds a pod's credentials, so its `Debug` is written by hand.
const WITH_SECRETS: &str = "csi.v1.NodePublishVolumeRequest";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_DIR}");
    let descriptors = protox::compile(["csi.proto", "pluginregistration.proto"], [PROTO_DIR])?;
    tonic_prost_build::configure()
        .build_server(true)
        // For the tests and `make try`, which talk to the plugin as kubelet does.
        .build_client(true)
        .skip_debug([WITH_SECRETS])
        .compile_fds(descriptors)?;
    Ok(())
}
