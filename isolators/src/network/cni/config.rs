//! The networks described in `/etc/cni/net.d`: `*.conflist`, and `*.conf` or `*.json` with a single plugin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Versions of the CNI specification that agentd speaks.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Largest configuration file that is read.
const MAX_SIZE: u64 = 1 << 20;

/// A network: a chain of plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::network) struct NetworkConfig {
    /// Name.
    pub name: String,
    /// Version of the specification that the plugins are spoken to in.
    pub cni_version: String,
    /// Whether CHECK is never called.
    #[serde(default)]
    pub disable_check: bool,
    /// Configuration of each plugin.
    pub plugins: Vec<Map<String, Value>>,
}

impl NetworkConfig {
    /// Reads a configuration.
    pub fn parse(text: &[u8], list: bool) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
        let Value::Object(document) = value else {
            return Err("is not a JSON object".to_owned());
        };
        let text_of = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
        let name = text_of("name").ok_or("has no name: expected a text under \"name\"")?;
        if !super::is_network_name(&name) {
            return Err(format!("has the name {name:?}: expected letters, digits, '.', '_' and '-'"));
        }
        let cni_version = text_of("cniVersion").unwrap_or_else(|| "0.2.0".to_owned());
        if !VERSIONS.contains(&cni_version.as_str()) {
            return Err(format!("has cniVersion {cni_version:?}: expected one of {}", VERSIONS.join(", ")));
        }
        let disable_check = match document.get("disableCheck") {
            Some(Value::Bool(value)) => *value,
            Some(Value::String(value)) => value == "true",
            _ => false,
        };
        let plugins = if list {
            let plugins = document.get("plugins").and_then(Value::as_array).cloned();
            let plugins = plugins.filter(|plugins| !plugins.is_empty());
            plugins.ok_or("has no plugins: expected a list of at least one under \"plugins\"")?
        } else {
            vec![Value::Object(document)]
        };
        let mut checked = Vec::with_capacity(plugins.len());
        for (index, plugin) in plugins.into_iter().enumerate() {
            let Value::Object(plugin) = plugin else {
                return Err(format!("plugins[{index}] is not a JSON object"));
            };
            let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
            // The type becomes a file name below the plugin folders.
            if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
                return Err(format!("plugins[{index}].type is {kind:?}: expected the file name of a plugin"));
            }
            checked.push(plugin);
        }
        Ok(Self { name, cni_version, disable_check, plugins: checked })
    }

    /// Names of the programs that the network needs.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().flat_map(|plugin| {
            let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type"));
            [plugin.get("type"), ipam].into_iter().flatten().filter_map(Value::as_str).filter(|name| !name.is_empty())
        })
    }

    /// Whether some plugin takes this part of `runtimeConfig`.
    pub fn has_capability(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| capable(plugin, capability))
    }

    /// Whether the version is at least `major.minor`.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.cni_version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }
}

/// Whether a plugin says that it takes this part of `runtimeConfig`.
pub(super) fn capable(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin.get("capabilities").and_then(|all| all.get(capability)).and_then(Value::as_bool) == Some(true)
}

/// The networks of a host.
#[derive(Debug, Default)]
pub(in crate::network) struct Networks {
    /// By name.
    pub by_name: BTreeMap<String, NetworkConfig>,
    /// Files that are wrong: one line each.
    pub problems: Vec<String>,
}

/// Reads every configuration in the folder, in the order of the file names; the first of a name counts. It is read
/// anew each time, so that a network is known as soon as its file is there.
pub(in crate::network) fn load(folder: &Path) -> Networks {
    let mut networks = Networks::default();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return networks;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let list = match path.extension().and_then(|extension| extension.to_str()) {
            Some("conflist") => true,
            Some("conf" | "json") => false,
            _ => continue,
        };
        let text = match std::fs::metadata(&path) {
            Ok(facts) if !facts.is_file() => continue,
            Ok(facts) if facts.len() > MAX_SIZE => {
                networks.problems.push(format!("{} is larger than {MAX_SIZE} bytes", path.display()));
                continue;
            }
            _ => std::fs::read(&path),
        };
        match text
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|text| NetworkConfig::parse(&text, list))
        {
            Ok(config) if networks.by_name.contains_key(&config.name) => {
                networks.problems.push(format!("{} describes network {} a second time", path.display(), config.name));
            }
            Ok(config) => {
                networks.by_name.insert(config.name.clone(), config);
            }
            Err(problem) => networks.problems.push(format!("{} {problem}", path.display())),
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_plugins() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        put(
            "10-a.conflist",
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        );
        put("20-b.conf", r#"{"cniVersion":"0.4.0","name":"b","type":"ptp"}"#);
        put("30-again.conf", r#"{"cniVersion":"0.4.0","name":"a","type":"ptp"}"#);
        put("40-old.conf", r#"{"cniVersion":"0.1.0","name":"old","type":"ptp"}"#);
        put("50-evil.conf", r#"{"cniVersion":"1.0.0","name":"evil","type":"../../bin/sh"}"#);
        put("60-empty.conflist", r#"{"cniVersion":"1.0.0","name":"empty","plugins":[]}"#);
        put("README", "no network");
        let networks = load(folder.path());
        assert_eq!(networks.by_name.keys().collect::<Vec<_>>(), ["a", "b"]);
        let a = &networks.by_name["a"];
        assert_eq!(a.programs().collect::<Vec<_>>(), ["bridge", "host-local", "portmap"]);
        assert!(a.has_capability("portMappings") && !a.has_capability("dns"));
        assert!(a.at_least(0, 4) && a.at_least(1, 0) && !a.at_least(1, 1));
        assert_eq!(networks.problems.len(), 4, "{:?}", networks.problems);
        assert!(load(&folder.path().join("absent")).by_name.is_empty());
    }
}
