//! Packet rules, by nft: one table for each instance of agentd, replaced as a whole when it is set up, and changed by
//! map elements when pods with host ports come and go. A pod without host ports costs no run of nft.
//!
//! What the table says:
//! - Packets of pods to elsewhere get the host's address (masquerade).
//! - A host port on any of the host's addresses leads to its pod: from outside, from other pods, from the pod itself, and
//!   from the host over 127.0.0.1 (over `::1` it cannot: the kernel has no `route_localnet` for IPv6).
//! - From outside, nothing but host ports reaches a pod, even if a neighbour sets a route.
//! - Pods cannot reach link-local addresses (cloud metadata), the daemon's own ports, the host's loopback addresses, nor use
//!   a source address outside their subnet. Other services of the host are reachable as from any machine of its network,
//!   unless `host_access` is off; then only ICMP and DNS are.
//!
//! An `accept` here does not override a `drop` in another program's table: where Docker or a firewall has set the
//! forward policy to drop, it has to be told to let the bridge through.

use std::ffi::OsString;
use std::path::PathBuf;

use agentd_api::pod::Protocol;
use nftables::helper::{NftablesError, apply_ruleset_raw};
use serde_json::{Value, json};

use super::ledger::Record;
use super::subnet::Subnets;
use super::{ISOLATOR, fail, ports};
use crate::IsolatorError;

/// Where `nft` is looked for, besides `PATH`.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// The program `nft`; none if the host lacks it.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/sbin:/usr/bin"));
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join("nft"))
        .find(|candidate| candidate.is_file())
}

/// What the table is made from.
#[derive(Debug, Clone)]
pub(super) struct Firewall {
    pub table: String,
    pub bridge: String,
    pub daemon_ports: Vec<u16>,
    pub allow_metadata: bool,
    pub allow_inbound: bool,
    pub host_access: bool,
}

fn run(commands: &[Value]) -> Result<(), IsolatorError> {
    let Some(program) = program() else {
        return Err(fail("nft is not installed, and container networks need it: install the package nftables"));
    };
    let payload = json!({ "nftables": commands }).to_string();
    let none: [&str; 0] = [];
    apply_ruleset_raw(&payload, Some(program.as_os_str()), none).map(drop).map_err(|error| match error {
        NftablesError::NftFailed { stderr, .. } => {
            let reason = stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").to_owned();
            fail(format!("nft refused the rules ({reason}): check that the kernel has nf_tables with nat, fib and masquerade"))
        }
        NftablesError::NftExecution { inner, .. } => IsolatorError::io(ISOLATOR, format!("cannot run {}", program.display()), inner),
        other => fail(format!("nft gave an answer that is not understood: {other}")),
    })
}

fn equals(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right.into() } })
}

fn differs(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "!=", "left": left, "right": right.into() } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn field(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn prefix(address: &str, len: u8) -> Value {
    json!({ "prefix": { "addr": address, "len": len } })
}

fn ct(key: &str, op: &str, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": op, "left": { "ct": { "key": key } }, "right": right.into() } })
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Maps from host port to: IPv4 address, IPv6 address, port in the pod.
fn map_names(protocol: Protocol) -> [(String, &'static str); 3] {
    let word = ports::word(protocol);
    [
        (format!("{word}_address4"), "ipv4_addr"),
        (format!("{word}_address6"), "ipv6_addr"),
        (format!("{word}_port"), "inet_service"),
    ]
}

impl Firewall {
    fn object(&self, kind: &str, mut value: Value) -> Value {
        value["family"] = "inet".into();
        value["table"] = self.table.as_str().into();
        json!({ kind: value })
    }

    fn add(&self, kind: &str, value: Value) -> Value {
        json!({ "add": self.object(kind, value) })
    }

    fn chain(&self, name: &str, kind: &str, hook: &str, priority: i32) -> Value {
        self.add("chain", json!({ "name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept" }))
    }

    fn rule(&self, chain: &str, expressions: Vec<Value>) -> Value {
        self.add("rule", json!({ "chain": chain, "expr": expressions }))
    }

    /// Commands on the map elements of a pod.
    fn elements(&self, verb: &str, record: &Record) -> Vec<Value> {
        let Some(address) = record.address else { return Vec::new() };
        let mut commands = Vec::new();
        for protocol in PROTOCOLS {
            let mapped = record.endpoints.iter().filter(|endpoint| endpoint.protocols.contains(&protocol));
            let pairs: Vec<_> = mapped.filter_map(|endpoint| endpoint.host_port.zip(endpoint.container_port)).collect();
            if pairs.is_empty() {
                continue;
            }
            let [address4, address6, port] = map_names(protocol).map(|(name, _)| name);
            let mut element = |name: String, value: &dyn Fn(u16) -> Value| {
                let list: Vec<_> = pairs.iter().map(|(host, pod)| json!([host, value(*pod)])).collect();
                commands.push(json!({ verb: self.object("element", json!({ "name": name, "elem": list })) }));
            };
            element(address4, &|_| address.to_string().into());
            if let Some(v6) = record.address_v6 {
                element(address6, &|_| v6.to_string().into());
            }
            element(port, &|pod| pod.into());
        }
        commands
    }

    /// Replaces the whole table, in one transaction.
    pub fn rebuild<'a>(&self, subnets: &Subnets, records: impl Iterator<Item = &'a Record>) -> Result<(), IsolatorError> {
        let bridge = self.bridge.as_str();
        let table = json!({ "table": { "family": "inet", "name": self.table } });
        let from_bridge = || equals(meta("iifname"), bridge);
        let to_bridge = || equals(meta("oifname"), bridge);
        let not_from_bridge = || differs(meta("iifname"), bridge);
        let not_to_bridge = || differs(meta("oifname"), bridge);
        let drop = || json!({ "drop": null });
        let accept = || json!({ "accept": null });
        let masquerade = || json!({ "masquerade": null });
        let known = || ct("state", "in", json!(["established", "related"]));
        let own_address = || equals(json!({ "fib": { "result": "type", "flags": ["daddr"] } }), "local");
        let v4 = || prefix(&subnets.v4.network().to_string(), subnets.v4.prefix_len());

        // "add" before "delete" so that the first time does not fail.
        let mut rules = vec![json!({ "add": table }), json!({ "delete": table }), json!({ "add": table })];
        for protocol in PROTOCOLS {
            for (name, value) in map_names(protocol) {
                rules.push(self.add("map", json!({ "name": name, "type": "inet_service", "map": value })));
            }
        }
        rules.extend([
            self.chain("early", "filter", "prerouting", -300),
            self.chain("forward", "filter", "forward", 0),
            self.chain("input", "filter", "input", 0),
            self.chain("ports", "nat", "prerouting", -100),
            self.chain("ports_local", "nat", "output", -100),
            self.chain("masquerade", "nat", "postrouting", 100),
        ]);

        // route_localnet on the bridge lets the host use 127.0.0.1:<host port>; pods must not profit from it.
        rules.push(self.rule("early", vec![from_bridge(), equals(field("ip", "daddr"), prefix("127.0.0.0", 8)), drop()]));
        rules.push(self.rule("early", vec![from_bridge(), differs(field("ip", "saddr"), v4()), drop()]));
        let mut sources = vec![json!("::"), prefix("fe80::", 10)];
        if let Some(v6) = subnets.v6 {
            sources.push(prefix(&v6.network().to_string(), v6.prefix_len()));
        }
        rules.push(self.rule("early", vec![from_bridge(), differs(field("ip6", "saddr"), json!({ "set": sources })), drop()]));

        rules.push(self.rule("forward", vec![known(), accept()]));
        if !self.allow_metadata {
            let link_local = equals(field("ip", "daddr"), prefix("169.254.0.0", 16));
            rules.push(self.rule("forward", vec![from_bridge(), link_local, drop()]));
            rules.push(self.rule("forward", vec![from_bridge(), equals(field("ip6", "daddr"), "fd00:ec2::254"), drop()]));
        }
        if !self.allow_inbound {
            rules.push(self.rule("forward", vec![to_bridge(), not_from_bridge(), ct("status", "!", "dnat"), drop()]));
        }

        rules.push(self.rule("input", vec![from_bridge(), known(), accept()]));
        let transport = || equals(meta("l4proto"), json!({ "set": ["tcp", "udp"] }));
        if !self.daemon_ports.is_empty() {
            let own = equals(field("th", "dport"), json!({ "set": self.daemon_ports }));
            rules.push(self.rule("input", vec![from_bridge(), transport(), own, drop()]));
        }
        if !self.host_access {
            let control = json!({ "set": ["icmp", "ipv6-icmp"] });
            rules.push(self.rule("input", vec![from_bridge(), equals(meta("l4proto"), control), accept()]));
            rules.push(self.rule("input", vec![from_bridge(), transport(), equals(field("th", "dport"), 53), accept()]));
            rules.push(self.rule("input", vec![from_bridge(), drop()]));
        }

        for chain in ["ports", "ports_local"] {
            for protocol in PROTOCOLS {
                let [address4, address6, port] = map_names(protocol).map(|(name, _)| name);
                let look_up = |map: &str| {
                    let key = field(ports::word(protocol), "dport");
                    json!({ "map": { "key": key, "data": format!("@{map}") } })
                };
                let to = |family: &str, map: &str| json!({ "dnat": { "family": family, "addr": look_up(map), "port": look_up(&port) } });
                rules.push(self.rule(chain, vec![own_address(), to("ip", &address4)]));
                let mut expressions = vec![own_address(), to("ip6", &address6)];
                if chain == "ports_local" {
                    // Left alone, a connection to ::1 is refused at once and the program goes on to 127.0.0.1.
                    expressions.insert(0, differs(field("ip6", "daddr"), "::1"));
                }
                rules.push(self.rule(chain, expressions));
            }
        }

        rules.push(self.rule("masquerade", vec![equals(field("ip", "saddr"), v4()), not_to_bridge(), masquerade()]));
        if let Some(v6) = subnets.v6 {
            let source = equals(field("ip6", "saddr"), prefix(&v6.network().to_string(), v6.prefix_len()));
            rules.push(self.rule("masquerade", vec![source, not_to_bridge(), masquerade()]));
        }
        // A pod that uses a host port of a pod on the same bridge: the answer has to come back through the host.
        rules.push(self.rule("masquerade", vec![from_bridge(), to_bridge(), ct("status", "in", "dnat"), masquerade()]));
        rules.push(self.rule("masquerade", vec![equals(field("ip", "saddr"), prefix("127.0.0.0", 8)), to_bridge(), masquerade()]));

        for record in records {
            rules.extend(self.elements("add", record));
        }
        run(&rules)
    }

    /// Whether a pod needs elements at all.
    pub fn concerns(&self, record: &Record) -> bool {
        !self.elements("add", record).is_empty()
    }

    /// Adds the elements of a pod.
    pub fn add_ports(&self, record: &Record) -> Result<(), IsolatorError> {
        run(&self.elements("add", record))
    }

    /// Deletes the elements of a pod; fails if one is missing.
    pub fn delete_ports(&self, record: &Record) -> Result<(), IsolatorError> {
        run(&self.elements("delete", record))
    }

    /// Deletes the table; one that is already gone is fine.
    pub fn remove(&self) -> Result<(), IsolatorError> {
        let table = json!({ "table": { "family": "inet", "name": self.table } });
        run(&[json!({ "add": table }), json!({ "delete": table })])
    }
}
