//! Ports on the host: what a pod asks for and whether the host itself uses it already.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use agentd_api::pod::{PodSpec, Protocol};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::ledger::Wanted;

/// The protocol as people write it.
pub(super) fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// The endpoints of a pod, with the paths of their `hostPort`.
pub(super) fn wanted(pod: &PodSpec) -> Vec<Wanted<'_>> {
    let mut wanted = Vec::new();
    for (i, container) in pod.containers.iter().enumerate() {
        for (j, endpoint) in container.endpoints.iter().enumerate() {
            let path = format!("containers[{i}].endpoints[{j}].hostPort");
            wanted.push(Wanted { path, container: &container.name, endpoint });
        }
    }
    wanted
}

/// Whether the port is free in the calling thread's network namespace, by binding to it. The error continues the
/// sentence "tcp port 80 …".
pub(super) fn probe(protocol: Protocol, port: u16) -> Result<(), String> {
    let addresses: [SocketAddr; 2] = [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
    for address in addresses {
        match try_bind(protocol, address) {
            Ok(()) => {}
            // A host without IPv6.
            Err(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL) if address.is_ipv6() => {}
            Err(rustix::io::Errno::ADDRINUSE) => {
                return Err("is in use by another program of the host".to_owned());
            }
            Err(error) => return Err(format!("cannot be bound on the host ({error})")),
        }
    }
    Ok(())
}

fn try_bind(protocol: Protocol, address: SocketAddr) -> Result<(), rustix::io::Errno> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if protocol == Protocol::Tcp {
        // Connections of an earlier program in TIME_WAIT do not count, listeners do.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_one_address_takes_the_port() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert!(probe(Protocol::Tcp, port).unwrap_err().contains("in use"));
            drop(listener);
            assert_eq!(probe(Protocol::Tcp, port), Ok(()));
        }
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(probe(Protocol::Udp, port).is_err());
    }
}
