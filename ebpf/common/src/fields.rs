//! Fields of the kernel's structures that the programs read, and settings that the loader gives them.
//!
//! Rust's compiler for BPF writes no CO-RE relocations. So the loader looks up each field's offset in the running kernel's
//! BTF, and writes it into the program's read-only data before loading: to the verifier it is a constant.

use crate::ABSENT;

/// A field whose offset is looked up.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name of the global in the programs.
    pub global: &'static str,
    /// Name of the structure.
    pub structure: &'static str,
    /// Path of the field in it; embedded structures are walked with dots, and anonymous ones not named.
    pub path: &'static str,
}

macro_rules! fields {
    ($($(#[$doc:meta])* $global:ident = $structure:literal . $path:literal;)*) => {
        /// Every field.
        pub const FIELDS: &[Field] =
            &[$(Field { global: stringify!($global), structure: $structure, path: $path }),*];

        $($(#[$doc])* #[no_mangle] pub static $global: u32 = ABSENT;)*
    };
}

fields! {
    /// Thread's number.
    TASK_PID = "task_struct"."pid";
    /// Process's number.
    TASK_TGID = "task_struct"."tgid";
    /// Name of the command.
    TASK_COMM = "task_struct"."comm";
    /// Flags of the task (`PF_…`).
    TASK_FLAGS = "task_struct"."flags";
    /// When it was made, ns of CLOCK_MONOTONIC.
    TASK_START = "task_struct"."start_time";
    /// Time on run queues, ns.
    TASK_QUEUED = "task_struct"."sched_info.run_delay";
    /// Time on CPUs, ns.
    TASK_RAN = "task_struct"."se.sum_exec_runtime";
    /// Moves between CPUs.
    TASK_MIGRATIONS = "task_struct"."se.nr_migrations";
    /// Times that it gave up its CPU by itself.
    TASK_YIELDED = "task_struct"."nvcsw";
    /// Times that it was made to.
    TASK_FORCED = "task_struct"."nivcsw";
    /// Parent.
    TASK_PARENT = "task_struct"."real_parent";
    /// First thread of the process.
    TASK_LEADER = "task_struct"."group_leader";
    /// Status of a thread that ended.
    TASK_EXIT_CODE = "task_struct"."exit_code";
    /// What the threads of a process share of signals.
    TASK_SIGNAL = "task_struct"."signal";
    /// Threads that live.
    SIGNAL_LIVE = "signal_struct"."live";
    /// Threads that are not yet gone, those that have ended among them.
    SIGNAL_THREADS = "signal_struct"."nr_threads";
    /// Flags (`SIGNAL_…`).
    SIGNAL_FLAGS = "signal_struct"."flags";
    /// Status of a process that ended as a whole.
    SIGNAL_EXIT_CODE = "signal_struct"."group_exit_code";
    /// Memory of a task.
    TASK_MM = "task_struct"."mm";
    /// Where its arguments begin.
    MM_ARG_START = "mm_struct"."arg_start";
    /// Where they end.
    MM_ARG_END = "mm_struct"."arg_end";
    /// The cgroups of a task.
    TASK_CGROUPS = "task_struct"."cgroups";
    /// That of the cgroup2 tree.
    CSS_SET_CGROUP = "css_set"."dfl_cgrp";
    /// Depth of a cgroup.
    CGROUP_LEVEL = "cgroup"."level";
    /// Those above it, by depth, and itself.
    CGROUP_ANCESTORS = "cgroup"."ancestors";
    /// Its directory.
    CGROUP_NODE = "cgroup"."kn";
    /// The number of a directory.
    NODE_ID = "kernfs_node"."id";
    /// Path of the program that is begun.
    BPRM_FILENAME = "linux_binprm"."filename";
    /// Operation and flags of a block request.
    REQUEST_FLAGS = "request"."cmd_flags";
    /// Its bytes that are not completed.
    REQUEST_BYTES = "request"."__data_len";
    /// The first of what it is made of.
    REQUEST_BIO = "request"."bio";
    /// Who is charged for a piece of block I/O, on one device.
    BIO_BLKG = "bio"."bi_blkg";
    /// The same on all devices.
    BLKG_BLKCG = "blkcg_gq"."blkcg";
    /// Its cgroup.
    BLKCG_CGROUP = "blkcg"."css.cgroup";
    /// The cgroup2 that a socket was made in.
    SOCK_CGROUP = "sock"."sk_cgrp_data.cgroup";
    /// Its protocol (`IPPROTO_…`).
    SOCK_PROTOCOL = "sock"."sk_protocol";
    /// Its error, an errno.
    SOCK_ERROR = "sock"."sk_err";
    /// Family of its addresses.
    SOCK_FAMILY = "sock"."__sk_common.skc_family";
    /// Its state (`TCP_…`); it says, too, how much of the structure is there.
    SOCK_STATE = "sock"."__sk_common.skc_state";
    /// Its own port, in the host's byte order.
    SOCK_PORT = "sock"."__sk_common.skc_num";
    /// Its peer's port, in the network's.
    SOCK_PEER_PORT = "sock"."__sk_common.skc_dport";
    /// Its peer's IPv4 address.
    SOCK_PEER4 = "sock"."__sk_common.skc_daddr";
    /// Its peer's IPv6 address.
    SOCK_PEER6 = "sock"."__sk_common.skc_v6_daddr";
    /// Its flags, by number of a bit (`enum sock_flags`).
    SOCK_FLAGS = "sock"."__sk_common.skc_flags";
    /// Where it was asked for, of a connection that is not yet accepted.
    SOCK_LISTENER = "sock"."__sk_common.skc_listener";
    /// Smoothed round-trip time, eighths of a µs.
    TCP_ROUND_TRIP = "tcp_sock"."srtt_us";
    /// Bytes that a TCP connection received, in order; its FIN is one.
    TCP_RECEIVED = "tcp_sock"."bytes_received";
    /// Bytes that its peer has acknowledged; its own SYN and FIN are one each.
    TCP_ACKED = "tcp_sock"."bytes_acked";
    /// Bytes of data that it sent, those sent again among them.
    TCP_SENT = "tcp_sock"."bytes_sent";
    /// Bytes of data that it sent again.
    TCP_SENT_AGAIN = "tcp_sock"."bytes_retrans";
    /// Segments that it sent, of any kind.
    TCP_SEGMENTS = "tcp_sock"."segs_out";
    /// Space of a packet that the layer it is in uses as it likes.
    SKB_CONTROL = "sk_buff"."cb";
    /// How TCP uses it: segments of the packet.
    CONTROL_SEGMENTS = "tcp_skb_cb"."tcp_gso_segs";
}

/// Depth of a container's directory in the cgroup2 tree.
#[no_mangle]
pub static LEVEL: u32 = 0;
/// Id of the directory that holds all pods, two levels above.
#[no_mangle]
pub static PODS: u64 = 0;
/// Events of one container each second.
#[no_mangle]
pub static EVENT_RATE: u64 = 10;
/// Events of one container at once.
#[no_mangle]
pub static EVENT_BURST: u64 = 50;
/// 1: the tracepoint `mark_victim` gives a task; 0: the number of one.
#[no_mangle]
pub static VICTIM_IS_TASK: u32 = 0;
/// 1: block requests and packets are attributed by the cgroup that the kernel charges; 0: by the task that submits (v1).
#[no_mangle]
pub static CHARGED: u32 = 0;
