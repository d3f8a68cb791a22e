//! Memory: the files of the memory controller, of cgroup v2 and of v1.

use super::files::{Buffer, Directory, number, pairs};

/// Memory of a container, bytes where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged to it: anonymous, page cache, kernel.
    pub usage: Option<u64>,
    /// Highest usage since its cgroup was made; none on v2 before Linux 5.19.
    pub peak: Option<u64>,
    /// Swap.
    pub swap: Option<u64>,
    /// Anonymous memory.
    pub anonymous: Option<u64>,
    /// Page cache, shared memory included.
    pub cache: Option<u64>,
    /// Page cache that is mapped.
    pub mapped: Option<u64>,
    /// Shared memory and tmpfs.
    pub shared: Option<u64>,
    /// Page cache that is modified and not yet being written.
    pub dirty: Option<u64>,
    /// Page cache that is being written.
    pub writeback: Option<u64>,
    /// Page cache that was used more than once of late.
    pub active_file: Option<u64>,
    /// Page cache that was not used of late.
    pub inactive_file: Option<u64>,
    /// The kernel's memory for it; none on v2 before Linux 5.18.
    pub kernel: Option<u64>,
    /// Of which slab; v2 alone.
    pub slab: Option<u64>,
    /// Of which stacks; v2 alone.
    pub stacks: Option<u64>,
    /// Buffers of sockets; v2 alone.
    pub sockets: Option<u64>,
    /// Page faults, major ones included.
    pub faults: Option<u64>,
    /// Page faults that needed input from a device.
    pub major_faults: Option<u64>,
    /// Times that the limit was reached.
    pub limit_hits: Option<u64>,
    /// Times that `memory.high` was passed and processes were slowed; v2 alone.
    pub high_hits: Option<u64>,
    /// Times that the limit was reached and nothing could be freed; v2 alone.
    pub oom: Option<u64>,
    /// Processes that were killed for want of memory; none on v1 before Linux 4.13.
    pub oom_kills: Option<u64>,
}

impl Memory {
    /// Reads the directory of a container on cgroup v2.
    pub(super) fn read_v2(&mut self, buffer: &mut Buffer, directory: &Directory) {
        // Whether the controller is on shows in this file; without, none of the others is there.
        self.usage = buffer.read(directory, c"memory.current").and_then(number);
        if self.usage.is_none() {
            return;
        }
        self.peak = buffer.read(directory, c"memory.peak").and_then(number);
        self.swap = buffer.read(directory, c"memory.swap.current").and_then(number);
        if let Some(text) = buffer.read(directory, c"memory.stat") {
            self.take_stat_v2(text);
        }
        if let Some(text) = buffer.read(directory, c"memory.events") {
            self.take_events(text);
        }
    }

    /// Reads the directory of a container in a v1 tree.
    pub(super) fn read_v1(&mut self, buffer: &mut Buffer, directory: &Directory) {
        if let Some(text) = buffer.read(directory, c"memory.stat") {
            self.take_stat_v1(text);
        }
        if let Some(text) = buffer.read(directory, c"memory.oom_control") {
            self.oom_kills = pairs(text).find(|(key, _)| *key == "oom_kill").map(|(_, value)| value);
        }
        let mut read = |name| buffer.read(directory, name).and_then(number);
        self.usage = read(c"memory.usage_in_bytes");
        self.peak = read(c"memory.max_usage_in_bytes");
        self.limit_hits = read(c"memory.failcnt");
        self.kernel = read(c"memory.kmem.usage_in_bytes");
    }

    fn take_stat_v2(&mut self, text: &str) {
        let mut kernel_parts = (None, None);
        for (key, value) in pairs(text) {
            let value = Some(value);
            match key {
                "anon" => self.anonymous = value,
                "file" => self.cache = value,
                "file_mapped" => self.mapped = value,
                "shmem" => self.shared = value,
                "file_dirty" => self.dirty = value,
                "file_writeback" => self.writeback = value,
                "active_file" => self.active_file = value,
                "inactive_file" => self.inactive_file = value,
                "kernel" => self.kernel = value,
                "slab" => self.slab = value,
                "slab_reclaimable" => kernel_parts.0 = value,
                "slab_unreclaimable" => kernel_parts.1 = value,
                "kernel_stack" => self.stacks = value,
                "sock" => self.sockets = value,
                "pgfault" => self.faults = value,
                "pgmajfault" => self.major_faults = value,
                _ => {}
            }
        }
        if let (None, (Some(reclaimable), Some(other))) = (self.slab, kernel_parts) {
            self.slab = reclaimable.checked_add(other);
        }
    }

    /// A v1 `memory.stat` gives each figure for the cgroup alone and again, as `total_…`, with those below it; the latter are
    /// taken, and the former on kernels without.
    fn take_stat_v1(&mut self, text: &str) {
        for (key, value) in pairs(text) {
            let (key, total) = key.strip_prefix("total_").map_or((key, false), |key| (key, true));
            let place = match key {
                "rss" => &mut self.anonymous,
                "cache" => &mut self.cache,
                "mapped_file" => &mut self.mapped,
                "shmem" => &mut self.shared,
                "dirty" => &mut self.dirty,
                "writeback" => &mut self.writeback,
                "active_file" => &mut self.active_file,
                "inactive_file" => &mut self.inactive_file,
                "swap" => &mut self.swap,
                "pgfault" => &mut self.faults,
                "pgmajfault" => &mut self.major_faults,
                _ => continue,
            };
            if total || place.is_none() {
                *place = Some(value);
            }
        }
    }

    fn take_events(&mut self, text: &str) {
        for (key, value) in pairs(text) {
            match key {
                "max" => self.limit_hits = Some(value),
                "high" => self.high_hits = Some(value),
                "oom" => self.oom = Some(value),
                "oom_kill" => self.oom_kills = Some(value),
                _ => {}
            }
        }
    }

    /// Usage less the page cache that was not used of late, as cAdvisor and the kubelet reckon it.
    pub fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file?))
    }

    /// Page faults that needed no input.
    pub fn minor_faults(&self) -> Option<u64> {
        Some(self.faults?.saturating_sub(self.major_faults?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Linux 6.12.
    const V2: &str = "anon 1048576\nfile 4194304\nkernel 700416\nkernel_stack 49152\npagetables 98304\nsec_pagetables 0\n\
        percpu 1440\nsock 8192\nvmalloc 0\nshmem 12288\nzswap 0\nzswapped 0\nfile_mapped 2097152\nfile_dirty 4096\n\
        file_writeback 0\nswapcached 0\nanon_thp 0\nfile_thp 0\nshmem_thp 0\ninactive_anon 1040384\nactive_anon 8192\n\
        inactive_file 1000000\nactive_file 3182016\nunevictable 0\nslab_reclaimable 393216\nslab_unreclaimable 150000\n\
        slab 543216\nworkingset_refault_anon 0\npgscan 0\npgfault 5012\npgmajfault 12\npgrefill 0\n";
    /// Of Linux 6.18.
    const V1: &str = "cache 86016\nrss 118784\nrss_huge 0\nshmem 0\nmapped_file 0\ndirty 4096\nwriteback 0\n\
        workingset_refault_anon 0\nswap 0\nswapcached 0\npgpgin 144\npgpgout 94\npgfault 278\npgmajfault 1\n\
        inactive_anon 73728\nactive_anon 4096\ninactive_file 81920\nactive_file 4096\nunevictable 0\n\
        hierarchical_memory_limit 9223372036854771712\ntotal_cache 90000\ntotal_rss 120000\ntotal_rss_huge 0\n\
        total_shmem 64\ntotal_mapped_file 32\ntotal_dirty 4096\ntotal_writeback 0\ntotal_swap 5\ntotal_pgfault 300\n\
        total_pgmajfault 2\ntotal_inactive_file 82000\ntotal_active_file 5000\ntotal_unevictable 0\n";

    #[test]
    fn v2_is_understood() {
        let mut memory = Memory { usage: Some(6_000_000), ..Memory::default() };
        memory.take_stat_v2(V2);
        memory.take_events("low 0\nhigh 3\nmax 41\noom 2\noom_kill 1\noom_group_kill 1\n");
        let expected = Memory {
            usage: Some(6_000_000),
            peak: None,
            swap: None,
            anonymous: Some(1_048_576),
            cache: Some(4_194_304),
            mapped: Some(2_097_152),
            shared: Some(12_288),
            dirty: Some(4096),
            writeback: Some(0),
            active_file: Some(3_182_016),
            inactive_file: Some(1_000_000),
            kernel: Some(700_416),
            slab: Some(543_216),
            stacks: Some(49_152),
            sockets: Some(8192),
            faults: Some(5012),
            major_faults: Some(12),
            limit_hits: Some(41),
            high_hits: Some(3),
            oom: Some(2),
            oom_kills: Some(1),
        };
        assert_eq!(memory, expected);
        assert_eq!((memory.working_set(), memory.minor_faults()), (Some(5_000_000), Some(5000)));
    }

    #[test]
    fn v1_is_understood_with_and_without_totals() {
        let mut memory = Memory::default();
        memory.take_stat_v1(V1);
        let got = (memory.anonymous, memory.cache, memory.swap, memory.faults, memory.major_faults);
        assert_eq!(got, (Some(120_000), Some(90_000), Some(5), Some(300), Some(2)));
        assert_eq!((memory.inactive_file, memory.mapped, memory.shared), (Some(82_000), Some(32), Some(64)));
        assert_eq!(memory.working_set(), None, "without usage there is none");
        let mut memory = Memory::default();
        memory.take_stat_v1(V1.split("total_").next().unwrap());
        assert_eq!((memory.anonymous, memory.faults), (Some(118_784), Some(278)));
    }

    #[test]
    fn whole_directories_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("memory.stat", V1);
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n");
        for (name, text) in [
            ("memory.usage_in_bytes", "540672\n"),
            ("memory.max_usage_in_bytes", "600000\n"),
            ("memory.failcnt", "9\n"),
            ("memory.kmem.usage_in_bytes", "143360\n"),
        ] {
            write(name, text);
        }
        let directory = Directory::open(folder.path()).unwrap();
        let mut memory = Memory::default();
        memory.read_v1(&mut Buffer::default(), &directory);
        let got = (memory.usage, memory.peak, memory.limit_hits, memory.kernel, memory.oom_kills);
        assert_eq!(got, (Some(540_672), Some(600_000), Some(9), Some(143_360), Some(4)));

        write("memory.stat", V2);
        let mut memory = Memory::default();
        memory.read_v2(&mut Buffer::default(), &directory);
        assert_eq!(memory, Memory::default(), "without the controller nothing is read");
        write("memory.current", "6000000\n");
        memory.read_v2(&mut Buffer::default(), &directory);
        assert_eq!((memory.usage, memory.peak, memory.swap), (Some(6_000_000), None, None));
        assert_eq!((memory.anonymous, memory.oom_kills), (Some(1_048_576), None));
    }

    #[test]
    fn garbage_is_nothing() {
        let mut memory = Memory::default();
        for text in ["", "anon", "anon -1\n", "\u{0}\nrss\trss 4", "total_ 5\n", "oom_kill many"] {
            memory.take_stat_v1(text);
            memory.take_stat_v2(text);
            memory.take_events(text);
        }
        assert_eq!(memory, Memory::default());
        let mut odd = Memory { usage: Some(5), inactive_file: Some(9), faults: Some(1), ..Memory::default() };
        odd.major_faults = Some(3);
        assert_eq!((odd.working_set(), odd.minor_faults()), (Some(0), Some(0)), "read at two moments");
    }
}
