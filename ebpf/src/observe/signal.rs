//! Signals, the rungs that they can stand on, and what is told about programs and maps.

/// A set of programs that are attached, or not, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Scheduler: run-queue and off-CPU times, switches, migrations.
    Sched,
    /// Processes: exec, fork, exit, signals, victims of want of memory.
    Process,
    /// Block I/O.
    Block,
    /// TCP.
    Net,
    /// Packets of sockets, each of which costs a run of a program.
    Packets,
    /// Samples of stacks; attached while a container is profiled.
    Profile,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Sched, Self::Process, Self::Block, Self::Net, Self::Packets, Self::Profile];

    /// Its name in configuration, metrics and `agentd doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sched => "sched",
            Self::Process => "process",
            Self::Block => "block",
            Self::Net => "net",
            Self::Packets => "packets",
            Self::Profile => "profile",
        }
    }
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    /// Run-queue latency, off-CPU time, context switches, migrations.
    RunQueue,
    /// Programs begun.
    Exec,
    /// Processes made.
    Fork,
    /// Ends of processes.
    Exit,
    /// Who sent a signal that ended a process.
    Signals,
    /// Victims of want of memory.
    Oom,
    /// Latency, bytes and number of block requests.
    BlockIo,
    /// TCP connects, accepts, failures, edges.
    Connections,
    /// TCP segments sent again.
    Retransmits,
    /// TCP resets.
    Resets,
    /// TCP round-trip times.
    Rtt,
    /// Bytes and packets by socket.
    Packets,
    /// Sampled stacks.
    Stacks,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::RunQueue,
        Self::Exec,
        Self::Fork,
        Self::Exit,
        Self::Signals,
        Self::Oom,
        Self::BlockIo,
        Self::Connections,
        Self::Retransmits,
        Self::Resets,
        Self::Rtt,
        Self::Packets,
        Self::Stacks,
    ];

    /// Its name in metrics and `agentd doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Self::RunQueue => "run-queue",
            Self::Exec => "exec",
            Self::Fork => "fork",
            Self::Exit => "exit",
            Self::Signals => "signals",
            Self::Oom => "oom",
            Self::BlockIo => "block-io",
            Self::Connections => "connections",
            Self::Retransmits => "retransmits",
            Self::Resets => "resets",
            Self::Rtt => "rtt",
            Self::Packets => "packets",
            Self::Stacks => "stacks",
        }
    }

    /// The group whose programs give it.
    pub fn group(self) -> Group {
        match self {
            Self::RunQueue => Group::Sched,
            Self::Exec | Self::Fork | Self::Exit | Self::Signals | Self::Oom => Group::Process,
            Self::BlockIo => Group::Block,
            Self::Connections | Self::Retransmits | Self::Resets | Self::Rtt => Group::Net,
            Self::Packets => Group::Packets,
            Self::Stacks => Group::Profile,
        }
    }
}

/// How a signal is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rung {
    /// A tracepoint with types.
    TpBtf,
    /// A raw tracepoint.
    RawTp,
    /// A tracepoint of tracefs.
    Tracepoint,
    /// A program on the pods' cgroup.
    Cgroup,
    /// A software clock.
    PerfEvent,
    /// Files of cgroupfs and procfs, without programs: less than the programs give.
    Files,
    /// Not at all.
    Off,
}

impl Rung {
    /// Its name in metrics and `agentd doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::RawTp => "raw_tp",
            Self::Tracepoint => "tracepoint",
            Self::Cgroup => "cgroup",
            Self::PerfEvent => "perf_event",
            Self::Files => "files",
            Self::Off => "off",
        }
    }
}

/// Where a signal stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalState {
    /// Which.
    pub signal: Signal,
    /// On which rung.
    pub rung: Rung,
    /// Why it stands no higher; none for the best rung.
    pub why: Option<String>,
}

/// What a program has cost, from the kernel's own statistics, which are counted while somebody asked for them
/// ([`super::Observer::measure`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramCost {
    /// Name.
    pub name: String,
    /// Group.
    pub group: Group,
    /// The kernel's number of it.
    pub id: u32,
    /// Runs.
    pub runs: u64,
    /// Time in it, ns.
    pub run_time: u64,
    /// Runs that the kernel left out because the program was already running on that CPU.
    pub missed: u64,
}

/// How full a map is, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapUse {
    /// Name.
    pub name: String,
    /// Entries that it has room for.
    pub capacity: u64,
    /// Entries in it, where they can be counted cheaply.
    pub entries: Option<u64>,
    /// Memory of the kernel that it takes, bytes.
    pub bytes: u64,
}
