//! The command line of the local API: see [`agentd::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    agentd::ctl::main()
}
