//! What the agent tells of itself, of the pods and containers that it runs, and of the node's resources. The table of these
//! families stands in docs/metrics.md.

use crate::model::{Family, Kind, Unit};

families! {
    /// Version of the daemon and of the host's kernel, with the value 1.
    BUILD = Family::gauge("agentd_build_info", "agentd.build.info", Unit::Count("{build}"), "The daemon and its host, always 1")
        .with(&["version", "kernel", "cgroups"]);
    /// Resources of the node, CPUs.
    CPUS = Family::gauge("agentd_node_cpus", "agentd.node.cpus", Unit::Cores, "CPUs of the node: total, reserved for the host, used by pods, free")
        .with(&["kind"]);
    /// Resources of the node, memory.
    MEMORY = Family::gauge("agentd_node_memory_bytes", "agentd.node.memory", Unit::Bytes, "Memory of the node: total, reserved for the host, used by pods, free")
        .with(&["kind"]);
    /// Resources of the node, disk.
    DISK = Family::gauge("agentd_node_disk_bytes", "agentd.node.disk", Unit::Bytes, "Disk of the node: total, reserved for the host, used by pods, free")
        .with(&["kind"]);
    /// Resources of the node, GPUs.
    GPUS = Family::gauge("agentd_node_gpus", "agentd.node.gpus", Unit::Count("{gpu}"), "GPUs of the node: total, reserved for the host, used by pods, free")
        .with(&["kind"]);
    /// Pods that are wanted.
    PODS = Family::gauge("agentd_pods", "agentd.pods", Unit::Count("{pod}"), "Pods that are wanted on this node");
    /// Instances by phase.
    INSTANCES = Family::gauge("agentd_instances", "agentd.instances", Unit::Count("{instance}"), "Instances of pods by what they are doing")
        .with(&["phase"]);
    /// Containers by state.
    CONTAINERS = Family::gauge("agentd_containers", "agentd.containers", Unit::Count("{container}"), "Containers by state, in the words of Mesos")
        .with(&["state"]);
    /// Sessions by state.
    SESSIONS = Family::gauge("agentd_sessions", "agentd.sessions", Unit::Count("{session}"), "Sessions in containers by state")
        .with(&["state"]);
    /// Rung of each signal.
    SIGNAL = Family::gauge("agentd_self_signal", "agentd.self.signal", Unit::Count("{signal}"), "How each signal of the kernel is had, always 1")
        .with(&["signal", "rung"]);
    /// Programs found detached.
    PROGRAMS_LOST = Family::counter("agentd_self_programs_lost", "agentd.self.programs.lost", Unit::Count("{program}"), "Programs that were found detached by somebody, and were hung again");
    /// Observed containers.
    OBSERVED = Family::gauge("agentd_self_observed_containers", "agentd.self.observed.containers", Unit::Count("{container}"), "Containers that metrics are about: running, and ended a while ago")
        .with(&["state"]);
    /// Containers that could not be made known to the programs.
    UNPUBLISHED = Family::counter("agentd_self_unpublished_containers", "agentd.self.unpublished.containers", Unit::Count("{container}"), "Containers that the programs could not be told of: their map was full or gone");
    /// Events by what became of them.
    EVENTS = Family::counter("agentd_self_events", "agentd.self.events", Unit::Count("{event}"), "Events of the kernel: published, unwanted, held back by the rate of all containers, held back by a container's rate, lost to a full ring, of no known container")
        .with(&["outcome"]);
    /// Programs' run time.
    PROGRAM_TIME = Family::counter("agentd_self_program_time_seconds", "agentd.self.program.time", Unit::Seconds, "Time that the kernel spent in a program, while run-time statistics are on")
        .with(&["program", "group"]);
    /// Programs' runs.
    PROGRAM_RUNS = Family::counter("agentd_self_program_runs", "agentd.self.program.runs", Unit::Count("{run}"), "Runs of a program, while run-time statistics are on")
        .with(&["program", "group"]);
    /// Runs that the kernel left out.
    PROGRAM_MISSED = Family::counter("agentd_self_program_missed", "agentd.self.program.missed", Unit::Count("{run}"), "Runs of a program that the kernel left out because it was running on that CPU already")
        .with(&["program", "group"]);
    /// Entries in maps.
    MAP_ENTRIES = Family::gauge("agentd_self_map_entries", "agentd.self.map.entries", Unit::Count("{entry}"), "Entries in a map of the programs")
        .with(&["map"]);
    /// Room in maps.
    MAP_CAPACITY = Family::gauge("agentd_self_map_capacity", "agentd.self.map.capacity", Unit::Count("{entry}"), "Entries that a map of the programs has room for")
        .with(&["map"]);
    /// Memory of maps.
    MAP_MEMORY = Family::gauge("agentd_self_map_memory_bytes", "agentd.self.map.memory", Unit::Bytes, "Memory of the kernel that a map of the programs takes")
        .with(&["map"]);
    /// Profiled containers.
    PROFILE_CONTAINERS = Family::gauge("agentd_self_profile_containers", "agentd.self.profile.containers", Unit::Count("{container}"), "Containers whose stacks are sampled now");
    /// Rate of samples.
    PROFILE_RATE = Family::gauge("agentd_self_profile_rate", "agentd.self.profile.rate", Unit::Count("{sample}"), "Ticks of the profile's clock each second and CPU, now; 0 while nobody is profiled");
    /// Memory of the profile's maps.
    PROFILE_MEMORY = Family::gauge("agentd_self_profile_map_memory_bytes", "agentd.self.profile.map.memory", Unit::Bytes, "Memory of the kernel that the maps of profiles take now");
    /// Ticks.
    PROFILE_TICKS = Family::counter("agentd_self_profile_ticks", "agentd.self.profile.ticks", Unit::Count("{tick}"), "Ticks of the clock of profiles, all CPUs together");
    /// Samples.
    PROFILE_SAMPLES = Family::counter("agentd_self_profile_samples", "agentd.self.profile.samples", Unit::Count("{sample}"), "Samples of stacks that were counted");
    /// Samples left out to thin.
    PROFILE_THINNED = Family::counter("agentd_self_profile_thinned", "agentd.self.profile.thinned", Unit::Count("{sample}"), "Samples left out because their container wants fewer than another one");
    /// Losses.
    PROFILE_LOST = Family::counter("agentd_self_profile_lost", "agentd.self.profile.lost", Unit::Count("{loss}"), "What profiles lost: samples and stacks that found their map full, notices of new processes that found the ring full, entries that were unread, samples that were unclaimed, minutes that went for want of memory")
        .with(&["what"]);
    /// Gatherings.
    SCRAPES = Family::counter("agentd_self_scrapes", "agentd.self.scrapes", Unit::Count("{gathering}"), "Times that metrics were gathered, and that this took too long")
        .with(&["outcome"]);
    /// Wall time of gatherings.
    SCRAPE_TIME = Family::counter("agentd_self_scrape_time_seconds", "agentd.self.scrape.time", Unit::Seconds, "Time that gathering metrics took");
    /// CPU time of gatherings.
    SCRAPE_CPU_TIME = Family::counter("agentd_self_scrape_cpu_time_seconds", "agentd.self.scrape.cpu.time", Unit::Seconds, "CPU time that gathering and writing metrics took")
        .with(&["stage"]);
    /// Wall time of this gathering.
    SCRAPE_DURATION = Family::gauge("agentd_self_scrape_duration_seconds", "agentd.self.scrape.duration", Unit::Seconds, "Time that this gathering took");
    /// Series of this gathering.
    SERIES = Family::gauge("agentd_self_scrape_series", "agentd.self.scrape.series", Unit::Count("{series}"), "Series of this gathering, before any were folded");
    /// Series of pods above their budget that were folded.
    SERIES_FOLDED = Family::gauge("agentd_self_series_folded", "agentd.self.series.folded", Unit::Count("{series}"), "Series of a pod above its budget that became part of one that stands for the others")
        .with(&["pod"])
        .open(&["pod"]);
    /// Series of pods above their budget that were left out.
    SERIES_DROPPED = Family::gauge("agentd_self_series_dropped", "agentd.self.series.dropped", Unit::Count("{series}"), "Series of a pod above its budget that were left out")
        .with(&["pod"])
        .open(&["pod"]);
    /// CPU time of the daemon.
    CPU_TIME = Family::counter("agentd_self_cpu_time_seconds", "agentd.self.cpu.time", Unit::Seconds, "CPU time of the daemon")
        .with(&["cpu.mode"]);
    /// Memory of the daemon.
    RESIDENT = Family::gauge("agentd_self_memory_usage_bytes", "agentd.self.memory.usage", Unit::Bytes, "Resident memory of the daemon");
    /// Descriptors of the daemon.
    DESCRIPTORS = Family::gauge("agentd_self_file_descriptors", "agentd.self.file_descriptors", Unit::Count("{file_descriptor}"), "Open descriptors of the daemon");
    /// Threads of the daemon.
    THREADS = Family::gauge("agentd_self_threads", "agentd.self.threads", Unit::Count("{thread}"), "Threads of the daemon");
    /// Start of the daemon.
    UPTIME = Family::gauge("agentd_self_uptime_seconds", "agentd.self.uptime", Unit::Seconds, "Time since the daemon's start");
    /// The common name of the daemon's CPU time.
    PROCESS_CPU = Family::common("process_cpu_seconds", Kind::Counter, Unit::Seconds, "CPU time of the daemon");
    /// The common name of its resident memory.
    PROCESS_RESIDENT = Family::common("process_resident_memory_bytes", Kind::Gauge, Unit::Bytes, "Resident memory of the daemon");
    /// The common name of its address space.
    PROCESS_VIRTUAL = Family::common("process_virtual_memory_bytes", Kind::Gauge, Unit::Bytes, "Address space of the daemon");
    /// The common name of its descriptors.
    PROCESS_OPEN_FDS = Family::common("process_open_fds", Kind::Gauge, Unit::Count("{file_descriptor}"), "Open descriptors of the daemon");
    /// The common name of the most that it may have.
    PROCESS_MAX_FDS = Family::common("process_max_fds", Kind::Gauge, Unit::Count("{file_descriptor}"), "Descriptors that the daemon may have");
    /// The common name of its start.
    PROCESS_START = Family::common("process_start_time_seconds", Kind::Gauge, Unit::Seconds, "Start of the daemon, seconds since 1970");
    /// Starts of pods.
    POD_START = Family::distribution("agentd_pod_start_duration_seconds", "agentd.pod.start.duration", Unit::Seconds, "Time from a pod's acceptance until all containers of an instance run");
    /// Starts of containers.
    CONTAINER_START = Family::distribution("agentd_container_start_duration_seconds", "agentd.container.start.duration", Unit::Seconds, "Time from a container's launch, its image included, until its program runs");
    /// Beginnings of sessions.
    EXEC_BEGIN = Family::distribution("agentd_exec_begin_duration_seconds", "agentd.exec.begin.duration", Unit::Seconds, "Time from a session's request until its program runs");
    /// API requests.
    API_REQUEST = Family::distribution("agentd_api_request_duration_seconds", "agentd.api.request.duration", Unit::Seconds, "Time from an API request until its answer begins")
        .with(&["http.route", "http.request.method", "http.response.status_code"]);
    /// Steps of isolators.
    ISOLATOR = Family::distribution("agentd_isolator_duration_seconds", "agentd.isolator.duration", Unit::Seconds, "Time of one isolator's step for one container")
        .with(&["isolator", "step"]);
    /// Pulls of images.
    IMAGE_PULL = Family::distribution("agentd_image_pull_duration_seconds", "agentd.image.pull.duration", Unit::Seconds, "Time that pulling an image took");
    /// Requests by OTLP.
    OTLP_REQUESTS = Family::counter("agentd_self_otlp_requests", "agentd.self.otlp.requests", Unit::Count("{request}"), "Requests to the OpenTelemetry collector by what became of them: sent, refused, expired, dropped")
        .with(&["signal", "outcome"]);
    /// Failed attempts.
    OTLP_FAILURES = Family::counter("agentd_self_otlp_failures", "agentd.self.otlp.failures", Unit::Count("{attempt}"), "Attempts to deliver to the OpenTelemetry collector that failed")
        .with(&["signal", "reason"]);
    /// Attempts after the first.
    OTLP_RETRIES = Family::counter("agentd_self_otlp_retries", "agentd.self.otlp.retries", Unit::Count("{attempt}"), "Attempts to deliver to the OpenTelemetry collector after a request's first")
        .with(&["signal"]);
    /// Bytes delivered.
    OTLP_BYTES = Family::counter("agentd_self_otlp_sent_bytes", "agentd.self.otlp.sent", Unit::Bytes, "Bytes that the OpenTelemetry collector took, after compression")
        .with(&["signal"]);
    /// Requests that wait.
    OTLP_QUEUE = Family::gauge("agentd_self_otlp_queue_requests", "agentd.self.otlp.queue.requests", Unit::Count("{request}"), "Requests that wait for the OpenTelemetry collector")
        .with(&["signal"]);
    /// Bytes that wait.
    OTLP_QUEUE_SIZE = Family::gauge("agentd_self_otlp_queue_size_bytes", "agentd.self.otlp.queue.size", Unit::Bytes, "Bytes that wait for the OpenTelemetry collector")
        .with(&["signal"]);
    /// Points and spans that were refused.
    OTLP_REJECTED = Family::counter("agentd_self_otlp_rejected", "agentd.self.otlp.rejected", Unit::Count("{point}"), "Points and spans that the OpenTelemetry collector refused of requests that it took")
        .with(&["signal"]);
    /// Spans.
    SPANS = Family::counter("agentd_self_spans", "agentd.self.spans", Unit::Count("{span}"), "Spans of the daemon's own work: handed on to be delivered, dropped because too many waited")
        .with(&["outcome"]);
}
