//! `agentctl profile`: which functions a container spends its time in, as a flame graph.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use hyper::Method;

use super::client::Client;
use super::failure::{Failure, Result};
use super::output::{self, Output};
use crate::api::route::encode;

/// Its command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Id of the pod.
    pub pod: String,
    /// Name of the container; not needed where there is one.
    pub container: Option<String>,
    /// Only this instance; not needed where there is one.
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// Sample for so many seconds, 1 to 600, instead of asking for what is kept.
    #[arg(long, short, value_name = "SECONDS", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: Option<u32>,
    /// With --seconds: samples a second on each CPU, 19 to 99 [default: 49]
    #[arg(long, value_name = "HZ", requires = "seconds", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(19..=99))]
    pub hz: Option<u32>,
    /// Of what is kept: only the last minutes, 1 to 15.
    #[arg(long, value_name = "MINUTES", conflicts_with = "seconds", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=15))]
    pub minutes: Option<u32>,
    /// What is written.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "svg")]
    pub format: Format,
    /// Where it is written; `-` is standard output [default: profile-POD with .svg, .pb.gz or .txt, in this folder]
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A flame graph.
    Svg,
    /// For `go tool pprof` and what else reads profile.proto.
    Pprof,
    /// A line for each stack, for other tools.
    Folded,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Self::Svg => "svg",
            Self::Pprof => "pprof",
            Self::Folded => "folded",
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Self::Svg => "svg",
            Self::Pprof => "pb.gz",
            Self::Folded => "txt",
        }
    }
}

/// Carries it out.
pub async fn run(client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    let path = path(&arguments);
    let file = arguments.file.clone().unwrap_or_else(|| default_file(&arguments));
    let fetch = async {
        if file.as_os_str() == "-" {
            let body = client.call(Method::GET, &path, None).await?;
            return output.raw(&body);
        }
        // before it is sampled, so that nobody waits for what cannot be written
        let place = Place::open(&file)?;
        let body = client.call(Method::GET, &path, None).await?;
        place.fill(&body)?;
        if output.json() {
            let told = serde_json::json!({ "file": file, "bytes": body.len() });
            return output.body(told.to_string().as_bytes());
        }
        output.line(&file.display().to_string())
    };
    // while it is sampled, an interrupt ends it, and with the connection the sampling
    output::follow(fetch).await
}

/// The file that is to be written. One that was made for it is removed again when nothing is written.
struct Place<'a> {
    path: &'a Path,
    file: File,
    made: bool,
}

impl<'a> Place<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let made = OpenOptions::new().write(true).create_new(true).open(path);
        let (file, made) = match made {
            Ok(file) => (file, true),
            // what is there stays as it is until there is something to write
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                (OpenOptions::new().write(true).open(path).map_err(|error| unwritten(path, &error))?, false)
            }
            Err(error) => return Err(unwritten(path, &error)),
        };
        Ok(Self { path, file, made })
    }

    fn fill(mut self, bytes: &[u8]) -> Result<()> {
        let plain = self.file.metadata().is_ok_and(|found| found.is_file());
        let emptied = if plain { self.file.set_len(0) } else { Ok(()) };
        emptied.and_then(|()| self.file.write_all(bytes)).map_err(|error| unwritten(self.path, &error))?;
        self.made = false;
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.made {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{}: {error}; name another file with --file", path.display()))
}

fn path(arguments: &Arguments) -> String {
    let pod = format!("/{}", arguments.pod.trim_start_matches('/'));
    let mut path = format!("/v1/profile?pod={}&format={}", encode(&pod), arguments.format.word());
    let numbers = [("seconds", arguments.seconds), ("hz", arguments.hz), ("minutes", arguments.minutes)];
    let texts = [("container", &arguments.container), ("instance", &arguments.instance)];
    let numbers = numbers.into_iter().filter_map(|(name, number)| Some((name, number?.to_string())));
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, encode(text.as_ref()?))));
    for (name, value) in texts.chain(numbers) {
        path = format!("{path}&{name}={value}");
    }
    path
}

/// A name of the pod's and the container's, which no part of can lead elsewhere.
fn default_file(arguments: &Arguments) -> PathBuf {
    let names = [Some(arguments.pod.trim_start_matches('/')), arguments.container.as_deref()];
    let name = names.into_iter().flatten().collect::<Vec<_>>().join("-");
    let plain = |letter: char| if letter.is_alphanumeric() || "-_".contains(letter) { letter } else { '-' };
    let name: String = name.chars().map(plain).take(100).collect();
    PathBuf::from(format!("profile-{name}.{}", arguments.format.ending()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &[&str]) -> Option<Arguments> {
        Line::try_parse_from(std::iter::once(&"profile").chain(words)).ok().map(|line| line.arguments)
    }

    #[test]
    fn what_is_asked_for_is_in_the_path() {
        let arguments = parse(&["app/web", "a&b", "--seconds", "5", "--hz", "99", "--format", "pprof"]).unwrap();
        let expected = "/v1/profile?pod=%2Fapp%2Fweb&format=pprof&container=a%26b&seconds=5&hz=99";
        assert_eq!(path(&arguments), expected);
        assert_eq!(default_file(&arguments), PathBuf::from("profile-app-web-a-b.pb.gz"));
        assert_eq!(default_file(&parse(&["/../../x"]).unwrap()), PathBuf::from("profile-------x.svg"));
    }

    #[test]
    fn a_file_is_changed_only_by_what_is_written_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        std::fs::write(&old, "of before").unwrap();
        for path in [&new, &old] {
            drop(Place::open(path).unwrap());
        }
        assert!(!new.exists());
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "of before");
        for path in [&new, &old] {
            Place::open(path).unwrap().fill(b"now").unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), "now");
        }
        let Err(failure) = Place::open(&folder.path().join("none/x.svg")) else { panic!("there is no such folder") };
        assert!(format!("{failure:?}").contains("--file"), "{failure:?}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for words in [&["a", "--hz", "50"][..], &["a", "--seconds", "0"], &["a", "--seconds", "1", "--hz", "100"]] {
            assert!(parse(words).is_none(), "{words:?}");
        }
        assert!(parse(&["a", "--seconds", "1", "--minutes", "1"]).is_none());
    }
}
