//! The reference and the examples say what the parser does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use agentd_api::parse;
use agentd_api::pod::{PodSpec, RestartPolicy};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn reference() -> String {
    std::fs::read_to_string(repository().join("docs/pod.md")).unwrap()
}

/// The fields that the reference lists, and which of them it marks as required, by heading.
fn described(reference: &str) -> BTreeMap<&str, BTreeMap<&str, bool>> {
    let mut sections: BTreeMap<&str, BTreeMap<&str, bool>> = BTreeMap::new();
    let mut heading = "";
    let mut fields_follow = false;
    for line in reference.lines() {
        if let Some(text) = line.strip_prefix("## ").or_else(|| line.strip_prefix("### ")) {
            heading = text;
        } else if line.starts_with('|') {
            let cell = line.trim_start_matches('|').split('|').next().unwrap_or_default().trim();
            if cell == "Field" {
                fields_follow = true;
            } else if fields_follow && !cell.starts_with("---") {
                let (name, required) = cell.strip_suffix(" *").map_or((cell, false), |name| (name, true));
                let repeated = sections.entry(heading).or_default().insert(name.trim_matches('`'), required);
                assert_eq!(repeated, None, "{heading} describes {name} twice");
            }
        } else {
            fields_follow = false;
        }
    }
    sections
}

#[test]
fn the_reference_describes_each_field_and_no_other() {
    let reference = reference();
    let described = described(&reference);
    let known: BTreeMap<_, _> =
        parse::known_fields().iter().map(|fields| (fields.object, fields.names.iter().copied().collect())).collect();
    let described: BTreeMap<_, BTreeSet<_>> =
        described.into_iter().map(|(object, fields)| (object, fields.into_keys().collect())).collect();
    assert_eq!(described, known);
}

#[test]
fn the_reference_marks_what_is_required() {
    // Each object alone, where that is enough to be told all that is missing in it.
    for (object, json) in [
        ("the pod", "{}"),
        ("environment.*", r#"{"environment":{"A":{}}}"#),
        ("secrets.*", r#"{"secrets":{"A":{}}}"#),
        ("volumes[]", r#"{"volumes":[{}]}"#),
        ("scheduling.placement.constraints[]", r#"{"scheduling":{"placement":{"constraints":[{}]}}}"#),
        ("containers[].image", r#"{"containers":[{"image":{}}]}"#),
        ("containers[].exec", r#"{"containers":[{"exec":{}}]}"#),
        ("containers[].endpoints[]", r#"{"networks":[{"mode":0}],"containers":[{"endpoints":[{}]}]}"#),
        ("containers[].healthCheck.http", r#"{"containers":[{"healthCheck":{"http":{}}}]}"#),
        ("containers[].healthCheck.tcp", r#"{"containers":[{"healthCheck":{"tcp":{}}}]}"#),
        ("containers[].healthCheck.exec", r#"{"containers":[{"healthCheck":{"exec":{}}}]}"#),
        ("containers[].volumeMounts[]", r#"{"containers":[{"volumeMounts":[{}]}]}"#),
        ("containers[].artifacts[]", r#"{"containers":[{"artifacts":[{}]}]}"#),
        ("containers[].agentd.seccomp", r#"{"containers":[{"agentd":{"seccomp":{}}}]}"#),
        ("containers[].agentd.io.limits[]", r#"{"containers":[{"agentd":{"io":{"limits":[{}]}}}]}"#),
    ] {
        let violations = parse::pod(json.as_bytes()).unwrap_err();
        let missing: BTreeSet<_> = violations
            .iter()
            .filter(|violation| violation.message.starts_with("missing; "))
            .filter_map(|violation| {
                let (parent, field) = violation.path.rsplit_once('.').unwrap_or(("", &violation.path));
                let parent = parent.replace("[0]", "[]").replace(".A", ".*");
                (parent == object || (parent.is_empty() && object == "the pod")).then_some(field)
            })
            .collect();
        let reference = reference();
        let described = described(&reference);
        let required: BTreeSet<_> =
            described[object].iter().filter(|(_, required)| **required).map(|(name, _)| *name).collect();
        assert_eq!(missing, required, "{object}");
    }
}

fn example(name: &str) -> PodSpec {
    let json = std::fs::read(repository().join("examples").join(name)).unwrap();
    parse::pod(&json).unwrap_or_else(|violations| panic!("{name}: {violations:#?}"))
}

#[test]
fn every_example_is_valid_and_listed() {
    let listed = std::fs::read_to_string(repository().join("examples/README.md")).unwrap();
    let mut read = 0;
    for entry in std::fs::read_dir(repository().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if Path::new(&name).extension().is_some_and(|extension| extension == "json") {
            example(&name);
            assert!(listed.contains(&format!("`{name}`")), "examples/README.md does not list {name}");
            read += 1;
        }
    }
    assert!(read >= 2);
}

#[test]
fn hello_runs_once_on_the_hosts_programs() {
    let pod = example("hello.json");
    assert_eq!(pod.agentd.restart, RestartPolicy::Never);
    assert_eq!(pod.containers.len(), 1);
    assert_eq!(pod.containers[0].image, None);
}

#[test]
fn web_and_cache_share_a_network_and_a_volume() {
    let pod = example("web-and-cache.json");
    let names: Vec<_> = pod.containers.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(names, ["web", "cache"]);
    assert_eq!(pod.networks.len(), 1);
    assert_eq!(pod.networks[0].name, None);
    let endpoint = &pod.containers[0].endpoints[0];
    assert_eq!((endpoint.container_port, endpoint.host_port), (Some(8080), Some(0)));
    for container in &pod.containers {
        assert_eq!(container.volume_mounts[0].name, pod.volumes[0].name);
    }
}
