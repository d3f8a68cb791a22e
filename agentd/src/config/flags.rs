//! The command-line flags that configure the daemon.

use std::path::PathBuf;

/// Flags of every command that needs the configuration.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Configuration file [default: /etc/agentd/agentd.toml, or DIR/agentd.toml with --dev, where it exists]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Keep everything below DIR, for trying agentd out beside an installed one
    #[arg(long, value_name = "DIR", global = true)]
    pub dev: Option<PathBuf>,
    /// Name from which all that agentd makes on this host is named
    #[arg(long, value_name = "NAME", global = true)]
    pub instance: Option<String>,
    /// Set one value, e.g. --set network.mtu=9000; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// What the daemon logs: trace, debug, info, warn, error, or directives (logs.level)
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
}
