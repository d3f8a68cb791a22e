//! For each signal the ways to get it, the best first.

use super::signal::{Rung, Signal};

/// Where a program hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// A tracepoint with types.
    Btf(&'static str),
    /// A raw tracepoint.
    Raw(&'static str),
    /// A tracepoint of tracefs: category and name.
    Trace(&'static str, &'static str),
    /// Packets that sockets below the pods' cgroup receive.
    Ingress,
    /// Packets that they send.
    Egress,
    /// What happens to their TCP connections.
    SockOps,
}

impl Hook {
    /// Its rung.
    pub fn rung(self) -> Rung {
        match self {
            Self::Btf(_) => Rung::TpBtf,
            Self::Raw(_) => Rung::RawTp,
            Self::Trace(..) => Rung::Tracepoint,
            Self::Ingress | Self::Egress | Self::SockOps => Rung::Cgroup,
        }
    }
}

/// One way to get a signal: all of its programs, or none.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Functions of the object and where each hangs. A function that two signals need is attached once.
    pub programs: &'static [(&'static str, Hook)],
    /// Globals of [`agentd_ebpf_common::fields`] that it cannot do without.
    pub fields: &'static [&'static str],
}

impl Step {
    /// The rung that it makes.
    pub fn rung(&self) -> Rung {
        self.programs.first().map_or(Rung::Off, |(_, hook)| hook.rung())
    }
}

const OF_TASK: &[&str] =
    &["TASK_CGROUPS", "CSS_SET_CGROUP", "CGROUP_LEVEL", "CGROUP_ANCESTORS", "CGROUP_NODE", "NODE_ID"];

macro_rules! steps {
    ($($name:ident: $fields:expr => [$($programs:expr),* $(,)?];)*) => {
        $(const $name: &[Step] = &[$(Step { programs: $programs, fields: $fields }),*];)*
    };
}

const RUN_QUEUE_FIELDS: &[&str] = &["TASK_RAN", "TASK_QUEUED", "TASK_YIELDED", "TASK_FORCED"];
const EXIT_FIELDS: &[&str] = &[
    "TASK_SIGNAL",
    "SIGNAL_LIVE",
    "SIGNAL_FLAGS",
    "SIGNAL_EXIT_CODE",
    "SIGNAL_THREADS",
    "TASK_EXIT_CODE",
    "TASK_LEADER",
    "TASK_START",
];
const FORK_FIELDS: &[&str] = &["TASK_TGID", "TASK_PID"];

steps! {
    SIGNALS: OF_TASK => [
        &[("signal_btf", Hook::Btf("signal_generate"))],
        &[("signal_raw", Hook::Raw("signal_generate"))],
    ];
}

/// Steps whose last one needs no field.
macro_rules! ladder {
    ($($name:ident: $fields:expr => $function:literal on $tracepoint:literal of $category:literal;)*) => {
        $(const $name: &[Step] = &[
            Step { programs: &[(concat!($function, "_btf"), Hook::Btf($tracepoint))], fields: $fields },
            Step { programs: &[(concat!($function, "_raw"), Hook::Raw($tracepoint))], fields: $fields },
            Step { programs: &[(concat!($function, "_tp"), Hook::Trace($category, $tracepoint))], fields: &[] },
        ];)*
    };
}

ladder! {
    EXEC: &[] => "exec" on "sched_process_exec" of "sched";
    FORK: FORK_FIELDS => "fork" on "sched_process_fork" of "sched";
    EXIT: EXIT_FIELDS => "exit" on "sched_process_exit" of "sched";
    OOM: OF_TASK => "victim" on "mark_victim" of "oom";
}

const RUN_QUEUE: &[Step] = &[
    Step {
        programs: &[("switch_btf", Hook::Btf("sched_switch")), ("renumber_btf", Hook::Btf("sched_process_exec"))],
        fields: RUN_QUEUE_FIELDS,
    },
    Step {
        programs: &[("switch_raw", Hook::Raw("sched_switch")), ("renumber_raw", Hook::Raw("sched_process_exec"))],
        fields: RUN_QUEUE_FIELDS,
    },
    Step {
        programs: &[
            ("switch_tp", Hook::Trace("sched", "sched_switch")),
            ("wakeup_tp", Hook::Trace("sched", "sched_wakeup")),
            ("wakeup_new_tp", Hook::Trace("sched", "sched_wakeup_new")),
            ("renumber_tp", Hook::Trace("sched", "sched_process_exec")),
        ],
        fields: &[],
    },
];

const REQUEST_FIELDS: &[&str] = &["REQUEST_FLAGS", "REQUEST_BYTES"];

/// Ends are attached before begins: a request that ends in between would stay in the map for ever.
const BLOCK_IO: &[Step] = &[
    Step {
        programs: &[
            ("io_complete_btf", Hook::Btf("block_rq_complete")),
            ("io_merge_btf", Hook::Btf("block_rq_merge")),
            ("io_start_btf", Hook::Btf("block_io_start")),
        ],
        fields: REQUEST_FIELDS,
    },
    // before Linux 6.5
    Step {
        programs: &[
            ("io_complete_btf", Hook::Btf("block_rq_complete")),
            ("io_merge_btf", Hook::Btf("block_rq_merge")),
            ("io_insert_btf", Hook::Btf("block_rq_insert")),
            ("io_issue_btf", Hook::Btf("block_rq_issue")),
        ],
        fields: REQUEST_FIELDS,
    },
    Step {
        programs: &[
            ("io_complete_raw", Hook::Raw("block_rq_complete")),
            ("io_merge_raw", Hook::Raw("block_rq_merge")),
            ("io_start_raw", Hook::Raw("block_io_start")),
        ],
        fields: REQUEST_FIELDS,
    },
    Step {
        programs: &[
            ("io_complete_raw", Hook::Raw("block_rq_complete")),
            ("io_merge_raw", Hook::Raw("block_rq_merge")),
            ("io_insert_raw", Hook::Raw("block_rq_insert")),
            ("io_issue_raw", Hook::Raw("block_rq_issue")),
        ],
        fields: REQUEST_FIELDS,
    },
    Step {
        programs: &[
            ("io_complete_tp", Hook::Trace("block", "block_rq_complete")),
            ("io_issue_tp", Hook::Trace("block", "block_rq_issue")),
        ],
        fields: &[],
    },
];

const SOCKET_FIELDS: &[&str] =
    &["SOCK_CGROUP", "SOCK_STATE", "CGROUP_LEVEL", "CGROUP_ANCESTORS", "CGROUP_NODE", "NODE_ID"];

const CONNECTION_FIELDS: &[&str] = &[
    "SOCK_CGROUP",
    "SOCK_STATE",
    "SOCK_PROTOCOL",
    "SOCK_ERROR",
    "SOCK_FAMILY",
    "SOCK_PORT",
    "SOCK_PEER_PORT",
    "CGROUP_LEVEL",
    "CGROUP_ANCESTORS",
    "CGROUP_NODE",
    "NODE_ID",
];

ladder! {
    CONNECTIONS: CONNECTION_FIELDS => "state" on "inet_sock_set_state" of "sock";
}

const RETRANSMITS: &[Step] = &[
    Step {
        programs: &[
            ("retransmit_btf", Hook::Btf("tcp_retransmit_skb")),
            ("synack_btf", Hook::Btf("tcp_retransmit_synack")),
        ],
        fields: SOCKET_FIELDS,
    },
    Step {
        programs: &[
            ("retransmit_raw", Hook::Raw("tcp_retransmit_skb")),
            ("synack_raw", Hook::Raw("tcp_retransmit_synack")),
        ],
        fields: SOCKET_FIELDS,
    },
    Step { programs: &[("retransmit_tp", Hook::Trace("tcp", "tcp_retransmit_skb"))], fields: &[] },
];

const RESETS: &[Step] = &[
    Step {
        programs: &[
            ("reset_received_btf", Hook::Btf("tcp_receive_reset")),
            ("reset_sent_btf", Hook::Btf("tcp_send_reset")),
        ],
        fields: SOCKET_FIELDS,
    },
    Step {
        programs: &[
            ("reset_received_raw", Hook::Raw("tcp_receive_reset")),
            ("reset_sent_raw", Hook::Raw("tcp_send_reset")),
        ],
        fields: SOCKET_FIELDS,
    },
    Step {
        programs: &[
            ("reset_received_tp", Hook::Trace("tcp", "tcp_receive_reset")),
            ("reset_sent_tp", Hook::Trace("tcp", "tcp_send_reset")),
        ],
        fields: &[],
    },
];

const RTT: &[Step] = &[Step { programs: &[("rtt_cg", Hook::SockOps)], fields: SOCKET_FIELDS }];

const PACKETS: &[Step] =
    &[Step { programs: &[("received_cg", Hook::Ingress), ("sent_cg", Hook::Egress)], fields: &[] }];

/// The ways to get a signal, the best first.
pub fn steps(signal: Signal) -> &'static [Step] {
    match signal {
        Signal::RunQueue => RUN_QUEUE,
        Signal::Exec => EXEC,
        Signal::Fork => FORK,
        Signal::Exit => EXIT,
        Signal::Signals => SIGNALS,
        Signal::Oom => OOM,
        Signal::BlockIo => BLOCK_IO,
        Signal::Connections => CONNECTIONS,
        Signal::Retransmits => RETRANSMITS,
        Signal::Resets => RESETS,
        Signal::Rtt => RTT,
        Signal::Packets => PACKETS,
        // of a loader of its own: `observe::profile`
        Signal::Stacks => &[],
    }
}

/// What is left of a signal when no program can be attached.
pub fn below(signal: Signal) -> (Rung, &'static str) {
    match signal {
        Signal::RunQueue => (Rung::Files, "no histograms; CPU time, throttling and pressure from cgroup files"),
        Signal::Oom => (Rung::Files, "counted by memory.events or memory.oom_control, victims from the kernel's log"),
        Signal::BlockIo => (Rung::Files, "no latency; bytes and requests from io.stat or blkio files"),
        Signal::Packets => (Rung::Files, "no containers apart; interfaces of the pod's network namespace"),
        Signal::Exec
        | Signal::Fork
        | Signal::Exit
        | Signal::Signals
        | Signal::Connections
        | Signal::Retransmits
        | Signal::Resets
        | Signal::Rtt
        | Signal::Stacks => (Rung::Off, "nothing else tells of it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_stands_on_one_rung_and_rungs_go_down() {
        for signal in Signal::ALL {
            let rungs: Vec<Rung> = steps(signal).iter().map(Step::rung).collect();
            assert!(rungs.is_sorted(), "{signal:?}: {rungs:?}");
            for step in steps(signal) {
                assert!(step.programs.iter().all(|(_, hook)| hook.rung() == step.rung()), "{signal:?}");
                for field in step.fields {
                    assert!(
                        agentd_ebpf_common::fields::FIELDS.iter().any(|known| known.global == *field),
                        "{signal:?}: {field} is no field"
                    );
                }
            }
        }
    }
}
