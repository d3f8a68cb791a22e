//! Profiles: a program whose time is known by function, in a container beside others. What is told is its own, with the
//! shares that it has; nothing stays in the kernel when nobody profiles, whatever becomes of the daemon.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use agentd_tests::images::{self, Config, Content, Entry};
use agentd_tests::{Client, Daemon, binary, eventually, pods, privileged, skip, until};
use serde_json::{Value, json};

/// Three times as long in one function as in the other.
const PROGRAM: &str = r"
#[inline(never)]
#[no_mangle]
extern fn HOT_a(mut value: u64) -> u64 {
    for _ in 0..3_000_000 { value = std::hint::black_box(value.wrapping_mul(31).wrapping_add(7)); }
    value
}
#[inline(never)]
#[no_mangle]
extern fn HOT_b(mut value: u64) -> u64 {
    for _ in 0..1_000_000 { value = std::hint::black_box(value.wrapping_mul(31).wrapping_add(7)); }
    value
}
fn main() {
    let mut value = 1;
    loop {
        value = std::hint::black_box(HOT_a(value));
        value = std::hint::black_box(HOT_b(value));
    }
}
";

/// Builds the program with functions of this prefix; none where there is no compiler.
fn build(prefix: &str, stripped: bool) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (source, program) = (folder.path().join("hot.rs"), folder.path().join("hot"));
    std::fs::write(&source, PROGRAM.replace("HOT_", prefix)).map_err(|error| error.to_string())?;
    let strip = if stripped { "strip=symbols" } else { "strip=none" };
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args([
            "--edition",
            "2021",
            "-O",
            "-Cforce-frame-pointers=yes",
            "-Ctarget-feature=+crt-static",
            "-Cpanic=abort",
        ])
        .args(["-C", strip, "-o"])
        .arg(&program)
        .arg(&source)
        .output()
        .map_err(|error| format!("rustc cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("rustc fails: {}", String::from_utf8_lossy(&output.stderr)));
    }
    std::fs::read(&program).map_err(|error| error.to_string())
}

/// The programs: with the functions `hot_…`, with `other_…`, and the first one without symbols.
fn programs() -> Result<&'static [Vec<u8>; 3], &'static str> {
    static BUILT: OnceLock<Result<[Vec<u8>; 3], String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| Ok([build("hot_", false)?, build("other_", false)?, build("hot_", true)?]));
    built.as_ref().map_err(String::as_str)
}

/// A pod that runs a program of an image until it is removed.
fn pod(daemon: &Daemon, id: &str, program: &[u8], label: Option<&str>) -> Value {
    let layers = vec![vec![Entry { path: "bin/hot".to_owned(), content: Content::File(0o755, program.to_vec()) }]];
    let config = Config { cmd: vec!["/bin/hot".to_owned()], layers, ..Config::default() };
    let folder: PathBuf = daemon.dir().join(format!("layout{}", id.replace('/', "-")));
    let image = images::oci(&folder, "1", &config);
    let mut resources = pods::resources();
    resources["cpus"] = json!(0.5);
    let container = json!({
        "name": "main", "image": image, "resources": resources, "lifecycle": {"killGracePeriodSeconds": 0.1},
    });
    let mut pod = pods::once(id, container);
    if let Some(label) = label {
        pod["labels"] = json!({ "agentd.profile": label });
    }
    pod
}

/// Samples by the line of folded text.
fn lines(folded: &str) -> Vec<(&str, u64)> {
    folded
        .lines()
        .map(|line| {
            let (stack, samples) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no line of folded text: {line:?}"));
            (stack, samples.parse().unwrap_or_else(|_| panic!("no line of folded text: {line:?}")))
        })
        .collect()
}

/// Samples with a function anywhere on their stack.
fn with(folded: &str, function: &str) -> u64 {
    let has = |stack: &str| stack.split(';').any(|name| name == function);
    lines(folded).iter().filter(|(stack, _)| has(stack)).map(|(_, samples)| samples).sum()
}

fn total(folded: &str) -> u64 {
    lines(folded).iter().map(|(_, samples)| samples).sum()
}

#[track_caller]
fn profile(client: &Client, query: &str) -> String {
    let response = client.get(&format!("/v1/profile?{query}"));
    assert!(response.ok(), "{query}: {} {}", response.status, response.text);
    response.text
}

/// Numbers of the profile's programs in the kernel, also of other daemons.
fn kernel_programs() -> BTreeSet<u32> {
    agentd_ebpf::observe::profile::loaded().expect("the kernel tells its programs")
}

/// Clocks that a process runs: descriptors of links from a program to an event of the kernel's perf.
fn clocks(pid: u32) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let link = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| line.split_whitespace().eq(["link_type:", "perf"]))
    };
    folder.filter(|entry| link(&entry.path())).count()
}

#[test]
fn shares_are_those_of_the_program_and_of_nobody_else() {
    privileged!();
    let programs = match programs() {
        Ok(programs) => programs,
        Err(reason) => skip!("{reason}"),
    };
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pod(&daemon, "/hot", &programs[0], None));
    client.run_pod(&pod(&daemon, "/other", &programs[1], None));
    assert_eq!(clocks(daemon.pid()), 0);
    let used = || {
        let usage = client.get("/v1/usage?pod=hot");
        usage.json[0]["cpuNs"].as_u64().unwrap_or_else(|| panic!("no CPU time in {}", usage.text))
    };
    let before = used();
    let folded = std::thread::scope(|scope| {
        let asked = scope.spawn(|| profile(&client, "pod=hot&seconds=8&hz=99"));
        until("a clock runs", Duration::from_secs(8), || (clocks(daemon.pid()) > 0).then_some(()));
        asked.join().expect("a profile is had")
    });
    let (a, b, all) = (with(&folded, "hot_a"), with(&folded, "hot_b"), total(&folded));
    println!("{all} samples: hot_a {a}, hot_b {b}");
    // the container's own account of its time says how many there should be
    let expected = (used() - before) as f64 / 1e9 * 99.0;
    println!("{expected:.0} samples expected");
    // its account is read a while before sampling begins and after it ends: on a busy host that is a part of it
    let range = expected * 0.5..=expected * 1.15 + 10.0;
    assert!(all >= 30 && range.contains(&(all as f64)), "{all} of {expected}:\n{folded}");
    assert!((a + b) * 100 >= all * 90, "{a} + {b} of {all}:\n{folded}");
    // four standard deviations of that many samples
    let share = a as f64 / (a + b) as f64;
    let off = 4.0 * (0.75 * 0.25 / (a + b) as f64).sqrt();
    assert!((share - 0.75).abs() <= off, "{share} of {all}");
    assert!(!folded.contains("other_"), "{folded}");
    assert!(lines(&folded).iter().all(|(stack, _)| stack.starts_with("hot;")), "{folded}");
    // callers are there: frame pointers are followed
    assert!(lines(&folded).iter().any(|(stack, _)| stack.matches(';').count() >= 2), "{folded}");

    let svg = profile(&client, "pod=other&seconds=1&format=svg");
    assert!(svg.starts_with("<?xml") && svg.contains("<title>other_a (") && !svg.contains("hot_a"), "{svg}");

    let refused = client.get("/v1/profile?pod=hot&seconds=0");
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert_eq!(client.get("/v1/profile?pod=nobody&seconds=1").status, 404);
    assert!(eventually(Duration::from_secs(10), || clocks(daemon.pid()) == 0), "clocks run on");
}

#[test]
fn a_stripped_program_is_told_by_file_and_address() {
    privileged!();
    let programs = match programs() {
        Ok(programs) => programs,
        Err(reason) => skip!("{reason}"),
    };
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pod(&daemon, "/stripped", &programs[2], None));
    let folded = profile(&client, "pod=stripped&seconds=3&hz=99");
    assert!(total(&folded) > 30 && folded.contains(";[hot+0x") && !folded.contains("hot_a"), "{folded}");
}

#[test]
fn a_label_keeps_a_profile_that_outlives_its_container() {
    privileged!();
    let programs = match programs() {
        Ok(programs) => programs,
        Err(reason) => skip!("{reason}"),
    };
    let daemon = Daemon::start();
    let client = daemon.client();
    let refused = client.post("/v1/pods", &pod(&daemon, "/often", &programs[0], Some("1000")));
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert_eq!(refused.json["errors"][0]["path"], r#"labels["agentd.profile"]"#, "{}", refused.text);
    assert_eq!(client.get("/v1/profile?pod=kept").status, 404);

    client.run_pod(&pod(&daemon, "/kept", &programs[0], Some("49")));
    client.run_pod(&pod(&daemon, "/unlabelled", &programs[1], None));
    until("a clock runs", Duration::from_secs(20), || (clocks(daemon.pid()) > 0).then_some(()));
    let some = |query: &str, least: u64| {
        until("a profile is kept", Duration::from_secs(40), || {
            let response = client.get(&format!("/v1/profile?{query}"));
            let enough = response.ok() && total(&response.text) >= least;
            enough.then_some(response.text)
        })
    };
    let folded = some("pod=kept", 20);
    assert!(with(&folded, "hot_a") > with(&folded, "hot_b"), "{folded}");
    let missing = client.get("/v1/profile?pod=unlabelled");
    assert!(missing.status == 404 && missing.text.contains("agentd.profile=true"), "{}", missing.text);

    client.rm("/kept");
    let after = some("pod=kept", total(&folded));
    assert!(with(&after, "hot_a") >= with(&folded, "hot_a"), "{after}");
    assert!(eventually(Duration::from_secs(15), || clocks(daemon.pid()) == 0), "clocks run on");

    // as agentctl writes it, in the form of pprof
    let file = daemon.dir().join("kept.pb.gz");
    let output = Command::new(binary("agentctl"))
        .args(["profile", "kept", "--format", "pprof", "--file"])
        .arg(&file)
        .env("AGENTD_SOCKET", daemon.socket())
        .output()
        .expect("agentctl can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes[..2], [0x1f, 0x8b], "gzip");
    let plain = gunzip(&file);
    let names = texts(&plain);
    assert_eq!(names.first().map(String::as_str), Some(""));
    for name in ["samples", "count", "cpu", "nanoseconds", "hot_a", "hot_b", "/bin/hot"] {
        assert!(names.iter().any(|text| text == name), "{name} is not among {names:?}");
    }
}

fn gunzip(file: &Path) -> Vec<u8> {
    let output = Command::new("gzip").args(["-dc"]).arg(file).output().expect("gzip can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The table of texts of a profile (field 6), read as the wire format of protobuf has it, without the code under test.
fn texts(bytes: &[u8]) -> Vec<String> {
    fn varint(bytes: &[u8], at: &mut usize) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        panic!("a varint without end");
    }
    let (mut at, mut texts, mut seen) = (0, Vec::new(), String::new());
    while at < bytes.len() {
        let tag = varint(bytes, &mut at);
        match tag & 7 {
            0 => drop(varint(bytes, &mut at)),
            2 => {
                let length = usize::try_from(varint(bytes, &mut at)).unwrap();
                let value = &bytes[at..at + length];
                at += length;
                if tag >> 3 == 6 {
                    texts.push(String::from_utf8(value.to_vec()).unwrap());
                }
            }
            other => panic!("wire type {other} in a profile"),
        }
        let _ = write!(seen, "{} ", tag >> 3);
    }
    for field in ["1", "2", "3", "4", "5", "9", "10", "11", "12"] {
        assert!(seen.split(' ').any(|one| one == field), "no field {field}: {seen}");
    }
    texts
}

#[test]
fn nothing_stays_in_the_kernel_after_a_kill() {
    privileged!();
    let programs = match programs() {
        Ok(programs) => programs,
        Err(reason) => skip!("{reason}"),
    };
    let before = kernel_programs();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pod(&daemon, "/kept", &programs[0], Some("true")));
    let mine = |daemon: &Daemon| {
        until("a clock runs", Duration::from_secs(20), || (clocks(daemon.pid()) > 0).then_some(()));
        &kernel_programs() - &before
    };
    let first = mine(&daemon);
    assert!(!first.is_empty(), "no program was loaded");
    daemon.kill9();
    // others' tests may profile meanwhile: those that were there with this daemon must go
    assert!(eventually(Duration::from_secs(20), || kernel_programs().is_disjoint(&first)), "{first:?} stay");

    // the next daemon profiles the container that ran on
    daemon.restart();
    let second = mine(&daemon);
    assert!(!second.is_empty());
    let client = daemon.client();
    until("a profile is kept", Duration::from_secs(40), || {
        let response = client.get("/v1/profile?pod=kept");
        (response.ok() && with(&response.text, "hot_a") > 5).then_some(())
    });
    daemon.terminate();
    assert!(eventually(Duration::from_secs(20), || kernel_programs().is_disjoint(&second)), "{second:?} stay");
}
