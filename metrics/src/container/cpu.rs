//! CPU time and throttling: `cpu.stat` of the cgroup2 directory on every host, and of the v1 `cpu` tree where that has the
//! quota.

use super::files::{Buffer, Directory, number, pairs};

/// CPU time and throttling of a container since its cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Time on CPUs, ns.
    pub usage: Option<u64>,
    /// In user mode, ns.
    pub user: Option<u64>,
    /// In the kernel, ns.
    pub system: Option<u64>,
    /// Periods of the quota in which something wanted to run.
    pub periods: Option<u64>,
    /// Those in which the quota was used up.
    pub throttled_periods: Option<u64>,
    /// Time throttled, ns, added up over CPUs.
    pub throttled: Option<u64>,
    /// Periods in which more than the quota was used from what was saved up.
    pub burst_periods: Option<u64>,
    /// Time used so, ns.
    pub burst: Option<u64>,
}

impl Cpu {
    /// Takes what a `cpu.stat` says: of cgroup2 in microseconds, of v1 in nanoseconds and without CPU time.
    pub(super) fn take_stat(&mut self, text: &str) {
        for (key, value) in pairs(text) {
            let microseconds = Some(value.saturating_mul(1000));
            match key {
                "usage_usec" => self.usage = microseconds,
                "user_usec" => self.user = microseconds,
                "system_usec" => self.system = microseconds,
                "nr_periods" => self.periods = Some(value),
                "nr_throttled" => self.throttled_periods = Some(value),
                "throttled_usec" => self.throttled = microseconds,
                "throttled_time" => self.throttled = Some(value),
                "nr_bursts" => self.burst_periods = Some(value),
                "burst_usec" => self.burst = microseconds,
                "burst_time" => self.burst = Some(value),
                _ => {}
            }
        }
    }

    /// Takes a v1 `cpuacct.stat`, whose unit is USER_HZ, 100 a second on every architecture that agentd runs on.
    fn take_ticks(&mut self, text: &str) {
        for (key, value) in pairs(text) {
            let time = Some(value.saturating_mul(10_000_000));
            match key {
                "user" => self.user = time,
                "system" => self.system = time,
                _ => {}
            }
        }
    }

    /// Reads CPU time from a directory of a v1 `cpuacct` tree.
    pub(super) fn read_cpuacct(&mut self, buffer: &mut Buffer, directory: &Directory) {
        let mut read = |name| buffer.read(directory, name).and_then(number);
        self.usage = read(c"cpuacct.usage");
        self.user = read(c"cpuacct.usage_user");
        self.system = read(c"cpuacct.usage_sys");
        if self.user.is_none()
            && let Some(text) = buffer.read(directory, c"cpuacct.stat")
        {
            self.take_ticks(text);
        }
    }

    /// Whether a quota has ever been at work.
    pub(super) fn limited(&self) -> bool {
        self.periods.is_some_and(|periods| periods > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_cpu_stat_are_understood() {
        let v2 = "usage_usec 23515253633\nuser_usec 18749673433\nsystem_usec 4765580200\nnice_usec 964095667\n\
                  core_sched.force_idle_usec 0\nnr_periods 120\nnr_throttled 7\nthrottled_usec 81234\nnr_bursts 2\n\
                  burst_usec 1500\n";
        let mut cpu = Cpu::default();
        cpu.take_stat(v2);
        let expected = Cpu {
            usage: Some(23_515_253_633_000),
            user: Some(18_749_673_433_000),
            system: Some(4_765_580_200_000),
            periods: Some(120),
            throttled_periods: Some(7),
            throttled: Some(81_234_000),
            burst_periods: Some(2),
            burst: Some(1_500_000),
        };
        assert_eq!(cpu, expected);

        // a hybrid host: time from cgroup2, whose cpu.stat has nothing else there, throttling from v1
        let mut cpu = Cpu::default();
        cpu.take_stat("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnice_usec 0\n");
        assert!(!cpu.limited());
        cpu.take_stat("nr_periods 12\nnr_throttled 3\nthrottled_time 81234567\nnr_bursts 0\nburst_time 0\n");
        assert_eq!((cpu.usage, cpu.throttled, cpu.throttled_periods), (Some(5000), Some(81_234_567), Some(3)));
        assert!(cpu.limited());
    }

    #[test]
    fn garbage_is_nothing() {
        for text in ["", "\0\0", "usage_usec", "usage_usec x", "usage_usec -3", "nr_periods 1.5", " usage_usec 3"] {
            let mut cpu = Cpu::default();
            cpu.take_stat(text);
            assert_eq!(cpu, Cpu::default(), "{text:?}");
        }
        let mut cpu = Cpu::default();
        cpu.take_stat("usage_usec 18446744073709551615");
        assert_eq!(cpu.usage, Some(u64::MAX));
    }

    #[test]
    fn cpuacct_is_read_with_and_without_its_newer_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("cpuacct.usage", "9000000001\n");
        write("cpuacct.stat", "user 700\nsystem 200\n");
        let directory = Directory::open(folder.path()).unwrap();
        let mut buffer = Buffer::default();
        let mut cpu = Cpu::default();
        cpu.read_cpuacct(&mut buffer, &directory);
        let times = (cpu.usage, cpu.user, cpu.system);
        assert_eq!(times, (Some(9_000_000_001), Some(7_000_000_000), Some(2_000_000_000)));
        write("cpuacct.usage_user", "7100000000\n");
        write("cpuacct.usage_sys", "1900000001\n");
        cpu.read_cpuacct(&mut buffer, &directory);
        assert_eq!((cpu.user, cpu.system), (Some(7_100_000_000), Some(1_900_000_001)));
    }
}
