//! The resource limits of a container's processes (`agentd.rlimits`), as `setrlimit(2)` knows them.
//!
//! What the cgroup limits (memory, processes) is limited there; these are the limits that only a process has. A limit
//! above agentd's own hard limit needs CAP_SYS_RESOURCE and is refused where agentd has it not.

use std::collections::BTreeMap;

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_launcher::plan::Rlimit;

use crate::capabilities::{HostCapabilities, bit};
use crate::{ContainerContext, Isolator, IsolatorError, Launch};

const NAME: &str = "rlimits";
const INFINITY: u64 = u64::MAX;

/// Names of the limits, each at the place of its number on x86 and ARM.
const RESOURCES: &[&str] = &[
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];
const CORE: u32 = 4;
const NOFILE: u32 = 7;

/// Soft limit on open files, where the node sets none: `select(2)` cannot count further.
const DEFAULT_NOFILE_SOFT: u64 = 1024;
/// Hard limit on open files, where the node sets none.
const DEFAULT_NOFILE_HARD: u64 = 524_288;

fn number(name: &str) -> Option<u32> {
    RESOURCES.iter().position(|known| *known == name).map(|number| number as u32)
}

fn shown(limit: u64) -> String {
    if limit == INFINITY { "unlimited".to_owned() } else { limit.to_string() }
}

/// Sets the limits of the plan.
#[derive(Debug, Clone)]
pub struct Rlimits {
    /// Hard limits of agentd by number.
    hard: BTreeMap<u32, u64>,
    /// Whether agentd may go beyond its own hard limits.
    may_raise: bool,
    /// Most open files that the kernel allows any process, which binds even those who may raise limits.
    nofile_ceiling: u64,
    /// Limits that every container gets unless it sets its own.
    defaults: BTreeMap<u32, (u64, u64)>,
}

impl Rlimits {
    /// The isolator with the node's own default limits (`name` → [soft, hard], -1 for infinity), which are added to the
    /// built-in ones: open files (1024, 524288 or agentd's hard limit), no core files.
    pub fn new(node: &BTreeMap<String, [i64; 2]>, host: HostCapabilities) -> Result<Self, IsolatorError> {
        let mut hard = BTreeMap::new();
        for (number, name) in RESOURCES.iter().enumerate() {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the call fills in the local structure that it is given; the number is one that the kernel knows.
            let answer = unsafe { libc::getrlimit(number as _, &raw mut limit) };
            if answer != 0 {
                let error = std::io::Error::last_os_error();
                return Err(IsolatorError::io(NAME, format!("agentd's own limit {name} cannot be read"), error));
            }
            hard.insert(number as u32, limit.rlim_max);
        }
        let ceiling = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
        let ceiling = ceiling.and_then(|text| text.trim().parse().ok()).unwrap_or(1_048_576);
        let may_raise = bit("SYS_RESOURCE").is_some_and(|one| host.grantable & one != 0);
        Self::with(node, hard, may_raise, ceiling)
    }

    fn with(
        node: &BTreeMap<String, [i64; 2]>,
        hard: BTreeMap<u32, u64>,
        may_raise: bool,
        nofile_ceiling: u64,
    ) -> Result<Self, IsolatorError> {
        let mut isolator = Self { hard, may_raise, nofile_ceiling, defaults: BTreeMap::new() };
        let most_files = isolator.most(NOFILE).min(DEFAULT_NOFILE_HARD);
        isolator.defaults.insert(NOFILE, (DEFAULT_NOFILE_SOFT.min(most_files), most_files));
        isolator.defaults.insert(CORE, (0, isolator.most(CORE)));
        for (name, pair) in node {
            let (number, soft, hard) = isolator
                .read(name, *pair)
                .map_err(|message| IsolatorError::new(NAME, format!("the node's default limit {name}: {message}")))?;
            isolator.defaults.insert(number, (soft, hard));
        }
        Ok(isolator)
    }

    /// Highest hard limit that agentd can give.
    fn most(&self, resource: u32) -> u64 {
        let ceiling = if resource == NOFILE { self.nofile_ceiling } else { INFINITY };
        let own = if self.may_raise { INFINITY } else { self.hard.get(&resource).copied().unwrap_or(INFINITY) };
        own.min(ceiling)
    }

    /// Number, soft and hard limit of a setting, or what is wrong with it.
    fn read(&self, name: &str, pair: [i64; 2]) -> Result<(u32, u64, u64), String> {
        let Some(number) = number(name) else {
            return Err(format!("no such limit, expected one of {}", RESOURCES.join(", ")));
        };
        let limit = |value: i64| match value {
            -1 => Ok(INFINITY),
            value => u64::try_from(value)
                .map_err(|_| format!("found {value}, expected a number from 0 up, or -1 for infinity")),
        };
        let (soft, hard) = (limit(pair[0])?, limit(pair[1])?);
        if soft > hard {
            return Err(format!(
                "soft limit {} is above hard limit {}: expected [soft, hard] with soft at most hard",
                shown(soft),
                shown(hard)
            ));
        }
        let most = self.most(number);
        if hard > most && number == NOFILE && most == self.nofile_ceiling {
            return Err(format!(
                "hard limit {} is above the kernel's limit of {most}: lower it, or raise sysctl fs.nr_open",
                shown(hard)
            ));
        }
        if hard > most {
            return Err(format!(
                "hard limit {} is above agentd's own of {most}, and agentd lacks CAP_SYS_RESOURCE: lower it, or raise the \
                 limit of agentd's service (Limit{}= of its unit) or give it the capability",
                shown(hard),
                name.to_ascii_uppercase()
            ));
        }
        Ok((number, soft, hard))
    }
}

impl Isolator for Rlimits {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        for (index, container) in pod.containers.iter().enumerate() {
            for (name, pair) in &container.agentd.rlimits {
                if let Err(message) = self.read(name, *pair) {
                    violations.push(Violation::new(format!("containers[{index}].agentd.rlimits.{name}"), message));
                }
            }
        }
    }

    fn prepare(&self, context: &ContainerContext<'_>, launch: &mut Launch) -> Result<(), IsolatorError> {
        let mut limits = self.defaults.clone();
        for (name, pair) in &context.container.agentd.rlimits {
            let (number, soft, hard) = self.read(name, *pair).map_err(|message| {
                let container = &context.container.name;
                IsolatorError::new(NAME, format!("limit {name} of container {container}: {message}"))
            })?;
            limits.insert(number, (soft, hard));
        }
        launch.plan.rlimits =
            limits.into_iter().map(|(resource, (soft, hard))| Rlimit { resource, soft, hard }).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isolator(nofile: u64, may_raise: bool) -> Rlimits {
        Rlimits::with(&BTreeMap::new(), BTreeMap::from([(NOFILE, nofile)]), may_raise, 1_000_000).expect("made")
    }

    #[test]
    fn defaults_stay_below_agentds_own_limits() {
        assert_eq!(isolator(20_000, false).defaults[&NOFILE], (1024, 20_000));
        assert_eq!(isolator(512, false).defaults[&NOFILE], (512, 512));
        assert_eq!(isolator(INFINITY, false).defaults[&NOFILE], (1024, 524_288));
        assert_eq!(isolator(512, true).defaults[&NOFILE], (1024, 524_288));
        assert_eq!(isolator(512, true).defaults[&CORE], (0, INFINITY));
        let node = BTreeMap::from([("nofile".to_owned(), [100, 200]), ("core".to_owned(), [-1, -1])]);
        let made = Rlimits::with(&node, BTreeMap::new(), false, 1_000_000).expect("made");
        assert_eq!(made.defaults[&NOFILE], (100, 200));
        assert_eq!(made.defaults[&CORE], (INFINITY, INFINITY));
        let node = BTreeMap::from([("nofiles".to_owned(), [1, 2])]);
        assert!(Rlimits::with(&node, BTreeMap::new(), false, 1).expect_err("refused").message.contains("nofiles"));
    }

    #[test]
    fn what_cannot_be_set_is_named_by_field_with_its_cure() {
        let mut pod = crate::seccomp::sample_pod();
        pod.containers[0].agentd.rlimits = BTreeMap::from([
            ("bogus".to_owned(), [1, 1]),
            ("core".to_owned(), [0, -1]),
            ("cpu".to_owned(), [-2, 5]),
            ("nofile".to_owned(), [1024, 30_000]),
            ("stack".to_owned(), [5, 4]),
        ]);
        let mut found = Vec::new();
        isolator(20_000, false).check(&pod, &mut found);
        let paths: Vec<&str> = found.iter().filter_map(|v| v.path.rsplit('.').next()).collect();
        assert_eq!(paths, ["bogus", "cpu", "nofile", "stack"], "{found:?}");
        assert!(found[2].message.contains("CAP_SYS_RESOURCE"), "{}", found[2]);
        let mut found = Vec::new();
        isolator(20_000, true).check(&pod, &mut found);
        assert_eq!(found.len(), 3, "{found:?}");
        pod.containers[0].agentd.rlimits = BTreeMap::from([("nofile".to_owned(), [1, -1])]);
        let mut found = Vec::new();
        isolator(20_000, true).check(&pod, &mut found);
        assert!(found[0].message.contains("fs.nr_open"), "{}", found[0]);
    }

    #[test]
    fn numbers_are_those_of_the_c_library() {
        assert_eq!((number("nofile"), number("core")), (Some(NOFILE), Some(CORE)));
        for (name, expected) in [
            ("nofile", i64::from(libc::RLIMIT_NOFILE)),
            ("core", i64::from(libc::RLIMIT_CORE)),
            ("as", i64::from(libc::RLIMIT_AS)),
            ("memlock", i64::from(libc::RLIMIT_MEMLOCK)),
            ("rttime", i64::from(libc::RLIMIT_RTTIME)),
        ] {
            assert_eq!(number(name).map(i64::from), Some(expected), "{name}");
        }
    }

    #[test]
    fn this_process_has_limits() {
        let host = HostCapabilities { grantable: 0, known: 0 };
        let made = Rlimits::new(&BTreeMap::new(), host).expect("readable");
        assert_eq!(made.hard.len(), RESOURCES.len());
        let (soft, hard) = made.defaults[&NOFILE];
        assert!(soft > 0 && soft <= hard && hard <= made.hard[&NOFILE]);
    }
}
