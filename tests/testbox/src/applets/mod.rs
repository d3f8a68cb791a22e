//! The applets by name.

mod basic;
mod consume;
mod files;
mod inspect;
mod net;
mod servers;
mod steps;
mod syscalls;

use crate::signals;

type Applet = fn(&[String]) -> u8;

/// Exit code on wrong arguments.
const WRONG: u8 = 2;

const APPLETS: &[(&str, Applet)] = &[
    ("append", files::append),
    ("cache", servers::cache),
    ("caps", inspect::caps),
    ("cat", files::cat),
    ("connect", net::connect),
    ("connect-unix", net::connect_unix),
    ("cwd", inspect::cwd),
    ("echo", basic::echo),
    ("env", basic::env),
    ("exit", basic::exit),
    ("false", basic::fail),
    ("fds", inspect::fds),
    ("fill", consume::fill),
    ("forkbomb", consume::forkbomb),
    ("get", net::get),
    ("hog", consume::hog),
    ("hold", basic::hold),
    ("hostname", inspect::hostname),
    ("id", inspect::id),
    ("ignore-term", basic::ignore_term),
    ("listen", net::listen),
    ("ls", files::ls),
    ("mounts", inspect::mounts),
    ("open", files::open),
    ("pids", inspect::pids),
    ("repeat", net::repeat),
    ("sleep", basic::sleep),
    ("spam", basic::spam),
    ("spin", consume::spin),
    ("steps", steps::steps),
    ("syscall", syscalls::syscall),
    ("true", basic::succeed),
    ("tty", inspect::tty),
    ("web", servers::web),
    ("write", files::write),
];

/// All names, for the usage line.
pub fn names() -> String {
    APPLETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

/// Runs one applet.
pub fn run(name: &str, arguments: &[String]) -> u8 {
    signals::end_on_term();
    if let Some((_, applet)) = APPLETS.iter().find(|(known, _)| *known == name) {
        applet(arguments)
    } else {
        eprintln!("testbox: no applet '{name}'; applets: {}", names());
        WRONG
    }
}

/// Says how an applet is called.
fn usage(line: &str) -> u8 {
    eprintln!("usage: {line}");
    WRONG
}

/// The value after `--name`.
fn option<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|word| word == name)?;
    arguments.get(at + 1).map(String::as_str)
}

/// The number at a position.
fn number<T: std::str::FromStr>(arguments: &[String], at: usize) -> Option<T> {
    arguments.get(at)?.parse().ok()
}
