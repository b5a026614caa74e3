//! Tables for people: whole lines for a file or a pipe, and on a terminal lines that fit it.

use crate::output::escaped;

/// Between two columns.
const GAP: usize = 2;
/// A cell that is cut shows at least so much.
const LEAST: usize = 12;
/// No cell shows more, wherever the table goes: all its column would be as wide.
const WIDEST: usize = 1000;

/// Where a cell that is too wide is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// Its end, as of a command.
    End,
    /// Its beginning, as of a path.
    Begin,
}

/// Lines of columns: each as wide as its widest cell, unless they have to fit.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    head: &'a [&'a str],
    rows: Vec<Vec<String>>,
    cut: Vec<(usize, Cut)>,
    spare: &'a [usize],
}

/// One column of a table that is printed.
#[derive(Debug)]
struct Column {
    number: usize,
    width: usize,
    cut: Option<Cut>,
}

impl<'a> Table<'a> {
    /// A table of cells that others may have chosen.
    pub(crate) fn new(head: &'a [&'a str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        // Also a line feed would spoil the columns.
        let tame = |row: Vec<String>| row.iter().map(|cell| escaped(cell, char::is_control)).collect();
        Self { head, rows: rows.into_iter().map(tame).collect(), cut: Vec::new(), spare: &[] }
    }

    /// The columns that may be cut, from which side.
    pub(crate) fn cut(self, cut: &[(usize, Cut)]) -> Self {
        Self { cut: cut.to_vec(), ..self }
    }

    /// The columns that may be left out, the most dispensable first.
    pub(crate) fn spare(self, spare: &'a [usize]) -> Self {
        Self { spare, ..self }
    }

    fn natural(&self, number: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(number)).map(|cell| cell.chars().count());
        cells.chain(self.head.get(number).map(|head| head.chars().count())).max().unwrap_or(0).min(WIDEST)
    }

    /// The columns of which even a pipe gets not all.
    fn too_long(&self, columns: &[Column]) -> Vec<&str> {
        let is_long = |number: usize| {
            let mut cells = self.rows.iter().filter_map(|row| row.get(number));
            cells.any(|cell| cell.chars().nth(WIDEST).is_some())
        };
        let long = columns.iter().filter(|column| is_long(column.number));
        long.filter_map(|column| self.head.get(column.number).copied()).collect()
    }

    /// The columns that are printed, as wide as they may be.
    fn columns(&self, width: Option<usize>) -> Vec<Column> {
        let way = |number| self.cut.iter().find(|(column, _)| *column == number).map(|(_, cut)| *cut);
        let column = |number| Column { number, width: self.natural(number), cut: way(number) };
        let mut columns: Vec<Column> = (0..self.head.len()).map(column).collect();
        let Some(width) = width else { return columns };
        let mut spare = self.spare.iter();
        while !fit(&mut columns, width) {
            let Some(gone) = spare.next() else { break };
            columns.retain(|column| column.number != *gone);
            for column in &mut columns {
                column.width = self.natural(column.number);
            }
        }
        columns
    }

    /// The lines; none is longer than `width` where that can be.
    pub(crate) fn text(&self, width: Option<usize>) -> String {
        let columns = self.columns(width);
        let head: Vec<String> = self.head.iter().map(|cell| (*cell).to_owned()).collect();
        let mut lines = Vec::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let cell = |column: &Column| {
                let cell = row.get(column.number).map(String::as_str).unwrap_or_default();
                // Where nothing has to fit, only what is longer than any reader wants is cut.
                let cell = shortened(cell, column.width, column.cut.or(Some(Cut::End)));
                let padding = column.width.saturating_sub(cell.chars().count());
                cell + &" ".repeat(padding)
            };
            let cells: Vec<String> = columns.iter().map(cell).collect();
            lines.push(cells.join("  ").trim_end().to_owned());
        }
        let left_out = (0..self.head.len()).filter(|number| !columns.iter().any(|column| column.number == *number));
        let left_out: Vec<&str> = left_out.filter_map(|number| self.head.get(number).copied()).collect();
        if !left_out.is_empty() {
            lines.push(format!("(not shown: {}; a wider terminal or a pipe shows all)", left_out.join(", ")));
        }
        if width.is_none() && !self.too_long(&columns).is_empty() {
            lines.push(format!("(cut: {}; --json shows all)", self.too_long(&columns).join(", ")));
        }
        lines.join("\n")
    }
}

/// Makes the columns that may be cut so narrow that all fit; says whether they do.
fn fit(columns: &mut [Column], width: usize) -> bool {
    let gaps = columns.len().saturating_sub(1).saturating_mul(GAP);
    let room = |columns: &[Column], is_cut: bool| -> usize {
        columns.iter().filter(|column| column.cut.is_some() == is_cut).map(|column| column.width).sum()
    };
    let mut rest = width.saturating_sub(room(columns, false).saturating_add(gaps));
    if room(columns, true) <= rest {
        return true;
    }
    let mut narrow: Vec<&mut Column> = columns.iter_mut().filter(|column| column.cut.is_some()).collect();
    narrow.sort_by_key(|column| column.width);
    let least: usize = narrow.iter().map(|column| column.width.min(LEAST)).sum();
    let fits = least <= rest;
    let mut left = narrow.len();
    for column in narrow {
        // What the short ones leave is for the long ones.
        let share = rest.checked_div(left).unwrap_or(0).max(LEAST);
        column.width = column.width.min(share);
        rest = rest.saturating_sub(column.width);
        left = left.saturating_sub(1);
    }
    fits
}

/// A text of at most this many characters.
pub(crate) fn shortened(text: &str, width: usize, cut: Option<Cut>) -> String {
    let count = text.chars().count();
    let room = width.saturating_sub(1);
    match cut {
        Some(Cut::End) if count > width => text.chars().take(room).chain(['…']).collect(),
        Some(Cut::Begin) if count > width => {
            ['…'].into_iter().chain(text.chars().skip(count.saturating_sub(room))).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn columns_stand_under_each_other() {
        let rows = [row(&["a", "1"]), row(&["long", "22"])];
        assert_eq!(Table::new(&["NAME", "N"], rows).text(None), "NAME  N\na     1\nlong  22");
        assert_eq!(Table::new(&["N"], [row(&["a\n\u{1b}b"])]).text(None), "N\na\\n\\u{1b}b");
    }

    #[test]
    fn a_cell_of_any_length_is_printed() {
        let rows = || [row(&["sim", &"x".repeat(100_000), "z"]), row(&["b", "sh", "y"])];
        let table = Table::new(&["NAME", "COMMAND", "N"], rows()).cut(&[(1, Cut::End)]);
        for width in [None, Some(80)] {
            let text = table.text(width);
            assert!(text.chars().count() < 5000 && text.contains("xx…  z") && text.contains('y'), "{text}");
            assert_eq!(text.ends_with("\n(cut: COMMAND; --json shows all)"), width.is_none(), "{text}");
        }
        // Also one that nobody may cut, as the only one of its kind.
        let alone = Table::new(&["NAME", "COMMAND", "N"], rows());
        assert!([None, Some(80)].iter().all(|width| alone.text(*width).chars().count() < 5000));
    }

    #[test]
    fn a_terminal_is_fitted_and_a_pipe_gets_all() {
        let command = format!("python3 {}", "x".repeat(200));
        let path = format!("/{}/bin/python3", "y".repeat(200));
        let rows = || [row(&["sim@1", &command, &path, "-"]), row(&["b", "sh", "/bin/sh", "-"])];
        let head = ["CHECKPOINT", "COMMAND", "PROGRAM", "GROUP"];
        let table = Table::new(&head, rows()).cut(&[(1, Cut::End), (2, Cut::Begin)]).spare(&[3]);
        let whole = table.text(None);
        assert!(whole.contains(&command) && whole.contains(&path), "{whole}");
        let fitted = table.text(Some(80));
        assert!(fitted.lines().all(|line| line.chars().count() <= 80), "{fitted}");
        assert!(fitted.contains("…  …") && fitted.contains("yyy/bin/python3") && fitted.contains("GROUP"), "{fitted}");
        let narrow = table.text(Some(40));
        assert!(narrow.contains("(not shown: GROUP;") && !narrow.contains("  GROUP"), "{narrow}");
        assert!(narrow.lines().take(3).all(|line| line.chars().count() <= 40), "{narrow}");
        // What fits is not cut.
        let short = Table::new(&head, [row(&["sim@1", "sh -c true", "/bin/sh", "-"])]).cut(&[(1, Cut::End)]);
        assert_eq!(short.text(Some(80)), short.text(None));
        // It is no worse than it must be where nothing fits.
        assert!(table.text(Some(5)).contains("sim@1"));
    }
}
