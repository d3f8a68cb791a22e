//! Ports on the host: what a pod asks for and whether the host itself uses it already.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

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
    bind_all(protocol, port, true).map(drop)
}

/// Takes the port for as long as the sockets are kept. What comes to a port of a pod is led to the pod before it gets to
/// any socket, so nothing but these tells other programs, and agentds of another name, that the port is taken.
pub(super) fn hold(protocol: Protocol, port: u16) -> Result<Vec<OwnedFd>, String> {
    // Connections of an earlier program in TIME_WAIT stand in the way only of a socket that others may not share.
    bind_all(protocol, port, false).or_else(|_| bind_all(protocol, port, true))
}

fn bind_all(protocol: Protocol, port: u16, share: bool) -> Result<Vec<OwnedFd>, String> {
    let addresses: [SocketAddr; 2] = [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
    let mut sockets = Vec::with_capacity(addresses.len());
    for address in addresses {
        match try_bind(protocol, address, share) {
            Ok(socket) => sockets.push(socket),
            // A host without IPv6.
            Err(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL) if address.is_ipv6() => {}
            Err(rustix::io::Errno::ADDRINUSE) => {
                return Err("is in use by another program of the host".to_owned());
            }
            Err(error) => return Err(format!("cannot be bound on the host ({error})")),
        }
    }
    Ok(sockets)
}

fn try_bind(protocol: Protocol, address: SocketAddr, share: bool) -> Result<OwnedFd, rustix::io::Errno> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if protocol == Protocol::Tcp && share {
        // Connections of an earlier program in TIME_WAIT do not count, listeners and holders do.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
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
    #[test]
    fn a_port_that_is_held_is_taken_until_it_is_given_back() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let held = hold(protocol, port).unwrap();
            assert!(probe(protocol, port).unwrap_err().contains("in use"));
            assert!(hold(protocol, port).is_err());
            drop(held);
            assert_eq!(probe(protocol, port), Ok(()));
        }
    }
}
