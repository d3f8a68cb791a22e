//! Plain tables: aligned columns, no borders, so that they can be read and cut.

use comfy_table::{CellAlignment, ContentArrangement, Row, Table, presets};

use super::failure::clean;

/// A table with a head.
#[derive(Debug)]
pub struct Columns {
    table: Table,
}

impl Columns {
    /// With these heads.
    pub fn new(heads: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(Row::from(heads.iter().copied()));
        Self { table }
    }

    /// Adds a row.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells = cells.into_iter().map(|cell| {
            let cell = clean(cell.as_ref());
            if cell.is_empty() { "-".to_owned() } else { cell }
        });
        self.table.add_row(Row::from(cells));
    }

    /// Aligns columns of numbers to the right.
    pub fn right(&mut self, columns: &[usize]) {
        for column in columns {
            if let Some(column) = self.table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }

    /// As text, without blanks at the end of lines.
    pub fn text(mut self) -> String {
        self.table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 2));
        });
        self.table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
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
    fn amounts_are_short() {
        let shown: Vec<_> = [0, 1023, 1024, 1 << 30, u64::MAX].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.0 GiB", "16.0 EiB"]);
        assert_eq!((number(4.0), number(0.25), number(100.0)), ("4".into(), "0.25".into(), "100".into()));
    }
}
