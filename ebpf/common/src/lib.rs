//! Layouts that the programs in the kernel and the loader share. No code, but what both need to agree on.
//!
//! Every type is `repr(C)`, holds only integers and arrays of them, and has no padding, so that any bytes are a value.

#![no_std]

pub mod fields;

/// Buckets of a histogram: bucket `n` counts values from `2^n` to below `2^(n+1)`, bucket 0 those of 0, too; the last one
/// takes all that are larger.
pub const BUCKETS: usize = 36;

/// A histogram of nanoseconds by powers of two.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log2 {
    /// Observations by bucket.
    pub buckets: [u64; BUCKETS],
    /// Sum of all observed values, ns.
    pub sum: u64,
}

/// The bucket of a value.
#[inline(always)]
pub fn bucket(value: u64) -> usize {
    let bucket = 63 - (value | 1).leading_zeros() as usize;
    if bucket < BUCKETS {
        bucket
    } else {
        BUCKETS - 1
    }
}

/// What the scheduler did to the tasks of one container, on one CPU. Group `sched`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sched {
    /// Time that a task waited on a run queue before it ran.
    pub queued: Log2,
    /// Time that a task was off the CPU: blocked, and then waiting to run.
    pub off_cpu: Log2,
    /// Times that a task gave up its CPU by itself.
    pub voluntary: u64,
    /// Times that a task was made to give it up.
    pub involuntary: u64,
    /// Moves of tasks to another CPU.
    pub migrations: u64,
    /// Switches that could not be followed because the map of tasks was full: their times are missing.
    pub untracked: u64,
}

/// A task as it was when it last left its CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskTimes {
    /// When, ns of CLOCK_MONOTONIC.
    pub left: u64,
    /// Its time on CPUs until then, ns.
    pub ran: u64,
    /// Its time on run queues until then, ns.
    pub queued: u64,
    /// Its moves between CPUs until then.
    pub migrations: u64,
    /// The container that it was in: id of a cgroup, 0 for none. Used where `next` must be attributed.
    pub container: u64,
    /// Its address in the kernel, where that is known: its number may be another task's by now.
    pub task: u64,
}

/// Processes of one container, on one CPU. Group `process`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Programs begun by execve.
    pub execs: u64,
    /// Processes made.
    pub forks: u64,
    /// Threads made.
    pub threads: u64,
    /// Processes that ended by themselves with status 0.
    pub exits_success: u64,
    /// Processes that ended by themselves with another status.
    pub exits_failure: u64,
    /// Processes that a signal ended.
    pub exits_signal: u64,
    /// Processes that ended, and the rung does not tell how.
    pub exits_unknown: u64,
    /// Processes that the kernel chose to kill for want of memory.
    pub oom_kills: u64,
    /// Signals that may end a process, sent to the container's.
    pub signals: u64,
    /// Events that went to the ring.
    pub events: u64,
    /// Events that the container's rate limit held back.
    pub events_limited: u64,
    /// Events that found the ring full.
    pub events_dropped: u64,
}

/// Kinds of block requests: indices of [`Block`]'s arrays.
pub const BLOCK_READ: usize = 0;
/// Writes.
pub const BLOCK_WRITE: usize = 1;
/// Discards.
pub const BLOCK_DISCARD: usize = 2;
/// Flushes and all others.
pub const BLOCK_OTHER: usize = 3;
/// How many kinds there are.
pub const BLOCK_KINDS: usize = 4;

/// Block I/O of one container, on one CPU. Group `block`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// From the begin of a request to its completion, by kind.
    pub latency: [Log2; BLOCK_KINDS],
    /// Bytes of completed requests, by kind.
    pub bytes: [u64; BLOCK_KINDS],
    /// Completed requests, by kind. Those that `latency` lacks ended without the program being called for it; their bytes
    /// are those that they began with.
    pub requests: [u64; BLOCK_KINDS],
    /// Requests that ended with an error.
    pub errors: u64,
    /// Requests begun that are followed. Less those completed and `merged`: what is in flight.
    pub begun: u64,
    /// Requests begun that became part of another one: they have no completion of their own.
    pub merged: u64,
    /// Requests begun that could not be followed because the map of requests was full.
    pub untracked: u64,
}

/// A block request on its way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// When it began, ns of CLOCK_MONOTONIC.
    pub begun: u64,
    /// The container that made it: id of a cgroup; or [`HOST`] or [`WRITEBACK`].
    pub container: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Its kind.
    pub kind: u32,
    /// 1: a part of it has failed.
    pub failed: u32,
}

/// Causes of a failed connect: indices of [`Net::failures`].
pub const FAILURE_REFUSED: usize = 0;
/// Nobody answered in time.
pub const FAILURE_TIMEOUT: usize = 1;
/// The host or the network could not be reached.
pub const FAILURE_UNREACHABLE: usize = 2;
/// The peer reset it while it was made.
pub const FAILURE_RESET: usize = 3;
/// Given up by the program itself, by close or an interrupted call.
pub const FAILURE_ABORTED: usize = 4;
/// Another cause.
pub const FAILURE_OTHER: usize = 5;
/// How many causes there are.
pub const FAILURES: usize = 6;

/// The network of one container, on one CPU. Group `net`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// Round-trip times that the kernel measured on TCP connections.
    pub rtt: Log2,
    /// From SYN to established, of connections that the container opened.
    pub connect_latency: Log2,
    /// Bytes of packets that its sockets received, from the network layer's header on.
    pub received_bytes: u64,
    /// The same sent.
    pub sent_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// TCP connections that it opened.
    pub connects: u64,
    /// TCP connections that it accepted.
    pub accepts: u64,
    /// Connections closed that were established.
    pub closes: u64,
    /// Failed connects, by cause.
    pub failures: [u64; FAILURES],
    /// TCP segments sent again.
    pub retransmits: u64,
    /// Resets received.
    pub resets_received: u64,
    /// Resets sent.
    pub resets_sent: u64,
    /// Edges that found their map full.
    pub edges_dropped: u64,
    /// Connections whose begin could not be kept because their map was full.
    pub untracked: u64,
}

/// Who speaks with whom: key of the map of edges. Group `net`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    /// The container: id of a cgroup.
    pub container: u64,
    /// The peer's address; IPv4 mapped into IPv6.
    pub address: [u8; 16],
    /// The server's port: the peer's for connections that the container opened, its own for accepted ones.
    pub port: u16,
    /// 1: the container opened it; 2: it accepted it.
    pub direction: u8,
    /// Zero.
    pub padding: [u8; 5],
}

/// The container opened the connection: [`EdgeKey::direction`].
pub const OPENED: u8 = 1;
/// It accepted it.
pub const ACCEPTED: u8 = 2;

/// So many round trips of a connection are measured, and again so many after each segment that was sent again: a program
/// that runs for each of a busy connection's would cost more than all others together.
pub const ROUND_TRIPS: u8 = 64;

/// A TCP connection that is followed, by the address of its socket in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// When it was asked for, ns of CLOCK_MONOTONIC.
    pub begun: u64,
    /// The container: id of a cgroup, or [`HOST`].
    pub container: u64,
    /// Process that opened it, in the first pid namespace; 0 for an accepted one.
    pub pid: u32,
    /// The server's port: the peer's if the container opened it, its own if it accepted it.
    pub port: u16,
    /// [`OPENED`] or [`ACCEPTED`].
    pub direction: u8,
    /// Round trips counted since it was made or last had to send something again, at most [`ROUND_TRIPS`].
    pub samples: u8,
    /// Name of that process's command.
    pub command: [u8; COMM],
}

/// What an edge counts; one value, changed atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// Connections made.
    pub connections: u64,
    /// Connects that failed.
    pub failures: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Bytes received by connections that have ended.
    pub received_bytes: u64,
    /// Bytes sent and acknowledged on connections that have ended.
    pub sent_bytes: u64,
    /// When it was last changed, ns of CLOCK_MONOTONIC.
    pub last: u64,
}

/// Key of everything on the host that is in no container.
pub const HOST: u64 = 0;
/// Key of block requests that the kernel's writeback made for nobody that it names.
pub const WRITEBACK: u64 = 1;
/// Key of a container whose cgroup was not published: counted, and never taken for another.
pub const UNKNOWN: u64 = 2;

/// Length of a command's name in the kernel, with its NUL.
pub const COMM: usize = 16;
/// Bytes of a program's path in an event.
pub const PATH: usize = 96;
/// Bytes of its arguments.
pub const ARGUMENTS: usize = 160;

/// Kinds of events in the ring: the first field of [`Event`].
pub const EVENT_EXEC: u32 = 1;
/// A process ended.
pub const EVENT_EXIT: u32 = 2;
/// The kernel chose a victim for want of memory.
pub const EVENT_OOM: u32 = 3;
/// A connect failed.
pub const EVENT_CONNECT_FAILED: u32 = 4;

/// A rare event, in the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// One of `EVENT_…`.
    pub kind: u32,
    /// Process, in the first pid namespace.
    pub pid: u32,
    /// When, ns of CLOCK_MONOTONIC (`bpf_ktime_get_ns`).
    pub time: u64,
    /// The container: id of a cgroup.
    pub container: u64,
    /// Parent process of exec and exit; in other kinds 0.
    pub parent: u32,
    /// Exit: status as of wait(2). Failed connect: errno.
    pub code: u32,
    /// Who sent the signal that ended the process; 0: not known, or the kernel.
    pub sender: u32,
    /// The port of a failed connect.
    pub port: u16,
    /// Bytes of `arguments` that are used.
    pub length: u16,
    /// The container of the sender; [`HOST`] if it is in none.
    pub sender_container: u64,
    /// Peer of a failed connect; IPv4 mapped into IPv6.
    pub address: [u8; 16],
    /// Name of the command.
    pub command: [u8; COMM],
    /// Name of the sender's command.
    pub sender_command: [u8; COMM],
    /// Exec: the program's path, with a NUL at its end where it is shorter.
    pub path: [u8; PATH],
    /// Exec: the program's arguments, each with a NUL at its end, cut at [`ARGUMENTS`].
    pub arguments: [u8; ARGUMENTS],
}

/// Who sent a process the last signal that may end it: value of a map by process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// Process of the sender.
    pub pid: u32,
    /// The signal.
    pub signal: u32,
    /// Its container, or [`HOST`].
    pub container: u64,
    /// Its command's name.
    pub command: [u8; COMM],
}

/// A container as the programs know it: value of the map of containers, by cgroup id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Flags: `KNOWN_…`.
    pub flags: u32,
    /// Zero.
    pub padding: u32,
    /// Events that may go to the ring at this moment, times 2^0; refilled by `rate`.
    pub tokens: u64,
    /// When tokens were last refilled, ns of CLOCK_MONOTONIC.
    pub refilled: u64,
}

/// Its stacks are sampled.
pub const KNOWN_PROFILED: u32 = 1;

/// What the loader tells the programs before they are loaded: offsets in the running kernel's structures, in bytes, and
/// settings. An offset of [`ABSENT`] says that the kernel has no such field.
pub const ABSENT: u32 = u32::MAX;

/// Addresses of a stack that are kept; what lies further out is left away.
pub const STACK_DEPTH: usize = 127;

/// Key of a counted stack. Group `profile`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StackKey {
    /// The container: id of a cgroup.
    pub container: u64,
    /// [`StackId::hash`] of the stack in user space; 0: there is none; 1: there was one, and it could not be kept.
    pub user: u64,
    /// The same of the kernel's stack.
    pub kernel: u64,
    /// Process, in the first pid namespace.
    pub process: u32,
    /// [`ProfileSettings::epoch`] when it was counted.
    pub epoch: u32,
    /// Name of the command.
    pub command: [u8; COMM],
}

/// Stack of a [`StackKey`] that could not be kept: the map was full.
pub const STACK_LOST: u64 = 1;

/// Key of a kept stack. Group `profile`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StackId {
    /// Hash of its addresses.
    pub hash: u64,
    /// [`ProfileSettings::epoch`] when it was kept.
    pub epoch: u32,
    /// Zero.
    pub padding: u32,
}

/// A stack, innermost address first. Group `profile`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Addresses that are used.
    pub length: u64,
    /// The addresses.
    pub addresses: [u64; STACK_DEPTH],
}

/// What the loader tells the profile's program while it runs: the only entry of an array. Group `profile`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProfileSettings {
    /// Grows by one before the counts are read: what is counted from then on has another key than what is read.
    pub epoch: u32,
    /// Samples each second on each CPU.
    pub hz: u32,
}

/// What the profile's program met with, on one CPU. Group `profile`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProfileTallies {
    /// Times that it ran.
    pub ticks: u64,
    /// Samples that were counted.
    pub samples: u64,
    /// Samples left out because their container wants fewer than the program takes.
    pub thinned: u64,
    /// Samples that were lost because the map of counts was full.
    pub lost_samples: u64,
    /// Stacks that were lost because their map was full; the sample is counted without it.
    pub lost_stacks: u64,
    /// Words about new processes that found the ring full.
    pub lost_notices: u64,
}

/// Word about a process that was sampled for the first time, in the profile's ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sampled {
    /// Its container: id of a cgroup.
    pub container: u64,
    /// Process, in the first pid namespace.
    pub process: u32,
    /// Zero.
    pub padding: u32,
    /// Name of the command: another one after an exec.
    pub command: [u8; COMM],
}
