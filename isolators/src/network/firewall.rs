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
use std::time::Duration;

use agentd_api::pod::Protocol;
use serde_json::{Value, json};

use super::ledger::Record;
use super::subnet::Subnets;
use super::{exec, fail, ports};
use crate::IsolatorError;

/// Where `nft` is looked for, besides `PATH`.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// Longest run of nft; the kernel makes it wait while another program changes rules.
const TIME_LIMIT: Duration = Duration::from_secs(30);

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

/// Runs nft and returns what it prints.
fn nft(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, IsolatorError> {
    let Some(program) = program() else {
        return Err(fail("nft is not installed, and container networks need it: install the package nftables"));
    };
    let answer = exec::run(&program, arguments, &[], input, TIME_LIMIT)
        .map_err(|problem| fail(format!("{} {problem}", program.display())))?;
    if answer.success {
        return Ok(answer.stdout);
    }
    let reason = answer.stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    Err(fail(format!(
        "nft refused the rules ({reason}): check that the kernel has nf_tables with nat, fib and masquerade"
    )))
}

/// Runs nft on a list of commands: all or none of them take effect. (The crate `nftables` would run it too, but it lets
/// nft's error output through to the daemon's own, where the reason is lost, and sets no time limit.)
fn run(commands: &[Value]) -> Result<(), IsolatorError> {
    nft(&["-j", "-f", "-"], json!({ "nftables": commands }).to_string().as_bytes()).map(drop)
}

fn compare(op: &str, left: Value, right: Value) -> Value {
    let mut comparison = json!({ "op": op });
    comparison["left"] = left;
    comparison["right"] = right;
    json!({ "match": comparison })
}

fn equals(left: Value, right: impl Into<Value>) -> Value {
    compare("==", left, right.into())
}

fn differs(left: Value, right: impl Into<Value>) -> Value {
    compare("!=", left, right.into())
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

fn ct(key: &str, right: impl Into<Value>) -> Value {
    compare("in", json!({ "ct": { "key": key } }), right.into())
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
        let mut rule = json!({ "chain": chain });
        rule["expr"] = expressions.into();
        self.add("rule", rule)
    }

    /// Commands on the map elements of a pod.
    fn elements(&self, verb: &str, record: &Record) -> Vec<Value> {
        let Some(address) = record.address else {
            return Vec::new();
        };
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

    /// Replaces the whole table, in one transaction: no packet ever meets half of it.
    pub fn rebuild<'a>(
        &self,
        subnets: &Subnets,
        records: impl Iterator<Item = &'a Record>,
    ) -> Result<(), IsolatorError> {
        let mut commands = self.commands(subnets);
        for record in records {
            commands.extend(self.elements("add", record));
        }
        run(&commands)
    }

    /// The commands that make the table without elements.
    fn commands(&self, subnets: &Subnets) -> Vec<Value> {
        let bridge = self.bridge.as_str();
        let table = json!({ "table": { "family": "inet", "name": self.table } });
        let from_bridge = || equals(meta("iifname"), bridge);
        let to_bridge = || equals(meta("oifname"), bridge);
        let not_from_bridge = || differs(meta("iifname"), bridge);
        let not_to_bridge = || differs(meta("oifname"), bridge);
        let drop = || json!({ "drop": null });
        let accept = || json!({ "accept": null });
        let masquerade = || json!({ "masquerade": null });
        let known = || ct("state", json!(["established", "related"]));
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
        rules.push(
            self.rule("early", vec![from_bridge(), equals(field("ip", "daddr"), prefix("127.0.0.0", 8)), drop()]),
        );
        rules.push(self.rule("early", vec![from_bridge(), differs(field("ip", "saddr"), v4()), drop()]));
        let mut sources = vec![json!("::"), prefix("fe80::", 10)];
        if let Some(v6) = subnets.v6 {
            sources.push(prefix(&v6.network().to_string(), v6.prefix_len()));
        }
        rules.push(
            self.rule("early", vec![from_bridge(), differs(field("ip6", "saddr"), json!({ "set": sources })), drop()]),
        );

        rules.push(self.rule("forward", vec![known(), accept()]));
        if !self.allow_metadata {
            let link_local = equals(field("ip", "daddr"), prefix("169.254.0.0", 16));
            rules.push(self.rule("forward", vec![from_bridge(), link_local, drop()]));
            rules.push(
                self.rule("forward", vec![from_bridge(), equals(field("ip6", "daddr"), "fd00:ec2::254"), drop()]),
            );
        }
        if !self.allow_inbound {
            rules.push(self.rule("forward", vec![to_bridge(), ct("status", "dnat"), accept()]));
            rules.push(self.rule("forward", vec![to_bridge(), not_from_bridge(), drop()]));
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
            rules
                .push(self.rule("input", vec![from_bridge(), transport(), equals(field("th", "dport"), 53), accept()]));
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
        // A pod that uses a host port of a pod on the same bridge: the answer has to come back through the host. By
        // source address, because with br_netfilter the hook does not know the link that the packet came in by.
        let mapped = || ct("status", "dnat");
        rules.push(
            self.rule("masquerade", vec![equals(field("ip", "saddr"), v4()), to_bridge(), mapped(), masquerade()]),
        );
        if let Some(v6) = subnets.v6 {
            let source = equals(field("ip6", "saddr"), prefix(&v6.network().to_string(), v6.prefix_len()));
            rules.push(self.rule("masquerade", vec![source, to_bridge(), mapped(), masquerade()]));
        }
        rules.push(
            self.rule(
                "masquerade",
                vec![equals(field("ip", "saddr"), prefix("127.0.0.0", 8)), to_bridge(), masquerade()],
            ),
        );

        rules
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

    /// Chains of others that drop forwarded packets unless told otherwise: one line each, with the cure.
    pub fn obstacles(&self) -> Result<Vec<String>, IsolatorError> {
        let listed: Value = serde_json::from_slice(&nft(&["-j", "list", "chains"], &[])?).unwrap_or_default();
        let chains = listed["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
        let in_the_way = chains.filter(|chain| {
            chain["hook"] == "forward" && chain["policy"] == "drop" && chain["table"] != self.table.as_str()
        });
        let line = |chain: &Value| {
            let text = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
            format!(
                "chain {} of table {} {} drops forwarded packets by default, also those of pods: let it accept what comes from and goes to {bridge} (with Docker: iptables -I DOCKER-USER -i {bridge} -j ACCEPT, and the same with -o)",
                text("name"),
                text("family"),
                text("table"),
                bridge = self.bridge
            )
        };
        Ok(in_the_way.map(line).collect())
    }

    /// Deletes the table; one that is already gone is fine.
    pub fn remove(&self) -> Result<(), IsolatorError> {
        let table = json!({ "table": { "family": "inet", "name": self.table } });
        run(&[json!({ "add": table }), json!({ "delete": table })])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{EndpointPort, PodMode};

    #[test]
    fn every_command_is_one_of_the_schema() {
        let firewall = Firewall {
            table: "agentd".to_owned(),
            bridge: "agentd0".to_owned(),
            daemon_ports: vec![5050],
            allow_metadata: false,
            allow_inbound: false,
            host_access: false,
        };
        let v6: ipnet::Ipv6Net = "fd00::/64".parse().unwrap();
        let subnets = Subnets { v4: "10.64.0.0/20".parse().unwrap(), v6: Some(v6) };
        let record = Record {
            sequence: 1,
            sandbox: "s".to_owned(),
            pod: "/p".to_owned(),
            mode: PodMode::Container,
            address: Some("10.64.0.2".parse().unwrap()),
            address_v6: subnets.address_v6("10.64.0.2".parse().unwrap()),
            endpoints: vec![EndpointPort {
                container: "c".to_owned(),
                endpoint: "e".to_owned(),
                container_port: Some(80),
                host_port: Some(8080),
                protocols: vec![Protocol::Tcp, Protocol::Udp],
            }],
            cni: Vec::new(),
        };
        assert_eq!(firewall.elements("add", &record).len(), 6);
        let mut commands = firewall.commands(&subnets);
        commands.extend(firewall.elements("add", &record));
        commands.extend(firewall.elements("delete", &record));
        for command in commands {
            let parsed: Result<nftables::schema::NfObject<'_>, _> = serde_json::from_value(command.clone());
            assert!(parsed.is_ok(), "{command}: {parsed:?}");
        }
    }
}
