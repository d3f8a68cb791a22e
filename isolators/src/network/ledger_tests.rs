//! Tests of the ledger.

use std::collections::HashSet;

use agentd_api::pod::Endpoint;
use proptest::prelude::*;

use super::*;

fn subnets(text: &str) -> Subnets {
    Subnets { v4: text.parse().unwrap(), v6: None }
}

fn endpoint(host_port: u16, protocol: &[Protocol]) -> Endpoint {
    Endpoint {
        name: "web".to_owned(),
        container_port: Some(80),
        host_port: Some(host_port),
        protocol: protocol.to_vec(),
        labels: BTreeMap::new(),
    }
}

fn record(ledger: &Ledger, sandbox: &str, address: Ipv4Addr, endpoints: Vec<EndpointPort>) -> Record {
    Record {
        sequence: ledger.next_sequence(),
        sandbox: sandbox.to_owned(),
        pod: "/p".to_owned(),
        mode: PodMode::Container,
        address: Some(address),
        address_v6: None,
        endpoints,
        cni: Vec::new(),
    }
}

#[test]
fn a_small_subnet_runs_out_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let subnets = subnets("10.9.0.0/29");
    let mut ledger = Ledger::open(folder.path()).unwrap();
    for index in 0..5 {
        let address = ledger.pick_address(&subnets).unwrap();
        let record = record(&ledger, &format!("s{index}"), address, Vec::new());
        ledger.put(record).unwrap();
    }
    let error = ledger.pick_address(&subnets).unwrap_err();
    assert!(error.message.contains("10.9.0.0/29 is exhausted"), "{error}");
    ledger.remove("s3").unwrap();
    ledger.remove("s3").unwrap();
    assert_eq!(ledger.pick_address(&subnets).unwrap(), Ipv4Addr::new(10, 9, 0, 5));
    // The same after a restart.
    let ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.records().count(), 4);
    assert_eq!(ledger.pick_address(&subnets).unwrap(), Ipv4Addr::new(10, 9, 0, 5));
}

#[test]
fn a_released_address_rests() {
    let folder = tempfile::tempdir().unwrap();
    let subnets = subnets("10.9.0.0/28");
    let mut ledger = Ledger::open(folder.path()).unwrap();
    let mut seen = HashSet::new();
    for _ in 0..13 {
        let address = ledger.pick_address(&subnets).unwrap();
        assert!(seen.insert(address), "{address} came back before every other was used");
        let record = record(&ledger, "s", address, Vec::new());
        ledger.put(record).unwrap();
        ledger.remove("s").unwrap();
    }
    assert_eq!(ledger.pick_address(&subnets).unwrap(), Ipv4Addr::new(10, 9, 0, 2));
}

#[test]
fn ports_conflict_by_protocol_and_name_the_holder() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    let tcp = endpoint(8080, &[Protocol::Tcp]);
    let wanted =
        |endpoint| vec![Wanted { path: "containers[0].endpoints[0].hostPort".to_owned(), container: "c", endpoint }];
    let ports = ledger.pick_ports(&wanted(&tcp), (31000, 32000), &|_, _| Ok(())).unwrap();
    let first = record(&ledger, "s1", Ipv4Addr::new(10, 9, 0, 2), ports);
    ledger.put(first).unwrap();
    let error = ledger.pick_ports(&wanted(&tcp), (31000, 32000), &|_, _| Ok(())).unwrap_err().message;
    for part in ["containers[0].endpoints[0].hostPort", "8080", "/p", "s1"] {
        assert!(error.contains(part), "{error}");
    }
    let udp = endpoint(8080, &[Protocol::Udp]);
    assert!(ledger.pick_ports(&wanted(&udp), (31000, 32000), &|_, _| Ok(())).is_ok());
    let dynamic = endpoint(0, &[Protocol::Tcp, Protocol::Udp]);
    let only_last = |_: Protocol, port: u16| {
        if port == 31010 { Ok(()) } else { Err("is in use".to_owned()) }
    };
    let ports = ledger.pick_ports(&wanted(&dynamic), (31000, 31010), &only_last).unwrap();
    assert_eq!(ports[0].host_port, Some(31010));
    let none = |_: Protocol, _: u16| Err("is in use".to_owned());
    let error = ledger.pick_ports(&wanted(&dynamic), (31000, 31010), &none).unwrap_err().message;
    assert!(error.contains("31000 to 31010"), "{error}");
    ledger.remove("s1").unwrap();
    assert!(ledger.pick_ports(&wanted(&tcp), (31000, 32000), &|_, _| Ok(())).is_ok());
}

#[test]
fn a_broken_record_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("pods")).unwrap();
    std::fs::write(folder.path().join("pods/x.json"), b"{\"sequence\":").unwrap();
    std::fs::write(folder.path().join("pods/y.json.new"), b"{").unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.records().count(), 0);
    assert!(folder.path().join("pods/x.json.unreadable").exists());
    assert!(!folder.path().join("pods/y.json.new").exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever pods come and go, and whenever the daemon restarts: no address and no port has two holders.
    #[test]
    fn nothing_is_held_twice(steps in prop::collection::vec((0u8..12, any::<bool>(), 0u16..4), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let subnets = subnets("10.9.0.0/28");
        let mut ledger = Ledger::open(folder.path()).unwrap();
        for (sandbox, restart, port) in steps {
            let sandbox = format!("s{sandbox}");
            if ledger.get(&sandbox).is_some() {
                ledger.remove(&sandbox).unwrap();
            } else {
                // 0 asks for a dynamic port, others are fixed.
                let endpoint = endpoint(if port == 0 { 0 } else { 31000 + port }, &[Protocol::Tcp]);
                let wanted = [Wanted { path: String::new(), container: "c", endpoint: &endpoint }];
                if let Ok(ports) = ledger.pick_ports(&wanted, (31000, 31008), &|_, _| Ok(())) {
                    let address = ledger.pick_address(&subnets).unwrap();
                    let record = record(&ledger, &sandbox, address, ports);
                    ledger.put(record).unwrap();
                }
            }
            if restart {
                ledger = Ledger::open(folder.path()).unwrap();
            }
            let addresses: HashSet<_> = ledger.records().map(|record| record.address).collect();
            prop_assert_eq!(addresses.len(), ledger.records().count());
            let ports: HashSet<_> = ledger.records().map(|record| record.endpoints[0].host_port).collect();
            prop_assert_eq!(ports.len(), ledger.records().count());
        }
    }
}
