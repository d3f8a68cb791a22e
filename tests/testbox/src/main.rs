//! A small multi-call program for container images that hold nothing else: the demo's two servers, and what tests of
//! isolation have to try from the inside. It is linked statically and needs no shell.
//!
//! The applet is the name it is called by (`/bin/web`), or the first argument of `testbox`. Applets exit with 0 when
//! what they tried worked, 1 when it did not (with the error's name on standard output), 2 on wrong arguments.

mod applets;
mod errno;
mod signals;

use std::process::ExitCode;

fn main() -> ExitCode {
    signals::default_pipe();
    let mut words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let called = words.first().map_or("testbox", |path| path.rsplit('/').next().unwrap_or(path)).to_owned();
    if called == "testbox" && !words.is_empty() {
        words.remove(0);
    }
    let Some((name, arguments)) = words.split_first() else {
        eprintln!("usage: testbox APPLET [ARGUMENT…]; applets: {}", applets::names());
        return ExitCode::from(2);
    };
    let name = name.rsplit('/').next().unwrap_or(name);
    ExitCode::from(applets::run(name, arguments))
}
