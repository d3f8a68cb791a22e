//! Requests, replies and notifications between agentd, the zygote and the pod-inits.
//!
//! Each request carries a sequence number that its reply repeats; notifications carry 0. Descriptors travel beside a
//! message; each variant says which it expects.

use crate::wire::{Decoder, Encoder, Malformed};

/// Version of this protocol. A pod-init of another version is still asked for its state, which never changes shape.
/// Version 2 has [`Streams::Parked`], [`Streams::Terminal`], [`Request::Unpark`] and [`Request::Plan`]; version 3 has
/// [`Request::Run`].
pub const PROTOCOL: u32 = 3;

/// First version with sessions: parked streams, terminals and kept plans.
pub const PROTOCOL_SESSIONS: u32 = 2;

/// First version with [`Request::Run`].
pub const PROTOCOL_RUN: u32 = 3;

/// How a spare's namespaces are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpareKind {
    /// A new pid namespace, of which it is process 1.
    Own,
    /// The pod's shared pid namespace, made with a pause process on first use.
    SharedPid,
    /// It will enter the namespaces of the running process `key` (exec session or command check). It is forked when its
    /// plan comes, so that nothing of agentd's waits inside a container; until then its process id is told as 0.
    Join {
        /// Key of the container's process.
        key: u32,
    },
}

/// Where the standard streams of a process come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// pod-init makes pipes for output and error, keeps both ends of each, and answers with the read ends. Input is
    /// `/dev/null`.
    Capture,
    /// agentd gives three descriptors.
    Given,
    /// agentd gives three descriptors for the process and `kept` more, its own ends, that pod-init keeps for a daemon
    /// that comes back. The first of them is the write end of standard input where there is one.
    Parked {
        /// Number of descriptors that are kept.
        kept: u8,
    },
    /// A new terminal of the container, which becomes the controlling one. pod-init keeps `kept` descriptors of agentd's
    /// and after them the terminal's master, and answers with all of them.
    Terminal {
        /// Number of descriptors that are kept.
        kept: u8,
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
}

/// What agentd asks of the zygote or a pod-init. A process is named by its `key`: the container's slot, or a number from
/// [`FIRST_EXEC_KEY`] for a process that joins a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// To the zygote: fork a pod-init. Descriptors: listening socket, folder for exit statuses, cgroup2 directory.
    /// Answer: [`Reply::Process`] and its pidfd.
    Fork {
        /// Whether the pod-init makes a network namespace of its own.
        own_network: bool,
    },
    /// Ask for the state. Answer: [`Reply::State`].
    Hello,
    /// Set the host name of the pod's uts namespace.
    Hostname {
        /// The name, at most 64 bytes.
        name: String,
    },
    /// Fork a spare. Descriptors: cgroup2 directory, then the `tasks` files of v1 cgroups that the spare joins by itself.
    /// Answer: [`Reply::Process`] and its pidfd (none for [`SpareKind::Join`]).
    Spare {
        /// Its key; must be free.
        key: u32,
        /// How its namespaces are made.
        kind: SpareKind,
    },
    /// Hand a spare its plan. Descriptors: the plan's memfd, those that [`Streams`] asks for, then those that the plan
    /// names. Answer: [`Reply::Process`] once the program has been exec'd, with what [`Streams`] says.
    Start {
        /// The spare.
        key: u32,
        /// Number of this start, for the exit status file.
        attempt: u32,
        /// Where its standard input, output and error come from.
        streams: Streams,
    },
    /// Ask for the descriptors that are parked for a started process. Answer: [`Reply::Done`] and these, in the order in
    /// which they were parked: two read ends with [`Streams::Capture`], agentd's with [`Streams::Parked`], agentd's and
    /// the master with [`Streams::Terminal`].
    Pipes {
        /// The process.
        key: u32,
    },
    /// Let go of the first parked descriptor, so that closing agentd's copy closes the program's standard input.
    Unpark {
        /// The process.
        key: u32,
    },
    /// Ask for the plan of a started process, for programs that join it. Answer: [`Reply::Done`] and the memfd.
    Plan {
        /// The process.
        key: u32,
    },
    /// Send a signal to a process.
    Signal {
        /// The process.
        key: u32,
        /// Signal number.
        signal: i32,
    },
    /// Forget a process that has exited; ends a spare that has not been started.
    Forget {
        /// The process.
        key: u32,
    },
    /// Run a program in the namespaces of the running process `target` to its end: a spare and its start in one, and
    /// forgotten by itself. Descriptors: the plan's memfd, standard input, output and error, the cgroup2 directory, then the
    /// `tasks` files of v1 cgroups. Answer, once it has ended: [`Reply::Exited`], or [`Reply::Failed`] if the program was
    /// never exec'd.
    Run {
        /// Its key; must be free.
        key: u32,
        /// Key of the container's process.
        target: u32,
    },
    /// Attach a detached mount at `/volumes/<name>` of the pod-init's own mount namespace. Descriptor: the mount.
    Hold {
        /// A name without slash.
        name: String,
    },
    /// End. The kernel ends with it nothing else: agentd kills the pod's cgroup first.
    Shutdown,
}

/// Keys from here on name processes that join a container.
pub const FIRST_EXEC_KEY: u32 = 1 << 16;

/// How a process ended, as `waitid(2)` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Exit code.
    Code(i32),
    /// Signal.
    Signal(i32),
}

impl Ended {
    /// One line as it stands in an exit status file.
    pub fn to_line(self) -> String {
        match self {
            Self::Code(code) => format!("code {code}\n"),
            Self::Signal(signal) => format!("signal {signal}\n"),
        }
    }

    /// Reads the line back.
    pub fn from_line(line: &str) -> Option<Self> {
        let (word, number) = line.trim_end().split_once(' ')?;
        let number = number.parse().ok()?;
        match word {
            "code" => Some(Self::Code(number)),
            "signal" => Some(Self::Signal(number)),
            _ => None,
        }
    }
}

/// Name of the exit status file of a start of a process.
pub fn exit_file(key: u32, attempt: u32) -> String {
    format!("{key}.{attempt}")
}

/// What a process of a pod-init is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It waits for its plan.
    Spare,
    /// It has its plan and has not exec'd yet.
    Starting,
    /// Its program runs.
    Running,
    /// It has ended.
    Exited(Ended),
}

/// One process in [`Reply::State`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessEntry {
    /// Its key.
    pub key: u32,
    /// Number of its start.
    pub attempt: u32,
    /// Its process id.
    pub pid: u32,
    /// What it is doing.
    pub state: ProcessState,
}

/// An answer or a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done; descriptors as the request says.
    Done,
    /// A process was made or started.
    Process {
        /// Its process id on the host.
        pid: u32,
    },
    /// The request failed; nothing is left of it (a failed spare has ended).
    Failed {
        /// The step, e.g. `mount /data`.
        stage: String,
        /// The system's error number, 0 if none.
        errno: i32,
    },
    /// The state.
    State {
        /// Protocol of the pod-init.
        protocol: u32,
        /// Its process id.
        pid: u32,
        /// Its processes.
        processes: Vec<ProcessEntry>,
    },
    /// Notification: a started process has ended; its exit status file is written. Also the answer to [`Request::Run`].
    Exited {
        /// The process.
        key: u32,
        /// Number of the start.
        attempt: u32,
        /// How.
        ended: Ended,
    },
}

fn text(d: &mut Decoder<'_>) -> Result<String, Malformed> {
    String::from_utf8(d.bytes()?).map_err(|_| Malformed("text is not UTF-8"))
}

impl Request {
    /// The request as bytes.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut e = Encoder::default();
        e.u32(sequence);
        match self {
            Self::Fork { own_network } => {
                e.u8(0);
                e.bool(*own_network);
            }
            Self::Hello => e.u8(1),
            Self::Hostname { name } => {
                e.u8(2);
                e.bytes(name.as_bytes());
            }
            Self::Spare { key, kind } => {
                e.u8(4);
                e.u32(*key);
                match kind {
                    SpareKind::Own => e.u8(0),
                    SpareKind::SharedPid => e.u8(1),
                    SpareKind::Join { key } => {
                        e.u8(2);
                        e.u32(*key);
                    }
                }
            }
            Self::Start { key, attempt, streams } => {
                e.u8(5);
                e.u32(*key);
                e.u32(*attempt);
                match streams {
                    Streams::Capture => e.u8(0),
                    Streams::Given => e.u8(1),
                    Streams::Parked { kept } => {
                        e.u8(2);
                        e.u8(*kept);
                    }
                    Streams::Terminal { kept, rows, columns } => {
                        e.u8(3);
                        e.u8(*kept);
                        e.u32(u32::from(*rows));
                        e.u32(u32::from(*columns));
                    }
                }
            }
            Self::Unpark { key } => {
                e.u8(11);
                e.u32(*key);
            }
            Self::Plan { key } => {
                e.u8(12);
                e.u32(*key);
            }
            Self::Run { key, target } => {
                e.u8(13);
                e.u32(*key);
                e.u32(*target);
            }
            Self::Pipes { key } => {
                e.u8(6);
                e.u32(*key);
            }
            Self::Signal { key, signal } => {
                e.u8(7);
                e.u32(*key);
                e.i32(*signal);
            }
            Self::Forget { key } => {
                e.u8(8);
                e.u32(*key);
            }
            Self::Hold { name } => {
                e.u8(9);
                e.bytes(name.as_bytes());
            }
            Self::Shutdown => e.u8(10),
        }
        e.0
    }

    /// Reads a request and its sequence number.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let mut d = Decoder(bytes);
        let sequence = d.u32()?;
        let request = match d.u8()? {
            0 => Self::Fork { own_network: d.bool()? },
            1 => Self::Hello,
            2 => Self::Hostname { name: text(&mut d)? },
            4 => Self::Spare {
                key: d.u32()?,
                kind: match d.u8()? {
                    0 => SpareKind::Own,
                    1 => SpareKind::SharedPid,
                    2 => SpareKind::Join { key: d.u32()? },
                    _ => return Err(Malformed("unknown kind of spare")),
                },
            },
            5 => Self::Start {
                key: d.u32()?,
                attempt: d.u32()?,
                streams: match d.u8()? {
                    0 => Streams::Capture,
                    1 => Streams::Given,
                    2 => Streams::Parked { kept: d.u8()? },
                    3 => Streams::Terminal { kept: d.u8()?, rows: d.u32()? as u16, columns: d.u32()? as u16 },
                    _ => return Err(Malformed("unknown streams")),
                },
            },
            11 => Self::Unpark { key: d.u32()? },
            12 => Self::Plan { key: d.u32()? },
            13 => Self::Run { key: d.u32()?, target: d.u32()? },
            6 => Self::Pipes { key: d.u32()? },
            7 => Self::Signal { key: d.u32()?, signal: d.i32()? },
            8 => Self::Forget { key: d.u32()? },
            9 => Self::Hold { name: text(&mut d)? },
            10 => Self::Shutdown,
            _ => return Err(Malformed("unknown request")),
        };
        d.end()?;
        Ok((sequence, request))
    }
}

fn encode_ended(e: &mut Encoder, ended: Ended) {
    match ended {
        Ended::Code(code) => {
            e.u8(0);
            e.i32(code);
        }
        Ended::Signal(signal) => {
            e.u8(1);
            e.i32(signal);
        }
    }
}

fn decode_ended(d: &mut Decoder<'_>) -> Result<Ended, Malformed> {
    match d.u8()? {
        0 => Ok(Ended::Code(d.i32()?)),
        1 => Ok(Ended::Signal(d.i32()?)),
        _ => Err(Malformed("unknown exit status")),
    }
}

impl Reply {
    /// The reply as bytes.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut e = Encoder::default();
        e.u32(sequence);
        match self {
            Self::Done => e.u8(0),
            Self::Process { pid } => {
                e.u8(1);
                e.u32(*pid);
            }
            Self::Failed { stage, errno } => {
                e.u8(2);
                e.bytes(stage.as_bytes());
                e.i32(*errno);
            }
            Self::State { protocol, pid, processes } => {
                e.u8(3);
                e.u32(*protocol);
                e.u32(*pid);
                e.list(processes, |e, p| {
                    e.u32(p.key);
                    e.u32(p.attempt);
                    e.u32(p.pid);
                    match p.state {
                        ProcessState::Spare => e.u8(0),
                        ProcessState::Starting => e.u8(1),
                        ProcessState::Running => e.u8(2),
                        ProcessState::Exited(ended) => {
                            e.u8(3);
                            encode_ended(e, ended);
                        }
                    }
                });
            }
            Self::Exited { key, attempt, ended } => {
                e.u8(4);
                e.u32(*key);
                e.u32(*attempt);
                encode_ended(&mut e, *ended);
            }
        }
        e.0
    }

    /// Reads a reply and its sequence number.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let mut d = Decoder(bytes);
        let sequence = d.u32()?;
        let reply = match d.u8()? {
            0 => Self::Done,
            1 => Self::Process { pid: d.u32()? },
            2 => Self::Failed { stage: text(&mut d)?, errno: d.i32()? },
            3 => Self::State {
                protocol: d.u32()?,
                pid: d.u32()?,
                processes: d.list(|d| {
                    Ok(ProcessEntry {
                        key: d.u32()?,
                        attempt: d.u32()?,
                        pid: d.u32()?,
                        state: match d.u8()? {
                            0 => ProcessState::Spare,
                            1 => ProcessState::Starting,
                            2 => ProcessState::Running,
                            3 => ProcessState::Exited(decode_ended(d)?),
                            _ => return Err(Malformed("unknown process state")),
                        },
                    })
                })?,
            },
            4 => Self::Exited { key: d.u32()?, attempt: d.u32()?, ended: decode_ended(&mut d)? },
            _ => return Err(Malformed("unknown reply")),
        };
        d.end()?;
        Ok((sequence, reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_survive_the_wire() {
        for request in [
            Request::Fork { own_network: true },
            Request::Hello,
            Request::Hostname { name: "h".into() },
            Request::Spare { key: 3, kind: SpareKind::Join { key: 1 } },
            Request::Start { key: 3, attempt: 9, streams: Streams::Given },
            Request::Start { key: 3, attempt: 9, streams: Streams::Parked { kept: 3 } },
            Request::Start { key: 3, attempt: 9, streams: Streams::Terminal { kept: 1, rows: 24, columns: 65535 } },
            Request::Unpark { key: 8 },
            Request::Plan { key: 8 },
            Request::Run { key: 65536, target: 2 },
            Request::Signal { key: 1, signal: -1 },
            Request::Hold { name: "v".into() },
            Request::Shutdown,
        ] {
            assert_eq!(Request::decode(&request.encode(7)), Ok((7, request)));
        }
        for reply in [
            Reply::Failed { stage: "mount /x".into(), errno: 2 },
            Reply::State {
                protocol: PROTOCOL,
                pid: 5,
                processes: vec![ProcessEntry {
                    key: 1,
                    attempt: 2,
                    pid: 3,
                    state: ProcessState::Exited(Ended::Signal(9)),
                }],
            },
            Reply::Exited { key: 1, attempt: 2, ended: Ended::Code(-1) },
        ] {
            assert_eq!(Reply::decode(&reply.encode(0)), Ok((0, reply)));
        }
        assert_eq!(Ended::from_line(&Ended::Code(3).to_line()), Some(Ended::Code(3)));
        assert_eq!(Ended::from_line("rubbish"), None);
    }
}
