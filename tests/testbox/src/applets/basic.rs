//! Programs that end in a certain way, say something, or wait.

use std::io::Write;
use std::time::Duration;

use super::{number, usage};
use crate::signals;

pub fn succeed(_: &[String]) -> u8 {
    0
}

pub fn fail(_: &[String]) -> u8 {
    1
}

pub fn exit(arguments: &[String]) -> u8 {
    number(arguments, 0).unwrap_or_else(|| usage("exit CODE (0 to 255)"))
}

pub fn sleep(arguments: &[String]) -> u8 {
    match number::<f64>(arguments, 0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(time) => {
            std::thread::sleep(time);
            0
        }
        None => usage("sleep SECONDS"),
    }
}

/// Waits for SIGTERM and ends well.
pub fn hold(_: &[String]) -> u8 {
    signals::end_well_on_term();
    signals::hold()
}

/// Waits, and has to be killed.
pub fn ignore_term(_: &[String]) -> u8 {
    signals::ignore_term();
    println!("ignoring SIGTERM");
    signals::hold()
}

pub fn echo(arguments: &[String]) -> u8 {
    println!("{}", arguments.join(" "));
    0
}

pub fn env(_: &[String]) -> u8 {
    let mut all: Vec<_> = std::env::vars_os().collect();
    all.sort();
    for (name, value) in all {
        println!("{}={}", name.to_string_lossy(), value.to_string_lossy());
    }
    0
}

/// Numbered lines of a given length, as fast as they are taken.
pub fn spam(arguments: &[String]) -> u8 {
    let (Some(lines), Some(bytes)) = (number::<u64>(arguments, 0), number::<usize>(arguments, 1)) else {
        return usage("spam LINES BYTES (of each line, its number and newline included)");
    };
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    for line in 0..lines {
        let mut text = format!("{line:08} ");
        while text.len() + 1 < bytes {
            text.push('x');
        }
        text.push('\n');
        if out.write_all(text.as_bytes()).is_err() {
            return 1;
        }
    }
    u8::from(out.flush().is_err())
}
