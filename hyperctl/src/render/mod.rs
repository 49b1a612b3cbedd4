//! What people and scripts get to see: tables, blocks, bars, JSON; and where it is written to.
//!
//! Every text that comes from a file passes `text::clean` on its way out.
pub mod bars;
pub mod daemon;
pub mod fields;
pub mod job;
pub mod migration;
pub mod quantity;
pub mod style;
pub mod table;
pub mod text;

use std::io::Write;

use serde_json::Value;

use crate::outcome::{Result, Stop};
use text::clean;

pub use style::{Colour, Style};

/// Notes beyond this many are counted, not printed.
const NOTES: usize = 5;

/// Writes to standard output at once.
pub fn print(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| Stop::from_output(&error))
}

/// Prints JSON for a script to read as a whole.
pub fn print_json(value: &Value) -> Result<()> {
    print(&format!("{}\n", escape(&format!("{value:#}"))))
}

/// Prints JSON as one line of a stream.
pub fn print_json_line(value: &Value) -> Result<()> {
    print(&format!("{}\n", escape(&value.to_string())))
}

/// serde_json escapes what JSON must; terminals also obey U+007F to U+009F.
fn escape(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}' => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Says on standard error what was read over.
pub fn notes(notes: &[String]) {
    for note in notes.iter().take(NOTES) {
        say(&format!("note: {note}"));
    }
    if let Some(more) = notes.len().checked_sub(NOTES).filter(|more| *more > 0) {
        say(&format!("note: {more} more like this"));
    }
}

/// Says why a command stops, and what can be done.
pub fn complain(stop: &Stop) {
    if stop.message.is_empty() {
        return;
    }
    say(&stop.message);
    if let Some(remedy) = &stop.remedy {
        say(&format!("  {remedy}"));
    }
}

/// One line on standard error. That it cannot be written must not change the exit code.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "hyperctl: {}", clean(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_never_steers_a_terminal() {
        let value = serde_json::json!({"vm": "a\x1b[2J\u{9b}2J\u{7f}"});
        let text = escape(&value.to_string());
        assert!(!text.chars().any(char::is_control), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
