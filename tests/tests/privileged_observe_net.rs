//! Ground truth of the group `net`: known numbers of connects, failures, retransmits, resets, bytes and packets in
//! containers of the test's own, compared with what the observer counted for them.

mod observed;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use agentd_ebpf::observe::layout::{
    ACCEPTED, EVENT_CONNECT_FAILED, Edge, FAILURE_ABORTED, FAILURE_OTHER, FAILURE_REFUSED, FAILURE_TIMEOUT,
    FAILURE_UNREACHABLE, FAILURES, Net, OPENED, ROUND_TRIPS,
};
use agentd_ebpf::observe::{Group, Observer, Rung, Signal};
use agentd_tests::{eventually, privileged, skip};

use observed::{Network, PATIENCE, Place, Work, say, settled, stands, wait};

const CONNECTS: u64 = 50;
/// Bytes of each connection from the one who opened it, and back.
const THERE: usize = 10_000;
const BACK: usize = 3_000;
const FAILED: u64 = 20;
const DATAGRAMS: usize = 200;
const DATAGRAM: usize = 700;
const ROUNDS: usize = 400;
const PORT: u16 = 7_000;
const LOCALHOST: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];

fn server() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT).into()
}

/// Reads to the end.
fn drain(stream: &mut TcpStream) -> usize {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("the connection ends in order");
    all.len()
}

/// Answers so many connections: reads all, writes [`BACK`] bytes.
fn serve(listener: &TcpListener, connections: u64) {
    for _ in 0..connections {
        let (mut stream, _) = listener.accept().expect("a connection comes");
        assert_eq!(drain(&mut stream), THERE);
        stream.write_all(&[2; BACK]).expect("the peer reads");
    }
}

/// Opens so many, one after the other.
fn open(connections: u64) {
    for _ in 0..connections {
        let mut stream = TcpStream::connect(server()).expect("somebody listens");
        stream.write_all(&[1; THERE]).expect("the peer reads");
        stream.shutdown(std::net::Shutdown::Write).expect("it is open");
        assert_eq!(drain(&mut stream), BACK);
    }
}

/// What processes in containers do; nothing when it is run as a test.
#[test]
#[ignore = "is run by the tests of this file, in the cgroup of a container"]
fn work() {
    let Some(name) = observed::wanted() else { return };
    match name.as_str() {
        "both" => {
            let listener = TcpListener::bind(server()).expect("the port is free");
            begin();
            let server = thread::spawn(move || serve(&listener, CONNECTS));
            open(CONNECTS);
            server.join().expect("the server serves");
        }
        "serve" => {
            let listener = TcpListener::bind(server()).expect("the port is free");
            begin();
            say("serving");
            serve(&listener, CONNECTS);
        }
        "open" => {
            begin();
            open(CONNECTS);
        }
        "refused" => {
            begin();
            for _ in 0..FAILED {
                let error = TcpStream::connect(server()).expect_err("nobody listens");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            }
        }
        "portless" => {
            let listener = TcpListener::bind(server()).expect("the port is free");
            begin();
            let one = TcpStream::connect(server()).expect("there is one port");
            let error = TcpStream::connect(server()).expect_err("there is no second port");
            assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
            drop((one, listener));
        }
        "abandoned" => {
            begin();
            for _ in 0..FAILED {
                let error = TcpStream::connect_timeout(&server(), Duration::from_millis(10));
                assert_eq!(error.expect_err("nobody answers").kind(), ErrorKind::TimedOut);
            }
        }
        "unanswered" => {
            begin();
            let all: Vec<_> = (0..FAILED).map(|_| thread::spawn(|| TcpStream::connect(server()).map(drop))).collect();
            let kinds: Vec<_> =
                all.into_iter().map(|one| one.join().expect("no panic").map_err(|e| e.kind())).collect();
            say(&format!("kinds {kinds:?}"));
        }
        "datagrams" => {
            let receiver = UdpSocket::bind(server()).expect("the port is free");
            receiver.set_read_timeout(Some(PATIENCE)).expect("a time");
            let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
            begin();
            let mut buffer = [0; DATAGRAM + 1];
            for _ in 0..DATAGRAMS {
                sender.send_to(&[3; DATAGRAM], server()).expect("it is sent");
                assert_eq!(receiver.recv(&mut buffer).expect("it comes"), DATAGRAM);
            }
        }
        "stalled" => {
            let listener = TcpListener::bind(server()).expect("the port is free");
            let mut stream = TcpStream::connect(server()).expect("somebody listens");
            let (mut accepted, _) = listener.accept().expect("a connection comes");
            begin();
            stream.write_all(&[4; THERE]).expect("it is buffered");
            stream.shutdown(std::net::Shutdown::Write).expect("it is open");
            say("sent");
            assert_eq!(drain(&mut accepted), THERE);
        }
        "reset" => {
            let listener = TcpListener::bind(server()).expect("the port is free");
            begin();
            for _ in 0..FAILED {
                let mut stream = TcpStream::connect(server()).expect("somebody listens");
                let (accepted, _) = listener.accept().expect("a connection comes");
                stream.write_all(b"unread").expect("it is buffered");
                // loopback delivers at once: the data is there, and nobody reads it
                drop(accepted);
                let mut byte = [0];
                let error = stream.read(&mut byte).expect_err("it was reset");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
        }
        "rounds" => {
            let listener = TcpListener::bind(server()).expect("the port is free");
            begin();
            let echo = thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a connection comes");
                let mut bytes = [0; 64];
                while stream.read_exact(&mut bytes).is_ok() {
                    stream.write_all(&bytes).expect("the peer reads");
                }
            });
            let mut stream = TcpStream::connect(server()).expect("somebody listens");
            stream.set_nodelay(true).expect("an option");
            for _ in 0..ROUNDS {
                let mut bytes = [5; 64];
                stream.write_all(&bytes).expect("the peer reads");
                stream.read_exact(&mut bytes).expect("the peer answers");
            }
            say("rounds");
            wait();
            drop(stream);
            echo.join().expect("it ends");
        }
        other => panic!("no such work: {other}"),
    }
    say("done");
    wait();
}

/// Says that what follows counts, and waits.
fn begin() {
    say("ready");
    wait();
}

/// A place, an observer of the group on these rungs, and a published container; else why not.
fn watched(without: &[Rung]) -> Result<(Place, Observer, std::path::PathBuf, u64), String> {
    let place = Place::new().ok_or("no cgroup2 tree can be written")?;
    let observer = place.observer(&[Group::Net, Group::Packets], without);
    for signal in [Signal::Connections, Signal::Retransmits, Signal::Resets, Signal::Packets] {
        stands(&observer, signal)?;
    }
    let (path, id) = place.container("x", "c0");
    observer.publish(id, false).expect("there is room");
    Ok((place, observer, path, id))
}

macro_rules! watched {
    ($without:expr) => {
        match watched($without) {
            Ok(all) => all,
            Err(why) => skip!("{why}"),
        }
    };
}

fn net(observer: &Observer, container: u64) -> Net {
    observer.figures(container).net.expect("the group is attached")
}

fn count(histogram: &agentd_ebpf::observe::layout::Log2) -> u64 {
    histogram.buckets.iter().sum()
}

/// The edge of a container in one direction, of which there is just one.
#[track_caller]
fn edge(observer: &Observer, container: u64, direction: u8) -> Edge {
    let edges = observer.snapshot().edges.expect("the map can be read");
    let mut found = edges.iter().filter(|(key, _)| key.container == container && key.direction == direction);
    let (key, edge) = found.next().unwrap_or_else(|| panic!("no edge: {edges:?}"));
    assert!(found.next().is_none(), "more than one edge: {edges:?}");
    assert_eq!((key.address, key.port), (LOCALHOST, PORT));
    *edge
}

#[test]
fn connections_are_counted_to_the_byte_on_the_best_rungs() {
    privileged!();
    for without in [&[][..], &[Rung::TpBtf]] {
        let (_place, observer, cgroup, id) = watched!(without);
        let mut work = Work::begin("both", &cgroup, Network::Own);
        work.done();
        let all = settled(&observer, id, |figures| figures.net.is_some_and(|net| net.closes >= 2 * CONNECTS));
        let net = all.net.expect("the group is attached");
        assert_eq!((net.connects, net.accepts, net.closes), (CONNECTS, CONNECTS, 2 * CONNECTS), "{net:?}");
        assert_eq!(net.failures, [0; FAILURES]);
        assert_eq!((net.untracked, net.edges_dropped, net.retransmits), (0, 0, work.snmp("Tcp", "RetransSegs")));
        assert_eq!(count(&net.connect_latency), CONNECTS);
        assert!(net.connect_latency.sum < 1_000_000_000, "loopback is not so slow: {}", net.connect_latency.sum);
        let (there, back) = (CONNECTS * THERE as u64, CONNECTS * BACK as u64);
        let opened = edge(&observer, id, OPENED);
        assert_eq!((opened.connections, opened.sent_bytes, opened.received_bytes), (CONNECTS, there, back));
        let accepted = edge(&observer, id, ACCEPTED);
        assert_eq!((accepted.connections, accepted.sent_bytes, accepted.received_bytes), (CONNECTS, back, there));
        work.end();
    }
}

#[test]
fn each_end_is_counted_where_it_is() {
    privileged!();
    let (place, observer, cgroup, server) = watched!(&[]);
    let (other, client) = place.container("y", "c0");
    observer.publish(client, false).expect("there is room");
    let mut serving = Work::begin("serve", &cgroup, Network::Own);
    let mut opening = Work::begin("open", &other, Network::Of(&serving));
    serving.go();
    serving.hear("serving");
    opening.done();
    serving.hear("done");
    let at_server = settled(&observer, server, |figures| figures.net.is_some_and(|net| net.closes >= CONNECTS));
    let at_client = settled(&observer, client, |figures| figures.net.is_some_and(|net| net.closes >= CONNECTS));
    let (at_server, at_client) = (at_server.net.expect("attached"), at_client.net.expect("attached"));
    assert_eq!((at_server.connects, at_server.accepts, at_server.closes), (0, CONNECTS, CONNECTS), "{at_server:?}");
    assert_eq!((at_client.connects, at_client.accepts, at_client.closes), (CONNECTS, 0, CONNECTS), "{at_client:?}");
    assert_eq!(edge(&observer, server, ACCEPTED).connections, CONNECTS);
    assert_eq!(edge(&observer, client, OPENED).connections, CONNECTS);
    // what waits after its end is no whole socket: the last packets of a connection may have no owner
    let slack = 2 * CONNECTS;
    let lost = at_client.sent_packets.abs_diff(at_server.received_packets);
    assert!(lost <= slack, "{at_client:?} {at_server:?}");
    opening.end();
    serving.end();
}

#[test]
fn opened_connections_are_counted_without_types() {
    privileged!();
    let (_place, observer, cgroup, id) = watched!(&[Rung::TpBtf, Rung::RawTp]);
    let mut work = Work::begin("both", &cgroup, Network::Own);
    work.done();
    let all = settled(&observer, id, |figures| figures.net.is_some_and(|net| net.closes >= CONNECTS));
    let net = all.net.expect("the group is attached");
    assert_eq!((net.connects, net.accepts, net.closes), (CONNECTS, 0, CONNECTS), "{net:?}");
    assert_eq!(edge(&observer, id, OPENED).connections, CONNECTS);
    work.end();
}

#[test]
fn refused_connects_have_their_cause_and_an_event() {
    privileged!();
    let (_place, mut observer, cgroup, id) = watched!(&[]);
    let mut work = Work::begin("refused", &cgroup, Network::Own);
    work.done();
    let net = net(&observer, id);
    let mut failures = [0; FAILURES];
    failures[FAILURE_REFUSED] = FAILED;
    assert_eq!((net.failures, net.connects), (failures, 0));
    assert_eq!((net.resets_received, work.snmp("Tcp", "OutRsts")), (FAILED, FAILED));
    assert_eq!(edge(&observer, id, OPENED).failures, FAILED);
    let mut told = Vec::new();
    eventually(PATIENCE, || {
        observer.events(1_000, &mut |event| told.push(*event));
        told.len() as u64 >= FAILED
    });
    assert_eq!(told.len() as u64, FAILED);
    for event in told {
        assert_eq!((event.kind, event.container, event.code), (EVENT_CONNECT_FAILED, id, 111));
        assert_eq!((event.address, event.port), (LOCALHOST, PORT));
        assert_ne!(event.pid, 0, "who asked is known");
    }
    work.end();
}

#[test]
fn connects_that_nobody_answers_time_out_and_unreachable_ones_say_so() {
    privileged!();
    for (verdict, cause, word) in
        [("drop", FAILURE_TIMEOUT, "TimedOut"), ("reject with icmp type host-unreachable", FAILURE_UNREACHABLE, "Host")]
    {
        let (_place, observer, cgroup, id) = watched!(&[]);
        let mut work = Work::begin("unanswered", &cgroup, Network::Own);
        filter(&work, &format!("tcp dport {PORT} {verdict}"));
        work.nsenter(&["sysctl", "-q", "-w", "net.ipv4.tcp_syn_retries=1"]);
        // since Linux 6.5; before, the first ones are not evenly spaced
        let linear = std::path::Path::new("/proc/sys/net/ipv4/tcp_syn_linear_timeouts").exists();
        if linear {
            work.nsenter(&["sysctl", "-q", "-w", "net.ipv4.tcp_syn_linear_timeouts=0"]);
        }
        work.go();
        let kinds = work.hear("kinds");
        work.hear("done");
        assert_eq!(kinds.matches(word).count() as u64, FAILED, "{kinds}");
        let net = net(&observer, id);
        let mut failures = [0; FAILURES];
        failures[cause] = FAILED;
        assert_eq!(net.failures, failures);
        assert_eq!((net.connects, net.retransmits), (0, work.snmp("Tcp", "RetransSegs")));
        work.end();
    }
}

#[test]
fn abandoned_connects_are_told_from_those_that_have_no_port() {
    privileged!();
    let (_place, observer, cgroup, id) = watched!(&[]);
    let mut work = Work::begin("abandoned", &cgroup, Network::Own);
    filter(&work, &format!("tcp dport {PORT} drop"));
    work.done();
    let mut failures = [0; FAILURES];
    failures[FAILURE_ABORTED] = FAILED;
    assert_eq!(net(&observer, id).failures, failures);
    work.end();
    let mut work = Work::begin("portless", &cgroup, Network::Own);
    work.nsenter(&["sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=20000 20000"]);
    work.done();
    failures[FAILURE_OTHER] = 1;
    assert_eq!(net(&observer, id).failures, failures);
    work.end();
}

/// Lets loopback's packets through this rule.
fn filter(work: &Work, rule: &str) {
    work.nsenter(&["nft", "add table inet t"]);
    work.nsenter(&["nft", "add chain inet t in { type filter hook input priority 0; }"]);
    work.nsenter(&["nft", &format!("add rule inet t in {rule}")]);
}

#[test]
fn segments_that_are_sent_again_are_those_that_the_kernel_counts() {
    privileged!();
    for without in [&[][..], &[Rung::TpBtf]] {
        let (_place, observer, cgroup, id) = watched!(without);
        let mut work = Work::begin("stalled", &cgroup, Network::Own);
        filter(&work, &format!("tcp dport {PORT} drop"));
        work.go();
        work.hear("sent");
        assert!(eventually(PATIENCE, || work.snmp("Tcp", "RetransSegs") >= 4), "nothing was sent again");
        work.nsenter(&["nft", "flush chain inet t in"]);
        work.hear("done");
        let all = settled(&observer, id, |figures| {
            figures.net.is_some_and(|net| net.retransmits == work.snmp("Tcp", "RetransSegs"))
        });
        let net = all.net.expect("the group is attached");
        assert_eq!(net.retransmits, work.snmp("Tcp", "RetransSegs"));
        assert_eq!(edge(&observer, id, OPENED).retransmits, net.retransmits);
        work.end();
    }
}

#[test]
fn resets_are_counted_at_both_ends() {
    privileged!();
    let (_place, observer, cgroup, id) = watched!(&[]);
    let mut work = Work::begin("reset", &cgroup, Network::Own);
    work.done();
    let net = net(&observer, id);
    assert_eq!((net.resets_sent, net.resets_received), (FAILED, FAILED));
    assert_eq!(work.snmp("Tcp", "OutRsts"), FAILED);
    work.end();
}

#[test]
fn datagrams_are_counted_to_the_byte() {
    privileged!();
    let (_place, observer, cgroup, id) = watched!(&[]);
    let mut work = Work::begin("datagrams", &cgroup, Network::Own);
    let (bytes, packets) = work.loopback();
    work.done();
    let net = net(&observer, id);
    let expected = (DATAGRAMS as u64, (DATAGRAMS * (DATAGRAM + 28)) as u64);
    assert_eq!((net.sent_packets, net.sent_bytes), expected);
    assert_eq!((net.received_packets, net.received_bytes), expected);
    // the interface counts the same
    let (bytes_after, packets_after) = work.loopback();
    assert_eq!((packets_after - packets, bytes_after - bytes), expected);
    work.end();
}

#[test]
fn round_trips_are_those_that_the_socket_knows() {
    privileged!();
    let (_place, observer, cgroup, id) = watched!(&[]);
    if let Err(why) = stands(&observer, Signal::Rtt) {
        skip!("{why}");
    }
    let mut work = Work::begin("rounds", &cgroup, Network::Own);
    work.go();
    work.hear("rounds");
    let text = work.nsenter(&["ss", "-tinH", "state", "established", "dport", &format!("= {PORT}")]);
    let smoothed = text.split_whitespace().find_map(|word| word.strip_prefix("rtt:"));
    let smoothed = smoothed.and_then(|word| word.split('/').next()).and_then(|word| word.parse::<f64>().ok());
    let smoothed = smoothed.unwrap_or_else(|| panic!("ss tells no rtt: {text}")) * 1e6;
    let net = net(&observer, id);
    let samples = count(&net.rtt);
    // of each end the first ones; more only if something had to be sent again
    let first = 2 * u64::from(ROUND_TRIPS);
    assert!((first..first + u64::from(ROUND_TRIPS)).contains(&samples), "{samples} samples of {ROUNDS} rounds");
    let mean = net.rtt.sum as f64 / samples as f64;
    assert!(mean > smoothed / 4.0 && mean < smoothed * 4.0, "mean {mean} ns, the socket has {smoothed} ns");
    work.go();
    work.hear("done");
    work.end();
    // and of each the smoothed one at its end
    let ended = settled(&observer, id, |figures| figures.net.is_some_and(|net| count(&net.rtt) >= samples + 2));
    assert_eq!(ended.net.map(|net| count(&net.rtt)), Some(samples + 2));
}

#[test]
fn edges_are_bounded_and_those_without_room_counted() {
    privileged!();
    let (place, observer, _, _) = watched!(&[]);
    // 64 edges are room enough for so many containers, and not for these
    let mut dropped = 0;
    let mut ends = 0;
    for number in 0..40 {
        let (cgroup, id) = place.container("z", &format!("c{number}"));
        observer.publish(id, false).expect("there is room");
        let mut work = Work::begin("both", &cgroup, Network::Own);
        work.done();
        work.end();
        let net = net(&observer, id);
        ends += net.connects + net.accepts;
        dropped += net.edges_dropped;
    }
    let edges = observer.snapshot().edges.expect("the map can be read");
    assert_eq!(edges.len(), 64);
    assert_eq!(ends, 40 * 2 * CONNECTS, "counters go on when edges have no room");
    assert!(dropped >= 16 * CONNECTS, "{dropped}");
    // single ones, and those of a container that is forgotten, make room for others
    let (one, of) = (edges[0].0, edges[1].0.container);
    observer.forget_edges(&[one]);
    observer.forget_edges_of(&[of]);
    let left = observer.snapshot().edges.expect("the map can be read");
    let gone: Vec<_> = edges.iter().filter(|(key, _)| *key == one || key.container == of).collect();
    assert_eq!(left.len() + gone.len(), edges.len());
    assert!(left.iter().all(|(key, _)| *key != one && key.container != of), "{left:?}");
    let (cgroup, id) = place.container("z", "late");
    observer.publish(id, false).expect("there is room");
    let mut work = Work::begin("both", &cgroup, Network::Own);
    work.done();
    work.end();
    assert!(observer.snapshot().edges.unwrap().iter().any(|(key, _)| key.container == id));
}

#[test]
fn nothing_of_the_host_is_taken_for_a_container() {
    privileged!();
    let (place, observer, cgroup, id) = watched!(&[]);
    // below the pods' directory, and not published
    let (unpublished, _) = place.container("u", "c0");
    let before = observer.snapshot();
    let mut work = Work::begin("both", &unpublished, Network::Own);
    work.done();
    work.end();
    let unknown = |snapshot: &agentd_ebpf::observe::Snapshot| snapshot.unknown.net.expect("attached").connects;
    assert_eq!(unknown(&observer.snapshot()) - unknown(&before), CONNECTS);
    assert_eq!(net(&observer, id).connects, 0, "{}", cgroup.display());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let own = TcpStream::connect(listener.local_addr().expect("it has one")).expect("somebody listens");
    own.set_read_timeout(Some(Duration::from_secs(1))).expect("a time");
    let host = |snapshot: &agentd_ebpf::observe::Snapshot| snapshot.host.net.expect("attached").connects;
    assert!(host(&observer.snapshot()) > host(&before));
    assert!(observer.snapshot().edges.unwrap().is_empty(), "the host and the unknown have no edges");
}
