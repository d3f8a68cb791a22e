//! The embedded `pod-init`, run from a sealed memfd: no container can overwrite it (CVE-2019-5736), and its pages are
//! shared by all pods of the host.

use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::LaunchError;

static POD_INIT: &[u8] = include_bytes!(env!("AGENTD_POD_INIT"));

/// A sealed copy of the binary.
pub fn sealed_copy() -> Result<OwnedFd, LaunchError> {
    let memfd = memfd_create("pod-init", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|e| LaunchError::System { what: "memfd_create for pod-init", source: e.into() })?;
    let mut file = std::fs::File::from(memfd);
    file.write_all(POD_INIT).map_err(LaunchError::system("copy pod-init into its memfd"))?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(|e| LaunchError::System { what: "seal pod-init", source: e.into() })?;
    Ok(file.into())
}

/// Bytes in a memfd, for a plan.
pub fn memory_file(name: &str, bytes: &[u8]) -> Result<OwnedFd, LaunchError> {
    let memfd = memfd_create(name, MemfdFlags::CLOEXEC)
        .map_err(|e| LaunchError::System { what: "memfd_create", source: e.into() })?;
    let mut file = std::fs::File::from(memfd);
    file.write_all(bytes).map_err(LaunchError::system("write a memfd"))?;
    Ok(file.into())
}
