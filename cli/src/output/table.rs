//! Tables: columns apart by spaces, so that they can also be read by `awk`; fitted to the terminal if there is one.

use comfy_table::{Attribute, CellAlignment, Color, ColumnConstraint, ContentArrangement, Width, presets};

use super::plain;

/// What a cell's colour says. Colour is never the only thing that says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
}

#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    #[must_use]
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }

    #[must_use]
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }

    /// What is not there.
    #[must_use]
    pub(crate) fn none() -> Self {
        Self::toned("-", Tone::Dim)
    }

    #[must_use]
    pub(crate) fn or_none(text: Option<impl Into<String>>) -> Self {
        text.map_or_else(Self::none, Self::new)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

#[derive(Debug)]
pub(crate) struct Table {
    header: Option<Vec<&'static str>>,
    rows: Vec<Vec<Cell>>,
    /// Columns that are never wrapped: what people copy.
    whole: Vec<usize>,
}

impl Table {
    #[must_use]
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: Some(header.to_vec()), rows: Vec::new(), whole: Vec::new() }
    }

    /// One thing: a name and a value a line.
    #[must_use]
    pub(crate) fn record() -> Self {
        Self { header: None, rows: Vec::new(), whole: vec![0] }
    }

    /// Never wraps this column.
    #[must_use]
    pub(crate) fn whole(mut self, column: usize) -> Self {
        self.whole.push(column);
        self
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// A line of a record.
    pub(crate) fn field(&mut self, name: &'static str, value: impl Into<Cell>) {
        self.rows.push(vec![Cell::toned(name, Tone::Dim), value.into()]);
    }

    #[must_use]
    pub(crate) fn render(&self, color: bool, width: Option<u16>) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        if color {
            table.enforce_styling()
        } else {
            table.force_no_tty()
        };
        match width {
            Some(columns) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        if let Some(header) = &self.header {
            table.set_header(header.iter().map(|name| comfy_table::Cell::new(name).add_attribute(Attribute::Bold)));
        }
        for row in &self.rows {
            table.add_row(row.iter().map(styled));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            column.set_cell_alignment(CellAlignment::Left);
            if self.whole.contains(&index) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            } else if width.is_some() {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(8)));
            }
        }
        table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }
}

fn styled(cell: &Cell) -> comfy_table::Cell {
    let styled = comfy_table::Cell::new(plain(&cell.text));
    match cell.tone {
        Tone::Plain => styled,
        Tone::Good => styled.fg(Color::Green),
        Tone::Warn => styled.fg(Color::Yellow),
        Tone::Bad => styled.fg(Color::Red),
        Tone::Dim => styled.add_attribute(Attribute::Dim),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Table {
        let mut table = Table::new(&["NAME", "STATE", "LABELS", "ID"]).whole(3);
        table.row(vec![
            "gw-1".into(),
            Cell::toned("linked", Tone::Good),
            "site=north".into(),
            "018f0000-0000-7000-8000-000000000001".into(),
        ]);
        table.row(vec![
            "gw\u{1b}[31m-2".into(),
            Cell::toned("not linked", Tone::Warn),
            "site=a place with a rather long name, floor=2".into(),
            "018f0000-0000-7000-8000-000000000002".into(),
        ]);
        table.row(vec!["東京-3".into(), Cell::none(), "".into(), "018f0000-0000-7000-8000-000000000003".into()]);
        table
    }

    #[test]
    fn without_a_terminal_each_row_is_a_line() {
        insta::assert_snapshot!(devices().render(false, None), @r"
        NAME            STATE       LABELS                                         ID
        gw-1            linked      site=north                                     018f0000-0000-7000-8000-000000000001
        gw\u{1b}[31m-2  not linked  site=a place with a rather long name, floor=2  018f0000-0000-7000-8000-000000000002
        東京-3          -                                                          018f0000-0000-7000-8000-000000000003
        ");
    }

    #[test]
    fn a_narrow_terminal_wraps_what_nobody_copies() {
        insta::assert_snapshot!(devices().render(false, Some(80)), @r"
        NAME           STATE       LABELS         ID
        gw-1           linked      site=north     018f0000-0000-7000-8000-000000000001
        gw\u{1b}[31m-  not linked  site=a place   018f0000-0000-7000-8000-000000000002
        2                          with a rather
                                   long name,
                                   floor=2
        東京-3         -                          018f0000-0000-7000-8000-000000000003
        ");
    }

    #[test]
    fn color_is_only_there_when_asked_for() {
        assert!(!devices().render(false, Some(80)).contains('\u{1b}'));
        assert!(devices().render(true, None).contains("\u{1b}[38;5;10m"));
    }

    #[test]
    fn a_record_is_a_name_and_a_value_a_line() {
        let mut table = Table::record();
        table.field("name", "gw-1");
        table.field("state", Cell::toned("linked", Tone::Good));
        insta::assert_snapshot!(table.render(false, None), @r"
        name   gw-1
        state  linked
        ");
    }
}
