//! Signals of the kernel: on which rung each stands, and why. A daemon that runs is asked; without one the programs are loaded
//! for a moment and taken out again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use agentd_api::message::{Observation, ObservedSignal};
use agentd_ebpf::observe::{Observer, Signal, profile};
use agentd_isolators::cgroup::{Controller, Layout, Placement};

use super::{Check, existing, read};
use crate::api::observed;
use crate::config::Config;
use crate::observe::stacks;
use crate::observe::watcher::{self, Trees};
use crate::profile::Figures;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most of an answer that is read.
const MOST: u64 = 4 << 20;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![perf()];
    if config.observe.groups.is_empty() {
        checks.push(Check::ok("observe", "off: observe.groups is empty; files of the kernel serve alone"));
        return checks;
    }
    let (who, signals) = match ask(&config.paths.socket) {
        Some(observation) => ("the daemon", observation.signals),
        None => ("a trial", trial(config)),
    };
    checks.extend(signals.iter().map(|signal| row(who, signal)));
    checks
}

fn row(who: &str, signal: &ObservedSignal) -> Check {
    let name = format!("observe/{}", signal.signal);
    let ObservedSignal { rung, why, .. } = signal;
    let Some(why) = why else { return Check::ok(name, format!("{rung} ({who})")) };
    let found = format!("{rung} ({who}): {}", why.lines().next().unwrap_or_default());
    let wanted = !why.contains("observe.groups") && why != stacks::IDLE;
    match rung.as_str() {
        _ if !wanted => Check::ok(name, found),
        "off" => Check::warn(name, found, "this signal of containers", CURE),
        "files" => Check::warn(name, found, "what programs tell beyond the kernel's files", CURE),
        _ => Check::ok(name, found),
    }
}

const CURE: &str = "use Linux 6.1 or later with CONFIG_DEBUG_INFO_BTF, and run agentd with CAP_BPF and CAP_PERFMON or \
                    CAP_SYS_ADMIN; observe.without leaves rungs out";

/// Whether software clocks, which stacks are sampled by, are to be had.
fn perf() -> Check {
    const FILE: &str = "/proc/sys/kernel/perf_event_paranoid";
    match read(FILE) {
        Some(level) => Check::ok("perf_event", format!("there; {FILE} is {level}")),
        None => Check::warn(
            "perf_event",
            format!("{FILE} is missing"),
            "profiles of containers",
            "use a kernel with CONFIG_PERF_EVENTS",
        ),
    }
}

/// What a daemon that runs tells; none where there is none, or an older one.
fn ask(socket: &Path) -> Option<Observation> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET /v1/observe HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).ok()?;
    body(&answer)
}

/// The body of an answer with status 200.
fn body(answer: &[u8]) -> Option<Observation> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    head.starts_with("HTTP/1.1 200 ").then(|| serde_json::from_slice(&answer[end + 4..]).ok())?
}

/// Loads what the configuration asks for, looks, and takes it out.
fn trial(config: &Config) -> Vec<ObservedSignal> {
    let Ok(layout) = Layout::discover() else { return Vec::new() };
    let Some(unified) = layout.unified.clone() else { return Vec::new() };
    let trees = Trees {
        pods: existing(&unified.join(&config.instance).join("pods")).to_path_buf(),
        unified,
        parent: config.instance.clone(),
        charged_io: matches!(layout.placement(Controller::Io), Placement::V2),
    };
    let settings = watcher::settings(&config.observe, trees);
    let mut signals = settings.map(|settings| Observer::start(settings).signals()).unwrap_or_default();
    let fault = stacks::refused(&config.observe).is_none().then(|| profile::attempt().err()).flatten();
    let figures = Figures { hz: profile::SLOWEST, fault, ..Figures::default() };
    signals.retain(|state| state.signal != Signal::Stacks);
    signals.push(stacks::state(&config.observe, &figures));
    signals.into_iter().map(observed).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn signal(rung: &str, why: Option<&str>) -> ObservedSignal {
        ObservedSignal {
            signal: "exec".into(),
            rung: rung.into(),
            group: "process".into(),
            why: why.map(str::to_owned),
        }
    }

    #[test]
    fn a_rung_below_the_best_says_why_and_a_missing_signal_warns() {
        let best = row("a trial", &signal("tp_btf", None));
        assert_eq!(
            (best.name.as_str(), best.status, best.found.as_str()),
            ("observe/exec", Status::Ok, "tp_btf (a trial)")
        );
        let lower = row("a trial", &signal("tracepoint", Some("no BTF\nmore")));
        assert_eq!((lower.status, lower.found.as_str()), (Status::Ok, "tracepoint (a trial): no BTF"));
        let off = row("the daemon", &signal("off", Some("EPERM")));
        assert!(off.status == Status::Warn && !off.disables.is_empty() && !off.cure.is_empty());
        assert_eq!(row("the daemon", &signal("off", Some(stacks::IDLE))).status, Status::Ok);
        assert_eq!(row("the daemon", &signal("off", Some("observe.groups has not process"))).status, Status::Ok);
    }

    #[test]
    fn only_a_sound_answer_counts() {
        let sound = br#"{"signals":[{"signal":"exec","rung":"tp_btf","group":"process"}],"programs":[],"maps":[],"containers":1,"ended":0}"#;
        let answer = |head: &str| [head.as_bytes(), b"\r\n\r\n", sound].concat();
        assert_eq!(body(&answer("HTTP/1.1 200 OK\r\nx: y")).unwrap().signals.len(), 1);
        assert!(body(&answer("HTTP/1.1 404 Not Found")).is_none());
        assert!(body(b"HTTP/1.1 200 OK\r\n\r\n{").is_none());
        assert!(body(b"").is_none());
    }
}
