//! Who pods speak with: the edges of the kernel's map, by pod and with names.
//!
//! A peer whose address is one of this host's pods is `pod/<id>`; the first others of a pod are named by their address, and
//! all that come later are [`OTHER`]; so are those that come when an instance has more peers and ports than are remembered.
//! What a peer was called once it stays, and what containers counted that are gone is kept
//! as long as their instance: so no series falls, and no address that another pod gets later changes the past.
//!
//! [`Book`] is that memory. It has no lock and no clock; whoever gathers holds it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use agentd_ebpf::observe::layout::{self, EdgeKey};
use agentd_metrics::budget::OTHER;
use agentd_metrics::container::{Direction, Edge};

use super::kernel_events::address;

/// Most addresses of an instance whose names are remembered, and most peers with their ports.
const MOST: usize = 2048;

/// The edges that changed longest ago, to be taken out of the kernel's map when that is nearly full: half of it is then free.
/// They are made again when they count again.
pub fn oldest(edges: &[(EdgeKey, layout::Edge)], room: usize) -> Vec<EdgeKey> {
    if edges.len() < room / 4 * 3 {
        return Vec::new();
    }
    let mut by_age: Vec<(u64, EdgeKey)> = edges.iter().map(|(key, edge)| (edge.last, *key)).collect();
    by_age.sort_unstable();
    by_age.truncate(edges.len().saturating_sub(room / 2));
    by_age.into_iter().map(|(_, key)| key).collect()
}

/// One peer of an instance on one port of the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    peer: Arc<str>,
    port: Option<u16>,
    direction: Direction,
}

/// What an instance's containers counted, by peer.
#[derive(Debug, Clone, Default)]
pub struct Peers(BTreeMap<Place, layout::Edge>);

impl Peers {
    /// As they are reported.
    pub fn edges(&self) -> Vec<Edge<'_>> {
        let all = self.0.iter();
        all.map(|(Place { peer, port, direction }, counts)| Edge {
            peer,
            port: *port,
            direction: *direction,
            counts: *counts,
        })
        .collect()
    }

    fn add(&mut self, place: Place, counts: &layout::Edge) {
        let sum = self.0.entry(place).or_default();
        sum.connections += counts.connections;
        sum.failures += counts.failures;
        sum.retransmits += counts.retransmits;
        sum.received_bytes += counts.received_bytes;
        sum.sent_bytes += counts.sent_bytes;
        sum.last = sum.last.max(counts.last);
    }
}

/// What is remembered of one instance.
#[derive(Debug, Default)]
struct Known {
    /// Names of addresses outside this host's pods that got one.
    outside: HashSet<IpAddr>,
    /// Names by address, as they were when the address was first seen.
    names: HashMap<IpAddr, Arc<str>>,
    /// Peers with their ports that stand for themselves.
    places: HashSet<Place>,
    /// What is not in the kernel's map any more.
    gone: Peers,
}

/// Names and what was counted before.
#[derive(Debug, Default)]
pub struct Book {
    instances: HashMap<Arc<str>, Known>,
    /// The kernel's map as it was.
    last: HashMap<EdgeKey, (Arc<str>, layout::Edge)>,
}

impl Book {
    /// Takes in the kernel's map. `instance` tells whose a container is, `pods` which pod has an address; of other addresses
    /// `most` get a name in each instance. Gives the peers of each instance.
    pub fn update(
        &mut self,
        edges: &[(EdgeKey, layout::Edge)],
        instance: impl Fn(u64) -> Option<Arc<str>>,
        pods: &HashMap<IpAddr, String>,
        most: usize,
    ) -> HashMap<Arc<str>, Peers> {
        let mut now = HashMap::with_capacity(edges.len());
        // the largest first, so that it is they who get names where many come at once
        let mut order: Vec<&(EdgeKey, layout::Edge)> = edges.iter().collect();
        order.sort_by_key(|(key, edge)| (std::cmp::Reverse(edge.connections + edge.failures), *key));
        let mut peers: HashMap<Arc<str>, Peers> = HashMap::new();
        for (key, edge) in order {
            let Some(who) = instance(key.container) else { continue };
            let known = self.instances.entry(Arc::clone(&who)).or_default();
            if let Some(place) = known.place(key, pods, most) {
                peers.entry(Arc::clone(&who)).or_default().add(place, edge);
                now.insert(*key, (who, *edge));
            }
        }
        for (key, (who, edge)) in std::mem::take(&mut self.last) {
            // an entry that was made anew counts from zero
            let begun_anew = now.get(&key).is_none_or(|(_, new)| {
                new.connections < edge.connections
                    || new.failures < edge.failures
                    || new.retransmits < edge.retransmits
                    || new.received_bytes < edge.received_bytes
                    || new.sent_bytes < edge.sent_bytes
            });
            if begun_anew
                && let Some(known) = self.instances.get_mut(&who)
                && let Some(place) = known.place(&key, pods, most)
            {
                known.gone.add(place, &edge);
            }
        }
        self.last = now;
        for (who, known) in &self.instances {
            for (place, edge) in &known.gone.0 {
                peers.entry(Arc::clone(who)).or_default().add(place.clone(), edge);
            }
        }
        peers
    }

    /// The edges as they were last seen.
    pub fn last(&self) -> Vec<(EdgeKey, layout::Edge)> {
        self.last.iter().map(|(key, (_, edge))| (*key, *edge)).collect()
    }

    /// Keeps what was last seen of edges that the kernel's map is rid of: should they be there again, they count from zero.
    pub fn release(&mut self, edges: &[EdgeKey], pods: &HashMap<IpAddr, String>, most: usize) {
        for key in edges {
            if let Some((who, edge)) = self.last.remove(key)
                && let Some(known) = self.instances.get_mut(&who)
                && let Some(place) = known.place(key, pods, most)
            {
                known.gone.add(place, &edge);
            }
        }
    }

    /// Forgets the instances that are not among these.
    pub fn retain(&mut self, instances: &HashSet<&str>) {
        self.instances.retain(|who, _| instances.contains(who.as_ref()));
        self.last.retain(|_, (who, _)| instances.contains(who.as_ref()));
    }
}

impl Known {
    /// The place of an edge; none for a direction that no program writes.
    fn place(&mut self, key: &EdgeKey, pods: &HashMap<IpAddr, String>, most: usize) -> Option<Place> {
        let direction = Direction::of(key.direction)?;
        let peer = self.name(address(key.address), pods, most);
        if peer.as_ref() != OTHER {
            let place = Place { peer, port: Some(key.port), direction };
            if self.places.contains(&place) {
                return Some(place);
            }
            if self.places.len() < MOST {
                self.places.insert(place.clone());
                return Some(place);
            }
        }
        Some(Place { peer: OTHER.into(), port: None, direction })
    }

    fn name(&mut self, address: IpAddr, pods: &HashMap<IpAddr, String>, most: usize) -> Arc<str> {
        if let Some(name) = self.names.get(&address) {
            return Arc::clone(name);
        }
        if self.names.len() >= MOST {
            return OTHER.into();
        }
        let name: Arc<str> = if let Some(pod) = pods.get(&address) {
            format!("pod/{}", pod.trim_start_matches('/')).into()
        } else if self.outside.len() < most {
            self.outside.insert(address);
            address.to_string().into()
        } else {
            OTHER.into()
        };
        self.names.insert(address, Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(container: u64, last: u8, port: u16, connections: u64) -> (EdgeKey, layout::Edge) {
        let address = std::net::Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped().octets();
        let key = EdgeKey { container, address, port, direction: 1, padding: [0; 5] };
        (key, layout::Edge { connections, sent_bytes: connections * 10, ..layout::Edge::default() })
    }

    fn told(
        book: &mut Book,
        edges: &[(EdgeKey, layout::Edge)],
        pods: &[(u8, &str)],
    ) -> Vec<(String, Option<u16>, u64)> {
        let pods = pods.iter().map(|(last, pod)| (IpAddr::from([192, 0, 2, *last]), (*pod).to_owned())).collect();
        let of = |container| (container < 10).then(|| Arc::from("i"));
        let peers = book.update(edges, of, &pods, 2);
        let Some(peers) = peers.get("i") else { return Vec::new() };
        peers.edges().iter().map(|edge| (edge.peer.to_owned(), edge.port, edge.counts.connections)).collect()
    }

    fn row(peer: &str, port: Option<u16>, connections: u64) -> (String, Option<u16>, u64) {
        (peer.to_owned(), port, connections)
    }

    #[test]
    fn pods_are_named_and_others_are_bounded() {
        let mut book = Book::default();
        let edges = [
            edge(1, 1, 80, 1),
            edge(2, 1, 80, 2),
            edge(1, 2, 80, 9),
            edge(1, 3, 80, 8),
            edge(1, 4, 80, 7),
            edge(1, 5, 81, 1),
        ];
        assert_eq!(
            told(&mut book, &edges, &[(1, "/db/main")]),
            [
                row("192.0.2.2", Some(80), 9),
                row("192.0.2.3", Some(80), 8),
                row("pod/db/main", Some(80), 3),
                row(OTHER, None, 8)
            ]
        );
        // one in another's container is not this one's
        assert!(!told(&mut book, &[edge(11, 9, 80, 1)], &[]).iter().any(|(peer, ..)| peer == "192.0.2.9"));
    }

    #[test]
    fn nothing_falls_when_a_container_goes_or_an_address_changes_hands() {
        let mut book = Book::default();
        let first = [edge(1, 1, 80, 5), edge(2, 1, 80, 1), edge(1, 2, 80, 3)];
        let before = told(&mut book, &first, &[(1, "/a")]);
        assert_eq!(before, [row("192.0.2.2", Some(80), 3), row("pod/a", Some(80), 6)]);
        // container 1 is forgotten, and its peer's address belongs to another pod
        let after = told(&mut book, &[edge(2, 1, 80, 2)], &[(1, "/b")]);
        assert_eq!(after, [row("192.0.2.2", Some(80), 3), row("pod/a", Some(80), 7)]);
        assert_eq!(told(&mut book, &[edge(2, 1, 80, 2)], &[]), after, "what is gone is counted once");
        book.retain(&HashSet::new());
        assert_eq!(told(&mut book, &[], &[]), []);
    }

    #[test]
    fn a_map_that_is_nearly_full_gives_up_its_oldest_half() {
        let mut edges: Vec<(EdgeKey, layout::Edge)> = (0..75).map(|port| edge(1, 1, port, 1)).collect();
        for (age, (_, edge)) in edges.iter_mut().enumerate() {
            edge.last = 1000 - age as u64;
        }
        assert_eq!(oldest(&edges[..74], 100), []);
        let ports: Vec<u16> = oldest(&edges, 100).iter().map(|key| key.port).collect();
        assert_eq!(ports, (50..75).rev().collect::<Vec<u16>>());
        assert_eq!(oldest(&[], 4), []);
    }

    #[test]
    fn an_edge_that_gave_up_its_place_goes_on_when_it_comes_back() {
        let mut book = Book::default();
        let first = [edge(1, 2, 80, 3)];
        told(&mut book, &first, &[]);
        book.release(&[first[0].0], &HashMap::new(), 2);
        assert_eq!(told(&mut book, &[], &[]), [row("192.0.2.2", Some(80), 3)]);
        // more than before: without release it could not be told from one that went on
        assert_eq!(told(&mut book, &[edge(1, 2, 80, 4)], &[]), [row("192.0.2.2", Some(80), 7)]);
    }

    #[test]
    fn a_map_that_cannot_be_read_for_once_changes_nothing() {
        let mut book = Book::default();
        let edges = [edge(1, 2, 80, 3), edge(2, 2, 80, 1)];
        let before = told(&mut book, &edges, &[]);
        let last = book.last();
        assert_eq!(told(&mut book, &last, &[]), before);
        assert_eq!(told(&mut book, &edges, &[]), before, "nothing is counted twice");
    }

    #[test]
    fn a_container_that_speaks_with_every_port_and_address_fills_no_memory() {
        let mut book = Book::default();
        let total = 6 * MOST as u64;
        for round in 0..6_u16 {
            let ports = (0..MOST as u16).map(|port| edge(1, 1, round * MOST as u16 + port, 1));
            let edges: Vec<_> = ports.collect();
            told(&mut book, &edges, &[]);
        }
        let peers = told(&mut book, &[], &[]);
        assert_eq!(peers.len(), MOST + 1);
        assert_eq!(peers.iter().map(|(.., connections)| connections).sum::<u64>(), total, "nothing is lost");
        for round in 0..3_u8 {
            let addresses = (0..MOST as u16).map(|low| {
                let (mut key, counts) = edge(1, 1, 80, 1);
                key.address[13..].copy_from_slice(&[round, (low >> 8) as u8, low as u8]);
                (key, counts)
            });
            told(&mut book, &addresses.collect::<Vec<_>>(), &[]);
        }
        let known = &book.instances["i"];
        assert_eq!((known.names.len(), known.places.len(), known.outside.len()), (MOST, MOST, 2));
        assert!(known.gone.0.len() <= MOST + 2);
    }

    #[test]
    fn a_direction_that_no_program_writes_is_left_out() {
        let mut strange = edge(1, 1, 80, 1);
        strange.0.direction = 7;
        assert_eq!(told(&mut Book::default(), &[strange], &[]), []);
    }
}
