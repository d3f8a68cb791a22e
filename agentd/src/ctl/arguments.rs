//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::client::Wanted;

const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  the operation failed, or the daemon's answer was not understood
   2  wrong command line, file or request
   3  there is no such pod, image, container, instance, session or context
   4  it contradicts what there is, or the host has not enough left
   5  the daemon cannot be reached, is stopping or busy, or went away
   6  the time-out passed
   7  the access list does not permit it
  10  the pod was run or waited for, and failed
Of exec, attach and session wait: the exit code of the program, 128 + n where signal n ended it";

/// Runs and watches pods on this host, or on another one.
#[derive(Debug, Parser)]
#[command(name = "agentctl", version, about = "Runs and watches pods on this host, or on another one", after_help = EXIT_CODES)]
pub struct Arguments {
    /// Socket of the daemon [default: $AGENTD_SOCKET, else that of the context, else /run/agentd/agentd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Context whose daemon is meant [default: $AGENTCTL_CONTEXT, else the one of `context use`]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Form of the output
    #[arg(long, short, global = true, value_enum, default_value = "table")]
    pub output: Form,
    /// Colours: on a terminal without NO_COLOR, always, or never
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    pub color: When,
    /// Tables without their first line
    #[arg(long, global = true)]
    pub no_headers: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

impl Arguments {
    /// Which daemon is meant: flags go before variables, these before the current context; and the socket before the
    /// context.
    pub fn wanted(&self) -> Wanted {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        self.choose(variable("AGENTD_SOCKET").map(PathBuf::from), variable("AGENTCTL_CONTEXT"))
    }

    fn choose(&self, socket: Option<PathBuf>, context: Option<std::ffi::OsString>) -> Wanted {
        match (&self.socket, &self.context, socket, context) {
            (Some(path), ..) => Wanted::Socket(path.clone()),
            (None, Some(name), ..) => Wanted::Context(name.clone()),
            (None, None, Some(path), _) => Wanted::Socket(path),
            // a name that is not UTF-8 is that of no context, and is told so
            (None, None, None, Some(name)) => Wanted::Context(name.to_string_lossy().into_owned()),
            (None, None, None, None) => Wanted::Current,
        }
    }
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Table,
    /// The API's bodies unchanged; JSON lines where it streams.
    Json,
    /// The same as YAML; a document for each line of a stream.
    Yaml,
    /// Only what things are called, one on a line.
    Name,
}

/// When there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run, list, change, end pods.
    Pod {
        /// What to do.
        #[command(subcommand)]
        verb: PodVerb,
    },
    /// Pull, import, list, remove images.
    Image {
        /// What to do.
        #[command(subcommand)]
        verb: ImageVerb,
    },
    /// Show this host: its resources, and what is left of them.
    Node,
    /// Show what has happened.
    Events(Events),
    /// Show what a pod's containers print.
    Logs(Logs),
    /// Run a program in a running container.
    Exec(super::exec::Arguments),
    /// Follow a session that runs already.
    Attach(super::attach::Arguments),
    /// List sessions, show one, end one.
    Session(super::sessions::Arguments),
    /// Copy files into and out of containers.
    Cp(super::cp::Arguments),
    /// Make a pod's ports reachable on this machine.
    PortForward(super::port_forward::Arguments),
    /// Make and renew certificates for the API over TCP.
    Cert(super::cert::Arguments),
    /// Read and verify the audit log.
    Audit(super::audit::Arguments),
    /// Draw which functions a container spends its time in.
    Profile(super::profile::Arguments),
    /// Show what is measured of containers, pods and the node.
    Metrics(super::metrics::Arguments),
    /// Watch what containers use.
    Top(super::top::Arguments),
    /// Look whether the daemon can be reached, and what this host has and lacks.
    Doctor(super::doctor::Arguments),
    /// Name daemons on other hosts, and choose one.
    Context {
        /// What to do.
        #[command(subcommand)]
        verb: super::contexts::ContextVerb,
    },
    /// Print a script that completes command lines.
    Completion {
        /// For which shell.
        shell: Shell,
    },
    /// Print the manual page of agentctl, or write all of them.
    Man {
        /// Write the pages of all commands into this folder.
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
    /// Show the versions of agentctl and of the daemon.
    Version {
        /// Only that of agentctl: the daemon is not asked.
        #[arg(long)]
        client: bool,
    },
}

/// What to do with pods.
#[derive(Debug, Subcommand)]
pub enum PodVerb {
    /// Run a pod, and show where each of its containers is.
    Run {
        /// File with the pod's JSON; `-` reads it from standard input.
        file: PathBuf,
        /// Until when to wait.
        #[arg(long, value_enum, default_value = "running")]
        wait: Wait,
        /// Seconds to wait at most. The pod stays when they have passed.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        timeout: Option<f64>,
    },
    /// List pods.
    Ls(Pods),
    /// Show a pod in full.
    Inspect {
        /// Its id.
        id: String,
    },
    /// Change cpus, memory and number of instances of a running pod.
    Update {
        /// File with the pod's JSON; `-` reads it from standard input.
        file: PathBuf,
    },
    /// End pods and remove everything of them.
    Rm {
        /// Their ids.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// A pod that is not there is no failure.
        #[arg(long)]
        ignore_missing: bool,
    },
    /// Wait for a pod.
    Wait {
        /// Its id.
        id: String,
        /// Until when.
        #[arg(long, value_enum, default_value = "running")]
        until: Until,
        /// Seconds to wait at most.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        timeout: Option<f64>,
    },
}

/// Which pods.
#[derive(Debug, Args)]
pub struct Pods {
    /// Only pods whose id begins so; with `*` (any text) or `?` (any character) those whose id is so.
    pub id: Option<String>,
    /// Only pods with this label: `key`, `key=value` or `key!=value`. All must hold where several are given.
    #[arg(long, short, value_name = "LABEL")]
    pub label: Vec<String>,
    /// Only pods with an instance in this phase.
    #[arg(long, value_enum)]
    pub phase: Option<Phase>,
}

/// A phase of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// Images, artifacts, network and containers are being readied.
    Starting,
    /// Every container runs, and is healthy where it says how.
    Running,
    /// Some container is down or unhealthy.
    Degraded,
    /// Waiting for the next restart.
    Backoff,
    /// Being ended.
    Stopping,
    /// All containers have ended with 0, and none starts again.
    Finished,
    /// Ended otherwise, and none starts again.
    Failed,
}

impl Phase {
    /// The API's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// Until when `pod run` waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Every container runs, or has ended.
    Running,
    /// Every container has ended for good.
    Finished,
    /// The pod is accepted.
    None,
}

/// Until when `pod wait` waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// Every container runs, or has ended.
    Running,
    /// Every container has ended for good.
    Finished,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Pull an image from its registry.
    Pull {
        /// `[registry/]name[:tag][@sha256:…]`
        reference: String,
        /// Ask the registry even when the image is there.
        #[arg(long)]
        force: bool,
    },
    /// List images.
    Ls,
    /// Remove images.
    Rm {
        /// Their references.
        #[arg(required = true, value_name = "REFERENCE")]
        references: Vec<String>,
    },
    /// Import an image from an OCI layout folder or a docker-archive on this host.
    Import {
        /// The folder or archive.
        path: PathBuf,
        /// Reference to store it under; default the one that it carries.
        #[arg(long)]
        reference: Option<String>,
    },
}

/// A shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Friendly interactive shell.
    Fish,
}

/// Which events.
#[derive(Debug, Args)]
pub struct Events {
    /// Go on with what happens from now on.
    #[arg(long, short)]
    pub follow: bool,
    /// Only events after this id.
    #[arg(long, value_name = "ID")]
    pub after: Option<u64>,
    /// Only events of this kind; `container-*` means all that begin so. May be given more than once
    #[arg(long, value_name = "KIND")]
    pub kind: Vec<String>,
    /// Only events of this pod.
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// Seconds for which to ask again after a lost connection, 0 for not at all.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub reconnect: f64,
}

/// Which logs.
#[derive(Debug, Args)]
pub struct Logs {
    /// Id of the pod.
    pub pod: String,
    /// Name of a container; all by default.
    pub container: Option<String>,
    /// Go on with what is printed from now on, until the pod has ended.
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines, so many of each container.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,
    /// Only this instance.
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// The time before each line.
    #[arg(long)]
    pub timestamps: bool,
    /// Only what was printed at or after this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only `stdout` or `stderr`.
    #[arg(long, value_name = "STREAM", value_parser = ["stdout", "stderr"])]
    pub stream: Option<String>,
}

/// Reads the seconds of a time-out.
pub fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if (0.0..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("expected 0 to 86400 seconds".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_before_variables_and_sockets_before_contexts() {
        let choose = |words: &[&str], socket: Option<&str>, context: Option<&str>| {
            let words = ["agentctl"].iter().chain(words).chain(&["node"]);
            let arguments = Arguments::try_parse_from(words).unwrap();
            arguments.choose(socket.map(PathBuf::from), context.map(Into::into))
        };
        let socket = |path: &str| Wanted::Socket(path.into());
        let context = |name: &str| Wanted::Context(name.to_owned());
        assert_eq!(choose(&["--socket", "/a", "--context", "b"], Some("/c"), Some("d")), socket("/a"));
        assert_eq!(choose(&["--context", "b"], Some("/c"), Some("d")), context("b"));
        assert_eq!(choose(&[], Some("/c"), Some("d")), socket("/c"));
        assert_eq!(choose(&[], None, Some("d")), context("d"));
        assert_eq!(choose(&[], None, None), Wanted::Current);
    }
}
