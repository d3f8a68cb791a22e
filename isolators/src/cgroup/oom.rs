//! Which process the kernel killed for want of memory, from its log (`/dev/kmsg`).
//!
//! The counters in the memory cgroup say that a container lost a process; only the log says which one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

/// A process that was killed for want of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomVictim {
    /// The victim's memory cgroup, relative to the tree's mount, e.g. `agentd/pods/<id>/c0` (with `/init` on v2).
    pub cgroup: String,
    /// The cgroup whose limit was reached; none if the host as a whole was short.
    pub limited: Option<String>,
    /// Its process id as the host numbers it.
    pub pid: u32,
    /// Its name (`comm`).
    pub task: String,
}

impl OomVictim {
    /// Reads one record of `/dev/kmsg`; none if it tells of something else.
    pub fn parse(record: &str) -> Option<Self> {
        // `6,1234,5678,-;text`, and without the header in other logs. The kernel itself logs with facility 0 (numbers
        // below 8), which a program that writes to the log cannot claim.
        let line = record.lines().next()?;
        let text = match line.split_once(';') {
            Some((header, text)) if header.starts_with(|c: char| c.is_ascii_digit()) => {
                (header.split(',').next()?.parse::<u32>().ok()? < 8).then_some(text)?
            }
            _ => line,
        };
        let text = text.strip_prefix("oom-kill:constraint=")?;
        // The name comes last but two and may hold anything, so the tail is taken apart from its end.
        let (rest, uid) = text.rsplit_once(",uid=")?;
        uid.trim().parse::<u32>().ok()?;
        let (rest, pid) = rest.rsplit_once(",pid=")?;
        let pid = pid.parse().ok()?;
        let (rest, after) = rest.split_once(",task_memcg=")?;
        let (cgroup, task) = after.split_once(",task=")?;
        let limited = rest.split_once(",oom_memcg=").map(|(_, path)| relative(path));
        Some(Self { cgroup: relative(cgroup), limited, pid, task: task.to_owned() })
    }
}

fn relative(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

/// Reads the kernel's log from now on.
#[derive(Debug)]
pub struct OomReader {
    log: OwnedFd,
}

impl OomReader {
    /// Opens `/dev/kmsg` at its end.
    pub fn open() -> std::io::Result<Self> {
        let log = rustix::fs::open("/dev/kmsg", OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
        rustix::fs::seek(&log, SeekFrom::End(0))?;
        Ok(Self { log })
    }

    /// Waits for the next victim, `timeout` at most; none if there was no victim by then. Records that were
    /// overwritten before they were read are lost, which the counters of the cgroups make up for.
    pub fn next(&mut self, timeout: Duration) -> std::io::Result<Option<OomVictim>> {
        let deadline = Instant::now() + timeout;
        // no record is longer
        let mut buffer = [0_u8; 8192];
        loop {
            match rustix::io::read(&self.log, &mut buffer[..]) {
                Ok(n) => {
                    if let Some(victim) = OomVictim::parse(&String::from_utf8_lossy(&buffer[..n])) {
                        return Ok(Some(victim));
                    }
                }
                // EPIPE: overwritten, and the position moved to the oldest record left; EINVAL: a record too long
                Err(Errno::PIPE | Errno::INTR | Errno::INVAL) => {}
                Err(Errno::AGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
                    let mut fds = [PollFd::new(&self.log, PollFlags::IN)];
                    match rustix::event::poll(&mut fds, Some(&wait)) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for OomReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.log.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn victims_of_a_limit_and_of_the_host_are_read() {
        let record = "6,1205,934811234,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c0,mems_allowed=0,\
                      oom_memcg=/agentd/pods/0a1b2c3d4e5f/c0,task_memcg=/agentd/pods/0a1b2c3d4e5f/c0/init,task=python3,\
                      pid=123,uid=0\n SUBSYSTEM=x\n";
        let victim = OomVictim::parse(record).unwrap();
        assert_eq!(victim.cgroup, "agentd/pods/0a1b2c3d4e5f/c0/init");
        assert_eq!(victim.limited.as_deref(), Some("agentd/pods/0a1b2c3d4e5f/c0"));
        assert_eq!((victim.pid, victim.task.as_str()), (123, "python3"));

        let global = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
                      task_memcg=/agentd/pods/x/c1,task=a,b=c,pid=7,pid=42,uid=1000";
        let victim = OomVictim::parse(global).unwrap();
        assert_eq!((victim.limited, victim.pid, victim.task.as_str()), (None, 42, "a,b=c,pid=7"));
    }

    #[test]
    fn other_and_cut_off_lines_are_passed_over() {
        let whole = "oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a,task_memcg=/a,task=t,pid=1,uid=0";
        assert!(OomVictim::parse(whole).is_some());
        for cut in 0..whole.len() {
            assert_eq!(OomVictim::parse(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(OomVictim::parse(""), None);
        assert_eq!(OomVictim::parse("4,1,2,-;Memory cgroup out of memory: Killed process 123 (python3)"), None);
        assert_eq!(OomVictim::parse("oom-kill:constraint=X,task_memcg=/a,task=t,pid=-1,uid=0"), None);
        // written to the log by a program
        assert_eq!(OomVictim::parse(&format!("12,1,2,-;{whole}")), None);
        assert!(OomVictim::parse(&format!("6,1,2,-;{whole}")).is_some());
    }
}
