//! Networks of pods on a real daemon: who reaches whom, host ports, names, and networks of CNI plugins.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agentd_api::status::{ExitStatus, InstanceStatus};
use agentd_tests::{Client, Daemon, arena, eventually, images, pods, privileged, skip, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A pod on these networks whose only container runs `testbox` with these words.
fn tool(id: &str, networks: Value, words: &[&str]) -> Value {
    let mut pod = arena::tools(pods::argv(id, &[&["/opt/testbox"], words].concat()));
    pod["networks"] = networks;
    pod["agentd"] = json!({"restart": "never"});
    pods::with_container(pod, |container| {
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    })
}

fn bridged() -> Value {
    json!([{"mode": "container"}])
}

/// A pod that answers every connection to its port 8080 with its id; its host port is chosen, or fixed.
fn server(id: &str, networks: Value, host_port: u16) -> Value {
    pods::with_container(tool(id, networks, &["listen", "8080", id]), |container| {
        container["endpoints"] = json!([{"name": "web", "containerPort": 8080, "hostPort": host_port}]);
    })
}

/// What a server says to a connection; none if there is no connection.
fn ask(address: impl Into<SocketAddr>) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(3)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.trim_end().to_owned())
}

/// Whether a pod that lives for this question alone can connect.
#[track_caller]
fn reaches(client: &Client, networks: Value, host: &str, port: u16) -> bool {
    let isolated = networks.as_array().is_some_and(Vec::is_empty);
    let mut pod = tool("/asks", networks, &["connect", host, &port.to_string()]);
    if isolated {
        pod["agentd"]["isolatedNetwork"] = json!(true);
    }
    let (status, _) = client.run_to_end(&pod);
    let exit = status.instances[0].containers[0].exit;
    exit.unwrap_or_else(|| panic!("{status:?}")).success()
}

fn v4(instance: &InstanceStatus) -> Ipv4Addr {
    let address = instance.addresses.iter().find_map(|address| address.parse().ok());
    address.unwrap_or_else(|| panic!("no IPv4 address: {instance:?}"))
}

fn host_port(instance: &InstanceStatus) -> u16 {
    instance.containers[0].endpoints[0].host_port.unwrap_or_else(|| panic!("no host port: {instance:?}"))
}

/// The gateway of a pod, from its routes.
fn gateway(instance: &InstanceStatus) -> Ipv4Addr {
    let pid = instance.containers[0].pid.unwrap();
    let routes = fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap();
    let route = routes.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&"00000000")).then(|| words[2].to_owned())
    });
    Ipv4Addr::from(u32::from_str_radix(&route.unwrap(), 16).unwrap().swap_bytes())
}

#[test]
fn pods_reach_each_other_and_are_reached_by_their_host_ports() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    client.run_pod(&server("/one", bridged(), 0));
    client.run_pod(&server("/two", bridged(), 0));
    let (one, two) = (client.instance("/one"), client.instance("/two"));
    let (port, gateway) = (host_port(&one), gateway(&one));
    assert_ne!((v4(&one), port), (v4(&two), host_port(&two)));
    until("the servers listen", PATIENCE, || ask((v4(&one), 8080)).and(ask((v4(&two), 8080))));

    // from the host: by address, by host port on loopback and on the bridge
    assert_eq!(ask((v4(&one), 8080)).as_deref(), Some("/one"));
    assert_eq!(ask((Ipv4Addr::LOCALHOST, port)).as_deref(), Some("/one"));
    assert_eq!(ask((gateway, port)).as_deref(), Some("/one"));
    assert_eq!(ask((Ipv4Addr::LOCALHOST, host_port(&two))).as_deref(), Some("/two"));
    for address in one.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()).filter(IpAddr::is_ipv6) {
        // listens on IPv4 only: refused, but there
        let error = TcpStream::connect_timeout(&(address, 8080).into(), Duration::from_secs(3)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}: {error}");
    }

    // from another pod: by address, and by the host port on the gateway
    assert!(reaches(&client, bridged(), &v4(&one).to_string(), 8080));
    assert!(reaches(&client, bridged(), &gateway.to_string(), port));
    assert!(!reaches(&client, bridged(), &v4(&one).to_string(), 8081));
    // a pod without networks reaches nobody
    assert!(!reaches(&client, json!([]), &v4(&one).to_string(), 8080));
    assert!(!reaches(&client, json!([]), &gateway.to_string(), port));

    // no program of the host takes the port of a pod, also after the daemon was killed
    let taken = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err();
    assert!(taken());
    daemon.kill9();
    assert_eq!(ask((Ipv4Addr::LOCALHOST, port)).as_deref(), Some("/one"), "pods go on without the daemon");
    daemon.restart();
    assert!(taken());
    assert_eq!(client.instance("/one").addresses, one.addresses);
    assert_eq!(ask((Ipv4Addr::LOCALHOST, port)).as_deref(), Some("/one"));

    // a port that is taken is refused by field, with its holder
    let answer = client.post("/v1/pods", &server("/three", bridged(), port));
    let error = &answer.json["errors"][0];
    assert_eq!(
        (answer.status, error["path"].as_str()),
        (400, Some("containers[0].endpoints[0].hostPort")),
        "{}",
        answer.text
    );
    assert!(error["message"].as_str().unwrap().contains("/one"), "{}", answer.text);
    let program = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let answer = client.post("/v1/pods", &server("/three", bridged(), program.local_addr().unwrap().port()));
    assert!(answer.status == 400 && answer.text.contains("in use by another program"), "{}", answer.text);
    let free = program.local_addr().unwrap().port();
    drop(program);

    // gone with the pod, for the next to have
    client.rm("/one");
    assert_eq!(ask((Ipv4Addr::LOCALHOST, port)), None);
    assert!(!taken());
    client.run_pod(&server("/three", bridged(), free));
    until("the third listens", PATIENCE, || ask((Ipv4Addr::LOCALHOST, free)));
    for id in ["/two", "/three"] {
        client.rm(id);
    }
    // the bridge stays for the next pod, everything else goes
    let mut left = String::new();
    let stays = |line: &str| ["link ag-", "nft table", "run/network"].iter().any(|word| line.contains(word));
    let gone = eventually(PATIENCE, || {
        left = before.difference(&daemon.snapshot());
        left.lines().all(stays)
    });
    assert!(gone, "{left}");
    assert!(daemon.terminate().success());
    daemon.snapshot().assert_nothing_left();
}

#[test]
fn services_of_the_host_are_reached_as_configured() {
    privileged!();
    // on loopback alone, and on every address
    let inner = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let outer = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (inner, outer) = (&inner, &outer);
    let ask = |access: bool| {
        let daemon = Daemon::with().set(&format!("network.host_access={access}")).start();
        let client = daemon.client();
        client.run_pod(&tool("/holds", bridged(), &["hold"]));
        let gateway = gateway(&client.instance("/holds")).to_string();
        // what is dropped costs the whole time-out of its question
        let questions = [
            (gateway.as_str(), port(outer), access),
            (gateway.as_str(), port(inner), false),
            ("127.0.0.1", port(inner), false),
            ("169.254.169.254", 80, false),
        ];
        std::thread::scope(|scope| {
            for (number, (host, port, wanted)) in questions.into_iter().enumerate() {
                let client = client.clone();
                scope.spawn(move || {
                    let pod = tool(&format!("/asks-{number}"), bridged(), &["connect", host, &port.to_string()]);
                    let (status, log) = client.run_to_end(&pod);
                    let reached = status.instances[0].containers[0].exit.is_some_and(ExitStatus::success);
                    assert_eq!(reached, wanted, "{host} port {port} with host_access {access}: {log}");
                });
            }
        });
    };
    std::thread::scope(|scope| {
        for access in [true, false] {
            scope.spawn(move || ask(access));
        }
    });
}

#[test]
fn names_come_from_the_pods_files() {
    privileged!();
    let daemon = Daemon::with().set("network.dns_servers=192.0.2.53").set("network.dns_search=node.example").start();
    let client = daemon.client();
    let run = |id: &str, networks: Value, agentd: Value, line: &str| {
        let mut pod = pods::shell(id, line);
        pod["networks"] = networks;
        pod["agentd"] = agentd;
        client.post("/v1/pods", &pod);
        let status = client.wait_finished(id);
        let log = client.logs(id, "main");
        client.rm(id);
        (status.instances.into_iter().next().unwrap(), log)
    };
    let own = json!({"restart": "never", "dns": {"nameservers": ["192.0.2.1", "2001:db8::1"], "search": ["a.example", "b.example"],
        "options": ["ndots:3"]}});
    let (_, log) = run("/own", bridged(), own, "grep -v '^#' /etc/resolv.conf");
    let mut lines: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["nameserver 192.0.2.1", "nameserver 2001:db8::1", "options ndots:3", "search a.example b.example"]
    );
    let never = || json!({"restart": "never"});
    let (_, log) = run("/node", bridged(), never(), "cat /etc/resolv.conf");
    assert!(log.contains("nameserver 192.0.2.53") && log.contains("search node.example"), "{log}");

    // its own name leads to its own address
    let line = "hostname; cat /etc/hostname; getent hosts $(hostname); getent hosts localhost; cat /etc/hosts";
    let (instance, log) = run("/shop/web", bridged(), never(), line);
    let name = format!("web-{}", instance.id);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], [name.as_str(), name.as_str()], "{log}");
    assert!(lines[2].ends_with(&name) && lines[3].contains(" localhost"), "{log}");
    let own = instance.addresses.iter().any(|address| lines[2].starts_with(&format!("{address} ")));
    assert!(own, "{:?} {log}", instance.addresses);
    // what a container writes there is for its pod alone
    let (_, log) = run("/writes", bridged(), never(), "echo '192.0.2.9 nine' >> /etc/hosts && getent hosts nine; true");
    assert!(!fs::read_to_string("/etc/hosts").unwrap().contains("192.0.2.9"), "{log}");
    // a pod on the host's network has the host's name
    let (_, log) = run("/host", json!([{"mode": "host"}]), never(), "hostname");
    assert_eq!(log.trim(), client.get("/v1/node").json["hostname"].as_str().unwrap());
}

#[test]
fn a_pod_on_the_hosts_network_gets_its_ports_by_name() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let line = "exec /opt/testbox listen $ENDPOINT_WEB host-mode";
    let mut pod = arena::tools(pods::shell("/host", line));
    pod["agentd"] = json!({"restart": "never"});
    pod["networks"] = json!([{"mode": "host"}]);
    let pod = pods::with_container(pod, |container| {
        container["endpoints"] = json!([{"name": "web", "hostPort": 0}, {"name": "other", "hostPort": 0}]);
        container["healthCheck"] = json!({"tcp": {"endpoint": "web"}, "delaySeconds": 0, "intervalSeconds": 0.3,
            "timeoutSeconds": 0.25});
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    });
    client.run_pod(&pod);
    let instance = client.instance("/host");
    let port = host_port(&instance);
    assert_ne!(Some(port), instance.containers[0].endpoints[1].host_port);
    assert!(instance.addresses.is_empty(), "{instance:?}");
    assert_eq!(ask((Ipv4Addr::LOCALHOST, port)).as_deref(), Some("host-mode"));
    let pid = instance.containers[0].pid.unwrap();
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(namespace(&pid.to_string()), namespace("self"));
    client.rm("/host");
    assert_eq!(ask((Ipv4Addr::LOCALHOST, port)), None);
}

/// Runs a program in the network namespace of a process and returns what it prints.
fn inside(pid: u32, words: &[&str]) -> String {
    let output = Command::new("nsenter").args(["--net", "--target", &pid.to_string()]).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn networks_of_cni_plugins_are_joined_and_left() {
    privileged!();
    let plugins = ["/opt/cni/bin", "/usr/lib/cni"];
    let found = |name: &str| plugins.iter().any(|folder| Path::new(folder).join(name).is_file());
    if !found("bridge") || !found("host-local") || !found("portmap") {
        skip!("the CNI plugins bridge, host-local and portmap are not installed");
    }
    let leases = tempfile::Builder::new().prefix("agentd-test-cni-").tempdir().unwrap();
    // a host of its own: the plugins' bridge is not to be seen on the real one
    let script = "ip link set lo up && exec \"$@\"";
    let daemon = Daemon::with().wrapped(&["unshare", "--net", "sh", "-c", script, "sh"]).spawn();
    let mut daemon = daemon;
    daemon.wait_ready();
    let client = daemon.client();
    let folder = daemon.dir().join("cni");
    fs::create_dir_all(&folder).unwrap();
    let config = json!({
        "cniVersion": "1.0.0", "name": "blue",
        "plugins": [
            {"type": "bridge", "bridge": "blue0", "isGateway": true, "isDefaultGateway": true, "ipMasq": false,
                "ipam": {"type": "host-local", "dataDir": leases.path(), "ranges": [[{"subnet": "10.89.7.0/24"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    fs::write(folder.join("10-blue.conflist"), config.to_string()).unwrap();
    let blue = || json!([{"mode": "container", "name": "blue"}]);
    let both = || json!([{"mode": "container"}, {"mode": "container", "name": "blue"}]);

    client.run_pod(&server("/one", blue(), 0));
    client.run_pod(&server("/two", both(), 0));
    let (one, two) = (client.instance("/one"), client.instance("/two"));
    assert!(v4(&one).octets()[..3] == [10, 89, 7], "{one:?}");
    assert!(two.addresses.len() >= 2 && two.addresses.iter().any(|a| a.starts_with("10.89.7.")), "{two:?}");
    // each reaches the other, the host reaches both by their ports
    assert!(reaches(&client, blue(), &v4(&one).to_string(), 8080));
    let second = two.addresses.iter().find(|a| a.starts_with("10.89.7.")).unwrap();
    assert!(reaches(&client, blue(), second, 8080));
    let testbox = images::testbox().to_str().unwrap();
    let open = |port: u16| {
        let words = ["timeout", "5", testbox, "connect", "127.0.0.1", &port.to_string()];
        inside(daemon.pid(), &words).contains("ok")
    };
    let bridge = inside(daemon.pid(), &["ip", "-brief", "link"]);
    assert!(bridge.contains("blue0"), "{bridge}");
    assert!(eventually(PATIENCE, || open(host_port(&two))), "the built-in network maps the port of a pod on both");
    assert!(eventually(PATIENCE, || open(host_port(&one))), "the plugin maps the port");
    for id in ["/one", "/two"] {
        client.rm(id);
    }
    let left: Vec<String> = fs::read_dir(leases.path().join("blue"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("10."))
        .collect();
    assert!(left.is_empty(), "leases are left: {left:?}");
    let links = inside(daemon.pid(), &["ip", "-brief", "link"]);
    assert!(!links.contains("veth"), "{links}");

    // a plugin that is not there is told before anything is done
    let wrong = json!({"cniVersion": "1.0.0", "name": "wrong", "plugins": [{"type": "no-such-plugin"}]});
    fs::write(folder.join("20-wrong.conflist"), wrong.to_string()).unwrap();
    let answer = client.post("/v1/pods", &server("/three", json!([{"name": "wrong"}]), 0));
    assert!(answer.status == 400 && answer.text.contains("no-such-plugin"), "{}", answer.text);
    assert!(daemon.terminate().success());
}
