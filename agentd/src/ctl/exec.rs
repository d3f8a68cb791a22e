//! `agentctl exec`: runs a program in a running container, with this terminal or without.
//!
//! It takes one call: the connection of `POST /v1/pods/{id}/exec` becomes that of the session. Nothing is asked before.

use agentd_api::pod::{Image, ImageKind};
use agentd_api::session::{ExecRequest, PROTOCOL, SessionStatus};
use clap::Args;
use hyper::Method;

use super::client::{Client, read};
use super::duplex::{self, Settings, ending};
use super::failure::{Failure, Result, clean};
use super::output::Output;
use super::pods::path_of;
use super::terminal;
use super::terminal::keys::Keys;

/// What an exit code means; shown below the options.
pub const EXIT_CODES: &str = "\
Exit codes:
       that of the program
  128+n  signal n ended the program, and a line on standard error says why
  125  the session could not begin, or was lost
  126  the program cannot be run
  127  there is no such program";

/// Its command line.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    /// Pass standard input on.
    #[arg(short = 'i', long = "stdin", visible_alias = "interactive")]
    pub stdin: bool,
    /// Give the program a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Print the session's id and leave it running.
    #[arg(short, long, conflicts_with_all = ["stdin", "detach_keys"])]
    pub detach: bool,
    /// Name of the container; may be left out where the pod has one.
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Id of the instance; may be left out where one runs.
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// User, or user:group, by name or number; default the container's.
    #[arg(short, long)]
    pub user: Option<String>,
    /// Working directory in the container; default the container's.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// A variable beside those of the container; only its name takes the value from here.
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// A capability beside those of the container.
    #[arg(long, value_name = "NAME")]
    pub cap: Vec<String>,
    /// Debug container: the program is from this image, the container's own files are below /target.
    #[arg(long, value_name = "REFERENCE")]
    pub image: Option<String>,
    /// Keys that leave the session and let it go on; an empty text for none.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = Keys::parse)]
    pub detach_keys: Keys,
    /// End the session after so many seconds without input and output.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub idle: Option<u64>,
    /// End the session after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub max: Option<u64>,
    /// Id of the pod.
    pub pod: String,
    /// Program and arguments; may be left out with --image.
    #[arg(trailing_var_arg = true, required_unless_present = "image")]
    pub command: Vec<String>,
}

/// Reads a variable; the value of a name without one is that of this process.
fn variable(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) => Err("found no name before =, expected NAME=VALUE".to_owned()),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err("there is no such variable here, expected NAME=VALUE".to_owned()),
        },
    }
}

/// Carries it out.
pub async fn run(client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    if arguments.tty && arguments.stdin && !terminal::reads() {
        let cure = "leave -t out to pass a file or a pipe on, or -i out to pass nothing on";
        return Err(Failure::new(ending::NO_SESSION, format!("-t: standard input is no terminal; {cure}")));
    }
    let path = path_of(&arguments.pod).map_err(|failure| ending::with_code(failure, ending::NO_SESSION))?;
    let path = format!("{path}/exec");
    let request = request(&arguments, if arguments.tty { terminal::size() } else { None });
    let body = serde_json::to_vec(&request).map_err(|error| Failure::bad_input(error.to_string()))?;
    if arguments.detach {
        let body = client.call(Method::POST, &path, Some(body.into())).await.map_err(ending::not_begun)?;
        if output.json() {
            return output.body(&body);
        }
        return output.line(&clean(&read::<SessionStatus>(&body)?.id));
    }
    let upgrade = client.upgrade(Method::POST, &path, PROTOCOL, Some(body.into()));
    let connection = upgrade.await.map_err(ending::not_begun)?;
    let Arguments { tty, stdin: input, detach_keys: keys, .. } = arguments;
    duplex::run(client, connection, Settings { tty, input, watch: false, keys, sized: tty, past: 0 }).await
}

/// What is asked for.
fn request(arguments: &Arguments, size: Option<(u16, u16)>) -> ExecRequest {
    let mut environment: std::collections::BTreeMap<_, _> = arguments.env.iter().cloned().collect();
    if arguments.tty
        && let Ok(kind) = std::env::var("TERM")
        && !kind.is_empty()
    {
        // the program is shown on this terminal
        environment.entry("TERM".to_owned()).or_insert(kind);
    }
    ExecRequest {
        container: arguments.container.clone(),
        instance: arguments.instance.clone(),
        command: arguments.command.clone(),
        tty: arguments.tty,
        rows: size.map(|(rows, _)| rows),
        columns: size.map(|(_, columns)| columns),
        stdin: arguments.stdin,
        environment,
        user: arguments.user.clone(),
        workdir: arguments.workdir.clone(),
        capabilities: arguments.cap.clone(),
        detach: arguments.detach,
        idle_seconds: arguments.idle,
        max_seconds: arguments.max,
        image: arguments.image.as_ref().map(|reference| Image {
            kind: ImageKind::Docker,
            id: reference.clone(),
            force_pull: false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::ctl::arguments::{Arguments as All, Verb};

    fn parse(line: &[&str]) -> std::result::Result<Arguments, clap::Error> {
        let words = ["agentctl", "exec"].iter().chain(line);
        match All::try_parse_from(words)?.verb {
            Verb::Exec(arguments) => Ok(arguments),
            other => panic!("{other:?}"),
        }
    }

    fn command(line: &[&str]) -> (String, Vec<String>, bool) {
        let arguments = parse(line).unwrap();
        (arguments.pod, arguments.command, arguments.stdin && arguments.tty)
    }

    #[test]
    fn the_ways_of_kubectl_and_docker_are_understood() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(command(&["-it", "web", "bash", "-l"]), ("web".into(), words(&["bash", "-l"]), true));
        assert_eq!(command(&["-it", "/app/web", "--", "sh", "-c", "x"]).1, words(&["sh", "-c", "x"]));
        assert_eq!(command(&["web", "-it", "--", "ls", "-i", "--", "-t"]).1, words(&["ls", "-i", "--", "-t"]));
        assert_eq!(command(&["web", "ls", "--socket", "x", "-o", "y"]).1, words(&["ls", "--socket", "x", "-o", "y"]));
        assert_eq!(command(&["--image", "busybox", "web"]).1, words(&[]));
        for bad in
            [&["web"][..], &[], &["-d", "-i", "web", "sh"], &["--idle", "0", "web", "sh"], &["-e", "=x", "w", "s"]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&["--detach-keys", "ctrl-1", "web", "sh"]).unwrap_err().to_string().contains("ctrl-p,ctrl-q"));
    }

    #[test]
    fn what_is_asked_for_is_in_the_request() {
        let line = [
            "-t",
            "-c",
            "app",
            "--instance",
            "0123456789ab",
            "-u",
            "1:2",
            "-w",
            "/tmp",
            "-e",
            "A=b=c",
            "--cap",
            "CAP_SYS_PTRACE",
            "--idle",
            "5",
            "--max",
            "60",
            "--image",
            "busybox",
            "-e",
            "TERM=dumb",
            "web",
            "sh",
        ];
        let request = request(&parse(&line).unwrap(), Some((24, 80)));
        assert_eq!(request.faults(), []);
        assert_eq!((request.rows, request.columns, request.stdin, request.tty), (Some(24), Some(80), false, true));
        assert_eq!(
            request.environment.iter().map(|(a, b)| format!("{a}:{b}")).collect::<Vec<_>>(),
            ["A:b=c", "TERM:dumb"]
        );
        assert_eq!((request.idle_seconds, request.max_seconds), (Some(5), Some(60)));
        assert_eq!(request.image.unwrap().id, "busybox");
        assert_eq!((request.container.as_deref(), request.user.as_deref()), (Some("app"), Some("1:2")));
        assert_eq!(request.capabilities, ["CAP_SYS_PTRACE"]);
    }
}
