//! `/proc/net/dev` and `/sys/class/net`: the host's interfaces.
//!
//! The host's ends of the pods' links are left out: there may be hundreds, and what passes them is told of their containers.
//! What is left is bounded, too, because other programs make such links as well.

use std::path::Path;

use super::LinkNames;
use super::read::{Folder, Label, Points, Reason, line, shortened};
use crate::catalogue::{host, node};
use crate::model::Family;

/// An interface's line of `/proc/net/dev`: eight columns of what it received, eight of what it sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interface<'a> {
    pub(super) name: &'a str,
    columns: [u64; 16],
}

/// The lines that can be read; `None` if there is no heading, so that it is another file.
fn parse(text: &str) -> Option<Vec<Interface<'_>>> {
    let mut lines = text.lines();
    if !lines.next()?.contains('|') || !lines.next()?.contains('|') {
        return None;
    }
    let interface = |line: &'_ str| -> Option<([u64; 16], usize)> {
        // the name of an alias has a colon in it
        let at = line.rfind(':')?;
        let mut columns = [0; 16];
        let mut words = line[at + 1..].split_ascii_whitespace();
        for column in &mut columns {
            *column = words.next()?.parse().ok()?;
        }
        Some((columns, at))
    };
    Some(
        lines
            .filter_map(|line| interface(line).map(|(columns, at)| Interface { name: line[..at].trim(), columns }))
            .collect(),
    )
}

/// The interfaces with points, and how many have none: links of pods, and those past the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen<'a> {
    pub(super) interfaces: Vec<Interface<'a>>,
    pods: u64,
    past: u64,
}

/// Chooses from the text of `/proc/net/dev`.
pub(super) fn choose<'a>(text: &'a str, pods: Option<&LinkNames>, most: usize) -> Result<Chosen<'a>, Reason> {
    let Some(mut interfaces) = parse(text) else {
        let first = shortened(text.lines().next().unwrap_or_default());
        return Err(format!(
            "found '{first}' in /proc/net/dev, expected a heading of two lines and one for each interface"
        ));
    };
    let all = interfaces.len();
    interfaces.retain(|interface| !pods.is_some_and(|names| names.have(interface.name)));
    let of_pods = all - interfaces.len();
    let past = interfaces.len().saturating_sub(most);
    interfaces.truncate(most);
    Ok(Chosen { interfaces, pods: of_pods as u64, past: past as u64 })
}

static COLUMNS: [&Family; 16] = [
    &node::NETWORK_RECEIVE_BYTES,
    &node::NETWORK_RECEIVE_PACKETS,
    &node::NETWORK_RECEIVE_ERRS,
    &node::NETWORK_RECEIVE_DROP,
    &node::NETWORK_RECEIVE_FIFO,
    &node::NETWORK_RECEIVE_FRAME,
    &node::NETWORK_RECEIVE_COMPRESSED,
    &node::NETWORK_RECEIVE_MULTICAST,
    &node::NETWORK_TRANSMIT_BYTES,
    &node::NETWORK_TRANSMIT_PACKETS,
    &node::NETWORK_TRANSMIT_ERRS,
    &node::NETWORK_TRANSMIT_DROP,
    &node::NETWORK_TRANSMIT_FIFO,
    &node::NETWORK_TRANSMIT_COLLS,
    &node::NETWORK_TRANSMIT_CARRIER,
    &node::NETWORK_TRANSMIT_COMPRESSED,
];

/// Points of what passed the interfaces. Packets on an inactive interface are counted below `class` alone.
pub(super) fn traffic(chosen: &Chosen<'_>, class: &Path, points: &mut Points<'_>) {
    for interface in &chosen.interfaces {
        let name: Label = interface.name.to_owned().into();
        for (family, column) in COLUMNS.into_iter().zip(interface.columns) {
            points.at(family, [name.clone()], column);
        }
        let unheard = line(&class.join(interface.name).join("statistics/rx_nohandler"));
        if let Some(unheard) = unheard.and_then(|text| text.parse::<u64>().ok()) {
            points.at(&node::NETWORK_RECEIVE_NOHANDLER, [name.clone()], unheard);
        }
        for (direction, first) in [("receive", 0), ("transmit", 8)] {
            for (family, column) in [
                (&host::NETWORK_IO, 0),
                (&host::NETWORK_PACKETS, 1),
                (&host::NETWORK_ERRORS, 2),
                (&host::NETWORK_DROPPED, 3),
            ] {
                points.at(family, [name.clone(), direction.into()], interface.columns[first + column]);
            }
        }
    }
    for (reason, count) in [("pod", chosen.pods), ("limit", chosen.past)] {
        points.at(&host::INTERFACES_OMITTED, [reason.into()], count);
    }
}

/// Flag of an interface that is meant to be up.
const IFF_UP: u64 = 1;

/// Points of what the interfaces are. A file that a driver does not answer gives no point.
pub(super) fn properties(chosen: &Chosen<'_>, class: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let mut found = chosen.interfaces.is_empty();
    for interface in &chosen.interfaces {
        let Some(folder) = Folder::open(&class.join(interface.name)) else { continue };
        let Some(state) = folder.line("operstate") else { continue };
        found = true;
        let name: Label = interface.name.to_owned().into();
        points.at(&node::NETWORK_UP, [name.clone()], u64::from(state == "up"));
        let flags = folder.line("flags").and_then(|text| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok());
        let text = |file| folder.line(file).unwrap_or_default();
        let meant = flags.map_or("", |flags| if flags & IFF_UP == 0 { "down" } else { "up" });
        points.at(
            &node::NETWORK_INFO,
            [
                name.clone(),
                text("address").into(),
                text("broadcast").into(),
                text("duplex").into(),
                state.into(),
                meant.into(),
                text("ifalias").into(),
            ],
            1,
        );
        if let Some(flags) = flags {
            points.at(&node::NETWORK_FLAGS, [name.clone()], flags);
        }
        for (family, file) in [
            (&node::NETWORK_MTU_BYTES, "mtu"),
            (&node::NETWORK_CARRIER, "carrier"),
            (&node::NETWORK_CARRIER_CHANGES, "carrier_changes"),
            (&node::NETWORK_CARRIER_UP_CHANGES, "carrier_up_count"),
            (&node::NETWORK_CARRIER_DOWN_CHANGES, "carrier_down_count"),
            (&node::NETWORK_DORMANT, "dormant"),
            (&node::NETWORK_IFACE_ID, "ifindex"),
            (&node::NETWORK_IFACE_LINK, "iflink"),
            (&node::NETWORK_PROTOCOL_TYPE, "type"),
            (&node::NETWORK_TRANSMIT_QUEUE_LENGTH, "tx_queue_len"),
        ] {
            if let Some(value) = folder.line(file).and_then(|text| text.parse::<u64>().ok()) {
                points.at(family, [name.clone()], value);
            }
        }
        // Mbit/s; -1 where the device does not know it
        if let Some(speed) = folder.line("speed").and_then(|text| text.parse::<u64>().ok()) {
            points.at(&node::NETWORK_SPEED_BYTES, [name], speed.saturating_mul(125_000));
        }
    }
    if found {
        Ok(())
    } else {
        Err(format!("found no interface of /proc/net/dev below {}, expected all", class.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::read::tests::{filled, value, write};

    const SAMPLE: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo: 5395061803  364042    0    0    0     0          0         0 5395061803  364042    0    0    0     0       0          0\n  \
        eth0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n\
        ag0123456789ab: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
        ag-devc3-6d83e3: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 18446744073709551615\n\
        eth0:0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
        short: 1 2 3\nodd: 1 2 x 4 5 6 7 8 9 10 11 12 13 14 15 16\nnothing\n:\n";

    #[test]
    fn links_of_pods_and_those_past_the_limit_are_counted_only() {
        let pods = LinkNames { prefix: "ag".to_owned(), digits: 12 };
        let chosen = choose(SAMPLE, Some(&pods), 3).unwrap();
        let names: Vec<&str> = chosen.interfaces.iter().map(|interface| interface.name).collect();
        assert_eq!(names, ["lo", "eth0", "ag-devc3-6d83e3"]);
        let (batch, ()) = filled(|points| traffic(&chosen, Path::new("/nowhere"), points));
        assert_eq!(value(&batch, &host::INTERFACES_OMITTED, &["pod"]), Some(1.0));
        assert_eq!(value(&batch, &host::INTERFACES_OMITTED, &["limit"]), Some(1.0));
        assert_eq!(value(&batch, &node::NETWORK_RECEIVE_MULTICAST, &["eth0"]), Some(8.0));
        assert_eq!(value(&batch, &node::NETWORK_TRANSMIT_COMPRESSED, &["eth0"]), Some(16.0));
        assert_eq!(value(&batch, &host::NETWORK_IO, &["lo", "transmit"]), Some(5_395_061_803.0));
        assert_eq!(value(&batch, &host::NETWORK_DROPPED, &["eth0", "transmit"]), Some(12.0));
        assert_eq!(choose(SAMPLE, None, 100).unwrap().interfaces.len(), 5);
    }

    #[test]
    fn properties_that_a_driver_does_not_know_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("eth0/operstate", "up\n"),
                ("eth0/flags", "0x1003\n"),
                ("eth0/address", "02:fc:00:00:00:01\n"),
                ("eth0/mtu", "1400\n"),
                ("eth0/speed", "10000\n"),
                ("eth0/carrier", "1\n"),
                ("eth0/statistics/rx_nohandler", "5\n"),
                ("lo/operstate", "unknown\n"),
                ("lo/flags", "what\n"),
                ("lo/speed", "-1\n"),
                ("lo/mtu", "99999999999999999999\n"),
            ],
        );
        let chosen = choose(SAMPLE, None, 100).unwrap();
        let (batch, answer) = filled(|points| properties(&chosen, root.path(), points));
        answer.unwrap();
        assert_eq!(value(&batch, &node::NETWORK_UP, &["eth0"]), Some(1.0));
        assert_eq!(value(&batch, &node::NETWORK_UP, &["lo"]), Some(0.0));
        assert_eq!(value(&batch, &node::NETWORK_FLAGS, &["eth0"]), Some(4099.0));
        assert_eq!(value(&batch, &node::NETWORK_SPEED_BYTES, &["eth0"]), Some(1.25e9));
        for (family, name) in
            [(&node::NETWORK_SPEED_BYTES, "lo"), (&node::NETWORK_MTU_BYTES, "lo"), (&node::NETWORK_UP, "short")]
        {
            assert_eq!(value(&batch, family, &[name]), None);
        }
        let info = ["eth0", "02:fc:00:00:00:01", "", "", "up", "up", ""];
        assert_eq!(value(&batch, &node::NETWORK_INFO, &info), Some(1.0));
        let (batch, ()) = filled(|points| traffic(&chosen, root.path(), points));
        assert_eq!(value(&batch, &node::NETWORK_RECEIVE_NOHANDLER, &["eth0"]), Some(5.0));
        let (_, answer) = filled(|points| properties(&chosen, Path::new("/nowhere"), points));
        assert!(answer.unwrap_err().contains("found no interface"));
    }

    #[test]
    fn another_file_gives_a_reason() {
        for garbage in ["", "\n", "eth0: 1 2 3\n", "a|b\nc\n"] {
            assert!(choose(garbage, None, 9).unwrap_err().contains("expected a heading"), "{garbage}");
        }
        assert_eq!(choose("|\n|\n", None, 9).unwrap(), Chosen { interfaces: Vec::new(), pods: 0, past: 0 });
    }
}
