//! One message with its descriptors over a `SOCK_SEQPACKET` Unix socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors in one message (`SCM_MAX_FD` of the kernel).
pub const MAX_FDS: usize = 253;

/// Longest message in bytes; plans travel in a memfd, so messages are small.
pub const MAX_MESSAGE: usize = 16384;

const CONTROL: usize = {
    // SAFETY: CMSG_SPACE only computes a size.
    unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) as usize }
};

/// Storage for control messages, aligned as `struct cmsghdr` needs.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Sends one message. With `wait` false a full socket is `WouldBlock`.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], wait: bool) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than 253 descriptors in one launcher message"));
    }
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL]);
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let size = size_of_val(fds) as u32 / size_of::<BorrowedFd<'_>>() as u32 * size_of::<RawFd>() as u32;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes a size.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
        // SAFETY: msg_control points to CONTROL bytes, aligned, and msg_controllen is at most CONTROL (checked above by
        // MAX_FDS), so the first header and its data lie inside.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(size) as _;
            let data = libc::CMSG_DATA(message);
            for (n, fd) in fds.iter().enumerate() {
                let bytes = fd.as_raw_fd().to_ne_bytes();
                data.add(n * size_of::<RawFd>()).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
        }
    }
    let flags = libc::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
    loop {
        // SAFETY: header points to live, initialised buffers for the duration of the call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives one message into `buffer`; returns its length and the descriptors (close-on-exec) that came with it.
/// Length 0 means that the peer has closed. A message longer than `buffer` is an error.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: bool) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; CONTROL]);
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    let length = loop {
        // SAFETY: header points to live buffers of the stated sizes.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        if n >= 0 {
            break n as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel filled msg_control with well-formed headers up to msg_controllen; each SCM_RIGHTS payload holds
    // whole descriptors that are now ours alone.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(message);
                for n in 0..bytes / size_of::<RawFd>() {
                    let mut fd = [0; size_of::<RawFd>()];
                    fd.as_mut_ptr().copy_from_nonoverlapping(data.add(n * fd.len()), fd.len());
                    fds.push(OwnedFd::from_raw_fd(RawFd::from_ne_bytes(fd)));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "launcher message or its descriptors were cut short"));
    }
    Ok((length, fds))
}

/// A connected pair of close-on-exec sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: fds has room for two descriptors.
    let result =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors were just made and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_carry_descriptors_and_truncation_is_seen() {
        let (a, b) = pair().unwrap();
        let (c, _d) = pair().unwrap();
        let many: Vec<_> = std::iter::repeat_n(c.as_fd(), 200).collect();
        send(a.as_fd(), b"hello", &many, true).unwrap();
        let mut buffer = [0; 64];
        let (n, fds) = receive(b.as_fd(), &mut buffer, true).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"hello"[..], 200));
        send(a.as_fd(), &[1; 65], &[], true).unwrap();
        assert_eq!(receive(b.as_fd(), &mut buffer, true).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive(b.as_fd(), &mut buffer, false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut buffer, true).unwrap().0, 0);
    }
}
