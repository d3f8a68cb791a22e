//! Networks of the Container Network Interface: agentd runs the plugins' chain as the specification says (versions 0.3
//! to 1.1) and remembers configuration and result of every attachment, so that it can be undone after a restart and
//! after its configuration file has changed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentd_api::pod::{Dns, Protocol};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{EndpointPort, exec, fail};
use crate::IsolatorError;

pub(super) mod config;

use config::NetworkConfig;

/// One attachment of a pod to a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Attachment {
    /// The network, as it was configured when the pod was attached.
    pub network: NetworkConfig,
    /// Name of the link in the pod.
    pub interface: String,
    /// What agentd tells the plugins at run time.
    #[serde(default)]
    pub runtime: Map<String, Value>,
    /// The result of ADD; none if it was not reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

impl Attachment {
    /// The addresses in the result.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result.as_ref().and_then(|result| result.get("ips")).and_then(Value::as_array);
        ips.into_iter().flatten().filter_map(address_of).collect()
    }

    /// The first gateway in the result.
    pub fn gateway(&self) -> Option<IpAddr> {
        let ips = self.result.as_ref()?.get("ips")?.as_array()?;
        ips.iter().find_map(|ip| ip.get("gateway")?.as_str()?.parse().ok())
    }

    /// The name servers in the result.
    pub fn dns(&self) -> Option<Dns> {
        let list = |key: &str| -> Vec<String> {
            let found = self.result.as_ref().and_then(|result| result.get("dns")?.get(key)?.as_array());
            found.into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        let dns = Dns { nameservers: list("nameservers"), search: list("search"), options: list("options") };
        (dns != Dns::default()).then_some(dns)
    }
}

fn address_of(ip: &Value) -> Option<IpAddr> {
    ip.get("address")?.as_str()?.split('/').next()?.parse().ok()
}

/// Whether a text may name a network.
fn is_network_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// What the plugins need to know of a pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub sandbox: &'a str,
    pub pod: &'a str,
    /// The pod's namespace; none once it is gone.
    pub netns: Option<BorrowedFd<'a>>,
}

/// Runs the plugins.
#[derive(Debug, Clone)]
pub(super) struct Cni {
    pub bin_dirs: Vec<PathBuf>,
    pub time_limit: Duration,
}

/// The parts of `runtimeConfig` that agentd has.
pub(super) fn runtime_config(endpoints: &[EndpointPort], dns: Option<&Dns>) -> Map<String, Value> {
    let mut runtime = Map::new();
    let mut mappings = Vec::new();
    for endpoint in endpoints {
        if let (Some(host), Some(container)) = (endpoint.host_port, endpoint.container_port) {
            for protocol in &endpoint.protocols {
                let word = if *protocol == Protocol::Udp { "udp" } else { "tcp" };
                mappings.push(json!({ "hostPort": host, "containerPort": container, "protocol": word }));
            }
        }
    }
    if !mappings.is_empty() {
        runtime.insert("portMappings".to_owned(), mappings.into());
    }
    if let Some(dns) = dns {
        runtime.insert(
            "dns".to_owned(),
            json!({ "servers": dns.nameservers, "searches": dns.search, "options": dns.options }),
        );
    }
    runtime
}

impl Cni {
    /// The plugin's program.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        self.bin_dirs.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }

    /// The folders in words, for errors.
    pub fn folders(&self) -> String {
        let folders: Vec<_> = self.bin_dirs.iter().map(|folder| folder.display().to_string()).collect();
        folders.join(", ")
    }

    /// Attaches a pod to a network and puts the result into the attachment. On failure the caller detaches.
    pub fn add(&self, target: Target<'_>, attachment: &mut Attachment) -> Result<(), IsolatorError> {
        let mut previous = None;
        for plugin in &attachment.network.plugins {
            let answer = self.call("ADD", target, attachment, plugin, previous.as_ref())?;
            let result: Value = serde_json::from_slice(&answer).map_err(|error| {
                fail(format!(
                    "network {}: plugin {} answered ADD with something that is not JSON ({error}): check the plugin",
                    attachment.network.name,
                    kind(plugin)
                ))
            })?;
            previous = Some(result);
        }
        attachment.result = previous;
        Ok(())
    }

    /// Asks the plugins whether the attachment is as it should be.
    pub fn check(&self, target: Target<'_>, attachment: &Attachment) -> Result<(), IsolatorError> {
        if attachment.network.disable_check || !attachment.network.at_least(0, 4) {
            return Ok(());
        }
        for plugin in &attachment.network.plugins {
            self.call("CHECK", target, attachment, plugin, attachment.result.as_ref())?;
        }
        Ok(())
    }

    /// Undoes an attachment, also one that was never finished. Every plugin is called even if one fails.
    pub fn delete(&self, target: Target<'_>, attachment: &Attachment) -> Result<(), IsolatorError> {
        let previous = attachment.result.as_ref().filter(|_| attachment.network.at_least(0, 4));
        let mut outcome = Ok(());
        for plugin in attachment.network.plugins.iter().rev() {
            let deleted = self.call("DEL", target, attachment, plugin, previous).map(drop);
            if outcome.is_ok() {
                outcome = deleted;
            }
        }
        outcome
    }

    fn call(
        &self,
        verb: &str,
        target: Target<'_>,
        attachment: &Attachment,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>, IsolatorError> {
        let kind = kind(plugin);
        let name = &attachment.network.name;
        let Some(program) = self.find(kind) else {
            return Err(fail(format!(
                "network {name}: plugin {kind} is in none of {}: install it (package containernetworking-plugins) or set network.cni_bin_dirs",
                self.folders()
            )));
        };
        let input = configuration(attachment, plugin, previous).to_string();
        // The plugin finds the namespace through this process, which holds the descriptor for as long as the plugin runs.
        let netns =
            target.netns.map_or_else(String::new, |fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
        let path = std::env::join_paths(&self.bin_dirs).unwrap_or_default();
        let environment = [
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", target.sandbox.to_owned()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", attachment.interface.clone()),
            ("CNI_PATH", path.to_string_lossy().into_owned()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;AGENTD_POD_ID={}", target.pod.replace([';', '='], "_"))),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ];
        let answer = exec::run(&program, &[], &environment, input.as_bytes(), self.time_limit)
            .map_err(|problem| fail(format!("network {name}: plugin {kind} {problem} ({verb})")))?;
        if answer.success {
            return Ok(answer.stdout);
        }
        Err(fail(format!("network {name}: plugin {kind} refused {verb}: {}", refusal(&answer))))
    }
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The configuration that one plugin reads from its standard input.
fn configuration(attachment: &Attachment, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
    let mut config = plugin.clone();
    config.insert("name".to_owned(), attachment.network.name.as_str().into());
    config.insert("cniVersion".to_owned(), attachment.network.cni_version.as_str().into());
    let runtime: Map<String, Value> = attachment
        .runtime
        .iter()
        .filter(|(key, _)| config::capable(plugin, key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    config.remove("capabilities");
    config.remove("runtimeConfig");
    if !runtime.is_empty() {
        config.insert("runtimeConfig".to_owned(), runtime.into());
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(config)
}

/// The plugin's own words on why it failed: the error object of the specification, else its error output.
fn refusal(answer: &exec::Answer) -> String {
    let error: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
    let (message, details) = (text("msg"), text("details"));
    let code = error.get("code").and_then(Value::as_u64).map(|code| format!(" (code {code})")).unwrap_or_default();
    let words = match (message.is_empty(), details.is_empty()) {
        (false, false) => format!("{message}: {details}{code}"),
        (false, true) => format!("{message}{code}"),
        _ => answer.stderr.trim().to_owned(),
    };
    let words: String = words.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect();
    if words.is_empty() { "it gave no reason".to_owned() } else { words }
}

/// The networks of the host that a pod can name, for errors.
pub(super) fn known(folder: &Path, built_in: &[String]) -> (BTreeMap<String, NetworkConfig>, String) {
    let networks = config::load(folder);
    let mut names: Vec<&str> = built_in.iter().map(String::as_str).collect();
    names.extend(networks.by_name.keys().map(String::as_str).filter(|name| !built_in.iter().any(|own| own == name)));
    let mut text = names.join(", ");
    if !networks.problems.is_empty() {
        let _ = write!(text, " (not usable: {})", networks.problems.join("; "));
    }
    (networks.by_name, text)
}
