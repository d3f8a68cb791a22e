//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  the operation failed, or the daemon's answer was not understood
   2  wrong command line, file or request
   3  there is no such pod, image, container or instance
   4  it contradicts what there is, or the host has not enough left
   5  the daemon cannot be reached, or went away
   6  the time-out passed
  10  the pod was run or waited for, and failed";

/// Runs and watches pods on this host.
#[derive(Debug, Parser)]
#[command(name = "agentctl", version, about = "Runs and watches pods on this host", after_help = EXIT_CODES)]
pub struct Arguments {
    /// Socket of the daemon.
    #[arg(long, global = true, value_name = "PATH", env = "AGENTD_SOCKET", default_value = "/run/agentd/agentd.sock")]
    pub socket: PathBuf,
    /// Form of the output: for people, or the API's JSON unchanged.
    #[arg(long, short, global = true, value_enum, default_value = "table")]
    pub output: Form,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Table,
    /// The API's bodies unchanged; JSON lines where it streams.
    Json,
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
    Events {
        /// Go on with what happens from now on.
        #[arg(long, short)]
        follow: bool,
        /// Only events after this id.
        #[arg(long, value_name = "ID")]
        after: Option<u64>,
    },
    /// Show what a pod's containers print.
    Logs(Logs),
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
    Ls,
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
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if (0.0..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("expected 0 to 86400 seconds".to_owned()) }
}
