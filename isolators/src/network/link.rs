//! Links, addresses and routes, by rtnetlink.
//!
//! The netlink connection is driven by a runtime of its own that only makes progress inside the calls here: no thread
//! and no reactor of the caller is needed, and one request costs one system call in each direction.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
    State,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Error, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::sysctl;

/// Name of the pod's end on the built-in network and prefix of all others.
pub(super) const POD_LINK: &str = "eth";

/// A netlink connection into the network namespace of the thread that opened it.
pub(super) struct Links {
    runtime: Option<tokio::runtime::Runtime>,
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Links")
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // The plain drop of a runtime panics in async code, where the last owner may well be.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a link tells about itself.
#[derive(Debug, Clone, Default)]
pub(super) struct LinkFacts {
    pub index: u32,
    pub name: String,
    pub alias: String,
    pub controller: u32,
    pub mtu: u32,
    pub veth: bool,
    pub bridge: bool,
    /// Whether packets can pass.
    pub up: bool,
}

impl LinkFacts {
    fn of(message: &LinkMessage) -> Self {
        let mut facts = Self { index: message.header.index, ..Self::default() };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => facts.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => facts.alias.clone_from(alias),
                LinkAttribute::Controller(index) => facts.controller = *index,
                LinkAttribute::Mtu(mtu) => facts.mtu = *mtu,
                LinkAttribute::OperState(state) => facts.up = *state == State::Up,
                LinkAttribute::LinkInfo(infos) => {
                    facts.veth |= infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    facts.bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        facts
    }
}

/// The bridge as it should be.
#[derive(Debug, Clone)]
pub(super) struct BridgeSpec<'a> {
    pub name: &'a str,
    pub alias: &'a str,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub addresses: Vec<(IpAddr, u8)>,
}

/// A pod's link as it should be.
#[derive(Debug, Clone)]
pub(super) struct PodLink<'a> {
    /// Name of the host's end.
    pub host_name: &'a str,
    /// Alias of the host's end.
    pub alias: &'a str,
    /// Name in the pod.
    pub pod_name: String,
    /// Index of the bridge.
    pub bridge: u32,
    pub mtu: u32,
    pub mac: [u8; 6],
    pub address: (Ipv4Addr, u8),
    pub gateway: Ipv4Addr,
    pub v6: Option<(Ipv6Addr, u8, Ipv6Addr)>,
    /// Metric of the default routes: 0 for the pod's first network.
    pub metric: u32,
}

/// The error as the operating system's, with its number where there is one.
fn os_error(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn has_errno(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

/// Treats "is there already" as done.
fn or_present(result: Result<(), Error>) -> io::Result<()> {
    match result.map_err(os_error) {
        Err(error) if has_errno(&error, libc::EEXIST) => Ok(()),
        other => other,
    }
}

impl Links {
    /// Opens a connection in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (connection, handle) = {
            let _inside = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            (runtime.spawn(connection), handle)
        };
        Ok(Self { runtime: Some(runtime), handle, connection })
    }

    /// Whether the connection still works.
    pub fn is_open(&self) -> bool {
        !self.connection.is_finished()
    }

    fn run<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(io::Error::other("the netlink connection is closed")),
        }
    }

    async fn by_name(&self, name: &str) -> io::Result<Option<LinkFacts>> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await.map_err(os_error) {
            Ok(message) => Ok(message.as_ref().map(LinkFacts::of)),
            Err(error) if has_errno(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link of this name.
    pub fn find(&self, name: &str) -> io::Result<Option<LinkFacts>> {
        self.run(self.by_name(name))
    }

    /// Waits until packets can pass the link; false if they cannot within a second. The kernel notices a carrier some
    /// time after both ends are up (newer ones when they are asked, as here), and only then does a bridge forward: a
    /// packet sent before is lost, and TCP sends it again after a whole second.
    pub fn wait_up(&self, name: &str) -> io::Result<bool> {
        let mut pause = Duration::from_micros(200);
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            if self.find(name)?.is_some_and(|link| link.up) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Every link.
    pub fn all(&self) -> io::Result<Vec<LinkFacts>> {
        self.run(async {
            let messages: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(os_error)?;
            Ok(messages.iter().map(LinkFacts::of).collect())
        })
    }

    /// Deletes the link of this name; one that is already gone is fine.
    pub fn delete(&self, name: &str) -> io::Result<()> {
        self.run(async {
            let mut link = self.handle.link();
            let mut request = link.del(0);
            request.message_mut().attributes.push(LinkAttribute::IfName(name.to_owned()));
            match request.execute().await.map_err(os_error) {
                Err(error) if has_errno(&error, libc::ENODEV) => Ok(()),
                other => other,
            }
        })
    }

    /// The IPv4 networks that the host has routes to, other than through the link `except`, and the MTU of the link
    /// that the default route uses.
    pub fn routes(&self, except: &str) -> io::Result<(Vec<Ipv4Net>, Option<u32>)> {
        self.run(async {
            let except = self.by_name(except).await?.map_or(0, |link| link.index);
            let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
            let routes: Vec<_> = self.handle.route().get(query).execute().try_collect().await.map_err(os_error)?;
            let mut networks = Vec::new();
            let mut uplink = None;
            for route in &routes {
                let mut output = 0;
                let mut destination = None;
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Oif(index) => output = *index,
                        RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
                        _ => {}
                    }
                }
                let prefix = route.header.destination_prefix_length;
                if prefix == 0 && output != 0 {
                    uplink.get_or_insert(output);
                } else if (except == 0 || output != except)
                    && let Some(net) = destination.and_then(|address| Ipv4Net::new(address, prefix).ok())
                {
                    networks.push(net.trunc());
                }
            }
            let mut mtu = None;
            if let Some(index) = uplink {
                let mut found = self.handle.link().get().match_index(index).execute();
                mtu = found.try_next().await.map_err(os_error)?.as_ref().map(|link| LinkFacts::of(link).mtu);
            }
            Ok((networks, mtu.filter(|mtu| *mtu >= 576)))
        })
    }

    /// Makes the bridge, or brings an existing one to what it should be. Returns its index.
    pub fn ensure_bridge(&self, spec: &BridgeSpec<'_>) -> io::Result<u32> {
        self.run(async {
            let index = match self.by_name(spec.name).await? {
                Some(link) if link.bridge => link.index,
                Some(_) => {
                    return Err(io::Error::other(format!(
                        "a link {} exists that is no bridge; rename or delete it",
                        spec.name
                    )));
                }
                None => {
                    let message = LinkBridge::new(spec.name).address(spec.mac.to_vec()).mtu(spec.mtu).build();
                    or_present(self.handle.link().add(message).execute().await)?;
                    let made = self.by_name(spec.name).await?;
                    made.ok_or_else(|| io::Error::other("the bridge vanished as soon as it was made"))?.index
                }
            };
            for (address, prefix) in &spec.addresses {
                self.add_address(index, *address, *prefix).await?;
            }
            let message = LinkUnspec::new_with_index(index)
                .mtu(spec.mtu)
                .up()
                .append_extra_attribute(LinkAttribute::IfAlias(spec.alias.to_owned()))
                .build();
            self.handle.link().set(message).execute().await.map_err(os_error)?;
            Ok(index)
        })
    }

    async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut request = self.handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            // agentd gave the address out, nobody else has it: no second is lost on asking the neighbours.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        or_present(request.execute().await)
    }

    /// Makes a veth pair: one end on the bridge and up, the other in the pod's namespace (it cannot be up before both
    /// ends are there).
    pub fn make_pair(&self, link: &PodLink<'_>, netns: BorrowedFd<'_>) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(link.pod_name.clone())
            .mtu(link.mtu)
            .address(link.mac.to_vec())
            .setns_by_fd(netns.as_raw_fd())
            .build();
        // On the bridge from its first instant: the sweep finds it there even if the daemon dies before the next step.
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(link.host_name.to_owned())
            .mtu(link.mtu)
            .controller(link.bridge)
            .up()
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        // Hairpin: with br_netfilter loaded, a pod's connection to its own host port is turned round inside the bridge.
        let alias = LinkUnspec::new_with_name(link.host_name)
            .append_extra_attribute(LinkAttribute::IfAlias(link.alias.to_owned()))
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]))
            .build();
        self.run(async {
            self.handle.link().add(pair).execute().await.map_err(os_error)?;
            self.handle.link().set_port(alias).execute().await.map_err(os_error)
        })
    }

    /// Gives the pod's end its addresses and routes; false if there is no such link.
    fn configure_pod(&self, link: &PodLink<'_>) -> io::Result<bool> {
        self.run(async {
            let Some(index) = self.by_name(&link.pod_name).await?.map(|found| found.index) else {
                return Ok(false);
            };
            self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(os_error)?;
            self.add_address(index, IpAddr::V4(link.address.0), link.address.1).await?;
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(link.gateway).output_interface(index);
            let route = if link.metric == 0 { route } else { route.priority(link.metric) };
            or_present(self.handle.route().add(route.build()).execute().await)?;
            if let Some((address, prefix, gateway)) = link.v6 {
                // Other pods on the bridge must not be able to hand out routes.
                sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", link.pod_name), "0")?;
                self.add_address(index, IpAddr::V6(address), prefix).await?;
                // Metric 0 would stand for the kernel's default of 1024.
                let route = RouteMessageBuilder::<Ipv6Addr>::new()
                    .gateway(gateway)
                    .output_interface(index)
                    .priority(1024 + link.metric)
                    .build();
                or_present(self.handle.route().add(route).execute().await)?;
            }
            Ok(true)
        })
    }
}

/// Runs `work` on a thread inside the network namespace. The thread ends with it, so no thread of the caller ever
/// changes its namespace.
pub(super) fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, move || {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the pod's network namespace panicked")))
    })
}

/// Gives the pod's end its addresses and routes, inside its namespace; false if the link is not there.
pub(super) fn configure(link: &PodLink<'_>, netns: BorrowedFd<'_>) -> io::Result<bool> {
    inside(netns, || Links::open()?.configure_pod(link))
}
