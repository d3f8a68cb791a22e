//! `agentctl completion` and `agentctl man`: what shells and `man` want to know of the command line, made from it.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::aot;

use super::arguments::{Arguments, Shell};
use super::failure::{Failure, Result};
use super::output::Output;

/// `agentctl completion`
pub fn completion(output: &mut Output, shell: Shell) -> Result<()> {
    output.raw(&script(shell))
}

fn script(shell: Shell) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => aot::Shell::Bash,
        Shell::Zsh => aot::Shell::Zsh,
        Shell::Fish => aot::Shell::Fish,
    };
    let mut script = Vec::new();
    aot::generate(shell, &mut Arguments::command(), "agentctl", &mut script);
    script
}

/// `agentctl man`: the first page to standard output, or every page into a folder that it makes.
pub fn man(output: &mut Output, folder: Option<&Path>) -> Result<()> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Arguments::command())
            .render(&mut page)
            .map_err(|error| Failure::failed(format!("the page cannot be made: {error}")))?;
        return output.raw(&page);
    };
    let refuse = |error| Failure::bad_input(format!("{}: {error}; expected a folder to write into", folder.display()));
    std::fs::create_dir_all(folder).map_err(refuse)?;
    clap_mangen::generate_to(Arguments::command(), folder).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    /// Every command with the name of its page.
    fn pages(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        found.push((name.to_owned(), command.clone()));
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            pages(inner, &format!("{name}-{}", inner.get_name()), found);
        }
    }

    #[test]
    fn scripts_are_sound_and_know_every_word() {
        let mut command = Arguments::command();
        command.build();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(script(shell)).unwrap();
            for inner in command.get_subcommands() {
                assert!(text.contains(inner.get_name()), "{shell:?}: {}", inner.get_name());
            }
            for word in ["yaml", "network", "finished", "no-headers"] {
                assert!(text.contains(word), "{shell:?}: {word}");
            }
        }
        for (shell, interpreter, check) in
            [(Shell::Bash, "bash", &["-n"][..]), (Shell::Zsh, "zsh", &["-n"]), (Shell::Fish, "fish", &["--no-execute"])]
        {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("completion");
            std::fs::write(&file, script(shell)).unwrap();
            match std::process::Command::new(interpreter).args(check).arg(&file).output() {
                Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
                Err(_) => eprintln!("skipped: {interpreter} is not installed"),
            }
        }
    }

    #[test]
    fn every_command_has_a_page_with_its_flags() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = Output::into(super::super::arguments::Form::Table, Box::new(std::io::sink()));
        man(&mut output, Some(folder.path())).unwrap();
        let mut command = Arguments::command();
        command.build();
        let mut all = Vec::new();
        pages(&command, "agentctl", &mut all);
        assert!(all.len() > 20);
        for (name, command) in all.iter().filter(|(name, _)| !name.contains("help")) {
            let path = folder.path().join(format!("{name}.1"));
            let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let Some(flag) = argument.get_long() else { continue };
                let written = format!("\\-\\-{}", flag.replace('-', "\\-"));
                assert!(page.contains(&written), "{name}: {flag}");
            }
        }
        let failure = man(&mut output, Some(Path::new("/proc/none"))).unwrap_err();
        assert_eq!(failure.code(), 2);
    }
}
