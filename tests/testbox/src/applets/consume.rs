//! Programs that take more than they should: memory, CPU, processes, disk.

use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::{number, usage};
use crate::{errno, signals};

const MIB: usize = 1 << 20;

/// Allocates and touches memory, then holds it.
pub fn hog(arguments: &[String]) -> u8 {
    let Some(mib) = number::<usize>(arguments, 0) else {
        return usage("hog MIB [SECONDS TO HOLD IT]");
    };
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mib {
        let mut block: Vec<u8> = Vec::new();
        if block.try_reserve_exact(MIB).is_err() {
            println!("holding {} MiB then ENOMEM", held.len());
            return 1;
        }
        // not zero: zeroed memory may come from the allocator untouched
        block.resize(MIB, 1);
        held.push(block);
    }
    println!("holding {} MiB", std::hint::black_box(&held).len());
    std::thread::sleep(Duration::from_secs(number(arguments, 1).unwrap_or(0)));
    0
}

/// Keeps one CPU busy.
pub fn spin(arguments: &[String]) -> u8 {
    let Some(seconds) = number::<f64>(arguments, 0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    else {
        return usage("spin SECONDS");
    };
    let end = Instant::now() + seconds;
    let mut rounds = 0_u64;
    while Instant::now() < end {
        rounds = std::hint::black_box(rounds + 1);
    }
    println!("{rounds} rounds");
    0
}

/// Makes as many processes as it can, up to a number, and ends them.
pub fn forkbomb(arguments: &[String]) -> u8 {
    let Some(wanted) = number::<usize>(arguments, 0) else {
        return usage("forkbomb PROCESSES");
    };
    let mut children = Vec::new();
    let mut refused = None;
    while children.len() < wanted {
        match signals::fork(|| signals::hold()) {
            Ok(child) => children.push(child),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let end = refused.as_ref().map_or_else(String::new, |error| format!(" then {}", errno::name(error)));
    println!("made {}{end}", children.len());
    for child in children {
        // SAFETY: the child is this process's own and not yet waited for, so the number is still its own.
        unsafe { libc::kill(child, libc::SIGKILL) };
        if signals::wait(child).is_err() {
            return 1;
        }
    }
    u8::from(refused.is_some())
}

/// Writes a file until it is as large as asked or an error comes.
pub fn fill(arguments: &[String]) -> u8 {
    let (Some(path), Some(mib)) = (arguments.first(), number::<usize>(arguments, 1)) else {
        return usage("fill FILE MIB");
    };
    let mut written = 0_usize;
    let result = (|| -> io::Result<()> {
        let mut file = File::create(path)?;
        let block = vec![0x5a_u8; MIB / 16];
        while written < mib * MIB {
            written += file.write(&block)?;
        }
        file.sync_all()
    })();
    match result {
        Ok(()) => {
            println!("wrote {written}");
            0
        }
        Err(error) => {
            println!("wrote {written} then {}", errno::name(&error));
            1
        }
    }
}
