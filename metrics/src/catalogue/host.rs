//! The host by OpenTelemetry's conventions (`system.*`), and below `agentd.host.` where these have no name.
//!
//! Sources are files of the kernel below /proc and /sys; see [`crate::node`] and docs/metrics-host.md.

use crate::model::{Family, Unit};

const DISK: &[&str] = &["system.device", "disk.io.direction"];
const FILE_SYSTEM: &[&str] =
    &["system.device", "system.filesystem.mountpoint", "system.filesystem.type", "system.filesystem.mode"];
const NETWORK: &[&str] = &["network.interface.name", "network.io.direction"];

families! {
    /// Time that CPUs spent, by mode.
    CPU_TIME = Family::counter(
        "system_cpu_time_seconds", "system.cpu.time", Unit::Seconds, "Time that a CPU spent in each mode")
        .with(&["cpu.mode", "cpu.logical_number"]);
    /// Time since the host's start.
    UPTIME = Family::gauge("system_uptime_seconds", "system.uptime", Unit::Seconds, "Time since the host's start");
    /// Memory by state; the states add up to the limit.
    MEMORY_USAGE = Family::gauge("system_memory_usage_bytes", "system.memory.usage", Unit::Bytes, "Memory by state")
        .with(&["system.memory.state"]);
    /// All memory.
    MEMORY_LIMIT = Family::gauge("system_memory_limit_bytes", "system.memory.limit", Unit::Bytes, "Memory of the host");
    /// Memory to be had without swapping.
    MEMORY_AVAILABLE = Family::gauge(
        "system_memory_linux_available_bytes", "system.memory.linux.available", Unit::Bytes,
        "Memory that programs can have without swapping, as the kernel estimates it");
    /// Memory of tmpfs and shared mappings.
    MEMORY_SHARED = Family::gauge(
        "system_memory_linux_shared_bytes", "system.memory.linux.shared", Unit::Bytes,
        "Memory of tmpfs and of mappings that are shared");
    /// Memory of the kernel's caches of objects.
    MEMORY_SLAB = Family::gauge(
        "system_memory_linux_slab_usage_bytes", "system.memory.linux.slab.usage", Unit::Bytes,
        "Memory of the kernel's caches of objects")
        .with(&["system.memory.linux.slab.state"]);
    /// Huge pages of the usual size.
    HUGE_PAGES_LIMIT = Family::gauge(
        "system_memory_linux_hugepages_limit", "system.memory.linux.hugepages.limit", Unit::Count("{page}"),
        "Huge pages of the usual size that are set aside");
    /// Their use.
    HUGE_PAGES_USAGE = Family::gauge(
        "system_memory_linux_hugepages_usage", "system.memory.linux.hugepages.usage", Unit::Count("{page}"),
        "Huge pages by state")
        .with(&["system.memory.linux.hugepages.state"]);
    /// Swap by device.
    PAGING_USAGE = Family::gauge(
        "system_paging_usage_bytes", "system.paging.usage", Unit::Bytes, "Swap by device and state")
        .with(&["system.device", "system.paging.state"]);
    /// Page faults.
    PAGING_FAULTS = Family::counter(
        "system_paging_faults", "system.paging.faults", Unit::Count("{fault}"),
        "Page faults, major where a device was read")
        .with(&["system.paging.fault.type"]);
    /// Pages to and from swap.
    PAGING_OPERATIONS = Family::counter(
        "system_paging_operations", "system.paging.operations", Unit::Count("{operation}"),
        "Pages moved from and to swap")
        .with(&["system.paging.fault.type", "system.paging.direction"]);
    /// Bytes of disks.
    DISK_IO = Family::counter(
        "system_disk_io_bytes", "system.disk.io", Unit::Bytes, "Bytes read from and written to a disk")
        .with(DISK);
    /// Operations of disks.
    DISK_OPERATIONS = Family::counter(
        "system_disk_operations", "system.disk.operations", Unit::Count("{operation}"),
        "Operations that a disk completed")
        .with(DISK);
    /// Time of operations.
    DISK_OPERATION_TIME = Family::counter(
        "system_disk_operation_time_seconds", "system.disk.operation_time", Unit::Seconds,
        "Time that all operations of a disk took together")
        .with(DISK);
    /// Operations merged.
    DISK_MERGED = Family::counter(
        "system_disk_merged", "system.disk.merged", Unit::Count("{operation}"),
        "Operations merged into others before they were given to the disk")
        .with(DISK);
    /// Time in which a disk had work.
    DISK_IO_TIME = Family::counter(
        "system_disk_io_time_seconds", "system.disk.io_time", Unit::Seconds,
        "Time in which a disk had at least one operation")
        .with(&["system.device"]);
    /// Space of file systems by state; the states add up to the limit.
    FILESYSTEM_USAGE = Family::gauge(
        "system_filesystem_usage_bytes", "system.filesystem.usage", Unit::Bytes, "Space of a file system by state")
        .with(&[
            "system.device", "system.filesystem.mountpoint", "system.filesystem.type", "system.filesystem.mode",
            "system.filesystem.state",
        ]);
    /// Size of file systems.
    FILESYSTEM_LIMIT = Family::gauge(
        "system_filesystem_limit_bytes", "system.filesystem.limit", Unit::Bytes, "Size of a file system")
        .with(FILE_SYSTEM);
    /// Bytes of interfaces.
    NETWORK_IO = Family::counter(
        "system_network_io_bytes", "system.network.io", Unit::Bytes, "Bytes that an interface sent and received")
        .with(NETWORK);
    /// Packets of interfaces.
    NETWORK_PACKETS = Family::counter(
        "system_network_packet_count", "system.network.packet.count", Unit::Count("{packet}"),
        "Packets that an interface sent and received")
        .with(&["system.device", "network.io.direction"]);
    /// Packets dropped.
    NETWORK_DROPPED = Family::counter(
        "system_network_packet_dropped", "system.network.packet.dropped", Unit::Count("{packet}"),
        "Packets that an interface dropped without an error")
        .with(NETWORK);
    /// Errors of interfaces.
    NETWORK_ERRORS = Family::counter(
        "system_network_errors", "system.network.errors", Unit::Count("{error}"), "Errors of an interface")
        .with(NETWORK);
    /// Processes made.
    PROCESS_CREATED = Family::counter(
        "system_process_created", "system.process.created", Unit::Count("{process}"),
        "Processes and threads made since the host's start");
    /// Most threads.
    PROCESS_LIMIT = Family::gauge(
        "system_process_limit", "system.process.limit", Unit::Count("{thread}"), "Most processes and threads at once");
    /// Load of one minute.
    LOAD_1M = Family::gauge(
        "agentd_host_load_1m", "agentd.host.load.1m", Unit::Count("{thread}"), "Load average of one minute");
    /// Load of five minutes.
    LOAD_5M = Family::gauge(
        "agentd_host_load_5m", "agentd.host.load.5m", Unit::Count("{thread}"), "Load average of five minutes");
    /// Load of fifteen minutes.
    LOAD_15M = Family::gauge(
        "agentd_host_load_15m", "agentd.host.load.15m", Unit::Count("{thread}"), "Load average of fifteen minutes");
    /// Pressure.
    PRESSURE_TIME = Family::counter(
        "agentd_host_pressure_time_seconds", "agentd.host.pressure.time", Unit::Seconds,
        "Time in which some or all threads that had work waited for a resource")
        .with(&["agentd.pressure.resource", "agentd.pressure.kind"]);
    /// Processes killed for want of memory.
    OOM_KILLS = Family::counter(
        "agentd_host_oom_kills", "agentd.host.oom_kills", Unit::Count("{process}"),
        "Processes killed for want of memory");
    /// Interfaces without points.
    INTERFACES_OMITTED = Family::gauge(
        "agentd_host_interfaces_omitted", "agentd.host.interfaces.omitted", Unit::Count("{interface}"),
        "Interfaces without points: ends of pods' links, and those past the limit")
        .with(&["agentd.reason"]);
    /// Mounts without points.
    FILESYSTEMS_OMITTED = Family::gauge(
        "agentd_host_filesystems_omitted", "agentd.host.filesystems.omitted", Unit::Count("{filesystem}"),
        "Mounts without points: those past the limit, and those that do not answer")
        .with(&["agentd.reason"]);
}
