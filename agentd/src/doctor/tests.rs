use super::*;
use crate::config::Config;

fn config() -> Config {
    Config::defaults("agentd", None)
}

#[test]
fn every_check_says_what_it_disables_and_the_cure() {
    let checks = run(&config());
    assert!(checks.len() > 40, "{}", checks.len());
    let mut names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), checks.len(), "names are unique");
    for check in &checks {
        assert!(!check.found.is_empty(), "{check:?}");
        for line in [&check.name, &check.found, &check.disables, &check.cure] {
            assert!(!line.contains('\n'), "{check:?}");
        }
        assert_eq!(check.status == Status::Ok, check.disables.is_empty(), "{check:?}");
        assert_eq!(check.status == Status::Ok, check.cure.is_empty(), "{check:?}");
    }
}

#[test]
fn looking_leaves_nothing_behind() {
    // Other tests of this program run in the same process, so only what cannot be theirs is compared.
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let children = || {
        let path = format!("/proc/self/task/{}/children", rustix::thread::gettid().as_raw_nonzero());
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let links = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let before = (mounts(), children(), links("mnt"), links("net"), links("user"));
    run(&config());
    assert_eq!(before, (mounts(), children(), links("mnt"), links("net"), links("user")));
}

#[test]
fn rendering_sums_up_and_says_each_thing() {
    let checks = vec![
        Check::ok("a", "fine"),
        Check::warn("b", "odd", "speed", "turn it on"),
        Check::fail("c", "missing", "pods", "install it"),
    ];
    let table = render_table(&checks, false);
    for words in ["fine", "odd", "disables: speed", "cure: turn it on", "install it", "1 ok, 1 warn, 1 fail"] {
        assert!(table.contains(words), "{words}:\n{table}");
    }
    assert!(!table.contains('\u{1b}'));
    let json: serde_json::Value = serde_json::from_str(&render_json(&checks)).unwrap();
    assert_eq!(json["status"], "fail");
    assert_eq!(json["checks"][1]["cure"], "turn it on");
    assert_eq!(json["checks"][0].get("cure"), None);
    assert_eq!(exit_code(&checks), 1);
    assert_eq!(exit_code(&checks[..2]), 0);
    assert_eq!(worst(&[]), Status::Ok);
}

#[test]
fn a_disk_is_scarce_below_a_tenth_or_5_gib() {
    assert!(!storage::scarce(5 << 10, 50 << 10) && storage::scarce((5 << 10) - 1, 50 << 10));
    assert!(!storage::scarce(100 << 10, 1000 << 10) && storage::scarce((100 << 10) - 1, 1000 << 10));
}

#[test]
fn versions_are_read_from_releases() {
    assert_eq!(process::version("6.1.0-13-amd64"), (6, 1));
    assert_eq!(process::version("6.18.44-x"), (6, 18));
    assert_eq!(process::version("5.15-rc1"), (5, 15));
    assert_eq!(process::version("odd"), (0, 0));
}

#[test]
fn capabilities_are_judged_by_need() {
    let all = process::capabilities("CapEff:\t000001ffffffffff\n");
    assert!(all.iter().all(|check| check.status == Status::Ok));
    let checks = process::capabilities("CapEff:\t000001fffeffffff\n");
    assert_eq!(checks[0].status, Status::Ok);
    assert_eq!(checks[1].status, Status::Warn);
    let checks = process::capabilities("CapEff:\t000001ffffdfffff\n");
    assert_eq!(checks[0].status, Status::Fail);
    assert!(checks[0].found.contains("CAP_SYS_ADMIN"), "{checks:?}");
}

const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory,favordynmods
33 30 0:29 / /sys/fs/cgroup/pids ro,relatime - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

#[test]
fn controllers_are_found_where_they_are() {
    let hierarchies = cgroups::hierarchies(HYBRID);
    assert_eq!(hierarchies.len(), 4);
    let checks = cgroups::mode(&hierarchies, "hugetlb io");
    let check = |name: &str| checks.iter().find(|check| check.name == name).unwrap();
    assert!(check("cgroup").found.starts_with("hybrid"));
    assert_eq!(check("cgroup/cpu").found, "v1 at /sys/fs/cgroup/cpu");
    assert_eq!(check("cgroup/pids").status, Status::Fail);
    assert!(check("cgroup/pids").cure.contains("remount,rw /sys/fs/cgroup/pids"));
    assert_eq!(check("cgroup/io").found, "v2 at /sys/fs/cgroup/unified");
    assert_eq!(check("cgroup/cpuset").status, Status::Warn);
    let slow = cgroups::favordynmods(&hierarchies);
    assert_eq!(slow.status, Status::Warn);
    assert!(slow.cure.contains("favordynmods /sys/fs/cgroup/cpu;") && !slow.cure.contains("/memory"), "{slow:?}");

    let pure = cgroups::hierarchies("30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
    let checks = cgroups::mode(&pure, "cpuset cpu io memory hugetlb pids");
    assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:?}");
    assert_eq!(cgroups::favordynmods(&pure).status, Status::Ok);
    assert_eq!(cgroups::mode(&[], "")[0].status, Status::Fail);
}

#[test]
fn seccomp_needs_its_actions() {
    assert_eq!(kernel::seccomp("kill_process kill_thread trap errno user_notif trace log allow").status, Status::Ok);
    assert_eq!(kernel::seccomp("kill trap errno trace allow").status, Status::Fail);
}

#[test]
fn plugins_of_networks_are_named() {
    let list =
        serde_json::json!({"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]});
    assert_eq!(network::plugin_types(&list), ["bridge", "host-local", "portmap"]);
    assert_eq!(network::plugin_types(&serde_json::json!({"type": "macvlan"})), ["macvlan"]);
}

#[test]
fn damaged_type_information_is_no_panic() {
    let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        assert_eq!(bpf::typedef(b"", b"x"), None);
        return;
    };
    assert!(bpf::typedef(&btf, b"btf_trace_sched_switch").is_some());
    assert_eq!(bpf::typedef(&btf, b"no_such_typedef_here"), None);
    for length in [0, 3, 4, 23, 24, 30, 1000, btf.len() / 2] {
        assert_eq!(bpf::typedef(&btf[..length], b"no_such_typedef_here"), None);
    }
}
