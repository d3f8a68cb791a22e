//! Makes Rust types and descriptors of the project's own description of the Mesos v1 messages (`proto/`). No `protoc`.

use std::path::PathBuf;

use prost::Message;

fn main() {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    let set = protox::compile(["mesos/v1/agent/agent.proto"], ["proto"]).expect("the files below proto/ are sound");
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    std::fs::write(folder.join("mesos.bin"), set.encode_to_vec()).expect("OUT_DIR can be written to");
    prost_build::Config::new().compile_fds(set).expect("code can be made of the files below proto/");
}
