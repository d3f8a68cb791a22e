//! The fetching child: `agentd artifact-fetch`. Its standard input is the socket pair to agentd.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::address::AddressRule;
use crate::archive;
use crate::client::{self, Client, Download};
use crate::confine;
use crate::error::Failure;
use crate::protocol::{self, Limits, Outcome, Reply, Request, Source, Validators};

/// The main function of the fetching child. It is to be called first thing in `main`, before any thread is started,
/// when the program runs as `agentd artifact-fetch`. It is of no use to people: standard input must be the socket that
/// [`crate::Fetcher`] made.
pub fn child_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // agentd reads this and makes it part of its error
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Confines this process as the fetching child is confined and prints what it can still do, one line for each attempt
/// and one for each restriction that this kernel lacks. For tests, and for people who want to see it on their host.
pub fn confinement_report() -> ExitCode {
    match report() {
        Ok(lines) => {
            println!("{}", lines.join("\n"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn report() -> io::Result<Vec<String>> {
    let here = rustix::fs::open(".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let limits = Limits { max_bytes: 1 << 20, max_extracted_bytes: 1 << 20, max_entries: 10, cpu_seconds: 10 };
    let mut lines = confine::confine(here.as_fd(), limits, (65534, 65534))?;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let mut attempt = |what: &str, result: io::Result<()>| {
        lines.push(match result {
            Ok(()) => format!("{what}: possible"),
            Err(error) => format!("{what}: {error}"),
        });
    };
    attempt(
        "write below the staging folder",
        rustix::fs::openat(&here, "x", write, Mode::RUSR).map(drop).map_err(Into::into),
    );
    attempt("read /etc/passwd", File::open("/etc/passwd").map(drop));
    attempt("read /etc/hosts", File::open("/etc/hosts").map(drop));
    attempt(
        "write in /tmp",
        rustix::fs::open("/tmp/agentd-confinement", write, Mode::RUSR).map(drop).map_err(Into::into),
    );
    attempt("start a program", std::process::Command::new("/bin/true").status().map(drop));
    attempt("start a thread", std::thread::Builder::new().spawn(|| ()).map(drop));
    attempt("accept connections", std::net::TcpListener::bind("127.0.0.1:0").map(drop));
    attempt("become root", rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).map_err(Into::into));
    Ok(lines)
}

fn serve() -> io::Result<()> {
    close_inherited()?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (request, fds) = protocol::receive(&socket)
        .map_err(|error| io::Error::other(format!("standard input is no request of agentd: {error}")))?;
    let mut fds = fds.into_iter();
    let staging = fds.next().ok_or_else(|| io::Error::other("the request has no staging folder"))?;
    let file = fds.next().map(File::from);
    // the roots of trust are files of the host, out of reach later
    let roots = match &request.source {
        Source::Web(web) if web.url.starts_with("http") => client::host_roots(),
        _ => Vec::new(),
    };
    let unconfined = confine::confine(staging.as_fd(), request.limits, request.user)?;
    end_with_agentd(socket.try_clone()?)?;
    let outcome = run(&request, &staging, file, roots).unwrap_or_else(Outcome::Failed);
    let reply = serde_json::to_vec(&Reply { outcome, unconfined })?;
    (&socket).write_all(&reply)
}

/// Whatever was left open in the program that started this one is none of our business.
fn close_inherited() -> io::Result<()> {
    // SAFETY: at this point nothing in this process owns a descriptor above standard error.
    let rc = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends this process when agentd's end of the socket closes. (The kernel's parent-death signal would come when the
/// *thread* that started us ends, and threads of agentd's pool come and go.)
fn end_with_agentd(socket: UnixStream) -> io::Result<()> {
    std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        loop {
            let mut fds = [PollFd::new(&socket, PollFlags::empty())];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        std::process::exit(1);
    })?;
    Ok(())
}

fn run(
    request: &Request,
    staging: &OwnedFd,
    given: Option<File>,
    roots: Vec<client::Root>,
) -> Result<Outcome, Failure> {
    let mut validators = Validators::default();
    let mut file = match &request.source {
        Source::File => {
            let mut given = given.ok_or_else(|| Failure::local("reading the request", "it has no file"))?;
            if request.keep_file {
                let mut copy = create(staging)?;
                copy_limited(&mut given, &mut copy, request.limits.max_bytes)?;
                copy
            } else {
                given
            }
        }
        Source::Web(web) => {
            let mut copy = create(staging)?;
            let rule = AddressRule { allowed: web.allowed.clone(), own: web.own.clone() };
            let client = Client::new(rule, request.limits.max_bytes, roots)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(1)
                .build()
                .map_err(|error| Failure::local("starting the fetch", error))?;
            let download = runtime.block_on(client.download(web, &mut copy));
            // a name that is still being resolved must not hold us up
            runtime.shutdown_background();
            match download? {
                Download::Done(found) => validators = found,
                Download::NotModified => {
                    // the cached copy takes its name
                    rustix::fs::unlinkat(staging, protocol::FILE, AtFlags::empty())
                        .map_err(|error| Failure::local("clearing the staging folder", error))?;
                    return Ok(Outcome::NotModified);
                }
            }
            copy
        }
    };
    if request.extract {
        file.rewind().map_err(|error| Failure::local("reading the archive", error))?;
        archive::unpack(file, staging.as_fd(), request.limits)?;
    }
    Ok(Outcome::Fetched(validators))
}

fn create(staging: &OwnedFd) -> Result<File, Failure> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(staging, protocol::FILE, flags, Mode::from_raw_mode(0o644));
    fd.map(File::from).map_err(|error| Failure::local("making the file in the staging folder", error))
}

fn copy_limited(from: &mut File, to: &mut File, most: u64) -> Result<(), Failure> {
    let mut limited = from.take(most.saturating_add(1));
    let copied = io::copy(&mut limited, to).map_err(|error| Failure::local("copying the file", error))?;
    if copied > most {
        return Err(client::too_large(most));
    }
    Ok(())
}
