//! The daemon from start to end: lock, wiring, recovery, API, signals.

use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::access::gate::Access;
use crate::access::tls::{self, Tls};
use crate::config::{self, Config};
use crate::host::Host;
use crate::layout::Layout;
use crate::node::Node;
use crate::telemetry::Telemetry;
use crate::{api, failpoint, observe, recovery};

/// Exit code of a daemon that could not start or had to give up.
pub const FAILED: u8 = 1;
/// Exit code of a wrong configuration or command line.
pub const BAD_INPUT: u8 = 2;
/// Exit code when another daemon has this instance name.
pub const LOCKED: u8 = 3;

/// Runs the daemon until SIGTERM or SIGINT. Pods outlive it.
pub fn run(config: Config, telemetry: &Telemetry) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "agentd: must run as root to make namespaces and cgroups (found uid {}); use sudo or the systemd unit",
            rustix::process::geteuid().as_raw()
        );
        return ExitCode::from(FAILED);
    }
    let layout = Layout::of(&config);
    if let Err(error) = layout.create() {
        eprintln!("agentd: {error}");
        return ExitCode::from(FAILED);
    }
    let mut options = std::fs::OpenOptions::new();
    let lock = match options.create(true).truncate(false).write(true).mode(0o600).open(layout.lock()) {
        Ok(lock) => lock,
        Err(error) => {
            eprintln!("agentd: {}: {error}", layout.lock().display());
            return ExitCode::from(FAILED);
        }
    };
    if !locked(&lock) {
        eprintln!(
            "agentd: another agentd runs with the instance name {} ({} is locked); stop it or choose another --instance",
            config.instance,
            layout.lock().display()
        );
        return ExitCode::from(LOCKED);
    }
    failpoint::arm();
    raise_descriptor_limit();
    one_heap();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("agentd: the runtime cannot start: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let (delivering, token) = (telemetry.clone(), stop.clone());
        let delivery = tokio::spawn(async move { delivering.run(token).await });
        let result = serve(config, telemetry).await;
        // ends by itself some seconds after this
        stop.cancel();
        let _ = delivery.await;
        result
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    drop(lock);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(FAILED)
        }
    }
}

/// How long the lock may take. A program that a killed daemon was just starting holds it until it is exec'd.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Takes the lock of the instance name.
fn locked(lock: &std::fs::File) -> bool {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        if flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One heap for all threads. glibc gives each thread a heap of its own, and what is freed in one is of no use to the others: a
/// daemon that answered a hundred thousand requests kept ten megabytes more that way. Nothing here allocates so often
/// that threads would wait for each other.
fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain integers; there are no other threads yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Each running container costs a handful of descriptors.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // a refusal leaves the limit as it is, which `agentd doctor` shows
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

async fn serve(config: Config, telemetry: &Telemetry) -> Result<(), String> {
    let began = Instant::now();
    let host = Host::start(config)?;
    // what is wrong with these is told before anything of the pods is touched
    let volumes = Arc::clone(&host.volumes);
    let access = Access::open(&host.config.api, Arc::clone(&host.audit))?;
    let access = Arc::new(access.tell(move |policy| volumes.close(policy.folders())));
    let tls = tls(&host.config.api)?;
    let metrics_tls = metrics_tls(&host.config)?;
    // beside the recovery, which takes as long
    let watched = Arc::clone(&host);
    let watching = tokio::task::spawn_blocking(move || watched.watcher.start(&watched.driver));
    let node = Node::new(Arc::clone(&host));
    let report = recovery::run(&node).await?;
    tracing::info!(?report, "recovered in {:?}", began.elapsed());
    if let Err(error) = watching.await {
        tracing::error!("the programs that watch containers could not be loaded: {error}");
    }
    let watchers = observe::tasks::spawn(&node);
    let delivery = telemetry.clone();
    host.gatherer.add(Box::new(move |batch, scope| {
        observe::latency::LATENCIES.fill(batch, scope);
        delivery.fill(batch, scope);
    }));
    host.pool.open();
    let tcp = listen_tcp(&host.config.api)?;
    let metrics = listen_metrics(&host.config.metrics)?;
    let listeners = api::Listeners { unix: listen(&host)?, tcp, tls: tls.clone() };
    let limits = api::Limits {
        connections: host.config.api.max_connections as usize,
        per_peer: host.config.api.max_connections_per_peer as usize,
        ..api::Limits::default()
    };
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(api::serve(Arc::clone(&node), Arc::clone(&access), listeners, shutdown.clone(), limits));
    let metrics = observe::listener::serve(Arc::clone(&node), metrics, metrics_tls.clone(), shutdown.clone());
    let metrics = tokio::spawn(metrics);
    let pushing = telemetry.metrics().map(|(pusher, interval)| {
        tokio::spawn(observe::push::run(Arc::clone(&node), pusher, interval, shutdown.clone()))
    });
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %host.config.paths.socket.display(), "agentd {} is ready", env!("CARGO_PKG_VERSION"));
    let watchdog = tokio::spawn(watchdog());
    let collector = tokio::spawn(collect_images(Arc::clone(&host)));
    let tidying = tokio::spawn(tidy_network(Arc::clone(&host)));
    let profiling = tokio::spawn(crate::profile::follow(Arc::clone(&node)));
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| e.to_string())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: agentd ends, pods run on"),
            _ = interrupt.recv() => tracing::info!("SIGINT: agentd ends, pods run on"),
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: TLS files and access list are read again if they have changed");
                read_again(&host, &access, [tls.as_deref(), metrics_tls.as_deref()]);
                continue;
            }
        }
        break;
    }
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    shutdown.cancel();
    watchdog.abort();
    collector.abort();
    tidying.abort();
    for task in &watchers {
        task.abort();
    }
    metrics.abort();
    if let Some(pushing) = pushing {
        // what was counted to the end is handed over before delivery ends
        let _ = tokio::time::timeout(Duration::from_secs(5), pushing).await;
    }
    profiling.abort();
    // connections end by themselves; one that does not is cut with the process
    let _ = tokio::time::timeout(Duration::from_secs(5), server).await;
    host.pool.close().await;
    leave_nothing(&node).await;
    let _ = std::fs::remove_file(&host.config.paths.socket);
    Ok(())
}

fn listen(host: &Host) -> Result<UnixListener, String> {
    let path = &host.config.paths.socket;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{}: {error}", path.display()));
        }
        _ => {}
    }
    // nobody may connect before the mode is right
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(old);
    let listener = listener.map_err(|e| format!("cannot listen on {}: {e}", path.display()))?;
    let group = nix::unistd::Group::from_name(&host.config.api.socket_group).ok().flatten();
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group.gid.as_raw())).map_err(|e| e.to_string())?;
    }
    let mode = std::fs::Permissions::from_mode(host.config.api.socket_mode);
    std::fs::set_permissions(path, mode).map_err(|e| e.to_string())?;
    Ok(listener)
}

/// The TLS settings, where TCP has any.
fn tls(config: &config::Api) -> Result<Option<Arc<Tls>>, String> {
    match (&config.tls_certificate, &config.tls_key, &config.tls_client_ca) {
        (Some(certificate), Some(key), Some(client_ca)) if !config.insecure => {
            let (certificate, key, client_ca) = (certificate.clone(), key.clone(), client_ca.clone());
            Ok(Some(Arc::new(Tls::open(tls::Files { certificate, key, client_ca })?)))
        }
        _ => Ok(None),
    }
}

/// TLS of the metrics listeners, where they have any: files of their own, else the API's.
fn metrics_tls(config: &Config) -> Result<Option<Arc<Tls>>, String> {
    let (metrics, api) = (&config.metrics, &config.api);
    if !metrics.tls || metrics.listen.is_empty() {
        return Ok(None);
    }
    let certificate = metrics.tls_certificate.clone().or_else(|| api.tls_certificate.clone());
    let key = metrics.tls_key.clone().or_else(|| api.tls_key.clone());
    let client_ca = metrics.tls_client_ca.clone().or_else(|| api.tls_client_ca.clone());
    match (certificate, key, client_ca) {
        (Some(certificate), Some(key), Some(client_ca)) => {
            let own = [
                ("tls_certificate", metrics.tls_certificate.is_some()),
                ("tls_key", metrics.tls_key.is_some()),
                ("tls_client_ca", metrics.tls_client_ca.is_some()),
            ];
            let tls = Tls::open(tls::Files { certificate, key, client_ca }).map_err(|error| {
                // the reader of the files knows them by their names in [api]
                let own = own.iter().filter(|(_, own)| *own);
                let error =
                    own.fold(error, |text, (key, _)| text.replace(&format!("api.{key}"), &format!("metrics.{key}")));
                format!("metrics.tls: {error}")
            });
            Ok(Some(Arc::new(tls?)))
        }
        _ => Err("metrics.tls: needs tls_certificate, tls_key and tls_client_ca, in [metrics] or [api]".to_owned()),
    }
}

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

fn listen_on(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn listen_metrics(config: &config::Metrics) -> Result<Vec<TcpListener>, String> {
    let mut listeners = Vec::new();
    for (index, address) in config.addresses().into_iter().enumerate() {
        let listener = listen_on(address)
            .map_err(|e| format!("metrics.listen[{index}]: cannot listen on {address}: {e}; choose another address"))?;
        let how = if config.tls { "with TLS" } else { "in plain text" };
        tracing::info!(%address, "metrics are served {how}");
        listeners.push(listener);
    }
    Ok(listeners)
}

fn listen_tcp(config: &config::Api) -> Result<Vec<TcpListener>, String> {
    let mut listeners = Vec::new();
    for (index, address) in config.addresses().into_iter().enumerate() {
        let listener = listen_on(address)
            .map_err(|e| format!("api.listen[{index}]: cannot listen on {address}: {e}; choose another address"))?;
        let how = if config.insecure { "in plain text" } else { "with TLS" };
        tracing::info!(%address, "the API is served over TCP {how}");
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Looks at the files of TLS and of the access list at once.
fn read_again(host: &Host, access: &Access, tls: [Option<&Tls>; 2]) {
    access.look_again();
    access.refresh(&host.events);
    for tls in tls.into_iter().flatten() {
        tls.look_again();
        tls.current(&host.events);
    }
}

/// Tells systemd that the daemon lives, at half the interval that it asks for.
async fn watchdog() {
    let mut micros = 0;
    if !sd_notify::watchdog_enabled(false, &mut micros) || micros == 0 {
        return;
    }
    let mut interval = tokio::time::interval(Duration::from_micros(micros / 2));
    loop {
        interval.tick().await;
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
    }
}

/// Removes unused images while the disk is fuller than the high watermark.
async fn collect_images(host: Arc<Host>) {
    let mut interval = tokio::time::interval(Duration::from_mins(1));
    loop {
        interval.tick().await;
        let collected = match host.images.disk_used() {
            Ok(used) => host.images.gc(used).await,
            Err(error) => Err(error),
        };
        match collected {
            Ok(collected) if !collected.images.is_empty() => {
                let message = format!("removed unused: {} ({} bytes)", collected.images.join(", "), collected.bytes);
                host.events.publish("images-collected", crate::events::Subject::default(), message);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("image collection: {error}"),
        }
    }
}

/// How long the bridge stays after the last pod has left it: one that is replaced by another is no reason to make it anew.
const NETWORK_LINGERS: Duration = Duration::from_secs(3);

/// Removes bridge and packet rules once no pod is on them.
async fn tidy_network(host: Arc<Host>) {
    loop {
        host.network_left.notified().await;
        tokio::time::sleep(NETWORK_LINGERS).await;
        let shared = Arc::clone(&host);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || shared.network.shutdown()).await {
            tracing::warn!("{error}; tried again when the next pod leaves");
        }
    }
}

/// With no pod left, nothing of agentd stays on the host but its state folder.
async fn leave_nothing(node: &Arc<Node>) {
    if !node.list().is_empty() {
        return;
    }
    let host = Arc::clone(&node.host);
    host.sandboxes.close().await;
    let done = tokio::task::spawn_blocking(move || {
        if let Err(error) = host.network.shutdown() {
            tracing::warn!("{error}");
        }
        if let Err(error) = host.driver.remove_parent(Instant::now() + Duration::from_secs(5)) {
            tracing::warn!("{error}");
        }
    });
    let _ = done.await;
}
