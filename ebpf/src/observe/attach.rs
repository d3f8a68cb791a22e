//! Hanging one program into the kernel.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::programs::Program;
use aya::programs::links::FdLink;

use super::ladder::Hook;
use super::tracefs;
use crate::call::{self, Attach};

/// A program that hangs in the kernel; dropped, it is taken out.
#[derive(Debug)]
pub struct Attached {
    /// Function of the object.
    pub function: &'static str,
    /// Where.
    pub hook: Hook,
    held: Held,
}

#[derive(Debug)]
enum Held {
    /// Link to a raw tracepoint.
    Tracing { _link: FdLink },
    /// Link to a cgroup.
    Cgroup(OwnedFd),
    /// Link to a perf event, and the event.
    Perf { _link: OwnedFd, _event: OwnedFd },
}

impl Attached {
    /// Whether it still hangs: links to cgroups can be taken off by hand, and go with their directory.
    pub fn holds(&self) -> bool {
        match &self.held {
            Held::Cgroup(link) => call::link_cgroup(link.as_fd()).is_ok_and(|cgroup| cgroup != 0),
            Held::Tracing { .. } | Held::Perf { .. } => true,
        }
    }
}

/// The innermost cause of an error.
fn cause(error: &dyn std::error::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let (outer, inner) = (error.to_string(), deepest.to_string());
    let text = if outer.contains(&inner) { outer } else { format!("{outer}: {inner}") };
    // the verifier's log can be pages long: its last line, before its own figures, says what it is about
    let figures =
        |line: &str| ["verification time ", "stack depth ", "processed "].iter().any(|word| line.starts_with(word));
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty() && !figures(line)).collect();
    match lines.as_slice() {
        [] => "unknown error".to_owned(),
        [one] => (*one).to_owned(),
        [first, .., last] => format!("{first} {last}"),
    }
}

/// Loads a function, if that has not been done, and hangs it. `btf` is needed for tracepoints with types, `pods` for
/// cgroups.
pub fn attach(
    object: &mut Ebpf,
    function: &'static str,
    hook: Hook,
    btf: Option<&aya::Btf>,
    pods: &Path,
) -> Result<Attached, String> {
    let program =
        object.program_mut(function).ok_or_else(|| format!("the embedded object has no program {function}"))?;
    let loaded = program.fd().is_ok();
    let held = match (program, hook) {
        (Program::BtfTracePoint(program), Hook::Btf(name)) => {
            let btf = btf.ok_or("the kernel's types are not to be had")?;
            if !loaded {
                program.load(name, btf).map_err(|error| cause(&error))?;
            }
            let id = program.attach().map_err(|error| cause(&error))?;
            let link = program.take_link(id).map_err(|error| cause(&error))?;
            Held::Tracing { _link: link.into() }
        }
        (Program::RawTracePoint(program), Hook::Raw(name)) => {
            if !loaded {
                program.load().map_err(|error| cause(&error))?;
            }
            let id = program.attach(name).map_err(|error| cause(&error))?;
            let link = program.take_link(id).map_err(|error| cause(&error))?;
            Held::Tracing { _link: link.into() }
        }
        (Program::TracePoint(program), Hook::Trace(category, name)) => {
            if !loaded {
                program.load().map_err(|error| cause(&error))?;
            }
            let event =
                tracefs::open(category, name).map_err(|error| format!("tracepoint {category}:{name}: {error}"))?;
            let fd = program.fd().map_err(|error| cause(&error))?;
            let link = call::link(fd.as_fd(), event.as_fd(), Attach::PerfEvent).map_err(|error| error.to_string())?;
            Held::Perf { _link: link, _event: event }
        }
        (Program::CgroupSkb(program), Hook::Ingress | Hook::Egress) => {
            if !loaded {
                program.load().map_err(|error| cause(&error))?;
            }
            let how = if hook == Hook::Ingress { Attach::CgroupIngress } else { Attach::CgroupEgress };
            Held::Cgroup(on_cgroup(program.fd().map_err(|error| cause(&error))?.as_fd(), pods, how)?)
        }
        (Program::SockOps(program), Hook::SockOps) => {
            if !loaded {
                program.load().map_err(|error| cause(&error))?;
            }
            Held::Cgroup(on_cgroup(program.fd().map_err(|error| cause(&error))?.as_fd(), pods, Attach::CgroupSockOps)?)
        }
        _ => return Err(format!("program {function} of the embedded object is of another kind than {hook:?}")),
    };
    Ok(Attached { function, hook, held })
}

fn on_cgroup(program: BorrowedFd<'_>, pods: &Path, how: Attach) -> Result<OwnedFd, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", pods.display());
    let directory = File::open(pods).map_err(failed)?;
    call::link(program, directory.as_fd(), how).map_err(failed)
}

/// The descriptor of a loaded function.
pub fn descriptor<'a>(object: &'a Ebpf, function: &str) -> Option<BorrowedFd<'a>> {
    object.program(function)?.fd().ok().map(AsFd::as_fd)
}
