//! What a command prints: results on standard output, trouble on standard error.
use std::io::Write;
use std::process::ExitCode;

use converter::error::Error;
use queue::job::Failure;
use serde::Serialize;

/// The exit codes that are not 0.
pub const FAILED: u8 = 1;
pub const WRONG_USAGE: u8 = 2;

/// Prints one line; a reader that has gone away is no failure.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A text of a file as it may stand on a terminal: what would steer it is spelled out.
pub fn plain(text: &str) -> String {
    // Controls, and the marks that turn the direction of writing.
    let turns = |c: char| {
        let marks = [
            '\u{200e}'..='\u{200f}',
            '\u{202a}'..='\u{202e}',
            '\u{2066}'..='\u{2069}',
        ];
        marks.iter().any(|range| range.contains(&c))
    };
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns(c) {
            plain.extend(c.escape_unicode());
        } else {
            plain.push(c);
        }
    }
    plain
}

pub fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hyper2kvm: write JSON: {error}");
        }
    }
}

/// Tells of an error: the cause in one line, then what to do about it; as JSON if asked.
pub fn trouble(error: &Error, as_json: bool, code: u8) -> ExitCode {
    let failure = Failure::from(error);
    if as_json {
        json(&serde_json::json!({ "error": failure }));
    }
    let _ = write!(std::io::stderr(), "hyper2kvm: {}", failure.to_text());
    ExitCode::from(code)
}
