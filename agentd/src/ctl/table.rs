//! Plain tables: aligned columns, no borders, so that they can be read and cut.

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Row, Table, presets};

use super::colour::Colour;
use super::failure::clean;

/// The colour of a cell by its text.
pub type Painter = fn(&str) -> Option<Colour>;

/// A table with a head.
#[derive(Debug)]
pub struct Columns {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
    painters: Vec<(usize, Painter)>,
}

impl Columns {
    /// With these heads.
    pub fn new(heads: &[&str]) -> Self {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        Self { heads, rows: Vec::new(), right: Vec::new(), painters: Vec::new() }
    }

    /// Adds a row.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells = cells.into_iter().map(|cell| {
            let cell = clean(cell.as_ref());
            if cell.is_empty() { "-".to_owned() } else { cell }
        });
        self.rows.push(cells.collect());
    }

    /// Aligns columns of numbers to the right.
    pub fn right(&mut self, columns: &[usize]) {
        self.right.extend_from_slice(columns);
    }

    /// Gives a column colours, where colours are wanted.
    pub fn paint(&mut self, column: usize, painter: Painter) {
        self.painters.push((column, painter));
    }

    /// As text, without blanks at the end of lines.
    pub fn text(self) -> String {
        self.render(false, true)
    }

    /// As text, in colours or not, with its head or without.
    pub fn render(self, colours: bool, heads: bool) -> String {
        if !heads && self.rows.is_empty() {
            return String::new();
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if colours {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if heads {
            table.set_header(Row::from(self.heads));
        }
        for row in self.rows {
            let cells = row.into_iter().enumerate().map(|(column, text)| {
                let painter = self.painters.iter().find(|(painted, _)| colours && *painted == column);
                let colour = painter.and_then(|(_, painter)| painter(&text));
                let cell = Cell::new(text);
                match colour {
                    Some(colour) => cell.fg(Color::AnsiValue(ansi(colour))),
                    None => cell,
                }
            });
            table.add_row(Row::from(cells));
        }
        for column in self.right {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 2));
        });
        table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }
}

/// The number of a colour in the palette of 256, whose first 16 are the terminal's own.
fn ansi(colour: Colour) -> u8 {
    match colour.code() {
        bright @ 90.. => bright - 82,
        plain => plain - 30,
    }
}

/// Bytes for people.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut amount, mut unit) = (count as f64, 0);
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{amount:.1} {}", units[unit]) }
}

/// A number without needless digits.
pub fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_cells_are_seen() {
        let mut columns = Columns::new(&["POD", "SIZE"]);
        columns.row(["/app", "1"]);
        columns.row(["/application", "200"]);
        columns.row(["", "\x1b"]);
        columns.right(&[1]);
        assert_eq!(
            columns.text(),
            "POD           SIZE\n/app             1\n/application   200\n-                \u{fffd}"
        );
    }

    #[test]
    fn colours_do_not_move_columns_and_a_head_can_be_left_out() {
        let columns = || {
            let mut columns = Columns::new(&["PHASE", "POD"]);
            columns.paint(0, super::super::colour::of_state);
            columns.row(["failed", "/a"]);
            columns.row(["unknown", "/b"]);
            columns
        };
        assert_eq!(columns().text(), "PHASE    POD\nfailed   /a\nunknown  /b");
        assert_eq!(columns().render(false, false), "failed   /a\nunknown  /b");
        let coloured = columns().render(true, true);
        assert!(coloured.contains("\x1b[") && coloured.contains("failed"), "{coloured:?}");
        let plain = regex::Regex::new("\x1b\\[[0-9;]*m").unwrap().replace_all(&coloured, "").into_owned();
        assert_eq!(plain.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"), columns().text());
        assert_eq!(Columns::new(&["A"]).render(false, false), "");
    }

    #[test]
    fn amounts_are_short() {
        let shown: Vec<_> = [0, 1023, 1024, 1 << 30, u64::MAX].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.0 GiB", "16.0 EiB"]);
        assert_eq!((number(4.0), number(0.25), number(100.0)), ("4".into(), "0.25".into(), "100".into()));
    }
}
