//! The daemon: `agentd run`, and what looks at a host or a configuration without running it.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong configuration or command line; 3 the instance name is taken.

use std::io::IsTerminal;
use std::process::ExitCode;

use agentd::config::{self, Flags, Loaded};
use agentd::telemetry::Telemetry;
use agentd::{daemon, doctor};
use clap::{Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(name = "agentd", version, about = "Runs pods under hard isolation on this host")]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon.
    Run(Flags),
    /// Print the effective configuration and every problem in it.
    CheckConfig(Flags),
    /// Say what this host has and lacks, what that disables, and the cure.
    Doctor {
        #[command(flatten)]
        flags: Flags,
        /// Form of the output.
        #[arg(long, short, value_enum, default_value = "table")]
        output: Output,
    },
    /// Fetch artifacts on behalf of the daemon (started by agentd itself).
    #[command(hide = true)]
    ArtifactFetch,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn load(flags: &Flags) -> Result<Loaded, ExitCode> {
    config::load(flags, std::env::vars()).map_err(|problems| {
        for problem in problems {
            eprintln!("{problem}");
        }
        ExitCode::from(daemon::BAD_INPUT)
    })
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Verb::ArtifactFetch => agentd_fetcher::child_main(),
        Verb::CheckConfig(flags) => match load(&flags) {
            Ok(loaded) => {
                print!("{}", config::effective(&loaded));
                ExitCode::SUCCESS
            }
            Err(code) => code,
        },
        Verb::Doctor { flags, output } => match load(&flags) {
            Ok(loaded) => {
                let checks = doctor::run(&loaded.config);
                match output {
                    Output::Table => print!("{}", doctor::render_table(&checks, std::io::stdout().is_terminal())),
                    Output::Json => println!("{}", doctor::render_json(&checks)),
                }
                ExitCode::from(doctor::exit_code(&checks))
            }
            Err(code) => code,
        },
        Verb::Run(flags) => match load(&flags) {
            Ok(loaded) => {
                let format = match loaded.config.logs.format {
                    config::LogFormat::Text => agentd_logging::Format::Text,
                    config::LogFormat::Json => agentd_logging::Format::Json,
                };
                let telemetry = match Telemetry::open(&loaded.config) {
                    Ok(telemetry) => telemetry,
                    Err(error) => {
                        eprintln!("agentd: {error}");
                        return ExitCode::from(daemon::BAD_INPUT);
                    }
                };
                if let Err(error) = agentd_logging::init(&loaded.config.logs.level, format, telemetry.layer()) {
                    eprintln!("agentd: {error}");
                    return ExitCode::from(daemon::BAD_INPUT);
                }
                daemon::run(loaded.config, &telemetry)
            }
            Err(code) => code,
        },
    }
}
