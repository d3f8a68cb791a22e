//! `agentctl image`.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::Path;

use agentd_api::message::{ImageInfo, ImportRequest, Progress, PullRequest};
use hyper::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use super::client::{Client, read};
use super::failure::{Failure, Result, clean};
use super::output::Output;
use super::pods::tell_now;
use super::table::{Columns, bytes};
use crate::api::route::encode;

/// `agentctl image pull`
pub async fn pull(client: &Client, output: &mut Output, reference: &str, force: bool) -> Result<()> {
    let request = PullRequest { reference: reference.to_owned(), force };
    obtain(client, output, "/v1/images/pull", &request).await
}

/// `agentctl image import`
pub async fn import(client: &Client, output: &mut Output, path: &Path, reference: Option<String>) -> Result<()> {
    let refuse = |what: String| Failure::bad_input(format!("{}: {what}", path.display()));
    let path_given = std::path::absolute(path).map_err(|error| refuse(error.to_string()))?;
    let Some(absolute) = path_given.to_str() else {
        return Err(refuse("found a path that is not UTF-8, expected one that is; rename it".to_owned()));
    };
    let request = ImportRequest { path: absolute.to_owned(), reference };
    obtain(client, output, "/v1/images/import", &request).await
}

async fn obtain(client: &Client, output: &mut Output, path: &str, request: &impl Serialize) -> Result<()> {
    let body = serde_json::to_vec(request).map_err(|error| Failure::bad_input(error.to_string()))?;
    let mut stream = client.stream(Method::POST, path, &[], Some(body.into())).await?;
    let mut display = if std::io::stderr().is_terminal() && !output.json() {
        Display::Bars(Bars::default())
    } else {
        Display::Lines { wanted: !output.json() }
    };
    let mut end = None;
    while let Some(line) = stream.line().await? {
        let progress: Progress = read(&line)?;
        if output.json() {
            output.body(&[line.as_slice(), b"\n"].concat())?;
        }
        display.tell(&progress);
        end = Some(progress);
    }
    display.end();
    match end {
        Some(Progress::Done { image }) if output.json() => drop(image),
        Some(Progress::Done { image }) if output.names() => output.name(&image.reference)?,
        Some(Progress::Done { image }) => {
            output.line(&format!("{} {}", clean(&image.reference), clean(&image.digest)))?;
        }
        Some(Progress::Failed { message }) => return Err(Failure::failed(message)),
        _ => return Err(Failure::failed("the daemon stopped before the image was there; ask again")),
    }
    Ok(())
}

/// How progress is shown.
enum Display {
    /// To somebody at a terminal.
    Bars(Bars),
    /// To a file or a pipe.
    Lines {
        /// Whether they are wanted.
        wanted: bool,
    },
}

#[derive(Default)]
struct Bars {
    all: MultiProgress,
    blobs: HashMap<String, ProgressBar>,
}

impl Display {
    fn tell(&mut self, progress: &Progress) {
        match self {
            Self::Bars(bars) => bars.tell(progress),
            Self::Lines { wanted: false } => {}
            Self::Lines { .. } => {
                let line = match progress {
                    Progress::Resolved { digest, layers, bytes: size } => {
                        format!("resolved {digest}: {layers} layers, {}", bytes(*size))
                    }
                    Progress::Blob { digest, done, total } if done >= total => {
                        format!("fetched {digest}: {}", bytes(*total))
                    }
                    Progress::Unpacked { digest } => format!("unpacked {digest}"),
                    _ => return,
                };
                // progress that nobody reads is no failure
                let _ = writeln!(std::io::stderr(), "{}", clean(&line));
            }
        }
    }

    fn end(&mut self) {
        if let Self::Bars(bars) = self {
            // what is left on the terminal is the result
            let _ = bars.all.clear();
        }
    }
}

impl Bars {
    fn tell(&mut self, progress: &Progress) {
        match progress {
            Progress::Blob { digest, done, total } => {
                let bar = self.bar(digest);
                bar.set_length(*total);
                bar.set_position(*done);
            }
            Progress::Unpacked { digest } => {
                let bar = self.bar(digest);
                bar.set_position(bar.length().unwrap_or_default());
                bar.abandon_with_message("unpacked");
            }
            _ => {}
        }
    }

    fn bar(&mut self, digest: &str) -> &ProgressBar {
        let all = &self.all;
        self.blobs.entry(digest.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes:>10}/{total_bytes:<10} {msg}");
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(short(digest));
            bar
        })
    }
}

/// The beginning of a digest, which tells images apart well enough for people.
fn short(digest: &str) -> String {
    clean(digest).trim_start_matches("sha256:").chars().take(12).collect()
}

/// `agentctl image ls`
pub async fn list(client: &Client, output: &mut Output) -> Result<()> {
    let body = client.call(Method::GET, "/v1/images", None).await?;
    if output.json() {
        return output.body(&body);
    }
    let images: Vec<ImageInfo> = read(&body)?;
    if output.names() {
        return images.iter().try_for_each(|image| output.name(&image.reference));
    }
    let mut columns = Columns::new(&["REFERENCE", "DIGEST", "SIZE", "LAYERS", "CREATED", "IN USE"]);
    for image in images {
        columns.row([
            image.reference.clone(),
            short(&image.digest),
            bytes(image.size),
            image.layers.to_string(),
            image.created_at.clone(),
            if image.in_use { "yes" } else { "no" }.to_owned(),
        ]);
    }
    columns.right(&[2, 3]);
    output.table(columns)
}

/// `agentctl image rm`. Goes on after a failure; the first one counts.
pub async fn remove(client: &Client, output: &mut Output, references: &[String]) -> Result<()> {
    let mut first = Ok(());
    for reference in references {
        if reference.is_empty() {
            return Err(Failure::bad_input("found an empty image reference, expected [registry/]name[:tag]"));
        }
        match client.call(Method::DELETE, &format!("/v1/images/{}", encode(reference)), None).await {
            Ok(body) if output.json() => output.body(&body)?,
            Ok(_) if output.names() => output.name(reference)?,
            Ok(_) => output.line(&format!("{} removed", clean(reference)))?,
            Err(error) => first = first.and(tell_now(Failure::from(error), references.len())),
        }
    }
    first
}
