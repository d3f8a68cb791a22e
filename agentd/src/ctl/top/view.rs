//! What `top` shows: rows in order, a table for a pipe, and a screen of a given size as text.

use std::cmp::Ordering;
use std::collections::VecDeque;

use clap::ValueEnum;

use super::super::colour::Colour;
use super::super::failure::clean;
use super::super::table::{Columns, bytes};
use super::rates::Row;

/// By what rows are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// CPU time, most first.
    Cpu,
    /// Memory, most first.
    Memory,
    /// Processes and threads, most first.
    Pids,
    /// Bytes from and to block devices, most first.
    Io,
    /// Bytes of the network, most first.
    Network,
    /// Pod, instance and container.
    Name,
}

impl Sort {
    fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
            Self::Network => "network",
            Self::Name => "name",
        }
    }
}

/// Puts rows in order. Names decide between equals, so that rows do not change places for nothing.
pub fn sort(rows: &mut [Row], by: Sort, reverse: bool) {
    fn name(row: &Row) -> (&str, &str, &str) {
        (&row.now.pod, &row.now.instance, &row.now.container)
    }
    let most = |one: Option<f64>, other: Option<f64>| other.unwrap_or(-1.0).total_cmp(&one.unwrap_or(-1.0));
    rows.sort_by(|one, other| {
        let order = match by {
            Sort::Cpu => most(one.cpu, other.cpu),
            Sort::Memory => other.now.memory_bytes.cmp(&one.now.memory_bytes),
            Sort::Pids => other.now.pids.cmp(&one.now.pids),
            Sort::Io => most(one.io(), other.io()),
            Sort::Network => most(one.network(), other.network()),
            Sort::Name => Ordering::Equal,
        };
        let order = order.then_with(|| name(one).cmp(&name(other)));
        if reverse { order.reverse() } else { order }
    });
}

fn cpus(value: Option<f64>) -> String {
    value.map(|cpus| format!("{cpus:.2}")).unwrap_or_default()
}

fn percent(share: Option<f64>) -> String {
    share.map(|share| format!("{:.0}%", share * 100.0)).unwrap_or_default()
}

fn rate(value: Option<f64>) -> String {
    value.map(|value| bytes(value as u64)).unwrap_or_default()
}

fn limit(value: Option<u64>) -> String {
    value.map(bytes).unwrap_or_default()
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> Columns {
    let heads = [
        "POD",
        "INSTANCE",
        "CONTAINER",
        "CPU",
        "CPU%",
        "MEMORY",
        "LIMIT",
        "MEM%",
        "PIDS",
        "READ/s",
        "WRITTEN/s",
        "RECEIVED/s",
        "SENT/s",
    ];
    let mut columns = Columns::new(&heads);
    for row in rows {
        columns.row([
            row.now.pod.clone(),
            row.now.instance.clone(),
            row.now.container.clone(),
            cpus(row.cpu),
            percent(row.cpu_share()),
            bytes(row.now.memory_bytes),
            limit(row.now.memory_limit_bytes),
            percent(row.memory_share()),
            row.now.pids.to_string(),
            rate(row.read),
            rate(row.written),
            rate(row.received),
            rate(row.sent),
        ]);
    }
    columns.right(&[3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    for column in [4, 7] {
        columns.paint(column, |share| level(share.trim_end_matches('%').parse::<f64>().ok()? / 100.0));
    }
    columns
}

/// The colour of a share of a limit.
fn level(share: f64) -> Option<Colour> {
    match share {
        share if share >= 0.9 => Some(Colour::Red),
        share if share >= 0.7 => Some(Colour::Yellow),
        _ => None,
    }
}

/// The last samples as bars, between nothing and `top`.
pub fn sparkline(samples: &VecDeque<f64>, top: f64, width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = samples.iter().skip(samples.len().saturating_sub(width));
    let bars: String = shown
        .map(|sample| {
            let share = if top > 0.0 { (sample / top).clamp(0.0, 1.0) } else { 0.0 };
            BARS[(share * 7.0).round() as usize]
        })
        .collect();
    let missing = width - bars.chars().count();
    format!("{}{bars}", " ".repeat(missing))
}

/// How the screen is shown.
#[derive(Debug, Clone)]
pub struct View {
    /// By what rows are sorted.
    pub sort: Sort,
    /// Whether the other way round.
    pub reverse: bool,
    /// First row that is shown.
    pub from: usize,
    /// Seconds between two looks.
    pub interval: f64,
    /// Where the daemon is.
    pub place: String,
    /// What went wrong at the last look.
    pub fault: Option<String>,
    /// Whether there are colours.
    pub colours: bool,
}

/// A column of the screen.
struct Column {
    title: &'static str,
    width: usize,
    right: bool,
    /// Columns with a higher one go first where the screen is narrow; 0 stays.
    spare: u8,
    cell: fn(&Row) -> (String, Option<Colour>),
}

const BAR: usize = 12;

fn columns() -> Vec<Column> {
    fn plain(text: String) -> (String, Option<Colour>) {
        (text, None)
    }
    fn shared(share: Option<f64>) -> (String, Option<Colour>) {
        (percent(share), share.and_then(level))
    }
    let column = |title, width, right, spare, cell| Column { title, width, right, spare, cell };
    vec![
        column("INSTANCE", 12, false, 6, |row| plain(row.now.instance.clone())),
        column("CONTAINER", 16, false, 0, |row| plain(row.now.container.clone())),
        column("CPU", 6, true, 0, |row| plain(cpus(row.cpu))),
        column("CPU%", 5, true, 2, |row| shared(row.cpu_share())),
        column("", BAR, false, 3, |row| {
            let most = row.cpu_history.iter().copied().fold(0.01, f64::max);
            let top = row.now.cpu_limit_milli.map_or(most, |limit| (limit as f64 / 1000.0).max(most));
            (sparkline(&row.cpu_history, top, BAR), Some(Colour::Cyan))
        }),
        column("MEMORY", 10, true, 0, |row| plain(bytes(row.now.memory_bytes))),
        column("MEM%", 5, true, 1, |row| shared(row.memory_share())),
        column("", BAR, false, 4, |row| {
            let most = row.memory_history.iter().copied().fold(1.0, f64::max);
            let top = row.now.memory_limit_bytes.map_or(most, |limit| limit as f64);
            (sparkline(&row.memory_history, top, BAR), Some(Colour::Magenta))
        }),
        column("PIDS", 5, true, 1, |row| plain(row.now.pids.to_string())),
        column("READ/s", 10, true, 5, |row| plain(rate(row.read))),
        column("WRITTEN/s", 10, true, 5, |row| plain(rate(row.written))),
        column("RECV/s", 10, true, 5, |row| plain(rate(row.received))),
        column("SENT/s", 10, true, 5, |row| plain(rate(row.sent))),
    ]
}

/// Fewest columns for the name of the pod.
const NAME: usize = 12;
/// Most columns for the name of the pod.
const LONGEST_NAME: usize = 40;

/// A text in exactly so many columns.
fn fit(text: &str, width: usize, right: bool) -> String {
    let text = clean(text);
    let text = if text.is_empty() { "-".to_owned() } else { text };
    let count = text.chars().count();
    if count > width {
        let kept: String = text.chars().take(width.saturating_sub(1)).collect();
        return format!("{kept}…");
    }
    let pad = " ".repeat(width - count);
    if right { format!("{pad}{text}") } else { format!("{text}{pad}") }
}

/// Cuts a line off at the right.
fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

/// The screen, line by line. `rows` are in order already. There is no more than `height` lines of `width` columns.
pub fn screen(rows: &[Row], view: &View, width: usize, height: usize) -> Vec<String> {
    let mut shown = columns();
    let taken = |shown: &[Column]| shown.iter().map(|column| column.width + 2).sum::<usize>();
    while taken(&shown) + NAME > width {
        let Some(spare) = shown.iter().map(|column| column.spare).max().filter(|spare| *spare > 0) else { break };
        shown.retain(|column| column.spare != spare);
    }
    let longest = rows.iter().map(|row| row.now.pod.chars().count()).max().unwrap_or_default();
    let name = width.saturating_sub(taken(&shown)).clamp(NAME, LONGEST_NAME).min(longest.max(NAME));

    let cpu: f64 = rows.iter().filter_map(|row| row.cpu).sum();
    let memory: u64 = rows.iter().map(|row| row.now.memory_bytes).sum();
    let order = if view.reverse { ", reversed" } else { "" };
    let mut lines = vec![cut(
        &format!(
            "{}  {} containers  {cpu:.2} CPUs  {}  every {} s  by {}{order}",
            clean(&view.place),
            rows.len(),
            bytes(memory),
            view.interval,
            view.sort.word()
        ),
        width,
    )];
    match &view.fault {
        Some(fault) => {
            let fault = cut(&clean(fault), width);
            lines.push(if view.colours { Colour::Red.paint(&fault) } else { fault });
        }
        None => lines.push(cut(
            "c cpu  m memory  p pids  i io  n network  a name  r reverse  + - interval  arrows scroll  q quit",
            width,
        )),
    }
    let mut head = fit("POD", name, false);
    for column in &shown {
        head.push_str("  ");
        head.push_str(&if column.title.is_empty() {
            " ".repeat(column.width)
        } else {
            fit(column.title, column.width, column.right)
        });
    }
    // reversed, which is no colour
    lines.push(format!("\x1b[7m{}\x1b[27m", fit(&cut(&head, width), width, false)));
    let room = height.saturating_sub(lines.len());
    let from = view.from.min(rows.len().saturating_sub(room));
    for row in rows.iter().skip(from).take(room) {
        let mut line = fit(&row.now.pod, name, false);
        let mut used = name;
        for column in &shown {
            if used + 2 + column.width > width {
                break;
            }
            used += 2 + column.width;
            let (text, colour) = (column.cell)(row);
            let text = fit(&text, column.width, column.right);
            line.push_str("  ");
            match colour {
                Some(colour) if view.colours => line.push_str(&colour.paint(&text)),
                _ => line.push_str(&text),
            }
        }
        lines.push(if used > width { cut(&line, width) } else { line });
    }
    lines.truncate(height);
    lines
}

#[cfg(test)]
mod tests {
    use agentd_api::message::ContainerUsage;

    use super::*;

    fn row(pod: &str, cpu: f64, memory: u64) -> Row {
        Row {
            now: ContainerUsage {
                pod: pod.into(),
                instance: "000000000000".into(),
                container: "web".into(),
                memory_bytes: memory,
                memory_limit_bytes: Some(1 << 20),
                cpu_limit_milli: Some(1000),
                pids: memory,
                ..ContainerUsage::default()
            },
            cpu: Some(cpu),
            cpu_history: [0.0, cpu].into(),
            memory_history: [memory as f64].into(),
            ..Row::default()
        }
    }

    fn view() -> View {
        let place = "/run/agentd/agentd.sock".to_owned();
        View { sort: Sort::Cpu, reverse: false, from: 0, interval: 2.0, place, fault: None, colours: false }
    }

    #[test]
    fn rows_are_in_order_and_equals_by_name() {
        let order = |by, reverse| {
            let mut rows = vec![row("/b", 0.5, 10), row("/a", 0.5, 30), row("/c", 0.9, 20)];
            rows[0].read = Some(1.0);
            sort(&mut rows, by, reverse);
            rows.iter().map(|row| row.now.pod.clone()).collect::<String>()
        };
        assert_eq!(order(Sort::Cpu, false), "/c/a/b");
        assert_eq!(order(Sort::Memory, false), "/a/c/b");
        assert_eq!(order(Sort::Pids, true), "/b/c/a");
        assert_eq!(order(Sort::Io, false), "/b/a/c");
        assert_eq!(order(Sort::Network, false), "/a/b/c");
        assert_eq!(order(Sort::Name, true), "/c/b/a");
    }

    #[test]
    fn bars_rise_with_their_samples() {
        let samples: VecDeque<f64> = [0.0, 0.5, 1.0, 2.0].into();
        assert_eq!(sparkline(&samples, 1.0, 6), "  ▁▅██");
        assert_eq!(sparkline(&samples, 1.0, 2), "██");
        assert_eq!(sparkline(&VecDeque::new(), 0.0, 2), "  ");
    }

    #[test]
    fn every_screen_fits_into_its_size() {
        let rows: Vec<Row> =
            (0..50).map(|n| row(&format!("/a/rather/long/name/of/a/pod/{n}\x1b[2J"), 0.95, n)).collect();
        let reversed = regex::Regex::new("\x1b\\[(7|27|3[0-9]|90)m").unwrap();
        for colours in [false, true] {
            for (width, height) in [(200, 50), (120, 24), (80, 24), (60, 10), (40, 5), (10, 3), (1, 1)] {
                let view = View { colours, from: 45, ..view() };
                let lines = screen(&rows, &view, width, height);
                assert!(lines.len() <= height, "{width}x{height}");
                for line in &lines {
                    let plain = reversed.replace_all(line, "");
                    assert!(plain.chars().count() <= width, "{width}: {plain:?}");
                    assert!(!plain.contains('\x1b'), "{plain:?}");
                }
            }
        }
        let wide = screen(&rows, &view(), 200, 50).join("\n");
        assert!(wide.contains("SENT/s") && wide.contains('▁') && wide.contains("95%"), "{wide}");
        let narrow = screen(&rows, &view(), 60, 50).join("\n");
        assert!(!narrow.contains("SENT/s") && narrow.contains("MEMORY"), "{narrow}");
        let faulty = screen(&rows, &View { fault: Some("gone".into()), ..view() }, 80, 24);
        assert_eq!(faulty[1], "gone");
    }
}
