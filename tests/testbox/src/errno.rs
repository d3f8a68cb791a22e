//! Names of errors, so that tests compare words and not numbers of one architecture.

use std::io;

/// The name of an error, such as `EPERM`; its number where it has none here; its text where it is not the kernel's.
pub fn name(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else {
        return error.to_string();
    };
    NAMES
        .iter()
        .find(|(number, _)| *number == code)
        .map_or_else(|| format!("errno {code}"), |(_, name)| (*name).to_owned())
}

/// Prints `ok` or the error's name; returns the applet's exit code.
pub fn report<T>(result: Result<T, io::Error>) -> u8 {
    match result {
        Ok(_) => {
            println!("ok");
            0
        }
        Err(error) => {
            println!("{}", name(&error));
            1
        }
    }
}

macro_rules! named {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

const NAMES: &[(i32, &str)] = named![
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK
    ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENODATA EOVERFLOW ENOTSOCK EMSGSIZE EPROTONOSUPPORT ESOCKTNOSUPPORT
    EOPNOTSUPP EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ECONNABORTED ECONNRESET ENOBUFS ENOTCONN
    ETIMEDOUT ECONNREFUSED EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ENOKEY
];
