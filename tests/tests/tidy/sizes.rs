//! How long files, functions and lines may be, and how a file begins.
use std::path::Path;

use super::source::{Source, item_end, words};

const FILE_LINES: usize = 600;
const UNTESTED_LINES: usize = 400;
const FUNCTION_LINES: usize = 70;
const COLUMNS: usize = 100;
const OPENING_LINES: usize = 8;

pub fn check(source: &Source) -> Vec<String> {
    let mut found = long_lines(&source.path, &source.text);
    found.extend(long_file(source));
    found.extend(long_functions(source));
    found
}

pub fn long_lines(path: &Path, text: &str) -> Vec<String> {
    let lines = text.lines().zip(1..);
    lines
        .filter(|(line, _)| line.chars().count() > COLUMNS)
        .map(|(line, number)| {
            let columns = line.chars().count();
            let path = path.display();
            format!("{path}:{number}: {columns} columns, more than {COLUMNS}")
        })
        .collect()
}

fn long_file(source: &Source) -> Option<String> {
    let all = source.text.lines().count();
    let in_tests = |range: &std::ops::Range<usize>| {
        source.line_at(range.end.saturating_sub(1)) - source.line_at(range.start) + 1
    };
    let tests: usize = source.tests.iter().map(in_tests).sum();
    let untested = if source.is_test() { 0 } else { all - tests };
    if all > FILE_LINES {
        Some(source.at(0, &format!("{all} lines, more than {FILE_LINES}")))
    } else if untested > UNTESTED_LINES {
        let rule = format!("{untested} lines without tests, more than {UNTESTED_LINES}");
        Some(source.at(0, &rule))
    } else {
        None
    }
}

/// A function counts from its `fn` to its closing brace.
fn long_functions(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_named = false;
    let mut start = 0;
    for (offset, word) in words(&source.code) {
        if is_named {
            let end = item_end(&source.code, start);
            let lines = source.line_at(end.saturating_sub(1)) - source.line_at(start) + 1;
            if lines > FUNCTION_LINES {
                let rule = format!("fn {word} has {lines} lines, more than {FUNCTION_LINES}");
                found.push(source.at(start, &rule));
            }
        }
        // `fn(` is a type.
        let behind = source.code.get(offset + word.len()..).unwrap_or_default();
        is_named = word == "fn" && behind.starts_with(' ');
        start = offset;
    }
    found
}

/// A file begins with one to eight lines of `//!`.
pub fn opening(source: &Source) -> Option<String> {
    let lines = source.text.lines();
    match lines.take_while(|line| line.starts_with("//!")).count() {
        0 => Some(source.at(0, "does not begin with //!, which says what the file owns")),
        1..=OPENING_LINES => None,
        more => {
            let rule = format!("begins with {more} lines of //!, more than {OPENING_LINES}");
            Some(source.at(0, &rule))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: String) -> Source {
        Source::new(path.into(), text)
    }

    #[test]
    fn long_files_are_found() {
        let tested = |lines: usize, tests: usize| {
            let (lines, tests) = ("//\n".repeat(lines), "//\n".repeat(tests));
            format!("{lines}#[cfg(test)]\nmod tests {{\n{tests}}}\n")
        };
        for (path, lines, tests, is_long) in [
            ("a/src/b.rs", 400, 100, false),
            ("a/src/b.rs", 401, 0, true),
            ("a/src/b.rs", 300, 300, true),
            ("a/src/b/tests.rs", 500, 0, false),
            ("tests/tests/b.rs", 500, 0, false),
            ("tests/tests/b.rs", 600, 0, true),
        ] {
            let found = long_file(&source(path, tested(lines, tests)));
            assert_eq!(
                found.is_some(),
                is_long,
                "{path} {lines} {tests}: {found:?}"
            );
        }
    }

    #[test]
    fn long_functions_are_found() {
        let body = "\n x(\"}\"); // }".repeat(69);
        let text = format!(
            "type F = fn(u8) -> u8;\nfn short() -> [u8; 4] {{}}\nfn long<T>(f: impl Fn(T))\n\
             where T: Copy, {{{body}\n}}\nfn last() {{}}\n"
        );
        let found = long_functions(&source("a.rs", text));
        assert_eq!(found, ["a.rs:3: fn long has 72 lines, more than 70"]);
    }

    #[test]
    fn long_lines_are_found() {
        let text = format!("{}\n{}\n", "é".repeat(100), "é".repeat(101));
        assert_eq!(
            long_lines(Path::new("a"), &text),
            ["a:2: 101 columns, more than 100"]
        );
    }
}
