//! `pod-init --zygote`: started by agentd from a sealed memfd with its socket as descriptor 0.
//!
//! One thread, no runtime. [`zygote`] forks a pod-init for each pod; [`init`] is the pod-init's event loop;
//! [`container`] is what a spare does with its plan, up to exec; [`mounts`] builds the mount tree; [`sys`] wraps the
//! system calls. A forked child that cannot go on tells its parent why over its socket and ends with `_exit`.

// the binary's items are private to it; clippy would have pub(crate) everywhere
#![allow(missing_docs, reason = "a binary has no public items")]

mod container;
mod init;
mod mounts;
mod sys;
mod zygote;

fn main() {
    let mode = std::env::args_os().nth(1);
    if mode.as_deref() != Some(std::ffi::OsStr::new("--zygote")) {
        eprintln!("pod-init is started by agentd; it is of no use by itself");
        sys::exit(2);
    }
    match zygote::run() {
        Ok(()) => sys::exit(0),
        Err(failure) => {
            eprintln!("pod-init: {}: {}", failure.stage, std::io::Error::from_raw_os_error(failure.errno));
            sys::exit(1)
        }
    }
}
