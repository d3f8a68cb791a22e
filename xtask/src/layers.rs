//! `check-layers`: arrows between the workspace's crates point down only.
//!
//! `tests`, `xtask` → `agentd` → isolators, images, fetcher, checks, metrics, logging → ebpf, launcher, api. The crates of
//! one layer do not import each other; the daemon wires them. Every kind of dependency counts, those of tests too.

use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;

/// The lowest layer. `agentd-ebpf` may import `agentd-api` and its layouts; the others import nothing of the workspace.
const LOWEST: &[&str] = &["agentd-api", "agentd-ebpf", "agentd-launcher"];
/// Layouts that programs in the kernel and their loader share: imported by the loader alone.
const LAYOUTS: &str = "agentd-ebpf-common";
const MIDDLE: &[&str] =
    &["agentd-checks", "agentd-fetcher", "agentd-images", "agentd-isolators", "agentd-logging", "agentd-metrics"];
const DAEMON: &str = "agentd";
/// Imports nothing of the workspace, and is imported by the highest layer only.
const TESTBOX: &str = "agentd-testbox";
const HIGHEST: &[&str] = &["agentd-tests", "xtask"];

/// A crate of the workspace and the workspace's crates that it imports.
#[derive(Debug)]
pub struct Crate {
    pub name: String,
    pub imports: Vec<String>,
}

/// Runs the check and prints what is wrong.
pub fn run(root: &Path) -> Result<ExitCode, String> {
    let crates = workspace_crates(root)?;
    let wrong = violations(&crates);
    for line in &wrong {
        println!("{line}");
    }
    if wrong.is_empty() {
        let arrows: usize = crates.iter().map(|one| one.imports.len()).sum();
        println!("{} crates, {arrows} imports, all of them downwards", crates.len());
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// One line for each arrow that is not allowed and each crate without a place.
pub fn violations(crates: &[Crate]) -> Vec<String> {
    let mut wrong = Vec::new();
    for one in crates {
        let Some(allowed) = may_import(&one.name) else {
            wrong.push(format!(
                "{}: crate without a layer; name it in xtask/src/layers.rs and say what it may import",
                one.name
            ));
            continue;
        };
        for import in &one.imports {
            if !allowed.contains(&import.as_str()) {
                let expected = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
                wrong.push(format!("{} → {import}: wrong arrow; {} may import {expected}", one.name, one.name));
            }
        }
    }
    wrong
}

fn may_import(name: &str) -> Option<Vec<&'static str>> {
    Some(match name {
        "agentd-ebpf" => vec!["agentd-api", LAYOUTS],
        LAYOUTS | TESTBOX => Vec::new(),
        name if LOWEST.contains(&name) => Vec::new(),
        name if MIDDLE.contains(&name) => LOWEST.to_vec(),
        DAEMON => [LOWEST, MIDDLE].concat(),
        name if HIGHEST.contains(&name) => [LOWEST, MIDDLE, &[DAEMON, TESTBOX]].concat(),
        _ => return None,
    })
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
}

fn workspace_crates(root: &Path) -> Result<Vec<Crate>, String> {
    let output = crate::cargo(root)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .map_err(|error| format!("cargo metadata cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata cannot be read: {error}"))?;
    Ok(metadata
        .packages
        .into_iter()
        .map(|package| {
            let mut imports: Vec<String> = package
                .dependencies
                .into_iter()
                // a crate may import itself for its own tests
                .filter(|dependency| dependency.path.is_some() && dependency.name != package.name)
                .map(|dependency| dependency.name)
                .collect();
            imports.sort();
            imports.dedup();
            Crate { name: package.name, imports }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(arrows: &[(&str, &[&str])]) -> Vec<Crate> {
        arrows
            .iter()
            .map(|(name, imports)| Crate {
                name: (*name).to_owned(),
                imports: imports.iter().map(|import| (*import).to_owned()).collect(),
            })
            .collect()
    }

    #[test]
    fn arrows_that_point_down_are_allowed() {
        let crates = graph(&[
            ("agentd-api", &[]),
            ("agentd-launcher", &[]),
            ("agentd-ebpf", &["agentd-api"]),
            ("agentd-metrics", &["agentd-ebpf", "agentd-api"]),
            ("agentd", &["agentd-metrics", "agentd-isolators", "agentd-api"]),
            ("xtask", &["agentd-testbox"]),
            ("agentd-tests", &["agentd", "agentd-api", "agentd-testbox"]),
        ]);
        assert_eq!(violations(&crates), Vec::<String>::new());
    }

    #[test]
    fn each_wrong_arrow_is_named() {
        for (from, to) in [
            ("agentd-metrics", "agentd-isolators"),
            ("agentd-logging", "agentd-isolators"),
            ("agentd-api", "agentd-launcher"),
            ("agentd-launcher", "agentd-api"),
            ("agentd-ebpf", "agentd-launcher"),
            ("agentd-isolators", "agentd"),
            ("agentd", "agentd-testbox"),
            ("agentd-testbox", "agentd-api"),
        ] {
            let wrong = violations(&graph(&[(from, &[to])]));
            assert_eq!(wrong.len(), 1, "{from} → {to}");
            assert!(wrong[0].starts_with(&format!("{from} → {to}: ")), "{}", wrong[0]);
        }
    }

    #[test]
    fn a_crate_without_a_layer_is_named() {
        let wrong = violations(&graph(&[("agentd-new", &[])]));
        assert!(wrong.len() == 1 && wrong[0].starts_with("agentd-new: crate without a layer"), "{wrong:?}");
    }

    #[test]
    fn this_workspace_keeps_the_rule() {
        let crates = workspace_crates(&crate::workspace()).unwrap();
        assert!(crates.iter().any(|one| one.name == "agentd" && one.imports.contains(&"agentd-api".to_owned())));
        assert_eq!(violations(&crates), Vec::<String>::new());
    }
}
