//! The names that dashboards for cAdvisor query, about containers and pods.
//!
//! Names, labels and units are those of cAdvisor. Two of its names stand in [`super::container`], because OpenTelemetry's
//! spelling of the same thing is the same: `container_memory_usage_bytes` and `container_memory_working_set_bytes`. What
//! differs from cAdvisor stands in docs/metrics-containers.md.

use crate::model::{Family, Kind, Unit};

/// One line for each family: kind, unit, name without `_total`, help, labels, those of them that are open. `without_total`
/// stands after the kind of counters whose name never had it.
macro_rules! names {
    ($($ident:ident = $kind:ident $($plain:ident)?, $unit:expr, $name:literal, $help:literal
        $(, $labels:expr $(, $open:expr)?)?;)*) => {
        families! {
            $(
                #[doc = $help]
                $ident = Family::common($name, Kind::$kind, $unit, $help)
                    $(.with($labels)$(.open($open))?)?$(.$plain())?;
            )*
        }
    };
}

const PERIOD: Unit = Unit::Count("{period}");
const EVENT: Unit = Unit::Count("{event}");
const PACKET: Unit = Unit::Count("{packet}");
const OPERATION: Unit = Unit::Count("{operation}");
const MICROSECOND: Unit = Unit::Count("{microsecond}");

names! {
    LAST_SEEN = Gauge, Unit::Seconds, "container_last_seen", "When the container was last read, seconds since 1970";
    START_TIME = Gauge, Unit::Seconds, "container_start_time_seconds",
        "When the container's present attempt was started, seconds since 1970";
    // processor
    CPU_USAGE = Counter, Unit::Seconds, "container_cpu_usage_seconds", "CPU time used", &["cpu"];
    CPU_USER = Counter, Unit::Seconds, "container_cpu_user_seconds", "CPU time used in user mode";
    CPU_SYSTEM = Counter, Unit::Seconds, "container_cpu_system_seconds", "CPU time used in the kernel";
    CFS_PERIODS = Counter, PERIOD, "container_cpu_cfs_periods",
        "Periods of the CPU quota in which the container wanted to run";
    CFS_THROTTLED_PERIODS = Counter, PERIOD, "container_cpu_cfs_throttled_periods",
        "Periods of the CPU quota in which it was used up";
    CFS_THROTTLED = Counter, Unit::Seconds, "container_cpu_cfs_throttled_seconds",
        "Time that run queues of the container were held back by the CPU quota, added up over CPUs";
    CFS_BURST_PERIODS = Counter, PERIOD, "container_cpu_cfs_burst_periods",
        "Periods in which more than the CPU quota was used from what was saved up";
    CFS_BURST = Counter, Unit::Seconds, "container_cpu_cfs_burst_seconds", "CPU time used beyond the quota so";
    // memory
    MEMORY_RSS = Gauge, Unit::Bytes, "container_memory_rss", "Anonymous memory";
    MEMORY_CACHE = Gauge, Unit::Bytes, "container_memory_cache", "Page cache, shared memory included";
    MEMORY_SWAP = Gauge, Unit::Bytes, "container_memory_swap", "Swap used";
    MEMORY_MAPPED_FILE = Gauge, Unit::Bytes, "container_memory_mapped_file", "Page cache that is mapped";
    MEMORY_KERNEL = Gauge, Unit::Bytes, "container_memory_kernel_usage", "Memory of the kernel for the container";
    MEMORY_MAX_USAGE = Gauge, Unit::Bytes, "container_memory_max_usage_bytes", "Highest memory usage so far";
    MEMORY_ACTIVE_FILE = Gauge, Unit::Bytes, "container_memory_total_active_file_bytes",
        "Page cache that was used more than once of late";
    MEMORY_INACTIVE_FILE = Gauge, Unit::Bytes, "container_memory_total_inactive_file_bytes",
        "Page cache that was not used of late";
    MEMORY_FAILCNT = Counter without_total, EVENT, "container_memory_failcnt", "Times that the memory limit was reached";
    MEMORY_FAILURES = Counter, Unit::Count("{fault}"), "container_memory_failures",
        "Page faults (pgfault) and those of them that needed input from a device (pgmajfault)",
        &["failure_type", "scope"];
    OOM_EVENTS = Counter, EVENT, "container_oom_events", "Processes killed for want of memory";
    HUGETLB_USAGE = Gauge, Unit::Bytes, "container_hugetlb_usage_bytes", "Huge pages used", &["pagesize"];
    HUGETLB_FAILCNT = Counter without_total, EVENT, "container_hugetlb_failcnt",
        "Times that the limit of huge pages was reached", &["pagesize"];
    // pressure
    PRESSURE_CPU_WAITING = Counter, Unit::Seconds, "container_pressure_cpu_waiting_seconds",
        "Time in which at least one task waited for a CPU";
    PRESSURE_CPU_STALLED = Counter, Unit::Seconds, "container_pressure_cpu_stalled_seconds",
        "Time in which all tasks that had work waited for a CPU";
    PRESSURE_MEMORY_WAITING = Counter, Unit::Seconds, "container_pressure_memory_waiting_seconds",
        "Time in which at least one task waited for memory";
    PRESSURE_MEMORY_STALLED = Counter, Unit::Seconds, "container_pressure_memory_stalled_seconds",
        "Time in which all tasks that had work waited for memory";
    PRESSURE_IO_WAITING = Counter, Unit::Seconds, "container_pressure_io_waiting_seconds",
        "Time in which at least one task waited for input or output";
    PRESSURE_IO_STALLED = Counter, Unit::Seconds, "container_pressure_io_stalled_seconds",
        "Time in which all tasks that had work waited for input or output";
    // processes
    PROCESSES = Gauge, Unit::Count("{process}"), "container_processes", "Processes";
    THREADS = Gauge, Unit::Count("{thread}"), "container_threads", "Threads";
    THREADS_MAX = Gauge, Unit::Count("{thread}"), "container_threads_max", "Most threads allowed, 0 for no limit";
    FILE_DESCRIPTORS = Gauge, Unit::Count("{descriptor}"), "container_file_descriptors",
        "Open descriptors of the processes that were looked at";
    SOCKETS = Gauge, Unit::Count("{socket}"), "container_sockets", "Open descriptors that are sockets";
    // limits
    SPEC_CPU_PERIOD = Gauge, MICROSECOND, "container_spec_cpu_period", "Period of the CPU quota, microseconds";
    SPEC_CPU_QUOTA = Gauge, MICROSECOND, "container_spec_cpu_quota", "CPU quota in each period, microseconds";
    SPEC_CPU_SHARES = Gauge, Unit::Count("{share}"), "container_spec_cpu_shares", "CPU shares, 1024 for one CPU";
    SPEC_MEMORY_LIMIT = Gauge, Unit::Bytes, "container_spec_memory_limit_bytes", "Memory limit";
    SPEC_MEMORY_SWAP_LIMIT = Gauge, Unit::Bytes, "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap together";
    SPEC_MEMORY_RESERVATION = Gauge, Unit::Bytes, "container_spec_memory_reservation_limit_bytes",
        "Memory that is left to the container when the host is short";
    // disk
    FS_USAGE = Gauge, Unit::Bytes, "container_fs_usage_bytes", "Bytes that the container's writable layer takes",
        &["device"];
    FS_LIMIT = Gauge, Unit::Bytes, "container_fs_limit_bytes", "Limit of the container's writable layer", &["device"];
    FS_READS_BYTES = Counter, Unit::Bytes, "container_fs_reads_bytes", "Bytes read from a block device",
        &["device"], &["device"];
    FS_WRITES_BYTES = Counter, Unit::Bytes, "container_fs_writes_bytes", "Bytes written to a block device",
        &["device"], &["device"];
    FS_READS = Counter, OPERATION, "container_fs_reads", "Reads from a block device", &["device"], &["device"];
    FS_WRITES = Counter, OPERATION, "container_fs_writes", "Writes to a block device", &["device"], &["device"];
    // network of a pod
    NETWORK_RECEIVE_BYTES = Counter, Unit::Bytes, "container_network_receive_bytes", "Bytes received",
        &["interface"], &["interface"];
    NETWORK_TRANSMIT_BYTES = Counter, Unit::Bytes, "container_network_transmit_bytes", "Bytes sent",
        &["interface"], &["interface"];
    NETWORK_RECEIVE_PACKETS = Counter, PACKET, "container_network_receive_packets", "Packets received",
        &["interface"], &["interface"];
    NETWORK_TRANSMIT_PACKETS = Counter, PACKET, "container_network_transmit_packets", "Packets sent",
        &["interface"], &["interface"];
    NETWORK_RECEIVE_ERRORS = Counter, PACKET, "container_network_receive_errors", "Errors while receiving",
        &["interface"], &["interface"];
    NETWORK_TRANSMIT_ERRORS = Counter, PACKET, "container_network_transmit_errors", "Errors while sending",
        &["interface"], &["interface"];
    NETWORK_RECEIVE_DROPPED = Counter, PACKET, "container_network_receive_packets_dropped",
        "Packets dropped while receiving", &["interface"], &["interface"];
    NETWORK_TRANSMIT_DROPPED = Counter, PACKET, "container_network_transmit_packets_dropped",
        "Packets dropped while sending", &["interface"], &["interface"];
}
