//! Columns: as wide as their widest cell, shortened where a terminal is narrower.
use super::style::{Colour, Style};
use super::text::{clean, pad, width};

const GAP: &str = "  ";

/// One field of a row; its text is clean.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    pub fn new(text: impl AsRef<str>) -> Self {
        Self::painted(Colour::Plain, text)
    }

    pub fn painted(colour: Colour, text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        Self {
            text: clean(if text.is_empty() { "-" } else { text }),
            colour,
        }
    }
}

/// A column that gives way when there is no room, and how narrow it may become.
#[derive(Debug, Clone, Copy)]
pub struct Flexible {
    pub column: usize,
    pub narrowest: usize,
}

/// Rows under a header. Flexible columns give way in the order in which they are named.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    flexible: Vec<Flexible>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(header: Vec<&'static str>, flexible: Vec<Flexible>) -> Self {
        Self {
            header,
            flexible,
            rows: Vec::new(),
        }
    }

    pub fn add(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    pub fn to_text(&self, style: &Style) -> String {
        let widths = self.widths(style.columns);
        let header = self
            .header
            .iter()
            .map(|name| Cell::painted(Colour::Bold, name));
        let mut text = line(&header.collect::<Vec<_>>(), &widths, style);
        for row in &self.rows {
            text.push_str(&line(row, &widths, style));
        }
        text
    }

    fn widths(&self, columns: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.header.iter().map(|name| width(name)).collect();
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(&cell.text));
            }
        }
        let Some(columns) = columns else {
            return widths;
        };
        let total = widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
        let mut excess = total.saturating_sub(columns);
        for flexible in &self.flexible {
            if let Some(widest) = widths.get_mut(flexible.column) {
                let give = excess.min(widest.saturating_sub(flexible.narrowest));
                *widest -= give;
                excess -= give;
            }
        }
        widths
    }
}

fn line(row: &[Cell], widths: &[usize], style: &Style) -> String {
    let mut line = String::new();
    let last = row.len().saturating_sub(1);
    for (index, (cell, columns)) in row.iter().zip(widths).enumerate() {
        let fitted = style.fit(&cell.text, *columns);
        let padded = if index == last {
            fitted
        } else {
            pad(&fitted, *columns)
        };
        line.push_str(&style.paint(cell.colour, &padded));
        if index != last {
            line.push_str(GAP);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_give_way() {
        let mut table = Table::new(
            vec!["VM", "STATE", "JOB"],
            vec![Flexible {
                column: 0,
                narrowest: 8,
            }],
        );
        table.add(vec![
            Cell::new("a-very-long-name-of-a-machine"),
            Cell::new("queued"),
            Cell::new("job-1"),
        ]);
        table.add(vec![
            Cell::new("b\x1b[2J"),
            Cell::new(""),
            Cell::new("job-2"),
        ]);
        assert_eq!(
            table.to_text(&Style::plain(Some(30))),
            "VM               STATE   JOB\n\
             a-very-long-na…  queued  job-1\n\
             b\u{fffd}[2J            -       job-2\n"
        );
        let wide = table.to_text(&Style::plain(None));
        assert!(wide.contains("a-very-long-name-of-a-machine  queued  job-1"));
    }
}
