//! `agentctl attach`: takes part in a session that runs already.

use agentd_api::session::{PROTOCOL, SessionStatus};
use clap::Args;
use hyper::Method;

use super::client::{CallError, Client, read};
use super::duplex::{self, Settings, ending};
use super::failure::{Failure, Result, clean};
use super::output::Output;
use super::sessions::path_of;
use super::terminal::keys::Keys;

/// Its command line.
#[derive(Debug, Args)]
#[command(after_help = super::exec::EXIT_CODES)]
pub struct Arguments {
    /// Only show the output: pass neither input nor signals on.
    #[arg(long)]
    pub no_stdin: bool,
    /// Take the input over from a client that has it.
    #[arg(long, conflicts_with = "no_stdin")]
    pub take_over: bool,
    /// Show only what comes from now on, not the last output first.
    #[arg(long)]
    pub from_now: bool,
    /// Keys that leave the session and let it go on; an empty text for none.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = Keys::parse)]
    pub detach_keys: Keys,
    /// Id of the session.
    pub session: String,
}

/// Carries it out.
pub async fn run(client: &Client, _output: &mut Output, arguments: Arguments) -> Result<()> {
    let failed = |failure| ending::with_code(failure, ending::NO_SESSION);
    let path = path_of(&arguments.session).map_err(failed)?;
    let body = client.call(Method::GET, &path, None).await.map_err(ending::not_begun)?;
    let status: SessionStatus = read(&body).map_err(failed)?;
    let mut path = format!("{path}/attach?input={}", !arguments.no_stdin);
    if arguments.take_over {
        path.push_str("&take-over=true");
    }
    if arguments.from_now {
        path.push_str("&from=now");
    }
    let connection = client.upgrade(Method::GET, &path, PROTOCOL, None).await.map_err(|error| match error {
        CallError::Problem(problem) if problem.kind == "input-taken" => {
            let session = clean(&status.id);
            let cure = "--take-over takes its place, --no-stdin only shows the output";
            Failure::new(ending::NO_SESSION, format!("another client gives the session {session} its input; {cure}"))
        }
        error => ending::not_begun(error),
    })?;
    let settings = Settings {
        tty: status.tty,
        input: !arguments.no_stdin,
        watch: arguments.no_stdin,
        keys: arguments.detach_keys,
        sized: false,
        past: if arguments.from_now { 0 } else { status.output_bytes },
    };
    duplex::run(client, connection, settings).await
}
