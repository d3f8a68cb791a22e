//! Numbers of tracepoints, from tracefs: where it is mounted, or through a mount of our own that is attached nowhere.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::call;

/// Where it usually is.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Opens a tracepoint of the whole host as a perf event.
pub fn open(category: &str, name: &str) -> io::Result<OwnedFd> {
    call::open_tracepoint(number(category, name)?)
}

fn number(category: &str, name: &str) -> io::Result<u64> {
    let path = format!("events/{category}/{name}/id");
    for mount in MOUNTS {
        match std::fs::read_to_string(format!("{mount}/{path}")) {
            Ok(text) => return parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let root = mount()?;
    let path = std::ffi::CString::new(path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the path ends with NUL and lives until after the call; the descriptor is open.
    let file = unsafe { libc::openat(root.as_raw_fd(), path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this number as a new descriptor, owned by nobody else.
    let mut file = unsafe { File::from_raw_fd(file) };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    parse(&text)
}

fn parse(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "tracefs gives no number"))
}

/// A tracefs that is mounted nowhere and goes with its descriptor.
fn mount() -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const FSMOUNT_CLOEXEC: u32 = 1;
    let owned = |answer: libc::c_long| {
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this number as a new descriptor, owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(answer as libc::c_int) })
    };
    // SAFETY: the name ends with NUL.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), FSOPEN_CLOEXEC) })?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    let created = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, 0) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes a descriptor and flags alone.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracepoint_has_a_number_that_does_not_change() {
        match number("sched", "sched_switch") {
            Ok(first) => {
                assert!(first > 0);
                assert_eq!(number("sched", "sched_switch").unwrap(), first);
                assert_eq!(number("sched", "no_such_thing").unwrap_err().kind(), io::ErrorKind::NotFound);
            }
            Err(error) => println!("skipped because tracefs cannot be read: {error}"),
        }
    }
}
