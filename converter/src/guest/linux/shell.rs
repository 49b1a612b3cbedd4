//! Assignments in files that a shell reads: `KEY=value`, `KEY="…"`, `KEY='…'`, `KEY=(…)` and the
//! same with `+=`. Only the piece between the quotes is ever replaced.
use std::ops::Range;

use super::edit::Splice;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quotes {
    None,
    Single,
    Double,
    /// A bash array.
    Array,
}

/// One assignment; the ranges are in the decoded text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment<'a> {
    pub key: &'a str,
    pub value: &'a str,
    pub range: Range<usize>,
    pub quotes: Quotes,
    pub appends: bool,
}

impl Assignment<'_> {
    /// Another value for it, put into quotes where it needs them.
    pub fn set(&self, value: &str, reasons: Vec<String>) -> Splice {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
        let bare = self.quotes == Quotes::None && !value.chars().all(plain);
        Splice {
            range: self.range.clone(),
            with: if bare {
                format!("\"{value}\"")
            } else {
                value.to_owned()
            },
            reasons,
            skipped: Vec::new(),
        }
    }
}

/// Every assignment at the beginning of a line, in order. What is not understood (an unclosed
/// quote, a value glued together from several pieces) is not among them.
pub fn assignments(text: &str) -> Vec<Assignment<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let next_line = at + rest.find('\n').map_or(rest.len(), |end| end + 1);
        let assignment = parse(text, at);
        at = next_line.max(assignment.as_ref().map_or(0, |found| found.range.end));
        // Whatever follows a closing quote is on the same line as the quote.
        if at > next_line {
            let rest = text.get(at..).unwrap_or_default();
            at += rest.find('\n').map_or(rest.len(), |end| end + 1);
        }
        found.extend(assignment);
    }
    found
}

/// The last assignment is what counts.
pub fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let all = assignments(text);
    all.iter()
        .rev()
        .find(|found| found.key == key)
        .map(|found| found.value)
}

fn is_name(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

fn parse(text: &str, start: usize) -> Option<Assignment<'_>> {
    let line = text.get(start..)?;
    let mut rest = line.trim_start_matches([' ', '\t']);
    if let Some(exported) = rest.strip_prefix("export") {
        let name = exported.trim_start_matches([' ', '\t']);
        rest = if name.len() < exported.len() {
            name
        } else {
            rest
        };
    }
    let end = rest.find(|c| !is_name(c)).filter(|end| *end > 0)?;
    let (key, rest) = rest.split_at(end);
    let (appends, rest) = match rest.strip_prefix("+=") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix('=')?),
    };
    let (quotes, inside) = match rest.chars().next() {
        Some('"') => (Quotes::Double, rest.get(1..)?),
        Some('\'') => (Quotes::Single, rest.get(1..)?),
        Some('(') => (Quotes::Array, rest.get(1..)?),
        _ => (Quotes::None, rest),
    };
    let length = value_length(inside, quotes)?;
    let begin = text.len() - inside.len();
    Some(Assignment {
        key,
        value: inside.get(..length)?,
        range: begin..begin + length,
        quotes,
        appends,
    })
}

/// The length of the value, or none where what follows it is not the end of a word.
fn value_length(inside: &str, quotes: Quotes) -> Option<usize> {
    let close = match quotes {
        Quotes::None => {
            let end = inside.find(|c: char| c.is_ascii_whitespace() || c == ';');
            let length = end.unwrap_or(inside.len());
            let value = inside.get(..length)?;
            return (!value.contains(['"', '\'', '`', '\\', '('])).then_some(length);
        }
        Quotes::Single => inside.find('\'')?,
        Quotes::Array => inside.find(')')?,
        Quotes::Double => {
            let mut escaped = false;
            let end = inside.char_indices().find(|(_, c)| {
                let is_close = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                is_close
            });
            end?.0
        }
    };
    let behind = inside.get(close + 1..)?.chars().next();
    behind
        .is_none_or(|c| c.is_ascii_whitespace() || c == ';')
        .then_some(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_found_where_a_shell_finds_them() {
        let text = "# A=1\nA=2 # x\n  export B=\"a \\\" b\"\nC='x y'\nD=(a\n b)\n\
                    E+=\" z \"\nF=a\"b\"\nG=\"open\n";
        let all = assignments(text);
        let seen: Vec<_> = all.iter().map(|a| (a.key, a.value, a.appends)).collect();
        let expected = [
            ("A", "2", false),
            ("B", "a \\\" b", false),
            ("C", "x y", false),
            ("D", "a\n b", false),
            ("E", " z ", true),
        ];
        assert_eq!(seen, expected);
        assert_eq!(value("A=1\nA=2\n", "A"), Some("2"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "([A-C]\\+?=|[\"'() \\\\#;=a\n\u{e9}])*") {
            for found in assignments(&text) {
                proptest::prop_assert_eq!(&text[found.range.clone()], found.value);
            }
        }
    }
}
