//! The pods' networks for real: each test has a network namespace of its own that plays the host, and more for the pods.
//! Needs root, `nft` and `ip`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agentd_api::pod::{Container, Endpoint, NetworkMode, PodSpec, Protocol};
use agentd_isolators::network::{AttachRequest, Network, NetworkSettings, PodMode, PodNetwork};
use nix::sched::{CloneFlags, setns, unshare};

/// Runs a test on a thread in a fresh network namespace with loopback up; says so and skips where it cannot.
fn on_a_host(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped because it needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn ip(arguments: &str) -> String {
    output("ip", arguments)
}

fn here() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").expect("the thread's namespace").into()
}

/// A network namespace such as pod-init makes.
struct Namespace(OwnedFd);

impl Namespace {
    fn new() -> Self {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ip("link set lo up");
            here()
        });
        Self(thread.join().expect("a namespace"))
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            });
            thread.join().expect("work in the namespace")
        })
    }

    /// Moves a link of the calling thread's namespace here.
    fn take(&self, link: &str) {
        ip(&format!("link set {link} netns /proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()));
    }

    /// A server in the namespace that answers every connection with `word`; it ends with the test's process.
    fn serve(&self, address: &str, word: &'static str) {
        let listener = self.inside(|| TcpListener::bind(address).expect("bind"));
        answer(listener, word);
    }

    fn ask(&self, address: &str) -> Result<String, String> {
        self.inside(|| ask(address))
    }
}

fn answer(listener: TcpListener, word: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(format!("{word} {peer}").as_bytes());
        }
    });
}

/// Connects from the calling thread's namespace and returns what the server says.
fn ask(address: &str) -> Result<String, String> {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(700)).map_err(|e| e.to_string())?;
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
    stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
    Ok(text)
}

/// A folder, settings and an instance name that no other test has.
struct Host {
    folder: tempfile::TempDir,
    settings: NetworkSettings,
}

impl Host {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new().prefix("agentd-test-").tempdir().expect("a folder");
        let instance = format!("agentd-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut settings = NetworkSettings::new(instance, folder.path().join("state"));
        settings.cni_conf_dir = folder.path().join("net.d");
        settings.cni_bin_dirs = vec![folder.path().join("bin")];
        settings.host_files.resolv_conf = folder.path().join("resolv.conf");
        settings.host_files.upstream_resolv_conf = folder.path().join("upstream");
        std::fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.53\n").expect("write");
        std::fs::write(folder.path().join("upstream"), "nameserver 192.0.2.53\n").expect("write");
        Self { folder, settings }
    }

    fn network(&self) -> Network {
        Network::new(self.settings.clone()).expect("a network")
    }

    fn pod_dir(&self, instance: &str) -> PathBuf {
        let folder = self.folder.path().join(instance);
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    fn attach(
        &self,
        network: &Network,
        instance: &str,
        pod: &PodSpec,
        netns: Option<&Namespace>,
    ) -> Result<PodNetwork, String> {
        let pod_dir = self.pod_dir(instance);
        let netns = netns.map(|netns| netns.0.as_fd());
        let request = AttachRequest { instance, pod, hostname: instance, netns, pod_dir: &pod_dir };
        network.attach(&request).map_err(|error| error.to_string())
    }

    fn state_files(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("state/pods")).expect("the state folder").count()
    }
}

fn pod(id: &str, networks: &[&str], ports: &[(u16, u16, Protocol)]) -> PodSpec {
    let endpoint = |index: usize, (container, host, protocol): &(u16, u16, Protocol)| Endpoint {
        name: format!("e{index}"),
        container_port: (*container != 0).then_some(*container),
        host_port: Some(*host),
        protocol: vec![*protocol],
        labels: BTreeMap::new(),
    };
    let network = |name: &&str| agentd_api::pod::Network {
        name: (!name.is_empty()).then(|| (*name).to_owned()),
        mode: NetworkMode::Container,
        labels: BTreeMap::new(),
    };
    let mut container: Container = serde_json::from_value(serde_json::json!({
        "name": "main", "resources": { "cpus": 1.0, "mem": 32.0, "disk": 0.0, "gpus": 0 }
    }))
    .expect("a container");
    container.endpoints = ports.iter().enumerate().map(|(index, port)| endpoint(index, port)).collect();
    let mut pod: PodSpec = serde_json::from_value(serde_json::json!({ "id": id, "containers": [] })).expect("a pod");
    pod.networks = networks.iter().map(network).collect();
    pod.containers = vec![container];
    pod
}

fn v4(network: &PodNetwork) -> String {
    network.addresses.iter().find(|address| address.is_ipv4()).expect("an IPv4 address").to_string()
}

fn v6(network: &PodNetwork) -> Option<String> {
    network.addresses.iter().find(|address| address.is_ipv6()).map(|address| format!("[{address}]"))
}

/// The table, or nothing.
fn table(network: &Network) -> String {
    let listed = Command::new("nft").args(["list", "table", "inet", network.table()]).output().expect("nft");
    String::from_utf8_lossy(&listed.stdout).into_owned()
}

#[test]
fn pods_reach_each_other_and_the_host_reaches_them() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        let first = host.attach(&network, "0000000000aa", &pod("/a", &["default"], &[]), Some(&a)).unwrap();
        let second = host.attach(&network, "0000000000bb", &pod("/b", &[""], &[]), Some(&b)).unwrap();
        assert_eq!(second.mode, PodMode::Container);
        assert_ne!(first.addresses, second.addresses);
        assert_eq!(first.gateway, network.subnets().map(|subnets| IpAddr::V4(subnets.gateway_v4())));
        b.serve("0.0.0.0:80", "b");
        let target = format!("{}:80", v4(&second));
        assert_eq!(a.ask(&target).unwrap(), format!("b {}", v4(&first)));
        assert!(ask(&target).unwrap().starts_with("b "));
        if let Some(target) = v6(&second) {
            b.serve("[::]:81", "six");
            assert!(a.ask(&format!("{target}:81")).unwrap().starts_with("six "));
            assert!(ask(&format!("{target}:81")).unwrap().starts_with("six "));
        } else {
            eprintln!("IPv6 skipped because the host has none");
        }
        // Again is the same.
        let again = host.attach(&network, "0000000000bb", &pod("/b", &["default"], &[]), Some(&b)).unwrap();
        assert_eq!(again, second);
        assert_eq!(network.pod_network("0000000000bb"), Some(second));
        assert!(a.ask(&target).is_ok());
        let hosts = std::fs::read_to_string(host.pod_dir("0000000000bb").join("etc/hosts")).unwrap();
        assert!(hosts.contains(&format!("{}\t0000000000bb", v4(&again))), "{hosts}");
        let resolv = std::fs::read_to_string(host.pod_dir("0000000000bb").join("etc/resolv.conf")).unwrap();
        assert_eq!(resolv, "nameserver 192.0.2.53\n");

        assert!(!network.shutdown().unwrap());
        for instance in ["0000000000aa", "0000000000bb", "0000000000bb"] {
            network.detach(instance, None).unwrap();
        }
        assert!(!ip("-o link").contains(": ag") || !ip("-o link").contains("veth"), "{}", ip("-o link"));
        assert_eq!(host.state_files(), 0);
        assert!(network.shutdown().unwrap());
        assert!(!ip("-o link").contains(network.bridge()));
        assert_eq!(table(&network), "");
        // And it all comes back when it is needed.
        let c = Namespace::new();
        host.attach(&network, "0000000000cc", &pod("/c", &["default"], &[]), Some(&c)).unwrap();
        network.detach("0000000000cc", Some(c.0.as_fd())).unwrap();
    });
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        // A machine outside, on a link to the host.
        let outside = Namespace::new();
        ip("link add up0 type veth peer name out0");
        ip("addr add 198.51.100.1/24 dev up0");
        ip("link set up0 up");
        outside.take("out0");
        outside.inside(|| {
            ip("addr add 198.51.100.2/24 dev out0");
            ip("link set out0 up");
            ip("route add default via 198.51.100.1");
        });
        let (a, b) = (Namespace::new(), Namespace::new());
        let ports = [(80, 8080, Protocol::Tcp), (53, 0, Protocol::Udp), (81, 0, Protocol::Tcp)];
        let web = host.attach(&network, "web000000000", &pod("/web", &["default"], &ports), Some(&a)).unwrap();
        host.attach(&network, "client000000", &pod("/client", &["default"], &[]), Some(&b)).unwrap();
        let dynamic: Vec<u16> = web.endpoints[1..].iter().filter_map(|endpoint| endpoint.host_port).collect();
        assert!(dynamic.iter().all(|port| (31000..=32000).contains(port)), "{dynamic:?}");
        a.serve("0.0.0.0:80", "web");
        a.serve("0.0.0.0:81", "more");

        assert!(outside.ask("198.51.100.1:8080").unwrap().starts_with("web 198.51.100.2"));
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("web "), "from the host over loopback");
        assert!(ask("198.51.100.1:8080").unwrap().starts_with("web "), "from the host over its address");
        assert!(b.ask("198.51.100.1:8080").unwrap().starts_with("web "), "from another pod");
        assert!(a.ask("198.51.100.1:8080").unwrap().starts_with("web "), "from the pod itself");
        assert!(ask(&format!("127.0.0.1:{}", dynamic[1])).unwrap().starts_with("more "));
        assert!(ask("[::1]:8080").unwrap_err().contains("refused"), "::1 is refused at once");

        let server = a.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"question", ("127.0.0.1", dynamic[0])).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0u8; 64];
        let (length, peer) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"question");
        server.send_to(b"answer", peer).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 6);

        // Masquerade: outside sees the host, although it could not find a way back to the pod.
        outside.serve("0.0.0.0:7000", "out");
        assert_eq!(b.ask("198.51.100.2:7000").unwrap(), "out 198.51.100.1");
        // Nothing but host ports from outside, even with a route.
        assert!(outside.ask(&format!("{}:80", v4(&web))).is_err());

        let conflict =
            host.attach(&network, "two000000000", &pod("/two", &["default"], &ports[..1]), Some(&b)).unwrap_err();
        for part in ["containers[0].endpoints[0].hostPort", "8080", "/web", "web000000000"] {
            assert!(conflict.contains(part), "{conflict}");
        }
        assert!(table(&network).contains("8080 : 80"), "{}", table(&network));
        network.detach("web000000000", None).unwrap();
        assert!(!table(&network).contains("8080"), "{}", table(&network));
        assert!(ask("127.0.0.1:8080").is_err());
    });
}

#[test]
fn rules_that_were_flushed_come_back() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        host.attach(&network, "a", &pod("/a", &["default"], &[(80, 8080, Protocol::Tcp)]), Some(&a)).unwrap();
        a.serve("0.0.0.0:80", "a");
        b.serve("0.0.0.0:80", "b");
        output("nft", "flush ruleset");
        host.attach(&network, "b", &pod("/b", &["default"], &[(80, 8081, Protocol::Tcp)]), Some(&b)).unwrap();
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("a "));
        assert!(ask("127.0.0.1:8081").unwrap().starts_with("b "));
        output("nft", "flush ruleset");
        network.detach("b", None).unwrap();
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("a "));
        output("nft", "flush ruleset");
        network.refresh().unwrap();
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("a "));
        // The bridge deleted behind agentd's back.
        ip(&format!("link del {}", network.bridge()));
        host.attach(&network, "b", &pod("/b", &["default"], &[(80, 8081, Protocol::Tcp)]), Some(&b)).unwrap();
        assert!(ask("127.0.0.1:8081").unwrap().starts_with("b "));
    });
}

#[test]
fn pods_do_not_reach_what_is_not_theirs() {
    on_a_host(|| {
        let mut host = Host::new();
        host.settings.daemon_ports = vec![5051];
        let network = host.network();
        let a = Namespace::new();
        // A metadata service, on a link to the host.
        let cloud = Namespace::new();
        ip("link add meta0 type veth peer name meta1");
        cloud.take("meta1");
        ip("addr add 169.254.169.1/24 dev meta0");
        ip("link set meta0 up");
        cloud.inside(|| {
            ip("addr add 169.254.169.254/24 dev meta1");
            ip("link set meta1 up");
        });
        cloud.serve("0.0.0.0:80", "secrets");
        answer(TcpListener::bind("0.0.0.0:5051").unwrap(), "daemon");
        answer(TcpListener::bind("0.0.0.0:6000").unwrap(), "service");
        answer(TcpListener::bind("127.0.0.1:6001").unwrap(), "loopback");
        let spec = pod("/a", &["default"], &[]);
        let attached = host.attach(&network, "a", &spec, Some(&a)).unwrap();
        let gateway = attached.gateway.unwrap();
        assert!(a.ask(&format!("{gateway}:6000")).unwrap().starts_with("service"));
        assert!(a.ask(&format!("{gateway}:5051")).is_err());
        assert!(a.ask("169.254.169.1:5051").is_err());
        assert!(ask("127.0.0.1:5051").unwrap().starts_with("daemon"));
        assert!(ask("169.254.169.254:80").unwrap().starts_with("secrets"));
        assert!(a.ask("169.254.169.254:80").is_err());

        // A source address of somebody else goes nowhere.
        let ear = UdpSocket::bind("0.0.0.0:6002").unwrap();
        ear.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        a.inside(|| {
            ip("addr add 203.0.113.5/32 dev eth0");
            UdpSocket::bind("203.0.113.5:0").unwrap().send_to(b"false", (gateway, 6002)).unwrap();
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"true", (gateway, 6002)).unwrap();
        });
        let mut buffer = [0u8; 16];
        assert_eq!(ear.recv(&mut buffer).unwrap(), 4);
        assert!(ear.recv(&mut buffer).is_err());

        // The host answers on 127.0.0.1 behind the bridge (route_localnet), but not to pods.
        a.inside(|| {
            ip("link set lo down");
            ip("addr flush dev lo");
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            ip(&format!("route add 127.0.0.1/32 via {gateway} src {}", v4(&attached)));
        });
        assert!(a.ask("127.0.0.1:6001").is_err());
        output("nft", &format!("delete table inet {}", network.table()));
        assert!(a.ask("127.0.0.1:6001").unwrap().starts_with("loopback"), "the attack works without the rules");
        network.refresh().unwrap();
        assert!(a.ask("127.0.0.1:6001").is_err());

        let mut violations = Vec::new();
        network.check(&pod("/p", &["default"], &[(80, 5051, Protocol::Tcp)]), &mut violations);
        assert!(violations[0].message.contains("belongs to agentd"), "{violations:?}");

        // The switches.
        drop(network);
        host.settings.allow_metadata = true;
        host.settings.host_access = false;
        let network = host.network();
        network.recover(&["a"]).unwrap();
        assert!(a.ask("169.254.169.254:80").unwrap().starts_with("secrets"));
        assert!(a.ask(&format!("{gateway}:6000")).is_err());
    });
}

#[test]
fn rules_of_others_that_stand_in_the_way_are_named() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        let a = Namespace::new();
        host.attach(&network, "a", &pod("/a", &["default"], &[]), Some(&a)).unwrap();
        assert_eq!(network.obstacles().unwrap(), Vec::<String>::new());
        output("nft", "add table ip filter");
        let chain = "{ type filter hook forward priority 0; policy drop; }";
        let added = Command::new("nft").args(["add", "chain", "ip", "filter", "FORWARD", chain]).status().unwrap();
        assert!(added.success());
        let obstacles = network.obstacles().unwrap();
        assert_eq!(obstacles.len(), 1);
        assert!(obstacles[0].contains("chain FORWARD of table ip filter"), "{obstacles:?}");
        assert!(obstacles[0].contains(network.bridge()), "{obstacles:?}");
    });
}

#[test]
fn recovery_sweeps_what_belongs_to_nobody() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        let kept =
            host.attach(&network, "a", &pod("/a", &["default"], &[(80, 8080, Protocol::Tcp)]), Some(&a)).unwrap();
        host.attach(&network, "b", &pod("/b", &["default"], &[(80, 8081, Protocol::Tcp)]), Some(&b)).unwrap();
        a.serve("0.0.0.0:80", "a");
        drop(network);
        // A pair whose record is gone: one with the alias set, one from a daemon that died before.
        let bridge = host.network().bridge().to_owned();
        ip("link add agffffffffffff type veth peer name lost0");
        ip(&format!("link set agffffffffffff alias agentd:{}:lost", host.settings.instance));
        ip("link add ageeeeeeeeeeee type veth peer name lost1");
        ip(&format!("link set ageeeeeeeeeeee master {bridge}"));
        ip("link add foreign0 type veth peer name foreign1");
        std::fs::write(host.folder.path().join("state/pods/c.json.new"), "{").unwrap();

        let network = host.network();
        let recovered = network.recover(&["a"]).unwrap();
        assert_eq!(recovered.detached, ["b"]);
        assert_eq!(recovered.links.len(), 2, "{recovered:?}");
        assert!(recovered.failed.is_empty());
        assert!(ip("-o link").contains("foreign0"));
        let rules = table(&network);
        assert!(rules.contains("8080 : 80") && !rules.contains("8081"), "{rules}");
        assert_eq!(host.state_files(), 1);
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("a "));
        let again =
            host.attach(&network, "a", &pod("/a", &["default"], &[(80, 8080, Protocol::Tcp)]), Some(&a)).unwrap();
        assert_eq!(again, kept);

        let network = host.network();
        network.recover(&[]).unwrap();
        assert_eq!(table(&network), "");
        assert!(!ip("-o link").contains(network.bridge()));
        assert_eq!(host.state_files(), 0);
    });
}

#[test]
fn a_crash_at_any_step_of_attach_is_made_good() {
    on_a_host(|| {
        let host = Host::new();
        let spec = pod("/a", &["default"], &[(80, 8080, Protocol::Tcp)]);
        let first = {
            let network = host.network();
            let a = Namespace::new();
            host.attach(&network, "a", &spec, Some(&a)).unwrap()
            // The namespace goes, and its link with it, after a while; the record stays.
        };
        let network = host.network();
        let b = Namespace::new();
        let second = host.attach(&network, "a", &spec, Some(&b)).unwrap();
        assert_eq!(first, second);
        b.serve("0.0.0.0:80", "b");
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("b "));
        // The link is there but was never given its addresses.
        b.inside(|| ip("addr flush dev eth0"));
        host.attach(&network, "a", &spec, Some(&b)).unwrap();
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("b "));
    });
}

#[test]
fn addresses_run_out_with_a_clear_error() {
    on_a_host(|| {
        let mut host = Host::new();
        host.settings.subnet_v4 = Some("10.77.0.0/29".parse().unwrap());
        let network = host.network();
        let spec = pod("/a", &["default"], &[(80, 0, Protocol::Tcp)]);
        let namespaces: Vec<_> = (0..6).map(|_| Namespace::new()).collect();
        for (index, netns) in namespaces.iter().take(5).enumerate() {
            host.attach(&network, &format!("p{index}"), &spec, Some(netns)).unwrap();
        }
        let error = host.attach(&network, "p5", &spec, Some(&namespaces[5])).unwrap_err();
        assert!(error.contains("10.77.0.0/29 is exhausted") && error.contains("network.subnet"), "{error}");
        assert_eq!(host.state_files(), 5);
        network.detach("p2", None).unwrap();
        let attached = host.attach(&network, "p5", &spec, Some(&namespaces[5])).unwrap();
        assert_eq!(v4(&attached), "10.77.0.4");
    });
}

#[test]
fn concurrent_attachments_do_not_collide() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        let host_namespace = here();
        let spec = pod("/a", &["default"], &[(80, 0, Protocol::Tcp)]);
        let namespaces: Vec<_> = (0..12).map(|_| Namespace::new()).collect();
        let attached: Vec<PodNetwork> = std::thread::scope(|scope| {
            let threads: Vec<_> = namespaces
                .iter()
                .enumerate()
                .map(|(index, netns)| {
                    let (host, network, spec, host_namespace) = (&host, &network, &spec, &host_namespace);
                    scope.spawn(move || {
                        setns(host_namespace, CloneFlags::CLONE_NEWNET).unwrap();
                        host.attach(network, &format!("p{index}"), spec, Some(netns)).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let addresses: std::collections::HashSet<_> = attached.iter().map(v4).collect();
        let ports: std::collections::HashSet<_> =
            attached.iter().map(|network| network.endpoints[0].host_port).collect();
        assert_eq!((addresses.len(), ports.len()), (12, 12));
        for (netns, network) in namespaces.iter().zip(&attached) {
            netns.serve("0.0.0.0:80", "pod");
            assert!(ask(&format!("127.0.0.1:{}", network.endpoints[0].host_port.unwrap())).is_ok());
        }
    });
}

#[test]
fn instances_of_agentd_live_side_by_side() {
    on_a_host(|| {
        let (one, two) = (Host::new(), Host::new());
        let (network_one, network_two) = (one.network(), two.network());
        let (a, b) = (Namespace::new(), Namespace::new());
        one.attach(&network_one, "same", &pod("/a", &["default"], &[(80, 8080, Protocol::Tcp)]), Some(&a)).unwrap();
        two.attach(&network_two, "same", &pod("/a", &["default"], &[(80, 8081, Protocol::Tcp)]), Some(&b)).unwrap();
        a.serve("0.0.0.0:80", "one");
        b.serve("0.0.0.0:80", "two");
        assert_ne!(network_one.subnets(), network_two.subnets());
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("one "));
        assert!(ask("127.0.0.1:8081").unwrap().starts_with("two "));
        two.network().recover(&[]).unwrap();
        assert!(ask("127.0.0.1:8080").unwrap().starts_with("one "));
        assert!(ask("127.0.0.1:8081").is_err());
    });
}

#[test]
fn host_mode_keeps_account_of_ports() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        let attached = host
            .attach(&network, "h", &pod("/h", &[], &[(0, 8080, Protocol::Tcp), (0, 0, Protocol::Udp)]), None)
            .unwrap();
        assert_eq!(attached.mode, PodMode::Host);
        assert!(attached.addresses.is_empty());
        assert_eq!(attached.endpoints[0].host_port, Some(8080));
        assert!((31000..=32000).contains(&attached.endpoints[1].host_port.unwrap()));
        assert_eq!(
            std::fs::read_to_string(host.pod_dir("h").join("etc/resolv.conf")).unwrap(),
            "nameserver 127.0.0.53\n"
        );
        // Kept over a restart.
        drop(network);
        let network = host.network();
        let mut violations = Vec::new();
        network.check(&pod("/other", &[], &[(0, 8080, Protocol::Tcp)]), &mut violations);
        assert_eq!(violations[0].path, "containers[0].endpoints[0].hostPort");
        assert!(violations[0].message.contains("held by pod /h"), "{violations:?}");
        violations.clear();
        network.check(&pod("/h", &[], &[(0, 8080, Protocol::Tcp)]), &mut violations);
        assert_eq!(violations, []);
        // A port that a program of the host has.
        let listener = TcpListener::bind("127.0.0.1:8090").unwrap();
        network.check(&pod("/other", &[], &[(0, 8090, Protocol::Tcp)]), &mut violations);
        assert!(violations[0].message.contains("in use by another program"), "{violations:?}");
        drop(listener);
        network.detach("h", None).unwrap();
        host.attach(&network, "other", &pod("/other", &[], &[(0, 8080, Protocol::Tcp)]), None).unwrap();
        // No container network, so nothing was made on the host.
        assert!(!ip("-o link").contains(network.bridge()));
        assert_eq!(table(&network), "");
    });
}

#[test]
fn an_isolated_pod_gets_its_files_only() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        let mut spec = pod("/i", &[], &[]);
        spec.agentd.isolated_network = true;
        let attached = host.attach(&network, "i", &spec, None).unwrap();
        assert_eq!(attached.mode, PodMode::Isolated);
        let hostname = std::fs::read_to_string(host.pod_dir("i").join("etc/hostname")).unwrap();
        assert_eq!(hostname, "i\n");
        network.detach("i", None).unwrap();
    });
}

#[test]
fn unknown_networks_are_named_with_the_known_ones() {
    on_a_host(|| {
        let mut host = Host::new();
        host.settings.aliases = vec!["dcos".to_owned()];
        std::fs::create_dir_all(&host.settings.cni_conf_dir).unwrap();
        let config = r#"{"cniVersion":"1.0.0","name":"blue","type":"missing-plugin"}"#;
        std::fs::write(host.settings.cni_conf_dir.join("10-blue.conf"), config).unwrap();
        std::fs::write(host.settings.cni_conf_dir.join("20-bad.conf"), "{").unwrap();
        let network = host.network();
        let found = |networks: &[&str]| {
            let mut violations = Vec::new();
            network.check(&pod("/a", networks, &[]), &mut violations);
            violations
        };
        assert_eq!(found(&["dcos"]), []);
        let unknown = found(&["default", "green"]);
        assert_eq!(unknown[0].path, "networks[1].name");
        assert!(unknown[0].message.contains("default, dcos, blue"), "{unknown:?}");
        assert!(unknown[0].message.contains("20-bad.conf"), "{unknown:?}");
        let missing = found(&["blue"]);
        assert_eq!(missing[0].path, "networks[0]");
        assert!(missing[0].message.contains("missing-plugin"), "{missing:?}");
        assert_eq!(found(&["default", "dcos"])[0].path, "networks[1].name");
    });
}

/// A plugin that records how it was called and answers with what it is told to.
const FAKE: &str = r#"#!/bin/sh
here=$(dirname "$0")
input=$(cat)
name=$(basename "$0")
printf '%s %s %s %s %s %s\n' "$name" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_IFNAME" "${CNI_NETNS:-none}" "$CNI_ARGS" >> "$here/calls"
printf '%s\n' "$input" >> "$here/input-$name-$CNI_COMMAND"
env | sed 's/=.*//' | sort | tr '\n' ' ' > "$here/environment"
[ "$CNI_COMMAND" = ADD ] && ls -lL "$CNI_NETNS" > /dev/null 2>> "$here/errors"
if [ -e "$here/fail-$name-$CNI_COMMAND" ]; then
  echo '{"cniVersion":"1.0.0","code":11,"msg":"no more room","details":"the shelf is full"}'
  exit 1
fi
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.99.0.7/24","gateway":"10.99.0.1"}],"dns":{"nameservers":["10.99.0.53"]},"from":"'$name'"}'
exit 0
"#;

#[test]
fn cni_plugins_are_chained_and_undone() {
    on_a_host(|| {
        let host = Host::new();
        let bin = host.folder.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&host.settings.cni_conf_dir).unwrap();
        for name in ["one", "two"] {
            std::fs::write(bin.join(name), FAKE).unwrap();
            std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let config = host.settings.cni_conf_dir.join("10-blue.conflist");
        std::fs::write(&config, r#"{"cniVersion":"1.0.0","name":"blue","plugins":[{"type":"one","key":1},{"type":"two","capabilities":{"portMappings":true}}]}"#).unwrap();
        let read = |name: &str| std::fs::read_to_string(bin.join(name)).unwrap_or_default();
        let json = |name: &str| -> Vec<serde_json::Value> {
            read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let spec = pod("/a", &["blue"], &[(80, 8080, Protocol::Tcp)]);
        let network = host.network();
        let netns = Namespace::new();
        let mut violations = Vec::new();
        network.check(&spec, &mut violations);
        assert_eq!(violations, []);
        let attached = host.attach(&network, "a", &spec, Some(&netns)).unwrap();
        assert_eq!(attached.addresses, ["10.99.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(attached.gateway, Some("10.99.0.1".parse().unwrap()));
        assert_eq!(
            std::fs::read_to_string(host.pod_dir("a").join("etc/resolv.conf")).unwrap(),
            "nameserver 10.99.0.53\n"
        );
        let calls = read("calls");
        let first: Vec<&str> = calls.lines().next().unwrap().split(' ').collect();
        assert_eq!(&first[..4], ["one", "ADD", "a", "eth0"]);
        assert!(first[4].starts_with(&format!("/proc/{}/fd/", std::process::id())));
        assert_eq!(first[5], "IgnoreUnknown=1;AGENTD_POD_ID=/a");
        assert_eq!(read("errors"), "");
        assert_eq!(read("environment"), "CNI_ARGS CNI_COMMAND CNI_CONTAINERID CNI_IFNAME CNI_NETNS CNI_PATH PATH PWD ");
        let (one, two) = (&json("input-one-ADD")[0], &json("input-two-ADD")[0]);
        assert_eq!((&one["name"], &one["cniVersion"], &one["key"]), (&"blue".into(), &"1.0.0".into(), &1.into()));
        assert!(one.get("prevResult").is_none() && one.get("runtimeConfig").is_none());
        assert_eq!(two["prevResult"]["from"], "one");
        assert_eq!(two["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
        assert!(two.get("capabilities").is_none());

        // After a restart and with the configuration gone, DEL knows what ADD did.
        std::fs::remove_file(&config).unwrap();
        drop(network);
        std::fs::write(bin.join("fail-one-DEL"), "").unwrap();
        let network = host.network();
        let recovered = network.recover(&[]).unwrap();
        assert!(recovered.failed[0].1.to_string().contains("the shelf is full"), "{recovered:?}");
        assert_eq!(host.state_files(), 1);
        std::fs::remove_file(bin.join("fail-one-DEL")).unwrap();
        network.recover(&[]).unwrap();
        assert_eq!(host.state_files(), 0);
        let deleted: Vec<_> = json("input-one-DEL");
        assert_eq!(deleted[0]["prevResult"]["from"], "two");
        let calls = read("calls");
        let order: Vec<_> = calls.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(order, ["one ADD", "two ADD", "two DEL", "one DEL", "two DEL", "one DEL"]);
        assert!(calls.lines().last().unwrap().contains(" none "));
    });
}

#[test]
fn a_cni_plugin_that_fails_leaves_nothing() {
    on_a_host(|| {
        let mut host = Host::new();
        host.settings.cni_time_limit = Duration::from_secs(10);
        let bin = host.folder.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&host.settings.cni_conf_dir).unwrap();
        std::fs::write(bin.join("one"), FAKE).unwrap();
        std::fs::set_permissions(bin.join("one"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(
            host.settings.cni_conf_dir.join("10-blue.conf"),
            r#"{"cniVersion":"1.0.0","name":"blue","type":"one"}"#,
        )
        .unwrap();
        std::fs::write(bin.join("fail-one-ADD"), "").unwrap();
        let network = host.network();
        let netns = Namespace::new();
        let error = host.attach(&network, "a", &pod("/a", &["default", "blue"], &[]), Some(&netns)).unwrap_err();
        assert!(
            error.contains("network blue: plugin one refused ADD: no more room: the shelf is full (code 11)"),
            "{error}"
        );
        assert_eq!(host.state_files(), 0);
        assert!(!ip("-o link").contains("master"), "{}", ip("-o link"));
        assert!(std::fs::read_to_string(bin.join("calls")).unwrap().contains("one DEL a eth1"));
        std::fs::remove_file(bin.join("fail-one-ADD")).unwrap();
        let attached = host.attach(&network, "a", &pod("/a", &["default", "blue"], &[]), Some(&netns)).unwrap();
        assert!(attached.addresses.contains(&"10.99.0.7".parse().unwrap()));
        let error =
            host.attach(&network, "b", &pod("/b", &["blue"], &[(80, 8080, Protocol::Tcp)]), Some(&netns)).unwrap_err();
        assert!(error.contains("map host ports"), "{error}");
    });
}

#[test]
fn the_real_bridge_plugin() {
    on_a_host(|| {
        let mut host = Host::new();
        host.settings.cni_bin_dirs = vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()];
        if !host
            .settings
            .cni_bin_dirs
            .iter()
            .any(|folder| folder.join("bridge").is_file() && folder.join("host-local").is_file())
        {
            eprintln!("skipped because the CNI plugins bridge and host-local are not installed");
            return;
        }
        let leases = host.folder.path().join("leases");
        std::fs::create_dir_all(&host.settings.cni_conf_dir).unwrap();
        let config = serde_json::json!({
            "cniVersion": "1.0.0", "name": "real",
            "plugins": [{
                "type": "bridge", "bridge": "real0", "isGateway": true, "isDefaultGateway": true,
                "ipam": { "type": "host-local", "dataDir": leases, "ranges": [[{ "subnet": "10.88.0.0/24" }]] }
            }]
        });
        std::fs::write(host.settings.cni_conf_dir.join("10-real.conflist"), config.to_string()).unwrap();
        let network = host.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        let spec = pod("/a", &["real"], &[]);
        host.attach(&network, "aaaaaaaaaaaa", &spec, Some(&a)).unwrap();
        let second = host.attach(&network, "bbbbbbbbbbbb", &spec, Some(&b)).unwrap();
        b.serve("0.0.0.0:80", "b");
        assert!(a.ask(&format!("{}:80", v4(&second))).unwrap().starts_with("b "));
        assert_eq!(host.attach(&network, "bbbbbbbbbbbb", &spec, Some(&b)).unwrap(), second);
        network.detach("aaaaaaaaaaaa", Some(a.0.as_fd())).unwrap();
        network.detach("bbbbbbbbbbbb", None).unwrap();
        let left: Vec<_> =
            std::fs::read_dir(leases.join("real")).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("10.88")), "{left:?}");
        assert!(a.inside(|| !ip("-o link").contains("eth0")));
    });
}

#[test]
fn a_pod_is_reachable_as_soon_as_it_is_attached() {
    on_a_host(|| {
        let host = Host::new();
        let network = host.network();
        // The server listens first, so nothing but the attachment is waited for.
        for index in 0..30 {
            let netns = Namespace::new();
            netns.serve("0.0.0.0:80", "pod");
            let instance = format!("p{index}");
            let attached = host.attach(&network, &instance, &pod("/a", &["default"], &[]), Some(&netns)).unwrap();
            let answer = ask(&format!("{}:80", v4(&attached)));
            assert!(answer.is_ok(), "attempt {index}: a lost first packet is sent again after 1 s only: {answer:?}");
            network.detach(&instance, None).unwrap();
        }
    });
}
