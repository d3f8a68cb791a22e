//! `agentctl`, the command line of the local API. `docs/agentctl.md` is the page for those who use it.
//!
//! - [`arguments`] is the command line; [`run`] carries it out and gives the exit code.
//! - `client` speaks HTTP to the daemon, one connection for each call; `transport` is the way there, a socket on this host
//!   or TLS to another one, and [`contexts`] says which.
//! - `pods`, `images`, `events`, `logs`, `exec` and the like are the commands; `output`, `table`, `yaml` and `colour` are
//!   what people and programs see of them.
//! - [`failure`] says which failure ends in which exit code.

pub mod arguments;
pub mod attach;
pub mod audit;
pub mod cert;
mod client;
mod colour;
mod completion;
pub mod contexts;
pub mod cp;
pub mod doctor;
mod duplex;
mod events;
pub mod exec;
pub mod failure;
mod images;
mod logs;
pub mod metrics;
mod node;
mod output;
mod pods;
pub mod port_forward;
pub mod profile;
pub mod sessions;
mod table;
mod terminal;
#[cfg(test)]
mod tests;
pub mod top;
mod transport;
mod version;
mod yaml;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, ImageVerb, PodVerb, Verb};
use client::Client;
use failure::{Failure, Result};
use output::Output;

/// Reads the command line, carries it out, and gives the exit code.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // help into a closed pipe is no failure
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // `Failure::exit` tells nothing, so that a verb can end with a code of its own
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.code())
        }
    }
}

/// Carries a command out.
pub fn run(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the runtime cannot be started: {error}")))?;
    let result = runtime.block_on(async {
        let mut output = Output::standard(&arguments);
        carry_out(arguments, &mut output).await
    });
    // a thread that reads a terminal must not keep the process
    runtime.shutdown_background();
    result
}

async fn carry_out(arguments: Arguments, output: &mut Output) -> Result<()> {
    let client = Client::new(arguments.wanted());
    let context = arguments.context;
    match arguments.verb {
        Verb::Pod { verb } => match verb {
            PodVerb::Run { file, wait, timeout } => pods::run(&client, output, &file, wait, timeout).await,
            PodVerb::Ls(wanted) => pods::list(&client, output, &wanted).await,
            PodVerb::Inspect { id } => pods::inspect(&client, output, &id).await,
            PodVerb::Update { file } => pods::update(&client, output, &file).await,
            PodVerb::Rm { ids, ignore_missing } => pods::remove(&client, output, &ids, ignore_missing).await,
            PodVerb::Wait { id, until, timeout } => pods::wait(&client, output, &id, until, timeout).await,
        },
        Verb::Image { verb } => match verb {
            ImageVerb::Pull { reference, force } => images::pull(&client, output, &reference, force).await,
            ImageVerb::Ls => images::list(&client, output).await,
            ImageVerb::Rm { references } => images::remove(&client, output, &references).await,
            ImageVerb::Import { path, reference } => images::import(&client, output, &path, reference).await,
        },
        Verb::Node => node::node(&client, output).await,
        Verb::Events(wanted) => events::events(&client, output, &wanted).await,
        Verb::Profile(arguments) => profile::run(&client, output, arguments).await,
        Verb::Metrics(arguments) => metrics::run(&client, output, arguments).await,
        Verb::Top(arguments) => top::run(&client, output, arguments).await,
        Verb::Doctor(arguments) => doctor::run(&client, output, arguments).await,
        Verb::Context { verb } => contexts::run(output, verb, context.as_deref()),
        Verb::Completion { shell } => completion::completion(output, shell),
        Verb::Man { dir } => completion::man(output, dir.as_deref()),
        Verb::Version { client: only } => version::version(&client, output, only).await,
        Verb::Exec(arguments) => exec::run(&client, output, arguments).await,
        Verb::Attach(arguments) => attach::run(&client, output, arguments).await,
        Verb::Session(arguments) => sessions::run(&client, output, arguments).await,
        Verb::Cp(arguments) => cp::run(&client, output, arguments).await,
        Verb::PortForward(arguments) => port_forward::run(&client, output, arguments).await,
        Verb::Cert(arguments) => cert::run(&client, output, arguments).await,
        Verb::Audit(arguments) => audit::run(&client, output, arguments).await,
        Verb::Logs(wanted) => logs::logs(&client, output, &wanted).await,
    }
}
