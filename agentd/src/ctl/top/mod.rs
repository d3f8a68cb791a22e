//! `agentctl top`: what containers use, live.
//!
//! One task asks the daemon at each interval, reads keys, and watches for signals; it draws what it knows after each of
//! them. [`rates`] makes rates out of counters, [`view`] the text of a screen, [`keys`] reads the terminal, and [`screen`]
//! puts the terminal back whatever happens.

pub mod keys;
pub mod rates;
pub mod screen;
pub mod view;

use std::time::Duration;

use agentd_api::message::ContainerUsage;
use bytes::Bytes;
use clap::Args;
use hyper::Method;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::client::{Client, read};
use super::failure::{Failure, Result};
use super::output::{self, Output};
use super::terminal;
use crate::api::route::encode;
use keys::Key;
use rates::{Rates, Row};
use screen::Screen;
use view::{Sort, View};

/// Its command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only containers of this pod.
    pub pod: Option<String>,
    /// Which containers stand first.
    #[arg(long, value_enum, value_name = "BY", default_value = "cpu")]
    pub sort: Sort,
    /// Show one table after one interval, and end.
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: f64,
}

/// Shortest time between two looks, in seconds.
const SHORTEST: f64 = 0.2;
/// Longest time between two looks, in seconds.
const LONGEST: f64 = 3600.0;

fn interval(text: &str) -> std::result::Result<f64, String> {
    let expected = || format!("expected {SHORTEST} to {LONGEST} seconds");
    let seconds: f64 = text.parse().map_err(|_| expected())?;
    if (SHORTEST..=LONGEST).contains(&seconds) { Ok(seconds) } else { Err(expected()) }
}

/// Carries it out.
pub async fn run(client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    let path = match &arguments.pod {
        None => "/v1/usage".to_owned(),
        Some(pod) => format!("/v1/usage?pod={}", encode(&format!("/{}", pod.trim_start_matches('/')))),
    };
    let first = client.call(Method::GET, &path, None).await?;
    if output.json() {
        return output.body(&first);
    }
    let mut rates = Rates::default();
    let mut rows = rates.take(read(&first)?);
    if output.names() {
        view::sort(&mut rows, Sort::Name, false);
        return rows.iter().try_for_each(|row| output.name(&format!("{} {}", row.now.pod, row.now.container)));
    }
    if arguments.once || !terminal::reads() || !terminal::shows() {
        let wait = async {
            tokio::time::sleep(Duration::from_secs_f64(arguments.interval)).await;
            let body = client.call(Method::GET, &path, None).await?;
            rows = rates.take(read(&body)?);
            Ok(())
        };
        output::follow(wait).await?;
        view::sort(&mut rows, arguments.sort, false);
        return output.table(view::table(&rows));
    }
    let view = View {
        sort: arguments.sort,
        reverse: false,
        from: 0,
        interval: arguments.interval,
        place: client.transport()?.told(),
        fault: None,
        colours: output.colours(),
    };
    Live { client, path, rates, rows, view }.run().await
}

/// The live view.
struct Live<'a> {
    client: &'a Client,
    path: String,
    rates: Rates,
    rows: Vec<Row>,
    view: View,
}

/// What came.
enum Turn {
    Usage(Result<Bytes>),
    Keys(Vec<Key>),
    Resized,
    End(Failure),
}

/// The signals that matter to a program that has the terminal for itself.
struct Signals {
    ends: Vec<(u8, Signal)>,
    resized: Signal,
    continued: Signal,
}

impl Signals {
    fn watch() -> Result<Self> {
        let watch = |kind| signal(kind).map_err(|error| Failure::failed(format!("signals cannot be watched: {error}")));
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let ends = kinds.map(|kind| watch(kind).map(|signal| (128 + kind.as_raw_value() as u8, signal)));
        Ok(Self {
            ends: ends.into_iter().collect::<Result<_>>()?,
            resized: watch(SignalKind::window_change())?,
            continued: watch(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))?,
        })
    }

    /// The exit code of the first that ends the program.
    async fn end(ends: &mut [(u8, Signal)]) -> u8 {
        std::future::poll_fn(|context| {
            for (code, signal) in &mut *ends {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*code);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

impl Live<'_> {
    async fn run(mut self) -> Result<()> {
        let mut signals = Signals::watch()?;
        let mut screen = Screen::enter()?;
        let mut next = Instant::now() + self.interval();
        let mut call: Option<std::pin::Pin<Box<dyn Future<Output = Result<Bytes>>>>> = None;
        loop {
            view::sort(&mut self.rows, self.view.sort, self.view.reverse);
            let (height, width) = screen.size();
            self.view.from = self.view.from.min(self.rows.len().saturating_sub(1));
            screen.draw(&view::screen(&self.rows, &self.view, width, height))?;
            let turn = tokio::select! {
                code = Signals::end(&mut signals.ends) => Turn::End(Failure::exit(code)),
                _ = signals.resized.recv() => Turn::Resized,
                _ = signals.continued.recv() => {
                    screen.again()?;
                    Turn::Resized
                }
                input = screen.input() => match input? {
                    Some(input) => Turn::Keys(keys::read(&input)),
                    None => Turn::End(Failure::Enough),
                },
                answer = async { match &mut call {
                    Some(call) => call.await,
                    None => std::future::pending().await,
                } } => Turn::Usage(answer),
                () = sleep_until(next), if call.is_none() => {
                    let (client, path) = (self.client.clone(), self.path.clone());
                    call = Some(Box::pin(async move { Ok(client.call(Method::GET, &path, None).await?) }));
                    continue;
                }
            };
            match turn {
                Turn::End(failure) => return Err(failure),
                Turn::Resized => screen.clear()?,
                Turn::Usage(answer) => {
                    call = None;
                    next = Instant::now() + self.interval();
                    self.take(answer);
                }
                Turn::Keys(keys) => {
                    for key in keys {
                        if key == Key::Quit {
                            return Ok(());
                        }
                        self.obey(key, &mut screen)?;
                        if matches!(key, Key::Faster | Key::Slower) {
                            next = next.min(Instant::now() + self.interval());
                        }
                    }
                }
            }
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.view.interval)
    }

    /// Takes an answer. One that failed is told, and asked for again: the daemon may be starting anew.
    fn take(&mut self, answer: Result<Bytes>) {
        let usages = answer.and_then(|body| read::<Vec<ContainerUsage>>(&body));
        match usages {
            Ok(usages) => {
                self.rows = self.rates.take(usages);
                self.view.fault = None;
            }
            Err(failure) => self.view.fault = Some(failure.message()),
        }
    }

    fn obey(&mut self, key: Key, screen: &mut Screen) -> Result<()> {
        let page = screen.size().0.saturating_sub(3).max(1);
        let last = self.rows.len().saturating_sub(page);
        let scrolled = |by: isize| self.view.from.saturating_add_signed(by).min(last);
        match key {
            Key::Quit => {}
            Key::Suspend => screen.suspend()?,
            Key::By(sort) => (self.view.sort, self.view.reverse, self.view.from) = (sort, false, 0),
            Key::Reverse => self.view.reverse = !self.view.reverse,
            Key::Scroll(by) => self.view.from = scrolled(by),
            Key::Page(by) => self.view.from = scrolled(by * page as isize),
            Key::End(end) => self.view.from = if end { last } else { 0 },
            Key::Slower => self.view.interval = (self.view.interval * 2.0).min(LONGEST),
            Key::Faster => self.view.interval = (self.view.interval / 2.0).max(SHORTEST),
            Key::Redraw => screen.clear()?,
        }
        Ok(())
    }
}
