//! What a process in a container sees of itself and its surroundings.

use std::fs;
use std::io;

use crate::errno;

/// Prints the lines of /proc/self/status that are about privileges.
pub fn caps(_: &[String]) -> u8 {
    const WANTED: &[&str] = &["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    match fs::read_to_string("/proc/self/status") {
        Ok(text) => {
            for line in text.lines() {
                if line.split_once(':').is_some_and(|(name, _)| WANTED.contains(&name)) {
                    println!("{}", line.replace('\t', " "));
                }
            }
            0
        }
        Err(error) => errno::report::<()>(Err(error)),
    }
}

/// Own descriptors and what they point to, without the one that lists them.
pub fn fds(_: &[String]) -> u8 {
    const FOLDER: &str = "/proc/self/fd";
    let listed = (|| -> io::Result<Vec<(u32, String)>> {
        let mut open = Vec::new();
        for entry in fs::read_dir(FOLDER)? {
            let entry = entry?;
            let target =
                fs::read_link(entry.path()).map_or_else(|error| errno::name(&error), |to| to.display().to_string());
            if let Ok(number) = entry.file_name().to_string_lossy().parse() {
                open.push((number, target));
            }
        }
        // the folder's own descriptor is closed by now
        open.retain(|(number, _)| fs::symlink_metadata(format!("{FOLDER}/{number}")).is_ok());
        open.sort();
        Ok(open)
    })();
    match listed {
        Ok(open) => {
            for (number, target) in open {
                println!("{number} {target}");
            }
            0
        }
        Err(error) => errno::report::<()>(Err(error)),
    }
}

/// Visible processes: number and name.
pub fn pids(_: &[String]) -> u8 {
    let entries = match fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(error) => return errno::report::<()>(Err(error)),
    };
    let mut visible: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse().ok()).collect();
    visible.sort_unstable();
    for pid in visible {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        println!("{pid} {}", name.trim_end());
    }
    0
}

/// User, group and further groups.
pub fn id(_: &[String]) -> u8 {
    let mut groups = [0; 128];
    // SAFETY: the array has room for as many groups as the call is told.
    let count = unsafe { libc::getgroups(128, groups.as_mut_ptr()) };
    let groups: Vec<String> =
        groups.iter().take(usize::try_from(count).unwrap_or(0)).map(ToString::to_string).collect();
    // SAFETY: these calls have no arguments and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    println!("uid={uid} gid={gid} groups={}", groups.join(","));
    0
}

/// Working directory.
pub fn cwd(_: &[String]) -> u8 {
    match std::env::current_dir() {
        Ok(path) => {
            println!("{}", path.display());
            0
        }
        Err(error) => errno::report::<()>(Err(error)),
    }
}

/// Host name.
pub fn hostname(_: &[String]) -> u8 {
    println!("{}", host_name());
    0
}

/// The host name, as uname has it.
pub fn host_name() -> String {
    // SAFETY: utsname is plain bytes, for which zero is a value.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for writing.
    unsafe { libc::uname(&raw mut name) };
    name.nodename.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8)).collect()
}

/// Own mounts, as the kernel lists them.
pub fn mounts(_: &[String]) -> u8 {
    super::files::cat(&["/proc/self/mountinfo".to_owned()])
}

/// Whether the standard descriptors are terminals.
pub fn tty(_: &[String]) -> u8 {
    let mut all = true;
    for (number, name) in ["stdin", "stdout", "stderr"].iter().enumerate() {
        // SAFETY: isatty takes any number.
        let terminal = unsafe { libc::isatty(number as i32) } == 1;
        println!("{name} {}", if terminal { "terminal" } else { "no terminal" });
        all &= terminal;
    }
    u8::from(!all)
}
