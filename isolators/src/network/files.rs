//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod, below `<pod folder>/etc`, for every mode.
//!
//! A file that is right already is left alone: containers have it bind-mounted, and a renamed one would not reach them.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use agentd_api::pod::Dns;

use super::ledger::PodMode;
use super::{ISOLATOR, store};
use crate::IsolatorError;

/// The host's files that pods' files are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFiles {
    /// The host's `/etc/hosts`.
    pub hosts: PathBuf,
    /// The host's `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The name servers behind a local stub resolver, which pods cannot reach.
    pub upstream_resolv_conf: PathBuf,
}

impl Default for HostFiles {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            upstream_resolv_conf: "/run/systemd/resolve/resolv.conf".into(),
        }
    }
}

/// What the files are made for.
#[derive(Debug)]
pub(super) struct PodFiles<'a> {
    pub mode: PodMode,
    pub hostname: &'a str,
    /// The pod's own addresses.
    pub addresses: &'a [IpAddr],
    /// The pod's DNS settings.
    pub dns: Option<&'a Dns>,
    /// The node's DNS settings for pods; empty lists mean the host's.
    pub node_dns: &'a Dns,
    pub host: &'a HostFiles,
}

/// Content of a `resolv.conf`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                Some("options") => resolver.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        resolver
    }

    /// Drops the servers that only the host itself can ask.
    fn without_local(mut self) -> Self {
        self.nameservers.retain(|server| {
            let address = server.split('%').next().unwrap_or(server).parse::<IpAddr>();
            address.is_ok_and(|address| !address.is_loopback() && !address.is_unspecified())
        });
        self
    }

    fn apply(&mut self, dns: &Dns) {
        for (own, new) in [
            (&mut self.nameservers, &dns.nameservers),
            (&mut self.search, &dns.search),
            (&mut self.options, &dns.options),
        ] {
            if !new.is_empty() {
                own.clone_from(new);
            }
        }
    }

    fn render(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        for server in &self.nameservers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

fn read(path: &Path) -> String {
    std::fs::read(path).map(|content| String::from_utf8_lossy(&content).into_owned()).unwrap_or_default()
}

fn resolv_conf(pod: &PodFiles<'_>) -> String {
    if pod.mode == PodMode::Host && pod.dns.is_none() {
        return read(&pod.host.resolv_conf);
    }
    let mut resolver = match pod.mode {
        PodMode::Isolated => Resolver::default(),
        PodMode::Host => Resolver::parse(&read(&pod.host.resolv_conf)),
        PodMode::Container => {
            let host = Resolver::parse(&read(&pod.host.resolv_conf));
            let (search, options) = (host.search.clone(), host.options.clone());
            let mut reachable = host.without_local();
            if reachable.nameservers.is_empty() {
                reachable = Resolver::parse(&read(&pod.host.upstream_resolv_conf)).without_local();
                reachable.search = search;
                reachable.options = options;
            }
            reachable.apply(pod.node_dns);
            reachable
        }
    };
    if let Some(dns) = pod.dns {
        resolver.apply(dns);
    }
    if resolver.nameservers.is_empty() {
        // An empty file would make resolvers ask 127.0.0.1; so does this one, but it says why.
        return format!(
            "# agentd found no name server that this pod can reach; set agentd.dns in the pod\n{}",
            resolver.render()
        );
    }
    resolver.render()
}

fn hosts(pod: &PodFiles<'_>) -> String {
    let mut names = pod.hostname.to_owned();
    if let Some((short, _)) = pod.hostname.split_once('.') {
        names.push(' ');
        names.push_str(short);
    }
    if pod.mode == PodMode::Host {
        let mut text = read(&pod.host.hosts);
        let known = text.lines().any(|line| {
            let line = line.split('#').next().unwrap_or_default();
            line.split_whitespace().skip(1).any(|name| name == pod.hostname)
        });
        if !known {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            let _ = writeln!(text, "127.0.1.1\t{names}");
        }
        return text;
    }
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n".to_owned();
    if pod.addresses.is_empty() {
        let _ = writeln!(text, "127.0.1.1\t{names}");
    }
    for address in pod.addresses {
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}

/// Writes the files below `<pod_dir>/etc`.
pub(super) fn write(pod_dir: &Path, pod: &PodFiles<'_>) -> Result<(), IsolatorError> {
    let folder = pod_dir.join("etc");
    std::fs::create_dir_all(&folder).map_err(|error| {
        IsolatorError::io(ISOLATOR, format!("cannot make {}, check space and permissions", folder.display()), error)
    })?;
    let resolv_conf = resolv_conf(pod);
    if pod.mode != PodMode::Isolated && !resolv_conf.contains("nameserver ") {
        tracing::warn!(
            hostname = pod.hostname,
            "found no name server that the pod can reach; set agentd.dns in the pod or network.dns on the node"
        );
    }
    let contents = [("hosts", hosts(pod)), ("hostname", format!("{}\n", pod.hostname)), ("resolv.conf", resolv_conf)];
    for (name, content) in contents {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|present| present == content.as_bytes()) {
            continue;
        }
        store::write(&path, content.as_bytes(), 0o644, false)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        folder: tempfile::TempDir,
        host: HostFiles,
    }

    fn case(resolv: &str, upstream: &str) -> Case {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("hosts"), "127.0.0.1 localhost\n10.0.0.1 known.example known").unwrap();
        std::fs::write(at("resolv"), resolv).unwrap();
        std::fs::write(at("upstream"), upstream).unwrap();
        let host = HostFiles { hosts: at("hosts"), resolv_conf: at("resolv"), upstream_resolv_conf: at("upstream") };
        Case { folder, host }
    }

    fn written(case: &Case, mode: PodMode, hostname: &str, dns: Option<&Dns>, node_dns: &Dns) -> [String; 3] {
        let addresses: &[IpAddr] =
            if mode == PodMode::Container { &["10.64.0.2".parse().unwrap(), "fd00::2".parse().unwrap()] } else { &[] };
        let files = PodFiles { mode, hostname, addresses, dns, node_dns, host: &case.host };
        write(case.folder.path(), &files).unwrap();
        ["hosts", "hostname", "resolv.conf"].map(|name| read(&case.folder.path().join("etc").join(name)))
    }

    #[test]
    fn a_stub_resolver_is_replaced_by_its_servers() {
        let case = case(
            "nameserver 127.0.0.53\nsearch corp.example\noptions edns0\n",
            "nameserver 10.0.0.53\nnameserver ::1\n",
        );
        let [hosts, hostname, resolv] = written(&case, PodMode::Container, "app.example", None, &Dns::default());
        assert_eq!(resolv, "search corp.example\nnameserver 10.0.0.53\noptions edns0\n");
        assert_eq!(hostname, "app.example\n");
        assert!(
            hosts.contains("10.64.0.2\tapp.example app\n") && hosts.contains("fd00::2\tapp.example app\n"),
            "{hosts}"
        );
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost"));
    }

    #[test]
    fn the_pods_settings_come_before_the_nodes() {
        let case = case("nameserver 10.0.0.1\nsearch corp.example\n", "");
        let node = Dns { nameservers: vec!["10.0.0.2".to_owned()], ..Dns::default() };
        let pod = Dns { nameservers: vec!["10.0.0.3".to_owned()], search: vec!["x".to_owned()], options: Vec::new() };
        let resolv = |dns| written(&case, PodMode::Container, "app", dns, &node)[2].clone();
        assert_eq!(resolv(None), "search corp.example\nnameserver 10.0.0.2\n");
        assert_eq!(resolv(Some(&pod)), "search x\nnameserver 10.0.0.3\n");
    }

    #[test]
    fn host_mode_copies_and_isolated_mode_asks_nobody() {
        let case = case("# mine\nnameserver 127.0.0.53\n", "");
        let [hosts, _, resolv] = written(&case, PodMode::Host, "known", None, &Dns::default());
        assert_eq!(resolv, "# mine\nnameserver 127.0.0.53\n");
        assert_eq!(hosts, "127.0.0.1 localhost\n10.0.0.1 known.example known");
        let [hosts, ..] = written(&case, PodMode::Host, "other", None, &Dns::default());
        assert!(hosts.ends_with("known\n127.0.1.1\tother\n"), "{hosts}");
        let [hosts, _, resolv] = written(&case, PodMode::Isolated, "alone", None, &Dns::default());
        assert!(resolv.starts_with('#') && !resolv.contains("nameserver "));
        assert!(hosts.contains("127.0.1.1\talone\n"));
    }

    #[test]
    fn an_unchanged_file_stays_the_same_file() {
        use std::os::unix::fs::MetadataExt;
        let case = case("nameserver 10.0.0.1\n", "");
        let inode = || std::fs::metadata(case.folder.path().join("etc/hosts")).unwrap().ino();
        written(&case, PodMode::Container, "app", None, &Dns::default());
        let first = inode();
        written(&case, PodMode::Container, "app", None, &Dns::default());
        assert_eq!(inode(), first);
    }
}
