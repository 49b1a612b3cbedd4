//! Text from files as it may be printed: no control characters, no more columns than there are.
use console::measure_text_width;

/// Replaces what could steer a terminal or reorder a line; a printed value is always one line.
pub fn clean(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if steers(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// The number of columns a text takes.
pub fn width(text: &str) -> usize {
    measure_text_width(text)
}

/// Shortens a text to `columns`, the cut marked by `ellipsis`.
pub fn fit(text: &str, columns: usize, ellipsis: &str) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(width(ellipsis));
    let mut kept = String::new();
    let mut used = 0;
    for character in text.chars() {
        used += width(character.encode_utf8(&mut [0; 4]));
        if used > room {
            break;
        }
        kept.push(character);
    }
    kept.push_str(ellipsis);
    kept
}

/// Pads a text with spaces to `columns`.
pub fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{}", " ".repeat(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        for (text, cleaned) in [
            ("web-01", "web-01"),
            ("größe 猫", "größe 猫"),
            ("a\nb\tc", "a b c"),
            ("\x1b[31mred\x07", "\u{fffd}[31mred\u{fffd}"),
            ("\u{9b}2J", "\u{fffd}2J"),
            ("abc\u{202e}txt", "abc\u{fffd}txt"),
        ] {
            assert_eq!(clean(text), cleaned);
        }
    }

    #[test]
    fn texts_fit_their_columns() {
        for (text, columns, fitted) in [
            ("web-01", 6, "web-01"),
            ("web-01", 5, "web-…"),
            ("猫猫猫", 4, "猫…"),
            ("abc", 0, "…"),
        ] {
            assert_eq!(fit(text, columns, "…"), fitted);
        }
        assert_eq!(pad("猫", 4), "猫  ");
    }
}
