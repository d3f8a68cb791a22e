//! Says which compiled programs are embedded: those of `prebuilt`, or those in the folder that `AGENTD_EBPF_OBJECTS` names.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=AGENTD_EBPF_OBJECTS");
    let prebuilt = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("prebuilt");
    let folder = std::env::var_os("AGENTD_EBPF_OBJECTS").map_or(prebuilt, PathBuf::from);
    for name in ["observe", "profile"] {
        let object = folder.join(format!("{name}.o"));
        println!("cargo::rerun-if-changed={}", object.display());
        println!("cargo::rustc-env=AGENTD_EBPF_{}={}", name.to_uppercase(), object.display());
    }
}
