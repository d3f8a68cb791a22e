//! Standard output: a reader that goes away is no failure.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::arguments::{Arguments, Form};
use super::colour::{self, Colour};
use super::failure::{Failure, Result, clean};
use super::table::Columns;
use super::yaml;

/// Where answers are written, and in which form.
pub struct Output {
    form: Form,
    colours: bool,
    heads: bool,
    /// Documents of YAML so far: a line of dashes stands between them.
    documents: usize,
    to: Box<dyn Write>,
}

impl Output {
    /// Standard output, as the command line wants it.
    pub fn standard(arguments: &Arguments) -> Self {
        let stdout = std::io::stdout();
        let colours = colour::wanted(arguments.color, stdout.is_terminal());
        Self { colours, heads: !arguments.no_headers, ..Self::into(arguments.output, Box::new(stdout)) }
    }

    /// Somewhere else, without colours.
    pub fn into(form: Form, to: Box<dyn Write>) -> Self {
        Self { form, colours: false, heads: true, documents: 0, to }
    }

    /// Whether the API's own bodies are wanted, as JSON or as YAML: what is to be written goes through [`Output::body`]
    /// then, and nothing else does.
    pub fn json(&self) -> bool {
        matches!(self.form, Form::Json | Form::Yaml)
    }

    /// Whether only names are wanted, one on a line: see [`Output::name`].
    pub fn names(&self) -> bool {
        self.form == Form::Name
    }

    /// Whether what is for people may have colours.
    pub fn colours(&self) -> bool {
        self.colours && self.form == Form::Table
    }

    /// A word in a colour, where colours are wanted. What comes from outside has to be cleaned before.
    pub fn paint(&self, text: &str, colour: Option<Colour>) -> String {
        match colour {
            Some(colour) if self.colours() => colour.paint(text),
            _ => text.to_owned(),
        }
    }

    /// Writes bytes as they are, at once.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).and_then(|()| self.to.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::Enough,
            _ => Failure::failed(format!("standard output: {error}")),
        })
    }

    /// Writes a line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Writes a table.
    pub fn table(&mut self, columns: Columns) -> Result<()> {
        let text = columns.render(self.colours(), self.heads);
        // without its head a table may be nothing at all
        if text.is_empty() { Ok(()) } else { self.line(&text) }
    }

    /// Writes a name, for [`Output::names`].
    pub fn name(&mut self, name: &str) -> Result<()> {
        self.line(&clean(name))
    }

    /// Writes a body of the API, a line of a stream for one: JSON unchanged, with a line break after it where it has none,
    /// or the same as a document of YAML.
    pub fn body(&mut self, bytes: &[u8]) -> Result<()> {
        if self.form == Form::Yaml {
            if bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(());
            }
            let document = yaml::of_json(bytes)
                .map_err(|error| Failure::failed(format!("the daemon's answer is no JSON: {error}")))?;
            let between = if self.documents > 0 { "---\n" } else { "" };
            self.documents += 1;
            return self.raw(format!("{between}{document}").as_bytes());
        }
        self.raw(bytes)?;
        if bytes.is_empty() || bytes.ends_with(b"\n") { Ok(()) } else { self.raw(b"\n") }
    }
}

/// Waits until nobody reads standard output any more. A stream may have nothing to write for long, so that a write does
/// not tell.
async fn unread() {
    let stdout = std::io::stdout();
    loop {
        let mut wanted = [PollFd::new(&stdout, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::ERR | PollFlags::HUP;
        if poll(&mut wanted, Some(&at_once)).is_ok() && wanted.iter().any(|fd| fd.revents().intersects(gone)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Follows a stream until it ends, Ctrl-C, or nobody reads what is written.
pub async fn follow(stream: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        result = stream => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::Enough),
        () = unread() => Err(Failure::Enough),
    }
}
