//! `agentctl`, the command line of the local API. `docs/agentctl.md` is the page for those who use it.
//!
//! - [`arguments`] is the command line; [`run`] carries it out and gives the exit code.
//! - `client` speaks HTTP on the daemon's socket: one connection for each call.
//! - `pods`, `images`, `events` and `logs` are the commands; `table` and `output` are what people see.
//! - [`failure`] says which failure ends in which exit code.

pub mod arguments;
mod client;
mod events;
pub mod failure;
mod images;
mod logs;
mod node;
mod output;
mod pods;
mod table;
#[cfg(test)]
mod tests;

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
        let mut output = Output::new(arguments.output);
        carry_out(arguments, &mut output).await
    });
    // a thread that reads a terminal must not keep the process
    runtime.shutdown_background();
    result
}

async fn carry_out(arguments: Arguments, output: &mut Output) -> Result<()> {
    let client = Client::new(arguments.socket);
    match arguments.verb {
        Verb::Pod { verb } => match verb {
            PodVerb::Run { file, wait, timeout } => pods::run(&client, output, &file, wait, timeout).await,
            PodVerb::Ls => pods::list(&client, output).await,
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
        Verb::Events { follow, after } => events::events(&client, output, follow, after).await,
        Verb::Logs(wanted) => logs::logs(&client, output, &wanted).await,
    }
}
