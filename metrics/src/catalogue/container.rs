//! What a container and a pod use, by OpenTelemetry's names and, where these have none, below `agentd.`.
//!
//! Two families serve OpenTelemetry and the dashboards of cAdvisor at once, because their Prometheus spelling is cAdvisor's
//! name for the same thing: [`MEMORY_USAGE`] and [`MEMORY_WORKING_SET`]. They stand here and not in [`super::compat`].
//!
//! The order is that in which a pod's budget of series is spent: first what every dashboard and alert asks for, last what has
//! many series.

use crate::model::{Family, Unit};

const PROCESS: Unit = Unit::Count("{process}");
const THREAD: Unit = Unit::Count("{thread}");
const SOCKET: Unit = Unit::Count("{socket}");
const CONNECTION: Unit = Unit::Count("{connection}");
const PACKET: Unit = Unit::Count("{packet}");
const OPERATION: Unit = Unit::Count("{operation}");
const PERIOD: Unit = Unit::Count("{period}");
const EVENT: Unit = Unit::Count("{event}");

families! {
    // what OpenTelemetry names
    /// CPU time.
    CPU_TIME = Family::counter(
        "container_cpu_time_seconds", "container.cpu.time", Unit::Seconds, "CPU time used, in user mode and in the kernel")
        .with(&["cpu.mode"]);
    /// Memory, also cAdvisor's name.
    MEMORY_USAGE = Family::gauge(
        "container_memory_usage_bytes", "container.memory.usage", Unit::Bytes,
        "Memory charged to the container: anonymous, page cache, kernel");
    /// Working set, also cAdvisor's name.
    MEMORY_WORKING_SET = Family::gauge(
        "container_memory_working_set_bytes", "container.memory.working_set", Unit::Bytes,
        "Memory used less the page cache that was not used of late");
    /// Available memory.
    MEMORY_AVAILABLE = Family::gauge(
        "container_memory_available_bytes", "container.memory.available", Unit::Bytes,
        "Memory limit less the working set");
    /// Anonymous memory.
    MEMORY_RSS = Family::gauge(
        "container_memory_rss_bytes", "container.memory.rss", Unit::Bytes, "Anonymous memory");
    /// Uptime.
    UPTIME = Family::gauge(
        "container_uptime_seconds", "container.uptime", Unit::Seconds,
        "Time since the container's present attempt was started");
    /// Page faults.
    PAGING_FAULTS = Family::counter(
        "container_paging_faults", "container.paging.faults", Unit::Count("{fault}"),
        "Page faults; a major one needed input from a device")
        .with(&["system.paging.fault.type"]);
    /// Disk bytes.
    DISK_IO = Family::counter(
        "container_disk_io_bytes", "container.disk.io", Unit::Bytes, "Bytes read from and written to block devices")
        .with(&["disk.io.direction", "system.device"])
        .open(&["system.device"]);
    /// Interface bytes.
    NETWORK_IO = Family::counter(
        "container_network_io_bytes", "container.network.io", Unit::Bytes,
        "Bytes through the interfaces of the pod's network namespace, which its containers share")
        .with(&["network.io.direction", "network.interface.name"])
        .open(&["network.interface.name"]);
    /// Filesystem usage.
    FILESYSTEM_USAGE = Family::gauge(
        "container_filesystem_usage_bytes", "container.filesystem.usage", Unit::Bytes,
        "Bytes that the container's writable layer takes");
    /// Filesystem capacity.
    FILESYSTEM_CAPACITY = Family::gauge(
        "container_filesystem_capacity_bytes", "container.filesystem.capacity", Unit::Bytes,
        "Limit of the container's writable layer");
    /// Filesystem available.
    FILESYSTEM_AVAILABLE = Family::gauge(
        "container_filesystem_available_bytes", "container.filesystem.available", Unit::Bytes,
        "Limit of the container's writable layer less what it takes");

    // limits, pressure, faults: what alerts ask for
    /// Memory limit.
    MEMORY_LIMIT = Family::gauge(
        "agentd_container_memory_limit_bytes", "agentd.container.memory.limit", Unit::Bytes, "Memory limit");
    /// CPU limit.
    CPU_LIMIT = Family::gauge(
        "agentd_container_cpu_limit", "agentd.container.cpu.limit", Unit::Cores, "CPUs that the quota allows");
    /// Restarts.
    RESTARTS = Family::counter(
        "agentd_container_restarts", "agentd.container.restarts", Unit::Count("{restart}"),
        "Times that the container was started again");
    /// OOM kills by the memory controller.
    OOM_KILLS = Family::counter(
        "agentd_container_oom_kills", "agentd.container.oom.kills", PROCESS,
        "Processes killed for want of memory, as the memory controller counts them");
    /// Quota periods.
    CPU_PERIODS = Family::counter(
        "agentd_container_cpu_periods", "agentd.container.cpu.periods", PERIOD,
        "Periods of the CPU quota in which the container wanted to run");
    /// Throttled periods.
    CPU_THROTTLED_PERIODS = Family::counter(
        "agentd_container_cpu_throttled_periods", "agentd.container.cpu.throttled.periods", PERIOD,
        "Periods of the CPU quota in which it was used up");
    /// Throttled time.
    CPU_THROTTLED_TIME = Family::counter(
        "agentd_container_cpu_throttled_time_seconds", "agentd.container.cpu.throttled.time", Unit::Seconds,
        "Time that run queues of the container were held back by the CPU quota, added up over CPUs");
    /// Pressure.
    PRESSURE = Family::counter(
        "agentd_container_pressure_time_seconds", "agentd.container.pressure.time", Unit::Seconds,
        "Time in which some or all tasks with work waited for a resource")
        .with(&["resource", "stall"]);
    /// Memory events.
    MEMORY_EVENTS = Family::counter(
        "agentd_container_memory_events", "agentd.container.memory.events", EVENT,
        "Times that memory came to its limit (max), passed memory.high (high), or ran out (oom)")
        .with(&["event"]);
    /// Peak memory.
    MEMORY_PEAK = Family::gauge(
        "agentd_container_memory_peak_bytes", "agentd.container.memory.peak", Unit::Bytes, "Highest memory usage so far");
    /// Swap.
    MEMORY_SWAP = Family::gauge(
        "agentd_container_memory_swap_bytes", "agentd.container.memory.swap", Unit::Bytes, "Swap used");
    /// Kinds of memory.
    MEMORY_DETAIL = Family::gauge(
        "agentd_container_memory_detail_bytes", "agentd.container.memory.detail", Unit::Bytes,
        "Memory by what it is used for; the kinds overlap")
        .with(&["kind"]);
    /// Processes.
    PROCESSES = Family::gauge(
        "agentd_container_processes", "agentd.container.processes", PROCESS,
        "Processes, those of sessions in the container included");
    /// Threads.
    THREADS = Family::gauge("agentd_container_threads", "agentd.container.threads", THREAD, "Threads");
    /// Descriptors.
    DESCRIPTORS = Family::gauge(
        "agentd_container_descriptors", "agentd.container.descriptors", Unit::Count("{descriptor}"),
        "Open descriptors of the processes that were looked at");
    /// Sockets.
    SOCKETS = Family::gauge(
        "agentd_container_sockets", "agentd.container.sockets", SOCKET,
        "Open descriptors that are sockets; missing while there are more descriptors than are looked at");
    /// Processes not looked at.
    PROCESSES_UNSEEN = Family::gauge(
        "agentd_container_processes_unseen", "agentd.container.processes.unseen", PROCESS,
        "Processes beyond the bound, whose descriptors are not counted");
    /// Huge pages.
    HUGE_PAGES = Family::gauge(
        "agentd_container_hugepages_usage_bytes", "agentd.container.hugepages.usage", Unit::Bytes, "Huge pages used")
        .with(&["page.size"]);

    // processes, as the programs in the kernel count them
    /// Execs.
    EXECS = Family::counter(
        "agentd_container_execs", "agentd.container.execs", Unit::Count("{program}"), "Programs begun");
    /// Forks.
    FORKS = Family::counter("agentd_container_forks", "agentd.container.forks", PROCESS, "Processes made");
    /// Threads made.
    THREADS_MADE = Family::counter(
        "agentd_container_threads_made", "agentd.container.threads.made", THREAD, "Threads made");
    /// Exits.
    EXITS = Family::counter(
        "agentd_container_exits", "agentd.container.exits", PROCESS, "Processes that ended, by how")
        .with(&["outcome"]);
    /// OOM victims.
    OOM_VICTIMS = Family::counter(
        "agentd_container_oom_victims", "agentd.container.oom.victims", PROCESS,
        "Processes that the kernel chose to kill for want of memory, the container's or the host's");
    /// Signals.
    SIGNALS = Family::counter(
        "agentd_container_signals", "agentd.container.signals", Unit::Count("{signal}"),
        "Signals that may end a process, sent to the container's");

    /// Events.
    EVENTS = Family::counter(
        "agentd_container_observe_events",
        "agentd.container.observe.events",
        EVENT,
        "Events of the container that the programs told the daemon",
    );

    // TCP and packets of sockets
    /// Bytes through sockets.
    SOCKET_IO = Family::counter(
        "agentd_container_network_io_bytes", "agentd.container.network.io", Unit::Bytes,
        "Bytes of packets that the container's own sockets received and sent, from the network layer's header on")
        .with(&["network.io.direction"]);
    /// Packets through sockets.
    SOCKET_PACKETS = Family::counter(
        "agentd_container_network_packets", "agentd.container.network.packets", PACKET,
        "Packets that the container's own sockets received and sent")
        .with(&["network.io.direction"]);
    /// Connects.
    TCP_CONNECTS = Family::counter(
        "agentd_container_tcp_connects", "agentd.container.tcp.connects", CONNECTION,
        "TCP connections that the container opened");
    /// Accepts.
    TCP_ACCEPTS = Family::counter(
        "agentd_container_tcp_accepts", "agentd.container.tcp.accepts", CONNECTION,
        "TCP connections that the container accepted");
    /// Closes.
    TCP_CLOSES = Family::counter(
        "agentd_container_tcp_closes", "agentd.container.tcp.closes", CONNECTION,
        "TCP connections that were established and have ended");
    /// Failed connects.
    TCP_FAILURES = Family::counter(
        "agentd_container_tcp_connect_failures", "agentd.container.tcp.connect.failures", CONNECTION,
        "TCP connects that failed, by cause")
        .with(&["error.type"]);
    /// Retransmits.
    TCP_RETRANSMITS = Family::counter(
        "agentd_container_tcp_retransmits", "agentd.container.tcp.retransmits", Unit::Count("{segment}"),
        "TCP segments sent again");
    /// Resets.
    TCP_RESETS = Family::counter(
        "agentd_container_tcp_resets", "agentd.container.tcp.resets", PACKET, "TCP resets received and sent")
        .with(&["network.io.direction"]);

    // scheduler
    /// Context switches.
    SWITCHES = Family::counter(
        "agentd_container_context_switches", "agentd.container.context_switches", Unit::Count("{switch}"),
        "Times that a task gave up its CPU by itself (voluntary) or was made to (involuntary)")
        .with(&["switch.type"]);
    /// Migrations.
    MIGRATIONS = Family::counter(
        "agentd_container_cpu_migrations", "agentd.container.cpu.migrations", Unit::Count("{migration}"),
        "Moves of tasks to another CPU");

    // block layer
    /// Bytes of block requests.
    BLOCK_IO = Family::counter(
        "agentd_container_block_io_bytes", "agentd.container.block.io", Unit::Bytes,
        "Bytes of completed block requests, on all devices")
        .with(&["disk.io.direction"]);
    /// Block requests.
    BLOCK_REQUESTS = Family::counter(
        "agentd_container_block_requests", "agentd.container.block.requests", OPERATION,
        "Completed block requests, on all devices")
        .with(&["disk.io.direction"]);
    /// Block errors.
    BLOCK_ERRORS = Family::counter(
        "agentd_container_block_errors", "agentd.container.block.errors", OPERATION,
        "Block requests that ended with an error");
    /// Block requests in flight.
    BLOCK_IN_FLIGHT = Family::gauge(
        "agentd_container_block_in_flight", "agentd.container.block.in_flight", OPERATION,
        "Block requests begun and not yet completed");
    /// Disk operations.
    DISK_OPERATIONS = Family::counter(
        "agentd_container_disk_operations", "agentd.container.disk.operations", OPERATION,
        "Reads from and writes to block devices")
        .with(&["disk.io.direction", "system.device"])
        .open(&["system.device"]);

    /// What was missed.
    MISSED = Family::counter(
        "agentd_container_observe_missed", "agentd.container.observe.missed", EVENT,
        "What the programs saw of the container and could not keep, because a map or the ring was full, or a rate limit held")
        .with(&["cause"]);

    // a pod
    /// Containers of a pod.
    POD_CONTAINERS = Family::gauge(
        "agentd_pod_containers", "agentd.pod.containers", Unit::Count("{container}"), "Containers that run in the pod");
    /// Uptime of a pod.
    POD_UPTIME = Family::gauge(
        "agentd_pod_uptime_seconds", "agentd.pod.uptime", Unit::Seconds, "Time since this instance was started");
    /// CPU time of a pod.
    POD_CPU_TIME = Family::counter(
        "agentd_pod_cpu_time_seconds", "agentd.pod.cpu.time", Unit::Seconds,
        "CPU time of all that ran in the pod, its init and containers that are gone included")
        .with(&["cpu.mode"]);
    /// Pressure on a pod.
    POD_PRESSURE = Family::counter(
        "agentd_pod_pressure_time_seconds", "agentd.pod.pressure.time", Unit::Seconds,
        "Time in which some or all tasks of the pod with work waited for a resource")
        .with(&["resource", "stall"]);
    /// Memory of a pod.
    POD_MEMORY_USAGE = Family::gauge(
        "agentd_pod_memory_usage_bytes", "agentd.pod.memory.usage", Unit::Bytes,
        "Memory of the pod's containers together");
    /// Working set of a pod.
    POD_MEMORY_WORKING_SET = Family::gauge(
        "agentd_pod_memory_working_set_bytes", "agentd.pod.memory.working_set", Unit::Bytes,
        "Working sets of the pod's containers together");
    /// Processes of a pod.
    POD_PROCESSES = Family::gauge(
        "agentd_pod_processes", "agentd.pod.processes", PROCESS, "Processes of the pod's containers together");
    /// Threads of a pod.
    POD_THREADS = Family::gauge(
        "agentd_pod_threads", "agentd.pod.threads", THREAD, "Threads of the pod's containers together");
    /// Descriptors of a pod.
    POD_DESCRIPTORS = Family::gauge(
        "agentd_pod_descriptors", "agentd.pod.descriptors", Unit::Count("{descriptor}"),
        "Open descriptors of the pod's containers together");
    /// Sockets of a pod.
    POD_SOCKETS = Family::gauge(
        "agentd_pod_sockets", "agentd.pod.sockets", SOCKET, "Sockets of the pod's network namespace; the kinds overlap")
        .with(&["kind"]);
    /// Packets through a pod's interfaces.
    POD_PACKETS = Family::counter(
        "agentd_pod_network_packets", "agentd.pod.network.packets", PACKET,
        "Packets through the interfaces of the pod's network namespace")
        .with(&["network.io.direction", "network.interface.name"])
        .open(&["network.interface.name"]);
    /// Errors of a pod's interfaces.
    POD_NETWORK_ERRORS = Family::counter(
        "agentd_pod_network_errors", "agentd.pod.network.errors", PACKET,
        "Errors of the interfaces of the pod's network namespace")
        .with(&["network.io.direction", "network.interface.name"])
        .open(&["network.interface.name"]);
    /// Drops of a pod's interfaces.
    POD_NETWORK_DROPS = Family::counter(
        "agentd_pod_network_dropped", "agentd.pod.network.dropped", PACKET,
        "Packets that the interfaces of the pod's network namespace dropped")
        .with(&["network.io.direction", "network.interface.name"])
        .open(&["network.interface.name"]);

    // histograms
    /// Run-queue latency.
    RUNQUEUE_LATENCY = Family::distribution(
        "agentd_container_runqueue_latency_seconds", "agentd.container.runqueue.latency", Unit::Seconds,
        "Time that a task waited on a run queue before it ran");
    /// Off-CPU time.
    OFF_CPU = Family::distribution(
        "agentd_container_offcpu_time_seconds", "agentd.container.offcpu.time", Unit::Seconds,
        "Time that a task was off the CPU: blocked, and then waiting to run");
    /// Block latency.
    BLOCK_LATENCY = Family::distribution(
        "agentd_container_block_latency_seconds", "agentd.container.block.latency", Unit::Seconds,
        "Time from the begin of a block request to its completion")
        .with(&["disk.io.direction"]);
    /// Round-trip times.
    TCP_RTT = Family::distribution(
        "agentd_container_tcp_rtt_seconds", "agentd.container.tcp.rtt", Unit::Seconds,
        "Round-trip times that the kernel measured on TCP connections");
    /// Connect latency.
    TCP_CONNECT_LATENCY = Family::distribution(
        "agentd_container_tcp_connect_latency_seconds", "agentd.container.tcp.connect.latency", Unit::Seconds,
        "Time from SYN to established of TCP connections that the container opened");

    // edges
    /// Connections of an edge.
    EDGE_CONNECTIONS = Family::counter(
        "agentd_pod_edge_connections", "agentd.pod.edge.connections", CONNECTION, "TCP connections made with a peer")
        .with(&["peer", "port", "direction"])
        .open(&["peer", "port"]);
    /// Failures of an edge.
    EDGE_FAILURES = Family::counter(
        "agentd_pod_edge_failures", "agentd.pod.edge.failures", CONNECTION, "TCP connects to a peer that failed")
        .with(&["peer", "port", "direction"])
        .open(&["peer", "port"]);
    /// Retransmits of an edge.
    EDGE_RETRANSMITS = Family::counter(
        "agentd_pod_edge_retransmits", "agentd.pod.edge.retransmits", Unit::Count("{segment}"),
        "TCP segments sent again to a peer")
        .with(&["peer", "port", "direction"])
        .open(&["peer", "port"]);
    /// Bytes received on an edge.
    EDGE_RECEIVED = Family::counter(
        "agentd_pod_edge_received_bytes", "agentd.pod.edge.received", Unit::Bytes,
        "Bytes received from a peer, by TCP connections that have ended")
        .with(&["peer", "port", "direction"])
        .open(&["peer", "port"]);
    /// Bytes sent on an edge.
    EDGE_SENT = Family::counter(
        "agentd_pod_edge_sent_bytes", "agentd.pod.edge.sent", Unit::Bytes,
        "Bytes sent to a peer and acknowledged, by TCP connections that have ended")
        .with(&["peer", "port", "direction"])
        .open(&["peer", "port"]);
}
