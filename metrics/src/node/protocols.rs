//! `/proc/net/{netstat,snmp,snmp6,sockstat,sockstat6}` and connection tracking.

use super::read::{Points, Reason, shortened};
use crate::catalogue::node;

/// Fields of `/proc/net/netstat` and `snmp`: pairs of lines with the same prefix, names in the first and values in the second.
fn pairs<'a>(text: &'a str, mut each: impl FnMut(&'a str, &'a str, u64)) {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let (Some((protocol, names)), Some((same, values))) = (names.split_once(':'), values.split_once(':')) else {
            continue;
        };
        if protocol != same {
            continue;
        }
        // `MaxConn` may be -1: such a value is none
        for (name, value) in names.split_ascii_whitespace().zip(values.split_ascii_whitespace()) {
            if let Ok(value) = value.parse() {
                each(protocol, name, value);
            }
        }
    }
}

/// Fields of `/proc/net/snmp6`: one line each, the protocol's name, which ends in 6, before the field's.
fn fields_of_6<'a>(text: &'a str, mut each: impl FnMut(&'a str, &'a str, u64)) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse)) else { continue };
        if let Some(at) = name.find('6') {
            each(&name[..=at], &name[at + 1..], value);
        }
    }
}

/// Points of the protocols' counters, by the text of each file; none for a file that the kernel does not have.
pub(super) fn netstat(
    netstat: Option<&str>,
    snmp: Option<&str>,
    snmp6: Option<&str>,
    points: &mut Points<'_>,
) -> Result<(), Reason> {
    let mut name = String::new();
    let mut found = 0;
    let mut put = |protocol: &str, field: &str, value: u64| {
        name.clear();
        name.push_str("node_netstat_");
        name.push_str(protocol);
        name.push('_');
        name.push_str(field);
        if let Some(family) = node::find(&name) {
            points.set(family, value);
            found += 1;
        }
    };
    pairs(netstat.unwrap_or_default(), &mut put);
    pairs(snmp.unwrap_or_default(), &mut put);
    fields_of_6(snmp6.unwrap_or_default(), &mut put);
    if found == 0 {
        let first = shortened(snmp.or(netstat).unwrap_or_default().lines().next().unwrap_or_default());
        return Err(format!("found '{first}' in /proc/net/snmp and netstat, expected pairs of lines such as 'Tcp: …'"));
    }
    Ok(())
}

/// Points of `sockstat` or `sockstat6`: a protocol, then names and values by turns.
fn sockstat_file(text: &str, page: u64, points: &mut Points<'_>) -> usize {
    let mut name = String::new();
    let mut found = 0;
    for line in text.lines() {
        let Some((protocol, rest)) = line.split_once(':') else { continue };
        let mut words = rest.split_ascii_whitespace();
        while let (Some(field), Some(value)) = (words.next(), words.next()) {
            let Ok(value) = value.parse::<u64>() else { continue };
            let mut put = |field: &str, end: &str, value: u64| {
                name.clear();
                for part in ["node_sockstat_", protocol, "_", field, end] {
                    name.push_str(part);
                }
                if let Some(family) = node::find(&name) {
                    points.set(family, value);
                    found += 1;
                }
            };
            put(field, "", value);
            // pages
            if field == "mem" {
                put(field, "_bytes", value.saturating_mul(page));
            }
        }
    }
    found
}

/// Points of the sockets by protocol.
pub(super) fn sockstat(v4: Option<&str>, v6: Option<&str>, page: u64, points: &mut Points<'_>) -> Result<(), Reason> {
    let found =
        sockstat_file(v4.unwrap_or_default(), page, points) + sockstat_file(v6.unwrap_or_default(), page, points);
    if found == 0 {
        let first = shortened(v4.or(v6).unwrap_or_default().lines().next().unwrap_or_default());
        return Err(format!("found '{first}' in /proc/net/sockstat, expected lines such as 'TCP: inuse 4'"));
    }
    Ok(())
}

/// Points of `/proc/net/stat/nf_conntrack`: names, then a line of hexadecimal values for each CPU.
pub(super) fn conntrack(text: &str, points: &mut Points<'_>) {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let mut sums: Vec<Option<u64>> = vec![None; names.len()];
    for line in lines {
        for (sum, value) in sums.iter_mut().zip(line.split_ascii_whitespace()) {
            if let Ok(value) = u64::from_str_radix(value, 16) {
                *sum = Some(sum.unwrap_or(0).saturating_add(value));
            }
        }
    }
    for (name, sum) in names.into_iter().zip(sums) {
        if let (Some(family), Some(sum)) = (node::find(&format!("node_nf_conntrack_stat_{name}")), sum) {
            points.set(family, sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::read::tests::{filled, value};

    const NETSTAT: &str = "TcpExt: SyncookiesSent ListenDrops TCPTimeouts New\nTcpExt: 1 2 6 9\n\
        IpExt: InOctets OutOctets\nIpExt: 6236712103 18446744073709551616\n";
    const SNMP: &str = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: RtoAlgorithm MaxConn CurrEstab RetransSegs InErrs Short\n\
        Tcp: 1 -1 7 191 0\nUdp: InDatagrams\nUdpLite: 5\nUdp: NoPorts\nUdp: 3\n";
    const SNMP6: &str =
        "Ip6InOctets                     \t948206\nUdpLite6InErrors\t4\nIcmp6InMsgs\nIcmp6OutMsgs x\nUdp 5\n6 6\n";

    #[test]
    fn fields_are_found_by_their_names() {
        let (batch, answer) = filled(|points| netstat(Some(NETSTAT), Some(SNMP), Some(SNMP6), points));
        answer.unwrap();
        for (family, expected) in [
            (&node::NETSTAT_TCPEXT_LISTEN_DROPS, Some(2.0)),
            (&node::NETSTAT_IPEXT_IN_OCTETS, Some(6_236_712_103.0)),
            (&node::NETSTAT_IPEXT_OUT_OCTETS, None),
            (&node::NETSTAT_IP_FORWARDING, Some(1.0)),
            (&node::NETSTAT_TCP_CURR_ESTAB, Some(7.0)),
            (&node::NETSTAT_TCP_RETRANS_SEGS, Some(191.0)),
            (&node::NETSTAT_UDP_IN_DATAGRAMS, None),
            (&node::NETSTAT_UDP_NO_PORTS, Some(3.0)),
            (&node::NETSTAT_IP6_IN_OCTETS, Some(948_206.0)),
            (&node::NETSTAT_UDP_LITE6_IN_ERRORS, Some(4.0)),
            (&node::NETSTAT_ICMP6_OUT_MSGS, None),
        ] {
            assert_eq!(value(&batch, family, &[]), expected, "{}", family.name);
        }
        // a kernel without IPv6
        assert_eq!(filled(|points| netstat(Some(NETSTAT), Some(SNMP), None, points)).1, Ok(()));
        for garbage in [None, Some(""), Some("Tcp: a\n"), Some("Tcp a\nTcp 5\n"), Some(":\n:\n")] {
            assert!(filled(|points| netstat(garbage, garbage, garbage, points)).1.is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn sockets_are_told_by_protocol_and_memory_in_bytes_too() {
        let v4 = "sockets: used 16\nTCP: inuse 1 orphan 0 tw 3 alloc 1 mem 328\nFRAG: inuse 0 memory 12\nUDP: inuse x mem\nNEW: inuse 1\n";
        let v6 = "TCP6: inuse 9\nFRAG6: inuse 0 memory 18446744073709551615\n";
        let (batch, answer) = filled(|points| sockstat(Some(v4), Some(v6), 4096, points));
        answer.unwrap();
        assert_eq!(value(&batch, &node::SOCKSTAT_SOCKETS_USED, &[]), Some(16.0));
        assert_eq!(value(&batch, &node::SOCKSTAT_TCP_MEM_BYTES, &[]), Some(1_343_488.0));
        assert_eq!(value(&batch, &node::SOCKSTAT_FRAG_MEMORY, &[]), Some(12.0));
        assert_eq!(value(&batch, &node::SOCKSTAT_TCP6_INUSE, &[]), Some(9.0));
        assert_eq!(value(&batch, &node::SOCKSTAT_UDP_INUSE, &[]), None);
        assert!(filled(|points| sockstat(None, Some("what"), 4096, points)).1.unwrap_err().contains("found 'what'"));
    }

    #[test]
    fn tracking_is_summed_over_cpus() {
        let text = "entries  searched found invalid drop\n0000000e  00000000 00000001 000001f8 00000001\n\
            0000000e  00000000 0000000a 00000001 zz\n";
        let (batch, ()) = filled(|points| conntrack(text, points));
        assert_eq!(value(&batch, &node::NF_CONNTRACK_STAT_FOUND, &[]), Some(11.0));
        assert_eq!(value(&batch, &node::NF_CONNTRACK_STAT_INVALID, &[]), Some(505.0));
        assert_eq!(value(&batch, &node::NF_CONNTRACK_STAT_DROP, &[]), Some(1.0));
        let (batch, ()) = filled(|points| conntrack("", points));
        assert_eq!(batch.series(), 0);
    }
}
