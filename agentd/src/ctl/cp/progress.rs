//! The bar that shows how far a copy has come.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// What people at a terminal see of it.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    count: Arc<AtomicU64>,
}

impl Progress {
    /// Nothing is shown where it is not wanted or there is no terminal.
    pub fn new(wanted: bool) -> Self {
        let wanted = wanted && std::io::stderr().is_terminal();
        Self { bar: wanted.then(ProgressBar::hidden), count: Arc::default() }
    }

    /// Bytes so far; whoever copies counts them.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.count)
    }

    /// Begins; how much is to come is not always known.
    pub fn expect(&self, total: Option<u64>) {
        let Some(bar) = &self.bar else { return };
        let template = match total {
            Some(total) => {
                bar.set_length(total);
                "{bar:40} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {eta}"
            }
            None => "{spinner} {bytes:>10} {bytes_per_sec:>12}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
    }

    /// Counts bytes.
    pub fn add(&self, bytes: u64) {
        self.count.fetch_add(bytes, Ordering::Relaxed);
        self.show();
    }

    /// Shows how far it has come.
    pub fn show(&self) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.count.load(Ordering::Relaxed));
        }
    }

    /// Takes it from the terminal.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
