//! `agentctl port-forward`: ports of a pod made reachable on this machine.
//!
//! One task for each port listens; one for each connection makes a connection of its own through the daemon and copies
//! both ways until both sides have closed. A side that closes its half is told to the other as that.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use agentd_api::files::FORWARD_PROTOCOL;
use clap::Args;
use hyper::Method;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::{CallError, Client};
use super::failure::{Failure, Result, clean};
use super::output::{self, Output};
use super::pods::path_of;
use crate::api::route::encode;

/// Most connections at a time; further ones wait.
const MOST: usize = 256;

/// Bytes of a buffer in each direction of a connection.
const BUFFER: usize = 64 << 10;

/// Its command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Address of this machine to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub address: IpAddr,
    /// Id of the instance; may be left out where one runs.
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// Id of the pod.
    pub pod: String,
    /// Port of this machine and port of the pod; one number is both, :REMOTE or 0:REMOTE takes a free one.
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = ports)]
    pub ports: Vec<(u16, u16)>,
}

/// Reads `8080:80`, `80`, `:80` or `0:80`.
fn ports(text: &str) -> std::result::Result<(u16, u16), String> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (local, remote) = match text.split_once(':') {
        Some(("", remote)) => (Some(0), number(remote)),
        Some((local, remote)) => (number(local), number(remote)),
        None => (number(text), number(text)),
    };
    match (local, remote) {
        (Some(local), Some(remote)) if remote > 0 => Ok((local, remote)),
        _ => Err("expected LOCAL:REMOTE, REMOTE or :REMOTE with ports of 1 to 65535, e.g. 8080:80".to_owned()),
    }
}

/// Carries it out.
pub async fn run(client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    let base = format!("{}/port-forward", path_of(&arguments.pod)?);
    // a pod that is not there is told now, not at the first connection
    client.call(Method::GET, &path_of(&arguments.pod)?, None).await?;
    let instance = arguments.instance.map(|id| format!("&instance={}", encode(&id))).unwrap_or_default();
    let room = Arc::new(Semaphore::new(MOST));
    let mut tasks = JoinSet::new();
    for (local, remote) in arguments.ports {
        let address = SocketAddr::new(arguments.address, local);
        let failed = |error: std::io::Error| {
            Failure::failed(format!(
                "{address}: it cannot be listened on: {error}; name another port, or 0 for a free one"
            ))
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        output.line(&format!("{} -> {remote}", listener.local_addr().map_err(failed)?))?;
        let path = format!("{base}?port={remote}{instance}");
        tasks.spawn(listen(listener, client.clone(), path, Arc::clone(&room)));
    }
    output::follow(async {
        while tasks.join_next().await.is_some() {}
        Ok(())
    })
    .await
}

/// Takes connections for one port.
async fn listen(listener: TcpListener, client: Client, path: String, room: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        // never closed
        let Ok(leave) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let (client, path) = (client.clone(), path.clone());
                connections.spawn(async move {
                    let _leave = leave;
                    forward(stream, &client, &path).await;
                });
            }
            Err(error) => {
                tell(&format!("a connection was not accepted: {error}"));
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection. Without the other side it is closed, as a port that nobody listens on would do.
async fn forward(mut local: TcpStream, client: &Client, path: &str) {
    let upgraded = match client.upgrade(Method::GET, path, FORWARD_PROTOCOL, None).await {
        Ok(upgraded) => upgraded,
        Err(error) => return tell(&why(error)),
    };
    // without it small pieces wait for others
    let _ = local.set_nodelay(true);
    match upgraded.downcast::<TokioIo<UnixStream>>() {
        Ok(parts) => {
            let mut remote = parts.io.into_inner();
            if local.write_all(&parts.read_buf).await.is_ok() {
                copy(&mut local, &mut remote).await;
            }
        }
        Err(upgraded) => copy(&mut local, &mut TokioIo::new(upgraded)).await,
    }
}

async fn copy(local: &mut TcpStream, remote: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    // who broke it off knows, and the other side sees its connection end
    let _ = copy_bidirectional_with_sizes(local, remote, BUFFER, BUFFER).await;
}

fn why(error: CallError) -> String {
    match Failure::from(error) {
        Failure::Told { message, .. } => message,
        _ => "the connection could not be made".to_owned(),
    }
}

fn tell(line: &str) {
    use std::io::Write;
    // there is nowhere left to tell that standard error is closed
    let _ = writeln!(std::io::stderr(), "agentctl: {}", clean(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        assert_eq!(ports("8080:80"), Ok((8080, 80)));
        assert_eq!(ports("80"), Ok((80, 80)));
        assert_eq!(ports(":80"), Ok((0, 80)));
        assert_eq!(ports("0:80"), Ok((0, 80)));
        for bad in ["", ":", "80:", "80:0", "0", "65536", "1:2:3", "+1:2", "-1", "a:1", "1:a"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
