//! Everything that instances share: the isolators, the stores and the services of this host, wired together once.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_images::Store;
use agentd_isolators::capabilities::Capabilities;
use agentd_isolators::capabilities::HostCapabilities;
use agentd_isolators::cgroup::{Allocator, Core, Cpu, Cpuset, Driver, Hugetlb, Io, Memory, OomReader, OomVictim, Pids};
use agentd_isolators::devices::Devices;
use agentd_isolators::disk::{Disk, DiskSettings, Enforcement};
use agentd_isolators::mounter::Mounter;
use agentd_isolators::mounter::idmap::IdRange;
use agentd_isolators::namespaces::Namespaces;
use agentd_isolators::network::{Ipv6, Network, NetworkSettings};
use agentd_isolators::rlimits::Rlimits;
use agentd_isolators::rootfs::{HostFiles, Rootfs, RootfsSettings};
use agentd_isolators::seccomp::Seccomp;
use agentd_isolators::volumes::{HostPaths, SecretVolume, Volumes};
use agentd_isolators::{ContainerContext, Isolator};
use agentd_logging::Capture;
use agentd_metrics::host::HostFacts;

use crate::access::audit::{self, Audit};
use crate::config::{Config, DiskEnforcement, Subnet6};
use crate::events::{Events, Subject};
use crate::layout::Layout;
use crate::observe::latency::LATENCIES;
use crate::pool::Pool;
use crate::sandbox::Sandboxes;
use crate::telemetry::{self, spans};

/// First host id of user namespaces, above those that `useradd` gives out.
const USER_NAMESPACE_BASE: u32 = 0x7000_0000;

/// The services of this host.
#[derive(Debug)]
pub struct Host {
    /// The configuration.
    pub config: Config,
    /// Where things lie.
    pub layout: Layout,
    /// What the host has.
    pub facts: HostFacts,
    /// Cgroups.
    pub driver: Arc<Driver>,
    /// The memory controller, asked after each exit.
    pub memory: Memory,
    /// Disk limits.
    pub disk: Arc<Disk>,
    /// Volumes.
    pub volumes: Arc<Volumes>,
    /// Roots of containers.
    pub rootfs: Arc<Rootfs>,
    /// Networks.
    pub network: Arc<Network>,
    /// Images.
    pub images: Arc<Store>,
    /// Container logs.
    pub capture: Capture,
    /// Events.
    pub events: Events,
    /// The audit log, for calls and sessions.
    pub audit: Arc<Audit>,
    /// Sessions in containers.
    pub sessions: Arc<crate::session::Registry>,
    /// Who is watched, and the programs that watch.
    pub watcher: crate::observe::Watcher,
    /// Metrics.
    pub gatherer: crate::observe::gather::Gatherer,
    /// What this daemon can hand on.
    pub capabilities: HostCapabilities,
    /// Sandboxes.
    pub sandboxes: Arc<Sandboxes>,
    /// Ready sandboxes.
    pub pool: Arc<Pool>,
    /// Whole cores given out.
    pub cores: Arc<Mutex<Allocator>>,
    /// Victims of the memory limit, by cgroup path, as the kernel's log tells them.
    pub victims: Arc<Mutex<HashMap<String, OomVictim>>>,
    /// Where secrets are.
    pub secrets: crate::secrets::Secrets,
    /// Fetches artifacts.
    pub fetcher: agentd_fetcher::Fetcher,
    /// Told when an instance has left its networks, so that what nobody uses any more is removed.
    pub network_left: tokio::sync::Notify,
    /// Which functions containers spend their time in.
    pub profiles: Arc<crate::profile::Profiles>,
    isolators: Vec<Arc<dyn Isolator>>,
}

impl Host {
    /// Wires everything for a configuration. Starts threads and tasks, but changes nothing of any pod.
    pub fn start(config: Config) -> Result<Arc<Self>, String> {
        let text = |e: agentd_isolators::IsolatorError| e.to_string();
        let layout = Layout::of(&config);
        let facts = HostFacts::read().map_err(|e| e.to_string())?;
        let driver = Arc::new(Driver::detect(&cgroup_parent(&config)).map_err(text)?);
        let mounter = Arc::new(Mounter::start(2).map_err(text)?);
        let enforcement = match config.pods.disk_enforcement {
            DiskEnforcement::Auto => Enforcement::Auto,
            DiskEnforcement::Quota => Enforcement::Quota,
            DiskEnforcement::Loop => Enforcement::Loop,
            DiskEnforcement::Meter => Enforcement::Meter,
        };
        let disk_settings = DiskSettings {
            enforcement,
            default_limit: (config.pods.default_disk_mib > 0).then_some(config.pods.default_disk_mib << 20),
            folder: layout.state.join("disks"),
        };
        let disk = Arc::new(Disk::new(Arc::clone(&mounter), disk_settings).map_err(text)?);
        let ids = Some(Arc::new(IdRange::new(USER_NAMESPACE_BASE).map_err(text)?));
        let host_files =
            HostFiles::new(config.host_files.etc.iter().map(|p| p.to_string_lossy().into_owned()).collect())
                .map_err(text)?;
        let rootfs = Arc::new(Rootfs::new(
            Arc::clone(&mounter),
            Arc::clone(&disk),
            ids.clone(),
            RootfsSettings { host_files, ..RootfsSettings::default() },
        ));
        let paths = HostPaths {
            allowed: config.host_files.allowed_host_paths.clone(),
            ..HostPaths::all_but(vec![layout.run.clone(), layout.state.clone(), config.paths.secrets.clone()])
        };
        let volumes = Arc::new(Volumes::new(Arc::clone(&mounter), Arc::clone(&disk), ids, paths));
        let network = Arc::new(Network::new(network_settings(&config, &layout)).map_err(text)?);
        let images = Arc::new(Store::open(&layout.images(), image_settings(&config)).map_err(|e| e.to_string())?);
        let capture = Capture::start(
            layout.logs(),
            agentd_logging::capture::Settings { max_bytes: config.logs.max_bytes_per_container },
        )
        .map_err(|e| e.to_string())?;
        let sandboxes = Arc::new(Sandboxes::new(layout.clone(), Arc::clone(&driver))?);
        let pool =
            Pool::start(Arc::clone(&sandboxes), config.pods.pool_size as usize, config.pods.pool_containers as u32);
        let cores = facts.topology.cores.iter().map(|core| Core { node: core.node, cpus: core.cpus.clone() }).collect();
        let cores = Arc::new(Mutex::new(Allocator::new(cores)));
        let default_pids = (config.pods.default_pids > 0).then_some(config.pods.default_pids);
        let capabilities = HostCapabilities::read().map_err(text)?;
        let rlimits = Rlimits::new(&std::collections::BTreeMap::new(), capabilities).map_err(text)?;
        let launchers = driver.launcher_cgroup().map_err(text)?;
        // the device guard goes last: it allows what the others put into the plan
        let isolators: Vec<Arc<dyn Isolator>> = vec![
            Arc::new(Cpu::new(Arc::clone(&driver))),
            Arc::new(Cpuset::new(Arc::clone(&driver), Arc::clone(&cores))),
            Arc::new(Memory::new(Arc::clone(&driver))),
            Arc::new(Pids::new(Arc::clone(&driver), default_pids)),
            Arc::new(Io::new(Arc::clone(&driver))),
            Arc::new(Hugetlb::new(Arc::clone(&driver))),
            Arc::clone(&rootfs) as Arc<dyn Isolator>,
            Arc::clone(&volumes) as Arc<dyn Isolator>,
            Arc::new(Namespaces::new()),
            Arc::new(rlimits),
            Arc::new(Capabilities::new(capabilities)),
            Arc::new(Seccomp::new(config.paths.seccomp.clone(), capabilities)),
            Arc::new(Devices::new(launchers.as_fd())),
        ];
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let audit = Audit::open(
            &config.api.audit.clone().unwrap_or_else(|| layout.audit()),
            audit::file::Settings {
                max_bytes: config.api.audit_max_mib << 20,
                files: config.api.audit_files as usize,
                sync: config.api.audit_sync,
            },
        )?;
        let secrets = crate::secrets::Secrets::new(config.paths.secrets.clone(), credentials);
        let fetcher = agentd_fetcher::Fetcher::new(fetcher_settings(&config, &layout));
        let events = Events::open(&layout)?;
        let watcher = crate::observe::Watcher::new(config.observe.clone());
        let unprofiled = crate::observe::stacks::refused(&config.observe);
        let gatherer = crate::observe::gather::Gatherer::new(&config.metrics, &layout);
        let host = Arc::new(Self {
            memory: Memory::new(Arc::clone(&driver)),
            profiles: Arc::new(crate::profile::Profiles::new(Arc::clone(&driver), unprofiled)?),
            config,
            layout,
            facts,
            driver,
            disk,
            volumes,
            rootfs,
            network,
            images,
            capture,
            events,
            audit: Arc::new(audit),
            sessions: Arc::default(),
            watcher,
            gatherer,
            capabilities,
            sandboxes,
            pool,
            cores,
            victims: Arc::default(),
            secrets,
            fetcher,
            network_left: tokio::sync::Notify::new(),
            isolators,
        });
        watch_oom(&host);
        Ok(host)
    }

    /// Everything of a pod that this host cannot honour.
    pub fn check(&self, pod: &PodSpec) -> Vec<Violation> {
        let mut violations = Vec::new();
        for isolator in &self.isolators {
            isolator.check(pod, &mut violations);
        }
        self.network.check(pod, &mut violations);
        crate::placement::check(pod, self.hostname(), &mut violations);
        violations.extend(crate::profile::wanted::check(pod));
        violations
    }

    /// Readies one start of a container: every isolator adds its part. Blocking.
    pub fn prepare(
        &self,
        context: &ContainerContext<'_>,
        launch: &mut agentd_isolators::Launch,
    ) -> Result<(), agentd_isolators::IsolatorError> {
        self.isolators
            .iter()
            .try_for_each(|isolator| step(&**isolator, "prepare", || isolator.prepare(context, launch)))
    }

    /// Applies changed resources of a running container. Blocking.
    pub fn update(&self, context: &ContainerContext<'_>) -> Result<(), agentd_isolators::IsolatorError> {
        self.isolators.iter().try_for_each(|isolator| step(&**isolator, "update", || isolator.update(context)))
    }

    /// Removes what a start of a container left. Blocking.
    pub fn cleanup(&self, context: &ContainerContext<'_>) {
        for isolator in &self.isolators {
            if let Err(error) = step(&**isolator, "cleanup", || isolator.cleanup(context)) {
                tracing::warn!(instance = context.instance, container = context.container.name, "cleanup: {error}");
            }
        }
    }

    /// What a container has used. Blocking.
    pub fn usage(&self, context: &ContainerContext<'_>) -> agentd_isolators::Usage {
        let mut usage = agentd_isolators::Usage::default();
        for isolator in &self.isolators {
            if let Err(error) = isolator.usage(context, &mut usage) {
                tracing::debug!(instance = context.instance, "usage: {error}");
            }
        }
        usage
    }

    /// A secret of a pod, by the name that the pod gives it. Blocking.
    pub fn secret(&self, pod: &PodSpec, name: &str) -> Result<crate::secrets::Secret, String> {
        let source = pod
            .secrets
            .get(name)
            .ok_or_else(|| format!("secrets.{name}: found no such secret in the pod; declare it under secrets"))?;
        self.secrets.resolve(&source.source).map_err(|e| format!("secrets.{name}.source: {e}"))
    }

    /// The secret volumes of a pod, with their content. Blocking.
    pub fn secret_volumes(&self, pod: &PodSpec) -> Result<Vec<SecretVolume>, String> {
        let mut volumes = Vec::new();
        for volume in pod.volumes.iter().filter(|v| !v.agentd.secrets.is_empty()) {
            let mut files = Vec::new();
            for (file, secret) in &volume.agentd.secrets {
                files.push((file.clone(), self.secret(pod, secret)?.bytes().to_vec()));
            }
            let (uid, gid) = owner(pod, &volume.name);
            volumes.push(SecretVolume { name: volume.name.clone(), uid, gid, files });
        }
        Ok(volumes)
    }

    /// The memory of the host, bytes.
    pub fn memory_total(&self) -> u64 {
        self.config.resources.memory_mib.map_or(self.facts.memory_total, |mib| mib << 20)
    }

    /// Host name as reported.
    pub fn hostname(&self) -> &str {
        self.config.hostname.as_deref().unwrap_or(&self.facts.hostname)
    }
}

/// One step of an isolator, measured.
fn step<T, E: std::fmt::Display>(
    isolator: &dyn Isolator,
    name: &'static str,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let (began, span) = (Instant::now(), spans::isolator(isolator.name(), name));
    let result = span.in_scope(work);
    LATENCIES.isolators.of((isolator.name(), name)).observe_of(began.elapsed(), telemetry::trace_of(&span));
    result.inspect_err(|error| spans::failed(&span, error))
}

/// Owner of a secret volume: the numeric user of the first container that mounts it, else root.
fn owner(pod: &PodSpec, volume: &str) -> (u32, u32) {
    let container = pod.containers.iter().find(|c| c.volume_mounts.iter().any(|m| m.name == volume));
    let user = container.and_then(|c| c.user.as_deref()).or(pod.user.as_deref()).unwrap_or("0");
    let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
    let uid = uid.parse().unwrap_or(0);
    (uid, gid.parse().unwrap_or(uid))
}

/// Reads the kernel's log for victims of memory limits, on a thread of its own.
fn watch_oom(host: &Arc<Host>) {
    let weak = Arc::downgrade(host);
    let mut reader = match OomReader::open() {
        Ok(reader) => reader,
        Err(error) => {
            tracing::warn!("/dev/kmsg cannot be read ({error}): victims of memory limits are reported without a name");
            return;
        }
    };
    let prefix = format!("{}/pods/", host.driver.parent().trim_matches('/'));
    let spawned = std::thread::Builder::new().name("oom-reader".to_owned()).spawn(move || {
        loop {
            let victim = reader.next(Duration::from_secs(5));
            let Some(host) = weak.upgrade() else { return };
            match victim {
                Ok(Some(victim)) => {
                    // in the cgroup2 tree the processes are in a leaf below the container's directory
                    let path = victim.cgroup.trim_matches('/').trim_end_matches("/init").to_owned();
                    let Some(rest) = path.strip_prefix(&prefix) else { continue };
                    let (id, slot) = rest.split_once('/').unwrap_or((rest, ""));
                    let message = format!("out of memory: the kernel killed {} (process {})", victim.task, victim.pid);
                    // where a program in the kernel tells of victims, each is told once
                    if host.watcher.settings.tells("oom") && !host.watcher.tells_oom() {
                        let slot = slot.strip_prefix('c').and_then(|slot| slot.split('/').next()?.parse().ok());
                        let known = slot.and_then(|slot| host.watcher.registry.last_of(id, slot));
                        let subject = Subject {
                            pod: known.as_ref().map(|identity| identity.pod.as_str()),
                            instance: Some(id),
                            container: known.as_ref().map(|identity| identity.container.as_str()),
                        };
                        host.events.publish("container-oom", subject, message);
                    }
                    host.victims.lock().unwrap_or_else(PoisonError::into_inner).insert(path, victim);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!("/dev/kmsg: {error}; victims of memory limits are reported without a name");
                    return;
                }
            }
        }
    });
    if let Err(error) = spawned {
        tracing::warn!("no thread for /dev/kmsg: {error}");
    }
}

/// The unit's cgroup, where systemd delegated it and put the daemon into `supervisor` below it (`DelegateSubgroup=`, known
/// from systemd 254 on), else the instance name. An older systemd starts the daemon in the unit's cgroup itself, which the
/// kernel refuses once controllers are handed down to pods there.
fn cgroup_parent(config: &Config) -> String {
    if std::env::var_os("INVOCATION_ID").is_some() && std::env::var_os("NOTIFY_SOCKET").is_some() {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let path = own.lines().find_map(|line| line.strip_prefix("0::/")?.strip_suffix("/supervisor"));
        if let Some(path) = path {
            return path.to_owned();
        }
    }
    config.instance.clone()
}

fn network_settings(config: &Config, layout: &Layout) -> NetworkSettings {
    let mut settings = NetworkSettings::new(config.instance.clone(), layout.network());
    let network = &config.network;
    settings.bridge.clone_from(&network.bridge);
    settings.subnet_v4 = network.subnet;
    settings.ipv6 = match network.subnet6 {
        Subnet6::Auto => Ipv6::Auto,
        Subnet6::Off => Ipv6::Off,
        Subnet6::Net(net) => Ipv6::Subnet(net),
    };
    settings.mtu = network.mtu as u32;
    settings.port_range = (network.port_range.first, network.port_range.last);
    settings.aliases.clone_from(&network.aliases);
    settings.host_access = network.host_access;
    let listeners = [config.api.addresses(), config.metrics.addresses()];
    settings.daemon_ports = listeners.iter().flatten().map(std::net::SocketAddr::port).collect();
    settings.daemon_ports.sort_unstable();
    settings.daemon_ports.dedup();
    settings.daemon_access = config.api.pods_may_connect;
    settings.allow_metadata = network.allow_metadata;
    settings.allow_inbound = network.allow_inbound;
    settings.cni_conf_dir.clone_from(&config.paths.cni_config);
    settings.cni_bin_dirs.clone_from(&config.paths.cni_plugins);
    settings.dns.nameservers.clone_from(&network.dns_servers);
    settings.dns.search.clone_from(&network.dns_search);
    settings
}

fn image_settings(config: &Config) -> agentd_images::Settings {
    let mut settings = agentd_images::Settings {
        keep_blobs: config.images.keep_blobs,
        high_watermark: config.images.high_watermark as f64 / 100.0,
        low_watermark: config.images.low_watermark as f64 / 100.0,
        auth_files: config.images.auth_file.iter().cloned().collect(),
        ..agentd_images::Settings::default()
    };
    for registry in &config.images.registries {
        if !registry.mirrors.is_empty() {
            settings.mirrors.insert(registry.host.clone(), registry.mirrors.clone());
        }
        if let Some(ca) = &registry.ca {
            settings.certificate_authorities.insert(registry.host.clone(), ca.clone());
        }
        if registry.insecure {
            settings.insecure.push(registry.host.clone());
        }
    }
    settings
}

fn fetcher_settings(config: &Config, layout: &Layout) -> agentd_fetcher::Settings {
    let mut settings = agentd_fetcher::Settings {
        file_roots: config.artifacts.file_roots.clone(),
        max_bytes: config.artifacts.max_bytes,
        timeout: Duration::from_secs(config.artifacts.timeout_seconds),
        cache: Some(agentd_fetcher::CacheSettings { folder: layout.artifacts(), max_bytes: 4 << 30 }),
        ..agentd_fetcher::Settings::default()
    };
    if config.artifacts.allow_loopback {
        let loopback = ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse::<ipnet::IpNet>().ok());
        settings.allowed_addresses.extend(loopback);
    }
    settings
}
