//! Prints the effective configuration: TOML that can be read again, with the source of each value behind it.

use std::fmt::Write;
use std::path::Path;

use super::keys::{Key, Kind, keys};
use super::types::{Config, Registry};
use super::{Loaded, Origin};

/// The value of a key as TOML; none where it is not set.
pub(super) fn value(key: &Key, config: &Config) -> Option<String> {
    // The table's accessors are made for writing; a copy lets them serve for reading too.
    let mut config = config.clone();
    let config = &mut config;
    match &key.kind {
        Kind::Text { get, .. } => get(config).map(|text| text_value(&text)),
        Kind::Path(place) => Some(path_value(place(config))),
        Kind::OptionalPath(place) => place(config).as_deref().map(path_value),
        Kind::Paths(place) | Kind::EtcNames(place) => Some(list(place(config).iter().map(|path| path_value(path)))),
        Kind::List { field, .. } => Some(list(field(config).iter().map(|text| text_value(text)))),
        Kind::Integer { field, .. } => Some(field(config).to_string()),
        Kind::OptionalInteger { field, .. } => field(config).map(|value| value.to_string()),
        Kind::Number { field, .. } => Some(format!("{:?}", field(config))),
        Kind::OptionalNumber { field, .. } => field(config).map(|value| format!("{value:?}")),
        Kind::Bool(place) => Some(place(config).to_string()),
        Kind::Registries(place) => Some(list(place(config).iter().map(registry))),
    }
}

fn registry(registry: &Registry) -> String {
    let mut text = format!("{{ host = {}", text_value(&registry.host));
    if !registry.mirrors.is_empty() {
        let mirrors = list(registry.mirrors.iter().map(|mirror| text_value(mirror)));
        let _ = write!(text, ", mirrors = {mirrors}");
    }
    if let Some(ca) = &registry.ca {
        let _ = write!(text, ", ca = {}", path_value(ca));
    }
    if registry.insecure {
        text.push_str(", insecure = true");
    }
    text.push_str(" }");
    text
}

fn text_value(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn path_value(path: &Path) -> String {
    text_value(&path.to_string_lossy())
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// The effective configuration as TOML, each value followed by its source.
pub fn effective(loaded: &Loaded) -> String {
    let mut text = String::new();
    match &loaded.file {
        Some(file) => {
            let _ = writeln!(text, "# Read from {}, the environment and flags.", file.display());
        }
        None => text.push_str("# No configuration file was read.\n"),
    }
    if let Some(dev) = &loaded.config.dev {
        let _ = writeln!(text, "# --dev {}", dev.display());
    }
    let mut table = "";
    for key in keys() {
        if key.table != table {
            table = key.table;
            let _ = write!(text, "\n[{table}]\n");
        }
        let origin = loaded.sources.get(&key.field()).unwrap_or(&Origin::Default);
        let _ = match value(key, &loaded.config) {
            Some(value) => writeln!(text, "{} = {value}  # {origin}", key.name),
            None => writeln!(text, "# {} is not set  # {origin}", key.name),
        };
    }
    text
}
