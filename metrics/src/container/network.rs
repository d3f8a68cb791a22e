//! The network of a pod as its namespace counts it: `/proc/<pid>/net/dev`, `sockstat` and `sockstat6`, where the process is
//! any one in the namespace.

use super::files::{Buffer, Directory};

/// Most interfaces of a namespace that are told; a container with the right to make some may make many.
const MOST: usize = 64;

/// Counters of one interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name in the namespace.
    pub name: String,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Errors while receiving.
    pub received_errors: u64,
    /// Packets dropped while receiving.
    pub received_drops: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Errors while sending.
    pub sent_errors: u64,
    /// Packets dropped while sending.
    pub sent_drops: u64,
}

/// Sockets of a network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Of every family.
    pub used: Option<u64>,
    /// TCP, but those in TIME_WAIT.
    pub tcp: Option<u64>,
    /// TCP in TIME_WAIT.
    pub tcp_time_wait: Option<u64>,
    /// TCP that no descriptor refers to any more.
    pub tcp_orphans: Option<u64>,
    /// UDP.
    pub udp: Option<u64>,
}

/// Reads the namespace of a process; nothing if that has ended.
pub(super) fn read(buffer: &mut Buffer, process: u32) -> (Vec<Interface>, Sockets) {
    let mut sockets = Sockets::default();
    // one walk to the folder, which costs as much as a file in it
    let Some(folder) = Directory::open(format!("/proc/{process}/net").as_ref()) else { return (Vec::new(), sockets) };
    // names of interfaces may be any bytes
    let text = buffer.read_bytes(&folder, c"dev").map(String::from_utf8_lossy);
    let interfaces = text.map_or_else(Vec::new, |text| interfaces(&text));
    for name in [c"sockstat", c"sockstat6"] {
        if let Some(text) = buffer.read(&folder, name) {
            sockets.take(text);
        }
    }
    (interfaces, sockets)
}

/// The interfaces in a text of `/proc/net/dev`, without loopback.
fn interfaces(text: &str) -> Vec<Interface> {
    let line = |line: &str| {
        // The kernel allows no colon in a name.
        let (name, figures) = line.split_once(':')?;
        let name = name.trim_ascii();
        let mut numbers = [0_u64; 16];
        let mut words = figures.split_ascii_whitespace();
        for number in &mut numbers {
            *number = words.next()?.parse().ok()?;
        }
        (name != "lo" && !name.is_empty()).then(|| Interface {
            name: name.to_owned(),
            received_bytes: numbers[0],
            received_packets: numbers[1],
            received_errors: numbers[2],
            received_drops: numbers[3],
            sent_bytes: numbers[8],
            sent_packets: numbers[9],
            sent_errors: numbers[10],
            sent_drops: numbers[11],
        })
    };
    let mut all: Vec<Interface> = Vec::new();
    for interface in text.lines().filter_map(line) {
        // names that are no text may read the same, and would be one series twice
        if all.iter().all(|known| known.name != interface.name) {
            all.push(interface);
        }
        if all.len() == MOST {
            break;
        }
    }
    all
}

impl Sockets {
    /// Adds a text of `sockstat` or `sockstat6`.
    fn take(&mut self, text: &str) {
        for line in text.lines() {
            let Some((protocol, figures)) = line.split_once(':') else { continue };
            let mut words = figures.split_ascii_whitespace();
            while let (Some(key), Some(value)) = (words.next(), words.next()) {
                let place = match (protocol, key) {
                    ("sockets", "used") => &mut self.used,
                    ("TCP" | "TCP6", "inuse") => &mut self.tcp,
                    ("TCP", "orphan") => &mut self.tcp_orphans,
                    ("TCP", "tw") => &mut self.tcp_time_wait,
                    ("UDP" | "UDP6", "inuse") => &mut self.udp,
                    _ => continue,
                };
                if let Ok(value) = value.parse::<u64>() {
                    *place = Some(place.unwrap_or(0).saturating_add(value));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_understood() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls \
             carrier compressed\n    \
             lo: 5395061803  364042    0    0    0     0          0         0 5395061803  364042    0    0    0     0 \
             0          0\n  \
             eth0:868 36168 1 2 3 4 5 6 2297 22544 7 8 9 10 11 12\n\
             þvlan: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
             short: 1 2 3\nodd: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 x\n: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let eth0 = Interface {
            name: "eth0".into(),
            received_bytes: 868,
            received_packets: 36168,
            received_errors: 1,
            received_drops: 2,
            sent_bytes: 2297,
            sent_packets: 22544,
            sent_errors: 7,
            sent_drops: 8,
        };
        let got = interfaces(text);
        assert_eq!(got[0], eth0);
        assert_eq!(got.iter().map(|i| (&*i.name, i.sent_bytes)).collect::<Vec<_>>(), [("eth0", 2297), ("þvlan", 9)]);
    }

    #[test]
    fn names_that_read_the_same_are_one_and_there_are_not_too_many() {
        let line = |name: &str, sent: usize| format!("{name}: 1 2 3 4 5 6 7 8 {sent} 10 11 12 13 14 15 16\n");
        let twice = [line("\u{fffd}", 1), line("\u{fffd}", 2), line("a", 3)].concat();
        let names: Vec<_> = interfaces(&twice).into_iter().map(|i| (i.name, i.sent_bytes)).collect();
        assert_eq!(names, [("\u{fffd}".to_owned(), 1), ("a".to_owned(), 3)]);
        let many: String = (0..2 * MOST).map(|number| line(&format!("v{number}"), number)).collect();
        assert_eq!(interfaces(&many).len(), MOST);
    }

    #[test]
    fn sockets_are_understood() {
        let mut sockets = Sockets::default();
        sockets.take(
            "sockets: used 16\nTCP: inuse 1 orphan 2 tw 3 alloc 4 mem 328\nUDP: inuse 5 mem 0\nUDPLITE: inuse 6\nRAW: \
             inuse 7\nFRAG: inuse 8 memory 0\n",
        );
        sockets.take("TCP6: inuse 10\nUDP6: inuse 20\nUDPLITE6: inuse 0\nTCP6: inuse\nTCP: inuse x\nrubbish\n");
        let expected =
            Sockets { used: Some(16), tcp: Some(11), tcp_time_wait: Some(3), tcp_orphans: Some(2), udp: Some(25) };
        assert_eq!(sockets, expected);
    }

    #[test]
    fn an_ended_process_has_nothing_and_this_one_has() {
        let mut buffer = Buffer::default();
        assert_eq!(read(&mut buffer, u32::MAX), (Vec::new(), Sockets::default()));
        let (_, sockets) = read(&mut buffer, std::process::id());
        assert!(sockets.used.is_some() && sockets.tcp.is_some(), "{sockets:?}");
    }
}
