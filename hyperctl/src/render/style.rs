//! `Style`: what standard output can show. Colours, bars and cuts are for terminals only.
use std::io::IsTerminal;

use super::text;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

#[derive(Debug, Clone, Copy)]
pub struct Style {
    pub terminal: bool,
    colour: bool,
    unicode: bool,
    /// Columns of the terminal; no limit elsewhere.
    pub columns: Option<usize>,
}

impl Style {
    /// Looks at standard output and the environment (`NO_COLOR`, `TERM`, the locale).
    pub fn detect() -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let terminal = std::io::stdout().is_terminal();
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .map(|name| variable(name))
            .find(|value| !value.is_empty())
            .unwrap_or_default()
            .to_ascii_uppercase();
        let columns = console::Term::stdout()
            .size_checked()
            .map(|(_, columns)| usize::from(columns))
            .filter(|columns| *columns > 0);
        Self {
            terminal,
            colour: terminal && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb",
            unicode: locale.contains("UTF-8") || locale.contains("UTF8"),
            columns: columns.filter(|_| terminal),
        }
    }

    pub fn paint(&self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Plain => return text.to_owned(),
            Colour::Bold => "1",
            Colour::Dim => "2",
            Colour::Red => "31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Cyan => "36",
        };
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// `rich` where the terminal's locale has it, else `plain`.
    pub fn glyph(&self, rich: &'static str, plain: &'static str) -> &'static str {
        if self.unicode { rich } else { plain }
    }

    pub fn fit(&self, text: &str, columns: usize) -> String {
        text::fit(text, columns, self.glyph("…", "~"))
    }

    /// A progress bar of this many columns.
    pub fn bar(&self, percent: f64, columns: usize) -> String {
        let share = (percent / 100.0).clamp(0.0, 1.0);
        let filled = ((columns as f64 * share) as usize).min(columns);
        let done = self.glyph("━", "#").repeat(filled);
        let rest = self.glyph("─", ".").repeat(columns - filled);
        let colour = if filled == columns {
            Colour::Green
        } else {
            Colour::Cyan
        };
        format!(
            "{}{}",
            self.paint(colour, &done),
            self.paint(Colour::Dim, &rest)
        )
    }

    #[cfg(test)]
    pub fn plain(columns: Option<usize>) -> Self {
        Self {
            terminal: false,
            colour: false,
            unicode: true,
            columns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_wide_as_asked() {
        let style = Style::plain(None);
        for (percent, bar) in [
            (0.0, "────────"),
            (47.0, "━━━─────"),
            (99.9, "━━━━━━━─"),
            (100.0, "━━━━━━━━"),
            (-3.0, "────────"),
            (1e9, "━━━━━━━━"),
        ] {
            assert_eq!(style.bar(percent, 8), bar, "{percent}");
        }
        assert_eq!(style.paint(Colour::Red, "x"), "x");
    }
}
