//! Tables in Markdown, aligned so that they read well in a terminal too.

use std::fmt;

use comfy_table::CellAlignment;
use comfy_table::presets::ASCII_MARKDOWN;

/// A table of text; those of [`Table::new`] have a name in the first column and numbers in the others.
#[derive(Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[&str]) -> Self {
        let Self(mut table) = Self::left(columns);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Self(table)
    }

    /// A table whose columns all begin at the left, as those of text-generation-benchmark.
    pub fn left(columns: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(columns);
        Self(table)
    }

    /// Adds a row of as many cells.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0)
    }
}

/// A value, or a dash where there is none.
pub fn or_dash<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}
