//! The names that dashboards for Prometheus's node_exporter query, and two of cAdvisor's about the whole machine.
//!
//! Names, labels and units are those of node_exporter; what differs stands in docs/metrics-host.md. Names that have the
//! field of a kernel's file in them are found by that field: [`find`].

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::model::{Family, Kind, Unit};

/// For each family its kind, unit, name without `_total`, help and labels. `without_total` stands after the kind of
/// counters whose name never had it.
macro_rules! names {
    ($($ident:ident = $kind:ident $($plain:ident)?, $unit:expr, $name:literal, $help:literal $(, $labels:expr)?;)*) => {
        families! {
            $(
                #[doc = $help]
                $ident = Family::common($name, Kind::$kind, $unit, $help)$(.with($labels))?$(.$plain())?;
            )*
        }
    };
}

/// The family with this name in Prometheus's spelling, without `_total`.
pub fn find(name: &str) -> Option<&'static Family> {
    static BY_NAME: LazyLock<HashMap<&'static str, &'static Family>> =
        LazyLock::new(|| ALL.iter().map(|family| (family.name, *family)).collect());
    BY_NAME.get(name).copied()
}

names! {
    // processor
    CPU_SECONDS = Counter, Unit::Seconds, "node_cpu_seconds", "Time that a CPU spent in each mode", &["cpu", "mode"];
    CPU_GUEST_SECONDS = Counter, Unit::Seconds, "node_cpu_guest_seconds",
        "Time that a CPU spent in guests, also part of its user and nice time", &["cpu", "mode"];
    CONTEXT_SWITCHES = Counter, Unit::Count("{switch}"), "node_context_switches",
        "Context switches since the host's start";
    FORKS = Counter, Unit::Count("{process}"), "node_forks", "Processes and threads made since the host's start";
    INTR = Counter, Unit::Count("{interrupt}"), "node_intr", "Interrupts served since the host's start";
    BOOT_TIME = Gauge, Unit::Seconds, "node_boot_time_seconds", "Start of the host, seconds since 1970";
    PROCS_RUNNING = Gauge, Unit::Count("{process}"), "node_procs_running", "Threads that run or could run";
    PROCS_BLOCKED = Gauge, Unit::Count("{process}"), "node_procs_blocked", "Threads that wait for block devices";
    LOAD1 = Gauge, Unit::Count("{process}"), "node_load1", "Load average of one minute";
    LOAD5 = Gauge, Unit::Count("{process}"), "node_load5", "Load average of five minutes";
    LOAD15 = Gauge, Unit::Count("{process}"), "node_load15", "Load average of fifteen minutes";
    // pressure
    PRESSURE_CPU_WAITING = Counter, Unit::Seconds, "node_pressure_cpu_waiting_seconds",
        "Time in which at least one thread waited for a CPU";
    PRESSURE_IO_WAITING = Counter, Unit::Seconds, "node_pressure_io_waiting_seconds",
        "Time in which at least one thread waited for input or output";
    PRESSURE_IO_STALLED = Counter, Unit::Seconds, "node_pressure_io_stalled_seconds",
        "Time in which all threads that had work waited for input or output";
    PRESSURE_MEMORY_WAITING = Counter, Unit::Seconds, "node_pressure_memory_waiting_seconds",
        "Time in which at least one thread waited for memory";
    PRESSURE_MEMORY_STALLED = Counter, Unit::Seconds, "node_pressure_memory_stalled_seconds",
        "Time in which all threads that had work waited for memory";
    PRESSURE_IRQ_STALLED = Counter, Unit::Seconds, "node_pressure_irq_stalled_seconds",
        "Time in which all threads that had work waited for interrupts to be served";
    // the whole machine, by the names of cAdvisor
    MACHINE_CPU_CORES = Gauge, Unit::Cores, "machine_cpu_cores", "Online logical CPUs";
    MACHINE_MEMORY_BYTES = Gauge, Unit::Bytes, "machine_memory_bytes", "Memory of the host";
    // memory
    MEMORY_MEM_TOTAL = Gauge, Unit::Bytes, "node_memory_MemTotal_bytes", "`MemTotal` of /proc/meminfo";
    MEMORY_MEM_FREE = Gauge, Unit::Bytes, "node_memory_MemFree_bytes", "`MemFree` of /proc/meminfo";
    MEMORY_MEM_AVAILABLE = Gauge, Unit::Bytes, "node_memory_MemAvailable_bytes", "`MemAvailable` of /proc/meminfo";
    MEMORY_BUFFERS = Gauge, Unit::Bytes, "node_memory_Buffers_bytes", "`Buffers` of /proc/meminfo";
    MEMORY_CACHED = Gauge, Unit::Bytes, "node_memory_Cached_bytes", "`Cached` of /proc/meminfo";
    MEMORY_SWAP_CACHED = Gauge, Unit::Bytes, "node_memory_SwapCached_bytes", "`SwapCached` of /proc/meminfo";
    MEMORY_ACTIVE = Gauge, Unit::Bytes, "node_memory_Active_bytes", "`Active` of /proc/meminfo";
    MEMORY_INACTIVE = Gauge, Unit::Bytes, "node_memory_Inactive_bytes", "`Inactive` of /proc/meminfo";
    MEMORY_ACTIVE_ANON = Gauge, Unit::Bytes, "node_memory_Active_anon_bytes", "`Active(anon)` of /proc/meminfo";
    MEMORY_INACTIVE_ANON = Gauge, Unit::Bytes, "node_memory_Inactive_anon_bytes", "`Inactive(anon)` of /proc/meminfo";
    MEMORY_ACTIVE_FILE = Gauge, Unit::Bytes, "node_memory_Active_file_bytes", "`Active(file)` of /proc/meminfo";
    MEMORY_INACTIVE_FILE = Gauge, Unit::Bytes, "node_memory_Inactive_file_bytes", "`Inactive(file)` of /proc/meminfo";
    MEMORY_UNEVICTABLE = Gauge, Unit::Bytes, "node_memory_Unevictable_bytes", "`Unevictable` of /proc/meminfo";
    MEMORY_MLOCKED = Gauge, Unit::Bytes, "node_memory_Mlocked_bytes", "`Mlocked` of /proc/meminfo";
    MEMORY_HIGH_TOTAL = Gauge, Unit::Bytes, "node_memory_HighTotal_bytes", "`HighTotal` of /proc/meminfo";
    MEMORY_HIGH_FREE = Gauge, Unit::Bytes, "node_memory_HighFree_bytes", "`HighFree` of /proc/meminfo";
    MEMORY_LOW_TOTAL = Gauge, Unit::Bytes, "node_memory_LowTotal_bytes", "`LowTotal` of /proc/meminfo";
    MEMORY_LOW_FREE = Gauge, Unit::Bytes, "node_memory_LowFree_bytes", "`LowFree` of /proc/meminfo";
    MEMORY_MMAP_COPY = Gauge, Unit::Bytes, "node_memory_MmapCopy_bytes", "`MmapCopy` of /proc/meminfo";
    MEMORY_SWAP_TOTAL = Gauge, Unit::Bytes, "node_memory_SwapTotal_bytes", "`SwapTotal` of /proc/meminfo";
    MEMORY_SWAP_FREE = Gauge, Unit::Bytes, "node_memory_SwapFree_bytes", "`SwapFree` of /proc/meminfo";
    MEMORY_ZSWAP = Gauge, Unit::Bytes, "node_memory_Zswap_bytes", "`Zswap` of /proc/meminfo";
    MEMORY_ZSWAPPED = Gauge, Unit::Bytes, "node_memory_Zswapped_bytes", "`Zswapped` of /proc/meminfo";
    MEMORY_DIRTY = Gauge, Unit::Bytes, "node_memory_Dirty_bytes", "`Dirty` of /proc/meminfo";
    MEMORY_WRITEBACK = Gauge, Unit::Bytes, "node_memory_Writeback_bytes", "`Writeback` of /proc/meminfo";
    MEMORY_ANON_PAGES = Gauge, Unit::Bytes, "node_memory_AnonPages_bytes", "`AnonPages` of /proc/meminfo";
    MEMORY_MAPPED = Gauge, Unit::Bytes, "node_memory_Mapped_bytes", "`Mapped` of /proc/meminfo";
    MEMORY_SHMEM = Gauge, Unit::Bytes, "node_memory_Shmem_bytes", "`Shmem` of /proc/meminfo";
    MEMORY_K_RECLAIMABLE = Gauge, Unit::Bytes, "node_memory_KReclaimable_bytes", "`KReclaimable` of /proc/meminfo";
    MEMORY_SLAB = Gauge, Unit::Bytes, "node_memory_Slab_bytes", "`Slab` of /proc/meminfo";
    MEMORY_S_RECLAIMABLE = Gauge, Unit::Bytes, "node_memory_SReclaimable_bytes", "`SReclaimable` of /proc/meminfo";
    MEMORY_S_UNRECLAIM = Gauge, Unit::Bytes, "node_memory_SUnreclaim_bytes", "`SUnreclaim` of /proc/meminfo";
    MEMORY_KERNEL_STACK = Gauge, Unit::Bytes, "node_memory_KernelStack_bytes", "`KernelStack` of /proc/meminfo";
    MEMORY_SHADOW_CALL_STACK = Gauge, Unit::Bytes, "node_memory_ShadowCallStack_bytes",
        "`ShadowCallStack` of /proc/meminfo";
    MEMORY_PAGE_TABLES = Gauge, Unit::Bytes, "node_memory_PageTables_bytes", "`PageTables` of /proc/meminfo";
    MEMORY_SEC_PAGE_TABLES = Gauge, Unit::Bytes, "node_memory_SecPageTables_bytes", "`SecPageTables` of /proc/meminfo";
    MEMORY_NFS_UNSTABLE = Gauge, Unit::Bytes, "node_memory_NFS_Unstable_bytes", "`NFS_Unstable` of /proc/meminfo";
    MEMORY_BOUNCE = Gauge, Unit::Bytes, "node_memory_Bounce_bytes", "`Bounce` of /proc/meminfo";
    MEMORY_WRITEBACK_TMP = Gauge, Unit::Bytes, "node_memory_WritebackTmp_bytes", "`WritebackTmp` of /proc/meminfo";
    MEMORY_COMMIT_LIMIT = Gauge, Unit::Bytes, "node_memory_CommitLimit_bytes", "`CommitLimit` of /proc/meminfo";
    MEMORY_COMMITTED_AS = Gauge, Unit::Bytes, "node_memory_Committed_AS_bytes", "`Committed_AS` of /proc/meminfo";
    MEMORY_VMALLOC_TOTAL = Gauge, Unit::Bytes, "node_memory_VmallocTotal_bytes", "`VmallocTotal` of /proc/meminfo";
    MEMORY_VMALLOC_USED = Gauge, Unit::Bytes, "node_memory_VmallocUsed_bytes", "`VmallocUsed` of /proc/meminfo";
    MEMORY_VMALLOC_CHUNK = Gauge, Unit::Bytes, "node_memory_VmallocChunk_bytes", "`VmallocChunk` of /proc/meminfo";
    MEMORY_PERCPU = Gauge, Unit::Bytes, "node_memory_Percpu_bytes", "`Percpu` of /proc/meminfo";
    MEMORY_EARLY_MEMTEST_BAD = Gauge, Unit::Bytes, "node_memory_EarlyMemtestBad_bytes",
        "`EarlyMemtestBad` of /proc/meminfo";
    MEMORY_HARDWARE_CORRUPTED = Gauge, Unit::Bytes, "node_memory_HardwareCorrupted_bytes",
        "`HardwareCorrupted` of /proc/meminfo";
    MEMORY_ANON_HUGE_PAGES = Gauge, Unit::Bytes, "node_memory_AnonHugePages_bytes", "`AnonHugePages` of /proc/meminfo";
    MEMORY_SHMEM_HUGE_PAGES = Gauge, Unit::Bytes, "node_memory_ShmemHugePages_bytes",
        "`ShmemHugePages` of /proc/meminfo";
    MEMORY_SHMEM_PMD_MAPPED = Gauge, Unit::Bytes, "node_memory_ShmemPmdMapped_bytes",
        "`ShmemPmdMapped` of /proc/meminfo";
    MEMORY_FILE_HUGE_PAGES = Gauge, Unit::Bytes, "node_memory_FileHugePages_bytes", "`FileHugePages` of /proc/meminfo";
    MEMORY_FILE_PMD_MAPPED = Gauge, Unit::Bytes, "node_memory_FilePmdMapped_bytes", "`FilePmdMapped` of /proc/meminfo";
    MEMORY_CMA_TOTAL = Gauge, Unit::Bytes, "node_memory_CmaTotal_bytes", "`CmaTotal` of /proc/meminfo";
    MEMORY_CMA_FREE = Gauge, Unit::Bytes, "node_memory_CmaFree_bytes", "`CmaFree` of /proc/meminfo";
    MEMORY_UNACCEPTED = Gauge, Unit::Bytes, "node_memory_Unaccepted_bytes", "`Unaccepted` of /proc/meminfo";
    MEMORY_BALLOON = Gauge, Unit::Bytes, "node_memory_Balloon_bytes", "`Balloon` of /proc/meminfo";
    MEMORY_GPU_ACTIVE = Gauge, Unit::Bytes, "node_memory_GPUActive_bytes", "`GPUActive` of /proc/meminfo";
    MEMORY_GPU_RECLAIM = Gauge, Unit::Bytes, "node_memory_GPUReclaim_bytes", "`GPUReclaim` of /proc/meminfo";
    MEMORY_HUGEPAGESIZE = Gauge, Unit::Bytes, "node_memory_Hugepagesize_bytes", "`Hugepagesize` of /proc/meminfo";
    MEMORY_HUGETLB = Gauge, Unit::Bytes, "node_memory_Hugetlb_bytes", "`Hugetlb` of /proc/meminfo";
    MEMORY_DIRECT_MAP_4K = Gauge, Unit::Bytes, "node_memory_DirectMap4k_bytes", "`DirectMap4k` of /proc/meminfo";
    MEMORY_DIRECT_MAP_2M = Gauge, Unit::Bytes, "node_memory_DirectMap2M_bytes", "`DirectMap2M` of /proc/meminfo";
    MEMORY_DIRECT_MAP_4M = Gauge, Unit::Bytes, "node_memory_DirectMap4M_bytes", "`DirectMap4M` of /proc/meminfo";
    MEMORY_DIRECT_MAP_1G = Gauge, Unit::Bytes, "node_memory_DirectMap1G_bytes", "`DirectMap1G` of /proc/meminfo";
    MEMORY_HUGE_PAGES_TOTAL = Gauge, Unit::Count("{page}"), "node_memory_HugePages_Total",
        "`HugePages_Total` of /proc/meminfo: huge pages of the usual size";
    MEMORY_HUGE_PAGES_FREE = Gauge, Unit::Count("{page}"), "node_memory_HugePages_Free",
        "`HugePages_Free` of /proc/meminfo: huge pages of the usual size";
    MEMORY_HUGE_PAGES_RSVD = Gauge, Unit::Count("{page}"), "node_memory_HugePages_Rsvd",
        "`HugePages_Rsvd` of /proc/meminfo: huge pages of the usual size";
    MEMORY_HUGE_PAGES_SURP = Gauge, Unit::Count("{page}"), "node_memory_HugePages_Surp",
        "`HugePages_Surp` of /proc/meminfo: huge pages of the usual size";
    // paging
    VMSTAT_OOM_KILL = Counter without_total, Unit::Count("{process}"), "node_vmstat_oom_kill",
        "Processes killed for want of memory (`oom_kill` of /proc/vmstat)";
    VMSTAT_PGPGIN = Counter without_total, Unit::Count("{KiBy}"), "node_vmstat_pgpgin",
        "KiB read from block devices (`pgpgin` of /proc/vmstat)";
    VMSTAT_PGPGOUT = Counter without_total, Unit::Count("{KiBy}"), "node_vmstat_pgpgout",
        "KiB written to block devices (`pgpgout` of /proc/vmstat)";
    VMSTAT_PSWPIN = Counter without_total, Unit::Count("{page}"), "node_vmstat_pswpin",
        "Pages read from swap (`pswpin` of /proc/vmstat)";
    VMSTAT_PSWPOUT = Counter without_total, Unit::Count("{page}"), "node_vmstat_pswpout",
        "Pages written to swap (`pswpout` of /proc/vmstat)";
    VMSTAT_PGFAULT = Counter without_total, Unit::Count("{fault}"), "node_vmstat_pgfault",
        "Page faults (`pgfault` of /proc/vmstat)";
    VMSTAT_PGMAJFAULT = Counter without_total, Unit::Count("{fault}"), "node_vmstat_pgmajfault",
        "Page faults that had to read from a device (`pgmajfault` of /proc/vmstat)";
    // disks
    DISK_READS_COMPLETED = Counter, Unit::Count("{operation}"), "node_disk_reads_completed",
        "Reads completed", &["device"];
    DISK_READS_MERGED = Counter, Unit::Count("{operation}"), "node_disk_reads_merged",
        "Reads merged into others before they were given to the device", &["device"];
    DISK_READ_BYTES = Counter, Unit::Bytes, "node_disk_read_bytes", "Bytes read", &["device"];
    DISK_READ_TIME = Counter, Unit::Seconds, "node_disk_read_time_seconds",
        "Time that all reads took together", &["device"];
    DISK_WRITES_COMPLETED = Counter, Unit::Count("{operation}"), "node_disk_writes_completed",
        "Writes completed", &["device"];
    DISK_WRITES_MERGED = Counter, Unit::Count("{operation}"), "node_disk_writes_merged",
        "Writes merged into others before they were given to the device", &["device"];
    DISK_WRITTEN_BYTES = Counter, Unit::Bytes, "node_disk_written_bytes", "Bytes written", &["device"];
    DISK_WRITE_TIME = Counter, Unit::Seconds, "node_disk_write_time_seconds",
        "Time that all writes took together", &["device"];
    DISK_IO_NOW = Gauge, Unit::Count("{operation}"), "node_disk_io_now", "Operations under way", &["device"];
    DISK_IO_TIME = Counter, Unit::Seconds, "node_disk_io_time_seconds",
        "Time in which at least one operation was under way", &["device"];
    DISK_IO_TIME_WEIGHTED = Counter, Unit::Seconds, "node_disk_io_time_weighted_seconds",
        "Time in which operations were under way, times how many", &["device"];
    DISK_DISCARDS_COMPLETED = Counter, Unit::Count("{operation}"), "node_disk_discards_completed",
        "Discards completed", &["device"];
    DISK_DISCARDS_MERGED = Counter, Unit::Count("{operation}"), "node_disk_discards_merged",
        "Discards merged into others", &["device"];
    DISK_DISCARDED_SECTORS = Counter, Unit::Count("{sector}"), "node_disk_discarded_sectors",
        "Sectors of 512 bytes discarded", &["device"];
    DISK_DISCARD_TIME = Counter, Unit::Seconds, "node_disk_discard_time_seconds",
        "Time that all discards took together", &["device"];
    DISK_FLUSH_REQUESTS = Counter, Unit::Count("{operation}"), "node_disk_flush_requests",
        "Flushes completed", &["device"];
    DISK_FLUSH_REQUESTS_TIME = Counter, Unit::Seconds, "node_disk_flush_requests_time_seconds",
        "Time that all flushes took together", &["device"];
    // file systems
    FILESYSTEM_SIZE = Gauge, Unit::Bytes, "node_filesystem_size_bytes", "Size", &["device", "fstype", "mountpoint"];
    FILESYSTEM_FREE = Gauge, Unit::Bytes, "node_filesystem_free_bytes",
        "Free space, what is kept for root included", &["device", "fstype", "mountpoint"];
    FILESYSTEM_AVAIL = Gauge, Unit::Bytes, "node_filesystem_avail_bytes",
        "Free space for programs without privilege", &["device", "fstype", "mountpoint"];
    FILESYSTEM_FILES = Gauge, Unit::Count("{inode}"), "node_filesystem_files",
        "Most files and folders that it can hold", &["device", "fstype", "mountpoint"];
    FILESYSTEM_FILES_FREE = Gauge, Unit::Count("{inode}"), "node_filesystem_files_free",
        "Files and folders that can still be made", &["device", "fstype", "mountpoint"];
    FILESYSTEM_READONLY = Gauge, Unit::Count("{bool}"), "node_filesystem_readonly",
        "1 where it is mounted read-only", &["device", "fstype", "mountpoint"];
    FILESYSTEM_DEVICE_ERROR = Gauge, Unit::Count("{bool}"), "node_filesystem_device_error",
        "1 where it could not be asked, or does not answer", &["device", "fstype", "mountpoint"];
    // network interfaces
    NETWORK_RECEIVE_BYTES = Counter, Unit::Bytes, "node_network_receive_bytes", "Bytes received", &["device"];
    NETWORK_RECEIVE_PACKETS = Counter, Unit::Count("{packet}"), "node_network_receive_packets",
        "Packets received", &["device"];
    NETWORK_RECEIVE_ERRS = Counter, Unit::Count("{packet}"), "node_network_receive_errs",
        "Errors of packets received", &["device"];
    NETWORK_RECEIVE_DROP = Counter, Unit::Count("{packet}"), "node_network_receive_drop",
        "Packets dropped that were being received", &["device"];
    NETWORK_RECEIVE_FIFO = Counter, Unit::Count("{packet}"), "node_network_receive_fifo",
        "Overruns of the device's queue", &["device"];
    NETWORK_RECEIVE_FRAME = Counter, Unit::Count("{packet}"), "node_network_receive_frame",
        "Framing errors", &["device"];
    NETWORK_RECEIVE_COMPRESSED = Counter, Unit::Count("{packet}"), "node_network_receive_compressed",
        "Compressed packets received", &["device"];
    NETWORK_RECEIVE_MULTICAST = Counter, Unit::Count("{packet}"), "node_network_receive_multicast",
        "Multicast packets received", &["device"];
    NETWORK_TRANSMIT_BYTES = Counter, Unit::Bytes, "node_network_transmit_bytes", "Bytes sent", &["device"];
    NETWORK_TRANSMIT_PACKETS = Counter, Unit::Count("{packet}"), "node_network_transmit_packets",
        "Packets sent", &["device"];
    NETWORK_TRANSMIT_ERRS = Counter, Unit::Count("{packet}"), "node_network_transmit_errs",
        "Errors of packets sent", &["device"];
    NETWORK_TRANSMIT_DROP = Counter, Unit::Count("{packet}"), "node_network_transmit_drop",
        "Packets dropped that were being sent", &["device"];
    NETWORK_TRANSMIT_FIFO = Counter, Unit::Count("{packet}"), "node_network_transmit_fifo",
        "Overruns of the device's queue", &["device"];
    NETWORK_TRANSMIT_COLLS = Counter, Unit::Count("{packet}"), "node_network_transmit_colls", "Collisions", &["device"];
    NETWORK_TRANSMIT_CARRIER = Counter, Unit::Count("{packet}"), "node_network_transmit_carrier",
        "Losses of carrier while sending", &["device"];
    NETWORK_TRANSMIT_COMPRESSED = Counter, Unit::Count("{packet}"), "node_network_transmit_compressed",
        "Compressed packets sent", &["device"];
    NETWORK_RECEIVE_NOHANDLER = Counter, Unit::Count("{packet}"), "node_network_receive_nohandler",
        "Packets received on an inactive interface", &["device"];
    NETWORK_UP = Gauge, Unit::Count("{bool}"), "node_network_up", "1 where the interface's state is `up`", &["device"];
    NETWORK_INFO = Gauge, Unit::Count("{bool}"), "node_network_info",
        "What an interface is; always 1",
        &["device", "address", "broadcast", "duplex", "operstate", "adminstate", "ifalias"];
    NETWORK_MTU_BYTES = Gauge, Unit::Bytes, "node_network_mtu_bytes", "Largest packet", &["device"];
    NETWORK_SPEED_BYTES = Gauge, Unit::Bytes, "node_network_speed_bytes",
        "Speed in bytes for each second, where the device knows it", &["device"];
    NETWORK_CARRIER = Gauge, Unit::Count("{bool}"), "node_network_carrier", "1 where there is a carrier", &["device"];
    NETWORK_CARRIER_CHANGES = Counter, Unit::Count("{change}"), "node_network_carrier_changes",
        "Changes of the carrier", &["device"];
    NETWORK_CARRIER_UP_CHANGES = Counter, Unit::Count("{change}"), "node_network_carrier_up_changes",
        "Times that the carrier came", &["device"];
    NETWORK_CARRIER_DOWN_CHANGES = Counter, Unit::Count("{change}"), "node_network_carrier_down_changes",
        "Times that the carrier went", &["device"];
    NETWORK_DORMANT = Gauge, Unit::Count("{bool}"), "node_network_dormant",
        "1 where the interface waits for something outside", &["device"];
    NETWORK_FLAGS = Gauge, Unit::Count("{bitmask}"), "node_network_flags",
        "Flags of the interface (`IFF_`)", &["device"];
    NETWORK_IFACE_ID = Gauge, Unit::Count("{number}"), "node_network_iface_id", "Number of the interface", &["device"];
    NETWORK_IFACE_LINK = Gauge, Unit::Count("{number}"), "node_network_iface_link",
        "Number of the interface below", &["device"];
    NETWORK_PROTOCOL_TYPE = Gauge, Unit::Count("{number}"), "node_network_protocol_type",
        "Kind of the link (`ARPHRD_`)", &["device"];
    NETWORK_TRANSMIT_QUEUE_LENGTH = Gauge, Unit::Count("{packet}"), "node_network_transmit_queue_length",
        "Room of the queue of packets to be sent", &["device"];
    // protocols
    NETSTAT_IP_FORWARDING = Gauge, Unit::Count("{bool}"), "node_netstat_Ip_Forwarding",
        "`Forwarding` of `Ip` in /proc/net/snmp";
    NETSTAT_IPEXT_IN_OCTETS = Counter without_total, Unit::Bytes, "node_netstat_IpExt_InOctets",
        "`InOctets` of `IpExt` in /proc/net/netstat";
    NETSTAT_IPEXT_OUT_OCTETS = Counter without_total, Unit::Bytes, "node_netstat_IpExt_OutOctets",
        "`OutOctets` of `IpExt` in /proc/net/netstat";
    NETSTAT_IP6_IN_OCTETS = Counter without_total, Unit::Bytes, "node_netstat_Ip6_InOctets",
        "`InOctets` of `Ip6` in /proc/net/snmp6";
    NETSTAT_IP6_OUT_OCTETS = Counter without_total, Unit::Bytes, "node_netstat_Ip6_OutOctets",
        "`OutOctets` of `Ip6` in /proc/net/snmp6";
    NETSTAT_ICMP_IN_MSGS = Counter without_total, Unit::Count("{event}"), "node_netstat_Icmp_InMsgs",
        "`InMsgs` of `Icmp` in /proc/net/snmp";
    NETSTAT_ICMP_OUT_MSGS = Counter without_total, Unit::Count("{event}"), "node_netstat_Icmp_OutMsgs",
        "`OutMsgs` of `Icmp` in /proc/net/snmp";
    NETSTAT_ICMP_IN_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_Icmp_InErrors",
        "`InErrors` of `Icmp` in /proc/net/snmp";
    NETSTAT_ICMP6_IN_MSGS = Counter without_total, Unit::Count("{event}"), "node_netstat_Icmp6_InMsgs",
        "`InMsgs` of `Icmp6` in /proc/net/snmp6";
    NETSTAT_ICMP6_OUT_MSGS = Counter without_total, Unit::Count("{event}"), "node_netstat_Icmp6_OutMsgs",
        "`OutMsgs` of `Icmp6` in /proc/net/snmp6";
    NETSTAT_ICMP6_IN_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_Icmp6_InErrors",
        "`InErrors` of `Icmp6` in /proc/net/snmp6";
    NETSTAT_TCP_ACTIVE_OPENS = Counter without_total, Unit::Count("{event}"), "node_netstat_Tcp_ActiveOpens",
        "`ActiveOpens` of `Tcp` in /proc/net/snmp";
    NETSTAT_TCP_PASSIVE_OPENS = Counter without_total, Unit::Count("{event}"), "node_netstat_Tcp_PassiveOpens",
        "`PassiveOpens` of `Tcp` in /proc/net/snmp";
    NETSTAT_TCP_CURR_ESTAB = Gauge, Unit::Count("{connection}"), "node_netstat_Tcp_CurrEstab",
        "`CurrEstab` of `Tcp` in /proc/net/snmp";
    NETSTAT_TCP_IN_SEGS = Counter without_total, Unit::Count("{event}"), "node_netstat_Tcp_InSegs",
        "`InSegs` of `Tcp` in /proc/net/snmp";
    NETSTAT_TCP_OUT_SEGS = Counter without_total, Unit::Count("{event}"), "node_netstat_Tcp_OutSegs",
        "`OutSegs` of `Tcp` in /proc/net/snmp";
    NETSTAT_TCP_RETRANS_SEGS = Counter without_total, Unit::Count("{event}"), "node_netstat_Tcp_RetransSegs",
        "`RetransSegs` of `Tcp` in /proc/net/snmp";
    NETSTAT_TCP_IN_ERRS = Counter without_total, Unit::Count("{event}"), "node_netstat_Tcp_InErrs",
        "`InErrs` of `Tcp` in /proc/net/snmp";
    NETSTAT_TCP_OUT_RSTS = Counter without_total, Unit::Count("{event}"), "node_netstat_Tcp_OutRsts",
        "`OutRsts` of `Tcp` in /proc/net/snmp";
    NETSTAT_TCPEXT_LISTEN_DROPS = Counter without_total, Unit::Count("{event}"), "node_netstat_TcpExt_ListenDrops",
        "`ListenDrops` of `TcpExt` in /proc/net/netstat";
    NETSTAT_TCPEXT_LISTEN_OVERFLOWS = Counter without_total, Unit::Count("{event}"),
        "node_netstat_TcpExt_ListenOverflows", "`ListenOverflows` of `TcpExt` in /proc/net/netstat";
    NETSTAT_TCPEXT_SYNCOOKIES_FAILED = Counter without_total, Unit::Count("{event}"),
        "node_netstat_TcpExt_SyncookiesFailed", "`SyncookiesFailed` of `TcpExt` in /proc/net/netstat";
    NETSTAT_TCPEXT_SYNCOOKIES_RECV = Counter without_total, Unit::Count("{event}"),
        "node_netstat_TcpExt_SyncookiesRecv", "`SyncookiesRecv` of `TcpExt` in /proc/net/netstat";
    NETSTAT_TCPEXT_SYNCOOKIES_SENT = Counter without_total, Unit::Count("{event}"),
        "node_netstat_TcpExt_SyncookiesSent", "`SyncookiesSent` of `TcpExt` in /proc/net/netstat";
    NETSTAT_TCPEXT_TCP_SYN_RETRANS = Counter without_total, Unit::Count("{event}"), "node_netstat_TcpExt_TCPSynRetrans",
        "`TCPSynRetrans` of `TcpExt` in /proc/net/netstat";
    NETSTAT_TCPEXT_TCP_TIMEOUTS = Counter without_total, Unit::Count("{event}"), "node_netstat_TcpExt_TCPTimeouts",
        "`TCPTimeouts` of `TcpExt` in /proc/net/netstat";
    NETSTAT_TCPEXT_TCPOFO_QUEUE = Counter without_total, Unit::Count("{event}"), "node_netstat_TcpExt_TCPOFOQueue",
        "`TCPOFOQueue` of `TcpExt` in /proc/net/netstat";
    NETSTAT_TCPEXT_TCP_RCV_Q_DROP = Counter without_total, Unit::Count("{event}"), "node_netstat_TcpExt_TCPRcvQDrop",
        "`TCPRcvQDrop` of `TcpExt` in /proc/net/netstat";
    NETSTAT_UDP_IN_DATAGRAMS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp_InDatagrams",
        "`InDatagrams` of `Udp` in /proc/net/snmp";
    NETSTAT_UDP_OUT_DATAGRAMS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp_OutDatagrams",
        "`OutDatagrams` of `Udp` in /proc/net/snmp";
    NETSTAT_UDP_NO_PORTS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp_NoPorts",
        "`NoPorts` of `Udp` in /proc/net/snmp";
    NETSTAT_UDP_IN_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp_InErrors",
        "`InErrors` of `Udp` in /proc/net/snmp";
    NETSTAT_UDP_RCVBUF_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp_RcvbufErrors",
        "`RcvbufErrors` of `Udp` in /proc/net/snmp";
    NETSTAT_UDP_SNDBUF_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp_SndbufErrors",
        "`SndbufErrors` of `Udp` in /proc/net/snmp";
    NETSTAT_UDP6_IN_DATAGRAMS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp6_InDatagrams",
        "`InDatagrams` of `Udp6` in /proc/net/snmp6";
    NETSTAT_UDP6_OUT_DATAGRAMS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp6_OutDatagrams",
        "`OutDatagrams` of `Udp6` in /proc/net/snmp6";
    NETSTAT_UDP6_NO_PORTS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp6_NoPorts",
        "`NoPorts` of `Udp6` in /proc/net/snmp6";
    NETSTAT_UDP6_IN_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp6_InErrors",
        "`InErrors` of `Udp6` in /proc/net/snmp6";
    NETSTAT_UDP6_RCVBUF_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp6_RcvbufErrors",
        "`RcvbufErrors` of `Udp6` in /proc/net/snmp6";
    NETSTAT_UDP6_SNDBUF_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_Udp6_SndbufErrors",
        "`SndbufErrors` of `Udp6` in /proc/net/snmp6";
    NETSTAT_UDP_LITE_IN_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_UdpLite_InErrors",
        "`InErrors` of `UdpLite` in /proc/net/snmp";
    NETSTAT_UDP_LITE6_IN_ERRORS = Counter without_total, Unit::Count("{event}"), "node_netstat_UdpLite6_InErrors",
        "`InErrors` of `UdpLite6` in /proc/net/snmp6";
    // sockets
    SOCKSTAT_SOCKETS_USED = Gauge, Unit::Count("{socket}"), "node_sockstat_sockets_used", "Sockets of all families";
    SOCKSTAT_TCP_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_TCP_inuse", "Sockets of TCP in use";
    SOCKSTAT_TCP_ORPHAN = Gauge, Unit::Count("{socket}"), "node_sockstat_TCP_orphan",
        "TCP sockets that no program holds";
    SOCKSTAT_TCP_TW = Gauge, Unit::Count("{socket}"), "node_sockstat_TCP_tw", "TCP sockets that wait after their end";
    SOCKSTAT_TCP_ALLOC = Gauge, Unit::Count("{socket}"), "node_sockstat_TCP_alloc", "TCP sockets allocated";
    SOCKSTAT_TCP_MEM = Gauge, Unit::Count("{page}"), "node_sockstat_TCP_mem", "Memory of TCP, pages";
    SOCKSTAT_TCP_MEM_BYTES = Gauge, Unit::Bytes, "node_sockstat_TCP_mem_bytes", "Memory of TCP";
    SOCKSTAT_UDP_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_UDP_inuse", "Sockets of UDP in use";
    SOCKSTAT_UDP_MEM = Gauge, Unit::Count("{page}"), "node_sockstat_UDP_mem", "Memory of UDP, pages";
    SOCKSTAT_UDP_MEM_BYTES = Gauge, Unit::Bytes, "node_sockstat_UDP_mem_bytes", "Memory of UDP";
    SOCKSTAT_UDPLITE_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_UDPLITE_inuse", "Sockets of UDPLITE in use";
    SOCKSTAT_RAW_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_RAW_inuse", "Sockets of RAW in use";
    SOCKSTAT_FRAG_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_FRAG_inuse", "Queues of fragments (FRAG)";
    SOCKSTAT_FRAG_MEMORY = Gauge, Unit::Bytes, "node_sockstat_FRAG_memory", "Memory of fragments (FRAG)";
    SOCKSTAT_TCP6_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_TCP6_inuse", "Sockets of TCP6 in use";
    SOCKSTAT_UDP6_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_UDP6_inuse", "Sockets of UDP6 in use";
    SOCKSTAT_UDPLITE6_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_UDPLITE6_inuse",
        "Sockets of UDPLITE6 in use";
    SOCKSTAT_RAW6_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_RAW6_inuse", "Sockets of RAW6 in use";
    SOCKSTAT_FRAG6_INUSE = Gauge, Unit::Count("{socket}"), "node_sockstat_FRAG6_inuse", "Queues of fragments (FRAG6)";
    SOCKSTAT_FRAG6_MEMORY = Gauge, Unit::Bytes, "node_sockstat_FRAG6_memory", "Memory of fragments (FRAG6)";
    // connection tracking
    NF_CONNTRACK_ENTRIES = Gauge, Unit::Count("{connection}"), "node_nf_conntrack_entries",
        "Connections that are tracked";
    NF_CONNTRACK_ENTRIES_LIMIT = Gauge, Unit::Count("{connection}"), "node_nf_conntrack_entries_limit",
        "Most connections that can be tracked";
    NF_CONNTRACK_STAT_FOUND = Counter without_total, Unit::Count("{event}"), "node_nf_conntrack_stat_found",
        "Searches that found a connection";
    NF_CONNTRACK_STAT_INVALID = Counter without_total, Unit::Count("{event}"), "node_nf_conntrack_stat_invalid",
        "Packets that cannot be tracked";
    NF_CONNTRACK_STAT_IGNORE = Counter without_total, Unit::Count("{event}"), "node_nf_conntrack_stat_ignore",
        "Packets of connections that are tracked already";
    NF_CONNTRACK_STAT_INSERT = Counter without_total, Unit::Count("{event}"), "node_nf_conntrack_stat_insert",
        "Connections inserted";
    NF_CONNTRACK_STAT_INSERT_FAILED = Counter without_total, Unit::Count("{event}"),
        "node_nf_conntrack_stat_insert_failed", "Connections that could not be inserted";
    NF_CONNTRACK_STAT_DROP = Counter without_total, Unit::Count("{event}"), "node_nf_conntrack_stat_drop",
        "Packets dropped because tracking failed";
    NF_CONNTRACK_STAT_EARLY_DROP = Counter without_total, Unit::Count("{event}"), "node_nf_conntrack_stat_early_drop",
        "Connections dropped to make room";
    NF_CONNTRACK_STAT_SEARCH_RESTART = Counter without_total, Unit::Count("{event}"),
        "node_nf_conntrack_stat_search_restart", "Searches begun anew because the table was resized";
    // kernel
    ENTROPY_AVAILABLE_BITS = Gauge, Unit::Count("{bit}"), "node_entropy_available_bits", "Entropy available";
    ENTROPY_POOL_SIZE_BITS = Gauge, Unit::Count("{bit}"), "node_entropy_pool_size_bits", "Size of the pool of entropy";
    FILEFD_ALLOCATED = Gauge, Unit::Count("{file}"), "node_filefd_allocated", "Open files of the host";
    FILEFD_MAXIMUM = Gauge, Unit::Count("{file}"), "node_filefd_maximum", "Most files that can be open";
    UNAME_INFO = Gauge, Unit::Count("{bool}"), "node_uname_info",
        "What uname(2) tells; always 1", &["sysname", "release", "version", "machine", "nodename", "domainname"];
    OS_INFO = Gauge, Unit::Count("{bool}"), "node_os_info",
        "What os-release tells; always 1",
        &["build_id", "id", "id_like", "image_id", "image_version", "name", "pretty_name", "variant",
          "variant_id", "version", "version_codename", "version_id"];
    OS_VERSION = Gauge, Unit::Count("{number}"), "node_os_version",
        "Version of the operating system, major and minor", &["id", "id_like", "name"];
    TIME_SECONDS = Gauge, Unit::Seconds, "node_time_seconds", "Clock of the host, seconds since 1970";
    // sensors
    HWMON_CHIP_NAMES = Gauge, Unit::Count("{bool}"), "node_hwmon_chip_names",
        "Name that a sensor chip gives itself; always 1", &["chip", "chip_name"];
    HWMON_SENSOR_LABEL = Gauge, Unit::Count("{bool}"), "node_hwmon_sensor_label",
        "Label of a sensor; always 1", &["chip", "sensor", "label"];
    HWMON_TEMP_CELSIUS = Gauge, Unit::Celsius, "node_hwmon_temp_celsius", "Temperature", &["chip", "sensor"];
    HWMON_TEMP_MAX_CELSIUS = Gauge, Unit::Celsius, "node_hwmon_temp_max_celsius",
        "Highest temperature for normal work", &["chip", "sensor"];
    HWMON_TEMP_CRIT_CELSIUS = Gauge, Unit::Celsius, "node_hwmon_temp_crit_celsius",
        "Temperature at which the device protects itself", &["chip", "sensor"];
    HWMON_TEMP_CRIT_ALARM = Gauge, Unit::Count("{bool}"), "node_hwmon_temp_crit_alarm",
        "1 where that temperature was reached", &["chip", "sensor"];
    HWMON_FAN_RPM = Gauge, Unit::Count("{revolution/min}"), "node_hwmon_fan_rpm",
        "Turns of a fan in a minute", &["chip", "sensor"];
    HWMON_IN_VOLTS = Gauge, Unit::Count("{V}"), "node_hwmon_in_volts", "Voltage", &["chip", "sensor"];
    HWMON_CURR_AMPS = Gauge, Unit::Count("{A}"), "node_hwmon_curr_amps", "Current", &["chip", "sensor"];
    HWMON_POWER_WATT = Gauge, Unit::Watts, "node_hwmon_power_watt", "Power", &["chip", "sensor"];
    HWMON_POWER_AVERAGE_WATT = Gauge, Unit::Watts, "node_hwmon_power_average_watt",
        "Power, averaged by the device", &["chip", "sensor"];
    THERMAL_ZONE_TEMP = Gauge, Unit::Celsius, "node_thermal_zone_temp",
        "Temperature of a thermal zone", &["zone", "type"];
    // collectors
    SCRAPE_COLLECTOR_DURATION = Gauge, Unit::Seconds, "node_scrape_collector_duration_seconds",
        "How long a collector took", &["collector"];
    SCRAPE_COLLECTOR_SUCCESS = Gauge, Unit::Count("{bool}"), "node_scrape_collector_success",
        "1 where a collector found its source", &["collector"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found_by_the_fields_of_the_kernel() {
        let known =
            [("node_memory_Active_anon_bytes", false), ("node_cpu_seconds", true), ("node_vmstat_pgfault", false)];
        for (name, total) in known {
            let family = find(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((family.name, family.total, family.otel), (name, total, None));
        }
        assert_eq!(find("node_memory_Unheard_bytes"), None);
        assert_eq!(find(""), None);
        let names: std::collections::HashSet<&str> = ALL.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name stands twice");
    }
}
