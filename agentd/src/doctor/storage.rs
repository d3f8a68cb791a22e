//! Disks: where the folders are, and how disk limits can be kept.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::io::Errno;

use super::clone::last_errno;
use super::{Check, existing, program};
use crate::config::{Config, DiskEnforcement};

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let quota = project_quota(&config.paths.state);
    let loops = loop_devices();
    let wanted = config.pods.disk_enforcement;
    let mut checks = vec![state(&config.paths.state), run(&config.paths.run)];
    checks.push(match &quota {
        Ok(()) => Check::ok("disk/quota", "project quota is on"),
        Err(found) => {
            let cure =
                "to have it: ext4 made with -O quota,project and mounted with prjquota, or xfs mounted with prjquota";
            match wanted {
                DiskEnforcement::Quota => {
                    Check::fail("disk/quota", found, "disk limits: pods.disk_enforcement is quota", cure)
                }
                // Something else keeps the limits.
                _ => Check::ok("disk/quota", format!("{found}; {cure}")),
            }
        }
    });
    checks.push(match &loops {
        Ok(()) => Check::ok("disk/loop", "loop devices and mkfs.ext4"),
        Err((found, cure)) => match (wanted, &quota) {
            (DiskEnforcement::Loop, _) => {
                Check::fail("disk/loop", found, "disk limits: pods.disk_enforcement is loop", *cure)
            }
            (DiskEnforcement::Auto, Err(_)) => Check::warn(
                "disk/loop",
                found,
                "hard disk limits: without quota or loop devices use is measured, and can overshoot before the kill",
                *cure,
            ),
            _ => Check::ok("disk/loop", format!("{found}; not needed")),
        },
    });
    checks
}

/// Names of file systems by their magic numbers.
fn name(magic: u64) -> &'static str {
    match magic {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x8584_58F6 => "ramfs",
        0x794C_7630 => "overlay",
        0x6969 => "nfs",
        0x2FC1_2FC1 => "zfs",
        0xF2F5_2010 => "f2fs",
        0x6573_5546 => "fuse",
        0xFF53_4D42 | 0xFE53_4D42 => "cifs",
        0x7371_7368 => "squashfs",
        0xE0F5_E1E2 => "erofs",
        0xCA45_1A4E => "bcachefs",
        _ => "unknown",
    }
}

/// Kind of a file system, and what of it is available and there in all, MiB.
fn file_system(path: &Path) -> Result<(&'static str, u64, u64), Errno> {
    let statfs = rustix::fs::statfs(path)?;
    // The kernel's numbers have 32 bits; the type of the field differs between architectures.
    let magic = statfs.f_type as u64 & 0xFFFF_FFFF;
    let mib = |blocks: u64| blocks.saturating_mul(statfs.f_bsize as u64) >> 20;
    Ok((name(magic), mib(statfs.f_bavail as u64), mib(statfs.f_blocks as u64)))
}

fn state(path: &Path) -> Check {
    let place = existing(path);
    match file_system(place) {
        Ok((kind, free, total)) => {
            let found = format!("{} on {kind}, {free} of {total} MiB free", path.display());
            match kind {
                "nfs" | "cifs" | "fuse" | "squashfs" | "erofs" => Check::fail(
                    "storage/state",
                    found,
                    "pods with images: layers cannot be stacked there",
                    "set paths.state to a folder on a local disk (ext4, xfs, btrfs)",
                ),
                "overlay" => Check::fail(
                    "storage/state",
                    found,
                    "pods with images: overlayfs cannot be stacked on itself",
                    "set paths.state to a folder on a disk or a volume",
                ),
                "tmpfs" | "ramfs" => Check::warn(
                    "storage/state",
                    found,
                    "keeping images, volumes and pods over a reboot",
                    "set paths.state to a folder on a disk",
                ),
                _ if scarce(free, total) => Check::warn(
                    "storage/state",
                    found,
                    "pulling images and what pods write, once it is full",
                    "free some space there, or set paths.state to a folder on a larger disk",
                ),
                _ => Check::ok("storage/state", found),
            }
        }
        Err(error) => Check::fail("storage/state", format!("{}: {error}", place.display()), "pods", "set paths.state"),
    }
}

/// Whether so little is free, in MiB, that it soon runs out: less than a tenth, or than 5 GiB.
pub(super) fn scarce(free: u64, total: u64) -> bool {
    free < 5 << 10 || free < total / 10
}

fn run(path: &Path) -> Check {
    let place = existing(path);
    match file_system(place) {
        Ok((kind @ ("tmpfs" | "ramfs"), ..)) => Check::ok("storage/run", format!("{} on {kind}", path.display())),
        Ok((kind, ..)) => Check::warn(
            "storage/run",
            format!("{} on {kind}", path.display()),
            "starts of pods that do not wait for a disk, and a clean slate after a reboot",
            "set paths.run to a folder on tmpfs, e.g. below /run",
        ),
        Err(error) => Check::fail("storage/run", format!("{}: {error}", place.display()), "pods", "set paths.run"),
    }
}

/// Whether project quota is kept on the file system of a folder.
fn project_quota(path: &Path) -> Result<(), String> {
    const Q_GETINFO: u32 = 0x80_0005;
    const PROJECT: u32 = 2;
    let place = existing(path);
    let folder = File::open(place).map_err(|error| format!("{}: {error}", place.display()))?;
    // `struct if_dqinfo` has 24 bytes.
    let mut info = [0u64; 8];
    // SAFETY: the descriptor is open, and the kernel writes at most 24 bytes to the live buffer of 64.
    let result = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, folder.as_raw_fd(), Q_GETINFO << 8 | PROJECT, 0, info.as_mut_ptr())
    };
    match (result, last_errno()) {
        (0, _) => Ok(()),
        (_, Errno::SRCH) => Err("project quota is off".to_owned()),
        (_, error) => Err(format!("no project quota: {error}")),
    }
}

fn loop_devices() -> Result<(), (String, &'static str)> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/loop-control") {
        return Err((format!("/dev/loop-control: {error}"), "load the loop module: modprobe loop"));
    }
    if program("mkfs.ext4").is_none() {
        return Err(("mkfs.ext4 is not installed".to_owned(), "install e2fsprogs"));
    }
    Ok(())
}
