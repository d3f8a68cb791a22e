//! Accepts connections on the Unix socket and on TCP, and serves HTTP/1.1 on each, within bounds.
//!
//! One task for each listener, and one for each connection. A connection over TCP makes its TLS handshake in its own task, so
//! that a slow one holds up nobody. Each connection holds a [`Permit`] as long as it lives; a session that takes a connection over
//! takes the permit with it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::answer::Refusal;
use super::backend::Pods;
use super::door::Door;
use super::handle::{Api, handle};
use super::patient::Patient;
use super::strict::Strict;
use crate::access::gate::Access;
use crate::access::tls::{self, Tls};
use crate::access::{ANONYMOUS, Caller, Source};

/// What connections are held to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time. One more is told so and closed.
    pub connections: usize,
    /// TCP connections at a time from one address; of IPv6, from one network of 64 bits.
    pub per_peer: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a request's head may take to arrive; a connection without a request is closed after this time, too.
    pub head: Duration,
    /// How long a whole body may take to arrive.
    pub body: Duration,
    /// How long an unwanted body is read, so that the client gets to read its answer.
    pub unwanted: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let patience = Duration::from_secs(20);
        Self {
            connections: 512,
            per_peer: 128,
            handshake: Duration::from_secs(10),
            head: patience,
            body: patience,
            unwanted: Duration::from_secs(2),
        }
    }
}

impl Limits {
    /// Connections that TCP may have: some are left for the Unix socket, so that nobody afar shuts the operator out.
    fn over_tcp(&self) -> usize {
        self.connections - (self.connections / 4).min(32)
    }

    /// Whether there is a place for one more where so many are free: the last ones are for root on the Unix socket, so that
    /// nobody else there shuts the operator out either.
    fn has_place(&self, free: usize, operator: bool) -> bool {
        free > if operator { 0 } else { (self.connections / 16).min(8) }
    }
}

/// Where the API is served.
#[derive(Debug)]
pub struct Listeners {
    /// The Unix socket.
    pub unix: UnixListener,
    /// TCP; plain text where there is no TLS.
    pub tcp: Vec<TcpListener>,
    /// TLS of all TCP listeners.
    pub tls: Option<Arc<Tls>>,
}

/// Holds a connection's place. It is among the extensions of each request; a task that takes the connection over for
/// another protocol keeps a clone until it ends.
#[derive(Debug, Clone)]
pub struct Permit(#[expect(dead_code, reason = "held, not looked at")] Arc<Place>);

#[derive(Debug)]
struct Place {
    /// Among all connections, and among those over TCP.
    _held: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    peer: Option<(IpAddr, Arc<Peers>)>,
}

/// How many connections each address has.
type Peers = Mutex<HashMap<IpAddr, usize>>;

impl Drop for Place {
    fn drop(&mut self) {
        release(self.peer.take());
    }
}

/// Largest head of a request, bytes.
const LARGEST_HEAD: usize = 32 << 10;

/// Most header fields of a request.
const MOST_HEADERS: usize = 64;

/// How long requests under way may take once the daemon stops.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Serves the API until `shutdown`. Then followers are let go, and requests under way get a moment to be answered; work
/// that they have begun is not cut short by that.
pub async fn serve<P: Pods>(
    node: Arc<P>,
    access: Arc<Access>,
    listeners: Listeners,
    shutdown: CancellationToken,
    limits: Limits,
) {
    let server = Arc::new(Server::new(node, access, listeners.tls, shutdown, limits));
    let mut tasks = JoinSet::new();
    for listener in listeners.tcp {
        tasks.spawn(Arc::clone(&server).accept_tcp(listener));
    }
    server.accept_unix(listeners.unix).await;
    while tasks.join_next().await.is_some() {}
}

/// Serves the Unix socket alone, with everything allowed.
#[cfg(test)]
pub(super) async fn serve_within<P: Pods>(
    node: Arc<P>,
    unix: UnixListener,
    shutdown: CancellationToken,
    limits: Limits,
) {
    let listeners = Listeners { unix, tcp: Vec::new(), tls: None };
    serve(node, Arc::new(Access::unrestricted()), listeners, shutdown, limits).await;
}

/// What all connections share.
#[derive(Debug)]
struct Server<P> {
    api: Arc<Api<P>>,
    tls: Option<Arc<Tls>>,
    builder: http1::Builder,
    places: Arc<Semaphore>,
    tcp_places: Arc<Semaphore>,
    peers: Arc<Peers>,
}

impl<P: Pods> Server<P> {
    fn new(
        node: Arc<P>,
        access: Arc<Access>,
        tls: Option<Arc<Tls>>,
        shutdown: CancellationToken,
        limits: Limits,
    ) -> Self {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_headers(MOST_HEADERS)
            .max_header_size(LARGEST_HEAD)
            .max_buf_size(2 * LARGEST_HEAD);
        Self {
            places: Arc::new(Semaphore::new(limits.connections)),
            tcp_places: Arc::new(Semaphore::new(limits.over_tcp())),
            peers: Arc::default(),
            api: Arc::new(Api::new(node, access, shutdown, limits)),
            tls,
            builder,
        }
    }

    async fn accept_unix(self: Arc<Self>, listener: UnixListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = self.api.shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => match self.place(None, stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)) {
                        Ok(permit) => drop(connections.spawn(Arc::clone(&self).unix(stream, permit))),
                        // the buffer of a new socket has room for the answer
                        Err(full) => drop(stream.try_write(full.answer().as_bytes())),
                    },
                    Err(error) => failed("the API's socket", &error).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        end(connections).await;
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = self.api.shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => match self.place(Some(peer.ip()), false) {
                        Ok(permit) => drop(connections.spawn(Arc::clone(&self).tcp(stream, peer, permit))),
                        // a client of TLS would not understand more than the end
                        Err(_) if self.tls.is_some() => {}
                        Err(full) => drop(stream.try_write(full.answer().as_bytes())),
                    },
                    Err(error) => failed("the API's TCP listener", &error).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        end(connections).await;
    }

    /// A place for a new connection, where there is one left. `peer` is its address over TCP, `operator` whether it is root
    /// on the Unix socket.
    fn place(&self, peer: Option<IpAddr>, operator: bool) -> Result<Permit, Full> {
        let limits = &self.api.limits;
        let peer = match peer.map(network) {
            Some(address) => {
                let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
                let count = peers.entry(address).or_default();
                if *count >= limits.per_peer {
                    let most = limits.per_peer;
                    tracing::warn!(%address, "this peer of the API has {most} connections; another one is turned away");
                    return Err(Full { most, whose: "connections from one address" });
                }
                *count += 1;
                Some((address, Arc::clone(&self.peers)))
            }
            None => None,
        };
        let full = |most: usize| {
            tracing::warn!("the API has {most} connections; another one is turned away");
            Full { most, whose: "connections" }
        };
        let tcp = peer.as_ref().map(|_| Arc::clone(&self.tcp_places).try_acquire_owned());
        let has_place = limits.has_place(self.places.available_permits(), operator);
        let connection = has_place.then(|| Arc::clone(&self.places).try_acquire_owned().ok()).flatten();
        match (tcp.transpose(), connection) {
            (Ok(tcp), Some(connection)) => Ok(Permit(Arc::new(Place { _held: (connection, tcp), peer }))),
            (tcp, _) => {
                release(peer);
                Err(full(if tcp.is_err() { limits.over_tcp() } else { limits.connections }))
            }
        }
    }

    async fn unix(self: Arc<Self>, stream: UnixStream, permit: Permit) {
        match stream.peer_cred() {
            Ok(peer) => self.serve(stream, Caller::unix(peer.uid(), peer.gid(), peer.pid()), Door::Unix, permit).await,
            Err(error) => {
                tracing::warn!("the API's socket: who has connected cannot be told: {error}; the connection is closed");
            }
        }
    }

    async fn tcp(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, permit: Permit) {
        let local = match stream.local_addr() {
            Ok(local) => local,
            Err(error) => return tracing::debug!(%peer, "a connection of the API ended at once: {error}"),
        };
        let stream = Patient::new(stream);
        let Some(tls) = &self.tls else {
            let caller = Caller { principal: ANONYMOUS.to_owned(), source: Source::Plain { address: peer } };
            let door = Door::Tcp { local, names: Arc::default(), expires: None };
            return self.serve(stream, caller, door, permit).await;
        };
        let settings = tls.current(self.api.pods.events());
        let refused = |why: String| {
            let count = self.api.access.handshake_failed();
            tracing::debug!(%peer, count, "a TLS handshake of the API failed: {why}");
        };
        let accept = TlsAcceptor::from(Arc::clone(&settings.config)).accept(stream);
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(self.api.limits.handshake, accept) => handshake,
            () = self.api.shutdown.cancelled() => return,
        };
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return refused(error.to_string()),
            Err(_) => return refused(format!("not within {:?}", self.api.limits.handshake)),
        };
        match tls::client(stream.get_ref().1.peer_certificates()) {
            Ok((principal, end)) => {
                let caller = Caller { principal, source: Source::Tls { address: peer } };
                let names = settings.names.clone().into();
                let door = Door::Tcp { local, names, expires: Some(end) };
                self.serve(stream, caller, door, permit).await;
            }
            Err(why) => refused(why),
        }
    }

    async fn serve<S>(self: Arc<Self>, stream: S, caller: Caller, door: Door, permit: Permit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shutdown = self.api.shutdown.clone();
        let principal = caller.principal.clone();
        let shared = Arc::new((caller, door));
        let api = Arc::clone(&self.api);
        let service = service_fn(move |mut request| {
            let (api, shared) = (Arc::clone(&api), Arc::clone(&shared));
            request.extensions_mut().insert(permit.clone());
            async move { Ok::<_, Infallible>(handle(&api, &shared.0, &shared.1, request).await) }
        });
        let stream = TokioIo::new(Strict::new(stream));
        let mut served = std::pin::pin!(self.builder.serve_connection(stream, service).with_upgrades());
        let result = tokio::select! {
            result = served.as_mut() => result,
            () = shutdown.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(principal, "a connection of the API ended: {error}");
        }
    }
}

/// What counts as one address: of IPv6 the network of 64 bits, of which one host may have every address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        IpAddr::V4(address) => address.into(),
    }
}

/// Counts one connection of a peer less.
fn release(peer: Option<(IpAddr, Arc<Peers>)>) {
    if let Some((address, peers)) = peer {
        let mut peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&address);
            }
        }
    }
}

/// There is no place for another connection.
#[derive(Debug)]
struct Full {
    most: usize,
    whose: &'static str,
}

impl Full {
    /// What a client is told without having its request read.
    fn answer(&self) -> String {
        let Self { most, whose } = self;
        let detail = format!("the daemon serves {most} {whose}, its most; close some, or try again later");
        let problem = Refusal::new(hyper::StatusCode::SERVICE_UNAVAILABLE, "busy", detail).into_text();
        let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nconnection: close";
        format!("{head}\r\ncontent-length: {}\r\n\r\n{problem}", problem.len())
    }
}

async fn failed(what: &str, error: &io::Error) {
    tracing::warn!("{what}: accept: {error}; trying again");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Waits a moment for the last answers.
async fn end(mut connections: JoinSet<()>) {
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ANSWERS, ended).await.is_err() {
        tracing::info!("{} connections of the API were still open", connections.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_places_are_for_the_operator() {
        let limits = Limits::default();
        let most = |root: bool| (0..=limits.connections).rev().take_while(|free| limits.has_place(*free, root)).count();
        assert_eq!((most(true), most(false)), (limits.connections, limits.connections - 8));
        assert!(most(false) > limits.over_tcp());
        assert!(Limits { connections: 2, ..limits }.has_place(1, false));
    }

    #[test]
    fn a_host_with_many_addresses_is_one_peer() {
        for (address, counted) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
            ("::1", "::"),
        ] {
            assert_eq!(network(address.parse().unwrap()).to_string(), counted);
        }
    }
}
