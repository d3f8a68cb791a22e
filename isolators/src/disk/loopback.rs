//! A limit made of a file: an ext4 file system in a sparse image of the limit's size, on a loop device.
//!
//! The device frees itself when the last mount is gone (`LO_FLAGS_AUTOCLEAR`), so a crash leaves none behind. One image
//! must never be on two devices at once: a lock on the image is held from the search for its device to the mount.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::mounter::{Attributes, MountThread};

const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const CONTROL: &str = "/dev/loop-control";

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    fn empty() -> Self {
        // SAFETY: all-zero is a valid loop_info64.
        unsafe { std::mem::zeroed() }
    }
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Where `mkfs.ext4` is, looked for in `PATH` and the folders for administration.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_absolute() && file.is_file())
}

/// What this host lacks for loop devices, if anything.
pub fn missing() -> Option<String> {
    if !Path::new(CONTROL).exists() {
        return Some(format!("{CONTROL} is missing (is the loop module loaded?)"));
    }
    if find_program("mkfs.ext4").is_none() {
        return Some("mkfs.ext4 is missing (install e2fsprogs)".to_owned());
    }
    None
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> io::Result<(Option<i32>, String)> {
    let file = find_program(program)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{program} not found; install e2fsprogs")))?;
    let output = Command::new(file).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
    Ok((output.status.code(), text))
}

/// Makes the image of a file system that holds at least `bytes`, unless it exists. Its content is complete before it
/// gets its name.
pub fn create(image: &Path, bytes: u64) -> io::Result<()> {
    if image.exists() {
        return Ok(());
    }
    let inodes = (bytes / 16_384).clamp(1024, 4 << 20);
    let size = (bytes + bytes / 128 + inodes * 256 + (2 << 20)).next_multiple_of(4096);
    let partial = image.with_extension("img.tmp");
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
    file.set_len(size)?;
    drop(file);
    let inodes = inodes.to_string();
    let mut arguments: Vec<&std::ffi::OsStr> = ["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-N", &inodes]
        .into_iter()
        .chain(["-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard"])
        .map(std::ffi::OsStr::new)
        .collect();
    arguments.push(partial.as_os_str());
    match run("mkfs.ext4", &arguments)? {
        (Some(0), _) => std::fs::rename(&partial, image),
        (code, text) => Err(io::Error::other(format!("mkfs.ext4 ended with {code:?}: {text}"))),
    }
}

/// Repairs an image that was mounted when the host went down.
pub fn repair(image: &Path) -> io::Result<()> {
    match run("e2fsck", &[std::ffi::OsStr::new("-p"), image.as_os_str()])? {
        // 1: errors corrected
        (Some(0 | 1), _) => Ok(()),
        (code, text) => Err(io::Error::other(format!("e2fsck -p ended with {code:?}: {text}"))),
    }
}

/// A detached mount of the image; the same file system for every call while some mount of it lives.
pub fn mount(thread: &MountThread, image: &Path) -> io::Result<OwnedFd> {
    // a descriptor of its own for the lock: the loop device keeps the other one open
    let lock = File::open(image)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let (device, path) = match attached(image)? {
        Some(found) => found,
        None => attach(image)?,
    };
    let options = ["discard", "errors=remount-ro"];
    let result = thread.block("ext4", &path, &options, Attributes { nodev: true, ..Attributes::default() });
    drop(device);
    result
}

fn status(device: &File) -> Option<LoopInfo> {
    let mut info = LoopInfo::empty();
    // SAFETY: the structure is the one that the ioctl fills, alive for the call.
    let status = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    (status == 0).then_some(info)
}

fn open_device(number: impl std::fmt::Display) -> io::Result<(File, PathBuf)> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path)?;
    Ok((device, path))
}

/// The device that has the image, held open so that it keeps it.
pub fn attached(image: &Path) -> io::Result<Option<(File, PathBuf)>> {
    let file = std::fs::metadata(image)?;
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")) else { continue };
        // only a device with a file has this attribute; its text is the path that the opener used, so only a hint
        let Ok(backing) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let same_name = image.file_name().is_some_and(|name| backing.contains(&*name.to_string_lossy()));
        if !same_name {
            continue;
        }
        // it may be just about to free itself; then it does not have the file any more once we hold it
        let Ok((device, path)) = open_device(number) else { continue };
        if let Some(info) = status(&device)
            && (info.device, info.inode) == (huge_device(file.dev()), file.ino())
        {
            return Ok(Some((device, path)));
        }
    }
    Ok(None)
}

/// `huge_encode_dev` of the kernel, the form of `lo_device`.
fn huge_device(device: u64) -> u64 {
    let (major, minor) = (u64::from(libc::major(device)), u64::from(libc::minor(device)));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

fn attach(image: &Path) -> io::Result<(File, PathBuf)> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(image)?;
    let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    let mut info = LoopInfo::empty();
    info.flags = LO_FLAGS_AUTOCLEAR;
    let name = image.as_os_str().as_encoded_bytes();
    let length = name.len().min(info.file_name.len() - 1);
    info.file_name[..length].copy_from_slice(&name[name.len() - length..]);
    let config = LoopConfig { fd: file.as_raw_fd() as u32, block_size: 0, info, reserved: [0; 8] };
    for _ in 0..64 {
        // SAFETY: this request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let (device, path) = open_device(number)?;
        // SAFETY: the structure is the one that the ioctl reads, alive for the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
            return Ok((device, path));
        }
        let error = io::Error::last_os_error();
        // somebody else was faster with this device
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "no loop device was free in 64 tries"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernel_s_size() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
