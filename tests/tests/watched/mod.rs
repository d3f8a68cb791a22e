//! What a daemon tells of its pods, as a scraper reads it: every scrape goes through the strict reader of the crate that
//! writes it, which takes no series twice and nothing that the formats do not allow.

#![allow(dead_code, reason = "each test binary uses a part")]

#[path = "../../../metrics/src/encode/strict.rs"]
mod strict;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use agentd_tests::{Client, Daemon, host};
use serde_json::{Value, json};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A sample.
#[derive(Debug, Clone)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
    /// Whether it may never fall.
    pub grows: bool,
}

impl Sample {
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// One scrape.
#[derive(Debug, Clone)]
pub struct Scrape(pub Vec<Sample>);

impl Scrape {
    /// Reads a text of either format.
    pub fn read(text: &str, openmetrics: bool) -> Result<Self, String> {
        let mut samples = Vec::new();
        for family in strict::read(text, openmetrics)? {
            let counts = matches!(family.kind.as_str(), "counter" | "histogram");
            for sample in family.samples {
                let grows = counts && !sample.name.ends_with("_created");
                let labels = sample.labels.into_iter().collect();
                samples.push(Sample { name: sample.name, labels, value: sample.value, grows });
            }
        }
        Ok(Self(samples))
    }

    /// Asks a daemon.
    #[track_caller]
    pub fn of(client: &Client) -> Self {
        let answer = client.get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.text);
        Self::read(&answer.text, false).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The samples of this name that have these labels.
    pub fn with(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let fits = |sample: &&Sample| labels.iter().all(|(label, value)| sample.label(label) == *value);
        self.0.iter().filter(|sample| sample.name == name).filter(fits).collect()
    }

    /// Their sum; none if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.with(name, labels).iter().map(|sample| sample.value).reduce(|a, b| a + b)
    }

    /// The same of a container `main`, where no sample counts as 0.
    pub fn main(&self, name: &str, pod: &str, more: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> = [("pod", pod), ("container", "main")].iter().chain(more).copied().collect();
        self.sum(name, &labels).unwrap_or_default()
    }

    /// Who is who, with the value of a sample that is there for each container that is known.
    pub fn pods(&self, name: &str) -> BTreeSet<String> {
        let all = self.0.iter().filter(|sample| sample.name == name && !sample.label("container").is_empty());
        all.map(|sample| sample.label("pod").to_owned()).collect()
    }
}

/// Events of a pod of one kind: container and message. None of them is without its container.
#[track_caller]
pub fn events(client: &Client, pod: &str, kind: &str) -> Vec<String> {
    let all = client.get(&format!("/v1/events?pod={}&kind={kind}", pod.trim_start_matches('/')));
    assert!(all.ok(), "{}", all.text);
    let all = all.json.as_array().cloned().unwrap_or_default();
    for event in &all {
        assert_eq!((event["kind"].as_str(), event["pod"].as_str()), (Some(kind), Some(pod)), "{event}");
        assert!(event["container"].is_string() && event["instance"].is_string(), "{event}");
    }
    all.iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The signals of a daemon: name, rung, why.
#[track_caller]
pub fn signals(client: &Client) -> Vec<(String, String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let seen = client.get("/v1/observe");
    let all = seen.json["signals"].as_array().unwrap_or_else(|| panic!("no signals: {}", seen.text)).clone();
    all.iter().map(|one| (word(&one["signal"]), word(&one["rung"]), word(&one["why"]))).collect()
}

/// Why these signals have no program on this kernel, if one of them has none.
#[track_caller]
pub fn lacks(client: &Client, wanted: &[&str]) -> Option<String> {
    let all = signals(client);
    let missing =
        all.iter().find(|(name, rung, _)| wanted.contains(&name.as_str()) && (rung == "off" || rung == "files"));
    missing.map(|(name, rung, why)| format!("the signal {name} stands on {rung}: {why}"))
}

/// Ends the test early where the kernel has no programs for a signal.
#[macro_export]
macro_rules! needs {
    ($client:expr, $($signal:literal),+) => {
        if let Some(why) = watched::lacks(&$client, &[$($signal),+]) {
            agentd_tests::skip!("{why}");
        }
    };
}

/// Gives a pod's first container these resources.
#[must_use]
pub fn sized(mut pod: Value, cpus: f64, mem: u32) -> Value {
    pod["containers"][0]["resources"] = json!({"cpus": cpus, "mem": mem, "disk": 32});
    pod["containers"][0]["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    pod
}

/// What of eBPF a process holds: numbers of programs, maps and links, and of the links those that hang on cgroups.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Held {
    pub programs: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
    pub cgroup_links: BTreeSet<u32>,
}

impl Held {
    /// Of a process, from what procfs tells of its descriptors.
    pub fn by(pid: u32) -> Self {
        let mut held = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let word = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.map(|value| value.trim().to_owned())
            };
            let number = |name: &str| word(name).and_then(|value| value.parse::<u32>().ok());
            if let Some(link) = number("link_id") {
                held.links.insert(link);
                if word("link_type").as_deref() == Some("cgroup") {
                    held.cgroup_links.insert(link);
                }
            } else if let Some(map) = number("map_id") {
                held.maps.insert(map);
            }
            held.programs.extend(number("prog_id"));
        }
        held
    }

    /// Those that are in the kernel still.
    pub fn left(&self) -> Self {
        let there =
            |kind: Kind, ids: &BTreeSet<u32>| ids.iter().copied().filter(|id| open(kind, *id).is_ok()).collect();
        Self {
            programs: there(Kind::Program, &self.programs),
            maps: there(Kind::Map, &self.maps),
            links: there(Kind::Link, &self.links),
            cgroup_links: there(Kind::Link, &self.cgroup_links),
        }
    }
}

/// What has a number in the kernel.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Program = 13,
    Map = 14,
    Link = 30,
}

fn bpf(command: libc::c_long, attributes: [u32; 4]) -> io::Result<libc::c_long> {
    let size = std::mem::size_of_val(&attributes);
    // SAFETY: the commands used here take numbers alone, no more than are given.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Opens by number.
pub fn open(kind: Kind, id: u32) -> io::Result<OwnedFd> {
    let fd = bpf(kind as libc::c_long, [id, 0, 0, 0])?;
    // SAFETY: the kernel has just returned this number as a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// What `bpftool link detach` does.
#[track_caller]
pub fn detach(link: u32) {
    const LINK_DETACH: libc::c_long = 34;
    let fd = open(Kind::Link, link).unwrap_or_else(|error| panic!("link {link}: {error}"));
    bpf(LINK_DETACH, [fd.as_raw_fd() as u32, 0, 0, 0]).unwrap_or_else(|error| panic!("link {link}: {error}"));
}

/// Numbers of the device programs on the containers of an instance of a pod.
#[track_caller]
pub fn guards(daemon: &Daemon, instance: &str) -> BTreeSet<u32> {
    let folder = host::unified().expect("a cgroup2 tree").join(daemon.instance()).join("pods").join(instance);
    let mut all = BTreeSet::new();
    for cgroup in host::cgroups_below(&folder) {
        let Ok(directory) = fs::File::open(&cgroup) else { continue };
        let found = agentd_ebpf::call::query_device_programs(std::os::fd::AsFd::as_fd(&directory));
        all.extend(found.unwrap_or_else(|error| panic!("{}: {error}", cgroup.display())));
    }
    all
}

/// Looks for series that fell: what grows, by name and labels, with the last value.
#[derive(Debug, Default)]
pub struct Growing {
    last: HashMap<String, f64>,
}

impl Growing {
    /// Takes in a text and gives the series that are there twice and those that fell since the one before. It is quick, for
    /// many texts; [`Scrape::read`] is strict.
    pub fn step(&mut self, text: &str) -> Vec<String> {
        let (mut wrong, mut seen) = (Vec::new(), HashSet::new());
        let mut grows = false;
        for line in text.lines() {
            if let Some(words) = line.strip_prefix("# TYPE ") {
                grows = words.ends_with(" counter") || words.ends_with(" histogram");
            }
            if line.starts_with('#') {
                continue;
            }
            let Some((series, value)) = line.rsplit_once(' ') else {
                wrong.push(format!("no value: {line}"));
                continue;
            };
            if !seen.insert(series) {
                wrong.push(format!("twice: {series}"));
            }
            let value: f64 = value.parse().unwrap_or(f64::NAN);
            if !grows {
                continue;
            }
            if value.is_nan() {
                wrong.push(format!("no number: {line}"));
            } else if let Some(before) = self.last.get_mut(series) {
                if value < *before {
                    wrong.push(format!("{series}: {before} and then {value}"));
                }
                *before = value;
            } else {
                self.last.insert(series.to_owned(), value);
            }
        }
        wrong
    }
}
