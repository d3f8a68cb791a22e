//! Group `net`: TCP connections by the container that owns their socket, who speaks with whom, and packets.
//!
//! Most of TCP happens in interrupts, on behalf of nobody in particular: the owner is the cgroup that the socket was made
//! in, which an accepted one has from its listener. Counters are added to atomically where a program may be interrupted by
//! itself.
//!
//! Edges need to know who opened a connection: that is kept from its begin to its end. Of a connection that is older than
//! the programs, closes and segments are counted, and no edge.

use agentd_ebpf_common::fields::{
    CGROUP_ANCESTORS, CGROUP_LEVEL, CGROUP_NODE, CONTROL_SEGMENTS, LEVEL, NODE_ID, PODS, SKB_CONTROL, SOCK_CGROUP,
    SOCK_ERROR, SOCK_FAMILY, SOCK_FLAGS, SOCK_LISTENER, SOCK_PEER_PORT, SOCK_PEER4, SOCK_PEER6, SOCK_PORT,
    SOCK_PROTOCOL, SOCK_STATE, TCP_ACKED, TCP_RECEIVED, TCP_ROUND_TRIP, TCP_SEGMENTS, TCP_SENT, TCP_SENT_AGAIN,
};
use agentd_ebpf_common::{
    ABSENT, ACCEPTED, COMM, Connection, EVENT_CONNECT_FAILED, Edge, EdgeKey, FAILURE_ABORTED, FAILURE_OTHER,
    FAILURE_REFUSED, FAILURE_RESET, FAILURE_TIMEOUT, FAILURE_UNREACHABLE, HOST, Net, OPENED, ROUND_TRIPS, UNKNOWN,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_skb_ancestor_cgroup_id, bpf_skc_to_tcp_sock};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, cgroup_skb, map, raw_tracepoint, sock_ops, tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuHashMap};
use aya_ebpf::programs::{
    BtfTracePointContext, RawTracePointContext, SkBuffContext, SockOpsContext, TracePointContext,
};

use crate::histogram::{add, observe_shared};
use crate::{events, global, kernel, read};

/// By container, and of what is in none.
#[map]
pub static NET: PerCpuHashMap<u64, Net> = PerCpuHashMap::with_max_entries(2048, BPF_F_NO_PREALLOC);

/// Who speaks with whom.
#[map]
pub static EDGES: HashMap<EdgeKey, Edge> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Connections of containers, and those that the host opens until they stand, by the address of their socket.
#[map]
pub static SOCKETS: HashMap<u64, Connection> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// `IPPROTO_TCP`.
const TCP: u16 = 6;
/// Address families.
const INET: u16 = 2;
const INET6: u16 = 10;
/// States of a TCP socket.
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;
const TIME_WAIT: u32 = 6;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;
const NEW_SYN_RECV: u32 = 12;
/// Bit of a socket's flags: the peer's FIN has come (`SOCK_DONE`).
const DONE: u64 = 1 << 1;
/// Errors of a failed connect.
const EADDRNOTAVAIL: u32 = 99;
const ENETUNREACH: u32 = 101;
const ECONNRESET: u32 = 104;
const ETIMEDOUT: u32 = 110;
const ECONNREFUSED: u32 = 111;
const EHOSTDOWN: u32 = 112;
const EHOSTUNREACH: u32 = 113;

/// Where to count what belongs to a cgroup under which nothing is published at a container's depth.
#[inline(always)]
pub fn unpublished_of(cgroup: u64) -> u64 {
    // pods/<pod>/<container>: two levels up
    let level = global!(LEVEL).wrapping_sub(2);
    let ancestors = global!(CGROUP_ANCESTORS);
    if ancestors == ABSENT || read!(cgroup, CGROUP_LEVEL, u32).unwrap_or(0) < level {
        return HOST;
    }
    let above = kernel::at::<u64>(cgroup, ancestors + level * 8).unwrap_or(0);
    let node = read!(above, CGROUP_NODE, u64).unwrap_or(0);
    if read!(node, NODE_ID, u64).unwrap_or(0) == global!(PODS) { UNKNOWN } else { HOST }
}

#[inline(always)]
fn of_key(key: u64) -> Option<&'static mut Net> {
    Some(unsafe { &mut *NET.get_ptr_mut(key)? })
}

/// Under which key to count what happens on a socket, and its figures.
#[inline(always)]
fn owner(sock: u64) -> Option<(u64, &'static mut Net)> {
    let cgroup = read!(sock, SOCK_CGROUP, u64)?;
    let key = kernel::of_cgroup(cgroup)?;
    if let Some(counters) = of_key(key) {
        return Some((key, counters));
    }
    let key = unpublished_of(cgroup);
    Some((key, of_key(key)?))
}

/// An IPv4 address as IPv6 writes it.
#[inline(always)]
fn mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The peer of a socket.
#[inline(always)]
fn peer(sock: u64) -> Option<[u8; 16]> {
    match read!(sock, SOCK_FAMILY, u16)? {
        INET => Some(mapped(read!(sock, SOCK_PEER4, [u8; 4])?)),
        INET6 => read!(sock, SOCK_PEER6, [u8; 16]),
        _ => None,
    }
}

/// Its port.
#[inline(always)]
fn peer_port(sock: u64) -> Option<u16> {
    Some(u16::from_be(read!(sock, SOCK_PEER_PORT, u16)?))
}

/// The edge that a connection is part of, made if there is none yet.
#[inline(always)]
fn edge(sock: u64, container: u64, direction: u8, port: u16, counters: &mut Net) -> Option<&'static mut Edge> {
    let address = peer(sock)?;
    edge_of(EdgeKey { container, address, port, direction, padding: [0; 5] }, counters)
}

#[inline(always)]
fn edge_of(key: EdgeKey, counters: &mut Net) -> Option<&'static mut Edge> {
    // not of the host, and not of what was never published
    if key.container <= UNKNOWN {
        return None;
    }
    let mut found = EDGES.get_ptr_mut(key);
    if found.is_none() {
        let none = Edge { connections: 0, failures: 0, retransmits: 0, received_bytes: 0, sent_bytes: 0, last: 0 };
        // another CPU may be first
        let _ = EDGES.insert(key, none, u64::from(BPF_NOEXIST));
        found = EDGES.get_ptr_mut(key);
    }
    match found {
        Some(found) => {
            let edge = unsafe { &mut *found };
            edge.last = unsafe { bpf_ktime_get_ns() };
            Some(edge)
        }
        None => {
            add(&mut counters.edges_dropped, 1);
            None
        }
    }
}

/// The current task asks for a connection.
#[inline(always)]
fn ask(sock: u64, container: u64, port: u16, counters: &mut Net) {
    let connection = Connection {
        begun: unsafe { bpf_ktime_get_ns() },
        container,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        port,
        direction: OPENED,
        samples: 0,
        command: bpf_get_current_comm().unwrap_or([0; COMM]),
    };
    if SOCKETS.insert(sock, connection, 0).is_err() {
        add(&mut counters.untracked, 1);
    }
}

/// A connection stands that was asked for here.
#[inline(always)]
fn opened(begun: u64, counters: &mut Net) {
    add(&mut counters.connects, 1);
    observe_shared(&mut counters.connect_latency, unsafe { bpf_ktime_get_ns() }.wrapping_sub(begun));
}

/// A connection stands.
#[inline(always)]
fn established(sock: u64, old: u32) -> Option<()> {
    let (container, counters) = owner(sock)?;
    let (direction, port) = match unsafe { SOCKETS.get(sock) } {
        Some(connection) => {
            let port = connection.port;
            opened(connection.begun, counters);
            if container == HOST {
                // its end is of no interest
                let _ = SOCKETS.remove(sock);
            }
            (OPENED, port)
        }
        None if old == SYN_SENT => {
            add(&mut counters.connects, 1);
            (OPENED, peer_port(sock)?)
        }
        None => {
            add(&mut counters.accepts, 1);
            // at its end it has none any more
            let port = read!(sock, SOCK_PORT, u16)?;
            if container > UNKNOWN {
                let begun = unsafe { bpf_ktime_get_ns() };
                let connection =
                    Connection { begun, container, pid: 0, port, direction: ACCEPTED, samples: 0, command: [0; COMM] };
                if SOCKETS.insert(sock, connection, 0).is_err() {
                    add(&mut counters.untracked, 1);
                }
            }
            (ACCEPTED, port)
        }
    };
    add(&mut edge(sock, container, direction, port, counters)?.connections, 1);
    Some(())
}

/// The cause of a failed connect by its error.
#[inline(always)]
fn cause(error: u32) -> usize {
    match error {
        0 => FAILURE_ABORTED,
        ECONNREFUSED => FAILURE_REFUSED,
        ETIMEDOUT => FAILURE_TIMEOUT,
        ENETUNREACH | EHOSTUNREACH | EHOSTDOWN => FAILURE_UNREACHABLE,
        ECONNRESET => FAILURE_RESET,
        _ => FAILURE_OTHER,
    }
}

/// Counts and tells of a connect that failed.
#[inline(always)]
fn failed(
    container: u64,
    counters: &mut Net,
    connection: Option<&Connection>,
    error: u32,
    address: [u8; 16],
    port: u16,
) -> Option<()> {
    add(counters.failures.get_mut(cause(error))?, 1);
    let key = EdgeKey { container, address, port, direction: OPENED, padding: [0; 5] };
    if let Some(edge) = edge_of(key, counters) {
        add(&mut edge.failures, 1);
    }
    events::send(container, EVENT_CONNECT_FAILED, |event| {
        event.code = error;
        event.address = address;
        event.port = port;
        if let Some(connection) = connection {
            event.pid = connection.pid;
            event.command = connection.command;
        }
    })
}

/// A connect has failed.
#[inline(always)]
fn refused(sock: u64) -> Option<()> {
    let (container, counters) = owner(sock)?;
    let mut error = read!(sock, SOCK_ERROR, u32)?;
    // given up without a packet: the kernel had no port for it
    if error == 0 && read!(sock, TCP_SEGMENTS, u32)? == 0 {
        error = EADDRNOTAVAIL;
    }
    let (address, port) = (peer(sock)?, peer_port(sock)?);
    let connection = unsafe { SOCKETS.get(sock) };
    failed(container, counters, connection, error, address, port)
}

/// A connection has ended.
#[inline(always)]
fn closed(sock: u64) -> Option<()> {
    let (container, counters) = owner(sock)?;
    add(&mut counters.closes, 1);
    // what a long connection came to, whose later round trips were not measured one by one
    if let Some(smoothed) = read!(sock, TCP_ROUND_TRIP, u32) {
        if smoothed != 0 {
            observe_shared(&mut counters.rtt, u64::from(smoothed >> 3) * 1000);
        }
    }
    if container <= UNKNOWN {
        return None;
    }
    let connection = unsafe { SOCKETS.get(sock)? };
    let (direction, port) = (connection.direction, connection.port);
    // the kernel counts a SYN and a FIN as a byte each
    let fin = u64::from(read!(sock, SOCK_FLAGS, u64)? & DONE != 0);
    let received = read!(sock, TCP_RECEIVED, u64)?.saturating_sub(fin);
    let acknowledged = read!(sock, TCP_ACKED, u64)?.saturating_sub(u64::from(direction == OPENED));
    let handed = read!(sock, TCP_SENT, u64)?.saturating_sub(read!(sock, TCP_SENT_AGAIN, u64)?);
    let edge = edge(sock, container, direction, port, counters)?;
    add(&mut edge.received_bytes, received);
    add(&mut edge.sent_bytes, if acknowledged < handed { acknowledged } else { handed });
    Some(())
}

/// Whether a connection in this state was established once.
#[inline(always)]
fn stood(state: u32) -> bool {
    !matches!(state, SYN_SENT | SYN_RECV | CLOSE | LISTEN | NEW_SYN_RECV)
}

/// The socket changes its state.
#[inline(always)]
fn change(sock: u64, old: u32, new: u32) -> Option<()> {
    if new != SYN_SENT && new != ESTABLISHED && new != CLOSE {
        return None;
    }
    // other protocols use the same states
    if read!(sock, SOCK_PROTOCOL, u16)? != TCP {
        return None;
    }
    if new == SYN_SENT {
        let (container, counters) = owner(sock)?;
        ask(sock, container, peer_port(sock)?, counters);
    } else if new == ESTABLISHED {
        established(sock, old);
    } else {
        if old == SYN_SENT {
            refused(sock);
        } else if stood(old) {
            closed(sock);
        }
        let _ = SOCKETS.remove(sock);
    }
    Some(())
}

/// `inet_sock_set_state(sock, old, new)`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state_btf(ctx: BtfTracePointContext) -> i32 {
    change(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn state_raw(ctx: RawTracePointContext) -> i32 {
    change(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// Segments were sent again.
#[inline(always)]
fn again(sock: u64, segments: u64) -> Option<()> {
    let (container, counters) = owner(sock)?;
    add(&mut counters.retransmits, segments);
    let connection = unsafe { SOCKETS.get(sock)? };
    let (direction, port) = (connection.direction, connection.port);
    add(&mut edge(sock, container, direction, port, counters)?.retransmits, segments);
    Some(())
}

/// How many segments a packet of TCP has.
#[inline(always)]
fn segments(packet: u64) -> u64 {
    let control = global!(SKB_CONTROL);
    if control == ABSENT {
        return 1;
    }
    let count = read!(packet + u64::from(control), CONTROL_SEGMENTS, u16).unwrap_or(1);
    if count == 0 { 1 } else { u64::from(count) }
}

/// `tcp_retransmit_skb(sock, packet)`.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit_btf(ctx: BtfTracePointContext) -> i32 {
    again(ctx.arg(0), segments(ctx.arg(1)));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retransmit_raw(ctx: RawTracePointContext) -> i32 {
    again(ctx.arg(0), segments(ctx.arg(1)));
    0
}

/// An answer to a SYN was sent again, for a listener.
#[inline(always)]
fn answered_again(sock: u64) -> Option<()> {
    let (_, counters) = owner(sock)?;
    add(&mut counters.retransmits, 1);
    Some(())
}

/// `tcp_retransmit_synack(sock, request)`.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn synack_btf(ctx: BtfTracePointContext) -> i32 {
    answered_again(ctx.arg(0));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn synack_raw(ctx: RawTracePointContext) -> i32 {
    answered_again(ctx.arg(0));
    0
}

/// The socket that is there as a whole for what may be less: a connection that is asked for has only its listener, and one
/// that waits after its end nothing.
#[inline(always)]
fn whole(sock: u64) -> Option<u64> {
    match u32::from(read!(sock, SOCK_STATE, u8)?) {
        TIME_WAIT => None,
        NEW_SYN_RECV => read!(sock, SOCK_LISTENER, u64),
        _ => Some(sock),
    }
}

#[inline(always)]
fn reset_received(sock: u64) -> Option<()> {
    let (_, counters) = owner(whole(sock)?)?;
    add(&mut counters.resets_received, 1);
    Some(())
}

/// Sent without a socket, to a port where nobody listens, it is nobody's and not counted.
#[inline(always)]
fn reset_sent(sock: u64) -> Option<()> {
    let (_, counters) = owner(whole(sock)?)?;
    add(&mut counters.resets_sent, 1);
    Some(())
}

/// `tcp_receive_reset(sock)`.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn reset_received_btf(ctx: BtfTracePointContext) -> i32 {
    reset_received(ctx.arg(0));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn reset_received_raw(ctx: RawTracePointContext) -> i32 {
    reset_received(ctx.arg(0));
    0
}

/// `tcp_send_reset(sock, packet)`; there need not be a socket.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn reset_sent_btf(ctx: BtfTracePointContext) -> i32 {
    reset_sent(ctx.arg(0));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn reset_sent_raw(ctx: RawTracePointContext) -> i32 {
    reset_sent(ctx.arg(0));
    0
}

/// Where fields lie in the record of `inet_sock_set_state`.
const RECORD_SOCK: usize = 8;
const RECORD_OLD: usize = 16;
const RECORD_NEW: usize = 20;
const RECORD_PEER_PORT: usize = 26;
const RECORD_FAMILY: usize = 28;
const RECORD_PROTOCOL: usize = 30;
const RECORD_PEER4: usize = 36;
const RECORD_PEER6: usize = 56;
/// Where the socket lies in the records of `tcp_retransmit_skb` and `tcp_send_reset`; in that of `tcp_receive_reset` it
/// lies at [`RECORD_SOCK`].
const RECORD_SOCK_BEHIND: usize = 16;

/// `sock:inet_sock_set_state`: connections that are opened; the owner is the task that asks. Accepted ones have none here,
/// and a failure has no cause.
#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub fn state_tp(ctx: TracePointContext) -> i32 {
    let _ = state_record(&ctx);
    0
}

#[inline(always)]
fn state_record(ctx: &TracePointContext) -> Option<()> {
    let (sock, old, new, protocol) = unsafe {
        (
            ctx.read_at::<u64>(RECORD_SOCK).ok()?,
            ctx.read_at::<u32>(RECORD_OLD).ok()?,
            ctx.read_at::<u32>(RECORD_NEW).ok()?,
            ctx.read_at::<u16>(RECORD_PROTOCOL).ok()?,
        )
    };
    if protocol != TCP {
        return None;
    }
    if new == SYN_SENT {
        let own = kernel::current();
        let (container, counters) = match of_key(own) {
            Some(counters) => (own, counters),
            None => {
                let key = kernel::unpublished();
                (key, of_key(key)?)
            }
        };
        ask(sock, container, unsafe { ctx.read_at::<u16>(RECORD_PEER_PORT) }.ok()?, counters);
        return Some(());
    }
    if new != ESTABLISHED && new != CLOSE {
        return None;
    }
    let connection = unsafe { *SOCKETS.get(sock)? };
    if new == CLOSE {
        let _ = SOCKETS.remove(sock);
    }
    let counters = of_key(connection.container)?;
    if new == CLOSE && stood(old) {
        add(&mut counters.closes, 1);
        return Some(());
    }
    let (family, port) =
        unsafe { (ctx.read_at::<u16>(RECORD_FAMILY).ok()?, ctx.read_at::<u16>(RECORD_PEER_PORT).ok()?) };
    let address = if family == INET {
        mapped(unsafe { ctx.read_at::<[u8; 4]>(RECORD_PEER4) }.ok()?)
    } else {
        unsafe { ctx.read_at::<[u8; 16]>(RECORD_PEER6) }.ok()?
    };
    if new == ESTABLISHED {
        opened(connection.begun, counters);
        let key = EdgeKey { container: connection.container, address, port, direction: OPENED, padding: [0; 5] };
        add(&mut edge_of(key, counters)?.connections, 1);
    } else if old == SYN_SENT {
        // an error that no cause has: the record does not tell it
        failed(connection.container, counters, Some(&connection), u32::MAX, address, port);
    }
    Some(())
}

/// The owner of a socket that the rung `tracepoint` has seen opened.
#[inline(always)]
fn followed(ctx: &TracePointContext, at: usize) -> Option<&'static mut Net> {
    let sock = unsafe { ctx.read_at::<u64>(at) }.ok()?;
    of_key(unsafe { SOCKETS.get(sock)? }.container)
}

/// `tcp:tcp_retransmit_skb`: calls, each of which may send more than one segment, of connections that were opened.
#[tracepoint(category = "tcp", name = "tcp_retransmit_skb")]
pub fn retransmit_tp(ctx: TracePointContext) -> i32 {
    if let Some(counters) = followed(&ctx, RECORD_SOCK_BEHIND) {
        add(&mut counters.retransmits, 1);
    }
    0
}

/// `tcp:tcp_receive_reset`, of connections that were opened.
#[tracepoint(category = "tcp", name = "tcp_receive_reset")]
pub fn reset_received_tp(ctx: TracePointContext) -> i32 {
    if let Some(counters) = followed(&ctx, RECORD_SOCK) {
        add(&mut counters.resets_received, 1);
    }
    0
}

/// `tcp:tcp_send_reset`, of connections that were opened.
#[tracepoint(category = "tcp", name = "tcp_send_reset")]
pub fn reset_sent_tp(ctx: TracePointContext) -> i32 {
    if let Some(counters) = followed(&ctx, RECORD_SOCK_BEHIND) {
        add(&mut counters.resets_sent, 1);
    }
    0
}

/// What a program on sockets is called for (`BPF_SOCK_OPS_…`).
const CONNECTING: u32 = 3;
const PASSIVE_ESTABLISHED: u32 = 5;
const RETRANSMIT: u32 = 9;
const RTT: u32 = 12;
/// Flags of a socket: call it for each segment that is sent again (`BPF_SOCK_OPS_RETRANS_CB_FLAG`), for each round trip
/// (`BPF_SOCK_OPS_RTT_CB_FLAG`).
const RETRANSMIT_FLAG: u32 = 1 << 1;
const RTT_FLAG: u32 = 1 << 3;

/// Round trips of TCP. The first one of an accepted connection is over before it can be asked for.
#[sock_ops]
pub fn rtt_cg(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        RTT => {
            let _ = round_trip(&ctx);
        }
        CONNECTING | PASSIVE_ESTABLISHED => {
            // those that somebody else has asked for stay
            let _ = ctx.set_cb_flags((ctx.cb_flags() | RTT_FLAG | RETRANSMIT_FLAG) as i32);
        }
        RETRANSMIT => {
            let _ = measure_again(&ctx);
        }
        _ => {}
    }
    // no reply: what the kernel would do stays as it is
    1
}

/// The address of the socket that the program is called for.
#[inline(always)]
fn tcp(ctx: &SockOpsContext) -> Option<u64> {
    let sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sock.is_null() {
        return None;
    }
    let sock = unsafe { bpf_skc_to_tcp_sock(sock.cast()) };
    if sock.is_null() { None } else { Some(sock as u64) }
}

/// Something had to be sent again: the next round trips are worth measuring.
#[inline(always)]
fn measure_again(ctx: &SockOpsContext) -> Option<()> {
    let connection = SOCKETS.get_ptr_mut(tcp(ctx)?)?;
    unsafe { (*connection).samples = 0 };
    ctx.set_cb_flags((ctx.cb_flags() | RTT_FLAG) as i32).ok()
}

#[inline(always)]
fn round_trip(ctx: &SockOpsContext) -> Option<()> {
    // since Linux 6.10 the measured one, µs; before only the smoothed one, eightfold
    let measured = ctx.arg(0);
    let smoothed = unsafe { (*ctx.ops).srtt_us };
    let microseconds = if measured != 0 { measured } else { smoothed >> 3 };
    let sock = tcp(ctx)?;
    // of a connection that is not followed none is measured
    let samples = match SOCKETS.get_ptr_mut(sock) {
        Some(connection) => unsafe { &mut (*connection).samples },
        None => {
            let _ = ctx.set_cb_flags((ctx.cb_flags() & !RTT_FLAG) as i32);
            return None;
        }
    };
    *samples = samples.saturating_add(1);
    if *samples >= ROUND_TRIPS {
        let _ = ctx.set_cb_flags((ctx.cb_flags() & !RTT_FLAG) as i32);
    }
    let (_, counters) = owner(sock)?;
    observe_shared(&mut counters.rtt, u64::from(microseconds) * 1000);
    Some(())
}

/// The figures of the container whose socket a packet belongs to; the program is called below the pods' directory alone.
#[inline(always)]
fn of_packet(ctx: &SkBuffContext) -> Option<&'static mut Net> {
    let level = global!(LEVEL) as i32;
    let container = unsafe { bpf_skb_ancestor_cgroup_id(ctx.as_ptr().cast(), level) };
    match of_key(container) {
        Some(counters) => Some(counters),
        None => of_key(UNKNOWN),
    }
}

/// A packet that a socket receives.
#[cgroup_skb(ingress)]
pub fn received_cg(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = of_packet(&ctx) {
        add(&mut counters.received_packets, 1);
        add(&mut counters.received_bytes, u64::from(ctx.len()));
    }
    1
}

/// A packet that a socket sends.
#[cgroup_skb(egress)]
pub fn sent_cg(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = of_packet(&ctx) {
        add(&mut counters.sent_packets, 1);
        add(&mut counters.sent_bytes, u64::from(ctx.len()));
    }
    1
}
