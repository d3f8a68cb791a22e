//! `agentctl session`: lists sessions, shows one, waits for it, signals it, ends it, prints its recording.

use agentd_api::session::{SessionExit, SessionState, SessionStatus};
use agentd_api::status::ExitStatus;
use clap::{Args, Subcommand};
use hyper::Method;
use jiff::Timestamp;

use super::client::{Client, read};
use super::duplex::ending;
use super::failure::{Failure, Result, clean};
use super::output::Output;
use super::pods::tell_now;
use super::table::{Columns, bytes};
use crate::api::route::encode;

/// Its command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub verb: SessionVerb,
}

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub enum SessionVerb {
    /// List sessions, those included that ended a short while ago.
    Ls {
        /// Only sessions in this pod.
        #[arg(long, value_name = "ID")]
        pod: Option<String>,
        /// Only sessions whose program runs.
        #[arg(long)]
        running: bool,
    },
    /// Show a session in full.
    Inspect {
        /// Its id.
        session: String,
    },
    /// Kill everything that sessions run.
    Kill {
        /// Their ids.
        #[arg(required = true, value_name = "SESSION")]
        sessions: Vec<String>,
    },
    /// Send a signal to a session's program.
    Signal {
        /// Its id.
        session: String,
        /// Name or number, e.g. INT.
        signal: String,
    },
    /// Wait until a session's program has ended, and end with its exit code.
    #[command(after_help = super::exec::EXIT_CODES)]
    Wait {
        /// Its id.
        session: String,
        /// Seconds to wait at most.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
        timeout: Option<u64>,
    },
    /// Print the recording of a session (asciicast v2).
    Recording {
        /// Its id.
        session: String,
    },
}

/// Path of a session.
pub fn path_of(session: &str) -> Result<String> {
    if session.is_empty() {
        return Err(Failure::bad_input("found an empty session id; agentctl session ls shows the sessions"));
    }
    Ok(format!("/v1/sessions/{}", encode(session)))
}

/// Carries it out.
pub async fn run(client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    match arguments.verb {
        SessionVerb::Ls { pod, running } => list(client, output, pod.as_deref(), running).await,
        SessionVerb::Inspect { session } => inspect(client, output, &session).await,
        SessionVerb::Kill { sessions } => kill(client, output, &sessions).await,
        SessionVerb::Signal { session, signal } => {
            let body = serde_json::json!({ "signal": signal }).to_string();
            client.call(Method::POST, &format!("{}/signal", path_of(&session)?), Some(body.into())).await?;
            Ok(())
        }
        SessionVerb::Wait { session, timeout } => wait(client, output, &session, timeout).await,
        SessionVerb::Recording { session } => {
            let path = format!("{}/recording", path_of(&session)?);
            let mut stream = client.stream(Method::GET, &path, &[], None).await?;
            while let Some(bytes) = stream.bytes().await? {
                output.raw(&bytes)?;
            }
            Ok(())
        }
    }
}

async fn list(client: &Client, output: &mut Output, pod: Option<&str>, running: bool) -> Result<()> {
    let pod = pod.map(|pod| format!("pod={}", encode(pod)));
    let filters: Vec<String> = pod.into_iter().chain(running.then(|| "state=running".to_owned())).collect();
    let mark = if filters.is_empty() { "" } else { "?" };
    let body = client.call(Method::GET, &format!("/v1/sessions{mark}{}", filters.join("&")), None).await?;
    if output.json() {
        return output.body(&body);
    }
    let mut sessions: Vec<SessionStatus> = read(&body)?;
    // the last one is the one that is looked for
    sessions.sort_by_cached_key(|session| (session.started_at.parse::<Timestamp>().ok(), session.id.clone()));
    if output.names() {
        return sessions.iter().try_for_each(|session| output.name(&session.id));
    }
    let mut columns =
        Columns::new(&["SESSION", "POD", "CONTAINER", "STATE", "TTY", "CLIENTS", "STARTED", "BY", "COMMAND"]);
    for session in sessions {
        columns.row([
            session.id.clone(),
            session.pod.clone(),
            session.container.clone(),
            standing(&session),
            if session.tty { "yes" } else { "no" }.to_owned(),
            session.clients.to_string(),
            session.started_at.clone(),
            session.principal.clone(),
            command(&session.command),
        ]);
    }
    columns.right(&[5]);
    output.table(columns)
}

/// Where a session stands, in a word or two.
fn standing(session: &SessionStatus) -> String {
    match (session.state, session.exit) {
        (SessionState::Starting, _) => "starting".to_owned(),
        (SessionState::Running, _) => "running".to_owned(),
        (SessionState::Exited, Some(ExitStatus::Code(code))) => format!("exited {code}"),
        (SessionState::Exited, Some(ExitStatus::Signal(signal))) => ending::name(signal),
        (SessionState::Exited, _) => "exited".to_owned(),
    }
}

/// A command as it can be typed, not all of a long one.
fn command(words: &[String]) -> String {
    let plain = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_./=:,+@%".contains(c));
    let quoted = |word: &String| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) };
    let text = words.iter().map(quoted).collect::<Vec<_>>().join(" ");
    if text.chars().count() <= 60 { text } else { text.chars().take(59).chain(['…']).collect() }
}

async fn inspect(client: &Client, output: &mut Output, session: &str) -> Result<()> {
    let body = client.call(Method::GET, &path_of(session)?, None).await?;
    if output.json() {
        return output.body(&body);
    }
    let status: SessionStatus = read(&body)?;
    if output.names() {
        return output.name(&status.id);
    }
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let lines = [
        ("Session", Some(status.id.clone())),
        ("Kind", Some(format!("{:?}", status.kind).to_lowercase())),
        ("Pod", Some(status.pod.clone())),
        ("Instance", Some(status.instance.clone())),
        ("Container", Some(status.container.clone())),
        ("Command", Some(command(&status.command))),
        ("State", Some(standing(&status))),
        ("Message", status.message.clone()),
        ("Process", status.pid.map(|pid| pid.to_string())),
        ("Terminal", Some(yes(status.tty))),
        ("Detached", Some(yes(status.detach))),
        ("Clients", Some(status.clients.to_string())),
        ("By", Some(status.principal.clone())),
        ("Started", Some(status.started_at.clone())),
        ("Finished", status.finished_at.clone()),
        ("Input", Some(bytes(status.stdin_bytes))),
        ("Output", Some(bytes(status.output_bytes))),
        ("Recorded", Some(yes(status.recorded))),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            output.line(&format!("{name:<9} {}", clean(&value)))?;
        }
    }
    Ok(())
}

/// Goes on after a failure; the first one counts.
async fn kill(client: &Client, output: &mut Output, sessions: &[String]) -> Result<()> {
    let mut first = Ok(());
    for session in sessions {
        match client.call(Method::DELETE, &path_of(session)?, None).await {
            Ok(body) if output.json() => output.body(&body)?,
            Ok(_) if output.names() => output.name(session)?,
            Ok(_) => output.line(&format!("{} killed", clean(session)))?,
            Err(error) => first = first.and(tell_now(Failure::from(error), sessions.len())),
        }
    }
    first
}

async fn wait(client: &Client, output: &mut Output, session: &str, timeout: Option<u64>) -> Result<()> {
    let timeout = timeout.map(|seconds| format!("?timeout={seconds}")).unwrap_or_default();
    let path = format!("{}/wait{timeout}", path_of(session)?);
    let body = client.call(Method::GET, &path, None).await.map_err(ending::not_begun)?;
    let exit: SessionExit = read(&body)?;
    if output.json() {
        output.body(&body)?;
    }
    ending::after(&exit, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_they_can_be_typed() {
        let words = |words: &[&str]| command(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["sh", "-c", "a && b"]), "sh -c 'a && b'");
        assert_eq!(words(&["echo", "it's"]), r"echo 'it'\''s'");
        assert_eq!(words(&["ls", "", "ä"]), "ls '' ä");
        assert_eq!(words(&[&"x".repeat(100)]).chars().count(), 60);
    }

    #[test]
    fn a_session_without_id_is_refused() {
        assert_eq!(path_of("").unwrap_err().code(), 2);
        assert_eq!(path_of("a/b").unwrap(), "/v1/sessions/a%2Fb");
    }
}
